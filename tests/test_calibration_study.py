"""The study of calibration: its figures against others, a trial that comes out again, and the page of its records."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks" / "calibration"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the records are in the checkout, not beside a wheel")


@pytest.fixture
def run():
    from benchmarks.calibration import run

    return run


@pytest.fixture
def page():
    from benchmarks.calibration import page

    return page


@pytest.fixture
def tiny(run, monkeypatch):
    """A task of data that come with scikit-learn, and of some of the variants."""
    from pernodedrop.study import networks

    task = dataclasses.replace(
        run.TASKS["mnist"],
        network=lambda slot, classes: networks.get("digits")(slot, width=8, classes=classes),
        corruptions={"rotated": (10, 20, 30, 40, 50)},
        sizes=(60, 100, 100),
        corrupted=20,
        epochs=5,
        rates=(0.1, 0.5),
        seeds=1,
    )
    monkeypatch.setitem(run.TASKS, "digits", task)
    monkeypatch.setattr(run, "WAYS", {name: run.WAYS[name] for name in ("none", "dropout", "deep", "snapshots")})
    return task


def without_seconds(record):
    return {name: value for name, value in record.items() if name != "seconds"}


@pytest.mark.slow
@pytest.mark.only_backend("torch", reason="on which the study was run")
def test_a_run_that_was_torn_goes_on_and_trials_come_out_again(run, tiny, tmp_path):
    assert not run.run("digits", tmp_path, hours=0)
    assert run.run("digits", tmp_path)
    path = tmp_path / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    records = [json.loads(line) for line in lines]
    assert (
        [(record["stage"], record["variant"]) for record in records]
        == [
            *[("select", "dropout")] * 2 * 2,  # seeds, rates
            *[("confirm", record["variant"]) for record in records[4:]],
        ]
    )
    assert {record["variant"] for record in records[4:]} == {*run.WAYS}
    path.write_text("".join(lines[:-2]) + lines[-2][:50])
    assert run.run("digits", tmp_path)
    again = [json.loads(line) for line in path.read_text().splitlines()]
    assert list(map(without_seconds, again)) == list(map(without_seconds, records))
    other = run.measured({**run.design("digits").trial("confirm", "none", None, 1001)})
    of_none = next(record for record in records if record["variant"] == "none")
    assert other["found"] != of_none["found"]


@pytest.mark.once
def test_the_rate_with_the_least_validation_loss_confirms(run, tiny):
    of = run.design("digits")
    losses = {(0.1, 0): (1.0, 3.0), (0.5, 0): (2.0, 2.0), (0.1, 1): (2.0, 3.0), (0.5, 1): (2.0, 2.0)}
    records = [
        {
            **of.trial("select", "dropout", rate, seed),
            "found": {
                way: {"validation": {"nll": loss}} for way, loss in zip((run.PLAIN, run.MEAN), pair, strict=True)
            },
        }
        for (rate, seed), pair in losses.items()
    ]
    assert run.selected(of, records, run.PLAIN) == {"dropout": 0.1}
    assert run.selected(of, records, run.MEAN) == {"dropout": 0.5}
    confirming = [(t["variant"], t["rate"]) for t in run.planned(of, records) if t["stage"] == "confirm"]
    assert confirming == [("none", None), ("dropout", 0.1), ("dropout", 0.5), ("deep", None), ("snapshots", None)]
    assert {trial["stage"] for trial in run.planned(of, records[:-1])} == {"select"}


@pytest.mark.once
def test_a_network_sees_no_image_of_the_unknown_classes(run, tiny):
    left_out = [label for seed in range(1000, 1005) for label in run.unseen(seed)]
    assert sorted(left_out) == [*range(10)]
    (_, old), _, (images, labels) = run.datasets.load("digits", sizes=tiny.sizes, seed=3)
    (_, y), parts = run.load("digits", 3)
    known = [label for label in range(10) if label not in run.unseen(3)]
    np.testing.assert_array_equal([known[label] for label in y], [label for label in old if label in known])
    is_known = np.isin(labels, known)
    np.testing.assert_array_equal(parts["clean"][0], images[is_known])
    np.testing.assert_array_equal([known[label] for label in parts["clean"][1]], labels[is_known])
    np.testing.assert_array_equal(parts["unseen"][0], images[~is_known])
    np.testing.assert_array_equal(parts["rotated 1"][1], parts["clean"][1][: tiny.corrupted])


@pytest.mark.once
def test_corruptions_are_what_they_are_called(run):
    x = np.random.default_rng(1).uniform(size=(4, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(run.rotated(x, 90), np.rot90(x, axes=(1, 2)), atol=1e-6)
    grey = np.full((20, 32, 32, 1), 0.5, "float32")
    assert abs(run.noisy(grey, 0.1).std() - 0.1) < 0.1 * 5.5 / np.sqrt(2 * grey.size)  # a false alarm in 26 million
    errors = [np.abs(run.jpeg(x, quality) - x).mean() for quality in (95, 50, 10)]
    assert errors == sorted(errors)
    for name, corrupted in (("rotated", run.rotated(x, 30)), ("noisy", run.noisy(x, 1.0)), ("jpeg", run.jpeg(x, 10))):
        assert (corrupted.shape, corrupted.dtype) == (x.shape, x.dtype), name
        assert 0 <= corrupted.min() < corrupted.max() <= 1, name


@pytest.mark.once
def test_figures_are_those_of_each_part(run):
    rng = np.random.default_rng(0)
    sizes = {"validation": 5, "clean": 30, "rotated 3": 20, "unseen": 10}
    labels = {name: rng.integers(3, size=size) for name, size in sizes.items()}
    parts = {name: (np.zeros(size), None if name == "unseen" else labels[name]) for name, size in sizes.items()}
    p, information = rng.dirichlet(np.ones(3), size=65), rng.uniform(size=65)
    found = run.figures(parts, p, information)
    q, y = p[35:55], labels["rotated 3"]
    assert found["rotated 3"]["error"] == np.mean(q.argmax(1) != y)
    assert found["rotated 3"]["nll"] == pytest.approx(-np.log(q[range(20), y]).mean())
    assert found["rotated 3"]["brier"] == pytest.approx(((q - np.eye(3)[y]) ** 2).sum(1).mean())
    samples, confidence, hits = found["rotated 3"]["bars"]
    assert (samples.sum(), hits.sum()) == (20, sum(q.argmax(1) == y))
    assert confidence.sum() == pytest.approx(q.max(1).sum())
    entropy = -(p * np.log(p)).sum(1)
    for score, values in (("entropy", entropy), ("information", information)):
        above = values[None, 55:] > values[5:35, None]
        assert found["unseen"][f"auroc_{score}"] == pytest.approx(above.mean())
        assert found["clean"][score] == pytest.approx(values[5:35].mean())
    assert "nll" not in found["unseen"]


def made_up(run, losses, seeds=6):
    """Records as a page reads them, of losses by variant that differ a little between seeds."""
    of, rng, environment = run.design("mnist"), np.random.default_rng(0), run.environment()
    names = ["validation", "clean", "unseen", *(f"{one} {n}" for one in ("rotated", "noisy") for n in range(1, 6))]
    records = []
    trials = [*run.plan.plan(of, "select")]
    trials += [
        of.trial("confirm", variant, 0.1 if variant in of.variants else None, 1000 + seed)
        for seed in range(seeds)
        for variant in run.WAYS
    ]
    for trial in trials:
        loss = losses.get(trial["variant"], 1.0) + (trial["rate"] or 0) + 0.01 * rng.normal()
        part = {"nll": loss, "ece": loss / 10, "error": 0.1, "brier": 0.2, "bars": np.ones((3, 10)).tolist()}
        part |= dict.fromkeys(("auroc_entropy", "auroc_information", "information", "entropy"), 0.5)
        found = {way: dict.fromkeys(names, part) for way in run.WAYS[trial["variant"]]}
        seconds = {"training": 1.0, **dict.fromkeys(found, 0.1)}
        records.append({**trial, "found": found, "seconds": seconds, "environment": environment})
    return records


@pytest.mark.once
def test_signs_and_ties_are_those_of_what_was_put_in(run, page):
    records = made_up(run, {"drop_connect": 0.5, "deep": 1.5, "none": 1.1, "snapshots": 1.1})
    found = page.found_in(records)["mnist"]
    assert len(found.seeds) == 6
    column = "NLL, clean"
    verdicts = {arm: one.verdict for arm, one in found.against[page.MC_DROPOUT, column].items()}
    assert {arm for arm, verdict in verdicts.items() if verdict == "less"} == {
        ("drop_connect", run.PLAIN),
        ("drop_connect", run.MEAN),
    }
    assert {arm for arm, verdict in verdicts.items() if verdict == "more"} == {("deep", run.MEAN)}
    assert page.cell(found, ("deep", run.MEAN), column).endswith("\N{NO-BREAK SPACE}++")
    assert page.cell(found, ("drop_connect", run.MEAN), column).endswith("\N{NO-BREAK SPACE}−−")
    assert found.rates["dropout", run.MEAN] == 0.1
    assert "drop" in page.text(records)


@pytest.mark.once
def test_the_advice_of_the_page_is_what_the_records_say(run, page):
    found = page.found_in([json.loads(line) for line in (FOLDER / "records.jsonl").read_text().splitlines()])["mnist"]
    assert len(found.seeds) == 10
    mc, none, turned = page.MC_DROPOUT, page.NONE, ("NLL, rotated", "ECE, rotated")
    clean, auroc = ("NLL, clean", "ECE, clean"), ("AUROC, entropy", "AUROC, disagreement")

    def verdicts(arm, baseline, columns):
        return {found.against[baseline, column][arm].verdict for column in columns}

    assert verdicts(("none", run.SCALED), mc, clean) == {"tie"}
    assert verdicts(("per_node_drop", run.MEAN), mc, turned) == {"less"}
    for column in turned:
        assert min(found.values[column], key=lambda arm: found.mean(arm, column)) == ("per_node_drop", run.MEAN)
    columns = [column for column in found.columns if column.startswith(("NLL", "ECE"))]
    lower = [one.verdict == "less" for column in columns for one in page.gains(found, column).values()]
    assert sum(lower) >= 0.8 * len(lower)
    assert "less" not in {one.verdict for one in page.gains(found, "error").values()}
    for column in auroc:
        assert "more" not in {one.verdict for one in found.against[mc, column].values()}
    assert page.gains(found, "AUROC, entropy")["dropout"].verdict == "tie"
    assert sum(found.against[none, column]["deep", run.MEAN].verdict == "less" for column in columns) >= 5
    assert "less" not in verdicts(("deep", run.MEAN), mc, columns)
    assert verdicts(("snapshots", run.MEAN), mc, columns) == {"tie"}
    for arm in (("masksembles", run.MEAN), ("per_node_drop_fixed", run.PLAIN)):
        assert verdicts(arm, none, clean) == {"tie"}
    assert min(found.over_seeds(arm, "rotated 3", "ece") for arm in found.arms) > 0.2

    of = page.gains(found, "NLL, clean")
    assert max(of, key=lambda variant: of[variant].difference) == "dynamic_drop_connect"
    assert (of["dynamic_drop_connect"].verdict, of["drop_connect"].verdict) == ("tie", "less")


@pytest.mark.once
def test_the_page_says_what_is_not_measured_of_the_tasks_without_records_alone(page):
    assert set(page.LEFT) == set(page.TASKS)
    assert "CIFAR-10, with noise" in page.left({"mnist": None})
    assert "MNIST, turned" not in page.left({"mnist": None})
    assert "the command below" not in page.left(dict.fromkeys(page.TASKS))
    assert page.left(dict.fromkeys(page.TASKS)).endswith(page.ALWAYS_LEFT)


@pytest.mark.once
def test_the_page_is_that_of_the_records(page):
    """`python -m benchmarks.calibration.page` writes it."""
    records = [json.loads(line) for line in (FOLDER / "records.jsonl").read_text().splitlines()]
    assert page.PAGE.read_text(encoding="utf-8") == page.text(records)
    assert (FOLDER / "report.md").read_text(encoding="utf-8") == page.report(records)

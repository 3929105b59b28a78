"""The report of a study: what it says of records whose truth is known, what it writes, and how a browser shows it."""

import csv
import importlib.util
import json
import pathlib
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest

from pernodedrop.study import named, report
from pernodedrop.study.report import published, tables, verdict
from pernodedrop.study.report.findings import Findings
from tests import made_up

pytestmark = pytest.mark.once

EFFECTS = {"none": 0.1, "dropout": 0.0, "per_node_drop": -0.1, "per_node_drop_gaussian": 0.0}


def said(effects=EFFECTS, records=None, **options):
    records = made_up.records(effects, **options) if records is None else records
    return verdict.sentences(Findings(records, made_up.TITLES, "made-up data"))


@pytest.mark.parametrize(
    ("none", "bernoulli", "gaussian", "start"),
    [
        (0.1, -0.1, 0, "PerNodeDrop Bernoulli has a lower test loss than Dropout and no regularizer on made-up data"),
        (0.1, -0.1, -0.1, "PerNodeDrop Bernoulli and PerNodeDrop Gaussian have a lower test loss than Dropout and no"),
        (0.2, 0.1, 0.1, "PerNodeDrop does not win on made-up data: it has a higher loss than Dropout and has a lower"),
        (
            -0.1,
            -0.1,
            -0.1,
            "PerNodeDrop does not win on made-up data: it has a lower loss than Dropout and ties with no regularizer.",
        ),
        (-0.2, -0.1, -0.1, "PerNodeDrop does not win on made-up data: it has a lower loss than Dropout and has a"),
        (
            0.1,
            0.1,
            0,
            "PerNodeDrop does not win on made-up data: it has a higher loss than Dropout (PerNodeDrop Bernoulli) and",
        ),
        (
            -0.2,
            -0.1,
            0.1,
            "PerNodeDrop does not win on made-up data: it has a lower loss than Dropout (PerNodeDrop Bernoulli) or a",
        ),
        (
            0,
            0,
            0,
            "PerNodeDrop does not win on made-up data: it ties with Dropout and ties with no regularizer. With 10",
        ),
    ],
)
def test_the_first_sentence_is_the_answer(none, bernoulli, gaussian, start):
    effects = {"none": none, "dropout": 0, "per_node_drop": bernoulli, "per_node_drop_gaussian": gaussian}
    assert said(effects)[0].startswith(start)


def test_a_tie_tells_what_would_have_been_found():
    found = Findings(made_up.records(dict.fromkeys(EFFECTS, 0)), made_up.TITLES, "made-up data")
    of = {
        base: [found.comparisons[base][name].detectable for name in ("per_node_drop", "per_node_drop_gaussian")]
        for base in ("dropout", "none")
    }
    expected = (
        f" With 10 seeds, a true difference of {max(of['dropout']):.4f} to Dropout, or of {max(of['none']):.4f} to no "
        "regularizer, would be found at least four times out of five."
    )
    assert verdict.sentences(found)[0].endswith(expected)
    records = [one for one in found.records if one["variant"] in ("none", "per_node_drop")]
    found = Findings(records, made_up.TITLES, "made-up data")
    size = found.comparisons["none"]["per_node_drop"].detectable
    expected = (
        f" With 10 seeds, a true difference of {size:.4f} to no regularizer would be found four times out of five."
    )
    assert verdict.sentences(found)[0].endswith(expected)


def test_what_others_are_compared_with_can_be_chosen(tmp_path):
    effects = {"none": 0.1, "dropout": -0.2, "a": 0.0, "b": 0.2, "c": -0.1}
    found = Findings(made_up.records(effects), {}, "made-up data", ("a", "none"))
    assert verdict.sentences(found)[0] == (
        "c has a lower test loss than a and no regularizer on made-up data, beyond chance; no other variant has."
    )
    assert list(found.comparisons) == ["a", "none"]
    report.write(made_up.records(effects), tmp_path, baselines=("a",))
    assert {path.stem for path in (tmp_path / "tables").glob("against_*.csv")} == {"against_a"}


def test_without_ours_the_answer_is_about_the_others():
    assert said({"none": 0.1, "dropout": 0})[0].startswith("Dropout has a lower test loss than no regularizer on")
    assert said({"none": 0, "dropout": 0}, seeds=6)[0].startswith(
        "Dropout does not win on made-up data: it ties with no"
    )
    two = {"none": 0.1, "dropout": 0, "a": 0, "b": 0.2}
    assert said(two)[0] == (
        "No variant wins on made-up data: none has a lower test loss than both Dropout and no regularizer, "
        "beyond chance."
    )
    alone = said({"none": 0, "a": 0, "b": 0.2})[0]
    assert alone == "No variant wins on made-up data: none has a lower test loss than no regularizer, beyond chance."
    assert said({**two, "a": -0.1})[0].startswith("a has a lower test loss than Dropout and no regularizer")


def test_each_variant_is_told_against_each_baseline():
    found = Findings(made_up.records(EFFECTS), made_up.TITLES, "made-up data")
    lines = verdict.sentences(found)
    of = {
        base: {name: verdict.signed(one.difference) for name, one in found.comparisons[base].items()}
        for base in EFFECTS
        if base in found.comparisons
    }
    what = "Dropout (test loss minus that of Dropout; above zero: worse)"
    assert f"Lower test loss than with {what}: PerNodeDrop Bernoulli {of['dropout']['per_node_drop']}." in lines
    assert f"Higher test loss than with {what}: no regularizer {of['dropout']['none']}." in lines
    tie = f"A tie with {what}: PerNodeDrop Gaussian {of['dropout']['per_node_drop_gaussian']}, detectable 0.0"
    assert any(line.startswith(tie) for line in lines)
    assert any(
        line.startswith(
            "Lower test loss than with no regularizer (test loss minus that of no regularizer; above zero: "
        )
        and f"worse): Dropout {of['none']['dropout']}; " in line
        for line in lines
    )
    assert of["dropout"]["none"].startswith(("+0.08", "+0.09", "+0.1"))
    assert of["dropout"]["per_node_drop"].startswith("−0.")


def test_what_an_epoch_costs_is_told_beside_each_baseline():
    seconds = {"none": 2.0, "dropout": 2.5, "per_node_drop": 7.5, "per_node_drop_gaussian": 3.0}
    records = [{**one, "seconds_per_epoch": seconds[one["variant"]]} for one in made_up.records(EFFECTS)]
    expected = (
        "The time of an epoch, compared with no regularizer: Dropout ×1.2; PerNodeDrop Bernoulli ×3.8; PerNodeDrop "
        "Gaussian ×1.5. Compared with Dropout: PerNodeDrop Bernoulli ×3.0; PerNodeDrop Gaussian ×1.2. Taken on one "
        "machine beside whatever else ran there; pernodedrop bench measures costs with more care."
    )
    assert said(records=records)[2] == expected
    assert expected in said(records=[one for one in records if one["stage"] == "select"])
    slow = [{**one, "seconds_per_epoch": 9.0, "environment": {"device": "other"}} for one in records[:9]]
    assert expected in said(records=[*slow, *records[9:]])  # those of another machine do not count
    few = [one for one in records if one["variant"] in ("none", "per_node_drop")]
    start = "The time of an epoch, compared with no regularizer: PerNodeDrop Bernoulli ×3.8. Taken"
    assert said(records=few)[2].startswith(start)
    assert not any("time of an epoch" in line for line in said({"mine": 0, "other": 0.1}))


def test_what_cannot_be_said_yet_is_said_to_be_so():
    assert said(stages=("select",))[0].startswith(
        "Whether anything helps on made-up data cannot be said yet: settings are"
    )
    assert re.search(r" is that of .+, \d\.\d+ at 0\.\d+: the best of .* flatters", said(stages=("select",))[1])
    plain = [one for one in made_up.records(EFFECTS, stages=("select",)) if one["variant"] == "none"]
    assert re.search(r" is that of no regularizer, \d\.\d+: the best of", said(records=plain)[1])
    assert "the paper's protocol has no test set" in said(stages=("grid",))[0]
    assert said(seeds=1)[0] == "Whether PerNodeDrop wins on made-up data cannot be said yet: 1 seed in common."
    assert any("3 seeds are few: by signs alone, p cannot be below 0.25." in line for line in said(seeds=3))
    lone = said({"mine": 0, "other": 0.1})
    assert lone[0].startswith("Whether anything helps on made-up data cannot be said: neither Dropout")


def test_a_rate_at_an_end_of_those_that_were_tried_is_told():
    assert not any("one beyond" in line for line in said())
    left_out = {"dropout": 0.8, "per_node_drop": 0.3}
    few = [
        one for one in made_up.records(EFFECTS) if left_out.get(one["variant"]) != one["rate"] or one["rate"] is None
    ]
    assert [line for line in said(records=few) if "one beyond" in line] == [
        "The lowest rate tried, 0.5, was selected for PerNodeDrop Bernoulli: one beyond may do better.",
        "The highest rate tried, 0.5, was selected for Dropout: one beyond may do better.",
    ]


def test_a_training_that_had_not_ended_is_told():
    assert not any("had not ended" in line for line in [*said(), *said(stages=("select",))])

    def cut(variants, stages=("select", "confirm"), **settings):
        records = made_up.records(EFFECTS, stages=stages, seeds=5)
        for n, one in enumerate(records):
            if one["variant"] in variants and n % 5 < variants[one["variant"]]:
                one["epochs"] = one["epochs"][: one["best_epoch"] + 1]  # stopped where it was best
            one["settings"] |= settings
        return [line for line in said(records=records) if "had not ended" in line]

    assert cut({"none": 3, "per_node_drop": 5, "dropout": 2}) == [
        "Training had not ended: the last epoch has the least validation loss with no regularizer (3 of 5 runs) and "
        "PerNodeDrop Bernoulli (5 of 5 runs). More epochs may change the answer."
    ]
    (line,) = cut({"dropout": 5}, ("select",))
    assert "with Dropout (2 of 2 runs)." in line
    assert not cut({"none": 5}, decay=True)  # the learning rate had fallen to zero


def test_an_unfinished_confirmation_is_told_first():
    records = made_up.records(EFFECTS)
    lines = said(records=records[:-3])
    assert lines[0].startswith("So far: PerNodeDrop Bernoulli has a lower")
    assert any(
        "Seeds so far: no regularizer 10, Dropout 10, PerNodeDrop Bernoulli 10, PerNodeDrop Gaussian 7." in x
        for x in lines
    )
    lines = said(records=[one for one in records if (one["stage"], one["variant"]) != ("confirm", "per_node_drop")])
    assert lines[0].startswith("So far: ")
    assert "Not confirmed so far: PerNodeDrop Bernoulli." in lines


def test_a_loss_that_is_not_finite_is_told():
    records = made_up.records(EFFECTS)
    records[-1]["test"]["loss"] = float("nan")
    expected = "No finite loss, and so no comparison: PerNodeDrop Gaussian or Dropout in 1 of 10 seeds."
    assert expected in said(records=records)


def test_settings_that_were_selected_for_a_time_are_left_out_and_told():
    records = made_up.records(EFFECTS)
    stale = {**records[-1], "rate": 0.3, "test": {"loss": 0.0, "accuracy": 1.0}}
    found = Findings([*records, stale], made_up.TITLES, "made-up data")
    assert found.confirmed["per_node_drop_gaussian"].rate == 0.5
    assert "Left out: 1 run that confirmed settings which are selected no more." in verdict.sentences(found)


def test_a_study_of_ones_own_needs_no_titles_and_no_dropout():
    first, *_ = verdict.sentences(Findings(made_up.records({"none": 0, "my_noise": -0.1}), {}, "mine"))
    assert first == "my noise has a lower test loss than no regularizer on mine, beyond chance."


def by_name(study="cifar10", **options):
    found = Findings(made_up.records(EFFECTS, study=study, **options), made_up.TITLES, "made-up data")
    return {table.name: table for table in tables.tables(found)}


def test_tables_have_the_published_numbers_beside_those_found():
    found = by_name()
    column = {line[0]: line[-1] for line in found["selected"].lines if line[0]}
    assert column["variant"] == "published val loss"
    assert (column["Dropout"], column["PerNodeDrop Bernoulli"], column["no regularizer"]) == ("0.836", "0.820", "-")
    assert {line[0]: line[-2:] for line in found["cost"].lines}["PerNodeDrop Bernoulli"] == ["4.43", "1.46"]
    assert {line[0]: line[-1] for line in found["paper"].lines}["PerNodeDrop Gaussian"] == "5.4"
    assert "Published: chi2 34.600 (at most 35), W 0.989" in found["paper"].note
    assert "published" not in json.dumps(by_name("mine")).lower()
    assert by_name("mnist_ddc")["confirmed"].lines[0][-1] == "published accuracy"


def test_published_numbers_agree_with_each_other():
    for study, ranks in published.RANKS.items():
        assert sorted(ranks, key=ranks.get)[2:] == sorted(published.LOSSES[study], key=published.LOSSES[study].get)[2:]
        assert sum(ranks.values()) == 41 / 2 * len(ranks)  # the ranks of 40 records
        assert round(published.CHI2[study] / (5 * (len(ranks) - 1)), 3) == published.W[study]


def test_the_best_three_choices_are_shown_with_the_means_of_their_seeds():
    records = made_up.records({"dropout": 0.0}, stages=("select",))
    lines = by_name(stages=("select",))["selected"].lines
    (mine,) = [line for line in lines if line[0] == "Dropout"]
    assert mine[1:3] == ["0.5", "2"]
    best = [one["epochs"][one["best_epoch"]]["val_loss"] for one in records if one["rate"] == 0.5]
    others = made_up.records(EFFECTS, stages=("select",))
    best = [
        one["epochs"][one["best_epoch"]]["val_loss"]
        for one in others
        if (one["variant"], one["rate"]) == ("dropout", 0.5)
    ]
    assert mine[3] == f"{sum(best) / 2:.4f}"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    records = made_up.records(EFFECTS, study="cifar10")
    return folder, records, report.write(records, folder, made_up.TITLES, "CIFAR-10 (JPEG)")


def test_the_files_are_whole(written):
    folder, records, page = written
    assert page == folder / "report.html"
    with (folder / "records.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(records)
    assert float(rows[-1]["test_loss"]) == records[-1]["test"]["loss"]
    names = {"against_dropout", "against_none", "confirmed", "cost", "paper", "selected"}
    assert {path.name for path in (folder / "tables").iterdir()} == {
        f"{n}{end}" for n in names for end in (".csv", ".tex")
    }
    drawn = {path.stem for path in (folder / "figures").glob("*.svg")}
    assert drawn == {path.stem for path in (folder / "figures").glob("*.png")}
    assert drawn == {"differences", "bars", "scatter", "rates", "curves", "cost", "null"}
    for path in (folder / "figures").glob("*.svg"):
        text = path.read_text()
        ET.fromstring(text)
        assert "prefers-color-scheme: dark" in text
        assert "#000000" not in text
    markdown = (folder / "report.md").read_text()
    assert markdown.startswith("# Does it help? CIFAR-10 (JPEG)\n\n**PerNodeDrop Bernoulli has a lower test loss")
    assert all((folder / link).exists() for link in re.findall(r"\]\((.+?)\)", markdown))
    table = (folder / "tables/against_dropout.tex").read_text()
    assert table.count(r"\\") == len((folder / "tables/against_dropout.csv").read_text().splitlines())
    assert not re.search(r"(?<!\\)[%#]|±|−", table)


def test_the_page_needs_nothing_but_itself_and_names_the_machine(written):
    page = written[2].read_text()
    assert not re.search(r'(src|href)="(?!#)', page)
    assert page.index("PerNodeDrop Bernoulli has a lower test loss") < page.index("<svg")
    assert "Keras 3.15.1 on jax 0.10.2, NumPy 2.1.0, device cpu:0, 2 cores; a processor" in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_same_records_make_the_same_page_again(written, tmp_path):
    _, records, page = written
    again = report.write(json.loads(json.dumps(records)), tmp_path, made_up.TITLES, "CIFAR-10 (JPEG)")
    assert again.read_bytes() == page.read_bytes()


def test_names_of_others_are_text_and_not_markup(tmp_path):
    records = made_up.records({"none": 0, "<b>mine</b>": -0.1}, study="<i>")
    page = report.write(records, tmp_path, {"<b>mine</b>": "<u>|mine|</u>"}, "<i>").read_text()
    assert not re.search("<[biu]>", page)
    assert "\\|mine\\|" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stages", [("select",), ("grid",), ("confirm",)])
def test_a_study_that_has_only_begun_has_a_report(tmp_path, stages):
    records = made_up.records(EFFECTS, stages=stages)
    for few in (records[:1], records):
        assert report.write(few, tmp_path / str(len(few))).exists()


def test_a_run_that_diverged_has_a_report(tmp_path):
    records = made_up.records(EFFECTS)
    for one in records[3], records[-1]:
        for epoch in one["epochs"]:
            epoch.update(val_loss=float("nan"), train_loss=float("nan"))
    records[-1]["test"]["loss"] = float("nan")
    assert "No finite loss" in report.write(records, tmp_path).read_text()


def test_no_records_and_those_of_two_studies_are_refused(tmp_path):
    for records in ([], made_up.records({"none": 0}) + made_up.records({"none": 0}, study="another")):
        with pytest.raises(ValueError, match="`records`"):
            report.write(records, tmp_path)


MEASURE = """
<body><iframe id="inner" style="width: {width}px; height: 900px; border: 0" src="report.html"></iframe>
<pre id="out"></pre>
<script>
document.getElementById("inner").onload = event => {{
  const page = event.target.contentDocument, root = page.documentElement
  const colour = node => event.target.contentWindow.getComputedStyle(node).color
  document.getElementById("out").textContent = JSON.stringify({{
    wide: root.scrollWidth, paper: event.target.contentWindow.getComputedStyle(page.body).backgroundColor,
    ink: colour(page.body), figures: [...page.querySelectorAll("svg text")].map(colour),
    cut: [...page.querySelectorAll("svg")].flatMap(svg => [...svg.querySelectorAll("text")].filter(text => {{
      const inner = text.getBoundingClientRect(), outer = svg.getBoundingClientRect()
      return inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 1
    }}).map(text => text.textContent)),
  }})
}}
</script>
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(("scheme", "paper"), [(0, "rgb(20, 23, 26)"), (1, "rgb(255, 255, 255)")])
def test_a_browser_shows_the_page_whole_on_dark_and_on_light(written, tmp_path, width, scheme, paper):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser is installed")
    (tmp_path / "report.html").write_bytes(written[2].read_bytes())
    (tmp_path / "outer.html").write_text(MEASURE.format(width=width))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += [f"--blink-settings=preferredColorScheme={scheme}", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--virtual-time-budget=5000", "--window-size=1400,1000", "--dump-dom"]
    command = [browser, *options, (tmp_path / "outer.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    seen = json.loads(re.search(r'<pre id="out">(.+?)</pre>', done.stdout)[1])
    assert seen["wide"] <= width
    assert seen["paper"] == paper
    assert seen["cut"] == []
    assert len(seen["figures"]) > 100
    assert set(seen["figures"]) == {seen["ink"]}


STUDIES = pathlib.Path(__file__).parent.parent / "benchmarks" / "studies"


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.parent.name for path in sorted(STUDIES.glob("*/report.md"))])
def test_the_reports_that_are_committed_are_those_of_the_records_beside_them(name, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write_chart", lambda folder, chart: "")  # told above, of records whose truth is known
    shutil.copy(STUDIES / name / "records.jsonl", tmp_path)
    study, expected = named.load(name, folder=tmp_path), (STUDIES / name / "report.md").read_text()
    study.report()
    assert (tmp_path / "report.md").read_text() == expected
    page = (STUDIES / name / "report.html").read_text()
    assert re.sub("\n*<svg.*?</svg>\n*", "", page, flags=re.DOTALL) == (tmp_path / "report.html").read_text()
    _, answer, *rest = expected.partition("\n\nStudy")[0].splitlines()[1:]
    assert study.verdict().splitlines() == [answer.strip("*"), *(line.removeprefix("- ") for line in rest if line)]


def of_dropout(text):
    """The line of Dropout in the first table of a text, by the task of each column."""
    header, line = (
        next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        for name in ("regularizer", "Dropout")
    )
    return dict(zip(header.split(" | "), line.split(" | "), strict=True))


def test_the_overview_is_that_of_the_records_beside_it():
    spec = importlib.util.spec_from_file_location("overview", STUDIES / "overview.py")
    overview = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(overview)
    text = (STUDIES / "overview.md").read_text()
    assert overview.text(dict(overview.finished())) == text
    below = text.partition("Rates that the studies selected")[2]
    shown, rates = (of_dropout(part) for part in (text, below))
    lines = (STUDIES / "digits" / "records.jsonl").read_text().splitlines()
    losses = {"none": [], "dropout": []}
    for record in map(json.loads, lines):
        if record["stage"] == "confirm" and record["variant"] in losses:
            losses[record["variant"]].append(record["test"]["loss"])
    none, dropout = map(sum, losses.values())
    assert (rates["news (RCV1)"], rates["digits"]) == ("0.3", "0.05")
    percent = re.search(r"[+−][0-9.]+", shown["digits"])[0].replace("−", "-")
    assert float(percent) == round(100 * (dropout / none - 1), 1)

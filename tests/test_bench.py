"""`pernodedrop bench`: what each row computes, what is kept and gone on from, what follows from the times."""

import copy
import html.parser
import importlib.util
import json
import pathlib
import platform
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import keras
import numpy as np
import pytest

from pernodedrop import backends, generator
from pernodedrop.commands import framework
from pernodedrop.commands.bench import (
    charts,
    command,
    limits,
    matrix,
    memory,
    network,
    page,
    products,
    steps,
    table,
    timing,
)
from pernodedrop.commands.bench.results import Figures
from pernodedrop.commands.cli import main
from pernodedrop.report.environment import environment, machine
from tests.commands import IMPOSSIBLE, exits
from tests.frameworks import NAME, array
from tests.processes import DEADLOCK

RATES = {"bytes": 1e10, "flops": 1e11, "words": 1e9}
TINY = matrix.Profile((matrix.Part((2, 6, 4), ("dense", "dropout", "bernoulli")),), 2, 10, memory=0, network=None)
NO_NOISE = 1e-12  # Keras' layers of rate 0 have no seed
MODE = matrix.MODES[NAME][0]
ROWS = [name for name in matrix.ROWS if matrix.ONLY_ON.get(name, NAME) == NAME]

trains = pytest.mark.skip_backend("numpy", reason="Keras on NumPy cannot train")


@pytest.fixture
def tiny(monkeypatch):
    """A profile that takes no time, and a machine that need not be measured."""
    monkeypatch.setitem(matrix.PROFILES, "quick", TINY)
    monkeypatch.setattr(limits, "measure", lambda: dict(RATES))


def bench(folder, *arguments, backend=NAME):
    return main(["bench", "--backends", backend, "--output", str(folder), *arguments])


def kept(folder):
    return json.loads((folder / "results.json").read_text())


def forms(row, rank=2):
    if row != "by_hand":
        return [None]
    return list(products.FORMS if rank == 2 else products.FORMS_OVER_TIME)


def value(row, shape, rate, form, mode=MODE):
    """y, and on what has gradients dx and dw, of one step; and the operands, as host arrays."""
    operands = steps.operands(shape, "float32")
    step = steps.step(products.product(row, NAME, rate, form, shape), NAME, mode)
    return [[array(t) for t in tensors] for tensors in (step(*operands), operands)]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_without_noise_is_the_dense_product(row):
    for form in forms(row):
        results, (x, w, dy, _) = value(row, (3, 5, 4), NO_NOISE, form)
        for ours, truth in zip(results, (x @ w, dy @ w.T, x.T @ dy), strict=False):
            np.testing.assert_allclose(ours, truth, rtol=1e-4, atol=1e-5)
        assert len(results) == (1 if NAME == "numpy" else 3)


@pytest.mark.parametrize("row", ["dense", "dropout", "bernoulli", "bernoulli_materialized", "by_hand"])
def test_a_row_over_time_without_noise_is_the_dense_product(row):
    for form in forms(row, rank=3):
        (y, *_), (x, w, *_) = value(row, (3, 2, 5, 4), NO_NOISE, form)
        np.testing.assert_allclose(y, x @ w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", [*matrix.REFERENCES, "bernoulli", *matrix.METHODS])
def test_a_row_of_a_convolution_without_noise_is_the_convolution(row):
    (y, *_), (x, w, *_) = value(row, (2, 4, 3, 3, 5), NO_NOISE, None)
    around = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    wanted = sum(around[:, i : i + 4, j : j + 3] @ w[i, j] for i in range(3) for j in range(3))
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.once
def test_what_auto_takes_is_shown_beside_the_fastest_method():
    seconds = {"dense": 1, "bernoulli": 4, "bernoulli_kernel": 2, "bernoulli_recomputed": 3}
    cases = [matrix.Case("torch", row, (2, 6, 4), "float32", "eager") for row in seconds]
    times = [{"case": case.plain(), "seconds": seconds[case.row]} for case in cases]
    plain = {"times": times, "environments": {"torch": {}, "jax": {}}}
    assert table.choices(plain) == [["", "jax", "torch"], ["2x6x4", "", "4.00 (kernel 2.00)"]]


@pytest.mark.only_backend("tensorflow", reason="the other backends have one mode that is quick to compile")
@pytest.mark.parametrize("row", ["bernoulli", "by_hand", "keras_dropout"])
def test_xla_computes_the_same(row):
    (y, *_), (x, w, *_) = value(row, (3, 5, 4), NO_NOISE, forms(row)[0], mode="xla")
    np.testing.assert_allclose(y, x @ w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", ROWS)
def test_the_noise_of_a_row_depends_on_the_coordinates_that_it_says(row):
    """With one input, y / (x * w) is the noise: 0 or 2 where it is binary, at rate 1/2."""
    for form in forms(row):
        (y, *_), (x, w, *_) = value(row, (16, 1, 32), 0.5, form)
        noise = y / (x * w)
        along_sample, along_out = (np.ptp(noise, axis).max() > 1e-3 for axis in (0, 1))
        entries = matrix.ROWS[row].entries
        assert (along_sample, along_out) == ("sample" in entries, "out" in entries)
        if entries and "gaussian" not in row and row != "uniform":
            np.testing.assert_allclose(np.unique(noise.round(3)), [0, 2])


@pytest.mark.slow
@pytest.mark.only_backend("numpy", "torch", reason="others compile; their steps, and a process of theirs, are below")
def test_the_command_measures_writes_and_goes_on(tiny, tmp_path, capsys):
    assert bench(tmp_path / "new", "--rows", "dense") == 0
    first = kept(tmp_path / "new")
    shown = capsys.readouterr().out
    assert "Dropout + Dense" in shown
    assert all(f"{name}: left out, not asked for" in shown for name in framework.usable() if name != NAME)
    assert {(r["case"]["row"], r["case"]["mode"]) for r in first["times"]} == {
        (row, mode) for row in matrix.REFERENCES for mode in matrix.MODES[NAME]
    }
    assert all(r["rounds"] == 2 and r["seconds"] > 0 and r["first_call"] > 0 for r in first["times"])
    assert first["environments"][NAME]["backend"] == NAME

    assert bench(tmp_path / "new") == 0
    second = kept(tmp_path / "new")
    assert second["times"][: len(first["times"])] == first["times"]
    assert {r["case"]["row"] for r in second["times"][len(first["times"]) :]} == {"bernoulli"}
    written = {path.name: path.read_text() for path in (tmp_path / "new").iterdir()}
    assert set(written) == {"results.json", "results.md", "results.html"}
    assert all(platform.node() not in text and str(tmp_path) not in text for text in written.values())


def test_a_run_with_nothing_left_to_measure_starts_no_process(tiny, tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text(json.dumps(planted(cases=TINY.parts[0].cases(NAME))))
    monkeypatch.delattr(command, "child")
    assert bench(tmp_path) == 0


@pytest.mark.slow
def test_the_peak_of_a_case_is_measured_in_a_process(tmp_path):
    found = Figures(tmp_path / "results.json")
    case = matrix.Case(NAME, "dense", (2, 6, 4), "float32", MODE)
    command.measure_memory(case, found)
    assert found.memory == [], "what was not timed has no peak"
    found.add("times", {"key": case.key, "case": case.plain(), "form": None})
    command.measure_memory(case, found)
    (record,) = found.memory
    assert record["key"] == case.key
    if sys.platform == "linux":
        assert 0 <= record["extra"] + 2**20 < 2**26


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says the peak of a process")
def test_the_peak_of_a_convolution_is_measured():
    case = matrix.Case(NAME, "bernoulli", (2, 4, 4, 3, 5), "float32", MODE)
    product = products.product(case.row, NAME, matrix.RATE, None, case.shape)
    assert memory.extra(steps.step(product, NAME, MODE), case.shape, case.dtype) < 2**28


@trains
def test_the_network_is_trained_in_turn(monkeypatch):
    def small(variant):
        model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    monkeypatch.setattr(network, "network", small)
    seen = []
    figures = network.measure(("dropout", "bernoulli"), 1, 3, 4, seen.append)
    assert [text.split()[2:] for text in seen] == [
        [variant, f"{epoch}/1"] for epoch in (0, 1) for variant in ("dropout", "bernoulli")
    ]
    assert [(f["variant"], f["rounds"]) for f in figures] == [("dropout", 2), ("bernoulli", 2)]
    assert all(f["beside"]["dropout"] == figures[0]["seconds"] > 0 for f in figures)


@pytest.mark.once
def test_of_the_network_is_asked_what_has_no_figure_and_what_it_is_compared_with(tmp_path):
    asked = matrix.Network(("none", "dropout", "bernoulli"), steps=3, batch=4)
    found = Figures(tmp_path / "results.json")
    for variant, lacking in (("none", ["dropout", "bernoulli"]), ("dropout", ["dropout", "bernoulli"])):
        found.add("networks", {"key": f"torch/{variant}"})
        wanted = {"variants": lacking, "step_count": 3, "batch": 4}
        assert command.lacking_network("torch", asked, found) == wanted
    found.add("networks", {"key": "torch/bernoulli"})
    assert command.lacking_network("torch", asked, found) is None
    assert command.lacking_network("jax", asked, found)["variants"] == list(asked.variants)
    assert command.lacking_network("numpy", asked, found) is None, "it cannot train"
    assert command.lacking_network("jax", None, found) is None


def test_every_variant_of_the_network_is_built():
    assert set(network.LAYERS) == set(matrix.VARIANTS)
    for variant in matrix.VARIANTS:
        sizes = [int(np.prod(weight.shape)) for weight in network.network(variant).trainable_variables]
        assert sizes == [864, 32, 18432, 64, 4096 * 64, 64, 640, 10]


@pytest.mark.once
def test_interrupted_keeps_what_has_finished(tiny, tmp_path, monkeypatch, capsys):
    def time_all(asked, found, bar):
        found.check_environment(NAME, environment(NAME))
        found.add("times", planted()["times"][0])
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "time_all", time_all)
    assert bench(tmp_path) == 130
    captured = capsys.readouterr()
    assert captured.err.endswith("pernodedrop: interrupted\n")
    assert "Time of a step" in captured.out
    assert len(kept(tmp_path)["times"]) == 1
    assert (tmp_path / "results.html").exists()


@pytest.mark.once
@pytest.mark.parametrize(("load", "told"), [(0.1, False), (1000.0, True)])
def test_a_busy_machine_is_told(load, told, monkeypatch, capsys):
    monkeypatch.setattr(command.os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    command.warn_if_busy()
    assert ("1000.0: figures will be far off" in capsys.readouterr().err) == told


@pytest.mark.once
def test_a_case_that_fails_is_told_and_tried_again(tiny, tmp_path, monkeypatch, capsys):
    def time_all(asked, found, bar):
        asked_for.append(len(asked["parts"][0]))
        failed = []
        command.keep_time({"case": asked["parts"][0][0], "failed": "TypeError: no such dtype"}, found, failed)
        return failed

    asked_for = []
    monkeypatch.setattr(command, "time_all", time_all)
    assert bench(tmp_path) == bench(tmp_path) == 1
    assert len(set(asked_for)) == 1
    assert "dense: TypeError: no such dtype" in capsys.readouterr().err


@pytest.mark.once
def test_an_error_of_a_row_does_not_stop_the_others(monkeypatch):
    def warm(case, operands, rate):
        if case.row == "dense":
            raise TypeError("no such dtype")
        return timing.Member(case, lambda *operands: None, 1.0, None)

    monkeypatch.setattr(timing, "warm", warm)
    cases = [matrix.Case(NAME, row, (2, 6, 4), "float32", MODE) for row in ("dense", "bernoulli")]
    failed, timed = timing.measure(cases, 1, 1, 2**30, lambda text: None, {})
    assert failed["failed"] == "TypeError: no such dtype"
    assert timed["beside"] == {"dense": None, "dropout": None}


def test_a_process_that_fails_says_why(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", "/bin/false" if sys.platform != "win32" else "where")
    assert bench(tmp_path) == 1
    assert f"FAILED: {NAME}: " in capsys.readouterr().err


@pytest.mark.once
@pytest.mark.parametrize("changed", ["machine", "environments"])
def test_figures_of_another_machine_or_version_are_never_mixed(tiny, changed, tmp_path, monkeypatch, capsys):
    earlier = planted()
    (earlier["machine"] if changed == "machine" else earlier["environments"][NAME])["cores"] = 999
    text = json.dumps(earlier)
    (tmp_path / "results.json").write_text(text)
    monkeypatch.setattr(command, "time_all", lambda asked, found, bar: found.check_environment(NAME, environment(NAME)))
    with pytest.raises(SystemExit) as stop:
        bench(tmp_path)
    assert stop.value.code == 2
    assert "cores was 999 and is" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_text() == text


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "papre"], "`profile`. Expected one of 'quick', 'paper', 'growth', 'auto', 'sparse', 'full'."),
        (["--backends", "theano"], "argument `backends`. Expected one of 'numpy'"),
        (["--rows", "dropuot"], "did you mean 'dropout'?"),
        (["--rounds", "0"], "`rounds`. Expected an int from 1. Received: rounds=0"),
        (["--rounds", "many"], "invalid int value: 'many'"),
        (["--output", __file__], "argument `output`. Expected a folder"),
    ],
)
def test_wrong_usage_exits_2(arguments, message, capsys):
    assert exits(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.once
@pytest.mark.parametrize("output", IMPOSSIBLE)
def test_an_output_that_cannot_be_written_is_refused_in_one_line(output, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    assert exits(["bench", "--output", output]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "argument `output`. Expected a folder that can be written" in line


@pytest.mark.once
def test_a_misspelt_backend_of_keras_is_told_though_each_process_has_its_own(monkeypatch, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "torhc")
    assert exits(["bench"]) == 2
    assert "`KERAS_BACKEND`. Expected one of 'jax'" in capsys.readouterr().err


@pytest.mark.once
def test_backends_that_keras_cannot_run_on_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(framework, "installed", {"keras", "numpy", "torch"}.__contains__)
    assert command.Settings(output=tmp_path).backends == ("torch",)


@pytest.mark.once
def test_a_backend_that_is_asked_for_and_not_installed_is_an_error(monkeypatch, capsys):
    there, absent = importlib.util.find_spec, "jax" if NAME == "torch" else "torch"  # one that NumPy's does without
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else there(name))
    assert exits(["bench", "--backends", absent]) == 2
    assert f"Received: backends='{absent}'" in capsys.readouterr().err


@pytest.mark.once
def test_a_file_of_another_kind_is_left_alone(tiny, tmp_path):
    (tmp_path / "results.json").write_text("[1, 2]")
    with pytest.raises(SystemExit):
        bench(tmp_path)
    assert (tmp_path / "results.json").read_text() == "[1, 2]"


def planted(cases=None):
    """Results with figures that are easy to follow: rows take 1, 2, 3 ms and so on, and a case was left out."""
    plain = {"format": 1, "machine": machine(), "rates": RATES, "environments": {}}
    plain |= {"times": [], "memory": [], "networks": []}
    for name in {NAME, "torch", "jax"}:
        plain["environments"][name] = environment(NAME)
    if cases is None:
        parts = (matrix.Part((128, 1024, 64), matrix.USUAL), matrix.Part((32, 16, 512, 64), matrix.OVER_TIME))
        cases = [case for part in parts for name in (NAME, "torch") for case in part.cases(name)]
        cases = list(dict.fromkeys(cases))
    for number, case in enumerate(cases, 1):
        record = {
            "key": case.key,
            "case": case.plain(),
            "seconds": number / 1e3,
            "quartiles": [number / 2e3, number / 5e2],
        }
        record |= {"rounds": 3, "first_call": 1.5, "form": None, "beside": {"dense": 1e-3, "dropout": 2e-3}}
        plain["times"].append(record)
        plain["memory"].append({"key": case.key, "case": case.plain(), "extra": 10**6 * number})
    left_out = matrix.Case("jax", "by_hand", (128, 1024, 64), "float16", "jit")
    plain["times"].append({"key": left_out.key, "case": left_out.plain(), "skipped": "about 300 s"})
    for number, variant in enumerate(matrix.VARIANTS, 1):
        record = {
            "key": f"torch/{variant}",
            "backend": "torch",
            "variant": variant,
            "batch": 128,
            "seconds": number / 10,
        }
        plain["networks"].append({**record, "quartiles": [0.1, 0.2], "rounds": 9, "beside": {"dropout": 0.2}})
    return plain


@pytest.mark.once
def test_what_follows_from_a_time():
    record = next(r for r in planted()["times"] if r["case"]["row"] == "bernoulli" and r["case"]["backend"] == "torch")
    own = table.derive({**record, "seconds": 0.1}, RATES)
    assert own["dense"] == pytest.approx(100)
    assert own["dropout"] == pytest.approx(50)
    assert own["entries"] == pytest.approx(128 * 1024 * 64 / 0.1)
    assert own["limit"].binds == "words"
    assert own["share"] == pytest.approx(2 * 128 * 1024 * 64 / 1e9 / 0.1)


@pytest.mark.once
@pytest.mark.parametrize(
    ("backend", "row", "shape", "seconds", "binds"),
    [
        ("torch", "bernoulli", (8, 10, 4), 2 * 320 / 1e9, "words"),
        ("numpy", "bernoulli", (8, 10, 4), 320 / 1e9, "words"),
        ("torch", "bernoulli", (8, 5, 10, 4), 4 * (3 * 400 + 3 * 40 + 2 * 160) / 1e10, "memory"),
        ("torch", "dense", (8, 10, 4), 4 * (3 * 80 + 3 * 40 + 2 * 32) / 1e10, "memory"),
        ("numpy", "dense", (8, 10, 4), 4 * (80 + 40 + 32) / 1e10, "memory"),
        ("torch", "dense", (800, 1000, 400), 3 * 2 * 800 * 1000 * 400 / 1e11, "products"),
        ("torch", "gaussian", (800, 1000, 400), 6 * 2 * 800 * 1000 * 400 / 1e11, "products"),
        ("torch", "dropout", (8, 1000, 1), 2 * 8000 / 1e9, "words"),
        ("torch", "fixed", (1, 1000, 400), 2 * 400000 / 1e9, "words"),
    ],
)
def test_the_limit_of_a_case(backend, row, shape, seconds, binds):
    found = limits.of_case(matrix.Case(backend, row, shape, "float32", "eager"), RATES)
    assert found == (pytest.approx(seconds), binds)


@pytest.mark.once
def test_the_limit_of_a_sparse_case_is_that_of_what_it_lists():
    case = matrix.Case("torch", "bernoulli", (8, 1000, 4), "float32", "eager", listed=10)
    # of w it reads in each pass the rows that may be listed, and writes the gradient of all
    bytes_ = 4 * (3 * 80 + 2 * 8 * 10 * 4 + 4000 + 2 * 32)
    of_listed = {"words": 2 * 8 * 10 * 4, "flops": 3 * 2 * 8 * 10 * 4, "bytes": bytes_}
    assert limits.work_of(case) == of_listed


@pytest.mark.once
def test_without_numba_words_bind_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert limits.word_rate() is None
    case = matrix.Case("torch", "bernoulli", (128, 1024, 64), "float32", "eager")
    assert limits.of_case(case, {**RATES, "words": None}).binds != "words"
    plain = {**planted(), "rates": {**RATES, "words": None}}
    assert "no word rate (no numba)" in table.markdown(plain)


@pytest.mark.once
def test_the_folded_words_are_the_generator_s():
    xp = backends.get("numpy")
    k0, k1 = np.uint32(7), np.uint32(0x9E3779B9)
    words = generator._triple32_keyed(np.arange(64, dtype="uint32") ^ k0, k1, xp)
    with np.errstate(over="ignore"):
        assert limits.folded_words(k0, k1, 64) == np.bitwise_xor.reduce(words)


@pytest.mark.once
def test_the_machine_is_measured(monkeypatch):
    monkeypatch.setattr(limits, "COPY_BYTES", 2**12)
    monkeypatch.setattr(limits, "PRODUCT_SIZE", 16)
    monkeypatch.setattr(limits, "WORDS", 2**8)
    monkeypatch.setattr(limits, "REPEATS", 1)
    found = limits.measure()
    assert found["bytes"] > 0
    assert found["flops"] > 0
    assert (found["words"] is None) == (importlib.util.find_spec("numba") is None)


@pytest.mark.once
def test_steps_take_turns_and_stop_after_their_time():
    called = []
    members = [
        timing.Member(
            matrix.Case(NAME, row, (2, 6, 4), "float32", MODE), lambda row: called.append(row), first=1.0, form=None
        )
        for row in ("dense", "dropout")
    ]
    seen = []
    times = timing.take_turns(members, ["step"], rounds=9, seconds=0, progress=seen.append)
    assert [text.split()[0].rpartition("/")[2] for text in seen] == timing.FEWEST_ROUNDS * ["dense", "dropout"]
    assert {len(values) for values in times.values()} == {timing.FEWEST_ROUNDS}
    assert len(called) == 2 * timing.FEWEST_ROUNDS * timing.MOST_CALLS


@pytest.mark.once
def test_medians_and_quartiles():
    assert timing.spread([3.0, 1.0, 2.0, 5.0, 4.0]) == {"seconds": 3.0, "quartiles": [2.0, 4.0], "rounds": 5}
    assert timing.spread([3.0]) == {"seconds": 3.0, "quartiles": [3.0, 3.0], "rounds": 1}


@pytest.mark.once
def test_what_would_take_too_much_is_left_out():
    case = matrix.Case(NAME, "bernoulli", (128, 1024, 64), "float32", MODE)
    pace = {("bernoulli", MODE, "float32"): 100 / case.entries}
    assert timing.excess(case, 2**40, pace) == "about 400 s"
    assert timing.excess(case, 2**40, {}) is None
    by_hand = matrix.Case(NAME, "by_hand", (128, 1024, 64), "float32", MODE)
    assert timing.excess(by_hand, 2**20, {}) == "more memory than there is"
    assert timing.excess(case, 2**20, {}) is None


@pytest.mark.once
def test_the_table_has_a_line_for_every_case():
    plain = planted()
    lines = table.markdown(plain).partition("## Every case")[2].splitlines()
    for record in plain["times"]:
        case = matrix.Case.of(record["case"])
        name = f"| {case.backend} | {case.mode} | {matrix.shape_text(case.shape)} | {case.dtype} | "
        assert sum(line.startswith(name + table.full_title(case.row) + " |") for line in lines) == 1
    assert {line.count(" | ") for line in lines if line.startswith("|")} == {16}


@pytest.mark.once
def test_what_is_asked_first_is_the_ratio_of_two_rows():
    plain = planted()
    shape = (128, 1024, 64)
    records = table.of_part(plain, (shape, "float32"))
    seconds = {
        row: records[row, "torch", "eager"]["seconds"] for row in ("by_hand", "bernoulli", "gaussian", "keras_dropout")
    }
    (_, *names), *lines = table.ratios(plain)
    column = {line[0]: line[1 + names.index("torch")] for line in lines}
    title = "Bernoulli: times faster than the mask in memory, by hand, 128x1024x64 float32"
    assert column[title] == table.number(seconds["by_hand"] / seconds["bernoulli"])
    title = "Gaussian: multiple of keras Dropout + Dense, 128x1024x64 float32"
    assert column[title] == table.number(seconds["gaussian"] / seconds["keras_dropout"])
    assert column["CIFAR-10 step, PerNodeDrop Bernoulli: multiple of Dropout's"] == "2.50"
    assert table.ratios({**plain, "times": [], "memory": [], "networks": []}) == [["", *names]]


def marks(figure):
    """Where the marks of a chart are: {(the title of a line, the label of a kind of mark): value}."""
    (axes,) = figure.axes
    titles = [label.get_text() for label in axes.get_yticklabels()]
    points = ((kind.get_label(), kind.lines[0].get_xydata()) for kind in axes.containers)
    return {(titles[round(y)], label): x for label, found in points for x, y in found}


@pytest.mark.once
def test_charts_show_multiples_of_dropout_and_the_memory_of_a_step(monkeypatch):
    monkeypatch.setattr(charts, "svg", lambda figure, name: figure)
    plain, shape = planted(), (128, 1024, 64)
    mode = matrix.MODES["torch"][0]
    record = table.of_part(plain, (shape, "float32"))["bernoulli", "torch", mode]
    place = ("PerNodeDrop Bernoulli", f"torch {mode}")
    assert marks(charts.ratios(plain, (shape, "float32")))[place] == pytest.approx(record["seconds"] / 2e-3)
    extra = table.of_part(plain, (shape, "float32"), "memory")["bernoulli", "torch", mode]["extra"]
    assert marks(charts.memory(plain, (shape, "float32")))[place] == pytest.approx(extra / 1e6)
    assert marks(charts.networks(plain))["PerNodeDrop Bernoulli", "torch"] == pytest.approx(0.5 / 0.2)


@pytest.mark.once
def test_a_share_is_the_limit_by_the_time():
    plain = planted()
    record = table.of_part(plain, ((128, 1024, 64), "float32"))["bernoulli", "torch", "eager"]
    percent = 100 * 2 * 128 * 1024 * 64 / RATES["words"] / record["seconds"]
    assert table.share_cell(record, RATES) == f"{percent:.0f} % (words)"


@pytest.mark.once
@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "0.012"), (0.5, "0.500"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (1234.0, "1234")],
)
def test_numbers_have_three_digits(value, text):
    assert table.number(value) == text


@pytest.mark.once
def test_help_lists_what_can_be_chosen(capsys):
    assert exits(["bench", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"{', '.join(matrix.PROFILES)} (default" in text
    assert f"some of {', '.join(name for name in matrix.ROWS if name not in matrix.REFERENCES)}, beside" in text
    assert f"some of {', '.join(backends.NAMES)} (default" in text


class Balanced(html.parser.HTMLParser):
    """Finds elements that are not closed, and what would be loaded."""

    def __init__(self):
        super().__init__()
        self.open, self.loads = [], []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value[0] != "#"]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.once
def test_the_page_is_well_formed_and_needs_nothing_else():
    text = page.html(planted())
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert parser.loads == []
    assert not re.search(r"<script|url\(\s*['\"]?\s*http|@import", text)
    assert "`" not in text
    assert "<code>model.fit</code>" in text
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) == 2 * (len({NAME, "torch"}) + 2) + 1
    for picture in pictures:
        ET.fromstring(picture)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(ids)) == len(ids)


@pytest.mark.once
def test_results_are_read_as_they_were_written(tmp_path):
    plain = planted()
    (tmp_path / "results.json").write_text(json.dumps(plain))
    found = Figures(tmp_path / "results.json")
    assert found.plain() == plain
    found.add("times", plain["times"][0])
    assert found.plain() == plain
    fresh = {**copy.deepcopy(plain["times"][0]), "key": "new"}
    found.add("times", fresh)
    assert Figures.read(tmp_path / "results.json")["times"] == [*plain["times"], fresh]


@pytest.mark.once
def test_gpu_memory_is_known_for_every_framework_with_gradients():
    assert set(memory.GPU) == set(framework.TRAIN)


@pytest.mark.once
def test_a_command_without_its_packages_says_what_to_install(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("pernodedrop.commands.bench")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert exits(["bench"]) == 1
    assert "Try: pip install 'pernodedrop[bench]'" in capsys.readouterr().err


@pytest.mark.once
def test_a_part_has_cases_on_the_backends_that_it_is_for():
    part = matrix.Part((2, 6, 4), ("dense", "dropout"), "bfloat16", one_mode=True, backends=("jax", "torch"))
    shape_and_dtype = ((2, 6, 4), "bfloat16")
    assert part.cases("numpy") == part.cases("tensorflow") == []
    assert part.cases("jax") == [matrix.Case("jax", row, *shape_and_dtype, "jit") for row in ("dense", "dropout")]


@pytest.mark.parametrize("row", matrix.LISTED)
def test_a_row_of_a_sparse_input_is_its_product(row):
    shape, listed = (3, 20, 4), 5
    operands = steps.operands(shape, "float32", listed)
    product = products.of_listed(products.product(row, NAME, NO_NOISE), NAME, shape, listed)
    y, *_ = steps.step(product, NAME, MODE)(*operands)
    values, w = map(array, operands[:2])
    x = products.of_listed(lambda x, w, key: x, "numpy", shape, listed)(values, w, None)
    np.testing.assert_allclose(array(y), x @ w, atol=1e-5)
    assert x.nnz == 3 * listed


def test_profiles_name_what_there_is():
    for profile in matrix.PROFILES.values():
        for part in profile.parts:
            assert set(part.rows) <= set(matrix.ROWS)
            assert set(part.extra) <= set(matrix.EXTRA_MODES)
            assert set(matrix.REFERENCES) <= set(part.rows)
            assert all(len({case.key for case in part.cases(name)}) == len(part.cases(name)) for name in backends.NAMES)
    assert keras.backend.backend() == NAME


@pytest.mark.parametrize("form", [None, next(iter(products.FORMS))])
def test_a_step_without_a_backward_pass_is_the_product_of_one_with_it(form):
    row = "dense" if form is None else "by_hand"
    operands = steps.operands((3, 5, 4), "float32")
    product = products.product(row, NAME, NO_NOISE, form)
    (y,) = steps.step(product, NAME, f"{MODE} {matrix.FORWARD}")(*operands)
    np.testing.assert_array_equal(array(y), array(steps.step(product, NAME, MODE)(*operands)[0]))


@pytest.mark.once
def test_the_limit_of_a_forward_pass_is_less_than_half_of_a_steps():
    works = [
        limits.work_of(matrix.Case("torch", "bernoulli", (8, 32, 16), "float32", mode))
        for mode in ("eager", f"eager {matrix.FORWARD}")
    ]
    assert [work["words"] for work in works] == [2 * 8 * 32 * 16, 8 * 32 * 16]
    assert [work["flops"] for work in works] == [6 * 8 * 32 * 16, 2 * 8 * 32 * 16]


@pytest.mark.slow
@pytest.mark.only_backend("torch", reason="the quickest to start; its kernels for GPUs run in Triton's interpreter")
def test_what_measures_a_gpu_runs_without_one(tmp_path):
    from benchmarks import gpu

    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--sizes", "tiny", "--backends", NAME]
    root = pathlib.Path(__file__).parent.parent
    done = subprocess.run([*command, "--output", tmp_path], cwd=root, capture_output=True, text=True, timeout=DEADLOCK)
    assert done.returncode == 0, done.stderr + done.stdout
    found = kept(tmp_path)
    assert {record["key"] for record in found["checks"]} == {
        f"torch/{what}/{dtype}" for what in ("rows", "shared") for dtype in gpu.DTYPES
    }
    assert all(record["right"] for record in found["checks"])
    assert {record["key"] for record in found["rates"]} == {f"torch/{dtype}" for dtype in gpu.DTYPES}
    assert {record["key"] for record in found["times"]} == {
        case.key for part in gpu.parts("torch", gpu.SIZES["tiny"]) for case in part
    }
    assert {(r["network"], r["dtype"], r["variant"]) for r in found["networks"]} == {
        (title, dtype, variant)
        for title in ("CIFAR-10", "transformer")
        for dtype in gpu.DTYPES
        for variant in gpu.VARIANTS
    }
    assert "Masks of 4 of 4 products are NumPy's" in (tmp_path / "results.md").read_text()

"""What of the command line depends on the framework under test: `pernodedrop demo`, and what doctor finds."""

import json
import os
import sys

import keras
import pytest

import pernodedrop as pnd
from pernodedrop.commands import doctor, framework, probe
from pernodedrop.commands.cli import main
from tests.commands import IMPOSSIBLE, exits
from tests.processes import child

TINY = ["demo", "--seeds", "1", "--epochs", "1", "--variants", "none", "per_node_drop"]

trains = pytest.mark.skip_backend("numpy", reason="Keras on NumPy cannot train")


@pytest.fixture
def demo(monkeypatch):
    """The demo without its comparison of backends, which has a test of its own."""
    from pernodedrop.commands import demo

    answer = {"version": "1.0", "digest": doctor.KNOWN_ANSWER}
    monkeypatch.setattr(doctor, "compare", lambda: {"numpy": answer, "jax": None})
    return demo


@trains
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seeds", "0"], "`seeds`. Expected an int from 1. Received: seeds=0"),
        (["--epochs", "-3"], "`epochs`. Expected an int from 1. Received: epochs=-3"),
        (["--epochs", "many"], "invalid int value: 'many'"),
        (["--variants", "none", "dropuot"], "did you mean 'dropout'?"),
    ],
)
def test_demo_refuses_wrong_settings(argv, message, capsys):
    assert exits(["demo", *argv]) == 2
    assert message in capsys.readouterr().err


@trains
@pytest.mark.once
def test_help_lists_the_variants(capsys):
    from pernodedrop.commands import demo

    assert exits(["demo", "--help"]) == 0
    assert f"some of {', '.join(demo.VARIANTS)} (default" in " ".join(capsys.readouterr().out.split())
    assert len(demo.VARIANTS) - 1 == 7  # beside none, as the text says


@trains
@pytest.mark.parametrize("output", IMPOSSIBLE)
def test_an_output_that_cannot_be_written_is_refused_in_one_line(output, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    assert exits(["demo", "--output", output]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "argument `output`. Expected a folder that can be written" in line
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.only_backend("numpy", reason="the other backends train")
def test_demo_on_numpy_says_that_it_cannot_train(capsys):
    assert exits(["demo"]) == 2
    assert "`KERAS_BACKEND`. Expected one of 'jax', 'torch', 'tensorflow'." in capsys.readouterr().err


@trains
@pytest.mark.parametrize("missing", ["sklearn.datasets", "optuna"])
def test_demo_without_its_packages_says_what_to_install(missing, monkeypatch, capsys):
    for module in ("commands.demo", "commands.study", "study.runner", "study.storage"):
        monkeypatch.delitem(sys.modules, f"pernodedrop.{module}", raising=False)
    monkeypatch.delattr("pernodedrop.study.runner", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    assert exits(["demo"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pernodedrop demo: import of {missing} halted")
    assert line.endswith("Try: pip install 'pernodedrop[demo]'")


@trains
def test_without_the_variable_it_says_which_framework_it_takes(demo, monkeypatch, capsys):
    backend = keras.backend.backend()
    monkeypatch.delenv("KERAS_BACKEND")
    monkeypatch.setattr(framework, "installed", lambda package: package in ("keras", backend))
    assert exits([*TINY, "--seeds", "0"]) == 2
    line, _ = capsys.readouterr().err.splitlines()
    assert line == f"KERAS_BACKEND is not set: Keras runs on {backend}"
    assert os.environ["KERAS_BACKEND"] == backend


def test_digest_is_the_known_answer():
    assert probe.digest(keras.backend.backend()) == doctor.KNOWN_ANSWER


@pytest.mark.slow
def test_doctor_finds_that_the_layers_load():
    part = doctor.layers()
    assert part == (f"Keras: runs on {keras.backend.backend()} (KERAS_BACKEND); the layers load", False)


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("by", ["variable", "file"])
def test_what_keras_takes_by_itself_is_known_beforehand(by, tmp_path):
    """Asked of Keras in a process of its own: the variable goes first, then the file."""
    backend = keras.backend.backend()
    named, other = {"variable": (backend, "theano"), "file": ("", backend)}[by]
    file = tmp_path / "keras.json"
    file.write_text(json.dumps({"backend": other}))
    found = child("backend_of_keras.py", KERAS_HOME=str(tmp_path), KERAS_BACKEND=named)
    assert found == [backend, backend, str(file) if by == "file" else "KERAS_BACKEND"]


@pytest.mark.slow
@pytest.mark.only_backend("torch", reason="others compile each trial; that they finish one is told below")
def test_demo_says_what_it_found_and_goes_on_with_more_seeds(demo, tmp_path, capsys):
    argv = [*TINY, "--output", str(tmp_path / "new" / "folder")]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert doctor.KNOWN_ANSWER in printed
    assert "Does it help? Handwritten digits" in printed
    folder = tmp_path / "new" / "folder"
    assert (folder / "report.html").exists()
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert [one["variant"] for one in records] == ["none", "per_node_drop", "per_node_drop", "none", "per_node_drop"]
    assert {one["backend"] for one in records} == {keras.backend.backend()}
    plain, noisy, *_ = records
    assert plain["start"] == noisy["start"]
    assert plain["epochs"] != noisy["epochs"]

    assert main([*argv, "--seeds", "2"]) == 0
    more = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert more[: len(records)] == records
    assert len(more) == len(records) + 2


@pytest.mark.slow
@trains
def test_interrupted_demo_keeps_what_has_finished(demo, tmp_path, monkeypatch, capsys):
    def trial(self, planned, on_epoch=None):
        if done:
            raise KeyboardInterrupt
        done.append(planned)
        return trained(self, planned)

    done, trained = [], pnd.study.Study.trial
    monkeypatch.setattr(pnd.study.Study, "trial", trial)
    assert main([*TINY, "--output", str(tmp_path)]) == 130
    captured = capsys.readouterr()
    assert captured.err.endswith("pernodedrop: interrupted\n")
    assert "Traceback" not in captured.err
    assert "To go on: pernodedrop demo" in captured.out
    assert (tmp_path / "report.html").exists()
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 1

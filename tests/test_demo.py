"""What of the command line depends on the framework under test: `pernodedrop demo`, and what doctor finds."""

import json
import os
import sys

import keras
import pytest

from pernodedrop.commands import doctor, framework, probe
from pernodedrop.commands.cli import main
from tests.commands import IMPOSSIBLE, exits
from tests.processes import child

TINY = ["demo", "--seeds", "1", "--epochs", "1", "--variants", "none", "bernoulli"]

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
def test_demo_without_its_packages_says_what_to_install(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "pernodedrop.commands.demo", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert exits(["demo"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pernodedrop demo: import of sklearn.datasets halted")
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


def test_doctor_finds_that_the_layers_load():
    part = doctor.layers()
    assert part == (f"Keras: runs on {keras.backend.backend()} (KERAS_BACKEND); the layers load", False)


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
@trains
def test_demo_writes_results_and_never_over_earlier_ones(demo, tmp_path, capsys):
    argv = [*TINY, "--output", str(tmp_path / "new" / "folder")]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 runs" in printed
    assert "PerNodeDrop Bernoulli" in printed
    folder = tmp_path / "new" / "folder"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(first) == {"demo.json", "demo.png"}
    assert first["demo.png"].startswith(b"\x89PNG")

    results = json.loads(first["demo.json"])
    assert results["environment"]["backend"] == keras.backend.backend()
    assert [row["variant"] for row in results["table"]] == ["none", "bernoulli"]
    plain, noisy = results["runs"]
    assert plain["initial_weights"] == noisy["initial_weights"]
    assert plain["val_loss"] != noisy["val_loss"]

    assert main(argv) == 0
    assert {path.name for path in folder.iterdir()} == {*first, "demo-2.json", "demo-2.png"}
    assert {name: (folder / name).read_bytes() for name in first} == first
    again = json.loads((folder / "demo-2.json").read_text())
    assert [run["initial_weights"] for run in again["runs"]] == [run["initial_weights"] for run in results["runs"]]


@trains
@pytest.mark.parametrize("finished", [0, 1, 3])
def test_interrupted_demo_keeps_what_has_finished(demo, finished, tmp_path, monkeypatch, capsys):
    def train(variant, seed, epochs, digits, bar):
        if len(done) == finished:
            raise KeyboardInterrupt
        done.append(variant)
        figures = {"train_loss": [0.5], "val_loss": [1.0], "val_accuracy": [0.25], "seconds": [0.1]}
        return {"variant": variant, "seed": seed, "initial_weights": "", **figures}

    done = []
    monkeypatch.setattr(demo, "train", train)
    assert main([*TINY, "--seeds", "2", "--output", str(tmp_path)]) == 130
    captured = capsys.readouterr()
    assert captured.err.endswith("pernodedrop: interrupted\n")
    assert "Traceback" not in captured.err
    assert (f"{finished} of 4 runs" in captured.out) == bool(finished)
    assert {path.name for path in tmp_path.iterdir()} == ({"demo.json", "demo.png"} if finished else set())
    if finished:
        assert len(json.loads((tmp_path / "demo.json").read_text())["runs"]) == finished


@trains
@pytest.mark.parametrize("variant", ["none", "dropout", "gaussian_dropout", "drop_connect", "gaussian", "fixed"])
def test_variants_differ_in_their_regularizer_only(demo, variant):
    reference, model = demo.network("bernoulli", 3, epochs=1), demo.network(variant, 3, epochs=1)
    for ours, theirs in zip(model.trainable_variables, reference.trainable_variables, strict=True):
        assert (keras.ops.convert_to_numpy(ours) == keras.ops.convert_to_numpy(theirs)).all()


@trains
def test_unequal_initial_weights_are_noticed(demo):
    runs = [{"variant": name, "seed": 0, "initial_weights": name} for name in ("none", "dropout")]
    demo.check_equal_start(runs[:1])
    with pytest.raises(RuntimeError, match="dropout, seed 0: the initial weights differ"):
        demo.check_equal_start(runs)

"""The command line: what it prints, what it writes, and its exit codes."""

import json
import runpy
import sys

import keras
import pytest

import pernodedrop
from pernodedrop import backends, doctor
from pernodedrop.cli import main

TINY = ["demo", "--seeds", "1", "--epochs", "1", "--variants", "none", "bernoulli"]

trains = pytest.mark.skipif(keras.backend.backend() == "numpy", reason="Keras on NumPy cannot train")


@pytest.fixture
def demo(monkeypatch):
    """The demo without its comparison of backends, which has a test of its own."""
    from pernodedrop import demo

    answer = {"version": "1.0", "digest": doctor.KNOWN_ANSWER}
    monkeypatch.setattr(doctor, "compare", lambda: {"numpy": answer, "jax": None})
    return demo


def exits(argv):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    return stop.value.code


def test_help_names_every_command(capsys):
    assert exits(["--help"]) == 0
    text = capsys.readouterr().out
    assert "demo" in text
    assert "doctor" in text


def test_version_as_a_module(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pernodedrop", "--version"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("pernodedrop", run_name="__main__")
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"pernodedrop {pernodedrop.__version__}\n"


@pytest.mark.parametrize(("argv", "message"), [([], "COMMAND"), (["demmo"], "demmo"), (["doctor", "-x"], "-x")])
def test_wrong_usage_exits_2(argv, message, capsys):
    assert exits(argv) == 2
    assert message in capsys.readouterr().err


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
def test_demo_refuses_an_output_that_is_a_file(tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert exits(["demo", "--output", str(taken)]) == 2
    assert "Expected a folder" in capsys.readouterr().err
    assert taken.read_text() == "mine"


@pytest.mark.skipif(keras.backend.backend() != "numpy", reason="the other backends train")
def test_demo_on_numpy_says_that_it_cannot_train(capsys):
    assert exits(["demo"]) == 2
    assert "`KERAS_BACKEND`. Expected one of ('jax', 'torch', 'tensorflow')" in capsys.readouterr().err


def test_demo_without_its_packages_says_what_to_install(monkeypatch, capsys):
    monkeypatch.delattr(pernodedrop, "demo", raising=False)
    monkeypatch.delitem(sys.modules, "pernodedrop.demo", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["demo"]) == 1
    assert "pip install 'pernodedrop[demo]'" in capsys.readouterr().err


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


def test_doctor_finds_the_known_answer_on_every_installed_backend(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in backends.NAMES:
        (line,) = (line for line in lines if line.split()[0] == name)
        assert line.endswith((f"{doctor.KNOWN_ANSWER}  equal", "not installed"))


def test_digest_is_the_known_answer():
    assert doctor.digest(keras.backend.backend()) == doctor.KNOWN_ANSWER


@pytest.mark.parametrize("digest", ["0123456789ab", "ImportError: libsomething.so"])
def test_doctor_exits_1_if_a_backend_differs_or_fails(digest, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "compare", lambda: {"torch": {"version": "1.0", "digest": digest}, "jax": None})
    assert main(["doctor"]) == 1
    assert f"{digest}  DIFFERS" in capsys.readouterr().out

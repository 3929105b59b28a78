"""The command line: what it prints, what it writes, and its exit codes."""

import json
import runpy
import sys

import keras
import pytest

import pernodedrop
from pernodedrop import backends
from pernodedrop.commands import doctor
from pernodedrop.commands.cli import main

TINY = ["demo", "--seeds", "1", "--epochs", "1", "--variants", "none", "bernoulli"]

trains = pytest.mark.skip_backend("numpy", reason="Keras on NumPy cannot train")


@pytest.fixture
def demo(monkeypatch):
    """The demo without its comparison of backends, which has a test of its own."""
    from pernodedrop.commands import demo

    answer = {"version": "1.0", "digest": doctor.KNOWN_ANSWER}
    monkeypatch.setattr(doctor, "compare", lambda: {"numpy": answer, "jax": None})
    return demo


def exits(argv):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    return stop.value.code


@pytest.mark.once
def test_help_names_every_command(capsys):
    assert exits(["--help"]) == 0
    text = capsys.readouterr().out
    assert "demo" in text
    assert "doctor" in text
    assert "check" in text


@pytest.mark.once
def test_version_as_a_module(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pernodedrop", "--version"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("pernodedrop", run_name="__main__")
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"pernodedrop {pernodedrop.__version__}\n"


@pytest.mark.once
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


@pytest.mark.only_backend("numpy", reason="the other backends train")
def test_demo_on_numpy_says_that_it_cannot_train(capsys):
    assert exits(["demo"]) == 2
    assert "`KERAS_BACKEND`. Expected one of ('jax', 'torch', 'tensorflow')" in capsys.readouterr().err


@pytest.mark.once
@pytest.mark.parametrize(
    ("argv", "modules", "missing"),
    [
        (["demo"], "pernodedrop.commands.demo", "sklearn.datasets"),
        (["check", "m:N"], "pernodedrop.testing", "hypothesis"),
    ],
)
def test_a_command_without_its_packages_says_what_to_install(argv, modules, missing, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith((modules, "pernodedrop.commands.check"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert exits(argv) == 1
    extra = modules.rpartition(".")[2]
    message = capsys.readouterr().err
    assert message.startswith(f"pernodedrop {argv[0]}: ")
    assert missing in message
    assert f"Try: pip install 'pernodedrop[{extra}]'" in message


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


@pytest.mark.once
def test_doctor_finds_the_known_answer_on_every_installed_backend(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in backends.NAMES:
        (line,) = (line for line in lines if line.split()[0] == name)
        assert line.endswith((f"{doctor.KNOWN_ANSWER}  equal", "not installed"))


def test_digest_is_the_known_answer():
    assert doctor.digest(keras.backend.backend()) == doctor.KNOWN_ANSWER


@pytest.mark.once
@pytest.mark.parametrize("digest", ["0123456789ab", "ImportError: libsomething.so"])
def test_doctor_exits_1_if_a_backend_differs_or_fails(digest, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "compare", lambda: {"torch": {"version": "1.0", "digest": digest}, "jax": None})
    assert main(["doctor"]) == 1
    assert f"{digest}  DIFFERS" in capsys.readouterr().out


NOISES = """
import pernodedrop as pnd

class Fair(pnd.Noise):
    rate: float

    @property
    def variance(self):
        return self.rate**2 / 3

    def from_uniform(self, u, params, xp):
        return 1 + params["rate"] * (2 * u - 1)

class UpToHalf(Fair):
    def __post_init__(self):
        super().__post_init__()
        if self.rate > 0.5:
            raise ValueError("`rate` is 0.5 at most")

class Unfair(Fair):
    def from_uniform(self, u, params, xp):
        return 1.1 + params["rate"] * (2 * u - 1)

number = 0.5
"""
QUICK = ["--backends", "numpy", "--claims", "moments", "entries", "--examples", "2"]


@pytest.fixture
def my_noises(tmp_path, monkeypatch):
    """The working folder holds a module of noises."""
    (tmp_path / "my_noises.py").write_text(NOISES)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_noises", None)


@pytest.mark.once
def test_check_finds_a_noise_in_the_working_folder_and_draws_it(my_noises, capsys):
    assert main(["check", "my_noises:Fair", *QUICK]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["Fair: 2 claims hold on numpy.", "picture: check-results/Fair.png"]
    assert "moments on numpy" in captured.err
    assert (my_noises / "check-results/Fair.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.once
def test_check_draws_a_noise_at_the_rates_that_it_takes(my_noises, capsys):
    assert main(["check", "my_noises:UpToHalf", *QUICK]) == 0
    assert (my_noises / "check-results/UpToHalf.png").exists()


@pytest.mark.once
def test_check_exits_1_for_a_noise_that_is_refused(my_noises, capsys):
    assert main(["check", "my_noises:Unfair", *QUICK, "--picture", "unfair.svg"]) == 1
    text = capsys.readouterr().out
    assert "Unfair is refused: 1 claim does not hold." in text
    assert "repeat    pnd.testing.claims.moments(Unfair(rate=0.5), 'numpy')" in text
    assert (my_noises / "unfair.svg").exists()


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["my_noises"], "Expected 'module:name', such as 'my_noises:Triangular'. Received: target='my_noises'"),
        (["my_noises:Lost"], "Expected a name in module 'my_noises'. Received: target='my_noises:Lost'"),
        (["my_noises.py:Fair"], "Expected 'module:name', such as 'my_noises:Triangular'"),
        (["my_noises:Fair", "--picture", "fair.xyz"], "argument `picture`. Expected one of '"),
        (["no_such_module:Fair"], "No module named 'no_such_module'"),
        (
            ["my_noises:number"],
            "Expected a noise, a Noise class or a Hypothesis strategy of noises. Received: target=0.5",
        ),
        (["my_noises:Fair", "--claims", "momments"], "(did you mean 'moments'?)"),
        (["my_noises:Fair", "--backends", "theano"], "argument `backends`. Expected one of 'numpy'"),
    ],
)
def test_check_of_something_else_exits_2(my_noises, arguments, message, capsys):
    assert exits(["check", *arguments]) == 2
    assert message in capsys.readouterr().err

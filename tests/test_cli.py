"""The command line without Keras and without a framework: what it prints, what it writes, and its exit codes."""

import os
import pathlib
import subprocess
import sys
import tomllib
import unittest.mock
import venv

import numpy as np
import pytest

import pernodedrop
from pernodedrop import backends
from pernodedrop.commands import doctor, framework
from pernodedrop.commands.cli import main
from pernodedrop.report.environment import installed_backends
from tests.commands import IMPOSSIBLE, exits

ROOT = pathlib.Path(__file__).parent.parent

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def variables():
    """Those of the process are as they were: a command may set KERAS_BACKEND."""
    with unittest.mock.patch.dict(os.environ):
        yield


def test_help_names_every_command(capsys):
    assert exits(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("demo", "study", "bench", "doctor", "check"):
        assert f"\n    {command} " in text


def test_version_as_a_module():
    command = [sys.executable, "-m", "pernodedrop", "--version"]
    assert subprocess.check_output(command, text=True) == f"pernodedrop {pernodedrop.__version__}\n"


@pytest.mark.parametrize(("argv", "message"), [([], "COMMAND"), (["demmo"], "demmo"), (["doctor", "-x"], "-x")])
def test_wrong_usage_exits_2(argv, message, capsys):
    assert exits(argv) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A function that runs a command in an environment that has NumPy and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    for path in (pathlib.Path(pernodedrop.__file__).parent, *pathlib.Path(np.__file__).parent.parent.glob("numpy*")):
        (packages / path.name).symlink_to(path)

    def run(*argv, backend=""):
        own = {"PYTHONPATH": "", "KERAS_BACKEND": backend}
        command = [folder / "bin" / "python", "-m", "pernodedrop", *argv]
        return subprocess.run(command, env=os.environ | own, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("backend", ["", "jax", "touch"])
def test_with_numpy_alone_doctor_says_what_there_is(bare, backend):
    done = bare("doctor", backend=backend)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) < 24
    assert "no Keras" in lines[0]
    assert [line.split() for line in lines if "equal" in line] == [
        ["numpy", np.__version__, doctor.KNOWN_ANSWER, "equal"]
    ]
    assert [line.split()[0] for line in lines if line.endswith("not installed")] == ["tensorflow", "torch", "jax"]
    (line,) = (line for line in lines if line.startswith("Keras"))
    assert ("(did you mean 'torch'?)" if backend == "touch" else "Noises, ops and modules work without it") in line


@pytest.mark.parametrize(
    ("command", "backend", "code", "message"),
    [
        ("demo", "", 1, "no framework that Keras runs on is installed. Try: pip install 'pernodedrop[demo,jax]'"),
        ("demo", "touch", 2, "did you mean 'torch'?). To install one: pip install 'pernodedrop[jax]'"),
        ("bench", "", 1, "no framework that Keras runs on is installed. Try: pip install 'pernodedrop[bench,jax]'"),
        ("check", "touch", 1, "No module named 'hypothesis'. Try: pip install 'pernodedrop[testing]'"),
    ],
)
def test_with_numpy_alone_a_command_says_in_a_line_what_it_needs(bare, command, backend, code, message):
    done = bare(command, *["m:N"] * (command == "check"), backend=backend)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"pernodedrop {command}: ")
    assert message in line


@pytest.fixture
def there(monkeypatch, tmp_path):
    """A function that says which packages are installed, and what KERAS_BACKEND and the file of Keras say."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))

    def set_up(packages, variable="", file=None):
        for module in (framework, doctor):
            monkeypatch.setattr(module, "installed", packages.split().__contains__)
        monkeypatch.setenv("KERAS_BACKEND", variable)
        if file is not None:
            (tmp_path / "keras.json").write_text(file)

    return set_up


@pytest.mark.parametrize(
    ("packages", "variable", "file", "chosen"),
    [
        ("keras numpy torch", "", None, "torch"),
        ("keras numpy jax torch tensorflow", "", None, "tensorflow"),
        ("keras numpy jax torch", "", None, "jax"),
        ("keras numpy jax torch", "torch", None, "torch"),
        ("keras numpy jax", "numpy", None, "numpy"),
        ("keras numpy jax torch", "", '{"backend": "torch"}', "torch"),
        ("keras numpy jax torch", "", '{"backend": "numpy"}', "numpy"),
        ("keras numpy torch", "", '{"backend": "numpy"}', "torch"),
        ("keras numpy torch", "", '{"backend": "theano"}', "torch"),
        ("keras numpy torch", "", "not JSON", "torch"),
        ("keras numpy torch", "", "[]", "torch"),
    ],
)
def test_a_command_takes_what_keras_would_and_else_what_there_is(there, packages, variable, file, chosen):
    there(packages, variable, file)
    assert framework.choose(framework.ALL) == chosen


@pytest.mark.parametrize(
    ("packages", "variable", "needed"),
    [
        ("keras numpy", "", "jax"),
        ("keras numpy", "torch", "jax"),
        ("numpy torch", "torch", "keras"),
        ("keras numpy torch", "jax", "jax"),
        ("keras numpy torch", "numpy", "jax"),
    ],
)
def test_what_is_not_installed_is_named(there, packages, variable, needed):
    there(packages, variable)
    with pytest.raises(ModuleNotFoundError, match="installed") as missing:
        framework.choose(framework.ALL)
    assert missing.value.name == needed


def test_the_file_of_keras_is_elsewhere_where_home_cannot_be_written(monkeypatch):
    """As in keras/src/backend/config.py."""
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setattr(pathlib.Path, "read_text", lambda path, encoding: '{"backend": "torch"}')
    for writable, home in ((True, "~"), (False, "/tmp")):
        monkeypatch.setattr(os, "access", lambda path, mode, writable=writable: writable)
        assert framework.of_keras() == ("torch", str(pathlib.Path(home, ".keras", "keras.json")))


def test_a_backend_that_will_not_do_is_refused(there):
    there("keras numpy jax", "numpy")
    with pytest.raises(ValueError, match=r"`KERAS_BACKEND`. Expected one of 'jax', 'torch', 'tensorflow'. Received"):
        framework.choose(framework.TRAIN)


def test_check_without_its_packages_says_what_to_install(monkeypatch, capsys):
    for name in [
        name for name in sys.modules if name.startswith(("pernodedrop.testing", "pernodedrop.commands.check"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    assert exits(["check", "m:N"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pernodedrop check: import of hypothesis halted")
    assert line.endswith("Try: pip install 'pernodedrop[testing]'")


@pytest.fixture
def probes(monkeypatch):
    """A function that says what the processes of doctor answer, none of which is started."""

    def answering(**answers):
        monkeypatch.setattr(doctor, "_start", lambda *arguments, **variables: "_".join(arguments))
        good = {"version": "1.0", "digest": doctor.KNOWN_ANSWER}
        monkeypatch.setattr(doctor, "_finish", lambda process: answers.get(process, good))

    return answering


def test_doctor_exits_0_if_all_is_well(probes, there, capsys):
    there("keras torch numba", "torch")
    probes()
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for name in installed_backends():
        (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
        assert line.split() == [name, "1.0", doctor.KNOWN_ANSWER, "equal"]
    assert "Keras: runs on torch (KERAS_BACKEND); the layers load" in text


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({"mask_numpy": {"version": "1.0", "digest": "0123456789ab"}}, "0123456789ab  DIFFERS"),
        ({"mask_numpy": {"error": "ImportError: libsomething.so"}}, "ImportError: libsomething.so"),
        ({"layers": {"error": "ImportError: libsomething.so"}}, "the layers FAIL: ImportError: libsomething.so"),
        (
            {"kernels": {"error": "ImportError: libsomething.so"}},
            "\nfast        numba FAILS: ImportError: libsomething.so",
        ),
    ],
)
def test_doctor_exits_1_if_something_differs_or_fails(answers, told, probes, there, capsys):
    there("keras torch numba", "torch")
    probes(**answers)
    assert main(["doctor"]) == 1
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("packages", "variable", "wrong", "told"),
    [
        (
            "keras numpy torch",
            "",
            False,
            "takes tensorflow (the default), which is not installed; with KERAS_BACKEND=t",
        ),
        ("keras numpy torch", "touch", True, "(did you mean 'torch'?)"),
        ("keras numpy torch", "jax", True, "KERAS_BACKEND=jax needs jax, which is not installed. Try: pip install"),
        ("keras numpy torch", "numpy", False, "KERAS_BACKEND=numpy needs jax, which is not installed"),
        ("keras numpy", "", False, "Try: pip install 'pernodedrop[jax]'"),
        ("keras numpy", "numpy", False, "Try: pip install 'pernodedrop[jax]'"),
        ("numpy torch", "", False, "Noises, ops and modules work without it"),
        ("numpy torch", "touch", False, "(did you mean 'torch'?)"),
    ],
)
def test_doctor_says_what_keras_runs_on(packages, variable, wrong, told, probes, there):
    there(packages, variable)
    probes()
    part = doctor.layers()
    assert told in part.text
    assert part.wrong == wrong


def test_doctor_has_keras_on_the_backend_that_it_tries(there, monkeypatch):
    started = {}
    monkeypatch.setattr(doctor, "_start", lambda of, name, **variables: started.update({name: variables}))
    monkeypatch.setattr(doctor, "_finish", lambda process: {})
    there("keras numpy torch tensorflow", "torch")
    doctor.compare()
    assert started
    assert all(variables["KERAS_BACKEND"] == name for name, variables in started.items())


def test_a_process_of_doctor_answers_or_says_how_it_failed():
    answers = [doctor._finish(doctor._start("mask", name)) for name in ("numpy", "theano")]
    assert answers[0] == {"version": np.__version__, "digest": doctor.KNOWN_ANSWER}
    assert "'theano'" in answers[1]["error"]


def test_doctor_says_which_packages_an_extra_lacks(there, monkeypatch):
    there("keras torch")
    versions = dict.fromkeys(("matplotlib", "pytest", "tqdm"), "1.0")
    monkeypatch.setattr(doctor, "_version", versions.get)
    _, *lines = doctor.extras().text.splitlines()
    assert {line.split()[0]: line.partition(" ")[2].strip() for line in lines} == {
        "equinox": "lacks equinox: pip install 'pernodedrop[equinox]'",
        "flax": "lacks flax: pip install 'pernodedrop[flax]'",
        "fast": "lacks numba: pip install 'pernodedrop[fast]'",
        "testing": "lacks hypothesis: pip install 'pernodedrop[testing]'",
        "bench": "matplotlib 1.0, tqdm 1.0",
        "demo": "lacks jinja2, optuna, scikit-learn: pip install 'pernodedrop[demo]'",
        "study": "lacks jinja2, optuna, pillow, scikit-learn: pip install 'pernodedrop[study]'",
        "postgresql": "lacks psycopg, psycopg-binary: pip install 'pernodedrop[postgresql]'",
    }


def test_extras_are_those_of_the_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {extra: tuple(name.partition(">=")[0] for name in names) for extra, names in extras.items()}
    assert {extra: names for extra, names in packages.items() if extra not in backends.NAMES} == doctor.EXTRAS


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


def test_check_finds_a_noise_in_the_working_folder_and_draws_it(my_noises, capsys):
    assert main(["check", "my_noises:Fair", *QUICK]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["Fair: 2 claims hold on numpy.", "picture: check-results/Fair.png"]
    assert "moments on numpy" in captured.err
    assert (my_noises / "check-results/Fair.png").read_bytes()[:4] == b"\x89PNG"
    pyplot = sys.modules["matplotlib.pyplot"]
    assert pyplot.get_fignums() == [], "figures stay in memory"


def test_check_draws_a_noise_at_the_rates_that_it_takes(my_noises, capsys):
    assert main(["check", "my_noises:UpToHalf", *QUICK]) == 0
    assert (my_noises / "check-results/UpToHalf.png").exists()


def test_check_exits_1_for_a_noise_that_is_refused(my_noises, capsys):
    assert main(["check", "my_noises:Unfair", *QUICK, "--picture", "unfair.svg"]) == 1
    text = capsys.readouterr().out
    assert "Unfair is refused: 1 claim does not hold." in text
    assert "repeat    pnd.testing.claims.moments(Unfair(rate=0.5), 'numpy')" in text
    assert (my_noises / "unfair.svg").exists()


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
        (["my_noises:Fair", "--backends", "numpy", "--claims", "momments"], "(did you mean 'moments'?)"),
        (["my_noises:Fair", "--backends", "theano"], "argument `backends`. Expected one of 'numpy'"),
    ],
)
def test_check_of_something_else_exits_2(my_noises, arguments, message, capsys):
    assert exits(["check", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("folder", IMPOSSIBLE)
def test_a_picture_that_cannot_be_written_is_refused_in_one_line(my_noises, folder, capsys):
    (my_noises / "taken").write_text("mine")
    assert exits(["check", "my_noises:Fair", *QUICK, "--picture", f"{folder}/fair.png"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "argument `picture`. Expected a folder that can be written" in line


def test_a_picture_that_is_a_folder_is_refused(my_noises, capsys):
    (my_noises / "fair.png").mkdir()
    assert exits(["check", "my_noises:Fair", *QUICK, "--picture", "fair.png"]) == 2
    assert "argument `picture`. Expected a file that can be written" in capsys.readouterr().err

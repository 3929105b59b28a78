"""What is installed here, whether every backend makes the same mask, and whether the layers load on Keras' backend."""

import concurrent.futures
import importlib.metadata
import json
import subprocess
import typing

from pernodedrop import backends
from pernodedrop.commands import framework
from pernodedrop.report.environment import describe, environment, installed, installed_backends
from pernodedrop.report.process import Process, start
from pernodedrop.report.table import as_text

KNOWN_ANSWER = "addf62d8cd8e"  # what `probe.digest` gives on every backend
ASKED = "sample_mask(Bernoulli(0.5), key=(1, 0), shape=(4, 64, 32))"

EXTRAS = {
    "equinox": ("equinox",),
    "flax": ("flax",),
    "fast": ("numba",),
    "testing": ("hypothesis", "matplotlib", "pytest", "tqdm"),
    "bench": ("matplotlib", "tqdm"),
    "demo": ("jinja2", "matplotlib", "optuna", "scikit-learn", "tqdm"),
    "study": ("jinja2", "matplotlib", "optuna", "pillow", "scikit-learn", "tqdm"),
    "postgresql": ("psycopg", "psycopg-binary"),
}
"""The packages of each extra that is none of the four frameworks."""

Answer: typing.TypeAlias = dict[str, str]


class Part(typing.NamedTuple):
    """A part of the report, and whether something in it is wrong."""

    text: str
    wrong: bool = False


def run() -> int:
    """Print the report.

    Returns:
        The exit code: 1 if a backend does not make the mask or something that is installed fails, else 0.
    """
    print(describe(environment()), flush=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        parts = list(pool.map(lambda part: part(), (masks, layers, extras)))
    print(*(f"\n{part.text}" for part in parts), sep="\n")
    return int(any(part.wrong for part in parts))


def masks() -> Part:
    """Whether every backend makes the known mask."""
    found = compare()
    return Part(report(found), any(answer and answer.get("digest") != KNOWN_ANSWER for answer in found.values()))


def compare() -> dict[str, Answer | None]:
    """The mask of every backend, each in a process of its own.

    Returns:
        A dict from backend to None if it is not installed, else to its "version" and "digest", or its "error".
    """
    # Keras, which TensorFlow imports, on the same one: TensorFlow and torch in one process may be one LLVM too many
    processes = {name: _start("mask", name, KERAS_BACKEND=name) for name in installed_backends()}
    return {name: _finish(processes[name]) if name in processes else None for name in backends.NAMES}


def report(found: dict[str, Answer | None]) -> str:
    """What `compare` found, as lines for a person."""
    lines = []
    for name, answer in found.items():
        if answer is None:
            lines.append([name, "not installed", "", ""])
        elif "error" in answer:
            lines.append([name, "FAILS", answer["error"], ""])
        else:
            verdict = "equal" if answer["digest"] == KNOWN_ANSWER else "DIFFERS"
            lines.append([name, answer["version"], answer["digest"], verdict])
    return f"sha256 of {ASKED}, known answer {KNOWN_ANSWER}:\n{as_text(lines)}"


def layers() -> Part:
    """What Keras runs on, and whether the layers load there."""
    there, (name, by) = installed("keras"), framework.of_keras()
    try:
        chosen = framework.choose(framework.ALL)
    except ValueError as error:
        return Part(f"Keras: {error}", wrong=there)
    except ModuleNotFoundError as error:
        if not there:
            return Part("Keras: not installed. Noises, ops and modules work without it, layers do not.")
        # a framework that was asked for is missing; NumPy is not, even if Keras cannot run on it
        asked_for = by == framework.VARIABLE and name != "numpy"
        return Part(f"Keras: {error}. Try: pip install 'pernodedrop[{error.name}]'", wrong=asked_for)
    answer = _finish(_start("layers", KERAS_BACKEND=chosen))
    verdict = f"the layers FAIL: {answer['error']}" if "error" in answer else "the layers load"
    if chosen == name:
        return Part(f"Keras: runs on {name} ({by}); {verdict}", "error" in answer)
    text = f"Keras: takes {name} ({by}), which is not installed; with KERAS_BACKEND={chosen} {verdict}"
    return Part(text, "error" in answer)


def extras() -> Part:
    """Which extras are complete, and whether numba works, which some versions of NumPy or Python keep from it."""
    told, wrong = {}, False
    for extra, packages in EXTRAS.items():
        found = {name: _version(name) for name in packages}
        lacking = [name for name, version in found.items() if version is None]
        text = f"lacks {', '.join(lacking)}: pip install 'pernodedrop[{extra}]'"
        if not lacking:
            text = ", ".join(f"{name} {version}" for name, version in found.items())
        told[extra] = text
    if installed("numba") and "error" in (answer := _finish(_start("kernels"))):
        told["fast"], wrong = f"numba FAILS: {answer['error']}", True
    return Part(f"Extras:\n{as_text([[*line] for line in told.items()])}", wrong)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _start(*arguments: str, **variables: str) -> Process:
    few = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}  # they share one GPU
    return start("pernodedrop.commands.probe", *arguments, environment=few | variables, stderr=subprocess.PIPE)


def _finish(process: Process) -> Answer:
    output, errors = process.communicate()
    if process.returncode:
        return {"error": (errors.strip() or f"exit code {process.returncode}").splitlines()[-1]}
    return json.loads(output.splitlines()[-1])

"""The framework that Keras runs on in a command: chosen before Keras is imported, since Keras chooses at its import."""

import json
import os
import pathlib
import sys
import typing

from pernodedrop import backends, checks
from pernodedrop.report.environment import installed

VARIABLE = "KERAS_BACKEND"

TRAIN = ("jax", "torch", "tensorflow")
"""The backends of Keras that have gradients."""

ALL = (*TRAIN, "numpy")

NEEDED = {"numpy": "jax"}
"""What Keras imports on a backend, where it is not the package of that name."""


class Choice(typing.NamedTuple):
    """A backend of Keras, and who chose it."""

    name: str
    by: str


def usable() -> tuple[str, ...]:
    """The names of the backends that Keras can run on here.

    Raises:
        ModuleNotFoundError: there is none, or no Keras; its `name` is what to install.
    """
    found = tuple(name for name in backends.NAMES if installed(NEEDED.get(name, name)))
    if not found:
        raise ModuleNotFoundError("no framework that Keras runs on is installed", name=TRAIN[0])
    if not installed("keras"):
        raise ModuleNotFoundError("keras is not installed", name="keras")
    return found


def of_keras() -> Choice:
    """The backend that Keras takes by itself, whether or not it can."""
    if name := os.environ.get(VARIABLE):
        return Choice(name, VARIABLE)
    home = "~" if os.access(os.path.expanduser("~"), os.W_OK) else "/tmp"
    path = pathlib.Path(os.environ.get("KERAS_HOME", f"{home}/.keras"), "keras.json")
    try:
        return Choice(json.loads(path.expanduser().read_text(encoding="utf-8"))["backend"], str(path))
    except (OSError, ValueError, LookupError, TypeError):
        return Choice("tensorflow", "the default")


def choose(among: tuple[str, ...]) -> str:
    """The backend that a command takes: what KERAS_BACKEND says, else what Keras takes by itself, else the first one.

    Args:
        among: names of the backends that will do, all of `TRAIN` among them.

    Raises:
        ValueError: KERAS_BACKEND is none of these.
        ModuleNotFoundError: what it asks for is not installed, or as for `usable`.
    """
    name, by = of_keras()
    if by == VARIABLE:
        try:
            checks.check_choice(name, VARIABLE, among)
        except ValueError as error:
            raise ValueError(f"{error}. To install one: pip install 'pernodedrop[{TRAIN[0]}]'") from None
    there = usable()
    if by != VARIABLE:
        return next(backend for backend in (name, *among) if backend in there and backend in among)
    if name not in there:
        needed = NEEDED.get(name, name)
        raise ModuleNotFoundError(f"{VARIABLE}={name} needs {needed}, which is not installed", name=needed)
    return name


def settle(among: tuple[str, ...]) -> None:
    """Set KERAS_BACKEND to what is chosen, and say so unless it was set."""
    chosen, by = choose(among), of_keras().by
    if by != VARIABLE:
        print(f"{VARIABLE} is not set: Keras runs on {chosen}", file=sys.stderr)
        os.environ[VARIABLE] = chosen


def settle_if_there(among: tuple[str, ...]) -> None:
    """The same for a command that can do without Keras, where there is one and something that it runs on."""
    try:
        usable()
    except ModuleNotFoundError:
        return
    settle(among)

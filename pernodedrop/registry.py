"""Noises and schedules as saved models have them: by name, with all of their fields.

They work without Keras and are saved with the layers that have them. So they are noted here as they are defined, and
handed to `keras.saving` where the first layer is, and from then on at once.
"""

import collections.abc
import typing

from pernodedrop._types import Config

Register: typing.TypeAlias = collections.abc.Callable[[type, str], object]

_classes: list[type] = []
_registers: list[Register] = []


def add(cls: type) -> None:
    """Note a class that saved models may have, under its own name and the package that `package_of` says."""
    _classes.append(cls)
    for register in _registers:
        register(cls, package_of(cls))


def package_of(cls: type) -> str:
    """The package that a class is registered under: "pernodedrop" for the library's own, wherever their file lies."""
    return "pernodedrop" if cls.__module__.startswith("pernodedrop.") else cls.__module__


def made(cls: typing.Any, config: Config) -> typing.Any:
    """A noise or a schedule from its config, or an error if that leaves a field to its default."""
    one = cls(**config)
    missing = sorted(one.get_config().keys() - config.keys())
    if missing:
        raise ValueError(f"The config of {cls.__name__} has no {', '.join(map(repr, missing))}. Received: {config!r}")
    return one


def connect(register: Register) -> None:
    """Call `register(cls, package)` for every class that was added, and for every one to come."""
    _registers.append(register)
    for cls in _classes:
        register(cls, package_of(cls))

"""Noises and schedules by the names that saved models have for them.

They work without Keras and are saved with the layers that have them. So they are noted here as they are defined, and
handed to `keras.saving` where the first layer is, and from then on at once.
"""

import collections.abc
import typing

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


def connect(register: Register) -> None:
    """Call `register(cls, package)` for every class that was added, and for every one to come."""
    _registers.append(register)
    for cls in _classes:
        register(cls, package_of(cls))

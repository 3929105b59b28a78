"""What is imported when it is first used: modules that stand on a package which may not be installed."""

import collections.abc
import importlib
import sys
import types
import typing


def loaded(module: str) -> types.ModuleType:
    """A module of the library, or an error that says what it needs."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        advice = (
            "Try: pip install 'pernodedrop[testing]'"
            if module == "pernodedrop.testing"
            else "Keras runs on the framework that the variable KERAS_BACKEND names, else on TensorFlow"
        )
        message = f"{module} needs {error.name}, which is not installed. {advice}."
        raise ModuleNotFoundError(message, name=error.name) from error


def names(package: str, **late: str) -> tuple[collections.abc.Callable[..., typing.Any], ...]:
    """`__getattr__` and `__dir__` of a package that has names of modules inside it, which are imported for them.

    Args:
        package: its name.
        **late: from each name to the module that has it; a module itself has its own name.
    """

    def get(name: str) -> typing.Any:
        if name not in late:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = loaded(f"{package}.{late[name]}")
        return vars(sys.modules[package]).setdefault(name, module if late[name] == name else getattr(module, name))

    return get, lambda: sorted({*vars(sys.modules[package]), *late})

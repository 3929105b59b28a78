"""Checks of arguments: each error names the argument, what was expected and what was received."""

import collections.abc
import contextlib
import dataclasses
import difflib
import itertools
import math
import numbers
import os
import pathlib
import typing

import numpy as np

WORD_LIMIT = 2**32
HIGHEST_RATE = 1 - 2**-24
LEAST, MOST = (float(size) for size in (np.finfo("float32").tiny, np.finfo("float32").max))
"""Between which the sizes of float32 numbers are, but for 0 and those that some devices take for 0."""

FLOAT = (float, "float")  # annotations of fields, as they are and as `from __future__ import annotations` leaves them
OPTIONAL_FLOAT = (float | None, "float | None")
INT = (int, "int")
NOT_NUMBERS = (bool, np.bool_, np.timedelta64)
"""What Python or NumPy has among the integers."""

SEED_LIMIT = 2**2048
"""Python writes ints of 640 digits whatever its limit, and files have seeds as digits."""

LONGEST = 1000
"""Characters of a value in an error."""


def invalid(argument: str, expected: str, received: object) -> str:
    """The message of an error about one argument, in the one form that the library uses."""
    return f"Invalid value for argument `{argument}`. Expected {expected}. Received: {argument}={shown(received)}"


def shown(value: object) -> str:
    """`value` as an error shows it: its `repr` up to a length, or its class where it has none."""
    try:
        text = repr(value)
    except Exception:  # an int of thousands of digits, which Python does not write; whatever a class does wrong
        return f"<{type(value).__name__} without a repr>"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


NATIVE = {"torch": "pernodedrop.torch", "flax": "pernodedrop.nnx", "equinox": "pernodedrop.equinox"}


def keras_model(received: object) -> str:
    """What is expected where a Keras model is, in an error about something else, such as a module of Flax."""
    return f"a keras.Model{native_advice(received)}"


def native_advice(received: object) -> str:
    """What to take for a module of another library, or nothing."""
    packages = [kind.__module__.partition(".")[0] for kind in type(received).__mro__]
    name = next((name for name in packages if name in NATIVE), None)
    if name is None or "keras" in packages:  # whose layers are modules of torch too
        return ""
    return f"; {NATIVE[name]} has the same for modules of {name}"


def is_real(value: object) -> typing.TypeGuard[float]:
    """Whether `value` is a plain real number (NumPy scalars included, booleans not)."""
    return isinstance(value, numbers.Real) and not isinstance(value, NOT_NUMBERS)


def is_int(value: object) -> typing.TypeGuard[int]:
    """Whether `value` is a plain integer (NumPy scalars included, booleans not)."""
    return isinstance(value, numbers.Integral) and not isinstance(value, NOT_NUMBERS)


def check_rate(rate: typing.Any, argument: str = "rate") -> float:
    """Return `rate` as a float in [0, 1 - 2**-24], or raise."""
    expected = "a drop rate, from 0 and below 1: a float in [0, 1 - 2**-24]"
    if not is_real(rate):
        raise TypeError(invalid(argument, expected, rate))
    if not 0 <= rate <= HIGHEST_RATE:  # also refuses NaN
        raise ValueError(invalid(argument, expected, rate))
    return float(rate)


def check_probability(value: typing.Any, argument: str) -> float:
    """Return a probability as a float in [0, 1], or raise."""
    expected = "a float in [0, 1], a probability"
    if not is_real(value):
        raise TypeError(invalid(argument, expected, value))
    if not 0 <= value <= 1:  # also refuses NaN
        raise ValueError(invalid(argument, expected, value))
    return float(value)


def check_finite(value: typing.Any, argument: str, expected: str = "a finite float", of_tensors: bool = True) -> float:
    """Return `value` as a finite float, and one that float32 holds if tensors are made of it, or raise."""
    if not is_real(value):
        raise TypeError(invalid(argument, expected, value))
    try:
        number = float(value)
    except OverflowError:  # an int, or a fraction of ints, beyond float64
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(invalid(argument, expected, value))
    if of_tensors and number != 0 and not LEAST <= abs(number) <= MOST:
        raise ValueError(invalid(argument, expected + ", of a size that float32 has: 0, or 1.2e-38 to 3.4e38", value))
    return number


def check_positive(value: typing.Any, argument: str, zero: bool = False) -> float:
    """Return `value` as a finite float above zero (or from zero), or raise."""
    expected = "a finite float " + ("from zero" if zero else "above zero")
    number = check_finite(value, argument, expected)
    if number < 0 or (number == 0 and not zero):
        raise ValueError(invalid(argument, expected, value))
    return number


def check_one_given(**values: typing.Any) -> None:
    """Raise unless one of these arguments is given, which is None otherwise."""
    if sum(value is not None for value in values.values()) != 1:
        names = " and ".join(f"`{name}`" for name in values)
        received = ", ".join(f"{name}={shown(value)}" for name, value in values.items())
        raise ValueError(f"Invalid values for arguments {names}. Expected one of the two. Received: {received}")


def check_int(value: typing.Any, argument: str) -> int:
    """Return `value` as an int of 32 bits, or raise."""
    if not is_int(value):
        raise TypeError(invalid(argument, "an int", value))
    if not -(2**31) <= value < 2**31:
        raise ValueError(invalid(argument, "an int in [-2**31, 2**31)", value))
    return int(value)


def check_word(value: typing.Any, argument: str) -> int:
    """Return `value` as an int in [0, 2**32), or raise."""
    expected = "an int in [0, 2**32)"
    if not is_int(value):
        raise TypeError(invalid(argument, expected, value))
    if not 0 <= value < WORD_LIMIT:
        raise ValueError(invalid(argument, expected, value))
    return int(value)


def check_count(value: typing.Any, argument: str, least: int = 1) -> int:
    """Return `value` as an int from `least` and below 2**31, or raise."""
    expected = f"an int from {least}"
    if not is_int(value):
        raise TypeError(invalid(argument, expected, value))
    if not least <= value < 2**31:
        raise ValueError(invalid(argument, expected + (" and below 2**31" if value > 0 else ""), value))
    return int(value)


def check_fields(one: typing.Any, of_tensors: bool) -> None:
    """Make the fields of a frozen dataclass what their annotations say, and a `rate` a drop rate, or raise."""
    for field in dataclasses.fields(one):
        value = getattr(one, field.name)
        if value is None and field.type in OPTIONAL_FLOAT:
            continue
        if field.name == "rate":
            object.__setattr__(one, field.name, check_rate(value))
        elif field.type in FLOAT + OPTIONAL_FLOAT:
            object.__setattr__(one, field.name, check_finite(value, field.name, of_tensors=of_tensors))
        elif field.type in INT:
            object.__setattr__(one, field.name, check_int(value, field.name))


def check_tuple(value: typing.Any, argument: str, of: str, most: int = 2**16) -> tuple[typing.Any, ...]:
    """Return what an iterable, but no str and no mapping, gives as a tuple, or raise."""
    is_iterable = isinstance(value, collections.abc.Iterable)  # a variable of Keras on JAX is none, and has no end
    if not is_iterable or isinstance(value, str | bytes | collections.abc.Mapping):
        raise TypeError(invalid(argument, f"a sequence of {of}", value))
    try:
        found = tuple(itertools.islice(value, most + 1))
    except (TypeError, NotImplementedError) as error:  # some symbolic tensors have an iterator, which raises
        raise TypeError(invalid(argument, f"a sequence of {of}", value)) from error
    if len(found) > most:
        raise ValueError(invalid(argument, f"at most {most} {of}", value))
    return found


def check_names(value: typing.Any, argument: str, choices: tuple[str, ...]) -> tuple[str, ...]:
    """Return one or more of the names `choices`, none of them twice, as a tuple, or raise."""
    names = tuple(check_choice(name, argument, choices) for name in check_tuple(value, argument, f"some of {choices}"))
    if not names or len({*names}) < len(names):
        raise ValueError(invalid(argument, f"one or more of {choices}, each once", value))
    return names


def check_numbers(array: typing.Any, argument: str) -> None:
    """Raise if an array of NumPy, or one with its dtypes, holds no numbers but objects, texts or times."""
    dtype = getattr(array, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind in "OSUmM":
        raise TypeError(invalid(argument, "an array of numbers", dtype))


def check_bool(value: typing.Any, argument: str) -> bool:
    """Return `value` as a bool if it is True or False, those of NumPy too, or raise."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(invalid(argument, "True or False", value))
    return bool(value)


def check_optional_bool(value: typing.Any, argument: str) -> bool | None:
    """Return `value` as a bool if it is True or False, or as it is if it is None, or raise."""
    if value is not None and not isinstance(value, bool | np.bool_):
        raise TypeError(invalid(argument, "True, False or None", value))
    return None if value is None else bool(value)


def check_training(training: typing.Any) -> bool | None:
    """Return a call's `training` as a bool, which 0 and 1 may stand for, or as it is if it is None, or raise.

    Keras makes a scalar tensor of NumPy's True, and takes those of users: so does this, where the value is known.
    """
    value = training
    if getattr(training, "shape", None) == () and ("bool" in str(training.dtype) or "int" in str(training.dtype)):
        with contextlib.suppress(Exception):  # of a tensor in a graph, which the error shows
            value = int(training)
    if is_int(value) and value in (0, 1):
        return bool(value)
    return check_optional_bool(training, "training")


def check_str(value: typing.Any, argument: str) -> str:
    """Return `value` if it is a str, or raise."""
    if not isinstance(value, str):
        raise TypeError(invalid(argument, "a str", value))
    return value


def check_path(value: typing.Any, argument: str) -> pathlib.Path:
    """Return `value` as a path, of something that is there or could be, or raise."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(invalid(argument, "a path", value))
    if not str(value):
        raise ValueError(invalid(argument, "a path", value))
    path = pathlib.Path(value)
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name that is too long, or has a zero byte
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{invalid(argument, 'a path', value)} ({reason})") from error
    return path


def check_seed(seed: typing.Any, argument: str = "seed") -> int | None:
    """Return `seed` if it is an int, of a size that can be written, or None, or raise."""
    if seed is None:
        return None
    if not is_int(seed):
        raise TypeError(invalid(argument, "an int or None", seed))
    if abs(int(seed)) >= SEED_LIMIT:
        raise ValueError(invalid(argument, "an int between -2**2048 and 2**2048", seed))
    return seed


def check_choice(
    value: typing.Any,
    argument: str,
    choices: collections.abc.Collection[str],
    synonyms: collections.abc.Mapping[str, str] | None = None,
) -> str:
    """Return `value` if it is one of the names `choices`, or raise and say which is meant by it or nearest to it."""
    if isinstance(value, str) and value in choices:
        return value
    expected = "one of " + ", ".join(repr(choice) for choice in choices)
    near = None
    if isinstance(value, str):
        nearest = difflib.get_close_matches(value[:LONGEST], choices, n=1, cutoff=0.5)
        near = (synonyms or {}).get(value.lower(), *nearest)
    hint = f" (did you mean {near!r}?)" if near else ""
    raise ValueError(invalid(argument, expected, value) + hint)

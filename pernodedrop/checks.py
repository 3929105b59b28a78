"""Checks of arguments: each error names the argument, what was expected and what was received."""

import collections.abc
import difflib
import math
import numbers
import typing

import numpy as np

WORD_LIMIT = 2**32
HIGHEST_RATE = 1 - 2**-24


def invalid(argument: str, expected: str, received: object) -> str:
    """The message of an error about one argument, in the one form that the library uses."""
    return f"Invalid value for argument `{argument}`. Expected {expected}. Received: {argument}={received!r}"


def is_real(value: object) -> typing.TypeGuard[float]:
    """Whether `value` is a plain real number (NumPy scalars included, booleans not)."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)


def is_int(value: object) -> typing.TypeGuard[int]:
    """Whether `value` is a plain integer (NumPy scalars included, booleans not)."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool_)


def check_rate(rate: typing.Any, argument: str = "rate") -> float:
    """Return `rate` as a float in [0, 1 - 2**-24], or raise."""
    expected = "a float in [0, 1 - 2**-24], a drop rate"
    if not is_real(rate):
        raise TypeError(invalid(argument, expected, rate))
    if not 0 <= rate <= HIGHEST_RATE:  # also refuses NaN
        raise ValueError(invalid(argument, expected, rate))
    return float(rate)


def check_finite(value: typing.Any, argument: str, expected: str = "a finite float") -> float:
    """Return `value` as a finite float, or raise."""
    if not is_real(value):
        raise TypeError(invalid(argument, expected, value))
    if not math.isfinite(value):
        raise ValueError(invalid(argument, expected, value))
    return float(value)


def check_positive(value: typing.Any, argument: str, zero: bool = False) -> float:
    """Return `value` as a finite float above zero (or from zero), or raise."""
    expected = "a finite float " + ("from zero" if zero else "above zero")
    if check_finite(value, argument, expected) < 0 or (value == 0 and not zero):
        raise ValueError(invalid(argument, expected, value))
    return float(value)


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
        raise ValueError(invalid(argument, expected, value))
    return int(value)


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


def check_seed(seed: typing.Any) -> int | None:
    """Return `seed` if it is an int or None, or raise."""
    if seed is not None and not is_int(seed):
        raise TypeError(invalid("seed", "an int or None", seed))
    return seed


def check_choice(value: typing.Any, argument: str, choices: collections.abc.Collection[str]) -> str:
    """Return `value` if it is one of the names `choices`, or raise and say the nearest right one."""
    if value in choices:
        return value
    expected = "one of " + ", ".join(repr(choice) for choice in choices)
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(invalid(argument, expected, value) + hint)

"""The numbers that a noise is tried with: the given ones, and every float of it moved, one at a time.

A noise is written with one number in mind. Ints are left alone: they say which distribution it is, as the levels of a
quantized one do. What the noise refuses is not tried; `bad_input` sees to it that it refuses by name.
"""

import collections.abc
import math
import typing

from hypothesis import strategies as st

from pernodedrop.noise import Noise

RATES = (1e-3, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
FACTORS = (-1.0, 0.25, 0.5, 0.9, 1.1, 2.0)
"""What any other float is multiplied by."""

INSTEAD_OF_ZERO = (-0.5, 0.25, 1.0)


def has_rate(noise: Noise) -> bool:
    """Whether the noise has a drop rate."""
    return getattr(noise, "rate", None) is not None


def at_rates(noise: Noise, rates: collections.abc.Iterable[float]) -> list[Noise]:
    """The noise at other drop rates, without those that it refuses."""
    return _accepted(noise, ({"rate": rate} for rate in rates)) if has_rate(noise) else []


def other_numbers(noise: Noise) -> dict[str, tuple[float, ...]]:
    """For each float of the noise, by name, the numbers that are tried in its place."""
    floats = {name: value for name, value in noise.get_config().items() if isinstance(value, float)}
    return {name: _others(name, value) for name, value in floats.items()}


def varied(noise: Noise) -> list[Noise]:
    """The noise with one number changed, in all ways of `other_numbers` that it takes."""
    changes = ({name: value} for name, values in other_numbers(noise).items() for value in values)
    return _accepted(noise, changes)


def combinations(noise: Noise) -> st.SearchStrategy[Noise]:
    """The noise with all its numbers changed at random, as far as it takes them; it shrinks to the given ones."""
    given = noise.get_config()
    choices = {name: st.sampled_from([given[name], *values]) for name, values in other_numbers(noise).items()}
    if has_rate(noise) and "rate" in choices:
        choices["rate"] |= st.floats(0, RATES[-1])
    changes = st.fixed_dictionaries(choices)
    return changes.map(lambda change: _accepted(noise, [change])).filter(bool).map(lambda accepted: accepted[0])


def changed(noise: Noise, change: collections.abc.Mapping[str, typing.Any]) -> Noise:
    """The noise with other fields, as its class makes it."""
    return type(noise).from_config({**noise.get_config(), **change})


def _others(name: str, value: float) -> tuple[float, ...]:
    if name == "rate":
        return tuple(rate for rate in RATES if rate != value)
    others = (value * factor for factor in FACTORS) if value else INSTEAD_OF_ZERO
    return tuple(other for other in others if other != value and math.isfinite(other))


def _accepted(noise: Noise, changes: collections.abc.Iterable[collections.abc.Mapping[str, float]]) -> list[Noise]:
    found = []
    for change in changes:
        try:
            found.append(changed(noise, change))
        except Exception:  # `bad_input` says which errors a noise may raise
            continue
    return found

"""Drop rates of connections that follow their gradients or their size, in any framework (arXiv 2502.19948)."""

import collections.abc
import dataclasses
import math
import typing

import numpy as np

from pernodedrop import checks, schedules
from pernodedrop._types import Namespace, Params, Tensor
from pernodedrop.mask import Field, Mask
from pernodedrop.noise import Bernoulli, Noise
from pernodedrop.schedules import Schedule
from pernodedrop.state import Regularizer

PREFERENCES = ("small_gradient", "big_gradient", "small_weight", "big_weight")
RISES = ("gradient_rate", "weight_rate")  # of the first preference and of the second
CALIBRATIONS = ("layer", "edge")
TINY = 1e-9  # the authors', beside a standard deviation and a realised keep rate


@dataclasses.dataclass(frozen=True)
class Preferences:
    """Which connections are dropped more often than others, and how much; `pernodedrop.DynamicDropConnect` says how.

    Args:
        prefer, threshold, calibration: those of `pernodedrop.DynamicDropConnect`.

    Raises:
        TypeError, ValueError: an argument that is not as described there.

    >>> Preferences("small_gradient+big_weight", 0.5, "layer").parts
    (('small', 'gradient'), ('big', 'weight'))
    """

    prefer: str
    threshold: float
    calibration: str

    def __post_init__(self) -> None:
        if len({of for _, of in self.parts}) < len(self.parts):
            expected = "one for gradients, one for weights, or both joined as in 'small_gradient+small_weight'"
            raise ValueError(checks.invalid("prefer", expected, self.prefer))
        if not 0 <= checks.check_finite(self.threshold, "threshold", "a float in [0, 1)") < 1:
            raise ValueError(checks.invalid("threshold", "a float in [0, 1)", self.threshold))
        checks.check_choice(self.calibration, "calibration", CALIBRATIONS)
        object.__setattr__(self, "threshold", float(self.threshold))

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """What is preferred, ("small" or "big", "gradient" or "weight"), gradients first."""
        names = self.prefer.split("+") if isinstance(self.prefer, str) else [self.prefer]
        parts = [checks.check_choice(name, "prefer", PREFERENCES).split("_") for name in names]
        return tuple((size, of) for size, of in sorted(parts, key=lambda part: part[1]))

    @property
    def rises(self) -> tuple[str, ...]:
        """The names of their rates."""
        return RISES[: len(self.parts)]

    @property
    def follow_gradients(self) -> bool:
        """Whether gradients of connections are to be noted."""
        return "gradient" in self.parts[0]

    def mask(
        self,
        weights: Tensor,
        sizes: Tensor | None,
        rises: collections.abc.Mapping[str, Tensor],
        field: Field,
        xp: Namespace,
    ) -> Tensor:
        """The mask of a batch, float32.

        Args:
            weights: (group, in, out); the mask's in coordinate is row-major over (group, in).
            sizes: those of the gradients last noted, float32 in the same shape, all 0 if there are none yet; None where
                they are not followed.
            rises: scalar tensors, the rates of the preferences by name.
            field: the mask at its key, of Bernoulli noise.
            xp: the ops namespace of the tensors.
        """
        strengths = {"weight": xp.abs(weights), "gradient": sizes}
        noise = typing.cast(Bernoulli, field.noise)
        keep = noise.keep_probability(field.params, xp)
        for name, (size, of) in zip(RISES, self.parts, strict=False):
            keep = keep - rises[name] * self._preference(xp.astype(strengths[of], "float32"), size, xp)
        probability = noise.rounded(keep, xp)
        kept = _chances(weights, field, xp) < probability
        if self.calibration == "layer":
            ones = xp.astype(kept, "float32")
            mask = ones / (_mean(ones, xp) + TINY)
        else:
            mask = xp.where(kept, 1 / xp.where(kept, probability, 1.0), xp.zeros_like(probability))
        if not self.follow_gradients:
            return mask
        noted = xp.sum(xp.astype(strengths["gradient"] > 0, "float32")) > 0
        return xp.where(noted, mask, xp.ones_like(mask))

    def _preference(self, strength: Tensor, size: str, xp: Namespace) -> Tensor:
        """q, how much more than the others each connection is to be dropped."""
        centred = strength - _mean(strength, xp)
        spread = xp.sqrt(xp.sum(centred * centred) / max(1, math.prod(centred.shape) - 1))
        z = centred / (spread + TINY)
        half = xp.tanh(z / 2) / 2
        q = 0.5 - half if size == "small" else 0.5 + half  # the logistic function, which leaves float32 nowhere
        return xp.where(q > self.threshold, q, xp.zeros_like(q))


def noted(gradient: Tensor, before: Tensor, xp: Namespace) -> Tensor:
    """What is noted, float32: a gradient, or what was noted before where any of it is infinite or NaN."""
    gradient = xp.astype(gradient, "float32")
    overflown = xp.sum(xp.where(xp.abs(gradient) < math.inf, xp.zeros_like(gradient), 1.0)) > 0
    return xp.where(overflown, before, gradient)


def _mean(x: Tensor, xp: Namespace) -> Tensor:
    return xp.sum(x) / max(1, math.prod(x.shape))


def _chances(weights: Tensor, field: Field, xp: Namespace) -> Tensor:
    """The chances of the connections of one sample, float32, in the shape of the weights, (group, in, out)."""
    groups, inputs, outputs = weights.shape
    zero, in_, out = (xp.arange(size, like=weights) for size in (1, groups * inputs, outputs))
    words = field.words(0, zero, zero, in_[:, None], out, xp)
    return xp.reshape(typing.cast(Bernoulli, field.noise).chances(words, xp), (groups, inputs, outputs))


class DynamicRates(Regularizer):
    """Who drops connections at rates that follow preferences, a Keras layer or a module, with their rates in variables.

    `rate` is the rate that all connections have in common.
    """

    preferences: Preferences

    @property
    def prefer(self) -> str:
        """What is dropped more often."""
        return self.preferences.prefer

    @property
    def threshold(self) -> float:
        """The q up to which it counts as 0."""
        return self.preferences.threshold

    @property
    def calibration(self) -> str:
        """What the mask is divided by."""
        return self.preferences.calibration

    def rises_on_host(self, argument: str = "gradient_rate") -> dict[str, float]:
        """The present rates of the preferences, by name."""
        return self._rises_of(self.numbers_on_host(argument))

    def put_rise(self, name: str, value: float) -> None:
        """Have this as the rate of a preference."""
        self.put_numbers(self.numbers_with_rise(name, value))

    def numbers_with_rise(self, name: str, value: float) -> dict[str, typing.Any]:
        """The numbers with another rate of a preference, or an error if it can have no such rate."""
        return {**self.numbers_on_host(name), name: np.float32(check_rise(value, name, self.rates()))}

    @property
    def gradient_rate(self) -> float:
        """The present gradient rate. Setting it takes effect from the next call, compiled or not."""
        return self.rises_on_host()["gradient_rate"]

    @gradient_rate.setter
    def gradient_rate(self, gradient_rate: float) -> None:
        self.put_rise("gradient_rate", gradient_rate)

    @property
    def weight_rate(self) -> float | None:
        """The present rate of the weights beside that of the gradients, None where there is one preference. It is set
        as `gradient_rate` is."""
        return self.rises_on_host("weight_rate").get("weight_rate")

    @weight_rate.setter
    def weight_rate(self, weight_rate: float) -> None:
        self.check_two_preferences()
        self.put_rise("weight_rate", weight_rate)

    def check_two_preferences(self) -> None:
        """Raise unless there is a rate of the weights beside that of the gradients."""
        if len(self.preferences.parts) < 2:
            name, prefer = getattr(self, "name", type(self).__name__), self.preferences.prefer
            raise AttributeError(f"{name!r} has one preference, {prefer!r}: its rate is gradient_rate.")

    @property
    def is_stochastic(self) -> bool:
        """Whether any of the rates is above zero, or there is a schedule."""
        return super().is_stochastic or any(self.rises_on_host().values())

    def checked_rate(self, rate: typing.Any) -> float:
        rate, rises = super().checked_rate(rate), self.rises_on_host()
        if rate + sum(rises.values()) > checks.HIGHEST_RATE:
            total = f"{sum(rises.values()):g}, since {' + '.join(['rate', *rises])}"
            raise ValueError(checks.invalid("rate", f"a float below 1 - {total} is a drop rate below 1", rate))
        return rate

    def check_numbers(self, numbers: Params) -> None:
        super().check_numbers(numbers)
        rates = {"base_rate": self._highest_rate(self.state.mask_at(0, numbers).noise), **self._rises_of(numbers)}
        for name in self.preferences.rises:
            check_rise(rates[name], name, rates)

    def rates(self) -> dict[str, float]:
        """All rates by name, the highest of a schedule."""
        return {"base_rate": self._highest_rate(self.noise), **self.rises_on_host()}

    def _highest_rate(self, noise: Noise) -> float:
        return typing.cast(Bernoulli, noise).rate if self.schedule is None else max(self.schedule.table()[1])

    def _rises_of(self, numbers: Params) -> dict[str, float]:
        return {name: float(str(numbers[name])) for name in self.preferences.rises}  # of float32 the shortest number


class Arguments(typing.NamedTuple):
    """What the arguments of `pernodedrop.DynamicDropConnect` are made into."""

    preferences: Preferences
    mask: Mask
    schedule: Schedule | None
    rises: dict[str, np.float32]


def checked(
    base_rate: float | Schedule,
    gradient_rate: float,
    threshold: float,
    prefer: str,
    calibration: str,
    weight_rate: float | None,
) -> Arguments:
    """The arguments of a constructor, or an error about one of them."""
    start, schedule = schedules.get(base_rate, "base_rate")
    rates = {"base_rate": start if schedule is None else max(schedule.table()[1])}
    rates["gradient_rate"] = check_rise(gradient_rate, "gradient_rate", rates)
    preferences = Preferences(prefer, threshold, calibration)
    if (weight_rate is None) == (len(preferences.parts) == 2):
        expected = "a float beside two preferences, None beside one, whose rate is gradient_rate"
        raise ValueError(checks.invalid("weight_rate", expected, weight_rate))
    if weight_rate is not None:
        rates["weight_rate"] = check_rise(weight_rate, "weight_rate", rates)
    rises = {name: np.float32(rates[name]) for name in preferences.rises}
    return Arguments(preferences, Mask(Bernoulli(start), "sample+time"), schedule, rises)


def check_rise(value: typing.Any, name: str, rates: collections.abc.Mapping[str, float]) -> float:
    """The rate of a preference, beside the other rates, or an error."""
    others = {other: rate for other, rate in rates.items() if other != name}
    total = f"{sum(others.values()):g}, since {' + '.join([*others, name])}"
    expected = f"a float from zero and below 1 - {total} is a drop rate below 1"
    value = checks.check_finite(value, name, expected)
    if value < 0 or sum(others.values()) + value > checks.HIGHEST_RATE:
        raise ValueError(checks.invalid(name, expected, value))
    return value

"""Noises: the distribution of one mask entry, as pure maths on uniform numbers.

A noise turns the words of an entry (see `generator.py`) into a multiplier with mean 1. It is written once, against the
ops namespace `xp` of the framework that the words belong to, and never draws anything itself.

A noise of your own is one small class, whose annotated fields are its numbers.

>>> import pernodedrop as pnd
>>> class Triangular(pnd.Noise):
...     half_width: float = 0.5
...     @property
...     def variance(self):
...         return self.half_width**2 / 6
...     def from_uniform(self, u, params, xp):
...         left = xp.sqrt(2 * u) - 1
...         right = 1 - xp.sqrt(2 * (1 - u))
...         return 1 + params["half_width"] * xp.where(u < 0.5, left, right)
>>> mask = pnd.ops.sample_mask(Triangular(0.25), key=(7, 0), shape=(2, 3, 4), backend="numpy")
>>> bool(abs(mask - 1).max() <= 0.25)
True
"""

import collections.abc
import dataclasses
import math
import typing

import numpy as np

from pernodedrop import checks, registry
from pernodedrop._types import Config, Namespace, Params, Tensor, Words

__all__ = ["Bernoulli", "Gaussian", "Noise", "PartialGaussian", "Uniform"]

LEVELS = 2**24
"""How many probabilities Bernoulli decisions tell apart: they are made on the upper 24 bits of a word."""


@typing.dataclass_transform(frozen_default=True)
@dataclasses.dataclass(frozen=True)
class Noise:
    """Base class of noises: the distribution of one mask entry.

    A subclass becomes a frozen dataclass, registered for saved models under its module and name, so it compares,
    hashes, saves and loads by the values of all its fields; a field with `compare=False` is refused. The module that
    defines it must be imported before a model that uses it is loaded.

    Subclasses give:
        variance: the variance of an entry, a float.
        from_uniform(u, params, xp): the entries, see below.
    They may give:
        mean: the mean of an entry; 1.0 for every calibrated noise, which is what layers expect.
        lanes: how many independent uniform numbers an entry is made of; 1.
        gaussian: whether an entry is 1 + params["stddev"] * (standard normal), so that weighted sums of entries are
            Gaussian and `method="local_reparameterization"` holds; False.
        exact: whether entries are equal to the bit on every backend, which takes operations that round alike: no
            logarithm, no erfinv; False.
        __post_init__(): further checks of the fields, after `super().__post_init__()`, which refuses a field `rate`
            that is not a drop rate, a `float` that is not finite in float32, and an `int` that is not an int of 32
            bits.

    >>> class TwoPoint(Noise):
    ...     size: float
    ...     @property
    ...     def variance(self):
    ...         return self.size**2
    ...     def from_uniform(self, u, params, xp):
    ...         return 1 + params["size"] * xp.sign(u - 0.5)
    >>> TwoPoint(0.5).variance
    0.25
    """

    mean: typing.ClassVar[float] = 1.0
    lanes: typing.ClassVar[int] = 1
    gaussian: typing.ClassVar[bool] = False
    exact: typing.ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: typing.Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True)(cls)
        for field in dataclasses.fields(cls):
            if not field.compare:  # what a framework compiled for a noise is found again by equality
                name = f"Field {field.name!r} of {cls.__name__}"
                raise TypeError(f"{name}: expected compare=True. Received: compare=False")
        registry.add(cls)

    def __post_init__(self) -> None:
        checks.check_fields(self, of_tensors=True)

    @property
    def variance(self) -> float:
        """The variance of an entry."""
        raise NotImplementedError(f"{type(self).__name__} must define `variance`")

    def from_uniform(self, u: Tensor, params: Params, xp: Namespace) -> Tensor:
        """Entries from uniform numbers.

        Args:
            u: float32 tensor of numbers in (0, 1), the middles of 2**23 equal cells; a list of `lanes` such tensors
                where `lanes` is more than 1. All operations must be elementwise.
            params: dict of the noise's own numbers as scalar tensors, under the names of `params()`. Use these rather
                than the fields of `self`: a rate that changes during training arrives here.
            xp: the ops namespace of the framework of `u`; `pernodedrop.backends.NOISE_OPS` lists what it has.

        Returns:
            A float32 tensor of the shape of `u`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `from_uniform(u, params, xp)`")

    def from_words(self, words: list[Words], params: Params, xp: Namespace) -> Tensor:
        """Entries from a list of `lanes` word tensors; by default through `from_uniform`."""
        u = [xp.uniform(word) for word in words]
        return self.from_uniform(u[0] if self.lanes == 1 else u, params, xp)

    def params(self) -> dict[str, np.generic]:
        """The noise's own numbers on the host: a dict from name to NumPy scalar (float32, unless overridden)."""
        return {name: np.float32(value) for name, value in self.get_config().items() if checks.is_real(value)}

    def with_params(self, params: Params) -> typing.Self:
        """The same distribution with other numbers: the inverse of `params()`."""
        own = self.params()
        changed = {name: value for name, value in params.items() if value != own[name]}
        return dataclasses.replace(self, **{k: type(getattr(self, k))(_number_of(v)) for k, v in changed.items()})

    def with_rate(self, rate: float) -> typing.Self:
        """The same distribution at another drop rate."""
        if getattr(self, "rate", None) is None:
            raise TypeError(f"{self!r} has no rate that could be set to {rate!r}")
        return dataclasses.replace(self, **{"rate": rate})

    def get_config(self) -> Config:
        """The fields by name, as `from_config` takes them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config: Config) -> typing.Self:
        """The noise that `get_config` described, or an error if a field is missing."""
        return registry.made(cls, config)

    def _has(self, params: Params) -> bool:
        return all(own == params[name] for name, own in self.params().items())


class Bernoulli(Noise):
    """Drops an entry with probability `rate`, and scales what is kept by 1 / (1 - rate).

    An entry is kept iff the upper 24 bits of its word are below the integer T = round((1 - rate) * 2**24), and is then
    2**24 / T; so masks are equal to the bit on every backend and the realised rate is within 2**-25 of `rate`.

    Args:
        rate: drop rate, a float in [0, 1 - 2**-24].

    Raises:
        TypeError, ValueError: a rate that is not a number, or is outside that range (1.0 and NaN too).

    >>> Bernoulli(0.75).variance
    3.0
    """

    rate: float
    exact: typing.ClassVar[bool] = True

    @property
    def threshold(self) -> int:
        """T, the integer below which an entry is kept."""
        return _threshold_of(self.rate)

    @property
    def variance(self) -> float:
        return LEVELS / self.threshold - 1

    def params(self) -> dict[str, np.generic]:
        return {"threshold": np.int32(self.threshold)}

    def with_params(self, params: Params) -> typing.Self:
        return self if self._has(params) else self.with_rate(_rate_of(params["threshold"]))

    def from_words(self, words: list[Words], params: Params, xp: Namespace) -> Tensor:
        threshold = params["threshold"]
        scale = LEVELS / xp.float32(threshold)
        return xp.where(xp.bits24(words[0]) < threshold, scale, xp.zeros_like(scale))

    # for layers that decide in a way of their own

    def keep_probability(self, params: Params, xp: Namespace) -> Tensor:
        """T / 2**24, a float32 scalar: how probable it is that an entry is kept."""
        return xp.float32(params["threshold"]) / LEVELS

    def rounded(self, probability: Tensor, xp: Namespace) -> Tensor:
        """The multiples of 2**-24 that are nearest to probabilities, float32."""
        return xp.floor(probability * LEVELS + 0.5) / LEVELS

    def chances(self, words: Words, xp: Namespace) -> Tensor:
        """The numbers in [0, 1), float32, that are below a probability where an entry is kept."""
        return xp.float32(xp.bits24(words)) / LEVELS

    def thinned(self, params: Params, share: Tensor, xp: Namespace) -> Params:
        """The numbers of a mask that drops `share` times as often, `share` being a float32 scalar.

        The threshold is one product of float32 numbers, cut to an integer, so it is the same on every backend.
        """
        dropped = xp.float32(LEVELS - params["threshold"]) * share
        return {"threshold": LEVELS - xp.astype(dropped, "int32")}


class UniformNumber(Noise):
    """A uniform number in (0, 1) itself, of which a layer makes something else: a decision, a choice, a normal number.

    >>> UniformNumber().mean
    0.5
    """

    mean: typing.ClassVar[float] = 0.5
    exact: typing.ClassVar[bool] = True

    @property
    def variance(self) -> float:
        return 1 / 12

    def from_uniform(self, u: Tensor, params: Params, xp: Namespace) -> Tensor:
        return u


class _ScaledNoise(Noise):
    """Base of noises that are given by a rate or else by a scale.

    Subclasses have an optional float as a further field, and give:
        scale_name: the name of that field.
        scale_per_stddev: what the field is at a standard deviation of 1.
    """

    rate: float | None = None
    scale_name: typing.ClassVar[str]
    scale_per_stddev: typing.ClassVar[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        scale = getattr(self, self.scale_name)
        checks.check_one_given(**{"rate": self.rate, self.scale_name: scale})
        if self.rate is None:
            checks.check_positive(scale, self.scale_name, zero=True)
        else:
            object.__setattr__(self, self.scale_name, self.scale_per_stddev * math.sqrt(self.rate / (1 - self.rate)))

    @property
    def variance(self) -> float:
        return (getattr(self, self.scale_name) / self.scale_per_stddev) ** 2

    def params(self) -> dict[str, np.generic]:
        return {self.scale_name: np.float32(getattr(self, self.scale_name))}

    def with_params(self, params: Params) -> typing.Self:
        if self._has(params):
            return self
        if self.rate is None:
            return dataclasses.replace(self, **{self.scale_name: _number_of(params[self.scale_name])})
        odds = (float(params[self.scale_name]) / self.scale_per_stddev) ** 2
        return self.with_rate(shortest(odds / (1 + odds), lambda rate: self.with_rate(rate)._has(params)))

    def with_rate(self, rate: float) -> typing.Self:
        if self.rate is None:
            given = f"was given by its {self.scale_name}"
            raise TypeError(f"{self!r} {given} and has no rate that could be set to {rate!r}")
        return dataclasses.replace(self, **{"rate": rate, self.scale_name: None})

    def get_config(self) -> Config:
        return {self.scale_name: getattr(self, self.scale_name)} if self.rate is None else {"rate": self.rate}


class Gaussian(_ScaledNoise):
    """Multiplies by a normal number of mean 1: N(1, rate / (1 - rate)), or N(1, stddev**2).

    Entries are made by inversion from 23 bits, so they reach 5.3 standard deviations and no further. At rate 0.8 the
    standard deviation is 2 and 31 % of the entries are negative.

    Args:
        rate: drop rate of the Bernoulli noise with the same variance, a float in [0, 1 - 2**-24].
        stddev: the standard deviation itself, a finite float from zero. Give one of the two.

    Raises:
        TypeError, ValueError: neither or both given, or a number out of range.

    >>> Gaussian(rate=0.5), Gaussian(stddev=0.1).variance
    (Gaussian(rate=0.5, stddev=1.0), 0.010000000000000002)
    """

    stddev: float | None = None
    gaussian: typing.ClassVar[bool] = True
    scale_name: typing.ClassVar[str] = "stddev"
    scale_per_stddev: typing.ClassVar[float] = 1.0

    def from_uniform(self, u: Tensor, params: Params, xp: Namespace) -> Tensor:
        return 1 + params["stddev"] * normal(u, xp)


class PartialGaussian(Noise):
    """Leaves an entry at 1 with probability 1 - rate, else makes it N(1, stddev**2).

    The paper names this kind of noise without tying its standard deviation to the rate, so give both. Which entries are
    perturbed is decided as in `Bernoulli`, with the same bits on every backend.

    Args:
        rate: probability that an entry is perturbed, a float in [0, 1 - 2**-24].
        stddev: standard deviation of a perturbed entry, a finite float from zero.

    Raises:
        TypeError, ValueError: a number out of range.

    >>> PartialGaussian(rate=0.5, stddev=2.0).variance
    2.0
    """

    rate: float
    stddev: float
    lanes: typing.ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_positive(self.stddev, "stddev", zero=True)

    @property
    def variance(self) -> float:
        return (1 - _threshold_of(self.rate) / LEVELS) * self.stddev**2

    def params(self) -> dict[str, np.generic]:
        return {"threshold": np.int32(_threshold_of(self.rate)), "stddev": np.float32(self.stddev)}

    def with_params(self, params: Params) -> typing.Self:
        numbers = {"rate": _rate_of(params["threshold"]), "stddev": _number_of(params["stddev"])}
        return self if self._has(params) else dataclasses.replace(self, **numbers)

    def from_words(self, words: list[Words], params: Params, xp: Namespace) -> Tensor:
        choice, value = words
        noisy = 1 + params["stddev"] * normal(xp.uniform(value), xp)
        return xp.where(xp.bits24(choice) < params["threshold"], xp.ones_like(noisy), noisy)


class Uniform(_ScaledNoise):
    """Multiplies by a number drawn uniformly from [1 - half_width, 1 + half_width].

    Args:
        rate: drop rate of the Bernoulli noise with the same variance: half_width = sqrt(3 * rate / (1 - rate)).
        half_width: half the width of the interval, a finite float from zero. Give one of the two.

    Raises:
        TypeError, ValueError: neither or both given, or a number out of range.

    >>> Uniform(half_width=0.3)
    Uniform(rate=None, half_width=0.3)
    """

    half_width: float | None = None
    scale_name: typing.ClassVar[str] = "half_width"
    scale_per_stddev: typing.ClassVar[float] = math.sqrt(3)

    def from_uniform(self, u: Tensor, params: Params, xp: Namespace) -> Tensor:
        return 1 + params["half_width"] * (2 * u - 1)


BY_NAME = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "partial_gaussian": PartialGaussian,
    "uniform": Uniform,
}


SYNONYMS = {"normal": "gaussian", "binary": "bernoulli", "drop": "bernoulli", "dropout": "bernoulli"}
"""What else people call them: an error says the name that they have here."""


def get(noise: str | Noise, rate: float | None = None) -> Noise:
    """The noise that an argument pair `noise`, `rate` means.

    Args:
        noise: a `Noise`, or one of the names of `BY_NAME`.
        rate: drop rate that goes with a name; None with a `Noise`, which brings its own numbers.

    Raises:
        TypeError, ValueError: an unknown name, or a rate beside a `Noise`, or none beside a name.
    """
    if isinstance(noise, Noise):
        if rate is not None:
            raise ValueError(checks.invalid("rate", f"None, since {noise!r} brings its own numbers", rate))
        return noise
    if not isinstance(noise, str):
        raise TypeError(checks.invalid("noise", "a pernodedrop.Noise or the name of one", noise))
    kind = BY_NAME[checks.check_choice(noise, "noise", tuple(BY_NAME), SYNONYMS)]
    if kind is PartialGaussian:
        raise ValueError(checks.invalid("noise", "PartialGaussian(rate, stddev): its stddev has no default", noise))
    return kind(rate=checks.check_rate(rate))


def normal(u: Tensor, xp: Namespace) -> Tensor:
    """Standard normal numbers from uniform ones, by inversion."""
    return math.sqrt(2) * xp.erfinv(2 * u - 1)


def _threshold_of(rate: float) -> int:
    """T of a drop rate, see `Bernoulli`."""
    return round((1 - rate) * LEVELS)


def _rate_of(threshold: typing.SupportsInt) -> float:
    """The drop rate of a threshold: of those that have it, the one that is written with the fewest digits."""
    return shortest(1 - int(threshold) / LEVELS, lambda rate: _threshold_of(rate) == int(threshold))


def _number_of(value: np.generic) -> typing.Any:
    """The number that a NumPy scalar stands for: of those that it is the float32 of, the one with the fewest digits."""
    return float(str(value)) if isinstance(value, np.floating) else value.item()


def shortest(rate: float, makes_the_same: collections.abc.Callable[[float], bool]) -> float:
    """A rate with as few decimals as make the same as it does: what was given, and not what rounding made of it."""
    rounded = (round(rate, decimals) for decimals in range(1, 17))
    return next((short for short in rounded if short <= checks.HIGHEST_RATE and makes_the_same(short)), rate)

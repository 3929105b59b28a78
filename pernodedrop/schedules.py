"""Schedules: drop rate as a function of the update number.

Every regularizer takes one as its `rate`. The update number is the number of training calls before this one, the call
number of the layer's key. It is in the layer's saved state, so a resumed run continues where it was, and in the
compiled step, so no callback is needed. A mask stays a function of its key.

>>> import keras, pernodedrop as pnd
>>> layer = pnd.Dropout(pnd.schedules.Linear(0.0, 0.5, steps=1000), seed=1)
>>> layer.rate
0.0

The rate is evaluated on the host, in float64, and held as a table, so that thresholds are equal on every backend. A
schedule of up to 4095 steps has an entry for each step. In a longer one the rate changes every 2, 4, 8 ... steps
instead, at most 4095 times, and reaches its final value at the next multiple of these.
"""

import bisect
import collections.abc
import dataclasses
import math
import types
import typing

from pernodedrop import checks, registry
from pernodedrop import noise as noises
from pernodedrop._types import Config
from pernodedrop.noise import Noise

__all__ = ["Annealed", "Constant", "Curriculum", "Custom", "Exponential", "Linear", "Schedule", "Step"]

DEFAULT_RATE = 0.5
TABLE_ROWS = 4096
LAST_STEP = 2**31  # where the counts of updates end


@typing.dataclass_transform(frozen_default=True)
class Schedule:
    """Base class of schedules: drop rate as a function of the update number.

    A subclass becomes a frozen dataclass, registered for saved models under its module and name, as a noise is. It has
    an int field or a property `steps`, the update number from which on the rate stays as it is, and defines `rate_at`.

    >>> import math, pernodedrop as pnd
    >>> class Cosine(pnd.schedules.Schedule):
    ...     rate: float
    ...     steps: int
    ...     def rate_at(self, step):
    ...         return self.rate * math.sin(math.pi * step / self.steps / 2) ** 2
    >>> Cosine(0.5, steps=100)(100)
    0.5
    """

    steps: int

    def __init_subclass__(cls, **kwargs: typing.Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True)(cls)
        registry.add(cls)

    def __post_init__(self) -> None:
        checks.check_fields(self, of_tensors=False)
        steps = checks.check_count(self.steps, "steps")
        for step in (0, steps):
            checks.check_rate(self.rate_at(step), f"rate at step {step} of {type(self).__name__}")

    def rate_at(self, step: int) -> float:
        """The rate at an update number from 0 to `steps`."""
        raise NotImplementedError(f"{type(self).__name__} must define `rate_at(step)`")

    def __call__(self, step: int) -> float:
        """The rate at an update number from 0.

        Raises:
            TypeError, ValueError: a step that is no int from 0, or a rate outside [0, 1 - 2**-24].
        """
        if not checks.is_int(step) or step < 0:
            raise ValueError(checks.invalid("step", "an int from 0", step))
        step = min(step, self.steps)
        return checks.check_rate(self.rate_at(step), f"rate at step {step} of {type(self).__name__}")

    def table(self) -> tuple[int, list[float]]:
        """How the rate is held: (shift, rates), the rate from step n << shift being rates[n], the last one for good."""
        shift = max(0, math.ceil(math.log2(self.steps / (TABLE_ROWS - 1))))
        rows = -(-self.steps >> shift) + 1
        return shift, [self(row << shift) for row in range(rows)]

    def get_config(self) -> Config:
        """The fields by name, as `from_config` takes them."""
        fields = [field.name for field in dataclasses.fields(typing.cast(typing.Any, self)) if field.init]
        return {name: getattr(self, name) for name in fields}

    @classmethod
    def from_config(cls, config: Config) -> typing.Self:
        """The schedule that `get_config` described, or an error if something of it is missing."""
        return registry.made(cls, config)


class Constant(Schedule):
    """The same rate at all times.

    Args:
        rate: a float in [0, 1 - 2**-24].

    >>> Constant(0.3)(7)
    0.3
    """

    rate: float
    steps: int = dataclasses.field(default=1, init=False)

    def rate_at(self, step: int) -> float:
        return self.rate


class Linear(Schedule):
    """From one rate to another in a straight line.

    Args:
        start, end: rates, floats in [0, 1 - 2**-24].
        steps: update number at which the rate reaches `end`, to stay there.
        begin: update number at which the rate leaves `start`; 0.

    >>> [Linear(0.0, 0.5, steps=10)(step) for step in (0, 5, 10, 99)]
    [0.0, 0.25, 0.5, 0.5]
    """

    start: float
    end: float
    steps: int
    begin: int = 0

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            object.__setattr__(self, name, checks.check_rate(getattr(self, name), name))
        if not checks.is_int(self.begin) or not 0 <= self.begin < checks.check_count(self.steps, "steps"):
            raise ValueError(checks.invalid("begin", f"an int from 0 and below steps={self.steps}", self.begin))
        super().__post_init__()

    def rate_at(self, step: int) -> float:
        done = max(0, step - self.begin) / (self.steps - self.begin)
        return self.start * (1 - done) + self.end * done


class Annealed(Schedule):
    """Annealed dropout: rate * max(0, 1 - step / steps) (Rennie, Goel and Thomas, SLT 2014).

    Args:
        rate: the rate at step 0, a float in [0, 1 - 2**-24].
        steps: update number at which the rate has come to 0.

    >>> Annealed(0.5, steps=10)(5)
    0.25
    """

    rate: float
    steps: int

    def rate_at(self, step: int) -> float:
        return self.rate * (1 - step / self.steps)


class _OfGamma(Schedule):
    """Base of schedules whose rate goes with exp(-gamma * step), which `steps` or `gamma` says."""

    rate: float
    steps: int | None = None  # type: ignore[assignment]  # an int once it is made
    gamma: float | None = None

    def __post_init__(self) -> None:
        checks.check_one_given(steps=self.steps, gamma=self.gamma)
        if self.gamma is None:
            object.__setattr__(self, "gamma", 10 / checks.check_count(self.steps, "steps"))
        else:  # where the rate is its limit, to the threshold's rounding
            until = math.ceil(25 * math.log(2) / checks.check_positive(self.gamma, "gamma"))
            object.__setattr__(self, "steps", min(until, LAST_STEP - 1))
        super().__post_init__()

    def get_config(self) -> Config:
        of_steps = self.gamma == 10 / typing.cast(int, self.steps)
        return {**super().get_config(), "gamma" if of_steps else "steps": None}


class Exponential(_OfGamma):
    """Exponential annealing: rate * exp(-gamma * step), a baseline of Morerio et al., arXiv 1703.06229.

    Args:
        rate: the rate at step 0, a float in [0, 1 - 2**-24].
        steps: number of updates in the training: gamma is then 10 / steps, and the rate stays at rate * exp(-10). Give
            this or `gamma`.
        gamma: a finite float above zero.

    Raises:
        TypeError, ValueError: neither or both given, or a number out of range.

    >>> round(Exponential(0.5, steps=1000)(100), 4)
    0.1839
    """

    def rate_at(self, step: int) -> float:
        return self.rate * math.exp(-typing.cast(float, self.gamma) * step)


class Curriculum(_OfGamma):
    """Curriculum dropout: rate * (1 - exp(-gamma * step)) (Morerio et al., arXiv 1703.06229).

    Args:
        rate: the rate that is approached, a float in [0, 1 - 2**-24].
        steps: number of updates in the training: gamma is then 10 / steps, as in the paper. Give this or `gamma`.
        gamma: a finite float above zero; the authors' code has 1e-3 for MNIST, 1e-4 for double MNIST.

    Raises:
        TypeError, ValueError: neither or both given, or a number out of range.

    >>> round(Curriculum(0.5, steps=1000)(100), 4)
    0.3161
    """

    def rate_at(self, step: int) -> float:
        return -self.rate * math.expm1(-typing.cast(float, self.gamma) * step)


class Step(Schedule):
    """A rate that changes at given updates.

    Args:
        rates: the rates, each a float in [0, 1 - 2**-24], one more than there are boundaries.
        boundaries: update numbers from 1, rising: rates[n + 1] holds from boundaries[n] on.

    Raises:
        TypeError, ValueError: boundaries that do not rise, or a wrong number of rates.

    >>> [Step([0.0, 0.5], [10])(step) for step in (9, 10)]
    [0.0, 0.5]
    """

    rates: collections.abc.Sequence[float]
    boundaries: collections.abc.Sequence[int]

    def __post_init__(self) -> None:
        # no more than that: a file may ask for any number
        boundaries = checks.check_tuple(self.boundaries, "boundaries", "update numbers", most=TABLE_ROWS - 1)
        object.__setattr__(self, "boundaries", tuple(checks.check_count(n, "boundaries") for n in boundaries))
        rates = checks.check_tuple(self.rates, "rates", "rates", most=TABLE_ROWS)
        object.__setattr__(self, "rates", tuple(checks.check_rate(rate, "rates") for rate in rates))
        if list(self.boundaries) != sorted(set(self.boundaries)) or not self.boundaries:
            raise ValueError(checks.invalid("boundaries", "update numbers that rise, one at least", self.boundaries))
        if len(self.rates) != len(self.boundaries) + 1:
            raise ValueError(
                checks.invalid("rates", f"{len(self.boundaries) + 1} rates with these boundaries", self.rates)
            )
        super().__post_init__()

    @property
    def steps(self) -> int:  # type: ignore[override]  # where the last change is
        """The last boundary."""
        return self.boundaries[-1]

    def rate_at(self, step: int) -> float:
        return self.rates[bisect.bisect_right(self.boundaries, step)]


class Custom(Schedule):
    """The rate that a function of yours gives.

    Args:
        function: function(step), a rate in [0, 1 - 2**-24] for each update number from 0 to `steps`. It is called on
            the host, when the layer is made. To be saved, or copied by `pernodedrop.apply` or `fold`, the function has
            to be registered, by `@keras.saving.register_keras_serializable()`; only its name is saved.
        steps: update number from which on the rate stays as it is.

    >>> Custom(lambda step: 0.5 if step % 2 else 0.1, steps=100)(3)
    0.5
    """

    function: typing.Callable[[int], float]
    steps: int

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(checks.invalid("function", "a function of the update number", self.function))
        super().__post_init__()

    def rate_at(self, step: int) -> float:
        return checks.check_rate(self.function(step), f"function({step})")

    def get_config(self) -> Config:
        import keras

        named = hasattr(self.function, "__name__")
        name = keras.saving.get_registered_name(self.function) if named else None
        if name is None or keras.saving.get_registered_object(name) is not self.function:
            expected = "one registered by @keras.saving.register_keras_serializable(), so that it is found again"
            raise ValueError(checks.invalid("function", expected, self.function))
        return {**super().get_config(), "function": name}

    @classmethod
    def from_config(cls, config: Config) -> typing.Self:
        import keras

        name = config.get("function")
        function = keras.saving.get_registered_object(name) if isinstance(name, str) else None
        if not isinstance(function, types.FunctionType):  # a file could name whatever Keras can make
            expected = "the name of a function registered by @keras.saving.register_keras_serializable()"
            raise ValueError(checks.invalid("function", expected, name))
        return super().from_config({**config, "function": function})


def get(rate: typing.Any, argument: str = "rate") -> tuple[float, Schedule | None]:
    """The rate at the start and the schedule, or None, that an argument means.

    Args:
        rate: a float or a `Schedule`.
        argument: the argument's name.

    Raises:
        TypeError, ValueError: something else.
    """
    if isinstance(rate, Schedule):
        return rate(0), rate
    if callable(rate):
        expected = "a float, or one of `pernodedrop.schedules`, where Custom(function, steps) makes one of a function"
        raise TypeError(checks.invalid(argument, expected, rate))
    return checks.check_rate(rate, argument), None


def get_persistence(persistence: typing.Any) -> tuple[float | None, Schedule | None]:
    """The persistence at the start and the schedule, each or None, that an argument means."""
    return (persistence(0), persistence) if isinstance(persistence, Schedule) else (persistence, None)


def get_noise(noise: str | Noise, rate: typing.Any) -> tuple[Noise, Schedule | None]:
    """The noise at the start and the schedule, or None, that an argument pair `noise`, `rate` means.

    Args:
        noise: a `Noise`, or the name of one.
        rate: what `get` takes, or None, which is 0.5 with a name. Only a schedule goes with a `Noise`.

    Raises:
        TypeError, ValueError: something else.
    """
    if rate is None:
        return noises.get(noise, DEFAULT_RATE if isinstance(noise, str) else None), None
    start, schedule = get(rate)
    if schedule is not None and isinstance(noise, Noise):
        return noise.with_rate(start), schedule
    return noises.get(noise, start), schedule

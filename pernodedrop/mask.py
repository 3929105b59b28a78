"""Masks: a noise, what its entries depend on, and when they change.

A mask is a function of (key, sample, time, in, out). `Mask` says which function; `Field` is that function at one key,
ready to be evaluated at any coordinates; `Grid` is a field with the coordinates of one product. None stores an entry.
"""

import collections.abc
import dataclasses
import typing

import numpy as np

from pernodedrop import checks, generator
from pernodedrop._types import Namespace, Params, Shape, Sharing, Tensor, Words
from pernodedrop.noise import LEVELS, Noise, shortest

__all__ = ["Mask", "parse_sharing"]

RENEWAL_LANE = 2**32 - 1
"""The lane of the words that decide where an entry is renewed."""

COORDINATES = ("sample", "time", "in", "out")
REGIMES = ("dynamic", "fixed", "bank", "example")


def parse_sharing(sharing: Sharing, coordinates: collections.abc.Sequence[str] = COORDINATES) -> frozenset[str]:
    """The set of coordinates that entries do not depend on.

    Args:
        sharing: None for {"time"}, one entry for every connection of every sample, the same at all positions of a
            (batch, time, in) input; a string of coordinates joined by "+", such as "sample+time"; or a collection of
            coordinates, where an empty one shares nothing.
        coordinates: the names that may occur, "sample", "time", "in" and "out".

    Raises:
        TypeError, ValueError: anything else.
    """
    if sharing is None:
        return frozenset({"time"})
    if isinstance(sharing, str):
        sharing = sharing.split("+")
    elif not isinstance(sharing, tuple | list | set | frozenset):
        raise TypeError(checks.invalid("sharing", "None, a string like 'sample+time', or a collection", sharing))
    return frozenset(checks.check_choice(name, "sharing", coordinates) for name in sharing)


def coordinate(name: str, size: typing.Any, sharing: frozenset[str], like: Tensor, xp: Namespace) -> Words:
    """The words of a coordinate, on the device of `like`: 0 to size - 1, or 0 alone where it is shared."""
    return xp.arange(1 if name in sharing else size, like=like)


def check_noise_shape(noise_shape: typing.Any) -> Shape | None:
    """Return the shape of a mask that is broadcast, a tuple of sizes and None, or raise; None is the input's shape."""
    expected = "None or a tuple of sizes and None"
    if noise_shape is None:
        return None
    if not isinstance(noise_shape, tuple | list):
        raise TypeError(checks.invalid("noise_shape", expected, noise_shape))
    if not all(size is None or (checks.is_int(size) and size > 0) for size in noise_shape):
        raise ValueError(checks.invalid("noise_shape", expected, noise_shape))
    return tuple(noise_shape)


def broadcast_shape(noise_shape: Shape | None, shape: Shape) -> Shape:
    """The shape of the mask of an input, None entries of `noise_shape` being the input's sizes, or an error."""
    if noise_shape is None:
        return tuple(shape)
    fits = len(shape) == len(noise_shape) and all(
        own in (None, 1) or not isinstance(size, int) or own == size
        for own, size in zip(noise_shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(checks.invalid("noise_shape", f"1, None or the size of {tuple(shape)}", noise_shape))
    return tuple(size if own is None else own for own, size in zip(noise_shape, shape, strict=True))


@dataclasses.dataclass(frozen=True)
class Mask:
    """Which mask: noise, sharing and regime.

    Args:
        noise: the distribution of one entry, a `Noise`.
        sharing: the coordinates that entries do not depend on, see `parse_sharing`.
        regime: "dynamic": a new mask for every call number. "fixed": one mask for the model, the same for all samples
            and at inference. "bank": `bank_size` fixed masks, each sample routed to one, at inference too. "example": a
            fixed mask for each example id.
        bank_size: number of masks of a bank; None in the other regimes.
        persistence: the probability in [0, 1] that an entry keeps its value from one position to the next instead of
            being drawn anew: with 0 every position has its own mask, with 1 all have one. Entries l positions apart
            have the correlation persistence**l. With it, `sharing=None` shares nothing, and no `sharing` may have
            "time". None leaves positions to `sharing`.

    Raises:
        TypeError, ValueError: an argument that is not one of these.

    >>> from pernodedrop import Bernoulli
    >>> mask = Mask(Bernoulli(0.5), regime="fixed")
    >>> mask.mean, mask.variance, mask.at_inference, sorted(mask.sharing)
    (1.0, 1.0, True, ['sample', 'time'])
    """

    noise: Noise
    sharing: typing.Any = None  # what `parse_sharing` takes, and once it is made a frozenset
    regime: str = "dynamic"
    bank_size: int | None = None
    persistence: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.noise, Noise):
            raise TypeError(checks.invalid("noise", "a pernodedrop.Noise", self.noise))
        checks.check_choice(self.regime, "regime", REGIMES)
        sharing = parse_sharing(() if self.sharing is None and self.persistence is not None else self.sharing)
        if self.persistence is not None:
            checks.check_probability(self.persistence, "persistence")
            if "time" in sharing:
                raise ValueError(checks.invalid("sharing", "one without 'time' beside `persistence`", self.sharing))
        if self.regime == "fixed":
            sharing |= {"sample"}
        elif self.regime != "dynamic" and "sample" in sharing:
            raise ValueError(checks.invalid("sharing", f"samples apart with regime={self.regime!r}", self.sharing))
        object.__setattr__(self, "sharing", sharing)
        if self.regime == "bank":
            checks.check_count(self.bank_size, "bank_size")
        elif self.bank_size is not None:
            raise ValueError(checks.invalid("bank_size", f"None with regime={self.regime!r}", self.bank_size))

    @property
    def mean(self) -> float:
        """The mean of an entry."""
        return self.noise.mean

    @property
    def variance(self) -> float:
        """The variance of an entry."""
        return self.noise.variance

    def params(self) -> dict[str, np.generic]:
        """The numbers of the mask on the host: those of its noise, and the persistence in units of 2**-24."""
        if self.persistence is None:
            return self.noise.params()
        return {**self.noise.params(), **persistence_params(self.persistence)}

    def with_params(self, params: Params) -> typing.Self:
        """The same mask with other numbers, of which `params` may have some."""
        own = {name: params[name] for name in self.noise.params() if name in params}
        changed: dict[str, typing.Any] = {"noise": self.noise.with_params(own)} if own else {}
        if "persistence" in params:
            changed["persistence"] = _persistence_of(int(params["persistence"]))
        return dataclasses.replace(self, **changed)

    @property
    def at_inference(self) -> bool:
        """Whether the mask is part of the model's function, so that inference has it too."""
        return self.regime in ("fixed", "bank")

    def key(self, key: tuple[Words, Words], xp: Namespace) -> tuple[Words, Words]:
        """The key to evaluate at: only the dynamic regime depends on the call number."""
        seed, call = key
        return (seed, call) if self.regime == "dynamic" else (seed, xp.zeros_like(call))

    def samples(self, sample_ids: Words, xp: Namespace) -> Words:
        """The sample coordinate of each row, from word tensors of sample ids."""
        return xp.modulo(sample_ids, self.bank_size) if self.regime == "bank" else sample_ids


def persistence_params(persistence: float) -> dict[str, np.generic]:
    """The number of a mask that persists so, in units of 2**-24, as words are compared with it, or an error."""
    return {"persistence": np.int32(round(checks.check_probability(persistence, "persistence") * LEVELS))}


def _persistence_of(level: int) -> float:
    """The persistence that makes this number of levels: of those, the one that is written with the fewest digits."""
    return shortest(level / LEVELS, lambda persistence: round(persistence * LEVELS) == level)


class Field(typing.NamedTuple):
    """A mask at one key: a function of the coordinates.

    Attributes:
        noise: the distribution of an entry.
        params: the numbers of the mask, see `Mask.params`, as scalar tensors.
        key: pair of word tensors (seed, call) of shape (1,).
    """

    noise: Noise
    params: Params
    key: tuple[Words, Words]

    def words(self, lane: int, time: Words, sample: Words, in_: Words, out: Words, xp: Namespace) -> Words:
        """Words of one lane at broadcast coordinates."""
        lanes = xp.asarray(xp.as_word(lane), device=xp.device(time))
        return generator.words(self.key, lanes, time, sample, in_, out, xp)

    def entries(self, time: Words, sample: Words, in_: Words, out: Words, xp: Namespace) -> Tensor:
        """Entries at broadcast coordinates, float32.

        Those that persist are those of the last renewal. So the first axis of `time` is that of rows in the order of
        time: each row follows the one of the position before, or begins a sequence at position 0.
        """
        lanes = [self.words(lane, time, sample, in_, out, xp) for lane in range(self.noise.lanes)]
        entries = self.noise.from_words(lanes, self.params, xp)
        if not self.persists:
            return entries
        axis = -len(time.shape)
        row = xp.reshape(xp.astype(xp.arange(xp.shape(time)[0], like=time), "int32"), xp.shape(time))
        chance = xp.bits24(self.words(RENEWAL_LANE, time, sample, in_, out, xp))
        renewed = (chance >= self.params["persistence"]) | (time == xp.zeros_like(time))
        last = xp.running_maximum(xp.where(renewed, row, xp.zeros_like(row)), axis)
        return xp.take_along_axis(entries, last, axis)

    @property
    def persists(self) -> bool:
        """Whether entries keep their value from one position to the next, as far as `Mask.persistence` says."""
        return "persistence" in self.params


class Grid(typing.NamedTuple):
    """A field at the coordinates of one product: the mask of rows x inputs x outputs.

    Attributes:
        field: the mask at its key.
        time, sample: coordinates of the rows, word tensors (r,); one of shape (1,) is that of all rows.
        in_, out: those of the inputs and the outputs, word tensors (i,) and (o,), likewise.
    """

    field: Field
    time: Words
    sample: Words
    in_: Words
    out: Words

    def entries(self, xp: Namespace) -> Tensor:
        """The mask (r, i, o), float32; axes that share their coordinate have size 1."""
        sample, time = self.sample[:, None, None], self.time[:, None, None]
        return self.field.entries(time, sample, self.in_[:, None], self.out, xp)

    def tensors(self) -> list[Tensor]:
        """All its tensors, for what takes nothing else; `from_tensors` is the way back."""
        return [*self.field.params.values(), *self.field.key, self.time, self.sample, self.in_, self.out]

    @classmethod
    def from_tensors(
        cls, noise: Noise, names: collections.abc.Sequence[str], tensors: collections.abc.Sequence[Tensor]
    ) -> typing.Self:
        """The grid of a noise whose numbers have these names."""
        params = dict(zip(names, tensors, strict=False))
        seed, call, *coordinates = tensors[len(names) :]
        return cls(Field(noise, params, (seed, call)), *coordinates)

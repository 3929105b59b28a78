"""Fixed masks over channels as the members of an ensemble, in any framework (Durasov et al., arXiv 2012.08334)."""

import dataclasses
import math
import typing

import numpy as np

from pernodedrop import backends, checks, generator
from pernodedrop._types import Key, Tensor, Words
from pernodedrop.mask import Mask
from pernodedrop.noise import UniformNumber
from pernodedrop.state import Regularizer

ASSIGNMENTS = ("random", "contiguous", "repeat")

COLUMNS, COUNTS = 1, 2
"""Lanes of the words that choose the columns of masks, and how many of them are new; lane 0 chooses members."""

MOST_MEMBERS = 1024
"""More than anyone trains."""

ROUNDING = 1e-9
"""By more than this the expected number of ones is not below an integer that it is."""

NEGLIGIBLE = 40
"""Logarithms this far below the greatest add nothing to a sum of float64 numbers: e**40 is above 2**57."""

Array: typing.TypeAlias = np.typing.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Members:
    """Which masks there are, and how samples are given one; `pernodedrop.Masksembles` says what they are.

    Args:
        members, scale, train_assignment, rounding: those of `pernodedrop.Masksembles`.

    Raises:
        TypeError, ValueError: an argument that is not as described there.

    >>> Members(2, 2.0, "random", "down").masks(4, seed=1).sum(axis=1).tolist()
    [2.0, 2.0]
    """

    members: int
    scale: float
    train_assignment: str
    rounding: str

    def __post_init__(self) -> None:
        members = checks.check_count(self.members, "members")
        if members > MOST_MEMBERS:  # before anything is made: a file may ask for any
            raise ValueError(checks.invalid("members", f"at most {MOST_MEMBERS}", members))
        if checks.check_finite(self.scale, "scale", "a finite float from 1") < 1:
            raise ValueError(checks.invalid("scale", "a finite float from 1", self.scale))
        checks.check_choice(self.train_assignment, "train_assignment", ASSIGNMENTS)
        checks.check_choice(self.rounding, "rounding", ("down", "nearest"))
        object.__setattr__(self, "members", members)
        object.__setattr__(self, "scale", float(self.scale))

    @property
    def mask(self) -> Mask:
        """That of the numbers which choose members. Keys are drawn for the random assignment alone."""
        regime = ("dynamic", None) if self.train_assignment == "random" else ("bank", self.members)
        return Mask(UniformNumber(), "time+in+out", *regime)

    def masks(self, channels: int, seed: int) -> np.typing.NDArray[np.float32]:
        """The masks of a seed's word, float32 (members, channels)."""
        ones = ones_of(self.members, channels, self.scale, self.rounding)
        return draw_masks(self.members, channels, ones, seed)


class Ensemble(Regularizer):
    """Who gives each sample one of several fixed masks, a Keras layer or a module."""

    which: Members

    @property
    def members(self) -> int:
        """The number of masks."""
        return self.which.members

    @property
    def scale(self) -> float:
        """How little the masks overlap."""
        return self.which.scale

    @property
    def train_assignment(self) -> str:
        """Which member a sample has in training."""
        return self.which.train_assignment

    @property
    def rounding(self) -> str:
        """How the number of ones is made an integer."""
        return self.which.rounding

    @property
    def is_stochastic(self) -> bool:
        """Whether there are several masks to choose from, at random."""
        return self.members > 1 and super().is_stochastic

    def member_of_rows(self, x: Tensor, key: Key | None, sample_ids: Tensor | None, training: bool) -> Tensor:
        """The member of each row of an input, int32 (batch,)."""
        xp, samples = self.xp, self.samples(x, sample_ids)
        assignment = self.train_assignment if training and sample_ids is None else "repeat"
        if assignment == "random":
            zero = xp.arange(1, like=x)
            chances = self.field(key, xp.device(x)).entries(zero, samples, zero, zero, xp)
            return xp.astype(xp.minimum(xp.floor(self.members * chances), self.members - 1), "int32")
        if assignment == "contiguous":
            batch = xp.shape(x)[0]
            return xp.astype(xp.arange(batch, like=x), "int32") * self.members // batch
        return xp.astype(xp.modulo(samples, self.members), "int32")

    def masks_of_rows(self, masks: Tensor, member: Tensor, axis: int, rank: int) -> Tensor:
        """Of masks (members, channels) that of each row, as inputs of a rank with channels in `axis` take it."""
        sizes = [-1] + [1] * (rank - 1)
        sizes[axis] = masks.shape[1]
        return self.xp.reshape(self.xp.take(masks, member, axis=0), sizes)


def check_axis(axis: int) -> int:
    """Return the axis of the channels of a batch, or raise."""
    if not checks.is_int(axis) or axis == 0 or abs(axis) >= 2**31:
        raise ValueError(checks.invalid("axis", "an int, not 0, which is that of the samples", axis))
    return int(axis)


def ones_of(members: int, channels: int, scale: float, rounding: str = "down") -> int:
    """How many ones a mask has: the expected share of them, as an integer that lets masks cover all channels.

    >>> [ones_of(*numbers) for numbers in ((4, 64, 2.0), (4, 12, 6.0), (4, 64, 1.0), (4, 16, 2.0, "nearest"))]
    [34, 3, 64, 9]
    """
    kept = 1.0 if scale == 1 else -1 / (scale * math.expm1(members * math.log1p(-1 / scale)))
    ones = round(channels * kept) if rounding == "nearest" else math.floor(channels * kept + ROUNDING)
    return max(ones, -(-channels // members))


def draw_masks(members: int, channels: int, ones: int, seed: int) -> np.typing.NDArray[np.float32]:
    """Masks with `ones` ones each that have every channel, float32 (members, channels), all such equally probable.

    Mask after mask, first the number of its channels that no mask before it has is drawn, in proportion to the ways in
    which the masks can be completed with it, then which they are. The probabilities are float64, the numbers are drawn
    with 32 bits.
    """
    numpy = backends.get("numpy")
    key = (numpy.as_word(seed), numpy.as_word(0))
    zero, member = numpy.as_word(0), np.arange(members, dtype="uint32")

    def words(lane: int, column: Words) -> Words:
        return generator.words(key, numpy.as_word(lane), zero, member[:, None], zero, column, numpy)

    order = np.argsort(words(COLUMNS, np.arange(channels, dtype="uint32")), axis=1, kind="stable")
    chances = (words(COUNTS, zero)[:, 0] + 0.5) / 2**32
    masks = np.zeros((members, channels), "float32")
    used = np.zeros(channels, bool)
    choices, completions = log_ways(members, channels, ones)
    for n, completion in enumerate(completions):
        reached = used.sum()
        logs = choices + completion[reached : reached + ones + 1]
        cumulative = np.cumsum(np.exp(logs - logs.max()))
        new = np.searchsorted(cumulative, chances[n] * cumulative[-1], side="right")
        old = used[order[n]]
        masks[n, order[n][~old][:new]] = masks[n, order[n][old][: ones - new]] = 1
        used |= masks[n] > 0
    return masks


def log_ways(members: int, channels: int, ones: int) -> tuple[Array, list[Array]]:
    """In how many ways masks can go on, as logarithms, each item but for a constant of its own.

    There are C(channels - u, j) * C(u, ones - j) masks that use j channels which are new beside u that are not. With
    H_n[u] the number of ways to complete the masks when n of them use u channels, divided by u! * (channels - u)!, it
    follows that H_n[u] is sum_j C(ones, j) * v! / (v - ones)! * H_(n+1)[v] with v = u + j, over ones!. Terms below
    e**-NEGLIGIBLE of the greatest are left out. Both factors are log-concave, so those that count are next to one
    another, and their first v and their last j do not move the other way as u rises.

    Returns:
        The logarithms of C(ones, j), and for each mask those of v! / (v - ones)! * H[v] by the number v of channels
        that are used with it, of length channels + ones + 1.
    """
    from scipy import special  # costs 100 ms to import

    factorials = special.gammaln(np.arange(channels + 1) + 1)
    choices = factorials[ones] - factorials[: ones + 1] - factorials[ones::-1]
    falling = np.full(channels + ones + 1, -np.inf)
    falling[ones : channels + 1] = factorials[ones:] - factorials[: channels + 1 - ones]
    last = np.full(channels + ones + 1, -np.inf)
    last[channels] = 0
    completions = [last]
    for n in range(members - 1, 0, -1):
        ways = np.full(channels + ones + 1, -np.inf)
        first = low = max(ones, channels - (members - n) * ones)
        high = first + ones
        for used in range(first, min(channels, n * ones) + 1):
            low = max(low, used)
            logs = choices[low - used : high + 1 - used] + completions[0][low : high + 1]
            ways[used] = special.logsumexp(logs)
            near = np.flatnonzero(logs > logs.max() - NEGLIGIBLE)
            low, high = low + near[0], low + near[-1] + 1
        completions.insert(0, ways + falling)
    return choices, completions

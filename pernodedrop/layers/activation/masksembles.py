"""Masksembles: an ensemble of a few fixed masks over channels (Durasov et al., arXiv 2012.08334)."""

import math
import typing

import keras
import numpy as np

from pernodedrop import backends, checks, generator
from pernodedrop._types import Config, Key, Shape, Tensor, Words
from pernodedrop.layers.base.activation_noise import apply_mask
from pernodedrop.layers.base.noisy import Noisy, check_size, floating, xp
from pernodedrop.mask import Mask
from pernodedrop.noise import UniformNumber

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


@keras.saving.register_keras_serializable("pernodedrop")
class Masksembles(Noisy):
    """Multiplies each sample by one of a few fixed masks over channels (Durasov et al., arXiv 2012.08334).

    y[b, ..., c] = x[b, ..., c] * mask[member(b), c], in training and at inference alike, and so without a scale:
    nothing has to be calibrated. Each mask is a member of an ensemble that shares its weights. At scale 1 all masks are
    ones; the higher the scale, the less the masks overlap, and the more the members differ.

    Every mask has the same number of ones, C * k rounded down, as in the authors' code and in torch-uncertainty, and at
    least C / members, where C is the number of channels and

        k = 1 / (scale * (1 - (1 - 1 / scale)**members)),

    and every channel is in at least one mask. All such choices of masks are equally probable. That is the distribution
    of the paper's code given its number of channels: `members` masks of m ones at random among m * scale positions,
    those that no mask uses deleted. The code repeats this, with other scales, until as many are left as there are
    channels, which for some numbers takes minutes or fails; here the masks are drawn at once for any number. The
    expected overlap of two masks (intersection over union) is 1 / (2 * scale - 1) but for the rounding of m.

    The masks are made of the seed when the layer is built, the same ones on every backend, and are a weight that is
    not trained, `masks`, float32 (members, channels): they are saved, and others may be assigned to them. With those of
    a bank, the layer before a Dense layer is `PerNodeDrop(dense, regime="bank", sharing="out")`.

    Args:
        members: number of masks, an int from 1; 4.
        scale: how little the masks overlap, a finite float from 1; 2.0.
        train_assignment: which member a sample has in training. "random": any, drawn anew each call (the paper).
            "contiguous": the batch is cut into `members` parts, one after another: sample i of n has member
            floor(i * members / n) (the authors' code, there for batches that `members` divides). "repeat": sample i has
            member i modulo members; with batches made by `repeated` every sample goes through all members, as in
            torch-uncertainty.
        axis: the axis of the channels, an int; -1.
        seed: int, any; None takes one from Python's `random`.
        rounding: how the number of ones is made an integer, "down" or to the "nearest", which is closer to k.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: floating tensor of rank from 2, samples first.
        training: whether to train; Keras sets it in `fit`.
        key: the key to draw members with in training, from `draw()`; only the random assignment draws.
        sample_ids: integer tensor (batch,): the member of each row, modulo `members`, also in training.

    Output shape and dtype: the input's.

    Inference: sample i of a batch has member i modulo `members`, unless `sample_ids` says otherwise. So a prediction
    depends on the order of the samples and on the batch size, and `model.evaluate(x, y)` is a mean over members of
    different samples. For the ensemble's predictions call the model on `repeated(x)`, or use
    `pernodedrop.uncertainty.predict`; `model.evaluate(*repeated((x, y)))` is the mean over all members of all samples,
    in batches that `members` divides. On replicas of TensorFlow the
    batch is the replica's in the contiguous assignment, and the whole one in the others.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layer = pnd.Masksembles(members=4, scale=2.0, seed=1)
    >>> y = keras.ops.convert_to_numpy(layer(np.ones((4, 16), "float32")))
    >>> y.sum(axis=1).tolist(), bool(y.any(axis=0).all())
    ([8.0, 8.0, 8.0, 8.0], True)
    """

    def __init__(
        self,
        members: int = 4,
        scale: float = 2.0,
        train_assignment: str = "random",
        axis: int = -1,
        seed: int | None = None,
        rounding: str = "down",
        **kwargs: typing.Any,
    ) -> None:
        members = checks.check_count(members, "members")
        if members > MOST_MEMBERS:  # before anything is made: a file may ask for any
            raise ValueError(checks.invalid("members", f"at most {MOST_MEMBERS}", members))
        if checks.check_finite(scale, "scale", "a finite float from 1") < 1:
            raise ValueError(checks.invalid("scale", "a finite float from 1", scale))
        checks.check_choice(train_assignment, "train_assignment", ASSIGNMENTS)
        if not checks.is_int(axis) or axis == 0:
            raise ValueError(checks.invalid("axis", "an int, not 0, which is that of the samples", axis))
        # keys are drawn for the random assignment alone
        regime = ("dynamic", None) if train_assignment == "random" else ("bank", members)
        super().__init__(Mask(UniformNumber(), "time+in+out", *regime), seed=seed, **kwargs)
        self._members = members
        self.scale = float(scale)
        self.train_assignment = train_assignment
        self.axis = int(axis)
        self.rounding = checks.check_choice(rounding, "rounding", ("down", "nearest"))
        self._first = int(keras.ops.convert_to_numpy(self._key).view("uint32")[0])
        self.supports_masking = True

    @property
    def members(self) -> int:
        """The number of masks."""
        return self._members

    @property
    def is_stochastic(self) -> bool:
        """Whether there are several masks to choose from, at random."""
        return self.members > 1 and super().is_stochastic

    def build(self, input_shape: Shape) -> None:
        rank = len(input_shape)
        if not -rank < self.axis < rank or not input_shape[self.axis]:
            expected = f"an axis from 1, the samples being 0, of known size above 0, of {input_shape}"
            raise ValueError(checks.invalid("axis", expected, self.axis))
        channels = input_shape[self.axis]
        ones = ones_of(self.members, channels, self.scale, self.rounding)
        self.masks = self._variable("masks", draw_masks(self.members, channels, ones, self._first))

    def call(
        self,
        inputs: Tensor,
        training: bool | None = None,
        key: Key | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        inputs = floating(inputs)
        check_size(inputs, self.axis, self.masks.shape[1])
        member = self._member(inputs, training, key, sample_ids)
        mask = keras.ops.take(xp.asarray(self.masks.value), member, axis=0)
        shape = [-1] + [1] * (len(inputs.shape) - 1)
        shape[self.axis] = self.masks.shape[1]
        return apply_mask(inputs, keras.ops.reshape(mask, shape))

    def repeated(self, data: typing.Any) -> typing.Any:
        """Each sample `members` times in succession, so that by its place it goes through all members.

        Args:
            data: array (n, ...), NumPy's or the backend's, or a nested structure of them, such as (x, y).

        Returns:
            The same structure with arrays (n * members, ...): train on it with `train_assignment="repeat"`, in batches
            that `members` divides and that are not shuffled. At inference, outputs for it are the ensemble's as
            (n, members, ...).

        >>> import numpy as np, pernodedrop as pnd
        >>> pnd.Masksembles(members=2).repeated(np.array([3, 5])).tolist()
        [3, 3, 5, 5]
        """

        def repeat(leaf: typing.Any) -> typing.Any:
            of = np if isinstance(leaf, np.ndarray) else keras.ops
            return of.repeat(leaf, self.members, axis=0)

        return keras.tree.map_structure(repeat, data)

    def fold(self) -> keras.layers.Layer:
        """Refused.

        Raises:
            ValueError: always; the members are no one layer.
        """
        raise ValueError(checks.invalid("members", "one function at inference, to be folded", self.members))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "members": self.members,
            "scale": self.scale,
            "train_assignment": self.train_assignment,
            "axis": self.axis,
            "rounding": self.rounding,
        }

    def _member(self, inputs: Tensor, training: bool | None, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        """The member of each row, int32 (batch,)."""
        checks.check_training(training)
        samples = self.samples(inputs, sample_ids)
        assignment = self.train_assignment if sample_ids is None else "repeat"
        if assignment != "repeat" and not self.trains(training):
            assignment = "repeat"
        if assignment == "random":
            zero = xp.arange(1, like=inputs)
            chances = self.field(key, xp.device(inputs)).entries(zero, samples, zero, zero, xp)
            return xp.astype(xp.minimum(xp.floor(self.members * chances), self.members - 1), "int32")
        if assignment == "contiguous":
            batch = xp.shape(inputs)[0]
            return keras.ops.floor_divide(xp.astype(xp.arange(batch, like=inputs), "int32") * self.members, batch)
        return xp.astype(xp.modulo(samples, self.members), "int32")


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

"""Activation noise: modules that stand between others, multiply by noise in training and are the identity after."""

import typing

import jax
from flax import nnx

from pernodedrop import backends, checks, schedules
from pernodedrop._types import Key, Shape
from pernodedrop.mask import Mask, check_noise_shape
from pernodedrop.modules import (
    ActivationModule,
    BlockModule,
    ChannelModule,
    EnsembleModule,
    PathModule,
    ShapedModule,
    sharing_of,
)
from pernodedrop.nnx.noisy import NoiseState, Noisy, Rngs, from_host
from pernodedrop.noise import Bernoulli, Gaussian, Noise
from pernodedrop.schedules import Schedule

Streams: typing.TypeAlias = nnx.Rngs | nnx.RngStream | None


class ActivationNoise(Noisy, ActivationModule):
    """Base of activation noise, beside the class that gives `mask_of`, the mask of an input."""

    def __call__(
        self,
        inputs: jax.Array,
        *,
        deterministic: bool | None = None,
        rngs: Rngs = None,
        key: Key | None = None,
        sample_ids: jax.Array | None = None,
    ) -> jax.Array:
        """The input, in training times its mask; see the class."""
        key = self.key_of(rngs, key)
        self.check_input(inputs)
        training = self.trains(deterministic)
        if not (training or self.changes_at_inference):
            return inputs
        if backends.name_of(inputs) is None:  # a variable
            inputs = typing.cast(typing.Any, inputs).__jax_array__()
        return self.masked(inputs, key, sample_ids, training)

    def fold(self) -> nnx.Module:
        """The plain module that computes what this one does at inference: the identity."""
        return Identity()


class Identity(nnx.Module):
    """What gives back its input."""

    def __call__(self, inputs: jax.Array, **_: typing.Any) -> jax.Array:
        """The input."""
        return inputs


class ShapedNoise(ShapedModule, ActivationNoise):
    """Base of activation noise with one entry for each place of a mask that is broadcast against the input."""

    def __init__(
        self,
        noise: Noise,
        schedule: Schedule | None,
        noise_shape: Shape | None,
        seed: int | None,
        persistence: float | Schedule | None,
        deterministic: bool,
        rngs: Streams,
    ) -> None:
        self.noise_shape = check_noise_shape(noise_shape)
        start, slow = schedules.get_persistence(persistence)
        mask = Mask(noise, sharing_of(self.noise_shape), persistence=start)
        self.start(mask, seed, schedule, rngs, deterministic, slow)


class Dropout(ShapedNoise):
    """Sets entries of its input to zero with probability `rate` in training (Srivastava et al., JMLR 15, 2014).

    Entries that are kept are scaled by 1 / (1 - rate). It is `pernodedrop.Dropout` as a module, with equal masks for
    equal (seed, call), to take the place of an `nnx.Dropout`.

    Args:
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`.
        noise_shape: shape of the mask, which is broadcast against the input; a None in it stands for the input's size,
            and None for the input's shape.
        seed: int, any, instead of a key of `rngs`; a Keras layer with this seed has the same masks.
        persistence: the probability in [0, 1] that an entry keeps its value from one position of (batch, time, in) to
            the next instead of being drawn anew, or a schedule of it. With None or 0 every position has its own mask,
            with 1 a sequence has one (arXiv 1512.05287).
        deterministic: whether calls have no noise, until `train()`; False.
        rngs: `nnx.Rngs`, whose stream "noise", or else "default", gives the key; or a stream. With neither this nor a
            seed, every call has to bring its `rngs` or `key`.

    Call arguments:
        inputs: floating array of any rank from 1, samples first.
        deterministic, rngs, key, sample_ids: as for `pernodedrop.nnx.PerNodeLinear`; no `sample_ids` with a
            `noise_shape` whose first size is 1.

    Output shape and dtype: the input's.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import jax, pernodedrop.nnx as pndx
    >>> sorted(set(pndx.Dropout(0.5, seed=1)(jax.numpy.ones((4, 8))).flatten().tolist()))
    [0.0, 2.0]
    """

    def __init__(
        self,
        rate: float | Schedule,
        noise_shape: Shape | None = None,
        seed: int | None = None,
        persistence: float | Schedule | None = None,
        *,
        deterministic: bool = False,
        rngs: Streams = None,
    ) -> None:
        start, schedule = schedules.get(rate)
        super().__init__(Bernoulli(start), schedule, noise_shape, seed, persistence, deterministic, rngs)


class GaussianDropout(ShapedNoise):
    """Multiplies its input by N(1, rate / (1 - rate)) in training (Srivastava et al., JMLR 15, 2014, section 10).

    It is `pernodedrop.GaussianDropout` as a module.

    Args:
        rate: drop rate in [0, 1) of the Dropout with the same variance, or a schedule of `pernodedrop.schedules`.
        seed, noise_shape, persistence, deterministic, rngs: as for `pernodedrop.nnx.Dropout`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.nnx.Dropout`.

    >>> import jax, pernodedrop.nnx as pndx
    >>> pndx.GaussianDropout(0.5, seed=1)(jax.numpy.ones((4, 8))).shape
    (4, 8)
    """

    def __init__(
        self,
        rate: float | Schedule,
        seed: int | None = None,
        noise_shape: Shape | None = None,
        persistence: float | Schedule | None = None,
        *,
        deterministic: bool = False,
        rngs: Streams = None,
    ) -> None:
        start, schedule = schedules.get(rate)
        super().__init__(Gaussian(rate=start), schedule, noise_shape, seed, persistence, deterministic, rngs)


class DropPath(PathModule, ActivationNoise):
    """Sets a residual branch to zero with probability `rate` in training, sample by sample (arXiv 1605.07648).

    Put it at the end of the branch: y = shortcut + drop_path(branch). It is `pernodedrop.DropPath` as a module.

    Args:
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`; `pernodedrop.depth_rates` has one for each
            block of a network.
        scale_by_keep: whether branches that are kept are scaled by 1 / (1 - rate); True.
        seed, deterministic, rngs: as for `pernodedrop.nnx.Dropout`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.nnx.Dropout`.

    >>> import jax, pernodedrop.nnx as pndx
    >>> pndx.DropPath(0.5, seed=1)(jax.numpy.ones((4, 3)))[:, 0].tolist()
    [2.0, 0.0, 0.0, 0.0]
    """

    def __init__(
        self,
        rate: float | Schedule,
        seed: int | None = None,
        scale_by_keep: bool = True,
        *,
        deterministic: bool = False,
        rngs: Streams = None,
    ) -> None:
        start, schedule = schedules.get(rate)
        self.scale_by_keep = checks.check_bool(scale_by_keep, "scale_by_keep")
        self.start(Mask(Bernoulli(start), "time+in+out"), seed, schedule, rngs, deterministic)


class SpatialDropout(ChannelModule, ActivationNoise):
    """Sets whole feature maps to zero with probability `rate` in training (Tompson et al., arXiv 1411.4280).

    It is `pernodedrop.SpatialDropout1D`, `2D` and `3D` as one module.

    Args:
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`.
        data_format: "channels_last", as NNX has them, or "channels_first". Masks do not depend on it.
        seed, deterministic, rngs: as for `pernodedrop.nnx.Dropout`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.nnx.Dropout`, of rank from 3.

    >>> import jax, pernodedrop.nnx as pndx
    >>> y = pndx.SpatialDropout(0.5, seed=1)(jax.numpy.ones((1, 4, 4, 8)))
    >>> bool((y == y[:, :1, :1]).all())
    True
    """

    def __init__(
        self,
        rate: float | Schedule,
        data_format: str = "channels_last",
        seed: int | None = None,
        *,
        deterministic: bool = False,
        rngs: Streams = None,
    ) -> None:
        start, schedule = schedules.get(rate)
        self.data_format = checks.check_choice(data_format, "data_format", ("channels_last", "channels_first"))
        self.start(Mask(Bernoulli(start), "out"), seed, schedule, rngs, deterministic)

    def check_shape(self, shape: Shape) -> None:
        if len(shape) < 3:
            raise ValueError(checks.invalid("inputs", "rank from 3, samples first", shape))


class DropBlock(BlockModule, ActivationNoise):
    """Sets blocks of feature maps to zero in training (Ghiasi, Lin and Le, arXiv 1810.12890).

    It is `pernodedrop.DropBlock1D`, `2D` and `3D` as one module; its docstring says where blocks lie.

    Args:
        rate: the share that would be dropped if blocks did not overlap, in [0, 1), or a schedule of
            `pernodedrop.schedules`; the paper lets it rise linearly.
        block_size: side of a block, an int from 1; 7, the paper's. Along a shorter axis a block is as long as the axis.
        per_channel: whether each channel has blocks of its own; True.
        normalize: where the entries kept are counted, for the scale: in each "sample", or in the "batch", as in the
            authors' code.
        data_format: "channels_last", as NNX has them, or "channels_first". Masks do not depend on it.
        seed, deterministic, rngs: as for `pernodedrop.nnx.Dropout`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.nnx.Dropout`, of rank from 3.

    >>> import jax, pernodedrop.nnx as pndx
    >>> pndx.DropBlock(0.3, block_size=2, seed=1)(jax.numpy.ones((1, 4, 4, 8))).shape
    (1, 4, 4, 8)
    """

    def __init__(
        self,
        rate: float | Schedule,
        block_size: int = 7,
        per_channel: bool = True,
        normalize: str = "sample",
        data_format: str = "channels_last",
        seed: int | None = None,
        *,
        deterministic: bool = False,
        rngs: Streams = None,
    ) -> None:
        start, schedule = schedules.get(rate)
        self.check_blocks(block_size, per_channel, data_format, normalize)
        self.start(Mask(Bernoulli(start), "out"), seed, schedule, rngs, deterministic)

    def check_shape(self, shape: Shape) -> None:
        if len(shape) < 3:
            raise ValueError(checks.invalid("inputs", "rank from 3, samples first", shape))


class Masksembles(EnsembleModule, ActivationNoise):
    """Multiplies each sample by one of a few fixed masks over channels (Durasov et al., arXiv 2012.08334).

    It is `pernodedrop.Masksembles` as a module, with equal masks for equal seeds: an ensemble whose members share their
    weights, in training and at inference alike, so nothing has to be rescaled. The masks are a `NoiseState`, int32
    (members, channels), made from the seed or from the first key of the stream; splitting the stream changes nothing.

    Args:
        channels: their number, an int from 1.
        members: number of masks, an int from 1; 4.
        scale: how little the masks overlap, a finite float from 1; 2.0.
        train_assignment: which member a sample has in training. "random": a random one, drawn anew in each call (the
            paper). "contiguous": the batch is cut into `members` successive parts (the authors' code). "repeat": sample
            i has member i modulo members, for batches that have every sample `members` times in succession, as
            `jax.numpy.repeat(x, members, 0)` gives them.
        axis: the axis of the channels in a batch, an int; -1.
        rounding: how the number of ones of a mask is rounded, "down" or to the "nearest".
        seed, deterministic, rngs: as for `pernodedrop.nnx.Dropout`, but one of seed and rngs has to be given.

    Call arguments:
        inputs: floating array of rank from 2, samples first.
        deterministic, rngs, key: as for `pernodedrop.nnx.PerNodeLinear`; only the random assignment draws.
        sample_ids: integer array (batch,): the member of each row, modulo `members`, also in training.

    Output shape and dtype: the input's.

    At inference sample i of a batch has member i modulo `members`, unless `sample_ids` says otherwise; so a prediction
    depends on the order of the samples. In `pernodedrop.nnx.uncertainty.predict` every sample goes through all members.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import jax, pernodedrop.nnx as pndx
    >>> layer = pndx.Masksembles(16, members=4, scale=2.0, seed=1)
    >>> layer(jax.numpy.ones((4, 16))).sum(1).tolist()
    [8.0, 8.0, 8.0, 8.0]
    """

    masks: typing.Any

    def __init__(
        self,
        channels: int,
        members: int = 4,
        scale: float = 2.0,
        train_assignment: str = "random",
        axis: int = -1,
        seed: int | None = None,
        rounding: str = "down",
        *,
        deterministic: bool = False,
        rngs: Streams = None,
    ) -> None:
        mask = self.check_ensemble(channels, members, scale, train_assignment, rounding, axis)
        self.start(mask, seed, None, rngs, deterministic)
        self.masks = NoiseState(from_host(self.masks_of, self.peek()[0], (self.members, self.channels)))

    def masks_now(self) -> jax.Array:
        return self.masks[...]

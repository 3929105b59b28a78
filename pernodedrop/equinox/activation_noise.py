"""Activation noise: modules that stand between others, multiply by noise in training and are the identity after."""

import typing

import equinox as eqx
import jax
import numpy as np

from pernodedrop import checks, schedules
from pernodedrop._types import Key, Shape
from pernodedrop.equinox.noisy import Noisy, word_of
from pernodedrop.mask import Mask, check_noise_shape
from pernodedrop.members import Members
from pernodedrop.modules import ActivationModule, BlockModule, ChannelModule, EnsembleModule, PathModule, ShapedModule
from pernodedrop.noise import Bernoulli, Gaussian, Noise
from pernodedrop.schedules import Schedule


class ActivationNoise(Noisy, ActivationModule):
    """Base of activation noise, beside the class that gives `mask_of`, the mask of an input."""

    argument: typing.ClassVar[str] = "x"

    def __call__(
        self,
        x: jax.Array,
        *,
        key: Key | None = None,
        inference: bool | None = None,
        sample_id: int | jax.Array | None = None,
    ) -> jax.Array:
        """The input, in training times its mask; see the class."""
        self.check_input(x, of_one=True)
        training = self.trains(inference)
        if not (training or self.changes_at_inference):
            return x
        return self.masked(x[None], key, sample_id, training)[0]

    def fold(self) -> eqx.Module:
        """The plain module that computes what this one does at inference: the identity."""
        return eqx.nn.Identity()


class Dropout(ShapedModule, ActivationNoise):
    """Sets entries of its input to zero with probability `rate` in training (Srivastava et al., JMLR 15, 2014).

    Entries that are kept are scaled by 1 / (1 - rate). A call takes one sample; see `pernodedrop.equinox.PerNodeLinear`
    for its key. It is `pernodedrop.Dropout` as a module, to take the place of an `equinox.nn.Dropout`.

    Args:
        rate: drop rate in [0, 1). No schedule: `with_rate` sets it.
        noise_shape: shape of the mask of a sample, which is broadcast against the input; a None in it stands for the
            input's size, and None for the input's shape.
        persistence: the probability in [0, 1] that an entry keeps its value from one position of (time, in) to the
            next instead of being drawn anew. With None or 0 every position has its own mask, with 1 a sequence has one
            (arXiv 1512.05287). No schedule: `with_persistence` sets it.
        inference: whether calls have no noise; `equinox.nn.inference_mode` sets it. False.

    Call arguments:
        x: floating array of any rank, one sample.
        key, inference, sample_id: as for `pernodedrop.equinox.PerNodeLinear`.

    Output shape and dtype: the input's.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import jax, pernodedrop.equinox as pnde
    >>> sorted(set(pnde.Dropout(0.5)(jax.numpy.ones(8), key=jax.random.key(1)).tolist()))
    [0.0, 2.0]
    """

    noise_shape: Shape | None = eqx.field(static=True)

    def __init__(
        self,
        rate: float,
        noise_shape: Shape | None = None,
        persistence: float | None = None,
        *,
        inference: bool = False,
    ) -> None:
        start, schedule = schedules.get(rate)
        self.noise_shape = _of_batch(noise_shape)
        self.start(_mask(Bernoulli(start), persistence), schedule, inference)


class GaussianDropout(ShapedModule, ActivationNoise):
    """Multiplies its input by N(1, rate / (1 - rate)) in training (Srivastava et al., JMLR 15, 2014, section 10).

    It is `pernodedrop.GaussianDropout` as a module.

    Args:
        rate: drop rate in [0, 1) of the Dropout with the same variance. No schedule: `with_rate` sets it.
        noise_shape, persistence, inference: as for `pernodedrop.equinox.Dropout`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.equinox.Dropout`.

    >>> import jax, pernodedrop.equinox as pnde
    >>> pnde.GaussianDropout(0.5)(jax.numpy.ones(8), key=jax.random.key(1)).shape
    (8,)
    """

    noise_shape: Shape | None = eqx.field(static=True)

    def __init__(
        self,
        rate: float,
        noise_shape: Shape | None = None,
        persistence: float | None = None,
        *,
        inference: bool = False,
    ) -> None:
        start, schedule = schedules.get(rate)
        self.noise_shape = _of_batch(noise_shape)
        self.start(_mask(Gaussian(rate=start), persistence), schedule, inference)


class DropPath(PathModule, ActivationNoise):
    """Sets a residual branch to zero with probability `rate` in training, sample by sample (arXiv 1605.07648).

    Put it at the end of the branch: y = shortcut + drop_path(branch, key=key). It is `pernodedrop.DropPath` as a
    module.

    Args:
        rate: drop rate in [0, 1); `pernodedrop.depth_rates` has one for each block of a network.
        scale_by_keep: whether branches that are kept are scaled by 1 / (1 - rate); True.
        inference: as for `pernodedrop.equinox.Dropout`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.equinox.Dropout`.

    >>> import jax, pernodedrop.equinox as pnde
    >>> layer = pnde.DropPath(0.5)
    >>> [layer(jax.numpy.ones(3), key=(1, 0), sample_id=n).tolist() for n in range(2)]
    [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]
    """

    scale_by_keep: bool = eqx.field(static=True)

    def __init__(self, rate: float, scale_by_keep: bool = True, *, inference: bool = False) -> None:
        start, schedule = schedules.get(rate)
        self.scale_by_keep = checks.check_bool(scale_by_keep, "scale_by_keep")
        self.start(Mask(Bernoulli(start), "time+in+out"), schedule, inference)


class SpatialDropout(ChannelModule, ActivationNoise):
    """Sets whole feature maps to zero with probability `rate` in training (Tompson et al., arXiv 1411.4280).

    It is `pernodedrop.SpatialDropout1D`, `2D` and `3D` as one module.

    Args:
        rate: drop rate in [0, 1). No schedule: `with_rate` sets it.
        data_format: "channels_first", as Equinox has them, or "channels_last". Masks do not depend on it.
        inference: as for `pernodedrop.equinox.Dropout`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.equinox.Dropout`, of rank from 2.

    >>> import jax, pernodedrop.equinox as pnde
    >>> y = pnde.SpatialDropout(0.5)(jax.numpy.ones((8, 4, 4)), key=jax.random.key(1))
    >>> bool((y == y[:, :1, :1]).all())
    True
    """

    data_format: str = eqx.field(static=True)

    def __init__(self, rate: float, data_format: str = "channels_first", *, inference: bool = False) -> None:
        start, schedule = schedules.get(rate)
        self.data_format = checks.check_choice(data_format, "data_format", ("channels_last", "channels_first"))
        self.start(Mask(Bernoulli(start), "out"), schedule, inference)

    def check_shape(self, shape: Shape) -> None:
        if len(shape) < 3:
            raise ValueError(checks.invalid("x", "rank from 2, one sample", shape[1:]))


class DropBlock(BlockModule, ActivationNoise):
    """Sets blocks of feature maps to zero in training (Ghiasi, Lin and Le, arXiv 1810.12890).

    It is `pernodedrop.DropBlock1D`, `2D` and `3D` as one module; their docstring says where blocks lie. What is kept of
    a sample is divided by the share that is kept.

    Args:
        rate: the share that would be dropped if blocks did not overlap, in [0, 1). No schedule: `with_rate` sets it.
        block_size: side of a block, an int from 1; 7, the paper's. Along a shorter axis a block is as long as the axis.
        per_channel: whether each channel has blocks of its own; True.
        data_format: "channels_first", as Equinox has them, or "channels_last". Masks do not depend on it.
        inference: as for `pernodedrop.equinox.Dropout`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.equinox.Dropout`, of rank from 2.

    >>> import jax, pernodedrop.equinox as pnde
    >>> pnde.DropBlock(0.3, block_size=2)(jax.numpy.ones((8, 4, 4)), key=jax.random.key(1)).shape
    (8, 4, 4)
    """

    block_size: int = eqx.field(static=True)
    per_channel: bool = eqx.field(static=True)
    normalize: str = eqx.field(static=True)
    data_format: str = eqx.field(static=True)

    def __init__(
        self,
        rate: float,
        block_size: int = 7,
        per_channel: bool = True,
        data_format: str = "channels_first",
        *,
        inference: bool = False,
    ) -> None:
        start, schedule = schedules.get(rate)
        self.check_blocks(block_size, per_channel, data_format)
        self.start(Mask(Bernoulli(start), "out"), schedule, inference)

    def check_shape(self, shape: Shape) -> None:
        if len(shape) < 3:
            raise ValueError(checks.invalid("x", "rank from 2, one sample", shape[1:]))


class Masksembles(EnsembleModule, ActivationNoise):
    """Multiplies each sample by one of a few fixed masks over channels (Durasov et al., arXiv 2012.08334).

    It is `pernodedrop.Masksembles` as a module, with equal masks for equal seeds: an ensemble whose members share their
    weights, in training and at inference alike, so nothing has to be rescaled. In training a sample has the member that
    its key draws, as in the paper, or that of its `sample_id`. The masks are an array, int32 (members, channels).

    Args:
        channels: their number, an int from 1.
        members: number of masks, an int from 1; 4.
        scale: how little the masks overlap, a finite float from 1; 2.0.
        axis: the axis of the channels in a sample, an int; -1. After a convolution it is 0.
        seed: int, any; a Keras layer with this seed has the same masks. None takes it from `key`.
        rounding: how the number of ones of a mask is rounded, "down" or to the "nearest".
        inference: as for `pernodedrop.equinox.Dropout`.
        key: a `jax.random.key`, where there is no seed.

    Call arguments:
        x: floating array of rank from 1, one sample.
        key: as for `pernodedrop.equinox.PerNodeLinear`; it draws the member, in training.
        sample_id: integer, the member modulo `members`, also in training. At inference every call has to bring one,
            except in `pernodedrop.equinox.uncertainty.predict`, where every sample goes through all members.
        inference: as for `pernodedrop.equinox.PerNodeLinear`.

    Output shape and dtype: the input's.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import jax, pernodedrop.equinox as pnde
    >>> layer = pnde.Masksembles(16, members=4, scale=2.0, seed=1)
    >>> layer(jax.numpy.ones(16), sample_id=3).sum().item()
    8.0
    """

    which: Members = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    axis: int = eqx.field(static=True)
    masks: jax.Array

    def __init__(
        self,
        channels: int,
        members: int = 4,
        scale: float = 2.0,
        axis: int = -1,
        seed: int | None = None,
        rounding: str = "down",
        *,
        inference: bool = False,
        key: jax.Array | None = None,
    ) -> None:
        axis = checks.check_int(axis, "axis")
        mask = self.check_ensemble(channels, members, scale, "random", rounding, axis if axis < 0 else axis + 1)
        self.start(mask, None, inference)
        word, like = word_of(checks.check_seed(seed), key), np.zeros((self.members, self.channels), "int32")
        # on the host also where the word is traced or several are stacked
        self.masks = jax.pure_callback(lambda word: self.masks_of(int(word)), like, word, vmap_method="sequential")

    def masks_now(self) -> jax.Array:
        return self.masks

    def mask_at_inference(self, x: jax.Array, sample_ids: typing.Any) -> jax.Array:
        if sample_ids is None and self.noise_sample is None:
            raise ValueError(checks.invalid("sample_id", "an integer, which chooses a member", None))
        return super().mask_at_inference(x, sample_ids)


def _mask(noise: Noise, persistence: float | None) -> Mask:
    """The mask of a noise with an entry for each place of an input."""
    if isinstance(persistence, Schedule):
        expected = "a float: one over time is set by `with_persistence`"
        raise ValueError(checks.invalid("persistence", expected, persistence))
    return Mask(noise, "out", persistence=persistence)


def _of_batch(noise_shape: Shape | None) -> Shape | None:
    """The shape of a mask of a batch, from that of a sample's."""
    found = check_noise_shape(noise_shape)
    return found if found is None else (None, *found)

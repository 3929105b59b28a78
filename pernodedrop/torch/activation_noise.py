"""Activation noise: modules that stand between others, multiply by noise in training and are the identity in `eval`."""

import typing

import numpy as np
import torch

from pernodedrop import checks, schedules
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
from pernodedrop.noise import Bernoulli, Gaussian, Noise
from pernodedrop.schedules import Schedule
from pernodedrop.torch.noisy import Noisy


class ActivationNoise(Noisy, ActivationModule):
    """Base of activation noise, beside the class that gives `mask_of`, the mask of an input."""

    argument = "input"

    def forward(
        self,
        input: torch.Tensor,  # noqa: A002 - torch's own name
        key: Key | None = None,
        sample_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The input, in training times its mask; see the class."""
        self.check_input(input)
        if not (self.training or self.changes_at_inference):
            return input
        return self.masked(input, key, sample_ids, self.training)

    def fold(self) -> torch.nn.Module:
        """The plain module that computes what this one does at inference: the identity."""
        return torch.nn.Identity().train(self.training)


class ShapedNoise(ShapedModule, ActivationNoise):
    """Base of activation noise with one entry for each place of a mask that is broadcast against the input."""

    def __init__(
        self,
        noise: Noise,
        noise_shape: Shape | None = None,
        seed: int | None = None,
        schedule: Schedule | None = None,
        persistence: float | Schedule | None = None,
    ) -> None:
        super().__init__()
        self.noise_shape = check_noise_shape(noise_shape)
        start, slow = schedules.get_persistence(persistence)
        self.start(Mask(noise, sharing_of(self.noise_shape), persistence=start), seed, schedule, slow)


class Dropout(ShapedNoise):
    """Sets entries of its input to zero with probability `rate` in training (Srivastava et al., JMLR 15, 2014).

    What is kept is scaled by 1 / (1 - rate). It is `pernodedrop.Dropout` as a module, with equal masks for equal
    (seed, call).

    Args:
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`.
        noise_shape: shape of the mask, broadcast against the input, None entries being the input's sizes; None is the
            input's shape.
        seed: any int; None takes one from Python's `random`.
        persistence: the probability in [0, 1] that an entry keeps its value from one position of (batch, time, in) to
            the next, and is not drawn anew, or a schedule of it. None and 0 are a mask for every position, 1 is one for
            the sequence (arXiv 1512.05287).

    Call arguments:
        input: floating tensor of any rank from 1, samples first.
        key: the key to use instead of drawing one, from `draw()`, or (seed, call).
        sample_ids: integer tensor (batch,): the sample coordinate of each row, as for
            `pernodedrop.torch.PerNodeLinear`. Not with a `noise_shape` of one sample.

    Output shape and dtype: the input's.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.
        RuntimeError: a key would be drawn inside `torch.utils.checkpoint`, see `drawn_keys`.

    Example:

    >>> import torch, pernodedrop.torch as pndt
    >>> sorted(set(pndt.Dropout(0.5, seed=1)(torch.ones(4, 8)).flatten().tolist()))
    [0.0, 2.0]
    """

    def __init__(
        self,
        rate: float | Schedule,
        noise_shape: Shape | None = None,
        seed: int | None = None,
        persistence: float | Schedule | None = None,
    ) -> None:
        start, schedule = schedules.get(rate)
        super().__init__(Bernoulli(start), noise_shape, seed, schedule, persistence)


class GaussianDropout(ShapedNoise):
    """Multiplies its input by N(1, rate / (1 - rate)) in training (Srivastava et al., JMLR 15, 2014, section 10).

    It is `pernodedrop.GaussianDropout` as a module.

    Args:
        rate: drop rate in [0, 1) of the Dropout with the same variance, or a schedule of `pernodedrop.schedules`.
        seed, noise_shape, persistence: as for `pernodedrop.torch.Dropout`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.torch.Dropout`.

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.GaussianDropout(0.5, seed=1)(torch.ones(4, 8)).shape
    torch.Size([4, 8])
    """

    def __init__(
        self,
        rate: float | Schedule,
        seed: int | None = None,
        noise_shape: Shape | None = None,
        persistence: float | Schedule | None = None,
    ) -> None:
        start, schedule = schedules.get(rate)
        super().__init__(Gaussian(rate=start), noise_shape, seed, schedule, persistence)


class DropPath(PathModule, ActivationNoise):
    """Sets a residual branch to zero with probability `rate` in training, sample by sample (arXiv 1605.07648).

    It stands at the end of the branch: y = shortcut + drop_path(branch). It is `pernodedrop.DropPath` as a module.

    Args:
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`; `pernodedrop.depth_rates` has one for each
            block of a network.
        seed: any int; None takes one from Python's `random`.
        scale_by_keep: whether branches that are kept are scaled by 1 / (1 - rate); True.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.torch.Dropout`.

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.DropPath(0.5, seed=1)(torch.ones(4, 3))[:, 0].tolist()
    [2.0, 0.0, 0.0, 0.0]
    """

    def __init__(self, rate: float | Schedule, seed: int | None = None, scale_by_keep: bool = True) -> None:
        start, schedule = schedules.get(rate)
        super().__init__()
        self.scale_by_keep = checks.check_bool(scale_by_keep, "scale_by_keep")
        self.start(Mask(Bernoulli(start), "time+in+out"), seed, schedule)


class FeatureMaps(ActivationNoise):
    """Base of noise on feature maps with a number of axes of space, `dims`."""

    dims: typing.ClassVar[int]

    def check_shape(self, shape: Shape) -> None:
        if len(shape) != self.dims + 2:
            raise ValueError(checks.invalid("input", f"rank {self.dims + 2}, samples first", shape))


class SpatialDropout(ChannelModule, FeatureMaps):
    """Base of the three: one Bernoulli entry for each sample and channel, the same at all positions."""

    def __init__(self, rate: float | Schedule, data_format: str = "channels_first", seed: int | None = None) -> None:
        start, schedule = schedules.get(rate)
        super().__init__()
        self.data_format = checks.check_choice(data_format, "data_format", ("channels_last", "channels_first"))
        self.start(Mask(Bernoulli(start), "out"), seed, schedule)


class SpatialDropout2d(SpatialDropout):
    """Sets whole feature maps to zero with probability `rate` in training (Tompson et al., arXiv 1411.4280).

    It is `pernodedrop.SpatialDropout2D` as a module, with channels first, as torch has them.

    Args:
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`.
        data_format: "channels_first" or "channels_last", which axis of the shape is that of the channels. Masks do not
            depend on it.
        seed: any int; None takes one from Python's `random`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.torch.Dropout`, of rank 4.

    >>> import torch, pernodedrop.torch as pndt
    >>> y = pndt.SpatialDropout2d(0.5, seed=1)(torch.ones(1, 8, 4, 4))
    >>> bool((y == y[:, :, :1, :1]).all())
    True
    """

    dims = 2


class SpatialDropout1d(SpatialDropout):
    """Sets whole channels of sequences to zero in training: `pernodedrop.torch.SpatialDropout2d` of rank 3.

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.SpatialDropout1d(0.5, seed=1)(torch.ones(1, 8, 4)).shape
    torch.Size([1, 8, 4])
    """

    dims = 1


class SpatialDropout3d(SpatialDropout):
    """Sets whole volumes of features to zero in training: `pernodedrop.torch.SpatialDropout2d` of rank 5.

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.SpatialDropout3d(0.5, seed=1)(torch.ones(1, 8, 4, 4, 4)).shape
    torch.Size([1, 8, 4, 4, 4])
    """

    dims = 3


class DropBlock(BlockModule, FeatureMaps):
    """Base of the three: blocks of feature maps."""

    def __init__(
        self,
        rate: float | Schedule,
        block_size: int = 7,
        per_channel: bool = True,
        normalize: str = "sample",
        data_format: str = "channels_first",
        seed: int | None = None,
    ) -> None:
        start, schedule = schedules.get(rate)
        super().__init__()
        self.check_blocks(block_size, per_channel, data_format, normalize)
        self.start(Mask(Bernoulli(start), "out"), seed, schedule)


class DropBlock2d(DropBlock):
    """Sets blocks of feature maps to zero in training (Ghiasi, Lin and Le, arXiv 1810.12890).

    It is `pernodedrop.DropBlock2D` as a module, with channels first, as torch has them; its docstring says where blocks
    lie.

    Args:
        rate: the share that would be dropped if blocks did not overlap, in [0, 1), or a schedule of
            `pernodedrop.schedules`; the paper lets it rise linearly.
        block_size: side of a block, an int from 1; 7, the paper's. Along a shorter axis a block is as long as the axis.
        per_channel: whether each channel has blocks of its own; True.
        normalize: over what the share that is kept is counted, by which what is kept is scaled: "sample", or "batch",
            as in the authors' code, which is refused in a process group, whose ranks have parts of it.
        data_format: "channels_first" or "channels_last", which axis of the shape is that of the channels.
        seed: any int; None takes one from Python's `random`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.torch.Dropout`, of rank 4.

    >>> import torch, pernodedrop.torch as pndt
    >>> (pndt.DropBlock2d(0.3, block_size=2, seed=1)(torch.ones(1, 1, 4, 4))[0, 0] > 0).int().tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    """

    dims = 2


class DropBlock1d(DropBlock):
    """Sets stretches of sequences to zero in training: `pernodedrop.torch.DropBlock2d` of rank 3.

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.DropBlock1d(0.3, block_size=3, seed=1)(torch.ones(1, 8, 4)).shape
    torch.Size([1, 8, 4])
    """

    dims = 1


class DropBlock3d(DropBlock):
    """Sets blocks of volumes to zero in training: `pernodedrop.torch.DropBlock2d` of rank 5.

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.DropBlock3d(0.3, block_size=2, seed=1)(torch.ones(1, 8, 4, 4, 4)).shape
    torch.Size([1, 8, 4, 4, 4])
    """

    dims = 3


class Masksembles(EnsembleModule, ActivationNoise):
    """Multiplies each sample by one of a few fixed masks over channels (Durasov et al., arXiv 2012.08334).

    It is `pernodedrop.Masksembles` as a module, with equal masks for equal seeds: an ensemble whose members share their
    weights, in training and in `eval` alike, and so without a scale. The masks are a buffer, int32 (members, channels),
    and part of the module's extra state in a `state_dict`.

    Args:
        channels: their number, an int from 1.
        members: number of masks, an int from 1; 4.
        scale: how little the masks overlap, a finite float from 1; 2.0.
        train_assignment: which member a sample has in training. "random": any, drawn anew each call (the paper).
            "contiguous": the batch is cut into `members` parts, one after another (the authors' code). "repeat": sample
            i has member i modulo members, for batches that have every sample `members` times in succession, as
            `x.repeat_interleave(members, 0)` has.
        axis: the axis of the channels in a batch, an int; -1. After a convolution it is 1.
        seed: any int; None takes one from Python's `random`.
        rounding: how the number of ones of a mask is made an integer, "down" or to the "nearest".

    Call arguments:
        input: floating tensor of rank from 2, samples first.
        key: the key to draw members with in training, from `draw()`, or (seed, call); for the random assignment alone.
        sample_ids: integer tensor (batch,): the member of each row, modulo `members`, also in training.

    Output shape and dtype: the input's.

    In `eval`: sample i of a batch has member i modulo `members`, unless `sample_ids` says otherwise; so a prediction
    depends on the order of the samples. In `pernodedrop.torch.uncertainty.predict` every sample goes through all.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.
        RuntimeError: a key would be drawn inside `torch.utils.checkpoint`, see `drawn_keys`.

    Example:

    >>> import torch, pernodedrop.torch as pndt
    >>> layer = pndt.Masksembles(16, members=4, scale=2.0, seed=1)
    >>> layer(torch.ones(4, 16)).sum(1).tolist()
    [8.0, 8.0, 8.0, 8.0]
    """

    kept = (*ActivationNoise.kept, "masks")
    masks: torch.Tensor

    def __init__(
        self,
        channels: int,
        members: int = 4,
        scale: float = 2.0,
        train_assignment: str = "random",
        axis: int = -1,
        seed: int | None = None,
        rounding: str = "down",
    ) -> None:
        super().__init__()
        self.start(self.check_ensemble(channels, members, scale, train_assignment, rounding, axis), seed, None)

    def first(self, name: str) -> np.typing.NDArray[typing.Any]:
        return self.masks_of(int(self.state.first_key.view("uint32")[0])) if name == "masks" else super().first(name)

    def masks_now(self) -> torch.Tensor:
        return self.masks

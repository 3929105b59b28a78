"""DropBlock: blocks of feature maps are dropped (Ghiasi, Lin and Le, arXiv 1810.12890)."""

import typing

import keras

from pernodedrop import checks, schedules
from pernodedrop._types import Config, Key, Shape, Tensor
from pernodedrop.blocks import Blocks
from pernodedrop.layers.base.noisy import xp
from pernodedrop.layers.base.spatial_noise import SpatialNoise
from pernodedrop.noise import Bernoulli
from pernodedrop.schedules import Schedule


class DropBlock(SpatialNoise):
    """Base of the three: a block for each seed, a seed for each first corner that a whole block has room at."""

    def __init__(
        self,
        rate: float | Schedule,
        block_size: int = 7,
        per_channel: bool = True,
        normalize: str = "sample",
        data_format: str | None = None,
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        start, schedule = schedules.get(rate)
        self.block_size = checks.check_count(block_size, "block_size")
        self.per_channel = checks.check_bool(per_channel, "per_channel")
        self.normalize = checks.check_choice(normalize, "normalize", ("sample", "batch"))
        super().__init__(Bernoulli(start), data_format=data_format, seed=seed, schedule=schedule, **kwargs)

    def entries_channels_last(self, inputs: Tensor, shape: Shape, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        if None in inputs.shape[1:]:
            raise ValueError(checks.invalid("inputs", "known sizes, but for the batch's", tuple(inputs.shape)))
        samples, field = self.samples(inputs, sample_ids), self.field(key, xp.device(inputs))
        return Blocks(self.block_size, self.per_channel, self.normalize).mask(shape, field, samples, inputs, xp)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "rate": self.rate_config,
            "block_size": self.block_size,
            "per_channel": self.per_channel,
            "normalize": self.normalize,
        }


@keras.saving.register_keras_serializable("pernodedrop")
class DropBlock2D(DropBlock):
    """Sets blocks of feature maps to zero in training (Ghiasi, Lin and Le, arXiv 1810.12890).

    Wherever a whole block of block_size x block_size fits into a map of rows x columns, one starts with probability

        gamma = rate / block_size**2 * rows * columns / ((rows - block_size + 1) * (columns - block_size + 1)).

    Entries in a block are zero; the others are scaled by (number of entries) / (number of entries kept). Inference is
    the identity. A block is placed by its first corner, so even sizes work as well as odd ones. Along an axis that is
    shorter than `block_size` a block is as long as the axis; if all axes are shorter, whole maps are dropped, at
    `rate`. With blocks of size 1, `pernodedrop.Dropout` at the same key drops the same entries.

    Blocks overlap, so a little less than `rate` is dropped, and near the border a lot less: a position is dropped with
    probability 1 - (1 - gamma)**(number of blocks that cover it). In a map of 14 x 14, with blocks of 7 and rate 0.1,
    that is 0.265 in the middle, 0.006 in a corner and 0.093 on average.

    In the paper the rate rises linearly from 0: `rate=pernodedrop.schedules.Linear(0.0, 0.1, steps=...)`. gamma
    follows the rate inside the compiled step, to 2**-23 and equally on every backend, so all backends drop the same
    entries.

    Args:
        rate: the share that would be dropped if blocks did not overlap, in [0, 1), or a schedule of
            `pernodedrop.schedules`.
        block_size: side of a block, an int from 1; 7, the paper's.
        per_channel: True: each channel has blocks of its own, which "tends to work better" in the paper. False: all
            channels of a sample have the same blocks.
        normalize: where the entries kept are counted, for the scale. "sample": in each sample, so that samples do not
            depend on each other. "batch": in the whole batch, over all replicas, as in the authors' code; refused in a
            process group of torch. A sample or a batch that is dropped whole is zero.
        data_format: "channels_last", "channels_first", or None for Keras' `image_data_format`. Masks do not depend on
            it.
        seed: int, any; None takes one from Python's `random`.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: floating tensor (batch, rows, columns, channels), or (batch, channels, rows, columns); sizes other than
            the batch's must be known in training.
        training: whether to train; Keras sets it in `fit`.
        key: the key to use instead of drawing one, from `draw()`.
        sample_ids: integer tensor (batch,): the sample coordinate of each row, instead of its place in the batch.

    Output shape and dtype: the input's.

    Raises:
        TypeError, ValueError: a rate outside [0, 1), an input of another rank or of unknown size, or another argument
            that is not as described; `normalize="batch"` in a process group of torch.

    Example:

    >>> import numpy as np, pernodedrop as pnd
    >>> layer = pnd.DropBlock2D(0.3, block_size=2, data_format="channels_last", seed=1)
    >>> y = np.asarray(layer(np.ones((1, 4, 4, 1), "float32"), training=True))
    >>> (y[0, :, :, 0] > 0).astype(int)
    array([[1, 1, 0, 0],
           [1, 1, 0, 0],
           [1, 1, 0, 0],
           [1, 1, 1, 1]])
    """

    dims = 2


@keras.saving.register_keras_serializable("pernodedrop")
class DropBlock1D(DropBlock):
    """Sets stretches of sequences to zero in training (after Ghiasi, Lin and Le, arXiv 1810.12890).

    `pernodedrop.DropBlock2D` with one axis of space, a case that the paper leaves out: gamma is
    rate / block_size * steps / (steps - block_size + 1).

    Args:
        rate, block_size, per_channel, normalize, data_format, seed, **kwargs: as for `pernodedrop.DropBlock2D`.

    Call arguments:
        inputs: floating tensor (batch, steps, channels), or (batch, channels, steps).
        training, key, sample_ids: as for `pernodedrop.DropBlock2D`.

    Output shape and dtype: the input's.

    Raises:
        TypeError, ValueError: as for `pernodedrop.DropBlock2D`.

    Example:

    >>> import numpy as np, pernodedrop as pnd
    >>> layer = pnd.DropBlock1D(0.3, block_size=3, data_format="channels_last", seed=1)
    >>> layer(np.ones((2, 8, 4), "float32"), training=True).shape == (2, 8, 4)
    True
    """

    dims = 1


@keras.saving.register_keras_serializable("pernodedrop")
class DropBlock3D(DropBlock):
    """Sets blocks of volumes to zero in training (after Ghiasi, Lin and Le, arXiv 1810.12890).

    `pernodedrop.DropBlock2D` with three axes of space, a case that the paper leaves out: gamma has a factor
    size / (block_size * (size - block_size + 1)) for each.

    Args:
        rate, block_size, per_channel, normalize, data_format, seed, **kwargs: as for `pernodedrop.DropBlock2D`.

    Call arguments:
        inputs: floating tensor (batch, depth, rows, columns, channels), or (batch, channels, depth, rows, columns).
        training, key, sample_ids: as for `pernodedrop.DropBlock2D`.

    Output shape and dtype: the input's.

    Raises:
        TypeError, ValueError: as for `pernodedrop.DropBlock2D`.

    Example:

    >>> import numpy as np, pernodedrop as pnd
    >>> layer = pnd.DropBlock3D(0.3, block_size=2, data_format="channels_last", seed=1)
    >>> layer(np.ones((2, 4, 4, 4, 3), "float32"), training=True).shape == (2, 4, 4, 4, 3)
    True
    """

    dims = 3

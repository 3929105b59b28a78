"""SpatialDropout: Bernoulli noise on whole feature maps (Tompson et al., arXiv 1411.4280)."""

import typing

import keras

from pernodedrop import schedules
from pernodedrop._types import Config, Key, Shape, Tensor
from pernodedrop.layers.base.spatial_noise import SpatialNoise
from pernodedrop.noise import Bernoulli
from pernodedrop.schedules import Schedule


class SpatialDropout(SpatialNoise):
    """Base of the three: one Bernoulli entry for each sample and channel, the same at all positions."""

    def __init__(
        self,
        rate: float | Schedule,
        data_format: str | None = None,
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        start, schedule = schedules.get(rate)
        super().__init__(Bernoulli(start), data_format=data_format, seed=seed, schedule=schedule, **kwargs)

    def entries_channels_last(self, inputs: Tensor, shape: Shape, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        batch, *space, channels = shape
        return self.entries_of((batch, *(1 for _ in space), channels), inputs, key, sample_ids)

    def get_config(self) -> Config:
        return {**super().get_config(), "rate": self.rate_config}


@keras.saving.register_keras_serializable("pernodedrop")
class SpatialDropout2D(SpatialDropout):
    """Sets whole feature maps to zero with probability `rate` in training (Tompson et al., arXiv 1411.4280).

    There is one Bernoulli entry for each sample and channel; maps that are kept are scaled by 1 / (1 - rate). Inference
    is the identity. With channels last the masks are those of `pernodedrop.Dropout(noise_shape=(None, 1, 1, None))` at
    the same key; with channels first they are the same, so a model may change its data format and keep its noise.
    The arguments of `keras.layers.SpatialDropout2D` mean the same here, and its config is accepted.

    Args:
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`.
        data_format: "channels_last", "channels_first", or None for Keras' `image_data_format`.
        seed: int, any; None takes one from Python's `random`.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: floating tensor (batch, rows, columns, channels), or (batch, channels, rows, columns).
        training: whether to train; Keras sets it in `fit`.
        key: the key to use instead of drawing one, from `draw()`.
        sample_ids: integer tensor (batch,): the sample coordinate of each row, instead of its place in the batch.

    Output shape and dtype: the input's.

    Raises:
        TypeError, ValueError: a rate outside [0, 1), an input of another rank, or another argument that is not as
            described.

    Example:

    >>> import numpy as np, pernodedrop as pnd
    >>> layer = pnd.SpatialDropout2D(0.5, data_format="channels_last", seed=1)
    >>> y = np.asarray(layer(np.ones((1, 4, 4, 8), "float32"), training=True))
    >>> bool((y == y[:, :1, :1]).all()), sorted(set(y.ravel().tolist()))
    (True, [0.0, 2.0])
    """

    dims = 2


@keras.saving.register_keras_serializable("pernodedrop")
class SpatialDropout1D(SpatialDropout):
    """Sets whole channels of sequences to zero with probability `rate` in training (Tompson et al., arXiv 1411.4280).

    `pernodedrop.SpatialDropout2D` with one axis of space. Like Keras' layer of this name, and unlike the 2D and 3D
    ones, it has channels last by default, whatever Keras' `image_data_format` is.

    Args:
        rate, seed, **kwargs: as for `pernodedrop.SpatialDropout2D`.
        data_format: "channels_last" or "channels_first".

    Call arguments:
        inputs: floating tensor (batch, steps, channels), or (batch, channels, steps).
        training, key, sample_ids: as for `pernodedrop.SpatialDropout2D`.

    Output shape and dtype: the input's.

    Raises:
        TypeError, ValueError: as for `pernodedrop.SpatialDropout2D`.

    Example:

    >>> import numpy as np, pernodedrop as pnd
    >>> y = np.asarray(pnd.SpatialDropout1D(0.5, seed=1)(np.ones((1, 4, 8), "float32"), training=True))
    >>> bool((y == y[:, :1]).all())
    True
    """

    dims = 1

    def __init__(
        self,
        rate: float | Schedule,
        seed: int | None = None,
        data_format: str = "channels_last",
        **kwargs: typing.Any,
    ) -> None:
        super().__init__(rate, data_format=data_format, seed=seed, **kwargs)


@keras.saving.register_keras_serializable("pernodedrop")
class SpatialDropout3D(SpatialDropout):
    """Sets whole volumes of features to zero with probability `rate` in training (Tompson et al., arXiv 1411.4280).

    `pernodedrop.SpatialDropout2D` with three axes of space.

    Args:
        rate, data_format, seed, **kwargs: as for `pernodedrop.SpatialDropout2D`.

    Call arguments:
        inputs: floating tensor (batch, depth, rows, columns, channels), or (batch, channels, depth, rows, columns).
        training, key, sample_ids: as for `pernodedrop.SpatialDropout2D`.

    Output shape and dtype: the input's.

    Raises:
        TypeError, ValueError: as for `pernodedrop.SpatialDropout2D`.

    Example:

    >>> import numpy as np, pernodedrop as pnd
    >>> layer = pnd.SpatialDropout3D(0.5, data_format="channels_last", seed=1)
    >>> y = np.asarray(layer(np.ones((1, 2, 2, 2, 8), "float32"), training=True))
    >>> bool((y == y[:, :1, :1, :1]).all())
    True
    """

    dims = 3

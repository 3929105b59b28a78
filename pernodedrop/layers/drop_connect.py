"""DropConnect: Bernoulli noise on the connections of a layer (Wan et al., ICML 2013)."""

import typing

import keras

from pernodedrop import schedules
from pernodedrop._types import Config, Sharing
from pernodedrop.layers.weight_noise import WeightNoise
from pernodedrop.mask import Mask
from pernodedrop.noise import Bernoulli
from pernodedrop.schedules import Schedule


@keras.saving.register_keras_serializable("pernodedrop")
class DropConnect(WeightNoise):
    """Drops connections of a layer, by default the same ones for a whole batch (Wan et al., ICML 2013).

    This is DropConnect as libraries have it: what is kept is scaled by 1 / (1 - rate) in training, the bias is never
    dropped, and inference is the inner layer itself.

    Args:
        layer: the inner layer, of one of the kinds that `pernodedrop.PerNodeDrop` takes.
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`; 0.5.
        sharing: "sample+time": one mask a batch. "time": one mask a sample, which is binary PerNodeDrop.
        seed, method, **kwargs: as for `pernodedrop.PerNodeDrop`.

    Call arguments, shapes and dtypes: as for `pernodedrop.PerNodeDrop`.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layer = pnd.DropConnect(keras.layers.Dense(4), rate=0.5, seed=1)
    >>> y = keras.ops.convert_to_numpy(layer(np.ones((2, 3), "float32"), training=True))
    >>> bool((y[0] == y[1]).all())
    True
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        rate: float | Schedule = 0.5,
        sharing: Sharing = "sample+time",
        seed: int | None = None,
        method: str = "auto",
        **kwargs: typing.Any,
    ) -> None:
        start, schedule = schedules.get(rate)
        mask = Mask(Bernoulli(start), sharing)
        super().__init__(layer, mask, seed=seed, method=method, schedule=schedule, **kwargs)

    def get_config(self) -> Config:
        return {**super().get_config(), "rate": self.rate_config, "sharing": sorted(self.mask.sharing)}

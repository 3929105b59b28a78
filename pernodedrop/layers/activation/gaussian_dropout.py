"""GaussianDropout: Gaussian noise on activations (Srivastava et al., JMLR 15, 2014, section 10)."""

import typing

import keras

from pernodedrop import schedules
from pernodedrop._types import Config, Shape
from pernodedrop.layers.base.shaped_noise import ShapedNoise
from pernodedrop.noise import Gaussian
from pernodedrop.schedules import Schedule


@keras.saving.register_keras_serializable("pernodedrop")
class GaussianDropout(ShapedNoise):
    """Multiplies its input by N(1, rate / (1 - rate)) in training (Srivastava et al., JMLR 15, 2014, section 10).

    Inference is the identity.

    Args:
        rate: drop rate in [0, 1) of the Dropout with the same variance, or a schedule of `pernodedrop.schedules`.
        seed, noise_shape, persistence, **kwargs: as for `pernodedrop.Dropout`. The seed comes first, as in
            `keras.layers.GaussianDropout`, which has no `noise_shape`.

    Call arguments, shapes and dtypes: as for `pernodedrop.Dropout`.

    Raises:
        TypeError, ValueError: a rate outside [0, 1) or an argument that is not as described.

    Example:

    >>> import numpy as np, pernodedrop as pnd
    >>> layer = pnd.GaussianDropout(0.5, seed=1)
    >>> layer(np.ones((4, 8), "float32"), training=True).shape == (4, 8)
    True
    """

    def __init__(
        self,
        rate: float | Schedule,
        seed: int | None = None,
        noise_shape: Shape | None = None,
        persistence: float | Schedule | None = None,
        **kwargs: typing.Any,
    ) -> None:
        start, schedule = schedules.get(rate)
        super().__init__(Gaussian(rate=start), noise_shape, seed, schedule, persistence, **kwargs)

    def get_config(self) -> Config:
        return {**super().get_config(), "rate": self.rate_config}

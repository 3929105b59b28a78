"""AlphaDropout: Dropout that keeps mean and variance, for SELU networks (Klambauer et al., arXiv 1706.02515)."""

import typing

import keras

from pernodedrop import ops, schedules
from pernodedrop._types import Config, Key, Shape, Tensor
from pernodedrop.layers.base.noisy import at_least_float32, xp
from pernodedrop.layers.base.shaped_noise import ShapedNoise
from pernodedrop.noise import Bernoulli
from pernodedrop.schedules import Schedule

SATURATION = -1.0507009873554805 * 1.6732632423543772
"""What SELU goes to far below 0, -scale * alpha."""


@keras.saving.register_keras_serializable("pernodedrop")
class AlphaDropout(ShapedNoise):
    """Sets entries of its input to SELU's saturation value, keeping mean 0 and variance 1 (arXiv 1706.02515).

    In training an entry is dropped with probability p = `rate`. With s = -1.7580993408473766, the limit of SELU far
    below 0,

        y = a x + b where x is kept, a s + b where it is dropped
        a = 1 / sqrt((1 - p) (1 + p s**2)), b = -a p s

    so that y has mean 0 and variance 1 if x has. Inference is the identity. At the same key, `pernodedrop.Dropout`
    drops the same entries.

    Args:
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`; a and b follow it.
        noise_shape, seed, persistence, **kwargs: as for `pernodedrop.Dropout`.

    Call arguments, shapes and dtypes: as for `pernodedrop.Dropout`.

    Raises:
        TypeError, ValueError: a rate outside [0, 1) or an argument that is not as described.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layer = pnd.AlphaDropout(0.5, seed=1)
    >>> y = keras.ops.convert_to_numpy(layer(np.zeros((4, 8), "float32"), training=True))
    >>> sorted({round(value, 4) for value in y.ravel().tolist()})
    [-0.7792, 0.7792]
    """

    def __init__(
        self, rate: float | Schedule, noise_shape: Shape | None = None, seed: int | None = None, **kwargs: typing.Any
    ) -> None:
        start, schedule = schedules.get(rate)
        super().__init__(Bernoulli(start), noise_shape=noise_shape, seed=seed, schedule=schedule, **kwargs)

    def call_with_noise(self, inputs: Tensor, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        ops.check_layout("inputs", inputs, ("dense",), xp)  # a sparse input has outputs that are not
        key = self.draw() if key is None else key
        kept = self.entries(inputs, key, sample_ids) > 0
        x = at_least_float32(inputs)
        keep = xp.astype(self.keep_probability(self.field(key, xp.device(inputs))), xp.dtype(x))
        a = 1 / xp.sqrt(keep * (1 + (1 - keep) * SATURATION**2))
        b = -a * (1 - keep) * SATURATION
        y = xp.where(kept, a * x + b, a * SATURATION + b)
        return xp.astype(y, xp.dtype(inputs))

    def get_config(self) -> Config:
        return {**super().get_config(), "rate": self.rate_config}

"""Fast dropout: the mean of a layer's output under noise, in closed form (Wang and Manning, ICML 2013)."""

import collections.abc
import math
import typing

import keras

from pernodedrop import checks, schedules
from pernodedrop._types import Config, Tensor, Words
from pernodedrop.layers.base.inner import as_channels, moments, safe_sqrt, with_activity_loss
from pernodedrop.layers.base.noisy import xp
from pernodedrop.layers.base.weight_noise import WeightNoise
from pernodedrop.mask import Field, Mask
from pernodedrop.noise import Bernoulli
from pernodedrop.schedules import Schedule


@keras.saving.register_keras_serializable("pernodedrop")
class FastDropout(WeightNoise):
    """The mean of a layer's output under dropout, without sampling it (Wang and Manning, ICML 2013).

    In training, with v = rate / (1 - rate), each output is E[a(N(mu, s**2))], where mu = x W + b and
    s**2 = v (x**2) (W**2) are the mean and variance of x W + b under inverted Dropout on x, and under DropConnect:

        relu: mu Phi(mu / s) + s phi(mu / s), exact for a normal number
        sigmoid: sigmoid(mu / sqrt(1 + pi s**2 / 8)), within 0.018 of it for any mu and s
        linear: mu, so that training is as without dropout

    It is deterministic: only the activation feels the noise. Inference is the inner layer itself. It takes x W + b for
    normal, by the central limit theorem, which is good for many inputs of similar size. The paper passes means and
    variances on through all layers; here the mean alone is passed on, so the next layer takes its input as certain. The
    rate may follow a schedule: each training call counts as an update.

    Args:
        layer: the inner layer, of one of the kinds that `pernodedrop.PerNodeDrop` takes, but no Embedding and no
            transposed or separable convolution, with an activation "linear", "relu" or "sigmoid".
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`; 0.5.
        seed, **kwargs: as for `pernodedrop.PerNodeDrop`.

    Nothing is drawn: the key counts the updates.

    Call arguments, shapes and dtypes: as for `pernodedrop.PerNodeDrop`, without `sample_ids`. Computed in float32.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message; another activation.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layer = pnd.FastDropout(keras.layers.Dense(1, activation="relu", kernel_initializer="ones"), rate=0.5)
    >>> y = keras.ops.convert_to_numpy(layer(np.array([[1.0, -1.0]], "float32"), training=True))
    >>> bool(abs(y - 1 / np.sqrt(np.pi)) < 1e-6)
    True
    """

    def __init__(
        self, layer: keras.layers.Layer, rate: float | Schedule = 0.5, seed: int | None = None, **kwargs: typing.Any
    ) -> None:
        start, schedule = schedules.get(rate)
        super().__init__(layer, Mask(Bernoulli(start), "sample+time"), seed=seed, schedule=schedule, **kwargs)
        if layer.activation not in MEANS:
            names = ", ".join(repr(activation.__name__) for activation in MEANS if activation is not None)
            received = getattr(layer.activation, "__name__", layer.activation)
            raise ValueError(checks.invalid("layer", f"a layer whose activation is one of {names}", received))

    @property
    def is_stochastic(self) -> bool:
        """False: nothing is drawn."""
        return False

    def call_with_noise(self, inputs: Tensor, field: Field, samples: Words) -> Tensor:
        mean, variance = moments(self.layer, inputs)
        if self.layer.bias is not None:
            mean = mean + as_channels(self.layer, mean, keras.ops.cast(self.layer.bias, mean.dtype)[None])
        odds = 1 / xp.astype(self.keep_probability(field), xp.dtype(mean)) - 1
        y = MEANS[self.layer.activation](mean, safe_sqrt(odds * variance))
        return with_activity_loss(self.layer, keras.ops.cast(y, self.compute_dtype))

    def get_config(self) -> Config:
        return {**super().get_config(), "rate": self.rate_config}


def _linear(mean: Tensor, spread: Tensor) -> Tensor:
    return mean


def _relu(mean: Tensor, spread: Tensor) -> Tensor:
    certain = spread == 0
    z = mean / keras.ops.where(certain, 1, spread)
    below = (1 + keras.ops.erf(z / math.sqrt(2))) / 2
    density = keras.ops.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return keras.ops.where(certain, keras.ops.relu(mean), mean * below + spread * density)


def _sigmoid(mean: Tensor, spread: Tensor) -> Tensor:
    return keras.ops.sigmoid(mean / keras.ops.sqrt(1 + math.pi / 8 * spread * spread))


MEANS: dict[typing.Any, collections.abc.Callable[[Tensor, Tensor], Tensor]] = {
    None: _linear,
    keras.activations.linear: _linear,
    keras.activations.relu: _relu,
    keras.activations.sigmoid: _sigmoid,
}
"""E[activation(N(mean, spread**2))], by activation."""

"""Noise injection nodes: inputs of pure noise with trained weights (inspired by Levi et al., arXiv 2210.15764)."""

import math
import typing

import keras

from pernodedrop import checks, schedules
from pernodedrop._types import Config, Shape, Tensor, Words
from pernodedrop.layers.base.inner import bias_and_activation, float_kernel, product_with, with_kernel
from pernodedrop.layers.base.noisy import at_least_float32, check_size, xp
from pernodedrop.layers.base.weight_noise import WeightNoise
from pernodedrop.mask import Field, Mask
from pernodedrop.noise import Gaussian, Noise
from pernodedrop.schedules import Schedule

CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


@keras.saving.register_keras_serializable("pernodedrop")
class NoiseInjection(WeightNoise):
    """Adds an input of pure noise, with trained weights, to a layer (inspired by Levi et al., arXiv 2210.15764).

    In training a Dense layer gives activation(x W + e w + b) and a convolution gives activation(conv(x + e w) + b),
    where e is a number of mean 0, new for every sample and every call, and w the trained weights of the node it stands
    for: one for each unit, or one for each entry of the convolution's input. Training reduces w where noise does harm;
    at inference e is 0 and the layer is the inner layer. To second order in e the expected loss is the plain one plus
    half the variance of e times the loss's curvature along w.

    The node, its place, its trained weights and its absence at inference are the paper's. These are ours, since the
    paper's constants could not be checked: the distribution of e and its default standard deviation of 1, weights that
    start with variance 1, so that at first noise is as strong as inputs of unit scale, a number e for each position of
    a Dense layer's input, and for a convolution one e a sample, with a weight for each entry of the input.

    Args:
        layer: the inner layer, a `keras.layers.Dense`, `Conv1D`, `Conv2D` or `Conv3D`. A convolution's input must have
            known sizes.
        rate: of the noise, as a drop rate in [0, 1): e has the variance rate / (1 - rate). None is 0.5, a standard
            deviation of 1. Or a schedule of `pernodedrop.schedules`, which also goes with a `pernodedrop.Noise` that
            has a rate. It can be set at any time.
        noise: the distribution of e, which is an entry of the noise less its mean: "gaussian", "uniform", "bernoulli",
            or a `pernodedrop.Noise`, which brings its own numbers.
        stddev: the standard deviation of a normal e itself, a finite float from zero, instead of rate and noise.
        initializer: of w, as Keras takes it. The weight `noise_kernel` has shape (1, number of weights).
        seed: any int; None takes one from Python's `random`.
        **kwargs: those of `keras.layers.Layer`; the dtype policy is the inner layer's unless given.

    Call arguments, shapes and dtypes: as for `pernodedrop.PerNodeDrop`. e has the entries' sample and time coordinates.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layer = pnd.NoiseInjection(keras.layers.Dense(4), stddev=0.5, seed=1)
    >>> x = np.ones((2, 3), "float32")
    >>> layer(x, training=True).shape == (2, 4), tuple(layer.noise_kernel.shape)
    (True, (1, 4))
    >>> bool((keras.ops.convert_to_numpy(layer(x)) == keras.ops.convert_to_numpy(layer.layer(x))).all())
    True
    """

    kinds = (keras.layers.Dense, *CONVOLUTIONS)

    def __init__(
        self,
        layer: keras.layers.Layer,
        rate: float | Schedule | None = None,
        noise: str | Noise = "gaussian",
        stddev: float | None = None,
        initializer: typing.Any = "lecun_normal",
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        if stddev is not None:
            if rate is not None or noise != "gaussian":
                expected = f"None beside rate={rate!r} and noise={noise!r}, which bring their own numbers"
                raise ValueError(checks.invalid("stddev", expected, stddev))
            noise = Gaussian(stddev=stddev)
        noise, schedule = schedules.get_noise(noise, rate)
        sharing = {"time", "in", "out"} if isinstance(layer, CONVOLUTIONS) else {"in", "out"}
        super().__init__(layer, Mask(noise, sharing), seed=seed, schedule=schedule, **kwargs)
        self.initializer = keras.initializers.get(initializer)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self._targets = (self.layer.units,) if isinstance(self.layer, keras.layers.Dense) else tuple(input_shape[1:])
        if None in self._targets:
            raise ValueError(checks.invalid("inputs", "known sizes, but for the batch's", tuple(input_shape)))
        shape = (1, math.prod(self._targets))
        self.noise_kernel = self.add_weight(
            name="noise_kernel", shape=shape, initializer=self.initializer, autocast=False
        )

    def call_with_noise(self, inputs: Tensor, field: Field, samples: Words) -> Tensor:
        kernel = float_kernel(self.layer)
        if isinstance(self.layer, CONVOLUTIONS):
            return with_kernel(self.layer, self._injected(inputs, field, samples), kernel)
        z = product_with(self.layer, inputs, kernel)
        return bias_and_activation(self.layer, self._injected(z, field, samples))

    def _injected(self, x: Tensor, field: Field, samples: Words) -> Tensor:
        """A tensor with the node's noise added, in the dtype it has, computed in float32 at least."""
        for axis, size in enumerate(self._targets, start=len(x.shape) - len(self._targets)):
            check_size(x, axis, size)
        zero = xp.arange(1, like=x)
        batch, *positions = xp.shape(x)[: len(x.shape) - len(self._targets)]
        time = xp.arange(math.prod(positions), like=x) if positions else zero
        e = field.entries(time, samples[:, None], zero, zero, xp) - self.state.mask.mean
        e = xp.reshape(e, (batch, *positions, *([1] * len(self._targets))))
        y = at_least_float32(x)
        w = xp.reshape(keras.ops.cast(self.noise_kernel, y.dtype), self._targets)
        return xp.astype(y + xp.astype(e, xp.dtype(y)) * w, xp.dtype(x))

    def get_config(self) -> Config:
        initializer = keras.initializers.serialize(self.initializer)
        return {**super().get_config(), **self.noise_config, "initializer": initializer}

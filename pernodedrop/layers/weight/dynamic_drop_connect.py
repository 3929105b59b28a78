"""DynamicDropConnect: connections are dropped at rates that follow their last gradients (arXiv 2502.19948)."""

import math
import typing

import keras
import numpy as np

from pernodedrop import checks, schedules
from pernodedrop._types import Config, Shape, Tensor, Words
from pernodedrop.layers.base.contraction import Contraction
from pernodedrop.layers.base.convolution import Convolution
from pernodedrop.layers.base.inner import float_kernel, product_of, with_kernel
from pernodedrop.layers.base.noisy import at_least_float32, xp
from pernodedrop.layers.base.weight_noise import WeightNoise
from pernodedrop.mask import Field, Mask
from pernodedrop.noise import Bernoulli
from pernodedrop.schedules import Schedule

PREFERENCES = ("small_gradient", "big_gradient", "small_weight", "big_weight")
CALIBRATIONS = ("layer", "edge")
TINY = 1e-9  # the authors', beside a standard deviation and a realised keep rate


@keras.saving.register_keras_serializable("pernodedrop")
class DynamicDropConnect(WeightNoise):
    """Drops connections of a layer, those with small gradients more often (Yang and Chen, arXiv 2502.19948).

    One mask a batch. With v = |dL/dW~| of the last update, W~ being the kernel with its mask,

        z = (v - mean(v)) / (std(v) + 1e-9), over the whole kernel, std with N - 1
        q = 1 - sigmoid(z) where that is above `threshold`, else 0
        drop with probability p = base_rate + gradient_rate * q
        W~ = W * m / r, r the share of connections that this very mask keeps, a constant to the gradient.

    Until an update has noted a gradient nothing is dropped. The bias is never dropped; inference is the inner layer.

    The layer sees its gradient in any training loop whose Keras optimizer applies the gradients of all
    `trainable_variables`, `fit` among them. It does so by a float32 weight `gradient`, two of the kernel's shape, the
    gradient and minus it, which the optimizer overwrites: no learning rate, clipping, weight decay or momentum applies
    to it, and it adds nothing to the norms that gradients are clipped by. A frozen layer stays with the gradient that
    it last noted. A scaled loss scales it, to no effect on z. With `gradient_accumulation_steps` v is the largest
    |dL/dW~| of the accumulated batches (Keras' rule, which keeps maxima, is why minus the gradient is noted too).
    Replicas of a MirroredStrategy note the gradient of the whole batch. The preferences for weights need none of this.

    Args:
        layer: the inner layer, of one of the kinds that `pernodedrop.PerNodeDrop` takes.
        base_rate: drop rate of every connection, a float in [0, 1) or a schedule of `pernodedrop.schedules`; 0.3, the
            authors'. It is the layer's `rate`, which can be set at any time.
        gradient_rate: what the drop rate rises by as q goes to 1, a float from zero; 0.5, the authors'. It can be set
            at any time. base_rate + gradient_rate is below 1.
        threshold: q up to which it counts as 0, a float in [0, 1); at 0.5 connections below the mean of v have q > 0.
        prefer: what is dropped more often. "small_gradient" is the paper; "big_gradient" has q = sigmoid(z);
            "small_weight" and "big_weight" have v = |W|, from the first batch on.
        straight_through: whether dL/dW is dL/dW~, so that dropped connections learn too, as the authors' code does.
            False differentiates the mask: a dropped connection has gradient 0, therefore the greatest q of the next
            batch, and is dropped again more often than not (with probability 0.63, for normal gradients).
        calibration: "layer" divides by r, so that E[W~] is 1.37 W for connections with q = 0 and 0.6 W to 0.9 W for the
            others (normal gradients); "edge" divides each connection by its own 1 - p, so that E[W~] = W.
        seed, **kwargs: as for `pernodedrop.PerNodeDrop`.

    Call arguments: inputs, training and key as for `pernodedrop.PerNodeDrop`; there are no samples to give ids to.

    Input shape, output shape, dtypes: the inner layer's. Rates and mask are computed in float32; they are equal on all
    backends up to the rounding of sigmoid, mean and std.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layer = pnd.DynamicDropConnect(keras.layers.Dense(4), seed=1)
    >>> x = np.ones((2, 3), "float32")
    >>> bool((keras.ops.convert_to_numpy(layer(x, training=True)) == keras.ops.convert_to_numpy(layer(x))).all())
    True
    >>> tuple(layer.gradient.shape)
    (2, 3, 4)
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        base_rate: float | Schedule = 0.3,
        gradient_rate: float = 0.5,
        threshold: float = 0.5,
        prefer: str = "small_gradient",
        straight_through: bool = True,
        calibration: str = "layer",
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        start, schedule = schedules.get(base_rate, "base_rate")
        highest = start if schedule is None else max(schedule.table()[1])
        gradient_rate = _check_sum(highest, gradient_rate)
        if not 0 <= checks.check_finite(threshold, "threshold", "a float in [0, 1)") < 1:
            raise ValueError(checks.invalid("threshold", "a float in [0, 1)", threshold))
        super().__init__(layer, Mask(Bernoulli(start), "sample+time"), seed=seed, schedule=schedule, **kwargs)
        self.threshold = float(threshold)
        self.prefer = checks.check_choice(prefer, "prefer", PREFERENCES)
        self.straight_through = checks.check_bool(straight_through, "straight_through")
        self.calibration = checks.check_choice(calibration, "calibration", CALIBRATIONS)
        self._gradient_rate = self._variable("gradient_rate", np.float32(gradient_rate))

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        if self._follows_gradient:
            self.gradient = self.add_weight(
                name="gradient",
                shape=(2, *self.layer.kernel.shape),
                dtype="float32",
                initializer="zeros",
                autocast=False,
                overwrite_with_gradient=True,
                aggregation="sum",  # of replicas, whose losses Keras divides by their number
            )

    def checked_rate(self, rate: typing.Any) -> float:
        rate = super().checked_rate(rate)
        if rate + self.gradient_rate > checks.HIGHEST_RATE:
            expected = f"a float below 1 - {self.gradient_rate}, since rate + gradient_rate is a drop rate below 1"
            raise ValueError(checks.invalid("rate", expected, rate))
        return rate

    @property
    def gradient_rate(self) -> float:
        """The present gradient rate. Setting it takes effect from the next call, compiled or not."""
        return float(str(keras.ops.convert_to_numpy(self._gradient_rate)))  # the shortest number it is the float32 of

    @gradient_rate.setter
    def gradient_rate(self, gradient_rate: float) -> None:
        highest = typing.cast(float, self.rate) if self.schedule is None else max(self.schedule.table()[1])
        self._gradient_rate.assign(_check_sum(highest, gradient_rate))

    @property
    def is_stochastic(self) -> bool:
        """Whether either of the rates is above zero, or there is a schedule."""
        return self.gradient_rate > 0 or super().is_stochastic

    def call_with_noise(self, inputs: Tensor, field: Field, samples: Words) -> Tensor:
        product = product_of(self.layer, len(inputs.shape))
        return with_kernel(self.layer, inputs, self.masked_kernel(product, field))

    def masked_kernel(self, product: Contraction | Convolution, field: Field) -> Tensor:
        kernel = float_kernel(self.layer)
        dtype, kernel = keras.backend.standardize_dtype(kernel.dtype), at_least_float32(kernel)
        mask = keras.ops.stop_gradient(xp.astype(self._mask(product, kernel, field), xp.dtype(kernel)))
        noted = xp.zeros_like(kernel)
        if self._follows_gradient:
            gradient = keras.ops.convert_to_tensor(self.gradient)
            both = xp.astype(gradient - keras.ops.stop_gradient(gradient), xp.dtype(kernel))
            noted = both[0] - both[1]  # zero, whose slopes make the gradient and minus it the weight's "gradient"
        if self.straight_through:
            masked = kernel + keras.ops.stop_gradient(kernel * mask - kernel) + noted
        else:
            masked = (kernel + noted) * mask
        return xp.astype(masked, dtype)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "base_rate": self.rate_config,
            "gradient_rate": self.gradient_rate,
            "threshold": self.threshold,
            "prefer": self.prefer,
            "straight_through": self.straight_through,
            "calibration": self.calibration,
        }

    @property
    def _follows_gradient(self) -> bool:
        return self.prefer.endswith("gradient")

    def _mask(self, product: Contraction | Convolution, kernel: Tensor, field: Field) -> Tensor:
        """The mask, float32, in the kernel's shape."""
        strength = keras.ops.maximum(self.gradient[0], self.gradient[1]) if self._follows_gradient else xp.abs(kernel)
        rise = xp.asarray(self._gradient_rate.value) * self._preference(xp.astype(strength, "float32"))
        noise = typing.cast(Bernoulli, field.noise)
        probability = noise.rounded(self.keep_probability(field) - rise, xp)
        keep = self._chances(product, kernel, field) < probability
        if self.calibration == "layer":
            ones = xp.astype(keep, "float32")
            mask = ones / (keras.ops.mean(ones) + TINY)
        else:
            mask = xp.where(keep, 1 / xp.where(keep, probability, 1.0), xp.zeros_like(probability))
        if not self._follows_gradient:
            return mask
        return xp.where(keras.ops.any(strength > 0), mask, xp.ones_like(mask))  # all zero: none was noted yet

    def _preference(self, strength: Tensor) -> Tensor:
        """q, how much more than the others each connection is to be dropped."""
        centred = strength - keras.ops.mean(strength)
        spread = keras.ops.sqrt(keras.ops.sum(centred * centred) / max(1, math.prod(centred.shape) - 1))
        z = centred / (spread + TINY)
        q = keras.ops.sigmoid(-z if self.prefer.startswith("small") else z)
        return xp.where(q > self.threshold, q, xp.zeros_like(q))

    def _chances(self, product: Contraction | Convolution, kernel: Tensor, field: Field) -> Tensor:
        """The chances of the connections of one sample, float32, in the kernel's shape."""
        groups, inputs, outputs = product.matrices(kernel).shape
        zero, in_, out = (xp.arange(size, like=kernel) for size in (1, groups * inputs, outputs))
        words = field.words(0, zero, zero, in_[:, None], out, xp)
        chances = xp.reshape(typing.cast(Bernoulli, field.noise).chances(words, xp), (groups, inputs, outputs))
        return product.kernel(chances, kernel.shape)


def _check_sum(base_rate: float, gradient_rate: float) -> float:
    expected = f"a float from zero and below 1 - {base_rate}, since base_rate + gradient_rate is a drop rate below 1"
    value = checks.check_finite(gradient_rate, "gradient_rate", expected)
    if value < 0 or base_rate + value > checks.HIGHEST_RATE:
        raise ValueError(checks.invalid("gradient_rate", expected, gradient_rate))
    return value

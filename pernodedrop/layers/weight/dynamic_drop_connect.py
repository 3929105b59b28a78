"""DynamicDropConnect: connections are dropped at rates that follow their last gradients (arXiv 2502.19948)."""

import math
import typing

import keras
import numpy as np

from pernodedrop import checks, schedules
from pernodedrop._types import Config, Shape, Tensor, Words
from pernodedrop.layers.base.inner import Product, float_kernel, product_of, with_kernel
from pernodedrop.layers.base.noisy import at_least_float32, xp
from pernodedrop.layers.base.weight_noise import WeightNoise
from pernodedrop.mask import Field, Mask
from pernodedrop.noise import Bernoulli
from pernodedrop.schedules import Schedule

PREFERENCES = ("small_gradient", "big_gradient", "small_weight", "big_weight")
RISES = ("gradient_rate", "weight_rate")  # of the first preference and of the second
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

    With a preference for weights beside that for gradients, as the authors' code has it, weight_rate * q of v = |W| is
    added to p. Until an update has noted a gradient nothing is dropped. The bias is never dropped; inference is the
    inner layer.

    The layer sees its gradient in any training loop whose Keras optimizer applies the gradients of all
    `trainable_variables`, `fit` among them. It does so by a float32 weight `gradient`, two of the kernel's shape, the
    gradient and minus it, which the optimizer overwrites: no learning rate, clipping, weight decay or momentum applies
    to it, and it adds nothing to the norms that gradients are clipped by. A frozen layer stays with the gradient that
    it last noted. A scaled loss scales it, to no effect on z. With `gradient_accumulation_steps` v is the largest
    |dL/dW~| of the accumulated batches (Keras' rule, which keeps maxima, is why minus the gradient is noted too).
    Replicas of a MirroredStrategy note the gradient of the whole batch. The preferences for weights need none of this.

    Args:
        layer: the inner layer, of one of the kinds that `pernodedrop.PerNodeDrop` takes, but no Embedding and no
            transposed or separable convolution.
        base_rate: drop rate of every connection, a float in [0, 1) or a schedule of `pernodedrop.schedules`; 0.3, the
            authors'. It is the layer's `rate`, which can be set at any time.
        gradient_rate: what the drop rate rises by as q goes to 1, a float from zero; 0.5, the authors'. It can be set
            at any time. base_rate + gradient_rate is below 1.
        threshold: q up to which it counts as 0, a float in [0, 1); at 0.5 connections below the mean of v have q > 0.
        prefer: what is dropped more often. "small_gradient" is the paper; "big_gradient" has q = sigmoid(z);
            "small_weight" and "big_weight" have v = |W|, from the first batch on. One for gradients and one for
            weights, joined by "+" as in "small_gradient+small_weight", have a q each, with a rate of its own.
        straight_through: whether dL/dW is dL/dW~, so that dropped connections learn too, as the authors' code does.
            False differentiates the mask: a dropped connection has gradient 0, therefore the greatest q of the next
            batch, and is dropped again more often than not (with probability 0.63, for normal gradients).
        calibration: "layer" divides by r, so that E[W~] is 1.37 W for connections with q = 0 and 0.6 W to 0.9 W for the
            others (normal gradients); "edge" divides each connection by its own 1 - p, so that E[W~] = W.
        weight_rate: beside two preferences, what the drop rate rises by as the q of the weights goes to 1, a float from
            zero, which can be set at any time; gradient_rate is that of the gradients then, and the sum with both is
            below 1. None with one preference, whose rate is gradient_rate.
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
        weight_rate: float | None = None,
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        start, schedule = schedules.get(base_rate, "base_rate")
        highest = start if schedule is None else max(schedule.table()[1])
        rates = {"base_rate": highest}
        rates["gradient_rate"] = _check_rise(gradient_rate, "gradient_rate", rates)
        self._preferences = _parse(prefer)
        if (weight_rate is None) == (len(self._preferences) == 2):
            expected = "a float beside two preferences, None beside one, whose rate is gradient_rate"
            raise ValueError(checks.invalid("weight_rate", expected, weight_rate))
        if weight_rate is not None:
            rates["weight_rate"] = _check_rise(weight_rate, "weight_rate", rates)
        if not 0 <= checks.check_finite(threshold, "threshold", "a float in [0, 1)") < 1:
            raise ValueError(checks.invalid("threshold", "a float in [0, 1)", threshold))
        super().__init__(layer, Mask(Bernoulli(start), "sample+time"), seed=seed, schedule=schedule, **kwargs)
        self.threshold = float(threshold)
        self.prefer = prefer
        self.straight_through = checks.check_bool(straight_through, "straight_through")
        self.calibration = checks.check_choice(calibration, "calibration", CALIBRATIONS)
        self._gradient_rate = self._variable("gradient_rate", np.float32(rates["gradient_rate"]))
        if weight_rate is not None:
            self._weight_rate = self._variable("weight_rate", np.float32(rates["weight_rate"]))

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
        rate, rises = super().checked_rate(rate), self._rises
        if rate + sum(rises.values()) > checks.HIGHEST_RATE:
            total = f"{sum(rises.values()):g}, since {' + '.join(['rate', *rises])}"
            raise ValueError(checks.invalid("rate", f"a float below 1 - {total} is a drop rate below 1", rate))
        return rate

    @property
    def gradient_rate(self) -> float:
        """The present gradient rate. Setting it takes effect from the next call, compiled or not."""
        return _number(self._gradient_rate)

    @gradient_rate.setter
    def gradient_rate(self, gradient_rate: float) -> None:
        self._gradient_rate.assign(_check_rise(gradient_rate, "gradient_rate", self._rates))

    @property
    def weight_rate(self) -> float | None:
        """The present rate of the weights beside that of the gradients, None where there is one preference. It is set
        as `gradient_rate` is."""
        return self._rises.get("weight_rate")

    @weight_rate.setter
    def weight_rate(self, weight_rate: float) -> None:
        if self.weight_rate is None:
            raise AttributeError(f"Layer {self.name!r} has one preference, {self.prefer!r}: its rate is gradient_rate.")
        self._weight_rate.assign(_check_rise(weight_rate, "weight_rate", self._rates))

    @property
    def is_stochastic(self) -> bool:
        """Whether any of the rates is above zero, or there is a schedule."""
        return any(self._rises.values()) or super().is_stochastic

    def call_with_noise(self, inputs: Tensor, field: Field, samples: Words) -> Tensor:
        product = product_of(self.layer, len(inputs.shape))
        return with_kernel(self.layer, inputs, self.masked_kernel(product, field))

    def masked_kernel(self, product: Product, field: Field) -> Tensor:
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
            **self._rises,
            "threshold": self.threshold,
            "prefer": self.prefer,
            "straight_through": self.straight_through,
            "calibration": self.calibration,
        }

    @property
    def _rises(self) -> dict[str, float]:
        """The present rates of the preferences, by name."""
        return {name: _number(getattr(self, f"_{name}")) for name, _ in zip(RISES, self._preferences, strict=False)}

    @property
    def _rates(self) -> dict[str, float]:
        """All rates by name, the highest of a schedule."""
        base = typing.cast(float, self.rate) if self.schedule is None else max(self.schedule.table()[1])
        return {"base_rate": base, **self._rises}

    @property
    def _follows_gradient(self) -> bool:
        return "gradient" in self._preferences[0]

    def _mask(self, product: Product, kernel: Tensor, field: Field) -> Tensor:
        """The mask, float32, in the kernel's shape."""
        strengths = {"weight": xp.abs(kernel)}
        if self._follows_gradient:
            strengths["gradient"] = keras.ops.maximum(self.gradient[0], self.gradient[1])
        keep = self.keep_probability(field)
        for name, (size, of) in zip(RISES, self._preferences, strict=False):
            q = self._preference(xp.astype(strengths[of], "float32"), size)
            keep = keep - xp.asarray(getattr(self, f"_{name}").value) * q
        probability = typing.cast(Bernoulli, field.noise).rounded(keep, xp)
        keep = self._chances(product, kernel, field) < probability
        if self.calibration == "layer":
            ones = xp.astype(keep, "float32")
            mask = ones / (keras.ops.mean(ones) + TINY)
        else:
            mask = xp.where(keep, 1 / xp.where(keep, probability, 1.0), xp.zeros_like(probability))
        if not self._follows_gradient:
            return mask
        noted = keras.ops.any(strengths["gradient"] > 0)
        return xp.where(noted, mask, xp.ones_like(mask))

    def _preference(self, strength: Tensor, size: str) -> Tensor:
        """q, how much more than the others each connection is to be dropped."""
        centred = strength - keras.ops.mean(strength)
        spread = keras.ops.sqrt(keras.ops.sum(centred * centred) / max(1, math.prod(centred.shape) - 1))
        z = centred / (spread + TINY)
        q = keras.ops.sigmoid(-z if size == "small" else z)
        return xp.where(q > self.threshold, q, xp.zeros_like(q))

    def _chances(self, product: Product, kernel: Tensor, field: Field) -> Tensor:
        """The chances of the connections of one sample, float32, in the kernel's shape."""
        groups, inputs, outputs = product.matrices(kernel).shape
        zero, in_, out = (xp.arange(size, like=kernel) for size in (1, groups * inputs, outputs))
        words = field.words(0, zero, zero, in_[:, None], out, xp)
        chances = xp.reshape(typing.cast(Bernoulli, field.noise).chances(words, xp), (groups, inputs, outputs))
        return product.kernel(chances, kernel.shape)


def _parse(prefer: str) -> tuple[tuple[str, str], ...]:
    """What is preferred, ("small" or "big", "gradient" or "weight"), gradients first."""
    names = prefer.split("+") if isinstance(prefer, str) else [prefer]
    parts = sorted((checks.check_choice(name, "prefer", PREFERENCES).split("_") for name in names), key=lambda p: p[1])
    if len({of for _, of in parts}) < len(parts):
        expected = "one for gradients, one for weights, or both joined as in 'small_gradient+small_weight'"
        raise ValueError(checks.invalid("prefer", expected, prefer))
    return tuple((size, of) for size, of in parts)


def _check_rise(value: typing.Any, name: str, rates: dict[str, float]) -> float:
    """The rate of a preference, beside the other rates, or an error."""
    others = {other: rate for other, rate in rates.items() if other != name}
    total = f"{sum(others.values()):g}, since {' + '.join([*others, name])}"
    expected = f"a float from zero and below 1 - {total} is a drop rate below 1"
    value = checks.check_finite(value, name, expected)
    if value < 0 or sum(others.values()) + value > checks.HIGHEST_RATE:
        raise ValueError(checks.invalid(name, expected, value))
    return value


def _number(variable: keras.Variable) -> float:
    """The shortest number that a variable is the float32 of."""
    return float(str(keras.ops.convert_to_numpy(variable)))

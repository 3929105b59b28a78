"""DynamicDropConnect: connections are dropped at rates that follow their last gradients (arXiv 2502.19948)."""

import dataclasses
import typing

import keras

from pernodedrop import checks, preferences
from pernodedrop._types import Config, Shape, Tensor, Words
from pernodedrop.layers.base.inner import Product, float_kernel, product_of, with_kernel
from pernodedrop.layers.base.noisy import at_least_float32, xp
from pernodedrop.layers.base.weight_noise import WeightNoise
from pernodedrop.mask import Field
from pernodedrop.preferences import DynamicRates
from pernodedrop.schedules import Schedule


@keras.saving.register_keras_serializable("pernodedrop")
class DynamicDropConnect(DynamicRates, WeightNoise):
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
    it last noted, and so does one whose step is left out by `keras.optimizers.LossScaleOptimizer` for an inf or a NaN;
    without that optimizer such a gradient has q = 0 until the next one. A scaled loss scales v, with no effect on z
    while std(v) is far above 1e-9. With `gradient_accumulation_steps` v is the largest |dL/dW~| of the accumulated
    batches (Keras' rule, which keeps maxima, is why minus the gradient is noted too).
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
        found = preferences.checked(base_rate, gradient_rate, threshold, prefer, calibration, weight_rate)
        super().__init__(layer, found.mask, seed=seed, schedule=found.schedule, **kwargs)
        self.preferences = found.preferences
        self.straight_through = checks.check_bool(straight_through, "straight_through")
        for name, value in found.rises.items():
            setattr(self, f"_{name}", self._variable(name, value))

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        if self.preferences.follow_gradients:
            self.gradient = self.add_weight(
                name="gradient",
                shape=(2, *self.layer.kernel.shape),
                dtype="float32",
                initializer="zeros",
                autocast=False,
                overwrite_with_gradient=True,
                aggregation="sum",  # of replicas, whose losses Keras divides by their number
            )

    def rises_on_host(self, argument: str = "gradient_rate") -> dict[str, float]:
        return {name: float(str(keras.ops.convert_to_numpy(rise))) for name, rise in self._rises().items()}

    def put_rise(self, name: str, value: float) -> None:
        self._rises()[name].assign(preferences.check_rise(value, name, self.rates()))

    def call_with_noise(self, inputs: Tensor, field: Field, samples: Words) -> Tensor:
        product = product_of(self.layer, len(inputs.shape))
        return with_kernel(self.layer, inputs, self.masked_kernel(product, field))

    def masked_kernel(self, product: Product, field: Field) -> Tensor:
        kernel = float_kernel(self.layer)
        dtype, kernel = keras.backend.standardize_dtype(kernel.dtype), at_least_float32(kernel)
        mask = keras.ops.stop_gradient(xp.astype(self._mask(product, kernel, field), xp.dtype(kernel)))
        noted = xp.zeros_like(kernel)
        if self.preferences.follow_gradients:
            gradient = keras.ops.convert_to_tensor(self.gradient)
            gradient = keras.ops.where(keras.ops.isfinite(gradient), gradient, 0.0)  # inf - inf is NaN, for ever
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
            **self.rises_on_host(),
            **dataclasses.asdict(self.preferences),
            "straight_through": self.straight_through,
        }

    def _mask(self, product: Product, kernel: Tensor, field: Field) -> Tensor:
        """The mask, float32, in the kernel's shape."""
        sizes = None
        if self.preferences.follow_gradients:
            sizes = product.matrices(keras.ops.maximum(self.gradient[0], self.gradient[1]))
        rises = {name: xp.asarray(rise.value) for name, rise in self._rises().items()}
        mask = self.preferences.mask(product.matrices(kernel), sizes, rises, field, xp)
        return product.kernel(mask, kernel.shape)

    def _rises(self) -> dict[str, keras.Variable]:
        """The variables of the rates of the preferences, by name."""
        return {name: getattr(self, f"_{name}") for name in self.preferences.rises}

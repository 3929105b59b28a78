"""DropConnect: Bernoulli noise on the connections of a layer (Wan et al., ICML 2013)."""

import typing

import keras

from pernodedrop import checks, schedules
from pernodedrop._types import Config, Sharing, Tensor, Words
from pernodedrop.layers.base.activation_noise import apply_mask
from pernodedrop.layers.base.contraction import Contraction
from pernodedrop.layers.base.inner import (
    STAGES,
    Product,
    activation_of,
    as_channels,
    bias_of,
    channel_axis,
    copy_of,
    float_kernel,
    kernel_of,
    moments,
    safe_sqrt,
    tensor_of,
    with_activity_loss,
    with_kernel,
)
from pernodedrop.layers.base.noisy import xp
from pernodedrop.layers.base.weight_noise import MaskedProduct
from pernodedrop.mask import Field
from pernodedrop.modules import mask_of_drop_connect
from pernodedrop.noise import normal
from pernodedrop.schedules import Schedule

INFERENCES = ("mean", "gaussian")
BLOCK = 32
"""Normal numbers of a unit that are in memory at a time."""


@keras.saving.register_keras_serializable("pernodedrop")
class DropConnect(MaskedProduct):
    """Drops connections of a layer, by default the same ones for a whole batch (Wan et al., ICML 2013).

    The defaults are DropConnect as libraries have it: one mask a batch, what is kept is scaled by 1 / (1 - rate) in
    training, the bias is never dropped, and inference is the inner layer itself. `DropConnect.as_published(layer)` is
    what the paper and its code do: with keep = 1 - rate, an input v, and masks M and m of each sample,

        training:   y = a((M * W) v + m * b), M and m in {0, 1}
        inference:  the mean of a(N(keep (W v + b), rate keep (W**2 v**2 + b**2))) over `inference_samples` draws

    Args:
        layer: the inner layer, of one of the kinds that `pernodedrop.PerNodeDrop` takes.
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`; 0.5. The keep of inference is that of the
            next update.
        sharing: "sample+time", or None: one mask a batch. "time": one mask a sample, which is binary PerNodeDrop.
        mask_bias: whether entries of the bias are dropped too, as a further input that is 1: their in coordinate is the
            one after the kernel's last and their out coordinate is row-major over the bias. `sharing` has "time" then.
        scaling: "inverted" divides by keep in training. "none" does not, and multiplies by keep at inference the
            kernel and, with `mask_bias`, the bias.
        inference: "mean" is the layer with its mean kernel and bias, a(E y). "gaussian" estimates E a(y) for y normal
            with the mean and variance that it has in training: the paper's, with either scaling. Where the layer has
            no activation the two are one, and it is computed as "mean".
        inference_samples: the draws of the Gaussian inference, 100, which is a choice of ours. Its error has the
            standard deviation of a(y) over the square root of them.
        seed, method, persistence, **kwargs: as for `pernodedrop.PerNodeDrop`; beside `persistence` a sharing of None is
            "sample".

    The draws of the Gaussian inference are functions of the layer's seed, the number of the draw and the place along
    the axis of channels alone, the same for all samples, positions and calls: a prediction does not depend on the
    batch that it was made in, and is repeatable. The variance is that of one position by itself.

    Weights that were pretrained without dropping are too small for `scaling="none"` by the factor keep;
    `scale_pretrained()` makes up for it, as the paper on Dropout does (JMLR 15, 2014). Inverted scaling needs nothing.

    Others use the name otherwise: keras-uncertainty drops at inference too, and EfficientNet's "drop_connect" is
    stochastic depth.

    Call arguments, shapes and dtypes: as for `pernodedrop.PerNodeDrop`. Gaussian inference is computed in float32.

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
        sharing: Sharing = None,
        mask_bias: bool = False,
        scaling: str = "inverted",
        inference: str = "mean",
        inference_samples: int = 100,
        seed: int | None = None,
        method: str = "auto",
        persistence: float | Schedule | None = None,
        **kwargs: typing.Any,
    ) -> None:
        start, slow = schedules.get_persistence(persistence)
        mask, schedule = mask_of_drop_connect(rate, sharing, mask_bias, scaling, start)
        super().__init__(layer, mask, seed=seed, method=method, schedule=schedule, persistence=slow, **kwargs)
        self.mask_bias, self.scaling = bool(mask_bias), scaling
        if isinstance(layer, tuple(STAGES)) and (scaling, inference) != ("inverted", "mean"):
            expected = "'inverted' beside inference='mean' around a layer with two kernels"
            raise ValueError(checks.invalid("scaling", expected, scaling))
        self.inference = checks.check_choice(inference, "inference", INFERENCES)
        self.inference_samples = checks.check_count(inference_samples, "inference_samples")

    @classmethod
    def as_published(cls, layer: keras.layers.Layer, rate: float | Schedule = 0.5, **kwargs: typing.Any) -> typing.Self:
        """DropConnect as the paper has it: masks of each sample, on the bias too, not inverted, Gaussian inference.

        Args:
            layer, rate: those of `DropConnect`.
            **kwargs: `inference_samples`, `seed`, `method` and those of `keras.layers.Layer`.

        >>> import keras, pernodedrop as pnd
        >>> layer = pnd.DropConnect.as_published(keras.layers.Dense(4, activation="relu"), seed=1)
        >>> layer.mask_bias, layer.scaling, layer.inference
        (True, 'none', 'gaussian')
        """
        return cls(layer, rate, sharing="time", mask_bias=True, scaling="none", inference="gaussian", **kwargs)

    def call_without_noise(self, inputs: Tensor) -> Tensor:
        if self.scaling == "inverted" and not self.is_sampled:
            return super().call_without_noise(inputs)
        inputs = self.taken(inputs)
        field = self.peek(xp.device(inputs))
        if self.is_sampled:
            return self._mean_activation(inputs, field)
        kernel, bias = self._mean_weights(field)
        return with_kernel(self.layer, inputs, kernel, None if bias is None else bias[None])

    @property
    def is_sampled(self) -> bool:
        """Whether inference draws: a Gaussian's mean through an activation."""
        return self.inference == "gaussian" and activation_of(self.layer) not in (None, keras.activations.linear)

    def scale_pretrained(self) -> None:
        """Divide the kernel and, with `mask_bias`, the bias by keep, so that at inference the layer is what it was.

        Call it once, on weights that were trained without dropping, before training with `scaling="none"`.

        Raises:
            ValueError: inverted scaling, which needs none; or a layer with LoRA, quantized, or not built.
        """
        if self.scaling == "inverted":
            raise ValueError(checks.invalid("scaling", "'none': what is inverted needs no other weights", self.scaling))
        if not self.built or getattr(self.layer, "lora_enabled", False) or self.layer.quantization_mode is not None:
            raise ValueError(checks.invalid("layer", "a built layer without LoRA and not quantized", self.layer))
        keep = xp.to_numpy(self.keep_probability(self.peek(None)))
        kernel = kernel_of(self.layer)
        kernel.assign(kernel / keep)
        if self.mask_bias and bias_of(self.layer) is not None:
            self.layer.bias.assign(self.layer.bias / keep)

    def fold(self) -> keras.layers.Layer:
        """A plain Keras layer, built, with weights of its own, that computes what this layer does at inference.

        Raises:
            ValueError: a layer that is not built, or Gaussian inference, which is a mean over draws.
        """
        if self.is_sampled:
            expected = "'mean' to be folded: a mean of activations over draws is no one plain layer"
            raise ValueError(checks.invalid("inference", expected, self.inference))
        if self.scaling == "inverted" or not self.built:
            return super().fold()
        return copy_of(self.layer, *self._mean_weights(self.peek(None)), dtype=self.dtype_policy)

    def multiply(self, x: Tensor, w: Tensor, field: Field, samples: Words) -> Tensor:
        return self.masked_product(x, self._scaled(w, field), field, samples)

    def masked_kernel(self, product: Product, field: Field) -> Tensor:
        return self._scaled(super().masked_kernel(product, field), field)

    def bias(self, product: Product, field: Field, samples: Words) -> Tensor | None:
        if not self.mask_bias or bias_of(self.layer) is None:
            return None
        bias = keras.ops.reshape(self.layer.bias, (1, -1))
        groups, inputs, _ = product.matrices(float_kernel(self.layer)).shape
        if isinstance(product, Contraction) and "sample" not in self.sharing and product.y[0] != product.batch:
            expected = "an equation whose output has the batch letter first, beside mask_bias=True"
            raise ValueError(checks.invalid("layer", expected, product.equation))
        mask = self.state.bias_mask(bias, groups * inputs, field, samples, xp)
        masked = keras.ops.reshape(apply_mask(bias, mask), (-1, *self.layer.bias.shape))
        return self._scaled(masked, field)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "rate": self.rate_config,
            "sharing": sorted(self.sharing),
            "persistence": self.persistence_config,
            "mask_bias": self.mask_bias,
            "scaling": self.scaling,
            "inference": self.inference,
            "inference_samples": self.inference_samples,
        }

    def _scaled(self, weights: Tensor, field: Field) -> Tensor:
        """Weights times keep, where nothing is inverted."""
        return weights if self.scaling == "inverted" else apply_mask(weights, self.keep_probability(field))

    def _mean_weights(self, field: Field) -> tuple[Tensor, Tensor | None]:
        """The mean of kernel and bias in training; a bias of None is the layer's own."""
        kernel = self._scaled(float_kernel(self.layer), field)
        if not self.mask_bias or bias_of(self.layer) is None:
            return kernel, None
        return kernel, self._scaled(tensor_of(self.layer.bias), field)

    def _mean_activation(self, inputs: Tensor, field: Field) -> Tensor:
        """The mean of activation(y) for y normal with the moments that it has in training."""
        mean, variance = moments(self.layer, inputs)
        keep = xp.astype(self.keep_probability(field), xp.dtype(mean))
        scale = 1 if self.scaling == "inverted" else keep
        unmasked = 0
        if bias_of(self.layer) is not None:
            bias = as_channels(self.layer, mean, keras.ops.cast(self.layer.bias, mean.dtype)[None])
            if self.mask_bias:
                mean, variance = mean + bias, variance + bias * bias
            else:
                unmasked = bias
        y = self._mean_over_draws(scale * mean + unmasked, scale * xp.sqrt(1 / keep - 1) * safe_sqrt(variance), field)
        return with_activity_loss(self.layer, keras.ops.cast(y, self.compute_dtype))

    def _mean_over_draws(self, mean: Tensor, spread: Tensor, field: Field) -> Tensor:
        """The mean of activation(mean + spread * z) over the draws of z, some of them at a time."""
        seed, call = field.key
        field = Field(field.noise, field.params, (seed, xp.zeros_like(call)))  # the same z at all times
        axis = channel_axis(self.layer, len(mean.shape))
        shape = [-1, *(1 for _ in mean.shape)]
        shape[axis + 1] = channels = mean.shape[axis]
        zero, out = xp.arange(1, like=mean), xp.arange(channels, like=mean)
        total = keras.ops.zeros_like(mean)
        for start in range(0, self.inference_samples, BLOCK):
            draw = xp.arange(self.inference_samples, like=mean)[start : start + BLOCK]
            z = normal(xp.uniform(field.words(field.noise.lanes, zero, draw[:, None], zero, out, xp)), xp)
            z = xp.astype(xp.reshape(z, shape), xp.dtype(mean))
            total = total + keras.ops.sum(self.layer.activation(mean[None] + spread[None] * z), axis=0)
        return total / self.inference_samples

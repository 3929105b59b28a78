"""The inner layer of a wrapper: which kinds take noise, their kernel, and what surrounds their product."""

import typing

import keras

from pernodedrop import checks
from pernodedrop._types import Tensor
from pernodedrop.internals import of_keras
from pernodedrop.layers.base.contraction import Contraction
from pernodedrop.layers.base.convolution import Convolution, TransposedConvolution
from pernodedrop.layers.base.lookup import Lookup
from pernodedrop.layers.base.noisy import at_least_float32, check_size

Product: typing.TypeAlias = Contraction | Convolution | Lookup

PRODUCTS: dict[type[keras.layers.Layer], type[Product]] = {
    keras.layers.Dense: Contraction,
    keras.layers.EinsumDense: Contraction,
    keras.layers.Conv1D: Convolution,
    keras.layers.Conv2D: Convolution,
    keras.layers.Conv3D: Convolution,
    keras.layers.DepthwiseConv1D: Convolution,
    keras.layers.DepthwiseConv2D: Convolution,
    keras.layers.Conv1DTranspose: TransposedConvolution,
    keras.layers.Conv2DTranspose: TransposedConvolution,
    keras.layers.Conv3DTranspose: TransposedConvolution,
    keras.layers.Embedding: Lookup,
}
"""The kinds of layers with a kernel that noise can be put on, and what computes their product with it."""

STAGES: dict[type[keras.layers.Layer], tuple[type[keras.layers.Layer], type[keras.layers.Layer]]] = {
    keras.layers.SeparableConv1D: (keras.layers.DepthwiseConv1D, keras.layers.Conv1D),
    keras.layers.SeparableConv2D: (keras.layers.DepthwiseConv2D, keras.layers.Conv2D),
}
"""Kinds with two kernels, and those of the layers that compute, one after the other, the same."""

CONTRACTIONS = tuple(kind for kind, product in PRODUCTS.items() if product is Contraction)
CONVOLUTIONS = tuple(kind for kind, product in PRODUCTS.items() if product is Convolution)
LOOKUPS = tuple(kind for kind, product in PRODUCTS.items() if product is Lookup)
KINDS = CONTRACTIONS + CONVOLUTIONS
"""Those that every wrapper goes around."""

TINY = 1e-30
"""Variances from here down count as 0: quotients by them would leave float32."""

ADVICE = "attention takes it through pernodedrop.NoisyAttention, a recurrent layer through pernodedrop.NoisyRNN"


def check_layer(layer: keras.layers.Layer, kinds: tuple[type[keras.layers.Layer], ...] = KINDS) -> keras.layers.Layer:
    """Return `layer` if noise can be put on its kernel, or raise."""
    kind = next((kind for kind in kinds if isinstance(layer, kind)), None)
    if kind is None or type(layer).call is not kind.call:
        *names, last = [kind.__name__ for kind in kinds]
        expected = f"a keras.layers.{', '.join(names)} or {last}, whose kernel takes noise ({ADVICE})"
        raise TypeError(checks.invalid("layer", expected, layer))
    return layer


def product_of(layer: keras.layers.Layer, rank: int) -> Product:
    """The product of a layer with its kernel, for an input of `rank`."""
    return next(product for kind, product in PRODUCTS.items() if isinstance(layer, kind))(layer, rank)


def stages_of(layer: keras.layers.Layer) -> dict[str, keras.layers.Layer]:
    """The layers of one kernel that compute what a layer does, one after another, by the names that it has for these.

    They are the layer itself, or views of parts of one, which share its variables.
    """
    kinds = next((stages for kind, stages in STAGES.items() if isinstance(layer, kind)), None)
    if kinds is None:
        return {of_keras.name_of_kernel(layer): layer}
    nothing_after: dict[str, typing.Any] = {"use_bias": False}
    nothing_after |= dict.fromkeys(("bias", "activation", "activity_regularizer"))
    ones = (1,) * layer.rank
    of_places: dict[str, typing.Any] = {"kernel_size": ones, "strides": ones, "dilation_rate": ones, "groups": 1}
    return {
        "depthwise_kernel": of_keras.as_kind(layer, kinds[0], layer.depthwise_kernel, **nothing_after),
        "pointwise_kernel": of_keras.as_kind(layer, kinds[1], layer.pointwise_kernel, **of_places, padding="valid"),
    }


def kernel_of(layer: keras.layers.Layer) -> typing.Any:
    """The kernel that noise is put on, which an Embedding calls otherwise: the variable, or with LoRA a tensor."""
    return getattr(layer, of_keras.name_of_kernel(layer))


def bias_of(layer: keras.layers.Layer) -> typing.Any:
    """The bias of a layer, None where it has none."""
    return getattr(layer, "bias", None)


def activation_of(layer: keras.layers.Layer) -> typing.Any:
    """The activation of a layer, None where it has none."""
    return getattr(layer, "activation", None)


def check_inputs(layer: keras.layers.Layer, inputs: Tensor) -> None:
    """Raise unless inputs have the rank of those that a layer was built for, and their sizes along its kernel."""
    if isinstance(layer, LOOKUPS):
        return  # which takes ids in any shape
    built, shape = layer.get_build_config()["input_shape"], tuple(inputs.shape)
    if isinstance(layer, CONTRACTIONS):
        product, first = Contraction(layer, len(shape)), Contraction(layer, len(built))
        of = dict(zip(first.x, built, strict=True))
        sizes = {axis: of[c] for axis, c in enumerate(product.x) if c in product.kernel_letters}
    elif len(shape) == len(built):
        axis = channel_axis(layer, len(shape))
        sizes = {axis: built[axis]}
    else:
        raise ValueError(checks.invalid("inputs", f"rank {len(built)}", shape))
    for axis, size in sizes.items():
        check_size(inputs, axis, size)


def float_kernel(layer: keras.layers.Layer) -> Tensor:
    """The kernel that the layer multiplies by, in floating point: LoRA added, int8 undone.

    Raises:
        NotImplementedError: a layer quantized to another mode.
    """
    mode = getattr(layer, "quantization_mode", None)
    if mode is None:
        return tensor_of(kernel_of(layer))
    if mode != "int8" or not isinstance(layer, CONTRACTIONS):
        raise NotImplementedError(
            f"Layer {layer.name!r} is quantized to {mode!r}; noise on a kernel goes with no quantization, or with "
            "'int8' of a Dense or EinsumDense. For inference quantize what `pernodedrop.fold` makes of the model."
        )
    kernel = of_keras.int8_kernel(layer)
    if layer.lora_enabled:
        low_rank = keras.ops.matmul(layer.lora_kernel_a, layer.lora_kernel_b)
        kernel = kernel + keras.ops.cast(layer.lora_alpha / layer.lora_rank * low_rank, layer.compute_dtype)
    return kernel


def tensor_of(variable: Tensor) -> Tensor:
    """A variable as a tensor, in the dtype it has here; on TensorFlow, `convert_to_tensor` would give it back."""
    return keras.ops.cast(variable, variable.dtype)


def bias_and_activation(layer: keras.layers.Layer, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """What the layer does after its product: bias, activation, and the loss of its activity regularizer.

    Args:
        layer: the inner layer.
        y: its product, channels where the layer has them.
        bias: instead of the layer's, one for each sample: (batch or 1, *the shape of the layer's).
    """
    if bias is None and bias_of(layer) is not None:
        bias = keras.ops.expand_dims(tensor_of(layer.bias), 0)
    if bias is not None:
        y = keras.ops.add(y, as_channels(layer, y, bias))
    if activation_of(layer) is not None:
        y = layer.activation(y)
    return with_activity_loss(layer, y)


def with_kernel(layer: keras.layers.Layer, inputs: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """What the layer would give with another kernel than its own, and with another bias unless that is None."""
    return bias_and_activation(layer, product_with(layer, inputs, kernel), bias)


def product_with(layer: keras.layers.Layer, inputs: Tensor, kernel: Tensor) -> Tensor:
    """The product of inputs with a kernel, as the layer itself computes it: no bias, no activation."""
    without = {"lora_enabled": False, "bias": None, "use_bias": False, "activation": None}
    return type(layer).call(of_keras.with_kernel(layer, kernel, **without), inputs)


def moments(layer: keras.layers.Layer, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """x W and x**2 W**2, in float32 at least.

    They are the mean of a product whose kernel has noise of mean 1 and, times the noise's variance, its variance.
    """
    x, w = at_least_float32(inputs), at_least_float32(float_kernel(layer))
    return product_with(layer, x, w), product_with(layer, keras.ops.multiply(x, x), w * w)


def safe_sqrt(x: Tensor) -> Tensor:
    """The square root of numbers from 0, with slope 0 instead of infinity where they are 0."""
    positive = x > TINY
    return keras.ops.where(positive, keras.ops.sqrt(keras.ops.where(positive, x, 1)), 0)


def with_activity_loss(layer: keras.layers.Layer, y: Tensor) -> Tensor:
    """y, whose activity regularizer's loss the layer takes note of."""
    if layer.activity_regularizer is not None:
        loss = layer.activity_regularizer(y)
        layer.add_loss(loss / keras.ops.cast(keras.ops.shape(y)[0], loss.dtype))  # a mean, as Keras has it
    return y


def copy_of(
    layer: keras.layers.Layer,
    kernel: Tensor | None = None,
    bias: Tensor | None = None,
    dtype: typing.Any = None,
) -> keras.layers.Layer:
    """A built layer of the same kind with equal weights, or with others.

    Args:
        layer: a built layer.
        kernel: instead of its own; None leaves everything as it is.
        bias: instead of its own, beside a kernel.
        dtype: the policy of the wrapper, which has its compute dtype where the layer's own has another.

    Raises:
        NotImplementedError: another kernel for a quantized layer.
    """
    config = layer.get_config()
    if dtype is not None and dtype.compute_dtype != layer.compute_dtype:
        config["dtype"] = f"{mode}_from_{dtype.name}" if (mode := layer.quantization_mode) else dtype
    if kernel is None:
        again = type(layer).from_config(config)
        again.build_from_config(layer.get_build_config())
        again.set_weights(layer.get_weights())
        return again
    if getattr(layer, "quantization_mode", None) is not None:
        raise NotImplementedError(f"Layer {layer.name!r} is quantized; fold its model before it is quantized.")
    config.pop("lora_rank", None)  # LoRA is in the kernel that was handed in
    again = type(layer).from_config(config)
    again.build_from_config(layer.get_build_config())
    kernel_of(again).assign(kernel)
    if bias_of(layer) is not None:
        again.bias.assign(layer.bias if bias is None else bias)
    return again


def as_channels(layer: keras.layers.Layer, y: Tensor, bias: Tensor) -> Tensor:
    """A bias for each sample in a shape that is added to y."""
    between = (1,) * (len(y.shape) - len(bias.shape))
    if not between:
        return bias
    batch, *own = keras.ops.shape(bias)
    first = channel_axis(layer, len(y.shape)) == 1
    return keras.ops.reshape(bias, (batch, *own, *between) if first else (batch, *between, *own))


def channel_axis(layer: keras.layers.Layer, rank: int) -> int:
    """The axis of the channels of the layer's input of `rank`, and of a convolution's output."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1

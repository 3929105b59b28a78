"""What a convolution computes, in the rows x in x out form of the mask.

A convolution is a product of patches with a kernel, the same at all positions of its output. The mask's coordinates are
time: positions of the output, row-major. out: channels of the output within a group.
in: row-major over (group, position in the kernel, channel within the group).
A depthwise convolution has a group for each channel of its input. A transposed one is a convolution of its input with
zeros between the entries, by the kernel turned round: its positions in the kernel are counted from the other end.
"""

import collections.abc
import math

import keras

from pernodedrop import checks
from pernodedrop._types import Shape, Tensor
from pernodedrop.backends.methods import Window
from pernodedrop.layers.base.contraction import Operands
from pernodedrop.layers.base.noisy import xp
from pernodedrop.state import Patches


class Convolution:
    """The product of a convolution.

    Args:
        layer: a built Conv1D, Conv2D, Conv3D, DepthwiseConv1D or DepthwiseConv2D layer.
        rank: that of its input, which the layer knows.
    """

    def __init__(self, layer: keras.layers.Layer, rank: int | None = None) -> None:
        self.layer = layer
        self.depthwise = isinstance(layer, keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D)
        self.channels_first = layer.data_format == "channels_first"

    def operands(self, x: Tensor, kernel: Tensor) -> Operands:
        """As `Contraction.operands`, but x is `Patches`."""
        if self.channels_first:
            x = keras.ops.moveaxis(x, 1, -1)
        if None in x.shape[1:]:
            raise ValueError(checks.invalid("inputs", "known sizes, but for the batch's", tuple(x.shape)))
        w = self.matrices(kernel)
        batch, (groups, _, outputs) = keras.ops.shape(x)[0], w.shape
        seen, window = self._seen(x)

        def restore(y: Tensor) -> Tensor:
            y = keras.ops.transpose(y, (1, 2, 0, 3))
            y = keras.ops.reshape(y, (batch, *window.outputs, groups * outputs))
            return keras.ops.moveaxis(y, -1, 1) if self.channels_first else y

        return Operands(Patches(seen, window, lambda: window.patches(seen, groups, keras.ops.stack, xp)), w, restore)

    def matrices(self, kernel: Tensor) -> Tensor:
        """A tensor of the kernel's shape as (group, in, out)."""
        *size, channels, outputs = kernel.shape
        positions = math.prod(size)
        if self.depthwise:
            return keras.ops.transpose(keras.ops.reshape(kernel, (positions, channels, outputs)), (1, 0, 2))
        groups = self.layer.groups
        kernel = keras.ops.reshape(kernel, (positions * channels, groups, outputs // groups))
        return keras.ops.transpose(kernel, (1, 0, 2))

    def kernel(self, matrices: Tensor, shape: Shape) -> Tensor:
        """A tensor of the kernel's `shape` from (group, in, out)."""
        return keras.ops.reshape(keras.ops.transpose(matrices, (1, 0, 2)), shape)

    def _seen(self, x: Tensor) -> tuple[Tensor, Window]:
        """x (batch, *space, channel) with its zeros around, and how the layer sees it."""
        layer = self.layer
        size, stride, dilation = layer.kernel_size, layer.strides, layer.dilation_rate
        reach = [d * (k - 1) + 1 for k, d in zip(size, dilation, strict=True)]
        padding = [_padding(layer.padding, *each) for each in zip(x.shape[1:-1], reach, stride, strict=True)]
        x = padded(x, [(0, 0), *padding, (0, 0)])
        outputs = tuple((n - r) // s + 1 for n, r, s in zip(x.shape[1:-1], reach, stride, strict=True))
        if min(outputs) < 1:
            raise ValueError(checks.invalid("inputs", f"sizes from {tuple(reach)} with padding", tuple(x.shape)))
        return x, Window(tuple(size), tuple(stride), tuple(dilation), outputs)


class TransposedConvolution(Convolution):
    """The product of a transposed convolution.

    Args:
        layer: a built Conv1DTranspose, Conv2DTranspose or Conv3DTranspose layer.
        rank: that of its input, which the layer knows.
    """

    def matrices(self, kernel: Tensor) -> Tensor:
        *size, outputs, channels = kernel.shape
        kernel = keras.ops.reshape(_turned(kernel), (math.prod(size), outputs, channels))
        return keras.ops.reshape(keras.ops.transpose(kernel, (0, 2, 1)), (1, math.prod(size) * channels, outputs))

    def kernel(self, matrices: Tensor, shape: Shape) -> Tensor:
        *size, outputs, channels = shape
        kernel = keras.ops.reshape(matrices, (math.prod(size), channels, outputs))
        return _turned(keras.ops.reshape(keras.ops.transpose(kernel, (0, 2, 1)), shape))

    def _seen(self, x: Tensor) -> tuple[Tensor, Window]:
        layer, (_, *sizes, channels) = self.layer, x.shape
        shape = (1, channels, *sizes) if self.channels_first else (1, *sizes, channels)
        outputs = layer.compute_output_shape(shape)
        outputs = tuple(outputs[2:] if self.channels_first else outputs[1:-1])
        widths = []
        for n, out, k, s, d in zip(sizes, outputs, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True):
            reach = d * (k - 1) + 1
            zeros = out + reach - 1 - ((n - 1) * s + 1)
            before = reach - 1 if layer.padding == "valid" else min((zeros + 1) // 2, reach - 1)
            widths.append((before, zeros - before))
        x = padded(_spread(x, layer.strides), [(0, 0), *widths, (0, 0)])
        ones = (1,) * len(sizes)
        return x, Window(tuple(layer.kernel_size), ones, tuple(layer.dilation_rate), outputs)


def _turned(kernel: Tensor) -> Tensor:
    """A kernel (*size, ., .) from its other end."""
    return keras.ops.flip(kernel, tuple(range(len(kernel.shape) - 2)))


def _spread(x: Tensor, strides: collections.abc.Sequence[int]) -> Tensor:
    """x (batch, *space, channel) with stride - 1 zeros between entries that are beside each other in space."""
    for axis, stride in enumerate(strides, 1):
        if stride > 1:
            shape = list(keras.ops.shape(x))
            x = padded(keras.ops.expand_dims(x, axis + 1), [(0, 0)] * (axis + 1) + [(0, stride - 1)])
            x = keras.ops.reshape(x, (*shape[:axis], shape[axis] * stride, *shape[axis + 1 :]))
            x = x[(slice(None),) * axis + (slice(1 - stride),)]
    return x


def padded(x: Tensor, widths: collections.abc.Iterable[tuple[int, int]]) -> Tensor:
    """`keras.ops.pad` with zeros, which torch.compile can trace."""
    for axis, width in enumerate(widths):
        if any(width):
            shape = list(keras.ops.shape(x))
            before, after = [keras.ops.zeros([*shape[:axis], n, *shape[axis + 1 :]], x.dtype) for n in width]
            x = keras.ops.concatenate([before, x, after], axis)
    return x


def _padding(padding: str, size: int, reach: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis, so that it gives as many outputs as Keras says."""
    if padding == "valid":
        return 0, 0
    if padding == "causal":
        return reach - 1, 0
    total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2

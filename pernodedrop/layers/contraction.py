"""What a wrapped layer computes, in the rows x in x out form of the mask: the place that knows Keras' layers.

A layer that contracts its input with a kernel, adds a bias and applies an activation is described by one equation, such
as "abc,cd->abd". Its letters play five parts:
    batch: the first of x, in the output, not in the kernel: the samples.
    time: in x and the output, not in the kernel: positions.
    in: in x and the kernel, summed. out: in the kernel and the output.
    group: in all three: the kernel is one matrix for each of its values.
The mask's in coordinate is row-major over (group, in) and its out coordinate over out, in the kernel's order of axes.
"""

import collections.abc
import math
import string
import typing

import keras

from pernodedrop import checks
from pernodedrop._types import Tensor


class Contraction:
    """The equation of a layer, and the masked product by it.

    Args:
        layer: a Dense or EinsumDense layer.
        rank: rank of its input.

    Raises:
        TypeError: a layer of another kind.
        ValueError: an equation that has no per-sample form.
    """

    def __init__(self, layer: keras.layers.Layer, rank: int) -> None:
        self.equation = _equation(layer, rank)
        terms, self.y = self.equation.split("->")
        self.x, self.kernel = terms.split(",")
        self.batch = self.x[0]
        self._refuse_without_per_sample_form()
        x, kernel, y = self.x[1:], self.kernel, self.y
        self.time = [c for c in x if c not in kernel]
        self.group = [c for c in kernel if c in x and c in y]
        self.in_ = [c for c in kernel if c in x and c not in y]
        self.out = [c for c in kernel if c not in x]

    def __call__(self, x: Tensor, kernel: Tensor, multiply: typing.Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
        """The product, where multiply(x, w, in_offset) does it for x (batch, [time,] in) and w (in, out)."""
        size = {
            **dict(zip(self.x, keras.ops.shape(x), strict=True)),
            **dict(zip(self.kernel, kernel.shape, strict=True)),
        }
        for letter in [*self.group, *self.in_]:
            axis = self.x.index(letter)
            if x.shape[axis] not in (None, size[letter]):  # None: known to the run only
                expected = f"{size[letter]} along axis {axis}, as the kernel {tuple(kernel.shape)} has"
                raise ValueError(checks.invalid("inputs", expected, tuple(x.shape)))
        # lists rather than generators, which torch.compile cannot trace into math.prod
        groups, inputs, outputs = [math.prod([size[c] for c in part]) for part in (self.group, self.in_, self.out)]

        x = _arrange(x, self.x, [*self.group, self.batch, *self.time, *self.in_])
        kernel = _arrange(kernel, self.kernel, [*self.group, *self.in_, *self.out])
        times = [math.prod([size[c] for c in self.time])] if self.time else []
        x = keras.ops.reshape(x, (groups, size[self.batch], *times, inputs))
        kernel = keras.ops.reshape(kernel, (groups, inputs, outputs))

        y = [multiply(x[n], kernel[n], n * inputs) for n in range(groups)]
        y = y[0] if groups == 1 else keras.ops.stack(y)
        letters = [*self.group, self.batch, *self.time, *self.out]
        return _arrange(keras.ops.reshape(y, [size[c] for c in letters]), letters, self.y)

    def _refuse_without_per_sample_form(self) -> None:
        def refuse(why: str) -> typing.NoReturn:
            raise ValueError(
                f"The equation {self.equation!r} has no per-sample form: {why}. Expected a batch letter that comes "
                "first in x, stands in the output and not in the kernel, and no letter that stands in one term only."
            )

        if self.batch in self.kernel:
            refuse(f"the kernel has the batch letter {self.batch!r}, so a sample has a kernel of its own already")
        if self.batch not in self.y:
            refuse(f"the output sums over the batch letter {self.batch!r}")
        for term in (self.x, self.kernel, self.y):
            if len(set(term)) < len(term):
                refuse(f"the term {term!r} repeats a letter")
        for letter in set(self.x + self.kernel + self.y):
            if [letter in term for term in (self.x, self.kernel, self.y)].count(True) == 1:
                refuse(f"{letter!r} stands in one term only")


def float_kernel(layer: keras.layers.Layer) -> Tensor:
    """The kernel that the layer multiplies by, in floating point: LoRA added, int8 undone.

    Raises:
        NotImplementedError: a layer quantized to another mode.
    """
    if layer.quantization_mode is None:
        return keras.ops.convert_to_tensor(layer.kernel)
    if layer.quantization_mode != "int8":
        raise NotImplementedError(
            f"Layer {layer.name!r} is quantized to {layer.quantization_mode!r}; noise on a kernel goes with no "
            "quantization or with 'int8'. Take the inner layer `.layer` for inference."
        )
    # `layer.kernel` would be the raw int8 numbers here
    scale = keras.ops.cast(layer.kernel_scale, layer.compute_dtype)
    if isinstance(layer, keras.layers.EinsumDense):
        scale = layer._adjust_scale_for_dequant(scale)  # puts the axes of the scale where the kernel has them
    kernel = keras.ops.cast(layer._kernel, layer.compute_dtype) / scale
    if layer.lora_enabled:
        low_rank = keras.ops.matmul(layer.lora_kernel_a, layer.lora_kernel_b)
        kernel = kernel + keras.ops.cast(layer.lora_alpha / layer.lora_rank * low_rank, layer.compute_dtype)
    return kernel


def finish(layer: keras.layers.Layer, y: Tensor) -> Tensor:
    """What the layer does after its product: bias, activation, and the loss of its activity regularizer."""
    if layer.bias is not None:
        y = keras.ops.add(y, layer.bias)
    if layer.activation is not None:
        y = layer.activation(y)
    if layer.activity_regularizer is not None:
        loss = layer.activity_regularizer(y)
        layer.add_loss(loss / keras.ops.cast(keras.ops.shape(y)[0], loss.dtype))  # a mean, as Keras has it
    return y


def check_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Return `layer` if noise can be put on its kernel, or raise."""
    kinds = (keras.layers.Dense, keras.layers.EinsumDense)
    kind = next((kind for kind in kinds if isinstance(layer, kind)), None)
    if kind is None or type(layer).call is not kind.call:
        raise TypeError(checks.invalid("layer", "a keras.layers.Dense or EinsumDense, whose kernel takes noise", layer))
    return layer


def _equation(layer: keras.layers.Layer, rank: int) -> str:
    if isinstance(layer, keras.layers.Dense):
        middle = string.ascii_lowercase[1 : rank - 1]
        return f"a{middle}y,yz->a{middle}z"
    equation = layer.equation.replace(" ", "")
    if "..." not in equation:
        return equation
    x = equation.split(",")[0]
    free = rank - len(x.replace("...", ""))
    unused = [c for c in string.ascii_letters if c not in equation]
    return equation.replace("...", "".join(unused[:free]))


def _arrange(tensor: Tensor, letters: collections.abc.Iterable[str], wanted: collections.abc.Iterable[str]) -> Tensor:
    axes = [list(letters).index(c) for c in wanted]
    return tensor if axes == sorted(axes) else keras.ops.transpose(tensor, axes)

"""What a Dense or EinsumDense layer computes, in the rows x in x out form of the mask.

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
from pernodedrop._types import Shape, Tensor


class Operands(typing.NamedTuple):
    """A layer's product in the form of the mask.

    Attributes:
        x: (group, batch, [time,] in); of a convolution the `pernodedrop.state.Patches`.
        w: the kernel, (group, in, out).
        restore: makes the layer's output, before bias and activation, of a product (group, batch, [time,] out).
    """

    x: Tensor
    w: Tensor
    restore: typing.Callable[[Tensor], Tensor]


class Contraction:
    """The equation of a layer, and its product in the form of the mask.

    Args:
        layer: a Dense or EinsumDense layer.
        rank: rank of its input.

    Raises:
        TypeError: a layer of another kind.
        ValueError: an equation that has no per-sample form, or one of another rank.
    """

    def __init__(self, layer: keras.layers.Layer, rank: int) -> None:
        self.equation = _equation(layer, rank)
        terms, self.y = self.equation.split("->")
        self.x, self.kernel_letters = terms.split(",")
        if len(self.x) != rank or rank < 2:
            expected = f"samples first, and the axes of {self.equation!r}"
            raise ValueError(checks.invalid("inputs", expected, f"rank {rank}"))
        self.batch = self.x[0]
        self._refuse_without_per_sample_form()
        x, kernel, y = self.x[1:], self.kernel_letters, self.y
        self.time = [c for c in x if c not in kernel]
        self.group = [c for c in kernel if c in x and c in y]
        self.in_ = [c for c in kernel if c in x and c not in y]
        self.out = [c for c in kernel if c not in x]

    def operands(self, x: Tensor, kernel: Tensor) -> Operands:
        """The layer's input and a tensor of its kernel's shape as operands, and the way back for their product."""
        size = self._sizes(x, kernel)
        x = _arrange(x, self.x, [*self.group, self.batch, *self.time, *self.in_])
        times = [math.prod([size[c] for c in self.time])] if self.time else []
        w = self.matrices(kernel)
        groups, inputs, _ = w.shape
        letters = [*self.group, self.batch, *self.time, *self.out]

        def restore(y: Tensor) -> Tensor:
            return _arrange(keras.ops.reshape(y, [size[c] for c in letters]), letters, self.y)

        return Operands(keras.ops.reshape(x, (groups, size[self.batch], *times, inputs)), w, restore)

    def matrices(self, kernel: Tensor) -> Tensor:
        """A tensor of the kernel's shape as (group, in, out)."""
        size = dict(zip(self.kernel_letters, kernel.shape, strict=True))
        kernel = _arrange(kernel, self.kernel_letters, [*self.group, *self.in_, *self.out])
        # lists rather than generators, which torch.compile cannot trace into math.prod
        shape = [math.prod([size[c] for c in part]) for part in (self.group, self.in_, self.out)]
        return keras.ops.reshape(kernel, shape)

    def kernel(self, matrices: Tensor, shape: Shape) -> Tensor:
        """A tensor of the kernel's `shape` from (group, in, out)."""
        letters = [*self.group, *self.in_, *self.out]
        size = dict(zip(self.kernel_letters, shape, strict=True))
        return _arrange(keras.ops.reshape(matrices, [size[c] for c in letters]), letters, self.kernel_letters)

    def _sizes(self, x: Tensor, kernel: Tensor) -> dict[str, typing.Any]:
        return {
            **dict(zip(self.x, keras.ops.shape(x), strict=True)),
            **dict(zip(self.kernel_letters, kernel.shape, strict=True)),
        }

    def _refuse_without_per_sample_form(self) -> None:
        def refuse(why: str) -> typing.NoReturn:
            raise ValueError(
                f"The equation {self.equation!r} has no per-sample form: {why}. Expected a batch letter that comes "
                "first in x, stands in the output and not in the kernel, and no letter that stands in one term only."
            )

        if self.batch in self.kernel_letters:
            refuse(f"the kernel has the batch letter {self.batch!r}, so a sample has a kernel of its own already")
        if self.batch not in self.y:
            refuse(f"the output sums over the batch letter {self.batch!r}")
        for term in (self.x, self.kernel_letters, self.y):
            if len(set(term)) < len(term):
                refuse(f"the term {term!r} repeats a letter")
        for letter in set(self.x + self.kernel_letters + self.y):
            if [letter in term for term in (self.x, self.kernel_letters, self.y)].count(True) == 1:
                refuse(f"{letter!r} stands in one term only")


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

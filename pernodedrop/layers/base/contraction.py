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
import functools
import math
import string
import typing

import keras

from pernodedrop import checks
from pernodedrop._types import Shape, Tensor
from pernodedrop.internals import of_torch


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
        parts = _parts(self.equation, rank)
        self.x, self.kernel_letters, self.y, self.batch = parts.x, parts.kernel, parts.y, parts.x[0]
        self.time, self.group, self.in_, self.out = parts.time, parts.group, parts.in_, parts.out

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


class _Parts(typing.NamedTuple):
    """The terms of an equation, and the letters that play each part."""

    x: str
    kernel: str
    y: str
    time: tuple[str, ...]
    group: tuple[str, ...]
    in_: tuple[str, ...]
    out: tuple[str, ...]


@of_torch.constant_in_graphs
def _parts(equation: str, rank: int) -> _Parts:
    return _found_parts(equation, rank)


@functools.cache  # each call of a layer asks
def _found_parts(equation: str, rank: int) -> _Parts:
    terms, y = equation.split("->")
    x, kernel = terms.split(",")
    if len(x) != rank or rank < 2:
        raise ValueError(checks.invalid("inputs", f"samples first, and the axes of {equation!r}", f"rank {rank}"))
    _refuse_without_per_sample_form(equation, x, kernel, y)
    return _Parts(
        *(x, kernel, y),
        time=tuple(c for c in x[1:] if c not in kernel),
        group=tuple(c for c in kernel if c in x and c in y),
        in_=tuple(c for c in kernel if c in x and c not in y),
        out=tuple(c for c in kernel if c not in x),
    )


def _refuse_without_per_sample_form(equation: str, x: str, kernel: str, y: str) -> None:
    def refuse(why: str) -> typing.NoReturn:
        raise ValueError(
            f"The equation {equation!r} has no per-sample form: {why}. Expected a batch letter that comes "
            "first in x, stands in the output and not in the kernel, and no letter that stands in one term only."
        )

    batch = x[0]
    if batch in kernel:
        refuse(f"the kernel has the batch letter {batch!r}, so a sample has a kernel of its own already")
    if batch not in y:
        refuse(f"the output sums over the batch letter {batch!r}")
    for term in (x, kernel, y):
        if len(set(term)) < len(term):
            refuse(f"the term {term!r} repeats a letter")
    for letter in set(x + kernel + y):
        if [letter in term for term in (x, kernel, y)].count(True) == 1:
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

"""What Linear and Conv compute, in the rows x in x out form of the mask: the coordinates are those of Keras.

For Linear the mask's in is the input feature, its out the output feature, its time the position, row-major over the
axes between first and last. A convolution is a product of patches; time: positions of the output, row-major. out:
channels of the output within a group. in: row-major over (group, position in the kernel, channel within the group).
"""

import types
import typing

import jax
from flax import nnx
from jax import numpy as jnp

from pernodedrop import checks
from pernodedrop.backends.methods import Window
from pernodedrop.modules import Restore
from pernodedrop.nnx.noisy import xp
from pernodedrop.state import Patches

FORM = ("use_bias", "dtype", "param_dtype", "precision", "promote_dtype", "preferred_element_type")


class Product(nnx.Module):
    """Base of what a module with a `kernel` and a `bias` computes; `plain` is the class of NNX that it is one of."""

    plain: typing.ClassVar[typing.Any]
    own_product: typing.ClassVar[tuple[str, typing.Any]]
    """The argument by which a product of one's own is given, and the default, which is the one with noise."""

    form: typing.ClassVar[tuple[str, ...]]
    """The arguments of the constructor that are attributes too."""

    kernel: typing.Any
    bias: typing.Any
    dtype: typing.Any
    precision: typing.Any
    promote_dtype: typing.Any
    preferred_element_type: typing.Any

    def own_kernel(self) -> jax.Array:
        """The kernel that the plain module computes with."""
        return self.kernel[...]

    def with_weight(self, x: jax.Array, weight: jax.Array, bias: jax.Array | None) -> jax.Array:
        """What the plain module gives with another of this kernel, and another bias."""
        attributes = {**vars(self), "kernel": weight, "bias": bias, "mask": None}
        return self.plain.__call__(types.SimpleNamespace(**attributes), x)

    def check_form(self) -> None:
        """Raise where the plain module computes what noise is not defined for."""

    def is_batched(self, x: jax.Array) -> bool:
        """Whether the first axis of an input is that of samples; NNX takes one sample without it."""
        raise NotImplementedError(f"{type(self).__name__} must define `is_batched`")


class LinearProduct(Product):
    """What an `nnx.Linear` computes."""

    plain, form = nnx.Linear, ("in_features", "out_features", *FORM)
    own_product = ("dot_general", jax.lax.dot_general)
    in_features: int
    out_features: int

    def operands(self, x: jax.Array) -> tuple[jax.Array, Restore]:
        if x.shape[-1] != self.in_features:
            raise ValueError(checks.invalid("inputs", f"{self.in_features} features in the last axis", x.shape))
        rows = x.reshape(x.shape[0], -1, x.shape[-1]) if x.ndim > 3 else x
        return rows[None], lambda y: y[0].reshape(*x.shape[:-1], self.out_features)

    def matrices(self, weight: jax.Array) -> jax.Array:
        return weight[None]

    def from_matrices(self, matrices: jax.Array) -> jax.Array:
        return matrices[0]

    def is_batched(self, x: jax.Array) -> bool:
        return x.ndim > 1

    def as_channels(self, bias: jax.Array, y: jax.Array) -> jax.Array:
        return bias.reshape(bias.shape[0], *(1 for _ in y.shape[1:-1]), bias.shape[1])


class ConvProduct(Product):
    """What an `nnx.Conv` computes."""

    plain = nnx.Conv
    form = (
        *("in_features", "out_features", "kernel_size", "strides", "padding", "input_dilation", "kernel_dilation"),
        *("feature_group_count", "mask", *FORM),
    )
    own_product = ("conv_general_dilated", jax.lax.conv_general_dilated)
    in_features: int
    out_features: int
    kernel_size: tuple[int, ...]
    strides: typing.Any
    padding: typing.Any
    input_dilation: typing.Any
    kernel_dilation: typing.Any
    feature_group_count: int
    mask: typing.Any = None  # NNX' own, of the kernel; which mask the noise has say `noise`, `sharing` and `regime`

    def check_form(self) -> None:
        if {*self._each(self.input_dilation)} != {1}:
            expected = "1 in a module with noise"
            raise ValueError(checks.invalid("input_dilation", expected, self.input_dilation))

    def own_kernel(self) -> jax.Array:
        return self.kernel[...] if self.mask is None else self.kernel[...] * self.mask

    def operands(self, x: jax.Array) -> tuple[Patches, Restore]:
        if x.ndim != len(self.kernel_size) + 2 or x.shape[-1] != self.in_features:
            expected = f"(batch, *space, {self.in_features}) with {len(self.kernel_size)} axes of space"
            raise ValueError(checks.invalid("inputs", expected, x.shape))
        size, groups = self.kernel_size, self.feature_group_count
        stride, dilation = self._each(self.strides), self._each(self.kernel_dilation)
        x = self._padded(x)
        reach = [step * (n - 1) + 1 for n, step in zip(size, dilation, strict=True)]
        sizes = tuple([(n - r) // s + 1 for n, r, s in zip(x.shape[1:-1], reach, stride, strict=True)])
        if min(sizes) < 1:
            raise ValueError(checks.invalid("inputs", f"sizes from {tuple(reach)} with padding", x.shape))
        window = Window(size, stride, dilation, sizes)

        def restore(y: jax.Array) -> jax.Array:
            return y.transpose(1, 2, 0, 3).reshape(len(x), *sizes, self.out_features)

        return Patches(x, window, lambda: window.patches(x, groups, jnp.stack, xp)), restore

    def matrices(self, weight: jax.Array) -> jax.Array:
        groups = self.feature_group_count
        return weight.reshape(-1, groups, self.out_features // groups).transpose(1, 0, 2)

    def from_matrices(self, matrices: jax.Array) -> jax.Array:
        return matrices.transpose(1, 0, 2).reshape(self.kernel.shape)

    def is_batched(self, x: jax.Array) -> bool:
        return x.ndim > len(self.kernel_size) + 1

    def as_channels(self, bias: jax.Array, y: jax.Array) -> jax.Array:
        return bias.reshape(bias.shape[0], *(1 for _ in self.kernel_size), bias.shape[1])

    def _each(self, value: typing.Any) -> tuple[int, ...]:
        """A number for each axis of space, as NNX reads one."""
        if value is None or isinstance(value, int):
            return (1 if value is None else value,) * len(self.kernel_size)
        return tuple(value)

    def _padded(self, x: jax.Array) -> jax.Array:
        """The input with what `padding` has around it, as NNX reads it."""
        size, stride, dilation = self.kernel_size, self._each(self.strides), self._each(self.kernel_dilation)
        reach = [step * (n - 1) + 1 for n, step in zip(size, dilation, strict=True)]
        modes = {"CIRCULAR": "wrap", "REFLECT": "reflect"}
        if self.padding in modes:
            widths = [((r - 1) // 2, r // 2) for r in reach]
        elif self.padding == "CAUSAL":
            widths = [(reach[0] - 1, 0)]
        elif isinstance(self.padding, str):
            widths = jax.lax.padtype_to_pads(x.shape[1:-1], reach, stride, self.padding)
        elif isinstance(self.padding, int):
            widths = [(self.padding, self.padding)] * len(size)
        else:
            widths = [(pad, pad) if isinstance(pad, int) else tuple(pad) for pad in self.padding]
        mode = modes.get(self.padding, "constant") if isinstance(self.padding, str) else "constant"
        return jnp.pad(x, [(0, 0), *widths, (0, 0)], mode=mode)

"""What Linear and convolutions compute, in the rows x in x out form of the mask: the coordinates are those of Keras.

Everything here is of a batch, (batch, ...); calls are a batch of one. For Linear the mask's in is the input feature,
its out the output feature. A convolution is a product of patches; time: positions of the output, row-major. out:
channels of the output within a group. in: row-major over (group, position in the kernel, channel within the group).
"""

import typing

import equinox as eqx
import jax
from jax import numpy as jnp

from pernodedrop import checks
from pernodedrop.backends.methods import Window
from pernodedrop.equinox.noisy import xp
from pernodedrop.modules import Restore
from pernodedrop.state import Patches


class Product(eqx.Module):
    """Base of what a module with a `weight` and a `bias` computes; `plain` is the class of Equinox that it is."""

    plain: typing.ClassVar[typing.Any]
    form: typing.ClassVar[tuple[str, ...]]
    """The arguments of Equinox' constructor that are attributes too."""

    if typing.TYPE_CHECKING:  # else it would be a field
        weight: typing.Any
        bias: typing.Any

    @classmethod
    def form_of(cls, module: typing.Any) -> dict[str, typing.Any]:
        """The arguments that make a module of the form of another."""
        return {**{name: getattr(module, name) for name in cls.form}, "dtype": module.weight.dtype}

    def with_weight(self, x: jax.Array, weight: jax.Array, bias: jax.Array | None) -> jax.Array:
        """What the plain module gives with another weight and bias."""
        other = with_leaves(self, weight, bias)
        return jax.vmap(lambda row: self.plain.__call__(other, row))(x)

    def check_form(self) -> None:
        """Raise where the plain module computes what noise is not defined for."""


class LinearProduct(Product):
    """What an `equinox.nn.Linear` computes."""

    plain: typing.ClassVar[typing.Any] = eqx.nn.Linear
    form: typing.ClassVar[tuple[str, ...]] = ("in_features", "out_features", "use_bias")
    if typing.TYPE_CHECKING:
        in_features: typing.Any
        out_features: typing.Any

    def check_form(self) -> None:
        for name in ("in_features", "out_features"):
            if getattr(self, name) == "scalar":
                raise ValueError(checks.invalid(name, "a number in a module with noise", "scalar"))

    def operands(self, x: jax.Array) -> tuple[jax.Array, Restore]:
        if x.ndim != 2 or x.shape[-1] != self.in_features:
            expected = f"shape ({self.in_features},): one sample, and more of them by jax.vmap"
            raise ValueError(checks.invalid("x", expected, x.shape[1:]))
        return x[None], lambda y: y[0]

    def matrices(self, weight: jax.Array) -> jax.Array:
        return weight.T[None]

    def from_matrices(self, matrices: jax.Array) -> jax.Array:
        return matrices[0].T

    def as_channels(self, bias: jax.Array, y: jax.Array) -> jax.Array:
        return bias


class ConvProduct(Product):
    """What an `equinox.nn.Conv` computes."""

    plain: typing.ClassVar[typing.Any] = eqx.nn.Conv
    form: typing.ClassVar[tuple[str, ...]] = (
        *("num_spatial_dims", "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
        *("use_bias", "padding_mode"),
    )
    if typing.TYPE_CHECKING:
        num_spatial_dims: int
        in_channels: int
        out_channels: int
        kernel_size: tuple[int, ...]
        stride: tuple[int, ...]
        dilation: tuple[int, ...]
        groups: int
        padding: typing.Any
        padding_mode: str

    def operands(self, x: jax.Array) -> tuple[Patches, Restore]:
        if x.ndim != self.num_spatial_dims + 2 or x.shape[1] != self.in_channels:
            expected = f"shape ({self.in_channels}, *space) with {self.num_spatial_dims} axes of space: one sample"
            raise ValueError(checks.invalid("x", expected, x.shape[1:]))
        size, stride, dilation, groups = self.kernel_size, self.stride, self.dilation, self.groups
        reach = [step * (n - 1) + 1 for n, step in zip(size, dilation, strict=True)]
        x = jnp.moveaxis(self._padded(x, reach), 1, -1)
        sizes = tuple([(n - r) // s + 1 for n, r, s in zip(x.shape[1:-1], reach, stride, strict=True)])
        if min(sizes) < 1:
            raise ValueError(checks.invalid("x", f"sizes from {tuple(reach)} with padding", x.shape[1:-1]))
        window = Window(size, stride, dilation, sizes)

        def restore(y: jax.Array) -> jax.Array:
            return y.transpose(1, 0, 3, 2).reshape(len(x), self.out_channels, *sizes)

        return Patches(x, window, lambda: window.patches(x, groups, jnp.stack, xp)), restore

    def matrices(self, weight: jax.Array) -> jax.Array:
        w = weight.reshape(self.groups, self.out_channels // self.groups, weight.shape[1], -1)
        return w.transpose(0, 3, 2, 1).reshape(self.groups, -1, self.out_channels // self.groups)

    def from_matrices(self, matrices: jax.Array) -> jax.Array:
        each = self.in_channels // self.groups
        w = matrices.reshape(self.groups, -1, each, self.out_channels // self.groups)
        return w.transpose(0, 3, 2, 1).reshape(self.weight.shape)

    def as_channels(self, bias: jax.Array, y: jax.Array) -> jax.Array:
        return bias.reshape(*bias.shape, *(1 for _ in self.kernel_size))

    def _padded(self, x: jax.Array, reach: list[int]) -> jax.Array:
        """The input with what `padding` has around it, as Equinox reads it."""
        widths = self.padding
        if isinstance(widths, str):
            widths = jax.lax.padtype_to_pads(x.shape[2:], reach, self.stride, widths)
        modes = {"ZEROS": "constant", "REFLECT": "reflect", "REPLICATE": "edge", "CIRCULAR": "wrap"}
        return jnp.pad(x, [(0, 0), (0, 0), *widths], mode=modes[self.padding_mode])


def with_leaves(module: typing.Any, weight: jax.Array, bias: jax.Array | None) -> typing.Any:
    """A module with another weight and, unless it has none, bias, (out,)."""
    module = eqx.tree_at(lambda one: one.weight, module, weight)
    if bias is None:
        return module
    return eqx.tree_at(lambda one: one.bias, module, bias.reshape(module.bias.shape))

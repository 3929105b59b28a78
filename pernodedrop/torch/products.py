"""What Linear and convolutions compute, in the rows x in x out form of the mask: the coordinates are those of Keras.

For Linear the mask's in is the input feature, its out the output feature, its time the position, row-major over the
axes between first and last. A convolution is a product of patches; time: positions of the output, row-major. out:
channels of the output within a group. in: row-major over (group, position in the kernel, channel within the group).
"""

import collections.abc
import math
import operator
import typing

import torch
from torch.nn import functional as F
from torch.nn.utils import parametrize

from pernodedrop import checks
from pernodedrop.backends.methods import Window
from pernodedrop.internals import of_torch
from pernodedrop.modules import Restore
from pernodedrop.rules import is_plain
from pernodedrop.state import Patches

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Form(torch.nn.Module):
    """Base of modules that are one of a class of torch, `plain`, too."""

    plain: typing.ClassVar[type[torch.nn.Module]]
    form: typing.ClassVar[tuple[str, ...]]
    """The arguments of its constructor that are attributes too."""

    @classmethod
    def form_of(cls, module: typing.Any) -> dict[str, typing.Any]:
        """The arguments that make a module of the form of another."""
        return {name: getattr(module, name) for name in cls.form}

    @classmethod
    def check_plain(cls, module: typing.Any) -> None:
        """Raise unless a module is one of the class of torch, as that computes it, with parameters of its own."""
        if not is_plain(module, cls.plain, "forward"):
            library = cls.plain.__module__.partition(".")[0]
            name = f"torch.nn.{cls.plain.__name__}" if library == "torch" else f"{library}'s {cls.plain.__name__}"
            expected = f"a {name} without noise, whose `forward` is {library}'s own"
            raise TypeError(checks.invalid("module", expected, module))
        if any(parametrize.is_parametrized(part) for part in module.modules()):
            expected = "a module without parametrizations: parametrize the noisy module instead"
            raise ValueError(checks.invalid("module", expected, module))

    def values_of(self, plain: torch.nn.Module) -> dict[str, torch.Tensor]:
        """What this module has for the parameters of a plain one, by name: where it is parametrized, the values."""
        return {name: operator.attrgetter(name)(self) for name, _ in plain.named_parameters()}

    def share_with(self, plain: torch.nn.Module, leave_out: collections.abc.Collection[str] = ()) -> None:
        """Have a plain module hold what this one holds, but for these names, and values for what is parametrized."""
        with torch.enable_grad():  # which tells what is trainable
            values = self.values_of(plain)
        inner = dict(plain.named_children())
        of_torch.share(self, plain, {"parametrizations", *leave_out})
        for name, child in inner.items():
            if parametrize.is_parametrized(own := self.get_submodule(name)):
                of_torch.share(own, child, {"parametrizations"})
                setattr(plain, name, child)
        for name in values.keys() - dict(self.named_parameters(remove_duplicate=False)).keys():
            put(plain, name, values[name], values[name].requires_grad)


def put(module: torch.nn.Module, name: str, value: torch.Tensor, trainable: bool) -> None:
    """Give a module a parameter of its own with a value."""
    holder, _, attribute = name.rpartition(".")
    parameter = torch.nn.Parameter(value.detach().clone(), requires_grad=trainable)
    setattr(module.get_submodule(holder), attribute, parameter)


class Product(Form):
    """Base of what a module with a `weight` and a `bias` computes."""

    weight: typing.Any
    bias: typing.Any

    @classmethod
    def form_of(cls, module: typing.Any) -> dict[str, typing.Any]:
        return {**super().form_of(module), "bias": module.bias is not None, "dtype": module.weight.dtype}

    def check_batch(self, x: torch.Tensor) -> None:
        """Raise unless a batch fits the module."""
        raise NotImplementedError(f"{type(self).__name__} must define `check_batch`")

    def is_batched(self, x: torch.Tensor) -> bool:
        """Whether the first axis of an input is that of samples; torch takes one sample without it."""
        raise NotImplementedError(f"{type(self).__name__} must define `is_batched`")


class LinearProduct(Product):
    """What a `torch.nn.Linear` computes."""

    plain, form = torch.nn.Linear, ("in_features", "out_features")
    in_features: int
    out_features: int

    def check_batch(self, x: torch.Tensor) -> None:
        if x.shape[-1] != self.in_features:
            raise ValueError(checks.invalid("input", f"{self.in_features} features in the last axis", tuple(x.shape)))

    def operands(self, x: torch.Tensor) -> tuple[torch.Tensor, Restore]:
        shape = x.shape[:-1]
        rows = x.flatten(1, -2) if x.dim() > 3 else x
        return rows.unsqueeze(0), lambda y: y.reshape(*shape, self.out_features)

    def matrices(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.T.unsqueeze(0)

    def from_matrices(self, matrices: torch.Tensor) -> torch.Tensor:
        return matrices[0].T

    def with_weight(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, weight, bias)

    def is_batched(self, x: torch.Tensor) -> bool:
        return x.dim() > 1

    def as_channels(self, bias: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return bias.reshape(bias.shape[0], *(1 for _ in y.shape[1:-1]), bias.shape[1])


class ConvProduct(Product):
    """What a `torch.nn.Conv1d`, `Conv2d` or `Conv3d` computes; a subclass has its number of `dims`."""

    form = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    dims: typing.ClassVar[int]
    in_channels: int
    out_channels: int
    groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str | tuple[int, ...]
    padding_mode: typing.Any

    def check_batch(self, x: torch.Tensor) -> None:
        if x.dim() != self.dims + 2 or x.shape[1] != self.in_channels:
            expected = f"(batch, {self.in_channels} channels, {self.dims} more axes), or one sample of it"
            raise ValueError(checks.invalid("input", expected, tuple(x.shape)))
        if any(n + sum(w) < r for n, w, r in zip(x.shape[2:], self._widths(), self._reach(), strict=True)):
            expected = f"sizes from {tuple(self._reach())} with padding"
            raise ValueError(checks.invalid("input", expected, tuple(x.shape)))

    def operands(self, x: torch.Tensor) -> tuple[Patches, Restore]:
        batch = x.shape[0]
        is_last = self.dims > 1 and x.is_contiguous(memory_format=CHANNELS_LAST[x.dim()]) and not x.is_contiguous()
        x = self._padded(x)
        sizes = tuple([(n - r) // s + 1 for n, r, s in zip(x.shape[2:], self._reach(), self.stride, strict=True)])
        window = Window(self.kernel_size, self.stride, self.dilation, sizes)

        def restore(y: torch.Tensor) -> torch.Tensor:
            y = y.permute(1, 0, 3, 2).reshape(batch, self.out_channels, *sizes)
            return y.contiguous(memory_format=CHANNELS_LAST[y.dim()] if is_last else torch.contiguous_format)

        return Patches(x.movedim(1, -1), window, lambda: self._patches(x)), restore

    def _patches(self, x: torch.Tensor) -> torch.Tensor:
        for axis, (size, stride, step) in enumerate(zip(self.kernel_size, self.stride, self.dilation, strict=True), 2):
            x = x.unfold(axis, step * (size - 1) + 1, stride)[..., ::step]
        # (batch, group, channel, *sizes, *kernel_size)
        x = x.reshape(x.shape[0], self.groups, self.in_channels // self.groups, *x.shape[2:])
        space, window = range(3, 3 + self.dims), range(3 + self.dims, 3 + 2 * self.dims)
        return x.permute(1, 0, *space, *window, 2).flatten(2 + self.dims).flatten(2, 1 + self.dims)

    def matrices(self, weight: torch.Tensor) -> torch.Tensor:
        w = weight.reshape(self.groups, self.out_channels // self.groups, *weight.shape[1:]).flatten(3)
        return w.permute(0, 3, 2, 1).flatten(1, 2)  # (group, position, channel, out)

    def from_matrices(self, matrices: torch.Tensor) -> torch.Tensor:
        positions, channels = math.prod(self.kernel_size), self.in_channels // self.groups
        w = matrices.reshape(self.groups, positions, channels, self.out_channels // self.groups)
        return w.permute(0, 3, 2, 1).reshape(self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def with_weight(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        convolution: typing.Any = CONVOLUTIONS[self.dims]
        if self.padding_mode == "zeros":
            return convolution(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return convolution(self._padded(x), weight, bias, self.stride, 0, self.dilation, self.groups)

    def is_batched(self, x: torch.Tensor) -> bool:
        return x.dim() > self.dims + 1

    def as_channels(self, bias: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return bias.reshape(*bias.shape, *(1 for _ in range(self.dims)))

    def _reach(self) -> list[int]:
        """How many positions the kernel spans, along each axis."""
        return [step * (size - 1) + 1 for size, step in zip(self.kernel_size, self.dilation, strict=True)]

    def _widths(self) -> list[tuple[int, int]]:
        """How many positions are padded before and after, along each axis."""
        if self.padding == "same":
            return [((reach - 1) // 2, reach - 1 - (reach - 1) // 2) for reach in self._reach()]
        return [(0, 0) if self.padding == "valid" else (int(self.padding[axis]),) * 2 for axis in range(self.dims)]

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        widths = [width for pair in reversed(self._widths()) for width in pair]  # as `pad` has it: the last axis first
        if not any(widths):
            return x
        return F.pad(x, widths, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)


class Conv1dProduct(ConvProduct):
    """What a `torch.nn.Conv1d` computes."""

    plain, dims = torch.nn.Conv1d, 1


class Conv2dProduct(ConvProduct):
    """What a `torch.nn.Conv2d` computes."""

    plain, dims = torch.nn.Conv2d, 2


class Conv3dProduct(ConvProduct):
    """What a `torch.nn.Conv3d` computes."""

    plain, dims = torch.nn.Conv3d, 3

"""Weight noise: what noisy modules that are a Linear or a convolution share."""

import collections.abc
import types
import typing

import numpy as np
import torch

from pernodedrop import checks, ops
from pernodedrop._types import Key
from pernodedrop.internals import of_torch
from pernodedrop.mask import Mask
from pernodedrop.modules import WeightModule, check_tensor
from pernodedrop.schedules import Schedule
from pernodedrop.torch.noisy import Noisy, xp
from pernodedrop.torch.products import Form, Product, put


class OfPlain(Noisy, Form):
    """Base of noisy modules that each derive from a plain one's class too."""

    @classmethod
    def from_plain(cls, module: torch.nn.Module, **noise: typing.Any) -> typing.Self:
        """The noisy module of a plain one, whose parameters and hooks it shares.

        Args:
            module: an instance of the class that this one derives from, with that class's own `forward`.
            **noise: the arguments of this class that the plain one has not, such as `rate` and `seed`.

        Raises:
            TypeError, ValueError: a module of another class, or a parametrized one; or an argument that is not as
                described.
        """
        cls.check_plain(module)
        with torch.device("meta"):
            noisy = cls(**cls.form_of(module), **noise)
        of_torch.share(module, noisy)
        noisy.begin_again()
        return noisy

    def made_plain(self) -> typing.Any:
        """A plain module of the form of this one, which has its parameters and hooks in common with it."""
        self.check_folds()
        with torch.device("meta"):
            plain = self.plain(**self.form_of(self))
        self.share_with(plain, leave_out={*self.kept, *vars(self).keys() - vars(plain).keys()})
        return plain


class WeightNoise(OfPlain, Product, WeightModule):
    """Base of modules of torch whose weight is multiplied by a mask, entry by entry.

    A class that is used also derives from one of `pernodedrop.torch.products` and from the class of torch. Where a call
    has no noise it is that of the plain module.
    """

    stack = torch.stack

    def begin(
        self,
        mask: Mask,
        seed: int | None,
        method: str,
        schedule: Schedule | None,
        persistence: Schedule | None,
        more: collections.abc.Mapping[str, np.generic] = types.MappingProxyType({}),
    ) -> None:
        """Begin with a mask, after the constructor of the plain module."""
        if not self.weight.is_floating_point():
            raise TypeError(checks.invalid("dtype", "a floating dtype", self.weight.dtype))
        self.start(mask, seed, schedule, persistence, more)
        self.method = self.state.check_method(method)

    def forward(
        self,
        input: torch.Tensor,  # noqa: A002 - torch's own name
        key: Key | None = None,
        sample_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the plain module gives, in training with noise; see the class."""
        if not self.has_noise:
            return self.without_noise(input)
        check_tensor("input", input, xp)
        ops.check_layout("input", input, ("dense",), xp)
        if self.is_batched(input):
            return self.with_noise(input, key, sample_ids)
        return self.with_noise(input[None], key, sample_ids)[0]

    def without_noise(self, x: torch.Tensor) -> torch.Tensor:
        """What a call without noise gives: what the plain module does, with the weights of inference."""
        if not self.changes_at_inference:
            return super().forward(x)
        batch = x if self.is_batched(x) else x[None]
        y = self.with_weight(batch, *self.weights_at_inference())
        return y if self.is_batched(x) else y[0]

    def with_noise(self, x: torch.Tensor, key: Key | None, sample_ids: torch.Tensor | None) -> torch.Tensor:
        """What a call with noise gives, of a batch."""
        self.check_batch(x)
        samples, field = self.samples(x, sample_ids), self.field(key, x.device)
        dtype = dtype_of(x, self.weight)
        x = x if self.state.one_kernel else x.to(dtype)
        return self.product(x, self.weight, self.bias, field, samples)

    def weights_at_inference(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weight and the bias that inference has."""
        return self.at_inference(self.weight, self.bias, self.field(self.noise_key, self.noise_key.device))

    def fold(self) -> torch.nn.Module:
        """The plain module that computes what this one does at inference, sharing its parameters where they are equal.

        Raises:
            ValueError: a bank, whose members are no one module; or a fixed mask that is another one at each position.
        """
        plain = self.made_plain()
        if self.changes_at_inference:
            for name, value in zip(("weight", "bias"), self.weights_at_inference(), strict=True):
                if value is not None:
                    put(plain, name, value, getattr(plain, name).requires_grad)
        return plain


def dtype_of(x: torch.Tensor, weight: torch.Tensor, argument: str = "input") -> torch.dtype:
    """The dtype that an output of an input will have, or an error where torch would give one."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    if x.dtype != weight.dtype:
        raise TypeError(checks.invalid(argument, f"{weight.dtype}, the weight's", x.dtype))
    return x.dtype

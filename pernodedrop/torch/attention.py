"""DropConnect on the projections of attention, whose weights `torch.nn.MultiheadAttention` reads itself."""

import collections.abc
import typing

import torch

from pernodedrop import checks, generator, schedules
from pernodedrop._types import Key
from pernodedrop.internals import of_torch
from pernodedrop.mask import Mask
from pernodedrop.noise import Bernoulli
from pernodedrop.schedules import Schedule
from pernodedrop.state import apply_mask
from pernodedrop.torch.noisy import Noisy, xp
from pernodedrop.torch.products import Form

PROJECTIONS = ("query", "key", "value", "output")


class ProjectionMask(Noisy):
    """The mask of a projection: called with its weight (out, in), in training it gives the weight with its noise."""

    def __init__(self, rate: float | Schedule, seed: int | None) -> None:
        start, schedule = schedules.get(rate)
        super().__init__()
        self.start(Mask(Bernoulli(start), "sample+time"), seed, schedule)

    def forward(
        self,
        input: torch.Tensor,  # noqa: A002 - torch's own name
        key: Key | None = None,
    ) -> torch.Tensor:
        """The weight of a call."""
        if not self.training:
            return input
        mask = self.state.one_mask(input.T[None], self.field(key, input.device), xp)
        return apply_mask(input, mask[0].T, xp)


class DropConnectMultiheadAttention(Form, torch.nn.MultiheadAttention):
    """A `torch.nn.MultiheadAttention` some of whose projections have DropConnect in training (ICML 2013).

    A projection has one mask a batch, which multiplies its weight before torch's own call; so what comes between the
    projections, masks of attention and all other arguments are torch's affair. What is kept is scaled by
    1 / (1 - rate), and inference is MultiheadAttention itself. It is `pernodedrop.NoisyAttention` with
    `pernodedrop.DropConnect` as a module, with equal masks for equal (seed, call). Masks of each sample, which the
    Keras layer has too, are not possible: torch multiplies by one weight.

    Args:
        *args, **kwargs: those of `torch.nn.MultiheadAttention`: embed_dim, num_heads, batch_first and so on.
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`; 0.5.
        projections: which have noise, some of "query", "key", "value", "output"; all.
        seed: int, any, from which each projection has a seed of its own; None takes them from Python's `random`.

    Call arguments, output shapes and dtypes: those of `torch.nn.MultiheadAttention`. The keys are those of `masks`, a
    module for each projection with noise. torch.compile breaks its graph at a call with noise, which
    `fullgraph=True` refuses.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.
        RuntimeError: a key would be drawn inside `torch.utils.checkpoint`, see `drawn_keys`.

    Example:

    >>> import torch, pernodedrop.torch as pndt
    >>> attention = pndt.DropConnectMultiheadAttention(6, 2, batch_first=True, rate=0.5, seed=1)
    >>> x = torch.ones(4, 5, 6)
    >>> attention(x, x, x)[0].shape
    torch.Size([4, 5, 6])
    """

    plain = torch.nn.MultiheadAttention
    form = ("embed_dim", "num_heads", "dropout", "add_zero_attn", "kdim", "vdim", "batch_first")

    def __init__(
        self,
        *args: typing.Any,
        rate: float | Schedule = 0.5,
        projections: collections.abc.Sequence[str] = PROJECTIONS,
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        names = checks.check_names(projections, "projections", PROJECTIONS)
        checks.check_seed(seed)
        masks = {}
        for name in names:
            own = None if seed is None else generator.sibling_seed(seed, PROJECTIONS.index(name))
            masks[name] = ProjectionMask(rate, own)
        super().__init__(*args, **kwargs)
        self.masks = torch.nn.ModuleDict(masks)

    @classmethod
    def form_of(cls, module: typing.Any) -> dict[str, typing.Any]:
        flags = {"bias": module.in_proj_bias is not None, "add_bias_kv": module.bias_k is not None}
        return {**super().form_of(module), **flags, "dtype": module.out_proj.weight.dtype}

    @classmethod
    def from_plain(cls, module: torch.nn.Module, **noise: typing.Any) -> typing.Self:
        """The noisy module of a plain one, whose parameters and hooks it shares.

        Args:
            module: a `torch.nn.MultiheadAttention`, or a subclass with its `forward`.
            **noise: `rate`, `projections` and `seed`.

        Raises:
            TypeError, ValueError: another module, or a parametrized one; or an argument that is not as described.
        """
        cls.check_plain(module)
        with torch.device("meta"):
            noisy = cls(**cls.form_of(module), **noise)
        masks = noisy.masks
        of_torch.share(module, noisy)
        noisy.masks = masks.to_empty(device=noisy.out_proj.weight.device).train(module.training)
        return noisy

    @property
    def rate(self) -> float | None:
        """The present drop rate of its projections. Setting it sets it in all of them, as in any noisy module."""
        return self._one.rate

    @rate.setter
    def rate(self, rate: float) -> None:
        for mask in self.masks.values():
            typing.cast(ProjectionMask, mask).rate = rate

    @property
    def schedule(self) -> Schedule | None:
        """The rate over time, or None."""
        return self._one.schedule

    @property
    def updates(self) -> int:
        """How many keys each projection drew: the update number of a schedule."""
        return self._one.updates

    @property
    def seed(self) -> dict[str, int | None]:
        """The seed's word of each projection with noise."""
        return {name: typing.cast(ProjectionMask, mask).seed for name, mask in self.masks.items()}

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: typing.Any, **kwargs: typing.Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the plain module gives, in training with noise on its projections; see the class."""
        if not any(mask.training for mask in self.masks.values()):
            return super().forward(query, key, value, *args, **kwargs)
        with torch.device("meta"):
            plain = self.plain(**self.form_of(self)).train(self.training)
        return torch.func.functional_call(plain, self._noisy_weights(), (query, key, value, *args), kwargs)

    def fold(self) -> torch.nn.Module:
        """The plain module that computes what this one does at inference, sharing its parameters."""
        with torch.device("meta"):
            plain = self.plain(**self.form_of(self))
        of_torch.share(self, plain, leave_out={"masks"})
        return plain

    def _noisy_weights(self) -> dict[str, torch.Tensor]:
        """All parameters, by name, with the noise of a call."""
        found: dict[str, torch.Tensor] = dict(self.named_parameters())
        found["out_proj.weight"] = self._masked("output", self.out_proj.weight)
        if self.in_proj_weight is None:
            for name in PROJECTIONS[:3]:
                own = f"{name[0]}_proj_weight"
                found[own] = self._masked(name, found[own])
        else:
            parts = zip(PROJECTIONS[:3], self.in_proj_weight.chunk(3), strict=True)
            found["in_proj_weight"] = torch.cat([self._masked(name, part) for name, part in parts])
        return found

    @property
    def _one(self) -> ProjectionMask:
        return typing.cast(ProjectionMask, next(iter(self.masks.values())))

    def _masked(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        return self.masks[name](weight) if name in self.masks else weight

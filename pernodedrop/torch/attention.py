"""Noise on the projections of attention, whose weights `torch.nn.MultiheadAttention` reads itself."""

import collections.abc
import typing

import torch
from torch.nn import functional as F

from pernodedrop import checks, generator, ops, schedules
from pernodedrop._types import Key, Sharing
from pernodedrop.internals import of_torch
from pernodedrop.mask import Mask
from pernodedrop.modules import check_tensor
from pernodedrop.noise import Bernoulli, Noise
from pernodedrop.schedules import Schedule
from pernodedrop.state import apply_mask
from pernodedrop.torch.composite import Composite
from pernodedrop.torch.noisy import Noisy, xp
from pernodedrop.torch.products import Form, put
from pernodedrop.torch.weight_noise import dtype_of

PROJECTIONS = ("query", "key", "value", "output")
REGIMES = ("dynamic", "fixed", "bank")


class Projection(Noisy):
    """The noise of a projection, which hands in its weight (out, in)."""

    inputs = 3

    def __init__(
        self, mask: Mask, seed: int | None, schedule: Schedule | None, persistence: Schedule | None = None
    ) -> None:
        super().__init__()
        self.start(mask, seed, schedule, persistence)

    def forward(
        self,
        input: torch.Tensor,  # noqa: A002 - torch's own name
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        key: Key | None = None,
        sample_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The product of an input (batch, time, in) with noise, plus the bias (out,)."""
        if not self.has_noise:
            return F.linear(input, weight, bias)
        samples, field = self.samples(input, sample_ids), self.field(key, input.device)
        x = input.to(dtype_of(input, weight))
        y = self.state.products(x[None], weight.T[None], field, samples, "auto", xp)[0]
        return y if bias is None else y + bias.to(y.dtype)

    def noisy_weight(self, weight: torch.Tensor, key: Key | None = None) -> torch.Tensor:
        """The weight with its noise, where that is one for all samples and positions."""
        mask = self.state.one_mask(weight.T[None], self.field(key, weight.device), xp)
        return apply_mask(weight, mask[0].T, xp)


class WeightProjection(Projection):
    """One whose call is given the weight alone, and gives it with its noise."""

    inputs = 1

    def forward(  # type: ignore[override] # it takes no ids
        self,
        input: torch.Tensor,  # noqa: A002 - torch's own name
        key: Key | None = None,
    ) -> torch.Tensor:
        """The weight of a call."""
        return self.noisy_weight(input, key) if self.has_noise else input


class NoisyAttention(Composite, Form, torch.nn.MultiheadAttention):
    """Base of the two. `masks` has a noisy module for each projection with noise."""

    plain = torch.nn.MultiheadAttention
    form = ("embed_dim", "num_heads", "dropout", "add_zero_attn", "kdim", "vdim", "batch_first")
    masks: torch.nn.ModuleDict

    def begin(
        self,
        projections: collections.abc.Sequence[str],
        seed: int | None,
        make: collections.abc.Callable[[int | None], Projection],
    ) -> None:
        """Give each projection what is made of its seed, after the constructor of torch's module."""
        seeds = {
            name: None if seed is None else generator.sibling_seed(seed, PROJECTIONS.index(name))
            for name in projections
        }
        self.masks = torch.nn.ModuleDict({name: make(own) for name, own in seeds.items()})

    @classmethod
    def form_of(cls, module: typing.Any) -> dict[str, typing.Any]:
        flags = {"bias": module.in_proj_bias is not None, "add_bias_kv": module.bias_k is not None}
        return {**super().form_of(module), **flags, "dtype": module.out_proj.weight.dtype}

    @classmethod
    def from_plain(cls, module: torch.nn.Module, **noise: typing.Any) -> typing.Self:
        """The noisy module of a plain one, with which it has its parameters and hooks in common.

        Args:
            module: a `torch.nn.MultiheadAttention`, or a subclass with its `forward`.
            **noise: the arguments of this class that the plain one has not, such as `rate`, `projections` and `seed`.

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
    def parts(self) -> collections.abc.Mapping[str, Projection]:
        return typing.cast(collections.abc.Mapping[str, Projection], self.masks)

    def fold(self) -> torch.nn.Module:
        """The plain module that computes what this one does at inference, sharing its parameters where they are equal.

        Raises:
            ValueError: a bank, whose members are no one module; or a fixed mask that is another one at each position.
        """
        for part in self.parts.values():
            part.check_folds()
        plain = self.made_plain()
        output = plain.out_proj
        self.share_with(plain, leave_out={"masks"})
        if self.changes_at_inference:
            of_torch.share(plain.out_proj, output)
            plain.out_proj = output  # one of its own, whose weight may be another
            own = self.weights()
            new = self.noisy_values(plain, {name: part.noisy_weight(own[name]) for name, part in self.parts.items()})
            for name, old in dict(plain.named_parameters()).items():
                if new[name] is not old:
                    put(plain, name, new[name], old.requires_grad)
        return plain

    def made_plain(self, **form: typing.Any) -> typing.Any:
        """A plain module of the form of this one, or of another form, without memory."""
        with torch.device("meta"):
            return self.plain(**{**self.form_of(self), **form}).train(self.training)

    def weights(self) -> dict[str, torch.Tensor]:
        """The weight (out, in) of each projection."""
        own = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        found = own if self.in_proj_weight is None else self.in_proj_weight.chunk(3)
        return dict(zip(PROJECTIONS, (*found, self.out_proj.weight), strict=True))

    def noisy_values(
        self, plain: torch.nn.Module, new: collections.abc.Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """What this module has for the parameters of a plain one, by name, with other weights of projections."""
        found = self.values_of(plain)
        weights = {**self.weights(), **new}
        if "output" in new:
            found["out_proj.weight"] = new["output"]
        if self.in_proj_weight is None:
            found |= {f"{name[0]}_proj_weight": weights[name] for name in PROJECTIONS[:3] if name in new}
        elif new.keys() - {"output"}:
            found["in_proj_weight"] = torch.cat([weights[name] for name in PROJECTIONS[:3]])
        return found


class DropConnectMultiheadAttention(NoisyAttention):
    """A `torch.nn.MultiheadAttention` some of whose projections have DropConnect in training (ICML 2013).

    A projection has one mask a batch, which multiplies its weight before torch's own call; so what comes between the
    projections, masks of attention and all other arguments are torch's affair. What is kept is scaled by
    1 / (1 - rate), and inference is MultiheadAttention itself. It is `pernodedrop.NoisyAttention` with
    `pernodedrop.DropConnect` as a module, with equal masks for equal (seed, call). Masks of each sample are those of
    `PerNodeMultiheadAttention`.

    Args:
        *args, **kwargs: those of `torch.nn.MultiheadAttention`: embed_dim, num_heads, batch_first and so on.
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`; 0.5.
        projections: which have noise, some of "query", "key", "value", "output"; all.
        seed: any int, from which each projection has a seed of its own; None takes them from Python's `random`.

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

    def __init__(
        self,
        *args: typing.Any,
        rate: float | Schedule = 0.5,
        projections: collections.abc.Sequence[str] = PROJECTIONS,
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        names, seed = checks.check_names(projections, "projections", PROJECTIONS), checks.check_seed(seed)
        start, schedule = schedules.get(rate)
        mask = Mask(Bernoulli(start), "sample+time")
        super().__init__(*args, **kwargs)
        self.begin(names, seed, lambda own: WeightProjection(mask, own, schedule))

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: typing.Any, **kwargs: typing.Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the plain module gives, in training with noise on its projections; see the class."""
        if not self.has_noise:
            return super().forward(query, key, value, *args, **kwargs)
        weights, plain = self.weights(), self.made_plain()
        new = self.noisy_values(plain, {name: part(weights[name]) for name, part in self.parts.items()})
        return torch.func.functional_call(plain, new, (query, key, value, *args), kwargs)


class PerNodeMultiheadAttention(NoisyAttention):
    """A `torch.nn.MultiheadAttention` whose projections have noise of every connection for every sample (2512.12663).

    A sample has a mask for each projection, the same at all positions unless `sharing` leaves "time" out. What comes
    between the projections, masks of attention and all other arguments are torch's affair: its own call is given what
    is projected, with an identity for each weight. It is `pernodedrop.NoisyAttention` with `pernodedrop.PerNodeDrop` as
    a module, with equal masks for equal (seed, call). In `eval()` the regime "dynamic" is MultiheadAttention itself.

    Args:
        *args, **kwargs: those of `torch.nn.MultiheadAttention`: embed_dim, num_heads, batch_first and so on.
        rate, noise, sharing, bank_size, persistence: as for `pernodedrop.torch.PerNodeLinear`.
        regime: "dynamic", "fixed" or "bank", as for `pernodedrop.torch.PerNodeLinear`.
        projections: which have noise, some of "query", "key", "value", "output"; all.
        seed: any int, from which each projection has a seed of its own; None takes them from Python's `random`.

    Call arguments, output shapes and dtypes: those of `torch.nn.MultiheadAttention`, of dense tensors. The keys are
    those of `masks`, a module for each projection with noise. torch.compile breaks its graph at a call with noise,
    which `fullgraph=True` refuses.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.
        RuntimeError: a key would be drawn inside `torch.utils.checkpoint`, see `drawn_keys`.

    Example:

    >>> import torch, pernodedrop.torch as pndt
    >>> attention = pndt.PerNodeMultiheadAttention(6, 2, batch_first=True, rate=0.5, seed=1)
    >>> x = torch.ones(4, 5, 6)
    >>> y, _ = attention(x, x, x)
    >>> bool((y[0] == y[1]).any())
    False
    """

    def __init__(
        self,
        *args: typing.Any,
        rate: float | Schedule | None = None,
        noise: str | Noise = "bernoulli",
        regime: str = "dynamic",
        sharing: Sharing = None,
        bank_size: int | None = None,
        projections: collections.abc.Sequence[str] = PROJECTIONS,
        seed: int | None = None,
        persistence: float | Schedule | None = None,
        **kwargs: typing.Any,
    ) -> None:
        names, seed = checks.check_names(projections, "projections", PROJECTIONS), checks.check_seed(seed)
        kind, schedule = schedules.get_noise(noise, rate)
        start, slow = schedules.get_persistence(persistence)
        mask = Mask(kind, sharing, checks.check_choice(regime, "regime", REGIMES), bank_size, start)
        super().__init__(*args, **kwargs)
        self.begin(names, seed, lambda own: Projection(mask, own, schedule, slow))

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: typing.Any, **kwargs: typing.Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the plain module gives, in training with noise on its projections; see the class."""
        if not self.has_noise:
            return super().forward(query, key, value, *args, **kwargs)
        given = dict(zip(PROJECTIONS, (query, key, value), strict=False))
        for name, x in given.items():
            check_tensor(name, x, xp)
            ops.check_layout(name, x, ("dense",), xp)
            features = self.weights()[name].shape[1]
            if x.dim() not in (2, 3) or x.shape[-1] != features:
                expected = f"rank 3, or 2 for one sample, with {features} features in the last axis"
                raise ValueError(checks.invalid(name, expected, tuple(x.shape)))
        inner = [self._projected(name, x) for name, x in given.items()]
        identity = torch.eye(self.embed_dim, dtype=inner[0].dtype, device=query.device)
        weights = {"in_proj_weight": identity.repeat(3, 1), "out_proj.weight": identity}
        if self.bias_k is not None and self.bias_v is not None:
            weights |= {"bias_k": self.bias_k, "bias_v": self.bias_v}
        plain = self.made_plain(bias=False, kdim=None, vdim=None)
        y, scores = torch.func.functional_call(plain, weights, (*inner, *args), kwargs)
        return self._projected("output", y), scores

    def _projected(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """A projection of an input in the order of axes that the module has."""
        weight, bias = self.weights()[name], self._biases()[name]
        if name not in self.parts:
            return F.linear(x, weight, bias)
        if x.dim() == 2:
            return self.parts[name](x[None], weight, bias)[0]
        rows = x if self.batch_first else x.transpose(0, 1)
        y = self.parts[name](rows, weight, bias)
        return y if self.batch_first else y.transpose(0, 1)

    def _biases(self) -> dict[str, torch.Tensor | None]:
        """The bias (out,) of each projection."""
        found = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return dict(zip(PROJECTIONS, (*found, self.out_proj.bias), strict=True))

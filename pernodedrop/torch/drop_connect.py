"""DropConnect: Bernoulli noise on the connections of a module (Wan et al., ICML 2013)."""

import typing

import torch

from pernodedrop import checks, schedules
from pernodedrop._types import Sharing
from pernodedrop.mask import Field, Mask
from pernodedrop.noise import Bernoulli
from pernodedrop.schedules import Schedule
from pernodedrop.state import apply_mask
from pernodedrop.torch.noisy import xp
from pernodedrop.torch.products import Conv1dProduct, Conv2dProduct, Conv3dProduct, LinearProduct
from pernodedrop.torch.weight_noise import WeightNoise


class DropConnect(WeightNoise):
    """Base of the four; it says which mask, and what its scale is."""

    def __init__(
        self,
        *args: typing.Any,
        rate: float | Schedule = 0.5,
        sharing: Sharing = "sample+time",
        mask_bias: bool = False,
        scaling: str = "inverted",
        seed: int | None = None,
        method: str = "auto",
        **kwargs: typing.Any,
    ) -> None:
        start, schedule = schedules.get(rate)
        mask = Mask(Bernoulli(start), sharing)
        mask_bias = checks.check_bool(mask_bias, "mask_bias")
        if mask_bias and "time" not in mask.sharing:
            raise ValueError(checks.invalid("sharing", "coordinates with 'time' beside mask_bias=True", sharing))
        scaling = checks.check_choice(scaling, "scaling", ("inverted", "none"))
        super().__init__(*args, **kwargs)
        self.begin(mask, seed, method, schedule)
        self.mask_bias, self.scaling = mask_bias, scaling

    def without_noise(self, x: torch.Tensor) -> torch.Tensor:
        if self.scaling == "inverted":
            return super().without_noise(x)
        weights: typing.Any = {"weight": self.weight, "bias": self.bias, **self.weights_at_inference()}
        batch = x if self.is_batched(x) else x[None]
        y = self.with_weight(batch, **weights)
        return y if self.is_batched(x) else y[0]

    def weights_at_inference(self) -> dict[str, torch.Tensor]:
        if self.scaling == "inverted":
            return {}
        field = self.field(self.noise_key, self.noise_key.device)
        means = {"weight": self.scaled(self.weight, field)}
        if self.mask_bias and self.bias is not None:
            means["bias"] = self.scaled(self.bias, field)
        return means

    def noisy_bias(self, field: Field, samples: torch.Tensor) -> torch.Tensor | None:
        if not self.mask_bias or self.bias is None:
            return super().noisy_bias(field, samples)
        bias = self.bias[None]
        groups, inputs, _ = self.matrices(self.weight).shape
        mask = self.state.bias_mask(bias, groups * inputs, field, samples, xp)
        return self.scaled(apply_mask(bias, mask, xp), field)

    def scaled(self, weights: torch.Tensor, field: Field) -> torch.Tensor:
        if self.scaling == "inverted":
            return weights
        noise: typing.Any = field.noise
        keep = noise.keep_probability(field.params, xp)
        return apply_mask(weights, keep, xp)


class DropConnectLinear(DropConnect, LinearProduct, torch.nn.Linear):
    """A `torch.nn.Linear` whose connections are dropped in training, the same ones for a whole batch (ICML 2013).

    What is kept is scaled by 1 / (1 - rate), the bias is never dropped, and inference is Linear itself. It is the
    module of `pernodedrop.DropConnect` around a `keras.layers.Dense`, with equal masks for equal (seed, call). A Linear
    has no activation, so that the paper's Gaussian inference would be its mean: as published it is with
    `sharing="time", mask_bias=True, scaling="none"`.

    Args:
        *args, **kwargs: those of `torch.nn.Linear`: in_features, out_features, bias, device, dtype.
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`; 0.5.
        sharing: "sample+time": one mask a batch. "time": one mask a sample, which is binary PerNodeDrop.
        mask_bias: whether entries of the bias are dropped too. `sharing` has "time" then.
        scaling: "inverted" divides by the share that is kept in training. "none" does not, and multiplies by it at
            inference the weight and, with `mask_bias`, the bias.
        seed, method: as for `pernodedrop.torch.PerNodeLinear`.

    Call arguments, shapes and dtypes: as for `pernodedrop.torch.PerNodeLinear`.

    Raises:
        TypeError, ValueError, RuntimeError: as for `pernodedrop.torch.PerNodeLinear`.

    Example:

    >>> import torch, pernodedrop.torch as pndt
    >>> y = pndt.DropConnectLinear(3, 4, rate=0.5, seed=1)(torch.ones(2, 3))
    >>> bool((y[0] == y[1]).all())
    True
    """

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear, **noise: typing.Any) -> typing.Self:
        """The noisy module of a plain one, as `pernodedrop.torch.PerNodeLinear.from_linear`."""
        return cls.from_plain(linear, **noise)


class DropConnectConv1d(DropConnect, Conv1dProduct, torch.nn.Conv1d):
    """A `torch.nn.Conv1d` whose connections are dropped in training, see `DropConnectConv2d`.

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.DropConnectConv1d(2, 4, 3, rate=0.5, seed=1)(torch.ones(5, 2, 8)).shape
    torch.Size([5, 4, 6])
    """


class DropConnectConv2d(DropConnect, Conv2dProduct, torch.nn.Conv2d):
    """A `torch.nn.Conv2d` whose connections are dropped in training, the same ones for a whole batch (ICML 2013).

    A connection is an entry of the weight.

    Args:
        *args, **kwargs: those of `torch.nn.Conv2d`, groups and all padding modes included.
        rate, sharing, mask_bias, scaling, seed, method: as for `DropConnectLinear`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.torch.PerNodeConv2d`.

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.DropConnectConv2d(2, 4, 3, rate=0.5, seed=1)(torch.ones(5, 2, 8, 8)).shape
    torch.Size([5, 4, 6, 6])
    """


class DropConnectConv3d(DropConnect, Conv3dProduct, torch.nn.Conv3d):
    """A `torch.nn.Conv3d` whose connections are dropped in training, see `DropConnectConv2d`.

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.DropConnectConv3d(2, 4, 2, rate=0.5, seed=1)(torch.ones(5, 2, 3, 3, 3)).shape
    torch.Size([5, 4, 2, 2, 2])
    """

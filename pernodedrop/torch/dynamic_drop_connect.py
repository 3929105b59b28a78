"""DynamicDropConnect: connections are dropped at rates that follow their last gradients (arXiv 2502.19948)."""

import typing

import numpy as np
import torch

from pernodedrop import checks, preferences
from pernodedrop.internals import of_torch
from pernodedrop.modules import DynamicDropConnectModule
from pernodedrop.schedules import Schedule
from pernodedrop.torch.noisy import xp
from pernodedrop.torch.products import Conv1dProduct, Conv2dProduct, Conv3dProduct, LinearProduct
from pernodedrop.torch.weight_noise import WeightNoise

IN_TRANSFORM = (
    "A gradient was about to be noted inside a transform of torch.func, which lets nothing be changed that a function "
    "holds. Expected loss.backward(), or prefer='small_weight' or 'big_weight', which follow no gradient."
)


class DynamicDropConnect(DynamicDropConnectModule, WeightNoise):
    """Base of the four; it says which mask, and notes gradients."""

    kept = (*WeightNoise.kept, "gradient")
    gradient: torch.Tensor

    def __init__(
        self,
        *args: typing.Any,
        base_rate: float | Schedule = 0.3,
        gradient_rate: float = 0.5,
        threshold: float = 0.5,
        prefer: str = "small_gradient",
        straight_through: bool = True,
        calibration: str = "layer",
        weight_rate: float | None = None,
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        found = preferences.checked(base_rate, gradient_rate, threshold, prefer, calibration, weight_rate)
        super().__init__(*args, **kwargs)
        self.preferences = found.preferences
        self.straight_through = checks.check_bool(straight_through, "straight_through")
        if not self.preferences.follow_gradients:
            self.kept = WeightNoise.kept
        self.begin(found.mask, seed, "auto", found.schedule, None, found.rises)

    def first(self, name: str) -> np.typing.NDArray[typing.Any]:
        return np.zeros(self.weight.shape, "float32") if name == "gradient" else super().first(name)

    def gradients(self, weight: torch.Tensor) -> torch.Tensor:
        return self.held.get("gradient", self.gradient)

    def times_mask(self, weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        notes = self.preferences.follow_gradients and torch.is_grad_enabled() and weight.requires_grad
        if notes and not torch.compiler.is_compiling() and of_torch.in_transform():
            raise RuntimeError(IN_TRANSFORM)
        return super().times_mask(noted(weight, self.gradient) if notes else weight, mask)


class _Noted(torch.autograd.Function):
    """A tensor whose gradient is also put into a buffer."""

    @staticmethod
    def forward(ctx: typing.Any, tensor: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        ctx.buffer = buffer
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: typing.Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.buffer.copy_(preferences.noted(gradient.detach(), ctx.buffer, xp))
        return gradient, None


noted: typing.Any = _Noted.apply


class DynamicDropConnectLinear(DynamicDropConnect, LinearProduct, torch.nn.Linear):
    """A `torch.nn.Linear` whose connections are dropped at rates that follow their last gradients (arXiv 2502.19948).

    One mask a batch; those with small gradients are dropped more often. It is the module of
    `pernodedrop.DynamicDropConnect` around a `keras.layers.Dense`, which has the formulas. Inference is Linear itself,
    and until a gradient is noted nothing is dropped.

    Each backward pass notes dL/dweight in the buffer `gradient`, float32, with `loss.backward()` in any training loop,
    compiled or not; a module that is called twice has that of one of the calls. No optimizer, clipping or weight decay
    has to do with it. A scaled loss scales it, with no effect on q while it spreads by far more than 1e-9; one with an
    inf or a NaN, as a loss scale that is too large has it, is not noted. Of batches whose gradients are accumulated it
    is that of the last one. With DDP, which has all processes take the buffers of the first one, it is that process's
    own; with FSDP2 each process has its own, and so a mask of its own.

    Args:
        *args, **kwargs: those of `torch.nn.Linear`: in_features, out_features, bias, device, dtype.
        base_rate: drop rate of every connection, a float in [0, 1) or a schedule of `pernodedrop.schedules`; 0.3. It is
            the module's `rate`, which can be set at any time.
        gradient_rate: what the drop rate rises by as q goes to 1, a float from zero; 0.5. It can be set at any time.
        threshold: q up to which it counts as 0, a float in [0, 1); 0.5.
        prefer: what is dropped more often: "small_gradient", "big_gradient", "small_weight", "big_weight", or one for
            gradients and one for weights joined by "+".
        straight_through: whether dropped connections have the gradient of the others; True.
        calibration: "layer" divides by the share that this very mask keeps, "edge" by each connection's own rate.
        weight_rate: beside two preferences, what the drop rate rises by as the q of the weights goes to 1.
        seed: any int; None takes one from Python's `random`.

    Call arguments: input and key as for `pernodedrop.torch.PerNodeLinear`; samples share the mask.

    Output shape and dtype: those of `torch.nn.Linear`, under autocast too; rates and mask are computed in float32.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.
        RuntimeError: a key would be drawn inside `torch.utils.checkpoint`, see `drawn_keys`; or a gradient would be
            noted inside a transform of `torch.func`.

    Example:

    >>> import torch, pernodedrop.torch as pndt
    >>> layer, x = pndt.DynamicDropConnectLinear(30, 4, seed=1), torch.ones(2, 30)
    >>> y = layer(x)  # nothing is dropped yet
    >>> (y**2).sum().backward()
    >>> bool((layer.gradient == layer.weight.grad).all()), bool((layer(x) == y).all())
    (True, False)
    """

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear, **noise: typing.Any) -> typing.Self:
        """The noisy module of a plain one, as `pernodedrop.torch.PerNodeLinear.from_linear`."""
        return cls.from_plain(linear, **noise)


class DynamicDropConnectConv1d(DynamicDropConnect, Conv1dProduct, torch.nn.Conv1d):
    """A `torch.nn.Conv1d` whose connections are dropped at rates that follow gradients, see `DynamicDropConnectConv2d`.

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.DynamicDropConnectConv1d(2, 4, 3, seed=1)(torch.ones(5, 2, 8)).shape
    torch.Size([5, 4, 6])
    """


class DynamicDropConnectConv2d(DynamicDropConnect, Conv2dProduct, torch.nn.Conv2d):
    """A `torch.nn.Conv2d` whose connections are dropped at rates that follow their last gradients (arXiv 2502.19948).

    A connection is an entry of the weight.

    Args:
        *args, **kwargs: those of `torch.nn.Conv2d`, groups and all padding modes included.
        base_rate, gradient_rate, threshold, prefer, straight_through, calibration, weight_rate, seed: as for
            `DynamicDropConnectLinear`.

    Call arguments: those of `DynamicDropConnectLinear`; shapes, dtypes and errors as for
    `pernodedrop.torch.PerNodeConv2d`.

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.DynamicDropConnectConv2d(2, 4, 3, seed=1)(torch.ones(5, 2, 8, 8)).shape
    torch.Size([5, 4, 6, 6])
    """


class DynamicDropConnectConv3d(DynamicDropConnect, Conv3dProduct, torch.nn.Conv3d):
    """A `torch.nn.Conv3d` whose connections are dropped at rates that follow gradients, see `DynamicDropConnectConv2d`.

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.DynamicDropConnectConv3d(2, 4, 2, seed=1)(torch.ones(5, 2, 3, 3, 3)).shape
    torch.Size([5, 4, 2, 2, 2])
    """

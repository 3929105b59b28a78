"""DropConnect: Bernoulli noise on the connections of a module (Wan et al., ICML 2013)."""

import typing

import torch

from pernodedrop import schedules
from pernodedrop._types import Sharing
from pernodedrop.modules import DropConnectModule, mask_of_drop_connect
from pernodedrop.schedules import Schedule
from pernodedrop.torch.products import Conv1dProduct, Conv2dProduct, Conv3dProduct, LinearProduct
from pernodedrop.torch.weight_noise import WeightNoise


class DropConnect(DropConnectModule, WeightNoise):
    """Base of the four; it says which mask, and what its scale is."""

    def __init__(
        self,
        *args: typing.Any,
        rate: float | Schedule = 0.5,
        sharing: Sharing = None,
        mask_bias: bool = False,
        scaling: str = "inverted",
        seed: int | None = None,
        method: str = "auto",
        persistence: float | Schedule | None = None,
        **kwargs: typing.Any,
    ) -> None:
        start, slow = schedules.get_persistence(persistence)
        mask, schedule = mask_of_drop_connect(rate, sharing, mask_bias, scaling, start)
        super().__init__(*args, **kwargs)
        self.begin(mask, seed, method, schedule, slow)
        self.mask_bias, self.scaling = bool(mask_bias), scaling


class DropConnectLinear(DropConnect, LinearProduct, torch.nn.Linear):
    """A `torch.nn.Linear` whose connections are dropped in training, the same ones for a whole batch (ICML 2013).

    What is kept is scaled by 1 / (1 - rate), the bias is never dropped, and inference is Linear itself. It is the
    module of `pernodedrop.DropConnect` around a `keras.layers.Dense`, with equal masks for equal (seed, call). A Linear
    has no activation, so that the paper's Gaussian inference would be its mean: the published form has `sharing="time",
    mask_bias=True, scaling="none"`.

    Args:
        *args, **kwargs: those of `torch.nn.Linear`: in_features, out_features, bias, device, dtype.
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`; 0.5.
        sharing: "sample+time", or None: one mask a batch. "time": one mask a sample, which is binary PerNodeDrop.
        mask_bias: whether entries of the bias are dropped too. `sharing` has "time" then.
        scaling: "inverted" divides by the share that is kept in training. "none" does not, and multiplies by it at
            inference the weight and, with `mask_bias`, the bias.
        seed, method, persistence: as for `pernodedrop.torch.PerNodeLinear`; beside `persistence` a sharing of None is
            "sample".

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
        rate, sharing, mask_bias, scaling, seed, method, persistence: as for `DropConnectLinear`.

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

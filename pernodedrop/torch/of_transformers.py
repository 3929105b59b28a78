"""Noise for the one linear module that transformers has of its own, in GPT-2: `Conv1D`, which `apply` knows.

Importing this file imports transformers; `pernodedrop.torch` does so only for a model that is made of its modules.
"""

import typing

import torch
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from pernodedrop.torch.drop_connect import DropConnect
from pernodedrop.torch.per_node_drop import PerNodeDrop
from pernodedrop.torch.products import LinearProduct

__all__ = ["Conv1D", "DropConnectConv1D", "PerNodeConv1D"]


class TransposedProduct(LinearProduct):
    """What a `Conv1D` computes: a Linear whose weight is (in, out), and which always has a bias."""

    plain = Conv1D
    nf: int
    nx: int

    @classmethod
    def form_of(cls, module: typing.Any) -> dict[str, typing.Any]:
        return {"nf": module.nf, "nx": module.nx}

    @property
    def in_features(self) -> int:  # type: ignore[override] # an attribute of torch.nn.Linear
        """The number of input features, as a Linear has it."""
        return self.nx

    @property
    def out_features(self) -> int:  # type: ignore[override] # likewise
        """The number of output features."""
        return self.nf

    def matrices(self, weight: torch.Tensor) -> torch.Tensor:
        return weight[None]

    def from_matrices(self, matrices: torch.Tensor) -> torch.Tensor:
        return matrices[0]

    def with_weight(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, weight.T, bias)

    __repr__ = torch.nn.Module.__repr__  # which says what `extra_repr` does, the noise included

    def extra_repr(self) -> str:
        """The arguments of the plain module."""
        return f"nf={self.nf}, nx={self.nx}"


class PerNodeConv1D(PerNodeDrop, TransposedProduct, Conv1D):
    """A `Conv1D` of transformers with the noise of a `pernodedrop.torch.PerNodeLinear`, and its masks.

    Args:
        *args, **kwargs: those of `Conv1D`: nf and nx, the numbers of output and input features.
        rate, noise, regime, sharing, bank_size, seed, method, persistence: as for `pernodedrop.torch.PerNodeLinear`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.torch.PerNodeLinear`.

    >>> import torch
    >>> PerNodeConv1D(4, 3, rate=0.5, seed=1)(torch.ones(2, 5, 3)).shape
    torch.Size([2, 5, 4])
    """


class DropConnectConv1D(DropConnect, TransposedProduct, Conv1D):
    """A `Conv1D` of transformers with the noise of a `pernodedrop.torch.DropConnectLinear`, and its masks.

    Args:
        *args, **kwargs: those of `Conv1D`: nf and nx, the numbers of output and input features.
        rate, sharing, mask_bias, scaling, seed, method, persistence: as for `pernodedrop.torch.DropConnectLinear`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.torch.DropConnectLinear`.

    >>> import torch
    >>> DropConnectConv1D(4, 3, rate=0.5, seed=1)(torch.ones(2, 5, 3)).shape
    torch.Size([2, 5, 4])
    """

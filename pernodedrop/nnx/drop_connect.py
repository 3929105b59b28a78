"""DropConnect: Bernoulli noise on the connections of a module (Wan et al., ICML 2013)."""

import typing

from flax import nnx

from pernodedrop import schedules
from pernodedrop._types import Sharing
from pernodedrop.modules import DropConnectModule, mask_of_drop_connect
from pernodedrop.nnx.products import ConvProduct, LinearProduct
from pernodedrop.nnx.weight_noise import WeightNoise
from pernodedrop.schedules import Schedule


class DropConnect(DropConnectModule, WeightNoise):
    """Base of the two; it says which mask, and what its scale is."""

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
        deterministic: bool = False,
        rngs: nnx.Rngs,
        **kwargs: typing.Any,
    ) -> None:
        start, slow = schedules.get_persistence(persistence)
        mask, schedule = mask_of_drop_connect(rate, sharing, mask_bias, scaling, start)
        super().__init__(*args, **kwargs | {"rngs": rngs})
        self.begin(mask, seed, method, schedule, slow, rngs, deterministic)
        self.mask_bias, self.scaling = bool(mask_bias), scaling


class DropConnectLinear(DropConnect, LinearProduct, nnx.Linear):
    """An `nnx.Linear` whose connections are dropped in training, the same ones for a whole batch (ICML 2013).

    Connections that are kept are scaled by 1 / (1 - rate), the bias is not dropped, and inference is Linear itself. It
    is `pernodedrop.DropConnect` around a `keras.layers.Dense` as a module, with equal masks for equal (seed, call).

    Args:
        *args, **kwargs: those of `nnx.Linear`, except `dot_general`.
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`; 0.5.
        sharing: "sample+time", or None: one mask a batch. "time": one mask a sample, which is binary PerNodeDrop.
        mask_bias: whether entries of the bias are dropped too; `sharing` must then have "time". False.
        scaling: "inverted" divides by the share that is kept in training. "none" does not; at inference it multiplies
            the kernel and, with `mask_bias`, the bias by that share.
        rngs, seed, method, persistence, deterministic: as for `pernodedrop.nnx.PerNodeLinear`; with `persistence`,
            `sharing=None` is "sample".

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.nnx.PerNodeLinear`.

    Example:

    >>> import jax, pernodedrop.nnx as pndx
    >>> from flax import nnx
    >>> y = pndx.DropConnectLinear(3, 4, rate=0.5, seed=1, rngs=nnx.Rngs(0))(jax.numpy.ones((2, 3)))
    >>> bool((y[0] == y[1]).all())
    True
    """

    @classmethod
    def from_linear(cls, linear: nnx.Linear, **noise: typing.Any) -> typing.Self:
        """The noisy module of a plain one, as `pernodedrop.nnx.PerNodeLinear.from_linear`."""
        return cls.from_plain(linear, **noise)


class DropConnectConv(DropConnect, ConvProduct, nnx.Conv):
    """An `nnx.Conv` whose connections are dropped in training, the same ones for a whole batch (ICML 2013).

    A connection is an entry of the kernel.

    Args:
        *args, **kwargs: those of `nnx.Conv`, as for `pernodedrop.nnx.PerNodeConv`.
        rngs, rate, sharing, mask_bias, scaling, seed, method, persistence, deterministic: as for `DropConnectLinear`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.nnx.PerNodeConv`.

    >>> import jax, pernodedrop.nnx as pndx
    >>> from flax import nnx
    >>> layer = pndx.DropConnectConv(2, 4, (3, 3), rate=0.5, seed=1, rngs=nnx.Rngs(0))
    >>> layer(jax.numpy.ones((5, 8, 8, 2))).shape
    (5, 8, 8, 4)
    """

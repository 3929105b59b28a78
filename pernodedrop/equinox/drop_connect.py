"""DropConnect: Bernoulli noise on the connections of a module (Wan et al., ICML 2013)."""

import typing

import equinox as eqx
import jax

from pernodedrop._types import Sharing
from pernodedrop.equinox.products import ConvProduct, LinearProduct
from pernodedrop.equinox.weight_noise import WeightNoise
from pernodedrop.modules import DropConnectModule, mask_of_drop_connect


class DropConnect(DropConnectModule, WeightNoise):
    """Base of the two; it says which mask, and what its scale is."""

    mask_bias: bool = eqx.field(static=True)
    scaling: str = eqx.field(static=True)

    def __init__(
        self,
        *args: typing.Any,
        rate: float = 0.5,
        sharing: Sharing = "sample+time",
        mask_bias: bool = False,
        scaling: str = "inverted",
        method: str = "auto",
        inference: bool = False,
        key: jax.Array,
        **kwargs: typing.Any,
    ) -> None:
        mask, schedule = mask_of_drop_connect(rate, sharing, mask_bias, scaling)
        self.plain.__init__(self, *args, **kwargs, key=key)
        self.begin(mask, schedule, inference, None, None, method)
        self.mask_bias, self.scaling = bool(mask_bias), scaling


class DropConnectLinear(DropConnect, LinearProduct, eqx.nn.Linear):
    """An `equinox.nn.Linear` whose connections are dropped in training, those of the call's key (ICML 2013).

    Connections that are kept are scaled by 1 / (1 - rate), the bias is not dropped, and inference is Linear itself.
    Samples share a mask, as is usual, if they are given one key (`jax.vmap` with None for it in `in_axes`); with a key
    each they have a mask each. It is `pernodedrop.DropConnect` around a `keras.layers.Dense` as a module, with equal
    masks for equal (seed, call).

    Args:
        *args, **kwargs: those of `equinox.nn.Linear`.
        rate: drop rate in [0, 1); 0.5. No schedule: `with_rate` sets it.
        sharing: "sample+time": the mask of a key. "time": that of a key and a `sample_id`, which is binary PerNodeDrop.
        mask_bias: whether entries of the bias are dropped too; `sharing` must then have "time". False.
        scaling: "inverted" divides by the share that is kept in training. "none" does not; at inference it multiplies
            the weight and, with `mask_bias`, the bias by that share.
        method, inference, key: as for `pernodedrop.equinox.PerNodeLinear`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.equinox.PerNodeLinear`; no `sample_id` where samples
    share the mask.

    Example:

    >>> import jax, pernodedrop.equinox as pnde
    >>> layer = pnde.DropConnectLinear(3, 4, rate=0.5, key=jax.random.key(0))
    >>> y = jax.vmap(lambda x, key: layer(x, key=key), in_axes=(0, None))(jax.numpy.ones((2, 3)), jax.random.key(1))
    >>> bool((y[0] == y[1]).all())
    True
    """

    @classmethod
    def from_linear(cls, linear: eqx.nn.Linear, **noise: typing.Any) -> typing.Self:
        """The noisy module of a plain one, as `pernodedrop.equinox.PerNodeLinear.from_linear`."""
        return cls.from_plain(linear, **noise)


class DropConnectConv(DropConnect, ConvProduct, eqx.nn.Conv):
    """An `equinox.nn.Conv` whose connections are dropped in training, those of the call's key (ICML 2013).

    A connection is an entry of the weight.

    Args:
        *args, **kwargs: those of `equinox.nn.Conv`.
        rate, sharing, mask_bias, scaling, method, inference, key: as for `DropConnectLinear`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.equinox.PerNodeConv`.

    >>> import jax, pernodedrop.equinox as pnde
    >>> layer = pnde.DropConnectConv(2, 2, 4, 3, rate=0.5, key=jax.random.key(0))
    >>> layer(jax.numpy.ones((2, 8, 8)), key=jax.random.key(1)).shape
    (4, 6, 6)
    """

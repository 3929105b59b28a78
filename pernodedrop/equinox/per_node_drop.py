"""PerNodeDrop: every connection of every sample gets its own multiplicative noise (arXiv 2512.12663)."""

import typing

import equinox as eqx
import jax

from pernodedrop import schedules
from pernodedrop._types import Sharing
from pernodedrop.equinox.products import ConvProduct, LinearProduct
from pernodedrop.equinox.weight_noise import WeightNoise
from pernodedrop.mask import Mask
from pernodedrop.noise import Noise


class PerNodeDrop(WeightNoise):
    """Base of the two; it says which mask."""

    def __init__(
        self,
        *args: typing.Any,
        rate: float | None = None,
        noise: str | Noise = "bernoulli",
        regime: str = "dynamic",
        sharing: Sharing = None,
        bank_size: int | None = None,
        seed: int | None = None,
        method: str = "auto",
        inference: bool = False,
        key: jax.Array,
        **kwargs: typing.Any,
    ) -> None:
        kind, schedule = schedules.get_noise(noise, rate)
        mask = Mask(kind, sharing, regime, bank_size)
        self.plain.__init__(self, *args, **kwargs, key=key)
        self.begin(mask, schedule, inference, seed, key, method)


class PerNodeLinear(PerNodeDrop, LinearProduct, eqx.nn.Linear):
    """An `equinox.nn.Linear` whose every connection has its own noise for every sample (arXiv 2512.12663).

    In training, with E[M] = 1,

        y[j] = sum_i x[i] * weight[j, i] * M[i, j] + bias[j]

    A call takes one sample, and `jax.vmap` makes a batch of it. Samples are told apart by their key or by their
    `sample_id`, which is 0 unless it is given, so that equal keys have equal masks. The mask of key (seed, call) and
    sample_id n is that of row n in `pernodedrop.PerNodeDrop` around a `keras.layers.Dense`, to the bit. For a
    `jax.random.key`, seed and call are its two words.

    With `inference=True` the regimes "dynamic" and "example" are Linear itself; "fixed" and "bank" keep their masks.
    Under `jax.vmap` memory holds the gradient of the weight for each sample, (batch, out, in), as with any function of
    one sample that does more to a weight than multiply by it: where that is too much, take `pernodedrop.ops`.

    Args:
        *args, **kwargs: those of `equinox.nn.Linear`: in_features, out_features, use_bias, dtype.
        rate: drop rate in [0, 1) that goes with a noise given by name; None is 0.5. No schedule: `with_rate` sets it.
        noise: "bernoulli", "gaussian", "uniform", or a `pernodedrop.Noise`, which brings its own numbers.
        regime: "dynamic": the mask of the call's key. "fixed": one mask for the model, at inference too, whatever the
            key. "bank": `bank_size` fixed masks, at inference too, of which `sample_id` modulo bank_size chooses.
            "example": a fixed mask for each `sample_id`, in training.
        sharing: coordinates that the mask does not depend on, as in `pernodedrop.ops.masked_dense`.
        bank_size: number of masks in the bank regime.
        seed: any int, for fixed masks; None takes it from `key`. Not with regime="dynamic".
        method: how the product is computed, as in `pernodedrop.ops.masked_dense`; "auto" is best.
        inference: whether calls have no noise; `equinox.nn.inference_mode` sets it. False.
        key: a `jax.random.key`, for the parameters.

    Call arguments:
        x: floating array (in_features,).
        key: a `jax.random.key`, or (seed, call); None is what `with_key` gave.
        inference: whether this call has no noise; None is the module's own.
        sample_id: integer, modulo 2**32: the sample coordinate; None is 0.

    Output shape and dtype: those of `equinox.nn.Linear`; sums are in float32.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import jax, pernodedrop.equinox as pnde
    >>> layer = pnde.PerNodeLinear(3, 4, rate=0.5, key=jax.random.key(0))
    >>> x, keys = jax.numpy.ones((5, 3)), jax.random.split(jax.random.key(1), 5)
    >>> jax.vmap(lambda x, key: layer(x, key=key))(x, keys).shape
    (5, 4)
    """

    @classmethod
    def from_linear(cls, linear: eqx.nn.Linear, **noise: typing.Any) -> typing.Self:
        """The noisy module of a plain one, with its parameters.

        Args:
            linear: an `equinox.nn.Linear`, or a subclass with its `__call__`.
            **noise: arguments of this class beside those of Linear, such as `rate`.

        Raises:
            TypeError, ValueError: another module, or an argument that is not as described.
        """
        return cls.from_plain(linear, **noise)


class PerNodeConv(PerNodeDrop, ConvProduct, eqx.nn.Conv):
    """An `equinox.nn.Conv` whose every connection has its own noise for every sample (arXiv 2512.12663).

    A connection is an entry of the weight. A sample has one mask at all positions of its output unless `sharing` leaves
    "time" out. The masks are those of `pernodedrop.PerNodeDrop` around a convolution of Keras. Memory holds the noisy
    weight of each sample, and its patches.

    Args:
        *args, **kwargs: those of `equinox.nn.Conv`: num_spatial_dims, in_channels, out_channels, kernel_size and so on.
        rate, noise, regime, sharing, bank_size, seed, method, inference, key: as for `PerNodeLinear`.

    Call arguments: as for `PerNodeLinear`; x is `(in_channels, *space)`.

    Output shape and dtype: those of `equinox.nn.Conv`.

    Raises:
        TypeError, ValueError: as for `PerNodeLinear`.

    Example:

    >>> import jax, pernodedrop.equinox as pnde
    >>> layer = pnde.PerNodeConv(2, 2, 4, 3, rate=0.5, key=jax.random.key(0))
    >>> layer(jax.numpy.ones((2, 8, 8)), key=jax.random.key(1)).shape
    (4, 6, 6)
    """

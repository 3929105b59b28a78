"""PerNodeDrop: every sample and every connection gets its own multiplicative noise (arXiv 2512.12663)."""

import typing

from flax import nnx

from pernodedrop import schedules
from pernodedrop._types import Sharing
from pernodedrop.mask import Mask
from pernodedrop.nnx.products import ConvProduct, LinearProduct
from pernodedrop.nnx.weight_noise import WeightNoise
from pernodedrop.noise import Noise
from pernodedrop.schedules import Schedule


class PerNodeDrop(WeightNoise):
    """Base of the two; it says which mask."""

    def __init__(
        self,
        *args: typing.Any,
        rate: float | Schedule | None = None,
        noise: str | Noise = "bernoulli",
        regime: str = "dynamic",
        sharing: Sharing = None,
        bank_size: int | None = None,
        seed: int | None = None,
        method: str = "auto",
        persistence: float | Schedule | None = None,
        deterministic: bool = False,
        rngs: nnx.Rngs,
        **kwargs: typing.Any,
    ) -> None:
        kind, schedule = schedules.get_noise(noise, rate)
        start, slow = schedules.get_persistence(persistence)
        mask = Mask(kind, sharing, regime, bank_size, start)
        super().__init__(*args, **kwargs | {"rngs": rngs})
        self.begin(mask, seed, method, schedule, slow, rngs, deterministic)


class PerNodeLinear(PerNodeDrop, LinearProduct, nnx.Linear):
    """An `nnx.Linear` whose every connection has its own noise for every sample in training (arXiv 2512.12663).

    In training, with E[M] = 1,

        y[n, ..., j] = sum_i x[n, ..., i] * kernel[i, j] * M[n, i, j] + bias[j]

    It is `pernodedrop.PerNodeDrop` around a `keras.layers.Dense` as a module: masks are equal to the bit for equal
    (seed, call). After `eval()` the regimes "dynamic" and "example" are Linear itself; "fixed" and "bank" keep their
    masks.

    Keys come from the module's own `nnx.RngStream`, tagged "noise", whose key is the seed and whose count is the call
    number. `nnx.split_rngs` and `nnx.reseed` treat it as they treat that of `nnx.Dropout`. The seed of fixed masks, and
    the count of draws that a schedule goes by, are in variables apart, which nothing splits.

    Args:
        *args, **kwargs: those of `nnx.Linear`: in_features, out_features, use_bias, dtype and so on, except
            `dot_general`.
        rngs: `nnx.Rngs`, whose stream "noise", or else "default", gives the key, as "params" gives the parameters.
        rate: drop rate in [0, 1) that goes with a noise given by name; None is 0.5. Or a schedule of
            `pernodedrop.schedules`, which also goes with a `pernodedrop.Noise` that has a rate.
        noise: "bernoulli", "gaussian", "uniform", or a `pernodedrop.Noise`, which brings its own numbers.
        regime: "dynamic": a new mask every call that trains. "fixed": one mask for the model, the same for all samples,
            at inference too. "bank": `bank_size` fixed masks, at inference too; row n of the batch has mask n modulo
            bank_size unless `sample_ids` says otherwise. "example": a fixed mask for each example id, in training.
        sharing: coordinates that the mask does not depend on, as in `pernodedrop.ops.masked_dense`; None shares a
            sample's mask over the positions of inputs of rank 3 and more.
        bank_size: number of masks in the bank regime.
        persistence: the probability in [0, 1] that an entry keeps its value from one position of (batch, time, in) to
            the next instead of being drawn anew, or a schedule of it. With it, `sharing` may not have "time", and
            `sharing=None` shares nothing. None leaves positions to `sharing`.
        seed: any int, instead of a key of `rngs`; a Keras layer with this seed has the same masks.
        method: how the product is computed, as in `pernodedrop.ops.masked_dense`.
        deterministic: whether calls have no noise, until `train()`; False.

    Call arguments:
        inputs: floating array (batch, ..., in_features), or (in_features,), which is one sample. Samples come first.
        out_sharding: as for `nnx.Linear`, in calls without noise.
        deterministic: whether this call has no noise; None is the module's own.
        rngs: `nnx.Rngs` or a stream to draw the key from instead, or a `jax.random.key`, as `nnx.Dropout` takes it.
        key: the key itself, from `draw()`, or (seed, call).
        sample_ids: integer array (batch,), modulo 2**32: the sample coordinate of each row. None is the row's number,
            in the whole batch where JAX splits that over devices. Under `nnx.vmap` rows are numbered within a call:
            give the ids, or split the streams.

    Output shape and dtype: those of `nnx.Linear`; sums are in float32.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import jax, pernodedrop.nnx as pndx
    >>> from flax import nnx
    >>> layer, x = pndx.PerNodeLinear(3, 4, rate=0.5, seed=1, rngs=nnx.Rngs(0)), jax.numpy.ones((2, 3))
    >>> bool((layer(x)[0] == layer(x)[0]).all())
    False
    >>> layer.eval()
    >>> bool((layer(x)[0] == layer(x)[1]).all())
    True
    """

    @classmethod
    def from_linear(cls, linear: nnx.Linear, **noise: typing.Any) -> typing.Self:
        """The noisy module of a plain one, whose parameters it shares.

        Args:
            linear: an `nnx.Linear`, or a subclass with its `__call__`.
            **noise: arguments of this class beside those of Linear, such as `rate`, and `seed` or `rngs`.

        Raises:
            TypeError, ValueError: another module, or an argument that is not as described.
        """
        return cls.from_plain(linear, **noise)


class PerNodeConv(PerNodeDrop, ConvProduct, nnx.Conv):
    """An `nnx.Conv` whose every connection has its own noise for every sample in training (arXiv 2512.12663).

    A connection is an entry of the kernel. A sample has one mask at all positions of its output unless `sharing` leaves
    "time" out. The masks are those of `pernodedrop.PerNodeDrop` around a convolution of Keras. Where samples have masks
    of their own, memory holds a kernel for each sample and its patches: the input times the size of the kernel.

    Args:
        *args, **kwargs: those of `nnx.Conv`, groups and all paddings included, except `input_dilation` and
            `conv_general_dilated`.
        rngs, rate, noise, regime, sharing, bank_size, seed, method, persistence, deterministic: as for `PerNodeLinear`.

    Call arguments: as for `PerNodeLinear`; the input is `(batch, *space, channels)`, or one sample of it.

    Output shape and dtype: those of `nnx.Conv`.

    Raises:
        TypeError, ValueError: as for `PerNodeLinear`.

    Example:

    >>> import jax, pernodedrop.nnx as pndx
    >>> from flax import nnx
    >>> layer = pndx.PerNodeConv(2, 4, (3, 3), rate=0.5, seed=1, rngs=nnx.Rngs(0))
    >>> layer(jax.numpy.ones((5, 8, 8, 2))).shape
    (5, 8, 8, 4)
    """

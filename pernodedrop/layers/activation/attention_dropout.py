"""AttentionDropout: noise on the weights of attention, after their softmax."""

import math
import typing
import warnings

import keras

from pernodedrop import checks, schedules
from pernodedrop._types import Config, Key, Sharing, Tensor
from pernodedrop.internals import of_keras
from pernodedrop.layers.base.activation_noise import ActivationNoise
from pernodedrop.layers.base.around_attention import OF_LAYER, AroundAttention, check_attention, plain_of
from pernodedrop.layers.base.noisy import Noisy, check_built, xp
from pernodedrop.mask import Grid, Mask, coordinate
from pernodedrop.noise import Noise
from pernodedrop.schedules import Schedule


@keras.saving.register_keras_serializable("pernodedrop")
class AttentionDropout(AroundAttention):
    """Multiplies the weights of attention by noise in training, after the softmax (arXiv 1706.03762).

    With A the weights of a head, (query, key) for each sample, and V its values, in training, with E[M] = 1,

        y[n, q] = sum_k A[n, q, k] * M[n, q, k] * V[n, k]

    It is the dropout of Keras' attention, with a key, a schedule, sharing and persistence. It replaces that one: the
    inner layer keeps its own `dropout` in its config, but does not use it. Masks are equal to the bit on every backend.
    Inference is the inner layer. Training with noise does without flash attention, which never holds the weights;
    inference keeps it.

    The coordinates of an entry are the sample, the position of the query (time), that of the key (in), and the number
    of the head (out), so a mask does not depend on how long the sequences of a batch are.

    Args:
        layer: the inner layer, a `keras.layers.MultiHeadAttention` or `GroupQueryAttention`, or a subclass that
            computes its weights as they do; or a `pernodedrop.NoisyAttention` around one.
        rate, noise: as for `pernodedrop.PerNodeDrop`.
        sharing: coordinates that the mask does not depend on, some of "sample", "time", "in" and "out", as in
            `pernodedrop.ops.masked_dense`; () is an entry for each weight. With "time", all queries of a sample drop
            the same keys; with "out", all its heads do.
        seed: any int; None takes one from Python's `random`.
        persistence: the probability in [0, 1] that an entry keeps its value from one query to the next, or a schedule
            of it, as for `pernodedrop.PerNodeDrop`.
        **kwargs: those of `keras.layers.Layer`. The dtype policy is the inner layer's unless given.

    Call arguments: those of the inner layer, (query, value, key=None, ...), where `key` is attention's, and
    `keys`, those to use instead of drawing them: a dict from `draw()`, with that of "weights".

    Input and output shapes: the inner layer's; returned scores have no noise. Output dtype: this layer's compute dtype.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Warns:
        UserWarning: a layer with `flash_attention=True`, which is off in training.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> attention = keras.layers.MultiHeadAttention(num_heads=2, key_dim=3)
    >>> layer = pnd.AttentionDropout(attention, rate=0.1, seed=1)
    >>> x = np.ones((2, 5, 4), "float32")
    >>> layer(x, x, training=True).shape == (2, 5, 4)
    True
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        rate: float | Schedule | None = None,
        noise: str | Noise = "bernoulli",
        sharing: Sharing = (),
        seed: int | None = None,
        persistence: float | Schedule | None = None,
        **kwargs: typing.Any,
    ) -> None:
        plain = plain_of(check_attention(layer, AttentionDropout))
        if not of_keras.weighs_as_keras(plain):
            raise TypeError(checks.invalid("layer", "one that makes its weights of attention as Keras' do", layer))
        noise, schedule = schedules.get_noise(noise, rate)
        start, slow = schedules.get_persistence(persistence)
        mask = Mask(noise, () if sharing is None else sharing, persistence=start)
        of_layer = {name: kwargs[name] for name in OF_LAYER if kwargs.get(name) is not None}
        dtype = of_layer.get("dtype", layer.dtype_policy)
        weights = Weights(mask, plain, seed=seed, schedule=schedule, persistence=slow, dtype=dtype, name="weights")
        super().__init__(layer, weights, **kwargs)
        if of_keras.has_flash_attention(plain):
            warnings.warn(
                f"Layer {self.name!r} computes attention without flash attention in training, which never has the "
                "weights that its noise is on. At inference it stays as it is.",
                stacklevel=2,
            )

    def make_parts(self) -> dict[str, Noisy]:
        weights = self._like()
        weights.build(None)  # here, where its place is known
        return {"weights": weights}

    def with_parts(
        self, layer: keras.layers.Layer, parts: dict[str, typing.Callable[..., Tensor]], training: bool | None
    ) -> keras.layers.Layer:
        # `uncertainty.predict` asks its parts for noise with a `training` that is false, and yet another than False
        return layer if training is None or training is False else of_keras.with_dropout(layer, parts["weights"])

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            **self.one.noise_config,
            "sharing": sorted(self.mask.sharing),
            "persistence": self.one.persistence_config,
            "seed": self.given_seed,
        }

    def fold(self) -> keras.layers.Layer:
        """A plain attention layer, built, with weights of its own, that computes what this layer does at inference.

        Raises:
            ValueError: a layer that is not built.
        """
        check_built(self)
        return self.folded_layer()

    @property
    def persistence(self) -> float | None:
        """The present persistence, None where nothing persists. Setting it takes effect from the next call."""
        return self.one.persistence

    @persistence.setter
    def persistence(self, persistence: float) -> None:
        self.one.persistence = persistence

    @property
    def given_seed(self) -> int | None:
        return self.one.given_seed

    @property
    def drawn_seed(self) -> int | None:
        return self.one.drawn_seed


class Weights(ActivationNoise):
    """The noise on weights (batch, heads, *queries, *keys), softmax' output; see `AttentionDropout`.

    Args:
        mask: which mask.
        attention: Keras' layer, which may attend along several axes.
        **kwargs: those of `ActivationNoise`.
    """

    def __init__(self, mask: Mask, attention: keras.layers.Layer, **kwargs: typing.Any) -> None:
        super().__init__(mask, **kwargs)
        self._attention: typing.Callable[[], keras.layers.Layer] = lambda: attention  # which is no layer inside it

    def entries(self, inputs: Tensor, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        shape, sharing = xp.shape(inputs), self.sharing
        axes = len(getattr(self._attention(), "attention_axes", (1,)))
        middle = len(shape) - 2 * axes  # axes that are not attended along count as heads
        heads, queries, keys = shape[1:middle], shape[middle:-axes], shape[-axes:]
        sizes = {"out": heads, "time": queries, "in": keys}
        at = {name: coordinate(name, math.prod(of), sharing, inputs, xp) for name, of in sizes.items()}
        samples = self.samples(inputs, sample_ids)
        samples = xp.arange(1, like=inputs) if "sample" in sharing else samples
        times = xp.zeros_like(samples)[:, None] + at["time"]
        rows = samples[:, None] + xp.zeros_like(at["time"])
        field = self.field(key, xp.device(inputs))
        grid = Grid(field, xp.reshape(times, (-1,)), xp.reshape(rows, (-1,)), at["in"], at["out"])
        batch = xp.shape(samples)[0]
        own = {name: [1] * len(of) if name in sharing else of for name, of in sizes.items()}
        mask = xp.reshape(xp.entries(grid), (batch, *(math.prod(own[name]) for name in ("time", "in", "out"))))
        return xp.reshape(xp.permute_dims(mask, (0, 3, 1, 2)), (batch, *own["out"], *own["time"], *own["in"]))

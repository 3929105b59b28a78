"""MixtureOfExperts: a gate sends each row to few of many layers (arXiv 1701.06538, 2101.03961)."""

import fractions
import math
import typing

import keras

from pernodedrop import checks
from pernodedrop._types import Config, Shape, Tensor
from pernodedrop.contrast.several import Layers, Several, built
from pernodedrop.layers.base.noisy import check_size, floating, xp

FINEST = 1000
"""Of the capacity factor as a fraction: the largest denominator, so that counts of rows stay whole numbers."""


@keras.saving.register_keras_serializable("pernodedrop")
class MixtureOfExperts(Several, keras.layers.Layer):
    """Sends each row to the `top_k` experts that a gate prefers: a sparse mixture (Shazeer et al., arXiv 1701.06538).

    A row is a vector along the last axis, at any sample and position. With z = x G the logits of a row, p = softmax(z),
    and S its `top_k` largest,

        y = sum_{e in S} g[e] expert[e](x)

    where g is the softmax over S, as in arXiv 1701.06538; for `top_k=1` it is p itself, as in Switch (Fedus et al.,
    arXiv 2101.03961), since a softmax over one expert gives the gate no gradient. The gate is computed in float32 at
    least, and has no noise of its own. So that all experts are used, training adds Switch's loss,

        balance * experts * sum_e f[e] P[e]

    with f[e] the share of choices that fall on e, P[e] the mean of p[e] over rows; it is `balance` if both are even.

    In training an expert takes no more rows than its capacity: the even share, rows * top_k / experts, times
    `capacity_factor`, rounded up, so one row at least. Rows beyond it get nothing from that expert, with `top_k=1` an
    output of 0, so let a shortcut lead around the layer. First choices come before second ones, and earlier rows before
    later ones; masked positions are rows too. Each expert computes as many rows as its capacity, sent or not.

    Inference has no capacity, so that no row depends on others: each expert then computes all rows.

    Args:
        experts: two or more layers that make (rows, out) of (rows, in), such as a Dense or a Sequential.
        top_k: how many of them each row goes to, an int from 1; 2.
        capacity_factor: a finite float above zero, or None for no capacity; 1.25.
        balance: weight of the loss, a finite float from zero; 0.01.
        **kwargs: those of `keras.layers.Layer`; the dtype policy is that of the first expert unless given.

    Call arguments:
        inputs: floating tensor (batch, ..., in).
        training: whether to train; Keras sets it in `fit`.

    Output shape: (batch, ..., out). Output dtype: this layer's compute dtype.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layer = pnd.contrast.MixtureOfExperts([keras.layers.Dense(5) for _ in range(4)])
    >>> layer(np.ones((2, 3, 8), "float32"), training=True).shape == (2, 3, 5), len(layer.losses)
    (True, 1)
    """

    LISTS = ("experts",)

    def __init__(
        self,
        experts: Layers,
        top_k: int = 2,
        capacity_factor: float | None = 1.25,
        balance: float = 0.01,
        **kwargs: typing.Any,
    ) -> None:
        layers = checks.check_tuple(experts, "experts", "Keras layers")
        if len(layers) < 2:
            raise ValueError(checks.invalid("experts", "two layers or more", experts))
        super().__init__(**{"dtype": getattr(layers[0], "dtype_policy", None), **kwargs})
        self.hold(experts=layers)
        self.top_k = checks.check_count(top_k, "top_k")
        if self.top_k > len(layers):
            raise ValueError(checks.invalid("top_k", f"at most {len(layers)}, all experts", top_k))
        no_limit = capacity_factor is None
        self.capacity_factor = None if no_limit else checks.check_positive(capacity_factor, "capacity_factor")
        self.balance = checks.check_positive(balance, "balance", zero=True)
        self._gate_initializer = keras.initializers.GlorotUniform()  # has its seed now, whenever the gate is built
        self.supports_masking = True

    @property
    def experts(self) -> list[typing.Any]:
        """The experts in their order."""
        return self.held("experts")

    def build(self, input_shape: Shape) -> None:
        if len(input_shape) < 2 or not input_shape[-1]:
            raise ValueError(checks.invalid("inputs", "rank from 2, of a known size along the last axis", input_shape))
        shape = (input_shape[-1], len(self.experts))
        self.gate = self.add_weight(name="gate", shape=shape, initializer=self._gate_initializer, autocast=False)
        made = {built(expert, (None, input_shape[-1])) for expert in self.experts}
        if len(made) > 1 or len(made.pop()) != 2:
            raise ValueError(checks.invalid("experts", "layers that all make (rows, out) of (rows, in)", self.experts))

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        inputs, trains = floating(inputs, ("dense",)), checks.check_training(training)
        check_size(inputs, -1, self.gate.shape[0])
        *leading, size = xp.shape(inputs)
        x = keras.ops.reshape(inputs, (math.prod(leading), size))
        chosen, weights, p = self.routes(x)
        if trains:
            self.add_loss(self.balance * self.imbalance(chosen, p))
        rows = xp.shape(x)[0]
        capacity = self.capacity(rows) if trains else rows
        y = keras.ops.cast(self._sent(x, chosen, weights, rows, capacity, training), self.compute_dtype)
        return keras.ops.reshape(y, (*leading, y.shape[-1]))

    def routes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The experts of each of the rows x, (rows, in), best first.

        Returns:
            Their numbers, int32 (rows, top_k); their weights, (rows, top_k); the probabilities p, (rows, experts).
        """
        dtype = keras.backend.result_type(x.dtype, "float32")
        logits = keras.ops.matmul(keras.ops.cast(x, dtype), keras.ops.cast(self.gate, dtype))
        p = keras.ops.softmax(logits)
        best, chosen = keras.ops.top_k(logits, self.top_k)
        weights = keras.ops.softmax(best) if self.top_k > 1 else keras.ops.take_along_axis(p, chosen, axis=-1)
        return keras.ops.cast(chosen, "int32"), weights, p

    def imbalance(self, chosen: Tensor, p: Tensor) -> Tensor:
        """Switch's loss of what `routes` gives, without its weight: 1 where the experts are used evenly."""
        hot = keras.ops.one_hot(chosen, len(self.experts), dtype=p.dtype)
        rows = keras.ops.cast(keras.ops.maximum(keras.ops.shape(p)[0], 1), p.dtype)  # no rows have the loss 0
        f = keras.ops.sum(hot, axis=(0, 1)) / (rows * self.top_k)
        return len(self.experts) * keras.ops.sum(f * keras.ops.sum(p, axis=0) / rows)

    def capacity(self, rows: typing.Any) -> typing.Any:
        """How many of so many rows an expert takes in training, an int, or a scalar tensor as `rows` is."""
        if self.capacity_factor is None:
            return rows
        factor = max(fractions.Fraction(self.capacity_factor).limit_denominator(FINEST), fractions.Fraction(1, FINEST))
        share = min(fractions.Fraction(1), factor * self.top_k / len(self.experts))
        return -(-rows * share.numerator // share.denominator)

    def _sent(
        self, x: Tensor, chosen: Tensor, weights: Tensor, rows: typing.Any, capacity: typing.Any, training: bool | None
    ) -> Tensor:
        """The sum of what the experts make of the rows, each of which takes a number of them."""
        chosen = keras.ops.reshape(keras.ops.transpose(chosen), (self.top_k * rows,))  # all first choices, then others
        hot = keras.ops.one_hot(chosen, len(self.experts), dtype="int32")
        place = keras.ops.sum((keras.ops.cumsum(hot, axis=0) - hot) * hot, axis=-1)  # how many came before
        taken = place < capacity
        queue = keras.ops.where((hot > 0) & taken[:, None], place[:, None], self.top_k * rows)
        senders = keras.ops.argsort(keras.ops.transpose(queue), axis=-1)[:, :capacity] % rows
        sent = [keras.ops.take(x, senders[n], axis=0) for n in range(len(self.experts))]
        y = [expert(some, training=training) for expert, some in zip(self.experts, sent, strict=True)]
        y = keras.ops.take(keras.ops.concatenate(y), chosen * capacity + keras.ops.where(taken, place, 0), axis=0)
        g = keras.ops.reshape(keras.ops.transpose(weights), (self.top_k * rows,))
        y = keras.ops.cast(y, g.dtype) * keras.ops.where(taken, g, 0)[:, None]
        return keras.ops.sum(keras.ops.reshape(y, (self.top_k, rows, y.shape[-1])), axis=0)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.experts[0].compute_output_shape((None, input_shape[-1]))[-1])

    def get_config(self) -> Config:
        own = {"top_k": self.top_k, "capacity_factor": self.capacity_factor, "balance": self.balance}
        return {**super().get_config(), **own}

"""FractalNet's drop-path: columns side by side, of which whole ones are dropped (Larsson et al., arXiv 1605.07648)."""

import typing

import keras

from pernodedrop import checks, mask, schedules
from pernodedrop._types import Config, Key, Shape, Sharing, Tensor, Words
from pernodedrop.contrast.several import Layers, Several, built
from pernodedrop.layers.base.noisy import Noisy, at_least_float32, floating, xp
from pernodedrop.mask import Mask
from pernodedrop.noise import Bernoulli
from pernodedrop.schedules import Schedule

SURVIVOR, COLUMN, MODE = 1, 2, 3
"""Lanes of what is drawn beside the entries: who stays where all are dropped, the one column, local or global."""


@keras.saving.register_keras_serializable("pernodedrop")
class FractalJoin(Noisy):
    """The mean of its inputs; in training, of those that drop-path keeps (arXiv 1605.07648).

    With m[k] in {0, 1} the column k is kept or dropped, and

        y = sum_k m[k] x[k] / sum_k m[k]

    Inference is the mean of all. In training a draw is local with probability 1 - global_share: each column is dropped
    with probability `rate`, and if all are, one of them stays, each with the same probability. Otherwise it is global:
    one column of the network stays, each with the same probability. Whether a draw is global, and of which column, is
    a function of (seed, call) alone. So joins that have one seed and are called equally often agree on it, and a single
    column leads through the whole network; their local draws differ by `place`. Dropped columns are computed, too.

    Args:
        rate: drop rate of a column in local draws, in [0, 1), or a schedule of `pernodedrop.schedules`; 0.15.
        global_share: the probability that a draw is global, a float in [0, 1]; 0.5.
        columns: how many columns the network has; None: as many as the join has inputs. The inputs are its first
            columns; a global draw of another one, which does not pass here, becomes local.
        place: number of the join in its network, an int from 0; 0.
        sharing: "sample", the default and the paper's: one draw for a batch. None: one for each sample.
        seed: any int; None takes one from Python's `random`. Give all joins of a network the same one.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: the columns, a list of floating tensors (batch, ...) of one shape.
        training: whether to train; Keras sets it in `fit`.
        key: the key to use instead of drawing one, from `draw()`.
        sample_ids: integer tensor (batch,): the sample coordinate of each row, with `sharing=None`.

    Output shape and dtype: those of one column.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import numpy as np, pernodedrop as pnd
    >>> join = pnd.contrast.FractalJoin(global_share=1.0, sharing=None, seed=1)
    >>> columns = [np.full((4, 1), column, "float32") for column in (1, 3)]
    >>> [np.asarray(join(columns, training=training)).ravel().tolist() for training in (False, True)]
    [[2.0, 2.0, 2.0, 2.0], [3.0, 1.0, 1.0, 1.0]]
    """

    def __init__(
        self,
        rate: float | Schedule = 0.15,
        global_share: float = 0.5,
        columns: int | None = None,
        place: int = 0,
        sharing: Sharing = "sample",
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        start, schedule = schedules.get(rate)
        shared = mask.parse_sharing(() if sharing is None else sharing)
        if not shared <= {"sample"}:
            raise ValueError(checks.invalid("sharing", "'sample' or None", sharing))
        super().__init__(mask=Mask(Bernoulli(start), shared), seed=seed, schedule=schedule, **kwargs)
        self.global_share = checks.check_probability(global_share, "global_share")
        self.columns = None if columns is None else checks.check_count(columns, "columns")
        self.place = checks.check_word(place, "place")
        self.supports_masking = True

    @property
    def is_stochastic(self) -> bool:
        """Whether training calls with other keys give other outputs."""
        return self.global_share > 0 or super().is_stochastic

    def build(self, input_shape: typing.Any) -> None:
        self.compute_output_shape(input_shape)

    def call(
        self, inputs: list[Tensor], training: bool | None = None, key: Key | None = None, sample_ids: Words = None
    ) -> Tensor:
        if not isinstance(inputs, tuple | list) or not all(hasattr(one, "shape") for one in inputs):
            raise self._refusal(inputs)
        self.compute_output_shape([tuple(one.shape) for one in inputs])
        x = [at_least_float32(floating(one, ("dense",))) for one in inputs]
        if not self.has_noise(training):
            return xp.astype(sum(x) / len(x), self.compute_dtype)
        kept = xp.astype(self._kept(len(x), inputs[0], key, self.samples(inputs[0], sample_ids)), xp.dtype(x[0]))
        kept = xp.reshape(kept / xp.sum(kept, axis=1)[:, None], (-1, len(x), *(1 for _ in x[0].shape[1:])))
        return xp.astype(sum(one * kept[:, n] for n, one in enumerate(x)), self.compute_dtype)

    def _kept(self, count: int, like: Tensor, key: Key | None, samples: Words) -> Tensor:
        """Which columns stay, a bool tensor (samples, count)."""
        field, zero, column = self.field(key, xp.device(like)), xp.arange(1, like=like), xp.arange(count, like=like)
        sample = (zero if "sample" in self.sharing else samples)[:, None]
        place = xp.asarray(xp.as_word(self.place), device=xp.device(like))[:, None]

        def uniform(lane: int, time: Tensor) -> Tensor:
            return xp.uniform(field.words(lane, time, sample, zero, zero, xp))

        def is_one_of(choices: int, u: Tensor) -> Tensor:
            return xp.astype(column, "int32") == xp.astype(xp.floor(u * choices), "int32")

        alive = field.entries(place, sample, column, zero, xp) > 0
        none_is = xp.sum(xp.astype(alive, "int32"), axis=1)[:, None] == 0
        kept = alive | (none_is & is_one_of(count, uniform(SURVIVOR, place)))
        alone = is_one_of(self.columns or count, uniform(COLUMN, zero))  # of a column that is not here: none
        is_alone = xp.sum(xp.astype(alone, "int32"), axis=1)[:, None] > 0
        is_global = is_alone & (uniform(MODE, zero) < self.global_share)
        return (is_global & alone) | (~is_global & kept)

    def compute_mask(self, inputs: typing.Any, previous_mask: typing.Any) -> typing.Any:
        """The mask of the mean, that of `keras.layers.Average`."""
        return keras.layers.Average.compute_mask(self, inputs, previous_mask)  # which asks nothing of a layer

    def compute_output_shape(self, input_shape: typing.Any) -> Shape:
        listed = isinstance(input_shape, tuple | list) and all(isinstance(one, tuple | list) for one in input_shape)
        shapes = input_shape if listed else []
        sizes = [[size for size in some if size is not None] for some in zip(*shapes, strict=False)]  # as far as known
        ranks = {len(shape) for shape in shapes}
        unequal = len(ranks) > 1 or any(size != some[0] for some in sizes for size in some)
        if unequal or not 0 < len(shapes) <= self._most:
            raise self._refusal(input_shape)
        return tuple(shapes[0])

    @property
    def _most(self) -> int:
        return self.columns or 2**16

    def _refusal(self, received: typing.Any) -> ValueError:
        return ValueError(
            checks.invalid("inputs", f"a list of the columns, tensors of one shape, {self._most} at most", received)
        )

    def fold(self) -> keras.layers.Layer:
        """A plain Keras layer that computes what this layer does at inference: `keras.layers.Average`."""
        return keras.layers.Average(name=self.name, dtype=self.dtype_policy)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "rate": self.rate_config,
            "global_share": self.global_share,
            "columns": self.columns,
            "place": self.place,
            "sharing": "sample" if "sample" in self.sharing else None,
        }


@keras.saving.register_keras_serializable("pernodedrop")
class FractalBlock(Several, keras.layers.Layer):
    """A fractal of layers: columns of several depths, with drop-path where they join (FractalNet, arXiv 1605.07648).

    With `+` the join of those columns that a draw keeps, and each `layer` another one,

        f[1](x) = layer(x),    f[c + 1](x) = f[c](f[c](x)) + layer(x)

    where joins that follow one another directly are one. Of c columns the deepest has 2**(c - 1) layers in a row.
    Joins are `pernodedrop.contrast.FractalJoin`: a global draw takes one column through the whole block, and through
    all blocks of as many columns that have the same seed. Inference has all columns. `pernodedrop.fold` of a model
    makes averages of joins.

    Args:
        units: the layers, 2**c - 1 of them for c columns, those of the deepest column first, and the one layer of the
            shallowest last.
        rate, global_share, sharing, seed: as for `FractalJoin`.
        place: number of the block in its network, an int from 0; 0.
        joins: what joins columns instead, 2**(c - 2) layers, such as `keras.layers.Average`; None makes them of the
            arguments before.
        **kwargs: those of `keras.layers.Layer`; the dtype policy is that of the first layer unless given.

    Call arguments:
        inputs: floating tensor, as the layers take it.
        training: whether to train; Keras sets it in `fit`.

    Output shape: that of the layers. Output dtype: this layer's compute dtype.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> block = pnd.contrast.FractalBlock([keras.layers.Dense(5, activation="relu") for _ in range(7)], seed=1)
    >>> block(np.ones((2, 4), "float32"), training=True).shape == (2, 5), len(block.trainable_variables)
    (True, 14)
    """

    LISTS = ("units", "joins")

    def __init__(
        self,
        units: Layers,
        rate: float | Schedule = 0.15,
        global_share: float = 0.5,
        place: int = 0,
        sharing: Sharing = "sample",
        seed: int | None = None,
        joins: Layers | None = None,
        **kwargs: typing.Any,
    ) -> None:
        layers = checks.check_tuple(units, "units", "Keras layers")
        columns = len(layers).bit_length()
        if not columns or len(layers) + 1 != 2**columns:
            raise ValueError(checks.invalid("units", "2**columns - 1 layers, one or more", units))
        super().__init__(**{"dtype": getattr(layers[0], "dtype_policy", None), **kwargs})
        self.columns, count = columns, 2**columns // 4
        if joins is None:
            first = FractalJoin(rate, global_share, columns, place, sharing, seed)
            shared = {**first.get_config(), "seed": first.seed, "dtype": self.dtype_policy}
            places = range(first.place * count, (first.place + 1) * count)
            joins = [FractalJoin.from_config({**shared, "name": f"join_{n}", "place": n}) for n in places]
        if len(checks.check_tuple(joins, "joins", "Keras layers")) != count:
            raise ValueError(checks.invalid("joins", f"{count} layers, with so many units", joins))
        self.hold(units=layers, joins=joins)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        self._through(input_shape, built)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        y = self._through(inputs, lambda layer, x: layer(x, training=training))
        return y if y.dtype == self.compute_dtype else keras.ops.cast(y, self.compute_dtype)

    def rematerialized_call(
        self, layer_call: typing.Callable[..., Tensor], *args: typing.Any, **kwargs: typing.Any
    ) -> typing.Callable[..., Tensor]:
        return layer_call  # the layers inside make themselves again, and joins draw before

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor | None) -> Tensor | None:
        return self.held("units")[-1].compute_mask(inputs, previous_mask)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(self.held("units")[-1].compute_output_shape(input_shape))

    def _through(self, inputs: typing.Any, called: typing.Callable[[typing.Any, typing.Any], typing.Any]) -> typing.Any:
        """What comes out at the last join, where layers give what `called` says."""
        units, joins = self.held("units"), iter(self.held("joins"))
        hidden = dict.fromkeys(range(self.columns), inputs)  # column 0 is the deepest, with a layer in each row
        for row in range(1, 2 ** (self.columns - 1) + 1):
            ending = [column for column in hidden if row % 2**column == 0]
            first = {column: 2**self.columns - 2 ** (self.columns - column) - 1 for column in ending}
            ends = [called(units[first[column] + row // 2**column], hidden[column]) for column in ending]
            hidden |= dict.fromkeys(ending, called(next(joins), ends) if len(ends) > 1 else ends[0])
        return hidden[0]

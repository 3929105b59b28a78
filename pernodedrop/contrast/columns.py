"""FractalNet's drop-path: columns side by side, of which whole ones are dropped (Larsson et al., arXiv 1605.07648)."""

import functools
import math
import typing

import keras

from pernodedrop import checks, mask, schedules
from pernodedrop._types import Config, Key, Shape, Sharing, Tensor, Words
from pernodedrop.contrast import copies
from pernodedrop.internals import of_keras
from pernodedrop.layers.base.around import Around
from pernodedrop.layers.base.noise_layer import NoiseLayer
from pernodedrop.layers.base.noisy import Noisy, at_least_float32, check_built, floating, xp
from pernodedrop.mask import Field, Mask
from pernodedrop.noise import Bernoulli
from pernodedrop.schedules import Schedule

SURVIVOR, COLUMN, MODE = 1, 2, 3
"""Lanes of what is drawn beside the entries: who stays where all are dropped, the one column, local or global."""

MOST_COLUMNS = 10
"""Of a block, which has 2**columns - 1 layers."""


class Columns(Noisy):
    """Base of what joins columns: which of them a draw keeps, and the mean of these.

    Args:
        rate, global_share, columns, place, sharing, seed, **kwargs: those of `FractalJoin`.
    """

    def __init__(
        self,
        rate: float | Schedule,
        global_share: float,
        columns: int | None,
        place: int,
        sharing: Sharing,
        seed: int | None,
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

    def drawn(
        self, like: Tensor, training: bool | None, key: Key | None, sample_ids: Tensor | None
    ) -> tuple[Field | None, Words]:
        """What all joins of a call have in common: the mask at its key, or None, and the sample coordinates."""
        if not self.has_noise(training):
            return None, None
        samples = self.samples(like, sample_ids)
        samples = xp.arange(1, like=like) if "sample" in self.sharing else samples
        return self.field(key, xp.device(like)), samples

    def joined(self, columns: list[Tensor], field: Field | None, samples: Words, row: int = 0) -> Tensor:
        """The mean of those columns that a mask keeps, by default of all.

        Args:
            columns: tensors of one shape.
            field, samples: those of `drawn`.
            row: which of the joins at its place it is.
        """
        total = [at_least_float32(column) for column in columns]
        dtype, count = xp.dtype(columns[0]), len(columns)
        if field is None:
            return xp.astype(sum(total) / count, dtype)
        kept = xp.astype(self._kept(count, columns[0], field, samples, row), xp.dtype(total[0]))
        kept = kept / xp.sum(kept, axis=1)[:, None]
        shape = (-1,) + (1,) * (len(columns[0].shape) - 1)
        return xp.astype(sum(x * xp.reshape(kept[:, n], shape) for n, x in enumerate(total)), dtype)

    def _kept(self, count: int, like: Tensor, field: Field, samples: Words, row: int) -> Tensor:
        """Which columns stay, a bool tensor (samples, count)."""
        zero, sample = xp.arange(1, like=like), samples[:, None]
        place, row = (xp.asarray(xp.as_word(n), device=xp.device(like)) for n in (self.place, row))
        column = xp.arange(count, like=like)
        number = xp.astype(column, "int32")

        def uniform(lane: int, time: Words, out: Words) -> Tensor:
            return xp.uniform(field.words(lane, time[:, None], sample, zero, out, xp))

        def one_of(choices: int, u: Tensor) -> Tensor:
            return xp.astype(xp.floor(u * choices), "int32")

        alive = xp.astype(field.entries(place[:, None], sample, column, row, xp) > 0, "int32")
        none_is = xp.sum(alive, axis=1)[:, None] == 0
        kept = (alive > 0) | (none_is & (number == one_of(count, uniform(SURVIVOR, place, row))))
        if self.global_share == 0:
            return kept
        chosen = one_of(self.columns or count, uniform(COLUMN, zero, zero))
        alone = (uniform(MODE, zero, zero) < self.global_share) & (chosen < count)
        return (alone & (number == chosen)) | (~alone & kept)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "rate": self.rate_config,
            "global_share": self.global_share,
            "columns": self.columns,
            "place": self.place,
            "sharing": "sample" if "sample" in self.sharing else None,
        }

    def _check_columns(self, shapes: typing.Any) -> Shape:
        """The shape of one of the columns, or an error."""
        most = "" if self.columns is None else f", {self.columns} at most"
        expected = f"a list of the columns, tensors of one shape, samples first{most}"
        listed = isinstance(shapes, tuple | list) and shapes and all(isinstance(one, tuple | list) for one in shapes)
        if not listed or len(shapes) > (self.columns or math.inf):
            raise ValueError(checks.invalid("inputs", expected, shapes))
        first, *others = map(tuple, shapes)
        if not first or any(len(one) != len(first) or not all(map(_fit, one, first)) for one in others):
            raise ValueError(checks.invalid("inputs", expected, shapes))
        return first


@keras.saving.register_keras_serializable("pernodedrop")
class FractalJoin(Columns):
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
        super().__init__(rate, global_share, columns, place, sharing, seed, **kwargs)

    def build(self, input_shape: typing.Any) -> None:
        self._check_columns(input_shape)

    def call(
        self,
        inputs: list[Tensor],
        training: bool | None = None,
        key: Key | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        listed = isinstance(inputs, tuple | list)
        self._check_columns([tuple(one.shape) if hasattr(one, "shape") else one for one in inputs] if listed else None)
        inputs = [floating(one, ("dense",)) for one in inputs]
        return self.joined(inputs, *self.drawn(inputs[0], training, key, sample_ids))

    def compute_mask(self, inputs: typing.Any, previous_mask: typing.Any) -> typing.Any:
        """The mask of the mean, that of `keras.layers.Average`."""
        return keras.layers.Average.compute_mask(self, inputs, previous_mask)  # which asks nothing of a layer

    def compute_output_shape(self, input_shape: typing.Any) -> Shape:
        return self._check_columns(input_shape)

    def fold(self) -> keras.layers.Layer:
        """A plain Keras layer that computes what this layer does at inference: `keras.layers.Average`."""
        return keras.layers.Average(name=self.name, dtype=self.dtype_policy)


@keras.saving.register_keras_serializable("pernodedrop")
class FractalBlock(Columns, Around):
    """A fractal of layers like a given one: columns of several depths, with drop-path where they join (FractalNet).

    This is arXiv 1605.07648. With f[1](x) = layer(x) and `+` the join of those columns that a draw keeps,

        f[c + 1](x) = f[c](f[c](x)) + layer(x)

    where joins that follow one another directly are one. There are 2**columns - 1 layers, each with weights of its own.
    The deepest column has 2**(columns - 1) of them in a row; the inner layer is the shallowest column. Joins are those
    of `pernodedrop.contrast.FractalJoin`: global draws take one column through the whole block, and through all blocks
    that have the same seed. Inference has all columns.

    Args:
        layer: the inner layer, such as a Dense or a Sequential, which is copied by its config. It has to take its own
            outputs as inputs, whose last axis may then have another size (not for a functional model). A seed in it,
            of noise or of an initializer, becomes another one in each copy.
        columns: how many columns, an int from 1 to 10; 2.
        rate, global_share, place, sharing, seed, **kwargs: as for `FractalJoin`. `place` is the number of the block in
            its network. The dtype policy is the inner layer's unless given.

    Call arguments:
        inputs: floating tensor, as the inner layer takes it.
        training, key, sample_ids: as for `FractalJoin`.

    Output shape: the inner layer's. Output dtype: this layer's compute dtype.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> block = pnd.contrast.FractalBlock(keras.layers.Dense(5, activation="relu"), columns=3, seed=1)
    >>> block(np.ones((2, 4), "float32"), training=True).shape == (2, 5), len(block.trainable_variables)
    (True, 14)
    """

    columns: int

    def __init__(
        self,
        layer: keras.layers.Layer,
        columns: int = 2,
        rate: float | Schedule = 0.15,
        global_share: float = 0.5,
        place: int = 0,
        sharing: Sharing = "sample",
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        if checks.check_count(columns, "columns") > MOST_COLUMNS:
            raise ValueError(checks.invalid("columns", f"an int from 1 to {MOST_COLUMNS}", columns))
        kwargs = {"dtype": copies.check_layer(layer).dtype_policy, "layer": layer, **kwargs}
        super().__init__(rate, global_share, columns, place, sharing, seed, **kwargs)
        copies.hold(self, "copy", copies.fresh(layer, 2**self.columns - 2))
        self.supports_masking = layer.supports_masking

    @property
    def copies(self) -> list[typing.Any]:
        """The layers beside the inner one, those of the deepest column first."""
        return copies.held(self, "copy", 2**self.columns - 2)

    def build(self, input_shape: Shape) -> None:
        rows = 2 ** (self.columns - 1)
        hidden = {column: tuple(input_shape) for column in range(self.columns)}
        for row in range(1, rows + 1):
            ending = [column for column in hidden if row % 2**column == 0]
            shapes = []
            for column in ending:
                layer = self._layer(column, row)
                if not layer.built:
                    layer.build(hidden[column])
                    layer.built = True
                shapes.append(tuple(layer.compute_output_shape(hidden[column])))
            hidden |= dict.fromkeys(ending, self._check_columns(shapes))

    def call(
        self,
        inputs: Tensor,
        training: bool | None = None,
        key: Key | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        return self._call(inputs, training, key, sample_ids)

    def rematerialized_call(
        self, layer_call: typing.Callable[..., Tensor], *args: typing.Any, **kwargs: typing.Any
    ) -> typing.Callable[..., Tensor]:
        # Keras' context, which tells inner layers whether they train, is gone when the backward pass calls again
        telling = functools.partial(self._call, told={"training": kwargs.get("training")})
        return super().rematerialized_call(telling, *args, **kwargs)

    def _call(
        self,
        inputs: Tensor,
        training: bool | None = None,
        key: Key | None = None,
        sample_ids: Tensor | None = None,
        told: Config | None = None,
    ) -> Tensor:
        """What a call gives; `told` are arguments of the inner layers."""
        mask, inputs = of_keras.mask_of(inputs), floating(inputs, ("dense",))
        field, samples = self.drawn(inputs, training, key, sample_ids)

        def join(columns: list[Tensor], row: int) -> Tensor:
            mask = of_keras.mask_of(columns[0])
            columns = [keras.ops.cast(column, self.compute_dtype) for column in columns]
            return _masked(self.joined(columns, field, samples, row) if len(columns) > 1 else columns[0], mask)

        return self._through(_masked(inputs, mask), join, lambda layer, x: layer(x, **(told or {})))

    def compute_mask(self, inputs: typing.Any, previous_mask: typing.Any) -> typing.Any:
        """The mask that the inner layer gives."""
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(self.layer.compute_output_shape(input_shape))

    def fold(self) -> keras.Model:
        """A model of plain Keras layers that computes what this layer does at inference.

        Noisy inner layers are folded; those inside an inner model stay as they are.

        Raises:
            ValueError: a layer that is not built, or an inner one that cannot be folded.
        """
        check_built(self)
        x = keras.Input(self.get_build_config()["input_shape"][1:], dtype=self.compute_dtype)
        again = type(self).from_config(self.get_config())
        again.build(self.get_build_config()["input_shape"])
        for mine, theirs in zip([self.layer, *self.copies], [again.layer, *again.copies], strict=True):
            theirs.set_weights(mine.get_weights())
        plain = {layer: _plain(layer) for layer in [again.layer, *again.copies]}

        def join(columns: list[Tensor], row: int) -> Tensor:
            return keras.layers.Average(name=f"{self.name}_join_{row}", dtype=self.dtype_policy)(columns)

        return keras.Model(x, again._through(x, join, lambda layer, y: plain[layer](y)), name=self.name)

    def get_config(self) -> Config:
        return {**super().get_config(), "columns": self.columns}

    def _layer(self, column: int, row: int) -> keras.layers.Layer:
        """The layer of a column that ends in a row; column 0 is the deepest, and has one in each row from 1."""
        if column == self.columns - 1:
            return self.layer
        before = 2**self.columns - 2 ** (self.columns - column)  # those of the deeper columns
        return self.copies[before + row // 2**column - 1]

    def _through(
        self,
        inputs: Tensor,
        join: typing.Callable[[list[Tensor], int], Tensor],
        called: typing.Callable[[keras.layers.Layer, Tensor], Tensor],
    ) -> Tensor:
        """What comes out at the last join, from what joins and calls of layers give."""
        hidden = dict.fromkeys(range(self.columns), inputs)
        for row in range(1, 2 ** (self.columns - 1) + 1):
            ending = [column for column in hidden if row % 2**column == 0]
            hidden |= dict.fromkeys(ending, join([called(self._layer(c, row), hidden[c]) for c in ending], row))
        return hidden[0]


def _plain(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A layer without noise, under the name of the noisy one, which has it alone."""
    if not isinstance(layer, NoiseLayer):
        return layer
    plain = layer.fold()
    plain.name = layer.name
    return plain


def _masked(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """A tensor with the mask that Keras notes for it."""
    if mask is not None and of_keras.mask_of(tensor) is None:
        of_keras.set_mask(tensor, mask)
    return tensor


def _fit(size: typing.Any, other: typing.Any) -> bool:
    """Whether two sizes are equal, as far as they are known."""
    return None in (size, other) or size == other

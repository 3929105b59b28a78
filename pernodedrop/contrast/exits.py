"""EarlyExits: a network that easy samples leave before its end (BranchyNet, arXiv 1709.01686)."""

import collections.abc
import functools
import typing

import keras
import numpy as np

from pernodedrop import checks
from pernodedrop._types import Config, Shape, Tensor
from pernodedrop.contrast.several import Layers, Several, built
from pernodedrop.internals import of_keras

Numbers: typing.TypeAlias = float | collections.abc.Sequence[float]


@keras.saving.register_keras_serializable("pernodedrop")
class EarlyExits(Several, keras.Model):
    """A classifier with an exit after each of its stages, which `fit` trains jointly (BranchyNet, arXiv 1709.01686).

    With h[n] = stage[n](h[n - 1]), h[-1] the input, and y[n] = exit[n](h[n]) probabilities over classes, training
    minimizes the weighted sum of the losses at all exits, of the loss that the model is compiled with:

        L = sum_n w[n] loss(y, y[n])

    At inference a sample has the output of the first exit where the entropy, -sum_c y[n, c] ln(y[n, c]), is below the
    threshold, or else of the last. Calls, `predict` and `evaluate` compute all stages and then choose; metrics, and the
    loss of `evaluate`, are those of the chosen outputs. `predict_exits` computes no more stages for samples that left.

    What `predict_exits` saves is less than what it does not compute, since the output of each stage comes to the host;
    the gallery has figures.

    Args:
        stages: layers or models, each of which takes the output of the one before.
        exits: as many layers or models, each of which makes probabilities (batch, classes) of its stage's output.
        exit_weights: w, a finite float from zero for each exit, or one for all; 1.0. The paper gives the first exit
            more weight than those after it.
        thresholds: those of the entropy, in nats, a finite float from zero for each exit but the last, or one for all;
            0.0, which no sample is below. Set them when the model is trained: `model.thresholds = 0.3`.
        **kwargs: those of `keras.Model`.

    Call arguments: inputs (batch, ...), those of the first stage; training.

    Output: (batch, classes), in the dtype of the exits. In training a list: the output of each exit, and last of all
    the chosen one.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> stages = [keras.layers.Dense(8, activation="relu") for _ in range(2)]
    >>> exits = [keras.layers.Dense(3, activation="softmax") for _ in stages]
    >>> model = pnd.contrast.EarlyExits(stages, exits, thresholds=2.0)  # above ln(3): all leave at once
    >>> outputs, taken = model.predict_exits(np.ones((2, 4), "float32"))
    >>> taken
    array([0, 0])
    """

    LISTS = ("stages", "exits")

    def __init__(
        self,
        stages: Layers,
        exits: Layers,
        exit_weights: Numbers = 1.0,
        thresholds: Numbers = 0.0,
        **kwargs: typing.Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hold(stages=stages, exits=exits)
        count = len(self.stages)
        if not count or len(self.exits) != count:
            raise ValueError(checks.invalid("exits", f"as many as stages, {count}, one or more", exits))
        self.exit_weights = _numbers(exit_weights, "exit_weights", count)
        self._thresholds = self.add_weight(
            (count - 1,), "zeros", "float32", trainable=False, autocast=False, name="thresholds"
        )
        self.thresholds = thresholds
        self._part_of = functools.cache(lambda n: _Part(self.stages[n], self.exits[n]))

    @property
    def stages(self) -> list[typing.Any]:
        """The stages in their order."""
        return self.held("stages")

    @property
    def exits(self) -> list[typing.Any]:
        """The exits in their order."""
        return self.held("exits")

    @property
    def thresholds(self) -> list[float]:
        """The entropies below which samples leave, one for each exit but the last. Those that are set hold at once."""
        return [float(value) for value in keras.ops.convert_to_numpy(self._thresholds)]

    @thresholds.setter
    def thresholds(self, thresholds: Numbers) -> None:
        self._thresholds.assign(np.array(_numbers(thresholds, "thresholds", len(self.exits) - 1), "float32"))

    def build(self, input_shape: Shape) -> None:
        for stage, leave in zip(self.stages, self.exits, strict=True):
            input_shape = built(stage, input_shape)
            built(leave, input_shape)
        self.built = True

    def call(self, inputs: Tensor, training: bool | None = None) -> typing.Any:
        outputs, hidden = [], inputs
        for stage, leave in zip(self.stages, self.exits, strict=True):
            hidden = stage(hidden, training=training)
            outputs.append(leave(hidden, training=training))
        *early, y = outputs
        for n, output in reversed([*enumerate(early)]):
            y = keras.ops.where((_entropy(output) < self._thresholds[n])[:, None], output, y)
        return [*outputs, y] if checks.check_training(training) else y  # on JAX metrics could not ask for thresholds

    def compute_loss(
        self,
        x: typing.Any = None,
        y: typing.Any = None,
        y_pred: typing.Any = None,
        sample_weight: typing.Any = None,
        training: bool = True,
    ) -> typing.Any:
        """The joint loss of what a call of training gives, and what layers add to it."""
        loss = of_keras.compiled_loss(self)
        if loss is None or not isinstance(y_pred, list):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        each = zip(self.exit_weights, y_pred[:-1], strict=True)
        joint = sum(weight * loss(y, output, sample_weight) for weight, output in each)
        return joint + sum(keras.ops.sum(one) for one in self.losses)

    def compute_metrics(
        self, x: typing.Any, y: typing.Any, y_pred: typing.Any, sample_weight: typing.Any = None
    ) -> typing.Any:
        """The metrics of what is chosen."""
        return super().compute_metrics(x, y, y_pred[-1] if isinstance(y_pred, list) else y_pred, sample_weight)

    def predict_exits(self, x: typing.Any, batch_size: int = 32) -> tuple[typing.Any, np.typing.NDArray[np.int64]]:
        """The output of each sample at the exit that it takes, and which exit that is; later stages are not computed.

        The samples that are left go through the next stage in full batches, so there are fewer of these; the last one
        is filled up by repeating samples. The outputs of a stage for all its samples are held on the host.

        Args:
            x: array (n, ...), n from 1, the inputs of the first stage.
            batch_size: an int from 1; 32.

        Returns:
            Two arrays: (n, classes), the probabilities of the exit that each sample took, and int (n,), the number of
            that exit, from 0.

        Raises:
            TypeError, ValueError: an x without samples, a batch size that is no int from 1, or an exit that does not
                give probabilities (n, classes).
        """
        hidden, size = np.asarray(x), checks.check_count(batch_size, "batch_size")
        if hidden.ndim == 0 or len(hidden) == 0:
            raise ValueError(checks.invalid("x", "an array (n, ...), n from 1", hidden.shape))
        rows, exits, outputs = np.arange(len(hidden)), np.zeros(len(hidden), "int64"), np.empty((0, 0))
        for n, threshold in enumerate([*self.thresholds, np.inf]):
            filled = np.resize(np.arange(len(rows)), -(-len(rows) // size) * size)
            made = self._part_of(n).predict(hidden[filled], batch_size=size, verbose=0)
            hidden, y, entropy = (one[: len(rows)] for one in made)
            _check_probabilities(y)
            leaves = entropy < threshold
            outputs = outputs if n else np.zeros((len(exits), y.shape[1]), y.dtype)
            outputs[rows[leaves]], exits[rows[leaves]] = y[leaves], n
            rows, hidden = rows[~leaves], hidden[~leaves]
            if not len(rows):
                break
        return outputs, exits

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        for stage in self.stages:
            input_shape = stage.compute_output_shape(input_shape)
        return tuple(self.exits[-1].compute_output_shape(input_shape))

    def get_config(self) -> Config:
        return {**super().get_config(), "exit_weights": list(self.exit_weights), "thresholds": self.thresholds}


class _Part(keras.Model):
    """A stage and its exit, which may have one name: what goes on, what the exit makes of it, and its entropy."""

    def __init__(self, stage: keras.layers.Layer, leave: keras.layers.Layer) -> None:
        super().__init__(name="part", autocast=False)
        self.stage, self.leave = stage, leave

    def call(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.stage(inputs)
        y = self.leave(hidden)
        return hidden, y, _entropy(y)


TINY = 1e-30
"""Below which a probability counts as this: a float32 that no device takes for 0."""


def _entropy(p: Tensor) -> Tensor:
    """Of probabilities along the last axis, in nats."""
    p = keras.ops.cast(p, "float32")
    return -keras.ops.sum(p * keras.ops.log(keras.ops.maximum(p, TINY)), axis=-1)


def _numbers(given: typing.Any, argument: str, count: int) -> tuple[float, ...]:
    """Finite floats from zero, one for each of so many, or an error."""
    many = [given] * count if checks.is_real(given) else checks.check_tuple(given, argument, "floats")
    if len(many) != count:
        raise ValueError(checks.invalid(argument, f"a float, or {count} of them", given))
    return tuple(checks.check_positive(one, argument, zero=True) for one in many)


def _check_probabilities(y: typing.Any) -> None:
    """Raise unless an exit gave probabilities over classes."""
    if y.ndim != 2 or not (y >= 0).all() or not np.allclose(y.sum(axis=1, dtype="float64"), 1, atol=0.01):
        raise ValueError(checks.invalid("exits", "layers that make probabilities (n, classes), as softmax does", y))

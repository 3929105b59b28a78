"""The loss of a whole data set at the end of an epoch: updated weights, no noise."""

import collections.abc
import typing

import keras
import numpy as np

from pernodedrop import checks
from pernodedrop._types import Tensor
from pernodedrop.internals import of_keras
from pernodedrop.layers import Masksembles
from pernodedrop.study.slot import BATCHES, mixed_seed

EVALUATION = 1024
"""Samples in a batch of an evaluation: large ones are quick, and change no result."""

Logs: typing.TypeAlias = dict[str, float]


class Batches(keras.utils.PyDataset):
    """Batches of arrays, in an order that a seed gives, the same on every backend.

    Args:
        x: array (n, ...), or a sparse matrix of SciPy, whose rows are dense only in their batch.
        y: array (n, ...).
        batch_size: an int from 1; the last batch of an epoch has what is left.
        seed: int of the order, which is another one every epoch; None keeps the order of the arrays.
    """

    def __init__(self, x: typing.Any, y: typing.Any, batch_size: int, seed: int | None = None) -> None:
        super().__init__()
        self.x, self.y, self.batch_size = x, y, batch_size
        self.order: typing.Any = np.arange(x.shape[0])
        self.generator = None if seed is None else np.random.default_rng(mixed_seed(seed, BATCHES))
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        chosen = rows if self.generator is None else self.order[rows]
        x = self.x[chosen]
        return (x.toarray() if hasattr(x, "toarray") else x), self.y[chosen]

    def on_epoch_end(self) -> None:
        """Take the order of the next epoch."""
        if self.generator is not None:
            self.order = self.generator.permutation(len(self.order))


def whole(data: typing.Any, batch_size: int = EVALUATION) -> typing.Any:
    """A data set to evaluate: (x, y) in as few batches as it takes, of about equal size; anything else as it is."""
    if not isinstance(data, tuple):
        return data
    if len(data) != 2 or not all(getattr(one, "shape", ()) for one in data):
        raise ValueError(checks.invalid("data", "(x, y), arrays with the samples first", data))
    x, y = data
    parts = max(1, -(-x.shape[0] // batch_size))
    return Batches(x, y, max(1, -(-x.shape[0] // parts)))


def evaluate(model: keras.Model, data: typing.Any) -> Logs:
    """The loss and the metrics of a compiled model on a whole data set, at inference, without noise.

    A model with Masksembles counts as the ensemble of its members: its outputs are the mean over all of them, while
    `model.evaluate` gives each sample one member, by its place in the batch.

    Args:
        model: a compiled Keras model.
        data: (x, y), or what `model.evaluate` takes as `x`, such as a `tf.data.Dataset` or a loader.

    Returns:
        A dict from "loss" and the names of metrics to floats.
    """
    data = whole(data)
    ensemble = next((layer for layer in of_keras.layers_of(model) if isinstance(layer, Masksembles)), None)
    if ensemble is None or ensemble.members == 1:
        return {name: float(value) for name, value in model.evaluate(data, verbose=0, return_dict=True).items()}
    outputs, targets = [], []
    batches = (data[index] for index in range(len(data))) if isinstance(data, Batches) else data
    for x, y in batches:
        found = model.predict_on_batch(ensemble.repeated(np.asarray(x)))
        outputs.append(found.reshape(-1, ensemble.members, *found.shape[1:]).mean(1))
        targets.append(np.asarray(y))
    return _losses(model, np.concatenate(targets), np.concatenate(outputs))


def _losses(model: keras.Model, y: typing.Any, outputs: typing.Any) -> Logs:
    """What `model.evaluate` gives for outputs that are known."""
    y, outputs = keras.ops.convert_to_tensor(y), keras.ops.convert_to_tensor(outputs)
    model.reset_metrics()
    logs = {"loss": float(model.compute_loss(y=y, y_pred=outputs, training=False))}
    logs |= {name: float(value) for name, value in model.compute_metrics(None, y, outputs).items() if name != "loss"}
    model.reset_metrics()
    return logs


class EpochEndLoss(keras.callbacks.Callback):
    """Evaluates a data set at the end of each epoch: all of it, with the updated weights and without noise.

    That is what PerNodeDrop's paper (arXiv 2512.12663) calls the training loss of an epoch. The loss that `fit` itself
    logs is a mean over the epoch, with the noise on and while the weights change, and cannot be compared with
    `val_loss`. List this callback before those that read what it logs.

    Args:
        data: (x, y), or what `model.evaluate` takes as `x`.
        name: what the figures are called in `logs` and in the history: <name>_loss and <name>_<metric>; "train".

    Raises:
        TypeError: a name that is not a str.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> x, y = np.ones((8, 3), "float32"), np.zeros((8, 1), "float32")
    >>> model = keras.Sequential([keras.Input((3,)), pnd.Dropout(0.5, seed=1), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> callback, logs = pnd.study.EpochEndLoss((x, y)), {}  # for fit(..., callbacks=[callback])
    >>> callback.set_model(model)
    >>> callback.on_epoch_end(0, logs)
    >>> sorted(logs)
    ['train_loss']
    """

    def __init__(self, data: typing.Any, name: str = "train") -> None:
        super().__init__()
        self.data, self.name = whole(data), checks.check_str(name, "name")

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Evaluate, and put the figures into `logs`."""
        found = evaluate(self.model, self.data)
        if logs is not None:
            logs |= {f"{self.name}_{metric}": value for metric, value in found.items()}


class EachEpoch(keras.callbacks.Callback):
    """Calls a function at the end of each epoch with the number of the epoch and a dict of its figures."""

    def __init__(self, function: collections.abc.Callable[[int, Logs], None]) -> None:
        super().__init__()
        self.function = function

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Call it."""
        self.function(epoch, dict(logs or {}))

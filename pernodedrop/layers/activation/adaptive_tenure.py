"""AdaptiveTenure: a callback that chooses the tenure of TabuDropout, inspired by Adaptive Tabu Dropout."""

import math
import typing

import keras

from pernodedrop import checks
from pernodedrop.internals import of_keras
from pernodedrop.layers.activation.tabu_dropout import TabuDropout


class AdaptiveTenure(keras.callbacks.Callback):
    """Changes the tenure of every `TabuDropout` of a model after each epoch, as training goes.

    Inspired by Adaptive Tabu Dropout (arXiv 2501.00538), which selects the tenure by the training performance of the
    epochs; its rule was not found in public. The one here is that of reactive tabu search (Battiti and Tecchiolli,
    1994), with epochs without improvement for its repetitions: after `patience` of them, the tenure is one step more,
    so that other units are tried; after an epoch better than all before, it is one step less, down to 1. The first
    epoch is what the next are compared with and changes nothing.

    Tenures are saved with their layers. What the callback compares with is not, since Keras saves no callback: each
    `fit` begins with its own first epoch, also one that `keras.callbacks.BackupAndRestore` resumes. List this callback
    before those that save the model, or else they save the tenure of the epoch that ended.

    Args:
        highest: highest tenure, an int from the layers' own.
        monitor: the figure to improve, a name in the logs of `fit`; "loss". NaN is no improvement.
        mode: whether less is better, "min", or more, "max"; "min".
        patience: how many epochs without improvement raise the tenure, an int from 1; 1.

    Raises:
        TypeError, ValueError: an argument that is not as described; in `fit`, a model without a `TabuDropout`, or with
            one that cannot have the highest tenure: by its `rate` in the long run, or as its rate has a schedule; or
            logs without `monitor`.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layer = pnd.TabuDropout(0.5, seed=1)
    >>> model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(1)])
    >>> callback = pnd.AdaptiveTenure(highest=4)  # for fit(..., callbacks=[callback])
    >>> callback.set_model(model)
    >>> callback.on_train_begin()
    >>> tenures = []
    >>> for epoch, loss in enumerate([0.9, 0.7, 0.8, 0.7, 0.6]):
    ...     callback.on_epoch_end(epoch, {"loss": loss})
    ...     tenures.append(layer.tenure)
    >>> tenures
    [1, 1, 2, 3, 2]
    """

    def __init__(self, highest: int, monitor: str = "loss", mode: str = "min", patience: int = 1) -> None:
        super().__init__()
        self.highest = checks.check_count(highest, "highest")
        self.monitor = checks.check_str(monitor, "monitor")
        self.mode = checks.check_choice(mode, "mode", ("min", "max"))
        self.patience = checks.check_count(patience, "patience")
        self._found: list[TabuDropout] = []
        self._best: float | None = None
        self._waited = 0

    def on_train_begin(self, logs: typing.Any = None) -> None:
        """Look for the layers, and see that all may have the highest tenure."""
        self._found = [layer for layer in of_keras.layers_of(self.model) if isinstance(layer, TabuDropout)]
        self._best, self._waited = None, 0
        if not self._found:
            raise ValueError(checks.invalid("model", "one with a TabuDropout", self.model))
        for layer in self._found:
            try:
                layer.numbers_with_tenure(self.highest)
            except (AttributeError, ValueError) as error:
                expected = f"a tenure that {layer.name!r} can have"
                raise ValueError(f"{checks.invalid('highest', expected, self.highest)}. {error}") from error
            if layer.tenure > self.highest:
                expected = f"an int from {layer.tenure}, the tenure of {layer.name!r}"
                raise ValueError(checks.invalid("highest", expected, self.highest))

    def on_epoch_end(self, epoch: int, logs: typing.Any = None) -> None:
        """Change the tenures."""
        change = self._change(logs or {})
        for layer in self._found:
            layer.tenure = min(max(layer.tenure + change, 1), self.highest)

    def _change(self, logs: dict[str, typing.Any]) -> int:
        """By how much, after an epoch with these figures."""
        if self.monitor not in logs:
            raise ValueError(checks.invalid("monitor", f"one of {sorted(logs)}", self.monitor))
        figure = float(logs[self.monitor]) * (1 if self.mode == "min" else -1)
        figure = math.inf if math.isnan(figure) else figure
        best, self._best = self._best, figure if self._best is None else min(self._best, figure)
        if best is None:
            return 0
        self._waited = 0 if figure < best else self._waited + 1
        if self._waited == self.patience:
            self._waited = 0
            return 1
        return -1 if figure < best else 0

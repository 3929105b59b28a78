"""One trial: a model is made, trained and evaluated, and the record of it is all that is left."""

import collections.abc
import hashlib
import math
import statistics
import time
import typing

import keras
import numpy as np

from pernodedrop import checks
from pernodedrop._types import Tensor
from pernodedrop.internals.of_keras import compile_like, layers_of
from pernodedrop.losses import RDrop, RDropModel
from pernodedrop.report.environment import environment
from pernodedrop.study.epoch_end import Batches, EachEpoch, EpochEndLoss, Logs, evaluate
from pernodedrop.study.plan import CONFIRM, Trial
from pernodedrop.study.slot import Slot, mixed_seed
from pernodedrop.study.variants import Variant
from pernodedrop.surgery import apply

FORMAT = 1
"""Of a record."""

RULE = 3
"""What seeds of rules are made for, beside those of `slot`."""

TRAINING = ("epochs", "batch_size", "learning_rate", "optimizer", "decay", "patience", "sizes")
"""The settings that are not the model's."""

OnEpoch: typing.TypeAlias = collections.abc.Callable[[int, Logs], None]
Data: typing.TypeAlias = tuple[typing.Any, typing.Any, typing.Any]


class Timer(keras.callbacks.Callback):
    """The seconds of each epoch, without what callbacks do at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Note the time."""
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Wait for the last step, then take the time."""
        float((logs or {}).get("loss", 0.0))
        self.seconds.append(time.perf_counter() - self.began)


class Best:
    """The weights of the epoch with the least validation loss."""

    def __init__(self, model: keras.Model, patience: int | None) -> None:
        self.model, self.patience = model, patience
        self.epochs: list[Logs] = []
        self.epoch, self.loss, self.weights = 0, math.inf, None

    def __call__(self, epoch: int, logs: Logs) -> None:
        figures = {name: float(value) for name, value in logs.items() if name.startswith(("train_", "val_"))}
        self.epochs.append(figures)
        if self.weights is None or figures["val_loss"] < self.loss:
            self.epoch, self.loss, self.weights = epoch, figures["val_loss"], self.model.get_weights()
            self.loss = self.loss if math.isfinite(self.loss) else math.inf
        if self.patience is not None and epoch - self.epoch >= self.patience:
            self.model.stop_training = True


def run(
    trial: Trial,
    make: collections.abc.Callable[..., keras.Model],
    variant: Variant,
    data: Data,
    loss: typing.Any = None,
    metrics: typing.Any = None,
    optimizer: collections.abc.Callable[[], typing.Any] | None = None,
    has_slot: bool = True,
    on_epoch: OnEpoch | None = None,
    title: str | None = None,
) -> Trial:
    """Run one trial.

    Args:
        trial: of a plan.
        make: (slot, **settings) -> a model; without a slot (**settings) -> a built model, and the variant is a rule
            (layer, rate, seed) -> layer or None for `pernodedrop.apply`.
        variant: that of the trial.
        data: training, validation and test data.
        loss, metrics, optimizer: those of `Study`.
        has_slot: whether `make` takes one.
        on_epoch: called with the number of each epoch and its figures.
        title: that of the data, if they have one.

    Returns:
        The record: the trial, and what was found.
    """
    settings, seed = trial["settings"], trial["seed"]
    training, validation, test = data
    keras.utils.set_random_seed(seed)
    own = {name: value for name, value in settings.items() if name not in TRAINING}
    model, start = _model(trial, make, variant, own, has_slot)
    if variant.r_drop is not None:
        if model.compiled:
            raise ValueError(checks.invalid("model", "a model that is not compiled yet, for R-Drop", make))
        loss = RDrop(_loss(loss, model, training), variant.r_drop)
        model = RDropModel(model)
    compiled = {}
    if model.compiled:
        compiled = {"compiled": _compiled(model)}
    else:
        steps = len(batches(training, settings, seed)) if settings.get("decay") else 0
        chosen = optimizer() if optimizer else _optimizer(settings, steps * settings["epochs"])
        model.compile(chosen, _loss(loss, model, training), metrics=_metrics(metrics, loss, training))
    timer, best = Timer(), Best(model, settings.get("patience"))
    callbacks = [timer, EpochEndLoss(training), EpochEndLoss(validation, "val"), EachEpoch(best)]
    callbacks += [EachEpoch(on_epoch)] if on_epoch else []
    keras.utils.set_random_seed(seed)  # what draws without a seed of its own draws the same in every variant
    batched = batches(training, settings, seed)
    model.fit(batched, epochs=settings["epochs"], callbacks=callbacks, verbose=0, shuffle=False)
    found = None
    if trial["stage"] == CONFIRM:
        model.set_weights(best.weights)
        found = evaluate(model, test)
    return {
        **trial,
        "epochs": best.epochs,
        "best_epoch": best.epoch,
        "test": found,
        # the first epoch compiles
        "seconds_per_epoch": round(statistics.median(timer.seconds[1:] or timer.seconds), 4),
        "start": start,
        **({} if title is None else {"data": title}),
        **compiled,
        "environment": environment(keras.backend.backend()),
        "format": FORMAT,
    }


def batches(data: typing.Any, settings: dict[str, typing.Any], seed: int) -> typing.Any:
    """Training data in the order of a seed, if they are arrays; a loader has an order of its own."""
    if not isinstance(data, tuple):
        return data
    x, y = data
    return Batches(x, y, settings["batch_size"], seed)


def _model(
    trial: Trial,
    make: collections.abc.Callable[..., keras.Model],
    variant: Variant,
    settings: dict[str, typing.Any],
    has_slot: bool,
) -> tuple[keras.Model, str]:
    """The model of a trial, and a digest of the network and the initial weights that all variants have."""
    rate = trial["rate"] or 0.0
    if has_slot:
        slot = Slot(variant, rate, trial["seed"])
        model = _checked(make(slot, **settings))
        if not slot.dense:
            raise ValueError(checks.invalid("model", "a function that calls its slot", make))
        if not model.built:
            raise ValueError(checks.invalid("model", "a function that returns a built model (give it an Input)", make))
        return model, digest(slot.start(model), slot.common(model))
    model = _checked(make(**settings))
    start = digest(model.trainable_variables, layers_of(model))
    asked: list[keras.layers.Layer] = []

    def rule(layer: keras.layers.Layer) -> typing.Any:
        asked.append(layer)
        return variant.function(layer, rate, mixed_seed(trial["seed"], RULE, len(asked), variant.seed_bits))

    if not variant.has_rate:
        return model, start
    noisy = apply(model, rule)
    if model.compiled:
        compile_like(noisy, model)
    return noisy, start


def _checked(model: typing.Any) -> keras.Model:
    if not isinstance(model, keras.Model):
        advice = "; pernodedrop.study.compare takes any losses" if checks.native_advice(model) else ""
        raise TypeError(checks.invalid("model", f"a function that returns a Keras model{advice}", model))
    return model


def digest(weights: list[Tensor], layers: list[keras.layers.Layer]) -> str:
    """The first 16 hexadecimal digits of the sha256 of a network: what its layers are, and its weights."""
    parts = [repr(_described(layer)).encode() for layer in layers if not isinstance(layer, keras.Model)]
    parts += [keras.ops.convert_to_numpy(weight).tobytes() for weight in weights]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def _described(layer: keras.layers.Layer) -> tuple[str, dict[str, typing.Any]]:
    """The kind of a layer and its plain settings; names and seeds differ from model to model."""
    try:
        config = layer.get_config()
    except NotImplementedError:  # a layer of the user's that is never saved
        config = {}
    own = {name: config[name] for name in sorted(config.keys() - {"name", "seed"}) if _is_plain(config[name])}
    return type(layer).__name__, own


def _is_plain(value: typing.Any) -> bool:
    """Numbers, words and rows of them; what is None says nothing, and dicts have names."""
    parts = value if isinstance(value, list | tuple) else [value]
    return value is not None and all(part is None or isinstance(part, bool | int | float | str) for part in parts)


def _optimizer(settings: dict[str, typing.Any], steps: int) -> keras.optimizers.Optimizer:
    rate = settings["learning_rate"]
    if settings.get("decay"):
        rate = keras.optimizers.schedules.CosineDecay(rate, steps)
    config = {"learning_rate": rate, **({"momentum": 0.9} if settings["optimizer"] == "sgd" else {})}
    return type(keras.optimizers.get(settings["optimizer"]))(**config)


def _compiled(model: keras.Model) -> dict[str, typing.Any]:
    """The optimizer of a model that comes compiled, and its learning rate at the start, in place of the settings'."""
    optimizer = model.optimizer
    return {"optimizer": type(optimizer).__name__, "learning_rate": float(f"{float(optimizer.learning_rate):.6g}")}


def _loss(loss: typing.Any, model: keras.Model, training: typing.Any) -> typing.Any:
    """The loss that was given, or the one for labels that are integers."""
    if loss is not None:
        return loss
    if not _are_labels(training):
        raise ValueError(checks.invalid("loss", "a loss of Keras, unless targets are integers (n,)", loss))
    activation = getattr(model.layers[-1], "activation", None)
    if activation not in (keras.activations.softmax, keras.activations.linear):
        raise ValueError(checks.invalid("loss", "a loss, or a model that ends in a Dense layer or a softmax", loss))
    return keras.losses.SparseCategoricalCrossentropy(from_logits=activation is keras.activations.linear)


def _metrics(metrics: typing.Any, loss: typing.Any, training: typing.Any) -> typing.Any:
    return ["accuracy"] if metrics is None and loss is None and _are_labels(training) else metrics


def _are_labels(training: typing.Any) -> bool:
    if not isinstance(training, tuple):
        return False
    y = training[1]
    return isinstance(y, np.ndarray) and y.ndim == 1 and y.dtype.kind in "iu"

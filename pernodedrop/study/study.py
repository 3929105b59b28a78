"""Study: data, a model with a slot, variants, what is searched and a protocol; run, gone on with and reported."""

import collections.abc
import dataclasses
import functools
import inspect
import os
import pathlib
import time
import typing

import keras
import numpy as np

from pernodedrop import checks
from pernodedrop.report.results import output_folder
from pernodedrop.study import plan, trial, variants
from pernodedrop.study.plan import Design, Trial
from pernodedrop.study.trial import Data, OnEpoch
from pernodedrop.study.variants import Variant

__all__ = ["Study"]

PARTS = (0.6, 0.2)
"""The shares of data in one piece that train and validate; the rest is the test."""

FOLDER = pathlib.Path("study-results")

OPTIMIZERS = ("adam", "adamw", "rmsprop", "sgd")


class Study:
    """Which regularizer, at which rate, is it more than chance, and what does it cost?

    Every trial makes the model anew, with one variant in its slot. Within a seed all variants start with the same
    weights and see the same batches; only the regularizer differs. At the end of each epoch the whole training and
    validation sets are evaluated, without noise.

    Protocol "sound": few seeds *select* the settings of each variant, by the validation loss of the best epoch. They
    are then *confirmed* on fresh seeds, on the test set, which nothing before has seen. Protocol "paper" is that of
    arXiv 2512.12663: the grid of all rates and settings, by validation loss alone.

    Finished trials are kept: `run` resumes where it stopped, whatever stopped it, and repeats none.

    Args:
        name: a str, of the study and of its folder.
        data: (x, y), which is split at random (60 % train, 20 % validate, 20 % test; always the same ones);
            (train, validation, test), each (x, y) or what `fit` takes as `x`, such as a `tf.data.Dataset` or a torch
            loader; or a function that returns such a pair or triple, which is called once or, if it takes `seed=`, for
            each trial. Lists will do for tuples. x is an array (n, ...) or a sparse matrix of SciPy; y an array
            (n, ...).
        model: function `(slot, **settings)` -> a built Keras model. `slot(width, activation=...)` is a list of layers:
            a `keras.layers.Dense` with the variant before or around it. Or a function without a slot, `(**settings)` ->
            a built model, for variants that are rules. A model that comes compiled keeps its optimizer, learning rate,
            loss and metrics: those given here are for models that do not.
        variants: names of `pernodedrop.study.variants`, or a dict from names to functions (dense, rate, seed) -> list
            of layers. Without a slot, a dict from names to rules (layer, rate, seed) -> a layer in its place, or None
            to keep it; each layer comes with a seed of its own. None in place of a rule is the model as it is.
        rates: rates to try, floats in [0, 1); (0.1, 0.3, 0.5, 0.7).
        search: dict from a keyword of `model`, or the name of a setting below, to a list of values to try, such as
            {"width": [32, 64]}; all combinations are tried.
        settings: dict of further keywords of `model`, the same in all trials.
        seeds: how many fresh seeds confirm (in the paper's protocol: how many the grid has), an int from 1; 5.
        select_seeds: how many seeds select, an int from 1 to 1000; 2.
        epochs: of each trial, an int from 1; 20.
        batch_size: of the training data if they are arrays, an int from 1; 64.
        learning_rate: a float above zero; 1e-3.
        optimizer: "adam", "adamw", "rmsprop", "sgd" (with momentum 0.9), or a function that returns one.
        decay: whether the learning rate falls to zero along a cosine.
        patience: after how many epochs without a better validation loss a trial ends; None: it never ends early.
        loss: a loss of Keras; None takes crossentropy if the targets are integers (n,).
        metrics: those of Keras; None takes accuracy with that loss.
        sizes: how many samples of each of the three parts are taken, at random but always the same; None takes all.
        protocol: "sound" or "paper".
        baselines: names of variants that the report compares all others with; ("dropout", "none").
        folder: where results go; None is study-results/<name>.
        storage: URL of a database for many workers, as SQLAlchemy has it (postgresql+psycopg://...); None is an SQLite
            in the folder.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
    >>> def model(slot):
    ...     return keras.Sequential([keras.Input((4,)), *slot(8, activation="relu"), keras.layers.Dense(2)])
    >>> study = pnd.study.Study("mine", (x, (x[:, 0] > 0).astype("int32")), model, ["none", "dropout"], [0.3, 0.5])
    >>> [len(study.plan("select")), study.plan("select")[1]["variant"], study.plan("select")[1]["rate"]]
    [6, 'dropout', 0.3]
    """

    def __init__(
        self,
        name: str,
        data: typing.Any,
        model: collections.abc.Callable[..., keras.Model],
        variants: typing.Any = ("none", "dropout", "per_node_drop"),
        rates: collections.abc.Iterable[float] = (0.1, 0.3, 0.5, 0.7),
        *,
        search: dict[str, collections.abc.Iterable[typing.Any]] | None = None,
        settings: dict[str, typing.Any] | None = None,
        seeds: int = 5,
        select_seeds: int = 2,
        epochs: int = 20,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        optimizer: typing.Any = "adam",
        decay: bool = False,
        patience: int | None = None,
        loss: typing.Any = None,
        metrics: typing.Any = None,
        sizes: collections.abc.Iterable[int] | None = None,
        protocol: str = "sound",
        baselines: collections.abc.Iterable[str] = ("dropout", "none"),
        folder: str | os.PathLike[str] | None = None,
        storage: str | None = None,
    ) -> None:
        if not isinstance(name, str) or not name or pathlib.Path(name).name != name:
            raise ValueError(checks.invalid("name", "a str that a folder can have", name))
        if not callable(model):
            raise TypeError(checks.invalid("model", "a function that returns a Keras model", model))
        self.name, self.make, self.loss, self.metrics, self.storage = name, model, loss, metrics, storage
        self.has_slot = _takes_slot(model)
        self.variants = _variants(variants, self.has_slot)
        baselines = checks.check_tuple(baselines, "baselines", "names of variants")
        self.baselines = tuple(checks.check_str(one, "baselines") for one in baselines)
        of_name = checks.check_path(FOLDER / name, "name")
        self.folder = of_name if folder is None else checks.check_path(folder, "folder")
        search, settings = _named(search, "search"), _named(settings, "settings")
        if not callable(data):
            _parts(data)
        self._data, self._sizes = data, None if sizes is None else _counts(sizes)
        self._seeded_data = callable(data) and any(one.name == "seed" for one in _parameters(data, "data"))
        self._optimizer = optimizer if callable(optimizer) else None
        own = {
            "epochs": checks.check_count(epochs, "epochs"),
            "batch_size": checks.check_count(batch_size, "batch_size"),
            "learning_rate": checks.check_positive(learning_rate, "learning_rate"),
            "optimizer": _name_of(optimizer)
            if self._optimizer
            else checks.check_choice(optimizer, "optimizer", OPTIMIZERS),
        }
        own |= {"decay": True} if checks.check_bool(decay, "decay") else {}
        own |= {} if patience is None else {"patience": checks.check_count(patience, "patience")}
        own |= {} if self._sizes is None else {"sizes": self._sizes}
        self.design = Design(
            study=name,
            variants={name: variant.has_rate for name, variant in self.variants.items()},
            rates=tuple(checks.check_rate(rate, "rates") for rate in checks.check_tuple(rates, "rates", "rates")),
            search={name: checks.check_tuple(values, f"search[{name!r}]", "values") for name, values in search.items()},
            settings={**own, **settings},
            select_seeds=checks.check_count(select_seeds, "select_seeds"),
            seeds=checks.check_count(seeds, "seeds"),
            backend=keras.backend.backend(),
            protocol=checks.check_choice(protocol, "protocol", tuple(plan.STAGES)),
        )
        if select_seeds > plan.FRESH:
            raise ValueError(checks.invalid("select_seeds", f"an int up to {plan.FRESH}", select_seeds))

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of the protocol, in order."""
        return plan.STAGES[self.design.protocol]

    def plan(self, stage: str) -> list[Trial]:
        """The trials of a stage.

        Args:
            stage: "select" or "confirm", or "grid" in the paper's protocol.

        Returns:
            A list of dicts with study, stage, variant, rate (None: it has none), seed, settings and backend.

        Raises:
            ValueError: a stage that the protocol does not have.
            LookupError: "confirm" before the selection has finished.
        """
        checks.check_choice(stage, "stage", self.stages)
        return plan.plan(self.design, stage, self.records() if stage == plan.CONFIRM else ())

    def candidate(self, variant: str, rate: float | None = None, seed: int = 0, **settings: typing.Any) -> Trial:
        """A trial that is in no plan, for `trial` to run: for a search of your own, beyond a grid.

        Args:
            variant: the name of one of the study's variants.
            rate: a float in [0, 1), or None.
            seed: an int from 0.
            **settings: those that differ from the study's.

        Returns:
            A dict as `plan` gives them, of the first stage.
        """
        checks.check_choice(variant, "variant", tuple(self.variants))
        rate = None if rate is None else checks.check_rate(rate)
        return self.design.trial(self.stages[0], variant, rate, checks.check_count(seed, "seed", 0), settings)

    def records(self) -> list[Trial]:
        """The records of all trials that have finished, as dicts of plain values, whatever their settings.

        A record is the trial and what was found: "epochs", a list of dicts of train_loss, val_loss and the metrics;
        "best_epoch", from 0; "test", of that epoch's weights (None unless it confirms); "seconds_per_epoch", the median
        of the training alone; "start", a digest of the initial weights; "data", their title if they have one;
        "compiled", the optimizer and the learning rate of a model that came compiled, which go before those of the
        settings; "environment"; "format".
        """
        from pernodedrop.study.storage import Records

        return Records(self.folder).read()

    def trial(self, planned: Trial, on_epoch: OnEpoch | None = None) -> Trial:
        """Run one trial, apart from the queue and the records. The same trial always gives the same losses.

        Args:
            planned: a dict as `plan` gives it, or a record.
            on_epoch: function that is called with the number of each epoch, from 0, and a dict of its figures.

        Returns:
            The record.
        """
        planned = {name: planned[name] for name in plan.IDENTITY}
        checks.check_choice(planned["variant"], "variant", tuple(self.variants))
        return trial.run(
            planned,
            self.make,
            self.variants[planned["variant"]],
            self._load(planned["seed"]) if self._seeded_data else self.data,
            self.loss,
            self.metrics,
            self._optimizer,
            self.has_slot,
            on_epoch,
            self._title,
        )

    @functools.cached_property
    def data(self) -> Data:
        """The training, validation and test data."""
        return self._load(0)

    def run(self, hours: float | None = None, progress: bool = True) -> bool:
        """Run what has not run yet. Ctrl-C, and even kill -9, lose only the trials that are running.

        Any number of processes may run the same study in the same folder, or with the same `storage`.

        Args:
            hours: time after which no further trial begins; None: no limit.
            progress: whether to show a bar with the time left.

        Returns:
            Whether all of it has finished.

        Raises:
            RuntimeError: variants that do not start with the same weights.
        """
        from pernodedrop.study.runner import run

        until = None if hours is None else time.monotonic() + 3600 * checks.check_positive(hours, "hours")
        output_folder(self.folder, "folder")
        return run(self.design, self.trial, self.folder, self.storage, until, progress)

    def status(self) -> dict[str, tuple[int, int | None]]:
        """For each stage, how many trials have finished, and how many there are (None: that is not known yet)."""
        records = self.records()
        done = {plan.key(record) for record in records}
        found: dict[str, tuple[int, int | None]] = {}
        for stage in self.stages:
            try:
                planned = plan.plan(self.design, stage, records)
            except LookupError:
                found[stage] = (0, None)
            else:
                found[stage] = (sum(plan.key(one) in done for one in planned), len(planned))
        return found

    def verdict(self) -> str:
        """Whether anything helped and what it cost: the first lines of the report, the answer first.

        Raises:
            ValueError: there are no records.
        """
        from pernodedrop.study import report  # needs Jinja2 and matplotlib

        return report.said(*self._reported())

    def report(self) -> pathlib.Path:
        """Write what the records say, in words, tables and figures, into the study's folder.

        It is on all records with this study's settings, whatever their seeds. If there are none of the backend in use,
        it is on those of another one.

        Returns:
            The path of report.html, which needs nothing but itself.

        Raises:
            ValueError: there are no records.
        """
        from pernodedrop.study import report

        records, titles, data, baselines = self._reported()
        return report.write(records, self.folder, titles, data, baselines)

    def _reported(self) -> tuple[list[Trial], dict[str, str], str | None, tuple[str, ...]]:
        """The records that are reported, the titles of their variants and of their data, and the baselines."""
        kept = self.records()
        backends = [self.design.backend, *sorted({record["backend"] for record in kept})]
        designs = [dataclasses.replace(self.design, backend=backend) for backend in backends]
        records = next(filter(None, (plan.belonging(design, kept) for design in designs)), [])
        titles = {name: variant.title for name, variant in self.variants.items()}
        data = next((record["data"] for record in reversed(records) if "data" in record), None)
        return records, titles, data, self.baselines

    def _load(self, seed: int) -> Data:
        data = self._data
        if callable(data):
            data = data(seed=seed) if self._seeded_data else data()
        self._title = getattr(data, "title", None)
        parts = _parts(data)
        if self._sizes is not None:
            if len(self._sizes) != 3 or not all(isinstance(part, tuple) for part in parts):
                raise ValueError(checks.invalid("sizes", "three ints, of three (x, y)", self._sizes))
            parts = [_some(part, size) for part, size in zip(parts, self._sizes, strict=True)]
        return typing.cast(Data, tuple(parts))


def _takes_slot(model: collections.abc.Callable[..., typing.Any]) -> bool:
    required = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(one.kind in required and one.default is one.empty for one in _parameters(model, "model"))


def _parameters(
    function: collections.abc.Callable[..., typing.Any], argument: str
) -> collections.abc.Iterable[inspect.Parameter]:
    try:
        return inspect.signature(function).parameters.values()
    except ValueError as error:  # of what is written in C
        raise ValueError(checks.invalid(argument, "a function that says what it takes", function)) from error


def _variants(given: typing.Any, has_slot: bool) -> dict[str, Variant]:
    if isinstance(given, dict):
        for name, one in given.items():
            if not (one is None or callable(one) or isinstance(one, Variant)):
                raise TypeError(checks.invalid(f"variants[{name!r}]", "a function of (a layer, rate, seed)", one))
        found = {
            name: one if isinstance(one, Variant) else Variant(one, name, has_rate=one is not None)
            for name, one in given.items()
        }
        if has_slot and any(variant.function is None for variant in found.values()):
            raise ValueError(checks.invalid("variants", "functions (dense, rate, seed) -> list of layers", given))
        return found
    if not has_slot:
        raise TypeError(checks.invalid("variants", "a dict of rules, since the model has no slot", given))
    return {name: variants.get(name) for name in checks.check_tuple(given, "variants", "names")}


def _counts(sizes: typing.Any) -> list[int]:
    return [checks.check_count(n, "sizes") for n in checks.check_tuple(sizes, "sizes", "ints")]


def _named(given: typing.Any, argument: str) -> dict[str, typing.Any]:
    """Keywords by name, of an argument that is a dict or None."""
    if given is not None and not (isinstance(given, dict) and all(isinstance(name, str) for name in given)):
        raise TypeError(checks.invalid(argument, "a dict from keywords to values, or None", given))
    return given or {}


def _name_of(function: typing.Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _parts(data: typing.Any) -> list[typing.Any]:
    """The training, validation and test data, each (x, y) or a loader."""
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise ValueError(checks.invalid("data", "a tuple (x, y) or (train, validation, test)", type(data)))
    return _split(*_checked(data)) if len(data) == 2 else [_checked(part) for part in data]


def _split(x: typing.Any, y: typing.Any) -> list[typing.Any]:
    order = np.random.default_rng(0).permutation(x.shape[0])
    first, second = (round(sum(PARTS[: n + 1]) * len(order)) for n in range(2))
    return [(x[rows], y[rows]) for rows in (order[:first], order[first:second], order[second:])]


def _some(part: typing.Any, size: int) -> typing.Any:
    x, y = part
    if size > x.shape[0]:
        raise ValueError(checks.invalid("sizes", f"an int up to {x.shape[0]}, the samples there are", size))
    rows = np.sort(np.random.default_rng(0).permutation(x.shape[0])[:size])
    return x[rows], y[rows]


def _checked(part: typing.Any) -> typing.Any:
    """A part of the data: (x, y) of equal length, or a loader."""
    if not isinstance(part, tuple | list):
        return part
    if len(part) != 2 or not all(hasattr(one, "shape") for one in part) or part[0].shape[0] != part[1].shape[0]:
        raise ValueError(checks.invalid("data", "(x, y), arrays of equal length", [*map(type, part)]))
    return tuple(part)

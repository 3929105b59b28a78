"""Predictions with their uncertainty, in any framework: what is said of all passes, and which seeds they have."""

import collections.abc
import dataclasses
import math
import random
import typing
import warnings

import numpy as np

from pernodedrop import checks, generator
from pernodedrop._types import Array
from pernodedrop.uncertainty import report as reports
from pernodedrop.uncertainty.metrics.arrays import SUM_TOLERANCE, classes_of, probabilities_of

EQUAL = (
    "All {} passes were equal. Expected noise or models that differ between them; a schedule may be at rate 0, and "
    "DynamicDropConnect drops nothing until it was trained."
)

SAMPLES = 50
LAYERS = "layers of the model or their names"
Layer = typing.TypeVar("Layer")

SCORES = ("predictive_entropy", "aleatoric", "mutual_information", "variation_ratio")

OF_PROBABILITIES = (*SCORES, "votes")
"""What a `Prediction` has of outputs that are probabilities only."""

Outputs: typing.TypeAlias = dict[typing.Any, Array]
"""The outputs of a pass, by their names in a dict, or places in a list; one that stands alone has the name None."""

Each: typing.TypeAlias = collections.abc.Mapping[str, typing.Any] | collections.abc.Sequence[typing.Any]
"""A value for each output of a model, by its name or place."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What `predict` found: NumPy arrays, in float64. Entropies are in nats.

    With p_s the output of pass s, S passes and H the entropy over the classes, which are the last axis:

    Attributes:
        mean: (1/S) sum_s p_s, of the shape of the model's output. With `gaussian=True`, p_s here and in the variance is
            what pass s predicts as the mean, half of the output.
        variance: (1/S) sum_s (p_s - mean)**2, of the same shape.
        predictive_entropy: H(mean), of that shape without its last axis: the whole uncertainty. This and the next four
            are there where the outputs are probabilities, and `aleatoric` also with `gaussian=True`; else they raise an
            AttributeError that says so. Of logits say `from_logits=True`.
        aleatoric: (1/S) sum_s H(p_s), the part that more training data would not remove. With `gaussian=True` the mean
            of the variances that the passes predict, of the shape of `mean`: to predict a measurement, add it to
            `variance`.
        mutual_information: predictive_entropy - aleatoric, from 0: the epistemic part, what the passes disagree about.
        variation_ratio: the share of passes whose most probable class is not the one that most passes chose.
        votes: how many passes find each class the most probable, ints, of the shape of `mean`, but two classes where it
            has one output.
        outputs: the outputs of all passes, (S, ...), with `keep=True`; else None.
        samples: S.
        seed: the seed, which gives the same prediction again.
    """

    mean: Array
    variance: Array
    predictive_entropy: Array = dataclasses.field(repr=False)
    aleatoric: Array = dataclasses.field(repr=False)
    mutual_information: Array = dataclasses.field(repr=False)
    variation_ratio: Array = dataclasses.field(repr=False)
    votes: np.typing.NDArray[np.int64] = dataclasses.field(repr=False)
    outputs: Array | None
    samples: int
    seed: int

    def __post_init__(self) -> None:
        # an attribute that is None would be sorted and compared by NumPy without a word
        for name in OF_PROBABILITIES:
            if vars(self)[name] is None:
                object.__delattr__(self, name)

    if not typing.TYPE_CHECKING:  # to a type checker it would mean that every name is there

        def __getattr__(self, name: str) -> typing.NoReturn:
            if name in OF_PROBABILITIES:
                raise AttributeError(
                    f"this prediction has no {name}: its outputs are numbers, not probabilities. If they are logits, "
                    "make it with from_logits=True."
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def report(self, y: typing.Any, noise_variance: float = 0.0, examples: int = 5) -> reports.Report:
        """The figures of `uncertainty.metrics` for this prediction, with their defaults, once the truth is known.

        Args:
            y: for probabilities, labels of the shape of `predictive_entropy`, whole numbers, or one-hot of the shape of
                `mean`; otherwise numbers of the shape of `mean`.
            noise_variance: for numbers, the variance of measurements, a float from 0, which is added to `variance`.
                With `gaussian=True` that is what the model predicts, so that it is 0 here.
            examples: how many `disagreements` to show below the figures of probabilities, an int from 0; 5.

        Returns:
            A dict of floats that prints as a table, with its `examples`, a list. It begins with inputs, the length of
            x, and passes, the number of them. Of probabilities: accuracy, nll, brier_score, calibration_error,
            adaptive_calibration_error, classwise_calibration_error, the same three with _by_chance, which calibrated
            probabilities have up to in 95 % of cases, and aurc and augrc of the predictive entropy. Of numbers, as
            normal distributions: rmse, gaussian_nll, gaussian_crps, and coverage_90 and width_90 of the central 90 %;
            with `gaussian=True` also epistemic and aleatoric, the mean variance of each kind. `plots.of_report` draws
            one of probabilities.

        Raises:
            TypeError, ValueError: an argument that is not as described, or a variance of 0 for a number.
        """
        counts = {"inputs": len(self.mean), "passes": self.samples}
        noise_variance = checks.check_positive(noise_variance, "noise_variance", zero=True)
        examples = checks.check_count(examples, "examples", least=0)
        aleatoric = getattr(self, "aleatoric", None)
        if noise_variance and aleatoric is not None:
            expected = "0 for outputs that are probabilities, or that have a variance of their own"
            raise ValueError(checks.invalid("noise_variance", expected, noise_variance))
        if not hasattr(self, "predictive_entropy"):
            shape = np.shape(y)
            if self.mean.shape[-1] > 1 and shape == self.mean.shape[:-1]:
                expected = f"numbers {self.mean.shape}: outputs are no probabilities. Of logits say from_logits=True"
                raise ValueError(checks.invalid("y", expected, shape))
            return reports.of_numbers(y, self.mean, self.variance, noise_variance, aleatoric, **counts)
        found = reports.of_classes(y, self.mean, self.predictive_entropy, **counts)
        found.examples = self.disagreements(examples, y) if examples and hasattr(self, "votes") else []
        return found

    def disagreements(
        self, count: int = 10, y: typing.Any = None, by: str = "mutual_information"
    ) -> reports.Disagreements:
        """The samples that the passes disagree about most: where a look at the data, or a label, would teach most.

        By the predictive entropy they are those that are the most likely to be wrong.

        Args:
            count: how many, an int from 1; all, if there are fewer.
            y: labels as for `report`, if they are known.
            by: the score that makes the order, "predictive_entropy", "aleatoric", "mutual_information" or
                "variation_ratio"; "mutual_information". Of equal ones the first come first.

        Returns:
            A list of `Disagreement`, the highest first, which prints as a table, one a line.

        Raises:
            TypeError, ValueError: an argument that is not as described, or a prediction of other than probabilities.

        Example:

        >>> import numpy as np
        >>> from pernodedrop.uncertainty import prediction
        >>> passes = [np.array([[0.9, 0.1], [0.3, 0.7]]), np.array([[0.8, 0.2], [0.8, 0.2]])]
        >>> found = prediction.collected([iter({None: p} for p in passes)], 2, seed=0)
        >>> [(one.place, one.votes) for one in found.disagreements()]
        [(1, {0: 1, 1: 1}), (0, {0: 2})]
        >>> [one.place for one in found.disagreements(1, by="predictive_entropy")]
        [1]
        """
        count, by = checks.check_count(count, "count"), checks.check_choice(by, "by", SCORES)
        if not hasattr(self, "votes"):
            expected = "a prediction of probabilities, of which there are votes; of logits, by from_logits=True"
            raise ValueError(checks.invalid("by", expected, by))
        scores, votes = {name: getattr(self, name) for name in SCORES}, self.votes
        predicted = classes_of(self.mean).argmax(-1)
        labels = None if y is None else reports.labels_at(y, self.mean).reshape(predicted.shape)

        def shown(flat: int) -> reports.Disagreement:
            place = tuple(map(int, np.unravel_index(flat, predicted.shape)))
            order = np.argsort(-votes[place], kind="stable")
            return reports.Disagreement(
                place=place[0] if len(place) == 1 else place,
                label=None if labels is None else int(labels[place]),
                predicted=int(predicted[place]),
                **{name: float(score[place]) for name, score in scores.items()},
                votes={int(label): int(votes[place][label]) for label in order if votes[place][label]},
            )

        order = np.argsort(-scores[by].ravel(), kind="stable")
        return reports.Disagreements(shown(flat) for flat in order[:count])


@dataclasses.dataclass(frozen=True)
class Reading:
    """What an output is, as the arguments of `predict` of these names say."""

    from_logits: bool = False
    probabilities: bool | None = None
    gaussian: bool = False

    def __post_init__(self) -> None:
        for name in ("from_logits", "gaussian"):
            object.__setattr__(self, name, checks.check_bool(getattr(self, name), name))
        probabilities = checks.check_optional_bool(self.probabilities, "probabilities")
        object.__setattr__(self, "probabilities", probabilities)
        if self.from_logits and probabilities is False:
            raise ValueError(checks.invalid("probabilities", "None or True with from_logits=True", probabilities))
        if self.gaussian and (self.from_logits or probabilities):
            expected = "False with from_logits=True or probabilities=True"
            raise ValueError(checks.invalid("gaussian", expected, self.gaussian))


def check_arguments(seed: int | None, keep: bool, **arguments: typing.Any) -> int:
    """The seed that arguments of `predict` mean, a fresh one for None, or an error about one of them."""
    checks.check_seed(seed)
    checks.check_bool(keep, "keep")
    Reading(**{name: value for name, value in arguments.items() if not _is_structure(value)})
    return random.getrandbits(32) if seed is None else int(seed)


def word_of(*numbers: int) -> int:
    """31 bits mixed from integers: sums of seeds and places would give siblings and neighbours the same masks."""
    return generator.digest(repr(numbers)) >> 1


def default_samples(members: collections.abc.Sequence[tuple[int, bool]]) -> int:
    """The number of passes that treats all models alike, of each of which is given how many members, and if noise."""
    least = len(members) * math.lcm(*(number for number, _ in members))
    return math.ceil(SAMPLES / least) * least if any(has_noise for _, has_noise in members) else least


def seeds_of(seed: int, models: collections.abc.Sized) -> list[int]:
    """The seeds of the models of an ensemble."""
    return [seed, *(word_of(seed, place) for place in range(1, len(models)))]


def among(one: object, many: collections.abc.Iterable[object]) -> bool:
    """Whether something is one of many: itself, since equality may be that of parameters."""
    return any(one is other for other in many)


def chosen_of(
    layers: typing.Any,
    noise: list[Layer],
    known: list[tuple[str, Layer]],
    inside: collections.abc.Callable[[Layer], collections.abc.Iterable[Layer]],
) -> list[Layer]:
    """Those of the layers with noise that the argument `layers` means, by themselves, by name, or inside of others."""
    is_last = isinstance(layers, str) and layers == "last"
    chosen = []
    for one in noise[-1:] if is_last else checks.check_tuple(layers, "layers", LAYERS):
        outer = [layer for name, layer in known if one is layer or (isinstance(one, str) and one == name)]
        found = [layer for whole in outer for layer in inside(whole) if among(layer, noise)]
        if not found:
            names = [name for name, layer in known if among(layer, noise)]
            expected = f"{LAYERS}, which make noise or have such inside: {names}"
            raise ValueError(checks.invalid("layers", expected, layers))
        chosen += found
    if not chosen:
        raise ValueError(checks.invalid("layers", "None, 'last' or at least one layer that makes noise", layers))
    return chosen


def named(outputs: typing.Any) -> dict[typing.Any, typing.Any]:
    """What a dict, a list or a tuple has, by its names or places; anything else by the name None."""
    if isinstance(outputs, collections.abc.Mapping):
        return dict(outputs)
    return dict(enumerate(outputs)) if _is_structure(outputs) else {None: outputs}


def collected(
    batches: collections.abc.Iterable[collections.abc.Iterable[Outputs]],
    samples: int,
    seed: int,
    keep: bool = False,
    **arguments: typing.Any,
) -> typing.Any:
    """The predictions that outputs make, float64 arrays: for each batch those of its passes.

    What the outputs are is said of all of them, or of each by its name or place, by the arguments of `Reading`.

    Warns:
        UserWarning: all of several passes were equal.
    """
    found: dict[typing.Any, list[dict[str, typing.Any]]] = {}
    for passes in batches:
        batch: dict[typing.Any, Statistics] = {}
        for outputs in passes:
            batch = batch or {name: Statistics(keep, one) for name, one in _readings(outputs, arguments).items()}
            for name, y in outputs.items():
                batch[name].add(y)
        for name, statistics in batch.items():
            found.setdefault(name, []).append(statistics.result())
    predictions = {name: _joined(parts, samples=samples, seed=seed) for name, parts in found.items()}
    if samples > 1 and not any(one.variance.any() for one in predictions.values()):
        warnings.warn(EQUAL.format(samples), stacklevel=3)
    if [*predictions] == [None]:
        return predictions[None]
    return list(predictions.values()) if [*predictions] == [*range(len(predictions))] else predictions


class Statistics:
    """What the passes of one batch have in sum."""

    def __init__(self, keep: bool, reading: Reading | None = None) -> None:
        self.reading = reading or Reading()
        self.samples = 0
        self.mean: typing.Any = 0.0
        self.squares: typing.Any = 0.0  # sum of squared differences from the mean, by Welford's recurrence
        # None where the outputs are not probabilities
        self.entropies: typing.Any = None if self.reading.gaussian or self.reading.probabilities is False else 0.0
        self.votes: typing.Any = 0
        self.noise: typing.Any = 0.0  # sum of the variances that passes predict
        self.outputs: list[Array] | None = [] if keep else None

    def add(self, y: Array) -> None:
        """One more pass."""
        if self.reading.from_logits:
            y = probabilities_of(y)
        if self.outputs is not None:
            self.outputs.append(y)
        if self.reading.gaussian:
            if y.ndim < 2 or y.shape[-1] % 2:
                expected = "True for outputs with means in the first half of the last axis, False for others"
                raise ValueError(checks.invalid("gaussian", expected, f"True for outputs {y.shape}"))
            y, log_variance = np.split(y, 2, -1)
            self.noise = self.noise + np.exp(log_variance)
        if self.samples and y.shape != self.mean.shape:
            raise ValueError(checks.invalid("model", f"outputs {self.mean.shape} in each pass", y.shape))
        self.samples += 1
        step = y - self.mean
        self.mean = self.mean + step / self.samples
        self.squares = self.squares + step * (y - self.mean)
        if self.entropies is None:
            return
        p = classes_of(y)
        if not ((p >= 0).all() and (abs(p.sum(-1) - 1) <= SUM_TOLERANCE).all()):
            if self.reading.probabilities:
                expected = "None or False for outputs that are not in [0, 1] with sum 1 over the classes"
                raise ValueError(checks.invalid("probabilities", expected, True))
            self.entropies = None
            return
        self.entropies = self.entropies + _entropy(p)
        self.votes = self.votes + (np.arange(p.shape[-1]) == p.argmax(-1)[..., None])

    def result(self) -> dict[str, typing.Any]:
        """The arrays of a `Prediction`."""
        outputs = None if self.outputs is None else np.stack(self.outputs)
        found = {"mean": self.mean, "variance": self.squares / self.samples, "outputs": outputs}
        if self.entropies is None:
            noise = self.noise / self.samples if self.reading.gaussian else None
            return {**found, **dict.fromkeys(OF_PROBABILITIES), "aleatoric": noise}
        whole, part = _entropy(classes_of(self.mean)), self.entropies / self.samples
        ratio = 1 - self.votes.max(-1) / self.samples
        own = whole, part, np.maximum(whole - part, 0), ratio, self.votes
        return {**found, **dict(zip(OF_PROBABILITIES, own, strict=True))}


def _readings(outputs: Outputs, arguments: dict[str, typing.Any]) -> dict[typing.Any, Reading]:
    """What each output is."""
    for argument, value in arguments.items():
        if _is_structure(value) and {*named(value)} != {*outputs}:
            raise ValueError(checks.invalid(argument, f"one value, or one for each of the outputs {[*outputs]}", value))
    one = {name: {a: named(v)[name] if _is_structure(v) else v for a, v in arguments.items()} for name in outputs}
    return {name: Reading(**each) for name, each in one.items()}


def _is_structure(value: typing.Any) -> bool:
    return isinstance(value, collections.abc.Mapping | list | tuple)


def _entropy(p: Array) -> Array:
    from scipy.special import entr

    return np.sum(entr(p), -1)


def _joined(parts: list[dict[str, typing.Any]], **more: typing.Any) -> Prediction:
    """The arrays of all batches as one; None where one of them has none."""

    def whole(name: str) -> typing.Any:
        arrays = [part[name] for part in parts if part[name] is not None]
        return np.concatenate(arrays, axis=int(name == "outputs")) if len(arrays) == len(parts) else None

    return Prediction(**{name: whole(name) for name in parts[0]}, **more)

"""Predictions with their uncertainty, in any framework: what is said of all passes, and which seeds they have."""

import collections.abc
import dataclasses
import random
import typing
import warnings

import numpy as np

from pernodedrop import checks, generator
from pernodedrop._types import Array
from pernodedrop.uncertainty import report as reports
from pernodedrop.uncertainty.metrics.arrays import SUM_TOLERANCE, classes_of, probabilities_of

EQUAL = (
    "All {} passes were equal. Expected noise that differs between them; a schedule may be at rate 0, and "
    "DynamicDropConnect drops nothing until it was trained."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What `predict` found: NumPy arrays, in float64. Entropies are in nats.

    With p_s the output of pass s, S passes and H the entropy over the classes, which are the last axis:

    Attributes:
        mean: (1/S) sum_s p_s, of the shape of the model's output.
        variance: (1/S) sum_s (p_s - mean)**2, of the same shape.
        predictive_entropy: H(mean), of that shape without its last axis: the whole uncertainty. This and the next three
            are None where the outputs are not probabilities.
        aleatoric: (1/S) sum_s H(p_s), the part that more training data would leave.
        mutual_information: predictive_entropy - aleatoric, from 0: the epistemic part, what the passes disagree about.
        variation_ratio: the share of passes whose most probable class is not the one that most passes chose.
        outputs: all p_s, (S, ...), with `keep=True`; else None.
        samples: S.
        seed: the seed, which gives the same prediction again.
    """

    mean: Array
    variance: Array
    predictive_entropy: Array | None
    aleatoric: Array | None
    mutual_information: Array | None
    variation_ratio: Array | None
    outputs: Array | None
    samples: int
    seed: int

    def report(self, y: typing.Any, noise_variance: float = 0.0) -> reports.Report:
        """What its figures are, once the truth is known: of `uncertainty.metrics`, with their defaults.

        Args:
            y: for probabilities, labels of the shape of `predictive_entropy`, whole numbers, or one-hot of the shape of
                `mean`; otherwise numbers of the shape of `mean`.
            noise_variance: for numbers, the variance of measurements, a float from 0, which is added to `variance`.

        Returns:
            A dict of floats that prints as a table. Of probabilities: samples, accuracy, nll, brier_score,
            calibration_error, adaptive_calibration_error, classwise_calibration_error, and aurc and augrc of the
            predictive entropy. Of numbers, as normal distributions: samples, rmse, gaussian_nll, gaussian_crps, and
            coverage_90 and width_90 of the central 90 %.

        Raises:
            TypeError, ValueError: an argument that is not as described, or a variance of 0 for a number.
        """
        noise_variance = checks.check_positive(noise_variance, "noise_variance", zero=True)
        if self.predictive_entropy is None:
            return reports.of_numbers(y, self.mean, self.variance + noise_variance)
        if noise_variance:
            raise ValueError(checks.invalid("noise_variance", "0 for outputs that are probabilities", noise_variance))
        return reports.of_classes(y, self.mean, self.predictive_entropy)


def check_arguments(seed: int | None, from_logits: bool, probabilities: bool | None, keep: bool) -> int:
    """The seed that arguments of `predict` mean, a fresh one for None, or an error about one of them."""
    checks.check_seed(seed)
    from_logits, _ = checks.check_bool(from_logits, "from_logits"), checks.check_bool(keep, "keep")
    probabilities = checks.check_optional_bool(probabilities, "probabilities")
    if from_logits and probabilities is False:
        raise ValueError(checks.invalid("probabilities", "None or True with from_logits=True", probabilities))
    return random.getrandbits(32) if seed is None else int(seed)


def word_of(*numbers: int) -> int:
    """31 bits mixed from integers: sums of seeds and places would give siblings and neighbours the same masks."""
    return generator.digest(repr(numbers)) >> 1


def collected(
    batches: collections.abc.Iterable[collections.abc.Iterable[Array]],
    samples: int,
    seed: int,
    from_logits: bool,
    probabilities: bool | None,
    keep: bool,
) -> Prediction:
    """The prediction that outputs make, float64 arrays: for each batch those of its passes.

    Warns:
        UserWarning: all of several passes were equal.
    """
    found, probabilities = [], checks.check_optional_bool(probabilities, "probabilities")
    for passes in batches:
        batch = Statistics(keep, probabilities)
        for y in passes:
            batch.add(probabilities_of(y) if from_logits else y)
        found.append(batch.result())
    whole = {name: _joined([part[name] for part in found], axis=int(name == "outputs")) for name in found[0]}
    if samples > 1 and not whole["variance"].any():
        warnings.warn(EQUAL.format(samples), stacklevel=3)
    return Prediction(**whole, samples=samples, seed=seed)


class Statistics:
    """What the passes of one batch have in sum."""

    def __init__(self, keep: bool, probabilities: bool | None = None) -> None:
        self.probabilities = probabilities
        self.samples = 0
        self.mean: typing.Any = 0.0
        self.squares: typing.Any = 0.0  # sum of squared differences from the mean, by Welford's recurrence
        # None where the outputs are not probabilities
        self.entropies: typing.Any = None if probabilities is False else 0.0
        self.votes: typing.Any = 0.0
        self.outputs: list[Array] | None = [] if keep else None

    def add(self, y: Array) -> None:
        """One more pass."""
        self.samples += 1
        step = y - self.mean
        self.mean = self.mean + step / self.samples
        self.squares = self.squares + step * (y - self.mean)
        if self.outputs is not None:
            self.outputs.append(y)
        if self.entropies is None:
            return
        p = classes_of(y)
        if not ((p >= 0).all() and (abs(p.sum(-1) - 1) <= SUM_TOLERANCE).all()):
            if self.probabilities:
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
        names = ("predictive_entropy", "aleatoric", "mutual_information", "variation_ratio")
        if self.entropies is None:
            return {**found, **dict.fromkeys(names)}
        whole, part = _entropy(classes_of(self.mean)), self.entropies / self.samples
        ratio = 1 - self.votes.max(-1) / self.samples
        return {**found, **dict(zip(names, (whole, part, np.maximum(whole - part, 0), ratio), strict=True))}


def _entropy(p: Array) -> Array:
    from scipy.special import entr

    return np.sum(entr(p), -1)


def _joined(parts: list[Array | None], axis: int) -> typing.Any:
    """The arrays of all batches as one; None if one of them has none."""
    arrays = [part for part in parts if part is not None]
    return np.concatenate(arrays, axis) if len(arrays) == len(parts) else None

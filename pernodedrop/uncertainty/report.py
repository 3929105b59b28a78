"""What a prediction's figures are, once the truth is known."""

import collections.abc
import typing

import numpy as np

from pernodedrop import checks
from pernodedrop._types import Array
from pernodedrop.uncertainty import metrics
from pernodedrop.uncertainty.metrics.arrays import Labels, classes_of, labels_of, numbers

CENTRAL = 0.9  # of the predicted distribution, whose coverage is counted

CALIBRATION_ERRORS: dict[str, dict[str, typing.Any]] = {
    "calibration_error": {},
    "adaptive_calibration_error": {"binning": "mass"},
    "classwise_calibration_error": {"of": "classwise"},
}
"""The arguments of each; beside it, `_by_chance` has what calibrated probabilities have up to in 95 % of cases."""


class Disagreement(typing.NamedTuple):
    """A sample that passes disagree about, or that is uncertain by another score.

    Attributes:
        place: of the sample in x, an int; where a sample has several positions, a tuple of its place and theirs.
        label: its label, an int, or None if it is not known.
        predicted: the most probable class of the mean, an int.
        predictive_entropy, aleatoric, mutual_information, variation_ratio: its scores, floats, as in `Prediction`.
        votes: how many passes chose a class, by the class, most first: a dict of ints without zeros.
    """

    place: int | tuple[int, ...]
    label: int | None
    predicted: int
    predictive_entropy: float
    aleatoric: float
    mutual_information: float
    variation_ratio: float
    votes: dict[int, int]


class Disagreements(list[Disagreement]):
    """A list of `Disagreement` that shows one a line."""

    def __repr__(self) -> str:
        head = f"{'row':>8}  {'label':>5}  {'predicted':>9}  {'':5}  {'entropy':>7}  {'mutual information':>18}"
        lines = [f"{head}  votes by class"]
        for one in self:
            votes = ", ".join(f"{label}: {number}" for label, number in one.votes.items())
            label, mark = ("", "") if one.label is None else (one.label, "" if one.label == one.predicted else "wrong")
            lines.append(
                f"{one.place!s:>8}  {label:>5}  {one.predicted:>9}  {mark:5}  {one.predictive_entropy:>7.4f}  "
                f"{one.mutual_information:>18.4f}  {votes}"
            )
        return "\n".join(lines)


class Report(dict[str, float]):
    """A dict of figures that shows one a line, and below them what they say of calibration, and examples.

    `uncertainty.plots.of_report` draws what it has of class probabilities:

    Attributes:
        examples: a list of `Disagreement`, of what passes disagree about most.
        reliability: how often the most probable class was the true one, a `metrics.Reliability`; None of numbers.
        risk_coverage: the errors among what is kept, by the predictive entropy, a `metrics.RiskCoverage`, or None.
        predictive_entropy: that of each sample, or of each of its positions, (n,), in nats; or None.
    """

    examples: collections.abc.Sequence[Disagreement] = ()
    reliability: metrics.Reliability | None = None
    risk_coverage: metrics.RiskCoverage | None = None
    predictive_entropy: Array | None = None

    def __repr__(self) -> str:
        width = max(map(len, self))
        lines = [f"{name:{width}}  {value:.6g}" for name, value in self.items()]
        if {"calibration_error", "calibration_error_by_chance"} <= self.keys():
            lines += ["", self._calibration()]
        if self.examples:
            lines += ["", repr(Disagreements(self.examples))]
        return "\n".join(lines)

    def _calibration(self) -> str:
        """A sentence about the calibration error; the others have rows alone, as more tests are more false alarms."""
        error, chance = self["calibration_error"], self["calibration_error_by_chance"]
        return (
            f"calibration_error {error:.3f}, where calibrated probabilities have up to {chance:.3f} in 95 % of cases:\n"
            f"{'miscalibration shows' if error > chance else 'no miscalibration shows'}"
        )


def labels_at(y: typing.Any, mean: Array) -> Labels:
    """Labels (n,) of all positions of a mean that has probabilities."""
    p, y = classes_of(mean), numbers(y, "y")
    one_hot = y.shape == mean.shape and mean.ndim > 1 and mean.shape[-1] > 1
    classes = p.shape[-1]
    return labels_of(y.reshape(-1, classes) if one_hot else y.ravel(), p.size // classes, classes)


def of_classes(y: typing.Any, mean: Array, entropy: Array, **counts: float) -> Report:
    """The figures of class probabilities, of each position that has one."""
    labels, p = labels_at(y, mean), classes_of(mean)
    p = p.reshape(-1, p.shape[-1])
    wrong = p.argmax(-1) != labels
    kept = metrics.risk_coverage(wrong, entropy.ravel())
    errors = {name: metrics.calibration_error(labels, p, **how) for name, how in CALIBRATION_ERRORS.items()}
    by_chance = {
        f"{name}_by_chance": metrics.calibration_error_by_chance(p, **how) for name, how in CALIBRATION_ERRORS.items()
    }
    found = Report(
        **counts,
        accuracy=1 - float(wrong.mean()),
        nll=metrics.nll(labels, p),
        brier_score=metrics.brier_score(labels, p),
        **errors,
        **by_chance,
        aurc=kept.aurc,
        augrc=kept.augrc,
    )
    found.reliability, found.risk_coverage = metrics.reliability(labels, p), kept
    found.predictive_entropy = entropy.ravel()
    return found


def of_numbers(
    y: typing.Any, mean: Array, epistemic: Array, noise_variance: float, aleatoric: Array | None, **counts: float
) -> Report:
    """The figures of normal distributions, whose variance may have a part that the model predicts."""
    from scipy import special  # costs 100 ms to import

    y = numbers(y, "y")
    if y.size == mean.size and y.shape in (mean.shape, mean.shape[:-1], (*mean.shape, 1)):
        y = y.reshape(mean.shape)
    y = numbers(y, "y", mean.shape)
    variance = epistemic + noise_variance if aleatoric is None else epistemic + aleatoric
    if not (variance > 0).all():
        expected = "a variance above 0, where passes do not differ"
        raise ValueError(checks.invalid("noise_variance", expected, float(variance.min())))
    half = special.ndtri((1 + CENTRAL) / 2) * np.sqrt(variance)
    inside = metrics.intervals(y, mean - half, mean + half)
    return Report(
        **counts,
        rmse=float(np.sqrt(np.mean((y - mean) ** 2))),
        gaussian_nll=metrics.gaussian_nll(y, mean, variance),
        gaussian_crps=metrics.gaussian_crps(y, mean, variance),
        coverage_90=inside.coverage,
        width_90=inside.width,
        **({} if aleatoric is None else {"epistemic": float(epistemic.mean()), "aleatoric": float(aleatoric.mean())}),
    )

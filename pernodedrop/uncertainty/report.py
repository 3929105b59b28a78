"""What a prediction's figures are, once the truth is known."""

import typing

import numpy as np

from pernodedrop import checks
from pernodedrop._types import Array
from pernodedrop.uncertainty import metrics
from pernodedrop.uncertainty.metrics.arrays import classes_of, labels_of, numbers

CENTRAL = 0.9  # of the predicted distribution, whose coverage is counted


class Report(dict[str, float]):
    """A dict of figures that shows one a line."""

    def __repr__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{name:{width}}  {value:.6g}" for name, value in self.items())


def of_classes(y: typing.Any, mean: Array, uncertainty: Array) -> Report:
    """The figures of class probabilities, of each position that has one."""
    p = classes_of(mean)
    p = p.reshape(-1, p.shape[-1])
    y = numbers(y, "y")
    one_hot = y.shape == mean.shape and mean.ndim > 1 and mean.shape[-1] > 1
    labels = labels_of(y.reshape(p.shape if one_hot else -1), *p.shape)
    wrong = p.argmax(-1) != labels
    kept = metrics.risk_coverage(wrong, uncertainty.ravel())
    return Report(
        samples=len(p),
        accuracy=1 - float(wrong.mean()),
        nll=metrics.nll(labels, p),
        brier_score=metrics.brier_score(labels, p),
        calibration_error=metrics.calibration_error(labels, p),
        adaptive_calibration_error=metrics.calibration_error(labels, p, binning="mass"),
        classwise_calibration_error=metrics.calibration_error(labels, p, of="classwise"),
        aurc=kept.aurc,
        augrc=kept.augrc,
    )


def of_numbers(y: typing.Any, mean: Array, variance: Array) -> Report:
    """The figures of normal distributions."""
    from scipy import special  # costs 100 ms to import

    y = numbers(y, "y")
    if y.size == mean.size and y.shape in (mean.shape, mean.shape[:-1], (*mean.shape, 1)):
        y = y.reshape(mean.shape)
    y = numbers(y, "y", mean.shape)
    if not (variance > 0).all():
        expected = "a variance above 0, where passes do not differ"
        raise ValueError(checks.invalid("noise_variance", expected, float(variance.min())))
    half = special.ndtri((1 + CENTRAL) / 2) * np.sqrt(variance)
    inside = metrics.intervals(y, mean - half, mean + half)
    return Report(
        samples=len(y),
        rmse=float(np.sqrt(np.mean((y - mean) ** 2))),
        gaussian_nll=metrics.gaussian_nll(y, mean, variance),
        gaussian_crps=metrics.gaussian_crps(y, mean, variance),
        coverage_90=inside.coverage,
        width_90=inside.width,
    )

"""Probabilities made right after training, on data that the model was not trained on.

Each function takes labels and probabilities of held-out samples, and returns what maps others. Logarithms of
probabilities are logits, but for a shift that a softmax does not see: so probabilities are all that is needed, of a
model or of the mean of many passes.
"""

import dataclasses
import typing

import numpy as np

from pernodedrop import checks
from pernodedrop._types import Array
from pernodedrop.uncertainty.metrics.arrays import classified, probabilities_of, probabilities_of_classes

__all__ = ["Isotonic", "Temperature", "Vector", "isotonic", "temperature", "vector"]

LEAST = float(np.finfo("float32").tiny)
"""What a probability counts as that is less: a softmax in float32 gives 0 there, which has no logarithm."""

HIGHEST_SHARPNESS = 1e4  # 1 / temperature


@dataclasses.dataclass(frozen=True)
class Temperature:
    """Maps probabilities p (n, k) to softmax(log p / temperature); what `temperature` returns.

    Attributes:
        temperature: a float above 0; above 1 for a model that was too sure.
    """

    temperature: float

    def __call__(self, p: typing.Any) -> Array:
        """Calibrated probabilities (n, k) of p (n, k), (n,), (n, 1) or (S, n, k), as for `metrics.nll`."""
        return probabilities_of(_log(probabilities_of_classes(p)) / self.temperature)


@dataclasses.dataclass(frozen=True, eq=False)
class Vector:
    """Maps probabilities p (n, k) to softmax(scale * log p + bias); what `vector` returns.

    Attributes:
        scale, bias: arrays (k,).
    """

    scale: Array
    bias: Array

    def __call__(self, p: typing.Any) -> Array:
        """Calibrated probabilities, as `Temperature` does."""
        return probabilities_of(_log(_of_classes(p, len(self.scale))) * self.scale + self.bias)


@dataclasses.dataclass(frozen=True, eq=False)
class Isotonic:
    """Maps the probability of each class by a rising curve, then divides by their sum; what `isotonic` returns.

    Attributes:
        curves: for each class the points of its curve, ascending arrays (x, y); constant beyond its ends. Of two
            classes, the second has one.
    """

    curves: tuple[tuple[Array, Array], ...]

    def __call__(self, p: typing.Any) -> Array:
        """Calibrated probabilities, as `Temperature` does; of a sample whose every class is mapped to 0, as given."""
        if len(self.curves) == 1:
            second = np.interp(_of_classes(p, 2)[:, 1], *self.curves[0])
            return np.stack([1 - second, second], -1)
        p = _of_classes(p, len(self.curves))
        found = np.stack([np.interp(score, *curve) for score, curve in zip(p.T, self.curves, strict=True)], -1)
        total = found.sum(-1, keepdims=True)
        return np.where(total > 0, found / np.where(total > 0, total, 1), p)


def temperature(y: typing.Any, p: typing.Any) -> Temperature:
    """Find the temperature with the best likelihood (Guo et al., arXiv 1706.04599): one number, which keeps all ranks.

    Args:
        y, p: labels and probabilities of held-out samples, as for `metrics.nll`.

    Returns:
        A `Temperature`, to call on probabilities.

    Raises:
        TypeError, ValueError: an argument that is not as described; or labels for which no temperature is best: those
            of a model that is always right, or no better than chance.

    Example:

    >>> from pernodedrop.uncertainty import calibration
    >>> calibrate = calibration.temperature([0, 0, 0, 1], [[0.9, 0.1]] * 4)  # right 3 times in 4
    >>> calibrate([[0.9, 0.1]]).round(3)
    array([[0.75, 0.25]])
    """
    from scipy import optimize  # costs 100 ms to import

    labels, p = classified(y, p)
    logits = _log(p)
    reached = logits[np.arange(len(p)), labels]

    def slope(sharpness: float) -> float:
        """The derivative of the negative log-likelihood, which rises."""
        return float(np.mean(np.sum(probabilities_of(logits * sharpness) * logits, -1) - reached))

    if not slope(0) < 0 < slope(HIGHEST_SHARPNESS):
        expected = "labels that are sometimes not the most probable class, and less often than by chance"
        raise ValueError(checks.invalid("y", expected, f"accuracy {np.mean(labels == p.argmax(-1)):.3g}"))
    return Temperature(float(1 / optimize.brentq(slope, 0, HIGHEST_SHARPNESS, xtol=1e-12)))


def vector(y: typing.Any, p: typing.Any) -> Vector:
    """Find a scale and a bias for each class with the best likelihood (Guo et al., arXiv 1706.04599).

    It has 2 k numbers, so it needs many samples of each class: each must have some.

    Args:
        y, p: labels and probabilities of held-out samples, as for `metrics.nll`.

    Returns:
        A `Vector`, to call on probabilities.

    Raises:
        TypeError, ValueError: an argument that is not as described, such as labels without a sample of each class; or
            no likelihood is best, as where classes can be told apart without error.

    Example:

    >>> from pernodedrop.uncertainty import calibration
    >>> calibrate = calibration.vector([0, 1, 1, 0, 1, 1], [0.6, 0.6, 0.6, 0.2, 0.2, 0.2])
    >>> calibrate([0.6, 0.2]).round(3)
    array([[0.333, 0.667],
           [0.333, 0.667]])
    """
    from scipy import optimize  # costs 100 ms to import

    labels, p = classified(y, p)
    n, k = p.shape
    missing = np.setdiff1d(np.arange(k), labels)
    if missing.size:
        raise ValueError(checks.invalid("y", f"a label of each of the {k} classes", f"none of {missing[0]}"))
    logits, hits = _log(p), np.arange(k) == labels[:, None]

    def loss(numbers: Array) -> tuple[float, Array]:
        scores = logits * numbers[:k] + numbers[k:]
        step = (probabilities_of(scores) - hits) / n
        likelihood = np.logaddexp.reduce(scores, -1) - scores[hits]
        return float(likelihood.mean()), np.concatenate([np.sum(step * logits, 0), step.sum(0)])

    start = np.repeat([1.0, 0.0], k)
    found = optimize.minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 200 * k})
    if np.abs(found.jac).max() > 1e-4 or found.fun < 1e-5:
        expected = "labels of classes that overlap, for which some scale and bias are best"
        raise ValueError(checks.invalid("y", expected, f"likelihood {found.fun:.3g}, {found.message}"))
    return Vector(found.x[:k], found.x[k:])


def isotonic(y: typing.Any, p: typing.Any) -> Isotonic:
    """Find for each class the rising curve with the least squared error (Zadrozny and Elkan 2002).

    It may have as many steps as there are samples, so of the three it needs the most samples. Of several classes each
    has its own, and the results are divided by their sum.

    Args:
        y, p: labels and probabilities of held-out samples, as for `metrics.nll`.

    Returns:
        An `Isotonic`, to call on probabilities.

    Raises:
        TypeError, ValueError: an argument that is not as described.

    Example:

    >>> from pernodedrop.uncertainty import calibration
    >>> calibrate = calibration.isotonic([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4])
    >>> calibrate([0.1, 0.25, 0.4])[:, 1]
    array([0. , 0.5, 1. ])
    """
    from scipy import optimize  # costs 100 ms to import

    labels, p = classified(y, p)
    curves = []
    for label in range(p.shape[1]) if p.shape[1] > 2 else [1]:
        x, place, count = np.unique(p[:, label], return_inverse=True, return_counts=True)
        share = np.bincount(place, labels == label) / count
        curves.append((x, optimize.isotonic_regression(share, weights=count).x))
    return Isotonic(tuple(curves))


def _log(p: Array) -> Array:
    return np.log(np.maximum(p, LEAST))


def _of_classes(p: typing.Any, k: int) -> Array:
    found = probabilities_of_classes(p)
    if found.shape[1] != k:
        raise ValueError(checks.invalid("p", f"probabilities of {k} classes", found.shape))
    return found

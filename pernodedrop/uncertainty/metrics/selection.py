"""Does an uncertainty tell what not to believe? Detection of other data, and risk against coverage."""

import typing

import numpy as np

from pernodedrop import checks
from pernodedrop._types import Array
from pernodedrop.uncertainty.metrics.arrays import numbers

CAUGHT = 0.95  # of what is out of distribution, where the false alarms are counted


class Detection(typing.NamedTuple):
    """How well a score tells data out of distribution, the positive class, from data in distribution; floats.

    Attributes:
        auroc: the probability that a sample outside scores higher than one inside, equal scores counted half.
        aupr: the average precision, which depends on how many samples are outside.
        fpr95: the share of samples inside that raise an alarm at the highest threshold that catches 95 % of those
            outside; 0 is best.
    """

    auroc: float
    aupr: float
    fpr95: float


class RiskCoverage(typing.NamedTuple):
    """Risk of the predictions that are kept, against how many are: the most certain first.

    Attributes:
        coverage: 1/n, 2/n, ..., 1, the share that is kept, (n,).
        risk: the mean error of those, (n,).
        uncertainty: the highest uncertainty among those, (n,).
        aurc: the mean of `risk`, a float; 0 is best.
        augrc: the area under errors kept / n over coverage, a float: the risk of an error that is not rejected.
    """

    coverage: Array
    risk: Array
    uncertainty: Array
    aurc: float
    augrc: float


def energy(logits: typing.Any, temperature: float = 1.0) -> Array:
    """The free energy of logits, -T log sum exp(logits / T): higher for what is unlike the training data.

    From Liu et al., "Energy-based Out-of-distribution Detection" (arXiv 2010.03759).

    Args:
        logits: numbers (..., k).
        temperature: T, a float above 0; 1.

    Returns:
        An array (...), float64.

    Raises:
        TypeError, ValueError: an argument that is not as described.

    Example:

    >>> from pernodedrop.uncertainty import metrics
    >>> metrics.energy([[0.0, 0.0], [8.0, 0.0]]).round(2)
    array([-0.69, -8.  ])
    """
    found = numbers(logits, "logits")
    if found.ndim == 0:
        raise ValueError(checks.invalid("logits", "an array (..., k)", found.shape))
    temperature = checks.check_positive(temperature, "temperature")
    return np.asarray(-temperature * np.logaddexp.reduce(found / temperature, axis=-1))


def detection(inside: typing.Any, outside: typing.Any) -> Detection:
    """How well a score tells samples out of distribution from samples in distribution.

    A score is any number that should be higher outside: of a `Prediction` its predictive entropy or mutual information,
    1 - the maximum probability, or the `energy` of logits. What is outside is the positive class, as in OpenOOD; with
    the positive class inside, as in ODIN (arXiv 1706.02690), it is `detection(-outside, -inside)`.

    Args:
        inside: scores of samples in distribution, (n,).
        outside: scores of samples out of distribution, (m,).

    Returns:
        A `Detection`.

    Raises:
        TypeError, ValueError: an argument that is not as described, such as NaN or no sample.

    Example:

    >>> from pernodedrop.uncertainty import metrics
    >>> metrics.detection(inside=[0.1, 0.2, 0.6], outside=[0.5, 0.9])
    Detection(auroc=0.8333333333333334, aupr=0.8333333333333333, fpr95=0.3333333333333333)
    """
    low, high = numbers(inside, "inside", (None,)), numbers(outside, "outside", (None,))
    thresholds = np.unique(np.concatenate([low, high]))[::-1]
    alarms, caught = (len(part) - np.searchsorted(np.sort(part), thresholds) for part in (low, high))
    false_rate, true_rate = alarms / len(low), caught / len(high)
    # the area under the steps from one threshold to the next, which cut through equal scores in a straight line
    auroc = np.sum(np.diff(false_rate, prepend=0) * (true_rate + np.append(0, true_rate[:-1])) / 2)
    aupr = np.sum(np.diff(true_rate, prepend=0) * caught / (caught + alarms))
    return Detection(float(auroc), float(aupr), float(false_rate[np.argmax(true_rate >= CAUGHT)]))


def risk_coverage(error: typing.Any, uncertainty: typing.Any) -> RiskCoverage:
    """The risk of the predictions that remain where the most uncertain ones are rejected.

    AURC is the mean of the risk over all coverages (Geifman et al., arXiv 1805.08206); AUGRC counts errors against all
    samples instead of those kept, so that the first few do not outweigh the rest (Traub et al., arXiv 2407.01032).
    Equal uncertainties count as their mean over all orders, so that figures do not depend on the order of samples.

    Args:
        error: what a wrong prediction costs, numbers (n,): usually 1 for wrong and 0 for right, or a loss.
        uncertainty: numbers (n,); what is highest is rejected first.

    Returns:
        A `RiskCoverage`.

    Raises:
        TypeError, ValueError: an argument that is not as described.

    Example:

    >>> from pernodedrop.uncertainty import metrics
    >>> found = metrics.risk_coverage(error=[0, 0, 1, 0], uncertainty=[0.1, 0.2, 0.9, 0.4])
    >>> found.risk, found.aurc, found.augrc
    (array([0.  , 0.  , 0.  , 0.25]), 0.0625, 0.03125)
    """
    errors = numbers(error, "error", (None,))
    scores = numbers(uncertainty, "uncertainty", errors.shape)
    n = len(errors)
    order = np.argsort(scores, kind="stable")
    _, group, size = np.unique(scores[order], return_inverse=True, return_counts=True)
    mean = (np.bincount(group, errors[order]) / size)[group]
    kept = np.cumsum(mean)
    count = np.arange(1, n + 1)
    augrc = (kept.sum() - kept[-1] / 2) / n**2  # by trapezia, from no error at coverage 0
    risk = kept / count
    return RiskCoverage(count / n, risk, scores[order], float(risk.mean()), float(augrc))

"""What to do with an uncertain prediction: name several classes, or none, with a guarantee.

Each function takes held-out samples, on which the model was neither trained nor calibrated, and that are like those to
come: the guarantees hold for samples that are drawn alike.
"""

import dataclasses
import math
import typing

import numpy as np

from pernodedrop import checks
from pernodedrop._types import Array
from pernodedrop.uncertainty.metrics.arrays import classified, numbers, probabilities_of_classes

__all__ = ["ConformalSets", "Rejection", "conformal", "rejection"]

SCORES = ("threshold", "adaptive")
STEPS = 20  # coverages that `rejection` chooses from: 5 %, 10 %, ..., 100 %


@dataclasses.dataclass(frozen=True)
class ConformalSets:
    """Says for each sample which classes may be right; what `conformal` returns.

    Attributes:
        score: "threshold" or "adaptive".
        limit: the highest score of a class in a set, a float.
        error: the share of sets without the right class that was asked for.
    """

    score: str
    limit: float
    error: float

    def __call__(self, p: typing.Any) -> np.typing.NDArray[np.bool_]:
        """The sets (n, k), True for the classes in them, of probabilities p as for `metrics.nll`."""
        return _scores(probabilities_of_classes(p), self.score) <= self.limit


class Rejection(typing.NamedTuple):
    """A threshold of uncertainty, below which predictions are kept; floats.

    Attributes:
        threshold: keep a prediction whose uncertainty is below it; inf keeps all.
        coverage: the share of the held-out samples that is kept.
        risk: the share of errors among these.
        bound: what the risk of new samples is not above, with the confidence that was asked for.
    """

    threshold: float
    coverage: float
    risk: float
    bound: float


def conformal(y: typing.Any, p: typing.Any, error: float = 0.1, score: str = "threshold") -> ConformalSets:
    """Find sets of classes that have the right one with probability 1 - error, whatever the model (split conformal).

    The probability is over the held-out samples and a new one together. Given n held-out samples, the share of new sets
    that have the right class follows Beta(r, n + 1 - r) with r = ceil((n + 1) (1 - error)), if scores have no ties, and
    is higher with them.

    Args:
        y, p: labels and probabilities of held-out samples, as for `metrics.nll`.
        error: a float in (0, 1); 0.1. It takes 1 / error - 1 samples at least.
        score: "threshold", 1 - p of the class (Sadinle, Lei and Wasserman, arXiv 1609.00451), which gives the smallest
            sets, of which some may be empty; "adaptive", the sum of all probabilities down to that of the class
            (Romano, Sesia and Candes, arXiv 2006.02544, without its random numbers), which gives larger ones to
            samples that are harder.

    Returns:
        `ConformalSets`, to call on probabilities.

    Raises:
        TypeError, ValueError: an argument that is not as described, or too few samples.

    Example:

    >>> from pernodedrop.uncertainty import decisions
    >>> held_out = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]
    >>> sets = decisions.conformal([0, 0, 1, 1], held_out, error=0.2)
    >>> sets([[0.95, 0.05], [0.5, 0.5]])
    array([[ True, False],
           [ True,  True]])
    """
    error = _share(error, "error")
    score = checks.check_choice(score, "score", SCORES)
    labels, p = classified(y, p)
    n = len(p)
    rank = math.ceil((n + 1) * (1 - error) - 1e-9)  # an error such as 0.1 is no binary fraction
    if rank > n:
        raise ValueError(checks.invalid("y", f"at least {math.ceil(1 / error - 1e-9) - 1} samples for that error", n))
    reached = np.sort(_scores(p, score)[np.arange(n), labels])
    return ConformalSets(score, float(reached[rank - 1]), error)


def rejection(
    wrong: typing.Any,
    uncertainty: typing.Any,
    risk: float | None = None,
    confidence: float = 0.95,
    coverage: float | None = None,
) -> Rejection:
    """Find how uncertain a prediction may be to be kept: so that few of those kept are wrong, or that a share is kept.

    With `risk`, of 20 coverages, 5 %, 10 %, ..., 100 %, it is the largest whose risk is bounded by it (selective risk
    as in Geifman and El-Yaniv, arXiv 1705.08500). The bounds are Clopper and Pearson's, and hold all together with the
    given confidence. With `coverage` there is one bound only, which is lower.

    Args:
        wrong: whether the prediction of each held-out sample was wrong, (n,), booleans or 0 and 1.
        uncertainty: numbers (n,), such as the predictive entropy; those of kept ones are below the threshold.
        risk: the share of errors to allow among those kept, a float in (0, 1); or None.
        confidence: the probability that the risk of new samples is not above the bound, a float in (0, 1); 0.95.
        coverage: instead of `risk`, the share of the held-out samples to keep, a float in (0, 1): 0.9 rejects the most
            uncertain tenth. Where equal uncertainties leave no such share, fewer are kept.

    Returns:
        A `Rejection`.

    Raises:
        TypeError, ValueError: an argument that is not as described, or both or neither of `risk` and `coverage`; no
            coverage has so small a bound, for which the message has the smallest one: take more samples or a lower
            confidence, or allow more; or none would be kept.

    Example:

    >>> import numpy as np
    >>> from pernodedrop.uncertainty import decisions
    >>> entropy = np.linspace(0, 1, 1000)
    >>> found = decisions.rejection(wrong=entropy > 0.8, uncertainty=entropy, risk=0.05)
    >>> round(found.coverage, 2), round(found.threshold, 2)
    (0.8, 0.8)
    >>> found = decisions.rejection(wrong=entropy > 0.8, uncertainty=entropy, coverage=0.9)
    >>> round(found.coverage, 2), round(found.threshold, 2), round(found.risk, 2)
    (0.9, 0.9, 0.11)
    """
    checks.check_one_given(risk=risk, coverage=coverage)
    share = _share(coverage, "coverage") if risk is None else _share(risk, "risk")
    confidence = _share(confidence, "confidence")
    errors = numbers(wrong, "wrong", (None,))
    scores = numbers(uncertainty, "uncertainty", errors.shape)
    if not ((errors == 0) | (errors == 1)).all():
        raise ValueError(checks.invalid("wrong", "booleans, or 0 and 1", errors[(errors != 0) & (errors != 1)][0]))
    if risk is None:
        kept = _kept(errors, scores, math.floor(share * len(errors) + 1e-9), 1 - confidence)
        if kept is None and share * len(errors) < 1:
            expected = f"at least 1 / {len(errors)}, a sample of those that are given"
            raise ValueError(checks.invalid("coverage", expected, coverage))
        if kept is None:
            expected = f"numbers of which some, at most a share of {share:g}, are below the others"
            raise ValueError(checks.invalid("uncertainty", expected, scores))
        return kept
    ranks = [len(errors) * step // STEPS for step in range(1, STEPS + 1)]
    found = [one for rank in ranks if (one := _kept(errors, scores, rank, (1 - confidence) / STEPS))]
    good = [one for one in found if one.bound <= share]
    if not good:
        least = min((one.bound for one in found), default=1.0)
        expected = (
            f"at least {least:.3g}, the smallest bound of these {len(errors)} samples at confidence {confidence:g}"
        )
        raise ValueError(
            checks.invalid("risk", f"{expected}; more samples or a lower `confidence` make it smaller", risk)
        )
    return good[-1]


def _kept(errors: Array, scores: Array, rank: int, doubt: float) -> Rejection | None:
    """What is kept below the score of that rank, with a bound that fails with that probability; None is nothing."""
    from scipy import stats  # costs 100 ms to import

    threshold = np.append(np.sort(scores), np.inf)[rank]
    kept = errors[scores < threshold]  # given the sample at the threshold, those below it are drawn alike
    if not len(kept):
        return None
    right = np.sum(kept == 0)
    bound = stats.beta.ppf(1 - doubt, kept.sum() + 1, right) if right else 1.0
    return Rejection(float(threshold), len(kept) / len(errors), float(kept.mean()), float(bound))


def _scores(p: Array, score: str) -> Array:
    """How unlikely each class is, (n, k)."""
    if score == "threshold":
        return 1 - p
    order = np.argsort(-p, -1, kind="stable")
    found = np.empty_like(p)
    np.put_along_axis(found, order, np.cumsum(np.take_along_axis(p, order, -1), -1), -1)
    return found


def _share(value: typing.Any, argument: str) -> float:
    expected = "a float in (0, 1)"
    if not 0 < checks.check_finite(value, argument, expected) < 1:
        raise ValueError(checks.invalid(argument, expected, value))
    return float(value)

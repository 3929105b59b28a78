"""Is a predicted distribution of numbers what it says? Likelihood, CRPS, intervals, and the variance in two parts."""

import typing

import numpy as np

from pernodedrop import checks
from pernodedrop._types import Array
from pernodedrop.uncertainty.metrics.arrays import alike, numbers


class Intervals(typing.NamedTuple):
    """How often intervals have the number, and how wide they are.

    Attributes:
        coverage: the share of numbers in their interval, its ends included; a float.
        width: the mean width; a float.
    """

    coverage: float
    width: float


class Variances(typing.NamedTuple):
    """The variance of a prediction in two parts, arrays (n, ...).

    Attributes:
        total: aleatoric + epistemic.
        aleatoric: the mean of the variances that the passes predict: the noise of measurements.
        epistemic: the variance of the means that they predict: what they disagree about.
    """

    total: Array
    aleatoric: Array
    epistemic: Array


def gaussian_nll(y: typing.Any, mean: typing.Any, variance: typing.Any) -> float:
    """The negative log-likelihood of numbers under normal distributions: the mean of -log density, in nats.

    Args:
        y: numbers of any shape (n, ...).
        mean: the means, of that shape.
        variance: the variances, of that shape, above 0: that of measurements included, see `split_variance`.

    Returns:
        A float of any sign; lower is better.

    Raises:
        TypeError, ValueError: an argument that is not as described.

    Example:

    >>> from pernodedrop.uncertainty import metrics
    >>> round(metrics.gaussian_nll([0.0, 1.0], [0.0, 0.0], [1.0, 1.0]), 3)
    1.169
    """
    y, mean, variance = alike(y, mean=mean, variance=_above_zero(variance))
    return float(np.mean((np.log(2 * np.pi * variance) + (y - mean) ** 2 / variance) / 2))


def gaussian_crps(y: typing.Any, mean: typing.Any, variance: typing.Any) -> float:
    """The continuous ranked probability score of normal distributions (Gneiting and Raftery 2007).

    It is the integral of the squared difference of the cumulative distribution from the step at y, in the unit of y:
    the absolute error, where there is no uncertainty.

    Args:
        y, mean, variance: as for `gaussian_nll`.

    Returns:
        A float, the mean over all numbers; 0 is best.

    Raises:
        TypeError, ValueError: an argument that is not as described.

    Example:

    >>> from pernodedrop.uncertainty import metrics
    >>> round(metrics.gaussian_crps([0.0, 1.0], [0.0, 0.0], [1.0, 1.0]), 3)
    0.418
    """
    from scipy import special  # costs 100 ms to import

    y, mean, variance = alike(y, mean=mean, variance=_above_zero(variance))
    scale = np.sqrt(variance)
    z = (y - mean) / scale
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return float(np.mean(scale * (z * (2 * special.ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi))))


def crps(y: typing.Any, outputs: typing.Any, fair: bool = False) -> float:
    """The continuous ranked probability score of samples, such as the outputs of passes.

    It is the mean of ``|x - y| - |x - x'| / 2`` over all samples x, x' of a number.

    Args:
        y: numbers of any shape (n, ...).
        outputs: S samples of each, (S, n, ...), such as the `outputs` of a `Prediction`.
        fair: whether to estimate what it would be with infinitely many samples, without bias, by leaving pairs of a
            sample with itself out (Ferro 2014); False scores the samples as they are.

    Returns:
        A float, the mean over all numbers; lower is better.

    Raises:
        TypeError, ValueError: an argument that is not as described, such as `fair` of one sample.

    Example:

    >>> from pernodedrop.uncertainty import metrics
    >>> metrics.crps([1.0], [[0.0], [2.0]])
    0.5
    """
    y = numbers(y, "y")
    samples = np.sort(numbers(outputs, "outputs", (None, *y.shape)), 0)
    size = len(samples)
    if checks.check_bool(fair, "fair") and size == 1:
        raise ValueError(checks.invalid("outputs", "at least two samples with fair=True", samples.shape))
    # in order, sample i is the larger one of i pairs and the smaller one of size - 1 - i
    weights = (2 * np.arange(size) - size + 1) / (size * (size - fair))
    return float(np.mean(np.abs(samples - y).mean(0) - np.tensordot(weights, samples, 1)))


def intervals(y: typing.Any, low: typing.Any, high: typing.Any) -> Intervals:
    """How often intervals have the number, and how wide they are.

    Args:
        y: numbers of any shape (n, ...).
        low, high: the ends of their intervals, of that shape, such as `np.quantile(outputs, [0.05, 0.95], 0)`.

    Returns:
        `Intervals`. Good ones have the coverage that they claim, and are narrow.

    Raises:
        TypeError, ValueError: an argument that is not as described, such as a low end above the high one.

    Example:

    >>> from pernodedrop.uncertainty import metrics
    >>> metrics.intervals([1.0, 2.0], low=[0.0, 0.0], high=[1.0, 1.0])
    Intervals(coverage=0.5, width=1.0)
    """
    y, low, high = alike(y, low=low, high=high)
    if (low > high).any():
        raise ValueError(checks.invalid("low", "ends not above those of `high`", low[low > high][0]))
    return Intervals(float(np.mean((low <= y) & (y <= high))), float(np.mean(high - low)))


def split_variance(means: typing.Any, variances: typing.Any) -> Variances:
    """The variance of a mixture, of passes that each predict a mean and a variance (Kendall and Gal, arXiv 1703.04977).

    Args:
        means: what each of S passes predicts, (S, n, ...).
        variances: the variance of measurements that it predicts, of that shape, from 0.

    Returns:
        `Variances`.

    Raises:
        TypeError, ValueError: an argument that is not as described.

    Example:

    >>> from pernodedrop.uncertainty import metrics
    >>> metrics.split_variance([[0.0], [2.0]], [[0.5], [1.5]])
    Variances(total=array([2.]), aleatoric=array([1.]), epistemic=array([1.]))
    """
    means = numbers(means, "means")
    if means.ndim < 2:
        raise ValueError(checks.invalid("means", "means of passes, (S, n, ...)", means.shape))
    variances = numbers(variances, "variances", means.shape)
    if (variances < 0).any():
        raise ValueError(checks.invalid("variances", "numbers from 0", variances.min()))
    aleatoric, epistemic = variances.mean(0), means.var(0)
    return Variances(aleatoric + epistemic, aleatoric, epistemic)


def _above_zero(variance: typing.Any) -> Array:
    found = numbers(variance, "variance")
    if (found <= 0).any():
        raise ValueError(checks.invalid("variance", "numbers above 0", found.min()))
    return found

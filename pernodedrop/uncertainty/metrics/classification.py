"""Is a probability what it says? Calibration error, likelihood and Brier score of class probabilities."""

import typing

import numpy as np

from pernodedrop import checks
from pernodedrop._types import Array
from pernodedrop.uncertainty.metrics.arrays import classified, probabilities_of_classes

BINNINGS = ("width", "mass")
KINDS = ("confidence", "top_label", "classwise")
CHANCE = 0.95  # of drawings have an error up to that of `calibration_error_by_chance`
BLOCK = 1_000_000  # labels drawn at once


class Reliability(typing.NamedTuple):
    """The bars of a reliability diagram, each array (bins,).

    Attributes:
        low, high: the ends of a bin, which has the probabilities above low, up to high; the first has its low too.
        samples: how many are in it.
        confidence: their mean probability; NaN in an empty bin.
        accuracy: the share of them that are of the class; NaN in an empty bin.
    """

    low: Array
    high: Array
    samples: Array
    confidence: Array
    accuracy: Array


class BrierDecomposition(typing.NamedTuple):
    """score = reliability - resolution + uncertainty + within_bins, each a float.

    Attributes:
        score: the Brier score.
        reliability: how far mean probabilities of bins are from what happened there; 0 is best.
        resolution: how far what happened in bins is from what happens in all; large is best.
        uncertainty: what the labels have by themselves, the same for all models.
        within_bins: what bins hide, since forecasts of one bin differ; 0 with `bins=None`.
    """

    score: float
    reliability: float
    resolution: float
    uncertainty: float
    within_bins: float


def nll(y: typing.Any, p: typing.Any) -> float:
    """The negative log-likelihood: the mean of -log of the probability that was given to the label, in nats.

    It is inf where that is 0 for a sample: unlike `keras.losses` and scikit-learn, it clips nothing.

    Args:
        y: labels (n,) or (n, 1), whole numbers in [0, k), or one-hot (n, k); of NumPy or the backend, or lists, as in
            all metrics.
        p: probabilities (n, k) with sum 1; or those of the second of two classes, (n,) or (n, 1); or those of several
            passes, (S, n, k), whose mean is meant. All is computed in float64.

    Returns:
        A float from 0; 0 is best.

    Raises:
        TypeError, ValueError: an argument that is not as described, such as NaN, probabilities that do not sum to 1
            (to 0.01, for half precision), a label out of range, or no sample at all.

    Example:

    >>> from pernodedrop.uncertainty import metrics
    >>> round(metrics.nll([0, 1], [[0.5, 0.5], [0.2, 0.8]]), 3)
    0.458
    """
    labels, p = classified(y, p)
    with np.errstate(divide="ignore"):
        return float(np.mean(-np.log(p[np.arange(len(p)), labels])) + 0.0)


def brier_score(y: typing.Any, p: typing.Any) -> float:
    """The Brier score: the mean of the squared distance of probabilities from the label's one-hot vector.

    It is the sum over all classes, as Brier defined it, in [0, 2]. Where others take the squared error of one of two
    classes, that is half of it.

    Args:
        y, p: labels and probabilities, as for `nll`.

    Returns:
        A float; 0 is best.

    Raises:
        TypeError, ValueError: as `nll`.

    Example:

    >>> from pernodedrop.uncertainty import metrics
    >>> round(metrics.brier_score([0, 1], [[0.5, 0.5], [0.2, 0.8]]), 3)
    0.29
    """
    labels, p = classified(y, p)
    return float(np.mean(np.sum((p - _one_hot(labels, p)) ** 2, -1)))


def brier_decomposition(y: typing.Any, p: typing.Any, bins: int | None = 15) -> BrierDecomposition:
    """The Brier score in parts: calibration, sharpness, and what is in the labels (Murphy 1973, by class, summed).

    Murphy's three parts make up the score where all forecasts of a bin are equal. Where they are not, two terms more
    are needed (Stephenson, Coelho and Jolliffe 2008), here one: `within_bins`.

    Args:
        y, p: labels and probabilities, as for `nll`.
        bins: number of bins of equal width for the probability of each class; None has one for each value.

    Returns:
        A `BrierDecomposition`.

    Raises:
        TypeError, ValueError: as `nll`, or `bins` below 1.

    Example:

    >>> from pernodedrop.uncertainty import metrics
    >>> parts = metrics.brier_decomposition([0, 1, 1, 0], [0.2, 0.2, 0.8, 0.8], bins=None)
    >>> round(parts.reliability, 3), round(parts.resolution, 3), round(parts.uncertainty, 3)
    (0.18, 0.0, 0.5)
    """
    labels, p = classified(y, p)
    hits = _one_hot(labels, p)
    parts = np.zeros(4)
    for score, hit in zip(p.T, hits.T, strict=True):
        if bins is None:
            values, place = np.unique(score, return_inverse=True)
            number = len(values)
        else:
            edges = edges_of(score, bins, "width")
            place, number = _places(score, edges), len(edges) - 1
        count = np.maximum(np.bincount(place, minlength=number), 1)
        forecast = (np.bincount(place, score, number) / count)[place]
        outcome = (np.bincount(place, hit, number) / count)[place]
        step, chance = score - forecast, hit - outcome
        parts += np.mean(
            [
                (forecast - outcome) ** 2,
                (outcome - hit.mean()) ** 2,
                np.full(len(p), hit.mean() * (1 - hit.mean())),
                step * (step - 2 * chance),
            ],
            -1,
        )
    return BrierDecomposition(brier_score(labels, p), *map(float, parts))


def reliability(
    y: typing.Any, p: typing.Any, bins: int = 15, binning: str = "width", label: int | None = None
) -> Reliability:
    """What a reliability diagram shows: in bins of probability, how often it came true.

    Args:
        y, p: labels and probabilities, as for `nll`.
        bins: number of bins; 15.
        binning: "width" for bins of equal width in [0, 1]; "mass" for bins between quantiles, with equally many samples
            in each, as far as equal probabilities stay together.
        label: the class whose probability is meant; None is the most probable one (of equal ones the first).

    Returns:
        A `Reliability`.

    Raises:
        TypeError, ValueError: as `nll`, or another argument that is not as described.

    Example:

    >>> from pernodedrop.uncertainty import metrics
    >>> found = metrics.reliability([0, 1, 1], [[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]], bins=2)
    >>> found.samples, found.accuracy
    (array([0., 3.]), array([       nan, 0.66666667]))
    """
    labels, p = classified(y, p)
    chosen = p.argmax(-1) if label is None else np.full(len(p), checks.check_count(label, "label", least=0))
    if chosen.max() >= p.shape[1]:
        raise ValueError(checks.invalid("label", f"a class, an int in [0, {p.shape[1]}), or None", label))
    score = np.take_along_axis(p, chosen[:, None], -1)[:, 0]
    edges = edges_of(score, bins, binning)
    place = _places(score, edges)
    count = np.bincount(place, minlength=bins).astype("float64")
    sums = (np.bincount(place, values, bins) for values in (score, (labels == chosen).astype("float64")))
    with np.errstate(invalid="ignore"):
        return Reliability(edges[:-1], edges[1:], count, *(found / count for found in sums))


def calibration_error(
    y: typing.Any, p: typing.Any, bins: int = 15, binning: str = "width", of: str = "confidence"
) -> float:
    """The expected calibration error, ECE: how far probabilities are from what happens, bin by bin.

    It is the sum over bins of the distance of the mean probability from the share that came true, times the share of
    samples in the bin. `of` says what is binned:

    - "confidence": the probability of the most probable class. With bins of equal width it is the ECE of Guo et al.
      (arXiv 1706.04599), with equal mass the adaptive ECE (Nguyen and O'Connor, arXiv 1508.05154).
    - "top_label": the same, with separate bins for each predicted class (Gupta and Ramdas, arXiv 2107.08353).
    - "classwise": that of each class, and the mean over all classes. With equal width it is the classwise or static ECE
      (Kull et al., arXiv 1910.12656), with equal mass the adaptive calibration error, ACE (Nixon et al., arXiv
      1904.01685).

    With few samples a bin it is above 0 for calibrated probabilities as well: `calibration_error_by_chance` says by how
    much. Compare models on the same samples and bins.

    Args:
        y, p: labels and probabilities, as for `nll`.
        bins: number of bins; 15.
        binning: "width" or "mass", as for `reliability`.
        of: "confidence", "top_label" or "classwise"; "confidence".

    Returns:
        A float in [0, 1]; 0 is best.

    Raises:
        TypeError, ValueError: as `nll`, or another argument that is not as described.

    Example:

    >>> from pernodedrop.uncertainty import metrics
    >>> round(metrics.calibration_error([0, 1, 1], [[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]], bins=2), 3)
    0.067
    """
    labels, p = classified(y, p)
    binned = _binned(p, bins, binning, of)
    came = labels if of == "classwise" else (labels != p.argmax(-1)).astype("int64")
    return float(binned.error(np.bincount(binned.cells[np.arange(len(p)), came], minlength=len(binned.expected))))


def calibration_error_by_chance(
    p: typing.Any, bins: int = 15, binning: str = "width", of: str = "confidence", seed: int = 0
) -> float:
    """What the calibration error of these probabilities is up to, in 95 % of cases, if they are calibrated.

    Labels are drawn from the probabilities themselves (consistency resampling, Broecker and Smith 2007), of each sample
    on its own. An error above it is one that calibrated probabilities have in 5 % of cases.

    There are 199 drawings; of more than 20,000 samples, whose errors by chance are small, fewer, but 19 at least.

    Args:
        p: probabilities, as for `nll`.
        bins, binning, of: as for `calibration_error`.
        seed: of the drawings, an int in [0, 2**32); 0.

    Returns:
        A float in [0, 1].

    Raises:
        TypeError, ValueError: an argument that is not as described.

    Example:

    >>> import numpy as np
    >>> from pernodedrop.uncertainty import metrics
    >>> p = np.full(100, 0.7)  # as of a coin with 70 % heads
    >>> round(metrics.calibration_error([1] * 63 + [0] * 37, p), 3)
    0.07
    >>> round(metrics.calibration_error_by_chance(p), 3)
    0.08
    """
    p = probabilities_of_classes(p)
    outcomes, cells, expected, _ = binned = _binned(p, bins, binning, of)
    rng = np.random.default_rng(checks.check_word(seed, "seed"))
    draws = 20 * min(max(200_000 // len(p), 1), 10) - 1  # one less than what 95 % of is whole
    hits = np.zeros((draws, len(expected)), "int64")
    size = max(BLOCK // draws, 1)
    for first in range(0, len(p), size):
        part = np.cumsum(outcomes[first : first + size], -1)
        row = np.arange(len(part))[:, None]
        # of 24 bits, so that the sum stays below the next row
        u = rng.random((len(part), draws), "float32") + row
        chosen = np.searchsorted((part / part[:, -1:] + row).ravel(), u, side="right")
        drawn = cells[first : first + size].ravel()[chosen] + len(expected) * np.arange(draws)
        hits += np.bincount(drawn.ravel(), minlength=hits.size).reshape(hits.shape)
    return float(np.sort(binned.error(hits))[round(CHANCE * (draws + 1)) - 1])


def edges_of(score: Array, bins: int, binning: str) -> Array:
    """The ends of bins, (bins + 1,)."""
    shares = np.linspace(0, 1, checks.check_count(bins, "bins") + 1)
    return shares if checks.check_choice(binning, "binning", BINNINGS) == "width" else np.quantile(score, shares)


class _Binned(typing.NamedTuple):
    """What may come true of each of n samples: one of m classes, or that the most probable one is right, or wrong.

    Attributes:
        outcomes: their probabilities, (n, m).
        cells: the bin that each counts in, (n, m), ints; the last is for what counts in none.
        expected: the sum of the probabilities in each bin.
        counted: how many probabilities count.
    """

    outcomes: Array
    cells: typing.Any
    expected: typing.Any
    counted: int

    def error(self, hits: typing.Any) -> typing.Any:
        """The calibration error where so many came true in each bin, the last axis."""
        return np.abs(hits - self.expected)[..., :-1].sum(-1) / self.counted


def _binned(p: Array, bins: int, binning: str, of: str) -> _Binned:
    bins = checks.check_count(bins, "bins")
    if checks.check_choice(of, "of", KINDS) == "classwise":
        places = [_places(score, edges_of(score, bins, binning)) for score in p.T]
        cells, outcomes = np.stack(places, -1) + bins * np.arange(p.shape[1]), p
        number, counted = bins * p.shape[1], p.size
    else:
        top, score = p.argmax(-1), p.max(-1)
        group = np.zeros_like(top) if of == "confidence" else np.unique(top, return_inverse=True)[1]
        number, counted = bins * (int(group.max()) + 1), len(p)
        cells, outcomes = np.full((len(p), 2), number), np.stack([score, 1 - score], -1)
        for one in np.unique(group):
            inside = group == one
            cells[inside, 0] = bins * one + _places(score[inside], edges_of(score[inside], bins, binning))
    return _Binned(outcomes, cells, np.bincount(cells.ravel(), outcomes.ravel(), number + 1), counted)


def _places(score: Array, edges: Array) -> typing.Any:
    """The bin of each probability: above its low end, up to its high end."""
    return np.searchsorted(edges[1:-1], score)


def _one_hot(labels: typing.Any, p: Array) -> Array:
    return (labels[:, None] == np.arange(p.shape[1])).astype("float64")

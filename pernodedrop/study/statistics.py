"""Is a difference more than chance? The sound answer, and the one of arXiv 2512.12663 beside it.

Sound: settings are selected on some seeds, and confirmed on fresh ones and on a test set that nothing saw before.
Blocks are seeds, so differences are paired: a t interval, a sign-flip permutation test, Holm's correction for the
number of variants, and the difference that this number of seeds could have found.
"""

import collections.abc
import dataclasses
import functools
import itertools
import json
import math
import typing

import numpy as np
from scipy import optimize, stats

from pernodedrop import checks

__all__ = [
    "Comparison",
    "Concordance",
    "compare",
    "concordance",
    "corrected",
    "detectable",
    "holm",
    "paired",
    "power",
    "seeds_for",
    "sign_flip",
    "simulated_null",
]

Record: typing.TypeAlias = dict[str, typing.Any]
Records: typing.TypeAlias = collections.abc.Iterable[Record]
Block: typing.TypeAlias = tuple[str, int]
Losses: typing.TypeAlias = collections.abc.Mapping[typing.Any, float] | collections.abc.Sequence[float]

LEVEL = 0.05
POWER = 0.8
EXACT = 14
"""Up to so many differences, all ways to flip their signs are counted."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One variant against a baseline, over the seeds that both have.

    Attributes:
        variant, baseline: their names.
        seeds: how many there are in common.
        difference: mean of variant minus baseline; None without a seed in common, or if a loss is not finite.
        interval: (low, high), where the true difference is in 95 % of such studies; None below two seeds.
        deviation: the standard deviation of the differences.
        p_t: of the paired t test, two-sided.
        p_flip: of the sign-flip permutation test, two-sided; with n seeds it is at least 2 / 2**n.
        p_holm: `p_t` after Holm's correction for all variants that are compared with this baseline.
        detectable: the smallest true difference that this number of seeds finds with a probability of 80 %, at the
            level 5 % divided by the number of comparisons, if the deviation is the one observed.
        failed: the number of seeds in which one of the two has no finite loss.
        means: the mean losses, (of the variant, of the baseline), over these seeds; None where `difference` is.
    """

    variant: str
    baseline: str
    seeds: int
    difference: float | None = None
    interval: tuple[float, float] | None = None
    deviation: float | None = None
    p_t: float | None = None
    p_flip: float | None = None
    p_holm: float | None = None
    detectable: float | None = None
    failed: int = 0
    means: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.p_holm is None or self.interval is None or self.means is None:
            return f"{self.variant} against {self.baseline}: {self.verdict}, {self.seeds} seeds in common"
        (low, high), (own, other) = self.interval, self.means
        return (
            f"{self.variant} against {self.baseline}: {self.verdict}, mean loss {own:.4g} against {other:.4g}; "
            f"per seed {self.difference:+.3g} ({low:+.3g} to {high:+.3g}, + is worse), p {self.p_holm:.2g}; "
            f"{self.seeds} seeds, detectable {self.detectable:.2g}"
        )

    @property
    def verdict(self) -> str:
        """ "less", "more" or "tie", at 5 % after Holm's correction; "failed" or "unknown" if it has no p."""
        if self.p_holm is None or self.difference is None:
            return "failed" if self.failed else "unknown"
        return "tie" if self.p_holm >= LEVEL else "less" if self.difference < 0 else "more"


def compare(values: collections.abc.Mapping[str, Losses], baseline: str) -> list[Comparison]:
    """Each variant against a baseline: is its loss lower, beyond chance?

    Losses may come from any framework and any loop. Differences are paired: within a seed, let all variants start with
    the same weights and see the same batches. Choose rates on other data than those of these losses.

    Args:
        values: from the name of each variant to its losses: a list with one for each seed, the seeds in the same order
            for all variants, or a dict from seeds to losses; then the seeds that both variants have are compared.
        baseline: one of these names.

    Returns:
        A list of `Comparison`, in the order of the variants, the baseline left out.

    Raises:
        TypeError, ValueError: values that are not such a mapping, lists of unequal lengths or of less than two losses,
            lists mixed with dicts, or a baseline that is not one of the variants.

    >>> losses = {"none": [0.50, 0.54, 0.49], "dropout": [0.41, 0.46, 0.40]}
    >>> found, = compare(losses, "none")
    >>> found.verdict
    'less'
    >>> for part in str(found).split("; "):
    ...     print(part)
    dropout against none: less, mean loss 0.4233 against 0.51
    per seed -0.0867 (-0.101 to -0.0723, + is worse), p 0.0015
    3 seeds, detectable 0.019
    """
    by_name = _by_block(values)
    checks.check_choice(baseline, "baseline", tuple(by_name))
    others = [name for name in by_name if name != baseline]
    found = []
    for name in others:
        blocks = [block for block in by_name[name] if block in by_name[baseline]]
        pairs = [(by_name[name][block], by_name[baseline][block]) for block in blocks]
        found.append(paired(name, baseline, pairs, len(others)))
    return corrected(found)


def _by_block(values: typing.Any) -> dict[str, dict[typing.Any, float]]:
    """The losses of each variant by seed."""
    if not isinstance(values, collections.abc.Mapping):
        raise TypeError(checks.invalid("values", "a dict from names of variants to their losses", values))
    by_seed = {name: isinstance(losses, collections.abc.Mapping) for name, losses in values.items()}
    if any(by_seed.values()) and not all(by_seed.values()):
        raise TypeError(checks.invalid("values", "losses by seed of all variants, or of none", by_seed))
    found = {name: _numbers(name, losses) for name, losses in values.items()}
    if not any(by_seed.values()) and len(counts := {len(losses) for losses in found.values()}) > 1:
        expected = "as many losses of each variant; with seeds, {1: 0.5, ...}, some may be missing"
        raise ValueError(checks.invalid("values", expected, sorted(counts)))
    if not any(by_seed.values()) and any(len(losses) < 2 for losses in found.values()):
        raise ValueError(checks.invalid("values", "losses of at least 2 seeds", values))
    return found


def _numbers(name: str, losses: typing.Any) -> dict[typing.Any, float]:
    try:
        if isinstance(losses, str | bytes | set | frozenset):  # neither losses, nor in an order
            raise TypeError
        by_block = losses.items() if isinstance(losses, collections.abc.Mapping) else enumerate(losses)
        return {block: float(loss) for block, loss in by_block}
    except (TypeError, ValueError) as error:
        raise TypeError(checks.invalid(f"values[{name!r}]", "losses, numbers", losses)) from error


def paired(
    variant: str, baseline: str, pairs: collections.abc.Sequence[tuple[float, float]], comparisons: int = 1
) -> Comparison:
    """One comparison, by pairs (of the variant, of the baseline), without Holm's correction of its p."""
    failed = sum(not (math.isfinite(a) and math.isfinite(b)) for a, b in pairs)
    if failed or not pairs:
        return Comparison(variant, baseline, len(pairs), failed=failed)
    differences = np.array([a - b for a, b in pairs])
    mean, n = float(differences.mean()), len(differences)
    means = float(np.mean([a for a, _ in pairs])), float(np.mean([b for _, b in pairs]))
    if n == 1:
        return Comparison(variant, baseline, n, mean, means=means)
    deviation = float(differences.std(ddof=1))
    error = deviation / math.sqrt(n)
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * error
    return Comparison(
        variant,
        baseline,
        n,
        mean,
        (mean - half, mean + half),
        deviation,
        p_t=float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0),
        p_flip=sign_flip(differences),
        detectable=detectable(deviation, n, LEVEL / comparisons),
        means=means,
    )


def corrected(comparisons: collections.abc.Iterable[Comparison]) -> list[Comparison]:
    """Comparisons with `p_holm`: Holm's correction for as many as have a `p_t`. Those without stay as they are."""
    ones = list(comparisons)
    p_holm = holm([one.p_t for one in ones if one.p_t is not None])
    return [one if one.p_t is None else dataclasses.replace(one, p_holm=next(p_holm)) for one in ones]


def holm(p_values: collections.abc.Sequence[float]) -> collections.abc.Iterator[float]:
    """Holm's corrected p values (Holm 1979), in the order of the given ones.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    corrected, least = {}, 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = least
    return (corrected[place] for place in range(len(p_values)))


def sign_flip(differences: collections.abc.Sequence[float] | np.ndarray) -> float:
    """The two-sided p of a mean difference, if the sign of each difference were chance.

    All ways to flip signs are counted up to 14 differences, 20,000 of them drawn beyond.

    >>> sign_flip([0.1, 0.2, 0.3, 0.4])
    0.125
    """
    differences = np.asarray(differences, float)
    n = len(differences)
    if n <= EXACT:
        flips = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    else:
        flips = np.random.default_rng(0).integers(0, 2, (20_000, n))
        flips[0] = 0  # what was seen is one of the ways
    sums = np.abs((1 - 2 * flips) @ differences)
    return float((sums >= sums[0] * (1 - 1e-12)).mean())


def power(difference: float, deviation: float, seeds: int, level: float = LEVEL) -> float:
    """The probability that a paired t test finds a true difference, two-sided.

    >>> round(power(0.03, 0.036, 14), 2)
    0.82
    """
    if deviation == 0:
        return float(difference != 0)
    if difference == 0:
        return level
    critical = stats.t.ppf(1 - level / 2, seeds - 1)
    # the square of a noncentral t is a noncentral F, which SciPy has for every argument; its t is often NaN
    return float(stats.ncf.sf(critical**2, 1, seeds - 1, seeds * (difference / deviation) ** 2))


def detectable(deviation: float, seeds: int, level: float = LEVEL, wanted: float = POWER) -> float:
    """The smallest true difference that a paired t test finds with a probability of `wanted`.

    >>> round(detectable(1.0, 10), 2)
    1.0
    """
    return standardized(seeds, level, wanted) * deviation


@functools.cache
def standardized(seeds: int, level: float, wanted: float) -> float:
    """What is detectable where the deviation is 1."""
    low, high = 0.0, 1.0
    while power(high, 1.0, seeds, level) < wanted:
        high *= 2
    return float(optimize.brentq(lambda difference: power(difference, 1.0, seeds, level) - wanted, low, high))


def seeds_for(difference: float, deviation: float, level: float = LEVEL, wanted: float = POWER) -> int:
    """How many seeds find a true difference with a probability of `wanted`.

    >>> seeds_for(0.03, 0.036)
    14
    """
    checks.check_positive(difference, "difference")
    return next(n for n in itertools.count(2) if power(difference, deviation, n, level) >= wanted)


@dataclasses.dataclass(frozen=True)
class Concordance:
    """The analysis of arXiv 2512.12663: the five best records of each variant, and Friedman's test on them.

    Its blocks are "the i-th best record of each variant". Sorted records agree by construction, so the p is small
    whether or not variants differ: `null` says what chi2 is if they do not.

    Attributes:
        best: from each variant to its best records, ascending.
        chi2, p: of Friedman's test.
        w: Kendall's W, chi2 / (blocks * (variants - 1)).
        ranks: from each variant to its mean rank among all records.
        null: chi2 where runs are dealt to variants by chance, ascending.
    """

    best: dict[str, list[float]]
    chi2: float
    p: float
    w: float
    ranks: dict[str, float]
    null: np.ndarray

    @property
    def null_share(self) -> float:
        """In which share of cases without any difference chi2 is at least as great."""
        return float((self.null >= self.chi2 - 1e-9).mean())


def concordance(
    runs: collections.abc.Mapping[str, collections.abc.Sequence[collections.abc.Sequence[float]]],
    best: int = 5,
    repeats: int = 1000,
) -> Concordance:
    """The paper's analysis of runs, with what it would be by chance.

    Args:
        runs: from each variant to its runs, each a list of the losses of its epochs.
        best: how many records of each variant are taken.
        repeats: how often runs are dealt to variants by chance.

    Raises:
        ValueError: below three variants, or a variant with too few records.
    """
    counts = [len(own) for own in runs.values()]
    if len(runs) < 3 or min(sum(map(len, own)) for own in runs.values()) < best:
        raise ValueError(checks.invalid("runs", f"at least three variants with {best} records each", counts))
    # only the best records of a run can be among those of its variant
    every = [sorted(run)[:best] + [math.inf] * (best - len(run)) for own in runs.values() for run in own]
    table = np.array(every)
    cuts = np.cumsum(counts)[:-1]
    rng = np.random.default_rng(0)
    chosen = best_of(table, cuts, best)
    chi2, p, w = friedman(chosen)
    null = [friedman(best_of(table[rng.permutation(len(table))], cuts, best))[0] for _ in range(repeats)]
    ranks = stats.rankdata(chosen).reshape(chosen.shape).mean(0)
    return Concordance(
        {name: [float(value) for value in column] for name, column in zip(runs, chosen.T, strict=True)},
        chi2,
        p,
        w,
        {name: float(rank) for name, rank in zip(runs, ranks, strict=True)},
        np.sort(null),
    )


def best_of(table: np.ndarray, cuts: np.ndarray, best: int) -> np.ndarray:
    """The best records of each variant, (best, variants), ascending; the runs of a variant are between two cuts."""
    return np.stack([np.sort(part, axis=None)[:best] for part in np.split(table, cuts)], 1)


def friedman(table: np.ndarray) -> tuple[float, float, float]:
    """Friedman's chi2, its p, and Kendall's W of a table (blocks, variants)."""
    blocks, variants = table.shape
    chi2, p = stats.friedmanchisquare(*table.T)
    return float(chi2), float(p), float(chi2) / (blocks * (variants - 1))


def simulated_null(
    variants: int = 8,
    runs: int = 10,
    epochs: int = 20,
    run_deviation: float = 1.0,
    epoch_deviation: float = 0.3,
    best: int = 5,
    repeats: int = 2000,
) -> np.ndarray:
    """Chi2 of the paper's analysis where variants do not differ at all, ascending, for sizes like the paper's.

    The loss of an epoch is that of its run plus that of the epoch, both normal.
    """
    rng = np.random.default_rng(0)
    found = []
    for _ in range(repeats):
        means = run_deviation * rng.normal(size=(variants, runs, 1))
        losses = means + epoch_deviation * rng.normal(size=(variants, runs, epochs))
        found.append(friedman(np.sort(losses.reshape(variants, -1))[:, :best].T)[0])
    return np.sort(found)


@dataclasses.dataclass(frozen=True)
class Arm:
    """The records of one variant with one rate and one choice of settings."""

    variant: str
    rate: float | None
    settings: dict[str, typing.Any]
    records: list[Record]

    def values(self, name: str) -> dict[Block, float]:
        """The figures of the test set by block, (backend, seed)."""
        return {(one["backend"], one["seed"]): one["test"][name] for one in self.records if one.get("test")}


def arms(records: Records, stage: str) -> list[Arm]:
    """The records of a stage by variant, rate and settings, in the order in which they come."""
    found: dict[str, Arm] = {}
    for record in records:
        if record["stage"] == stage:
            what = {name: record[name] for name in ("variant", "rate", "settings")}
            arm = found.setdefault(json.dumps(what, sort_keys=True), Arm(**what, records=[]))
            arm.records.append(record)
    return list(found.values())


def confirmed(records: Records) -> dict[str, Arm]:
    """From each variant to its arm of the stage "confirm"; of several, the one with most records, then the last."""
    found: dict[str, Arm] = {}
    for arm in arms(records, "confirm"):
        if arm.variant not in found or len(arm.records) >= len(found[arm.variant].records):
            found[arm.variant] = arm
    return found

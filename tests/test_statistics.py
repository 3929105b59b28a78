"""The statistics of studies on made-up numbers with a known truth: chance is not taken for a difference, nor missed."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from pernodedrop.study import statistics

pytestmark = pytest.mark.once


def losses(rng, means, seeds=10, seed_deviation=3.0, deviation=1.0):
    """Losses by variant and seed: a seed is good or bad for all variants alike."""
    shared = seed_deviation * rng.normal(size=seeds)
    return {name: dict(enumerate(mean + shared + deviation * rng.normal(size=seeds))) for name, mean in means.items()}


def tolerance(probability, repeats):
    """Five standard errors: a share is off by more once in 1.7 million."""
    return 5 * math.sqrt(probability * (1 - probability) / repeats)


def test_a_comparison_is_that_of_scipy():
    rng = np.random.default_rng(0)
    values = losses(rng, {"none": 0, "dropout": -1})
    (found,) = statistics.compare(values, "none")
    a, b = (list(values[name].values()) for name in ("dropout", "none"))
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose(found.p_t, expected.pvalue)
    np.testing.assert_allclose(found.interval, (interval.low, interval.high))
    np.testing.assert_allclose(found.difference, np.mean(a) - np.mean(b))
    flips = stats.permutation_test(
        (np.subtract(a, b),), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    np.testing.assert_allclose(found.p_flip, flips.pvalue)


def test_the_sign_flip_test_beyond_all_ways_is_near_to_all_ways(monkeypatch):
    differences = np.random.default_rng(0).normal(0.5, size=14)
    exact = statistics.sign_flip(differences)
    monkeypatch.setattr(statistics, "EXACT", 13)
    assert abs(statistics.sign_flip(differences) - exact) < tolerance(exact, 20_000)


def test_holm_agrees_with_a_table_worked_by_hand():
    """Holm 1979: of five, the least is multiplied by 5, the next by 4, and none is less than one before it."""
    given = [0.04, 0.001, 0.5, 0.012, 0.011]
    #  sorted .001 .011 .012 .04 .5 -> .005, .044, max(.044, .036), .08, .5
    np.testing.assert_allclose(list(statistics.holm(given)), [0.08, 0.005, 0.5, 0.044, 0.044])
    assert list(statistics.holm([0.6, 0.7])) == [1, 1]
    assert list(statistics.holm([])) == []


def test_comparisons_are_corrected_for_those_that_have_a_p():
    ones = [
        statistics.paired("a", "none", [(0.1, 0.2), (0.2, 0.4)]),
        statistics.paired("b", "none", [(float("nan"), 0.2), (0.2, 0.4)]),
        statistics.paired("c", "none", [(0.1, 0.2), (0.2, 0.25)]),
    ]
    first, failed, last = statistics.corrected(ones)
    assert ones[0].p_t < ones[2].p_t
    assert (first.p_holm, last.p_holm) == (2 * ones[0].p_t, max(2 * ones[0].p_t, ones[2].p_t))
    assert failed is ones[1]
    assert failed.verdict == "failed"


@pytest.mark.parametrize(
    ("difference", "deviation", "first", "of_eight"),
    [(0.01, 0.0074, 7, 11), (0.01, 0.036, 104, 170), (0.03, 0.036, 14, 23)],
)
def test_seeds_for_a_difference_are_those_of_the_tables(difference, deviation, first, of_eight):
    assert statistics.seeds_for(difference, deviation) == first
    assert statistics.seeds_for(difference, deviation, 0.05 / 8) == of_eight


@pytest.mark.parametrize("seeds", [3, 10, 40])
@pytest.mark.parametrize("level", [0.05, 0.05 / 8])
@pytest.mark.parametrize("effect", [0, 0.3, 1, 4])
def test_the_power_is_the_integral_over_what_the_deviation_seen_may_be(seeds, level, effect):
    critical = stats.t.ppf(1 - level / 2, seeds - 1)

    def beyond(s):
        limit, shift = critical * math.sqrt(s / (seeds - 1)), effect * math.sqrt(seeds)
        return stats.chi2.pdf(s, seeds - 1) * (stats.norm.sf(limit - shift) + stats.norm.cdf(-limit - shift))

    expected, _ = integrate.quad(beyond, 0, stats.chi2.isf(1e-13, seeds - 1), limit=200)
    np.testing.assert_allclose(statistics.power(effect, 1.0, seeds, level), expected, atol=1e-6)


@pytest.mark.slow
def test_no_difference_gives_at_most_five_percent_false_alarms_in_a_family_of_eight():
    """Eight variants share their baseline, and so depend on each other. By t with Holm, and by sign flips with Holm."""
    rng, repeats = np.random.default_rng(0), 1000
    names = dict.fromkeys(["none", *"abcdefgh"], 0.0)
    alarms = [0, 0]
    for _ in range(repeats):
        found = statistics.compare(losses(rng, names), "none")
        alarms[0] += any(one.verdict != "tie" for one in found)
        alarms[1] += min(statistics.holm([one.p_flip for one in found])) < 0.05
    assert max(alarms) / repeats < 0.05 + tolerance(0.05, repeats)
    assert alarms[0] / repeats > 0.02  # nor is the correction far too strong


def test_one_comparison_without_a_difference_gives_five_percent_false_alarms():
    rng, repeats = np.random.default_rng(1), 3000
    found = [statistics.compare(losses(rng, {"none": 0, "a": 0}), "none")[0] for _ in range(repeats)]
    share = np.mean([one.verdict != "tie" for one in found])
    assert abs(share - 0.05) < tolerance(0.05, repeats)
    assert np.mean([one.p_flip < 0.05 for one in found]) < 0.05 + tolerance(0.05, repeats)
    covered = np.mean([one.interval[0] < 0 < one.interval[1] for one in found])
    assert abs(covered - 0.95) < tolerance(0.05, repeats)


def test_a_planted_difference_is_found_as_often_as_the_power_says():
    """The differences of two variants with deviation 1 have deviation sqrt(2)."""
    rng, repeats = np.random.default_rng(2), 2000
    planted = statistics.detectable(math.sqrt(2), 10)
    assert abs(statistics.power(planted, math.sqrt(2), 10) - 0.8) < 1e-9
    found = [statistics.compare(losses(rng, {"none": 0, "a": -planted}), "none")[0] for _ in range(repeats)]
    assert abs(np.mean([one.verdict == "less" for one in found]) - 0.8) < tolerance(0.8, repeats)
    half = [statistics.compare(losses(rng, {"none": 0, "a": planted / 2}), "none")[0] for _ in range(repeats)]
    expected = statistics.power(planted / 2, math.sqrt(2), 10)
    assert abs(np.mean([one.verdict != "tie" for one in half]) - expected) < tolerance(expected, repeats)


def test_the_first_step_of_holm_is_what_the_detectable_difference_states():
    found = statistics.compare(losses(np.random.default_rng(0), dict.fromkeys("nabcd", 0.0)), "n")
    for one in found:
        np.testing.assert_allclose(one.detectable, statistics.detectable(one.deviation, 10, 0.05 / 4))
        np.testing.assert_allclose(statistics.power(one.detectable, one.deviation, 10, 0.05 / 4), 0.8)


def test_only_seeds_in_common_are_compared():
    values = {"none": {0: 1.0, 1: 2.0, 2: 4.0, 9: 100.0}, "a": {2: 3.0, 1: 1.5, 0: 0.5, 7: -100.0}, "b": {5: 1.0}}
    a, b = statistics.compare(values, "none")
    assert (a.seeds, round(a.difference, 6)) == (3, round(-2 / 3, 6))
    assert a.means == pytest.approx((5 / 3, 7 / 3))
    assert (b.seeds, b.difference, b.p_holm, b.verdict) == (0, None, None, "unknown")


def test_a_list_has_a_loss_of_each_seed_and_other_values_are_refused():
    none, dropout = [0.5, 0.6, 0.4], np.float32([0.4, 0.45, 0.5])
    by_seed = {"none": dict(enumerate(none)), "dropout": dict(enumerate(map(float, dropout)))}
    assert statistics.compare({"none": none, "dropout": dropout}, "none") == statistics.compare(by_seed, "none")
    with pytest.raises(ValueError, match=r"`values`.*as many losses.*\[2, 3\]"):
        statistics.compare({"none": none, "dropout": dropout[:2]}, "none")
    with pytest.raises(TypeError, match=r"`values`.*by seed of all variants, or of none"):
        statistics.compare({"none": none, "dropout": {1: 0.4, 2: 0.5, 3: 0.6}}, "none")
    for values, message in ((none, "`values`"), ({"none": 0.5}, r"values\['none'\]"), ({"none": "12"}, r"\['none'\]")):
        with pytest.raises(TypeError, match=message):
            statistics.compare(values, "none")


def test_a_comparison_says_its_verdict_in_a_line():
    found = statistics.compare(
        {"none": {1: 0.5, 2: 0.6}, "dropout": {1: 0.4, 2: 0.49}, "mine": {1: 0.4, 2: math.nan}, "new": {7: 1}}, "none"
    )
    line = "dropout against none: less, mean loss 0.445 against 0.55; per seed -0.105 (-0.169 to -0.0415, + is worse)"
    assert str(found[0]) == f"{line}, p 0.03; 2 seeds, detectable 0.24"
    assert str(found[1]) == "mine against none: failed, 2 seeds in common"
    assert str(found[2]) == "new against none: unknown, 0 seeds in common"


def test_one_seed_tells_no_interval_and_equal_losses_are_a_tie():
    with pytest.raises(ValueError, match="Expected losses of at least 2 seeds"):
        statistics.compare({"none": [1.0], "a": [0.5]}, "none")
    (one,) = statistics.compare({"none": {0: 1.0}, "a": {0: 0.5}}, "none")
    assert (one.difference, one.interval, one.verdict) == (-0.5, None, "unknown")
    (same,) = statistics.compare({"none": {0: 1.0, 1: 2.0}, "a": {0: 1.0, 1: 2.0}}, "none")
    assert (same.difference, same.p_t, same.p_flip, same.verdict) == (0, 1, 1, "tie")


def test_a_loss_that_is_not_finite_is_told_and_never_averaged_away():
    values = {"none": {0: 1.0, 1: 2.0, 2: 3.0}, "a": {0: 0.5, 1: math.nan, 2: 2.0}, "b": {0: 0.5, 1: 1.6, 2: 2.4}}
    a, b = statistics.compare(values, "none")
    assert (a.verdict, a.failed, a.difference, a.p_holm) == ("failed", 1, None, None)
    assert b.p_holm == b.p_t


def test_a_baseline_that_is_none_of_the_variants_is_refused():
    with pytest.raises(ValueError, match="`baseline`"):
        statistics.compare({"a": {0: 1.0}}, "none")


TABLE_V = [(1, 4, 6, 7, 9), (2, 3, 5, 11, 14), (8, 10, 12, 13, 15), *(range(n, n + 5) for n in (16, 21, 26, 31, 36))]
"""Ranks of five records of eight variants among all of them, with the mean ranks of table V of arXiv 2512.12663."""


def test_table_v_of_the_paper_is_reproduced():
    runs = {f"variant {n}": [[float(rank)] for rank in column] for n, column in enumerate(TABLE_V)}
    found = statistics.concordance(runs, repeats=10)
    assert [round(rank, 1) for rank in found.ranks.values()] == [5.4, 7.0, 11.6, 18, 23, 28, 33, 38]
    assert (round(found.chi2, 3), round(found.w, 3)) == (34.600, 0.989)
    np.testing.assert_allclose(found.p, stats.chi2.sf(34.6, 7))
    assert [tuple(best) for best in found.best.values()] == [tuple(column) for column in TABLE_V]


def test_the_analysis_of_the_paper_finds_differences_where_there_are_none():
    """Its p would be below .001 nearly always. Figures: 2,000 simulated tables, of which 22 % have 34.6 or more."""
    null = statistics.simulated_null()
    assert (stats.chi2.sf(null, 7) < 0.001).mean() > 0.999
    assert abs(np.median(null) - 33.9) < 0.2
    assert abs((null >= 34.6 - 1e-9).mean() - 0.22) < tolerance(0.22, len(null)) + 0.005  # of rounding 0.22
    assert (statistics.simulated_null(variants=7, repeats=500) > 25.1).mean() > 0.9


@pytest.mark.slow
def test_runs_dealt_by_chance_tell_how_great_chi2_is_without_a_difference():
    """The share is a p value: with no difference it is uniform, so below 5 % in 5 % of studies."""
    rng, repeats = np.random.default_rng(3), 120
    small = 0
    for _ in range(repeats):
        runs = rng.normal(size=(4, 6, 1)) + 0.3 * rng.normal(size=(4, 6, 8))
        found = statistics.concordance(dict(zip("abcd", runs.tolist(), strict=True)), repeats=40)
        small += found.null_share < 0.05
    assert small / repeats < 0.05 + tolerance(0.05, repeats)
    runs = {name: (5 * n + rng.normal(size=(6, 8))).tolist() for n, name in enumerate("abcd")}
    clear = statistics.concordance(runs, repeats=200)
    assert (clear.chi2, clear.w) == (15, 1)
    assert clear.null_share < 0.5


def test_the_best_records_are_the_least_of_all_runs_of_a_variant():
    rng = np.random.default_rng(4)
    runs = {name: rng.normal(size=(7, 9)).tolist() for name in "abc"}
    found = statistics.concordance(runs, best=4, repeats=1)
    for name, own in runs.items():
        assert found.best[name] == sorted(itertools.chain.from_iterable(own))[:4]
    with pytest.raises(ValueError, match="three variants with 64 records"):
        statistics.concordance(runs, best=64)


def record(variant, seed, stage="confirm", rate=0.5, backend="jax", **settings):
    test = {"loss": float(seed)} if stage == "confirm" else None
    known = {"study": "made-up", "stage": stage, "variant": variant, "rate": rate, "seed": seed, "backend": backend}
    return {**known, "settings": settings, "test": test}


def test_records_are_put_together_by_variant_rate_and_settings():
    records = [record("a", 1), record("a", 2, width=3), record("b", 1, stage="select"), record("a", 3), record("a", 4)]
    first, second = statistics.arms(records, "confirm")
    assert [one["seed"] for one in first.records] == [1, 3, 4]
    assert second.settings == {"width": 3}
    assert statistics.confirmed(records) == {"a": first}
    assert first.values("loss") == {("jax", 1): 1, ("jax", 3): 3, ("jax", 4): 4}

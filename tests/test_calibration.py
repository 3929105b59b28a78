"""From a prediction to a decision: reports, calibrated probabilities, sets and rejection, and what they guarantee."""

import collections

import keras
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import optimize, stats

import pernodedrop as pnd
from pernodedrop import uncertainty
from pernodedrop.uncertainty import calibration, decisions, metrics, plots, prediction
from pernodedrop.uncertainty import report as reports
from pernodedrop.uncertainty.metrics.arrays import probabilities_of

RNG = np.random.default_rng(1)
FALSE_ALARM = 1e-6
pytestmark = pytest.mark.once


def drawn(n, k, sharpness=1.0, rng=RNG):
    """Labels, and probabilities that are too sure of them by that factor."""
    logits = rng.normal(size=(n, k))
    p, claimed = probabilities_of(logits), probabilities_of(logits * sharpness)
    return (p.cumsum(-1) < rng.uniform(size=(n, 1))).sum(-1).clip(max=k - 1), claimed


Y, P = drawn(400, 3, sharpness=3)
Z, SECOND = drawn(400, 2, sharpness=2)


def predicted(*outputs, probabilities=None):
    """A `Prediction` of passes with these outputs."""
    found = prediction.Statistics(True, prediction.Reading(probabilities=probabilities))
    for y in outputs:
        found.add(np.asarray(y))
    return uncertainty.Prediction(**found.result(), samples=len(outputs), seed=0)


def test_the_report_of_probabilities_has_the_metrics_of_their_mean():
    other = P[:, [1, 2, 0]]
    found = predicted(P, P, other)
    mean, report = (2 * P + other) / 3, found.report(Y)
    kept = metrics.risk_coverage(mean.argmax(-1) != Y, found.predictive_entropy)
    assert report == pytest.approx(
        {
            "inputs": 400,
            "passes": 3,
            "accuracy": np.mean(mean.argmax(-1) == Y),
            "nll": metrics.nll(Y, mean),
            "brier_score": metrics.brier_score(Y, mean),
            "calibration_error": metrics.calibration_error(Y, mean),
            "adaptive_calibration_error": metrics.calibration_error(Y, mean, binning="mass"),
            "classwise_calibration_error": metrics.calibration_error(Y, mean, of="classwise"),
            "calibration_error_by_chance": metrics.calibration_error_by_chance(mean),
            "adaptive_calibration_error_by_chance": metrics.calibration_error_by_chance(mean, binning="mass"),
            "classwise_calibration_error_by_chance": metrics.calibration_error_by_chance(mean, of="classwise"),
            "aurc": kept.aurc,
            "augrc": kept.augrc,
        }
    )
    assert found.report(np.eye(3)[Y]) == found.report(Y[:, None]) == report
    plain = found.report(Y, examples=0)
    table, sentence = repr(plain).split("\n\n")
    assert [line.split() for line in table.splitlines()] == [[k, f"{v:.6g}"] for k, v in report.items()]
    error, chance = report["calibration_error"], report["calibration_error_by_chance"]
    start = f"calibration_error {error:.3f}, where calibrated probabilities have up to {chance:.3f} in 95 % of cases:"
    assert sentence.splitlines()[0] == start


def test_a_report_says_whether_miscalibration_shows():
    chance = {"calibration_error_by_chance": 0.2}
    for error, verdict in ((0.1, "no miscalibration shows"), (0.3, "miscalibration shows")):
        assert str(reports.Report({"calibration_error": error} | chance)).endswith(f"95 % of cases:\n{verdict}")
    assert "miscalibration" not in str(reports.Report({"calibration_error": 0.3}))  # one of an earlier version


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [{}, {"binning": "mass"}, {"of": "top_label"}, {"of": "classwise"}, {"of": "classwise", "binning": "mass"}],
    ids=str,
)
def test_calibrated_probabilities_have_an_error_above_that_by_chance_in_5_percent_of_cases(how):
    """Each case has seeds of its own, so that their number is binomial. Three times too sure ones are above it."""
    rng = np.random.default_rng(7)
    above = wrong = 0
    for seed in range(400):
        y, p = drawn(int(rng.integers(30, 200)), 3, rng=rng)
        above += metrics.calibration_error(y, p, **how) > metrics.calibration_error_by_chance(p, **how, seed=seed)
    for _ in range(50):
        y, p = drawn(400, 3, sharpness=3, rng=rng)
        wrong += metrics.calibration_error(y, p, **how) > metrics.calibration_error_by_chance(p, **how)
    law = stats.binom(400, 0.05)
    assert law.ppf(FALSE_ALARM / 2) <= above <= law.isf(FALSE_ALARM / 2)
    assert wrong == 50


@pytest.mark.parametrize(("n", "draws"), [(1000, 199), (32_000, 119)])
@pytest.mark.parametrize("of", ["confidence", "classwise"])
def test_the_error_by_chance_of_a_coin_is_that_of_the_binomial_distribution(n, draws, of):
    """With sure ones before it. One in 20 of the drawings and of one more is above it, so a share with a beta law."""
    p = np.repeat([1, 0.7], [n // 4, n - n // 4])
    found = metrics.calibration_error_by_chance(p, of=of)
    law, heads = stats.binom(n - n // 4, 0.7), np.arange(n + 1)
    more, less = (np.sum(law.pmf(heads)[abs(heads - law.mean()) / n > found + at]) for at in (-1e-9, 1e-9))
    share = stats.beta((draws + 1) / 20, (draws + 1) * 19 / 20)
    assert less <= share.isf(FALSE_ALARM / 2)
    assert more >= share.ppf(FALSE_ALARM / 2)
    assert metrics.calibration_error_by_chance(p.astype("float16"), of=of) == pytest.approx(found, abs=1e-3)


def test_sure_probabilities_have_no_error_by_chance():
    assert metrics.calibration_error_by_chance(np.eye(3)[[0, 1, 1, 2]], of="classwise") == 0
    assert metrics.calibration_error_by_chance(np.eye(3)[[0, 1, 1, 2]]) == 0


def test_disagreements_are_the_samples_with_the_highest_scores_and_have_their_votes():
    outputs = drawn(30, 3, 4)[1][None] + RNG.uniform(size=(7, 30, 3))
    outputs /= outputs.sum(-1, keepdims=True)
    found, y = predicted(*outputs), RNG.integers(3, size=30)
    entropy, aleatoric = stats.entropy(outputs.mean(0), axis=-1), stats.entropy(outputs, axis=-1).mean(0)
    scores = {"predictive_entropy": entropy, "aleatoric": aleatoric, "mutual_information": entropy - aleatoric}
    for by, score in (scores | {"variation_ratio": found.variation_ratio}).items():
        listed = found.disagreements(40, y, by=by)
        assert sorted(one.place for one in listed) == [*range(30)]
        np.testing.assert_allclose([getattr(one, by) for one in listed], sorted(score, reverse=True), atol=1e-12)
        for one in listed:
            assert one.votes == dict(collections.Counter(outputs[:, one.place].argmax(-1).tolist()).most_common())
            assert (one.label, one.predicted) == (y[one.place], outputs.mean(0)[one.place].argmax())
            assert one.variation_ratio == pytest.approx(1 - max(one.votes.values()) / 7)
    report = found.report(y, examples=3)
    assert report.examples == found.disagreements(3, y)
    assert repr(report).endswith(f"\n\n{found.disagreements(3, y)}")
    first, words = listed[0], str(listed).splitlines()[1].split()
    shown = (f"{score:.4f}" for score in (first.predictive_entropy, first.mutual_information))
    assert words[:5] == [*map(str, first[:3]), *shown]
    last = repr(report).splitlines()[-1].split()
    place, label, choice = report.examples[2][:3]
    wrong = ["wrong"] if label != choice else []
    assert last[: 3 + len(wrong)] == [str(place), str(label), str(choice), *wrong]
    assert {"wrong" in line for line in repr(found.report(y, examples=30)).splitlines()[-30:]} == {True, False}
    header = repr(report).splitlines()[-4].split()
    assert header[:3] == ["row", "label", "predicted"]
    positions = predicted(*outputs.reshape(7, 10, 3, 3)).disagreements(1)[0]
    assert positions == found.disagreements(1)[0]._replace(place=divmod(found.disagreements(1)[0].place, 3))
    assert predicted(SECOND[:, 1:]).disagreements(1)[0].votes in ({0: 1}, {1: 1})


def test_the_report_of_positions_is_that_of_each_of_them():
    each, whole = predicted(P).report(Y) | {"inputs": 80}, predicted(P.reshape(80, 5, 3))
    assert whole.report(Y.reshape(80, 5)) == each
    assert whole.report(np.eye(3)[Y].reshape(80, 5, 3)) == each
    assert predicted(SECOND[:, 1:]).report(Z) == pytest.approx(predicted(SECOND).report(Z))


def test_the_report_of_numbers_is_that_of_normal_distributions():
    outputs, y = RNG.normal(size=(9, 50, 2)), RNG.normal(size=(50, 2))
    found = predicted(*outputs).report(y, noise_variance=0.5)
    law = stats.norm(outputs.mean(0), np.sqrt(outputs.var(0) + 0.5))
    assert (found["inputs"], found["passes"]) == (50, 9)
    assert found["rmse"] == pytest.approx(np.mean((outputs.mean(0) - y) ** 2) ** 0.5)
    assert found["gaussian_nll"] == pytest.approx(-law.logpdf(y).mean())
    assert found["coverage_90"] == np.mean((law.ppf(0.05) <= y) & (y <= law.ppf(0.95)))
    assert found["width_90"] == pytest.approx(np.mean(law.ppf(0.95) - law.ppf(0.05)))
    column = predicted(*outputs[..., :1])
    assert column.report(y[:, 0]) == column.report(y[:, :1])


def test_a_report_of_a_model():
    head = keras.layers.Dense(3, activation="softmax")
    model = keras.Sequential([keras.Input((4,)), pnd.Dropout(0.5, seed=1), head])
    found = uncertainty.predict(model, RNG.normal(size=(20, 4)).astype("float32"), 5, seed=1)
    assert 0 < found.report(RNG.integers(3, size=20))["nll"] < np.inf


def test_temperature_is_that_of_the_best_likelihood_and_keeps_ranks():
    sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="an independent likelihood")

    def likelihood(log_temperature):
        p = P ** np.exp(-log_temperature)
        return sklearn_metrics.log_loss(Y, p / p.sum(-1, keepdims=True))

    found = calibration.temperature(Y, P)
    expected = optimize.minimize_scalar(likelihood, bounds=(-3, 3), options={"xatol": 1e-9}).x
    assert found.temperature == pytest.approx(np.exp(expected), rel=1e-5)
    assert found.temperature > 2
    assert metrics.nll(Y, found(P)) < metrics.nll(Y, P)
    np.testing.assert_array_equal(found(P).argsort(), P.argsort())
    np.testing.assert_allclose(found(P).sum(-1), 1)
    squared = P**2 / np.sum(P**2, -1, keepdims=True)
    assert calibration.temperature(Y, squared).temperature == pytest.approx(2 * found.temperature)


def test_probabilities_of_zero_have_a_temperature_too():
    p, y = np.array([[1.0, 0.0]] * 10), np.array([0] * 9 + [1])
    np.testing.assert_allclose(calibration.temperature(y, p)(p)[0], [0.9, 0.1], rtol=1e-6)


def test_vector_scaling_of_two_classes_is_a_logistic_regression():
    linear_model = pytest.importorskip("sklearn.linear_model", reason="an independent implementation")
    found = calibration.vector(Z, SECOND)
    logistic = linear_model.LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(np.log(SECOND), Z)
    np.testing.assert_allclose(found(SECOND), logistic.predict_proba(np.log(SECOND)), atol=1e-5)


def test_vector_scaling_has_no_gradient_left_and_is_better_than_temperature():
    found = calibration.vector(Y, P)
    left = found(P) - np.eye(3)[Y]
    np.testing.assert_allclose(left.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose((left * np.log(P)).mean(0), 0, atol=1e-6)
    assert metrics.nll(Y, found(P)) <= metrics.nll(Y, calibration.temperature(Y, P)(P))


@pytest.mark.parametrize("digits", [16, 1], ids=["distinct", "ties"])
def test_isotonic_scaling_is_that_of_scikit_learn(digits):
    isotonic = pytest.importorskip("sklearn.isotonic", reason="an independent implementation")
    new = drawn(100, 2)[1][:, 1]
    second = SECOND[:, 1].round(digits)
    expected = isotonic.IsotonicRegression(out_of_bounds="clip").fit(second, Z).predict(new)
    np.testing.assert_allclose(calibration.isotonic(Z, second)(new)[:, 1], expected, atol=1e-12)
    found, others = calibration.isotonic(Y, P), drawn(100, 3)[1]
    curves = [isotonic.IsotonicRegression(out_of_bounds="clip").fit(P[:, c], c == Y) for c in range(3)]
    each = np.stack([curve.predict(others[:, c]) for c, curve in enumerate(curves)], -1)
    np.testing.assert_allclose(found(others), each / each.sum(-1, keepdims=True), atol=1e-12)


def test_isotonic_scaling_that_knows_nothing_of_a_sample_leaves_it():
    found = calibration.isotonic([0, 1, 2], [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    np.testing.assert_allclose(found([[0.1, 0.1, 0.8]]), [[0, 0, 1]])
    none = calibration.Isotonic(((np.array([0.5]), np.array([0.0])),) * 3)
    np.testing.assert_allclose(none([[0.2, 0.3, 0.5]]), [[0.2, 0.3, 0.5]])


@pytest.mark.parametrize("score", ["threshold", "adaptive"])
@pytest.mark.parametrize(("n", "error"), [(9, 0.1), (19, 0.1), (19, 0.3)])
def test_sets_have_the_right_class_as_often_as_they_say(score, n, error):
    """A set for one new sample, of 1,000 drawings of held-out ones: Binomial(1000, r / (n + 1)) are right."""
    rng = np.random.default_rng([n, int(10 * error)])
    right = 0
    for _ in range(1000):
        y, p = drawn(n + 1, 4, sharpness=3, rng=rng)
        right += decisions.conformal(y[:n], p[:n], error, score)(p[n:])[0, y[n]]
    chance = np.ceil((n + 1) * (1 - error) - 1e-9) / (n + 1)
    assert stats.binomtest(int(right), 1000, chance).pvalue > FALSE_ALARM


@pytest.mark.parametrize("score", ["threshold", "adaptive"])
def test_coverage_given_the_held_out_samples_has_the_law_of_its_docstring(score):
    """Of 20,000 new samples, BetaBinomial(20000, r, n + 1 - r) sets are right."""
    y, p = drawn(21_000, 5, sharpness=3)
    sets = decisions.conformal(y[:1000], p[:1000], 0.1, score)(p[1000:])
    right = int(sets[np.arange(20_000), y[1000:]].sum())
    law = stats.betabinom(20_000, 901, 100)
    assert law.ppf(FALSE_ALARM / 2) <= right <= law.isf(FALSE_ALARM / 2)
    assert 1 < sets.sum(-1).mean() < 5


def test_sets_are_those_of_the_definitions():
    y, p = [0, 0, 1], np.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.5, 0.4, 0.1]])
    assert decisions.conformal(y, p, 0.25).limit == pytest.approx(0.6)
    adaptive = decisions.conformal(y, p, 0.25, "adaptive")
    assert adaptive.limit == pytest.approx(0.9)
    np.testing.assert_array_equal(adaptive([[0.1, 0.2, 0.7], [0.05, 0.9, 0.05 - 1e-9]]), [[0, 1, 1], [0, 1, 0]])


@pytest.mark.parametrize("unsure", [np.arange(1000) / 1000, np.arange(1000) // 100 / 10], ids=["distinct", "ties"])
def test_rejection_takes_the_largest_of_its_coverages_with_a_bound_below_the_risk(unsure):
    wrong = RNG.uniform(size=1000) < unsure / 2
    found = decisions.rejection(wrong, unsure, risk=0.2, confidence=0.9)
    best = None
    for step in range(1, 21):
        limit = unsure[50 * step] if step < 20 else np.inf
        kept = wrong[unsure < limit]
        if len(kept):
            test = stats.binomtest(int(kept.sum()), len(kept))
            bound = test.proportion_ci(1 - 2 * 0.1 / 20, method="exact").high
            if bound <= 0.2:
                best = (limit, len(kept) / 1000, kept.mean(), bound)
    assert found == pytest.approx(best)
    assert decisions.rejection(np.zeros(1000), unsure, risk=0.2).threshold == np.inf


def test_the_risk_of_what_is_kept_is_below_the_bound_as_often_as_it_says():
    """Of 300 drawings where u of [0, 1] is wrong with probability u / 2, so the risk below t is t / 4."""
    above = 0
    for _ in range(300):
        unsure = RNG.uniform(size=2000)
        found = decisions.rejection(RNG.uniform(size=2000) < unsure / 2, unsure, risk=0.2, confidence=0.8)
        above += min(found.threshold, 1) / 4 > found.bound
    assert above <= stats.binom(300, 0.2).isf(FALSE_ALARM)


@pytest.mark.parametrize(("share", "number"), [(0.9, 90), (0.29, 29), (1 / 3, 33)])  # 0.29 * 100 < 29 in float64
@pytest.mark.parametrize("ties", [1, 10])
def test_rejection_of_a_share_keeps_the_most_certain_with_the_bound_of_that_share_alone(ties, share, number):
    unsure = np.arange(100) // ties * ties / 100
    wrong, mixed = RNG.uniform(size=100) < unsure / 2, RNG.permutation(100)
    found = decisions.rejection(wrong[mixed], unsure[mixed], coverage=share, confidence=0.9)
    kept = wrong[: number // ties * ties]
    bound = stats.binomtest(int(kept.sum()), len(kept)).proportion_ci(0.8, method="exact").high
    assert found == pytest.approx((unsure[number], len(kept) / 100, kept.mean(), bound))


def test_the_bound_of_a_share_holds_as_often_as_it_says():
    """As above, of those kept at a coverage of 0.6; the bound is not far above either."""
    above, bounds = 0, []
    for _ in range(300):
        unsure = RNG.uniform(size=500)
        found = decisions.rejection(RNG.uniform(size=500) < unsure / 2, unsure, coverage=0.6, confidence=0.8)
        above += found.threshold / 4 > found.bound
        bounds.append(found.bound)
    assert above <= stats.binom(300, 0.2).isf(FALSE_ALARM)
    assert np.mean(bounds) < 0.15 + 2 * np.sqrt(0.15 * 0.85 / 300)


def test_a_reliability_diagram_shows_what_came_true_and_how_many_say_so():
    found = metrics.reliability(Y, P, 12)
    assert (found.samples == 0).any(), "no bin is empty"
    above, below = plots.reliability_diagram(found).axes
    full = found.samples > 0
    for axes, values in ((above, found.accuracy[full]), (below, found.samples[full])):
        np.testing.assert_allclose([bar.get_height() for bar in axes.patches], values)
        np.testing.assert_allclose([bar.get_x() for bar in axes.patches], found.low[full])
    np.testing.assert_allclose(above.lines[-1].get_xydata(), np.stack([found.confidence, found.accuracy], -1)[full])


def test_the_other_plots_show_their_numbers():
    found = metrics.risk_coverage(Y > 0, 1 - P.max(-1))
    axes = plots.risk_coverage_curve(entropy=found, again=found).axes[0]
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), np.stack([found.coverage, found.risk], -1))
    assert axes.lines[0].get_label() == f"entropy (AURC {found.aurc:.4f})"
    axes = plots.two_histograms(SECOND[:, 0], SECOND[:50, 1], "probability").axes[0]
    for patch, values in zip(axes.patches, (SECOND[:, 0], SECOND[:50, 1]), strict=True):
        shares, edges, _ = patch.get_data()
        np.testing.assert_allclose(shares, [np.mean(np.digitize(values, edges[1:-1]) == b) for b in range(30)])


def pixels_of(figure):
    """What a figure looks like."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.buffer_rgba()


def test_the_figures_of_a_report_are_those_of_its_metrics():
    found, y = predicted(*drawn(20, 3, 9)[1].reshape(4, 5, 3)), RNG.integers(3, size=5)
    images, outside = RNG.uniform(size=(5, 4, 4)), np.array([0.1, 0.9])
    report, mean = found.report(y, examples=2), found.mean
    figures = plots.of_report(report, outside, images)
    kept = metrics.risk_coverage(mean.argmax(-1) != y, found.predictive_entropy)
    alone = {
        "reliability": plots.reliability_diagram(metrics.reliability(y, mean)),
        "risk_coverage": plots.risk_coverage_curve(**{"predictive entropy": kept}),
        "predictive_entropy": plots.two_histograms(found.predictive_entropy, outside),
        "disagreements": plots.disagreements(found.disagreements(2, y), images),
    }
    assert [*figures] == [*alone]
    for name, figure in alone.items():
        shown, wanted = (np.asarray(pixels_of(one)) for one in (figures[name], figure))
        np.testing.assert_array_equal(shown, wanted, err_msg=name)
    assert [*plots.of_report(found.report(y, examples=0))] == ["reliability", "risk_coverage"]


def test_a_plot_of_disagreements_has_a_row_of_votes_for_each_and_its_image():
    found = predicted(*drawn(20, 3, 9)[1].reshape(4, 5, 3)).disagreements(2, RNG.integers(3, size=5))
    images = RNG.integers(256, size=(5, 4, 4, 1)).astype("uint8")
    axes = plots.disagreements(found, images).axes
    for one, left, right in zip(found, axes[::2], axes[1::2], strict=True):
        assert [text.get_text() for text in right.texts] == [f"{label}: {n}" for label, n in one.votes.items()]
        assert [bar.get_width() for bar in right.patches] == [*one.votes.values()]
        assert left.get_ylabel() == f"{one.place}\nis {one.label}"
        np.testing.assert_allclose(np.squeeze(left.images[0].get_array()), images[one.place, :, :, 0] / 255)
    assert not plots.disagreements(found).axes[0].images
    (one,) = found[:1]
    narrow = plots.disagreements([one._replace(votes={2: 19, 1: 1})]).axes[1]
    assert [text.get_text() for text in narrow.texts] == ["2: 19", "1"]


WRONG = {
    "disagreements of numbers": (lambda: predicted(np.ones((4, 2)) * 3).disagreements(), "`by`.*probabilities"),
    "disagreements": (lambda: predicted(P).disagreements(0), "`count`.*from 1"),
    "order": (
        lambda: predicted(P).disagreements(by="variance"),
        "`by`.*'predictive_entropy', 'aleatoric', 'mutual_information', ",
    ),
    "seed by chance": (lambda: metrics.calibration_error_by_chance(P, seed=-1), "`seed`"),
    "probabilities by chance": (lambda: metrics.calibration_error_by_chance(P * 2), "`p`.*sum 1"),
    "bins by chance": (lambda: metrics.calibration_error_by_chance(P, of="class"), "`of`.*'classwise'"),
    "figures of numbers": (
        lambda: plots.of_report(predicted(SECOND * 9).report(SECOND, noise_variance=0.5)),
        "`found`.*a report of class probabilities",
    ),
    "plot of none": (lambda: plots.disagreements([]), "`found`.*at least one"),
    "images": (lambda: plots.disagreements(predicted(P).disagreements(1), P), "`images`.*height"),
    "report labels": (lambda: predicted(P).report(Y[:-1]), r"`y`.*\(400,\)"),
    "report label": (lambda: predicted(P).report(Y + 1), r"`y`.*\[0, 3\)"),
    "report of noise": (lambda: predicted(P).report(Y, noise_variance=1), "`noise_variance`.*probabilities"),
    "report of numbers": (lambda: predicted(np.ones((4, 2)) * 3).report(np.ones(3)), r"`y`.*\(4, 2\)"),
    "no variance": (lambda: predicted(np.ones((4, 2)) * 3).report(np.ones((4, 2))), "`noise_variance`.*above 0"),
    "temperature of the right": (lambda: calibration.temperature(P.argmax(-1), P), "`y`.*accuracy 1"),
    "temperature of chance": (lambda: calibration.temperature(P.argmin(-1), P), "`y`.*accuracy 0"),
    "vector without a class": (lambda: calibration.vector(Y * 0, P), "`y`.*none of 1"),
    "vector of the right": (lambda: calibration.vector([0, 1] * 9, [0.1, 0.9] * 9), "`y`.*overlap"),
    "other classes": (lambda: calibration.vector(Y, P)(SECOND), "`p`.*3 classes"),
    "other classes of isotonic": (lambda: calibration.isotonic(Y, P)(SECOND), "`p`.*3 classes"),
    "few samples": (lambda: decisions.conformal(Y[:8], P[:8]), "`y`.*at least 9"),
    "error": (lambda: decisions.conformal(Y, P, error=1), r"`error`.*\(0, 1\)"),
    "score": (lambda: decisions.conformal(Y, P, score="aps"), "`score`.*'threshold', 'adaptive'"),
    "risk": (lambda: decisions.rejection(Y > 0, Y, risk=0), r"`risk`.*\(0, 1\)"),
    "risk too small": (
        lambda: decisions.rejection([0] * 40, range(40), risk=0.001),
        "`risk`.*bound of these 40 .*more samples or a lower `confidence`",
    ),
    "confidence": (lambda: decisions.rejection(Y > 0, Y, 0.1, confidence=95), "`confidence`"),
    "coverage": (lambda: decisions.rejection(Y > 0, Y, coverage=1), r"`coverage`.*\(0, 1\)"),
    "both of": (lambda: decisions.rejection(Y > 0, Y, 0.1, coverage=0.9), "`risk` and `coverage`.*one of the two"),
    "none of": (lambda: decisions.rejection(Y > 0, Y), "`risk` and `coverage`.*one of the two"),
    "equally uncertain": (
        lambda: decisions.rejection(Y > 0, Y * 0, coverage=0.9),
        "`uncertainty`.*some, at most a share of 0.9, are below the others",
    ),
    "wrong": (lambda: decisions.rejection(Y, Y, 0.1), "`wrong`.*booleans"),
    "plot of something else": (lambda: plots.disagreements("x" * 10), "`found`.*a sequence of disagreements"),
    "plot of others": (lambda: plots.disagreements([3]), "`found`.*a Disagreement of pernodedrop.uncertainty.*found=3"),
    "report": (lambda: plots.of_report({}), "`found`.*a Report of pernodedrop.uncertainty"),
    "diagram": (lambda: plots.reliability_diagram(P), "`found`.*a Reliability of pernodedrop.uncertainty"),
    "curve": (lambda: plots.risk_coverage_curve(mine=P), "`mine`.*a RiskCoverage of pernodedrop.uncertainty"),
    "no curve": (lambda: plots.risk_coverage_curve(), "`curves`.*at least one"),
    "title": (lambda: plots.two_histograms([1], [2], title=3), "`title`.*a str"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_refused_by_name(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()

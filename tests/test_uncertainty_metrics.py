"""Metrics of uncertainty, each against an implementation of others or one written as its paper has it, in a loop."""

import itertools

import keras
import numpy as np
import pytest
from scipy import integrate, stats

from pernodedrop.uncertainty import metrics

sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="it has many of them too")
from sklearn import calibration  # noqa: E402 - it may not be there

RNG = np.random.default_rng(0)
N, K = 200, 4
LOGITS = RNG.normal(size=(N, K))
P = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
Y = np.array([RNG.choice(K, p=p / p.sum()) for p in P**2])
COARSE = (P * 20).round() / 20  # many equal ones, on the ends of bins
COARSE[:, 0] = abs(1 - COARSE[:, 1:].sum(-1))
SECOND = P[:, 0] / (P[:, 0] + P[:, 1])
Z = (RNG.uniform(size=N) < SECOND).astype(int)


def loop_error(score, hit, bins, binning):
    """ECE times the number of samples, as Guo et al. write it."""
    ends = [m / bins for m in range(bins + 1)]
    if binning == "mass":
        ordered = sorted(score)
        ends = []
        for m in range(bins + 1):
            place = m / bins * (len(score) - 1)
            low = min(int(place), len(score) - 2) if len(score) > 1 else 0
            high = min(low + 1, len(score) - 1)
            ends.append(ordered[low] + (place - low) * (ordered[high] - ordered[low]))
    total = 0.0
    for m in range(bins):
        inside = [i for i, s in enumerate(score) if (m == 0 or s > ends[m]) and (m == bins - 1 or s <= ends[m + 1])]
        if inside:
            confidence = sum(score[i] for i in inside) / len(inside)
            accuracy = sum(bool(hit[i]) for i in inside) / len(inside)
            total += abs(confidence - accuracy) * len(inside)
    return total


def loop_calibration_error(y, p, bins, binning, of):
    n, k = p.shape
    if of == "classwise":
        return sum(loop_error(p[:, c], y == c, bins, binning) for c in range(k)) / (n * k)
    top = [max(range(k), key=lambda c: row[c]) for row in p]
    score, hit = np.array([row[c] for row, c in zip(p, top, strict=True)]), np.array(top) == y
    groups = [[True] * n] if of == "confidence" else [[t == c for t in top] for c in set(top)]
    return sum(loop_error(score[group], hit[group], bins, binning) for group in groups) / n


@pytest.mark.once
@pytest.mark.parametrize("p", [P, COARSE], ids=["fine", "coarse"])
@pytest.mark.parametrize("of", ["confidence", "top_label", "classwise"])
@pytest.mark.parametrize("binning", ["width", "mass"])
@pytest.mark.parametrize("bins", [1, 7, 16, 400])
def test_calibration_error_is_the_sum_over_bins(p, of, binning, bins):
    found = metrics.calibration_error(Y, p, bins, binning, of)
    if binning == "mass" and p is COARSE:  # where interpolation may round to either side of equal probabilities
        backwards = metrics.calibration_error(Y[::-1], p[::-1], bins, binning, of)
        assert found == pytest.approx(backwards, abs=1e-12)
    else:
        assert found == pytest.approx(loop_calibration_error(Y, p, bins, binning, of), abs=1e-12)


@pytest.mark.once
@pytest.mark.parametrize(("binning", "strategy"), [("width", "uniform"), ("mass", "quantile")])
def test_reliability_is_the_calibration_curve_of_scikit_learn(binning, strategy):
    found = metrics.reliability(Z, SECOND, 9, binning, label=1)
    accuracy, confidence = calibration.calibration_curve(Z, SECOND, n_bins=9, strategy=strategy)
    full = found.samples > 0
    np.testing.assert_allclose(found.accuracy[full], accuracy)
    np.testing.assert_allclose(found.confidence[full], confidence)
    assert found.samples.sum() == N
    assert np.isnan(found.accuracy[~full]).all()


@pytest.mark.once
def test_reliability_of_the_most_probable_class_makes_up_the_calibration_error():
    found = metrics.reliability(Y, P, 30)
    assert (found.samples == 0).any(), "no bin is empty"
    gaps = np.nan_to_num(abs(found.confidence - found.accuracy)) * found.samples
    assert metrics.calibration_error(Y, P, 30) == pytest.approx(gaps.sum() / N)
    assert (found.low[0], found.high[-1]) == (0, 1)


@pytest.mark.once
def test_likelihood_and_brier_score_are_those_of_scikit_learn():
    assert metrics.nll(Y, P) == pytest.approx(sklearn_metrics.log_loss(Y, P))
    assert metrics.nll(Z, SECOND) == pytest.approx(sklearn_metrics.log_loss(Z, SECOND))
    assert metrics.brier_score(Y, P) == pytest.approx(((P - np.eye(K)[Y]) ** 2).sum() / N)
    assert metrics.brier_score(Z, SECOND) == pytest.approx(2 * sklearn_metrics.brier_score_loss(Z, SECOND))


@pytest.mark.once
@pytest.mark.parametrize("bins", [1, 10, None])
@pytest.mark.parametrize("p", [P, COARSE], ids=["fine", "coarse"])
def test_the_parts_of_the_brier_score_make_it_up_and_are_those_of_murphy(p, bins):
    found = metrics.brier_decomposition(Y, p, bins)
    parts = found.reliability - found.resolution + found.uncertainty + found.within_bins
    assert found.score == pytest.approx(metrics.brier_score(Y, p))
    assert found.score == pytest.approx(parts)
    rel = res = unc = 0.0
    for c in range(K):
        share = (c == Y).mean()
        unc += share * (1 - share)
        place = p[:, c] if bins is None else np.sum(p[:, c, None] > np.linspace(0, 1, bins + 1)[1:], -1)
        for group in (place == value for value in np.unique(place)):
            outcome = np.mean(Y[group] == c)
            rel += group.mean() * (p[group, c].mean() - outcome) ** 2
            res += group.mean() * (outcome - share) ** 2
    assert found[1:4] == pytest.approx((rel, res, unc))
    if bins is None:
        assert found.within_bins == pytest.approx(0)


@pytest.mark.once
@pytest.mark.parametrize("digits", [16, 1], ids=["distinct", "ties"])
def test_detection_is_that_of_scikit_learn(digits):
    inside, outside = RNG.normal(size=120).round(digits), RNG.normal(0.8, size=70).round(digits)
    found = metrics.detection(inside, outside)
    is_outside, score = np.repeat([0, 1], [120, 70]), np.concatenate([inside, outside])
    assert found.auroc == pytest.approx(sklearn_metrics.roc_auc_score(is_outside, score))
    assert found.auroc == pytest.approx(stats.mannwhitneyu(outside, inside).statistic / (120 * 70))
    assert found.aupr == pytest.approx(sklearn_metrics.average_precision_score(is_outside, score))
    false_rate, true_rate, _ = sklearn_metrics.roc_curve(is_outside, score, drop_intermediate=False)
    assert found.fpr95 == false_rate[true_rate >= 0.95].min()
    turned = metrics.detection(-outside, -inside)
    assert turned.aupr == pytest.approx(sklearn_metrics.average_precision_score(1 - is_outside, -score))


@pytest.mark.once
def test_detection_of_what_is_apart_and_of_what_is_equal():
    assert metrics.detection([0, 1], [2, 3]) == (1, 1, 0)
    assert metrics.detection([2, 3], [0, 1])[::2] == (0, 1)
    assert metrics.detection([1, 1, 1], [1]) == (0.5, 0.25, 1)


@pytest.mark.once
def test_energy_is_that_of_its_paper_and_does_not_overflow():
    np.testing.assert_allclose(metrics.energy(LOGITS, 2), -2 * np.log(np.exp(LOGITS / 2).sum(-1)))
    np.testing.assert_allclose(metrics.energy([[1000.0, 0.0], [-1000.0, -1000.0]]), [-1000, 1000 - np.log(2)])


@pytest.mark.once
def test_risk_coverage_is_that_of_its_definition():
    error, doubt = (RNG.uniform(size=50) < 0.3).astype(float), RNG.normal(size=50)
    found = metrics.risk_coverage(error, doubt)
    kept = [error[np.argsort(doubt)[: i + 1]] for i in range(50)]
    np.testing.assert_allclose(found.risk, [part.mean() for part in kept])
    assert found.aurc == pytest.approx(np.mean([part.mean() for part in kept]))
    area = integrate.trapezoid([0, *(part.sum() / 50 for part in kept)], np.linspace(0, 1, 51))
    assert found.augrc == pytest.approx(area)


@pytest.mark.once
@pytest.mark.parametrize("digits", [16, 0], ids=["distinct", "ties"])
def test_augrc_is_what_its_paper_makes_of_auroc_and_accuracy(digits):
    """Eq. 6 of arXiv 2407.01032."""
    error, doubt = (RNG.uniform(size=90) < 0.3).astype(float), RNG.normal(size=90).round(digits)
    auroc, accuracy = sklearn_metrics.roc_auc_score(error, doubt), 1 - error.mean()
    expected = (1 - auroc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert metrics.risk_coverage(error, doubt).augrc == pytest.approx(expected)


@pytest.mark.once
def test_equal_uncertainties_count_as_the_mean_over_all_orders():
    error, doubt = np.array([1.0, 0.0, 0.0, 2.0, 1.0]), np.array([1, 1, 0, 1, 2])
    found = metrics.risk_coverage(error, doubt)
    orders = [o for o in itertools.permutations(range(5)) if (np.diff(doubt[list(o)]) >= 0).all()]
    risks = np.mean([np.cumsum(error[list(o)]) / np.arange(1, 6) for o in orders], 0)
    np.testing.assert_allclose(found.risk, risks)
    assert found.aurc == pytest.approx(risks.mean())


@pytest.mark.once
def test_risk_without_errors_is_zero_and_with_nothing_else_one():
    assert metrics.risk_coverage([0, 0, 0], [3, 2, 1])[3:] == (0, 0)
    assert metrics.risk_coverage([1, 1, 1], [3, 2, 1])[3:] == pytest.approx((1, 0.5))


NUMBERS, MEAN, VARIANCE = RNG.normal(size=(7, 2)), RNG.normal(size=(7, 2)), RNG.gamma(2, size=(7, 2))


@pytest.mark.once
def test_likelihood_of_numbers_is_that_of_scipy():
    expected = -stats.norm.logpdf(NUMBERS, MEAN, VARIANCE**0.5).mean()
    assert metrics.gaussian_nll(NUMBERS, MEAN, VARIANCE) == pytest.approx(expected)


@pytest.mark.once
def test_crps_of_normal_distributions_is_its_integral():
    def one(y, mean, variance):
        below, _ = integrate.quad(lambda x: stats.norm.cdf(x, mean, variance**0.5) ** 2, -np.inf, y)
        above, _ = integrate.quad(lambda x: stats.norm.sf(x, mean, variance**0.5) ** 2, y, np.inf)
        return below + above

    expected = np.mean([one(*three) for three in zip(NUMBERS.flat, MEAN.flat, VARIANCE.flat, strict=True)])
    assert metrics.gaussian_crps(NUMBERS, MEAN, VARIANCE) == pytest.approx(expected, rel=1e-6)
    assert metrics.gaussian_crps(NUMBERS, MEAN, VARIANCE * 1e-20) == pytest.approx(abs(NUMBERS - MEAN).mean())


@pytest.mark.once
@pytest.mark.parametrize("fair", [False, True])
def test_crps_of_samples_is_the_mean_over_pairs(fair):
    outputs = RNG.normal(size=(6, 7, 2)).round(1)
    apart = np.mean([abs(x - NUMBERS).mean() for x in outputs])
    pairs = [abs(x - z).mean() for x, z in itertools.product(outputs, repeat=2)]
    between = np.sum(pairs) / (6 * (6 - fair))
    assert metrics.crps(NUMBERS, outputs, fair) == pytest.approx(apart - between / 2)


@pytest.mark.once
def test_crps_of_samples_is_the_integral_of_their_steps_and_of_one_sample_the_error():
    outputs, y = RNG.normal(size=6), 0.3
    grid = np.linspace(-6, 6, 1_200_001)
    steps = np.searchsorted(np.sort(outputs), grid, side="right") / 6
    expected = integrate.trapezoid((steps - (grid >= y)) ** 2, grid)
    assert metrics.crps([y], outputs[:, None]) == pytest.approx(expected, abs=1e-4)
    assert metrics.crps(NUMBERS, MEAN[None]) == pytest.approx(abs(NUMBERS - MEAN).mean())


@pytest.mark.once
def test_intervals_have_their_ends():
    assert metrics.intervals([0.0, 1.0, 2.0, 3.0], [0, 0, 0, 0], [1, 1, 1, 1]) == (0.5, 1)


@pytest.mark.once
def test_the_variance_of_a_mixture_is_the_sum_of_its_parts():
    """Against moments of the mixture, from its definition."""
    means, variances = RNG.normal(size=(5, 7)), RNG.gamma(2, size=(5, 7))
    found = metrics.split_variance(means, variances)
    np.testing.assert_allclose(found.total, (variances + means**2).mean(0) - means.mean(0) ** 2)
    np.testing.assert_allclose(found.total, found.aleatoric + found.epistemic)
    np.testing.assert_allclose(found.epistemic, means.var(0))


def of_labels(y, p):
    parts = metrics.brier_decomposition(y, p)
    return (metrics.nll(y, p), metrics.brier_score(y, p), metrics.calibration_error(y, p, of="classwise"), *parts)


@pytest.mark.once
def test_predictions_in_other_forms_are_the_same():
    assert of_labels(Y[:, None], P) == of_labels(Y.astype("float32"), P.tolist()) == of_labels(np.eye(K)[Y], P)
    passes = np.stack([P, P[::-1], P, P])
    assert of_labels(Y, passes) == of_labels(Y, passes.mean(0))
    both = np.stack([1 - SECOND, SECOND], -1)
    assert of_labels(Z, SECOND) == of_labels(Z == 1, SECOND[:, None]) == of_labels(Z, both)


def test_tensors_of_the_backend_are_taken():
    tensor = keras.ops.convert_to_tensor
    p = P.astype("float32")
    assert metrics.nll(tensor(Y), tensor(p)) == metrics.nll(Y, p)
    assert metrics.nll(keras.Variable(Y, trainable=False), keras.Variable(p)) == metrics.nll(Y, p)
    half = keras.ops.cast(p, "bfloat16")
    assert metrics.nll(Y, half) == metrics.nll(Y, keras.ops.convert_to_numpy(keras.ops.cast(half, "float32")))


@pytest.mark.once
def test_perfect_and_wholly_wrong_predictions():
    right = np.eye(K)[Y]
    for of, binning in itertools.product(("confidence", "top_label", "classwise"), ("width", "mass")):
        assert metrics.calibration_error(Y, right, of=of, binning=binning) == 0
    assert (metrics.nll(Y, right), metrics.brier_score(Y, right)) == (0, 0)
    wrong = np.eye(K)[(Y + 1) % K]
    assert (metrics.nll(Y, wrong), metrics.brier_score(Y, wrong)) == (np.inf, 2)
    assert metrics.calibration_error(Y, wrong) == 1
    assert metrics.calibration_error([0, 0, 0], [[1.0, 0.0]] * 3) == 0, "labels of one class"


WRONG = {
    "sum": (lambda: metrics.nll([0], [[0.6, 0.6]]), ValueError, "`p`.*sum 1"),
    "logits": (lambda: metrics.calibration_error(Y, LOGITS), ValueError, "`p`.*sum 1"),
    "negative": (lambda: metrics.brier_score([0], [[1.2, -0.2]]), ValueError, "`p`.*not below 0"),
    "second of two": (lambda: metrics.nll([0], [1.5]), ValueError, "`p`"),
    "NaN": (lambda: metrics.nll([0], [[np.nan, 1]]), ValueError, "`p`.*finite.*nan"),
    "no sample": (lambda: metrics.nll([], np.empty((0, 3))), ValueError, "`p`.*at least one"),
    "rank": (lambda: metrics.nll([0], np.full((1, 1, 1, 2), 0.5)), ValueError, r"`p`.*\(n, k\)"),
    "text": (lambda: metrics.nll(["cat"], [[0.5, 0.5]]), TypeError, "`y`.*real numbers"),
    "huge": (lambda: metrics.nll([10**400], [[0.5, 0.5]]), TypeError, "`y`.*real numbers"),
    "symbolic": (lambda: metrics.energy(keras.Input((3,))), TypeError, "`logits`.*real numbers"),
    "shape of labels": (lambda: metrics.BrierScore()([0, 1], P[:3]), ValueError, r"`y_true`.*\(3,\).*\(2,\)"),
    "shape of one-hot": (lambda: metrics.BrierScore()(np.eye(K), P[:3]), ValueError, r"`y_true`.*\(3, 4\).*\(4, 4\)"),
    "complex": (lambda: metrics.nll([0j], [[0.5, 0.5]]), TypeError, "`y`.*real numbers"),
    "label": (lambda: metrics.nll([2], [[0.5, 0.5]]), ValueError, r"`y`.*\[0, 2\).*2"),
    "label below": (lambda: metrics.nll([-1], [[0.5, 0.5]]), ValueError, r"`y`.*\[0, 2\)"),
    "no whole label": (lambda: metrics.nll([0.5], [[0.5, 0.5]]), ValueError, r"`y`.*ints"),
    "NaN label": (lambda: metrics.nll([np.nan], [[0.5, 0.5]]), ValueError, "`y`.*finite"),
    "number of labels": (lambda: metrics.nll([0, 1], [[0.5, 0.5]]), ValueError, r"`y`.*\(1,\)"),
    "soft labels": (lambda: metrics.nll([[0.5, 0.5]], [[0.5, 0.5]]), ValueError, "`y`"),
    "bins": (lambda: metrics.calibration_error(Y, P, bins=0), ValueError, "`bins`"),
    "binning": (lambda: metrics.calibration_error(Y, P, binning="mas"), ValueError, "`binning`.*did you mean 'mass'"),
    "of": (lambda: metrics.calibration_error(Y, P, of="class"), ValueError, "`of`"),
    "label of bars": (lambda: metrics.reliability(Y, P, label=K), ValueError, r"`label`.*\[0, 4\)"),
    "inside": (lambda: metrics.detection([], [1]), ValueError, "`inside`.*not empty"),
    "outside": (lambda: metrics.detection([1], [[1]]), ValueError, r"`outside`.*\(n,\)"),
    "temperature": (lambda: metrics.energy(LOGITS, 0), ValueError, "`temperature`"),
    "no axis": (lambda: metrics.energy(1.0), ValueError, "`logits`"),
    "uncertainty": (lambda: metrics.risk_coverage([1, 0], [1]), ValueError, r"`uncertainty`.*\(2,\)"),
    "variance": (lambda: metrics.gaussian_nll([0.0], [0.0], [0.0]), ValueError, "`variance`.*above 0"),
    "mean": (lambda: metrics.gaussian_crps([0.0, 1.0], [[0.0, 1.0]], [1.0, 1.0]), ValueError, r"`mean`.*\(2,\)"),
    "outputs": (lambda: metrics.crps([0.0, 1.0], [[0.0], [1.0]]), ValueError, r"`outputs`.*\(n, 2\)"),
    "fair": (lambda: metrics.crps([0.0], [[0.0]], fair=True), ValueError, "`outputs`.*two"),
    "ends": (lambda: metrics.intervals([0.0], [1.0], [0.0]), ValueError, "`low`.*`high`"),
    "means": (lambda: metrics.split_variance([1.0], [1.0]), ValueError, "`means`"),
    "variances": (lambda: metrics.split_variance([[1.0]], [[-1.0]]), ValueError, "`variances`.*from 0"),
}


@pytest.mark.once
@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("make", [metrics.BrierScore, metrics.CalibrationError])
def test_a_scalar_is_no_prediction(make):
    """On each backend: the shape of a scalar is false on all of them but TensorFlow."""
    with pytest.raises(ValueError, match=r"`y_pred`.*a scalar"):
        make()(0, keras.ops.convert_to_tensor(1.0))


ACCUMULATED = {
    "brier": (metrics.BrierScore, metrics.brier_score, {}),
    **{
        of: (metrics.CalibrationError, metrics.calibration_error, {"of": of, "bins": 20})
        for of in ("confidence", "top_label", "classwise")
    },
}


def in_batches(metric, *arrays, size=64):
    for start in range(0, N, size):
        metric.update_state(*(array[start : start + size] for array in arrays))
    return float(metric.result())


@pytest.mark.parametrize(("metric", "function", "arguments"), ACCUMULATED.values(), ids=ACCUMULATED)
def test_sums_over_batches_are_the_figure_of_the_whole(metric, function, arguments):
    """COARSE has probabilities on the ends of bins, in float32: they fall where those of NumPy fall."""
    accumulated = metric.from_config(metric(**arguments).get_config())
    for p in (P.astype("float32"), COARSE.astype("float32")):
        accumulated.reset_state()
        assert in_batches(accumulated, Y, p) == pytest.approx(function(Y, p, **arguments), abs=1e-6)
    for one_hot in (np.eye(K)[Y], np.eye(K, dtype=bool)[Y]):
        logits = metric(from_logits=True, **arguments)
        assert in_batches(logits, one_hot, LOGITS) == pytest.approx(function(Y, P, **arguments), abs=1e-6)
    binary = metric(from_logits=True, **arguments)
    odds = np.log(SECOND / (1 - SECOND))[:, None]
    assert in_batches(binary, Z[:, None], odds) == pytest.approx(function(Z, SECOND, **arguments), abs=1e-6)
    weighted = metric(**arguments)
    twice = np.repeat(np.arange(N), np.arange(N) % 3)
    some = np.where(np.arange(N) % 3, Y, -1)  # what has no weight may have no label
    found = in_batches(weighted, some, P, (np.arange(N) % 3).astype("float32"))
    assert found == pytest.approx(function(Y[twice], P[twice], **arguments), abs=1e-6)


@pytest.mark.parametrize(("metric", "function", "arguments"), ACCUMULATED.values(), ids=ACCUMULATED)
def test_a_metric_of_what_is_no_probability_or_no_label_is_nan(metric, function, arguments):
    for y, p in (([0, K], P[:2]), ([0, -1], P[:2]), ([0, 0.5], P[:2]), ([0, 1], LOGITS[:2]), ([0, 1], P[:2] * np.nan)):
        found = metric(**arguments)
        found.update_state(np.array(y), p)
        assert np.isnan(float(found.result()))
    assert float(metric(**arguments).result()) == 0
    with pytest.raises(ValueError, match="`y_true`"):
        metric(**arguments).update_state(np.zeros((3, 2)), P[:3])


@pytest.mark.skip_backend("numpy", reason="Keras does not train on NumPy")
def test_metrics_are_those_of_a_model_in_fit_and_evaluate_with_masks_of_time():
    layers = [keras.layers.Masking(), keras.layers.Dense(K, activation="softmax")]
    model = keras.Sequential([keras.Input((5, 3)), *layers])
    model.compile(loss="sparse_categorical_crossentropy", metrics=[metrics.CalibrationError(), metrics.BrierScore()])
    x, y = RNG.normal(size=(9, 5, 3)).astype("float32"), RNG.integers(K, size=(9, 5))
    x[:, 3:] = 0
    early = keras.callbacks.EarlyStopping(monitor="brier_score")
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[early])
    assert early.monitor_op is keras.ops.less
    found = model.evaluate(x, y, batch_size=4, verbose=0, return_dict=True)
    p = model.predict(x, verbose=0)[:, :3].reshape(-1, K)
    for name in ("calibration_error", "brier_score"):
        assert found[name] == pytest.approx(getattr(metrics, name)(y[:, :3].ravel(), p), abs=1e-5)

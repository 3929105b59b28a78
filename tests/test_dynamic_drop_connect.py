"""DynamicDropConnect against its formulas in NumPy, and what it does to training by a stock optimizer."""

import keras
import numpy as np
import pytest
from scipy import integrate, optimize, stats

import pernodedrop as pnd
from pernodedrop.layers.weight.dynamic_drop_connect import DynamicDropConnect
from tests.family import first_call
from tests.frameworks import needs_training

BACKEND = keras.backend.backend()


def host(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def inputs(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def built(inner=None, shape=(4, 6), **kwargs):
    layer = DynamicDropConnect(inner or keras.layers.Dense(5), seed=1, **kwargs)
    layer.build(shape)
    return layer


def note(layer, gradient):
    layer.gradient.assign(np.stack([gradient, -gradient]))


def rates(strength, base_rate=0.3, gradient_rate=0.5, threshold=0.5, small=True):
    z = (strength - strength.mean()) / (strength.std(ddof=1) + 1e-9)
    q = 1 / (1 + np.exp(z if small else -z))
    return base_rate + gradient_rate * np.where(q > threshold, q, 0)


def kept(rates, call):
    words = pnd.ops.random_bits((1, call), (1, *rates.shape), backend="numpy")[0]
    return (words >> 8) < np.round((1 - rates) * 2**24)


def fit_once(layer, x, targets, optimizer=None, units=5):
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    model.compile(optimizer or keras.optimizers.SGD(0.1), "mse")
    model.fit(x, targets, batch_size=len(x), epochs=1, verbose=0)
    return model


@pytest.mark.parametrize("prefer", ["small_gradient", "big_gradient", "small_weight", "big_weight"])
@pytest.mark.parametrize("calibration", ["layer", "edge"])
def test_masks_are_those_of_the_formulas(prefer, calibration):
    size = (60, 50) if calibration == "layer" else (6, 5)  # few edges: std with N - 1 is not that with N
    layer = built(keras.layers.Dense(size[1]), (4, size[0]), prefer=prefer, calibration=calibration)
    x, w, g = inputs(4, size[0]), host(layer.layer.kernel), inputs(*size, seed=1)
    if prefer.endswith("gradient"):
        note(layer, g)
    strength = np.abs(g if prefer.endswith("gradient") else w).astype("float64")
    p = rates(strength, small=prefer.startswith("small"))
    for call in (0, 1):
        m = kept(p, call)
        scale = 1 / m.mean() if calibration == "layer" else 1 / (1 - p)
        np.testing.assert_allclose(host(layer(x, training=True)), x @ (w * m * scale), atol=2e-4)


@pytest.mark.parametrize(
    "prefer", ["small_gradient+big_weight", "small_gradient+small_weight", "big_weight+big_gradient"]
)
@pytest.mark.parametrize("calibration", ["layer", "edge"])
def test_preferences_for_gradients_and_weights_add_to_the_rate(prefer, calibration):
    layer = built(
        keras.layers.Dense(50), (4, 60), prefer=prefer, gradient_rate=0.4, weight_rate=0.2, calibration=calibration
    )
    x, w, g = inputs(4, 60), host(layer.layer.kernel), inputs(60, 50, seed=1)
    np.testing.assert_array_equal(host(layer(x, training=True, key=(1, 0))), host(layer.layer(x)))  # no gradient yet
    note(layer, g)
    of_gradients = rates(np.abs(g).astype("float64"), 0.3, 0.4, small="small_gradient" in prefer)
    of_weights = rates(np.abs(w).astype("float64"), 0.0, 0.2, small="small_weight" in prefer)
    p = of_gradients + of_weights
    for call in (0, 1):
        m = kept(p, call)
        scale = 1 / m.mean() if calibration == "layer" else 1 / (1 - p)
        np.testing.assert_allclose(host(layer(x, training=True, key=(1, call))), x @ (w * m * scale), atol=2e-4)


@needs_training
def test_two_preferences_train_in_fit_and_are_saved(tmp_path):
    x, targets, g = inputs(8, 6), inputs(8, 5, seed=2), inputs(6, 5, seed=1)
    layer = built(prefer="small_gradient+big_weight", weight_rate=0.1)
    note(layer, g)
    w = host(layer.layer.kernel).copy()
    model = fit_once(layer, x, targets)
    m = kept(rates(np.abs(g).astype("float64")) + rates(np.abs(w).astype("float64"), 0, 0.1, small=False), 0)
    slope = x.T @ (2 / targets.size * (x @ (w * m / m.mean()) - targets))
    np.testing.assert_allclose(host(layer.gradient), np.stack([slope, -slope]), atol=1e-5)
    layer.weight_rate = 0.15
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras").layers[-1]
    assert (again.weight_rate, again.prefer) == (0.15, "small_gradient+big_weight")
    np.testing.assert_array_equal(host(again(x, training=True)), host(layer(x, training=True)))


def test_the_rate_of_weights_is_checked_with_the_others():
    layer = built(prefer="small_gradient+small_weight", gradient_rate=0.3, weight_rate=0.2)
    with pytest.raises(ValueError, match=r"`weight_rate`.*below 1 - 0.6.*base_rate \+ gradient_rate \+ weight_rate"):
        layer.weight_rate = 0.4
    with pytest.raises(ValueError, match=r"`gradient_rate`.*below 1 - 0.5.*gradient_rate=0.5"):
        layer.gradient_rate = 0.5
    with pytest.raises(ValueError, match=r"`rate`.*below 1 - 0.5.*rate=0.5"):
        layer.rate = 0.5
    layer.weight_rate, layer.gradient_rate, layer.rate = 0.0, 0.0, 0.0
    assert not layer.is_stochastic
    layer.weight_rate = 0.35
    assert layer.is_stochastic
    assert DynamicDropConnect.from_config(layer.get_config()).weight_rate == 0.35
    with pytest.raises(AttributeError, match="one preference, 'small_gradient'"):
        built().weight_rate = 0.1


@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_threshold_is_where_q_begins(threshold):
    layer = built(keras.layers.Dense(50), (4, 60), threshold=threshold)
    x, g = inputs(4, 60), inputs(60, 50, seed=1)
    note(layer, g)
    m = kept(rates(np.abs(g).astype("float64"), threshold=threshold), 0)
    y = x @ (host(layer.layer.kernel) * m / m.mean())
    np.testing.assert_allclose(host(layer(x, training=True)), y, atol=2e-4)


def test_nothing_is_dropped_until_a_gradient_is_noted_and_never_at_inference():
    layer, x = built(), inputs(4, 6)
    for _ in range(2):
        np.testing.assert_allclose(host(layer(x, training=True)), host(layer.layer(x)), atol=1e-6)
    note(layer, inputs(6, 5))
    np.testing.assert_array_equal(host(layer(x)), host(layer.layer(x)))
    assert abs(host(layer(x, training=True)) - host(layer(x))).max() > 0.01


@needs_training
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_gradient_that_overflows_leaves_the_base_rate(value):
    layer, x = built(), inputs(4, 6)
    gradient = inputs(6, 5, seed=1)
    gradient[2, 3] = value
    note(layer, gradient)
    m = kept(np.full((6, 5), 0.3), 0)
    np.testing.assert_allclose(host(layer(x, training=True)), x @ (host(layer.layer.kernel) * m / m.mean()), atol=1e-5)


@needs_training
def test_a_layer_recovers_from_a_gradient_that_overflows():
    layer, x, targets = built(), inputs(4, 6), np.ones((4, 5), "float32")
    note(layer, np.full((6, 5), np.nan, "float32"))
    fit_once(layer, x, targets)
    fit_once(layer, x, targets)
    noted = host(layer.gradient)
    assert np.isfinite(noted).all()
    assert noted.any()


@needs_training
def test_a_step_that_overflows_leaves_what_is_noted():
    layer, x, targets = built(), inputs(4, 6), np.ones((4, 5), "float32")
    note(layer, inputs(6, 5))
    x[1, 2] = np.inf
    fit_once(layer, x, targets, keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)))
    np.testing.assert_array_equal(host(layer.gradient[0]), inputs(6, 5))


def test_without_a_gradient_rate_it_is_drop_connect():
    layer, x = built(gradient_rate=0.0, calibration="edge"), inputs(4, 6)
    note(layer, inputs(6, 5))
    plain = pnd.DropConnect(layer.layer, rate=0.3, seed=1)
    np.testing.assert_allclose(host(layer(x, training=True)), host(plain(x, training=True)), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: keras.layers.Conv2D(6, 3, groups=2, padding="same"), (2, 5, 5, 4)),
        (lambda: keras.layers.EinsumDense("abc,cde->abde", output_shape=(None, 3, 5)), (2, 7, 6)),
    ],
)
def test_other_layers_have_the_mask_of_their_rows_and_columns(make, shape):
    layer = built(make(), shape)
    kernel = host(layer.layer.kernel)
    g = inputs(*kernel.shape, seed=1)
    note(layer, g)
    if isinstance(layer.layer, keras.layers.Conv2D):  # a group of columns after the other
        p = rates(np.abs(g).astype("float64")).reshape(18, 2, 3).transpose(1, 0, 2)
        m = kept(p.reshape(36, 3), 0).reshape(2, 18, 3).transpose(1, 0, 2).reshape(kernel.shape)
    else:
        m = kept(rates(np.abs(g).astype("float64")).reshape(6, 15), 0).reshape(kernel.shape)
    x = inputs(*shape)
    y = first_call(layer, x)
    layer.layer.kernel.assign(kernel * m / m.mean())
    np.testing.assert_allclose(y, host(layer(x)), atol=1e-5)


def test_rates_of_normal_gradients_are_those_of_the_half_normal_distribution():
    """Quantiles of |N(0, 1)| as gradients; the truth is integrated over its density. Errors of the grid are below 1e-3,
    and kept shares, of 400 000 edges, are within 5.5 standard deviations (false-alarm rate below 1e-7) at this key."""
    grid = 400_000
    v = stats.halfnorm.ppf((np.arange(grid) + 0.5) / grid)
    mean, std = stats.halfnorm.mean(), stats.halfnorm.std()

    def q(v):
        return 1 / (1 + np.exp((v - mean) / std))

    dropped = integrate.quad(lambda v: 0.5 * q(v) * stats.halfnorm.pdf(v), 0, mean)[0]
    assert stats.halfnorm.cdf(mean) == pytest.approx(0.575, abs=5e-4)  # the published numbers, of methods.md
    assert q(0) == pytest.approx(0.79, abs=5e-3)
    assert 0.3 + dropped == pytest.approx(0.49, abs=5e-3)
    assert 0.7 / (0.7 - dropped) == pytest.approx(1.37, abs=5e-3)
    assert [(0.7 - 0.5 * q(u)) / (0.7 - dropped) for u in (0, mean)] == pytest.approx([0.60, 0.88], abs=5e-3)
    layer = built(keras.layers.Dense(500, kernel_initializer="ones", use_bias=False), (1, 800))
    note(layer, np.random.default_rng(0).permutation(v).reshape(800, 500).astype("float32"))
    w = host(layer(np.eye(800, dtype="float32"), training=True))
    strength = host(layer.gradient[0])
    high = w[strength > mean]
    assert high.size / grid == pytest.approx(1 - 0.575, abs=1e-3)
    assert (w > 0).mean() == pytest.approx(0.7 - dropped, abs=5.5 * 0.5 / grid**0.5 + 1e-3)
    assert high.mean() == pytest.approx(1.37, abs=0.02)
    low = w[strength < stats.halfnorm.ppf(0.05)].mean(), w[(strength > 0.75) & (strength < mean)].mean()
    assert low == pytest.approx((0.60, 0.88), abs=0.04)


@needs_training
@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.SGD(0.1),
        lambda: keras.optimizers.Adam(0.1, clipnorm=1e-3),
        lambda: keras.optimizers.AdamW(0.1, weight_decay=0.9, global_clipnorm=1e-3),
    ],
)
def test_an_update_notes_the_gradient_of_the_masked_kernel(make):
    x, targets, g = inputs(8, 6), inputs(8, 5, seed=2), inputs(6, 5, seed=1)
    layer = built()
    note(layer, g)
    w = host(layer.layer.kernel).copy()
    model = fit_once(layer, x, targets, make())
    m = kept(rates(np.abs(g).astype("float64")), 0)
    slope = x.T @ (2 / targets.size * (x @ (w * m / m.mean()) - targets))
    np.testing.assert_allclose(host(layer.gradient), np.stack([slope, -slope]), atol=1e-5)
    if isinstance(model.optimizer, keras.optimizers.SGD):
        np.testing.assert_allclose(host(layer.layer.kernel), w - 0.1 * slope, atol=1e-5)
    second = kept(rates(np.abs(slope).astype("float64")), 1)
    y = x @ (host(layer.layer.kernel) * second / second.mean()) + host(layer.layer.bias)
    np.testing.assert_allclose(host(layer(x, training=True)), y, atol=1e-4)


@needs_training
def test_clipping_by_the_global_norm_is_that_of_the_plain_layer():
    """Nothing is dropped in a first step, which is therefore that of the inner layer alone."""
    x, targets = inputs(8, 6), inputs(8, 5, seed=2)
    layer, plain = built(), keras.layers.Dense(5)
    plain.build((8, 6))
    plain.set_weights(layer.layer.get_weights())
    for each in (layer, plain):
        fit_once(each, x, targets, keras.optimizers.SGD(0.1, global_clipnorm=0.01))
    np.testing.assert_allclose(host(layer.layer.kernel), host(plain.kernel), atol=1e-6)


@needs_training
def test_differentiating_the_mask_gives_dropped_connections_no_gradient():
    x, targets, g = inputs(8, 6), inputs(8, 5, seed=2), inputs(6, 5, seed=1)
    layer = built(straight_through=False)
    note(layer, g)
    w = host(layer.layer.kernel).copy()
    fit_once(layer, x, targets)
    m = kept(rates(np.abs(g).astype("float64")), 0)
    assert not m.all()
    slope = x.T @ (2 / targets.size * (x @ (w * m / m.mean()) - targets)) * m / m.mean()
    assert (host(layer.gradient)[0][~m] == 0).all()
    np.testing.assert_allclose(host(layer.gradient)[0], slope, atol=1e-5)
    np.testing.assert_allclose(host(layer.layer.kernel), w - 0.1 * slope, atol=1e-5)


def test_dropped_connections_without_gradient_are_dropped_again():
    """With normal gradients, dropped ones zero and the others divided by r, the drop rate has a fixed point:
    P(drop | dropped) = 0.63 there, as a simulation of methods.md had it. It is found here by the formulas and met by
    the layer to 0.005, which is 4.8 standard deviations of 215 000 edges (false-alarm rate below 2e-6), at this key."""
    v = stats.halfnorm.ppf((np.arange(4000) + 0.5) / 4000)

    def rates_after(d):
        # a grid of edges: shares d of zeros and 1 - d of v / (1 - d), the weights of its moments by those shares
        mean, second = v.mean(), (v**2).mean() / (1 - d)
        z = (np.append(v / (1 - d), 0) - mean) / np.sqrt(second - mean**2)
        q = 1 / (1 + np.exp(z))
        p = 0.3 + 0.5 * np.where(q > 0.5, q, 0)
        return p[:-1].mean(), p[-1]

    def excess(d):
        of_kept, of_dropped = rates_after(d)
        return (1 - d) * of_kept + d * of_dropped - d

    share = optimize.brentq(excess, 0.1, 0.9)
    again = rates_after(share)[1]
    assert again == pytest.approx(0.63, abs=5e-3)
    layer = built(keras.layers.Dense(500, kernel_initializer="ones", use_bias=False), (1, 800), straight_through=False)
    rng = np.random.default_rng(0)
    dropped = np.zeros((800, 500), bool)
    for _ in range(6):
        note(layer, np.where(dropped, 0, rng.normal(size=dropped.shape) / (1 - dropped.mean())).astype("float32"))
        before, dropped = dropped, host(layer(np.eye(800, dtype="float32"), training=True)) == 0
    assert dropped[before].mean() == pytest.approx(again, abs=0.005)


@needs_training
@pytest.mark.parametrize(
    ("prefer", "make"),
    [
        ("small_gradient", lambda: keras.optimizers.Adam(0.03, clipnorm=1)),
        ("big_weight", lambda: keras.optimizers.SGD(0.05)),
    ],
)
def test_stock_fit_trains_it(prefer, make):
    keras.utils.set_random_seed(1)  # of the weights
    x = inputs(64, 6)
    layer = DynamicDropConnect(keras.layers.Dense(16, activation="relu"), prefer=prefer, seed=1)
    model = keras.Sequential([keras.Input((6,)), layer, keras.layers.Dense(1)])
    model.compile(make(), "mse")
    targets = x[:, :1] - x[:, 1:2]
    before = model.evaluate(x, targets, verbose=0)
    model.fit(x, targets, batch_size=16, epochs=15, verbose=0)
    assert model.evaluate(x, targets, verbose=0) < before
    assert layer.updates == 60


@needs_training
def test_gradient_accumulation_notes_the_largest_magnitudes():
    x, targets = inputs(16, 6), inputs(16, 5, seed=2)
    layer = built()
    w = host(layer.layer.kernel).copy()
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), "mse")
    model.fit(x, targets, batch_size=8, epochs=1, shuffle=False, verbose=0)
    halves = [x[n : n + 8].T @ (2 / 40 * (x[n : n + 8] @ w - targets[n : n + 8])) for n in (0, 8)]
    largest = np.abs(halves).max(axis=0)
    np.testing.assert_allclose(host(layer.gradient).max(axis=0), largest, atol=1e-5)
    m = kept(rates(largest.astype("float64")), 2)
    y = x @ (host(layer.layer.kernel) * m / m.mean()) + host(layer.layer.bias)
    np.testing.assert_allclose(host(layer(x, training=True)), y, atol=1e-4)


@needs_training
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_a_scaled_loss_scales_the_gradient_only(policy):
    x, targets = inputs(8, 6), inputs(8, 5, seed=2)
    layer = built(keras.layers.Dense(5, dtype=policy))
    w = host(layer.layer._kernel).copy()
    inner = keras.optimizers.SGD(0.1)
    fit_once(layer, x, targets, keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0))
    slope = x.T @ (2 / targets.size * (x @ w - targets))
    tolerance = 1e-5 if policy == "float32" else 0.02
    np.testing.assert_allclose(host(layer.gradient)[0] / 1024, slope, atol=tolerance)
    np.testing.assert_allclose(host(layer.layer._kernel), w - 0.1 * slope, atol=tolerance)
    scaled = host(layer(x, training=True, key=(1, 5))).astype("float32")
    layer.gradient.assign(layer.gradient / 1024)
    np.testing.assert_allclose(host(layer(x, training=True, key=(1, 5))).astype("float32"), scaled, atol=1e-6)


@pytest.mark.skip_backend("tensorflow", reason="Keras' own moving averages fail there for such a weight")
@needs_training
def test_moving_averages_of_weights_leave_the_gradient_alone():
    x, targets = inputs(8, 6), inputs(8, 5, seed=2)
    layer = built()
    w = host(layer.layer.kernel).copy()
    fit_once(layer, x, targets, keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5))
    slope = x.T @ (2 / targets.size * (x @ w - targets))
    np.testing.assert_allclose(host(layer.gradient)[0], slope, atol=1e-5)


@needs_training
def test_weights_losses_are_no_part_of_the_gradient():
    x, targets = inputs(8, 6), inputs(8, 5, seed=2)
    layer = built(keras.layers.Dense(5, kernel_regularizer=keras.regularizers.L2(10.0)))
    w = host(layer.layer.kernel).copy()
    fit_once(layer, x, targets)
    np.testing.assert_allclose(host(layer.gradient)[0], x.T @ (2 / targets.size * (x @ w - targets)), atol=1e-5)


def test_rates_can_be_set_and_scheduled():
    layer, x = built(calibration="edge"), inputs(4, 6)
    note(layer, inputs(6, 5))
    layer.rate, layer.gradient_rate = 0.0, 0.0
    np.testing.assert_allclose(host(layer(x, training=True)), host(layer(x)), atol=1e-6)
    layer.gradient_rate = 0.1
    assert layer.get_config()["gradient_rate"] == 0.1
    scheduled = built(base_rate=pnd.schedules.Step([0.0, 0.4], [1]), gradient_rate=0.0, calibration="edge")
    note(scheduled, inputs(6, 5))
    plain = pnd.DropConnect(scheduled.layer, rate=0.4, seed=1)
    np.testing.assert_allclose(host(scheduled(x, training=True)), host(scheduled(x)), atol=1e-6)
    y = host(plain(x, training=True, key=(1, 1)))
    np.testing.assert_allclose(host(scheduled(x, training=True)), y, atol=1e-5)


def test_parameters_are_counted_with_the_gradient():
    assert built().count_params() == 6 * 5 + 5 + 2 * 6 * 5 + 4  # kernel, bias, gradient; key (2), rates (2)
    assert built(prefer="small_weight").count_params() == 6 * 5 + 5 + 4
    both = built(prefer="small_gradient+small_weight", weight_rate=0.1)
    assert both.count_params() == built().count_params() + 1


def test_folded_layer_and_config_are_plain():
    layer = built(base_rate=0.1, gradient_rate=0.2, threshold=0.6, prefer="big_weight", straight_through=False)
    again = DynamicDropConnect.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    x = inputs(4, 6)
    assert type(layer.fold()) is keras.layers.Dense
    np.testing.assert_array_equal(host(layer.fold()(x)), host(layer(x)))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"base_rate": 1.0}, r"`base_rate`.*base_rate=1.0"),
        ({"base_rate": 0.5}, r"`gradient_rate`.*below 1 - 0.5.*gradient_rate=0.5"),
        ({"base_rate": pnd.schedules.Linear(0.0, 0.6, steps=5)}, r"`gradient_rate`.*below 1 - 0.6"),
        ({"gradient_rate": -0.1}, r"`gradient_rate`.*gradient_rate=-0.1"),
        ({"method": "auto"}, "'method'"),
        ({"gradient_rate": float("nan")}, r"`gradient_rate`"),
        ({"threshold": 1.0}, r"`threshold`.*\[0, 1\).*threshold=1.0"),
        ({"prefer": "small_gradients"}, r"`prefer`.*did you mean 'small_gradient'"),
        ({"prefer": "small_gradient+small_weights", "weight_rate": 0.1}, r"`prefer`.*did you mean 'small_weight'"),
        ({"prefer": "small_weight+big_weight", "weight_rate": 0.1}, r"`prefer`.*one for gradients, one for weights"),
        ({"prefer": ["small_gradient"]}, r"`prefer`"),
        ({"prefer": "small_gradient+small_weight"}, r"`weight_rate`.*beside two preferences.*weight_rate=None"),
        ({"weight_rate": 0.1}, r"`weight_rate`.*None beside one.*weight_rate=0.1"),
        ({"prefer": "small_gradient+small_weight", "weight_rate": 0.2}, r"`weight_rate`.*below 1 - 0.8"),
        ({"calibration": "edges"}, r"`calibration`.*did you mean 'edge'"),
        ({"straight_through": 1}, r"`straight_through`.*straight_through=1"),
    ],
)
def test_bad_arguments_are_refused_by_name(kwargs, words):
    with pytest.raises((TypeError, ValueError), match=words):
        DynamicDropConnect(keras.layers.Dense(5), **kwargs)


def test_rates_set_later_are_checked_together():
    layer = built()
    with pytest.raises(ValueError, match=r"`rate`.*below 1 - 0.5.*rate=0.6"):
        layer.rate = 0.6
    with pytest.raises(ValueError, match=r"`gradient_rate`.*gradient_rate=0.8"):
        layer.gradient_rate = 0.8
    assert (layer.rate, layer.gradient_rate) == (0.3, 0.5)


def test_gradient_rate_is_checked_with_the_highest_rate_of_a_schedule():
    layer = built(base_rate=pnd.schedules.Linear(0.0, 0.45, steps=4))
    with pytest.raises(ValueError, match=r"`gradient_rate`.*below 1 - 0.45"):
        layer.gradient_rate = 0.9
    layer.gradient_rate = 0.52
    assert DynamicDropConnect.from_config(layer.get_config()).gradient_rate == 0.52

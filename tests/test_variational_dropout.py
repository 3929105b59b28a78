"""VariationalDropout and SparseVariationalDropout: their distributions, their divergences, and training by them."""

import itertools

import keras
import numpy as np
import pytest
from scipy import integrate, special, stats

import pernodedrop as pnd
from pernodedrop.layers.weight.sparse_variational_dropout import SparseVariationalDropout
from pernodedrop.layers.weight.variational_dropout import VariationalDropout
from tests.family import first_call
from tests.frameworks import needs_training

BACKEND = keras.backend.backend()


def host(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def inputs(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def built(wrapper, /, shape=(4, 6), inner=None, **kwargs):
    layer = wrapper(inner or keras.layers.Dense(5), examples=100, seed=1, **kwargs)
    layer.build(shape)
    return layer


def normals(shape, lane=0):
    """Normals of a key (1, 0) and lane, at (time, sample, in, out) of an array (sample, time, in, out)."""
    from tests import reference

    words = reference.bits(1, 0, shape, lane=lane)
    return np.sqrt(2) * special.erfinv(2 * ((words >> 9) + 0.5) * 2.0**-23 - 1)


def true_divergence(log_alpha):
    """KL(N(theta, alpha theta**2) || log-uniform) by numerical integration, its constant such that it goes to 0."""
    s = np.exp(log_alpha / 2)
    edges = np.unique([1 - 12 * s, 1 - 3 * s, 1.0, 1 + 3 * s, 1 + 12 * s] + ([0.0] if 12 * s > 1 else []))
    parts = itertools.pairwise(edges)
    mean_log = sum(integrate.quad(lambda e: np.log(abs(e)) * stats.norm.pdf(e, 1, s), *part)[0] for part in parts)
    return mean_log - 0.5 * log_alpha + (np.euler_gamma + np.log(2)) / 2


def test_kind_a_is_gaussian_dropout_before_the_layer():
    layer, x = built(VariationalDropout, kind="A", alpha=0.3), inputs(4, 6)
    before = pnd.GaussianDropout(0.3 / 1.3, seed=1)
    y = host(layer.layer(before(x, training=True)))
    np.testing.assert_allclose(host(layer(x, training=True)), y, atol=1e-5)


def test_kind_b_is_gaussian_noise_on_weights_by_local_reparameterization():
    layer, x = built(VariationalDropout, kind="B", alpha=0.3), inputs(4, 6)
    same = pnd.PerNodeDrop(layer.layer, noise=pnd.Gaussian(stddev=0.3**0.5), seed=1, method="local_reparameterization")
    np.testing.assert_allclose(host(layer(x, training=True)), host(same(x, training=True)), atol=1e-5)


@pytest.mark.parametrize("clip_noise", [False, True])
def test_noise_of_the_sparse_kind_is_clipped_where_it_is_asked_for(clip_noise):
    layer, x = built(SparseVariationalDropout, clip_noise=clip_noise), inputs(4, 6)
    log_variance = np.linspace(-20, 20, 30).reshape(6, 5).astype("float32")
    layer.log_variance.assign(log_variance)
    w = host(layer.layer.kernel)
    clipped = np.exp(np.clip(log_variance - np.log(w**2 + 1e-8), -8, 8)) * w**2
    deviation = np.sqrt(x**2 @ (clipped if clip_noise else np.exp(log_variance)))
    y = x @ w + deviation * normals((4, 1, 5), lane=1)[:, 0]
    np.testing.assert_allclose(host(layer(x, training=True)), y, rtol=1e-4, atol=1e-4)
    again = SparseVariationalDropout.from_config(layer.get_config())
    assert again.clip_noise is clip_noise


@pytest.mark.parametrize("kind", ["A", "B"])
def test_units_have_their_own_alpha(kind):
    layer, x = built(VariationalDropout, kind=kind, per="unit"), inputs(4, 6)
    alpha = np.linspace(0.1, 0.9, 6).astype("float32")
    layer._log_alpha.assign(np.log(alpha))
    w = host(layer.layer.kernel)
    if kind == "A":
        y = (x * (1 + np.sqrt(alpha) * normals((4, 6, 1))[:, :, 0])) @ w
    else:
        y = x @ w + np.sqrt((x**2 * alpha) @ w**2) * normals((4, 1, 5), lane=1)[:, 0]
    np.testing.assert_allclose(host(layer(x, training=True)), y, atol=1e-4)
    np.testing.assert_allclose(layer.alpha, alpha, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: keras.layers.Conv1D(4, 3, padding="causal", groups=2), (3, 7, 6)),
        (lambda: keras.layers.Conv2D(5, 3, strides=2), (3, 6, 6, 2)),
        (lambda: keras.layers.EinsumDense("abc,cd->dba", output_shape=(4, 3)), (3, 4, 6)),
    ],
)
def test_positions_have_noise_of_their_own(make, shape):
    """The mean and the variance are the inner layer's own products; EinsumDense here puts the samples last."""
    layer, x = built(SparseVariationalDropout, shape, make()), inputs(*shape)
    log_variance = inputs(*layer.layer.kernel.shape, seed=3)
    layer.log_variance.assign(log_variance)
    y, w = first_call(layer, x), host(layer.layer.kernel).copy()
    mean = host(layer.layer(x))
    layer.layer.kernel.assign(np.exp(log_variance))
    deviation = np.sqrt(host(layer.layer(x**2)))
    layer.layer.kernel.assign(w)
    samples_last = isinstance(layer.layer, keras.layers.EinsumDense)
    batch, *middle, last = (mean.T if samples_last else mean).shape
    shape = (batch, int(np.prod(middle)), 1, last)
    if samples_last:  # (d, b, a) with the samples first is (a, d, b)
        batch, *middle, last = np.moveaxis(mean, 2, 0).shape
        shape = (batch, middle[0], 1, last)
    z = normals(shape, lane=1).reshape(batch, *middle, last)
    z = np.moveaxis(z, 0, 2) if samples_last else z
    np.testing.assert_allclose(y, mean + deviation * z, atol=1e-4)


@pytest.mark.skip_backend("tensorflow", reason="TensorFlow's convolutions on a CPU have their channels last")
@pytest.mark.parametrize(
    ("wrapper", "kwargs"),
    [
        (VariationalDropout, {"kind": "A", "per": "unit"}),
        (VariationalDropout, {"kind": "B", "per": "unit"}),
        (SparseVariationalDropout, {"log_variance": 0.0}),
    ],
    ids=["A", "B", "sparse"],
)
@pytest.mark.parametrize("convolution", [keras.layers.Conv1D, keras.layers.Conv2D])
def test_channels_first_is_channels_last_moved(convolution, wrapper, kwargs):
    x = inputs(*((2, 6, 3) if convolution is keras.layers.Conv1D else (2, 6, 5, 3)))
    moved = np.moveaxis(x, -1, 1)
    first, last = (
        built(wrapper, shape, convolution(4, 3, data_format=f"channels_{place}"), **kwargs)
        for place, shape in (("first", moved.shape), ("last", x.shape))
    )
    first.layer.set_weights(last.layer.get_weights())
    y = first_call(last, x)
    assert np.abs(y - host(last(x))).max() > 0.1
    np.testing.assert_allclose(np.moveaxis(first_call(first, moved), 1, -1), y, atol=1e-5)


@pytest.mark.parametrize("kind", ["A", "B"])
def test_channels_of_a_convolution_are_its_units(kind):
    layer = built(VariationalDropout, (2, 5, 6), keras.layers.Conv1D(4, 3), kind=kind, per="unit")
    assert layer.alpha.shape == (6,)
    first = keras.layers.Conv1D(4, 3, data_format="channels_first")
    assert built(VariationalDropout, (2, 6, 5), first, kind=kind, per="unit").alpha.shape == (6,)
    x = inputs(2, 5, 6)
    layer._log_alpha.assign(np.log([1e-12] * 5 + [1.0]))
    quiet = x.copy()
    quiet[..., 5] = 0
    np.testing.assert_allclose(host(layer(quiet, training=True)), host(layer(quiet)), atol=1e-4)
    assert abs(host(layer(x, training=True)) - host(layer(x))).max() > 0.01


@pytest.mark.parametrize(
    ("kind", "numbers", "inner", "shape"),
    [
        ("B", 30, lambda: keras.layers.Dense(5), (4, 6)),
        ("A", 6, lambda: keras.layers.Dense(5), (4, 6)),
        ("B", 36, lambda: keras.layers.Conv1D(4, 3, groups=2), (4, 5, 6)),
        ("A", 6, lambda: keras.layers.Conv1D(4, 3, groups=2), (4, 5, 6)),
        ("A", 42, lambda: keras.layers.EinsumDense("abc,bcd->abd", output_shape=(7, 5)), (4, 7, 6)),
    ],
)
@pytest.mark.parametrize("per", ["layer", "unit"])
def test_divergence_is_that_of_the_integral_up_to_a_constant(kind, numbers, inner, shape, per):
    """The paper's polynomial is within 0.02 of its mean distance 0.66 to the truth for ln(alpha) from -8 to 0."""
    layer = built(VariationalDropout, shape, inner(), kind=kind, per=per)
    for log_alpha in (-8.0, -3.0, -1.0, 0.0):
        layer._log_alpha.assign(np.full(layer.alpha.shape, log_alpha))
        each = float(host(layer.divergence())) / numbers
        assert each == pytest.approx(true_divergence(log_alpha) - 0.66, abs=0.03)


def test_divergence_has_the_constants_of_the_paper():
    layer = built(VariationalDropout, alpha=0.5)
    c1, c2, c3 = 1.16145124, -1.50204118, 0.58629921
    each = -(0.5 * np.log(0.5) + c1 * 0.5 + c2 * 0.25 + c3 * 0.125)
    np.testing.assert_allclose(host(layer.divergence()), 30 * each, rtol=1e-6)


@pytest.mark.parametrize("log_alpha", [-8.0, -4.0, -2.0, 0.0, 1.0, 4.0, 8.0])
def test_divergence_of_sparse_posteriors_is_that_of_the_integral(log_alpha):
    """The paper's fit is within 0.009 of the truth everywhere; it is 4.64 at -8 and goes to 0."""
    layer = built(SparseVariationalDropout)
    layer.layer.kernel.assign(np.full((6, 5), 2.0))
    layer.log_variance.assign(np.full((6, 5), np.log(4.0) + log_alpha))
    each = float(host(layer.divergence())) / 30
    assert each == pytest.approx(true_divergence(log_alpha), abs=0.009)
    sigmoid = 1 / (1 + np.exp(-(1.87320 + 1.48695 * log_alpha)))
    assert -each == pytest.approx(0.63576 * sigmoid - 0.5 * np.log1p(np.exp(-log_alpha)) - 0.63576, abs=1e-5)


def test_alpha_is_clipped_and_finite_for_a_weight_of_zero():
    layer = built(SparseVariationalDropout)
    layer.layer.kernel.assign(np.stack([np.zeros((6,)), np.full((6,), 1e3)] + [np.ones((6,))] * 3, axis=1))
    log_alpha = host(layer.log_alpha())
    assert (log_alpha[:, 0] == 8).all()
    assert (log_alpha[:, 1] == -8).all()
    np.testing.assert_allclose(log_alpha[:, 2:], -8)
    assert np.isfinite(host(layer.divergence()))


def test_loss_is_the_divergence_over_the_examples_once_however_often_the_layer_is_called():
    x = keras.Input((6,))
    layer = VariationalDropout(keras.layers.Dense(6), examples=50, seed=1)
    model = keras.Model(x, layer(layer(x)))
    model(inputs(4, 6), training=True)
    np.testing.assert_allclose([host(loss) for loss in model.losses], [host(layer.divergence()) / 50], rtol=1e-6)


@pytest.mark.parametrize("warm_up", [0, 4])
def test_warm_up_raises_the_loss_with_the_calls(warm_up):
    layer, x = built(SparseVariationalDropout, warm_up=warm_up), inputs(4, 6)
    divergence = float(host(layer.divergence()))
    for calls in range(1, 7):
        layer(x, training=True)
        (loss,) = layer.losses
        beta = min(1, calls / warm_up) if warm_up else 1
        np.testing.assert_allclose(host(loss), beta * divergence / 100, rtol=1e-6)
    layer._key.assign(np.array([1, 2**32 - 5], "uint32").view("int32"))
    np.testing.assert_allclose(host(layer.losses[0]), divergence / 100, rtol=1e-6)


def test_inference_prunes_by_alpha_and_folds():
    layer, x = built(SparseVariationalDropout, inner=keras.layers.Dense(5, activation="tanh")), inputs(4, 6)
    w, b = host(layer.layer.kernel), inputs(5, seed=2)
    layer.layer.bias.assign(b)
    log_alpha = np.linspace(-5, 5, 30).reshape(6, 5)
    layer.log_variance.assign(log_alpha + np.log(w**2 + 1e-8))
    pruned = w * (log_alpha <= 3)
    y = np.tanh(x @ pruned + b)
    assert layer.sparsity == pytest.approx((log_alpha > 3).mean())
    folded = layer.fold()
    assert type(folded) is keras.layers.Dense
    np.testing.assert_array_equal(host(folded.kernel), pruned)
    for each in (layer, folded):
        np.testing.assert_allclose(host(each(x)), y, atol=1e-6)
    for threshold, sparsity in ((-6.0, 1.0), (8.0, 0.0)):
        layer.threshold = threshold
        assert layer.sparsity == sparsity


def test_threshold_takes_effect_in_a_compiled_predict_and_is_saved(tmp_path):
    layer, x = built(SparseVariationalDropout, inner=keras.layers.Dense(5, use_bias=False)), inputs(4, 6)
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(jit_compile=BACKEND == "jax")
    kept = model.predict(x, verbose=0)
    assert np.abs(kept).min() > 0
    layer.threshold = -9.5
    assert (layer.threshold, layer.get_config()["threshold"], layer.sparsity) == (-9.5, -9.5, 1)
    np.testing.assert_array_equal(model.predict(x, verbose=0), np.zeros((4, 5)))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert again.layers[0].threshold == -9.5
    np.testing.assert_array_equal(host(again(x)), np.zeros((4, 5)))
    layer.threshold = 3
    np.testing.assert_array_equal(model.predict(x, verbose=0), kept)
    with pytest.raises(ValueError, match="`threshold`"):
        layer.threshold = np.nan


def test_variational_dropout_is_the_inner_layer_at_inference():
    layer, x = built(VariationalDropout), inputs(4, 6)
    np.testing.assert_array_equal(host(layer(x)), host(layer.layer(x)))
    np.testing.assert_array_equal(host(layer.fold()(x)), host(layer(x)))


@pytest.mark.slow
@needs_training
@pytest.mark.parametrize(
    "make",
    [
        lambda n: VariationalDropout(keras.layers.Dense(1), examples=n, per="unit", seed=1),
        lambda n: VariationalDropout(keras.layers.Dense(1), examples=n, kind="A", per="unit", seed=1),
        lambda n: SparseVariationalDropout(keras.layers.Dense(1), examples=n, log_variance=-4.0, seed=1),
    ],
    ids=["B", "A", "sparse"],
)
def test_fit_makes_useless_inputs_noisier_than_useful_ones(make):
    """The target is the first input alone; the data's loss counts 32 times as much as KL / examples would at N = 1."""
    x = inputs(64, 4)
    layer = make(32)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    history = model.fit(x, 3 * x[:, :1], batch_size=16, epochs=40, verbose=0).history["loss"]
    assert history[-1] < history[0] / 2
    alpha = layer.alpha if isinstance(layer, VariationalDropout) else np.exp(host(layer.log_alpha()))[:, 0]
    assert alpha[1:].min() > 4 * alpha[0]
    assert isinstance(layer, SparseVariationalDropout) or alpha.max() <= 1


@needs_training
@pytest.mark.parametrize("kind", [VariationalDropout, SparseVariationalDropout])
def test_fit_reports_the_loss_of_the_data_and_of_the_divergence(kind):
    x, targets = inputs(8, 6), inputs(8, 5, seed=2)
    layer = built(kind)
    y, divergence = host(layer(x, training=True, key=(1, 0))), float(host(layer.divergence()))
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    (loss,) = model.fit(x, targets, batch_size=8, shuffle=False, verbose=0).history["loss"]
    assert loss == pytest.approx(((y - targets) ** 2).mean() + divergence / 100, rel=1e-4)


@needs_training
def test_the_divergence_alone_makes_alpha_grow_and_stop_at_one():
    layer, x = built(VariationalDropout, alpha=0.9), np.zeros((8, 6), "float32")
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.fit(x, np.zeros((8, 5)), batch_size=2, epochs=2, verbose=0)
    assert layer.alpha == 1


def test_alpha_is_at_most_one_whatever_an_optimizer_does():
    """Only Keras' own know the constraint."""
    layer = built(VariationalDropout, alpha=1.0)
    at_one = host(layer.divergence())
    layer._log_alpha.assign(np.full(layer._log_alpha.shape, 3.0, "float32"))
    assert layer.alpha == 1
    assert host(layer.divergence()) == at_one


@needs_training
def test_a_frozen_layer_has_no_loss():
    layer = built(VariationalDropout)
    layer.trainable = False
    assert layer.losses == []


def test_noise_has_no_rate_to_set():
    with pytest.raises(TypeError, match="no rate"):
        built(VariationalDropout).rate = 0.5


@pytest.mark.parametrize("kind", [VariationalDropout, SparseVariationalDropout])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_variances_and_divergence_are_computed_in_float32(kind, policy):
    """Variances of 1e-10 are zero in float16."""
    layer = kind(keras.layers.Dense(5, dtype=policy, kernel_initializer="ones"), examples=1, seed=1)
    x = np.full((4, 6), 1e-4, "float32")
    if kind is SparseVariationalDropout:
        layer.build(x.shape)
        layer.log_variance.assign(np.zeros((6, 5)))
    y = layer(x, training=True)
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
    assert len(np.unique(host(y).astype("float32"))) > 4
    assert keras.backend.standardize_dtype(layer.losses[0].dtype) == "float32"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: VariationalDropout(d, examples=0), r"`examples`.*examples=0"),
        (lambda d: VariationalDropout(d, examples=0.5), r"`examples`.*examples=0.5"),
        (lambda d: VariationalDropout(d, examples=9, alpha=1.5), r"`alpha`.*\(0, 1\].*alpha=1.5"),
        (lambda d: VariationalDropout(d, examples=9, alpha=0), r"`alpha`.*alpha=0"),
        (lambda d: VariationalDropout(d, examples=9, kind="C"), r"`kind`.*'A', 'B'"),
        (lambda d: VariationalDropout(d, examples=9, per="units"), r"`per`.*did you mean 'unit'"),
        (lambda d: VariationalDropout(d, examples=9, method="auto"), "'method'"),
        (lambda d: SparseVariationalDropout(d, examples=9, method="auto"), "'method'"),
        (lambda d: SparseVariationalDropout(d, examples=9, warm_up=-1), r"`warm_up`.*int from 0.*warm_up=-1"),
        (lambda d: SparseVariationalDropout(d, examples=9, warm_up=False), r"`warm_up`.*warm_up=False"),
        (lambda d: SparseVariationalDropout(d, examples=9, threshold=None), r"`threshold`"),
        (lambda d: SparseVariationalDropout(d, examples=9, log_variance=np.inf), r"`log_variance`"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make(keras.layers.Dense(5))


def test_units_are_refused_where_the_last_axis_is_not_contracted():
    einsum = keras.layers.EinsumDense("abc,bd->adc", output_shape=(5, 6))
    with pytest.raises(ValueError, match=r"`per`.*'abc,bd->adc'.*last axis"):
        built(VariationalDropout, (4, 7, 6), einsum, per="unit")


@pytest.mark.parametrize("kind", [VariationalDropout, SparseVariationalDropout])
def test_config_round_trip_keeps_the_numbers(kind):
    numbers = {"alpha": 0.5, "kind": "A", "per": "unit"}
    if kind is SparseVariationalDropout:
        numbers = {"warm_up": 5, "threshold": 2.0, "log_variance": -3.0}
    layer = built(kind, **numbers)
    config = layer.get_config()
    assert {name: config[name] for name in numbers} == numbers
    assert kind.from_config(config).get_config() == layer.get_config()

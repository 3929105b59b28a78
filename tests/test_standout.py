"""Standout against its formula in NumPy, with the words of the reference."""

import keras
import numpy as np
import pytest

from pernodedrop.layers.weight.standout import Standout
from tests.frameworks import needs_training
from tests.reference import bits

BACKEND = keras.backend.backend()
SEED = 1


def host(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def layer_for(x, dense=None, **kwargs):
    """A built layer with given weights, its kernel and its bias."""
    layer = Standout(dense or keras.layers.Dense(5, activation="tanh"), seed=SEED, **kwargs)
    layer.build(x.shape)
    layer.layer.kernel.assign(np.random.default_rng(1).normal(size=(x.shape[-1], 5)))
    layer.layer.bias.assign(np.linspace(-1, 1, 5))
    return layer, host(layer.layer.kernel), host(layer.layer.bias)


def uniform(shape, call=0):
    """The uniform numbers of a call, (sample, time, out)."""
    batch, *middle, out = shape
    words = bits(SEED, call, (batch, int(np.prod(middle)), 1, out))[:, :, 0]
    return (((words >> 9) + 0.5) / 2**23).reshape(shape)


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype("float64")))


@pytest.mark.parametrize("shape", [(6, 4), (3, 7, 4), (2, 3, 2, 4)])
@pytest.mark.parametrize("shift", ["unit", "weight"])
def test_units_are_kept_by_their_words_and_mean_at_inference(shape, shift):
    x = inputs(*shape)
    layer, w, b = layer_for(x, alpha=1.5, beta=-0.3, shift=shift)
    p = sigmoid(1.5 * (x @ w) - 0.3) if shift == "unit" else sigmoid(x @ (1.5 * w - 0.3))
    h = np.tanh(x @ w + b)
    np.testing.assert_allclose(host(layer(x)), p * h, atol=1e-5)
    for call in range(2):
        u = uniform(h.shape, call)
        assert np.abs(u - p).min() > 1e-5  # no decision hangs on rounding
        np.testing.assert_allclose(host(layer(x, training=True)), (u < p) * h, atol=1e-5)
    again = host(layer(x, training=True, key=(SEED, 1)))
    np.testing.assert_allclose(again, (u < p) * h, atol=1e-5)


def test_the_two_readings_agree_without_a_shift_only():
    x = inputs(6, 4)
    for beta, same in ((0.0, True), (0.5, False)):
        one, _, _ = layer_for(x, beta=beta)
        other, _, _ = layer_for(x, beta=beta, shift="weight")
        assert np.allclose(host(one(x)), host(other(x)), atol=1e-6) == same


def test_samples_have_the_words_of_their_ids():
    x = inputs(4, 6)
    layer, w, b = layer_for(x)
    u = uniform((10, 5))[[9, 0, 3, 3]]
    y = host(layer(x, training=True, sample_ids=np.array([9, 0, 3, 3])))
    np.testing.assert_allclose(y, (u < sigmoid(x @ w)) * np.tanh(x @ w + b), atol=1e-5)


def test_mean_over_calls_is_inference():
    """Each of the 20 means of 2000 words is within 6 standard deviations: false-alarm rate 4e-8, with a fixed seed."""
    x = inputs(4, 6)
    layer, w, b = layer_for(x, dense=keras.layers.Dense(5))
    many = np.repeat(x, 2000, axis=0)
    y = host(layer(many, training=True)).reshape(4, 2000, 5)
    p = sigmoid(x @ w)
    bound = 6 * np.sqrt(p * (1 - p) / 2000) * np.abs(x @ w + b) + 1e-6
    assert (np.abs(y.mean(axis=1) - host(layer(x))) < bound).all()


@needs_training
def test_no_gradient_passes_through_the_decisions():
    """The kernel's gradient is that of m * f(x W + b) with m a constant: x^T (m * dy)."""
    x = inputs(6, 4)
    layer, w, _ = layer_for(x, dense=keras.layers.Dense(5), alpha=2.0)
    m = (uniform((6, 5)) < sigmoid(2.0 * (x @ w))).astype("float32")
    assert 0 < m.mean() < 1
    np.testing.assert_allclose(kernel_gradient(layer, x), x.T @ m, atol=1e-5)


def kernel_gradient(layer, x):
    """Of the sum of a training call at key (SEED, 0)."""
    kernel = layer.layer.kernel
    if BACKEND == "jax":
        import jax

        names = [v.path for v in layer.trainable_variables]

        def total(values):
            others = [v.value for v in layer.non_trainable_variables]
            return layer.stateless_call(values, others, x, training=True, key=(SEED, 0))[0].sum()

        return host(jax.grad(total)([v.value for v in layer.trainable_variables])[names.index(kernel.path)])
    if BACKEND == "torch":
        layer(x, training=True, key=(SEED, 0)).sum().backward()
        return host(kernel.value.grad)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        y = tf.reduce_sum(layer(x, training=True, key=(SEED, 0)))
    return host(tape.gradient(y, kernel.value))


@pytest.mark.parametrize("shift", ["unit", "weight"])
@pytest.mark.parametrize("shape", [(6, 4), (3, 7, 4)])
def test_fold_is_the_same_function_in_plain_layers(shape, shift):
    x = inputs(*shape)
    layer, _, _ = layer_for(x, alpha=0.7, beta=0.4, shift=shift)
    plain = layer.fold()
    assert {type(part) for part in plain.layers} <= {keras.layers.InputLayer, keras.layers.Dense, keras.layers.Multiply}
    np.testing.assert_allclose(host(plain(x)), host(layer(x)), atol=1e-6)
    assert plain.name == layer.name
    before = host(layer(x))
    plain.set_weights([0 * w for w in plain.get_weights()])
    np.testing.assert_array_equal(host(layer(x)), before)


def test_fold_of_an_unbuilt_layer_is_refused():
    with pytest.raises(ValueError, match="is not built"):
        Standout(keras.layers.Dense(3)).fold()


@pytest.mark.parametrize("training", [False, True])
def test_activity_regularizer_of_the_inner_layer_counts_once(training):
    x = inputs(8, 6)
    layer, w, b = layer_for(x, dense=keras.layers.Dense(5, activity_regularizer=keras.regularizers.L2(0.1)))
    layer(x, training=training)
    expected = 0.1 * ((x @ w + b) ** 2).sum() / 8
    np.testing.assert_allclose([host(loss) for loss in layer.losses], [expected], rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Standout(keras.layers.Conv1D(3, 3)), r"`layer`.*Dense"),
        (lambda: Standout(keras.layers.Dense(3), alpha=float("nan")), r"`alpha`.*finite"),
        (lambda: Standout(keras.layers.Dense(3), beta="0"), r"`beta`.*finite"),
        (lambda: Standout(keras.layers.Dense(3), shift="units"), r"`shift`.*did you mean 'unit'"),
        (lambda: Standout(keras.layers.Dense(3), method="auto"), "'method'"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()

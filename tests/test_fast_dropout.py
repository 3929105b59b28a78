"""Fast dropout against integrals of the activation over normal numbers."""

import itertools

import keras
import numpy as np
import pytest
from scipy import integrate, special, stats

import pernodedrop as pnd
from pernodedrop.layers.weight.fast_dropout import MEANS, FastDropout
from tests.family import first_call
from tests.frameworks import needs_gradients, value_and_gradients

RATE, SEED = 0.25, 3
ODDS = RATE / (1 - RATE)
ACTIVATIONS = {"linear": lambda x: x, "relu": lambda x: max(x, 0), "sigmoid": special.expit}
OF_SIGMOID = 0.018
"""How far the sigmoid's mean may be off."""


def host(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def built(inner, shape, rate=RATE):
    layer = FastDropout(inner, rate, seed=SEED)
    layer.build(shape)
    for variable in layer.layer.weights:
        variable.assign(np.random.default_rng(1).normal(size=variable.shape))
    return layer, *map(host, layer.layer.get_weights())


@np.vectorize
def integral(name, mean, spread):
    """E[activation(N(mean, spread**2))] by quadrature in two parts, about the kink or the steepest place."""
    if spread == 0:
        return ACTIVATIONS[name](mean)
    kink = np.clip(-mean / spread, -9, 9)
    parts = [
        integrate.quad(lambda z: ACTIVATIONS[name](mean + spread * z) * stats.norm.pdf(z), *ends, limit=200)[0]
        for ends in ((-10, kink), (kink, 10))
    ]
    return sum(parts)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_training_is_the_mean_of_the_activation(name):
    x = inputs(3, 6)
    layer, kernel, bias = built(keras.layers.Dense(4, activation=name), x.shape)
    y = integral(name, x @ kernel + bias, np.sqrt(ODDS * (x**2 @ kernel**2)))
    atol = OF_SIGMOID if name == "sigmoid" else 1e-5
    np.testing.assert_allclose(host(layer(x, training=True)), y, atol=atol)
    np.testing.assert_allclose(host(layer(x)), host(layer.layer(x)), atol=1e-6)
    np.testing.assert_array_equal(host(layer.fold()(x)), host(layer(x)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bound"), [("relu", 2e-6), ("sigmoid", OF_SIGMOID), ("linear", 0)])
def test_bounds_of_the_closed_forms_hold_over_means_and_spreads(name, bound):
    """To the spread's size for relu. The sigmoid's bound is that of its steepest limit, a step."""
    spread = np.array([1e-3, 0.1, 1, 3, 10, 100, 1e4])[:, None]
    mean = spread * np.linspace(-6, 6, 25)
    form = MEANS[getattr(keras.activations, name)]
    y = host(form(*(keras.ops.convert_to_tensor(a.astype("float32")) for a in np.broadcast_arrays(mean, spread))))
    if name == "linear":
        np.testing.assert_array_equal(y, mean.astype("float32"))
        return
    error = np.abs(y - integral(name, mean, spread)) / (spread if name == "relu" else 1)
    assert error.max() < bound
    if name == "sigmoid":
        assert error.max() > 0.9 * bound  # the bound says what it is


@pytest.mark.parametrize("name", ["relu", "sigmoid"])
def test_convolutions_and_equations_have_the_variance_of_their_sums(name):
    x = inputs(2, 5, 3)
    layer, kernel, bias = built(keras.layers.Conv1D(4, 2, activation=name), x.shape)
    patches = np.stack([x[:, i : i + 2].reshape(2, 6) for i in range(4)], axis=1)
    kernel = kernel.reshape(6, 4)
    y = integral(name, patches @ kernel + bias, np.sqrt(ODDS * (patches**2 @ kernel**2)))
    atol = OF_SIGMOID if name == "sigmoid" else 1e-5
    np.testing.assert_allclose(first_call(layer, x), y, atol=atol)

    einsum = keras.layers.EinsumDense("abc,cde->abde", (None, 2, 2), name, bias_axes="de")
    layer, kernel, bias = built(einsum, x.shape)
    spread = np.sqrt(ODDS * np.einsum("abc,cde->abde", x**2, kernel**2))
    y = integral(name, np.einsum("abc,cde->abde", x, kernel) + bias, spread)
    np.testing.assert_allclose(first_call(layer, x), y, atol=atol)


@pytest.mark.parametrize(("name", "bound"), [("relu", 0.02), ("sigmoid", 0.03)])
def test_it_is_near_the_mean_of_dropout_over_all_its_masks(name, bound):
    """The expectation over all 2**12 masks of 12 inputs; that their sums are taken for normal costs the bound here."""
    x = np.sign(inputs(1, 12))
    layer, kernel, _ = built(keras.layers.Dense(8, activation=name), x.shape)
    layer.layer.bias.assign(-x[0] @ kernel)  # the activation's bend is in the middle of the distribution
    kept = np.array(list(itertools.product([0, 1], repeat=12)))
    probability = (RATE ** (1 - kept) * (1 - RATE) ** kept).prod(axis=1)
    y = probability @ host(layer.layer((x * kept / (1 - RATE)).astype("float32")))
    error, without = (np.abs(host(layer(x, training=training))[0] - y) for training in (True, False))
    spread = np.sqrt(ODDS * (x**2 @ kernel**2))[0]
    assert (error < bound * (spread if name == "relu" else 1)).all()
    if name == "relu":  # of the sigmoid both means are 0.5 here
        assert (without > 0.3 * spread).all()


def test_it_is_deterministic_and_rate_0_is_the_layer():
    x = inputs(3, 6)
    layer, *_ = built(keras.layers.Dense(4, activation="relu"), x.shape)
    y = host(layer(x, training=True))
    np.testing.assert_array_equal(host(layer(x, training=True)), y)
    layer.rate = 0.0
    np.testing.assert_allclose(host(layer(x, training=True)), host(layer.layer(x)), atol=1e-6)


def test_rate_follows_its_schedule_by_training_calls():
    x = inputs(3, 6)
    step = pnd.schedules.Step([0.0, RATE], [2])
    layer, *_ = built(keras.layers.Dense(4, activation="relu"), x.shape, step)
    plain = host(layer(x))
    steady = host(built(keras.layers.Dense(4, activation="relu"), x.shape)[0](x, training=True))
    for wanted in (plain, plain, steady):
        np.testing.assert_allclose(host(layer(x, training=True)), wanted, atol=1e-6)


@needs_gradients
@pytest.mark.parametrize("name", ["relu", "sigmoid"])
def test_gradients_are_those_of_finite_differences_of_the_forms_and_finite_for_a_row_of_zeros(name):
    x = inputs(3, 6)
    x[1] = 0
    layer, kernel, bias = built(keras.layers.Dense(4, activation=name), x.shape)
    upstream = np.random.default_rng(2).normal(size=(3, 4)).astype("float32")

    def product(x, kernel):
        state = [v.value for v in layer.non_trainable_variables]
        weights = [kernel, keras.ops.convert_to_tensor(bias)]
        return layer.stateless_call(weights, state, x, training=True, key=(SEED, 0))[0]

    def loss(x, kernel):
        mean, spread = x @ kernel + bias, np.sqrt(ODDS * (x**2 @ kernel**2))
        with np.errstate(divide="ignore"):
            of_relu = mean * stats.norm.cdf(mean / spread) + spread * stats.norm.pdf(mean / spread)
        of_sigmoid = special.expit(mean / np.sqrt(1 + np.pi * spread**2 / 8))
        return (upstream * {"relu": of_relu, "sigmoid": of_sigmoid}[name]).sum()

    _, (dx, dk) = value_and_gradients(product, x, kernel, upstream=upstream)
    assert np.isfinite(dx).all()
    direction = np.random.default_rng(4).normal(size=kernel.shape)
    wide, h = kernel.astype("float64"), 1e-6
    wanted = (loss(x, wide + h * direction) - loss(x, wide - h * direction)) / (2 * h)
    np.testing.assert_allclose((dk * direction).sum(), wanted, rtol=1e-4)


@pytest.mark.parametrize("activation", ["tanh", "softmax", "gelu"])
def test_other_activations_are_refused_by_name(activation):
    with pytest.raises(ValueError, match=rf"`layer`.*'linear', 'relu', 'sigmoid'.*{activation}"):
        FastDropout(keras.layers.Dense(3, activation=activation))


def test_there_is_no_choice_of_a_method():
    with pytest.raises(ValueError, match="'method'"):
        FastDropout(keras.layers.Dense(5), method="auto")

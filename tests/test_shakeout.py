"""Shakeout: its product, its distribution by enumeration, its gradient, and Dropout as the case c = 0."""

import itertools

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.layers.weight.shakeout import Shakeout
from tests.frameworks import XP, needs_gradients, value_and_gradients
from tests.test_convolutions import convolution, each_layer

RATE, SEED, C = 0.25, 3, 0.3


def host(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def built(inner, shape, **kwargs):
    layer = Shakeout(inner, RATE, **{"c": C, "seed": SEED, **kwargs})
    layer.build(shape)
    kernel = np.random.default_rng(1).normal(size=layer.layer.kernel.shape).astype("float32")
    kernel[..., 0] = 0  # where the sign is 0
    layer.layer.kernel.assign(kernel)
    layer.layer.bias.assign(np.arange(layer.layer.bias.shape[-1]) + np.zeros(layer.layer.bias.shape))
    return layer, kernel, host(layer.layer.bias)


def shaken(kernel, r, c=C):
    """The kernel under r, which broadcasts against it."""
    return r * kernel + c * (r - 1) * np.sign(kernel)


def drawn(batch, rows, call=0):
    """r (batch, in): the mask of PerNodeDrop with one entry for all outputs."""
    shape = (batch, rows, 1)
    mask = pnd.ops.sample_mask(pnd.Bernoulli(RATE), (SEED, call), shape, sharing="out", backend="numpy")
    return mask[:, :, 0]


def test_training_enhances_and_reverses_inputs_for_all_outputs_alike():
    x = inputs(4, 6)
    layer, kernel, bias = built(keras.layers.Dense(5, activation="tanh"), x.shape)
    for call in range(2):
        own = shaken(kernel, drawn(4, 6, call)[:, :, None])
        y = np.tanh(np.einsum("bi,bio->bo", x, own) + bias)
        np.testing.assert_allclose(host(layer(x, training=True)), y, atol=1e-5)


@pytest.mark.parametrize(
    ("inner", "shape", "equation", "rows"),
    [
        (lambda: keras.layers.Dense(5), (4, 3, 6), "bti,bio->bto", (6, 1)),
        (lambda: keras.layers.EinsumDense("abc,cde->abde", (3, 2, 4), bias_axes="de"), (4, 3, 6), None, (6, 1, 1)),
        (lambda: keras.layers.EinsumDense("abcd,cde->abe", (3, 4), bias_axes="e"), (4, 3, 2, 6), None, (2, 6, 1)),
        (lambda: keras.layers.EinsumDense("abc,bcd->abd", (3, 4), bias_axes="d"), (4, 3, 6), None, (3, 6, 1)),
        (lambda: keras.layers.EinsumDense("abcd,bde->abce", (3, 5, 4), bias_axes="e"), (4, 3, 5, 6), None, (3, 6, 1)),
    ],
    ids=["positions", "outputs", "inputs", "groups", "groups_with_positions"],
)
def test_positions_share_r_and_an_input_is_an_entry_of_the_letters_of_x_and_kernel(inner, shape, equation, rows):
    x = inputs(*shape)
    layer, kernel, bias = built(inner(), shape)
    r = drawn(4, int(np.prod(rows))).reshape(4, *rows)
    if equation is None:
        left, letters, right = layer.layer.equation.replace("->", ",").split(",")
        equation = f"{left},a{letters}->{right}"
    y = np.einsum(equation, x, shaken(kernel, r)) + bias
    np.testing.assert_allclose(host(layer(x, training=True)), y, atol=1e-5)


def test_inference_is_the_inner_layer():
    x = inputs(4, 6)
    layer, kernel, bias = built(keras.layers.Dense(5), x.shape)
    np.testing.assert_allclose(host(layer(x)), x @ kernel + bias, atol=1e-5)
    np.testing.assert_array_equal(host(layer.fold()(x)), host(layer(x)))


def test_without_c_it_is_dropout_on_the_input_then_the_layer():
    for shape, noise_shape in (((4, 6), None), ((4, 3, 6), (None, 1, None))):
        x = inputs(*shape)
        layer, kernel, bias = built(keras.layers.Dense(5), shape, c=0.0)
        dropped = host(pnd.Dropout(RATE, noise_shape=noise_shape, seed=SEED)(x, training=True))
        np.testing.assert_allclose(host(layer(x, training=True)), dropped @ kernel + bias, atol=1e-5)


def test_entries_are_equal_to_the_bit_to_those_of_dropout():
    layer, kernel, _ = built(keras.layers.Dense(2, use_bias=True), (32, 6), c=0.0)
    layer.layer.kernel.assign(np.ones_like(kernel))
    layer.layer.bias.assign(np.zeros(2))
    for i in range(6):
        x = np.zeros((32, 6), "float32")
        x[:, i] = 1
        y = host(layer(x, training=True, key=(SEED, 0)))
        np.testing.assert_array_equal(y[:, 0], host(pnd.Dropout(RATE, seed=SEED)(x, training=True))[:, i])
        np.testing.assert_array_equal(y[:, 0], drawn(32, 6)[:, i])


def enumerated(field, time, sample, in_, out, xp):
    """Entries of which sample n has the n-th of all patterns of kept inputs."""
    number, place = (np.asarray(xp.to_numpy(word)).astype("int64") for word in (sample, in_))
    return xp.asarray(((number >> place) % 2 / (1 - RATE)).astype("float32"))


def test_mean_and_variance_of_kernel_entries_by_enumeration_of_all_r(monkeypatch):
    """The layer is run on all 16 patterns of 4 inputs, one a sample, and on each input by itself."""
    patterns = np.array(list(itertools.product([0, 1], repeat=4)))[:, ::-1]  # of sample n: bit i of n
    probability = np.prod(np.where(patterns, 1 - RATE, RATE), axis=1)
    layer, kernel, bias = built(keras.layers.Dense(3), (16, 4))
    field = layer.field((SEED, 0), None)
    monkeypatch.setattr(pnd.mask.Field, "entries", enumerated)
    monkeypatch.setattr(XP, "entries", lambda grid: grid.entries(XP))  # by no kernel
    monkeypatch.setattr(XP, "on_host", lambda field, samples: None)  # nor of what NumPy makes
    monkeypatch.setattr(XP, "fused", lambda function: function)  # nor in what JAX compiles
    for i in range(4):
        x = np.zeros((16, 4), "float32")
        x[:, i] = 1
        x = keras.ops.convert_to_tensor(x)
        entries = host(layer.call_with_noise(x, field, XP.arange(16, like=x))) - bias
        mean = probability @ entries
        variance = probability @ (entries - mean) ** 2
        np.testing.assert_allclose(mean, kernel[i], atol=1e-5)
        wanted = RATE / (1 - RATE) * (np.abs(kernel[i]) + C) ** 2 * (kernel[i] != 0)
        np.testing.assert_allclose(variance, wanted, atol=1e-5)


@needs_gradients
@pytest.mark.parametrize("slope", [1.0, 2.5])
def test_gradient_passes_through_the_sign_as_through_tanh(slope):
    x = inputs(4, 6)
    layer, kernel, bias = built(keras.layers.Dense(5), x.shape, slope=slope)
    upstream = np.random.default_rng(2).normal(size=(4, 5)).astype("float32")

    def product(x, kernel):
        state = [v.value for v in layer.non_trainable_variables]
        weights = [kernel, keras.ops.convert_to_tensor(bias)]
        y, _ = layer.stateless_call(weights, state, x, training=True, key=(SEED, 0))
        return y

    y, (dx, dk) = value_and_gradients(product, x, kernel, upstream=upstream)
    r = drawn(4, 6)
    own = shaken(kernel, r[:, :, None])
    np.testing.assert_allclose(y, np.einsum("bi,bio->bo", x, own) + bias, atol=1e-5)
    np.testing.assert_allclose(dx, np.einsum("bo,bio->bi", upstream, own), atol=1e-5)
    through_sign = C * slope * (1 - np.tanh(slope * kernel) ** 2)
    wanted = (x * r).T @ upstream + ((x * (r - 1)).T @ upstream) * through_sign
    np.testing.assert_allclose(dk, wanted, atol=1e-5)


def sums(inner, kernel, x):
    """The convolution of x with another kernel of its layer, written out in NumPy, in float64."""
    own = host(inner.kernel)
    inner.kernel.assign(kernel)
    y = convolution(x, inner, np.broadcast_to(1.0, (1, 999, 999, 999)))
    inner.kernel.assign(own)
    return y


@each_layer
def test_entries_of_feature_maps_are_enhanced_and_reversed_for_the_whole_kernel(make, shape):
    x = inputs(*shape)
    layer, kernel, bias = built(make(activation="tanh"), shape)
    r = host(pnd.Dropout(RATE, seed=SEED)(np.ones(shape, "float32"), training=True))
    y = sums(layer.layer, kernel, x * r) + sums(layer.layer, C * np.sign(kernel), x * (r - 1))
    np.testing.assert_allclose(host(layer(x, training=True)), np.tanh(y + bias), atol=2e-5)


@pytest.mark.skip_backend("tensorflow", reason="TensorFlow's convolutions on a CPU have their channels last")
def test_channels_first_is_channels_last_moved():
    x = inputs(2, 6, 5, 3)
    last, *_ = built(keras.layers.Conv2D(4, 3, data_format="channels_last"), x.shape)
    first, *_ = built(keras.layers.Conv2D(4, 3, data_format="channels_first"), (2, 3, 6, 5))
    moved = host(first(np.moveaxis(x, -1, 1), training=True))
    np.testing.assert_allclose(np.moveaxis(moved, 1, -1), host(last(x, training=True)), atol=1e-5)


def test_samples_of_a_convolution_have_the_r_of_their_ids():
    x = inputs(3, 6, 2)
    layer, *_ = built(keras.layers.Conv1D(4, 3), x.shape)
    ids = np.array([2, 0, 2])
    y = host(layer(x[ids], training=True, key=(SEED, 0), sample_ids=ids))
    np.testing.assert_allclose(y, host(layer(x, training=True, key=(SEED, 0)))[ids], atol=1e-6)


@needs_gradients
def test_gradient_of_a_convolution_of_size_1_is_that_of_its_positions():
    x = inputs(4, 3, 6)
    layer, kernel, bias = built(keras.layers.Conv1D(5, 1), x.shape)
    upstream = np.random.default_rng(2).normal(size=(4, 3, 5)).astype("float32")

    def product(x, kernel):
        state = [v.value for v in layer.non_trainable_variables]
        weights = [kernel, keras.ops.convert_to_tensor(bias)]
        return layer.stateless_call(weights, state, x, training=True, key=(SEED, 0))[0]

    y, (dx, dk) = value_and_gradients(product, x, kernel, upstream=upstream)
    r = host(pnd.Dropout(RATE, seed=SEED)(np.ones_like(x), training=True))
    own = shaken(kernel[0], r[..., None])
    np.testing.assert_allclose(y, np.einsum("bti,btio->bto", x, own) + bias, atol=1e-5)
    np.testing.assert_allclose(dx, np.einsum("bto,btio->bti", upstream, own), atol=1e-5)
    of_kept, of_sign = (np.einsum("bti,bto->io", x * each, upstream) for each in (r, r - 1))
    np.testing.assert_allclose(dk[0], of_kept + of_sign * C * (1 - np.tanh(kernel[0]) ** 2), atol=1e-5)


def test_rate_can_follow_a_schedule():
    layer = Shakeout(keras.layers.Dense(5), pnd.schedules.Step([0.0, 0.5], [1]), c=C, seed=SEED)
    x = inputs(4, 6)
    y = host(layer(x))
    np.testing.assert_allclose(host(layer(x, training=True)), y, atol=1e-5)
    assert (np.abs(host(layer(x, training=True)) - y) > 1e-3).any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Shakeout(keras.layers.Embedding(3, 2)), r"`layer`.*Dense"),
        (lambda: Shakeout(keras.layers.Conv1D(3, 2), method="kernel"), r"`method`.*'auto' around a convolution"),
        (lambda: Shakeout(keras.layers.Dense(3), c=-1.0), r"`c`.*from zero"),
        (lambda: Shakeout(keras.layers.Dense(3), slope=0.0), r"`slope`.*above zero"),
        (lambda: Shakeout(keras.layers.Dense(3), rate=1.0), r"`rate`"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()

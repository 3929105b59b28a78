"""Flipout: its product, and by enumeration of masks and signs what it has of the noise of PerNodeDrop and what not."""

import itertools

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.layers.weight.flipout import Flipout
from tests import reference
from tests.frameworks import XP, needs_gradients, value_and_gradients

RATE, SEED = 0.25, 3
NOISES = [pnd.Bernoulli(RATE), pnd.Gaussian(0.5), pnd.PartialGaussian(0.4, 0.5)]
each_noise = pytest.mark.parametrize("noise", NOISES, ids=lambda noise: type(noise).__name__)
can_come_first = pytest.mark.skip_backend(
    "tensorflow", reason="TensorFlow's convolutions on a CPU have their channels last"
)


def host(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def built(inner, shape, **kwargs):
    layer = Flipout(inner, seed=SEED, **kwargs)
    layer.build(shape)
    for variable in layer.layer.weights:
        variable.assign(np.random.default_rng(1).normal(size=variable.shape))
    return layer, *map(host, layer.layer.get_weights())


def one_mask(noise, rows, columns, call=0):
    shape = (1, rows, columns)
    return pnd.ops.sample_mask(noise, (SEED, call), shape, sharing="sample", backend="numpy")[0]


def signs(noise, batch, rows, columns, call=0):
    """s (batch, in) and r (batch, out): plus where the first bit of the word of a lane is 0."""
    s = reference.bits(SEED, call, (batch, rows, 1), lane=noise.lanes)[:, :, 0]
    r = reference.bits(SEED, call, (batch, 1, columns), lane=noise.lanes + 1)[:, 0]
    return 1 - 2.0 * (s >> 31), 1 - 2.0 * (r >> 31)


def own_masks(noise, batch, rows, columns, call=0):
    """The mask that each sample has by its signs: (batch, in, out)."""
    s, r = signs(noise, batch, rows, columns, call)
    return 1 + (one_mask(noise, rows, columns, call) - 1) * s[:, :, None] * r[:, None, :]


@each_noise
def test_training_is_the_product_with_a_batch_s_mask_under_each_sample_s_signs(noise):
    x = inputs(4, 6)
    layer, kernel, bias = built(keras.layers.Dense(5, activation="tanh"), x.shape, noise=noise)
    for call in range(2):
        y = np.tanh(np.einsum("bi,io,bio->bo", x, kernel, own_masks(noise, 4, 6, 5, call)) + bias)
        np.testing.assert_allclose(host(layer(x, training=True)), y, atol=1e-5)
    np.testing.assert_allclose(host(layer(x)), np.tanh(x @ kernel + bias), atol=1e-5)
    np.testing.assert_array_equal(host(layer.fold()(x)), host(layer(x)))


def test_sample_ids_choose_the_signs_and_the_mask_stays():
    noise, x = NOISES[0], inputs(4, 6)
    layer, kernel, bias = built(keras.layers.Dense(5), x.shape, noise=noise)
    ids = np.array([7, 2, 2, 0])
    y = np.einsum("bi,io,bio->bo", x, kernel, own_masks(noise, 8, 6, 5)[ids]) + bias
    np.testing.assert_allclose(host(layer(x, training=True, sample_ids=ids)), y, atol=1e-5)


def test_einsum_dense_has_signs_of_its_inputs_and_outputs_shared_over_positions():
    noise = NOISES[0]
    x = inputs(4, 3, 6)
    einsum = keras.layers.EinsumDense("abc,cde->abde", output_shape=(None, 2, 4), bias_axes="de")
    layer, kernel, bias = built(einsum, x.shape, noise=noise)
    m = own_masks(noise, 4, 6, 8).reshape(4, 6, 2, 4)
    y = np.einsum("abc,cde,acde->abde", x, kernel, m) + bias
    np.testing.assert_allclose(host(layer(x, training=True)), y, atol=1e-5)


@pytest.mark.parametrize(
    ("equation", "output_shape", "shape", "sums"),
    [
        ("abc,bcd->abd", (3, 4), (4, 3, 6), "abc,bcd,abcd->abd"),
        ("abtc,bcd->abtd", (3, 5, 4), (4, 3, 5, 6), "abtc,bcd,abcd->abtd"),
    ],
    ids=["groups", "groups_with_positions"],
)
def test_groups_of_a_kernel_have_signs_of_their_own(equation, output_shape, shape, sums):
    noise, x = NOISES[0], inputs(*shape)
    layer, kernel, bias = built(keras.layers.EinsumDense(equation, output_shape, bias_axes="d"), shape, noise=noise)
    s, r = signs(noise, 4, 18, 12)
    m = 1 + (one_mask(noise, 18, 4).reshape(3, 6, 4) - 1) * s.reshape(4, 3, 6, 1) * r.reshape(4, 3, 1, 4)
    np.testing.assert_allclose(host(layer(x, training=True)), np.einsum(sums, x, kernel, m) + bias, atol=1e-5)


@pytest.mark.parametrize("place", ["last", pytest.param("first", marks=can_come_first)])
def test_convolution_has_signs_of_its_channels(place):
    noise, x = NOISES[0], inputs(4, 7, 3)
    conv = keras.layers.Conv1D(5, 2, data_format=f"channels_{place}")
    given = x if place == "last" else np.moveaxis(x, -1, 1)
    layer, kernel, bias = built(conv, given.shape, noise=noise)
    s, r = signs(noise, 4, 3, 5)
    m = 1 + (one_mask(noise, 6, 5).reshape(2, 3, 5) - 1) * s[:, None, :, None] * r[:, None, None, :]
    patches = np.stack([x[:, i : i + 2] for i in range(6)], axis=1)
    y = np.einsum("btki,kio,bkio->bto", patches, kernel, m) + bias
    received = host(layer(given, training=True))
    np.testing.assert_allclose(received if place == "last" else np.moveaxis(received, 1, -1), y, atol=1e-5)


def test_depthwise_convolution_has_signs_of_both_its_sides():
    noise, x = NOISES[0], inputs(4, 5, 3)
    depthwise = keras.layers.DepthwiseConv1D(1, depth_multiplier=2, use_bias=False)
    layer, kernel = built(depthwise, x.shape, noise=noise)
    s, r = signs(noise, 4, 3, 6)
    m = 1 + (one_mask(noise, 3, 2) - 1) * s[:, :, None] * r.reshape(4, 3, 2)
    y = (x[..., None] * kernel[0] * m[:, None]).reshape(4, 5, 6)
    np.testing.assert_allclose(host(layer(x, training=True)), y, atol=1e-5)


@needs_gradients
def test_gradients_are_those_of_each_sample_s_own_mask():
    noise, x = NOISES[0], inputs(4, 6)
    layer, kernel, bias = built(keras.layers.Dense(5), x.shape, noise=noise)
    upstream = np.random.default_rng(2).normal(size=(4, 5)).astype("float32")

    def product(x, kernel):
        state = [v.value for v in layer.non_trainable_variables]
        weights = [kernel, keras.ops.convert_to_tensor(bias)]
        y, _ = layer.stateless_call(weights, state, x, training=True, key=(SEED, 0))
        return y

    _, (dx, dk) = value_and_gradients(product, x, kernel, upstream=upstream)
    m = own_masks(noise, 4, 6, 5)
    np.testing.assert_allclose(dx, np.einsum("bo,io,bio->bi", upstream, kernel, m), atol=1e-5)
    np.testing.assert_allclose(dk, np.einsum("bi,bo,bio->io", x, upstream, m), atol=1e-5)


def mask_with_number(number):
    """Entries of the mask with this number, of all masks of 2 inputs and 2 outputs."""

    def entries(field, time, sample, in_, out, xp):
        row, i, j = (np.asarray(xp.to_numpy(word)).astype("int64") for word in (sample, in_, out))
        kept = (number >> (0 * row + 2 * i + j)) % 2
        return xp.asarray((kept / float(1 - field.noise.rate)).astype("float32"))

    return entries


def enumerated_signs(field, lane, time, sample, in_, out, xp):
    """Words of which sample n has the n-th of all patterns of signs of 2 inputs and 2 outputs."""
    number, i, j = (np.asarray(xp.to_numpy(word)).astype("int64") for word in (sample, in_, out))
    bit = (number >> (i + j + 2 * (lane - field.noise.lanes))) % 2
    return xp.as_word(xp.asarray((bit << 31).astype("uint32")))


def enumerated_masks(rate, monkeypatch):
    """Masks of two samples that share M, by running the layer: (M and signs of both, in, out), and probabilities."""
    monkeypatch.setattr(pnd.mask.Field, "words", enumerated_signs)
    monkeypatch.setattr(XP, "entries", lambda grid: grid.entries(XP))  # by no kernel
    monkeypatch.setattr(XP, "on_host", lambda field, samples: None)  # nor of what NumPy makes
    monkeypatch.setattr(XP, "fused", lambda function: function)  # nor in what JAX compiles
    layer, kernel, bias = built(keras.layers.Dense(2), (16, 2), noise=pnd.Bernoulli(rate))
    masks = np.zeros((16, 16, 2, 2))  # number of M, number of signs, in, out
    for number, i in itertools.product(range(16), range(2)):
        x = np.zeros((16, 2), "float32")
        x[:, i] = 1
        x = keras.ops.convert_to_tensor(x)
        monkeypatch.setattr(pnd.mask.Field, "entries", mask_with_number(number))
        field = layer.field((SEED, 0), None)
        masks[number, :, i] = (host(layer.call_with_noise(x, field, XP.arange(16, like=x))) - bias) / kernel[i]
    kept = np.array([bin(number).count("1") for number in range(16)])
    return masks, rate ** (4 - kept) * (1 - rate) ** kept


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_what_is_right_and_what_is_wrong_by_enumeration_of_masks_and_signs(rate, monkeypatch):
    """All 16 masks of a 2 x 2 kernel times all 16 patterns of signs, run through the layer: exact expectations."""
    masks, of_mask = enumerated_masks(rate, monkeypatch)
    away = (masks - 1).reshape(16, 16, 4)  # (M, signs, entry)
    variance = rate / (1 - rate)

    def mean(values):
        return np.tensordot(of_mask, values.mean(axis=1), 1)

    # right: means, variances, no correlation of entries in a sample or of two samples, whose signs are independent
    np.testing.assert_allclose(mean(away), 0, atol=1e-5)
    np.testing.assert_allclose(mean(away[..., :, None] * away[..., None, :]), variance * np.eye(4), atol=1e-5)
    of_signs = away.mean(axis=1)
    np.testing.assert_allclose(np.einsum("m,me,mf->ef", of_mask, of_signs, of_signs), 0, atol=1e-5)

    # right: three entries are independent, so that all their moments factor
    for powers in itertools.product(range(4), repeat=3):
        each = [mean(away[..., e] ** n) for e, n in enumerate(powers)]
        joint = mean(np.prod([away[..., e] ** n for e, n in enumerate(powers)], axis=0))
        np.testing.assert_allclose(joint, np.prod(each), atol=1e-4)

    # wrong: an entry's distribution is made symmetric
    scale = 1 / (1 - rate)
    assert set(np.round(np.unique(masks), 4)) == {0, 2, round(scale, 4), round(2 - scale, 4)}
    np.testing.assert_allclose(mean(away**3), 0, atol=1e-5)
    skewed = rate * (0 - 1) ** 3 + (1 - rate) * (scale - 1) ** 3
    assert (skewed == 0) == (rate == 0.5)

    # wrong: the four corners of a rectangle, whose signs multiply to 1: a noise of its own has 0 here if symmetric
    corners = mean(np.prod(away**3, axis=-1))
    np.testing.assert_allclose(corners, skewed**4, atol=1e-5)

    # wrong: two samples have |M - 1| in common
    squares = (away**2).mean(axis=1)
    shared = np.einsum("m,me->e", of_mask, squares**2) - variance**2
    np.testing.assert_allclose(shared, rate + (1 - rate) * (scale - 1) ** 4 - variance**2, atol=1e-4)


def test_one_sample_of_a_symmetric_noise_has_the_distribution_of_per_node_drop(monkeypatch):
    """At rate 0.5 all 16 masks of a sample have the probability 1/16, as those of independent entries have."""
    masks, of_mask = enumerated_masks(0.5, monkeypatch)
    patterns, counts = np.unique(np.round(masks.reshape(256, 4)), axis=0, return_counts=True)
    assert len(patterns) == 16
    assert (counts == 16).all()
    np.testing.assert_allclose(of_mask, 1 / 16)


def test_numbers_of_the_noise_come_by_name_by_schedule_and_of_their_own():
    assert Flipout(keras.layers.Dense(2)).noise == pnd.Gaussian(0.5)
    assert Flipout(keras.layers.Dense(2), 0.2, "uniform").noise == pnd.Uniform(0.2)
    step = pnd.schedules.Step([0.0, 0.5], [1])
    layer, x = Flipout(keras.layers.Dense(2), step, "bernoulli", seed=SEED), inputs(4, 6)
    again = Flipout.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    plain = host(layer(x))
    np.testing.assert_allclose(host(layer(x, training=True)), plain, atol=1e-6)
    assert (np.abs(host(layer(x, training=True)) - plain) > 1e-3).any()
    with pytest.raises(ValueError, match=r"`rate`.*brings its own numbers"):
        Flipout(keras.layers.Dense(2), 0.5, pnd.Gaussian(0.5))


def test_there_is_no_choice_of_a_method():
    with pytest.raises(ValueError, match="'method'"):
        Flipout(keras.layers.Dense(5), method="auto")

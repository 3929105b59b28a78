"""AlphaDropout: its closed form, the moments that it keeps, and Keras' own layer under the same mask."""

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from tests.family import host, inputs

SELU_FLOOR = -1.0507009873554804934193349852946 * 1.6732632423543772848170429916717


def closed_form(x, kept, rate):
    """Section "Alpha dropout" of the paper, in float64."""
    a = (1 - rate + rate * (1 - rate) * SELU_FLOOR**2) ** -0.5
    b = -a * rate * SELU_FLOOR
    return np.where(kept, a * x + b, a * SELU_FLOOR + b)


def kept(*shape, rate=0.3, call=0):
    """What Dropout keeps of a (batch, in) input, from the ops alone."""
    return pnd.ops.sample_mask(pnd.Bernoulli(rate), (1, call), (*shape, 1), backend="numpy")[:, :, 0] > 0


def test_it_is_the_closed_form_on_the_mask_of_dropout():
    layer, x = pnd.AlphaDropout(0.3, seed=1), inputs(8, 6)
    for call in range(2):
        mask = kept(8, 6, call=call)
        assert 0 < mask.mean() < 1
        np.testing.assert_allclose(host(layer(x, training=True)), closed_form(x, mask, 0.3), atol=1e-6)
    np.testing.assert_array_equal(host(layer(x)), x)


def test_the_saturation_is_that_of_selu():
    y = host(pnd.AlphaDropout(0.3, seed=1)(np.full((8, 6), -100, "float32"), training=True))
    a_kept = host(pnd.AlphaDropout(0.3, seed=1)(host(keras.activations.selu(np.full((8, 6), -100.0))), training=True))
    np.testing.assert_allclose(y[~kept(8, 6)], a_kept[kept(8, 6)][0], atol=1e-6)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_mean_0_and_variance_1_are_kept(rate):
    """Of an x that is -1 or 1: the mean over it and the mask, by their probabilities, of the values that y takes."""
    mask = kept(64, 6, rate=rate)
    layer, ones = pnd.AlphaDropout(rate, seed=1), np.ones((64, 6), "float32")
    below, above = (host(layer(x, training=True, key=(1, 0))) for x in (-ones, ones))
    values = np.array([below[mask][0], above[mask][0], below[~mask][0]], "float64")
    probabilities = np.array([(1 - rate) / 2, (1 - rate) / 2, rate])
    assert probabilities @ values == pytest.approx(0, abs=1e-6)
    assert probabilities @ values**2 == pytest.approx(1, abs=1e-6)


class Given(pnd.AlphaDropout):
    """The layer with a mask that is given."""

    def entries(self, inputs, key, sample_ids):
        return keras.ops.convert_to_tensor(self.given.astype("float32"))


@pytest.mark.parametrize("noise_shape", [None, (None, 1, None)])
def test_it_is_keras_layer_given_the_same_mask(noise_shape):
    """Keras' mask is read off its output, in which no value but that of what is dropped occurs twice."""
    x = inputs(8, 4, 6)
    theirs = host(keras.layers.AlphaDropout(0.3, noise_shape, seed=1)(x, training=True))
    values, counts = np.unique(theirs, return_counts=True)
    assert (counts > 1).sum() == 1
    layer = Given(0.3, noise_shape, seed=1)
    layer.given = theirs != values[counts > 1]
    np.testing.assert_allclose(host(layer(x, training=True)), theirs, atol=1e-6)


def test_noise_shape_and_sample_ids_are_those_of_dropout():
    x, ids = inputs(3, 2, 6), np.array([7, 0, 7])
    options = {"noise_shape": (None, 1, None), "seed": 1}
    dropped = host(pnd.Dropout(0.3, **options)(np.ones_like(x), training=True, sample_ids=ids)) == 0
    y = host(pnd.AlphaDropout(0.3, **options)(x, training=True, sample_ids=ids))
    np.testing.assert_allclose(y, closed_form(x, ~dropped, 0.3), atol=1e-6)


def test_a_and_b_follow_a_schedule():
    layer, x = pnd.AlphaDropout(pnd.schedules.Linear(0.0, 0.5, steps=2), seed=1), inputs(8, 6)
    for call, rate in enumerate((0.0, 0.25, 0.5, 0.5)):
        y = closed_form(x, kept(8, 6, rate=rate, call=call), rate)
        np.testing.assert_allclose(host(layer(x, training=True)), y, atol=1e-6)


def test_what_is_dropped_does_not_pass_on_what_it_was():
    x = np.full((8, 6), np.inf, "float32")
    y = host(pnd.AlphaDropout(0.3, seed=1)(x, training=True))
    np.testing.assert_array_equal(np.isfinite(y), ~kept(8, 6))

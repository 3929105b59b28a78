"""Noise on both kernels of separable convolutions, against Keras' own with the masked kernels put in by hand."""

import math

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from tests.family import first_call, host, inputs
from tests.frameworks import needs_gradients, value_and_gradients

L = keras.layers
BATCH = 2
LAYERS = {
    "1d": (lambda: L.SeparableConv1D(4, 3, depth_multiplier=2, bias_initializer="normal"), (6, 3)),
    "2d": (lambda: L.SeparableConv2D(4, (3, 2), strides=2, padding="same", activation="tanh"), (5, 4, 3)),
    "2d_dilated": (lambda: L.SeparableConv2D(2, 2, dilation_rate=2, depth_multiplier=2, use_bias=False), (5, 4, 3)),
}
each_layer = pytest.mark.parametrize("name", LAYERS)
SECOND = (1 ^ 0x9E3779B9, 0)


def noisy(name, sharing="time", wrapper=pnd.PerNodeDrop, **kwargs):
    make, shape = LAYERS[name]
    layer = wrapper(make(), 0.5, sharing=sharing, seed=1, **kwargs)
    x = inputs(BATCH, *shape)
    layer.build(x.shape)
    return layer, x


def masks_of(layer, sharing="time"):
    """Masks of both kernels (batch, *kernel's shape); the first has a group for each channel, whose in is the place."""

    def mask(key, inputs_, outputs):
        shape = (BATCH, 1, inputs_, outputs)
        return pnd.ops.sample_mask(pnd.Bernoulli(0.5), key, shape, sharing=sharing, backend="numpy")[:, 0]

    *size, channels, multiplier = layer.depthwise_kernel.shape
    *ones, middle, outputs = layer.pointwise_kernel.shape
    first = mask((1, 0), channels * math.prod(size), multiplier).reshape(BATCH, channels, *size, multiplier)
    second = mask(SECOND, middle, outputs).reshape(BATCH, *ones, middle, outputs)
    return list(zip(np.moveaxis(first, 1, -2), second, strict=True))


def by_hand(layer, masks):
    """A plain layer like the inner one with its kernels times masks."""
    plain = type(layer.layer).from_config(layer.layer.get_config())
    plain.build_from_config(layer.layer.get_build_config())
    plain.set_weights(layer.layer.get_weights())
    for name, mask in zip(("depthwise_kernel", "pointwise_kernel"), masks, strict=True):
        getattr(plain, name).assign(host(getattr(plain, name)) * mask)
    return plain


@pytest.mark.parametrize("sharing", ["time", "sample+time"])
@each_layer
def test_each_sample_has_kernels_of_its_own(name, sharing):
    layer, x = noisy(name, sharing)
    wanted = [host(by_hand(layer, masks)(x[n : n + 1])) for n, masks in enumerate(masks_of(layer.layer, sharing))]
    y = first_call(layer, x)
    assert y.shape == tuple(layer.compute_output_shape(x.shape))
    np.testing.assert_allclose(y, np.concatenate(wanted), atol=1e-5)
    np.testing.assert_array_equal(host(layer(x)), host(layer.layer(x)))


@needs_gradients
@pytest.mark.parametrize("name", ["1d"])
def test_gradients_of_samples_add_up(name):
    layer, x = noisy(name)
    upstream = inputs(*layer.compute_output_shape(x.shape))

    def gradients(layer, x, upstream, **kwargs):
        def call(x, *weights):
            state = [variable.value for variable in layer.non_trainable_variables]
            return layer.stateless_call(weights, state, x, **kwargs)[0]

        weights = [host(variable) for variable in layer.trainable_variables]
        return value_and_gradients(call, x, *weights, upstream=upstream)[1]

    got = gradients(layer, x, upstream, training=True, key=(1, 0))
    of_x, of_weights = [], [0, 0, 0]
    for n, masks in enumerate(masks_of(layer.layer)):
        first, *others = gradients(by_hand(layer, masks), x[n : n + 1], upstream[n : n + 1])
        of_x.append(first)
        of_weights = [sum_ + m * one for sum_, m, one in zip(of_weights, [*masks, 1], others, strict=True)]
    for one, other in zip(got, [np.concatenate(of_x), *of_weights], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.once
@each_layer
def test_fixed_masks_are_folded(name):
    layer, x = noisy(name, regime="fixed")
    wanted = by_hand(layer, masks_of(layer.layer, "sample+time")[0])
    for y in (layer(x), layer.fold()(x)):
        np.testing.assert_allclose(host(y), host(wanted(x)), atol=1e-5)
    calm, x = noisy(name)
    np.testing.assert_array_equal(host(calm.fold()(x)), host(calm.layer(x)))


@pytest.mark.once
def test_an_activity_is_regularized_once_and_drop_connect_has_what_is_inverted():
    layer = pnd.DropConnect(L.SeparableConv1D(4, 3, activity_regularizer="l2"), 0.5, seed=1)
    x = inputs(BATCH, 6, 3)
    y = host(layer(x, training=True))
    np.testing.assert_allclose(host(layer.losses[0]), 0.01 * (y**2).sum() / BATCH, rtol=1e-5)
    assert len(layer.losses) == 1
    with pytest.raises(ValueError, match=r"`scaling`.*two kernels"):
        pnd.DropConnect.as_published(L.SeparableConv1D(4, 3))

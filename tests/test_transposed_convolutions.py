"""Noise on transposed convolutions, against Keras' own with the masked kernels put in by hand."""

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
    "conv1d": (lambda: L.Conv1DTranspose(4, 3), (5, 3)),
    "conv1d_same": (lambda: L.Conv1DTranspose(4, 3, strides=2, padding="same"), (5, 3)),
    "conv1d_even": (lambda: L.Conv1DTranspose(4, 4, strides=3, padding="same", output_padding=1), (4, 3)),
    "conv1d_apart": (lambda: L.Conv1DTranspose(4, 2, strides=3), (4, 3)),
    "conv2d": (lambda: L.Conv2DTranspose(3, (3, 2), strides=(2, 1), padding="same", activation="tanh"), (3, 4, 2)),
    "conv2d_dilated": (lambda: L.Conv2DTranspose(3, 3, dilation_rate=2, bias_initializer="normal"), (3, 4, 2)),
    "conv3d": (lambda: L.Conv3DTranspose(2, 2, strides=2), (2, 3, 2, 2)),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def skip_without(plain, x):
    """Skip where TensorFlow has no dilated transposed convolution: oneDNN has, which it takes on CPUs with AVX-512."""
    try:
        plain(x)
    except Exception as error:
        if "do not yet support dilation rates" not in str(error):
            raise
        pytest.skip("TensorFlow has no such convolution on this CPU, with or without noise")


def noisy(name, sharing="time", **kwargs):
    make, shape = LAYERS[name]
    layer = pnd.PerNodeDrop(make(), sharing=sharing, seed=1, **kwargs)
    x = inputs(BATCH, *shape)
    layer.build(x.shape)
    skip_without(layer.layer, x)
    return layer, x


def masks_of(layer, positions=1, sharing="time"):
    """Masks (batch, position, *kernel's shape) at the key (1, 0); in is (place from the other end, channel)."""
    *size, outputs, channels = layer.kernel.shape
    shape = (BATCH, positions, math.prod(size) * channels, outputs)
    mask = pnd.ops.sample_mask(pnd.Bernoulli(0.5), (1, 0), shape, sharing=sharing, backend="numpy")
    mask = np.broadcast_to(mask, shape).reshape(BATCH, positions, *size, channels, outputs)
    return np.flip(np.swapaxes(mask, -1, -2), axis=tuple(range(2, 2 + len(size))))


def by_hand(layer, mask):
    """A plain layer like the inner one with its kernel times a mask."""
    plain = type(layer.layer).from_config(layer.layer.get_config())
    plain.build_from_config(layer.layer.get_build_config())
    plain.set_weights(layer.layer.get_weights())
    plain.kernel.assign(host(plain.kernel) * mask)
    return plain


@pytest.mark.parametrize("sharing", ["time", "sample+time"])
@each_layer
def test_each_sample_has_a_kernel_of_its_own(name, sharing):
    layer, x = noisy(name, sharing)
    masks = masks_of(layer.layer, sharing=sharing)[:, 0]
    wanted = [host(by_hand(layer, mask)(x[n : n + 1])) for n, mask in enumerate(masks)]
    y = first_call(layer, x)
    assert y.shape == tuple(layer.compute_output_shape(x.shape))
    np.testing.assert_allclose(y, np.concatenate(wanted), atol=1e-5)
    np.testing.assert_array_equal(host(layer(x)), host(layer.layer(x)))


def test_each_position_of_the_output_may_have_a_kernel_of_its_own():
    layer, x = noisy("conv1d_same", ())
    positions = layer.compute_output_shape(x.shape)[1]
    masks, y = masks_of(layer.layer, positions, ()), first_call(layer, x)
    for n in range(BATCH):
        for t in range(positions):
            wanted = host(by_hand(layer, masks[n, t])(x[n : n + 1]))[0, t]
            np.testing.assert_allclose(y[n, t], wanted, atol=1e-5)


@needs_gradients
@pytest.mark.parametrize("name", ["conv1d_even", "conv2d"])
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
    of_x, of_kernel, of_bias = [], 0, 0
    for n, mask in enumerate(masks_of(layer.layer)[:, 0]):
        alone = gradients(by_hand(layer, mask), x[n : n + 1], upstream[n : n + 1])
        of_x.append(alone[0])
        of_kernel, of_bias = of_kernel + mask * alone[1], of_bias + alone[2]
    for one, other in zip(got, [np.concatenate(of_x), of_kernel, of_bias], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.once
@each_layer
def test_a_fixed_mask_is_folded(name):
    layer, x = noisy(name, regime="fixed")
    np.testing.assert_allclose(host(layer.fold()(x)), host(layer(x)), atol=1e-5)
    assert type(layer.fold()) is type(layer.layer)


@pytest.mark.once
def test_the_paper_s_drop_connect_goes_around_it_and_what_needs_moments_does_not():
    layer = pnd.DropConnect(LAYERS["conv1d"][0](), 0.5, scaling="none", mask_bias=True, seed=1)
    x = inputs(BATCH, 5, 3)
    np.testing.assert_allclose(host(layer(x)), host(layer.layer(x)) / 2, atol=1e-5)
    for wrapper in (pnd.Flipout, pnd.Shakeout):
        with pytest.raises(TypeError, match=r"`layer`. Expected a keras.layers.Dense.*Conv2DTranspose"):
            wrapper(LAYERS["conv2d"][0]())

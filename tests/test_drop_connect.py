"""DropConnect: its training product, masks of the bias, both scalings, both inferences, against NumPy."""

import keras
import numpy as np
import pytest
from scipy import stats

import pernodedrop as pnd
from tests import reference
from tests.frameworks import needs_gradients, value_and_gradients

RATE, KEEP = 0.75, 0.25
SEED = 3


def host(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def built(layer, shape):
    """The layer with a kernel and a bias that are no zeros."""
    layer.build(shape)
    rng = np.random.default_rng(1)
    for variable in layer.layer.weights:
        variable.assign(rng.normal(size=variable.shape))
    return layer


def published(inner, shape, **kwargs):
    return built(pnd.DropConnect.as_published(inner, rate=RATE, seed=SEED, **kwargs), shape)


def kept(batch, rows, columns, call=0, sharing=None):
    """Bits of the mask of rows x columns, of which the last row may be the bias's."""
    shape = (batch, rows, columns)
    return pnd.ops.sample_mask(pnd.Bernoulli(RATE), (SEED, call), shape, sharing=sharing, backend="numpy") > 0


def transposing():
    return keras.layers.EinsumDense("abc,cd->bad", (3, 4), bias_axes="d")


def mean_of_relu(mean, spread):
    """E[max(N(mean, spread**2), 0)] in closed form."""
    return mean * stats.norm.cdf(mean / spread) + spread * stats.norm.pdf(mean / spread)


def numpy_normals(number, channels):
    """The draws of the Gaussian inference: lane 1 of call 0, with the draw as sample."""
    u = ((reference.bits(SEED, 0, (number, 1, channels), lane=1)[:, 0] >> 9) + 0.5) / 2**23
    return stats.norm.ppf(u)


def test_published_training_drops_each_example_s_connections_and_bias_and_scales_nothing():
    layer, x = published(keras.layers.Dense(5, activation="relu"), (4, 6)), inputs(4, 6)
    kernel, bias = map(host, layer.layer.get_weights())
    for call in range(2):
        bits = kept(4, 7, 5, call)  # the seventh row is the bias's
        y = np.einsum("bi,io,bio->bo", x, kernel, bits[:, :6]) + bits[:, 6] * bias
        np.testing.assert_allclose(host(layer(x, training=True)), np.maximum(y, 0), atol=1e-5)


@pytest.mark.parametrize(("scaling", "factor"), [("inverted", 1 / KEEP), ("none", 1.0)])
@pytest.mark.parametrize("mask_bias", [False, True])
@pytest.mark.parametrize("sharing", ["time", "sample+time"])
def test_training_and_mean_inference_of_every_form(scaling, factor, mask_bias, sharing):
    layer = pnd.DropConnect(
        keras.layers.Dense(5, activation="tanh"), RATE, sharing, mask_bias=mask_bias, scaling=scaling, seed=SEED
    )
    x = inputs(4, 6)
    kernel, bias = map(host, built(layer, x.shape).layer.get_weights())
    bits = kept(4, 7, 5, sharing=sharing) * factor
    masked_bias = bits[:, 6] * bias if mask_bias else bias
    y = np.einsum("bi,io,bio->bo", x, kernel, bits[:, :6]) + masked_bias
    np.testing.assert_allclose(host(layer(x, training=True)), np.tanh(y), atol=1e-5)
    y = np.tanh(factor * KEEP * x @ kernel + (factor * KEEP if mask_bias else 1) * bias)
    np.testing.assert_allclose(host(layer(x)), y, atol=1e-5)
    np.testing.assert_allclose(host(layer.fold()(x)), y, atol=1e-5)


def test_a_batch_s_mask_is_per_node_drop_s_of_the_same_sharing():
    x = inputs(4, 6)
    shared = built(pnd.DropConnect(keras.layers.Dense(5), RATE, seed=SEED), x.shape)
    per_node = built(pnd.PerNodeDense(5, RATE, sharing="sample+time", seed=SEED), x.shape)
    y = host(shared(x, training=True))
    np.testing.assert_array_equal(y, host(per_node(x, training=True)))
    kernel, bias = map(host, shared.layer.get_weights())
    np.testing.assert_allclose(y, x @ (kernel * kept(1, 6, 5)[0] / KEEP) + bias, atol=1e-5)


@pytest.mark.parametrize("sharing", ["time", "sample+time"])
@pytest.mark.parametrize("scaling", ["inverted", "none"])
def test_bias_of_a_convolution_is_masked_per_sample_or_batch(sharing, scaling):
    x = inputs(4, 7, 3)
    layer = pnd.DropConnect(keras.layers.Conv1D(5, 2), RATE, sharing, mask_bias=True, scaling=scaling, seed=SEED)
    kernel, bias = map(host, built(layer, x.shape).layer.get_weights())
    bits = kept(4, 7, 5, sharing=sharing) / (KEEP if scaling == "inverted" else 1)
    patches = np.stack([x[:, i : i + 2].reshape(4, 6) for i in range(6)], axis=1)
    y = np.einsum("bti,io,bio->bto", patches, kernel.reshape(6, 5), bits[:, :6]) + bits[:, 6:] * bias
    np.testing.assert_allclose(host(layer(x, training=True)), y, atol=1e-5)


def test_bias_of_groups_and_of_einsum_has_the_row_after_the_kernel_s_last():
    x = inputs(4, 3, 6)
    einsum = keras.layers.EinsumDense("abc,cde->abde", output_shape=(None, 2, 4), bias_axes="de")
    layer = pnd.DropConnect(einsum, RATE, "time", mask_bias=True, seed=SEED)
    kernel, bias = map(host, built(layer, x.shape).layer.get_weights())
    bits = kept(4, 7, 8).reshape(4, 7, 2, 4) / KEEP
    y = np.einsum("abc,cde,acde->abde", x, kernel, bits[:, :6]) + (bits[:, 6] * bias)[:, None]
    np.testing.assert_allclose(host(layer(x, training=True)), y, atol=1e-5)

    depthwise = pnd.DropConnect(
        keras.layers.DepthwiseConv1D(2, depth_multiplier=2, depthwise_initializer="zeros"),
        RATE,
        "time",
        mask_bias=True,
        seed=SEED,
    )
    bias = built(depthwise, x.shape).layer.bias
    depthwise.layer.kernel.assign(host(depthwise.layer.kernel) * 0)
    masked = host(bias) * kept(4, 13, 12)[:, 12] / KEEP
    y = host(depthwise(x, training=True))
    np.testing.assert_allclose(y, np.broadcast_to(masked[:, None], y.shape), atol=1e-5)


@needs_gradients
@pytest.mark.parametrize("inner", [keras.layers.Dense, lambda n: keras.layers.Conv1D(n, 1)], ids=["dense", "conv"])
def test_gradients_of_kernel_and_bias_have_each_example_s_own_bits(inner):
    x = inputs(4, 6)
    is_dense = inner is keras.layers.Dense
    layer = published(inner(5), (4, 6) if is_dense else (4, 1, 6))
    upstream = np.random.default_rng(2).normal(size=(4, 5)).astype("float32")

    def product(kernel, bias):
        given = x if is_dense else x[:, None]
        weights = [kernel if is_dense else keras.ops.expand_dims(kernel, 0), bias]
        state = [v.value for v in layer.non_trainable_variables]
        y, _ = layer.stateless_call(weights, state, keras.ops.convert_to_tensor(given), training=True, key=(SEED, 0))
        return keras.ops.reshape(y, (4, 5))

    kernel, bias = (host(w) for w in layer.layer.get_weights())
    _, (dk, db) = value_and_gradients(product, kernel.reshape(6, 5), bias, upstream=upstream)
    bits = kept(4, 7, 5)
    np.testing.assert_allclose(dk, np.einsum("bi,bo,bio->io", x, upstream, bits[:, :6]), atol=1e-5)
    np.testing.assert_allclose(db, (upstream * bits[:, 6]).sum(axis=0), atol=1e-5)


def test_gaussian_inference_is_the_mean_over_the_normals_of_its_key():
    layer = published(keras.layers.Dense(5, activation="relu"), (4, 6), inference_samples=70)
    x = inputs(4, 6)
    kernel, bias = map(host, layer.layer.get_weights())
    mean = KEEP * (x @ kernel + bias)
    spread = np.sqrt(RATE * KEEP * (x**2 @ kernel**2 + bias**2))
    draws = mean + spread * numpy_normals(70, 5)[:, None]
    np.testing.assert_allclose(host(layer(x)), np.maximum(draws, 0).mean(axis=0), atol=1e-5)


@pytest.mark.parametrize(("scaling", "scale"), [("inverted", 1 / KEEP), ("none", 1.0)])
@pytest.mark.parametrize("mask_bias", [False, True])
def test_gaussian_inference_estimates_the_mean_activation(scaling, scale, mask_bias):
    """Its error is that of 4096 draws, at 6 standard deviations of relu(N), which are below those of N.

    The key is fixed; at a random one the false-alarm rate would be 20 * 2e-9.
    """
    kwargs = {"mask_bias": mask_bias, "scaling": scaling, "inference": "gaussian", "inference_samples": 4096}
    layer = pnd.DropConnect(keras.layers.Dense(5, activation="relu"), RATE, seed=SEED, **kwargs)
    x = inputs(4, 6)
    kernel, bias = map(host, built(layer, x.shape).layer.get_weights())
    of_bias = bias if mask_bias else 0 * bias
    mean = scale * KEEP * (x @ kernel + of_bias) + (bias - of_bias)
    spread = scale * np.sqrt(RATE * KEEP * (x**2 @ kernel**2 + of_bias**2))
    error = np.abs(host(layer(x)) - mean_of_relu(mean, spread))
    assert (error < 6 * spread / np.sqrt(4096)).all()
    assert (mean_of_relu(mean, spread) - np.maximum(mean, 0) > 12 * spread / np.sqrt(4096)).any()  # else it says little


@pytest.mark.parametrize(
    ("inner", "shape"),
    [
        (lambda act: keras.layers.Conv2D(4, 2, activation=act, groups=2), (2, 4, 5, 2)),
        (lambda act: keras.layers.DepthwiseConv2D(2, activation=act, padding="same"), (2, 4, 5, 2)),
        (lambda act: keras.layers.EinsumDense("abc,cde->abde", (None, 2, 4), act, bias_axes="de"), (2, 4, 5)),
    ],
    ids=["conv", "depthwise", "einsum"],
)
def test_gaussian_inference_of_other_layers_has_their_variance(inner, shape):
    """The variance is the plain layer's output with all inputs and weights squared; the bound is that of 1024 draws.

    It is 6 standard deviations of them. The key is fixed; at a random one the false-alarm rate would be 128 * 2e-9.
    """
    layer, x = published(inner("relu"), shape, inference_samples=1024), inputs(*shape)
    plain = inner(None)
    plain.build(shape)
    plain.set_weights(layer.layer.get_weights())
    mean = KEEP * host(plain(x))
    plain.set_weights([w**2 for w in layer.layer.get_weights()])
    spread = np.sqrt(RATE * KEEP * host(plain(x**2)))
    error = np.abs(host(layer(x)) - mean_of_relu(mean, spread))
    assert (error < 6 * spread / np.sqrt(1024)).all()
    assert (mean_of_relu(mean, spread) - np.maximum(mean, 0) > 9 * spread / np.sqrt(1024)).any()


def test_a_gaussian_prediction_does_not_depend_on_its_batch_nor_on_what_was_trained_between():
    layer = published(keras.layers.Dense(5, activation="relu"), (4, 6))
    x = inputs(4, 6)
    y = host(layer(x))
    layer(x, training=True)
    np.testing.assert_allclose(host(layer(x[[2, 0]])), y[[2, 0]], atol=1e-6)
    np.testing.assert_array_equal(host(layer(x)), y)


def test_gaussian_inference_of_a_linear_layer_is_the_mean():
    x = inputs(4, 6)
    layer = published(keras.layers.Dense(5), x.shape)
    y = KEEP * host(layer.layer(x))
    np.testing.assert_allclose(host(layer(x)), y, atol=1e-5)
    np.testing.assert_allclose(host(layer.fold()(x)), y, atol=1e-5)


def test_keep_at_inference_is_that_of_the_next_update():
    rate = pnd.schedules.Step([0.0, 0.75], [2])
    layer = built(pnd.DropConnect(keras.layers.Dense(5), rate, scaling="none", seed=SEED), (4, 6))
    x = inputs(4, 6)
    layer.layer.bias.assign(np.zeros(5))
    plain = host(layer.layer(x))
    for keep in (1, 1, 0.25):
        np.testing.assert_allclose(host(layer(x)), keep * plain, atol=1e-6)
        layer(x, training=True)
    fixed = built(pnd.DropConnect(keras.layers.Dense(5), 0.0, scaling="none", seed=SEED), (4, 6))
    fixed.layer.bias.assign(np.zeros(5))
    fixed.rate = 0.5
    np.testing.assert_allclose(host(fixed(x)), 0.5 * plain, atol=1e-6)


@pytest.mark.parametrize("mask_bias", [False, True])
def test_pretrained_weights_that_are_scaled_predict_what_they_did(mask_bias):
    layer = pnd.DropConnect(keras.layers.Dense(5), RATE, mask_bias=mask_bias, scaling="none", seed=SEED)
    x = inputs(4, 6)
    before = host(built(layer, x.shape).layer(x))
    layer.scale_pretrained()
    np.testing.assert_allclose(host(layer(x)), before, atol=1e-5)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: pnd.DropConnect(keras.layers.Dense(3), 0.5, (), mask_bias=True), r"`sharing`.*'time' beside"),
        (lambda: pnd.DropConnect(keras.layers.Dense(3), mask_bias="no"), r"`mask_bias`.*True or False"),
        (lambda: pnd.DropConnect(keras.layers.Dense(3), scaling="inverse"), r"`scaling`.*did you mean 'inverted'"),
        (lambda: pnd.DropConnect(keras.layers.Dense(3), inference="gausian"), r"`inference`.*did you mean 'gaussian'"),
        (lambda: pnd.DropConnect(keras.layers.Dense(3), inference_samples=0), r"`inference_samples`.*int from 1"),
        (lambda: pnd.DropConnect(keras.layers.Dense(3)).scale_pretrained(), r"`scaling`.*'none'"),
        (lambda: pnd.DropConnect(keras.layers.Dense(3), scaling="none").scale_pretrained(), r"`layer`.*built"),
        (lambda: published(keras.layers.Dense(3, "relu"), (2, 3)).fold(), r"`inference`.*'mean' to be folded"),
        (lambda: published(transposing(), (3, 3, 2))(inputs(3, 3, 2), training=True), r"`layer`.*batch letter first"),
    ],
)
def test_what_cannot_be_is_refused_by_name(act, words):
    with pytest.raises((TypeError, ValueError), match=words):
        act()

"""Noise on convolutions, against sums written out position by position."""

import itertools
import math

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.backends import methods
from pernodedrop.layers.base.convolution import Convolution
from tests import noises
from tests.family import first_call
from tests.frameworks import XP, needs_gradients, needs_training, tensor, value_and_gradients

BACKEND = keras.backend.backend()
NOISE = pnd.Bernoulli(0.5)
CONTINUOUS = pnd.PartialGaussian(0.4, 0.7), noises.Laplace(0.3)

LAYERS = {
    "conv1d": (lambda **kw: keras.layers.Conv1D(4, 3, **kw), (2, 9, 3)),
    "conv1d_causal": (lambda **kw: keras.layers.Conv1D(4, 3, padding="causal", dilation_rate=2, **kw), (2, 9, 3)),
    "conv2d": (lambda **kw: keras.layers.Conv2D(4, (3, 2), **kw), (2, 6, 5, 3)),
    "conv2d_same": (lambda **kw: keras.layers.Conv2D(4, 3, padding="same", strides=2, **kw), (2, 6, 5, 3)),
    "conv2d_dilated": (lambda **kw: keras.layers.Conv2D(4, 3, dilation_rate=2, padding="same", **kw), (2, 6, 7, 3)),
    "conv2d_groups": (lambda **kw: keras.layers.Conv2D(6, 3, groups=2, **kw), (2, 5, 5, 4)),
    "conv2d_groups_strided": (lambda **kw: keras.layers.Conv2D(4, 2, strides=2, groups=2, **kw), (2, 7, 4, 6)),
    "conv3d": (lambda **kw: keras.layers.Conv3D(3, 2, **kw), (2, 3, 4, 3, 2)),
    "depthwise1d": (lambda **kw: keras.layers.DepthwiseConv1D(3, depth_multiplier=2, **kw), (2, 7, 3)),
    "depthwise2d_dilated": (
        lambda **kw: keras.layers.DepthwiseConv2D(2, depth_multiplier=3, dilation_rate=2, **kw),
        (2, 5, 4, 2),
    ),
    "depthwise2d": (lambda **kw: keras.layers.DepthwiseConv2D(3, strides=2, padding="same", **kw), (2, 5, 6, 4)),
}
each_layer = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)


def host(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def inputs(shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def padded(x, layer):
    """x with the zeros that Keras documents, and the sizes of the output."""
    widths, sizes = [(0, 0)], []
    for n, k, s, d in zip(x.shape[1:-1], layer.kernel_size, layer.strides, layer.dilation_rate, strict=True):
        reach = (k - 1) * d + 1
        if layer.padding == "same":
            size = math.ceil(n / s)
            total = max((size - 1) * s + reach - n, 0)
            widths.append((total // 2, total - total // 2))
        else:
            widths.append((reach - 1, 0) if layer.padding == "causal" else (0, 0))
            size = (n + sum(widths[-1]) - reach) // s + 1
        sizes.append(size)
    return np.pad(x, [*widths, (0, 0)]), sizes


def convolution(x, layer, mask):
    """The sums themselves: mask (batch, position of the output, in, out), in row-major over (group, place, channel)."""
    kernel = host(layer.kernel).astype("float64")
    channels = x.shape[-1]
    depthwise = hasattr(layer, "depth_multiplier")
    groups = channels if depthwise else layer.groups
    x, sizes = padded(x.astype("float64"), layer)
    places = list(itertools.product(*(range(k) for k in layer.kernel_size)))
    within = 1 if depthwise else channels // groups
    outputs = kernel.shape[-1] * (channels if depthwise else 1)
    y = np.zeros((len(x), *sizes, outputs))
    for position, at in enumerate(itertools.product(*(range(n) for n in sizes))):
        for group, (number, place), channel in itertools.product(range(groups), enumerate(places), range(within)):
            where = [a * s + p * d for a, s, p, d in zip(at, layer.strides, place, layer.dilation_rate, strict=True)]
            seen = x[(slice(None), *where, group * within + channel)]
            row = (group * len(places) + number) * within + channel
            each = outputs // groups
            for out in range(each):
                w = kernel[(*place, group, out)] if depthwise else kernel[(*place, channel, group * each + out)]
                y[(slice(None), *at, group * each + out)] += seen * w * mask[:, position, row, out]
    return y


def mask_of(layer, shape, sharing=None):
    """The mask at the first key of seed 1, for an input of `shape`."""
    x = np.zeros(shape, "float32")
    _, sizes = padded(x, layer)
    depthwise = hasattr(layer, "depth_multiplier")
    groups = shape[-1] if depthwise else layer.groups
    inputs_ = math.prod(layer.kernel_size) * shape[-1]
    outputs = layer.depth_multiplier if depthwise else layer.filters // groups
    full = (shape[0], math.prod(sizes), inputs_, outputs)
    return pnd.ops.sample_mask(NOISE, (1, 0), full, sharing=sharing, backend="numpy")


@pytest.mark.parametrize(
    ("name", "sharing"),
    [
        *((name, "time") for name in LAYERS),
        *(
            (name, sharing)
            for name in ("conv2d_groups", "depthwise2d")
            for sharing in ((), "sample+time", "out", "time+in")
        ),
    ],
    ids=str,
)
def test_noisy_convolution_is_the_sum_over_its_mask(name, sharing):
    make, shape = LAYERS[name]
    inner, x = make(bias_initializer="normal", activation="tanh"), inputs(shape)
    layer = pnd.PerNodeDrop(inner, noise=NOISE, sharing=sharing, seed=1)
    layer.build(shape)
    expected = np.tanh(convolution(x, inner, mask_of(inner, shape, sharing)) + host(inner.bias))
    y = first_call(layer, x)
    assert y.shape == tuple(layer.compute_output_shape(shape))
    np.testing.assert_allclose(y, expected, atol=2e-5)


@pytest.mark.parametrize("half", ["float16"] if BACKEND == "numpy" else ["float16", "bfloat16"])
@pytest.mark.parametrize("sharing", ["time", ()], ids=str)
@pytest.mark.parametrize("name", ["conv2d_groups", "depthwise2d"])
def test_half_precision_rounds_the_sum_once(name, sharing, half):
    """Of an input and a kernel that it has exactly."""
    make, shape = LAYERS[name]
    inner, x = make(use_bias=False, dtype=f"mixed_{half}"), np.round(8 * inputs(shape)) / 8
    layer = pnd.PerNodeDrop(inner, noise=NOISE, sharing=sharing, seed=1, dtype=f"mixed_{half}")
    layer.build(shape)
    inner.kernel.assign(np.round(8 * inputs(inner.kernel.shape)) / 8)
    mask = mask_of(inner, shape, sharing)
    wanted, y = convolution(x, inner, mask), first_call(layer, x)
    inner.kernel.assign(abs(host(inner.kernel)))
    size = convolution(abs(x), inner, mask)
    rounding = {"float16": 2**-11, "bfloat16": 2**-8}[half]
    assert (abs(y.astype("float64") - wanted) <= 1.01 * rounding * abs(wanted) + 2**-20 * size).all()


@pytest.mark.parametrize(("shared", "size"), [("in", (1, 3)), ("out", (36, 1))])
def test_entries_that_a_convolution_shares_are_made_once(shared, size, monkeypatch):
    made, masked = [], XP.masked

    def spy(w, grid):
        made.append((grid.in_.shape[0], grid.out.shape[0]))
        return masked(w, grid)

    monkeypatch.setattr(XP, "masked", spy)
    make, shape = LAYERS["conv2d_groups"]
    pnd.PerNodeDrop(make(), noise=NOISE, sharing=f"time+{shared}", seed=1)(inputs(shape), training=True)
    assert set(made) == {size}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("sharing", ["time", (), "sample+time"], ids=str)
@pytest.mark.parametrize("name", ["conv2d_same", "depthwise2d"])
def test_nan_and_infinity_show_where_a_window_has_them_dropped_or_not(name, sharing, value):
    make, shape = LAYERS[name]
    inner, x = make(), inputs(shape)
    layer = pnd.PerNodeDrop(inner, sharing=sharing, seed=1)
    layer.build(shape)
    x[1].flat[13] = value
    with np.errstate(invalid="ignore"):
        wanted = convolution(x, inner, mask_of(inner, shape, sharing))
        got = first_call(layer, x)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(wanted))


def with_kernel(layer):
    """A call of a layer at one key as a function of its input and its kernel."""
    layer.build(layer.layer.get_build_config()["input_shape"])

    def run(x, kernel):
        with keras.StatelessScope(state_mapping=[(layer.layer.kernel, kernel)]):
            return layer(x, training=True, key=tensor(np.array([1, 0], "int32")))

    return run


@needs_gradients
@pytest.mark.parametrize(
    ("name", "noise"),
    [*((name, NOISE) for name in LAYERS), *(("conv2d_groups", noise) for noise in CONTINUOUS)],
    ids=str,
)
def test_gradients_are_those_of_the_product_with_the_mask_in_memory(name, noise):
    make, shape = LAYERS[name]
    inner = make()
    inner.build(shape)
    arguments = inputs(shape), host(inner.kernel)
    upstream = inputs(inner.compute_output_shape(shape))
    results = [
        value_and_gradients(
            with_kernel(pnd.PerNodeDrop(inner, noise=noise, seed=1, method=method)), *arguments, upstream=upstream
        )
        for method in ("auto", "materialized")
    ]
    for got, wanted in zip(*([y, *gradients] for y, gradients in results), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.mark.only_backend(
    "tensorflow", reason="its gradients are this library's own, those of the others the framework's"
)
@pytest.mark.parametrize("name", ["conv2d_same", "conv2d_groups", "depthwise1d"])
def test_gradients_can_be_differentiated(name):
    import tensorflow as tf

    make, shape = LAYERS[name]
    inner = make()
    inner.build(shape)
    x, kernel = tf.constant(inputs(shape)), tf.constant(host(inner.kernel))
    found = []
    for method in ("auto", "materialized"):
        run = with_kernel(pnd.PerNodeDrop(inner, noise=NOISE, seed=1, method=method))
        with tf.GradientTape() as outer:
            outer.watch((x, kernel))
            with tf.GradientTape() as tape:
                tape.watch((x, kernel))
                y = tf.reduce_sum(run(x, kernel) ** 3)
            dx, dw = tape.gradient(y, (x, kernel))
            z = tf.reduce_sum(dx**2) + tf.reduce_sum(dw**2)
        found.append([tf.convert_to_tensor(g) for g in outer.gradient(z, (x, kernel))])
    for got, wanted in zip(*found, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3 * abs(wanted).numpy().max())


@pytest.mark.only_backend("jax", reason="TensorFlow's are above, and torch has no forward mode through Keras")
def test_a_forward_mode_and_a_hessian_are_those_of_the_product_with_the_mask_in_memory():
    import jax

    make, shape = LAYERS["depthwise1d"]
    inner = make()
    inner.build(shape)
    x, kernel = inputs(shape), inner.kernel.value

    def derivatives(method):
        run = with_kernel(pnd.PerNodeDrop(inner, noise=NOISE, seed=1, method=method))

        def loss(kernel):
            return (run(x, kernel) ** 3).sum()

        return jax.jvp(lambda kernel: run(x, kernel), (kernel,), (kernel + 1,)), jax.hessian(loss)(kernel)

    of_each = jax.jit(derivatives, static_argnums=0)  # op by op it would be 170 programs
    found, wanted = (jax.tree.leaves(of_each(method)) for method in ("auto", "materialized"))
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["conv2d", "depthwise2d"])
def test_kernels_that_would_take_too_much_memory_are_not_made(name, monkeypatch):
    """Nor where each position has a mask of its own, or there is one position only: by patches it is the same."""
    make, shape = LAYERS[name]
    inner, x = make(), inputs(shape)
    wanted = first_call(pnd.PerNodeDrop(inner, noise=NOISE, seed=1), x)
    monkeypatch.setattr(methods, "has_kernels", lambda *_: False)
    np.testing.assert_allclose(first_call(pnd.PerNodeDrop(inner, noise=NOISE, seed=1), x), wanted, atol=1e-5)


CHOICES = [
    ((1, 288, 32), (16, 16), "time", 32, True),
    ((1, 288, 32), (16, 16), "time", None, True),
    ((32, 9, 1), (16, 16), "time", 32, True),  # depthwise
    ((1, 288, 32), (16, 16), "time+out", 32, True),
    ((1, 4608, 512), (28, 28), "time", 128, True),  # 1.2 GB, and the patches 1.8 GB
    ((1, 4608, 512), (7, 7), "time", 128, False),  # 1.2 GB, and the patches 0.1 GB
    ((1, 4608, 512), (7, 7), "time", None, False),
    ((1, 4608, 512), (7, 7), "time", 4, True),
    ((1, 288, 32), (1, 1), "time", 32, False),  # a Dense layer
    ((1, 288, 32), (16, 16), "", 32, False),
    ((1, 288, 32), (16, 16), "sample", 32, False),
    ((1, 288, 32), (16, 16), "sample+time", 32, False),
]


@pytest.mark.once
@pytest.mark.parametrize(("kernel", "outputs", "sharing", "rows", "kernels"), CHOICES, ids=str)
def test_auto_makes_kernels_where_they_are_faster_and_small_enough(kernel, outputs, sharing, rows, kernels):
    window = methods.Window((3, 3), (1, 1), (1, 1), outputs)
    shared = pnd.mask.parse_sharing(sharing or ())
    assert methods.has_kernels(kernel, window, shared, rows) is kernels


@each_layer
def test_inference_is_the_inner_layer_and_so_is_rate_0(make, shape):
    inner, x = make(), inputs(shape)
    layer = pnd.PerNodeDrop(inner, rate=0.0, seed=1)
    np.testing.assert_array_equal(host(layer(x)), host(inner(x)))
    np.testing.assert_allclose(first_call(layer, x), host(inner(x)), atol=1e-5)


@each_layer
@pytest.mark.parametrize("regime", ["dynamic", "fixed"])
def test_folded_convolution_computes_the_same_at_inference(make, shape, regime):
    layer, x = pnd.PerNodeDrop(make(), noise=NOISE, regime=regime, seed=1), inputs(shape)
    y = host(layer(x))
    plain = layer.fold()
    assert type(plain) is type(layer.layer)
    np.testing.assert_allclose(host(plain(x)), y, atol=1e-6)
    if regime == "fixed":
        np.testing.assert_allclose(
            y, convolution(x, layer.layer, mask_of(layer.layer, shape, "sample+time")), atol=2e-5
        )


@pytest.mark.skip_backend("tensorflow", reason="TensorFlow's convolutions on a CPU have their channels last")
@pytest.mark.parametrize("sharing", ["time", "sample+time"])
def test_channels_first_is_channels_last_moved(sharing):
    x = inputs((2, 6, 5, 3))
    first, last = (
        pnd.PerNodeDrop(
            keras.layers.Conv2D(4, 3, data_format=f"channels_{place}"), noise=NOISE, sharing=sharing, seed=1
        )
        for place in ("first", "last")
    )
    y = first_call(last, x)
    first.build((2, 3, 6, 5))
    first.layer.set_weights(last.layer.get_weights())
    moved = first_call(first, np.moveaxis(x, -1, 1))
    np.testing.assert_allclose(np.moveaxis(moved, 1, -1), y, atol=1e-5)


@needs_training
@pytest.mark.parametrize("name", ["conv2d_same", "depthwise2d", "conv1d_causal"])
def test_noisy_convolutions_train_in_fit(name):
    make, shape = LAYERS[name]
    x = np.concatenate([inputs(shape)] * 10)
    model = keras.Sequential([keras.Input(shape[1:]), pnd.PerNodeDrop(make(), 0.2, seed=1), keras.layers.Flatten()])
    model.compile(keras.optimizers.Adam(0.03), "mse")
    y = np.zeros((len(x), model.output_shape[-1]))
    history = model.fit(x, y, batch_size=8, epochs=4, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_lora_of_a_convolution_has_noise_too():
    inner, x = keras.layers.Conv2D(4, 3), inputs((2, 5, 5, 3))
    inner.build(x.shape)
    inner.enable_lora(2)
    inner.lora_kernel_b.assign(np.random.default_rng(1).normal(size=inner.lora_kernel_b.shape))
    for sharing in ("time", "sample+time"):
        layer = pnd.PerNodeDrop(inner, noise=NOISE, sharing=sharing, seed=1)
        expected = convolution(x, inner, mask_of(inner, x.shape, sharing))
        np.testing.assert_allclose(first_call(layer, x), expected, atol=2e-5)


def test_a_size_that_only_the_run_knows_is_refused():
    inner = keras.layers.Conv1D(4, 3)
    with pytest.raises(ValueError, match=r"`inputs`.*known sizes"):
        Convolution(inner).operands(keras.KerasTensor((2, None, 3)), [])

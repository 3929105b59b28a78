"""NoiseInjection against its formula in NumPy, with the words of the reference."""

import keras
import numpy as np
import pytest
from scipy import special

import pernodedrop as pnd
from pernodedrop.layers.weight.noise_injection import NoiseInjection
from tests.frameworks import needs_training
from tests.reference import bits

BACKEND = keras.backend.backend()
SEED = 1
ONES = keras.initializers.Ones()


def host(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def normal(samples, times=1, call=0):
    """Standard normal numbers of a call, (sample, time)."""
    u = ((bits(SEED, call, (samples, times, 1, 1))[:, :, 0, 0] >> 9) + 0.5) / 2**23
    return special.ndtri(u)


def test_dense_layer_has_a_number_a_sample_with_a_weight_a_unit_before_bias_and_activation():
    x = inputs(4, 6)
    layer = NoiseInjection(keras.layers.Dense(5, activation="tanh"), stddev=0.7, seed=SEED)
    layer.build(x.shape)
    layer.layer.bias.assign(np.arange(5.0))
    w = host(layer.noise_kernel)
    assert w.shape == (1, 5)
    for call in range(2):
        z = x @ host(layer.layer.kernel) + 0.7 * normal(4, call=call) * w + np.arange(5)
        np.testing.assert_allclose(host(layer(x, training=True)), np.tanh(z), atol=1e-5)
    np.testing.assert_allclose(host(layer(x, training=True, key=(SEED, 1))), np.tanh(z), atol=1e-5)
    assert layer.updates == 2


def test_dense_layer_on_positions_has_a_number_for_each():
    x = inputs(3, 2, 4, 6)
    layer = NoiseInjection(keras.layers.Dense(5), seed=SEED)
    layer.build(x.shape)
    e = normal(3, 8).reshape(3, 2, 4, 1)
    expected = x @ host(layer.layer.kernel) + e * host(layer.noise_kernel)[0]
    np.testing.assert_allclose(host(layer(x, training=True)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (keras.layers.Conv1D(3, 2, activation="relu"), (4, 6, 2)),
        (keras.layers.Conv2D(3, 3, strides=2, padding="same", activation="relu"), (4, 5, 6, 2)),
        (keras.layers.Conv3D(2, 2), (2, 3, 4, 3, 2)),
    ],
)
def test_convolution_has_a_number_a_sample_with_a_weight_for_each_entry_of_its_input(conv, shape):
    x = inputs(*shape)
    layer = NoiseInjection(conv, stddev=2.0, seed=SEED)
    layer.build(x.shape)
    w = host(layer.noise_kernel)
    assert w.shape == (1, np.prod(shape[1:]))
    e = 2.0 * normal(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    expected = host(layer.layer((x + e * w.reshape(shape[1:])).astype("float32")))
    np.testing.assert_allclose(host(layer(x, training=True)), expected, atol=1e-4)
    np.testing.assert_array_equal(host(layer(x)), host(layer.layer(x)))


def test_weights_start_with_variance_1():
    """The mean square of 2**14 of them is within 6 of its standard deviations: false-alarm rate below 1e-7."""
    layer = NoiseInjection(keras.layers.Dense(2**14, kernel_initializer="zeros"), seed=SEED)
    layer.build((None, 1))
    assert abs((host(layer.noise_kernel) ** 2).mean() - 1) < 6 * np.sqrt(2 / 2**14)


def test_samples_have_the_numbers_of_their_ids():
    x = np.zeros((3, 2), "float32")
    layer = NoiseInjection(keras.layers.Dense(1), initializer=ONES, seed=SEED)
    y = host(layer(x, training=True, sample_ids=np.array([5, 0, 5])))
    np.testing.assert_allclose(y, normal(6)[[5, 0, 5]], atol=1e-5)


def test_another_noise_gives_its_entries_less_their_mean():
    class Lucky(pnd.Noise):
        mean = 3.0
        variance = 4 / 3

        def from_uniform(self, u, params, xp):
            return 1 + 4 * u

    x = np.zeros((500, 2), "float32")
    layer = NoiseInjection(keras.layers.Dense(1), noise=Lucky(), initializer=ONES, seed=SEED)
    y = host(layer(x, training=True))
    u = ((bits(SEED, 0, (500, 1, 1))[:, 0] >> 9) + 0.5) / 2**23
    np.testing.assert_allclose(y, 4 * u - 2, atol=1e-5)


def test_rate_is_that_of_a_normal_number_and_can_be_set():
    x = np.zeros((4, 2), "float32")
    layer = NoiseInjection(keras.layers.Dense(1), 0.2, initializer=ONES, seed=SEED)
    np.testing.assert_allclose(host(layer(x, training=True)), 0.5 * normal(4), atol=1e-5)
    layer.rate = 0.8
    np.testing.assert_allclose(host(layer(x, training=True)), 2 * normal(4, call=1), atol=1e-5)
    assert NoiseInjection.from_config(layer.get_config()).rate == 0.8
    assert NoiseInjection(keras.layers.Dense(1)).noise.variance == 1


@pytest.mark.parametrize("noise", ["gaussian", pnd.Gaussian(0.5)])
def test_rate_follows_its_schedule_by_training_calls(noise):
    x = np.zeros((4, 2), "float32")
    schedule = pnd.schedules.Step([0.0, 0.2, 0.5], [1, 2])
    layer = NoiseInjection(keras.layers.Dense(1), schedule, noise, initializer=ONES, seed=SEED)
    again = NoiseInjection.from_config(layer.get_config())
    assert again.schedule == schedule
    for each in (layer, again):
        for call, stddev in enumerate((0.0, 0.5, 1.0)):
            np.testing.assert_allclose(host(each(x, training=True)), stddev * normal(4, call=call), atol=1e-5)


@needs_training
@pytest.mark.parametrize("scheduled", [False, True])
def test_rate_takes_effect_in_a_compiled_step(scheduled):
    """The loss of a batch is the mean square of its noise."""
    x = np.zeros((4, 2), "float32")
    rate = pnd.schedules.Step([0.2, 0.8], [1]) if scheduled else 0.2
    layer = NoiseInjection(keras.layers.Dense(1), rate, initializer=ONES, seed=SEED)
    model = keras.Sequential([keras.Input((2,)), layer])
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=BACKEND == "jax")
    for call, stddev in enumerate((0.5, 2.0)):
        if call and not scheduled:
            layer.rate = 0.8
        loss = model.train_on_batch(x, np.zeros((4, 1)))
        np.testing.assert_allclose(float(host(loss)), stddev**2 * (normal(4, call=call) ** 2).mean(), rtol=1e-4)


@needs_training
def test_weights_of_the_node_are_trained_and_learn_the_noise_away():
    layer = NoiseInjection(keras.layers.Dense(1), initializer=ONES, seed=SEED)
    model = keras.Sequential([keras.Input((2,)), layer])
    model.compile(keras.optimizers.SGD(0.2), "mse", jit_compile=BACKEND == "jax")
    x = inputs(64, 2)
    y = x @ np.array([[1.0], [-2.0]], "float32")
    for _ in range(40):
        model.train_on_batch(x, y)
    assert any(weight is layer.noise_kernel for weight in layer.trainable_weights)
    assert abs(host(layer.noise_kernel)[0, 0]) < 0.01
    np.testing.assert_allclose(host(layer.layer.kernel), [[1.0], [-2.0]], atol=0.01)


def test_expected_square_error_is_the_plain_one_plus_the_variance_along_the_weights():
    """The mean of 2**16 squares is within 6 of its standard deviations: false-alarm rate 2e-9."""
    layer = NoiseInjection(keras.layers.Dense(3), stddev=0.5, seed=SEED)
    x = np.tile(inputs(1, 4), (2**16, 1))
    layer.build(x.shape)
    losses = ((host(layer(x, training=True)) - 1.0) ** 2).sum(axis=1)
    plain = ((host(layer(x[:1])) - 1.0) ** 2).sum()
    expected = plain + 0.5**2 * (host(layer.noise_kernel) ** 2).sum()  # the Hessian of the loss is 2, half of it is 1
    assert abs(losses.mean() - expected) < 6 * losses.std() / 2**8


def test_fold_is_a_copy_of_the_inner_layer():
    layer, x = NoiseInjection(keras.layers.Dense(3, activation="relu"), seed=SEED), inputs(4, 5)
    layer.build(x.shape)
    plain = layer.fold()
    assert type(plain) is keras.layers.Dense
    np.testing.assert_array_equal(host(plain(x)), host(layer(x)))


def test_config_keeps_the_noise_and_the_initializer():
    layer = NoiseInjection(keras.layers.Dense(3), noise=pnd.Uniform(half_width=0.3), initializer="zeros", seed=SEED)
    again = NoiseInjection.from_config(layer.get_config())
    assert again.noise == pnd.Uniform(half_width=0.3)
    assert isinstance(again.initializer, keras.initializers.Zeros)
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NoiseInjection(keras.layers.DepthwiseConv1D(3)), r"`layer`.*Dense, Conv1D"),
        (lambda: NoiseInjection(keras.layers.Dense(3), stddev=-1.0), r"`stddev`.*from zero"),
        (lambda: NoiseInjection(keras.layers.Dense(3), noise=pnd.Gaussian(0.5), stddev=0.5), r"`stddev`.*own numbers"),
        (lambda: NoiseInjection(keras.layers.Dense(3), noise="uniform", stddev=0.5), r"`stddev`.*'uniform'"),
        (lambda: NoiseInjection(keras.layers.Dense(3), rate=0.2, stddev=0.5), r"`stddev`.*rate=0.2"),
        (lambda: NoiseInjection(keras.layers.Dense(3), 0.5, pnd.Gaussian(0.5)), r"`rate`.*brings its own numbers"),
        (lambda: NoiseInjection(keras.layers.Dense(3), rate=1.0), r"`rate`.*1.0"),
        (lambda: NoiseInjection(keras.layers.Dense(3), noise="gauss"), r"`noise`.*did you mean 'gaussian'"),
        (lambda: NoiseInjection(keras.layers.Dense(3), method="auto"), "'method'"),
        (lambda: NoiseInjection(keras.layers.Conv1D(3, 3)).build((None, None, 2)), r"`inputs`.*known sizes"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()

"""Predictions with the noise left on: which layers make noise, what the numbers are, and what is left behind."""

import copy
import random
import threading

import keras
import numpy as np
import pytest
import scipy.sparse
import scipy.stats

import pernodedrop as pnd
from pernodedrop import uncertainty
from pernodedrop.internals import of_keras
from pernodedrop.layers.base.noisy import Noisy
from pernodedrop.uncertainty import prediction

BACKEND = keras.backend.backend()
SEED = 5


def host(tensor):
    return np.array(keras.ops.convert_to_numpy(tensor))


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def chain(*layers, shape=(6,)):
    return keras.Sequential([keras.Input(shape), *layers])


def softmax(units=3):
    return keras.layers.Dense(units, activation="softmax", kernel_initializer="random_normal")


def values(model):
    return [host(variable) for variable in model.variables]


def key(sample, index=0):
    """The key of pass `sample` in the layer of this library at place `index`."""
    return (prediction.word_of(SEED, index, sample), 0)


def mask(sample, shape, index=0, **kwargs):
    return pnd.ops.sample_mask(pnd.Bernoulli(0.5), key(sample, index), shape, backend="numpy", **kwargs)


@pytest.mark.parametrize("batch_size", [3, 7, 100])
def test_passes_are_those_of_the_known_masks_whatever_the_batch_size(batch_size):
    drop, noisy = pnd.Dropout(0.5, seed=1), pnd.PerNodeDense(4, seed=1)
    model, x = chain(drop, noisy), inputs(7, 6)
    found = uncertainty.predict(model, x, 9, seed=SEED, batch_size=batch_size, keep=True)
    order = [layer for layer in of_keras.layers_of(model) if isinstance(layer, Noisy)]
    kernel = host(noisy.layer.kernel).astype("float64")
    expected = []
    for sample in range(9):
        dropped = x * mask(sample, (7, 6, 1), order.index(drop))[:, :, 0]
        expected.append(np.einsum("bi,io,bio->bo", dropped, kernel, mask(sample, (7, 6, 4), order.index(noisy))))
    np.testing.assert_allclose(found.outputs, expected, atol=1e-5)
    np.testing.assert_allclose(found.mean, np.mean(expected, 0), atol=1e-5)
    np.testing.assert_allclose(found.variance, np.var(expected, 0), atol=1e-5)
    assert (found.samples, found.seed, found.mean.dtype) == (9, SEED, "float64")


def test_a_mask_without_a_sample_coordinate_is_one_for_all_batches():
    layer, x = pnd.DropConnect(keras.layers.Dense(4), seed=1), inputs(7, 6)
    found = uncertainty.predict(chain(layer), x, 2, seed=SEED, batch_size=3, keep=True)
    for sample, y in enumerate(found.outputs):
        one = mask(sample, (1, 6, 4), sharing="sample")[0]
        np.testing.assert_allclose(y, x @ (host(layer.layer.kernel) * one), atol=1e-5)
    one_row = chain(pnd.Dropout(0.5, noise_shape=(1, None), seed=1))
    y = uncertainty.predict(one_row, np.ones((7, 6), "float32"), 2, batch_size=3, keep=True).outputs
    assert (y == y[:, :1]).all()


def test_rows_that_are_several_a_sample_have_masks_of_their_own():
    """Equal masks of two rows of 64 entries, of 28 rows: below 28**2 / 2**65 < 1e-16."""
    model = chain(keras.layers.Reshape((2, 64)), shape=(128,))
    model.add(keras.layers.Lambda(lambda x: keras.ops.reshape(x, (-1, 64)), output_shape=(64,)))
    model.add(pnd.Dropout(0.5, seed=1))
    model.add(keras.layers.Lambda(lambda x: keras.ops.reshape(x, (-1, 128)), output_shape=(128,)))
    ones = np.ones((7, 128), "float32")
    small, large = (
        uncertainty.predict(model, ones, 2, seed=SEED, batch_size=size, keep=True).outputs for size in (3, 7)
    )
    np.testing.assert_array_equal(small, large)
    assert len(np.unique(small.reshape(-1, 64), axis=0)) == 28


NOISE_OF_KERAS = {
    "dropout": ((6,), lambda: keras.layers.Dropout(0.5)),
    "dropout_with_seed": ((6,), lambda: keras.layers.Dropout(0.5, seed=3)),
    "gaussian_dropout": ((6,), lambda: keras.layers.GaussianDropout(0.5)),
    "gaussian_noise": ((6,), lambda: keras.layers.GaussianNoise(0.5)),
    "alpha_dropout": ((6,), lambda: keras.layers.AlphaDropout(0.5)),
    "spatial_1d": ((4, 6), lambda: keras.layers.SpatialDropout1D(0.5)),
    "spatial_2d": ((2, 4, 6), lambda: keras.layers.SpatialDropout2D(0.5)),
    "lstm_in_another": ((4, 6), lambda: keras.layers.RNN(keras.layers.LSTMCell(16, dropout=0.5))),
    "recurrent": ((4, 6), lambda: keras.layers.SimpleRNN(16, recurrent_dropout=0.5)),
    "conv_lstm": ((4, 5, 6), lambda: keras.layers.ConvLSTM1D(2, 3, dropout=0.5)),
}


@pytest.mark.parametrize(("shape", "make"), NOISE_OF_KERAS.values(), ids=NOISE_OF_KERAS)
def test_noise_of_keras_differs_by_pass_and_batch_and_comes_again_from_its_seed(shape, make):
    model = chain(make(), keras.layers.Flatten(), shape=shape)
    x = np.repeat(inputs(1, *shape), 4, 0)
    before = values(model)
    found, again = (uncertainty.predict(model, x, 3, seed=1, batch_size=2, keep=True) for _ in range(2))
    np.testing.assert_array_equal(found.outputs, again.outputs)
    assert (found.variance.max(-1) > 0).all()
    assert not np.allclose(found.mean[:2], found.mean[2:])
    for now, then in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_dropout_inside_attention_is_on():
    x = keras.Input((4, 6))
    y = keras.layers.MultiHeadAttention(2, 3, dropout=0.5)(x, x)
    z = keras.layers.Attention(dropout=0.5)([x, x])
    found = uncertainty.predict(keras.Model(x, keras.layers.Concatenate()([y, z])), inputs(3, 4, 6), 3)
    assert (found.variance.max((0, 1)) > 0).all()


def test_everything_else_is_in_inference_and_stays_as_it_was():
    norm = keras.layers.BatchNormalization()
    model, x = chain(pnd.Dropout(0.5, seed=1), norm, keras.layers.Dropout(0.25)), inputs(7, 6)
    norm.moving_mean.assign(np.arange(6.0)), norm.moving_variance.assign(np.full(6, 4.0))
    model.layers[2].rate = 0.0  # Keras' rate is read at each trace: a noise layer that does nothing
    before = values(model)
    found = uncertainty.predict(model, x, 2, seed=SEED, keep=True)
    for sample, y in enumerate(found.outputs):
        expected = (x * mask(sample, (7, 6, 1))[:, :, 0] - np.arange(6)) / np.sqrt(4 + norm.epsilon)
        np.testing.assert_allclose(y, expected, atol=1e-5)
    for now, then in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(now, then)


class Block(keras.layers.Layer):
    """A layer with others in it, whose `call` takes no `training`, and which counts how often Python runs it."""

    def __init__(self):
        super().__init__()
        self.inside = [pnd.Dropout(0.5, seed=1), keras.layers.Dropout(0.5)]
        self.norm = keras.layers.BatchNormalization(momentum=0.0)
        self.calls = 0

    def call(self, x):
        self.calls += 1
        for layer in self.inside:
            x = layer(x)
        return self.norm(x)


class Subclassed(keras.Model):
    """A model of one block that is in training unless told otherwise, and is built when it is first called."""

    def __init__(self):
        super().__init__()
        self.block = Block()

    def call(self, x, training=True):
        return self.block(x)


def nested():
    x = keras.Input((6,))
    return keras.Model(x, chain(chain(Block()))(x))


@pytest.mark.parametrize("make", [Subclassed, nested])
def test_models_of_all_kinds_are_traced_once_with_a_ragged_last_batch(make):
    model, x = make(), inputs(7, 6)
    model(x, training=False)
    (block,) = (layer for layer in of_keras.layers_of(model) if isinstance(layer, Block))
    before, block.calls = values(model), 0
    found = uncertainty.predict(model, x, 5, batch_size=3)
    assert block.calls == (1 if BACKEND in ("jax", "tensorflow") else 15)
    assert found.mean.shape == (7, 6)
    assert (found.variance > 0).any()
    for now, then in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_model_that_was_never_called_is_built():
    assert (uncertainty.predict(Subclassed(), inputs(7, 6), 3).variance > 0).any()


class Student(keras.Model):
    """A model that adds its own noise, which is off, to what its teacher says, told to be in inference or not."""

    def __init__(self, **told):
        super().__init__()
        self.told, self.own = told, pnd.Dropout(0.5, seed=2)
        self.teacher = chain(keras.layers.Dropout(0.5, seed=1), pnd.Dropout(0.5, seed=3), Block())

    def call(self, x, training=None):
        return 0 * self.own(x, training=training) + self.teacher(x, **self.told)


@pytest.mark.parametrize(("told", "noisy"), [({}, True), ({"training": True}, True), ({"training": False}, False)])
def test_what_a_model_calls_in_inference_makes_noise_in_passes_as_in_training(told, noisy):
    """As a call in training does. By chance all of 4 x 6 entries are as without noise: below 1e-6."""
    model, x = Student(**told), np.ones((4, 6), "float32")
    quiet = host(model.teacher(x, training=False))
    model.teacher.layers[-1].norm.trainable = False  # which has training calls of it use its moving statistics
    assert np.array_equal(host(model(x, training=True)), quiet) != noisy
    before = values(model)
    passes = uncertainty.predict(model, x, 4, seed=1, keep=True).outputs if noisy else []
    if not noisy:
        with pytest.warns(UserWarning, match="passes were equal"):
            passes = uncertainty.predict(model, x, 4, seed=1, keep=True).outputs
    for y in passes:
        assert np.array_equal(y.astype("float32"), quiet) != noisy
    for now, then in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("told", [None, True, False])
def test_normalization_is_in_inference_whoever_has_noise_inside(told):
    """Unless the model itself says that it trains."""

    class Whole(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.drop, self.norm = pnd.Dropout(0.5, seed=1), keras.layers.BatchNormalization(epsilon=0.0)

        def call(self, x, training=None):
            told_norm = training if told is None else told
            return 0 * self.drop(x, training=training) + self.norm(x, training=told_norm)

    model, x = chain(Whole()), inputs(64, 6)
    model.layers[0].norm.moving_variance.assign(np.full(6, 4.0))
    expected = (x - x.mean(0)) / x.std(0) if told else x / 2
    with pytest.warns(UserWarning, match="passes were equal"):
        found = uncertainty.predict(model, x, 2, batch_size=64)
    np.testing.assert_allclose(found.mean, expected, atol=1e-4)
    np.testing.assert_array_equal(host(model.layers[0].norm.moving_variance), np.full(6, 4.0))


@pytest.mark.only_backend("torch", reason="modules of torch run on torch only")
def test_dropout_of_torch_is_noise_and_comes_again_from_its_seed():
    """Each value is 0 or doubled. That the share of zeros of 2400 is off by 6 deviations has a probability of 2e-9."""
    import torch

    drop, norm = torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(6, affine=False, eps=0.0)
    norm.running_var.fill_(4.0)
    inside = torch.nn.Sequential(norm, torch.nn.Sequential(drop))
    layer = keras.layers.TorchModuleWrapper(inside, output_shape=(None, 6))
    model, x = chain(layer), np.ones((40, 6), "float32")
    layer.module.train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found, again = (uncertainty.predict(model, x, 10, seed=1, keep=True) for _ in range(2))
    np.testing.assert_array_equal(found.outputs, again.outputs)
    assert set(np.unique(found.outputs)) == {0.0, 1.0}  # 1 / 2 by normalization, doubled
    assert abs((found.outputs == 0).mean() - 0.5) < 6 * 0.5 / 2400**0.5
    assert len(np.unique(found.outputs.reshape(-1, 240)[:, :192], axis=0)) == 10
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in layer.module.modules())
    assert not drop._forward_pre_hooks
    np.testing.assert_array_equal(norm.running_var, np.full(6, 4.0))
    with pytest.raises(ValueError, match="with noise layers"):
        uncertainty.predict(chain(keras.layers.TorchModuleWrapper(norm, output_shape=(None, 6))), x)


@pytest.mark.only_backend("torch", reason="modules of torch run on torch only")
@pytest.mark.parametrize("kind", ["attention", "encoder", "lstm"])
def test_dropout_inside_modules_of_torch_is_found(kind):
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            if kind == "attention":
                self.inside = torch.nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=True)
            elif kind == "encoder":
                self.inside = torch.nn.TransformerEncoderLayer(6, 2, 8, dropout=0.5, batch_first=True)
            else:
                self.inside = torch.nn.LSTM(6, 6, num_layers=2, dropout=0.5, batch_first=True)

        def forward(self, x):
            y = self.inside(x, x, x) if kind == "attention" else self.inside(x)
            return y[0] if isinstance(y, tuple) else y

    model = chain(keras.layers.TorchModuleWrapper(Module(), output_shape=(None, 4, 6)), shape=(4, 6))
    found, again = (uncertainty.predict(model, inputs(3, 4, 6), 3, seed=1) for _ in range(2))
    assert (found.variance.max((1, 2)) > 0).all()
    np.testing.assert_array_equal(found.mean, again.mean)


class Interrupts(keras.layers.Layer):
    """Fails after the noise before it was made."""

    fails = False

    def call(self, x):
        if self.fails:
            raise KeyboardInterrupt
        return x


def test_an_interrupted_prediction_leaves_the_model_as_it_was():
    drop, of_keras, last = pnd.Dropout(0.5, seed=1), keras.layers.Dropout(0.5), Interrupts()
    model, x = chain(drop, of_keras, last, keras.layers.Dense(2)), inputs(4, 6)
    drop(x, training=True), of_keras(x, training=True)
    before = values(model)
    last.fails = True
    with pytest.raises(KeyboardInterrupt):
        uncertainty.predict(model, x, 3, seed=1)
    last.fails = False
    for now, then in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(now, then)
    np.testing.assert_array_equal(host(drop(x)), x)  # they are themselves again
    assert not any("call" in vars(layer) for layer in (drop, of_keras))
    assert of_keras.seed_generator._initial_seed is None
    assert host(drop.draw()).tolist() == [1, 1]


class Waits(keras.layers.Layer):
    """Stops its first call in a pass until a function has run in another thread."""

    meanwhile = None

    def call(self, x, training=None):
        if self.meanwhile is not None:
            run, self.meanwhile = self.meanwhile, None
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
        return x


def test_other_threads_call_the_model_as_it_is_while_passes_are_made():
    drop, wait, norm = pnd.Dropout(0.5, seed=1), Waits(), keras.layers.Dropout(0.5, seed=2)
    model, x, seen = chain(wait, drop, norm), np.ones((4, 64), "float32"), []
    model = chain(wait, drop, norm, shape=(64,))
    alone = uncertainty.predict(model, x, 3, seed=SEED).mean
    wanted = pnd.Dropout(0.5, seed=1)(x, training=True)
    wait.meanwhile = lambda: seen.extend([host(model(x, training=False)), host(drop(x, training=True))])
    found = uncertainty.predict(model, x, 3, seed=SEED).mean
    np.testing.assert_array_equal(found, alone)
    np.testing.assert_array_equal(seen[0], x)
    np.testing.assert_array_equal(seen[1], host(wanted))
    assert host(drop.draw()).tolist() == [1, 1]


def test_predictions_in_threads_are_those_of_one_after_the_other():
    first, second = chain(pnd.Dropout(0.5, seed=1), keras.layers.Dropout(0.5)), chain(pnd.Dropout(0.25, seed=1))
    whole, x = keras.Sequential([keras.Input((6,)), first, second]), inputs(5, 6)
    work = [(model, seed) for model in (whole, first, second) for seed in (1, 2)]
    expected = [uncertainty.predict(model, x, 5, seed=seed).mean for model, seed in work]
    before, found = values(whole), {}

    def run(index):
        model, seed = work[index]
        found[index] = uncertainty.predict(model, x, 5, seed=seed).mean

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal([found[index] for index in range(len(work))], expected)
    assert not any("call" in vars(layer) for layer in of_keras.layers_of(whole))
    for now, then in zip(values(whole), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.skip_backend("numpy", reason="Keras cannot train on NumPy")
def test_a_model_in_training_is_predicted_with_or_refused_and_trains_on():
    """From its data, which come in moments of the training that are like any in another thread."""
    told, ends, x = [], [], inputs(8, 6)

    def data(model, predicts):
        for _ in range(6):
            if predicts:
                try:
                    uncertainty.predict(model, x, 2, seed=1)
                except RuntimeError as error:
                    told.append(str(error))
            yield x, x[:, :2]

    for predicts in (False, True):
        keras.utils.set_random_seed(1)
        model = chain(pnd.Dropout(0.5, seed=1), keras.layers.Dense(2))
        model.compile("sgd", "mse")
        model.fit(data(model, predicts), steps_per_epoch=6, shuffle=False, verbose=0)
        ends.append(values(model))
    for alone, beside in zip(*ends, strict=True):
        np.testing.assert_array_equal(alone, beside)
    assert bool(told) == (BACKEND == "jax")
    assert all("The model is in training" in text for text in told)


def test_an_interrupted_prediction_leaves_no_mask_in_a_recurrent_cell():
    """There Keras keeps the mask of a pass for all its steps, and would use it in the next call."""

    class Fails(keras.layers.SimpleRNNCell):
        def call(self, *args, **kwargs):
            super().call(*args, **kwargs)
            raise KeyboardInterrupt

    cell = Fails(4, dropout=0.5)
    with pytest.raises(KeyboardInterrupt):
        uncertainty.predict(model := chain(keras.layers.RNN(cell), shape=(5, 6)), inputs(3, 5, 6), 2)
    assert not any("call" in vars(layer) for layer in of_keras.layers_of(model))
    assert (cell._dropout_mask, cell._recurrent_dropout_mask) == (None, None)


@pytest.mark.skip_backend("numpy", reason="Keras cannot rematerialize on NumPy")
@pytest.mark.parametrize("mode", ["full", "list_of_layers"])
def test_layers_that_are_rematerialized_in_training_make_the_noise_of_others(mode):
    with keras.RematScope(mode, layer_names=["drop", "dense"]):
        layers = [pnd.Dropout(0.5, seed=1, name="drop"), pnd.PerNodeDense(4, seed=1, name="dense")]
    model, plain, x = chain(*layers), chain(pnd.Dropout(0.5, seed=1), pnd.PerNodeDense(4, seed=1)), inputs(4, 6)
    plain.set_weights(model.get_weights())
    found, wanted = (uncertainty.predict(each, x, 3, seed=SEED, keep=True) for each in (model, plain))
    np.testing.assert_allclose(found.outputs, wanted.outputs, atol=1e-6)
    assert all(layer._remat_mode.mode == mode for layer in layers)
    with keras.RematScope("full"):
        inside = uncertainty.predict(model, x, 3, seed=SEED, keep=True)
    np.testing.assert_array_equal(inside.outputs, found.outputs)


class Counting(pnd.Dropout):
    """Adds the number of its training calls."""

    def build(self, shape):
        self.count = self.add_weight(initializer="zeros", trainable=False)

    def call(self, x, training=None):
        if training:
            self.count.assign(self.count + 1)
        return x + self.count


def test_what_a_layer_counts_in_training_starts_each_pass_where_training_left_it():
    layer = Counting(0.5)
    model = chain(layer)
    layer.count.assign(10.0)
    with pytest.warns(UserWarning, match="All 3 passes were equal"):
        found = uncertainty.predict(model, np.zeros((3, 6), "float32"), 3, batch_size=2, keep=True)
    np.testing.assert_array_equal(found.outputs, np.full((3, 3, 6), 11.0))
    assert host(layer.count) == 10


@pytest.mark.parametrize("built", [True, False])
def test_passes_of_a_stateful_network_start_from_the_state_of_the_model(built):
    """By the model itself, whose state is put back before each of its calls."""
    gru, drop, dense = keras.layers.GRU(5, stateful=True), pnd.Dropout(0.5, seed=1), keras.layers.Dense(2)
    model, x = keras.Sequential([gru, drop, dense]), inputs(4, 5, 3)
    if built:
        model(x)
    state = host(gru.states[0]) if built else np.zeros((4, 5))
    found, again = (uncertainty.predict(model, x, 3, seed=SEED, batch_size=4, keep=True) for _ in range(2))
    np.testing.assert_array_equal(found.outputs, again.outputs)
    np.testing.assert_array_equal(host(gru.states[0]), state)
    hidden = host(gru(x))
    expected = [dense(hidden * mask(sample, (4, 5, 1))[:, :, 0]) for sample in range(3)]
    np.testing.assert_allclose(found.outputs, list(map(host, expected)), atol=1e-5)


def test_a_schedule_is_where_training_left_it():
    layer = pnd.Dropout(pnd.schedules.Step([0.0, 0.5], [4]), seed=1)
    model, x = chain(layer), np.ones((3, 6), "float32")
    layer._key.assign([1, 3])
    with pytest.warns(UserWarning, match=r"All 4 passes were equal.*schedule"):
        assert set(np.unique(uncertainty.predict(model, x, 4, seed=1, keep=True).outputs)) == {1.0}
    assert uncertainty.predict(model, x, 1, seed=1).variance.max() == 0  # without a warning
    layer._key.assign([1, 4])
    assert set(np.unique(uncertainty.predict(model, x, 4, seed=1, keep=True).outputs)) == {0.0, 2.0}


def test_a_layer_without_a_gradient_to_follow_is_warned_of_and_then_makes_noise():
    layer = pnd.DynamicDropConnect(keras.layers.Dense(4), base_rate=0.0, gradient_rate=0.9, seed=1)
    model, x = chain(layer), inputs(3, 6)
    with pytest.warns(UserWarning, match=r"passes were equal.*DynamicDropConnect"):
        uncertainty.predict(model, x, 4, seed=1)
    layer.gradient.assign(np.abs(inputs(2, 6, 4)))
    assert uncertainty.predict(model, x, 4, seed=1).variance.max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "tenure"), [(0.5, 3), (0.2, 1)])
def test_tabu_dropout_is_unbiased_in_every_unit_whatever_was_dropped_in_training(rate, tenure):
    """In each pass a unit is 0 with probability q = p / (1 + tenure * p), else 1 / (1 - q), independently.

    The zeros of a unit in 400 passes are binomial. That one of the 300 units, or their sum, is outside its bounds has a
    probability of at most 1e-6, by the union bound. The mean of a unit is (1 - zeros / 400) / (1 - q).
    """
    units, samples, q = 300, 400, rate / (1 + tenure * rate)
    layer = pnd.TabuDropout(rate, tenure=tenure, seed=1)
    model, x = chain(layer, shape=(units,)), np.ones((1, units), "float32")
    for _ in range(5):
        layer(x, training=True)
    before = host(layer._safe)
    assert (before > 0).any()
    found = uncertainty.predict(model, x, samples, seed=SEED, keep=True)
    zeros = (found.outputs[:, 0] == 0).sum(0)
    np.testing.assert_allclose(found.mean[0], (1 - zeros / samples) / (1 - q), rtol=1e-5)
    for counts, trials in ((zeros, samples), (zeros.sum(), samples * units)):
        tail = 1e-6 / 2 / (units + 1)
        least, most = scipy.stats.binom.ppf([tail, 1 - tail], trials, q)
        assert (counts >= least).all()
        assert (counts <= most).all()
    np.testing.assert_array_equal(host(layer._safe), before)


def test_weights_are_the_very_tensors_they_were():
    """A step that is given them to overwrite, as in JAX Keras' own is, loses them where it is interrupted."""
    dense = keras.layers.Dense(2)
    model = chain(pnd.Dropout(0.5), dense)
    before = dense.kernel.value
    uncertainty.predict(model, inputs(4, 6), 2)
    assert dense.kernel.value is before


def test_each_draw_in_a_pass_is_another():
    """A layer used twice. Equal masks of 64 entries: 2**-64 each, 3 passes."""
    x, drop = keras.Input((64,)), pnd.Dropout(0.5, seed=1)
    model = keras.Model(x, keras.layers.Concatenate()([drop(x), drop(x)]))
    found = uncertainty.predict(model, np.ones((1, 64), "float32"), 3, keep=True)
    for row in found.outputs[:, 0]:
        assert (row[:64] != row[64:]).any()


@pytest.mark.parametrize("dropout", [pnd.Dropout, keras.layers.Dropout])
def test_siblings_and_neighbouring_seeds_have_masks_of_their_own(dropout):
    """12 masks of 64 entries. Two of them equal: below 12**2 / 2**65 < 1e-17."""
    x = keras.Input((64,))
    model = keras.Model(x, keras.layers.Concatenate()([dropout(0.5, seed=1)(x), dropout(0.5, seed=1)(x)]))
    ones = np.ones((1, 64), "float32")
    masks = [uncertainty.predict(model, ones, 3, seed=seed, keep=True).outputs for seed in (1, 2)]
    assert len(np.unique(np.reshape(masks, (12, 64)), axis=0)) == 12


def test_the_seed_is_that_of_python_by_default_and_is_told():
    model, x = chain(pnd.Dropout(0.5)), inputs(3, 6)
    found = uncertainty.predict(model, x, 3)
    again = uncertainty.predict(model, x, 3, seed=found.seed)
    np.testing.assert_array_equal(found.mean, again.mean)
    random.seed(1)
    assert found.seed != uncertainty.predict(model, x, 1).seed == random.Random(1).getrandbits(32)


def bank(units, members, seed=1):
    return pnd.PerNodeDense(units, regime="bank", bank_size=members, seed=seed)


def test_members_of_banks_are_averaged_exactly():
    two, three = bank(5, 2), bank(4, 3)
    model, x = chain(two, three), inputs(7, 6)
    found = uncertainty.predict(model, x, batch_size=3, keep=True)
    first = pnd.ops.sample_mask(pnd.Bernoulli(0.5), (1, 0), (2, 6, 5), backend="numpy")
    second = pnd.ops.sample_mask(pnd.Bernoulli(0.5), (1, 0), (3, 5, 4), backend="numpy")
    expected = [
        x @ (host(two.layer.kernel) * first[s % 2]) @ (host(three.layer.kernel) * second[s % 3]) for s in range(6)
    ]
    np.testing.assert_allclose(found.outputs, expected, atol=1e-5)
    np.testing.assert_allclose(found.mean, np.mean(expected, 0), atol=1e-5)
    np.testing.assert_allclose(found.variance, np.var(expected, 0), atol=1e-5)


@keras.saving.register_keras_serializable("tests")
class Members(Noisy):
    """An ensemble of constants, by the attribute `members`, that leaves the ids alone."""

    members = 4

    def __init__(self, **kwargs):
        super().__init__(mask=pnd.Mask(pnd.Bernoulli(0.5), regime="example"), **kwargs)

    def call(self, x, training=None, sample_ids=None):
        assert not training
        return x if sample_ids is None else 0 * x + keras.ops.cast(sample_ids % self.members, x.dtype)[:, None]


def test_a_layer_says_by_an_attribute_that_it_has_members():
    found = uncertainty.predict(chain(Members()), inputs(3, 6), keep=True)
    np.testing.assert_array_equal(found.outputs, np.broadcast_to(np.arange(4.0)[:, None, None], (4, 3, 6)))


def test_samples_treat_members_alike_by_default():
    x = inputs(1, 6)
    assert uncertainty.predict(chain(bank(2, 3), pnd.Dropout(0.5)), x).samples == 51
    assert uncertainty.predict(chain(pnd.Dropout(0.5)), x).samples == 50
    assert uncertainty.predict(chain(bank(2, 3)), x, 4).samples == 4


def test_ids_of_a_model_are_kept_in_the_example_regime_and_its_masks_are_fresh():
    x, ids = keras.Input((6,), name="x"), keras.Input((), dtype="int32", name="ids")
    layer = pnd.PerNodeDense(4, regime="example", seed=1)
    model, data, own = keras.Model({"x": x, "ids": ids}, layer(x, sample_ids=ids)), inputs(4, 6), np.array([5, 5, 6, 7])
    found = uncertainty.predict(model, {"x": data, "ids": own}, 2, seed=SEED, batch_size=3, keep=True)
    for sample, y in enumerate(found.outputs):
        masks = mask(sample, (8, 6, 4))[own]
        np.testing.assert_allclose(y, np.einsum("bi,io,bio->bo", data, host(layer.layer.kernel), masks), atol=1e-5)


def test_several_inputs_and_arrays_of_the_backend_are_taken():
    a, b = keras.Input((6,)), keras.Input((6,))
    model, x = keras.Model([a, b], pnd.Dropout(0.5)(keras.layers.Add()([a, b]))), inputs(5, 6)
    found = uncertainty.predict(model, [x, keras.ops.convert_to_tensor(x)], 3, seed=SEED, batch_size=2)
    alone = uncertainty.predict(chain(pnd.Dropout(0.5)), 2 * x, 3, seed=SEED)
    np.testing.assert_allclose(found.mean, alone.mean, atol=1e-6)


def data_of_tensorflow(x):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(x).batch(3)


def data_of_torch(x):
    import torch

    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.from_numpy(x)), batch_size=3)


class Batches(keras.utils.PyDataset):
    """Batches of three samples with targets and weights."""

    def __init__(self, x):
        super().__init__()
        self.x = x

    def __len__(self):
        return -(-len(self.x) // 3)

    def __getitem__(self, index):
        rows = self.x[3 * index : 3 * index + 3]
        return rows, rows[:, 0], np.ones(len(rows))


DATA = {
    "csr": scipy.sparse.csr_matrix,
    "coo_array": scipy.sparse.coo_array,
    "py_dataset": Batches,
    "generator": lambda x: (x[start : start + 3] for start in range(0, 7, 3)),
    "iterator_of_pairs": lambda x: iter([(x[:2], x[:2, 0]), (x[2:], x[2:, 0])]),
    "dicts": lambda x: ({"x": x[start : start + 3]} for start in range(0, 7, 3)),
    "tf_data": data_of_tensorflow,
    "torch_loader": data_of_torch,
}


@pytest.mark.parametrize("make", DATA.values(), ids=DATA)
def test_whatever_a_model_predicts_is_taken_and_its_batches_are_not_seen(make):
    if make in (data_of_tensorflow, data_of_torch) and make.__name__ != f"data_of_{BACKEND}":
        pytest.skip("frameworks are tested in processes of their own")
    x = keras.Input((6,), name="x")
    layer = pnd.PerNodeDense(3, seed=1)
    model, data = keras.Model({"x": x}, layer(x)) if make is DATA["dicts"] else chain(layer), np.abs(inputs(7, 6))
    found = uncertainty.predict(model, make(data), 3, seed=SEED, keep=True)
    masks = [mask(sample, (7, 6, 3)) for sample in range(3)]
    expected = [np.einsum("bi,io,bio->bo", data, host(layer.layer.kernel), one) for one in masks]
    np.testing.assert_allclose(found.outputs, expected, atol=1e-5)


def test_batches_build_a_model_and_their_number_is_shown_if_known(capsys):
    model = keras.Sequential([keras.layers.Dense(3), pnd.Dropout(0.5)])
    assert uncertainty.predict(model, Batches(inputs(7, 6)), 2, verbose=1).mean.shape == (7, 3)
    assert "6/6" in capsys.readouterr().out
    uncertainty.predict(model, iter([inputs(7, 6)]), 2, verbose=1)
    assert "Unknown" in capsys.readouterr().out


class Endless(Batches):
    num_batches = None


def entropies(p):
    """By SciPy, of (passes, samples, classes)."""
    whole, part = scipy.stats.entropy(p.mean(0), axis=-1), scipy.stats.entropy(p, axis=-1).mean(0)
    modes = scipy.stats.mode(p.argmax(-1), axis=0)
    return whole, part, whole - part, 1 - modes.count / len(p)


def check_entropies(found, p):
    ours = found.predictive_entropy, found.aleatoric, found.mutual_information, found.variation_ratio
    for own, other in zip(ours, entropies(p), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-6)
    np.testing.assert_allclose(found.predictive_entropy - found.aleatoric, found.mutual_information, atol=1e-12)
    assert (found.mutual_information >= 0).all()


@pytest.mark.parametrize("shape", [(6,), (4, 6)])
def test_entropies_are_those_of_scipy(shape):
    model = chain(keras.layers.Rescaling(9.0), pnd.Dropout(0.5), softmax(), shape=shape)
    found = uncertainty.predict(model, inputs(7, *shape), 10, batch_size=3, keep=True)
    assert found.predictive_entropy.shape == (7, *shape[:-1])
    assert found.variation_ratio.max() > 0
    check_entropies(found, found.outputs)


def test_logits_are_made_probabilities():
    model, x = chain(pnd.Dropout(0.5), keras.layers.Dense(3)), inputs(7, 6)
    logits = uncertainty.predict(model, x, 10, seed=1, keep=True).outputs
    found = uncertainty.predict(model, x, 10, seed=1, from_logits=True, keep=True)
    np.testing.assert_allclose(found.outputs, scipy.special.softmax(logits, -1), atol=1e-12)
    check_entropies(found, found.outputs)


@pytest.mark.parametrize("squeezed", [False, True])
def test_one_output_is_the_probability_of_the_second_class(squeezed):
    model, x = chain(pnd.Dropout(0.5), keras.layers.Dense(1), keras.layers.Rescaling(5.0)), inputs(7, 6)
    if squeezed:
        model.add(keras.layers.Lambda(lambda x: x[:, 0], output_shape=()))
    logits = uncertainty.predict(model, x, 10, seed=1, keep=True).outputs
    found = uncertainty.predict(model, x, 10, seed=1, from_logits=True, keep=True)
    p = scipy.special.expit(logits.reshape(10, 7))
    np.testing.assert_allclose(found.outputs.reshape(10, 7), p, atol=1e-12)
    check_entropies(found, np.stack([1 - p, p], -1))
    model.add(keras.layers.Activation("sigmoid"))
    check_entropies(uncertainty.predict(model, x, 10, seed=1), np.stack([1 - p, p], -1))


def test_certain_probabilities_have_no_entropy():
    found = prediction.Statistics(keep=False)
    for _ in range(3):
        found.add(np.array([[0.0, 1.0], [0.5, 0.5]]))
    np.testing.assert_allclose(found.result()["predictive_entropy"], [0, np.log(2)], atol=1e-15)
    np.testing.assert_array_equal(found.result()["mutual_information"], [0, 0])
    np.testing.assert_array_equal(found.result()["variance"], np.zeros((2, 2)))


def test_entropies_are_those_of_the_values_unless_the_call_says_what_outputs_are():
    """A regression whose outputs happen to be in [0, 1] looks like a probability."""
    model = chain(pnd.Dropout(0.5), keras.layers.Dense(1, activation="sigmoid"))
    assert uncertainty.predict(model, inputs(7, 6), 3).predictive_entropy.shape == (7,)
    assert uncertainty.predict(model, inputs(7, 6), 3, probabilities=True).predictive_entropy.shape == (7,)
    for no in (False, np.False_):
        found = uncertainty.predict(model, inputs(7, 6), 3, probabilities=no)
        assert not any(hasattr(found, name) for name in prediction.OF_PROBABILITIES)
        assert (found.variance > 0).any()


@pytest.mark.parametrize("activation", ["linear", "sigmoid"])
def test_outputs_that_are_no_probabilities_have_no_entropies(activation):
    model = chain(pnd.Dropout(0.5), keras.layers.Dense(3, activation=activation))
    found = uncertainty.predict(model, inputs(7, 6), 3)
    assert not any(hasattr(found, name) for name in prediction.OF_PROBABILITIES)
    with pytest.raises(AttributeError, match=r"no mutual_information.*not probabilities.*from_logits=True"):
        np.argsort(found.mutual_information)
    with pytest.raises(ValueError, match=r"`y`.*\(7, 3\): outputs are no probabilities.*from_logits=True"):
        found.report(np.zeros(7, int))
    with pytest.raises(ValueError, match=r"`by`.*from_logits=True"):
        found.disagreements()
    assert repr(copy.copy(found)) == repr(found)
    assert found.outputs is None
    assert (found.variance > 0).any()


def test_half_precision_outputs_are_probabilities():
    model = chain(pnd.Dropout(0.5, dtype="mixed_bfloat16"), keras.layers.Dense(10, "softmax", dtype="mixed_bfloat16"))
    assert uncertainty.predict(model, inputs(7, 6), 3).predictive_entropy.shape == (7,)


def test_progress_is_shown_when_asked_for(capsys):
    model = chain(pnd.Dropout(0.5))
    uncertainty.predict(model, inputs(7, 6), 3, batch_size=4)
    assert capsys.readouterr().out == ""
    uncertainty.predict(model, inputs(7, 6), 3, batch_size=4, verbose=1)
    assert "6/6" in capsys.readouterr().out


AROUND = {
    "zoneout": lambda inner: pnd.Zoneout(inner, 0.0, seed=2, name="outer"),
    "noisy_rnn": lambda inner: pnd.NoisyRNN(inner, 0.0, kernels=("kernel",), seed=2, name="outer"),
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("layers", [None, ["inner"], ["outer"]])
def test_recurrent_noise_inside_another_which_is_quiet_is_that_of_the_layer_alone(around, layers):
    def inner():
        return pnd.NoisyRNN(keras.layers.GRU(3), 0.5, seed=1, name="inner")

    alone = keras.Sequential([keras.Input((5, 4)), inner()])
    nested = keras.Sequential([keras.Input((5, 4)), AROUND[around](inner())])
    pnd.copy_weights(alone, nested)
    x, arguments = inputs(3, 5, 4), {"samples": 4, "seed": 1, "probabilities": False}
    wanted = uncertainty.predict(alone, x, **arguments)
    found = uncertainty.predict(nested, x, layers=layers, **arguments)
    assert found.variance.min() > 0
    np.testing.assert_allclose(found.mean, wanted.mean, atol=1e-6)
    np.testing.assert_allclose(found.variance, wanted.variance, atol=1e-6)


@pytest.mark.parametrize("around", AROUND)
def test_recurrent_noise_around_another_which_is_not_chosen_stays_in_inference(around):
    """Masks of the inner one alone, next to rate 0, leave passes equal."""
    layer = AROUND[around](pnd.NoisyRNN(keras.layers.GRU(3), 0.5, seed=1, name="inner"))
    model, x = keras.Sequential([keras.Input((5, 4)), layer]), inputs(3, 5, 4)
    layer.rate = 0.5
    arguments = {"samples": 4, "seed": 1, "probabilities": False}
    assert uncertainty.predict(model, x, layers=["inner"], **arguments).variance.min() > 0
    layer.layer.rate = 2.0**-24
    with pytest.warns(UserWarning, match="passes were equal"):
        uncertainty.predict(model, x, layers=["inner"], **arguments)


class Nested(Subclassed):
    """A model with an output inside of another."""

    def call(self, x):
        return [x, [self.block(x)]]


NAMED = {"class": softmax(), "value": keras.layers.Dense(1), "normal": keras.layers.Dense(4)}


def outputs_by_name(kind):
    """A dict or list of outputs behind one noise layer, and a model of each."""
    x = keras.Input((6,))
    y = pnd.Dropout(0.5, seed=1)(x)
    outputs = {name: layer(y) for name, layer in NAMED.items()}
    return keras.Model(x, kind(outputs)), {name: keras.Model(x, output) for name, output in outputs.items()}


@pytest.mark.parametrize("kind", [dict, lambda outputs: list(outputs.values())], ids=["dict", "list"])
def test_several_outputs_have_a_prediction_each(kind):
    model, alone = outputs_by_name(kind)
    options = {"probabilities": {"class": None, "value": False, "normal": None}}
    options |= {"gaussian": {"class": False, "value": False, "normal": True}}
    given = {argument: kind(value) for argument, value in options.items()}
    whole = uncertainty.predict(model, inputs(7, 6), 3, seed=SEED, batch_size=4, keep=True, **given)
    assert type(whole) is type(kind(NAMED))
    for place, name in enumerate(NAMED):
        found = whole[name] if isinstance(whole, dict) else whole[place]
        each = {argument: value[name] for argument, value in options.items()}
        expected = uncertainty.predict(alone[name], inputs(7, 6), 3, seed=SEED, keep=True, **each)
        assert {*vars(found)} == {*vars(expected)}
        for one in {"mean", "variance", "aleatoric", "outputs"} & {*vars(expected)}:
            np.testing.assert_allclose(getattr(found, one), getattr(expected, one), atol=1e-6)
    with pytest.raises(ValueError, match=r"`gaussian`.*one for each of the outputs"):
        uncertainty.predict(model, inputs(7, 6), 3, gaussian={"class": True})


def test_normal_distributions_have_a_variance_of_their_own_beside_that_of_passes():
    model, x = chain(pnd.Dropout(0.5), keras.layers.Dense(4)), inputs(7, 6)
    found = uncertainty.predict(model, x, 9, seed=SEED, batch_size=4, gaussian=True, keep=True)
    plain = uncertainty.predict(model, x, 9, seed=SEED, keep=True).outputs
    means, variances = plain[..., :2], np.exp(plain[..., 2:])
    np.testing.assert_allclose(found.outputs, plain, atol=1e-6)
    np.testing.assert_allclose(found.mean, means.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.variance, means.var(0), atol=1e-6)
    np.testing.assert_allclose(found.aleatoric, variances.mean(0), rtol=1e-5)
    y = means[0] + 0.1
    law = scipy.stats.norm(means.mean(0), np.sqrt(means.var(0) + variances.mean(0)))
    report = found.report(y)
    assert report["gaussian_nll"] == pytest.approx(-law.logpdf(y).mean(), rel=1e-5)
    assert report["width_90"] == pytest.approx(np.mean(law.ppf(0.95) - law.ppf(0.05)), rel=1e-5)
    assert report["epistemic"] == pytest.approx(means.var(0).mean(), rel=1e-4)
    assert report["aleatoric"] == pytest.approx(variances.mean(), rel=1e-5)
    with pytest.raises(ValueError, match="`noise_variance`"):
        found.report(y, noise_variance=1.0)


@pytest.mark.parametrize("chosen", ["last", ["noisy"], "layer", "block"])
def test_noise_is_in_the_chosen_layers_only_with_the_masks_that_it_has_among_all(chosen):
    drop, noisy = pnd.Dropout(0.5, seed=1), pnd.PerNodeDense(4, seed=1, name="noisy")
    block = chain(keras.layers.Dropout(0.0), noisy)
    model, x = chain(drop, keras.layers.Dropout(0.5), block), inputs(7, 6)
    chosen = {"layer": [noisy], "block": [block]}.get(chosen, chosen) if isinstance(chosen, str) else chosen
    found = uncertainty.predict(model, x, 3, seed=SEED, batch_size=4, layers=chosen, keep=True)
    order = [layer for layer in of_keras.layers_of(model) if isinstance(layer, Noisy)]
    masks = [mask(sample, (7, 6, 4), order.index(noisy)) for sample in range(3)]
    kernel = host(noisy.layer.kernel).astype("float64")
    np.testing.assert_allclose(found.outputs, [np.einsum("bi,io,bio->bo", x, kernel, m) for m in masks], atol=1e-5)


def test_noise_of_keras_that_is_chosen_is_what_it_is_among_all():
    """Each value is 0 or doubled by each of two layers: where the first one keeps it, it tells of the second."""
    first, second = keras.layers.Dropout(0.5), keras.layers.Dropout(0.5)
    model, ones = chain(first, second, shape=(64,)), np.ones((4, 64), "float32")
    both = uncertainty.predict(model, ones, 3, seed=SEED, keep=True).outputs
    each = [uncertainty.predict(model, ones, 3, seed=SEED, layers=[one], keep=True).outputs for one in (first, second)]
    np.testing.assert_array_equal(both, each[0] * each[1])
    assert [set(np.unique(one)) for one in each] == [{0.0, 2.0}] * 2


def test_a_bank_that_is_not_chosen_gives_samples_the_members_of_their_places():
    two, drop = bank(5, 2), pnd.Dropout(0.5, seed=1)
    model, x = chain(two, drop), inputs(7, 6)
    found = uncertainty.predict(model, x, 3, seed=SEED, batch_size=3, layers=[drop], keep=True)
    alone = model.predict(x, verbose=0)
    order = [layer for layer in of_keras.layers_of(model) if layer is drop]
    for sample, y in enumerate(found.outputs):
        np.testing.assert_allclose(y, alone * mask(sample, (7, 5, 1), order.index(drop))[:, :, 0], atol=1e-5)
    assert uncertainty.predict(model, x, layers=[two]).samples == 2


def test_an_ensemble_is_its_models_in_turn_each_with_a_seed_of_its_own():
    models, x = [chain(pnd.Dropout(0.5), keras.layers.Dense(3)) for _ in range(3)], inputs(7, 6)
    found = uncertainty.predict(models, x, 7, seed=SEED, batch_size=4, keep=True)
    seeds = [SEED, prediction.word_of(SEED, 1), prediction.word_of(SEED, 2)]
    alone = [uncertainty.predict(m, x, 3, seed=s, keep=True).outputs for m, s in zip(models, seeds, strict=True)]
    expected = [alone[s % 3][s // 3] for s in range(7)]
    np.testing.assert_allclose(found.outputs, expected, atol=1e-6)
    np.testing.assert_allclose(found.variance, np.var(expected, 0), atol=1e-6)
    assert uncertainty.predict(models, x).samples == 51
    one = uncertainty.predict(models[:1], x, 3, seed=SEED, keep=True)
    np.testing.assert_array_equal(one.outputs, alone[0])


def test_models_without_noise_are_an_ensemble_and_those_with_members_have_them_all():
    plain, x = [chain(softmax()) for _ in range(3)], inputs(7, 6)
    found = uncertainty.predict(plain, x, keep=True)
    expected = np.stack([model.predict(x, verbose=0) for model in plain])
    np.testing.assert_allclose(found.outputs, expected, atol=1e-6)
    check_entropies(found, found.outputs)
    banks = [chain(bank(2, 2), seed) for seed in (keras.layers.Dense(3), keras.layers.Dense(3))]
    whole = uncertainty.predict(banks, x, keep=True)
    each = [uncertainty.predict(model, x, keep=True).outputs for model in banks]
    np.testing.assert_allclose(whole.outputs, [each[0][0], each[1][0], each[0][1], each[1][1]], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": keras.layers.Dropout(0.5)}, r"`model`.*a keras.Model"),
        ({"model": chain(keras.layers.Dense(2))}, r"`model`.*with noise layers"),
        ({"model": chain(pnd.PerNodeDense(2, regime="fixed"))}, r"`model`.*with noise layers"),
        ({"model": chain(keras.layers.LSTM(2), shape=(4, 6)), "x": inputs(2, 4, 6)}, r"`model`.*with noise layers"),
        ({"model": chain(keras.layers.Dropout(0.0))}, r"`model`.*with noise layers"),
        ({"model": chain(keras.layers.GaussianNoise(0.0))}, r"`model`.*with noise layers"),
        ({"model": chain(pnd.Dropout(0.0), pnd.GaussianDropout(0.0))}, r"`model`.*with noise layers"),
        ({"model": chain(pnd.TabuDropout(0.0))}, r"`model`.*with noise layers"),
        ({"model": chain(pnd.FastDropout(keras.layers.Dense(2)))}, r"`model`.*with noise layers"),
        ({"model": Nested()}, r"`model`.*outputs are arrays, or one dict or list"),
        ({"model": []}, r"`model`.*a list of models, or a keras.Model"),
        ({"model": [chain(pnd.Dropout(0.5)), 3]}, r"`model`.*a list of models, or a keras.Model"),
        ({"model": [chain(softmax(3)), chain(softmax(2))]}, r"`model`.*outputs \(2, 3\) in each pass"),
        ({"model": [chain(softmax()), chain(softmax())], "samples": 1}, r"`samples`.*an int from 2"),
        ({"layers": "first"}, r"`layers`.*a sequence of layers of the model"),
        ({"layers": []}, r"`layers`.*at least one layer"),
        ({"layers": ["dropout_of_mine"]}, r"`layers`.*which make noise.*\['dropout"),
        (
            {"gaussian": True, "x": inputs(2, 5), "model": chain(pnd.Dropout(0.5), shape=(5,))},
            r"`gaussian`.*first half",
        ),
        ({"gaussian": True, "probabilities": True}, r"`gaussian`.*probabilities=True"),
        ({"model": chain(pnd.Dropout(0.5), keras.layers.Lambda(keras.ops.sum, output_shape=()))}, r"`model`.*\b2 samp"),
        pytest.param(
            {"x": np.array([[None] * 6] * 2)},
            r"`x`.*an array of numbers",
            marks=pytest.mark.only_backend("jax", reason="elsewhere it is the model that takes texts or does not"),
        ),
        ({"x": [[1.0, 2.0]]}, r"`x`.*samples first"),
        ({"x": iter([])}, r"`x`.*at least one batch"),
        ({"x": Endless(inputs(7, 6))}, r"`x`.*num_batches"),
        ({"x": 3}, r"`x`.*samples first"),
        ({"x": Batches(inputs(7, 6)), "batch_size": 4}, r"`batch_size`.*None where `x` gives batches.*batch_size=4"),
        ({"x": inputs(0, 6)}, r"`x`.*lengths from 1"),
        ({"x": [inputs(2, 6), inputs(3, 6)]}, r"`x`.*equal lengths.*\(3, 6\)"),
        ({"samples": 0}, r"`samples`.*an int from 1.*samples=0"),
        ({"samples": 2.5}, r"`samples`.*an int from 1"),
        ({"batch_size": -1}, r"`batch_size`.*an int from 1"),
        ({"probabilities": True}, r"`probabilities`.*None or False for outputs"),
        ({"probabilities": "yes"}, r"`probabilities`.*True, False or None"),
        ({"probabilities": 0}, r"`probabilities`.*True, False or None.*probabilities=0"),
        ({"probabilities": 1}, r"`probabilities`.*True, False or None.*probabilities=1"),
        ({"from_logits": 0}, r"`from_logits`.*True or False.*from_logits=0"),
        ({"keep": "no"}, r"`keep`.*True or False"),
        ({"probabilities": False, "from_logits": True}, r"`probabilities`.*from_logits=True"),
        ({"seed": 1.5}, r"`seed`.*an int or None"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, words):
    arguments = {"model": chain(pnd.Dropout(0.5)), "x": inputs(2, 6), "samples": 2, **change}
    with pytest.raises((TypeError, ValueError), match=words):
        uncertainty.predict(arguments.pop("model"), arguments.pop("x"), **arguments)

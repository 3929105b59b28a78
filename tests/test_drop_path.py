"""DropPath, its schedule and its rates over depth, and StochasticDepth."""

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.internals import of_keras
from pernodedrop.schedules import Linear
from tests.family import host, inputs
from tests.frameworks import needs_training

BACKEND = keras.backend.backend()


def entries(batch, rate=0.3, key=(1, 0)):
    """One entry a sample, from the ops alone."""
    return pnd.ops.sample_mask(pnd.Bernoulli(rate), key, (batch, 1, 1), backend="numpy")[:, 0, 0]


def kept(rate, key):
    """b of a batch, from the word at the origin."""
    word = pnd.ops.random_bits(key, (1, 1, 1), backend="numpy")[0, 0, 0]
    return float(int(word) >> 8 < (1 - rate) * 2**24)


@pytest.mark.parametrize("shape", [(8,), (8, 3), (8, 2, 3), (8, 2, 3, 4), (8, 2, 3, 4, 5)])
def test_a_branch_is_multiplied_by_one_entry_a_sample(shape):
    x, mask = inputs(*shape), entries(8).reshape(8, *(1,) * (len(shape) - 1))
    assert sorted(set(mask.ravel())) == [0.0, np.float32(1 / 0.7)]
    np.testing.assert_array_equal(host(pnd.DropPath(0.3, seed=1)(x, training=True)), x * mask)


def test_masks_are_those_of_dropout_with_a_noise_shape():
    x, layer, dropout = inputs(8, 2, 3), pnd.DropPath(0.3, seed=1), pnd.Dropout(0.3, noise_shape=(None, 1, 1), seed=1)
    for _ in range(3):
        np.testing.assert_array_equal(host(layer(x, training=True)), host(dropout(x, training=True)))


def test_samples_have_entries_of_their_own_and_ids_move_them():
    layer, x = pnd.DropPath(0.3, seed=1), np.ones((3, 2), "float32")
    y = host(layer(x, training=True, sample_ids=np.array([6, 1, 6])))
    np.testing.assert_array_equal(y[:, 0], entries(8)[[6, 1, 6]])


def test_mean_over_samples_is_that_of_inference():
    """Of 2**14 samples; the key is fixed. Were it not: 5 standard deviations, 6e-7. Without a floor: 1.7, in DINOv2."""
    y = host(pnd.DropPath(0.3, seed=1)(np.ones((2**14, 1), "float32"), training=True))
    assert abs(y.mean() - 1) < 5 * np.sqrt(0.3 / 0.7 / 2**14)


def test_inference_of_drop_path_is_the_identity():
    layer, x = pnd.DropPath(0.3, seed=1), inputs(4, 3)
    np.testing.assert_array_equal(host(layer(x)), x)
    assert isinstance(layer.fold(), keras.layers.Identity)


@pytest.mark.parametrize("depth", [2, 3, 12, 24])
def test_rates_with_the_first_block_kept_are_numpy_s_linspace(depth):
    np.testing.assert_allclose(pnd.depth_rates(0.3, depth, keep_first=True), np.linspace(0, 0.3, depth), rtol=1e-15)


def test_rates_are_those_of_stochastic_depth():
    """Huang et al.: survival 1 - block / depth * (1 - 0.5), from block 1; (3 * 54 - 1) / 4 of 54 are left."""
    rates = pnd.depth_rates(0.5, 54)
    np.testing.assert_allclose([1 - rate for rate in rates], [1 - block / 54 * (1 - 0.5) for block in range(1, 55)])
    assert rates[-1] == 0.5
    assert sum(1 - rate for rate in rates) == pytest.approx(40.25)


def test_a_single_block_has_the_rate_or_is_kept():
    assert (pnd.depth_rates(0.3, 1), pnd.depth_rates(0.3, 1, keep_first=True)) == ([0.3], [0.0])


def test_scheduled_drop_path_has_the_rates_of_nasnet():
    """keep(l, t) = 1 - min(1, t / T) * (l + 1) / L * (1 - keep)."""
    steps, depth, keep = 4, 3, 0.6
    x = np.ones((32, 1), "float32")
    for cell, rate in enumerate(pnd.depth_rates(1 - keep, depth)):
        layer = pnd.ScheduledDropPath(rate, steps, seed=1)
        for t in range(steps + 2):
            now = min(1, t / steps) * (cell + 1) / depth * (1 - keep)
            assert layer.rate == pytest.approx(now, abs=1e-12)
            y = host(layer(x, training=True))[:, 0]
            np.testing.assert_array_equal(y, entries(32, layer.schedule(t), key=(1, t)))


def test_stochastic_depth_adds_the_branch_or_leaves_it_for_the_whole_batch():
    layer, (shortcut, branch) = pnd.StochasticDepth(0.4, seed=1), inputs(2, 4, 2, 3)
    weights = [kept(0.4, key=(1, call)) for call in range(12)]
    assert set(weights) == {0.0, 1.0}
    for b in weights:
        np.testing.assert_array_equal(host(layer([shortcut, branch], training=True)), shortcut + np.float32(b) * branch)
    again = host(layer([shortcut, branch], training=True, key=(1, 0)))
    np.testing.assert_array_equal(again, shortcut + np.float32(weights[0]) * branch)


def test_stochastic_depth_scales_the_branch_at_inference():
    layer, (shortcut, branch) = pnd.StochasticDepth(0.4, seed=1), inputs(2, 4, 3)
    np.testing.assert_allclose(host(layer([shortcut, branch])), shortcut + 0.6 * branch, atol=1e-6)


def test_inference_has_the_present_rate_of_a_schedule_and_one_that_is_set():
    pair = [np.zeros((1, 1), "float32"), np.ones((1, 1), "float32")]
    layer = pnd.StochasticDepth(Linear(0.0, 0.5, steps=2), seed=1)
    for keep in (1, 0.75, 0.5, 0.5):
        assert host(layer(pair)).item() == keep == host(layer.fold()(pair)).item()
        layer(pair, training=True)
    held = pnd.StochasticDepth(0.5, seed=1)
    held.rate = 0.25
    assert host(held(pair)).item() == 0.75


def residual(rate):
    x = keras.Input((6,))
    branch = keras.layers.Dense(6, activation="tanh", name="branch")(x)
    y = pnd.StochasticDepth(rate, seed=1, name="depth")([x, branch])
    return keras.Model(x, keras.layers.Dense(2)(y))


def test_fold_is_plain_keras_and_computes_inference(tmp_path):
    layer, pair = pnd.StochasticDepth(0.4, seed=1), list(inputs(2, 4, 3))
    layer(pair)
    folded = layer.fold()
    assert all(type(part).__module__.startswith("keras.") for part in folded.layers)
    np.testing.assert_allclose(host(folded(pair)), host(layer(pair)), atol=1e-6)
    folded.save(tmp_path / "folded.keras")
    again = keras.saving.load_model(tmp_path / "folded.keras")
    np.testing.assert_array_equal(host(again(pair)), host(folded(pair)))


@pytest.mark.parametrize("rate", [0.4, Linear(0.1, 0.4, steps=3)])
def test_saved_model_predicts_and_draws_as_it_would_have(rate, tmp_path):
    model, x = residual(rate), inputs(5, 6)
    model(x, training=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.get_layer("depth").get_config() == model.get_layer("depth").get_config()
    for training in (False, True, True, True):
        np.testing.assert_array_equal(host(again(x, training=training)), host(model(x, training=training)))


@needs_training
def test_a_dropped_branch_does_not_learn_and_a_kept_one_does():
    for rate, learns in ((1 - 2**-24, False), (0.0, True)):
        model, x = residual(rate), inputs(8, 6)
        model.compile("sgd", "mse")
        before = host(model.get_layer("branch").kernel).copy()
        model.train_on_batch(x, inputs(8, 2))
        assert (host(model.get_layer("branch").kernel) != before).any() == learns
        assert model.get_layer("depth").updates == 1


@pytest.mark.skip_backend("numpy", reason="NumPy arrays cannot carry a Keras mask")
def test_masking_passes_through():
    x = keras.Input((3,))
    embedded = keras.layers.Embedding(10, 4, mask_zero=True)(x)
    model = keras.Model(x, pnd.DropPath(0.5)(pnd.StochasticDepth(0.5)([embedded, embedded])))
    assert host(of_keras.mask_of(model(np.array([[1, 2, 0]])))).tolist() == [[True, True, False]]


ONE, OTHER, EITHER = (
    np.array([[True, True, False, False]]),
    np.array([[True, False, True, False]]),
    [[True, True, True, False]],
)


@pytest.mark.parametrize(
    ("masks", "expected"), [([ONE, OTHER], EITHER), ([ONE, None], None), ([None, OTHER], None), (None, None)], ids=str
)
def test_a_sum_has_a_value_where_one_of_its_parts_has(masks, expected):
    tensors = None if masks is None else [None if m is None else keras.ops.convert_to_tensor(m) for m in masks]
    for layer in (pnd.StochasticDepth(0.5), keras.layers.Add()):
        mask = layer.compute_mask([inputs(1, 4, 2)] * 2, tensors)
        assert (None if mask is None else host(mask).tolist()) == expected


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pnd.DropPath(1.0), r"`rate`.*rate=1.0"),
        (lambda: pnd.ScheduledDropPath(Linear(0.0, 0.5, steps=2), 10), r"`rate`"),
        (lambda: pnd.ScheduledDropPath(0.5, 0), r"`steps`.*an int from 1"),
        (lambda: pnd.depth_rates(1.5, 3), r"`rate`.*rate=1.5"),
        (lambda: pnd.depth_rates(0.5, 0), r"`depth`.*an int from 1"),
        (lambda: pnd.depth_rates(0.5, [2, 0]), r"`depth`.*an int from 1"),
        (lambda: pnd.depth_rates(0.5, []), r"`depth`.*an int from 1"),
        (lambda: pnd.DropPath(0.5, scale_by_keep="no"), r"`scale_by_keep`.*True or False"),
        (lambda: pnd.depth_rates(0.5, 3, "timm"), r"`keep_first`.*True or False"),
        (lambda: pnd.StochasticDepth(0.5)(inputs(2, 3)), r"`inputs`.*\[shortcut, branch\]"),
        (lambda: pnd.StochasticDepth(0.5)([inputs(2, 3)] * 3), r"`inputs`.*\[shortcut, branch\]"),
        (lambda: pnd.StochasticDepth(0.5)([inputs(2, 3), inputs(2, 4)]), r"`inputs`.*two tensors of one shape"),
        (lambda: pnd.StochasticDepth(0.5)([np.ones((2, 3), "int32")] * 2, training=True), r"`inputs`.*floating"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()


def test_branches_that_are_kept_are_left_as_they_are_where_that_is_asked_for():
    """As timm's switch does: the same branches are dropped, and inference is the identity all the same."""
    x = inputs(40, 3, 2)
    scaled, plain = pnd.DropPath(0.25, seed=1), pnd.DropPath(0.25, seed=1, scale_by_keep=False)
    wanted = host(scaled(x, training=True))
    assert 0 < (wanted == 0).mean() < 1
    np.testing.assert_allclose(host(plain(x, training=True)), 0.75 * wanted, rtol=1e-6)
    np.testing.assert_array_equal(host(plain(x)), x)
    again = pnd.DropPath.from_config(plain.get_config())
    assert again.scale_by_keep is False
    on_time = pnd.ScheduledDropPath(0.25, 1, seed=1, scale_by_keep=np.False_)
    assert pnd.ScheduledDropPath.from_config(on_time.get_config()).scale_by_keep is False


@pytest.mark.parametrize("keep_first", [False, True])
def test_rates_of_stages_rise_over_all_of_them(keep_first):
    stages = pnd.depth_rates(0.3, [2, 2, 6, 2], keep_first)
    assert list(map(len, stages)) == [2, 2, 6, 2]
    rates = np.linspace(0, 0.3, 12) if keep_first else np.linspace(0, 0.3, 13)[1:]
    np.testing.assert_allclose([rate for stage in stages for rate in stage], rates, atol=1e-12)

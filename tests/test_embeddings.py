"""Noise on the table of an Embedding: entries, and whole words as language models have it (arXiv 1708.02182)."""

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from tests.family import host, inputs
from tests.frameworks import needs_gradients, needs_training, value_and_gradients

WORDS, SIZE = 7, 3
IDS = np.array([[1, 4, 1, 0], [6, 6, 2, 1], [5, 0, 4, 4]])
BATCH, TIME = IDS.shape
RATE = 0.4


def noisy(sharing="time", wrapper=pnd.PerNodeDrop, **kwargs):
    """A layer whose next key is (1, 0)."""
    inner = keras.layers.Embedding(WORDS, SIZE, **kwargs.pop("inner", {}))
    layer = wrapper(inner, RATE, sharing=sharing, seed=1, **kwargs)
    layer.build(IDS.shape)
    return layer


def mask_of(sharing, noise=None):
    """The mask (batch, time, word, place) at the key (1, 0)."""
    shape = (BATCH, TIME, WORDS, SIZE)
    mask = pnd.ops.sample_mask(noise or pnd.Bernoulli(RATE), (1, 0), shape, sharing=sharing, backend="numpy")
    return np.broadcast_to(mask, shape)


def rows_of(tables):
    """The rows of tables (batch, time, word, place)."""
    return np.take_along_axis(tables, IDS[..., None, None], axis=2)[:, :, 0]


@pytest.mark.parametrize("sharing", ["time", (), "sample+time", "time+out", "sample+time+out", "in", "sample"], ids=str)
def test_a_word_has_its_row_of_the_mask(sharing):
    layer = noisy(sharing)
    wanted = rows_of(host(layer.layer.embeddings) * mask_of(sharing))
    np.testing.assert_allclose(host(layer(IDS, training=True)), wanted, atol=1e-6)
    np.testing.assert_array_equal(host(layer(IDS)), host(layer.layer(IDS)))
    if "time" in sharing:
        np.testing.assert_allclose(host(layer(IDS[:, 1], training=True, key=(1, 0))), wanted[:, 1], atol=1e-6)


def test_gaussian_noise_of_each_row():
    layer = noisy(noise="gaussian")
    y = layer(IDS, training=True)
    wanted = rows_of(host(layer.layer.embeddings) * mask_of("time", pnd.Gaussian(RATE)))
    np.testing.assert_allclose(host(y), wanted, atol=1e-5)


def test_whole_words_are_the_dropout_of_language_models():
    """AWD-LSTM's: each word of the vocabulary is dropped as a whole, wherever it stands in the batch, else scaled."""
    layer = noisy(wrapper=pnd.DropConnect, sharing="sample+time+out")
    y, table = host(layer(IDS, training=True)), host(layer.layer.embeddings)
    fate = {}
    for row, word in zip(y.reshape(-1, SIZE), IDS.ravel(), strict=True):
        dropped = not row.any()
        assert fate.setdefault(word, dropped) == dropped
        np.testing.assert_allclose(row, 0 * row if dropped else table[word] / (1 - RATE), atol=1e-5)
    assert set(fate.values()) == {True, False}


@needs_gradients
@pytest.mark.parametrize("sharing", ["time", "sample+time+out"])
def test_gradients_are_those_of_the_masked_tables(sharing):
    layer, upstream = noisy(sharing), inputs(BATCH, TIME, SIZE)

    def call(table):
        state = [variable.value for variable in layer.non_trainable_variables]
        return layer.stateless_call([table], state, IDS, training=True, key=(1, 0))[0]

    (got,) = value_and_gradients(call, host(layer.layer.embeddings), upstream=upstream)[1]
    wanted, mask = np.zeros((WORDS, SIZE)), mask_of(sharing)
    for n, t in np.ndindex(IDS.shape):
        wanted[IDS[n, t]] += upstream[n, t] * mask[n, t, IDS[n, t]]
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_masks_stay_where_the_regime_says_so():
    fixed = noisy(regime="fixed")
    wanted = rows_of(host(fixed.layer.embeddings) * mask_of("sample+time"))
    for y in (fixed(IDS), fixed(IDS, training=True), fixed.fold()(IDS)):
        np.testing.assert_allclose(host(y), wanted, atol=1e-6)
    bank = noisy(regime="bank", bank_size=2)
    wanted = host(bank.layer.embeddings) * mask_of("time")[[0, 1, 0]]
    np.testing.assert_allclose(host(bank(IDS)), rows_of(wanted), atol=1e-6)


def test_ids_may_be_floats_and_are_not_halved():
    """Beyond 256 bfloat16 has no odd numbers."""
    layer = pnd.PerNodeDrop(keras.layers.Embedding(400, 2, dtype="mixed_bfloat16"), 0.0, seed=1)
    y = layer(np.array([[301.0], [300.0]], "float32"), training=True)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    table = host(keras.ops.cast(layer.layer.embeddings, "float32"))
    np.testing.assert_allclose(host(keras.ops.cast(y, "float32"))[:, 0], table[[301, 300]], atol=1e-3)


@pytest.mark.skip_backend("numpy", reason="NumPy arrays cannot carry a Keras mask")
def test_the_mask_of_padding_is_passed_on():
    layer = noisy(inner={"mask_zero": True})
    np.testing.assert_array_equal(host(layer.compute_mask(IDS, None)), IDS != 0)
    model = keras.Sequential([keras.Input((TIME,)), layer, keras.layers.LSTM(2)])
    short = np.array([[1, 4, 0, 0]])
    np.testing.assert_allclose(host(model(short)), host(model(short[:, :2])), atol=1e-6)


@pytest.mark.once
def test_models_take_it_and_files_bring_it_back(tmp_path):
    model = keras.Sequential([keras.Input((TIME,)), keras.layers.Embedding(WORDS, SIZE), keras.layers.Flatten()])
    noisy_model = pnd.apply(
        model, lambda layer: pnd.PerNodeDrop(layer, RATE, seed=1) if hasattr(layer, "embeddings") else None
    )
    np.testing.assert_allclose(host(pnd.fold(noisy_model)(IDS)), host(model(IDS)))
    noisy_model(IDS, training=True)
    noisy_model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for training in (False, True, True):
        np.testing.assert_array_equal(host(again(IDS, training=training)), host(noisy_model(IDS, training=training)))
    assert again.layers[0].output_dim == SIZE


@pytest.mark.once
def test_the_drop_connect_of_the_paper_and_low_rank_updates():
    layer = noisy(wrapper=pnd.DropConnect, scaling="none", mask_bias=True, inference="gaussian")
    table = host(layer.layer.embeddings)
    np.testing.assert_allclose(host(layer(IDS)), (1 - RATE) * table[IDS], atol=1e-6)
    np.testing.assert_allclose(
        host(layer(IDS, training=True)), (1 - RATE) * rows_of(table * mask_of("time")), atol=1e-6
    )
    layer.scale_pretrained()
    np.testing.assert_allclose(host(layer(IDS)), table[IDS], atol=1e-6)
    np.testing.assert_allclose(host(layer.fold()(IDS)), table[IDS], atol=1e-6)
    layer = noisy()
    layer.layer.enable_lora(2)
    layer.layer.lora_embeddings_b.assign(np.ones((2, SIZE)))
    wanted = rows_of(host(layer.layer.embeddings) * mask_of("time"))
    np.testing.assert_allclose(host(layer(IDS, training=True)), wanted, atol=1e-5)


@needs_training
def test_it_trains_in_fit():
    layer = noisy()
    model = keras.Sequential([keras.Input((TIME,)), layer, keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    losses = model.fit(IDS, np.ones((BATCH, 1)), epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert layer.updates == 5


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: noisy(method="recomputed"), r"`method`.*around an Embedding.*method='recomputed'"),
        (lambda: noisy((), persistence=0.5), r"`persistence`.*around an Embedding"),
        (lambda: pnd.Flipout(keras.layers.Embedding(3, 2)), r"`layer`. Expected a keras.layers.Dense"),
    ],
)
def test_what_it_does_not_take_is_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()

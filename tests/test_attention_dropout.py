"""Noise on the weights of attention, against attention written out with the masks put in."""

import keras
import numpy as np
import pytest
from scipy import special

import pernodedrop as pnd
from tests.frameworks import needs_training, value_and_gradients

BACKEND = keras.backend.backend()
HEADS, DIM, BATCH, TIME, FEATURES = 4, 3, 2, 5, 6
SHARINGS = [(), ("out",), ("time",), ("sample",), ("in",), ("time", "out"), ("sample", "time", "in", "out")]


def host(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def multi_head(**kwargs):
    return keras.layers.MultiHeadAttention(HEADS, DIM, bias_initializer="normal", **kwargs)


def grouped(**kwargs):
    return keras.layers.GroupQueryAttention(DIM, HEADS, 2, bias_initializer="normal", **kwargs)


both_kinds = pytest.mark.parametrize("make", [multi_head, grouped])


def noisy(layer=None, **kwargs):
    return pnd.AttentionDropout(multi_head() if layer is None else layer, **{"rate": 0.5, "seed": 1, **kwargs})


def mask_of(shape, key=(1, 0), noise=None, **kwargs):
    """The mask (batch, heads, queries, keys): the query is the time, the key the in and the head the out."""
    batch, heads, queries, keys = shape
    noise = pnd.Bernoulli(0.5) if noise is None else noise
    mask = pnd.ops.sample_mask(
        noise, key, (batch, queries, keys, heads), **{"sharing": (), "backend": "numpy", **kwargs}
    )
    return np.transpose(np.broadcast_to(mask, (batch, queries, keys, heads)), (0, 3, 1, 2))


def written_out(inner, query, value, mask, allowed=True, on_value=1):
    """Attention whose weights are multiplied by a mask, and each sample's kernel of values by one, grouped or not."""

    def project(name, equation, x, mask=1):
        layer = getattr(inner, f"_{name}_dense")
        kernel = np.broadcast_to(host(layer.kernel), (BATCH, *layer.kernel.shape))
        return np.einsum(equation, x, kernel * mask) + host(layer.bias)

    q = project("query", "btc,bchd->bthd", query)
    k, v = project("key", "btc,bchd->bthd", value), project("value", "btc,bchd->bthd", value, on_value)
    k, v = (np.repeat(y, HEADS // y.shape[2], axis=2) for y in (k, v))
    scores = np.where(allowed, np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(DIM), -1e9)
    weights = special.softmax(scores, axis=-1) * mask
    return project("output", "bthd,bhdc->btc", np.einsum("bhts,bshd->bthd", weights, v))


@both_kinds
def test_weights_are_multiplied_by_the_mask_of_the_call(make):
    """By that of the next call next, and where masks, or all later positions, are not attended to."""
    layer, query, value = noisy(make()), inputs(BATCH, TIME, FEATURES), inputs(BATCH, 7, FEATURES)
    for call in range(2):
        y = layer(query, value, training=True)
        expected = written_out(layer.layer, query, value, mask_of((BATCH, HEADS, TIME, 7), (1, call)))
        np.testing.assert_allclose(host(y), expected, atol=1e-5)
    causal = np.tril(np.ones((TIME, TIME), bool))
    mask = mask_of((BATCH, HEADS, TIME, TIME), (5, 6))
    expected = written_out(layer.layer, query, query, mask, causal)
    for arguments in ({"use_causal_mask": True}, {"attention_mask": causal[None]}):
        y = layer(query, query, training=True, keys={"weights": (5, 6)}, **arguments)
        np.testing.assert_allclose(host(y), expected, atol=1e-5)


@pytest.mark.once
@pytest.mark.parametrize("sharing", SHARINGS, ids="+".join)
def test_what_is_shared(sharing):
    layer, x = noisy(sharing=sharing), inputs(BATCH, TIME, FEATURES)
    y = layer(x, x, training=True)
    expected = written_out(layer.layer, x, x, mask_of((BATCH, HEADS, TIME, TIME), sharing=sharing))
    np.testing.assert_allclose(host(y), expected, atol=1e-5)


def test_persistence_is_along_queries_in_each_head_and_key():
    layer, x = noisy(persistence=0.6), inputs(BATCH, TIME, FEATURES)
    y = layer(x, x, training=True)
    mask = mask_of((BATCH, HEADS, TIME, TIME), persistence=0.6)
    np.testing.assert_allclose(host(y), written_out(layer.layer, x, x, mask), atol=1e-5)
    layer.persistence = 1.0
    mask = mask_of((BATCH, HEADS, TIME, TIME), (1, 1), sharing=("time",))
    np.testing.assert_allclose(host(layer(x, x, training=True)), written_out(layer.layer, x, x, mask), atol=1e-5)


@pytest.mark.once
def test_any_noise():
    noise = pnd.Uniform(half_width=0.5)
    layer, x = noisy(noise=noise, rate=None), inputs(BATCH, TIME, FEATURES)
    y = layer(x, x, training=True)
    expected = written_out(layer.layer, x, x, mask_of((BATCH, HEADS, TIME, TIME), noise=noise))
    np.testing.assert_allclose(host(y), expected, atol=1e-5)


def test_a_longer_batch_has_the_masks_of_a_shorter_one():
    layer, x = noisy(), inputs(BATCH, TIME, FEATURES)
    longer = np.concatenate([x, np.ones((BATCH, 3, FEATURES), "float32")], axis=1)
    allowed = np.arange(TIME + 3) < TIME
    mask = np.broadcast_to(allowed, (BATCH, TIME + 3, TIME + 3))
    keys = {"weights": (1, 0)}
    short = layer(x, x, training=True, keys=keys)
    long = layer(longer, longer, attention_mask=mask, training=True, keys=keys)
    np.testing.assert_allclose(host(long)[:, :TIME], host(short), atol=1e-5)


@pytest.mark.once
def test_several_axes_are_attended_along_and_others_count_as_heads():
    inner = keras.layers.MultiHeadAttention(2, DIM, attention_axes=(2,))
    layer, x = noisy(inner), inputs(BATCH, 3, TIME, FEATURES)
    y = layer(x, x, training=True)
    masks = mask_of((BATCH, 3 * 2, TIME, TIME)).reshape(BATCH, 3, 2, TIME, TIME)

    def project(name, equation, x):
        return np.einsum(equation, x, host(getattr(inner, f"_{name}_dense").kernel))

    q, k, v = (project(name, "bgtc,chd->bgthd", x) for name in ("query", "key", "value"))
    weights = special.softmax(np.einsum("bgthd,bgshd->bghts", q, k) / np.sqrt(DIM), axis=-1) * masks
    expected = project("output", "bgthd,hdc->bgtc", np.einsum("bghts,bgshd->bgthd", weights, v))
    np.testing.assert_allclose(host(y), expected, atol=1e-5)


@both_kinds
def test_inference_is_the_inner_layer_and_scores_have_no_noise(make):
    layer, x = noisy(make(dropout=0.5)), inputs(BATCH, TIME, FEATURES)
    np.testing.assert_array_equal(host(layer(x, x)), host(layer.layer(x, x)))
    _, scores = layer(x, x, training=True, return_attention_scores=True)
    np.testing.assert_allclose(host(scores).sum(axis=-1), 1, atol=1e-5)
    folded = layer.fold()
    assert type(folded) is type(layer.layer)
    np.testing.assert_allclose(host(folded(x, x)), host(layer(x, x)), atol=1e-6)


def test_it_stands_in_the_place_of_the_dropout_of_the_layer():
    layer, x = noisy(multi_head(dropout=0.9), rate=0.0), inputs(BATCH, TIME, FEATURES)
    y = layer(x, x, training=True)
    np.testing.assert_allclose(host(y), host(layer.layer(x, x, training=False)), atol=1e-5)


@needs_training
@both_kinds
def test_gradients_are_those_of_the_mask(make):
    """Of attention in plain ops, differentiated beside it with the same mask."""
    x, layer = inputs(BATCH, TIME, FEATURES), noisy(make())
    layer.build(x.shape, x.shape)
    inner, mask = layer.layer, keras.ops.convert_to_tensor(mask_of((BATCH, HEADS, TIME, TIME)))

    def in_plain_ops(x):
        q, k, v = (getattr(inner, f"_{name}_dense")(x) for name in ("query", "key", "value"))
        k, v = (keras.ops.repeat(y, HEADS // y.shape[2], axis=2) for y in (k, v))
        weights = keras.ops.softmax(keras.ops.einsum("bthd,bshd->bhts", q, k) / DIM**0.5, axis=-1)
        return inner._output_dense(keras.ops.einsum("bhts,bshd->bthd", weights * mask, v))

    y, (dx,) = value_and_gradients(lambda x: layer(x, x, training=True), x, upstream=x)
    wanted_y, (wanted_dx,) = value_and_gradients(in_plain_ops, x, upstream=x)
    np.testing.assert_allclose(y, wanted_y, atol=1e-5)
    np.testing.assert_allclose(dx, wanted_dx, atol=1e-5)


@pytest.mark.parametrize("outer", ["weights", "projections"])
def test_projections_have_noise_too(outer, tmp_path):
    """Around one another, in either order, with a key of each, in files and folded."""
    x, own = inputs(BATCH, TIME, FEATURES), {"rate": 0.5, "seed": 1, "projections": ["value"]}
    if outer == "weights":
        layer = noisy(pnd.NoisyAttention(multi_head(), pnd.PerNodeDrop, **own))
    else:
        layer = pnd.NoisyAttention(noisy(), pnd.PerNodeDrop, **own)
    layer.build(x.shape, x.shape)
    keys = layer.draw()
    assert keys.keys() == {"weights", "value"}
    y = layer(x, x, training=True, keys=keys)
    key = (2005232671, 0)  # the digest of "1/2"
    on_value = pnd.ops.sample_mask(pnd.Bernoulli(0.5), key, (BATCH, FEATURES, HEADS * DIM), backend="numpy")
    on_value = on_value.reshape(BATCH, FEATURES, HEADS, DIM)
    expected = written_out(layer.plain, x, x, mask_of((BATCH, HEADS, TIME, TIME)), on_value=on_value)
    np.testing.assert_allclose(host(y), expected, atol=1e-5)
    given = keras.Input((TIME, FEATURES))
    model = keras.Model(given, layer(given, given))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(host(again(x, training=True)), host(model(x, training=True)))
    plain = pnd.fold(model)
    assert type(plain.layers[-1]) is keras.layers.MultiHeadAttention
    np.testing.assert_allclose(host(plain(x)), host(model(x)), atol=1e-6)


@pytest.mark.parametrize("layers", [None, ["inner"], ["outer"]])
def test_a_prediction_has_the_noise_that_is_asked_for(layers):
    inner = noisy(name="inner")
    x, given = inputs(BATCH, TIME, FEATURES), keras.Input((TIME, FEATURES))
    outer = pnd.NoisyAttention(inner, pnd.PerNodeDrop, projections=["value"], rate=0.0, seed=1, name="outer")
    model = keras.Model(given, outer(given, given))
    found = pnd.uncertainty.predict(model, x, 3, seed=1, probabilities=False, layers=layers)
    assert found.variance.all()


def test_config_and_file_bring_it_back(tmp_path):
    x = keras.Input((TIME, FEATURES))
    layer = noisy(rate=pnd.schedules.Linear(0.1, 0.5, steps=4), sharing="out", persistence=0.5)
    model, data = keras.Model(x, layer(x, x)), inputs(BATCH, TIME, FEATURES)
    model(data, training=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    first, second = layer.get_config(), again.layers[-1].get_config()
    first.pop("layer"), second.pop("layer")
    assert first == second
    assert again.layers[-1].rate == layer.rate
    for training in (True, True, False):
        np.testing.assert_array_equal(host(again(data, training=training)), host(model(data, training=training)))


@pytest.mark.once
def test_flash_attention_is_said_to_be_off_in_training():
    inner = multi_head()
    inner._flash_attention = True
    with pytest.warns(UserWarning, match="without flash attention in training"):
        layer = noisy(inner)
    x = inputs(BATCH, TIME, FEATURES)
    y = layer(x, x, training=True)
    np.testing.assert_allclose(host(y), written_out(inner, x, x, mask_of((BATCH, HEADS, TIME, TIME))), atol=1e-5)
    layer(x, x, training=True, return_attention_scores=True)  # which flash attention refuses


@needs_training
def test_it_trains_in_fit():
    x = keras.Input((None, FEATURES))
    model = keras.Model(x, noisy(rate=0.2)(x, x))
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=BACKEND != "torch")
    data = inputs(20, TIME, FEATURES)
    history = model.fit(data, 0 * data, batch_size=8, epochs=4, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert model.layers[-1].updates == 12


class WeighsItself(keras.layers.MultiHeadAttention):
    """Attention that hands its weights to no dropout."""

    def _compute_attention(self, query, key, value, *args, **kwargs):
        return value, None


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: noisy(keras.layers.Dense(3)), r"`layer`.*MultiHeadAttention"),
        (lambda: noisy(noisy()), r"`layer`.*noise of another kind"),
        (lambda: noisy(pnd.NoisyAttention(noisy(), pnd.PerNodeDrop)), r"`layer`.*noise of another kind"),
        (lambda: noisy(WeighsItself(2, 3)), r"`layer`.*makes its weights"),
        (lambda: noisy(rate=1.0), r"`rate`.*rate=1.0"),
        (lambda: noisy(noise="gausian"), r"did you mean 'gaussian'"),
        (lambda: noisy(sharing="tim"), r"`sharing`"),
        (lambda: noisy(sharing="time", persistence=0.5), r"`sharing`.*persistence"),
        (lambda: noisy(seed="one"), r"`seed`.*seed='one'"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()

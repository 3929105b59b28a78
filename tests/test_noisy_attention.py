"""Noise on the projections of attention, against attention written out."""

import keras
import numpy as np
import pytest
from scipy import special

import pernodedrop as pnd
from pernodedrop.internals import of_keras
from tests.frameworks import needs_training, value_and_gradients

BACKEND = keras.backend.backend()
HEADS, GROUPS, DIM, BATCH, TIME, FEATURES = 2, 1, 3, 4, 5, 6


def host(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def attention(**kwargs):
    return keras.layers.MultiHeadAttention(HEADS, DIM, bias_initializer="normal", **kwargs)


def grouped(**kwargs):
    return keras.layers.GroupQueryAttention(DIM, HEADS, GROUPS, bias_initializer="normal", **kwargs)


both_kinds = pytest.mark.parametrize("make", [attention, grouped])


def noisy(inner=None, **kwargs):
    inner = attention() if inner is None else inner
    return pnd.NoisyAttention(inner, pnd.PerNodeDrop, **{"rate": 0.5, "seed": 1, **kwargs})


def written_out(inner, query, value, masks):
    """Attention of each sample with its own kernels, heads in groups: masks by projection, (batch, in, out), or 1."""

    def project(name, equation, x):
        layer = getattr(inner, f"_{name}_dense")
        kernel = np.broadcast_to(host(layer.kernel), (BATCH, *layer.kernel.shape))
        mask = np.reshape(masks[name], kernel.shape) if name in masks else 1
        return np.einsum(equation, x, kernel * mask) + host(layer.bias)

    q = project("query", "btc,bchd->bthd", query)
    k, v = project("key", "btc,bchd->bthd", value), project("value", "btc,bchd->bthd", value)
    k, v = (np.repeat(y, HEADS // y.shape[2], axis=2) for y in (k, v))
    scores = special.softmax(np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(DIM), axis=-1)
    return project("output", "bthd,bhdc->btc", np.einsum("bhts,bshd->bthd", scores, v))


def mask(number, inputs_, outputs):
    seed = (3175587914, 2805692202, 2005232671, 1268853350)[number]  # the digests of "1/0" to "1/3"
    return pnd.ops.sample_mask(pnd.Bernoulli(0.5), (seed, 0), (BATCH, inputs_, outputs), backend="numpy")


def masks_of(inner, projections):
    """The masks of some projections."""
    groups = GROUPS if isinstance(inner, keras.layers.GroupQueryAttention) else HEADS
    sizes = {"query": HEADS, "key": groups, "value": groups}
    of_inputs = {name: mask(number, FEATURES, heads * DIM) for number, (name, heads) in enumerate(sizes.items())}
    masks = {**of_inputs, "output": mask(3, HEADS * DIM, FEATURES)}
    return {name: masks[name] for name in projections}


@both_kinds
@pytest.mark.parametrize("projections", [("query", "key", "value", "output"), ("value", "output")])
def test_every_sample_has_its_own_projections(make, projections):
    layer, query, value = (
        noisy(make(), projections=projections),
        inputs(BATCH, TIME, FEATURES),
        inputs(BATCH, 7, FEATURES),
    )
    y = layer(query, value, training=True)
    expected = written_out(layer.layer, query, value, masks_of(layer.layer, projections))
    np.testing.assert_allclose(host(y), expected, atol=1e-5)


@both_kinds
def test_inference_is_the_inner_layer_scores_and_masks_included(make):
    layer, x = noisy(make()), inputs(BATCH, TIME, FEATURES)
    where = np.tril(np.ones((TIME, TIME), bool))
    for kwargs in ({}, {"use_causal_mask": True}, {"attention_mask": where}, {"return_attention_scores": True}):
        for got, wanted in zip(
            keras.tree.flatten(layer(x, x, **kwargs)), keras.tree.flatten(layer.layer(x, x, **kwargs)), strict=True
        ):
            np.testing.assert_allclose(host(got), host(wanted), atol=1e-6)


@both_kinds
def test_its_config_and_file_bring_it_back(make, tmp_path):
    x = keras.Input((TIME, FEATURES))
    model = keras.Model(x, noisy(make(), noise=pnd.Gaussian(0.3), rate=None, projections=["query", "output"])(x, x))
    data = inputs(BATCH, TIME, FEATURES)
    model(data, training=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    layer = again.layers[-1]
    first, second = model.layers[-1].get_config(), layer.get_config()
    assert first.pop("layer")["config"] == second.pop("layer")["config"]
    assert first.pop("noise")["config"] == second.pop("noise")["config"] == {"rate": 0.3}
    assert first == second
    assert layer.parts["query"].noise == pnd.Gaussian(0.3)
    for training in (False, True, True):
        np.testing.assert_array_equal(host(again(data, training=training)), host(model(data, training=training)))


def test_schedule_reaches_every_projection():
    layer, x = noisy(rate=pnd.schedules.Step([0.0, 0.5], [1])), inputs(BATCH, TIME, FEATURES)
    np.testing.assert_allclose(host(layer(x, x, training=True)), host(layer(x, x)), atol=1e-5)
    assert {wrapper.rate for wrapper in layer.parts.values()} == {0.5}


def test_rate_is_that_of_all_projections_and_can_be_set():
    layer, x = noisy(), inputs(BATCH, TIME, FEATURES)
    with pytest.raises(ValueError, match="is not built"):
        layer.rate = 0.0
    calm = host(layer(x, x))
    layer.rate = 0.0
    assert {wrapper.rate for wrapper in layer.parts.values()} == {layer.rate} == {0.0}
    np.testing.assert_allclose(host(layer(x, x, training=True)), calm, atol=1e-5)


def test_arguments_of_the_wrapper_are_kept_as_given():
    layer = noisy(sharing={"time"}, noise="uniform")
    again = pnd.NoisyAttention.from_config(layer.get_config())
    again.build((BATCH, TIME, FEATURES), (BATCH, TIME, FEATURES))
    assert again.parts["key"].mask == pnd.Mask(pnd.Uniform(0.5), "time")


@pytest.mark.parametrize("wrapper", [pnd.PerNodeDrop, pnd.Flipout, pnd.DropConnect])
@pytest.mark.parametrize("rate", [0.1, pnd.schedules.Linear(0.1, 0.3, steps=9)])
def test_config_has_the_rate(wrapper, rate):
    again = pnd.NoisyAttention.from_config(pnd.NoisyAttention(attention(), wrapper, rate=rate, seed=1).get_config())
    again.build((BATCH, TIME, FEATURES), (BATCH, TIME, FEATURES))
    np.testing.assert_allclose([projection.rate for projection in again.parts.values()], 0.1, atol=1e-6)


@pytest.mark.skip_backend("numpy", "jax", reason="Keras cannot rematerialize on NumPy; its own fails on JAX")
def test_rematerialized_attention_differentiates_the_masks_of_its_call():
    """Of the plain call at the same keys, which is differentiated beside it."""
    x = inputs(BATCH, TIME, FEATURES)
    with keras.RematScope("full"):
        layer = noisy()
    layer.build(x.shape, x.shape)
    plain = noisy()
    plain.build(x.shape, x.shape)
    plain.layer.set_weights(layer.layer.get_weights())
    (y, (dx,)), (plain_y, (plain_dx,)) = (
        value_and_gradients(lambda x, each=each: each(x, x, training=True), x, upstream=x) for each in (layer, plain)
    )
    np.testing.assert_allclose(y, plain_y, atol=1e-5)
    np.testing.assert_allclose(dx, plain_dx, atol=1e-5)


@both_kinds
@pytest.mark.parametrize("regime", ["dynamic", "fixed"])
def test_folded_attention_computes_the_same_at_inference(make, regime):
    layer, x = noisy(make(), regime=regime), inputs(BATCH, TIME, FEATURES)
    y = host(layer(x, x))
    plain = layer.fold()
    assert type(plain) is type(layer.layer)
    np.testing.assert_allclose(host(plain(x, x)), y, atol=1e-5)


@both_kinds
def test_a_prediction_has_its_noise(make):
    """Which `uncertainty.predict` finds without knowing the class of attention."""
    x, data = keras.Input((TIME, FEATURES)), inputs(BATCH, TIME, FEATURES)
    found = pnd.uncertainty.predict(keras.Model(x, noisy(make())(x, x)), data, 3, seed=1, probabilities=False)
    assert found.variance.all()


class Attends(keras.Model):
    """A model whose graph is its code's."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = attention()

    def call(self, x, training=None):
        return self.attention(x, x, training=training)


def noisy_inside(**kwargs):
    """The model with noise where `apply` puts it."""
    model, x = Attends(), inputs(BATCH, TIME, FEATURES)
    model(x)

    def rule(layer):
        if isinstance(layer, keras.layers.MultiHeadAttention):
            return pnd.NoisyAttention(layer, pnd.PerNodeDrop, rate=0.5, seed=1, **kwargs)

    return model, pnd.apply(model, rule), x


def test_in_a_model_of_any_class_it_is_there_before_the_first_call():
    model, changed, x = noisy_inside()
    np.testing.assert_array_equal(host(changed(x)), host(model(x)))
    assert sorted(changed.attention.parts) == ["key", "output", "query", "value"]
    for _ in range(3):
        changed(x, training=True)
    loaded = noisy_inside()[1]
    loaded.set_weights(changed.get_weights())
    assert {wrapper.updates for wrapper in loaded.attention.parts.values()} == {3}
    np.testing.assert_array_equal(host(loaded(x, training=True)), host(changed(x, training=True)))
    folded = pnd.fold(changed)
    assert type(folded.attention) is keras.layers.MultiHeadAttention
    np.testing.assert_allclose(host(folded(x)), host(changed(x)), atol=1e-5)


def test_a_rule_is_not_asked_about_what_is_inside():
    with pytest.raises(ValueError, match=r"one of: 1 NoisyAttention\. Received"):
        pnd.apply(noisy_inside(projections=["query"])[1], lambda layer: None)


class Sums(keras.layers.Layer):
    """A layer that takes the place of attention, built when it is called."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer="ones")

    def call(self, query, value, training=None):
        return (query + value) * self.scale


def test_a_layer_that_is_built_otherwise_takes_its_place():
    model, _, x = noisy_inside()
    changed = pnd.apply(model, lambda layer: Sums() if isinstance(layer, keras.layers.MultiHeadAttention) else None)
    np.testing.assert_array_equal(host(changed(x)), 2 * x)


def test_it_is_folded_when_it_is_built():
    with pytest.raises(ValueError, match="is not built"):
        noisy().fold()


@pytest.mark.skip_backend("numpy", reason="NumPy arrays cannot carry a Keras mask")
def test_masked_positions_are_not_attended_to():
    embedding, layer = keras.layers.Embedding(10, FEATURES, mask_zero=True), noisy()
    long, short = np.array([[1, 2, 0, 0]] * BATCH), np.array([[1, 2]] * BATCH)
    y, wanted = (layer(x, x, training=True) for x in (embedding(long), embedding(short)))
    assert host(of_keras.mask_of(y)).tolist() == [[True, True, False, False]] * BATCH
    assert wanted.shape == (BATCH, 2, FEATURES)
    at_rest, wanted = (host(layer(x, x)) for x in (embedding(long), embedding(short)))
    np.testing.assert_allclose(at_rest[:, :2], wanted, atol=1e-5)


@needs_training
def test_it_trains_in_fit():
    x = keras.Input((TIME, FEATURES))
    model = keras.Model(x, noisy(rate=0.2)(x, x))
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=BACKEND != "torch")
    data = inputs(20, TIME, FEATURES)
    history = model.fit(data, 0 * data, batch_size=8, epochs=4, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert {wrapper.updates for wrapper in model.layers[-1].parts.values()} == {12}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pnd.NoisyAttention(keras.layers.Dense(3), pnd.PerNodeDrop), r"`layer`.*MultiHeadAttention"),
        (lambda: pnd.NoisyAttention(attention(), pnd.Dropout), r"`wrapper`.*class of weight noise"),
        (lambda: pnd.NoisyAttention(attention(), pnd.PerNodeDrop, projections=["queri"]), r"did you mean 'query'"),
        (lambda: pnd.NoisyAttention(attention(), pnd.PerNodeDrop, projections="query"), r"`projections`.*sequence"),
        (lambda: pnd.NoisyAttention(attention(), pnd.PerNodeDrop, projections=()), r"`projections`.*one or more of"),
        (
            lambda: pnd.NoisyAttention(attention(), pnd.DropConnect, projections=["key"] * 2),
            r"`projections`.*each once",
        ),
        (lambda: pnd.NoisyAttention(attention(), pnd.PerNodeDrop, rate=1.0), r"`rate`.*rate=1.0"),
        (lambda: pnd.NoisyAttention(attention(), pnd.PerNodeDrop, seed="one"), r"`seed`.*seed='one'"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()

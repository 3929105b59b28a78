"""Putting layers into a copy of a model: what the copy computes, trains, saves, and what it leaves alone."""

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop import generator
from pernodedrop.internals import of_keras
from pernodedrop.layers.base.noise_layer import NoiseLayer
from pernodedrop.layers.base.noisy import Noisy
from pernodedrop.surgery import apply
from pernodedrop.surgery.wrappers import FAMILY
from tests.frameworks import needs_training
from tests.scripts import keras_models

BACKEND = keras.backend.backend()
only_torch = pytest.mark.only_backend("torch", reason="the same on every backend; others compile for a minute")
layers = keras.layers


def host(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def outputs(model, x, **kwargs):
    return [host(y) for y in keras.tree.flatten(model(x, **kwargs))]


def all_layers(layer):
    """Every layer inside, as Keras tracks them."""
    return of_keras.layers_of(layer, itself=False)


def noise(layer):
    """The rule of most tests: noise on every kernel and in the place of every Dropout."""
    if isinstance(layer, layers.Dense | layers.EinsumDense):
        return pnd.PerNodeDrop(layer, 0.2)
    if isinstance(layer, layers.Dropout):
        return pnd.Dropout(0.2)
    return None


class Block(layers.Layer):
    """A composite layer with layers in attributes, a list, a tuple and a dict."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.first = layers.Dense(units, activation="tanh")
        self.more = [layers.Dense(units), layers.Dropout(0.3)]
        self.pair = (layers.Dense(units), layers.LayerNormalization())
        self.named = {"last": layers.Dense(units)}
        self.again = self.first

    def build(self, shape):
        self.first.build(shape)
        for layer in (self.more[0], *self.pair, self.named["last"]):
            layer.build((*shape[:-1], self.units))

    def call(self, x, training=None):  # handed on: in `fit` on JAX Keras does not bring it to inner layers by itself
        x = self.first(x, training=training)
        for layer in [*self.more, *self.pair]:
            x = x + layer(x, training=training)
        return self.again(self.named["last"](x, training=training), training=training)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Subclassed(keras.Model):
    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.block, self.normalization = Block(units), layers.BatchNormalization()
        self.head = layers.Dense(2)

    def call(self, x, training=None):
        x = self.normalization(self.block(x, training=training), training=training)
        return self.head(x, training=training)


class OwnConstructor(keras.Model):
    """A functional model that makes its graph from arguments of its own, as KerasHub's do."""

    def __init__(self, units, **kwargs):
        x = keras.Input((4,))
        block, head = Block(units, name="block"), layers.Dense(2, name="head")
        drop = layers.Dropout(0.3, name="drop")
        super().__init__(x, head(drop(block(x))), **kwargs)
        self.units, self.block, self.heads = units, block, [head]

    def get_config(self):
        return {"units": self.units, "name": self.name}


def sequential():
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="a"), layers.Dropout(0.3), layers.Dense(2, name="b")], name="stack"
    )


def functional():
    """Two inputs, two outputs, a shared layer and a nested model."""
    x, z = keras.Input((4,), name="x"), keras.Input((4,), name="z")
    shared, nested = layers.Dense(4, activation="relu", name="shared"), sequential()
    h = layers.Add(name="sum")([shared(x), shared(shared(z))])
    tail = keras.ops.tanh(layers.BatchNormalization(name="normal")(h))
    return keras.Model({"x": x, "z": z}, {"near": nested(h), "far": layers.Dense(2, name="far")(tail)}, name="two")


def attention():
    x = keras.Input((5, 4))
    y = layers.MultiHeadAttention(2, 3, dropout=0.1, name="attention")(x, x)
    return keras.Model(x, layers.GlobalAveragePooling1D()(y))


def wrappers():
    x = keras.Input((5, 4))
    y = layers.TimeDistributed(layers.Dense(3, name="inner"), name="every")(x)
    return keras.Model(x, layers.Bidirectional(layers.GRU(2), name="both")(y))


def subclassed():
    model = Subclassed()
    model(inputs(1, 4))
    return model


def own_constructor():
    return OwnConstructor(4, name="own")


MODELS = {
    "sequential": (sequential, inputs(6, 4)),
    "functional": (functional, {"x": inputs(6, 4), "z": 2 * inputs(6, 4)}),
    "attention": (attention, inputs(6, 5, 4)),
    "wrappers": (wrappers, inputs(6, 5, 4)),
    "subclassed": (subclassed, inputs(6, 4)),
    "own_constructor": (own_constructor, inputs(6, 4)),
}
every_model = pytest.mark.parametrize(("make", "x"), MODELS.values(), ids=MODELS)


def made(make):
    """A model with weights that no initializer gives, so that a copy that has them was given them."""
    model = make()
    rng = np.random.default_rng(1)
    for variable in model.weights:
        least = -1 if variable.trainable else 0.5  # a variance is positive
        variable.assign(rng.uniform(least, 1, size=variable.shape))
    return model


@every_model
def test_the_copy_has_noise_in_training_and_predicts_what_the_original_predicts(make, x):
    model = made(make)
    before = [host(variable).copy() for variable in model.weights]
    noisy = apply(model, noise)
    assert type(noisy) is type(model)
    assert noisy.name == model.name
    for y, expected in zip(outputs(noisy, x), outputs(model, x), strict=True):
        np.testing.assert_allclose(y, expected, atol=1e-6)
    assert not np.allclose(outputs(noisy, x, training=True)[0], outputs(noisy, x)[0])
    assert not any(isinstance(layer, Noisy) for layer in all_layers(model))
    assert not any(type(layer) is layers.Dropout for layer in all_layers(noisy))
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(host(variable), value)


@every_model
def test_every_dense_layer_is_wrapped_once_and_every_variable_tracked_once(make, x):
    model = made(make)
    noisy = apply(model, noise)
    kernels = [layer for layer in all_layers(model) if isinstance(layer, layers.Dense | layers.EinsumDense)]
    wrapped = [layer.layer for layer in all_layers(noisy) if isinstance(layer, pnd.PerNodeDrop)]
    inside = [layer for layer in all_layers(noisy) if isinstance(layer, layers.Dense | layers.EinsumDense)]
    assert len(kernels) == len({id(layer) for layer in wrapped}) == len(inside)
    assert len({id(variable) for variable in noisy.weights}) == len(noisy.weights)
    assert len(noisy.trainable_weights) == len(model.trainable_weights)
    assert not {id(variable) for variable in noisy.weights} & {id(variable) for variable in model.weights}


@pytest.mark.slow
@needs_training
@every_model
def test_fit_trains_every_weight_of_the_copy_and_advances_every_key(make, x):
    noisy = apply(made(make), noise)
    before = [host(variable).copy() for variable in noisy.trainable_weights]
    y = keras.tree.map_structure(lambda y: np.ones(y.shape, "float32"), noisy(x))
    noisy.compile(keras.optimizers.SGD(0.1), "mse")
    noisy.fit(x, y, batch_size=3, epochs=2, verbose=0)
    moved = [not np.array_equal(host(v), old) for v, old in zip(noisy.trainable_weights, before, strict=True)]
    fixed = [v.path for v, moves in zip(noisy.trainable_weights, moved, strict=True) if not moves]
    assert all("key/bias" in path for path in fixed), fixed  # attention does not depend on the bias of its keys
    calls = {layer.name: host(layer._key)[1] for layer in all_layers(noisy) if isinstance(layer, Noisy)}
    # called more than once: shared layers, and what TimeDistributed runs for each step of time
    assert all(count > 0 and count % 4 == 0 for count in calls.values()), calls


@pytest.mark.parametrize("name", ["sequential", "functional", "wrappers"])
def test_a_changed_graph_saves_and_loads(name, tmp_path):
    make, x = MODELS[name]
    noisy = apply(made(make), noise)
    outputs(noisy, x, training=True)
    noisy.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for training in (False, True):
        for y, expected in zip(
            outputs(loaded, x, training=training), outputs(noisy, x, training=training), strict=True
        ):
            np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("name", ["attention", "subclassed", "own_constructor"])
def test_a_changed_composite_loads_weights_once_the_rule_is_applied_again(name, tmp_path):
    make, x = MODELS[name]
    noisy = apply(made(make), noise)
    outputs(noisy, x, training=True)
    noisy.save_weights(tmp_path / "model.weights.h5")
    again = apply(make(), noise)
    again.load_weights(tmp_path / "model.weights.h5")
    for training in (False, True):
        for y, expected in zip(outputs(again, x, training=training), outputs(noisy, x, training=training), strict=True):
            np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("name", ["attention", "subclassed", "own_constructor"])
def test_what_would_lose_the_noise_of_a_changed_composite_is_refused(name, tmp_path):
    """A `.keras` file with a Dropout's replacement in it would load without an error, and without noise."""
    make, x = MODELS[name]
    noisy = apply(make(), lambda layer: pnd.Dropout(0.5) if isinstance(layer, layers.Dropout) else None)
    around = keras.Sequential([keras.Input(x.shape[1:]), noisy])
    twice = apply(noisy, lambda layer: pnd.Dropout(0.1) if isinstance(layer, pnd.Dropout) else None)
    for lossy in (noisy, around, twice):
        with pytest.raises(NotImplementedError, match=r"does not describe .* build the model from its code"):
            lossy.save(tmp_path / "model.keras")
    with pytest.raises(NotImplementedError, match="does not describe"):
        keras.models.clone_model(noisy)


@every_model
def test_a_changed_model_can_be_changed_again(make, x):
    """The copy keeps what was put inside, with its state, though configs of composite layers do not say it."""
    model = made(make)
    noisy = apply(model, noise)
    outputs(noisy, x, training=True)

    dropout = any(isinstance(layer, pnd.Dropout) for layer in all_layers(noisy))

    def rule(layer):
        if dropout:
            return pnd.GaussianDropout(0.5) if isinstance(layer, pnd.Dropout) else None
        return keras.Sequential([layer, pnd.Dropout(0.1)]) if "both" in layer.name else None

    again = apply(noisy, rule)
    for y, expected in zip(outputs(again, x), outputs(noisy, x), strict=True):
        np.testing.assert_allclose(y, expected, atol=1e-6)
    for changed, new in ((layer, kept) for layer in all_layers(noisy) for kept in all_layers(again)):
        if isinstance(changed, pnd.PerNodeDrop) and changed.name == new.name:
            np.testing.assert_array_equal(host(changed._key), host(new._key))
    count = [sum(isinstance(layer, pnd.PerNodeDrop) for layer in all_layers(each)) for each in (noisy, again)]
    assert count[0] == count[1] > 0


def test_the_rule_is_asked_from_the_outside_inwards_and_once():
    asked = []

    def rule(layer):
        asked.append(layer.name)
        return pnd.PerNodeDrop(layer, 0.2) if layer.name == "b" else None

    model = functional()
    noisy = apply(model, rule)
    assert [name for name in asked if name in ("shared", "sum", "stack", "a", "b")] == [
        "shared",
        "sum",
        "stack",
        "a",
        "b",
    ]
    assert len(asked) == len(set(asked))
    assert noisy.get_layer("stack").layers[-1].layer.name == "b"
    asked.clear()
    apply(noisy, lambda layer: asked.append(layer.name) or (pnd.Dropout(0.1) if layer.name == "normal" else None))
    assert "b" not in asked  # it is inside a noisy layer


def test_the_rule_is_given_layers_of_the_copy_with_their_weights():
    model, given = made(sequential), {}
    apply(model, lambda layer: given.update({layer.name: layer}) or noise(layer))
    np.testing.assert_array_equal(host(given["a"].kernel), host(model.get_layer("a").kernel))
    assert given["a"] is not model.get_layer("a")


def test_a_composite_that_the_rule_replaces_is_not_looked_into():
    def rule(layer):
        return keras.Sequential([layer, pnd.Dropout(0.5, seed=1)]) if isinstance(layer, Block) else None

    model, x = made(own_constructor), inputs(6, 4)
    noisy = apply(model, rule)
    np.testing.assert_allclose(host(noisy(x)), host(model(x)), atol=1e-6)
    assert noisy.block is noisy.layers[1]
    assert [type(layer) for layer in noisy.block.layers] == [Block, pnd.Dropout]


def test_a_layer_of_the_copy_leads_to_the_changed_graph():
    """`copy.get_layer(name).output` has the noise before it: nodes of the graph that was are gone."""
    noisy = apply(sequential(), noise)
    part = keras.Model(noisy.inputs, noisy.layers[-1].output)
    assert [type(layer) for layer in part.layers[1:]] == [type(layer) for layer in noisy.layers]


def test_an_identity_leaves_a_layer_out_of_a_graph():
    for make in (sequential, functional):
        model, x = made(make), MODELS[make.__name__][1]
        plain = apply(model, lambda layer: layers.Identity() if isinstance(layer, layers.Dropout) else None)
        for y, expected in zip(
            outputs(plain, x, training=True)[-1:], outputs(apply(model, noise), x)[-1:], strict=True
        ):
            np.testing.assert_allclose(y, expected, atol=1e-6)
        assert not {layers.Identity, layers.Dropout} & {type(layer) for layer in all_layers(plain)}


def test_frozen_layers_stay_frozen():
    model = made(own_constructor)
    model.block.first.trainable = False
    model.heads[0].trainable = False
    noisy = apply(model, noise)
    assert not noisy.block.first.layer.trainable_weights
    assert not noisy.heads[0].layer.trainable_weights
    assert len(noisy.trainable_weights) == len(model.trainable_weights)


def test_lora_is_copied_with_its_factors():
    model = made(own_constructor)
    model.block.first.enable_lora(2)
    for variable in model.weights:
        if "lora" in variable.name:
            variable.assign(inputs(*variable.shape))
    noisy, x = apply(model, noise), inputs(6, 4)
    np.testing.assert_array_equal(host(noisy.block.first.layer.lora_kernel_b), host(model.block.first.lora_kernel_b))
    np.testing.assert_allclose(host(noisy(x)), host(model(x)), atol=1e-6)


@pytest.mark.skip_backend("numpy", reason="Keras' NumPy backend does not quantize")
@pytest.mark.filterwarnings("ignore:.*(`quantize` method|support quantization):UserWarning")
@pytest.mark.parametrize("make", [sequential, own_constructor, subclassed])
def test_int8_layers_are_copied_as_they_are(make):
    model, x = made(make), inputs(6, 4)
    model.quantize("int8")
    noisy = apply(model, noise)
    np.testing.assert_array_equal(host(noisy(x)), host(model(x)))
    wrapped = [layer.layer for layer in all_layers(noisy) if isinstance(layer, pnd.PerNodeDrop)]
    assert all(layer.quantization_mode == "int8" for layer in wrapped)


def test_state_that_is_no_weight_is_copied():
    """A Normalization computes its mean and variance from its weights when it is loaded."""
    x = 3 + 2 * inputs(50, 4)
    normalization = layers.Normalization()
    normalization.adapt(x)
    model = keras.Sequential([keras.Input((4,)), normalization, layers.Dense(2)])
    np.testing.assert_allclose(host(apply(model, noise)(x)), host(model(x)), atol=1e-6)


def test_mixed_precision_is_kept():
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(2, dtype="mixed_bfloat16", name="low")(layers.Dense(4)(x)))
    noisy = apply(model, noise)
    assert [layer.dtype_policy.name for layer in noisy.layers[1:]] == ["float32", "mixed_bfloat16"]


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`:UserWarning")
def test_nothing_of_the_copy_is_compiled():
    """Also no model inside, and whatever they were compiled with."""
    inner = made(sequential)
    x = keras.Input((4,))
    for model in (inner, keras.Model(x, layers.Dense(3)(inner(x)))):
        model.compile("sgd", lambda y, p: (y - p) ** 2)
        noisy = apply(model, noise)
        assert not any(getattr(layer, "compiled", False) for layer in all_layers(noisy))
        assert not noisy.compiled
        assert model.compiled


@needs_training
def test_training_the_copy_leaves_the_original_usable():
    """JAX donates the arrays of a model to its training step, so an array of two models would be lost to the other."""
    model = made(sequential)
    noisy = apply(model, noise)
    noisy.compile("sgd", "mse")
    noisy.fit(inputs(6, 4), inputs(6, 2), verbose=0)
    assert np.isfinite(host(model(inputs(6, 4)))).all()


def used_directly_and_in_a_nested_model():
    x, nested, shared = keras.Input((4,)), keras.Input((4,)), layers.Dense(4, name="shared")
    inner = keras.Model(nested, layers.ReLU()(shared(nested)))
    return keras.Model(x, layers.Dense(2)(layers.Add()([inner(x), shared(x)])))


def used_directly_and_then_in_a_nested_model():
    x, nested, shared = keras.Input((4,)), keras.Input((4,)), layers.Dense(4, name="shared")
    inner = keras.Model(nested, layers.ReLU()(shared(nested)))
    return keras.Model(x, layers.Dense(2)(inner(shared(x))))


def in_two_sequentials():
    x, shared = keras.Input((4,)), layers.Dense(4, name="shared")
    heads = [keras.Sequential([keras.Input((4,)), shared, layers.Activation(name)]) for name in ("relu", "tanh")]
    return keras.Model(x, layers.Dense(2)(layers.Add()([head(x) for head in heads])))


def in_two_models_of_one_graph():
    """An encoder, and a classifier of the same layers."""
    x, nested = keras.Input((4,)), keras.Input((4,))
    code = layers.Dense(4, activation="relu", name="shared")(nested)
    encoder, classifier = keras.Model(nested, code), keras.Model(nested, layers.Dense(2)(code))
    return keras.Model(x, layers.Concatenate()([encoder(x), classifier(x)]))


def a_nested_model_in_two_others():
    x, shared = keras.Input((4,)), keras.Sequential([keras.Input((4,)), layers.Dense(4, name="shared")])
    heads = [keras.Sequential([keras.Input((4,)), shared, layers.Dense(2, name=name)]) for name in ("one", "two")]
    return keras.Model(x, layers.Add()([head(x) for head in heads]))


@keras.saving.register_keras_serializable("tests")
class Holds(layers.Layer):
    """A layer that is given the layers that it holds, and says so in its config."""

    def __init__(self, first, second, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = first, second

    def build(self, shape):
        for layer in (self.first, self.second):
            if not layer.built:
                layer.build(shape)

    def call(self, x, training=None):
        return self.first(x, training=training) - 2 * self.second(keras.ops.tanh(x), training=training)

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        inner = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in ("first", "second")}
        return {**super().get_config(), **inner}

    @classmethod
    def from_config(cls, config):
        inner = {name: keras.saving.deserialize_keras_object(config.pop(name)) for name in ("first", "second")}
        return cls(**inner, **config)


def as_two_attributes():
    shared = layers.Dense(4, name="shared")
    return keras.Sequential([keras.Input((4,)), Holds(shared, shared)])


def in_two_composites():
    x, shared = keras.Input((4,)), layers.Dense(4, name="shared")
    one, two = Holds(shared, layers.Dense(4)), Holds(layers.Dense(4), shared)
    return keras.Model(x, layers.Add()([one(x), two(x)]))


SHARED = [
    used_directly_and_in_a_nested_model,
    used_directly_and_then_in_a_nested_model,
    in_two_sequentials,
    in_two_models_of_one_graph,
    a_nested_model_in_two_others,
    as_two_attributes,
    in_two_composites,
]


@pytest.mark.parametrize("make", SHARED)
def test_a_layer_in_several_places_stays_one_layer(make):
    model, x = made(make), inputs(6, 4)
    asked = []
    noisy = apply(model, lambda layer: asked.append(layer.name) or noise(layer))
    again = apply(
        noisy, lambda layer: pnd.PerNodeDrop(layer.layer, 0.3) if isinstance(layer, pnd.PerNodeDrop) else None
    )
    for copy in (noisy, again, pnd.fold(again)):
        np.testing.assert_allclose(host(copy(x)), host(model(x)), atol=1e-6)
        assert len(copy.trainable_weights) == len(model.trainable_weights)
        assert len(copy.trainable_weights) == len({id(variable) for variable in copy.trainable_weights})
    assert asked.count("shared") == 1
    assert not np.allclose(host(noisy(x, training=True)), host(model(x)))


@needs_training
@pytest.mark.parametrize("make", SHARED)
def test_a_layer_in_several_places_is_trained_as_one(make):
    model, x = made(make), inputs(6, 4)
    plain = apply(model, lambda layer: pnd.PerNodeDrop(layer, 0.0) if isinstance(layer, layers.Dense) else None)
    y = np.ones_like(host(model(x)))
    for each in (model, plain):
        each.compile(keras.optimizers.SGD(0.05), "mse")
        each.train_on_batch(x, y)
    np.testing.assert_allclose(host(plain(x)), host(model(x)), atol=1e-5)


@keras.saving.register_keras_serializable("tests")
class Tied(keras.Model):
    """A model that makes one layer for two places, in which its users may put two."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = self.second = layers.Dense(4)

    def call(self, x):
        return self.first(x) + 2 * self.second(x)


def untied():
    model = Tied()
    model.second = layers.Dense(4)
    return called(model)


def two_outputs():
    x = keras.Input((4,))
    u, v = layers.Dense(2, name="u")(x), layers.Dropout(0.1, name="v")(layers.Dense(1)(x))
    return keras.Model(x, [u, v])


@needs_training
def test_outputs_keep_the_names_that_losses_go_by():
    model, x = made(two_outputs), inputs(6, 4)
    noisy = apply(model, noise)
    assert noisy.layers[-1].name != "v"
    without = apply(noisy, lambda layer: layers.Identity() if isinstance(layer, pnd.Dropout) else None)
    folded = pnd.fold(apply(noisy, lambda layer: pnd.Dropout(0.2) if isinstance(layer, pnd.Dropout) else None))
    for copy in (noisy, without, folded):
        assert copy.output_names == ["u", "v"]
        copy.compile("sgd", {"u": "mse", "v": "mae"}, metrics={"u": ["mae"]})
        found = copy.evaluate(x, {"u": inputs(6, 2), "v": inputs(6, 1)}, verbose=0, return_dict=True)
        np.testing.assert_allclose(found["v_loss"], np.abs(host(model(x)[1]) - inputs(6, 1)).mean(), rtol=1e-5)
        assert "u_mae" in found


def test_a_name_that_the_rule_gives_is_found():
    noisy = apply(sequential(), lambda layer: pnd.PerNodeDrop(layer, 0.2, name="a") if layer.name == "a" else None)
    assert isinstance(noisy.get_layer("a"), pnd.PerNodeDrop)


def unbuilt():
    return keras.Sequential([layers.Dense(3)])


class Lossy(keras.Model):
    """A model whose config does not rebuild it."""

    def __init__(self, count=1):
        super().__init__()
        self.many = [layers.Dense(3) for _ in range(count)]

    def call(self, x):
        return sum(layer(x) for layer in self.many)

    def get_config(self):
        return {}


class Hidden(keras.Model):
    """A model with a layer where nobody looks."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = {layers.Dense(3)}

    def call(self, x):
        return sum(layer(x) for layer in self.hidden)


class Positional(keras.Model):
    """A model with an argument that Keras cannot serialize."""

    def __init__(self, activation):
        super().__init__()
        self.dense = layers.Dense(3, activation=activation)

    def call(self, x):
        return self.dense(x)


class NoKeywords(Positional):
    """A model whose config has more than its constructor takes."""

    def get_config(self):
        return {**super(Positional, self).get_config(), "activation": "relu"}


def chosen(model, *rule, **arguments):
    """The names and classes of the noisy layers that a rule by name makes of a model."""
    noisy = [layer for layer in all_layers(apply(model, *rule, **arguments)) if isinstance(layer, NoiseLayer)]
    return {layer.name: type(layer).__name__ for layer in noisy}


def test_a_rule_by_name_puts_wrappers_around_layers_under_their_names():
    x = keras.Input((6, 6, 2), name="x")
    y = layers.Conv2D(3, 3, name="conv")(layers.SeparableConv2D(2, 2, name="separable")(x))
    inner = keras.Sequential([layers.Dense(4, name="dense"), layers.Dense(3, name="dense_1")], name="inner")
    y = layers.LSTM(3, name="lstm")(layers.Reshape((9, 3))(inner(y)))
    model = keras.Model(x, layers.Dense(1, name="head")(y))
    per_node_drop = dict.fromkeys(("dense", "dense_1", "head"), "PerNodeDrop")
    assert chosen(model, "all-linear") == per_node_drop
    assert chosen(model, ["dense", "head"], exclude=r"dense") == {"head": "PerNodeDrop"}
    assert chosen(model, "dense") == {"dense": "PerNodeDrop"}  # whole: no dense_1
    assert chosen(model, r"inner\.dense_1") == chosen(model, r"dense_\d") == {"dense_1": "PerNodeDrop"}
    assert chosen(model, "inner", exclude="dense") == {"dense_1": "PerNodeDrop"}
    assert chosen(model, layers.Dense, exclude="inner", noise="gaussian", rate=0.3) == {"head": "PerNodeDrop"}
    assert chosen(model, "all-conv", "drop_connect") == {"conv": "DropConnect", "separable": "DropConnect"}
    assert chosen(model, "all-recurrent", "noisy_rnn", rate=0.2) == {"lstm": "NoisyRNN"}
    noisy = apply(model, "all-linear", exclude="inner", noise="gaussian", rate=0.3)
    assert repr(noisy.get_layer("head").noise) == repr(pnd.PerNodeDrop(layers.Dense(1), 0.3, "gaussian").noise)


def test_attention_is_chosen_by_kind_or_class_and_its_projections_by_name():
    x = keras.Input((6, 4), name="x")
    y = layers.MultiHeadAttention(2, 3, name="first")(x, x)
    y = layers.GroupQueryAttention(3, 2, 1, name="second")(y, y)
    model = keras.Model(x, layers.Dense(1, name="head")(y))
    parts = {f"{name}_noise": "DropConnect" for name in ("query", "key", "value", "output")}
    for rule in ("all-attention", [layers.MultiHeadAttention, layers.GroupQueryAttention]):
        found = {**parts, "first": "NoisyAttention", "second": "NoisyAttention"}
        assert chosen(model, rule, "drop_connect", rate=0.2) == found
    noisy = apply(model, "all-attention", "drop_connect", exclude="second", rate=0.2, seed=1, projections=["query"])
    assert noisy.get_layer("first").parts.keys() == {"query"}
    assert type(noisy.get_layer("second")) is layers.GroupQueryAttention
    assert noisy.get_layer("first").rate == 0.2
    assert noisy.get_layer("first").seed == generator.sibling_seed(1, "first")
    assert chosen(model, "first", exclude="key") == dict.fromkeys(("query", "value", "attention_output"), "PerNodeDrop")
    everything = chosen(model, ["all-attention", "all-linear"])
    assert (everything["first"], everything["head"]) == ("NoisyAttention", "PerNodeDrop")
    weights = {"weights": "Weights"}
    found = {**weights, "first": "AttentionDropout", "second": "AttentionDropout"}
    assert chosen(model, "all-attention", "attention_dropout", rate=0.1, sharing="out") == found
    assert chosen(model, "second", "attention_dropout") == {**weights, "second": "AttentionDropout"}


def test_zoneout_by_name():
    model = keras.Sequential([keras.Input((6, 4)), layers.LSTM(3, name="lstm"), layers.Dense(1)])
    assert chosen(model, "all-recurrent", "zoneout", rate=0.2, cell_rate=0.5) == {"lstm": "Zoneout"}


class Unnamed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.last = layers.Dense(3), layers.Dense(2)

    def call(self, x):
        return self.last(self.first(x))


def test_names_are_those_of_the_original_also_where_a_copy_names_its_layers_anew():
    model = called(Unnamed())
    name = model.first.name
    seeds = []
    for _ in range(2):
        noisy = apply(model, name, rate=0.2, seed=1)
        assert isinstance(noisy.first, pnd.PerNodeDrop)
        assert type(noisy.last) is layers.Dense
        seeds.append(noisy.first.seed)
    assert seeds[0] == seeds[1]
    assert type(apply(model, "all-linear", exclude=name).first) is layers.Dense


def test_layers_that_a_rule_chooses_by_name_have_seeds_of_their_own_by_their_names():
    def seeds(seed):
        noisy = apply(sequential(), "all-linear", rate=0.2, seed=seed)
        return {layer.name: layer.seed for layer in all_layers(noisy) if isinstance(layer, pnd.PerNodeDrop)}

    assert seeds(1) == seeds(1) != seeds(2)
    assert len({*seeds(1).values()}) == len(seeds(1)) == 2
    assert all(seed is not None for seed in seeds(None).values())


class Twins(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.left, self.right = layers.Dense(4, name="twin"), layers.Dense(4, name="twin")

    def build(self, shape):
        self.left.build(shape)
        self.right.build((*shape[:-1], 4))

    def call(self, x):
        return self.right(self.left(x))


def test_layers_of_equal_names_have_seeds_of_their_own():
    noisy = apply(called(keras.Sequential([Twins()])), "twin", rate=0.2, seed=1)
    seeds = {layer.seed for layer in all_layers(noisy) if isinstance(layer, pnd.PerNodeDrop)}
    assert len(seeds) == 2


@pytest.mark.parametrize("regularizer", sorted(FAMILY.regularizers))
def test_every_wrapper_is_known_to_rules_by_its_name_and_goes_around_what_it_says(regularizer):
    x, layer = keras.Input((5, 4)), layers.Dense(3, name="a")
    if regularizer == "zoneout" or regularizer.endswith("rnn"):
        layer = layers.GRU(3, name="a")
    if regularizer == "attention_dropout":
        layer = layers.MultiHeadAttention(2, 3, name="a")
    model = keras.Model(x, layer(x, x) if regularizer == "attention_dropout" else layer(x))
    arguments = {"examples": 10} if "variational" in regularizer else {"rate": 0.1} if regularizer == "zoneout" else {}
    kind = chosen(model, "a", regularizer, seed=1, **arguments)["a"]
    assert kind.lower() == regularizer.replace("_", "")


def called(model):
    model(inputs(2, 4))
    return model


@pytest.mark.parametrize(
    ("make", "rule", "words"),
    [
        (lambda: layers.Dense(3), noise, r"`model`.*keras.Model"),
        (unbuilt, noise, r"`model`.*a built model"),
        (sequential, None, r"`rule`.*'all-linear'.*a regular expression.*rule=None"),
        (sequential, lambda layer: "noise", r"`rule`.*Layer or None; for 'a' it returned 'noise'.*<lambda>"),
        (sequential, lambda layer: None, r"`rule`.*changes at least one of: 2 Dense, 1 Dropout"),
        (sequential, lambda layer: layer, r"`rule`.*changes at least one of"),
        (lambda: called(Lossy(2)), noise, r"`model`.*config and build config rebuild it"),
        (untied, noise, r"`model`.*which layers share their weights, 4 in all.*has 2"),
        (lambda: called(Positional(lambda x: x)), noise, r"`model`.*its Positional '.*\*\*kwargs.*get_config"),
        (lambda: called(NoKeywords("relu")), noise, r"`model`.*its NoKeywords '.*\*\*kwargs.*get_config"),
        (lambda: called(Hidden()), noise, r"`model`.*attributes, lists, tuples or dicts; elsewhere there is"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(make, rule, words):
    with pytest.raises((TypeError, ValueError), match=words):
        apply(make(), rule)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rule": "c"}, r"`rule`.*parts between dots, or classes of what takes noise: 'a', 'b'.*rule='c'"),
        ({"rule": "all-conv"}, r"`rule`.*'a', 'b'"),
        (
            {"rule": "all-linear", "regularizer": "noisy_rnn"},
            r"`regularizer`.*'all-linear' chooses: 'per_node_drop', 'drop",
        ),
        ({"rule": ["a", "all-conv"]}, r"`rule`.*'a', 'b'; its element 'all-conv' chooses none"),
        ({"rule": ["a", "b"], "exclude": ["a", "c"]}, r"`exclude`.*'a', 'b'; its element 'c' chooses none"),
        ({"rule": "a", "name": "q"}, r"`name`. Expected only what .*'per_node_drop' takes for the Dense 'a': rate, "),
        ({"rule": "a", "projections": ["query"]}, r"`projections`.*takes for the Dense 'a'"),
        ({"rule": layers.Dense(4)}, r"`rule`.*'all-linear'.*a class of keras.layers.Layer.*rule=<Dense"),
        ({"rule": "a", "exclude": "b"}, r"`exclude`.*what the rule chooses: 'a'.*exclude='b'"),
        ({"rule": "a", "regularizer": "dropout"}, r"`regularizer`.*'per_node_drop'"),
        ({"rule": noise, "rate": 0.2}, r"`rule`.*no function beside"),
        ({"rule": "("}, r"`rule`.*a regular expression"),
        ({"rule": "all-attention"}, r"`rule`.*'a', 'b'"),
    ],
)
def test_a_rule_by_name_that_cannot_be_is_refused_by_name(arguments, words):
    with pytest.raises((TypeError, ValueError), match=words):
        apply(sequential(), **arguments)


def test_a_kind_that_the_regularizer_does_not_take_whole_is_refused_by_name():
    both = [layers.Conv2D(3, 2, name="down"), layers.Conv2DTranspose(2, 2, name="up")]
    model = keras.Sequential([keras.Input((4, 4, 2)), *both])
    with pytest.raises(ValueError, match=r"`regularizer`.*the Conv2DTranspose 'up': 'per_node_drop', .*dynamic_drop"):
        pnd.apply(model, "all-conv", "dynamic_drop_connect")
    noisy = pnd.apply(model, "all-conv", "dynamic_drop_connect", exclude="up")
    assert [type(layer).__name__ for layer in noisy.layers] == ["DynamicDropConnect", "Conv2DTranspose"]


@only_torch
def test_an_application_of_keras_takes_noise_and_trains():
    whole = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, include_top=False)
    model = keras.Model(whole.input, whole.get_layer("block_2_add").output)  # enough to have every kind of layer

    def rule(layer):
        if isinstance(layer, layers.ReLU):
            return keras.Sequential([layer, pnd.Dropout(0.1)])
        return noise(layer)

    noisy, x = apply(model, rule), inputs(4, 32, 32, 3)
    np.testing.assert_allclose(host(noisy(x)), host(model(x)), atol=1e-6)
    weights = [variable for variable in noisy.weights if variable.name not in ("key", "threshold")]
    assert len(weights) == len(model.weights)
    for variable, original in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(host(variable), host(original))
    noisy.compile("sgd", "mse")
    noisy.train_on_batch(x, np.ones((4, 8, 8, 8), "float32"))
    assert {host(layer._key)[1] for layer in all_layers(noisy) if isinstance(layer, Noisy)} == {1}
    plain = pnd.fold(noisy)
    assert not any(isinstance(layer, Noisy) for layer in all_layers(plain))
    np.testing.assert_allclose(host(plain(x)), host(noisy(x)), atol=1e-5)


@only_torch
def test_a_vision_transformer_takes_noise_by_one_call_trains_and_is_saved_and_folded():
    """The others of the script take minutes."""
    count, saved = keras_models.check(*keras_models.MODELS["vision transformer"], export=False)
    assert (count, saved) == (2 * (4 + 2), "model")


@pytest.mark.slow
@only_torch
@pytest.mark.parametrize("name", ["BertBackbone", "GPT2Backbone"])
def test_a_transformer_of_keras_hub_takes_noise_in_its_projections_and_dropouts(name, tmp_path):
    hub = pytest.importorskip("keras_hub", reason="it is installed by the Makefile, without what it requires")
    sizes = {"vocabulary_size": 20, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}
    model = getattr(hub.models, name)(**sizes, max_sequence_length=6)
    rng = np.random.default_rng(0)
    x = {key: rng.integers(0, 2, size=(3, 6)) for key in model.input}
    noisy = apply(model, noise)
    assert type(noisy) is type(model)
    for y, expected in zip(outputs(noisy, x), outputs(model, x), strict=True):
        np.testing.assert_allclose(y, expected, atol=1e-6)
    projections = sum(isinstance(layer, layers.Dense | layers.EinsumDense) for layer in all_layers(model))
    assert sum(isinstance(layer, pnd.PerNodeDrop) for layer in all_layers(noisy)) == projections
    assert noisy.transformer_layers[0] in noisy.layers
    assert isinstance(noisy.transformer_layers[0]._self_attention_layer._query_dense, pnd.PerNodeDrop)
    assert not any(type(layer) is layers.Dropout for layer in all_layers(noisy))
    outputs(noisy, x, training=True)
    assert {host(layer._key)[1] for layer in all_layers(noisy) if isinstance(layer, Noisy)} == {1}
    noisy.save_weights(tmp_path / "model.weights.h5")
    again = apply(type(model).from_config(model.get_config()), noise)
    again.load_weights(tmp_path / "model.weights.h5")
    for y, expected in zip(outputs(again, x, training=True), outputs(noisy, x, training=True), strict=True):
        np.testing.assert_array_equal(y, expected)
    plain = pnd.fold(noisy)
    assert not any(isinstance(layer, Noisy) for layer in all_layers(plain))
    for y, expected in zip(outputs(plain, x), outputs(noisy, x), strict=True):
        np.testing.assert_allclose(y, expected, atol=1e-6)

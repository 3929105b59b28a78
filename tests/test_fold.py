"""Taking the library out of a model: the folded copy computes the same, is plain Keras, exports and quantizes."""

import json

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.internals import of_keras
from pernodedrop.surgery import apply, fold

BACKEND = keras.backend.backend()
needs_export = pytest.mark.skip_backend("numpy", reason="Keras' NumPy backend cannot export")
layers = keras.layers


def host(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def sequential():
    return keras.Sequential(
        [
            keras.Input((4,)),
            pnd.PerNodeDense(8, 0.5, activation="relu", seed=1, name="first"),
            pnd.Dropout(0.5),
            pnd.PerNodeDense(6, 0.5, regime="fixed", seed=2, name="fixed"),
            layers.Dense(2, name="plain"),
        ]
    )


def functional():
    """A shared layer, example ids, a nested model and noise on an output."""
    x, ids = keras.Input((4,), name="x"), keras.Input((), dtype="int32", name="ids")
    shared = pnd.PerNodeDense(4, 0.5, seed=3, name="shared")
    h = pnd.PerNodeDense(4, regime="example", seed=4, name="example")(shared(shared(x)), sample_ids=ids)
    return keras.Model({"x": x, "ids": ids}, [pnd.GaussianDropout(0.5)(sequential()(h)), h])


class Block(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.noisy, self.drops = pnd.DropConnect(layers.Dense(4), 0.5), [pnd.Dropout(0.5)]

    def build(self, shape):
        self.noisy.build(shape)

    def call(self, x, training=None):
        return self.drops[0](self.noisy(x, training=training), training=training)


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.block = Block()

    def call(self, x, training=None):
        return self.block(x, training=training)


def subclassed():
    model = Subclassed()
    model(inputs(1, 4))
    return model


def attention():
    x = keras.Input((5, 4))
    y = layers.MultiHeadAttention(2, 3)(x, x)
    return apply(
        keras.Model(x, layers.GlobalAveragePooling1D()(y)),
        lambda layer: pnd.PerNodeDrop(layer, 0.2) if isinstance(layer, layers.EinsumDense) else None,
    )


MODELS = {
    "sequential": (sequential, inputs(6, 4)),
    "functional": (functional, {"x": inputs(6, 4), "ids": np.arange(6)}),
    "subclassed": (subclassed, inputs(6, 4)),
    "attention": (attention, inputs(6, 5, 4)),
}
every_model = pytest.mark.parametrize(("make", "x"), MODELS.values(), ids=MODELS)


def outputs(model, x, **kwargs):
    return [host(y) for y in keras.tree.flatten(model(x, **kwargs))]


@every_model
def test_the_folded_copy_predicts_the_same_with_no_layer_of_this_library(make, x):
    model = make()
    for variable in model.weights:
        if "float" in str(variable.dtype):
            variable.assign(np.random.default_rng(1).normal(size=variable.shape))
    plain = fold(model)
    for training in (False, True):
        for y, expected in zip(outputs(plain, x, training=training), outputs(model, x), strict=True):
            np.testing.assert_allclose(y, expected, atol=1e-5)
    modules = {kind.__module__.split(".")[0] for layer in of_keras.layers_of(plain) for kind in type(layer).__mro__}
    assert "pernodedrop" not in modules
    assert not {id(variable) for variable in plain.weights} & {id(variable) for variable in model.weights}


def test_a_fixed_mask_is_in_the_kernel():
    model = sequential()
    kernel = host(model.get_layer("fixed").layer.kernel)
    mask = pnd.ops.sample_mask(pnd.Bernoulli(0.5), (2, 0), (1, 8, 6), backend="numpy")[0]
    np.testing.assert_allclose(host(fold(model).get_layer("fixed").kernel), kernel * mask, atol=1e-6)


def test_a_fixed_mask_of_positions_is_in_the_kernel_of_an_input_that_has_one():
    model = keras.Sequential([keras.Input((4,)), pnd.PerNodeDense(3, regime="fixed", sharing=(), seed=1)])
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    np.testing.assert_allclose(host(fold(model)(x)), host(model(x)), atol=1e-6)


def test_names_stay_and_identities_go():
    assert [layer.name for layer in fold(sequential()).layers] == ["first", "fixed", "plain"]
    plain = fold(functional())
    assert sum(layer.name == "shared" for layer in plain.layers) == 1
    assert not any(isinstance(layer, layers.Identity | layers.Dropout) for layer in plain.layers)


def test_attention_keeps_its_key():
    """In a graph its name is that of a key of noise."""
    x, key = keras.Input((5, 4)), keras.Input((5, 4))
    attention = pnd.NoisyAttention(layers.MultiHeadAttention(2, 3), pnd.PerNodeDrop)
    model, values = keras.Model([x, key], attention(x, x, key=key)), [inputs(6, 5, 4), inputs(6, 5, 4)[::-1]]
    np.testing.assert_allclose(host(fold(model)(values)), host(model(values)), atol=1e-5)


def test_a_graph_of_identities_only_keeps_one():
    model = keras.Sequential([keras.Input((4,)), pnd.Dropout(0.5), pnd.GaussianDropout(0.5)])
    np.testing.assert_array_equal(host(fold(model)(inputs(6, 4))), inputs(6, 4))


@pytest.mark.parametrize("name", ["sequential", "functional", "attention"])
def test_the_file_of_a_folded_graph_does_not_name_this_library(name, tmp_path):
    make, x = MODELS[name]
    plain = fold(make())
    assert "pernodedrop" not in json.dumps(keras.saving.serialize_keras_object(plain))
    plain.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for y, expected in zip(outputs(loaded, x), outputs(plain, x), strict=True):
        np.testing.assert_array_equal(y, expected)


def test_a_plain_model_is_copied():
    model, x = keras.Sequential([keras.Input((4,)), layers.Dense(3)]), inputs(6, 4)
    np.testing.assert_array_equal(host(fold(model)(x)), host(model(x)))


def test_a_layer_with_a_method_fold_is_folded_and_so_is_what_it_returns():
    class Outer(layers.Layer):
        def call(self, x):
            return x

        def fold(self):
            model = keras.Sequential([keras.Input((4,)), pnd.PerNodeDense(3), pnd.Dropout(0.5)])
            return model

    model = keras.Sequential([keras.Input((4,)), Outer(name="outer")])
    plain = fold(model)
    assert [layer.name for layer in plain.layers] == ["outer"]
    assert [type(layer) for layer in plain.layers[0].layers] == [layers.Dense]


class HasFold(layers.Layer):
    """A layer with something of its own under the name `fold`."""

    def __init__(self, fold, **kwargs):
        super().__init__(**kwargs)
        self.fold = fold

    def call(self, x):
        return x

    def get_config(self):
        return {**super().get_config(), "fold": 3}


class FoldsToNumber(layers.Layer):
    def call(self, x):
        return x

    def fold(self):
        return 3


def test_an_attribute_of_another_meaning_is_left_alone():
    model = keras.Sequential([keras.Input((4,)), HasFold(3), pnd.Dropout(0.5)])
    plain = fold(model)
    assert [type(layer) for layer in plain.layers] == [HasFold]
    assert plain.layers[0].fold == 3


@keras.saving.register_keras_serializable("tests")
class Around(keras.Model):
    """A model around another, which it folds to."""

    def __init__(self, model, **kwargs):
        super().__init__(**kwargs)
        self.model = model

    def call(self, x):
        return self.model(x)

    def fold(self):
        return self.model

    def get_config(self):
        return {**super().get_config(), "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "model": keras.saving.deserialize_keras_object(config["model"])})


def test_a_model_with_a_method_fold_gives_way_wherever_it_stands():
    x = inputs(6, 4)
    for make in (Around, pnd.RDropModel):
        around = make(sequential())
        expected = host(around(x))
        for model in (around, keras.Sequential([keras.Input((4,)), around])):
            plain = fold(model)
            np.testing.assert_allclose(host(plain(x)), expected, atol=1e-5)
            inside = {type(layer) for layer in of_keras.layers_of(plain)}
            assert inside == {keras.Sequential, layers.InputLayer, layers.Dense}
            assert any(isinstance(layer, pnd.Dropout) for layer in of_keras.layers_of(around))


def test_what_a_wrapped_model_does_not_describe_stays_refused(tmp_path):
    """The mark of `apply` inside a model that is folded away is not lost: its Keras noise would be in a file's."""
    x = keras.Input((5, 4))
    changed = apply(
        keras.Model(x, layers.MultiHeadAttention(2, 3, dropout=0.1)(x, x)),
        lambda layer: layers.GaussianDropout(0.1) if isinstance(layer, layers.Dropout) else None,
    )
    with pytest.raises(NotImplementedError, match="does not describe"):
        fold(pnd.RDropModel(changed)).save(tmp_path / "model.keras")


def test_a_dropout_at_the_end_leaves_its_name_to_the_output():
    x = keras.Input((4,))
    end = pnd.Dropout(0.1, name="u")(layers.Dense(2)(x))
    plain = fold(keras.Model(x, [end, layers.Dense(1, name="v")(x)]))
    assert plain.output_names == ["u", "v"]


def of_each_position(layer):
    return pnd.PerNodeDrop(layer, regime="fixed", sharing="sample")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: keras.Sequential([keras.Input((4,)), FoldsToNumber(name="mine")]),
            r"`model`.*method `fold` of 'mine'.*keras Layer.*=3",
        ),
        (lambda: layers.Dense(3), r"`model`.*keras.Model"),
        (lambda: keras.Sequential([pnd.PerNodeDense(3)]), r"`model`.*a built model"),
        (
            lambda: keras.Sequential([keras.Input((4,)), pnd.PerNodeDense(3, regime="bank", bank_size=2)]),
            r"`regime`.*to be folded.*'bank'",
        ),
        (
            lambda: keras.Sequential([keras.Input((5, 4)), pnd.PerNodeDense(3, regime="fixed", sharing=())]),
            r"`sharing`.*with 'time'.*one for all positions",
        ),
        (
            lambda: keras.Sequential([keras.Input((5,)), of_each_position(layers.Embedding(7, 3))]),
            r"`sharing`.*with 'time'.*one for all positions",
        ),
        (
            lambda: keras.Sequential([keras.Input((5, 4)), of_each_position(layers.SeparableConv1D(3, 2))]),
            r"`sharing`.*with 'time'.*one for all positions",
        ),
    ],
)
def test_what_cannot_be_folded_is_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        fold(make())


@pytest.mark.skip_backend("numpy", reason="Keras' NumPy backend does not quantize")
@pytest.mark.filterwarnings("ignore:.*(`quantize` method|support quantization):UserWarning")
def test_a_folded_model_quantizes_to_int8():
    """Rounding to 8 bits moves a weight or an input by at most 1/254 of the largest, a few per cent in three layers."""
    plain, x = fold(sequential()), inputs(32, 4)
    y = host(plain(x))
    plain.quantize("int8")
    assert all(layer.quantization_mode == "int8" for layer in plain.layers)
    np.testing.assert_allclose(host(plain(x)), y, atol=0.05 * np.abs(y).max())


@pytest.mark.only_backend("tensorflow", reason="a SavedModel is TensorFlow's")
def test_a_folded_model_exports_as_saved_model(tmp_path):
    import tensorflow as tf

    plain, x = fold(sequential()), inputs(5, 4)
    plain(x)
    plain.export(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "model")
    np.testing.assert_allclose(host(loaded.serve(x)), host(plain(x)), atol=1e-6)


@needs_export
@pytest.mark.filterwarnings("ignore")  # the exporters' own
@pytest.mark.parametrize("name", ["sequential", "subclassed", "attention"])
def test_a_folded_model_exports_to_onnx(name, tmp_path):
    why = "an exporter, which brings its own versions of others"
    pytest.importorskip("onnx", reason=why)
    runtime = pytest.importorskip("onnxruntime", reason=why)
    for exporter in {"jax": ("jax2onnx", "flax"), "tensorflow": ("tf2onnx",), "torch": ("onnxscript",)}[BACKEND]:
        pytest.importorskip(exporter, reason=why)
    make, x = MODELS[name]
    plain, path = fold(make()), str(tmp_path / "model.onnx")
    plain(x)  # Keras exports what was called
    plain.export(path, format="onnx", verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 6):
        (y,) = session.run(None, {session.get_inputs()[0].name: x[:batch]})
        np.testing.assert_allclose(y, host(plain(x[:batch])), atol=1e-5)

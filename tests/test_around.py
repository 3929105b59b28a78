"""A layer around another one, in other people's layers: what they read of the inner layer, its files, its dtype."""

import copy
import warnings

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.layers.base.around_attention import AroundAttention
from tests.family import FAMILY, host, inputs, skip_what_forgets_bfloat16, training_call
from tests.frameworks import quick

layers = keras.layers
WRAPPERS = {name: case for name, case in FAMILY.items() if isinstance(case.make(), layers.Wrapper)}
every_wrapper = pytest.mark.parametrize("case", WRAPPERS.values(), ids=WRAPPERS)


@every_wrapper
def test_it_has_the_values_of_the_inner_layer(case):
    layer = case.make()
    layer.build(case.shape_of(4))
    arguments = layer.layer.get_config().keys() - keras.layers.Layer().get_config().keys() - {"seed"}
    values = {name: getattr(layer.layer, name) for name in arguments if hasattr(layer.layer, name)}
    assert {"kernel_size", "units", "equation", "num_heads"} & values.keys()
    for name, value in values.items():
        assert getattr(layer, name) is value
    if hasattr(layer.layer, "kernel"):  # attention has four, and of a recurrent layer its cell has it
        assert layer.kernel is layer.layer.kernel


def test_it_has_no_more_than_these():
    layer = pnd.PerNodeDrop(layers.Dense(4))
    assert (layer.units, layer.rate, layer.path) == (4, 0.5, None)
    assert not any(hasattr(layer, name) for name in ("kernel", "filters", "enable_lora", "_kernel", "_repr_html_"))
    layer.build((None, 3))
    assert hasattr(layer, "kernel")
    assert not hasattr(layer, "_kernel")
    with pytest.raises(AttributeError, match=r"'PerNodeDrop' object has no attribute 'filters'.*'Dense' object has no"):
        _ = layer.filters
    with pytest.raises(AttributeError, match=r"'enable_lora': it is a method .* call `.layer.enable_lora`"):
        layer.enable_lora(2)
    bare = pnd.PerNodeDrop.__new__(pnd.PerNodeDrop)
    with pytest.raises(AttributeError, match="layer"):
        _ = bare.units


def test_what_is_of_the_inner_layer_is_set_there():
    layer = pnd.PerNodeDrop(layers.Dense(4))
    layer.kernel_regularizer = keras.regularizers.L2(0.5)
    layer.build((None, 3))
    assert float(host(sum(layer.losses))) == pytest.approx(0.5 * (host(layer.kernel) ** 2).sum(), rel=1e-5)
    layer.activation, layer.rate, layer.note = keras.activations.relu, 0.25, "mine"
    assert layer.layer.activation is keras.activations.relu
    assert not hasattr(layer.layer, "rate")
    assert not hasattr(layer.layer, "note")
    with pytest.raises(AttributeError, match="kernel"):  # as of a Dense
        layer.kernel = host(layer.layer.kernel)
    assert len(layer.layer.weights) == 2


def test_its_copies_have_layers_of_their_own():
    layer = pnd.PerNodeDrop(layers.Dense(4), seed=1)
    again = copy.deepcopy(layer)
    assert again.units == 4
    assert again.layer is not layer.layer


def spectral(wrap=lambda layer: layer):
    inner = wrap(layers.Dense(5, name="inner"))
    return keras.Sequential([keras.Input((6,)), layers.SpectralNormalization(inner), layers.Dense(2)])


def trained(model):
    x = inputs(8, 6)
    model.compile("sgd", "mse")
    model.fit(x, x[:, :2], verbose=0)
    return model


@pytest.mark.skip_backend("numpy", reason="it cannot train")
def test_spectral_normalization_around_it_trains_saves_loads_and_folds(tmp_path):
    x = inputs(4, 6)

    def rule(layer):
        return pnd.PerNodeDrop(layer, 0.5, seed=1) if layer.name == "inner" else None

    model = trained(pnd.apply(spectral(), rule))
    wanted = host(model(x))
    model.save(tmp_path / "noisy.keras")
    loaded = keras.saving.load_model(tmp_path / "noisy.keras")
    folded = pnd.fold(model)
    for other in (loaded, folded, pnd.fold(loaded)):
        assert len(other.weights) == len((model if other is loaded else spectral()).weights)
        holder = other.layers[0]
        assert holder.kernel is holder.layer.kernel  # what it normalizes is what is trained
        np.testing.assert_allclose(host(other(x)), wanted, atol=1e-6)
    folded.save(tmp_path / "plain.keras")
    plain = keras.saving.load_model(tmp_path / "plain.keras")
    np.testing.assert_allclose(host(plain(x)), wanted, atol=1e-6)
    for other in (loaded, folded):
        holder = other.layers[0]
        kernel = host(holder.layer.kernel)
        v = host(holder.vector_u) @ kernel.T
        holder(x, training=True)
        norm = np.linalg.norm(v @ kernel) / np.linalg.norm(v)  # after a step of power iteration
        np.testing.assert_allclose(host(holder.layer.kernel), kernel / norm, atol=1e-5)


@keras.saving.register_keras_serializable("around")
class Tied(keras.Model):
    """An autoencoder whose decoder has the encoder's kernel."""

    def __init__(self, encoder=None, **kwargs):
        super().__init__(**kwargs)
        self.encoder = layers.Dense(3, use_bias=False) if encoder is None else encoder

    def build(self, shape):
        if not self.encoder.built:
            self.encoder.build(shape)

    def build_from_config(self, config):
        self.build(config["input_shape"])

    def call(self, x, training=None):
        code = self.encoder(x, training=training)
        return keras.ops.matmul(code, keras.ops.transpose(self.encoder.kernel))

    def get_config(self):
        return {**super().get_config(), "encoder": keras.saving.serialize_keras_object(self.encoder)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "encoder": keras.saving.deserialize_keras_object(config["encoder"])})


@pytest.mark.skip_backend("numpy", reason="it cannot train")
def test_a_model_with_tied_weights_takes_it(tmp_path):
    x = inputs(8, 6)
    model = Tied()
    model(x)
    noisy = pnd.apply(model, lambda layer: pnd.PerNodeDrop(layer, 0.3, seed=1))
    noisy.compile("sgd", "mse")
    noisy.fit(x, x, verbose=0)
    kernel = host(noisy.encoder.layer.kernel)
    noisy.save(tmp_path / "tied.keras")
    for other in (noisy, pnd.fold(noisy), keras.saving.load_model(tmp_path / "tied.keras")):
        np.testing.assert_allclose(host(other(x)), x @ kernel @ kernel.T, atol=1e-5)


BUILT_BY_NOBODY = {
    name: case for name, case in FAMILY.items() if type(case.make()).build is layers.Layer.build and case.shape == (6,)
}


class Held(layers.Layer):
    """A layer and noise, of which its own `build` builds what has weights. As a cell it is a recurrent layer's."""

    def __init__(self, noise=None, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = 6
        self.dense = layers.Dense(6)
        self.noise = pnd.Dropout(0.3, seed=1) if noise is None else noise

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, states=(), training=None):
        y = self.noise(self.dense(x), training=training)
        return (y, [y]) if states else y

    def get_config(self):
        return {**super().get_config(), "noise": keras.saving.serialize_keras_object(self.noise)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "noise": keras.saving.deserialize_keras_object(config["noise"])})


@keras.saving.register_keras_serializable("around")
class HoldingModel(Held, keras.Model):
    """It in a model."""


keras.saving.register_keras_serializable("around")(Held)
HOLDERS = {
    **{name: (lambda case=case: HoldingModel(case.make()), (4, 6)) for name, case in BUILT_BY_NOBODY.items()},
    "noise_shape": (lambda: HoldingModel(pnd.Dropout(0.3, noise_shape=(None, 1), seed=1)), (4, 6)),
    "cell": (lambda: keras.Sequential([keras.Input((3, 6)), layers.RNN(Held())]), (4, 3, 6)),
}


def test_noise_without_a_build_is_built_from_the_start_as_keras_dropout_is():
    assert {"dropout", "gaussian_dropout", "drop_path", "scheduled_drop_path"} <= BUILT_BY_NOBODY.keys()
    for case in BUILT_BY_NOBODY.values():
        layer = case.make()
        assert layer.built == layers.Dropout(0.5).built
        again = type(layer).from_config(layer.get_config())
        again.build((None, 6))  # whoever builds it all the same, as files of older versions do
        assert len(again.variables) == len(layer.variables)


@pytest.mark.parametrize(("make", "shape"), HOLDERS.values(), ids=HOLDERS)
def test_who_builds_what_has_weights_need_not_build_noise(make, shape, tmp_path):
    model, x = make(), inputs(*shape)
    wanted = host(model(x))
    model.save(tmp_path / "held.keras")

    def rule(layer):
        return pnd.PerNodeDrop(layer, 0.2, seed=2) if isinstance(layer, layers.Dense) else None

    loaded = keras.saving.load_model(tmp_path / "held.keras")
    for other in (pnd.fold(model), pnd.apply(model, rule), loaded, pnd.fold(loaded)):
        np.testing.assert_allclose(host(other(x)), wanted, atol=1e-6)
    np.testing.assert_allclose(host(loaded(x, training=True)), host(model(x, training=True)), atol=1e-6)
    assert not np.allclose(host(model(x, training=True)), wanted)


def test_noise_that_needs_building_is_copied_as_the_call_built_it():
    model, x = HoldingModel(pnd.PerNodeDrop(layers.Dense(3), regime="fixed", seed=1)), inputs(4, 6)
    wanted = host(model(x))
    np.testing.assert_allclose(host(pnd.fold(model)(x)), wanted, atol=1e-6)


def test_a_noise_shape_that_does_not_fit_is_refused_at_inference_and_without_a_call():
    layer = pnd.Dropout(0.5, noise_shape=(None, 2))
    for call in (lambda: layer(inputs(2, 3)), lambda: layer(keras.Input((3,)))):
        with pytest.raises(ValueError, match="`noise_shape`"):
            call()


DTYPES = [("float32", "mixed_float16", False), ("bfloat16", "float32", False), ("float32", "bfloat16", True)]


def with_a_dtype_of_its_own(case, inner, own, late):
    """A wrapper of one dtype policy around a layer of another, from the start or set when it is built."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(inner)
    try:
        layer = case.make() if late or isinstance(case.make(), AroundAttention) else case.make(dtype=own)
        layer.build(case.shape_of(4))
    finally:
        keras.config.set_dtype_policy(before)
    layer.dtype_policy = own
    return layer


@pytest.mark.parametrize(
    ("case", "inner", "own", "late"),
    [
        pytest.param(case, *dtypes, id=f"{name}-{'-'.join(map(str, dtypes))}")
        for number, (name, case) in enumerate(WRAPPERS.items())
        # JAX mixes dtypes as NumPy does, and compiles each: there, one for each wrapper
        for dtypes in ([DTYPES[number % 3]] if keras.backend.backend() == "jax" else DTYPES)
    ],
)
def test_a_dtype_policy_of_its_own_is_that_of_all_its_outputs(case, inner, own, late):
    layer, x = with_a_dtype_of_its_own(case, inner, own, late), case.inputs(4)
    skip_what_forgets_bfloat16(layer)
    own_dtype = [layer, layer.fold()] if case.folds else [layer]
    others = [lambda x: layer.layer(x, x)] if isinstance(layer, AroundAttention) else []
    x = keras.ops.convert_to_tensor(x)
    computed = quick(lambda x: [call(x) for call in (*own_dtype, *others)])(x)
    outputs = computed[: len(own_dtype)]
    outputs += [training_call(layer, x), layer(keras.Input(case.shape, dtype=layer.compute_dtype))]
    assert {keras.backend.standardize_dtype(y.dtype) for y in outputs} == {layer.compute_dtype}
    y, *same = (host(keras.ops.cast(one, "float32")) for one in computed)
    for other in same:
        np.testing.assert_allclose(y, other, atol=0.05)


@pytest.mark.skip_backend("numpy", reason="Keras warns of it there")
def test_a_quantized_inner_layer_is_folded_with_the_dtype_of_the_wrapper():
    layer, x = pnd.PerNodeDrop(layers.Dense(4), dtype="mixed_bfloat16"), inputs(2, 3)
    layer.build((None, 3))
    layer.layer.quantize("int8")
    plain = layer.fold()
    assert plain.quantization_mode == "int8"
    assert keras.backend.standardize_dtype(plain(x).dtype) == "bfloat16"
    np.testing.assert_allclose(host(keras.ops.cast(plain(x) - layer(x), "float32")), 0, atol=0.05)


@pytest.mark.skip_backend("numpy", reason="it cannot train")
@pytest.mark.parametrize("name", ["per_node_drop", "dropout"] if keras.backend.backend() == "jax" else FAMILY)
def test_it_trains_in_float64(name):
    """On JAX, where that is not enabled, in float32, so that most would be trained there as they are elsewhere."""
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Explicitly requested dtype float64")
            loss = loss_of_a_step(FAMILY[name].model(), inputs(8, 6).astype("float64"))
    finally:
        keras.config.set_floatx(before)
        keras.config.set_dtype_policy(before)
    assert np.isfinite(loss)


def loss_of_a_step(model, x):
    """The loss of a training step, not compiled, in which every weight may take part."""
    model.compile("sgd", "mse", run_eagerly=keras.backend.backend() == "tensorflow")
    return model.train_on_batch(x, x[:, :2])

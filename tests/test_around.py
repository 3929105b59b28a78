"""A layer around another one, in other people's layers: what they read of the inner layer, its files, its dtype."""

import copy

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from tests.family import FAMILY, host, inputs

layers = keras.layers
WRAPPERS = {name: case for name, case in FAMILY.items() if isinstance(case.make(), layers.Wrapper)}
every_wrapper = pytest.mark.parametrize("case", WRAPPERS.values(), ids=WRAPPERS)


@every_wrapper
def test_it_has_the_values_of_the_inner_layer(case):
    layer = case.make()
    layer(case.inputs(2))
    arguments = layer.layer.get_config().keys() - keras.layers.Layer().get_config().keys() - {"seed"}
    values = {name: getattr(layer.layer, name) for name in arguments if hasattr(layer.layer, name)}
    assert {"kernel_size", "units", "equation", "num_heads"} & values.keys()
    for name, value in values.items():
        assert getattr(layer, name) is value
    if not isinstance(layer, pnd.NoisyAttention):
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
        layer.kernel = layer.layer.kernel
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
@pytest.mark.parametrize("wrapper", [pnd.PerNodeDrop, pnd.DropConnect, pnd.Flipout])
def test_spectral_normalization_around_it_trains_saves_loads_and_folds(wrapper, tmp_path):
    x = inputs(4, 6)

    def rule(layer):
        return wrapper(layer, 0.5, seed=1) if layer.name == "inner" else None

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
        for _ in range(20):  # steps of a power iteration
            other(x, training=True)
        np.testing.assert_allclose(np.linalg.norm(host(holder.layer.kernel), 2), 1, atol=0.05)
    folded.save(tmp_path / "plain.keras")
    plain = keras.saving.load_model(tmp_path / "plain.keras")
    np.testing.assert_allclose(host(plain(x)), host(folded(x)), atol=1e-6)


@keras.saving.register_keras_serializable("tests")
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

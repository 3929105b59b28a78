"""SpatialDropout: one Bernoulli entry for each sample and channel, and Keras' arguments."""

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.internals import of_keras
from pernodedrop.schedules import Linear
from tests.family import host, inputs

BACKEND = keras.backend.backend()
LAYERS = {1: pnd.SpatialDropout1D, 2: pnd.SpatialDropout2D, 3: pnd.SpatialDropout3D}
every_rank = pytest.mark.parametrize("dims", LAYERS)
SPACE = (3, 4, 5)


def entries(batch, channels, rate=0.3, key=(1, 0)):
    """The entries as (batch, channels), from the ops alone."""
    return pnd.ops.sample_mask(pnd.Bernoulli(rate), key, (batch, channels, 1), backend="numpy")[:, :, 0]


@every_rank
def test_a_map_is_multiplied_by_one_entry(dims):
    x = inputs(4, *SPACE[:dims], 6)
    y = host(LAYERS[dims](0.3, data_format="channels_last", seed=1)(x, training=True))
    mask = entries(4, 6).reshape(4, *(1,) * dims, 6)
    assert 0 < (mask == 0).mean() < 1
    np.testing.assert_array_equal(y, x * mask)


@every_rank
def test_masks_are_those_of_dropout_with_a_noise_shape(dims):
    x = inputs(4, *SPACE[:dims], 6)
    layer = LAYERS[dims](0.3, data_format="channels_last", seed=1)
    dropout = pnd.Dropout(0.3, noise_shape=(None, *(1,) * dims, None), seed=1)
    for _ in range(2):
        np.testing.assert_array_equal(host(layer(x, training=True)), host(dropout(x, training=True)))


@every_rank
def test_masks_do_not_depend_on_the_data_format(dims):
    x = inputs(4, *SPACE[:dims], 6)
    last = host(LAYERS[dims](0.3, data_format="channels_last", seed=1)(x, training=True))
    first = host(LAYERS[dims](0.3, data_format="channels_first", seed=1)(np.moveaxis(x, -1, 1), training=True))
    np.testing.assert_array_equal(np.moveaxis(first, 1, -1), last)


def test_sample_ids_are_the_sample_coordinates():
    x = np.ones((3, 2, 2, 6), "float32")
    layer = pnd.SpatialDropout2D(0.3, data_format="channels_last", seed=1)
    y = host(layer(x, training=True, sample_ids=np.array([7, 0, 7])))
    np.testing.assert_array_equal(y[:, 0, 0], entries(8, 6)[[7, 0, 7]])


def test_rate_follows_a_schedule():
    layer, x = pnd.SpatialDropout1D(Linear(0.0, 0.5, steps=2), seed=1), np.ones((4, 3, 6), "float32")
    for call, rate in enumerate((0.0, 0.25, 0.5, 0.5)):
        np.testing.assert_array_equal(host(layer(x, training=True))[:, 0], entries(4, 6, rate, key=(1, call)))


def test_inference_is_the_identity():
    layer, x = pnd.SpatialDropout2D(0.3, seed=1), inputs(4, 3, 4, 6)
    np.testing.assert_array_equal(host(layer(x)), x)
    assert isinstance(layer.fold(), keras.layers.Identity)


@every_rank
def test_the_config_of_keras_layer_of_this_name_is_taken(dims):
    kind = getattr(keras.layers, f"SpatialDropout{dims}D")
    theirs = kind(0.25, seed=3, name="noise", **({} if dims == 1 else {"data_format": "channels_first"}))
    ours = LAYERS[dims].from_config(theirs.get_config())
    assert (ours.rate, ours.seed, ours.name) == (0.25, 3, "noise")
    assert ours.data_format == ("channels_last" if dims == 1 else "channels_first")


def test_positional_arguments_are_those_of_keras():
    assert pnd.SpatialDropout1D(0.25, 3).seed == 3
    assert (
        pnd.SpatialDropout2D(0.25, "channels_first", 3).seed
        == pnd.SpatialDropout3D(0.25, "channels_first", 3).seed
        == 3
    )


def test_data_format_is_that_of_keras_unless_it_is_given():
    default = keras.config.image_data_format()
    try:
        keras.config.set_image_data_format("channels_first")
        assert [kind(0.5).data_format for kind in LAYERS.values()] == ["channels_last"] + ["channels_first"] * 2
    finally:
        keras.config.set_image_data_format(default)


@every_rank
def test_config_round_trip_keeps_the_policy_and_the_data_format(dims):
    layer = LAYERS[dims](0.25, data_format="channels_first", seed=3, dtype="mixed_bfloat16")
    again = LAYERS[dims].from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert (again.dtype_policy.name, again.data_format, again.rate) == ("mixed_bfloat16", "channels_first", 0.25)


@pytest.mark.skip_backend("numpy", reason="NumPy arrays cannot carry a Keras mask")
def test_masking_passes_through():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Embedding(10, 4, mask_zero=True), pnd.SpatialDropout1D(0.5)]
    )
    assert host(of_keras.mask_of(model(np.array([[1, 2, 0]])))).tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pnd.SpatialDropout2D(1.0), r"`rate`.*rate=1.0"),
        (
            lambda: pnd.SpatialDropout2D(0.5, data_format="channel_first"),
            r"`data_format`.*did you mean 'channels_first'",
        ),
        (lambda: pnd.SpatialDropout1D(0.5)(inputs(2, 3)), r"expected ndim=3, found ndim=2"),
        (lambda: pnd.SpatialDropout2D(0.5)(inputs(2, 3, 4)), r"expected ndim=4, found ndim=3"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words):
        make()

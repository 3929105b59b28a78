"""What Keras' own tests ask of its Dropout, GaussianDropout and SpatialDropout, asked of ours.

What they ask and other files ask already is not here: rates that are refused, masks that are passed on.
"""

import re

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.layers.recurrent.recurrent_noise import RecurrentNoise
from tests.family import FAMILY, host
from tests.test_layers import BACKEND, OF_EACH_KIND

SPATIAL = {1: pnd.SpatialDropout1D, 2: pnd.SpatialDropout2D, 3: pnd.SpatialDropout3D}
FIRST = {"data_format": "channels_first"}
STATE = 2  # variables that no optimizer changes: the key and the number of the noise, where Keras has a seed generator


@pytest.fixture(scope="module")
def keras_test_case():
    """The test case of Keras, which is in its wheel; imported here, since it is a private name."""
    from keras.src.testing import TestCase

    return TestCase()


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")  # with a generator, by the test of Keras
@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights:UserWarning")
@pytest.mark.parametrize(
    ("layer", "arguments", "shape", "training"),
    [
        (pnd.Dropout, {"rate": 0.2}, (2, 3), True),
        (pnd.Dropout, {"rate": 0.2}, (2, 3), False),
        (pnd.Dropout, {"rate": 0}, (2, 3), True),
        (pnd.Dropout, {"rate": 0.9, "seed": 1337}, (2, 3, 4), True),
        (pnd.Dropout, {"rate": 0.5, "noise_shape": (None, 1, None)}, (2, 3, 4), True),
        (pnd.Dropout, {"rate": 0.5, "noise_shape": [2, 1, 4]}, (2, 3, 4), True),
        (pnd.GaussianDropout, {"rate": 0.2}, (2, 3), True),
        (pnd.GaussianDropout, {"rate": 0.2}, (2, 3), False),
        (pnd.GaussianDropout, {"rate": 0.9, "seed": 1337}, (2, 3, 4), True),
        (pnd.SpatialDropout1D, {"rate": 0.5}, (2, 3, 4), True),
        (pnd.SpatialDropout1D, {"rate": 0.5}, (2, 3, 4), False),
        (pnd.SpatialDropout2D, {"rate": 0.5}, (2, 3, 4, 5), True),
        (pnd.SpatialDropout2D, {"rate": 0.5, **FIRST}, (2, 3, 4, 5), True),
        (pnd.SpatialDropout3D, {"rate": 0.5}, (2, 3, 4, 4, 5), True),
        (pnd.SpatialDropout3D, {"rate": 0.5, **FIRST}, (2, 3, 4, 4, 5), True),
    ],
)
def test_keras_takes_it_for_a_layer(layer, arguments, shape, training, keras_test_case):
    """By the test that Keras has for every layer: configs, what is built and when, symbolic and eager calls, a step of
    training, half precision.
    """
    keras_test_case.run_layer_test(
        layer,
        init_kwargs=arguments,
        input_shape=shape,
        call_kwargs={"training": training},
        expected_output_shape=shape,
        expected_output_dtype="float32",
        expected_num_trainable_weights=0,
        expected_num_non_trainable_weights=STATE,
        expected_num_non_trainable_variables=STATE,
        expected_num_seed_generators=0,
        expected_num_losses=0,
        supports_masking=True,
        run_training_check=training,  # which is seconds of compilation, with training=True whatever the call has
        assert_built_after_instantiation=True,
    )


# JAX compiles each operation of each: there, those of each kind, and without half precision
@pytest.mark.parametrize("name", OF_EACH_KIND if BACKEND == "jax" else FAMILY)
def test_keras_takes_every_regularizer_for_a_layer(name, keras_test_case):
    """By the same test, but for the step of training."""
    case = FAMILY[name]
    keras_test_case.run_layer_test(
        case.make,
        init_kwargs={},
        input_shape=case.shape_of(4),
        call_kwargs={"training": True},
        expected_output_dtype="float32",
        expected_num_seed_generators=int(isinstance(case.make(), RecurrentNoise)),  # that of Keras' own dropout within
        run_training_check=False,
        run_mixed_precision_check=BACKEND != "jax",
    )


def test_what_dropout_keeps_is_scaled_so_that_the_mean_stays():
    """The mean of 10000 entries of variance 1; 0.05 is 5 standard deviations: false alarms < 1e-6."""
    y = host(pnd.Dropout(0.5, seed=1337)(np.ones((20, 500)), training=True))
    assert y.max() == 2.0
    assert y.mean() == pytest.approx(1.0, abs=0.05)


def test_gaussian_dropout_has_the_deviation_of_its_rate():
    """Of 10000 entries it is found to within a standard deviation of 0.0046; 0.024 is 5.2: false alarms < 1e-6."""
    y = host(pnd.GaussianDropout(0.3, seed=1337)(np.ones((20, 500)), training=True))
    assert y.std() == pytest.approx(np.sqrt(0.3 / 0.7), abs=0.024)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, None),
        ((20, 1, 10), (20, 1, 10)),
        ((None, 1, None), (None, 1, None)),
        ([20, 1, 10], (20, 1, 10)),
    ],
)
def test_a_noise_shape_is_kept_as_a_tuple(given, kept):
    layer = pnd.Dropout(0.5, noise_shape=given, seed=1)
    assert (layer.noise_shape, type(layer.noise_shape)) == (kept, type(kept))
    y = host(layer(np.ones((20, 5, 10)), training=True))
    assert (y == y[:, :1]).all() == (kept is not None)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("Invalid", TypeError),  # Keras, which takes anything that it can iterate over, says ValueError
        ((20, 1.5, 10), ValueError),
        ((20, -1, 10), ValueError),
        ((20, 0, 10), ValueError),
    ],
)
def test_a_noise_shape_has_positive_sizes(given, error):
    with pytest.raises(error, match=re.escape(f"a tuple of sizes and None. Received: noise_shape={given!r}")):
        pnd.Dropout(0.5, noise_shape=given)


@pytest.mark.parametrize("dims", SPATIAL)
def test_a_symbolic_call_needs_no_size_of_the_batch(dims):
    shape = (3, 2, 4, 2)[: dims + 1]
    assert SPATIAL[dims](0.5)(keras.Input(shape), training=True).shape == (None, *shape)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("dims", [2, 3])
def test_whole_maps_are_dropped_in_the_data_format_of_keras(dims, data_format):
    default = keras.config.image_data_format()
    try:
        keras.config.set_image_data_format(data_format)
        layer = SPATIAL[dims](0.5, seed=1)
    finally:
        keras.config.set_image_data_format(default)
    y = host(layer(np.ones((10, 3, 3, 3, 3)[: dims + 2]), training=True))
    maps = y if data_format == "channels_last" else np.moveaxis(y, 1, -1)
    first = maps[(slice(None), *[slice(1)] * dims)]
    assert {*np.unique(first)} == {0.0, 2.0}
    np.testing.assert_array_equal(maps, np.broadcast_to(first, maps.shape))

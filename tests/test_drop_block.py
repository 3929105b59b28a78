"""DropBlock: its masks by brute force from the words, its distribution in closed form, its normaliser."""

import fractions
import itertools
import math

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.layers.base.noisy import xp
from pernodedrop.mask import Field
from pernodedrop.schedules import Linear
from tests.family import first_call, host, inputs

BACKEND = keras.backend.backend()
LAYERS = {1: pnd.DropBlock1D, 2: pnd.DropBlock2D, 3: pnd.DropBlock3D}
SHAPE = (3, 5, 6, 4)  # of most inputs, since JAX compiles anew for every shape


def ones(*shape):
    return np.ones(shape, "float32")


def make(dims, rate, block_size, **kwargs):
    return LAYERS[dims](rate, block_size, **{"data_format": "channels_last", "seed": 1, **kwargs})


def gamma(rate, sizes, block_size):
    """The paper's, for a block that is as long as the axis at most; exact."""
    block = [min(block_size, size) for size in sizes]
    starts = [size - length + 1 for size, length in zip(sizes, block, strict=True)]
    return fractions.Fraction(rate) * math.prod(sizes) / (math.prod(block) * math.prod(starts))


def corners(sizes, block_size):
    """First corners of the blocks that fit, as slices of what each covers."""
    ranges = [range(size - min(block_size, size) + 1) for size in sizes]
    return {
        corner: tuple(slice(start, start + block_size) for start in corner) for corner in itertools.product(*ranges)
    }


def brute_force(shape, rate, block_size, per_channel=True, key=(1, 0)):
    """What is kept, block by block: (batch, *sizes, channels), booleans."""
    batch, *sizes, channels = shape
    words = pnd.ops.random_bits(key, (batch, math.prod(sizes), channels, 1), backend="numpy")
    words = words.reshape(shape) if per_channel else np.broadcast_to(words.reshape(shape)[..., :1], shape)
    limit = (1 - gamma(rate, sizes, block_size)) * 2**24
    kept = np.ones(shape, bool)
    for sample, channel in itertools.product(range(batch), range(channels)):
        for corner, block in corners(sizes, block_size).items():
            if int(words[(sample, *corner, channel)]) >> 8 >= limit:
                kept[(sample, *block, channel)] = False
    return kept


def coverage(sizes, block_size):
    """How many blocks cover each position."""
    count = np.zeros(sizes, int)
    for block in corners(sizes, block_size).values():
        count[block] += 1
    return count


@pytest.mark.parametrize(
    ("sizes", "block_size", "per_channel"),
    [
        ((9,), 3, True),
        ((8,), 4, True),
        ((5, 6), 3, True),
        ((5, 6), 3, False),
        ((5, 6), 2, True),
        ((3, 8), 5, True),
        ((4, 5, 6), 2, True),
    ],
)
def test_masks_are_those_of_a_brute_force_over_blocks(sizes, block_size, per_channel):
    shape, rate = (3, *sizes, 4), 0.4
    kept = brute_force(shape, rate, block_size, per_channel)
    assert 0 < kept.mean() < 1
    x = inputs(*shape)
    y = first_call(make(len(sizes), rate, block_size, per_channel=per_channel), x)
    share = kept.reshape(3, -1).mean(axis=1).reshape(3, *(1,) * len(sizes), 1)
    np.testing.assert_array_equal(y != 0, kept)
    np.testing.assert_allclose(y, x * kept / np.maximum(share, 1e-9), rtol=1e-6)


@pytest.mark.parametrize("sizes", [(7, 14), (14, 7)])
def test_blocks_are_where_they_fit_along_each_axis(sizes):
    """Of 4096 maps, about 1500 of which have one block. KerasCV, bounding rows by the width, has 72 and 25 places."""
    dropped = first_call(make(2, 0.1, 3), ones(16, *sizes, 256)) == 0
    maps = np.moveaxis(dropped, 3, 1).reshape(-1, sizes[0] * sizes[1])
    first = maps[maps.sum(axis=1) == 9].argmax(axis=1)
    assert set(zip(*np.unravel_index(first, sizes), strict=True)) == set(corners(sizes, 3))
    assert len(corners(sizes, 3)) == 60


def test_share_that_is_dropped_has_the_closed_form_of_independent_blocks():
    """Of 8192 maps of 14 x 14; the key is fixed. Were it not: 6 standard deviations at 196 positions, below 1e-6."""
    count = coverage((14, 14), 7)
    share = 1 - (1 - float(gamma(0.1, (14, 14), 7))) ** count
    dropped = first_call(make(2, 0.1, 7), ones(64, 14, 14, 128)) == 0
    deviation = dropped.mean(axis=(0, 3)) - share
    assert np.abs(deviation / np.sqrt(share * (1 - share) / 8192)).max() < 6


def test_documented_shares_are_those_of_the_closed_form():
    share = 1 - (1 - float(gamma(0.1, (14, 14), 7))) ** coverage((14, 14), 7)
    documented = [round(value, 3) for value in (share.max(), share[0, 0], share.mean())]
    assert documented == [0.265, 0.006, 0.093]
    simulated = (0.27, 0.004, 0.092)  # as published of other people's simulations
    assert np.allclose(simulated, (share.max(), share[0, 0], share.mean()), atol=0.006)
    assert all(str(value) in " ".join(pnd.DropBlock2D.__doc__.split()) for value in documented)


def test_closed_form_is_the_sum_over_all_patterns_of_seeds():
    sizes, block_size, rate = (5,), 2, 0.3
    blocks, p = list(corners(sizes, block_size).values()), float(gamma(rate, sizes, block_size))
    share = np.zeros(sizes)
    for pattern in itertools.product((False, True), repeat=len(blocks)):
        dropped = np.zeros(sizes, bool)
        for block in itertools.compress(blocks, pattern):
            dropped[block] = True
        share += dropped * p ** sum(pattern) * (1 - p) ** (len(blocks) - sum(pattern))
    np.testing.assert_allclose(share, 1 - (1 - p) ** coverage(sizes, block_size), rtol=1e-12)


@pytest.mark.parametrize(("sizes", "block_size"), [((14, 14), 7), ((5, 9), 4), ((3, 3), 3), ((4, 5, 6), 2), ((31,), 6)])
def test_thresholds_are_gamma_and_the_same_on_every_backend(sizes, block_size):
    ratio = gamma(1, sizes, block_size)
    like = keras.ops.convert_to_tensor(0.0)
    for rate in np.random.default_rng(0).uniform(0, 1, 100):
        noise = pnd.Bernoulli(rate)
        numbers = {"threshold": xp.asarray(np.int32(noise.threshold))}
        share = xp.asarray(np.float32(ratio), device=xp.device(like))
        field = Field(noise, noise.thinned(numbers, share, xp), (None, None))
        threshold = int(host(field.params["threshold"]))
        assert threshold == 2**24 - int(np.float32(2**24 - noise.threshold) * np.float32(float(ratio)))
        assert abs((1 - fractions.Fraction(threshold, 2**24)) - fractions.Fraction(rate) * ratio) < fractions.Fraction(
            1, 2**23
        )


def test_blocks_of_one_are_dropout():
    x = ones(*SHAPE)
    dropout = host(pnd.Dropout(0.3, seed=1)(x, training=True))
    np.testing.assert_array_equal(host(make(2, 0.3, 1)(x, training=True)) == 0, dropout == 0)


def test_blocks_of_the_size_of_the_map_are_spatial_dropout():
    x = ones(*SHAPE)
    spatial = host(pnd.SpatialDropout2D(0.3, data_format="channels_last", seed=1)(x, training=True))
    np.testing.assert_array_equal(host(make(2, 0.3, 7)(x, training=True)) == 0, spatial == 0)


def test_a_sample_that_is_dropped_whole_is_zero_and_not_nan():
    for normalize in ("sample", "batch"):
        layer = make(2, 1 - 2**-24, 7, normalize=normalize)
        assert (host(layer(ones(*SHAPE), training=True)) == 0).all()


def test_what_is_kept_of_a_sample_has_mean_one_whatever_stands_beside_it():
    layer, x = make(2, 0.3, 3), ones(*SHAPE)
    y = host(layer(x, training=True, key=(1, 0)))
    np.testing.assert_allclose(y.mean(axis=(1, 2, 3)), 1, rtol=1e-6)
    alone = host(layer(x[:1], training=True, key=(1, 0), sample_ids=np.array([2])))
    np.testing.assert_array_equal(alone[0], y[2])


def test_normalized_over_the_batch_the_batch_has_mean_one():
    layer, x = make(2, 0.3, 3, normalize="batch"), ones(*SHAPE)
    y = host(layer(x, training=True))
    kept = brute_force(SHAPE, 0.3, 3)
    np.testing.assert_allclose(y, kept / kept.mean(), rtol=1e-6)
    assert len(np.unique(y)) == 2


@pytest.mark.parametrize("per_channel", [True, False])
def test_masks_do_not_depend_on_the_data_format(per_channel):
    x = inputs(*SHAPE)
    last = host(make(2, 0.3, 3, per_channel=per_channel)(x, training=True))
    first = make(2, 0.3, 3, per_channel=per_channel, data_format="channels_first")
    np.testing.assert_array_equal(np.moveaxis(host(first(np.moveaxis(x, -1, 1), training=True)), 1, -1), last)


def test_gamma_follows_a_schedule_and_a_rate_that_is_set():
    x, scheduled, held = ones(*SHAPE), make(2, Linear(0.0, 0.5, steps=2), 3), make(2, 0.1, 3)
    for call, rate in enumerate((0.0, 0.25, 0.5, 0.5)):
        kept = brute_force(SHAPE, rate, 3, key=(1, call))
        held.rate = rate
        for layer in (scheduled, held):
            np.testing.assert_array_equal(host(layer(x, training=True)) > 0, kept)


def test_rate_zero_and_inference_are_the_identity():
    x = inputs(*SHAPE)
    np.testing.assert_array_equal(host(make(2, 0.0, 3)(x, training=True)), x)
    np.testing.assert_array_equal(host(make(2, 0.5, 3)(x)), x)
    assert isinstance(make(2, 0.5, 3).fold(), keras.layers.Identity)


def test_half_precision_counts_in_float32():
    """There are more entries than the largest float16."""
    shape = (1, 32, 32, 128)
    y = first_call(make(2, 0.2, 4, dtype="mixed_float16"), ones(*shape)).astype("float32")
    kept = y > 0
    np.testing.assert_allclose(y[kept], 1 / kept.mean(), rtol=1e-3)


@pytest.mark.parametrize("dims", LAYERS)
def test_config_round_trip_keeps_everything(dims):
    layer = make(
        dims, 0.2, 3, per_channel=False, normalize="batch", data_format="channels_first", dtype="mixed_bfloat16"
    )
    again = LAYERS[dims].from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    own = (again.rate, again.block_size, again.per_channel, again.normalize, again.data_format, again.dtype_policy.name)
    assert own == (layer.rate, 3, False, "batch", "channels_first", "mixed_bfloat16")


@pytest.mark.only_backend("tensorflow", reason="only TensorFlow traces sizes that it does not know")
def test_only_the_batch_may_be_unknown():
    import tensorflow as tf

    layer, x = make(2, 0.4, 3), inputs(*SHAPE)
    call = tf.function(lambda x: layer(x, training=True, key=(1, 0)))
    y = call.get_concrete_function(tf.TensorSpec((None, 5, 6, 4)))(tf.constant(x))
    np.testing.assert_array_equal(host(y) != 0, brute_force(x.shape, 0.4, 3))
    with pytest.raises(ValueError, match=r"`inputs`.*known sizes, but for the batch's"):
        call.get_concrete_function(tf.TensorSpec((None, None, 6, 4)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pnd.DropBlock2D(1.0), r"`rate`.*rate=1.0"),
        (lambda: pnd.DropBlock2D(0.1, 0), r"`block_size`.*an int from 1.*block_size=0"),
        (lambda: pnd.DropBlock2D(0.1, (3, 3)), r"`block_size`.*an int from 1"),
        (lambda: pnd.DropBlock2D(0.1, per_channel="yes"), r"`per_channel`.*True or False"),
        (lambda: pnd.DropBlock2D(0.1, normalize="samples"), r"`normalize`.*did you mean 'sample'"),
        (lambda: pnd.DropBlock2D(0.1, data_format="last"), r"`data_format`.*'channels_last'"),
        (lambda: pnd.DropBlock2D(0.1)(inputs(2, 3, 4)), r"expected ndim=4, found ndim=3"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()

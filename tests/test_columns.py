"""FractalNet's drop-path, against NumPy with masks from the words alone."""

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop import contrast, generator
from pernodedrop.backends import numpy_ops
from pernodedrop.contrast import columns as lanes
from pernodedrop.internals import of_keras
from pernodedrop.layers.base.noise_layer import NoiseLayer
from tests.contrast import assign, called
from tests.family import host, inputs
from tests.frameworks import needs_gradients, value_and_gradients

ONCE = pytest.mark.once


def several(kind, *arguments):
    """The layers of three columns."""
    return [kind(*arguments) for _ in range(7)]


def uniform(lane, key, samples, time=0):
    """Uniform numbers of a lane, one for each sample, from the words alone."""
    place = [np.array([n], "uint32") for n in (*key, lane, time)]
    zero = np.zeros(1, "uint32")
    words = generator.words(tuple(place[:2]), place[2], place[3], samples, zero, zero, numpy_ops)
    return ((words >> np.uint32(9)) + 0.5) / 2**23


def kept(count, columns, batch, key=(1, 0), rate=0.5, share=0.5, place=0):
    """Which columns are kept, (batch, count), sample by sample."""
    mask = pnd.ops.sample_mask(pnd.Bernoulli(rate), key, (batch, place + 1, count, 1), sharing=(), backend="numpy")
    samples, found = np.arange(batch, dtype="uint32"), []
    survivor = (uniform(lanes.SURVIVOR, key, samples, place) * count).astype(int)
    column = (uniform(lanes.COLUMN, key, samples) * columns).astype(int)
    is_global = uniform(lanes.MODE, key, samples) < share
    for n in samples:
        local = mask[n, place, :, 0] > 0
        if not local.any():
            local[survivor[n]] = True
        alone = np.arange(count) == column[n]
        found.append(alone if is_global[n] and alone.any() else local)
    return np.array(found)


@pytest.mark.parametrize(("columns", "place", "share"), [
    (None, 0, 0.5), (5, 3, 0.5), pytest.param(None, 2, 1.0, marks=ONCE), pytest.param(None, 1, 0.0, marks=ONCE),
])  # fmt: skip
def test_a_join_is_the_mean_of_what_is_kept(columns, place, share):
    x = [inputs(40, 2, 3), 2 * inputs(40, 2, 3) + 1, 3 - inputs(40, 2, 3)]
    for sharing, batch in ((None, 40), ("sample", 1)):
        join = contrast.FractalJoin(0.5, share, columns, place, sharing, seed=1)
        for call in (0, 1):
            m = kept(3, columns or 3, batch, (1, call), share=share, place=place)[..., None, None]
            mean = sum(m[:, n] * x[n] for n in range(3)) / m.sum(axis=1)
            np.testing.assert_allclose(called(join, x, training=True, key=(1, call)), mean, atol=1e-5)
    np.testing.assert_allclose(called(join, x), np.mean(x, axis=0), atol=1e-6)


@ONCE
def test_columns_are_kept_as_often_as_the_paper_says():
    """Shares of 2**15 samples at one key. Were it not fixed: 5 standard deviations each, 6e-7."""
    size, rate, count = 2**15, 0.6, 3
    x = [np.eye(count, dtype="float32")[n] * np.ones((size, 1), "float32") for n in range(count)]

    def shares(**kwargs):
        m = host(contrast.FractalJoin(rate, sharing=None, seed=1, **kwargs)(x, training=True)) > 0
        assert m.any(axis=1).all()
        return m

    def agrees(hits, chance):
        assert abs(np.mean(hits) - chance) < 5 * np.sqrt(chance * (1 - chance) / size)

    local = shares(global_share=0.0)
    for n in range(count):
        agrees(local[:, n], 1 - rate + rate**count / count)
        agrees(local.sum(axis=1) == 1, count * (1 - rate) * rate**2 + rate**count)
    both = shares(global_share=0.25)
    agrees(both.all(axis=1), 0.75 * (1 - rate) ** count)
    everywhere, elsewhere = shares(global_share=1.0), shares(global_share=1.0, place=7)
    assert (everywhere.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(everywhere, elsewhere)  # one column through the network
    for n in range(count):
        agrees(everywhere[:, n], 1 / count)
    apart = shares(global_share=0.0, place=7)
    agrees(local[:, 0] & apart[:, 0], (1 - rate + rate**count / count) ** 2)  # local draws are independent


def fractal(units, x, join, column, start=0):
    """What comes to the join at the end of a fractal of columns 0 to `column`, deepest first, by recursion."""
    if column == 0:
        return [units[0][start](x)]
    half = 2 ** (column - 1)
    middle = join(fractal(units, x, join, column - 1, start), start + half)
    return [*fractal(units, middle, join, column - 1, start + half), units[column][start // 2**column](x)]


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_a_block_is_the_fractal_of_the_paper(columns):
    layers = [keras.layers.Dense(4, activation="tanh") for _ in range(2**columns - 1)]
    block, x = contrast.FractalBlock(layers, 0.5, place=2, sharing=None, seed=1), inputs(12, 3)
    block.build(x.shape)
    assign(block)
    dense = [lambda x, d=d: np.tanh(x @ host(d.kernel) + host(d.bias)) for d in layers]
    sizes = [2 ** (columns - 1 - column) for column in range(columns)]
    ends = np.cumsum(sizes)
    units = [dense[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    assert ends[-1] == len(dense) == 2**columns - 1

    def mean(some, row):
        return np.mean(some, axis=0)

    def dropped(some, row):
        if len(some) == 1:
            return some[0]
        place = 2 * 2**columns // 4 + row // 2 - 1  # after the joins of two blocks
        m = kept(len(some), columns, 12, place=place)[..., None]
        return sum(m[:, n] * some[n] for n in range(len(some))) / m.sum(axis=1)

    last = 2 ** (columns - 1)
    np.testing.assert_allclose(called(block, x), mean(fractal(units, x, mean, columns - 1), last), atol=1e-5)
    wanted = dropped(fractal(units, x, dropped, columns - 1), last)
    state = [[v.value for v in some] for some in (block.trainable_variables, block.non_trainable_variables)]
    got = called(lambda x: block.stateless_call(*state, x, training=True)[0], x)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@ONCE
def test_a_global_draw_is_a_single_column_in_all_blocks_of_a_seed():
    block, other = (
        contrast.FractalBlock(several(keras.layers.Dense, 3), global_share=1.0, place=place, seed=1) for place in (0, 1)
    )
    x = inputs(2, 3)
    paths = []
    for each in (block, other):
        each.build(x.shape)
        dense = [lambda x, d=d: x @ host(d.kernel) for d in each.held("units")]
        paths.append([(dense[0], dense[1], dense[2], dense[3]), (dense[4], dense[5]), (dense[6],)])
    seen = set()
    for call in range(16):
        column = int(uniform(lanes.COLUMN, (1, call), np.zeros(1, "uint32"))[0] * 3)
        wanted = x
        for of_block in paths:
            for unit in of_block[column]:
                wanted = unit(wanted)
        np.testing.assert_allclose(host(other(block(x, training=True), training=True)), wanted, atol=1e-4)
        seen.add(column)
    assert seen == {0, 1, 2}
    assert len({join.seed for join in contrast.FractalBlock(several(keras.layers.Dense, 3)).held("joins")}) == 1


@ONCE
def test_sizes_that_are_not_known_are_those_of_other_columns():
    x = keras.Input((None, 2))
    model = keras.Model(x, contrast.FractalJoin()([x, keras.layers.Reshape((5, 2))(x)]))
    np.testing.assert_array_equal(host(model(inputs(3, 5, 2))), inputs(3, 5, 2))


@needs_gradients
def test_a_dropped_column_learns_nothing():
    join = contrast.FractalJoin(0.5, sharing=None, seed=1)
    m = kept(2, 2, 6)
    _, gradients = value_and_gradients(
        lambda a, b: join([a, b], training=True), inputs(6, 3), inputs(6, 3), upstream=np.ones((6, 3), "float32")
    )
    for n, gradient in enumerate(gradients):
        np.testing.assert_allclose(gradient, np.repeat((m / m.sum(axis=1)[:, None])[:, n, None], 3, 1), atol=1e-6)


@ONCE
def test_a_folded_block_is_plain_and_saved(tmp_path):
    block, x = contrast.FractalBlock([pnd.PerNodeDrop(keras.layers.Dense(4)) for _ in range(7)]), inputs(6, 4)
    model = keras.Sequential([keras.Input((4,)), block])
    assign(model)
    folded = pnd.fold(model)
    assert not any(isinstance(layer, NoiseLayer) for layer in of_keras.layers_of(folded))
    folded.save(tmp_path / "folded.keras")
    for plain in (folded, keras.saving.load_model(tmp_path / "folded.keras")):
        np.testing.assert_allclose(host(plain(x, training=True)), host(model(x)), atol=1e-6)


@pytest.mark.skip_backend("numpy", reason="NumPy arrays cannot carry a Keras mask")
def test_all_layers_of_a_block_have_the_mask():
    block = contrast.FractalBlock([keras.layers.SimpleRNN(3, return_sequences=True) for _ in range(7)])
    x = inputs(2, 5, 3)
    x[:, 2:4] = 0
    a, b, c, d, e, f, last = ((lambda x, layer=layer: layer(x, mask=mask)) for layer in block.held("units"))
    y = block(keras.layers.Masking()(x))
    mask = np.array([[1, 1, 0, 0, 1]] * 2, bool)
    np.testing.assert_array_equal(host(of_keras.mask_of(y)), mask)
    middle = (b(a(x)) + e(x)) / 2
    wanted = (d(c(middle)) + f(middle) + last(x)) / 3
    np.testing.assert_allclose(host(y), host(wanted), atol=1e-6)
    assert not np.allclose(host(block(x)), host(y), atol=1e-3)


@ONCE
def test_predictions_take_a_noisy_layer_with_a_loop_inside_a_block():
    rnns = [pnd.NoisyRNN(keras.layers.SimpleRNN(3, return_sequences=True), 0.5, seed=n) for n in range(3)]
    model = keras.Sequential([keras.Input((5, 3)), contrast.FractalBlock(rnns, 0.0, 0.0)])
    assert pnd.uncertainty.predict(model, inputs(2, 5, 3), samples=3).variance.max() > 0


@ONCE
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: contrast.FractalJoin(1.0), "`rate`"),
        (lambda: contrast.FractalJoin(global_share=2), r"`global_share`.*\[0, 1\]"),
        (lambda: contrast.FractalJoin(columns=0), "`columns`.*from 1"),
        (lambda: contrast.FractalJoin(place=-1), "`place`"),
        (lambda: contrast.FractalJoin(sharing="time"), "`sharing`.*'sample' or None"),
        (lambda: contrast.FractalJoin()(inputs(2, 3)), "`inputs`.*list of the columns"),
        (lambda: contrast.FractalJoin().call([5]), r"`inputs`.*list of the columns.*\[5\]"),
        (lambda: contrast.FractalJoin()([inputs(2, 3), inputs(2, 4)]), "`inputs`.*one shape"),
        (lambda: contrast.FractalJoin()([keras.Input((3,)), keras.Input((3, None))]), "`inputs`.*one shape"),
        (lambda: contrast.FractalBlock([keras.layers.Dense(3)], joins=[contrast.FractalJoin()]), "`joins`.*0 layers"),
        (lambda: contrast.FractalJoin(columns=1)([inputs(2, 3)] * 2), "`inputs`.*1 at most"),
        (
            lambda: contrast.FractalJoin()([inputs(2, 3)] * 2, training=True, sample_ids=np.arange(2)),
            "`sample_ids`.*same for all",
        ),
        (lambda: contrast.FractalBlock("d"), "`units`.*Keras layers"),
        (lambda: contrast.FractalBlock([keras.layers.Dense(3)] * 4), r"`units`.*2\*\*columns - 1"),
        (lambda: contrast.FractalBlock(several(keras.layers.Conv1D, 2, 2))(inputs(2, 5, 3)), "`inputs`.*one shape"),
    ],
)
def test_what_columns_do_not_take_is_refused_by_name(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()

"""What there is to compare with, against NumPy: columns, experts, capsules, early exits."""

import inspect
import typing

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop import contrast, generator
from pernodedrop.backends import numpy_ops
from pernodedrop.contrast import columns as lanes
from pernodedrop.internals import of_keras
from pernodedrop.study import variants
from tests.family import host, inputs
from tests.frameworks import needs_gradients, needs_training, quick, value_and_gradients

BACKEND, ONCE = keras.backend.backend(), pytest.mark.once


def assign(layer, seed=5):
    """Known weights, which are returned by their shapes' order."""
    random = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        variable.assign(random.normal(size=variable.shape) / 2)
    return [host(variable).astype("float64") for variable in layer.trainable_variables]


def called(layer, x, **kwargs):
    """What a call gives, as one: op by op, a new shape takes JAX seconds to compile."""
    function = quick(lambda x: layer(x, **kwargs))
    return keras.tree.map_structure(host, function(keras.tree.map_structure(keras.ops.convert_to_tensor, x)))


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# columns


def uniform(lane, key, samples, time=0, out=0):
    """Uniform numbers of a lane, one for each sample, from the words alone."""
    place = [np.array([n], "uint32") for n in (*key, lane, time)]
    zero, out = np.zeros(1, "uint32"), np.array([out], "uint32")
    words = generator.words(tuple(place[:2]), place[2], place[3], samples, zero, out, numpy_ops)
    return ((words >> np.uint32(9)) + 0.5) / 2**23


def kept(count, columns, batch, key=(1, 0), rate=0.5, share=0.5, place=0, row=0):
    """Which columns are kept, (batch, count), sample by sample."""
    mask = pnd.ops.sample_mask(
        pnd.Bernoulli(rate), key, (batch, place + 1, count, row + 1), sharing=(), backend="numpy"
    )
    samples, found = np.arange(batch, dtype="uint32"), []
    survivor = (uniform(lanes.SURVIVOR, key, samples, place, row) * count).astype(int)
    column = (uniform(lanes.COLUMN, key, samples) * columns).astype(int)
    is_global = uniform(lanes.MODE, key, samples) < share
    for n in samples:
        local = mask[n, place, :, row] > 0
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
    block = contrast.FractalBlock(keras.layers.Dense(4, activation="tanh"), columns, 0.5, place=2, sharing=None, seed=1)
    x = inputs(12, 3)
    block.build(x.shape)
    assign(block)
    dense = [lambda x, d=d: np.tanh(x @ host(d.kernel) + host(d.bias)) for d in [*block.copies, block.layer]]
    sizes = [2 ** (columns - 1 - column) for column in range(columns)]
    ends = np.cumsum(sizes)
    units = [dense[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    assert ends[-1] == len(dense) == 2**columns - 1

    def mean(some, row):
        return np.mean(some, axis=0)

    def dropped(some, row):
        m = kept(len(some), columns, 12, place=2, row=row)[..., None]
        return sum(m[:, n] * some[n] for n in range(len(some))) / m.sum(axis=1)

    last = 2 ** (columns - 1)
    np.testing.assert_allclose(called(block, x), mean(fractal(units, x, mean, columns - 1), last), atol=1e-5)
    wanted = dropped(fractal(units, x, dropped, columns - 1), last)
    np.testing.assert_allclose(called(block, x, training=True, key=(1, 0)), wanted, atol=1e-5)


@ONCE
def test_a_global_draw_is_a_single_column_in_all_blocks_of_a_seed():
    block, other = (
        contrast.FractalBlock(keras.layers.Dense(3), 3, global_share=1.0, place=place, seed=1) for place in (0, 1)
    )
    x = inputs(2, 3)
    paths = []
    for each in (block, other):
        each.build(x.shape)
        dense = [lambda x, d=d: x @ host(d.kernel) for d in [*each.copies, each.layer]]
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


@needs_gradients
def test_a_dropped_column_learns_nothing():
    join = contrast.FractalJoin(0.5, sharing=None, seed=1)
    m = kept(2, 2, 6)
    _, gradients = value_and_gradients(
        lambda a, b: join([a, b], training=True), inputs(6, 3), inputs(6, 3), upstream=np.ones((6, 3), "float32")
    )
    for n, gradient in enumerate(gradients):
        np.testing.assert_allclose(gradient, np.repeat((m / m.sum(axis=1)[:, None])[:, n, None], 3, 1), atol=1e-6)


# experts


def mixture(x, gate, experts, top_k, capacity=None):
    """A sparse mixture of linear experts row by row, and the loss that balances it."""
    z = x @ gate
    p = softmax(z)
    order = np.argsort(-z, axis=1)[:, :top_k]
    y, load = np.zeros((len(x), experts[0][0].shape[1])), np.zeros(len(experts), int)
    for choice in range(top_k):
        for row in range(len(x)):
            e = order[row, choice]
            load[e] += 1
            if capacity is not None and load[e] > capacity:
                continue
            g = p[row, e] if top_k == 1 else softmax(z[row, order[row]])[choice]
            y[row] += g * (x[row] @ experts[e][0] + experts[e][1])
    f = np.bincount(order.ravel(), minlength=len(experts)) / order.size
    return y, len(experts) * (f * p.mean(axis=0)).sum()


def built_mixture(**kwargs):
    layer = contrast.MixtureOfExperts(keras.layers.Dense(5), **kwargs)
    layer.build((None, 3, 6))
    gate, *weights = assign(layer)
    return layer, gate, list(zip(weights[::2], weights[1::2], strict=True))


@pytest.mark.parametrize(
    ("top_k", "factor", "capacity"),
    [
        *((1, 1.0, 6), (2, 0.5, 6)),
        *(pytest.param(*case, marks=ONCE) for case in [(2, 1.25, 15), (3, 9.0, 24), (4, None, None)]),
    ],
)
def test_a_mixture_is_what_its_experts_make_of_the_rows_they_take(top_k, factor, capacity):
    layer, gate, experts = built_mixture(top_k=top_k, capacity_factor=factor, balance=0.5)
    x = inputs(8, 3, 6)
    rows = x.reshape(24, 6).astype("float64")
    y, loss = mixture(rows, gate, experts, top_k, capacity)
    got, of_balance = called(lambda x: (layer(x, training=True), layer.losses), x)
    np.testing.assert_allclose(got.reshape(24, 5), y, atol=1e-4)
    np.testing.assert_allclose(of_balance, [0.5 * loss], rtol=1e-5)
    if factor in (0.5, 1.0):  # so small that some rows found no place
        assert not np.allclose(y, mixture(rows, gate, experts, top_k)[0])
    np.testing.assert_allclose(called(layer, x).reshape(24, 5), mixture(rows, gate, experts, top_k)[0], atol=1e-4)
    assert layer.losses == []


@ONCE
def test_an_even_mixture_has_the_least_loss():
    layer, *_ = built_mixture(top_k=1)
    even = np.full((8, 4), 0.25, "float32")
    assert host(layer.imbalance(np.arange(8)[:, None] % 4, even)) == 1
    assert host(layer.imbalance(np.zeros((8, 1), int), np.eye(4, dtype="float32")[np.zeros(8, int)])) == 4


@needs_gradients
@pytest.mark.parametrize("top_k", [1, 2])
def test_gradients_go_through_experts_and_gate(top_k):
    """Against differences of the reference."""
    layer, gate, experts = built_mixture(top_k=top_k, capacity_factor=0.75)
    x = inputs(12, 6)
    upstream = inputs(12, 5)
    names = [variable.path for variable in layer.trainable_variables]

    def call(x, *weights):
        state = [variable.value for variable in layer.non_trainable_variables]
        return layer.stateless_call(weights, state, x, training=True)[0]

    _, gradients = value_and_gradients(
        call, x, *(host(variable) for variable in layer.trainable_variables), upstream=upstream
    )
    capacity = layer.capacity(12)

    def total(gate, first):
        return (
            mixture(x.astype("float64"), gate, [(first, experts[0][1]), *experts[1:]], top_k, capacity)[0] * upstream
        ).sum()

    assert len(names) == len(gradients) - 1
    np.testing.assert_allclose(gradients[1], differences(lambda g: total(g, experts[0][0]), gate), atol=1e-3)
    np.testing.assert_allclose(gradients[2], differences(lambda w: total(gate, w), experts[0][0]), atol=1e-3)


def differences(function, at, step=1e-5):
    """The gradient of a function of an array by central differences."""
    found = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        moved = np.zeros_like(at)
        moved[place] = step
        found[place] = (function(at + moved) - function(at - moved)) / (2 * step)
    return found


# capsules


def squash(s):
    norm = np.linalg.norm(s, axis=-1, keepdims=True)
    return norm / (1 + norm**2) * s


def routed(u, w, iterations):
    """Procedure 1 of the paper, capsule by capsule."""
    below, count = w.shape[:2]
    out = np.zeros((len(u), count, w.shape[3]))
    for sample in range(len(u)):
        h = np.array([[u[sample, i] @ w[i, j] for j in range(count)] for i in range(below)])
        b = np.zeros((below, count))
        for _ in range(iterations):
            c = softmax(b)
            v = np.array([squash(sum(c[i, j] * h[i, j] for i in range(below))) for j in range(count)])
            b += np.array([[h[i, j] @ v[j] for j in range(count)] for i in range(below)])
        out[sample] = v
    return out


@pytest.mark.parametrize("iterations", [1, 3])
def test_capsules_are_routed_as_the_paper_does(iterations):
    layer, u = contrast.Capsules(4, 5, iterations), inputs(3, 6, 2)
    layer.build(u.shape)
    (w,) = assign(layer)
    np.testing.assert_allclose(called(layer, u), routed(u, w, iterations), atol=1e-5)


@ONCE
def test_squashed_vectors_keep_their_direction():
    u = inputs(3, 6, 2)
    np.testing.assert_allclose(host(contrast.squash(u)), squash(u), atol=1e-6)
    np.testing.assert_allclose(host(contrast.squash(u, axis=1)), squash(u.swapaxes(1, 2)).swapaxes(1, 2), atol=1e-6)
    np.testing.assert_allclose(host(contrast.lengths(u)), np.linalg.norm(u, axis=-1), atol=1e-6)


@needs_gradients
def test_gradients_go_through_the_routing_and_are_numbers_at_zero():
    layer, u, upstream = contrast.Capsules(2, 3), inputs(2, 3, 2), inputs(2, 2, 3)
    layer.build(u.shape)
    (w,) = assign(layer)
    _, (of_u, of_w) = value_and_gradients(
        lambda u, w: layer.stateless_call([w], [], u)[0], u, w.astype("float32"), upstream=upstream
    )
    np.testing.assert_allclose(of_w, differences(lambda w: (routed(u, w, 3) * upstream).sum(), w), atol=1e-3)
    wanted = differences(lambda u: (routed(u, w, 3) * upstream).sum(), u.astype("float64"))
    np.testing.assert_allclose(of_u, wanted, atol=1e-3)
    for function in (contrast.squash, contrast.lengths):
        y, (gradient,) = value_and_gradients(
            function,
            np.zeros((2, 3), "float32"),
            upstream=np.ones(np.shape(host(function(np.zeros((2, 3), "float32")))), "float32"),
        )
        np.testing.assert_allclose(y, 0, atol=1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


@ONCE
def test_the_margin_loss_is_equation_4():
    there, v = np.array([[1, 0, 1], [0, 0, 1]], "float32"), np.array([[0.95, 0.3, 0.2], [0.05, 1.0, 0.9]], "float32")
    wanted = np.array([0.5 * 0.2**2 + 0.7**2, 0.5 * 0.9**2])
    np.testing.assert_allclose(host(contrast.MarginLoss()(there, v)), wanted.mean(), rtol=1e-5)
    loss = contrast.MarginLoss(0.8, 0.2, 1.0, reduction=None)
    np.testing.assert_allclose(host(loss(there, v)), [0.1**2 + 0.6**2, 0.8**2], rtol=1e-5)
    again = contrast.MarginLoss.from_config(loss.get_config())
    assert again.get_config() == loss.get_config()


# early exits


@keras.saving.register_keras_serializable("tests")
class Counted(keras.layers.Dense):
    """A Dense that counts the rows it computes, where calls are not compiled."""

    rows = 0

    def call(self, x):
        self.rows += len(x) if isinstance(x, np.ndarray) else 0
        return super().call(x)


def network(count=3, **kwargs):
    """One with exits, of known weights."""
    stages = [Counted(5, activation="tanh") for _ in range(count)]
    model = contrast.EarlyExits(stages, [keras.layers.Dense(3, activation="softmax") for _ in stages], **kwargs)
    model.build((None, 4))
    assign(model)
    return model


def outputs_of(model, x):
    """What each exit gives."""
    found = []
    for stage, leave in zip(model.stages, model.exits, strict=True):
        x = np.tanh(x @ host(stage.kernel) + host(stage.bias))
        found.append(softmax(x @ host(leave.kernel) + host(leave.bias)))
    return np.array(found)


def taken(outputs, thresholds):
    """The exit that each sample takes."""
    entropies = -(outputs * np.log(outputs)).sum(axis=-1)
    return np.array([next(n for n, t in enumerate([*thresholds, np.inf]) if e[n] < t) for e in entropies.T])


def test_a_sample_has_the_output_of_the_first_exit_that_is_sure_enough():
    model, x = network(thresholds=[0.9, 0.8]), 2 * inputs(50, 4)
    outputs = outputs_of(model, x)
    *trained, chosen = called(model, x, training=True)
    for got, wanted in zip(trained, outputs, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    for thresholds in ([0.9, 0.8], [0.0, 0.95]):
        model.thresholds = thresholds
        exits = taken(outputs, thresholds)
        wanted = outputs[exits, np.arange(50)]
        np.testing.assert_allclose(called(model, x), wanted, atol=1e-5)
        np.testing.assert_allclose(chosen, wanted, atol=1e-5 if thresholds[0] else 1)
        found = model.predict_exits(x, batch_size=16)
        np.testing.assert_array_equal(found.exits, exits)
        np.testing.assert_allclose(found.outputs, wanted, atol=1e-5)
    assert 0 < np.mean(taken(outputs, [0.9, 0.8]) == 0) < 1
    np.testing.assert_allclose(model.predict(x, verbose=0), wanted, atol=1e-5)


@pytest.mark.only_backend("numpy", reason="the others trace calls once")
def test_samples_that_have_left_are_computed_no_more():
    model, x = network(thresholds=[0.9, 0.8]), 2 * inputs(500, 4)
    for stage in model.stages:
        stage.rows = 0
    exits = model.predict_exits(x, batch_size=10).exits
    left = [500, *(np.sum(exits > n) for n in range(2))]
    rows = [stage.rows for stage in model.stages]
    assert all(0 <= now - wanted < 10 for now, wanted in zip(rows, left, strict=True)), (rows, left)
    assert rows[2] < rows[1] < 500


@ONCE
def test_the_loss_is_the_weighted_sum_of_that_of_the_exits():
    model, x, y = network(exit_weights=[1.0, 0.5, 2.0]), inputs(6, 4), np.arange(6) % 3
    model.compile(loss="sparse_categorical_crossentropy")
    outputs = outputs_of(model, x)
    each = -np.log(outputs[:, np.arange(6), y])
    loss = model.compute_loss(x, keras.ops.convert_to_tensor(y), model(x, training=True))
    np.testing.assert_allclose(host(loss), [1.0, 0.5, 2.0] @ each.mean(axis=1), rtol=1e-4)
    weights = np.arange(6, dtype="float32")
    loss = model.compute_loss(x, keras.ops.convert_to_tensor(y), model(x, training=True), weights)
    np.testing.assert_allclose(host(loss), [1.0, 0.5, 2.0] @ (weights * each).mean(axis=1), rtol=1e-4)


@needs_training
def test_metrics_are_of_what_is_chosen():
    model, x, y = network(thresholds=9.0), inputs(6, 4), np.arange(6) % 3
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    hit = np.mean(outputs_of(model, x)[0].argmax(axis=1) == y)
    assert model.evaluate(x, y, verbose=0)[1] == pytest.approx(hit)
    assert model.fit(x, y, verbose=0).history["accuracy"] == [pytest.approx(hit)]


@ONCE
@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_with_sample_weight", "sum_over_batch_size"])
def test_the_joint_loss_is_that_of_each_exit_whatever_its_reduction(reduction):
    model, x, y = network(exit_weights=[1.0, 0.5, 2.0]), inputs(6, 4), keras.ops.convert_to_tensor(np.arange(6) % 3)
    model.stages[1].activity_regularizer = keras.regularizers.L2(0.1)
    loss, weights = keras.losses.SparseCategoricalCrossentropy(reduction=reduction), np.arange(6, dtype="float32")
    model.compile(loss=loss)
    got = model.compute_loss(x, y, model(x, training=True), weights)
    each = [host(loss(y, output, weights)) for output in outputs_of(model, x).astype("float32")]
    np.testing.assert_allclose(host(got), [1.0, 0.5, 2.0] @ np.array(each) + host(sum(model.losses)), rtol=1e-4)
    assert host(sum(model.losses)) > 0


@ONCE
def test_samples_leave_in_half_precision_and_where_a_stage_and_its_exit_have_one_name():
    stages = [keras.layers.Dense(5, name=name) for name in ("one", "two")]
    exits = [keras.layers.Dense(3, "softmax", name=name, dtype="float16") for name in ("one", "two")]
    model = contrast.EarlyExits(stages, exits, thresholds=0.5)
    x = inputs(20, 4)
    model(x)
    for leave in exits:
        leave.kernel.assign(1000 * host(leave.kernel))  # probabilities that are 0 in float16
    outputs, found = host(model(x)), model.predict_exits(x)
    assert found.outputs.dtype == "float16"
    np.testing.assert_array_equal(found.exits, 0)
    np.testing.assert_allclose(found.outputs.sum(axis=1), 1, atol=1e-2)
    np.testing.assert_allclose(found.outputs, outputs, atol=1e-2)


# all of them


def several(kind, layer, **kwargs):
    """A layer that holds copies of another."""
    return contrast.FractalBlock(layer, 2, **kwargs) if kind == "columns" else contrast.MixtureOfExperts(layer)


@ONCE
@pytest.mark.parametrize("kind", ["columns", "experts"])
@pytest.mark.parametrize("given", [[], [(4,)]], ids=["open", "with Input"])
def test_models_are_copied_with_weights_of_their_own(kind, given, tmp_path):
    inside = [keras.layers.Dense(3, activation="relu"), keras.layers.Dense(5)]
    layer = several(kind, keras.Sequential([*map(keras.Input, given), *inside]))
    model, x = keras.Sequential([keras.Input((4,)), layer]), inputs(6, 4)
    first = [host(one.layers[-1].kernel) for one in (layer.layer, layer.copy_0, layer.copy_1)]
    assert len({one.tobytes() for one in first}) == 3
    assign(model)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert len(again.variables) == len(model.variables)
    np.testing.assert_array_equal(host(again(x)), host(model(x)))
    np.testing.assert_array_equal(host(again(x, training=True)), host(model(x, training=True)))
    if kind == "columns":
        np.testing.assert_allclose(host(again.layers[0].fold()(x)), host(model(x)), atol=1e-6)


@ONCE
@pytest.mark.parametrize("kind", ["columns", "experts"])
def test_copies_have_names_and_seeds_of_their_own(kind):
    glorot = keras.initializers.GlorotUniform(seed=3)
    layer = several(kind, pnd.PerNodeDrop(keras.layers.Dense(5, kernel_initializer=glorot), seed=1, name="one"))
    layer.build((None, 5))
    all_of_them = [layer.layer, layer.copy_0, layer.copy_1]
    assert [one.name for one in all_of_them] == ["one", "one_copy_0", "one_copy_1"]
    assert len({one.seed for one in all_of_them}) == len({host(one.kernel).tobytes() for one in all_of_them}) == 3
    again = type(layer).from_config(layer.get_config())
    assert [one.seed for one in (again.layer, again.copy_0, again.copy_1)] == [one.seed for one in all_of_them]


@ONCE
def test_a_folded_block_is_plain_whatever_its_layers_are_called():
    block, x = contrast.FractalBlock(pnd.PerNodeDrop(keras.layers.Dense(5)), 3), inputs(6, 4)
    y = host(block(x))
    block.copy_0.layer.name = block.layer.layer.name  # only names of layers that are folded could meet
    folded = block.fold()
    assert all(type(layer).__module__.startswith("keras.") for layer in folded.layers)
    np.testing.assert_allclose(host(folded(x)), y, atol=1e-6)


@pytest.mark.skip_backend("numpy", reason="NumPy arrays cannot carry a Keras mask")
def test_all_layers_of_a_block_have_the_mask():
    block = contrast.FractalBlock(keras.layers.SimpleRNN(3, return_sequences=True), 3)
    x = inputs(2, 5, 3)
    x[:, 2:4] = 0
    a, b, c, d, e, f = ((lambda x, layer=layer: layer(x, mask=mask)) for layer in block.copies)
    y = block(keras.layers.Masking()(x))
    mask = np.array([[1, 1, 0, 0, 1]] * 2, bool)
    np.testing.assert_array_equal(host(of_keras.mask_of(y)), mask)
    middle = (b(a(x)) + e(x)) / 2
    wanted = (d(c(middle)) + f(middle) + block.layer(x, mask=mask)) / 3
    np.testing.assert_allclose(host(y), host(wanted), atol=1e-6)
    assert not np.allclose(host(block(x)), host(y), atol=1e-3)


@ONCE
def test_predictions_take_a_noisy_layer_with_a_loop_inside_a_block():
    rnn = pnd.NoisyRNN(keras.layers.SimpleRNN(3, return_sequences=True), 0.5, seed=1)
    model = keras.Sequential([keras.Input((5, 3)), contrast.FractalBlock(rnn, 2, seed=1)])
    assert pnd.uncertainty.predict(model, inputs(2, 5, 3), samples=3).variance.max() > 0


class Training(keras.layers.Dense):
    """A Dense that notes whether its calls are of training."""

    seen: typing.ClassVar[list[bool | None]] = []

    def call(self, x, training=None):
        self.seen.append(training)
        return super().call(x)


@needs_gradients
@pytest.mark.skip_backend("jax", reason="Keras traces `training` there")
@pytest.mark.parametrize("kind", ["columns", "experts"])
def test_inner_layers_train_where_the_backward_pass_makes_them_again(kind):
    with keras.RematScope("full"):
        layer = several(kind, Training(3))
    layer.build((None, 3))
    Training.seen.clear()
    value_and_gradients(lambda x: layer(x, training=True), inputs(4, 3), upstream=inputs(4, 3))
    assert len(Training.seen) >= 3
    assert all(Training.seen), Training.seen


@ONCE
def test_small_shares_are_one_row_and_no_rows_have_no_loss():
    def mixture(**kwargs):
        return contrast.MixtureOfExperts(dense(), **kwargs)

    assert mixture(capacity_factor=1e-5).capacity(8) == 1
    wide = mixture(experts=5)
    wide.experts = 5000  # as many copies take seconds to make
    assert [wide.capacity(rows) for rows in (1, 2000, 2001)] == [1, 1, 2]  # ceil(rows * 2 / 5000 * 1.25)
    layer = mixture()
    assert layer(np.zeros((0, 4), "float32"), training=True).shape == (0, 3)
    np.testing.assert_array_equal(host(layer.losses[0]), 0)


def capsule_network(**kwargs):
    x = keras.Input((6,))
    below = contrast.squash(keras.layers.Reshape((3, 2))(x))
    return keras.Model(x, contrast.lengths(contrast.Capsules(3, 4, **kwargs)(below)))


MODELS = {
    "experts": lambda **kw: keras.Sequential(
        [
            keras.Input((6,)),
            contrast.MixtureOfExperts(keras.layers.Dense(6, activation="relu"), **kw),
            keras.layers.Dense(3, activation="softmax"),
        ]
    ),
    "capsules": capsule_network,
    "exits": lambda **kw: contrast.EarlyExits(
        [keras.layers.Dense(6, activation="relu", **kw) for _ in range(2)],
        [keras.layers.Dense(3, activation="softmax", **kw) for _ in range(2)],
        thresholds=0.5,
    ),
}
JIT = {"jax": [True], "tensorflow": [False, pytest.param(True, marks=pytest.mark.slow)]}.get(BACKEND, [False])
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
OWN = {
    *("experts", "top_k", "capacity_factor", "balance", "capsules", "dim", "iterations", "exit_weights", "thresholds"),
}
"""Arguments that configs have as they were given."""
LABELS = np.eye(3, dtype="float32")[np.arange(48) % 3]


@ONCE
@every_model
def test_files_bring_it_back(make, tmp_path):
    model, x = make(), inputs(48, 6)
    model(x)
    assign(model)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    layers = [
        [layer for layer in (m, *m.layers) if type(layer).__module__.startswith("pernodedrop.")] for m in (again, model)
    ]
    assert layers[1]
    for found, wanted in zip(*layers, strict=True):
        own = {name: wanted.get_config()[name] for name in inspect.signature(type(wanted)).parameters if name in OWN}
        assert {name: found.get_config()[name] for name in own} == own
    for training in (False, True):
        for got, wanted in zip(*(keras.tree.flatten(m(x, training=training)) for m in (again, model)), strict=True):
            np.testing.assert_array_equal(host(got), host(wanted))


@pytest.mark.only_backend("tensorflow", reason="a tf.train.Checkpoint is TensorFlow's")
@every_model
def test_a_checkpoint_of_tensorflow_has_every_variable(make, tmp_path):
    import tensorflow as tf

    model, again, x = make(), make(), inputs(4, 6)
    model(x), again(x)
    assign(model)
    path = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
    tf.train.Checkpoint(model=again).restore(path).assert_consumed()
    np.testing.assert_array_equal(host(again(x)), host(model(x)))


@every_model
@pytest.mark.parametrize("policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=ONCE)])
def test_half_precision_is_near(make, policy):
    half, plain, x = make(dtype=policy), make(), inputs(48, 6)
    half.build((None, 6)), plain.build((None, 6))
    for variable, other in zip(plain.weights, half.weights, strict=True):
        variable.assign(host(other).astype(variable.dtype))
    for training in (False, True):
        for got, wanted in zip(
            *(keras.tree.flatten(called(m, x, training=training)) for m in (half, plain)), strict=True
        ):
            assert np.quantile(abs(got.astype("float32") - wanted), 0.9) < 0.05  # a row may go elsewhere


@needs_training
@every_model
@pytest.mark.parametrize("jit_compile", JIT)
def test_fit_lowers_the_loss_and_moves_all_weights(make, jit_compile):
    keras.utils.set_random_seed(3)
    model, x = make(), inputs(48, 6) + 2 * LABELS @ inputs(3, 6)
    loss = contrast.MarginLoss() if make is capsule_network else "categorical_crossentropy"
    model.compile(keras.optimizers.Adam(0.03), loss, jit_compile=jit_compile)
    model(x)
    before = [host(variable) for variable in model.trainable_variables]
    losses = model.fit(x, LABELS, batch_size=16, epochs=8, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]
    assert all((host(now) != was).any() for now, was in zip(model.trainable_variables, before, strict=True))


@ONCE
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: contrast.MixtureOfExperts(keras.layers.Dense(5)), (7, 3, 6)),
        (lambda: contrast.Capsules(3, 4), (7, 5, 2)),
        (lambda: contrast.EarlyExits([keras.layers.Dense(5)], [keras.layers.Dense(2)]), (7, 6)),
    ],
    ids=["experts", "capsules", "exits"],
)
def test_output_shape_is_known_without_a_call(make, shape):
    y = make()(inputs(*shape))
    for batch in (None, 7):
        assert tuple(make().compute_output_shape((batch, *shape[1:]))) == (batch, *y.shape[1:])


@pytest.mark.parametrize("name", ["fractal_block", "experts"])
def test_it_is_a_variant_of_studies(name):
    dense = keras.layers.Dense(5)
    (layer,) = variants.get(name).function(dense, 0.2, 7)
    assert layer.layer is dense
    assert layer(inputs(3, 4), training=True).shape == (3, 5)
    assert getattr(layer, "rate", 0.2) == 0.2


def dense():
    return keras.layers.Dense(3)


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
        (lambda: contrast.FractalJoin()([inputs(2, 3), inputs(2, 4)]), "`inputs`.*one shape"),
        (lambda: contrast.FractalJoin(columns=1)([inputs(2, 3)] * 2), "`inputs`.*1 at most"),
        (
            lambda: contrast.FractalJoin()([inputs(2, 3)] * 2, training=True, sample_ids=np.arange(2)),
            "`sample_ids`.*same for all",
        ),
        (lambda: contrast.FractalBlock("dense"), "`layer`.*keras.layers.Layer"),
        (lambda: contrast.FractalBlock(dense(), 11), "`columns`.*1 to 10"),
        (lambda: contrast.FractalBlock(keras.layers.Conv1D(2, 2))(inputs(2, 5, 3)), "`inputs`.*one shape"),
        (lambda: contrast.MixtureOfExperts(3), "`layer`.*keras.layers.Layer"),
        (lambda: contrast.MixtureOfExperts(dense(), 1), "`experts`.*from 2"),
        (lambda: contrast.MixtureOfExperts(dense(), 4, 5), "`top_k`.*at most 4"),
        (lambda: contrast.MixtureOfExperts(dense(), capacity_factor=0), "`capacity_factor`.*above zero"),
        (lambda: contrast.MixtureOfExperts(dense(), balance=-1.0), "`balance`.*from zero"),
        (lambda: contrast.MixtureOfExperts(keras.layers.Reshape((2, 3)))(inputs(2, 6)), r"`layer`.*\(\.\.\., out\)"),
        (lambda: contrast.MixtureOfExperts(dense())(inputs(3)), "`inputs`.*rank from 2"),
        (lambda: contrast.MixtureOfExperts(dense())(np.ones((2, 3), int)), "`inputs`.*floating"),
        (lambda: contrast.Capsules(0), "`capsules`.*from 1"),
        (lambda: contrast.Capsules(3, iterations=0), "`iterations`.*from 1"),
        (lambda: contrast.Capsules(3)(inputs(2, 3)), r"`inputs`.*\(batch, capsules below, dim below\)"),
        (lambda: contrast.squash(np.ones((2, 3), int)), "floating"),
        (lambda: contrast.MarginLoss()(np.ones((2, 3)), np.ones((2, 4), "float32")), "`y_true`.*the shape of"),
        (lambda: contrast.EarlyExits([], []), "`stages`.*one or more"),
        (lambda: contrast.EarlyExits([dense()], [3]), "`exits`.*Keras layers"),
        (lambda: contrast.EarlyExits([dense()] * 2, [dense()]), "`exits`.*as many as stages, 2"),
        (lambda: network(exit_weights=[1.0]), "`exit_weights`.*3 of them"),
        (lambda: network(thresholds=-1.0), "`thresholds`.*from zero"),
        (lambda: setattr(network(), "thresholds", [1.0]), "`thresholds`.*2 of them"),
        (lambda: network().predict_exits(np.ones((0, 4))), "`x`.*n from 1"),
        (lambda: network().predict_exits(inputs(2, 4), 0), "`batch_size`"),
        (lambda: contrast.EarlyExits([dense()], [dense()]).predict_exits(inputs(2, 4)), "`exits`.*probabilities"),
    ],
)
def test_what_they_do_not_take_is_refused_by_name(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()

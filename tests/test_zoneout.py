"""Zoneout against loops over the steps, and around kernels with noise."""

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from tests.family import host, inputs
from tests.frameworks import needs_gradients, needs_training, value_and_gradients
from tests.test_noisy_rnn import BATCH, BOTH, FEATURES, LAYERS, SEEN, TIME, L, X, cells_of, each_layer, same

RATE, CELL_RATE = 0.3, 0.6


def zoned(name="lstm", options=None, **kwargs):
    """A built layer whose next key is (1, 0)."""
    layer = pnd.Zoneout(LAYERS[name](**(options or {})), **{"rate": RATE, "seed": 1, **kwargs})
    layer.build(X.shape)
    return layer


def kept(layer, cell_rate=None):
    """Which units take their new state, (batch, time, units) of 0 and 1, for each state of each cell."""
    sizes = [np.ravel(cell.state_size).tolist() for cell in cells_of(layer)]
    at_rate = [
        (RATE if n == 0 or cell_rate is None else cell_rate, size) for own in sizes for n, size in enumerate(own)
    ]
    whole = (BATCH, TIME, sum(size for _, size in at_rate), 1)
    drawn = {
        rate: pnd.ops.sample_mask(pnd.Bernoulli(rate), (1, 0), whole, sharing=(), backend="numpy")[..., 0] > 0
        for rate, _ in at_rate
    }
    ends = np.cumsum([size for _, size in at_rate])
    parts = [drawn[rate][..., end - size : end] for end, (rate, size) in zip(ends, at_rate, strict=True)]
    return [[parts.pop(0).astype("float32") for _ in own] for own in sizes]


def loop(cells, shares, x, go_backwards=False, seen=SEEN):
    """The outputs of cells, one after another, at the steps of x in their order; shares (batch, time, units)."""
    shares, x, seen = keras.tree.map_structure(keras.ops.convert_to_tensor, (shares, x, seen))
    states = [[keras.ops.zeros((BATCH, size)) for size in np.ravel(cell.state_size)] for cell in cells]
    last, outputs = keras.ops.zeros((BATCH, cells[-1].units)), []
    for t in range(TIME)[::-1] if go_backwards else range(TIME):
        y = x[:, t]
        for cell, own, old in zip(cells, shares, list(states), strict=True):
            _, new = cell(y, old)
            mixed = [s[:, t] * n + (1 - s[:, t]) * o for s, n, o in zip(own, new, old, strict=True)]
            mixed = [keras.ops.where(seen[:, t : t + 1], m, o) for m, o in zip(mixed, old, strict=True)]
            states[cells.index(cell)] = mixed
            y = mixed[0]
        last = keras.ops.where(seen[:, t : t + 1], y, last)
        outputs.append(last)
    return keras.ops.stack(outputs, axis=1)


def by_hand(layer, shares):
    """The outputs at all steps of a layer whose cells take these shares of their new states."""
    cells = cells_of(layer)
    if not isinstance(layer, L.Bidirectional):
        return loop(cells, shares, X, layer.go_backwards)
    backwards = loop(cells[1:], shares[1:], X, go_backwards=True)
    both = keras.ops.concatenate([loop(cells[:1], shares[:1], X), keras.ops.flip(backwards, 1)], axis=-1)
    return keras.ops.where(SEEN[..., None], both, 0)  # of a step that the mask leaves out Keras' layer gives zeros


@pytest.mark.parametrize("arguments", [{}, {"go_backwards": True}, {"unroll": True}], ids=str)
@each_layer("cells", "bidirectional")
def test_it_is_a_loop_that_mixes_the_states(name, arguments):
    if arguments and name not in ("lstm", "gru"):
        pytest.skip("these are arguments of one layer")
    layer = zoned(name, {"return_sequences": True, **arguments})
    same(layer(X, training=True, mask=SEEN), by_hand(layer.layer, kept(layer.layer)))
    share = 1 - RATE
    sizes = [np.ravel(cell.state_size) for cell in cells_of(layer.layer)]
    means = [[np.full((BATCH, TIME, size), share, "float32") for size in of_cell] for of_cell in sizes]
    same(layer(X, mask=SEEN), by_hand(layer.layer, means))


def test_the_equations_of_an_lstm():
    """h and c of the paper, where h~ is made of c~ and not of what c becomes."""
    layer = zoned("lstm", {"return_sequences": True, "return_state": True}, cell_rate=CELL_RATE)
    cell = layer.layer.cell
    w, u, b = (host(one) for one in (cell.kernel, cell.recurrent_kernel, cell.bias))
    ((of_h, of_c),) = kept(layer.layer, CELL_RATE)
    h = c = np.zeros((BATCH, 3))
    y = []
    for t in range(TIME):
        i, f, g, o = np.split(X[:, t] @ w + h @ u + b, 4, axis=1)
        new_c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        new_h = np.tanh(new_c) / (1 + np.exp(-o))
        h, c = np.where(of_h[:, t] == 1, new_h, h), np.where(of_c[:, t] == 1, new_c, c)
        y.append(h)
    same(layer(X, training=True), [np.stack(y, 1), h, c])


@needs_gradients
@each_layer("lstm")
def test_gradients_are_those_of_the_loop(name):
    if name == "bidirectional":
        pytest.skip("two loops, each of which is another case")
    layer = zoned(name, {"return_sequences": True})
    shares, variables = kept(layer.layer), layer.layer.trainable_variables
    order = [v for cell in cells_of(layer.layer) for v in cell.trainable_variables]
    assert [v.path for v in order] == [v.path for v in variables]
    upstream = inputs(*layer.compute_output_shape(X.shape))

    def of_layer(x, *weights):
        state = [variable.value for variable in layer.non_trainable_variables]
        return layer.stateless_call(weights, state, x, training=True, key=(1, 0))[0]

    def of_loop(x, *weights):
        with keras.StatelessScope(state_mapping=list(zip(variables, weights, strict=True))):
            return loop(cells_of(layer.layer), shares, x, seen=np.ones_like(SEEN))

    arrays = [X, *(host(variable) for variable in variables)]
    got, wanted = (value_and_gradients(call, *arrays, upstream=upstream) for call in (of_layer, of_loop))
    same(got[0], wanted[0])
    same(got[1], wanted[1])


@pytest.mark.parametrize("sharing", ["sample+time", "time", ()])
@each_layer("cells")
def test_it_goes_around_kernels_with_noise(name, sharing):
    """The step of each is that of NoisyRNN alone, whose own masks do not depend on what is around it."""
    noisy = pnd.NoisyRNN(LAYERS[name](return_sequences=True), rate=0.4, kernels=BOTH, sharing=sharing, seed=2)
    layer = pnd.Zoneout(noisy, 2.0**-24, seed=1)
    ids = {} if "sample" in sharing else {"sample_ids": np.array([4, 7, 0])}
    same(layer(X, training=True, **ids), noisy(X, training=True, key=(2, 0), **ids))
    assert (layer.updates, noisy.updates) == (1, 1)
    layer.rate = 0.9
    y = host(layer(X, training=True))
    assert 0.7 < np.mean(y[:, 1:] == y[:, :-1]) < 1


def test_it_mixes_what_noisy_kernels_make():
    noisy = pnd.NoisyRNN(LAYERS["gru"](return_sequences=True), rate=0.4, kernels=BOTH, seed=2)
    layer = pnd.Zoneout(noisy, RATE, seed=1)
    layer.build(X.shape)
    plain = type(noisy.layer).from_config(noisy.layer.get_config())
    plain.build(X.shape)
    plain.set_weights(noisy.layer.get_weights())
    mask = pnd.ops.sample_mask(pnd.Bernoulli(0.4), (2, 0), (1, FEATURES + 3, 9), backend="numpy")[0]
    plain.cell.kernel.assign(host(plain.cell.kernel) * mask[:FEATURES])
    plain.cell.recurrent_kernel.assign(host(plain.cell.recurrent_kernel) * mask[FEATURES:])
    same(layer(X, training=True, mask=SEEN), by_hand(plain, kept(plain)))


@pytest.mark.once
def test_a_cell_rate_is_set_and_comes_back():
    layer = zoned(rate=0.0, cell_rate=CELL_RATE)
    assert layer.cell_rate == CELL_RATE
    assert layer.is_stochastic
    layer.cell_rate = 0.123
    again = pnd.Zoneout.from_config(layer.get_config())
    assert again.cell_rate == 0.123
    other = zoned(rate=0.0, cell_rate=CELL_RATE)
    other.set_weights(layer.get_weights())
    assert other.cell_rate == 0.123
    layer.cell_rate = 0.0
    assert not layer.is_stochastic
    with pytest.raises(AttributeError, match="no cell_rate of its own: set `rate`"):
        zoned().cell_rate = 0.5


@pytest.mark.once
def test_a_unit_that_is_always_zoned_out_keeps_its_state():
    state = [inputs(BATCH, 3), inputs(BATCH, 3) / 2]
    layer = zoned("lstm", {"return_state": True}, rate=1 - 2.0**-24, cell_rate=0.0)
    y, h, c = layer(X, initial_state=state, training=True)
    same([y, h], [state[0]] * 2, atol=0)
    assert np.abs(host(c) - state[1]).max() > 0.01


@pytest.mark.once
def test_predictions_and_files(tmp_path):
    x = keras.Input((TIME, FEATURES))
    model = keras.Model(x, pnd.Zoneout(pnd.NoisyRNN(LAYERS["cells"](), 0.5, seed=2), RATE, CELL_RATE, seed=1)(x))
    model(X, training=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for training in (False, True, True):
        same(again(X, training=training), model(X, training=training), atol=0)
    assert (pnd.uncertainty.predict(model, X, 8).variance > 0).all()
    with pytest.raises(ValueError, match="cannot be folded"):
        pnd.fold(model)


@needs_training
def test_it_trains_in_fit():
    layer = pnd.Zoneout(pnd.NoisyRNN(L.GRU(3), 0.2, sharing="time", seed=2), 0.2, seed=1)
    model = keras.Sequential([keras.Input((TIME, FEATURES)), layer, L.Dense(1)])
    model.compile(keras.optimizers.Adam(0.03), "mse")
    x = inputs(16, TIME, FEATURES)
    losses = model.fit(x, x[:, -1, :1], batch_size=8, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert (layer.updates, layer.layer.updates) == (10, 10)


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pnd.Zoneout(L.Dense(3), 0.1), r"`layer`.*SimpleRNN, GRU or LSTM"),
        (lambda: pnd.Zoneout(zoned(), 0.1), r"`layer`.*one of Keras' or a NoisyRNN"),
        (lambda: pnd.NoisyRNN(zoned(), 0.1), r"`layer`.*one of Keras', or a NoisyRNN with one mask"),
        (lambda: L.Bidirectional(zoned()), r"`go_backwards`.*Zoneout\(keras.layers.Bidirectional"),
        (lambda: zoned(options={"dropout": 0.1}), r"`layer`.*no dropout in the layer"),
        (lambda: zoned("gru", cell_rate=0.1), r"`cell_rate`.*without LSTM cells.*cell_rate=0.1"),
        (lambda: zoned(cell_rate=1.0), r"`cell_rate`.*cell_rate=1.0"),
        (lambda: zoned()(X[..., :1]), r"`inputs`.*size 2 along axis -1"),
    ],
)
def test_what_it_does_not_take_is_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()

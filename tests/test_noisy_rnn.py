"""Noise on recurrent kernels, against Keras' own layers with the masked kernels put in by hand, and against NumPy."""

import importlib.util

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop import uncertainty
from pernodedrop.layers.recurrent import noisy_rnn
from tests.family import host, inputs
from tests.frameworks import XP, needs_gradients, needs_training, value_and_gradients
from tests.processes import child
from tests.scripts import resumed_fit

BACKEND = keras.backend.backend()
BATCH, TIME, FEATURES = 3, 4, 2
BOTH = ("kernel", "recurrent_kernel")
L = keras.layers
LAYERS = {
    "simple_rnn": lambda **kw: L.SimpleRNN(3, **kw),
    "gru": lambda **kw: L.GRU(3, bias_initializer="normal", **kw),
    "gru_reset_before": lambda **kw: L.GRU(3, reset_after=False, bias_initializer="normal", **kw),
    "lstm": lambda **kw: L.LSTM(3, **kw),
    "cells": lambda **kw: L.RNN([L.LSTMCell(3), L.GRUCell(2)], **kw),
    "bidirectional": lambda **kw: L.Bidirectional(L.GRU(2, **kw)),
}
OPTIONS = {
    "sequences": {"return_sequences": True},
    "state": {"return_state": True},
    "backwards": {"go_backwards": True, "return_sequences": True},
    "unrolled": {"unroll": True},
    "without_bias": {"use_bias": False},
    "other_activation": {"activation": "relu"},
}
ELSEWHERE = {"torch": ("jax", "tensorflow"), "jax": ("tensorflow",)}
KINDS = {**{name: (name, {}) for name in LAYERS}, **{name: ("lstm", options) for name, options in OPTIONS.items()}}


def some(cases, *of_slow):
    """The cases of a test, by name; on JAX and TensorFlow, which take seconds for each, those named."""
    return {name: case for name, case in dict(cases).items() if BACKEND in ("numpy", "torch") or name in of_slow}


def each_layer(*of_slow):
    return pytest.mark.parametrize("name", some(LAYERS, *of_slow))


X = inputs(BATCH, TIME, FEATURES)
SEEN = np.array([[True, True, True, True], [True, True, False, False], [True, False, True, True]])


def noisy(name="lstm", options=None, **kwargs):
    """A built layer with noise on both kernels, whose next key is (1, 0)."""
    layer = pnd.NoisyRNN(LAYERS[name](**(options or {})), **{"rate": 0.5, "kernels": BOTH, "seed": 1, **kwargs})
    layer.build(X.shape)
    return layer


def cells_of(layer):
    if isinstance(layer, L.Bidirectional):
        return [layer.forward_layer.cell, layer.backward_layer.cell]
    return getattr(layer.cell, "cells", [layer.cell])


def masks_of(layer, samples=1, noise=None, **kwargs):
    """The masks (samples, in, out) of the kernels of each cell, in the order of its weights."""
    shapes = [tuple(getattr(cell, name).shape) for cell in cells_of(layer) for name in BOTH]
    whole = (samples, sum(rows for rows, _ in shapes), max(columns for _, columns in shapes))
    mask = pnd.ops.sample_mask(noise or pnd.Bernoulli(0.5), (1, 0), whole, backend="numpy", **kwargs)
    ends = np.cumsum([rows for rows, _ in shapes])
    return [mask[:, end - rows : end, :columns] for end, (rows, columns) in zip(ends, shapes, strict=True)]


def by_hand(layer, masks, kernels=BOTH):
    """A plain layer like the inner one, whose kernels are multiplied by masks (in, out)."""
    plain = type(layer.layer).from_config(layer.layer.get_config())
    plain.build(X.shape)
    plain.set_weights(layer.layer.get_weights())
    places = [(cell, name) for cell in cells_of(plain) for name in BOTH]
    for (cell, name), mask in zip(places, masks, strict=True):
        if name in kernels:
            getattr(cell, name).assign(host(getattr(cell, name)) * mask)
    return plain


def masks_by_cell(layer, **kwargs):
    """Pairs of masks, as `by_hand` takes them one after another."""
    return [mask[0] for mask in masks_of(layer.layer, **kwargs)]


def same(got, wanted, **kwargs):
    for one, other in zip(keras.tree.flatten(got), keras.tree.flatten(wanted), strict=True):
        np.testing.assert_allclose(host(one), host(other), **{"atol": 1e-5, **kwargs})


@pytest.mark.parametrize(
    ("name", "options"), (kinds := some(KINDS, "cells", "bidirectional", "backwards")).values(), ids=kinds
)
@pytest.mark.parametrize("kernels", [BOTH, ("recurrent_kernel",)], ids=["both", "recurrent"])
def test_it_is_the_inner_layer_with_masked_kernels(name, options, kernels):
    layer = noisy(name, options, kernels=kernels)
    wanted = by_hand(layer, masks_by_cell(layer), kernels)
    same(layer(X, training=True), wanted(X))
    same(layer(X, training=True, key=(1, 0), mask=SEEN), wanted(X, mask=SEEN))
    same(layer(X), layer.layer(X), atol=0)


IN_GATES = {"gate": lambda m: np.tile(m[..., :3], 4), "unit": lambda m: np.repeat(m[..., :4], 3, axis=-1)}
"""Masks of a kernel of 4 gates of 3 units, of those that are numbered through."""


@pytest.mark.parametrize(
    "sharing",
    ["sample+time", "time", "sample", (), "sample+time+gate", "time+gate", "gate", "sample+time+unit", "unit"],
)
def test_it_is_the_drop_connect_of_language_models(sharing):
    """AWD-LSTM's weight drop: one mask on the recurrent kernel for a batch and all its steps, scaled in training.

    Of each sample alone, it is PerNodeDrop's; and there are masks of each step. Gates may have one, or units.
    """
    layer = noisy("lstm", {"return_sequences": True}, kernels=("recurrent_kernel",), rate=0.3, sharing=sharing)
    cell = layer.layer.cell
    w, u, b = (host(one) for one in (cell.kernel, cell.recurrent_kernel, cell.bias))
    shape = (BATCH, TIME, FEATURES + 3, 12)
    *names, last = sharing.split("+") if sharing else [""]
    plain = [*names, *([] if last in IN_GATES else [last])] if sharing else ()
    m = pnd.ops.sample_mask(pnd.Bernoulli(0.3), (1, 0), shape, sharing=plain, backend="numpy")[:, :, FEATURES:]
    m = IN_GATES.get(last, lambda m: m)(m)
    assert set(np.unique(m)) == {0, np.float32(2**24 / round(0.7 * 2**24))}
    h = c = np.zeros((BATCH, 3))
    y = []
    for t in range(TIME):
        i, f, g, o = np.split(X[:, t] @ w + np.einsum("bi,bio->bo", h, u * m[:, t]) + b, 4, axis=1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        y.append(h)
    same(layer(X, training=True), np.stack(y, 1))


@pytest.mark.parametrize("sharing", ["time+out", "time+unit", "sample+time+out", "out"])
def test_it_is_the_variational_dropout_of_gal(sharing):
    """Masks on the inputs and states of a sample, the same at all steps; of all gates, or of each (arXiv 1512.05287).

    With other coordinates, they are those of a batch, or of each step.
    """
    layer = noisy("lstm", {"return_sequences": True}, rate=0.3, sharing=sharing)
    cell = layer.layer.cell
    w, u, b = (np.split(host(one), 4, axis=-1) for one in (cell.kernel, cell.recurrent_kernel, cell.bias))
    of_mask = tuple(set(sharing.split("+")) - {"unit"})
    shape = (BATCH, TIME, FEATURES + 3, 4)
    m = pnd.ops.sample_mask(pnd.Bernoulli(0.3), (1, 0), shape, sharing=of_mask, backend="numpy")
    m_x, m_h = m[:, :, :FEATURES], m[:, :, FEATURES:]
    h = c = np.zeros((BATCH, 3))
    y = []
    for t in range(TIME):
        i, f, g, o = ((X[:, t] * m_x[:, t, :, n]) @ w[n] + (h * m_h[:, t, :, n]) @ u[n] + b[n] for n in range(4))
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        y.append(h)
    same(layer(X, training=True), np.stack(y, 1))


@pytest.mark.once
def test_one_mask_of_inputs_is_dropout_before_the_layer():
    """With a mask for the sequence, at the same key; and what stands between may be around another noise."""
    x, plain = X[:, :, :], LAYERS["lstm"]()
    layer = pnd.NoisyRNN(plain, 0.5, kernels=("kernel",), sharing="time+out", seed=1)
    before = pnd.Dropout(0.5, persistence=1.0, seed=1)
    same(layer(x, training=True), plain(before(x, training=True)))
    inside = pnd.NoisyRNN(plain, 0.3, seed=2)
    around = pnd.NoisyRNN(inside, 0.5, kernels=("kernel",), sharing="time+out", seed=1)
    before = pnd.Dropout(0.5, persistence=1.0, seed=1)
    same(around(x, training=True), inside(before(x, training=True), training=True, key=(2, 0)))
    same([around(x), around.fold()(x)], [plain(x)] * 2)


def of_each_sample(layer, **kwargs):
    """For each sample its masks and the plain layer that has the kernels of the sample."""
    masks = masks_of(layer.layer, BATCH, **kwargs)
    return [(own, by_hand(layer, own)) for own in ([mask[n] for mask in masks] for n in range(BATCH))]


WAYS = ["materialized", "recomputed", *(["by a kernel"] if BACKEND in ("numpy", "torch") else [])]


def made(way, monkeypatch):
    """The method that masks of a sequence are made in this way by, even small ones."""
    if way != "by a kernel":
        return way
    pytest.importorskip("numba", reason="an extra")
    monkeypatch.setattr(XP, "loops_by_kernel", lambda w, grid: True)
    return "auto"


@pytest.mark.parametrize("way", WAYS)
@each_layer("cells")
def test_each_sample_has_kernels_of_its_own(name, way, monkeypatch):
    method = made(way, monkeypatch)
    layer = noisy(name, {"return_sequences": True}, sharing="time", method=method)
    wanted = [plain for _, plain in of_each_sample(layer)]
    rows = [slice(n, n + 1) for n in range(BATCH)]
    y = layer(X, training=True, mask=SEEN)
    same(y, np.concatenate([host(one(X[row], mask=SEEN[row])) for one, row in zip(wanted, rows, strict=True)]))
    ids = layer(X[::-1], training=True, key=(1, 0), sample_ids=np.arange(BATCH)[::-1].copy())
    same(ids, np.concatenate([host(one(X[row])) for one, row in zip(wanted, rows, strict=True)])[::-1])


@pytest.mark.parametrize(
    ("samples", "units", "where"),
    [(31, 91, []), (32, 91, ["torch"]), (128, 90, ["torch"]), (128, 91, ["numpy", "torch"]), (7, 400, [])],
)
def test_a_kernel_makes_masks_of_a_sequence_where_they_are_large(samples, units, where, monkeypatch):
    """Where eager products have one: from 2**20 entries with gradients, or else from 2**22, of 8 samples or more."""
    pytest.importorskip("numba", reason="an extra")
    layer, found = pnd.NoisyRNN(L.LSTM(units), 0.5, sharing="time", seed=1), []
    monkeypatch.setattr(XP, "kernel_made_again", lambda x, w, grid: found.append(grid) or XP.matmul(x, w))
    layer.build((samples, 2, FEATURES))
    layer(inputs(samples, 2, FEATURES), training=True)
    assert bool(found) == (BACKEND in where)


def stepped(layer, x, masks, order, seen):
    """The outputs of one sample by plain layers with the masks (time, in, out) of each step, from state to state."""
    states, outputs = None, [np.zeros(layer.layer.cell.output_size)]
    for t in order:
        if seen[t]:
            plain = by_hand(layer, [mask[t] for mask in masks])
            plain.return_state, plain.return_sequences = True, False
            y, *states = plain(x[None, t : t + 1], initial_state=states)
            outputs.append(host(y)[0])
        else:
            outputs.append(outputs[-1])
    return np.stack(outputs[1:])


STEPS = {
    "each": {"sharing": ()},
    "each_materialized": {"sharing": (), "method": "materialized"},
    "of_a_batch": {"sharing": "sample"},
    "slow": {"sharing": (), "persistence": 0.5},
    "slow_of_a_batch": {"persistence": 0.7},
}


@pytest.mark.parametrize("arguments", (steps := some(STEPS, "each", "slow")).values(), ids=steps)
@pytest.mark.parametrize("go_backwards", [False, True] if BACKEND in ("numpy", "torch") else [True])
def test_each_step_has_kernels_of_its_own(arguments, go_backwards):
    """That is, those of its position, also where the mask of the sequence passes it by."""
    layer = noisy("gru", {"return_sequences": True, "go_backwards": go_backwards}, **arguments)
    where = {"sharing": layer.sharing, "persistence": arguments.get("persistence")}
    whole = (BATCH, TIME, FEATURES + 3, 9)
    masks = pnd.ops.sample_mask(pnd.Bernoulli(0.5), (1, 0), whole, backend="numpy", **where)
    order = range(TIME)[::-1] if go_backwards else range(TIME)
    y = layer(X, training=True, mask=SEEN)
    for n, (x, seen) in enumerate(zip(X, SEEN, strict=True)):
        own = [masks[n, :, :FEATURES], masks[n, :, FEATURES:]]
        same(host(y)[n], stepped(layer, x, own, order, seen))


@pytest.mark.once
def test_every_cell_of_a_stack_knows_the_position():
    layer = noisy("cells", {"return_sequences": True}, sharing=())
    rows, columns = [(0, FEATURES), (FEATURES, FEATURES + 3), (5, 8), (8, 10)], (12, 12, 6, 6)
    whole = pnd.ops.sample_mask(pnd.Bernoulli(0.5), (1, 0), (BATCH, TIME, 10, 12), sharing=(), backend="numpy")
    own = [whole[0, :, a:b, :c] for (a, b), c in zip(rows, columns, strict=True)]
    same(host(layer(X, training=True))[0], stepped(layer, X[0], own, range(TIME), SEEN[0]))


@each_layer("bidirectional")
def test_what_persists_for_ever_is_a_mask_of_the_sequence(name):
    slow, shared = noisy(name, sharing=(), persistence=1.0), noisy(name, sharing="time")
    for layer in (slow, shared):
        for variable in layer.trainable_variables:
            variable.assign(np.sin(1 + np.arange(np.prod(variable.shape))).reshape(variable.shape))
    same(slow(X, training=True, mask=SEEN), shared(X, training=True, mask=SEEN))


@needs_gradients
@pytest.mark.parametrize("sharing", [(), "unit", "time+out"])
@each_layer("gru")
def test_masks_of_steps_have_the_same_gradients_however_they_are_made(name, sharing):
    layers = [noisy(name, sharing=sharing, method=method) for method in ("recomputed", "materialized")]
    layers[1].set_weights(layers[0].get_weights())
    upstream = inputs(*layers[0].compute_output_shape(X.shape))
    first, second = (gradients(layer, X, upstream, training=True, key=(1, 0)) for layer in layers)
    same(first, second)
    assert all(np.abs(one).max() > 0 for one in first)


@pytest.mark.once
def test_persistence_may_be_a_schedule():
    layer = noisy(persistence=pnd.schedules.Step([0.9, 0.1], [1]))
    again = pnd.NoisyRNN.from_config(layer.get_config())
    for one in (layer, again):
        before, _ = one.persistence, one.draw()
        assert (before, one.persistence) == (0.9, 0.1)


@pytest.mark.once
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_positions_reach_the_cells_in_every_dtype(dtype):
    x = keras.ops.zeros((1, 70_000, 1), dtype)
    beside = noisy_rnn.with_positions(x)
    for t in (0, 255, 256, 65_535, 65_536, 69_999):
        assert host(noisy_rnn.position_of(beside[:, t, 1:])).tolist() == [t]


@pytest.mark.parametrize("sharing", ["sample", "out", ()])
def test_no_samples_have_no_outputs(sharing):
    layer = noisy("lstm", sharing=sharing)
    assert layer(X[:0], training=True).shape == (0, layer.layer.units)


@pytest.mark.parametrize("method", ["materialized", "recomputed"])
def test_no_samples_have_none_by_any_method(method):
    layer = noisy("lstm", sharing=(), method=method)
    assert layer(X[:0], training=True).shape == (0, layer.layer.units)


def test_a_fixed_mask_is_folded_into_weights_of_float32():
    layer = pnd.NoisyRNN(L.LSTM(3, dtype="mixed_bfloat16"), rate=0.0, regime="fixed", seed=1)
    layer.build(X.shape)
    for one, folded in zip(layer.layer.weights, layer.fold().weights, strict=True):
        same(folded, one, atol=0, rtol=0)


@pytest.mark.once
def test_a_cell_that_stands_twice_is_refused():
    cell = L.LSTMCell(2)
    with pytest.raises(ValueError, match=r"`layer`.*no cell stands twice"):
        pnd.NoisyRNN(L.RNN([cell, cell]), 0.5)


def test_a_bank_routes_each_sample_to_its_kernels_at_inference_too():
    layer = noisy("gru", regime="bank", bank_size=2, sharing="time")
    plain = [by_hand(layer, [mask[n] for mask in masks_of(layer.layer, 2)]) for n in range(2)]
    same(layer(X), np.concatenate([host(plain[n % 2](X[n : n + 1])) for n in range(BATCH)]))
    with pytest.raises(ValueError, match=r"`regime`.*folded"):
        layer.fold()


def gradients(layer, x, upstream, **kwargs):
    """Those of sum(layer(x) * upstream) for x and the weights."""

    def call(x, *weights):
        state = [variable.value for variable in layer.non_trainable_variables]
        return layer.stateless_call(weights, state, x, **kwargs)[0]

    weights = [host(variable) for variable in layer.trainable_variables]
    return value_and_gradients(call, x, *weights, upstream=upstream)[1]


def of_masked(plain, masks, x, upstream):
    """The gradients for the kernels behind masks, where the plain layer has the masked ones."""
    of_x, *of_weights = gradients(plain, x, upstream)
    masks = iter(masks)
    factors = [next(masks) if "kernel" in variable.name else 1 for variable in plain.trainable_variables]
    return [of_x, *(gradient * factor for gradient, factor in zip(of_weights, factors, strict=True))]


@needs_gradients
@each_layer("lstm")
def test_gradients_are_those_of_the_masked_kernels(name):
    layer = noisy(name)
    masks = masks_by_cell(layer)
    upstream = inputs(*layer.compute_output_shape(X.shape))
    got = gradients(layer, X, upstream, training=True, key=(1, 0))
    same(got, of_masked(by_hand(layer, masks), masks, X, upstream))


@needs_gradients
@pytest.mark.parametrize("way", WAYS)
@each_layer("lstm")
def test_gradients_of_samples_add_up(name, way, monkeypatch):
    method = made(way, monkeypatch)
    layer = noisy(name, sharing="time", method=method)
    upstream = inputs(*layer.compute_output_shape(X.shape))
    alone = [
        of_masked(plain, masks, X[n : n + 1], upstream[n : n + 1])
        for n, (masks, plain) in enumerate(of_each_sample(layer))
    ]
    of_x, *of_weights = zip(*alone, strict=True)
    got = gradients(layer, X, upstream, training=True, key=(1, 0))
    same(got, [np.concatenate(of_x), *map(sum, of_weights)])


@pytest.mark.only_backend("jax", reason="it says how much memory a program takes")
@pytest.mark.parametrize("method", ["materialized", "recomputed"])
def test_memory_for_masks_does_not_grow_with_time(method):
    """A step more costs what it keeps of activations: less than half of the masks of all samples."""
    import jax

    units, batch = 48, 8
    layer = pnd.NoisyRNN(L.SimpleRNN(units), 0.5, sharing="time", seed=1, method=method)
    layer.build((batch, 8, 4))
    state = [variable.value for variable in layer.non_trainable_variables]

    def loss(weights, x):
        return layer.stateless_call(weights, state, x, training=True)[0].sum()

    def memory(steps):
        weights = [variable.value for variable in layer.trainable_variables]
        compiled = jax.jit(jax.grad(loss)).lower(weights, np.zeros((batch, steps, 4), "float32")).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert (memory(40) - memory(8)) / 32 < 4 * batch * units * units / 2


def test_initial_states_are_taken():
    layer = noisy("lstm", {"return_state": True})
    state = [inputs(BATCH, 3), inputs(BATCH, 3) / 2]
    wanted = by_hand(layer, masks_by_cell(layer))
    same(layer(X, initial_state=state, training=True), wanted(X, initial_state=state))
    x, given = keras.Input((TIME, FEATURES)), [keras.Input((3,)), keras.Input((3,))]
    model = keras.Model([x, given], pnd.NoisyRNN(LAYERS["lstm"](return_state=True))(x, initial_state=given))
    assert [y.shape for y in model.outputs] == [(None, 3)] * 3


@needs_training
@pytest.mark.parametrize("sharing", ["sample", "time", ()])
def test_a_stateful_layer_trains_with_masks_of_steps_and_samples(sharing):
    layer = pnd.NoisyRNN(LAYERS["lstm"](stateful=True), rate=0.5, sharing=sharing, seed=1)
    first, second = (host(layer(X, training=True, key=(1, 0))) for _ in range(2))
    assert not np.allclose(first, second)  # it goes on from the states of the first
    layer.reset_state()
    same(layer(X, training=True, key=(1, 0)), first)


def test_states_stay_in_a_stateful_layer():
    layer = pnd.NoisyRNN(LAYERS["gru"](stateful=True), rate=0.5, kernels=BOTH, seed=1)
    layer.build(X.shape)
    first, second = (host(layer(X[:, part], training=True, key=(1, 0))) for part in (slice(2), slice(2, 4)))
    whole = noisy("gru")
    whole.set_weights(layer.get_weights()[-len(whole.weights) :])
    wanted = by_hand(layer, masks_by_cell(layer))
    wanted.reset_state()
    same([first, second], [wanted(X[:, :2]), wanted(X[:, 2:])])
    assert layer.stateful
    layer.reset_state()
    same(layer(X[:, :2], training=True, key=(1, 0)), first)


@pytest.mark.skip_backend("numpy", reason="NumPy arrays cannot carry a Keras mask")
@pytest.mark.parametrize("key", [False, True])
def test_masks_of_embeddings_arrive(key):
    """Beside a key, too, which is a tensor: then Keras looks for no mask."""
    embedding, layer = L.Embedding(9, FEATURES, mask_zero=True), noisy("gru")
    key = {"key": layer.draw()} if key else {}
    x = embedding(np.array([[4, 5, 0, 0]] * 2))
    same(layer(x, training=True, **key), layer(embedding(np.array([[4, 5]] * 2)), training=True, key=(1, 0)))


@each_layer("bidirectional")
def test_a_fixed_mask_stays_and_is_folded(name):
    layer = noisy(name, regime="fixed", noise="gaussian")
    wanted = by_hand(layer, masks_by_cell(layer, noise=pnd.Gaussian(0.5)))
    same([layer(X), layer(X, training=True), layer.fold()(X)], [wanted(X)] * 3)


@pytest.mark.once
@pytest.mark.parametrize("name", ["bidirectional", "cells"])
def test_config_and_files_bring_it_back(name, tmp_path):
    x = keras.Input((TIME, FEATURES))
    model = keras.Model(x, noisy(name)(x))
    model(X, training=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for training in (False, True, True):
        same(again(X, training=training), model(X, training=training), atol=0)


def test_half_precision_is_the_inner_layers():
    layer = noisy("lstm", {"dtype": "mixed_bfloat16"})
    y, wanted = layer(X, training=True), by_hand(layer, masks_by_cell(layer))(X)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    same(keras.ops.cast(y, "float32"), keras.ops.cast(wanted, "float32"), atol=0.02)


def model_of(*names):
    """A model with some of the layers, one after another."""
    last = len(names) - 1
    made = [LAYERS[name](**({} if n == last else {"return_sequences": True})) for n, name in enumerate(names)]
    return keras.Sequential([keras.Input((TIME, FEATURES)), *made, L.Dense(1)])


@pytest.mark.skip_backend("jax", reason="JAX compiles each, and says the same")
def test_apply_puts_it_and_fold_takes_it_out():
    model = model_of("bidirectional", "lstm")
    outer = pnd.apply(model, lambda layer: pnd.NoisyRNN(layer, 0.5) if isinstance(layer, L.Bidirectional) else None)
    inner = pnd.apply(model, lambda layer: pnd.NoisyRNN(layer, 0.5) if isinstance(layer, L.RNN) else None)
    assert [type(layer) for layer in outer.layers] == [pnd.NoisyRNN, L.LSTM, L.Dense]
    assert [type(layer) for layer in inner.layers] == [L.Bidirectional, pnd.NoisyRNN, L.Dense]
    assert isinstance(inner.layers[0].backward_layer, pnd.NoisyRNN)
    for noisy_model in (outer, inner):
        same([noisy_model(X), pnd.fold(noisy_model)(X)], [model(X)] * 2)
        assert np.abs(host(noisy_model(X, training=True)) - host(model(X))).max() > 1e-4


def test_predictions_vary_and_the_model_does_not():
    model = pnd.apply(model_of("lstm"), lambda layer: pnd.NoisyRNN(layer, 0.5) if isinstance(layer, L.LSTM) else None)
    calm = host(model(X))
    assert (uncertainty.predict(model, X, 8).variance > 0).all()
    same(model(X), calm, atol=0)


@pytest.mark.slow
@pytest.mark.only_backend("torch", "jax", reason="each of them starts a process on those behind it")
@pytest.mark.parametrize("there", [name for name in ELSEWHERE.get(BACKEND, ()) if importlib.util.find_spec(name)])
def test_a_classifier_of_texts_goes_on_elsewhere_and_back_as_if_nothing_had_been(there, tmp_path):
    keras.utils.set_random_seed(0)
    model = resumed_fit.classifier()
    resumed_fit.trained(model, 2)
    model.save(tmp_path / "here.keras")
    losses, masks = resumed_fit.trained(model, 4)
    shape = (1, 4 + resumed_fit.UNITS, 4 * resumed_fit.UNITS)
    for call, mask in enumerate(masks, 2):
        whole = pnd.ops.sample_mask(pnd.Bernoulli(0.5), (1, call), shape, backend="numpy")
        np.testing.assert_array_equal(mask, whole[0, 4:] > 0)
    away = child("resumed_fit.py", tmp_path / "here.keras", tmp_path / "there.keras", 2, backend=there)
    back = resumed_fit.trained(resumed_fit.load(tmp_path / "there.keras"), 2)
    np.testing.assert_allclose(away[0] + back[0], losses, rtol=1e-4)
    np.testing.assert_array_equal(away[1] + back[1], masks)


@needs_training
@pytest.mark.parametrize("jit_compile", [False, True] if BACKEND == "tensorflow" else [BACKEND == "jax"])
@pytest.mark.parametrize("name", ["lstm"] if BACKEND != "torch" else ["simple_rnn", "bidirectional"])
def test_it_trains_in_fit(name, jit_compile):
    model = keras.Sequential([keras.Input((TIME, FEATURES)), layer := noisy(name, rate=0.2), L.Dense(1)])
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=jit_compile)
    x = inputs(16, TIME, FEATURES)
    losses = model.fit(x, x[:, -1, :1], batch_size=8, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert layer.updates == 10


@needs_training
@pytest.mark.slow
@pytest.mark.skip_backend("torch", reason="its fit is eager in any case")
def test_eager_fit_is_that_of_the_compiled_step():
    x, losses = inputs(4, 3, FEATURES), []
    for run_eagerly in (True, False):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3, FEATURES)), noisy("lstm", rate=0.5, sharing=())])
        model.compile("sgd", "mse", run_eagerly=run_eagerly)
        losses += model.fit(x, np.zeros((4, 3)), batch_size=2, epochs=2, shuffle=False, verbose=0).history["loss"]
    np.testing.assert_allclose(losses[:2], losses[2:], rtol=1e-5)


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pnd.NoisyRNN(L.Dense(3)), r"`layer`.*SimpleRNN, GRU or LSTM"),
        (lambda: pnd.NoisyRNN(L.LSTMCell(3)), r"`layer`.*an RNN of their cells"),
        (lambda: pnd.NoisyRNN(L.ConvLSTM1D(3, 2)), r"`layer`.*with the cell <ConvLSTMCell"),
        (lambda: L.Bidirectional(noisy()), r"`go_backwards`.*NoisyRNN\(keras.layers.Bidirectional"),
        (lambda: noisy(kernels=("recurent_kernel",)), r"did you mean 'recurrent_kernel'"),
        (lambda: noisy(kernels="kernel"), r"`kernels`.*sequence"),
        (lambda: noisy(kernels=()), r"`kernels`.*one or more of"),
        (lambda: noisy(kernels=("kernel", "kernel")), r"`kernels`.*each once"),
        (lambda: noisy(rate=1.0), r"`rate`.*rate=1.0"),
        (lambda: noisy(seed="one"), r"`seed`.*seed='one'"),
        (lambda: noisy()(X[..., :1]), r"`inputs`.*size 2 along axis -1"),
        (lambda: noisy(persistence=0.5, sharing="time"), r"`sharing`.*without 'time' beside `persistence`"),
        (lambda: noisy(sharing="gates"), r"`sharing`.*did you mean 'gate'"),
        (lambda: noisy(persistence=0.5, method="recomputed"), r"`method`.*beside `persistence`"),
        (
            lambda: noisy(regime="fixed", sharing=()).fold(),
            r"`regime`.*the same masks at all steps.*sharing=\['sample'\]",
        ),
        (lambda: noisy(options={"dropout": 0.1}, sharing="time"), r"`layer`.*no dropout in the layer where"),
        (lambda: noisy(method="kernel"), r"`method`.*recomputed"),
        (lambda: noisy()(X, training=True, sample_ids=np.arange(3)), r"`sample_ids`.*same for all samples"),
    ],
)
def test_what_it_does_not_take_is_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()

"""Native modules of Equinox: the masks of NumPy and of the Keras layers, in what Equinox does with any module."""

import functools
import io
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.uncertainty.prediction import word_of

pytestmark = pytest.mark.only_backend("jax", reason="the modules are those of JAX")
if keras.backend.backend() == "jax":
    eqx = pytest.importorskip("equinox", reason="an extra", exc_type=ImportError)
    import jax
    from jax import numpy as jnp

    import pernodedrop.equinox as pnde


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def key(seed=0):
    return jax.random.key(seed)


def words(one):
    return tuple(int(word) for word in jax.random.key_data(one))


def rows(module, x, key=(7, 2), training=True, ids=True):
    """The outputs of a batch, compiled: row n with sample_id n."""
    module = eqx.nn.inference_mode(module, not training)
    call = jax.vmap(lambda x, n: module(x, key=key, sample_id=n), in_axes=(0, 0 if ids else None))
    return eqx.filter_jit(call)(x, jnp.arange(len(x)) if ids else None)


def masked(x, weight, key, rate=0.5):
    """The product with a Bernoulli mask, by NumPy; each row has the key and the coordinate of its number."""
    mask = pnd.ops.sample_mask(pnd.Bernoulli(rate), key, (len(x), *weight.T.shape), backend="numpy")
    return np.einsum("bi,oi,bio->bo", x, weight, mask)


# masks


@pytest.mark.parametrize(
    ("mode", "padding", "regime"),
    [("ZEROS", "SAME", "fixed"), ("REFLECT", (1, 2), "dynamic"), ("CIRCULAR", ((2, 0), (1, 1)), "dynamic")],
)
def test_a_convolution_without_noise_is_that_of_equinox(mode, padding, regime):
    form = {"stride": 2, "dilation": (1, 2), "groups": 2, "padding": padding, "padding_mode": mode}
    plain = eqx.nn.Conv2d(4, 6, (3, 2), key=key(), **form)
    seed = {"seed": 1} if regime == "fixed" else {}
    module, x = pnde.PerNodeConv.from_plain(plain, rate=0.0, regime=regime, **seed), inputs(4, 7, 8)
    np.testing.assert_allclose(eqx.filter_jit(module)(x, key=key()), plain(x), atol=2e-6)
    np.testing.assert_allclose(module(x, inference=True), plain(x), atol=2e-6)


# what Equinox does with modules


def test_each_sample_has_the_mask_of_its_key():
    module, x, keys = pnde.PerNodeLinear(3, 4, use_bias=False, key=key()), inputs(3, 3), jax.random.split(key(1), 3)
    found = jax.vmap(lambda x, key: module(x, key=key))(x, keys)
    expected = [masked(row[None], module.weight, words(one))[0] for row, one in zip(x, keys, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_gradients_are_those_of_the_mask_and_of_parameters_only():
    module, x = pnde.PerNodeLinear(3, 4, key=key()), inputs(5, 3)
    gradient = eqx.filter_grad(lambda module: jnp.sum(rows(module, x)))(module)
    mask = pnd.ops.sample_mask(pnd.Bernoulli(0.5), (7, 2), (5, 3, 4), backend="numpy")
    np.testing.assert_allclose(gradient.weight, np.einsum("bi,bio->oi", x, mask), atol=1e-6)
    assert len(jax.tree.leaves(gradient)) == 2
    half = jax.tree.map(lambda a: a.astype("bfloat16") if eqx.is_inexact_array(a) else a, module.with_rate(0.123456))
    assert half.rate == 0.123456
    assert half(x[0].astype("bfloat16"), key=key()).dtype == "bfloat16"


def test_one_compilation_serves_all_keys_rates_and_modules_of_a_form():
    traces = []

    @eqx.filter_jit
    def call(module, x, key):
        traces.append(1)
        return module(x, key=key)

    model = eqx.nn.Sequential([pnde.PerNodeLinear(3, 4, use_bias=False, key=key(), rate=0.5)])
    for seed, rate in ((1, 0.5), (2, 0.5), (3, 0.25)):
        model = eqx.tree_at(lambda model: model[0], model, model[0].with_rate(rate))
        expected = masked(inputs(1, 3), model[0].weight, words(key(seed)), rate)[0]
        np.testing.assert_allclose(call(model[0], inputs(3), key(seed)), expected, atol=1e-6)
    call(pnde.PerNodeLinear(3, 4, use_bias=False, key=key(9), rate=0.5), inputs(3), key())
    assert len(traces) == 1


def test_masks_of_an_ensemble_are_made_of_keys_that_are_stacked_and_are_not_trained():
    make, keys = lambda key: pnde.Masksembles(8, members=2, key=key), jax.random.split(key(), 2)
    stack = eqx.filter_vmap(make)(keys)
    np.testing.assert_array_equal(stack.masks, [make(one).masks for one in keys])
    assert not jax.tree.leaves(eqx.filter(stack, eqx.is_inexact_array))
    for arguments in ({"inference": True}, {}):
        with pytest.raises(ValueError, match=r"`sample_id`|`key`"):
            pnde.Masksembles(8, seed=1, **arguments)(jax.numpy.ones(8))


def test_gradients_are_noted_of_weights_that_have_some():
    make = functools.partial(pnde.DynamicDropConnectLinear, 3, 4, key=key())
    model, x = [make(), make(), make(prefer="small_weight")], inputs(3)
    found = eqx.filter_grad(lambda model: sum(layer(x, key=key()).sum() for layer in model))(model)
    frozen = eqx.tree_at(lambda tree: tree[1].weight, found, None)
    noted = pnde.note_gradients(model, frozen)
    np.testing.assert_array_equal(noted[0].gradient, found[0].weight)
    assert not noted[1].gradient.any()
    assert noted[2].gradient is None
    for value in (np.inf, -np.inf, np.nan):
        overflown = eqx.tree_at(lambda tree: tree[0].weight, found, found[0].weight.at[1, 2].set(value))
        np.testing.assert_array_equal(pnde.note_gradients(noted, overflown)[0].gradient, found[0].weight)
    with pytest.raises(ValueError, match="`gradients`"):
        pnde.note_gradients(model, found[:1])
    with pytest.raises(ValueError, match="`model`"):
        pnde.note_gradients(model[2:], found[2:])
    with pytest.raises(AttributeError, match="one preference"):
        model[0].with_weight_rate(0.1)
    assert model[0].with_gradient_rate(0.25).with_rate(0.125).rates() == {"base_rate": 0.125, "gradient_rate": 0.25}


def test_a_stack_of_layers_is_scanned_with_a_key_each():
    stack = eqx.filter_vmap(lambda key: pnde.PerNodeLinear(3, 3, use_bias=False, key=key))(jax.random.split(key(), 2))
    arrays, static = eqx.partition(stack, eqx.is_array)
    keys, x = jax.random.split(key(1), 2), inputs(3)

    @jax.checkpoint
    def step(x, layer_and_key):
        layer, key = layer_and_key
        return eqx.combine(layer, static)(x, key=key), None

    expected = x
    for weight, one in zip(stack.weight, keys, strict=True):
        expected = masked(expected[None], weight, words(one))[0]
    np.testing.assert_allclose(jax.lax.scan(step, x, (arrays, keys))[0], expected, atol=1e-5)
    keyed = pnde.with_key(stack, key(1))
    assert keyed.noise_key.shape == (2, 2)
    assert (keyed.noise_key[0] != keyed.noise_key[1]).any()


def test_a_state_that_was_saved_has_its_rate_and_its_seed(tmp_path):
    module = pnde.PerNodeLinear(3, 4, regime="fixed", key=key(5)).with_rate(0.3)
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, module)
    file.seek(0)
    again = eqx.tree_deserialise_leaves(file, pnde.PerNodeLinear(3, 4, regime="fixed", key=key(6)))
    assert (again.seed, again.rate) == (module.seed, 0.3) == (5, 0.3)


def test_a_rate_is_read_and_set_outside_of_compiled_functions():
    layer = pnde.PerNodeLinear(3, 4, key=key())
    with pytest.raises(TypeError, match=r"`rate`. Expected to be read and set outside of compiled functions"):
        eqx.filter_jit(lambda layer: layer.with_rate(0.3))(layer)


# models


def test_a_module_whose_numbers_nobody_has_is_printed_as_equinox_does():
    layer = pnde.PerNodeLinear(3, 4, key=key())
    shown = [repr(eqx.filter(layer, eqx.is_inexact_array)), repr(eqx.filter_eval_shape(lambda: layer))]
    eqx.filter_jit(lambda layer: shown.append(repr(layer)))(layer)
    shown.append(repr(eqx.filter_vmap(lambda key: pnde.PerNodeLinear(3, 4, key=key))(jax.random.split(key(), 2))))
    for one in shown:
        assert "noise_numbers=" in one
    assert "seed" not in repr(layer)  # calls bring their keys
    assert "PerNodeLinear(...)" in eqx.tree_pformat([layer], truncate_leaf=lambda one: one is layer)


def test_apply_and_with_key_put_noise_into_a_model_that_hands_no_keys_on():
    plain, x = eqx.nn.MLP(3, 2, 8, 2, key=key()), inputs(3)
    model = pnde.apply(plain, "all-linear", rate=0.5, exclude=r"layers\.2")
    assert [type(one).__name__ for one in model.layers] == ["PerNodeLinear", "PerNodeLinear", "Linear"]
    assert model.layers[0].weight is plain.layers[0].weight
    with pytest.raises(ValueError, match=r"`key`.*with_key"):
        model(x)
    y = x
    for n, layer in enumerate(plain.layers[:2]):
        own = words(jax.random.fold_in(key(3), n))
        y = np.maximum(masked(y[None], layer.weight, own)[0] + layer.bias, 0)
    np.testing.assert_allclose(pnde.with_key(model, key(3))(x), plain.layers[2](y), atol=1e-5)
    np.testing.assert_array_equal(eqx.nn.inference_mode(model)(x), plain(x))
    folded = pnde.fold(model)
    assert jax.tree.structure(folded) == jax.tree.structure(plain)
    np.testing.assert_array_equal(folded(x), plain(x))


def test_rules_and_seeds():
    model = eqx.nn.Sequential([eqx.nn.Linear(3, 3, key=key()), eqx.nn.Dropout(0.2), eqx.nn.Linear(3, 3, key=key())])
    fixed = pnde.apply(model, "all-linear", regime="fixed", seed=1)
    assert len({fixed[0].seed, fixed[2].seed}) == 2
    assert pnde.apply(model, [r"layers\.2"], regime="fixed", seed=1)[2].seed == fixed[2].seed

    def rule(name, module):
        return pnde.Dropout(module.p) if isinstance(module, eqx.nn.Dropout) else None

    assert type(pnde.apply(model, rule)[1]) is pnde.Dropout
    assert pnde.apply(eqx.nn.Linear(3, 4, key=key()), eqx.nn.Linear, "drop_connect", rate=0.1).rate == 0.1


class Own(eqx.nn.Linear if keras.backend.backend() == "jax" else object):
    def __call__(self, x):
        return x


def linear(**arguments):
    return pnde.PerNodeLinear(3, 4, key=key(), **arguments)


REFUSALS = {
    "no model": (lambda: pnde.apply(3, "all-linear"), "`model`. Expected a equinox.Module"),
    "nothing": (lambda: pnde.apply(eqx.nn.MLP(1, 1, 1, 1, key=key()), "tail"), "takes noise: 'layers.0', 'layers.1'"),
    "own call": (lambda: pnde.apply(Own(1, 1, key=key()), "all-linear"), "a `__call__` of its own"),
    "twice": (lambda: pnde.apply(linear(), "all-linear"), "has noise already"),
    "bank": (lambda: pnde.fold(linear(regime="bank", bank_size=2)), "`regime`"),
    "positions": (lambda: pnde.fold(linear(regime="fixed", sharing=())), "`sharing`.*one for all positions"),
    "class": (lambda: pnde.PerNodeLinear.from_linear(eqx.nn.Conv1d(1, 1, 1, key=key())), "an equinox.nn.Linear"),
    "schedule": (lambda: linear(rate=pnd.schedules.Linear(0.0, 0.5, 4)), "`with_rate`"),
    "slow": (lambda: pnde.Dropout(0.5, None, pnd.schedules.Step([0.2, 0.9], [1])), "`with_persistence`"),
    "seed": (lambda: linear(seed=1), "whose calls have keys"),
    "no rate": (lambda: linear(noise=pnd.Gaussian(stddev=0.1)).with_rate(0.5), "has no rate"),
    "no key": (lambda: linear()(inputs(3)), "`key`. Expected a jax.random.key"),
    "keys": (lambda: linear()(inputs(3), key=jax.random.split(key(), 3)), "`key`"),
    "member": (lambda: linear(regime="bank", bank_size=2)(inputs(3)), "which chooses a member"),
    "no id": (lambda: linear(regime="example")(inputs(3)), "the examples' ids"),
    "ids": (lambda: linear()(inputs(3), key=key(), sample_id=jnp.arange(3)), "one for each call"),
    "kind of id": (lambda: linear()(inputs(3), key=key(), sample_id=1.5), "`sample_id`. Expected an int"),
    "batch": (lambda: linear()(inputs(5, 3), key=key()), r"shape \(3,\): one sample"),
    "features": (lambda: linear()(inputs(4), key=key()), r"shape \(3,\)"),
    "channels": (lambda: pnde.PerNodeConv(1, 3, 4, 1, key=key())(inputs(2, 3), key=key()), r"\(3, \*space\)"),
    "scalar": (lambda: pnde.PerNodeLinear("scalar", 4, key=key()), "`in_features`"),
    "inference": (lambda: linear(inference=0), "`inference`"),
    "float id": (lambda: linear()(inputs(3), key=key(), sample_id=jnp.ones(())), "`sample_id`. Expected an integer"),
    "id": (
        lambda: linear(sharing="sample")(inputs(3), key=key(), sample_id=1),
        "`sample_id`.*the same for all samples",
    ),
    "number": (lambda: linear()(1.0, key=key()), "`x`.*a tensor of jax.*float"),
    "number of all": (lambda: pnde.Dropout(0.5)(1.0, key=key()), "`x`.*a tensor of jax.*float"),
    "texts": (lambda: pnde.DropConnectLinear(3, 4, key=key())(np.array(["x"]), key=key()), "`x`.*an array of numbers"),
    "integers": (lambda: pnde.Dropout(0.5)(jnp.arange(3), key=key()), "`x`. Expected a floating dtype"),
    "rank": (lambda: pnde.SpatialDropout(0.5)(inputs(3), key=key()), "rank from 2"),
    "with_key": (lambda: pnde.with_key(linear(), jax.random.split(key(), 3)), "one jax.random.key"),
    "key of objects": (lambda: pnde.with_key(linear(), np.array([None])), "`key`.*one jax.random.key"),
    "quiet": (lambda: pnde.uncertainty.predict(eqx.nn.Identity(), inputs(5, 3)), "with noise modules"),
    "no module": (lambda: pnde.uncertainty.predict(3, inputs(5, 3)), "a equinox.Module, or a list"),
    "objects": (lambda: pnde.uncertainty.predict(pnde.Dropout(0.5), np.array([None])), "`x`.*an array of numbers"),
    "no noise": (lambda: pnde.with_key(eqx.nn.Identity(), key()), "noisy modules"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_refused(case):
    call, words = REFUSALS[case]
    with pytest.raises((TypeError, ValueError), match=words):
        call()


# uncertainty


class Network(eqx.Module if keras.backend.backend() == "jax" else object):
    """A network whose modules are called without keys, and which says when it is traced."""

    layers: list
    traced: object = eqx.field(static=True) if keras.backend.backend() == "jax" else None

    def __call__(self, x):
        self.traced(x.shape)
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_prediction_is_that_of_the_same_network_in_keras():
    traces, dense = [], [keras.layers.Dense(8), keras.layers.Dense(3)]
    hidden, last = pnde.PerNodeLinear(6, 8, rate=0.5, key=key()), eqx.nn.Linear(8, 3, key=key(1))
    native = Network([hidden, jax.nn.relu, pnde.Dropout(0.3), last], traces.append)
    model = keras.Sequential(
        [keras.Input((6,)), pnd.PerNodeDrop(dense[0], rate=0.5), keras.layers.ReLU(), pnd.Dropout(0.3), dense[1]]
    )
    for layer, module in zip(dense, (hidden, last), strict=True):
        layer.set_weights([module.weight.T, module.bias])
    x = inputs(11, 6)
    expected = pnd.uncertainty.predict(model, x, samples=4, seed=3, from_logits=True, keep=True)
    for size in (4, 11):
        found = pnde.uncertainty.predict(native, x, samples=4, seed=3, from_logits=True, keep=True, batch_size=size)
        np.testing.assert_allclose(found.outputs, expected.outputs, atol=1e-6)
        np.testing.assert_allclose(found.mutual_information, expected.mutual_information, atol=1e-6)
    assert traces == [(6,), (6,)]


def test_a_module_that_is_not_chosen_is_quiet_and_a_bank_then_goes_by_places():
    bank = pnde.PerNodeLinear(6, 4, rate=0.5, regime="bank", bank_size=2, seed=1, key=key())
    drop, x = pnde.Dropout(0.5), inputs(5, 6)
    model = Network([bank, drop, pnde.Dropout(0.5), pnde.DropConnectLinear(4, 4, key=key())], id)
    plain = eqx.nn.inference_mode(model)
    y = jax.vmap(bank)(x, sample_id=jnp.arange(5))
    for chosen in ([drop], ["layers.1"]):
        found = pnde.uncertainty.predict(model, x, 3, batch_size=2, seed=1, layers=chosen, keep=True)
        for n, one in enumerate(found.outputs):
            mask = rows(drop, np.ones((5, 4), "float32"), key=(word_of(1, 0, n), 0))
            np.testing.assert_allclose(one, jax.vmap(plain.layers[3])(y * mask), atol=1e-5)
    last = pnde.uncertainty.predict(model, x, 2, seed=1, layers="last", keep=True)
    for n, one in enumerate(last.outputs):  # of all rows one mask, of the third of the modules that draw
        expected = jax.vmap(lambda row, n=n: model.layers[3](row, key=(word_of(1, 2, n), 0)))(y)
        np.testing.assert_allclose(one, expected, atol=1e-5)
    members = pnde.uncertainty.predict(bank, x, keep=True)
    assert members.samples == 2
    for n, one in enumerate(members.outputs):
        np.testing.assert_allclose(one, jax.vmap(lambda row, n=n: bank(row, sample_id=n))(x), atol=1e-6)


def test_a_model_that_takes_a_key_is_given_one_for_each_row():
    """Masks of two rows of 64 entries are equal with a probability below 1e-19."""
    model, x = eqx.nn.Sequential([pnde.Dropout(0.5), eqx.nn.Dropout(0.5)]), np.ones((5, 64), "float32")
    found = [pnde.uncertainty.predict(model, x, 2, seed=1, batch_size=size, keep=True).outputs for size in (2, 5)]
    np.testing.assert_array_equal(*found)

    def row_of(row, n, word):
        first, second = jax.random.split(jax.random.fold_in(key(word), n))
        return model[1](model[0](row, key=first, sample_id=n), key=second)

    for n, y in enumerate(found[0]):
        expected = jax.vmap(lambda row, i, n=n: row_of(row, i, word_of(1, 1, n)))(x, jnp.arange(5))
        np.testing.assert_array_equal(y, expected)
    assert len({tuple(row) for row in found[0].reshape(-1, 64)}) == 10


def test_norms_are_in_inference_and_the_state_is_dropped():
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(6, "batch", mode="batch")
    model, x = eqx.nn.Sequential([norm, pnde.Dropout(0.5)]), inputs(5, 6)
    plain, _ = jax.vmap(eqx.nn.inference_mode(norm), in_axes=(0, None), out_axes=(0, None))(x, state)
    found = pnde.uncertainty.predict(eqx.Partial(model, state=state), x, 3, seed=1, keep=True)
    assert {*np.unique((found.outputs / plain).round(4))} == {0.0, 2.0}


class Stack(eqx.Module if keras.backend.backend() == "jax" else object):
    """Layers that are scanned, inside of dropped attention."""

    blocks: object
    attend: object

    def __call__(self, x, key):
        arrays, static = eqx.partition(self.blocks, eqx.is_array)
        y = jax.lax.scan(lambda x, part: (eqx.combine(part, static)(x), None), x, arrays)[0]
        rows = jnp.stack([y, x])
        return {"scanned": y, "attended": self.attend(rows, rows, rows, key=key)}


def test_layers_that_were_stacked_have_a_seed_each_in_a_pass_and_attention_drops():
    blocks = eqx.filter_vmap(lambda key: pnde.PerNodeLinear(4, 4, use_bias=False, key=key))(jax.random.split(key(), 2))
    model, x = Stack(blocks, eqx.nn.MultiheadAttention(2, 4, dropout_p=0.5, key=key())), inputs(5, 4)
    found = pnde.uncertainty.predict(model, x, 2, batch_size=2, seed=1, probabilities=False, keep=True)
    for n, y in enumerate(found["scanned"].outputs):
        expected = x
        for weight, one in zip(blocks.weight, jax.random.split(key(word_of(1, 0, n)), 2), strict=True):
            expected = masked(expected, weight, words(one))
        np.testing.assert_allclose(y, expected, atol=1e-5)
    quiet = pnde.uncertainty.predict(model, x, 2, seed=1, layers=["blocks"], probabilities=False)
    dropped = pnde.uncertainty.predict(model, x, 2, seed=1, layers=["attend"], probabilities=False)
    assert (found["attended"].mean != quiet["attended"].mean).any()
    assert dropped["attended"].variance.any()
    assert not dropped["scanned"].variance.any()


def test_masks_of_examples_are_fresh_in_each_pass():
    layer, x = pnde.PerNodeLinear(3, 4, regime="example", seed=5, use_bias=False, key=key()), inputs(5, 3)
    found = pnde.uncertainty.predict(layer, {"x": x}, 2, seed=1, probabilities=False, keep=True)
    for n, y in enumerate(found.outputs):
        np.testing.assert_allclose(y, masked(x, layer.weight, (word_of(1, 0, n), 0)), atol=1e-6)


# the wing as a part of the library


def test_a_script_inside_the_folder_of_the_package_is_told_what_stands_in_its_way():
    code = f"import sys; sys.path.insert(0, {os.path.dirname(pnd.__file__)!r}); import equinox"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pernodedrop.equinox stands in the way of equinox" in done.stderr

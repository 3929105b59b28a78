"""Native modules of Equinox: the masks of NumPy and of the Keras layers, in what Equinox does with any module."""

import doctest
import importlib
import io
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from tests import house

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


MASKS = {
    "dynamic": {"rate": 0.3},
    "gaussian": {"rate": 0.3, "noise": "gaussian", "method": "recomputed"},
    "partial": {"noise": pnd.PartialGaussian(0.5, 2.0)},
    "fixed": {"rate": 0.3, "regime": "fixed", "seed": 5},
    "bank": {"rate": 0.3, "regime": "bank", "bank_size": 3, "seed": 5},
    "example": {"rate": 0.3, "regime": "example", "seed": 5},
}


@pytest.mark.parametrize("case", MASKS)
def test_a_linear_is_the_keras_layer(case):
    arguments, x = MASKS[case], inputs(5, 3)
    module = pnde.PerNodeLinear(3, 4, key=key(), **arguments)
    layer = pnd.PerNodeDrop(keras.layers.Dense(4), **arguments)
    layer(x)
    layer.layer.set_weights([module.weight.T, module.bias])
    ids = None if case == "fixed" else np.arange(5)
    for training in (True, False):
        given = {"sample_ids": ids} if training or case == "bank" else {}
        expected = layer(x, training=training, key=None if "seed" in arguments else (7, 2), **given)
        np.testing.assert_allclose(rows(module, x, training=training, ids=case != "fixed"), expected, atol=1e-6)
    if case != "bank":
        np.testing.assert_allclose(jax.vmap(module.fold())(x), expected, atol=1e-6)


CONVOLUTIONS = {
    "1d": ({"kernel_size": 3, "dilation": 2}, {"dilation_rate": 2}),
    "2d": (
        {"kernel_size": (3, 2), "stride": (2, 1), "groups": 2, "padding": "SAME"},
        {"strides": (2, 1), "groups": 2, "padding": "same"},
    ),
}


@pytest.mark.parametrize(("case", "kind"), [("1d", "drop_connect"), ("2d", "per_node_drop")])
def test_a_convolution_is_the_keras_layer(case, kind):
    arguments, of_keras = CONVOLUTIONS[case]
    noise = {} if kind == "per_node_drop" else {"sharing": "time", "mask_bias": True, "scaling": "none"}
    module_class, layer_class = {
        "per_node_drop": (pnde.PerNodeConv, pnd.PerNodeDrop),
        "drop_connect": (pnde.DropConnectConv, pnd.DropConnect),
    }[kind]
    dims = int(case[0])
    module = module_class(dims, 4, 6, key=key(), rate=0.4, **noise, **arguments)
    plain = getattr(keras.layers, f"Conv{dims}D")(6, arguments["kernel_size"], **of_keras)
    layer, x = layer_class(plain, rate=0.4, **noise), inputs(2, 4, *(6,) * dims)
    last = np.moveaxis(x, 1, -1)
    layer(last)
    plain.set_weights([np.moveaxis(module.weight, (0, 1), (-1, -2)), module.bias.reshape(-1)])
    for training in (True, False):
        expected = np.moveaxis(layer(last, training=training, key=(7, 2)), -1, 1)
        np.testing.assert_allclose(rows(module, x, training=training), expected, atol=2e-6)


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


@pytest.mark.parametrize("scaling", ["inverted", "none"])
def test_drop_connect_has_one_mask_for_one_key(scaling):
    arguments = {"rate": 0.3, "mask_bias": True, "scaling": scaling}
    module, x = pnde.DropConnectLinear(3, 4, key=key(), **arguments), inputs(5, 3)
    layer = pnd.DropConnect(keras.layers.Dense(4), **arguments)
    layer(x)
    layer.layer.set_weights([module.weight.T, module.bias])
    for training in (True, False):
        expected = layer(x, training=training, key=(7, 2))
        np.testing.assert_allclose(rows(module, x, training=training, ids=False), expected, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(module.fold())(x), expected, atol=1e-6)


ACTIVATIONS = {
    "dropout": (lambda: pnde.Dropout(0.3), lambda: pnd.Dropout(0.3)),
    "noise_shape": (lambda: pnde.Dropout(0.3, (None, 1, 6)), lambda: pnd.Dropout(0.3, (None, None, 1, 6))),
    "gaussian": (lambda: pnde.GaussianDropout(0.3), lambda: pnd.GaussianDropout(0.3)),
    "unscaled": (lambda: pnde.DropPath(0.3, False), lambda: pnd.DropPath(0.3, scale_by_keep=False)),
    "spatial": (lambda: pnde.SpatialDropout(0.3), lambda: pnd.SpatialDropout2D(0.3, data_format="channels_first")),
    "spatial_last": (lambda: pnde.SpatialDropout(0.3, "channels_last"), lambda: pnd.SpatialDropout2D(0.3)),
}


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_activation_noise_is_the_keras_layer(case):
    module, layer = (make() for make in ACTIVATIONS[case])
    x = inputs(5, 3, 4, 6)
    atol = 1e-6 if case == "gaussian" else 0  # of a continuous noise a compiled call rounds otherwise
    np.testing.assert_allclose(rows(module, x), layer(x, training=True, key=(7, 2)), rtol=0, atol=atol)
    np.testing.assert_array_equal(rows(module, x, training=False), x)


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


# models


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
    "nothing": (lambda: pnde.apply(eqx.nn.MLP(1, 1, 1, 1, key=key()), "tail"), "at least one .* of: 2 Linear"),
    "own call": (lambda: pnde.apply(Own(1, 1, key=key()), "all-linear"), "a `__call__` of its own"),
    "twice": (lambda: pnde.apply(linear(), "all-linear"), "has noise already"),
    "bank": (lambda: pnde.fold(linear(regime="bank", bank_size=2)), "`regime`"),
    "class": (lambda: pnde.PerNodeLinear.from_linear(eqx.nn.Conv1d(1, 1, 1, key=key())), "an equinox.nn.Linear"),
    "rate": (lambda: linear(rate=1.0), "`rate`"),
    "schedule": (lambda: linear(rate=pnd.schedules.Linear(0.0, 0.5, 4)), "`with_rate`"),
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
    "integers": (lambda: pnde.Dropout(0.5)(jnp.arange(3), key=key()), "`x`. Expected a floating dtype"),
    "rank": (lambda: pnde.SpatialDropout(0.5)(inputs(3), key=key()), "rank from 2"),
    "with_key": (lambda: pnde.with_key(linear(), jax.random.split(key(), 3)), "one jax.random.key"),
    "no noise": (lambda: pnde.with_key(eqx.nn.Identity(), key()), "noisy modules"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_refused(case):
    call, words = REFUSALS[case]
    with pytest.raises((TypeError, ValueError), match=words):
        call()


# the wing as a part of the library


def test_a_script_inside_the_folder_of_the_package_is_told_what_stands_in_its_way():
    code = f"import sys; sys.path.insert(0, {os.path.dirname(pnd.__file__)!r}); import equinox"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pernodedrop.equinox stands in the way of equinox" in done.stderr


def test_the_wing_needs_no_keras():
    code = (
        "import sys; sys.modules['keras'] = None; import jax, equinox as eqx, pernodedrop.equinox as pnde;"
        "model = pnde.apply(eqx.nn.Linear(3, 4, key=jax.random.key(0)), 'all-linear', rate=0.5);"
        "model(jax.numpy.ones(3), key=jax.random.key(1)); pnde.fold(model);"
        "print({'keras', 'torch', 'tensorflow', 'flax'} & {n for n, m in sys.modules.items() if m})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_examples_of_docstrings_run():
    for name in (name for name in house.modules() if name.startswith("equinox")):
        found = doctest.testmod(importlib.import_module(f"pernodedrop.{name}"))
        assert found.failed == 0

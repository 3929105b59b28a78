"""The layers as Keras citizens: build, shapes, dtypes, configs, saving, training, on the current backend."""

import inspect
import math

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.internals import of_keras
from tests.family import FAMILY, Case, Subclassed, host, inputs, noisy_layer, training_call
from tests.frameworks import compiled, needs_training, tensor
from tests.noises import Triangular

BACKEND = keras.backend.backend()

OF_EACH_KIND = ("per_node_drop", "per_node_drop_conv", "dropout", "stochastic_depth", "masksembles", "tabu_dropout")
every_layer = pytest.mark.parametrize("case", FAMILY.values(), ids=FAMILY)


def made(name, **kwargs):
    """A layer of the family."""
    return FAMILY[name].make(**kwargs)


def mask(shape, noise=None, key=(1, 0), **kwargs):
    return pnd.ops.sample_mask(noise or pnd.Bernoulli(0.5), key, shape, backend="numpy", **kwargs)


def test_training_call_is_the_masked_product_then_bias_and_activation():
    layer, x = made("per_node_drop"), inputs(4, 6)
    layer.build(x.shape)
    layer.layer.bias.assign(np.arange(5.0))
    y = np.einsum("bi,io,bio->bo", x, host(layer.layer.kernel), mask((4, 6, 5)))
    np.testing.assert_allclose(host(layer(x, training=True)), np.tanh(y + np.arange(5)), atol=1e-6)


def test_call_number_advances_by_one_and_only_in_training():
    layer, x = made("per_node_drop"), inputs(4, 6)
    layer(x), layer(x, training=True), layer(x, training=False), layer(x, training=True)
    assert host(layer.draw()).tolist() == [1, 2]


def test_drop_connect_has_one_mask_a_batch():
    layer, x = made("drop_connect"), inputs(4, 6)
    layer.build(x.shape)
    y = x @ (host(layer.layer.kernel) * mask((1, 6, 5), sharing="sample")[0])
    np.testing.assert_allclose(host(layer(x, training=True)), y, atol=1e-6)


def test_dropout_has_the_masks_of_per_input_sharing():
    x = inputs(4, 6)
    dropout, weight_noise = pnd.Dropout(0.5, seed=1), pnd.PerNodeDense(5, sharing="out", seed=1)
    np.testing.assert_array_equal(host(dropout(x, training=True)), x * mask((4, 6, 1))[:, :, 0])
    weight_noise.build(x.shape)
    y = host(dropout(x, training=True, key=(1, 0))) @ host(weight_noise.layer.kernel)
    np.testing.assert_allclose(host(weight_noise(x, training=True)), y, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "sharing"),
    [
        (lambda **kwargs: pnd.Dropout(0.5, seed=1, **kwargs), "out"),
        (lambda **kwargs: pnd.PerNodeDense(5, seed=1, **kwargs), ()),
        (lambda **kwargs: pnd.DropConnect(keras.layers.Dense(5), seed=1, **kwargs), "sample"),
    ],
    ids=["dropout", "per_node_drop", "drop_connect"],
)
def test_persistence_is_that_of_the_mask_and_may_change(make, sharing):
    layer, x = make(persistence=0.5), inputs(4, 7, 6)
    layer.build(x.shape)
    kernel = np.eye(6) if sharing == "out" else host(layer.layer.kernel)
    for call, persistence in enumerate((0.5, 1.0, 0.0)):
        layer.persistence = persistence
        assert (layer.persistence, layer.mask.persistence) == (persistence, persistence)
        m = mask((4, 7, *kernel.shape), key=(1, call), sharing=sharing, persistence=persistence)
        y = host(layer(x, training=True, key=(1, call)))
        np.testing.assert_allclose(y, np.einsum("bti,io,btio->bto", x, kernel, m), atol=1e-5)


def test_persistence_follows_a_schedule_of_its_own():
    rate, persistence = pnd.schedules.Linear(0.1, 0.5, steps=4), pnd.schedules.Step([0.2, 0.9], [2])
    layer, x = pnd.PerNodeDense(5, rate, persistence=persistence, seed=1), inputs(2, 7, 6)
    layer.build(x.shape)
    for call in range(5):
        assert (layer.rate, layer.persistence) == (rate(call), persistence(call))
        m = mask((2, 7, 6, 5), pnd.Bernoulli(rate(call)), (1, call), persistence=persistence(call))
        y = np.einsum("bti,io,btio->bto", x, host(layer.layer.kernel), m)
        np.testing.assert_allclose(host(layer(x, training=True)), y, atol=1e-5)
    with pytest.raises(AttributeError, match=r"follows Step.* and cannot be set"):
        layer.persistence = 0.5


def test_persistence_that_cannot_be_is_refused():
    with pytest.raises(AttributeError, match="'plain' is that of its sharing"):
        pnd.Dropout(0.5, name="plain").persistence = 0.5
    layer = pnd.Dropout(0.5, persistence=0.5)
    with pytest.raises(ValueError, match=r"`persistence`. Expected a float in \[0, 1\]"):
        layer.persistence = 1.5
    with pytest.raises(ValueError, match=r"`persistence`. Expected a float with regime='fixed'"):
        pnd.PerNodeDense(2, regime="fixed", persistence=pnd.schedules.Linear(0.1, 0.5, 3))
    with pytest.raises(ValueError, match=r"`sharing`. Expected one without 'time'"):
        pnd.PerNodeDense(2, sharing="time", persistence=0.5)


@pytest.mark.parametrize("noise_shape", [None, (None, 1, None), (1, 3, 6), (None, None, 1)])
def test_dropout_noise_shape_broadcasts_the_mask(noise_shape):
    x = np.ones((4, 3, 6), "float32")
    y = host(pnd.Dropout(0.5, noise_shape=noise_shape, seed=1)(x, training=True))
    assert set(np.unique(y)) == {0.0, 2.0}
    for axis, size in enumerate(noise_shape or ()):
        if size == 1:
            assert (y == y.take([0], axis=axis)).all()


@pytest.mark.only_backend("tensorflow", reason="only TensorFlow traces batches of a size that it does not know")
def test_a_noise_shape_may_name_a_batch_that_only_the_run_knows():
    import tensorflow as tf

    layer, x = pnd.Dropout(0.5, noise_shape=(4, 6), seed=1), inputs(4, 6)
    call = tf.function(lambda x: layer(x, training=True, key=(1, 0)), input_signature=[tf.TensorSpec((None, 6))])
    np.testing.assert_array_equal(host(call(x)), x * mask((4, 6, 1))[:, :, 0])


def test_fixed_mask_is_one_for_all_samples_and_at_inference():
    layer, x = made("per_node_drop_fixed"), inputs(4, 6)
    layer.build(x.shape)
    y = x @ (host(layer.layer.kernel) * mask((1, 6, 5))[0])
    for training in (False, True, True):
        np.testing.assert_allclose(host(layer(x, training=training)), y, atol=1e-6)


def test_bank_routes_samples_in_turn_or_by_their_ids():
    layer, x = made("per_node_drop_bank"), inputs(4, 6)
    layer.build(x.shape)
    members = mask((3, 6, 5))
    for ids, kwargs in (([0, 1, 2, 0], {}), ([2, 2, 0, 1], {"sample_ids": np.array([2, 5, 0, 1])})):
        y = np.einsum("bi,io,bio->bo", x, host(layer.layer.kernel), members[ids])
        np.testing.assert_allclose(host(layer(x, **kwargs)), y, atol=1e-6)


@pytest.mark.parametrize("noise", ["bernoulli", "gaussian", "uniform"])
@pytest.mark.parametrize("regime", ["fixed", "bank", "example"])
def test_a_mask_that_stays_is_a_kernel_so_that_the_layer_is_linear(regime, noise):
    size = {"bank_size": 2} if regime == "bank" else {}
    layer = pnd.PerNodeDense(5, 0.5, noise, regime=regime, use_bias=False, seed=1, **size)
    ids = {} if regime == "fixed" else {"sample_ids": np.array([1, 0, 1, 7])}
    a, b = inputs(4, 6), inputs(8, 6)[4:]
    y = [host(layer(x, training=True, **ids)) for x in (a, b, a + b)]
    np.testing.assert_allclose(y[0] + y[1], y[2], atol=1e-5)
    entries = mask((8, 6, 5), layer.noise)[[0] * 4 if regime == "fixed" else [1, 0, 1, 1 if regime == "bank" else 7]]
    np.testing.assert_allclose(y[0], np.einsum("bi,io,bio->bo", a, host(layer.layer.kernel), entries), atol=1e-5)


def test_example_mask_follows_the_example_wherever_it_stands():
    layer, x = pnd.PerNodeDense(5, regime="example", seed=1), inputs(4, 6)
    y = host(layer(x, training=True, sample_ids=np.array([7, 9, 7, 2**33 + 3])))
    again = host(layer(x[::-1].copy(), training=True, sample_ids=np.array([3, 7, 9, 7])))
    np.testing.assert_allclose(again[::-1], y, atol=1e-6)
    np.testing.assert_array_equal(host(layer(x)), host(layer.layer(x)))


def test_example_ids_can_be_an_input_of_a_functional_model():
    x, ids = keras.Input((6,)), keras.Input((), dtype="int32")
    layer = pnd.PerNodeDense(5, regime="example", seed=1)
    model = keras.Model([x, ids], layer(x, sample_ids=ids))
    data = inputs(4, 6)
    y = host(model([data, np.array([5, 5, 6, 7])], training=True))
    expected = np.einsum("bi,io,bio->bo", data, host(layer.layer.kernel), mask((8, 6, 5))[[5, 5, 6, 7]])
    np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("equation", "output_shape", "shape"),
    [
        ("ab,bc->ac", 5, (4, 6)),
        ("abc,cd->abd", (None, 5), (4, 7, 6)),
        ("...x,xy->...y", 5, (4, 2, 7, 6)),
        ("abc,cde->abde", (None, 3, 5), (4, 7, 6)),
        ("abcd,cde->abe", (None, 5), (4, 7, 2, 3)),
        ("abc,bcd->abd", (7, 5), (4, 7, 6)),
        ("abc,cbd->adb", (5, 7), (4, 7, 6)),
    ],
)
def test_einsum_dense_has_one_mask_a_sample_shared_over_positions(equation, output_shape, shape):
    layer = pnd.PerNodeDrop(keras.layers.EinsumDense(equation, output_shape=output_shape), rate=0.5, seed=1)
    x = inputs(*shape)
    np.testing.assert_allclose(host(layer(x)), host(layer.layer(x)), atol=1e-6)
    kernel = host(layer.layer.kernel)
    letters = equation.replace("...", "pqr")
    x_letters, k_letters, y_letters = letters.replace("->", ",").split(",")
    group = [c for c in k_letters if c in x_letters and c in y_letters]
    in_ = [c for c in k_letters if c in x_letters and c not in y_letters]
    out = [c for c in k_letters if c not in x_letters]
    size = dict(zip(k_letters, kernel.shape, strict=True))
    rows, columns = (int(np.prod([size[c] for c in part])) for part in ([*group, *in_], out))
    m = mask((len(x), rows, columns)).reshape([len(x)] + [size[c] for c in [*group, *in_, *out]])
    batch = x_letters[0]
    y = np.einsum(f"{x_letters},{k_letters},{batch}{''.join([*group, *in_, *out])}->{y_letters}", x, kernel, m)
    np.testing.assert_allclose(host(layer(x, training=True)), y, atol=1e-5)


def test_dense_on_images_shares_a_sample_s_mask_over_all_positions():
    layer, x = made("per_node_drop"), inputs(2, 3, 4, 6)
    layer.build(x.shape)
    y = np.einsum("bhwi,io,bio->bhwo", x, host(layer.layer.kernel), mask((2, 6, 5)))
    np.testing.assert_allclose(host(layer(x, training=True)), np.tanh(y), atol=1e-6)


def test_custom_objects_are_those_of_the_noise_too():
    config = pnd.PerNodeDense(3, noise=Triangular(0.25)).get_config()
    config["noise"] = {**config["noise"], "module": None, "class_name": "Elsewhere", "registered_name": "Elsewhere"}
    layer = pnd.PerNodeDrop.from_config(config, custom_objects={"Elsewhere": Triangular})
    assert layer.noise == Triangular(0.25)


@every_layer
def test_config_round_trip_keeps_everything(case):
    layer = case.make(dtype="mixed_bfloat16", name="my_layer")
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert (again.mask, again.seed, again.name) == (layer.mask, 1, "my_layer")
    assert again.dtype_policy.name == "mixed_bfloat16"


@pytest.mark.parametrize(
    ("case", "policy"),
    [
        *(pytest.param(case, "mixed_bfloat16", id=f"{name}-bfloat16") for name, case in FAMILY.items()),
        *(pytest.param(FAMILY[name], "mixed_float16", id=f"{name}-float16") for name in OF_EACH_KIND),
    ],
)
def test_mixed_precision_computes_in_the_compute_dtype(case, policy):
    numbers = {"alpha": 0.0} if case is FAMILY["standout"] else {}  # decisions that rounded products do not turn
    layer, plain, x = case.make(dtype=policy, **numbers), case.make(**numbers), case.inputs(4)
    layer.build(case.shape_of(4)), plain.build(case.shape_of(4))
    for variable, other in zip(plain.weights, layer.weights, strict=True):
        variable.assign(host(other).astype(variable.dtype))
    y = training_call(layer, x)
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
    np.testing.assert_allclose(host(y).astype("float32"), host(training_call(plain, x)), atol=0.06)


def test_half_precision_sums_in_float32():
    """A float16 sum of 4096 ones stops at 2048."""
    layer = pnd.PerNodeDense(1, rate=0.0, kernel_initializer="ones", seed=1, dtype="mixed_float16")
    assert host(layer(np.ones((2, 4096), "float32"), training=True)).tolist() == [[4096.0], [4096.0]]


@needs_training
def test_stateless_call_returns_the_new_state_and_leaves_the_old_alone():
    layer, x = made("per_node_drop"), inputs(4, 6)
    layer.build(x.shape)
    state = [keras.ops.copy(v.value) for v in layer.non_trainable_variables]
    old = [host(v).copy() for v in state]
    _, new = layer.stateless_call(layer.trainable_variables, state, x, training=True)
    for v, before in zip(state, old, strict=True):
        np.testing.assert_array_equal(host(v), before)
    assert host(new[[v.name for v in layer.non_trainable_variables].index("key")]).tolist() == [1, 1]
    assert host(layer.draw()).tolist() == [1, 0]


@needs_training
@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_stateless_call_takes_arrays(name):
    layer, x = made(name), keras.tree.map_structure(host, FAMILY[name].inputs(4))
    layer(x)
    variables = layer.trainable_variables, layer.non_trainable_variables
    y, _ = layer.stateless_call(*([keras.ops.copy(v.value) for v in of] for of in variables), x, training=True)
    np.testing.assert_allclose(host(y), host(layer(x, training=True)), atol=1e-6)


@pytest.mark.parametrize("name", ["per_node_drop", "dropout", "masksembles"])
def test_a_variable_is_an_input_like_its_value(name):
    layer, x = made(name), FAMILY[name].inputs(4)
    expected = layer(x, training=True, key=(1, 0))
    np.testing.assert_array_equal(host(layer(keras.Variable(x), training=True, key=(1, 0))), host(expected))


@every_layer
def test_output_shape_is_known_without_a_call(case):
    layer = case.make()
    for batch in (None, 4):
        known = layer.compute_output_shape(case.shape_of(batch))
        assert tuple(known) == (batch, *case.make()(case.inputs(4), training=True).shape[1:])


@pytest.mark.parametrize(
    ("case", "build"),
    [
        *(pytest.param(case, Case.model, id=f"{name}-functional") for name, case in FAMILY.items()),
        *(pytest.param(FAMILY[name], Subclassed, id=f"{name}-subclassed") for name in OF_EACH_KIND),
    ],
)
def test_saved_model_predicts_and_draws_as_it_would_have(case, build, tmp_path):
    model, x = build(case), inputs(4, 6)
    model(x, training=True)
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    again = build(case)
    again(x)
    again.load_weights(path)
    for training in (False, True, True):
        np.testing.assert_array_equal(host(again(x, training=training)), host(model(x, training=training)))


@every_layer
def test_keras_file_round_trip(case, tmp_path):
    model, x = case.model(), inputs(4, 6)
    model(x, training=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for training in (False, True, True):
        np.testing.assert_array_equal(host(again(x, training=training)), host(model(x, training=training)))


ALIKE_IN_FIT = {
    *("per_node_drop_partial", "per_node_drop_fixed", "per_node_drop_bank", "per_node_drop_einsum", "drop_connect"),
    *("per_node_drop_depthwise", "per_node_drop_transposed", "shakeout_conv", "noise_injection_conv"),
    *("dropout_persistent", "gaussian_dropout", "alpha_dropout", "spatial_dropout_2d", "drop_block_2d"),
    *("drop_path", "noisy_rnn_samples", "noisy_rnn_inputs", "sparse_variational_dropout_rnn"),
}
"""Their gradients are computed as those of others are, and the step of each is traced in test_family.py."""
OWN_FIT = {
    *("dynamic_drop_connect", "variational_dropout", "sparse_variational_dropout"),
    *("attention_dropout", "noisy_attention", "noisy_rnn", "zoneout", "variational_dropout_rnn"),
}
"""Those whose files fit them."""


@pytest.mark.slow
@needs_training
@pytest.mark.parametrize(
    ("case", "jit_compile"),
    [
        *(
            pytest.param(case, BACKEND == "jax", id=name)
            for name, case in FAMILY.items()
            # torch compiles nothing; the others take seconds for each
            if BACKEND == "torch" or name not in ALIKE_IN_FIT | OWN_FIT
        ),
        *(pytest.param(FAMILY[name], True, id=f"{name}-xla") for name in OF_EACH_KIND if BACKEND == "tensorflow"),
    ],
)
def test_fit_trains_with_a_ragged_last_batch(case, jit_compile):
    keras.utils.set_random_seed(1)  # of the weights
    model = case.model()
    # they compile each size of a batch too
    ragged = BACKEND == "torch" or case in [FAMILY[name] for name in OF_EACH_KIND]
    rows = 50 if ragged else 48
    x, y = inputs(rows, 6), inputs(rows, 2)
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=jit_compile)
    before = np.mean((host(model(x)) - y) ** 2)  # `evaluate` would trace a second graph
    history = model.fit(x, y, batch_size=16, epochs=3, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert np.mean((host(model(x)) - y) ** 2) < before
    layer = noisy_layer(model)
    assert layer.updates == (3 * math.ceil(rows / 16) if layer.mask.regime == "dynamic" else 0)


@pytest.mark.skip_backend("numpy", reason="NumPy arrays cannot carry a Keras mask")
def test_masking_passes_through():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Embedding(10, 4, mask_zero=True), made("per_node_drop"), pnd.Dropout(0.5)]
    )
    y = model(np.array([[1, 2, 0], [3, 0, 0]]))
    assert host(of_keras.mask_of(y)).tolist() == [[True, True, False], [True, False, False]]


def test_time_distributed_and_nested_models_work():
    inner = keras.Sequential([keras.Input((6,)), made("per_node_drop")])
    model = keras.Sequential([keras.Input((3, 6)), keras.layers.TimeDistributed(inner)])
    assert model(inputs(2, 3, 6), training=True).shape == (2, 3, 5)


def test_clone_has_the_same_noise():
    clone = keras.models.clone_model(FAMILY["per_node_drop_partial"].model())
    assert noisy_layer(clone).noise == pnd.PartialGaussian(0.4, 0.5)


@pytest.mark.slow
@pytest.mark.skip_backend("numpy", reason="Keras' NumPy backend cannot export")
@pytest.mark.parametrize(
    "name", ["per_node_drop", "per_node_drop_fixed", "per_node_drop_bank", "dropout", "fractal_join"]
)
def test_exported_model_predicts_the_same(name, tmp_path):
    """Export as an artifact of the backend itself, with a batch of any size."""
    model, x = FAMILY[name].model(), inputs(4, 6)
    if BACKEND == "torch":
        import torch

        sizes = (({0: torch.export.Dim("batch")},),)  # `forward` of Keras takes *args
        program = torch.export.export(model.eval(), (torch.from_numpy(inputs(3, 6)),), dynamic_shapes=sizes)
        y = program.module()(torch.from_numpy(x))
    elif BACKEND == "jax":
        import jax
        from jax import export

        (batch,) = export.symbolic_shape("batch")
        exported = export.export(jax.jit(lambda x: model(x)))(jax.ShapeDtypeStruct((batch, 6), "float32"))
        y = exported.call(x)
    else:
        import tensorflow as tf

        model.export(tmp_path / "model", verbose=False)
        loaded = tf.saved_model.load(tmp_path / "model")
        y = loaded.serve(x)
    np.testing.assert_allclose(host(y), host(model(x)), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pnd.PerNodeDrop(keras.layers.LSTM(3)), r"`layer`.*Dense, EinsumDense"),
        (lambda: pnd.PerNodeDrop(keras.layers.Flatten()), r"`layer`.*Dense, EinsumDense"),
        (lambda: pnd.PerNodeDrop("dense"), r"`layer`.*Dense, EinsumDense.*'dense'"),
        (lambda: pnd.PerNodeDense(3, rate=1.0), r"`rate`.*\[0, 1 - 2\*\*-24\].*rate=1.0"),
        (lambda: pnd.PerNodeDense(3, rate=-0.1), r"`rate`.*rate=-0.1"),
        (lambda: pnd.PerNodeDense(3, rate=float("nan")), r"`rate`.*rate=nan"),
        (lambda: pnd.PerNodeDense(3, rate="half"), r"`rate`.*rate='half'"),
        (lambda: pnd.GaussianDropout(1.0), r"`rate`.*rate=1.0"),
        (lambda: pnd.Dropout(True), r"`rate`.*rate=True"),
        (lambda: pnd.PerNodeDense(3, noise="gausian"), r"`noise`.*did you mean 'gaussian'"),
        (lambda: pnd.PerNodeDense(3, noise=pnd.Bernoulli(0.5), rate=0.5), r"`rate`.*brings its own numbers"),
        (lambda: pnd.PerNodeDense(3, noise=0.5), r"`noise`.*pernodedrop.Noise"),
        (lambda: pnd.PerNodeDense(3, regime="dynamc"), r"`regime`.*did you mean 'dynamic'"),
        (lambda: pnd.PerNodeDense(3, regime="bank"), r"`bank_size`.*an int from 1"),
        (lambda: pnd.PerNodeDense(3, bank_size=3), r"`bank_size`.*None with regime='dynamic'"),
        (lambda: pnd.PerNodeDense(3, sharing="smaple"), r"`sharing`.*did you mean 'sample'"),
        (lambda: pnd.PerNodeDense(3, method="recompute"), r"`method`.*did you mean 'recomputed'"),
        (lambda: pnd.PerNodeDense(3, seed=1.5), r"`seed`.*seed=1.5"),
        (
            lambda: pnd.PerNodeDense(
                3, noise="gaussian", regime="bank", bank_size=2, method="local_reparameterization"
            ),
            r"`method`.*regime='bank', whose masks stay",
        ),
        (lambda: pnd.Dropout(0.5, noise_shape=3), r"`noise_shape`"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()


@pytest.mark.parametrize(
    ("layer", "call", "words"),
    [
        (pnd.PerNodeDense(3), lambda layer: layer(np.ones((2, 3), "int32"), training=True), r"`inputs`.*floating"),
        (pnd.Dropout(0.5), lambda layer: layer(np.ones((2, 3), "int32"), training=True), r"`inputs`.*floating"),
        (pnd.Dropout(0.5, noise_shape=(None, 2)), lambda layer: layer(np.ones((2, 3), "float32")), r"`noise_shape`"),
        (
            pnd.PerNodeDense(3, regime="example"),
            lambda layer: layer(np.ones((2, 3), "float32"), training=True),
            r"`sample_ids`.*ids with regime='example'",
        ),
        (
            pnd.PerNodeDense(3, regime="example"),
            lambda layer: layer(np.ones((2, 3), "float32"), training=True, sample_ids=np.array([1, 2, 3])),
            r"`sample_ids`.*\(batch,\) = \(2,\).*\(3,\)",
        ),
        (
            pnd.PerNodeDense(3, regime="example"),
            lambda layer: layer(np.ones((2, 3), "float32"), training=True, sample_ids=np.array([1.0, 2.0])),
            r"`sample_ids`.*integer",
        ),
        (
            pnd.PerNodeDrop(keras.layers.EinsumDense("abc,acd->abd", output_shape=(7, 5))),
            lambda layer: layer(np.ones((4, 7, 6), "float32")),
            r"'abc,acd->abd' has no per-sample form",
        ),
        (
            pnd.PerNodeDrop(keras.layers.EinsumDense("abc,cd->bd", output_shape=(5,))),
            lambda layer: layer(np.ones((4, 7, 6), "float32")),
            r"'abc,cd->bd' has no per-sample form",
        ),
    ],
)
def test_bad_calls_are_refused_by_name(layer, call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call(layer)


def test_a_variable_of_keras_is_refused_with_what_to_give():
    x, w = (keras.Variable(np.ones((3, 3), "float32")) for _ in range(2))
    with pytest.raises(TypeError, match=r"`x`. Expected a tensor.*of a variable of Keras its `value`"):
        pnd.ops.masked_dense(x, w, pnd.Bernoulli(0.5), (1, 0))
    y = pnd.ops.masked_dense(x.value, w.value, pnd.Bernoulli(0.0), (1, 0))
    assert host(y).tolist() == [[3.0] * 3] * 3
    with pytest.raises(TypeError, match=r"`rates`. Expected a sequence of rates"):  # on JAX it has entries without end
        pnd.schedules.Step(keras.Variable([0.1, 0.5]), [10])
    with pytest.raises((TypeError, ValueError), match=r"`sample_ids`"):
        pnd.ops.masked_dense(x.value, w.value, pnd.Bernoulli(0.5), (1, 0), sample_ids=x)


SWITCHES = {
    "NumPy's bool": np.bool_,
    "a NumPy array": np.array,
    "an int": int,
    "a tensor": lambda value: tensor(np.array(value)),
    "a tensor of an int": lambda value: tensor(np.array(value, "int32")),
}


@pytest.mark.parametrize("kind", SWITCHES)
@pytest.mark.parametrize("value", [False, True])
def test_training_is_whatever_keras_takes_for_a_bool(kind, value):
    """Keras makes a scalar tensor of NumPy's before a layer sees it."""
    for name in ("per_node_drop", "dropout", "masksembles"):
        layer, x = made(name), FAMILY[name].inputs(4)
        layer(x)
        given, plain = (host(layer(x, training=training, key=(1, 0))) for training in (SWITCHES[kind](value), value))
        np.testing.assert_array_equal(given, plain)


@pytest.mark.parametrize("bad", [2, 1.0, -1, "yes", [True], [1]], ids=repr)
def test_training_that_is_no_bool_is_refused(bad):
    layer, x = made("per_node_drop"), inputs(4, 6)
    given = [bad] if isinstance(bad, str) else [bad, np.array(bad), tensor(np.array(bad))]
    for training in given:
        with pytest.raises((TypeError, ValueError), match=r"`training`. Expected True, False or None. Received: train"):
            layer(x, training=training)


@pytest.mark.only_backend("jax", "tensorflow", reason="torch asks for the value and stops the graph there")
def test_training_that_only_the_run_knows_is_refused():
    layer, x = made("per_node_drop"), tensor(inputs(4, 6))
    layer(x)
    with pytest.raises(TypeError, match=r"`training`. Expected True, False or None"):
        compiled(lambda training: layer(x, training=training))(tensor(np.array(True)))


def test_groups_of_a_gaussian_kernel_have_noise_of_their_own():
    """Local reparameterization draws the outputs of each group anew: equal groups would give equal outputs."""
    einsum = keras.layers.EinsumDense("abc,bcd->abd", output_shape=(3, 2), kernel_initializer="ones")
    y = host(pnd.PerNodeDrop(einsum, noise="gaussian", seed=1)(np.ones((2, 3, 4), "float32"), training=True))
    assert len(np.unique(y)) == y.size


@pytest.mark.parametrize("training", [False, True])
def test_activity_regularizer_of_the_inner_layer_counts(training):
    layer = pnd.PerNodeDense(4, rate=0.0, activity_regularizer=keras.regularizers.L2(0.1), seed=1)
    y = host(layer(inputs(8, 6), training=training))
    np.testing.assert_allclose([host(loss) for loss in layer.losses], [0.1 * (y**2).sum() / 8], rtol=1e-5)


@keras.saving.register_keras_serializable("tests")
class Special(pnd.Bernoulli):
    """A noise that inherits everything."""


def test_a_new_rate_keeps_the_class_of_the_noise():
    layer = pnd.PerNodeDense(4, noise=Special(0.5))
    layer.rate = 0.25
    assert layer.noise == Special(0.25)
    given_by_spread = pnd.PerNodeDense(4, noise=pnd.Gaussian(stddev=0.1))
    with pytest.raises(TypeError, match=r"stddev and has no rate"):
        given_by_spread.rate = 0.5


def test_inputs_of_another_size_are_refused_by_name():
    layer = made("per_node_drop")
    layer.build((None, 6))
    with pytest.raises(ValueError, match=r"inputs|incompatible"):
        layer(inputs(4, 7), training=True)


@pytest.mark.parametrize("make", [FAMILY["drop_connect"].make, lambda: pnd.Dropout(0.5, noise_shape=(1, None))])
def test_sample_ids_without_a_sample_coordinate_are_refused(make):
    with pytest.raises(ValueError, match=r"`sample_ids`.*same for all samples"):
        make()(inputs(2, 6), training=True, sample_ids=np.array([1, 2]))


WRONG_CHANNELS = {
    "conv_1d": (keras.layers.Conv1D(8, 1), (8, 6), (8, 1)),
    "conv_2d_groups": (keras.layers.Conv2D(4, 2, groups=2), (5, 5, 4), (5, 5, 2)),
    "conv_3d": (keras.layers.Conv3D(3, 2), (3, 3, 3, 2), (3, 3, 3, 4)),
    "channels_first": (keras.layers.Conv1D(8, 1, data_format="channels_first"), (6, 8), (1, 8)),
    "depthwise": (keras.layers.DepthwiseConv1D(2), (5, 4), (5, 1)),
    "einsum": (keras.layers.EinsumDense("abc,cd->abd", output_shape=(None, 3)), (5, 4), (5, 1)),
    "einsum_groups": (keras.layers.EinsumDense("abc,bcd->abd", output_shape=(5, 3)), (5, 4), (1, 4)),
}


@pytest.mark.parametrize("noise", ["bernoulli", "gaussian", "uniform"])
@pytest.mark.parametrize(("layer", "shape", "wrong"), WRONG_CHANNELS.values(), ids=WRONG_CHANNELS)
def test_a_built_layer_refuses_inputs_of_another_size(layer, shape, wrong, noise):
    """They were multiplied by what lay behind them in memory."""
    wrapper = pnd.PerNodeDrop(type(layer).from_config(layer.get_config()), rate=0.5, noise=noise, seed=1)
    wrapper.build((None, *shape))
    with pytest.raises(ValueError, match=r"inputs|incompatible"):
        wrapper(np.ones((4, *wrong), "float32"), training=True, key=(1, 0))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"drop_rate": 0.3}, r"`drop_rate`.*Expected rate=0.3,.*words of this library.*drop_rate=0.3"),
        ({"stir_type": "drop"}, r"`stir_type`.*Expected noise='bernoulli'"),
        ({"stir_type": "gaussian"}, r"`stir_type`.*Expected noise='gaussian'"),
        ({"fixed_mask": True}, r"`fixed_mask`.*Expected regime='fixed'"),
        ({"fixed_mask": False}, r"`fixed_mask`.*Expected regime='dynamic'"),
        ({"return_masks": True}, r"`return_masks`.*ops.sample_mask"),
    ],
)
def test_words_of_the_author_are_translated(given, words):
    for make in (lambda: pnd.PerNodeDense(4, **given), lambda: pnd.PerNodeDrop(keras.layers.Dense(4), **given)):
        with pytest.raises(TypeError, match=words):
            make()


@pytest.mark.parametrize("name", [name for name in pnd.layers.__all__ if hasattr(keras.layers, name)])
def test_a_layer_that_keras_has_too_takes_arguments_in_its_order(name):
    """So that `GaussianDropout(0.5, 3)` has the seed 3. What Keras does not have comes after."""

    def names(layer):
        parameters = inspect.signature(layer).parameters.values()
        return [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]

    ours = names(getattr(pnd, name))
    theirs = [each for each in names(getattr(keras.layers, name)) if each not in ("name", "dtype")]
    assert ours[: len(theirs)] == theirs

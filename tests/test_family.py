"""The contract of every regularizer: one slot, one behaviour. What Keras asks of a layer is in test_layers.py."""

import json

import keras
import numpy as np
import pytest
import scipy.sparse

import pernodedrop as pnd
from pernodedrop.internals import of_keras
from pernodedrop.layers.base.noise_layer import NoiseLayer
from pernodedrop.testing import claims
from tests import family_answers
from tests.family import FAMILY, Case, host, inputs, skip_what_forgets_bfloat16, wrap

BACKEND = keras.backend.backend()
NO_MASKS = (
    *(keras.layers.EinsumDense, keras.layers.Conv2D, keras.layers.DepthwiseConv1D),
    *(keras.layers.Conv1DTranspose, keras.layers.SeparableConv1D),
)
LARGEST = 1 - 2**-24

NOISES = {type(case.make().mask.noise): case.make().mask.noise for case in FAMILY.values()}


def every(which=lambda case: True):
    """A test takes the cases of the family which are so."""
    cases = {name: case for name, case in FAMILY.items() if which(case)}
    return pytest.mark.parametrize("case", cases.values(), ids=cases)


every_layer, every_rated_layer = every(), every(lambda case: case.rated)


def flat(outputs):
    return [host(tensor) for tensor in keras.tree.flatten(outputs)]


def test_every_regularizer_is_under_test():
    tested = {type(case.make()) for case in FAMILY.values()}
    public = {thing for name in pnd.layers.__all__ if isinstance(thing := getattr(pnd, name), type)}
    siblings = {
        "SpatialDropout1D",
        "SpatialDropout3D",
        "DropBlock1D",
        "DropBlock3D",
    }  # the same class in other dimensions
    untested = {
        layer for layer in public if issubclass(layer, NoiseLayer) and not any(issubclass(t, layer) for t in tested)
    }
    assert {layer.__name__ for layer in untested} == siblings


@every_layer
def test_inference_has_no_randomness_and_draws_no_key(case):
    layer, x = case.make(), case.inputs(4)
    first = flat(layer(x))
    for again in (layer(x), layer(x, training=False), layer(x, training=None)):
        np.testing.assert_array_equal(flat(again), first)
    assert layer.updates == 0


@every_rated_layer
def test_rate_0_is_inference(case):
    layer, x = case.make(rate=0.0), case.inputs(4)
    np.testing.assert_allclose(flat(layer(x, training=True)), flat(layer(x)), atol=1e-5)


@every_rated_layer
@pytest.mark.parametrize("rate", [2.0**-24, 0.999, LARGEST])
def test_extreme_rates_stay_finite(case, rate):
    layer, x = case.make(rate=rate), case.inputs(4)
    for training in (True, True, False):
        assert np.isfinite(flat(layer(x, training=training))).all()


@every_rated_layer
def test_rates_outside_are_refused(case):
    for rate in (1.0, -0.1, float("nan"), 2):
        with pytest.raises(ValueError, match="rate"):
            case.make(rate=rate)
    with pytest.raises(TypeError, match="rate"):
        case.make(rate="half")


@every_rated_layer
def test_rate_may_be_a_schedule(case):
    """It is silent before update 2, and has noise from then on, as far as the layer has any."""
    schedule = pnd.schedules.Step([0.0, 0.5], [2])
    if case.scheduled or case.make().mask.regime != "dynamic":
        with pytest.raises((TypeError, ValueError), match="`rate`"):
            case.make(rate=schedule)
        return
    layer = case.make(rate=schedule)
    x = case.inputs(4)
    calm = flat(layer(x))
    for _ in range(2):
        np.testing.assert_allclose(flat(layer(x, training=True)), calm, atol=1e-5)
    assert layer.rate == 0.5
    assert not all(np.allclose(flat(layer(x, training=True)), calm, atol=1e-3) for _ in range(4))
    again = type(layer).from_config(layer.get_config())
    assert again.schedule == layer.schedule


@every(lambda case: case.rated and not case.scheduled)
def test_a_rate_that_is_set_is_given_back_as_it_was_also_by_configs_and_weights(case):
    """Not as the number that a layer makes of it: 0.8999999761581421 has the threshold of 0.9."""
    layer, again = case.make(), case.make()
    layer(case.inputs(4)), again(case.inputs(4))
    for rate in (0.9, 0.1, 0.3, 0.123):
        layer.rate = rate
        assert (layer.rate, type(layer).from_config(layer.get_config()).rate) == (rate, rate)
    again.set_weights(layer.get_weights())
    assert again.rate == 0.123


@every_layer
def test_a_seed_is_not_set_and_the_error_says_how_a_layer_gets_another(case):
    layer = case.make()
    with pytest.raises(AttributeError, match=r"seed of layer .* cannot be set.*from_config\(.*'seed': 5.*key=\(5, 0\)"):
        layer.seed = 5
    assert layer.seed == 1
    again = type(layer).from_config({**layer.get_config(), "seed": 5})
    assert again.seed == 5


def test_a_drawn_seed_is_read_and_makes_the_same_masks_again():
    layer = pnd.PerNodeDense(3)
    again = pnd.PerNodeDense(3, seed=layer.seed)
    np.testing.assert_array_equal(host(layer.draw()), host(again.draw()))
    assert layer.get_config()["seed"] is None  # a copy draws its own
    assert pnd.PerNodeDrop.from_config(layer.get_config()).seed != layer.seed


@pytest.mark.parametrize("name", ["per_node_drop", "noisy_rnn"])
def test_the_summary_of_a_model_shows_the_inner_layer(name):
    layer, lines = FAMILY[name].make(), []
    keras.Sequential([keras.Input(FAMILY[name].shape), layer]).summary(expand_nested=True, print_fn=lines.append)
    assert f"└ {layer.layer.name}" in "".join(lines)


@every_layer
def test_equal_seeds_give_equal_calls_and_others_do_not(case):
    x = case.inputs(4)
    layers = [case.make(), case.make(), case.make(seed=2)]
    for layer in layers:
        layer(x)
    for layer in layers:
        random = np.random.default_rng(5)
        for variable in layer.trainable_variables:
            variable.assign(random.normal(size=variable.shape))
    first, same, other = ([flat(layer(x, training=True)) for _ in range(4)] for layer in layers)
    np.testing.assert_array_equal(first, same)
    assert case.random != np.array_equal(first, other)


@every(lambda case: not case.stateful)
def test_a_key_makes_a_call_again(case):
    layer, x = case.make(), case.inputs(4)
    layer(x)
    key = layer.draw()
    first, again = flat(layer(x, training=True, key=key)), flat(layer(x, training=True, key=key))
    np.testing.assert_array_equal(first, again)


@every_layer
def test_a_keras_mask_is_passed_on_as_the_inner_layer_does(case):
    """A convolution passes none on: Keras has none for its positions."""
    layer, x = case.make(), case.inputs(2)
    inner = getattr(layer, "layer", layer)
    assert layer.supports_masking == inner.supports_masking
    assert layer.supports_masking == (not isinstance(inner, NO_MASKS))
    mask = np.array([[True], [False]])
    passed = layer.compute_mask(x, [mask, mask] if isinstance(x, list) else mask)
    np.testing.assert_array_equal(host(passed), mask)


@pytest.mark.only_backend("jax", "tensorflow", reason="the others compile nothing of themselves")
@every_layer
def test_steps_of_one_shape_are_traced_once(case):
    """With their gradients, and with the state that the step before left; what is traced is not run."""
    layer, x, traces = case.make(), case.inputs(4), []
    layer.build(case.shape_of(4))

    def loss_of(trainable, rest, x):
        y, rest, losses = layer.stateless_call(trainable, rest, x, training=True, return_losses=True)
        return sum(keras.ops.sum(part**2) for part in keras.tree.flatten(y)) + sum(losses), rest

    if BACKEND == "jax":
        import jax

        def step(trainable, rest, x):
            traces.append(1)
            (_, rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable, rest, x)
            return gradients, rest

        trace = jax.jit(step).eval_shape
    else:
        import tensorflow as tf

        @tf.function
        def step(trainable, rest, x):
            traces.append(1)
            with tf.GradientTape() as tape:
                tape.watch(trainable)
                loss, rest = loss_of(trainable, rest, x)
            return tape.gradient(loss, trainable), rest

        def trace(*arguments):
            return step.get_concrete_function(*arguments).structured_outputs

        x = keras.tree.map_structure(tf.constant, x)
    trainable, state = (
        [keras.ops.copy(variable.value) for variable in of]
        for of in (layer.trainable_variables, layer.non_trainable_variables)
    )
    for _ in range(3):
        gradients, state = trace(trainable, state, x)
        assert [gradient.shape for gradient in gradients] == [variable.shape for variable in trainable]
    assert len(traces) == 1


@every_layer
def test_folded_layer_is_plain_and_computes_the_same(case):
    layer, x = case.make(), case.inputs(4)
    y = flat(layer(x))
    if not case.folds:
        with pytest.raises(ValueError, match=r"member|bank|fold|inference"):
            layer.fold()
        return
    plain = layer.fold()
    assert all(type(part).__module__.startswith("keras.") for part in of_keras.layers_of(plain))
    np.testing.assert_allclose(flat(plain(x)), y, atol=1e-5)


@every(lambda case: case.folds)
def test_folded_layer_has_the_dtype_policy(case):
    layer, x = case.make(dtype="mixed_bfloat16"), case.inputs(4)
    skip_what_forgets_bfloat16(layer)
    assert layer(x).dtype == layer.fold()(x).dtype


def sparse_of(x):
    """A tensor in the sparse kinds that the framework has arithmetic for."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return [tf.sparse.from_dense(x)]
    if BACKEND == "jax":
        from jax.experimental import sparse

        return [sparse.BCOO.fromdense(x)]
    import torch

    x = torch.from_numpy(x)
    return [x.to_sparse(), *([x.to_sparse_csr()] if x.ndim == 2 else [])]  # rows of scalars are all that CSR has


def dense_of(y):
    """A tensor of the framework on the host, which may be sparse."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return host(tf.sparse.to_dense(y) if isinstance(y, tf.SparseTensor) else y)
    return host(y.todense() if hasattr(y, "todense") else y.to_dense() if BACKEND == "torch" else y)


DENSE_ALWAYS = {
    *("per_node_drop_einsum", "per_node_drop_conv", "per_node_drop_depthwise"),
    *("per_node_drop_transposed", "drop_connect_separable"),
    *("noise_injection_conv", "shakeout_conv", "noisy_attention", "noisy_rnn", "noisy_rnn_samples"),
    "attention_dropout",
    *("noisy_rnn_inputs", "zoneout", "fractal_join"),
    *("variational_dropout_rnn", "sparse_variational_dropout_rnn"),
}
DENSE_IN_TRAINING = DENSE_ALWAYS | {"shakeout", "flipout", "alpha_dropout"}
VARIANTS = {
    "standout_weight": Case(wrap(pnd.Standout, shift="weight", beta=0.1)),
    "variational_dropout_unit": Case(wrap(pnd.VariationalDropout, examples=50, per="unit")),
    "dropout_shaped": Case(lambda: pnd.Dropout(0.5, noise_shape=(None, 1), seed=1)),
}


@pytest.mark.skip_backend("numpy", reason="NumPy has dense arrays alone")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [*FAMILY, *VARIANTS])
def test_sparse_inputs_are_right_or_refused_by_name(name, training):
    case = {**FAMILY, **VARIANTS}[name]
    x = np.maximum(inputs(4, *case.shape), 0)
    takes = (lambda x: [x, x]) if name in ("stochastic_depth", "fractal_join") else lambda x: x
    for sparse in sparse_of(x):
        layer = case.make()
        layer.build(case.shape_of(4))
        if name in (DENSE_IN_TRAINING if training else DENSE_ALWAYS):
            with pytest.raises(TypeError, match=r"(?s)`(inputs|query)`. Expected a dense tensor here \(.*todense"):
                layer(takes(sparse), training=training)
            continue
        state = [host(variable).copy() for variable in layer.variables]
        wanted = host(layer(takes(x), training=training))
        for variable, value in zip(layer.variables, state, strict=True):
            variable.assign(value)
        np.testing.assert_allclose(dense_of(layer(takes(sparse), training=training)), wanted, atol=1e-5)


@pytest.mark.only_backend("tensorflow", "jax", reason="Keras has sparse inputs of models there")
@pytest.mark.parametrize("name", ["per_node_drop", "per_node_drop_gaussian", "drop_connect"])
def test_fit_on_a_sparse_matrix_is_fit_on_its_dense_array(name):
    case = FAMILY[name]
    x = scipy.sparse.csr_matrix(np.maximum(inputs(8, *case.shape), 0))
    networks = []
    for sparse in (True, False):
        layer = case.make()
        network = keras.Sequential([keras.Input(case.shape, sparse=sparse), layer])
        if networks:
            network.set_weights(networks[0].initial)
        network.initial = network.get_weights()
        network.compile("sgd", "mse")
        y = np.ones((8, *network.output_shape[1:]), "float32")
        network.fit(x if sparse else x.toarray(), y, batch_size=4, epochs=2, shuffle=False, verbose=0)
        networks.append(network)
    for got, wanted, initial in zip(*(n.get_weights() for n in networks), networks[0].initial, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)
        assert (got != initial).any() or got.ndim == 0


@pytest.mark.only_backend("tensorflow", "torch", reason="the others have no ragged tensors")
@every(lambda case: case.shape == (6,))
def test_ragged_inputs_are_right_or_refused_by_name(case):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        ragged = tf.RaggedTensor.from_row_lengths(np.arange(1, 9, dtype="float32"), [3, 5])
    else:
        import torch

        rows = [torch.arange(1.0, 4), torch.arange(4.0, 9)]
        ragged = torch.nested.nested_tensor(rows, layout=torch.jagged)

    def values(y):
        return host(y.flat_values if BACKEND == "tensorflow" else y.values())

    layer = case.make()
    layer.build(case.shape_of(4))
    if isinstance(layer, pnd.StochasticDepth):  # its one number is that of all rows
        y = values(layer([ragged, ragged], training=True))
        assert any(np.array_equal(y, n * np.arange(1, 9)) for n in (1, 2))
        np.testing.assert_array_equal(values(layer([ragged, ragged])), 1.5 * np.arange(1, 9))
        return
    with pytest.raises(TypeError, match=r"(?s)`inputs`. Expected a dense.* tensor here"):
        layer(ragged, training=True)


@pytest.mark.parametrize("noise", NOISES.values(), ids=lambda noise: type(noise).__name__)
def test_mean_and_variance_are_what_the_noise_states(noise):
    claims.moments(noise, BACKEND)


ANSWERS = json.loads(family_answers.PATH.read_text())


@pytest.mark.parametrize("name", FAMILY)
def test_every_backend_computes_what_numpy_did(name):
    """Two training calls and inference, with given weights, against figures that the NumPy backend wrote."""
    for got, wanted in zip(family_answers.outputs(FAMILY[name]), ANSWERS[name], strict=True):
        np.testing.assert_allclose(got, np.array(wanted), atol=2e-5, rtol=2e-4)


def test_answers_are_kept_for_every_layer():
    assert set(ANSWERS) == set(FAMILY)

"""R-Drop against NumPy in float64: its loss, its gradients, and a training step of it with masks that are known."""

import json
import warnings

import keras
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

import pernodedrop as pnd
from pernodedrop import losses
from pernodedrop.internals import of_keras
from tests.frameworks import NAME, float64, needs_gradients, needs_training, tensor, value_and_gradients

HALVES = {"mean": 0.5, "sum": 1.0}
every_constant = pytest.mark.parametrize(
    ("ce", "kl", "alpha"), [("mean", "mean", 5.0), ("sum", "mean", 0.7), ("mean", "sum", 1.0), ("sum", "sum", 0.3)]
)


def host(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def brute(y, logits, alpha, ce="mean", kl="mean", weights=None, kept=None):
    """The loss by its definition, from the logits of both passes, one after the other."""
    p, q = np.split(softmax(logits.astype("float64"), axis=-1), 2)
    weights = np.ones(y.shape) if weights is None else weights
    kept = np.ones(y.shape, bool) if kept is None else kept

    def mean(values):
        return (values * weights)[kept].sum() / kept.sum()

    def right(probabilities):
        return np.take_along_axis(probabilities, y[..., None], axis=-1)[..., 0]

    cross_entropy = HALVES[ce] * (mean(-np.log(right(p))) + mean(-np.log(right(q))))
    divergence = HALVES[kl] * (mean(rel_entr(p, q).sum(-1)) + mean(rel_entr(q, p).sum(-1)))
    return cross_entropy + alpha * divergence


def from_logits(**kwargs):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **kwargs)


def classifier(*noisy, **kwargs):
    """Noisy layers before one that is linear, as a model of four numbers to the logits of three classes."""
    return keras.Sequential([keras.Input((4,)), *noisy, keras.layers.Dense(3, **kwargs)])


def dropout_masks(rows, call=0):
    """The masks of `pnd.Dropout(0.5, seed=1)` on four numbers."""
    return pnd.ops.sample_mask(pnd.Bernoulli(0.5), (1, call), (rows, 4, 1), backend="numpy")[:, :, 0]


def noisy_logits(model, x, call=0):
    """The logits of both passes of a classifier of one `pnd.Dropout(0.5, seed=1)`."""
    kernel, bias = (host(weight) for weight in model.layers[-1].weights)
    return np.concatenate([x, x]) * dropout_masks(2 * len(x), call) @ kernel + bias


@every_constant
@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("shape", [(4,), (4, 5)])
def test_loss_is_its_definition(ce, kl, alpha, logits, shape):
    z, y = normal(2 * shape[0], *shape[1:], 3), np.random.default_rng(1).integers(0, 3, shape)
    loss = losses.RDrop(
        keras.losses.SparseCategoricalCrossentropy(from_logits=logits), alpha, ce=ce, kl=kl, paired=True
    )
    predictions = z if logits else softmax(z, axis=-1)
    weights = np.random.default_rng(2).uniform(size=shape)
    twice = np.concatenate([y, y])
    np.testing.assert_allclose(host(loss(twice, predictions)), brute(y, z, alpha, ce, kl), rtol=1e-5)
    weighted = loss(twice, predictions, sample_weight=np.concatenate([weights, weights]))
    np.testing.assert_allclose(host(weighted), brute(y, z, alpha, ce, kl, weights), rtol=1e-5)


def test_loss_of_one_hot_targets_is_that_of_their_classes():
    z, y = normal(8, 3), np.array([0, 2, 1, 1])
    loss = losses.RDrop("categorical_crossentropy", 2.0, paired=True)
    np.testing.assert_allclose(host(loss(np.eye(3)[[*y, *y]], softmax(z, axis=-1))), brute(y, z, 2.0), rtol=1e-5)


@keras.saving.register_keras_serializable("tests")
class SaysInItsConfig(keras.losses.Loss):
    """As Keras' own crossentropies from 3.16 on."""

    def call(self, y_true, y_pred):
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)

    def get_config(self):
        return {**super().get_config(), "from_logits": True}


def test_a_loss_says_that_predictions_are_logits_by_an_attribute_or_by_its_config():
    assert losses.RDrop(SaysInItsConfig()).from_logits
    assert losses.RDrop(from_logits()).from_logits
    assert not losses.RDrop(smooth).from_logits


@pytest.mark.parametrize(
    ("reduction", "reduce"), [("sum", np.sum), (None, np.asarray), ("mean_with_sample_weight", np.mean)]
)
def test_reduction_is_that_of_the_loss(reduction, reduce):
    z, y = normal(8, 3), np.array([0, 2, 1, 1])
    rows = [brute(y[n % 4 :][:1], z[[n % 4, n % 4 + 4]], 2.0) for n in range(8)]
    ce = -log_softmax(z, axis=-1)[np.arange(8), [*y, *y]]
    rows += ce - np.tile(ce.reshape(2, 4).mean(0), 2)  # a row has its own cross-entropy
    loss = losses.RDrop(from_logits(reduction=reduction), 2.0, paired=True)
    np.testing.assert_allclose(host(loss(np.tile(y, 2), z)), reduce(rows), rtol=1e-5)


@every_constant
def test_masked_positions_are_left_out(ce, kl, alpha):
    z, y = normal(8, 5, 3), np.random.default_rng(1).integers(0, 3, (4, 5))
    kept = np.arange(5) < np.array([[5], [3], [1], [4]])
    twice, weights = np.concatenate([y, y]), np.random.default_rng(2).uniform(size=(4, 5))
    predictions = keras.ops.convert_to_tensor(z)
    of_keras.set_mask(predictions, keras.ops.convert_to_tensor(np.concatenate([kept, kept])))
    loss = losses.RDrop(from_logits(), alpha, ce=ce, kl=kl, paired=True)
    value = host(loss(twice, predictions, sample_weight=np.concatenate([weights, weights])))
    np.testing.assert_allclose(value, brute(y, z, alpha, ce, kl, weights, kept), rtol=1e-5)


def test_positions_of_the_ignored_class_are_left_out():
    z, y = normal(8, 5, 3), np.random.default_rng(1).integers(0, 3, (4, 5))
    loss = losses.RDrop(from_logits(ignore_class=2), 3.0, paired=True)
    value = host(loss(np.concatenate([y, y]), z))
    np.testing.assert_allclose(value, brute(y, z, 3.0, kept=y != 2), rtol=1e-5)


@pytest.mark.parametrize("kl", ["mean", "sum"])
def test_symmetric_kl_is_the_divergence_in_both_directions(kl):
    z = normal(2, 4, 5, 3)
    p, q = softmax(z.astype("float64"), axis=-1)
    expected = HALVES[kl] * (rel_entr(p, q) + rel_entr(q, p)).sum(-1)
    np.testing.assert_allclose(host(losses.symmetric_kl(*z, from_logits=True, kl=kl)), expected, rtol=1e-4, atol=1e-6)
    probabilities = softmax(z, axis=-1)
    np.testing.assert_allclose(host(losses.symmetric_kl(*probabilities, kl=kl)), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_symmetric_kl_of_half_precision_is_in_float32(dtype):
    p, q = (keras.ops.cast(z, dtype) for z in normal(2, 4, 3))
    divergence = losses.symmetric_kl(p, q, from_logits=True)
    assert keras.backend.standardize_dtype(divergence.dtype) == "float32"
    wide = losses.symmetric_kl(*(keras.ops.cast(z, "float32") for z in (p, q)), from_logits=True)
    np.testing.assert_array_equal(host(divergence), host(wide))


def test_symmetric_kl_of_scalars_is_refused():
    with pytest.raises(ValueError, match=r"`p`.*\(\.\.\., classes\)"):
        losses.symmetric_kl(tensor(np.float32(1)), tensor(np.float32(1)))


@pytest.mark.skip_backend("numpy", reason="Keras makes float32 of float64 on NumPy")
def test_symmetric_kl_of_two_dtypes_is_in_float32():
    p, q = softmax(normal(2, 4, 3), axis=-1)
    with float64():
        for dtype, wanted in (("float32", "float32"), ("float64", "float64")):
            divergence = losses.symmetric_kl(tensor(p.astype("float64")), tensor(q.astype(dtype)))
            assert keras.backend.standardize_dtype(divergence.dtype) == wanted
            np.testing.assert_allclose(host(divergence), host(losses.symmetric_kl(p, q)), rtol=1e-4, atol=1e-6)


@needs_gradients
@pytest.mark.parametrize(
    ("p", "q", "logits", "expected"),
    [
        ([0.0, 1.0, 0.0], [0.0, 1.0, 0.0], False, 0.0),
        ([0.0, 0.5, 0.5], [0.0, 0.25, 0.75], False, 0.125 * np.log(3.0)),
        ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], False, np.log(1e7)),
        ([-np.inf, 0.0, 0.0], [-np.inf, 0.0, np.log(3.0)], True, 0.125 * np.log(3.0)),
        ([-200.0, 0.0, 0.0], [0.0, 0.0, 200.0], True, 50.0),
        ([1e4, 0.0, -1e4], [1e4, 0.0, -1e4], True, 0.0),
    ],
)
def test_classes_of_no_probability_give_numbers(p, q, logits, expected):
    """Where a class has probability 0 on one side only, its logarithm is that of Keras' epsilon, 1e-7.

    In the fifth case P is (0, 1/2, 1/2), Q is (0, 0, 1), and log P - log Q is (0, 200 - log 2, -log 2), up to 1e-80.
    """
    value, gradients = value_and_gradients(
        lambda p, q: losses.symmetric_kl(p, q, from_logits=logits),
        *(np.array([row], "float32") for row in (p, q)),
        upstream=np.ones(1, "float32"),
    )
    np.testing.assert_allclose(value, [expected], rtol=1e-5, atol=1e-6)
    assert np.isfinite(gradients).all()


@needs_gradients
def test_gradients_go_through_both_halves():
    """By hand: of KL(P||Q) to the logits of P it is P (log P/Q - KL(P||Q)), of KL(Q||P) P - Q, of CE P - target."""
    z, y = normal(8, 3), np.array([0, 2, 1, 1])
    loss = losses.RDrop(from_logits(), alpha=2.0, ce="sum", kl="mean", paired=True)
    _, (gradient,) = value_and_gradients(lambda z: loss(np.tile(y, 2), z), z, upstream=np.float32(1.0))
    p = softmax(z.astype("float64"), axis=-1)
    q = np.roll(p, 4, axis=0)  # the other half
    forward = p * (np.log(p / q) - rel_entr(p, q).sum(-1, keepdims=True))
    expected = (p - np.eye(3)[[*y, *y]] + 2.0 * 0.5 * (forward + p - q)) / 4
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@needs_training
@pytest.mark.parametrize(("ce", "kl", "alpha"), [("mean", "sum", 5.0), ("sum", "mean", 0.7)])
def test_a_step_of_fit_is_the_one_by_hand_with_the_known_masks(ce, kl, alpha):
    """Rows n and batch + n of the doubled batch have the masks of samples n and batch + n, and those differ."""
    x, y = normal(6, 4), np.array([0, 2, 1, 1, 0, 2])
    masks = dropout_masks(12)
    assert (masks[:6] != masks[6:]).any(axis=1).all()
    net = classifier(pnd.Dropout(0.5, seed=1), kernel_regularizer=keras.regularizers.L2(0.1))
    kernel, bias = (host(weight).astype("float64") for weight in net.layers[-1].weights)
    model = losses.RDropModel(net)
    model.compile(keras.optimizers.SGD(0.5), losses.RDrop(from_logits(), alpha, ce=ce, kl=kl), metrics=["accuracy"])
    z = noisy_logits(net, x)
    history = model.fit(x, y, batch_size=6, shuffle=False, verbose=0).history

    np.testing.assert_allclose(history["loss"], [brute(y, z, alpha, ce, kl) + 0.1 * (kernel**2).sum()], rtol=1e-5)
    np.testing.assert_allclose(history["accuracy"], [(z.argmax(-1) == [*y, *y]).mean()])
    p = softmax(z.astype("float64"), axis=-1)
    q = np.roll(p, 6, axis=0)
    forward = p * (np.log(p / q) - rel_entr(p, q).sum(-1, keepdims=True))
    upstream = (HALVES[ce] * (p - np.eye(3)[[*y, *y]]) + alpha * HALVES[kl] * (forward + p - q)) / 6
    new_kernel, new_bias = (host(weight) for weight in net.layers[-1].weights)
    gradient = (np.concatenate([x, x]) * masks).T @ upstream + 0.2 * kernel
    np.testing.assert_allclose(new_kernel, kernel - 0.5 * gradient, atol=1e-5)
    np.testing.assert_allclose(new_bias, bias - 0.5 * upstream.sum(0), atol=1e-5)


@needs_training
def test_without_divergence_it_is_plain_training_on_the_batch_twice():
    x, y = normal(6, 4), np.array([0, 2, 1, 1, 0, 2])
    plain, net = (classifier(pnd.PerNodeDense(5, seed=1), kernel_initializer="ones") for _ in range(2))
    net.set_weights(plain.get_weights())
    model = losses.RDropModel(net)
    model.compile(keras.optimizers.SGD(0.5), losses.RDrop(from_logits(), alpha=0.0))
    plain.compile(keras.optimizers.SGD(0.5), from_logits())
    for _ in range(2):
        loss = model.train_on_batch(x, y)
        np.testing.assert_allclose(loss, plain.train_on_batch(np.tile(x, (2, 1)), np.tile(y, 2)), rtol=1e-6)
    for weight, other in zip(net.weights, plain.weights, strict=True):
        np.testing.assert_allclose(host(weight), host(other), atol=1e-6)


@needs_training
def test_sample_and_class_weights_count_in_both_terms():
    x, y, weights = normal(6, 4), np.array([0, 2, 1, 1, 0, 2]), np.array([1.0, 0.0, 0.5, 3.0, 1.0, 1.0])
    classes = {0: 1.0, 1: 0.25, 2: 4.0}
    for call, kwargs, expected in (
        (0, {"sample_weight": weights}, weights),
        (1, {"class_weight": classes}, np.vectorize(classes.get)(y)),
    ):
        net = classifier(pnd.Dropout(0.5, seed=1))
        net.layers[0]._key.assign([1, call])
        model = losses.RDropModel(net)
        model.compile(keras.optimizers.SGD(0.0), losses.RDrop(from_logits(), 2.0))
        value = brute(y, noisy_logits(net, x, call), 2.0, weights=expected)
        np.testing.assert_allclose(model.train_on_batch(x, y, **kwargs), value, rtol=1e-5)


@needs_training
def test_padding_of_embedded_tokens_is_left_out():
    tokens, y = np.array([[1, 2, 0], [3, 0, 0], [2, 2, 1], [3, 1, 0]]), np.array([[1, 0, 2]] * 4)
    embed = keras.layers.Embedding(4, 4, mask_zero=True)
    net = keras.Sequential([keras.Input((3,)), embed, pnd.Dropout(0.5, seed=1), keras.layers.Dense(3)])
    model = losses.RDropModel(net)
    model.compile(keras.optimizers.SGD(0.0), losses.RDrop(from_logits(), 2.0))
    masks = pnd.ops.sample_mask(pnd.Bernoulli(0.5), (1, 0), (8, 3, 4, 1), sharing=(), backend="numpy")[..., 0]
    kernel, bias = (host(weight) for weight in net.layers[-1].weights)
    z = host(embed(np.tile(tokens, (2, 1)))) * masks @ kernel + bias
    value = model.train_on_batch(tokens, y)
    np.testing.assert_allclose(value, brute(y, z, 2.0, kept=tokens > 0), rtol=1e-5)


@needs_training
@pytest.mark.parametrize("jit_compile", [False, True] if NAME == "tensorflow" else [NAME == "jax"])
def test_fit_evaluate_and_predict_with_a_ragged_last_batch(jit_compile):
    x = normal(50, 4)
    y = x[:, :3].argmax(-1)
    net = classifier(pnd.PerNodeDense(8, seed=1, activation="relu"))
    model = losses.RDropModel(net)
    model.compile(
        keras.optimizers.Adam(0.05),
        losses.RDrop(from_logits()),
        metrics=["accuracy"],
        jit_compile=jit_compile,
    )
    before = model.evaluate(x, y, verbose=0)[0]
    history = model.fit(x, y, batch_size=16, epochs=4, validation_data=(x, y), verbose=0).history
    loss, accuracy = model.evaluate(x, y, verbose=0)
    assert loss < before
    assert host(net.layers[0]._key)[1] == 16  # one draw a step: one pass over both halves

    z = host(net(x))
    np.testing.assert_allclose(model.predict(x, verbose=0), z, atol=1e-6)
    np.testing.assert_allclose(loss, -log_softmax(z, axis=-1)[np.arange(50), y].mean(), rtol=1e-5)
    np.testing.assert_allclose(accuracy, (z.argmax(-1) == y).mean(), rtol=1e-5)
    np.testing.assert_allclose(history["val_loss"][-1], loss, rtol=1e-5)
    assert model.loss.paired is None
    with pytest.raises(ValueError, match="`paired`"):  # nobody says so any longer
        model.loss(y, z)


def test_a_call_is_that_of_the_wrapped_model():
    net, other = (classifier(pnd.Dropout(0.5, seed=1), kernel_initializer="ones") for _ in range(2))
    model, x = losses.RDropModel(net), normal(6, 4)
    for training in (False, True, True):
        np.testing.assert_array_equal(host(model(x, training=training)), host(other(x, training=training)))
    assert tuple(model.compute_output_shape((None, 4))) == (None, 3)


class Subclassed(keras.Model):
    """A model whose call has no `training`, of inputs in a dict, with two outputs."""

    def __init__(self):
        super().__init__()
        self.drop, self.classes, self.number = pnd.Dropout(0.5, seed=1), keras.layers.Dense(3), keras.layers.Dense(1)

    def call(self, inputs):
        x = self.drop(keras.ops.concatenate([inputs["left"], inputs["right"]], axis=-1))
        return {"classes": self.classes(x), "number": self.number(x)}


def functional():
    left, right = keras.Input((2,), name="left"), keras.Input((2,), name="right")
    x = pnd.Dropout(0.5, seed=1)(keras.layers.Concatenate()([left, right]))
    outputs = [keras.layers.Dense(3, name="classes")(x), keras.layers.Dense(1, name="number")(x)]
    return keras.Model({"left": left, "right": right}, outputs)


@needs_training
@pytest.mark.parametrize("make", [functional, Subclassed])
def test_models_of_several_inputs_and_outputs_have_a_loss_for_each(make):
    x, y, number = normal(6, 4), np.array([0, 2, 1, 1, 0, 2]), normal(6, 1, seed=3)
    inputs = {"left": x[:, :2], "right": x[:, 2:]}
    net = make()
    net(inputs)
    model = losses.RDropModel(net)
    model.compile(
        keras.optimizers.SGD(0.0),
        {"classes": losses.RDrop(from_logits(), 2.0), "number": "mse"},
        loss_weights={"classes": 3.0, "number": 0.5},
    )
    targets = {"classes": y, "number": number}
    noisy = np.tile(x, (2, 1)) * dropout_masks(12)
    layers = [net.get_layer(name) if make is functional else getattr(net, name) for name in targets]
    z, guess = (noisy @ host(layer.kernel) + host(layer.bias) for layer in layers)
    expected = 3.0 * brute(y, z, 2.0) + 0.5 * ((guess - np.tile(number, (2, 1))) ** 2).mean()
    value = model.train_on_batch(inputs, targets, return_dict=True)["loss"]
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@keras.saving.register_keras_serializable("tests")
def smooth(y_true, y_pred):
    return keras.losses.categorical_crossentropy(y_true, y_pred, label_smoothing=0.1)


@pytest.mark.parametrize(
    "loss", ["sparse_categorical_crossentropy", "CategoricalCrossentropy", from_logits(reduction="sum"), smooth]
)
def test_config_round_trip_keeps_everything(loss):
    r_drop = losses.RDrop(loss, 5.0, ce="sum", kl="sum", name="mine", paired=True)
    again = keras.losses.deserialize(keras.losses.serialize(r_drop))
    assert isinstance(again, losses.RDrop)
    assert again.get_config() == r_drop.get_config()
    assert (again.alpha, again.ce, again.kl, again.name, again.paired) == (5.0, "sum", "sum", "mine", True)
    assert (again.reduction, again.from_logits) == (r_drop.reduction, r_drop.from_logits)
    y = np.eye(3)[[0, 1]] if loss in (smooth, "CategoricalCrossentropy") else np.array([0, 1])
    z = softmax(normal(2, 3), axis=-1)
    np.testing.assert_array_equal(host(again(y, z)), host(r_drop(y, z)))


@needs_training
def test_saved_model_trains_on_as_it_would_have(tmp_path):
    x, y = normal(6, 4), np.array([0, 2, 1, 1, 0, 2])
    model = losses.RDropModel(classifier(pnd.Dropout(0.5, seed=1)), name="mine")
    model.compile("adam", losses.RDrop(from_logits(), 2.0, ce="sum"))
    model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert (type(again), again.name, again.loss.get_config()) == (type(model), "mine", model.loss.get_config())
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    for _ in range(2):
        np.testing.assert_array_equal(again.train_on_batch(x, y), model.train_on_batch(x, y))


@needs_training
def test_an_ordinary_model_is_not_trained_on_pairs_of_other_samples():
    net = classifier(pnd.Dropout(0.5, seed=1))
    net.compile("sgd", losses.RDrop(from_logits()))
    with pytest.raises(ValueError, match="RDropModel"):
        net.fit(normal(6, 4), np.zeros(6), verbose=0)


@needs_training
@pytest.mark.parametrize("paired", [None, True, False])
def test_the_model_says_what_its_batches_are_whatever_the_loss_says(paired):
    x, y, net = normal(6, 4), np.array([0, 2, 1, 1, 0, 2]), classifier(pnd.Dropout(0.5, seed=1))
    model, loss = losses.RDropModel(net), losses.RDrop(from_logits(), 2.0, paired=paired)
    model.compile(keras.optimizers.SGD(0.0), loss)
    np.testing.assert_allclose(model.train_on_batch(x, y), brute(y, noisy_logits(net, x), 2.0), rtol=1e-5)
    plain = -log_softmax(host(net(x)), axis=-1)[np.arange(6), y].mean()
    np.testing.assert_allclose(model.test_on_batch(x, y), plain, rtol=1e-5)
    assert loss.paired is paired


def test_a_loss_of_no_pairs_is_the_one_it_was_given():
    z, y = normal(5, 3), np.array([0, 2, 1, 1, 0])
    loss = losses.RDrop(from_logits(), paired=False)
    np.testing.assert_allclose(host(loss(y, z)), -log_softmax(z, axis=-1)[np.arange(5), y].mean(), rtol=1e-5)


def test_the_model_is_built_when_the_one_it_wraps_is():
    net = classifier(pnd.Dropout(0.5, seed=1))
    assert losses.RDropModel(net).built
    assert not losses.RDropModel(keras.Sequential([keras.layers.Dense(3)])).built


def test_folding_gives_the_wrapped_model_folded():
    net, x = classifier(pnd.PerNodeDense(5, regime="fixed", seed=1), pnd.Dropout(0.5, seed=1)), normal(6, 4)
    model = losses.RDropModel(net)
    for plain in (model.fold(), pnd.fold(model)):
        assert type(plain) is keras.Sequential
        assert [type(layer) for layer in plain.layers] == [keras.layers.Dense] * 2
        np.testing.assert_allclose(host(plain(x)), host(net(x)), atol=1e-6)
        assert not {id(variable) for variable in plain.weights} & {id(variable) for variable in net.weights}


@needs_training
def test_mixed_precision_is_the_wrapped_model_s():
    with_policy = keras.Sequential([keras.Input((4,)), pnd.Dropout(0.5), keras.layers.Dense(3)])
    with_policy.dtype_policy = keras.DTypePolicy("mixed_float16")
    model = losses.RDropModel(with_policy)
    model.compile("sgd", losses.RDrop(from_logits()))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert np.isfinite(model.train_on_batch(normal(6, 4), np.zeros(6)))


def fit(net, loss):
    model = losses.RDropModel(net)
    model.compile("sgd", loss)
    model.fit(normal(4, 4), np.zeros(4), verbose=0)


def before_fit(net):
    """What `fit` does before the first step."""
    model = losses.RDropModel(net)
    model.compile("sgd", losses.RDrop(from_logits()))
    model.make_train_function()


class Custom(keras.layers.Layer):
    """A layer that might have any noise."""

    def call(self, x):
        return x


def dense(**kwargs):
    return keras.layers.Dense(5, **kwargs)


NO_NOISE = [
    lambda: [],
    lambda: [dense()],
    lambda: [pnd.DropConnect(dense(), seed=1)],
    lambda: [pnd.PerNodeDense(5, regime="fixed", seed=1)],
    lambda: [pnd.PerNodeDense(5, regime="bank", bank_size=2, seed=1)],
    lambda: [pnd.Dropout(0.5, noise_shape=(1, None))],
    lambda: [keras.layers.Dropout(0.5, noise_shape=(1, 4))],
    lambda: [keras.layers.Dropout(0.0)],
    lambda: [keras.layers.GaussianNoise(0.0)],
    lambda: [pnd.Dropout(0.0)],
    lambda: [pnd.FastDropout(dense())],
    lambda: [pnd.Masksembles(2, train_assignment="repeat")],
    lambda: [keras.layers.Reshape((2, 2)), keras.layers.LSTM(5)],
    lambda: [keras.layers.Reshape((2, 2)), keras.layers.Bidirectional(keras.layers.GRU(5))],
    lambda: [keras.layers.Reshape((2, 2)), keras.layers.RNN(keras.layers.SimpleRNNCell(5))],
    lambda: [keras.Sequential([pnd.DropConnect(dense())])],
]
SOME_NOISE = [
    lambda: [pnd.DropConnect(dense(), sharing="time")],
    lambda: [pnd.DropConnect(dense()), keras.Sequential([keras.layers.GaussianNoise(0.1)])],
    lambda: [keras.layers.AlphaDropout(0.1)],
    lambda: [pnd.Dropout(pnd.schedules.Linear(0.0, 0.5, 4))],
    lambda: [pnd.Masksembles(2)],
    lambda: [keras.layers.Reshape((2, 2)), keras.layers.LSTM(5, dropout=0.1)],
    lambda: [keras.layers.Reshape((2, 2)), keras.layers.GRU(5, recurrent_dropout=0.1)],
]


@needs_training
@pytest.mark.parametrize("noisy", NO_NOISE)
def test_noise_that_both_halves_share_is_refused(noisy):
    with pytest.raises(ValueError, match=r"the divergence 0.*sharing='time'"):
        before_fit(classifier(*noisy()))


@needs_training
def test_the_layers_whose_noise_is_shared_are_named():
    with pytest.raises(ValueError, match=r"no noise or one mask for both in its noisy layers \['mine'\]"):
        fit(classifier(pnd.DropConnect(dense(), name="mine")), losses.RDrop(from_logits()))


@needs_training
@pytest.mark.parametrize("noisy", SOME_NOISE)
def test_noise_of_every_sample_is_seen(noisy):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        before_fit(classifier(*noisy()))


@needs_training
@pytest.mark.parametrize("layer", [Custom, lambda: keras.layers.Lambda(lambda x: x)])
def test_noise_that_cannot_be_seen_is_warned_of(layer):
    with pytest.warns(UserWarning, match=r"the divergence 0.*Unless these have such noise: \['(Custom|Lambda)'\]"):
        before_fit(classifier(layer()))


@needs_training
def test_training_without_the_loss_is_refused():
    with pytest.raises(ValueError, match=r"`loss`.*losses\.RDrop.*'sparse"):
        fit(classifier(pnd.Dropout(0.5)), "sparse_categorical_crossentropy")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: losses.RDrop("mse"), r"`loss`.*class probabilities.*'mse'"),
        (lambda: losses.RDrop(keras.losses.BinaryCrossentropy()), r"`loss`.*class probabilities"),
        (lambda: losses.RDrop(None), r"`loss`.*class probabilities.*None"),
        (lambda: losses.RDrop(from_logits(), alpha=-1.0), r"`alpha`.*from zero.*alpha=-1.0"),
        (lambda: losses.RDrop(from_logits(), alpha=float("nan")), r"`alpha`.*alpha=nan"),
        (lambda: losses.RDrop(from_logits(), alpha="5"), r"`alpha`.*alpha='5'"),
        (lambda: losses.RDrop(from_logits(), ce="half"), r"`ce`.*'mean', 'sum'.*ce='half'"),
        (lambda: losses.RDrop(from_logits(), kl="men"), r"`kl`.*did you mean 'mean'"),
        (lambda: losses.RDrop(from_logits(), from_logits=False), r"`from_logits`.*True, as its loss has it"),
        (lambda: losses.RDrop("kl_divergence", from_logits="yes"), r"`from_logits`.*from_logits='yes'"),
        (lambda: losses.symmetric_kl(np.ones((1, 2)), np.ones((1, 2)), kl="both"), r"`kl`.*kl='both'"),
        (lambda: losses.symmetric_kl(np.ones((2, 3)), np.ones((2, 4))), r"`q`.*shape of `p`, \(2, 3\).*q=\(2, 4\)"),
        (lambda: losses.RDrop(from_logits(), paired="yes"), r"`paired`.*paired='yes'"),
        (
            lambda: losses.RDrop(from_logits())(np.zeros(4), normal(4, 3)),
            r"`paired`.*True for .*RDropModel.*paired=None",
        ),
        (lambda: losses.RDropModel(keras.layers.Dense(3)), r"`model`.*keras.Model"),
        (lambda: losses.RDrop(from_logits(), paired=0), r"`paired`.*True, False or None.*paired=0"),
        (lambda: losses.RDrop(from_logits(), from_logits=1), r"`from_logits`.*True, False or None.*from_logits=1"),
        (lambda: losses.symmetric_kl(normal(2, 3), normal(2, 3), "no"), r"`from_logits`.*True or False"),
        (
            lambda: losses.RDrop(from_logits(), paired=True)(np.zeros(3), normal(3, 2)),
            r"`y_pred`.*2 \* batch rows.*\(3, 2\)",
        ),
        (
            lambda: losses.RDrop(lambda y, p: keras.ops.mean(y - p, axis=(1, 2)), paired=True)(
                normal(4, 5, 3), normal(4, 5, 3)
            ),
            r"`loss`.*value a position, \(2 \* batch, 5\).*\(4,\)",
        ),
        (
            lambda: losses.RDrop(keras.losses.CategoricalCrossentropy(axis=1), paired=True)(
                normal(4, 3, 5), normal(4, 3, 5)
            ),
            r"`loss`.*value a position, \(2 \* batch, 3\).*\(4, 5\)",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()


def test_switches_of_numpy_are_those_of_python():
    loss = losses.RDrop(from_logits(), from_logits=np.True_, paired=np.False_)
    assert (loss.from_logits, loss.paired) == (True, False)
    assert json.loads(json.dumps(loss.get_config()))["paired"] is False


@pytest.mark.only_backend("tensorflow", "jax", reason="Keras exports no plain model of Dense layers on the others")
@pytest.mark.filterwarnings("ignore:The `native_serialization` parameter:DeprecationWarning")
@pytest.mark.parametrize("loaded", [False, True])
def test_a_model_exports_as_the_one_that_it_wraps(loaded, tmp_path):
    tf = pytest.importorskip("tensorflow", reason="Keras on JAX exports by it")

    layers = [keras.Input((6,)), pnd.Dropout(0.5, seed=1), keras.layers.Dense(3, activation="softmax")]
    model, x = pnd.RDropModel(keras.Sequential(layers)), np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    model.compile("sgd", pnd.losses.RDrop("sparse_categorical_crossentropy"))
    model.fit(x, np.arange(4) % 3, verbose=0)
    if loaded:
        model.save(tmp_path / "model.keras")
        model = keras.saving.load_model(tmp_path / "model.keras")
    model.export(tmp_path / "exported", verbose=0)
    exported = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(exported.serve(x), np.asarray(keras.ops.convert_to_numpy(model.model(x))), atol=1e-6)

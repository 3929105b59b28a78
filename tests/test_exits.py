"""Early exits, against losses, entropies and exits in NumPy."""

import keras
import numpy as np
import pytest

from pernodedrop import contrast
from tests.contrast import assign, called, softmax
from tests.family import host, inputs
from tests.frameworks import needs_training

ONCE = pytest.mark.once


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
        given, left = model.predict_exits(x, batch_size=16)
        np.testing.assert_array_equal(left, exits)
        np.testing.assert_allclose(given, wanted, atol=1e-5)
    assert 0 < np.mean(taken(outputs, [0.9, 0.8]) == 0) < 1
    np.testing.assert_allclose(model.predict(x, verbose=0), wanted, atol=1e-5)


@pytest.mark.only_backend("numpy", reason="the others trace calls once")
def test_samples_that_have_left_are_computed_no_more():
    model, x = network(thresholds=[0.9, 0.8]), 2 * inputs(500, 4)
    for stage in model.stages:
        stage.rows = 0
    _, exits = model.predict_exits(x, batch_size=10)
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
    outputs, (found, exits) = host(model(x)), model.predict_exits(x)
    assert found.dtype == "float16"
    np.testing.assert_array_equal(exits, 0)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-2)
    np.testing.assert_allclose(found, outputs, atol=1e-2)


@ONCE
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: contrast.EarlyExits([], []), "`exits`.*one or more"),
        (lambda: contrast.EarlyExits([keras.layers.Dense(3)], [3]), "`exits`.*Keras layers"),
        (
            lambda: contrast.EarlyExits([keras.layers.Dense(3)] * 2, [keras.layers.Dense(3)]),
            "`exits`.*as many as stages, 2",
        ),
        (lambda: network(exit_weights=[1.0]), "`exit_weights`.*3 of them"),
        (lambda: network(thresholds=-1.0), "`thresholds`.*from zero"),
        (lambda: setattr(network(), "thresholds", [1.0]), "`thresholds`.*2 of them"),
        (lambda: network().predict_exits(np.ones((0, 4))), "`x`.*n from 1"),
        (lambda: network().predict_exits(inputs(2, 4), 0), "`batch_size`"),
        (
            lambda: contrast.EarlyExits([keras.layers.Dense(3)], [keras.layers.Dense(3)]).predict_exits(inputs(2, 4)),
            "`exits`.*probabilities",
        ),
    ],
)
def test_what_early_exits_do_not_take_is_refused_by_name(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()

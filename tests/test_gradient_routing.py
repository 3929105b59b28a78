"""Gradient routing against backward passes that are masked one by one."""

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from tests.family import host, inputs
from tests.frameworks import needs_gradients, needs_training, value_and_gradients

ROUTES = np.array([[1, 1, 0, 0], [0, 0.5, 1, -1]], "float32")
LABELS = np.array([0, 1, 1, 0, 1])
X, W, V = inputs(5, 3), inputs(3, 4) + 1, inputs(4, 2)
T = inputs(5, 2)


def upstream_of_hidden(x, labels=slice(None)):
    """What comes back to the hidden units of tanh((x W) V) for the upstream T, of some samples."""
    return (T[labels] * (1 - np.tanh(x @ W @ V) ** 2)) @ V.T


@needs_gradients
def test_it_is_a_backward_pass_for_each_label_with_its_mask():
    layer = pnd.GradientRouting(ROUTES)

    def network(x, w, v):
        return keras.ops.tanh(layer(x @ w, LABELS, training=True) @ v)

    y, (of_x, of_w, of_v) = value_and_gradients(network, X, W, V, upstream=T)
    passes = []
    for label, mask in enumerate(ROUTES):
        of_label = np.equal(LABELS, label)
        passes.append(X[of_label].T @ (upstream_of_hidden(X[of_label], of_label) * mask))
        masked = (upstream_of_hidden(X[of_label], of_label) * mask) @ W.T
        np.testing.assert_allclose(of_x[of_label], masked, atol=1e-5)
    np.testing.assert_allclose(of_w, sum(passes), atol=1e-5)
    plain = np.tanh(X @ W @ V)
    np.testing.assert_allclose(of_v, (X @ W).T @ (T * (1 - plain**2)), atol=1e-5)
    np.testing.assert_allclose(y, plain, atol=1e-5)


@needs_gradients
@pytest.mark.parametrize("shape", [(5, 4), (1, 4), (5, 1)])
def test_masks_are_given_and_have_no_gradient(shape):
    layer, mask = pnd.GradientRouting(), np.abs(inputs(*shape))
    y, (of_x, of_mask) = value_and_gradients(
        lambda x, mask: layer(x, mask, training=True) + 0 * mask, X @ W, mask, upstream=np.ones((5, 4), "float32")
    )
    np.testing.assert_array_equal(y, X @ W)
    np.testing.assert_allclose(of_x, np.broadcast_to(mask, (5, 4)), atol=1e-6)
    np.testing.assert_array_equal(of_mask, 0 * mask)


@needs_gradients
@pytest.mark.parametrize("shape", [(2,), (2, 3)])
def test_positions_have_the_route_of_their_sample_or_their_own(shape):
    layer, labels = pnd.GradientRouting(ROUTES), np.arange(np.prod(shape)).reshape(shape) % 2
    x = inputs(2, 3, 4)
    _, (of_x,) = value_and_gradients(lambda x: layer(x, labels), x, upstream=np.ones_like(x))
    wanted = ROUTES[labels if len(shape) == 2 else labels[:, None]]
    np.testing.assert_array_equal(of_x, np.broadcast_to(wanted, x.shape))


@needs_gradients
def test_each_example_has_the_mask_of_its_id():
    """That of the "example" regime, in any order of the batch."""
    kept = pnd.ops.sample_mask(pnd.Bernoulli(0.5), (1, 0), (100, 4, 1), backend="numpy")[..., 0] > 0
    layer, x, ids = pnd.GradientRouting(kept), np.ones((5, 4), "float32"), np.array([3, 9, 0, 77, 2])
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    noisy = pnd.PerNodeDrop(dense, 0.5, regime="example", seed=1)
    _, (of_x,) = value_and_gradients(lambda x: layer(x, ids), x, upstream=x)
    passed = host(noisy(np.repeat(np.eye(4, dtype="float32"), 5, 0), training=True, sample_ids=np.tile(ids, 4)))
    np.testing.assert_array_equal(of_x, passed.reshape(4, 5).T > 0)
    assert set(np.unique(of_x)) == {0, 1}


def test_the_forward_pass_is_the_identity_to_the_bit():
    x = (inputs(50, 4) * 10 ** inputs(50, 4)).astype("float32")
    np.testing.assert_array_equal(host(pnd.GradientRouting(ROUTES)(x, np.arange(50) % 2, training=True)), x)
    np.testing.assert_array_equal(host(pnd.GradientRouting(ROUTES)(x)), x)
    half = pnd.GradientRouting(ROUTES, dtype="mixed_bfloat16")(x, np.arange(50) % 2)
    assert keras.backend.standardize_dtype(half.dtype) == "bfloat16"


@needs_training
def test_in_fit_units_learn_from_their_labels_alone():
    """A unit that no label of the data routes to keeps its weights."""
    x, labels = keras.Input((3,)), keras.Input((), dtype="int32")
    hidden = keras.layers.Dense(4)
    routed = pnd.GradientRouting([[1, 1, 0, 0], [0, 0, 1, 0]])(hidden(x), labels)
    model = keras.Model([x, labels], keras.layers.Dense(2)(routed))
    before = host(hidden.kernel).copy()
    model.compile("sgd", "mse")
    model.fit([X, np.zeros(5, "int32")], T, epochs=2, verbose=0)
    moved = np.abs(host(hidden.kernel) - before).max(axis=0)
    np.testing.assert_array_equal(moved > 0, [True, True, False, False])


@pytest.mark.once
def test_config_and_files_bring_it_back(tmp_path):
    x, labels = keras.Input((4,)), keras.Input((), dtype="int32")
    model = keras.Model([x, labels], pnd.GradientRouting(ROUTES)(x, labels))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.layers[-1].routes, ROUTES)
    assert pnd.GradientRouting.from_config(pnd.GradientRouting().get_config()).routes is None


@pytest.mark.once
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pnd.GradientRouting("routes"), r"`routes`.*array \(routes, units\)"),
        (lambda: pnd.GradientRouting([1, 0]), r"`routes`.*array \(routes, units\)"),
        (lambda: pnd.GradientRouting([[np.nan]]), r"`routes`.*finite"),
        (lambda: pnd.GradientRouting()(X, training=True), r"`route`.*in training"),
        (lambda: pnd.GradientRouting()(X, np.ones(5)), r"`route`.*inputs \(5, 3\)"),
        (lambda: pnd.GradientRouting()(X, np.ones((4, 3))), r"`route`.*\(4, 3\)"),
        (lambda: pnd.GradientRouting(ROUTES)(X, LABELS), r"`inputs`.*4 units"),
        (lambda: pnd.GradientRouting(ROUTES)(X @ W, LABELS * 1.0), r"`route`.*integers"),
        (lambda: pnd.GradientRouting(ROUTES)(X @ W, LABELS[:, None]), r"`route`.*each sample"),
        (lambda: pnd.GradientRouting(ROUTES)(X @ W, LABELS[:4]), r"`route`.*each sample"),
    ],
)
def test_what_it_does_not_take_is_refused_by_name(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()

"""Capsules with dynamic routing, against the paper's procedure in NumPy."""

import numpy as np
import pytest

from pernodedrop import contrast
from tests.contrast import assign, called, differences, softmax
from tests.family import host, inputs
from tests.frameworks import needs_gradients, value_and_gradients

ONCE = pytest.mark.once


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
    np.testing.assert_allclose(host(contrast.margin_loss(there, v)), [0.5 * 0.2**2 + 0.7**2, 0.5 * 0.9**2], rtol=1e-5)
    np.testing.assert_allclose(
        host(contrast.margin_loss(there, v, 0.8, 0.2, 1.0)), [0.1**2 + 0.6**2, 0.8**2], rtol=1e-5
    )


@ONCE
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: contrast.Capsules(0), "`capsules`.*from 1"),
        (lambda: contrast.Capsules(3, iterations=0), "`iterations`.*from 1"),
        (lambda: contrast.Capsules(3)(inputs(2, 3)), r"`inputs`.*\(batch, capsules below, dim below\)"),
        (lambda: contrast.squash(np.ones((2, 3), int)), "floating"),
        (lambda: contrast.margin_loss(np.ones((2, 3)), np.ones((2, 4), "float32")), "`y_true`.*the shape of"),
    ],
)
def test_what_capsules_do_not_take_is_refused_by_name(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()

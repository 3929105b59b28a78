"""A sparse mixture of experts, against a loop over rows and experts in NumPy."""

import keras
import numpy as np
import pytest

from pernodedrop import contrast
from tests.contrast import assign, called, differences, softmax
from tests.family import host, inputs
from tests.frameworks import needs_gradients, value_and_gradients

ONCE = pytest.mark.once


def mixture(x, gate, experts, top_k, capacity=None):
    """A sparse mixture of linear experts row by row, and the loss that balances it."""
    z = x @ gate
    p = softmax(z)
    order = np.argsort(-z, axis=1)[:, :top_k]
    y, load = np.zeros((len(x), experts[0][0].shape[1])), np.zeros(len(experts), int)
    for choice in range(top_k):
        for row in range(len(x)):
            e = order[row, choice]
            load[e] += 1
            if capacity is not None and load[e] > capacity:
                continue
            g = p[row, e] if top_k == 1 else softmax(z[row, order[row]])[choice]
            y[row] += g * (x[row] @ experts[e][0] + experts[e][1])
    f = np.bincount(order.ravel(), minlength=len(experts)) / order.size
    return y, len(experts) * (f * p.mean(axis=0)).sum()


def built_mixture(**kwargs):
    layer = contrast.MixtureOfExperts([keras.layers.Dense(5) for _ in range(4)], **kwargs)
    layer.build((None, 3, 6))
    gate, *weights = assign(layer)
    return layer, gate, list(zip(weights[::2], weights[1::2], strict=True))


@pytest.mark.parametrize(
    ("top_k", "factor", "capacity"),
    [
        *((1, 1.0, 6), (2, 0.5, 6)),
        *(pytest.param(*case, marks=ONCE) for case in [(2, 1.25, 15), (3, 9.0, 24), (4, None, None)]),
    ],
)
def test_a_mixture_is_what_its_experts_make_of_the_rows_they_take(top_k, factor, capacity):
    layer, gate, experts = built_mixture(top_k=top_k, capacity_factor=factor, balance=0.5)
    x = inputs(8, 3, 6)
    rows = x.reshape(24, 6).astype("float64")
    y, loss = mixture(rows, gate, experts, top_k, capacity)
    got, of_balance = called(lambda x: (layer(x, training=True), layer.losses), x)
    np.testing.assert_allclose(got.reshape(24, 5), y, atol=1e-4)
    np.testing.assert_allclose(of_balance, [0.5 * loss], rtol=1e-5)
    if factor in (0.5, 1.0):  # so small that some rows found no place
        assert not np.allclose(y, mixture(rows, gate, experts, top_k)[0])
    np.testing.assert_allclose(called(layer, x).reshape(24, 5), mixture(rows, gate, experts, top_k)[0], atol=1e-4)
    assert layer.losses == []


@ONCE
def test_an_even_mixture_has_the_least_loss():
    layer, *_ = built_mixture(top_k=1)
    even = np.full((8, 4), 0.25, "float32")
    assert host(layer.imbalance(np.arange(8)[:, None] % 4, even)) == 1
    assert host(layer.imbalance(np.zeros((8, 1), int), np.eye(4, dtype="float32")[np.zeros(8, int)])) == 4


@needs_gradients
@pytest.mark.parametrize("top_k", [1, 2])
def test_gradients_go_through_experts_and_gate(top_k):
    """Against differences of the reference."""
    layer, gate, experts = built_mixture(top_k=top_k, capacity_factor=0.75)
    x = inputs(12, 6)
    upstream = inputs(12, 5)
    names = [variable.path for variable in layer.trainable_variables]

    def call(x, *weights):
        state = [variable.value for variable in layer.non_trainable_variables]
        return layer.stateless_call(weights, state, x, training=True)[0]

    _, gradients = value_and_gradients(
        call, x, *(host(variable) for variable in layer.trainable_variables), upstream=upstream
    )
    capacity = layer.capacity(12)

    def total(gate, first):
        return (
            mixture(x.astype("float64"), gate, [(first, experts[0][1]), *experts[1:]], top_k, capacity)[0] * upstream
        ).sum()

    assert len(names) == len(gradients) - 1
    np.testing.assert_allclose(gradients[1], differences(lambda g: total(g, experts[0][0]), gate), atol=1e-3)
    np.testing.assert_allclose(gradients[2], differences(lambda w: total(gate, w), experts[0][0]), atol=1e-3)


@ONCE
def test_small_shares_are_one_row_and_no_rows_have_no_loss():
    assert built_mixture(capacity_factor=1e-5)[0].capacity(8) == 1
    many = contrast.MixtureOfExperts([keras.layers.Dense(1) for _ in range(512)], capacity_factor=1.25)
    assert many.capacity(1024) == 5  # 1.25 * 2 / 512 of them
    layer, *_ = built_mixture()
    assert [layer.capacity(rows) for rows in (1, 8, 9)] == [1, 5, 6]  # ceil(rows * 2 / 4 * 1.25)
    assert layer(np.zeros((0, 6), "float32"), training=True).shape == (0, 5)
    np.testing.assert_array_equal(host(layer.losses[0]), 0)


@ONCE
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: contrast.MixtureOfExperts(3), "`experts`.*Keras layers"),
        (lambda: contrast.MixtureOfExperts([keras.layers.Dense(3)]), "`experts`.*two layers"),
        (lambda: built_mixture(top_k=5), "`top_k`.*at most 4"),
        (lambda: built_mixture(capacity_factor=0), "`capacity_factor`.*above zero"),
        (
            lambda: contrast.MixtureOfExperts([keras.layers.Dense(3), keras.layers.Dense(4)])(inputs(2, 6)),
            r"`experts`.*all make \(rows, out\)",
        ),
        (lambda: built_mixture(balance=-1.0), "`balance`.*from zero"),
        (
            lambda: contrast.MixtureOfExperts([keras.layers.Reshape((2, 3))] * 2)(inputs(2, 6)),
            r"`experts`.*\(rows, out\)",
        ),
        (lambda: contrast.MixtureOfExperts([keras.layers.Dense(3)] * 2)(inputs(3)), "`inputs`.*rank from 2"),
        (lambda: contrast.MixtureOfExperts([keras.layers.Dense(3)] * 2)(np.ones((2, 3), int)), "`inputs`.*floating"),
    ],
)
def test_what_a_mixture_does_not_take_is_refused_by_name(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()

"""What noise adds to the expected loss: the script's derivatives against closed forms, and its report."""

import functools
import importlib.util
import pathlib

import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.report.results import Results

pytestmark = pytest.mark.only_backend("jax", reason="the script differentiates with JAX")

FOLDER = pathlib.Path(__file__).parent.parent / "benchmarks" / "expected_loss"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("expected_loss", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def case():
    """Weights (5, 4) and (4, 3), and seven samples."""
    rng = np.random.default_rng(0)
    weights = [
        tuple(rng.normal(size=size).astype("float32") for size in (shape, shape[1:])) for shape in ((5, 4), (4, 3))
    ]
    return weights, rng.normal(size=(7, 5)).astype("float32"), rng.integers(3, size=7)


def tensors(script, weights):
    """Weights as the script has them."""
    return [tuple(map(script.jnp.asarray, pair)) for pair in weights]


def logits(weights, x, mask=1.0):
    (a, b), (c, d) = [[part.astype("float64") for part in pair] for pair in weights]
    return (x @ (a * mask) + b) @ c + d


def crossentropy(logits, y):
    return np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y])


def by_hand(case, regularizer):
    """Without an activation: the trace, and what dropping one entry after the other adds, the others scaled."""
    weights, x, y = case
    (a, _), (c, _) = weights
    p = np.exp(logits(weights, x))
    p /= p.sum(1, keepdims=True)
    curvature = np.stack([np.diag(row) - np.outer(row, row) for row in p])
    slope = np.mean(((p - np.eye(3)[y]) * (x @ a @ c)).sum(1))
    if regularizer == "Dropout":  # an entry of the input moves the logits by x_i times a row of the product
        moves = x[:, :, None] * (a @ c)
        dropped = [np.where(np.arange(5) == i, 0, 1)[:, None] for i in range(5)]
    else:
        moves = (x[:, :, None, None] * a[:, :, None] * c).reshape(7, 20, 3)
        dropped = [np.where(np.arange(20) == i, 0, 1).reshape(5, 4) for i in range(20)]
    changes = sum(crossentropy(logits(weights, x, mask), y) - crossentropy(logits(weights, x), y) for mask in dropped)
    return np.einsum("nak,nkl,nal->", moves, curvature, moves) / len(x), changes + slope


@pytest.mark.parametrize("regularizer", ["Dropout", "DropConnect"])
def test_the_exact_sums_are_those_of_the_closed_form(script, case, regularizer):
    weights, x, y = case
    of_mask = functools.partial(script.given, weights, activation="identity", x=x, y=y)
    found = script.each_entry(of_mask, script.ones(weights, regularizer, len(x)))
    np.testing.assert_allclose(found, by_hand(case, regularizer), rtol=1e-4)


@pytest.mark.parametrize("regularizer", ["Dropout", "DropConnect", "PerNodeDrop"])
def test_hutchinsons_estimate_is_right_on_the_average(script, case, regularizer):
    weights, x, y = case
    of_mask = functools.partial(script.given, weights, activation="identity", x=x, y=y)
    estimate, error = script.mean(script.hutchinson(of_mask, script.ones(weights, regularizer, len(x)), 3000))
    trace, _ = by_hand(case, regularizer)
    assert abs(estimate - trace) < 5.5 * error  # a false alarm in 26 million, were it normal
    assert error < 0.05 * trace


@pytest.mark.parametrize("regularizer", ["Dropout", "DropConnect", "PerNodeDrop"])
def test_what_is_drawn_is_the_loss_with_the_masks_of_the_library(script, case, regularizer):
    weights, x, y = case
    noise = pnd.Bernoulli(0.3)
    found = script.drawn(tensors(script, weights), regularizer, noise, noise.params(), np.uint32(8), "identity", x, y)
    sharing = script.SHARING[regularizer]
    mask = pnd.ops.sample_mask(noise, (1, 8), shape=(7, 5, 4), sharing=sharing, backend="numpy")
    sizes = {axis: np.ptp(mask, axis=axis).max() for axis in (0, 2)}
    assert (sizes[0] == 0, sizes[2] == 0) == (regularizer == "DropConnect", regularizer == "Dropout")
    (a, b), (c, d) = weights
    expected = crossentropy((np.einsum("ni,ij,nij->nj", x, a, mask) + b) @ c + d, y)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_little_noise_adds_what_is_predicted(script, case):
    """Gaussian noise of variance 1/256 on 20 connections: what is of fourth order is a quarter of the error."""
    weights, x, _ = case
    y = logits(weights, x).argmax(1)  # labels that are right keep the gradient small, and with it the error
    weights = tensors(script, weights)
    found = script.measure(
        weights, "DropConnect", "Gaussian", "identity", x, y, draws=20_000, probes=10, variances=[2**-8]
    )
    (point,) = found["points"]
    assert abs(point["added"] - script.predicted(found, 2**-8)) < 6 * point["error"]
    assert point["error"] < 0.1 * point["added"]


def test_the_report_that_is_committed_is_that_of_the_results_beside_it(script):
    assert script.report(Results.read(FOLDER / "results.json")) == (FOLDER / "report.md").read_text(encoding="utf-8")

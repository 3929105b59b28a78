"""Local reparameterization: its distribution against theory, where it holds, and its gradients."""

import math

import numpy as np
import pytest
from scipy import stats

import pernodedrop as pnd
from tests import reference
from tests.frameworks import needs_gradients, value_and_gradients
from tests.products import FAR, KEY, SMALL, masked_dense, numpy_mask, operands, product, sums

N = 2**14
LAW_METHODS = pytest.mark.parametrize("method", ["local_reparameterization", "materialized"])


def drift(n, false_alarm=1e-9, trials=100):
    """Bounds on |sum| and |sum of products| of n normal numbers less its mean, by Laurent and Massart's lemma."""
    t = math.log(4 * trials / false_alarm)
    return math.sqrt(2 * t * n), 2 * math.sqrt(t * n) + 2 * t


def operands_of_noise():
    rng = np.random.default_rng(5)
    x, w = rng.normal(size=(1, 5)), rng.normal(size=(5, 3))
    return np.repeat(x, N, axis=0).astype("float32"), w.astype("float32")


@LAW_METHODS
def test_gaussian_outputs_have_the_distribution_of_theory(method):
    """Given x and w, outputs are independent N(x w, v x**2 w**2) over outputs and samples; false alarm 1e-8."""
    noise = pnd.Gaussian(0.4)
    x, w = operands_of_noise()
    y = product(x, w, noise, (2026, 0), method=method).astype("float64")
    z = (y - x[0] @ w) / np.sqrt(noise.variance * (x[0] ** 2 @ w**2))
    linear, quadratic = drift(N)
    assert (abs(z.sum(axis=0)) < linear).all()
    assert (abs(z.T @ z - N * np.eye(3)) < quadratic).all()
    assert (abs(z[1:].T @ z[:-1]) < quadratic).all()
    assert min(stats.kstest(column, "norm").pvalue for column in z.T) > 1e-9


def test_normals_of_local_reparameterization_are_those_of_the_lane_after_the_noises_own():
    """So outputs agree across backends, and are unrelated to the entries of a mask at the same key."""
    x, w, _ = operands(*SMALL, "float32")
    noise = pnd.Gaussian(0.4)
    u = ((reference.bits(*KEY, (6, 1, 5), sample_offset=FAR, lane=1)[:, 0] >> 9) + 0.5) / 2**23
    wanted = x @ w + noise.stddev * np.sqrt(x**2 @ w**2) * stats.norm.ppf(u)
    y = product(x, w, noise, sample_offset=FAR, method="local_reparameterization")
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


def test_auto_is_local_reparameterization_where_that_holds():
    x, w, _ = operands(*SMALL, "float32")
    noise = pnd.Gaussian(0.5)
    auto, local = (product(x, w, noise, method=m) for m in ("auto", "local_reparameterization"))
    np.testing.assert_array_equal(auto, local)
    assert not np.allclose(auto, product(x, w, noise, method="materialized"), atol=0.1)
    of_rank_3, by_mask = (product(x[:, None], w, noise, sharing=s) for s in ((), "sample"))
    wanted = sums(x, w, numpy_mask(noise, x, w, sharing="sample"))
    np.testing.assert_allclose(by_mask[:, 0], wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_rank_3[:, 0], local, rtol=1e-5, atol=1e-5)


def test_positions_that_share_a_mask_are_not_reparameterized():
    x, w, _ = operands((6, 3, 8), 5, "float32")
    noise = pnd.Gaussian(0.5)
    wanted = sums(x, w, numpy_mask(noise, x, w))
    np.testing.assert_allclose(product(x, w, noise), wanted, rtol=1e-4, atol=1e-4)


@needs_gradients
def test_gradients_of_a_row_of_zeros_are_finite():
    x, w, upstream = operands(*SMALL, "float32")
    x[1] = 0
    noise = pnd.Gaussian(0.5)
    y, (dx, dw) = value_and_gradients(lambda x, w: masked_dense(x, w, noise, KEY), x, w, upstream=upstream)
    assert np.isfinite(dx).all()
    assert np.isfinite(dw).all()
    np.testing.assert_array_equal(y[1], 0)
    without = np.delete(np.arange(6), 1)
    _, (_, of_others) = value_and_gradients(
        lambda x, w: masked_dense(x, w, noise, KEY, sample_ids=without), x[without], w, upstream=upstream[without]
    )
    np.testing.assert_allclose(dw, of_others, rtol=1e-4, atol=1e-5)


@needs_gradients
@LAW_METHODS
def test_gradients_of_a_square_loss_are_unbiased(method):
    """E d(y**2)/dw = d((xw)**2 + v x**2 w**2)/dw, of terms quadratic in normal numbers; false alarm 1e-8."""
    noise = pnd.Gaussian(0.4)
    x, w = operands_of_noise()
    stddev, spread = noise.stddev, noise.stddev * np.sqrt(x[0] ** 2 @ w**2)
    mean = x[0] @ w

    def loss(x, w):
        y = masked_dense(x, w, noise, (2026, 1), method=method)
        return y * y

    _, (_, dw) = value_and_gradients(loss, x, w, upstream=np.ones((N, 3), "float32"))
    wanted = 2 * x[0][:, None] * mean + 2 * stddev**2 * x[0][:, None] ** 2 * w
    # y = mean + spread z and dy/dw = x (1 + stddev m) with z and m standard normal, equal or correlated
    linear, quadratic = drift(N)
    size = abs(x[0])[:, None] * 2
    bound = size * ((spread + abs(mean) * stddev) * linear + spread * stddev * quadratic)
    assert (abs(dw - N * wanted) < bound).all()

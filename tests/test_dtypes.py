"""Half and double precision: what is summed in which, and what comes out."""

import numpy as np
import pytest

import pernodedrop as pnd
from tests import reference
from tests.frameworks import NAME, XP, array, float64, needs_gradients, quick, tensor, value_and_gradients
from tests.products import BERNOULLI, KEY, SMALL, einsums, masked_dense, numpy_mask, operands, product, sums

HALVES = ["float16"] if NAME == "numpy" else ["float16", "bfloat16"]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("method", ["recomputed", "local_reparameterization"])
def test_half_precision_is_the_float32_product_of_the_same_numbers(half, method):
    noise = pnd.Gaussian(0.4)
    x, w = (XP.astype(tensor(a), half) for a in operands(*SMALL, "float32")[:2])
    run = quick(lambda x, w: masked_dense(x, w, noise, KEY, method=method))
    y = run(x, w)
    assert XP.dtype(y) == half
    wanted = run(XP.astype(x, "float32"), XP.astype(w, "float32"))
    np.testing.assert_allclose(array(y), array(XP.astype(wanted, half)), rtol=2**-7)


@pytest.mark.parametrize("half", HALVES)
def test_half_precision_sums_are_in_float32(half):
    """4096 terms that are 1 or 3 sum exactly in float32, while a sum in half precision stalls at 2048 or before."""
    x, w = tensor(np.ones((1, 4096)), half), tensor(np.full((4096, 1), 0.5), half)
    y = quick(lambda x, w: masked_dense(x, w, pnd.Bernoulli(0.5), KEY))(x, w)
    kept = (reference.bits(*KEY, (1, 4096, 1)) >> 31 == 0).sum()
    np.testing.assert_allclose(array(y), kept, rtol=2**-8)


@needs_gradients
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    ("shape", "sharing", "method"),
    [
        ((6, 8), None, "kernel"),
        ((6, 8), None, "recomputed"),
        ((6, 8), None, "materialized"),
        ((6, 8), ("sample",), "auto"),
        ((3, 5, 8), ("time",), "kernel"),
        ((3, 5, 8), ("time",), "auto"),
        ((300, 400), None, "auto"),
    ],
)
def test_half_precision_rounds_products_and_gradients_once(shape, sharing, method, half):
    """Of operands that it has exactly: what is summed in float32 is rounded at the end."""
    x, w, upstream = (np.round(8 * a) / 8 for a in operands(shape, 5))
    mask = numpy_mask(pnd.Bernoulli(0.5), x, w, sharing=sharing)
    options = {"noise": pnd.Bernoulli(0.5), "key": KEY, "sharing": sharing, "method": method}

    def run(x, w):
        y = masked_dense(XP.astype(x, half), XP.astype(w, half), **options)
        assert XP.dtype(y) == half
        return XP.astype(y, "float32")

    rounding = {"float16": 2**-11, "bfloat16": 2**-8}[half]
    y, gradients = value_and_gradients(run, *(a.astype("float32") for a in (x, w)), upstream=upstream.astype("float32"))
    sizes = einsums(*map(abs, (x, w, upstream)), mask)
    for got, wanted, size in zip((y, *gradients), einsums(x, w, upstream, mask), sizes, strict=True):
        assert (abs(got - wanted) <= 1.01 * rounding * abs(wanted) + 2**-20 * size).all()


@needs_gradients
@pytest.mark.parametrize("half", HALVES)
def test_half_precision_gradients_have_the_dtype_of_their_operand(half):
    x, w, upstream = operands(*SMALL, "float32")
    mask = numpy_mask(BERNOULLI, x, w)

    def run(x, w):
        return XP.astype(masked_dense(XP.astype(x, half), w, BERNOULLI, KEY), "float32")

    y, gradients = value_and_gradients(run, x, w, upstream=upstream)
    for got, wanted in zip((y, *gradients), einsums(x, w, upstream, mask), strict=True):
        assert got.dtype == "float32"
        np.testing.assert_allclose(got, wanted, rtol=0.05, atol=0.1)


def test_float64_of_either_operand_makes_the_sums_float64():
    x, w, _ = operands()
    x32, w32 = x.astype("float32"), w.astype("float32")
    with float64():
        y = product(x32, w, BERNOULLI, method="recomputed")
        assert y.dtype == "float32"
        np.testing.assert_array_equal(y, sums(x32, w, numpy_mask(BERNOULLI, x, w)).astype("float32"))
        y = product(x, w32, BERNOULLI, method="recomputed")
        assert y.dtype == "float64"
        np.testing.assert_allclose(y, sums(x, w32, numpy_mask(BERNOULLI, x, w)), rtol=1e-12, atol=1e-12)

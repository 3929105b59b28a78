"""Noises as programs, carried out by numba, against the same noises on NumPy's arrays."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.special

import pernodedrop as pnd
from pernodedrop.backends import cpu_kernels, methods, numpy_ops, program_kernels, programs
from tests import noises
from tests.products import FAR, KEY

pytestmark = pytest.mark.once


def grid_of(noise, shape):
    field = pnd.mask.Field(noise, noise.params(), pnd.ops.key_words(KEY, None, numpy_ops))
    time, sample, in_, out = np.zeros(shape[0], "uint32"), *(np.arange(n, dtype="uint32") for n in shape)
    return pnd.mask.Grid(field, time, sample + np.uint32(FAR), in_, out)


def both(noise, shape=(5, 37, 40)):
    """The mask by the program, and as NumPy makes it."""
    grid = grid_of(noise, shape)
    wanted = np.broadcast_to(grid.entries(numpy_ops), shape)
    return cpu_kernels.entries(methods.Entries.of(grid, numpy_ops)), wanted


@pytest.mark.parametrize(
    "noise",
    [pnd.Uniform(0.3), pnd.Gaussian(0.3), *noises.OTHERS, noises.Logistic(0.3), noises.Mixture(0.3, 0.4, 0.5)],
    ids=repr,
)
def test_entries_are_those_of_the_noise(noise):
    entries, wanted = both(noise)
    np.testing.assert_allclose(entries, wanted, rtol=1e-5, atol=2e-6 * (1 + noise.variance**0.5))
    if noise.exact or isinstance(noise, pnd.Uniform | noises.Difference | noises.Steps):
        np.testing.assert_array_equal(entries, wanted)  # each step is rounded by itself


KINDS = [
    *(pnd.Bernoulli(0.4), pnd.Uniform(0.4), pnd.Gaussian(0.4), pnd.PartialGaussian(0.4, 0.7)),
    *(noises.Laplace(0.3), noises.Logistic(0.3), noises.Steps((0.5, 1.0, 4.0))),
]


def test_rows_whose_samples_are_too_few_are_refused():
    """The kernel would read beyond them."""
    mask = methods.Entries.of(grid_of(pnd.Uniform(0.3), (5, 3, 4)), numpy_ops)
    short, listed = mask._replace(sample=mask.sample[:1]), np.zeros(1, "int32")
    for call in (
        lambda: cpu_kernels.entries(short),
        lambda: cpu_kernels.sparse_product(np.ones(1, "float32"), listed, listed, np.ones((3, 4), "float32"), short),
    ):
        with pytest.raises(ValueError, match=r"as many coordinates sample as time \(5,\)\. Received: \(1,\)"):
            call()


@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize("noise", KINDS, ids=repr)
def test_products_and_gradients_are_the_sums_over_the_mask(noise, positions):
    """Of all entries of x and, where a row has one position, of those that are listed."""
    rows, inputs, outputs = 5, 37, 40
    random = np.random.default_rng(0)
    shapes = (rows, positions, inputs), (inputs, outputs), (rows, positions, outputs)
    x, w, dy = (random.normal(size=shape).astype("float32") for shape in shapes)
    grid = grid_of(noise, (rows, inputs, outputs))
    mask, flat = grid.entries(numpy_ops).astype("float64"), methods.flat(grid, numpy_ops)
    size = 1e-5 * (1 + abs(mask).max()) * inputs

    def check(y, dx, dw, x, dy):
        np.testing.assert_allclose(y, np.einsum("rti,io,rio->rto", x, w, mask), rtol=1e-5, atol=size)
        np.testing.assert_allclose(dx, np.einsum("rto,io,rio->rti", dy, w, mask), rtol=1e-5, atol=size)
        np.testing.assert_allclose(dw, np.einsum("rti,rto,rio->io", x, dy, mask), rtol=1e-5, atol=size)

    check(cpu_kernels.product(x, w, flat), *cpu_kernels.gradients(dy, x, w, flat), x, dy)
    if positions == 1:
        values, (row, column) = x.ravel(), np.indices((rows, inputs)).reshape(2, -1)
        y = cpu_kernels.sparse_product(values, row, column, w, flat)
        dvalues, dw = cpu_kernels.sparse_gradients(dy[:, 0], values, row, column, w, flat)
        check(y[:, None], dvalues.reshape(rows, 1, inputs), dw, x, dy)


class Applied(pnd.Noise):
    """Any function of uniform numbers between two bounds."""

    function: object
    low: float = 0.0
    high: float = 1.0
    variance = 1.0

    def params(self):
        return {}

    def from_uniform(self, u, params, xp):
        return self.function(self.low + (self.high - self.low) * u, xp)


UNARY = {"asin": (-1, 1), "acos": (-1, 1), "sqrt": (0, 9), "log": (0, 9), "log1p": (-1, 9), "erfinv": (-1, 1)}


@pytest.mark.parametrize("name", programs.UNARY[1:])
def test_every_function_is_numpy_s(name):
    noise = Applied(lambda u, xp: getattr(xp, name)(u), *UNARY.get(name, (-3, 3)))
    entries, wanted = both(noise)
    np.testing.assert_allclose(entries, wanted, rtol=4e-6, atol=1e-6)
    if name in ("abs", "sqrt", "floor", "sign"):
        np.testing.assert_array_equal(entries, wanted)


EXACT = {
    "arithmetic": lambda u, xp: (2 - u) / (u + 0.5) - -u * 3 + +u,
    "squares": lambda u, xp: u**2 - 2 * abs(u),
    "comparisons": lambda u, xp: xp.where((u < 0.1) | (u >= 0.7), 1.0, xp.where(~(u > 0.3) & (u != 0.5), 2.0, u)),
    "orders": lambda u, xp: xp.where(u <= 0.25, 2.0, xp.where(u >= 0.75, xp.ones_like(u), xp.zeros_like(u))),
    "bounds": lambda u, xp: xp.clip(u, 0.2, 0.8) + xp.minimum(u, 0.5) - xp.maximum(0.25, u),
    "numbers of NumPy": lambda u, xp: np.float32(0.3) * u + math.pi,
    "a constant": lambda u, xp: xp.ones_like(u),
}


@pytest.mark.parametrize("name", EXACT)
def test_expressions_are_numpy_s_to_the_bit(name):
    np.testing.assert_array_equal(*both(Applied(EXACT[name])))


def test_powers_are_numpy_s():
    entries, wanted = both(Applied(lambda u, xp: u**1.5 + 2**u + (u + 1) ** -3 + u**u))
    np.testing.assert_allclose(entries, wanted, rtol=2e-6)


def test_normal_numbers_are_those_of_float64():
    """At all uniform numbers of one in seven, by the inverse in double precision."""
    u = (np.arange(0, 2**23, 7) + 0.5) * 2.0**-23
    found = np.array([program_kernels._erfinv(np.float32(2 * v - 1)) for v in u[::64]])
    np.testing.assert_allclose(found, scipy.special.erfinv(2 * u[::64] - 1), rtol=2e-6)
    edges = [program_kernels._erfinv(np.float32(x)) for x in (-1, 0, 1, 2)]
    np.testing.assert_array_equal(edges, [-np.inf, 0, np.inf, np.nan])


def test_exponentials_are_those_of_float64():
    """Over all that are normal numbers; and what is smaller, larger or none."""
    x = np.random.default_rng(0).uniform(-87.3, 88.7, 8000).astype("float32")
    x = np.concatenate([x, x / 1e3])
    np.testing.assert_allclose([program_kernels._exp(v) for v in x], np.exp(x.astype("float64")), rtol=5e-7)
    edges = np.array([0, -0.0, -88, -95, -103, -104, -200, 88.73, 89, 1e30, np.inf, -np.inf, np.nan], "float32")
    with np.errstate(over="ignore", under="ignore"):
        wanted = np.exp(edges)
    np.testing.assert_allclose([program_kernels._exp(v) for v in edges], wanted, rtol=1e-6, atol=3e-45)


@pytest.mark.parametrize(("found", "wanted"), [(program_kernels._tanh, np.tanh), (program_kernels._expm1, np.expm1)])
def test_what_is_small_near_0_is_that_of_float64(found, wanted):
    random = np.random.default_rng(0)
    x = (random.uniform(-1, 1, 8000) * 2.0 ** random.integers(-30, 6, 8000)).astype("float32")
    np.testing.assert_allclose([found(v) for v in x], wanted(x.astype("float64")), rtol=6e-7)
    edges = np.array([0, -0.0, 1e30, np.inf, -np.inf, np.nan], "float32")
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal([found(v) for v in edges], wanted(edges))


def test_logarithms_are_those_of_float64():
    """Over all powers of two, and near 1 and 0."""
    random = np.random.default_rng(0)
    x = (random.uniform(1, 2, 4000) * 2.0 ** random.integers(-148, 128, 4000)).astype("float32")
    near = (random.uniform(-1, 1, 4000) * 2.0 ** random.integers(-30, 0, 4000)).astype("float32")
    for found, values, wanted in (
        (program_kernels._log, np.concatenate([x, 1 + near / 2]), np.log),
        (program_kernels._log1p, np.concatenate([x, near]), np.log1p),
    ):
        np.testing.assert_allclose([found(v) for v in values], wanted(values.astype("float64")), rtol=5e-7)
    edges = np.array([0, -0.0, -1, -2, np.inf, -np.inf, np.nan], "float32")
    with np.errstate(divide="ignore", invalid="ignore"):
        np.testing.assert_array_equal([program_kernels._log(v) for v in edges], np.log(edges))
        np.testing.assert_array_equal([program_kernels._log1p(v) for v in edges], np.log1p(edges))


OTHERS = {
    "a branch": lambda u, xp: u if u < 0.5 else 1 - u,
    "the shape": lambda u, xp: u * u.shape[0],
    "no op of noises": lambda u, xp: u - xp.sum(u),
    "a function of NumPy": lambda u, xp: np.where(u < 0.5, u, u),
    "a ufunc of NumPy": lambda u, xp: np.exp(u),
    "doubles": lambda u, xp: np.float64(0.3) * u,
    "an array": lambda u, xp: u + np.ones(3, "float32"),
    "a bool": lambda u, xp: u < 0.5,
    "a number": lambda u, xp: 1.0,
    "bits of a number": lambda u, xp: xp.float32((u < 0.5) & 2),
    "an operand too many": lambda u, xp: xp.sqrt(u, u),
    "no operand": lambda u, xp: u + xp.sqrt(),
    "four operands": lambda u, xp: xp.maximum(u, u, u, u),
    "too many steps": lambda u, xp: sum(xp.sin(n * u) for n in range(300)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_list_of_elementwise_steps_is_no_program(name):
    assert programs.of(Applied(OTHERS[name])) is None


class Listed(pnd.Noise):
    values: list
    variance = 1.0

    def from_uniform(self, u, params, xp):
        return self.values[0] * u


class Levels(pnd.Noise):
    """A decision on integers, which float32 holds up to 2**24."""

    decide: object
    variance = 1.0

    def params(self):
        return {"n": np.int32(2**24 + 1), "m": np.int32(2**24)}

    def from_words(self, words, params, xp):
        return xp.float32(self.decide(xp.bits24(words[0]), params))


@pytest.mark.parametrize(
    ("decide", "exact"),
    [
        (lambda bits, params: bits < params["m"], True),
        (lambda bits, params: params["n"] > 2**24 - 1, True),
        (lambda bits, params: bits < 8388608.0, True),
        (lambda bits, params: params["n"] == params["m"], False),
        (lambda bits, params: params["n"] <= 2**24, False),
        (lambda bits, params: bits < 1e7 + 0.25, False),
    ],
)
def test_integers_are_compared_where_float32_tells_them_apart(decide, exact):
    noise = Levels(decide)
    assert (programs.of(noise) is not None) == exact
    if exact:
        np.testing.assert_array_equal(*both(noise))


def test_a_noise_without_a_hash_is_no_program():
    assert programs.of(Listed([2.0])) is None


def test_registers_are_used_again():
    """A polynomial of degree 20 takes as many as one of degree 3."""

    def polynomial(degree):
        def function(u, xp):
            y = xp.zeros_like(u)
            for _ in range(degree):
                y = y * u + 1
            return y

        return Applied(function)

    short, long = (programs.of(polynomial(degree)).code for degree in (3, 20))
    assert long[0][1] == short[0][1]
    assert len(long) > len(short)
    np.testing.assert_array_equal(*both(polynomial(20)))


class Shifted(pnd.Noise):
    """Its shift is no number that is handed in."""

    shift: float
    variance = 1.0

    def params(self):
        return {}

    def from_uniform(self, u, params, xp):
        return xp.maximum(1 / (self.shift * u), -9.0) + u


def test_noises_that_are_equal_and_written_otherwise_have_programs_of_their_own():
    one, other = Shifted(0.0), Shifted(-0.0)
    assert one == other
    assert repr(programs.of(one)) != repr(programs.of(other))


def test_a_program_is_made_once_for_equal_noises():
    noise = pnd.PartialGaussian(0.3, 0.5)
    assert programs.of(noise) is programs.of(dataclasses.replace(noise))

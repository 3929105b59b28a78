"""Random shapes through the kernels on a CPU, those that fit and those that do not, with NUMBA_BOUNDSCHECK=1 set.

Prints how many products were right and how many were refused; an index out of bounds raises, a wrong value fails.
"""

import functools
import json
import os
import sys

import numba
import numpy as np

import pernodedrop as pnd
from pernodedrop import backends
from pernodedrop.backends import cpu_kernels, methods, vectors

assert os.environ["NUMBA_BOUNDSCHECK"] == "1"
assert numba.config.BOUNDSCHECK
xp, random = backends.get("numpy"), np.random.default_rng(0)
NOISES = pnd.Bernoulli(0.5), pnd.PartialGaussian(0.5, 0.5)
SIZES = (0, 1, 2, 3, 15, 16, 17, 33, 81)
ignored = []
sys.unraisablehook = ignored.append  # the interpreter of programs, called by address, has nobody to raise to


def operands(rows, positions, inputs, outputs):
    shapes = (rows, positions, inputs), (inputs, outputs), (rows, positions, outputs)
    return [random.normal(size=shape).astype("float32") for shape in shapes]


def right(noise, rows, positions, inputs, outputs):
    """One product and its gradients, and those of a sparse x, against the mask in memory."""
    x, w, dy = operands(rows, positions, inputs, outputs)
    words = [xp.as_word(5), xp.as_word(7), *(xp.arange(n, x) for n in (rows, rows, inputs, outputs))]
    grid = pnd.mask.Grid.from_tensors(noise, list(noise.params()), [*noise.params().values(), *words])
    mask, flat = grid.entries(xp), methods.flat(grid, xp)
    close = functools.partial(np.testing.assert_allclose, atol=1e-3)
    close(cpu_kernels.product(x, w, flat), x @ (w * mask))
    y, bits = cpu_kernels.product_and_bits(x, w, flat)
    close(y, x @ (w * mask))
    for made, again in zip(
        cpu_kernels.gradients(dy, x, w, flat, bits), cpu_kernels.gradients(dy, x, w, flat), strict=True
    ):
        np.testing.assert_array_equal(made, again)
    dx, dw = cpu_kernels.gradients(dy, x, w, flat)
    close(dx, dy @ (w * mask).transpose(0, 2, 1))
    close(dw, (mask * (x.transpose(0, 2, 1) @ dy)).sum(0))
    if positions:
        x, dy = x[:, :1] * (random.random((rows, 1, inputs)) < 0.5), dy[:, :1]
        row, column = places = np.nonzero(x[:, 0])
        close(cpu_kernels.sparse_product(x[:, 0][places], row, column, w, flat), (x @ (w * mask))[:, 0])
        dvalues, dw = cpu_kernels.sparse_gradients(dy[:, 0], x[:, 0][places], row, column, w, flat)
        close(dvalues, (dy @ (w * mask).transpose(0, 2, 1))[:, 0][places])
        close(dw, (mask * (x.transpose(0, 2, 1) @ dy)).sum(0))
    close(cpu_kernels.entries(methods.Entries.of(grid, xp)), mask, atol=1e-5)
    return flat


def refused(shape, mask):
    """Operands of one shape, more here or there, with the coordinates of another product, or one of another dtype.

    Each must be refused.
    """
    x, w, dy = operands(*shape)
    calls = [(TypeError, functools.partial(cpu_kernels.gradients, dy.astype("float64"), x, w, mask))]
    for axis in range(4):
        other = [size + (1 + int(random.integers(3))) * (n == axis) for n, size in enumerate(shape)]
        x, w, dy = operands(*other)
        if axis == 1:  # positions have no coordinates, but dy has those of x
            calls.append((ValueError, functools.partial(cpu_kernels.gradients, dy[:, 1:], x, w, mask)))
        else:
            calls.append((ValueError, functools.partial(cpu_kernels.gradients, dy, x, w, mask)))
            calls.append((ValueError, functools.partial(cpu_kernels.product, x, w, mask)))
    for error, call in calls:
        try:
            call()
        except error:
            continue
        raise AssertionError(f"operands of another shape or dtype were accepted with coordinates of {shape}")
    return len(calls)


@numba.njit
def load(numbers, at):
    return vectors.sum_of(vectors.load(numbers, at, 16))


def checks_vectors():
    """Whether a vector that reaches out of an array raises, at either end."""
    for at in (-1, 1):
        try:
            load(np.ones(16, np.float32), at)
        except IndexError:
            continue
        return False
    return load(np.ones(16, np.float32), 0) == 16


assert checks_vectors()
cases = [(noise, tuple(int(n) for n in random.choice(SIZES, 4))) for _ in range(60) for noise in NOISES]
total = sum(refused(shape, right(noise, *shape)) for noise, shape in cases)
assert not ignored, ignored[0]
print(json.dumps({"right": len(cases), "refused": total}))

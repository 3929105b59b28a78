"""Random shapes through the kernels on a CPU, those that fit and those that do not, with NUMBA_BOUNDSCHECK=1 set.

Prints how many products were right and how many were refused; an index out of bounds raises, a wrong value fails.
"""

import functools
import json
import os

import numba
import numpy as np

import pernodedrop as pnd
from pernodedrop import backends
from pernodedrop.backends import cpu_kernels, methods

assert os.environ["NUMBA_BOUNDSCHECK"] == "1"
assert numba.config.BOUNDSCHECK
xp, noise, random = backends.get("numpy"), pnd.Bernoulli(0.5), np.random.default_rng(0)
SIZES = (0, 1, 2, 3, 15, 16, 17, 33)


def operands(rows, positions, inputs, outputs):
    shapes = (rows, positions, inputs), (inputs, outputs), (rows, positions, outputs)
    return [random.normal(size=shape).astype("float32") for shape in shapes]


def right(rows, positions, inputs, outputs):
    """One product and its gradients, against the mask in memory."""
    x, w, dy = operands(rows, positions, inputs, outputs)
    threshold, words = np.int32(noise.threshold), [xp.arange(n, x) for n in (rows, rows, inputs, outputs)]
    grid = pnd.mask.Grid.from_tensors(noise, ["threshold"], [threshold, xp.as_word(5), xp.as_word(7), *words])
    mask, decisions = grid.entries(xp), methods.Decisions.of(grid)
    np.testing.assert_allclose(cpu_kernels.product(x, w, decisions), x @ (w * mask), atol=1e-3)
    dx, dw = cpu_kernels.gradients(dy, x, w, decisions)
    np.testing.assert_allclose(dx, dy @ (w * mask).transpose(0, 2, 1), atol=1e-3)
    np.testing.assert_allclose(dw, (mask * (x.transpose(0, 2, 1) @ dy)).sum(0), atol=1e-3)
    return decisions


def refused(shape, decisions):
    """Operands of one shape, more here or there, with the coordinates of another product: each must be refused."""
    calls = []
    for axis in range(4):
        other = [size + (1 + int(random.integers(3))) * (n == axis) for n, size in enumerate(shape)]
        x, w, dy = operands(*other)
        if axis == 1:  # positions have no coordinates, but dy has those of x
            calls.append(functools.partial(cpu_kernels.gradients, dy[:, 1:], x, w, decisions))
        else:
            calls.append(functools.partial(cpu_kernels.gradients, dy, x, w, decisions))
            calls.append(functools.partial(cpu_kernels.product, x, w, decisions))
    for call in calls:
        try:
            call()
        except ValueError:
            continue
        raise AssertionError(f"operands of another shape were accepted with coordinates of {shape}")
    return len(calls)


shapes = [tuple(int(n) for n in random.choice(SIZES, 4)) for _ in range(60)]
print(json.dumps({"right": len(shapes), "refused": sum(refused(shape, right(*shape)) for shape in shapes)}))

"""The ways to compute y[r, o] = sum of values[n] * w[columns[n], o] * m[rows[n], columns[n], o] over the n of row r.

That is the product of methods.py for an x of which the entries are listed that are not zero, and they alone have masks.
Shapes: values, rows and columns (n,), in any order, where equal places add up; w (i, o); the grid's time and sample are
those of all rows, (r,). Where a mask is made again, it is block by block of outputs, so that blocks have no sums in
common and memory is that of a few outputs for each entry.
"""

import collections.abc
import math

from pernodedrop._types import Namespace, Tensor
from pernodedrop.backends.methods import BLOCK_ENTRIES, check_method, normals
from pernodedrop.mask import Grid
from pernodedrop.noise import Noise

LEAST_WIDTH = 16
"""Outputs of a block at least: the coordinates of an entry take the time of three of them."""


def mask(rows: Tensor, columns: Tensor, grid: Grid, xp: Namespace) -> Tensor:
    """The mask of the listed entries, (n, o), float32; an axis that shares its coordinate may have size 1."""
    time, sample = (xp.take(words, rows, axis=0)[:, None] for words in (grid.time, grid.sample))
    in_ = grid.in_ if grid.in_.shape[0] == 1 else xp.take(grid.in_, columns, axis=0)
    return grid.field.entries(time, sample, in_[:, None], grid.out, xp)


def materialized(values: Tensor, rows: Tensor, columns: Tensor, w: Tensor, grid: Grid, xp: Namespace) -> Tensor:
    """The product with the mask of all entries in memory: the oracle of the other ways."""
    return forward_block(values, rows, columns, w, grid, xp)


def local_reparameterization(
    values: Tensor, rows: Tensor, columns: Tensor, w: Tensor, grid: Grid, xp: Namespace
) -> Tensor:
    """As `methods.local_reparameterization`, whose normal numbers these are."""
    count = xp.shape(grid.time)[0]
    mean = xp.sparse_matmul(values, rows, columns, count, w)
    variance = xp.sparse_matmul(values, rows, columns, count, w, squares=True)
    return normals(mean, variance, grid, xp)


def shared_over_in_or_out(
    values: Tensor, rows: Tensor, columns: Tensor, w: Tensor, grid: Grid, xp: Namespace
) -> Tensor:
    """The product when entries depend on one of in and out at most."""
    count = xp.shape(grid.time)[0]
    if grid.out.shape[0] == 1:
        factors = xp.astype(mask(rows, columns, grid, xp)[:, 0], xp.dtype(w))
        return xp.sparse_matmul(values * factors, rows, columns, count, w)
    factors = grid.field.entries(grid.time[:, None], grid.sample[:, None], grid.in_, grid.out, xp)
    return xp.sparse_matmul(values, rows, columns, count, w) * xp.astype(factors, xp.dtype(w))


def chosen(method: str, noise: Noise, sharing: frozenset[str], x: Tensor, dtype: str, xp: Namespace) -> str:
    """The method that "auto" means for a sparse x; it draws outputs themselves just where it does for a dense one."""
    batch, *positions, _ = x.shape
    times = None if None in positions else math.prod(positions)  # None: known to the run only
    own_mask = all(size == 1 for name, size in (("sample", batch), ("time", times)) if name in sharing)
    few = sharing & {"in", "out"}
    check_method(method, noise, few or "sample" in sharing or not own_mask, x, dtype, xp)
    if method != "auto":
        return method
    if few:
        return "shared_over_in_or_out"
    if noise.gaussian and own_mask and not ("sample" in sharing and times == 1):
        return "local_reparameterization"
    return "recomputed" if xp.kernel_obstacle(x, noise, dtype) else "kernel"


def width(entries: int | Tensor) -> int:
    """How many outputs make a block; `entries` is no int where a framework does not know it yet."""
    return max(LEAST_WIDTH, BLOCK_ENTRIES // max(1, entries)) if isinstance(entries, int) else LEAST_WIDTH


def blocks(entries: int, grid: Grid, outputs: int) -> collections.abc.Iterator[tuple[slice, Grid]]:
    """The blocks of the output axis as slices, each with its grid."""
    step = width(entries)
    for start in range(0, outputs, step):
        block = slice(start, start + step)
        yield block, grid if grid.out.shape[0] == 1 else grid._replace(out=grid.out[block])


def forward_block(values: Tensor, rows: Tensor, columns: Tensor, w: Tensor, grid: Grid, xp: Namespace) -> Tensor:
    """The product (r, k) for a block of outputs: w (i, k), a grid of k outputs."""
    masked = xp.take(w, columns, axis=0) * xp.astype(mask(rows, columns, grid, xp), xp.dtype(w))
    return xp.segment_sum(values[:, None] * masked, rows, xp.shape(grid.time)[0])


def gradients_block(
    dy: Tensor, values: Tensor, rows: Tensor, columns: Tensor, w: Tensor, grid: Grid, xp: Namespace
) -> tuple[Tensor, Tensor]:
    """What one block of outputs adds to the gradient of values, (n,), and that of its part of w, (i, k)."""
    masked = xp.take(dy, rows, axis=0) * xp.astype(mask(rows, columns, grid, xp), xp.dtype(w))
    dw = xp.segment_sum(values[:, None] * masked, columns, xp.shape(w)[0])
    return xp.sum(masked * xp.take(w, columns, axis=0), axis=1), dw

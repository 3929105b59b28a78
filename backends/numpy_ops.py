"""NumPy: the reference. Plain, readable and slow; every other backend is tested against it.

It has no gradients, so `recomputed` is a forward pass; tests differentiate it by hand.
"""

import sys

import numpy as np
from numpy import (
    abs,
    broadcast_to,
    clip,
    cos,
    exp,
    expand_dims,
    expm1,
    floor,
    log,
    log1p,
    matmul,
    maximum,
    minimum,
    ones_like,
    sign,
    sin,
    sqrt,
    squeeze,
    sum,
    take,
    take_along_axis,
    tan,
    tanh,
    where,
    zeros_like,
)
from numpy import arccos as acos
from numpy import arcsin as asin
from numpy import arctan as atan
from numpy import transpose as permute_dims

from pernodedrop.backends import methods, sparse_methods

xp = sys.modules[__name__]

float32 = np.float32


def erf(x):
    from scipy import special  # costs 100 ms to import, and only noises with a normal number need it

    return special.erf(x)


def erfinv(x):
    from scipy import special

    return special.erfinv(x)


def word(n):
    """The constant `n` in [0, 2**32), to be combined with a word tensor."""
    return np.uint32(n)


def as_word(n):
    """Integers, or a Python int, as a word tensor of rank 1 at least, modulo 2**32."""
    if isinstance(n, int):
        n &= 0xFFFFFFFF
    return np.atleast_1d(np.asarray(n)).astype(np.uint32)


def arange(n, like):
    """The words 0 ... n - 1, on the device of `like`."""
    return np.arange(n, dtype=np.uint32)


def shift_right(x, n):
    """Logical shift of words to the right."""
    return x >> np.uint32(n)


def modulo(x, n):
    """Words modulo an int in [1, 2**31)."""
    return x % np.uint32(n)


def bits24(x):
    """The upper 24 bits of words, as int32."""
    return (x >> np.uint32(8)).astype(np.int32)


def uniform(x):
    """((word >> 9) + 0.5) * 2**-23: numbers in (0, 1), exact in float32."""
    return ((x >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2**-23)


def dtype(x):
    """Name of the dtype of `x`."""
    return str(x.dtype)


def layout(x):
    """How the entries of `x` are stored: "dense", "sparse" (no zeros), "ragged" (rows of several lengths), "other"."""
    if isinstance(x, np.ndarray | np.generic):
        return "dense"
    return "sparse" if x.format in ("csr", "coo") else "other"  # SciPy's


def device(x):
    """Where `x` is, in a form that `asarray` takes."""
    return None


def shape(x):
    """The shape of `x`, a tuple of ints (or of scalar tensors where a framework does not know them yet)."""
    return x.shape


def astype(x, name):
    """`x` in the dtype called `name`."""
    return x.astype(name, copy=False)


def reshape(x, shape):
    return np.reshape(x, shape)


def unstack(x):
    """The tensors along the first axis of `x`, a tuple."""
    return tuple(x)


def asarray(x, device=None):
    """A host array or number as a tensor of this backend."""
    return np.asarray(x)


def running_maximum(x, axis):
    """The greatest of the entries so far along an axis, of int32."""
    return np.maximum.accumulate(x, axis=axis)


def to_numpy(x):
    """A tensor of this backend as a host array."""
    return np.asarray(x)


def is_integer(x):
    """Whether `x` has an integer dtype."""
    return x.dtype.kind in "iu"  # not timedelta64, which NumPy has among the integers


def stop_gradient(x):
    """`x`, through which no gradient flows."""
    return x


def optimization_barrier(x):
    """`x`, which a compiler does not compute again where it is used, as in every step of a loop."""
    return x


def triples(x):
    """values, rows and columns (n,) of the listed entries of a sparse x (batch, [time,] in); rows are those of x flat.

    A place that is listed twice is the sum of its entries.
    """
    x = x.tocoo()
    *rows, columns = (x.row, x.col) if x.ndim == 2 else x.coords
    return x.data, np.ravel_multi_index(rows, x.shape[:-1]), columns


def segment_sum(terms, index, count):
    """The terms (n, k) summed up by their index in 0 ... count - 1: (count, k)."""
    return sparse_matmul(np.ones(len(index), terms.dtype), index, np.arange(len(index)), count, terms)


def sparse_matmul(values, rows, columns, count, w, squares=False):
    """The product (count, o) of a matrix (count, i), of which triples are given, with w (i, o); or that of squares."""
    from scipy import sparse  # takes a tenth of a second, and only sparse inputs need it

    if squares:
        used, columns = np.unique(columns, return_inverse=True)  # w may have many times as many rows
        values, w = values * values, w[used] ** 2
    return sparse.csr_array((values, (rows, columns)), shape=(count, len(w))) @ w


def sparse_recomputed(values, rows, columns, w, grid):
    """The masked product (row, out) of triples, in blocks of outputs."""
    y = np.empty((len(grid.time), w.shape[1]), w.dtype)
    for block, part in sparse_methods.blocks(len(values), grid, w.shape[1]):
        y[:, block] = sparse_methods.forward_block(values, rows, columns, w[:, block], part, xp)
    return y


def sparse_kernel(values, rows, columns, w, grid):
    """The masked product of triples by a kernel written by hand."""
    from pernodedrop.backends import cpu_kernels

    return cpu_kernels.sparse_product(values, rows, columns, w, methods.flat(grid, xp))


def fused(function):
    """A function of tensors, and of what `jax_ops.STATIC` names, as one op if that is faster; itself otherwise."""
    return function


def recomputed(x, w, grid):
    """The masked product in blocks of inputs, so that no more than a block of the mask ever exists."""
    y = np.zeros((*x.shape[:2], w.shape[1]), w.dtype)
    for block, mask in methods.blocks(x, w, grid, xp):
        y += methods.forward_block(x[:, :, block], w[block], mask, xp)
    return y


def masked(w, grid):
    """The kernel of each row, w times its mask, (r, i, o), in memory; the mask is made by a kernel where one can be."""
    return w * entries(grid)


def entries(grid):
    """The mask (r, i, o), float32, in memory; it is made by a kernel where that is faster."""
    if grid.field.persists or methods.cpu_kernel_obstacle(grid.field.noise):
        return grid.entries(xp)
    from pernodedrop.backends import cpu_kernels

    return cpu_kernels.entries(methods.Entries.of(grid, xp))


def convolved(x, kernels, window):
    """Each row of x convolved with a kernel of its own, as `pernodedrop.backends.methods.shifted_products` has it."""
    return methods.shifted_products(x, kernels, window, xp)


def kernel_obstacle(x, noise, dtype):
    """What `kernel`, or `sparse_kernel` for a sparse x, asks for and lacks here, as text for an error, or None."""
    return methods.cpu_kernel_obstacle(noise)


def on_host(field, samples):
    """A field and sample coordinates as arrays of NumPy where kernels take those, which cost least; else None."""
    return field, samples


def kernel(x, w, grid):
    """The masked product by a kernel written by hand, which has the mask in registers only."""
    from pernodedrop.backends import cpu_kernels

    return cpu_kernels.product(x, w, methods.flat(grid, xp))


def kernel_made_again(x, w, grid):
    """The same, of which nothing is kept for gradients but the operands: for loops, where what is kept adds up."""
    return kernel(x, w, grid)


def loops_by_kernel(w, grid):
    """Whether a loop whose steps share a mask is quicker by `kernel_made_again` than with w times it in memory."""
    return methods.loops_by_kernel(w, grid, differentiated=False)


def draw(variable):
    """The next key of a Keras variable [seed, call], whose call number it advances."""
    with methods.DRAWING:
        key = np.array(variable.value)
        variable.assign(key + np.asarray([0, 1], key.dtype))
    return key


def global_rows(n, like):
    """The places, as words, that the n rows of a batch have among the rows of all replicas in this step."""
    return arange(n, like)


def sum_of_replicas(x):
    """The sum of x over all replicas in this step, each of which has its own, or an error where there is none."""
    return x


def warn_of_replicas():
    """Warn where this process is one of several and rows that count from 0 are those of another's."""


def refuse_redraw():
    """Raise if a key drawn here would be drawn again in the backward pass."""

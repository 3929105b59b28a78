"""The masked product on a CPU, by kernels that numba compiled, in threads.

Operands are NumPy arrays: x (r, t, i), w (i, o), dy (r, t, o) of one floating dtype, and the mask's `Decisions` or
`Entries`, whose words are uint32.

Every result is summed by one thread in one order, so it does not depend on how many threads there are.
"""

import concurrent.futures
import functools
import itertools
import math
import os

import numba
import numpy as np

from pernodedrop.backends import decision_kernels, methods
from pernodedrop.backends.methods import Decisions

_LANES = 16  # outputs are padded to a multiple of it
_LINE = 64  # bytes of a line of the cache
_SPANS_A_THREAD = 4  # so that a thread that was held up is helped by the others
FEW = 300_000  # multiply-adds that take less time than to wake another thread


def product(x, w, mask):
    """y (r, t, o) = sum_i x[r, t, i] * w[i, o] * m[r, i, o]."""
    return _product(x, w, mask, _NONE)


def product_and_bits(x, w, mask):
    """The same, and its decisions for the gradients, bytes of the shape `methods.kept_shape`."""
    bits = _zeros(methods.kept_shape(mask, x, w), np.dtype(np.uint8))  # of inputs that fill a group up, too
    return _product(x, w, mask, bits), bits


def _product(x, w, mask, bits):
    methods.check_operands(mask, x, w)
    outputs, w = w.shape[1], padded(w)
    y = _zeros((*x.shape[:2], w.shape[1]), w.dtype)
    kernels = kernels_of(mask)
    if x.size and w.size:
        results = (y, bits) if kernels is decision_kernels else (y,)
        arguments = *results, _only_read(x), _only_read(w), _own(mask)
        _in_spans(kernels.forward, len(x), 1, arguments, is_small(x, w))
    return np.ascontiguousarray(y[:, :, :outputs])


def gradients(dy, x, w, mask, bits=None):
    """dx, of the shape of x, and dw, of the shape of w, of the very mask of `product`, or of these bits of it."""
    methods.check_operands(mask, x, w, dy)
    bits = _NONE if bits is None else bits
    methods.check_bits(bits, mask, x, w)
    outputs, dy, w = w.shape[1], padded(dy), padded(w)
    dx, dw = _zeros(x.shape, x.dtype), _zeros(w.shape, w.dtype)
    kernels = kernels_of(mask)
    if dy.size and x.size and w.size:
        kept = (_only_read(bits), 0) if kernels is decision_kernels else ()
        arguments = dx, dw, *map(_only_read, (dy, x, w)), *kept, _own(mask)
        step = decision_kernels.COLUMNS if kernels is decision_kernels else 1  # inputs that are added up together
        _in_spans(kernels.backward, len(w), step, arguments, is_small(x, w))
    return dx, np.ascontiguousarray(dw[:, :outputs])


_NONE = np.empty((0, 0, 0, methods.GROUP), np.uint8)


def kernels_of(mask):
    """The module whose kernels take a mask."""
    if isinstance(mask, Decisions):
        return decision_kernels
    from pernodedrop.backends import program_kernels  # which compiles an interpreter

    return program_kernels


def _zeros(shape, dtype):
    """Zeros at the start of a line of the cache, which TensorFlow takes as it is and would copy elsewhere."""
    size = math.prod(shape) * dtype.itemsize
    buffer = np.zeros(size + _LINE, np.uint8)
    start = -buffer.ctypes.data % _LINE
    return buffer[start : start + size].view(dtype).reshape(shape)


def padded(array, xp=np):
    """With zeros behind, so that the outputs fill whole vectors: what is left over would go one by one.

    Kernels know by the mask, which is not padded, of which there are entries: 0 times an infinite one would be NaN.
    """
    missing = -array.shape[-1] % _LANES
    if not missing:
        return array
    return xp.concatenate([array, xp.zeros((*array.shape[:-1], missing), array.dtype)], axis=-1)  # np.pad takes longer


def is_small(x, w):
    """Whether a product is done sooner by one thread than by several."""
    return math.prod(x.shape) * w.shape[1] <= FEW


def spans(size, parts, step=1):
    """(start, stop) of as many parts of 0 ... size, or fewer if there is less; parts start at multiples of a step."""
    steps = -(-size // step)
    edges = np.linspace(0, steps, max(1, min(steps, parts)) + 1).astype(np.int64) * step
    return list(itertools.pairwise(np.minimum(edges, size).tolist()))


def _in_spans(kernel, size, step, arguments, small):
    """Run a kernel on spans that cover 0 ... size, in threads, or on all of it at once if the product is small."""
    if small:
        kernel(0, size, *arguments)
    else:
        _in_threads(kernel, spans(size, numba.config.NUMBA_NUM_THREADS * _SPANS_A_THREAD, step), arguments)


def _in_threads(kernel, parts, arguments):
    """Run a kernel on each of the parts."""

    def run(part):
        kernel(*part, *arguments)

    try:
        done = _pool(os.getpid()).map(run, parts)
    except RuntimeError:  # the interpreter is ending and takes no more work
        done = map(run, parts)
    list(done)


def _only_read(operand):
    """An operand as the kernels take it: numba would compile once more for each that may be written, or may not."""
    whole = np.ascontiguousarray(operand).view()
    whole.flags.writeable = False
    return whole


def _own(mask):
    """A mask as the kernels take it."""
    *noise, seed, call, time, sample, in_, out = mask
    own = map(np.array, (time, sample, in_, out))  # all may be written, for the same reason
    noise = [np.int32(noise[0])] if isinstance(mask, Decisions) else map(np.array, noise)
    return type(mask)(*noise, seed[0], call[0], *own)


@functools.cache
def _pool(process):
    """The threads of a process: those of a parent do not run in what it forks."""
    return concurrent.futures.ThreadPoolExecutor(numba.config.NUMBA_NUM_THREADS, "pernodedrop")


# Of an x whose entries are listed: values, rows and columns (n,), w (i, o), dy and y (r, o). A part is a span of the
# entries, sorted by row or by column, which has whole rows or columns, so no two of them write to one place.


def sparse_product(values, rows, columns, w, mask):
    """y[r, o] = sum over the entries n of row r of values[n] * w[columns[n], o] * m[r, columns[n], o]."""
    _check_listed(rows, columns, w, mask)
    order = slice(None) if (rows[:-1] <= rows[1:]).all() else np.argsort(rows, kind="stable")
    y = _zeros((len(mask.time), w.shape[1]), w.dtype)
    kernel = kernels_of(mask).sparse_forward
    _in_groups(kernel, rows[order], (y,), (values[order], rows[order], columns[order], w), mask)
    return y


def sparse_gradients(dy, values, rows, columns, w, mask):
    """The gradient of values, (n,), and that of w, of the very mask of `sparse_product`."""
    _check_listed(rows, columns, w, mask)
    order = np.argsort(columns, kind="stable")
    sorted_dvalues, dw = np.empty(len(values), w.dtype), _zeros(w.shape, w.dtype)
    operands = (values[order], rows[order], columns[order], w, dy)
    kernel = kernels_of(mask).sparse_backward
    _in_groups(kernel, columns[order], (sorted_dvalues, dw), operands, mask)
    dvalues = _zeros(values.shape, w.dtype)
    dvalues[order] = sorted_dvalues
    return dvalues, dw


def _check_listed(rows, columns, w, mask):
    """Raise unless entries and w are those of the mask's coordinates: kernels read and write where these say."""
    methods.check_rows(mask)
    if w.shape != (len(mask.in_), len(mask.out)):
        raise ValueError(f"Expected w of the coordinates in, out {len(mask.in_), len(mask.out)}. Received: {w.shape}")
    for name, index, size in (("rows", rows, len(mask.time)), ("columns", columns, len(mask.in_))):
        if index.size and not (index.min() >= 0 and index.max() < size):
            raise ValueError(f"Expected {name} of entries in 0 ... {size - 1}. Received: {index.min(), index.max()}")


def _in_groups(kernel, groups, results, operands, mask):
    """Run a kernel on spans of entries, sorted by the group of each, that have whole groups, in threads."""
    if not len(groups):
        return
    starts = [start for start, _ in spans(len(groups), numba.config.NUMBA_NUM_THREADS * _SPANS_A_THREAD)]
    edges = [*np.unique(np.searchsorted(groups, groups[starts])).tolist(), len(groups)]
    _in_threads(kernel, itertools.pairwise(edges), (*results, *map(_only_read, operands), _own(mask)))


def entries(mask):
    """The mask itself, (r, i, o), float32, of any noise's `Entries`."""
    methods.check_rows(mask)
    rows, inputs, outputs = len(mask.time), len(mask.in_), len(mask.out)
    filled = _zeros((rows, inputs, outputs), np.dtype(np.float32))
    if filled.size:
        flat = filled.reshape(-1, outputs)
        fill = kernels_of(mask).fill

        def fill_lines(start, stop, lines, mask):
            fill(start, stop, lines[start:stop], mask)

        _in_spans(fill_lines, len(flat), 1, (flat, _own(mask)), flat.size <= FEW)
    return filled

"""The Bernoulli product on a CPU, compiled by numba: words, decisions and sums stay in registers.

Operands are NumPy arrays: x (r, t, i), w (i, o), dy (r, t, o) of one floating dtype, and the mask's `Decisions`, whose
words are uint32. Every result is summed by one thread in one order, so it does not depend on how many threads there
are. What is dropped is 0 times something, which is NaN if that is NaN or infinite, as in all other ways.
"""

import concurrent.futures
import functools
import itertools
import math
import os

import numba
import numpy as np

from pernodedrop import generator
from pernodedrop.backends.methods import Decisions
from pernodedrop.noise import LEVELS

_GOLDEN = np.uint32(generator.GOLDEN)
_FIRST, _SECOND, _THIRD = (np.uint32(m) for m in generator.MULTIPLIERS)
_TILE = 2**16  # numbers of w or dy that are used for one row after another: 256 KiB, which a core's cache holds
_LANES = 16  # outputs are padded to a multiple of it
_LINE = 64  # bytes of a line of the cache
_COLUMNS = 16  # inputs whose x and dx are moved together: a line of float32
_SPANS_A_THREAD = 4  # so that a thread that was held up is helped by the others
_FEW = 300_000  # multiply-adds that take less time than to wake another thread
_DEPTH = 8  # inputs of which a masked kernel is added up at a time, where positions share it

u32 = np.uint32  # numba would make uint64 of every result
_inlined = numba.njit(inline="always")


def kept_on_disk(decorator, function):
    """Compiled by a decorator of numba that takes `cache`, which only works where a folder can be written."""
    try:
        return decorator(cache=True)(function)
    except RuntimeError:
        return decorator()(function)


def _compiled(function):
    # sums may change their order, but NaN and infinity are computed with
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"nsz", "contract", "reassoc"}}
    return kept_on_disk(functools.partial(numba.njit, **options), function)


def product(x, w, mask):
    """y (r, t, o) = sum_i x[r, t, i] * w[i, o] * m[r, i, o]."""
    mask.check(x, w)
    outputs, w, mask = w.shape[1], padded(w), mask._replace(out=padded(mask.out))
    y = _zeros((*x.shape[:2], w.shape[1]), w.dtype)
    _in_spans(forward, len(x), (y,), (x, w), mask, is_small(x, w))
    return np.ascontiguousarray(y[:, :, :outputs])


def gradients(dy, x, w, mask):
    """dx, of the shape of x, and dw, of the shape of w, of the very mask of `product`."""
    mask.check(x, w, dy)
    outputs, dy, w, mask = w.shape[1], padded(dy), padded(w), mask._replace(out=padded(mask.out))
    dx, dw = _zeros(x.shape, x.dtype), _zeros(w.shape, w.dtype)
    _in_spans(backward, len(w), (dx, dw), (dy, x, w), mask, is_small(x, w))
    return dx, np.ascontiguousarray(dw[:, :outputs])


def _zeros(shape, dtype):
    """np.zeros at the start of a line of the cache, which TensorFlow takes as it is and would copy elsewhere."""
    size = int(np.prod(shape)) * dtype.itemsize
    buffer = np.zeros(size + _LINE, np.uint8)
    start = -buffer.ctypes.data % _LINE
    return buffer[start : start + size].view(dtype).reshape(shape)


def padded(array, xp=np):
    """With zeros behind, so that the outputs fill whole vectors: what is left over would go one by one."""
    missing = -array.shape[-1] % _LANES
    return xp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)]) if missing else array


def is_small(x, w):
    """Whether a product is done sooner by one thread than by several."""
    return math.prod(x.shape) * w.shape[1] <= _FEW


def spans(size, parts):
    """(start, stop) of as many parts of 0 ... size, or fewer if there is less."""
    edges = np.linspace(0, size, max(1, min(size, parts)) + 1).astype(np.int64).tolist()
    return list(itertools.pairwise(edges))


def _in_spans(kernel, size, results, operands, mask, small):
    """Run a kernel on spans that cover 0 ... size, in threads, or on all of it at once if the product is small."""
    if not all(operand.size for operand in operands):
        return
    arguments = (*results, *map(_only_read, operands), _own(mask))
    if small:
        kernel(0, size, *arguments)
    else:
        _in_threads(kernel, spans(size, numba.config.NUMBA_NUM_THREADS * _SPANS_A_THREAD), arguments)


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
    """Decisions as the kernels take them."""
    threshold, seed, call, *coordinates = mask
    own = map(np.array, coordinates)  # all may be written, for the same reason
    return Decisions(np.int32(threshold), seed[0], call[0], *own)


@functools.cache
def _pool(process):
    """The threads of a process: those of a parent do not run in what it forks."""
    return concurrent.futures.ThreadPoolExecutor(numba.config.NUMBA_NUM_THREADS, "pernodedrop")


@_inlined
def _shifted(x):
    """The first shift of triple32, which is linear: _shifted(a ^ b) == _shifted(a) ^ _shifted(b)."""
    x = u32(x)
    return u32(x ^ (x >> u32(17)))


@_inlined
def _shifted_array(words):
    result = np.empty_like(words)
    for n in range(len(words)):
        result[n] = _shifted(words[n])
    return result


@_inlined
def _finish(x, key):
    """`generator._triple32_keyed` after its first shift."""
    x = u32(x * _FIRST)
    x = u32(x ^ (x >> u32(11)) ^ key)
    x = u32(x * _SECOND)
    x = u32(x ^ (x >> u32(15)))
    x = u32(x * _THIRD)
    return u32(x ^ (x >> u32(14)))


@_inlined
def _mix(x):
    return _finish(_shifted(x), u32(0))


@_inlined
def _halves(seed, call):
    """What the two halves of all row keys have in common, for lane 0."""
    return _mix(_mix(call + _mix(seed))), _mix(_mix(call ^ _mix(seed ^ _GOLDEN)))


@_inlined
def _row_key(halves, time, sample, in_):
    """`generator.row_key` at one coordinate, its first half shifted."""
    first = _shifted(_mix(in_ + _mix(sample + _mix(time + halves[0]))))
    return first, _mix(u32(sample * _GOLDEN) ^ _mix(in_ + _mix(time ^ halves[1])))


@_inlined
def _kept(out, row_key, last):
    """Whether an entry is kept; out is shifted."""
    return _finish(u32(out ^ row_key[0]), row_key[1]) <= last


@_inlined
def _last(threshold):
    """The last word that is kept: word >> 8 < T just when word <= 256 * T - 1, the very last word from T = 2**24."""
    return u32((min(max(threshold, 1), LEVELS) << 8) - 1)


@_compiled
def forward(start, stop, y, x, w, mask):
    """Fill the rows `start` ... `stop` of y, which are zero before."""
    inputs, outputs = w.shape
    halves, last, masked = _halves(mask.seed, mask.call), _last(mask.threshold), np.empty((_DEPTH, outputs), w.dtype)
    time, sample, in_, out = mask.time, mask.sample, mask.in_, _shifted_array(mask.out)
    tile = min(inputs, _TILE // outputs + 1)
    first, second = np.empty(tile, u32), np.empty(tile, u32)
    for begin in range(0, inputs, tile):
        end = min(begin + tile, inputs)
        for r in range(start, stop):
            for i in range(begin, end):
                first[i - begin], second[i - begin] = _row_key(halves, time[r], sample[r], in_[i])
            if x.shape[1] == 1:  # else the mask would go through memory for a single use
                for i in range(begin, end):
                    _forward_row(r, i, y, x, w, out, (first[i - begin], second[i - begin]), last)
                continue
            for left in range(begin, end, _DEPTH):
                right = min(left + _DEPTH, end)
                for i in range(left, right):
                    _mask_row(masked[i - left], w[i], out, (first[i - begin], second[i - begin]), last)
                _add_products(y[r], x[r, :, left:right], masked)
    y[start:stop] *= _scale(mask.threshold, y.dtype)


@_inlined
def _forward_row(r, i, y, x, w, out, row_key, last):
    x_value, x_dropped = x[r, 0, i], x[r, 0, i] * w.dtype.type(0)
    for o in range(w.shape[1]):
        y[r, 0, o] += (x_value if _kept(out[o], row_key, last) else x_dropped) * w[i, o]


@_inlined
def _mask_row(masked, w, out, row_key, last):
    zero = w.dtype.type(0)
    for o in range(len(w)):
        masked[o] = w[o] if _kept(out[o], row_key, last) else w[o] * zero


@_inlined
def _add_products(y, x, masked):
    """y (t, o) += x (t, i) @ masked (i, o): of all inputs at a time, so that y is read and written once for them."""
    if x.shape[1] < _DEPTH:
        for t in range(x.shape[0]):
            for i in range(x.shape[1]):
                for o in range(y.shape[1]):
                    y[t, o] += x[t, i] * masked[i, o]
        return
    m0, m1, m2, m3, m4, m5, m6, m7 = (
        masked[0], masked[1], masked[2], masked[3], masked[4], masked[5], masked[6], masked[7],
    )  # fmt: skip
    for t in range(x.shape[0]):
        x0, x1, x2, x3, x4, x5, x6, x7 = x[t, 0], x[t, 1], x[t, 2], x[t, 3], x[t, 4], x[t, 5], x[t, 6], x[t, 7]
        for o in range(y.shape[1]):
            y[t, o] += (x0 * m0[o] + x1 * m1[o] + x2 * m2[o] + x3 * m3[o]) + (
                x4 * m4[o] + x5 * m5[o] + x6 * m6[o] + x7 * m7[o]
            )


@_compiled
def backward(start, stop, dx, dw, dy, x, w, mask):
    """Fill the inputs `start` ... `stop` of dx and dw, the latter zero before."""
    rows, positions, outputs = dy.shape
    halves, last, scratch = _halves(mask.seed, mask.call), _last(mask.threshold), np.empty((3, outputs), w.dtype)
    time, sample, in_, out = mask.time, mask.sample, mask.in_, _shifted_array(mask.out)
    scale = _scale(mask.threshold, w.dtype)
    tile = min(rows, _TILE // max(1, positions * outputs) + 1)
    first, second = np.empty(tile, u32), np.empty(tile, u32)
    # a step from row to row passes a whole row of x, so some columns are copied out, and those of dx back
    x_columns, dx_columns = np.empty((2, tile, positions, _COLUMNS), w.dtype)
    for begin in range(0, rows, tile):
        end = min(begin + tile, rows)
        for left in range(start, stop, _COLUMNS):
            right = min(left + _COLUMNS, stop)
            for r in range(begin, end):
                for t in range(positions):
                    for i in range(left, right):
                        x_columns[r - begin, t, i - left] = x[r, t, i]
            for i in range(left, right):
                for r in range(begin, end):
                    first[r - begin], second[r - begin] = _row_key(halves, time[r], sample[r], in_[i])
                for r in range(begin, end):
                    row_key, at = (first[r - begin], second[r - begin]), (r - begin, i - left)
                    _backward_row(r, i, at, dx_columns, dw, dy, x_columns, w, scratch, out, row_key, last)
            for r in range(begin, end):
                for t in range(positions):
                    for i in range(left, right):
                        dx[r, t, i] = dx_columns[r - begin, t, i - left] * scale
    dw[start:stop] *= scale


@_inlined
def _backward_row(r, i, at, dx, dw, dy, x, w, scratch, out, row_key, last):
    row, column = at
    zero, one = w.dtype.type(0), w.dtype.type(1)
    if x.shape[1] == 1:
        x_value, dx_value = x[row, 0, column], zero
        for o in range(w.shape[1]):
            masked = dy[r, 0, o] if _kept(out[o], row_key, last) else dy[r, 0, o] * zero
            dx_value += masked * w[i, o]
            dw[i, o] += masked * x_value
        dx[row, 0, column] = dx_value
        return
    kept, masked_row, sums = scratch[0], scratch[1], scratch[2]
    for o in range(w.shape[1]):
        kept[o] = one if _kept(out[o], row_key, last) else zero
        masked_row[o] = kept[o] * w[i, o]
        sums[o] = zero
    _add_gradients(dx[row, :, column], sums, dy[r], x[row, :, column], masked_row)
    for o in range(w.shape[1]):
        dw[i, o] += kept[o] * sums[o]


@_inlined
def _add_gradients(dx, sums, dy, x, masked):
    """dx (t,) = dy (t, o) @ masked (o,) and sums (o,) += x (t,) @ dy (t, o): of four positions at a time."""
    zero, whole = dx.dtype.type(0), len(x) // 4 * 4
    for t in range(0, whole, 4):
        d0, d1, d2, d3 = dy[t], dy[t + 1], dy[t + 2], dy[t + 3]
        x0, x1, x2, x3 = x[t], x[t + 1], x[t + 2], x[t + 3]
        a0, a1, a2, a3 = zero, zero, zero, zero
        for o in range(len(masked)):
            a0 += d0[o] * masked[o]
            a1 += d1[o] * masked[o]
            a2 += d2[o] * masked[o]
            a3 += d3[o] * masked[o]
            sums[o] += (x0 * d0[o] + x1 * d1[o]) + (x2 * d2[o] + x3 * d3[o])
        dx[t], dx[t + 1], dx[t + 2], dx[t + 3] = a0, a1, a2, a3
    for t in range(whole, len(x)):
        x_value, dx_value = x[t], zero
        for o in range(len(masked)):
            dx_value += dy[t, o] * masked[o]
            sums[o] += x_value * dy[t, o]
        dx[t] = dx_value


@_inlined
def _scale(threshold, dtype):
    """What a kept entry is; 0 where T says that none is kept, which no noise says by itself."""
    return dtype.type(np.float32(LEVELS) / np.float32(threshold)) if threshold > 0 else dtype.type(0)


# Of an x whose entries are listed: values, rows and columns (n,), w (i, o), dy and y (r, o). A part is a span of the
# entries, sorted by row or by column, which has whole rows or columns, so no two of them write to one place.


def sparse_product(values, rows, columns, w, mask):
    """y[r, o] = sum over the entries n of row r of values[n] * w[columns[n], o] * m[r, columns[n], o]."""
    _check_listed(rows, columns, w, mask)
    order = slice(None) if (rows[:-1] <= rows[1:]).all() else np.argsort(rows, kind="stable")
    y = _zeros((len(mask.time), w.shape[1]), w.dtype)
    _in_groups(sparse_forward, rows[order], (y,), (values[order], rows[order], columns[order], w), mask)
    return y


def sparse_gradients(dy, values, rows, columns, w, mask):
    """The gradient of values, (n,), and that of w, of the very mask of `sparse_product`."""
    _check_listed(rows, columns, w, mask)
    order = np.argsort(columns, kind="stable")
    sorted_dvalues, dw = np.empty(len(values), w.dtype), _zeros(w.shape, w.dtype)
    operands = (values[order], rows[order], columns[order], w, dy)
    _in_groups(sparse_backward, columns[order], (sorted_dvalues, dw), operands, mask)
    dvalues = _zeros(values.shape, w.dtype)
    dvalues[order] = sorted_dvalues
    return dvalues, dw


def _check_listed(rows, columns, w, mask):
    """Raise unless entries and w are those of the mask's coordinates: kernels read and write where these say."""
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


@_compiled
def sparse_forward(start, stop, y, values, rows, columns, w, mask):
    """Add the entries `start` ... `stop` to y."""
    halves, last, out = _halves(mask.seed, mask.call), _last(mask.threshold), _shifted_array(mask.out)
    scale, zero = _scale(mask.threshold, w.dtype), w.dtype.type(0)
    for n in range(start, stop):
        r, i = rows[n], columns[n]
        row_key = _row_key(halves, mask.time[r], mask.sample[r], mask.in_[i])
        value, dropped, y_row, w_row = values[n] * scale, values[n] * zero, y[r], w[i]
        for o in range(len(out)):
            y_row[o] += (value if _kept(out[o], row_key, last) else dropped) * w_row[o]


@_compiled
def sparse_backward(start, stop, dvalues, dw, values, rows, columns, w, dy, mask):
    """Fill the entries `start` ... `stop` of dvalues, and add them to dw."""
    halves, last, out = _halves(mask.seed, mask.call), _last(mask.threshold), _shifted_array(mask.out)
    scale, zero = _scale(mask.threshold, w.dtype), w.dtype.type(0)
    for n in range(start, stop):
        r, i = rows[n], columns[n]
        row_key = _row_key(halves, mask.time[r], mask.sample[r], mask.in_[i])
        value, total, dy_row, w_row, dw_row = values[n] * scale, zero, dy[r], w[i], dw[i]
        for o in range(len(out)):
            masked = dy_row[o] if _kept(out[o], row_key, last) else dy_row[o] * zero
            total += masked * w_row[o]
            dw_row[o] += masked * value
        dvalues[n] = total * scale

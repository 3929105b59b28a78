"""The masked product on a CPU, compiled by numba: words, decisions and sums stay in registers.

Operands are NumPy arrays: x (r, t, i), w (i, o), dy (r, t, o) of one floating dtype, and the mask's `Decisions`, whose
words are uint32. The `Entries` of other noises are made in blocks, by programs, and stay in a core's cache.

Every result is summed by one thread in one order, so it does not depend on how many threads there are. What is dropped
is 0 times something, which is NaN if that is NaN or infinite, as in all other ways.
"""

import concurrent.futures
import functools
import itertools
import math
import operator
import os

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from pernodedrop import generator
from pernodedrop.backends import programs
from pernodedrop.backends.methods import Decisions
from pernodedrop.noise import LEVELS

_GOLDEN = np.uint32(generator.GOLDEN)
_FIRST, _SECOND, _THIRD = (np.uint32(m) for m in generator.MULTIPLIERS)
_TILE = 2**16  # numbers of w or dy that are used for one row after another: 256 KiB, which a core's cache holds
_LANES = 16  # outputs are padded to a multiple of it
_LINE = 64  # bytes of a line of the cache
_COLUMNS = 16  # inputs whose x and dx are moved together: a line of float32
_SPANS_A_THREAD = 4  # so that a thread that was held up is helped by the others
FEW = 300_000  # multiply-adds that take less time than to wake another thread
_DEPTH = 8  # inputs of which a masked kernel is added up at a time, where positions share it
_BLOCK = 512  # entries that a program makes at a time: a register is 2 KiB

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
    kernel = forward if isinstance(mask, Decisions) else forward_of_entries
    _in_spans(kernel, len(x), (y,), (x, w), mask, is_small(x, w))
    return np.ascontiguousarray(y[:, :, :outputs])


def gradients(dy, x, w, mask):
    """dx, of the shape of x, and dw, of the shape of w, of the very mask of `product`."""
    mask.check(x, w, dy)
    outputs, dy, w, mask = w.shape[1], padded(dy), padded(w), mask._replace(out=padded(mask.out))
    dx, dw = _zeros(x.shape, x.dtype), _zeros(w.shape, w.dtype)
    kernel = backward if isinstance(mask, Decisions) else backward_of_entries
    _in_spans(kernel, len(w), (dx, dw), (dy, x, w), mask, is_small(x, w))
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
    return math.prod(x.shape) * w.shape[1] <= FEW


def spans(size, parts):
    """(start, stop) of as many parts of 0 ... size, or fewer if there is less."""
    edges = np.linspace(0, size, max(1, min(size, parts)) + 1).astype(np.int64).tolist()
    return list(itertools.pairwise(edges))


def _in_spans(kernel, size, results, operands, mask, small):
    """Run a kernel on spans that cover 0 ... size, in threads, or on all of it at once if the product is small."""
    if not all(operand.size for operand in operands):
        return
    whole = [np.ascontiguousarray(operand) for operand in operands]
    arguments = (*results, *whole, _own(mask))
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


def _own(mask):
    """A mask as the kernels take it."""
    *noise, seed, call, time, sample, in_, out = mask
    own = map(np.array, (time, sample, in_, out))  # numba would compile once more for what is read-only
    noise = [np.int32(noise[0])] if isinstance(mask, Decisions) else map(np.array, noise)
    return type(mask)(*noise, seed[0], call[0], *own)


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
def _halves(mask, lane):
    """What the two halves of all row keys of a lane have in common."""
    seed, call = mask.seed, mask.call
    return _mix(lane + _mix(call + _mix(seed))), _mix(lane ^ _mix(call ^ _mix(seed ^ _GOLDEN)))


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
    halves, last, masked = (
        _halves(mask, u32(0)),
        _last(mask.threshold),
        np.empty((_DEPTH, outputs), w.dtype),
    )
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
    halves, last, scratch = (
        _halves(mask, u32(0)),
        _last(mask.threshold),
        np.empty((3, outputs), w.dtype),
    )
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
            _take_columns(x_columns, x[begin:end, :, left:right])
            for i in range(left, right):
                for r in range(begin, end):
                    first[r - begin], second[r - begin] = _row_key(halves, time[r], sample[r], in_[i])
                for r in range(begin, end):
                    row_key, at = (first[r - begin], second[r - begin]), (r - begin, i - left)
                    _backward_row(r, i, at, dx_columns, dw, dy, x_columns, w, scratch, out, row_key, last)
            _put_columns(dx[begin:end, :, left:right], dx_columns, scale)
    dw[start:stop] *= scale


@_inlined
def _take_columns(columns, x):
    for r in range(x.shape[0]):
        for t in range(x.shape[1]):
            for i in range(x.shape[2]):
                columns[r, t, i] = x[r, t, i]


@_inlined
def _put_columns(x, columns, scale):
    for r in range(x.shape[0]):
        for t in range(x.shape[1]):
            for i in range(x.shape[2]):
                x[r, t, i] = columns[r, t, i] * scale


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
    kept = scratch[2]
    for o in range(w.shape[1]):
        kept[o] = one if _kept(out[o], row_key, last) else zero
    _add_of_positions(dx[row, :, column], dw[i], dy[r], x[row, :, column], w[i], kept, scratch)


@_inlined
def _add_of_positions(dx, dw, dy, x, w, mask, scratch):
    """Fill dx (t,) and add to dw (o,) of one row and input, whose positions share the mask (o,)."""
    masked, sums = scratch[0], scratch[1]
    for o in range(len(w)):
        masked[o] = w[o] * mask[o]
        sums[o] = w.dtype.type(0)
    _add_gradients(dx, sums, dy, x, masked)
    for o in range(len(w)):
        dw[o] += mask[o] * sums[o]


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
    kernel = sparse_forward if isinstance(mask, Decisions) else sparse_forward_of_entries
    _in_groups(kernel, rows[order], (y,), (values[order], rows[order], columns[order], w), mask)
    return y


def sparse_gradients(dy, values, rows, columns, w, mask):
    """The gradient of values, (n,), and that of w, of the very mask of `sparse_product`."""
    _check_listed(rows, columns, w, mask)
    order = np.argsort(columns, kind="stable")
    sorted_dvalues, dw = np.empty(len(values), w.dtype), _zeros(w.shape, w.dtype)
    operands = (values[order], rows[order], columns[order], w, dy)
    kernel = sparse_backward if isinstance(mask, Decisions) else sparse_backward_of_entries
    _in_groups(kernel, columns[order], (sorted_dvalues, dw), operands, mask)
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
    whole = [np.ascontiguousarray(operand) for operand in operands]
    _in_threads(kernel, itertools.pairwise(edges), (*results, *whole, _own(mask)))


@_compiled
def sparse_forward(start, stop, y, values, rows, columns, w, mask):
    """Add the entries `start` ... `stop` to y."""
    halves, last, out = _halves(mask, u32(0)), _last(mask.threshold), _shifted_array(mask.out)
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
    halves, last, out = _halves(mask, u32(0)), _last(mask.threshold), _shifted_array(mask.out)
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


# Of any other noise: entries are made by its program, block by block, from a buffer of words. A group is the rows of
# outputs that are made at a time.


@_compiled
def forward_of_entries(start, stop, y, x, w, mask):
    """As `forward`."""
    inputs, outputs = w.shape
    group = _group(outputs)
    code, registers, words, halves, keys, out = _begun(mask, group)
    made, masked = np.empty((group, outputs), np.float32), np.empty((_DEPTH, outputs), w.dtype)
    time, sample, in_ = mask.time, mask.sample, mask.in_
    tile = group * (_TILE // (outputs * group) + 1)
    for begin in range(0, inputs, tile):
        end = min(begin + tile, inputs)
        for r in range(start, stop):
            for left in range(begin, end, group):
                count = min(left + group, end) - left
                for lane in range(len(halves)):
                    half = halves[lane, 0], halves[lane, 1]
                    for n in range(count):
                        _make_key(keys, n, half, time[r], sample[r], in_[left + n])
                    _make_words(words, lane, count, keys, out)
                _make_entries(made, 0, count, code, registers, words)
                if x.shape[1] == 1:
                    for n in range(count):
                        i, x_value = left + n, x[r, 0, left + n]
                        for o in range(outputs):
                            y[r, 0, o] += x_value * (w[i, o] * made[n, o])
                    continue
                for n in range(0, count, _DEPTH):
                    depth = min(_DEPTH, count - n)
                    for d in range(depth):
                        for o in range(outputs):
                            masked[d, o] = w[left + n + d, o] * made[n + d, o]
                    _add_products(y[r], x[r, :, left + n : left + n + depth], masked)


@_compiled
def backward_of_entries(start, stop, dx, dw, dy, x, w, mask):
    """As `backward`."""
    rows, positions, outputs = dy.shape
    group = _group(outputs)
    code, registers, words, halves, keys, out = _begun(mask, group)
    made, scratch = np.empty((group, outputs), np.float32), np.empty((2, outputs), w.dtype)
    time, sample, in_ = mask.time, mask.sample, mask.in_
    tile = min(rows, _TILE // max(1, positions * outputs) + 1)
    x_columns, dx_columns = np.empty((2, tile, positions, _COLUMNS), w.dtype)
    for begin in range(0, rows, tile):
        end = min(begin + tile, rows)
        for left in range(start, stop, _COLUMNS):
            right = min(left + _COLUMNS, stop)
            _take_columns(x_columns, x[begin:end, :, left:right])
            for i in range(left, right):
                for top in range(begin, end, group):
                    count = min(top + group, end) - top
                    for lane in range(len(halves)):
                        half = halves[lane, 0], halves[lane, 1]
                        for n in range(count):
                            _make_key(keys, n, half, time[top + n], sample[top + n], in_[i])
                        _make_words(words, lane, count, keys, out)
                    _make_entries(made, 0, count, code, registers, words)
                    for n in range(count):
                        r, row, column = top + n, top + n - begin, i - left
                        if positions == 1:
                            x_value, dx_value = x_columns[row, 0, column], w.dtype.type(0)
                            for o in range(outputs):
                                masked = dy[r, 0, o] * made[n, o]
                                dx_value += masked * w[i, o]
                                dw[i, o] += masked * x_value
                            dx_columns[row, 0, column] = dx_value
                        else:
                            dx_row, x_row = dx_columns[row, :, column], x_columns[row, :, column]
                            _add_of_positions(dx_row, dw[i], dy[r], x_row, w[i], made[n], scratch)
            _put_columns(dx[begin:end, :, left:right], dx_columns, w.dtype.type(1))


@_compiled
def sparse_forward_of_entries(start, stop, y, values, rows, columns, w, mask):
    """As `sparse_forward`."""
    outputs, time, sample, in_ = w.shape[1], mask.time, mask.sample, mask.in_
    group = _group(outputs)
    code, registers, words, halves, keys, out = _begun(mask, group)
    made = np.empty((group, outputs), np.float32)
    for begin in range(start, stop, group):
        count = min(begin + group, stop) - begin
        for lane in range(len(halves)):
            half = halves[lane, 0], halves[lane, 1]
            for n in range(count):
                r, i = rows[begin + n], columns[begin + n]
                _make_key(keys, n, half, time[r], sample[r], in_[i])
            _make_words(words, lane, count, keys, out)
        _make_entries(made, 0, count, code, registers, words)
        for n in range(count):
            r, i, value = rows[begin + n], columns[begin + n], values[begin + n]
            for o in range(outputs):
                y[r, o] += value * (w[i, o] * made[n, o])


@_compiled
def sparse_backward_of_entries(start, stop, dvalues, dw, values, rows, columns, w, dy, mask):
    """As `sparse_backward`."""
    outputs, time, sample, in_ = w.shape[1], mask.time, mask.sample, mask.in_
    group = _group(outputs)
    code, registers, words, halves, keys, out = _begun(mask, group)
    made = np.empty((group, outputs), np.float32)
    for begin in range(start, stop, group):
        count = min(begin + group, stop) - begin
        for lane in range(len(halves)):
            half = halves[lane, 0], halves[lane, 1]
            for n in range(count):
                r, i = rows[begin + n], columns[begin + n]
                _make_key(keys, n, half, time[r], sample[r], in_[i])
            _make_words(words, lane, count, keys, out)
        _make_entries(made, 0, count, code, registers, words)
        for n in range(count):
            r, i, value, total = rows[begin + n], columns[begin + n], values[begin + n], w.dtype.type(0)
            for o in range(outputs):
                masked = dy[r, o] * made[n, o]
                total += masked * w[i, o]
                dw[i, o] += masked * value
            dvalues[begin + n] = total


def entries(mask):
    """The mask itself, (r, i, o), float32, of any noise's `Entries`."""
    rows, inputs, outputs = len(mask.time), len(mask.in_), len(mask.out)
    filled = _zeros((rows, inputs, outputs), np.dtype(np.float32))
    if filled.size:
        flat = filled.reshape(-1, outputs)
        _in_spans(_fill_lines, len(flat), (flat,), (), mask, flat.size <= FEW)
    return filled


def _fill_lines(start, stop, lines, mask):
    fill(start, stop, lines[start:stop], mask)


@_compiled
def fill(start, stop, filled, mask):
    """Fill an array with the lines `start` ... `stop` of the mask (r * i, o)."""
    inputs, group = len(mask.in_), _group(len(mask.out))
    code, registers, words, halves, keys, out = _begun(mask, group)
    time, sample, in_ = mask.time, mask.sample, mask.in_
    for begin in range(start, stop, group):
        count = min(begin + group, stop) - begin
        for lane in range(len(halves)):
            half = halves[lane, 0], halves[lane, 1]
            for n in range(count):
                r, i = divmod(begin + n, inputs)
                _make_key(keys, n, half, time[r], sample[r], in_[i])
            _make_words(words, lane, count, keys, out)
        _make_entries(filled, begin - start, count, code, registers, words)


@_inlined
def _group(outputs):
    return max(_DEPTH, _BLOCK // outputs // _DEPTH * _DEPTH)


@_inlined
def _begun(mask, group):
    """What makes entries: the program, its registers (n, entry), words (lane, entry), and what keys are made of."""
    lanes, count, common = mask.code[0, 0], mask.code[0, 1], mask.code[0, 2]
    registers = np.empty((count, _BLOCK), np.float32)
    for n in range(len(mask.numbers)):
        registers[n] = mask.numbers[n]
    halves, words = np.empty((lanes, 2), u32), np.zeros((lanes, group * len(mask.out)), u32)
    for lane in range(lanes):
        halves[lane, 0], halves[lane, 1] = _halves(mask, u32(lane))
    # numba would compile once more for a literal
    _run(mask.code, np.int64(1), np.int64(1 + common), registers, words, np.int64(0), np.int64(_BLOCK))
    return mask.code, registers, words, halves, np.empty((2, group), u32), _shifted_array(mask.out)


@_inlined
def _make_key(keys, n, half, time, sample, in_):
    """The key of the n-th row of outputs."""
    keys[0, n], keys[1, n] = _row_key(half, time, sample, in_)


@_inlined
def _make_words(words, lane, count, keys, out):
    """The words of rows of outputs from their keys; out is shifted."""
    for n in range(count):
        first, second = keys[0, n], keys[1, n]
        for o in range(len(out)):
            words[lane, n * len(out) + o] = _finish(u32(out[o] ^ first), second)


@_inlined
def _make_entries(made, first, count, code, registers, words):
    """`count` rows of `made` (row, out), from words."""
    outputs, size = made.shape[1], count * made.shape[1]
    for begin in range(0, size, _BLOCK):
        n = min(_BLOCK, size - begin)
        _run(code, np.int64(1 + code[0, 2]), len(code), registers, words, begin, np.int64(n))
        _take(made, first * outputs + begin, registers, code[0, 3], n)


@_inlined
def _take(made, begin, registers, result, n):
    flat = made.reshape(-1)
    for k in range(n):
        flat[begin + k] = registers[result, k]


@intrinsic
def _bits(typing_context, number):
    """A float32 number as int32, or the other way round, of equal bits."""
    to = types.int32 if number == types.float32 else types.float32

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(to))

    return to(number), generate


# of float32 numbers: it may fuse multiplications with additions, and has to be inside of a loop that fills vectors
_scalar = numba.njit(error_model="numpy", fastmath={"contract"}, forceinline=True)
f32 = np.float32


@_scalar
def _erfinv(x):
    """By the polynomials of Giles, Approximating the erfinv function (2012), and a logarithm that vectors have."""
    product = (f32(1) - x) * (f32(1) + x)
    power = (_bits(product) - np.int32(0x3F3504F3)) >> np.int32(23)  # leaves a number from sqrt(1/2) to sqrt(2)
    less = _bits(np.int32(_bits(product) - (power << np.int32(23)))) - f32(1)
    s = less / (less + f32(2))
    z = s * s
    log = f32(power) * f32(math.log(2)) + s * (f32(2) + z * (f32(2 / 3) + z * (f32(2 / 5) + z * f32(2 / 7))))
    inside = x * (_middle(-log) if log > f32(-5) else _tail(-log))
    return inside if abs(x) < f32(1) else (x * f32(np.inf) if abs(x) == f32(1) else f32(np.nan))


@_scalar
def _middle(w):
    w -= f32(2.5)
    p = f32(3.43273939e-07) + f32(2.81022636e-08) * w
    p = f32(-3.5233877e-06) + p * w
    p = f32(-4.39150654e-06) + p * w
    p = f32(0.00021858087) + p * w
    p = f32(-0.00125372503) + p * w
    p = f32(-0.00417768164) + p * w
    p = f32(0.246640727) + p * w
    return f32(1.50140941) + p * w


@_scalar
def _tail(w):
    w = np.sqrt(max(w, f32(0))) - f32(3)
    p = f32(0.000100950558) + f32(-0.000200214257) * w
    p = f32(0.00134934322) + p * w
    p = f32(-0.00367342844) + p * w
    p = f32(0.00573950773) + p * w
    p = f32(-0.0076224613) + p * w
    p = f32(0.00943887047) + p * w
    p = f32(1.00167406) + p * w
    return f32(2.83297682) + p * w


(
    _UNIFORM, _BITS24,
    _NEGATIVE, _ABS, _SQRT, _EXP, _EXPM1, _LOG, _LOG1P, _SIN, _COS,
    _TAN, _ASIN, _ACOS, _ATAN, _TANH, _FLOOR, _SIGN, _ERF, _ERFINV,
    _ADD, _SUBTRACT, _MULTIPLY, _DIVIDE, _POW, _MINIMUM,
    _MAXIMUM, _LESS, _LESS_EQUAL, _EQUAL,
    _WHERE,
) = range(len(programs.STEPS))  # fmt: skip


@functools.partial(kept_on_disk, functools.partial(numba.njit, error_model="numpy"))
def _run(code, start, stop, registers, words, begin, n):
    """Carry out the lines `start` ... `stop` of code on n entries, of which the words begin there."""
    # a row of an array as an array of its own would be counted, by an atomic operation
    for line in range(start, stop):
        step, to, a, b, c = code[line, 0], code[line, 1], code[line, 2], code[line, 3], code[line, 4]
        if step == _UNIFORM:
            for k in range(n):
                registers[to, k] = (f32(np.int32(words[a, begin + k] >> u32(9))) + f32(0.5)) * f32(2**-23)
        elif step == _BITS24:
            for k in range(n):
                registers[to, k] = f32(np.int32(words[a, begin + k] >> u32(8)))
        elif step < _ADD:
            _of_one(step, registers, to, a, n)
        elif step < _WHERE:
            _of_two(step, registers, to, a, b, n)
        else:
            for k in range(n):
                true, false = registers[b, k], registers[c, k]  # both, so that it fills vectors
                registers[to, k] = true if registers[a, k] != f32(0) else false


@_inlined
def _of_one(step, registers, to, a, n):
    if step == _NEGATIVE:
        _each(operator.neg, registers, to, a, n)
    elif step == _ABS:
        _each(abs, registers, to, a, n)
    elif step == _SQRT:
        _each(np.sqrt, registers, to, a, n)
    elif step == _EXP:
        _each(np.exp, registers, to, a, n)
    elif step == _EXPM1:
        _each(np.expm1, registers, to, a, n)
    elif step == _LOG:
        _each(np.log, registers, to, a, n)
    elif step == _LOG1P:
        _each(np.log1p, registers, to, a, n)
    elif step == _SIN:
        _each(np.sin, registers, to, a, n)
    elif step == _COS:
        _each(np.cos, registers, to, a, n)
    elif step == _TAN:
        _each(np.tan, registers, to, a, n)
    elif step == _ASIN:
        _each(np.arcsin, registers, to, a, n)
    elif step == _ACOS:
        _each(np.arccos, registers, to, a, n)
    elif step == _ATAN:
        _each(np.arctan, registers, to, a, n)
    elif step == _TANH:
        _each(np.tanh, registers, to, a, n)
    elif step == _FLOOR:
        _each(np.floor, registers, to, a, n)
    elif step == _SIGN:
        _each(np.sign, registers, to, a, n)
    elif step == _ERF:
        _each(math.erf, registers, to, a, n)
    elif step == _ERFINV:
        _each(_erfinv, registers, to, a, n)


@_inlined
def _each(function, registers, to, a, n):
    for k in range(n):
        registers[to, k] = function(registers[a, k])


@_inlined
def _of_two(step, registers, to, a, b, n):
    if step == _ADD:
        _each_two(operator.add, registers, to, a, b, n)
    elif step == _SUBTRACT:
        _each_two(operator.sub, registers, to, a, b, n)
    elif step == _MULTIPLY:
        _each_two(operator.mul, registers, to, a, b, n)
    elif step == _DIVIDE:
        _each_two(operator.truediv, registers, to, a, b, n)
    elif step == _POW:
        _each_two(operator.pow, registers, to, a, b, n)
    elif step == _MINIMUM:
        _each_two(np.minimum, registers, to, a, b, n)
    elif step == _MAXIMUM:
        _each_two(np.maximum, registers, to, a, b, n)
    elif step == _LESS:
        _each_two(operator.lt, registers, to, a, b, n)
    elif step == _LESS_EQUAL:
        _each_two(operator.le, registers, to, a, b, n)
    elif step == _EQUAL:
        _each_two(operator.eq, registers, to, a, b, n)


@_inlined
def _each_two(function, registers, to, a, b, n):
    for k in range(n):
        registers[to, k] = function(registers[a, k], registers[b, k])

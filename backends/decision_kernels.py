"""The masked product of decisions on a CPU, compiled by numba: words, decisions and sums stay in registers.

`cpu_kernels.py` calls these on spans of rows or inputs. Operands are arrays: x (r, t, i), w (i, o), dy (r, t, o) of one
floating dtype, and the mask's `Decisions`, whose words are uint32. What is dropped is 0 times something, which is NaN
if that is NaN or infinite, as in all other ways.
"""

import functools
import inspect
import pathlib
import zlib

import numba
import numpy as np

from pernodedrop import generator, noise
from pernodedrop.backends import bit_kernels, methods, vectors
from pernodedrop.backends.methods import GROUP
from pernodedrop.backends.vectors import PART, inlined
from pernodedrop.noise import LEVELS

_GOLDEN = np.uint32(generator.GOLDEN)
_FIRST, _SECOND, _THIRD = (np.uint32(m) for m in generator.MULTIPLIERS)
TILE = 2**16
"""Numbers of w or dy that are used for one row after another: 256 KiB, which a core's cache holds."""

COLUMNS = 16
"""Inputs whose x and dx are moved together: a line of the cache, of float32."""

DEPTH = 8
"""Inputs of which a masked kernel is added up at a time, where positions share it."""

ROWS = 128
"""Rows of dy of which a block of outputs is in the nearest cache, where gradients are made of bits."""

u32 = np.uint32  # numba would make uint64 of every result


def kept_on_disk(decorator, function, *modules):
    """Compiled by a decorator of numba that takes `cache`, which only works where a folder can be written.

    numba knows what it keeps by its name and its own file, so the name says of what other modules it is made.
    """
    function.__qualname__ += f"_{_checksum(modules):08x}"
    try:
        return decorator(cache=True)(function)
    except (RuntimeError, OSError):  # no folder can be written, or the disk is full
        return decorator()(function)


@functools.cache
def _checksum(modules):
    return zlib.crc32(b"".join(pathlib.Path(inspect.getfile(module)).read_bytes() for module in modules))


SOURCES = generator, methods, noise, vectors, bit_kernels
"""The modules of which every kernel is made."""


def compiled(function, modules=()):
    """A kernel that is made of others' sources too, which leaves Python to other threads."""
    # sums may change their order, but NaN and infinity are computed with
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"nsz", "contract", "reassoc"}}
    return kept_on_disk(functools.partial(numba.njit, **options), function, *SOURCES, *modules)


@inlined
def shifted(x):
    """The first shift of triple32, which is linear: shifted(a ^ b) == shifted(a) ^ shifted(b)."""
    x = u32(x)
    return u32(x ^ (x >> u32(17)))


@inlined
def all_shifted(words, size):
    """`shifted` of an array, with zeros behind up to a size."""
    result = np.zeros(size, u32)
    for n in range(len(words)):
        result[n] = shifted(words[n])
    return result


@inlined
def finished(x, key):
    """`generator._triple32_keyed` after its first shift."""
    x = u32(x * _FIRST)
    x = u32(x ^ (x >> u32(11)) ^ key)
    x = u32(x * _SECOND)
    x = u32(x ^ (x >> u32(15)))
    x = u32(x * _THIRD)
    return u32(x ^ (x >> u32(14)))


@inlined
def _mix(x):
    return finished(shifted(x), u32(0))


@inlined
def halves_of_keys(seed, call, lane):
    """What the two halves of all row keys of a lane have in common."""
    return _mix(lane + _mix(call + _mix(seed))), _mix(lane ^ _mix(call ^ _mix(seed ^ _GOLDEN)))


@inlined
def key_of_row(halves, time, sample, in_):
    """`generator.row_key` at one coordinate, its first half shifted."""
    first = shifted(_mix(in_ + _mix(sample + _mix(time + halves[0]))))
    return first, _mix(u32(sample * _GOLDEN) ^ _mix(in_ + _mix(time ^ halves[1])))


@inlined
def _kept(out, row_key, last):
    """Whether an entry is kept; out is shifted."""
    return finished(u32(out ^ row_key[0]), row_key[1]) <= last


@inlined
def _last(threshold):
    """The last word that is kept: word >> 8 < T just when word <= 256 * T - 1, the very last word from T = 2**24."""
    return u32((min(max(threshold, 1), LEVELS) << 8) - 1)


@compiled
def forward(start, stop, y, bits, x, w, mask):
    """Fill the rows `start` ... `stop` of y, which are zero before, and of bits, of which there may be none."""
    inputs, outputs = w.shape
    halves, last, masked = (
        halves_of_keys(mask.seed, mask.call, u32(0)),
        _last(mask.threshold),
        np.empty((DEPTH, outputs), w.dtype),
    )
    time, sample, in_, out = mask.time, mask.sample, mask.in_, all_shifted(mask.out, outputs)
    tile = min(inputs, (TILE // outputs // GROUP + 1) * GROUP)
    first, second = np.empty(tile, u32), np.empty(tile, u32)
    flat, rows, size = bits.reshape(-1), bits.shape[2], bits.size // max(1, bits.shape[0])
    coarse = bit_kernels.is_coarse(last)
    for begin in range(0, inputs, tile):
        end = min(begin + tile, inputs)
        finite = x.shape[1] == 1 and bit_kernels.are_finite(w, begin * outputs, end * outputs)
        for r in range(start, stop):
            fast = finite and bit_kernels.are_finite(x, r * inputs + begin, r * inputs + end)
            for i in range(begin, end):
                first[i - begin], second[i - begin] = key_of_row(halves, time[r], sample[r], in_[i])
            if fast and coarse:
                bit_kernels.add_row(r, begin, end, y, flat, size, rows, x, w, out, first, second, last, True)
            elif fast:
                bit_kernels.add_row(r, begin, end, y, flat, size, rows, x, w, out, first, second, last, False)
            elif x.shape[1] == 1:  # else the mask would go through memory for a single use
                for i in range(begin, end):
                    _forward_row(r, i, y, x, w, out, (first[i - begin], second[i - begin]), last)
                for left in range(begin, end if size else begin, GROUP):
                    right, at = min(left + GROUP, end), bit_kernels.place(left, r, rows)
                    keys = first[left - begin : right - begin], second[left - begin : right - begin]
                    bit_kernels.decide(flat, size, at, 1, right - left, out, keys[0], keys[1], last)
            else:
                for left in range(begin, end, DEPTH):
                    right = min(left + DEPTH, end)
                    for i in range(left, right):
                        _mask_row(masked[i - left], w[i], out, (first[i - begin], second[i - begin]), last)
                    add_products(y[r], x[r, :, left:right], masked)
    _multiply(y, start, stop, _scale(mask.threshold, y.dtype))


@inlined
def _multiply(y, start, stop, scale):
    for r in range(start, stop):  # of an array at once numba compiles three seconds longer, for its errors' texts
        for t in range(y.shape[1]):
            for o in range(y.shape[2]):
                y[r, t, o] *= scale


@inlined
def _forward_row(r, i, y, x, w, out, row_key, last):
    x_value, x_dropped = x[r, 0, i], x[r, 0, i] * w.dtype.type(0)
    for o in range(w.shape[1]):
        y[r, 0, o] += (x_value if _kept(out[o], row_key, last) else x_dropped) * w[i, o]


@inlined
def _mask_row(masked, w, out, row_key, last):
    zero = w.dtype.type(0)
    for o in range(len(w)):
        masked[o] = w[o] if _kept(out[o], row_key, last) else w[o] * zero


@inlined
def add_products(y, x, masked):
    """y (t, o) += x (t, i) @ masked (i, o): of all inputs at a time, so that y is read and written once for them."""
    if x.shape[1] < DEPTH:
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


@compiled
def backward(start, stop, dx, dw, dy, x, w, bits, origin, mask):
    """Fill the inputs `start` ... `stop` of dx, and of dw, which is zero.

    `bits` are those of `forward`, of inputs of which the first one here is the one at `origin`, and `origin + start` is
    a multiple of GROUP; where there are none, they are made again.
    """
    rows, positions, outputs = dy.shape
    halves, last, scratch = (
        halves_of_keys(mask.seed, mask.call, u32(0)),
        _last(mask.threshold),
        np.empty((3, outputs), w.dtype),
    )
    time, sample, in_, out = mask.time, mask.sample, mask.in_, all_shifted(mask.out, outputs)
    scale, alone, kept = _scale(mask.threshold, w.dtype), positions == 1, bits.size > 0
    tile = min(rows, TILE // max(1, positions * outputs) + 1, ROWS if alone else rows)
    first, second = np.empty(tile, u32), np.empty(tile, u32)
    # a step from row to row passes a whole row of x, so some columns are copied out, and those of dx back
    columns = tile, positions, COLUMNS
    x_columns, dx_columns = np.empty(columns, w.dtype), np.empty(columns, w.dtype)
    blocks, sums = np.empty(tile * outputs if alone else 0, w.dtype), np.empty(2 * tile * PART, w.dtype)
    flat = bits.reshape(-1) if kept else np.empty(outputs * COLUMNS * tile // 8 if alone else 0, np.uint8)
    size, bit_rows = (bits.size // len(bits), rows) if kept else (COLUMNS * tile, tile)
    for begin in range(0, rows, tile):
        end = min(begin + tile, rows)
        finite = alone and bit_kernels.are_finite(dy, begin * outputs, end * outputs)
        if finite:
            bit_kernels.in_blocks(blocks, dy[begin:end])
        for left in range(start, stop, COLUMNS):
            right = min(left + COLUMNS, stop)
            take_columns(x_columns, x[begin:end, :, left:right])
            fast = finite and bit_kernels.are_finite(w, left * outputs, right * outputs)
            fast = fast and bit_kernels.are_finite(x_columns, 0, (end - begin) * COLUMNS)
            for i in range(left, left if fast and kept else right):
                for r in range(begin, end):
                    first[r - begin], second[r - begin] = key_of_row(halves, time[r], sample[r], in_[i])
                if fast:
                    at = bit_kernels.place(i - left, 0, tile)
                    bit_kernels.decide(flat, size, at, GROUP, end - begin, out, first, second, last)
                    continue
                for r in range(begin, end):
                    row_key, at = (first[r - begin], second[r - begin]), (r - begin, i - left)
                    _backward_row(r, i, at, dx_columns, dw, dy, x_columns, w, scratch, out, row_key, last)
            if fast:
                at = bit_kernels.place(origin + left, begin, rows) if kept else 0
                bit_kernels.add_gradients(
                    left, right, end - begin, dx_columns, dw, blocks, x_columns, w, flat, size, at, bit_rows, sums
                )
            put_columns(dx[begin:end, :, left:right], dx_columns, scale)
    _multiply(dw.reshape((len(dw), 1, outputs)), start, stop, scale)


@inlined
def take_columns(columns, x):
    """Copy some columns of x (r, t, i), and zeros behind."""
    for r in range(x.shape[0]):
        for t in range(x.shape[1]):
            for i in range(x.shape[2]):
                columns[r, t, i] = x[r, t, i]
            for i in range(x.shape[2], columns.shape[2]):
                columns[r, t, i] = 0


@inlined
def put_columns(x, columns, scale):
    """Copy columns back, times a number."""
    for r in range(x.shape[0]):
        for t in range(x.shape[1]):
            for i in range(x.shape[2]):
                x[r, t, i] = columns[r, t, i] * scale


@inlined
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
    add_of_positions(dx[row, :, column], dw[i], dy[r], x[row, :, column], w[i], kept, scratch)


@inlined
def add_of_positions(dx, dw, dy, x, w, mask, scratch):
    """Fill dx (t,) and add to dw (o,) of one row and input, whose positions share the mask (o,)."""
    masked, sums = scratch[0], scratch[1]
    for o in range(len(w)):
        masked[o] = w[o] * mask[o]
        sums[o] = w.dtype.type(0)
    _add_gradients(dx, sums, dy, x, masked)
    for o in range(len(w)):
        dw[o] += mask[o] * sums[o]


@inlined
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


@inlined
def _scale(threshold, dtype):
    """What a kept entry is; 0 where T says that none is kept, which no noise says by itself."""
    return dtype.type(np.float32(LEVELS) / np.float32(threshold)) if threshold > 0 else dtype.type(0)


@compiled
def sparse_forward(start, stop, y, values, rows, columns, w, mask):
    """Add the entries `start` ... `stop` to y."""
    halves, last = halves_of_keys(mask.seed, mask.call, u32(0)), _last(mask.threshold)
    out = all_shifted(mask.out, len(mask.out))
    scale, zero = _scale(mask.threshold, w.dtype), w.dtype.type(0)
    for n in range(start, stop):
        r, i = rows[n], columns[n]
        row_key = key_of_row(halves, mask.time[r], mask.sample[r], mask.in_[i])
        value, dropped, y_row, w_row = values[n] * scale, values[n] * zero, y[r], w[i]
        for o in range(len(out)):
            y_row[o] += (value if _kept(out[o], row_key, last) else dropped) * w_row[o]


@compiled
def sparse_backward(start, stop, dvalues, dw, values, rows, columns, w, dy, mask):
    """Fill the entries `start` ... `stop` of dvalues, and add them to dw."""
    halves, last = halves_of_keys(mask.seed, mask.call, u32(0)), _last(mask.threshold)
    out = all_shifted(mask.out, len(mask.out))
    scale, zero = _scale(mask.threshold, w.dtype), w.dtype.type(0)
    for n in range(start, stop):
        r, i = rows[n], columns[n]
        row_key = key_of_row(halves, mask.time[r], mask.sample[r], mask.in_[i])
        value, total, dy_row, w_row, dw_row = values[n] * scale, zero, dy[r], w[i], dw[i]
        for o in range(len(out)):
            masked = dy_row[o] if _kept(out[o], row_key, last) else dy_row[o] * zero
            total += masked * w_row[o]
            dw_row[o] += masked * value
        dvalues[n] = total * scale

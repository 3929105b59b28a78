"""The masked product of any noise's entries on a CPU, compiled by numba: an interpreter of programs, and its products.

The entries of some rows of outputs are made at a time, step by step, and stay in a core's cache. The interpreter is
machine code of its own, compiled once, which the products call by its name: numba would compile it into each of them.
"""

import functools
import math
import operator

import llvmlite.binding
import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from pernodedrop.backends import decision_kernels, programs
from pernodedrop.backends.decision_kernels import (
    COLUMNS,
    DEPTH,
    TILE,
    add_of_positions,
    add_products,
    all_shifted,
    finished,
    halves_of_keys,
    kept_on_disk,
    key_of_row,
    put_columns,
    take_columns,
)
from pernodedrop.backends.vectors import inlined

_BLOCK = 512  # entries that a step makes at a time: a register is 2 KiB
_GROUP = 4096  # entries that are made in one call, or DEPTH rows of outputs if these are more

u32, f32 = np.uint32, np.float32
_compiled = functools.partial(decision_kernels.compiled, modules=(decision_kernels, programs))

# A step, for a block of entries.


@intrinsic
def _bits(typing_context, number):
    """A float32 number as int32, or the other way round, of equal bits."""
    to = types.int32 if number == types.float32 else types.float32

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(to))

    return to(number), generate


# of float32 numbers: it may fuse multiplications with additions, and has to be inside of a loop that fills vectors
_scalar = numba.njit(error_model="numpy", fastmath={"contract"}, forceinline=True)


@_scalar
def _exp(x):
    """2**power times the series of a number from -log(2) / 2 to log(2) / 2."""
    bounded = min(max(x, f32(-104)), f32(89))  # beyond there is 0 or infinity
    power = np.floor(bounded * f32(1 / math.log(2)) + f32(0.5))
    # log(2) in two parts, the first of which, 355 / 512, is exact when multiplied
    r = (bounded - power * f32(355 / 512)) - power * f32(math.log(2) - 355 / 512)
    p = f32(1 / 720) + r * f32(1 / 5040)
    p = f32(1 / 24) + r * (f32(1 / 120) + r * p)
    p = f32(1) + r * (f32(1) + r * (f32(1 / 2) + r * (f32(1 / 6) + r * p)))
    whole = np.int32(power)
    half = whole >> np.int32(1)  # of which 2**half is a normal number
    result = p * _power_of_2(half) * _power_of_2(np.int32(whole - half))
    return result if x == x else x


@_scalar
def _expm1(x):
    p = f32(1 / 720) + x * (f32(1 / 5040) + x * f32(1 / 40320))
    near = x + x * x * (f32(1 / 2) + x * (f32(1 / 6) + x * (f32(1 / 24) + x * (f32(1 / 120) + x * p))))
    return near if abs(x) < f32(0.5) else _exp(x) - f32(1)


@_scalar
def _tanh(x):
    size, square = abs(x), x * x
    e = _exp(f32(-2) * size)
    p = f32(-17 / 315) + square * (f32(62 / 2835) - square * f32(1382 / 155925))
    near = size + size * square * (f32(-1 / 3) + square * (f32(2 / 15) + square * p))
    result = near if size < f32(0.3) else (f32(1) - e) / (f32(1) + e)
    return -result if x < f32(0) else result


@_scalar
def _power_of_2(n):
    return _bits(np.int32((n + np.int32(127)) << np.int32(23)))


@_scalar
def _log(x):
    tiny = x < f32(2**-126)
    log = _log_of_normal(x * f32(2**23) if tiny else x) - (f32(23 * math.log(2)) if tiny else f32(0))
    log = x if x == f32(np.inf) else log
    log = f32(-np.inf) if x == f32(0) else log
    return log if x >= f32(0) else f32(np.nan)


@_scalar
def _log_of_normal(x):
    """The logarithm of a normal number by that of its fraction, as the series of 2 artanh((x - 1) / (x + 1))."""
    power = (_bits(x) - np.int32(0x3F3504F3)) >> np.int32(23)  # leaves a number from sqrt(1/2) to sqrt(2)
    less = _bits(np.int32(_bits(x) - (power << np.int32(23)))) - f32(1)
    s = less / (less + f32(2))
    z = s * s
    series = f32(2) + z * (f32(2 / 3) + z * (f32(2 / 5) + z * (f32(2 / 7) + z * f32(2 / 9))))
    return f32(power) * f32(math.log(2)) + s * series


@_scalar
def _log1p(x):
    y = f32(1) + x
    log = _log(y) * (x / (y - f32(1)))  # what was rounded off weighs as much in both
    log = x if y == f32(1) else log
    return x if x == f32(np.inf) else log


@_scalar
def _erfinv(x):
    """By the polynomials of Giles, Approximating the erfinv function (2012)."""
    log = _log_of_normal((f32(1) - x) * (f32(1) + x))
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


@inlined
def _of_one(step, registers, to, a, n):
    if step == _NEGATIVE:
        _each(operator.neg, registers, to, a, n)
    elif step == _ABS:
        _each(abs, registers, to, a, n)
    elif step == _SQRT:
        _each(np.sqrt, registers, to, a, n)
    elif step == _EXP:
        _each(_exp, registers, to, a, n)
    elif step == _EXPM1:
        _each(_expm1, registers, to, a, n)
    elif step == _LOG:
        _each(_log, registers, to, a, n)
    elif step == _LOG1P:
        _each(_log1p, registers, to, a, n)
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
        _each(_tanh, registers, to, a, n)
    elif step == _FLOOR:
        _each(np.floor, registers, to, a, n)
    elif step == _SIGN:
        _each(np.sign, registers, to, a, n)
    elif step == _ERF:
        _each(math.erf, registers, to, a, n)
    elif step == _ERFINV:
        _each(_erfinv, registers, to, a, n)


@inlined
def _each(function, registers, to, a, n):
    for k in range(n):
        registers[to, k] = function(registers[a, k])


@inlined
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


@inlined
def _each_two(function, registers, to, a, b, n):
    for k in range(n):
        registers[to, k] = function(registers[a, k], registers[b, k])


@inlined
def _run(code, start, stop, registers, words, begin, n):
    """Carry out the lines `start` ... `stop` of code on n entries, whose words (lane, entry) begin there."""
    # a row of registers as an array of its own would be counted, by an atomic operation
    for at in range(start, stop):
        step, to, a, b, c = code[at, 0], code[at, 1], code[at, 2], code[at, 3], code[at, 4]
        if step == _UNIFORM:
            line = words[a, begin : begin + n]
            for k in range(n):
                registers[to, k] = (f32(np.int32(line[k] >> u32(9))) + f32(0.5)) * f32(2**-23)
        elif step == _BITS24:
            line = words[a, begin : begin + n]
            for k in range(n):
                registers[to, k] = f32(np.int32(line[k] >> u32(8)))
        elif step < _ADD:
            _of_one(step, registers, to, a, n)
        elif step < _WHERE:
            _of_two(step, registers, to, a, b, n)
        else:
            for k in range(n):
                true, false = registers[b, k], registers[c, k]  # both, so that it fills vectors
                registers[to, k] = true if registers[a, k] != f32(0) else false


# The entries of rows of outputs.

_SIGNATURE = types.void(
    types.CPointer(types.int32), types.intp, types.CPointer(types.float32), types.intp, types.uint32, types.uint32,
    types.CPointer(types.uint32), types.intp, types.CPointer(types.uint32), types.intp,
    types.CPointer(types.float32), types.intp,
)  # fmt: skip


def _make(code, lines, numbers, known, seed, call, places, count, out, outputs, made, width):
    """Fill made (count, width) with the entries of rows of outputs at places (count, [time, sample, in]), and zeros."""
    code, numbers = numba.carray(code, (lines, 5)), numba.carray(numbers, known)
    places, out = numba.carray(places, (count, 3)), all_shifted(numba.carray(out, outputs), width)
    size = count * width
    made = numba.carray(made, size)
    lanes, common, result = code[0, 0], code[0, 2], code[0, 3]
    registers = np.empty((code[0, 1], _BLOCK), np.float32)
    for n in range(known):
        registers[n] = numbers[n]
    words = np.empty((lanes, count, width), u32)
    for lane in range(lanes):
        halves = halves_of_keys(seed, call, u32(lane))
        if width == 1:  # so that places fill vectors
            line = words[lane, :, 0]
            for n in range(count):
                first, second = key_of_row(halves, places[n, 0], places[n, 1], places[n, 2])
                line[n] = finished(u32(out[0] ^ first), second)
            continue
        for n in range(count):
            first, second = key_of_row(halves, places[n, 0], places[n, 1], places[n, 2])
            for o in range(width):
                words[lane, n, o] = finished(u32(out[o] ^ first), second)
    flat = words.reshape((len(words), size))
    for begin in range(-_BLOCK, size, _BLOCK):  # at first the steps that are the same for all entries
        if begin < 0:
            start, stop, n, left = 1, 1 + common, _BLOCK, 0
        else:
            start, stop, n, left = 1 + common, lines, min(_BLOCK, size - begin), begin
        _run(code, start, stop, registers, flat, left, n)
        if begin >= 0:
            block = made[left : left + n]
            for k in range(n):
                block[k] = registers[result, k]
    for n in range(count):
        for o in range(outputs, width):
            made[n * width + o] = f32(0)


_interpreter = kept_on_disk(
    functools.partial(numba.cfunc, _SIGNATURE, error_model="numpy"),
    _make,
    *(decision_kernels, programs, *decision_kernels.SOURCES),
)
llvmlite.binding.add_symbol("pernodedrop_entries", _interpreter.address)
_by_name = types.ExternalFunction("pernodedrop_entries", _SIGNATURE)


@inlined
def _make_entries(made, places, count, mask):
    """The first `count` rows of made, of places as of `_make`."""
    code, numbers, out = mask.code, mask.numbers, mask.out
    _by_name(
        code.ctypes, len(code), numbers.ctypes, len(numbers), mask.seed, mask.call,
        places.ctypes, count, out.ctypes, len(out), made.ctypes, made.shape[1],
    )  # fmt: skip


@inlined
def _group(outputs):
    """How many rows of outputs are made in one call."""
    return max(DEPTH, _GROUP // outputs // DEPTH * DEPTH)


@inlined
def _put(places, n, mask, r, i):
    places[n, 0], places[n, 1], places[n, 2] = mask.time[r], mask.sample[r], mask.in_[i]


# The products.


@_compiled
def forward(start, stop, y, x, w, mask):
    """As that of `decision_kernels`."""
    inputs, outputs = w.shape
    group = _group(outputs)
    places, made = np.empty((group, 3), u32), np.empty((group, outputs), np.float32)
    masked = np.empty((DEPTH, outputs), w.dtype)
    tile = group * (TILE // (outputs * group) + 1)
    for begin in range(0, inputs, tile):
        end = min(begin + tile, inputs)
        for r in range(start, stop):
            for left in range(begin, end, group):
                count = min(left + group, end) - left
                for n in range(count):
                    _put(places, n, mask, r, left + n)
                _make_entries(made, places, count, mask)
                if x.shape[1] == 1:
                    for n in range(count):
                        i, x_value = left + n, x[r, 0, left + n]
                        for o in range(outputs):
                            y[r, 0, o] += x_value * (w[i, o] * made[n, o])
                    continue
                for n in range(0, count, DEPTH):
                    depth = min(DEPTH, count - n)
                    for d in range(depth):
                        for o in range(outputs):
                            masked[d, o] = w[left + n + d, o] * made[n + d, o]
                    add_products(y[r], x[r, :, left + n : left + n + depth], masked)


@_compiled
def backward(start, stop, dx, dw, dy, x, w, mask):
    """As that of `decision_kernels`."""
    rows, positions, outputs = dy.shape
    group = _group(outputs)
    places, made = np.empty((group, 3), u32), np.empty((group, outputs), np.float32)
    scratch = np.empty((2, outputs), w.dtype)
    tile = min(rows, TILE // max(1, positions * outputs) + 1)
    x_columns, dx_columns = np.empty((2, tile, positions, COLUMNS), w.dtype)
    for begin in range(0, rows, tile):
        end = min(begin + tile, rows)
        for left in range(start, stop, COLUMNS):
            right = min(left + COLUMNS, stop)
            take_columns(x_columns, x[begin:end, :, left:right])
            for i in range(left, right):
                for top in range(begin, end, group):
                    count = min(top + group, end) - top
                    for n in range(count):
                        _put(places, n, mask, top + n, i)
                    _make_entries(made, places, count, mask)
                    for n in range(count):
                        r, at = top + n, (top + n - begin, i - left)
                        _backward_row(r, i, at, dx_columns, dw, dy, x_columns, w, made[n], scratch)
            put_columns(dx[begin:end, :, left:right], dx_columns, w.dtype.type(1))


@inlined
def _backward_row(r, i, at, dx, dw, dy, x, w, entries, scratch):
    row, column = at
    if x.shape[1] != 1:
        add_of_positions(dx[row, :, column], dw[i], dy[r], x[row, :, column], w[i], entries, scratch)
        return
    x_value, dx_value = x[row, 0, column], w.dtype.type(0)
    for o in range(w.shape[1]):
        masked = dy[r, 0, o] * entries[o]
        dx_value += masked * w[i, o]
        dw[i, o] += masked * x_value
    dx[row, 0, column] = dx_value


@_compiled
def sparse_forward(start, stop, y, values, rows, columns, w, mask):
    """As that of `decision_kernels`."""
    outputs = w.shape[1]
    group = _group(outputs)
    places, made = np.empty((group, 3), u32), np.empty((group, outputs), np.float32)
    for begin in range(start, stop, group):
        count = min(begin + group, stop) - begin
        for n in range(count):
            _put(places, n, mask, rows[begin + n], columns[begin + n])
        _make_entries(made, places, count, mask)
        for n in range(count):
            r, i, value = rows[begin + n], columns[begin + n], values[begin + n]
            for o in range(outputs):
                y[r, o] += value * (w[i, o] * made[n, o])


@_compiled
def sparse_backward(start, stop, dvalues, dw, values, rows, columns, w, dy, mask):
    """As that of `decision_kernels`."""
    outputs = w.shape[1]
    group = _group(outputs)
    places, made = np.empty((group, 3), u32), np.empty((group, outputs), np.float32)
    for begin in range(start, stop, group):
        count = min(begin + group, stop) - begin
        for n in range(count):
            _put(places, n, mask, rows[begin + n], columns[begin + n])
        _make_entries(made, places, count, mask)
        for n in range(count):
            r, i, value, total = rows[begin + n], columns[begin + n], values[begin + n], w.dtype.type(0)
            for o in range(outputs):
                masked = dy[r, o] * made[n, o]
                total += masked * w[i, o]
                dw[i, o] += masked * value
            dvalues[begin + n] = total


@_compiled
def fill(start, stop, filled, mask):
    """Fill an array with the lines `start` ... `stop` of the mask (r * i, o)."""
    inputs, group = len(mask.in_), _group(len(mask.out))
    places = np.empty((group, 3), u32)
    for begin in range(start, stop, group):
        count = min(begin + group, stop) - begin
        for n in range(count):
            r, i = divmod(begin + n, inputs)
            _put(places, n, mask, r, i)
        _make_entries(filled[begin - start :], places, count, mask)

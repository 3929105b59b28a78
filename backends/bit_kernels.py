"""Decisions as bits: a loop that makes them and adds up a product, and one that reads them and adds up its gradients.

Both take operands whose numbers are all finite, so that what is dropped adds nothing, and have what they add up in
registers; `decision_kernels.py` has the plain loops beside them, and calls these on tiles of rows and inputs.

Bits are bytes of the shape `methods.kept_shape`. Outputs are in blocks of `WIDE`, the last ones in blocks of `NARROW`,
and the bits of a block are those of (group of inputs, row, input in the group, output): so the rows that a product goes
through fill whole lines of the cache, and the groups of inputs that the gradients go through read them in order.
"""

import numpy as np

from pernodedrop import generator
from pernodedrop.backends import vectors
from pernodedrop.backends.methods import GROUP
from pernodedrop.backends.vectors import PART, inlined

_FIRST, _SECOND, _THIRD = (np.uint32(m) for m in generator.MULTIPLIERS)
WIDE, NARROW = 64, 16
u32 = np.uint32


@inlined
def place(i, row, rows):
    """The number of an input and a row among all those of a block of outputs."""
    return (i // GROUP * rows + row) * GROUP + i % GROUP


@inlined
def are_finite(numbers, start, stop):
    """Whether the numbers `start` ... `stop` of an array are finite: else what is dropped, 0 times them, may be NaN."""
    flat, zero = numbers.reshape(-1), numbers.dtype.type(0)
    middle, some, others = start + (stop - start) // PART * PART, vectors.zeros(flat, PART), zero
    for n in range(start, middle, PART):
        some = vectors.add_product(some, vectors.load(flat, n, PART), zero)
    for n in range(middle, stop):
        others += flat[n] * zero
    return vectors.sum_of(some) + others == zero


@inlined
def is_coarse(last):
    """Whether the lower 18 bits of a word do not matter, as at a rate of 1/2.

    Those are all that the generator's last step, x ^ x >> 14, may change where words are compared with `last`.
    """
    return last & u32(2**18 - 1) == u32(2**18 - 1)


@inlined
def _decided(out, first, second, last, coarse):
    """Which outputs of a row key are kept; out and the key's first half are shifted, as by `decision_kernels`."""
    x = vectors.times_words(vectors.xor(out, first), _FIRST)
    x = vectors.xor(vectors.xor(x, vectors.shift_right(x, u32(11))), second)
    x = vectors.times_words(x, _SECOND)
    x = vectors.xor(x, vectors.shift_right(x, u32(15)))
    x = vectors.times_words(x, _THIRD)
    if not coarse:
        x = vectors.xor(x, vectors.shift_right(x, u32(14)))
    return vectors.less_equal(x, last)


@inlined
def decide(bits, size, start, step, count, out, first, second, last):
    """Fill the bits of `count` row keys, at places from `start` on, for blocks of `size` bytes for 8 outputs."""
    wide = len(out) // WIDE * WIDE
    for o in range(0, wide, WIDE):
        _decide_block(bits, o // 8 * size, start, step, count, vectors.load(out, o, WIDE), first, second, last, WIDE)
    for o in range(wide, len(out), NARROW):
        words = vectors.load(out, o, NARROW)
        _decide_block(bits, o // 8 * size, start, step, count, words, first, second, last, NARROW)


@inlined
def _decide_block(bits, base, start, step, count, out, first, second, last, width):
    for n in range(count):
        kept = _decided(out, first[n], second[n], last, False)
        vectors.store_bits(bits, base + (start + n * step) * (width // 8), kept, width)


@inlined
def add_row(r, begin, end, y, bits, size, rows, x, w, out, first, second, last, coarse):
    """Add the inputs `begin` ... `end` of a row to y, and fill their bits if there are any."""
    wide = len(out) // WIDE * WIDE
    for o in range(0, wide, WIDE):
        _add_block(r, begin, end, o, y, bits, size, rows, x, w, out, first, second, last, coarse, WIDE)
    for o in range(wide, len(out), NARROW):
        _add_block(r, begin, end, o, y, bits, size, rows, x, w, out, first, second, last, coarse, NARROW)


@inlined
def _add_block(r, begin, end, o, y, bits, size, rows, x, w, out, first, second, last, coarse, width):
    outputs, keep = w.shape[1], size > 0
    words, total = vectors.load(out, o, width), vectors.load(y, r * outputs + o, width)
    for left in range(begin, end, GROUP):
        at = o // 8 * size + place(left, r, rows) * (width // 8)
        for i in range(left, min(left + GROUP, end)):
            kept = _decided(words, first[i - begin], second[i - begin], last, coarse)
            if keep:
                vectors.store_bits(bits, at + (i - left) * (width // 8), kept, width)
            total = vectors.add_product_if(total, kept, vectors.load(w, i * outputs + o, width), x[r, 0, i])
    vectors.store(y, r * outputs + o, total, width)


@inlined
def in_blocks(blocks, dy):
    """Copy dy (r, 1, o) to blocks of outputs, each with all rows of a tile."""
    rows, outputs = dy.shape[0], dy.shape[2]
    tile, wide = len(blocks) // outputs, outputs // WIDE * WIDE
    for o in range(0, wide, WIDE):
        for r in range(rows):
            vectors.store(blocks, o * tile + r * WIDE, vectors.load(dy, r * outputs + o, WIDE), WIDE)
    for o in range(wide, outputs, NARROW):
        for r in range(rows):
            vectors.store(blocks, o * tile + r * NARROW, vectors.load(dy, r * outputs + o, NARROW), NARROW)


@inlined
def add_gradients(left, right, count, dx, dw, blocks, x, w, bits, size, start, rows, sums):
    """Fill columns of dx (count, 1, n) and add to dw, for the inputs `left` ... `right`.

    Args:
        left, right: the inputs; those of dx and x (count, 1, n), of all rows of the tile, begin at `left`.
        count: how many rows there are.
        dx, dw, x, w: as of `decision_kernels.backward`.
        blocks: dy, see `in_blocks`.
        bits, size: the decisions, and how many bytes of them there are for 8 outputs.
        start, rows: the place of the first input and row in a block of bits, which has so many rows.
        sums: room for the sums of all rows and two inputs, 2 * `PART` each.
    """
    outputs = w.shape[1]
    wide = outputs // WIDE * WIDE
    for i in range(left, right, 2):  # two at a time, for which dy is read once
        at = start + place(i - left, 0, rows)
        for o in range(0, wide, WIDE):
            _add_gradients_block(i, left, right, o, count, dx, dw, blocks, x, w, bits, o // 8 * size, at, sums, WIDE)
        for o in range(wide, outputs, NARROW):
            _add_gradients_block(i, left, right, o, count, dx, dw, blocks, x, w, bits, o // 8 * size, at, sums, NARROW)


@inlined
def _add_gradients_block(i, left, right, o, count, dx, dw, blocks, x, w, bits, base, start, sums, width):
    outputs, column, next_i = w.shape[1], i - left, min(i + 1, right - 1)
    first, last = o == 0, o + width == outputs
    here, there = i * outputs + o, next_i * outputs + o
    w0, w1, dw0, dw1 = (
        vectors.load(w, here, width), vectors.load(w, there, width),
        vectors.load(dw, here, width), vectors.load(dw, there, width),
    )  # fmt: skip
    for n in range(count):
        dy, at = vectors.load(blocks, o * (len(blocks) // outputs) + n * width, width), start + n * GROUP
        kept0 = vectors.load_bits(bits, base + at * (width // 8), width)
        kept1 = vectors.load_bits(bits, base + (at + 1) * (width // 8), width)
        dw0 = vectors.add_product_if(dw0, kept0, dy, x[n, 0, column])
        dw1 = vectors.add_product_if(dw1, kept1, dy, x[n, 0, column + 1])
        dx0 = vectors.zeros(w, PART) if first else vectors.load(sums, 2 * n * PART, PART)
        dx1 = vectors.zeros(w, PART) if first else vectors.load(sums, (2 * n + 1) * PART, PART)
        dx0, dx1 = vectors.add_dot_if(dx0, kept0, dy, w0), vectors.add_dot_if(dx1, kept1, dy, w1)
        if last:
            dx[n, 0, column], dx[n, 0, column + 1] = vectors.sum_of(dx0), vectors.sum_of(dx1)
        else:
            vectors.store(sums, 2 * n * PART, dx0, PART)
            vectors.store(sums, (2 * n + 1) * PART, dx1, PART)
    vectors.store(dw, here, dw0, width)
    if next_i > i:  # else there is no second input, and what was read of one is no number of this product
        vectors.store(dw, there, dw1, width)

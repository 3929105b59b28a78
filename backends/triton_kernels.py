"""Hand-written kernels for PyTorch on CUDA: the Bernoulli product and its gradients, the mask never leaving registers.

    y[r,o] = sum_i x[r,i] * w[i,o] * m[r,i,o]        one position a row, float32

Each of y, dx and dw has two of the axes (row, in, out) and is a sum over the third. So there are three kernels of one
form: a program owns a tile of the result, walks along the third axis, makes the words of one slice of entries at a
time from `pernodedrop.generator`'s formula, and adds what is kept. Masks are NumPy's to the bit. Where positions share
a row's mask the sums are products of matrices: `triton_shared_kernels.py`.

A product that is to be differentiated keeps its decisions, one bit an entry, in the bytes in which the kernels on a CPU
keep them (`bit_kernels.py`), and two more kernels read them, so that a step makes words once instead of three times. A
unit of 16 outputs is a number of 16 bits, and where four of them are side by side a row stores them at once.

- Results are deterministic: no atomics. Where tiles alone are too few for the device the third axis is split into
  parts, whose partial sums torch adds up. The split depends on the number of the device's multiprocessors, so sums may
  differ in rounding between devices; masks do not.
- Nothing is read on the host, the threshold neither: a step waits for nothing and can be captured in a CUDA graph.
- Offsets into tensors are 64-bit, coordinates are words that wrap around.
- A tile is one warp's, its first axis in registers and its second across the lanes. A row key then serves all outputs
  of a tile and is made once by the lane that needs it, where the usual layout would make it anew in every lane.

What is dropped adds nothing, not 0 times something, so that an infinite x passes by the entries that drop it.

Cost of an entry: the first shift of the word, x ^ x >> 17 of x = out ^ k0, is linear and made for out and k0 apart,
before the loop; the last, by 8, is gone into the threshold. There remain 3 multiplications, 3 shifts, 4 xors and 1
comparison, all of 32 bits, and a predicated multiply-add: 12 instructions. A row key is 36 more, shared by the outputs
of a tile. In the machine code that Triton 3.9 makes of y's loop for an H100 they are 13.3 in all, of which 8.4 go to
the pipe of xors, shifts and comparisons. At 64 a clock and multiprocessor, 132 of them and 1.755 GHz, that pipe's limit
is 1.76e12 entries a second (dx 1.83e12, dw 1.68e12). The code of y that keeps
decisions is 1.4 times as long; how much of that is in its loop nobody has counted.

These are counts. Nothing here has been run on a GPU, let alone timed: none has been lent to this project. What has been
done: tests/test_triton.py runs the kernels in Triton's interpreter, and compiles them for an H100.
"""

import contextlib
import math
import typing

import torch
import triton
import triton.language as tl

from pernodedrop import generator
from pernodedrop.backends import methods
from pernodedrop.backends.methods import Decisions

FIRST, SECOND, THIRD = (tl.constexpr(m) for m in generator.MULTIPLIERS)
GOLDEN = tl.constexpr(generator.GOLDEN)
LEVELS = tl.constexpr(2.0**24)
GROUP = tl.constexpr(methods.GROUP)
UNIT = tl.constexpr(16)  # outputs whose decisions are bits of one number

Pair: typing.TypeAlias = tuple[torch.Tensor, torch.Tensor]


class Sizes(typing.NamedTuple):
    """A number for each axis."""

    rows: int
    inputs: int
    outputs: int


TILES = Sizes(rows=32, inputs=32, outputs=64)
"""The largest tile along each axis, powers of two: 32 lanes side by side, and as many accumulators a lane as leave room
for the rest of what it holds; dx has two words of key an entry."""

OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}
"""A tile is a warp's. The fused sum is written out, since the default of fusing others changes with Triton 3.10."""

PROGRAMS = 8
"""Programs wanted a multiprocessor, each of one warp: two for each of its four schedulers."""


@triton.jit
def _finish(x, key):
    """Keyed triple32 after its first shift."""
    x = x * FIRST
    x = x ^ (x >> 11) ^ key
    x = x * SECOND
    x = x ^ (x >> 15)
    x = x * THIRD
    return x ^ (x >> 14)


@triton.jit
def shifted(x):
    """The first shift of triple32, which is linear: shifted(a ^ b) == shifted(a) ^ shifted(b)."""
    return x ^ (x >> 17)


@triton.jit
def _mix(x):
    return _finish(shifted(x), 0)


@triton.jit
def word_at(pointer, mask=None):
    """Words, which torch holds as int32; arithmetic on uint32 wraps around and shifts zeros in."""
    return tl.load(pointer, mask=mask, other=None if mask is None else 0).to(tl.uint32, bitcast=True)


@triton.jit
def row_of(seed, call, time, sample):
    """What a row key owes to all coordinates but in, for lane 0: three words a row."""
    head = _mix(sample + _mix(time + _mix(_mix(call + _mix(seed)))))
    tail = _mix(time ^ _mix(_mix(call ^ _mix(seed ^ GOLDEN))))
    return head, tail, sample * GOLDEN


@triton.jit
def key_of_row(head, tail, spread, in_):
    """The row key, its first half shifted."""
    return shifted(_mix(in_ + head)), _mix(spread ^ _mix(in_ + tail))


@triton.jit
def is_kept(k0, k1, out, limit):
    """Whether entries are kept; k0 and out are shifted."""
    return _finish(out ^ k0, k1) <= limit


@triton.jit
def _add_kept(total, kept, a, b):
    """total + a * b where the entry is kept."""
    return tl.where(kept, tl.fma(a, b, total), total)


@triton.jit
def last_kept(threshold):
    """The last word that is kept: word >> 8 < T just when word <= 256 * T - 1, the very last word at T = 2**24."""
    return (tl.load(threshold).to(tl.uint32, bitcast=True) << 8) - 1


@triton.jit
def scale_of(threshold):
    """What a kept entry is, 2**24 / T."""
    return tl.div_rn(LEVELS, tl.load(threshold).to(tl.float32))


@triton.jit
def tile_of(first_size, second_size, first_tile: tl.constexpr, second_tile: tl.constexpr):
    """Indices of a program's tile along two axes, and the number of its part of the third."""
    program, seconds = tl.program_id(0), tl.cdiv(second_size, second_tile)
    firsts = tl.cdiv(first_size, first_tile)
    first = (program // seconds) % firsts * first_tile + tl.arange(0, first_tile)
    second = program % seconds * second_tile + tl.arange(0, second_tile)
    return first.to(tl.int64), second.to(tl.int64), (program // seconds // firsts).to(tl.int64)


@triton.jit
def _units(outputs):
    """How many units of outputs there are."""
    return tl.cdiv(outputs, UNIT)


@triton.jit
def _place(i, r, rows):
    """The number of an input and a row among all those of a unit of outputs."""
    return (i // GROUP * rows + r) * GROUP + i % GROUP


@triton.jit
def _first(unit, rows, inputs, outputs):
    """Where the decisions of a unit of outputs begin, and how far they are apart from one place to the next.

    Of four units side by side, which are a block of 64 outputs, those of one place are side by side.
    """
    size, wide = tl.cdiv(inputs, GROUP) * GROUP * rows, unit // 4 * 4 + 4 <= _units(outputs)
    return tl.where(wide, unit // 4 * 4 * size + unit % 4, unit * size), tl.where(wide, 4, 1)


@triton.jit
def _packed(kept, units: tl.constexpr):
    """Decisions (output, ...) as bits (unit, ...)."""
    kept = tl.reshape(kept, (units, UNIT, kept.shape[1]))
    return tl.sum(kept.to(tl.int32) << tl.arange(0, UNIT)[None, :, None], 1).to(tl.int16)


@triton.jit
def _unpacked(bits):
    """Bits (unit, ...) as decisions (output, ...)."""
    kept = bits[:, None, :].to(tl.int32) >> tl.arange(0, UNIT)[None, :, None] & 1
    return tl.reshape(kept, (bits.shape[0] * UNIT, bits.shape[1])) != 0


@triton.jit(do_not_specialize=["rows", "length"])  # a last, smaller batch is not compiled for again
def _y_kernel(
    y, x, w, bits, threshold, seed, call, time, sample, in_, out,
    rows, inputs, outputs, length,
    x_row, x_in, w_in, w_out, time_row, sample_row, in_in, out_out,
    tile_outputs: tl.constexpr, tile_rows: tl.constexpr,
):  # fmt: skip
    """y[part, r, o]: the sum over a part of the inputs. The decisions are kept if there are bits for them."""
    o, r, part = tile_of(outputs, rows, tile_outputs, tile_rows)
    has_o, has_r = o < outputs, r < rows
    head, tail, spread = row_of(
        word_at(seed), word_at(call), word_at(time + r * time_row, has_r), word_at(sample + r * sample_row, has_r)
    )
    shifted_out = shifted(word_at(out + o * out_out, has_o))[:, None]
    unit = tl.min(o, 0) // UNIT
    limit = last_kept(threshold)
    start = part * length
    x += r * x_row + start * x_in
    w += o * w_out + start * w_in
    in_ += start * in_in
    total = tl.zeros((tile_outputs, tile_rows), tl.float32)
    for n in range(tl.minimum(inputs - start, length)):
        k0, k1 = key_of_row(head, tail, spread, word_at(in_))
        a, b = tl.load(w, has_o, 0.0)[:, None], tl.load(x, has_r, 0.0)[None, :]
        kept = is_kept(k0[None, :], k1[None, :], shifted_out, limit)
        total = _add_kept(total, kept, a, b)
        if bits is not None:
            _keep(bits, kept, unit, start + n, r, rows, inputs, outputs, tile_outputs)
        x += x_in
        w += w_in
        in_ += in_in
    y += (part * rows + r[None, :]) * outputs + o[:, None]
    tl.store(y, total * scale_of(threshold), has_o[:, None] & has_r[None, :])


@triton.jit
def _keep(bits, kept, unit, i, r, rows, inputs, outputs, tile_outputs: tl.constexpr):
    """Store what is decided for an input by the outputs from `unit` on."""
    units: tl.constexpr = tile_outputs // UNIT
    packed, place, has_r = _packed(kept, units), _place(i, r, rows)[None, :], (r < rows)[None, :]
    if units == 4 and unit + 4 <= _units(outputs):
        block, _ = _first(unit, rows, inputs, outputs)
        tl.store(bits + block + place * 4 + tl.arange(0, units)[:, None], packed, has_r)  # in one instruction
    else:
        each = unit + tl.arange(0, units)
        first, step = _first(each, rows, inputs, outputs)
        has = (each < _units(outputs))[:, None] & has_r
        tl.store(bits + first[:, None] + place * step[:, None], packed, has)


@triton.jit(do_not_specialize=["rows", "length"])
def _dx_kernel(
    dx, dy, w, threshold, seed, call, time, sample, in_, out,
    rows, inputs, outputs, length,
    dy_row, dy_out, w_in, w_out, time_row, sample_row, in_in, out_out,
    tile_inputs: tl.constexpr, tile_rows: tl.constexpr,
):  # fmt: skip
    """dx[part, r, i]: the sum over a part of the outputs."""
    i, r, part = tile_of(inputs, rows, tile_inputs, tile_rows)
    has_i, has_r = i < inputs, r < rows
    head, tail, spread = row_of(
        word_at(seed), word_at(call), word_at(time + r * time_row, has_r), word_at(sample + r * sample_row, has_r)
    )
    in_words = word_at(in_ + i * in_in, has_i)[:, None]
    k0, k1 = key_of_row(head[None, :], tail[None, :], spread[None, :], in_words)
    limit = last_kept(threshold)
    start = part * length
    dy += r * dy_row + start * dy_out
    w += i * w_in + start * w_out
    out += start * out_out
    total = tl.zeros((tile_inputs, tile_rows), tl.float32)
    for _ in range(tl.minimum(outputs - start, length)):
        a, b = tl.load(w, has_i, 0.0)[:, None], tl.load(dy, has_r, 0.0)[None, :]
        total = _add_kept(total, is_kept(k0, k1, shifted(word_at(out)), limit), a, b)
        dy += dy_out
        w += w_out
        out += out_out
    dx += (part * rows + r[None, :]) * inputs + i[:, None]
    tl.store(dx, total * scale_of(threshold), has_i[:, None] & has_r[None, :])


@triton.jit(do_not_specialize=["rows", "length"])
def _dw_kernel(
    dw, dy, x, threshold, seed, call, time, sample, in_, out,
    rows, inputs, outputs, length,
    dy_row, dy_out, x_row, x_in, time_row, sample_row, in_in, out_out,
    tile_outputs: tl.constexpr, tile_inputs: tl.constexpr,
):  # fmt: skip
    """dw[part, i, o]: the sum over a part of the rows."""
    o, i, part = tile_of(outputs, inputs, tile_outputs, tile_inputs)
    has_o, has_i = o < outputs, i < inputs
    seed_word, call_word, in_words = word_at(seed), word_at(call), word_at(in_ + i * in_in, has_i)
    shifted_out = shifted(word_at(out + o * out_out, has_o))[:, None]
    limit = last_kept(threshold)
    start = part * length
    dy += o * dy_out + start * dy_row
    x += i * x_in + start * x_row
    time += start * time_row
    sample += start * sample_row
    total = tl.zeros((tile_outputs, tile_inputs), tl.float32)
    for _ in range(tl.minimum(rows - start, length)):
        head, tail, spread = row_of(seed_word, call_word, word_at(time), word_at(sample))
        k0, k1 = key_of_row(head, tail, spread, in_words)
        a, b = tl.load(dy, has_o, 0.0)[:, None], tl.load(x, has_i, 0.0)[None, :]
        total = _add_kept(total, is_kept(k0[None, :], k1[None, :], shifted_out, limit), a, b)
        dy += dy_row
        x += x_row
        time += time_row
        sample += sample_row
    dw += (part * inputs + i[None, :]) * outputs + o[:, None]
    tl.store(dw, total * scale_of(threshold), has_o[:, None] & has_i[None, :])


@triton.jit(do_not_specialize=["rows", "length"])
def _kept_dx_kernel(
    dx, dy, w, bits, threshold, rows, inputs, outputs, length, dy_row, dy_out, w_in, w_out,
    tile_rows: tl.constexpr, tile_inputs: tl.constexpr,
):  # fmt: skip
    """dx[part, r, i]: the sum over a part of the units of outputs, of decisions that were kept."""
    r, i, part = tile_of(rows, inputs, tile_rows, tile_inputs)
    has_r, has_i = r < rows, i < inputs
    place, has = _place(i[None, :], r[:, None], rows), has_r[:, None] & has_i[None, :]
    dy += r * dy_row
    w += i * w_in
    total = tl.zeros((tile_rows, tile_inputs), tl.float32)
    start = part * length // UNIT
    for k in range(tl.minimum(_units(outputs) - start, length // UNIT)):
        unit = start + k
        first, step = _first(unit, rows, inputs, outputs)
        packed = tl.load(bits + first + place * step, has, 0).to(tl.int32)
        for n in range(tl.minimum(outputs - unit * UNIT, UNIT)):
            o = unit * UNIT + n
            a, b = tl.load(dy + o * dy_out, has_r, 0.0)[:, None], tl.load(w + o * w_out, has_i, 0.0)[None, :]
            total = _add_kept(total, packed & (1 << n) != 0, a, b)
    dx += (part * rows + r[:, None]) * inputs + i[None, :]
    tl.store(dx, total * scale_of(threshold), has)


@triton.jit(do_not_specialize=["rows", "length"])
def _kept_dw_kernel(
    dw, dy, x, bits, threshold, rows, inputs, outputs, length, dy_row, dy_out, x_row, x_in,
    tile_outputs: tl.constexpr, tile_inputs: tl.constexpr,
):  # fmt: skip
    """dw[part, i, o]: the sum over a part of the rows, of decisions that were kept."""
    o, i, part = tile_of(outputs, inputs, tile_outputs, tile_inputs)
    has_o, has_i = o < outputs, i < inputs
    unit = tl.min(o, 0) // UNIT + tl.arange(0, tile_outputs // UNIT)
    first, step = _first(unit, rows, inputs, outputs)
    has = (unit < _units(outputs))[:, None] & has_i[None, :]
    start = part * length
    bits += first[:, None] + _place(i, start, rows)[None, :] * step[:, None]
    dy += o * dy_out + start * dy_row
    x += i * x_in + start * x_row
    total = tl.zeros((tile_outputs, tile_inputs), tl.float32)
    for _ in range(tl.minimum(rows - start, length)):
        a, b = tl.load(dy, has_o, 0.0)[:, None], tl.load(x, has_i, 0.0)[None, :]
        total = _add_kept(total, _unpacked(tl.load(bits, has, 0)), a, b)
        bits += GROUP * step[:, None]
        dy += dy_row
        x += x_row
    dw += (part * inputs + i[None, :]) * outputs + o[:, None]
    tl.store(dw, total * scale_of(threshold), has_o[:, None] & has_i[None, :])


def forward(x: torch.Tensor, w: torch.Tensor, mask: Decisions) -> torch.Tensor:
    """The product.

    Args:
        x, w: float32 tensors (r, i) and (i, o) with any strides; no size is 0.
        mask: the decisions. The threshold is in [1, 2**24], time and sample may have shape (1,), strides are any.

    Returns:
        y (r, o), float32.
    """
    return _product(x, w, mask, None)


def forward_keeping(x: torch.Tensor, w: torch.Tensor, mask: Decisions) -> Pair:
    """The same y, and its decisions as bytes of the shape `methods.kept_shape`, laid out as in `bit_kernels`."""
    bits = torch.empty(methods.kept_shape(mask, x[:, None], w), dtype=torch.uint8, device=x.device)
    return _product(x, w, mask, bits), bits


def _product(x: torch.Tensor, w: torch.Tensor, mask: Decisions, bits: torch.Tensor | None) -> torch.Tensor:
    sizes, kept = Sizes(x.shape[0], *w.shape), None if bits is None else bits.view(torch.int16)
    words, coordinates = (kept, *mask[:3]), coordinates_of(mask, sizes.rows)
    unit = 1 if bits is None else UNIT.value
    return _sum(_y_kernel, ("outputs", "rows", "inputs"), (x, w), sizes, words, coordinates, unit)


def backward(
    dy: torch.Tensor, x: torch.Tensor, w: torch.Tensor, mask: Decisions, bits: torch.Tensor | None = None
) -> Pair:
    """The gradients dx (r, i) and dw (i, o) to an upstream gradient dy (r, o), a float32 tensor with any strides.

    Args:
        dy, x, w, mask: as of `forward`.
        bits: the decisions that `forward_keeping` gave beside y; with None they are made again, for each gradient.
    """
    sizes = Sizes(x.shape[0], *w.shape)
    if bits is None:
        words, coordinates = mask[:3], coordinates_of(mask, sizes.rows)
        dx = _sum(_dx_kernel, ("inputs", "rows", "outputs"), (dy, w), sizes, words, coordinates)
        return dx, _sum(_dw_kernel, ("outputs", "inputs", "rows"), (dy, x), sizes, words, coordinates)
    kept = bits.view(torch.int16), mask.threshold
    dx = _sum(_kept_dx_kernel, ("rows", "inputs", "outputs"), (dy, w), sizes, kept, unit=UNIT.value)
    return dx, _sum(_kept_dw_kernel, ("outputs", "inputs", "rows"), (dy, x), sizes, kept, unit=UNIT.value)


def coordinates_of(mask: Decisions, rows: int) -> tuple[torch.Tensor, ...]:
    """Those of time, sample, in and out, one a row where they are of rows."""
    return mask.time.expand(rows), mask.sample.expand(rows), mask.in_, mask.out


def _sum(
    kernel: typing.Any,
    axes: tuple[str, str, str],
    operands: Pair,
    sizes: Sizes,
    words: tuple[torch.Tensor | None, ...],
    coordinates: tuple[torch.Tensor, ...] = (),
    unit: int = 1,
) -> torch.Tensor:
    """What a kernel computes.

    Args:
        kernel: it takes the result, operands, words, coordinates, sizes, the length of a part, strides and its tile.
        axes: the two of its tile, that in registers first, and the one that it sums over.
        operands, coordinates: tensors with strides.
        sizes: of the product.
        words: tensors without.
        unit: outputs that are taken together.
    """
    device, units = operands[0].device, Sizes(1, 1, unit)
    tile = [max(_of(units, a), min(_of(TILES, a), triton.next_power_of_2(_of(sizes, a)))) for a in axes[:2]]
    tiles = math.prod(triton.cdiv(_of(sizes, axis), size) for axis, size in zip(axes[:2], tile, strict=True))
    length = part_length(_of(sizes, axes[2]), tiles, device, _of(units, axes[2]))
    parts = triton.cdiv(_of(sizes, axes[2]), length)
    shape = [size for axis, size in sizes._asdict().items() if axis != axes[2]]
    result = torch.empty((parts, *shape), dtype=torch.float32, device=device)
    strides = [stride for tensor in (*operands, *coordinates) for stride in tensor.stride()]
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(tiles * parts,)](result, *operands, *words, *coordinates, *sizes, length, *strides, *tile, **OPTIONS)
    return result[0] if parts == 1 else result.sum(0)


def _of(sizes: Sizes, axis: str) -> int:
    size: int = getattr(sizes, axis)
    return size


def _programs(device: torch.device) -> int:
    return PROGRAMS * (torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1)


def part_length(size: int, tiles: int, device: torch.device, unit: int = 1) -> int:
    """The length of the parts of the third axis, so that there are about as many programs as wanted."""
    length: int = triton.cdiv(size, max(1, _programs(device) // tiles))
    return triton.cdiv(length, unit) * unit


@triton.jit
def _words_kernel(folded, count, tile_outputs: tl.constexpr, tile_rows: tl.constexpr):
    out = shifted(tl.arange(0, tile_outputs).to(tl.uint32))[:, None]
    rows = (tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)).to(tl.uint32)
    total = tl.zeros((tile_outputs, tile_rows), tl.uint32)
    for n in range(count):
        total = total ^ _finish(out ^ shifted(rows + n)[None, :], n)
    tl.store(folded + rows, tl.sum(total, 0).to(tl.int32, bitcast=True))


def folded_words(count: int, device: torch.device) -> torch.Tensor:
    """The sums of about so many words, with which nothing else is done: what a device can make at best."""
    rows, outputs, programs = TILES.rows, TILES.outputs, _programs(device)
    folded = torch.empty(programs * rows, dtype=torch.int32, device=device)
    _words_kernel[(programs,)](folded, count // (programs * rows * outputs), outputs, rows, **OPTIONS)
    return folded

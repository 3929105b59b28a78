"""Hand-written kernels for PyTorch on CUDA: the Bernoulli product and its gradients, the mask never leaving registers.

    y[r,o] = sum_i x[r,i] * w[i,o] * m[r,i,o]        one position a row, float32

Each of y, dx and dw has two of the axes (row, in, out) and is a sum over the third. So there are three kernels of one
form: a program owns a tile of the result, walks along the third axis, makes the words of one slice of entries at a
time from `pernodedrop.generator`'s formula, and adds what is kept. Masks are NumPy's to the bit. Where positions share
a row's mask the sums are matrix products, which is another kernel; there is none yet.

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
is 1.76e12 entries a second (dx 1.83e12, dw 1.68e12).

These are counts. Nothing here has been run on a GPU, let alone timed: none has been lent to this project. What has been
done: tests/test_triton.py runs the kernels in Triton's interpreter, and compiles them for an H100.
"""

import contextlib
import typing

import torch
import triton
import triton.language as tl

from pernodedrop import generator
from pernodedrop.backends.methods import Decisions

FIRST, SECOND, THIRD = (tl.constexpr(m) for m in generator.MULTIPLIERS)
GOLDEN = tl.constexpr(generator.GOLDEN)
LEVELS = tl.constexpr(2.0**24)

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
def _shifted(x):
    """The first shift of triple32, which is linear: _shifted(a ^ b) == _shifted(a) ^ _shifted(b)."""
    return x ^ (x >> 17)


@triton.jit
def _mix(x):
    return _finish(_shifted(x), 0)


@triton.jit
def _word(pointer, mask=None):
    """Words, which torch holds as int32; arithmetic on uint32 wraps around and shifts zeros in."""
    return tl.load(pointer, mask=mask, other=None if mask is None else 0).to(tl.uint32, bitcast=True)


@triton.jit
def _row(seed, call, time, sample):
    """What a row key owes to all coordinates but in, for lane 0: three words a row."""
    head = _mix(sample + _mix(time + _mix(_mix(call + _mix(seed)))))
    tail = _mix(time ^ _mix(_mix(call ^ _mix(seed ^ GOLDEN))))
    return head, tail, sample * GOLDEN


@triton.jit
def _row_key(head, tail, spread, in_):
    """The row key, its first half shifted."""
    return _shifted(_mix(in_ + head)), _mix(spread ^ _mix(in_ + tail))


@triton.jit
def _add_kept(total, a, b, k0, k1, out, limit):
    """total + a * b where the entry is kept; k0 and out are shifted."""
    return tl.where(_finish(out ^ k0, k1) <= limit, tl.fma(a, b, total), total)


@triton.jit
def _limit(threshold):
    """The last word that is kept: word >> 8 < T just when word <= 256 * T - 1, the very last word at T = 2**24."""
    return (tl.load(threshold).to(tl.uint32, bitcast=True) << 8) - 1


@triton.jit
def _scale(threshold):
    return tl.div_rn(LEVELS, tl.load(threshold).to(tl.float32))


@triton.jit
def _tile(first_size, second_size, first_tile: tl.constexpr, second_tile: tl.constexpr):
    """Indices of a program's tile along two axes, and the number of its part of the third."""
    program, seconds = tl.program_id(0), tl.cdiv(second_size, second_tile)
    firsts = tl.cdiv(first_size, first_tile)
    first = (program // seconds) % firsts * first_tile + tl.arange(0, first_tile)
    second = program % seconds * second_tile + tl.arange(0, second_tile)
    return first.to(tl.int64), second.to(tl.int64), (program // seconds // firsts).to(tl.int64)


@triton.jit(do_not_specialize=["rows", "length"])  # a last, smaller batch is not compiled for again
def _y_kernel(
    y, x, w, threshold, seed, call, time, sample, in_, out,
    rows, inputs, outputs, length,
    x_row, x_in, w_in, w_out, time_row, sample_row, in_in, out_out,
    tile_outputs: tl.constexpr, tile_rows: tl.constexpr,
):  # fmt: skip
    """y[part, r, o]: the sum over a part of the inputs."""
    o, r, part = _tile(outputs, rows, tile_outputs, tile_rows)
    has_o, has_r = o < outputs, r < rows
    head, tail, spread = _row(
        _word(seed), _word(call), _word(time + r * time_row, has_r), _word(sample + r * sample_row, has_r)
    )
    shifted_out = _shifted(_word(out + o * out_out, has_o))[:, None]
    limit = _limit(threshold)
    start = part * length
    x += r * x_row + start * x_in
    w += o * w_out + start * w_in
    in_ += start * in_in
    total = tl.zeros((tile_outputs, tile_rows), tl.float32)
    for _ in range(tl.minimum(inputs - start, length)):
        k0, k1 = _row_key(head, tail, spread, _word(in_))
        a, b = tl.load(w, has_o, 0.0)[:, None], tl.load(x, has_r, 0.0)[None, :]
        total = _add_kept(total, a, b, k0[None, :], k1[None, :], shifted_out, limit)
        x += x_in
        w += w_in
        in_ += in_in
    y += (part * rows + r[None, :]) * outputs + o[:, None]
    tl.store(y, total * _scale(threshold), has_o[:, None] & has_r[None, :])


@triton.jit(do_not_specialize=["rows", "length"])
def _dx_kernel(
    dx, dy, w, threshold, seed, call, time, sample, in_, out,
    rows, inputs, outputs, length,
    dy_row, dy_out, w_in, w_out, time_row, sample_row, in_in, out_out,
    tile_inputs: tl.constexpr, tile_rows: tl.constexpr,
):  # fmt: skip
    """dx[part, r, i]: the sum over a part of the outputs."""
    i, r, part = _tile(inputs, rows, tile_inputs, tile_rows)
    has_i, has_r = i < inputs, r < rows
    head, tail, spread = _row(
        _word(seed), _word(call), _word(time + r * time_row, has_r), _word(sample + r * sample_row, has_r)
    )
    in_words = _word(in_ + i * in_in, has_i)[:, None]
    k0, k1 = _row_key(head[None, :], tail[None, :], spread[None, :], in_words)
    limit = _limit(threshold)
    start = part * length
    dy += r * dy_row + start * dy_out
    w += i * w_in + start * w_out
    out += start * out_out
    total = tl.zeros((tile_inputs, tile_rows), tl.float32)
    for _ in range(tl.minimum(outputs - start, length)):
        a, b = tl.load(w, has_i, 0.0)[:, None], tl.load(dy, has_r, 0.0)[None, :]
        total = _add_kept(total, a, b, k0, k1, _shifted(_word(out)), limit)
        dy += dy_out
        w += w_out
        out += out_out
    dx += (part * rows + r[None, :]) * inputs + i[:, None]
    tl.store(dx, total * _scale(threshold), has_i[:, None] & has_r[None, :])


@triton.jit(do_not_specialize=["rows", "length"])
def _dw_kernel(
    dw, dy, x, threshold, seed, call, time, sample, in_, out,
    rows, inputs, outputs, length,
    dy_row, dy_out, x_row, x_in, time_row, sample_row, in_in, out_out,
    tile_outputs: tl.constexpr, tile_inputs: tl.constexpr,
):  # fmt: skip
    """dw[part, i, o]: the sum over a part of the rows."""
    o, i, part = _tile(outputs, inputs, tile_outputs, tile_inputs)
    has_o, has_i = o < outputs, i < inputs
    seed_word, call_word, in_words = _word(seed), _word(call), _word(in_ + i * in_in, has_i)
    shifted_out = _shifted(_word(out + o * out_out, has_o))[:, None]
    limit = _limit(threshold)
    start = part * length
    dy += o * dy_out + start * dy_row
    x += i * x_in + start * x_row
    time += start * time_row
    sample += start * sample_row
    total = tl.zeros((tile_outputs, tile_inputs), tl.float32)
    for _ in range(tl.minimum(rows - start, length)):
        head, tail, spread = _row(seed_word, call_word, _word(time), _word(sample))
        k0, k1 = _row_key(head, tail, spread, in_words)
        a, b = tl.load(dy, has_o, 0.0)[:, None], tl.load(x, has_i, 0.0)[None, :]
        total = _add_kept(total, a, b, k0[None, :], k1[None, :], shifted_out, limit)
        dy += dy_row
        x += x_row
        time += time_row
        sample += sample_row
    dw += (part * inputs + i[None, :]) * outputs + o[:, None]
    tl.store(dw, total * _scale(threshold), has_o[:, None] & has_i[None, :])


def forward(x: torch.Tensor, w: torch.Tensor, mask: Decisions) -> torch.Tensor:
    """The product.

    Args:
        x, w: float32 tensors (r, i) and (i, o) with any strides; no size is 0.
        mask: the decisions. The threshold is in [1, 2**24], time and sample may have shape (1,), strides are any.

    Returns:
        y (r, o), float32.
    """
    return _sum(_y_kernel, ("outputs", "rows", "inputs"), (x, w), Sizes(x.shape[0], *w.shape), mask)


def backward(dy: torch.Tensor, x: torch.Tensor, w: torch.Tensor, mask: Decisions) -> Pair:
    """The gradients dx (r, i) and dw (i, o) to an upstream gradient dy (r, o), a float32 tensor with any strides."""
    sizes = Sizes(x.shape[0], *w.shape)
    dx = _sum(_dx_kernel, ("inputs", "rows", "outputs"), (dy, w), sizes, mask)
    return dx, _sum(_dw_kernel, ("outputs", "inputs", "rows"), (dy, x), sizes, mask)


def _sum(kernel: typing.Any, axes: tuple[str, str, str], operands: Pair, sizes: Sizes, mask: Decisions) -> torch.Tensor:
    """What a kernel computes: axes are the two of its tile, registers first, and the one that it sums over."""
    device = operands[0].device
    first, second, third = (getattr(sizes, axis) for axis in axes)
    tile = [min(getattr(TILES, axis), triton.next_power_of_2(getattr(sizes, axis))) for axis in axes[:2]]
    tiles = triton.cdiv(first, tile[0]) * triton.cdiv(second, tile[1])
    length = _part_length(third, tiles, device)
    parts = triton.cdiv(third, length)
    result = torch.empty((parts, second, first), dtype=torch.float32, device=device)
    coordinates = (mask.time.expand(sizes.rows), mask.sample.expand(sizes.rows), mask.in_, mask.out)
    strides = [stride for tensor in (*operands, *coordinates) for stride in tensor.stride()]
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(tiles * parts,)](result, *operands, *mask[:3], *coordinates, *sizes, length, *strides, *tile, **OPTIONS)
    return result[0] if parts == 1 else result.sum(0)


def _part_length(size: int, tiles: int, device: torch.device) -> int:
    """The length of the parts of the third axis, so that there are about as many programs as wanted."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return triton.cdiv(size, max(1, PROGRAMS * processors // tiles))

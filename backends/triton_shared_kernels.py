"""Kernels in Triton for the Bernoulli product whose positions share a row's mask: products of matrices, row by row.

    y[r,t,o] = sum_i x[r,t,i] * w[i,o] * m[r,i,o]

A program makes a tile of the mask in registers and multiplies it with as many positions as a tile has; where there are
more, it is made again. The operands of a product are what x, w and dy are, float32, float16 or bfloat16: w times a mask
of 0 and 1 has the numbers of w. Sums are in float32, and scaled at the end. float32 is multiplied in three parts on
tensor cores ("tf32x3"), which loses nothing that counts, or in one where torch may do so itself
(`torch.set_float32_matmul_precision`).

`pernodedrop.ops` hands float32 over, of whatever dtype its operands are, so only who calls `forward` here has halves.

What is dropped is 0 times something, as everywhere but in `triton_kernels.py`, whose rules for the rest hold here too.
Nothing here has been run on a GPU either: tests/test_triton.py has the interpreter's sums, and compiles for two GPUs.
"""

import contextlib
import math
import typing

import torch
import triton
import triton.language as tl

from pernodedrop.backends.methods import Decisions
from pernodedrop.backends.triton_kernels import (
    Pair,
    coordinates_of,
    is_kept,
    key_of_row,
    last_kept,
    part_length,
    row_of,
    scale_of,
    shifted,
    tile_of,
    word_at,
)


class Sizes(typing.NamedTuple):
    """A number for each axis."""

    times: int
    inputs: int
    outputs: int


TILES = Sizes(times=64, inputs=64, outputs=64)
"""The largest tile of a result along each axis, powers of two."""

DEPTH = 64
"""Bytes of operands along the axis of a sum: what is multiplied at a time. With more, gradients of w would spill."""

SMALLEST = 16
"""Of a tile along any axis, which tensor cores ask for."""

OPTIONS = {"num_warps": 8}


@triton.jit
def _load(pointer, first, second, first_step, second_step, first_size, second_size, dtype: tl.constexpr):
    """A tile of a matrix with any strides, 0 beyond its sizes."""
    has = (first < first_size)[:, None] & (second < second_size)[None, :]
    return tl.load(pointer + first[:, None] * first_step + second[None, :] * second_step, has, 0.0).to(dtype)


@triton.jit
def _halves(seed, call, time, sample, r, time_row, sample_row):
    return row_of(word_at(seed), word_at(call), word_at(time + r * time_row), word_at(sample + r * sample_row))


@triton.jit(do_not_specialize=["rows"])
def _y_kernel(
    y, x, w, threshold, seed, call, time, sample, in_, out,
    rows, times, inputs, outputs, length,
    x_row, x_time, x_in, w_in, w_out, time_row, sample_row, in_in, out_out,
    tile_times: tl.constexpr, tile_inputs: tl.constexpr, tile_outputs: tl.constexpr,
    dtype: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """y[r, t, o]: the sum over the inputs."""
    t, o, r = tile_of(times, outputs, tile_times, tile_outputs)
    head, tail, spread = _halves(seed, call, time, sample, r, time_row, sample_row)
    shifted_out, limit = shifted(word_at(out + o * out_out, o < outputs)), last_kept(threshold)
    total = tl.zeros((tile_times, tile_outputs), tl.float32)
    for start in range(0, inputs, tile_inputs):
        i = start + tl.arange(0, tile_inputs).to(tl.int64)
        k0, k1 = key_of_row(head, tail, spread, word_at(in_ + i * in_in, i < inputs))
        kept = is_kept(k0[:, None], k1[:, None], shifted_out[None, :], limit)
        a = _load(x + r * x_row, t, i, x_time, x_in, times, inputs, dtype)
        b = _load(w, i, o, w_in, w_out, inputs, outputs, dtype) * kept.to(dtype)
        total = tl.dot(a, b, total, input_precision=precision)
    y += (r * times + t[:, None]) * outputs + o[None, :]
    tl.store(y, total * scale_of(threshold), (t < times)[:, None] & (o < outputs)[None, :])


@triton.jit(do_not_specialize=["rows"])
def _dx_kernel(
    dx, dy, w, threshold, seed, call, time, sample, in_, out,
    rows, times, inputs, outputs, length,
    dy_row, dy_time, dy_out, w_in, w_out, time_row, sample_row, in_in, out_out,
    tile_times: tl.constexpr, tile_inputs: tl.constexpr, tile_outputs: tl.constexpr,
    dtype: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """dx[r, t, i]: the sum over the outputs."""
    t, i, r = tile_of(times, inputs, tile_times, tile_inputs)
    head, tail, spread = _halves(seed, call, time, sample, r, time_row, sample_row)
    k0, k1 = key_of_row(head, tail, spread, word_at(in_ + i * in_in, i < inputs))
    limit = last_kept(threshold)
    total = tl.zeros((tile_times, tile_inputs), tl.float32)
    for start in range(0, outputs, tile_outputs):
        o = start + tl.arange(0, tile_outputs).to(tl.int64)
        shifted_out = shifted(word_at(out + o * out_out, o < outputs))
        kept = is_kept(k0[None, :], k1[None, :], shifted_out[:, None], limit)
        a = _load(dy + r * dy_row, t, o, dy_time, dy_out, times, outputs, dtype)
        b = _load(w, o, i, w_out, w_in, outputs, inputs, dtype) * kept.to(dtype)
        total = tl.dot(a, b, total, input_precision=precision)
    dx += (r * times + t[:, None]) * inputs + i[None, :]
    tl.store(dx, total * scale_of(threshold), (t < times)[:, None] & (i < inputs)[None, :])


@triton.jit(do_not_specialize=["rows", "length"])
def _dw_kernel(
    dw, dy, x, threshold, seed, call, time, sample, in_, out,
    rows, times, inputs, outputs, length,
    dy_row, dy_time, dy_out, x_row, x_time, x_in, time_row, sample_row, in_in, out_out,
    tile_times: tl.constexpr, tile_inputs: tl.constexpr, tile_outputs: tl.constexpr,
    dtype: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """dw[part, i, o]: the sum over a part of the rows."""
    i, o, part = tile_of(inputs, outputs, tile_inputs, tile_outputs)
    in_words = word_at(in_ + i * in_in, i < inputs)
    shifted_out, limit = shifted(word_at(out + o * out_out, o < outputs)), last_kept(threshold)
    total = tl.zeros((tile_inputs, tile_outputs), tl.float32)
    for r in range(part * length, tl.minimum(rows, (part + 1) * length)):
        own = tl.zeros((tile_inputs, tile_outputs), tl.float32)
        for start in range(0, times, tile_times):
            t = start + tl.arange(0, tile_times).to(tl.int64)
            a = _load(x + r * x_row, i, t, x_in, x_time, inputs, times, dtype)
            b = _load(dy + r * dy_row, t, o, dy_time, dy_out, times, outputs, dtype)
            own = tl.dot(a, b, own, input_precision=precision)
        head, tail, spread = _halves(seed, call, time, sample, r, time_row, sample_row)
        k0, k1 = key_of_row(head, tail, spread, in_words)
        total += own * is_kept(k0[:, None], k1[:, None], shifted_out[None, :], limit).to(tl.float32)
    dw += (part * inputs + i[:, None]) * outputs + o[None, :]
    tl.store(dw, total * scale_of(threshold), (i < inputs)[:, None] & (o < outputs)[None, :])


def forward(x: torch.Tensor, w: torch.Tensor, mask: Decisions) -> torch.Tensor:
    """The product.

    Args:
        x, w: tensors (r, t, i) and (i, o) of one dtype, float32, float16 or bfloat16, with any strides; no size is 0.
        mask: the decisions. The threshold is in [1, 2**24], time and sample may have shape (1,), strides are any.

    Returns:
        y (r, t, o), of that dtype.
    """
    rows, times, _ = x.shape
    y = x.new_empty((rows, times, w.shape[1]))
    _launch(_y_kernel, ("times", "outputs"), y, (x, w), rows, Sizes(times, *w.shape), mask)
    return y


def backward(dy: torch.Tensor, x: torch.Tensor, w: torch.Tensor, mask: Decisions) -> Pair:
    """The gradients dx (r, t, i) and dw (i, o) to an upstream gradient dy (r, t, o), all of one dtype."""
    rows, times, _ = x.shape
    sizes, dx = Sizes(times, *w.shape), torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch(_dx_kernel, ("times", "inputs"), dx, (dy, w), rows, sizes, mask)
    length = part_length(rows, _tiles(("inputs", "outputs"), sizes), x.device)
    dw = torch.empty((triton.cdiv(rows, length), *w.shape), dtype=torch.float32, device=w.device)
    _launch(_dw_kernel, ("inputs", "outputs"), dw, (dy, x), rows, sizes, mask, length)
    return dx, dw.sum(0).to(w.dtype)


def _launch(
    kernel: typing.Any,
    axes: tuple[str, str],
    result: torch.Tensor,
    operands: Pair,
    rows: int,
    sizes: Sizes,
    mask: Decisions,
    length: int = 1,
) -> None:
    """Let a kernel fill its result, whose first axis is of rows, or of parts of so many rows; axes are its tile's."""
    coordinates, tile = coordinates_of(mask, rows), _tile(axes, sizes, DEPTH // operands[0].itemsize)
    strides = [stride for tensor in (*operands, *coordinates) for stride in tensor.stride()]
    arguments = (result, *operands, *mask[:3], *coordinates, rows, *sizes, length, *strides, *tile)
    with torch.cuda.device(result.device) if result.is_cuda else contextlib.nullcontext():
        kernel[(_tiles(axes, sizes) * len(result),)](*arguments, _dtype(operands[0]), _precision(), **OPTIONS)


def _tile(axes: tuple[str, str], sizes: Sizes, depth: int) -> Sizes:
    most = Sizes(*(size if axis in axes else depth for axis, size in TILES._asdict().items()))
    return Sizes(*(min(size, max(SMALLEST, triton.next_power_of_2(n))) for size, n in zip(most, sizes, strict=True)))


def _tiles(axes: tuple[str, str], sizes: Sizes) -> int:
    tile = _tile(axes, sizes, SMALLEST)
    return math.prod(triton.cdiv(getattr(sizes, axis), getattr(tile, axis)) for axis in axes)


def _dtype(operand: torch.Tensor) -> tl.dtype:
    """What operands are multiplied in: as they are, but as float32 in Triton's interpreter, which has no bfloat16."""
    interpreted = not isinstance(_y_kernel, triton.JITFunction)
    return tl.float32 if interpreted else getattr(tl, str(operand.dtype).removeprefix("torch."))


def _precision() -> str:
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"

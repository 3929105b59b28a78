"""The ways to compute y[r,t,o] = sum_i x[r,t,i] * w[i,o] * m[r,i,o], written once for every backend.

Shapes: r runs over the rows that have a mask of their own, t over the positions of a row that share it, i over inputs
and o over outputs. An input of rank 2 has one position a row. x and w are of one floating dtype, float32 or float64.
"""

import collections.abc
import functools
import importlib
import itertools
import math
import operator
import threading
import typing

import numpy as np

from pernodedrop import backends, checks
from pernodedrop._types import Namespace, Tensor, Words
from pernodedrop.backends import programs
from pernodedrop.mask import Field, Grid
from pernodedrop.noise import Bernoulli, Noise, normal

BLOCK_ENTRIES = 2**18
"""Entries evaluated at a time: 1 MiB of float32, so that a handful of temporaries stay in a CPU's cache."""

DEVICE_ENTRIES = 2**24
"""The same on a GPU or another accelerator: 64 MiB of float32, in so few loops that each has work for all of it."""

TYPICAL_BATCH = 128
"""Sizes the blocks of a graph that is traced with an unknown batch."""

KERNEL_ENTRIES = 2**24
"""Entries of the kernels of all samples, 64 MiB of float32, up to which a convolution has them in memory."""

KEPT_BYTES = 2**26
"""Bytes up to which a product that is to be differentiated keeps its decisions, one bit each: half a billion."""

GROUP = 8
"""Inputs whose decisions are kept side by side."""

LOOP_ENTRIES = 2**22
"""Entries of the masks of a sequence, 16 MiB of float32, from which on a loop makes them again at each step.

A quarter is enough where there are gradients: a backward pass reads masked kernels again, writes as large a gradient at
each step, and adds it up. In the CPU time of one core (AMD EPYC, 1 MiB of cache, beside other work; least of several
steps in turns), what an LSTM of `units` took whose masks are made again, as a multiple of what it took with masks in
memory, for sequences of 32 to 128 steps:

| masks, entries | torch, training | torch, forward | NumPy, forward |
| --- | --- | --- | --- |
| 0.5 million | 1.2 to 1.4 | | 1.1 to 1.5 |
| 1 million | 0.7 to 0.9 | 0.6 to 1.3 | 0.9 to 1.4 |
| 2 million | 0.4 to 0.8 | 0.8 to 1.3 | 0.7 to 1.3 |
| 4 million | 0.4 | 0.3 to 0.4 | 0.7 to 0.9 |
| 8 million | 0.1 | 0.1 to 0.3 | 0.3 to 0.9 |

A kernel uses a part of w for `GROUP` rows one after another or more; with fewer it took up to 1.6 times as long. Noises
that are no decisions took 2 to 3 times as long.
"""

DRAWING = threading.Lock()
"""Held from the reading of a key's state to its advance, so that no two threads draw one key."""


class Decisions(typing.NamedTuple):
    """A grid of Bernoulli decisions, flat, as the kernels take it.

    Attributes:
        threshold: that of the noise, an int32 scalar.
        seed, call: word tensors (1,).
        time, sample, in_, out: the coordinates of a `pernodedrop.mask.Grid`.
    """

    threshold: Tensor
    seed: Words
    call: Words
    time: Words
    sample: Words
    in_: Words
    out: Words

    @classmethod
    def of(cls, grid: Grid) -> "Decisions":
        """The decisions of a grid whose noise is a Bernoulli one."""
        return cls(grid.field.params["threshold"], *grid.field.key, *grid[1:])


class Entries(typing.NamedTuple):
    """A grid of entries of any other noise that is a program, flat, as the kernels take it.

    Attributes:
        code, numbers: those of a `pernodedrop.backends.programs.Program`, as tensors.
        seed, call, time, sample, in_, out: as of `Decisions`.
    """

    code: Tensor
    numbers: Tensor
    seed: Words
    call: Words
    time: Words
    sample: Words
    in_: Words
    out: Words

    @classmethod
    def of(cls, grid: Grid, xp: Namespace) -> "Entries":
        """The entries of a grid whose noise is a program."""
        field, device = grid.field, xp.device(grid.time)
        program = programs.of(field.noise)
        if program is None:
            raise TypeError(checks.invalid("noise", PROGRAM, field.noise))
        code = xp.asarray(np.array(program.code, np.int32), device=device)
        numbers = xp.asarray(np.array(program.numbers, np.float32), device=device)
        places = xp.arange(len(program.numbers), like=grid.time)
        for n, name in enumerate(program.names):
            numbers = xp.where(places == xp.word(n), xp.float32(field.params[name]), numbers)
        return cls(code, numbers, *field.key, *grid[1:])


def check_rows(mask: "Decisions | Entries") -> None:
    """Raise a ValueError unless each row has its time and its sample."""
    times, samples = tuple(mask.time.shape), tuple(mask.sample.shape)
    if times != samples:
        raise ValueError(f"Expected as many coordinates sample as time {times}. Received: {samples}")


def check_operands(mask: "Decisions | Entries", x: Tensor, w: Tensor, dy: Tensor | None = None) -> None:
    """Raise unless operands x (r, t, i), w (i, o) and dy (r, t, o) are of one dtype and of a mask's coordinates.

    Kernels read and write where sizes and dtypes say, so they ask first.
    """
    operands = [tensor for tensor in (x, w, dy) if tensor is not None]
    if len({tensor.dtype for tensor in operands}) > 1:
        raise TypeError(f"Expected x, w and dy of one dtype. Received: {[tensor.dtype for tensor in operands]}")
    rows, positions, inputs = x.shape
    outputs = mask.out.shape[0]
    fits = tuple(mask.time.shape) == tuple(mask.sample.shape) == (rows,) and tuple(mask.in_.shape) == (inputs,)
    fits = fits and tuple(w.shape) == (inputs, outputs)
    if not fits or (dy is not None and tuple(dy.shape) != (rows, positions, outputs)):
        coordinates = [tuple(words.shape) for words in (mask.time, mask.sample, mask.in_, mask.out)]
        shapes = [tuple(tensor.shape) for tensor in operands]
        raise ValueError(
            f"Expected operands of the coordinates time, sample, in, out {coordinates}. Received: {shapes}"
        )


def kept_shape(mask: "Decisions | Entries", x: Tensor, w: Tensor) -> tuple[int, int, int, int]:
    """The shape of the bytes of decisions that the product of x (r, t, i) and w (i, o) keeps for its gradients.

    It is (ceil(o / 16) * 2, ceil(i / 8), r, 8). There are none, (0, 0, 0, 8), where positions share them, so that they
    are a small part of the work, where they would take more than `KEPT_BYTES`, and of another noise.
    """
    (rows, positions, inputs), outputs = x.shape, w.shape[1]
    shape = (outputs + 15) // 16 * 2, (inputs + GROUP - 1) // GROUP, rows, GROUP
    if not isinstance(mask, Decisions) or positions != 1 or math.prod(shape) > KEPT_BYTES:
        return 0, 0, 0, GROUP
    return shape


def check_bits(bits: Tensor, mask: "Decisions | Entries", x: Tensor, w: Tensor) -> None:
    """Raise a ValueError unless bits are those that the product of x and w keeps, or none."""
    if bits.size and bits.shape != kept_shape(mask, x, w):
        raise ValueError(f"Expected bits of the shape {kept_shape(mask, x, w)}. Received: {bits.shape}")


def loops_by_kernel(w: Tensor, grid: Grid, differentiated: bool) -> bool:
    """Whether a loop whose steps share a mask is quicker by `kernel_made_again` than with w times it in memory."""
    rows, (inputs, outputs) = grid.sample.shape[0], w.shape
    if rows < GROUP or cpu_kernel_obstacle(grid.field.noise) or kernel_noise_obstacle(grid.field.noise):
        return False
    return rows * inputs * outputs * (4 if differentiated else 1) >= LOOP_ENTRIES


PROGRAM = "a noise of elementwise ops of `pernodedrop.backends.NOISE_OPS` alone"


def flat(grid: Grid, xp: Namespace) -> Decisions | Entries:
    """A grid as the kernels take it."""
    return Entries.of(grid, xp) if kernel_noise_obstacle(grid.field.noise) else Decisions.of(grid)


def from_flat(tensors: collections.abc.Sequence[Tensor]) -> Decisions | Entries:
    """What `flat` gave, of its tensors."""
    return (Decisions if len(tensors) == len(Decisions._fields) else Entries)(*tensors)


def materialized(x: Tensor, w: Tensor, grid: Grid, xp: Namespace) -> Tensor:
    """The product with the whole mask in memory: the oracle of the other ways."""
    return xp.matmul(x, masked(w, grid, xp))


def local_reparameterization(x: Tensor, w: Tensor, grid: Grid, xp: Namespace) -> Tensor:
    """The same distribution without a mask, for a Gaussian noise and one position a row (arXiv 1506.02557).

    Outputs of a row use disjoint entries, so they are independent normal numbers given x and w, with mean x @ w and
    variance stddev**2 * (x**2 @ w**2). Their normals come from the lane after the noise's own, at the first input, so
    that the parts of a kernel that is split have normals of their own.
    """
    y = normals(xp.matmul(x, w)[:, 0, :], xp.matmul(x * x, w * w)[:, 0, :], grid, xp)
    return y[:, None, :]


def normals(mean: Tensor, variance: Tensor, grid: Grid, xp: Namespace) -> Tensor:
    """The outputs (r, o) of `local_reparameterization` with these means, and variances but for the noise's own."""
    field, at = grid.field, backends.of(time=grid.time)  # NumPy where the coordinates are on the host
    word = field.words(field.noise.lanes, grid.time[:, None], grid.sample[:, None], grid.in_[:1], grid.out, at)
    z = xp.astype(normal(xp.asarray(at.uniform(word)), xp), xp.dtype(mean))
    positive = variance > 0
    # sqrt has an infinite slope at 0, which an all-zero row would turn into NaN gradients
    spread = xp.where(positive, xp.sqrt(xp.where(positive, variance, xp.ones_like(variance))), xp.zeros_like(variance))
    return mean + xp.astype(xp.asarray(field.params["stddev"]), xp.dtype(mean)) * spread * z


def shared_over_in_or_out(x: Tensor, w: Tensor, grid: Grid, xp: Namespace) -> Tensor:
    """The product when entries depend on one of in and out at most."""
    mask = xp.astype(xp.entries(grid), xp.dtype(w))
    if grid.out.shape[0] == 1:
        return xp.matmul(x * mask[:, :, 0][:, None, :], w)
    return xp.matmul(x, w) * mask[:, 0, :][:, None, :]


def one_mask(x: Tensor, w: Tensor, grid: Grid, xp: Namespace) -> Tensor:
    """The product when all rows have one mask."""
    return xp.matmul(x, w * xp.astype(xp.entries(grid), xp.dtype(w)))


def chosen(method: str, field: Field, sharing: frozenset[str], x: Tensor, dtype: str, xp: Namespace) -> str:
    """The method that "auto" means for x (row, position, in); another one as it is, unless it cannot be.

    Where an entry has a word of its own it is the kernel wherever that can be had: `docs/speed.md` has the times of
    noises and shapes on each backend, of which none was shorter otherwise.
    """
    few, one_position, persists = sharing & {"in", "out"}, x.shape[1] == 1, field.persists
    noise = field.noise
    check_method(method, noise, few or "sample" in sharing or not one_position or persists, x, dtype, xp)
    if persists and method == "kernel":
        raise ValueError(checks.invalid("method", 'another one than "kernel" beside `persistence`', method))
    if method != "auto":
        return method
    if few:
        return "shared_over_in_or_out"
    if "sample" in sharing and x.shape[0] == 1:
        return "one_mask"
    if persists:
        return "recomputed"
    if noise.gaussian and one_position:
        return "local_reparameterization"
    return "recomputed" if xp.kernel_obstacle(x, noise, dtype) else "kernel"


def check_method(method: str, noise: Noise, shared: object, x: Tensor, dtype: str, xp: Namespace) -> None:
    """Raise unless a method can be: `shared` says whether rows of x have entries in common."""
    obstacle = xp.kernel_obstacle(x, noise, dtype) if method == "kernel" else None
    if obstacle:
        raise ValueError(checks.invalid("method", f'another one than "kernel", which takes {obstacle}', method))
    if method != "local_reparameterization" or (noise.gaussian and not shared):
        return
    expected = "another method: 'local_reparameterization' holds only for "
    if not noise.gaussian:
        expected += f"a Gaussian noise, and this is {noise!r}"
    else:
        expected += "a mask of its own for every row of x, and here entries are shared"
    raise ValueError(checks.invalid("method", expected, method))


def masked(w: Tensor, grid: Grid, xp: Namespace) -> Tensor:
    """The kernel of each row, w times its mask: (r, i, o)."""
    return w * xp.astype(grid.entries(xp), xp.dtype(w))


class Window(typing.NamedTuple):
    """How a convolution sees an input (row, *space, channel) that has its zeros around already.

    Attributes:
        size, stride, dilation: those of the kernel along each axis of space.
        outputs: the sizes of what it gives.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    outputs: tuple[int, ...]

    def slices(self, place: collections.abc.Iterable[int]) -> tuple[slice, ...]:
        """What all positions of the output see at one place in the window, as slices of space."""
        axes = zip(place, self.stride, self.dilation, self.outputs, strict=True)
        return tuple([slice(p * d, p * d + (n - 1) * s + 1, s) for p, s, d, n in axes])

    def places(self, space: tuple[int, ...]) -> np.typing.NDArray[np.int32]:
        """Which place of flat space each position of the output sees at each place in the window: (time, place)."""
        flat = np.arange(math.prod(space), dtype=np.int32).reshape(space)
        seen = [flat[self.slices(place)].reshape(-1) for place in itertools.product(*map(range, self.size))]
        return np.stack(seen, axis=1)

    def patches(self, x: Tensor, groups: int, stack: typing.Callable[..., Tensor], xp: Namespace) -> Tensor:
        """What the positions of the output see of x: (group, row, time, in), in being row-major over (place, channel).

        `stack` is the function of that name of x' framework.
        """
        places = itertools.product(*map(range, self.size))
        seen = stack([x[(slice(None), *self.slices(place))] for place in places], -2)
        rows, times, positions, channels = xp.shape(x)[0], *map(math.prod, (self.outputs, self.size)), x.shape[-1]
        seen = xp.reshape(seen, (rows, times, positions, groups, channels // groups))
        return xp.reshape(xp.permute_dims(seen, (3, 0, 1, 2, 4)), (groups, rows, times, positions * channels // groups))


def has_kernels(shape: tuple[int, int, int], window: Window, sharing: frozenset[str], rows: int | None) -> bool:
    """Whether "auto" convolves with a kernel in memory for each row, rather than multiply patches, on any backend.

    It does where several positions share a row's mask, and the kernels take no more memory than the patches would, or
    `KERNEL_ENTRIES` at most.

    Args:
        shape: that of the layer's kernel, (group, in, out).
        window: how it sees its input.
        sharing: the coordinates that a mask does not depend on.
        rows: how many there are; None where only the run knows.
    """
    positions, outputs = math.prod(window.outputs), shape[2]
    if positions == 1 or not ("time" in sharing and "sample" not in sharing):
        return False
    return outputs <= positions or (rows or TYPICAL_BATCH) * math.prod(shape) <= KERNEL_ENTRIES


def shifted_products(x: Tensor, kernels: Tensor, window: Window, xp: Namespace) -> Tensor:
    """Each row of x convolved with a kernel of its own, as a sum of products over the places in the window.

    Args:
        x: (row, *space, channel), with its zeros around.
        kernels: (row, group, in, out), in being row-major over (place in the window, channel in the group).
        window: how x is seen.
        xp: the ops namespace of the framework that they belong to.

    Returns:
        A tensor (row, time, channel), time being row-major over the positions of the output, channel over (group, out).
    """
    (rows, *_), (groups, _, outputs) = xp.shape(x), kernels.shape[1:]
    channels, times = x.shape[-1] // groups, math.prod(window.outputs)
    kernels = xp.reshape(kernels, (rows, groups, math.prod(window.size), channels, outputs))

    def at(n: int, place: tuple[int, ...]) -> Tensor:
        seen = xp.reshape(x[(slice(None), *window.slices(place))], (rows, times, groups, channels))
        if channels == 1:
            return seen * kernels[:, None, :, n, 0]
        return xp.permute_dims(xp.matmul(xp.permute_dims(seen, (0, 2, 1, 3)), kernels[:, :, n]), (0, 2, 1, 3))

    first, *others = [at(n, place) for n, place in enumerate(itertools.product(*map(range, window.size)))]
    return xp.reshape(functools.reduce(operator.add, others, first), (rows, times, groups * outputs))


def block_length(rows: int | Tensor, outputs: int, on_cpu: bool = True) -> int:
    """How many inputs make a block; `rows` is no int where a framework does not know it yet."""
    rows = rows if isinstance(rows, int) else TYPICAL_BATCH
    return max(1, (BLOCK_ENTRIES if on_cpu else DEVICE_ENTRIES) // max(1, rows * outputs))


def blocks(
    x: Tensor, w: Tensor, grid: Grid, xp: Namespace, on_cpu: bool = True
) -> collections.abc.Iterator[tuple[slice, Tensor]]:
    """The blocks of the input axis as slices, each with its mask."""
    length = block_length(x.shape[0], w.shape[1], on_cpu)
    for start in range(0, x.shape[2], length):
        block = slice(start, min(start + length, x.shape[2]))
        yield block, grid._replace(in_=grid.in_[block]).entries(xp)


def forward_block(x: Tensor, w: Tensor, mask: Tensor, xp: Namespace) -> Tensor:
    """What one block of inputs adds to y: x (r, t, k), w (k, o), mask (r, k, o) -> (r, t, o)."""
    mask = xp.astype(mask, xp.dtype(w))
    if x.shape[1] != 1:
        return xp.matmul(x, w * mask)
    return xp.sum(mask * (xp.permute_dims(x, (0, 2, 1)) * w), axis=1)[:, None, :]  # XLA makes a mask inside a sum


def input_gradient_block(w: Tensor, mask: Tensor, dy: Tensor, xp: Namespace) -> Tensor:
    """The gradient of one block of inputs: dx (r, t, k)."""
    mask = xp.astype(mask, xp.dtype(w))
    if dy.shape[1] != 1:
        return xp.matmul(dy, xp.permute_dims(w * mask, (0, 2, 1)))
    return xp.sum(mask * (w * dy), axis=2)[:, None, :]


def kernel_gradient_block(x: Tensor, mask: Tensor, dy: Tensor, xp: Namespace) -> Tensor:
    """The gradient of one block of the kernel: dw (k, o), summed over rows."""
    mask, x = xp.astype(mask, xp.dtype(x)), xp.permute_dims(x, (0, 2, 1))
    return xp.sum(mask * (xp.matmul(x, dy) if x.shape[2] != 1 else x * dy), axis=0)


def kernel_noise_obstacle(noise: Noise) -> str | None:
    """What the kernels of decisions ask for and `noise` is not, as text for an error, or None."""
    return None if type(noise).from_words is Bernoulli.from_words else "Bernoulli noise"


@functools.cache
def numba_obstacle() -> str | None:
    """numba, which the kernels for CPUs ask for, if it cannot be used here, as text for an error, or None."""
    try:
        importlib.import_module("numba")
    except ImportError as error:
        return f"numba (pip install 'pernodedrop[fast]'; here: {error})"
    return None


def cpu_kernel_obstacle(noise: Noise) -> str | None:
    """What the kernels on CPUs ask for and do not have here, as text for an error, or None."""
    return (None if programs.of(noise) else PROGRAM) or numba_obstacle()


REDRAW = (
    "A key was about to be drawn inside a rematerialized function, whose backward pass would draw another one and so "
    "differentiate another mask than the forward pass applied. Draw outside and pass the key: `key = layer.draw()`, "
    "then `layer(x, training=True, key=key)` inside `keras.remat`; of an op, `pernodedrop.ops.draw` likewise."
)
"""The message of `refuse_redraw`."""

"""PyTorch, eager and compiled, on any device.

torch has no uint32 arithmetic, so words are int32 with the same bits. What must not be taken apart by torch.compile is
a custom operator: the recomputed product (its block loop would be unrolled into the graph) and the drawing of a key
(a backward pass that makes its forward pass again would otherwise read the state that the draw has already advanced).
"""

import dataclasses
import functools
import sys
import typing
import warnings

import torch
from torch import (
    abs,
    acos,
    asin,
    atan,
    broadcast_to,
    cos,
    erf,
    erfinv,
    exp,
    expm1,
    floor,
    log,
    log1p,
    ones_like,
    permute,
    reshape,
    sign,
    sin,
    sqrt,
    squeeze,
    sum,
    tan,
    tanh,
    zeros_like,
)
from torch import (
    arange as _arange,
)
from torch import unbind as unstack
from torch import unsqueeze as expand_dims

from pernodedrop import checks
from pernodedrop.backends import methods, numpy_ops, sparse_methods
from pernodedrop.backends import torch_products as products
from pernodedrop.internals import of_torch
from pernodedrop.mask import Grid

xp = sys.modules[__name__]
permute_dims = permute


def where(condition, a, b):
    return torch.where(condition, a, b)


def maximum(a, b):
    a, b = (a, b) if torch.is_tensor(a) else (b, a)
    return torch.clamp(a, min=b)


def minimum(a, b):
    a, b = (a, b) if torch.is_tensor(a) else (b, a)
    return torch.clamp(a, max=b)


def clip(x, low, high):
    return minimum(maximum(x, low), high)  # torch.clamp takes no number beside a tensor


def word(n):
    return n - 2**32 if n >= 2**31 else n


def as_word(n):
    if isinstance(n, int):
        n &= 0xFFFFFFFF
        # an operator's first call imports torch._dynamo, which takes seconds
        return _int_word(n) if torch.compiler.is_compiling() else torch.tensor([word(n)], dtype=torch.int32)
    n = torch.as_tensor(n)
    n = n if n.ndim else n[None]
    return n.view(torch.int32) if n.dtype == torch.uint32 else n.to(torch.int32)


@torch.library.custom_op("pernodedrop::int_word", mutates_args=())
def _int_word(n: int) -> torch.Tensor:
    # opaque, since inductor computes with the int itself, which does not wrap around at 32 bits
    return torch.tensor([word(n)], dtype=torch.int32)


@_int_word.register_fake
def _(n):
    return torch.empty(1, dtype=torch.int32)


def arange(n, like):
    return _arange(n, dtype=torch.int32, device=like.device)


def shift_right(x, n):
    return (x >> n) & (2 ** (32 - n) - 1)


def modulo(x, n):
    return ((x.long() & 0xFFFFFFFF) % n).to(torch.int32)


def bits24(x):
    return shift_right(x, 8)


def uniform(x):
    return (shift_right(x, 9).to(torch.float32) + 0.5) * 2**-23


def float32(x):
    return x.to(torch.float32)


def dtype(x):
    return str(x.dtype).removeprefix("torch.")


def layout(x):
    if x.is_nested:
        return "ragged"
    return _LAYOUTS.get(x.layout, "other")


_LAYOUTS = {torch.strided: "dense", torch.sparse_coo: "sparse", torch.sparse_csr: "sparse"}


def device(x):
    return x.device


def shape(x):
    return tuple(x.shape)


def astype(x, name):
    return x.to(getattr(torch, name))


def asarray(x, device=None):
    return torch.as_tensor(x, device=device)


def take(x, indices, axis):
    return torch.index_select(x, axis, indices)


def take_along_axis(x, indices, axis):
    return torch.gather(x, axis, indices.long())


def running_maximum(x, axis):
    return torch.cummax(x, axis).values


def matmul(a, b):
    with products.in_full_precision(a):
        return torch.matmul(a, b)


def stop_gradient(x):
    return x.detach()


def optimization_barrier(x):
    return x


def to_numpy(x):
    return x.detach().cpu().numpy()


def is_integer(x):
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def convolved(x, kernels, window):
    """As one convolution with a group for each row and group."""
    if 0 in x.shape:
        return methods.shifted_products(x, kernels, window, xp)
    (rows, groups, _, outputs), (*space, channels) = kernels.shape, x.shape[1:]
    each, axes = channels // groups, len(space)
    x = x.movedim(-1, 1).reshape(1, rows * channels, *space)
    kernels = kernels.reshape(rows * groups, *window.size, each, outputs)
    kernels = kernels.permute(0, -1, -2, *range(1, axes + 1)).reshape(-1, each, *window.size)
    convolve = getattr(torch.nn.functional, f"conv{axes}d")
    with products.in_full_precision(x):
        y = convolve(x, kernels, None, window.stride, 0, window.dilation, rows * groups)
    return y.reshape(rows, groups * outputs, -1).movedim(1, 2)


def fused(function):
    return function


def recomputed(x, w, grid):
    field = grid.field
    if torch.compiler.is_compiling():
        return _recomputed(x, w, _filed(field.noise), " ".join(field.params), grid.tensors())
    return products.Product.apply(_Blocks(field.noise, tuple(field.params)), x, w, tuple(grid.tensors()))


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """The passes of a mask that is made block by block."""

    noise: typing.Any
    names: tuple[str, ...]

    def forward(self, x, w, mask):
        return _forward(x, w, Grid.from_tensors(self.noise, self.names, mask))

    def backward(self, dy, x, w, mask):
        return _backward(dy, x, w, Grid.from_tensors(self.noise, self.names, mask))


def _forward(x, w, grid):
    y = x.new_zeros((*x.shape[:2], w.shape[1]))
    for block, entries in methods.blocks(x, w, grid, xp, x.device.type == "cpu"):
        y += methods.forward_block(x[:, :, block], w[block], entries, xp)
    return y


def _backward(dy, x, w, grid):
    dx, dw = x.new_empty(x.shape), w.new_empty(w.shape)
    for block, entries in methods.blocks(x, w, grid, xp, x.device.type == "cpu"):
        dx[:, :, block] = methods.input_gradient_block(w[block], entries, dy, xp)
        dw[block] = methods.kernel_gradient_block(x[:, :, block], entries, dy, xp)
    return dx, dw


# Compiled: operators, into which no graph looks; it would unroll the loop over the blocks.


@torch.library.custom_op("pernodedrop::recomputed", mutates_args=())
def _recomputed(x: torch.Tensor, w: torch.Tensor, noise: str, names: str, mask: products.Tensors) -> torch.Tensor:
    return _forward(x, w, Grid.from_tensors(_FILE[noise], names.split(), mask))


@_recomputed.register_fake
def _(x, w, noise, names, mask):
    return x.new_empty((*x.shape[:2], w.shape[1]))


@torch.library.custom_op("pernodedrop::recomputed_backward", mutates_args=())
def _recomputed_backward(
    dy: torch.Tensor, x: torch.Tensor, w: torch.Tensor, noise: str, names: str, mask: products.Tensors
) -> tuple[torch.Tensor, torch.Tensor]:
    return _backward(dy, x, w, Grid.from_tensors(_FILE[noise], names.split(), mask))


@_recomputed_backward.register_fake
def _(dy, x, w, noise, names, mask):
    return x.new_empty(x.shape), w.new_empty(w.shape)


def _setup_context(ctx, inputs, output):
    x, w, ctx.noise, ctx.names, mask = inputs
    ctx.save_for_backward(x, w, *mask)


def _backward_of_recomputed(ctx, dy):
    x, w, *mask = ctx.saved_tensors
    dx, dw = _recomputed_backward(dy.contiguous(), x, w, ctx.noise, ctx.names, mask)
    return dx, dw, None, None, [None] * len(mask)


_recomputed.register_autograd(_backward_of_recomputed, setup_context=_setup_context)

_FILE: dict = {}
"""The noises of compiled graphs: an operator takes tensors and strings only, so a noise crosses its border by name."""


@of_torch.constant_in_graphs
def _filed(noise):
    for name, filed in _FILE.items():
        if filed == noise:
            return name
    name = f"{type(noise).__name__}-{len(_FILE)}"
    _FILE[name] = noise
    return name


@of_torch.constant_in_graphs
def _cpu_kernel_obstacle(noise):
    return methods.cpu_kernel_obstacle(noise)


def kernel_obstacle(x, noise, dtype):
    if layout(x) == "sparse" and x.device.type != "cpu":
        return "a tensor on a CPU where x is sparse"
    if x.device.type == "cpu":
        return _cpu_kernel_obstacle(noise)
    if x.device.type != "cuda":
        return "a tensor on a CPU or on CUDA"
    if products.TRITON_KERNELS is None:
        return "triton, which is not installed, or was not imported before TensorFlow"
    if dtype != "float32":
        return "float32"
    return methods.kernel_noise_obstacle(noise)


def on_host(field, samples):
    if samples.device.type != "cpu" or of_torch.is_traced() or of_torch.in_transform():
        return None
    return _field_on_host(field), _words_on_host(samples)


def _field_on_host(field):
    params = {name: number.numpy() for name, number in field.params.items()}
    return field._replace(params=params, key=tuple(map(_words_on_host, field.key)))


def _words_on_host(words):
    return words.numpy().view("uint32")


def kernel(x, w, grid):
    if torch.is_tensor(grid.in_):
        return products.product_by_kernels(x, w, methods.flat(grid, xp))
    return products.product_by_kernels_on_host(x, w, methods.flat(grid, numpy_ops))


def kernel_made_again(x, w, grid):
    mask = methods.flat(grid, xp)
    if of_torch.is_traced():
        return products.kernel(x, w, list(mask))
    return products.Product.apply(products.Kernels(), x, w, tuple(mask))


def loops_by_kernel(w, grid):
    if w.device.type != "cpu" or of_torch.is_traced() or of_torch.in_transform():
        return False
    return methods.loops_by_kernel(w, grid, torch.is_grad_enabled() and w.requires_grad)


def masked(w, grid):
    if of_torch.is_traced() and not _entries_obstacle(grid):
        return w * products.entries(list(methods.Entries.of(grid, xp))).to(w.dtype)
    return w * entries(grid).to(w.dtype)


def entries(grid):
    if not torch.is_tensor(grid.time):
        return torch.from_numpy(numpy_ops.entries(grid))
    if of_torch.is_traced() or _entries_obstacle(grid):  # what is compiled may become part of what uses it
        return grid.entries(xp)
    if of_torch.in_transform():
        return products.Entries.apply(tuple(methods.Entries.of(grid, xp)))
    # elsewhere a function of autograd would cost as much as a small mask, which has no gradient
    return products.entries_on_host(methods.Entries.of(_grid_on_host(grid), numpy_ops))


def _grid_on_host(grid):
    return Grid(_field_on_host(grid.field), *map(_words_on_host, grid[1:]))


def _entries_obstacle(grid):
    return grid.field.persists or grid.time.device.type != "cpu" or _cpu_kernel_obstacle(grid.field.noise)


for _operator in (
    *(_recomputed, _recomputed_backward, products.entries),
    *(products.kernel, products.kernel_backward, products.kernel_keeping, products.kept_backward),
):
    _operator.register_vmap(functools.partial(products.one_by_one, _operator))


# Of a sparse x: the same functions of `torch.autograd`, whose x are the values of the entries. torch.compile makes no
# graph of sparse tensors, so nothing here is an operator.


def triples(x):
    if x.layout == torch.sparse_csr:
        if x.ndim != 2 or x.dense_dim():
            raise TypeError(checks.invalid("x", "a CSR tensor without batches, of scalars", x.shape))
        rows = torch.repeat_interleave(torch.diff(x.crow_indices()).long())
        return x.values(), rows, x.col_indices().long()
    if x.dense_dim():
        raise TypeError(checks.invalid("x", "a COO tensor of scalars, without dense axes", x.shape))
    x = x.coalesce()
    *places, columns = x.indices()
    rows = places[0]
    for size, place in zip(x.shape[1:-1], places[1:], strict=True):
        rows = rows * size + place
    return x.values(), rows, columns


def segment_sum(terms, index, count):
    return terms.new_zeros((count, terms.shape[1])).index_add(0, index, terms)


def sparse_matmul(values, rows, columns, count, w, squares=False):
    if squares:
        used, columns = torch.unique(columns, return_inverse=True)  # w may have many times as many rows
        values, w = values * values, w.index_select(0, used) ** 2
    return products.Product.apply(products.Listed(count), values, w, (rows, columns))


def sparse_recomputed(values, rows, columns, w, grid):
    passes = _ListedBlocks(grid.field.noise, tuple(grid.field.params))
    return products.Product.apply(passes, values, w, (rows, columns, *grid.tensors()))


def sparse_kernel(values, rows, columns, w, grid):
    return products.Product.apply(products.ListedKernels(), values, w, (rows, columns, *methods.flat(grid, xp)))


@dataclasses.dataclass(frozen=True)
class _ListedBlocks:
    """The passes of a mask that is made block by block of outputs."""

    noise: typing.Any
    names: tuple[str, ...]

    def forward(self, values, w, mask):
        rows, columns, *mask = mask
        grid = Grid.from_tensors(self.noise, self.names, mask)
        y = w.new_empty((len(grid.time), w.shape[1]))
        for block, part in sparse_methods.blocks(len(values), grid, w.shape[1]):
            y[:, block] = sparse_methods.forward_block(values, rows, columns, w[:, block], part, xp)
        return y

    def backward(self, dy, values, w, mask):
        rows, columns, *mask = mask
        grid = Grid.from_tensors(self.noise, self.names, mask)
        dvalues, dw = torch.zeros_like(values), torch.empty_like(w)
        for block, part in sparse_methods.blocks(len(values), grid, w.shape[1]):
            more, dw[:, block] = sparse_methods.gradients_block(
                dy[:, block], values, rows, columns, w[:, block], part, xp
            )
            dvalues += more
        return dvalues, dw


def draw(variable):
    if torch.compiler.is_compiling() or of_torch.in_transform():
        return _draw(variable.value)  # an operator, whose insides neither of them looks at
    with methods.DRAWING:
        key = variable.value.detach().clone()
        if key.is_meta:  # Keras asks for shapes; where an op fails then, it asks again, with the key that is left here
            return key
        variable.assign(key + _arange(2, dtype=key.dtype, device=key.device))  # call + 1
    return key


@torch.library.custom_op("pernodedrop::draw", mutates_args=("state",))
def _draw(state: torch.Tensor) -> torch.Tensor:
    with methods.DRAWING, torch.no_grad():
        key = state.detach().clone()
        state[1] += 1
    return key


@_draw.register_fake
def _(state):
    return torch.empty_like(state)


def global_rows(n, like):
    rank, ranks = _rank()
    rows = arange(n, like)
    return rows if ranks == 1 else rows * ranks + rank  # as DistributedSampler deals them out


@of_torch.constant_in_graphs
def _rank():
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def sum_of_replicas(x):
    if _rank()[1] > 1:  # a rank that does not call the layer, as in a pipeline, would leave the others waiting
        expected = "'sample' with torch.distributed, whose ranks have parts of the batch"
        raise ValueError(checks.invalid("normalize", expected, "batch"))
    return x


@of_torch.constant_in_graphs
def warn_of_replicas():
    if _rank()[0] > 0:
        warnings.warn(RANKS, stacklevel=1)


RANKS = (
    "An op counts its rows from 0, so with torch.distributed the ranks have equal masks for different samples. Pass "
    "where a row is in the global batch: `sample_offset` or `sample_ids`."
)


def refuse_redraw():
    if torch.compiler.is_compiling():
        return  # there the draw inside a checkpoint is refused by torch itself: it is a side effect
    if of_torch.in_checkpoint():
        raise RuntimeError(methods.REDRAW)

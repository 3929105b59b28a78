"""PyTorch, eager and compiled, on any device.

torch has no uint32 arithmetic, so words are int32 with the same bits. What must not be taken apart by torch.compile is
a custom operator: the recomputed product (its block loop would be unrolled into the graph) and the drawing of a key
(a backward pass that makes its forward pass again would otherwise read the state that the draw has already advanced).
"""

import contextlib
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
    sum,
    tan,
    tanh,
    zeros_like,
)
from torch import (
    arange as _arange,
)

from pernodedrop import checks
from pernodedrop.backends import methods, sparse_methods
from pernodedrop.internals import of_torch
from pernodedrop.mask import Grid

xp = sys.modules[__name__]
permute_dims = permute

_Tensors = typing.Sequence[torch.Tensor]


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
    n = torch.atleast_1d(torch.as_tensor(n))
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
    return {torch.strided: "dense", torch.sparse_coo: "sparse", torch.sparse_csr: "sparse"}.get(x.layout, "other")


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


def matmul(a, b):
    with _in_full_precision(a):
        return torch.matmul(a, b)


def _in_full_precision(x):
    """torch.autocast would sum in half precision."""
    return contextlib.nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


def stop_gradient(x):
    return x.detach()


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
    with _in_full_precision(x):
        y = convolve(x, kernels, None, window.stride, 0, window.dilation, rows * groups)
    return y.reshape(rows, groups * outputs, -1).movedim(1, 2)


def fused(function):
    return function


def recomputed(x, w, grid):
    field = grid.field
    if torch.compiler.is_compiling():
        return _recomputed(x, w, _filed(field.noise), " ".join(field.params), grid.tensors())
    return _Product.apply(_Blocks(field.noise, tuple(field.params)), x, w, tuple(grid.tensors()))


# Eager: functions of `torch.autograd`, which know all derivatives, and `torch.func`. A product is linear in x and in w,
# so its derivatives are made of its own two passes, and so are theirs.


class _Product(torch.autograd.Function):
    """The product by two passes, a `_Blocks` or a `_Kernels`: of x, w and the tensors of the mask."""

    @staticmethod
    def forward(passes, x, w, mask):
        return passes.forward(x, w, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.passes, *tensors, mask = inputs
        ctx.save_for_backward(*tensors, *mask)
        ctx.save_for_forward(*tensors, *mask)

    @staticmethod
    def backward(ctx, dy):
        x, w, *mask = ctx.saved_tensors
        return None, *_Gradients.apply(ctx.passes, dy, x, w, tuple(mask)), None

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return _one_by_one(_Product.apply, info, in_dims, *inputs)

    @staticmethod
    def jvp(ctx, _passes, x_dot, w_dot, _mask):
        x, w, *mask = ctx.saved_tensors
        x_dot, w_dot = _zeros_for_none((x_dot, w_dot), (x, w))
        return _Product.apply(ctx.passes, x_dot, w, tuple(mask)) + _Product.apply(ctx.passes, x, w_dot, tuple(mask))


class _Gradients(torch.autograd.Function):
    """The gradients dx and dw of a `_Product`."""

    @staticmethod
    def forward(passes, dy, x, w, mask):
        return passes.backward(dy, x, w, mask)

    setup_context = _Product.setup_context

    @staticmethod
    def backward(ctx, of_dx, of_dw):
        dy, x, w, *mask = ctx.saved_tensors
        passes, mask = ctx.passes, tuple(mask)
        of_dy = _Product.apply(passes, of_dx, w, mask) + _Product.apply(passes, x, of_dw, mask)
        of_x, _ = _Gradients.apply(passes, dy, x, of_dw, mask)
        _, of_w = _Gradients.apply(passes, dy, of_dx, w, mask)
        return None, of_dy, of_x, of_w, None

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return _one_by_one(_Gradients.apply, info, in_dims, *inputs)

    @staticmethod
    def jvp(ctx, _passes, dy_dot, x_dot, w_dot, _mask):
        dy, x, w, *mask = ctx.saved_tensors
        dy_dot, x_dot, w_dot = _zeros_for_none((dy_dot, x_dot, w_dot), (dy, x, w))
        dx, dw = _Gradients.apply(ctx.passes, dy_dot, x, w, tuple(mask))
        more_dx, more_dw = _Gradients.apply(ctx.passes, dy, x_dot, w_dot, tuple(mask))
        return dx + more_dx, dw + more_dw


def _zeros_for_none(tangents, primals):
    """Tangents, of which torch gives None where there is none."""
    return [torch.zeros_like(x) if dot is None else dot for dot, x in zip(tangents, primals, strict=True)]


def _one_by_one(function, info, in_dims, *inputs):
    """What a function gives for each of the batch that `torch.func.vmap` makes of its inputs."""

    def at(n, value, dim):
        if isinstance(value, tuple | list) and dim is not None:
            return type(value)(at(n, *pair) for pair in zip(value, dim, strict=True))
        return value if dim is None else value.select(dim, n)

    results = [function(*at(n, inputs, in_dims)) for n in range(info.batch_size)]
    if isinstance(results[0], tuple):
        return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])
    return torch.stack(results), 0


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
    for block, entries in methods.blocks(x, w, grid, xp):
        y += methods.forward_block(x[:, :, block], w[block], entries, xp)
    return y


def _backward(dy, x, w, grid):
    dx, dw = x.new_empty(x.shape), w.new_empty(w.shape)
    for block, entries in methods.blocks(x, w, grid, xp):
        dx[:, :, block] = methods.input_gradient_block(w[block], entries, dy, xp)
        dw[block] = methods.kernel_gradient_block(x[:, :, block], entries, dy, xp)
    return dx, dw


# Compiled: operators, into which no graph looks; it would unroll the loop over the blocks.


@torch.library.custom_op("pernodedrop::recomputed", mutates_args=())
def _recomputed(x: torch.Tensor, w: torch.Tensor, noise: str, names: str, mask: _Tensors) -> torch.Tensor:
    return _forward(x, w, Grid.from_tensors(_FILE[noise], names.split(), mask))


@_recomputed.register_fake
def _(x, w, noise, names, mask):
    return x.new_empty((*x.shape[:2], w.shape[1]))


@torch.library.custom_op("pernodedrop::recomputed_backward", mutates_args=())
def _recomputed_backward(
    dy: torch.Tensor, x: torch.Tensor, w: torch.Tensor, noise: str, names: str, mask: _Tensors
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


def _load_triton_kernels():
    """The kernels for CUDA, or None without it. They are loaded at once: TensorFlow may be imported later.

    After TensorFlow the import of triton would abort the process.
    """
    if not torch.cuda.is_available() or ("tensorflow" in sys.modules and "triton" not in sys.modules):
        return None
    try:
        from pernodedrop.backends import triton_kernels
    except ImportError:
        return None
    return triton_kernels


_TRITON_KERNELS = _load_triton_kernels()


@of_torch.constant_in_graphs
def _numba_obstacle():
    return methods.numba_obstacle()


def kernel_obstacle(x, noise, dtype):
    if layout(x) == "sparse" and x.device.type != "cpu":
        return "a tensor on a CPU where x is sparse"
    if x.device.type == "cpu":
        return methods.kernel_noise_obstacle(noise) or _numba_obstacle()
    if x.device.type != "cuda":
        return "a tensor on a CPU or on CUDA"
    if _TRITON_KERNELS is None:
        return "triton, which is not installed, or was not imported before TensorFlow"
    if dtype != "float32" or x.shape[1] != 1:
        return "float32 and a mask of its own for every row of x"
    return methods.kernel_noise_obstacle(noise)


def kernel(x, w, grid):
    decisions = methods.Decisions.of(grid)
    if torch.compiler.is_compiling():
        return _kernel(x, w, list(decisions))
    return _Product.apply(_Kernels(), x, w, tuple(decisions))


class _Kernels:
    """The passes by the kernels that are written by hand; as operators they would import torch._dynamo, and triton."""

    def forward(self, x, w, mask):
        return (_on_cuda if x.is_cuda else _on_cpu)(x, w, mask)

    def backward(self, dy, x, w, mask):
        return (_backward_on_cuda if x.is_cuda else _backward_on_cpu)(dy, x, w, mask)


def _on_cpu(x, w, decisions):
    from pernodedrop.backends import cpu_kernels

    return torch.from_numpy(cpu_kernels.product(x.numpy(), w.numpy(), _host(decisions)))


def _on_cuda(x, w, decisions):
    if 0 in x.shape:
        return x.new_zeros((*x.shape[:2], w.shape[1]))
    return _TRITON_KERNELS.forward(x[:, 0], w, methods.Decisions(*decisions))[:, None]


def _backward_on_cpu(dy, x, w, decisions):
    from pernodedrop.backends import cpu_kernels

    dx, dw = cpu_kernels.gradients(dy.numpy(), x.numpy(), w.numpy(), _host(decisions))
    return torch.from_numpy(dx), torch.from_numpy(dw)


def _backward_on_cuda(dy, x, w, decisions):
    if 0 in x.shape:
        return torch.zeros_like(x), torch.zeros_like(w)
    dx, dw = _TRITON_KERNELS.backward(dy[:, 0], x[:, 0], w, methods.Decisions(*decisions))
    return dx[:, None], dw


def _host(decisions):
    threshold, *words = (tensor.numpy() for tensor in decisions)
    return methods.Decisions(threshold, *(word.view("uint32") for word in words))


@torch.library.custom_op("pernodedrop::kernel", mutates_args=(), device_types="cpu")
def _kernel(x: torch.Tensor, w: torch.Tensor, decisions: _Tensors) -> torch.Tensor:
    return _on_cpu(x, w, decisions)


@_kernel.register_fake
def _(x, w, decisions):
    return x.new_empty((*x.shape[:2], w.shape[1]))


@torch.library.custom_op("pernodedrop::kernel_backward", mutates_args=(), device_types="cpu")
def _kernel_backward(
    dy: torch.Tensor, x: torch.Tensor, w: torch.Tensor, decisions: _Tensors
) -> tuple[torch.Tensor, torch.Tensor]:
    return _backward_on_cpu(dy, x, w, decisions)


@_kernel_backward.register_fake
def _(dy, x, w, decisions):
    return x.new_empty(x.shape), w.new_empty(w.shape)


_kernel.register_kernel("cuda")(_on_cuda)
_kernel_backward.register_kernel("cuda")(_backward_on_cuda)


def _setup_kernel_context(ctx, inputs, output):
    x, w, decisions = inputs
    ctx.save_for_backward(x, w, *decisions)


def _backward_of_kernel(ctx, dy):
    x, w, *decisions = ctx.saved_tensors
    return *_kernel_backward(dy, x, w, decisions), [None] * len(decisions)


_kernel.register_autograd(_backward_of_kernel, setup_context=_setup_kernel_context)

for _operator in (_recomputed, _recomputed_backward, _kernel, _kernel_backward):
    _operator.register_vmap(functools.partial(_one_by_one, _operator))


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
    return _Product.apply(_Listed(count), values, w, (rows, columns))


def sparse_recomputed(values, rows, columns, w, grid):
    passes = _ListedBlocks(grid.field.noise, tuple(grid.field.params))
    return _Product.apply(passes, values, w, (rows, columns, *grid.tensors()))


def sparse_kernel(values, rows, columns, w, grid):
    return _Product.apply(_ListedKernels(), values, w, (rows, columns, *methods.Decisions.of(grid)))


@dataclasses.dataclass(frozen=True)
class _Listed:
    """The passes of a product without a mask."""

    count: int

    def forward(self, values, w, mask):
        rows, columns = mask
        return _sparse_mm(values, rows, columns, (self.count, len(w)), w)

    def backward(self, dy, values, w, mask):
        rows, columns = mask
        parts = [
            (dy.index_select(0, part_rows) * w.index_select(0, part_columns)).sum(1)
            for part_rows, part_columns in zip(rows.split(_PART), columns.split(_PART), strict=True)
        ]
        dvalues = torch.cat(parts) if parts else torch.zeros_like(values)
        return dvalues, _sparse_mm(values, columns, rows, (len(w), self.count), dy)


_PART = 1024
"""Entries whose products of rows are in memory at a time."""


def _sparse_mm(values, rows, columns, shape, w):
    matrix = torch.sparse_coo_tensor(torch.stack([rows, columns]), values, shape, check_invariants=False)
    with _in_full_precision(w):
        return torch.sparse.mm(matrix, w)


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


class _ListedKernels:
    """The passes by the kernels that are written by hand."""

    def forward(self, values, w, mask):
        from pernodedrop.backends import cpu_kernels

        rows, columns, *decisions = mask
        values, rows, columns, w = (tensor.numpy() for tensor in (values, rows, columns, w))
        return torch.from_numpy(cpu_kernels.sparse_product(values, rows, columns, w, _host(decisions)))

    def backward(self, dy, values, w, mask):
        from pernodedrop.backends import cpu_kernels

        rows, columns, *decisions = mask
        dy, values, rows, columns, w = (tensor.numpy() for tensor in (dy, values, rows, columns, w))
        dvalues, dw = cpu_kernels.sparse_gradients(dy, values, rows, columns, w, _host(decisions))
        return torch.from_numpy(dvalues), torch.from_numpy(dw)


def draw(variable):
    if torch.compiler.is_compiling() or of_torch.in_transform():
        return _draw(variable.value)  # an operator, whose insides neither of them looks at
    with methods.DRAWING:
        key = variable.value.detach().clone()
        if key.is_meta:  # Keras asks for shapes; where an op fails then, it asks again, with the key that is left here
            return key
        variable.assign(key + torch.tensor([0, 1], dtype=key.dtype, device=key.device))
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


def replica_offset(n):
    warn_of_replicas()
    return 0


@of_torch.constant_in_graphs
def warn_of_replicas():
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    if torch.distributed.get_rank() > 0:
        warnings.warn(RANKS, stacklevel=1)


RANKS = (
    "Every process counts its rows from 0, so with torch.distributed the ranks have equal masks for different samples. "
    "Pass where a row is in the global batch: `sample_ids` to a layer, `sample_offset` or `sample_ids` to an op."
)


def refuse_redraw():
    if torch.compiler.is_compiling():
        return  # there the draw inside a checkpoint is refused by torch itself: it is a side effect
    if of_torch.in_checkpoint():
        raise RuntimeError(methods.REDRAW)

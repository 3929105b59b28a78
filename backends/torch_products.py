"""Products on PyTorch that no elementary ops are needed for: their derivatives, and the kernels written by hand.

A product is two passes, a forward and a backward one. `Product` makes of them a function that torch differentiates any
number of times; compiled, the kernels are custom operators instead.
"""

import contextlib
import dataclasses
import inspect
import math
import sys
import typing

import numpy as np
import torch

from pernodedrop.backends import methods
from pernodedrop.internals import of_torch

Tensors = typing.Sequence[torch.Tensor]


def in_full_precision(x):
    """torch.autocast would sum in half precision."""
    return contextlib.nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


# Eager: functions of `torch.autograd`, which know all derivatives, and `torch.func`. A product is linear in x and in w,
# so its derivatives are made of its own two passes, and so are theirs.


def signed(function):
    """A function with its signature at hand: torch asks for that at each call, and Python would find it out anew."""
    function.__signature__ = inspect.signature(function)
    return function


class Product(torch.autograd.Function):
    """The product by two passes, such as `Kernels`: of x, w and the tensors of the mask."""

    @staticmethod
    @signed
    def forward(passes, x, w, mask):
        return passes.forward(x, w, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.passes, *tensors, mask = inputs
        ctx.save_for_backward(*tensors, *mask)
        ctx.save_for_forward(*tensors, *mask)

    @staticmethod
    def backward(ctx, dy, _=None):
        x, w, *mask = ctx.saved_tensors
        return None, *_gradients(ctx.passes, dy, x, w, tuple(mask)), None

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return one_by_one(Product.apply, info, in_dims, *inputs)

    @staticmethod
    def jvp(ctx, _passes, x_dot, w_dot, _mask):
        x, w, *mask = ctx.saved_tensors
        x_dot, w_dot = _zeros_for_none((x_dot, w_dot), (x, w))
        return Product.apply(ctx.passes, x_dot, w, tuple(mask)) + Product.apply(ctx.passes, x, w_dot, tuple(mask))


class KeepingProduct(Product):
    """The same, of passes that give their decisions beside the product, and take them behind the mask for gradients."""

    @staticmethod
    @signed
    def forward(passes, x, w, mask):
        return passes.forward_keeping(x, w, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        passes, x, w, mask = inputs
        _, bits = output
        ctx.mark_non_differentiable(bits)
        ctx.set_materialize_grads(False)  # zeros as large as the bits
        Product.setup_context(ctx, (dataclasses.replace(passes, kept=True), x, w, (*mask, bits)), output)

    @staticmethod
    def backward(ctx, dy, _=None):
        return (None,) * 4 if dy is None else Product.backward(ctx, dy)

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return one_by_one(KeepingProduct.apply, info, in_dims, *inputs)

    @staticmethod
    def jvp(ctx, *tangents):
        return Product.jvp(ctx, *tangents), None


def _gradients(passes, *operands):
    """dx and dw, which may be differentiated if that was asked for."""
    if torch.is_grad_enabled() or of_torch.in_transform():
        return _Gradients.apply(passes, *operands)
    return passes.backward(*operands)


class _Gradients(torch.autograd.Function):
    """The gradients dx and dw of a `Product`."""

    @staticmethod
    @signed
    def forward(passes, dy, x, w, mask):
        return passes.backward(dy, x, w, mask)

    setup_context = Product.setup_context

    @staticmethod
    def backward(ctx, of_dx, of_dw):
        dy, x, w, *mask = ctx.saved_tensors
        passes, mask = ctx.passes, tuple(mask)
        of_dy = Product.apply(passes, of_dx, w, mask) + Product.apply(passes, x, of_dw, mask)
        of_x, _ = _Gradients.apply(passes, dy, x, of_dw, mask)
        _, of_w = _Gradients.apply(passes, dy, of_dx, w, mask)
        return None, of_dy, of_x, of_w, None

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return one_by_one(_Gradients.apply, info, in_dims, *inputs)

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


def one_by_one(function, info, in_dims, *inputs):
    """What a function gives for each of the batch that `torch.func.vmap` makes of its inputs."""

    def at(n, value, dim):
        if isinstance(value, tuple | list) and dim is not None:
            return type(value)(at(n, *pair) for pair in zip(value, dim, strict=True))
        return value if dim is None else value.select(dim, n)

    results = [function(*at(n, inputs, in_dims)) for n in range(info.batch_size)]
    if isinstance(results[0], tuple):
        return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])
    return torch.stack(results), 0


def _load_triton_kernels():
    """The kernels for CUDA, of rows and of positions that share a row, or None without it.

    They are loaded at once, since TensorFlow may be imported later, and after it the import of triton would abort the
    process.
    """
    if not torch.cuda.is_available() or ("tensorflow" in sys.modules and "triton" not in sys.modules):
        return None
    try:
        from pernodedrop.backends import triton_kernels, triton_shared_kernels
    except ImportError:
        return None
    return triton_kernels, triton_shared_kernels


TRITON_KERNELS = _load_triton_kernels()


def takes_triton(x):
    """Whether those are the kernels for a tensor."""
    return x.is_cuda


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The passes by the kernels that are written by hand; as operators they would import torch._dynamo, and triton.

    Args:
        kept: whether the last tensor of the mask is the decisions that `forward_keeping` kept.
    """

    kept: bool = False

    def forward(self, x, w, mask):
        mask = mask[:-1] if self.kept else mask
        return _on_cuda(x, w, mask) if takes_triton(x) else _on_cpu(x, w, _host(mask))

    def forward_keeping(self, x, w, mask):
        return _keeping_on_cuda(x, w, mask) if takes_triton(x) else _keeping_on_cpu(x, w, _host(mask))

    def backward(self, dy, x, w, mask):
        mask, bits = (mask[:-1], mask[-1]) if self.kept else (mask, None)
        if takes_triton(x):
            return _backward_on_cuda(dy, x, w, mask, bits)
        return _backward_on_cpu(dy, x, w, _host(mask), bits)


def product_by_kernels(x, w, mask):
    """The product, whose decisions are kept if it will be differentiated."""
    differentiated = _is_differentiated(x, w) and not _is_exporting()
    keeps = differentiated and math.prod(methods.kept_shape(mask, x, w)) > 0
    if of_torch.is_traced():
        return kernel_keeping(x, w, list(mask))[0] if keeps else kernel(x, w, list(mask))
    if keeps:
        return KeepingProduct.apply(Kernels(), x, w, tuple(mask))[0]
    return Product.apply(Kernels(), x, w, tuple(mask))


@dataclasses.dataclass(frozen=True)
class KernelsOnHost:
    """The same passes of a mask that is no tensors: what is behind it is the decisions that were kept, if any."""

    mask: typing.Any
    kept: bool = False

    def forward(self, x, w, _):
        return _on_cpu(x, w, self.mask)

    def forward_keeping(self, x, w, _):
        return _keeping_on_cpu(x, w, self.mask)

    def backward(self, dy, x, w, kept):
        return _backward_on_cpu(dy, x, w, self.mask, kept[0] if self.kept else None)


def product_by_kernels_on_host(x, w, mask):
    """The product, eager and on a CPU, with a mask of arrays."""
    if _is_differentiated(x, w) and math.prod(methods.kept_shape(mask, x, w)) > 0:
        return KeepingProduct.apply(KernelsOnHost(mask), x, w, ())[0]
    return Product.apply(KernelsOnHost(mask), x, w, ())


def _is_differentiated(x, w):
    return torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)


def _is_exporting():
    """Whether a program is made for predictions, of a batch of any size."""
    return getattr(torch.compiler, "is_exporting", bool)()  # new in torch 2.7


def _on_cpu(x, w, mask):
    from pernodedrop.backends import cpu_kernels

    return torch.from_numpy(cpu_kernels.product(_array(x), _array(w), mask))


def _keeping_on_cpu(x, w, mask):
    from pernodedrop.backends import cpu_kernels

    y, bits = cpu_kernels.product_and_bits(_array(x), _array(w), mask)
    return torch.from_numpy(y), torch.from_numpy(bits)


def _on_cuda(x, w, mask):
    if 0 in x.shape:
        return x.new_zeros((*x.shape[:2], w.shape[1]))
    x, w, (of_rows, of_positions) = _written_out(x), _written_out(w), TRITON_KERNELS
    if x.shape[1] > 1:
        return of_positions.forward(x, w, methods.from_flat(mask))
    return of_rows.forward(x[:, 0], w, methods.from_flat(mask))[:, None]


def _keeping_on_cuda(x, w, mask):
    y, bits = TRITON_KERNELS[0].forward_keeping(_written_out(x)[:, 0], _written_out(w), methods.from_flat(mask))
    return y[:, None], bits


def _backward_on_cpu(dy, x, w, mask, bits=None):
    from pernodedrop.backends import cpu_kernels

    bits = None if bits is None else bits.numpy()
    dx, dw = cpu_kernels.gradients(_array(dy), _array(x), _array(w), mask, bits)
    return torch.from_numpy(dx), torch.from_numpy(dw)


def _backward_on_cuda(dy, x, w, mask, bits=None):
    if 0 in x.shape:
        return torch.zeros_like(x), torch.zeros_like(w)
    mask, (of_rows, of_positions) = methods.from_flat(mask), TRITON_KERNELS
    dy, x, w = map(_written_out, (dy, x, w))
    if x.shape[1] > 1:
        return of_positions.backward(dy, x, w, mask)
    dx, dw = of_rows.backward(dy[:, 0], x[:, 0], w, mask, bits)
    return dx[:, None], dw


def _array(tensor):
    """The same memory for NumPy; `tensor.numpy()` would keep FSDP2 from ever freeing a gathered weight."""
    return np.from_dlpack(_written_out(tensor))


def _written_out(tensor):
    """A tensor whose memory has its numbers, and not those of its negative, as that of a conjugate's imaginary part."""
    return tensor.detach().resolve_neg()


def _host(mask):
    *noise, seed, call, time, sample, in_, out = (tensor.numpy() for tensor in mask)
    words = (word.view("uint32") for word in (seed, call, time, sample, in_, out))
    return methods.from_flat([*noise, *words])


def entries_on_cpu(mask):
    """The entries of `methods.Entries`, a tuple of tensors."""
    return entries_on_host(_host(mask))


def entries_on_host(mask):
    """The same of arrays."""
    from pernodedrop.backends import cpu_kernels

    return torch.from_numpy(cpu_kernels.entries(mask))


class Entries(torch.autograd.Function):
    """A mask by the kernel that is written by hand, of which there is no gradient."""

    @staticmethod
    @signed
    def forward(mask):
        return entries_on_cpu(mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx, _):
        return None

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return one_by_one(Entries.apply, info, in_dims, *inputs)


@torch.library.custom_op("pernodedrop::entries", mutates_args=(), device_types="cpu")
def entries(mask: Tensors) -> torch.Tensor:
    """The same in a graph."""
    return entries_on_cpu(mask)


@entries.register_fake
def _(mask):
    *_, time, _, in_, out = mask
    return mask[1].new_empty((time.shape[0], in_.shape[0], out.shape[0]))


@torch.library.custom_op("pernodedrop::kernel", mutates_args=(), device_types="cpu")
def kernel(x: torch.Tensor, w: torch.Tensor, mask: Tensors) -> torch.Tensor:
    """The product by the kernels that are written by hand, in a graph."""
    return _on_cpu(x, w, _host(mask))


@kernel.register_fake
def _(x, w, mask):
    return x.new_empty((*x.shape[:2], w.shape[1]))


@torch.library.custom_op("pernodedrop::kernel_backward", mutates_args=(), device_types="cpu")
def kernel_backward(
    dy: torch.Tensor, x: torch.Tensor, w: torch.Tensor, mask: Tensors
) -> tuple[torch.Tensor, torch.Tensor]:
    """Its gradients dx and dw."""
    return _backward_on_cpu(dy, x, w, _host(mask))


@kernel_backward.register_fake
def _(dy, x, w, mask):
    return x.new_empty(x.shape), w.new_empty(w.shape)


kernel.register_kernel("cuda")(_on_cuda)
kernel_backward.register_kernel("cuda")(_backward_on_cuda)


def _setup_kernel_context(ctx, inputs, output):
    x, w, mask = inputs
    ctx.save_for_backward(x, w, *mask)


def _backward_of_kernel(ctx, dy):
    x, w, *mask = ctx.saved_tensors
    return *kernel_backward(dy, x, w, mask), [None] * len(mask)


kernel.register_autograd(_backward_of_kernel, setup_context=_setup_kernel_context)


@torch.library.custom_op("pernodedrop::kernel_keeping", mutates_args=(), device_types="cpu")
def kernel_keeping(x: torch.Tensor, w: torch.Tensor, mask: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """The product and its decisions, which its gradients read."""
    return _keeping_on_cpu(x, w, _host(mask))


@kernel_keeping.register_fake
def _(x, w, mask):
    bits = methods.kept_shape(methods.from_flat(mask), x, w)
    return x.new_empty((*x.shape[:2], w.shape[1])), x.new_empty(bits, dtype=torch.uint8)


@torch.library.custom_op("pernodedrop::kept_backward", mutates_args=(), device_types="cpu")
def kept_backward(
    dy: torch.Tensor, x: torch.Tensor, w: torch.Tensor, mask: Tensors, bits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Its gradients dx and dw."""
    return _backward_on_cpu(dy, x, w, _host(mask), bits)


@kept_backward.register_fake
def _(dy, x, w, mask, bits):
    return x.new_empty(x.shape), w.new_empty(w.shape)


kernel_keeping.register_kernel("cuda")(_keeping_on_cuda)
kept_backward.register_kernel("cuda")(_backward_on_cuda)


def _setup_keeping_context(ctx, inputs, output):
    x, w, mask = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, w, *mask, output[1])


def _backward_of_keeping(ctx, dy, _):
    x, w, *mask, bits = ctx.saved_tensors
    gradients = (None, None) if dy is None else kept_backward(dy, x, w, mask, bits)
    return *gradients, [None] * len(mask)


kernel_keeping.register_autograd(_backward_of_keeping, setup_context=_setup_keeping_context)

# Of a sparse x: the values of its entries, with their rows and columns before the mask.


@dataclasses.dataclass(frozen=True)
class Listed:
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
    with in_full_precision(w):
        return torch.sparse.mm(matrix, w)


class ListedKernels:
    """The passes by the kernels that are written by hand."""

    def forward(self, values, w, mask):
        from pernodedrop.backends import cpu_kernels

        rows, columns, *mask = mask
        values, rows, columns, w = (_array(tensor) for tensor in (values, rows, columns, w))
        return torch.from_numpy(cpu_kernels.sparse_product(values, rows, columns, w, _host(mask)))

    def backward(self, dy, values, w, mask):
        from pernodedrop.backends import cpu_kernels

        rows, columns, *mask = mask
        dy, values, rows, columns, w = (_array(tensor) for tensor in (dy, values, rows, columns, w))
        dvalues, dw = cpu_kernels.sparse_gradients(dy, values, rows, columns, w, _host(mask))
        return torch.from_numpy(dvalues), torch.from_numpy(dw)

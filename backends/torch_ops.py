"""PyTorch, eager and compiled, on any device.

torch has no uint32 arithmetic, so words are int32 with the same bits. What must not be taken apart by torch.compile is
a custom operator: the recomputed product (its block loop would be unrolled into the graph) and the drawing of a key
(a backward pass that makes its forward pass again would otherwise read the state that the draw has already advanced).
"""

import contextlib
import sys
import typing

import torch
from torch import (
    abs,
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
    tanh,
    zeros_like,
)
from torch import (
    arange as _arange,
)

from pernodedrop.backends import methods
from pernodedrop.internals import of_torch
from pernodedrop.mask import Grid

xp = sys.modules[__name__]
permute_dims = permute

_Tensors = typing.Sequence[torch.Tensor]  # custom_op of torch 2.6 does not take `list`

if "tensorflow" in sys.modules and "triton" not in sys.modules:
    # imported after TensorFlow it would abort the process, and torch imports it where it finds it
    sys.modules["triton"] = None  # type: ignore[assignment] # how Python says that there is no such module


def where(condition, a, b):
    return torch.where(condition, a, b)


def maximum(a, b):
    return torch.clamp(a, min=b)


def minimum(a, b):
    return torch.clamp(a, max=b)


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


def recomputed(x, w, grid):
    return _recomputed(x, w, *_flat(grid))


@torch.library.custom_op("pernodedrop::recomputed", mutates_args=())
def _recomputed(x: torch.Tensor, w: torch.Tensor, noise: str, names: str, mask: _Tensors) -> torch.Tensor:
    y = x.new_zeros((*x.shape[:2], w.shape[1]))
    for block, entries in methods.blocks(x, w, _grid(noise, names, mask), xp):
        y += methods.forward_block(x[:, :, block], w[block], entries, xp)
    return y


@_recomputed.register_fake
def _(x, w, noise, names, mask):
    return x.new_empty((*x.shape[:2], w.shape[1]))


@torch.library.custom_op("pernodedrop::recomputed_backward", mutates_args=())
def _recomputed_backward(
    dy: torch.Tensor, x: torch.Tensor, w: torch.Tensor, noise: str, names: str, mask: _Tensors
) -> tuple[torch.Tensor, torch.Tensor]:
    dx, dw = torch.empty_like(x), torch.empty_like(w)
    for block, entries in methods.blocks(x, w, _grid(noise, names, mask), xp):
        dx[:, :, block] = methods.input_gradient_block(w[block], entries, dy, xp)
        dw[block] = methods.kernel_gradient_block(x[:, :, block], entries, dy, xp)
    return dx, dw


@_recomputed_backward.register_fake
def _(dy, x, w, noise, names, mask):
    return torch.empty_like(x), torch.empty_like(w)


def _setup_context(ctx, inputs, output):
    x, w, ctx.noise, ctx.names, mask = inputs
    ctx.save_for_backward(x, w, *mask)


def _backward(ctx, dy):
    x, w, *mask = ctx.saved_tensors
    dx, dw = _recomputed_backward(dy.contiguous(), x, w, ctx.noise, ctx.names, mask)
    return dx, dw, None, None, [None] * len(mask)


_recomputed.register_autograd(_backward, setup_context=_setup_context)

# An operator takes tensors and strings only, so a noise crosses its border by the name it is filed under here.
_NAMES: dict = {}
_NOISES: dict = {}


@of_torch.constant_in_graphs
def _filed(noise):
    name = _NAMES.setdefault(noise, f"{type(noise).__name__}-{len(_NAMES)}")
    _NOISES[name] = noise
    return name


def _flat(grid):
    """A grid as an operator takes it: the name of its noise, those of its numbers, its tensors."""
    return _filed(grid.field.noise), " ".join(grid.field.params), grid.tensors()


def _grid(noise, names, tensors):
    return Grid.from_tensors(_NOISES[noise], names.split(), tensors)


def _load_triton_kernels():
    """The kernels for CUDA, or None without it. They are loaded at once: TensorFlow may be imported later."""
    if not torch.cuda.is_available():
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
    return _kernel(x, w, list(methods.Decisions.of(grid)))


@torch.library.custom_op("pernodedrop::kernel", mutates_args=(), device_types="cpu")
def _kernel(x: torch.Tensor, w: torch.Tensor, decisions: _Tensors) -> torch.Tensor:
    from pernodedrop.backends import cpu_kernels

    return torch.from_numpy(cpu_kernels.product(x.numpy(), w.numpy(), _host(decisions)))


@_kernel.register_fake
def _(x, w, decisions):
    return x.new_empty((*x.shape[:2], w.shape[1]))


@_kernel.register_kernel("cuda")
def _(x, w, decisions):
    if 0 in x.shape:
        return x.new_zeros((*x.shape[:2], w.shape[1]))
    return _TRITON_KERNELS.forward(x[:, 0], w, methods.Decisions(*decisions))[:, None]


@torch.library.custom_op("pernodedrop::kernel_backward", mutates_args=(), device_types="cpu")
def _kernel_backward(
    dy: torch.Tensor, x: torch.Tensor, w: torch.Tensor, decisions: _Tensors
) -> tuple[torch.Tensor, torch.Tensor]:
    from pernodedrop.backends import cpu_kernels

    dx, dw = cpu_kernels.gradients(dy.numpy(), x.numpy(), w.numpy(), _host(decisions))
    return torch.from_numpy(dx), torch.from_numpy(dw)


@_kernel_backward.register_kernel("cuda")
def _(dy, x, w, decisions):
    if 0 in x.shape:
        return torch.zeros_like(x), torch.zeros_like(w)
    dx, dw = _TRITON_KERNELS.backward(dy[:, 0], x[:, 0], w, methods.Decisions(*decisions))
    return dx[:, None], dw


@_kernel_backward.register_fake
def _(dy, x, w, decisions):
    return x.new_empty(x.shape), w.new_empty(w.shape)


def _host(decisions):
    threshold, *words = (tensor.numpy() for tensor in decisions)
    return methods.Decisions(threshold, *(word.view("uint32") for word in words))


def _setup_kernel_context(ctx, inputs, output):
    x, w, decisions = inputs
    ctx.save_for_backward(x, w, *decisions)


def _backward_of_kernel(ctx, dy):
    x, w, *decisions = ctx.saved_tensors
    return *_kernel_backward(dy, x, w, decisions), [None] * len(decisions)


_kernel.register_autograd(_backward_of_kernel, setup_context=_setup_kernel_context)


def draw(variable):
    if torch.compiler.is_compiling():
        return _draw(variable.value)
    with methods.DRAWING:
        key = variable.value.detach().clone()
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
    return 0


def refuse_redraw():
    if torch.compiler.is_compiling():
        return  # there the draw inside a checkpoint is refused by torch itself: it is a side effect
    if of_torch.in_checkpoint():
        raise RuntimeError(methods.REDRAW)

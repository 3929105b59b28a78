"""PyTorch, eager and compiled, on any device.

torch has no uint32 arithmetic, so words are int32 with the same bits. What must not be taken apart by torch.compile is
a custom operator: the recomputed product (its block loop would be unrolled into the graph) and the drawing of a key
(a backward pass that makes its forward pass again would otherwise read the state that the draw has already advanced).
"""

import contextlib
import sys

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
    tanh,
    zeros_like,
)
from torch import (
    arange as _arange,
)

from pernodedrop.backends import methods
from pernodedrop.mask import Field

xp = sys.modules[__name__]
permute_dims = permute


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
        return torch.tensor([word(n & 0xFFFFFFFF)], dtype=torch.int32)
    n = torch.atleast_1d(torch.as_tensor(n))
    return n.view(torch.int32) if n.dtype == torch.uint32 else n.to(torch.int32)


def arange(n, like):
    return _arange(n, dtype=torch.int32, device=like.device)


def shift_right(x, n):
    return (x >> n) & (2 ** (32 - n) - 1)


def modulo(x, n):
    return ((x.long() & 0xFFFFFFFF) % n).to(torch.int32)


def lattice(x):
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


def matmul(a, b):
    with _in_full_precision(a):
        return torch.matmul(a, b)


def einsum(equation, *operands):
    with _in_full_precision(operands[0]):
        return torch.einsum(equation, *operands)


def _in_full_precision(x):
    """torch.autocast would sum in half precision."""
    return contextlib.nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


def stop_gradient(x):
    return x.detach()


def to_numpy(x):
    return x.detach().cpu().numpy()


def is_integer(x):
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def recomputed(x, w, field, rows, in_, out):
    law, names, params = _law(field)
    return _recomputed(x, w, law, names, params, list(field.key), list(rows), in_, out)


@torch.library.custom_op("pernodedrop::recomputed", mutates_args=())
def _recomputed(
    x: torch.Tensor,
    w: torch.Tensor,
    law: str,
    names: str,
    params: list[torch.Tensor],
    key: list[torch.Tensor],
    rows: list[torch.Tensor],
    in_: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    y = x.new_zeros((*x.shape[:2], w.shape[1]))
    for block, mask in _masks(x, w, law, names, params, key, rows, in_, out):
        y += methods.forward_block(x[:, :, block], w[block], mask, xp)
    return y


@_recomputed.register_fake
def _(x, w, law, names, params, key, rows, in_, out):
    return x.new_empty((*x.shape[:2], w.shape[1]))


@torch.library.custom_op("pernodedrop::recomputed_backward", mutates_args=())
def _recomputed_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    law: str,
    names: str,
    params: list[torch.Tensor],
    key: list[torch.Tensor],
    rows: list[torch.Tensor],
    in_: torch.Tensor,
    out: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    dx, dw = torch.empty_like(x), torch.empty_like(w)
    for block, mask in _masks(x, w, law, names, params, key, rows, in_, out):
        dx[:, :, block], dw[block] = methods.backward_block(x[:, :, block], w[block], mask, dy, xp)
    return dx, dw


@_recomputed_backward.register_fake
def _(dy, x, w, law, names, params, key, rows, in_, out):
    return torch.empty_like(x), torch.empty_like(w)


def _setup_context(ctx, inputs, output):
    x, w, ctx.law, ctx.names, params, key, rows, in_, out = inputs
    ctx.sizes = (len(params), len(key))
    ctx.save_for_backward(x, w, *params, *key, *rows, in_, out)


def _backward(ctx, dy):
    x, w, *rest, in_, out = ctx.saved_tensors
    n, k = ctx.sizes
    params, key, rows = rest[:n], rest[n : n + k], rest[n + k :]
    dx, dw = _recomputed_backward(dy.contiguous(), x, w, ctx.law, ctx.names, params, key, rows, in_, out)
    return dx, dw, None, None, [None] * n, [None] * k, [None] * len(rows), None, None


_recomputed.register_autograd(_backward, setup_context=_setup_context)


def _masks(x, w, law, names, params, key, rows, in_, out):
    field = Field(_LAWS[law], dict(zip(names.split(), params, strict=True)), tuple(key))
    rows = methods.Rows(*rows)
    for block in methods.blocks(x.shape[2], methods.block_length(x.shape[0], w.shape[1])):
        yield block, methods.entries(field, rows, in_[block], out, xp)


# An operator takes tensors and strings only, so a noise crosses its border by the name it is filed under here.
_NAMES: dict = {}
_LAWS: dict = {}


@torch.compiler.assume_constant_result
def _file_law(noise):
    name = _NAMES.setdefault(noise, f"{type(noise).__name__}-{len(_NAMES)}")
    _LAWS[name] = noise
    return name


def _law(field):
    return _file_law(field.noise), " ".join(field.params), list(field.params.values())


def draw(variable):
    if torch.compiler.is_compiling():
        return _draw(variable.value)
    key = variable.value.detach().clone()
    variable.assign(key + torch.tensor([0, 1], dtype=key.dtype, device=key.device))
    return key


@torch.library.custom_op("pernodedrop::draw", mutates_args=("state",))
def _draw(state: torch.Tensor) -> torch.Tensor:
    key = state.detach().clone()
    with torch.no_grad():
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
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is not None and "checkpoint" in getattr(hooks[0], "__qualname__", ""):
        raise RuntimeError(methods.REDRAW)

"""JAX, traced or not, on any device. The samples' coordinates are global under automatic sharding."""

import functools
import sys

import jax
import numpy as np
from jax.lax import erf, stop_gradient
from jax.lax import erf_inv as erfinv
from jax.numpy import (
    abs,
    atleast_1d,
    broadcast_to,
    cos,
    exp,
    expm1,
    float32,
    floor,
    integer,
    issubdtype,
    log,
    log1p,
    matmul,
    maximum,
    minimum,
    ones_like,
    reshape,
    sign,
    sin,
    sqrt,
    sum,
    take,
    tanh,
    uint32,
    where,
    zeros_like,
)
from jax.numpy import (
    arange as _arange,
)
from jax.numpy import asarray as _asarray
from jax.numpy import transpose as permute_dims

from pernodedrop.backends import methods

xp = sys.modules[__name__]


def word(n):
    return np.uint32(n)


def as_word(n):
    if isinstance(n, int):
        n = np.uint32(n & 0xFFFFFFFF)
    return atleast_1d(_asarray(n)).astype(uint32)


def arange(n, like):
    return _arange(n, dtype=uint32)


def shift_right(x, n):
    return x >> np.uint32(n)


def modulo(x, n):
    return x % np.uint32(n)


def bits24(x):
    return (x >> np.uint32(8)).astype(np.int32)


def uniform(x):
    return ((x >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2**-23)


def dtype(x):
    return str(x.dtype)


def device(x):
    return None


def shape(x):
    return x.shape


def astype(x, name):
    return x.astype(name)


def asarray(x, device=None):
    return _asarray(x)


def to_numpy(x):
    return np.asarray(x)


def is_integer(x):
    return issubdtype(x.dtype, integer)


def recomputed(x, w, grid):
    return _jitted(*_static(grid), x, w)


def _static(grid):
    """The noise of a grid, which is no array, and the rest, which is made of them."""
    return grid.field.noise, grid._replace(field=grid.field._replace(noise=None))


def _with_noise(noise, grid):
    return grid._replace(field=grid.field._replace(noise=noise))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recomputed(noise, grid, x, w):
    grid = _with_noise(noise, grid)

    def add_block(start, length, y):
        x_block, w_block, mask = _cut(start, length, x, w, grid)
        return y + methods.forward_block(x_block, w_block, mask, xp)

    return _over_blocks(x, w, add_block, jax.numpy.zeros((*x.shape[:2], w.shape[1]), w.dtype))


def _forward(noise, grid, x, w):
    return _recomputed(noise, grid, x, w), (grid, x, w)


def _backward(noise, saved, dy):
    grid, x, w = saved
    grid = _with_noise(noise, grid)

    def write_dx(start, length, dx):
        _, w_block, mask = _cut(start, length, x, w, grid)
        block = methods.input_gradient_block(w_block, mask, dy, xp)
        return jax.lax.dynamic_update_slice_in_dim(dx, block, start, axis=2)

    def write_dw(start, length, dw):
        x_block, _, mask = _cut(start, length, x, w, grid)
        block = methods.kernel_gradient_block(x_block, mask, dy, xp)
        return jax.lax.dynamic_update_slice_in_dim(dw, block, start, axis=0)

    # two loops: in one, XLA would make the mask once and store it for the second sum, which takes longer
    return None, _over_blocks(x, w, write_dx, zeros_like(x)), _over_blocks(x, w, write_dw, zeros_like(w))


_recomputed.defvjp(_forward, _backward)
_jitted = jax.jit(_recomputed, static_argnums=0)


def kernel_obstacle(x, noise, dtype):
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return "a CPU as the only device"
    return methods.cpu_kernel_obstacle(noise) if dtype == "float32" else "float32"


def kernel(x, w, grid):
    return recomputed(x, w, grid) if 0 in x.shape else _jitted_kernel(*_static(grid), x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel(noise, grid, x, w):
    return _recomputed(noise, grid, x, w)  # what is not differentiated may be exported, and the kernels cannot


def _kernel_forward(noise, grid, x, w):
    from pernodedrop.backends import xla_kernels

    decisions = methods.Decisions.of(grid)
    return xla_kernels.product(x, w, decisions), (x, w, decisions)


def _kernel_backward(noise, saved, dy):
    from pernodedrop.backends import xla_kernels

    return None, *xla_kernels.gradients(dy, *saved)


_kernel.defvjp(_kernel_forward, _kernel_backward)
_jitted_kernel = jax.jit(_kernel, static_argnums=0)


def _over_blocks(x, w, step, carry):
    """Run step(start, length, carry) over the full blocks of inputs as a loop, then over the ragged rest."""
    inputs = x.shape[2]
    length = min(methods.block_length(x.shape[0], w.shape[1]), inputs)
    full, rest = divmod(inputs, length) if inputs else (0, 0)
    if full:
        carry = jax.lax.fori_loop(0, full, lambda n, carry: step(n * length, length, carry), carry)
    return step(full * length, rest, carry) if rest else carry


def _cut(start, length, x, w, grid):
    """The blocks of x and w, and the mask of the block."""
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=length)
    return cut(x, axis=2), cut(w, axis=0), grid._replace(in_=cut(grid.in_, axis=0)).entries(xp)


def draw(variable):
    with methods.DRAWING:
        key = variable.value
        variable.assign(key + np.asarray([0, 1], key.dtype))
    return key


def replica_offset(n):
    return 0


def refuse_redraw():
    pass  # a draw inside a traced `jax.checkpoint` leaks a tracer, which JAX itself refuses

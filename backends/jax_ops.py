"""JAX, traced or not, on any device. The samples' coordinates are global under automatic sharding."""

import functools
import inspect
import math
import operator
import sys

import jax
import numpy as np
from jax.lax import erf, optimization_barrier, stop_gradient
from jax.lax import erf_inv as erfinv
from jax.numpy import (
    abs,
    acos,
    asin,
    atan,
    atleast_1d,
    broadcast_to,
    clip,
    cos,
    exp,
    expand_dims,
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
    squeeze,
    sum,
    take,
    take_along_axis,
    tan,
    tanh,
    uint32,
    unstack,
    where,
    zeros_like,
)
from jax.numpy import (
    arange as _arange,
)
from jax.numpy import asarray as _asarray
from jax.numpy import transpose as permute_dims

from pernodedrop import checks
from pernodedrop.backends import methods, sparse_methods
from pernodedrop.mask import Field

xp = sys.modules[__name__]


def word(n):
    return np.uint32(n)


def as_word(n):
    if isinstance(n, int):
        return _asarray(np.array([n & 0xFFFFFFFF], np.uint32))
    return _as_word(_asarray(n))


@functools.partial(jax.jit, inline=True)
def _as_word(n):
    return atleast_1d(n).astype(uint32)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _counted(n):
    return _arange(n, dtype=uint32)


def arange(n, like):
    return _counted(n)


def shift_right(x, n):
    return x >> np.uint32(n)


def modulo(x, n):
    return x % np.uint32(n)


@functools.partial(jax.jit, inline=True)
def bits24(x):
    return (x >> np.uint32(8)).astype(np.int32)


@functools.partial(jax.jit, inline=True)
def uniform(x):
    return ((x >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2**-23)


def dtype(x):
    return str(x.dtype)


def layout(x):
    if not hasattr(x, "todense"):
        return "dense"
    return "sparse" if type(x).__name__ == "BCOO" else "other"  # jax.experimental.sparse need not be imported


def running_maximum(x, axis):
    return jax.lax.cummax(x, axis % x.ndim)


def device(x):
    return None


def shape(x):
    return x.shape


def astype(x, name):
    return x if x.dtype == name else x.astype(name)


def asarray(x, device=None):
    if not isinstance(x, jax.Array):
        return _asarray(x)
    return jax.random.key_data(x) if issubdtype(x.dtype, jax.dtypes.prng_key) else x


def to_numpy(x):
    return np.asarray(x)


def is_integer(x):
    return issubdtype(x.dtype, integer)


STATIC = ("batch", "shape", "sharing", "method", "dtype", "xp")
"""The arguments of functions that are `fused` which are no tensors, nor made of them."""

jax.tree_util.register_pytree_node(
    Field, lambda field: ((field.params, field.key), field.noise), lambda noise, parts: Field(noise, *parts)
)


@functools.cache
def fused(function):
    # op by op, JAX compiles each for every new shape, and writes what is in between to memory
    static = tuple(name for name in inspect.signature(function).parameters if name in STATIC)
    return jax.jit(function, static_argnames=static, inline=True)


def _varying_alike(*operands):
    """Operands as they are; inside of `jax.shard_map`, varying over the same axes of its mesh.

    It asks that a loop's carry vary like its result, and a gradient like what it is the gradient of, which it sums up
    where this makes of one array many.
    """
    if not getattr(jax.sharding.get_abstract_mesh(), "manual_axes", ()):
        return operands
    false = functools.reduce(operator.or_, (zeros_like(a, bool).any() for a in jax.tree.leaves(operands)))
    return jax.tree.map(lambda a: a + false.astype(a.dtype), operands)


def _bilinear(product, gradients, in_between=None):
    """product(mask, x, w), linear in x and in w, compiled, and differentiated any number of times.

    It gives y, and what is kept of it for gradients(mask, kept, x, w, dy), which gives dx and dw. `in_between` is the
    product where no derivative is taken.
    """

    @jax.custom_vjp
    def alone(mask, x, w):
        return (in_between or product)(mask, x, w)[0]

    @jax.custom_vjp
    def keeping(mask, x, w):
        return product(mask, x, w)

    @jax.custom_vjp
    def backward(mask, kept, x, w, dy):
        return gradients(mask, kept, x, w, dy)

    def forward(mask, x, w):
        y, kept = keeping(mask, x, w)
        return y, (mask, kept, x, w)

    def forward_keeping(mask, x, w):
        y, saved = forward(mask, x, w)
        return (y, saved[1]), saved

    def of_backward(saved, cotangents):
        (mask, kept, x, w, dy), (of_dx, of_dw) = saved, cotangents
        # what is kept is of the mask alone
        of_x, _ = backward(mask, kept, x, of_dw, dy)
        _, of_w = backward(mask, kept, of_dx, w, dy)
        return None, None, of_x, of_w, keeping(mask, of_dx, w)[0] + keeping(mask, x, of_dw)[0]

    alone.defvjp(forward, lambda saved, dy: (None, *backward(*saved, dy)))
    keeping.defvjp(forward_keeping, lambda saved, cotangents: (None, *backward(*saved, cotangents[0])))
    backward.defvjp(lambda *saved: (backward(*saved), saved), of_backward)
    return jax.jit(alone)


def recomputed(x, w, grid):
    return _recomputed(*_varying_alike(grid, x, w))


def _in_blocks(grid, x, w):
    def add_block(start, length, y):
        x_block, w_block, mask = _cut(start, length, x, w, grid)
        return y + methods.forward_block(x_block, w_block, mask, xp)

    return _over_blocks(x, w, add_block, jax.numpy.zeros((*x.shape[:2], w.shape[1]), w.dtype)), None


def _gradients_in_blocks(grid, _, x, w, dy):
    def write_dx(start, length, dx):
        _, w_block, mask = _cut(start, length, x, w, grid)
        block = methods.input_gradient_block(w_block, mask, dy, xp)
        return jax.lax.dynamic_update_slice_in_dim(dx, block, start, axis=2)

    def write_dw(start, length, dw):
        x_block, _, mask = _cut(start, length, x, w, grid)
        block = methods.kernel_gradient_block(x_block, mask, dy, xp)
        return jax.lax.dynamic_update_slice_in_dim(dw, block, start, axis=0)

    # two loops: in one, XLA would make the mask once and store it for the second sum, which takes longer
    return _over_blocks(x, w, write_dx, zeros_like(x)), _over_blocks(x, w, write_dw, zeros_like(w))


_recomputed = _bilinear(_in_blocks, _gradients_in_blocks)


def convolved(x, kernels, window):
    """As a product with patches, which a gather collects faster than slices do; its gradient of x would scatter."""
    if x.shape[-1] == kernels.shape[1]:  # products of sizes 1
        return methods.shifted_products(x, kernels, window, xp)
    return _convolved(x, kernels, window)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _convolved(x, kernels, window):
    return _product_of_patches(x, kernels, window)


@_convolved.defjvp
def _derivative_of_convolved(window, primals, tangents):
    (x, kernels), (of_x, of_kernels) = primals, tangents
    of_x = methods.shifted_products(of_x, kernels, window, xp)
    return _convolved(x, kernels, window), of_x + _product_of_patches(x, of_kernels, window)


def _product_of_patches(x, kernels, window):
    """x (row, *space, channel) and kernels (row, group, in, out) as `methods.shifted_products` has them."""
    rows, *space, channels = x.shape
    groups, outputs = kernels.shape[1], kernels.shape[3]
    places = window.places(tuple(space))
    seen = jax.numpy.take(reshape(x, (rows, math.prod(space), channels)), places.reshape(-1), axis=1, mode="clip")
    seen = reshape(seen, (rows, *places.shape, groups, channels // groups))
    seen = reshape(permute_dims(seen, (0, 3, 1, 2, 4)), (rows, groups, len(places), kernels.shape[2]))
    y = permute_dims(matmul(seen, kernels), (0, 2, 1, 3))
    return reshape(y, (rows, len(places), groups * outputs))


def kernel_obstacle(x, noise, dtype):
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return "a CPU as the only device"
    return methods.cpu_kernel_obstacle(noise) if dtype == "float32" else "float32"


def on_host(field, samples):
    return None


def kernel_made_again(x, w, grid):
    return recomputed(x, w, grid)  # a loop that is compiled stays one


def loops_by_kernel(w, grid):
    return False


def kernel(x, w, grid):
    return recomputed(x, w, grid) if 0 in x.shape else _kernel(*_varying_alike(grid, x, w))


def _by_kernel(grid, x, w):
    """The product, and its decisions for the gradients."""
    from pernodedrop.backends import xla_kernels

    y, bits, _ = _varying_alike(*xla_kernels.product_and_bits(x, w, methods.flat(grid, xp)), x)
    return y, bits


def _gradients_by_kernel(grid, bits, x, w, dy):
    from pernodedrop.backends import xla_kernels

    dx, dw, _ = _varying_alike(*xla_kernels.gradients(dy, x, w, methods.flat(grid, xp), bits), x)
    return dx, dw


# what is not differentiated may be exported, and the kernels cannot
_kernel = _bilinear(_by_kernel, _gradients_by_kernel, in_between=_in_blocks)


def entries(grid):
    return grid.entries(xp)  # which becomes part of what uses it


def masked(w, grid):
    if grid.field.persists or 0 in grid.time.shape or kernel_obstacle(w, grid.field.noise, dtype(w)):
        return methods.masked(w, grid, xp)
    return _jitted_masked(*_varying_alike(grid, w))


@jax.custom_jvp
def _masked(grid, w):
    return methods.masked(w, grid, xp)  # which may be exported


@_masked.defjvp
def _derivative_of_masked(primals, tangents):
    (grid, w), (_, of_w) = primals, tangents
    made, _ = _varying_alike(_made(grid), w)
    return w * made, of_w * made


@jax.custom_jvp
def _made(grid):
    from pernodedrop.backends import xla_kernels

    return xla_kernels.entries(methods.Entries.of(grid, xp))


@_made.defjvp
def _no_derivative(primals, _):
    made = _made(*primals)
    return made, zeros_like(made)


_jitted_masked = jax.jit(_masked)


def _over_blocks(x, w, step, carry):
    """Run step(start, length, carry) over the full blocks of inputs as a loop, then over the ragged rest."""
    carry, *_ = _varying_alike(carry, x, w)
    length = methods.block_length(x.shape[0], w.shape[1], jax.default_backend() == "cpu")
    return _in_steps(x.shape[2], length, step, carry)


def _in_steps(size, length, step, carry):
    length = min(length, size)
    full, rest = divmod(size, length) if size else (0, 0)
    if full:
        carry = jax.lax.fori_loop(0, full, lambda n, carry: step(n * length, length, carry), carry)
    return step(full * length, rest, carry) if rest else carry


def _cut(start, length, x, w, grid):
    """The blocks of x and w, and the mask of the block."""
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=length)
    return cut(x, axis=2), cut(w, axis=0), grid._replace(in_=cut(grid.in_, axis=0)).entries(xp)


# Of a sparse x.


def triples(x):
    if x.n_batch or x.n_dense:
        raise TypeError(checks.invalid("x", "a BCOO with n_batch=0 and n_dense=0 (see its update_layout)", x))
    # what is listed outside of x only fills up
    inside = (x.indices < np.asarray(x.shape, x.indices.dtype)).all(axis=1)
    *places, columns = where(inside, x.indices.T, 0)
    rows = places[0]
    for size, place in zip(x.shape[1:-1], places[1:], strict=True):
        rows = rows * size + place
    return where(inside, x.data, 0), rows, columns


def segment_sum(terms, index, count):
    return jax.numpy.zeros((count, terms.shape[1]), terms.dtype).at[index].add(terms)


def sparse_matmul(values, rows, columns, count, w, squares=False):
    terms = values[:, None] * w[columns]
    return segment_sum(terms * terms if squares else terms, rows, count)


def sparse_recomputed(values, rows, columns, w, grid):
    return _listed((rows, columns, grid), values, w)


def sparse_kernel(values, rows, columns, w, grid):
    product = _listed if 0 in (*values.shape, *w.shape) else _listed_kernel
    return product((rows, columns, grid), values, w)


def _listed_in_blocks(mask, values, w):
    rows, columns, grid = mask

    def write(start, length, y):
        part, w_block = _cut_outputs(start, length, grid, w)
        block = sparse_methods.forward_block(values, rows, columns, w_block, part, xp)
        return jax.lax.dynamic_update_slice_in_dim(y, block, start, axis=1)

    y = jax.numpy.zeros((len(grid.time), w.shape[1]), w.dtype)
    return _in_steps(w.shape[1], sparse_methods.width(len(values)), write, y), None


def _gradients_of_listed_in_blocks(mask, _, values, w, dy):
    rows, columns, grid = mask

    def write(start, length, carry):
        part, w_block, dy_block = _cut_outputs(start, length, grid, w, dy)
        more, block = sparse_methods.gradients_block(dy_block, values, rows, columns, w_block, part, xp)
        return carry[0] + more, jax.lax.dynamic_update_slice_in_dim(carry[1], block, start, axis=1)

    carry = zeros_like(values), zeros_like(w)
    return _in_steps(w.shape[1], sparse_methods.width(len(values)), write, carry)


def _cut_outputs(start, length, grid, *tensors):
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=length)
    out = grid.out if len(grid.out) == 1 else cut(grid.out, axis=0)
    return grid._replace(out=out), *(cut(tensor, axis=1) for tensor in tensors)


def _listed_by_kernel(mask, values, w):
    from pernodedrop.backends import xla_kernels

    rows, columns, grid = mask
    return xla_kernels.sparse_product(values, rows, columns, w, methods.flat(grid, xp)), None


def _gradients_of_listed_by_kernel(mask, _, values, w, dy):
    from pernodedrop.backends import xla_kernels

    rows, columns, grid = mask
    return xla_kernels.sparse_gradients(dy, values, rows, columns, w, methods.flat(grid, xp))


_listed = _bilinear(_listed_in_blocks, _gradients_of_listed_in_blocks)
_listed_kernel = _bilinear(_listed_by_kernel, _gradients_of_listed_by_kernel, in_between=_listed_in_blocks)


def draw(variable):
    with methods.DRAWING:
        key = variable.value
        variable.assign(key + np.asarray([0, 1], key.dtype))
    return key


def global_rows(n, like):
    return arange(n, like)  # coordinates are global


def sum_of_replicas(x):
    axes = tuple(getattr(jax.sharding.get_abstract_mesh(), "manual_axes", ()))  # inside of `jax.shard_map`
    return jax.lax.psum(x, axes) if axes else x


def warn_of_replicas():
    pass


def refuse_redraw():
    pass  # a draw inside a traced `jax.checkpoint` leaks a tracer, which JAX itself refuses

"""TensorFlow: eager, in a graph, and under XLA.

Words are uint32: int32 arithmetic lives in host memory on GPUs outside XLA. The recomputed product is compiled by XLA
on every device, which fuses the generator with the product; it compiles once for each distinct shape.
"""

import contextlib
import functools
import math
import sys

import numpy as np
import tensorflow as tf
from tensorflow import (
    abs,
    acos,
    asin,
    atan,
    broadcast_to,
    cos,
    exp,
    expand_dims,
    floor,
    maximum,
    minimum,
    ones_like,
    reshape,
    sign,
    sin,
    sqrt,
    squeeze,
    stop_gradient,
    tan,
    tanh,
    unstack,
    where,
    zeros_like,
)
from tensorflow import clip_by_value as clip
from tensorflow import reduce_sum as sum
from tensorflow import transpose as permute_dims

from pernodedrop.backends import methods, numpy_ops, sparse_methods
from pernodedrop.internals import of_tensorflow
from pernodedrop.mask import Grid

xp = sys.modules[__name__]

erf, erfinv, expm1, log, log1p = tf.math.erf, tf.math.erfinv, tf.math.expm1, tf.math.log, tf.math.log1p


def word(n):
    return tf.constant(n, tf.uint32)


def as_word(n):
    if isinstance(n, int):
        n = tf.constant(n & 0xFFFFFFFF, tf.uint32)
    n = tf.cast(tf.convert_to_tensor(n), tf.uint32)
    return n[None] if n.shape.rank == 0 else n


def arange(n, like):
    if tf.executing_eagerly():
        return tf.constant(np.arange(n, dtype=np.uint32))  # one op for two
    return tf.cast(tf.range(n), tf.uint32)


def shift_right(x, n):
    return tf.bitwise.right_shift(x, tf.constant(n, tf.uint32))


def modulo(x, n):
    return tf.cast(tf.cast(x, tf.int64) % n, tf.uint32)


def bits24(x):
    return tf.cast(shift_right(x, 8), tf.int32)


def uniform(x):
    return (tf.cast(shift_right(x, 9), tf.float32) + 0.5) * 2**-23


def float32(x):
    return tf.cast(x, tf.float32)


def dtype(x):
    return x.dtype.name


def layout(x):
    if isinstance(x, tf.RaggedTensor):
        return "ragged"
    return "sparse" if isinstance(x, tf.SparseTensor) else "other" if isinstance(x, tf.IndexedSlices) else "dense"


def device(x):
    return None


def shape(x):
    if x.shape.is_fully_defined():
        return tuple(x.shape)
    dynamic = tf.shape(x)
    return tuple([dynamic[axis] if size is None else size for axis, size in enumerate(x.shape)])


def astype(x, name):
    return tf.cast(x, name)


def asarray(x, device=None):
    return tf.convert_to_tensor(x)


def to_numpy(x):
    return x.numpy()


def is_integer(x):
    return x.dtype.is_integer


def optimization_barrier(x):
    return x


def take(x, indices, axis):
    return tf.gather(x, indices, axis=axis)


def take_along_axis(x, indices, axis):
    x, indices = (tf.experimental.numpy.moveaxis(each, axis, -1) for each in (x, indices))
    taken = tf.gather(x, indices, batch_dims=x.shape.rank - 1, axis=-1)  # tf.experimental.numpy's own is none of XLA's
    return tf.experimental.numpy.moveaxis(taken, -1, axis)


def running_maximum(x, axis):
    # of twice as many entries at each turn: TensorFlow has running sums and products alone
    length, known = tf.shape(x)[axis], x.shape[axis]
    for n in range(31 if known is None else max(known - 1, 0).bit_length()):
        x = tf.maximum(x, tf.gather(x, tf.maximum(tf.range(length) - 2**n, 0), axis=axis))
    return x


def matmul(a, b):
    if b.shape.rank > 2 or a.shape.rank == 2:
        return tf.matmul(a, b)
    # tf.matmul would multiply by a copy of b for each of the leading axes of a
    rows = tf.matmul(tf.reshape(a, (-1, shape(a)[-1])), b)
    return tf.reshape(rows, (*shape(a)[:-1], b.shape[-1]))


def convolved(x, kernels, window):
    """As a product with patches, which `tf.gather` collects faster than `tf.image.extract_patches` or slices do.

    So it does for the gradient of x, which is the product with patches of dy: TensorFlow's own would scatter.
    """
    space, groups = tuple(x.shape[1:-1]), kernels.shape[1]
    places = window.places(space)
    x = tf.reshape(x, (-1, math.prod(space), x.shape[-1]))

    @tf.custom_gradient
    def product(x, kernels):
        def gradients(dy):
            count = places.shape[1]
            dx = _rowwise(_patches(dy, _seen_from(places, x.shape[1]), groups), _turned(kernels, count))
            return dx, tf.matmul(_patches(x, places, groups), _by_group(dy, groups), transpose_a=True)

        return _rowwise(_patches(x, places, groups), kernels), gradients

    return product(x, kernels)


def _patches(x, places, groups):
    """What is at `places` (time, place) of x (row, flat space, channel), zeros beyond: (row, group, time, in)."""
    if places.max() == x.shape[1]:
        x = tf.pad(x, ((0, 0), (0, 1), (0, 0)))
    return _by_group(tf.gather(x, places.reshape(-1), axis=1), groups, places.shape[1])


def _by_group(x, groups, count=1):
    """x (row, time * count, channel) as (row, group, time, count * channel in the group)."""
    (length, channels), last = x.shape[1:], count * x.shape[-1] // groups
    if groups > 1:
        x = tf.reshape(x, (-1, length // count, count, groups, channels // groups))
        x = tf.transpose(x, (0, 3, 1, 2, 4))
    return tf.reshape(x, (-1, groups, length // count, last))


def _rowwise(patches, kernels):
    """The product (row, time, channel) of patches with kernels (row, group, in, out)."""
    groups, times, outputs = patches.shape[1], patches.shape[2], kernels.shape[3]
    y = tf.matmul(patches, kernels)
    return tf.reshape(y if groups == 1 else tf.transpose(y, (0, 2, 1, 3)), (-1, times, groups * outputs))


def _turned(kernels, count):
    """Kernels (row, group, in, out) that lead back: in from (place, channel) to (place, out), out to channel."""
    groups, inputs, outputs = kernels.shape[1:]
    kernels = tf.reshape(kernels, (-1, groups, count, inputs // count, outputs))
    return tf.reshape(tf.transpose(kernels, (0, 1, 2, 4, 3)), (-1, groups, count * outputs, inputs // count))


def _seen_from(places, size):
    """Of each place of flat space the position that sees it at each place in the window: the number of them if none."""
    seen = np.full((size, places.shape[1]), len(places), np.int32)
    np.put_along_axis(seen, places, np.arange(len(places), dtype=np.int32)[:, None], axis=0)
    return seen


def fused(function):
    return function


def recomputed(x, w, grid):
    return _compiled(grid.field.noise, tuple(grid.field.params))(x, w, *grid.tensors())


def kernel_obstacle(x, noise, dtype):
    if tf.config.list_logical_devices("GPU") or of_tensorflow.is_in_xla():
        return "a CPU, and a graph that is not compiled by XLA"
    return methods.cpu_kernel_obstacle(noise)


def on_host(field, samples):
    if not tf.executing_eagerly():
        return None
    params = {name: np.asarray(number) for name, number in field.params.items()}
    return field._replace(params=params, key=tuple(map(np.asarray, field.key))), np.asarray(samples)


def kernel_made_again(x, w, grid):
    return recomputed(x, w, grid)  # a loop that is compiled stays one


def loops_by_kernel(w, grid):
    return False


def kernel(x, w, grid):
    if of_tensorflow.is_recorded():
        return _by_kernel(x, w, *methods.flat(grid, numpy_ops if tf.executing_eagerly() else xp))
    if not tf.executing_eagerly():
        # what is not differentiated may be saved, and a call of Python cannot
        return recomputed(x, w, grid)
    from pernodedrop.backends import cpu_kernels

    mask = methods.from_flat([np.asarray(part) for part in methods.flat(grid, numpy_ops)])
    return _taken_over(cpu_kernels.product(np.asarray(x), np.asarray(w), mask))  # which keeps no decisions


def _forward_by_kernel(x, w, *mask):
    from pernodedrop.backends import cpu_kernels

    def product(x, w, *mask):
        return cpu_kernels.product_and_bits(x, w, methods.from_flat(mask))

    y, bits = _in_python(product, (x, w, *mask), [w.dtype, tf.uint8])
    y.set_shape((*x.shape[:2], w.shape[1]))
    return y, bits


def _backward_by_kernel(dy, x, w, *mask):
    from pernodedrop.backends import cpu_kernels

    def gradients(dy, x, w, *mask):
        return cpu_kernels.gradients(dy, x, w, methods.from_flat(mask[:-1]), mask[-1])

    dx, dw = _in_python(gradients, (dy, x, w, *mask), [x.dtype, w.dtype])
    dx.set_shape(x.shape)
    dw.set_shape(w.shape)
    return dx, dw


def entries(grid):
    if tf.is_tensor(grid.time):
        return grid.entries(xp)  # which becomes part of what uses it
    return _taken_over(numpy_ops.entries(grid))


def masked(w, grid):
    if grid.field.persists or not of_tensorflow.is_recorded() or kernel_obstacle(w, grid.field.noise, w.dtype):
        return methods.masked(w, grid, xp)
    from pernodedrop.backends import cpu_kernels

    def entries(*mask):
        return (cpu_kernels.entries(methods.from_flat(mask)),)

    (made,) = _in_python(entries, tuple(methods.Entries.of(grid, xp)), [tf.float32])
    made.set_shape((*grid.time.shape, *grid.in_.shape, *grid.out.shape))
    return w * tf.cast(tf.stop_gradient(made), w.dtype)


def _in_python(function, tensors, dtypes):
    """A function of arrays on tensors."""
    if tf.executing_eagerly():  # numpy_function would hand over copies
        return [_taken_over(array) for array in function(*map(np.asarray, tensors))]
    return tf.numpy_function(function, tensors, dtypes, stateful=False)


def _taken_over(array):
    """An array that nobody else has as a tensor; where it does not start on a line of the cache, TensorFlow aborts."""
    if array.size and array.ctypes.data % 64 == 0:
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    return tf.convert_to_tensor(array)


def _differentiable(forward, backward, keeps=False):
    """The product forward(x, w, *mask), whose gradients backward(dy, x, w, *mask) gives, as a function of these.

    Where it `keeps`, the first gives a pair, whose second tensor the other one takes behind the mask. The product is
    linear in x and in w, so the derivatives of its gradients are made of the same two functions. Tensors of a mask have
    none; they are arguments since TensorFlow, in a graph, looks for variables in all that a function else closes over.
    """

    @tf.custom_gradient
    def product(x, w, *mask):
        y, *kept = forward(x, w, *mask) if keeps else (forward(x, w, *mask),)

        def gradients_of(dy):
            # to be differentiated costs as much as a small product
            given = backward if tf.executing_eagerly() and not of_tensorflow.is_recorded() else gradients
            return *given(dy, x, w, *mask, *kept), *[None] * len(mask)

        return y, gradients_of

    @tf.custom_gradient
    def gradients(dy, x, w, *mask):
        alone = mask[:-1] if keeps else mask

        def of_gradients(of_dx, of_dw):
            of_x, _ = gradients(dy, x, of_dw, *mask)
            _, of_w = gradients(dy, of_dx, w, *mask)
            return product(of_dx, w, *alone) + product(x, of_dw, *alone), of_x, of_w, *[None] * len(mask)

        return backward(dy, x, w, *mask), of_gradients

    return lambda x, w, *mask: product(tf.convert_to_tensor(x), tf.convert_to_tensor(w), *mask)


def _still(function):
    """A function that no gradient flows through: a tape would also differentiate its block loop, which XLA refuses."""
    return lambda *tensors: function(*map(tf.stop_gradient, tensors))


_by_kernel = _differentiable(_forward_by_kernel, _backward_by_kernel, keeps=True)


@functools.lru_cache(maxsize=256)
def _compiled(noise, names):
    """The product with the masks of a noise, of passes that XLA compiles."""

    @tf.function(jit_compile=True, autograph=False)
    def forward(x, w, *mask):
        grid = Grid.from_tensors(noise, names, mask)

        def add_block(start, length, y):
            x_block, w_block, entries = _cut(start, length, x, w, grid)
            return y + methods.forward_block(x_block, w_block, entries, xp)

        return _over_blocks(x, w, add_block, tf.zeros((*shape(x)[:2], w.shape[1]), w.dtype))

    @tf.function(jit_compile=True, autograph=False)
    def backward(dy, x, w, *mask):
        grid = Grid.from_tensors(noise, names, mask)

        def write_dx(start, length, dx):
            _, w_block, entries = _cut(start, length, x, w, grid)
            return of_tensorflow.written(dx, methods.input_gradient_block(w_block, entries, dy, xp), (0, 0, start))

        def write_dw(start, length, dw):
            x_block, _, entries = _cut(start, length, x, w, grid)
            return of_tensorflow.written(dw, methods.kernel_gradient_block(x_block, entries, dy, xp), (start, 0))

        # two loops: in one, XLA would make the mask once and store it for the second sum, which takes longer
        return _over_blocks(x, w, write_dx, zeros_like(x)), _over_blocks(x, w, write_dw, zeros_like(w))

    return _differentiable(_still(forward), _still(backward))


def _over_blocks(x, w, step, carry):
    """Run step(start, length, carry) over the full blocks of inputs as a loop, then over the ragged rest."""
    inputs, outputs = w.shape
    on_cpu = not tf.config.list_logical_devices("GPU")
    length = min(methods.block_length(x.shape[0], outputs, on_cpu), inputs)
    full, rest = divmod(inputs, length)
    if full:
        _, carry = tf.while_loop(
            lambda n, carry: n < full,
            lambda n, carry: (n + 1, step(n * length, length, carry)),
            (tf.constant(0), carry),
        )
    return step(full * length, rest, carry) if rest else carry


def _cut(start, length, x, w, grid):
    """The blocks of x and w, and the mask of the block."""
    x_block = tf.slice(x, (0, 0, start), (*shape(x)[:2], length))
    entries = grid._replace(in_=tf.slice(grid.in_, (start,), (length,))).entries(xp)
    return x_block, tf.slice(w, (start, 0), (length, w.shape[1])), entries


# Of a sparse x. Only the rows of w that it uses are read, so the gradient of w is `tf.IndexedSlices` of them. Nothing
# is compiled by XLA, which would compile again for every number of entries.


def triples(x):
    *places, columns = tf.unstack(x.indices, axis=1)
    rows = places[0]
    for size, place in zip(tf.unstack(x.dense_shape)[1:-1], places[1:], strict=True):
        rows = rows * size + place
    return x.values, rows, columns


def segment_sum(terms, index, count):
    return tf.math.unsorted_segment_sum(terms, index, count)


def sparse_matmul(values, rows, columns, count, w, squares=False):
    def multiply(values, rows, columns, count, w):
        places = tf.stack([rows, columns], axis=1)
        matrix = tf.SparseTensor(places, values, tf.cast(tf.stack([count, shape(w)[0]]), tf.int64))
        return tf.sparse.sparse_dense_matmul(matrix, w)

    def backward(dy, values, w, rows, columns):
        dvalues = tf.reduce_sum(tf.gather(dy, rows) * tf.gather(w, columns), axis=1)
        return dvalues, multiply(values, columns, rows, shape(w)[0], dy)

    used, columns = tf.unique(columns, tf.int64)
    w = tf.gather(w, used)
    if squares:
        values, w = values * values, w * w

    def forward(values, w, rows, columns):
        return multiply(values, rows, columns, count, w)

    return _differentiable(_still(forward), _still(backward))(values, w, rows, columns)


def sparse_recomputed(values, rows, columns, w, grid):
    noise, names, outputs = grid.field.noise, tuple(grid.field.params), w.shape[1]
    w, columns, grid = _of_used_rows(w, columns, grid)

    def forward(values, w, rows, columns, *mask):
        def add(start, part, blocks):
            grid, w_block = part
            block = sparse_methods.forward_block(values, rows, columns, w_block, grid, xp)
            return (blocks[0].write(blocks[0].size(), tf.transpose(block)),)

        (y,) = _over_outputs(values, Grid.from_tensors(noise, names, mask), (w,), add, (_stack(w),))
        return _unstacked(y, outputs)

    def backward(dy, values, w, rows, columns, *mask):
        def add(start, part, carry):
            grid, w_block, dy_block = part
            more, block = sparse_methods.gradients_block(dy_block, values, rows, columns, w_block, grid, xp)
            return carry[0] + more, carry[1].write(carry[1].size(), tf.transpose(block))

        carry = zeros_like(values), _stack(w)
        dvalues, dw = _over_outputs(values, Grid.from_tensors(noise, names, mask), (w, dy), add, carry)
        return dvalues, _unstacked(dw, outputs)

    return _differentiable(_still(forward), _still(backward))(values, w, rows, columns, *grid.tensors())


def _of_used_rows(w, columns, grid):
    used, places = tf.unique(columns, tf.int64)
    in_ = grid.in_ if grid.in_.shape[0] == 1 else tf.gather(grid.in_, used)
    return tf.gather(w, used), places, grid._replace(in_=in_)


def _stack(w):
    """Blocks of outputs, which come first in each."""
    return tf.TensorArray(w.dtype, size=0, dynamic_size=True, infer_shape=False)


def _unstacked(blocks, outputs):
    joined = tf.transpose(blocks.concat())
    joined.set_shape((None, outputs))
    return joined


def _over_outputs(values, grid, tensors, add, carry):
    """carry = add(start, (grid, *tensors), carry) for the blocks of outputs, to which grid and tensors are cut."""
    outputs, width = tensors[0].shape[1], sparse_methods.width(shape(values)[0])

    def step(start, carry):
        stop = tf.minimum(start + width, outputs)
        out = grid.out if grid.out.shape[0] == 1 else grid.out[start:stop]
        part = grid._replace(out=out), *(tensor[:, start:stop] for tensor in tensors)
        return stop, add(start, part, carry)

    return tf.while_loop(lambda start, carry: start < outputs, step, (tf.constant(0), carry))[1]


def sparse_kernel(values, rows, columns, w, grid):
    if not of_tensorflow.is_recorded():
        return sparse_recomputed(values, rows, columns, w, grid)
    from pernodedrop.backends import cpu_kernels

    outputs = w.shape[1]
    w, columns, grid = _of_used_rows(w, columns, grid)

    def forward(values, w, rows, columns, *mask):
        def product(values, w, rows, columns, *mask):
            return (cpu_kernels.sparse_product(values, rows, columns, w, methods.from_flat(mask)),)

        (y,) = _in_python(product, (values, w, rows, columns, *mask), [w.dtype])
        y.set_shape((None, outputs))
        return y

    def backward(dy, values, w, rows, columns, *mask):
        def gradients(dy, values, w, rows, columns, *mask):
            return cpu_kernels.sparse_gradients(dy, values, rows, columns, w, methods.from_flat(mask))

        dvalues, dw = _in_python(gradients, (dy, values, w, rows, columns, *mask), [values.dtype, w.dtype])
        dvalues.set_shape(values.shape)
        dw.set_shape(w.shape)
        return dvalues, dw

    return _differentiable(forward, backward)(values, w, rows, columns, *methods.flat(grid, xp))


def draw(variable):
    # replicas are threads that wait for each other in `assign`, and not one of them has another's key to take
    replica = tf.distribute.get_replica_context()
    alone = replica is not None and replica.num_replicas_in_sync == 1
    with methods.DRAWING if alone else contextlib.nullcontext():
        key = tf.identity(variable.value)
        variable.assign(key + tf.constant([0, 1], key.dtype))
    return key


def global_rows(n, like):
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return arange(n, like)
    sizes = replica.all_gather(tf.reshape(n, (1,)), axis=0)
    return arange(n, like) + as_word(tf.cumsum(sizes, exclusive=True)[replica.replica_id_in_sync_group])


def sum_of_replicas(x):
    replica = tf.distribute.get_replica_context()
    return x if replica is None or replica.num_replicas_in_sync == 1 else replica.all_reduce("sum", x)


def warn_of_replicas():
    pass


def refuse_redraw():
    if of_tensorflow.is_in_recompute_grad():
        raise RuntimeError(methods.REDRAW)

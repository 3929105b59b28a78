"""The kernels of numba as custom calls of XLA on a CPU, for JAX: nothing of Python runs in a step.

A product is cut into spans, each a call of its own, since a call runs on one thread and XLA runs calls side by side.
XLA hands a call the address of a frame whose layout is that of its C interface, `xla/ffi/api/c_api.h` in
`jax.ffi.include_dir()`: a promise of XLA, which goes on running handlers that were made for an older version.
"""

import ctypes
import functools
import os
import threading

import jax
import jax.numpy as jnp
import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from pernodedrop.backends import cpu_kernels, decision_kernels, methods
from pernodedrop.backends.bit_kernels import NARROW, WIDE
from pernodedrop.backends.methods import Decisions, Entries

_METADATA = 1  # the extension of a call that only asks
_UNNAMED = 1 << 32  # version 0.1, that of JAX 0.6.0 to 0.8.0, whose question comes without the interface
_ALL = (0, 2**62)
_CALLS = 4 * max(4, os.cpu_count() or 1)  # below a dozen steps XLA takes them one after the other


def product_and_bits(x, w, mask):
    """As `cpu_kernels.product_and_bits`, on traced arrays."""
    methods.check_operands(mask, x, w)
    outputs, w = w.shape[1], cpu_kernels.padded(w, jnp)
    columns, groups, _, group = none = methods.kept_shape(mask, x, w)
    ys, kept = [], []
    for start, stop in cpu_kernels.spans(len(x), _parts(x, w)):
        results = [_float32(stop - start, x.shape[1], w.shape[1])]
        if cpu_kernels.kernels_of(mask) is decision_kernels:
            results.append(jax.ShapeDtypeStruct((columns, groups, stop - start, group), np.uint8))
        y, *bits = _call("forward", mask, (start, stop), (x, w, *mask), *results)
        ys.append(y)
        kept += bits
    return jnp.concatenate(ys)[:, :, :outputs], _of_all_rows(kept) if columns else jnp.zeros(none, np.uint8)


def _of_all_rows(parts):
    """Bits of parts of the rows as those of one product: the rows of a block of outputs follow one another."""
    columns, groups, _, group = parts[0].shape
    wide, joined = columns // (WIDE // 8) * (WIDE // 8), []
    for start, stop, width in ((0, wide, WIDE), (wide, columns, NARROW)):
        count = (stop - start) // (width // 8)
        blocks = [part[start:stop].reshape(count, groups, part.shape[2], group * width // 8) for part in parts]
        joined.append(jnp.concatenate(blocks, axis=2).ravel())
    return jnp.concatenate(joined).reshape(columns, groups, -1, group)


def gradients(dy, x, w, mask, bits):
    """As `cpu_kernels.gradients`, on traced arrays."""
    methods.check_operands(mask, x, w, dy)
    methods.check_bits(bits, mask, x, w)
    outputs, dy, w = w.shape[1], cpu_kernels.padded(dy, jnp), cpu_kernels.padded(w, jnp)
    of_decisions = cpu_kernels.kernels_of(mask) is decision_kernels
    operands = (dy, x, w, *mask, *((bits,) if of_decisions else ()))
    parts = []
    for start, stop in cpu_kernels.spans(len(w), _parts(x, w), decision_kernels.COLUMNS if of_decisions else 1):
        results = _float32(*x.shape[:2], stop - start), _float32(stop - start, w.shape[1])
        parts.append(_call("backward", mask, (start, stop), operands, *results))
    dx, dw = zip(*parts, strict=True)
    return jnp.concatenate(dx, axis=2), jnp.concatenate(dw)[:, :outputs]


def _parts(x, w):
    return 1 if cpu_kernels.is_small(x, w) else _CALLS


def entries(mask):
    """As `cpu_kernels.entries`, on traced arrays."""
    methods.check_rows(mask)
    inputs, outputs = len(mask.in_), len(mask.out)
    size = len(mask.time) * inputs
    parts = [
        _call("fill", mask, span, mask, _float32(span[1] - span[0], outputs))[0]
        for span in cpu_kernels.spans(size, _CALLS if size * outputs > cpu_kernels.FEW else 1)
    ]
    return jnp.concatenate(parts).reshape(len(mask.time), inputs, outputs)


def sparse_product(values, rows, columns, w, mask):
    """As `cpu_kernels.sparse_product`, on traced arrays and one thread; places are inside of x."""
    y = _float32(len(mask.time), w.shape[1])
    return _call_listed("sparse_forward", mask, (values, rows, columns, w, *mask), y)[0]


def sparse_gradients(dy, values, rows, columns, w, mask):
    """As `cpu_kernels.sparse_gradients`, on traced arrays and one thread."""
    results = _float32(*values.shape), _float32(*w.shape)
    return _call_listed("sparse_backward", mask, (values, rows, columns, w, *mask, dy), *results)


def _call_listed(name, mask, operands, *results):
    methods.check_rows(mask)
    values, rows, columns, *rest = operands
    operands = (values, rows.astype(np.int32), columns.astype(np.int32), *rest)
    return _call(name, mask, (0, len(values)), operands, *results)


def _float32(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


def _call(name, mask, span, operands, *results):
    target = _registered(name, cpu_kernels.kernels_of(mask))
    return jax.ffi.ffi_call(target, results, vmap_method="sequential")(np.asarray(span, np.int32), *operands)


@intrinsic
def _pointer(typing_context, address, dtype):
    """An address as a pointer to numbers of a dtype."""
    pointer = types.CPointer(dtype.dtype)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(address, dtype), generate


@numba.njit
def _array(address, shape, dtype):
    return numba.carray(_pointer(address, dtype), shape)


@numba.njit
def _zeros(address, shape):
    array = _array(address, shape, types.float32)
    array[:] = 0
    return array


@numba.njit
def _words(address, n):
    """A structure of the interface as words of 64 bits, of which each of its fields here takes one."""
    return _array(address, n, types.int64)


@numba.njit
def _asks_for_version(frame):
    """Whether this call only asks for which version of the interface the handler was made.

    For any of major version 0, in which structures only grow at their ends; no answer makes XLA refuse the handler.
    """
    if frame[1] == 0 or _array(frame[1] + 8, 1, types.int32)[0] != _METADATA:
        return False
    metadata = _words(_words(frame[1], 4)[3], 4)
    if frame[2] == 0:
        metadata[3] = _UNNAMED
    elif _array(frame[2] + 32, 1, types.int32)[0] == 0:
        metadata[3] = _words(frame[2], 5)[4]
    return True


@numba.njit
def _operands(frame):
    """The addresses and shapes of all operands, and of all results."""
    operands = [_words(address, 6) for address in _words(frame[9], frame[7])]
    results = [_words(address, 6) for address in _words(frame[14], frame[12])]
    return (
        [b[3] for b in operands], [_words(b[5], b[4]) for b in operands],
        [b[3] for b in results], [_words(b[5], b[4]) for b in results],
    )  # fmt: skip


@numba.njit
def _decisions(addresses, shapes, rows, inputs):
    """The mask of some rows and inputs, (start, stop), whose operands begin there."""
    threshold = _array(addresses[0], 1, types.int32)[0]
    seed, call, time, sample, in_, out = _coordinates(addresses[1:], shapes[1:], rows, inputs)
    return Decisions(threshold, seed, call, time, sample, in_, out)


@numba.njit
def _entries(addresses, shapes, rows, inputs):
    """As `_decisions`."""
    code = _array(addresses[0], (shapes[0][0], 5), types.int32)
    numbers = _array(addresses[1], shapes[1][0], types.float32)
    seed, call, time, sample, in_, out = _coordinates(addresses[2:], shapes[2:], rows, inputs)
    return Entries(code, numbers, seed, call, time, sample, in_, out)


@numba.njit
def _coordinates(addresses, shapes, rows, inputs):
    seed, call = _array(addresses[0], 1, types.uint32)[0], _array(addresses[1], 1, types.uint32)[0]
    time, sample = _array(addresses[2], shapes[2][0], types.uint32), _array(addresses[3], shapes[3][0], types.uint32)
    in_, out = _array(addresses[4], shapes[4][0], types.uint32), _array(addresses[5], shapes[5][0], types.uint32)
    (start, stop), (left, right) = rows, inputs
    return seed, call, time[start:stop], sample[start:stop], in_[left:right], out


@numba.njit
def _bits(address, shape):
    return _array(address, (shape[0], shape[1], shape[2], shape[3]), types.uint8)


@numba.njit
def _listed(addresses, shapes):
    """values, rows, columns and w of a call for a sparse x."""
    n, inputs, outputs = shapes[1][0], shapes[4][0], shapes[4][1]
    values = _array(addresses[1], (n,), types.float32)
    rows, columns = _array(addresses[2], (n,), types.int32), _array(addresses[3], (n,), types.int32)
    return values, rows, columns, _array(addresses[4], (inputs, outputs), types.float32)


def _handler(name, kernels):
    """The handler of one name, which calls a module of kernels."""
    of_entries = kernels is not decision_kernels

    def forward(address):
        frame = _words(address, 15)
        if _asks_for_version(frame):
            return 0
        addresses, shapes, results, shapes_of_results = _operands(frame)
        start, stop = _array(addresses[0], 2, types.int32)
        (rows, positions, inputs), outputs = (shapes[1][0], shapes[1][1], shapes[1][2]), shapes[2][1]
        x = _array(addresses[1], (rows, positions, inputs), types.float32)
        w = _array(addresses[2], (inputs, outputs), types.float32)
        y = _zeros(results[0], (stop - start, positions, outputs))
        if of_entries:
            part = _entries(addresses[3:], shapes[3:], (start, stop), (0, inputs))
            kernels.forward(0, stop - start, y, x[start:stop], w, part)
        else:
            part = _decisions(addresses[3:], shapes[3:], (start, stop), (0, inputs))
            bits = _bits(results[1], shapes_of_results[1])
            if inputs % methods.GROUP:
                bits[:] = 0  # of the inputs that fill the last group up
            kernels.forward(0, stop - start, y, bits, x[start:stop], w, part)
        return 0

    def backward(address):
        frame = _words(address, 15)
        if _asks_for_version(frame):
            return 0
        addresses, shapes, results, _ = _operands(frame)
        start, stop = _array(addresses[0], 2, types.int32)
        (rows, positions, inputs), outputs = (shapes[2][0], shapes[2][1], shapes[2][2]), shapes[3][1]
        dy = _array(addresses[1], (rows, positions, outputs), types.float32)
        x = _array(addresses[2], (rows, positions, inputs), types.float32)[:, :, start:stop]
        w = _array(addresses[3], (inputs, outputs), types.float32)[start:stop]
        dx = _array(results[0], (rows, positions, stop - start), types.float32)
        dw = _zeros(results[1], (stop - start, outputs))
        if of_entries:
            part = _entries(addresses[4:], shapes[4:], (0, rows), (start, stop))
            kernels.backward(0, stop - start, dx, dw, dy, x, w, part)
        else:
            part = _decisions(addresses[4:], shapes[4:], (0, rows), (start, stop))
            kernels.backward(0, stop - start, dx, dw, dy, x, w, _bits(addresses[-1], shapes[-1]), start, part)
        return 0

    def sparse_forward(address):
        frame = _words(address, 15)
        if _asks_for_version(frame):
            return 0
        addresses, shapes, results, _ = _operands(frame)
        values, rows, columns, w = _listed(addresses, shapes)
        if of_entries:
            mask = _entries(addresses[5:], shapes[5:], _ALL, _ALL)
        else:
            mask = _decisions(addresses[5:], shapes[5:], _ALL, _ALL)
        y = _zeros(results[0], (len(mask.time), w.shape[1]))
        kernels.sparse_forward(0, len(values), y, values, rows, columns, w, mask)
        return 0

    def sparse_backward(address):
        frame = _words(address, 15)
        if _asks_for_version(frame):
            return 0
        addresses, shapes, results, _ = _operands(frame)
        values, rows, columns, w = _listed(addresses, shapes)
        dvalues, dw = _array(results[0], (len(values),), types.float32), _zeros(results[1], w.shape)
        dy = _array(addresses[-1], (shapes[-1][0], w.shape[1]), types.float32)
        if of_entries:
            mask = _entries(addresses[5:], shapes[5:], _ALL, _ALL)
        else:
            mask = _decisions(addresses[5:], shapes[5:], _ALL, _ALL)
        kernels.sparse_backward(0, len(values), dvalues, dw, values, rows, columns, w, dy, mask)
        return 0

    def fill(address):
        frame = _words(address, 15)
        if _asks_for_version(frame):
            return 0
        addresses, shapes, results, _ = _operands(frame)
        start, stop = _array(addresses[0], 2, types.int32)
        mask = _entries(addresses[1:], shapes[1:], _ALL, _ALL)
        kernels.fill(start, stop, _array(results[0], (stop - start, len(mask.out)), types.float32), mask)
        return 0

    return {f.__name__: f for f in (forward, backward, sparse_forward, sparse_backward, fill)}[name]


def _registered(name, kernels):
    """The name by which XLA knows a handler, once it is compiled."""
    with _REGISTERING:
        return _register(name, kernels)


_REGISTERING = threading.Lock()
"""Held until a handler is registered: XLA refuses to know another one by its name."""


@functools.cache
def _register(name, kernels):
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    decorator, sources = functools.partial(numba.cfunc, types.intp(types.intp)), (kernels, *decision_kernels.SOURCES)
    handler = decision_kernels.kept_on_disk(decorator, _handler(name, kernels), *sources, decision_kernels)
    handlers.append(handler)
    target = f"{kernels.__name__.replace('.', '_')}_{name}"
    jax.ffi.register_ffi_target(target, capsule(handler.address, None, None), platform="cpu")
    return target


handlers: list = []  # kept, since their code lives as long as they do
for _name in ("forward", "backward", "sparse_forward", "sparse_backward"):
    _registered(_name, decision_kernels)

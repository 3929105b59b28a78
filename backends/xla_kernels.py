"""The kernels of cpu_kernels.py as custom calls of XLA on a CPU, for JAX: nothing of Python runs in a step.

A product is cut into spans, each a call of its own, since a call runs on one thread and XLA runs calls side by side.
XLA hands a call the address of a frame whose layout is that of its C interface, `xla/ffi/api/c_api.h` in
`jax.ffi.include_dir()`: a promise of XLA, which goes on running handlers that were made for an older version.
"""

import ctypes
import functools
import inspect
import os
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from pernodedrop import generator, noise
from pernodedrop.backends import cpu_kernels, methods
from pernodedrop.backends.methods import Decisions

_METADATA = 1  # the extension of a call that only asks
_UNNAMED = 1 << 32  # version 0.1, that of JAX 0.6.0 to 0.8.0, whose question comes without the interface
_CALLS = 4 * max(4, os.cpu_count() or 1)  # below a dozen steps XLA takes them one after the other


def product(x, w, mask):
    """As `cpu_kernels.product`, on traced arrays."""
    mask.check(x, w)
    outputs, w, mask = w.shape[1], cpu_kernels.padded(w, jnp), mask._replace(out=cpu_kernels.padded(mask.out, jnp))
    operands = (x, w, *mask)
    parts = [
        _call("forward", span, operands, (span[1] - span[0], x.shape[1], w.shape[1]))[0]
        for span in cpu_kernels.spans(len(x), _parts(x, w))
    ]
    return jnp.concatenate(parts)[:, :, :outputs]


def gradients(dy, x, w, mask):
    """As `cpu_kernels.gradients`, on traced arrays."""
    mask.check(x, w, dy)
    outputs, dy, w, out = w.shape[1], *(cpu_kernels.padded(a, jnp) for a in (dy, w, mask.out))
    operands = (dy, x, w, *mask._replace(out=out))
    parts = [
        _call("backward", span, operands, (*x.shape[:2], span[1] - span[0]), (span[1] - span[0], w.shape[1]))
        for span in cpu_kernels.spans(len(w), _parts(x, w))
    ]
    dx, dw = zip(*parts, strict=True)
    return jnp.concatenate(dx, axis=2), jnp.concatenate(dw)[:, :outputs]


def _parts(x, w):
    return 1 if cpu_kernels.is_small(x, w) else _CALLS


def sparse_product(values, rows, columns, w, mask):
    """As `cpu_kernels.sparse_product`, on traced arrays and one thread; places are inside of x."""
    return _call_listed("sparse_forward", (values, rows, columns, w, *mask), (len(mask.time), w.shape[1]))[0]


def sparse_gradients(dy, values, rows, columns, w, mask):
    """As `cpu_kernels.sparse_gradients`, on traced arrays and one thread."""
    return _call_listed("sparse_backward", (values, rows, columns, w, *mask, dy), values.shape, w.shape)


def _call_listed(name, operands, *shapes):
    values, rows, columns, *rest = operands
    return _call(name, (0, len(values)), (values, rows.astype(np.int32), columns.astype(np.int32), *rest), *shapes)


def _call(name, span, operands, *shapes):
    results = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    call = jax.ffi.ffi_call(f"pernodedrop_{name}", results, vmap_method="sequential")
    return call(np.asarray(span, np.int32), *operands)


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
    """The addresses of the numbers of all operands and results, and the shapes of the operands."""
    buffers = [_words(address, 6) for address in _words(frame[9], frame[7])]
    results = [_words(address, 6)[3] for address in _words(frame[14], frame[12])]
    return [b[3] for b in buffers], [_words(b[5], b[4]) for b in buffers], results


@numba.njit
def _decisions(addresses, rows, inputs, outputs):
    threshold = _array(addresses[0], 1, types.int32)[0]
    seed, call = _array(addresses[1], 1, types.uint32)[0], _array(addresses[2], 1, types.uint32)[0]
    time, sample = _array(addresses[3], rows, types.uint32), _array(addresses[4], rows, types.uint32)
    in_, out = _array(addresses[5], inputs, types.uint32), _array(addresses[6], outputs, types.uint32)
    return Decisions(threshold, seed, call, time, sample, in_, out)


@numba.njit
def _listed(addresses, shapes):
    """values, rows, columns, w and the decisions of a call for a sparse x."""
    n, inputs, outputs = shapes[1][0], shapes[4][0], shapes[4][1]
    values = _array(addresses[1], (n,), types.float32)
    rows, columns = _array(addresses[2], (n,), types.int32), _array(addresses[3], (n,), types.int32)
    w = _array(addresses[4], (inputs, outputs), types.float32)
    return values, rows, columns, w, _decisions(addresses[5:], shapes[8][0], inputs, outputs)


def _handlers(sources):
    """The handlers; numba keeps them on disk by this file and by `sources`, which stands for what they call."""

    def forward(address):
        frame = _words(address, 15)
        if _asks_for_version(frame) or sources == 0:
            return 0
        addresses, shapes, results = _operands(frame)
        start, stop = _array(addresses[0], 2, types.int32)
        (rows, positions, inputs), outputs = (shapes[1][0], shapes[1][1], shapes[1][2]), shapes[2][1]
        x = _array(addresses[1], (rows, positions, inputs), types.float32)
        w = _array(addresses[2], (inputs, outputs), types.float32)
        m = _decisions(addresses[3:], rows, inputs, outputs)
        part = Decisions(m.threshold, m.seed, m.call, m.time[start:stop], m.sample[start:stop], m.in_, m.out)
        y = _array(results[0], (stop - start, positions, outputs), types.float32)
        y[:] = 0
        cpu_kernels.forward(0, stop - start, y, x[start:stop], w, part)
        return 0

    def backward(address):
        frame = _words(address, 15)
        if _asks_for_version(frame) or sources == 0:
            return 0
        addresses, shapes, results = _operands(frame)
        start, stop = _array(addresses[0], 2, types.int32)
        (rows, positions, inputs), outputs = (shapes[2][0], shapes[2][1], shapes[2][2]), shapes[3][1]
        dy = _array(addresses[1], (rows, positions, outputs), types.float32)
        x = _array(addresses[2], (rows, positions, inputs), types.float32)
        w = _array(addresses[3], (inputs, outputs), types.float32)
        m = _decisions(addresses[4:], rows, inputs, outputs)
        part = Decisions(m.threshold, m.seed, m.call, m.time, m.sample, m.in_[start:stop], m.out)
        dx = _array(results[0], (rows, positions, stop - start), types.float32)
        dw = _array(results[1], (stop - start, outputs), types.float32)
        dw[:] = 0
        cpu_kernels.backward(0, stop - start, dx, dw, dy, x[:, :, start:stop], w[start:stop], part)
        return 0

    def sparse_forward(address):
        frame = _words(address, 15)
        if _asks_for_version(frame) or sources == 0:
            return 0
        addresses, shapes, results = _operands(frame)
        values, rows, columns, w, mask = _listed(addresses, shapes)
        y = _array(results[0], (len(mask.time), w.shape[1]), types.float32)
        y[:] = 0
        cpu_kernels.sparse_forward(0, len(values), y, values, rows, columns, w, mask)
        return 0

    def sparse_backward(address):
        frame = _words(address, 15)
        if _asks_for_version(frame) or sources == 0:
            return 0
        addresses, shapes, results = _operands(frame)
        values, rows, columns, w, mask = _listed(addresses, shapes)
        dy = _array(addresses[12], (len(mask.time), w.shape[1]), types.float32)
        dvalues = _array(results[0], (len(values),), types.float32)
        dw = _array(results[1], (w.shape[0], w.shape[1]), types.float32)
        dw[:] = 0
        cpu_kernels.sparse_backward(0, len(values), dvalues, dw, values, rows, columns, w, dy, mask)
        return 0

    return forward, backward, sparse_forward, sparse_backward


def _register():
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    files = (inspect.getfile(module) for module in (cpu_kernels, generator, methods, noise))
    sources = b"".join(pathlib.Path(file).read_bytes() for file in files)
    decorator = functools.partial(numba.cfunc, types.intp(types.intp))
    for function in _handlers(1 + zlib.crc32(sources)):
        handler = cpu_kernels.kept_on_disk(decorator, function)
        handlers.append(handler)
        target = capsule(handler.address, None, None)
        jax.ffi.register_ffi_target(f"pernodedrop_{function.__name__}", target, platform="cpu")


handlers: list = []  # kept, since their code lives as long as they do
_register()

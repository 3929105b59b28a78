"""What a test needs of a framework and a layer does not: whether Keras is there, tensors, compilation, gradients."""

import functools
import importlib.util
import sys

import numpy as np

from pernodedrop import backends

# imported after TensorFlow, which Keras may import to save a model, triton aborts the process
if "tensorflow" not in sys.modules and importlib.util.find_spec("triton"):
    importlib.import_module("triton")


@functools.cache
def has_keras():
    """Whether Keras can be imported: it is installed, and so is the framework that it runs on."""
    try:
        importlib.import_module("keras")
    except ImportError:
        return False
    return True


def tensor(backend, values, dtype=None):
    """Host values as a tensor, of the dtype called `dtype` (bfloat16 too)."""
    xp = backends.get(backend)
    result = xp.asarray(np.array(values))
    return result if dtype is None else xp.astype(result, dtype)


def array(backend, values):
    """A tensor as a host array; bfloat16, which NumPy lacks, as float32."""
    xp = backends.get(backend)
    return xp.to_numpy(xp.astype(values, "float32") if xp.dtype(values) == "bfloat16" else values)


def compiled(backend, function):
    """`function` of tensors, compiled by the framework; torch compiles with a backend that generates no code."""
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    if backend == "torch":
        import torch

        torch.compiler.reset()  # it refuses to compile one piece of code more than eight times
        return torch.compile(function, backend="aot_eager", fullgraph=True)
    return function


@functools.lru_cache(maxsize=256)
def quick(backend, function):
    """`function` of tensors, for its values only: compiled on JAX, which else compiles op by op for each new shape."""
    return compiled(backend, function) if backend == "jax" else function


def value_and_gradients(backend, function, arrays, upstream, constants=()):
    """The value of a function and the gradients of sum(value * upstream), as host arrays.

    Args:
        backend: name of the backend.
        function: of tensors.
        arrays: host arrays, the first arguments of `function`, to which there are gradients.
        upstream: host array of the shape of the value.
        constants: tensors, its other arguments.

    Returns:
        The value, and a list of gradients, None for one that there is not.
    """
    inputs = [tensor(backend, a) for a in arrays]
    if backend in DIFFERENTIABLE:
        y, gradients = _DERIVATIVES[backend](function, inputs, upstream, constants)
    else:
        y, gradients = function(*inputs, *constants), [None] * len(inputs)
    return array(backend, y), [None if g is None else array(backend, g) for g in gradients]


def _torch(function, inputs, upstream, constants):
    for x in inputs:
        x.requires_grad_()
    y = function(*inputs, *constants)
    y.backward(tensor("torch", upstream).to(y.dtype))
    return y.detach(), [x.grad for x in inputs]


def _jax(function, inputs, upstream, constants):
    return _jax_compiled(function)(inputs, tensor("jax", upstream), constants)


@functools.lru_cache(maxsize=256)
def _jax_compiled(function):
    import jax

    @jax.jit
    def run(inputs, upstream, constants):
        y, vjp = jax.vjp(lambda *inputs: function(*inputs, *constants), *inputs)
        return y, vjp(upstream.astype(y.dtype))

    return run


def _tensorflow(function, inputs, upstream, constants):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = function(*inputs, *constants)
    gradients = tape.gradient(y, inputs, output_gradients=tf.cast(upstream, y.dtype))
    return y, [None if g is None else tf.convert_to_tensor(g) for g in gradients]  # it may be tf.IndexedSlices


_DERIVATIVES = {"torch": _torch, "jax": _jax, "tensorflow": _tensorflow}

DIFFERENTIABLE = tuple(_DERIVATIVES)
"""Names of the backends that have gradients."""

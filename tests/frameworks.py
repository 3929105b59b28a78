"""What tests need of the framework under test and NumPy code does not: tensors, gradients, compilation, float64."""

import contextlib

import keras
import numpy as np
import pytest

from pernodedrop import backends

NAME = keras.backend.backend()
XP = backends.get(NAME)

needs_gradients = pytest.mark.skipif(NAME == "numpy", reason="NumPy has no gradients")


def tensor(values, dtype=None):
    """Host values as a tensor of the framework, of the dtype called `dtype` (bfloat16 too)."""
    result = XP.asarray(np.array(values))
    return result if dtype is None else XP.astype(result, dtype)


def array(values):
    """A tensor as a host array; bfloat16, which NumPy lacks, as float32."""
    return XP.to_numpy(XP.astype(values, "float32") if XP.dtype(values) == "bfloat16" else values)


def compiled(function):
    """`function` of tensors, compiled by the framework; torch compiles with a backend that generates no code."""
    if NAME == "jax":
        import jax

        return jax.jit(function)
    if NAME == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    if NAME == "torch":
        import torch

        return torch.compile(function, backend="aot_eager", fullgraph=True)
    return function


def quick(function):
    """`function` of tensors, for its values only: compiled on JAX, which else compiles op by op for each new shape."""
    return compiled(function) if NAME == "jax" else function


def float64():
    """A context in which float64 tensors stay so."""
    if NAME == "jax":
        import jax

        return jax.enable_x64(True)
    return contextlib.nullcontext()


def value_and_gradients(function, *arrays, upstream):
    """y = function(*arrays) and the gradients of sum(y * upstream), as host arrays; a gradient that is not is None."""
    return {"numpy": _numpy, "torch": _torch, "jax": _jax, "tensorflow": _tensorflow}[NAME](function, arrays, upstream)


def _numpy(function, arrays, upstream):
    return function(*arrays), [None] * len(arrays)


def _torch(function, arrays, upstream):
    inputs = [tensor(a).requires_grad_() for a in arrays]
    y = function(*inputs)
    y.backward(tensor(upstream, XP.dtype(y)))
    return array(y.detach()), [_host(x.grad) for x in inputs]


def _jax(function, arrays, upstream):
    import jax

    @jax.jit
    def run(upstream, *inputs):
        y, vjp = jax.vjp(function, *inputs)
        return y, vjp(upstream.astype(y.dtype))

    y, gradients = run(tensor(upstream), *map(tensor, arrays))
    return array(y), [array(g) for g in gradients]


def _tensorflow(function, arrays, upstream):
    import tensorflow as tf

    inputs = [tensor(a) for a in arrays]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = function(*inputs)
    return array(y), [_host(g) for g in tape.gradient(y, inputs, output_gradients=tensor(upstream, XP.dtype(y)))]


def _host(gradient):
    return None if gradient is None else array(gradient)

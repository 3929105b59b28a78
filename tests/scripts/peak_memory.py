"""The peak memory of one step of a masked product beyond its operands and results, in bytes.

Usage: peak_memory.py METHOD INPUTS, at batch 128, 64 outputs, float32. Linux: the kernel's own account of the resident
set is used, whose peak can be reset. What counts is the peak of a later step above the level before the first, so
that memory which a framework keeps for itself, and the compiled program, are in the figure; what the compiler took only
while it ran is not. A small step goes before all, to start threads and compiler. The lowest of three later steps is
taken: how the system's allocator happens to split its free memory only ever adds.
"""

import ctypes
import gc
import json
import pathlib
import re
import sys

import keras
import numpy as np

import pernodedrop as pnd

METHOD, INPUTS = sys.argv[1], int(sys.argv[2])
BACKEND = keras.backend.backend()
NOISE, KEY = pnd.Bernoulli(0.5), (1, 0)


def product(x, w):
    return pnd.ops.masked_dense(x, w, NOISE, KEY, method=METHOD)


def torch_step(x, w, dy):
    y = product(x, w)
    return (y, *__import__("torch").autograd.grad(y, (x, w), dy))


def tensorflow_step(x, w, dy):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch((x, w))
        y = product(x, w)
    return (y, *tape.gradient(y, (x, w), dy))


def jax_step():
    import jax

    def step(x, w, dy):
        y, vjp = jax.vjp(product, x, w)
        return (y, *vjp(dy))

    jitted = jax.jit(step)
    return lambda *operands: jax.block_until_ready(jitted(*operands))


def memory(field):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status).group(1)) * 1024


def operands(batch, inputs):
    rng = np.random.default_rng(0)
    shapes = ((batch, inputs), (inputs, 64), (batch, 64))
    # times 1: memory of the framework's own, as in a model, where NumPy's may need an aligned copy at every step
    x, w, dy = (1 * keras.ops.convert_to_tensor(rng.normal(size=shape).astype("float32")) for shape in shapes)
    if BACKEND == "torch":
        x.requires_grad_(), w.requires_grad_()
    return x, w, dy


def main():
    step = {
        "numpy": lambda x, w, dy: (product(x, w),),
        "torch": torch_step,
        "tensorflow": tensorflow_step,
        "jax": jax_step() if BACKEND == "jax" else None,
    }[BACKEND]
    step(*operands(1, 8192))
    step_operands = operands(128, INPUTS)
    before = settled()
    step(*step_operands)
    extra = min(peak_of(step, step_operands) for _ in range(3)) - before
    print(json.dumps({"extra": extra, "mask": 4 * 128 * INPUTS * 64}))


def peak_of(step, step_operands):
    """The peak of the resident set in one step, less its results."""
    settled()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is now the present
    results = step(*step_operands)
    return memory("VmHWM") - sum(int(np.prod(result.shape)) * 4 for result in results)


def settled():
    """The resident set once what is free has gone back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return memory("VmRSS")


main()

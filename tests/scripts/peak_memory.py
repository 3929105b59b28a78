"""The peak memory of one step of a masked product beyond its operands and results, in bytes.

Usage: peak_memory.py METHOD INPUTS, at batch 128, 64 outputs, float32. Linux: the kernel's own account of the resident
set is used, whose peak can be reset, after freed memory has been handed back.
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


def main():
    step = {
        "numpy": lambda x, w, dy: (product(x, w),),
        "torch": torch_step,
        "tensorflow": tensorflow_step,
        "jax": jax_step() if BACKEND == "jax" else None,
    }[BACKEND]
    rng = np.random.default_rng(0)
    shapes = ((128, INPUTS), (INPUTS, 64), (128, 64))
    operands = [keras.ops.convert_to_tensor(rng.normal(size=shape).astype("float32")) for shape in shapes]
    if BACKEND == "torch":
        operands[0].requires_grad_(), operands[1].requires_grad_()
    step(*operands)  # compiles, and grows the threads' pools
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is now the present
    before = memory("VmRSS")
    results = step(*operands)
    size = sum(int(np.prod(result.shape)) * 4 for result in results)
    print(json.dumps({"extra": memory("VmHWM") - before - size, "mask": 4 * 128 * INPUTS * 64}))


main()

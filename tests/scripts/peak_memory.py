"""The peak memory of one step of masked products beyond their operands and results, in bytes.

Usage: peak_memory.py METHOD-INPUTS ..., at batch 32, 64 outputs, float32; jitted on JAX, elsewhere eager, where a
graph that is traced (10 MB on TensorFlow) is not in the figure. What is small goes first, so that nothing large is left
to it. Linux.
"""

import json
import sys

import keras

import pernodedrop as pnd
from pernodedrop.commands.bench import matrix, memory, steps

BACKEND = keras.backend.backend()


def extra(method, shape):
    def product(x, w, key):
        return pnd.ops.masked_dense(x, w, pnd.Bernoulli(0.5), key, method=method)

    return memory.extra(steps.step(product, BACKEND, "jit" if BACKEND == "jax" else "eager"), shape, "float32")


found = {}
for name in sys.argv[1:]:
    method, inputs = name.split("-")
    shape = (32, int(inputs), 64)
    mask = 4 * matrix.Case(BACKEND, "bernoulli", shape, "float32", "").entries
    found[name] = {"extra": extra(method, shape), "mask": mask}
print(json.dumps(found))

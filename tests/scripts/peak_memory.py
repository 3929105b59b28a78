"""The peak memory of one step of a masked product beyond its operands and results, in bytes.

Usage: peak_memory.py METHOD INPUTS, at batch 128, 64 outputs, float32; jitted on JAX, elsewhere eager, where a graph
that is traced (10 MB on TensorFlow) is not in the figure. Linux.
"""

import json
import sys

import keras

import pernodedrop as pnd
from pernodedrop.commands.bench import matrix, memory, steps

METHOD, SHAPE = sys.argv[1], (128, int(sys.argv[2]), 64)
BACKEND = keras.backend.backend()


def product(x, w, key):
    return pnd.ops.masked_dense(x, w, pnd.Bernoulli(0.5), key, method=METHOD)


step = steps.step(product, BACKEND, "jit" if BACKEND == "jax" else "eager")
mask = 4 * matrix.Case(BACKEND, "bernoulli", SHAPE, "float32", "").entries
print(json.dumps({"extra": memory.extra(step, SHAPE, "float32"), "mask": mask}))

"""What a step costs: forward and backward of one product, batch 128, 4096 -> 64, float32, against the plain product.

Usage: KERAS_BACKEND=jax python benchmarks/step_time.py. The rows are timed in turn, round after round, so that a
machine whose speed drifts drifts for all; a figure is the median of its rounds.
"""

import statistics
import time

import keras
import numpy as np

import pernodedrop as pnd

ROUNDS = 9
BATCH, INPUTS, OUTPUTS = 128, 4096, 64
BACKEND = keras.backend.backend()
BERNOULLI, GAUSSIAN = pnd.Bernoulli(0.5), pnd.Gaussian(0.5)


PRODUCTS = {
    "dense": keras.ops.matmul,
    "dropout, then dense": lambda x, w: pnd.ops.masked_dense(x, w, BERNOULLI, (1, 0), sharing="out"),
    "PerNodeDrop Gaussian (local reparameterization)": lambda x, w: pnd.ops.masked_dense(x, w, GAUSSIAN, (1, 0)),
    "PerNodeDrop Bernoulli (recomputed)": lambda x, w: pnd.ops.masked_dense(x, w, BERNOULLI, (1, 0)),
    "PerNodeDrop Bernoulli (materialized)": lambda x, w: pnd.ops.masked_dense(
        x, w, BERNOULLI, (1, 0), method="materialized"
    ),
}


def step_of(product):
    """One step as a function of (x, w, dy), as people run it: jitted on JAX, a TensorFlow graph, eager on torch."""
    if BACKEND == "jax":
        import jax

        @jax.jit
        def step(x, w, dy):
            y, vjp = jax.vjp(product, x, w)
            return y, *vjp(dy)

        return lambda *operands: jax.block_until_ready(step(*operands))
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function
        def step(x, w, dy):
            with tf.GradientTape() as tape:
                tape.watch((x, w))
                y = product(x, w)
            return y, *tape.gradient(y, (x, w), dy)

        return step
    if BACKEND == "torch":
        import torch

        def step(x, w, dy):
            y = product(x, w)
            return y, *torch.autograd.grad(y, (x, w), dy)

        return step
    return lambda x, w, dy: product(x, w)


def main():
    """Time all rows and print them."""
    rng = np.random.default_rng(0)
    shapes = ((BATCH, INPUTS), (INPUTS, OUTPUTS), (BATCH, OUTPUTS))
    operands = [keras.ops.convert_to_tensor(rng.normal(size=shape).astype("float32")) for shape in shapes]
    if BACKEND == "torch":
        operands[0].requires_grad_(), operands[1].requires_grad_()
    steps = {name: step_of(product) for name, product in PRODUCTS.items()}
    times = {name: [] for name in steps}
    for turn in range(ROUNDS + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step(*operands)
            if turn:  # the first one compiles
                times[name].append(time.perf_counter() - began)
    plain = statistics.median(times["dense"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{BACKEND:<10} {name:<48} {median * 1e3:8.1f} ms  {median / plain:6.1f} x dense")


if __name__ == "__main__":
    main()

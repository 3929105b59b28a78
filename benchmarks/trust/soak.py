"""The masks of a million steps, the memory of the process meanwhile, and a mask of more than 2**31 entries.

    python benchmarks/trust/soak.py                              on every backend that soak.json lacks, a process each
    python benchmarks/trust/soak.py --backends torch --again
    python benchmarks/trust/soak.py --steps 10000 --print        a short one, which is not kept

A step is a product with a new mask, compiled on JAX and TensorFlow. After the first step and every tenth of all, the
resident memory is noted, and the product compared with that of NumPy's mask of the same key. Then the last rows of a
product whose mask has 2**31 entries and more are compared with the same rows by themselves.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import numpy as np

import pernodedrop as pnd
from pernodedrop.testing import frameworks

PATH = pathlib.Path(__file__).parent / "soak.json"
BACKENDS = ("numpy", "torch", "jax", "tensorflow")
NOISE, SEED = pnd.Bernoulli(0.5), 1
SHAPE = (3, 5, 4)  # samples, inputs, outputs
LARGE = (2**11 + 2, 2**10, 2**10)
COMPILED = ("jax", "tensorflow")
TENTHS = 10


def resident():
    """The resident memory of this process in MiB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def operands(shape):
    rng = np.random.default_rng(0)
    return rng.normal(size=shape[:2]).astype("float32"), rng.normal(size=shape[1:]).astype("float32")


def stepper(backend):
    """A function of the number of a step that gives its product as an array."""
    x, w = (frameworks.tensor(backend, array) for array in operands(SHAPE))
    if backend not in COMPILED:
        return lambda step: frameworks.array(backend, pnd.ops.masked_dense(x, w, NOISE, (SEED, step)))
    product = frameworks.compiled(backend, lambda key: pnd.ops.masked_dense(x, w, NOISE, (SEED, key)))
    return lambda step: frameworks.array(backend, product(frameworks.tensor(backend, np.int32(step))))


def is_right(step, y):
    """Whether a product is that of NumPy's mask."""
    x, w = operands(SHAPE)
    mask = pnd.ops.sample_mask(NOISE, key=(SEED, step), shape=SHAPE, backend="numpy")
    return bool(np.allclose(y, np.einsum("bi,io,bio->bo", x, w, mask), rtol=1e-5, atol=1e-5))


def soaked(backend, steps):
    """Pairs of steps done and memory, and whether all that was compared is right."""
    run, memory, right = stepper(backend), [], True
    every = steps // TENTHS
    for step in range(steps):
        y = run(step)
        if step % every == 0 or step == steps - 1:
            right &= is_right(step, y)
            memory.append([step + 1, resident()])
    return {"steps": steps, "memory": memory, "right": right}


def large(backend):
    """Whether the last rows of a product with a large mask are those rows by themselves."""
    x, w = (frameworks.tensor(backend, array) for array in operands(LARGE))
    last = LARGE[0] - 2
    whole = pnd.ops.masked_dense(x, w, NOISE, (SEED, 0), method="recomputed")
    part = pnd.ops.masked_dense(x[last:], w, NOISE, (SEED, 0), sample_offset=last, method="materialized")
    arrays = (frameworks.array(backend, y) for y in (whole[last:], part))
    return {"entries": int(np.prod(LARGE)), "equal": bool(np.allclose(*arrays, rtol=1e-3, atol=1e-3))}


def step_count(text):
    """The argument `--steps`."""
    steps = int(text)
    if steps < TENTHS:
        raise argparse.ArgumentTypeError(f"expected at least {TENTHS}, a step a tenth. Received: {steps}")
    return steps


def main():
    """Soak what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--steps", type=step_count, default=10**6)
    parser.add_argument("--again", action="store_true", help="backends that are there, too")
    parser.add_argument("--print", action="store_true", help="keep nothing")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps({**soaked(arguments.worker, arguments.steps), "large": large(arguments.worker)}))
        return
    for backend in arguments.backends:
        found = json.loads(PATH.read_text()) if PATH.exists() else {}
        if backend in found and not (arguments.again or arguments.print):
            continue
        command = [sys.executable, __file__, "--worker", backend, "--steps", str(arguments.steps)]
        env = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
        found[backend] = json.loads(done.stdout.splitlines()[-1])
        if arguments.print:
            print(backend, found[backend])
        else:
            PATH.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

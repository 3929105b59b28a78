"""The peak memory of a step beyond its operands and results; a process of its own measures one case.

Usage: python -m pernodedrop.commands.bench.memory JSON, which has a case, and the form of one that is written by hand.

What counts is the peak of a later step above the level before the first, so that memory which a framework keeps for
itself, and the compiled program, are in the figure; what the compiler took only while it ran is not. A small step goes
before all, to start threads and compiler. The lowest of three later steps is taken: how the system's allocator happens
to split its free memory only ever adds.
"""

import ctypes
import gc
import json
import pathlib
import re
import sys

import keras

from pernodedrop.commands.bench import matrix, products, steps

SMALL_STEP_INPUTS = 8192  # of one sample: several blocks of a recomputed product
LATER_STEPS = 3


def extra(step, shape, dtype):
    """The bytes that a step takes at its peak beyond operands and results.

    Args:
        step: a function of (x, w, dy, key), which has not been called.
        shape, dtype: of the operands.

    Returns:
        An int, or None where the system does not say.
    """
    backend = keras.backend.backend()
    device = str(keras.ops.zeros(()).device).lower()
    on_gpu = "cuda" in device or "gpu" in device
    if not on_gpu and sys.platform != "linux":
        return None
    inputs = shape[-2] if len(shape) > 4 else SMALL_STEP_INPUTS  # a convolution is a layer, built for its channels
    step(*steps.operands((1, *shape[1:-2], inputs, shape[-1]), dtype))
    operands = steps.operands(shape, dtype)
    level, peak = GPU[backend] if on_gpu else (_settled, _resident_peak)
    before = level()
    step(*operands)
    return min(_peak_of(step, operands, level, peak) for _ in range(LATER_STEPS)) - before


def _peak_of(step, operands, level, peak):
    level()
    read = peak()
    return read(steps.results_bytes(step(*operands)))


def _settled():
    """The resident set once what is free has gone back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def _resident_peak():
    """Start anew the kernel's own account of the largest resident set; it is read less the results."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return lambda results: _status("VmHWM") - results


def _status(field):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status).group(1)) * 1024


def _torch_level():
    import torch

    gc.collect()
    return torch.cuda.memory_allocated()


def _torch_peak():
    import torch

    torch.cuda.reset_peak_memory_stats()
    return lambda results: torch.cuda.max_memory_allocated() - results


def _tensorflow_level():
    import tensorflow as tf

    gc.collect()
    return tf.config.experimental.get_memory_info("GPU:0")["current"]


def _tensorflow_peak():
    import tensorflow as tf

    tf.config.experimental.reset_memory_stats("GPU:0")
    return lambda results: tf.config.experimental.get_memory_info("GPU:0")["peak"] - results


def _jax_level():
    import jax

    gc.collect()
    return jax.devices()[0].memory_stats()["bytes_in_use"]


def _jax_peak():
    """The peak of the process, which JAX cannot start anew: nothing before these steps was as large."""
    import jax

    return lambda results: jax.devices()[0].memory_stats()["peak_bytes_in_use"] - results


GPU = {
    "torch": (_torch_level, _torch_peak),
    "tensorflow": (_tensorflow_level, _tensorflow_peak),
    "jax": (_jax_level, _jax_peak),
}
"""How each framework says the present level of its memory, and its peak since it was asked to start anew."""


def main(text):
    """Measure one case and print its figure."""
    asked = json.loads(text)
    case = matrix.Case.of(asked["case"])
    steps.prepare(case.backend)
    product = products.product(case.row, case.backend, matrix.RATE, asked["form"], case.shape)
    print(json.dumps({"extra": extra(steps.step(product, case.backend, case.mode), case.shape, case.dtype)}))


if __name__ == "__main__":
    main(*sys.argv[1:])

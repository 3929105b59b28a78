"""A product as a step: forward and backward, compiled or not, done when it returns."""

import importlib
import importlib.util
import typing

import keras
import numpy as np

from pernodedrop._types import Tensor
from pernodedrop.commands.bench import matrix
from pernodedrop.commands.bench.products import Product

Step = typing.Callable[..., tuple[Tensor, ...]]


def operands(shape: typing.Sequence[int], dtype: str, listed: int = 0) -> tuple[Tensor, ...]:
    """x, w, dy and the key, as tensors of Keras' backend.

    Args:
        shape: that of a case.
        dtype: that of x, w and dy.
        listed: how many entries of a row a sparse x lists: then x is their values. 0 where it is dense.
    """
    *rows, inputs, outputs = shape
    rng = np.random.default_rng(0)

    def tensor(*size: int) -> Tensor:
        values = keras.ops.convert_to_tensor(rng.standard_normal(size, "float32"))
        # times 1: memory of the framework's own, as in a model, where NumPy's may need an aligned copy at every step
        return 1 * keras.ops.cast(values, dtype)

    window = (3, 3) if len(shape) == 5 else ()
    x = tensor(*rows, inputs) if not listed else tensor(rows[0] * listed)
    w, dy = tensor(*window, inputs, outputs), tensor(*rows, outputs)
    if keras.backend.backend() == "torch":
        x.requires_grad_()
        w.requires_grad_()
    return x, w, dy, keras.ops.convert_to_tensor(np.array([1, 0], "int32"))


def step(product: Product, backend: str, mode: str) -> Step:
    """A function of (x, w, dy, key) that returns (y, dx, dw), on NumPy and without a backward pass (y,).

    Args:
        product: what one row computes.
        backend: the name of Keras' backend.
        mode: one of its modes in `matrix`, or "eager"; then " forward" if there is no backward pass.
    """
    mode, _, end = mode.partition(" ")
    return STEPS[backend](product, mode, end == matrix.FORWARD)


def _numpy(product: Product, mode: str, forward: bool) -> Step:
    return lambda x, w, dy, key: (product(x, w, key),)


def _jax(product: Product, mode: str, forward: bool) -> Step:
    import jax

    def run(x: Tensor, w: Tensor, dy: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        if forward:
            return (product(x, w, key),)
        y, vjp = jax.vjp(lambda x, w: product(x, w, key), x, w)
        return (y, *vjp(dy))

    run = jax.jit(run) if mode == "jit" else run
    return lambda *tensors: jax.block_until_ready(run(*tensors))


def _tensorflow(product: Product, mode: str, forward: bool) -> Step:
    import tensorflow as tf

    def run(x: Tensor, w: Tensor, dy: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        if forward:
            return (product(x, w, key),)
        with tf.GradientTape() as tape:
            tape.watch((x, w))
            y = product(x, w, key)
        return (y, *tape.gradient(y, (x, w), dy))

    if mode != "eager":
        run = tf.function(run, jit_compile=mode == "xla")
    if not tf.config.list_physical_devices("GPU"):
        return run

    def synchronized(*tensors: Tensor) -> tuple[Tensor, ...]:
        results = run(*tensors)
        tf.test.experimental.sync_devices()
        return results

    return synchronized


def _torch(product: Product, mode: str, forward: bool) -> Step:
    import torch

    from pernodedrop.internals import of_torch

    if mode == "compiled":
        # rows are closures of one function, and after eight of them torch would run the next one eagerly
        of_torch.allow_recompilations(100)
        product = torch.compile(product)

    def run(x: Tensor, w: Tensor, dy: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(not forward):
            y = product(x, w, key)
        gradients = () if forward else torch.autograd.grad(y, (x, w), dy, allow_unused=True)  # the values of a sparse x
        results = (y, *gradients)
        if x.is_cuda:
            torch.cuda.synchronize()
        return results

    return run


STEPS = {"numpy": _numpy, "jax": _jax, "tensorflow": _tensorflow, "torch": _torch}


def prepare(backend: str) -> None:
    """What has to be done before a process uses Keras on one backend."""
    if keras.backend.backend() != backend:
        raise RuntimeError(f"Keras runs on {keras.backend.backend()}, not on {backend}")
    if backend == "torch" and importlib.util.find_spec("triton"):
        importlib.import_module("triton")  # after TensorFlow, which Keras may import, it would abort the process


def results_bytes(results: typing.Sequence[Tensor]) -> int:
    """The size of a step's results."""
    return sum(int(np.prod(y.shape)) * matrix.ITEMSIZE[keras.backend.standardize_dtype(y.dtype)] for y in results)

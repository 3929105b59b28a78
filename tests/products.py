"""Products of the ops on the backend under test, and their truths: float64 sums over NumPy's mask."""

import functools

import numpy as np

import pernodedrop as pnd
from tests.frameworks import NAME, array, quick, tensor, value_and_gradients

KEY = (3, 1)
FAR = 2**32 - 2
BERNOULLI = pnd.Bernoulli(0.4)
SMALL = (6, 8), 5  # the one small shape, so that it is compiled once
masked_dense = pnd.ops.masked_dense


def operands(shape=(5, 37), outputs=11, dtype="float64", seed=0):
    """Random x of `shape`, w and upstream gradient."""
    rng = np.random.default_rng(seed)
    sizes = shape, (shape[-1], outputs), (*shape[:-1], outputs)
    return [rng.normal(size=size).astype(dtype) for size in sizes]


def numpy_mask(noise, x, w, **kwargs):
    """The mask of the product of x and w as float64, of shape (batch, time, in, out)."""
    batch, *time, inputs = x.shape
    mask = pnd.ops.sample_mask(noise, KEY, (batch, *time, inputs, w.shape[1]), backend="numpy", **kwargs)
    return mask.astype("float64").reshape(batch, *(time or [1]), inputs, w.shape[1])


def bits_of(kept, shape):
    """The decisions (row, in, out) of the bytes that a product keeps, as their layout is documented."""
    rows, inputs, outputs = shape
    flat, found = kept.reshape(len(kept) // 2, -1), []  # of 16 outputs each
    for o in range(0, len(flat) * 16, 16):
        wide = o // 64 * 64 + 64 <= len(flat) * 16
        start, width = (o // 64 * 4, 64) if wide else (o // 16, 16)
        block = flat[start : start + width // 16].reshape(*kept.shape[1:3], 8, width // 8)
        bits = np.unpackbits(block, axis=-1, bitorder="little")[..., o % width : o % width + 16]
        found.append(bits.transpose(1, 0, 2, 3).reshape(rows, -1, 16)[:, :inputs])
    return np.concatenate(found, axis=2)[:, :, :outputs].astype(bool)


def sums(x, w, mask):
    """y by float64 sums over the mask."""
    y, *_ = einsums(x, w, np.zeros((*x.shape[:-1], w.shape[1])), mask)
    return y


def einsums(x, w, upstream, mask):
    """y, dx and dw by float64 sums over the mask."""
    x4, g4 = (a.reshape(len(a), mask.shape[1], a.shape[-1]).astype("float64") for a in (x, upstream))
    y = np.einsum("bti,io,btio->bto", x4, w, mask).reshape(upstream.shape)
    dx = np.einsum("bto,io,btio->bti", g4, w, mask).reshape(x.shape)
    return y, dx, np.einsum("bti,bto,btio->io", x4, g4, mask)


def check(x, w, upstream, mask, tolerance, **kwargs):
    """The product and its gradients agree with sums over `mask`, relative to the sums of absolute terms."""
    kwargs = {"noise": BERNOULLI, "key": KEY, **kwargs}
    y, gradients = value_and_gradients(lambda x, w: masked_dense(x, w, **kwargs), x, w, upstream=upstream)
    sizes = einsums(*map(abs, (x, w, upstream)), 1 + abs(mask))
    for got, wanted, size in zip((y, *gradients), einsums(x, w, upstream, mask), sizes, strict=True):
        if got is not None:
            assert got.dtype == x.dtype
            assert got.shape == wanted.shape
            assert (abs(got - wanted) <= tolerance * size).all()


@functools.cache
def runner(noise, sharing, method):
    """The product as a function of tensors, so that JAX compiles it once for each shape."""
    return quick(lambda x, w, key, rest: masked_dense(x, w, noise, key, sharing=sharing, method=method, **rest))


def product(x, w, noise, key=KEY, *, sharing=None, method="auto", **rest):
    """masked_dense of host arrays and ints as host array."""
    rest = {name: state(n) if isinstance(n, int) else tensor(n) for name, n in rest.items()}
    return array(runner(noise, sharing, method)(tensor(x), tensor(w), state(key), rest))


def state(words):
    """Words as the int32 tensor that a layer keeps them in."""
    return tensor(np.array(words, "uint32").view("int32"))


def mask_of(noise, shape, key=KEY, **kwargs):
    """sample_mask of the backend under test as host array."""
    run = quick(lambda key: pnd.ops.sample_mask(noise, key, shape, **{"backend": NAME, **kwargs}))
    return array(run(state(key)))

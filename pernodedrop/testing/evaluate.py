"""A noise at work on one backend: its entries, masks, products and gradients as host arrays.

The numbers of a noise are passed as `params`, as layers do it, so that what is compiled is compiled once for each law.
`ops` is what is put to the test: `pernodedrop.ops`, or a module of one's own with the same functions.
"""

import functools

import numpy as np

from pernodedrop import backends, checks
from pernodedrop.noise import Noise
from pernodedrop.testing import frameworks, lattice

WORDS = 1024
"""How many words entries are evaluated at; always as many, since JAX compiles anew for every shape."""


def many(noise, words):
    """Given words, then others that are always the same, for each lane: uint32 (lanes, WORDS)."""
    lanes = [np.random.default_rng(lane).integers(0, 2**32, WORDS, "uint32") for lane in range(noise.lanes)]
    for lane, some in enumerate(lanes):
        some[: len(words)] = np.roll(np.array(words, "uint32"), lane)
    return np.stack(lanes)


def entries(noise, backend, words, numbers=None, compiled=False):
    """The entries at words (lanes, ...): a host array (...).

    Args:
        noise: the noise.
        backend: name of the backend.
        words: uint32 host array.
        numbers: `params()` of the noise, or others for it.
        compiled: whether the framework compiles it.
    """
    xp = backends.get(backend)

    def run(words, params):
        return noise.from_words([xp.as_word(words[lane, ...]) for lane in range(noise.lanes)], params, xp)

    run = frameworks.compiled(backend, run) if compiled else run
    with np.errstate(all="ignore"):  # what is not finite is found in the result
        return frameworks.array(backend, run(frameworks.tensor(backend, words), _params(noise, backend, numbers)))


def uniforms(backend, words):
    """The uniform numbers of words, a float32 host array."""
    xp = backends.get(backend)
    return frameworks.array(backend, xp.uniform(xp.as_word(frameworks.tensor(backend, words))))


@functools.lru_cache(maxsize=64)
def moments(noise, backend):
    """The exact moments of a noise on a backend, a `lattice.Moments`."""
    return lattice.integrate(noise, lambda words: entries(noise, backend, words))


def mask(noise, backend, key, shape, ops, **arguments):
    """`ops.sample_mask` as a float64 host array."""
    result = ops.sample_mask(noise, key, shape, backend=backend, **arguments)
    return frameworks.array(backend, result).astype("float64")


def product(noise, backend, key, x, w, ops, *, sharing=None, method="auto", in_offset=0):
    """`ops.masked_dense` of host arrays as a float64 host array."""
    run = frameworks.quick(backend, masked_dense_of(noise, ops, sharing, method))
    y = run(*(frameworks.tensor(backend, a) for a in (x, w)), *constants(noise, backend, key, in_offset))
    return frameworks.array(backend, y).astype("float64")


def masked_dense_of(noise, ops, sharing, method):
    """`ops.masked_dense` as a function of tensors: x, w, and the `constants`; the same for all noises of a law."""
    return _masked_dense(_law(noise), ops, sharing, method)


@functools.cache
def _masked_dense(law, ops, sharing, method):

    def run(x, w, key, in_offset, params):
        return ops.masked_dense(x, w, law, key, sharing=sharing, method=method, in_offset=in_offset, params=params)

    return run


def constants(noise, backend, key, in_offset=0):
    """What a product depends on beside x and w, as tensors."""
    bits = np.array([*key, in_offset], "uint32").view("int32")
    return (
        frameworks.tensor(backend, bits[:2]),
        frameworks.tensor(backend, bits[2]),
        _params(noise, backend),
    )


def _params(noise, backend, numbers=None):
    numbers = noise.params() if numbers is None else numbers
    return {name: frameworks.tensor(backend, value) for name, value in numbers.items()}


_laws: dict[Noise, Noise] = {}


def _law(noise):
    """The first noise seen that is this one up to its numbers, so that one compilation serves both."""
    numbers = {name: value for name, value in noise.get_config().items() if not checks.is_real(value)}
    return _laws.setdefault((type(noise), repr(numbers)), noise)

"""A noise at work on one backend: its entries, masks, products and gradients as host arrays.

The numbers of a noise are passed as `params`, as layers do it, so that what is compiled is compiled once for each kind.
`ops` is what is put to the test: `pernodedrop.ops`, or a module of one's own with the same functions.
"""

import functools
import typing

import numpy as np

from pernodedrop import backends
from pernodedrop.mask import Field, parse_sharing
from pernodedrop.noise import Noise
from pernodedrop.testing import frameworks, integration

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
    """The exact moments of a noise on a backend, a `integration.Moments`."""
    return integration.integrate(noise, lambda words: entries(noise, backend, words))


def mask(noise, backend, key, shape, ops, **arguments):
    """`ops.sample_mask` as a float64 host array."""
    result = ops.sample_mask(noise, key, shape, backend=backend, **arguments)
    return frameworks.array(backend, result).astype("float64")


def reference_mask(noise, key, shape, sharing, sample_offset, in_offset=0):
    """What `ops.sample_mask` has to show, as NumPy evaluates the generator and the noise: (batch, time, in, out)."""
    xp = backends.get("numpy")
    shared = parse_sharing(sharing)
    axes = dict(zip(("sample", "time", "in", "out"), shape, strict=True))
    grid = [np.arange(1 if name in shared else size, dtype="uint32") for name, size in axes.items()]
    if "sample" not in shared:
        grid[0] = grid[0] + np.uint32(sample_offset)
    if "in" not in shared:
        grid[2] = grid[2] + np.uint32(in_offset)
    sample, time, in_, out = np.ix_(*grid)
    field = Field(noise, _params(noise, "numpy"), tuple(np.array([word], "uint32") for word in key))
    return np.broadcast_to(field.entries(time, sample, in_, out, xp), shape)


def product(noise, backend, key, x, w, ops, *, sharing=None, method="auto", in_offset=0, sample_offset=0):
    """`ops.masked_dense` of host arrays as a float64 host array."""
    run = frameworks.quick(backend, masked_dense_of(noise, ops, sharing, method))
    operands = (frameworks.tensor(backend, a) for a in (x, w))
    y = run(*operands, *constants(noise, backend, key, in_offset, sample_offset))
    return frameworks.array(backend, y).astype("float64")


def masked_dense_of(noise, ops, sharing, method):
    """`ops.masked_dense` as a function of tensors: x, w, and the `constants`; the same for all noises of a kind."""
    kind = _of_a_kind(noise)

    def run(x, w, key, in_offset, sample_offset, params):
        offsets = {"in_offset": in_offset, "sample_offset": sample_offset}
        return ops.masked_dense(x, w, kind, key, sharing=sharing, method=method, params=params, **offsets)

    return _runs.setdefault((kind, id(ops), sharing, method), run)


def constants(noise, backend, key, in_offset=0, sample_offset=0):
    """What a product depends on beside x and w, as tensors."""
    words = np.array([*key, in_offset, sample_offset], "uint32").view("int32")
    key, *offsets = (frameworks.tensor(backend, part) for part in (words[:2], words[2], words[3]))
    return key, *offsets, _params(noise, backend)


def _params(noise, backend, numbers=None):
    numbers = noise.params() if numbers is None else numbers
    return {name: frameworks.tensor(backend, value) for name, value in numbers.items()}


_kinds: dict[tuple[type[Noise], str], Noise] = {}
_runs: dict[tuple[typing.Any, ...], typing.Any] = {}  # each holds its ops, so that an id is never of another


def _of_a_kind(noise):
    """The first noise seen that is this one up to its float fields, so that one compilation serves both."""
    others = {name: value for name, value in noise.get_config().items() if not isinstance(value, float)}
    return _kinds.setdefault((type(noise), repr(others)), noise)

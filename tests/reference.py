"""The generator in Python's own integers, written from its formula and sharing no code with the library."""

import functools
import itertools

import numpy as np

GOLDEN = 0x9E3779B9


def mix(x, key=0):
    """triple32 with a key between its first two rounds."""
    x ^= x >> 17
    x = x * 0xED5AD4BB % 2**32
    x ^= x >> 11
    x ^= key
    x = x * 0xAC4C1B51 % 2**32
    x ^= x >> 15
    x = x * 0x31848BAB % 2**32
    return x ^ x >> 14


@functools.lru_cache(2**14)
def row_key(seed, call, lane, time, sample, in_):
    """The two halves of a row's key."""
    k0 = mix(seed)
    for coordinate in (call, lane, time, sample, in_):
        k0 = mix((coordinate + k0) % 2**32)
    k1 = mix(seed ^ GOLDEN)
    for coordinate in (call, lane, time):
        k1 = mix(coordinate ^ k1)
    k1 = mix((in_ + k1) % 2**32)
    return k0, mix((sample * GOLDEN % 2**32) ^ k1)


def word(seed, call, lane, time, sample, in_, out):
    """The word at seven coordinates, each an int in [0, 2**32)."""
    k0, k1 = row_key(seed, call, lane, time, sample, in_)
    return mix(out ^ k0, k1)


def words(coordinates):
    """Words at rows of seven coordinates."""
    return np.array([word(*map(int, row)) for row in coordinates], "uint32")


def bits(seed, call, shape, sample_offset=0, lane=0):
    """The words of an array (batch, in, out) or (batch, time, in, out)."""
    batch, *middle, inputs, outputs = shape
    samples = ((sample_offset + b) % 2**32 for b in range(batch))
    grid = itertools.product(samples, range(middle[0] if middle else 1), range(inputs), range(outputs))
    rows = ((seed, call, lane, time, sample, in_, out) for sample, time, in_, out in grid)
    return words(rows).reshape(shape)

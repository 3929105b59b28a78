"""The distribution of an entry by evaluating it at every uniform number there is: integration, not estimation.

An entry is a function of a uniform number, of which there are 2**23 (2**24 for a noise that is written on words, and
may use one bit more). So the mean over all of them is the mean of the noise. A noise of several lanes has too many
combinations: its first lane runs through 2**22 numbers, the others are random, and what comes of it is an estimate.
"""

import typing

import numpy as np

from pernodedrop.noise import Noise

CHUNK = 2**18


class Moments(typing.NamedTuple):
    """The distribution of an entry in numbers.

    Attributes:
        mean, variance, fourth: of an entry; the fourth is the mean fourth power of its distance from `noise.mean`.
        reach: the largest distance of an entry from 1; with several lanes of those seen, and 1 at least.
    """

    mean: float
    variance: float
    fourth: float
    reach: float


def bits(noise):
    """The logarithm of how many numbers the first lane runs through."""
    if noise.lanes > 1:
        return 22
    return 23 if type(noise).from_words is Noise.from_words else 24


def chunks(noise):
    """The words of all these numbers, a chunk at a time: uint32 (lanes, CHUNK)."""
    n = bits(noise)
    others = [np.random.Generator(np.random.Philox(lane)) for lane in range(1, noise.lanes)]
    for start in range(0, 2**n, CHUNK):
        cells = np.arange(start, start + CHUNK, dtype="uint32")
        first = (cells << np.uint32(32 - n)) | np.uint32(1 << (31 - n))
        yield np.stack([first, *(lane.integers(0, 2**32, CHUNK, "uint32") for lane in others)])


def integrate(noise, entries):
    """The moments of a noise.

    Args:
        noise: the noise.
        entries: function from words (lanes, n) to the entries there, a host array.
    """
    total = square = fourth = reach = 0.0
    for words in chunks(noise):
        m = np.asarray(entries(words), "float64")
        deviation = m - noise.mean
        squares = deviation**2
        total += deviation.sum()
        square += squares.sum()
        fourth += squares @ squares
        reach = max(reach, abs(m - 1).max())
    shift, square, fourth = (power / 2 ** bits(noise) for power in (total, square, fourth))
    if noise.lanes > 1:
        reach = max(reach, 1.0)
    return Moments(noise.mean + shift, square - shift**2, fourth, float(reach))

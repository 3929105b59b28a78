"""Exact integration: the law of an entry, by evaluating it at every uniform number there is.

An entry is a function of a uniform number, of which there are 2**23 (2**24 for a noise that is written on words, and
may use one bit more). So the mean over all of them is the mean of the noise, not an estimate. A noise of several lanes
has too many combinations: each of its lanes runs through 2**22 numbers, in an order of its own.
"""

import math
import typing

import numpy as np

from pernodedrop.noise import Noise

CHUNK = 2**18


class Moments(typing.NamedTuple):
    """The law of an entry in numbers.

    Attributes:
        mean, variance: of an entry.
        lowest, highest: its range, or what was seen of it with several lanes.
        lanes: how many the noise has.
    """

    mean: float
    variance: float
    lowest: float
    highest: float
    lanes: int

    @property
    def reach(self):
        """The largest distance of an entry from 1; with several lanes 1 at least, for entries too rare to be seen."""
        seen = max(abs(self.lowest - 1), abs(self.highest - 1))
        return seen if self.lanes == 1 else max(seen, 1.0)


def bits(noise):
    """The logarithm of how many numbers each lane runs through."""
    if noise.lanes > 1:
        return 22
    return 23 if type(noise).from_words is Noise.from_words else 24


def chunks(noise):
    """The words of the whole lattice, a chunk at a time: uint32 (lanes, CHUNK)."""
    n = bits(noise)
    for start in range(0, 2**n, CHUNK):
        cells = np.arange(start, start + CHUNK, dtype="uint32")
        lanes = [cells if lane == 0 else _shuffled(cells, lane, n) for lane in range(noise.lanes)]
        yield (np.stack(lanes) << np.uint32(32 - n)) | np.uint32(1 << (31 - n))


def integrate(noise, entries):
    """The moments of a noise.

    Args:
        noise: whose lattice.
        entries: function from words (lanes, n) to the entries there, a host array.
    """
    count = total = square = 0.0
    lowest, highest = math.inf, -math.inf
    for words in chunks(noise):
        m = np.asarray(entries(words), "float64")
        deviation = m - noise.mean
        count += m.size
        total += deviation.sum()
        square += (deviation**2).sum()
        lowest, highest = min(lowest, m.min()), max(highest, m.max())
    shift = total / count
    return Moments(noise.mean + shift, square / count - shift**2, lowest, highest, noise.lanes)


def _shuffled(cells, lane, n):
    """A permutation of the 2**n cells for each lane."""
    modulus = np.uint32(2**n - 1)
    for multiplier in (0x9E3779B1, 0x85EBCA6B):
        cells = (cells * np.uint32(multiplier) + np.uint32(lane * 0x27D4EB2F)) & modulus
        cells = cells ^ (cells >> np.uint32(n // 2))
    return cells

"""Known answers: words that a key must give forever, on every backend. `python -m tests.known_answers` writes them.

Write them anew only when the generator changes on purpose, and say so in CHANGELOG.md: every mask changes with it.
"""

import hashlib
import json
import pathlib

import numpy as np

import pernodedrop as pnd
from pernodedrop import generator
from pernodedrop.backends import numpy_ops

PATH = pathlib.Path(__file__).with_suffix(".json")

WORDS = (  # at seed, call, lane, time, sample, in, out
    (0, 0, 0, 0, 0, 0, 0),
    (0, 0, 0, 0, 0, 0, 1),
    (0, 0, 0, 0, 0, 1, 0),
    (0, 0, 0, 0, 1, 0, 0),
    (0, 0, 0, 1, 0, 0, 0),
    (0, 0, 1, 0, 0, 0, 0),
    (0, 1, 0, 0, 0, 0, 0),
    (1, 0, 0, 0, 0, 0, 0),
    (1337, 42, 1, 17, 2**31 + 5, 4095, 63),
    (2**32 - 1, 2**32 - 1, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1, 2**32 - 1),
    (-1, 2, 0, 3, 4, 5, 6),
    (2**32, 2, 0, 3, 4, 5, 6),
    (-(10**30), 2, 0, 3, 4, 5, 6),
)
ARRAYS = (
    {"key": (2026, 7), "shape": (16, 3, 64, 65), "sample_offset": 2**32 - 8},
    {"key": (-5, 2**32 - 1), "shape": (4, 3, 5), "sample_offset": 0},
)


def digest(words):
    """The SHA-256 of an array of words, as little-endian bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(words, "<u4").tobytes()).hexdigest()


def answers():
    """The known answers by the NumPy backend."""
    words = {}
    for coordinates in WORDS:
        seed, call, *others = (numpy_ops.as_word(n) for n in (generator.seed_word(coordinates[0]), *coordinates[1:]))
        words[" ".join(map(str, coordinates))] = int(generator.words((seed, call), *others, numpy_ops)[0])
    arrays = [{**array, "sha256": digest(pnd.ops.random_bits(**array, backend="numpy"))} for array in ARRAYS]
    return {"words at seed call lane time sample in out": words, "arrays": arrays}


if __name__ == "__main__":
    PATH.write_text(json.dumps(answers(), indent=1) + "\n")

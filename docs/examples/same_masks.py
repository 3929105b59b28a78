"""The same masks on every framework: one hash of odd shapes, far offsets and extreme rates, four times."""

import hashlib

import numpy as np

import pernodedrop as pnd

SHAPES = [(1, 1, 1), (5, 13, 11), (3, 1, 257), (2, 129, 31)]
OFFSETS = [0, 2**31 - 2, 2**31 + 7, 2**32 - 2]
RATES = [0.0, 2**-24, 0.1, 0.5, 0.999, 1 - 2**-24]


def masks_hash(backend):
    """sha256 of all the masks, and of the words behind them."""
    digest = hashlib.sha256()
    for shape in SHAPES:
        for offset in OFFSETS:
            digest.update(pnd.ops.random_bits((-7, 2**32 - 1), shape, sample_offset=offset, backend=backend).tobytes())
            for rate in RATES:
                mask = pnd.ops.sample_mask(pnd.Bernoulli(rate), (2026, 3), shape, sample_offset=offset, backend=backend)
                digest.update(np.asarray(mask).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    print("numpy     ", masks_hash("numpy"))
    print("tensorflow", masks_hash("tensorflow"))
    print("torch     ", masks_hash("torch"))
    print("jax       ", masks_hash("jax"))

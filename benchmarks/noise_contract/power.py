"""The power of the noise contract: the smallest fault of a kind that it finds, in the table of docs/contracts/noise.md.

    python benchmarks/noise_contract/power.py    writes power.md, in some minutes

Each kind of fault is planted in a right noise, or in its masks, ever smaller, until the contract accepts it.
"""

import functools
import os
import pathlib
import sys

os.environ.setdefault("KERAS_BACKEND", "numpy")
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # for the noises of the tests

import numpy as np

import pernodedrop as pnd
from pernodedrop.testing import claims
from tests.noises import Difference, UniformAroundOne
from tests.wrong_noises import Ops

FILE = pathlib.Path(__file__).parent / "power.md"
HEAD = (
    "kind of fault",
    "claim that finds it",
    "smallest found by default",
    "with `side=56`, by hand",
)


class Shifted(UniformAroundOne):
    """Its mean is off."""

    shift = 0.0

    def from_uniform(self, u, params, xp):
        return super().from_uniform(u, params, xp) + self.shift


class Wider(UniformAroundOne):
    """Its variance is off."""

    ratio = 1.0

    @property
    def variance(self):
        return super().variance / self.ratio


class ShiftedDifference(Difference):
    """Of two lanes, whose mean is off."""

    shift = 0.0

    def from_uniform(self, u, params, xp):
        return super().from_uniform(u, params, xp) + self.shift


class WiderDifference(Difference):
    """Of two lanes, whose variance is off."""

    ratio = 1.0

    @property
    def variance(self):
        return super().variance / self.ratio


def of_size(law, number, **fault):
    """A noise of a law with a fault of that size."""
    return type(law.__name__, (law,), {"__module__": __name__, **fault})(number)


def like_another(share, other):
    """Masks whose entries are correlated by `share` with those that `other(noise, key, shape, ...)` makes."""

    def sample_mask(noise, key, shape, **kwargs):
        kwargs["backend"] = "numpy"
        own, further = pnd.ops.sample_mask(noise, key, shape, **kwargs), other(noise, key, shape, **kwargs)
        return 1 + (1 - share**2) ** 0.5 * (own - 1) + share * (further - 1)

    return Ops(sample_mask=sample_mask)


def next_sample(noise, key, shape, sample_offset=0, **kwargs):
    """The mask of the samples after these."""
    return pnd.ops.sample_mask(noise, key, shape, sample_offset=(sample_offset + 1) % 2**32, **kwargs)


def next_call(noise, key, shape, **kwargs):
    """The mask of the next call."""
    return pnd.ops.sample_mask(noise, (key[0], (key[1] + 1) % 2**32), shape, **kwargs)


def repeated(axis, share):
    """Masks in which a share of the places along an axis have the entries of the place before."""

    def sample_mask(noise, key, shape, **kwargs):
        mask = pnd.ops.sample_mask(noise, key, shape, **{**kwargs, "backend": "numpy"})
        if len(shape) < 4:
            return mask
        places = np.arange(shape[axis])
        again = np.random.default_rng(0).random(2**17)[: len(places)] < share
        return np.take(mask, np.maximum(places - again, 0), axis)

    return Ops(sample_mask=sample_mask)


def refused(noise, claim, ops=pnd.ops):
    """Whether the contract finds it at default settings, and by that claim."""
    try:
        pnd.testing.check_noise(noise, backends=["numpy"], claims=[claim], ops=ops)
    except pnd.testing.Refused:
        return True
    return False


def refused_by_hand(noise, ops):
    """Whether the claim `independence` finds it in larger masks."""
    try:
        claims.independence(noise, "numpy", side=56, ops=ops)
    except pnd.testing.Broken:
        return True
    return False


def smallest(finds, low, high):
    """The smallest size of a fault that is found, to a fifth, by bisection of its logarithm."""
    if finds(low) or not finds(high):
        raise ValueError(f"the smallest is not between {low} and {high}")
    while high / low > 1.2:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if finds(middle) else (middle, high)
    return high


def rows():
    """The rows of the table."""
    gaussian = pnd.Gaussian(0.5)
    uniform, two = "uniform on 0.5 to 1.5", "sum of two lanes, on 0.5 to 1.5"
    for law, text in ((Shifted, uniform), (ShiftedDifference, two)):
        found = smallest(lambda d, law=law: refused(of_size(law, 0.5, shift=d), "moments"), 1e-7, 0.1)
        yield f"shift of the mean ({text})", "moments", f"{found:.1e}", ""
    for law, text in ((Wider, uniform), (WiderDifference, two)):
        found = smallest(lambda d, law=law: refused(of_size(law, 0.5, ratio=1 + d), "moments"), 1e-6, 0.5)
        yield f"ratio of the variance to the declared one ({text})", "moments", f"1 + {found:.1e}", ""
    for text, other in (("sample after it", next_sample), ("call after it", next_call)):
        plant = functools.partial(like_another, other=other)
        found = smallest(lambda d, plant=plant: refused(gaussian, "independence", plant(d)), 1e-4, 0.5)
        by_hand = smallest(lambda d, plant=plant: refused_by_hand(gaussian, plant(d)), found / 5, found)
        yield f"correlation of a mask with that of the {text}", "independence", f"{found:.1e}", f"{by_hand:.1e}"
    for axis, text in enumerate(("samples", "times", "inputs", "outputs")):
        found = smallest(lambda d, axis=axis: refused(gaussian, "coordinates", repeated(axis, d)), 1e-7, 0.5)
        yield f"share of {text} whose entries are those of the one before", "coordinates", f"{found:.1e}", ""


def main():
    """Write the table."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for row in rows():
        print(*row, sep=" | ", flush=True)
        lines.append(row)
        FILE.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))


if __name__ == "__main__":
    main()

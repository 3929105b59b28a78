"""What it is to break a claim: what was found, the number observed and the number claimed."""

import math

import numpy as np

ROUNDING = 2e-5  # of float32 results: 1e-5 is the accuracy of the frameworks' erfinv


class Broken(AssertionError):  # noqa: N818 - a result, like a test that fails
    """A claim that does not hold.

    Args:
        what: what was found, a clause.
        observed, claimed: the two values that disagree.
    """

    def __init__(self, what, observed, claimed):
        super().__init__(f"{what}. Observed: {observed}. Claimed: {claimed}")
        self.what, self.observed, self.claimed = what, observed, claimed


def expect(condition, what, observed, claimed):
    """Raise `Broken` unless `condition`."""
    if not condition:
        raise Broken(what, observed, claimed)


def expect_near(observed, claimed, tolerance, what):
    """Raise `Broken` unless two numbers are within `tolerance`; NaN is not."""
    expect(abs(observed - claimed) <= tolerance, what, f"{observed:.8g}", f"{claimed:.8g}, to within {tolerance:.2g}")


def expect_equal(observed, wanted, size, what):
    """Raise `Broken` unless arrays are equal up to the rounding of float32 numbers of `size`; of 0, to the bit."""
    observed, wanted, size = (np.asarray(values, "float64") for values in (observed, wanted, size))
    expect(observed.shape == wanted.shape, f"{what}: the shape differs", observed.shape, wanted.shape)
    wrong = np.argwhere(~(abs(observed - wanted) <= ROUNDING * size))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise Broken(f"{what}, first at {place}", float(observed[place]), float(wanted[place]))


def expect_same_entries(noise, observed, wanted, what):
    """Raise `Broken` unless entries made in two ways agree: to the bit if the noise is exact, else up to rounding."""
    if noise.exact:
        expect_equal(observed, wanted, 0, f"{what} to the bit, since exact=True")
    else:
        expect_equal(observed, wanted, 1 + abs(np.asarray(wanted, "float64") - 1) + math.sqrt(noise.variance), what)

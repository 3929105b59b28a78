"""Statistical tests whose false alarms have a stated probability: bounds that hold for every sample size.

Each takes `alarm`, the probability with which a right noise may fail it. The bounds are proven (Bernstein's) or exact
(Kolmogorov's), so that no approximation by a normal distribution enters, and the variance and the range that they need
come from exact integration (see `integration.py`), for noises of one lane.
"""

import math

import numpy as np
from scipy import stats

ALARM = 1e-6
"""The probability that a right noise is refused by one run of all claims on all backends."""


def spend(share, example):
    """The part of a budget of false alarms that test number `example` (from 0) of an open-ended series may use.

    The parts of all tests sum to `share`, however many Hypothesis tries.
    """
    return share * 6 / (math.pi * (example + 1)) ** 2


def bernstein(variance, bound, alarm):
    """How far a sum of independent numbers of mean 0 gets from 0 at most, but with probability `alarm`.

    Args:
        variance: of the sum.
        bound: on the absolute value of each number.
        alarm: probability of a sum beyond the result, on both sides together.
    """
    log = math.log(2 / alarm)
    return log * bound / 3 + math.sqrt((log * bound / 3) ** 2 + 2 * log * variance)


def kolmogorov(uniforms):
    """The largest distance of the empirical distribution of `uniforms` from the uniform one on [0, 1]."""
    return stats.ks_1samp(np.ravel(uniforms), lambda u: u, method="asymp").statistic


def kolmogorov_bound(count, alarm):
    """What `kolmogorov` of `count` independent uniform numbers exceeds with probability `alarm`."""
    return stats.kstwo.isf(alarm, count)

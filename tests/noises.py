"""Noises of a user's own, as the documentation shows them, and their float64 truths."""

import math

import numpy as np
from hypothesis import strategies as st

import pernodedrop as pnd
from pernodedrop.noise import normal


class Triangular(pnd.Noise):
    half_width: float = 0.5

    @property
    def variance(self):
        return self.half_width**2 / 6

    def from_uniform(self, u, params, xp):
        left = xp.sqrt(2 * u) - 1
        right = 1 - xp.sqrt(2 * (1 - u))
        return 1 + params["half_width"] * xp.where(u < 0.5, left, right)


class Difference(pnd.Noise):
    """Two uniform numbers an entry: the distribution of Triangular, by another way."""

    spread: float
    lanes = 2

    @property
    def variance(self):
        return self.spread**2 / 6

    def from_uniform(self, u, params, xp):
        return 1 + params["spread"] * (u[0] - u[1])


class Exponential(pnd.Noise):
    scale: float

    @property
    def variance(self):
        return self.scale**2

    def from_uniform(self, u, params, xp):
        return 1 - params["scale"] * (xp.log(u) + 1)


class Laplace(pnd.Noise):
    scale: float

    @property
    def variance(self):
        return 2 * self.scale**2

    def from_uniform(self, u, params, xp):
        return 1 - params["scale"] * xp.sign(u - 0.5) * xp.log1p(-2 * xp.abs(u - 0.5))


class Logistic(pnd.Noise):
    scale: float

    @property
    def variance(self):
        return self.scale**2 * math.pi**2 / 3

    def from_uniform(self, u, params, xp):
        return 1 + params["scale"] * (xp.log(u) - xp.log1p(-u))


class LogNormal(pnd.Noise):
    sigma: float

    @property
    def variance(self):
        return math.expm1(self.sigma**2)

    def from_uniform(self, u, params, xp):
        return xp.exp(params["sigma"] * (normal(u, xp) - params["sigma"] / 2))


class Arcsine(pnd.Noise):
    size: float

    @property
    def variance(self):
        return self.size**2 / 2

    def from_uniform(self, u, params, xp):
        return 1 + params["size"] * xp.cos(math.pi * u)


class Power(pnd.Noise):
    size: float
    exponent: float

    @property
    def variance(self):
        k = self.exponent
        return self.size**2 * (1 / (2 * k + 1) - 1 / (k + 1) ** 2)

    def from_uniform(self, u, params, xp):
        k = params["exponent"]
        return 1 + params["size"] * (xp.exp(k * xp.log(u)) - 1 / (k + 1))


class Steps(pnd.Noise):
    """One of several values, equally likely, scaled to mean 1."""

    values: tuple

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "values", tuple(self.values))

    @property
    def scaled(self):
        return [len(self.values) * value / sum(self.values) for value in self.values]

    @property
    def variance(self):
        return sum((value - 1) ** 2 for value in self.scaled) / len(self.values)

    def from_uniform(self, u, params, xp):
        m = xp.zeros_like(u)
        for n, value in enumerate(self.scaled):
            m = xp.where(u > n / len(self.values), value * xp.ones_like(u), m)
        return m


class Mixture(pnd.Noise):
    """With probability `share` a normal number of mean 1, else a uniform one."""

    share: float
    stddev: float
    half_width: float
    lanes = 2

    @property
    def variance(self):
        return self.share * self.stddev**2 + (1 - self.share) * self.half_width**2 / 3

    def from_uniform(self, u, params, xp):
        gaussian = 1 + params["stddev"] * normal(u[1], xp)
        return xp.where(u[0] < params["share"], gaussian, 1 + params["half_width"] * (2 * u[1] - 1))


class ThreeUniforms(pnd.Noise):
    spread: float
    lanes = 3

    @property
    def variance(self):
        return self.spread**2 / 4

    def from_uniform(self, u, params, xp):
        return 1 + params["spread"] * (u[0] + u[1] + u[2] - 1.5)


class Quantized(pnd.Noise):
    """Uniform on a grid: `levels` is how it is written, no number of the mask."""

    size: float
    levels: int

    @property
    def variance(self):
        return self.size**2 * (1 - 1 / self.levels**2) / 12

    def params(self):
        return {"size": np.float32(self.size)}

    def from_uniform(self, u, params, xp):
        m = xp.zeros_like(u)
        for level in range(1, self.levels):
            m = m + xp.where(u > level / self.levels, xp.ones_like(u), xp.zeros_like(u))
        return 1 + params["size"] * ((m + 0.5) / self.levels - 0.5)


class UniformAroundOne(pnd.Noise):
    half_width: float = 0.5

    @property
    def variance(self):
        return self.half_width**2 / 3

    def from_uniform(self, u, params, xp):
        return 1 + params["half_width"] * (2 * u - 1)


class RateUniform(pnd.Noise):
    """As wide as its rate."""

    rate: float = 0.5

    @property
    def variance(self):
        return self.rate**2 / 3

    def from_uniform(self, u, params, xp):
        return 1 + params["rate"] * (2 * u - 1)


class UpToHalf(RateUniform):
    """A noise that refuses rates that others take."""

    def __post_init__(self):
        super().__post_init__()
        if self.rate > 0.5:
            raise ValueError(f"`rate` has to be 0.5 at most, not {self.rate}")


class Near(pnd.Noise):
    """Another sign or none, by how near two further lanes are to each other."""

    size: float
    lanes = 3

    @property
    def variance(self):
        return self.size**2 * 0.19

    def from_uniform(self, u, params, xp):
        sign, one, other = u
        return 1 + params["size"] * xp.where(xp.abs(one - other) < 0.1, xp.sign(sign - 0.5), xp.zeros_like(sign))


def right_noises():
    """Hypothesis strategy of right noises: those of the library's and of the tests' own, with random numbers."""
    rates, spreads = st.floats(0, 0.95), st.floats(0, 3)
    return st.one_of(
        *(st.builds(law, rates) for law in (pnd.Bernoulli, pnd.Gaussian, pnd.Uniform)),
        *(st.builds(law, spreads) for law in (Triangular, Difference, Exponential, Laplace, Logistic, Arcsine)),
        st.builds(ThreeUniforms, spreads),
        st.builds(Near, spreads),
        st.builds(Quantized, spreads, st.integers(1, 9)),
        st.builds(UpToHalf, st.floats(0, 0.5)),
        st.builds(LogNormal, st.floats(0, 0.9)),
        st.builds(Power, spreads, st.floats(0.25, 4)),
        st.builds(pnd.PartialGaussian, rates, spreads),
        st.builds(Mixture, rates, spreads, spreads),
        st.builds(Steps, st.lists(st.floats(0.125, 8), min_size=1, max_size=5).map(tuple)),
    )

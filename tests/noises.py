"""Noises of a user's own, as the documentation shows them, and their float64 truths."""

import functools
import math

import numpy as np
from hypothesis import strategies as st

import pernodedrop as pnd
from pernodedrop import checks
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

    def __post_init__(self):
        super().__post_init__()
        checks.check_positive(self.exponent, "exponent", zero=True)

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

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise ValueError(checks.invalid("share", "a probability", self.share))

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


class Pareto(pnd.Noise):
    """A tail so heavy that its fourth moment is infinite: 1 / u to a power below 1/3."""

    size: float
    weight: float

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.weight <= 0.33:
            raise ValueError(checks.invalid("weight", "a float from 0 to 0.33", self.weight))

    @property
    def variance(self):
        return self.size**2 * (1 / (1 - 2 * self.weight) - 1 / (1 - self.weight) ** 2)

    def from_uniform(self, u, params, xp):
        a = params["weight"]
        return 1 + params["size"] * (xp.exp(-a * xp.log(u)) - 1 / (1 - a))


class Gumbel(pnd.Noise):
    scale: float

    @property
    def variance(self):
        return self.scale**2 * math.pi**2 / 6

    def from_uniform(self, u, params, xp):
        return 1 - params["scale"] * (xp.log(-xp.log(u)) + 0.5772156649)


class Weibull(pnd.Noise):
    """Of mean 1 by its Gamma function; `shape` is an int, which says which distribution it is."""

    rate: float
    shape: int = 2

    @property
    def spread(self):
        return math.gamma(1 + 2 / self.shape) - math.gamma(1 + 1 / self.shape) ** 2

    @property
    def variance(self):
        return self.rate / (1 - self.rate)

    def from_uniform(self, u, params, xp):
        standard = (xp.exp(xp.log(-xp.log(u)) / self.shape) - math.gamma(1 + 1 / self.shape)) / self.spread**0.5
        return 1 + xp.sqrt(params["rate"] / (1 - params["rate"])) * standard


class Interval(pnd.Noise):
    """Between two numbers, of which one is the lower, of a density like a cosine."""

    low: float
    high: float

    def __post_init__(self):
        super().__post_init__()
        if not self.low <= 1 <= self.high or self.low + self.high != 2:
            raise ValueError(f"`low` and `high` are as far from 1. Received: {self!r}")

    @property
    def variance(self):
        return (self.high - self.low) ** 2 / 4 * (1 - 8 / math.pi**2)

    def from_uniform(self, u, params, xp):
        return 1 + (params["high"] - params["low"]) / 2 * (2 / math.pi) * xp.asin(2 * u - 1)


class Narrow(pnd.Noise):
    """It takes little else than what it is given."""

    size: float

    def __post_init__(self):
        super().__post_init__()
        if not 0.9 < self.size < 1.2:
            raise ValueError(checks.invalid("size", "a float between 0.9 and 1.2", self.size))

    @property
    def variance(self):
        return self.size**2 / 3

    def from_uniform(self, u, params, xp):
        return 1 + params["size"] * xp.clip(2 * u - 1, -1, 1)


class Middle(RateUniform):
    """It takes neither rate 0 nor high ones."""

    def __post_init__(self):
        super().__post_init__()
        if not 0.1 <= self.rate <= 0.6:
            raise ValueError(checks.invalid("rate", "a float from 0.1 to 0.6", self.rate))


class EightLanes(pnd.Noise):
    size: float
    lanes = 8

    @property
    def variance(self):
        return self.size**2 * 8 / 12

    def from_uniform(self, u, params, xp):
        return 1 + params["size"] * (u[0] + u[1] + u[2] + u[3] + u[4] + u[5] + u[6] + u[7] - 4)


class Products(pnd.Noise):
    """The product of two uniform numbers, of mean 1/4."""

    size: float
    lanes = 2

    @property
    def variance(self):
        return self.size**2 * (1 / 9 - 1 / 16)

    def from_uniform(self, u, params, xp):
        return 1 + params["size"] * (u[0] * u[1] - 0.25)


class Largest(pnd.Noise):
    """The largest of three uniform numbers."""

    size: float
    lanes = 3

    @property
    def variance(self):
        return self.size**2 * 3 / 80

    def from_uniform(self, u, params, xp):
        return 1 + params["size"] * (xp.maximum(xp.maximum(u[0], u[1]), u[2]) - 0.75)


class Ternary(pnd.Noise):
    """Minus, nothing or plus, by the bits of a word; exact, as its numbers are powers of two."""

    sign: int = 1
    exact = True

    @property
    def variance(self):
        return 0.5

    def params(self):
        return {}

    def from_words(self, words, params, xp):
        quarter = xp.floor(xp.float32(xp.bits24(words[0])) / 2**22)
        up, down = (xp.where(quarter == n, 1.0 + 0 * quarter, 0.0) for n in (0, 3))
        return 1 + self.sign * (up - down)


class Geometric(pnd.Noise):
    """A count, by the floor of a logarithm, scaled to mean 1."""

    stop: float

    def __post_init__(self):
        super().__post_init__()
        if not 0.05 <= self.stop <= 0.95:
            raise ValueError(checks.invalid("stop", "a float from 0.05 to 0.95", self.stop))

    @property
    def variance(self):
        return 1 / (1 - self.stop)

    def from_uniform(self, u, params, xp):
        count = xp.floor(xp.log(u) / xp.log1p(-params["stop"]))
        return count * params["stop"] / (1 - params["stop"])


class Cauchy(pnd.Noise):
    """Cut off on both sides at `cut` quantiles, by tan: what is left has a variance."""

    size: float
    cut: float

    def __post_init__(self):
        super().__post_init__()
        if not 0.5 <= self.cut <= 0.99:
            raise ValueError(checks.invalid("cut", "a float from 0.5 to 0.99", self.cut))

    @property
    def variance(self):
        angle = math.pi * self.cut / 2
        return self.size**2 * (math.tan(angle) / angle - 1)

    def from_uniform(self, u, params, xp):
        return 1 + params["size"] * xp.tan(math.pi * params["cut"] * (u - 0.5))


class Named(pnd.Noise):
    """Numbers of other kinds: an optional float, a text, a bool."""

    size: float = 0.5
    further: float | None = None
    kind: str = "even"
    mirrored: bool = False

    @property
    def variance(self):
        return self.size**2 / 3

    def params(self):
        return {"size": np.float32(self.size)}

    def from_uniform(self, u, params, xp):
        return 1 + params["size"] * (2 * u - 1) * (-1 if self.mirrored else 1)


OTHERS = (
    *(pnd.Bernoulli(rate) for rate in (1e-6, 1e-3, 0.3, 0.999)),
    *(pnd.Gaussian(rate) for rate in (0.01, 0.99)),
    *(pnd.PartialGaussian(rate, stddev) for rate, stddev in ((0.1, 3.0), (0.9, 0.1))),
    *(Pareto(0.5, weight) for weight in (0.0, 0.2, 0.3)),
    *(Gumbel(scale) for scale in (0.1, 2.0)),
    *(Weibull(0.3, shape) for shape in (1, 2, 5)),
    *(Interval(1 - half, 1 + half) for half in (0.25, 1.0)),
    *(LogNormal(sigma) for sigma in (0.3, 1.0, 1.2)),
    *(Geometric(stop) for stop in (0.2, 0.7)),
    *(Cauchy(0.5, cut) for cut in (0.5, 0.9, 0.98)),
    *(kind(0.4) for kind in (EightLanes, Products, Largest, ThreeUniforms, Difference, Near)),
    *(Quantized(0.7, levels) for levels in (1, 2, 7)),
    *(Narrow(size) for size in (0.95, 1.1)),
    *(Middle(rate) for rate in (0.1, 0.6)),
    UpToHalf(0.5),
    Ternary(-1),
    Named(0.3, None, "odd", True),
    Steps((0, 0, 0, 8)),
    Exponential(3.0),
    Laplace(1e-3),
    Power(0.5, 9.0),
)
"""Right noises of further kinds: heavy tails, discrete ones, many lanes, ints for numbers, narrow domains."""


def right_noises():
    """Hypothesis strategy of right noises: those of the library's and of the tests' own, with random numbers."""
    number = functools.partial(st.floats, width=32, allow_subnormal=False)  # those that a noise takes
    rates, spreads = st.floats(0, 0.95), number(0, 3)
    return st.one_of(
        *(st.builds(kind, rates) for kind in (pnd.Bernoulli, pnd.Gaussian, pnd.Uniform)),
        *(st.builds(kind, spreads) for kind in (Triangular, Difference, Exponential, Laplace, Logistic, Arcsine)),
        st.builds(ThreeUniforms, spreads),
        st.builds(Near, spreads),
        st.builds(Quantized, spreads, st.integers(1, 9)),
        st.builds(UpToHalf, number(0, 0.5)),
        st.builds(LogNormal, number(0, 0.875)),
        st.builds(Power, spreads, number(0.25, 4)),
        st.builds(pnd.PartialGaussian, rates, spreads),
        st.builds(Mixture, number(0, 1), spreads, spreads),
        st.builds(Steps, st.lists(st.floats(0.125, 8), min_size=1, max_size=5).map(tuple)),
    )

"""Noises that are not what they claim to be, each wrong in one way that was seen in the wild or is easily made."""

import dataclasses

import numpy as np

import pernodedrop as pnd
from tests.noises import RateUniform, UniformAroundOne


class Shifted(UniformAroundOne):
    """Its mean is 1.02."""

    def from_uniform(self, u, params, xp):
        return 1.02 + params["half_width"] * (2 * u - 1)


class Overstated(UniformAroundOne):
    """It declares half the width's square for a variance."""

    @property
    def variance(self):
        return self.half_width**2 / 2


class Uncalibrated(UniformAroundOne):
    """Its mean is one half, and it says so."""

    mean = 0.5

    def from_uniform(self, u, params, xp):
        return 0.5 + params["half_width"] * (2 * u - 1)


class NeverDrops(pnd.Bernoulli):
    """DropPath as it once shipped: it keeps everything."""

    def from_words(self, words, params, xp):
        return xp.ones_like(super().from_words(words, params, xp))


class KeepsItsScale(pnd.Bernoulli):
    """It drops, and does not scale what it keeps."""

    def from_words(self, words, params, xp):
        m = super().from_words(words, params, xp)
        return xp.where(m > 0, xp.ones_like(m), m)


class SharedOverSamples(UniformAroundOne):
    """Every sample has the entries of the first."""

    def from_uniform(self, u, params, xp):
        return 1 + params["half_width"] * (2 * xp.broadcast_to(u[:1], u.shape) - 1)


class CalibratedByBlock(UniformAroundOne):
    """It shifts the block that it happens to be evaluated in to mean 1."""

    def from_uniform(self, u, params, xp):
        middle = xp.sum(u) / xp.sum(xp.ones_like(u))
        return 1 + params["half_width"] * 2 * (u - middle)


class OwnGenerator(UniformAroundOne):
    """It takes its randomness from elsewhere."""

    def from_uniform(self, u, params, xp):
        return 1 + params["half_width"] * (2 * u - 1) * float(np.random.choice([-1.0, 1.0]))


class UnequalBackends(UniformAroundOne):
    """Mirrored on every backend but NumPy."""

    def from_uniform(self, u, params, xp):
        return 1 + params["half_width"] * (2 * u - 1) * (1.0 if xp.__name__.endswith("numpy_ops") else -1.0)


class InfiniteAtTheEdge(pnd.Noise):
    """An exponential distribution whose logarithm meets 0 at the first uniform number."""

    variance = 1.0

    def from_uniform(self, u, params, xp):
        return -xp.log(u - 2**-24)


class FixedNumbers(UniformAroundOne):
    """It reads its field, so that a half_width that changes during training is not seen."""

    def from_uniform(self, u, params, xp):
        return 1 + self.half_width * (2 * u - 1)


class NoisyAtRateZero(pnd.Noise):
    """A little noise is left at rate 0."""

    rate: float = 0.5

    @property
    def variance(self):
        return (self.rate + 0.01) ** 2 / 3

    def from_uniform(self, u, params, xp):
        return 1 + (params["rate"] + 0.01) * (2 * u - 1)


class SaysItIsGaussian(pnd.Uniform):
    """It is uniform, and would be replaced by normal numbers."""

    gaussian = True

    def params(self):
        return {**super().params(), "stddev": np.float32(self.variance**0.5)}

    def with_params(self, params):
        return super().with_params({"half_width": params["half_width"]})


class Doubles(UniformAroundOne):
    """Half precision: entries are another dtype than float32."""

    def from_uniform(self, u, params, xp):
        return xp.astype(super().from_uniform(u, params, xp), "float16")


class TakesAnything(UniformAroundOne):
    """It checks nothing."""

    def __post_init__(self):
        pass


class Forgetful(UniformAroundOne):
    """It saves everything but its number."""

    def get_config(self):
        return {"half_width": 0.5}


class Unhashable(UniformAroundOne):
    """Two of it with the same number are unequal."""

    token: object = dataclasses.field(default_factory=object, repr=False)


class BranchesOnValues(UniformAroundOne):
    """It decides on values in Python, which a compiler cannot."""

    def from_uniform(self, u, params, xp):
        if (u < 0).any():
            return u
        return super().from_uniform(u, params, xp)


class DriftsAtHighRates(RateUniform):
    """Right at rate 0.5, and of mean 1.02 beyond 0.8."""

    def from_uniform(self, u, params, xp):
        drift = xp.where(params["rate"] > 0.8, 0.02 * xp.ones_like(u), xp.zeros_like(u))
        return drift + super().from_uniform(u, params, xp)


class DeafToParams(RateUniform):
    """What it says its new numbers are is the old ones."""

    def with_params(self, params):
        return self


class NarrowBand(UniformAroundOne):
    """Wrong on all backends but NumPy, for a few uniform numbers only."""

    def from_uniform(self, u, params, xp):
        m = super().from_uniform(u, params, xp)
        if xp.__name__.endswith("numpy_ops"):
            return m
        return xp.where(xp.abs(u - 0.3) < 2e-5, m + 0.3, m)


class Ops:
    """`pernodedrop.ops` with one or two of its functions replaced."""

    def __init__(self, **functions):
        self.__dict__.update({name: getattr(pnd.ops, name) for name in ("sample_mask", "masked_dense", "random_bits")})
        self.__dict__.update(functions)


def no_noise(noise, key, shape, backend=None, **kwargs):
    """A mask of ones."""
    return np.ones(shape, "float32")


def half_the_rate(noise, key, shape, **kwargs):
    """A mask at another rate than that of the noise."""
    return pnd.ops.sample_mask(noise.with_rate(noise.rate / 2), key, shape, **kwargs)


def sharing_forgotten(noise, key, shape, sharing=None, **kwargs):
    """Nothing is ever shared."""
    return pnd.ops.sample_mask(noise, key, shape, sharing=(), **kwargs)


def offset_forgotten(noise, key, shape, sample_offset=0, **kwargs):
    """Every part of a batch begins at sample 0."""
    return pnd.ops.sample_mask(noise, key, shape, **kwargs)


def product_of_another_seed(x, w, noise, key, sharing=None, method="auto", **kwargs):
    """By one method and sharing only, the product is with the mask of another seed."""
    if method == "recomputed" and sharing is None:
        key = key ^ 1
    return pnd.ops.masked_dense(x, w, noise, key, sharing=sharing, method=method, **kwargs)


def product_without_its_offset(x, w, noise, key, sample_offset=0, **kwargs):
    """A part of a batch has the masks of the first part."""
    return pnd.ops.masked_dense(x, w, noise, key, **kwargs)


def product_that_divides_by_the_kernel(x, w, noise, key, **kwargs):
    """It is not a number where a weight is zero, as all are that were pruned."""
    with np.errstate(invalid="ignore"):
        return pnd.ops.masked_dense(x, w * (w / w), noise, key, **kwargs)


def seed_plus_call(noise, key, shape, **kwargs):
    """The seed of a call is seed + call, as Keras has it on torch: seed 1's second call is seed 2's first."""
    seed, call = key
    return pnd.ops.sample_mask(noise, ((seed + call) % 2**32, 0), shape, **kwargs)


def same_every_call(noise, key, shape, **kwargs):
    """The call number is forgotten."""
    return pnd.ops.sample_mask(noise, (key[0], 0), shape, **kwargs)


def mirrored_samples(noise, key, shape, **kwargs):
    """Every second sample has the drops of the one before it: one index is divided by two."""
    mask = pnd.ops.sample_mask(noise, key, shape, **{**kwargs, "backend": "numpy"})
    return np.repeat(mask[::2], 2, axis=0)


def flattened(noise, key, shape, **kwargs):
    """One running index for all entries, so that a mask changes with the shape around it."""
    batch, inputs, outputs = shape
    return np.reshape(
        pnd.ops.sample_mask(noise, key, (1, 1, batch * inputs * outputs), backend="numpy"), (batch, inputs, outputs)
    )

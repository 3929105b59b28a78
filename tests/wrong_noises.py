"""Noises that are not what they claim to be, each wrong in one way that was seen in the wild or is easily made."""

import dataclasses

import numpy as np

import pernodedrop as pnd
from pernodedrop.noise import normal
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
        if np.any(np.asarray(u) < 0):
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


def product_without_its_in_offset(x, w, noise, key, in_offset=0, **kwargs):
    """A part of a kernel has the masks of the first part."""
    return pnd.ops.masked_dense(x, w, noise, key, **kwargs)


def product_of_the_offsets_exchanged(x, w, noise, key, sample_offset=0, in_offset=0, **kwargs):
    """Two words in the wrong order."""
    return pnd.ops.masked_dense(x, w, noise, key, sample_offset=in_offset, in_offset=sample_offset, **kwargs)


def product_without_its_call(x, w, noise, key, **kwargs):
    """Every call has the masks of the first."""
    return pnd.ops.masked_dense(x, w, noise, (key[0], 0), **kwargs)


def product_of_the_key_exchanged(x, w, noise, key, **kwargs):
    """It takes the call for the seed."""
    return pnd.ops.masked_dense(x, w, noise, (key[1], key[0]), **kwargs)


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


def even(noise, u, params, xp):
    """Entries spread evenly over 1 - size to 1 + size."""
    return 1 + params["size"] * (2 * u - 1)


def planted(claim, what, entries=even, variance=lambda noise: noise.size**2 / 3, lanes=1, base=pnd.Noise, **body):
    """A noise with one fault, of the numbers `size` (0.5) or others; the claim that names it, and how.

    Args:
        claim, what: the name of the claim, and a pattern of what is found.
        entries, variance, lanes, **body: what the class defines; floats and ints are its numbers.
        base: its base class.
    """
    numbers = {name: value for name, value in body.items() if type(value) in (int, float)} or {"size": 0.5}
    name = f"Planted{len(PLANTED)}"
    defined = {"__annotations__": {name: type(value) for name, value in numbers.items()}, **numbers, **body}
    defined |= {"variance": property(variance), "from_uniform": entries, "lanes": lanes, "__module__": __name__}
    PLANTED.append((type(name, (base,), defined)(), claim, what))


def narrow(xp, u, low, high):
    """Ones where low < u < high, else zeros."""
    return xp.where((u > low) & (u < high), xp.ones_like(u), xp.zeros_like(u))


def above(xp, u, number, limit):
    """Ones where a number of the noise is above a limit, else zeros."""
    return xp.where(number > limit, xp.ones_like(u), xp.zeros_like(u))


def by_size(noise, u, params, xp):
    """Entries of the first call of that size, whatever is asked for."""
    return SEEN.setdefault((xp.__name__, tuple(u.shape), params["size"].item()), even(noise, u, params, xp))


def every_ninth(noise, u, params, xp):
    """Another distribution in every ninth call."""
    SEEN["calls"] = SEEN.get("calls", 0) + 1
    return even(noise, u, params, xp) * (SEEN["calls"] % 9 > 0) + (SEEN["calls"] % 9 == 0)


def low_bits(noise, words, params, xp):
    """Of all 32 bits of a word."""
    return 1 + params["size"] * (2 * (xp.float32(words[0]) / 2.0**32 + xp.float32(words[0] % 256) / 2.0**10) - 1)


def raises(error):
    """A method that raises."""

    def method(*arguments):
        raise error

    return method


SEEN: dict = {}
PLANTED: list = []

# the moments, at the given numbers and at others
planted("moments", "mean of", lambda n, u, p, xp: 1.0001 + p["size"] * (2 * u - 1))
planted("moments", "variance of", variance=lambda n: n.size**2 * 0.338)
planted("moments", r"mean of .*size=", lambda n, u, p, xp: 1 + p["size"] * (2 * u - 1) + 0.1 * (p["size"] - 0.5))
planted("moments", r"variance of .*size=", variance=lambda n: abs(n.size) / 6)
planted("moments", r"variance of .*size=", variance=lambda n: abs(n.size) * 0.5 / 3)
planted(
    "moments",
    r"variance of .*b=",
    lambda n, u, p, xp: 1 + (p["a"] + p["b"]) * (2 * u - 1),
    lambda n: (n.a + 0.25) ** 2 / 3,
    a=0.5,
    b=0.25,
)
planted("moments", "variance of", lambda n, u, p, xp: 1 + p["size"] * (u[0] - u[1]), lanes=2)
planted(
    "moments", "variance of", lambda n, u, p, xp: 1 + p["size"] * xp.clip(normal(u, xp), -2, 2), lambda n: n.size**2
)
planted("moments", "mean of", lambda n, u, p, xp: xp.abs(1 + p["size"] * normal(u, xp)), lambda n: n.size**2)
planted("moments", "mean of", lambda n, u, p, xp: -p["size"] * 2 * xp.log(u) * (1 - 1e-4), lambda n: 4 * n.size**2)
planted("moments", "mean of", lambda n, u, p, xp: xp.where(u < 0.5, 0.0, 2.0 + 0 * u + p["size"] * 1e-3), lambda n: 1.0)
planted("moments", "mean of", lambda n, u, p, xp: even(n, u, p, xp) + narrow(xp, u, 0.3, 0.3002))
planted(
    "moments",
    r"mean of .*rate=0.999\b",
    lambda n, u, p, xp: 1 + p["rate"] * (2 * u - 1) + 0.01 * above(xp, u, p["rate"], 0.995),
    lambda n: n.rate**2 / 3,
    rate=0.5,
)
planted(
    "moments",
    r"variance of .*rate=0.001\b",
    lambda n, u, p, xp: 1 + (p["rate"] + 1e-4) * (2 * u - 1) - 1e-4 * (2 * u - 1) * above(xp, u, p["rate"], 0.01),
    lambda n: n.rate**2 / 3,
    rate=0.5,
)
planted(
    "moments",
    r"variance of .*rate=0.\d+",
    lambda n, u, p, xp: 1 + xp.where(u < p["rate"], -1.0, p["rate"] / (1 - p["rate"])),
    lambda n: 4 * n.rate * (1 - n.rate),
    rate=0.5,
)
planted(
    "moments",
    r"mean of .*rate=0.\d+",
    lambda n, u, p, xp: xp.where(u < p["rate"], 0.0, 2.0 * xp.ones_like(u)),
    lambda n: n.rate / (1 - n.rate),
    rate=0.5,
)
planted(
    "moments",
    "variance of .*a=",
    lambda n, u, p, xp: xp.where(u < p["a"], 1 - p["b"], 1 + p["a"] * p["b"] / (1 - p["a"]) * xp.ones_like(u)),
    lambda n: n.b**2 / 1.5,
    a=0.6,
    b=0.5,
)
# finite numbers of float32
planted(
    "entries",
    "not finite",
    lambda n, u, p, xp: 1 + p["rate"] * (2 * u - 1) + 0 * xp.log(0.96 - p["rate"]),
    lambda n: n.rate**2 / 3,
    rate=0.5,
)
planted("entries", "not finite", lambda n, u, p, xp: 1 + xp.sqrt(p["size"]) * (2 * u - 1), lambda n: abs(n.size) / 3)
planted("entries", "not finite", lambda n, u, p, xp: even(n, u, p, xp) + 0 * xp.log(u - 2.0**-24))
planted(
    "entries",
    "not finite",
    lambda n, u, p, xp: 1 + p["rate"] * (2 * u - 1) + 0 * xp.exp(0.9 / (1 - p["rate"])),
    lambda n: n.rate**2 / 3,
    rate=0.5,
)
planted("entries", "another dtype", lambda n, u, p, xp: xp.astype(even(n, u, p, xp), "float64"))
planted("entries", "another shape", lambda n, u, p, xp: xp.sum(even(n, u, p, xp)) * xp.ones_like(u[:1]))
planted("entries", "raises AttributeError.*cosh", lambda n, u, p, xp: xp.cosh(u))
planted(
    "entries",
    "raises RuntimeError.*too small",
    lambda n, u, p, xp: raises(RuntimeError("too small"))() if n.size < 0.3 else even(n, u, p, xp),
)
# of its own words, and of nothing else
planted("elementwise", "low 8 bits", from_words=low_bits)
planted("elementwise", "change when|second evaluation|others were made", by_size)
planted("elementwise", "second evaluation|change when|others were made", every_ninth)
planted(
    "elementwise", "change when", lambda n, u, p, xp: even(n, xp.reshape(xp.reshape(u, (-1,))[::-1], u.shape), p, xp)
)
planted("elementwise", "when there are more", lambda n, u, p, xp: even(n, u if u.size < 20_000 else 1 - u, p, xp))
planted("elementwise", "when it is the only one", lambda n, u, p, xp: even(n, u if u.size > 1 else 1 - u, p, xp))
planted("elementwise", "when they stand in rows", lambda n, u, p, xp: even(n, u if u.ndim == 1 else 1 - u, p, xp))
# its numbers
planted("numbers", "`params..` of .* are equal", lambda n, u, p, xp: 1 + n.size * (2 * u - 1), params=lambda n: {})
planted(
    "numbers",
    "is not",
    lambda n, u, p, xp: 1 + (p["a"] + n.b) * (2 * u - 1),
    lambda n: (n.a + n.b) ** 2 / 3,
    a=0.5,
    b=0.25,
)
planted(
    "moments",
    "variance of .*size=",
    lambda n, u, p, xp: even(n, u, {"size": SEEN.setdefault("size", float(p["size"]))}, xp),
)
planted(
    "identity",
    "`with_params.params...` is another noise",
    lambda n, u, p, xp: 1 + (p["a"] + 2 * p["b"]) * (2 * u - 1),
    lambda n: (n.a + 2 * n.b) ** 2 / 3,
    a=0.5,
    b=0.5,
    with_params=lambda n, p: type(n)(float(p["b"]), float(p["a"])),
)
planted(
    "numbers",
    "changes more than",
    lambda n, u, p, xp: 1 + p["a"] * (2 * u - 1),
    lambda n: n.a**2 / 3,
    a=0.5,
    levels=3,
    params=lambda n: {"a": np.float32(n.a)},
    with_params=lambda n, p: n if p["a"] == n.a else type(n)(pnd.noise._number_of(p["a"]), 4),
)
planted("declaration", "no finite NumPy scalar", params=lambda n: {"size": n.size})
planted("declaration", "`variance` is negative", variance=lambda n: n.size / 6)
planted("declaration", "`variance` is no number", variance=lambda n: np.array([n.size**2 / 3]))
planted("declaration", r"raises ZeroDivisionError", variance=lambda n: n.size**2 / 3 if n.size != 1 else 1 / 0)
planted("declaration", "`lanes` is no count", lanes=0)
planted(
    "declaration",
    "a name by which",
    lambda n, u, p, xp: 1 + p["drop_rate"] * (2 * u - 1),
    lambda n: n.drop_rate**2 / 3,
    drop_rate=0.5,
)
planted(
    "identity",
    "other numbers make an equal noise",
    __eq__=lambda n, other: type(n) is type(other),
    __hash__=lambda n: 1,
)
planted(
    "identity",
    "is another noise|make unequal",
    __eq__=lambda n, other: type(n) is type(other) and n.size == other.size,
    __hash__=lambda n: id(n),
)
planted("identity", "`from_config.get_config", get_config=lambda n: {"size": 0.75})
planted(
    "rates",
    "sets another rate",
    lambda n, u, p, xp: 1 + p["rate"] * (2 * u - 1),
    lambda n: n.rate**2 / 3,
    rate=0.5,
    with_rate=lambda n, rate: type(n)(min(rate, 0.9)),
)
planted(
    "rates",
    "changes more than the rate",
    lambda n, u, p, xp: 1 + p["rate"] * p["b"] * (2 * u - 1),
    lambda n: (n.rate * n.b) ** 2 / 3,
    rate=0.5,
    b=0.5,
    with_rate=lambda n, rate: type(n)(rate, 0.5),
)
planted(
    "rates",
    "makes another noise",
    lambda n, u, p, xp: 1 + p["rate"] * (2 * u - 1),
    lambda n: n.rate**2 / 3,
    rate=0.5,
    with_rate=lambda n, rate: pnd.Bernoulli(rate),
)
planted(
    "rate_zero",
    "entries at rate 0 are not 1",
    lambda n, u, p, xp: 1 + (1 - p["rate"]) * (2 * u - 1),
    lambda n: (1 - n.rate) ** 2 / 3,
    rate=0.5,
)
planted("bad_input", "size=nan is accepted", __post_init__=lambda n: None)
planted(
    "bad_input",
    "but not by name",
    __post_init__=lambda n: None if isinstance(n.size, float) and abs(n.size) < 9 else raises(ValueError("no"))(),
)
planted("bad_input", "but by another error", __post_init__=lambda n: (pnd.Noise.__post_init__(n), 1 / (n.size - 1)))
planted(
    "bad_input",
    "rate=-0.25 is accepted",
    lambda n, u, p, xp: 1 + p["rate"] * (2 * u - 1),
    lambda n: n.rate**2 / 3,
    rate=0.5,
    __post_init__=lambda n: pnd.checks.check_finite(n.rate, "rate") and None,
)
# what it says it is
planted(
    "normality",
    "a distance from the normal one",
    lambda n, u, p, xp: 1 + p["stddev"] * 3**0.5 * (2 * u - 1),
    lambda n: n.stddev**2,
    stddev=0.5,
    gaussian=True,
)
planted(
    "normality",
    "squared is not the variance",
    lambda n, u, p, xp: 1 + 2 * p["stddev"] * normal(u, xp),
    lambda n: 4 * n.stddev**2,
    stddev=0.5,
    gaussian=True,
)
planted("expectation", "another mean than 1", lambda n, u, p, xp: even(n, u, p, xp) + 1, mean=property(lambda n: 2.0))


def repeating(axis, index):
    """A mask whose entries along an axis, counted from the last, are those at `index` of their own places."""

    def sample_mask(noise, key, shape, backend=None, **kwargs):
        mask = pnd.ops.sample_mask(noise, key, shape, backend="numpy", **kwargs)
        if len(shape) < -axis:
            return mask
        places = index(np.arange(shape[axis], dtype="uint32"))
        return np.take(mask, np.minimum(places, shape[axis] - 1), axis)

    return sample_mask


def of_another(**change):
    """A mask with another key or offset, each of which is a function of the right one."""

    def sample_mask(noise, key, shape, sample_offset=0, **kwargs):
        seed, call = key
        seed, call = (change.get(name, lambda word: word)(word) for name, word in (("seed", seed), ("call", call)))
        sample_offset = change.get("offset", lambda word: word)(sample_offset)
        return pnd.ops.sample_mask(noise, (seed, call), shape, sample_offset=sample_offset, **kwargs)

    return sample_mask


REPEATING = {
    "outputs 4 apart": repeating(-1, lambda i: i % 4),
    "outputs 16 apart": repeating(-1, lambda i: i % 16),
    "outputs 2**16 apart": repeating(-1, lambda i: i % 2**16),
    "pairs of outputs from the thousandth on": repeating(-1, lambda i: np.where(i < 1000, i, i & ~np.uint32(1))),
    "inputs 5 apart": repeating(-2, lambda i: i % 5),
    "inputs 2**16 apart": repeating(-2, lambda i: i % 2**16),
    "inputs as float16": repeating(-2, lambda i: np.minimum(i, 65504).astype("float16").astype("uint32")),
    "times 4 apart": repeating(-3, lambda i: i % 4),
    "times 2**16 apart": repeating(-3, lambda i: i % 2**16),
    "samples 8 apart": repeating(-4, lambda i: i % 8),
    "samples 2**16 apart": repeating(-4, lambda i: i % 2**16),
    "the last two samples": repeating(-4, lambda i: np.where(i == len(i) - 1, i - 1, i)),
}
"""Masks that say at far coordinates what they said at near ones."""

OF_ANOTHER = {
    "16 bits of the call": of_another(call=lambda word: word % 2**16),
    "31 bits of the seed": of_another(seed=lambda word: word % 2**31),
    "16 bits of the offset": of_another(offset=lambda word: word % 2**16),
    "an offset as float32": of_another(offset=lambda word: min(int(np.float32(word)), 2**32 - 1)),
}


def repeating_product(axis, period):
    """By one method, a product with a mask that begins anew along an axis (-1 outputs, -2 inputs, -3 samples)."""

    def masked_dense(x, w, noise, key, method="auto", sharing=None, **kwargs):
        if method != "recomputed" or sharing is not None or x.ndim != 2:
            return pnd.ops.masked_dense(x, w, noise, key, method=method, sharing=sharing, **kwargs)
        ones = np.ones((len(x), *w.shape), "float32")
        mask = pnd.ops.masked(ones, noise, key, sharing=(), **kwargs)
        mask = np.take(mask, np.arange(mask.shape[axis]) % period, axis)
        return np.einsum("bi,io,bio->bo", x, w, mask)

    return masked_dense

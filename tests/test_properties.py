"""Properties over random noises, keys and coordinates, searched by Hypothesis."""

import functools
import math
from fractions import Fraction

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import pernodedrop as pnd
from pernodedrop import generator
from tests import reference
from tests.frameworks import NAME, XP, array, quick, tensor
from tests.noises import Triangular

LAST_RATE = 1 - 2**-24
words32 = st.one_of(st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]), st.integers(0, 2**32 - 1))
seeds = st.one_of(words32, st.integers(-(10**30), 10**30))
rates = st.one_of(st.sampled_from([0.0, 2**-25, 0.5, LAST_RATE]), st.floats(0, LAST_RATE))
usual_rates = st.floats(0, 0.9)
spreads = st.floats(0.01, 2)
shapes = st.sampled_from([(4, 3, 5), (4, 2, 3, 5)])  # those of other tests too, for JAX compiles each op for each shape
smooth_noises = st.one_of(
    st.builds(pnd.Gaussian, usual_rates),
    st.builds(pnd.Gaussian, stddev=spreads),
    st.builds(pnd.Uniform, half_width=spreads),
    st.builds(Triangular, spreads),
)
noises = st.one_of(
    smooth_noises,
    st.builds(pnd.Bernoulli, usual_rates),
    st.builds(pnd.PartialGaussian, usual_rates, spreads),
)
BASES = {
    pnd.Bernoulli: pnd.Bernoulli(0.5),
    pnd.Gaussian: pnd.Gaussian(stddev=1.0),
    pnd.PartialGaussian: pnd.PartialGaussian(0.5, 1.0),
    pnd.Uniform: pnd.Uniform(half_width=1.0),
    Triangular: Triangular(1.0),
}
"""One noise of each class, compiled once; any other of that class is it with other `params`."""


def state(*words):
    return tensor(np.array([word % 2**32 for word in words], "uint32").view("int32"))


@functools.cache
def product(law, method):
    """masked_dense as a function of tensors, with the numbers of the noise among them."""

    def run(x, w, key, ids, params):
        return pnd.ops.masked_dense(x, w, BASES[law], key, sample_ids=ids, params=params, method=method)

    return quick(run)


def multiply(x, w, noise, key, ids, method="auto"):
    """The product of host arrays as host array."""
    params = {name: tensor(value) for name, value in noise.params().items()}
    return array(product(type(noise), method)(tensor(x), tensor(w), state(*key), state(*ids), params))


@functools.cache
def entries_of(law):
    """Entries of a class of noises as a function of words and numbers."""
    return quick(lambda words, params: BASES[law].from_words([words], params, XP))


def entries(noise, words):
    """Entries of a noise at host words, as float64."""
    params = {name: tensor(value) for name, value in noise.params().items()}
    return array(entries_of(type(noise))(XP.as_word(tensor(words)), params)).astype("float64")


@quick
def words_at(*coordinates):
    return generator.words(coordinates[:2], *coordinates[2:], XP)


@hypothesis.given(st.lists(st.tuples(*[words32] * 7), min_size=1, max_size=16))
def test_words_are_the_reference_at_any_coordinates(rows):
    coordinates = np.array((rows * 16)[:16], "uint32")
    words = words_at(*(XP.as_word(tensor(column)) for column in coordinates.T.copy()))
    np.testing.assert_array_equal(XP.to_numpy(words).view("uint32"), reference.words(coordinates))


@hypothesis.given(shapes, seeds, words32, words32)
def test_random_bits_are_the_reference_for_any_key_and_offset(shape, seed, call, sample_offset):
    bits = pnd.ops.random_bits((seed, call), shape, sample_offset=sample_offset, backend=NAME)
    wanted = reference.bits(generator.seed_word(seed), call, shape, sample_offset)
    np.testing.assert_array_equal(bits, wanted)


@hypothesis.given(shapes, seeds, words32, words32, rates)
def test_bernoulli_masks_are_numpys_to_the_bit(shape, seed, call, sample_offset, rate):
    noise = pnd.Bernoulli(rate)
    arguments = {"key": (seed, call), "shape": shape, "sample_offset": sample_offset, "sharing": ()}
    words = reference.bits(generator.seed_word(seed), call, shape, sample_offset)
    threshold = round((1 - Fraction(rate)) * 2**24)
    hypothesis.assume(abs((1 - Fraction(rate)) * 2**24 - threshold) < Fraction(1, 2) - Fraction(1, 2**29))  # no tie
    wanted = np.where(words >> 8 < threshold, np.float32(2**24 / threshold), np.float32(0))
    np.testing.assert_array_equal(array(pnd.ops.sample_mask(noise, **arguments, backend=NAME)), wanted)
    np.testing.assert_array_equal(pnd.ops.sample_mask(noise, **arguments, backend="numpy"), wanted)


def proxy(noise):
    """The variance proxy of an entry: E exp(s (m - 1)) <= exp(proxy s**2 / 2) for all s.

    By Hoeffding's lemma a quarter of the squared range for bounded entries; the variance for normal ones, of which a
    mixture with 1 has no more.
    """
    if isinstance(noise, pnd.Bernoulli):
        return (2**24 / noise.threshold) ** 2 / 4
    return (noise.stddev if isinstance(noise, pnd.Gaussian | pnd.PartialGaussian) else noise.half_width) ** 2


@hypothesis.given(noises, st.integers(0, 2**32 - 1))
def test_expectation_is_preserved(noise, seed):
    """Means of y over 512 samples of one x against x @ w, by the bound for sums of sub-Gaussian numbers.

    A mean strays by t with probability 2 exp(-512 t**2 / (2 proxy sum((x w)**2))) at most. False alarm 1e-10 for each
    of 4 outputs, so 4e-7 for 1000 examples.
    """
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=7).astype("float32"), rng.normal(size=(7, 4)).astype("float32")
    y = multiply(np.tile(x, (512, 1)), w, noise, (seed, 0), range(512))
    spread = np.sqrt(proxy(noise) * (x**2 @ w**2) * 2 * math.log(2 / 1e-10) / 512)
    assert (abs(y.mean(axis=0, dtype="float64") - x @ w) <= spread + 1e-5 * (abs(x) @ abs(w))).all()


# Sums of small integers times a scale of 2 are exact in any order, so rows may be compared to the bit.
ids_of_rows = st.lists(words32, min_size=6, max_size=6)


@hypothesis.given(ids_of_rows, st.permutations(range(6)), words32, words32)
def test_a_samples_mask_depends_on_no_other_sample(ids, order, seed, call):
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-8, 9, size).astype("float32") for size in ((6, 5), (5, 4)))
    noise = pnd.Bernoulli(0.5)
    y = multiply(x, w, noise, (seed, call), ids, "recomputed")
    permuted = multiply(x[order], w, noise, (seed, call), [ids[n] for n in order], "recomputed")
    np.testing.assert_array_equal(permuted, y[order])
    others = multiply(x, w, noise, (seed, call), [ids[0], *(n ^ 1 for n in ids[1:])], "recomputed")
    np.testing.assert_array_equal(others[0], y[0])
    for row, sample in enumerate(ids):
        kept = reference.bits(seed, call, (1, 5, 4), sample)[0] >> 31 == 0
        np.testing.assert_array_equal(y[row], x[row] @ (w * 2 * kept))


@hypothesis.given(words32, words32, words32, words32)
def test_masks_of_two_samples_are_uncorrelated(seed, call, one, other):
    """1024 pairs of fair decisions agree half the time, up to Hoeffding's bound at false alarm 1e-10 an example."""
    hypothesis.assume(one != other)
    in_, out = np.arange(32)[:, None], np.arange(32)
    zero = XP.as_word(0)
    samples = XP.as_word(tensor(np.array([one, other], "uint32")))[:, None, None]
    in_, out = (XP.as_word(tensor(n.astype("uint32"))) for n in (in_, out))
    words = XP.to_numpy(words_at(XP.as_word(seed), XP.as_word(call), zero, zero, samples, in_, out)).view("uint32")
    agreement = (words[0] >> 31 == words[1] >> 31).mean()
    assert abs(agreement - 0.5) <= math.sqrt(math.log(2 / 1e-10) / (2 * 1024))


@hypothesis.given(
    st.sampled_from([pnd.Gaussian(rate=0.5), pnd.Uniform(half_width=0.3), Triangular(0.5)]),
    st.lists(st.integers(0, 2**23 - 1), min_size=2, max_size=32),
)
def test_entries_grow_with_their_uniform_number(noise, cells):
    """Between numbers 16 cells apart, which is beyond the rounding of every backend."""
    cells = np.sort(np.resize(cells, 1024)) & ~15
    m = entries(noise, (cells << 9).astype("uint32"))
    assert (np.diff(m) >= 0).all()
    assert (np.diff(m)[np.diff(cells) > 0] > 0).all()


@hypothesis.given(smooth_noises)
def test_the_mean_is_one_and_the_variance_the_mean_square_over_a_thousand_cells(noise):
    """By the middles of 1024 equal cells, which miss less than 1 % of the variance of a normal number."""
    words = (np.arange(1024, dtype="uint32") << np.uint32(22)) + np.uint32(2**21)
    m = entries(noise, words)
    assert abs(m.mean() - 1) < 1e-5 * (1 + abs(m).max())
    assert ((m - 1) ** 2).mean() == pytest.approx(noise.variance, rel=0.01)

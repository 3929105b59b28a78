"""The noises: declared moments by exact integration over all uniform numbers, rounding, round trips and refusals."""

import dataclasses
import functools
import json
import math
import re
from fractions import Fraction

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import special

import pernodedrop as pnd
from pernodedrop import noise as noises
from tests import reference
from tests.frameworks import NAME, XP, array, quick, tensor
from tests.noises import Difference, Triangular

LAST_RATE = 1 - 2**-24
RATES = (0.0, 2**-25, 2**-24, 1e-3, 0.1, 0.3, 0.5, 2 / 3, 0.8, 0.999, 1 - 2**-23, LAST_RATE)
CONTINUOUS = (
    pnd.Gaussian(rate=0.5),
    pnd.Gaussian(stddev=0.1),
    pnd.Uniform(rate=0.8),
    pnd.Uniform(half_width=0.3),
    Triangular(0.25),
)
ALL = (*CONTINUOUS, pnd.Bernoulli(0.3), pnd.PartialGaussian(0.3, 0.7), Difference(0.4))
ROUNDING = 1e-5 if NAME in ("jax", "tensorflow") else 1e-6
"""Of erfinv near -1 and 1, relative to an entry's distance from 1: XLA and TensorFlow approximate it in float32."""

each = pytest.mark.parametrize("noise", ALL, ids=repr)


@functools.cache
def runner(noise):
    params = {name: tensor(value) for name, value in noise.params().items()}
    return quick(lambda *words: noise.from_words(words, params, XP))


def entries(noise, *words):
    """Entries of a noise on the backend under test, from host words, as float64."""
    result = array(runner(noise)(*(XP.as_word(tensor(w)) for w in words)))
    assert result.dtype == "float32"
    return result.astype("float64")


def numbers(chunk):
    """An eighth of the words that give all 2**23 uniform numbers."""
    return np.arange(chunk << 20, (chunk + 1) << 20, dtype="uint32") << np.uint32(9)


def truth(noise, words):
    """Entries by scipy and NumPy in float64."""
    u = ((words >> np.uint32(9)) + 0.5) / 2**23
    if isinstance(noise, pnd.Gaussian):
        return 1 + noise.stddev * special.ndtri(u)
    if isinstance(noise, pnd.Uniform):
        return 1 - noise.half_width + 2 * noise.half_width * u
    tail = np.minimum(u, 1 - u)
    return 1 + noise.half_width * np.sign(u - 0.5) * (1 - np.sqrt(2 * tail))


@pytest.mark.parametrize("noise", CONTINUOUS, ids=repr)
def test_moments_are_the_declared_ones_and_entries_the_inverse_of_the_distribution(noise):
    """The sums run over every uniform number there is; what is left is rounding and the cell in each tail."""
    mean = variance = 0.0
    for chunk in range(8):
        words = numbers(chunk)
        m = entries(noise, words)
        mean += m.sum() / 2**23
        variance += ((m - 1) ** 2).sum() / 2**23
        wanted = truth(noise, words)
        assert (abs(m - wanted) <= ROUNDING * abs(wanted - 1) + 2**-23).all()
    assert noise.mean == 1
    assert abs(mean - 1) < 1e-8
    assert abs(variance / noise.variance - 1) < 1e-6


@pytest.mark.parametrize("noise", [pnd.Gaussian(rate=0.5), pnd.PartialGaussian(LAST_RATE, 1.0)], ids=repr)
def test_normal_entries_reach_5_3_standard_deviations_and_are_finite(noise):
    ends = np.array([0, 2**32 - 1], "uint32")
    perturbed = np.full(2, 2**32 - 1, "uint32")
    lowest, highest = entries(noise, *[perturbed] * (noise.lanes - 1), ends)
    assert math.isclose(1 - lowest, 5.2947041, rel_tol=1e-5)
    assert math.isclose(highest - 1, 5.2947041, rel_tol=1e-5)


@pytest.mark.parametrize("rate", RATES)
def test_bernoulli_moments_are_exact(rate):
    """By its threshold, over all 2**24 decisions; the scale is rounded to float32 once."""
    noise = pnd.Bernoulli(rate)
    kept = Fraction(noise.threshold, 2**24)
    assert abs((1 - kept) - Fraction(rate)) <= Fraction(1, 2**25)
    scale = Fraction(float(entries(noise, np.array([0], "uint32"))[0]))
    assert abs(kept * scale - 1) <= Fraction(1, 2**24)
    assert noise.variance == pytest.approx(float(1 / kept - 1), rel=1e-15)
    assert type(noise.params()["threshold"]) is np.int32


@hypothesis.given(st.floats(0, LAST_RATE))
def test_bernoulli_realises_any_rate_within_half_a_step(rate):
    """Half a step is 2**-25; 1 - rate is rounded to float64 before, 2**-53 at most."""
    realised = 1 - Fraction(pnd.Bernoulli(rate).threshold, 2**24)
    assert abs(realised - Fraction(rate)) <= Fraction(1, 2**25) + Fraction(1, 2**53)


@pytest.mark.parametrize("rate", RATES)
def test_bernoulli_keeps_an_entry_iff_its_upper_24_bits_are_below_the_threshold(rate):
    threshold = round((1 - Fraction(rate)) * 2**24)
    below, above = (threshold - 1) << 8 | 255, min(threshold << 8, 2**32 - 1)
    words = np.array([0, below, above, 2**32 - 1], "uint32")
    scale = float(np.float32(2**24 / threshold))
    expected = [scale if int(word) >> 8 < threshold else 0.0 for word in words]
    assert entries(pnd.Bernoulli(rate), words).tolist() == expected


@pytest.mark.parametrize("rate", [0.0, 0.3, LAST_RATE])
def test_partial_gaussian_is_a_mixture_decided_on_the_first_word(rate):
    noise = pnd.PartialGaussian(rate, 0.7)
    threshold = round((1 - rate) * 2**24)
    choice = np.array([0, (threshold - 1) << 8 | 255, min(threshold << 8, 2**32 - 1), 2**32 - 1], "uint32")
    perturbed = choice >> np.uint32(8) >= threshold
    value = np.full(4, 123456789, "uint32")
    m = entries(noise, choice, value)
    np.testing.assert_allclose(m, np.where(perturbed, truth(pnd.Gaussian(stddev=0.7), value), 1.0), rtol=1e-5)
    assert (m[~perturbed] == 1).all()
    assert noise.variance == pytest.approx((1 - threshold / 2**24) * 0.7**2, rel=1e-12)


def test_lanes_are_independent_uniform_numbers_of_the_same_key():
    u = [((reference.bits(3, 1, (4, 3, 5), lane=lane) >> 9) + 0.5) / 2**23 for lane in (0, 1)]
    mask = quick(lambda key: pnd.ops.sample_mask(Difference(0.4), key, (4, 3, 5), backend=NAME))(
        tensor(np.array([3, 1]))
    )
    np.testing.assert_allclose(array(mask), 1 + 0.4 * (u[0] - u[1]), atol=1e-6)


@each
def test_params_are_numpy_scalars_and_with_params_is_their_inverse(noise):
    assert all(isinstance(value, np.generic) for value in noise.params().values())
    assert noise.with_params(noise.params()) == noise


@pytest.mark.parametrize(
    ("noise", "other"),
    [
        (pnd.Bernoulli(0.3), pnd.Bernoulli(0.7)),
        (pnd.Gaussian(rate=0.3), pnd.Gaussian(rate=0.7)),
        (pnd.Gaussian(stddev=0.3), pnd.Gaussian(stddev=0.7)),
        (pnd.Uniform(rate=0.3), pnd.Uniform(rate=0.7)),
        (pnd.Uniform(half_width=0.3), pnd.Uniform(half_width=0.7)),
        (pnd.PartialGaussian(0.3, 0.5), pnd.PartialGaussian(0.7, 2.0)),
        (Triangular(0.25), Triangular(0.5)),
        (Difference(0.25), Difference(0.5)),
    ],
    ids=repr,
)
def test_with_params_takes_the_numbers_of_another_noise(noise, other):
    taken = noise.with_params(other.params())
    assert type(taken) is type(noise)
    assert taken.variance == pytest.approx(other.variance, rel=1e-6)
    assert taken.params() == pytest.approx(other.params())
    for name, value in other.get_config().items():
        assert getattr(taken, name) == pytest.approx(value, rel=1e-6)


@hypothesis.given(st.floats(0, LAST_RATE), st.floats(0, LAST_RATE))
def test_bernoulli_with_params_has_the_very_threshold(rate, other):
    taken = pnd.Bernoulli(rate).with_params(pnd.Bernoulli(other).params())
    assert taken.threshold == pnd.Bernoulli(other).threshold


@pytest.mark.parametrize("decimals", [1, 2, 4, 6])
@pytest.mark.parametrize(
    "make", [pnd.Bernoulli, pnd.Gaussian, pnd.Uniform, lambda rate: pnd.PartialGaussian(rate, 0.1)]
)
def test_a_rate_is_the_number_with_the_fewest_digits_that_makes_the_same(make, decimals):
    """The numbers stay what they are; of the rates that have them it is the one that was meant."""
    for rate in np.random.default_rng(0).uniform(0, 0.94, 100).round(decimals).tolist():
        noise, taken = make(rate), make(0.25).with_params(make(rate).params())
        assert taken.rate == rate
        assert taken.params() == noise.params()
        rough = make(rate + 1e-9)
        assert make(0.25).with_params(rough.params()).params() == rough.params()


def test_a_scale_is_the_number_with_the_fewest_digits_that_makes_the_same():
    for taken in (
        pnd.Gaussian(stddev=1.0),
        pnd.Uniform(half_width=1.0),
        pnd.PartialGaussian(0.5, 1.0),
        Triangular(1.0),
    ):
        numbers = {name: np.float32(0.1) if name != "threshold" else value for name, value in taken.params().items()}
        again = taken.with_params(numbers)
        assert 0.1 in again.get_config().values()
        assert again.params() == numbers


def test_with_rate_is_the_same_distribution_at_another_rate():
    assert pnd.Bernoulli(0.3).with_rate(0.7) == pnd.Bernoulli(0.7)
    assert pnd.Gaussian(rate=0.3).with_rate(0.7) == pnd.Gaussian(rate=0.7)
    assert pnd.Uniform(rate=0.3).with_rate(0.7) == pnd.Uniform(rate=0.7)
    assert pnd.PartialGaussian(0.3, 0.5).with_rate(0.7) == pnd.PartialGaussian(0.7, 0.5)
    with pytest.raises(TypeError, match=r"Triangular\(half_width=0.25\) has no rate that could be set to 0.7"):
        Triangular(0.25).with_rate(0.7)
    for noise in (pnd.Gaussian(stddev=0.3), pnd.Uniform(half_width=0.3)):
        with pytest.raises(TypeError, match=r"was given by its \w+ and has no rate that could be set to 0.7"):
            noise.with_rate(0.7)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.8])
def test_a_rate_means_the_variance_of_bernoulli(rate):
    for kind in (pnd.Gaussian, pnd.Uniform):
        assert kind(rate=rate).variance == pytest.approx(rate / (1 - rate), rel=1e-12)


@pytest.fixture
def keras():
    """Keras, where it can be imported."""
    return pytest.importorskip("keras", reason="Keras' NumPy backend needs jax")


@each
def test_config_round_trips_through_keras(noise, keras):
    text = json.dumps(keras.saving.serialize_keras_object(noise))
    again = keras.saving.deserialize_keras_object(json.loads(text))
    assert type(again) is type(noise)
    assert again == noise
    assert type(noise).from_config(noise.get_config()) == noise


def test_noises_of_one_name_in_two_modules_keep_apart_when_loaded(keras):
    """`Noise` says it registers a class under its module and name."""

    def kind(module):
        return type("Twin", (pnd.Noise,), {"__module__": module, "__annotations__": {"size": float}})

    first, second = kind("tests.one"), kind("tests.two")
    for cls in (first, second):
        assert type(keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(cls(0.5)))) is cls


@each
def test_noises_compare_and_hash_by_value_and_are_frozen(noise):
    twin = type(noise)(**noise.get_config())
    assert twin is not noise
    assert {noise: 1}[twin] == 1
    assert noise != pnd.Bernoulli(0.123)
    field = dataclasses.fields(noise)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(noise, field, 0.5)


def test_noises_of_equal_numbers_and_other_distributions_differ():
    assert Triangular(0.4) != Difference(0.4)
    assert pnd.Bernoulli(0.4) != pnd.Bernoulli(0.5)


def test_a_field_that_is_not_compared_is_refused():
    with pytest.raises(TypeError, match=r"Field 'size' of Uncompared: expected compare=True. Received: compare=False"):

        class Uncompared(pnd.Noise):
            size: float = dataclasses.field(default=0.5, compare=False)


def test_a_noise_must_define_its_variance_and_its_entries():
    class Empty(pnd.Noise):
        pass

    with pytest.raises(NotImplementedError, match="Empty must define `variance`"):
        _ = Empty().variance
    with pytest.raises(NotImplementedError, match=r"Empty must define `from_uniform\(u, params, xp\)`"):
        Empty().from_uniform(None, {}, None)


def test_get_makes_a_noise_of_a_name_and_a_rate():
    assert noises.get("bernoulli", 0.3) == pnd.Bernoulli(0.3)
    assert noises.get("gaussian", 0.3) == pnd.Gaussian(rate=0.3)
    assert noises.get("uniform", 0.3) == pnd.Uniform(rate=0.3)
    assert noises.get(Triangular(0.2)) == Triangular(0.2)


RATE = "Invalid value for argument `rate`. Expected a drop rate, from 0 and below 1: a float in [0, 1 - 2**-24]"
NUMBER = "Invalid value for argument `{0}`. Expected a finite float. Received: {0}={1}"
FROM_ZERO = "Invalid value for argument `{0}`. Expected a finite float from zero. Received: {0}={1}"
OF_FLOAT32 = "argument `{0}`. Expected a finite float, of a size that float32 has: 0, or 1.2e-38 to 3.4e38. Rec"
ONE_OF = "Invalid values for arguments `rate` and `{0}`. Expected one of the two. Received: "
BAD = [
    *((kind, {"rate": bad}, ValueError, f"{RATE}. Received: rate={bad!r}")
      for kind in (pnd.Bernoulli, pnd.Gaussian, pnd.Uniform)
      for bad in (-0.1, 1.0, 1, 1 - 2**-25, 2.0, math.nan, math.inf, -math.inf)),
    *((kind, {"rate": bad}, TypeError, f"{RATE}. Received: rate={bad!r}")
      for kind in (pnd.Bernoulli, pnd.Gaussian, pnd.Uniform)
      for bad in ("0.5", True, [0.5], 0.5j)),
    (pnd.Bernoulli, {"rate": None}, TypeError, f"{RATE}. Received: rate=None"),
    (pnd.PartialGaussian, {"rate": 1.0, "stddev": 1.0}, ValueError, f"{RATE}. Received: rate=1.0"),
    *((kind, {field: bad}, error, NUMBER.format(field, repr(bad)))
      for kind, field in ((pnd.Gaussian, "stddev"), (pnd.Uniform, "half_width"), (Triangular, "half_width"))
      for bad, error in ((math.nan, ValueError), (math.inf, ValueError), ("1", TypeError), (True, TypeError))),
    (pnd.Gaussian, {"stddev": -1.0}, ValueError, FROM_ZERO.format("stddev", -1.0)),
    (pnd.Uniform, {"half_width": -1.0}, ValueError, FROM_ZERO.format("half_width", -1.0)),
    (pnd.PartialGaussian, {"rate": 0.5, "stddev": -1}, ValueError, FROM_ZERO.format("stddev", -1.0)),
    (pnd.PartialGaussian, {"rate": 0.5, "stddev": None}, TypeError, NUMBER.format("stddev", None)),
    (Triangular, {"half_width": None}, TypeError, NUMBER.format("half_width", None)),
    *((kind, {field: bad}, ValueError, OF_FLOAT32.format(field))
      for kind, field in ((pnd.Gaussian, "stddev"), (pnd.Uniform, "half_width"), (Triangular, "half_width"))
      for bad in (1e39, 1e-50, 1e-310, 10**39, np.float64(1e39))),
    *((kind, {field: bad}, ValueError, f"`{field}`. Expected a finite float. Received: {field}=")
      for kind, field in ((pnd.Gaussian, "stddev"), (pnd.Uniform, "half_width"), (Triangular, "half_width"))
      for bad in (10**400, -(10**5000), Fraction(10**400, 3))),
    (pnd.Gaussian, {}, ValueError, f"{ONE_OF.format('stddev')}rate=None, stddev=None"),
    (pnd.Gaussian, {"rate": 0.5, "stddev": 1.0}, ValueError, f"{ONE_OF.format('stddev')}rate=0.5, stddev=1.0"),
    (pnd.Uniform, {}, ValueError, f"{ONE_OF.format('half_width')}rate=None, half_width=None"),
    (pnd.Uniform, {"rate": 0.5, "half_width": 1.0}, ValueError, f"{ONE_OF.format('half_width')}rate=0.5, half_"),
    (noises.get, {"noise": "bernouli"}, ValueError, "argument `noise`. Expected one of 'bernoulli', 'gaussian', "),
    (noises.get, {"noise": "bernouli"}, ValueError, "Received: noise='bernouli' (did you mean 'bernoulli'?)"),
    (noises.get, {"noise": "Normal"}, ValueError, "Received: noise='Normal' (did you mean 'gaussian'?)"),
    (noises.get, {"noise": 0.5}, TypeError, "argument `noise`. Expected a pernodedrop.Noise or the name of one. Rec"),
    (noises.get, {"noise": "bernoulli"}, TypeError, f"{RATE}. Received: rate=None"),
    (noises.get, {"noise": "partial_gaussian", "rate": 0.5}, ValueError, "its stddev has no default. Received: noise="),
    (noises.get, {"noise": Triangular(), "rate": 0.5}, ValueError, "`rate`. Expected None, since Triangular(half_"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "arguments", "error", "message"), BAD)
def test_bad_numbers_are_refused_with_argument_expectation_and_value(kind, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        kind(**arguments)

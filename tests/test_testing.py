"""The testing kit: right noises pass, each wrong one is refused by the name of what is wrong with it."""

import functools
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import strategies as st

import pernodedrop as pnd
from pernodedrop import backends
from pernodedrop.backends import methods
from pernodedrop.report.environment import installed_backends
from pernodedrop.testing import chance, claims, evaluate, integration, variation
from tests import wrong_noises as wrong
from tests.conftest import needs_keras
from tests.frameworks import NAME, XP, needs_gradients
from tests.noises import OTHERS, Middle, Near, Power, Quantized, Triangular, UpToHalf, right_noises

BACKENDS = tuple(dict.fromkeys(["numpy", NAME]))
RIGHT = [
    pnd.Bernoulli(0.5),
    pnd.Gaussian(stddev=0.1),
    Near(0.5),
    Quantized(0.5, levels=2),
    Quantized(0.5, levels=5),
    UpToHalf(),
]


@pytest.mark.slow
# where all is compiled, one that is exact and a Gaussian; one of a user's is in TestContract
@pytest.mark.parametrize("noise", RIGHT if NAME == "numpy" else RIGHT[:2], ids=repr)
def test_a_right_noise_passes(noise):
    examples = {"numpy": 3, "torch": 2}.get(NAME, 1)  # the others compile all for each; TestContract has three
    report = pnd.testing.check_noise(noise, backends=[NAME], examples=examples)
    assert report.broken == ()
    assert {"declaration", "moments", "elementwise", "blocks", "independence"} <= set(report.held)
    assert ("normality" in report.held) == ("reparameterization" in report.held) == noise.gaussian


@pytest.mark.slow
def test_random_right_noises_pass():
    """A thousand on all backends, each against the whole contract: benchmarks/noise_contract."""
    examples = {"numpy": 40, "torch": 4}.get(NAME, 2)  # the others compile all for each
    assert pnd.testing.check_noise(right_noises(), backends=[NAME], examples=examples).broken == ()


@pytest.mark.slow
@pytest.mark.parametrize("stddev", [0.0, 1e-30, 1e-8, 1e-4] if NAME == "numpy" else [1e-8])
def test_a_spread_that_float32_does_not_resolve_is_no_false_alarm(stddev):
    assert pnd.testing.check_noise(pnd.Gaussian(stddev=stddev), backends=[NAME], examples=2).broken == ()


WRONG = [
    (wrong.Shifted(), "moments", "the mean of an entry of .* is not the declared", "1.02", "1, to within"),
    (wrong.DriftsAtHighRates(), "moments", r"the mean of an entry of .*\(rate=0.95?\)", "1.02", "1, to within"),
    (wrong.DeafToParams(), "numbers", "`with_params` of .* does not take the params of", "0.5", "0.001"),
    (wrong.Overstated(), "moments", "the variance of an entry", "0.0833", "0.125, to within"),
    (wrong.Uncalibrated(), "expectation", "another mean than 1 changes what a layer computes", "0.5", "1.0"),
    (wrong.NeverDrops(0.5), "moments", "the variance of an entry", "0", "1, to within"),
    (wrong.KeepsItsScale(0.5), "moments", "the mean of an entry", "0.5", "1, to within"),
    (wrong.SharedOverSamples(), "elementwise", "entries change when their words stand", "", ""),
    (wrong.CalibratedByBlock(), "elementwise", "entries change when", "", ""),
    (wrong.OwnGenerator(), "elementwise", "differs|change when|were made before", "", ""),
    (wrong.InfiniteAtTheEdge(), "entries", "an entry is not finite", "inf", "a finite float"),
    (wrong.FixedNumbers(), "numbers", "with the params of .* is not", "", ""),
    (wrong.NoisyAtRateZero(), "rate_zero", "entries at rate 0 are not 1", "0.99.* to 1.0", "1"),
    (wrong.SaysItIsGaussian(half_width=0.5), "normality", "a distance from the normal one", "0.0", "0, to within"),
    (wrong.Doubles(), "entries", "entries have another dtype", "float16", "float32"),
    (wrong.TakesAnything(), "bad_input", "half_width=nan is accepted", "nan", "that names `half_width`"),
    (wrong.Unhashable(), "identity", "is another noise|make unequal noises", "", ""),
]
NOT_SAVED = (wrong.Forgetful(0.25), "saving", "what is loaded is another noise", "0.5", "0.25")


@pytest.mark.parametrize(
    ("noise", "claim", "what", "observed", "claimed"),
    [*WRONG, pytest.param(*NOT_SAVED, marks=needs_keras)],
    ids=lambda v: type(v).__name__,
)
def test_a_wrong_noise_is_refused_by_name(noise, claim, what, observed, claimed):
    with pytest.raises(pnd.testing.Refused) as refused:
        pnd.testing.check_noise(noise, backends=[NAME], claims=[claim], examples=5)
    assert refused.value.report.broken == (claim,)
    (outcome,) = [o for o in refused.value.report.outcomes if o.finding]
    assert re.search(what, outcome.finding.what)
    assert re.search(observed, str(outcome.finding.observed))
    assert re.search(claimed, str(outcome.finding.claimed))


@pytest.mark.once
@pytest.mark.parametrize(
    ("noise", "claim", "what"), wrong.PLANTED, ids=[f"{n}-{row[1]}" for n, row in enumerate(wrong.PLANTED)]
)
def test_a_planted_fault_is_found_and_named_once(noise, claim, what):
    """By the claim that names it, and by none that stands before it or beside it."""
    wrong.SEEN.clear()
    quick = {"declaration", "identity", "rates", "bad_input", "entries", "elementwise", "numbers", "masks"}
    chosen = [name for name in claims.CLAIMS if name in quick | stands_on(claim) | {claim}]
    with pytest.raises(pnd.testing.Refused) as refused:
        pnd.testing.check_noise(noise, backends=["numpy"], claims=chosen, examples=5)
    assert refused.value.report.broken == (claim,)
    (outcome,) = [o for o in refused.value.report.outcomes if o.finding]
    assert re.search(what, outcome.finding.what)


def stands_on(claim):
    """All claims that one stands on."""
    needs = claims.CLAIMS[claim].needs
    return {*needs, *(name for need in needs for name in stands_on(need))}


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("noise", OTHERS[::5], ids=repr)
def test_a_right_noise_of_another_kind_passes(noise):
    """A fifth of them; benchmarks/noise_contract takes all, with random numbers too."""
    assert pnd.testing.check_noise(noise, backends=["numpy"], examples=3).broken == ()


@needs_keras
@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize(
    ("noise", "claim"), [row[:2] for row in (*WRONG[::3], NOT_SAVED)], ids=lambda v: type(v).__name__
)
def test_a_wrong_noise_is_refused_by_the_whole_contract(noise, claim):
    """One of three; that each claim finds its fault is told above, on every backend."""
    with pytest.raises(pnd.testing.Refused, match="is refused: ") as refused:
        pnd.testing.check_noise(noise, backends=["numpy"], examples=5)
    assert refused.value.report.broken == ("identity" if claim == "saving" else claim,), "a fault is named once"
    assert refused.value.report.held


@pytest.mark.skip_backend("numpy", reason="NumPy is the truth that others are compared with")
@pytest.mark.parametrize(
    ("noise", "broken"),
    [(wrong.UnequalBackends(), ("agreement",)), (wrong.NarrowBand(), ("everywhere",))],
    ids=lambda value: type(value).__name__,
)
def test_a_noise_that_differs_between_backends_is_refused(noise, broken):
    claims = ["entries", "agreement", "everywhere", "masks"]
    with pytest.raises(pnd.testing.Refused, match=f"{broken[0]}, on {NAME}: entries are not those of NumPy") as refused:
        pnd.testing.check_noise(noise, backends=BACKENDS, claims=claims, examples=3)
    assert refused.value.report.broken == broken


@pytest.mark.only_backend("jax", "tensorflow", reason="these trace, and refuse to decide on a traced value")
def test_a_noise_that_does_not_compile_is_refused():
    with pytest.raises(pnd.testing.Refused) as refused:
        pnd.testing.check_noise(wrong.BranchesOnValues(), backends=[NAME], claims=["entries", "compilation"])
    assert "compilation" in refused.value.report.broken


WRONG_MASKS = [
    (wrong.seed_plus_call, "independence", "the next call and the next seed"),
    (wrong.same_every_call, "independence", "calls .* apart are correlated"),
    (wrong.mirrored_samples, "independence", "samples .* apart are correlated"),
    (wrong.flattened, "blocks", "changes with what is around them"),
    (wrong.no_noise, "masks", "with sharing=None a mask is not the noise at its coordinates"),
    (wrong.half_the_rate, "masks", "with sharing=None a mask is not the noise at its coordinates"),
    (wrong.sharing_forgotten, "masks", "a mask is not the noise at its coordinates"),
    (wrong.offset_forgotten, "masks", "a mask is not the noise at its coordinates"),
    *((mask, "coordinates", "of shape .* is not the noise at its") for mask in wrong.REPEATING.values()),
    *((mask, "masks", "a mask is not the noise at its coordinates") for mask in wrong.OF_ANOTHER.values()),
]
NAMES = [*(row[0].__name__ for row in WRONG_MASKS[:8]), *wrong.REPEATING, *wrong.OF_ANOTHER]


@pytest.mark.once
@pytest.mark.parametrize(("sample_mask", "claim", "what"), WRONG_MASKS, ids=NAMES)
def test_a_wrong_mask_is_refused_by_name(sample_mask, claim, what):
    ops = wrong.Ops(sample_mask=sample_mask)
    with pytest.raises(pnd.testing.Refused, match=what):
        pnd.testing.check_noise(pnd.Bernoulli(0.5), backends=["numpy"], claims=[claim], ops=ops)


@pytest.mark.parametrize(
    "masked_dense",
    [wrong.product_of_another_seed, wrong.product_without_its_offset, wrong.product_that_divides_by_the_kernel],
)
def test_a_wrong_product_is_refused_by_name(masked_dense):
    ops = wrong.Ops(masked_dense=masked_dense)
    with pytest.raises(pnd.testing.Refused, match=f"product, on {NAME}: with method='recomputed' and sharing=None"):
        pnd.testing.check_noise(pnd.Bernoulli(0.5), backends=[NAME], claims=["product"], ops=ops)


@pytest.mark.once
@pytest.mark.parametrize(("axis", "period"), [(-1, 32), (-1, 64), (-2, 600), (-2, 1024), (-3, 16)])
def test_a_product_whose_mask_begins_anew_is_refused(axis, period):
    ops = wrong.Ops(masked_dense=wrong.repeating_product(axis, period))
    with pytest.raises(pnd.testing.Refused, match="product of blocks is not that with the mask"):
        check_one(claims.product, pnd.Uniform(0.5), ops)


def check_one(claim, noise, ops):
    """A claim with its own example, as a refusal."""
    pnd.testing.check_noise(noise, backends=["numpy"], claims=[claim.__name__], examples=1, ops=ops)


@pytest.mark.once
@pytest.mark.parametrize(
    "masked_dense",
    [
        wrong.product_without_its_offset,
        wrong.product_without_its_in_offset,
        wrong.product_of_the_offsets_exchanged,
        wrong.product_without_its_call,
        wrong.product_of_the_key_exchanged,
    ],
)
def test_the_first_example_tells_the_words_of_a_product_from_each_other(masked_dense):
    """Costly claims have one or two examples, and Hypothesis begins with the simplest."""
    with pytest.raises(pnd.testing.Refused, match="product of rows is not that with the mask"):
        check_one(claims.product, pnd.Bernoulli(0.5), wrong.Ops(masked_dense=masked_dense))


@pytest.mark.once
def test_the_first_example_of_a_far_mask_has_an_offset():
    with pytest.raises(pnd.testing.Refused, match="is not the noise at its coordinates"):
        check_one(claims.coordinates, pnd.Bernoulli(0.5), wrong.Ops(sample_mask=wrong.offset_forgotten))


def leaning(axis, lag, share):
    """Gaussian masks whose entries some way apart along an axis are correlated by `share`."""

    def sample_mask(noise, key, shape, **kwargs):
        mask = pnd.ops.sample_mask(noise, key, shape, **{**kwargs, "backend": "numpy"}) - 1
        return 1 + (share * np.roll(mask, lag, axis) + mask) / (1 + share**2) ** 0.5

    return sample_mask


@pytest.mark.once
@pytest.mark.parametrize(("axis", "lag"), [(0, 1), (1, 16), (2, 5), (3, 11)])
def test_a_correlation_is_found_at_every_lag_and_the_largest_is_named(axis, lag):
    ops = wrong.Ops(sample_mask=leaning(axis, lag, 0.05))
    name = ("samples", "times", "inputs", "outputs")[axis]
    with pytest.raises(pnd.testing.Refused, match=f"entries of {name} {lag} apart are correlated"):
        check_one(claims.independence, pnd.Gaussian(0.5), ops)


@pytest.mark.once
def test_pairs_are_those_so_far_apart_and_no_number_is_in_two():
    m = np.arange(7 * 6).reshape(7, 6).astype("float64")
    for shift in ({0: 2}, {1: 3}, {0: 1, 1: -1}, {0: 1, 1: 1}, {1: 5}):
        d0, d1 = shift.get(0, 0), shift.get(1, 0)
        lag, axis = (d0, 0) if d0 else (d1, 1)
        places = [(i, j) for i in range(7) for j in range(6) if i + d0 < 7 and 0 <= j + d1 < 6]
        for half, found in enumerate(claims._apart(m, shift, 1.0, 1.0)):
            first = [p for p in places if p[axis] // lag % 2 == half]
            second = [(i + d0, j + d1) for i, j in first]
            assert len(set(first + second)) == 2 * len(first) == 2 * found.size
            assert found.total == sum(m[a] * m[b] for a, b in zip(first, second, strict=True))


@pytest.mark.once
def test_floats_are_varied_and_nothing_else_and_what_is_refused_is_left_out():
    assert variation.other_numbers(Quantized(0.5, levels=4)) == {"size": (-0.5, 0.125, 0.25, 0.45, 0.55, 1.0)}
    assert {noise.levels for noise in variation.varied(Quantized(0.5, levels=4))} == {4}
    assert [noise.rate for noise in variation.varied(Middle(0.5))] == [0.25]
    assert [noise.rate for noise in variation.varied(pnd.Uniform(0.5))] == [r for r in variation.RATES if r != 0.5]
    assert [noise.half_width for noise in variation.varied(pnd.Uniform(half_width=1.0))] == [0.25, 0.5, 0.9, 1.1, 2.0]
    assert variation.varied(Power(0.0, 1.0))[:3] == [Power(-0.5, 1.0), Power(0.25, 1.0), Power(1.0, 1.0)]


def wrong_uniform(xp):
    """One bit more than the contract's, as float32 numbers of which the last rounds to 1."""
    return lambda x: (xp.float32(xp.bits24(x)) + 0.5) * 2**-24


def wrong_shift(xp):
    """An arithmetic shift, which copies the sign: wrong for words from 2**31."""
    right = xp.shift_right
    return lambda x, n: right(x, n) ^ (right(x, 31) * xp.word(2**31))


def wrong_recomputed(xp):
    """The right product, whose gradient forgets the mask."""

    def recomputed(x, w, grid):
        plain = xp.matmul(x, w)
        return plain + xp.stop_gradient(methods.materialized(x, w, grid, xp) - plain)

    return recomputed


def first_block_again(xp):
    """Every block has the mask of the first."""

    def recomputed(x, w, grid):
        def product(part, mask):
            return methods.forward_block(x[:, :, part], w[part], mask[:, : part.stop - part.start], xp)

        parts = list(methods.blocks(x, w, grid, xp))
        return sum(product(part, parts[0][1]) for part, _ in parts)

    return recomputed


WRONG_BACKENDS = [
    ("uniform", wrong_uniform, "agreement", "uniform numbers are not those of NumPy"),
    ("shift_right", wrong_shift, "agreement", "words are not those of NumPy"),
    ("recomputed", first_block_again, "product", "the product of blocks is not that with the mask"),
    ("recomputed", wrong_recomputed, "gradients", "the gradient of rows to x is not that of the mask"),
]


@pytest.mark.skip_backend("numpy", reason="NumPy is the truth that others are compared with")
@pytest.mark.parametrize(
    ("op", "made_wrong", "claim", "what"), WRONG_BACKENDS, ids=[row[1].__name__ for row in WRONG_BACKENDS]
)
def test_a_wrong_backend_is_refused_by_name(op, made_wrong, claim, what, monkeypatch):
    xp = backends.get(NAME)
    monkeypatch.setattr(xp, op, made_wrong(xp))
    monkeypatch.setattr(xp, "fused", lambda function: function)  # what was fused before has the right op
    kind = type("Fresh", (Steep,), {"__module__": __name__})  # nothing of it was compiled before
    with pytest.raises(pnd.testing.Refused, match=f"{claim}, on {NAME}: ") as refused:
        pnd.testing.check_noise(kind(0.5), backends=BACKENDS, claims=[claim])
    assert re.search(re.escape(what), str(refused.value))


def gradient_forgets_the_mask(method):
    """A method whose gradient is that of the plain product."""

    def changed(x, w, field, rows, in_, out, xp):
        plain = xp.matmul(x, w)
        return plain + xp.stop_gradient(method(x, w, field, rows, in_, out, xp) - plain)

    return changed


@needs_gradients
@pytest.mark.parametrize(
    ("method", "claim"),
    [("shared_over_in_or_out", "gradients"), ("local_reparameterization", "reparameterized_gradients")],
)
def test_a_wrong_gradient_is_refused_by_name(method, claim, monkeypatch):
    monkeypatch.setattr(methods, method, gradient_forgets_the_mask(getattr(methods, method)))
    monkeypatch.setattr(XP, "fused", lambda function: function)  # which JAX may have compiled with the right one
    ops = wrong.Ops()  # its own, so that nothing of it was compiled before
    with pytest.raises(pnd.testing.Refused, match=f"{claim}, on {NAME}: "):
        pnd.testing.check_noise(pnd.Gaussian(0.5), backends=[NAME], claims=[claim], ops=ops)


class Steep(pnd.Noise):
    """Mean 1, by a cube."""

    size: float = 0.5

    @property
    def variance(self):
        return self.size**2 * (1 / 7 - 1 / 16)

    def from_uniform(self, u, params, xp):
        return 1 + params["size"] * (u * u * u - 0.25)


@pytest.mark.once
@pytest.mark.parametrize(
    ("noise", "claim", "call"),
    [
        (wrong.InfiniteAtTheEdge(), "entries", "entries(InfiniteAtTheEdge(), 'numpy')"),
        (wrong.SaysItIsGaussian(0.5), "normality", "normality(SaysItIsGaussian(rate=0.5), 'numpy')"),
    ],
)
def test_the_example_of_a_report_repeats_the_finding(noise, claim, call):
    with pytest.raises(pnd.testing.Refused) as refused:
        pnd.testing.check_noise(noise, backends=["numpy"], claims=[claim])
    finding = refused.value.report.outcomes[0].finding
    assert finding.example == f"pnd.testing.claims.{call}"
    with pytest.raises(pnd.testing.Broken) as broken:
        eval(finding.example, {"pnd": pnd, **vars(wrong)})
    assert broken.value.what == finding.what


def test_the_example_of_one_of_the_librarys_noises_names_it():
    ops = wrong.Ops(sample_mask=wrong.no_noise)
    with pytest.raises(pnd.testing.Refused) as refused:
        pnd.testing.check_noise(pnd.Gaussian(0.5), backends=["numpy"], claims=["masks"], ops=ops)
    wanted = "pnd.testing.claims.masks(pnd.Gaussian(rate=0.5), 'numpy', ops=...)"
    assert refused.value.report.outcomes[0].finding.example == wanted


@pytest.mark.once
@pytest.mark.parametrize(
    "noise",
    [pnd.Gaussian(0.5), pnd.Gaussian(stddev=0.5), pnd.PartialGaussian(0.5, 2.0), wrong.Forgetful(0.25)],
    ids=repr,
)
def test_the_repeat_line_is_made_of_the_fields(noise):
    """Of Forgetful the config is that of another noise."""
    call = pnd.testing.search._call("moments", noise, (), {}, pnd.ops)
    again = eval(call.removeprefix("pnd.testing.claims.moments"), {"pnd": pnd, **vars(wrong)})
    assert vars(again) == vars(noise)


def test_an_error_of_a_noise_is_reported_with_its_example_and_what_xp_has():
    class Raises(pnd.Noise):
        variance = 1.0

        def from_uniform(self, u, params, xp):
            return xp.cosh(u)

    with pytest.raises(pnd.testing.Refused, match=r"Raises\(\) raises AttributeError\(.*cosh") as refused:
        pnd.testing.check_noise(Raises(), backends=["numpy"])
    assert refused.value.report.broken == ("entries",)
    finding = refused.value.report.outcomes[-1].finding
    assert finding.observed == "xp.cosh"
    assert "ops of `xp`: abs, sqrt, exp" in str(refused.value)
    assert "moments" in refused.value.report.skipped


@pytest.mark.once
def test_an_exact_noise_is_told_that_it_has_to_be_so():
    class Exactly(wrong.UniformAroundOne):
        exact = True

        def from_uniform(self, u, params, xp):
            return super().from_uniform(u + 1e-6 * (u.ndim - 1), params, xp)

    with pytest.raises(pnd.testing.Refused, match="samples do to the bit, since exact=True, first at"):
        pnd.testing.check_noise(Exactly(), backends=["numpy"], claims=["elementwise"])


REPORT = """\
Shifted(half_width=0.5) is refused: 1 claim does not hold.

moments, on numpy: the mean of an entry of Shifted(half_width=0.5) is not the declared one
    observed  1.02
    claimed   1, to within 2.6e-05
    repeat    pnd.testing.claims.moments(Shifted(half_width=0.5), 'numpy')

Held on numpy: entries.
Not tried, since they depend on what does not hold: normality.
Not applicable or not tried there: agreement."""


def test_a_report_reads_well():
    with pytest.raises(pnd.testing.Refused) as refused:
        pnd.testing.check_noise(
            wrong.Shifted(), backends=["numpy"], claims=["entries", "moments", "normality", "agreement"]
        )
    assert str(refused.value) == REPORT


@pytest.mark.once
def test_a_claim_about_other_kinds_is_not_searched_and_one_about_other_numbers_is():
    asked = []

    class Counted(Triangular):
        gaussian = property(lambda self: asked.append(self) or False)

    check = functools.partial(pnd.testing.check_noise, backends=["numpy"], claims=["reparameterization"], examples=4)
    assert check(Counted()).held == ()
    assert len(asked) < 10
    assert check(pnd.Gaussian(stddev=0.0)).held == ("reparameterization",)


def test_a_class_and_a_strategy_are_checked_too():
    quick = {"backends": ["numpy"], "claims": ["moments", "entries"], "examples": 3}
    assert pnd.testing.check_noise(pnd.Bernoulli, **quick).subject == "Bernoulli"
    assert pnd.testing.check_noise(Triangular, **quick).held == ("moments", "entries")
    assert pnd.testing.check_noise(
        st.builds(Triangular, st.floats(0, 1, width=32, allow_subnormal=False)), **quick
    ).held == ("moments", "entries")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"noise": 0.5},
            TypeError,
            "argument `noise`. Expected a pernodedrop.Noise, a subclass of it, or a Hypothesis",
        ),
        (
            {"noise": pnd.PartialGaussian},
            TypeError,
            "an instance, since rate, stddev of PartialGaussian have no default",
        ),
        ({"claims": ["moment"]}, ValueError, "Received: claims='moment' (did you mean 'moments'?)"),
        ({"backends": ["theano"]}, ValueError, "argument `backends`. Expected one of 'numpy'"),
        ({"examples": 0}, ValueError, "argument `examples`. Expected an int from 1"),
        ({"backends": []}, ValueError, "argument `backends`. Expected one name at least"),
        ({"backends": "numpy"}, TypeError, "Expected a list of names, such as ['numpy']. Received: backends='numpy'"),
        ({"claims": "moments"}, TypeError, "Expected a list of names, such as ['moments']"),
        ({"backends": 3}, TypeError, "argument `backends`. Expected a sequence of names"),
        ({"seed": None}, TypeError, "argument `seed`. Expected an int"),
        ({"progress": "no"}, TypeError, "argument `progress`. Expected True or False"),
        ({"noise": pnd.Noise}, TypeError, "Expected a pernodedrop.Noise, a subclass of it, or a Hypothesis strategy"),
        ({"noise": st.just(3)}, TypeError, "argument `noise`. Expected a strategy of noises. Received: noise=3"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        pnd.testing.check_noise(**{"noise": pnd.Bernoulli(0.5), **arguments})


class TestContract(pnd.testing.NoiseContract):
    noise = Triangular(0.25)
    backends = BACKENDS
    examples = 3


PYTEST_MODULE = """
import pernodedrop as pnd
from tests.wrong_noises import Shifted

class TestShifted(pnd.testing.NoiseContract):
    noise = Shifted()
    backends = ["numpy"]
    examples = 2
"""


@pytest.mark.slow
@needs_keras
@pytest.mark.once
def test_the_contract_class_fails_where_the_noise_does(tmp_path):
    (tmp_path / "test_shifted.py").write_text(PYTEST_MODULE)
    paths = os.pathsep.join(str(pathlib.Path(module.__file__).parent.parent) for module in (pnd, wrong))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shifted.py"]
    env = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "1 failed, 11 passed, 6 skipped" in done.stdout, done.stdout + done.stderr
    assert "moments, on numpy: the mean of an entry of Shifted(half_width=0.5) is not the declared one" in done.stdout
    assert "test_contract[expectation-numpy]" not in done.stdout


@pytest.mark.once
def test_integration_takes_every_uniform_number_once():
    seen = np.concatenate([words[0] for words in integration.chunks(Triangular())]) >> 9
    assert len(seen) == 2**23
    assert (np.bincount(seen, minlength=2**23) == 1).all()


@pytest.mark.once
def test_of_several_lanes_the_first_runs_through_all_numbers_and_the_others_are_independent():
    first, *others = np.concatenate(list(integration.chunks(Near(1.0))), axis=1)
    assert (np.bincount(first >> 10, minlength=2**22) == 1).all()
    difference = (others[0] - others[1]) >> 26  # modulo 2**32, in 64 equally likely parts
    wanted = 2**22 / 64
    chi_square = ((np.bincount(difference, minlength=64) - wanted) ** 2 / wanted).sum()
    assert chi_square < 140  # of 63 degrees of freedom: beyond with probability 1e-7, and the numbers are fixed


def test_moments_are_those_of_closed_forms():
    found = evaluate.moments(pnd.Bernoulli(0.75), NAME)
    assert found == (1, 3, 0.75 + 81 / 4, 3)
    found = evaluate.moments(Triangular(0.5), NAME)
    assert found.mean == pytest.approx(1, abs=1e-7)
    assert found.variance == pytest.approx(0.25 / 6, rel=1e-5)
    assert found.reach == pytest.approx(0.5, abs=1e-3)


@pytest.mark.once
def test_budgets_of_false_alarms_sum_to_their_share():
    assert sum(chance.spend(1e-6, n) for n in range(100_000)) == pytest.approx(1e-6, rel=1e-4)
    statistical = [claim for claim in claims.CLAIMS.values() if claim.statistical]
    assert len(statistical) * len(backends.NAMES) * pnd.testing.search.SHARE <= chance.ALARM


@pytest.mark.once
def test_bounds_hold_for_distributions_whose_tails_are_known():
    """The binomial distribution says how often a sum of n signs is beyond t; one uniform number is as simple."""
    from scipy import stats

    for n, alarm in ((10, 1e-2), (1000, 1e-3), (1000, 1e-9)):
        limit = chance.bernstein(n, 1, alarm)
        assert 2 * stats.binom.sf(np.ceil((n + limit) / 2) - 1, n, 0.5) <= alarm
        assert stats.kstwo.sf(chance.kolmogorov_bound(n, alarm), n) == pytest.approx(alarm)
    sample = np.random.default_rng(0).random(500)
    assert chance.kolmogorov(sample) == pytest.approx(stats.kstest(sample, "uniform").statistic)


def test_all_frameworks_of_the_development_environment_are_found():
    assert set(BACKENDS) <= set(installed_backends())

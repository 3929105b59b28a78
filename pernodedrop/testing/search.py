"""The search for an example that breaks a claim, by Hypothesis."""

import collections.abc
import dataclasses
import inspect
import typing

import hypothesis
from hypothesis import strategies as st
from tqdm import tqdm

import pernodedrop as pnd
from pernodedrop import checks
from pernodedrop.noise import Noise
from pernodedrop.testing import chance, frameworks
from pernodedrop.testing.claims import CLAIMS, has_rate
from pernodedrop.testing.report import Finding, Outcome, Refused, Report
from pernodedrop.testing.verdict import Broken

EXAMPLES = 20
STATISTICAL = [name for name, claim in CLAIMS.items() if claim.statistical]
SHARE = chance.ALARM / (len(STATISTICAL) * len(pnd.backends.NAMES))
"""What one search of a statistical claim may spend of a run's probability of a false alarm."""


def check_noise(
    noise: Noise | type[Noise] | st.SearchStrategy[Noise],
    *,
    backends: collections.abc.Iterable[str] | None = None,
    claims: collections.abc.Iterable[str] | None = None,
    examples: int = EXAMPLES,
    seed: int = 0,
    ops: typing.Any = pnd.ops,
    progress: bool = False,
) -> Report:
    """Prove or refute that a noise is what it claims to be, on every backend, in one process.

    Each claim of `pernodedrop.testing.claims` is tried on examples (words, keys, shapes, rates) that Hypothesis finds;
    one that does not hold is shrunk to a small example. Means and variances are integrated over all uniform numbers, so
    they are exact with one lane. The statistical claims refuse a right noise with a probability of 1e-6 a run at most,
    however many examples are tried.

    Args:
        noise: a `pernodedrop.Noise`, which is also tried at other rates if it has one; a subclass, tried with its
            defaults and rate 0.5; or a Hypothesis strategy of noises.
        backends: names of backends; None is all whose framework is installed.
        claims: names of claims, of `pernodedrop.testing.claims.CLAIMS`; None is all.
        examples: the most examples for a claim and backend, an int from 1; costly claims try fewer.
        seed: int, of the search: equal seeds try equal examples.
        ops: what is put to the test, in the place of `pernodedrop.ops`: an object with functions `sample_mask`,
            `masked_dense` and `random_bits` of the same arguments, for a kernel or a mask of your own.
        progress: whether to draw a progress bar (with tqdm).

    Returns:
        A `Report`, which prints what was tried.

    Raises:
        Refused: an AssertionError; its `report` says which claims do not hold, on which backend, what was observed and
            what is claimed, and has a line that repeats the smallest example. A claim that breaks on one backend is not
            tried on the others.
        TypeError, ValueError: an argument that is not as described. ImportError: a backend that is not installed.

    >>> import pernodedrop as pnd
    >>> class Shifted(pnd.Noise):
    ...     variance = 1 / 3
    ...     def from_uniform(self, u, params, xp):
    ...         return 2 * u + 0.02
    >>> try:
    ...     pnd.testing.check_noise(Shifted(), backends=["numpy"], claims=["moments", "entries"])
    ... except pnd.testing.Refused as refused:
    ...     print(refused.report.broken)
    ('moments',)
    """
    backends = tuple(frameworks.installed() if backends is None else backends)
    for backend in backends:
        pnd.backends.get(backend)
    claims = tuple(CLAIMS) if claims is None else tuple(checks.check_choice(c, "claims", tuple(CLAIMS)) for c in claims)
    checks.check_count(examples, "examples")
    noises = noises_of(noise)
    outcomes: list[Outcome] = []
    plan = [(c, place) for c in claims for place in places(CLAIMS[c], backends)]
    bar = tqdm(plan, unit="claim", leave=False, disable=not progress)
    for name, backend in bar:
        bar.set_description(" on ".join(filter(None, (name, backend))))
        if not any(o.claim == name and o.finding for o in outcomes):
            outcomes.append(search(name, backend, noises, examples=examples, seed=seed, ops=ops))
    omitted = tuple(c for c in claims if not places(CLAIMS[c], backends))
    report = Report(described(noise), backends, tuple(outcomes), omitted)
    if report.broken:
        raise Refused(report)
    return report


def noises_of(noise):
    """The strategy that an argument `noise` means."""
    if isinstance(noise, st.SearchStrategy):
        return noise
    noise = representative(noise)
    return st.one_of(st.just(noise), st.floats(0, 0.9).map(noise.with_rate)) if has_rate(noise) else st.just(noise)


def representative(noise):
    """One noise for an argument `noise`: itself, a class with its defaults and rate 0.5, an example of a strategy."""
    if isinstance(noise, st.SearchStrategy):
        return hypothesis.find(noise, lambda noise: noise.variance > 0, settings=hypothesis.settings(database=None))
    if isinstance(noise, type) and issubclass(noise, Noise):
        required = [f.name for f in dataclasses.fields(noise) if f.default is dataclasses.MISSING]
        if required not in ([], ["rate"]):
            expected = f"an instance, since {', '.join(required)} of {noise.__name__} have no default"
            raise TypeError(checks.invalid("noise", expected, noise))
        return noise(rate=0.5) if "rate" in noise.__dataclass_fields__ else noise()
    if not isinstance(noise, Noise):
        expected = "a pernodedrop.Noise, a subclass of it, or a Hypothesis strategy of noises"
        raise TypeError(checks.invalid("noise", expected, noise))
    return noise


def places(claim, backends):
    """Where a claim is tried: None for one about the noise itself."""
    if claim.of == "noise":
        return (None,)
    if claim.of == "other backend":
        return tuple(backend for backend in backends if backend != "numpy")
    if claim.of == "differentiable backend":
        return tuple(backend for backend in backends if backend in frameworks.DIFFERENTIABLE)
    return backends


def described(noise):
    """A noise, a class or a strategy as text."""
    return noise.__name__ if isinstance(noise, type) else repr(noise)


def search(name, backend, noises, *, examples=EXAMPLES, seed=0, ops=pnd.ops):
    """The `Outcome` of one claim on one backend.

    Args:
        name: of the claim.
        backend: name of the backend; None for a claim about the noise itself.
        noises: strategy of noises.
        examples, seed, ops: as for `check_noise`.
    """
    claim = CLAIMS[name]
    place = () if backend is None else (backend,)
    fixed = {"ops": ops} if "ops" in inspect.signature(claim.check).parameters else {}
    tried, broken = 0, None

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=min(examples, claim.most or examples),
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        print_blob=False,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(noises, st.fixed_dictionaries(claim.strategies))
    def run(noise, arguments):
        nonlocal tried, broken
        if claim.statistical:
            # every example has its part of the budget; what shrinks one that broke keeps the part of that one
            arguments = {**arguments, "alarm": chance.spend(SHARE, tried if broken is None else tried - 1)}
        try:
            if claim.made_of(noise):
                tried += broken is None
                claim.check(noise, *place, **arguments, **fixed)
        except Exception:
            broken = _call(name, noise, place, arguments)
            raise

    try:
        run()
    except hypothesis.errors.Flaky:
        what = "it breaks and it holds on one and the same example: it is no function of its words"
        return Outcome(name, backend, tried, Finding(what, None, None, broken))
    except Broken as error:
        return Outcome(name, backend, tried, Finding(error.what, error.observed, error.claimed, broken))
    except Exception as error:
        return Outcome(name, backend, tried, Finding(f"it raises {error!r}", None, None, broken))
    return Outcome(name, backend, tried, None)


def _call(name, noise, place, arguments):
    """The call that repeats an example, as text."""
    keywords = [f"{argument}={value!r}" for argument, value in arguments.items()]
    return f"pnd.testing.claims.{name}({', '.join([repr(noise), *map(repr, place), *keywords])})"

"""The search for an example that breaks a claim, by Hypothesis."""

import collections.abc
import dataclasses
import inspect
import operator
import typing

import hypothesis
from hypothesis import strategies as st
from tqdm import tqdm

from pernodedrop import backends as known
from pernodedrop import checks
from pernodedrop import ops as own_ops
from pernodedrop.noise import Noise
from pernodedrop.report.environment import installed_backends
from pernodedrop.testing import chance, frameworks
from pernodedrop.testing.claims import CLAIMS, RATES, at_rates
from pernodedrop.testing.report import Finding, Outcome, Refused, Report
from pernodedrop.testing.verdict import Broken

EXAMPLES = 20
SHARE = chance.ALARM / (sum(claim.statistical for claim in CLAIMS.values()) * len(known.NAMES))
"""What one search of a statistical claim may spend of a run's probability of a false alarm."""


def check_noise(
    noise: Noise | type[Noise] | st.SearchStrategy[Noise],
    *,
    backends: collections.abc.Iterable[str] | None = None,
    claims: collections.abc.Iterable[str] | None = None,
    examples: int = EXAMPLES,
    seed: int = 0,
    ops: typing.Any = own_ops,
    progress: bool = False,
) -> Report:
    """Prove or refute that a noise is what it claims to be, on every backend, in one process.

    Each claim of `pernodedrop.testing.claims` is tried on examples (words, keys, shapes, rates) that Hypothesis finds;
    one that does not hold is shrunk to a small example. Means and variances are integrated over all uniform numbers, so
    they are exact with one lane. The statistical claims refuse a right noise of one lane with a probability of 1e-6 a
    run at most, however many examples are tried.

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
        TypeError, ValueError: an argument that is not as described.
        ImportError: a backend that is not installed.

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
    backends = chosen_backends(backends)
    claims = _names(claims, "claims", tuple(CLAIMS), tuple(CLAIMS))
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


def chosen_backends(backends: collections.abc.Iterable[str] | None) -> tuple[str, ...]:
    """The backends that an argument `backends` means, all of which can be loaded."""
    names = _names(backends, "backends", installed_backends(), known.NAMES)
    for name in names:
        known.get(name)
    return names


def noises_of(noise):
    """The strategy that an argument `noise` means."""
    if isinstance(noise, st.SearchStrategy):
        return noise
    noise = representative(noise)
    others = st.floats(0, 0.9).map(lambda rate: at_rates(noise, [rate])).filter(bool).map(operator.itemgetter(0))
    return st.one_of(st.just(noise), others) if at_rates(noise, RATES) else st.just(noise)


def representative(noise):
    """One noise for an argument `noise`: itself, a class with its defaults and rate 0.5, an example of a strategy."""
    if isinstance(noise, st.SearchStrategy):
        return hypothesis.find(noise, lambda noise: noise.variance > 0, settings=hypothesis.settings(database=None))
    if isinstance(noise, type) and issubclass(noise, Noise) and noise is not Noise:
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


def search(name, backend, noises, *, examples=EXAMPLES, seed=0, ops=own_ops):
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
    tried, alarm, broken = 0, chance.ALARM, None

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
        nonlocal tried, alarm, broken
        if not isinstance(noise, Noise):
            raise TypeError(checks.invalid("noise", "a strategy of noises", noise))
        try:
            made = claim.made_of(noise)
            if made:
                if broken is None:  # what shrinks an example has the part of the budget that this one had
                    alarm = chance.spend(SHARE, tried)
                    tried += 1
                if claim.statistical:
                    arguments = {**arguments, "alarm": alarm}
                claim.check(noise, *place, **arguments, **fixed)
        except Exception:
            broken = _call(name, noise, place, arguments, ops)
            raise
        hypothesis.assume(made)

    try:
        run()
    except hypothesis.errors.Unsatisfiable:
        if tried or broken:
            raise
    except hypothesis.errors.Flaky:
        what = "it breaks and it holds on one and the same example: it is no function of its words"
        return Outcome(name, backend, tried, Finding(what, None, None, broken))
    except Broken as error:
        return Outcome(name, backend, tried, Finding(error.what, error.observed, error.claimed, broken))
    except Exception as error:
        if broken is None:
            raise  # no claim was tried: there is something wrong with the strategy
        return Outcome(name, backend, tried, Finding(f"it raises {error!r}", None, None, broken))
    return Outcome(name, backend, tried, None)


def _call(name, noise, place, arguments, ops):
    """The call that repeats an example, as text."""
    fields = ", ".join(f"{field}={value!r}" for field, value in noise.get_config().items())
    module = "pnd." if type(noise).__module__.startswith("pernodedrop.") else ""
    keywords = [f"{argument}={value!r}" for argument, value in arguments.items()]
    if ops is not own_ops:
        keywords.append("ops=...")
    positional = [f"{module}{type(noise).__name__}({fields})", *map(repr, place)]
    return f"pnd.testing.claims.{name}({', '.join([*positional, *keywords])})"


def _names(given: typing.Any, argument: str, default: tuple[str, ...], choices: tuple[str, ...]) -> tuple[str, ...]:
    """Names given as an argument, or the default."""
    if given is None:
        return default
    if isinstance(given, str):
        raise TypeError(checks.invalid(argument, f"a list of names, such as {[given]}", given))
    names = tuple(dict.fromkeys(checks.check_choice(name, argument, choices) for name in given))
    if not names:
        raise ValueError(checks.invalid(argument, "one name at least", given))
    return names

"""The search for an example that breaks a claim: at numbers that are always the same, then by Hypothesis.

A fault is named once: a claim is not tried where one does not hold that it stands on.
"""

import collections.abc
import dataclasses
import inspect
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
from pernodedrop.testing.claims import CLAIMS
from pernodedrop.testing.report import Finding, Outcome, Refused, Report
from pernodedrop.testing.variation import combinations, varied
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

    Each claim of `pernodedrop.testing.claims` is tried with the given numbers, with others in the place of each float
    of the noise, and on examples (words, keys, offsets, numbers) that Hypothesis finds; an example that breaks a claim
    is shrunk to a small one. Means and variances are integrated over all uniform numbers, so with one lane they are
    exact. The statistical claims refuse a correct noise of one lane with a probability of at most 1e-6 a run, however
    many examples are tried.

    Args:
        noise: a `pernodedrop.Noise`, which is also tried with other numbers unless it refuses them: rates from 0.001 to
            0.999, and each other float times -1 to 2; a subclass, tried with its defaults and rate 0.5; or a Hypothesis
            strategy of noises, which decides itself what numbers are tried.
        backends: names of backends; None is all whose framework is installed.
        claims: names of claims, of `pernodedrop.testing.claims.CLAIMS`; None is all.
        examples: the most examples for a claim and backend, an int from 1; costly claims try fewer.
        seed: int, of the search: equal seeds try equal examples.
        ops: what to test instead of `pernodedrop.ops`, such as a kernel or a mask of your own: an object with functions
            `sample_mask`, `masked_dense` and `random_bits` of the same arguments.
        progress: whether to draw a progress bar (with tqdm).

    Returns:
        A `Report`, which prints what was tried.

    Raises:
        Refused: an AssertionError; its `report` says which claims do not hold, on which backend, what was observed and
            what is claimed, with a line that repeats the smallest example. A claim that breaks on one backend is not
            tried on the others, nor are claims that depend on it.
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
    if checks.check_seed(seed) is None:
        raise TypeError(checks.invalid("seed", "an int", seed))
    progress = checks.check_bool(progress, "progress")
    noises = noises_of(noise)
    outcomes: list[Outcome] = []
    plan = [(c, place) for c in claims for place in places(CLAIMS[c], backends)]
    bar = tqdm(plan, unit="claim", leave=False, disable=not progress)
    for name, backend in bar:
        bar.set_description(" on ".join(filter(None, (name, backend))))
        if not wanting(name, outcomes):
            outcomes.append(search(name, backend, noises, examples=examples, seed=seed, ops=ops))
    tried = {o.claim for o in outcomes}
    omitted = tuple(c for c in claims if not places(CLAIMS[c], backends))
    skipped = tuple(c for c in claims if c not in tried and c not in omitted)
    report = Report(described(noise), backends, tuple(outcomes), omitted, skipped)
    if report.broken:
        raise Refused(report)
    return report


def chosen_backends(backends: collections.abc.Iterable[str] | None) -> tuple[str, ...]:
    """The backends that an argument `backends` means, all of which can be loaded."""
    names = _names(backends, "backends", installed_backends(), known.NAMES)
    for name in names:
        known.get(name)
    return names


class Noises(typing.NamedTuple):
    """What an argument `noise` means.

    Attributes:
        listed: noises that are tried in any case, the given one first; none if a strategy was given.
        strategy: of further ones.
    """

    listed: list[Noise]
    strategy: st.SearchStrategy[Noise]


def noises_of(noise):
    """The `Noises` that an argument `noise` means."""
    if isinstance(noise, st.SearchStrategy):
        return Noises([], noise)
    noise = representative(noise)
    return Noises([noise, *varied(noise)], st.just(noise) | combinations(noise))


def wanting(name, outcomes):
    """The claim that does not hold, of this one and those that it stands on, or None."""
    broken = {o.claim for o in outcomes if o.finding}
    return next((n for n in (name, *CLAIMS[name].needs) if n in broken or (n != name and wanting(n, outcomes))), None)


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
    if claim.of == "one backend":
        return backends[:1]
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
        noises: the `Noises` that it is tried with.
        examples, seed, ops: as for `check_noise`.
    """
    trial = _Trial(name, backend, ops)
    claim = CLAIMS[name]
    finding = None
    try:
        for noise in noises.listed if claim.most is None else ():
            trial(noise, {})
        if (claim.strategies or claim.most or not noises.listed) and trial.concerns(noises.listed):
            _by_hypothesis(trial, noises.strategy, min(examples, claim.most or examples), seed)
    except hypothesis.errors.Flaky:
        what = "it breaks and it holds on one and the same example: it is no function of its words"
        finding = Finding(what, None, None, trial.broken)
    except Broken as error:
        finding = Finding(error.what, error.observed, error.claimed, trial.broken)
    except Exception as error:
        if trial.broken is None:
            raise  # no claim was tried: there is something wrong with the strategy
        finding = Finding(f"{trial.noise!r} raises {error!r}", *_hint(error), trial.broken)
    return Outcome(name, backend, trial.tried, finding)


class _Trial:
    """A claim on a backend as a function of a noise and the other arguments, which says whether it is made of it.

    Attributes:
        tried: how many examples were tried, without those that only shrink one.
        broken: the call that repeats the last example that broke, as text; None before.
        noise: the noise that was tried last.
    """

    def __init__(self, name, backend, ops):
        self.claim = CLAIMS[name]
        self.name, self.ops = name, ops
        self.place = () if backend is None else (backend,)
        self.fixed = {"ops": ops} if "ops" in inspect.signature(self.claim.check).parameters else {}
        self.tried, self.alarm, self.broken, self.noise = 0, chance.ALARM, None, None

    def __call__(self, noise, arguments):
        if not isinstance(noise, Noise):
            raise TypeError(checks.invalid("noise", "a strategy of noises", noise))
        self.noise = noise
        try:
            made = self.claim.made_of(noise)
            if made:
                if self.broken is None:  # what shrinks an example has the part of the budget that this one had
                    self.alarm = chance.spend(SHARE, self.tried)
                    self.tried += 1
                if self.claim.statistical:
                    arguments = {**arguments, "alarm": self.alarm}
                self.claim.check(noise, *self.place, **arguments, **self.fixed)
        except Exception:
            self.broken = _call(self.name, noise, self.place, arguments, self.ops)
            raise
        return made

    def concerns(self, noises):
        """Whether the claim is made of one of these noises: if not, there is nothing to search."""
        return not noises or any(map(self._is_made_of, noises))

    def _is_made_of(self, noise):
        try:
            return self.claim.made_of(noise)
        except Exception:
            return True  # the search says what it raises


def _by_hypothesis(trial, noises, examples, seed):
    """Try examples that Hypothesis finds, and shrink one that breaks."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        print_blob=False,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(noises, st.fixed_dictionaries(trial.claim.strategies))
    def run(noise, arguments):
        hypothesis.assume(trial(noise, arguments))

    try:
        run()
    except hypothesis.errors.Unsatisfiable:
        if trial.broken:
            raise


def _hint(error):
    """What is observed and what is claimed, for an error that asks `xp` for what it has not."""
    space = getattr(error, "obj", None)
    if isinstance(error, AttributeError) and getattr(space, "__name__", "").startswith(f"{known.__name__}."):
        return f"xp.{error.name}", "ops of `xp`: " + ", ".join(known.NOISE_OPS)
    return None, None


def _call(name, noise, place, arguments, ops):
    """The call that repeats an example, as text."""
    fields = ", ".join(f"{field}={value!r}" for field, value in _fields(noise).items())
    module = "pnd." if type(noise).__module__.startswith("pernodedrop.") else ""
    keywords = [f"{argument}={value!r}" for argument, value in arguments.items()]
    if ops is not own_ops:
        keywords.append("ops=...")
    positional = [f"{module}{type(noise).__name__}({fields})", *map(repr, place)]
    return f"pnd.testing.claims.{name}({', '.join([*positional, *keywords])})"


def _fields(noise):
    """The fields that a noise is made of, without those that follow from others, as a scale does from a rate."""
    fields = {field.name: getattr(noise, field.name) for field in dataclasses.fields(noise) if field.init}
    fewer = ({name: fields[name] for name in fields if name != left} for left in reversed(fields))
    return next((some for some in (fields, *fewer) if _make_it(some, noise)), fields)


def _make_it(fields, noise):
    try:
        return vars(type(noise)(**fields)) == vars(noise)
    except Exception:
        return False


def _names(given: typing.Any, argument: str, default: tuple[str, ...], choices: tuple[str, ...]) -> tuple[str, ...]:
    """Names given as an argument, or the default."""
    if given is None:
        return default
    if isinstance(given, str):
        raise TypeError(checks.invalid(argument, f"a list of names, such as {[given]}", given))
    given = checks.check_tuple(given, argument, "names")
    names = tuple(dict.fromkeys(checks.check_choice(name, argument, choices) for name in given))
    if not names:
        raise ValueError(checks.invalid(argument, "one name at least", given))
    return names

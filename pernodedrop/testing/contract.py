"""The contract of a noise as a class of pytest tests."""

import collections.abc
import typing

from pernodedrop.testing.claims import CLAIMS
from pernodedrop.testing.report import Outcome, Refused, Report
from pernodedrop.testing.search import EXAMPLES, chosen_backends, described, noises_of, places, search, wanting


class NoiseContract:
    """Tests that a noise is what it claims to be: one test for each claim and backend.

    Derive a class whose name begins with "Test" and give it a noise; pytest does the rest.

    Attributes:
        noise: a `pernodedrop.Noise`, a subclass of it, or a Hypothesis strategy of noises.
        backends: names of backends; None is all whose framework is installed.
        examples: the most examples for a claim and backend.
        seed: of the search.

    >>> import pernodedrop as pnd
    >>> class TestMild(pnd.testing.NoiseContract):
    ...     noise = pnd.Uniform(half_width=0.1)
    """

    noise: typing.Any = None
    backends: collections.abc.Iterable[str] | None = None
    examples: int = EXAMPLES
    seed: int = 0
    outcomes: typing.ClassVar[list[Outcome]] = []  # of the tests that ran: a fault is named once

    def pytest_generate_tests(self, metafunc):
        """Make the tests: pytest calls this."""
        backends = chosen_backends(self.backends)
        metafunc.cls.outcomes = []
        plan = [(name, backend) for name, claim in CLAIMS.items() for backend in places(claim, backends)]
        ids = ["-".join(filter(None, row)) for row in plan]
        metafunc.parametrize(("claim", "backend"), plan, ids=ids)

    def test_contract(self, claim, backend):
        """One claim on one backend."""
        import pytest

        if broken := wanting(claim, self.outcomes):
            pytest.skip(f"{claim} stands on {broken}, which does not hold")
        outcome = search(claim, backend, noises_of(self.noise), examples=self.examples, seed=self.seed)
        self.outcomes.append(outcome)
        if outcome.finding:
            raise Refused(Report(described(self.noise), (backend,) if backend else (), (outcome,), ()))
        if not outcome.tried:
            pytest.skip(f"{claim} is not claimed of {described(self.noise)}")

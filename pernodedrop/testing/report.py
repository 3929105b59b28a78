"""What a search for broken claims found, as text for a person."""

import textwrap
import typing

WIDTH = 88


class Finding(typing.NamedTuple):
    """A claim that does not hold.

    Attributes:
        what: what was found.
        observed, claimed: the values that disagree; None where the noise raised an error instead.
        example: the smallest example found, a call of the claim that repeats it.
    """

    what: str
    observed: typing.Any
    claimed: typing.Any
    example: str


class Outcome(typing.NamedTuple):
    """A claim as tried on one backend.

    Attributes:
        claim: its name.
        backend: name of the backend, None for a claim about the noise itself.
        tried: how many examples; 0 where the claim does not concern the noise.
        finding: a `Finding`, or None where it held.
    """

    claim: str
    backend: str | None
    tried: int
    finding: Finding | None


class Report(typing.NamedTuple):
    """What `check_noise` returns, or a `Refused` carries.

    Attributes:
        subject: the noise, as text.
        backends: names of the backends that it was tried on.
        outcomes: an `Outcome` for each claim and backend that was tried.
        omitted: names of claims that were not tried because there is no backend for them.
        skipped: names of claims that were not tried because they depend on one that does not hold.
    """

    subject: str
    backends: tuple
    outcomes: tuple
    omitted: tuple
    skipped: tuple = ()

    @property
    def broken(self):
        """Names of the claims that do not hold, in order."""
        return tuple(dict.fromkeys(o.claim for o in self.outcomes if o.finding))

    @property
    def held(self):
        """Names of the claims that hold on every backend that they were tried on."""
        tried = dict.fromkeys(o.claim for o in self.outcomes if o.tried)
        return tuple(name for name in tried if name not in self.broken)

    def __str__(self):
        places = _listed(self.backends)
        unmade = dict.fromkeys(o.claim for o in self.outcomes if not o.tried)
        lines = []
        if self.broken:
            lines += [f"{self.subject} is refused: {_counted(self.broken)} not hold.", ""]
            lines += [line for o in self.outcomes if o.finding for line in _paragraph(o)]
            lines += [_wrapped(f"Held on {places}: {_listed(self.held) or 'none'}.")]
            if self.skipped:
                why = "since they depend on a claim that does not hold"
                lines += [_wrapped(f"Not tried, {why}: {_listed(self.skipped)}.")]
        else:
            hold = "1 claim holds" if len(self.held) == 1 else f"{len(self.held)} claims hold"
            lines += [f"{self.subject}: {hold} on {places}."]
        unmade = [name for name in [*unmade, *self.omitted] if name not in self.held + self.broken]
        if unmade:
            lines += [_wrapped(f"Not applicable or not tried there: {_listed(unmade)}.")]
        return "\n".join(lines)


class Refused(AssertionError):  # noqa: N818 - a noise that is refused is a result, like a test that fails
    """A noise does not keep its contract.

    Args:
        report: the `Report`, which is also the message.
    """

    def __init__(self, report):
        super().__init__(str(report))
        self.report = report


def _paragraph(outcome):
    finding = outcome.finding
    place = f", on {outcome.backend}" if outcome.backend else ""
    yield f"{outcome.claim}{place}: {finding.what}"
    if finding.claimed is not None:
        yield f"    observed  {finding.observed}"
        yield f"    claimed   {finding.claimed}"
    yield f"    repeat    {finding.example}"
    yield ""


def _counted(names):
    return "1 claim does" if len(names) == 1 else f"{len(names)} claims do"


def _listed(names):
    return ", ".join(names)


def _wrapped(line):
    return textwrap.fill(line, WIDTH, subsequent_indent="    ")

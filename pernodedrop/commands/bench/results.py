"""The file of a run: what was measured, where, and what to go on from."""

from pernodedrop.report.results import Results


class Figures(Results):
    """Times, peaks of memory and steps of the network, and the rates of the machine that `limits.measure` gives."""

    facts = ("rates",)
    kinds = ("times", "memory", "networks")

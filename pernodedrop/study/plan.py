"""What a study has to run: pure functions from its design, and from what is known already, to lists of trials.

A trial is a dict of plain values, the same that a record of it begins with: study, stage, variant, rate, seed, settings
and backend. They are what tells it from every other trial, and all that it takes to run it again.
"""

import collections.abc
import dataclasses
import itertools
import json
import math
import statistics
import typing

SELECT, CONFIRM, GRID = "select", "confirm", "grid"

STAGES = {"sound": (SELECT, CONFIRM), "paper": (GRID,)}
"""The stages of each protocol, in order."""

FRESH = 1000
"""The first seed of the confirmation; those before it select."""

IDENTITY = ("study", "stage", "variant", "rate", "seed", "settings", "backend")

Trial: typing.TypeAlias = dict[str, typing.Any]
Records: typing.TypeAlias = collections.abc.Iterable[Trial]


@dataclasses.dataclass(frozen=True)
class Design:
    """What is to be compared, as plain values.

    Args:
        study: the name of the study.
        variants: from the name of each variant to whether it has a rate.
        rates: those that are tried.
        search: from the name of a setting to the values that are tried, each with each.
        settings: what is the same in all trials.
        select_seeds: how many seeds select.
        seeds: how many fresh seeds confirm, or how many the grid has.
        backend: the backend of Keras: figures of two are not compared.
        protocol: "sound" or "paper".
    """

    study: str
    variants: dict[str, bool]
    rates: tuple[float, ...]
    search: dict[str, tuple[typing.Any, ...]]
    settings: dict[str, typing.Any]
    select_seeds: int
    seeds: int
    backend: str
    protocol: str = "sound"

    def trial(
        self, stage: str, variant: str, rate: float | None, seed: int, searched: dict[str, typing.Any] | None = None
    ) -> Trial:
        """One trial."""
        return {
            "study": self.study,
            "stage": stage,
            "variant": variant,
            "rate": rate,
            "seed": seed,
            "settings": {**self.settings, **(searched or {})},
            "backend": self.backend,
        }


def key(trial: Trial) -> str:
    """What tells a trial, or the record of one, from all others."""
    return json.dumps([trial[name] for name in IDENTITY], sort_keys=True)


def plan(design: Design, stage: str, records: Records = ()) -> list[Trial]:
    """The trials of a stage, seed by seed, so that whatever has finished first is a fair comparison.

    Args:
        design: of the study.
        stage: "select", "confirm" or "grid".
        records: of trials that have finished; the confirmation asks those of the selection.

    Raises:
        LookupError: a confirmation before the selection has finished.
    """
    if stage == CONFIRM:
        chosen = [(variant, best["rate"], best["settings"]) for variant, best in selected(design, records).items()]
        seeds = range(FRESH, FRESH + design.seeds)
        return [design.trial(stage, *one[:2], seed, one[2]) for seed in seeds for one in chosen]
    count = design.select_seeds if stage == SELECT else design.seeds
    return [
        design.trial(stage, variant, rate, seed, searched)
        for seed in range(count)
        for searched in _combinations(design.search)
        for variant, has_rate in design.variants.items()
        for rate in (design.rates if has_rate else (None,))
    ]


def selected(design: Design, records: Records) -> dict[str, Trial]:
    """For each variant the trial, of the first seed, whose settings have the least validation loss on the average.

    Of each record it is the loss of the best epoch. The first one planned wins a tie, the lowest rate among equals.

    Raises:
        LookupError: a trial of the selection has no record.
    """
    known = {key(record): best_loss(record) for record in records}
    losses: dict[str, dict[str, tuple[Trial, list[float]]]] = {}
    for trial in plan(design, SELECT):
        if key(trial) not in known:
            raise LookupError(f"the selection of {design.study!r} has not finished: no record of {trial}")
        what = json.dumps([trial["rate"], trial["settings"]], sort_keys=True)
        of_variant = losses.setdefault(trial["variant"], {})
        of_variant.setdefault(what, (trial, []))[1].append(known[key(trial)])
    return {
        variant: min(candidates.values(), key=lambda one: statistics.fmean(one[1]))[0]
        for variant, candidates in losses.items()
    }


def belonging(design: Design, records: Records) -> list[Trial]:
    """Those of the records that are of this design, with any seeds."""
    first, *_ = stages = STAGES[design.protocol]
    once = dataclasses.replace(design, select_seeds=1, seeds=1)
    keys = {key(_of_no_seed(trial)) for trial in plan(once, first)}
    return [record for record in records if record["stage"] in stages and key(_of_no_seed(record)) in keys]


def _of_no_seed(trial: Trial) -> Trial:
    return {**trial, "seed": None, "stage": None}


def best_loss(record: Trial) -> float:
    """The least validation loss of a record; infinite if it has none that is a number."""
    losses = [epoch["val_loss"] for epoch in record["epochs"]]
    return min((loss for loss in losses if math.isfinite(loss)), default=math.inf)


def _combinations(search: dict[str, tuple[typing.Any, ...]]) -> list[dict[str, typing.Any]]:
    return [dict(zip(search, values, strict=True)) for values in itertools.product(*search.values())]

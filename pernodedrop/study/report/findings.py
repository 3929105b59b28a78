"""What records say: arms, comparisons and costs, worked out once for words, tables and figures."""

import collections.abc
import dataclasses
import functools
import math
import statistics as plain
import typing

from pernodedrop.report.environment import describe
from pernodedrop.study import statistics
from pernodedrop.study.statistics import Arm, Comparison, Concordance, Record

BASELINES = ("dropout", "none")
FIRST = 3
"""How many choices of settings of a variant are shown."""


class Selected(typing.NamedTuple):
    """A choice of rate and settings, and what the stage that tries them found: means over its seeds.

    Attributes:
        arm: the records.
        loss, train_loss: of the epoch with the least validation loss.
        epoch: that epoch, from 1.
    """

    arm: Arm
    loss: float
    train_loss: float
    epoch: float


@dataclasses.dataclass(frozen=True)
class Findings:
    """What the records of one study say.

    Attributes:
        records: of one study, at least one.
        titles: from names of variants to what readers see.
        data: the title of the data.
        references: the variants that all others are compared with, as far as they are there.
    """

    records: list[Record]
    titles: collections.abc.Mapping[str, str]
    data: str
    references: tuple[str, ...] = BASELINES

    @property
    def study(self) -> str:
        """The name of the study."""
        return str(self.records[0]["study"])

    def title(self, variant: str) -> str:
        """What readers see of the name of a variant."""
        usual = "no regularizer" if variant == "none" else variant.replace("_", " ")
        return self.titles.get(variant, usual)

    @functools.cached_property
    def variants(self) -> list[str]:
        """All variants, in the order in which they come, the baselines first."""
        found = list(dict.fromkeys(record["variant"] for record in self.records))
        first = [name for name in reversed(self.references) if name in found]
        return first + [name for name in found if name not in first]

    @functools.cached_property
    def environments(self) -> list[str]:
        """The machines and versions, each once."""
        return list(dict.fromkeys(describe(record["environment"]) for record in self.records))

    @functools.cached_property
    def confirmed(self) -> dict[str, Arm]:
        """The confirmed arm of each variant."""
        found = statistics.confirmed(self.records)
        return {name: found[name] for name in self.variants if name in found}

    @functools.cached_property
    def left_out(self) -> int:
        """How many confirming records are of settings that were selected for a time and are no more."""
        every = sum(record["stage"] == "confirm" for record in self.records)
        return every - sum(len(arm.records) for arm in self.confirmed.values())

    @functools.cached_property
    def seeds(self) -> list[statistics.Block]:
        """The seeds that all confirmed variants have."""
        sets = [set(arm.values("loss")) for arm in self.confirmed.values()]
        return sorted(set.intersection(*sets)) if sets else []

    @functools.cached_property
    def metrics(self) -> list[str]:
        """The names of what the test set was evaluated by, beside the loss."""
        found = (record["test"] for record in self.records if record.get("test"))
        return [name for name in next(found, {}) if name != "loss"]

    @functools.cached_property
    def baselines(self) -> list[str]:
        """The baselines that are confirmed."""
        return [name for name in self.references if name in self.confirmed]

    def compare(self, baseline: str, figure: str = "loss") -> list[Comparison]:
        """The confirmed variants against a baseline."""
        return statistics.compare({name: arm.values(figure) for name, arm in self.confirmed.items()}, baseline)

    @functools.cached_property
    def comparisons(self) -> dict[str, dict[str, Comparison]]:
        """From each baseline to those of the test loss, by variant."""
        return {base: {one.variant: one for one in self.compare(base)} for base in self.baselines}

    def mean(self, variant: str, figure: str) -> tuple[float, float | None]:
        """The mean and the standard deviation of a figure of the test set, over the seeds that all variants have."""
        values = self.confirmed[variant].values(figure)
        found = [values[seed] for seed in self.seeds or values]
        known = len(found) > 1 and all(map(math.isfinite, found))
        return sum(found) / len(found), plain.stdev(found) if known else None

    @property
    def searching(self) -> str:
        """The stage that tries settings: "grid" if there is one, else "select"."""
        return "grid" if any(record["stage"] == "grid" for record in self.records) else "select"

    @functools.cached_property
    def selected(self) -> dict[str, list[Selected]]:
        """From each variant to its choices of settings, the best one first."""
        found: dict[str, list[Selected]] = {name: [] for name in self.variants}
        for arm in statistics.arms(self.records, self.searching):
            best = [record["epochs"][record["best_epoch"]] for record in arm.records]
            epoch = plain.fmean(record["best_epoch"] + 1 for record in arm.records)
            loss, train_loss = (sum(one[name] for one in best) / len(best) for name in ("val_loss", "train_loss"))
            found[arm.variant].append(Selected(arm, loss, train_loss, epoch))
        return {name: sorted(own, key=lambda one: rank(one.loss)) for name, own in found.items() if own}

    @functools.cached_property
    def varied(self) -> list[str]:
        """The settings that differ between records."""
        names = dict.fromkeys(name for record in self.records for name in record["settings"])
        return [name for name in names if len({repr(one["settings"].get(name)) for one in self.records}) > 1]

    def choice(self, arm: Arm) -> list[str]:
        """The rate of an arm, if it has one, and those of its settings that differ between records."""
        rate = [] if arm.rate is None else [f"{arm.rate:g}"]
        return rate + [f"{name} {arm.settings[name]}" for name in self.varied if name in arm.settings]

    def settings(self, arm: Arm) -> str:
        """The choice of an arm as text."""
        return ", ".join(self.choice(arm)) or "-"

    @functools.cached_property
    def seconds(self) -> dict[str, float]:
        """From each variant to the median of its seconds per epoch, each backend and machine apart from others.

        Only records like the last one are taken: figures of two machines cannot be compared.
        """
        like = self.records[-1]["environment"]
        found: dict[str, list[float]] = {name: [] for name in self.variants}
        for record in self.records:
            if record["environment"] == like:
                found[record["variant"]].append(record["seconds_per_epoch"])
        return {name: plain.median(own) for name, own in found.items() if own}

    @functools.cached_property
    def concordance(self) -> Concordance | None:
        """The paper's analysis of the stage that tries settings; None below three variants with five records."""
        runs: dict[str, list[list[float]]] = {name: [] for name in self.variants}
        for record in self.records:
            if record["stage"] == self.searching:
                losses = [epoch["val_loss"] for epoch in record["epochs"]]
                runs[record["variant"]].append([loss for loss in losses if math.isfinite(loss)])
        runs = {name: own for name, own in runs.items() if sum(map(len, own)) >= 5}
        return statistics.concordance(runs) if len(runs) > 2 else None

    def runs(self, variant: str) -> list[Record]:
        """The records whose learning curves are shown: those of the confirmed arm, else of the best choice."""
        if variant in self.confirmed:
            return self.confirmed[variant].records
        return self.selected[variant][0].arm.records if variant in self.selected else []


def rank(loss: float) -> float:
    """A loss to sort by: what is no number comes last."""
    return loss if math.isfinite(loss) else math.inf

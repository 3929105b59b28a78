"""All studies at a glance: what each regularizer does to the test loss, by task.

python benchmarks/studies/overview.py    writes overview.md and overview.png
"""

import json
import os
import pathlib

os.environ.setdefault("KERAS_BACKEND", "jax")

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pernodedrop.report import figures
from pernodedrop.report.table import as_markdown
from pernodedrop.study import statistics, variants
from pernodedrop.study.report.findings import Findings

FOLDER = pathlib.Path(__file__).parent
TASKS = {
    "cifar10": "CIFAR-10",
    "rcv1": "news (RCV1)",
    "speech": "spoken words",
    "mnist": "MNIST",
    "mnist_ddc": "MNIST, 12 epochs",
    "cifar10_ddc": "CIFAR-10, two layers",
    "digits": "digits",
    "digits_hidden": "digits, hidden",
    "transformer": "digits, transformer",
    "resnet": "digits, ResNet",
    "ddc_plane": "a surface",
}
"""From the studies that compare regularizers to what readers call them, as far as they have finished."""

FAMILIES = (
    "In each column Holm's correction multiplies the smallest p by the number of comparisons, the next by one less,\n"
    "and so on. So one pair, Dropout and no regularizer, may differ beyond chance in one table and tie in the other,\n"
    "by the same losses.\n"
)

SIGNS = {"less": "lower", "more": "higher"}
ABREAST = 3  # panels, at whose size their text is read on a page of 640 pixels
COLOURS = {"less": figures.GREEN, "more": figures.ORANGE}


def finished():
    """The findings of each study whose report is committed, by task."""
    for name, task in TASKS.items():
        if (FOLDER / name / "report.md").exists():
            lines = (FOLDER / name / "records.jsonl").read_text(encoding="utf-8").splitlines()
            yield task, Findings([json.loads(line) for line in lines], {}, task)


def share(found, base, variant):
    """A difference and its interval, in per cent of the baseline's loss, and the verdict; None if there is none."""
    comparison = found.comparisons[base].get(variant)
    if comparison is None or comparison.interval is None:
        return None
    scale = 100 / found.mean(base, "loss")[0]
    return comparison.difference * scale, [end * scale for end in comparison.interval], comparison.verdict


def cell(found, base, variant):
    """A difference as text."""
    known = share(found, base, variant)
    return "" if known is None else told(known[0], found.comparisons[base][variant])


def told(percent, comparison):
    """A difference in per cent, and whether it is beyond chance."""
    text = f"{percent:+.1f}\N{NO-BREAK SPACE}%".replace("-", "−")
    return f"**{text}** {SIGNS[comparison.verdict]}" if comparison.verdict in SIGNS else f"{text} tie"


def rows(studies, base):
    """What is compared with a baseline in any study, in the registry's order, as (name, title)."""
    names = [name for name in variants.names() if name not in (base, "none_2")]
    return [
        (name, variants.get(name).title) for name in names if any(name in one.confirmed for one in studies.values())
    ]


def table(studies, base):
    """A row for each regularizer, a column for each task."""
    lines = [["regularizer", *studies]]
    for name, title in rows(studies, base):
        lines.append([title, *(cell(found, base, name) for found in studies.values())])
    return as_markdown(lines)


def rates(studies):
    """The rate that each study selected, a row for each regularizer, a column for each task."""
    lines = [["regularizer", *studies]]
    for name, title in rows(studies, "none"):
        arms = [found.confirmed.get(name) for found in studies.values()]
        lines.append([title, *("" if arm is None or arm.rate is None else f"{arm.rate:g}" for arm in arms)])
    return as_markdown(line for line in lines if any(line[1:]))


def ends(studies):
    """What is left of the differences to no regularizer where nobody stops in time: losses of the last epoch."""
    last = {
        task: {name: {run["seed"]: run["epochs"][-1]["val_loss"] for run in arm.records} for name, arm in found.items()}
        for task, found in ((task, found.confirmed) for task, found in studies.items())
    }
    beside = {task: {one.variant: one for one in statistics.compare(runs, "none")} for task, runs in last.items()}
    lines = [["regularizer", *studies], ["no regularizer, beside its best epoch", *map(overtrained, studies.values())]]
    for name, title in rows(studies, "none"):
        known = [comparisons.get(name) for comparisons in beside.values()]
        lines.append([title, *("" if one is None else told(100 * one.difference / one.means[1], one) for one in known)])
    return as_markdown(lines)


def overtrained(found):
    """How much higher the last validation loss is than the least one, without a regularizer."""
    runs = [[epoch["val_loss"] for epoch in run["epochs"]] for run in found.confirmed["none"].records]
    return f"{100 * (sum(run[-1] for run in runs) / sum(map(min, runs)) - 1):+.1f}\N{NO-BREAK SPACE}%"


def chart(studies, base="none"):
    """A panel for each task, a line for each regularizer; filled where the difference is beyond chance."""
    shown = rows(studies, base)
    lines = -(-len(studies) // ABREAST)
    figure = Figure(figsize=(6.4, lines * (0.2 * len(shown) + 0.5) + 0.3), layout="constrained")
    panels = figure.subplots(lines, ABREAST, sharey=True, squeeze=False).ravel()
    for axes in panels[len(studies) :]:
        axes.set_visible(False)
    for axes, (task, found) in zip(panels, studies.items(), strict=False):
        for place, (name, _) in enumerate(shown):
            if known := share(found, base, name):
                mean, (low, high), verdict = known
                look = {"color": COLOURS.get(verdict, figures.GREY), "ms": 5, "lw": 1.6, "capsize": 2}
                axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", **look)
        axes.axvline(0, color=figures.BLACK, lw=1)
        axes.set_title(task, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="x", color=figures.GREY, alpha=0.25, lw=0.7)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(shown)), [title for _, title in shown])
    panels[0].set_ylim(len(shown) - 0.4, -0.6)
    figure.supxlabel("test loss beside that of no regularizer, % (left: better; grey: a tie)", fontsize=9)
    return figure


def text(studies):
    """The tables of both baselines, and of rates."""
    parts = []
    for base, title in (("none", "no regularizer"), ("dropout", "Dropout at its best rate")):
        parts.append(
            f"Test loss of each regularizer against {title}, in per cent of its loss:\n\n{table(studies, base)}\n"
        )
    parts.append(FAMILIES)
    parts.append(f"Validation loss at the last epoch against no regularizer there, in per cent:\n\n{ends(studies)}\n")
    parts.append(f"Rates that the studies selected on validation data:\n\n{rates(studies)}\n")
    return "\n".join(parts)


def main():
    """Write the tables and the figure."""
    studies = dict(finished())
    (FOLDER / "overview.md").write_text(text(studies), encoding="utf-8")
    with mpl.rc_context({"font.size": 9}):
        figure = chart(studies)
        figures.save(figure, FOLDER / "overview.png")


if __name__ == "__main__":
    main()

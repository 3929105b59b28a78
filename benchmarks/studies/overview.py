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
from pernodedrop.study import variants
from pernodedrop.study.report.findings import Findings

FOLDER = pathlib.Path(__file__).parent
TASKS = {
    "cifar10": "CIFAR-10",
    "rcv1": "news (RCV1)",
    "speech": "spoken words",
    "mnist_ddc": "MNIST",
    "digits": "digits",
    "transformer": "digits, transformer",
    "resnet": "digits, ResNet",
    "ddc_plane": "a surface",
}
"""From the studies that compare regularizers to what readers call them, as far as they have finished."""

SIGNS = {"less": "lower", "more": "higher"}


def finished():
    """The findings of each study whose report is committed, by task."""
    titles = {name: variants.get(name).title for name in variants.names()}
    for name, task in TASKS.items():
        if (FOLDER / name / "report.md").exists():
            lines = (FOLDER / name / "records.jsonl").read_text(encoding="utf-8").splitlines()
            yield task, Findings([json.loads(line) for line in lines], titles, task)


def share(found, comparison):
    """A difference, and its interval, in per cent of the baseline's loss."""
    scale = 100 / found.mean(comparison.baseline, "loss")[0]
    return comparison.difference * scale, [end * scale for end in comparison.interval]


def cell(found, base, variant):
    """A difference as text."""
    if variant == base:
        return "-"
    comparison = found.comparisons[base].get(variant)
    if comparison is None or comparison.interval is None:
        return ""
    text = f"{share(found, comparison)[0]:+.1f} %".replace("-", "−")
    return f"**{text}** {SIGNS[comparison.verdict]}" if comparison.verdict in SIGNS else f"{text} tie"


def rows(studies):
    """The variants of any study, in the registry's order."""
    return [name for name in variants.names() if any(name in found.confirmed for found in studies.values())]


def table(studies, base):
    """A row for each regularizer, a column for each task."""
    lines = [["regularizer", *studies]]
    for name in rows(studies):
        if name not in (base, "none_2"):
            lines.append(
                [next(iter(studies.values())).title(name), *(cell(one, base, name) for one in studies.values())]
            )
    return as_markdown(lines)


def chart(studies, base="none"):
    """A panel for each task, a line for each regularizer; filled where the difference is beyond chance."""
    names = [name for name in rows(studies) if name not in (base, "none_2")]
    figure = Figure(figsize=(2.2 + 1.9 * len(studies), 0.3 * len(names) + 1.0), layout="constrained")
    panels = figure.subplots(1, len(studies), sharey=True, squeeze=False)[0]
    for axes, (task, found) in zip(panels, studies.items(), strict=True):
        for place, name in enumerate(names):
            comparison = found.comparisons[base].get(name)
            if comparison is None or comparison.interval is None:
                continue
            mean, (low, high) = share(found, comparison)
            colour = {"less": figures.GREEN, "more": figures.ORANGE}.get(comparison.verdict, figures.GREY)
            axes.errorbar(
                mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=colour, ms=5, lw=1.6, capsize=2
            )
        axes.axvline(0, color=figures.BLACK, lw=1)
        axes.set_title(task, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="x", color=figures.GREY, alpha=0.25, lw=0.7)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(names)), [next(iter(studies.values())).title(name) for name in names])
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    figure.supxlabel("test loss beside that of no regularizer, % (left: better; grey: a tie)", fontsize=9)
    return figure


def text(studies):
    """The tables of both baselines."""
    parts = []
    for base, title in (("none", "no regularizer"), ("dropout", "Dropout at its best rate")):
        parts.append(
            f"Test loss of each regularizer against {title}, in per cent of its loss:\n\n{table(studies, base)}\n"
        )
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

"""What is found as tables: lists of text, a header first."""

import csv
import pathlib
import re
import typing

from pernodedrop.report.table import Lines
from pernodedrop.study import statistics
from pernodedrop.study.report import published
from pernodedrop.study.report.findings import FIRST, Findings, rank
from pernodedrop.study.report.verdict import number, p_value, signed


class Table(typing.NamedTuple):
    """A table with its name as a file, its title, what it shows, and its lines."""

    name: str
    title: str
    note: str
    lines: list[list[str]]


def tables(found: Findings) -> list[Table]:
    """All tables that there are records for."""
    every = [confirmed(found), *(compared(found, base) for base in found.baselines), selected(found), cost(found)]
    return [table for table in [*every, paper(found)] if table and len(table.lines) > 1]


def confirmed(found: Findings) -> Table:
    """The test set, by variant, the least loss first."""
    beside = published.ACCURACIES.get(found.study)
    header = ["variant", "rate", "seeds", "test loss ± sd", *(f"test {name} ± sd" for name in found.metrics)]
    lines = [header + (["published accuracy"] if beside else [])]
    for name in sorted(found.confirmed, key=lambda name: rank(found.mean(name, "loss")[0])):
        arm = found.confirmed[name]
        figures = [spread(*found.mean(name, figure)) for figure in ("loss", *found.metrics)]
        known = [f"{beside[name]:.4f}" if name in beside else "-"] if beside else []
        lines.append([found.title(name), found.settings(arm), str(len(arm.values("loss"))), *figures, *known])
    note = (
        "Fresh seeds, the settings selected before, and a test set that selection never saw, at the epoch with the "
        f"least validation loss. Means over the {len(found.seeds)} seeds that all variants have."
    )
    return Table("confirmed", "Confirmed on the test set", note, lines)


def compared(found: Findings, base: str) -> Table:
    """Differences to a baseline."""
    other = found.title(base)
    header = ["variant", "seeds", "difference", "95 % interval", "p (t, Holm)", "p (t)", "p (sign flips)", "detectable"]
    words = {"less": "lower", "more": "higher", "tie": "tie", "failed": "no finite loss", "unknown": "too few seeds"}
    lines = [[*header, "verdict"]]
    for name, one in found.comparisons[base].items():
        figures = ["-"] * 2 + [p_value(p) for p in (one.p_holm, one.p_t, one.p_flip)] + ["-"]
        if one.difference is not None:
            figures[0] = signed(one.difference)
        if one.interval:
            figures[1] = " to ".join(map(signed, one.interval))
        if one.detectable is not None:
            figures[-1] = number(one.detectable)
        lines.append([found.title(name), str(one.seeds), *figures, words[one.verdict]])
    note = (
        f"Test loss of each variant minus that of {other}, paired by seed: below zero the variant is better. Holm's "
        f"correction is for {len(lines) - 1} comparisons. Detectable: the least true difference that so many seeds "
        "find with a probability of 80 %. All this holds for a number of seeds that was fixed before anyone looked."
    )
    return Table(f"against_{base}", f"Against {other}", note, lines)


def selected(found: Findings) -> Table:
    """The best choices of settings of each variant, beside the published losses."""
    beside = published.LOSSES.get(found.study, {})
    header = ["variant", "rate", "runs", "val loss", "train loss", "gap", "epoch"]
    lines = [header + (["published val loss"] if beside else [])]
    for name in sorted(found.selected, key=lambda name: rank(found.selected[name][0].loss)):
        for place, one in enumerate(found.selected[name][:FIRST]):
            figures = [number(one.loss), number(one.train_loss), signed(one.loss - one.train_loss), f"{one.epoch:.1f}"]
            known = ["" if place else f"{beside[name]:.3f}" if name in beside else "-"] if beside else []
            runs = str(len(one.arm.records))
            lines.append([found.title(name) if not place else "", found.settings(one.arm), runs, *figures, *known])
    note = (
        f"The best {FIRST} choices of each variant by validation loss, at the epoch where it is least; losses are of "
        "whole sets, without noise. Being the best of several tries they are too low: only the test set compares."
    )
    if beside:
        note += (
            f" Published: best validation loss of {published.PAPER}, on other data than here: compare the order alone."
        )
    return Table("selected", "How settings were selected", note, lines)


def cost(found: Findings) -> Table:
    """Seconds of an epoch, beside the published ones."""
    beside = published.SECONDS.get(found.study, {})
    header = ["variant", "seconds an epoch", "x Dropout"]
    lines = [header + (["published seconds", "published x Dropout"] if beside else [])]
    usual = found.seconds.get("dropout")
    for name, seconds in found.seconds.items():
        known = []
        if beside:
            known = [f"{beside[name]:.2f}", f"{beside[name] / beside['dropout']:.2f}"] if name in beside else ["-", "-"]
        lines.append([found.title(name), f"{seconds:.3g}", f"{seconds / usual:.2f}" if usual else "-", *known])
    note = (
        "Training alone: medians over epochs, the first one left out, and over runs. What else ran on the machine "
        "is in them."
    )
    return Table("cost", "What an epoch costs", note, lines)


def paper(found: Findings) -> Table | None:
    """The paper's analysis."""
    analysis = found.concordance
    if analysis is None:
        return None
    beside = published.RANKS.get(found.study, {})
    header = ["variant", *(f"record {n + 1}" for n in range(5)), "mean rank"]
    lines = [header + (["published mean rank"] if beside else [])]
    for name in sorted(analysis.ranks, key=analysis.ranks.__getitem__):
        known = [f"{beside[name]:.1f}" if name in beside else "-"] if beside else []
        lines.append([found.title(name), *map(number, analysis.best[name]), f"{analysis.ranks[name]:.1f}", *known])
    note = (
        f"Friedman's chi2 {analysis.chi2:.1f} (at most {5 * (len(analysis.ranks) - 1)}), p {p_value(analysis.p)}, "
        f"Kendall's W {analysis.w:.3f}. This test is not valid: its blocks are the i-th best records, and sorted ones "
        f"agree by themselves. With runs dealt to variants by chance, chi2 is as great or greater in "
        f"{analysis.null_share:.0%} of cases (median {analysis.null[len(analysis.null) // 2]:.1f})."
    )
    if found.study in published.CHI2:
        chi2 = published.CHI2[found.study]
        share = float((statistics.simulated_null(repeats=1000) >= chi2 - 1e-9).mean())
        note += (
            f" Published: chi2 {chi2:.3f} (at most 35), W {published.W[found.study]:.3f}; of simulated studies like it "
            f"without any difference, {share:.0%} have as much."
        )
    return Table("paper", "The paper's analysis, and why it proves nothing", note, lines)


def spread(mean: float, deviation: float | None) -> str:
    """A mean with its standard deviation as text."""
    return f"{number(mean)} ± {number(deviation)}" if deviation is not None else number(mean)


def as_latex(table: Table) -> str:
    """A table for LaTeX with the package booktabs."""
    header, *rest = [[escaped(cell) for cell in line] for line in table.lines]
    rows = "\n".join(" & ".join(line) + r" \\" for line in rest)
    columns = "l" + "r" * (len(header) - 1)
    return (
        f"\\begin{{table}}\n\\caption{{{escaped(table.title)}. {escaped(table.note)}}}\n"
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{' & '.join(header)} \\\\\n\\midrule\n{rows}\n\\bottomrule\n"
        "\\end{tabular}\n\\end{table}\n"
    )


def escaped(text: str) -> str:
    """Text as LaTeX has it."""
    text = re.sub(r"([#$%&_{}])", r"\\\1", text)
    for sign, latex in (("±", r"$\pm$"), ("−", "$-$"), ("<", "$<$"), ("chi2", r"$\chi^2$")):
        text = text.replace(sign, latex)
    return text


def write_csv(path: pathlib.Path, lines: Lines) -> None:
    """A table as CSV, with the minus sign that programs read."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([[cell.replace("−", "-") for cell in line] for line in lines])

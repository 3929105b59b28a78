"""What is found as figures."""

import typing

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pernodedrop.report.figures import AMBER, BLACK, BLUE, GREEN, GREY, ORANGE, WIDTH, horizontal
from pernodedrop.study.report import published
from pernodedrop.study.report.findings import FIRST, Findings
from pernodedrop.study.statistics import Record

LINE = 0.3  # inches of a row
LETTERS = 75  # that a line of the legend has room for

COLOURS = (BLUE, ORANGE, GREEN, AMBER, "#cc79a7", "#7b5bd6", GREY)
MARKERS = "os^DvP"


class Chart(typing.NamedTuple):
    """A figure with its name as a file, its title, and what it shows."""

    name: str
    title: str
    note: str
    figure: Figure


def charts(found: Findings) -> list[Chart]:
    """All figures that there are records for."""
    drawn = [differences(found)] if any(found.comparisons.values()) else []
    if found.selected:
        drawn += [bars(found), scatter(found)]
    if any(len(own) > 1 for own in found.selected.values()):
        drawn.append(rates(found))
    drawn += [curves(found), cost(found)]
    return drawn + ([null(found)] if found.concordance else [])


def differences(found: Findings) -> Chart:
    """Differences of test losses to the baselines, with their intervals."""
    names = [name for name in found.confirmed if any(name in every for every in found.comparisons.values())]
    figure, axes = horizontal([found.title(name) for name in names], 1.25, LINE)
    for number, (base, every) in enumerate(found.comparisons.items()):
        shown = [(place, every[name]) for place, name in enumerate(names) if name in every and every[name].interval]
        means = [one.difference or 0 for _, one in shown]
        ends = [[abs((one.interval or (0, 0))[end] - (one.difference or 0)) for _, one in shown] for end in (0, 1)]
        places = [place + 0.22 * (number - (len(found.comparisons) - 1) / 2) for place, _ in shown]
        look: dict[str, typing.Any] = {
            "fmt": MARKERS[number],
            "color": COLOURS[number],
            "ms": 6,
            "lw": 1.6,
            "capsize": 3,
        }
        axes.errorbar(means, places, xerr=ends, label=f"minus {found.title(base)}", **look)
    axes.axvline(0, color=BLACK, lw=1)
    axes.set_xlabel("difference in test loss (left: better)")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    legend(figure, axes)
    note = (
        "Means over seeds, and where the true difference is in 95 % of such studies. The intervals are of each alone; "
        "the table corrects for how many there are."
    )
    return Chart("differences", "Differences on the test set", note, figure)


def bars(found: Findings) -> Chart:
    """The best choices of each variant: validation and training loss."""
    rows = [(name, one) for name, own in found.selected.items() for one in own[:FIRST]]
    choices = [", ".join([found.title(name), *found.choice(one.arm)]) for name, one in rows]
    figure, axes = horizontal(choices, 1.0, 0.21)
    axes.tick_params(axis="y", labelsize=8)
    places = np.arange(len(rows))
    axes.plot([], [], "s", color=BLUE, ms=7, label="validation loss")
    axes.barh(places, [one.loss for _, one in rows], 0.62, color=BLUE, alpha=0.85)
    axes.plot([one.train_loss for _, one in rows], places, "D", color=ORANGE, ms=5, label="training loss")
    axes.set_xlabel("loss at the best epoch,\nmean over seeds")
    legend(figure, axes)
    note = f"The best {FIRST} choices of rate and settings of each variant, as in {published.PAPER}."
    return Chart("bars", "The best choices of each variant", note, figure)


def scatter(found: Findings) -> Chart:
    """Training against validation loss of every run."""
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    axes = figure.subplots()
    ends = []
    for number, name in enumerate(found.selected):
        runs = [record for one in found.selected[name] for record in one.arm.records]
        best = [record["epochs"][record["best_epoch"]] for record in runs]
        x, y = ([epoch[of] for epoch in best] for of in ("train_loss", "val_loss"))
        look: dict[str, typing.Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
        }
        axes.plot(x, y, ls="", ms=6, alpha=0.8, label=found.title(name), **look)
        ends += [min(x), max(x), min(y), max(y)]
    line = [min(filter(np.isfinite, ends)), max(filter(np.isfinite, ends))]
    axes.plot(line, line, ":", color=BLACK, lw=1, label="equal")
    axes.set(xlabel="training loss", ylabel="validation loss")
    axes.grid(color=GREY, alpha=0.25, lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    legend(figure, axes)
    note = "Every run at its best epoch. Above the dotted line the validation loss is the higher one: overfitting."
    return Chart("scatter", "Training and validation loss", note, figure)


def rates(found: Findings) -> Chart:
    """The validation loss by rate, one panel a variant."""
    names = [name for name, own in found.selected.items() if any(one.arm.rate is not None for one in own)]
    figure, panels = grid(len(names))
    flat = next((own[0].loss for name, own in found.selected.items() if name == "none"), None)
    for axes, name in zip(panels, names, strict=True):
        runs = [record for one in found.selected[name] for record in one.arm.records]
        losses = [record["epochs"][record["best_epoch"]]["val_loss"] for record in runs]
        axes.plot([record["rate"] for record in runs], losses, "o", ms=4, color=BLUE, alpha=0.7, label="a run")
        by_rate: dict[float, float] = {}
        for one in found.selected[name]:
            if one.arm.rate is not None:
                by_rate[one.arm.rate] = min(one.loss, by_rate.get(one.arm.rate, np.inf))
        axes.plot(*zip(*sorted(by_rate.items()), strict=True), "-", color=BLUE, lw=1.4, label="the best settings' mean")
        if flat is not None:
            axes.axhline(flat, ls=":", color=BLACK, lw=1, label=found.title("none"))
        axes.set_title(found.title(name), fontsize=9)
    name_axes(panels, "rate", "validation loss")
    legend(figure, panels[0])
    return Chart("rates", "Validation loss by rate", "At the best epoch of each run.", figure)


def curves(found: Findings) -> Chart:
    """The losses of each epoch, one panel a variant."""
    names = [name for name in found.variants if found.runs(name)]
    figure, panels = grid(len(names))
    for axes, name in zip(panels, names, strict=True):
        for of, label, colour, style in (
            ("val_loss", "validation loss", BLUE, "-"),
            ("train_loss", "training loss, without noise", ORANGE, "--"),
        ):
            mean, low, high = by_epoch(found.runs(name), of)
            epochs = np.arange(1, len(mean) + 1)
            axes.plot(epochs, mean, style, color=colour, lw=1.4, label=label)
            axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
        if name != "none" and found.runs("none"):
            mean, _, _ = by_epoch(found.runs("none"), "val_loss")
            axes.plot(
                np.arange(1, len(mean) + 1), mean, ":", color=BLACK, lw=1, label=f"validation, {found.title('none')}"
            )
        axes.set_title(found.title(name), fontsize=9)
    name_axes(panels, "epoch", "loss")
    legend(figure, panels[-1])
    note = "Mean and range over the runs of the confirmed settings, or of the best ones so far."
    return Chart("curves", "Learning curves", note, figure)


def cost(found: Findings) -> Chart:
    """The time of an epoch, as a multiple of Dropout's where there is one."""
    usual = found.seconds.get("dropout")
    figure, axes = horizontal([found.title(name) for name in found.seconds], 1.1, LINE)
    values = [seconds / (usual or 1) for seconds in found.seconds.values()]
    axes.barh(range(len(values)), values, 0.62, color=BLUE, alpha=0.85, label="here")
    beside = published.SECONDS.get(found.study, {})
    known = [(place, beside[name]) for place, name in enumerate(found.seconds) if name in beside]
    if usual and known:
        axes.axvline(1, color=BLACK, lw=1, ls=":")
        multiples = [seconds / beside["dropout"] for _, seconds in known]
        axes.plot(multiples, [place for place, _ in known], "D", color=ORANGE, ms=5, label="published, on a GPU")
        legend(figure, axes)
    axes.set_xlabel("an epoch's time as a multiple of Dropout's" if usual else "seconds an epoch")
    return Chart("cost", "What an epoch costs", "Training alone, medians.", figure)


def null(found: Findings) -> Chart:
    """Chi2 of the paper's analysis, and what it is without any difference."""
    analysis = found.concordance
    assert analysis is not None
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    most = 5 * (len(analysis.ranks) - 1)
    least = min(analysis.null[0], analysis.chi2) - 1
    axes.hist(
        analysis.null, np.linspace(least, most, 31).tolist(), color=GREY, alpha=0.7, label="variants dealt by chance"
    )
    axes.axvline(analysis.chi2, color=BLUE, lw=2, label="this study")
    if found.study in published.CHI2 and len(analysis.ranks) == len(published.RANKS[found.study]):
        axes.axvline(published.CHI2[found.study], color=ORANGE, lw=2, ls="--", label="published")
    axes.set(xlabel="Friedman's chi2 of the five best records", ylabel="cases", xlim=(least, most + 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    legend(figure, axes)
    note = "Runs are dealt to variants by chance, so that no variant differs: chi2 is great all the same."
    return Chart("null", "The paper's test without any difference", note, figure)


def name_axes(panels: list[Axes], x: str, y: str) -> None:
    """What the axes of a grid are, at its lower and its left edge."""
    for axes in panels[-2:]:
        axes.set_xlabel(x)
    for axes in panels[::2]:
        axes.set_ylabel(y)


def legend(figure: Figure, axes: Axes) -> None:
    """What the marks mean, below the figure, in as many columns as it is wide for."""
    handles, labels = axes.get_legend_handles_labels()
    columns = next((n for n in (3, 2) if n <= len(labels) and n * (max(map(len, labels)) + 6) <= LETTERS), 1)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)


def by_epoch(runs: list[Record], of: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, least and greatest of a figure by epoch, over the runs that came so far."""
    table = np.full((len(runs), max(len(run["epochs"]) for run in runs)), np.nan)
    for row, run in zip(table, runs, strict=True):
        row[: len(run["epochs"])] = [epoch[of] for epoch in run["epochs"]]
    masked = np.ma.masked_invalid(table)
    return masked.mean(0), masked.min(0), masked.max(0)


def grid(count: int) -> tuple[Figure, list[Axes]]:
    """Panels that share their axes, two in a row."""
    columns = min(2, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(WIDTH, 1.9 * lines + 0.7), layout="constrained")
    every = list(figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=GREY, alpha=0.25, lw=0.7)
        axes.tick_params(labelsize=8)
    for axes in every[count:]:
        axes.remove()
    for place, axes in enumerate(every[:count]):
        axes.tick_params(labelbottom=place >= count - columns, labelleft=place % columns == 0)
    return figure, every[:count]

"""The look of figures, and how they are saved; needs matplotlib."""

import collections.abc
import html
import io
import pathlib
import re
import typing

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, AMBER, ORANGE, GREEN = "#3b82c4", "#e69f00", "#d55e00", "#009e73"
"""Told apart by colour-blind readers, on dark and light."""

GREY = "#888888"  # seen on dark and on light
BLACK = "#000000"  # in an SVG, the colour of the text around it
DPI = 120
WIDTH = 5.2  # inches of 72 pixels: what a phone shows without shrinking the text much


def horizontal(
    titles: collections.abc.Sequence[str], more: float, line: float, grid: typing.Literal["x", "both"] = "x"
) -> tuple[Figure, Axes]:
    """An empty chart with a line of some inches for each title, the first on top, and some inches more."""
    figure = Figure(figsize=(WIDTH, line * len(titles) + more), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(titles)), titles)
    axes.set_ylim(len(titles) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis=grid, color=GREY, alpha=0.25, lw=0.7)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure, axes


def legend(figure: Figure, axes: Axes) -> None:
    """What the marks of some axes mean, below the figure."""
    handles, labels = axes.get_legend_handles_labels()
    columns = min(3, len(labels))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def save(figure: Figure, path: pathlib.Path) -> None:
    """Save a figure in the format that the name of the file ends with."""
    figure.savefig(path, dpi=DPI)


def svg(figure: Figure, name: str) -> str:
    """A figure as an `<svg>` element that a page can have beside others, in the colour of the text around it."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # the salt: so that no two pictures have an id in common
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[\d.]+pt" height="[\d.]+pt"', r"\1", text.replace("\n ", " ", 1), count=1)
    text = text.replace(BLACK, "currentColor")
    used = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(name)}" fill="currentColor" ', 1)

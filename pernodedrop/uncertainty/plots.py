"""Figures of what metrics found; needs matplotlib, which the extra `bench` brings.

Each returns a `matplotlib.figure.Figure`, which a notebook shows and `figure.savefig("name.png")` saves.
"""

import typing

import numpy as np
from matplotlib.figure import Figure

from pernodedrop.report.figures import AMBER, BLACK, BLUE, GREEN, GREY, ORANGE, WIDTH, legend
from pernodedrop.uncertainty.metrics import Reliability, RiskCoverage
from pernodedrop.uncertainty.metrics.arrays import numbers

__all__ = ["reliability_diagram", "risk_coverage_curve", "two_histograms"]

BINS = 30  # of histograms
COLOURS = (BLUE, ORANGE, GREEN, AMBER, GREY)


def reliability_diagram(found: Reliability) -> Figure:
    """How often probabilities came true, and below how many samples say so.

    Bars on the diagonal are calibrated; below it, the model was too sure.

    Args:
        found: what `metrics.reliability` returns.

    Example:

    >>> from pernodedrop.uncertainty import metrics, plots
    >>> figure = plots.reliability_diagram(metrics.reliability([0, 1, 1], [0.2, 0.7, 0.9]))
    >>> len(figure.axes)
    2
    """
    figure = Figure(figsize=(WIDTH, WIDTH), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    full = found.samples > 0
    low, width = found.low[full], (found.high - found.low)[full]
    above.bar(low, found.accuracy[full], width, align="edge", color=BLUE, ec="white", label="came true")
    above.plot([0, 1], [0, 1], color=BLACK, lw=1, ls="--", label="calibrated")
    above.plot(found.confidence[full], found.accuracy[full], "o", color=ORANGE, ms=4, label="at its mean probability")
    above.set(ylim=(0, 1), ylabel="share that came true")
    below.bar(low, found.samples[full], width, align="edge", color=GREY, ec="white")
    below.set(xlim=(0, 1), xlabel="predicted probability", ylabel="samples")
    _plain(above, below)
    legend(figure, above)
    return figure


def risk_coverage_curve(**curves: RiskCoverage) -> Figure:
    """The risk of the predictions that are kept, against how many are, one line for each name.

    Args:
        **curves: what `metrics.risk_coverage` returns, by the name to show.

    Example:

    >>> from pernodedrop.uncertainty import metrics, plots
    >>> figure = plots.risk_coverage_curve(entropy=metrics.risk_coverage([0, 1, 0], [0.1, 0.9, 0.3]))
    >>> len(figure.axes[0].lines)
    1
    """
    figure = Figure(figsize=(WIDTH, 0.7 * WIDTH), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=COLOURS)
    for name, found in curves.items():
        axes.plot(found.coverage, found.risk, lw=1.6, label=f"{name} (AURC {found.aurc:.4f})")
    axes.set(xlim=(0, 1), xlabel="coverage: share that is kept", ylabel="risk of those")
    axes.set_ylim(bottom=0)
    _plain(axes)
    legend(figure, axes)
    return figure


def two_histograms(inside: typing.Any, outside: typing.Any, title: str = "predictive entropy") -> Figure:
    """How an uncertainty is distributed in distribution and out of it.

    Args:
        inside: its values for samples in distribution, (n,).
        outside: its values for samples out of distribution, (m,).
        title: what it is called.

    Example:

    >>> from pernodedrop.uncertainty import plots
    >>> figure = plots.two_histograms(inside=[0.1, 0.2, 0.1], outside=[0.5, 0.6])
    >>> figure.axes[0].get_xlabel()
    'predictive entropy'
    """
    inside, outside = numbers(inside, "inside", (None,)), numbers(outside, "outside", (None,))
    edges = np.histogram_bin_edges(np.concatenate([inside, outside]), BINS)
    figure = Figure(figsize=(WIDTH, 0.7 * WIDTH), layout="constrained")
    axes = figure.subplots()
    for values, name, colour in ((inside, "in distribution", BLUE), (outside, "out of distribution", AMBER)):
        shares = np.histogram(values, edges)[0] / len(values)
        axes.stairs(shares, edges, fill=True, alpha=0.5, color=colour, label=f"{name} ({len(values):,})")
    axes.set(xlabel=title, ylabel="share of samples")
    _plain(axes)
    legend(figure, axes)
    return figure


def _plain(*several: typing.Any) -> None:
    for axes in several:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(BLACK)
        axes.grid(color=GREY, alpha=0.25, lw=0.7)
        axes.set_axisbelow(True)

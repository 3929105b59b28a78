"""Figures of what metrics found; needs matplotlib, which the extra `bench` brings.

Each returns a `matplotlib.figure.Figure`, which a notebook shows and `figure.savefig("name.png")` saves.
"""

import collections.abc
import typing

import numpy as np
from matplotlib.figure import Figure

from pernodedrop import checks
from pernodedrop._types import Array
from pernodedrop.report.figures import AMBER, BLACK, BLUE, GREEN, GREY, ORANGE, WIDTH, legend
from pernodedrop.uncertainty.metrics import Reliability, RiskCoverage
from pernodedrop.uncertainty.metrics.arrays import numbers
from pernodedrop.uncertainty.report import Disagreement, Report

__all__ = ["disagreements", "of_report", "reliability_diagram", "risk_coverage_curve", "two_histograms"]

BINS = 30  # of histograms
COLOURS = (BLUE, ORANGE, GREEN, AMBER, GREY)


def disagreements(found: collections.abc.Sequence[Disagreement], images: typing.Any = None) -> Figure:
    """What the passes chose for the samples that they disagree about, a row for each: counts of passes by class.

    Args:
        found: what `Prediction.disagreements` returns, or the `examples` of a report; at least one.
        images: the samples of x as images to show beside, (n, height, width), or with 1, 3 or 4 channels last, as
            matplotlib draws them: bytes, or numbers in [0, 1].

    Raises:
        TypeError, ValueError: no example, something else, or images of another shape.

    Example:

    >>> import numpy as np
    >>> from pernodedrop.uncertainty import plots, prediction
    >>> passes = [np.array([[0.9, 0.1], [0.3, 0.7]]), np.array([[0.8, 0.2], [0.8, 0.2]])]
    >>> found = prediction.collected([iter({None: p} for p in passes)], 2, seed=0)
    >>> figure = plots.disagreements(found.disagreements(1))
    >>> [text.get_text() for text in figure.axes[1].texts]
    ['0: 1', '1: 1']
    """
    found = checks.check_tuple(found, "found", "disagreements")
    for one in found:
        _check_kind(one, "found", Disagreement)
    if not found:
        raise ValueError(checks.invalid("found", "at least one disagreement", found))
    pictures = None if images is None else _pictures(images)
    figure = Figure(figsize=(WIDTH, 0.3 + 0.5 * len(found)), layout="constrained")
    rows = figure.subplots(len(found), 2, squeeze=False, width_ratios=(1, 4))
    for one, (left, right) in zip(found, rows, strict=True):
        known = "" if one.label is None else f"\nis {one.label}"
        left.set_ylabel(f"{one.place}{known}", rotation=0, ha="right", va="center")
        if pictures is not None:
            left.imshow(pictures[np.ravel(one.place)[0]], cmap="gray", vmin=0, vmax=1)
        start = 0
        for label, passes in one.votes.items():
            right.barh(0, passes, left=start, color=COLOURS[label % len(COLOURS)], ec="white")
            text = (
                f"{label}: {passes}" if passes >= 0.1 * sum(one.votes.values()) else f"{label}"
            )  # a bar is too narrow
            right.text(start + passes / 2, 0, text, ha="center", va="center", size="small")
            start += passes
        right.set_xlim(0, start)
        for axes in (left, right):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    return figure


def of_report(found: Report, outside: typing.Any = None, images: typing.Any = None) -> dict[str, Figure]:
    """All figures of a report, each by the function of this module that is named.

    Args:
        found: what `Prediction.report` returns of class probabilities.
        outside: the predictive entropies of samples out of distribution, (m,), as a prediction of those has them.
        images: of all samples, for `disagreements`.

    Returns:
        A dict: "reliability", `reliability_diagram`; "risk_coverage", `risk_coverage_curve`, where those are kept that
        have the lowest predictive entropy; "predictive_entropy", `two_histograms`, with `outside`; "disagreements",
        `disagreements`, where the report has `examples`.

    Raises:
        TypeError, ValueError: an argument that is not as described, such as a report of numbers.

    Example:

    >>> import numpy as np
    >>> from pernodedrop.uncertainty import plots, prediction
    >>> passes = [np.array([[0.9, 0.1], [0.3, 0.7]]), np.array([[0.8, 0.2], [0.8, 0.2]])]
    >>> found = prediction.collected([iter({None: p} for p in passes)], 2, seed=0)
    >>> figures = plots.of_report(found.report([0, 1]), outside=[0.6, 0.7, 0.7])
    >>> [*figures]
    ['reliability', 'risk_coverage', 'predictive_entropy', 'disagreements']

    Each is saved as `figure.savefig(f"{name}.png")`.
    """
    _check_kind(found, "found", Report)
    if found.reliability is None or found.risk_coverage is None:
        raise ValueError(checks.invalid("found", "a report of class probabilities", found))
    figures = {
        "reliability": reliability_diagram(found.reliability),
        "risk_coverage": risk_coverage_curve(**{"predictive entropy": found.risk_coverage}),
    }
    if outside is not None:
        outside = numbers(outside, "outside", (None,))
        figures["predictive_entropy"] = two_histograms(found.predictive_entropy, outside)
    if found.examples:
        figures["disagreements"] = disagreements(found.examples, images)
    return figures


def reliability_diagram(found: Reliability) -> Figure:
    """How often probabilities came true, and below how many samples say so.

    Bars on the diagonal are calibrated; below it, the model was too sure.

    Args:
        found: what `metrics.reliability` returns.

    Raises:
        TypeError, ValueError: an argument that is not as described.

    Example:

    >>> from pernodedrop.uncertainty import metrics, plots
    >>> figure = plots.reliability_diagram(metrics.reliability([0, 1, 1], [0.2, 0.7, 0.9]))
    >>> len(figure.axes)
    2
    """
    _check_kind(found, "found", Reliability)
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

    Raises:
        TypeError, ValueError: an argument that is not as described.

    Example:

    >>> from pernodedrop.uncertainty import metrics, plots
    >>> figure = plots.risk_coverage_curve(entropy=metrics.risk_coverage([0, 1, 0], [0.1, 0.9, 0.3]))
    >>> len(figure.axes[0].lines)
    1
    """
    for name, found in curves.items():
        _check_kind(found, name, RiskCoverage)
    if not curves:
        raise ValueError(checks.invalid("curves", "at least one", curves))
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

    Raises:
        TypeError, ValueError: an argument that is not as described.

    Example:

    >>> from pernodedrop.uncertainty import plots
    >>> figure = plots.two_histograms(inside=[0.1, 0.2, 0.1], outside=[0.5, 0.6])
    >>> figure.axes[0].get_xlabel()
    'predictive entropy'
    """
    inside, outside = numbers(inside, "inside", (None,)), numbers(outside, "outside", (None,))
    checks.check_str(title, "title")
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


def _check_kind(value: typing.Any, argument: str, kind: type) -> None:
    """Raise unless a value is what a metric returns."""
    if not isinstance(value, kind):
        raise TypeError(checks.invalid(argument, f"a {kind.__name__} of pernodedrop.uncertainty", value))


def _pictures(images: typing.Any) -> Array:
    found = numbers(images, "images")
    if not (found.ndim == 3 or (found.ndim == 4 and found.shape[-1] in (1, 3, 4))):
        expected = "images (n, height, width), or with 1, 3 or 4 channels last"
        raise ValueError(checks.invalid("images", expected, found.shape))
    return found / (255 if found.max() > 1 else 1)


def _plain(*several: typing.Any) -> None:
    for axes in several:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(BLACK)
        axes.grid(color=GREY, alpha=0.25, lw=0.7)
        axes.set_axisbelow(True)

"""The figures as pictures: SVG in the colour of the text around it, so that it is right on dark and on light."""

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from pernodedrop.commands.bench import matrix, table
from pernodedrop.report.figures import AMBER, BLACK, BLUE, GREEN, GREY, ORANGE, horizontal, legend, svg

COLOURS = {"jax": BLUE, "tensorflow": AMBER, "torch": ORANGE, "numpy": GREEN}
MARKERS = {"jax": "o", "tensorflow": "s", "torch": "^", "numpy": "D"}  # told apart without any colour

LINE, MORE = 0.29, 1.15  # inches of a row, and of what stands above and below
PAPER_RATIO = 1.46  # of a step with the paper's layer to one with Dropout, on the authors' GPU


def times(plain, part, backend, span):
    """The times of one backend, with each row's limit.

    Args:
        plain: the results as plain values.
        part: (shape, dtype).
        backend: a name.
        span: the least and the greatest number of milliseconds that the axis shows.
    """
    records = of_backend(plain, part, backend)
    rows = shown(records)
    figure, axes = of_rows(rows)
    modes = [mode for _, mode in table.columns(records)]
    for number, mode in enumerate(modes):
        lower = shift(number, len(modes))
        own = {p + lower: records[row, backend, mode] for p, row in enumerate(rows) if (row, backend, mode) in records}
        middles = [1e3 * record["seconds"] for record in own.values()]
        errors = [[1e3 * abs(record["quartiles"][n] - record["seconds"]) for record in own.values()] for n in (0, 1)]
        axes.errorbar(middles, list(own), xerr=errors, label=mode, **look(backend, hollow=number > 0))
    for place, row in enumerate(rows):
        ofrow = [record for (name, _, _), record in records.items() if name == row]
        limit = 1e3 * table.derive(ofrow[0], plain["rates"])["limit"].seconds
        label = None if place else "limit of the machine"
        axes.plot([limit] * 2, [place - 0.32, place + 0.32], color=BLACK, lw=2.2, label=label)
        beside(axes, place, " / ".join(table.number(1e3 * record["seconds"]) for record in ofrow))
    logarithmic(axes, span, "milliseconds")
    legend(figure, axes)
    return svg(figure, f"times {backend} {part}")


def ratios(plain, part):
    """The times of all backends as multiples of Dropout + Dense."""
    found = table.of_part(plain, part)
    records = {key: record for key, record in found.items() if record.get("beside", {}).get("dropout")}
    figure, axes = across(records, lambda record: record["seconds"] / record["beside"]["dropout"])
    axes.axvline(1, color=BLACK, lw=1, ls=":")
    logarithmic(axes, None, "multiple of Dropout + Dense")
    legend(figure, axes)
    return svg(figure, f"ratios {part}")


def memory(plain, part):
    """The peaks of all backends, and the size of one mask."""
    records = {key: r for key, r in table.of_part(plain, part, "memory").items() if r["extra"] is not None}
    figure, axes = across(records, lambda record: max(record["extra"] / 1e6, 0.1))
    mask = 4e-6 * matrix.Case.of(next(iter(records.values()))["case"]).entries
    axes.axvline(mask, color=BLACK, lw=1, ls=":", label="one float32 mask")
    logarithmic(axes, None, "MB beyond operands and results")
    legend(figure, axes)
    return svg(figure, f"memory {part}")


def networks(plain):
    """The steps of the CIFAR-10 network as multiples of the one with Dropout."""
    found = {(record["variant"], record["backend"]): record for record in plain["networks"]}
    variants = [name for name in matrix.VARIANTS if any(name == known for known, _ in found)]
    figure, axes = horizontal(
        [matrix.VARIANTS[name].replace("…", "PerNodeDrop Bernoulli") for name in variants], MORE, LINE, "both"
    )
    backends = [name for name in matrix.MODES if any(name == backend for _, backend in found)]
    for number, backend in enumerate(backends):
        lower = shift(number, len(backends))
        own = {p + lower: found[name, backend] for p, name in enumerate(variants) if (name, backend) in found}
        values = [record["seconds"] / record["beside"][matrix.BASELINE] for record in own.values()]
        axes.errorbar(values, list(own), label=backend, **look(backend))
    axes.axvline(1, color=BLACK, lw=1, ls=":")
    axes.axvline(PAPER_RATIO, color=BLACK, lw=1, ls="--", label=f"the paper's GPU: {PAPER_RATIO}")
    axes.set(xlabel="multiple of the step with Dropout", xlim=(0, None))
    legend(figure, axes)
    return svg(figure, "networks")


def of_backend(plain, part, backend):
    """The records of one backend that have a time, by (row, backend, mode)."""
    found = table.of_part(plain, part)
    return {key: record for key, record in found.items() if key[1] == backend and "seconds" in record}


def span(records, rates):
    """The least and the greatest number of milliseconds of some times, limits included, with a margin."""
    limits = [table.derive(record, rates)["limit"].seconds for record in records]
    return 0.7e3 * min(limits), 1.4e3 * max(record["quartiles"][1] for record in records)


def shown(records):
    """The rows that some records by (row, backend, mode) have, in the order of the matrix."""
    return [name for name in matrix.ROWS if any(name == row for row, _, _ in records)]


def across(records, value):
    """A chart of rows with a mark for each backend, in its usual mode."""
    rows = shown(records)
    figure, axes = of_rows(rows)
    backends = [name for name in matrix.MODES if any(name == key[1] for key in records)]
    for number, backend in enumerate(backends):
        mode, lower = matrix.MODES[backend][0], shift(number, len(backends))
        own = {p + lower: records[row, backend, mode] for p, row in enumerate(rows) if (row, backend, mode) in records}
        axes.errorbar([value(record) for record in own.values()], list(own), label=f"{backend} {mode}", **look(backend))
    return figure, axes


def of_rows(rows):
    """An empty chart with a line for each row; those that are not this library's in grey."""
    figure, axes = horizontal([table.full_title(row) for row in rows], MORE, LINE, "both")
    for row, label in zip(rows, axes.get_yticklabels(), strict=True):
        label.set_color(BLACK if matrix.ROWS[row].ours else GREY)
    return figure, axes


def look(backend, hollow=False):
    """How a backend is drawn; its second mode hollow."""
    colour = COLOURS[backend]
    face = "none" if hollow else colour
    return {"fmt": MARKERS[backend], "color": colour, "markerfacecolor": face, "ms": 6.5, "lw": 1.4, "alpha": 0.9}


def shift(number, count):
    """How far below the middle of a line the mark of one of several stands, so that what is equal stays visible."""
    return 0.15 * (number - (count - 1) / 2)


def beside(axes, place, text):
    """A number at the right of a line."""
    axes.annotate(text, (1, place), (5, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=9)


def logarithmic(axes, limits, label):
    """A logarithmic axis with ordinary numbers at its powers of ten."""
    axes.set_xscale("log")
    axes.set(xlabel=label, xlim=limits)
    axes.xaxis.set_major_locator(LogLocator(10))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())

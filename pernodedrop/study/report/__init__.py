"""The report of a study: a verdict in plain words, tables and figures, as files and as one page.

published.py has what papers found, findings.py works out what the records say, verdict.py, tables.py and charts.py say
it in words, in tables and in figures.
"""

import collections.abc
import json
import os
import pathlib
import re
import typing

import jinja2
import matplotlib as mpl

from pernodedrop import checks
from pernodedrop.report import figures
from pernodedrop.report.pages import STYLE
from pernodedrop.report.results import output_folder
from pernodedrop.report.table import as_markdown
from pernodedrop.study.report import charts, tables, verdict
from pernodedrop.study.report.charts import Chart
from pernodedrop.study.report.findings import BASELINES, Findings
from pernodedrop.study.report.tables import Table
from pernodedrop.study.statistics import Record, Records

__all__ = ["said", "write"]

COLOURS = "<style>svg { color: #1c2024 } @media (prefers-color-scheme: dark) { svg { color: #e6e8eb } }</style>"
"""Of a figure that has no page around it."""

TEMPLATE = pathlib.Path(__file__).with_name("page.html.jinja")


def write(
    records: Records,
    folder: str | os.PathLike[str],
    titles: collections.abc.Mapping[str, str] | None = None,
    data: str | None = None,
    baselines: collections.abc.Iterable[str] = BASELINES,
) -> pathlib.Path:
    """Write the report of the records of one study, finished or not.

    The folder gets report.html, which needs nothing but itself, report.md, records.csv, of each table a CSV and a
    LaTeX file in tables/, of each figure a PNG and an SVG file in figures/. Earlier ones of these names are replaced.

    Args:
        records: dicts as `Study.records` gives them, of one study.
        folder: where the files go; it is made.
        titles: from names of variants to what readers see; of others the name is shown.
        data: the title of the data; None is the name of the study. A study of a name that the papers have, "cifar10",
            "rcv1", "speech" or "mnist_ddc", is shown beside their numbers.
        baselines: names of variants that all others are compared with; ("dropout", "none").

    Returns:
        The path of report.html.

    Raises:
        ValueError: no records, records of several studies, or a folder that cannot be written.
    """
    found = findings(records, titles, data, baselines)
    place = output_folder(folder, "folder")
    words, about = verdict.sentences(found), circumstances(found)
    with mpl.rc_context({"font.size": 9}):
        every, drawn = tables.tables(found), charts.charts(found)
        svgs = [write_chart(place / "figures", chart) for chart in drawn]
    for table in every:
        write_table(place / "tables", table)
    tables.write_csv(place / "records.csv", raw(found.records))
    title = f"Does it help? {found.data}"
    (place / "report.md").write_text(markdown(title, words, about, drawn, every), encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    shown = zip(drawn, svgs, strict=True)
    html = template.render(
        style=STYLE.lstrip(), title=title, verdict=words, about=about, charts=list(shown), tables=every
    )
    path = place / "report.html"
    path.write_text(html + "\n", encoding="utf-8")
    return path


def said(
    records: Records,
    titles: collections.abc.Mapping[str, str] | None = None,
    data: str | None = None,
    baselines: collections.abc.Iterable[str] = BASELINES,
) -> str:
    """What the report of the records says first: whether anything helps, a sentence a line, the answer first.

    The arguments are those of `write`, and so are its errors.
    """
    return "\n".join(verdict.sentences(findings(records, titles, data, baselines)))


def findings(
    records: Records,
    titles: collections.abc.Mapping[str, str] | None,
    data: str | None,
    baselines: collections.abc.Iterable[str],
) -> Findings:
    """The findings of the records of one study, from the arguments of `write`."""
    records = list(records)
    studies = sorted({str(record["study"]) for record in records})
    if len(studies) != 1:
        raise ValueError(checks.invalid("records", "records of one study", studies))
    return Findings(records, titles or {}, data or studies[0], tuple(baselines))


def circumstances(found: Findings) -> list[str]:
    """Where and on what the records were made, as sentences."""
    stages = [
        (stage, sum(record["stage"] == stage for record in found.records)) for stage in ("grid", "select", "confirm")
    ]
    runs = ", ".join(f"{n} to {stage}" if stage != "grid" else f"{n} of the grid" for stage, n in stages if n)
    epochs = sorted({len(record["epochs"]) for record in found.records})
    lines = [
        f"Study {found.study}: {verdict.count(len(found.records), 'run')} ({runs}), "
        f"{'–'.join(map(str, dict.fromkeys((epochs[0], epochs[-1]))))} epochs each."
    ]
    last = found.records[-1]
    shared = {k: v for k, v in last["settings"].items() if k not in found.varied}
    shared |= {name: f"{value} (as compiled)" for name, value in last.get("compiled", {}).items()}
    if shared:
        lines.append("Settings of all: " + ", ".join(f"{name} {value}" for name, value in shared.items()) + ".")
    return lines + found.environments


def write_chart(folder: pathlib.Path, chart: Chart) -> str:
    """Write a figure as PNG and SVG, and return its element for a page."""
    folder.mkdir(exist_ok=True)
    figures.save(chart.figure, folder / f"{chart.name}.png")
    element = figures.svg(chart.figure, chart.title)
    alone = re.sub("(<svg[^>]*>)", lambda match: match[0] + COLOURS, element, count=1)
    (folder / f"{chart.name}.svg").write_text(alone + "\n", encoding="utf-8")
    return element


def write_table(folder: pathlib.Path, table: Table) -> None:
    """Write a table as CSV and for LaTeX."""
    folder.mkdir(exist_ok=True)
    tables.write_csv(folder / f"{table.name}.csv", table.lines)
    (folder / f"{table.name}.tex").write_text(tables.as_latex(table), encoding="utf-8")


def markdown(title: str, said: list[str], about: list[str], drawn: list[Chart], every: list[Table]) -> str:
    """The report as Markdown, with the figures beside it."""
    first, *rest = said
    blocks = [
        f"# {title}",
        f"**{first}**",
        "\n".join(f"- {line}" for line in rest),
        "\n".join(f"{line}  " for line in about),
    ]
    blocks += [f"## {chart.title}\n\n{chart.note}\n\n![{chart.title}](figures/{chart.name}.png)" for chart in drawn]
    blocks += [f"## {table.title}\n\n{table.note}\n\n{as_markdown(table.lines)}" for table in every]
    return "\n\n".join(block for block in blocks if block) + "\n"


def raw(records: list[Record]) -> list[list[str]]:
    """The records as a table, one line each."""
    metrics = list(dict.fromkeys(name for record in records for name in record.get("test") or {}))
    header = [
        "study",
        "stage",
        "variant",
        "rate",
        "seed",
        "backend",
        "settings",
        "best_epoch",
        "train_loss",
        "val_loss",
    ]
    lines = [[*header, *(f"test_{name}" for name in metrics), "seconds_per_epoch"]]
    for record in records:
        best, test = record["epochs"][record["best_epoch"]], record.get("test") or {}
        values: list[typing.Any] = [record[name] for name in header[:6]]
        values += [json.dumps(record["settings"]), record["best_epoch"], best["train_loss"], best["val_loss"]]
        values += [*(test.get(name) for name in metrics), record["seconds_per_epoch"]]
        lines.append(["" if value is None else str(value) for value in values])
    return lines

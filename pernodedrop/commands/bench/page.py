"""One HTML page of the figures, which needs nothing but itself."""

import html as escape
import re

from pernodedrop.commands.bench import charts, matrix, table
from pernodedrop.report.pages import STYLE


def html(plain):
    """The page.

    Args:
        plain: the results as plain values.
    """
    about = "".join(f"<p class='soft'>{escape.escape(line)}</p>" for line in table.where(plain))
    title = "What a step costs"
    blocks = [f"<h1>{title}</h1>", f"<p>{note('step')}</p>", about]
    if len(short := table.ratios(plain)) > 1:
        blocks += [f"<h2>In short</h2><p>{note('ratios')}</p>", as_html(short)]
    for part in table.parts(plain):
        blocks += part_blocks(plain, part)
    if plain["networks"]:
        blocks += [
            "<h2>The paper's CIFAR-10 network</h2>",
            f"<p>{note('network')}</p>",
            gallery([("All backends", charts.networks(plain))]),
            as_html(table.networks(plain)),
        ]
    every = as_html(table.every_case(plain))
    blocks.append(f"<h2>Every case</h2><details><summary>The table of all figures</summary>{every}</details>")
    body = "\n".join(blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>pernodedrop: {title.lower()}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def note(name):
    """A note of the tables, its words in backticks as code."""
    return re.sub("`(.+?)`", r"<code>\1</code>", escape.escape(table.NOTES[name]))


def part_blocks(plain, part):
    """What the page says of one shape and dtype."""
    blocks = [
        f"<h2>{escape.escape(table.part_title(part))}</h2>",
        f"<p>{note('time')} {note('limit')}</p>",
    ]
    timed = [record for record in table.of_part(plain, part).values() if "seconds" in record]
    drawn = [name for name in matrix.MODES if charts.of_backend(plain, part, name)]
    if timed:
        span = charts.span(timed, plain["rates"])
        blocks.append(gallery([(name, charts.times(plain, part, name, span)) for name in drawn]))
    blocks.append(as_html(table.times(plain, part)))
    compared = []
    if any(record["beside"]["dropout"] for record in timed):
        compared.append(("Against Dropout + Dense", charts.ratios(plain, part)))
    peaks = table.of_part(plain, part, "memory")
    if any(record["extra"] is not None for record in peaks.values()):
        compared.append(("Peak memory", charts.memory(plain, part)))
    blocks.append(gallery(compared))
    if peaks:
        blocks += [f"<p>{note('memory')} In MB.</p>", as_html(table.memory(plain, part))]
    return blocks


def gallery(drawn):
    """Pictures with their captions, side by side where there is room."""
    figures = (f"<figure><figcaption>{escape.escape(caption)}</figcaption>{svg}</figure>" for caption, svg in drawn)
    return f"<div class='charts'>{''.join(figures)}</div>"


def as_html(lines):
    """Lists of text as a table that scrolls by itself where it is too wide."""

    def row(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{escape.escape(cell.strip('`'))}</{tag}>" for cell in cells) + "</tr>"

    header, *rest = lines
    body = "".join(row(line, "td") for line in rest)
    return f"<div class='wide'><table><thead>{row(header, 'th')}</thead><tbody>{body}</tbody></table></div>"

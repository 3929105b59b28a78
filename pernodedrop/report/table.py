"""Tables made of lists of text, a header first."""

import collections.abc
import typing

Lines: typing.TypeAlias = collections.abc.Sequence[collections.abc.Sequence[str]]


def as_text(lines: Lines) -> str:
    """Lists of text as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def as_markdown(lines: Lines) -> str:
    """Lists of text as a Markdown table."""
    header, *rest = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rest])

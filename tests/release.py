"""`python -m tests.release v1.2.3`: whether the checkout may be released under that tag. Standard library only."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parent.parent


def find(pattern, file):
    """The groups of the first line of a file that matches."""
    match = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise SystemExit(f"{file} has no line like {pattern}")
    return match.groups()


def versions():
    """The version of the library as each file that states it has it."""
    return {
        "pernodedrop/_version.py": find(r'^__version__ = "(.+)"$', "pernodedrop/_version.py")[0],
        "CHANGELOG.md": find(r"^## (\S+) \(.+\)$", "CHANGELOG.md")[0],
        "CITATION.cff": find(r"^version: (\S+)$", "CITATION.cff")[0],
        "recipe.yaml": find(r'^  version: "(.+)"$', "recipe.yaml")[0],
    }


def problems(tag):
    """What stands against releasing the checkout under a tag, as sentences."""
    found = [f"the tag is {tag}, {file} has {v}" for file, v in versions().items() if tag != f"v{v}"]
    date = find(r"^## \S+ \((.+)\)$", "CHANGELOG.md")[0]
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
        found.append(f"CHANGELOG.md has {date!r} where the date of the release belongs")
    elif f"\ndate-released: {date}\n" not in (ROOT / "CITATION.cff").read_text(encoding="utf-8"):
        found.append(f"CITATION.cff lacks `date-released: {date}`")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(problems(sys.argv[1])) or None)

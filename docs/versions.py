"""`python docs/versions.py FOLDER`: a site of many versions, each as `make docs` builds it in a folder of its name.

It writes versions.json, from which every page takes its list of versions, the newest first, and an index.html that
leads to the newest. Run again after a folder was added.
"""

import json
import pathlib
import re
import sys

INDEX = '<!doctype html><meta http-equiv="refresh" content="0; url={0}/index.html"><a href="{0}/index.html">{0}</a>\n'


def number(name):
    """A version as numbers, by which 0.10 follows 0.9."""
    return [int(part) for part in re.findall(r"\d+", name)]


def main(folder):
    """List the versions in a folder."""
    names = [page.parent.name for page in pathlib.Path(folder).glob("*/index.html")]
    names = sorted((name for name in names if re.fullmatch(r"\d+(\.\d+)+", name)), key=number, reverse=True)
    if not names:
        raise SystemExit(f"{folder} has no folder like 1.2.3 with a built site in it")
    pathlib.Path(folder, "versions.json").write_text(json.dumps(names))
    pathlib.Path(folder, "index.html").write_text(INDEX.format(names[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""How large the library is, installed with the extra of a framework, beside the framework alone.

python benchmarks/modules/installs.py    writes installs.md; it downloads some 2 GB, and takes some minutes

Each framework is installed into a new environment without pip, from the versions of constraints.txt, and then the
library with its extra beside it. Sizes are those of all files, in millions of bytes. The figures of installs.md are of
PyTorch's build for CPUs, which pip takes where it is told of its index (PIP_EXTRA_INDEX_URL); that of PyPI is larger.
"""

import collections
import os
import pathlib
import subprocess
import sys
import sysconfig
import tempfile
import venv

from pernodedrop.report import table

PATH = pathlib.Path(__file__).parent / "installs.md"
ROOT = pathlib.Path(__file__).parents[2]
EXTRAS = {"torch": ["torch"], "flax": ["flax"], "equinox": ["equinox"]}
"""What each extra is for, which is installed first."""


def installed(folder, *requirements):
    """Install into an environment, and return the megabytes of each folder or file beside those of its packages."""
    command = [sys.executable, "-m", "pip", "--quiet", "--python", str(folder), "install", "-c", "constraints.txt"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*command, *requirements], check=True, cwd=ROOT, env=environment)
    packages = pathlib.Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    sizes = collections.Counter()
    for path in packages.iterdir():
        sizes[path.name.removesuffix(".libs")] += megabytes(path)
    return sizes


def megabytes(path):
    """The size of a file, or of all that is in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def main():
    """Measure, print, and write the page."""
    lines = [["extra", "framework alone, MB", "with the library, MB", "of it the library, MB", "what else comes, MB"]]
    for extra, framework in EXTRAS.items():
        with tempfile.TemporaryDirectory() as folder:
            venv.create(folder, symlinks=True)
            before = installed(folder, *framework)
            after = installed(folder, f"{ROOT}[{extra}]")
            own = after.pop("pernodedrop")
            more = {name: size for name, size in after.items() if name not in before and size >= 0.5}
            named = ", ".join(f"{name} {more[name]:.0f}" for name in sorted(more, key=more.get, reverse=True))
            plain, whole = sum(before.values()), sum(after.values()) + own
            lines.append([extra, f"{plain:.0f}", f"{whole:.0f}", f"{own:.1f}", named])
    print(table.as_text(lines))
    versions = f"Python {sys.version.partition(' ')[0]}, {sysconfig.get_platform()}, versions of constraints.txt."
    PATH.write_text("\n\n".join(["# How large installs are", versions, table.as_markdown(lines)]) + "\n")


if __name__ == "__main__":
    main()

"""`python -m tests.package`: build the sdist and from it the wheel, and test the wheel away from the checkout.

The wheel is installed into a folder of its own, a copy of the tests into another, and the suite runs there on NumPy: it
shows that the wheel is whole. What it does on the other backends, `python -m tests` shows.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).parent.parent


def run(*command, cwd, **environment):
    """Run a command, shown as it runs; stop at a failure."""
    subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, check=True)


def main():
    """Build, check and test."""
    with tempfile.TemporaryDirectory() as folder:
        there = pathlib.Path(folder)
        # git's own files only: what lies about in a working tree does not belong into a package
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, files.split("\0")):
            (there / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, there / "source" / name, follow_symlinks=False)
        run(sys.executable, "-m", "build", "--outdir", there / "dist", there / "source", cwd=there)
        run(sys.executable, "-m", "twine", "check", "--strict", *(there / "dist").iterdir(), cwd=there)
        (wheel,) = (there / "dist").glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        for name in ("backends/numpy_ops.py", "layers/per_node_drop.py", "py.typed"):
            assert f"pernodedrop/{name}" in names, f"the wheel lacks {name}"
        run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", there / "wheel", wheel, cwd=there)
        shutil.copytree(ROOT / "tests", there / "away" / "tests")
        wheel_folder = str(there / "wheel")
        environment = {"PYTHONPATH": wheel_folder, "PERNODEDROP_IN": wheel_folder, "KERAS_BACKEND": "numpy"}
        run(sys.executable, "-m", "pytest", "-q", "tests", cwd=there / "away", **environment)


if __name__ == "__main__":
    main()

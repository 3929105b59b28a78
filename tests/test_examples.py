"""The examples that people copy, run as they stand."""

import os
import pathlib
import re
import subprocess
import sys

import keras
import pytest

import pernodedrop

ROOT = pathlib.Path(__file__).parent.parent
BACKEND = keras.backend.backend()
pytestmark = pytest.mark.skipif(
    not (ROOT / "README.md").exists(), reason="the documents are in the checkout, not beside an installed package"
)


def run(code, folder, backend=BACKEND):
    """What the code prints; a failure of the code is one of the test."""
    env = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{code}\n{done.stderr[-3000:]}"
    return done.stdout


def readme_examples():
    """The README's Python blocks for this backend; the first line of each names its own."""
    blocks = re.findall(r"```python\n# ([\w ]+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert {name for name, _ in blocks} == {"any backend", "torch", "jax", "tensorflow", "numpy"}
    names = {BACKEND} if BACKEND == "numpy" else {BACKEND, "any backend"}
    return [
        code.replace('"KERAS_BACKEND"] = "jax"', f'"KERAS_BACKEND"] = "{BACKEND}"') for n, code in blocks if n in names
    ]


def test_readme_examples_run(tmp_path):
    for code in readme_examples():
        run(code, tmp_path)


@pytest.mark.skipif(BACKEND != "numpy", reason="one process with all four frameworks is enough")
def test_masks_of_all_four_frameworks_have_the_same_hash(tmp_path):
    lines = run((ROOT / "docs/examples/same_masks.py").read_text(), tmp_path).splitlines()
    hashes = dict(line.split() for line in lines)
    assert set(hashes) == set(pernodedrop.backends.NAMES)
    assert len(set(hashes.values())) == 1

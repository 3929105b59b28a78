"""The recipes of CONTRIBUTING.md, followed to the letter, but for long checks, on a copy of the checkout."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.__main__ import has_keras

ROOT = pathlib.Path(__file__).parent.parent
LEFT = shutil.ignore_patterns(".*", "_build", "*.egg-info", "dist", "build", "results", "*-results")
WITHOUT_TENSORFLOW = """
import runpy, sys
sys.modules["tensorflow"] = None  # which Keras would import on other backends too, for seconds
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""Runs a module as `python -m` does."""
pytestmark = [pytest.mark.once, pytest.mark.slow]


def recipes():
    """The blocks of each recipe, by its name: (language, text) in order."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    parts = re.split(r"^## Recipe: (.*)\n", text, flags=re.MULTILINE)[1:]
    texts = dict(zip(parts[::2], (part.partition("\n## ")[0] for part in parts[1::2]), strict=True))
    return {name: re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE) for name, text in texts.items()}


def change(block, checkout):
    """Do what a diff says: its lines with + and without, in the place of those with - and without."""
    (origin, *lines) = block.splitlines()
    if origin == "--- /dev/null":
        path, old = checkout / lines.pop(0).removeprefix("+++ "), ""
        assert not path.exists()
        path.touch()
    else:
        path = checkout / origin.removeprefix("--- ")
        old = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
        assert path.read_text().count(old) == 1, f"{path} has not once:\n{old}"
    new = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "-")
    path.write_text(path.read_text().replace(old, new, 1))


def run(command, checkout):
    """Run a command in the changed checkout."""
    module, *arguments = shlex.split(command.removeprefix("python -m "))
    if arguments[:1] == [
        "check"
    ]:  # by every claim; how hard it searches, and on which backends, is told in test_testing
        arguments += ["--examples", "2", *([] if "--backends" in arguments else ["--backends", "numpy"])]
    env = {**os.environ, "PYTHONPATH": str(checkout), "MPLBACKEND": "agg"}
    start = [sys.executable, "-c", WITHOUT_TENSORFLOW, module, *arguments]
    done = subprocess.run(start, cwd=checkout, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"$ {command}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"


@pytest.mark.parametrize("name", ["a noise", "a layer", "a backend"])
def test_a_recipe_works_as_it_stands(name, tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, symlinks=True, ignore=LEFT)
    steps = recipes()[name]
    if not has_keras("numpy") and any("family_answers" in text for _, text in steps):
        pytest.skip("Keras' NumPy backend, which answers, needs jax")
    assert {language for language, _ in steps} == {"diff", "sh"}
    for language, text in steps:
        if language == "diff":
            change(text, checkout)
        else:
            for command in text.splitlines():
                run(command, checkout)


def test_there_is_no_other_recipe():
    assert list(recipes()) == ["a noise", "a layer", "a backend"]

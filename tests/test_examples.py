"""The examples that people copy, run as they stand."""

import os
import pathlib
import subprocess
import sys

import keras
import pytest

import pernodedrop
from pernodedrop.report.environment import installed_backends
from tests import documents

BACKEND = keras.backend.backend()
WIDTH = 88  # what a page of the site shows without scrolling
HERE = str(pathlib.Path(pernodedrop.__file__).parent.parent)
pytestmark = pytest.mark.skipif(
    not (documents.ROOT / "README.md").exists(), reason="the documents are in the checkout, not beside a wheel"
)


@pytest.mark.slow
def test_examples_run():
    code, output = documents.run(BACKEND, PYTHONPATH=HERE)
    assert code == 0, output[-5000:]
    assert output.count("\nok ") + output.startswith("ok ") == len(documents.share(BACKEND))


@pytest.mark.once
def test_every_example_is_run_where_it_says_or_on_one_of_any():
    ran = {name: {example[:2] for example in documents.share(name)} for name in documents.BACKENDS}
    for name in documents.BACKENDS:
        for file, line, code in documents.examples(name):
            places = sum((file, line) in some for some in ran.values())
            anywhere = code.startswith("# any backend")
            assert places == (1 if anywhere and file != "README.md" else 3 if anywhere else 1), f"{file}:{line}"
            assert anywhere or (file, line) in ran[name]
    assert max(map(len, ran.values())) < 55


@pytest.mark.once
def test_the_lines_of_examples_fit_the_pages():
    examples = {example for name in documents.BACKENDS for example in documents.examples(name)}
    for file, line, code in sorted(examples):
        wide = [text for text in code.splitlines() if len(text) > WIDTH and file != "README.md"]
        assert wide == [], f"{file}:{line}"


def write(folder, monkeypatch, text):
    """A documentation of one page."""
    monkeypatch.setattr(documents, "ROOT", folder)
    (folder / "docs").mkdir()
    (folder / "README.md").write_text("")
    (folder / "docs" / "page.md").write_text(text)


@pytest.mark.once
@pytest.mark.parametrize("block", ["```python\nx = 1\n```", "```python\n# Torch\n```", "```py\n# torch\n```"])
def test_a_block_that_nothing_would_run_is_an_error(tmp_path, monkeypatch, block):
    write(tmp_path, monkeypatch, f"Text.\n\n{block}\n")
    with pytest.raises(ValueError, match=r"docs/page\.md:4: expected"):
        documents.examples("torch")


@pytest.mark.once
def test_an_example_that_fails_is_named_by_its_page_and_line(tmp_path, monkeypatch, capsys):
    right, wrong = "```python\n# numpy\nx = 1\n```\n", "- A list:\n\n  ```python\n  # numpy\n  y = x\n  ```\n"
    write(tmp_path, monkeypatch, f"{right}{wrong}{right}")
    found = documents.examples("numpy")
    assert [example.line for example in found] == [2, 8, 12]
    assert documents.run_here(found) == 1
    assert "FAILED docs/page.md:9: NameError\n" in capsys.readouterr().out


@pytest.mark.once
def test_an_example_for_any_backend_sets_the_one_under_test(tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, '```python\n# any backend\nos.environ["KERAS_BACKEND"] = "jax"  # or\n```\n')
    (example,) = documents.examples("torch")
    assert example.code.splitlines()[1] == 'os.environ["KERAS_BACKEND"] = "torch"  # or'
    assert documents.examples("numpy") == []


@pytest.mark.slow
@pytest.mark.once
def test_masks_of_all_frameworks_have_the_same_hash():
    """By the script of the documents, in one process, with the frameworks that are installed."""
    script, names = documents.ROOT / "docs" / "examples" / "same_masks.py", installed_backends()
    code = f"import runpy; print(*map(runpy.run_path({str(script)!r})['masks_hash'], {names}))"
    env = {**os.environ, "PYTHONPATH": HERE}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    hashes = done.stdout.split()
    assert len(hashes) == len(names) >= 2
    assert len(set(hashes)) == 1

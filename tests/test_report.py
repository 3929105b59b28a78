"""What commands that report figures share: environments, files of results, tables, figures, processes."""

import json
import os
import pathlib
import platform
import subprocess
import sys
import types
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import pernodedrop
from pernodedrop.report import environment, process, results, table
from tests.commands import IMPOSSIBLE

ROOT = pathlib.Path(pernodedrop.__file__).parent.parent

pytestmark = pytest.mark.once


def test_the_environment_is_plain_and_imports_nothing():
    code = "import json, sys, pernodedrop.report.environment as e; print(json.dumps([e.environment(), [*sys.modules]]))"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "theano"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    about, modules = json.loads(done.stdout)
    assert about == environment.environment()
    assert about["pernodedrop"] == pernodedrop.__version__
    assert about["python"] == platform.python_version()
    assert about["numpy"] == np.__version__
    assert not {"keras", "torch", "jax", "tensorflow"} & {*modules}


def test_an_environment_is_described_with_what_there_is_of_it():
    about = {"pernodedrop": "0.1", "python": "3.11", "numpy": "2.0", "cores": 2, "processor": "a processor"}
    assert environment.describe(about) == "pernodedrop 0.1, Python 3.11, no Keras, NumPy 2.0, 2 cores; a processor"
    about |= {"keras": "3.15", "backend": "jax", "framework": "0.6", "device": "cpu:0"}
    assert "Python 3.11, Keras 3.15 on jax 0.6, NumPy 2.0, device cpu:0, 2 cores" in environment.describe(about)
    assert environment.describe(about | {"cores": 1}).endswith(", 1 core; a processor")


def test_a_version_is_found_by_the_name_that_is_imported():
    assert environment.version("numpy") == np.__version__
    assert environment.version("pytest") == pytest.__version__
    assert environment.version("no_such_package") is None


CPUINFO = """processor\t: {}
cpu family\t: 6
model\t\t: 85
model name\t: A Processor @ 2.00GHz
flags\t\t: fpu sse2 avx avx2 {}

"""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("".join(CPUINFO.format(n, "avx512f") for n in (0, 1)), "A Processor @ 2.00GHz, family/model 6/85, avx512f"),
        (CPUINFO.format(0, ""), "A Processor @ 2.00GHz, family/model 6/85, avx2"),
        ("processor\t: 0\nFeatures\t: fp asimd\n", platform.machine()),
        (None, platform.processor() or platform.machine()),
    ],
)
def test_the_processor_is_what_the_system_says(text, name, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(environment, "pathlib", types.SimpleNamespace(Path={"/proc/cpuinfo": file}.get))
    assert environment.processor() == name


def test_the_machine_is_not_named():
    assert platform.node() not in json.dumps(environment.machine())


@pytest.mark.parametrize("path", IMPOSSIBLE)
def test_a_folder_that_cannot_be_written_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("taken").write_text("mine")
    with pytest.raises(ValueError, match=r"argument `output`. Expected a folder that can be written. Received"):
        results.output_folder(path)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_folder_is_made_and_left_as_it_was(tmp_path):
    folder = results.output_folder(tmp_path / "new" / "folder")
    (folder / "mine").write_text("mine")
    assert results.output_folder(folder) == folder
    assert [path.name for path in folder.iterdir()] == ["mine"]


class Runs(results.Results):
    facts = ("rate",)
    kinds = ("runs",)


def test_results_go_on_from_their_file(tmp_path):
    first = Runs(tmp_path / "runs.json")
    first.rate = 0.5
    first.check_environment("jax", {"framework": "0.6"})
    first.add("runs", {"key": "a", "losses": [1.0, 0.5]})
    first.add("runs", {"key": "a", "losses": []})
    second = Runs(tmp_path / "runs.json")
    assert second.runs == [{"key": "a", "losses": [1.0, 0.5]}]
    assert second.plain() == first.plain() == Runs.read(tmp_path / "runs.json")
    assert second.rate == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["runs.json"]
    assert '"losses": [ 1.0, 0.5 ]' in (tmp_path / "runs.json").read_text()


def test_results_of_other_versions_or_another_machine_are_not_gone_on_from(tmp_path, monkeypatch):
    first = Runs(tmp_path / "runs.json")
    first.check_environment("jax", {"framework": "0.6"})
    first.add("runs", {"key": "a"})
    with pytest.raises(results.WrongOutput, match=r"jax's environment: framework was '0.6' and is '0.7'"):
        Runs(tmp_path / "runs.json").check_environment("jax", {"framework": "0.7"})
    monkeypatch.setattr(results, "machine", lambda: {"cores": 999})
    with pytest.raises(results.WrongOutput, match=r"cores was .* and is 999"):
        Runs(tmp_path / "runs.json")


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", '{"format": 1}', '{"format": 1, "machine": {}, "records": []}', b"\xff"]
)
def test_a_file_of_another_kind_is_left_alone(text, tmp_path):
    file = tmp_path / "runs.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = file.read_bytes()
    with pytest.raises(results.WrongOutput, match=r"Expected a folder without a runs.json of another kind"):
        Runs(file)
    assert file.read_bytes() == before


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path):
    (tmp_path / "runs.json").mkdir()
    with pytest.raises(results.WrongOutput):
        Runs(tmp_path / "runs.json")


def test_a_process_runs_this_very_package(tmp_path, monkeypatch):
    """Not what lies in the working folder under the same name."""
    (tmp_path / "pernodedrop").mkdir()
    (tmp_path / "pernodedrop" / "__init__.py").write_text("raise SystemExit('another package')")
    monkeypatch.chdir(tmp_path)
    output, _ = process.start("pernodedrop", "--version").communicate()
    assert output == f"pernodedrop {pernodedrop.__version__}\n"


def test_tables():
    lines = [["name", "time"], ["a|b", "1.5"], ["c", ""]]
    assert table.as_text(lines) == "name  time\na|b   1.5\nc"
    assert table.as_markdown(lines) == "| name | time |\n| --- | --- |\n| a\\|b | 1.5 |\n| c |  |"


def test_a_figure_is_an_svg_in_the_colour_of_the_text_around_it():
    pytest.importorskip("matplotlib", reason="an extra draws")
    from matplotlib.figure import Figure

    from pernodedrop.report import figures

    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 2], color=figures.BLACK, label="a line")
    figures.legend(figure, axes)
    one, two = figures.svg(figure, 'a "name" <& more>'), figures.svg(figure, "two")
    assert ET.fromstring(one).get("aria-label") == 'a "name" <& more>'
    assert "#000000" not in one
    assert "a line" in one
    ids = [{part.partition('"')[0] for part in text.split(' id="')[1:]} for text in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]

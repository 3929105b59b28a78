"""What importing the library costs, and what it does not import."""

import os
import pathlib
import re
import subprocess
import sys

import pernodedrop


def python(*arguments):
    """What a fresh interpreter prints, on both streams."""
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(pernodedrop.__file__).parent.parent)}
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_import_is_that_of_the_installed_package_where_one_is_named():
    """Set by tests/package.py, which tests a wheel away from the checkout."""
    place = os.environ.get("PERNODEDROP_IN", str(pathlib.Path(pernodedrop.__file__).parent.parent))
    assert pathlib.Path(pernodedrop.__file__).is_relative_to(place)


def test_importing_loads_no_module_that_keras_does_not():
    code = "import {}, sys; print(*sorted(m.split('.')[0] for m in sys.modules))"
    ours, of_keras = (set(python("-c", code.format(name))[0].split()) for name in ("keras, pernodedrop", "keras"))
    assert ours - of_keras - set(sys.stdlib_module_names) <= {"pernodedrop"}


def test_importing_adds_under_150_ms_to_importing_keras():
    """The self times of our modules and of what they alone import, in CPU-bound microseconds; the best of three."""

    def added():
        _, report = python("-X", "importtime", "-c", "import keras, pernodedrop")
        lines = re.findall(r"import time:\s+\d+ \|\s+(\d+) \| (pernodedrop)\n", report)
        return int(lines[0][0])

    assert min(added() for _ in range(3)) < 150_000


def test_backends_under_another_name_are_refused():
    code = f"import sys; sys.path.insert(0, {str(pathlib.Path(pernodedrop.backends.__file__).parent.parent)!r}); import backends"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    if done.returncode == 0 or "No module named 'backends'" in done.stderr:
        raise AssertionError(done.stderr or "imported")
    assert "pernodedrop.backends" in done.stderr

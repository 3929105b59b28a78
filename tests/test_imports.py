"""What importing the library costs, and what it does not import."""

import os
import pathlib
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
    """Which is also why it is quick: all that is added are the library's own files."""
    code = "import {}, sys; print(*sorted(sys.modules))"
    ours, of_keras = (set(python("-c", code.format(name))[0].split()) for name in ("keras, pernodedrop", "keras"))
    added = {name for name in ours - of_keras if name.partition(".")[0] not in sys.stdlib_module_names}
    assert all(name.partition(".")[0] == "pernodedrop" for name in added), added


def test_backends_under_another_name_are_refused():
    place = str(pathlib.Path(pernodedrop.backends.__file__).parent.parent)
    code = f"import sys; sys.path.insert(0, {place!r}); import backends"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert done.returncode
    assert "import this folder as `pernodedrop.backends`" in done.stderr

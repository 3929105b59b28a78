"""What importing the library costs, what it does not import, and that its files import downwards only."""

import os
import pathlib
import subprocess
import sys

import keras
import pytest

import pernodedrop as pnd
from tests import house

HERE = pathlib.Path(pnd.__file__).parent.parent


def python(*arguments):
    """What a fresh interpreter prints, on both streams."""
    env = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_import_is_that_of_the_installed_package_where_one_is_named():
    """Set by tests/package.py, which tests a wheel away from the checkout."""
    assert pathlib.Path(pnd.__file__).is_relative_to(os.environ.get("PERNODEDROP_IN", str(HERE)))


without_keras = pytest.mark.only_backend("numpy", reason="without Keras there is no backend to choose")
ADDED = """
import sys, {first}
before = {{*sys.modules}}
import pernodedrop
added = {{name for name in {{*sys.modules}} - before if name.partition(".")[0] not in sys.stdlib_module_names}}
print(*sorted(added))
"""
"""Prints the modules that the library adds to those of the packages that are imported first."""


@without_keras
def test_importing_loads_neither_keras_nor_a_framework():
    added = python("-c", ADDED.format(first="numpy.typing"))[0].split()
    assert all(name.partition(".")[0] == "pernodedrop" for name in added), added
    assert not any(name.startswith("pernodedrop.layers") for name in added), added


@pytest.mark.slow
def test_importing_beside_keras_loads_the_layers_and_no_module_of_others(tmp_path):
    """So that a saved model, whose layers may be all that a script knows of the library, is loaded."""
    schedule = pnd.schedules.Linear(0.0, 0.5, 9)
    model = keras.Sequential([keras.Input((3,)), pnd.PerNodeDense(2, schedule, "gaussian")])
    model.save(path := str(tmp_path / "model.keras"))
    load = f"print(keras.saving.load_model({path!r}).layers[0].schedule)"
    added, loaded = python("-c", ADDED.format(first="keras") + load)[0].splitlines()
    assert "pernodedrop.layers.weight.per_node_drop" in added.split()
    assert all(name.partition(".")[0] == "pernodedrop" for name in added.split()), added
    assert loaded == repr(schedule)


CORE = """
import sys
sys.modules["keras"] = None  # how Python says that there is no such module
import numpy as np, pernodedrop as pnd
from pernodedrop import checks, generator, mask, noise, registry, state
from pernodedrop.uncertainty import calibration, decisions, metrics, prediction
class Sign(pnd.Noise):
    variance = 1.0
    def from_uniform(self, u, params, xp):
        return 1 + xp.sign(u - 0.5)
x, w, key, drop = np.ones((2, 3), "float32"), np.ones((3, 4), "float32"), (1, 0), pnd.Bernoulli(0.5)
found = [
    pnd.ops.masked_dense(x, w, Sign(), key).shape == (2, 4),
    pnd.ops.sample_mask(drop, key, (2, 3, 4)).sum() == pnd.ops.masked_dense(x, w, drop, key).sum(),
    "saving" not in pnd.testing.check_noise(Sign(), backends=["numpy"], examples=2).held,
    "PerNodeDrop" in dir(pnd),
    {"predict", "metrics"} <= {*dir(pnd.uncertainty)},
    "BrierScore" in dir(metrics) and metrics.nll([0, 1], [[1.0, 0.0], [0.0, 1.0]]) == 0,
    prediction.collected([iter([{None: np.eye(2)}])], 1, 0).report([0, 1])["accuracy"] == 1,
]
for module, name in ((pnd, "PerNodeDrop"), (pnd.uncertainty, "predict"), (metrics, "CalibrationError")):
    try:
        found.append(getattr(module, name) is None)
    except ImportError as error:
        found.append("Keras runs on the framework" in str(error))
print(all(found))
"""


@without_keras
def test_the_core_works_without_keras():
    assert python("-W", "ignore", "-c", CORE)[0].split() == ["True"]


@pytest.mark.once
def test_what_a_wing_needs_is_named():
    code = "import sys; sys.modules['hypothesis'] = sys.modules['keras'] = None; import pernodedrop as pnd; pnd.{}"
    for name, words in (
        (
            "testing",
            "pernodedrop.testing needs hypothesis, which is not installed. Try: pip install 'pernodedrop[testing]'",
        ),
        ("PerNodeDrop", "pernodedrop.layers needs keras, which is not installed. Keras runs on the framework that the"),
    ):
        done = subprocess.run([sys.executable, "-c", code.format(name)], capture_output=True, text=True)
        assert words in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.only_backend("torch", reason="torch's compiler is what it is about")
def test_a_product_on_torch_imports_neither_its_compiler_nor_keras():
    """torch._dynamo takes longer to import than all else."""
    code = (
        "import sys, torch, pernodedrop as pnd; x, w = torch.ones(2, 3), torch.ones(3, 4);"
        "pnd.ops.masked_dense(x, w, pnd.Bernoulli(0.5), (1, 0), method='materialized');"
        "pnd.ops.masked_dense(x, w, pnd.Gaussian(0.5), (1, 0));"
        "print({'torch._dynamo', 'keras'} & {*sys.modules})"
    )
    assert python("-c", code)[0].strip() == "set()"


@without_keras
def test_backends_under_another_name_are_refused():
    place = str(pathlib.Path(pnd.backends.__file__).parent.parent)
    code = f"import sys; sys.path.insert(0, {place!r}); import backends"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert done.returncode
    assert "import this folder as `pernodedrop.backends`" in done.stderr


@pytest.mark.once
@pytest.mark.parametrize("name", house.modules())
def test_a_file_imports_no_file_above_it_no_other_framework_and_no_private_name(name):
    assert list(house.problems(name)) == []


@pytest.mark.once
def test_no_files_import_each_other_in_a_circle():
    assert house.circle(house.graph()) is None


@pytest.mark.once
def test_every_row_and_every_exception_is_needed():
    assert list(house.unneeded()) == []


@pytest.mark.once
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("from pernodedrop import layers", "noise imports layers, which comes later in the house"),
        (
            "from pernodedrop.layers.base.noisy import xp",
            "noise imports layers.base.noisy, which comes later in the house",
        ),
        ("import pernodedrop", "noise imports __init__, which comes later in the house"),
        ("from . import mask", "noise, line 1, imports .mask relative to itself"),
        ("def f(): import jax.numpy", "noise, line 1, imports jax.numpy, and is not in USERS_OF_FRAMEWORKS"),
        ("from keras.src.backend import x", "imports keras.src.backend.x, a private name"),
        ("def f(): import torch._dynamo", "imports torch._dynamo, a private name"),
        ("from torch import nn, _C", "imports torch._C, a private name"),
        ("from numpy import _core", "imports numpy._core, a private name"),
        ("def f(layer): return layer._kernel", "noise, line 1, uses _kernel, a private name"),
    ],
)
def test_the_house_refuses(line, words, tmp_path, monkeypatch):
    (tmp_path / "noise.py").write_text(line)
    changed = {**house.modules(), "noise": tmp_path / "noise.py"}
    monkeypatch.setattr(house, "modules", lambda: changed)
    monkeypatch.setattr(house, "graph", house.graph.__wrapped__)
    assert words in "\n".join(house.problems("noise"))


@pytest.mark.once
def test_a_file_named_like_a_framework_is_found(monkeypatch):
    monkeypatch.setattr(house, "HOUSE", "torch torch.transformers nnx.torch")
    monkeypatch.setattr(house, "graph", lambda: dict.fromkeys(house.HOUSE.split(), ()))
    monkeypatch.setattr(house, "imports", lambda name: ())
    monkeypatch.setattr(house, "attributes", lambda name: ())
    found = {name: list(house.problems(name)) for name in house.graph()}
    for name in ("torch.transformers", "nnx.torch"):
        assert found[name] == [f"{name} is named like a framework, which a script run beside it could not import"]
    assert found["torch"] == []


@pytest.mark.once
def test_a_circle_is_found():
    turns = ("a imports b imports c imports a", "b imports c imports a imports b", "c imports a imports b imports c")
    assert house.circle({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) in [f"a circle: {turn}" for turn in turns]


@pytest.mark.once
def test_the_command_prints_every_file_and_that_there_is_no_problem():
    lines = python("-m", "tests.house")[0].splitlines()
    assert {line.split()[0] for line in lines if line} >= set(house.modules())
    assert lines[-1].endswith(" 0 problems")

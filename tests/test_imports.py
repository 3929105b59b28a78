"""What importing the library costs, what it does not import, and that its files import downwards only."""

import ast
import fnmatch
import os
import pathlib
import subprocess
import sys

import pytest

import pernodedrop

FOLDER = pathlib.Path(pernodedrop.__file__).parent

HOUSE = """
    _version _types registry
    internals internals.*
    checks generator
    noise schedules
    mask
    backends
    backends.methods
    backends.cpu_kernels backends.triton_kernels
    backends.xla_kernels
    backends.*_ops
    ops state
    layers.base.contraction layers.base.regularizer
    layers.base.convolution layers.base.noisy
    layers.base.composite layers.base.inner layers.base.stochastic
    layers.base.activation_noise layers.base.weight_noise
    layers.base.shaped_noise
    layers.base.spatial_noise
    layers.base
    layers.activation.* layers.weight.*
    layers.activation layers.weight
    layers
    surgery.graphs
    surgery.places
    surgery.configs
    surgery.copying
    surgery
    losses uncertainty
    report
    report.environment report.figures report.process report.table
    report.results
    testing testing.*
    __init__
    commands
    commands.framework commands.probe
    commands.doctor
    commands.bench.matrix
    commands.bench.products
    commands.bench.steps
    commands.bench.limits commands.bench.memory commands.bench.timing
    commands.bench.network commands.bench.results commands.bench.table
    commands.bench.charts
    commands.bench.page
    commands.bench commands.bench.command commands.bench.worker
    commands.check commands.demo
    commands.cli
    __main__
"""
"""The house, from the ground up: a file imports from its own row or from rows above it in this list, nothing else."""

UPWARD = {}
"""Imports that go up all the same: (file, what it imports) and the reason."""

FRAMEWORKS = {"tensorflow", "torch", "jax", "jaxlib", "triton"}

KERNELS = {
    "backends.triton_kernels": {"torch", "triton"},
    "backends.xla_kernels": {"jax"},
    "internals.of_tensorflow": {"tensorflow"},
    "internals.of_torch": {"torch"},
}
"""Files that are written against a framework and imported where that one is used alone, and which one."""

USERS_OF_FRAMEWORKS = {
    "commands.bench.memory": "asks each framework for the memory that it has on a GPU",
    "commands.bench.products": "writes by hand what users of each framework do",
    "commands.bench.steps": "compiles, differentiates and waits as each framework does",
    "commands.demo": "switches the compilation cache of JAX on",
    "uncertainty": "compiles the passes with jax.jit, which leaves the model its weights",
    "testing.frameworks": "compiles and differentiates on every framework, to test a noise there",
}
"""Files beside the backends that import frameworks, inside functions, and the reason."""


def modules():
    """The library's files, by name: those of `pernodedrop/` without the prefix, a folder for its `__init__.py`."""
    files = {file.relative_to(FOLDER): file for file in FOLDER.glob("**/*.py")}
    # an editable install need not have the link that glob follows in a wheel
    files |= {"backends" / file.relative_to(place): file for place in _backends() for file in place.glob("*.py")}
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): file for path, file in files.items()}
    return dict(sorted(names.items()))


def _backends():
    return [pathlib.Path(place) for place in pernodedrop.backends.__path__]


def imports(name, file):
    """What a file imports, at its top and inside functions: (full name, whether inside a function)."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relative to itself"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = whole.removeprefix("pernodedrop.") in modules()
                yield (whole if is_module else node.module), id(node) in inside


def row(name):
    """Which row of the house a file stands in."""
    rows = [line.split() for line in HOUSE.strip().splitlines()]
    exact = [n for n, patterns in enumerate(rows) if name in patterns]
    found = exact or [n for n, patterns in enumerate(rows) if any(fnmatch.fnmatch(name, p) for p in patterns)]
    assert found, f"{name} has no place in HOUSE of {__file__}"
    return found[0]


def python(*arguments):
    """What a fresh interpreter prints, on both streams."""
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(pernodedrop.__file__).parent.parent)}
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_import_is_that_of_the_installed_package_where_one_is_named():
    """Set by tests/package.py, which tests a wheel away from the checkout."""
    place = os.environ.get("PERNODEDROP_IN", str(pathlib.Path(pernodedrop.__file__).parent.parent))
    assert pathlib.Path(pernodedrop.__file__).is_relative_to(place)


def test_importing_loads_neither_keras_nor_a_framework():
    code = "import {}, sys; print(*sorted(sys.modules))"
    ours, of_numpy = (set(python("-c", code.format(name))[0].split()) for name in ("pernodedrop", "numpy.typing"))
    added = {name for name in ours - of_numpy if name.partition(".")[0] not in sys.stdlib_module_names}
    assert all(name.partition(".")[0] == "pernodedrop" for name in added), added
    assert not any(name.startswith("pernodedrop.layers") for name in added), added


def test_importing_beside_keras_loads_the_layers_and_no_module_of_others():
    code = "import {}, sys; print(*sorted(sys.modules))"
    ours, of_keras = (set(python("-c", code.format(name))[0].split()) for name in ("keras, pernodedrop", "keras"))
    added = {name for name in ours - of_keras if name.partition(".")[0] not in sys.stdlib_module_names}
    assert all(name.partition(".")[0] == "pernodedrop" for name in added), added


def test_a_saved_model_is_loaded_where_both_are_imported(tmp_path):
    path = str(tmp_path / "model.keras")
    make = (
        "import keras, pernodedrop as pnd; layer = pnd.PerNodeDense(2, pnd.schedules.Linear(0.0, 0.5, 9), 'gaussian');"
        f"keras.Sequential([keras.Input((3,)), layer]).save({path!r})"
    )
    load = f"import keras, pernodedrop; print(keras.saving.load_model({path!r}).layers[0].schedule)"
    python("-c", make)
    assert python("-c", load)[0].strip() == "Linear(start=0.0, end=0.5, steps=9, begin=0)"


CORE = """
import sys
sys.modules["keras"] = None  # how Python says that there is no such module
import numpy as np, pernodedrop as pnd
from pernodedrop import checks, generator, mask, noise, registry, state
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
]
try:
    pnd.PerNodeDrop
except ImportError:
    print(all(found))
"""


def test_the_core_works_without_keras():
    assert python("-W", "ignore", "-c", CORE)[0].split() == ["True"]


def test_backends_under_another_name_are_refused():
    place = str(pathlib.Path(pernodedrop.backends.__file__).parent.parent)
    code = f"import sys; sys.path.insert(0, {place!r}); import backends"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert done.returncode
    assert "import this folder as `pernodedrop.backends`" in done.stderr


@pytest.mark.parametrize("name", modules())
def test_a_file_imports_no_file_above_it(name):
    own = row(name)
    for imported, _ in imports(name, modules()[name]):
        package, _, inner = imported.partition(".")
        if package == "pernodedrop" and (name, inner) not in UPWARD:
            assert row(inner or "__init__") <= own, f"{name} imports {imported}, which stands above it"


@pytest.mark.parametrize("name", modules())
def test_only_a_backend_imports_its_framework(name):
    for imported, is_lazy in imports(name, modules()[name]):
        framework = imported.partition(".")[0]
        if framework in FRAMEWORKS - KERNELS.get(name, set()) and name != f"backends.{framework}_ops":
            assert name in USERS_OF_FRAMEWORKS, f"{name} imports {imported}"
            assert is_lazy, f"{name} imports {imported} when it is imported itself"


def test_every_row_and_every_exception_is_needed():
    assert {name for name in HOUSE.split() if "*" not in name} <= set(modules())
    for name, inner in UPWARD:
        assert f"pernodedrop.{inner}" in dict(imports(name, modules()[name]))
    for name in USERS_OF_FRAMEWORKS:
        assert FRAMEWORKS & {imported.partition(".")[0] for imported, _ in imports(name, modules()[name])}

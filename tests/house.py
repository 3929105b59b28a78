"""`python -m tests.house`: who imports whom in the library; fails on an arrow up, a circle or a private import.

Reads the files, and imports none of them.
"""

import ast
import collections
import fnmatch
import functools
import graphlib
import importlib.util
import itertools
import pathlib
import sys
import typing

HOUSE = """
    _version _types _lazy registry
    internals internals.*
    checks generator
    noise schedules
    mask
    blocks
    backends
    backends.programs
    backends.methods
    backends.sparse_methods
    backends.vectors
    backends.bit_kernels
    backends.decision_kernels backends.triton_kernels
    backends.triton_shared_kernels
    backends.program_kernels
    backends.cpu_kernels
    backends.torch_products backends.xla_kernels
    backends.*_ops
    ops
    state
    members preferences recurrence
    modules rules
    uncertainty.metrics.arrays
    uncertainty.metrics.classification uncertainty.metrics.regression uncertainty.metrics.selection
    uncertainty.metrics.accumulated
    uncertainty.metrics
    uncertainty.report
    uncertainty.calibration uncertainty.decisions uncertainty.prediction
    uncertainty.native
    layers.base.around layers.base.contraction layers.base.module layers.base.saving
    layers.base.noise_layer
    layers.base.convolution layers.base.lookup layers.base.noisy
    layers.base.composite layers.base.inner layers.base.stochastic
    layers.base.activation_noise layers.base.around_attention layers.base.posterior layers.base.weight_noise
    layers.base.shaped_noise
    layers.base.spatial_noise
    layers.base
    layers.recurrent.cells
    layers.recurrent.recurrent_noise
    layers.recurrent.recurrent_posterior
    layers.activation.* layers.recurrent.* layers.weight.*
    layers.activation layers.recurrent layers.weight
    layers
    contrast.several
    contrast.capsules contrast.columns contrast.exits contrast.experts
    contrast
    surgery.graphs
    surgery.places
    surgery.configs
    surgery.copying
    surgery.weights
    surgery.wrappers
    surgery
    losses
    uncertainty.batches uncertainty.changes
    uncertainty.passes
    uncertainty.ensembles uncertainty.models
    uncertainty
    torch.noisy torch.products
    torch.activation_noise torch.composite torch.weight_noise
    torch.attention torch.drop_connect torch.dynamic_drop_connect torch.per_node_drop torch.recurrent
    torch.of_transformers
    torch.surgery torch.uncertainty
    torch
    nnx.noisy nnx.products
    nnx.activation_noise nnx.weight_noise
    nnx.drop_connect nnx.dynamic_drop_connect nnx.per_node_drop
    nnx.surgery nnx.uncertainty
    nnx
    equinox.noisy equinox.products
    equinox.activation_noise equinox.weight_noise
    equinox.drop_connect equinox.dynamic_drop_connect equinox.per_node_drop
    equinox.surgery
    equinox.uncertainty
    equinox
    report
    report.environment report.figures report.pages report.process report.table
    report.results uncertainty.plots
    testing testing.*
    study.plan study.variants
    study.datasets.files study.datasets.mel
    study.datasets.images study.datasets.plane study.datasets.speech study.datasets.text
    study.datasets study.networks study.statistics
    study.report.published
    study.report.findings
    study.report.charts study.report.verdict
    study.report.tables
    study.report
    study.slot study.storage
    study.epoch_end
    study.trial
    study.runner
    study.study
    study.named
    study
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
    commands.check commands.study
    commands.demo
    commands.cli
    __main__
"""
"""The house, from the ground up: a file imports from its own row or from earlier rows of this list, nothing else."""

UPWARD = {}
"""Imports that go up all the same: (file, what it imports) and the reason."""

FRAMEWORKS = {"tensorflow", "torch", "jax", "jaxlib", "triton", "flax", "equinox", "transformers"}

KERNELS = {
    "backends.torch_products": {"torch"},
    "backends.triton_kernels": {"torch", "triton"},
    "backends.triton_shared_kernels": {"torch", "triton"},
    "backends.xla_kernels": {"jax"},
    "internals.of_tensorflow": {"tensorflow"},
    "internals.of_torch": {"torch"},
    "torch.of_transformers": {"transformers"},
}
"""Files that are written against a framework and imported where that one is used alone, and which one."""

WINGS = {"torch": {"torch"}, "nnx": {"jax", "flax"}, "equinox": {"jax", "equinox"}}
"""Folders of modules of a framework, each named like it, and what all files of one may import."""

USERS_OF_FRAMEWORKS = {
    "commands.bench.memory": "asks each framework for the memory that it has on a GPU",
    "commands.bench.products": "writes by hand what users of each framework do",
    "commands.bench.steps": "compiles, differentiates and waits as each framework does",
    "study.runner": "switches the compilation cache of JAX on",
    "uncertainty.changes": "has the modules of torch make noise, of a seed",
    "uncertainty.passes": "compiles passes with jax.jit, which leaves weights alone",
    "testing.frameworks": "compiles and differentiates on every framework, to test a noise there",
}
"""Files beside the backends that import frameworks, inside functions, and the reason."""

PRIVATE_FOLDERS = {"keras": {"src"}, "tensorflow": {"python", "core", "compiler"}}
"""Folders of a package that are private although their names have no underscore."""


def is_private(part):
    """Whether a part of a name is private by its underscore."""
    return part.startswith("_") and not part.startswith("__") and part != "_" and part.isidentifier()


PYTHON = {"_asdict", "_fields", "_getframe", "_replace"}
"""Names with an underscore that Python documents."""


class Import(typing.NamedTuple):
    """One name that a file imports: its full name, whether not when it is imported itself, and the line."""

    name: str
    is_lazy: bool
    line: int

    @property
    def package(self):
        return self.name.partition(".")[0]

    @property
    def file(self):
        """The library's file that it comes from, by its name in `modules()`; None for other packages."""
        if self.package != "pernodedrop":
            return None
        inner = self.name.removeprefix("pernodedrop").removeprefix(".")
        return inner if inner in modules() else inner.rpartition(".")[0] or "__init__"

    @property
    def is_private(self):
        """Whether it is a private name of another package."""
        package, *rest = self.name.split(".")
        inside = rest[:1] and rest[0] in PRIVATE_FOLDERS.get(package, ())
        return package != "pernodedrop" and bool(inside or any(map(is_private, [package, *rest])))


@functools.cache
def modules():
    """The library's files, by name: those of `pernodedrop/` without the prefix, a folder for its `__init__.py`."""
    folder = pathlib.Path(importlib.util.find_spec("pernodedrop").origin).parent
    backends = folder / "backends"  # in a checkout a link, which glob does not follow, or on Windows no folder
    backends = backends if backends.is_dir() else folder.parent / "backends"
    files = {file.relative_to(folder): file for file in folder.glob("**/*.py")}
    files |= {"backends" / file.relative_to(backends): file for file in backends.glob("*.py")}
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): file for path, file in files.items()}
    return dict(sorted(names.items()))


def imports(name):
    """What a file imports, at its top and inside functions."""
    return imports_of(modules()[name].read_text(encoding="utf-8"))


@functools.cache
def imports_of(text):
    """What a text of Python imports, as a tuple of `Import`."""
    found, later = [], [node for node in nodes_of(text) if isinstance(node, ast.FunctionDef) or for_type_checkers(node)]
    inside = {id(node) for outer in later for node in ast.walk(outer)}
    for node in nodes_of(text):
        if isinstance(node, ast.Import | ast.ImportFrom):
            start = (
                "" if isinstance(node, ast.Import) else "." * node.level + (f"{node.module}." if node.module else "")
            )
            found += [Import(start + alias.name, id(node) in inside, node.lineno) for alias in node.names]
    return tuple(found)


def nodes(name):
    """The nodes of the syntax tree of a file."""
    return nodes_of(modules()[name].read_text(encoding="utf-8"))


@functools.cache
def nodes_of(text):
    """The nodes of the syntax tree of a text, as a tuple."""
    return tuple(ast.walk(ast.parse(text)))


def attributes(name):
    """The names after a dot in a file, and those of arguments, which may become attributes, each with its line."""
    for node in nodes(name):
        if isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg, node.lineno


def defined(name):
    """The names that a file defines which may stand after a dot: functions, and attributes of objects."""
    for node in nodes(name):
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@functools.cache
def own_names():
    """The private names that are this library's: what a file of internals stores may be a framework's."""
    return PYTHON.union(*(defined(name) for name in modules() if not name.startswith("internals.")))


def for_type_checkers(node):
    """Whether a node of a syntax tree is `if typing.TYPE_CHECKING`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "typing.TYPE_CHECKING"


def packages(name):
    """The packages that are imported with a file: by itself, its folders, and the library's files that these import."""
    files, found = [name], set()
    for file in files:  # grows
        now = [i for i in imports(file) if not i.is_lazy]
        found |= {i.package for i in now}
        files += {file.rpartition(".")[0] or name, *(i.file or name for i in now)} - set(files)
    return found


@functools.cache
def graph():
    """The library's files that each file imports."""
    return {name: sorted({i.file for i in imports(name)} - {None, name}) for name in modules()}


def row(name):
    """Which row of the house a file stands in; None if in none."""
    rows = [line.split() for line in HOUSE.strip().splitlines()]
    exact = [n for n, names in enumerate(rows) if name in names]
    found = exact or [n for n, names in enumerate(rows) if any(fnmatch.fnmatch(name, pattern) for pattern in names)]
    return found[0] if found else None


def height(name):
    """Orders files from the ground up; those without a place come first."""
    return -1 if row(name) is None else row(name), name


def problems(name):
    """What is wrong with the imports of a file and the private names in it, as sentences."""
    if row(name) is None:
        yield f"{name} has no place in HOUSE of tests/house.py"
        return
    if name not in WINGS and name.rpartition(".")[2] in FRAMEWORKS | {"keras", "numpy"}:
        yield f"{name} is named like a framework, which a script run beside it could not import"
    for inner in graph()[name]:
        if (name, inner) not in UPWARD and row(inner) is not None and row(inner) > row(name):
            yield f"{name} imports {inner}, which comes later in the house"
    for found in imports(name):
        where = f"{name}, line {found.line}, imports {found.name}"
        if found.package == "":
            yield f"{where} relative to itself"
        own = KERNELS.get(name, set()) | WINGS.get(name.partition(".")[0], set())
        if found.package in FRAMEWORKS - own and name != f"backends.{found.package}_ops":
            if name not in USERS_OF_FRAMEWORKS:
                yield f"{where}, and is not in USERS_OF_FRAMEWORKS"
            elif not found.is_lazy:
                yield f"{where} when it is imported itself"
        if found.is_private and not name.startswith("internals."):
            yield f"{where}, a private name, which only a file of internals may"
    for attribute, line in attributes(name):
        if is_private(attribute) and attribute not in own_names() and not name.startswith("internals."):
            yield f"{name}, line {line}, uses {attribute}, a private name that no file outside internals defines"


def circle(arrows):
    """A sentence on files that import each other in a circle, or None."""
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        return f"a circle: {' imports '.join(reversed(error.args[1]))}"
    return None


def unneeded():
    """Rows and exceptions that no file needs any more, as sentences."""
    for name in HOUSE.split():
        if not fnmatch.filter(modules(), name):
            yield f"HOUSE has {name}, which is no file"
    for name, inner in UPWARD:
        if inner not in graph().get(name, ()):
            yield f"UPWARD has {name}, which does not import {inner}"
    for name in USERS_OF_FRAMEWORKS:
        if name not in modules() or not FRAMEWORKS & {found.package for found in imports(name)}:
            yield f"USERS_OF_FRAMEWORKS has {name}, which imports none"


def main():
    """Print the files row by row, with how many import each and what it imports; return 1 if something is wrong."""
    users = collections.Counter(inner for wanted in graph().values() for inner in wanted)
    width = max(map(len, graph()))
    print(f"{'file':<{width}}  imported by  imports")
    for _, names in itertools.groupby(sorted(graph(), key=height), key=row):
        print()
        for name in names:
            print(f"{name:<{width}}  {users[name]:>11}  {' '.join(sorted(graph()[name], key=height))}")
    wrong = [sentence for name in graph() for sentence in problems(name)]
    wrong += [*filter(None, [circle(graph())]), *unneeded()]
    print(f"\n{len(graph())} files, {sum(users.values())} imports, {len(wrong)} problems")
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

"""What is public: names and docstrings."""

import ast
import functools
import importlib.util
import inspect

import pytest

import pernodedrop as pnd
from tests import house

MODULES = [
    "backends",
    "contrast",
    "layers",
    "losses",
    "mask",
    "noise",
    "ops",
    "schedules",
    "study",
    "study.named",
    "study.variants",
    "surgery",
    "testing",
    "uncertainty",
    "uncertainty.calibration",
    "uncertainty.decisions",
    "uncertainty.ensembles",
    "uncertainty.metrics",
    "uncertainty.plots",
    *(("torch", "torch.uncertainty") if importlib.util.find_spec("torch") else ()),
    *(("nnx", "nnx.uncertainty") if importlib.util.find_spec("flax") else ()),
    *(("equinox", "equinox.uncertainty") if importlib.util.find_spec("equinox") else ()),
]
"""Public modules: what is in their `__all__` is public, under the top level's name if it has one."""

PUBLIC = sorted(name for name in pnd.__all__ if callable(getattr(pnd, name)))


@pytest.mark.once
@pytest.mark.parametrize("module", ["pernodedrop", *(f"pernodedrop.{name}" for name in MODULES)])
def test_all_lists_names_that_are_there_each_once_and_in_order(module):
    namespace = importlib.import_module(module)
    assert namespace.__all__ == sorted(set(namespace.__all__))
    assert [name for name in namespace.__all__ if not hasattr(namespace, name)] == []


@pytest.mark.once
@pytest.mark.parametrize("name", [*MODULES, "testing.claims"])
def test_what_a_module_defines_is_public_or_used_by_another_file_or_has_an_underscore(name):
    module = importlib.import_module(f"pernodedrop.{name}")
    defined = {n for n, thing in vars(module).items() if n[0] != "_" and is_defined_in(module.__name__, thing)}
    used = {used for other in house.modules() if other != name for used in names_in(other)}
    assert defined - set(module.__all__) - used == set()


def is_defined_in(module, thing):
    """Whether something is a function or a class of a module, and not imported by it."""
    return (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__ == module


@functools.cache
def names_in(name):
    """The names that a file of the library imports or takes from another."""
    nodes = list(ast.walk(ast.parse(house.modules()[name].read_text(encoding="utf-8"))))
    taken = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return taken | {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


@pytest.mark.once
@pytest.mark.parametrize("module", ["pernodedrop", "pernodedrop.layers"])
def test_all_leaves_out_nothing_that_is_imported_to_be_at_hand(module):
    namespace = importlib.import_module(module)
    visible = {name for name, value in vars(namespace).items() if name[0] != "_" and not inspect.ismodule(value)}
    assert visible <= set(namespace.__all__)


def test_every_layer_is_at_hand_at_the_top():
    assert set(pnd.layers.__all__) <= set(pnd.__all__)


@pytest.mark.parametrize(
    "function", [*(getattr(pnd, n) for n in PUBLIC), *(getattr(pnd.ops, n) for n in pnd.ops.__all__)]
)
def test_public_callables_have_a_docstring_with_an_example(function):
    assert function.__doc__, function
    assert function.__doc__.strip().partition("\n")[0].endswith((".", ":")), "the first line is a sentence"
    assert ">>> " in function.__doc__


def test_each_noise_of_a_name_is_public():
    for noise in pnd.noise.BY_NAME.values():
        assert getattr(pnd, noise.__name__) is noise
        assert noise.__name__ in pnd.noise.__all__

"""What is public: names, docstrings, and one list of ops that every backend has and means alike."""

import ast
import functools
import importlib
import inspect
import math

import numpy as np
import pytest
from scipy import special

import pernodedrop as pnd
from pernodedrop import backends
from pernodedrop.testing import frameworks
from tests import house
from tests.frameworks import NAME, XP, array, tensor

MODULES = ("backends", "layers", "losses", "mask", "noise", "ops", "schedules", "surgery", "testing", "uncertainty")
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


@pytest.mark.parametrize("name", frameworks.installed() if NAME == "numpy" else [NAME])
def test_a_backend_defines_every_op(name):
    namespace = backends.get(name)
    missing = [op for op in backends.OPS if not callable(getattr(namespace, op, None))]
    assert missing == []
    assert len(set(backends.OPS)) == len(backends.OPS)


def test_the_reference_documents_the_ops_that_are_its_own():
    own = [
        op for op in (*backends.WORD_OPS, *backends.ENTRY_OPS) if inspect.isfunction(getattr(backends.get("numpy"), op))
    ]
    undocumented = [op for op in own if not getattr(backends.get("numpy"), op).__doc__]
    assert undocumented == []


REALS = [-2.5, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0]
POSITIVE = [1e-3, 0.25, 1.0, 3.0]
INSIDE = [-0.999, -0.5, 0.0, 0.25, 0.999]
TRUTHS = {
    "abs": (abs, REALS),
    "sqrt": (math.sqrt, [0.0, *POSITIVE]),
    "exp": (math.exp, REALS),
    "expm1": (math.expm1, [1e-6, *REALS]),
    "log": (math.log, POSITIVE),
    "log1p": (math.log1p, [1e-6, -0.5, *POSITIVE]),
    "sin": (math.sin, REALS),
    "cos": (math.cos, REALS),
    "tanh": (math.tanh, REALS),
    "floor": (math.floor, REALS),
    "sign": (np.sign, REALS),
    "erf": (math.erf, REALS),
    "erfinv": (special.erfinv, INSIDE),
    "zeros_like": (lambda x: 0.0, REALS),
    "ones_like": (lambda x: 1.0, REALS),
    "minimum": (min, REALS),
    "maximum": (max, REALS),
    "where": (lambda condition, a, b: a if condition else b, REALS),
}


@pytest.mark.parametrize("name", backends.NOISE_OPS)
def test_a_noise_op_agrees_with_the_mathematics(name):
    truth, values = TRUTHS[name]
    values = np.array(values, "float32")
    operands = {"minimum": (values, values[::-1]), "maximum": (values, values[::-1])}.get(name, (values,))
    if name == "where":
        operands = (values > 0, values, -values)
    result = array(getattr(XP, name)(*map(tensor, operands)))
    assert result.dtype == "float32"
    wanted = [truth(*row) for row in zip(*operands, strict=True)]
    rounding = 1e-5 if name == "erfinv" else 1e-6  # XLA and TensorFlow approximate erfinv
    np.testing.assert_allclose(result, wanted, rtol=rounding, atol=1e-7)


def test_noise_ops_take_python_numbers_where_a_noise_needs_them():
    """Beside a tensor: `where(u < 0.5, u, 0.0)`, `maximum(u, 0.0)`."""
    u = tensor(np.array([0.25, 0.75], "float32"))
    np.testing.assert_array_equal(array(XP.where(u < 0.5, u, 0.0)), [0.25, 0])
    np.testing.assert_array_equal(array(XP.maximum(u, 0.5)), [0.5, 0.75])
    np.testing.assert_array_equal(array(XP.minimum(u, 0.5)), [0.25, 0.5])


WORDS = np.array([0, 1, 255, 2**23 - 1, 2**23, 2**31 - 1, 2**31, 0x9E3779B9, 2**32 - 1], "uint32")
WORD_TRUTHS = {
    "shift_right": (lambda x: XP.shift_right(x, 9), lambda w: w >> 9),
    "modulo": (lambda x: XP.modulo(x, 7), lambda w: w % 7),
    "bits24": (XP.bits24, lambda w: w >> 8),
    "uniform": (XP.uniform, lambda w: ((w >> 9) + 0.5) / 2**23),
    "times": (lambda x: x * XP.word(0xED5AD4BB), lambda w: w * 0xED5AD4BB % 2**32),
    "plus": (lambda x: x + x, lambda w: 2 * w % 2**32),
    "xor": (lambda x: x ^ XP.word(0x9E3779B9), lambda w: w ^ 0x9E3779B9),
}


@pytest.mark.parametrize(("operation", "truth"), WORD_TRUTHS.values(), ids=WORD_TRUTHS)
def test_a_word_op_agrees_with_python(operation, truth):
    result = array(operation(XP.as_word(tensor(WORDS))))
    result = result.view("uint32") if result.dtype == "int32" else result
    assert result.tolist() == [truth(int(word)) for word in WORDS]


def test_as_word_takes_ints_and_integers_of_any_kind_modulo_2_to_the_32():
    for n in (-1, 2**32 - 1, tensor(np.int32(-1)), tensor(np.uint32(2**32 - 1)), tensor(np.array([2**32 - 1]))):
        word = array(XP.as_word(n))
        assert word.shape == (1,)
        assert word.view("uint32").tolist() == [2**32 - 1]


def test_a_tensor_belongs_to_its_backend_and_other_things_to_none():
    assert backends.name_of(tensor([1.0])) == NAME
    assert backends.of(x=tensor([1.0]), w=tensor([2.0])) is XP
    for thing in (1.0, [1.0], "x", None, object()):
        assert backends.name_of(thing) is None


def test_each_noise_of_a_name_is_public():
    for law in pnd.noise.BY_NAME.values():
        assert getattr(pnd, law.__name__) is law

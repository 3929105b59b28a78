"""What is given to the library that it does not take, and what comes of it.

`python -m tests.junk` gives every argument of everything public (tests/everything.py) all of the junk, one at a time,
and prints how often that had a right result, an error that names the argument, what was expected and what was received,
the own refusal of the framework whose part it is, or anything else, which is a fault: those it lists.
"""

import argparse
import collections
import contextlib
import datetime
import decimal
import fractions
import functools
import importlib.util
import pathlib
import re
import traceback
import warnings

import keras
import numpy as np

import pernodedrop as pnd
from pernodedrop import backends
from tests.everything import KERAS_OWN, ones, targets
from tests.frameworks import NAME, tensor

keras.config.disable_traceback_filtering()  # to see who refuses

OTHER = next((name for name in ("torch", "jax") if name != NAME and importlib.util.find_spec(name)), None)
"""A framework beside the one under test."""


class Nameless:
    """An object that cannot even be shown."""

    def __repr__(self):
        raise RuntimeError("no repr")


@functools.cache
def of_other(dtype="float32", shape=(3, 4)):
    from pernodedrop.testing import frameworks

    return frameworks.tensor(OTHER, np.ones(shape, dtype)) if OTHER else object()


NUMBERS = [
    1e39, -1e39, 1e-50, 1e-310, 1e30, 10**400, -(10**400), 10**5000, float("nan"), float("inf"), -float("inf"), -1, 0,
    0.5, -0.5, 1.0, 2**31, 2**32, 2**63, 2**64, np.float64(1e39), np.float16(0.1), np.int64(3), np.uint8(1), 1j,
    np.float64("nan"), fractions.Fraction(1, 3), fractions.Fraction(10**400), decimal.Decimal("0.5"), True,
]  # fmt: skip

THINGS = [
    None, "", "yes", "0.5", "x" * 10**5, "\0", b"x", (), [], {}, [None], {1: 2}, {"a": 1}, set(), object(), Nameless(),
    [Nameless()], int, len, lambda *_: 0.5, np.zeros(3), np.array(0.5), np.array("x"), np.ones((2, 3), "float32"),
    np.ones(3, "int32"), np.array([None]), np.random.default_rng(0), np.bool_(True), np.datetime64("2020"),
    datetime.timedelta(1), np.array([1, 2, 3], "timedelta64[s]"), range(3), slice(None), [1, 2, 3], [0.5, 0.5], "auto",
    ["in", 1], [["in"]], (10**5000, 0), (2**4000, 1), (1.5, 0), (1, -1), (np.timedelta64(1, "s"), 0), (None, None),
]  # fmt: skip

TENSORS = [
    lambda: ones(), lambda: ones(3), lambda: ones(3, dtype="int32"), lambda: ones(2, dtype="bool"), lambda: ones(2, 3),
    lambda: ones(2, dtype="int32"), of_other, lambda: of_other("int32", (3,)), lambda: of_other("int32", (2,)),
    lambda: keras.KerasTensor((3, 4)), lambda: keras.Variable(np.ones((3, 4), "float32")), lambda: keras.Input((4,)),
    lambda: keras.layers.Dense(2), lambda: pnd.Bernoulli(0.5), lambda: pnd.schedules.Linear(0.0, 0.5, 10),
    lambda: pnd.Gaussian(stddev=0.1), lambda: keras.Sequential([keras.layers.Dense(2)]),
]  # fmt: skip

JUNK = [*(lambda value=value: value for value in [*NUMBERS, *THINGS]), *TENSORS]
"""Functions that make one each."""

DTYPES = ("float32", "float16", "float64", "int32", "bool", "uint8", "complex64")
SHAPES = [
    (), (0,), (3,), (4,), (3, 4), (0, 4), (3, 0), (3, 7), (3, 1), (2, 3, 4), (2, 0, 4), (2, 3, 0), (2, 3, 7),
    (2, 3, 4, 4), (0, 4, 5, 2), (2, 0, 5, 2), (2, 4, 5, 0), (2, 1, 1, 2), (2, 4, 5, 3), (1, 2, 3, 4, 5),
]  # fmt: skip
INPUTS = [
    *(lambda shape=shape: ones(*shape) for shape in SHAPES),
    *(lambda dtype=dtype: ones(3, 4, dtype=dtype) for dtype in DTYPES),
    *(lambda dtype=dtype: np.ones((3, 4), dtype) for dtype in DTYPES),
    lambda: tensor(np.full((3, 4), np.nan, "float32")),
    lambda: tensor(np.full((3, 4), np.inf, "float32")),
    *JUNK,
]
"""What is given for tensors."""


FUNCTIONS = ("function", "rule")
"""Arguments that are functions, whose own errors are the caller's."""

GOOD = ("right", "named", "keras", "torch", "nnx", "equinox")
"""Outcomes that are no fault: a result, an error by name, one of the framework whose part it is."""


def junk_for(target, argument):
    """The functions that make what is given for an argument."""
    if argument not in target.tensors:
        return JUNK
    # JAX compiles for each shape; at inference they are the same layer's
    return INPUTS[len(SHAPES) :] if NAME == "jax" and target.name.endswith(" in training") else INPUTS


def outcome(target, junk):
    """What comes of junk, a dict from arguments to values: how it is called, and the error."""
    given = {name: make() for name, make in target.arguments.items() if name not in junk}
    stage = "call"
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"), op_by_op(target):
            warnings.simplefilter("ignore")
            result = target.call(**given, **junk)
            stage = "use"
            arrays = target.use(result)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # a fault may be of any kind
        if any(callable(value) for name, value in junk.items() if name in FUNCTIONS):
            return "right", error  # that of a function that was given
        return judged(target, error, stage), error
    if numbers_in(given, junk) and not all(np.isfinite(array).all() for array in map(host, concrete(arrays))):
        return "not numbers", None
    return "right", None


def op_by_op(target):
    """Has JAX not compile a call as a whole, where that would be done for each anew."""
    if NAME != "jax" or not target.compiles:
        return contextlib.nullcontext()
    import jax

    return jax.disable_jit()


def judged(target, error, stage):
    """What an error is called."""
    text = str(error)
    names = any(re.search(rf"\b{argument}\b", text) for argument in [*target.arguments, *target.aliases])
    is_told = names and "xpected" in text and "eceived" in text
    if is_told and isinstance(error, TypeError | ValueError | ImportError):
        return "named"
    return target.owner if stage == "call" and is_of(target.owner, error) else f"fault in {stage}"


def is_own(file):
    """Whether a file is the library's."""
    return "/pernodedrop/" in file or "/backends/" in file


def is_of(framework, error):
    """Whether it is a framework that refuses, by itself."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    own = [n for n, file in enumerate(files) if is_own(file)]
    after = files[own[-1] + 1 :] if own else files[1:]
    return any(f"/{FOLDERS.get(framework, framework)}/" in file for file in after)


FOLDERS = {"nnx": "flax"}


def numbers_in(*arguments):
    """Whether no tensor among the arguments has NaN or infinity."""
    leaves = [leaf for given in arguments for leaf in given.values() if backends.name_of(leaf) in (NAME, "numpy")]
    return all(map(is_finite, leaves))


def is_finite(leaf):
    """Whether a tensor is finite in float32, which JAX makes of others, as keys and objects are."""
    try:
        with np.errstate(over="ignore"):
            return np.isfinite(host(leaf).astype("complex64")).all()
    except (TypeError, ValueError, AttributeError):
        return True


def concrete(arrays):
    return [array for array in arrays if not isinstance(array, keras.KerasTensor)]


def host(array):
    return np.asarray(keras.ops.convert_to_numpy(array), "complex128")


def shown(value):
    try:
        return " ".join(repr(value).split())[:60]
    except Exception:  # the int of many digits and the object without a name
        return type(value).__name__


def seen(value, error):
    """A line about an outcome: what was given, the error, and where in the library it was raised."""
    if error is None:
        return shown(value), ""
    own = [f for f in traceback.extract_tb(error.__traceback__) if is_own(f.filename)]
    place = " < ".join(f"{pathlib.Path(f.filename).name}:{f.lineno}" for f in own[::-1][:2])
    text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return f"{shown(value)} | {text} @ {place}", place


def sweep(chosen, listed):
    """How often everything chosen had which outcome, by kind; faults, and what is in `listed`, are printed."""
    counts, examples = collections.Counter(), collections.defaultdict(list)
    cases = (
        (t, name, make) for t in chosen for name in t.arguments.keys() - set(KERAS_OWN) for make in junk_for(t, name)
    )
    for target, argument, make in cases:
        value = make()
        came, error = outcome(target, {argument: value})
        counts[target.kind, came] += 1
        if came not in GOOD or came in listed:
            line, place = seen(value, error)
            examples[came, target.name, argument, type(error), place].append(line)
    for (came, name, argument, *_), lines in examples.items():
        print(f"{came} | {name} | {argument}, {len(lines)} times, such as {lines[0]}")
    return counts


def main():
    parser = argparse.ArgumentParser(description="Junk for everything public.")
    parser.add_argument("--only", default="", help="what names of targets contain, or kind:function")
    parser.add_argument("--list", nargs="*", default=[], help="kinds of outcomes to list beside faults: keras, named")
    parser.add_argument("--part", default="1/1", help="of all, such as 1/2: on JAX a half takes two minutes")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    if NAME == "jax":
        import jax

        jax.config.update("jax_disable_most_optimizations", True)  # it compiles for each shape
    chosen = [t for t in targets() if options.only in t.name or options.only == f"kind:{t.kind}"]
    for (kind, came), count in sorted(sweep(chosen[part - 1 :: parts], options.list).items()):
        print(f"{NAME} {kind}: {count} {came}")


if __name__ == "__main__":
    main()

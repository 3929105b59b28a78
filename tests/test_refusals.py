"""The ops refuse what they do not take: argument, expectation and value are named, before anything is computed."""

import re

import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop import generator
from tests.frameworks import NAME, XP, tensor

KEY = (3, 1)
BERNOULLI = pnd.Bernoulli(0.4)


def ones(*shape, dtype="float32"):
    return tensor(np.ones(shape, dtype))


class OfNoFramework:
    shape, dtype = (3, 4), "float32"


def message(argument, expected, received):
    return re.escape(f"Invalid value for argument `{argument}`. Expected {expected}. Received: {argument}={received}")


FLOATING = "a floating dtype"
FRAMEWORK = "a tensor of NumPy, TensorFlow, torch or JAX (of a variable of Keras its `value`)"
OF_X = "shape (batch, in) or (batch, time, in)"
OF_W = "shape (in, out) with in = 4 as in `x`"
NOISE = "a pernodedrop.Noise"
TWO_INTS = "(seed, call): two ints or an integer tensor of length 2"
SEED = "an int between -2**2048 and 2**2048"
WORD = "an int in [0, 2**32)"
OFFSET = "an int in [0, 2**32) or a scalar integer tensor"
NAMES = "one of 'sample', 'time', 'in', 'out'"
FORMS = "None, a string like 'sample+time', or a collection"
IDS = "an integer tensor of shape (batch,)"
OF_IDS = "shape (batch,) = (3,)"
NO_OFFSET = "0 beside `sample_ids`"
NUMBERS = "the numbers ['threshold'] of Bernoulli(rate=0.4)"
METHODS = "one of 'auto', 'materialized', 'recomputed', 'kernel', 'local_reparameterization'"
LOCAL = "another method: 'local_reparameterization' holds only for "
NOT_GAUSSIAN = LOCAL + "a Gaussian noise, and this is Bernoulli(rate=0.4)"
SHARED = LOCAL + "a mask of its own for every row of x, and here entries are shared"

SCALAR = ones(dtype="int32")
GAUSSIAN = {"noise": pnd.Gaussian(0.5), "method": "local_reparameterization"}
IDS_ = {"sample_ids": ones(3, dtype="int32")}
EITHER = (TypeError, ValueError)

# argument and expectation as the message has them, the error, how the received value begins, and the call's arguments
BAD_PRODUCTS = [
    ("x", FRAMEWORK, TypeError, "<class", {"x": OfNoFramework()}),
    ("x", FRAMEWORK, TypeError, "<class 'list'>", {"x": [[1.0]]}),
    ("w", FRAMEWORK, TypeError, "<class 'list'>", {"w": [[1.0]]}),
    ("x", FLOATING, TypeError, "'int32'", {"x": ones(3, 4, dtype="int32")}),
    ("w", FLOATING, TypeError, "'int32'", {"w": ones(4, 5, dtype="int32")}),
    ("x", FLOATING, TypeError, "'bool'", {"x": ones(3, 4, dtype="bool")}),
    ("x", FLOATING, TypeError, "'complex64'", {"x": ones(3, 4, dtype="complex64")}),
    ("x", OF_X, ValueError, "(4,)", {"x": ones(4)}),
    ("x", OF_X, ValueError, "(1, 2, 3, 4)", {"x": ones(1, 2, 3, 4)}),
    ("w", OF_W, ValueError, "(4,)", {"w": ones(4)}),
    ("w", OF_W, ValueError, "(1, 4, 5)", {"w": ones(1, 4, 5)}),
    ("w", OF_W, ValueError, "(5, 4)", {"w": ones(5, 4)}),
    ("noise", NOISE, TypeError, "'bernoulli'", {"noise": "bernoulli"}),
    ("noise", NOISE, TypeError, "<class", {"noise": pnd.Bernoulli}),
    ("noise", NOISE, TypeError, "0.5", {"noise": 0.5}),
    ("key", TWO_INTS, ValueError, "None", {"key": None}),
    ("key", TWO_INTS, ValueError, "7", {"key": 7}),
    ("key", TWO_INTS, ValueError, "(1, 2, 3)", {"key": (1, 2, 3)}),
    ("key", TWO_INTS, TypeError, "1.0", {"key": (1.0, 2)}),
    ("key", TWO_INTS, TypeError, "True", {"key": (True, 2)}),
    ("key", TWO_INTS, TypeError, "'2'", {"key": (1, "2")}),
    ("key", TWO_INTS, TypeError, "None", {"key": (None, 2)}),
    ("key", TWO_INTS, EITHER, "", {"key": ones(2)}),
    ("key", TWO_INTS, EITHER, "", {"key": ones(2, dtype="bool")}),
    ("key", TWO_INTS, ValueError, "", {"key": ones(3, dtype="int32")}),
    ("key", TWO_INTS, ValueError, "", {"key": ones(2, 1, dtype="int32")}),
    ("key[1]", WORD, ValueError, "-1", {"key": (1, -1)}),
    ("key[1]", WORD, ValueError, "4294967296", {"key": (1, 2**32)}),
    ("sharing", NAMES, ValueError, "'smaple' (did you mean 'sample'?)", {"sharing": "smaple"}),
    ("sharing", NAMES, ValueError, "''", {"sharing": ""}),
    ("sharing", NAMES, ValueError, "1", {"sharing": (1,)}),
    ("sharing", FORMS, TypeError, "1", {"sharing": 1}),
    ("sample_offset", WORD, ValueError, "-1", {"sample_offset": -1}),
    ("sample_offset", WORD, ValueError, "4294967296", {"sample_offset": 2**32}),
    ("sample_offset", OFFSET, TypeError, "1.5", {"sample_offset": 1.5}),
    ("sample_offset", OFFSET, TypeError, "True", {"sample_offset": True}),
    ("sample_offset", OFFSET, TypeError, "None", {"sample_offset": None}),
    ("sample_offset", OFFSET, TypeError, "", {"sample_offset": ones()}),
    ("sample_offset", OFFSET, EITHER, "", {"sample_offset": ones(1, dtype="int32")}),
    ("in_offset", WORD, ValueError, "-1", {"in_offset": -1}),
    ("time_offset", WORD, ValueError, "4294967296", {"time_offset": 2**32}),
    ("time_offset", OFFSET, TypeError, "1.5", {"time_offset": 1.5}),
    ("time_offset", "an int beside `persistence`", TypeError, "", {"time_offset": SCALAR, "persistence": 0.5}),
    ("in_offset", OFFSET, TypeError, "1.5", {"in_offset": 1.5}),
    ("sample_ids", IDS, TypeError, "[0, 1, 2]", {"sample_ids": [0, 1, 2]}),
    ("sample_ids", "an integer dtype", TypeError, "", {"sample_ids": ones(3)}),
    ("sample_ids", "an integer dtype", TypeError, "", {"sample_ids": ones(3, dtype="bool")}),
    ("sample_ids", OF_IDS, ValueError, "(2,)", {"sample_ids": ones(2, dtype="int32")}),
    ("sample_ids", OF_IDS, ValueError, "()", {"sample_ids": ones(dtype="int32")}),
    ("sample_ids", OF_IDS, ValueError, "(3, 1)", {"sample_ids": ones(3, 1, dtype="int32")}),
    ("sample_offset", NO_OFFSET, ValueError, "1", {**IDS_, "sample_offset": 1}),
    ("sample_offset", NO_OFFSET, ValueError, "", {**IDS_, "sample_offset": ones(dtype="int32")}),
    ("params", "a dict of " + NUMBERS, TypeError, "5", {"params": 5}),
    ("x", FRAMEWORK, TypeError, "<class 'numpy.random", {"x": np.random.default_rng(0)}),
    ("key", TWO_INTS, ValueError, "Generator(", {"key": np.random.default_rng(0)}),
    ("key[0]", SEED, ValueError, "", {"key": (2**4000, 0)}),
    ("sample_offset", WORD, ValueError, "", {"sample_offset": 2**4000}),
    ("sample_offset", OFFSET, TypeError, "np.timedelta64(1", {"sample_offset": np.timedelta64(1, "s")}),
    ("sample_ids", "an integer dtype", TypeError, "dtype('<m8", {"sample_ids": np.zeros(3, "timedelta64[s]")}),
    ("params", NUMBERS, ValueError, "['rate']", {"params": {"rate": 0.5}}),
    ("params", NUMBERS, ValueError, "[]", {"params": {}}),
    ("method", METHODS, ValueError, "'materialised' (did you mean 'materialized'?)", {"method": "materialised"}),
    ("method", METHODS, ValueError, "None", {"method": None}),
    ("method", NOT_GAUSSIAN, ValueError, "'local_rep", {**GAUSSIAN, "noise": BERNOULLI}),
    ("method", SHARED, ValueError, "'local_rep", {**GAUSSIAN, "sharing": "sample"}),
    ("method", SHARED, ValueError, "'local_rep", {**GAUSSIAN, "sharing": "in"}),
    ("method", SHARED, ValueError, "'local_rep", {**GAUSSIAN, "sharing": "out"}),
    ("method", SHARED, ValueError, "'local_rep", {**GAUSSIAN, "x": ones(3, 2, 4)}),
]

SIZES = "(batch, in, out) or (batch, time, in, out), all ints"
BACKENDS = "one of 'numpy', 'tensorflow', 'torch', 'jax'"
BAD_MASKS = [
    ("shape", SIZES, ValueError, "(2, 3)", {"shape": (2, 3)}),
    ("shape", SIZES, ValueError, "(2, 3, 4, 5, 6)", {"shape": (2, 3, 4, 5, 6)}),
    ("shape", SIZES, ValueError, "12", {"shape": 12}),
    ("shape", SIZES, ValueError, "(2, 3.0, 4)", {"shape": (2, 3.0, 4)}),
    ("shape", SIZES, ValueError, "(2, True, 4)", {"shape": (2, True, 4)}),
    ("shape", "sizes from zero", ValueError, "(2, -3, 4)", {"shape": (2, -3, 4)}),
    ("sample_offset", WORD, ValueError, "-1", {"sample_offset": -1}),
    ("key[1]", WORD, ValueError, "-1", {"key": (1, -1)}),
    ("backend", BACKENDS, ValueError, "'tensorfow' (did you mean 'tensorflow'?)", {"backend": "tensorfow"}),
    ("backend", BACKENDS, ValueError, "1", {"backend": 1}),
]


def name_of(value):
    """An id for the arguments of a case, short."""
    return ",".join(f"{k}={re.sub(r'[^ -~]+| +', ' ', repr(v))[:30]}" for k, v in value.items())


def cases(table):
    return pytest.mark.parametrize(
        ("argument", "expected", "error", "received", "changed"),
        [pytest.param(*row, id=f"{n}-{name_of(row[-1])}") for n, row in enumerate(table)],
    )


@pytest.fixture(autouse=True)
def nothing_computed(monkeypatch):
    """Words and products that fail, to show that a refusal comes before them."""

    def computed(*args, **kwargs):
        pytest.fail("computed something before it refused")

    monkeypatch.setattr(generator, "row_key", computed)
    for name in ("fused", "matmul", "sum", "recomputed", "kernel"):
        monkeypatch.setattr(XP, name, computed)


def masked_dense(**changed):
    return pnd.ops.masked_dense(**{"x": ones(3, 4), "w": ones(4, 5), "noise": BERNOULLI, "key": KEY, **changed})


@cases(BAD_PRODUCTS)
def test_masked_dense_refuses(argument, expected, error, received, changed):
    with pytest.raises(error, match=message(argument, expected, received)):
        masked_dense(**changed)


@pytest.mark.parametrize("threshold", [0.5, "1", None, [1, 2], np.zeros(5, "int32"), ones()], ids=repr)
def test_masked_dense_refuses_numbers_of_another_kind(threshold):
    """A threshold is an int32 scalar: as a float it would quietly drop everything, on some backends."""
    with pytest.raises((TypeError, ValueError), match=r"Invalid value for argument `params.* Received: "):
        masked_dense(params={"threshold": threshold})


def test_the_check_that_nothing_is_computed_bites():
    for method in ("materialized", "recomputed"):
        with pytest.raises(pytest.fail.Exception, match="before it refused"):
            masked_dense(method=method)


@pytest.mark.skip_backend("numpy", reason="a NumPy process has no second framework")
def test_tensors_of_two_frameworks_in_one_call_are_refused():
    expected = f"Expected the tensors of one call to belong to one framework. Received: x of numpy, w of {NAME}"
    with pytest.raises(TypeError, match=re.escape(expected)):
        masked_dense(x=np.ones((3, 4), "float32"))


@cases(BAD_MASKS)
def test_sample_mask_and_random_bits_refuse(argument, expected, error, received, changed):
    arguments = {"key": KEY, "shape": (2, 3, 4), **changed}
    for function in (pnd.ops.random_bits, lambda **kwargs: pnd.ops.sample_mask(BERNOULLI, **kwargs)):
        with pytest.raises(error, match=message(argument, expected, received)):
            function(**arguments)


def test_sample_mask_refuses_what_is_no_noise_or_sharing():
    with pytest.raises(TypeError, match=message("noise", NOISE, "'gaussian'")):
        pnd.ops.sample_mask("gaussian", KEY, (2, 3, 4))
    with pytest.raises(ValueError, match=message("sharing", NAMES, "'batch'")):
        pnd.ops.sample_mask(BERNOULLI, KEY, (2, 3, 4), sharing="batch")

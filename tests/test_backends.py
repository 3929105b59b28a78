"""One list of ops that every backend has and means alike."""

import inspect
import math

import numpy as np
import pytest
from scipy import sparse, special

import pernodedrop as pnd
from pernodedrop import backends
from pernodedrop.report.environment import installed_backends
from tests.frameworks import NAME, XP, array, tensor


@pytest.mark.parametrize("name", installed_backends() if NAME == "numpy" else [NAME])
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
    "tan": (math.tan, REALS),
    "asin": (math.asin, INSIDE),
    "acos": (math.acos, INSIDE),
    "atan": (math.atan, REALS),
    "tanh": (math.tanh, REALS),
    "floor": (math.floor, REALS),
    "sign": (np.sign, REALS),
    "erf": (math.erf, REALS),
    "erfinv": (special.erfinv, INSIDE),
    "zeros_like": (lambda x: 0.0, REALS),
    "ones_like": (lambda x: 1.0, REALS),
    "minimum": (min, REALS),
    "maximum": (max, REALS),
    "clip": (lambda x, low, high: min(max(x, low), high), REALS),
    "where": (lambda condition, a, b: a if condition else b, REALS),
}


@pytest.mark.parametrize("name", backends.NOISE_OPS)
def test_a_noise_op_agrees_with_the_mathematics(name):
    truth, values = TRUTHS[name]
    values = np.array(values, "float32")
    operands = {"minimum": (values, values[::-1]), "maximum": (values, values[::-1])}.get(name, (values,))
    if name == "clip":
        operands = (values, values[::-1] - 3, values[::-1])
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


def test_it_does_not_matter_where_the_number_stands_nor_whether_it_is_an_int():
    u, low = (tensor(np.array(values, "float32")) for values in ([0.25, 0.75, 1.5], [0.5, 0.5, 0.5]))
    for result, wanted in (
        (XP.maximum(0.5, u), [0.5, 0.75, 1.5]),
        (XP.minimum(1, u), [0.25, 0.75, 1]),
        (XP.where(u < 0.5, 0, u), [0, 0.75, 1.5]),
        (XP.where(u < 0.5, u, 1), [0.25, 1, 1]),
        (XP.clip(u, 0.5, 1), [0.5, 0.75, 1]),
        (XP.clip(u, low, 1.0), [0.5, 0.75, 1]),
        (XP.clip(u, 0, low), [0.25, 0.5, 0.5]),
    ):
        assert result.dtype == u.dtype
        np.testing.assert_array_equal(array(result), wanted)


def test_ops_along_an_axis_agree_with_numpy():
    rng = np.random.default_rng(0)
    x, indices = rng.integers(-9, 9, (3, 7, 2), "int32"), rng.integers(0, 7, (3, 7, 2), "int32")
    for axis in (-3, -2, 1):
        got = array(XP.running_maximum(tensor(x), axis))
        np.testing.assert_array_equal(got, np.maximum.accumulate(x, axis=axis))
    got = array(XP.take_along_axis(tensor(x.astype("float32")), tensor(indices), -2))
    np.testing.assert_array_equal(got, np.take_along_axis(x, indices, axis=-2))
    for axis in (0, 2, -1):
        wider = XP.expand_dims(tensor(x), axis=axis)
        np.testing.assert_array_equal(array(wider), np.expand_dims(x, axis))
        np.testing.assert_array_equal(array(XP.squeeze(wider, axis)), x)
    assert [array(part).tolist() for part in XP.unstack(tensor(x))] == x.tolist()


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
    with pytest.raises(TypeError, match=r"`tensors`. Expected one at least.* Received: tensors=\{\}"):
        backends.of()


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta")
def test_a_tensor_that_is_not_dense_is_known_and_the_ops_refuse_it_by_name():
    x, noise = np.eye(4, 6, dtype="float32"), pnd.Bernoulli(0.5)
    kinds = {"dense": [tensor(x)]}
    if NAME == "numpy":
        kinds |= {"sparse": [sparse.csr_array(x), sparse.coo_matrix(x)], "other": [sparse.csc_array(x)]}
    if NAME == "tensorflow":
        import tensorflow as tf

        kinds["sparse"] = [tf.sparse.from_dense(x)]
        kinds["ragged"] = [tf.RaggedTensor.from_row_lengths(x[0], [2, 4])]
        kinds["other"] = [tf.IndexedSlices(x[:2], [0, 2])]
    if NAME == "jax":
        from jax.experimental import sparse as jax_sparse

        kinds |= {"sparse": [jax_sparse.BCOO.fromdense(x)], "other": [jax_sparse.BCSR.fromdense(x)]}
    if NAME == "torch":
        import torch

        t = tensor(x)
        kinds |= {"sparse": [t.to_sparse(), t.to_sparse_csr()], "other": [t.to_sparse_csc()]}
        kinds["ragged"] = [torch.nested.nested_tensor([t[0], t[1, :2]], layout=torch.jagged)]
    for layout, tensors in kinds.items():
        for each in tensors:
            assert XP.layout(each) == layout
            if layout != "dense" and backends.name_of(each) is not None:
                if layout != "sparse":
                    with pytest.raises(TypeError, match=r"`x`. Expected a dense or sparse \(.* tensor here"):
                        pnd.ops.masked_dense(each, tensor(x.T), noise, (1, 0))
                with pytest.raises(TypeError, match=r"`w`. Expected a dense tensor here"):
                    pnd.ops.masked_dense(tensor(x.T), each, noise, (1, 0))
                with pytest.raises(TypeError, match=r"`w`. Expected a dense tensor here"):
                    pnd.ops.masked(each, noise, (1, 0))

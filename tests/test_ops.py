"""The ops against float64 sums over NumPy's mask: values, gradients, sharing, splitting, keys."""

import itertools

import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.backends import methods
from pernodedrop.testing import frameworks
from tests import reference
from tests.conftest import HAS_KERAS
from tests.frameworks import NAME, XP, array, compiled, float64, needs_gradients, quick, tensor, value_and_gradients
from tests.noises import Difference, Triangular
from tests.products import (
    BERNOULLI,
    FAR,
    KEY,
    SMALL,
    check,
    einsums,
    mask_of,
    masked_dense,
    numpy_mask,
    operands,
    product,
    state,
    sums,
)

COORDINATES = ("sample", "time", "in", "out")
ALL_SHARINGS = [names for n in range(5) for names in itertools.combinations(COORDINATES, n)]


# masks


def test_sample_mask_is_the_noise_of_the_reference_words():
    words = reference.bits(*KEY, (3, 4, 5), sample_offset=FAR)
    mask = mask_of(BERNOULLI, (3, 4, 5), sample_offset=FAR)
    assert mask.dtype == "float32"
    np.testing.assert_array_equal(mask, np.where(words >> 8 < round(0.6 * 2**24), np.float32(1 / 0.6), 0))


@pytest.mark.parametrize("sharing", ALL_SHARINGS, ids="+".join)
def test_entries_do_not_depend_on_shared_coordinates(sharing):
    """Shared coordinates count as zero, without the offset, and the others as they do unshared."""
    shape, offset = (2, 3, 4, 5), 7
    far = reference.bits(*KEY, shape, 0 if "sample" in sharing else offset)
    first = tuple(slice(0, 1 if name in sharing else None) for name in COORDINATES)
    wanted = np.broadcast_to(far[first] >> 8 < BERNOULLI.threshold, shape)
    mask = pnd.ops.sample_mask(BERNOULLI, KEY, shape, sharing=sharing, sample_offset=offset, backend="numpy")
    np.testing.assert_array_equal(mask != 0, wanted)


@pytest.mark.parametrize(
    ("noise", "sharing"),
    [
        *((BERNOULLI, sharing) for sharing in (None, (), "sample+time", "in", "out")),
        (pnd.PartialGaussian(0.4, 0.5), "sample"),
        (Triangular(), ()),
    ],
)
def test_sample_mask_of_rank_4_agrees_with_numpy(noise, sharing):
    arguments = {"shape": (2, 3, 4, 5), "sharing": sharing, "sample_offset": FAR}
    mask, wanted = mask_of(noise, **arguments), pnd.ops.sample_mask(noise, KEY, **arguments, backend="numpy")
    tolerance = 0 if noise == BERNOULLI else 1e-5
    np.testing.assert_allclose(mask, wanted, rtol=tolerance, atol=tolerance / 10)


def test_masks_are_the_same_whole_padded_and_in_parts():
    whole = mask_of(BERNOULLI, (6, 8, 9))
    np.testing.assert_array_equal(mask_of(BERNOULLI, (4, 5, 3)), whole[:4, :5, :3])
    np.testing.assert_array_equal(mask_of(BERNOULLI, (2, 8, 9), sample_offset=4), whole[4:])


def test_a_mask_has_the_type_of_its_backend():
    assert pnd.backends.name_of(pnd.ops.sample_mask(BERNOULLI, KEY, (4, 3, 5))) == (NAME if HAS_KERAS else "numpy")
    assert pnd.backends.name_of(pnd.ops.sample_mask(BERNOULLI, KEY, [4, 3, 5], backend="numpy")) == "numpy"


@pytest.mark.parametrize("key", [(2**32 - 5, 3), (7, 2**32 - 1), (0, 0)], ids=str)
def test_a_key_gives_the_same_mask_in_any_form(key):
    """Ints, NumPy's integers, a host array, a tensor, a pair of scalar tensors, and the int32 state of a layer."""
    words = np.array(key, "uint32")
    state = words.view("int32")
    forms = [
        key,
        list(key),
        tuple(words),
        tuple(words.astype("int64")),
        words,
        words.astype("int64"),
        tensor(state),
        tuple(tensor(part) for part in state),
        tuple(np.array(part) for part in words),
        state,
    ]
    wanted = reference.bits(*key, (4, 3, 5))
    x, w = tensor(np.eye(3, dtype="float32")[:, None]), tensor(np.ones((3, 5), "float32"))
    for form in forms:
        np.testing.assert_array_equal(pnd.ops.random_bits(form, (4, 3, 5)), wanted, err_msg=repr(form))
        y = masked_dense(x, w, BERNOULLI, form, sharing="sample+time", method="recomputed")
        np.testing.assert_array_equal(array(y)[:, 0] != 0, wanted[0] >> 8 < BERNOULLI.threshold, err_msg=repr(form))


# products and gradients

BATCH, SEQUENCE = (5, 37), (5, 3, 37)
CASES = [
    *((BATCH, sharing, "auto") for sharing in (None, "sample", "in", "sample+out")),
    (BATCH, None, "materialized"),
    (BATCH, "sample+time", "recomputed"),
    *((SEQUENCE, sharing, "auto") for sharing in (None, (), "sample", "sample+time")),
    *(
        (SEQUENCE, sharing, "auto")
        for sharing in ("in", "time+out", "sample+in+out", "sample+time+in", ALL_SHARINGS[-1])
    ),
    *((SEQUENCE, sharing, "materialized") for sharing in (None, (), "sample")),
    *((SEQUENCE, sharing, "recomputed") for sharing in ("sample+time", "sample+in", "time+out")),
]
"""Every layout of rows (sample, time, both, neither) by every method, and with entries shared over in or out."""


@pytest.mark.parametrize(("shape", "sharing", "method"), CASES)
def test_bernoulli_product_and_gradients_are_exact_in_float64(shape, sharing, method):
    x, w, upstream = operands(shape)
    mask = numpy_mask(BERNOULLI, x, w, sharing=sharing, sample_offset=FAR)
    with float64():
        check(x, w, upstream, mask, 1e-14, sharing=sharing, sample_offset=FAR, method=method)


@pytest.mark.parametrize(
    ("noise", "method"),
    [
        (pnd.Gaussian(0.5), "materialized"),
        (pnd.PartialGaussian(0.4, 0.5), "recomputed"),
        (pnd.Uniform(0.5), "materialized"),
        (Triangular(), "recomputed"),
        (Difference(0.5), "recomputed"),
    ],
)
def test_continuous_products_and_gradients_differ_by_the_rounding_of_the_mask(noise, method):
    """Entries are float32 on every backend and erfinv is good to 1e-5 relative in the tails, so sums are to 2e-6."""
    x, w, upstream = operands(*SMALL, "float32")
    mask = numpy_mask(noise, x, w)
    check(x, w, upstream, mask, 2e-6, noise=noise, method=method)


@pytest.mark.parametrize("shape", [(5, 37), (5, 2, 37)], ids=str)
def test_sums_over_several_blocks_and_a_ragged_rest(shape, monkeypatch):
    """The noises are this test's own, so that no cache has them compiled with other blocks."""
    noise = pnd.Bernoulli(0.37)
    lengths = set()

    def record(x, w, mask, *args):
        lengths.add(mask.shape[1])
        return forward(x, w, mask, *args)

    forward = methods.forward_block
    monkeypatch.setattr(methods, "forward_block", record)
    monkeypatch.setattr(methods, "BLOCK_ENTRIES", 5 * 11 * 8 + 3)
    x, w, upstream = operands(shape)
    with float64():
        check(x, w, upstream, numpy_mask(noise, x, w), 1e-14, noise=noise, method="recomputed")
    assert lengths == {8, 5}


@pytest.mark.only_backend("jax", "tensorflow", reason="torch asks where x is, and NumPy has no GPU")
def test_blocks_are_larger_on_a_gpu(monkeypatch):
    """What says which device there is says so of this machine."""
    if NAME == "jax":
        monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    else:
        monkeypatch.setattr("tensorflow.config.list_logical_devices", lambda kind: [kind])
    lengths = []
    monkeypatch.setattr(methods, "block_length", lambda *asked: lengths.append(asked) or 3)
    noise = pnd.Bernoulli(0.47)  # of no other test, so that no cache has it compiled with other blocks
    x, w, upstream = operands(*SMALL, "float32")
    check(x, w, upstream, numpy_mask(noise, x, w), 1e-5, noise=noise, method="recomputed")
    assert set(lengths) == {(6, 5, False)}


@pytest.mark.once
def test_a_block_is_of_what_a_cache_or_a_gpu_takes():
    assert [methods.block_length(128, 64, on_cpu) for on_cpu in (True, False)] == [2**5, 2**11]
    assert methods.block_length(2**20, 2**20, False) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("method", "sharing"),
    [
        *((method, None) for method in ("materialized", "recomputed", "kernel")),
        *(("auto", sharing) for sharing in (None, (), "in", "out", "sample+time")),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(6, 8), (6, 3, 8)], ids=str)
def test_nan_and_infinity_are_where_zero_times_them_is(shape, method, sharing, value, monkeypatch):
    """In each operand in turn: outputs and gradients are NaN or infinite where NumPy's sums over the mask are."""
    monkeypatch.setattr(methods, "BLOCK_ENTRIES", 5 * 8 * 2 + 3)  # several of them, of which the last is ragged
    noise = pnd.Bernoulli(0.43)  # of no other test, so that no cache has it compiled with other blocks
    for of in range(3):
        arrays = operands(shape, 5, "float32")
        arrays[of].flat[11] = value
        x, w, upstream = arrays
        mask = numpy_mask(noise, x, w, sharing=sharing)
        with np.errstate(invalid="ignore"):
            y, gradients = value_and_gradients(
                lambda x, w: masked_dense(x, w, noise, KEY, method=method, sharing=sharing), x, w, upstream=upstream
            )
            truths = einsums(x, w, upstream, mask)
        for got, wanted in zip((y, *gradients), truths, strict=True):
            if got is not None:
                np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
                np.testing.assert_array_equal(np.isinf(got), np.isinf(wanted))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_local_reparameterization_shows_rows_that_are_not_finite(value):
    x, w, _ = operands(*SMALL, "float32")
    x[2, 3] = value
    with np.errstate(invalid="ignore"):
        y = product(x, w, pnd.Gaussian(0.5), method="local_reparameterization")
    np.testing.assert_array_equal(np.isfinite(y).all(axis=1), np.isfinite(x).all(axis=1))
    assert not np.isfinite(y[2]).any()


@pytest.mark.parametrize("sizes", [(0, 4, 5), (3, 0, 5), (3, 4, 0)], ids=str)
def test_empty_axes_give_empty_sums(sizes):
    batch, inputs, outputs = sizes
    x, w, upstream = operands((batch, inputs), outputs, "float32")
    check(x, w, upstream, np.ones((batch, 1, inputs, outputs)), 0)


def test_rate_zero_is_the_plain_product():
    x, w, _ = operands(*SMALL, "float32")
    for noise in (pnd.Bernoulli(0.0), pnd.Gaussian(0.0)):
        np.testing.assert_allclose(product(x, w, noise), x @ w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", [KEY, state(KEY)], ids=["ints", "tensor"])
def test_compiled_and_eager_products_agree(key):
    x, w, _ = operands(*SMALL, "float32")
    run = compiled(lambda x, w: masked_dense(x, w, BERNOULLI, key))
    eager = array(masked_dense(tensor(x), tensor(w), BERNOULLI, key))
    np.testing.assert_allclose(array(run(tensor(x), tensor(w))), eager, rtol=1e-5, atol=1e-5)


@pytest.mark.only_backend("tensorflow", reason="only a TensorFlow graph has sizes that are not known when traced")
@pytest.mark.parametrize(("shape", "method"), [((5, 7), "auto"), ((5, 3, 7), "auto"), ((5, 3, 7), "materialized")])
def test_a_graph_of_unknown_batch_has_the_same_product_and_gradients(shape, method):
    import tensorflow as tf

    x, w, upstream = operands(shape, 6)
    unknown = [tf.TensorSpec((None, *a.shape[1:]), tf.float64) for a in (x, upstream)]

    @tf.function(input_signature=[unknown[0], tf.TensorSpec(w.shape, tf.float64), unknown[1]])
    def run(x, w, upstream):
        with tf.GradientTape() as tape:
            tape.watch((x, w))
            y = masked_dense(x, w, BERNOULLI, KEY, method=method)
        return y, *tape.gradient(y, (x, w), output_gradients=upstream)

    for got, wanted in zip(run(x, w, upstream), einsums(x, w, upstream, numpy_mask(BERNOULLI, x, w)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.only_backend("torch", reason="checks the registration of torch's custom operator")
def test_the_torch_operator_passes_the_checks_of_torch():
    import torch

    x, w, _ = (tensor(a) for a in operands((2, 1, 7), 3))
    key = [XP.as_word(n) for n in (0, 1)]
    field = pnd.mask.Field(BERNOULLI, {"threshold": torch.tensor(BERNOULLI.threshold)}, key)
    grid = pnd.mask.Grid(field, *(XP.arange(n, x) for n in (1, 2, 7, 3)))
    arguments = (x.requires_grad_(), w.requires_grad_(), XP._filed(BERNOULLI), "threshold", grid.tensors())
    torch.library.opcheck(torch.ops.pernodedrop.recomputed.default, arguments)


# splitting and routing


@pytest.mark.parametrize("method", ["recomputed", "materialized"])
def test_extra_rows_and_columns_do_not_change_the_others(method):
    x, w, _ = operands(*SMALL, "float32")
    x[:, 5:] = 0
    whole = product(x, w, BERNOULLI, method=method)
    part = product(x[:4, :5], w[:5, :3], BERNOULLI, method=method)
    np.testing.assert_allclose(part, whole[:4, :3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("noise", [BERNOULLI, pnd.Gaussian(0.5)], ids=repr)
def test_parts_of_a_batch_with_their_offsets_are_the_whole(noise):
    x, w, _ = operands(*SMALL, "float32")
    start = 2**32 - 2
    whole = product(x, w, noise, sample_offset=start)
    parts = [product(x[b : b + 3], w, noise, sample_offset=(start + b) % 2**32) for b in (0, 3)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-5)
    assert not np.allclose(product(x[3:], w, noise), whole[3:], atol=0.1)


def test_parts_of_a_kernel_with_their_offsets_sum_to_the_whole():
    x, w, _ = operands(*SMALL, "float32")
    for offset in (0, 2**32 - 4):
        whole = product(x, w, BERNOULLI, in_offset=offset)
        parts = [product(x[:, i : i + 4], w[i : i + 4], BERNOULLI, in_offset=(offset + i) % 2**32) for i in (0, 4)]
        np.testing.assert_allclose(sum(parts), whole, rtol=1e-5, atol=1e-5)
    assert not np.allclose(product(x, w, BERNOULLI), whole, atol=0.1)


@pytest.mark.parametrize(
    ("noise", "sharing", "method"),
    [
        (pnd.Gaussian(0.4), (), "local_reparameterization"),
        *itertools.product([BERNOULLI], [(), "sample", "out", "in+sample"], ["auto", "materialized", "recomputed"]),
    ],
)
def test_parts_of_a_sequence_with_their_offsets_are_the_whole(noise, sharing, method):
    x, w = np.ones((2, 6, 5), "float32"), operands(*SMALL, "float32")[1][:5]
    start = 2**32 - 2
    given = {"sharing": sharing, "method": method}
    whole = product(x, w, noise, time_offset=start, **given)
    parts = [product(x[:, t : t + 3], w, noise, time_offset=(start + t) % 2**32, **given) for t in (0, 3)]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-5, atol=1e-5)
    alone = product(x[:, 4], w, noise, time_offset=2, **given)  # one position, without an axis of its own
    np.testing.assert_allclose(alone, whole[:, 4], rtol=1e-5, atol=1e-5)
    assert not np.allclose(product(x[:, 4], w, noise, **given), whole[:, 4], atol=0.1)


@pytest.mark.parametrize("sharing", [(), "sample", "out"])
def test_masks_of_a_part_of_a_sequence_are_those_of_the_whole(sharing):
    whole = pnd.ops.sample_mask(BERNOULLI, KEY, (2, 6, 3, 4), sharing=sharing, backend="numpy")
    given = {"sharing": sharing, "time_offset": 2}
    part = array(pnd.ops.sample_mask(BERNOULLI, KEY, (2, 4, 3, 4), backend=NAME, **given))
    np.testing.assert_array_equal(part, whole[:, 2:])
    masked = pnd.ops.masked(tensor(np.ones((2, 4, 3, 4), "float32")), BERNOULLI, KEY, **given)
    np.testing.assert_array_equal(array(masked), whole[:, 2:])
    alone = array(pnd.ops.sample_mask(BERNOULLI, KEY, (2, 3, 4), backend=NAME, **given))
    np.testing.assert_array_equal(alone, whole[:, 2])


def test_masks_that_positions_share_know_no_offset_of_time():
    x, w, _ = operands(*SMALL, "float32")
    np.testing.assert_array_equal(product(x, w, BERNOULLI, time_offset=7), product(x, w, BERNOULLI))


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_sample_ids_are_the_sample_coordinates_themselves(dtype):
    x, w, _ = operands(*SMALL, "float32")
    ids = np.array([3, 0, 4, 4, 1, 200], dtype)
    mask = np.concatenate([numpy_mask(BERNOULLI, x[:1], w, sample_offset=int(n)) for n in ids])
    wanted = sums(x, w, mask)
    np.testing.assert_allclose(product(x, w, BERNOULLI, sample_ids=ids), wanted, rtol=1e-5, atol=1e-5)
    with_tensor = masked_dense(tensor(x), tensor(w), BERNOULLI, KEY, sample_ids=tensor(ids))
    np.testing.assert_allclose(array(with_tensor), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.skip_backend("numpy", reason="a NumPy process has no second framework")
def test_integers_may_be_of_another_framework():
    other = "torch" if NAME != "torch" else "jax"
    pytest.importorskip(other, reason="it is the other framework")
    x, w, _ = (tensor(operand) for operand in operands(*SMALL, "float32"))
    ids, offset = np.array([3, 0, 4, 4, 1, 200], "int32"), np.array(7, "int32")
    for given in (
        {"sample_ids": ids},
        {"key": np.array(KEY, "int32")},
        {"sample_offset": offset},
        {"in_offset": offset},
        {"time_offset": offset},
    ):
        of_other = {name: frameworks.tensor(other, a) for name, a in given.items()}
        call = {"noise": BERNOULLI, "key": KEY, "sharing": ()}
        y, wanted = (array(masked_dense(x, w, **{**call, **a})) for a in (of_other, given))
        np.testing.assert_array_equal(y, wanted)


def test_sample_ids_count_modulo_2_to_the_32():
    x, w, _ = operands(*SMALL, "float32")
    far = product(x, w, BERNOULLI, sample_ids=np.array([-1, -2, 2**32, 2**40 + 1, 2**31, 7]))
    near = product(x, w, BERNOULLI, sample_ids=np.array([2**32 - 1, 2**32 - 2, 0, 1, 2**31, 7], "uint32"))
    np.testing.assert_array_equal(far, near)


@pytest.mark.parametrize("form", [lambda n: n, np.int64, np.array, tensor], ids=["int", "int64", "array", "tensor"])
def test_offsets_may_be_ints_or_scalar_tensors(form):
    x, w, _ = operands(*SMALL, "float32")
    offsets = {"sample_offset": 2, "time_offset": 4, "in_offset": 3}
    wanted = product(x, w, BERNOULLI, sharing=(), **offsets)
    formed = {name: form(offset) for name, offset in offsets.items()}
    y = array(masked_dense(tensor(x), tensor(w), BERNOULLI, KEY, sharing=(), **formed))
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


# params instead of a noise's own


@pytest.mark.parametrize(
    ("noise", "other"),
    [
        (BERNOULLI, pnd.Bernoulli(0.9)),
        (pnd.PartialGaussian(0.4, 0.5), pnd.PartialGaussian(0.8, 2.0)),
        (pnd.Gaussian(0.4), pnd.Gaussian(0.8)),
    ],
    ids=repr,
)
def test_params_override_the_numbers_of_a_noise(noise, other):
    x, w, _ = operands(*SMALL, "float32")
    run = quick(lambda x, w, params: masked_dense(x, w, noise, KEY, params=params))
    y = run(tensor(x), tensor(w), {name: tensor(value) for name, value in other.params().items()})
    np.testing.assert_allclose(array(y), product(x, w, other), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["materialized", "recomputed"])
def test_a_rate_changes_after_compilation_without_tracing_again(method):
    x, w, _ = operands(*SMALL, "float32")
    traces = []

    def run(x, w, threshold):
        traces.append(threshold)
        return masked_dense(x, w, BERNOULLI, KEY, params={"threshold": threshold}, method=method)

    run = compiled(run) if NAME in ("jax", "tensorflow") else run
    for rate in (0.2, 0.9):
        noise = pnd.Bernoulli(rate)
        y = array(run(tensor(x), tensor(w), tensor(noise.params()["threshold"])))
        wanted = sums(x, w, numpy_mask(noise, x, w))
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)
    assert NAME not in ("jax", "tensorflow") or len(traces) == 1


@needs_gradients
@pytest.mark.parametrize("method", ["materialized", "recomputed", "local_reparameterization"])
def test_the_numbers_of_a_noise_have_no_gradient(method):
    x, w, upstream = operands(*SMALL, "float32")
    x, w = tensor(x), tensor(w)
    noise = pnd.Gaussian(stddev=0.5)

    def run(stddev, used):
        return used * masked_dense(x, w, noise, KEY, params={"stddev": stddev}, method=method)

    numbers = [np.float32(0.5), np.float32(1)]
    _, (of_stddev, of_used) = value_and_gradients(run, *numbers, upstream=upstream)
    assert of_stddev is None or of_stddev == 0
    assert of_used != 0


def test_masks_may_be_empty_and_rates_at_their_end():
    assert mask_of(BERNOULLI, (0, 2, 3)).shape == (0, 2, 3)
    assert mask_of(pnd.Bernoulli(1 - 2**-24), (1, 1, 1)).tolist() == [[[0.0]]]


@pytest.mark.only_backend("tensorflow", reason="the other frameworks' matmul does not copy")
@pytest.mark.parametrize(("noise", "sharing"), [(pnd.Gaussian(0.5), None), (BERNOULLI, "out"), (BERNOULLI, "time+in")])
def test_a_product_of_rows_is_one_product_and_not_one_a_row(noise, sharing):
    import tensorflow as tf

    graph = tf.function(lambda x, w: masked_dense(x, w, noise, KEY, sharing=sharing)).get_concrete_function(
        tf.TensorSpec((None, 8)), tf.TensorSpec((8, 5))
    )
    kinds = [operation.type for operation in graph.graph.get_operations() if "MatMul" in operation.type]
    assert kinds
    assert set(kinds) == {"MatMul"}

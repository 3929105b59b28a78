"""The ops against float64 sums over NumPy's mask: values, gradients, sharing, splitting, dtypes, keys."""

import functools
import itertools
import math

import numpy as np
import pytest
from scipy import stats

import pernodedrop as pnd
from pernodedrop.backends import methods
from tests import reference
from tests.frameworks import NAME, XP, array, compiled, float64, needs_gradients, quick, tensor, value_and_gradients
from tests.noises import Difference, Triangular

KEY = (3, 1)
FAR = 2**32 - 2
BERNOULLI = pnd.Bernoulli(0.4)
SMALL = (6, 8), 5  # the one small shape, so that it is compiled once
COORDINATES = ("sample", "time", "in", "out")
ALL_SHARINGS = [names for n in range(5) for names in itertools.combinations(COORDINATES, n)]
HALVES = ["float16"] if NAME == "numpy" else ["float16", "bfloat16"]
masked_dense = pnd.ops.masked_dense


def operands(shape=(5, 37), outputs=11, dtype="float64", seed=0):
    """Random x of `shape`, w and upstream gradient."""
    rng = np.random.default_rng(seed)
    sizes = shape, (shape[-1], outputs), (*shape[:-1], outputs)
    return [rng.normal(size=size).astype(dtype) for size in sizes]


def numpy_mask(noise, x, w, **kwargs):
    """The mask of the product of x and w as float64, of shape (batch, time, in, out)."""
    batch, *time, inputs = x.shape
    mask = pnd.ops.sample_mask(noise, KEY, (batch, *time, inputs, w.shape[1]), backend="numpy", **kwargs)
    return mask.astype("float64").reshape(batch, *(time or [1]), inputs, w.shape[1])


def sums(x, w, mask):
    """y by float64 sums over the mask."""
    y, *_ = einsums(x, w, np.zeros((*x.shape[:-1], w.shape[1])), mask)
    return y


def einsums(x, w, upstream, mask):
    """y, dx and dw by float64 sums over the mask."""
    x4, g4 = (a.reshape(len(a), mask.shape[1], a.shape[-1]).astype("float64") for a in (x, upstream))
    y = np.einsum("bti,io,btio->bto", x4, w, mask).reshape(upstream.shape)
    dx = np.einsum("bto,io,btio->bti", g4, w, mask).reshape(x.shape)
    return y, dx, np.einsum("bti,bto,btio->io", x4, g4, mask)


def check(x, w, upstream, mask, tolerance, **kwargs):
    """The product and its gradients agree with sums over `mask`, relative to the sums of absolute terms."""
    kwargs = {"noise": BERNOULLI, "key": KEY, **kwargs}
    y, gradients = value_and_gradients(lambda x, w: masked_dense(x, w, **kwargs), x, w, upstream=upstream)
    sizes = einsums(*map(abs, (x, w, upstream)), 1 + abs(mask))
    for got, wanted, size in zip((y, *gradients), einsums(x, w, upstream, mask), sizes, strict=True):
        if got is not None:
            assert got.dtype == x.dtype
            assert got.shape == wanted.shape
            assert (abs(got - wanted) <= tolerance * size).all()


@functools.cache
def runner(noise, sharing, method):
    """The product as a function of tensors, so that JAX compiles it once for each shape."""
    return quick(lambda x, w, key, rest: masked_dense(x, w, noise, key, sharing=sharing, method=method, **rest))


def product(x, w, noise, key=KEY, *, sharing=None, method="auto", **rest):
    """masked_dense of host arrays and ints as host array."""
    rest = {name: state(n) if isinstance(n, int) else tensor(n) for name, n in rest.items()}
    return array(runner(noise, sharing, method)(tensor(x), tensor(w), state(key), rest))


def state(words):
    """Words as the int32 tensor that a layer keeps them in."""
    return tensor(np.array(words, "uint32").view("int32"))


def mask_of(noise, shape, key=KEY, **kwargs):
    """sample_mask of the backend under test as host array."""
    run = quick(lambda key: pnd.ops.sample_mask(noise, key, shape, **kwargs))
    return array(run(state(key)))


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
    assert pnd.backends.name_of(pnd.ops.sample_mask(BERNOULLI, KEY, (4, 3, 5))) == NAME
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


@pytest.mark.skipif(NAME != "tensorflow", reason="only a TensorFlow graph has sizes that are not known when traced")
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


@pytest.mark.skipif(NAME != "torch", reason="checks the registration of torch's custom operator")
def test_the_torch_operator_passes_the_checks_of_torch():
    import torch

    x, w, _ = (tensor(a) for a in operands((2, 1, 7), 3))
    word = [XP.as_word(n) for n in (0, 1, 2)]
    rows = [XP.arange(1, x), XP.arange(2, x)]
    law, names, params = XP._law(pnd.mask.Field(BERNOULLI, {"threshold": torch.tensor(BERNOULLI.threshold)}, None))
    arguments = (law, names, params, word[:2], rows, XP.arange(7, x), XP.arange(3, x))
    torch.library.opcheck(
        torch.ops.pernodedrop.recomputed.default, (x.requires_grad_(), w.requires_grad_(), *arguments)
    )


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


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_sample_ids_are_the_sample_coordinates_themselves(dtype):
    x, w, _ = operands(*SMALL, "float32")
    ids = np.array([3, 0, 4, 4, 1, 200], dtype)
    mask = np.concatenate([numpy_mask(BERNOULLI, x[:1], w, sample_offset=int(n)) for n in ids])
    wanted = sums(x, w, mask)
    np.testing.assert_allclose(product(x, w, BERNOULLI, sample_ids=ids), wanted, rtol=1e-5, atol=1e-5)
    with_tensor = masked_dense(tensor(x), tensor(w), BERNOULLI, KEY, sample_ids=tensor(ids))
    np.testing.assert_allclose(array(with_tensor), wanted, rtol=1e-5, atol=1e-5)


def test_sample_ids_count_modulo_2_to_the_32():
    x, w, _ = operands(*SMALL, "float32")
    far = product(x, w, BERNOULLI, sample_ids=np.array([-1, -2, 2**32, 2**40 + 1, 2**31, 7]))
    near = product(x, w, BERNOULLI, sample_ids=np.array([2**32 - 1, 2**32 - 2, 0, 1, 2**31, 7], "uint32"))
    np.testing.assert_array_equal(far, near)


@pytest.mark.parametrize("form", [lambda n: n, np.int64, np.array, tensor], ids=["int", "int64", "array", "tensor"])
def test_offsets_may_be_ints_or_scalar_tensors(form):
    x, w, _ = operands(*SMALL, "float32")
    offsets = {"sample_offset": form(2), "in_offset": form(3)}
    wanted = product(x, w, BERNOULLI, sample_offset=2, in_offset=3)
    y = array(masked_dense(tensor(x), tensor(w), BERNOULLI, KEY, **offsets))
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


# local reparameterization

N = 2**14
LAW_METHODS = pytest.mark.parametrize("method", ["local_reparameterization", "materialized"])


def drift(n, false_alarm=1e-9, trials=100):
    """Bounds on |sum| and |sum of products| of n normal numbers less its mean, by Laurent and Massart's lemma."""
    t = math.log(4 * trials / false_alarm)
    return math.sqrt(2 * t * n), 2 * math.sqrt(t * n) + 2 * t


def law_operands():
    rng = np.random.default_rng(5)
    x, w = rng.normal(size=(1, 5)), rng.normal(size=(5, 3))
    return np.repeat(x, N, axis=0).astype("float32"), w.astype("float32")


@LAW_METHODS
def test_gaussian_outputs_have_the_law_of_theory(method):
    """Given x and w, outputs are independent N(x w, v x**2 w**2) over outputs and samples; false alarm 1e-8."""
    noise = pnd.Gaussian(0.4)
    x, w = law_operands()
    y = product(x, w, noise, (2026, 0), method=method).astype("float64")
    z = (y - x[0] @ w) / np.sqrt(noise.variance * (x[0] ** 2 @ w**2))
    linear, quadratic = drift(N)
    assert (abs(z.sum(axis=0)) < linear).all()
    assert (abs(z.T @ z - N * np.eye(3)) < quadratic).all()
    assert (abs(z[1:].T @ z[:-1]) < quadratic).all()
    assert min(stats.kstest(column, "norm").pvalue for column in z.T) > 1e-9


def test_normals_of_local_reparameterization_are_those_of_the_lane_after_the_noises_own():
    """So outputs agree across backends, and are unrelated to the entries of a mask at the same key."""
    x, w, _ = operands(*SMALL, "float32")
    noise = pnd.Gaussian(0.4)
    u = ((reference.bits(*KEY, (6, 1, 5), sample_offset=FAR, lane=1)[:, 0] >> 9) + 0.5) / 2**23
    wanted = x @ w + noise.stddev * np.sqrt(x**2 @ w**2) * stats.norm.ppf(u)
    y = product(x, w, noise, sample_offset=FAR, method="local_reparameterization")
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


def test_auto_is_local_reparameterization_where_that_holds():
    x, w, _ = operands(*SMALL, "float32")
    noise = pnd.Gaussian(0.5)
    auto, local = (product(x, w, noise, method=m) for m in ("auto", "local_reparameterization"))
    np.testing.assert_array_equal(auto, local)
    assert not np.allclose(auto, product(x, w, noise, method="materialized"), atol=0.1)
    of_rank_3, by_mask = (product(x[:, None], w, noise, sharing=s) for s in ((), "sample"))
    wanted = sums(x, w, numpy_mask(noise, x, w, sharing="sample"))
    np.testing.assert_allclose(by_mask[:, 0], wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_rank_3[:, 0], local, rtol=1e-5, atol=1e-5)


def test_positions_that_share_a_mask_are_not_reparameterized():
    x, w, _ = operands((6, 3, 8), 5, "float32")
    noise = pnd.Gaussian(0.5)
    wanted = sums(x, w, numpy_mask(noise, x, w))
    np.testing.assert_allclose(product(x, w, noise), wanted, rtol=1e-4, atol=1e-4)


@needs_gradients
def test_gradients_of_a_row_of_zeros_are_finite():
    x, w, upstream = operands(*SMALL, "float32")
    x[1] = 0
    noise = pnd.Gaussian(0.5)
    y, (dx, dw) = value_and_gradients(lambda x, w: masked_dense(x, w, noise, KEY), x, w, upstream=upstream)
    assert np.isfinite(dx).all()
    assert np.isfinite(dw).all()
    np.testing.assert_array_equal(y[1], 0)
    without = np.delete(np.arange(6), 1)
    _, (_, of_others) = value_and_gradients(
        lambda x, w: masked_dense(x, w, noise, KEY, sample_ids=without), x[without], w, upstream=upstream[without]
    )
    np.testing.assert_allclose(dw, of_others, rtol=1e-4, atol=1e-5)


@needs_gradients
@LAW_METHODS
def test_gradients_of_a_square_loss_are_unbiased(method):
    """E d(y**2)/dw = d((xw)**2 + v x**2 w**2)/dw, of terms quadratic in normal numbers; false alarm 1e-8."""
    noise = pnd.Gaussian(0.4)
    x, w = law_operands()
    stddev, spread = noise.stddev, noise.stddev * np.sqrt(x[0] ** 2 @ w**2)
    mean = x[0] @ w

    def loss(x, w):
        y = masked_dense(x, w, noise, (2026, 1), method=method)
        return y * y

    _, (_, dw) = value_and_gradients(loss, x, w, upstream=np.ones((N, 3), "float32"))
    wanted = 2 * x[0][:, None] * mean + 2 * stddev**2 * x[0][:, None] ** 2 * w
    # y = mean + spread z and dy/dw = x (1 + stddev m) with z and m standard normal, equal or correlated
    linear, quadratic = drift(N)
    size = abs(x[0])[:, None] * 2
    bound = size * ((spread + abs(mean) * stddev) * linear + spread * stddev * quadratic)
    assert (abs(dw - N * wanted) < bound).all()


# dtypes


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("method", ["recomputed", "local_reparameterization"])
def test_half_precision_is_the_float32_product_of_the_same_numbers(half, method):
    noise = pnd.Gaussian(0.4)
    x, w = (XP.astype(tensor(a), half) for a in operands(*SMALL, "float32")[:2])
    run = quick(lambda x, w: masked_dense(x, w, noise, KEY, method=method))
    y = run(x, w)
    assert XP.dtype(y) == half
    wanted = run(XP.astype(x, "float32"), XP.astype(w, "float32"))
    np.testing.assert_allclose(array(y), array(XP.astype(wanted, half)), rtol=2**-7)


@pytest.mark.parametrize("half", HALVES)
def test_half_precision_sums_are_in_float32(half):
    """4096 terms that are 1 or 3 sum exactly in float32, while a sum in half precision stalls at 2048 or before."""
    x, w = tensor(np.ones((1, 4096)), half), tensor(np.full((4096, 1), 0.5), half)
    y = quick(lambda x, w: masked_dense(x, w, pnd.Bernoulli(0.5), KEY))(x, w)
    kept = (reference.bits(*KEY, (1, 4096, 1)) >> 31 == 0).sum()
    np.testing.assert_allclose(array(y), kept, rtol=2**-8)


@needs_gradients
@pytest.mark.parametrize("half", HALVES)
def test_half_precision_gradients_have_the_dtype_of_their_operand(half):
    x, w, upstream = operands(*SMALL, "float32")
    mask = numpy_mask(BERNOULLI, x, w)

    def run(x, w):
        return XP.astype(masked_dense(XP.astype(x, half), w, BERNOULLI, KEY), "float32")

    y, gradients = value_and_gradients(run, x, w, upstream=upstream)
    for got, wanted in zip((y, *gradients), einsums(x, w, upstream, mask), strict=True):
        assert got.dtype == "float32"
        np.testing.assert_allclose(got, wanted, rtol=0.05, atol=0.1)


def test_float64_of_either_operand_makes_the_sums_float64():
    x, w, _ = operands()
    x32, w32 = x.astype("float32"), w.astype("float32")
    with float64():
        y = product(x32, w, BERNOULLI, method="recomputed")
        assert y.dtype == "float32"
        np.testing.assert_array_equal(y, sums(x32, w, numpy_mask(BERNOULLI, x, w)).astype("float32"))
        y = product(x, w32, BERNOULLI, method="recomputed")
        assert y.dtype == "float64"
        np.testing.assert_allclose(y, sums(x, w32, numpy_mask(BERNOULLI, x, w)), rtol=1e-12, atol=1e-12)


def test_masks_may_be_empty_and_rates_at_their_end():
    assert mask_of(BERNOULLI, (0, 2, 3)).shape == (0, 2, 3)
    assert mask_of(pnd.Bernoulli(1 - 2**-24), (1, 1, 1)).tolist() == [[[0.0]]]


@pytest.mark.skipif(NAME != "tensorflow", reason="torch and JAX refuse by themselves")
def test_a_second_derivative_of_the_recomputed_product_is_refused():
    """Silence would drop a gradient penalty from a loss."""
    import tensorflow as tf

    x, w = tf.ones((2, 3)), tf.Variable(tf.ones((3, 4)))
    with tf.GradientTape() as outer, tf.GradientTape() as inner:
        inner.watch(x)
        y = masked_dense(x, w, BERNOULLI, KEY, method="recomputed")
    with outer:
        dx = inner.gradient(y, x)
    with pytest.raises(NotImplementedError, match="materialized"):
        outer.gradient(dx, w)


@pytest.mark.skipif(NAME != "tensorflow", reason="the other frameworks' matmul does not copy")
@pytest.mark.parametrize(("noise", "sharing"), [(pnd.Gaussian(0.5), None), (BERNOULLI, "out"), (BERNOULLI, "time+in")])
def test_a_product_of_rows_is_one_product_and_not_one_a_row(noise, sharing):
    import tensorflow as tf

    graph = tf.function(lambda x, w: masked_dense(x, w, noise, KEY, sharing=sharing)).get_concrete_function(
        tf.TensorSpec((None, 8)), tf.TensorSpec((8, 5))
    )
    kinds = [operation.type for operation in graph.graph.get_operations() if "MatMul" in operation.type]
    assert kinds
    assert set(kinds) == {"MatMul"}

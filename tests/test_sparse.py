"""Products of sparse inputs: the masks of the dense ones, for the entries alone that are listed."""

import tracemalloc

import numpy as np
import pytest
from scipy import sparse

import pernodedrop as pnd
from pernodedrop.backends import cpu_kernels, methods, sparse_methods
from tests.frameworks import NAME, XP, array, needs_gradients, quick, tensor, value_and_gradients
from tests.products import BERNOULLI, KEY, einsums, masked_dense, numpy_mask
from tests.test_transforms import gradients

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled"),
]

INPUTS, OUTPUTS = 37, 40
UNIFORM, GAUSSIAN = pnd.Uniform(0.3), pnd.Gaussian(0.3)


def whole(*shape, seed=0, share=1.0):
    """Whole numbers other than 0, and zeros but for a share: float32 sums of them have no rounding."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(1, 5, shape) * rng.choice([-1, 1], shape)
    return (numbers * (rng.random(shape) < share)).astype("float32")


def listed(values, places, shape):
    """A sparse tensor of these values at these places (n, rank), in their order."""
    if NAME == "numpy":
        return sparse.coo_array((values, tuple(places.T)), shape)
    if NAME == "torch":
        import torch

        return torch.sparse_coo_tensor(tensor(places.T.copy()), values, shape)
    if NAME == "jax":
        from jax.experimental import sparse as jax_sparse

        return jax_sparse.BCOO((values, tensor(places)), shape=shape)
    import tensorflow as tf

    return tf.SparseTensor(tensor(places), values, shape)


def product_and_gradients(x, w, upstream, places=None, **kwargs):
    """y and the gradients of the values at `places` of x and of w, of a sparse x."""
    places = np.argwhere(x) if places is None else places

    def product(values, w):
        return masked_dense(listed(values, places, x.shape), w, **{"noise": BERNOULLI, "key": KEY, **kwargs})

    return value_and_gradients(product, x[tuple(places.T)], w, upstream=upstream)


def dense(gradient):
    """A gradient as a dense tensor."""
    return XP.asarray(gradient)


def check(x, w, upstream, mask, tolerance=0.0, **kwargs):
    """The product of a sparse x and its gradients are sums over `mask`."""
    y, dx, dw = einsums(x, w, upstream, mask)
    got, (dvalues, got_dw) = product_and_gradients(x, w, upstream, **kwargs)
    for one, other in zip((got, dvalues, got_dw), (y, dx[np.nonzero(x)], dw), strict=True):
        if one is not None:
            assert one.shape == other.shape
            assert one.dtype == x.dtype
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


SHARINGS = [
    *([(5, INPUTS), sharing] for sharing in (None, "sample", "in", "out", "sample+out")),
    *([(3, 2, INPUTS), sharing] for sharing in ("time", (), "sample", "sample+time", "time+in", "out")),
]


@pytest.mark.skip_backend("numpy", reason="SciPy has no sparse arrays of three axes before 1.15")
@pytest.mark.parametrize(("shape", "sharing"), SHARINGS[5:], ids=str)
def test_bernoulli_products_of_positions_are_exact(shape, sharing):
    x, w, upstream = whole(*shape, share=0.3), whole(INPUTS, OUTPUTS), whole(*shape[:-1], OUTPUTS)
    check(
        x, w, upstream, numpy_mask(pnd.Bernoulli(0.5), x, w, sharing=sharing), noise=pnd.Bernoulli(0.5), sharing=sharing
    )


@pytest.mark.parametrize(
    ("sharing", "method"),
    [*([sharing, "auto"] for _, sharing in SHARINGS[:5]), (None, "recomputed"), (None, "materialized")],
    ids=str,
)
def test_bernoulli_products_and_gradients_are_exact(sharing, method):
    x, w, upstream = whole(5, INPUTS, share=0.3), whole(INPUTS, OUTPUTS), whole(5, OUTPUTS)
    noise = pnd.Bernoulli(0.5)  # what is kept is 2
    check(x, w, upstream, numpy_mask(noise, x, w, sharing=sharing), noise=noise, sharing=sharing, method=method)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["auto", "recomputed", "materialized"])
def test_nan_and_infinity_show_where_they_are_dropped_and_pass_by_what_is_not_listed(method, value):
    for of in range(3):
        x, w, upstream = whole(5, INPUTS, share=0.3), whole(INPUTS, OUTPUTS), whole(5, OUTPUTS)
        listed = x != 0
        where = [tuple(np.argwhere(listed)[3]), (np.argwhere(listed)[3][1], 2), (2, 2)][of]
        (x, w, upstream)[of][where] = value
        mask = numpy_mask(BERNOULLI, x, w)[:, 0]
        with np.errstate(invalid="ignore"):
            y = (x[:, :, None] * w * mask).sum(1, where=listed[:, :, None])
            dx = (upstream[:, None] * w * mask).sum(2)
            dw = (x[:, :, None] * upstream[:, None] * mask).sum(0, where=listed[:, :, None])
            got, (dvalues, got_dw) = product_and_gradients(x, w, upstream, np.argwhere(listed), method=method)
        for one, other in zip((got, dvalues, got_dw), (y, dx[listed], dw), strict=True):
            if one is not None:
                np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
                np.testing.assert_array_equal(np.isinf(one), np.isinf(other))


@pytest.mark.parametrize("method", ["kernel", "recomputed"])
@pytest.mark.parametrize("noise", [UNIFORM, GAUSSIAN], ids=repr)
def test_products_of_a_continuous_noise_have_its_mask(noise, method, monkeypatch):
    monkeypatch.setattr(sparse_methods, "LEAST_WIDTH", 12)
    monkeypatch.setattr(sparse_methods, "BLOCK_ENTRIES", 1)  # several blocks and a ragged rest
    x, w, upstream = whole(5, INPUTS, share=0.3), whole(INPUTS, OUTPUTS), whole(5, OUTPUTS)
    check(x, w, upstream, numpy_mask(noise, x, w), 1e-3, noise=noise, method=method)


@pytest.mark.parametrize("sharing", [None, "sample", "sample+time"], ids=str)
def test_gaussian_products_are_those_of_the_dense_array(sharing):
    x, w, upstream = whole(5, INPUTS, share=0.3), whole(INPUTS, OUTPUTS), whole(5, OUTPUTS)
    x[2] = 0  # a row without entries
    wanted, (dx, dw) = value_and_gradients(
        lambda x, w: masked_dense(x, w, GAUSSIAN, KEY, sharing=sharing), x, w, upstream=upstream
    )
    got, (dvalues, got_dw) = product_and_gradients(x, w, upstream, noise=GAUSSIAN, sharing=sharing)
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    if NAME != "numpy":
        np.testing.assert_allclose(dvalues, dx[np.nonzero(x)], atol=1e-3)
        np.testing.assert_allclose(got_dw, dw, atol=1e-3)


@pytest.mark.parametrize("method", ["kernel", "recomputed"])
def test_entries_in_any_order_and_listed_twice_add_up(method):
    x, w, upstream = whole(5, INPUTS, share=0.3), whole(INPUTS, OUTPUTS), whole(5, OUTPUTS)
    places = np.random.default_rng(1).permutation(np.repeat(np.argwhere(x), 2, axis=0))
    y, (_, dw) = product_and_gradients(x, w, upstream, places, method=method)
    wanted, (_, wanted_dw) = product_and_gradients(2 * x, w, upstream, method=method)
    np.testing.assert_allclose(y, wanted, rtol=1e-6, atol=1e-5)
    if NAME != "numpy":
        np.testing.assert_allclose(dw, wanted_dw, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("method", ["auto", "recomputed"])
def test_offsets_ids_and_numbers_are_those_of_the_dense_array(method):
    x, w, upstream = whole(5, INPUTS, share=0.3), whole(INPUTS, OUTPUTS), whole(5, OUTPUTS)
    where = {
        "sharing": (),
        "in_offset": 7,
        "time_offset": 3,
        "sample_ids": tensor(np.array([3, 1, 4, 1, 5])),
        "params": {"threshold": tensor(np.int32(2**22))},
    }
    wanted, _ = value_and_gradients(lambda x, w: masked_dense(x, w, BERNOULLI, KEY, **where), x, w, upstream=upstream)
    got, _ = product_and_gradients(x, w, upstream, method=method, **where)
    np.testing.assert_array_equal(got, wanted)  # what is kept is 4


@pytest.mark.parametrize("noise", [BERNOULLI, UNIFORM, GAUSSIAN], ids=repr)
def test_an_input_without_entries_has_a_product_of_zeros(noise):
    y, _ = product_and_gradients(np.zeros((2, 6), "float32"), whole(6, 4), whole(2, 4), noise=noise)
    np.testing.assert_array_equal(y, np.zeros((2, 4)))


@needs_gradients
@pytest.mark.parametrize("method", ["kernel", "recomputed"])
def test_gradients_of_gradients_are_those_of_the_mask_in_memory(method):
    x, w = whole(3, 6, share=0.6), tensor(whole(6, 4))
    places = np.argwhere(x)
    values = tensor(x[tuple(places.T)])

    def penalty(method):
        def of_product(values, w):
            return XP.sum(masked_dense(listed(values, places, x.shape), w, BERNOULLI, KEY, method=method) ** 2)

        def squares(values, w):
            return sum(XP.sum(gradient**2) for gradient in map(dense, gradients(of_product, values, w)))

        return quick(lambda *tensors: [dense(one) for one in gradients(squares, *tensors)])(values, w)

    for got, wanted in zip(penalty(method), penalty("materialized"), strict=True):
        np.testing.assert_allclose(array(got), array(wanted), rtol=1e-5)


@pytest.mark.only_backend("tensorflow", reason="the optimizers of Keras on TensorFlow take sparse gradients")
@pytest.mark.parametrize("noise", [BERNOULLI, GAUSSIAN, UNIFORM], ids=repr)
def test_the_gradient_of_a_kernel_has_the_rows_that_were_used(noise):
    import tensorflow as tf

    x = np.zeros((2, INPUTS), "float32")
    x[:, [3, 30]], x[1, 9] = 1, 1
    w = tf.Variable(whole(INPUTS, OUTPUTS))
    with tf.GradientTape() as tape:
        y = masked_dense(tf.sparse.from_dense(x), w.value(), noise, KEY)
    gradient = tape.gradient(y, w)
    assert isinstance(gradient, tf.IndexedSlices)
    assert set(gradient.indices.numpy()) == {3, 9, 30}


@pytest.mark.only_backend("jax", reason="alone it has lists that are longer than what they list")
@pytest.mark.parametrize("method", ["kernel", "recomputed", "materialized"])
def test_entries_outside_of_an_input_only_fill_a_list_up(method):
    from jax.experimental import sparse as jax_sparse

    x, w = whole(5, INPUTS, share=0.3), whole(INPUTS, OUTPUTS)
    longer = jax_sparse.BCOO.fromdense(x, nse=x.size)
    wanted, _ = product_and_gradients(x, w, whole(5, OUTPUTS), method=method)
    got, (dvalues, _) = value_and_gradients(
        lambda values, w: masked_dense(
            jax_sparse.BCOO((values, longer.indices), shape=x.shape), w, BERNOULLI, KEY, method=method
        ),
        np.where(np.arange(x.size) < (x != 0).sum(), longer.data, np.nan),
        w,
        upstream=whole(5, OUTPUTS),
    )
    np.testing.assert_array_equal(got, wanted)
    assert (dvalues[(x != 0).sum() :] == 0).all()


def test_what_is_no_list_of_numbers_is_refused_by_name():
    w = tensor(whole(6, 4))
    if NAME == "numpy":
        matrix = sparse.csc_array(whole(3, 6))
        kinds, error = [matrix, sparse.csr_array(whole(3, 6)).astype("int32")], r"`x`\. Expected a"
    if NAME == "jax":
        from jax.experimental import sparse as jax_sparse

        kinds = [jax_sparse.BCOO.fromdense(whole(3, 6), n_batch=1), jax_sparse.BCOO.fromdense(whole(3, 6), n_dense=1)]
        error = r"`x`\. Expected a BCOO "
    if NAME == "torch":
        x = tensor(whole(2, 3, 6))
        kinds, error = [x[0].to_sparse(1), x.to_sparse_csr()], r"`x`\. Expected a C[OS][OR] tensor "
    if NAME == "tensorflow":
        import tensorflow as tf

        kinds, error = [tf.IndexedSlices(whole(2, 6), [0, 2])], r"`x`\. Expected "
    for x in kinds:
        with pytest.raises(TypeError, match=error):
            masked_dense(x, w, BERNOULLI, KEY)


@pytest.mark.parametrize("time_offset", [0, 3])
def test_masks_that_persist_are_refused(time_offset):
    x, w = whole(3, 6), tensor(whole(6, 4))
    x = listed(tensor(x[x != 0]), np.argwhere(x), x.shape)
    with pytest.raises(ValueError, match=r"`persistence`\. Expected None beside a sparse input"):
        masked_dense(x, w, BERNOULLI, KEY, persistence=0.5, time_offset=time_offset)


def test_entries_are_inside_of_their_input():
    """The kernels read and write where the entries are."""
    w, words = whole(6, 4), np.zeros(6, "uint32")
    mask = methods.Decisions(np.int32(1), words[:1], words[:1], words[:3], words[:3], words, words[:4])
    values, inside = np.ones(2, "float32"), np.array([0, 2])
    for outside in (np.array([0, 3]), np.array([-1, 0])):
        with pytest.raises(ValueError, match="Expected rows of entries in 0 "):
            cpu_kernels.sparse_product(values, outside, inside, w, mask)
    with pytest.raises(ValueError, match="Expected columns of entries in 0 "):
        cpu_kernels.sparse_gradients(whole(3, 4), values, inside, np.array([0, 6]), w, mask)
    with pytest.raises(ValueError, match="Expected w of the coordinates"):
        cpu_kernels.sparse_product(values, inside, inside, w[:5], mask)


@pytest.mark.once
def test_the_kernel_gives_the_same_numbers_with_any_number_of_threads(monkeypatch):
    rng = np.random.default_rng(0)
    places = rng.integers(0, (40, 300), (2000, 2))
    values, w, dy = (rng.normal(size=size).astype("float32") for size in (2000, (300, 20), (40, 20)))
    words = np.arange(300, dtype="uint32")
    mask = methods.Decisions(np.int32(2**23), words[:1], words[:1], words[:40], words[:40], words, words[:20])
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(cpu_kernels, "_SPANS_A_THREAD", threads)
        y = cpu_kernels.sparse_product(values, *places.T, w, mask)
        results.append([y, *cpu_kernels.sparse_gradients(dy, values, *places.T, w, mask)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.once
@pytest.mark.parametrize(("noise", "method"), [(BERNOULLI, "recomputed"), (BERNOULLI, "kernel"), (GAUSSIAN, "auto")])
def test_memory_is_that_of_the_entries(noise, method):
    """Of 256 MB that a mask of all entries would take, and 67 MB that w does."""
    rng = np.random.default_rng(0)
    x = sparse.random_array((16, 2**15), density=20 / 2**15, format="csr", dtype="float32", random_state=rng)
    w = np.ones((2**15, 128), "float32")
    masked_dense(x[:1], w, noise, KEY, method=method)  # compiles, imports
    tracemalloc.start()
    masked_dense(x, w, noise, KEY, method=method)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20

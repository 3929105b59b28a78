"""Kernels written by hand: the masks and sums of the other ways, where and only where they can be had."""

import concurrent.futures
import contextlib
import ctypes
import errno
import functools
import importlib
import math
import threading
import types

import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.backends import methods
from tests import noises
from tests.frameworks import NAME, XP, array, compiled, needs_gradients, tensor, value_and_gradients
from tests.processes import child
from tests.products import (
    BERNOULLI,
    FAR,
    KEY,
    SMALL,
    bits_of,
    check,
    einsums,
    masked_dense,
    numpy_mask,
    operands,
    product,
)

SHAPES = [
    ((5, 37), 11, None),  # outputs that do not fill a vector
    ((5, 37), 16, "sample+time"),
    ((5, 3, 37), 16, None),
    ((3, 9, 37), 16, None),  # positions and inputs in groups, and some left over
    ((3, 9, 1500), 16, None),  # in several threads
    ((5, 3, 37), 11, ()),
    ((5, 3, 37), 5, "sample"),
    ((3, 2100), 64, None),  # several tiles of inputs
    ((1100, 17), 64, None),  # several tiles of rows
    ((130, 19), 150, None),  # blocks of outputs of both widths, and an odd number of inputs
    ((1, 1), 1, None),
]


@pytest.mark.parametrize(("shape", "outputs", "sharing"), SHAPES, ids=str)
def test_products_and_gradients_are_the_sums_over_the_mask(shape, outputs, sharing):
    x, w, upstream = operands(shape, outputs, "float32")
    mask = numpy_mask(BERNOULLI, x, w, sharing=sharing, sample_offset=FAR)
    check(x, w, upstream, mask, 1e-5, sharing=sharing, sample_offset=FAR, method="kernel")


NOISES = [pnd.Uniform(0.4), pnd.PartialGaussian(0.4, 0.7), pnd.Gaussian(0.4), noises.Steps((0.5, 1.0, 4.0))]


@pytest.mark.parametrize(("shape", "outputs", "sharing"), SHAPES, ids=str)
@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: type(noise).__name__)
def test_products_and_gradients_of_any_noise_are_the_sums_over_its_mask(noise, shape, outputs, sharing):
    x, w, upstream = operands(shape, outputs, "float32")
    mask = numpy_mask(noise, x, w, sharing=sharing, sample_offset=FAR)
    check(x, w, upstream, mask, 2e-5, noise=noise, sharing=sharing, sample_offset=FAR, method="kernel")


class Sometimes(pnd.Noise):
    """Infinite for half of the entries."""

    variance = math.inf

    def from_uniform(self, u, params, xp):
        return 1 / xp.maximum(u - 0.5, 0.0)


@needs_gradients
def test_infinite_entries_are_of_true_outputs_alone():
    """What fills vectors up is 0 times them, and would be NaN."""
    x, w, upstream = np.ones((8, 6), "float32"), np.ones((6, 3), "float32"), np.ones((8, 3), "float32")
    run = functools.partial(masked_dense, noise=Sometimes(), key=KEY, method="kernel")
    y, (dx, dw) = value_and_gradients(run, x, w, upstream=upstream)
    with np.errstate(divide="ignore"):
        mask = pnd.ops.sample_mask(Sometimes(), KEY, (8, 6, 3), backend="numpy")
    for found, axis in ((y, 1), (dx, 2), (dw, 0)):
        np.testing.assert_allclose(found, mask.sum(axis), rtol=1e-5)


@pytest.mark.only_backend("numpy", "torch", reason="on the others it is `recomputed`")
@pytest.mark.parametrize(("shape", "outputs"), [((5, 1, 37), 11), ((9, 3, 20), 16)], ids=str)
@pytest.mark.parametrize("noise", [BERNOULLI, NOISES[2]], ids=lambda noise: type(noise).__name__)
def test_a_kernel_made_again_has_the_products_and_gradients_of_the_blocks(noise, shape, outputs):
    """Those of the sums over NumPy's mask, where rows share their time."""
    x, w, upstream = operands(shape, outputs, "float32")
    params = {name: tensor(number) for name, number in noise.params().items()}
    rows, in_, out = (XP.arange(n, tensor(x)) for n in (len(x), shape[-1], outputs))
    key = tuple(rows[:1] + XP.word(n) for n in KEY)
    grid = pnd.mask.Grid(pnd.mask.Field(noise, params, key), XP.zeros_like(rows), rows, in_, out)
    wanted = einsums(x, w, upstream, numpy_mask(noise, x, w, sharing="time"))
    for way in (XP.kernel_made_again, XP.recomputed):
        if NAME == "numpy":
            found = [way(x, w, grid)]
        else:
            y, gradients = value_and_gradients(lambda x, w, way=way: way(x, w, grid), x, w, upstream=upstream)
            found = [y, *gradients]
        for one, other in zip(found, wanted, strict=NAME != "numpy"):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.skip_backend("jax", reason="JAX' kernel takes float32 only")
def test_float64_is_summed_in_float64():
    x, w, upstream = operands((5, 3, 37), 11)
    check(x, w, upstream, numpy_mask(BERNOULLI, x, w), 1e-14, method="kernel")
    check(x, w, upstream, numpy_mask(NOISES[0], x, w), 1e-14, noise=NOISES[0], method="kernel")
    x, w, upstream = operands((5, 37), 70)  # more outputs than a vector has
    check(x, w, upstream, numpy_mask(BERNOULLI, x, w), 1e-14, method="kernel")


@pytest.mark.only_backend("numpy", reason="the same kernels on every backend")
def test_what_is_dropped_gives_no_gradient_however_large_x_is():
    from pernodedrop.backends import cpu_kernels

    rows, inputs, outputs = 6, 3, 20
    x, w, dy = np.full((rows, 1, inputs), 2e38, "float32"), np.ones((inputs, outputs), "float32"), 1e-20
    mask = pnd.ops.sample_mask(BERNOULLI, KEY, (rows, inputs, outputs), backend="numpy")
    flat = decisions(rows, inputs, outputs)
    flat = flat._replace(threshold=np.int32(BERNOULLI.threshold), time=np.zeros(rows, "uint32"))
    _, dw = cpu_kernels.gradients(np.full((rows, 1, outputs), dy, "float32"), x, w, flat)
    np.testing.assert_allclose(dw, 2e18 * mask.sum(0), rtol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1 - 2**-24])
def test_masks_are_equal_to_the_bit(rate):
    """Each row of x picks one input, so that y is a row of the mask, and dx and dw are sums of a single entry."""
    noise = pnd.Bernoulli(rate)
    x, w = np.eye(6, dtype="float32"), np.ones((6, 40), "float32")
    rows = numpy_mask(noise, x, w)[np.arange(6), 0, np.arange(6)]
    ones = np.ones((6, 40), "float32")
    y, gradients = value_and_gradients(
        lambda x, w: masked_dense(x, w, noise, KEY, method="kernel"), x, w, upstream=ones
    )
    np.testing.assert_array_equal(y, rows.astype("float32"))
    if gradients[1] is not None:
        np.testing.assert_array_equal(gradients[1], rows.astype("float32"))


@pytest.mark.parametrize(("threshold", "kept"), [(0, 0), (-1, 0), (2**24, 1)])
def test_a_threshold_of_ones_own_is_taken_as_elsewhere(threshold, kept):
    """`params` may hold what no `Bernoulli` says: below 1 nothing is kept."""
    x, w, upstream = operands(*SMALL, "float32")
    params = {"threshold": tensor(np.int32(threshold))}
    y, gradients = value_and_gradients(
        lambda x, w: masked_dense(x, w, BERNOULLI, KEY, params=params, method="kernel"), x, w, upstream=upstream
    )
    for got, wanted in zip((y, *gradients), (x @ w, upstream @ w.T, x.T @ upstream), strict=True):
        if got is not None:
            np.testing.assert_allclose(got, kept * wanted, rtol=1e-4, atol=1e-5)


def test_numbers_are_those_that_are_handed_in_by_name():
    """In whatever order, for noises that were traced with others."""
    given = pnd.PartialGaussian(0.4, 0.7)
    for noise in (given, pnd.PartialGaussian(0.6, 0.2)):
        params = {name: tensor(value) for name, value in reversed(noise.params().items())}
        x, w, upstream = operands(*SMALL, "float32")
        check(x, w, upstream, numpy_mask(noise, x, w), 2e-5, noise=given, params=params, method="kernel")


def test_empty_axes_give_empty_sums():
    for noise in (BERNOULLI, NOISES[0]):
        for shape in ((0, 4), (3, 0, 4)):
            x, w, upstream = operands(shape, 5, "float32")
            check(x, w, upstream, numpy_mask(noise, x, w), 0, noise=noise, method="kernel")


class Shaped(pnd.Noise):
    """It is none of elementwise ops: it asks how many entries there are."""

    size: float
    variance = 1.0

    def from_uniform(self, u, params, xp):
        return 1 + 0 * params["size"] * u * len(u.shape)


def test_auto_takes_the_kernel_for_noises_of_elementwise_ops(monkeypatch):
    taken = []
    monkeypatch.setattr(XP, "fused", lambda function: function)  # JAX would not ask again
    monkeypatch.setattr(XP, "kernel", lambda x, w, *rest: taken.append("kernel") or XP.matmul(x, w))
    monkeypatch.setattr(XP, "recomputed", lambda x, w, *rest: taken.append("recomputed") or XP.matmul(x, w))
    x, w, _ = (tensor(a) for a in operands(*SMALL, "float32"))
    for noise in (BERNOULLI, pnd.Uniform(0.5), Uncalibrated(0.5), Shaped(0.5)):
        masked_dense(x, w, noise, KEY)
    assert taken == ["kernel", "kernel", "kernel", "recomputed"]


CHOICES = [
    (BERNOULLI, "time", 1, None, "kernel"),
    (BERNOULLI, "time", 64, None, "kernel"),
    (BERNOULLI, "time", 1, "a CPU", "recomputed"),
    (BERNOULLI, "sample", 64, None, "kernel"),
    (BERNOULLI, "sample+time", 64, None, "one_mask"),
    (BERNOULLI, "time+out", 64, None, "shared_over_in_or_out"),
    (pnd.Gaussian(0.5), "time", 1, None, "local_reparameterization"),
    (pnd.Gaussian(0.5), "time", 64, None, "kernel"),
    (pnd.Gaussian(0.5), "time", 64, "numba", "recomputed"),
    (pnd.PartialGaussian(0.5, 0.5), "time", 1, None, "kernel"),
    (pnd.PartialGaussian(0.5, 0.5), "time", 64, None, "kernel"),
    (pnd.Uniform(0.5), "time", 1, None, "kernel"),
    (pnd.Uniform(0.5), "time", 64, None, "kernel"),
    (noises.Laplace(0.3), "time", 1, None, "kernel"),
    (noises.Laplace(0.3), "time", 64, "numba", "recomputed"),
]


@pytest.mark.once
@pytest.mark.parametrize(("noise", "sharing", "positions", "obstacle", "method"), CHOICES, ids=str)
def test_auto_picks_a_method_by_the_mask_and_the_positions_that_share_it(noise, sharing, positions, obstacle, method):
    shared = pnd.mask.parse_sharing(sharing)
    rows = 1 if "sample" in shared and "time" in shared else 32
    field = pnd.mask.Field(noise, {}, (0, 0))
    xp = types.SimpleNamespace(kernel_obstacle=lambda *_: obstacle)
    x = np.zeros((rows, positions, 8), "float32")
    assert methods.chosen("auto", field, shared, x, "float32", xp) == method


class Uncalibrated(pnd.Bernoulli):
    """It inherits all but the entries."""

    def from_words(self, words, params, xp):
        return super().from_words(words, params, xp) / 2


def test_without_numba_auto_goes_on_and_kernel_says_what_to_install(monkeypatch):
    monkeypatch.setattr(methods, "numba_obstacle", lambda: "numba (pip install 'pernodedrop[fast]')")
    x, w, _ = operands((6, 7), 5, "float32")
    wanted = array(masked_dense(tensor(x), tensor(w), BERNOULLI, KEY, method="materialized"))
    np.testing.assert_allclose(array(masked_dense(tensor(x), tensor(w), BERNOULLI, KEY)), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"`method`.*numba.*pernodedrop\[fast\].*'kernel'"):
        masked_dense(tensor(x), tensor(w), BERNOULLI, KEY, method="kernel")


def test_another_noise_is_refused():
    x, w, _ = (tensor(a) for a in operands(*SMALL, "float32"))
    with pytest.raises(ValueError, match=r"`method`.*elementwise ops of `pernodedrop.backends.NOISE_OPS`.*'kernel'"):
        masked_dense(x, w, Shaped(0.5), KEY, method="kernel")


def decisions(rows, inputs, outputs):
    """Those of a mask at a rate of 1/2, of which every row is a sample."""
    words = [np.array([n], "uint32") for n in KEY]
    words += [np.arange(n, dtype="uint32") for n in (rows, rows, inputs, outputs)]
    return methods.Decisions(np.int32(2**23), *words)


@pytest.mark.only_backend("numpy", reason="the same kernels on every backend")
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("infinite", [False, True])
def test_decisions_are_kept_to_the_bit_and_gradients_read_them(rate, infinite):
    """At rates of which the words' lower bits matter or not, beside numbers that are finite or not."""
    from pernodedrop.backends import cpu_kernels

    rows, inputs, outputs = 131, 19, 150
    x, w, dy = operands((rows, 1, inputs), outputs, "float32")
    if infinite:
        x[2, 0, 3], x[5, 0, 7], w[11, 70], dy[9, 0, 1] = np.inf, np.nan, -np.inf, np.inf
    noise = pnd.Bernoulli(rate)
    mask = pnd.ops.sample_mask(noise, KEY, (rows, inputs, outputs), backend="numpy")
    flat = decisions(rows, inputs, outputs)._replace(threshold=np.int32(noise.threshold), time=np.zeros(rows, "uint32"))
    y, kept = cpu_kernels.product_and_bits(x, w, flat)
    np.testing.assert_array_equal(bits_of(kept, mask.shape), mask != 0)
    assert y.tobytes() == cpu_kernels.product(x, w, flat).tobytes()
    found = cpu_kernels.gradients(dy, x, w, flat, kept)
    for one, again in zip(found, cpu_kernels.gradients(dy, x, w, flat), strict=True):
        assert one.tobytes() == again.tobytes()
    with np.errstate(invalid="ignore"):
        wanted = (
            np.matmul(x, w * mask),
            np.matmul(dy, (w * mask).transpose(0, 2, 1)),
            np.sum(mask * (x.transpose(0, 2, 1) * dy), axis=0),
        )
    for one, sums in zip((y, *found), wanted, strict=True):
        np.testing.assert_allclose(one, sums, rtol=1e-4, atol=1e-3)
    if not infinite:  # bits are what gradients are made of
        dx, dw = cpu_kernels.gradients(dy, x, w, flat, np.zeros_like(kept))
        assert not dx.any()
        assert not dw.any()


@pytest.mark.only_backend("numpy", reason="the same kernels on every backend")
def test_decisions_are_kept_up_to_a_size(monkeypatch):
    from pernodedrop.backends import cpu_kernels

    x, w, dy = operands((5, 1, 19), 40, "float32")
    mask, shape = decisions(5, 19, 40), (6, 3, 5, 8)
    monkeypatch.setattr(methods, "KEPT_BYTES", math.prod(shape))
    y, kept = cpu_kernels.product_and_bits(x, w, mask)
    assert kept.shape == shape
    assert kept.tobytes() == cpu_kernels.product_and_bits(x, w, mask)[1].tobytes()
    wanted = cpu_kernels.gradients(dy, x, w, mask, kept)
    with pytest.raises(ValueError, match=r"bits of the shape \(6, 3, 5, 8\).*\(6, 3, 4, 8\)"):
        cpu_kernels.gradients(dy, x, w, mask, kept[:, :, :4])
    monkeypatch.setattr(methods, "KEPT_BYTES", math.prod(shape) - 1)
    again, none = cpu_kernels.product_and_bits(x, w, mask)
    assert none.size == 0
    for found, one in zip((again, *cpu_kernels.gradients(dy, x, w, mask, none)), (y, *wanted), strict=True):
        assert found.tobytes() == one.tobytes()


@needs_gradients
@pytest.mark.parametrize("kept", [True, False])
def test_decisions_are_kept_where_a_product_is_to_be_differentiated(kept, monkeypatch):
    kernels, read = importlib.import_module(f"pernodedrop.backends.{'xla' if NAME == 'jax' else 'cpu'}_kernels"), []
    gradients = kernels.gradients
    monkeypatch.setattr(kernels, "gradients", lambda *operands: read.append(operands[-1]) or gradients(*operands))
    if NAME == "jax":
        importlib.import_module("jax").clear_caches()  # of what was traced before
    if not kept:
        monkeypatch.setattr(methods, "KEPT_BYTES", 0)
    x, w, upstream = operands(*SMALL, "float32")
    check(x, w, upstream, numpy_mask(BERNOULLI, x, w), 1e-5, method="kernel")
    assert {bits is not None and bits.size > 0 for bits in read} == {kept}
    monkeypatch.setattr(kernels, "product_and_bits", None)
    masked_dense(tensor(x), tensor(w), BERNOULLI, KEY, method="kernel")  # of which no gradient is wanted


@pytest.mark.only_backend("jax", reason="where parts of the rows have bits of their own, which are put together")
def test_bits_of_parts_of_the_rows_are_those_of_one_product(monkeypatch):
    import jax

    from pernodedrop.backends import cpu_kernels, xla_kernels

    x, w, dy = operands((131, 1, 19), 150, "float32")
    mask = decisions(131, 19, 150)
    y, bits = cpu_kernels.product_and_bits(x, w, mask)
    monkeypatch.setattr(cpu_kernels, "FEW", 0)
    found_y, found = jax.jit(xla_kernels.product_and_bits)(x, w, mask)
    assert (np.asarray(found_y).tobytes(), np.asarray(found).tobytes()) == (y.tobytes(), bits.tobytes())
    for read in (bits, np.zeros_like(bits)):
        wanted = cpu_kernels.gradients(dy, x, w, mask, read)
        for one, gradient in zip(jax.jit(xla_kernels.gradients)(dy, x, w, mask, read), wanted, strict=True):
            np.testing.assert_array_equal(one, gradient)
    monkeypatch.setattr(methods, "KEPT_BYTES", bits.size - 1)
    jax.clear_caches()  # of what was traced before
    _, none = jax.jit(xla_kernels.product_and_bits)(x, w, mask)
    assert none.size == 0
    wanted = cpu_kernels.gradients(dy, x, w, mask)
    for one, gradient in zip(jax.jit(xla_kernels.gradients)(dy, x, w, mask, none), wanted, strict=True):
        np.testing.assert_array_equal(one, gradient)


@pytest.mark.only_backend("numpy", reason="the same threads on every backend but JAX, where XLA has its own")
@pytest.mark.parametrize(("rows", "positions", "outputs"), [(9, 2, 11), (131, 1, 70)])
@pytest.mark.parametrize("largest", [1.0, np.inf])
def test_sums_do_not_depend_on_how_they_are_shared_out(rows, positions, outputs, largest, monkeypatch):
    from pernodedrop.backends import cpu_kernels

    x, w, upstream = operands((rows, positions, 37), outputs, "float32")
    x[3, 0, 20] = largest
    mask = decisions(rows, 37, outputs)
    found = set()
    for few, spans in ((2**30, 1), (0, 1), (0, 3), (0, 100)):
        monkeypatch.setattr(cpu_kernels, "FEW", few)
        monkeypatch.setattr(cpu_kernels, "_SPANS_A_THREAD", spans)
        y, kept = cpu_kernels.product_and_bits(x, w, mask)
        for bits in (kept, None):
            dx, dw = cpu_kernels.gradients(upstream, x, w, mask, bits)
            found.add((y.tobytes(), dx.tobytes(), dw.tobytes()))
    assert len(found) == 1


@pytest.mark.only_backend("numpy", reason="the same programs on every backend but JAX, where XLA has its own")
def test_operands_that_may_be_written_or_not_are_of_one_program():
    """TensorFlow's and JAX' arrays may not; numba takes seconds for a program."""
    from pernodedrop.backends import cpu_kernels, decision_kernels

    x, w, upstream = operands((3, 1, 7), 16, "float32")
    mask, programs = decisions(3, 7, 16), set()
    for written in range(4):
        for n, operand in enumerate((x, w)):
            operand.flags.writeable = bool(written >> n & 1)
        cpu_kernels.product(x, w, mask)
        cpu_kernels.gradients(upstream, x, w, mask)
        programs.add((len(decision_kernels.forward.signatures), len(decision_kernels.backward.signatures)))
    assert len(programs) == 1


@pytest.mark.only_backend("jax", reason="checks the handlers that are given to XLA")
@pytest.mark.parametrize(
    ("interface", "answer"),
    [((0, 3), (0, 3)), (None, (0, 1)), ((1, 0), (-1, -1))],
    ids=["as asked", "as JAX up to 0.8.0, which does not say", "none to another major version"],
)
def test_a_handler_answers_which_version_of_xla_s_interface_it_is_for(interface, answer):
    from pernodedrop.backends import xla_kernels

    def structure(*fields):
        return (ctypes.c_int64 * (1 + len(fields)))(8 * (1 + len(fields)), *fields)

    def version(major, minor):
        return minor << 32 | major & 0xFFFFFFFF

    for handler in xla_kernels.handlers:
        metadata = structure(24, 0, version(-1, -1), 0)
        extension = structure(1, 0, ctypes.addressof(metadata))
        api = structure(0, 24, 0, version(*interface)) if interface else None
        frame = structure(ctypes.addressof(extension), ctypes.addressof(api) if api else 0, *[0] * 12)
        assert handler.ctypes(ctypes.addressof(frame)) == 0
        assert metadata[3] == version(*answer)


@pytest.mark.once
@pytest.mark.parametrize("error", [RuntimeError("no folder can be written"), OSError(errno.ENOSPC, "full")], ids=repr)
def test_what_cannot_be_kept_on_disk_is_compiled_all_the_same(error):
    from pernodedrop.backends import decision_kernels

    def decorator(cache=False):
        def decorate(function):
            if cache:
                raise error
            return function

        return decorate

    def kernel():
        pass

    assert decision_kernels.kept_on_disk(decorator, kernel) is kernel


@pytest.mark.only_backend("jax", reason="checks the handlers that are given to XLA")
def test_threads_that_need_a_handler_at_once_register_it_once(monkeypatch):
    import jax

    from pernodedrop.backends import decision_kernels, xla_kernels

    registered, both = [], threading.Barrier(2)
    handler = xla_kernels.handlers[0]

    def compiled(*_):
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)  # for another thread that compiles as well
        return handler

    monkeypatch.setattr(decision_kernels, "kept_on_disk", compiled)
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda target, *_, **__: registered.append(target))
    monkeypatch.setattr(xla_kernels, "handlers", [])
    kernels = types.ModuleType("kernels_of_a_test")
    kernels.__file__ = __file__
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        targets = list(pool.map(lambda _: xla_kernels._registered("forward", kernels), range(2)))
    assert targets == registered * 2 == ["kernels_of_a_test_forward"] * 2


@pytest.mark.only_backend("torch", reason="its tensors may have the numbers' negatives in memory")
def test_a_tensor_that_is_only_marked_as_negative_is_negative():
    import torch

    def marked(values):
        return torch.complex(torch.zeros(values.shape), -torch.from_numpy(values)).conj().imag

    arrays = x, w, upstream = operands(*SMALL, "float32")
    x, w, upstream = (marked(values) for values in arrays)
    assert x.is_neg()
    y = masked_dense(x.requires_grad_(), w.requires_grad_(), BERNOULLI, KEY, method="kernel")
    y.backward(upstream)
    wanted = einsums(*arrays, numpy_mask(BERNOULLI, *arrays[:2]))
    for found, sums in zip((y.detach(), x.grad, w.grad), wanted, strict=True):
        np.testing.assert_allclose(found, sums, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.only_backend("torch", reason="checks the registration of torch's custom operator")
def test_the_torch_operator_passes_the_checks_of_torch():
    import torch

    x, w, dy = (tensor(a) for a in operands((2, 1, 7), 3))
    words = [XP.as_word(0), XP.as_word(1), *(XP.arange(n, x) for n in (2, 2, 7, 3))]
    threshold = torch.tensor(BERNOULLI.threshold, dtype=torch.int32)
    arguments = (x.requires_grad_(), w.requires_grad_(), [threshold, *words])
    torch.library.opcheck(torch.ops.pernodedrop.kernel.default, arguments)
    torch.library.opcheck(torch.ops.pernodedrop.kernel_keeping.default, arguments)
    x, w = (a.detach() for a in arguments[:2])
    x, w = x.mT.contiguous().mT, w.T.contiguous().T  # strides of a transposed weight
    torch.library.opcheck(torch.ops.pernodedrop.kernel_backward.default, (dy, x, w, *arguments[2:]))
    bits = torch.ops.pernodedrop.kernel_keeping(x, w, *arguments[2:])[1]
    torch.library.opcheck(torch.ops.pernodedrop.kept_backward.default, (dy, x, w, *arguments[2:], bits))


@pytest.mark.only_backend("tensorflow", "jax", reason="torch exports custom operators, NumPy nothing")
def test_what_is_not_differentiated_can_be_exported(tmp_path):
    x, w, _ = operands(*SMALL, "float32")
    wanted = product(x, w, BERNOULLI, method="materialized")

    def run(x):
        return masked_dense(x, tensor(w), BERNOULLI, KEY, method="kernel")

    if NAME == "jax":
        import jax

        exported = jax.export.export(jax.jit(run))(tensor(x)).serialize()
        y = jax.export.deserialize(exported).call(x)
    else:
        import tensorflow as tf

        module = tf.Module()
        module.run = tf.function(run, input_signature=[tf.TensorSpec(x.shape)])
        graph = module.run.get_concrete_function().graph
        assert not any("PyFunc" in operation.type for operation in graph.get_operations())
        tf.saved_model.save(module, tmp_path)
        y = tf.saved_model.load(tmp_path).run(x)
    np.testing.assert_allclose(array(y), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.only_backend("tensorflow", reason="where a graph may be compiled by XLA, or not")
def test_a_graph_that_xla_compiles_does_without_the_kernel():
    import tensorflow as tf

    x, w, upstream = operands(*SMALL, "float32")

    @tf.function(jit_compile=True)
    def run(x, w, upstream):
        with tf.GradientTape() as tape:
            tape.watch((x, w))
            y = masked_dense(x, w, BERNOULLI, KEY)
        return y, *tape.gradient(y, (x, w), upstream)

    y, gradients = value_and_gradients(
        lambda x, w: masked_dense(x, w, BERNOULLI, KEY, method="kernel"), x, w, upstream=upstream
    )
    for got, want in zip(run(x, w, upstream), (y, *gradients), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.only_backend("jax", reason="JAX maps a function over an axis")
def test_products_are_mapped():
    import jax

    x, w, upstream = (tensor(a) for a in operands((4, *SMALL[0]), SMALL[1], "float32"))

    def gradient(x, upstream):
        return jax.vjp(lambda x: masked_dense(x, w, BERNOULLI, KEY, method="kernel"), x)[1](upstream)[0]

    mapped = jax.jit(jax.vmap(gradient))(x, upstream)
    for one, x_one, upstream_one in zip(mapped, x, upstream, strict=True):
        np.testing.assert_allclose(one, gradient(x_one, upstream_one), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("noise", [BERNOULLI, NOISES[1]], ids=lambda noise: type(noise).__name__)
def test_compiled_and_eager_products_agree(noise):
    x, w, _ = operands(*SMALL, "float32")
    run = compiled(lambda x, w: masked_dense(x, w, noise, KEY))
    np.testing.assert_allclose(
        array(run(tensor(x), tensor(w))), product(x, w, noise, method="materialized"), rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.once
def test_no_shape_reads_or_writes_out_of_bounds(tmp_path):
    """With numba's checks of bounds, on operands that fit and on such that do not."""
    seen = child("fuzz_shapes.py", NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path))
    assert seen == {"right": 120, "refused": 120 * 8}


@pytest.mark.only_backend("torch", "tensorflow", reason="where words may be made by NumPy or by the framework")
@pytest.mark.parametrize("noise", [BERNOULLI, pnd.Uniform(0.4)], ids=lambda noise: type(noise).__name__)
@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 7)], ids=str)
def test_words_that_numpy_makes_are_those_of_the_framework(shape, noise, monkeypatch):
    x, w, upstream = operands(shape, 11, "float32")
    run = functools.partial(masked_dense, noise=noise, key=KEY, sample_offset=FAR, method="kernel")
    made, on_host = [], XP.on_host

    def taking_note(*arguments):
        made.append(on_host(*arguments))
        return made[-1]

    monkeypatch.setattr(XP, "on_host", taking_note)
    y, gradients = value_and_gradients(run, x, w, upstream=upstream)
    assert len(made) > 0
    assert all(isinstance(samples, np.ndarray) and samples.dtype == np.uint32 for _, samples in made)
    monkeypatch.setattr(XP, "on_host", lambda *_: None)
    again, gradients_again = value_and_gradients(run, x, w, upstream=upstream)
    for one, other in zip((y, *gradients), (again, *gradients_again), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.only_backend("torch", reason="its functions of autograd")
def test_a_backward_pass_that_is_not_differentiated_is_no_function_of_autograd(monkeypatch):
    import torch

    from pernodedrop.backends import torch_products

    gradients, applied = torch_products._Gradients.apply, []
    monkeypatch.setattr(
        torch_products._Gradients, "apply", lambda *operands: applied.append(operands) or gradients(*operands)
    )
    x, w, upstream = (tensor(a) for a in operands((5, 7), 4, "float32"))
    w.requires_grad_()
    plain = torch.autograd.grad(masked_dense(x, w, BERNOULLI, KEY), w, upstream)
    assert applied == []
    graph = torch.autograd.grad(masked_dense(x, w, BERNOULLI, KEY), w, upstream, create_graph=True)
    assert len(applied) == 1
    np.testing.assert_array_equal(array(plain[0]), array(graph[0]))


@pytest.mark.only_backend("torch", reason="its functions of autograd")
def test_functions_of_autograd_have_their_signatures_at_hand():
    """Else torch has Python find them out at each call, which takes longer than a small product."""
    import torch

    from pernodedrop.backends import torch_products

    functions = [one for one in vars(torch_products).values() if isinstance(one, type)]
    functions = [one for one in functions if issubclass(one, torch.autograd.Function)]
    assert len(functions) >= 4
    assert all("__signature__" in vars(one.forward) for one in functions)


@pytest.mark.only_backend("jax", reason="its products are compiled as a whole, eager ones too")
def test_an_eager_product_is_traced_once_for_all_keys(monkeypatch):
    traced, local = [], methods.local_reparameterization
    monkeypatch.setattr(methods, "local_reparameterization", lambda *them: traced.append(1) or local(*them))
    noise = pnd.Gaussian(0.4375)  # of no other test
    x, w, _ = (tensor(a) for a in operands((5, 7), 4, "float32"))
    results = [array(masked_dense(x, w, noise, (1, call))) for call in range(3)]
    assert len(traced) == 1
    assert len({result.tobytes() for result in results}) == 3

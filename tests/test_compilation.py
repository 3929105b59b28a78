"""What compilation makes of a masked product: small buffers, no program made twice, nothing read back in a step."""

import functools

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.backends import methods
from tests.frameworks import NAME, XP, needs_gradients, tensor, xla_programs
from tests.products import BERNOULLI, KEY, masked_dense, operands

MIB = 2**20
METHODS = ["recomputed", "kernel"]


def step(method):
    """A product and its gradients, for JAX to compile."""
    import jax

    def run(x, w, dy):
        y, vjp = jax.vjp(lambda x, w: masked_dense(x, w, BERNOULLI, KEY, method=method), x, w)
        return y, *vjp(dy)

    return jax.jit(run)


@pytest.mark.only_backend("jax", reason="only JAX tells the buffers of a compiled program")
@pytest.mark.parametrize("method", METHODS)
def test_the_buffers_of_a_step_do_not_hold_the_mask(method):
    """At 16 times the entries they grow by what a few copies of x grow, 7.5 MiB each, and the mask by 480 MiB.

    The kernel's decisions, a bit an entry, grow by 15 MiB; they are there twice while those of parts are put together.
    """
    sizes = []
    for inputs in (1024, 16384):
        x, w, dy = operands((128, inputs), 64, "float32")
        sizes.append(step(method).lower(x, w, dy).compile().memory_analysis().temp_size_in_bytes)
    assert sizes[0] < 8 * MIB
    assert sizes[1] - sizes[0] < 3 * 7.5 * MIB + (15 * MIB if method == "kernel" else 0)


@pytest.mark.only_backend("jax", reason="Python in a step would show in JAX' program")
@pytest.mark.parametrize("method", METHODS)
def test_a_step_calls_nothing_of_python(method):
    program = step(method).lower(*operands((4, 32), 16, "float32")).as_text()
    assert "callback" not in program
    assert ("decision_kernels_forward" in program) == (method == "kernel")


@pytest.mark.only_backend("torch", reason="torch would read a number back where it is asked for")
def test_a_block_reads_no_number_back():
    """Fake tensors have no numbers, so that what reads one fails; on a GPU it would wait for the device."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, w, dy = torch.ones(4, 1, 9), torch.ones(9, 5), torch.ones(4, 1, 5)
        words = [torch.ones(n, dtype=torch.int32) for n in (1, 1, 1, 4, 9, 5)]
        threshold = torch.ones((), dtype=torch.int32)
        mask = pnd.mask.Grid.from_tensors(BERNOULLI, ["threshold"], [threshold, *words]).entries(XP)
        assert methods.forward_block(x, w, mask, XP).shape == (4, 1, 5)
        assert methods.input_gradient_block(w, mask, dy, XP).shape == (4, 1, 9)
        assert methods.kernel_gradient_block(x, mask, dy, XP).shape == (9, 5)


@pytest.fixture
def programs(monkeypatch):
    """What a backend compiles as it comes: XLA's programs on JAX, and what Keras traces on TensorFlow."""
    if NAME == "jax":
        with xla_programs() as made:
            yield made
        return
    made, original = [], pnd.PerNodeDrop.call

    @functools.wraps(original)
    def call(*args, **kwargs):
        made.append("trace")
        return original(*args, **kwargs)

    monkeypatch.setattr(pnd.PerNodeDrop, "call", call)
    yield made


@needs_gradients
@pytest.mark.skip_backend("torch", reason="eager torch compiles nothing; torch.compile is tested below")
@pytest.mark.parametrize("method", ["auto", "recomputed"])
def test_steps_after_the_first_epoch_compile_nothing(programs, method):
    """21 samples in batches of 8: two sizes of a batch, each of which is compiled once."""
    model = keras.Sequential([keras.Input((6,)), pnd.PerNodeDrop(keras.layers.Dense(5), 0.5, method=method)])
    model.compile("sgd", "mse")
    data = np.ones((21, 6), "float32"), np.ones((21, 5), "float32")
    model.fit(*data, batch_size=8, verbose=0)
    assert programs
    programs.clear()
    model.fit(*data, batch_size=8, epochs=2, verbose=0)
    assert not programs


@pytest.mark.slow
@pytest.mark.only_backend("torch", reason="torch.compile is torch's")
@pytest.mark.parametrize("method", ["auto", "recomputed"])
def test_a_compiled_step_is_made_for_two_sizes_of_a_batch_at_most(method):
    """One for the first size, one for all others."""
    import torch
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    w = tensor(np.ones((6, 5), "float32")).requires_grad_()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def run(x):
        return masked_dense(x, w, BERNOULLI, KEY, method=method)

    for batch in (128, 128, 100, 37, 128):
        run(torch.ones(batch, 6)).sum().backward()
    assert counters["stats"]["unique_graphs"] <= 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inductor's own
@pytest.mark.only_backend("torch", reason="inductor is torch's")
def test_inductor_makes_the_masks_of_a_key_of_two_ints():
    """It computes with a Python int itself, which does not wrap around at 32 bits, unless it cannot see it."""
    import torch

    def mask():
        return pnd.ops.sample_mask(BERNOULLI, KEY, (2, 3, 4))

    torch._dynamo.reset()
    # what is used twice becomes a buffer, or inductor writes it down twice, for half a minute
    options = {"realize_opcount_threshold": 8, "cpp.simdlen": 1}
    assert (torch.compile(mask, fullgraph=True, options=options)() == mask()).all()

"""The ops inside what frameworks make of functions: derivatives of derivatives, maps, shards, checkpoints, graphs."""

import numpy as np
import pytest

import pernodedrop as pnd
from tests.conftest import needs_keras
from tests.frameworks import NAME, XP, array, compiled, needs_gradients, tensor, value_and_gradients, xla_programs
from tests.processes import child
from tests.products import BERNOULLI, KEY, SMALL, mask_of, masked_dense, numpy_mask, operands, sums

only = pytest.mark.only_backend
METHODS = [
    (BERNOULLI, "materialized"),
    (BERNOULLI, "recomputed"),
    (BERNOULLI, "kernel"),
    (pnd.Uniform(0.3), "recomputed"),
    (pnd.Gaussian(0.3), "local_reparameterization"),
]
jit_script = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch's own forward mode
every_method = pytest.mark.parametrize(("noise", "method"), METHODS)


def gradients(function, *inputs):
    """The gradients of a scalar function of tensors, which can be differentiated again."""
    if NAME == "torch":
        import torch

        inputs = [x if x.requires_grad else x.clone().requires_grad_() for x in inputs]
        return torch.autograd.grad(function(*inputs), inputs, create_graph=True)
    if NAME == "jax":
        import jax

        return jax.grad(function, tuple(range(len(inputs))))(*inputs)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = function(*inputs)
    return tape.gradient(y, inputs)


@needs_gradients
@pytest.mark.parametrize(("noise", "method"), METHODS[1:4])
def test_the_gradient_of_a_gradient_penalty_is_that_of_the_mask(noise, method):
    """The penalty of y = sum_i x_i w_i m_i is sum_i (d(y**2)/dx_i)**2; its gradients are by finite differences."""
    x, w, _ = operands(*SMALL, "float32")

    def penalty(x, w):
        dx, _ = gradients(lambda x, w: XP.sum(masked_dense(x, w, noise, KEY, method=method) ** 2), x, w)
        return XP.sum(dx**2)

    mask = numpy_mask(noise, x, w)

    def of_numpy(x, w):
        dx = np.einsum("bo,io,bio->bi", 2 * sums(x, w, mask), w, mask[:, 0])
        return (dx**2).sum()

    for got, place in zip(gradients(penalty, tensor(x), tensor(w)), (0, 1), strict=True):
        wanted = np.zeros_like((x, w)[place], "float64")
        for index in np.ndindex(wanted.shape):
            near = []
            for step in (-1e-4, 1e-4):
                pair = [x.astype("float64"), w.astype("float64")]
                pair[place][index] += step
                near.append(of_numpy(*pair))
            wanted[index] = (near[1] - near[0]) / 2e-4
        np.testing.assert_allclose(array(got), wanted, rtol=1e-3, atol=1e-3 * abs(wanted).max())


# torch


@jit_script
@only("torch", reason="torch.func is torch's")
@every_method
def test_torch_func_gives_what_a_loop_gives(noise, method):
    import torch

    x, w, _ = (tensor(a) for a in operands(*SMALL, "float32"))

    def loss(w, call, x=x):
        return masked_dense(x, w, noise, torch.stack([call * 0 + 1, call]), method=method).square().sum()

    kernels, calls = torch.stack([w, 2 * w, -w]), torch.arange(3)
    wanted = [gradients(lambda w, call=call: loss(w, call), w)[0] for w, call in zip(kernels, calls, strict=True)]
    for gradient in (torch.func.grad(loss), torch.func.jacfwd(loss)):
        torch.testing.assert_close(torch.func.vmap(gradient)(kernels, calls), torch.stack(wanted))
    rows = torch.func.vmap(lambda x: loss(w, calls[0], x[None]))(x)
    torch.testing.assert_close(rows, torch.stack([loss(w, calls[0], row[None]) for row in x]))


@jit_script
@only("torch", reason="torch.func is torch's")
@every_method
def test_a_hessian_of_torch_is_that_of_the_materialized_product(noise, method):
    import torch

    x, w, _ = (tensor(a) for a in operands((3, 4), 2))
    x, w = x.float(), w.float()

    def hessian(method, transform):
        return transform(lambda x, w: masked_dense(x, w, noise, KEY, method=method).pow(3).sum(), (0, 1))(x, w)

    twice_back = lambda f, places: torch.func.jacrev(torch.func.jacrev(f, places), places)  # noqa: E731 # one of two
    wanted = hessian(method if noise.gaussian else "materialized", torch.func.hessian)
    for transform in (torch.func.hessian, twice_back):
        for got, row in zip(hessian(method, transform), wanted, strict=True):
            torch.testing.assert_close(got, row, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@only("torch", reason="torch.compile is torch's")
@pytest.mark.parametrize("method", ["kernel", "recomputed", "materialized"])
def test_a_compiled_product_takes_params_and_maps(method):
    import torch

    x, w, _ = (tensor(a) for a in operands(*SMALL, "float32"))
    run = compiled(lambda key, t: masked_dense(x, w, BERNOULLI, key, params={"threshold": t}, method=method))
    for noise in (pnd.Bernoulli(0.2), pnd.Bernoulli(0.9)):
        y = run(torch.tensor(KEY), tensor(noise.params()["threshold"]))
        torch.testing.assert_close(y, masked_dense(x, w, noise, KEY))
    keys = torch.tensor([KEY, (5, 6)])
    run = compiled(torch.func.vmap(lambda key: masked_dense(x, w, BERNOULLI, key, method=method)))
    torch.testing.assert_close(run(keys)[1], masked_dense(x, w, BERNOULLI, (5, 6)))


@only("torch", reason="torch.compile is torch's")
def test_kernels_with_masks_are_one_graph_for_all_batches():
    import torch

    w, ((seed, call), params) = tensor(operands(*SMALL, "float32")[1]), (KEY, BERNOULLI.params())
    params = {name: tensor(value) for name, value in params.items()}

    def masked(w, samples):
        field = pnd.mask.Field(BERNOULLI, params, (XP.as_word(seed), XP.as_word(call)))
        in_, out = (XP.arange(size, w) for size in w.shape)
        return XP.masked(w, pnd.mask.Grid(field, XP.zeros_like(samples), samples, in_, out))

    run = compiled(masked)
    for batch in (3, 4, 7):
        samples = XP.arange(batch, w)
        torch._dynamo.mark_dynamic(samples, 0)  # an error where the size becomes a constant
        torch.testing.assert_close(run(w, samples), masked(w, samples))


@pytest.mark.slow
@only("torch", reason="torch.compile is torch's")
def test_the_first_call_of_a_process_may_be_a_compiled_one():
    import torch

    torch.compile(lambda: None)  # skips where it is too old
    assert child("first_call.py")["compiled"]


@only("torch", reason="DTensor is torch's")
def test_a_distributed_tensor_is_refused_by_name():
    class DTensor(type(tensor(0.0))):
        pass

    x, w, _ = (tensor(a) for a in operands(*SMALL, "float32"))
    with pytest.raises(TypeError, match=r"`w`.*to_local\(\).*DTensor"):
        masked_dense(x, w.as_subclass(DTensor), BERNOULLI, KEY)


@only("torch", reason="only torch keeps noises by name, for its compiled graphs")
def test_noises_of_eager_calls_are_not_kept():
    x, w, _ = (tensor(a) for a in operands((1, 2), 2, "float32"))
    before = len(XP._FILE)
    for n in range(100):
        masked_dense(x, w, pnd.Uniform(n / 200), KEY, method="recomputed")
    assert len(XP._FILE) == before
    first, equal = XP._filed(pnd.Uniform(0.123)), XP._filed(pnd.Uniform(0.123))
    assert first == equal
    assert len(XP._FILE) == before + 1
    del XP._FILE[first]


@needs_keras
@pytest.mark.slow
@only("torch", reason="torch.distributed is torch's")
def test_ranks_make_the_whole_in_layers_and_by_offsets_in_ops():
    """Two processes of gloo: an op of the second one has the first one's masks unless told where its rows are."""
    seen = child("ranks.py")
    assert seen["warnings"] == [0, 1]
    assert seen["with offsets"] == seen["whole"] != seen["without"]
    assert [seen["whole layer"][rank::2] for rank in range(2)] == seen["layers"]


# JAX


@only("jax", reason="shard_map is JAX's")
@every_method
def test_a_sharded_map_gives_what_one_device_gives(noise, method):
    import jax

    if not hasattr(jax, "shard_map"):
        pytest.skip("JAX 0.6.0 has it as an experiment only")
    x, w, _ = operands(*SMALL, "float32")
    mesh, spec = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",)), jax.sharding.PartitionSpec

    def loss(x, w, offset=0):
        return (masked_dense(x, w, noise, KEY, sample_offset=offset, method=method) ** 2).sum()

    def of_shards(x, w):
        return jax.lax.psum(loss(x, w, jax.lax.axis_index("data") * len(x)), "data")

    wanted = jax.jit(jax.grad(loss, (0, 1)))(x, w)
    of_all = jax.shard_map(of_shards, mesh=mesh, in_specs=(spec("data"), spec()), out_specs=spec())
    outside = jax.jit(jax.grad(of_all, (0, 1)))  # op by op, it takes a program for each of hundreds
    specs = {"in_specs": (spec("data"), spec()), "out_specs": (spec("data"), spec())}
    inside = jax.jit(jax.shard_map(jax.grad(of_shards, (0, 1)), mesh=mesh, **specs))
    for run in (outside, inside):
        for got, of_one in zip(run(x, w), wanted, strict=True):
            np.testing.assert_allclose(got, of_one, rtol=1e-4, atol=1e-4)


@only("jax", reason="keys with a type are JAX's")
def test_a_typed_key_is_its_two_words():
    import jax

    key = jax.random.split(jax.random.key(5))[1]
    words = np.asarray(jax.random.key_data(key))
    wanted = pnd.ops.random_bits(tuple(words), (2, 3, 4))
    for form in (key, jax.random.wrap_key_data(words), words):
        np.testing.assert_array_equal(pnd.ops.random_bits(form, (2, 3, 4)), wanted)
    x, w = tensor(np.eye(3, dtype="float32")), tensor(np.ones((3, 4), "float32"))
    product = jax.jit(lambda key: masked_dense(x, w, BERNOULLI, key))
    np.testing.assert_array_equal(product(key), masked_dense(x, w, BERNOULLI, tuple(words)))
    for other in (jax.random.split(key), jax.random.key(5, impl="rbg")):
        with pytest.raises(ValueError, match="`key`"):
            pnd.ops.random_bits(other, (2, 3, 4))


@only("jax", reason="the other frameworks have a forward mode")
def test_a_forward_mode_is_refused_where_a_mask_is_made_again():
    import jax

    x, w, _ = (tensor(a) for a in operands(*SMALL, "float32"))

    def derivative(method):
        return jax.jvp(lambda w: masked_dense(x, w, BERNOULLI, KEY, method=method), (w,), (w,))

    for method in ("recomputed", "kernel"):
        with pytest.raises(TypeError, match="forward-mode"):
            derivative(method)
    y, of_y = derivative("materialized")
    np.testing.assert_allclose(of_y, y, rtol=1e-5)


@only("jax", reason="jax.jit is JAX's")
def test_equal_noises_and_other_rates_are_compiled_once():
    x, w, _ = (tensor(a) for a in operands((3, 7), 5, "float32"))
    params = [pnd.Uniform(n / 20).params() for n in range(20)]
    for each in params[:10]:
        masked_dense(x, w, pnd.Uniform(0.321), KEY, params=each, method="recomputed")
    with xla_programs() as made:
        for each in params[10:]:
            masked_dense(x, w, pnd.Uniform(0.321), KEY, params=each, method="recomputed")
    assert not made


@only("jax", reason="jax.jit is JAX's")
def test_words_of_a_new_shape_are_compiled_in_one_piece_and_once():
    def words(out):
        with xla_programs() as made:
            for call in range(5):
                pnd.ops.random_bits((1, call), (2, 3, out), backend=NAME)
        return len(made)

    words(40)  # what makes tensors of a key is compiled
    assert words(41) < 5  # numbers of the last axis, and the words; operation by operation there would be more
    assert words(41) == 0


# keys that are drawn, kernels that are masked


def variable(values):
    """A state that can be changed, where the framework has one."""
    if NAME == "tensorflow":
        import tensorflow as tf

        return tf.Variable(values)
    return np.array(values) if NAME == "numpy" else tensor(values)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_draws_count_calls(dtype):
    if NAME == "jax" and dtype == "int64":
        pytest.skip("JAX has it in a mode of its own only")
    state, keys = variable(np.array([7, 0], dtype)), []
    for _ in range(3):
        drawn = pnd.ops.draw(state)
        key, state = drawn if NAME == "jax" else (drawn, state)
        keys.append(array(key).tolist())
    assert keys == [[7, 0], [7, 1], [7, 2]]
    assert np.asarray(state).tolist() == [7, 3]
    np.testing.assert_array_equal(mask_of(BERNOULLI, (2, 3, 4), tuple(keys[2])), mask_of(BERNOULLI, (2, 3, 4), (7, 2)))


@only("torch", "tensorflow", reason="they change a state inside of a compiled function")
def test_draws_count_calls_in_a_compiled_function():
    x, w, _ = (tensor(a) for a in operands(*SMALL, "float32"))
    state = variable(np.array([7, 0], "int32"))
    run = compiled(lambda x: masked_dense(x, w, BERNOULLI, pnd.ops.draw(state)))
    for call in range(3):
        np.testing.assert_allclose(array(run(x)), array(masked_dense(x, w, BERNOULLI, (7, call))), rtol=1e-5, atol=1e-5)


@only("tensorflow", "numpy", reason="only they have both what can be changed and what cannot")
def test_a_draw_of_what_cannot_be_changed_gives_the_next_state():
    first = tensor(np.array([7, 4]))
    if NAME == "numpy":
        first.flags.writeable = False
    assert [array(words).tolist() for words in pnd.ops.draw(first)] == [[7, 4], [7, 5]]
    assert array(first).tolist() == [7, 4]


@only("torch", "tensorflow", reason="elsewhere a draw changes nothing, or there is no backward pass")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_draw_inside_of_a_checkpoint_is_refused_and_one_outside_is_right(reentrant):
    x, w, _ = (tensor(a) for a in operands(*SMALL, "float32"))
    state = variable(np.array([7, 0], "int32"))

    def remat(function):
        if NAME == "tensorflow":
            import tensorflow as tf

            return tf.recompute_grad(function)
        from torch.utils.checkpoint import checkpoint

        return lambda w: checkpoint(function, w, use_reentrant=reentrant)

    with pytest.raises(RuntimeError, match=r"ops\.draw"):
        gradients(lambda w: XP.sum(remat(lambda w: masked_dense(x, w, BERNOULLI, pnd.ops.draw(state)))(w)), w)
    key = pnd.ops.draw(state)
    upstream = np.ones((6, 5), "float32")
    functions = remat(lambda w: masked_dense(x, w, BERNOULLI, key)), lambda w: masked_dense(x, w, BERNOULLI, (7, 0))
    got, wanted = (value_and_gradients(function, array(w), upstream=upstream)[1] for function in functions)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("state", [(7, 0), np.zeros(2), np.zeros(3, "int32"), None], ids=repr)
def test_a_draw_takes_a_state_only(state):
    with pytest.raises(ValueError, match=r"`state`.*length 2"):
        pnd.ops.draw(state)


@pytest.mark.parametrize(
    ("shape", "sharing"), [((4, 5), "sample+time"), ((4, 5), "sample+time+in"), ((3, 4, 5), None), ((3, 2, 4, 5), ())]
)
def test_a_masked_kernel_is_the_product_with_the_mask(shape, sharing):
    w = np.random.default_rng(0).normal(size=shape).astype("float32")
    sizes = shape if len(shape) > 2 else (1, *shape)
    offsets = {} if "sample" in pnd.mask.parse_sharing(sharing) else {"sample_offset": 2**32 - 2}
    mask = pnd.ops.sample_mask(BERNOULLI, KEY, sizes, sharing=sharing, backend="numpy", **offsets).reshape(shape)
    got = pnd.ops.masked(tensor(w), BERNOULLI, KEY, sharing=sharing, **offsets)
    np.testing.assert_array_equal(array(got), w * mask)
    if NAME != "numpy":
        (dw,) = gradients(lambda w: XP.sum(pnd.ops.masked(w, BERNOULLI, KEY, sharing=sharing, **offsets)), tensor(w))
        np.testing.assert_array_equal(array(dw), mask)


def test_parts_of_a_masked_kernel_are_parts_of_the_whole():
    w = tensor(np.ones((6, 5), "float32"))
    whole = array(pnd.ops.masked(w, BERNOULLI, KEY))
    np.testing.assert_array_equal(array(pnd.ops.masked(w[2:], BERNOULLI, KEY, in_offset=2)), whole[2:])
    half = pnd.ops.masked(XP.astype(w, "float16"), BERNOULLI, KEY, params={"threshold": np.int32(2**23)})
    assert XP.dtype(half) == "float16"
    assert set(np.unique(array(half))) == {0, 2}


@pytest.mark.parametrize(
    ("argument", "changed"),
    [("w", {"w": np.ones(3, "float32")}), ("w", {"w": np.ones((2, 3), "int32")}), ("sharing", {"sharing": "time"})],
)
def test_a_masked_kernel_of_another_kind_is_refused(argument, changed):
    w = tensor(changed.pop("w", np.ones((2, 3), "float32")))
    with pytest.raises((TypeError, ValueError), match=f"`{argument}`"):
        pnd.ops.masked(w, BERNOULLI, KEY, **changed)

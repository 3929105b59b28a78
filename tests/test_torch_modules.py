"""Native modules of torch: the masks of NumPy, in what torch does with any module; no test here needs Keras."""

import copy
import doctest
import importlib
import importlib.util
import io
import os
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.backends import methods
from tests.frameworks import NAME
from tests.processes import child

pytestmark = pytest.mark.only_backend("torch", reason="the modules are torch's")
torch = pytest.importorskip("torch", reason="the backend under test") if NAME == "torch" else None
if torch is not None:
    from torch.utils.checkpoint import checkpoint

    import pernodedrop.torch as pndt
    from pernodedrop.backends import torch_ops


def inputs(*shape):
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype("float32"))


def host(tensor):
    return tensor.detach().numpy()


# masks


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3), (5, 2, 3, 3), (3,)], ids=str)
@pytest.mark.parametrize("noise", ["bernoulli", "gaussian", "uniform"])
def test_a_linear_has_the_masks_of_numpy(shape, noise):
    layer = pndt.PerNodeLinear(3, 4, rate=0.3, noise=noise, seed=7, method="recomputed")
    x, rows = inputs(*shape), shape[0] if len(shape) > 1 else 1
    for call in range(2):
        mask = pnd.ops.sample_mask(layer.noise, (7, call), (rows, 3, 4), backend="numpy")
        expected = np.einsum("bti,oi,bio->bto", host(x).reshape(rows, -1, 3), host(layer.weight), mask)
        expected = (expected + host(layer.bias)).reshape(*shape[:-1], 4)
        np.testing.assert_allclose(host(layer(x)), expected, atol=1e-6)
    assert (layer.seed, layer.updates) == (7, 2)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("regime", ["dynamic", "fixed"])
def test_a_convolution_without_noise_is_that_of_torch(mode, regime):
    arguments = {"padding": (2, 1), "stride": 2, "dilation": (1, 2), "groups": 2, "padding_mode": mode}
    module = pndt.PerNodeConv2d(4, 6, (3, 2), rate=0.0, regime=regime, **arguments)
    plain = torch.nn.Conv2d(4, 6, (3, 2), **arguments)
    plain.load_state_dict(module.fold().state_dict())
    for x in (inputs(3, 4, 7, 8), inputs(4, 7, 8)):
        torch.testing.assert_close(module(x), plain(x))


def test_a_convolution_with_a_kernel_for_each_sample_makes_no_patches(monkeypatch):
    modules = [pndt.PerNodeConv2d(4, 6, 3, seed=1, method=method) for method in ("recomputed", "auto")]
    x, expected = inputs(3, 4, 7, 8), modules[0](inputs(3, 4, 7, 8))
    modules[1].load_state_dict({**modules[0].state_dict(), "_extra_state": modules[1].get_extra_state()})
    monkeypatch.setattr(pndt.PerNodeConv2d, "_patches", None)
    torch.testing.assert_close(modules[1](x), expected)
    with pytest.raises(TypeError, match="not callable"):
        modules[0](x)


def test_a_convolution_keeps_the_memory_format():
    module, x = pndt.PerNodeConv2d(4, 6, 3, seed=1), inputs(3, 4, 7, 8)
    last = x.contiguous(memory_format=torch.channels_last)
    y = module(last, key=(1, 0))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, module(x, key=(1, 0)))


# training


@pytest.mark.slow
def test_ranks_of_a_process_group_train_like_one_process_with_the_whole_batch():
    """By DDP and by FSDP2, which frees the memory of gathered weights: nothing may hold on to it."""
    seen = child("torch_ranks.py")
    alone, updates, zeros = seen["alone"]
    assert updates == 3
    assert len(seen["ranks"]) == 2
    for rank, (engines, dynamic, refusal) in enumerate(seen["ranks"]):
        assert len(engines) == len(dynamic) == 2
        for weights, _ in dynamic:  # ranks with equal batches, and so with equal gradients
            np.testing.assert_allclose(weights, seen["dynamic"][0], atol=1e-6)
        for weights, updates, of_rank in engines:
            np.testing.assert_allclose(weights, alone, atol=1e-6)
            assert updates == 3
            assert of_rank == [whole[rank::2] for whole in zeros]
        assert "`normalize`. Expected 'sample' with torch.distributed" in refusal


def test_a_replica_of_data_parallel_is_refused():
    replica = pndt.PerNodeLinear(3, 4, seed=1)._replicate_for_data_parallel()
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        replica(inputs(5, 3))


# what torch does with modules


def test_a_plain_checkpoint_loads_and_an_own_one_resumes():
    plain = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    model, x = pndt.apply(copy.deepcopy(plain), "all-linear", rate=0.5, seed=1), inputs(5, 3)
    model[0](x)
    model.load_state_dict(plain.state_dict(), strict=True)
    assert model[0].updates == 1
    torch.testing.assert_close(model.eval()(x), plain(x))

    model.train()[0].rate = 0.25
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    again = pndt.apply(copy.deepcopy(plain), "all-linear", rate=0.5, seed=9)
    again.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True), strict=True)
    assert (again[0].seed, again[0].updates, again[0].rate) == (model[0].seed, 1, 0.25)
    assert torch.equal(again(x), model(x))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_resumes(tmp_path):
    from torch.distributed import checkpoint

    model, again = (torch.nn.Sequential(pndt.PerNodeLinear(3, 4, rate=0.5, seed=seed)) for seed in (1, 9))
    x = inputs(5, 3)
    model(x)
    model[0].rate = 0.25
    checkpoint.save({"model": model.state_dict()}, checkpoint_id=tmp_path / "checkpoint")
    state = {"model": again.state_dict()}
    checkpoint.load(state, checkpoint_id=tmp_path / "checkpoint")
    again.load_state_dict(state["model"])
    assert (again[0].updates, again[0].rate) == (1, 0.25)
    assert torch.equal(again(x), model(x))


def test_the_state_of_another_noise_is_refused():
    layer = pndt.PerNodeLinear(3, 4, rate=0.5, seed=7)
    own = layer.get_extra_state()
    too_high = torch.cat([own[:-1], torch.tensor([2**24 + 1], dtype=torch.int32)])
    other = pndt.PerNodeLinear(3, 4, rate=0.5, noise="gaussian").get_extra_state()
    for state in (None, {"key": [1, 0]}, own[:-1], own.long(), own.numpy(), other, too_high):
        with pytest.raises((ValueError, RuntimeError)):
            layer.load_state_dict({**layer.state_dict(), "_extra_state": state})
    normal, uniform = (pndt.PerNodeLinear(3, 4, noise=noise) for noise in ("gaussian", "uniform"))
    with pytest.raises((ValueError, RuntimeError)):
        normal.load_state_dict({**normal.state_dict(), "_extra_state": uniform.get_extra_state()})
    assert (layer.updates, layer.rate) == (0, 0.5)
    changed = torch.cat([own[:2], torch.tensor([5, 2**22], dtype=torch.int32)])
    layer.load_state_dict({**layer.state_dict(), "_extra_state": changed})
    assert (layer.seed, layer.updates, layer.rate) == (7, 5, 0.75)


def test_the_state_of_a_module_of_other_sizes_is_refused():
    layer, other = pndt.Masksembles(8, members=8, seed=1), pndt.Masksembles(16, members=4, seed=2)
    with pytest.raises((ValueError, RuntimeError), match=r"masks \(8, 8\)"):
        layer.load_state_dict(other.state_dict())
    layer, other = (pndt.DynamicDropConnectLinear(*sizes, bias=False, seed=1) for sizes in ((3, 4), (4, 3)))
    with pytest.raises((ValueError, RuntimeError), match=r"gradient \(4, 3\)"):
        layer.set_extra_state(other.get_extra_state())
    layer.set_extra_state(pndt.DynamicDropConnectLinear(3, 4, seed=9).get_extra_state())
    assert layer.seed == 9


@pytest.mark.parametrize(
    ("base_rate", "weight_rate", "value"),
    [
        (0.3, None, np.nan),
        (0.3, None, -0.1),
        (0.3, None, 0.8),
        (pnd.schedules.Linear(0.0, 0.5, 10), None, 0.6),
        (0.3, 0.3, 0.5),
    ],
)
def test_the_state_of_a_gradient_rate_that_cannot_be_set_is_refused(base_rate, weight_rate, value):
    prefer = "small_gradient" if weight_rate is None else "small_gradient+small_weight"
    noise = {"base_rate": base_rate, "weight_rate": weight_rate, "prefer": prefer, "gradient_rate": 0.125}
    layer = pndt.DynamicDropConnectLinear(3, 4, seed=1, **noise)
    state, (old, new) = layer.get_extra_state(), np.array([0.125, value], "float32").view("int32")
    assert (state == old).sum() == 1
    state[state == old] = int(new)
    with pytest.raises(ValueError, match="`gradient_rate`"):
        layer.set_extra_state(state)
    assert layer.gradient_rate == 0.125


def test_a_checkpoint_is_made_of_tensors():
    """As files of safetensors are."""
    model = torch.nn.Sequential(pndt.PerNodeLinear(3, 4, noise=pnd.PartialGaussian(0.5, 2.0)), pndt.DropPath(0.5))
    assert all(isinstance(one, torch.Tensor) for one in model.state_dict().values())


@pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
def test_a_cast_rounds_neither_key_nor_numbers(noise):
    layer = pndt.PerNodeLinear(3, 4, rate=0.123456, noise=noise, seed=2**31 + 5)
    for move in (lambda m: m.to(torch.bfloat16), lambda m: m.type(torch.float16), lambda m: m.double()):
        move(layer)
        assert (layer.rate, layer.seed) == (0.123456, 2**31 + 5)
        assert layer(inputs(5, 3).to(layer.weight.dtype)).dtype == layer.weight.dtype


def test_a_module_made_without_memory_has_its_key_when_it_gets_some():
    plain, x = torch.nn.Linear(3, 4), inputs(5, 3)
    with torch.device("meta"):
        layers = [pndt.PerNodeLinear(3, 4, rate=0.25, seed=7) for _ in range(2)]
    assert layers[0](x.to("meta")).is_meta
    layers[0].to_empty(device="cpu").load_state_dict(plain.state_dict())
    layers[1].load_state_dict(plain.state_dict(), assign=True)
    expected = pndt.PerNodeLinear.from_linear(plain, rate=0.25, seed=7)(x)
    for layer in layers:
        assert (layer.seed, layer.updates, layer.rate) == (7, 0, 0.25)
        assert torch.equal(layer(x), expected)
    trained = pndt.PerNodeLinear(3, 4, rate=0.25, seed=7)
    trained(x)
    assert trained.to_empty(device="cpu").updates == 1


def test_autocast_gives_the_dtype_of_the_plain_module():
    layer, x = pndt.PerNodeLinear(3, 4, seed=1), inputs(5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        dtypes = {layer.train(training)(x).dtype for training in (True, False)}
    assert dtypes == {torch.bfloat16}
    with pytest.raises(TypeError, match=r"`input`. Expected torch.float32, the weight's. Received: .*bfloat16"):
        layer.train()(x.bfloat16())


COMPILED = {
    "dynamic": lambda: pndt.PerNodeLinear(3, 4, rate=0.3, seed=7),
    "schedule": lambda: pndt.PerNodeLinear(3, 4, rate=pnd.schedules.Step([0.2, 0.7], [1]), seed=7),
    "gaussian": lambda: pndt.PerNodeLinear(3, 4, rate=0.3, noise="gaussian", seed=7),
    "bank": lambda: pndt.PerNodeLinear(3, 4, rate=0.3, regime="bank", bank_size=3, seed=7),
    "batch": lambda: pndt.PerNodeLinear(3, 4, rate=0.3, sharing="sample+time", seed=7),
    "gradients": lambda: pndt.DynamicDropConnectLinear(3, 4, seed=7),
    "members": lambda: pndt.Masksembles(3, members=2, seed=7),
    "parts": lambda: pndt.Masksembles(3, members=2, train_assignment="contiguous", seed=7),
}


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of dynamo, which does it itself
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case == "dynamic" else pytest.mark.slow) for case in COMPILED]
)
def test_one_graph_serves_all_steps_and_rates(case):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.compiler.reset()
    counter, layer = CompileCounterWithBackend("aot_eager"), COMPILED[case]()
    eager, compiled = copy.deepcopy(layer), torch.compile(layer, backend=counter, fullgraph=True)
    x, again = (inputs(5, 3).requires_grad_() for _ in range(2))
    for step in range(4):
        if step == 2 and layer.rate and layer.schedule is None:
            layer.rate = eager.rate = 0.1
        y, expected = compiled(x), eager(again)
        torch.testing.assert_close(y, expected)
        y.sum().backward()
        expected.sum().backward()
        for one, other in zip((x, *layer.parameters()), (again, *eager.parameters()), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
    assert counter.frame_count == 1
    assert torch.equal(layer.get_extra_state(), eager.get_extra_state())
    torch.compiler.reset()


def test_inference_is_exported():
    model = torch.nn.Sequential(pndt.PerNodeLinear(3, 4, seed=1), pndt.Dropout(0.5)).eval()
    x = inputs(5, 3)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))
    assert not any("pernodedrop" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpoint_is_exact_or_refused(use_reentrant):
    layer, x = pndt.PerNodeLinear(3, 4, seed=1), inputs(5, 3).requires_grad_()
    with pytest.raises(RuntimeError, match="drawn_keys"):
        checkpoint(layer, x, use_reentrant=use_reentrant)
    with pndt.drawn_keys(layer):
        y = checkpoint(layer, x, use_reentrant=use_reentrant)
        (y**2).sum().backward()
    found = layer.weight.grad
    layer.weight.grad = None
    expected = layer(x, key=(1, 0))
    (expected**2).sum().backward()
    assert torch.equal(y, expected)
    assert torch.equal(found, layer.weight.grad)
    assert not layer.held


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_calls_in_checkpoints_have_one_mask_whatever_is_noted_between_them(use_reentrant):
    layer, x, z = pndt.DynamicDropConnectLinear(30, 4, seed=1), *(inputs(5, 30).requires_grad_() for _ in range(2))
    (layer(x) ** 2).sum().backward()
    found = []
    for call in (lambda x: checkpoint(layer, x, use_reentrant=use_reentrant), layer):
        noted, x.grad, z.grad = layer.gradient.clone(), None, None
        with pndt.drawn_keys(layer):
            (call(x).sum() + (call(z) ** 3).sum()).backward()
        found.append((x.grad, z.grad))
        layer.noise_key[1], layer.gradient[:] = 1, noted
    torch.testing.assert_close(*found)


def test_functional_transforms():
    layer, x = pndt.PerNodeLinear(3, 4, seed=1), inputs(5, 3)
    parameters = dict(layer.named_parameters())

    def loss(parameters, x, key):
        return (torch.func.functional_call(layer, parameters, (x, key)) ** 2).sum()

    found = torch.func.grad(loss)(parameters, x, None)
    loss(parameters, x, (1, 0)).backward()
    torch.testing.assert_close(found["weight"], layer.weight.grad)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0, None))(parameters, x[:, None], (1, 0))
    for n in range(5):
        torch.testing.assert_close(each["weight"][n], torch.func.grad(loss)(parameters, x[n : n + 1], (1, 0))["weight"])


def test_a_gradient_is_noted_by_a_backward_pass_alone():
    layer, x = pndt.DynamicDropConnectLinear(30, 4, seed=1), inputs(5, 30)
    with torch.no_grad():
        layer(x)
    layer.eval()(x).sum().backward()
    assert not layer.gradient.any()
    layer.train().weight.requires_grad_(False)
    layer(x).sum().backward()
    assert not layer.gradient.any()
    layer.weight.requires_grad_(True)
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).sum().backward()
    assert layer.gradient.dtype == torch.float32
    assert torch.equal(layer.gradient, layer.weight.grad)
    parameters = dict(layer.named_parameters())
    with pytest.raises(RuntimeError, match=r"torch.func.*prefer='small_weight'"):
        torch.func.grad(lambda parameters: torch.func.functional_call(layer, parameters, (x,)).sum())(parameters)
    of_weights = pndt.DynamicDropConnectLinear.from_linear(layer.fold(), prefer="small_weight", seed=1)

    def loss(parameters):
        return torch.func.functional_call(of_weights, parameters, (x, (1, 0))).sum()

    found = torch.func.grad(loss)(parameters)
    of_weights.zero_grad()
    of_weights(x, key=(1, 0)).sum().backward()
    torch.testing.assert_close(found["weight"], of_weights.weight.grad)


def test_what_is_noted_has_no_graph():
    layer, x = pndt.DynamicDropConnectLinear(30, 4, seed=1), inputs(5, 30)
    for _ in range(2):
        (gradient,) = torch.autograd.grad((layer(x) ** 3).sum(), layer.weight, create_graph=True)
        assert torch.equal(layer.gradient, gradient.detach())
        assert layer.gradient.grad_fn is None
        (gradient**2).sum().backward()
    assert torch.equal(copy.deepcopy(layer)(x, key=(1, 0)), layer(x, key=(1, 0)))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_gradient_that_overflows_is_not_noted(value):
    layer, x = pndt.DynamicDropConnectLinear(30, 4, seed=1), inputs(5, 30)
    layer(x).sum().backward()
    noted, x[2, 3] = layer.gradient.clone(), value
    layer(x).sum().backward()
    assert torch.equal(layer.gradient, noted)
    assert not layer.weight.grad.isfinite().all()


# attention


def test_masks_of_attention_are_torchs_affair():
    """Whatever stands between the projections: against torch's own module whose weights are a sample's noisy ones."""
    module = pndt.PerNodeMultiheadAttention(
        6, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True, rate=0.5, seed=7
    )
    x, hidden = inputs(2, 5, 6), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    found, scores = module(x, x, x, key_padding_mask=hidden, attn_mask=causal)
    for n in range(2):
        plain = copy.deepcopy(module).fold()
        for name, part in module.parts.items():
            mask = pnd.ops.sample_mask(part.noise, (part.seed, 0), (2, 6, 6), sharing="time", backend="numpy")[n]
            rows = {"query": slice(6), "key": slice(6, 12), "value": slice(12, 18)}.get(name)
            weight = plain.out_proj.weight if rows is None else plain.in_proj_weight[rows]
            weight.data *= torch.tensor(mask.T)
        expected = plain(x[n : n + 1], x[n : n + 1], x[n : n + 1], hidden[n : n + 1], attn_mask=causal)
        torch.testing.assert_close((found[n], scores[n]), tuple(one[0] for one in expected), atol=2e-6, rtol=1e-5)
    found.sum().backward()
    assert all(one.grad is not None and one.grad.any() for one in module.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x, x, x)[0].dtype == module.eval()(x, x, x)[0].dtype == torch.bfloat16


def test_attention_inside_an_encoder_takes_noise():
    plain, x = torch.nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), inputs(3, 5, 4)
    expected, model = plain(x), copy.deepcopy(plain)
    rule = ["all-attention", "all-linear"]
    pndt.apply(model, rule, "drop_connect", rate=0.5, seed=1)
    assert type(model.self_attn) is pndt.DropConnectMultiheadAttention
    assert set(model.self_attn.parameters()) == set(model.self_attn.fold().parameters())
    model.load_state_dict(plain.state_dict(), strict=True)
    model(x).sum().backward()
    assert all(one.updates == 1 for one in model.self_attn.masks.values())
    assert model.self_attn.in_proj_weight.grad.any()
    again = pndt.apply(copy.deepcopy(plain), rule, "drop_connect", rate=0.2, seed=2)
    again.load_state_dict(torch.load(io.BytesIO(saved(model)), weights_only=True))
    assert torch.equal(pickle.loads(pickle.dumps(again))(x), model(x))
    for one in (model.eval(), pndt.fold(model)):
        torch.testing.assert_close(one(x), expected)
    assert pndt.fold(model).state_dict().keys() == plain.state_dict().keys()
    found = pndt.uncertainty.predict(model, x, samples=3, seed=1, layers=["self_attn"])
    assert found.variance.any()


def test_predictions_with_attention_do_not_depend_on_the_batches():
    model, x = torch.nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), inputs(5, 3, 4)
    pndt.apply(model, "all-attention", rate=0.5, seed=1)
    assert type(model.self_attn) is pndt.PerNodeMultiheadAttention
    found = [pndt.uncertainty.predict(model, x, samples=3, seed=1, keep=True, batch_size=n).outputs for n in (2, 5)]
    np.testing.assert_allclose(*found, atol=1e-5)
    assert np.ptp(found[0], axis=0).min() > 1e-4
    assert model.self_attn.updates == 0


@pytest.mark.slow
def test_compiled_attention_breaks_the_graph_and_computes_the_same():
    eager, x = pndt.DropConnectMultiheadAttention(6, 2, rate=0.5, seed=1), inputs(3, 5, 6)
    model = copy.deepcopy(eager)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(x, x, x)[0], eager(x, x, x)[0])
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="device"):
        torch.compile(model, backend="aot_eager", fullgraph=True)(x, x, x)
    torch.compiler.reset()


# recurrent modules


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("regime", ["dynamic", "fixed"])
def test_layers_of_a_recurrent_module_take_parts_of_one_mask(regime):
    """In torch's own modules, whose weights are multiplied by a mask from NumPy."""
    arguments = {"num_layers": 2, "bidirectional": True, "proj_size": 2, "batch_first": True}
    module, x = pndt.NoisyLSTM(3, 4, rate=0.3, seed=7, regime=regime, **arguments), inputs(5, 6, 3)
    mask = pnd.ops.sample_mask(module.noise, (7, 0), (1, 24, 16), sharing="sample+time", backend="numpy")[0]
    plain = torch.nn.LSTM(3, 4, **arguments)
    plain.load_state_dict(module.state_dict(), strict=False)
    for suffix, row in (("l0", 3), ("l0_reverse", 8), ("l1", 14), ("l1_reverse", 20)):
        weight = getattr(plain, f"weight_hh_{suffix}")
        weight.data *= torch.tensor(mask[row : row + 2].T)
    expected, hx = plain(x), tuple(one[:, :1].expand(-1, 5, -1).contiguous() for one in plain(x)[1])
    found, again = module(x), module(x, hx, key=(7, 0))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(again, plain(x, hx))
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [6, 5, 3, 3, 1], batch_first=True)
    torch.testing.assert_close(module(packed, key=(7, 0))[0].data, plain(packed)[0].data)
    if regime == "fixed":
        torch.testing.assert_close(module.eval()(x), expected)
        torch.testing.assert_close(module.fold()(x), expected)


def test_a_recurrent_module_trains_resumes_and_folds():
    plain, x = torch.nn.GRU(3, 4, 2, dropout=0.5), inputs(6, 5, 3)
    model = pndt.apply(torch.nn.Sequential(copy.deepcopy(plain)), "all-recurrent", "noisy_rnn", rate=0.5, seed=1)
    assert {name for name in model.state_dict() if "extra" not in name} == {f"0.{name}" for name in plain.state_dict()}
    model(x)[0].sum().backward()
    assert all(one.grad is not None and one.grad.any() for one in model.parameters())
    again = copy.deepcopy(model)
    again.load_state_dict(torch.load(io.BytesIO(saved(model)), weights_only=True))
    torch.manual_seed(0)
    expected = pickle.loads(pickle.dumps(model))(x)[0]
    torch.manual_seed(0)
    assert torch.equal(again(x)[0], expected)
    for one in (model.eval(), pndt.fold(model)):
        torch.testing.assert_close(one(x)[0], plain.eval()(x)[0])
    fixed = pndt.NoisyGRU.from_plain(plain, rate=0.5, regime="fixed")
    before, folded = fixed(x)[0], fixed.fold()
    assert torch.equal(fixed(x)[0], before)
    assert torch.equal(folded(x)[0], before)
    assert folded.weight_hh_l0 is not fixed.weight_hh_l0
    assert folded.weight_ih_l0 is fixed.weight_ih_l0
    noisy = pndt.NoisyGRU.from_plain(plain, rate=0.5)
    before = noisy(x)[0]
    plain.weight_hh_l0 = torch.nn.Parameter(torch.zeros(12, 4))  # is its own affair
    assert torch.equal(noisy(x)[0], before)


def saved(model):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.getvalue()


def test_a_prediction_with_a_recurrent_module_keeps_its_first_state():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = pndt.NoisyRNN(3, 4, batch_first=True, rate=0.5, seed=1)

        def forward(self, x):
            return self.rnn(x, torch.full((1, x.shape[0], 4), 9.0))[0]

    model, x = Model(), inputs(5, 1, 3)
    found = pndt.uncertainty.predict(model, x, samples=2, seed=3, keep=True)
    with torch.no_grad():
        model.rnn.weight_hh_l0.zero_()
        assert np.abs(found.outputs - host(model(x))).max() > 0.5
    assert found.variance.any()


def rows_of(module):
    """The first row of each kernel of a recurrent module in its mask, by name."""
    names = [name for name in module.state_dict() if name.startswith(("weight_ih", "weight_hh"))]
    ends = np.cumsum([getattr(module, name).shape[1] for name in names])
    return {name: end - getattr(module, name).shape[1] for name, end in zip(names, ends, strict=True)}


def in_torchs_order(mask, module):
    """A mask (..., in, gates * units) of Keras' gates as one of a weight of torch, (..., gates * units, in)."""
    order = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2)}.get(module.mode, (0,))
    parts = np.split(mask, len(order), -1)
    return torch.from_numpy(np.concatenate([parts[gate] for gate in order], -1)).mT


def masks_of(module, samples, steps, **which):
    """The masks (sample, step, *weight) of the weights of a recurrent module by name, at the key (7, 0), from NumPy."""
    rows, columns = rows_of(module), len(module.weight_hh_l0)
    whole = (samples, steps, 99, columns)
    mask = pnd.ops.sample_mask(module.noise, (7, 0), whole, sharing=module.sharing, backend="numpy", **which)
    kernels = [{"kernel": "weight_ih", "recurrent_kernel": "weight_hh"}[one] for one in module.recurrence.kernels]
    return {
        name: in_torchs_order(mask[:, :, row : row + getattr(module, name).shape[1]], module)
        for name, row in rows.items()
        if name.startswith(tuple(kernels))
    }


def plain_of(module):
    """A plain module of the same form, whose parameters are given with each call."""
    form = {name: getattr(module, name) for name in module.form}
    return module.plain(**{**form, "batch_first": False})


def of_each_sample(module, x, hx, masks, lengths):
    """What torch's own module gives of one sample after another, each with its masks: outputs, and the last states."""
    plain, parameters, found = plain_of(module), dict(module.named_parameters()), []
    for n, length in enumerate(lengths):
        own = {name: value * masks[name][n, 0] if name in masks else value for name, value in parameters.items()}
        found.append(torch.func.functional_call(plain, own, (x[:length, n : n + 1], states_at(hx, n))))
    return [y[:, 0] for y, _ in found], join([states for _, states in found])


def states_at(hx, n):
    return tuple(h[:, n : n + 1] for h in hx) if isinstance(hx, tuple) else hx[:, n : n + 1]


def join(states):
    """The states of samples side by side."""
    if isinstance(states[0], tuple):
        return tuple(torch.cat(of_one, 1) for of_one in zip(*states, strict=True))
    return torch.cat(states, 1)


def first_states(module, samples):
    """Some first states, of which a loss has gradients."""
    layers = module.num_layers * (1 + module.bidirectional)
    found = [inputs(layers, samples, size).requires_grad_() for size in module.state_sizes]
    return tuple(found) if len(found) > 1 else found[0]


def gradients(outputs, module, *others):
    """Those of a sum of sines of all numbers in some outputs, which tells their places apart."""
    flat = torch.cat([one.reshape(-1) for one in torch.utils._pytree.tree_leaves(outputs)])
    loss = (flat * torch.sin(torch.arange(len(flat)))).sum()
    wanted = [*torch.utils._pytree.tree_leaves(others), *module.parameters()]
    return torch.autograd.grad(loss, wanted)


BOTH = ("kernel", "recurrent_kernel")
STEPPED = {
    "lstm": ("NoisyLSTM", {}),
    "lstm of all": ("NoisyLSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 2, "kernels": BOTH}),
    "by a kernel": ("NoisyLSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 2, "kernels": BOTH}),
    "again": ("NoisyLSTM", {"method": "recomputed", "kernels": BOTH, "bidirectional": True}),
    "gru": ("NoisyGRU", {"num_layers": 2, "bidirectional": True, "kernels": BOTH}),
    "gru without bias": ("NoisyGRU", {"bias": False, "kernels": ("kernel",)}),
    "rnn": ("NoisyRNN", {"nonlinearity": "relu", "num_layers": 2, "noise": "gaussian", "kernels": BOTH}),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("packed", [False, True], ids=["equal", "packed"])
@pytest.mark.parametrize("case", STEPPED)
def test_each_sample_has_kernels_of_its_own(case, packed, monkeypatch):
    """Values and gradients are those of torch's own module, of one sample after another with its masks."""
    if case == "by a kernel":
        pytest.importorskip("numba", reason="an extra")
        monkeypatch.setattr(torch_ops, "loops_by_kernel", lambda w, grid: True)
    name, arguments = STEPPED[case]
    module, x = getattr(pndt, name)(3, 4, rate=0.3, sharing="time", seed=7, **arguments), inputs(6, 5, 3)
    hx, lengths = first_states(module, 5), [3, 6, 1, 5, 3] if packed else [6] * 5
    x.requires_grad_()
    y, states = of_each_sample(module, x, hx, masks_of(module, 5, 1), lengths)
    expected = torch.nn.utils.rnn.pad_sequence(y), states
    given = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False) if packed else x
    found, last = module(given, hx)
    found = torch.nn.utils.rnn.pad_packed_sequence(found)[0] if packed else found
    torch.testing.assert_close((found, last), expected)
    torch.testing.assert_close(gradients((found, last), module, x, hx), gradients(expected, module, x, hx))


@pytest.mark.parametrize(
    "which",
    [{"sharing": ()}, {"sharing": "sample"}, {"sharing": (), "persistence": 0.6}, {"persistence": 0.6}],
    ids=["each", "of a batch", "slow", "slow of a batch"],
)
@pytest.mark.parametrize("kind", ["NoisyLSTM", "NoisyGRU"])
def test_each_step_has_kernels_of_its_own(kind, which):
    """Of its position, also backwards: as torch's own module has it that is called once a step."""
    module, x = getattr(pndt, kind)(3, 4, bidirectional=True, rate=0.3, kernels=BOTH, seed=7, **which), inputs(6, 5, 3)
    hx, persists = first_states(module, 5), {key: which[key] for key in which if key == "persistence"}
    x.requires_grad_()
    masks, plain = masks_of(module, 5, 6, **persists), torch.nn.GRU(3, 4) if "GRU" in kind else torch.nn.LSTM(3, 4)
    outputs, last = [], []
    for place, (suffix, steps) in enumerate({"": range(6), "_reverse": range(6)[::-1]}.items()):
        of_samples, of_last = [], []
        for n in range(5):
            states, of_steps = states_at(hx, n), {}
            states = tuple(h[place : place + 1] for h in states) if "LSTM" in kind else states[place : place + 1]
            for t in steps:
                own = {name: getattr(module, name + suffix) for name in plain.state_dict()}
                own |= {
                    name: own[name] * masks[name + suffix][min(n, len(masks[name]) - 1), t]
                    for name in ("weight_ih_l0", "weight_hh_l0")
                }
                of_steps[t], states = torch.func.functional_call(plain, own, (x[t : t + 1, n : n + 1], states))
            of_samples.append(torch.cat([of_steps[t] for t in range(6)]))
            of_last.append(states)
        outputs.append(torch.cat(of_samples, 1))
        last.append(join(of_last))
    states = tuple(map(torch.cat, zip(*last, strict=True))) if "LSTM" in kind else torch.cat(last)
    expected, found = (torch.cat(outputs, -1), states), module(x, hx)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, module, x, hx), gradients(expected, module, x, hx))


def test_noise_of_rate_zero_in_the_loop_is_torchs_own_module():
    """The dropout between its layers included, and what it takes and gives in all forms of inputs."""
    arguments = {"num_layers": 2, "dropout": 0.5, "bidirectional": True}
    rnn = torch.nn.utils.rnn
    for batch_first in (False, True):
        module = pndt.NoisyLSTM(3, 4, rate=0.0, sharing="time", seed=7, batch_first=batch_first, **arguments)
        plain, x = torch.nn.LSTM(3, 4, batch_first=batch_first, **arguments), inputs(6, 6, 3)
        plain.load_state_dict(module.state_dict(), strict=False)
        sorted_ = rnn.pack_sequence([x[0], x[1, :4], x[2, :4], x[3, :1]])
        loose = rnn.pack_sequence([x[3, :1], x[0], x[1, :4], x[2, :4]], enforce_sorted=False)
        state = inputs(4, 4), inputs(4, 4) / 2
        of_four = tuple(one[:, None].repeat(1, 4, 1) for one in state)
        for given in ((x,), (x[0],), (x[0], state), (x[:4, :4], of_four), (sorted_,), (loose, of_four)):
            is_packed = isinstance(given[0], rnn.PackedSequence)
            module.dropout = plain.dropout = 0.0 if is_packed else 0.5  # which falls on other places of padded ones
            found, expected = (drawn(one, *given) for one in (module, plain))
            torch.testing.assert_close(found[1], expected[1])
            assert type(found[0]) is type(expected[0])
            for one, other in zip(found[0], expected[0], strict=True) if is_packed else [(found[0], expected[0])]:
                assert (one is other is None) or one.shape == other.shape
                torch.testing.assert_close(one, other)


def drawn(module, *given):
    torch.manual_seed(0)
    return module(*given)


def test_samples_of_a_recurrent_module_have_the_masks_of_their_ids():
    module, x = pndt.NoisyGRU(3, 4, rate=0.5, sharing="time", seed=7), inputs(6, 5, 3)
    ids = torch.tensor([3, 0, 4, 1, 2])
    expected = module(x, key=(7, 0))[0][:, ids]
    torch.testing.assert_close(module(x[:, ids], key=(7, 0), sample_ids=ids)[0], expected)
    lengths = torch.tensor([2, 6, 1, 6, 3])
    pack = torch.nn.utils.rnn.pack_padded_sequence
    one, other = pack(x, lengths, enforce_sorted=False), pack(x[:, ids], lengths[ids], enforce_sorted=False)
    found = [
        torch.nn.utils.rnn.pad_packed_sequence(y)[0]
        for y in (module(one, key=(7, 0))[0], module(other, key=(7, 0), sample_ids=ids)[0])
    ]
    torch.testing.assert_close(found[1], found[0][:, ids])
    bank = pndt.NoisyGRU(3, 4, rate=0.5, sharing="time", regime="bank", bank_size=2, seed=7).eval()
    same = bank(x[:, :1].expand(-1, 4, -1))[0]
    assert torch.equal(same[:, :2], same[:, 2:])
    assert not torch.equal(same[:, 0], same[:, 1])
    torch.testing.assert_close(bank(x[:, 0], sample_ids=torch.tensor([3]))[0], bank(x, sample_ids=ids * 0 + 1)[0][:, 0])


@pytest.mark.parametrize("which", [{"sharing": ()}, {"sharing": "time"}, {"sharing": "unit"}], ids=str)
def test_memory_for_masks_of_recurrent_kernels_does_not_grow_with_time(which):
    """A step more keeps less than half of the masks of all samples for the backward pass."""
    units, batch = 32, 8

    def kept(steps):
        module, storages = pndt.NoisyGRU(4, units, rate=0.5, seed=1, kernels=BOTH, **which), {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y, _ = module(inputs(steps, batch, 4))
        y.sum().backward()
        return sum(storage.nbytes() for storage in storages.values())

    assert 0 < (kept(20) - kept(4)) / 16 < 4 * batch * units * 3 * units / 2


@pytest.mark.parametrize("noise", ["bernoulli", "uniform"])
def test_a_kernel_makes_masks_of_each_step_and_sample_where_there_is_one(noise, monkeypatch):
    """The same masks as in blocks, with the same gradients."""
    pytest.importorskip("numba", reason="an extra")
    x, arguments = inputs(6, 5, 3).requires_grad_(), {"noise": noise, "sharing": (), "kernels": BOTH, "seed": 7}
    blocks = pndt.NoisyLSTM(3, 4, rate=0.3, method="recomputed", **arguments)
    module = pndt.NoisyLSTM(3, 4, rate=0.3, **arguments)
    module.load_state_dict(blocks.state_dict())
    expected = blocks(x, key=(7, 0))
    of_expected = gradients(expected, blocks, x)
    monkeypatch.setattr(torch_ops, "recomputed", None)
    found = module(x, key=(7, 0))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, module, x), of_expected)
    monkeypatch.setattr(methods, "numba_obstacle", lambda: "numba")
    with pytest.raises(TypeError, match="not callable"):
        module(x, key=(7, 0))


LARGE = {
    "gradients": (8, 182, True, {}, True),
    "fewer samples": (7, 195, True, {}, False),
    "fewer units": (32, 90, True, {}, False),
    "gates alike": (32, 91, True, {"sharing": "time+gate"}, True),
    "no gradients": (128, 91, False, {}, True),
    "fewer units without gradients": (128, 90, False, {}, False),
    "no decisions": (128, 91, True, {"noise": "uniform"}, False),
    "of inputs": (128, 91, True, {"sharing": "time+unit"}, False),
    "told otherwise": (128, 91, True, {"method": "materialized"}, False),
}
"""Samples, units, whether there are gradients, other arguments of an LSTM, and whether a kernel makes its masks."""


@pytest.mark.parametrize("case", LARGE)
def test_a_kernel_makes_masks_of_a_sequence_where_they_are_large(case, monkeypatch):
    """Bernoulli masks of 8 samples or more, of 2**20 entries with gradients, or else of 2**22."""
    pytest.importorskip("numba", reason="an extra")
    samples, units, differentiated, arguments, expected = LARGE[case]
    module, found = pndt.NoisyLSTM(3, units, seed=7, **{"rate": 0.3, "sharing": "time", **arguments}), []
    monkeypatch.setattr(torch_ops, "kernel_made_again", lambda x, w, grid: found.append(grid) or x @ w)
    with torch.set_grad_enabled(differentiated):
        module(inputs(2, samples, 3))
    assert len(found) == 2 * expected


@pytest.mark.parametrize("kind", ["NoisyLSTM", "NoisyGRU"])
def test_large_masks_of_a_sequence_are_the_same_however_they_are_made(kind):
    arguments = {"rate": 0.3, "sharing": "time", "kernels": BOTH, "seed": 7}
    kept, again = (getattr(pndt, kind)(64, 64, method=method, **arguments) for method in ("materialized", "auto"))
    again.load_state_dict(kept.state_dict())
    x = inputs(3, 96, 64).requires_grad_()
    expected, found = (module(x, key=(7, 0)) for module in (kept, again))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, again, x), gradients(expected, kept, x), rtol=1e-4, atol=1e-4)


of_samples_or_steps = pytest.mark.parametrize("sharing", ["time", ()], ids=["samples", "steps"])


@of_samples_or_steps
def test_a_loop_over_steps_in_half_precision_has_torchs_dtypes(sharing):
    module, x = pndt.NoisyLSTM(3, 4, 2, rate=0.5, kernels=BOTH, seed=7, sharing=sharing), inputs(6, 5, 3)
    plain, expected = torch.nn.LSTM(3, 4, 2), module(x, key=(7, 0))[0]
    hx = tuple(torch.zeros(2, 5, 4, dtype=torch.bfloat16) for _ in range(2))
    has_plain = "AVX512" in torch.backends.cpu.get_cpu_capability()  # oneDNN's LSTM in bfloat16 is for such alone
    for lstm, key in ((module, {"key": (7, 0)}), *([(plain, {})] if has_plain else [])):
        with torch.autocast("cpu", torch.bfloat16):
            found = [lstm(x, **key)]
        found.append(copy.deepcopy(lstm).bfloat16()(x.bfloat16(), hx, **key))
        for y, states in found:
            assert {one.dtype for one in (y, *states)} == {torch.bfloat16}
            if lstm is module:
                torch.testing.assert_close(y.float(), expected, atol=0.02, rtol=0.02)


@of_samples_or_steps
def test_a_loop_over_steps_inside_a_checkpoint(sharing):
    module, x = pndt.NoisyGRU(3, 4, rate=0.5, seed=7, sharing=sharing), inputs(6, 5, 3).requires_grad_()
    expected = gradients(module(x, key=(7, 0)), module, x)
    with pytest.raises(RuntimeError, match="drawn_keys"):
        checkpoint(module, x, use_reentrant=False)
    with pndt.drawn_keys(module):
        torch.testing.assert_close(gradients(checkpoint(module, x, use_reentrant=False), module, x), expected)


class Last(torch.nn.Module if torch else object):
    """The last outputs of a recurrent module, whose input has time first, or is packed."""

    def __init__(self, rnn, packs=False):
        super().__init__()
        self.rnn, self.packs = rnn, packs

    def forward(self, x):
        x = x.transpose(0, 1)
        if self.packs:
            x = torch.nn.utils.rnn.pack_padded_sequence(x, [4] * x.shape[1], enforce_sorted=False)
        return self.rnn(x)[1][0]


@pytest.mark.parametrize("which", [{}, {"regime": "bank", "bank_size": 3}], ids=str)
def test_predictions_with_masks_of_sequences_do_not_depend_on_the_batches(which):
    rnn, x = pndt.NoisyGRU(3, 4, rate=0.5, sharing="time", seed=1, **which), inputs(5, 4, 3)
    found = [
        pndt.uncertainty.predict(Last(rnn, packs), x, samples=3, seed=1, keep=True, batch_size=size).outputs
        for packs, size in ((False, 5), (False, 2), (True, 3))
    ]
    for one in found[1:]:
        np.testing.assert_allclose(one, found[0], atol=1e-6)
    assert np.ptp(found[0], axis=0).max(-1).min() > 1e-4
    assert rnn.updates == 0


@of_samples_or_steps
def test_a_loop_over_steps_breaks_compiled_graphs_unless_torch_is_told_to_compile_recurrent_modules(sharing):
    from torch._dynamo.testing import CompileCounterWithBackend

    eager, x = Last(pndt.NoisyLSTM(3, 4, rate=0.5, sharing=sharing, kernels=BOTH, seed=1)), inputs(5, 2, 3)
    model, counter = copy.deepcopy(eager), CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    torch.compiler.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        for _ in range(2):
            torch.testing.assert_close(compiled(x), eager(x))
    assert counter.frame_count == 1
    torch.compiler.reset()


@of_samples_or_steps
@pytest.mark.filterwarnings("ignore:The tensor attributes self.rnn._flat_weights")  # torch's own, of a plain LSTM too
def test_a_loop_over_steps_is_no_part_of_inference(sharing):
    model, x = Last(pndt.NoisyLSTM(3, 4, rate=0.5, sharing=sharing, seed=1)).eval(), inputs(5, 4, 3)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))
    assert not any("pernodedrop" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(pndt.fold(model)(x), model(x))


# models


class Network(torch.nn.Module if torch else object):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 3)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))
        self.blocks.append(self.blocks[0])
        self.heads, self.head = torch.nn.Linear(8, 8), torch.nn.Linear(8, 2)

    def forward(self, x):
        y = self.conv(x).flatten(1)
        for layer in (*self.blocks, self.heads, self.head):
            y = layer(y)
        return y


@pytest.mark.parametrize(
    ("rule", "arguments", "chosen"),
    [
        ("all-linear", {}, "blocks.0 blocks.1 blocks.2 heads head"),
        ("all-linear", {"exclude": "head"}, "blocks.0 blocks.1 blocks.2 heads"),
        ("all-conv", {"regularizer": "drop_connect"}, "conv"),
        (r"blocks\.[12]", {}, "blocks.1 blocks.2"),
        ("blocks", {"exclude": ["1", "0"]}, "blocks.2"),
        (["head", "all-conv"], {}, "conv head"),
    ],
)
def test_apply_changes_what_is_chosen(rule, arguments, chosen):
    model, x = Network(), inputs(3, 1, 4, 6)
    before, parameters, names = model(x), set(model.parameters()), model.state_dict().keys()
    assert pndt.apply(model, rule, rate=0.5, seed=1, **arguments) is model
    noisy = [name for name, one in model.named_modules(remove_duplicate=False) if hasattr(one, "noise_key")]
    assert " ".join(noisy) == chosen
    assert set(model.parameters()) == parameters
    assert {name for name in model.state_dict() if not name.endswith("_extra_state")} == names
    assert not torch.equal(model(x), before)
    assert torch.equal(model.eval()(x), before)
    folded = pndt.fold(model)
    assert folded.state_dict().keys() == names
    assert not set(folded.parameters()) & parameters
    assert torch.equal(folded(x), before)


def test_apply_keeps_one_module_one_and_gives_each_a_seed_by_its_name():
    models = [pndt.apply(Network(), rule, rate=0.5, seed=1) for rule in ("all-linear", "head")]
    assert models[0].blocks[0] is models[0].blocks[2]
    assert len({one.seed for one in models[0].modules() if hasattr(one, "seed")}) == 4
    assert models[0].head.seed == models[1].head.seed


def test_a_function_says_what_stands_where():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5))

    def rule(name, module):
        return pndt.Dropout(module.p, seed=1) if isinstance(module, torch.nn.Dropout) else None

    assert type(pndt.apply(model, rule)[1]) is pndt.Dropout
    shared = torch.nn.Identity()
    model = torch.nn.Sequential(shared, shared)
    pndt.apply(model, lambda name, module: torch.nn.Sequential() if module is shared else None)  # which is false
    assert model[0] is model[1] is not shared
    single = pndt.apply(torch.nn.Linear(3, 4), torch.nn.Linear, rate=0.5)
    assert type(single) is pndt.PerNodeLinear


def test_apply_warns_of_a_module_whose_weight_is_read_by_the_one_around_it():
    class Reads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

        def forward(self, x):
            return torch.nn.functional.linear(self.one(x.to(self.one.weight.dtype)), weight=self.two.weight)

    model = torch.nn.Sequential(Reads())
    assert pndt.apply(model, "one", rate=0.5, seed=1)[0].one.updates == 0
    with pytest.warns(UserWarning, match=r"Reads reads the weight of '0\.two'"):
        pndt.apply(model, "two", rate=0.5, seed=1)
    model(inputs(5, 3))
    assert [model[0].one.updates, model[0].two.updates] == [1, 0]


def test_hooks_and_the_mode_stay():
    plain = torch.nn.Linear(3, 4)
    plain.register_forward_hook(lambda module, x, y: y + 1)
    noisy = pndt.PerNodeLinear.from_linear(plain.eval(), rate=0.5)
    x = inputs(5, 3)
    assert torch.equal(noisy(x), plain(x))
    assert torch.equal(noisy.fold()(x), plain(x))


def test_attention_in_inference_stays_in_it():
    plain, x = torch.nn.MultiheadAttention(6, 2).eval(), inputs(3, 5, 6)
    expected = plain(x, x, x)
    noisy = pndt.apply(torch.nn.Sequential(plain), "all-attention", "drop_connect", rate=0.5, seed=1)[0]
    assert torch.equal(noisy(x, x, x)[0], expected[0])
    assert noisy.updates == 0
    assert not torch.equal(noisy.train()(x, x, x)[0], expected[0])


def test_attention_has_the_rate_and_the_updates_of_its_masks():
    attention, x = pndt.DropConnectMultiheadAttention(6, 2, rate=0.5, seed=1), inputs(3, 5, 6)
    again = pndt.DropConnectMultiheadAttention(6, 2, rate=0.9, seed=1)
    again.load_state_dict({**again.state_dict(), **dict(attention.named_parameters())})
    attention.rate = 0.9
    assert {one.rate for one in attention.masks.values()} == {attention.rate} == {again.rate}
    assert torch.equal(attention(x, x, x)[0], again(x, x, x)[0])
    assert attention.updates == 1
    assert attention.seed == {name: one.seed for name, one in attention.masks.items()}
    assert len({*attention.seed.values()}) == 4
    for name in ("seed", "updates"):
        with pytest.raises(AttributeError):
            setattr(attention, name, 3)
    with pytest.raises(ValueError, match="`rate`"):
        attention.rate = 2
    follows = pndt.DropConnectMultiheadAttention(6, 2, rate=pnd.schedules.Step([0.2, 0.7], [1]))
    assert follows.schedule == pnd.schedules.Step([0.2, 0.7], [1])
    with pytest.raises(AttributeError, match="cannot be set"):
        follows.rate = 0.5


@pytest.mark.parametrize("regime", ["dynamic", "fixed", "example"])
def test_a_folded_module_is_plain_and_computes_the_same(regime):
    module, x = pndt.PerNodeLinear(3, 4, rate=0.5, regime=regime, seed=1).eval(), inputs(5, 3)
    module.weight.requires_grad_(False)
    folded = pndt.fold(module)
    assert type(folded) is torch.nn.Linear
    assert vars(folded).keys() == vars(torch.nn.Linear(3, 4)).keys()
    assert not folded.weight.requires_grad
    torch.testing.assert_close(folded(x), module(x))


class Own(torch.nn.Linear if torch else object):
    def forward(self, x):
        return x


def with_weight_norm_inside():
    attention = torch.nn.MultiheadAttention(4, 2)
    torch.nn.utils.parametrizations.weight_norm(attention.out_proj)
    return attention


REFUSALS = {
    "no model": (lambda: pndt.apply(3, "all-linear"), "`model`"),
    "nothing": (lambda: pndt.apply(Network(), "tail", rate=0.5), "what takes noise: .*'head'"),
    "nothing excluded": (lambda: pndt.apply(Network(), "head", rate=0.5, exclude="conv"), "`exclude`"),
    "rule": (lambda: pndt.apply(Network(), 3), "`rule`"),
    "regularizer": (lambda: pndt.apply(Network(), "all-linear", "per_node"), "did you mean 'per_node_drop'"),
    "own forward": (lambda: pndt.apply(torch.nn.Sequential(Own(1, 1)), "all-linear"), "leaves out '0'"),
    "twice": (lambda: pndt.apply(pndt.PerNodeLinear(1, 1), "all-linear"), "has noise already"),
    "function": (lambda: pndt.apply(Network(), lambda name, module: None, rate=0.5), "no function beside"),
    "attention": (
        lambda: pndt.apply(torch.nn.MultiheadAttention(4, 2), "all-linear", rate=0.5),
        r"leaves out 'out_proj': .* never calls it; .* \(exclude='out_proj'\)",
    ),
    "encoder": (
        lambda: pndt.apply(torch.nn.TransformerEncoderLayer(4, 2, 8), "linear1", rate=0.5, regime="fixed"),
        "without noise at inference for 'linear1'",
    ),
    "bank": (lambda: pndt.fold(pndt.PerNodeLinear(3, 4, regime="bank", bank_size=2)), "`regime`"),
    "positions": (lambda: pndt.fold(pndt.PerNodeLinear(3, 4, regime="fixed", sharing=())), "`sharing`.*one for all"),
    "kernels": (lambda: pndt.NoisyLSTM(3, 4, kernels=("bias",)), "`kernels`"),
    "kernels twice": (lambda: pndt.NoisyGRU(3, 4, kernels=("kernel", "kernel")), "`kernels`.*each once"),
    "projections twice": (
        lambda: pndt.DropConnectMultiheadAttention(4, 2, projections=["key", "key"]),
        "`projections`.*each once",
    ),
    "no kernels": (lambda: pndt.NoisyGRU(3, 4, kernels=()), "`kernels`.*one or more"),
    "members of a batch": (lambda: pndt.NoisyRNN(3, 4, regime="bank", bank_size=2), "`sharing`.*samples apart"),
    "what gates share": (lambda: pndt.NoisyGRU(3, 4, sharing="gates"), "`sharing`.*did you mean 'gate'"),
    "slow masks made again": (lambda: pndt.NoisyGRU(3, 4, persistence=0.5, method="recomputed"), "`method`.*beside"),
    "masks of steps": (lambda: pndt.NoisyGRU(3, 4, regime="fixed", sharing=()).fold(), "`sharing`.*one for all"),
    "ids of one mask": (
        lambda: pndt.NoisyGRU(3, 4)(inputs(5, 2, 3), sample_ids=torch.arange(2)),
        "`sample_ids`.*the same for all samples",
    ),
    "features of steps": (lambda: pndt.NoisyGRU(3, 4, sharing="time")(inputs(5, 2, 4)), "`input`.*3 features"),
    "features of packed steps": (
        lambda: pndt.NoisyGRU(3, 4, sharing="time")(torch.nn.utils.rnn.pack_sequence([inputs(5, 4)])),
        r"`input`.*3 features.*\(5, 4\)",
    ),
    "no steps": (lambda: pndt.NoisyGRU(3, 4, sharing="time")(inputs(0, 2, 3)), "`input`.*one step or more"),
    "array of steps": (lambda: pndt.NoisyGRU(3, 4, sharing="time")(np.ones((5, 2, 3))), "`input`.*a tensor of torch"),
    "one state of two": (
        lambda: pndt.NoisyLSTM(3, 4, sharing="time")(inputs(5, 2, 3), inputs(1, 2, 4)),
        "`hx`.*a tuple of tensors",
    ),
    "size of a state": (
        lambda: pndt.NoisyGRU(3, 4, sharing="time")(inputs(5, 2, 3), inputs(1, 4)),
        r"`hx`.*a tensor \(1, 2, 4\).*\(1, 4\)",
    ),
    "dtype of a state": (
        lambda: pndt.NoisyGRU(3, 4, sharing="time")(inputs(5, 2, 3), inputs(1, 2, 4).double()),
        "`hx`.*torch.float32, the weight's",
    ),
    "recurrent and linear": (lambda: pndt.apply(torch.nn.LSTM(3, 4), "all-linear"), "takes noise: none"),
    "recurrent": (lambda: pndt.apply(torch.nn.LSTM(3, 4), "all-recurrent"), "`regularizer`.*'noisy_rnn'.*='per_node"),
    "recurrent by name": (
        lambda: pndt.apply(torch.nn.Sequential(torch.nn.LSTM(3, 4)), "0"),
        "`regularizer`. Expected one that takes what the rule '0' chooses: 'noisy_rnn'",
    ),
    "a kind of a list": (
        lambda: pndt.apply(
            torch.nn.Sequential(torch.nn.LSTM(3, 4), torch.nn.Linear(4, 1)), ["all-recurrent", "all-linear"]
        ),
        "`regularizer`.*the rule 'all-recurrent' chooses: 'noisy_rnn'",
    ),
    "a name of a list": (
        lambda: pndt.apply(Network(), ["all-conv", "haed"], "drop_connect"),
        r"`rule`.*'head'; its element 'haed' chooses none.*rule=\['all-conv', 'haed'\]",
    ),
    "a list in a list": (lambda: pndt.apply(Network(), ["head", ("tail",)]), "`rule`.*its element 'tail'"),
    "an empty list": (lambda: pndt.apply(Network(), []), r"`rule`.*what takes noise: .*rule=\[\]"),
    "a name of a list of excluded": (
        lambda: pndt.apply(Network(), "all-linear", exclude=["head", "tail"]),
        r"`exclude`.*'heads', 'head'; its element 'tail' chooses none.*exclude=\['head', 'tail'\]",
    ),
    "all excluded": (
        lambda: pndt.apply(Network(), "head", exclude="head"),
        "`exclude`.*leaves something of what the rule chooses: 'head'",
    ),
    "argument of others": (
        lambda: pndt.apply(Network(), "head", projections=("query",)),
        r"`projections`.*'per_node_drop' takes for the Linear 'head': rate, .*\('query',\)",
    ),
    "argument of the plain": (lambda: pndt.apply(Network(), "head", bias=False), "`bias`.*takes for the Linear 'head'"),
    "module for a rule": (lambda: pndt.apply(Network(), torch.nn.Linear(3, 4)), "`rule`.*a class of torch.nn.Module"),
    "projections": (lambda: pndt.DropConnectMultiheadAttention(4, 2, projections=("keys",)), "`projections`"),
    "no projections": (lambda: pndt.DropConnectMultiheadAttention(4, 2, projections=()), "one or more"),
    "noisy attention": (
        lambda: pndt.DropConnectMultiheadAttention.from_plain(pndt.DropConnectMultiheadAttention(4, 2)),
        "MultiheadAttention without noise",
    ),
    "attention twice": (
        lambda: pndt.apply(pndt.DropConnectMultiheadAttention(4, 2), "all-attention", "drop_connect"),
        "has noise already",
    ),
    "attention of gradients": (
        lambda: pndt.apply(torch.nn.MultiheadAttention(4, 2), "all-attention", "dynamic_drop_connect"),
        "`regularizer`.*'all-attention' chooses: 'per_node_drop', 'drop_connect'",
    ),
    "recurrence of gradients": (
        lambda: pndt.apply(
            torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.RNN(4, 4), torch.nn.LSTM(4, 4)]),
            ["all-linear", "all-recurrent"],
            "dynamic_drop_connect",
        ),
        "`regularizer`.*'all-recurrent' chooses: 'noisy_rnn'",
    ),
    "attention of examples": (
        lambda: pndt.PerNodeMultiheadAttention(4, 2, regime="example"),
        "`regime`.*'dynamic', 'fixed', 'bank'",
    ),
    "fixed attention of an encoder": (
        lambda: pndt.apply(torch.nn.TransformerEncoderLayer(4, 2), "all-attention", regime="fixed"),
        "`rule`.*without noise at inference for 'self_attn'.*TransformerEncoderLayer may not call",
    ),
    "parametrized attention": (
        lambda: pndt.DropConnectMultiheadAttention.from_plain(
            torch.nn.utils.parametrizations.weight_norm(torch.nn.MultiheadAttention(4, 2), "in_proj_weight")
        ),
        "parametrize the noisy module",
    ),
    "parametrized inside attention": (
        lambda: pndt.DropConnectMultiheadAttention.from_plain(with_weight_norm_inside()),
        "parametrize the noisy module",
    ),
    "class": (lambda: pndt.PerNodeLinear.from_linear(torch.nn.Conv1d(1, 1, 1)), "a torch.nn.Linear without noise"),
    "ids": (lambda: pndt.DropConnectLinear(3, 4)(inputs(5, 3), sample_ids=torch.arange(5)), "the same for all samples"),
    "no ids": (lambda: pndt.PerNodeLinear(3, 4, regime="example")(inputs(5, 3)), "the examples' ids"),
    "features": (lambda: pndt.PerNodeLinear(3, 4)(inputs(5, 4)), "3 features"),
    "channels": (lambda: pndt.PerNodeConv1d(3, 4, 1)(inputs(5, 4, 3)), "3 channels"),
    "shared features": (lambda: pndt.DropConnectLinear(3, 4)(inputs(5, 4)), "`input`.*3 features"),
    "shared channels": (lambda: pndt.DropConnectConv1d(3, 4, 1)(inputs(5, 4, 3)), "`input`.*3 channels"),
    "rank of channels": (lambda: pndt.PerNodeConv2d(3, 4, 1)(inputs(5, 3)), r"`input`.*2 more axes.*\(1, 5, 3\)"),
    "reach": (lambda: pndt.PerNodeConv2d(3, 4, 2)(inputs(5, 3, 4, 0)), r"`input`.*sizes from \(2, 2\)"),
    "shared reach": (lambda: pndt.DropConnectConv2d(3, 4, 2)(inputs(5, 3, 4, 0)), r"`input`.*sizes from \(2, 2\)"),
    "dtype": (lambda: pndt.DropConnectLinear(3, 4)(inputs(5, 3).half()), "`input`.*torch.float32, the weight's"),
    "array": (lambda: pndt.PerNodeLinear(3, 4)(np.ones((5, 3), "float32")), "`input`.*a tensor of torch.*numpy"),
    "number": (lambda: pndt.Dropout(0.5)(1.0), "`input`.*a tensor of torch.*float"),
    "scalar": (lambda: pndt.DropPath(0.5)(torch.tensor(1.0)), "`input`.*samples in the first axis"),
    "activation noise": (
        lambda: pndt.apply(Network(), "all-linear", "SpatialDropout2d"),
        "`regularizer`.*activation noise is a module to place",
    ),
    "array for a name": (lambda: pndt.apply(Network(), "all-linear", np.zeros(3)), "`regularizer`.*one of"),
    "pattern": (lambda: pndt.apply(Network(), "head("), r"`rule`.*a regular expression \(missing \)"),
    "excluded": (lambda: pndt.apply(Network(), "head", rate=0.5, exclude=3), "`exclude`.*a regular expression"),
    "integers": (lambda: pndt.Dropout(0.5)(torch.arange(3)), "a floating dtype"),
    "rank": (lambda: pndt.SpatialDropout2d(0.5)(inputs(5, 3)), "rank 4"),
    "sparse": (lambda: pndt.Dropout(0.5)(inputs(5, 3).to_sparse()), "dense"),
    "replica": (lambda: pndt.set_replica(Network(), 2, 2), "`rank`"),
    "no model of ranks": (lambda: pndt.set_replica(3, 0, 2), "`model`.*a torch.nn.Module"),
    "no model of keys": (lambda: pndt.drawn_keys(3).__enter__(), "`model`.*a torch.nn.Module"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_refused(case):
    call, words = REFUSALS[case]
    with pytest.raises((TypeError, ValueError), match=words):
        call()


def test_the_names_of_parametrized_weights_stay_torchs_affair():
    parametrized = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 4))
    with pytest.raises(ValueError, match="parametrize the noisy module"):
        pndt.PerNodeLinear.from_linear(parametrized)
    noisy, x = torch.nn.utils.parametrizations.weight_norm(pndt.PerNodeLinear(3, 4, rate=0.0)), inputs(5, 3)
    torch.testing.assert_close(noisy(x), torch.nn.functional.linear(x, noisy.weight, noisy.bias))


PARAMETRIZED = {
    "linear": (lambda: pndt.PerNodeLinear(4, 4, seed=7), "weight"),
    "fixed linear": (lambda: pndt.PerNodeLinear(4, 4, regime="fixed", sharing="time+sample", seed=7), "weight"),
    "recurrent": (lambda: pndt.NoisyLSTM(4, 4, batch_first=True, seed=7), "weight_ih_l0"),
    "attention": (lambda: pndt.DropConnectMultiheadAttention(4, 2, batch_first=True, seed=7), "in_proj_weight"),
    "attention of samples": (lambda: pndt.PerNodeMultiheadAttention(4, 2, batch_first=True, seed=7), "in_proj_weight"),
    "fixed attention": (lambda: pndt.PerNodeMultiheadAttention(4, 2, regime="fixed", seed=7), "in_proj_weight"),
    "output": (lambda: pndt.DropConnectMultiheadAttention(4, 2, seed=7), "out_proj.weight"),
    "fixed output": (lambda: pndt.PerNodeMultiheadAttention(4, 2, regime="fixed", seed=7), "out_proj.weight"),
}


@pytest.mark.parametrize("case", PARAMETRIZED)
def test_a_parametrized_module_is_the_one_with_its_weights_and_folds_to_a_plain_one(case):
    make, name = PARAMETRIZED[case]
    expected, found, x = make(), make(), inputs(5, 3, 4)
    found.load_state_dict(expected.state_dict())
    holder, _, attribute = name.rpartition(".")
    holder = found.get_submodule(holder)
    torch.nn.utils.parametrizations.weight_norm(holder, attribute)
    arguments = (x, x, x) if hasattr(found, "masks") else (x,)
    torch.testing.assert_close(found(*arguments)[0], expected(*arguments)[0])
    found(*arguments)[0].sum().backward()
    assert holder.parametrizations[attribute].original1.grad is not None
    folded, plain = found.eval().fold(), expected.eval().fold()
    assert folded.state_dict().keys() == plain.state_dict().keys()
    assert all(parameter.requires_grad for parameter in folded.parameters())
    assert not any(torch.nn.utils.parametrize.is_parametrized(part) for part in folded.modules())
    assert torch.nn.utils.parametrize.is_parametrized(holder)
    torch.testing.assert_close(folded(*arguments)[0], plain(*arguments)[0])


def test_a_script_inside_the_folder_of_the_package_is_told_what_stands_in_its_way():
    code = f"import sys; sys.path.insert(0, {os.path.dirname(pnd.__file__)!r}); import torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pernodedrop.torch stands in the way of torch" in done.stderr


# models of transformers


def stand_in():
    """A package like transformers, with a module of the form of its `Conv1D`."""

    class Conv1D(torch.nn.Module):
        def __init__(self, nf, nx):
            super().__init__()
            self.nf, self.nx = nf, nx
            self.weight, self.bias = torch.nn.Parameter(torch.randn(nx, nf)), torch.nn.Parameter(torch.randn(nf))

        def forward(self, x):
            return torch.addmm(self.bias, x.reshape(-1, self.nx), self.weight).reshape(*x.shape[:-1], self.nf)

        def __repr__(self):
            return "Conv1D()"

    package, inner = types.ModuleType("transformers"), types.ModuleType("transformers.pytorch_utils")
    inner.Conv1D, Conv1D.__module__ = Conv1D, inner.__name__
    return {"transformers": package, "transformers.pytorch_utils": inner}


@pytest.fixture
def of_transformers(monkeypatch):
    """`pernodedrop.torch.of_transformers`."""
    if importlib.util.find_spec("transformers") is None:
        for name, module in stand_in().items():
            monkeypatch.setitem(sys.modules, name, module)
    name = "pernodedrop.torch.of_transformers"
    yield importlib.import_module(name)
    del sys.modules[name], pndt.of_transformers


@pytest.mark.parametrize("regime", ["dynamic", "fixed"])
def test_a_conv1d_has_the_masks_of_numpy(of_transformers, regime):
    plain, x = of_transformers.Conv1D(4, 3), inputs(5, 2, 3)
    expected, arguments = plain(x), {"rate": 0.3, "seed": 7, "regime": regime, "method": "recomputed"}
    module = of_transformers.PerNodeConv1D.from_plain(plain, **arguments)
    fixed = regime == "fixed"
    mask = pnd.ops.sample_mask(module.noise, (7, 0), (1 if fixed else 5, 3, 4), backend="numpy")
    weights = np.broadcast_to(host(plain.weight) * mask, (5, 3, 4))
    noisy = np.einsum("bti,bio->bto", host(x), weights) + host(plain.bias)
    np.testing.assert_allclose(host(module(x)), noisy, atol=1e-6)
    for one in (module.eval(), module.fold()):
        np.testing.assert_allclose(host(one(x)), noisy if fixed else host(expected), atol=1e-6)
    assert type(module.fold()) is of_transformers.Conv1D
    assert "nf=4, nx=3, noise=Bernoulli(rate=0.3)" in repr(module)


@pytest.mark.parametrize("arguments", [{}, {"scaling": "none", "mask_bias": True}], ids=["inverted", "not_inverted"])
def test_a_conv1d_drops_the_connections_of_the_same_linear(of_transformers, arguments):
    plain, linear, x = of_transformers.Conv1D(4, 3), torch.nn.Linear(3, 4), inputs(5, 2, 3)
    linear.weight, linear.bias = torch.nn.Parameter(plain.weight.detach().T), plain.bias
    found = of_transformers.DropConnectConv1D.from_plain(plain, rate=0.3, seed=7, **arguments)
    expected = pndt.DropConnectLinear.from_linear(linear, rate=0.3, seed=7, **arguments)
    for training in (True, False):
        torch.testing.assert_close(found.train(training)(x), expected.train(training)(x))


def test_apply_knows_conv1d_and_leaves_tied_weights_tied(of_transformers):
    class Gpt(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.c_attn = torch.nn.Embedding(6, 3), of_transformers.Conv1D(3, 3)
            self.lm_head = torch.nn.Linear(3, 6, bias=False)
            self.lm_head.weight = self.wte.weight

        def forward(self, ids):
            return self.lm_head(self.c_attn(self.wte(ids)))

    model, ids = Gpt(), torch.arange(6)[:, None]
    expected, checkpoint, parameters = model(ids), copy.deepcopy(model.state_dict()), set(model.parameters())
    pndt.apply(model, "all-linear", rate=0.5, seed=1)
    assert [type(one) for one in (model.c_attn, model.lm_head)] == [of_transformers.PerNodeConv1D, pndt.PerNodeLinear]
    assert set(model.parameters()) == parameters
    model.load_state_dict(checkpoint, strict=True)
    assert not torch.equal(model(ids), expected)
    for one in (pndt.fold(model), copy.deepcopy(model).eval()):
        assert one.lm_head.weight is one.wte.weight
        torch.testing.assert_close(one(ids), expected)
    assert type(pndt.apply(Gpt(), of_transformers.Conv1D, "drop_connect").c_attn) is of_transformers.DropConnectConv1D
    model = Gpt()
    words = r"`regularizer`.*takes the Conv1D 'c_attn': 'per_node_drop', 'drop_connect'; .*dynamic_drop_connect"
    with pytest.raises(ValueError, match=words):
        pndt.apply(model, "all-linear", "dynamic_drop_connect")
    assert type(model.lm_head) is torch.nn.Linear
    pndt.apply(model, "all-linear", "dynamic_drop_connect", exclude="c_attn")
    assert isinstance(model.lm_head, pndt.DynamicDropConnectLinear)


def test_a_conv1d_of_another_class_is_refused(of_transformers):
    with pytest.raises(TypeError, match="transformers's Conv1D without noise, whose `forward` is transformers's own"):
        of_transformers.PerNodeConv1D.from_plain(torch.nn.Linear(3, 4))
    assert doctest.testmod(of_transformers).failed == 0


# uncertainty


def test_a_module_that_is_not_chosen_is_in_inference_and_a_bank_then_goes_by_places():
    bank = pndt.PerNodeLinear(6, 4, rate=0.5, regime="bank", bank_size=2, seed=1)
    model, x = torch.nn.Sequential(bank, torch.nn.Dropout(0.5), pndt.Dropout(0.5)).eval(), inputs(5, 6)
    found = pndt.uncertainty.predict(model, x, 3, batch_size=2, layers=[model[2]], keep=True)
    plain = host(model(torch.as_tensor(x)))
    assert {*np.unique((found.outputs / plain).round(4))} == {0.0, 2.0}
    assert pndt.uncertainty.predict(model, x, layers=[bank]).samples == 2


def test_the_dropout_of_an_encoder_that_is_chosen_is_not_passed_by():
    """That in all of 50 passes all of 12 entries are kept, and so none moves, has a probability below 1e-100."""
    model, x = torch.nn.TransformerEncoderLayer(4, 2, 8, 0.5, batch_first=True).eval(), inputs(1, 3, 4)
    plain = host(model(torch.as_tensor(x)))
    for chosen in (["dropout2"], ["self_attn"], "last"):
        found = pndt.uncertainty.predict(model, x, layers=chosen, probabilities=False, keep=True)
        assert found.variance.any()
        assert np.abs(found.outputs - plain).max() > 0.01
    assert not any(module.training for module in model.modules())


def test_several_outputs_of_a_module_have_a_prediction_each():
    class Heads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.noise, self.one, self.two = pndt.Dropout(0.5), torch.nn.Linear(6, 3), torch.nn.Linear(6, 2)

        def forward(self, x):
            x = self.noise(x)
            return {"class": self.one(x), "number": self.two(x)}

    model, x = Heads(), inputs(7, 6)
    logits = {"class": True, "number": False}
    found = pndt.uncertainty.predict(model, x, 3, seed=1, from_logits=logits, batch_size=4, keep=True)
    for name, head in (("class", model.one), ("number", model.two)):
        alone = torch.nn.Sequential(model.noise, head)
        expected = pndt.uncertainty.predict(alone, x, 3, seed=1, from_logits=logits[name], keep=True)
        np.testing.assert_allclose(found[name].outputs, expected.outputs, atol=1e-6)
    assert found["class"].report(np.zeros(7))["accuracy"] >= 0


def test_a_prediction_leaves_norms_and_random_numbers_as_they_are():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.5), pndt.Dropout(0.5)).eval()
    before, x = copy.deepcopy(model.state_dict()), host(inputs(7, 6))
    batches = list(torch.utils.data.DataLoader([(row, 0) for row in x], batch_size=4))
    numbers = torch.random.get_rng_state()
    first, second = (pndt.uncertainty.predict(model, iter(batches), 5, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first.mean, second.mean)
    assert pndt.uncertainty.predict(model, x, 5, batch_size=4, seed=1).mean.tolist() == first.mean.tolist()
    assert first.variance.any()
    assert torch.equal(torch.random.get_rng_state(), numbers)
    assert torch.equal(model.state_dict()["0.running_mean"], before["0.running_mean"])
    assert not any(module.training for module in model.modules())


def test_members_of_a_bank_are_averaged():
    layer, x = pndt.PerNodeLinear(3, 4, rate=0.5, regime="bank", bank_size=3, seed=1), inputs(5, 3)
    found = pndt.uncertainty.predict(layer, {"input": x}, keep=True)
    assert found.samples == 3
    for member in range(3):
        expected = layer(x, sample_ids=torch.full((5,), member))
        np.testing.assert_allclose(found.outputs[member], host(expected), atol=1e-6)


def test_noise_inside_an_encoder_is_not_passed_by():
    """In `eval()` torch computes an encoder in one go, from the weights of what is inside."""
    model = pndt.apply(torch.nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), "linear[12]", rate=0.5, seed=1)
    assert pndt.uncertainty.predict(model, inputs(3, 5, 4), samples=3, seed=1).variance.any()


PREDICTIONS = {
    "no noise": (lambda: pndt.uncertainty.predict(torch.nn.Linear(3, 4), inputs(5, 3)), "a model with noise modules"),
    "no model": (lambda: pndt.uncertainty.predict(3, inputs(5, 3)), "a torch.nn.Module"),
    "no models": (lambda: pndt.uncertainty.predict([], inputs(5, 3)), "a list of them"),
    "no layer": (lambda: pndt.uncertainty.predict(pndt.Dropout(0.5), inputs(5, 3), layers=["x"]), "which make noise"),
    "no rows": (lambda: pndt.uncertainty.predict(pndt.Dropout(0.5), inputs(0, 3)), "of equal lengths from 1"),
    "no batch": (lambda: pndt.uncertainty.predict(pndt.Dropout(0.5), iter([])), "at least one batch"),
    "objects": (lambda: pndt.uncertainty.predict(pndt.Dropout(0.5), np.array([None])), "`x`.*an array of numbers"),
    "no tensor": (lambda: pndt.uncertainty.predict(pndt.Dropout(0.5), 3), "a tensor, a list or dict"),
    "batch_size": (lambda: pndt.uncertainty.predict(pndt.Dropout(0.5), iter([]), batch_size=2), "None where `x` gives"),
}


@pytest.mark.parametrize("case", PREDICTIONS)
def test_what_predict_refuses(case):
    call, words = PREDICTIONS[case]
    with pytest.raises((TypeError, ValueError), match=words):
        call()


@pytest.mark.parametrize(
    "make",
    [
        lambda: pndt.PerNodeLinear(3, 8, seed=1),
        lambda: pndt.NoisyGRU(3, 8, sharing=()),
        lambda: pndt.Dropout(0.5, seed=1),
    ],
)
def test_a_graph_of_make_fx_is_of_operators_and_fake_tensors_have_shapes(make):
    """What computes outside of operators would be a constant in the graph, and fake tensors have no numbers."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    module, x = make(), inputs(4, 5, 3)

    def call(x):
        y = module(x, key=(7, 0))
        return y[0] if isinstance(y, tuple) else y

    torch.testing.assert_close(make_fx(call)(x)(2 * x), call(2 * x))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert call(mode.from_tensor(x)).shape == call(x).shape

"""Native modules of torch beside Keras on torch: equal weights after training, equal attention, equal predictions."""

import copy

import keras
import numpy as np
import pytest

import pernodedrop as pnd

pytestmark = pytest.mark.only_backend("torch", reason="the modules are torch's")
if keras.backend.backend() == "torch":
    import torch

    import pernodedrop.torch as pndt


def inputs(*shape):
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype("float32"))


def host(tensor):
    return tensor.detach().numpy()


def with_weights(layer, module):
    """A Keras layer with the weights of a torch module."""
    kernel = np.moveaxis(host(module.weight), (0, 1), (-1, -2))
    layer.set_weights([kernel] if module.bias is None else [kernel, host(module.bias)])
    return layer


def test_a_network_trains_to_the_weights_of_the_same_network_in_keras():
    native = torch.nn.Sequential(
        pndt.PerNodeLinear(6, 8, rate=pnd.schedules.Linear(0.0, 0.5, 4), seed=1),
        torch.nn.ReLU(),
        pndt.Dropout(0.3, seed=2),
        pndt.DropConnectLinear(8, 1, rate=0.2, seed=3),
    )
    model = keras.Sequential(
        [
            keras.Input((6,)),
            pnd.PerNodeDrop(keras.layers.Dense(8), rate=pnd.schedules.Linear(0.0, 0.5, 4), seed=1),
            keras.layers.ReLU(),
            pnd.Dropout(0.3, seed=2),
            pnd.DropConnect(keras.layers.Dense(1), rate=0.2, seed=3),
        ]
    )
    for layer, module in ((model.layers[0], native[0]), (model.layers[3], native[3])):
        with_weights(layer.layer, module)
    x, y = inputs(16, 6), inputs(16, 1)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
    optimizer = torch.optim.SGD(native.parameters(), lr=0.1)
    for _ in range(3):
        for rows in (slice(0, 8), slice(8, 16)):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(native(x[rows]), y[rows]).backward()
            optimizer.step()
    for layer, module in ((model.layers[0], native[0]), (model.layers[3], native[3])):
        np.testing.assert_allclose(host(module.weight.T), layer.layer.kernel.numpy(), atol=1e-6)
        assert module.updates == layer.updates == 6
        assert module.rate == layer.rate


ATTENTION = {
    "of_batches": ("DropConnect", {"rate": 0.3}, (6, 6)),
    "of_batches_three_weights": ("DropConnect", {"rate": 0.3}, (4, 5)),
    "of_samples": ("PerNode", {"rate": 0.3}, (6, 6)),
    "of_samples_three_weights": ("PerNode", {"rate": 0.3, "noise": "gaussian"}, (4, 5)),
    "of_positions": ("PerNode", {"rate": pnd.schedules.Step([0.2, 0.7], [1]), "sharing": ()}, (6, 6)),
    "fixed": ("PerNode", {"rate": 0.3, "regime": "fixed"}, (6, 6)),
    "fixed_three_weights": ("PerNode", {"rate": 0.3, "regime": "fixed"}, (4, 5)),
    "bank": ("PerNode", {"rate": 0.3, "regime": "bank", "bank_size": 3}, (6, 6)),
}


@pytest.mark.parametrize("case", ATTENTION)
def test_attention_is_that_of_keras(case):
    name, noise, sizes = ATTENTION[case]
    projections = ("query", "value", "output")
    kind, wrapper = {
        "PerNode": (pndt.PerNodeMultiheadAttention, pnd.PerNodeDrop),
        "DropConnect": (pndt.DropConnectMultiheadAttention, pnd.DropConnect),
    }[name]
    form = {"kdim": sizes[0], "vdim": sizes[1], "batch_first": True}
    module = kind(6, 2, **form, projections=projections, seed=7, **noise)
    layer = pnd.NoisyAttention(keras.layers.MultiHeadAttention(2, 3), wrapper, projections=projections, seed=7, **noise)
    query, key, value = inputs(5, 3, 6), inputs(5, 4, sizes[0]), inputs(5, 4, sizes[1])
    layer.build(query.shape, value.shape, key.shape)
    with torch.no_grad():
        module.in_proj_bias.normal_()
        module.out_proj.bias.normal_()
    weights, kernels = [], module.weights()
    for kernel, bias in zip(kernels.values(), module.in_proj_bias.chunk(3), strict=False):
        weights += [host(kernel).T.reshape(-1, 2, 3), host(bias).reshape(2, 3)]
    layer.layer.set_weights([*weights, host(kernels["output"]).T.reshape(2, 3, 6), host(module.out_proj.bias)])
    for training in (True, True, False):
        found, scores = module.train(training)(query, key, value, average_attn_weights=False)
        expected = layer(query, value, key=key, return_attention_scores=True, training=training)
        torch.testing.assert_close((found, scores), tuple(expected), atol=2e-6, rtol=1e-5)
    assert module.updates == (0 if "regime" in noise else 2) == layer.updates
    if module.regime == "bank":
        with pytest.raises(ValueError, match="`regime`"):
            module.fold()
    else:
        plain = module.fold()
        torch.testing.assert_close(plain(query, key, value), module(query, key, value))
        same = {name for name, one in plain.named_parameters() if one is module.get_parameter(name)}
        assert {"in_proj_bias", "out_proj.bias"} <= same
        assert ("out_proj.weight" in same) == (module.regime == "dynamic")
    # samples in the second axis, and one sample alone
    again = kind(6, 2, **{**form, "batch_first": False}, projections=projections, seed=7, **noise)
    again.load_state_dict(module.state_dict())
    torch.testing.assert_close(
        again.train()(*(one.transpose(0, 1) for one in (query, key, value)))[0].transpose(0, 1),
        copy.deepcopy(module).train()(query, key, value)[0],
        atol=2e-6,
        rtol=1e-5,
    )
    alone = copy.deepcopy(module).train()
    expected = copy.deepcopy(alone)(query[:1], key[:1], value[:1])[0][0]
    torch.testing.assert_close(alone(query[0], key[0], value[0])[0], expected, atol=2e-6, rtol=1e-5)


def test_every_composite_has_a_case_of_attention():
    from pernodedrop.torch.composite import Composite

    public = {getattr(pndt, name) for name in pndt.__all__}
    composites = {one for one in public if isinstance(one, type) and issubclass(one, Composite)}
    assert {one.__name__.removesuffix("MultiheadAttention") for one in composites} == {
        name for name, *_ in ATTENTION.values()
    }


def test_a_prediction_is_that_of_the_same_network_in_keras():
    native = torch.nn.Sequential(
        pndt.PerNodeLinear(6, 8, rate=0.5), torch.nn.ReLU(), pndt.Dropout(0.3), torch.nn.Linear(8, 3)
    )
    dense = [keras.layers.Dense(8), keras.layers.Dense(3)]
    model = keras.Sequential(
        [keras.Input((6,)), pnd.PerNodeDrop(dense[0], rate=0.5), keras.layers.ReLU(), pnd.Dropout(0.3), dense[1]]
    )
    for layer, module in zip(dense, (native[0], native[3]), strict=True):
        with_weights(layer, module)
    x = inputs(11, 6)
    expected = pnd.uncertainty.predict(model, x, samples=4, seed=3, from_logits=True, keep=True)
    for size in (4, 11):
        found = pndt.uncertainty.predict(native, x, samples=4, seed=3, from_logits=True, keep=True, batch_size=size)
        np.testing.assert_allclose(found.outputs, expected.outputs, atol=1e-6)
        np.testing.assert_allclose(found.mutual_information, expected.mutual_information, atol=1e-6)
    assert type(expected) is type(found)
    assert all(module.training for module in native.modules())
    assert [native[0].updates, native[2].updates] == [0, 0]


def twins(seed):
    """A network with noise of its own in two places, in torch and in Keras, with the same weights."""
    torch.manual_seed(seed)
    native = torch.nn.Sequential(pndt.PerNodeLinear(6, 8, rate=0.5), pndt.Dropout(0.3), torch.nn.Linear(8, 4))
    dense = [keras.layers.Dense(8), keras.layers.Dense(4)]
    noisy = [pnd.PerNodeDrop(dense[0], rate=0.5, name="first"), pnd.Dropout(0.3, name="second")]
    model = keras.Sequential([keras.Input((6,)), *noisy, dense[1]])
    for layer, module in zip(dense, (native[0], native[2]), strict=True):
        with_weights(layer, module)
    return native, model


CHOICES = {
    "last": ({"layers": "last"}, {"layers": ["second"]}),
    "first": ({"layers": ["0"]}, {"layers": ["first"]}),
    "normal": ({"gaussian": True}, {"gaussian": True}),
    "all": ({"samples": 5}, {"samples": 5}),
}


@pytest.mark.parametrize(("options", "in_keras"), CHOICES.values(), ids=CHOICES)
def test_predictions_of_one_model_or_several_are_those_of_keras(options, in_keras):
    natives, models = zip(*map(twins, (1, 2)), strict=True)
    for native, model in ((natives[0], models[0]), (list(natives), list(models))):
        found = pndt.uncertainty.predict(native, inputs(7, 6), **{"samples": 4, "seed": 3, "keep": True, **options})
        expected = pnd.uncertainty.predict(model, inputs(7, 6), **{"samples": 4, "seed": 3, "keep": True, **in_keras})
        assert {*vars(found)} == {*vars(expected)}
        for name in {"outputs", "mean", "variance", "aleatoric"} & {*vars(expected)}:
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5)


@pytest.mark.parametrize("name", ["apply", "predict"])
def test_a_module_is_no_model_of_keras(name):
    model, x = torch.nn.Linear(3, 4), inputs(2, 3)
    with pytest.raises(TypeError, match=r"`model`.*pernodedrop.torch has"):
        pnd.apply(model, "all-linear") if name == "apply" else pnd.uncertainty.predict(model, x)

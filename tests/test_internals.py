"""Every private name of a framework means what `pernodedrop/internals` takes it to mean, and is used nowhere else.

A test of a function here runs the framework, not the library: an upgrade that changes a meaning fails in this file.
"""

import ast
import contextlib
import gc
import importlib
import pathlib
import re
import subprocess
import sys
import weakref

import h5py
import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.internals import of_keras
from pernodedrop.layers.base.inner import PRODUCTS
from tests import house
from tests.frameworks import NAME
from tests.house import is_private, modules

layers = keras.layers


def only(framework):
    return pytest.mark.only_backend(framework, reason=f"it is a name of {framework}")


def host(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


class Composite(layers.Layer):
    """Layers in attributes, a list and a dict, and variables of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.more = layers.Dense(3), [layers.Dense(3)]
        self.named = {"last": keras.Sequential([layers.Dense(3), layers.Dropout(0.5)])}

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones")
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        return self.scale * self.named["last"](self.more[0](self.first(x)))


def composite():
    layer = Composite()
    layer(inputs(2, 3))
    return layer


def graph():
    x = keras.Input((3,))
    return keras.Model(x, layers.Dense(2, name="b")(layers.Dense(4, name="a")(x)))


def attention():
    layer = layers.MultiHeadAttention(2, 3, dropout=0.1)
    layer(inputs(2, 5, 4), inputs(2, 5, 4))
    return layer


HOLDERS = {
    "composite": composite,
    "functional": graph,
    "sequential": lambda: keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.ReLU()]),
    "attention": attention,
    "wrapper": lambda: layers.Bidirectional(layers.GRU(2)),
    "recurrent": lambda: layers.RNN([layers.LSTMCell(2), layers.GRUCell(2)]),
}


# What a layer has


def test_layers_of():
    layer = composite()
    inside = [layer.first, *layer.more, layer.named["last"], *layer.named["last"].layers]
    found = of_keras.layers_of(layer)
    assert found[0] is layer
    assert {*found} >= {layer, *inside}
    assert {type(one) for one in {*found} - {layer, *inside}} <= {layers.InputLayer}
    assert of_keras.layers_of(layer, itself=False) == found[1:]


def flat(value):
    if isinstance(value, list | tuple):
        return [found for item in value for found in flat(item)]
    if isinstance(value, dict):
        return flat(list(value.values()))
    return [value] if isinstance(value, layers.Layer) else []


@pytest.mark.parametrize("make", HOLDERS.values(), ids=HOLDERS)
def test_attributes(make):
    """They, and `layers` of a model with a graph, lead to every layer that Keras counts, and none is Keras' list."""
    layer = make()
    of_attributes = [found for value in of_keras.attributes(layer).values() for found in flat(value)]
    if isinstance(layer, keras.Model):
        assert of_attributes == []
    counted = [one for one in layer._layers if not isinstance(one, layers.InputLayer)]
    in_graph = getattr(layer, "layers", []) if isinstance(layer, keras.Model) else []
    found = {one for one in [*of_attributes, *in_graph] if not isinstance(one, layers.InputLayer)}
    assert found >= {one for one in counted if not isinstance(one, keras.Function)}
    assert len(of_attributes) == len(set(of_attributes))


def test_own_variables():
    layer = composite()
    assert {id(one) for one in of_keras.own_variables(layer)} == {id(layer.scale), id(layer.count)}
    normal = layers.BatchNormalization()
    normal.build((2, 3))
    assert {id(one) for one in of_keras.own_variables(normal)} == {id(one) for one in normal.variables}


def test_seed_generators():
    flip, inner = layers.RandomFlip(seed=1), layers.Dropout(0.5, seed=1)
    assert [type(one) for one in of_keras.seed_generators(flip)] == [keras.random.SeedGenerator]
    assert of_keras.seed_generators(inner) == [inner.seed_generator]
    assert not of_keras.seed_generators(keras.Sequential([inner]))


@pytest.mark.once
def test_a_model_is_compiled_with_the_very_arguments_of_another():
    compiled, other = (keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]) for _ in range(2))
    optimizer = keras.optimizers.SGD(0.5)

    def loss(y, outputs):
        return keras.ops.mean(outputs)

    compiled.compile(optimizer, loss, metrics=["mae"])
    of_keras.compile_like(other, compiled)
    assert other.optimizer is optimizer
    assert other.loss is loss


def test_retrack_variable(tmp_path):
    """It is listed and saved in the place of the other, and a layer that is built takes it."""
    layer, new = composite(), keras.Variable(5.0, name="scale")
    old, count = layer.scale, layer.count
    of_keras.retrack_variable(layer, old, new)
    layer.scale = new
    assert [id(one) for one in of_keras.own_variables(layer)] == [id(new), id(count)]
    layer.scale = new
    assert len(of_keras.own_variables(layer)) == 2
    store = {}
    layer.save_own_variables(store)
    assert float(host(store["0"])) == 5.0
    with pytest.raises(ValueError, match="already built"):
        layer.scale = old


def test_retrack():
    layer, new = composite(), layers.Dense(3, name="new")
    new.build((None, 3))
    before = [id(one) for one in layer.weights]
    old = [id(one) for one in layer.first.weights]
    of_keras.retrack(layer, layer.first, new)
    after = [id(one) for one in layer.weights]
    assert [name for name in after if name in before] == [name for name in before if name not in old]
    assert before.index(old[0]) == after.index(id(new.weights[0]))
    of_keras.retrack(layer, layer.more[0], new)  # which is there already
    of_keras.retrack(layer, new, None)
    assert not {layer.first, layer.more[0], new} & {*of_keras.layers_of(layer)}
    of_keras.retrack(layer, layers.Dense(3), new)  # what it never had
    assert new not in of_keras.layers_of(layer)


@only("torch")
def test_list_variables():
    """Keras lists the parameters of a layer once; what comes later into a layer inside it is not seen by torch."""
    layer, new = composite(), layers.Dense(3)
    new.build((None, 3))
    of_keras.retrack(layer, layer.first, new)
    assert not any(one is new.kernel.value for one in layer.parameters())
    of_keras.list_variables(layer)
    assert any(one is new.kernel.value for one in layer.parameters())


def test_place():
    """A variable's path is what Keras noted when it was made; torch has it as the name of a parameter."""
    layer = composite()
    of_keras.place(layer, "above")
    assert layer.scale.path == f"above/{layer.name}/{layer.scale.name}"
    assert layer.first.kernel.path == f"above/{layer.name}/{layer.first.name}/kernel"
    if keras.backend.backend() == "torch":
        assert f"first._torch_params.{layer.first.kernel.path}" in dict(layer.named_parameters(remove_duplicate=False))


# The graph of a Sequential or functional model


@pytest.mark.parametrize("make", [HOLDERS["sequential"], graph], ids=["sequential", "functional"])
def test_forget_graph(make):
    model, again = make(), keras.Input((3,))
    first = model.layers[-2] if isinstance(model, keras.Sequential) else model.get_layer("a")
    outputs = model.outputs
    of_keras.forget_graph(model)
    y = first(again)
    assert first.output is y  # with a node of each graph, Keras would raise
    assert model.outputs[0] is outputs[0]


def test_forget_graph_lets_go_of_the_layers_that_follow():
    model = graph()
    first, last = model.get_layer("a"), weakref.ref(model.get_layer("b"))
    of_keras.forget_graph(model)
    del model
    gc.collect()
    assert first
    assert last() is None


def test_forget_graph_leaves_the_nodes_of_another_graph():
    x, shared = keras.Input((3,)), layers.Dense(3, name="shared")
    one, two = keras.Model(x, shared(x)), keras.Model(x, layers.ReLU()(shared(x)))
    y = host(two(inputs(2, 3)))
    of_keras.forget_graph(one)
    again = keras.Model.from_config(two.get_config())  # which finds nodes by their position
    again.set_weights(two.get_weights())
    np.testing.assert_array_equal(host(again(inputs(2, 3))), y)


def test_take_graph(tmp_path):
    model, new = graph(), layers.Dense(4, activation="tanh")
    of_keras.forget_graph(model)
    other = keras.Model(model.input, model.get_layer("b")(new(model.input)), name="other")
    name, counted = model.name, of_keras.layers_of(model)
    of_keras.take_graph(model, other)
    np.testing.assert_array_equal(host(model(inputs(2, 3))), host(other(inputs(2, 3))))
    assert model.output is other.output
    assert model.layers == other.layers
    assert (model.name, of_keras.layers_of(model)) == (name, counted)
    found = []
    for each in (model, other):  # Keras saves what is in any attribute
        each.save_weights(tmp_path / "it.weights.h5")
        with h5py.File(tmp_path / "it.weights.h5") as file:
            found.append([])
            file.visit(found[-1].append)
    assert found[0] == found[1]
    loaded = keras.Model.from_config(model.get_config())
    assert [one.name for one in loaded.layers] == [one.name for one in other.layers]


# How a layer is called


def made_of(kind):
    """A layer of a kind with linear activation, its input, and its name in the tests."""
    if kind is layers.Dense:
        return kind(3), inputs(2, 4)
    if kind is layers.EinsumDense:
        return kind("abc,cd->abd", output_shape=(None, 3), bias_axes="d"), inputs(2, 5, 4)
    if kind is layers.Embedding:
        return kind(4, 3), np.array([[0, 3], [1, 1]])
    rank = int(re.search(r"\d", kind.__name__)[0])
    sizes = {} if "Depthwise" in kind.__name__ else {"filters": 3}
    return kind(kernel_size=2, **sizes), inputs(2, *[5] * rank, 4)


def test_shallow_copy():
    layer = composite()
    before = dict(vars(layer))
    copy = of_keras.shallow_copy(layer, first=layers.Identity(), more=[layers.Identity()])
    x = inputs(2, 3)
    np.testing.assert_array_equal(host(type(copy).call(copy, x)), host(layer.named["last"](x)))
    assert copy.scale is layer.scale
    assert vars(layer) == before
    assert copy.first not in of_keras.layers_of(layer)
    with of_keras.calling(layer, lambda x: 7 * x):
        again = of_keras.shallow_copy(layer, first=layers.Identity(), more=[layers.Identity()])
        np.testing.assert_array_equal(host(again.call(x)), host(copy.call(x)))


@pytest.mark.parametrize("kind", PRODUCTS, ids=lambda kind: kind.__name__)
def test_name_of_kernel(kind):
    layer, x = made_of(kind)
    layer.build(x.shape)
    assert getattr(layer, of_keras.name_of_kernel(layer)) is layer.trainable_variables[0]


def test_as_kind():
    """The parts of a separable convolution, one after the other, are what it computes, with its own variables."""
    layer, x = layers.SeparableConv1D(3, 2, depth_multiplier=2, activation="tanh"), inputs(2, 5, 4)
    y = host(layer(x))
    before = dict(vars(layer))
    first = {"use_bias": False, "bias": None, "activation": None}
    depthwise = of_keras.as_kind(layer, layers.DepthwiseConv1D, layer.depthwise_kernel, **first)
    pointwise = of_keras.as_kind(layer, layers.Conv1D, layer.pointwise_kernel, kernel_size=(1,), groups=1)
    np.testing.assert_allclose(host(pointwise.call(depthwise.call(x))), y, atol=1e-6)
    assert pointwise.kernel is layer.pointwise_kernel
    assert vars(layer) == before


@pytest.mark.parametrize("kind", PRODUCTS, ids=lambda kind: kind.__name__)
def test_with_kernel(kind):
    layer, x = made_of(kind)
    layer.build(x.shape)
    kernel = getattr(layer, of_keras.name_of_kernel(layer))
    y = host(type(layer).call(of_keras.with_kernel(layer, 2 * keras.ops.cast(kernel, "float32")), x))
    np.testing.assert_allclose(y, 2 * host(layer(x)), rtol=1e-5, atol=1e-6)
    assert getattr(layer, of_keras.name_of_kernel(layer)) is kernel


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("equation", [None, "abc,cde->abde", "abc,dce->abde"])
def test_int8_kernel(equation, lora):
    """Rounded to 8 bits, a number of a kernel moves by at most 1/254 of the largest of its column."""
    layer = layers.Dense(5) if equation is None else layers.EinsumDense(equation, output_shape=(None, 3, 4))
    layer.build((2, 6) if equation is None else (2, 7, 6))
    kernel = host(layer.kernel)
    layer.quantize("int8")
    if lora:
        layer.enable_lora(2)
        layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    found = host(of_keras.int8_kernel(layer))
    assert found.shape == kernel.shape
    np.testing.assert_allclose(found, kernel, atol=np.abs(kernel).max() / 250)
    assert not np.allclose(host(layer.kernel), kernel, atol=1)


KINDS_OF_ATTENTION = [
    lambda: layers.MultiHeadAttention(2, 3),
    lambda: layers.GroupQueryAttention(3, 2, 2),
]


@pytest.mark.parametrize("make", KINDS_OF_ATTENTION)
def test_projections(make):
    layer, x = make(), inputs(2, 5, 4)
    layer(x, x)
    seen = {}

    def spy(name):
        projection = of_keras.projection(layer, name)
        return lambda tensor: seen.update({name: tensor}) or projection(tensor)

    names = ("query", "key", "value", "output")
    noisy = of_keras.with_projections(layer, {name: spy(name) for name in names})
    np.testing.assert_array_equal(host(type(layer).call(noisy, x, 2 * x, 3 * x)), host(layer(x, 2 * x, 3 * x)))
    for name, value in {"query": x, "value": 2 * x, "key": 3 * x}.items():
        np.testing.assert_array_equal(host(seen[name]), value)
    assert host(seen["output"]).ndim == 4
    assert seen.keys() == {*names}


@pytest.mark.parametrize("make", KINDS_OF_ATTENTION)
def test_with_dropout(make):
    """It has the weights, rows of which sum to 1, and flash attention is off."""
    layer, x, seen = make(), inputs(2, 5, 4), []
    y = host(layer(x, x))
    assert not of_keras.has_flash_attention(layer)
    layer._flash_attention = True  # which there is not on a CPU
    assert of_keras.has_flash_attention(layer)

    def dropout(weights, training):
        seen.append(host(weights))
        return 2 * weights

    doubled = of_keras.with_dropout(layer, dropout)
    np.testing.assert_allclose(host(type(layer).call(doubled, x, x)), 2 * y, atol=1e-5)  # no bias that is not 0
    (weights,) = seen
    assert weights.shape == (2, 2, 5, 5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("make", KINDS_OF_ATTENTION)
def test_weighs_as_keras(make):
    kind = type(make())

    class Same(kind):
        pass

    class Other(kind):
        def _compute_attention(self, *args, **kwargs):
            return super()._compute_attention(*args, **kwargs)

    config = make().get_config()
    assert of_keras.weighs_as_keras(make())
    assert of_keras.weighs_as_keras(Same.from_config(config))
    assert not of_keras.weighs_as_keras(Other.from_config(config))


def test_calling():
    layer, x = layers.Dense(3), inputs(2, 4)
    y = host(layer(x))
    with of_keras.calling(layer, lambda x, training=None: 2.0 * x):
        np.testing.assert_array_equal(host(layer(x)), 2 * x)
        with of_keras.calling(layer, lambda x: 3.0 * x):
            np.testing.assert_array_equal(host(layer(x)), 3 * x)
        np.testing.assert_array_equal(host(layer(x)), 2 * x)
    np.testing.assert_array_equal(host(layer(x)), y)
    assert "call" not in vars(layer)
    with of_keras.calling(layer, lambda: 5, "count_params"):
        assert layer.count_params() == 5
    assert layer.count_params() == 15


def test_autocast():
    kernel, count = keras.Variable(np.ones(2, "float32")), keras.Variable(np.ones(2, "int32"), trainable=False)
    exact = keras.Variable(np.ones(2, "float32"), autocast=False)
    with of_keras.autocast("bfloat16"):
        assert (kernel.dtype, count.dtype, exact.dtype) == ("bfloat16", "int32", "float32")
        assert keras.backend.standardize_dtype((kernel * 1).dtype) == "bfloat16"
    assert keras.backend.standardize_dtype((kernel * 1).dtype) == "float32"


def test_without_remat():
    class Counted(layers.Layer):
        again = 0

        def call(self, x):
            return x

        def rematerialized_call(self, call, *args, **kwargs):
            Counted.again += 1
            return call

    with keras.RematScope(mode="full"):
        layer = Counted()
    layer(inputs(2, 3))
    assert Counted.again == 1
    with of_keras.without_remat(layer):
        layer(inputs(2, 3))
    assert Counted.again == 1
    layer(inputs(2, 3))
    assert Counted.again == 2


def test_seeded():
    """With it, a Dropout without a seed has the mask that the state of its generator says, on torch too."""
    layer, x = layers.Dropout(0.5), np.ones((4, 16), "float32")

    def drop():
        layer.seed_generator.state.assign([7, 0])
        return host(layer(x, training=True))

    with of_keras.seeded(layer.seed_generator):
        first = drop()
        np.testing.assert_array_equal(drop(), first)
    if NAME == "torch":  # four pairs of 64 fair bits, all equal by chance with probability 2**-256
        assert any((drop() != first).any() for _ in range(4))
    assert layer.seed_generator.get_config()["seed"] is None


def test_value_held():
    """On JAX `fit` takes the values of variables, which Keras then cannot show."""
    seen = []

    def data():
        for _ in range(4):
            seen.append(of_keras.value_held(kernel) is None)
            yield inputs(4, 3), inputs(4, 2)

    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    kernel = model.layers[0].kernel
    assert of_keras.value_held(kernel) is kernel.value
    if NAME == "numpy":
        return
    model.compile("sgd", "mse")
    model.fit(data(), steps_per_epoch=4, shuffle=False, verbose=0)
    assert {*seen} == ({False, True} if NAME == "jax" else {False})


def test_compiled_loss():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_regularizer="l2")])
    assert of_keras.compiled_loss(model) is None
    model.compile(loss=keras.losses.MeanSquaredError(reduction="sum"))
    y, p, weights = (np.array(n, "float32") for n in ([[1], [2]], [[0], [5]], [2, 1]))
    assert float(host(of_keras.compiled_loss(model)(y, p, weights))) == 2 * 1 + 9


@pytest.mark.skip_backend("numpy", reason="NumPy arrays cannot carry a Keras mask")
def test_masks():
    """Keras' losses note the positions of `ignore_class` with the values, and leave out those that are noted so."""
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=-1)
    y, p = np.array([0, -1, 1, 1]), keras.ops.convert_to_tensor(np.full((4, 2), 0.5, "float32"))
    np.testing.assert_array_equal(host(of_keras.mask_of(loss.call(y, p))), [True, False, True, True])
    assert of_keras.mask_of(p) is None

    class Own(keras.losses.Loss):
        def call(self, y_true, y_pred):
            values = keras.ops.convert_to_tensor(np.array([1.0, 10.0, 2.0, 20.0], "float32"))
            of_keras.set_mask(values, keras.ops.convert_to_tensor([True, False, True, False]))
            return values

    assert float(Own()(y, p)) == 1.5


@pytest.mark.skip_backend("numpy", reason="Keras does not train on NumPy")
def test_lower_is_better():
    """Without it, a callback does not know which epoch is best, by a metric whose name does not say so."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    metric = keras.metrics.MeanMetricWrapper(lambda y, p: p[:, 0], name="own")
    model.compile(loss="mse", metrics=[metric])
    x, early = np.zeros((4, 2), "float32"), keras.callbacks.EarlyStopping(monitor="own")
    with pytest.raises(ValueError, match="maximized or minimized"):
        model.fit(x, x[:, :1], callbacks=[early], verbose=0)
    of_keras.lower_is_better(metric)
    model.fit(x, x[:, :1], callbacks=[early], verbose=0)
    assert early.monitor_op is keras.ops.less


# torch


@only("torch")
def test_constant_in_graphs():
    import torch

    from pernodedrop.internals import of_torch

    def two():
        return 2

    marked, by_torch = of_torch.constant_in_graphs(lambda: 2), torch.compiler.assume_constant_result(lambda: 2)
    assert vars(marked) == vars(by_torch)
    assert of_torch.constant_in_graphs(two) is two

    calls = []

    @of_torch.constant_in_graphs
    def untraceable():
        calls.append(bytearray(1).hex())  # breaks a graph
        return 2

    compiled = torch.compile(lambda x: x * untraceable(), backend="eager", fullgraph=True)
    assert [compiled(torch.ones(1)).item() for _ in range(3)] == [2, 2, 2]
    assert len(calls) == 1
    torch._dynamo.reset()


@only("torch")
@only("torch")
def test_noise_in():
    """A module trains what makes noise, and no other: two outputs of equal inputs differ, and none where all rest."""
    import torch

    from pernodedrop.internals import of_torch

    def differs(module, *x):
        outputs = [module(*x) for _ in range(2)]
        first, second = (y[0] if isinstance(y, tuple) else y for y in outputs)
        return not torch.equal(first, second)

    nn, x = torch.nn, torch.ones(2, 3, 4)
    for module, inputs in (
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), (x,)),
        (nn.MultiheadAttention(4, 2, dropout=0.5), (x, x, x)),
        (nn.LSTM(4, 9, num_layers=2, dropout=0.5), (x,)),
        (nn.TransformerEncoderLayer(4, 2, 9, dropout=0.5), (x,)),
    ):
        assert not differs(module.eval(), *inputs)
        for one in (found := of_torch.noise_in(module)):
            one.training = True
        assert differs(module, *inputs)
        assert not any(isinstance(one, nn.Linear | nn.LayerNorm) for one in found)
    silent = nn.Sequential(nn.Dropout(0.0), nn.BatchNorm1d(3), nn.TransformerEncoderLayer(4, 2, 9, dropout=0.0))
    assert of_torch.noise_in(silent) == []


def test_importing_of_torch_does_not_import_what_compiles():
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); print('torch._dynamo' in sys.modules)"
    command = [sys.executable, "-c", code, str(modules()["internals.of_torch"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@only("torch")
def test_in_checkpoint():
    import torch
    from torch.utils.checkpoint import checkpoint

    from pernodedrop.internals import of_torch

    seen = []

    def function(x):
        seen.append(of_torch.in_checkpoint())
        return x.sin()

    x = torch.ones(1, requires_grad=True)
    function(x)
    y = checkpoint(function, x, use_reentrant=False)
    with torch.autograd.graph.save_on_cpu():
        function(x)
    assert seen == [False, True, False]
    y.backward()
    assert len(seen) == 4
    checkpoint(function, x, use_reentrant=True)
    assert seen[4:] == [True]


@only("torch")
def test_share():
    import torch

    from pernodedrop.internals import of_torch

    source, target = torch.nn.BatchNorm1d(3, affine=True), torch.nn.BatchNorm1d(3, affine=False)
    source.register_forward_hook(lambda module, x, y: y + 1)
    source.register_buffer("unsaved", torch.zeros(1), persistent=False)
    source.inner, source.own = torch.nn.Linear(1, 1), "attribute"
    target.register_buffer("kept", torch.ones(1), persistent=False)
    of_torch.share(source.eval(), target, leave_out={"unsaved", "own"})
    assert target.weight is source.weight
    assert target.inner is source.inner
    assert not target.training
    assert target.running_mean is source.running_mean
    assert target.kept.tolist() == [1]
    assert not hasattr(target, "unsaved")
    assert not hasattr(target, "own")
    assert target.state_dict().keys() == {*source.state_dict()}
    x = torch.randn(2, 3)
    assert torch.equal(target(x), source(x))
    target.weight = None  # it has a list of its own
    assert source.weight is not None


def told():
    """A Linear of torch that notes when it is moved, and has a bias where it is loaded without one."""
    import torch

    from pernodedrop.internals import of_torch

    class Linear(of_torch.Told, torch.nn.Linear):
        dtypes = ()

        @contextlib.contextmanager
        def moving(self):
            before = self.weight.dtype
            yield
            self.dtypes += ((before, self.weight.dtype),)

        def before_loading(self, state_dict, prefix):
            state_dict.setdefault(f"{prefix}bias", torch.ones(3))

    return Linear(2, 3)


@only("torch")
@pytest.mark.parametrize("move", [lambda m: m.double(), lambda m: m.to("cpu"), lambda m: m.to_empty(device="cpu")])
def test_told_that_it_is_moved(move):
    """By whatever moves a module, and modules that hold it."""
    import torch

    holder = torch.nn.Sequential(told())
    assert move(holder) is holder
    assert holder[0].dtypes == ((torch.float32, move(torch.nn.Linear(2, 3)).weight.dtype),)


@only("torch")
def test_told_that_it_loads():
    """By what loads a model, which hands every module what is its own."""
    import torch

    holder, given = torch.nn.Sequential(told()), {"0.weight": torch.zeros(3, 2)}
    holder.load_state_dict(given, strict=True)
    assert holder[0].bias.tolist() == [1, 1, 1]
    assert given.keys() == {"0.weight"}


@only("torch")
def test_in_transform():
    import torch

    from pernodedrop.internals import of_torch

    seen = []

    def function(x):
        seen.append(of_torch.in_transform())
        return x.sum()

    function(torch.ones(2))
    torch.func.vmap(torch.func.grad(function))(torch.ones(3, 2))
    torch.func.vjp(function, torch.ones(2))
    function(torch.ones(2))
    with torch.autograd.forward_ad.dual_level():
        function(torch.ones(2))
    function(torch.ones(2))
    assert seen == [False, True, True, False, True, False]


@only("torch")
def test_is_traced():
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    from pernodedrop.internals import of_torch

    seen = []

    def function(x):
        seen.append(of_torch.is_traced())
        return x + 1

    function(torch.ones(2))
    make_fx(function)(torch.ones(2))
    torch.compile(function, backend="eager")(torch.ones(2))
    with torch.no_grad():
        function(torch.ones(2))
    assert seen == [False, True, True, False]


@only("torch")
def test_is_replica():
    import torch

    from pernodedrop.internals import of_torch

    module = torch.nn.Linear(1, 1)
    assert not of_torch.is_replica(module)
    assert of_torch.is_replica(module._replicate_for_data_parallel())  # what DataParallel calls, on GPUs only


@only("torch")
def test_allow_recompilations():
    import torch

    from pernodedrop.internals import of_torch

    compiled = []

    def backend(graph, example_inputs):
        compiled.append(graph)
        return graph.forward

    before = torch._dynamo.config.recompile_limit
    run = torch.compile(lambda x, name: x + len(name), backend=backend)
    try:
        of_torch.allow_recompilations(before + 4)
        for n in range(before + 4):
            run(torch.ones(1), n * "a")
        assert len(compiled) == before + 4
    finally:
        of_torch.allow_recompilations(before)
        torch._dynamo.reset()


# TensorFlow


@only("tensorflow")
def test_is_recorded():
    import tensorflow as tf

    from pernodedrop.internals import of_tensorflow

    assert not of_tensorflow.is_recorded()
    with tf.GradientTape() as tape:
        assert of_tensorflow.is_recorded()
        with tape.stop_recording():
            assert not of_tensorflow.is_recorded()
    seen = []
    step = tf.function(lambda x: seen.append(of_tensorflow.is_recorded()) or x * x)
    x = tf.Variable(1.0)
    step(x)
    with tf.GradientTape():
        step(x + 1)
    assert seen == [False, True]  # a trace under a tape is one of its own


@only("tensorflow")
def test_is_in_xla():
    import tensorflow as tf

    from pernodedrop.internals import of_tensorflow

    seen = []

    def function(x):
        seen.append(of_tensorflow.is_in_xla())
        return x + tf.cond(x > 0, lambda: seen.append(of_tensorflow.is_in_xla()) or x, lambda: x)

    for jit_compile in (False, True):
        tf.function(function, jit_compile=jit_compile, autograph=False)(tf.constant(1.0))
    assert seen == [False, False, True, True]
    assert not of_tensorflow.is_in_xla()


@only("tensorflow")
def test_is_in_recompute_grad():
    import tensorflow as tf

    from pernodedrop.internals import of_tensorflow

    seen = []

    def function(x):
        seen.append(of_tensorflow.is_in_recompute_grad())
        return x * x

    x = tf.Variable(2.0)
    with tf.GradientTape() as tape:
        y = tf.recompute_grad(lambda: function(x))()
    function(x)
    assert tape.gradient(y, x).numpy() == 4
    assert seen == [True, False, True]

    @tf.custom_gradient
    def own(x):
        return function(x), lambda dy: dy

    own(tf.constant(1.0))
    assert seen[-1] is False


@only("tensorflow")
def test_written():
    import tensorflow as tf

    from pernodedrop.internals import of_tensorflow

    @tf.function(jit_compile=True)
    def write(tensor, block, start):
        return of_tensorflow.written(tensor, block, (1, start))

    expected = np.zeros((4, 5), "float32")
    expected[1:3, 2:5] = 1
    found = write(tf.zeros((4, 5)), tf.ones((2, 3)), tf.constant(2))
    np.testing.assert_array_equal(found, expected)


def test_the_path_of_a_variable_is_no_folder_of_a_layer_inside():
    layer = pnd.PerNodeDrop(keras.layers.Dense(2, name="key"), seed=1)
    own = {variable.name: of_keras._path_in("a/b", variable, layer) for variable in layer.variables}
    assert own == {"key": "a/b/own_key", "threshold": "a/b/threshold"}


# Of all, and nowhere else


def test_every_function_has_a_test():
    here = pathlib.Path(__file__).read_text(encoding="utf-8")
    for file in ("of_keras", "of_tensorflow", "of_torch"):
        tree = ast.parse(modules()[f"internals.{file}"].read_text(encoding="utf-8"))
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert [name for name in functions if f"{file}.{name}(" not in here and f"@{file}.{name}" not in here] == []


EXCEPTIONS = {}
"""(file, name) of private names that are used outside `internals`, and the reason."""


def names_of_keras():
    """The private names of Keras' layers, models and what they have, and of what the backend's framework adds."""
    kernels = [made_of(kind) for kind in PRODUCTS]
    for layer, x in kernels:
        layer.build(x.shape)
    holders = [make() for make in HOLDERS.values()] + [layer for layer, _ in kernels]
    samples = [layers.Dropout(0.5).seed_generator, keras.losses.MeanSquaredError()]
    samples += [layer for holder in holders for layer in of_keras.layers_of(holder)]
    return {name for sample in samples for name in {*dir(sample), *vars(sample)} if is_private(name)}


def strings_of(tree):
    """The strings, which may be names of attributes."""
    return (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def test_private_names_of_frameworks_are_used_in_their_folder_only():
    """A name of an attribute is a framework's if Keras has it, or if no file of the library defines it.

    Imports of private names, and names that no file defines, are refused by tests/house.py, which needs no Keras.
    """
    trees = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in modules().items()}
    theirs, own = names_of_keras(), house.PYTHON.union(*map(house.defined, trees))
    assert {"_flatten_layers", "_kernel", "_remat_mode", "_functional", "_initial_seed"} <= theirs
    found = set()
    for file, tree in trees.items():
        found |= {(file, name) for name, _ in house.attributes(file) if is_private(name) and name not in own - theirs}
        found |= {(file, name) for name in strings_of(tree) if name in theirs}
    assert {"internals.of_keras", "internals.of_torch"} <= {file for file, _ in found}
    assert {one for one in found if not one[0].startswith("internals.")} == set(EXCEPTIONS)


def kinds_of(base):
    """The classes of the library that stand on one of a framework."""
    for kind in base.__subclasses__():
        yield from kinds_of(kind)
        if kind.__module__.startswith("pernodedrop."):
            yield kind


def test_private_methods_of_frameworks_are_defined_in_their_folder_only():
    """Those that a layer, a model or a module has from its framework, which calls them."""
    for name in ("contrast", "layers", "losses", "surgery", "uncertainty", *(["torch"] if NAME == "torch" else [])):
        importlib.import_module(f"pernodedrop.{name}")
    bases = [layers.Layer, *(base for base in layers.Layer.__mro__ if base.__module__.startswith("torch."))]
    kinds, found = [kind for base in bases for kind in kinds_of(base)], set()
    for kind in kinds:
        theirs = {name for base in kind.__mro__ if not base.__module__.startswith("pernodedrop") for name in vars(base)}
        found |= {kind.__module__ for name in vars(kind) if is_private(name) and name in theirs}
    assert len(kinds) > 50
    assert found == {"pernodedrop.internals.of_keras"}

"""Native modules of Flax NNX: the masks of NumPy and of the Keras layers, in what NNX does with any module."""

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.members import Members
from pernodedrop.uncertainty.prediction import word_of as word_of_pass

pytestmark = pytest.mark.only_backend("jax", reason="the modules are those of JAX")
if keras.backend.backend() == "jax":
    nnx = pytest.importorskip("flax.nnx", reason="an extra", exc_type=ImportError)
    import jax
    from jax import numpy as jnp

    import pernodedrop.nnx as pndx
    from pernodedrop.nnx.noisy import word_of


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def rngs(**streams):
    return nnx.Rngs(params=0, **streams)


def masked(x, kernel, key, rate=0.5):
    """The product with a Bernoulli mask, by NumPy."""
    mask = pnd.ops.sample_mask(pnd.Bernoulli(rate), key, (len(x), *kernel.shape), backend="numpy")
    return np.einsum("bi,io,bio->bo", x, kernel, mask)


# masks


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 2, 3), (3,)], ids=str)
@pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
def test_a_linear_has_the_masks_of_numpy(shape, noise):
    layer = pndx.PerNodeLinear(3, 4, rate=0.3, noise=noise, seed=7, method="recomputed", rngs=rngs())
    x, rows = inputs(*shape), shape[0] if len(shape) > 1 else 1
    for call in range(2):
        mask = pnd.ops.sample_mask(layer.noise, (7, call), (rows, 3, 4), backend="numpy")
        expected = np.einsum("bti,io,bio->bto", x.reshape(rows, -1, 3), layer.kernel[...], mask)
        np.testing.assert_allclose(layer(x), expected.reshape(*shape[:-1], 4), atol=1e-6)
    assert (layer.seed, layer.updates) == (7, 2)


@pytest.mark.parametrize(
    ("padding", "regime"), [("SAME", "fixed"), *((one, "dynamic") for one in ("CIRCULAR", "REFLECT", 1, ((2, 0), 1)))]
)
def test_a_convolution_without_noise_is_that_of_nnx(padding, regime):
    form = {"kernel_size": (3, 2), "strides": 2, "kernel_dilation": (1, 2), "feature_group_count": 2}
    form |= {"padding": padding, "mask": np.random.default_rng(1).normal(size=(3, 2, 2, 6)).astype("float32")}
    plain = nnx.Conv(4, 6, rngs=rngs(), **form)
    module = pndx.PerNodeConv.from_plain(plain, rate=0.0, regime=regime, seed=1)
    x = inputs(3, 7, 8, 4)
    np.testing.assert_allclose(nnx.jit(lambda module, x: module(x))(module, x), plain(x), atol=2e-6)
    np.testing.assert_allclose(module(x[0], deterministic=True), plain(x[0]), atol=2e-6)


# what NNX does with modules


def test_keys_are_from_the_stream_named_noise_or_the_default_one():
    for streams, stream in ((nnx.Rngs(params=0, noise=5), "noise"), (nnx.Rngs(params=0, default=6), "default")):
        expected = nnx.Rngs(**{stream: 5 if stream == "noise" else 6})[stream].fork()
        first = pndx.PerNodeLinear(3, 4, rngs=streams)
        assert jnp.array_equal(jax.random.key_data(first.rngs.key[...]), jax.random.key_data(expected.key[...]))
        assert pndx.PerNodeLinear(3, 4, rngs=streams).seed != first.seed
    key = jax.random.wrap_key_data(np.array([1, 2], "uint32"))
    with jax.numpy_dtype_promotion("standard"):
        assert int(word_of(jax.random.key(7))[0]) == 7
    assert int(word_of(key)[0]) not in (1, 2)


def test_a_call_may_bring_its_stream_or_its_key():
    layer, x = pndx.Dropout(0.5), inputs(5, 8)
    stream = nnx.Rngs(noise=7)
    expected = [pndx.Dropout(0.5)(x, key=(7, call)) for call in range(2)]
    np.testing.assert_array_equal(layer(x, rngs=stream), expected[0])
    np.testing.assert_array_equal(layer(x, rngs=stream.noise), expected[1])
    key = jax.random.key(3)
    np.testing.assert_array_equal(layer(x, rngs=key), layer(x, key=tuple(np.asarray(jax.random.key_data(key)))))
    assert int(stream.noise.count[...]) == 2
    assert layer.rate == 0.5
    fixed = pndx.PerNodeLinear(8, 4, regime="fixed", seed=7, rngs=rngs())
    np.testing.assert_array_equal(fixed(x, rngs=stream), fixed(x))


def network():
    return nnx.Sequential(
        pndx.PerNodeLinear(6, 8, rate=pnd.schedules.Linear(0.0, 0.5, 4), seed=1, rngs=rngs()),
        nnx.relu,
        pndx.Dropout(0.3, seed=2),
        pndx.DropConnectLinear(8, 1, rate=0.2, seed=3, rngs=rngs()),
    )


def trained(model, steps):
    @nnx.jit
    def step(model, x, y):
        gradients = nnx.grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
        nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(model, nnx.Param), gradients))

    x, y = inputs(16, 6), inputs(16, 1)
    for n in range(steps):
        rows = slice(8 * (n % 2), 8 * (n % 2) + 8)
        step(model, x[rows], y[rows])
    return model


def test_a_network_trains_to_the_weights_of_the_same_network_in_keras():
    native = network()
    dense = [keras.layers.Dense(8), keras.layers.Dense(1)]
    model = keras.Sequential(
        [
            keras.Input((6,)),
            pnd.PerNodeDrop(dense[0], rate=pnd.schedules.Linear(0.0, 0.5, 4), seed=1),
            keras.layers.ReLU(),
            pnd.Dropout(0.3, seed=2),
            pnd.DropConnect(dense[1], rate=0.2, seed=3),
        ]
    )
    modules = native.layers[0], native.layers[3]
    for layer, module in zip(dense, modules, strict=True):
        layer.set_weights([np.array(leaf[...]) for leaf in (module.kernel, module.bias)])  # `fit` donates what it has
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(inputs(16, 6), inputs(16, 1), batch_size=8, epochs=3, shuffle=False, verbose=0)
    trained(native, 6)
    for layer, module in zip(dense, modules, strict=True):
        np.testing.assert_allclose(module.kernel[...], layer.kernel, atol=1e-6)
    assert [modules[0].updates, modules[0].rate] == [model.layers[0].updates, model.layers[0].rate]


def test_a_state_that_was_split_or_saved_resumes(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint", reason="Flax brings it")
    whole, part = trained(network(), 4), trained(network(), 2)
    part.layers[2].rate = whole.layers[2].rate = 0.1
    with checkpoint.StandardCheckpointer() as saver:
        saver.save(tmp_path / "state", nnx.state(part))
    graph, fresh = nnx.split(network())
    with checkpoint.StandardCheckpointer() as saver:
        again = nnx.merge(graph, saver.restore(tmp_path / "state", fresh))
    assert again.layers[2].rate == 0.1
    again.layers[2].rate = 0.3
    trained(again, 2)
    for n in (0, 3):
        np.testing.assert_array_equal(again.layers[n].kernel[...], whole.layers[n].kernel[...])
    assert again.layers[0].updates == 4


def test_a_checkpoint_of_another_noise_is_refused(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint", reason="Flax brings it")
    states = {
        noise: nnx.state(pndx.PerNodeLinear(3, 4, noise=noise, seed=7, rngs=rngs()))
        for noise in ("bernoulli", "gaussian")
    }
    with checkpoint.StandardCheckpointer() as saver:
        saver.save(tmp_path / "state", states["bernoulli"])
        saver.wait_until_finished()
        with pytest.raises(ValueError, match="Gaussian"):
            saver.restore(tmp_path / "state", states["gaussian"])


@pytest.mark.parametrize("use", [lambda layer: layer.rate, lambda layer: setattr(layer, "rate", 0.3)])
def test_a_rate_is_read_and_set_outside_of_compiled_functions(use):
    layer = pndx.PerNodeLinear(3, 4, seed=7, rngs=rngs())
    with pytest.raises(TypeError, match=r"`rate`. Expected to be read and set outside of compiled functions"):
        nnx.jit(lambda layer: use(layer))(layer)


def test_one_compilation_serves_all_steps_and_rates():
    traces = []

    @nnx.jit
    def call(layer, x):
        traces.append(1)
        return layer(x)

    for seed in (7, 8):  # which is no part of a module's form
        layer, x = pndx.PerNodeLinear(3, 4, rate=0.5, seed=seed, rngs=rngs()), inputs(5, 3)
        for n, rate in enumerate((0.5, 0.5, 0.25)):
            if n:
                layer.rate = rate
            np.testing.assert_allclose(call(layer, x), masked(x, layer.kernel[...], (seed, n), rate), atol=1e-6)
    assert len(traces) == 1


def test_a_rematerialized_call_makes_its_mask_again():
    gradients = []
    for remat in (lambda f: f, nnx.remat):
        layer, x = pndx.PerNodeLinear(3, 4, seed=7, rngs=rngs()), inputs(5, 3)
        loss = remat(lambda layer, x: jnp.sum(layer(x) ** 2))
        gradients.append(nnx.grad(lambda layer, x, loss=loss: loss(layer, x))(layer, x)["kernel"][...])
        assert layer.updates == 1
    np.testing.assert_array_equal(*gradients)


def test_layers_that_were_stacked_are_scanned_with_a_seed_each():
    stack = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: pndx.PerNodeLinear(3, 3, rate=0.5, rngs=rngs)))(nnx.Rngs(0))
    seeds, x = np.asarray(word_of(stack.rngs.key[...]))[:, 0], inputs(5, 3)
    scan = nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    found, expected = scan(stack, x), x
    for seed, kernel in zip(seeds, stack.kernel[...], strict=True):
        expected = masked(expected, kernel, (int(seed), 0))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len({*seeds}) == 3
    assert stack.rngs.count[...].tolist() == [1, 1, 1]


def test_masks_of_an_ensemble_are_made_where_seeds_are_traced_or_stacked():
    make = lambda rngs: pndx.Masksembles(8, members=2, rngs=rngs)  # noqa: E731 - it is an argument
    stack = nnx.split_rngs(splits=3)(nnx.vmap(make))(nnx.Rngs(0))
    seeds = np.asarray(word_of(stack.rngs.key[...]))[:, 0]
    expected = [Members(2, 2.0, "random", "down").masks(8, int(seed)) for seed in seeds]
    np.testing.assert_array_equal(stack.masks[...], expected)
    assert nnx.eval_shape(lambda: make(nnx.Rngs(0))).masks.get_value().shape == (2, 8)
    with pytest.raises(ValueError, match="`rngs`"):
        pndx.Masksembles(8)


def test_gradients_are_noted_where_there_are_any():
    def make(**noise):
        return pndx.DynamicDropConnectLinear(3, 4, seed=1, rngs=nnx.Rngs(0), **noise)

    model, x = nnx.List([make(), make(), make(prefer="small_weight")]), inputs(5, 3)
    found = nnx.grad(lambda model: sum(layer(x).sum() for layer in model))(model)
    frozen = nnx.State({0: found[0]})
    pndx.note_gradients(model, frozen)
    np.testing.assert_array_equal(model[0].gradient[...], found[0]["kernel"][...])
    assert not model[1].gradient[...].any()
    assert model[2].gradient is None
    with pytest.raises(ValueError, match=r"`gradients`. Expected those of 0.kernel, 1.kernel"):
        pndx.note_gradients(model, nnx.State({2: found[2]}))
    with pytest.raises(TypeError, match="`gradients`"):
        pndx.note_gradients(model, None)
    narrow = nnx.State({0: {"kernel": nnx.Param(found[0]["kernel"][...][:1])}})
    with pytest.raises(ValueError, match=r"`gradients`. Expected \(3, 4\) for 0.kernel. Received: .*\(1, 4\)"):
        pndx.note_gradients(model, narrow)


def test_modules_with_one_kernel_note_its_gradient():
    def make():
        return pndx.DynamicDropConnectLinear(4, 4, seed=1, rngs=nnx.Rngs(0))

    model, x = nnx.Dict(z=make(), plain=nnx.Linear(4, 4, rngs=nnx.Rngs(1)), again=make()), inputs(5, 4)
    model.plain.kernel = model.again.kernel = model.z.kernel

    @nnx.jit
    def step(model):
        found = nnx.grad(lambda model: (model.again(model.plain(model.z(x))) ** 2).sum())(model)
        pndx.note_gradients(model, found)
        return found

    found = step(model)
    for layer in (model.z, model.again):
        np.testing.assert_array_equal(layer.gradient[...], found["again"]["kernel"][...])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_gradient_that_overflows_is_not_noted(value):
    layer = pndx.DynamicDropConnectLinear(3, 4, seed=1, rngs=nnx.Rngs(0))
    gradient = inputs(3, 4)
    pndx.note_gradients(layer, nnx.State({"kernel": nnx.Param(gradient)}))
    pndx.note_gradients(layer, nnx.State({"kernel": nnx.Param(jax.numpy.asarray(gradient).at[1, 2].set(value))}))
    np.testing.assert_array_equal(layer.gradient[...], gradient)


def split_call(layer, x):
    """A call for each sample, whose streams are split."""
    axes = nnx.StateAxes({nnx.RngState: 0, ...: None})
    return nnx.split_rngs(splits=len(x))(nnx.vmap(lambda layer, x: layer(x), in_axes=(axes, 0)))(layer, x)


def test_samples_that_are_mapped_have_the_masks_of_their_split_keys():
    layer, x = pndx.PerNodeLinear(3, 4, rate=0.5, seed=7, rngs=rngs()), inputs(5, 3)
    seeds = np.asarray(word_of(jax.random.split(nnx.Rngs(noise=7).noise(), 5)))[:, 0]
    expected = [masked(x[n : n + 1], layer.kernel[...], (int(seed), 0))[0] for n, seed in enumerate(seeds)]
    np.testing.assert_allclose(split_call(layer, x), expected, atol=1e-6)
    assert (layer.seed, layer.updates) == (7, 1)


def test_splitting_streams_changes_neither_fixed_masks_nor_schedules():
    x = inputs(5, 3)
    fixed = pndx.PerNodeLinear(3, 4, rate=0.5, regime="fixed", seed=7, rngs=rngs())
    np.testing.assert_allclose(split_call(fixed, x), fixed(x), atol=1e-6)
    layer = pndx.Dropout(pnd.schedules.Step([0.0, 0.9], [1]), seed=7)
    np.testing.assert_array_equal(split_call(layer, x), x)
    assert (split_call(layer, x) != x).any()
    assert layer.updates == 2


def test_views_and_modes():
    layer, x = pndx.PerNodeLinear(3, 4, seed=1, rngs=rngs()), inputs(5, 3)
    plain = np.asarray(x @ layer.kernel[...])
    for quiet in (nnx.view(layer, deterministic=True), pndx.PerNodeLinear.from_linear(layer.fold(), seed=2)):
        quiet.eval()
        np.testing.assert_allclose(quiet(x), plain, atol=1e-6)
        assert (np.asarray(quiet(x, deterministic=False)) != plain).any()
    assert layer.deterministic is False


def test_numbers_are_no_parameters_and_casts_do_not_round_them():
    layer = pndx.PerNodeLinear(3, 4, rate=0.123456, noise="gaussian", seed=2**31 + 5, rngs=rngs())
    assert {type(v) for v in jax.tree.leaves(nnx.state(layer, nnx.Param), is_leaf=lambda v: True)} == {nnx.State}
    half = jax.tree.map(lambda a: a.astype("bfloat16") if a.dtype == "float32" else a, nnx.state(layer))
    nnx.update(layer, half)
    assert (layer.rate, layer.seed) == (0.123456, 2**31 + 5)
    assert layer(inputs(5, 3).astype("bfloat16")).dtype == "bfloat16"
    assert pndx.PerNodeLinear(3, 4, dtype="bfloat16", rngs=rngs(noise=1))(inputs(5, 3)).dtype == "bfloat16"


def test_a_convolution_tells_its_noise_beside_the_mask_that_nnx_has():
    layer = pndx.PerNodeConv(1, 1, (3,), rate=0.3, seed=1, mask=jnp.ones((3, 1, 1)), rngs=rngs())
    layer.rate = 0.2
    assert (layer.noise, layer.rate, layer.mask.shape) == (pnd.Bernoulli(0.2), 0.2, (3, 1, 1))
    assert layer.is_stochastic


def test_a_module_whose_numbers_nobody_has_is_printed_as_nnx_does():
    layer, shown = pndx.PerNodeLinear(3, 4, seed=7, rngs=rngs()), []
    nnx.jit(lambda layer: shown.append(repr(layer)))(layer)
    shown.append(repr(nnx.eval_shape(lambda: pndx.PerNodeLinear(3, 4, seed=7, rngs=rngs()))))
    stacked = nnx.split_rngs(splits=2)(nnx.vmap(lambda streams: pndx.PerNodeLinear(3, 4, rngs=streams)))
    shown.append(repr(stacked(nnx.Rngs(0))))
    for one in shown:
        assert "noise_numbers={" in one
    bare = repr(pndx.Dropout(0.5))  # whose calls bring their keys
    assert "noise=Bernoulli(rate=0.5)" in bare
    assert "seed=" not in bare


# models


class Network(nnx.Module if keras.backend.backend() == "jax" else object):
    def __init__(self):
        streams = rngs()
        self.conv = nnx.Conv(1, 1, (3, 3), padding="VALID", rngs=streams)
        self.blocks = nnx.List([nnx.Linear(8, 8, rngs=streams) for _ in range(2)])
        self.blocks.append(self.blocks[0])
        self.heads, self.head = nnx.Linear(8, 8, rngs=streams), nnx.Linear(8, 2, rngs=streams)

    def __call__(self, x):
        y = self.conv(x).reshape(len(x), -1)
        for layer in (*self.blocks, self.heads, self.head):
            y = layer(y)
        return y


@pytest.mark.parametrize(
    ("rule", "arguments", "chosen"),
    [
        ("all-linear", {"exclude": "head"}, "blocks.0 blocks.1 heads"),
        ("all-conv", {"regularizer": "drop_connect"}, "conv"),
        (r"blocks\.1", {}, "blocks.1"),
        (["head", "all-conv"], {}, "conv head"),
    ],
)
def test_apply_changes_what_is_chosen(rule, arguments, chosen):
    plain, x = Network(), inputs(3, 4, 6, 1)
    model = pndx.apply(plain, rule, rate=0.5, seed=1, **arguments)
    noisy = {".".join(map(str, path)) for path, one in nnx.iter_modules(model) if hasattr(one, "noise_numbers")}
    assert noisy == {*chosen.split()}
    parameters = jax.tree.leaves(nnx.state(plain, nnx.Param)), jax.tree.leaves(nnx.state(model, nnx.Param))
    assert all(a is b for a, b in zip(*parameters, strict=True))
    assert (np.asarray(model(x)) != plain(x)).any()
    model.eval()
    np.testing.assert_array_equal(model(x), plain(x))
    folded = pndx.fold(model)
    assert jax.tree.structure(nnx.state(folded)) == jax.tree.structure(nnx.state(plain))
    np.testing.assert_array_equal(folded(x), plain(x))
    assert folded.head.kernel is not plain.head.kernel


def test_apply_keeps_one_module_one_and_gives_each_a_seed_by_its_name():
    models = [pndx.apply(Network(), rule, rate=0.5, seed=1) for rule in ("all-linear", "head")]
    assert models[0].blocks[0] is models[0].blocks[2]
    assert len({one.seed for _, one in nnx.iter_modules(models[0]) if hasattr(one, "noise_numbers")}) == 4
    assert models[0].head.seed == models[1].head.seed
    streams = nnx.Rngs(noise=5)
    of_streams = pndx.apply(Network(), "all-linear", rate=0.5, rngs=streams)
    assert len({of_streams.head.seed, of_streams.heads.seed, of_streams.blocks[1].seed}) == 3
    assert int(streams.noise.count[...]) == 4


def test_a_function_says_what_stands_where():
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs()), nnx.Dropout(0.5))

    def rule(name, module):
        return pndx.Dropout(module.rate, seed=1) if isinstance(module, nnx.Dropout) else None

    assert type(pndx.apply(model, rule).layers[1]) is pndx.Dropout
    assert type(pndx.apply(nnx.Linear(3, 4, rngs=rngs()), nnx.Linear, seed=1)) is pndx.PerNodeLinear


class Own(nnx.Linear if keras.backend.backend() == "jax" else object):
    def __call__(self, x):
        return x


def stacked(make=lambda rngs: pndx.Dropout(0.5, rngs=rngs)):
    return nnx.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(jax.random.key(0), 2))


def stacked_dynamic():
    prefer = {"prefer": "small_gradient+small_weight", "gradient_rate": 0.2, "weight_rate": 0.2}
    return stacked(lambda rngs: pndx.DynamicDropConnectLinear(3, 4, **prefer, rngs=rngs))


def linear(**arguments):
    return pndx.PerNodeLinear(3, 4, **{"rngs": rngs(), "seed": 1, **arguments})


REFUSALS = {
    "no model": (lambda: pndx.apply(3, "all-linear"), "`model`. Expected a flax.nnx.Module"),
    "nothing": (lambda: pndx.apply(Network(), "tail", rate=0.5), "what takes noise: .*'head'"),
    "nothing excluded": (lambda: pndx.apply(Network(), "head", exclude="conv", seed=1), "`exclude`"),
    "rule": (lambda: pndx.apply(Network(), 3), "`rule`"),
    "own call": (lambda: pndx.apply(nnx.Sequential(Own(1, 1, rngs=rngs())), "all-linear"), r"leaves out 'layers\.0'"),
    "twice": (lambda: pndx.apply(linear(), "all-linear"), "has noise already"),
    "result": (lambda: pndx.apply(Network(), lambda *_: 3), "returns a flax.nnx.Module or None"),
    "bank": (lambda: pndx.fold(linear(regime="bank", bank_size=2)), "`regime`"),
    "positions": (lambda: pndx.fold(linear(regime="fixed", sharing=())), "`sharing`.*one for all positions"),
    "class": (lambda: pndx.PerNodeLinear.from_linear(Network().conv), "an nnx.Linear without noise"),
    "no stream": (lambda: linear(seed=None), "'noise' or 'default' among them, or .seed=."),
    "streams": (lambda: pndx.Dropout(0.5, rngs=3), "`rngs`"),
    "streams beside a seed": (lambda: pndx.Dropout(0.5, seed=1, rngs=3), "`rngs`.*nnx.Rngs"),
    "no key": (lambda: pndx.Dropout(0.5)(inputs(5, 3)), "or a key in the call"),
    "two keys": (lambda: linear()(inputs(5, 3), rngs=rngs(noise=1), key=(1, 0)), "None beside `key`"),
    "ids": (lambda: linear(sharing="sample")(inputs(5, 3), sample_ids=jnp.arange(5)), "the same for all samples"),
    "no ids": (lambda: linear(regime="example")(inputs(5, 3)), "the examples' ids"),
    "features": (lambda: linear()(inputs(5, 4)), "3 features"),
    "channels": (lambda: pndx.PerNodeConv(3, 4, (1,), rngs=rngs(noise=1))(inputs(5, 3, 4)), r"\(batch, \*space, 3\)"),
    "product": (lambda: linear(dot_general=lambda *_, **__: 0), "`dot_general`"),
    "precision": (lambda: linear(precision="highest"), "`precision`"),
    "dilation": (lambda: pndx.PerNodeConv(3, 4, (1,), input_dilation=2, rngs=rngs(noise=1)), "`input_dilation`"),
    "sharding": (lambda: linear()(inputs(5, 3), jax.P()), "`out_sharding`"),
    "deterministic": (lambda: linear(deterministic=0), "`deterministic`"),
    "number": (lambda: linear()(1.0), "`inputs`.*a tensor of jax.*float"),
    "number of all": (lambda: pndx.Dropout(0.5, seed=1)(1.0), "`inputs`.*a tensor of jax.*float"),
    "scalar": (lambda: pndx.DropPath(0.5, seed=1)(jnp.ones(())), "`inputs`.*samples in the first axis"),
    "integers": (lambda: pndx.Dropout(0.5, seed=1)(jnp.arange(3)), "a floating dtype"),
    "rank": (lambda: pndx.SpatialDropout(0.5, seed=1)(inputs(5, 3)), "rank from 3"),
    "no noise": (lambda: pndx.uncertainty.predict(nnx.Linear(3, 4, rngs=rngs()), inputs(5, 3)), "with noise modules"),
    "no module": (lambda: pndx.uncertainty.predict(3, inputs(5, 3)), "a flax.nnx.Module, or a list"),
    "objects": (lambda: pndx.uncertainty.predict(pndx.Dropout(0.5), np.array([None])), "`x`.*an array of numbers"),
    "outputs": (
        lambda: pndx.uncertainty.predict(nnx.Sequential(pndx.Dropout(0.5), jnp.sum), inputs(5, 3)),
        "5 samples",
    ),
    "stack": (lambda: stacked().rate, "`rate`.*that of one module"),
    "gradient rate of a stack": (lambda: stacked_dynamic().gradient_rate, "`gradient_rate`.*that of one module"),
    "weight rate of a stack": (lambda: stacked_dynamic().put_rise("weight_rate", 0.1), "`weight_rate`.*one module"),
    "persistence of a stack": (
        lambda: stacked(lambda rngs: pndx.PerNodeLinear(3, 4, persistence=0.5, rngs=rngs)).persistence,
        "`persistence`.*that of one module",
    ),
}


class Held:
    """What JAX takes for an array, as it takes variables of others."""

    shape = (5, 3)

    def __jax_array__(self):
        return inputs(*self.shape)


def test_variables_and_arrays_of_numpy_are_inputs_too():
    x = inputs(5, 3)
    np.testing.assert_array_equal(pndx.Dropout(0.5, seed=1)(Held()), pndx.Dropout(0.5, seed=1)(x))
    for given in (nnx.Param(x), np.asarray(x)):
        np.testing.assert_array_equal(linear()(given), linear()(x))
        np.testing.assert_array_equal(pndx.Dropout(0.5, seed=1)(given), pndx.Dropout(0.5, seed=1)(x))


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_refused(case):
    call, words = REFUSALS[case]
    with pytest.raises((TypeError, ValueError), match=words):
        call()


class Block(nnx.Module if keras.backend.backend() == "jax" else object):
    """A block of a transformer."""

    def __init__(self, streams):
        self.attend = nnx.MultiHeadAttention(2, 8, decode=False, rngs=streams)
        self.norms = nnx.List([nnx.LayerNorm(8, rngs=streams) for _ in range(2)])
        self.up, self.down = nnx.Linear(8, 16, rngs=streams), nnx.Linear(16, 8, rngs=streams)
        self.drop = nnx.Dropout(0.1, rngs=streams)

    def __call__(self, x):
        x = x + self.drop(self.attend(self.norms[0](x)))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class Transformer(nnx.Module if keras.backend.backend() == "jax" else object):
    """One that tells classes of sequences apart."""

    def __init__(self):
        streams = nnx.Rngs(0)
        self.embed, self.block = nnx.Embed(11, 8, rngs=streams), Block(streams)
        self.head = nnx.Linear(8, 3, rngs=streams)

    def __call__(self, tokens):
        return self.head(self.block(self.embed(tokens)).mean(1))


def test_a_transformer_is_changed_trained_resumed_folded_and_asked_how_sure_it_is(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint", reason="Flax brings it")
    optax = pytest.importorskip("optax", reason="Flax brings it")
    tokens = np.random.default_rng(0).integers(0, 11, (32, 6))
    labels, losses = tokens[:, 0] % 3, []

    def begun():
        model = pndx.apply(Transformer(), "all-linear", rate=0.2, seed=1, exclude="head")
        return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(tokens), labels).mean()

    @nnx.jit
    def step(model, optimizer):
        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    whole = begun()
    for n in range(10):
        if n == 5:
            with checkpoint.StandardCheckpointer() as saver:
                saver.save(tmp_path / "state", nnx.state(whole))
        losses.append(step(*whole))
    graph, fresh = nnx.split(begun())
    with checkpoint.StandardCheckpointer() as saver:
        model, optimizer = nnx.merge(graph, saver.restore(tmp_path / "state", fresh))
    for _ in range(5):
        step(model, optimizer)
    parameters = (jax.tree.leaves(nnx.state(one, nnx.Param)) for one in (model, whole[0]))
    assert all((a == b).all() for a, b in zip(*parameters, strict=True))
    assert (model.block.down.updates, type(model.head)) == (10, nnx.Linear)
    assert min(losses[5:]) < min(losses[:5])

    found = pndx.uncertainty.predict(model, tokens, 4, seed=1, batch_size=10, from_logits=True)
    assert found.mutual_information.min() > 0
    model.eval()
    folded, forward = pndx.fold(model), nnx.jit(lambda model: model(tokens))
    np.testing.assert_allclose(forward(folded), forward(model), atol=1e-6)
    assert not any(hasattr(one, "noise") for _, one in nnx.iter_modules(folded))


# uncertainty


def counted(traces):
    """A function of the network that says when it is traced."""
    return lambda x: traces.append(x.shape) or nnx.relu(x)


def test_a_prediction_is_that_of_the_same_network_in_keras():
    traces, dense = [], [keras.layers.Dense(8), keras.layers.Dense(3)]
    hidden, last = pndx.PerNodeLinear(6, 8, rate=0.5, seed=1, rngs=rngs()), nnx.Linear(8, 3, rngs=rngs())
    native = nnx.Sequential(hidden, counted(traces), pndx.Dropout(0.3), last)
    model = keras.Sequential(
        [keras.Input((6,)), pnd.PerNodeDrop(dense[0], rate=0.5), keras.layers.ReLU(), pnd.Dropout(0.3), dense[1]]
    )
    for layer, module in zip(dense, (hidden, last), strict=True):
        layer.set_weights([module.kernel[...], module.bias[...]])
    x, before = inputs(11, 6), jax.tree.leaves(nnx.state(native, nnx.Not(nnx.RngKey)))
    expected = pnd.uncertainty.predict(model, x, samples=4, seed=3, from_logits=True, keep=True)
    for size in (4, 11):
        found = pndx.uncertainty.predict(native, x, samples=4, seed=3, from_logits=True, keep=True, batch_size=size)
        np.testing.assert_allclose(found.outputs, expected.outputs, atol=1e-6)
        np.testing.assert_allclose(found.mutual_information, expected.mutual_information, atol=1e-6)
    assert traces == [(4, 8), (11, 8)]
    assert all(a is b for a, b in zip(before, jax.tree.leaves(nnx.state(native, nnx.Not(nnx.RngKey))), strict=True))
    assert (hidden.seed, hidden.updates, hidden.deterministic, native.layers[2].rngs) == (1, 0, False, None)


def test_a_module_that_is_not_chosen_is_quiet_and_a_bank_then_goes_by_places():
    bank = pndx.PerNodeLinear(6, 4, rate=0.5, regime="bank", bank_size=2, seed=1, rngs=rngs())
    model, x = nnx.Sequential(bank, nnx.Dropout(0.5, rngs=rngs(dropout=1)), pndx.Dropout(0.5)), inputs(5, 6)
    plain = bank(x)
    for chosen in ([model.layers[2]], ["layers.2"], "last"):
        found = pndx.uncertainty.predict(model, x, 3, batch_size=2, seed=1, layers=chosen, keep=True)
        for n, y in enumerate(found.outputs):
            mask = pndx.Dropout(0.5)(jnp.ones((5, 4)), key=(word_of_pass(1, 0, n), 0))
            np.testing.assert_allclose(y, plain * mask, atol=1e-6)
    members = pndx.uncertainty.predict(model, x, layers=[bank], keep=True)
    expected = [bank(x, sample_ids=jnp.full(5, member)) for member in range(2)]
    np.testing.assert_allclose(members.outputs, expected, atol=1e-6)


def test_modules_of_flax_drop_by_the_seed_and_norms_stay():
    class Dropping(nnx.Module):
        def __init__(self):
            streams = nnx.Rngs(0)
            self.norm = nnx.BatchNorm(6, rngs=streams)
            self.attend = nnx.MultiHeadAttention(2, 6, dropout_rate=0.5, decode=False, rngs=streams)
            self.drop = nnx.Dropout(0.5, rngs=streams)

        def __call__(self, x):
            return self.drop(self.attend(self.norm(x)))

    model, x = Dropping(), inputs(5, 3, 6)
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat, nnx.RngCount))))
    drops = [pndx.uncertainty.predict(model, x, 2, seed=seed, probabilities=False).mean for seed in (1, 1, 2)]
    np.testing.assert_array_equal(drops[0], drops[1])
    assert (drops[0] != drops[2]).any()
    for chosen in ("attend", "drop"):
        assert pndx.uncertainty.predict(model, x, 2, seed=1, layers=[chosen], probabilities=False).variance.any()
    after = nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat, nnx.RngCount)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert (model.drop.deterministic, model.norm.use_running_average) == (False, False)


def test_layers_that_were_stacked_and_calls_that_are_mapped_have_a_seed_each_in_a_pass():
    class Stack(nnx.Module):
        def __init__(self):
            make = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: pndx.PerNodeLinear(3, 3, rate=0.5, rngs=rngs)))
            self.blocks, self.drop = make(nnx.Rngs(0)), pndx.Dropout(0.5, seed=1)

        def __call__(self, x):
            return nnx.scan(lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.blocks, x)

    class Mapped(Stack):
        def __call__(self, x):
            return split_call(self.drop, x)

    x = inputs(5, 3)
    found = pndx.uncertainty.predict(Stack(), x, 2, batch_size=2, seed=1, probabilities=False, keep=True)
    for n, y in enumerate(found.outputs):
        expected, keys = x, jax.random.split(jax.random.key(word_of_pass(1, 0, n)), 3)
        for one, kernel in zip(keys, Stack().blocks.kernel[...], strict=True):
            expected = masked(expected, kernel, (int(word_of(one)[0]), 0))
        np.testing.assert_allclose(y, expected, atol=1e-5)
    y = pndx.uncertainty.predict(Mapped(), jnp.ones((5, 64)), 2, seed=1, probabilities=False, keep=True).outputs
    assert len({tuple(row) for row in y.reshape(-1, 64)}) == 10  # of random rows two are equal below 1e-17


def test_masks_of_examples_are_fresh_in_each_pass():
    layer, x = pndx.PerNodeLinear(3, 4, regime="example", seed=5, use_bias=False, rngs=rngs()), inputs(5, 3)
    found = pndx.uncertainty.predict(layer, {"inputs": x}, 2, seed=1, probabilities=False, keep=True)
    for n, y in enumerate(found.outputs):
        np.testing.assert_allclose(y, masked(x, layer.kernel[...], (word_of_pass(1, 0, n), 0)), atol=1e-6)

"""What Keras itself gets wrong about noise, as reproduced on Keras 3.15, and these layers must not."""

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from tests.__main__ import has_keras
from tests.family import FAMILY, host, inputs
from tests.frameworks import needs_training
from tests.processes import child
from tests.test_layers import BACKEND, OF_EACH_KIND, mask


def sgd_step(x, y, w, m):
    """The kernel after one SGD step at learning rate 1 on the mean squared error of the masked product."""
    error = np.einsum("bi,io,bio->bo", x, w, m) - y
    return w - 2 / y.size * np.einsum("bi,bo,bio->io", x, error, m)


def test_neighbouring_seeds_and_calls_do_not_overlap():
    """On torch, Keras' Dropout(seed=1) at step 2 equals Dropout(seed=2) at step 1."""
    x = np.ones((8, 64), "float32")
    first, second = pnd.Dropout(0.5, seed=1), pnd.Dropout(0.5, seed=2)
    drawn = [host(layer(x, training=True)) for layer in (first, second) for _ in range(3)]
    # two independent masks of 512 fair bits agree on fewer than 190 or more than 322 with probability 5e-9 a pair
    agreements = [(a == b).sum() for n, a in enumerate(drawn) for b in drawn[:n]]
    assert min(agreements) > 190
    assert max(agreements) < 322


def test_layers_without_a_seed_differ_and_repeat_with_keras_seeding():
    x = np.ones((8, 64), "float32")

    def two():
        keras.utils.set_random_seed(3)
        return [host(pnd.Dropout(0.5)(x, training=True)) for _ in range(2)]

    first, again = two(), two()
    assert not (first[0] == first[1]).all()
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("seed", [0, -1, 2**31, 2**32 - 1, 2**32, 10**30])
def test_any_integer_is_a_seed(seed):
    """Keras' SeedGenerator raises from 2**31 on torch and for -1 on JAX."""
    layer, x = pnd.Dropout(0.5, seed=seed), np.ones((2, 8), "float32")
    expected = mask((2, 8, 1), key=(seed, 0))[:, :, 0]
    np.testing.assert_array_equal(host(layer(x, training=True)), expected)


class Rematerialized(keras.Model):
    """One noisy layer; `drawn` says where the key comes from when the call is inside `keras.remat`."""

    def __init__(self, layer, drawn=None):
        super().__init__()
        self.noisy, self.drawn = layer, drawn

    def call(self, x, training=None):
        if not self.drawn:
            return self.noisy(x, training=training)
        key = self.noisy.draw() if training and self.drawn == "outside" else None
        return keras.remat(lambda x: self.noisy(x, training=training, key=key))(x)


def fit_once(model, jit_compile=False):
    x, y = inputs(21, 6), inputs(21, 5)
    model(x)
    before = host(model.noisy.layer.kernel)
    model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=jit_compile)
    model.fit(x, y, batch_size=21, epochs=1, verbose=0, shuffle=False)
    return host(model.noisy.layer.kernel), sgd_step(x, y, before, mask((21, 6, 5)))


@needs_training
@pytest.mark.parametrize("jit_compile", [False, True] if BACKEND == "tensorflow" else [BACKEND == "jax"])
def test_remat_scope_differentiates_the_mask_it_applied(jit_compile):
    with keras.RematScope("full"):
        layer = pnd.PerNodeDense(5, use_bias=False, seed=1)
    model = Rematerialized(layer)
    after, expected = fit_once(model, jit_compile)
    np.testing.assert_allclose(after, expected, atol=1e-6)
    assert host(layer._key).tolist() == [1, 1]


@needs_training
def test_remat_of_a_function_with_a_key_drawn_outside_is_exact():
    model = Rematerialized(pnd.PerNodeDense(5, use_bias=False, seed=1), drawn="outside")
    after, expected = fit_once(model, jit_compile=BACKEND == "jax")
    np.testing.assert_allclose(after, expected, atol=1e-6)


@needs_training
def test_remat_of_a_function_with_an_undrawn_key_is_refused():
    model = Rematerialized(pnd.PerNodeDense(5, use_bias=False, seed=1), drawn="inside")
    if BACKEND == "jax":
        # the draw leaks a tracer, which JAX refuses by itself when the key is written back
        with pytest.raises(Exception, match=r"[Tt]racer"):
            fit_once(model, jit_compile=True)
    else:
        with pytest.raises(RuntimeError, match=r"layer\.draw\(\)"):
            fit_once(model)


@needs_training
def test_a_new_rate_takes_effect_after_compilation():
    layer = pnd.PerNodeDense(6, rate=0.5, use_bias=False, seed=1, kernel_initializer="identity")
    model = keras.Sequential([keras.Input((6,)), layer])
    x = np.ones((8, 6), "float32")
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=BACKEND != "torch")

    def loss():  # mean of (1 - m)**2 over the diagonal of the masks, and 1/6 of the entries is on the diagonal
        key = tuple(int(n) for n in host(layer._key))
        m = np.einsum("bii->bi", mask((8, 6, 6), pnd.Bernoulli(layer.rate), key))
        return model.fit(x, x, batch_size=8, verbose=0).history["loss"][0], np.mean((m - 1) ** 2)

    np.testing.assert_allclose(*loss(), rtol=1e-6)
    layer.rate = 0.25
    assert layer.noise == pnd.Bernoulli(0.25)
    np.testing.assert_allclose(*loss(), rtol=1e-6)
    layer.rate = 0.0
    assert loss() == (0.0, 0.0)


def test_a_rate_is_saved_with_the_weights(tmp_path):
    layer, again = pnd.PerNodeDense(5, rate=0.5, seed=1), pnd.PerNodeDense(5, rate=0.1, seed=2)
    models = [keras.Sequential([keras.Input((6,)), each]) for each in (layer, again)]
    layer.rate = 0.3
    models[0].save_weights(tmp_path / "model.weights.h5")
    models[1].load_weights(tmp_path / "model.weights.h5")
    assert again.noise.threshold == pnd.Bernoulli(0.3).threshold
    assert again.rate == type(layer).from_config(layer.get_config()).rate == 0.3


@needs_training
def test_model_checkpoint_restores_the_next_mask(tmp_path):
    def model():
        return keras.Sequential([keras.Input((6,)), pnd.Dropout(0.5, seed=1), keras.layers.Dense(2)])

    first, x, y = model(), inputs(20, 6), inputs(20, 2)
    first.compile("sgd", "mse")
    saving = keras.callbacks.ModelCheckpoint(tmp_path / "model.keras")
    first.fit(x, y, batch_size=8, epochs=2, callbacks=[saving], verbose=0)
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert host(again.layers[0]._key).tolist() == [1, 6]
    np.testing.assert_array_equal(host(again(x, training=True)), host(first(x, training=True)))


@needs_training
def test_backup_and_restore_resumes_the_very_run(tmp_path):
    class Crash(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise InterruptedError

    def run(*callbacks):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((6,)), FAMILY["per_node_drop"].make(), pnd.Dropout(0.3), keras.layers.Dense(2)]
        )
        model.compile("adam", "mse")
        model.fit(x, y, batch_size=8, epochs=3, shuffle=False, callbacks=list(callbacks), verbose=0)
        return model

    x, y = inputs(20, 6), inputs(20, 2)
    backup = tmp_path / "backup"
    with pytest.raises(InterruptedError):
        run(keras.callbacks.BackupAndRestore(backup), Crash())
    resumed, whole = run(keras.callbacks.BackupAndRestore(backup)), run()
    for a, b in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.skip_backend("numpy", reason="compares this backend with NumPy")
@pytest.mark.skipif(not has_keras("numpy"), reason="Keras' NumPy backend needs jax")
def test_state_crosses_backends(tmp_path):
    """Weights saved here draw the same next masks on NumPy, and the other way round."""
    model = keras.Sequential([keras.Input((6,)), pnd.Dropout(0.5, seed=2**31 + 5), pnd.PerNodeDense(4, seed=-3)])
    x = np.ones((3, 6), "float32")
    model(x, training=True)
    model.save_weights(tmp_path / "here.weights.h5")
    there = child("next_mask.py", tmp_path / "here.weights.h5", tmp_path / "there.weights.h5", backend="numpy")
    np.testing.assert_allclose(host(model(x, training=True)), there["first"], atol=1e-6)
    model.load_weights(tmp_path / "there.weights.h5")
    np.testing.assert_allclose(host(model(x, training=True)), there["second"], atol=1e-6)


def test_dtype_policy_survives_reload():
    """Keras' SpatialDropout comes back in float32."""
    for layer in (pnd.Dropout(0.5, dtype="mixed_bfloat16"), FAMILY["per_node_drop"].make(dtype="mixed_float16")):
        assert type(layer).from_config(layer.get_config()).dtype_policy == layer.dtype_policy


def test_wrapper_takes_the_inner_layer_s_dtype_policy():
    layer = pnd.PerNodeDrop(keras.layers.Dense(4, dtype="mixed_bfloat16"))
    assert layer.dtype_policy.name == "mixed_bfloat16"
    assert keras.backend.standardize_dtype(layer(inputs(2, 6), training=True).dtype) == "bfloat16"


def test_lora_of_the_inner_layer_is_in_the_kernel():
    layer, x = pnd.PerNodeDense(5, rate=0.0, seed=1), inputs(4, 6)
    layer(x)
    layer.layer.enable_lora(2)
    layer.layer.lora_kernel_b.assign(np.ones((2, 5)))
    assert not np.allclose(host(layer(x)), x @ host(layer.layer._kernel))
    np.testing.assert_allclose(host(layer(x, training=True)), host(layer(x)), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: keras.layers.Dense(5), (4, 6)),
        (lambda: keras.layers.EinsumDense("abc,cde->abde", output_shape=(None, 3, 4)), (4, 7, 6)),
    ],
)
@pytest.mark.parametrize("lora", [False, True])
def test_int8_kernel_is_read_in_floating_point(make, shape, lora):
    """Keras' `kernel` gives the raw int8 numbers here, up to 127 times the kernel and more."""
    layer, x = pnd.PerNodeDrop(make(), rate=0.0, seed=1), inputs(*shape)
    model = keras.Sequential([keras.Input(shape[1:]), layer])
    model.quantize("int8")
    if lora:
        layer.layer.enable_lora(2)
        layer.layer.lora_kernel_b.assign(np.ones(layer.layer.lora_kernel_b.shape))
    np.testing.assert_allclose(host(layer(x, training=True)), host(layer(x)), atol=0.06)


@pytest.mark.filterwarnings("ignore")
def test_int4_training_is_refused():
    layer = pnd.PerNodeDense(5, seed=1)
    model = keras.Sequential([keras.Input((6,)), layer])
    model.quantize("int4")
    with pytest.raises(NotImplementedError, match=r"'int4'.*pernodedrop\.fold"):
        layer(inputs(4, 6), training=True)


@pytest.mark.only_backend("tensorflow", reason="tf.distribute is TensorFlow's")
def test_mirrored_replicas_have_the_masks_of_one_device():
    """Keras' Dropout draws equal masks on every replica; 21 samples on 2 replicas make ragged batches.

    Blocks are scaled by what the whole batch keeps.
    """
    seen = child("mirrored.py")
    assert seen["replicas"] == 2
    assert seen["mirrored"] == seen["alone"]
    assert len(np.unique(seen["alone"])) == 2 + 3  # of a kernel, and of blocks in three batches
    assert seen["keys"] == [1, 3]
    np.testing.assert_allclose(*seen["predicted"], atol=1e-6)
    assert "within the scope" in seen["refusal"]


@pytest.mark.slow
@pytest.mark.only_backend("tensorflow", reason="tf.distribute is TensorFlow's")
def test_workers_have_the_masks_of_one_process():
    """Two processes of a MultiWorkerMirroredStrategy, with 4 and 3 of the samples."""
    seen = child("multi_worker.py")
    assert seen["workers"] == seen["alone"]
    assert np.unique(seen["alone"]).tolist() == [0, 2]


@pytest.mark.only_backend("jax", reason="keras.distribution and shard_map are JAX's")
def test_every_engine_of_jax_has_the_masks_of_one_device():
    """To the bit; and a model that was fitted has a kernel that differs by the order of sums. Blocks as above."""
    import jax

    seen = child("data_parallel.py", XLA_FLAGS="--xla_force_host_platform_device_count=4")
    assert seen["devices"] == 4
    for engine in ("DataParallel", "ModelParallel, outputs", "ModelParallel, inputs"):
        assert seen[engine]["mask"] == seen["alone"]["mask"], engine
        np.testing.assert_allclose(seen[engine]["kernel"], seen["alone"]["kernel"], atol=1e-6)
    if hasattr(jax, "shard_map"):  # JAX 0.6.0 has it as an experiment only
        assert seen["op in shard_map"] == seen["op"]
        assert seen["blocks in shard_map"] == seen["blocks"]
    assert np.unique(seen["blocks"]).size == 2


@needs_training
def test_parts_of_a_batch_accumulate_to_the_whole_with_one_key():
    """Rows of the identity and a kernel of ones show the entries of masks themselves."""
    layer = pnd.PerNodeDense(5, rate=0.5, use_bias=False, seed=1, kernel_initializer="ones")
    x, key = np.eye(6, dtype="float32")[np.arange(9) % 6], (1, 3)
    whole = host(layer(x, training=True, key=key))
    ids = np.arange(9)
    parts = [host(layer(x[some], training=True, key=key, sample_ids=ids[some])) for some in (ids[:4], ids[4:])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert np.unique(whole).size == 2
    assert not np.array_equal(host(layer(x[4:], training=True, key=key)), parts[1])


# Keras' own MultiHeadAttention and RNN break the graph: at flash attention, and at the states of a cell
KERAS_BREAKS = ("noisy_attention", "noisy_rnn_samples", "noisy_rnn_inputs", "zoneout")
torch_only = pytest.mark.only_backend("torch", reason="torch.compile is torch's")


@pytest.mark.slow
@torch_only
@pytest.mark.parametrize("name", [name for name in FAMILY if name not in KERAS_BREAKS])
def test_what_is_compiled_has_no_graph_break_and_the_same_masks(name):
    """A layer of each kind is in a model, the others are alone."""
    import torch

    case = FAMILY[name]
    layer, x = (case.model(), inputs(4, 6)) if name in OF_EACH_KIND else (case.make(), case.inputs(4))
    x = keras.tree.map_structure(torch.from_numpy, x)
    layer(x)
    state = [host(variable).copy() for variable in layer.non_trainable_variables]

    def step(run):
        for variable, value in zip(layer.non_trainable_variables, state, strict=True):
            variable.assign(value)
        layer.zero_grad()
        y = run(x, training=True)
        if y.requires_grad:
            y.sum().backward()
        return [host(y.detach()), *(host(p.grad) for p in layer.parameters() if p.grad is not None)]

    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for got, wanted in zip(step(compiled), step(layer), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.slow
@torch_only
def test_compiled_remat_with_a_key_drawn_outside_is_exact():
    """Without an opaque draw the compiled backward pass reads the advanced state and makes another mask."""
    import torch

    layer = pnd.PerNodeDense(5, use_bias=False, seed=1)
    x = torch.from_numpy(inputs(21, 6))
    layer(x)

    @torch.compile(backend="aot_eager")
    def loss(x):
        key = layer.draw()
        run = torch.utils.checkpoint.checkpoint
        return run(lambda x: layer(x, training=True, key=key), x, use_reentrant=False).sum()

    loss(x).backward()
    expected = np.einsum("bi,bio->io", host(x), mask((21, 6, 5)))
    np.testing.assert_allclose(host(layer.layer.kernel.value.grad), expected, atol=1e-5)


@pytest.mark.slow
@torch_only
def test_compiled_fit_breaks_no_more_than_dense(monkeypatch):
    import torch
    from torch._dynamo.utils import counters

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_(function, backend="eager"))

    def breaks(layer):
        torch._dynamo.reset()
        counters.clear()
        model = keras.Sequential([keras.Input((6,)), layer, keras.layers.Dense(2)])
        model.compile("sgd", "mse", jit_compile=True)
        model.fit(inputs(8, 6), inputs(8, 2), batch_size=8, verbose=0)
        return sum(counters["graph_break"].values())

    assert breaks(FAMILY["per_node_drop"].make()) <= breaks(keras.layers.Dense(5))


@pytest.fixture
def warned(monkeypatch):
    """Nobody was warned yet."""
    from pernodedrop.layers.base import module

    monkeypatch.setattr(module, "_WARNED", [])


def in_torch(layer, passes=False):
    """A module of torch that holds a layer, and passes its mode to it or does not."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x, training=self.training) if passes else self.layer(x)

    return Net()


def models_around(layer):
    """How a Keras layer is held, alone, in a functional model and in a Sequential one."""
    x = keras.Input((6,))
    return [layer, keras.Model(x, layer(x)), keras.Sequential([keras.Input((6,)), layer])]


@torch_only
@pytest.mark.parametrize("name", ["per_node_drop", "dropout", "stochastic_depth", "masksembles", "noisy_attention"])
def test_a_switch_to_training_without_the_argument_is_warned_of_once(name, warned):
    """Keras' Dropout in a module that was switched to training makes no noise and says nothing."""
    layer, x = FAMILY[name].make(), FAMILY[name].inputs(4)
    net = in_torch(layer)
    quiet = net(x)  # modules start with training=True, which nobody has said
    net.train()
    with pytest.warns(UserWarning, match=r"does in this call what it does at inference.*training=self\.training"):
        again = net(x)
    np.testing.assert_array_equal(host(again), host(quiet))
    net(x), in_torch(pnd.Dropout(0.5)).train()(inputs(4, 6))  # said once


@torch_only
@pytest.mark.parametrize("kind", range(3), ids=["layer", "functional", "sequential"])
def test_whoever_passes_training_or_only_evaluates_is_not_warned_of_a_switch(kind, warned):
    held = models_around(pnd.PerNodeDense(2, seed=1))[kind]
    x, net = inputs(4, 6), in_torch(held, passes=True)
    net.train()
    assert not (host(net(x)) == host(net(x))).any()
    held(x, training=False)
    net.eval()
    np.testing.assert_array_equal(host(net(x)), host(held(x)))
    in_torch(models_around(pnd.PerNodeDense(2, regime="fixed"))[kind]).train()(x)  # at inference too


@torch_only
def test_fit_evaluate_and_predict_never_warn_of_a_switch(warned):
    """Keras' trainer calls `.train()` itself, and `.eval()` only if an epoch comes to its end."""

    class Sees(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model(x)  # at inference, in the middle of the training
            if stop:
                raise KeyboardInterrupt

    class Switching(keras.Model):
        def __init__(self):
            super().__init__()
            self.noisy = pnd.PerNodeDense(2, seed=1)  # an attribute, which torch knows as a module

        def call(self, x, training=None):
            return self.noisy(x, training=training)

        def train(self, mode=True):
            return super().train(mode)

    x, y, stop = inputs(8, 6), inputs(8, 2), False
    model = Switching()
    model.compile("sgd", "mse")
    model.train()
    for stop in (False, True):
        try:
            model.fit(x, y, batch_size=4, verbose=0, callbacks=[Sees()], validation_data=(x, y))
        except KeyboardInterrupt:
            assert stop
        model(x)
        model.evaluate(x, y, verbose=0), model.predict(x, verbose=0), model(x)


@pytest.mark.slow
@torch_only
def test_a_switch_is_warned_of_in_what_is_compiled_without_a_graph_break(warned):
    import torch

    net, x = in_torch(pnd.PerNodeDense(2, seed=1)), torch.from_numpy(inputs(4, 6))
    net(x)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    compiled(x)
    net.train()
    with pytest.warns(UserWarning, match="what it does at inference"):
        compiled(x)

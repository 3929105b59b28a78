"""Learned noise on recurrent kernels: against NumPy, Keras' own layers with drawn kernels, and the noise of Dense."""

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.layers.base.noisy import xp
from tests.frameworks import needs_gradients, needs_training
from tests.test_noisy_rnn import (
    BATCH,
    BOTH,
    FEATURES,
    LAYERS,
    SEEN,
    TIME,
    L,
    X,
    by_hand,
    cells_of,
    each_layer,
    gradients,
    host,
    inputs,
    same,
    some,
)
from tests.test_variational_dropout import normals

BACKEND = keras.backend.backend()
EXAMPLES = 50
KINDS = (pnd.VariationalDropoutRNN, pnd.SparseVariationalDropoutRNN)
each_kind = pytest.mark.parametrize("kind", KINDS)


def learned(name="lstm", wrapper=pnd.VariationalDropoutRNN, options=None, **kwargs):
    """A built layer whose next key is (1, 0), with unlike numbers in what is learned."""
    layer = wrapper(LAYERS[name](**(options or {})), EXAMPLES, **{"seed": 1, **kwargs})
    layer.build(X.shape)
    for variable in (v for v in layer.trainable_variables if v.name in ("log_alpha", "log_variance")):
        variable.assign(np.linspace(-3, -0.5, int(np.prod(variable.shape))).reshape(variable.shape))
    return layer


def drawn(layer, samples=1, of_inputs=False):
    """The normal numbers (samples, in, out) of the kernels of each cell, and the standard deviations of its weights."""
    kernels = [host(getattr(cell, name)) for cell in cells_of(layer.layer) for name in BOTH]
    noisy = [name in layer.kernels for _ in cells_of(layer.layer) for name in BOTH]
    z = normals((samples, 1, sum(map(len, kernels)), max(kernel.shape[1] for kernel in kernels)))[:, 0]
    z = np.broadcast_to(z[..., :1], z.shape) if of_inputs else z
    found, row, start = [], 0, 0
    for kernel, has_noise in zip(kernels, noisy, strict=True):
        rows, columns = kernel.shape
        own = z[:, row : row + rows, :columns] if has_noise else np.zeros((samples, rows, columns))
        row += rows
        deviation = np.zeros_like(kernel)
        if has_noise and isinstance(layer, pnd.VariationalDropoutRNN):
            alpha = layer.alpha if layer.per == "layer" else layer.alpha[start : start + rows, None]
            deviation, start = kernel * np.sqrt(alpha), start + rows
        elif has_noise:
            part = host(layer.log_variance)[start : start + kernel.size].reshape(kernel.shape)
            deviation, start = np.exp(part / 2), start + kernel.size
        found.append((kernel, own, deviation))
    return found


def with_drawn(layer, n=0, **kwargs):
    """A plain layer like the inner one with the kernels that are drawn for a sample."""
    kernels = [kernel + deviation * z[n] for kernel, z, deviation in drawn(layer, **kwargs)]
    plain = by_hand(layer, [np.ones_like(kernel) for kernel in kernels])
    for (cell, name), kernel in zip([(c, name) for c in cells_of(plain) for name in BOTH], kernels, strict=True):
        getattr(cell, name).assign(kernel)
    return plain


@pytest.mark.parametrize("kernels", [BOTH, ("recurrent_kernel",)], ids=["both", "recurrent"])
@each_kind
@each_layer("cells")
def test_it_is_the_inner_layer_with_kernels_drawn_once(name, kind, kernels):
    layer = learned(name, kind, {"return_sequences": True}, kernels=kernels)
    wanted = with_drawn(layer)
    same(layer(X, training=True), wanted(X))
    same(layer(X, training=True, key=(1, 0), mask=SEEN), wanted(X, mask=SEEN))


OF_SAMPLES = {
    "B": (pnd.VariationalDropoutRNN, {"per": "unit"}),
    "A": (pnd.VariationalDropoutRNN, {"per": "unit", "kind": "A"}),
    "layer": (pnd.VariationalDropoutRNN, {"kind": "A"}),
    "sparse": (pnd.SparseVariationalDropoutRNN, {}),
}


def each_posterior(*of_slow):
    """Each, and on JAX and TensorFlow, which take seconds for each, those named."""
    cases = some(OF_SAMPLES, *of_slow)
    return pytest.mark.parametrize(("kind", "options"), cases.values(), ids=cases)


@pytest.mark.parametrize("sharing", ["sample+time", "time"])
@each_posterior("B", "sparse")
def test_it_is_a_loop_in_numpy(kind, options, sharing):
    """Each step multiplies by the same kernels: those of the batch, or of the sample."""
    layer = learned("lstm", kind, {"return_sequences": True}, sharing=sharing, **options)
    samples = BATCH if sharing == "time" else 1
    (w, of_w, deviation_w), (u, of_u, deviation_u) = drawn(layer, samples, options.get("kind") == "A")
    w, u, b = w + deviation_w * of_w, u + deviation_u * of_u, host(layer.layer.cell.bias)
    h = c = np.zeros((BATCH, 3))
    y = []
    for t in range(TIME):
        z = np.einsum("bi,bio->bo", X[:, t], np.broadcast_to(w, (BATCH, *w.shape[1:])))
        z = z + np.einsum("bi,bio->bo", h, np.broadcast_to(u, (BATCH, *u.shape[1:]))) + b
        i, f, g, o = np.split(z, 4, axis=1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        y.append(h)
    same(layer(X, training=True), np.stack(y, 1))


@pytest.mark.once
@pytest.mark.parametrize(("kind", "sharing"), [("B", "time"), ("A", "time+out"), ("B", "sample+time")])
def test_with_one_rate_it_is_gaussian_noise_of_a_noisy_rnn(kind, sharing):
    shared = "time" if sharing == "time+out" else sharing
    layer = pnd.VariationalDropoutRNN(LAYERS["gru"](), EXAMPLES, kind=kind, alpha=0.3, sharing=shared, seed=1)
    given = pnd.NoisyRNN(layer.layer, noise=pnd.Gaussian(stddev=0.3**0.5), kernels=BOTH, sharing=sharing, seed=1)
    for _ in range(2):
        same(layer(X, training=True), given(X, training=True))


@pytest.mark.once
@pytest.mark.parametrize("name", ["simple_rnn", "bidirectional", "cells"])
@each_posterior()
def test_divergence_is_the_sum_of_those_of_dense_layers_with_the_kernels(name, kind, options):
    """And the loss is that over the examples, once, however many calls and steps there are."""
    layer = learned(name, kind, **options)
    of_dense = {pnd.VariationalDropoutRNN: pnd.VariationalDropout}.get(kind, pnd.SparseVariationalDropout)
    total, start = 0.0, 0
    for cell in cells_of(layer.layer):
        for kernel in (host(cell.kernel), host(cell.recurrent_kernel)):
            dense = of_dense(L.Dense(kernel.shape[1]), EXAMPLES, **options)
            dense.build((1, len(kernel)))
            dense.layer.kernel.assign(kernel)
            if kind is pnd.SparseVariationalDropoutRNN:
                part = host(layer.log_variance)[start : start + kernel.size]
                dense.log_variance.assign(part.reshape(kernel.shape))
                start += kernel.size
            else:
                alpha = layer.alpha if options.get("per") != "unit" else layer.alpha[start : start + len(kernel)]
                dense._log_alpha.assign(np.log(alpha))
                start += len(kernel)
            total += float(host(dense.divergence()))
    np.testing.assert_allclose(host(layer.divergence()), total, rtol=1e-5)
    for steps in (2, 9):
        layer(inputs(BATCH, steps, FEATURES), training=True)
        np.testing.assert_allclose([host(loss) for loss in layer.losses], [total / EXAMPLES], rtol=1e-5)
    layer.trainable = False
    assert layer.losses == []


@needs_gradients
@pytest.mark.parametrize("sharing", ["sample+time", "time"])
@each_posterior("A", "sparse")
def test_gradients_are_those_of_the_drawn_kernels_by_the_chain_rule(kind, options, sharing):
    layer = learned("gru", kind, sharing=sharing, **options)
    upstream = inputs(*layer.compute_output_shape(X.shape))
    got = dict(zip(names_of(layer), gradients(layer, X, upstream, training=True, key=(1, 0)), strict=True))
    samples = BATCH if sharing == "time" else 1
    all_drawn = drawn(layer, samples, options.get("kind") == "A")
    wanted = dict.fromkeys(got, 0.0)
    of_x = []
    for n in range(samples):
        rows = slice(n, n + 1) if samples > 1 else slice(None)
        plain = with_drawn(layer, n, samples=samples, of_inputs=options.get("kind") == "A")
        own, of_kernel, of_recurrent, of_bias = gradients(plain, X[rows], upstream[rows])
        of_x.append(own)
        learned_parts = []
        for name, gradient, (kernel, z, deviation) in zip(BOTH, (of_kernel, of_recurrent), all_drawn, strict=True):
            relative = deviation / kernel if kind is pnd.VariationalDropoutRNN else 0.0
            wanted[name] = wanted[name] + gradient * (1 + relative * z[n])
            learned_parts.append(gradient * z[n] * deviation / 2)
        wanted["bias"] = wanted["bias"] + of_bias
        if kind is pnd.SparseVariationalDropoutRNN:
            part = np.concatenate([part.ravel() for part in learned_parts])
        else:
            part = np.concatenate([part.sum(1) for part in learned_parts])
            part = part if layer.per == "unit" else part.sum()
        wanted[names_of(layer)[1]] = wanted[names_of(layer)[1]] + part
    wanted["x"] = np.concatenate(of_x)
    same([got[name] for name in got], [wanted[name] for name in got])


def names_of(layer):
    """The names of what gradients are taken for."""
    return ["x", *(variable.name for variable in layer.trainable_variables)]


@pytest.mark.once
def test_the_sparse_kind_prunes_at_inference_and_folds():
    layer = learned("bidirectional", pnd.SparseVariationalDropoutRNN)
    kernels = [getattr(cell, name) for cell in cells_of(layer.layer) for name in BOTH]
    log_alpha = np.linspace(-5, 5, sum(int(np.prod(kernel.shape)) for kernel in kernels))
    theta = np.concatenate([host(kernel).ravel() for kernel in kernels])
    layer.log_variance.assign(log_alpha + np.log(theta**2 + 1e-8))
    np.testing.assert_allclose(np.concatenate([host(one).ravel() for one in layer.log_alpha()]), log_alpha, atol=1e-4)
    assert layer.sparsity == pytest.approx((log_alpha > 3).mean())
    ends = np.cumsum([0, *(int(np.prod(kernel.shape)) for kernel in kernels)])
    kept = [(log_alpha[a:b] <= 3).reshape(k.shape) for a, b, k in zip(ends[:-1], ends[1:], kernels, strict=True)]
    wanted = by_hand(layer, kept)
    same([layer(X), layer.fold()(X)], [wanted(X)] * 2)
    layer.threshold = 9
    same([layer(X), layer.fold()(X)], [layer.layer(X)] * 2)


@pytest.mark.once
@each_kind
def test_files_bring_it_back(kind, tmp_path):
    x = keras.Input((TIME, FEATURES))
    model = keras.Model(x, learned("cells", kind)(x))
    model(X, training=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for training in (False, True, True):
        same(again(X, training=training), model(X, training=training), atol=0)
    same(again.losses, model.losses, atol=0)


@pytest.mark.slow
@needs_training
# on TensorFlow one of them by XLA, which knows no more of the sharing than shapes
@pytest.mark.parametrize(
    ("sharing", "jit_compile"), [("sample+time", BACKEND == "jax"), ("time", BACKEND in ("jax", "tensorflow"))]
)
def test_fit_learns_which_inputs_are_of_no_use(sharing, jit_compile):
    """The target is the first input alone."""
    x = inputs(64, TIME, 3)
    start = {"kernel_initializer": "ones", "recurrent_initializer": keras.initializers.Constant(0.5)}
    rnn = L.SimpleRNN(1, activation=None, use_bias=False, **start)
    layer = pnd.VariationalDropoutRNN(rnn, 32, per="unit", sharing=sharing, seed=1)
    model = keras.Sequential([keras.Input((TIME, 3)), layer])
    model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=jit_compile)
    history = model.fit(x, 3 * x[:, -1, :1], batch_size=16, epochs=30, verbose=0).history["loss"]
    assert history[-1] < history[0] / 2
    assert layer.alpha[1:].min() > 2 * layer.alpha[0]
    assert 0.25 < layer.alpha.max() <= 1  # only the divergence can raise what began at 0.25
    assert layer.updates == 120


@pytest.mark.skip_backend("jax", "tensorflow", reason="they compile each, and say the same")
@pytest.mark.parametrize("sharing", ["sample+time", "time"])
@each_kind
def test_half_precision_draws_kernels_in_float32(kind, sharing):
    layer = learned("lstm", kind, {"dtype": "mixed_bfloat16"}, sharing=sharing)
    wide = learned("lstm", kind, sharing=sharing)
    wide.set_weights(layer.get_weights())
    y = layer(X, training=True, key=(1, 0))
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    assert keras.backend.standardize_dtype(layer.divergence().dtype) == "float32"
    same(keras.ops.cast(y, "float32"), wide(X, training=True, key=(1, 0)), atol=0.03)
    if sharing == "sample+time":
        one, other = (noisy_kernel(layer), noisy_kernel(wide))
        assert keras.backend.standardize_dtype(one.dtype) == "bfloat16"
        same(one, keras.ops.cast(other, "bfloat16"), atol=0, rtol=0)


def noisy_kernel(layer):
    """The recurrent kernel that the loop of a call multiplies by."""
    inputs = keras.ops.convert_to_tensor(X)
    field, samples = layer.field((1, 0), xp.device(inputs)), layer.samples(inputs, None)
    return layer.with_noise(layer.layer, inputs, field, samples)[0].cell.recurrent_kernel


@pytest.mark.parametrize(
    ("kind", "arguments"), [(pnd.VariationalDropoutRNN, {}), (pnd.SparseVariationalDropoutRNN, {"threshold": 9.0})]
)
def test_folded_weights_are_those_of_float32(kind, arguments):
    """Of the second kind none is pruned, since ln(alpha) is at most 8."""
    layer = kind(L.LSTM(3, dtype="mixed_bfloat16"), 9, seed=1, **arguments)
    layer.build(X.shape)
    for one, folded in zip(layer.layer.weights, layer.fold().weights, strict=True):
        same(folded, one, atol=0, rtol=0)


@pytest.mark.once
def test_what_is_learned_is_not_there_before_it_is_built():
    for ask in (
        lambda: pnd.VariationalDropoutRNN(L.LSTM(3), 9).alpha,
        lambda: pnd.VariationalDropoutRNN(L.LSTM(3), 9).divergence(),
        lambda: pnd.SparseVariationalDropoutRNN(L.LSTM(3), 9).sparsity,
        lambda: pnd.SparseVariationalDropoutRNN(L.LSTM(3), 9).log_alpha(),
        lambda: pnd.SparseVariationalDropoutRNN(L.LSTM(3), 9).divergence(),
    ):
        with pytest.raises(ValueError, match="is not built"):
            ask()


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pnd.VariationalDropoutRNN(L.Dense(3), 9), r"`layer`.*SimpleRNN, GRU or LSTM"),
        (lambda: pnd.VariationalDropoutRNN(pnd.NoisyRNN(L.LSTM(3)), 9), r"`layer`.*one of Keras', without noise"),
        (lambda: pnd.NoisyRNN(learned()), r"`layer`.*one of Keras', or a NoisyRNN"),
        (lambda: pnd.Zoneout(learned(), 0.1), r"`layer`.*one of Keras' or a NoisyRNN"),
        (lambda: learned(kernels=("recurent_kernel",)), r"did you mean 'recurrent_kernel'"),
        (lambda: learned(sharing=()), r"`sharing`.*'sample\+time', one draw.*or 'time', one for each sample"),
        (lambda: learned(sharing="time+out"), r"`sharing`.*one for each sample"),
        (lambda: learned(kind_of="A"), r"kind_of"),
        (lambda: learned(per="units"), r"`per`.*did you mean 'unit'"),
        (lambda: learned(alpha=2.0), r"`alpha`.*\(0, 1\]"),
        (lambda: pnd.VariationalDropoutRNN(L.LSTM(3), 0), r"`examples`.*examples=0"),
        (lambda: learned(options={"dropout": 0.1}, sharing="time"), r"`layer`.*no dropout in the layer where"),
        (lambda: learned()(X, training=True, sample_ids=np.arange(3)), r"`sample_ids`.*same for all samples"),
        (lambda: learned(wrapper=pnd.SparseVariationalDropoutRNN, warm_up=-1), r"`warm_up`.*int from 0"),
        (lambda: learned()(X[..., :1]), r"`inputs`.*size 2 along axis -1"),
        (lambda: setattr(learned(), "rate", 0.5), "no rate"),
    ],
)
def test_what_it_does_not_take_is_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()

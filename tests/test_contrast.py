"""What holds for all that there is to compare with: files, dtypes, training, shapes."""

import functools
import inspect
import typing

import keras
import numpy as np
import pytest

from pernodedrop import contrast
from pernodedrop.internals import of_keras
from pernodedrop.study import variants
from tests.contrast import assign, called
from tests.family import host, inputs
from tests.frameworks import needs_gradients, needs_training, value_and_gradients

BACKEND, ONCE = keras.backend.backend(), pytest.mark.once
KINDS = {"columns": contrast.FractalBlock, "experts": contrast.MixtureOfExperts}


class Training(keras.layers.Dense):
    """A Dense that notes whether its calls are of training."""

    seen: typing.ClassVar[list[bool | None]] = []

    def call(self, x, training=None):
        self.seen.append(training)
        return super().call(x)


@needs_gradients
@pytest.mark.skip_backend("jax", reason="Keras traces `training` there")
@pytest.mark.parametrize("kind", KINDS)
def test_inner_layers_train_where_the_backward_pass_makes_them_again(kind):
    with keras.RematScope("full"):
        layer = KINDS[kind]([Training(3) for _ in range(3)])
    layer.build((None, 3))
    Training.seen.clear()
    value_and_gradients(lambda x: layer(x, training=True), inputs(4, 3), upstream=inputs(4, 3))
    assert len(Training.seen) >= 3
    assert all(Training.seen), Training.seen


def network_of(kind, **kwargs):
    """One that has several layers in one."""
    layers = [keras.layers.Dense(6, activation="relu") for _ in range(3)]
    several = kind(layers, **({"seed": 1} if kind is contrast.FractalBlock else {}), **kwargs)
    return keras.Sequential([keras.Input((6,)), several, keras.layers.Dense(3, activation="softmax")])


def capsule_network(**kwargs):
    x = keras.Input((6,))
    below = contrast.squash(keras.layers.Reshape((3, 2))(x))
    return keras.Model(x, contrast.lengths(contrast.Capsules(3, 4, **kwargs)(below)))


MODELS = {
    "columns": functools.partial(network_of, contrast.FractalBlock),
    "experts": functools.partial(network_of, contrast.MixtureOfExperts),
    "capsules": capsule_network,
    "exits": lambda **kw: contrast.EarlyExits(
        [keras.layers.Dense(6, activation="relu", **kw) for _ in range(2)],
        [keras.layers.Dense(3, activation="softmax", **kw) for _ in range(2)],
        thresholds=0.5,
    ),
}
JIT = {"jax": [True], "tensorflow": [False, pytest.param(True, marks=pytest.mark.slow)]}.get(BACKEND, [False])
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
OWN = {
    *("top_k", "capacity_factor", "balance", "capsules", "dim", "iterations", "exit_weights", "thresholds"),
}
"""Arguments that configs have as they were given."""
LABELS = np.eye(3, dtype="float32")[np.arange(48) % 3]


@ONCE
@every_model
def test_files_bring_it_back(make, tmp_path):
    model, x = make(), inputs(48, 6)
    model(x)
    assign(model)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    layers = [
        [layer for layer in (m, *m.layers) if type(layer).__module__.startswith("pernodedrop.")] for m in (again, model)
    ]
    assert layers[1]
    for found, wanted in zip(*layers, strict=True):
        own = {name: wanted.get_config()[name] for name in inspect.signature(type(wanted)).parameters if name in OWN}
        assert {name: found.get_config()[name] for name in own} == own
    for training in (False, True):
        for got, wanted in zip(*(keras.tree.flatten(m(x, training=training)) for m in (again, model)), strict=True):
            np.testing.assert_array_equal(host(got), host(wanted))


@pytest.mark.only_backend("tensorflow", reason="a tf.train.Checkpoint is TensorFlow's")
@every_model
def test_a_checkpoint_of_tensorflow_has_every_variable(make, tmp_path):
    import tensorflow as tf

    model, again, x = make(), make(), inputs(4, 6)
    model(x), again(x)
    assign(model)
    path = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
    tf.train.Checkpoint(model=again).restore(path).assert_consumed()
    np.testing.assert_array_equal(host(again(x)), host(model(x)))


@every_model
@pytest.mark.parametrize("policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=ONCE)])
def test_half_precision_is_near(make, policy):
    half, plain, x = make(dtype=policy), make(), inputs(48, 6)
    half.build((None, 6)), plain.build((None, 6))
    for variable, other in zip(plain.weights, half.weights, strict=True):
        variable.assign(host(other).astype(variable.dtype))
    for training in (False, True):
        for got, wanted in zip(
            *(keras.tree.flatten(called(m, x, training=training)) for m in (half, plain)), strict=True
        ):
            assert np.quantile(abs(got.astype("float32") - wanted), 0.9) < 0.05  # a row may go elsewhere


@needs_training
@every_model
@pytest.mark.parametrize("jit_compile", JIT)
def test_fit_lowers_the_loss_and_moves_all_weights(make, jit_compile):
    keras.utils.set_random_seed(3)
    model, x = make(), inputs(48, 6) + 2 * LABELS @ inputs(3, 6)
    loss = contrast.margin_loss if make is capsule_network else "categorical_crossentropy"
    model.compile(keras.optimizers.Adam(0.03), loss, jit_compile=jit_compile)
    model(x)
    before = [host(variable) for variable in model.trainable_variables]
    losses = model.fit(x, LABELS, batch_size=16, epochs=8, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]
    assert all((host(now) != was).any() for now, was in zip(model.trainable_variables, before, strict=True))


@ONCE
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: contrast.MixtureOfExperts([keras.layers.Dense(5)] * 2), (7, 3, 6)),
        (lambda: contrast.Capsules(3, 4), (7, 5, 2)),
        (lambda: contrast.EarlyExits([keras.layers.Dense(5)], [keras.layers.Dense(2)]), (7, 6)),
    ],
    ids=["experts", "capsules", "exits"],
)
def test_output_shape_is_known_without_a_call(make, shape):
    layer = make()
    layer.build(shape)
    y = called(layer, inputs(*shape))
    for batch in (None, 7):
        assert tuple(make().compute_output_shape((batch, *shape[1:]))) == (batch, *y.shape[1:])


@ONCE
@pytest.mark.parametrize("name", ["fractal_block", "experts"])
def test_it_is_a_variant_of_studies(name):
    dense = keras.layers.Dense(5)
    (layer,) = variants.get(name).function(dense, 0.2, 7)
    assert dense in of_keras.layers_of(layer)
    assert layer(inputs(3, 4), training=True).shape == (3, 5)

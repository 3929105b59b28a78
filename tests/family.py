"""The family under test: every regularizer, made in one way, for the tests that hold for all of them."""

import dataclasses
import functools
import math
import typing

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.layers.base.noise_layer import NoiseLayer
from tests.frameworks import NAME, compiled, quick


@dataclasses.dataclass(frozen=True)
class Case:
    """A regularizer under test.

    Args:
        make: makes the layer, seed 1; takes keywords of Keras' layers, and `rate` where it is `rated`.
        shape: of a sample that it takes.
        rated: whether `make` takes a rate, 0 of which is no noise.
        takes: its inputs, made of one tensor.
        folds: whether it is one plain layer at inference.
        scheduled: whether it has a schedule of its own, instead of the one that a rate may be.
        random: whether its training calls are.
        stateful: whether a call depends on those before it, beside the key.
    """

    make: typing.Callable[..., keras.layers.Layer]
    shape: tuple[int, ...] = (6,)
    rated: bool = True
    takes: typing.Callable[[typing.Any], typing.Any] = lambda x: x
    folds: bool = True
    scheduled: bool = False
    random: bool = True
    stateful: bool = False

    def inputs(self, batch):
        """Inputs of one batch, as the layer takes them."""
        return self.takes(inputs(batch, *self.shape))

    def shape_of(self, batch):
        """The shape, or shapes, of the inputs of a batch."""
        return keras.tree.map_structure(lambda tensor: (batch, *tensor.shape[1:]), self.inputs(1))

    def model(self):
        """The layer in a functional model, between others: (batch, 6) to (batch, 2)."""
        x = keras.Input((6,))
        hidden = keras.layers.Reshape(self.shape)(keras.layers.Dense(math.prod(self.shape))(x))
        y = self.make()(self.takes(hidden))
        return keras.Model(x, keras.layers.Dense(2)(keras.layers.Flatten()(y)))


class Subclassed(keras.Model):
    """The layer of a case in a subclassed model that gives Keras no output shape."""

    def __init__(self, case):
        super().__init__()
        self.case, self.noisy, self.head = case, case.make(), keras.layers.Dense(2)
        self.flatten = keras.layers.Flatten()

    def call(self, x, training=None):
        x = keras.ops.tile(x, (1, math.ceil(math.prod(self.case.shape) / 6)))[:, : math.prod(self.case.shape)]
        x = self.case.takes(keras.ops.reshape(x, (-1, *self.case.shape)))
        return self.head(self.flatten(self.noisy(x, training=training)))


def inputs(*shape):
    """Normal numbers, the same ones every time."""
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def host(tensor):
    """A tensor of the backend under test as an array."""
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def first_call(layer, x):
    """The first training call of a layer with seed 1, as one: op by op, a new shape takes JAX seconds to compile."""
    if not layer.built:
        layer.build(x.shape)
    return host(quick(lambda x: layer(x, training=True, key=(1, 0)))(keras.ops.convert_to_tensor(x)))


def training_call(layer, x):
    """What a built layer gives in its next training call, which on JAX is one program and leaves the key as it was."""
    if NAME != "jax":
        return layer(x, training=True)

    def call(x):
        with keras.StatelessScope():
            return layer(x, training=True)

    return compiled(call)(x)


def noisy_layer(model):
    """The one noisy layer of a model."""
    (layer,) = (layer for layer in model.layers if isinstance(layer, NoiseLayer))
    return layer


def wrap(wrapper, inner=keras.layers.Dense, *arguments, **own):
    """How a wrapper is made around an inner layer, with its own arguments."""

    def make(**kwargs):
        return wrapper(inner(*(arguments or (5,))), **{"seed": 1, **own, **kwargs})

    return make


def between(layer, start=0.5, **own):
    """How a layer that stands between others is made, at a rate unless it is given, with its own arguments."""
    return lambda rate=start, **kwargs: layer(rate, **{"seed": 1, **own, **kwargs})


def einsum(*arguments, **kwargs):
    """An EinsumDense on the last axis."""
    return keras.layers.EinsumDense("...i,io->...o", *arguments, **kwargs)


def pair(x):
    """A shortcut and a branch."""
    return [x, 0.5 * x]


class OfOneInput:
    """Noise of attention with one input, which is all that a case has."""

    def build(self, shape):
        super().build(shape, shape)

    def call(self, x, training=None, key=None):
        return super().call(x, x, training=training, keys=key)

    def compute_output_shape(self, shape):
        return super().compute_output_shape(shape, shape)

    def compute_output_spec(self, x, **kwargs):
        return super().compute_output_spec(x, x)

    def fold(self):
        x = keras.Input(self.get_build_config()["input_shape"][1:], dtype=self.compute_dtype)
        plain = super().fold()
        return keras.Model(x, plain(x, x))


@keras.saving.register_keras_serializable("tests")
class SelfAttention(OfOneInput, pnd.NoisyAttention):
    """Noise on projections."""


@keras.saving.register_keras_serializable("tests")
class SelfAttentionDropout(OfOneInput, pnd.AttentionDropout):
    """Noise on weights."""


def attention(wrapper, *arguments, **own):
    """How noise of attention is made around one of two heads, with its own arguments."""

    def make(**kwargs):
        of_inner = {"dtype": kwargs.pop("dtype")} if "dtype" in kwargs else {}
        inner = keras.layers.MultiHeadAttention(2, 3, **of_inner)
        return wrapper(inner, *arguments, **{"seed": 1, **own, **kwargs})

    return make


def recurrent(unroll=False, wrapper=pnd.NoisyRNN, **kwargs):
    """How noise of recurrent layers is made around an LSTM."""
    # an orthogonal matrix is none of bfloat16 on torch
    of_inner = {
        "recurrent_initializer": "glorot_uniform",
        "unroll": unroll,
        **({"dtype": kwargs.pop("dtype")} if "dtype" in kwargs else {}),
    }
    return wrapper(keras.layers.LSTM(2, return_sequences=True, **of_inner), **{"seed": 1, **kwargs})


relu = functools.partial(keras.layers.Dense, activation="relu")
IMAGE, SERIES = (4, 5, 2), (6, 3)
FAMILY = {
    "per_node_drop": Case(wrap(pnd.PerNodeDrop, functools.partial(keras.layers.Dense, activation="tanh"))),
    "per_node_drop_gaussian": Case(wrap(pnd.PerNodeDrop, noise="gaussian")),
    "per_node_drop_partial": Case(wrap(pnd.PerNodeDrop, noise=pnd.PartialGaussian(0.4, 0.5)), rated=False),
    "per_node_drop_fixed": Case(wrap(pnd.PerNodeDrop, regime="fixed")),
    "per_node_drop_bank": Case(wrap(pnd.PerNodeDrop, regime="bank", bank_size=3), folds=False),
    "per_node_drop_einsum": Case(wrap(pnd.PerNodeDrop, einsum)),
    "per_node_drop_conv": Case(wrap(pnd.PerNodeDrop, keras.layers.Conv2D, 3, 2), shape=IMAGE),
    "per_node_drop_depthwise": Case(wrap(pnd.PerNodeDrop, keras.layers.DepthwiseConv1D, 3), shape=SERIES),
    "per_node_drop_transposed": Case(wrap(pnd.PerNodeDrop, keras.layers.Conv1DTranspose, 3, 2), shape=SERIES),
    "drop_connect": Case(wrap(pnd.DropConnect)),
    "drop_connect_separable": Case(wrap(pnd.DropConnect, keras.layers.SeparableConv1D, 3, 2), shape=SERIES),
    "dropout": Case(between(pnd.Dropout)),
    "dropout_persistent": Case(between(pnd.Dropout, persistence=0.7), shape=SERIES),
    "gaussian_dropout": Case(between(pnd.GaussianDropout)),
    "alpha_dropout": Case(between(pnd.AlphaDropout)),
    "spatial_dropout_2d": Case(between(pnd.SpatialDropout2D, 0.2), shape=IMAGE),
    "drop_block_2d": Case(between(pnd.DropBlock2D, 0.2, block_size=2), shape=IMAGE),
    "drop_path": Case(between(pnd.DropPath)),
    "scheduled_drop_path": Case(between(pnd.ScheduledDropPath, steps=3), scheduled=True),
    "stochastic_depth": Case(between(pnd.StochasticDepth), takes=pair),
    "drop_connect_as_published": Case(wrap(pnd.DropConnect.as_published, relu), folds=False),
    "dynamic_drop_connect": Case(wrap(pnd.DynamicDropConnect), rated=False),
    "shakeout": Case(wrap(pnd.Shakeout)),
    "shakeout_conv": Case(wrap(pnd.Shakeout, keras.layers.Conv2D, 3, 2), shape=IMAGE),
    "variational_dropout": Case(wrap(pnd.VariationalDropout, examples=50), rated=False),
    "sparse_variational_dropout": Case(wrap(pnd.SparseVariationalDropout, examples=50), rated=False),
    "flipout": Case(wrap(pnd.Flipout)),
    "fast_dropout": Case(wrap(pnd.FastDropout, relu), random=False),
    "standout": Case(wrap(pnd.Standout), rated=False),
    "noise_injection": Case(wrap(pnd.NoiseInjection)),
    "noise_injection_conv": Case(wrap(pnd.NoiseInjection, keras.layers.Conv2D, 3, 2), shape=IMAGE),
    "noisy_attention": Case(attention(SelfAttention, pnd.PerNodeDrop, rate=0.1), shape=SERIES),
    "attention_dropout": Case(attention(SelfAttentionDropout), shape=SERIES),
    "noisy_rnn": Case(recurrent, shape=(3, 2)),
    "noisy_rnn_samples": Case(functools.partial(recurrent, sharing="time", unroll=True), shape=(3, 2)),
    "noisy_rnn_inputs": Case(functools.partial(recurrent, sharing="time+unit", unroll=True), shape=(3, 2)),
    "zoneout": Case(lambda rate=0.5, **kw: recurrent(True, pnd.Zoneout, rate=rate, **kw), shape=(3, 2), folds=False),
    "variational_dropout_rnn": Case(
        functools.partial(recurrent, wrapper=pnd.VariationalDropoutRNN, examples=50), shape=(3, 2), rated=False
    ),
    "sparse_variational_dropout_rnn": Case(
        functools.partial(recurrent, wrapper=pnd.SparseVariationalDropoutRNN, examples=50), shape=(3, 2), rated=False
    ),
    "masksembles": Case(lambda **kw: pnd.Masksembles(**{"seed": 1, **kw}), rated=False, folds=False),
    "tabu_dropout": Case(between(pnd.TabuDropout, tenure=2), stateful=True),
    "fractal_join": Case(between(pnd.contrast.FractalJoin, global_share=0.0), shape=SERIES, takes=pair),
}


def skip_what_forgets_bfloat16(layer):
    """Of columns what `fold` gives is Keras' Average, which makes float32 of bfloat16 with NumPy 2.0."""
    x = keras.ops.ones((2, 3), "bfloat16")
    mean = keras.layers.Average(dtype="bfloat16")([x, x])
    if isinstance(layer, pnd.contrast.FractalJoin) and keras.backend.standardize_dtype(mean.dtype) != "bfloat16":
        pytest.skip("Keras' Average forgets bfloat16 with this NumPy")

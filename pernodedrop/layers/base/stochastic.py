"""Which layers of a model make noise in training: those of this library, Keras' own, and torch's inside them."""

import typing

import keras

from pernodedrop.internals import of_torch
from pernodedrop.layers.base.noisy import Noisy

NOISE = (
    keras.layers.Dropout,  # SpatialDropout1D, 2D and 3D too
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.AlphaDropout,
)
"""Layers of Keras that are noise."""

NOISE_INSIDE = (
    keras.layers.Attention,
    keras.layers.SimpleRNN,
    keras.layers.SimpleRNNCell,
    keras.layers.GRU,
    keras.layers.GRUCell,
    keras.layers.LSTM,
    keras.layers.LSTMCell,
    keras.layers.ConvLSTM1D,
    keras.layers.ConvLSTM2D,
    keras.layers.ConvLSTM3D,
)
"""Layers of Keras with dropout of their own, which is all that `training` means to them."""

STRENGTHS = ("rate", "stddev", "dropout", "recurrent_dropout")
"""The numbers of Keras' layers that say how much noise they make."""


def is_stochastic(layer: keras.layers.Layer) -> bool:
    """Whether a layer is known to make noise in training, other noise in each call, at its present rate."""
    if isinstance(layer, Noisy):
        return layer.is_stochastic
    known = isinstance(layer, NOISE + NOISE_INSIDE)
    return known and any(getattr(layer, strength, 0) > 0 for strength in STRENGTHS)


def shares_noise(layer: keras.layers.Layer) -> bool:
    """Whether the samples of a batch share the noise of a layer."""
    if isinstance(layer, Noisy):
        return "sample" in layer.sharing
    return (getattr(layer, "noise_shape", None) or (None,))[0] == 1


def torch_noise(layer: keras.layers.Layer) -> list[typing.Any]:
    """The modules of torch inside a layer that have to train for it to make noise: none where it makes none."""
    return of_torch.noise_in(layer.module) if isinstance(layer, keras.layers.TorchModuleWrapper) else []

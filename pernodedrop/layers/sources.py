"""Which layers of a model make noise in training: those of this library, and Keras' own."""

import keras

from pernodedrop.layers.dynamic_drop_connect import DynamicDropConnect
from pernodedrop.layers.noisy import Noisy

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


def is_noise(layer: keras.layers.Layer) -> bool:
    """Whether a layer is known to make noise in training: a call depends on random numbers, other ones in each call.

    At its present rate; a schedule counts as noise whatever its present rate is.
    """
    if not isinstance(layer, Noisy):
        known = isinstance(layer, NOISE + NOISE_INSIDE)
        return known and any(getattr(layer, strength, 0) > 0 for strength in STRENGTHS)
    if not layer.random or layer.mask.regime in ("fixed", "bank"):
        return False
    if isinstance(layer, DynamicDropConnect) and layer.gradient_rate > 0:
        return True
    return layer.schedule is not None or layer.noise.variance > 0


def is_one_for_a_batch(layer: keras.layers.Layer) -> bool:
    """Whether the samples of a batch share the noise of a layer."""
    one_sample = (getattr(layer, "noise_shape", None) or (None,))[0] == 1
    return one_sample or (isinstance(layer, Noisy) and "sample" in layer.mask.sharing)


def members(layer: keras.layers.Layer) -> int | None:
    """The number of members of a layer that is an ensemble at inference; None: it is none."""
    return layer.members if isinstance(layer, Noisy) else None

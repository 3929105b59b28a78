"""Noise regularizers for neural networks, as Keras 3 layers and as ops on any framework's tensors.

A mask is a function, not a tensor: a pure function of (key, sample, in, out) to a multiplier with mean 1, evaluated by
NumPy, TensorFlow, PyTorch and JAX to the same bits, and never stored unless someone wants to look at it.
"""

import importlib
import types

from pernodedrop import backends, layers, losses, ops, schedules, uncertainty
from pernodedrop._version import __version__
from pernodedrop.layers import (
    DropBlock1D,
    DropBlock2D,
    DropBlock3D,
    DropConnect,
    Dropout,
    DropPath,
    DynamicDropConnect,
    FastDropout,
    Flipout,
    GaussianDropout,
    Masksembles,
    NoiseInjection,
    NoisyAttention,
    PerNodeDense,
    PerNodeDrop,
    ScheduledDropPath,
    Shakeout,
    SparseVariationalDropout,
    SpatialDropout1D,
    SpatialDropout2D,
    SpatialDropout3D,
    Standout,
    StochasticDepth,
    TabuDropout,
    VariationalDropout,
    depth_rates,
)
from pernodedrop.losses import RDropModel
from pernodedrop.mask import Mask
from pernodedrop.noise import Bernoulli, Gaussian, Noise, PartialGaussian, Uniform
from pernodedrop.surgery import apply, fold

__all__ = [
    "Bernoulli",
    "DropBlock1D",
    "DropBlock2D",
    "DropBlock3D",
    "DropConnect",
    "DropPath",
    "Dropout",
    "DynamicDropConnect",
    "FastDropout",
    "Flipout",
    "Gaussian",
    "GaussianDropout",
    "Mask",
    "Masksembles",
    "Noise",
    "NoiseInjection",
    "NoisyAttention",
    "PartialGaussian",
    "PerNodeDense",
    "PerNodeDrop",
    "RDropModel",
    "ScheduledDropPath",
    "Shakeout",
    "SparseVariationalDropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "Standout",
    "StochasticDepth",
    "TabuDropout",
    "Uniform",
    "VariationalDropout",
    "__version__",
    "apply",
    "backends",
    "depth_rates",
    "fold",
    "layers",
    "losses",
    "ops",
    "schedules",
    "uncertainty",
]


def __getattr__(name: str) -> types.ModuleType:
    if name == "testing":  # imported when it is first used, since it needs Hypothesis, which is an extra
        return importlib.import_module("pernodedrop.testing")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

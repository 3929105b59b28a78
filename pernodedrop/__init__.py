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
    GaussianDropout,
    NoisyAttention,
    PerNodeDense,
    PerNodeDrop,
    ScheduledDropPath,
    SpatialDropout1D,
    SpatialDropout2D,
    SpatialDropout3D,
    StochasticDepth,
    depth_rates,
)
from pernodedrop.losses import RDropModel
from pernodedrop.mask import Mask
from pernodedrop.noise import Bernoulli, Gaussian, Noise, PartialGaussian, Uniform

__all__ = [
    "Bernoulli",
    "DropBlock1D",
    "DropBlock2D",
    "DropBlock3D",
    "DropConnect",
    "DropPath",
    "Dropout",
    "Gaussian",
    "GaussianDropout",
    "Mask",
    "Noise",
    "NoisyAttention",
    "PartialGaussian",
    "PerNodeDense",
    "PerNodeDrop",
    "RDropModel",
    "ScheduledDropPath",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "StochasticDepth",
    "Uniform",
    "__version__",
    "backends",
    "depth_rates",
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

"""Noise regularizers for neural networks, as Keras 3 layers and as ops on any framework's tensors.

A mask is a function, not a tensor: a pure function of (key, sample, in, out) to a multiplier with mean 1, evaluated by
NumPy, TensorFlow, PyTorch and JAX to the same bits, and never stored unless someone wants to look at it.
"""

import importlib
import sys
import typing

from pernodedrop import _lazy, backends, ops, schedules
from pernodedrop._version import __version__
from pernodedrop.mask import Mask
from pernodedrop.noise import Bernoulli, Gaussian, Noise, PartialGaussian, Uniform

if typing.TYPE_CHECKING:
    from pernodedrop import contrast, layers, losses, study, surgery, testing, uncertainty
    from pernodedrop.layers import (
        AdaptiveTenure,
        AlphaDropout,
        AttentionDropout,
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
        GradientRouting,
        Masksembles,
        NoiseInjection,
        NoisyAttention,
        NoisyRNN,
        PerNodeDense,
        PerNodeDrop,
        ScheduledDropPath,
        Shakeout,
        SparseVariationalDropout,
        SparseVariationalDropoutRNN,
        SpatialDropout1D,
        SpatialDropout2D,
        SpatialDropout3D,
        Standout,
        StochasticDepth,
        TabuDropout,
        VariationalDropout,
        VariationalDropoutRNN,
        Zoneout,
        depth_rates,
    )
    from pernodedrop.losses import RDropModel
    from pernodedrop.surgery import apply, copy_weights, fold

__all__ = [
    "AdaptiveTenure",
    "AlphaDropout",
    "AttentionDropout",
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
    "GradientRouting",
    "Mask",
    "Masksembles",
    "Noise",
    "NoiseInjection",
    "NoisyAttention",
    "NoisyRNN",
    "PartialGaussian",
    "PerNodeDense",
    "PerNodeDrop",
    "RDropModel",
    "ScheduledDropPath",
    "Shakeout",
    "SparseVariationalDropout",
    "SparseVariationalDropoutRNN",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "Standout",
    "StochasticDepth",
    "TabuDropout",
    "Uniform",
    "VariationalDropout",
    "VariationalDropoutRNN",
    "Zoneout",
    "__version__",
    "apply",
    "backends",
    "contrast",
    "copy_weights",
    "depth_rates",
    "fold",
    "layers",
    "losses",
    "ops",
    "schedules",
    "study",
    "surgery",
    "testing",
    "uncertainty",
]

_WINGS = ("layers", "losses", "surgery", "uncertainty", "contrast", "study", "testing")
"""What is imported when it is first used: all but `uncertainty` stand on Keras, or on Hypothesis, which is an extra."""


if not typing.TYPE_CHECKING:  # to a type checker it would mean that every name is there

    def __getattr__(name):
        if name in _WINGS:
            return _lazy.loaded(f"{__name__}.{name}")
        for wing in _WINGS if name in __all__ else ():
            module = _lazy.loaded(f"{__name__}.{wing}")
            if name in module.__all__:
                return globals().setdefault(name, getattr(module, name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if sys.modules.get("keras") is not None:  # a saved model then finds its layers, losses and metrics by this import alone
    importlib.import_module("pernodedrop.losses")
    importlib.import_module("pernodedrop.contrast")
    importlib.import_module("pernodedrop.uncertainty.metrics.accumulated")

"""Noise regularizers for neural networks, as Keras 3 layers and as ops on any framework's tensors.

A mask is a function, not a tensor: a pure function of (key, sample, in, out) to a multiplier with mean 1, evaluated by
NumPy, TensorFlow, PyTorch and JAX to the same bits, and never stored unless someone wants to look at it.
"""

from pernodedrop import ops
from pernodedrop.mask import Mask
from pernodedrop.noise import Bernoulli, Gaussian, Noise, PartialGaussian, Uniform

__version__ = "0.1.0"

"""What the tests of `pernodedrop.contrast` have in common."""

import keras
import numpy as np

from tests.family import host
from tests.frameworks import quick


def assign(layer, seed=5):
    """Known weights, which are returned by their shapes' order."""
    random = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        variable.assign(random.normal(size=variable.shape) / 2)
    return [host(variable).astype("float64") for variable in layer.trainable_variables]


def called(layer, x, **kwargs):
    """What a call gives, as one: op by op, a new shape takes JAX seconds to compile."""
    function = quick(lambda x: layer(x, **kwargs))
    return keras.tree.map_structure(host, function(keras.tree.map_structure(keras.ops.convert_to_tensor, x)))


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def differences(function, at, step=1e-5):
    """The gradient of a function of an array by central differences."""
    found = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        moved = np.zeros_like(at)
        moved[place] = step
        found[place] = (function(at + moved) - function(at - moved)) / (2 * step)
    return found

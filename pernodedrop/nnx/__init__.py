"""Native modules of Flax NNX: noise in the classes that an NNX model is made of. It needs no Keras.

The name is `pernodedrop.nnx`, imported as `import pernodedrop.nnx as pndx`. Masks, seeds and rates are those of the
layers of `pernodedrop`, to the bit.
"""

from pernodedrop.nnx import uncertainty
from pernodedrop.nnx.activation_noise import DropBlock, Dropout, DropPath, GaussianDropout, Masksembles, SpatialDropout
from pernodedrop.nnx.drop_connect import DropConnectConv, DropConnectLinear
from pernodedrop.nnx.dynamic_drop_connect import DynamicDropConnectConv, DynamicDropConnectLinear, note_gradients
from pernodedrop.nnx.noisy import NoiseState
from pernodedrop.nnx.per_node_drop import PerNodeConv, PerNodeLinear
from pernodedrop.nnx.surgery import apply, fold

__all__ = [
    "DropBlock",
    "DropConnectConv",
    "DropConnectLinear",
    "DropPath",
    "Dropout",
    "DynamicDropConnectConv",
    "DynamicDropConnectLinear",
    "GaussianDropout",
    "Masksembles",
    "NoiseState",
    "PerNodeConv",
    "PerNodeLinear",
    "SpatialDropout",
    "apply",
    "fold",
    "note_gradients",
    "uncertainty",
]

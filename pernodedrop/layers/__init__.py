"""The Keras layers, one regularizer a file: weight noise wraps a layer, activation noise stands between layers."""

from pernodedrop.layers.drop_block import DropBlock1D, DropBlock2D, DropBlock3D
from pernodedrop.layers.drop_connect import DropConnect
from pernodedrop.layers.drop_path import DropPath, depth_rates
from pernodedrop.layers.dropout import Dropout
from pernodedrop.layers.gaussian_dropout import GaussianDropout
from pernodedrop.layers.noisy_attention import NoisyAttention
from pernodedrop.layers.per_node_drop import PerNodeDense, PerNodeDrop
from pernodedrop.layers.scheduled_drop_path import ScheduledDropPath
from pernodedrop.layers.spatial_dropout import SpatialDropout1D, SpatialDropout2D, SpatialDropout3D
from pernodedrop.layers.stochastic_depth import StochasticDepth

__all__ = [
    "DropBlock1D",
    "DropBlock2D",
    "DropBlock3D",
    "DropConnect",
    "DropPath",
    "Dropout",
    "GaussianDropout",
    "NoisyAttention",
    "PerNodeDense",
    "PerNodeDrop",
    "ScheduledDropPath",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "StochasticDepth",
    "depth_rates",
]

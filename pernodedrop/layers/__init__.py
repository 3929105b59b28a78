"""The Keras layers, one regularizer a file: weight noise wraps a layer, activation noise stands between layers.

What they stand on: `noisy`, their key, rate and draw; `weight_noise`, and for the layer inside and its product `inner`,
`contraction` and `convolution`; `activation_noise`, `shaped_noise` and `spatial_noise`. `sources` says which layers of
a model make noise.
"""

from pernodedrop.layers.drop_block import DropBlock1D, DropBlock2D, DropBlock3D
from pernodedrop.layers.drop_connect import DropConnect
from pernodedrop.layers.drop_path import DropPath, depth_rates
from pernodedrop.layers.dropout import Dropout
from pernodedrop.layers.dynamic_drop_connect import DynamicDropConnect
from pernodedrop.layers.fast_dropout import FastDropout
from pernodedrop.layers.flipout import Flipout
from pernodedrop.layers.gaussian_dropout import GaussianDropout
from pernodedrop.layers.masksembles import Masksembles
from pernodedrop.layers.noise_injection import NoiseInjection
from pernodedrop.layers.noisy_attention import NoisyAttention
from pernodedrop.layers.per_node_drop import PerNodeDense, PerNodeDrop
from pernodedrop.layers.scheduled_drop_path import ScheduledDropPath
from pernodedrop.layers.shakeout import Shakeout
from pernodedrop.layers.sparse_variational_dropout import SparseVariationalDropout
from pernodedrop.layers.spatial_dropout import SpatialDropout1D, SpatialDropout2D, SpatialDropout3D
from pernodedrop.layers.standout import Standout
from pernodedrop.layers.stochastic_depth import StochasticDepth
from pernodedrop.layers.tabu_dropout import TabuDropout
from pernodedrop.layers.variational_dropout import VariationalDropout

__all__ = [
    "DropBlock1D",
    "DropBlock2D",
    "DropBlock3D",
    "DropConnect",
    "DropPath",
    "Dropout",
    "DynamicDropConnect",
    "FastDropout",
    "Flipout",
    "GaussianDropout",
    "Masksembles",
    "NoiseInjection",
    "NoisyAttention",
    "PerNodeDense",
    "PerNodeDrop",
    "ScheduledDropPath",
    "Shakeout",
    "SparseVariationalDropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "Standout",
    "StochasticDepth",
    "TabuDropout",
    "VariationalDropout",
    "depth_rates",
]

"""The Keras layers; all stand on `base`.

`weight` noise wraps a layer, `activation` noise stands between layers, `recurrent` noise wraps one with a loop.
"""

from pernodedrop.layers.activation.adaptive_tenure import AdaptiveTenure
from pernodedrop.layers.activation.alpha_dropout import AlphaDropout
from pernodedrop.layers.activation.attention_dropout import AttentionDropout
from pernodedrop.layers.activation.drop_block import DropBlock1D, DropBlock2D, DropBlock3D
from pernodedrop.layers.activation.drop_path import DropPath, depth_rates
from pernodedrop.layers.activation.dropout import Dropout
from pernodedrop.layers.activation.gaussian_dropout import GaussianDropout
from pernodedrop.layers.activation.gradient_routing import GradientRouting
from pernodedrop.layers.activation.masksembles import Masksembles
from pernodedrop.layers.activation.scheduled_drop_path import ScheduledDropPath
from pernodedrop.layers.activation.spatial_dropout import SpatialDropout1D, SpatialDropout2D, SpatialDropout3D
from pernodedrop.layers.activation.stochastic_depth import StochasticDepth
from pernodedrop.layers.activation.tabu_dropout import TabuDropout
from pernodedrop.layers.recurrent.noisy_rnn import NoisyRNN
from pernodedrop.layers.recurrent.sparse_variational_dropout_rnn import SparseVariationalDropoutRNN
from pernodedrop.layers.recurrent.variational_dropout_rnn import VariationalDropoutRNN
from pernodedrop.layers.recurrent.zoneout import Zoneout
from pernodedrop.layers.weight.drop_connect import DropConnect
from pernodedrop.layers.weight.dynamic_drop_connect import DynamicDropConnect
from pernodedrop.layers.weight.fast_dropout import FastDropout
from pernodedrop.layers.weight.flipout import Flipout
from pernodedrop.layers.weight.noise_injection import NoiseInjection
from pernodedrop.layers.weight.noisy_attention import NoisyAttention
from pernodedrop.layers.weight.per_node_drop import PerNodeDense, PerNodeDrop
from pernodedrop.layers.weight.shakeout import Shakeout
from pernodedrop.layers.weight.sparse_variational_dropout import SparseVariationalDropout
from pernodedrop.layers.weight.standout import Standout
from pernodedrop.layers.weight.variational_dropout import VariationalDropout

__all__ = [
    "AdaptiveTenure",
    "AlphaDropout",
    "AttentionDropout",
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
    "GradientRouting",
    "Masksembles",
    "NoiseInjection",
    "NoisyAttention",
    "NoisyRNN",
    "PerNodeDense",
    "PerNodeDrop",
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
    "VariationalDropout",
    "VariationalDropoutRNN",
    "Zoneout",
    "depth_rates",
]

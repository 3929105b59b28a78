"""The Keras layers, one regularizer a file: weight noise wraps a layer, activation noise stands between layers."""

from pernodedrop.layers.drop_connect import DropConnect
from pernodedrop.layers.dropout import Dropout
from pernodedrop.layers.gaussian_dropout import GaussianDropout
from pernodedrop.layers.noisy_attention import NoisyAttention
from pernodedrop.layers.per_node_drop import PerNodeDense, PerNodeDrop

__all__ = ["DropConnect", "Dropout", "GaussianDropout", "NoisyAttention", "PerNodeDense", "PerNodeDrop"]

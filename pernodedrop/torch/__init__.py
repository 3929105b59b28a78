"""Native modules of PyTorch: noise in the classes that a torch model is made of. It needs no Keras.

The name is `pernodedrop.torch`, imported as `import pernodedrop.torch as pndt`. Masks, seeds and rates are those of the
layers of `pernodedrop`, to the bit.
"""

if __name__ == "torch":
    raise ImportError("pernodedrop.torch stands in the way of torch: run nothing inside the folder of the package")

from pernodedrop.torch import uncertainty
from pernodedrop.torch.activation_noise import (
    DropBlock1d,
    DropBlock2d,
    DropBlock3d,
    Dropout,
    DropPath,
    GaussianDropout,
    Masksembles,
    SpatialDropout1d,
    SpatialDropout2d,
    SpatialDropout3d,
)
from pernodedrop.torch.attention import DropConnectMultiheadAttention, PerNodeMultiheadAttention
from pernodedrop.torch.drop_connect import DropConnectConv1d, DropConnectConv2d, DropConnectConv3d, DropConnectLinear
from pernodedrop.torch.dynamic_drop_connect import (
    DynamicDropConnectConv1d,
    DynamicDropConnectConv2d,
    DynamicDropConnectConv3d,
    DynamicDropConnectLinear,
)
from pernodedrop.torch.noisy import drawn_keys, set_replica
from pernodedrop.torch.per_node_drop import PerNodeConv1d, PerNodeConv2d, PerNodeConv3d, PerNodeLinear
from pernodedrop.torch.recurrent import NoisyGRU, NoisyLSTM, NoisyRNN
from pernodedrop.torch.surgery import apply, fold

__all__ = [
    "DropBlock1d",
    "DropBlock2d",
    "DropBlock3d",
    "DropConnectConv1d",
    "DropConnectConv2d",
    "DropConnectConv3d",
    "DropConnectLinear",
    "DropConnectMultiheadAttention",
    "DropPath",
    "Dropout",
    "DynamicDropConnectConv1d",
    "DynamicDropConnectConv2d",
    "DynamicDropConnectConv3d",
    "DynamicDropConnectLinear",
    "GaussianDropout",
    "Masksembles",
    "NoisyGRU",
    "NoisyLSTM",
    "NoisyRNN",
    "PerNodeConv1d",
    "PerNodeConv2d",
    "PerNodeConv3d",
    "PerNodeLinear",
    "PerNodeMultiheadAttention",
    "SpatialDropout1d",
    "SpatialDropout2d",
    "SpatialDropout3d",
    "apply",
    "drawn_keys",
    "fold",
    "set_replica",
    "uncertainty",
]

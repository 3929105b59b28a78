"""Native modules of Equinox: noise in the classes that an Equinox model is made of. It needs no Keras.

The name is `pernodedrop.equinox`, imported as `import pernodedrop.equinox as pnde`. Masks are those of the layers of
`pernodedrop`, to the bit.
"""

if __name__ == "equinox":
    raise ImportError("pernodedrop.equinox stands in the way of equinox: run nothing inside the folder of the package")

from pernodedrop.equinox import uncertainty
from pernodedrop.equinox.activation_noise import (
    DropBlock,
    Dropout,
    DropPath,
    GaussianDropout,
    Masksembles,
    SpatialDropout,
)
from pernodedrop.equinox.drop_connect import DropConnectConv, DropConnectLinear
from pernodedrop.equinox.dynamic_drop_connect import DynamicDropConnectConv, DynamicDropConnectLinear, note_gradients
from pernodedrop.equinox.noisy import with_key
from pernodedrop.equinox.per_node_drop import PerNodeConv, PerNodeLinear
from pernodedrop.equinox.surgery import apply, fold

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
    "PerNodeConv",
    "PerNodeLinear",
    "SpatialDropout",
    "apply",
    "fold",
    "note_gradients",
    "uncertainty",
    "with_key",
]

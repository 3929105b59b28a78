"""What an Embedding computes, in the rows x in x out form of the mask.

It is the product of rows that are 1 at an id, and else 0, with its table. The mask's coordinates are
time: positions of the ids, row-major. in: the id. out: the place in its vector.
"""

import keras

from pernodedrop._types import Shape, Tensor
from pernodedrop.layers.base.contraction import Operands
from pernodedrop.state import Ids


class Lookup:
    """The product of an Embedding.

    Args:
        layer: a built Embedding layer.
        rank: rank of its input.
    """

    def __init__(self, layer: keras.layers.Layer, rank: int) -> None:
        self.layer = layer

    def operands(self, ids: Tensor, table: Tensor) -> Operands:
        """As `Contraction.operands`, but x is `Ids`."""
        shape = keras.ops.shape(ids)
        rows = keras.ops.reshape(ids, (shape[0], -1))
        return Operands(Ids(rows), self.matrices(table), lambda y: keras.ops.reshape(y[0], (*shape, table.shape[1])))

    def matrices(self, table: Tensor) -> Tensor:
        """A tensor of the table's shape as (group, in, out)."""
        return table[None]

    def kernel(self, matrices: Tensor, shape: Shape) -> Tensor:
        """A tensor of the table's `shape` from (group, in, out)."""
        return keras.ops.reshape(matrices, shape)

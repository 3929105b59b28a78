"""The cells of a recurrent layer, which have its kernels: found in it, and put into a copy of it."""

import collections.abc
import typing

import keras

from pernodedrop import checks
from pernodedrop.internals import of_keras

Layer: typing.TypeAlias = keras.layers.Layer

KERNELS = ("kernel", "recurrent_kernel")
"""What a cell multiplies its input and its state by, (in, out) and (units, out), with the gates side by side in out."""

CELLS = (keras.layers.SimpleRNNCell, keras.layers.GRUCell, keras.layers.LSTMCell)
EXPECTED = (
    "a keras.layers.SimpleRNN, GRU or LSTM, an RNN of their cells, or a Bidirectional of these (around it, not in it)"
)


def check_layer(layer: typing.Any) -> Layer:
    """Return a recurrent layer if noise can be put on its kernels, or raise."""
    if not isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional):
        raise TypeError(checks.invalid("layer", EXPECTED, layer))
    for cell in cells_of(layer):
        if not isinstance(cell, CELLS):
            raise TypeError(checks.invalid("layer", EXPECTED, f"{layer!r} with the cell {cell!r}"))
    return layer


def cells_of(layer: typing.Any) -> list[Layer]:
    """The cells of a recurrent layer, one after another as they compute, those of the forward layer first."""
    return [cell for inner in _inside(layer).values() for cell in cells_of(inner)] or [layer]


def with_cells(layer: typing.Any, cells: collections.abc.Iterator[Layer], **changed: typing.Any) -> Layer:
    """A shallow copy of a recurrent layer with the next of `cells` in the place of each of its own.

    Args:
        layer: the layer.
        cells: as many as it has, in the order of `cells_of`.
        **changed: attributes that every `keras.layers.RNN` of the copy has instead of its own.
    """
    inner = {name: with_cells(one, cells, **changed) for name, one in _inside(layer).items()}
    if not inner:
        return next(cells)
    if isinstance(layer, keras.layers.StackedRNNCells):
        return of_keras.shallow_copy(layer, cells=list(inner.values()))
    return of_keras.shallow_copy(layer, **inner, **(changed if isinstance(layer, keras.layers.RNN) else {}))


def _inside(layer: typing.Any) -> dict[str, Layer]:
    """The layers that a recurrent layer or its stack of cells consists of, by the attribute; of a cell none."""
    if isinstance(layer, keras.layers.Bidirectional):
        return {"forward_layer": layer.forward_layer, "backward_layer": layer.backward_layer}
    if isinstance(layer, keras.layers.RNN):
        return {"cell": layer.cell}
    if isinstance(layer, keras.layers.StackedRNNCells):
        return {str(n): cell for n, cell in enumerate(layer.cells)}
    return {}

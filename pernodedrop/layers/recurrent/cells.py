"""The cells of a recurrent layer, which have its kernels: found in it, put into a copy of it, and written out."""

import collections.abc
import typing

import keras

from pernodedrop import checks
from pernodedrop._types import Tensor
from pernodedrop.internals import of_keras
from pernodedrop.layers.base.inner import tensor_of
from pernodedrop.recurrence import KERNELS, Product

Layer: typing.TypeAlias = keras.layers.Layer
Products: typing.TypeAlias = dict[str, Product]

Step: typing.TypeAlias = collections.abc.Callable[[Layer, Products, Tensor, list[Tensor]], tuple[Tensor, list[Tensor]]]

CELLS = (keras.layers.SimpleRNNCell, keras.layers.GRUCell, keras.layers.LSTMCell)
EXPECTED = (
    "a keras.layers.SimpleRNN, GRU or LSTM, an RNN of their cells, or a Bidirectional of these (around it, not in it)"
)


def check_layer(layer: typing.Any) -> Layer:
    """Return a recurrent layer if noise can be put on its kernels, or raise."""
    if not isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional):
        raise TypeError(checks.invalid("layer", EXPECTED, layer))
    cells = cells_of(layer)
    for cell in cells:
        if not isinstance(cell, CELLS):
            raise TypeError(checks.invalid("layer", EXPECTED, f"{layer!r} with the cell {cell!r}"))
    if len({*map(id, cells)}) < len(cells):  # its kernels would have two masks
        raise ValueError(checks.invalid("layer", "one in which no cell stands twice", layer))
    return layer


def cells_of(layer: typing.Any) -> list[Layer]:
    """The cells of a recurrent layer, one after another as they compute, those of the forward layer first."""
    return [cell for inner in _inside(layer).values() for cell in cells_of(inner)] or [layer]


def is_last(layer: typing.Any, cell: Layer) -> bool:
    """Whether a cell's output is that of the loop that it is in, and not the input of another cell."""
    inside = _inside(layer).values()
    if isinstance(layer, keras.layers.Bidirectional):
        return any(is_last(one, cell) for one in inside)
    return cell is cells_of(layer)[-1]


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


def kernels_of(layer: typing.Any) -> list[dict[str, tuple[Tensor, int]]]:
    """The kernels of each cell by name: itself, as it is stored, and its first row.

    Rows are numbered through all kernels, as the mask of [x, h] with W over U has them.
    """
    found: list[dict[str, tuple[Tensor, int]]] = []
    row = 0
    for cell in cells_of(layer):
        found.append({})
        for name in KERNELS:
            with of_keras.autocast(None):  # whichever dtype the layer around has
                kernel = tensor_of(getattr(cell, name))
            found[-1][name] = kernel, row
            row += kernel.shape[0]
    return found


def with_kernels(layer: typing.Any, kernels: list[dict[str, Tensor]]) -> Layer:
    """A copy of a recurrent layer whose cells have these tensors as kernels, by name, and else their own."""

    def changed(cell: Layer, own: dict[str, Tensor]) -> Layer:
        return of_keras.shallow_copy(cell, **{name: as_computed(cell, kernel) for name, kernel in own.items()})

    return with_cells(layer, map(changed, cells_of(layer), kernels))


def assign_kernels(layer: typing.Any, kernels: list[dict[str, Tensor]]) -> None:
    """Give the variables of a recurrent layer's cells the values of these tensors, by name."""
    for cell, own in zip(cells_of(layer), kernels, strict=True):
        for name, kernel in own.items():
            getattr(cell, name).assign(kernel)


def as_computed(cell: Layer, kernel: Tensor) -> Tensor:
    """A kernel in the dtype that its cell computes in."""
    return keras.ops.cast(kernel, cell.compute_dtype)


def plain_product(kernel: Tensor) -> Product:
    """The product with a kernel as it is."""
    return lambda x: keras.ops.matmul(x, kernel)


def _inside(layer: typing.Any) -> dict[str, Layer]:
    """The layers that a recurrent layer or its stack of cells consists of, by the attribute; of a cell none."""
    if isinstance(layer, keras.layers.Bidirectional):
        return {"forward_layer": layer.forward_layer, "backward_layer": layer.backward_layer}
    if isinstance(layer, keras.layers.RNN):
        return {"cell": layer.cell}
    if isinstance(layer, keras.layers.StackedRNNCells):
        return {str(n): cell for n, cell in enumerate(layer.cells)}
    return {}


def check_steps(layer: Layer) -> None:
    """Raise unless `step` says what the cells of a recurrent layer compute."""
    for cell in cells_of(layer):
        kind = next(kind for kind in CELLS if isinstance(cell, kind))
        if type(cell).call is not kind.call:
            expected = f"a cell that computes as {kind.__name__} does where samples have masks of their own"
            raise TypeError(checks.invalid("layer", expected, cell))
        if cell.dropout or cell.recurrent_dropout:
            expected = "no dropout in the layer where samples have masks of their own, but a pernodedrop.Dropout before"
            raise ValueError(checks.invalid("layer", expected, cell))


def step(cell: typing.Any, products: Products, inputs: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What a cell of Keras computes at one step, its output and its states, with products for its kernels."""
    if isinstance(cell, keras.layers.GRUCell):
        return _gru(cell, products, inputs, states[0])
    z = products["kernel"](inputs) + products["recurrent_kernel"](states[0])
    if cell.use_bias:
        z = z + tensor_of(cell.bias)
    if isinstance(cell, keras.layers.SimpleRNNCell):
        h = cell.activation(z)
        return h, [h]
    i, f, g, o = keras.ops.split(z, 4, axis=1)
    c = cell.recurrent_activation(f) * states[1] + cell.recurrent_activation(i) * cell.activation(g)
    h = cell.recurrent_activation(o) * cell.activation(c)
    return h, [h, c]


def _gru(cell: typing.Any, products: Products, inputs: Tensor, h: Tensor) -> tuple[Tensor, list[Tensor]]:
    of_inputs, of_state = products["kernel"](inputs), products["recurrent_kernel"](h)
    if cell.use_bias:
        bias = tensor_of(cell.bias)
        of_inputs = of_inputs + (bias[0] if cell.reset_after else bias)
        of_state = of_state + bias[1] if cell.reset_after else of_state
    (x_z, x_r, x_h), (h_z, h_r, h_h) = (keras.ops.split(z, 3, axis=1) for z in (of_inputs, of_state))
    update, reset = cell.recurrent_activation(x_z + h_z), cell.recurrent_activation(x_r + h_r)
    if cell.reset_after:
        candidate = x_h + reset * h_h
    else:
        candidate = x_h + keras.ops.split(products["recurrent_kernel"](reset * h), 3, axis=1)[2]
    h = update * h + (1 - update) * cell.activation(candidate)
    return h, [h]


def with_products(layer: typing.Any, products: list[dict[str, typing.Any]], step_of: Step = step) -> Layer:
    """A copy of a recurrent layer whose cells multiply by these products, by the kernel's name, at all steps.

    Args:
        layer: the layer.
        products: those of each cell; kernels that are not among them are multiplied as they are.
        step_of: what makes a step of a cell and all its products, `step` or what calls it.
    """

    def changed(cell: Layer, kernels: dict[str, tuple[Tensor, int]], own: dict[str, typing.Any]) -> Layer:
        plain = {name: plain_product(as_computed(cell, kernel)) for name, (kernel, _) in kernels.items()}
        all_of_it = {**plain, **own}

        def call(inputs: Tensor, states: list[Tensor], training: bool = False) -> tuple[Tensor, list[Tensor]]:
            # those of a stateful layer are variables
            return step_of(cell, all_of_it, inputs, [tensor_of(state) for state in states])

        return of_keras.shallow_copy(cell, call=call)

    cells = map(changed, cells_of(layer), kernels_of(layer), products)
    return with_cells(layer, cells, use_cudnn=False)

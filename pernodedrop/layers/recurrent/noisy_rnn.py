"""NoisyRNN: noise on the kernels of a recurrent layer, DropConnect's as language models have it or PerNodeDrop's."""

import collections.abc
import typing

import keras

from pernodedrop import checks, ops, schedules
from pernodedrop._types import Config, Key, Shape, Sharing, Tensor, Words
from pernodedrop.internals import of_keras
from pernodedrop.layers.base.activation_noise import apply_mask
from pernodedrop.layers.base.around import Around
from pernodedrop.layers.base.inner import copy_of
from pernodedrop.layers.base.noisy import (
    Noisy,
    at_least_float32,
    check_built,
    check_samples,
    check_size,
    floating,
    xp,
)
from pernodedrop.layers.recurrent.cells import (
    KERNELS,
    Product,
    cells_of,
    check_layer,
    check_steps,
    is_last,
    step,
    with_cells,
)
from pernodedrop.mask import Field, Grid, Mask, coordinate
from pernodedrop.noise import Noise
from pernodedrop.schedules import Schedule

METHODS = ("auto", "materialized", "recomputed")

BASE = 256
"""Positions reach the cells as digits beside the input, which are exact in every floating dtype."""

DIGITS = 3


@keras.saving.register_keras_serializable("pernodedrop")
class NoisyRNN(Noisy, Around):
    """Puts noise on the kernels of a recurrent layer, by default one mask a batch on the recurrent kernel.

    So it is the DropConnect of language models (AWD-LSTM's weight drop, arXiv 1708.02182): in each training call

        z[n, t] = x[n, t] W + h[n, t - 1] (U * M) + b,    E[M] = 1,

    where z has the gates of a GRU or an LSTM side by side, so that each gate has a mask of its own; M is the same at
    all steps. The mask multiplies the kernel before the loop over the steps, and the rest is the inner layer's own
    call, cuDNN's where it is. With `sharing="time"` each sample has masks of its own, the same at all its steps, as
    PerNodeDrop has it (arXiv 2512.12663); then Keras' loop over the steps takes cells with these products, without
    cuDNN. At inference the dynamic and example regimes are the inner layer; fixed and bank keep their masks.

    The mask is that of [x, h] with W over U: the in coordinate of the recurrent kernel's first row is the one after the
    kernel's last, whether that has noise or not. The kernels of several cells, and of the two layers of a
    `Bidirectional`, follow one another likewise.

    Args:
        layer: the inner layer, a `keras.layers.SimpleRNN`, `GRU` or `LSTM`, an `RNN` of their cells, stacked or not,
            or a `Bidirectional` of these.
        rate, noise: as for `pernodedrop.PerNodeDrop`.
        regime, bank_size: as for `pernodedrop.PerNodeDrop`; those of examples and of a bank with `sharing="time"`.
        kernels: which have noise, some of "kernel", which the input is multiplied by, and "recurrent_kernel".
        sharing: coordinates that the mask does not depend on. None, or "sample+time": one mask for a batch and all
            steps. "time": masks of each sample. "sample": masks of each step, (): of each step of each sample. Time is
            the position in the input, whichever way the layer goes. Where samples or steps have masks of their own the
            cells compute as Keras' do, and have no dropout.
        seed: int, any; None takes one from Python's `random`.
        method: how samples and steps are multiplied by kernels of their own. "materialized": the masks are made before
            the loop, in the memory of all of them. "recomputed": they are made at each step, and again in the backward
            pass, in blocks, which takes less memory and more time. "auto": "recomputed" for masks of steps that do not
            persist, else "materialized", so that the memory grows with time for what persists alone.
        persistence: the probability in [0, 1] that an entry keeps its value from one position to the next, or a
            schedule of it, as for `pernodedrop.PerNodeDrop`; a sharing of None is "sample" then.
        **kwargs: those of `keras.layers.Layer`. The dtype policy is the inner layer's unless given.

    Call arguments:
        inputs: floating tensor (batch, time, in).
        initial_state, mask, training: those of the inner layer.
        key: the key to use instead of drawing one, from `draw()`.
        sample_ids: as for `pernodedrop.PerNodeDrop`.

    Input and output shapes: the inner layer's. Output dtype: this layer's compute dtype.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layer = pnd.NoisyRNN(keras.layers.LSTM(4, return_sequences=True), rate=0.5, seed=1)
    >>> layer(np.ones((2, 5, 3), "float32"), training=True).shape == (2, 5, 4)
    True
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        rate: float | Schedule | None = None,
        noise: str | Noise = "bernoulli",
        regime: str = "dynamic",
        kernels: collections.abc.Sequence[str] = ("recurrent_kernel",),
        sharing: Sharing = None,
        bank_size: int | None = None,
        seed: int | None = None,
        method: str = "auto",
        persistence: float | Schedule | None = None,
        **kwargs: typing.Any,
    ) -> None:
        check_layer(layer)
        if "go_backwards" in kwargs:  # of Bidirectional, which makes a layer that goes the other way of the config
            expected = "it in the inner layer, and NoisyRNN(keras.layers.Bidirectional(layer)), not the other way round"
            raise TypeError(checks.invalid("go_backwards", expected, kwargs["go_backwards"]))
        names = checks.check_tuple(kernels, "kernels", f"some of {KERNELS}")
        names = tuple(checks.check_choice(name, "kernels", KERNELS) for name in names)
        if not names:
            raise ValueError(checks.invalid("kernels", f"one or more of {KERNELS}", kernels))
        noise, schedule = schedules.get_noise(noise, rate)
        start, slow = schedules.get_persistence(persistence)
        if sharing is None:
            sharing = "sample+time" if start is None else "sample"
        mask = Mask(noise, sharing, regime, bank_size, start)
        if not {"sample", "time"} <= mask.sharing:
            check_steps(layer)
        kwargs = {"dtype": layer.dtype_policy, **kwargs}
        super().__init__(mask=mask, seed=seed, schedule=schedule, persistence=slow, layer=layer, **kwargs)
        self.kernels = names
        self.method = checks.check_choice(method, "method", METHODS)
        if method == "recomputed" and start is not None:
            raise ValueError(checks.invalid("method", "'auto' or 'materialized' beside `persistence`", method))
        self.supports_masking = True

    def build(self, inputs_shape: Shape, initial_state_shape: typing.Any = None) -> None:
        if not self.layer.built:
            self.layer.build(inputs_shape)
            self.layer.built = True

    def call(
        self,
        inputs: Tensor,
        initial_state: typing.Any = None,
        mask: Tensor | None = None,
        training: bool | None = None,
        key: Key | None = None,
        sample_ids: Tensor | None = None,
    ) -> typing.Any:
        check_samples(inputs)
        if mask is None and initial_state is None:  # Keras does not look for it beside a tensor of a key or of ids
            mask = of_keras.mask_of(inputs)
        inputs = keras.ops.convert_to_tensor(inputs)
        ops.check_layout("inputs", inputs, ("dense",), xp)
        check_size(inputs, -1, cells_of(self.layer)[0].kernel.shape[0])
        layer = self.layer
        if self.has_noise(training):
            inputs = floating(inputs)
            field, samples = self.field(key, xp.device(inputs)), self.samples(inputs, sample_ids)
            layer = self._with_masks(field) if self.state.one_kernel else self._with_steps(inputs, field, samples)
            inputs = inputs if "time" in self.sharing else with_positions(inputs)
        outputs = layer(inputs, initial_state=initial_state, mask=mask, training=training)
        return keras.tree.map_structure(lambda tensor: keras.ops.cast(tensor, self.compute_dtype), outputs)

    def reset_state(self) -> None:
        """Set the states of a stateful layer to zero."""
        self.layer.reset_state()

    def fold(self) -> keras.layers.Layer:
        """A plain recurrent layer, built, with weights of its own, that computes what this layer does at inference.

        Raises:
            ValueError: a layer that is not built, or that keeps masks of samples or steps at inference.
        """
        check_built(self)
        if self.state.mask.at_inference and not self.state.one_kernel:
            expected = "one with the same masks at all steps of all samples at inference, to be folded"
            raise ValueError(checks.invalid("regime", expected, f"{self.regime}, sharing={sorted(self.sharing)}"))
        plain = copy_of(self.layer, dtype=self.dtype_policy)
        if self.state.mask.at_inference:
            masked = self._masked_kernels(self.field(None, None))
            for cell, kernels in zip(cells_of(plain), masked, strict=True):
                for name, kernel in kernels.items():
                    getattr(cell, name).assign(kernel)
        return plain

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor | None) -> typing.Any:
        """The mask that the inner layer passes on."""
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, inputs_shape: Shape, initial_state_shape: typing.Any = None) -> typing.Any:
        return self.layer.compute_output_shape(inputs_shape, initial_state_shape)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            **self.noise_config,
            "regime": self.regime,
            "kernels": list(self.kernels),
            "sharing": sorted(self.sharing),
            "bank_size": self.members,
            "method": self.method,
            "persistence": self.persistence_config,
        }

    def _with_masks(self, field: Field) -> keras.layers.Layer:
        """The inner layer with the kernels of a call, where the mask is one for all samples and steps."""
        masked = zip(cells_of(self.layer), self._masked_kernels(field), strict=True)
        return with_cells(self.layer, (of_keras.shallow_copy(cell, **kernels) for cell, kernels in masked))

    def _masked_kernels(self, field: Field) -> list[dict[str, Tensor]]:
        """Those kernels of each cell that have noise, with it, in the dtype that the cell computes in."""
        masked: list[dict[str, Tensor]] = []
        row = 0
        for cell in cells_of(self.layer):
            masked.append({})
            for name in KERNELS:
                kernel = self._float_kernel(cell, name)
                if name in self.kernels:
                    zero = xp.arange(1, like=kernel)
                    mask = self._grid(row, kernel, field, zero, zero).entries(xp)[0]
                    masked[-1][name] = apply_mask(kernel, xp.once(mask))
                row += kernel.shape[0]
        return masked

    def _with_steps(self, inputs: Tensor, field: Field, samples: Words) -> keras.layers.Layer:
        """The inner layer with cells whose products have the masks of each sample, of each step, or of both."""
        row, cells = 0, []
        time = coordinate("time", xp.shape(inputs)[1], self.sharing, inputs, xp)
        samples = xp.arange(1, like=inputs) if "sample" in self.sharing else samples
        for cell in cells_of(self.layer):
            products = {}
            for name in KERNELS:
                kernel = self._float_kernel(cell, name)
                grid = self._grid(row, kernel, field, time, samples)
                products[name] = self._products(kernel, grid) if name in self.kernels else _plain(kernel)
                row += kernel.shape[0]
            cells.append(of_keras.shallow_copy(cell, call=self._call_of(cell, products)))
        return with_cells(self.layer, iter(cells), use_cudnn=False)

    def _call_of(
        self, cell: keras.layers.Layer, products: dict[str, typing.Callable[[Tensor | None], Product]]
    ) -> typing.Callable[..., typing.Any]:
        """The `call` of a copy of a cell, with its products at a position; without positions it is None."""
        in_a_stack = not is_last(self.layer, cell)

        def call(inputs: Tensor, states: list[Tensor], training: bool = False) -> tuple[Tensor, list[Tensor]]:
            if "time" in self.sharing:
                return step(cell, {name: product(None) for name, product in products.items()}, inputs, states)
            inputs, digits = inputs[:, :-DIGITS], inputs[:, -DIGITS:]
            position = position_of(digits)
            here = {name: product(position) for name, product in products.items()}
            outputs, states = step(cell, here, inputs, states)
            return keras.ops.concatenate([outputs, digits], -1) if in_a_stack else outputs, states

        return call

    def _products(self, kernel: Tensor, grid: Grid) -> typing.Callable[[Tensor | None], Product]:
        """How an input (batch, in) of a cell is multiplied by a kernel with its masks, by the position in time."""
        kernel = at_least_float32(kernel)
        dtype, axis = xp.dtype(kernel), 0 if "sample" in self.sharing else 1
        at = (self._recomputed if self._makes_again else self._materialized)(kernel, grid)

        def product_at(position: Tensor | None) -> Product:
            multiply = at(position)

            def product(x: Tensor) -> Tensor:
                y = multiply(keras.ops.expand_dims(xp.astype(x, dtype), axis))
                return xp.astype(keras.ops.squeeze(y, axis), xp.dtype(x))

            return product

        return product_at

    @property
    def _makes_again(self) -> bool:
        """Whether masks are made again at each step: those of a step are, unless they persist."""
        of_steps = "time" not in self.sharing and self.state.mask.persistence is None
        return self.method == "recomputed" or (self.method == "auto" and of_steps)

    def _recomputed(self, kernel: Tensor, grid: Grid) -> typing.Callable[[Tensor | None], Product]:
        """Products of rows (sample or 1, *, in) by the position, with masks that are made for each."""

        def at(position: Tensor | None) -> Product:
            here = grid if position is None else grid._replace(time=xp.as_word(position))
            return lambda rows: xp.recomputed(rows, kernel, here)

        return at

    def _materialized(self, kernel: Tensor, grid: Grid) -> typing.Callable[[Tensor | None], Product]:
        """The same with masks that are made before the loop."""
        time, sample = grid.time[:, None, None, None], grid.sample[:, None, None]
        masks = xp.once(grid.field.entries(time, sample, grid.in_[:, None], grid.out, xp))
        masks = xp.astype(masks, xp.dtype(kernel))
        whole = kernel * masks[0] if "time" in self.sharing else None  # once, before the loop

        def at(position: Tensor | None) -> Product:
            masked = whole if position is None else kernel * xp.take(masks, position, axis=0)[0]
            return lambda rows: keras.ops.matmul(rows, masked)

        return at

    def _float_kernel(self, cell: keras.layers.Layer, name: str) -> Tensor:
        """A kernel in the dtype that its cell computes in, whichever this layer has."""
        with of_keras.autocast(None):
            return keras.ops.cast(getattr(cell, name), cell.compute_dtype)

    def _grid(self, row: int, kernel: Tensor, field: Field, time: Words, samples: Words) -> Grid:
        """The mask of a kernel (in, out) whose first row has this in coordinate."""
        rows, columns = kernel.shape
        in_, out = (coordinate(axis, n, self.sharing, kernel, xp) for axis, n in (("in", rows), ("out", columns)))
        if "in" not in self.sharing:
            in_ = in_ + row
        return Grid(field, time, samples, xp.broadcast_to(in_, (rows,)), xp.broadcast_to(out, (columns,)))


def _plain(kernel: Tensor) -> typing.Callable[[Tensor | None], Product]:
    return lambda position: lambda x: keras.ops.matmul(x, kernel)


def with_positions(inputs: Tensor) -> Tensor:
    """Inputs (batch, time, in) with the position of each step beside them, as the digits of `position_of`."""
    batch, steps, _ = xp.shape(inputs)
    position = xp.astype(xp.arange(steps, like=inputs), "int32")
    digits = keras.ops.stack([position // BASE**n % BASE for n in range(DIGITS)], axis=-1)
    digits = keras.ops.broadcast_to(keras.ops.cast(digits, inputs.dtype), (batch, steps, DIGITS))
    return keras.ops.concatenate([inputs, digits], axis=-1)


def position_of(digits: Tensor) -> Tensor:
    """The position, int32 (1,), that is beside the inputs of a step (batch, digits): the same in all rows."""
    digits = keras.ops.cast(digits[:1], "int32")
    return sum(digits[:, n] * BASE**n for n in range(DIGITS))

"""NoisyRNN: noise on the kernels of a recurrent layer, DropConnect's as language models have it or PerNodeDrop's."""

import collections.abc
import typing

import keras

from pernodedrop import checks, schedules
from pernodedrop._types import Config, Sharing, Tensor, Words
from pernodedrop.layers.base.activation_noise import apply_mask
from pernodedrop.layers.base.inner import copy_of
from pernodedrop.layers.base.noisy import check_built, xp
from pernodedrop.layers.recurrent.cells import (
    as_computed,
    assign_kernels,
    cells_of,
    check_steps,
    is_last,
    kernels_of,
    step,
    with_kernels,
    with_products,
)
from pernodedrop.layers.recurrent.recurrent_noise import RecurrentNoise
from pernodedrop.mask import Field, coordinate
from pernodedrop.noise import Noise
from pernodedrop.recurrence import ProductAt, Recurrence
from pernodedrop.schedules import Schedule

BASE = 256
"""Positions reach the cells as digits beside the input, which are exact in every floating dtype."""

DIGITS = 3


@keras.saving.register_keras_serializable("pernodedrop")
class NoisyRNN(RecurrentNoise):
    """Puts noise on the kernels of a recurrent layer, by default one mask a batch on the recurrent kernel.

    By default it is the DropConnect of language models (AWD-LSTM's weight drop, arXiv 1708.02182). In a training call

        z[n, t] = x[n, t] W + h[n, t - 1] (U * M) + b,    E[M] = 1,

    where z has the gates of a GRU or an LSTM side by side, so that each gate has a mask of its own; M is the same at
    all steps. The mask multiplies the kernel before the loop over the steps, and the rest is the inner layer's own
    call, with cuDNN where Keras uses it. With `sharing="time"` each sample has masks of its own, the same at all its
    steps, as in PerNodeDrop (arXiv 2512.12663); Keras' loop over the steps then runs cells with these products, without
    cuDNN. In the regimes dynamic and example, inference is the inner layer; fixed and bank keep their masks.

    With `kernels=("kernel", "recurrent_kernel")` and `sharing="time+out"` it is Gal's variational dropout (arXiv
    1512.05287): masks on x and on h of a sample, the same at all steps and in all gates; with "time+unit" each gate has
    masks of its own.

    Coordinates are those of one kernel, W above U, that multiplies [x, h]: the in coordinates of the recurrent kernel
    continue those of the kernel, whether that one has noise or not. The kernels of several cells, and of the two layers
    of a `Bidirectional`, follow one another likewise.

    Args:
        layer: the inner layer, a `keras.layers.SimpleRNN`, `GRU` or `LSTM`, an `RNN` of their cells, stacked or not,
            or a `Bidirectional` of these; or a NoisyRNN with one mask for a batch and all steps.
        rate, noise: as for `pernodedrop.PerNodeDrop`.
        regime, bank_size: as for `pernodedrop.PerNodeDrop`; those of examples and of a bank with `sharing="time"`.
        kernels: which have noise, some of "kernel", which multiplies the input, and "recurrent_kernel".
        sharing: coordinates that the mask does not depend on. None or "sample+time": one mask for a batch and all
            steps. "time": a mask for each sample. "sample": for each step. (): for each step of each sample. Time is
            the position in the input, whichever way the layer goes. Each of these may also have "gate": all gates have
            one mask; "unit": all units of a gate share their entries, which so multiply the input or the state; or
            "out": both. Where samples or steps have masks of their own, cells must compute as Keras' do, without
            dropout.
        seed: any int; None takes one from Python's `random`.
        method: how samples and steps are multiplied by kernels of their own. "materialized": all masks are made, and
            held in memory, before the loop. "recomputed": they are made in blocks at each step, and again in the
            backward pass, which takes less memory and more time. "auto": "recomputed" for masks of steps that do not
            persist, and with torch and NumPy on CPUs, for 8 samples or more, for large Bernoulli masks that last a
            sequence (batch x in x out from a million where the kernel is trained, else from 4 million), both by a
            hand-written kernel where samples have masks of their own; "materialized" for all others, so that memory
            grows with time only for what persists. Entries that all units of a gate share multiply inputs and states,
            and are as many as these.
        persistence: the probability in [0, 1] that an entry keeps its value from one position to the next, or a
            schedule of it, as for `pernodedrop.PerNodeDrop`; with it, `sharing=None` is "sample".
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
        if isinstance(layer, RecurrentNoise) and not (isinstance(layer, NoisyRNN) and layer.state.one_kernel):
            expected = "one of Keras', or a NoisyRNN with one mask for all samples and steps"
            raise ValueError(checks.invalid("layer", expected, layer))
        kind, schedule = schedules.get_noise(noise, rate)
        start, slow = schedules.get_persistence(persistence)
        recurrence = Recurrence.of(kind, sharing, regime, bank_size, start, kernels, method)
        super().__init__(layer, recurrence.mask, seed=seed, schedule=schedule, persistence=slow, **kwargs)
        self.recurrence = recurrence
        if not self.state.one_kernel:
            check_steps(self.plain)

    @property
    def sharing(self) -> frozenset[str]:
        """The coordinates that entries do not depend on, "gate" and "unit" among them."""
        return self.recurrence.sharing  # torch.compile cannot read a property of `super()`

    def with_noise(
        self, layer: keras.layers.Layer, inputs: Tensor, field: Field, samples: Words
    ) -> tuple[keras.layers.Layer, Tensor]:
        if self.state.one_kernel:
            return with_kernels(layer, self._masked_kernels(layer, field)), inputs
        layer = self._with_steps(layer, inputs, field, samples)
        return layer, inputs if "time" in self.sharing else with_positions(inputs)

    def fold(self) -> keras.layers.Layer:
        """A plain recurrent layer, built, with weights of its own, that computes what this layer does at inference.

        Raises:
            ValueError: a layer that is not built, or that keeps masks of samples or steps at inference.
        """
        check_built(self)
        if self.state.mask.at_inference and not self.state.one_kernel:
            expected = "one with the same masks at all steps of all samples at inference, to be folded"
            raise ValueError(checks.invalid("regime", expected, f"{self.regime}, sharing={sorted(self.sharing)}"))
        nested = isinstance(self.layer, RecurrentNoise)
        plain = self.layer.fold() if nested else copy_of(self.layer, dtype=self.dtype_policy)
        if self.state.mask.at_inference:
            assign_kernels(plain, self._masked_kernels(plain, self.field(None, None)))
        return plain

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            **self.noise_config,
            "regime": self.regime,
            "kernels": list(self.recurrence.kernels),
            "sharing": sorted(self.sharing),
            "bank_size": self.members,
            "method": self.recurrence.method,
            "persistence": self.persistence_config,
        }

    def _masked_kernels(self, layer: keras.layers.Layer, field: Field) -> list[dict[str, Tensor]]:
        """Those kernels of each cell that have noise, with it, in the dtype that they are stored in."""
        masked: list[dict[str, Tensor]] = []
        for cell, kernels in zip(cells_of(layer), kernels_of(layer), strict=True):
            masked.append({})
            for name in self.recurrence.kernels:
                kernel, row = kernels[name]
                zero = xp.arange(1, like=kernel)
                mask = self.recurrence.grid(row, kernel, cell.units, field, zero, zero, xp).entries(xp)[0]
                masked[-1][name] = apply_mask(kernel, xp.optimization_barrier(mask))
        return masked

    def _with_steps(
        self, layer: keras.layers.Layer, inputs: Tensor, field: Field, samples: Words
    ) -> keras.layers.Layer:
        """A layer with cells whose products have the masks of each sample, of each step, or of both."""
        time = coordinate("time", xp.shape(inputs)[1], self.sharing, inputs, xp)
        samples = xp.arange(1, like=inputs) if "sample" in self.sharing else samples
        own = self.recurrence.kernels

        def of_kernel(cell: keras.layers.Layer, stored: Tensor, row: int) -> ProductAt:
            kernel = as_computed(cell, stored)
            grid = self.recurrence.grid(row, kernel, cell.units, field, time, samples, xp)
            return self.recurrence.products(kernel, cell.units, grid, xp)

        def step_at(
            cell: keras.layers.Layer, products: dict[str, typing.Any], inputs: Tensor, states: list[Tensor]
        ) -> tuple[Tensor, list[Tensor]]:
            inputs, digits = inputs[:, :-DIGITS], inputs[:, -DIGITS:]
            position = position_of(digits)
            here = {name: product(position) if name in own else product for name, product in products.items()}
            outputs, states = step(cell, here, inputs, states)
            return outputs if is_last(layer, cell) else keras.ops.concatenate([outputs, digits], -1), states

        cells = zip(cells_of(layer), kernels_of(layer), strict=True)
        products = [{name: of_kernel(cell, *kernels[name]) for name in own} for cell, kernels in cells]
        if "time" not in self.sharing:
            return with_products(layer, products, step_at)
        return with_products(layer, [{name: at(None) for name, at in of_cell.items()} for of_cell in products])


def with_positions(inputs: Tensor) -> Tensor:
    """Inputs (batch, time, in) with the position of each step beside them, as the digits of `position_of`."""
    batch, steps, _ = xp.shape(inputs)
    position = xp.astype(xp.arange(steps, like=inputs), "int32")
    digits = keras.ops.stack([position // BASE**n % BASE for n in range(DIGITS)], axis=-1)
    digits = keras.ops.broadcast_to(keras.ops.cast(digits, inputs.dtype), (batch, steps, DIGITS))
    return keras.ops.concatenate([inputs, digits], axis=-1)


def position_of(digits: Tensor) -> Tensor:
    """The position, int32 (1,), that is beside the inputs of a step (batch, digits): the same in all rows."""
    if digits.shape[0] == 0:  # no rows, of which no step matters
        digits = keras.ops.zeros((1, DIGITS))
    digits = keras.ops.cast(digits[:1], "int32")
    return sum(digits[:, n] * BASE**n for n in range(DIGITS))

"""Zoneout: states of a recurrent layer that stay as they were (arXiv 1606.01305)."""

import itertools
import typing

import keras
import numpy as np

from pernodedrop import checks, schedules
from pernodedrop._types import Config, Tensor, Words
from pernodedrop.internals import of_keras
from pernodedrop.layers.base.noisy import xp
from pernodedrop.layers.recurrent.cells import cells_of, check_steps, is_last, with_cells
from pernodedrop.layers.recurrent.noisy_rnn import NoisyRNN
from pernodedrop.layers.recurrent.recurrent_noise import RecurrentNoise
from pernodedrop.mask import Field, Mask
from pernodedrop.noise import Bernoulli
from pernodedrop.schedules import Schedule


@keras.saving.register_keras_serializable("pernodedrop")
class Zoneout(RecurrentNoise):
    """Lets units of a recurrent layer keep their state from one step to the next, at random (arXiv 1606.01305).

    With h~[t] and, in an LSTM, c~[t] the states that the cell computes from h[t - 1] and c[t - 1], in training

        h[t] = h[t - 1] where a unit is zoned out, with probability `rate`, else h~[t]

    and c[t] likewise with `cell_rate`, independently for each sample, step and unit. At inference the states are the
    means, rate * h[t - 1] + (1 - rate) * h~[t]. The output of a step is h[t]. Keras' loop over the steps runs such
    cells, without cuDNN, at inference too.

    Around a `pernodedrop.NoisyRNN` the cells have that noise on their kernels as well, with a key of its own.

    The coordinates of an entry are the sample, the position in the input (time) and the number of the unit (in). Units
    of h come before those of c, and cells one after another, as in `cell.state_size`; in a `Bidirectional`, the forward
    layer's come first.

    Args:
        layer: the inner layer, as for `pernodedrop.NoisyRNN`, or a NoisyRNN. Its cells must compute as Keras' do,
            without dropout.
        rate: the probability in [0, 1) that a unit of h keeps its state, or a schedule of `pernodedrop.schedules`,
            whose present rate holds at inference.
        cell_rate: the same for c, in LSTMs, a float in [0, 1); None is `rate`, with its schedule.
        seed: int, any; None takes one from Python's `random`.
        **kwargs: those of `keras.layers.Layer`. The dtype policy is the inner layer's unless given.

    Call arguments:
        inputs: floating tensor (batch, time, in).
        initial_state, mask, training: those of the inner layer.
        key: the key to use instead of drawing one, from `draw()`. A NoisyRNN inside draws its own.
        sample_ids: integer tensor (batch,): the sample coordinate of each row, instead of its place in the batch.

    Input and output shapes: the inner layer's. Output dtype: this layer's compute dtype.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layer = pnd.Zoneout(keras.layers.LSTM(4), rate=0.05, cell_rate=0.5, seed=1)
    >>> layer(np.ones((2, 5, 3), "float32"), training=True).shape == (2, 4)
    True
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        rate: float | Schedule,
        cell_rate: float | None = None,
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        if isinstance(layer, RecurrentNoise) and not isinstance(layer, NoisyRNN):
            raise TypeError(checks.invalid("layer", "one of Keras' or a NoisyRNN", layer))
        start, schedule = schedules.get(rate)
        super().__init__(layer, Mask(Bernoulli(start), ()), seed=seed, schedule=schedule, **kwargs)
        check_steps(self.plain)
        self._has_cell_rate = cell_rate is not None
        if cell_rate is not None:
            checks.check_rate(cell_rate, "cell_rate")
            if not any(map(_has_cell_state, cells_of(self.plain))):
                raise ValueError(checks.invalid("cell_rate", "None for a layer without LSTM cells", cell_rate))
            self._cell_threshold = self._variable("cell_threshold", Bernoulli(cell_rate).params()["threshold"])

    @property
    def cell_rate(self) -> float | None:
        """The present rate of c, None where it is `rate`. Setting it takes effect from the next call."""
        return self._cell_noise.rate if self._has_cell_rate else None

    @cell_rate.setter
    def cell_rate(self, cell_rate: float) -> None:
        if not self._has_cell_rate:
            raise AttributeError(f"Layer {self.name!r} has no cell_rate of its own: set `rate`, which is that of both.")
        self._cell_threshold.assign(Bernoulli(checks.check_rate(cell_rate, "cell_rate")).params()["threshold"])

    @property
    def is_stochastic(self) -> bool:
        """Whether one of the rates is above zero, or there is a schedule."""
        return super().is_stochastic or (self._has_cell_rate and self._cell_noise.variance > 0)

    @property
    def _cell_noise(self) -> Bernoulli:
        threshold = keras.ops.convert_to_numpy(self._cell_threshold)[()]
        return Bernoulli(0.0).with_params({"threshold": threshold})

    def with_noise(
        self, layer: keras.layers.Layer, inputs: Tensor, field: Field, samples: Words
    ) -> tuple[keras.layers.Layer, Tensor]:
        steps, field = xp.shape(inputs)[1], self._of_units(field)
        zero, time, unit = (xp.arange(size, like=inputs) for size in (1, steps, self._units))
        drawn = field.entries(time[:, None], samples[:, None, None], unit, zero, xp) > 0  # units have a rate each
        # beside the inputs, so that the loop over the steps hands each its own
        inputs = keras.ops.concatenate([inputs, keras.ops.cast(drawn, inputs.dtype)], axis=-1)
        return self._zoned(layer, None), inputs

    def without_noise(self, layer: keras.layers.Layer, inputs: Tensor) -> tuple[keras.layers.Layer, Tensor]:
        return self._zoned(layer, self.keep_probability(self._of_units(self.peek(xp.device(inputs))))), inputs

    def fold(self) -> typing.NoReturn:
        """Raise: inference, which mixes the states of steps, is no plain layer of Keras."""
        raise ValueError(f"Layer {self.name!r} cannot be folded: what Zoneout does at inference no plain layer does.")

    def get_config(self) -> Config:
        return {**super().get_config(), "rate": self.rate_config, "cell_rate": self.cell_rate}

    @property
    def _units(self) -> int:
        """How many numbers the states of all cells have."""
        return sum(sum(_sizes(cell)) for cell in cells_of(self.plain))

    def _of_units(self, field: Field) -> Field:
        """The field whose numbers are those of each unit's rate, (units,)."""
        threshold: Tensor = field.params["threshold"]
        of_cells = xp.asarray(self._cell_threshold.value) if self._has_cell_rate else threshold
        sizes = map(_sizes, cells_of(self.plain))
        is_c = np.concatenate([np.repeat(np.arange(len(own)) > 0, own) for own in sizes])
        is_c = xp.asarray(is_c, device=xp.device(threshold))
        return field._replace(params={"threshold": xp.where(is_c, of_cells, threshold)})

    def _zoned(self, layer: keras.layers.Layer, share: Tensor | None) -> keras.layers.Layer:
        """A layer whose cells take a share (units,) of their new states; None: that beside the inputs of each step."""
        cells, start = [], 0
        for cell in cells_of(layer):
            ends = np.cumsum([start, *_sizes(cell)]).tolist()
            places = [slice(*pair) for pair in itertools.pairwise(ends)]
            call = self._call_of(cell, places, share, is_last(layer, cell))
            cells.append(of_keras.shallow_copy(cell, call=call))
            start = ends[-1]
        return with_cells(layer, iter(cells), use_cudnn=False)

    def _call_of(
        self, cell: typing.Any, places: list[slice], share: Tensor | None, last: bool
    ) -> typing.Callable[..., typing.Any]:
        """The `call` of a copy of a cell, whose states have these places among all units."""
        units = self._units

        def call(inputs: Tensor, states: list[Tensor], training: bool = False) -> tuple[Tensor, list[Tensor]]:
            if share is None:
                inputs, shares = inputs[:, :-units], inputs[:, -units:]
            else:
                shares = share
            outputs, found = cell.call(inputs, states, training=training)
            states = [_mixed(old, new, shares[..., at]) for old, new, at in zip(states, found, places, strict=True)]
            if last:
                return states[0], states
            for_next = [outputs[:, cell.units :], *([shares] if share is None else [])]
            return keras.ops.concatenate([states[0], *for_next], axis=-1), states

        return call


def _mixed(old: Tensor, new: Tensor, share: Tensor) -> Tensor:
    """A share of the new state, and of the old one the rest."""
    share = keras.ops.cast(share, new.dtype)
    return share * new + (1 - share) * old


def _sizes(cell: typing.Any) -> list[int]:
    """How many numbers each state of a cell has, h before c."""
    return [cell.state_size] if isinstance(cell.state_size, int) else list(cell.state_size)


def _has_cell_state(cell: typing.Any) -> bool:
    return len(_sizes(cell)) > 1

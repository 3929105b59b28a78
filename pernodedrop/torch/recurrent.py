"""Noise on the kernels of recurrent modules: DropConnect as language models have it."""

import collections.abc
import typing

import torch

from pernodedrop import checks, schedules
from pernodedrop._types import Key
from pernodedrop.mask import Field, Grid, Mask
from pernodedrop.noise import Noise
from pernodedrop.schedules import Schedule
from pernodedrop.state import apply_mask
from pernodedrop.torch.noisy import xp
from pernodedrop.torch.products import put
from pernodedrop.torch.weight_noise import OfPlain

KERNELS = {"kernel": "weight_ih", "recurrent_kernel": "weight_hh"}
"""What an input and a state are multiplied by, in the words of Keras and of torch."""

FORM = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")


class RecurrentNoise(OfPlain):
    """Base of the three: one mask for a batch and all steps, which multiplies kernels before the loop over the steps.

    What the loop does, packed sequences and cuDNN included, is torch's own affair.
    """

    inputs = 2
    num_layers: int
    bidirectional: bool
    weight_ih_l0: torch.Tensor
    gates: typing.ClassVar[tuple[int, ...]]
    """Which place each gate of torch has among those of Keras, of which the mask's coordinates are."""

    def __init__(
        self,
        *args: typing.Any,
        rate: float | Schedule | None = None,
        noise: str | Noise = "bernoulli",
        regime: str = "dynamic",
        kernels: collections.abc.Sequence[str] = ("recurrent_kernel",),
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        names = checks.check_names(kernels, "kernels", tuple(KERNELS))
        kind, schedule = schedules.get_noise(noise, rate)
        mask = Mask(kind, "sample+time", checks.check_choice(regime, "regime", ("dynamic", "fixed")))
        super().__init__(*args, **kwargs)
        self.kernels = names
        self.start(mask, seed, schedule)

    def forward(
        self,
        input: typing.Any,  # noqa: A002 - torch's own name
        hx: typing.Any = None,
        key: Key | None = None,
    ) -> typing.Any:
        """What the plain module gives, in training with noise on its kernels; see the class."""
        if not self.has_noise:
            return super().forward(input, hx)
        with torch.device("meta"):
            plain = self.plain(**self.form_of(self)).train(self.training)
        weights = {**self.values_of(plain), **self._noisy_kernels(self._field(key))}
        return torch.func.functional_call(plain, weights, (input, hx))

    def fold(self) -> torch.nn.Module:
        """The plain module that computes what this one does at inference."""
        plain = self.made_plain()
        if self.state.mask.at_inference:
            for name, value in self._noisy_kernels(self._field(self.noise_key)).items():
                put(plain, name, value, getattr(plain, name).requires_grad)
        return plain

    def _field(self, key: Key | None) -> Field:
        return self.field(key, self.weight_ih_l0.device)

    def _noisy_kernels(self, field: Field) -> dict[str, torch.Tensor]:
        """The kernels that have noise, by name; the rows of all of them follow one another in the mask."""
        found, row = {}, 0
        for layer in range(self.num_layers):
            for direction in ("", "_reverse")[: 1 + self.bidirectional]:
                for kernel, prefix in KERNELS.items():
                    name = f"{prefix}_l{layer}{direction}"
                    weight = getattr(self, name)
                    if kernel in self.kernels:
                        found[name] = apply_mask(weight, self._mask(row, weight, field), xp)
                    row += weight.shape[1]
        return found

    def _mask(self, row: int, weight: torch.Tensor, field: Field) -> torch.Tensor:
        """The mask of a weight (gates * units, in) whose first in coordinate is `row`."""
        columns, rows = weight.shape
        units = columns // len(self.gates)
        zero, in_ = xp.arange(1, like=weight), xp.arange(rows + row, like=weight)[row:]
        out = torch.cat([xp.arange(columns, like=weight)[units * gate : units * (gate + 1)] for gate in self.gates])
        return Grid(field, zero, zero, in_, out).entries(xp)[0].T


class NoisyLSTM(RecurrentNoise, torch.nn.LSTM):
    """A `torch.nn.LSTM` with noise on its kernels in training, one mask a batch, by default on the recurrent ones.

    So it is the DropConnect of language models (AWD-LSTM's weight drop, arXiv 1708.02182): at all steps of a call

        z[n, t] = x[n, t] W + h[n, t - 1] (U * M) + b,    E[M] = 1,

    where z has the gates side by side, each with a mask of its own. It is `pernodedrop.NoisyRNN` around a
    `keras.layers.LSTM` as a module, with equal masks for equal (seed, call). The kernels of several layers and of both
    directions follow one another in one mask, the directions of a layer first. Masks of each sample or step, which the
    Keras layer has too, would need a loop other than torch's, and are not possible.

    Args:
        *args, **kwargs: those of `torch.nn.LSTM`: input_size, hidden_size, num_layers, batch_first and so on. Its own
            `dropout` between layers stays torch's.
        rate, noise: as for `pernodedrop.torch.PerNodeLinear`.
        regime: "dynamic": a new mask every call that trains. "fixed": one mask, at inference too.
        kernels: which have noise, some of "kernel", which the input is multiplied by, and "recurrent_kernel".
        seed: any int; None takes one from Python's `random`.

    Call arguments:
        input, hx: those of `torch.nn.LSTM`, packed sequences included.
        key: the key to use instead of drawing one, from `draw()`, or (seed, call).

    Output shapes and dtypes: those of `torch.nn.LSTM`. torch.compile runs it eagerly, as it does torch's own.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.
        RuntimeError: a key would be drawn inside `torch.utils.checkpoint`, see `drawn_keys`.

    Example:

    >>> import torch, pernodedrop.torch as pndt
    >>> layer = pndt.NoisyLSTM(3, 4, batch_first=True, rate=0.5, seed=1)
    >>> y, (h, c) = layer(torch.ones(2, 5, 3))
    >>> y.shape
    torch.Size([2, 5, 4])
    """

    plain, gates, form = torch.nn.LSTM, (0, 1, 2, 3), (*FORM, "proj_size")


class NoisyGRU(RecurrentNoise, torch.nn.GRU):
    """A `torch.nn.GRU` with noise on its kernels in training, see `NoisyLSTM`.

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.NoisyGRU(3, 4, rate=0.5, seed=1)(torch.ones(5, 2, 3))[0].shape
    torch.Size([5, 2, 4])
    """

    plain, gates, form = torch.nn.GRU, (1, 0, 2), FORM


class NoisyRNN(RecurrentNoise, torch.nn.RNN):
    """A `torch.nn.RNN` with noise on its kernels in training, see `NoisyLSTM`.

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.NoisyRNN(3, 4, rate=0.5, seed=1)(torch.ones(5, 2, 3))[0].shape
    torch.Size([5, 2, 4])
    """

    plain, gates, form = torch.nn.RNN, (0,), (*FORM, "nonlinearity")

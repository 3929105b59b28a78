"""Noise on the kernels of recurrent modules: DropConnect as language models have it, or PerNodeDrop's."""

import collections.abc
import itertools
import typing

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from pernodedrop import checks, ops, schedules
from pernodedrop._types import Key, Sharing, Words
from pernodedrop.mask import Field, Grid, coordinate
from pernodedrop.modules import Restore, check_tensor
from pernodedrop.noise import Noise
from pernodedrop.recurrence import KERNELS, Product, ProductAt, Recurrence
from pernodedrop.schedules import Schedule
from pernodedrop.state import apply_mask, refuse_sample_ids
from pernodedrop.torch.noisy import xp
from pernodedrop.torch.products import put
from pernodedrop.torch.weight_noise import OfPlain, dtype_of

WEIGHTS = dict(zip(KERNELS, ("weight_ih", "weight_hh"), strict=True))
"""What an input and a state are multiplied by, in the words of Keras and of torch."""

FORM = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")

States: typing.TypeAlias = list[torch.Tensor]


class RecurrentNoise(OfPlain):
    """Base of the three.

    One mask for a batch and all steps multiplies kernels before the loop over the steps, and what that does, packed
    sequences and cuDNN included, is torch's own affair. For other masks the loop is here, a step at a time.
    """

    inputs = 2
    input_size: int
    hidden_size: int
    proj_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
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
        sharing: Sharing = None,
        bank_size: int | None = None,
        seed: int | None = None,
        method: str = "auto",
        persistence: float | Schedule | None = None,
        **kwargs: typing.Any,
    ) -> None:
        kind, schedule = schedules.get_noise(noise, rate)
        start, slow = schedules.get_persistence(persistence)
        recurrence = Recurrence.of(kind, sharing, regime, bank_size, start, kernels, method)
        super().__init__(*args, **kwargs)
        self.recurrence = recurrence
        self.start(recurrence.mask, seed, schedule, slow)

    @property
    def sharing(self) -> frozenset[str]:
        """The coordinates that entries do not depend on, "gate" and "unit" among them."""
        return self.recurrence.sharing

    def forward(
        self,
        input: typing.Any,  # noqa: A002 - torch's own name
        hx: typing.Any = None,
        key: Key | None = None,
        sample_ids: torch.Tensor | None = None,
    ) -> typing.Any:
        """What the plain module gives, in training with noise on its kernels; see the class."""
        if not self.has_noise:
            return super().forward(input, hx)
        if not self.state.one_kernel:
            return self._stepped(input, hx, key, sample_ids)
        if sample_ids is not None:
            refuse_sample_ids(sample_ids)
        form = self.form_of(self)
        if self.num_layers == 1:
            form["dropout"] = 0.0  # torch warns that it does nothing, and would again in every call
        with torch.device("meta"):
            plain = self.plain(**form).train(self.training)
        weights = {**self.values_of(plain), **self._noisy_kernels(self._field(key))}
        return torch.func.functional_call(plain, weights, (input, hx))

    def fold(self) -> torch.nn.Module:
        """The plain module that computes what this one does at inference.

        Raises:
            ValueError: a bank, whose members are no one module; or a fixed mask that is another one at each step.
        """
        plain = self.made_plain()
        if self.state.mask.at_inference:
            for name, value in self._noisy_kernels(self._field(self.noise_key)).items():
                put(plain, name, value, getattr(plain, name).requires_grad)
        return plain

    def batch_of(self, x: typing.Any) -> int:
        if isinstance(x, PackedSequence):
            return int(x.batch_sizes[0])
        return int(x.shape[0 if self.batch_first else 1]) if x.dim() == 3 else 1

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """The sizes of what a cell hands on from step to step, its output first."""
        return (self.hidden_size,)

    def step(self, of_inputs: torch.Tensor, of_state: torch.Tensor, states: States) -> States:
        """The next states of a cell, of the products of its input and of its output, (batch, gates * units) each."""
        raise NotImplementedError(f"{type(self).__name__} must define `step`")

    def _stepped(
        self,
        input: typing.Any,  # noqa: A002 - torch's own name
        hx: typing.Any,
        key: Key | None,
        sample_ids: torch.Tensor | None,
    ) -> typing.Any:
        """What a call gives whose samples or steps have masks of their own."""
        x, seen, restore = self._sequences(input)
        is_one = not isinstance(input, PackedSequence) and input.dim() == 2
        first = self._first_states(hx, x, is_one)
        samples = self.samples(x.transpose(0, 1), sample_ids)
        products = self._products(x, self._field(key), samples)
        last: list[States] = []
        for layer in range(self.num_layers):
            x = F.dropout(x, self.dropout, self.training) if layer else x
            outputs = []
            for direction in self._directions:
                states = [of_all[len(last)] for of_all in first]
                y, states = self._one_way(f"l{layer}{direction}", x, states, products, seen)
                outputs.append(y)
                last.append(states)
            x = torch.cat(outputs, -1)
        stacked = [torch.stack(of_one)[:, 0] if is_one else torch.stack(of_one) for of_one in zip(*last, strict=True)]
        return restore(x), tuple(stacked) if len(stacked) > 1 else stacked[0]

    def _one_way(
        self,
        name: str,
        x: torch.Tensor,
        states: States,
        products: dict[str, ProductAt],
        seen: torch.Tensor | None,
    ) -> tuple[torch.Tensor, States]:
        """The outputs (time, batch, out) of a layer in one direction, and its last states."""
        of_inputs, of_state = (products[f"{weight}_{name}"] for weight in WEIGHTS.values())
        positions = xp.arange(len(x), like=x).split(1)
        if "time" in self.sharing:
            z = of_inputs(None)(x.transpose(0, 1)).transpose(0, 1)
        elif "kernel" in self.recurrence.kernels:
            z = torch.stack([of_inputs(position)(x[t]) for t, position in enumerate(positions)])
        else:
            z = of_inputs(None)(x)
        outputs: list[torch.Tensor] = []
        order = -1 if name.endswith("_reverse") else 1
        for t, position in list(enumerate(positions))[::order]:
            new = self.step(z[t], of_state(None if "time" in self.sharing else position)(states[0]), states)
            if self.proj_size:
                new[0] = F.linear(new[0], getattr(self, f"weight_hr_{name}"))
            if seen is not None:  # before its first step, or after its last one, a sequence waits
                new = [torch.where(seen[t], *pair) for pair in zip(new, states, strict=True)]
            states = new
            outputs.append(states[0])
        return torch.stack(outputs[::order]), states

    def _sequences(self, x: typing.Any) -> tuple[torch.Tensor, torch.Tensor | None, Restore]:
        """An input as (time, batch, in), where it has steps (time, batch, 1) if not all have, and the way back."""
        data = x.data if isinstance(x, PackedSequence) else x
        check_tensor("input", data, xp)
        ops.check_layout("input", data, ("dense",), xp)
        if data.dim() not in ((2,) if data is not x else (2, 3)) or data.shape[-1] != self.input_size:
            expected = f"rank 3, or 2 for one sample, with {self.input_size} features in the last axis"
            raise ValueError(checks.invalid("input", expected, tuple(data.shape)))
        if isinstance(x, PackedSequence):
            padded, lengths = pad_packed_sequence(x)
            seen = torch.arange(len(padded))[:, None, None] < lengths[:, None]
            return padded.to(dtype_of(data, self.weight_ih_l0)), seen.to(data.device), lambda y: _packed(y, x)
        swapped = x.dim() == 3 and self.batch_first
        sequences = x.transpose(0, 1) if swapped else x[:, None] if x.dim() == 2 else x
        if not len(sequences):
            raise ValueError(checks.invalid("input", "one step or more", tuple(x.shape)))

        def restore(y: torch.Tensor) -> torch.Tensor:
            return y.transpose(0, 1) if swapped else y[:, 0] if x.dim() == 2 else y

        return sequences.to(dtype_of(x, self.weight_ih_l0)), None, restore

    def _first_states(self, hx: typing.Any, x: torch.Tensor, is_one: bool) -> States:
        """Each state (layers and directions, batch, size) that a call is given, or zeros."""
        layers, batch = self.num_layers * len(self._directions), x.shape[1]
        if hx is None:
            return [x.new_zeros(layers, batch, size) for size in self.state_sizes]
        given = hx if len(self.state_sizes) > 1 else (hx,)
        shapes = [(layers, *(() if is_one else (batch,)), size) for size in self.state_sizes]
        expected = f"None, or a {'tuple of tensors' if len(shapes) > 1 else 'tensor'} {', '.join(map(str, shapes))}"
        if not isinstance(given, tuple | list) or not all(map(torch.is_tensor, given)):
            raise TypeError(checks.invalid("hx", expected, type(hx)))
        if [tuple(one.shape) for one in given] != shapes:
            raise ValueError(checks.invalid("hx", expected, [tuple(one.shape) for one in given]))
        given = [one.to(dtype_of(one, self.weight_ih_l0, "hx")) for one in given]
        return [one[:, None] for one in given] if is_one else given

    def _products(self, x: torch.Tensor, field: Field, samples: Words) -> dict[str, ProductAt]:
        """How x is multiplied by each weight, by its name and the position; biases are added."""
        time = coordinate("time", len(x), self.sharing, x, xp)
        samples = xp.arange(1, like=x) if "sample" in self.sharing else samples
        found = {}
        for name, row in self._rows().items():
            weight, bias = getattr(self, name), getattr(self, name.replace("weight", "bias"), None)
            if self._has_noise_on(name):
                grid = self._grid(row, weight, field, time, samples)
                units = len(weight) // len(self.gates)
                found[name] = _with_bias(self.recurrence.products(weight.T.contiguous(), units, grid, xp), bias)
            else:
                found[name] = _plain(weight, bias)
        return found

    def _field(self, key: Key | None) -> Field:
        return self.field(key, self.weight_ih_l0.device)

    @property
    def _directions(self) -> tuple[str, ...]:
        """How the names of the weights of each direction end."""
        return ("", "_reverse")[: 1 + self.bidirectional]

    def _rows(self) -> dict[str, int]:
        """The first row of each kernel in the mask, by its weight's name: they follow one another."""
        names = [
            f"{weight}_l{layer}{direction}"
            for layer in range(self.num_layers)
            for direction in self._directions
            for weight in WEIGHTS.values()
        ]
        sizes = [getattr(self, name).shape[1] for name in names]
        return dict(zip(names, itertools.accumulate(sizes[:-1], initial=0), strict=True))

    def _has_noise_on(self, name: str) -> bool:
        return any(name.startswith(WEIGHTS[kernel]) for kernel in self.recurrence.kernels)

    def _noisy_kernels(self, field: Field) -> dict[str, torch.Tensor]:
        """The weights that have noise, by name, where their mask is one for all samples and steps."""
        zero, found = xp.arange(1, like=self.weight_ih_l0), {}
        for name, row in self._rows().items():
            if self._has_noise_on(name):
                weight = getattr(self, name)
                mask = self._grid(row, weight, field, zero, zero).entries(xp)[0]
                found[name] = apply_mask(weight, mask.T, xp)
        return found

    def _grid(self, row: int, weight: torch.Tensor, field: Field, time: Words, samples: Words) -> Grid:
        """The mask of a weight (gates * units, in) as a kernel (in, gates * units), whose first row is `row`."""
        grid = self.recurrence.grid(row, weight.T, len(weight) // len(self.gates), field, time, samples, xp)
        out = grid.out.reshape(len(self.gates), -1)
        return grid._replace(out=torch.cat([out[gate] for gate in self.gates]))


def _plain(weight: torch.Tensor, bias: torch.Tensor | None) -> ProductAt:
    return lambda position: lambda x: F.linear(x, weight, bias)


def _with_bias(products: ProductAt, bias: torch.Tensor | None) -> ProductAt:
    """The same, with a bias added to each product."""
    if bias is None:
        return products

    def at(position: torch.Tensor | None) -> Product:
        product = products(position)

        def with_bias(x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = product(x)
            return y + bias.to(y.dtype)

        return with_bias

    return at


def _packed(y: torch.Tensor, like: PackedSequence) -> PackedSequence:
    """Outputs (time, batch, out) of the samples of a packed sequence, packed as that is."""
    if like.sorted_indices is not None:
        y = y.index_select(1, like.sorted_indices)
    data = torch.cat([y[t, :rows] for t, rows in enumerate(like.batch_sizes.tolist())])
    return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)


class NoisyLSTM(RecurrentNoise, torch.nn.LSTM):
    """A `torch.nn.LSTM` with noise on its kernels in training, by default one mask a batch on the recurrent ones.

    So it is the DropConnect of language models (AWD-LSTM's weight drop, arXiv 1708.02182): at all steps of a call

        z[n, t] = x[n, t] W + h[n, t - 1] (U * M) + b,    E[M] = 1,

    where z has the gates side by side, each with a mask of its own. It is `pernodedrop.NoisyRNN` around a
    `keras.layers.LSTM` as a module, with equal masks for equal (seed, call). The kernels of several layers and of both
    directions follow one another in one mask, the directions of a layer first.

    With `sharing="time"` each sample has masks of its own, the same at all its steps, as PerNodeDrop has it (arXiv
    2512.12663), and with "time+unit" or "time+out" and both kernels it is Gal's variational dropout (arXiv 1512.05287).
    Such a call goes through the steps one after another, not by torch's own loop, and takes many times as long.

    Args:
        *args, **kwargs: those of `torch.nn.LSTM`: input_size, hidden_size, num_layers, batch_first and so on. Its own
            `dropout` between layers stays torch's.
        rate, noise: as for `pernodedrop.torch.PerNodeLinear`.
        regime: "dynamic": a new mask every call that trains. "fixed": one mask, at inference too. "bank" and "example",
            with `sharing="time"`, as for `PerNodeLinear`.
        kernels: which have noise, some of "kernel", which the input is multiplied by, and "recurrent_kernel".
        sharing: coordinates that the mask does not depend on. None or "sample+time": one mask for a batch and all
            steps. "time": a mask for each sample. "sample": for each step. (): for each step of each sample. Time is
            the position in the input, whichever way a direction goes. Each of these may also have "gate": all gates
            have one mask; "unit": all units of a gate share their entries, which so multiply the input or the state; or
            "out": both.
        bank_size: number of masks in the bank regime.
        seed: any int; None takes one from Python's `random`.
        method: how samples and steps are multiplied by kernels of their own, as for `pernodedrop.NoisyRNN`.
            "materialized": all masks are made, and held in memory, before the loop. "recomputed": they are made in
            blocks at each step, and again in the backward pass, which takes less memory and more time. "auto":
            "recomputed" for masks of steps that do not persist, and on CPUs, for 8 samples or more, for large Bernoulli
            masks that last a sequence (batch x in x out from a million where the kernel is trained, else from 4
            million), both by a hand-written kernel where samples have masks of their own; "materialized" for all
            others, so that memory grows with time only for what persists.
        persistence: the probability in [0, 1] that an entry keeps its value from one position to the next, or a
            schedule of it, as for `PerNodeLinear`; with it, `sharing=None` is "sample".

    Call arguments:
        input, hx: those of `torch.nn.LSTM`, packed sequences included, whose samples are numbered as before packing.
        key: the key to use instead of drawing one, from `draw()`, or (seed, call).
        sample_ids: integer tensor (batch,), as for `PerNodeLinear`.

    Output shapes and dtypes: those of `torch.nn.LSTM`. torch.compile breaks its graph at it, as at torch's own, unless
    `torch._dynamo.config.allow_rnn` is set and samples or steps have masks of their own.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.
        RuntimeError: a key would be drawn inside `torch.utils.checkpoint`, see `drawn_keys`.

    Example:

    >>> import torch, pernodedrop.torch as pndt
    >>> layer = pndt.NoisyLSTM(3, 4, batch_first=True, rate=0.5, sharing="time", seed=1)
    >>> y, (h, c) = layer(torch.ones(2, 5, 3))
    >>> y.shape
    torch.Size([2, 5, 4])
    """

    plain, gates, form = torch.nn.LSTM, (0, 1, 2, 3), (*FORM, "proj_size")

    @property
    def state_sizes(self) -> tuple[int, ...]:
        return self.proj_size or self.hidden_size, self.hidden_size

    def step(self, of_inputs: torch.Tensor, of_state: torch.Tensor, states: States) -> States:
        i, f, g, o = (of_inputs + of_state).chunk(4, -1)
        c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
        return [torch.sigmoid(o) * torch.tanh(c), c]


class NoisyGRU(RecurrentNoise, torch.nn.GRU):
    """A `torch.nn.GRU` with noise on its kernels in training, see `NoisyLSTM`.

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.NoisyGRU(3, 4, rate=0.5, seed=1)(torch.ones(5, 2, 3))[0].shape
    torch.Size([5, 2, 4])
    """

    plain, gates, form = torch.nn.GRU, (1, 0, 2), FORM

    def step(self, of_inputs: torch.Tensor, of_state: torch.Tensor, states: States) -> States:
        (x_r, x_z, x_n), (h_r, h_z, h_n) = of_inputs.chunk(3, -1), of_state.chunk(3, -1)
        update = torch.sigmoid(x_z + h_z)
        new = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
        return [update * states[0] + (1 - update) * new]


class NoisyRNN(RecurrentNoise, torch.nn.RNN):
    """A `torch.nn.RNN` with noise on its kernels in training, see `NoisyLSTM`.

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.NoisyRNN(3, 4, rate=0.5, seed=1)(torch.ones(5, 2, 3))[0].shape
    torch.Size([5, 2, 4])
    """

    plain, gates, form = torch.nn.RNN, (0,), (*FORM, "nonlinearity")

    def step(self, of_inputs: torch.Tensor, of_state: torch.Tensor, states: States) -> States:
        return [getattr(torch, self.nonlinearity)(of_inputs + of_state)]

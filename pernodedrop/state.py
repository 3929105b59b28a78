"""What a regularizer knows and remembers, in any framework: which mask, its first key, its rate over time; its product.

Whoever is one, a Keras layer or a module of a framework, holds two kinds of variables that start as this says: the key,
which each draw advances, and the numbers of the noise, so that a new rate takes effect after compilation. With a
schedule the numbers are a table instead, a row for each stretch of call numbers. What a call does with the mask at its
key is here too, for matrices and inputs of any framework.
"""

import math
import random
import typing

import numpy as np

from pernodedrop import checks, generator, ops
from pernodedrop._types import Namespace, Params, Shape, Tensor, Words
from pernodedrop.mask import Field, Mask, coordinate
from pernodedrop.noise import Noise
from pernodedrop.schedules import Schedule

SMALL_GROUP = 1024
"""Entries of a group's kernel up to which all groups are multiplied in one go, with their masks in memory."""


class State:
    """The part of a regularizer that no framework owns.

    Args:
        mask: which mask, at the rate it starts with.
        seed: int, any; None takes one from Python's `random`, which `keras.utils.set_random_seed` seeds.
        schedule: the rate as a function of the key's call number; None has the numbers of the noise.

    Attributes:
        mask, seed, schedule: those given.
        first_key: the bits of (seed, call) to start with, int32 (2,).
        first_numbers: NumPy scalars by name to start with; none where a schedule gives them.

    Raises:
        TypeError, ValueError: a seed that is no int, or a schedule of a mask that does not change.

    >>> from pernodedrop import Bernoulli
    >>> state = State(Mask(Bernoulli(0.5)), seed=7)
    >>> state.first_key.tolist(), state.first_numbers
    ([7, 0], {'threshold': np.int32(8388608)})
    """

    def __init__(self, mask: Mask, seed: int | None = None, schedule: Schedule | None = None) -> None:
        if schedule is not None and mask.regime != "dynamic":
            raise ValueError(checks.invalid("rate", f"a float with regime={mask.regime!r}", schedule))
        self.mask, self.seed, self.schedule = mask, checks.check_seed(seed), schedule
        first = generator.seed_word(random.getrandbits(32) if seed is None else seed)
        self.first_key = np.array([first, 0], "uint32").view("int32")
        self.first_numbers = mask.noise.params() if schedule is None else {}
        if schedule is not None:
            self._shift, self._rates = schedule.table()
            rows = [mask.noise.with_rate(rate).params() for rate in self._rates]
            self._table = {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def noise(self, call: int, numbers: Params) -> Noise:
        """The noise at a call number, on the host; `numbers` are the present ones, where there is no schedule."""
        if self.schedule is None:
            return self.mask.noise.with_params(numbers)
        return self.mask.noise.with_rate(self._rates[min(call >> self._shift, len(self._rates) - 1)])

    def field(self, key: tuple[Words, Words], numbers: Params, device: typing.Any, xp: Namespace) -> Field:
        """The mask at a key, a pair of word tensors (1,), with the present numbers as tensors."""
        return Field(self.mask.noise, self._numbers(key[1], numbers, device, xp), self.mask.key(key, xp))

    def samples(self, x: Tensor, sample_ids: Tensor | None, xp: Namespace) -> Words:
        """The sample coordinates of the rows of x, or an error about ids that do not go with the mask."""
        if sample_ids is not None:
            if "sample" in self.mask.sharing:
                refuse_sample_ids(sample_ids)
            return self.mask.samples(ops.check_sample_ids(sample_ids, x, xp), xp)
        if self.mask.regime == "example":
            raise ValueError(checks.invalid("sample_ids", "the examples' ids with regime='example'", None))
        batch = xp.shape(x)[0]
        words = xp.arange(batch, like=x)
        if "sample" not in self.mask.sharing:
            words = words + xp.asarray(xp.as_word(xp.replica_offset(batch)), device=xp.device(x))
        return self.mask.samples(words, xp)

    @property
    def one_kernel(self) -> bool:
        """Whether all samples and positions of a call have the same mask."""
        return {"sample", "time"} <= self.mask.sharing

    def one_mask(self, matrices: Tensor, field: Field, xp: Namespace) -> Tensor:
        """That mask, in the shape of `matrices`, (group, in, out)."""
        groups, inputs, outputs = matrices.shape
        in_ = coordinate("in", groups * inputs, self.mask.sharing, matrices, xp)
        out = coordinate("out", outputs, self.mask.sharing, matrices, xp)
        zero = xp.arange(1, like=matrices)
        mask = field.entries(zero, zero, in_[:, None], out, xp)
        return xp.reshape(xp.broadcast_to(mask, (groups * inputs, outputs)), matrices.shape)

    def bias_mask(self, bias: Tensor, inputs: int, field: Field, samples: Words, xp: Namespace) -> Tensor:
        """The mask (batch or 1, out) of a bias (1, out), as that of a further input that is 1, after all `inputs`."""
        sharing, zero = self.mask.sharing, xp.arange(1, like=bias)
        row = zero if "in" in sharing else xp.asarray(xp.as_word(inputs), device=xp.device(bias))
        out = coordinate("out", bias.shape[1], sharing, bias, xp)
        return field.entries(zero, (zero if "sample" in sharing else samples)[:, None], row, out, xp)

    def check_method(self, method: str) -> str:
        """Return how products are computed, as `pernodedrop.ops.masked_dense` takes it, or raise."""
        checks.check_choice(method, "method", ops.METHODS)
        regime = self.mask.regime
        if method == "local_reparameterization" and regime != "dynamic":
            expected = f"another one with regime={regime!r}, whose masks stay: it draws outputs and has no mask"
            raise ValueError(checks.invalid("method", expected, method))
        return method

    def products(
        self, x: Tensor, w: Tensor, field: Field, samples: Words, method: str, xp: Namespace
    ) -> Tensor | list[Tensor]:
        """sum_i x[g, b, t, i] * w[g, i, o] * m[b, t, (g, i), o] of each group.

        Args:
            x: (group, batch, [time,] in).
            w: (group, in, out).
            field: the mask at its key; its in coordinate is row-major over (group, in).
            samples: word tensor (batch,), the sample coordinates.
            method: as for `pernodedrop.ops.masked_dense`.
            xp: the ops namespace of x.

        Returns:
            Tensors (batch, [time,] out), one for each group: a list, or stacked.
        """
        groups, inputs, outputs = w.shape
        sharing = self.mask.sharing
        if groups > 1 and inputs * outputs <= SMALL_GROUP and method in ("auto", "materialized"):
            return ops.multiply_groups(x, w, field, sharing=sharing, samples=samples, xp=xp)
        drawn = self.mask.noise.gaussian and self.mask.regime != "dynamic"  # by "auto", without a mask that could stay
        method = "recomputed" if drawn and method == "auto" else method

        def of_group(n: int) -> Tensor:
            offset = n * inputs
            return ops.multiply(
                x[n], w[n], field, sharing=sharing, samples=samples, in_offset=offset, method=method, xp=xp
            )

        return [of_group(n) for n in range(groups)]

    def _numbers(self, call: Words, numbers: Params, device: typing.Any, xp: Namespace) -> Params:
        if self.schedule is None:
            return numbers
        last = len(self._rates) - 1
        row = xp.astype(xp.shift_right(call, self._shift), "int32")
        row = xp.where((row < 0) | (row > last), last, row)  # a word from 2**31 may be negative as an int
        rows = {name: xp.asarray(table, device=device) for name, table in self._table.items()}
        return {name: xp.reshape(xp.take(table, row, axis=0), ()) for name, table in rows.items()}


def refuse_sample_ids(sample_ids: Tensor) -> typing.NoReturn:
    """Raise: there is no sample coordinate that ids could be."""
    raise ValueError(checks.invalid("sample_ids", "None: this mask is the same for all samples", sample_ids))


def entries_of_inputs(shape: Shape, like: Tensor, field: Field, samples: Words, xp: Namespace) -> Tensor:
    """The entries of a field, float32, in a shape (batch, *time, in) or (batch,), made where `like` is."""
    _, *middle, last = shape if len(shape) > 1 else (*shape, 1)
    zero, time = xp.arange(1, like=like), xp.arange(math.prod(middle), like=like)
    entries = field.entries(time[:, None], samples[:, None, None], xp.arange(last, like=like), zero, xp)
    return xp.reshape(entries, shape)


def apply_mask(inputs: Tensor, mask: Tensor, xp: Namespace) -> Tensor:
    """The product of an input with a mask, in the dtype of the input, computed in float32 at least."""
    if xp.layout(inputs) == "sparse":
        mask = xp.broadcast_to(mask, xp.shape(inputs))  # which torch's CSR does not do
    dtype = ops.accumulation_dtype(inputs, xp=xp)
    return xp.astype(xp.astype(inputs, dtype) * xp.astype(mask, dtype), xp.dtype(inputs))

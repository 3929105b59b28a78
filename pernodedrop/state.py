"""What a regularizer knows and remembers, in any framework: which mask, its first key, its rate over time; its product.

Whoever is one, a Keras layer or a module of a framework, holds two kinds of variables that start as this says: the key,
which each draw advances, and the numbers of the noise, so that a new rate takes effect after compilation. With a
schedule the numbers are a table instead, a row for each stretch of call numbers. What a call does with the mask at its
key is here too, for matrices and inputs of any framework, and in `Regularizer` what all of them say of themselves.
"""

import collections.abc
import contextlib
import dataclasses
import math
import random
import types
import typing

import numpy as np

from pernodedrop import checks, generator, ops
from pernodedrop._types import Key, Namespace, Params, Shape, Tensor, Words
from pernodedrop.backends import methods
from pernodedrop.mask import Field, Grid, Mask, coordinate, persistence_params
from pernodedrop.noise import Noise
from pernodedrop.schedules import Schedule

SMALL_GROUP = 1024
"""Entries of a group's kernel up to which all groups are multiplied in one go, with their masks in memory."""


class State:
    """The part of a regularizer that no framework owns.

    States of one mask and schedule are equal: what else there is, the framework's variables hold.

    Args:
        mask: which mask, at the rate it starts with.
        seed: any int; None takes one from Python's `random`, which `keras.utils.set_random_seed` seeds.
        schedule: the rate as a function of the key's call number; None has the numbers of the noise.
        persistence: the mask's persistence likewise; None leaves it where the mask has it.
        more: NumPy scalars of 32 bits by name, which are held beside the mask's numbers.

    Attributes:
        mask, seed, schedule: those given.
        more: the names of those beside the mask's.
        persistence_schedule: `persistence`.
        first_key: the bits of (seed, call) to start with, int32 (2,).
        first_numbers: NumPy scalars by name to start with; without those that a schedule gives.
        number_dtypes: their names and dtypes.

    Raises:
        TypeError, ValueError: a seed that is no int, or a schedule of a mask that does not change.

    >>> from pernodedrop import Bernoulli
    >>> state = State(Mask(Bernoulli(0.5)), seed=7)
    >>> state.first_key.tolist(), state.first_numbers
    ([7, 0], {'threshold': np.int32(8388608)})
    """

    def __init__(
        self,
        mask: Mask,
        seed: int | None = None,
        schedule: Schedule | None = None,
        persistence: Schedule | None = None,
        more: collections.abc.Mapping[str, np.generic] = types.MappingProxyType({}),
    ) -> None:
        for argument, given in {"rate": schedule, "persistence": persistence}.items():
            if given is not None and mask.regime != "dynamic":
                raise ValueError(checks.invalid(argument, f"a float with regime={mask.regime!r}", given))
        self.mask, self.seed = mask, checks.check_seed(seed)
        self.schedule, self.persistence_schedule, self.more = schedule, persistence, frozenset(more)
        first = generator.seed_word(random.getrandbits(32) if seed is None else seed)
        self.first_key = np.array([first, 0], "uint32").view("int32")
        self._tables: dict[str, _Table] = {}
        if schedule is not None:
            self._tables["rate"] = _Table(schedule, lambda rate: mask.noise.with_rate(rate).params())
        if persistence is not None:
            self._tables["persistence"] = _Table(persistence, persistence_params)
        scheduled = {name for table in self._tables.values() for name in table.columns}
        self.first_numbers = {name: value for name, value in mask.params().items() if name not in scheduled} | dict(
            more
        )
        self.number_dtypes = tuple((name, number.dtype.name) for name, number in self.first_numbers.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        return f"State(first={self.mask!r}, schedule={self.schedule!r})"

    @property
    def _identity(self) -> tuple[typing.Any, ...]:
        return self.mask, self.schedule, self.persistence_schedule, self.more

    def mask_at(self, call: int, numbers: Params) -> Mask:
        """The mask at a call number, on the host; `numbers` are the present ones, but for those a schedule gives."""
        mask = self.mask.with_params(numbers)
        held: dict[str, typing.Any] = {argument: table.held(call) for argument, table in self._tables.items()}
        if "rate" in held:
            held["noise"] = mask.noise.with_rate(held.pop("rate"))
        return dataclasses.replace(mask, **held)

    def numbers_of(self, bits: Tensor, view: collections.abc.Callable[[Tensor, str], Tensor]) -> dict[str, Tensor]:
        """The numbers by name that `bits` are of; `view` gives the bits of an int32 scalar in another dtype."""
        return {name: view(bits[n], dtype) for n, (name, dtype) in enumerate(self.number_dtypes)}

    @property
    def kind(self) -> str:
        """The class of its noise and the names of its numbers, which tell what is saved of one kind from another's."""
        return " ".join([type(self.mask.noise).__name__, *self.first_numbers])

    def numbers_on_host(self, bits: typing.Any, argument: str = "rate") -> dict[str, typing.Any]:
        """The numbers by name that `bits`, int32 (n,), are of, NumPy scalars; `argument` is what an error names."""
        try:
            bits = np.asarray(bits)
        except TypeError as error:  # JAX' of what is traced is one
            expected = "to be read and set outside of compiled functions; inside it has no value yet"
            raise TypeError(checks.invalid(argument, expected, bits)) from error
        if bits.ndim != 1:
            expected = "that of one module, and not of several that were stacked"
            raise ValueError(checks.invalid(argument, expected, bits.shape[:-1]))
        return self.numbers_of(bits, lambda bit, dtype: bit.view(dtype))

    def field(
        self,
        key: tuple[Words, Words],
        numbers: Params,
        device: typing.Any,
        xp: Namespace,
        update: Words | None = None,
    ) -> Field:
        """The mask at a key, a pair of word tensors (1,), with the present numbers as tensors.

        A schedule is at the update number, which is the key's call number where None is given.
        """
        update = key[1] if update is None else update
        numbers = {name: value for name, value in numbers.items() if name not in self.more}
        for table in self._tables.values():
            numbers = {**numbers, **table.numbers(update, device, xp)}
        return Field(self.mask.noise, numbers, self.mask.key(key, xp))

    def samples(self, x: Tensor, sample_ids: Tensor | None, xp: Namespace) -> Words:
        """The sample coordinates of the rows of x, or an error about ids that do not go with the mask."""
        if sample_ids is not None:
            if "sample" in self.mask.sharing:
                refuse_sample_ids(sample_ids)
            return self.mask.samples(ops.check_sample_ids(sample_ids, x, xp), xp)
        if self.mask.regime == "example":
            raise ValueError(checks.invalid("sample_ids", "the examples' ids with regime='example'", None))
        batch = xp.shape(x)[0]
        words = xp.arange if "sample" in self.mask.sharing else xp.global_rows
        return self.mask.samples(words(batch, like=x), xp)

    @property
    def is_scheduled(self) -> bool:
        """Whether numbers of the mask depend on the update number."""
        return bool(self._tables)

    @property
    def one_kernel(self) -> bool:
        """Whether all samples and positions of a call have the same mask."""
        return {"sample", "time"} <= self.mask.sharing

    def one_mask(self, matrices: Tensor, field: Field, xp: Namespace) -> Tensor:
        """That mask, in the shape of `matrices`, (group, in, out)."""
        groups, inputs, outputs = matrices.shape
        at, field, zero = ops.words_at(field, xp.arange(1, like=matrices), matrices, xp)
        in_ = coordinate("in", groups * inputs, self.mask.sharing, matrices, at)
        out = coordinate("out", outputs, self.mask.sharing, matrices, at)
        mask = xp.entries(Grid(field, zero, zero, in_, out))[0]
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
        self, x: "Tensor | Patches | Ids", w: Tensor, field: Field, samples: Words, method: str, xp: Namespace
    ) -> Tensor | list[Tensor]:
        """sum_i x[g, b, t, i] * w[g, i, o] * m[b, t, (g, i), o] of each group.

        Args:
            x: (group, batch, [time,] in), or the `Patches` of a convolution, which are made only if they are needed, or
                the `Ids` of rows of a table.
            w: (group, in, out).
            field: the mask at its key; its in coordinate is row-major over (group, in).
            samples: word tensor (batch,), the sample coordinates.
            method: as for `pernodedrop.ops.masked_dense`.
            xp: the ops namespace of x.

        Returns:
            Tensors (batch, [time,] out), one for each group: a list, or stacked, as where there is one group.
        """
        groups, inputs, outputs = w.shape
        sharing = self.mask.sharing
        if isinstance(x, Ids):
            return ops.look_up(x.ids, w[0], field, sharing=sharing, samples=samples, xp=xp)[None]
        if isinstance(x, Patches):
            if method == "auto" and methods.has_kernels(w.shape, x.window, sharing, samples.shape[0]):
                return ops.convolve(x.x, w, field, window=x.window, sharing=sharing, samples=samples, xp=xp)
            x = x.tensor()
        if groups > 1 and inputs * outputs <= SMALL_GROUP and method in ("auto", "materialized"):
            return ops.multiply_groups(x, w, field, sharing=sharing, samples=samples, xp=xp)
        drawn = self.mask.noise.gaussian and self.mask.regime != "dynamic"  # by "auto", without a mask that could stay
        method = "recomputed" if drawn and method == "auto" else method

        def of_group(x: Tensor, w: Tensor, n: int) -> Tensor:
            offset = n * inputs
            return ops.multiply(x, w, field, sharing=sharing, samples=samples, in_offset=offset, method=method, xp=xp)

        if groups > 1:
            return [of_group(x[n], w[n], n) for n in range(groups)]
        x = x[0] if isinstance(x, tuple) else xp.squeeze(x, 0)  # the first is that of a sparse tensor
        return xp.expand_dims(of_group(x, xp.squeeze(w, 0), 0), axis=0)


class _Table:
    """The numbers that follow a schedule, a row of them for each stretch of update numbers."""

    def __init__(self, schedule: Schedule, params_at: collections.abc.Callable[[float], dict[str, np.generic]]) -> None:
        self.shift, self.values = schedule.table()
        rows = [params_at(value) for value in self.values]
        self.columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        self.last = len(rows) - 1

    def held(self, update: int) -> float:
        """What the schedule gives at an update number, as far as there are rows."""
        return self.values[min(update >> self.shift, self.last)]

    def numbers(self, update: Words, device: typing.Any, xp: Namespace) -> Params:
        """The numbers at an update number, a word tensor (1,), as scalar tensors by name."""
        row = xp.astype(xp.shift_right(update, self.shift), "int32")
        row = xp.where((row < 0) | (row > self.last), self.last, row)  # a word from 2**31 may be negative as an int
        columns = {name: xp.asarray(column, device=device) for name, column in self.columns.items()}
        return {name: xp.reshape(xp.take(column, row, axis=0), ()) for name, column in columns.items()}


class Patches(typing.NamedTuple):
    """The patches of a convolution's input, which need not be in memory.

    Attributes:
        x: the input, (batch, *space, channel), with its zeros around.
        window: how it is seen.
        tensor: gives the patches themselves, (group, batch, time, in), in being row-major over (place, channel).
    """

    x: Tensor
    window: methods.Window
    tensor: collections.abc.Callable[[], Tensor]


class Ids(typing.NamedTuple):
    """The rows of a product that are 1 at an id, and else 0, of which none is made.

    Attributes:
        ids: integer tensor (batch, time).
    """

    ids: Tensor


class Regularizer:
    """What every regularizer says of itself and does alike, be it a Keras layer or a module of a framework.

    Who is one has a `state`, and variables, of which it tells by methods of these names. In a framework whose modules
    do not change it has neither `put_numbers` nor `draw`, and every call is given its key.
    """

    xp: typing.ClassVar[Namespace]
    """The ops namespace of its tensors."""

    state: State

    def words_of_key(self) -> np.typing.NDArray[np.uint32]:
        """The words of the next key, (seed, call), on the host."""
        raise NotImplementedError(f"{type(self).__name__} must define `words_of_key`")

    def numbers_on_host(self, argument: str = "rate") -> Params:
        """The numbers of the noise by name, NumPy scalars; none where a schedule gives them.

        Where modules are stacked there are several: an error, which names the `argument` that they are wanted for.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `numbers_on_host`")

    def numbers(self) -> Params:
        """The same as scalar tensors."""
        raise NotImplementedError(f"{type(self).__name__} must define `numbers`")

    def put_numbers(self, numbers: Params) -> None:
        """Have these as the numbers, NumPy scalars by name."""
        raise NotImplementedError(f"{type(self).__name__} must define `put_numbers`")

    def draw(self) -> Tensor:
        """The next key: an integer tensor of length 2, (seed, call)."""
        raise NotImplementedError(f"{type(self).__name__} must define `draw`")

    def next_key(self) -> Tensor:
        """The key of a call that is given none."""
        return self.draw()

    @property
    def seed(self) -> int | None:
        """The seed's word, which stands for what was given or, with None, was drawn."""
        return int(self.words_of_key()[0])

    @property
    def updates(self) -> int:
        """How many keys were drawn: the update number of a schedule."""
        return int(self.words_of_key()[1])

    @property
    def schedule(self) -> Schedule | None:
        """The rate over time, or None."""
        return self.state.schedule

    @property
    def sharing(self) -> frozenset[str]:
        """The coordinates that entries do not depend on."""
        return self.state.mask.sharing

    @property
    def regime(self) -> str:
        """When masks change, see `pernodedrop.Mask`."""
        return self.state.mask.regime

    @property
    def members(self) -> int | None:
        """How many fixed functions it is at inference, of which `sample_ids` choose; None: it is one."""
        return self.state.mask.bank_size

    @property
    def noise(self) -> Noise:
        """The noise with its present numbers."""
        return self.present_mask().noise

    @property
    def mask(self) -> Mask:
        """Which mask, with its present numbers."""
        return self.present_mask()

    def present_mask(self, argument: str = "rate") -> Mask:
        """The same, whatever else a class of a framework calls `mask`."""
        return self.state.mask_at(self.updates if self.state.is_scheduled else 0, self.numbers_on_host(argument))

    @property
    def is_stochastic(self) -> bool:
        """Whether training calls with other keys give other outputs: at the present rate, or at some of a schedule."""
        return not self.state.mask.at_inference and (self.schedule is not None or self.noise.variance > 0)

    @property
    def rate(self) -> float | None:
        """The present drop rate. Setting it takes effect from the next call, compiled or not.

        On JAX, read and set it outside of compiled functions, and of a Keras model in `fit` between epochs, since
        `fit` has the state to itself within one. A rate that follows a schedule cannot be set.
        """
        return getattr(self.noise, "rate", None)

    @rate.setter
    def rate(self, rate: float) -> None:
        self.put_numbers(self.numbers_with_rate(rate))

    @property
    def persistence(self) -> float | None:
        """The probability that an entry keeps its value from one position to the next; None where nothing persists.

        Setting it takes effect from the next call, as that of `rate` does.
        """
        return self.present_mask("persistence").persistence

    @persistence.setter
    def persistence(self, persistence: float) -> None:
        self.put_numbers(self.numbers_with_persistence(persistence))

    def numbers_with_persistence(self, persistence: float) -> Params:
        """The numbers of the mask at another persistence, or an error if it can have no such one."""
        if self.state.persistence_schedule is not None or self.state.mask.persistence is None:
            whose = f"The persistence of {getattr(self, 'name', type(self).__name__)!r}"
            follows = f"follows {self.state.persistence_schedule!r} and cannot be set"
            raise AttributeError(f"{whose} {follows if self.state.persistence_schedule else 'is that of its sharing'}.")
        return {**self.numbers_on_host("persistence"), **persistence_params(persistence)}

    def numbers_with_rate(self, rate: float) -> Params:
        """The numbers of the mask at another rate, NumPy scalars by name, or an error if it can have no such rate."""
        if self.schedule is not None:
            name = getattr(self, "name", type(self).__name__)
            raise AttributeError(f"The rate of {name!r} follows {self.schedule!r} and cannot be set.")
        return {**self.numbers_on_host(), **self.noise.with_rate(self.checked_rate(rate)).params()}

    def in_words(self) -> dict[str, typing.Any]:
        """What a printed module says of its noise, by name: the noise or its schedule, the regime and the seed.

        The seed is left out where calls bring their keys, and all of it where numbers are traced, stacked or absent.
        """
        try:
            noise = self.noise if self.schedule is None else self.schedule
        except (TypeError, ValueError):
            return {}
        found: dict[str, typing.Any] = {"noise": noise, "regime": self.regime}
        with contextlib.suppress(TypeError, ValueError):
            found["seed"] = self.seed
        return found

    def check_numbers(self, numbers: Params) -> None:
        """Raise unless it may have these as its numbers, NumPy scalars by name."""
        self.state.mask.with_params(numbers)

    def checked_rate(self, rate: typing.Any) -> float:
        """A rate that it may have, or an error."""
        return checks.check_rate(rate)

    def check_folds(self, positions: bool = True) -> None:
        """Raise unless one plain module computes what this one does at inference, of inputs with several positions."""
        if self.regime == "bank":
            raise ValueError(checks.invalid("regime", "one with one function at inference, to be folded", "bank"))
        if positions and self.state.mask.at_inference and "time" not in self.sharing:
            expected = "one with 'time', to be folded: a plain kernel is one for all positions"
            raise ValueError(checks.invalid("sharing", expected, sorted(self.sharing)))

    def field(self, key: Key | None, device: typing.Any) -> Field:
        """The mask at a key, by default the next one."""
        words = ops.key_words(self.next_key() if key is None else key, device, self.xp)
        return self.state.field(words, self.numbers(), device, self.xp)

    def samples(self, x: Tensor, sample_ids: Tensor | None) -> Words:
        """The sample coordinates of the rows of x."""
        return self.state.samples(x, sample_ids, self.xp)

    def entries_of(self, shape: Shape, inputs: Tensor, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        """Entries, float32, in a shape (batch, *time, in) or (batch,); axes of size 1 are those that share them.

        The batch is 1 where the mask's sharing has the sample.
        """
        samples = self.samples(inputs, sample_ids)
        sample = self.xp.arange(1, like=inputs) if "sample" in self.sharing else samples
        return entries_of_inputs(shape, inputs, self.field(key, self.xp.device(inputs)), sample, self.xp)


class CompositeRegularizer:
    """What several regularizers of one kind, which are one to whoever uses them, say of themselves: what one says."""

    @property
    def parts(self) -> collections.abc.Mapping[str, typing.Any]:
        """The regularizers by name."""
        raise NotImplementedError(f"{type(self).__name__} must define `parts`")

    @property
    def one(self) -> typing.Any:
        """One of them."""
        return next(iter(self.parts.values()))

    @property
    def mask(self) -> Mask:
        """Which mask its parts have, with the noise's present numbers."""
        return self.one.mask

    @property
    def noise(self) -> Noise:
        """The noise of its parts with its present numbers."""
        return self.one.noise

    @property
    def regime(self) -> str:
        """When masks change, see `pernodedrop.Mask`."""
        return self.one.regime

    @property
    def schedule(self) -> Schedule | None:
        """The rate over time, or None."""
        return self.one.schedule

    @property
    def members(self) -> int | None:
        """How many fixed functions each part is at inference; None: it is one."""
        return self.one.members

    @property
    def is_stochastic(self) -> bool:
        """Whether training calls with other keys give other outputs."""
        return self.one.is_stochastic

    @property
    def updates(self) -> int:
        """How many keys each part drew: the update number of a schedule."""
        return self.one.updates

    @property
    def rate(self) -> float | None:
        """The present drop rate of its parts. Setting it sets it in all of them, as in any regularizer, once built."""
        return self.one.rate

    @rate.setter
    def rate(self, rate: float) -> None:
        for part in self.parts.values():
            part.rate = rate


def bits_of(numbers: Params) -> np.typing.NDArray[np.int32]:
    """The bits of NumPy scalars of 32 bits, which no cast of floating numbers rounds: int32 (n,)."""
    return np.array([np.asarray(number).view("int32") for number in numbers.values()], "int32")


def refuse_sample_ids(sample_ids: Tensor, argument: str = "sample_ids") -> typing.NoReturn:
    """Raise: there is no sample coordinate that ids could be."""
    raise ValueError(checks.invalid(argument, "None: this mask is the same for all samples", sample_ids))


def entries_of_inputs(shape: Shape, like: Tensor, field: Field, samples: Words, xp: Namespace) -> Tensor:
    """The entries of a field, float32, in a shape (batch, *time, in) or (batch,), made where `like` is."""
    return xp.fused(_entries_of_inputs)(tuple(shape), like, field, samples, xp)


def _entries_of_inputs(shape: Shape, like: Tensor, field: Field, samples: Words, xp: Namespace) -> Tensor:
    _, *middle, last = shape if len(shape) > 1 else (*shape, 1)
    at, field, samples = ops.words_at(field, samples, like, xp)
    zero, time = at.arange(1, like=like), at.arange(math.prod(middle), like=like)
    times, samples = at.zeros_like(samples)[:, None] + time, samples[:, None] + at.zeros_like(time)
    grid = Grid(field, at.reshape(times, (-1,)), at.reshape(samples, (-1,)), at.arange(last, like=like), zero)
    return xp.reshape(xp.entries(grid), shape)


def apply_mask(inputs: Tensor, mask: Tensor, xp: Namespace) -> Tensor:
    """The product of an input with a mask, in the dtype of the input, computed in float32 at least."""
    if xp.layout(inputs) == "sparse":
        mask = xp.broadcast_to(mask, xp.shape(inputs))  # which torch's CSR does not do
    dtype = ops.accumulation_dtype(inputs, xp=xp)
    return xp.astype(xp.astype(inputs, dtype) * xp.astype(mask, dtype), xp.dtype(inputs))

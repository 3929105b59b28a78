"""What every noisy module has: a mask, a stream for its keys, and the numbers of its noise in a variable."""

import collections.abc
import dataclasses
import types
import typing

import jax
import numpy as np
from flax import nnx

from pernodedrop import backends, checks, generator, ops
from pernodedrop._types import Key, Params, Words
from pernodedrop.mask import Field, Mask
from pernodedrop.schedules import Schedule
from pernodedrop.state import Regularizer, State, bits_of

xp = backends.get("jax")

STREAM = "noise"
"""The stream of `nnx.Rngs` that keys are from."""

Rngs: typing.TypeAlias = nnx.Rngs | nnx.RngStream | jax.Array | None


class NoiseState(nnx.Variable[jax.Array]):
    """What a noisy module remembers beside its stream: no parameter, and nothing that `nnx.split_rngs` splits."""


class Rows:
    """Which samples the rows of an input are in a pass of `predict`, where a call does not say it.

    It is no array of a module, so that no transform of NNX splits it.

    Args:
        first: the sample of the first row of the batch, an int32 scalar.
        size: the number of rows of the batch; None has all rows be the sample `first`.
    """

    def __init__(self, first: jax.Array, size: int | None) -> None:
        self.first, self.size = first, size

    def ids(self, x: jax.Array) -> jax.Array:
        """The sample ids of the rows of an input, int32."""
        rows = x.shape[0]
        if self.size is None:
            return jax.numpy.full((rows,), self.first, "int32")
        # the module's rows are the batch's, or each sample of the batch has been made several of them
        return self.first * (rows // self.size) + jax.numpy.arange(rows, dtype="int32")


class Noisy(Regularizer, nnx.Module):
    """Base of noisy modules; it stands before the NNX module where a class is both.

    Its state is in variables:
        rngs: an `nnx.RngStream` with the tag "noise". Its key stands for the seed, its count is the call number. Where
            masks are fixed there is none.
        noise_numbers: {kind of noise: `NoiseState`}, the bits of the noise's numbers, so that a new rate takes effect
            after compilation. The kind is there since checkpoints are told by the names of what is in them.
        noise_seed: `NoiseState`, the seed's word, where masks are fixed.
        noise_updates: `NoiseState`, where a rate or a persistence follows a schedule: how many keys were drawn.
    """

    xp = xp
    rngs: typing.Any
    noise_numbers: typing.Any
    noise_seed: typing.Any
    noise_updates: typing.Any
    noise_rows: Rows | None = None  # set on the copy of a pass alone

    def start(
        self,
        mask: Mask,
        seed: int | None,
        schedule: Schedule | None,
        rngs: nnx.Rngs | nnx.RngStream | None,
        deterministic: bool,
        persistence: Schedule | None = None,
        more: collections.abc.Mapping[str, np.generic] = types.MappingProxyType({}),
    ) -> None:
        """Begin with a mask, after the constructor of the NNX module.

        Args:
            mask: which mask, a `pernodedrop.Mask`.
            seed: any int; None takes a key of the stream "noise" of `rngs`, or of "default".
            schedule: the rate as a function of the number of draws; None leaves it where the mask has it.
            rngs: `nnx.Rngs` or a stream; None, without a seed, has calls bring theirs.
            deterministic: whether calls have no noise until `train()`.
            persistence: the mask's persistence as a function of the number of draws, likewise.
            more: numbers that are held beside those of the noise.
        """
        self.deterministic = checks.check_bool(deterministic, "deterministic")
        checks.check_seed(seed)
        if not isinstance(rngs, nnx.Rngs | nnx.RngStream | None):  # beside a seed too, where none is drawn from
            raise TypeError(checks.invalid("rngs", "nnx.Rngs, an nnx.RngStream or None", rngs))
        stream = _stream_of(rngs) if seed is None else nnx.RngStream(_key_of_seed(seed), tag=STREAM)
        self.state = State(mask, 0, schedule, persistence, more)
        bits = bits_of(self.state.first_numbers)
        # Orbax saves no empty arrays
        self.noise_numbers = nnx.data({self.state.kind: NoiseState(xp.asarray(bits))} if bits.size else None)
        self.noise_updates = nnx.data(NoiseState(xp.asarray(np.uint32(0))) if self.state.is_scheduled else None)
        if mask.regime == "dynamic":
            self.rngs, self.noise_seed = nnx.data(stream), nnx.data(None)
        elif stream is None:
            raise ValueError(checks.invalid("rngs", f"nnx.Rngs, or a seed, with regime={mask.regime!r}", rngs))
        else:
            self.rngs, self.noise_seed = nnx.data(None), NoiseState(word_of(stream.key[...])[0])

    def __setattr__(self, name: str, value: typing.Any) -> None:
        if isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)  # NNX would note it among the attributes, and jit compile once more
        else:
            super().__setattr__(name, value)

    def __nnx_repr__(self) -> collections.abc.Iterator[typing.Any]:
        """As NNX prints a module, but with its noise in words where there are bits."""
        words = self.in_words()
        for part in typing.cast(typing.Any, super()).__nnx_repr__():
            name = getattr(part, "key", "")  # the first part has none
            if words and name == "state":
                yield from (dataclasses.replace(part, key=key, value=value) for key, value in words.items())
            elif not (words and name.startswith("noise_") and name in Noisy.__annotations__):
                yield part

    def words_of_key(self) -> np.typing.NDArray[np.uint32]:
        key = self.peek()
        if key.ndim != 1:
            expected = "of one module, and not of several that nnx.vmap stacked"
            raise ValueError(checks.invalid("rngs", f"a key {expected}", key.shape[:-1]))
        return np.asarray(key)

    def _bits(self) -> NoiseState:
        return self.noise_numbers[self.state.kind]

    def numbers_on_host(self, argument: str = "rate") -> Params:
        if self.noise_numbers is None:
            return {}
        return self.state.numbers_on_host(self._bits()[...], argument)

    def numbers(self) -> Params:
        if self.noise_numbers is None:
            return {}
        return self.state.numbers_of(self._bits()[...], jax.lax.bitcast_convert_type)

    def put_numbers(self, numbers: Params) -> None:
        self._bits()[...] = xp.asarray(bits_of(numbers))

    @property
    def updates(self) -> int:
        """How many keys were drawn: the update number of a schedule."""
        return super().updates if self.noise_updates is None else int(self.noise_updates[...])

    def peek(self) -> jax.Array:
        """The key that the next call has: words (2,), (seed, call)."""
        if self.noise_seed is not None:
            return _words(self.noise_seed[...], xp.zeros_like(self.noise_seed[...]))
        if self.rngs is None:
            raise ValueError(checks.invalid("rngs", "nnx.Rngs or a key in the call, or in the constructor", None))
        return _words(word_of(self.rngs.key[...])[..., 0], self.rngs.count[...])

    def draw(self) -> jax.Array:
        """The next key: words (2,), (seed, call), for `module(x, key=key)`."""
        key = self.peek()
        if self.noise_seed is None:
            self.rngs.count[...] += 1
            self._count()
        return key

    def key_of(self, rngs: Rngs, key: Key | None) -> typing.Any:
        """What `field` takes of a call that is given `rngs`, which fixed masks pass by, or a key itself, or neither."""
        if key is not None and rngs is not None:
            raise ValueError(checks.invalid("rngs", "None beside `key`", rngs))
        return key if rngs is None or self.noise_seed is not None else rngs

    def field(self, key: typing.Any, device: typing.Any) -> Field:
        """The mask at a key, by default the next one, or at one that is drawn from `nnx.Rngs`."""
        if key is not None and not isinstance(key, nnx.Rngs | nnx.RngStream):
            return super().field(key, device)
        update = None if self.noise_updates is None else self.noise_updates[...]
        words = ops.key_words(self.draw() if key is None else self._drawn_from(key), device, xp)
        return self.state.field(words, self.numbers(), device, xp, update)

    def _drawn_from(self, rngs: nnx.Rngs | nnx.RngStream) -> jax.Array:
        stream = chosen(rngs)
        key = _words(word_of(stream.key[...])[..., 0], stream.count[...])
        stream.count[...] += 1
        self._count()
        return key

    def _count(self) -> None:
        if self.noise_updates is not None:
            self.noise_updates[...] += 1

    def samples(self, x: jax.Array, sample_ids: jax.Array | None) -> Words:
        """The sample coordinates of the rows of x."""
        if sample_ids is None and self.noise_rows is not None:
            sample_ids = self.noise_rows.ids(x)
        return super().samples(x, sample_ids)

    @property
    def is_stochastic(self) -> bool:
        """Whether training calls with other keys give other outputs; of modules that are stacked, whatever the rate."""
        stacked = self.noise_numbers is not None and self._bits()[...].ndim > 1
        return super().is_stochastic if not stacked else not self.state.mask.at_inference

    def reseed(self, word: jax.Array) -> None:
        """Take a seed's word, a uint32 scalar, for the seed; the call number stays."""
        key = jax.random.wrap_key_data(_words(xp.zeros_like(word), word), impl="threefry2x32")
        if self.noise_seed is not None:
            self.noise_seed[...] = xp.broadcast_to(word, self.noise_seed[...].shape)
        elif self.rngs is None:
            self.rngs = nnx.data(nnx.RngStream(key, tag=STREAM))
        else:
            stacked = self.rngs.key[...].shape
            self.rngs.key[...] = jax.random.split(key, stacked) if stacked else key

    def trains(self, deterministic: bool | None) -> bool:
        """Whether a call is one of training."""
        return not checks.check_bool(self.deterministic if deterministic is None else deterministic, "deterministic")

    def is_noisy(self, deterministic: bool | None) -> bool:
        """Whether a call has noise: in training, and at inference too where the masks are part of the model."""
        return self.trains(deterministic) or self.state.mask.at_inference

    def set_view(self, deterministic: bool | None = None) -> None:
        """What `nnx.view` may set.

        Args:
            deterministic: whether calls have no noise.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def fold(self) -> nnx.Module:
        """The plain module that computes what this one does at inference."""
        raise NotImplementedError(f"{type(self).__name__} must define `fold`")


def word_of(key: jax.Array) -> Words:
    """The seed's word that a key stands for, (..., 1): that of `jax.random.key(seed)` is the seed."""
    words = jax.random.key_data(key)
    return generator.mixed([words[..., n : n + 1] for n in range(words.shape[-1])], xp)


def from_host(
    function: typing.Callable[[int], np.typing.NDArray[np.int32]], word: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """What a function on the host gives of a word, int32, also where the word is traced or several are stacked."""
    like = np.zeros(shape, "int32")
    return jax.pure_callback(lambda word: function(int(word)), like, word, vmap_method="sequential")


def _key_of_seed(seed: int) -> jax.Array:
    words = np.array([0, generator.seed_word(seed)], "uint32")
    return jax.random.wrap_key_data(xp.asarray(words), impl="threefry2x32")


def _words(seed: Words, call: Words) -> jax.Array:
    return jax.numpy.stack([seed, call], axis=-1)


def _stream_of(rngs: typing.Any) -> nnx.RngStream | None:
    """A stream of its own, as NNX modules take one."""
    return None if rngs is None else chosen(rngs).fork()


def chosen(rngs: typing.Any) -> nnx.RngStream:
    """The stream that noise is from."""
    if isinstance(rngs, nnx.RngStream):
        return rngs
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(checks.invalid("rngs", "nnx.Rngs, an nnx.RngStream or None", rngs))
    if STREAM not in rngs and "default" not in rngs:
        expected = f"streams with {STREAM!r} or 'default' among them, or `seed=` in their place"
        raise ValueError(checks.invalid("rngs", expected, list(rngs)))
    return rngs[STREAM]

"""What every noisy module has: a mask, the numbers of its noise in an array, and its seed where masks are fixed."""

import collections.abc
import dataclasses
import types
import typing

import equinox as eqx
import jax
import numpy as np
import wadler_lindig

from pernodedrop import backends, checks, generator
from pernodedrop._types import Params, Words
from pernodedrop.mask import Mask
from pernodedrop.schedules import Schedule
from pernodedrop.state import Regularizer, State, bits_of, refuse_sample_ids

xp = backends.get("jax")

Model = typing.TypeVar("Model")


class Noisy(Regularizer, eqx.Module):
    """Base of noisy modules; it stands before the Equinox module where a class is both.

    A call is one sample's, and has its key: `key`, else that of `with_key`. Its arrays are integers, so that no
    gradient is taken of them and no cast rounds them:
        noise_numbers: int32, the bits of the noise's numbers, so that a new rate does not compile anything again.
        noise_seed: uint32, the seed's word, where masks are fixed; else None.
        noise_key: uint32 (2,), what `with_key` gave; else None.
        noise_sample: int32, in a pass of `predict` the sample of calls that are given none; else None.
    """

    xp: typing.ClassVar[typing.Any] = xp
    state: State = eqx.field(static=True)
    noise_numbers: jax.Array
    noise_seed: jax.Array | None
    noise_key: jax.Array | None
    noise_sample: jax.Array | None
    inference: bool

    def start(
        self,
        mask: Mask,
        schedule: Schedule | None,
        inference: bool,
        seed: int | None = None,
        key: jax.Array | None = None,
        more: collections.abc.Mapping[str, np.generic] = types.MappingProxyType({}),
    ) -> None:
        """Begin with a mask.

        Args:
            mask: which mask, a `pernodedrop.Mask`.
            schedule: None; nothing counts updates here.
            inference: whether calls have no noise.
            seed: any int, of fixed masks; None takes it from `key`.
            key: a `jax.random.key`.
            more: numbers that are held beside those of the noise.
        """
        if schedule is not None:
            raise ValueError(checks.invalid("rate", "a float: a rate over time is set by `with_rate`", schedule))
        checks.check_seed(seed)
        self.state = State(mask, 0, more=more)
        self.noise_numbers = xp.asarray(bits_of(self.state.first_numbers))
        self.noise_seed = self.noise_key = self.noise_sample = None
        self.inference = checks.check_bool(inference, "inference")
        if mask.regime == "dynamic":
            if seed is not None:
                raise ValueError(checks.invalid("seed", "None with regime='dynamic', whose calls have keys", seed))
        else:
            self.noise_seed = word_of(seed, key)

    def __pdoc__(self, **options: typing.Any) -> wadler_lindig.AbstractDoc | None:
        """As Equinox prints a module, but with its noise in words where there are bits; None leaves it to Equinox."""
        shown: dict[str, typing.Any] = {}
        for field in dataclasses.fields(self):
            if field.name == "state":
                shown |= self.in_words()
            elif field.name not in Noisy.__annotations__ or not field.name.startswith("noise_"):
                shown[field.name] = getattr(self, field.name, None)
        if "noise" not in shown:
            return None
        parts = wadler_lindig.named_objs(shown.items(), **options)
        begin, end = (wadler_lindig.TextDoc(text) for text in (f"{type(self).__name__}(", ")"))
        return wadler_lindig.bracketed(begin, parts, wadler_lindig.comma, end, options["indent"])

    def words_of_key(self) -> np.typing.NDArray[np.uint32]:
        if self.noise_seed is None:
            raise ValueError(
                checks.invalid("regime", "another one: calls have keys, and the module has none", "dynamic")
            )
        return np.array([self.noise_seed, 0], "uint32")

    def numbers_on_host(self, argument: str = "rate") -> Params:
        return self.state.numbers_on_host(self.noise_numbers, argument)

    def numbers(self) -> Params:
        return self.state.numbers_of(self.noise_numbers, jax.lax.bitcast_convert_type)

    def with_rate(self, rate: float) -> typing.Self:
        """The module at another rate, for `equinox.tree_at`.

        Args:
            rate: drop rate in [0, 1).

        Raises:
            TypeError, ValueError: another one, or a noise that has no rate.
        """
        return replaced(self, noise_numbers=xp.asarray(bits_of(self.numbers_with_rate(rate))))

    def with_persistence(self, persistence: float) -> typing.Self:
        """The module at another persistence, for `equinox.tree_at`.

        Args:
            persistence: a float in [0, 1].

        Raises:
            TypeError, ValueError, AttributeError: another one, or a module that was made without.
        """
        return replaced(self, noise_numbers=xp.asarray(bits_of(self.numbers_with_persistence(persistence))))

    @property
    def is_stochastic(self) -> bool:
        """Whether training calls with other keys give other outputs; of modules that are stacked, whatever the rate."""
        return super().is_stochastic if self.noise_numbers.ndim == 1 else not self.state.mask.at_inference

    def in_pass(self, sample: jax.Array, word: jax.Array | None = None) -> typing.Self:
        """The module in a pass of `predict`: with the sample of its calls and, where it draws, a seed's word."""
        stacked = self.noise_numbers.shape[:-1]
        new: dict[str, typing.Any] = {}
        if "sample" not in self.sharing:
            new["noise_sample"] = xp.broadcast_to(sample, stacked)
        if word is not None:
            new["inference"] = False
            if self.noise_seed is not None:
                new["noise_seed"] = xp.broadcast_to(word, stacked)
            elif stacked:
                new["noise_key"] = jax.random.key_data(jax.random.split(jax.random.key(word), stacked))
            else:
                new["noise_key"] = jax.numpy.stack([word, xp.zeros_like(word)])
        return replaced(self, **new)

    def next_key(self) -> jax.Array:
        if self.noise_seed is not None:
            return jax.numpy.stack([self.noise_seed, xp.zeros_like(self.noise_seed)])
        if self.noise_key is None:
            expected = "a jax.random.key, or (seed, call): a call with noise is given one, or the model by `with_key`"
            raise ValueError(checks.invalid("key", expected, None))
        return self.noise_key

    def key_of(self, key: typing.Any) -> typing.Any:
        """The key of a call, which is given one; that of fixed masks is their own."""
        return None if self.noise_seed is not None else key

    def samples(self, x: jax.Array, sample_ids: typing.Any) -> Words:
        """The sample coordinate of the one row of x: `sample_id`, by default 0."""
        sample_ids = self.noise_sample if sample_ids is None else sample_ids
        if sample_ids is None:
            if self.regime == "bank":
                raise ValueError(checks.invalid("sample_id", "an integer, which chooses a member", None))
            return super().samples(x, None)
        if "sample" in self.state.mask.sharing:
            refuse_sample_ids(sample_ids, "sample_id")
        name = backends.name_of(sample_ids)
        if name is None:
            sample_ids = np.asarray(checks.check_int(sample_ids, "sample_id"))
        elif not backends.get(name).is_integer(sample_ids):
            raise TypeError(checks.invalid("sample_id", "an integer dtype", sample_ids.dtype))
        if tuple(sample_ids.shape) != ():
            raise ValueError(checks.invalid("sample_id", "an integer, one for each call", sample_ids))
        return super().samples(x, jax.numpy.reshape(sample_ids, (1,)))

    def trains(self, inference: bool | None) -> bool:
        """Whether a call is one of training."""
        return not checks.check_bool(self.inference if inference is None else inference, "inference")

    def is_noisy(self, inference: bool | None) -> bool:
        """Whether a call has noise: in training, and at inference too where the masks are part of the model."""
        return self.trains(inference) or self.state.mask.at_inference

    def fold(self) -> eqx.Module:
        """The plain module that computes what this one does at inference."""
        raise NotImplementedError(f"{type(self).__name__} must define `fold`")


def replaced(module: Model, **new: typing.Any) -> Model:
    """A module with other values of its fields."""
    where = lambda one: [getattr(one, name) for name in new]  # noqa: E731 - it is an argument
    return eqx.tree_at(where, module, [*new.values()], is_leaf=lambda leaf: leaf is None)


def with_key(model: Model, key: jax.Array) -> Model:
    """A model whose noisy modules each have a key made from one: for models that hand no keys to their layers.

    Call it where each sample has its key, within `jax.vmap` and within what is differentiated. A key that is given to a
    call takes precedence. A module that is called more than once has the same mask each time.

    Args:
        model: a tree with noisy modules at any depth.
        key: a `jax.random.key`, that of one sample.

    Returns:
        The model; the one given stays as it is.

    Raises:
        ValueError: anything but one key.

    >>> import equinox as eqx, jax, pernodedrop.equinox as pnde
    >>> model = eqx.nn.MLP(3, 1, width_size=8, depth=2, key=jax.random.key(0))
    >>> model = pnde.apply(model, "all-linear", rate=0.2, exclude=r"layers\\.2")
    >>> x, keys = jax.numpy.ones((5, 3)), jax.random.split(jax.random.key(1), 5)
    >>> jax.vmap(lambda x, key: pnde.with_key(model, key)(x))(x, keys).shape
    (5, 1)
    """
    _words_of(key)

    def of(node: typing.Any) -> list[Noisy]:
        leaves = jax.tree.leaves(node, is_leaf=lambda leaf: isinstance(leaf, Noisy))
        return [leaf for leaf in leaves if isinstance(leaf, Noisy)]

    modules = of(model)
    if not modules:
        raise ValueError(checks.invalid("model", "one with noisy modules", type(model)))
    keys = [_key_for(module, jax.random.fold_in(key, n)) for n, module in enumerate(modules)]
    return eqx.tree_at(lambda m: [one.noise_key for one in of(m)], model, keys, is_leaf=lambda leaf: leaf is None)


def _key_for(module: Noisy, key: jax.Array) -> jax.Array:
    """Words (2,), or so many of them as modules are stacked in one."""
    stacked = module.noise_numbers.shape[:-1]
    keys = jax.random.split(key, stacked) if stacked else key
    return jax.random.key_data(keys) if jax.numpy.issubdtype(keys.dtype, jax.dtypes.prng_key) else keys


def word_of(seed: int | None, key: jax.Array | None) -> jax.Array:
    """The seed's word, a uint32 scalar: that of a seed or, without one, of a key."""
    if seed is not None:
        return xp.asarray(np.uint32(generator.seed_word(seed)))
    return generator.mixed(list(_words_of(key)), xp)


def _words_of(key: typing.Any) -> jax.Array:
    """The words of a key, or an error."""
    expected = "a jax.random.key, or an integer for `seed`" if key is None else "one jax.random.key"
    if not hasattr(key, "dtype"):
        raise TypeError(checks.invalid("key", expected, key))
    is_key = str(key.dtype).startswith(("key<", "uint32"))  # asked first: what has no numbers is no array of JAX
    if not is_key or (words := xp.asarray(key)).ndim != 1:
        raise ValueError(checks.invalid("key", expected, key))
    return words

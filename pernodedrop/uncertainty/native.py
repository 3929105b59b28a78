"""Predictions of native modules, in any framework: which of them make noise, the batches of `x`, and all passes.

`Passes` is what a framework's own derives from, beside which it only has to say how a pass runs.
"""

import collections.abc
import itertools
import math
import operator
import typing

import numpy as np

from pernodedrop import backends, checks
from pernodedrop._types import Array
from pernodedrop.state import Regularizer
from pernodedrop.uncertainty.prediction import (
    Outputs,
    among,
    check_arguments,
    chosen_of,
    default_samples,
    named,
    seeds_of,
    word_of,
)

Batch: typing.TypeAlias = tuple[typing.Any, int]
Module: typing.TypeAlias = typing.Any


class Passes:
    """The noisy passes of a model, and the modules in it, each once, by the part that they have in a pass.

    Args:
        model: of the class `kind`.
        seed: int, that of its masks.
        chosen: `layers` of `predict`: of no other modules is there noise, but places and masks stay what they are.
        may_be_quiet: whether no noise at all is no error.

    Attributes:
        known: pairs of a name and a module; modules are told apart by identity.
        noisy: the modules of this library that draw in training, whose place among all of those is that of `place`.
        ensembles: those with members, of which the pass chooses one.
        fixed: those with members that are not chosen: a sample has that of its place in x.
        others: modules of the framework itself that drop.
    """

    kind: typing.ClassVar[type]
    name: typing.ClassVar[str]
    """The full name of that class, for errors."""

    filled: typing.ClassVar[bool] = True
    """Whether batches are filled up so that all have one shape, for a pass that is compiled."""

    def __init__(self, model: Module, seed: int, chosen: typing.Any = None, may_be_quiet: bool = False) -> None:
        self.model, self.seed, self.width = model, seed, 0
        self.known = self.named_modules()
        own = [one for _, one in self.known if isinstance(one, Regularizer)]
        self.ensembles: list[Module] = [one for one in own if one.members]
        self.noisy: list[Module] = [one for one in own if one.is_stochastic and not one.members]
        self.others = self.noise_of_framework()
        if not (self.ensembles or self.noisy or self.others or may_be_quiet):
            raise ValueError(
                checks.invalid("model", "a model with noise modules: its passes would all be equal", model)
            )
        self.places = {id(one): place for place, one in enumerate(self.noisy)}
        self.fixed: list[Module] = []
        if chosen is not None:
            self.choose(chosen)

    def named_modules(self) -> list[tuple[str, Module]]:
        """The modules of the model with their names, in an order that stays."""
        raise NotImplementedError(f"{type(self).__name__} must define `named_modules`")

    def inside(self, module: Module) -> collections.abc.Iterable[Module]:
        """A module, and those inside of it."""
        raise NotImplementedError(f"{type(self).__name__} must define `inside`")

    def noise_of_framework(self) -> list[Module]:
        """The modules of the framework that drop."""
        raise NotImplementedError(f"{type(self).__name__} must define `noise_of_framework`")

    def forward(self, rows: typing.Any, width: int, start: int, sample: int) -> dict[typing.Any, Array]:
        """What pass `sample` gives, `named`, for a batch of so many rows whose first is row `start` of the whole."""
        raise NotImplementedError(f"{type(self).__name__} must define `forward`")

    def choose(self, chosen: typing.Any) -> None:
        """Has no other modules make noise than those chosen, or inside of them."""
        noise = [one for _, one in self.known if among(one, [*self.noisy, *self.ensembles, *self.others])]
        wanted = chosen_of(chosen, noise, self.known, self.inside)
        self.fixed = [one for one in self.ensembles if not among(one, wanted)]
        self.ensembles, self.noisy, self.others = (
            [one for one in many if among(one, wanted)] for many in (self.ensembles, self.noisy, self.others)
        )

    @property
    def members(self) -> int:
        """The number of passes in which each member of all modules is as often as others."""
        return math.lcm(*(one.members for one in self.ensembles))

    @property
    def has_noise(self) -> bool:
        """Whether more passes than members say more."""
        return bool(self.noisy or self.others)

    def word(self, module: Module, sample: int) -> int:
        """The seed of a noisy module in a pass."""
        return word_of(self.seed, self.places[id(module)], sample)

    def word_of_others(self, sample: int, *more: int) -> int:
        """The seed of all that is not of this library."""
        return word_of(self.seed, len(self.places), sample, *more)

    def run(self, rows: typing.Any, size: int, start: int, sample: int) -> Outputs:
        """The outputs of a pass for a batch of `size` rows."""
        self.width = max(self.width, size) if self.filled else size
        if self.width > size:
            filled = np.minimum(np.arange(self.width), size - 1)  # the last row stands for those that are missing
            rows = mapped(rows, operator.itemgetter(filled))
        found = self.forward(rows, self.width, start, sample)
        return {name: y[:size] for name, y in found.items()}


def called(
    model: typing.Callable[..., typing.Any], rows: typing.Any, **more: typing.Any
) -> dict[typing.Any, typing.Any]:
    """What a model gives of its arguments, by the names of its outputs."""
    if isinstance(rows, dict):
        found = model(**rows, **more)
    else:
        found = model(*rows, **more) if isinstance(rows, list | tuple) else model(rows, **more)
    return named(getattr(found, "logits", found))


def checked(y: typing.Any, size: int) -> typing.Any:
    """An output, or an error where it is not one for each of so many samples."""
    shape = getattr(y, "shape", None)
    if shape is None or tuple(shape[:1]) != (size,):
        received = type(y) if shape is None else tuple(shape)
        raise ValueError(checks.invalid("model", f"tensors with an output for each of {size} samples", received))
    return y


def outputs_of(
    passes: type[Passes],
    model: typing.Any,
    x: typing.Any,
    samples: int | None,
    batch_size: int | None,
    seed: int | None,
    layers: typing.Any,
    keep: bool,
    reading: dict[str, typing.Any],
) -> tuple[collections.abc.Iterator[collections.abc.Iterator[Outputs]], int, int]:
    """For each batch the outputs of its passes, how many passes there are, and their seed; the arguments of `predict`.

    Raises:
        TypeError, ValueError: an argument that is not as described there.
    """
    models = model if isinstance(model, list | tuple) else [model]
    if not models or not all(isinstance(one, passes.kind) for one in models):
        raise TypeError(checks.invalid("model", f"a {passes.name}, or a list of them", model))
    seed = check_arguments(seed, keep, **reading)
    batches = batches_of(x, batch_size)
    first = next(batches, None)
    if first is None:
        raise ValueError(checks.invalid("x", "at least one batch", x))
    seeds = seeds_of(seed, models)
    members = [passes(*one, layers, may_be_quiet=len(models) > 1) for one in zip(models, seeds, strict=True)]
    default = default_samples([(one.members, one.has_noise) for one in members])
    number = default if samples is None else checks.check_count(samples, "samples", len(models))

    def outputs() -> collections.abc.Iterator[collections.abc.Iterator[Outputs]]:
        start = 0
        for rows, size in itertools.chain([first], batches):
            yield (members[s % len(members)].run(rows, size, start, s // len(members)) for s in range(number))
            start += size

    return outputs(), number, seed


def batches_of(x: typing.Any, batch_size: int | None) -> collections.abc.Iterator[Batch]:
    """The batches of `x`, each with how many samples it has."""
    if isinstance(x, list | tuple | dict) or hasattr(x, "shape"):
        size, length = _size(x), 32 if batch_size is None else checks.check_count(batch_size, "batch_size")
        for start in range(0, size, length):
            yield mapped(x, operator.itemgetter(slice(start, start + length))), min(length, size - start)
        return
    if not hasattr(x, "__iter__"):
        raise TypeError(checks.invalid("x", "a tensor, a list or dict of them, or batches", x))
    if batch_size is not None:
        raise ValueError(checks.invalid("batch_size", "None where `x` gives batches, which have their own", batch_size))
    for batch in x:
        inputs = batch[0] if isinstance(batch, list | tuple) else batch
        yield inputs, _size(inputs)


def _size(x: typing.Any) -> int:
    """How many samples there are."""
    leaves = list(x.values()) if isinstance(x, dict) else list(x) if isinstance(x, list | tuple) else [x]
    expected = "a tensor with samples first, or a list or dict of them, of equal lengths from 1"
    if not all(backends.name_of(leaf) for leaf in leaves):
        raise TypeError(checks.invalid("x", expected, x))
    for leaf in leaves:
        checks.check_numbers(leaf, "x")
    sizes = {tuple(leaf.shape)[:1] for leaf in leaves}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(checks.invalid("x", expected, [tuple(leaf.shape) for leaf in leaves]))
    return int(sizes.pop()[0])


def mapped(x: typing.Any, function: typing.Callable[[typing.Any], typing.Any]) -> typing.Any:
    """The same list, tuple, dict or single leaf with what a function makes of each leaf."""
    if isinstance(x, dict):
        return {name: function(leaf) for name, leaf in x.items()}
    return type(x)(map(function, x)) if isinstance(x, list | tuple) else function(x)

"""MC Dropout for modules of torch: predictions with their uncertainty, from passes that keep the noise (1506.02142).

The passes are those of the model in `eval()`, except that its noise modules train. A hook tells each module of this
library the key and the samples of the pass, so that none of its state is touched; all modes are put back.
"""

import collections.abc
import contextlib
import itertools
import math
import operator
import typing

import numpy as np
import torch

from pernodedrop import backends, checks
from pernodedrop._types import Array
from pernodedrop.internals import of_torch
from pernodedrop.torch.noisy import Noisy
from pernodedrop.uncertainty.prediction import (
    Each,
    Outputs,
    check_arguments,
    chosen_of,
    collected,
    default_samples,
    named,
    seeds_of,
    word_of,
)

__all__ = ["predict"]

HOLDERS = tuple(getattr(torch.nn, name) for name in of_torch.HOLDERS)
Batch: typing.TypeAlias = tuple[typing.Any, int]


def predict(
    model: torch.nn.Module | collections.abc.Sequence[torch.nn.Module],
    x: typing.Any,
    samples: int | None = None,
    *,
    batch_size: int | None = None,
    seed: int | None = None,
    from_logits: bool | Each = False,
    probabilities: bool | Each | None = None,
    gaussian: bool | Each = False,
    layers: str | collections.abc.Collection[str | torch.nn.Module] | None = None,
    keep: bool = False,
) -> typing.Any:
    """Predict with the noise left on, many times, and say how much the passes differ (arXiv 1506.02142).

    Noise modules are found in the model at any depth: those of this library, and those of `torch.nn` that drop. They
    train, all others are in `eval()`: BatchNorm uses its moving statistics and leaves them as they are. Afterwards the
    model is as it was, its modes, keys and torch's random numbers included, also after an exception.

    It is `pernodedrop.uncertainty.predict` for modules, with the same masks for the same seed where modules stand in
    the same order: the mask of sample n in pass s depends on (seed, place of the module, call number, s, n), not on
    `batch_size`. A module with `members` (regime "bank") is its member s modulo their number in pass s. Masks of
    torch's own modules depend on the batch size.

    Args:
        model: a module that gives a tensor (n, ...), or a dict, list or tuple of them, or an object that has one as
            `logits`. It is called without gradients, on the device of its first parameter. Or a list of modules, an
            ensemble (arXiv 1612.01474), of which pass s is pass s // M of module s modulo M, with a seed of its own;
            several of them need no noise.
        x: a tensor or array (n, ...), or a list or tuple of them for a model of several arguments, or a dict of them
            by the arguments' names; or batches, as a `DataLoader` or a generator gives them, of which (x, y) or
            (x, y, weights) is x.
        samples: number of passes. None is the number of members where the model has members and no other noise;
            otherwise 50, or the next multiple of the number of members. Several models count as members.
        batch_size: samples in a forward pass; None is 32. With x as batches it is theirs, and None here.
        seed: int, any; None takes one from Python's `random`. A seed gives the same prediction each time.
        from_logits: whether outputs are logits. A softmax, or a sigmoid where the last axis has size 1, is applied
            first, in float64.
        probabilities: whether outputs are probabilities, and have entropies. None decides by their values.
        gaussian: whether outputs are normal distributions: along the last axis means, then as many logarithms of
            variances (arXiv 1703.04977). Where a model has several outputs, this, `probabilities` and `from_logits` are
            for all of them, or dicts or lists like the outputs.
        layers: which modules make noise: None for all, "last" for the last one of them in the order of `modules()`, or
            modules of the model or their names, of which what is inside makes noise too. Others are in `eval()`; with
            members, a sample has that of its place in x. Masks are those of passes with all, but for torch's modules.
        keep: whether to keep the output of every pass; else memory does not depend on `samples`.

    Returns:
        A `pernodedrop.uncertainty.Prediction`, NumPy arrays in float64, or a dict or list of them for several outputs.

    Raises:
        TypeError, ValueError: a model without noise, or an argument that is not as described.

    Warns:
        UserWarning: all of several passes were equal.

    Example:

    >>> import torch, pernodedrop.torch as pndt
    >>> model = torch.nn.Sequential(pndt.Dropout(0.5), torch.nn.Linear(8, 3), torch.nn.Softmax(-1))
    >>> found = pndt.uncertainty.predict(model, torch.ones(5, 8), samples=20, seed=1)
    >>> found.mean.shape, found.mutual_information.shape
    ((5, 3), (5,))
    """
    models = model if isinstance(model, list | tuple) else [model]
    if not models or not all(isinstance(one, torch.nn.Module) for one in models):
        raise TypeError(checks.invalid("model", "a torch.nn.Module, or a list of them", model))
    reading = {"from_logits": from_logits, "probabilities": probabilities, "gaussian": gaussian}
    seed = check_arguments(seed, keep, **reading)
    batches = _batches(x, batch_size)
    first = next(batches, None)
    if first is None:
        raise ValueError(checks.invalid("x", "at least one batch", x))
    seeds = seeds_of(seed, models)
    members = [_Passes(*one, layers, may_be_quiet=len(models) > 1) for one in zip(models, seeds, strict=True)]
    default = default_samples([(one.members, one.has_noise) for one in members])
    number = default if samples is None else checks.check_count(samples, "samples", len(models))

    def outputs() -> collections.abc.Iterator[collections.abc.Iterator[Outputs]]:
        start = 0
        for rows, size in itertools.chain([first], batches):
            yield (members[s % len(members)].run(rows, size, start, s // len(members)) for s in range(number))
            start += size

    return collected(outputs(), number, seed, keep, **reading)


class _Passes:
    """The noisy passes of a model."""

    def __init__(self, model: torch.nn.Module, seed: int, chosen: typing.Any, may_be_quiet: bool) -> None:
        self.model, self.seed = model, seed
        modules = list(model.modules())
        self.ensembles = [one for one in modules if isinstance(one, Noisy) and one.members]
        self.noisy = [one for one in modules if isinstance(one, Noisy) and one.is_stochastic and not one.members]
        self.of_torch = of_torch.noise_in(model)
        if not (self.ensembles or self.noisy or self.of_torch or may_be_quiet):
            raise ValueError(
                checks.invalid("model", "a model with noise modules: its passes would all be equal", model)
            )
        # by place; of calls a schedule's rate depends
        self.keys = {one: (place, one.updates) for place, one in enumerate(self.noisy)}
        self.fixed: list[Noisy] = []  # that have members, and are not to be sampled
        if chosen is not None:
            self._choose(chosen, modules)
        noise = {*self.noisy, *self.ensembles}
        self.holders = [one for one in modules if isinstance(one, HOLDERS) and not noise.isdisjoint(one.modules())]

    def _choose(self, chosen: typing.Any, modules: list[torch.nn.Module]) -> None:
        """Has no other modules make noise than those chosen, or inside of them; places and masks stay what they are."""
        noise = [one for one in modules if one in {*self.noisy, *self.ensembles, *self.of_torch}]
        wanted = chosen_of(chosen, noise, list(self.model.named_modules()), torch.nn.Module.modules)
        self.fixed = [one for one in self.ensembles if one not in wanted]
        self.ensembles = [one for one in self.ensembles if one in wanted]
        self.noisy = [one for one in self.noisy if one in wanted]
        held = [one for one in self.of_torch if isinstance(one, HOLDERS) and not {*wanted}.isdisjoint(one.modules())]
        self.of_torch = [one for one in self.of_torch if one in wanted or one in held]

    @property
    def members(self) -> int:
        """The number of passes in which each member of all modules is as often as others."""
        return math.lcm(*(typing.cast(int, one.members) for one in self.ensembles))

    @property
    def has_noise(self) -> bool:
        """Whether more passes than members say more."""
        return bool(self.noisy or self.of_torch)

    def run(self, rows: typing.Any, size: int, start: int, sample: int) -> Outputs:
        """The outputs of pass `sample` for the batch whose first row is row `start` of the whole."""
        parameter = next(self.model.parameters(), None)
        rows = _mapped(rows, lambda leaf: _moved(leaf, parameter))
        with torch.no_grad(), self._changed(size, start, sample), torch.random.fork_rng(_cuda_devices()):
            torch.manual_seed(word_of(self.seed, len(self.keys), sample, start))
            if isinstance(rows, dict):
                found = self.model(**rows)
            else:
                found = self.model(*rows) if isinstance(rows, list | tuple) else self.model(rows)
        return {name: _output(y, size) for name, y in named(getattr(found, "logits", found)).items()}

    @contextlib.contextmanager
    def _changed(self, size: int, start: int, sample: int) -> collections.abc.Iterator[None]:
        """Has the noise modules train, with the keys and samples of a pass."""

        def be_member_of_place(module: Noisy, args: typing.Any, kwargs: dict[str, typing.Any]) -> typing.Any:
            # the module's rows are the batch's, or each sample of the batch has been made several of them
            x = _input(args, kwargs)
            first = start * (x.shape[0] // size)
            ids = first + torch.arange(x.shape[0], dtype=torch.int32, device=x.device)
            return args[:1], {**kwargs, "sample_ids": ids}

        def make_noise(module: Noisy, args: typing.Any, kwargs: dict[str, typing.Any]) -> typing.Any:
            place, call = self.keys[module]
            if "sample" not in module.sharing and kwargs.get("sample_ids") is None:
                args, kwargs = be_member_of_place(module, args, kwargs)
            return args[:1], {**kwargs, "key": (word_of(self.seed, place, sample), call)}

        def be_member(module: Noisy, args: typing.Any, kwargs: dict[str, typing.Any]) -> typing.Any:
            x = _input(args, kwargs)
            ids = torch.full(x.shape[:1], sample, dtype=torch.int32, device=x.device)
            return args[:1], {**kwargs, "sample_ids": ids}

        modes = [(module, module.training) for module in self.model.modules()]
        with contextlib.ExitStack() as stack:
            for module, mode in modes:
                stack.callback(setattr, module, "training", mode)
                module.training = False
            for module in (*self.noisy, *self.of_torch, *self.holders):
                module.training = True
            for modules, hook in (
                (self.noisy, make_noise),
                (self.ensembles, be_member),
                (self.fixed, be_member_of_place),
            ):
                for one in modules:
                    stack.callback(one.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield


def _output(output: typing.Any, size: int) -> Array:
    """What a pass has returned, or one of several things, as the array that is expected of it."""
    if not isinstance(output, torch.Tensor) or output.shape[:1] != (size,):
        received = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output)
        raise ValueError(checks.invalid("model", f"tensors with an output for each of {size} samples", received))
    return output.double().cpu().numpy()


def _input(args: tuple[typing.Any, ...], kwargs: dict[str, typing.Any]) -> torch.Tensor:
    return args[0] if args else kwargs["input"]


def _batches(x: typing.Any, batch_size: int | None) -> collections.abc.Iterator[Batch]:
    """The batches of `x`, each with how many samples it has."""
    if isinstance(x, list | tuple | dict) or hasattr(x, "shape"):
        size, length = _size(x), 32 if batch_size is None else checks.check_count(batch_size, "batch_size")
        for start in range(0, size, length):
            yield _mapped(x, operator.itemgetter(slice(start, start + length))), min(length, size - start)
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
    sizes = {tuple(leaf.shape)[:1] for leaf in leaves}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(checks.invalid("x", expected, [tuple(leaf.shape) for leaf in leaves]))
    return int(sizes.pop()[0])


def _mapped(x: typing.Any, function: typing.Callable[[typing.Any], typing.Any]) -> typing.Any:
    """The same list, tuple, dict or single leaf with what a function makes of each leaf."""
    if isinstance(x, dict):
        return {name: function(leaf) for name, leaf in x.items()}
    return type(x)(map(function, x)) if isinstance(x, list | tuple) else function(x)


def _moved(leaf: typing.Any, parameter: torch.Tensor | None) -> torch.Tensor:
    """A tensor, where the model is; of an array, in the floating dtype of the model."""
    try:
        tensor = torch.as_tensor(leaf)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(checks.invalid("x", "what torch.as_tensor takes", leaf)) from error
    if parameter is None:
        return tensor
    if isinstance(leaf, np.ndarray) and tensor.is_floating_point():
        tensor = tensor.to(parameter.dtype)
    return tensor.to(parameter.device)


def _cuda_devices() -> range:
    return range(torch.cuda.device_count())

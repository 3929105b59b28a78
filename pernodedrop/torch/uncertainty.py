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

from pernodedrop import checks
from pernodedrop._types import Array
from pernodedrop.internals import of_torch
from pernodedrop.torch.noisy import Noisy
from pernodedrop.uncertainty.prediction import Outputs, Prediction, check_arguments, collected, word_of

__all__ = ["predict"]

SAMPLES = 50
Batch: typing.TypeAlias = tuple[typing.Any, int]


def predict(
    model: torch.nn.Module,
    x: typing.Any,
    samples: int | None = None,
    *,
    batch_size: int | None = None,
    seed: int | None = None,
    from_logits: bool = False,
    probabilities: bool | None = None,
    gaussian: bool = False,
    keep: bool = False,
) -> Prediction:
    """Predict with the noise left on, many times, and say how much the passes differ (arXiv 1506.02142).

    Noise modules are found in the model at any depth: those of this library, and those of `torch.nn` that drop. They
    train, all others are in `eval()`: BatchNorm uses its moving statistics and leaves them as they are. Afterwards the
    model is as it was, its modes, keys and torch's random numbers included, also after an exception.

    It is `pernodedrop.uncertainty.predict` for modules, with the same masks for the same seed where modules stand in
    the same order: the mask of sample n in pass s depends on (seed, place of the module, call number, s, n), not on
    `batch_size`. A module with `members` (regime "bank") is its member s modulo their number in pass s. Masks of
    torch's own modules depend on the batch size.

    Args:
        model: a module that gives one tensor (n, ...), or an object that has it as `logits`. It is called without
            gradients, on the device of its first parameter.
        x: a tensor or array (n, ...), or a list or tuple of them for a model of several arguments, or a dict of them
            by the arguments' names; or batches, as a `DataLoader` or a generator gives them, of which (x, y) or
            (x, y, weights) is x.
        samples: number of passes. None is the number of members where the model has members and no other noise;
            otherwise 50, or the next multiple of the number of members.
        batch_size: samples in a forward pass; None is 32. With x as batches it is theirs, and None here.
        seed: int, any; None takes one from Python's `random`. A seed gives the same prediction each time.
        from_logits: whether outputs are logits. A softmax, or a sigmoid where the last axis has size 1, is applied
            first, in float64.
        probabilities: whether outputs are probabilities, and have entropies. None decides by their values.
        gaussian: whether outputs are normal distributions: along the last axis means, then as many logarithms of
            variances (arXiv 1703.04977).
        keep: whether to keep the output of every pass; else memory does not depend on `samples`.

    Returns:
        A `pernodedrop.uncertainty.Prediction`, NumPy arrays in float64.

    Raises:
        TypeError, ValueError: a model without noise, or with several outputs, or an argument that is not as described.

    Warns:
        UserWarning: all of several passes were equal.

    Example:

    >>> import torch, pernodedrop.torch as pndt
    >>> model = torch.nn.Sequential(pndt.Dropout(0.5), torch.nn.Linear(8, 3), torch.nn.Softmax(-1))
    >>> found = pndt.uncertainty.predict(model, torch.ones(5, 8), samples=20, seed=1)
    >>> found.mean.shape, found.mutual_information.shape
    ((5, 3), (5,))
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(checks.invalid("model", "a torch.nn.Module", model))
    reading = {"from_logits": from_logits, "probabilities": probabilities, "gaussian": gaussian}
    seed = check_arguments(seed, keep, **reading)
    batches = _batches(x, batch_size)
    first = next(batches, None)
    if first is None:
        raise ValueError(checks.invalid("x", "at least one batch", x))
    passes = _Passes(model, seed)
    number = passes.default_samples() if samples is None else checks.check_count(samples, "samples")

    def outputs() -> collections.abc.Iterator[collections.abc.Iterator[Outputs]]:
        start = 0
        for rows, size in itertools.chain([first], batches):
            yield ({None: passes.run(rows, size, start, sample)} for sample in range(number))
            start += size

    found: Prediction = collected(outputs(), number, seed, keep, **reading)
    return found


class _Passes:
    """The noisy passes of a model."""

    def __init__(self, model: torch.nn.Module, seed: int) -> None:
        self.model, self.seed = model, seed
        modules = list(model.modules())
        self.ensembles = [one for one in modules if isinstance(one, Noisy) and one.members]
        self.noisy = [one for one in modules if isinstance(one, Noisy) and one.is_stochastic and not one.members]
        self.of_torch = of_torch.noise_in(model)
        if not (self.ensembles or self.noisy or self.of_torch):
            raise ValueError(
                checks.invalid("model", "a model with noise modules: its passes would all be equal", model)
            )
        self.calls = [one.updates for one in self.noisy]  # a schedule's rate depends on it
        kinds = tuple(getattr(torch.nn, name) for name in of_torch.HOLDERS)
        noise = {*self.noisy, *self.ensembles}
        self.holders = [one for one in modules if isinstance(one, kinds) and not noise.isdisjoint(one.modules())]

    def default_samples(self) -> int:
        """The number of passes that treats all members alike."""
        members = math.lcm(*(typing.cast(int, one.members) for one in self.ensembles))
        return math.ceil(SAMPLES / members) * members if self.noisy or self.of_torch else members

    def run(self, rows: typing.Any, size: int, start: int, sample: int) -> Array:
        """The outputs of pass `sample` for the batch whose first row is row `start` of the whole."""
        parameter = next(self.model.parameters(), None)
        rows = _mapped(rows, lambda leaf: _moved(leaf, parameter))
        with torch.no_grad(), self._changed(size, start, sample), torch.random.fork_rng(_cuda_devices()):
            torch.manual_seed(word_of(self.seed, len(self.noisy), sample, start))
            if isinstance(rows, dict):
                found = self.model(**rows)
            else:
                found = self.model(*rows) if isinstance(rows, list | tuple) else self.model(rows)
        found = getattr(found, "logits", found)
        if not isinstance(found, torch.Tensor) or found.shape[:1] != (size,):
            received = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found)
            raise ValueError(checks.invalid("model", f"one tensor with an output for each of {size} samples", received))
        return found.double().cpu().numpy()

    @contextlib.contextmanager
    def _changed(self, size: int, start: int, sample: int) -> collections.abc.Iterator[None]:
        """Has the noise modules train, with the keys and samples of a pass."""

        def make_noise(index: int) -> typing.Callable[..., typing.Any]:
            key = (word_of(self.seed, index, sample), self.calls[index])

            def hook(module: Noisy, args: typing.Any, kwargs: dict[str, typing.Any]) -> typing.Any:
                if "sample" not in module.sharing and kwargs.get("sample_ids") is None:
                    # the module's rows are the batch's, or each sample of the batch has been made several of them
                    x = _input(args, kwargs)
                    first = start * (x.shape[0] // size)
                    ids = first + torch.arange(x.shape[0], dtype=torch.int32, device=x.device)
                    kwargs = {**kwargs, "sample_ids": ids}
                return args[:1], {**kwargs, "key": key}

            return hook

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
            for index, one in enumerate(self.noisy):
                stack.callback(one.register_forward_pre_hook(make_noise(index), with_kwargs=True).remove)
            for one in self.ensembles:
                stack.callback(one.register_forward_pre_hook(be_member, with_kwargs=True).remove)
            yield


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
    if not all(hasattr(leaf, "shape") for leaf in leaves):
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
    tensor = torch.as_tensor(leaf)
    if parameter is None:
        return tensor
    if isinstance(leaf, np.ndarray) and tensor.is_floating_point():
        tensor = tensor.to(parameter.dtype)
    return tensor.to(parameter.device)


def _cuda_devices() -> range:
    return range(torch.cuda.device_count())

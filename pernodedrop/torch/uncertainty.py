"""MC Dropout for modules of torch: predictions with their uncertainty, from passes that keep the noise (1506.02142).

The passes are those of the model in `eval()`, except that its noise modules train. A hook tells each module of this
library the key and the samples of the pass, so that none of its state is touched; all modes are put back.
"""

import collections.abc
import contextlib
import typing

import numpy as np
import torch

from pernodedrop import checks
from pernodedrop._types import Array
from pernodedrop.internals import of_torch
from pernodedrop.torch.noisy import Noisy
from pernodedrop.uncertainty.native import Passes, called, checked, mapped, outputs_of
from pernodedrop.uncertainty.prediction import Each, collected

__all__ = ["predict"]

HOLDERS = tuple(getattr(torch.nn, name) for name in of_torch.HOLDERS)


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
        seed: any int; None takes one from Python's `random`. A seed gives the same prediction each time.
        from_logits: whether outputs are logits. A softmax, or a sigmoid where the last axis has size 1, is applied
            first, in float64.
        probabilities: whether outputs are probabilities, and have entropies. None decides by their values.
        gaussian: whether outputs are normal distributions: along the last axis means, then as many logarithms of
            variances (arXiv 1703.04977). Where a model has several outputs, this, `probabilities` and `from_logits` are
            for all of them, or dicts or lists like the outputs.
        layers: which modules make noise: None for all, "last" for the last one of them in the order of `modules()`, or
            modules of the model or their names, and what is inside of these too. Others are in `eval()`, and one with
            members gives each sample that of its place in x. The masks are those of passes in which all make noise, but
            not in torch's modules.
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
    reading = {"from_logits": from_logits, "probabilities": probabilities, "gaussian": gaussian}
    outputs, number, seed = outputs_of(_Passes, model, x, samples, batch_size, seed, layers, keep, reading)
    return collected(outputs, number, seed, keep, **reading)


class _Passes(Passes):
    """The noisy passes of a model of torch."""

    kind, name, filled = torch.nn.Module, "torch.nn.Module", False

    def __init__(self, *arguments: typing.Any, **keywords: typing.Any) -> None:
        super().__init__(*arguments, **keywords)
        self.calls = {one: one.updates for one in self.noisy}  # of which a schedule's rate depends
        noise = {*self.noisy, *self.ensembles}
        modules = [one for _, one in self.known]
        self.holders = [one for one in modules if isinstance(one, HOLDERS) and not noise.isdisjoint(one.modules())]

    def named_modules(self) -> list[tuple[str, torch.nn.Module]]:
        return list(self.model.named_modules())

    def inside(self, module: torch.nn.Module) -> collections.abc.Iterable[torch.nn.Module]:
        return module.modules()

    def noise_of_framework(self) -> list[torch.nn.Module]:
        return of_torch.noise_in(self.model)

    def choose(self, chosen: typing.Any) -> None:
        holders = [one for one in self.others if isinstance(one, HOLDERS)]
        super().choose(chosen)
        held = [one for one in holders if not {*self.others}.isdisjoint(one.modules())]
        self.others = [*self.others, *held]

    def forward(self, rows: typing.Any, width: int, start: int, sample: int) -> dict[typing.Any, Array]:
        parameter = next(self.model.parameters(), None)
        rows = mapped(rows, lambda leaf: _moved(leaf, parameter))
        with torch.no_grad(), self._changed(width, start, sample), torch.random.fork_rng(_cuda_devices()):
            torch.manual_seed(self.word_of_others(sample, start))
            found = called(self.model, rows)
        return {name: torch.as_tensor(checked(y, width)).double().cpu().numpy() for name, y in found.items()}

    @contextlib.contextmanager
    def _changed(self, size: int, start: int, sample: int) -> collections.abc.Iterator[None]:
        """Has the noise modules train, with the keys and samples of a pass."""

        def be_member_of_place(module: Noisy, args: typing.Any, kwargs: dict[str, typing.Any]) -> typing.Any:
            # the module's rows are the batch's, or each sample of the batch has been made several of them
            rows = module.batch_of(_input(args, kwargs))
            first = start * (rows // size)
            ids = first + torch.arange(rows, dtype=torch.int32, device=module.noise_key.device)
            return args[: module.inputs], {**kwargs, "sample_ids": ids}

        def make_noise(module: Noisy, args: typing.Any, kwargs: dict[str, typing.Any]) -> typing.Any:
            if "sample" not in module.sharing and kwargs.get("sample_ids") is None:
                args, kwargs = be_member_of_place(module, args, kwargs)
            return args[: module.inputs], {**kwargs, "key": (self.word(module, sample), self.calls[module])}

        def be_member(module: Noisy, args: typing.Any, kwargs: dict[str, typing.Any]) -> typing.Any:
            rows = module.batch_of(_input(args, kwargs))
            ids = torch.full((rows,), sample, dtype=torch.int32, device=module.noise_key.device)
            return args[: module.inputs], {**kwargs, "sample_ids": ids}

        modes = [(module, module.training) for module in self.model.modules()]
        with contextlib.ExitStack() as stack:
            for module, mode in modes:
                stack.callback(setattr, module, "training", mode)
                module.training = False
            for module in (*self.noisy, *self.others, *self.holders):
                module.training = True
            for modules, hook in (
                (self.noisy, make_noise),
                (self.ensembles, be_member),
                (self.fixed, be_member_of_place),
            ):
                for one in modules:
                    stack.callback(one.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield


def _input(args: tuple[typing.Any, ...], kwargs: dict[str, typing.Any]) -> typing.Any:
    return args[0] if args else kwargs["input"]


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

"""Changing a model: noise put into the modules that a rule names (`apply`), a copy with noise taken out (`fold`)."""

import copy
import dataclasses
import dis
import sys
import typing
import warnings

import torch

from pernodedrop import checks
from pernodedrop.rules import Choice, Family, Function, Rule
from pernodedrop.torch.attention import DropConnectMultiheadAttention, PerNodeMultiheadAttention
from pernodedrop.torch.composite import Composite
from pernodedrop.torch.drop_connect import DropConnectConv1d, DropConnectConv2d, DropConnectConv3d, DropConnectLinear
from pernodedrop.torch.dynamic_drop_connect import (
    DynamicDropConnectConv1d,
    DynamicDropConnectConv2d,
    DynamicDropConnectConv3d,
    DynamicDropConnectLinear,
)
from pernodedrop.torch.noisy import Noisy
from pernodedrop.torch.per_node_drop import PerNodeConv1d, PerNodeConv2d, PerNodeConv3d, PerNodeLinear
from pernodedrop.torch.recurrent import NoisyGRU, NoisyLSTM, NoisyRNN

NOISY = (Noisy, Composite)
FAMILY = Family(
    torch.nn.Module,
    "torch.nn.Module",
    NOISY,
    "forward",
    {
        "all-linear": (torch.nn.Linear,),
        "all-conv": (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d),
        "all-attention": (torch.nn.MultiheadAttention,),
        "all-recurrent": (torch.nn.RNN, torch.nn.LSTM, torch.nn.GRU),
    },
    {
        "per_node_drop": (PerNodeLinear, PerNodeConv1d, PerNodeConv2d, PerNodeConv3d, PerNodeMultiheadAttention),
        "drop_connect": (
            DropConnectLinear,
            DropConnectConv1d,
            DropConnectConv2d,
            DropConnectConv3d,
            DropConnectMultiheadAttention,
        ),
        "dynamic_drop_connect": (
            DynamicDropConnectLinear,
            DynamicDropConnectConv1d,
            DynamicDropConnectConv2d,
            DynamicDropConnectConv3d,
        ),
        "noisy_rnn": (NoisyRNN, NoisyLSTM, NoisyGRU),
    },
)


def _family() -> Family:
    """The modules of torch, and those of transformers if it has been imported, without which no model has them."""
    if "transformers.pytorch_utils" not in sys.modules:
        return FAMILY
    from pernodedrop.torch import of_transformers

    return dataclasses.replace(
        FAMILY,
        kinds={**FAMILY.kinds, "all-linear": (*FAMILY.kinds["all-linear"], of_transformers.Conv1D)},
        regularizers={
            **FAMILY.regularizers,
            "per_node_drop": (*FAMILY.regularizers["per_node_drop"], of_transformers.PerNodeConv1D),
            "drop_connect": (*FAMILY.regularizers["drop_connect"], of_transformers.DropConnectConv1D),
        },
    )


def apply(
    model: torch.nn.Module,
    rule: Choice | Function,
    regularizer: str | None = None,
    *,
    exclude: Choice | None = None,
    seed: int | None = None,
    **noise: typing.Any,
) -> torch.nn.Module:
    """Put noise into the modules of a model that a rule names: in place, with the parameters that they have.

    An optimizer keeps its parameters, hooks stay, and a checkpoint of the plain model still loads with `strict=True`.
    Only modules whose `forward` is torch's own take noise: what else is chosen is refused or, inside what a name
    chooses, left as it is. A module that is held in several places stays one.

    Args:
        model: any `torch.nn.Module`.
        rule: which modules. "all-linear": every Linear, and every `Conv1D` of transformers; "all-conv": every Conv1d,
            Conv2d and Conv3d; "all-recurrent": every RNN, LSTM and GRU; "all-attention": every MultiheadAttention.
            Another string: a regular expression for a part of a module's name that is whole between dots, so that "mlp"
            or r"layers\\.[0-3]" choose what is inside too, and "head" does not choose "multihead". A class of torch. A
            list of these. Or a function of (name, module) that returns the module to stand there, or None to keep it.
        regularizer: "per_node_drop" or "drop_connect", for linear modules, convolutions and attention;
            "dynamic_drop_connect", not for attention and `Conv1D`; or "noisy_rnn", for recurrent modules. None is the
            first. Not beside a function.
        exclude: which modules of these stay as they are, in the same forms, a function excepted.
        seed: any int, from which every module has a seed of its own by its name; None takes them from Python's
            `random`. Not beside a function.
        **noise: arguments of the noisy modules, such as `rate=0.2`; see `PerNodeLinear`, `DropConnectLinear`,
            `PerNodeMultiheadAttention` and `NoisyLSTM`.

    Returns:
        The model, or the noisy module where the model is one module itself.

    Raises:
        TypeError, ValueError: a rule or an `exclude`, or an element of one, that chooses nothing; a module that is
            chosen and takes no noise, such as the `out_proj` of a `torch.nn.MultiheadAttention`, which reads its weight
            and never calls it; a regularizer that does not take every module of a kind that the rule names; or an
            argument that is not as described.

    Warns:
        UserWarning: the module around one that is chosen reads its weight, and so may not call it.

    Example:

    >>> import torch, pernodedrop.torch as pndt
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    >>> model = pndt.apply(model, "all-linear", rate=0.2, seed=1, exclude="2")
    >>> [type(module).__name__ for module in model]
    ['PerNodeLinear', 'ReLU', 'Linear']
    """
    FAMILY.check_model(model)
    chosen = Rule(_family(), rule, regularizer, exclude, seed, noise)
    changes = _changes(model, chosen)
    chosen.check(changes, dict(model.named_modules(remove_duplicate=False)))
    return _put(model, changes)


def fold(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of a model that computes the same at inference without noise: plain modules of torch, for deployment.

    Fixed masks are multiplied into the weights; modules that are the identity at inference become `torch.nn.Identity`.
    The names in its `state_dict` are those of the plain model.

    Args:
        model: any `torch.nn.Module` that `copy.deepcopy` copies.

    Returns:
        The copy, with parameters of its own, in the mode that the model is in.

    Raises:
        ValueError: a module that is no one module at inference, such as one with a bank of masks.

    Example:

    >>> import torch, pernodedrop.torch as pndt
    >>> model = torch.nn.Sequential(pndt.PerNodeLinear(3, 4, rate=0.2), pndt.Dropout(0.5))
    >>> [type(module).__name__ for module in pndt.fold(model)]
    ['Linear', 'Identity']
    """
    FAMILY.check_model(model)
    folded = copy.deepcopy(model)
    return _put(folded, _changes(folded, lambda _, module: module.fold() if isinstance(module, NOISY) else None))


def _changes(model: torch.nn.Module, rule: Function) -> dict[str, torch.nn.Module]:
    """What a rule puts, by name; a module inside one that gives way is not asked about."""
    changes: dict[str, torch.nn.Module] = {}
    made: dict[torch.nn.Module, torch.nn.Module] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if any(name.startswith(f"{outer}.") or outer == "" for outer in changes):
            continue
        new = made[module] if module in made else rule(name, module)
        if new is None:
            continue
        _refuse_what_is_not_called(model, name, new)
        changes[name] = made[module] = new
    return changes


def _put(model: torch.nn.Module, changes: dict[str, torch.nn.Module]) -> torch.nn.Module:
    for name, new in changes.items():
        if not name:
            return new
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, new)
    return model


def _refuse_what_is_not_called(model: torch.nn.Module, name: str, new: torch.nn.Module) -> None:
    """Raise where torch reads the weight of a module and does not call it, so that its noise would be passed by."""
    if not isinstance(new, NOISY) or not name:
        return
    holder = model.get_submodule(name.rpartition(".")[0])
    if isinstance(holder, torch.nn.MultiheadAttention):
        expected = (
            f"one that leaves out {name!r}: torch.nn.MultiheadAttention reads its weight and never calls it; "
            "'all-attention' puts noise into its projections"
        )
    elif isinstance(holder, torch.nn.TransformerEncoderLayer):  # which calls in training, but in `eval` may read
        if not getattr(new, "changes_at_inference", False):
            return
        expected = (
            f"one without noise at inference for {name!r}, which torch.nn.TransformerEncoderLayer may not call then"
        )
    else:
        if _reads_weight(holder, name.rpartition(".")[2]):
            warnings.warn(
                f"{type(holder).__name__} reads the weight of {name!r}: where it does not call the module, the noise "
                "is passed by. It was not called if its `updates` is 0 after a step that trains.",
                stacklevel=4,
            )
        return
    raise ValueError(checks.invalid("rule", f"{expected} (exclude={name.rpartition('.')[2]!r})", type(new)))


def _reads_weight(holder: torch.nn.Module, attribute: str) -> bool:
    """Whether a `forward` takes `self.attribute.weight`, for more than its dtype and the like."""
    code = getattr(type(holder).forward, "__code__", None)
    steps = [] if code is None else [one for one in dis.get_instructions(code) if one.opname != "CACHE"]
    taken = [one.argval if one.opname in ("LOAD_ATTR", "LOAD_METHOD") else None for one in steps]
    return any(
        trio[:2] == (attribute, "weight") and trio[2] is None
        for trio in zip(taken, taken[1:], [*taken[2:], None], strict=False)
    )

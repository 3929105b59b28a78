"""Changing a model: noise put into the modules that a rule names (`apply`), a copy with noise taken out (`fold`)."""

import typing

from flax import nnx

from pernodedrop.nnx.drop_connect import DropConnectConv, DropConnectLinear
from pernodedrop.nnx.dynamic_drop_connect import DynamicDropConnectConv, DynamicDropConnectLinear
from pernodedrop.nnx.noisy import Noisy
from pernodedrop.nnx.per_node_drop import PerNodeConv, PerNodeLinear
from pernodedrop.rules import Choice, Family, Function, Rule

FAMILY = Family(
    nnx.Module,
    "flax.nnx.Module",
    Noisy,
    "__call__",
    {"all-linear": (nnx.Linear,), "all-conv": (nnx.Conv,)},
    {
        "per_node_drop": (PerNodeLinear, PerNodeConv),
        "drop_connect": (DropConnectLinear, DropConnectConv),
        "dynamic_drop_connect": (DynamicDropConnectLinear, DynamicDropConnectConv),
    },
)


def apply(
    model: nnx.Module,
    rule: Choice | Function,
    regularizer: str | None = None,
    *,
    exclude: Choice | None = None,
    seed: int | None = None,
    **noise: typing.Any,
) -> nnx.Module:
    """Put noise into the modules of a model that a rule names, in a model that shares its variables.

    The model itself stays as it is. Both share their parameters, under the same paths, so an optimizer of one serves
    the other. Only modules whose `__call__` is NNX' own take noise; any other that is chosen is refused. A module that
    is held in several places remains one.

    Args:
        model: any `nnx.Module`.
        rule: which modules. "all-linear": every `nnx.Linear`; "all-conv": every `nnx.Conv`. Any other string: a regular
            expression that matches a whole part of a module's path, between dots, so that "mlp" also chooses what is
            inside, and "head" does not choose "multihead". A class of NNX. A list of these. Or a function of (path,
            module) that returns the module to put there, or None to keep it.
        regularizer: "per_node_drop", "drop_connect" or "dynamic_drop_connect"; None is the first. Not beside a
            function.
        exclude: which of these modules stay as they are, in the same forms, except a function.
        seed: int, any, from which every module gets a seed of its own, by its path. Not beside a function.
        **noise: arguments of the noisy modules, such as `rate=0.2` and, without a seed, `rngs`, whose stream "noise"
            or "default" gives each a key; see `PerNodeLinear` and `DropConnectLinear`.

    Returns:
        The model with noise.

    Raises:
        TypeError, ValueError: a rule or an `exclude`, or an element of one, that chooses nothing; a chosen module that
            takes no noise; or an argument that is not as described.

    Example:

    >>> import pernodedrop.nnx as pndx
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0)
    >>> model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 1, rngs=rngs))
    >>> model = pndx.apply(model, "all-linear", rate=0.2, seed=1, exclude="2")
    >>> [type(one).__name__ for one in (model.layers[0], model.layers[2])]
    ['PerNodeLinear', 'Linear']
    """
    FAMILY.check_model(model)
    chosen = Rule(FAMILY, rule, regularizer, exclude, seed, noise)
    changed: list[str] = []
    seen: dict[str, nnx.Module] = {}

    def put(path: tuple[typing.Any, ...], node: typing.Any) -> typing.Any:
        name = _name(path)
        new = None
        if isinstance(node, nnx.Module):
            new, seen[name] = chosen(name, node), node
        if new is None:
            return node
        changed.append(name)
        return new

    model = nnx.recursive_map(put, model)
    chosen.check(changed, seen)
    return model


def _name(path: tuple[typing.Any, ...]) -> str:
    return ".".join(map(str, path))


def fold(model: nnx.Module) -> nnx.Module:
    """A copy of a model that computes the same at inference without noise: plain modules of NNX, for deployment.

    Fixed masks are multiplied into the kernels; modules that are the identity at inference become a plain identity.
    Parameters have the paths of the plain model.

    Args:
        model: any `nnx.Module`.

    Returns:
        The copy, with variables of its own.

    Raises:
        ValueError: a module that is several functions at inference, such as one with a bank of masks.

    Example:

    >>> import pernodedrop.nnx as pndx
    >>> from flax import nnx
    >>> model = nnx.Sequential(pndx.PerNodeLinear(3, 4, rate=0.2, rngs=nnx.Rngs(0)), pndx.Dropout(0.5, seed=1))
    >>> [type(one).__name__ for one in pndx.fold(model).layers]
    ['Linear', 'Identity']
    """
    FAMILY.check_model(model)
    return nnx.recursive_map(lambda _, node: node.fold() if isinstance(node, Noisy) else node, nnx.clone(model))

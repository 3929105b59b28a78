"""Changing a model: noise put into the modules that a rule names (`apply`), a copy with noise taken out (`fold`)."""

import typing

import equinox as eqx
import jax

from pernodedrop.equinox.drop_connect import DropConnectConv, DropConnectLinear
from pernodedrop.equinox.dynamic_drop_connect import DynamicDropConnectConv, DynamicDropConnectLinear
from pernodedrop.equinox.noisy import Noisy
from pernodedrop.equinox.per_node_drop import PerNodeConv, PerNodeLinear
from pernodedrop.rules import Choice, Family, Function, Rule

FAMILY = Family(
    eqx.Module,
    "equinox.Module",
    Noisy,
    "__call__",
    {"all-linear": (eqx.nn.Linear,), "all-conv": (eqx.nn.Conv,)},
    {
        "per_node_drop": (PerNodeLinear, PerNodeConv),
        "drop_connect": (DropConnectLinear, DropConnectConv),
        "dynamic_drop_connect": (DynamicDropConnectLinear, DynamicDropConnectConv),
    },
)


def apply(
    model: eqx.Module,
    rule: Choice | Function,
    regularizer: str | None = None,
    *,
    exclude: Choice | None = None,
    seed: int | None = None,
    **noise: typing.Any,
) -> eqx.Module:
    """Put noise into the modules of a model that a rule names: a model with the same parameters.

    Only modules whose `__call__` is Equinox' own take noise; any other that is chosen is refused. If a model hands no
    key to its layers, like `equinox.nn.MLP`, call `with_key(model, key)` instead of the model.

    Args:
        model: any `equinox.Module`.
        rule: which modules. "all-linear": every `equinox.nn.Linear`; "all-conv": every `equinox.nn.Conv`. Any other
            string: a regular expression that matches a whole part of a module's path, between dots, so that "mlp" also
            chooses what is inside, and "head" does not choose "multihead". A class of Equinox. A list of these. Or a
            function of (path, module) that returns the module to put there, or None to keep it.
        regularizer: "per_node_drop", "drop_connect" or "dynamic_drop_connect"; None is the first. Not beside a
            function.
        exclude: which of these modules stay as they are, in the same forms, except a function.
        seed: int, any, for fixed masks, from which every module gets a seed of its own, by its path.
        **noise: arguments of the noisy modules, such as `rate=0.2`; see `PerNodeLinear` and `DropConnectLinear`.

    Returns:
        The model with noise; the one given stays as it is.

    Raises:
        TypeError, ValueError: a rule or an `exclude`, or an element of one, that chooses nothing; a chosen module that
            takes no noise; or an argument that is not as described.

    Example:

    >>> import equinox as eqx, jax, pernodedrop.equinox as pnde
    >>> model = eqx.nn.MLP(3, 1, width_size=8, depth=1, key=jax.random.key(0))
    >>> model = pnde.apply(model, "all-linear", rate=0.2, exclude=r"layers\\.1")
    >>> [type(layer).__name__ for layer in model.layers]
    ['PerNodeLinear', 'Linear']
    """
    FAMILY.check_model(model)
    chosen = Rule(FAMILY, rule, regularizer, exclude, seed, noise)
    changed: list[str] = []
    seen: dict[str, eqx.Module] = {}

    def put(name: str, module: eqx.Module) -> eqx.Module | None:
        new = chosen(name, module)
        seen[name] = module
        changed.extend([] if new is None else [name])
        return new

    model = mapped(put, "", model)
    chosen.check(changed, seen)
    return model


def fold(model: eqx.Module) -> eqx.Module:
    """A model that computes the same at inference without noise: plain modules of Equinox, for deployment.

    Fixed masks are multiplied into the weights; modules that are the identity at inference become
    `equinox.nn.Identity`.

    Args:
        model: any `equinox.Module`.

    Returns:
        The model without noise; the one given stays as it is.

    Raises:
        ValueError: a module that is several functions at inference, such as one with a bank of masks.

    Example:

    >>> import equinox as eqx, jax, pernodedrop.equinox as pnde
    >>> layer = pnde.PerNodeLinear(3, 4, rate=0.2, key=jax.random.key(0))
    >>> [type(one).__name__ for one in pnde.fold(eqx.nn.Sequential([layer, pnde.Dropout(0.5)]))]
    ['Linear', 'Identity']
    """
    FAMILY.check_model(model)
    return typing.cast(eqx.Module, mapped(lambda _, one: one.fold() if isinstance(one, Noisy) else None, "", model))


def mapped(function: Function, name: str, node: typing.Any) -> typing.Any:
    """A tree with what a function puts in the place of its modules; it is not asked about what is inside of those."""
    new = function(name, node)
    if new is not None:
        return new

    def of_child(path: tuple[typing.Any, ...], child: typing.Any) -> typing.Any:
        inner = ".".join([*filter(None, [name]), *(jax.tree_util.keystr((key,), simple=True) for key in path)])
        return mapped(function, inner, child) if isinstance(child, eqx.Module) else child

    is_child = lambda child: isinstance(child, eqx.Module) and child is not node  # noqa: E731 - it is an argument
    return jax.tree_util.tree_map_with_path(of_child, node, is_leaf=is_child)

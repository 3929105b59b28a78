"""Changing a model: a copy with noise put in (`apply`), a copy with noise taken out (`fold`), weights across them.

The first two copy the model (`copying`), ask a rule about every layer of the copy, and put what it answers in the
layer's place (`places`): a node of a Sequential or functional graph (`graphs`), or an attribute of a composite layer,
alone or in a list, tuple or dict. What no config describes afterwards, `configs` refuses to save. A rule may be a
function, or names of layers around which `wrappers` go.
"""

import collections.abc
import functools
import typing

import keras

from pernodedrop import checks
from pernodedrop.layers.base.noise_layer import NoiseLayer
from pernodedrop.rules import Choice, Function, Rule
from pernodedrop.surgery import configs, copying, places
from pernodedrop.surgery.graphs import Changes, Layer
from pernodedrop.surgery.weights import copy_weights
from pernodedrop.surgery.wrappers import FAMILY

__all__ = ["apply", "copy_weights", "fold"]

OfLayer: typing.TypeAlias = collections.abc.Callable[[Layer], Layer | None]


def apply(
    model: keras.Model,
    rule: Choice | OfLayer,
    regularizer: str | None = None,
    *,
    exclude: Choice | None = None,
    seed: int | None = None,
    **noise: typing.Any,
) -> keras.Model:
    """A copy of a model with other layers, such as noisy ones, where a rule says.

    The copy has the original's class, name, output names and weights (equal values in variables of its own) and the
    original is left as it is. Noise that is the identity at inference does not change predictions; Standout,
    StochasticDepth, Masksembles, the regimes "fixed" and "bank" and `DropConnect.as_published` do. The copy is not
    compiled.

    The rule is asked about every layer inside the model, outermost first. If it answers None for a layer that holds
    others, such as a nested model, a transformer block or a MultiHeadAttention, it is asked about those; it is not
    asked about what is inside a noisy layer. A layer that is held in several places is asked about once and
    replaced in all of them. To put a layer after another, answer `keras.Sequential([layer, pnd.Dropout(0.1)])`; to
    leave a layer out, `keras.layers.Identity()`, which does not stay in a graph. A layer has the name that the rule
    gives it: with `name=layer.name`, `get_layer` finds it as before. `output_names` stay those of the original; a model
    that is loaded from a `.keras` file has those of its layers.

    A changed Sequential or functional model saves and loads as any other. The config of a layer with a class of its
    own, and so of a subclassed model, does not describe what was put inside. After such a change the layer and
    its model refuse `get_config`, and with it `.keras` files and `clone_model`, which would lose the noise without a
    word: save the weights, and to load them build the model from its code, apply the rule again and `load_weights`.

    Args:
        model: any built model that can be rebuilt from its config: Sequential, functional or subclassed. A layer that
            is held in several places stays one layer.
        rule: which layers get the regularizer around them, under their names. "all-linear" (Dense and EinsumDense,
            those in attention too), "all-conv", "all-recurrent" or "all-attention" (a `pernodedrop.NoisyAttention`
            around each, unless the regularizer is another); a regular expression for a part of a layer's name
            that is whole between dots, the names of what it is in coming first ("encoder.dense"); a class of Keras; or
            a list of such. Or a function from a layer of the copy, which has its weights, to the layer that stands in
            its place (often a wrapper around it), or to None to keep it.
        regularizer: the wrapper: "per_node_drop", which None stands for, "drop_connect", "attention_dropout",
            "dynamic_drop_connect", "fast_dropout", "flipout", "noise_injection", "noisy_rnn", "shakeout",
            "sparse_variational_dropout", "sparse_variational_dropout_rnn", "standout", "variational_dropout",
            "variational_dropout_rnn" or "zoneout". Not beside a function, as all that follow.
        exclude: what the rule is not to choose, in the same words.
        seed: int from which each layer gets a seed of its own, by its name. None draws them.
        **noise: arguments of the regularizer, such as `rate=0.2, noise="gaussian"`.

    Returns:
        The changed copy.

    Raises:
        TypeError: a model that is no model, a rule that answers something else, or an argument that the regularizer
            does not take.
        ValueError: a model that is not built or not rebuilt by its config, a rule that changes nothing, an `exclude`
            that excludes nothing, an element of one that chooses nothing, a regularizer that does not take every layer
            of a kind that the rule names, or an argument that is not as described.

    The author code of PerNodeDrop (arXiv 2512.12663) calls this a strategy adder.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> dense = [keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)]
    >>> model = keras.Sequential([keras.Input((3,)), *dense])
    >>> noisy = pnd.apply(model, "all-linear", rate=0.2, seed=1, exclude=model.layers[-1].name)
    >>> [type(layer).__name__ for layer in noisy.layers]
    ['PerNodeDrop', 'Dense']
    >>> x = np.ones((2, 3), "float32")
    >>> bool((noisy.predict(x, verbose=0) == model.predict(x, verbose=0)).all())
    True
    >>> def rule(layer):
    ...     if isinstance(layer, keras.layers.Dense) and layer.units > 1:
    ...         return keras.Sequential([layer, pnd.Dropout(0.2, seed=1)])
    >>> [type(layer).__name__ for layer in pnd.apply(model, rule).layers]
    ['Sequential', 'Dense']
    """
    chosen = Rule(FAMILY, _by_name(rule), regularizer, exclude, seed, noise)
    copy, originals = copying.copy_of(model)
    put = configs.give_again(copy)
    changes: Changes = {}
    asked: dict[Layer, str] = {}
    _change(copy, chosen, changes, asked, originals)
    chosen.check(changes, {name: layer for layer, name in asked.items()})
    configs.refuse(copy, {*put, *changes.values()} - changes.keys())
    places.list_variables(copy)
    return copy


def fold(model: keras.Model) -> keras.Model:
    """A copy of a model that computes the same at inference with plain Keras layers only, for deployment.

    Each layer of this library gives way to what its method `fold()` returns, under its name: a wrapper to its inner
    layer (with a fixed mask multiplied into the kernel), a layer that is the identity at inference to an `Identity`,
    which does not stay in a Sequential or functional model. So the result loads, exports and quantizes without this
    library. Inputs stay as they are, also those that only the noise used, such as example ids, and so do the
    `output_names` of a functional model. An `RDropModel` gives way to the model that it wraps.

    A layer of another library is folded as well if it has a method `fold() -> keras.layers.Layer`, and so is a model.

    Args:
        model: any built model that can be rebuilt from its config, as for `pernodedrop.apply`.

    Returns:
        The folded copy, not compiled. Outputs are equal up to rounding.

    Raises:
        TypeError: a model that is no model, or a method `fold` that returns no layer.
        ValueError: a model that is not built or not rebuilt by its config, or a layer that is no one plain layer at
            inference, such as one with a bank of masks.

    Example:

    >>> import keras, pernodedrop as pnd
    >>> noisy = [pnd.PerNodeDense(4, rate=0.2), pnd.Dropout(0.1), keras.layers.Dense(1)]
    >>> model = keras.Sequential([keras.Input((3,)), *noisy])
    >>> [type(layer).__name__ for layer in pnd.fold(model).layers]
    ['Dense', 'Dense']
    """
    whole = _folded(model, keras.Model) if isinstance(model, keras.Model) else None
    copy, _ = copying.copy_of(model if whole is None else whole)
    put = configs.give_again(copy)
    changes: Changes = {}
    asked: dict[Layer, str] = {}

    def rule(name: str, layer: Layer) -> Layer | None:
        plain = _folded(layer)
        if plain is None:
            return None
        plain.name = layer.name
        _change(plain, rule, changes, asked)  # what a wrapper of several layers held
        return plain

    _change(copy, rule, changes, asked)
    configs.refuse(copy, put - changes.keys())
    places.list_variables(copy)
    return copy


def _folded(layer: Layer, kind: type[Layer] = keras.layers.Layer) -> typing.Any:
    """What a layer folds itself to; None: it has no method for it."""
    method = getattr(layer, "fold", None)
    if not callable(method):
        return None
    plain = method()
    if not isinstance(plain, kind):
        expected = f"a method `fold` of {layer.name!r} that returns a keras {kind.__name__}"
        raise TypeError(checks.invalid("model", expected, plain))
    return plain


def _by_name(rule: typing.Any) -> typing.Any:
    """A function of a layer as one of its name, too; any other rule as it is."""
    if not callable(rule) or isinstance(rule, type | Layer):
        return rule
    return functools.wraps(rule)(lambda name, layer: rule(layer))


def _change(
    holder: Layer, rule: Function, changes: Changes, asked: dict[Layer, str], originals: Changes | None = None
) -> None:
    """Ask the rule about what is inside `holder`, by the names of the originals, and put its answers there."""
    outer = f"{asked[holder]}." if holder in asked else ""
    for layer in places.inside(holder).values():
        if layer in asked:
            continue
        asked[layer] = outer + (originals or {}).get(layer, layer).name
        new = rule(asked[layer], layer)
        if new is not None:
            changes[layer] = new
        elif not isinstance(layer, NoiseLayer):
            _change(layer, rule, changes, asked, originals)
    places.put(holder, changes)

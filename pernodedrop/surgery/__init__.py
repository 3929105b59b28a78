"""Changing a model: a copy with noise put in (`apply`), a copy with noise taken out (`fold`), weights across them.

The first two copy the model (`copying`), ask a rule about every layer of the copy, and put what it answers in the
layer's place (`places`): a node of a Sequential or functional graph (`graphs`), or an attribute of a composite layer,
alone or in a list, tuple or dict. What no config describes afterwards, `configs` refuses to save.
"""

import collections
import collections.abc
import typing

import keras

from pernodedrop import checks
from pernodedrop.layers.base.noise_layer import NoiseLayer
from pernodedrop.surgery import configs, copying, places
from pernodedrop.surgery.graphs import Changes, Layer
from pernodedrop.surgery.weights import copy_weights

__all__ = ["apply", "copy_weights", "fold"]

Rule: typing.TypeAlias = collections.abc.Callable[[Layer], Layer | None]


def apply(model: keras.Model, rule: Rule) -> keras.Model:
    """A copy of a model with other layers, such as noisy ones, where a rule says.

    The copy has the original's class, name, output names and weights (equal values in variables of its own) and the
    original is left as it is. Noise that is the identity at inference leaves the predictions what they are; Standout,
    StochasticDepth, Masksembles, the regimes "fixed" and "bank" and `DropConnect.as_published` are not the identity.
    The copy is not compiled.

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
        rule: function from a layer of the copy, which has its weights, to the layer that stands in its place (often a
            wrapper around it), or to None to keep it.

    Returns:
        The changed copy.

    Raises:
        TypeError: a model that is no model, or a rule that answers something else.
        ValueError: a model that is not built or not rebuilt by its config, or a rule that changes nothing.

    The author code of PerNodeDrop (arXiv 2512.12663) calls this a strategy adder.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> dense = [keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)]
    >>> model = keras.Sequential([keras.Input((3,)), *dense])
    >>> def rule(layer):
    ...     if isinstance(layer, keras.layers.Dense) and layer.units > 1:
    ...         return pnd.PerNodeDrop(layer, rate=0.2, seed=1)
    >>> noisy = pnd.apply(model, rule)
    >>> [type(layer).__name__ for layer in noisy.layers]
    ['PerNodeDrop', 'Dense']
    >>> x = np.ones((2, 3), "float32")
    >>> bool((noisy.predict(x, verbose=0) == model.predict(x, verbose=0)).all())
    True
    """
    if not callable(rule):
        raise TypeError(checks.invalid("rule", "a function from a layer to a layer or None", rule))
    copy = copying.copy_of(model)
    put = configs.give_again(copy)
    changes: Changes = {}
    asked: dict[Layer, None] = {}
    _change(copy, rule, changes, asked)
    if not changes:
        kinds = collections.Counter(type(layer).__name__ for layer in asked)
        had = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        raise ValueError(checks.invalid("rule", f"a rule that changes at least one layer of: {had or 'none'}", rule))
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
        The folded copy, not compiled. Outputs are equal to float rounding.

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
    copy = copying.copy_of(model if whole is None else whole)
    put = configs.give_again(copy)
    changes: Changes = {}
    asked: dict[Layer, None] = {}

    def rule(layer: Layer) -> Layer | None:
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


def _change(holder: Layer, rule: Rule, changes: Changes, asked: dict[Layer, None]) -> None:
    """Ask the rule about what is inside `holder`, and put its answers there."""
    for layer in places.inside(holder).values():
        if layer in asked:
            continue
        asked[layer] = None
        new = rule(layer)
        if new is not None and not isinstance(new, keras.layers.Layer):
            expected = f"a function that returns a layer or None; for the layer {layer.name!r} it returned {new!r}"
            raise TypeError(checks.invalid("rule", expected, rule))
        if new is not None and new is not layer:
            changes[layer] = new
        elif not isinstance(layer, NoiseLayer):
            _change(layer, rule, changes, asked)
    places.put(holder, changes)

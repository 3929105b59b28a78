"""Changing a model: a copy with noise put in (`apply`), a copy with noise taken out (`fold`).

Both copy the model, ask a rule about every layer of the copy and put what it answers in the layer's place. A layer's
place is a slot: a node of a Sequential or functional graph, or an attribute of a composite layer, alone or in a list,
tuple or dict. Keras has no public way to change either in a model that is built; what is used of its inside stands in
`_put`, `_rewire` and `_forget`.
"""

import collections
import collections.abc
import contextvars
import inspect
import tempfile
import typing

import keras
import numpy as np

from pernodedrop import checks
from pernodedrop._types import Config
from pernodedrop.layers.base.noisy import Noisy
from pernodedrop.layers.weight.noisy_attention import NoisyAttention

__all__ = ["apply", "fold"]

Layer: typing.TypeAlias = keras.layers.Layer
Rule: typing.TypeAlias = collections.abc.Callable[[Layer], Layer | None]
Changes: typing.TypeAlias = dict[Layer, Layer]

# Where Keras itself holds layers that are also in a graph or an attribute. torch's `_modules` is looked into.
KERAS_OWN = {
    "_functional",
    "_layers",
    "_modules",
    "_operations",
    "_operations_by_depth",
    "_self_unconditional_dependency_names",
}
COPYING = contextvars.ContextVar("COPYING", default=False)
GRAPH = ("_outputs_struct", "_outputs", "_nodes", "_nodes_by_depth", "_operations", "_operations_by_depth")


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
    copy = _copy_of(model)
    put = _unmarked(copy)
    changes: Changes = {}
    asked: dict[Layer, None] = {}
    _change(copy, rule, changes, asked)
    if not changes:
        kinds = collections.Counter(type(layer).__name__ for layer in asked)
        had = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        raise ValueError(checks.invalid("rule", f"a rule that changes at least one layer of: {had or 'none'}", rule))
    _refuse_config(copy, {*put, *changes.values()} - changes.keys())
    return _settled(copy)


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
    copy = _copy_of(model) if whole is None else whole
    put = _unmarked(copy)
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
    _refuse_config(copy, put - changes.keys())
    return _settled(copy)


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


class _NoConfig:
    """The `get_config` of a layer that its config does not describe: it raises, except to copy the layer here."""

    def __init__(self, layer: Layer, missed: set[Layer]) -> None:
        self.name, self.missed, self.of_class = layer.name, missed, layer.get_config

    def __call__(self) -> Config:
        if COPYING.get():
            return self.of_class()
        names = ", ".join(sorted(repr(layer.name) for layer in self.missed)[:3])
        raise NotImplementedError(
            f"The config of {self.name!r} does not describe what `pernodedrop.apply` put inside it, such as {names}. "
            "Save the model's weights with `save_weights` (in callbacks, `save_weights_only=True`); to load them, "
            "build the model from its code, apply the rule again and `load_weights`."
        )


def _refuse_config(layer: Layer, put: set[Layer]) -> set[Layer]:
    """Mark the layers whose config does not describe what was put inside them; return what was put inside this one."""
    inside: set[Layer] = set()
    for inner in _slots(layer).values():
        inside |= _refuse_config(inner, put) | ({inner} & put)
    if inside:
        try:
            described = _described(keras.saving.serialize_keras_object(layer))
        except NotImplementedError:  # a layer that its config contains refuses already
            return inside
        if missed := {inner for inner in inside if (type(inner).__name__, inner.name) not in described}:
            layer.get_config = _NoConfig(layer, missed)
    return inside


def _unmarked(layer: Layer) -> set[Layer]:
    """Take the marks of `_refuse_config` away; return what they were for."""
    mark = vars(layer).pop("get_config", None)
    return set(mark.missed if mark else ()).union(*map(_unmarked, _slots(layer).values()))


def _described(config: typing.Any) -> set[tuple[str, str]]:
    """The class and name of every layer that a config describes."""
    if isinstance(config, list | tuple):
        return {found for item in config for found in _described(item)}
    if not isinstance(config, dict):
        return set()
    described = {found for item in config.values() for found in _described(item)}
    if "class_name" in config and isinstance(config.get("config"), dict):
        described.add((config["class_name"], config["config"].get("name")))
    return described


def _copy_of(model: keras.Model) -> keras.Model:
    if not isinstance(model, keras.Model):
        raise TypeError(checks.invalid("model", "a keras.Model", model))
    if not model.built:
        raise ValueError(checks.invalid("model", "a built model: give it an Input or call it once", model))
    copies: Changes = {}
    token = COPYING.set(True)
    try:
        copy = _copy(model, copies)
    finally:
        COPYING.reset(token)
    copied = {id(variable) for layer in copies for variable in _own_variables(layer)}
    if missed := [variable.path for variable in model.weights if id(variable) not in copied]:
        expected = f"a model whose layers are in attributes, lists, tuples or dicts; elsewhere there is {missed[0]!r}"
        raise ValueError(checks.invalid("model", expected, model))
    variables, originals = ({id(variable) for variable in each.weights} for each in (copy, model))
    matched = {id(variable) for layer in copies.values() for variable in _own_variables(layer)}
    if len(variables) != len(originals) or not variables <= matched:
        expected = f"a model whose config rebuilds which layers share their weights, {len(originals)} in all"
        raise ValueError(checks.invalid("model", expected, f"{model.name!r}, whose copy has {len(variables)}"))
    return copy


def _change(holder: Layer, rule: Rule, changes: Changes, asked: dict[Layer, None]) -> None:
    """Ask the rule about what is inside `holder`, and put its answers there."""
    for layer in _slots(holder).values():
        if layer in asked:
            continue
        asked[layer] = None
        new = rule(layer)
        if new is not None and not isinstance(new, keras.layers.Layer):
            expected = f"a function that returns a layer or None; for the layer {layer.name!r} it returned {new!r}"
            raise TypeError(checks.invalid("rule", expected, rule))
        if new is not None and new is not layer:
            changes[layer] = new
        elif not isinstance(layer, Noisy | NoisyAttention):
            _change(layer, rule, changes, asked)
    _put(holder, changes)


def _slots(holder: Layer) -> dict[tuple[typing.Any, ...], Layer]:
    """The layers directly inside a layer, by place."""
    found: dict[tuple[typing.Any, ...], Layer] = {}

    def look(place: tuple[typing.Any, ...], value: typing.Any) -> None:
        if isinstance(value, keras.layers.Layer):
            if not isinstance(value, keras.layers.InputLayer):
                found[place] = value
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                look((*place, index), item)
        elif isinstance(value, dict):
            for index, item in value.items():
                look((*place, index), item)

    if _is_graph(holder):
        look(("layers",), holder.layers)
    for name, value in _attributes(holder).items():
        look((name,), value)
    return found


def _attributes(layer: Layer) -> dict[str, typing.Any]:
    own = {**vars(layer), **vars(layer).get("_modules", {})}  # where torch puts attributes that are layers
    return {name: own[name] for name in sorted(own.keys() - KERAS_OWN)}


def _is_graph(layer: Layer) -> bool:
    return isinstance(layer, keras.Sequential | keras.Function)


# Copying


def _copy(layer: Layer, copies: Changes) -> Layer:
    """A layer from the config of another, with its state and what was put inside it."""
    if layer not in copies:
        copies[layer] = _rebuilt(layer)
        _match(layer, copies[layer], copies)
    return copies[layer]


def _rebuilt(layer: Layer) -> Layer:
    """A layer from the config of another."""
    own = {keras.saving.get_registered_name(kind): kind for kind in _classes(layer)}
    try:
        config = keras.saving.serialize_keras_object(layer)
        config.pop("compile_config", None)
        return keras.saving.deserialize_keras_object(config, custom_objects=own, safe_mode=False)
    except (NotImplementedError, TypeError, ValueError) as error:
        expected = (
            f"a model that Keras can rebuild, and its {type(layer).__name__} {layer.name!r} it cannot. A class of your "
            "own needs a constructor that hands `**kwargs` to that of Keras, and a `get_config` with its other "
            "arguments, in a form that Keras can serialize, see the error above"
        )
        raise ValueError(checks.invalid("model", expected, layer)) from error


def _match(layer: Layer, copy: Layer, copies: Changes) -> None:
    """Give a copy the state of the original, and inside it copies of what is not as the config made it."""
    copies[layer] = copy
    inside, copied = _slots(layer), _slots(copy)
    if inside.keys() != copied.keys() or copy.built != layer.built:
        expected = f"a model whose config and build config rebuild it: they do not rebuild the layer {layer.name!r}"
        raise ValueError(checks.invalid("model", expected, layer))
    if copy.trainable != layer.trainable:
        copy.trainable = layer.trainable
    changes = {}
    for place, inner in inside.items():
        if not _alike(inner, copied[place]):
            changes[copied[place]] = _copy(inner, copies)
        elif inner in copies and copies[inner] is not copied[place]:  # the config has made two of one layer
            changes[copied[place]] = copies[inner]
        elif inner not in copies:
            _match(inner, copied[place], copies)
    _put(copy, changes)
    if isinstance(layer, keras.Model) and isinstance(layer, keras.Function):
        copy.output_names = list(layer.output_names)
    _copy_state(layer, copy)
    if mark := vars(layer).get("get_config"):
        copy.get_config = _NoConfig(copy, {copies[inner] for inner in mark.missed})


def _alike(layer: Layer, copy: Layer) -> bool:
    def description(layer: Layer) -> typing.Any:
        return keras.saving.serialize_keras_object({**layer.get_config(), "name": None})

    if type(layer) is not type(copy):
        return False
    try:
        return description(layer) == description(copy)
    except NotImplementedError:  # no config of its own: what holds it makes it
        return True


def _copy_state(layer: Layer, copy: Layer) -> None:
    """Copy a layer's own state, without that of the layers inside it."""
    state: dict[str, typing.Any] = {}
    layer.save_own_variables(state)
    # through the host: arrays that two models share are lost to one when JAX donates them to the other's training step
    copy.load_own_variables({name: _host(value) for name, value in state.items()})
    if getattr(layer, "lora_enabled", False):  # saving has merged it into the kernel
        theirs, own = ({variable.name: variable for variable in _own_variables(each)} for each in (layer, copy))
        for name, variable in own.items():
            variable.assign(_host(theirs[name]))
    if hasattr(layer, "save_assets"):  # vocabularies
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            copy.load_assets(folder)


def _own_variables(layer: Layer) -> list[keras.Variable]:
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def _host(value: typing.Any) -> np.typing.NDArray[typing.Any]:
    return np.array(keras.ops.convert_to_numpy(value))


def _classes(layer: Layer) -> set[type]:
    """The classes of a layer and all inside it that Keras could not find by itself."""
    found = {kind for inner in _slots(layer).values() for kind in _classes(inner)}
    return found if type(layer).__module__.startswith("keras.") else {*found, type(layer)}


# Putting layers in place


def _put(holder: Layer, changes: Changes) -> None:
    """Put layers in the places of others inside `holder`."""
    inside = set(_slots(holder).values())
    here = {old: new for old, new in changes.items() if old in inside}
    if not here:
        return
    if isinstance(holder, keras.Sequential):
        _restack(holder, here)
    elif isinstance(holder, keras.Function):
        _rewire(holder, here)
    else:
        for old, new in here.items():
            if not new.built:  # no call will build it before training, as in a graph
                _build_like(old, new)
    tracker = holder._tracker
    for old, new in here.items():
        if tracker.is_in_store("layers", old):
            if tracker.is_in_store("layers", new) or (_is_graph(holder) and new not in holder.layers):
                tracker.untrack(old)
            else:  # in its position, which is that of its variables in `weights`, and though the tracker is locked
                tracker.replace_tracked_value("layers", old, new)
    for name, value in _attributes(holder).items():
        if (changed := _exchanged(value, here)) is not value:
            setattr(holder, name, changed)


def _build_like(old: Layer, new: Layer) -> None:
    """Build a layer for the shapes of another, if its `build` takes them."""
    config = old.get_build_config() or {}
    if "shapes_dict" in config:
        try:
            inspect.signature(new.build).bind(**config["shapes_dict"])
        except TypeError:  # its first call will
            return
    new.build_from_config(config)


def _exchanged(value: typing.Any, here: Changes) -> typing.Any:
    """A value of an attribute with layers exchanged: lists and dicts in place, tuples made anew."""
    if isinstance(value, keras.layers.Layer):
        return here.get(value, value)
    if isinstance(value, list | dict):
        for index, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            if (changed := _exchanged(item, here)) is not item:
                value[index] = changed
    elif isinstance(value, tuple):
        items = [_exchanged(item, here) for item in value]
        if any(new is not old for new, old in zip(items, value, strict=True)):
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _restack(model: keras.Sequential, here: Changes) -> None:
    left_out = {new for new in here.values() if isinstance(new, keras.layers.Identity)}
    layers = [here.get(layer, layer) for layer in model.layers]
    shape = model.input_shape
    _forget(model._functional)
    while model.layers:
        model.pop(rebuild=False)
    for layer in [layer for layer in layers if layer not in left_out] or layers:
        model.add(layer, rebuild=False)
    model.build(shape)


def _rewire(model: keras.Function, here: Changes) -> None:
    """Run the layers through the graph anew, and give the model the graph that comes of it."""
    own_constructor = "input_layers" not in model.get_config()  # then an Identity keeps the places of its layers

    def operation(old: Layer) -> typing.Callable[..., typing.Any]:
        new = here.get(old, old)
        if new is not old and isinstance(new, keras.layers.Identity) and not own_constructor:
            return lambda x, *args, **kwargs: x
        if new is old:
            return old
        # what only the old one knows: arguments that were not given, as a loaded graph has them, and those of noise
        left_out = {"key", "sample_ids"} if isinstance(old, Noisy) and not isinstance(new, Noisy) else set()
        return lambda *args, **kwargs: new(
            *args, **{name: value for name, value in kwargs.items() if value is not None and name not in left_out}
        )

    _forget(model)
    outputs = model._run_through_graph(model.inputs, operation_fn=operation)
    graph = vars(keras.Function(model.input, outputs, name=model.name))
    vars(model).update({name: graph[name] for name in GRAPH})  # past `__setattr__`, which would track their layers
    # `output_names` stay: losses, targets and metrics go by them


def _forget(graph: keras.Function) -> None:
    """Take the nodes of a graph from its layers, so that `layer.output` is that of the graph to come."""
    nodes = {node for level in graph._nodes_by_depth.values() for node in level}
    for operation in graph.operations:
        operation._outbound_nodes[:] = [node for node in operation._outbound_nodes if node not in nodes]
        if nodes.issuperset(operation._inbound_nodes) and not isinstance(operation, keras.layers.InputLayer):
            operation._inbound_nodes.clear()  # of a layer in two graphs they stay: nodes are known by their position


def _settled(layer: Layer) -> Layer:
    """The layer after Keras was told of new variables inside it: torch lists those of lists once, when it is built."""
    for inner in _slots(layer).values():
        _settled(inner)
    layer._post_build()
    return layer

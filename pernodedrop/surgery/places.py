"""The places of layers inside a layer: its graph, and its attributes, alone or in a list, tuple or dict."""

import inspect
import typing

import keras

from pernodedrop.internals import of_keras
from pernodedrop.surgery import graphs
from pernodedrop.surgery.graphs import Changes, Layer

Place: typing.TypeAlias = tuple[typing.Any, ...]


def inside(holder: Layer) -> dict[Place, Layer]:
    """The layers directly inside a layer, by place."""
    found: dict[Place, Layer] = {}

    def look(place: Place, value: typing.Any) -> None:
        if isinstance(value, keras.layers.Layer):
            if not isinstance(value, keras.layers.InputLayer):
                found[place] = value
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                look((*place, index), item)
        elif isinstance(value, dict):
            for index, item in value.items():
                look((*place, index), item)

    if graphs.is_graph(holder):
        look(("layers",), holder.layers)
    for name, value in of_keras.attributes(holder).items():
        look((name,), value)
    return found


def put(holder: Layer, changes: Changes) -> None:
    """Put layers in the places of others inside `holder`, where those are."""
    present = set(inside(holder).values())
    here = {old: new for old, new in changes.items() if old in present}
    if not here:
        return
    if graphs.is_graph(holder):
        graphs.rewire(holder, here)
    else:
        for old, new in here.items():
            if not new.built:  # no call will build it before training, as in a graph
                _build_like(old, new)
    for old, new in here.items():
        is_there = not graphs.is_graph(holder) or new in holder.layers
        of_keras.retrack(holder, old, new if is_there else None)
    for name, value in of_keras.attributes(holder).items():
        if (changed := _exchanged(value, here)) is not value:
            setattr(holder, name, changed)
    for old, new in here.items():
        _take_variables(holder, old, new)


def list_variables(layer: Layer) -> None:
    """Tell Keras of new variables inside a layer, and inside all layers inside it."""
    for inner in inside(layer).values():
        list_variables(inner)
    of_keras.list_variables(layer)


def _take_variables(holder: Layer, old: Layer, new: Layer) -> None:
    """Have a layer hold variables of another one where it held those of `old`, as a SpectralNormalization does."""
    theirs = {id(variable) for variable in old.weights} - {id(variable) for variable in new.weights}
    named = {variable.name: variable for variable in new.weights}
    for name, value in of_keras.attributes(holder).items():
        if id(value) in theirs and value.name in named:
            of_keras.retrack_variable(holder, value, named[value.name])
            setattr(holder, name, named[value.name])


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

"""The graph of a Sequential or functional model, with other layers in the places of some."""

import typing

import keras

from pernodedrop.internals import of_keras
from pernodedrop.layers.base.noise_layer import NoiseLayer
from pernodedrop.layers.base.noisy import Noisy

Layer: typing.TypeAlias = keras.layers.Layer
Changes: typing.TypeAlias = dict[Layer, Layer]


def is_graph(layer: Layer) -> bool:
    """Whether a layer is a model with a graph."""
    return isinstance(layer, keras.Sequential | keras.Function)


def rewire(model: keras.Model, changes: Changes) -> None:
    """Give a model the graph that it has with other layers. An Identity among them is left out of it."""
    if isinstance(model, keras.Sequential):
        _restack(model, changes)
    else:
        _call_anew(model, changes)


def _restack(model: keras.Sequential, changes: Changes) -> None:
    """Take all layers from the stack, and put those of the new one on it."""
    shape = model.input_shape
    layers = [changes.get(layer, layer) for layer in model.layers]
    of_keras.forget_graph(model)
    while model.layers:
        model.pop(rebuild=False)
    for layer in [layer for layer in layers if layer not in _left_out(changes)] or layers:
        model.add(layer, rebuild=False)
    model.build(shape)


def _call_anew(model: keras.Model, changes: Changes) -> None:
    """Call the layers once more along the graph, from the same inputs, and take the graph that comes of it."""
    own_constructor = "input_layers" not in model.get_config()  # then an Identity keeps the places of its layers
    left_out = set() if own_constructor else _left_out(changes)
    new_ones = set(changes.values())
    of_noise = {
        new: {"sample_ids", "key" if isinstance(old, Noisy) else "keys"}  # the `key` of attention is its own
        for old, new in changes.items()
        if isinstance(old, NoiseLayer) and not isinstance(new, NoiseLayer)
    }

    def call(layer: Layer, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        if layer in left_out:
            return args[0]
        if layer in new_ones:
            # what only the old one knows: arguments that were not given, as a loaded graph has them, and those of noise
            unknown = of_noise.get(layer, ())
            kwargs = {name: value for name, value in kwargs.items() if value is not None and name not in unknown}
        return layer(*args, **kwargs)

    of_keras.forget_graph(model)
    # not recursive=True: a model inside stays the object that it is, and is rewired by itself
    changed = keras.models.clone_model(model, model.input, lambda layer: changes.get(layer, layer), call)
    of_keras.take_graph(model, changed)  # `output_names` stay: losses, targets and metrics go by them


def _left_out(changes: Changes) -> set[Layer]:
    return {new for new in changes.values() if isinstance(new, keras.layers.Identity)}

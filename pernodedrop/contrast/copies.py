"""Layers like a given one, with weights of their own."""

import collections.abc
import typing

import keras

from pernodedrop import checks, generator
from pernodedrop._types import Config, Shape

OF_ONE = ("build_config", "build_input_shape", "shared_object_id")
"""Of a config: the sizes that a layer was built for, and that it is itself, which a file being read asks for."""


def check_layer(layer: typing.Any) -> keras.layers.Layer:
    """Return a layer that there can be several of, or raise."""
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(checks.invalid("layer", "a keras.layers.Layer", layer))
    return layer


def fresh(layer: keras.layers.Layer, count: int) -> list[keras.layers.Layer]:
    """`count` layers of the same config that are not built, and draw what they draw by themselves.

    Keras' initializers draw anew where they have no seed. A seed anywhere in the config is in each copy one of its own.
    """
    return [type(layer).from_config(_copied(layer, n)) for n in range(count)]


def _copied(layer: keras.layers.Layer, n: int) -> Config:
    """The config of a copy, by its number."""
    config: Config = _unbuilt({"class_name": type(layer).__name__, "config": layer.get_config()}, n)["config"]
    return {**config, "name": f"{layer.name}_copy_{n}"} if "name" in config else config


def _unbuilt(part: typing.Any, n: int) -> typing.Any:
    """A part of a config with what is of one layer alone left out, and with the seeds of a copy."""
    if type(part) in (list, tuple):
        return type(part)(_unbuilt(one, n) for one in part)
    if not isinstance(part, dict):
        return part
    found = {name: _unbuilt(one, n) for name, one in part.items() if name not in OF_ONE}
    if checks.is_int(found.get("seed")):
        found["seed"] = generator.sibling_seed(found["seed"], n)
    if found.get("class_name") == "Sequential":  # its Input is of the first size, and comes again when it is built
        layers = [one for one in found["config"]["layers"] if one["class_name"] != "InputLayer"]
        found["config"] = {**found["config"], "layers": layers}
    return found


def hold(owner: keras.layers.Layer, name: str, layers: collections.abc.Sequence[keras.layers.Layer]) -> None:
    """Have a layer hold others. In attributes: tf.train.Checkpoint passes by lists."""
    for n, layer in enumerate(layers):
        setattr(owner, f"{name}_{n}", layer)


def held(owner: keras.layers.Layer, name: str, count: int) -> list[typing.Any]:
    """The layers that `hold` was given."""
    return [getattr(owner, f"{name}_{n}") for n in range(count)]


def output_shape(layer: keras.layers.Layer, shape: Shape) -> Shape:
    """The shape that a layer makes of rows (..., in), or an error unless only the last size is another one."""
    found = tuple(layer.compute_output_shape(shape))
    if len(found) != len(shape) or found[:-1] != tuple(shape[:-1]):
        raise ValueError(checks.invalid("layer", f"one that makes (..., out) of inputs {tuple(shape)}", layer))
    return found

"""Layers like a given one, with weights of their own."""

import collections.abc
import typing

import keras

from pernodedrop import checks
from pernodedrop._types import Config, Shape


def check_layer(layer: typing.Any) -> keras.layers.Layer:
    """Return a layer that there can be several of, or raise."""
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(checks.invalid("layer", "a keras.layers.Layer", layer))
    return layer


def fresh(layer: keras.layers.Layer, count: int) -> list[keras.layers.Layer]:
    """`count` layers of the same config that are not built. Keras' initializers draw anew where they have no seed."""
    config: Config = {name: value for name, value in layer.get_config().items() if name != "name"}
    return [type(layer).from_config({**config}) for _ in range(count)]


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

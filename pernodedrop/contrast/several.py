"""Layers that hold lists of layers."""

import collections.abc
import typing

import keras

from pernodedrop import checks
from pernodedrop._types import Config, Shape

Layers: typing.TypeAlias = collections.abc.Sequence[keras.layers.Layer]


class Several:
    """Mixin of a layer that holds lists of layers, by the names of its arguments. It stands before Keras' class."""

    LISTS: typing.ClassVar[tuple[str, ...]]

    def hold(self, **lists: typing.Any) -> None:
        """Keep layers, one by one, as tf.train.Checkpoint passes by lists; or raise."""
        for name, given in lists.items():
            layers = checks.check_tuple(given, name, "Keras layers")
            if not all(isinstance(layer, keras.layers.Layer) for layer in layers):
                raise TypeError(checks.invalid(name, "Keras layers", given))
            setattr(self, f"_{name}_count", len(layers))
            for n, layer in enumerate(layers):
                setattr(self, f"{name}_{n}", layer)

    def held(self, name: str) -> list[typing.Any]:
        """The layers of a list."""
        return [getattr(self, f"{name}_{n}") for n in range(getattr(self, f"_{name}_count"))]

    def get_config(self) -> Config:
        lists = {name: [keras.saving.serialize_keras_object(one) for one in self.held(name)] for name in self.LISTS}
        return {**super().get_config(), **lists}  # type: ignore[misc]  # the class after it has one

    @classmethod
    def from_config(cls, config: Config, custom_objects: Config | None = None) -> typing.Self:
        def made(name: str) -> list[typing.Any]:
            return [keras.saving.deserialize_keras_object(one, custom_objects=custom_objects) for one in config[name]]

        return cls(**{**config, **{name: made(name) for name in cls.LISTS}})


def built(layer: keras.layers.Layer, shape: Shape) -> Shape:
    """The output shape of a layer, which is then built."""
    if not layer.built:
        layer.build(shape)
        layer.built = True
    return tuple(layer.compute_output_shape(shape))

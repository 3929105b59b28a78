"""The refusal of `get_config` where a config would lose what was put inside a layer."""

import collections.abc
import contextlib
import contextvars
import typing

import keras

from pernodedrop._types import Config
from pernodedrop.surgery import places
from pernodedrop.surgery.graphs import Layer

_COPYING = contextvars.ContextVar("COPYING", default=False)


class NoConfig:
    """The `get_config` of a layer that its config does not describe: it raises, except to copy the layer here."""

    def __init__(self, layer: Layer, missed: set[Layer]) -> None:
        self.name, self.missed, self.of_class = layer.name, missed, layer.get_config

    def __call__(self) -> Config:
        if _COPYING.get():
            return self.of_class()
        names = ", ".join(sorted(repr(layer.name) for layer in self.missed)[:3])
        raise NotImplementedError(
            f"The config of {self.name!r} does not describe what `pernodedrop.apply` put inside it, such as {names}. "
            "Save the model's weights with `save_weights` (in callbacks, `save_weights_only=True`); to load them, "
            "build the model from its code, apply the rule again and `load_weights`."
        )


@contextlib.contextmanager
def given() -> collections.abc.Iterator[None]:
    """Has refused configs given, to who copies the layers and puts inside the copies what they miss."""
    token = _COPYING.set(True)
    try:
        yield
    finally:
        _COPYING.reset(token)


def missed(layer: Layer) -> set[Layer]:
    """The layers inside a layer for which it refuses its config."""
    return layer.get_config.missed if isinstance(layer.get_config, NoConfig) else set()


def refuse(layer: Layer, put: set[Layer]) -> set[Layer]:
    """Have layers refuse a config that does not describe what was put inside them; return what was put inside this."""
    found: set[Layer] = set()
    for inner in places.inside(layer).values():
        found |= refuse(inner, put) | ({inner} & put)
    if found:
        try:
            described = _described(keras.saving.serialize_keras_object(layer))
        except NotImplementedError:  # a layer that its config contains refuses already
            return found
        if missed := {inner for inner in found if (type(inner).__name__, inner.name) not in described}:
            layer.get_config = NoConfig(layer, missed)
    return found


def give_again(layer: Layer) -> set[Layer]:
    """Have all layers inside a layer give their configs again; return what they were refused for."""
    found = missed(layer)
    if found:
        del layer.get_config
    return found.union(*map(give_again, places.inside(layer).values()))


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

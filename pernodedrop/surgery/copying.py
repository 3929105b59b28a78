"""A copy of a model: every layer from its config, with its state, and a layer in several places still one layer.

`keras.models.clone_model` copies functional and Sequential models only. It forgets `trainable` and classes that have a
constructor of their own, and compiles again what was compiled, which fails for a loss that is a lambda.
"""

import tempfile
import typing

import keras
import numpy as np

from pernodedrop import checks
from pernodedrop.internals import of_keras
from pernodedrop.layers.base.noise_layer import NoiseLayer
from pernodedrop.surgery import configs, places
from pernodedrop.surgery.graphs import Changes, Layer


def copy_of(model: keras.Model) -> tuple[keras.Model, Changes]:
    """The copy of a model, not compiled, with equal values in variables of its own, and the layers that it copies.

    Returns:
        The copy, and from each layer of it to that of the model.

    Raises:
        TypeError, ValueError: a model that is none, is not built, or is not rebuilt by its config.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(checks.invalid("model", checks.keras_model(model), model))
    if not model.built:
        raise ValueError(checks.invalid("model", "a built model: give it an Input or call it once", model))
    copies: Changes = {}
    with configs.given():
        copy = _copy(model, copies)
    copied = {id(variable) for layer in copies for variable in of_keras.own_variables(layer)}
    if missed := [variable.path for variable in model.weights if id(variable) not in copied]:
        expected = f"a model whose layers are in attributes, lists, tuples or dicts; elsewhere there is {missed[0]!r}"
        raise ValueError(checks.invalid("model", expected, model))
    variables, originals = ({id(variable) for variable in each.weights} for each in (copy, model))
    matched = {id(variable) for layer in copies.values() for variable in of_keras.own_variables(layer)}
    if len(variables) != len(originals) or not variables <= matched:
        expected = f"a model whose config rebuilds which layers share their weights, {len(originals)} in all"
        raise ValueError(checks.invalid("model", expected, f"{model.name!r}, whose copy has {len(variables)}"))
    return copy, {copied: layer for layer, copied in copies.items()}


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
        config = _uncompiled(keras.saving.serialize_keras_object(layer))
        return keras.saving.deserialize_keras_object(config, custom_objects=own, safe_mode=False)
    except (NotImplementedError, TypeError, ValueError) as error:
        expected = (
            f"a model that Keras can rebuild, and its {type(layer).__name__} {layer.name!r} it cannot. A class of your "
            "own needs a constructor that hands `**kwargs` to that of Keras, and a `get_config` with its other "
            "arguments, in a form that Keras can serialize, see the error above"
        )
        raise ValueError(checks.invalid("model", expected, layer)) from error


def _uncompiled(config: typing.Any) -> typing.Any:
    """A config without how the model, and any model inside it, was compiled."""
    if isinstance(config, list):
        return [_uncompiled(item) for item in config]
    if isinstance(config, dict):
        return {name: _uncompiled(item) for name, item in config.items() if name != "compile_config"}
    return config


def _match(layer: Layer, copy: Layer, copies: Changes) -> None:
    """Give a copy the state of the original, and inside it copies of what is not as the config made it."""
    copies[layer] = copy
    if isinstance(layer, NoiseLayer) and layer.built and not copy.built:  # by a call: it is left to it by who holds it
        copy.build_from_config(layer.get_build_config())
    inside, copied = places.inside(layer), places.inside(copy)
    if inside.keys() != copied.keys() or copy.built != layer.built:
        expected = f"a model whose config and build config rebuild it: they do not rebuild the layer {layer.name!r}"
        raise ValueError(checks.invalid("model", expected, layer))
    if copy.trainable != layer.trainable:
        copy.trainable = layer.trainable
    changes = {}
    for place, inner in inside.items():
        if inner not in copies and _alike(inner, copied[place]):
            _match(inner, copied[place], copies)
        elif (right := _copy(inner, copies)) is not copied[place]:  # the config knows another, or made two of one
            changes[copied[place]] = right
    places.put(copy, changes)
    if isinstance(layer, keras.Function):
        copy.output_names = list(layer.output_names)
    _copy_state(layer, copy)
    if missed := configs.missed(layer):
        copy.get_config = configs.NoConfig(copy, {copies[inner] for inner in missed})


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
        theirs, own = ({variable.name: variable for variable in of_keras.own_variables(each)} for each in (layer, copy))
        for name, variable in own.items():
            variable.assign(_host(theirs[name]))
    if hasattr(layer, "save_assets"):  # vocabularies
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            copy.load_assets(folder)


def _host(value: typing.Any) -> np.typing.NDArray[typing.Any]:
    return np.array(keras.ops.convert_to_numpy(value))


def _classes(layer: Layer) -> set[type]:
    """The classes of a layer and all inside it that Keras could not find by itself."""
    found = {kind for inner in places.inside(layer).values() for kind in _classes(inner)}
    return found if type(layer).__module__.startswith("keras.") else {*found, type(layer)}

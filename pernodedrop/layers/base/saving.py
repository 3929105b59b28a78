"""What files have of a noise layer: a config that is complete, and variables by name, with the noise that they are of.

Keras stores the variables of a layer by their position. A threshold of Bernoulli noise could so be read as the standard
deviation of a Gaussian one. Here whatever does not fit the layer is refused, and so is what a file of a later version
says.
"""

import typing
import zlib

import keras
import numpy as np

from pernodedrop import checks
from pernodedrop._types import Config
from pernodedrop.internals import of_keras
from pernodedrop.noise import Noise
from pernodedrop.schedules import Schedule

FORMAT = 1
"""Of configs and of weights. A later version of the library reads all from 1 to its own.

A new argument of a layer raises it: what was saved before has the default, which has to mean what layers did then.
"""

NOISE = ("rate", "base_rate", "noise", "persistence")
"""What a config may have a schedule or a noise under."""

OF_ANY_LAYER = {"name", "trainable", "dtype"}
"""What a config does without in Keras."""

Store: typing.TypeAlias = typing.Any


# Configs


def with_format(config: Config) -> Config:
    """A config that says which format it has."""
    return {**config, "format": FORMAT}


def without_format(config: Config, owner: str) -> Config:
    """The config of a format that can be read, or an error."""
    check_format(config.get("format", FORMAT), f"The config of {owner}")
    return {name: value for name, value in config.items() if name != "format"}


def check_complete(config: Config, made: keras.layers.Layer) -> None:
    """Raise if a layer was made from a config of this format that leaves something of it to its defaults.

    One of an earlier format may lack what came later; one without is of Keras' layer of the name, or written by hand.
    """
    if config.get("format") != FORMAT:
        return
    missing = sorted(made.get_config().keys() - config.keys() - OF_ANY_LAYER)
    if missing:
        raise ValueError(f"The config of {type(made).__name__} {made.name!r} has no {', '.join(map(repr, missing))}.")


def restored(config: Config) -> Config:
    """A config with the noise and the schedules that it describes made."""
    saved = {name: config[name] for name in NOISE if isinstance(config.get(name), dict)}
    return {**config, **{name: noise_or_schedule(described, name) for name, described in saved.items()}}


def noise_or_schedule(described: Config, argument: str) -> Noise | Schedule:
    """What Keras' description of an object is of. No other class is made, no module imported, no function called."""
    registered, name = (described.get(key) for key in ("registered_name", "class_name"))
    names = [one for one in (registered, name) if isinstance(one, str)]
    found = next(filter(None, map(keras.saving.get_registered_object, names)), None)
    if found is None:
        advice = "Import the module that defines it before what is saved with it"
        raise ValueError(f"The config's {argument!r} is a {registered or name!r}, which is not defined. {advice}.")
    config = described.get("config")
    if not (isinstance(found, type) and issubclass(found, Noise | Schedule) and isinstance(config, dict)):
        raise ValueError(checks.invalid(argument, "the config of a noise or a schedule", described))
    return found.from_config(config)


# Weights


def write(layer: keras.layers.Layer, kind: str, store: Store) -> None:
    """Put a layer's own variables into a store, a dict of arrays.

    Args:
        layer: the layer.
        kind: of which noise its numbers are, a name.
        store: what Keras hands to `save_own_variables`.
    """
    variables = named_variables(layer)
    store["format"] = np.int32(FORMAT)
    store["noise"] = np.frombuffer(kind.encode(), "uint8")
    store["checksum"] = np.int64(checksum(kind, {name: host(one) for name, one in variables.items()}))
    for name, variable in variables.items():
        store[name] = variable


def read(layer: keras.layers.Layer, kind: str, store: Store) -> dict[str, typing.Any]:
    """The values of a layer's own variables by name, if the store has them and they are of its noise, or raise."""
    variables = named_variables(layer)
    names = set(map(str, store.keys()))
    owner = f"Layer {layer.name!r}, a {type(layer).__name__},"
    if "format" not in names:
        raise ValueError(
            f"{owner} finds no state of its own in the file. Weights of a model without noise are taken over by "
            "pernodedrop.surgery.copy_weights."
        )
    check_format(np.asarray(store["format"])[()], f"The file has for layer {layer.name!r} what")
    saved = np.asarray(store["noise"]).tobytes().decode(errors="replace") if "noise" in names else "no noise"
    names -= {"format", "noise", "checksum"}
    if saved != kind or names != variables.keys():
        has, wants = (f"{noise} with {sorted(of)}" for noise, of in ((saved, names), (kind, variables)))
        raise ValueError(f"{owner} is of {wants}. The file has {has}.")
    values = {name: np.asarray(store[name]) for name in variables}
    for name, variable in variables.items():
        if values[name].shape != tuple(variable.shape):
            raise ValueError(f"{owner} has {name!r} of shape {variable.shape}. The file has {values[name].shape}.")
    if np.asarray(store["checksum"])[()] != checksum(kind, values):
        raise ValueError(f"{owner} finds its state in the file damaged: its checksum is another one.")
    return values


def named_variables(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """A layer's own variables by name."""
    variables = of_keras.own_variables(layer)
    named = {variable.name: variable for variable in variables}
    if len(named) != len(variables):
        raise ValueError(f"Layer {layer.name!r} has two variables of one name: {[v.name for v in variables]}.")
    return named


def checksum(kind: str, values: dict[str, typing.Any]) -> int:
    """Of a noise and its variables, equal for equal values whatever dtype a file has them in."""
    found = zlib.crc32(kind.encode())
    for name in sorted(values):
        value = np.asarray(values[name])
        exact = "<i8" if value.dtype.kind in "biu" else "<f8"
        found = zlib.crc32(np.ascontiguousarray(value.astype(exact)).tobytes(), zlib.crc32(name.encode(), found))
    return found


def host(variable: keras.Variable) -> np.typing.NDArray[typing.Any]:
    """A variable's value on the host."""
    return np.asarray(keras.ops.convert_to_numpy(variable))


def check_format(found: typing.Any, what: str) -> None:
    """Raise unless a format can be read."""
    if not checks.is_int(found) or found < 1:
        raise ValueError(f"{what} says no format of pernodedrop. Received: format={found!r}")
    if found > FORMAT:
        raise ValueError(
            f"{what} was written by a later version of pernodedrop, in format {found}; this one reads up to {FORMAT}."
        )

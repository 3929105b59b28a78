"""The weights of a model in one that is the same but for noise."""

import keras

from pernodedrop import checks
from pernodedrop.internals import of_keras
from pernodedrop.layers.base.noise_layer import NoiseLayer


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Give a model the weights of another one that is the same but for noise, which keeps its own state.

    Files of weights are laid out by the classes of layers, so a file of a plain model does not load into one with
    noise, nor the other way round. Load it into the model that it is of, then copy, in either direction. Pairs are
    made in the order of the layers: a wrapper's are those of its inner layer, and what noise has of its own (keys,
    rates, trained variances) is passed over.

    Args:
        source: a built model, with or without noise.
        target: the built model whose weights are set.

    Raises:
        ValueError: models whose weights differ in number, name or shape. The target is as it was then.

    >>> import keras, pernodedrop as pnd
    >>> plain = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dropout(0.5)])
    >>> noisy = keras.Sequential([keras.Input((6,)), pnd.PerNodeDrop(keras.layers.Dense(8)), pnd.Dropout(0.5)])
    >>> pnd.copy_weights(plain, noisy)  # after plain.load_weights("plain.weights.h5")
    >>> bool((noisy.layers[0].layer.kernel.numpy() == plain.layers[0].kernel.numpy()).all())
    True
    """
    given, wanted = _plain_variables(source, "source"), _plain_variables(target, "target")
    if [_described(one) for one in given] != [_described(one) for one in wanted]:
        expected = "a model with the weights of the source but for noise"
        received = f"{target.name!r}, with {len(wanted)} weights for {len(given)}"
        for one, other in zip(given, wanted, strict=False):
            if _described(one) != _described(other):
                received = f"{target.name!r}, with {other.path} {other.shape} for {one.path} {one.shape}"
                break
        raise ValueError(checks.invalid("target", expected, received))
    for one, other in zip(given, wanted, strict=True):
        other.assign(keras.ops.copy(one))  # not the tensor itself, which JAX gives away in a training or prediction


def _plain_variables(model: keras.Model, argument: str) -> list[keras.Variable]:
    """The variables of all layers but what noise and random numbers have of their own, each once."""
    if not isinstance(model, keras.Model):
        raise TypeError(checks.invalid(argument, "a keras.Model", model))
    if not model.built:
        raise ValueError(checks.invalid(argument, "a model that is built", model.name))
    layers = [layer for layer in of_keras.layers_of(model) if not isinstance(layer, NoiseLayer)]
    return list({id(one): one for layer in layers for one in of_keras.own_variables(layer)}.values())


def _described(variable: keras.Variable) -> tuple[str, tuple[int, ...]]:
    return variable.name, tuple(variable.shape)

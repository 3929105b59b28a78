"""The networks of the papers' experiments, each with slots for a regularized Dense layer.

A slot is a function of (width, activation) that gives a list of Keras layers: a Dense layer of that width, regularized
in some way. A network is a function of it that gives a model whose weights are not yet trained or compiled.
"""

import math
import typing

import keras

from pernodedrop import checks

__all__ = ["LOSSES", "NAMES", "get"]

Layers: typing.TypeAlias = list[keras.layers.Layer]
Shape: typing.TypeAlias = tuple[int, ...]


class Slot(typing.Protocol):
    """Gives the layers that stand for one Dense layer; every call is another place."""

    def __call__(self, width: int, activation: str) -> Layers: ...


Network: typing.TypeAlias = typing.Callable[..., keras.Model]
"""Gives a model with the layers of the slot, its first argument, in it; the others are settings."""


def digits(slot: Slot, width: int = 64, shape: Shape = (8, 8, 1), classes: int = 10) -> keras.Model:
    """Two slots on the pixels."""
    return classifier(
        shape, [keras.layers.Flatten(), *slot(width, activation="relu"), *slot(width, activation="relu")], classes
    )


def digits_hidden(slot: Slot, width: int = 64, shape: Shape = (8, 8, 1), classes: int = 10) -> keras.Model:
    """A plain layer on the pixels, then a slot and one more that is the output layer."""
    plain = [keras.layers.Flatten(), keras.layers.Dense(width, activation="relu")]
    slots = [*slot(width, activation="relu"), *slot(classes, activation="softmax")]
    return keras.Sequential([keras.Input(shape), *plain, *slots])


def plane(slot: Slot, width: int = 64) -> keras.Model:
    """Two slots on the coordinates of a point, then its height."""
    return keras.Sequential(
        [keras.Input((2,)), *slot(width, activation="relu"), *slot(width, activation="relu"), keras.layers.Dense(1)]
    )


def conv_pool(shape: Shape, classes: int) -> Network:
    """The network for data of one shape: two blocks of a convolution and a pooling, then slots (arXiv 2512.12663)."""

    def network(
        slot: Slot, width: int = 64, slots: int = 1, shape: Shape = shape, classes: int = classes
    ) -> keras.Model:
        """Two blocks of a convolution and a pooling, then slots."""
        checks.check_count(slots, "slots")
        return classifier(
            shape,
            [
                keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
                keras.layers.MaxPooling2D(),
                keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
                keras.layers.MaxPooling2D(),
                keras.layers.Flatten(),
                *(layer for _ in range(slots) for layer in slot(width, activation="relu")),
            ],
            classes,
        )

    return network


def mnist(slot: Slot, width: int = 64, shape: Shape = (28, 28, 1), classes: int = 10) -> keras.Model:
    """SimpleCNN of Dynamic DropConnect (arXiv 2502.19948): three convolutions with overlapping pooling, then a slot."""
    return classifier(
        shape,
        [
            keras.layers.Conv2D(32, 5, padding="same"),
            keras.layers.MaxPooling2D(3, 2),
            keras.layers.Conv2D(32, 5, padding="same", activation="relu"),
            keras.layers.AveragePooling2D(3, 2),
            keras.layers.Conv2D(64, 5, padding="same", activation="relu"),
            keras.layers.AveragePooling2D(3, 2),
            keras.layers.Flatten(),
            *slot(width, activation="relu"),
        ],
        classes,
    )


def rcv1(slot: Slot, width: int = 128, slots: int = 1, terms: int = 4096, topics: int = 25) -> keras.Model:
    """Dense layers of 1024, 256 and `width` units, the last ones in slots; independent topics (arXiv 2512.12663)."""
    if checks.check_count(slots, "slots") > 3:
        raise ValueError(checks.invalid("slots", "an int from 1 to 3", slots))
    widths = (1024, 256, width)
    layers: Layers = [keras.layers.Dense(units, activation="relu") for units in widths[:-slots]]
    layers += [layer for units in widths[-slots:] for layer in slot(units, activation="relu")]
    return keras.Sequential([keras.Input((terms,)), *layers, keras.layers.Dense(topics, activation="sigmoid")])


def transformer(
    slot: Slot, width: int = 32, heads: int = 2, blocks: int = 1, shape: Shape = (8, 8, 1), classes: int = 10
) -> keras.Model:
    """An encoder (arXiv 1706.03762, norms first) of the rows of an image, with two slots in each block."""
    rows, row = shape[0], math.prod(shape[1:])
    image = keras.Input(shape)
    x = keras.layers.Reshape((rows, row))(image)
    x = keras.layers.EinsumDense("btd,de->bte", (rows, width), bias_axes="te")(x)  # a bias for each position
    for _ in range(checks.check_count(blocks, "blocks")):
        y = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.MultiHeadAttention(heads, width // heads)(y, y)
        y = keras.layers.LayerNormalization()(x)
        for layer in [*slot(2 * width, activation="relu"), *slot(width, activation="linear")]:
            y = layer(y)
        x = x + y
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    return keras.Model(image, keras.layers.Dense(classes, activation="softmax")(x))


def resnet(
    slot: Slot, width: int = 64, maps: int = 16, blocks: int = 2, shape: Shape = (8, 8, 1), classes: int = 10
) -> keras.Model:
    """A ResNet (arXiv 1512.03385) whose blocks halve the image in turn, then a slot."""
    image = keras.Input(shape)
    x = keras.layers.Conv2D(maps, 3, padding="same", activation="relu")(image)
    for _ in range(checks.check_count(blocks, "blocks")):
        y = x
        for _ in range(2):
            y = keras.layers.Activation("relu")(keras.layers.BatchNormalization(momentum=0.9)(y))
            y = keras.layers.Conv2D(maps, 3, padding="same")(y)
        x = keras.layers.MaxPooling2D()(x + y)
    x = keras.layers.Flatten()(x)
    for layer in slot(width, activation="relu"):
        x = layer(x)
    return keras.Model(image, keras.layers.Dense(classes, activation="softmax")(x))


def classifier(shape: Shape, layers: Layers, classes: int) -> keras.Model:
    """A model of an input, some layers, and a softmax."""
    return keras.Sequential([keras.Input(shape), *layers, keras.layers.Dense(classes, activation="softmax")])


NETWORKS: dict[str, Network] = {
    "digits": digits,
    "digits_hidden": digits_hidden,
    "mnist": mnist,
    "cifar10": conv_pool((32, 32, 3), 10),
    "cifar100": conv_pool((32, 32, 3), 100),
    "rcv1": rcv1,
    "speech": conv_pool((64, 64, 1), 8),
    "plane": plane,
    "transformer": transformer,
    "resnet": resnet,
}

NAMES = tuple(NETWORKS)

LOSSES = {
    **dict.fromkeys(NAMES, "sparse_categorical_crossentropy"),
    "rcv1": "binary_crossentropy",
    "plane": "mean_squared_error",
}
"""The loss that each network is trained with, on its data."""


def get(name: str) -> Network:
    """The network of a name, that of its data or of what it is, as a function of a slot and of settings.

    - `digits`: two slots of `width` 64 on the pixels.
    - `digits_hidden`: the same layers, but slots on what is hidden: the second layer and the output layer.
    - `cifar10`, `cifar100`, `speech`: two blocks of a convolution and a pooling, then `slots`, 1, of `width` 64 (arXiv
      2512.12663, which tried widths from 32 to 128).
    - `mnist`: SimpleCNN, with a slot of `width` 64 (arXiv 2502.19948).
    - `rcv1`: Dense layers of 1024, 256 and `width` 128 units, of which the last `slots`, 1, are in slots.
    - `plane`: two slots of `width` 64 on two coordinates, and a height.
    - `transformer`: on the rows of digits, `blocks`, 1, of attention with `heads`, 2, and two slots (arXiv 1706.03762).
    - `resnet`: on digits, `blocks`, 2, of two convolutions to `maps` 16, with a slot of `width` 64 (arXiv 1512.03385).

    For data of another shape, give `shape` and `classes`, for `rcv1` `terms` and `topics`.

    Args:
        name: one of `NAMES`.

    Raises:
        ValueError: a name that is not one of them.

    >>> import keras
    >>> model = get("cifar10")(lambda width, activation: [keras.layers.Dense(width, activation)], width=32)
    >>> model.output_shape
    (None, 10)
    """
    return NETWORKS[checks.check_choice(name, "name", NAMES)]

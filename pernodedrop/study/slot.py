"""The slot of a model: where a study puts its variants, alike in everything but the regularizer."""

import random
import typing

import keras
import numpy as np

from pernodedrop import checks
from pernodedrop._types import Tensor
from pernodedrop.internals.of_keras import layers_of
from pernodedrop.study.variants import Variant

MASKS, BATCHES = 1, 2
"""What seeds are made for."""


def mixed_seed(seed: int, purpose: int, place: int = 0, bits: int = 32) -> int:
    """A seed below 2**bits of its own for each purpose and place: equal seeds in two layers would give equal masks."""
    return int(np.random.SeedSequence([seed, purpose, place]).generate_state(1)[0]) % 2**bits


class Slot:
    """What a study hands to the function that makes the model: `slot(width, activation=...)` returns layers.

    They are a Dense layer and what a variant puts before or around it. A model may call it at several places: each has
    masks of its own. The Dense layer, and whatever is made after it, start with the same weights in every variant.

    Args:
        variant: what takes the place of each Dense layer.
        rate: a float in [0, 1).
        seed: an int from 0, of the trial.
    """

    def __init__(self, variant: Variant, rate: float, seed: int) -> None:
        self.variant, self.rate, self.seed = variant, rate, seed
        self.dense: list[keras.layers.Layer] = []
        self.layers: list[keras.layers.Layer] = []

    def __call__(self, units: int, activation: typing.Any = None, **kwargs: typing.Any) -> list[keras.layers.Layer]:
        """The layers of the next place.

        Args:
            units, activation, **kwargs: those of `keras.layers.Dense`.
        """
        dense = keras.layers.Dense(units, activation=activation, **kwargs)
        # Keras takes the seeds of initial weights from `random`: what the variant takes must not move those after it
        state = random.getstate()
        seed = mixed_seed(self.seed, MASKS, len(self.dense), self.variant.seed_bits)
        layers = self.variant.function(dense, self.rate, seed)
        random.setstate(state)
        if not isinstance(layers, list) or not all(isinstance(layer, keras.layers.Layer) for layer in layers):
            raise TypeError(checks.invalid("variants", "functions that return lists of Keras layers", layers))
        self.dense.append(dense)
        self.layers += layers
        return layers

    def start(self, model: keras.Model) -> list[Tensor]:
        """The initial trainable weights that all variants have in common."""
        own = {id(weight) for layer in self.dense for weight in layer.trainable_variables}
        more = {id(weight) for layer in self.layers for weight in layer.trainable_variables} - own
        return [weight for weight in model.trainable_variables if id(weight) not in more]

    def common(self, model: keras.Model) -> list[keras.layers.Layer]:
        """The layers that all variants have in common: those outside of the slots, then each slot's Dense layer."""
        inside = {id(part) for layer in self.layers for part in layers_of(layer)}
        return [*(layer for layer in layers_of(model) if id(layer) not in inside), *self.dense]

"""Activation noise: what layers that stand between others share."""

import functools
import typing

import keras

from pernodedrop import state
from pernodedrop._types import Key, Shape, Tensor
from pernodedrop.layers.base.noisy import Noisy, check_samples, floating, xp
from pernodedrop.mask import Mask
from pernodedrop.schedules import Schedule


class ActivationNoise(Noisy):
    """Base of layers that multiply their input by noise in training and are the identity at inference.

    Coordinates of an entry are the sample, the position in the axes between first and last (row-major, the mask's time)
    and that in the last axis (its in): at the same key it is the entry that weight noise of `sharing="out"` has there.
    Subclasses give `entries`. One without a `build` of its own is built from the start, as Keras' Dropout is, so that
    it need not be built by the `build` of who holds it.

    Args:
        mask: which mask, a `pernodedrop.Mask`.
        seed: any int; None takes one from Python's `random`.
        schedule: the rate over time; None leaves it where the mask has it.
        **kwargs: those of `keras.layers.Layer`.
    """

    def __init__(
        self, mask: Mask, seed: int | None = None, schedule: Schedule | None = None, **kwargs: typing.Any
    ) -> None:
        super().__init__(mask=mask, seed=seed, schedule=schedule, **kwargs)
        self.supports_masking = True
        self.built = type(self).build is keras.layers.Layer.build

    def call(
        self,
        inputs: Tensor,
        training: bool | None = None,
        key: Key | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        check_samples(inputs)
        self.check_shape(inputs.shape)
        if not self.has_noise(training):
            return inputs
        return self.call_with_noise(floating(inputs), key, sample_ids)

    def call_with_noise(self, inputs: Tensor, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        """What a call with noise gives: the input times its entries."""
        return apply_mask(inputs, self.entries(inputs, key, sample_ids))

    def check_shape(self, shape: Shape) -> None:
        """Raise if the layer takes no input of a shape, at inference neither. Most take all."""

    def entries(self, inputs: Tensor, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        """The mask of a call, float32, in a shape that broadcasts against the input's."""
        raise NotImplementedError(f"{type(self).__name__} must define `entries`")

    def fold(self) -> keras.layers.Layer:
        """A plain Keras layer that computes what this layer does at inference: the identity."""
        return keras.layers.Identity(name=self.name, dtype=self.dtype_policy)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        self.check_shape(input_shape)
        return input_shape


entries_of_inputs = functools.partial(state.entries_of_inputs, xp=xp)
apply_mask = functools.partial(state.apply_mask, xp=xp)

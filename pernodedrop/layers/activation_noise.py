"""Activation noise: what layers that stand between others share."""

import math
import typing

import keras

from pernodedrop import checks
from pernodedrop._types import Config, Key, Shape, Tensor
from pernodedrop.layers.noisy import Noisy, floating, refuse_sample_ids, xp
from pernodedrop.mask import Mask
from pernodedrop.noise import Noise
from pernodedrop.schedules import Schedule


class ActivationNoise(Noisy):
    """Base of layers that multiply their input by noise in training and are the identity at inference.

    An entry is the one that weight noise of `sharing="out"` has at the same key: it depends on the sample, on the
    position in the axes between first and last (row-major, the mask's time) and on the last axis (its in).

    Args:
        noise: the law of an entry, a `pernodedrop.Noise`.
        noise_shape: shape of the mask, broadcast against the input; None entries are the input's sizes, and None is
            the input's shape.
        seed: int, any; None takes one from Python's `random`.
        schedule: the rate over time; None leaves it where the noise has it.
        **kwargs: those of `keras.layers.Layer`.
    """

    def __init__(
        self,
        noise: Noise,
        noise_shape: Shape | None = None,
        seed: int | None = None,
        schedule: Schedule | None = None,
        **kwargs: typing.Any,
    ) -> None:
        if noise_shape is not None:
            expected = "None or a tuple of sizes and None"
            if not isinstance(noise_shape, tuple | list):
                raise TypeError(checks.invalid("noise_shape", expected, noise_shape))
            if not all(size is None or (checks.is_int(size) and size > 0) for size in noise_shape):
                raise ValueError(checks.invalid("noise_shape", expected, noise_shape))
        super().__init__(mask=Mask(noise, {"out"}), seed=seed, schedule=schedule, **kwargs)
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        self._mask_shape(input_shape)

    def call(
        self,
        inputs: Tensor,
        training: bool | None = None,
        key: Key | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        if not self.is_noisy(training):
            return inputs
        inputs = floating(inputs)
        return times(inputs, self.entries(inputs, key, sample_ids))

    def entries(self, inputs: Tensor, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        """The mask of a call, float32, in a shape that broadcasts against the input's."""
        shape = self._mask_shape(xp.shape(inputs))
        return xp.reshape(self._entries(inputs, shape, key, sample_ids), shape)

    def fold(self) -> keras.layers.Layer:
        """A plain Keras layer that computes what this layer does at inference: the identity."""
        return keras.layers.Identity(name=self.name, dtype=self.dtype_policy)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> Config:
        return {**super().get_config(), "noise_shape": self.noise_shape}

    def _entries(self, inputs: Tensor, shape: tuple[int, ...], key: Key | None, sample_ids: Tensor | None) -> Tensor:
        _, *middle, last = shape if len(shape) > 1 else (*shape, 1)
        zero = xp.arange(1, like=inputs)
        one_sample = self.noise_shape is not None and self.noise_shape[0] == 1
        if one_sample and sample_ids is not None:
            refuse_sample_ids(sample_ids)
        sample = zero if one_sample else self.samples(inputs, sample_ids)
        time = xp.arange(math.prod(middle), like=inputs)
        field = self.field(key, xp.device(inputs))
        return field.entries(time[:, None], sample[:, None, None], xp.arange(last, like=inputs), zero, xp)

    def _mask_shape(self, shape: Shape) -> Shape:
        if self.noise_shape is None:
            return tuple(shape)
        fits = len(shape) == len(self.noise_shape) and all(
            own in (None, 1) or not isinstance(size, int) or own == size
            for own, size in zip(self.noise_shape, shape, strict=True)
        )
        if not fits:
            raise ValueError(checks.invalid("noise_shape", f"1, None or the size of {tuple(shape)}", self.noise_shape))
        return tuple(size if own is None else own for own, size in zip(self.noise_shape, shape, strict=True))


def times(inputs: Tensor, mask: Tensor) -> Tensor:
    """The product of an input with a mask, in the dtype of the input, computed in float32 at least."""
    dtype = xp.dtype(inputs)
    wide = "float64" if dtype == "float64" else "float32"
    return xp.astype(xp.astype(inputs, wide) * xp.astype(mask, wide), dtype)

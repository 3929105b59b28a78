"""Shaped noise: activation noise whose mask has a shape of its own, as Keras' Dropout."""

import typing

from pernodedrop import checks
from pernodedrop._types import Config, Key, Shape, Tensor
from pernodedrop.layers.base.activation_noise import ActivationNoise
from pernodedrop.layers.base.noisy import xp
from pernodedrop.mask import Mask
from pernodedrop.noise import Noise
from pernodedrop.schedules import Schedule


class ShapedNoise(ActivationNoise):
    """Base of activation noise with one entry for each place of a mask that is broadcast against the input.

    Args:
        noise: the distribution of an entry, a `pernodedrop.Noise`.
        noise_shape: shape of the mask; None entries are the input's sizes, and None is the input's shape.
        seed, schedule, **kwargs: as for `ActivationNoise`.
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
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)
        sharing = "sample+out" if self.noise_shape and self.noise_shape[0] == 1 else "out"
        super().__init__(Mask(noise, sharing), seed=seed, schedule=schedule, **kwargs)

    def check_shape(self, shape: Shape) -> None:
        if self.noise_shape is not None:
            self._mask_shape(shape)

    def entries(self, inputs: Tensor, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        return self.entries_of(self._mask_shape(xp.shape(inputs)), inputs, key, sample_ids)

    def get_config(self) -> Config:
        return {**super().get_config(), "noise_shape": self.noise_shape}

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

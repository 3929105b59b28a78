"""Shaped noise: activation noise whose mask has a shape of its own, as Keras' Dropout."""

import typing

from pernodedrop import schedules
from pernodedrop._types import Config, Key, Shape, Tensor
from pernodedrop.layers.base.activation_noise import ActivationNoise
from pernodedrop.layers.base.noisy import xp
from pernodedrop.mask import Mask, broadcast_shape, check_noise_shape
from pernodedrop.noise import Noise
from pernodedrop.schedules import Schedule


class ShapedNoise(ActivationNoise):
    """Base of activation noise with one entry for each place of a mask that is broadcast against the input.

    Args:
        noise: the distribution of an entry, a `pernodedrop.Noise`.
        noise_shape: shape of the mask; None entries are the input's sizes, and None is the input's shape.
        persistence: that of the mask from one position to the next, a float, a `Schedule`, or None.
        seed, schedule, **kwargs: as for `ActivationNoise`.
    """

    def __init__(
        self,
        noise: Noise,
        noise_shape: Shape | None = None,
        seed: int | None = None,
        schedule: Schedule | None = None,
        persistence: float | Schedule | None = None,
        **kwargs: typing.Any,
    ) -> None:
        self.noise_shape = check_noise_shape(noise_shape)
        sharing = "sample+out" if self.noise_shape and self.noise_shape[0] == 1 else "out"
        start, slow = schedules.get_persistence(persistence)
        mask = Mask(noise, sharing, persistence=start)
        super().__init__(mask, seed=seed, schedule=schedule, persistence=slow, **kwargs)

    def check_shape(self, shape: Shape) -> None:
        broadcast_shape(self.noise_shape, shape)

    def entries(self, inputs: Tensor, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        return self.entries_of(broadcast_shape(self.noise_shape, xp.shape(inputs)), inputs, key, sample_ids)

    def get_config(self) -> Config:
        return {**super().get_config(), "noise_shape": self.noise_shape, "persistence": self.persistence_config}

"""Spatial noise: what activation noise on feature maps has beside: a data format and a fixed rank."""

import typing

import keras

from pernodedrop import checks
from pernodedrop._types import Config, Key, Shape, Tensor
from pernodedrop.layers.base.activation_noise import ActivationNoise
from pernodedrop.layers.base.noisy import xp
from pernodedrop.mask import Mask
from pernodedrop.noise import Noise
from pernodedrop.schedules import Schedule


class SpatialNoise(ActivationNoise):
    """Base of activation noise on feature maps. The mask of a channel is the same in both data formats.

    Subclasses give `dims`, how many axes of space there are, and `entries_channels_last`.

    Args:
        noise: the distribution of an entry, a `pernodedrop.Noise`.
        data_format: "channels_last", "channels_first", or None for Keras' `image_data_format`.
        seed, schedule, **kwargs: as for `ActivationNoise`.
    """

    dims: typing.ClassVar[int]

    def __init__(
        self,
        noise: Noise,
        data_format: str | None = None,
        seed: int | None = None,
        schedule: Schedule | None = None,
        **kwargs: typing.Any,
    ) -> None:
        super().__init__(Mask(noise, "out"), seed=seed, schedule=schedule, **kwargs)
        data_format = keras.config.image_data_format() if data_format is None else data_format
        self.data_format = checks.check_choice(data_format, "data_format", ("channels_last", "channels_first"))
        self.input_spec = keras.layers.InputSpec(ndim=self.dims + 2)

    def entries(self, inputs: Tensor, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        batch, *sizes = xp.shape(inputs)
        if self.data_format == "channels_last":
            return self.entries_channels_last(inputs, (batch, *sizes), key, sample_ids)
        channels, *space = sizes
        mask = self.entries_channels_last(inputs, (batch, *space, channels), key, sample_ids)
        return xp.permute_dims(mask, (0, self.dims + 1, *range(1, self.dims + 1)))

    def entries_channels_last(self, inputs: Tensor, shape: Shape, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        """The mask of a call, float32, that broadcasts against `shape`, the input's with its channels last."""
        raise NotImplementedError(f"{type(self).__name__} must define `entries_channels_last`")

    def get_config(self) -> Config:
        return {**super().get_config(), "data_format": self.data_format}

"""What may be asked of any regularizer, be it one noisy layer or several as one."""

import contextlib
import typing

import keras

from pernodedrop._types import Config
from pernodedrop.internals import of_keras
from pernodedrop.layers.base import saving
from pernodedrop.layers.base.module import Module


class NoiseLayer(of_keras.Placed, Module):
    """Base of all layers of this library: `Noisy` ones, which have a key, and `Composite` ones, which hold several.

    Both have:
        mask, noise: which mask, and its noise, with the present numbers.
        rate: the present drop rate, which can be set, or None.
        schedule: the rate as a function of the update number, or None.
        updates: how many keys were drawn: the update number of a schedule.
        members: how many fixed functions it is at inference, of which `sample_ids` choose; None: it is one.
        is_stochastic: whether training calls with other keys give other outputs, at the present rate or at some of a
            schedule.
        has_noise(training): whether a call has noise.
        draw(): the next key, for a call that is to have no other.
        fold(): a plain Keras layer, built, with weights of its own, that computes what this one does at inference.
        seed: the seed that was given or drawn, which cannot be set.
    """

    @property
    def seed(self) -> int | None:
        """The seed that was given, or drawn instead; None of a layer whose parts have drawn theirs.

        It cannot be set. Another one makes another layer, since the key is a variable that was made of it.
        """
        return self.drawn_seed if self.given_seed is None else self.given_seed

    @seed.setter
    def seed(self, seed: typing.Any) -> typing.NoReturn:
        raise AttributeError(
            f"The seed of layer {self.name!r} cannot be set: its key was made of it. Make a layer with another one, "
            f"`type(layer).from_config({{**layer.get_config(), 'seed': {seed!r}}})`, or give a call its key, "
            f"`layer(x, training=True, key=({seed!r}, 0))`."
        )

    @property
    def given_seed(self) -> int | None:
        """The seed that was given, which `get_config` gives; None: it was drawn, and copies draw others."""
        raise NotImplementedError(f"{type(self).__name__} must define `given_seed`")

    @property
    def drawn_seed(self) -> int | None:
        """The seed that was drawn where none was given; None: each part has its own."""
        return None

    def get_config(self) -> Config:
        return saving.with_format(super().get_config())

    @classmethod
    def from_config(cls, config: Config, custom_objects: dict[str, typing.Any] | None = None) -> typing.Self:
        if issubclass(cls, keras.layers.Wrapper) and "layer" not in config:
            raise ValueError(f"The config of {cls.__name__} has no 'layer'.")
        # a scope of nothing would hide the one around it
        with keras.saving.custom_object_scope(custom_objects) if custom_objects else contextlib.nullcontext():
            made = super().from_config(saving.restored(saving.without_format(config, cls.__name__)))
        saving.check_complete(config, made)
        return made

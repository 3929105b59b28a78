"""Composite: several noisy layers that are one regularizer to whoever uses them."""

import collections.abc
import typing

from pernodedrop import checks
from pernodedrop._types import Tensor
from pernodedrop.layers.base.noise_layer import NoiseLayer
from pernodedrop.layers.base.noisy import Noisy, check_built
from pernodedrop.state import CompositeRegularizer


class Composite(CompositeRegularizer, NoiseLayer):
    """Base of layers that hold several noisy ones, all of one kind, with a key and numbers each.

    Subclasses give:
        build(...): which hands them to `set_parts`, by name.
        call(..., keys): what it does with its parts, which take their key of `keys`, or draw where that is None.
        fold: as for `NoiseLayer`.

    Args:
        like: a noisy layer like its parts, which is asked for their mask and schedule before they are built.
        **kwargs: those of `keras.layers.Layer`, or of the Keras class that stands after this one.
    """

    def __init__(self, like: Noisy, **kwargs: typing.Any) -> None:
        super().__init__(**kwargs)
        self._like: typing.Callable[[], Noisy] = lambda: like  # Keras would track an attribute that is a layer

    @property
    def parts(self) -> dict[str, typing.Any]:
        """The noisy layers by name."""
        check_built(self)
        return {name: getattr(self, f"{name}_part") for name in self._part_names}

    def set_parts(self, parts: dict[str, typing.Any]) -> None:
        """Have these as the noisy layers, by name."""
        self._part_names = tuple(parts)
        for name, part in parts.items():  # in attributes: tf.train.Checkpoint passes by dicts
            setattr(self, f"{name}_part", part)

    def has_noise(self, training: bool | None) -> bool:
        """Whether a call has noise."""
        return self.one.has_noise(training)

    def draw(self) -> dict[str, Tensor]:
        """The next key of each part, for a call with `keys=`.

        Raises:
            RuntimeError: inside a rematerialized function, as for any noisy layer.
            ValueError: a layer that is not built.
        """
        return {name: part.draw() for name, part in self.parts.items()}

    def rematerialized_call(
        self, layer_call: typing.Callable[..., typing.Any], *args: typing.Any, **kwargs: typing.Any
    ) -> typing.Callable[..., typing.Any]:
        # as in Noisy: keys are drawn outside what the backward pass makes again, where nobody says `training` either
        if kwargs.get("keys") is None and self.has_noise(kwargs.get("training")):
            kwargs["keys"] = self.draw()
        again = super().rematerialized_call(lambda *args: layer_call(*args, **kwargs), *args)
        return lambda *args, **_: again(*args)

    @property
    def one(self) -> Noisy:
        return super().one if self.built else self._like()


def key_of(part: str, keys: dict[str, Tensor] | None) -> Tensor | None:
    """The key of a part, or None for it to draw one."""
    if keys is None:
        return None
    if not isinstance(keys, collections.abc.Mapping) or part not in keys:
        raise ValueError(checks.invalid("keys", f"a dict from each part, {part!r} among them, to its key", keys))
    return keys[part]

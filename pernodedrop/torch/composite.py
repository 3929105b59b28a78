"""Composite: several noisy modules that are one regularizer to whoever uses them."""

import collections.abc

import torch

from pernodedrop.noise import Noise
from pernodedrop.schedules import Schedule
from pernodedrop.torch.noisy import Noisy


class Composite(torch.nn.Module):
    """Base of modules that hold several noisy ones, all of one kind, with a key and numbers each.

    It stands before the torch module where a class is both. Subclasses give:
        parts: the noisy modules by name.
        fold: as `Noisy` has it.
    """

    @property
    def parts(self) -> collections.abc.Mapping[str, Noisy]:
        """The noisy modules by name."""
        raise NotImplementedError(f"{type(self).__name__} must define `parts`")

    def fold(self) -> torch.nn.Module:
        """The plain module that computes what this one does at inference."""
        raise NotImplementedError(f"{type(self).__name__} must define `fold`")

    @property
    def noise(self) -> Noise:
        """The noise of its parts with its present numbers."""
        return self._one.noise

    @property
    def regime(self) -> str:
        """When masks change, see `pernodedrop.Mask`."""
        return self._one.regime

    @property
    def rate(self) -> float | None:
        """The present drop rate of its parts. Setting it sets it in all of them, as in any noisy module."""
        return self._one.rate

    @rate.setter
    def rate(self, rate: float) -> None:
        for part in self.parts.values():
            part.rate = rate

    @property
    def schedule(self) -> Schedule | None:
        """The rate over time, or None."""
        return self._one.schedule

    @property
    def updates(self) -> int:
        """How many keys each part drew: the update number of a schedule."""
        return self._one.updates

    @property
    def seed(self) -> dict[str, int | None]:
        """The seed's word of each part."""
        return {name: part.seed for name, part in self.parts.items()}

    @property
    def has_noise(self) -> bool:
        """Whether a call has noise: where any part trains, and at inference too where masks are part of the model."""
        return any(part.has_noise for part in self.parts.values())

    @property
    def changes_at_inference(self) -> bool:
        """Whether inference has other weights than the module's own."""
        return self._one.state.mask.at_inference

    @property
    def _one(self) -> Noisy:
        return next(iter(self.parts.values()))

"""Composite: several noisy modules that are one regularizer to whoever uses them."""

import torch

from pernodedrop.state import CompositeRegularizer


class Composite(CompositeRegularizer, torch.nn.Module):
    """Base of modules that hold several noisy ones, all of one kind, with a key and numbers each.

    It stands before the torch module where a class is both. Subclasses give:
        parts: the noisy modules by name.
        fold: as `pernodedrop.torch.noisy.Noisy` has it.
    """

    def fold(self) -> torch.nn.Module:
        """The plain module that computes what this one does at inference."""
        raise NotImplementedError(f"{type(self).__name__} must define `fold`")

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
        return self.one.state.mask.at_inference

"""Baselines to compare with: other ways to have many networks in one. Keras layers, on every backend.

`FractalJoin` and `FractalBlock` drop whole columns (FractalNet), `MixtureOfExperts` sends each row to a few of many
layers, `Capsules` route by agreement, and `EarlyExits` lets easy samples leave before the end (BranchyNet). They follow
their papers, are small, and are meant for comparison.
"""

from pernodedrop.contrast.capsules import Capsules, lengths, margin_loss, squash
from pernodedrop.contrast.columns import FractalBlock, FractalJoin
from pernodedrop.contrast.exits import EarlyExits
from pernodedrop.contrast.experts import MixtureOfExperts

__all__ = [
    "Capsules",
    "EarlyExits",
    "FractalBlock",
    "FractalJoin",
    "MixtureOfExperts",
    "lengths",
    "margin_loss",
    "squash",
]

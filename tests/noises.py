"""Noises of a user's own, as the documentation shows them, and their float64 truths."""

import pernodedrop as pnd


class Triangular(pnd.Noise):
    half_width: float = 0.5

    @property
    def variance(self):
        return self.half_width**2 / 6

    def from_uniform(self, u, params, xp):
        left = xp.sqrt(2 * u) - 1
        right = 1 - xp.sqrt(2 * (1 - u))
        return 1 + params["half_width"] * xp.where(u < 0.5, left, right)


class Difference(pnd.Noise):
    """Two uniform numbers an entry: the law of Triangular, by another way."""

    spread: float
    lanes = 2

    @property
    def variance(self):
        return self.spread**2 / 6

    def from_uniform(self, u, params, xp):
        return 1 + params["spread"] * (u[0] - u[1])

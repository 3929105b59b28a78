"""Made-up data: a surface over a plane, from few samples with noise on them, which can be looked at as a picture."""

import collections.abc
import pathlib
import typing

import numpy as np

from pernodedrop import checks
from pernodedrop.study.datasets.files import Splits, check_sizes

Sizes: typing.TypeAlias = collections.abc.Sequence[int]


def plane(
    folder: pathlib.Path | None, sizes: Sizes = (100, 200, 2000), seed: int = 0, deviation: float = 0.3
) -> Splits:
    """Points of [-1, 1] x [-1, 1], uniform at random, with the height there; noise is on all but those to test on."""
    checks.check_positive(deviation, "deviation", zero=True)
    rng = np.random.default_rng(seed)
    parts = []
    for size, noise in zip(check_sizes(sizes), (deviation, deviation, 0.0), strict=True):
        x = rng.uniform(-1, 1, (size, 2)).astype("float32")
        parts.append((x, (surface(x) + noise * rng.normal(size=(size, 1))).astype("float32")))
    return Splits(parts, "A surface over a plane")


def surface(x: np.ndarray) -> np.ndarray:
    """The height at points (n, 2), as (n, 1): sin(pi a) cos(pi b)."""
    height: np.ndarray = np.sin(np.pi * x[:, :1]) * np.cos(np.pi * x[:, 1:])
    return height

"""Blocks of feature maps that are dropped, in any framework (Ghiasi, Lin and Le, arXiv 1810.12890)."""

import collections.abc
import math
import typing

import numpy as np

from pernodedrop._types import Namespace, Shape, Tensor, Words
from pernodedrop.mask import Field
from pernodedrop.noise import Bernoulli


class Blocks(typing.NamedTuple):
    """Which blocks: a block for each seed, a seed for each first corner that a whole block has room at.

    Attributes:
        size: side of a block; along a shorter axis it is as long as the axis.
        per_channel: whether each channel has blocks of its own.
        normalize: over what the share that is kept is counted, "sample" or "batch".
    """

    size: int
    per_channel: bool
    normalize: str

    def mask(self, shape: Shape, field: Field, samples: Words, like: Tensor, xp: Namespace) -> Tensor:
        """The mask of inputs (batch, *sizes, channels), float32; its channels are 1 where they have the same blocks."""
        _, *sizes, channels = shape
        if 0 in (*sizes, channels):  # an empty map, of which there is no share
            return xp.astype(xp.reshape(xp.arange(1, like=like), (1,) * len(shape)), "float32")
        sides = [min(self.size, size) for size in sizes]
        dropped = _seeds(sizes, sides, channels if self.per_channel else 1, field, samples, like, xp)
        for axis, length in enumerate(sides, start=1):
            dropped = _grown(dropped, axis, length, xp)
        kept = 1 - dropped
        axes = tuple(range(0 if self.normalize == "batch" else 1, len(shape)))
        counts = (xp.sum(of, axis=axes, keepdims=True) for of in (kept, xp.ones_like(kept)))
        ours, whole = map(xp.sum_of_replicas, counts) if self.normalize == "batch" else counts
        share = ours / whole
        return kept / xp.maximum(share, xp.ones_like(share) * 2.0**-62)  # 0 / 0 where nothing is kept


def _seeds(
    sizes: collections.abc.Sequence[int],
    sides: collections.abc.Sequence[int],
    channels: int,
    field: Field,
    samples: Words,
    like: Tensor,
    xp: Namespace,
) -> Tensor:
    """1.0 where a block has its first corner, else 0.0: (batch, size - side + 1, ..., channels)."""
    corners = [size - length + 1 for size, length in zip(sizes, sides, strict=True)]
    time = xp.arange(corners[0], like=like)
    for size, count in zip(sizes[1:], corners[1:], strict=True):
        time = time[..., None] * xp.word(size) + xp.arange(count, like=like)
    sample, zero = xp.reshape(samples, (-1, *(1 for _ in sizes), 1)), xp.arange(1, like=like)
    seeds_per_drop = np.float32(math.prod(sizes) / (math.prod(sides) * math.prod(corners)))
    share = xp.asarray(seeds_per_drop, device=xp.device(like))
    field = field._replace(params=typing.cast(Bernoulli, field.noise).thinned(field.params, share, xp))
    entries = field.entries(time[..., None], sample, xp.arange(channels, like=like), zero, xp)
    return xp.astype(entries == 0, "float32")


def _grown(seeds: Tensor, axis: int, length: int, xp: Namespace) -> Tensor:
    """Each 1.0 and the length - 1 entries after it along an axis, which gets as much longer.

    By doubling: pooling of stride 1 takes far longer on JAX and torch.
    """
    if length == 1:
        return seeds
    count = seeds.shape[axis]
    places = np.arange(count + 2 * (length - 1)) - (length - 1)
    inside = ((places >= 0) & (places < count)).astype("float32")
    inside = inside.reshape(-1, *(1 for _ in seeds.shape[axis + 1 :]))
    near = xp.asarray(np.clip(places, 0, count - 1).astype("int32"), device=xp.device(seeds))
    grown = xp.take(seeds, near, axis=axis) * xp.asarray(inside, device=xp.device(seeds))
    before, reach = (slice(None),) * axis, 1
    while reach < length:
        step = min(reach, length - reach)
        grown = xp.maximum(grown[(*before, slice(None, -step))], grown[(*before, slice(step, None))])
        reach += step
    return grown

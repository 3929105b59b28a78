"""The generator: a 32-bit word for every coordinate of a mask.

A word is a pure function of seven uint32 coordinates: seed, call, lane, time, sample, in and out. The first six are
mixed into a 64-bit row key (k0, k1) by chained bijections, never by adding two of them directly, so neighbouring seeds,
calls and samples give unrelated rows. The last is mixed with the row key by thirteen plain 32-bit operations, which is
all that remains inside the innermost loop.

Everything is written against an ops namespace `xp` (see `pernodedrop.backends`), so that every framework evaluates the
same words to the same bits. Evidence of its quality, and how to repeat it: docs/generator.md.

The mixing constants are those of triple32 by Chris Wellons (hash-prospector, public domain by the Unlicense).
"""

import hashlib

from pernodedrop._types import Namespace, Words

GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: tells the second half of the row key from the first
MULTIPLIERS = (0xED5AD4BB, 0xAC4C1B51, 0x31848BAB)


def triple32(x: Words, xp: Namespace) -> Words:
    """A bijection of words with an avalanche bias close to the theoretical limit."""
    return _triple32_keyed(x, None, xp)


def _triple32_keyed(x: Words, key: Words | None, xp: Namespace) -> Words:
    first, second, third = (xp.word(m) for m in MULTIPLIERS)
    x = x ^ xp.shift_right(x, 17)
    x = x * first
    x = x ^ xp.shift_right(x, 11)
    if key is not None:
        x = x ^ key
    x = x * second
    x = x ^ xp.shift_right(x, 15)
    x = x * third
    return x ^ xp.shift_right(x, 14)


def row_key(
    seed: Words, call: Words, lane: Words, time: Words, sample: Words, in_: Words, xp: Namespace
) -> tuple[Words, Words]:
    """The 64-bit key of a row of words, as two word tensors of the coordinates' broadcast shape."""

    def mix(x: Words) -> Words:
        return triple32(x, xp)

    k0 = mix(in_ + mix(sample + mix(time + mix(lane + mix(call + mix(seed))))))
    golden = xp.word(GOLDEN)
    k1 = mix(sample * golden ^ mix(in_ + mix(time ^ mix(lane ^ mix(call ^ mix(seed ^ golden))))))
    return k0, k1


def words(
    key: tuple[Words, Words], lane: Words, time: Words, sample: Words, in_: Words, out: Words, xp: Namespace
) -> Words:
    """Words at broadcast coordinates.

    Args:
        key: pair of word tensors (seed, call).
        lane: word tensor; the stream within a key, for noises that need more than one uniform number an entry.
        time, sample, in_, out: word tensors that broadcast against each other.
        xp: the ops namespace of the framework the coordinates belong to.

    Returns:
        A word tensor of the coordinates' broadcast shape.
    """
    return xp.fused(_words)(key, lane, time, sample, in_, out, xp)


def _words(
    key: tuple[Words, Words], lane: Words, time: Words, sample: Words, in_: Words, out: Words, xp: Namespace
) -> Words:
    seed, call = key
    k0, k1 = row_key(seed, call, lane, time, sample, in_, xp)
    return _triple32_keyed(out ^ k0, k1, xp)


def mixed(key: list[Words], xp: Namespace) -> Words:
    """One word of the words of a key, the last of them where the others are 0, as in `jax.random.key(seed)`."""
    word = xp.zeros_like(key[0])
    for one in key:
        word = triple32(word, xp) ^ one
    return word


def seed_word(seed: int) -> int:
    """The word that stands for a user's seed: itself in [0, 2**32), a digest of its digits otherwise."""
    if 0 <= seed < 2**32:
        return int(seed)
    return digest(str(int(seed)))


def sibling_seed(seed: int, which: int | str) -> int:
    """The seed of one of several layers that have one seed between them, by its number or its name."""
    return digest(f"{int(seed)}/{which}")


def digest(text: str) -> int:
    """A word mixed from a text."""
    return int.from_bytes(hashlib.blake2s(text.encode(), digest_size=4).digest(), "little")

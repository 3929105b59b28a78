"""The generator's words as a stream of raw bytes, for a battery of statistical tests.

    python benchmarks/generator/stream.py --order out | dieharder -g 200 -d 0
    python benchmarks/generator/stream.py --order seed --first-seed 1000 | RNG_test stdin32 -tlmax 4GB

The words are those of `pernodedrop.ops.random_bits(..., backend="numpy")`, as uint32 in the byte order of the machine.
The coordinate named by --order runs fastest. The others follow in the order out, in, sample, call, seed, and the last
of them runs without end:

    order    fastest ... slowest                        words before the last coordinate advances
    out      out 64, in 4096, sample 128, call          2**25
    in       in 4096, out 64, sample 128, call          2**25
    sample   sample 128, out 64, in 4096, call          2**25
    call     call 256, out 64, in 4096, sample 128, seed    2**33
    seed     seed 256, out 64, in 4096, sample 128, call    2**33
    time     time 256, out 64, in 4096, sample 128, call    2**33
    lane     lane 2, out 64, in 4096, sample 128, call      2**26

Elsewhere time and lane are 0. Samples, inputs and outputs start at 0, seeds and calls where --first-seed and --call
say. The stream ends quietly when its reader does, or after --words.
"""

import argparse
import contextlib
import itertools
import os
import sys

import numpy as np

SAMPLES, INPUTS, OUTPUTS = 128, 4096, 64
LANES = 2
NEIGHBOURS = 256  # how many calls, seeds or positions take turns where they run fastest
TOGETHER = 16  # planes written at once where planes take turns: a cache line of words
ROWS = 64  # inputs made at once where time or lane run fastest

ORDERS = ("out", "in", "sample", "call", "seed", "time", "lane")


def chunks(order, first_seed=0, first_call=0):
    """The stream as an endless iterator of word arrays."""
    from pernodedrop import backends, generator, ops

    xp = backends.get("numpy")

    def plane(seed, call, sample):
        bits = ops.random_bits((seed, call), (1, INPUTS, OUTPUTS), sample_offset=sample, backend="numpy")
        return bits[0]

    def interleaved(planes):
        """Word by word from each plane in turn."""
        planes = list(planes)
        words = np.empty((INPUTS * OUTPUTS, len(planes)), np.uint32)
        for start in range(0, len(planes), TOGETHER):
            some = [plane(*coordinates).reshape(-1) for coordinates in planes[start : start + TOGETHER]]
            words[:, start : start + TOGETHER] = np.stack(some, axis=-1)
        return words

    def inside(call, sample, start):
        """The words of some inputs, in which time or lane runs fastest."""
        key = xp.word([first_seed]), xp.word([call])
        fastest = xp.word(np.arange(NEIGHBOURS if order == "time" else LANES))
        lane, time = (xp.word([0]), fastest) if order == "time" else (fastest, xp.word([0]))
        inputs, outputs = (xp.word(np.arange(n)) for n in (ROWS, OUTPUTS))
        words = generator.words(
            key, lane, time, xp.word([sample]), (inputs + xp.word(start))[:, None, None], outputs[:, None], xp
        )
        return np.ascontiguousarray(words.view("uint32"))

    for i in itertools.count():
        if order in ("out", "in"):
            for sample in range(SAMPLES):
                words = plane(first_seed, first_call + i, sample)
                yield words if order == "out" else np.ascontiguousarray(words.T)
        elif order == "sample":
            yield interleaved((first_seed, first_call + i, sample) for sample in range(SAMPLES))
        elif order == "call":
            for sample in range(SAMPLES):
                yield interleaved((first_seed + i, first_call + n, sample) for n in range(NEIGHBOURS))
        elif order == "seed":
            for sample in range(SAMPLES):
                yield interleaved((first_seed + n, first_call + i, sample) for n in range(NEIGHBOURS))
        else:
            for sample, start in itertools.product(range(SAMPLES), range(0, INPUTS, ROWS)):
                yield inside(first_call + i, sample, start)


def write(descriptor, chunks, words=None):
    """Write a stream until its reader goes away or `words` are written; how many words were written."""
    written = 0
    for chunk in chunks:
        data = memoryview(chunk.reshape(-1)[: None if words is None else words - written // 4]).cast("B")
        while data:
            try:
                size = os.write(descriptor, data[: 2**20])
            except BrokenPipeError:
                return written // 4
            written += size
            data = data[size:]
        if words is not None and written == 4 * words:
            return words


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--order", choices=ORDERS, required=True, help="the coordinate that runs fastest")
    parser.add_argument("--first-seed", type=int, default=0, help="default 0")
    parser.add_argument("--call", type=int, default=0, help="the first call, default 0")
    parser.add_argument("--words", type=int, help="how many; default: without end")
    args = parser.parse_args()
    os.environ.setdefault("KERAS_BACKEND", "numpy")  # the words do not depend on it, and it starts fastest
    with contextlib.suppress(KeyboardInterrupt):
        write(sys.stdout.fileno(), chunks(args.order, args.first_seed, args.call), args.words)


if __name__ == "__main__":
    main()

"""What a training step of a noisy LSTM costs beside torch's own, by which masks it has.

OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/modules/loops.py

A step is a forward and a backward pass to the parameters. Steps of all rows are taken in turn, and the least CPU time
of each counts, so that what else the machine does falls out. "blocks" is the way where no kernel is at hand, and "in
memory" that of smaller masks.
"""

import pathlib
import sys
import time

import torch

import pernodedrop.torch as pndt
from pernodedrop.report import table

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from run import seconds_of

SIZES = ((32, 16, 16), (32, 32, 128))
"""Steps of time, batch and units."""
ROUNDS = 5
BLOCKS = "each step and sample, in blocks"
MASKS = {
    "torch.nn.LSTM": None,
    "a batch": {},
    "a sample": {"sharing": "time"},
    "a sample, in memory": {"sharing": "time", "method": "materialized"},
    "each step and sample": {"sharing": ()},
    BLOCKS: {"sharing": (), "method": "recomputed"},
}


def step_of(which, size):
    """A function that makes a training step."""
    *_, units = size
    torch.manual_seed(0)
    kind = torch.nn.LSTM if which is None else pndt.NoisyLSTM
    module, x = kind(units, units, **({} if which is None else {"rate": 0.5, "seed": 1, **which})), torch.randn(size)

    def step():
        module.zero_grad()
        module(x)[0].sum().backward()

    step()
    return step


def main():
    """Measure and print."""
    lines = [["masks of", *(f"{steps} steps, batch {batch}, {units} units" for steps, batch, units in SIZES)]]
    lines += [[name] for name in MASKS]
    for size in SIZES:
        seconds = seconds_of([step_of(which, size) for which in MASKS.values()], ROUNDS, time.process_time)
        for line, own in zip(lines[1:], seconds, strict=True):
            line.append(f"{own * 1e3:.1f} ms, {own / seconds[0]:.1f} x")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, recurrent kernels, rate 0.5.\n")
    print(table.as_text(lines))


if __name__ == "__main__":
    main()

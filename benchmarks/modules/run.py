"""What a training step of a module of torch costs beside torch's own and the raw operation, and what imports cost.

python benchmarks/modules/run.py                  writes results.md; some minutes, most of them torch.compile's
python benchmarks/modules/run.py --modes eager    without what is compiled, printed alone
python benchmarks/modules/run.py --sizes 4,8,8 --rounds 2 --imports 0    a try, printed alone

A step is a forward and a backward pass, to the input and the parameters. Steps of all variants are taken in turn, and
the least time of each counts, so that what else the machine does falls out. Imports are those of new processes, the
plain framework's and the modules' in turn.
"""

import argparse
import importlib.util
import itertools
import pathlib
import subprocess
import sys
import time

import torch

import pernodedrop as pnd
import pernodedrop.torch as pndt
from pernodedrop.report import table

PATH = pathlib.Path(__file__).parent / "results.md"
SIZES = ((32, 64, 64), (128, 1024, 1024))
"""Batch, inputs and outputs, small and large."""
MODES = ("eager", "compiled")
ROUNDS, SECONDS = 15, 0.04
RATE = 0.5
LIBRARIES = {"torch": "torch", "nnx": "flax.nnx", "equinox": "equinox"}


class RawOp(torch.nn.Linear):
    """What a user of `pernodedrop.ops` writes by hand."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.noise = pnd.Bernoulli(RATE)
        self.register_buffer("state", torch.tensor([1, 0], dtype=torch.int32))

    def forward(self, x):
        return pnd.ops.masked_dense(x, self.weight.T, self.noise, pnd.ops.draw(self.state)) + self.bias


def after(noise, n, m):
    """A plain module whose input has noise."""
    return torch.nn.Sequential(noise, torch.nn.Linear(n, m))


VARIANTS = {
    "torch.nn.Linear": torch.nn.Linear,
    "torch.nn.Dropout and Linear": lambda n, m: after(torch.nn.Dropout(RATE), n, m),
    "Dropout and torch.nn.Linear": lambda n, m: after(pndt.Dropout(RATE, seed=1), n, m),
    "Masksembles and torch.nn.Linear": lambda n, m: torch.nn.Sequential(
        pndt.Masksembles(n, seed=1), torch.nn.Linear(n, m)
    ),
    "DropConnectLinear": lambda n, m: pndt.DropConnectLinear(n, m, rate=RATE, seed=1),
    "DynamicDropConnectLinear": lambda n, m: pndt.DynamicDropConnectLinear(n, m, seed=1),
    "pernodedrop.ops.masked_dense": RawOp,
    "PerNodeLinear": lambda n, m: pndt.PerNodeLinear(n, m, rate=RATE, seed=1),
}


def step_of(make, size, compiled):
    """A function that makes a training step."""
    batch, inputs, outputs = size
    torch.manual_seed(0)
    module = make(inputs, outputs)
    x, toward = torch.randn(batch, inputs, requires_grad=True), torch.randn(batch, outputs)
    call = torch.compile(module, fullgraph=True) if compiled else module

    def step():
        module.zero_grad()
        x.grad = None
        call(x).backward(toward)

    step()
    return step


def seconds_of(steps, rounds, clock=time.perf_counter):
    """The least seconds of a step, for each of several that are timed in turn."""
    counts = []
    for step in steps:
        step()
        began = clock()
        step()
        counts.append(max(1, round(SECONDS / (clock() - began))))
    least = [float("inf")] * len(steps)
    for _ in range(rounds):
        for n, (step, count) in enumerate(zip(steps, counts, strict=True)):
            began = clock()
            for _ in range(count):
                step()
            least[n] = min(least[n], (clock() - began) / count)
    return least


def steps_table(sizes, modes, rounds):
    """The microseconds of each step, and the times that it takes that of Linear and that of the raw operation."""
    lines = [["training step"], *([name] for name in VARIANTS)]
    for size, mode in itertools.product(sizes, modes):
        batch, inputs, outputs = size
        lines[0].append(f"{batch} x {inputs} -> {outputs}, {mode}")
        torch.compiler.reset()
        seconds = seconds_of([step_of(make, size, mode == "compiled") for make in VARIANTS.values()], rounds)
        plain, raw = (seconds[[*VARIANTS].index(name)] for name in ("torch.nn.Linear", "pernodedrop.ops.masked_dense"))
        for line, own in zip(lines[1:], seconds, strict=True):
            line.append(f"{own * 1e6:.0f} us, {own / plain:.1f} x, {own / raw:.2f} of raw")
    return lines


IMPORT = """
import sys, time
began = time.perf_counter()
import {first}
middle, had = time.perf_counter(), len(sys.modules)
import {second}
frameworks = {{"keras", "torch", "jax", "tensorflow", "flax", "equinox", "scipy", "numba"}}
print(middle - began, time.perf_counter() - middle, had, len(sys.modules) - had, *sorted(frameworks & {{*sys.modules}}))
"""


def imports_table(rounds):
    """What importing modules adds to importing their framework."""
    lines = [["import", "framework, s", "modules, s", "files before", "files more", "packages"]]
    for folder, framework in LIBRARIES.items():
        if importlib.util.find_spec(framework.partition(".")[0]) is None:
            continue
        code = IMPORT.format(first=framework, second=f"pernodedrop.{folder}")
        runs = [subprocess.check_output([sys.executable, "-c", code], text=True).split() for _ in range(rounds)]
        first, second = (min(float(run[n]) for run in runs) for n in (0, 1))
        lines.append([f"pernodedrop.{folder}", f"{first:.2f}", f"{second:.2f}", *runs[0][2:4], ", ".join(runs[0][4:])])
    return lines


def main():
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = lambda text: tuple(map(int, text.split(",")))  # noqa: E731 - it is an argument
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="eager, compiled; both")
    parser.add_argument("--sizes", nargs="+", type=size, default=SIZES, help="batch,inputs,outputs, of each column")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which the least time counts")
    parser.add_argument("--imports", type=int, default=5, help="processes that import each library; 0 is no table")
    arguments = parser.parse_args()
    tables = [steps_table(arguments.sizes, arguments.modes, arguments.rounds)]
    tables += [imports_table(arguments.imports)] if arguments.imports else []
    print(*map(table.as_text, tables), sep="\n\n")
    if vars(arguments) == vars(parser.parse_args([])):
        versions = f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, rate {RATE}."
        text = "\n\n".join(["# What modules cost", versions, *map(table.as_markdown, tables)])
        PATH.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

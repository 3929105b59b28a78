"""False alarms of the noise contract: a thousand random right noises, each with a seed of its own, must all pass.

    python benchmarks/noise_contract/run.py             on every installed backend: hours, in results-all.txt
    cd benchmarks/noise_contract && python run.py --backends numpy --examples 5 --results results-numpy.txt

Run number n checks the n-th noise of a fixed list, most of which Hypothesis makes, with seed n, against the whole
contract; with `--seed` it is another list, and its seeds follow those of the lists before. The results file has a line
a run; runs that it has already are not repeated, so what was broken off goes on where it stopped. A run that refuses a
noise is written with the report. What was found: docs/contracts/noise.md.
"""

import argparse
import os
import pathlib
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "numpy")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # for the noises of the tests

import hypothesis
from tqdm import tqdm

import pernodedrop as pnd
from pernodedrop.report.environment import describe, environment, installed_backends
from tests.noises import OTHERS, right_noises


def list_of_noises(count, seed):
    """The first noises that Hypothesis makes, then some of every other kind: of one seed always the same."""
    noises = []

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate])
    @hypothesis.given(right_noises())
    def collect(noise):
        noises.append(noise)

    collect()
    return [*noises, *OTHERS]


def check(number, noise, backends, examples):
    """One run, as a line of the results."""
    started = time.perf_counter()
    try:
        report = pnd.testing.check_noise(noise, backends=backends, examples=examples, seed=number)
        verdict = f"{len(report.held)} claims hold"
    except pnd.testing.Refused as refused:
        verdict = f"REFUSED {refused.report}".replace("\n", " / ")
    return f"{number} | {noise!r} | {verdict} | {time.perf_counter() - started:.1f} s"


def main():
    """Run what the results lack."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000, help="how many random noises (default: 1000)")
    parser.add_argument("--backends", nargs="+", default=installed_backends(), help="default: all installed")
    parser.add_argument("--examples", type=int, default=3, help="examples for a claim and backend (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the list (default: 0)")
    parser.add_argument("--most", type=int, help="stop after so many runs")
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results-all.txt")
    args = parser.parse_args()
    if not args.results.exists():
        about = describe(environment())
        args.results.write_text(f"# {about}\n# on {', '.join(args.backends)}; {args.examples} examples for a claim\n")
    lines = [line for line in args.results.read_text().splitlines() if not line.startswith("#")]
    done = {int(line.partition(" |")[0]) for line in lines}
    noises = list_of_noises(args.count, args.seed)
    left = [row for row in enumerate(noises, args.seed * len(noises)) if row[0] not in done]
    try:
        for number, noise in tqdm(left[: args.most], unit="noise"):
            line = check(number, noise, args.backends, args.examples)
            with args.results.open("a") as results:
                results.write(line + "\n")
            lines.append(line)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
    refused = [line for line in lines if "| REFUSED" in line]
    print(*refused, f"{len(lines)} of {len(noises)} runs, {len(refused)} refused", sep="\n")
    return int(bool(refused))


if __name__ == "__main__":
    sys.exit(main())

"""What noise does where nobody stops in time: the validation loss of the last epoch, and of the best one.

python benchmarks/studies/last_epoch.py digits_hidden    prints a table of the confirmed runs of a study

Studies compare at the best epoch, which validation data choose. Here the same runs are taken as they ended. It is a
look at what was not planned to be compared: p is corrected by Holm for the variants of one table only.
"""

import argparse
import json
import os
import pathlib

os.environ.setdefault("KERAS_BACKEND", "jax")

from pernodedrop.report.table import as_markdown
from pernodedrop.study import statistics, variants

FOLDER = pathlib.Path(__file__).parent


def losses(study):
    """{variant: {seed: validation losses by epoch}} of the confirmed runs."""
    found = {}
    for line in (FOLDER / study / "records.jsonl").read_text(encoding="utf-8").splitlines():
        if (one := json.loads(line))["test"]:
            by_seed = found.setdefault(one["variant"], {})
            by_seed[one["seed"]] = [epoch["val_loss"] for epoch in one["epochs"]]
    return found


def table(study):
    """A row for each variant: its losses at the best and the last epoch, and the last one beside no regularizer's."""
    found = losses(study)
    last = {name: {seed: run[-1] for seed, run in runs.items()} for name, runs in found.items()}
    beside = {one.variant: one for one in statistics.compare(last, "none")}
    lines = [["variant", "best epoch", "last epoch", "last, beside no regularizer", "p"]]
    for name, runs in found.items():
        best = sum(min(run) for run in runs.values()) / len(runs)
        end = sum(last[name].values()) / len(runs)
        other = beside.get(name)
        difference = [f"{other.difference:+.4f}", f"{other.p_holm:.2g}"] if other else ["", ""]
        lines.append([variants.get(name).title, f"{best:.4f}", f"{end:.4f}", *difference])
    return as_markdown(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a folder beside this file")
    print(table(parser.parse_args().study))

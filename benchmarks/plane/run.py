"""The surfaces that the study `ddc_plane` has learnt, as a picture: `python benchmarks/plane/run.py`; a minute.

Each variant of the committed records is trained again at its confirmed rate, with the first seed that confirms, up to
its best epoch. The test loss has to be that of the record.
"""

import argparse
import json
import os
import pathlib

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from pernodedrop.report import figures
from pernodedrop.study import datasets, networks, plan, variants
from pernodedrop.study.datasets.plane import surface
from pernodedrop.study.epoch_end import Batches
from pernodedrop.study.slot import Slot

STUDY = pathlib.Path(__file__).parent.parent / "studies" / "ddc_plane"
PICTURE = STUDY / "figures" / "surfaces.png"
SIDE = 81


def learnt(record, data):
    """The model of a record."""
    seed, settings = record["seed"], record["settings"]
    keras.utils.set_random_seed(seed)
    slot = Slot(variants.get(record["variant"]), record["rate"] or 0.0, seed)
    model = networks.get("plane")(slot)
    model.compile(keras.optimizers.Adam(settings["learning_rate"]), networks.LOSSES["plane"])
    keras.utils.set_random_seed(seed)
    batches = Batches(*data[0], settings["batch_size"], seed)
    model.fit(batches, epochs=record["best_epoch"] + 1, verbose=0, shuffle=False)
    found = model.evaluate(*data[2], batch_size=1024, verbose=0)
    if not np.isclose(found, record["test"]["loss"], rtol=1e-2):
        raise RuntimeError(f"{record['variant']}: the test loss is {found}, and {record['test']['loss']} in the record")
    return model


def main():
    """Train and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=pathlib.Path, default=STUDY / "records.jsonl")
    parser.add_argument("--output", type=pathlib.Path, default=PICTURE)
    arguments = parser.parse_args()
    records = [json.loads(line) for line in arguments.records.read_text(encoding="utf-8").splitlines()]
    records = [record for record in records if (record["stage"], record["seed"]) == (plan.CONFIRM, plan.FRESH)]
    data = datasets.load("plane")
    line = np.linspace(-1, 1, SIDE, dtype="float32")
    points = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    panels = [("the surface, and what is seen", surface(points), None)]
    for record in records:
        rate = "" if record["rate"] is None else f" {record['rate']:g}"
        title = f"{variants.get(record['variant']).title}{rate}"
        panels.append((title, learnt(record, data).predict(points, batch_size=4096, verbose=0), record["test"]["loss"]))
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(figures.WIDTH, 3.9), layout="constrained")
        for axes, (title, height, loss) in zip(figure.subplots(2, 3).flat, panels, strict=True):
            look = {"extent": (-1, 1, -1, 1), "origin": "lower", "vmin": -1.3, "vmax": 1.3, "cmap": "RdBu"}
            axes.imshow(height.reshape(SIDE, SIDE), **look)
            if loss is None:
                axes.scatter(
                    *data[0][0].T, c=data[0][1][:, 0], s=9, lw=0.4, edgecolors="k", cmap="RdBu", vmin=-1.3, vmax=1.3
                )
            axes.set_title(title if loss is None else f"{title}\ntest loss {loss:.3f}", fontsize=8)
            axes.set(xticks=[], yticks=[])
        figures.save(figure, arguments.output)


if __name__ == "__main__":
    main()

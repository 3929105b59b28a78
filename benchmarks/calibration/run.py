"""Are the probabilities of regularized networks what they say, also on images unlike those of training?

A network learns all classes but two. It predicts test images of the classes that it knows, as they are and corrupted at
five strengths, and images of the two that it does not know: without noise, and as the mean of passes with noise (MC
Dropout, arXiv 1506.02142) or of the members of an ensemble. Each regularizer has, for either way to predict, the rate
with the least validation loss of that way, of two seeds; fresh seeds, with images and unknown classes of their own,
confirm. A line of records.jsonl is a trial; what has a line is not run again.

    python -m benchmarks.calibration.run mnist --data DIR    half an hour on one core
    python -m benchmarks.calibration.run cifar10 --data DIR --hours 2
    python -m benchmarks.calibration.page                    the page of what the records say
"""

import argparse
import collections.abc
import dataclasses
import functools
import io
import math
import os
import pathlib
import tempfile
import time

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from scipy import ndimage, special

from pernodedrop import uncertainty
from pernodedrop.report.environment import environment
from pernodedrop.study import datasets, networks, plan, variants
from pernodedrop.study.epoch_end import EVALUATION, Batches
from pernodedrop.study.slot import Slot
from pernodedrop.study.storage import Records
from pernodedrop.uncertainty import calibration, metrics
from pernodedrop.uncertainty.ensembles import DeepEnsemble, SnapshotEnsemble

FOLDER = pathlib.Path(__file__).parent
FORMAT = 1
PASSES = 30
MEMBERS = 5  # of an ensemble of models
CLASSES, UNSEEN = 10, 2
PLAIN, MEAN, SCALED = "plain", "passes", "temperature"

WAYS = {
    "none": (PLAIN, SCALED),
    "dropout": (PLAIN, MEAN),
    "gaussian_dropout": (PLAIN, MEAN),
    "drop_connect": (PLAIN, MEAN),
    "per_node_drop": (PLAIN, MEAN),
    "per_node_drop_gaussian": (PLAIN, MEAN),
    "per_node_drop_partial_gaussian": (PLAIN, MEAN),
    "per_node_drop_fixed": (PLAIN,),  # its noise is part of the network
    "dynamic_drop_connect": (PLAIN, MEAN),
    "masksembles": (MEAN,),  # of its members
    "deep": (MEAN,),
    "snapshots": (MEAN,),
}
"""How the models of each variant predict."""

WITHOUT_RATE = ("none", "deep", "snapshots")
"""What has no regularizer, and so no rate to select."""


def dense(slot, classes):
    """A Dense layer on the pixels, then a slot, as on text in arXiv 2512.12663."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            *slot(64, activation="relu"),
            keras.layers.Dense(classes),
        ]
    )


@dataclasses.dataclass(frozen=True)
class Task:
    """Data, a network, and what becomes of the test images.

    Args:
        network: (slot, classes) -> a model.
        corruptions: from the name of each to its five strengths.
        sizes: how many images train, validate and test, of all classes.
        corrupted: how many of the test images are corrupted.
        epochs, batch_size, learning_rate: of the training.
        rates: those to select from.
        seeds: how many confirm.
        resampled: whether each seed has images of its own, or only unknown classes and initial weights.
    """

    network: collections.abc.Callable[..., keras.Model]
    corruptions: dict[str, tuple[float, ...]]
    sizes: tuple[int, int, int]
    corrupted: int
    epochs: int
    batch_size: int
    learning_rate: float
    rates: tuple[float, ...]
    seeds: int
    resampled: bool


TASKS = {
    "mnist": Task(
        network=dense,
        corruptions={"rotated": (15, 30, 45, 60, 75), "noisy": (0.1, 0.2, 0.3, 0.4, 0.5)},
        sizes=(2500, 625, 1250),
        corrupted=250,
        epochs=15,
        batch_size=128,
        learning_rate=3e-3,
        rates=(0.1, 0.3, 0.5, 0.8),
        seeds=10,
        resampled=True,
    ),
    "cifar10": Task(
        network=lambda slot, classes: networks.get("cifar10")(slot, classes=classes),
        corruptions={"noisy": (0.04, 0.08, 0.12, 0.16, 0.2), "jpeg": (25, 18, 15, 10, 7)},
        sizes=(3072, 1000, 1250),
        corrupted=250,
        epochs=10,
        batch_size=64,
        learning_rate=1e-3,
        rates=(0.3, 0.5, 0.8),
        seeds=5,
        resampled=False,  # to decode the archive takes minutes
    ),
}


def rotated(x, degrees):
    """Images turned around their middle."""
    return np.clip(ndimage.rotate(x, degrees, axes=(2, 1), reshape=False, order=1), 0, 1)


def noisy(x, deviation):
    """Images with normal noise, the same for all networks."""
    return np.clip(x + deviation * np.random.default_rng(0).normal(size=x.shape), 0, 1).astype(x.dtype)


def jpeg(x, quality):
    """Images of three colours as JPEG has them."""
    from PIL import Image

    def compressed(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    images = (255 * x).round().astype("uint8")
    return np.stack([compressed(image) for image in images]).astype(x.dtype) / 255


CORRUPT = {"rotated": rotated, "noisy": noisy, "jpeg": jpeg}


def unseen(seed):
    """The classes that the network of a seed does not know: five seeds in a row leave each out once."""
    first = UNSEEN * (seed % (CLASSES // UNSEEN))
    return range(first, first + UNSEEN)


def strengths(task, corruption):
    """The names of the parts with a corruption, the weakest first."""
    return [f"{corruption} {number}" for number in range(1, len(task.corruptions[corruption]) + 1)]


@functools.lru_cache(maxsize=1)
def load(name, seed, folder=None):
    """Training data, and the parts to predict by name: (x, y), with labels of the known classes, or None."""
    task = TASKS[name]
    split = datasets.load(name, folder, sizes=task.sizes, seed=seed if task.resampled else 0)
    known = np.setdiff1d(np.arange(CLASSES), unseen(seed))

    def of_known(x, y):
        chosen = np.isin(y, known)
        return x[chosen], np.searchsorted(known, y[chosen]).astype("int32")

    training, validation, test = (of_known(*part) for part in split)
    parts = {"validation": validation, "clean": test}
    some = [array[: task.corrupted] for array in test]
    for corruption, amounts in task.corruptions.items():
        for part, amount in zip(strengths(task, corruption), amounts, strict=True):
            parts[part] = CORRUPT[corruption](some[0], amount), some[1]
    x, y = split[2]
    parts["unseen"] = x[~np.isin(y, known)], None
    return training, parts


def made(task, variant, rate, seed):
    """A network with a variant in its slot, to be trained."""
    model = task.network(Slot(variants.get(variant), rate or 0.0, seed), CLASSES - UNSEEN)
    model.layers[-1].activation = keras.activations.linear  # a softmax in float32 has zeros, whose likelihood is none
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(task.learning_rate), loss)
    return model


def trained(trial, training):
    """The models of a trial: one, or those of an ensemble."""
    task, variant, seed = TASKS[trial["study"]], trial["variant"], trial["seed"]
    regularizer = "none" if variant in WITHOUT_RATE else variant
    make = functools.partial(made, task, regularizer, trial["rate"], seed)
    batches = Batches(*training, task.batch_size, seed)
    fit = {"x": batches, "epochs": task.epochs, "shuffle": False, "verbose": 0}
    keras.utils.set_random_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        if variant == "deep":
            ensemble = DeepEnsemble(make, folder, MEMBERS, seed)
            ensemble.fit(**fit)
            return ensemble.models()
        model = make()
        keras.utils.set_random_seed(seed)
        if variant == "snapshots":  # the mean learning rate is that of all others
            ensemble = SnapshotEnsemble(folder, task.epochs // MEMBERS, 2 * task.learning_rate)
            model.fit(**fit, callbacks=[ensemble])
            return ensemble.models()
        model.fit(**fit)
    return [model]


def predicted(trial, models, x, way, labels):
    """Probabilities, and how much passes disagree: the mutual information in nats, or None.

    Labels are those of the validation images, with which x begins.
    """
    if way == MEAN:
        samples = PASSES if len(WAYS[trial["variant"]]) > 1 else None  # None: each member once
        found = uncertainty.predict(
            models, x, samples, batch_size=EVALUATION, seed=trial["seed"], from_logits=True, probabilities=True
        )
        return found.mean, found.mutual_information
    (model,) = models
    logits = model.predict(x, batch_size=EVALUATION, verbose=0)
    p = special.softmax(logits.astype("float64"), -1)
    return (calibration.temperature(labels, p[: len(labels)])(p) if way == SCALED else p), None


def entropy(p):
    """The entropy of each row of probabilities, in nats."""
    return special.entr(p).sum(-1)


def figures(parts, p, information):
    """What there is to say of predictions, by the name of the part."""
    found = {}
    scores = {"entropy": entropy(p), **({} if information is None else {"information": information})}
    ends = np.cumsum([len(x) for x, _ in parts.values()])
    rows = {name: slice(end - len(x), end) for (name, (x, _)), end in zip(parts.items(), ends, strict=True)}
    for name, (_, y) in parts.items():
        of = found[name] = {score: values[rows[name]].mean() for score, values in scores.items()}
        if y is not None:
            q = p[rows[name]]
            of["error"] = np.mean(q.argmax(-1) != y)
            of |= {"nll": metrics.nll(y, q), "brier": metrics.brier_score(y, q)}
            of["ece"] = metrics.calibration_error(y, q)
            if name in ("clean", *(f"{one} 3" for one in CORRUPT)):
                bars = metrics.reliability(y, q, bins=10)
                sums = [bars.samples, *(bars.samples * np.nan_to_num(share) for share in bars[3:])]
                of["bars"] = np.stack(sums)
        if name not in ("validation", "clean") and "clean" in parts:
            for score, values in scores.items():
                of[f"auroc_{score}"] = metrics.detection(values[rows["clean"]], values[rows[name]]).auroc
    return found


def rounded(value):
    """Plain values of six digits."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if np.ndim(value):
        return [rounded(one) for one in value]
    return float(f"{value:.6g}")


def measured(trial, folder=None):
    """Train and predict: the record of a trial, which is the same again but for its seconds."""
    training, parts = load(trial["study"], trial["seed"], folder)
    if trial["stage"] == plan.SELECT:
        parts = {"validation": parts["validation"]}
    x = np.concatenate([x for x, _ in parts.values()])
    began = time.process_time()
    models = trained(trial, training)
    seconds = {"training": time.process_time() - began}
    found = {}
    for way in WAYS[trial["variant"]]:
        began = time.process_time()
        p, information = predicted(trial, models, x, way, parts["validation"][1])
        seconds[way] = 1000 * (time.process_time() - began) / len(x)
        found[way] = figures(parts, p, information)
    about = {"environment": environment(keras.backend.backend()), "format": FORMAT}
    return {**trial, "found": rounded(found), "seconds": rounded(seconds), **about}


def design(name, seeds=None):
    """What a task compares, as a study has it."""
    task = TASKS[name]
    return plan.Design(
        study=name,
        variants={variant: True for variant in WAYS if variant not in WITHOUT_RATE},
        rates=task.rates,
        search={},
        settings={key: getattr(task, key) for key in ("sizes", "epochs", "batch_size", "learning_rate")},
        select_seeds=2,
        seeds=task.seeds if seeds is None else seeds,
        backend=keras.backend.backend(),
    )


def selected(of, records, way):
    """From each variant with a rate that predicts that way to the rate with the least validation loss.

    Raises:
        LookupError: a trial of the selection has no record.
    """
    having = {variant: True for variant in of.variants if way in WAYS[variant]}
    losses = [
        {**record, "epochs": [{"val_loss": record["found"][way]["validation"]["nll"]}]}
        for record in records
        if record["stage"] == plan.SELECT and way in record["found"]
    ]
    chosen = plan.selected(dataclasses.replace(of, variants=having), losses)
    return {variant: trial["rate"] for variant, trial in chosen.items()}


def planned(of, records):
    """All trials, seed by seed: first those that select, and where these have run those that confirm."""
    selecting = plan.plan(of, plan.SELECT)
    try:
        rates = [selected(of, records, way) for way in (PLAIN, MEAN)]
    except LookupError:
        return selecting
    confirming = [
        of.trial(plan.CONFIRM, variant, rate, seed)
        for seed in range(plan.FRESH, plan.FRESH + of.seeds)
        for variant in WAYS
        for rate in dict.fromkeys(chosen[variant] for chosen in rates if variant in chosen) or [None]
    ]
    return selecting + confirming


def run(name, folder=FOLDER, data=None, hours=math.inf, seeds=None):
    """Run what has no record yet; return whether that was all."""
    kept, of = Records(folder), design(name, seeds)
    until, last = time.monotonic() + 3600 * hours, 0.0
    while True:
        records = kept.read()
        done = {plan.key(record) for record in records}
        trials = planned(of, records)
        left = [trial for trial in trials if plan.key(trial) not in done]
        began = time.monotonic()
        if not left or began + last > until:
            return not left
        kept.add([measured(left[0], data)])
        last = time.monotonic() - began
        what = [str(left[0][key]) for key in ("stage", "variant", "rate", "seed")]
        print(f"{len(trials) - len(left) + 1} of {len(trials)}: {' '.join(what)}, {last:.1f} s", flush=True)


def main():
    """Run a task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", help="the folder of the archives; by default they are downloaded")
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER, help="where records.jsonl is, or goes")
    parser.add_argument("--hours", type=float, default=math.inf, help="after which no further trial begins")
    parser.add_argument("--seeds", type=int, help="how many fresh seeds confirm")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    run(arguments.task, arguments.folder, arguments.data, arguments.hours, arguments.seeds)


if __name__ == "__main__":
    main()

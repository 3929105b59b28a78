"""The demo: one small network on handwritten digits, trained with six regularizers and without.

Within a seed all variants start from equal weights and see equal batches; only the regularizer differs. Sizes and
learning rate were chosen by looking at no regularizer and Dropout alone.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
import statistics
import tempfile
import time
import typing

import keras
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import pernodedrop as pnd
from pernodedrop import checks
from pernodedrop.commands import doctor
from pernodedrop.report import figures
from pernodedrop.report.environment import describe, environment
from pernodedrop.report.results import free_path, output_folder
from pernodedrop.report.table import as_text

RATE = 0.5  # of every variant, the paper's choice
TRAINING_IMAGES = 300  # of 1797: few, so that regularization matters
BATCH_SIZE = 15
LEARNING_RATE = 5e-3  # at the start; it falls to zero on a cosine


class Variant(typing.NamedTuple):
    """A way to regularize a Dense layer: its title, and the layers that take the place of (dense, seed)."""

    title: str
    layers: typing.Callable[[keras.layers.Layer, int], list[keras.layers.Layer]]


VARIANTS = {
    "none": Variant("no regularizer", lambda dense, seed: [dense]),
    "dropout": Variant("Dropout", lambda dense, seed: [pnd.Dropout(RATE, seed=seed), dense]),
    "gaussian_dropout": Variant("GaussianDropout", lambda dense, seed: [pnd.GaussianDropout(RATE, seed=seed), dense]),
    "drop_connect": Variant("DropConnect", lambda dense, seed: [pnd.DropConnect(dense, RATE, seed=seed)]),
    "bernoulli": Variant("PerNodeDrop Bernoulli", lambda dense, seed: [pnd.PerNodeDrop(dense, RATE, seed=seed)]),
    "gaussian": Variant(
        "PerNodeDrop Gaussian", lambda dense, seed: [pnd.PerNodeDrop(dense, RATE, "gaussian", seed=seed)]
    ),
    "fixed": Variant(
        "PerNodeDrop fixed", lambda dense, seed: [pnd.PerNodeDrop(dense, RATE, regime="fixed", seed=seed)]
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to run.

    Args:
        seeds: how many runs of each variant, an int from 1.
        epochs: epochs of each run, an int from 1.
        variants: names of `VARIANTS`; None takes all.
        output: the folder that results go to, which is made; None is demo-results/<backend>.

    Raises:
        TypeError, ValueError: an argument that is not one of these.
    """

    seeds: int = 5
    epochs: int = 25
    variants: typing.Any = None
    output: typing.Any = None

    def __post_init__(self):
        checks.check_count(self.seeds, "seeds")
        checks.check_count(self.epochs, "epochs")
        names = [checks.check_choice(name, "variants", tuple(VARIANTS)) for name in self.variants or VARIANTS]
        object.__setattr__(self, "variants", tuple(name for name in VARIANTS if name in names))
        output = self.output or pathlib.Path("demo-results", keras.backend.backend())
        object.__setattr__(self, "output", output_folder(output))


def run(settings):
    """Check the masks, train all variants, print the table, and write the results and their picture.

    Ctrl-C keeps what has finished.

    Args:
        settings: a `Settings`.

    Returns:
        The exit code, 0.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once the runs that had finished are reported.
    """
    print(doctor.report(doctor.compare()), flush=True)
    digits = load()
    planned = list(itertools.product(range(settings.seeds), settings.variants))
    runs = []
    try:
        with compiled_once(), tqdm(total=len(planned) * settings.epochs, unit="epoch") as bar:
            for seed, variant in planned:
                runs.append(train(variant, seed, settings.epochs, digits, bar))
                check_equal_start(runs)
    finally:
        if runs:
            conclude(runs, len(planned), settings)
    return 0


def load():
    """The digits of scikit-learn as ((images, labels) to train on, (images, labels) to validate on)."""
    digits = load_digits()
    images = (digits.images[..., None] / 16).astype("float32")
    x, x_val, y, y_val = train_test_split(
        images, digits.target, train_size=TRAINING_IMAGES, stratify=digits.target, random_state=0
    )
    return (x, y), (x_val, y_val)


def network(variant, seed, epochs):
    """The network of all variants, which differ only in what stands before or around the first Dense layer."""
    keras.utils.set_random_seed(seed)
    dense = keras.layers.Dense(64, activation="relu")
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            *VARIANTS[variant].layers(dense, seed),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    step_size = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, epochs * TRAINING_IMAGES // BATCH_SIZE)
    model.compile(keras.optimizers.Adam(step_size), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


class Progress(keras.callbacks.Callback):
    """Times epochs, evaluates the training set as inference does, without noise, and moves the progress bar."""

    def __init__(self, title, train_set, bar):
        super().__init__()
        self.title, self.train_set, self.bar = title, train_set, bar
        self.seconds, self.train_loss = [], []

    def on_train_begin(self, logs=None):
        """Say what is trained."""
        self.bar.set_description(self.title)

    def on_epoch_begin(self, epoch, logs=None):
        """Note the time."""
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Take the time, then evaluate."""
        self.seconds.append(time.perf_counter() - self.began)
        self.model.reset_metrics()
        loss, _ = self.model.test_on_batch(*self.train_set)  # `evaluate` in one batch, and cheaper on TensorFlow
        self.train_loss.append(loss)
        self.bar.set_postfix_str(f"val loss {logs['val_loss']:.3f}")
        self.bar.update()


def train(variant, seed, epochs, digits, bar):
    """Train one variant from one seed.

    Args:
        variant: a name of `VARIANTS`.
        seed: int, of the weights, the batches and the masks.
        epochs: how many.
        digits: what `load` gives.
        bar: a tqdm bar, moved once an epoch.

    Returns:
        A dict of plain values: the figures of each epoch, and a digest of the initial weights.
    """
    train_set, validation_set = digits
    model = network(variant, seed, epochs)
    weights = b"".join(keras.ops.convert_to_numpy(weight).tobytes() for weight in model.trainable_variables)
    progress = Progress(f"{VARIANTS[variant].title}, seed {seed}", train_set, bar)
    keras.utils.set_random_seed(seed)  # the order of the batches does not depend on what the layers drew
    history = model.fit(
        *train_set,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        validation_data=validation_set,
        validation_batch_size=len(validation_set[0]),
        callbacks=[progress],
        verbose=0,
    ).history
    return {
        "variant": variant,
        "seed": seed,
        "initial_weights": hashlib.sha256(weights).hexdigest(),
        "train_loss": progress.train_loss,
        "val_loss": history["val_loss"],
        "val_accuracy": history["val_accuracy"],
        "seconds": progress.seconds,
    }


def check_equal_start(runs):
    """Raise unless the last run began with the weights that the others of its seed began with."""
    last = runs[-1]
    if any(run["seed"] == last["seed"] and run["initial_weights"] != last["initial_weights"] for run in runs):
        raise RuntimeError(f"{last['variant']}, seed {last['seed']}: the initial weights differ from other variants'")


@contextlib.contextmanager
def compiled_once():
    """On JAX, compile a variant for its first seed only: Keras makes new functions for every model."""
    if keras.backend.backend() != "jax":
        yield
        return
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    with tempfile.TemporaryDirectory() as folder:
        options = {
            "jax_compilation_cache_dir": folder,
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
        before = {name: getattr(jax.config, name) for name in options}
        reset_cache()
        for name, value in options.items():
            jax.config.update(name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            reset_cache()


def conclude(runs, planned, settings):
    """Print the table and write the files, for the runs that there are."""
    rows = summarize(runs)
    about = environment(keras.backend.backend())
    finished = f"{len(runs)} of {planned} runs, {settings.epochs} epochs each"
    print(f"\n{finished}\n\n{table(rows)}\n\n{NOTES}\n{describe(about)}", flush=True)
    path = free_path(settings.output, "demo", (".json", ".png"))
    results = {"environment": about, "settings": plain(settings), "planned": planned, "table": rows, "runs": runs}
    with path.open("x", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
    picture = path.with_suffix(".png")
    figures.save(draw(runs, rows, f"{finished}, {about['backend']} {about['framework']}"), picture)
    print(path, picture, sep="\n")


def plain(settings):
    """The settings as JSON has them, those that are constants here too."""
    constants = {"rate": RATE, "train_images": TRAINING_IMAGES, "batch": BATCH_SIZE, "learning_rate": LEARNING_RATE}
    return {**dataclasses.asdict(settings), "output": str(settings.output), **constants}


def summarize(runs):
    """One dict a variant: means over seeds of the final epoch's figures."""
    rows = []
    baseline = {run["seed"]: run["val_loss"][-1] for run in runs if run["variant"] == "none"}
    for variant in dict.fromkeys(run["variant"] for run in runs):
        own = [run for run in runs if run["variant"] == variant]
        val_loss = [run["val_loss"][-1] for run in own]
        beaten = [run["val_loss"][-1] < baseline[run["seed"]] for run in own if run["seed"] in baseline]
        train_loss = statistics.mean(run["train_loss"][-1] for run in own)
        seconds = [second for run in own for second in run["seconds"][1:]]  # the first epoch compiles
        rows.append(
            {
                "variant": variant,
                "rate": None if variant == "none" else RATE,
                "seeds": len(own),
                "val_loss": statistics.mean(val_loss),
                "val_loss_sd": statistics.stdev(val_loss) if len(own) > 1 else None,
                "beats_none": None if variant == "none" or not beaten else sum(beaten),
                "val_accuracy": statistics.mean(run["val_accuracy"][-1] for run in own),
                "train_loss": train_loss,
                "gap": statistics.mean(val_loss) - train_loss,
                "seconds_per_epoch": statistics.median(seconds) if seconds else None,
            }
        )
    return rows


NOTES = """\
Figures are those of the final epoch, means over the seeds; sd: standard deviation over the seeds.
Losses are evaluated without noise, as inference does; a fixed mask is part of its model and stays.
beats none: in how many seeds the validation loss is below that of no regularizer. gap: validation minus training loss.
s/epoch: median without the first epoch, validation included. Within a seed, all began with equal weights (checked)."""


def table(rows):
    """The rows as text, and the variants in order of their validation loss."""

    def cell(value, form):
        return "-" if value is None else format(value, form)

    lines = [["variant", "rate", "seeds", "val loss ± sd", "beats none", "val acc", "train loss", "gap", "s/epoch"]]
    for row in rows:
        lines.append(
            [
                VARIANTS[row["variant"]].title,
                cell(row["rate"], ".1f"),
                cell(row["seeds"], "d"),
                f"{row['val_loss']:.4f} ± {cell(row['val_loss_sd'], '.4f')}",
                cell(row["beats_none"], "d"),
                *(format(row[name], ".4f") for name in ("val_accuracy", "train_loss", "gap")),
                cell(row["seconds_per_epoch"], ".3f"),
            ]
        )
    ranked = sorted(rows, key=lambda row: row["val_loss"])
    order = " < ".join(VARIANTS[row["variant"]].title for row in ranked)
    return f"{as_text(lines)}\n\nValidation loss: {order}"


def draw(runs, rows, title):
    """The picture: a panel a variant with its losses by epoch, and one panel that compares the final ones."""
    columns = min(4, len(rows) + 1)
    lines = -(-(len(rows) + 1) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.2 * lines + 1), layout="constrained")
    figure.suptitle(f"Handwritten digits, {TRAINING_IMAGES} to train on. {title}")
    cells = list(figure.subplots(lines, columns, squeeze=False).flat)
    panels, comparison = cells[: len(rows)], cells[len(rows)]
    for axes in cells[len(rows) + 1 :]:
        axes.remove()
    for axes, row in zip(panels, rows, strict=True):
        draw_curves(axes, runs, row["variant"])
        axes.sharey(panels[0])
    draw_comparison(comparison, rows)
    figures.legend(figure, panels[-1])
    return figure


def draw_curves(axes, runs, variant):
    """Validation and training loss of one variant by epoch: the mean, and the range over seeds as a band."""
    axes.set(title=VARIANTS[variant].title, xlabel="epoch", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    for name, label, color, style in (
        ("val_loss", "validation loss, mean and range over seeds", figures.BLUE, "-"),
        ("train_loss", "training loss (without noise)", figures.ORANGE, "--"),
    ):
        losses = np.array([run[name] for run in runs if run["variant"] == variant])
        epochs = np.arange(1, losses.shape[1] + 1)
        axes.plot(epochs, losses.mean(0), style, color=color, label=label)
        axes.fill_between(epochs, losses.min(0), losses.max(0), color=color, alpha=0.2, linewidth=0)
    if variant != "none" and any(run["variant"] == "none" for run in runs):
        baseline = np.mean([run["val_loss"] for run in runs if run["variant"] == "none"], 0)
        axes.plot(epochs, baseline, ":", color=figures.BLACK, label="validation loss, no regularizer")


def draw_comparison(axes, rows):
    """The final validation loss of every variant, with its standard deviation over seeds."""
    titles = [VARIANTS[row["variant"]].title for row in rows]
    spread = [row["val_loss_sd"] or 0 for row in rows]
    axes.errorbar([row["val_loss"] for row in rows], titles, xerr=spread, fmt="o", color=figures.BLUE, capsize=3)
    axes.set(title="final validation loss ± sd", ylim=(len(rows) - 0.5, -0.5))
    axes.yaxis.tick_right()

"""The paper's CIFAR-10 network in stock `model.fit`, by how its first Dense layer is regularized (arXiv 2512.12663).

Images and labels are random: only the time of a step is looked at.
"""

import time

import keras
import numpy as np

import pernodedrop as pnd
from pernodedrop.commands.bench import matrix
from pernodedrop.commands.bench.timing import spread
from pernodedrop.study import networks

SEED = 1
LAYERS = {
    "none": lambda dense: [dense],
    "dropout": lambda dense: [keras.layers.Dropout(matrix.RATE, seed=SEED), dense],
    "gaussian": lambda dense: [pnd.PerNodeDrop(dense, matrix.RATE, "gaussian", seed=SEED)],
    "fixed": lambda dense: [pnd.PerNodeDrop(dense, matrix.RATE, regime="fixed", seed=SEED)],
    "bernoulli": lambda dense: [pnd.PerNodeDrop(dense, matrix.RATE, seed=SEED)],
    "bernoulli_materialized": lambda dense: [
        pnd.PerNodeDrop(dense, matrix.RATE, method="materialized", seed=SEED),
    ],
}
"""What takes the place of the Dense layer."""


def network(variant):
    """The compiled model of a variant, which stands in the slot of the study's network."""
    model = networks.get("cifar10")(
        lambda width, activation: LAYERS[variant](keras.layers.Dense(width, activation=activation))
    )
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    return model


class Steps(keras.callbacks.Callback):
    """Notes how long each step took from the end of the one before it, the first of an epoch left out."""

    def __init__(self, clock=time.perf_counter):
        super().__init__()
        self.clock, self.seconds = clock, []

    def on_train_batch_end(self, batch, logs=None):
        """Wait for the step, whose loss is done when the step is."""
        float(logs["loss"])
        now = self.clock()
        if batch:
            self.seconds.append(now - self.before)
        self.before = now


def measure(variants, epochs, step_count, batch, progress, make=None):
    """Train variants in turn, epoch by epoch; the first one is not counted.

    Args:
        variants: names of `LAYERS`.
        epochs: how many are counted.
        step_count: steps of an epoch.
        batch: images of a step.
        progress: is called with a text before every epoch.
        make: gives the compiled model of a variant, for images (32, 32, 3) of 10 classes; None is `network`.

    Returns:
        A list with a dict of plain values for each variant.
    """
    rng = np.random.default_rng(0)
    images = rng.random((step_count * batch, 32, 32, 3), "float32")
    labels = rng.integers(10, size=len(images))
    models = {variant: (make or network)(variant) for variant in variants}
    clocks = {variant: Steps() for variant in variants}
    for epoch in range(epochs + 1):
        for variant, model in models.items():
            progress(f"CIFAR-10 network, {variant} {epoch}/{epochs}")
            clock = clocks[variant] if epoch else Steps()
            model.fit(images, labels, batch_size=batch, epochs=1, shuffle=False, callbacks=[clock], verbose=0)
    times = {variant: spread(clock.seconds) for variant, clock in clocks.items()}
    beside = {matrix.BASELINE: times[matrix.BASELINE]["seconds"]}
    return [{"variant": variant, "batch": batch, **figures, "beside": beside} for variant, figures in times.items()]

"""Saved models of every regularizer, regime and schedule, as this and every later version has to load them.

`python -m tests.zoo` writes the files that are not there yet, and what the models give next. None is written anew: a
file that no longer loads, or gives something else, is a fault of the library, or a new format beside the old ones.
"""

import json
import os
import pathlib

if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "numpy"

import keras
import numpy as np

import pernodedrop as pnd
from tests.family import FAMILY, SERIES, Case, between, host, wrap

FOLDER = pathlib.Path(__file__).parent / "zoo"
ANSWERS = FOLDER / "answers.json"
RATES = {
    "annealed": pnd.schedules.Annealed(0.5, steps=4),
    "constant": pnd.schedules.Constant(0.25),
    "curriculum": pnd.schedules.Curriculum(0.5, steps=20),
    "exponential": pnd.schedules.Exponential(0.5, steps=20),
    "linear": pnd.schedules.Linear(0.1, 0.5, steps=4, begin=1),
    "step": pnd.schedules.Step([0.1, 0.5], [2]),
}
ANIMALS = {
    **FAMILY,
    **{f"schedule_{name}": Case(between(pnd.Dropout, rate)) for name, rate in RATES.items()},
    "schedule_gaussian": Case(wrap(pnd.PerNodeDrop, rate=RATES["linear"], noise="gaussian")),
    "per_node_drop_uniform": Case(wrap(pnd.PerNodeDrop, noise=pnd.Uniform(half_width=0.5))),
    "per_node_drop_stddev": Case(wrap(pnd.PerNodeDrop, noise=pnd.Gaussian(stddev=0.3))),
    "per_node_drop_gaussian_fixed": Case(wrap(pnd.PerNodeDrop, noise="gaussian", regime="fixed")),
    "per_node_drop_persistent": Case(
        wrap(pnd.PerNodeDrop, persistence=pnd.schedules.Linear(0.2, 0.9, steps=4)), shape=SERIES
    ),
    "per_node_drop_gaussian_bank": Case(wrap(pnd.PerNodeDrop, noise="gaussian", regime="bank", bank_size=2)),
}


def path_of(name):
    """The file of an animal."""
    return FOLDER / f"{name}.keras"


def given(case):
    """The input of a model, float32 (4, *shape).

    It is computed in float64: powers and sines of float32 differ between CPUs, and the sines are of large numbers.
    """
    numbers = 1 + (np.arange(4 * np.prod(case.shape)) ** np.float64(np.float32(1.3))).astype("float32")
    return np.sin(numbers, dtype="float64").astype("float32").reshape(4, *case.shape)


def model_of(case):
    """A layer with known weights that has been called twice."""
    x = keras.Input(case.shape)
    model = keras.Model(x, case.make()(case.takes(x)))
    random = np.random.default_rng(5)
    for variable in model.trainable_variables:
        variable.assign(random.normal(size=variable.shape) / 2)
    for _ in range(2):
        model(given(case), training=True)
    return model


def next_outputs(case, model):
    """What a model gives in two training calls and then at inference, as rows of numbers."""
    return [host(model(given(case), training=training)).reshape(4, -1) for training in (True, True, False)]


def main():
    """Write what is not there yet."""
    FOLDER.mkdir(exist_ok=True)
    answers = json.loads(ANSWERS.read_text()) if ANSWERS.exists() else {}
    for name, case in ANIMALS.items():
        if not path_of(name).exists():
            model = model_of(case)
            model.save(path_of(name))
            answers[name] = [np.round(y, 5).tolist() for y in next_outputs(case, model)]
    ANSWERS.write_text("{\n" + ",\n".join(f"{json.dumps(n)}: {json.dumps(a)}" for n, a in answers.items()) + "\n}\n")


if __name__ == "__main__":
    main()

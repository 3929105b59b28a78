"""A study that takes seconds."""

import keras
import numpy as np

import pernodedrop as pnd


def data(samples=60):
    x = np.random.default_rng(0).normal(size=(samples, 4)).astype("float32")
    return x, (x[:, 0] > 0).astype("int32")


def model(slot):
    return keras.Sequential([keras.Input((4,)), *slot(6, activation="relu"), keras.layers.Dense(2)])


def small(folder, **changes):
    """Two trials that select, four that confirm."""
    settings = {"select_seeds": 1, "seeds": 2, "epochs": 2, "batch_size": 18, "folder": folder, **changes}
    return pnd.study.Study(
        settings.pop("name", "small"),
        settings.pop("data", data()),
        settings.pop("model", model),
        settings.pop("variants", ["none", "per_node_drop"]),
        settings.pop("rates", [0.5]),
        **settings,
    )

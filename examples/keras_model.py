# any backend
"""
A Keras model, from the first line to *did it help*
===================================================

The whole way on one page: noise in a model, a first rate, training, a better rate,
whether it helped, what it cost, a saved file, and predictions that say how sure they
are. Copy it, and put your data and your network in.

``pip install "pernodedrop[jax,fast,study]"``, or ``torch`` or ``tensorflow`` for JAX.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"  # or "torch", or "tensorflow"

import pathlib
import tempfile
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
import pernodedrop as pnd
import sklearn.datasets
from pernodedrop import uncertainty

EPOCHS = 5  # 40: until the losses are flat
SEEDS = 3  # 10: fresh ones, that confirm
FOLDER = pathlib.Path(tempfile.mkdtemp())  # one of yours, to keep what is saved

# %%
# The data comes with scikit-learn: digits of 8 x 8 pixels. It has three parts: one to
# train, one to choose by, and one to test, by which nothing is chosen.

x, y = sklearn.datasets.load_digits(return_X_y=True)
x = (x / 16).reshape(-1, 8, 8, 1).astype("float32")
order = np.random.default_rng(0).permutation(len(x))
train, val, test = ((x[rows], y[rows]) for rows in np.split(order[:1200], [300, 700]))

# %%
# Put noise in
# ------------
#
# Convolutions overfit little; most weights are in the Dense layer behind them. There
# `PerNodeDrop` gives every connection noise of its own, for every image. It wraps the
# layer, which keeps its weights and its activation. It wraps convolutions as well.
#
# Where the Dense layer would stand, the network calls its ``slot``, which returns a
# list of layers. So the same function makes the network with this noise, with another
# one or with none.
#
# Is the model there already? ``pnd.apply(model, "all-linear", rate=0.1)`` gives a copy
# with noise, to be compiled: the guide "Put noise in, take it out". A study takes such
# a model without a slot: "A model that you have", in the guide "Does it help?".


def network(slot):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Flatten(),
            *slot(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    return model


def noisy(units, activation):
    dense = keras.layers.Dense(units, activation=activation)
    return [pnd.PerNodeDrop(dense, rate=0.5, seed=1)]


# %%
# Train
# -----
#
# Start with a rate of 0.1 in a small dense network (about 10,000 weights) or a
# transformer, 0.3 in a large one (millions), 0.5 in the Dense layer behind
# convolutions, as here. Train until the losses are flat: noise slows training, so too
# few epochs choose too low a rate. Keras shows the training loss *with* the noise and
# the validation loss without it, so the first is often the higher one.

keras.utils.set_random_seed(0)
model = network(noisy)
fit = dict(epochs=EPOCHS, batch_size=30, validation_data=val, verbose=0)
history = model.fit(*train, **fit).history
print(f"validation loss {history['val_loss'][-1]:.3f}")

# %%
# Did it help, and at which rate?
# -------------------------------
#
# One training says nothing: another seed gives another order. A study tries the rates
# with a few seeds, keeps the best of each variant by its validation loss, trains that
# anew with fresh seeds, and compares on the test data. Within a seed all variants start
# with the same weights and see the same batches.

study = pnd.study.Study(
    "digits-hour",
    (train, val, test),
    network,
    variants=["none", "dropout", "per_node_drop"],
    rates=[0.25, 0.5],  # and 0.75, where there is time
    select_seeds=1,  # 2
    seeds=SEEDS,
    epochs=EPOCHS,
    batch_size=30,
    folder=FOLDER / "study",
)
study.run(progress=False)
print(study.verdict())

# %%
# The first line is the answer. A *tie* means that what difference there is could be
# chance; *detectable* is the least difference that so many seeds would find. With
# three seeds and short trainings little can be found, and the verdict says so: make
# the numbers at the top larger. ``study.report()`` writes a page with all tables and
# figures. ``study.run()`` goes on where it ended, and with more seeds it only adds.

records = [one for one in study.records() if one["test"]]
rates = {one["variant"]: one["rate"] for one in study.plan("confirm")}
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for name, rate in rates.items():  # a folder of yours may have tests of others, too
    runs = [one for one in records if (one["variant"], one["rate"]) == (name, rate)]
    losses = [one["test"]["loss"] for one in runs]
    label = name if rate is None else f"{name}, rate {rate}"
    axes.plot([one["seed"] - 1000 for one in runs], losses, "o", label=label)
axes.set(xlabel="seed", ylabel="test loss", xticks=range(SEEDS))
axes.legend()
figure

# %%
# What did it cost?
# -----------------
#
# The quickest step of each, after a few to warm up. Variants take turns, so that their
# times compare; the seconds of the study above have what else ran in them.


def regularized(name):
    def slot(units, activation):
        dense = keras.layers.Dense(units, activation=activation)
        return pnd.study.variants.get(name).function(dense, rates[name], 0)

    return network(slot)


models = {name: regularized(name) for name in rates}
seconds = {name: [] for name in models}
for turn in range(50):
    for name, one in models.items():
        start = time.perf_counter()
        one.train_on_batch(train[0][:30], train[1][:30])
        if turn >= 5:
            seconds[name].append(time.perf_counter() - start)

for name, times in seconds.items():
    ratio = min(times) / min(seconds["none"])
    print(f"{name:13} {ratio:.2f} x the time, {1e3 * min(times):.2f} ms a step")

# %%
# Save, load, go on
# -----------------
#
# A ``.keras`` file has the noise, its rate and its place in the sequence of masks, and
# the optimizer. On the same batches what was loaded makes the steps that the first
# model would have made, to the bit. But ``fit`` shuffles the data unless told
# otherwise, in an order that no file has: the page "Reproducibility" has the lines that
# keep it. A script that only loads the file has to ``import pernodedrop.layers``.

model.save(FOLDER / "model.keras")
loaded = keras.saving.load_model(FOLDER / "model.keras")
for one in (model, loaded):
    one.fit(*train, batch_size=30, shuffle=False, verbose=0)
same = [keras.ops.convert_to_numpy(one(test[0])) for one in (model, loaded)]
assert np.array_equal(*same)

# %%
# How sure is it?
# ---------------
#
# ``predict`` has no noise; ``uncertainty.predict`` leaves it on for many passes, and
# says where they disagree. Of its figures all but the accuracy are better if they are
# lower; aurc and augrc are low where errors are among the uncertain predictions.

found = uncertainty.predict(loaded, test[0], samples=20, seed=1)
print(found.report(test[1]))

# %%
# For deployment ``fold`` gives a model of plain Keras layers that computes the same.

plain = pnd.fold(loaded)
print([type(layer).__name__ for layer in plain.layers])
same = [keras.ops.convert_to_numpy(one(test[0])) for one in (plain, loaded)]
assert np.allclose(*same)

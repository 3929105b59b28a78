# flax
"""
A Flax NNX model, from the first line to *did it help*
======================================================

The whole way on one page: one line that puts noise into a model that you have, a rate,
whether it helped, what it cost, a checkpoint, and predictions that say how sure they
are. Keras is not needed.

``pip install "pernodedrop[flax,fast,study]" optax orbax-checkpoint``
"""

import pathlib
import tempfile
import time

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import orbax.checkpoint
import pernodedrop as pnd
import pernodedrop.nnx as pndx
import sklearn.datasets
from flax import nnx

EPOCHS = 8  # 60: until the losses are flat
SEEDS = 3  # 10: fresh ones, that confirm

# %%
# The data comes with scikit-learn: digits of 8 x 8 pixels. It has three parts: one to
# train, one to choose by, and one to test, by which nothing is chosen.

x, y = sklearn.datasets.load_digits(return_X_y=True)
x, order = (x / 16).astype("float32"), np.random.default_rng(0).permutation(len(x))
train, val, test = ((x[rows], y[rows]) for rows in np.split(order[:1200], [300, 700]))

# %%
# Model and loop, as you have them
# --------------------------------
#
# A seed sets the weights and the order of the batches. The loop returns the validation
# loss of the best epoch, and the test loss of that same epoch.


class Network(nnx.Module):
    def __init__(self, seed, dropout=0.0):
        rngs = nnx.Rngs(seed)
        self.first = nnx.Linear(64, 64, rngs=rngs)
        self.second = nnx.Linear(64, 64, rngs=rngs)
        self.out = nnx.Linear(64, 10, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x):
        h = self.dropout(nnx.relu(self.first(x)))
        h = self.dropout(nnx.relu(self.second(h)))
        return self.out(h)


def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


@nnx.jit
def step(model, optimizer, x, y):
    value, gradients = nnx.value_and_grad(loss)(model, x, y)
    optimizer.update(model, gradients)
    return value


evaluate = nnx.jit(loss)


adam = optax.adam(3e-3)  # once: a new one would compile the step anew


def begin(model):
    return model, nnx.Optimizer(model, adam, wrt=nnx.Param)


def train_epoch(model, optimizer, seed, epoch):
    model.train()
    order = np.random.default_rng([seed, epoch]).permutation(len(train[0]))
    for batch in np.split(order, len(order) // 30):
        step(model, optimizer, train[0][batch], train[1][batch])


def fit(model, seed):
    model, optimizer = begin(model)
    losses = []
    for epoch in range(EPOCHS):
        train_epoch(model, optimizer, seed, epoch)
        model.eval()
        losses.append([float(evaluate(model, *part)) for part in (val, test)])
    return min(losses)


# %%
# The line that puts noise in
# ---------------------------
#
# ``apply`` gives a model with noise in the modules that it is told, which has the very
# variables of the plain one. Here: in all linear modules but the last, which is the
# attribute "out". After ``eval()`` the model is the plain one.


def noisy(seed, rate):
    model = Network(seed)
    return pndx.apply(model, "all-linear", rate=rate, exclude="out", seed=seed)


# %%
# Which rate?
# -----------
#
# Start with a rate of 0.1 in a small dense network (about 10,000 weights) or a
# transformer, 0.3 in a large one (millions), 0.5 in the Dense layer behind
# convolutions; then try a lower and a higher one: 0.05 and 0.2, 0.15 and 0.5, 0.25 and
# 0.75. A few seeds choose, by the validation loss, when training has ended: noise slows
# it, so too few epochs, as here, choose too low a rate. Dropout has the same choice: to
# beat it at a bad rate proves nothing. If the best rate is the first or the last,
# lengthen the list on that side.

RATES = [0.05, 0.1, 0.2]


def chosen(make):
    """The rate with the least validation loss."""

    def validation(rate):
        return sum(fit(make(seed, rate), seed)[0] for seed in range(2))

    return min(RATES, key=validation)


rate, dropout = chosen(noisy), chosen(Network)

# %%
# Did it help?
# ------------
#
# Fresh seeds, and data that nothing was chosen by. ``compare`` says for each pair
# whether the difference is beyond chance.

variants = {
    "no noise": lambda seed: Network(seed),
    f"Dropout {dropout}": lambda seed: Network(seed, dropout),
    f"PerNodeDrop {rate}": lambda seed: noisy(seed, rate),
}
seeds = range(1000, 1000 + SEEDS)
losses = {
    name: [fit(make(seed), seed)[1] for seed in seeds]
    for name, make in variants.items()
}

for baseline in list(losses)[:2]:
    for found in pnd.study.compare(losses, baseline):
        print(found)

# %%
# "less" is a lower loss, beyond chance, and "more" a higher one. "tie" means that what
# difference there is could be chance. The verdict goes by p, which counts how many are
# compared (Holm's correction); the interval is that of one comparison by itself.
# "detectable" is the least difference that so many seeds would find: with three it is
# large, and so a tie says little. Make the numbers at the top larger. In our studies of
# these images no noise has won in a dense network of this size, not even after 80
# epochs. The page "Results" says where noise has helped.
#
# The two noises are at different places. PerNodeDrop is on the connections of
# ``first`` and ``second``, and so on the pixels' too. Dropout is behind these modules,
# on what goes into ``second`` and ``out``.

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for name, values in losses.items():
    axes.plot(values, "o", label=name)
axes.set(xlabel="seed", ylabel="test loss", xticks=range(SEEDS))
axes.legend()
figure

# %%
# What did it cost?
# -----------------
#
# The quickest step of each, after steps that compile it. JAX returns before a step is
# done: wait for what it gives. Variants take turns, so that their times compare. In a
# network as small as this, much of a step is overhead.

runs = {name: begin(make(0)) for name, make in variants.items()}
seconds = {name: [] for name in variants}
for turn in range(50):
    for name, run in runs.items():
        start = time.perf_counter()
        jax.block_until_ready(step(*run, train[0][:30], train[1][:30]))
        if turn >= 5:
            seconds[name].append(time.perf_counter() - start)

for name, times in seconds.items():
    ratio = min(times) / min(seconds["no noise"])
    print(f"{name:16} {ratio:.2f} x the time, {1e3 * min(times):.2f} ms a step")

# %%
# Save, load, go on
# -----------------
#
# The state of model and optimizer has the noise's rate and its place in the sequence
# of masks, beside the parameters. What was loaded goes on with the steps that the first
# run would have made, to the bit.

run = begin(noisy(seed=0, rate=rate))
for epoch in range(EPOCHS):
    train_epoch(*run, seed=0, epoch=epoch)
folder = pathlib.Path(tempfile.mkdtemp()) / "run"
with orbax.checkpoint.StandardCheckpointer() as saver:
    saver.save(folder, nnx.state(run))

again = begin(noisy(seed=1, rate=rate))
with orbax.checkpoint.StandardCheckpointer() as saver:
    nnx.update(again, saver.restore(folder, nnx.state(again)))
for one in (run, again):
    train_epoch(*one, seed=0, epoch=EPOCHS)
    one[0].eval()
model, loaded = run[0], again[0]
assert np.array_equal(loaded(test[0]), model(test[0]))

# %%
# How sure is it?
# ---------------
#
# ``predict`` makes many passes with the noise on, and says where they disagree. Of the
# figures all but the accuracy are better if they are lower; aurc and augrc are low
# where errors are among the uncertain predictions.

samples = dict(samples=20, seed=1, from_logits=True)
found = pndx.uncertainty.predict(loaded, test[0], **samples)
print(found.report(test[1]))

# %%
# For deployment ``fold`` gives a copy of plain modules that computes the same.

assert np.allclose(pndx.fold(loaded)(test[0]), loaded(test[0]))

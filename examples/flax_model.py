# flax
"""
Noise in a Flax NNX model, in one line
======================================

A model that you already have, its training step, and one line that puts noise into it.
Keras is not needed.
"""

import matplotlib.pyplot as plt
import numpy as np
import optax
import pernodedrop.nnx as pndx
import sklearn.datasets
from flax import nnx

EPOCHS = 15  # 60
RATE = 0.2  # try half and double: small networks want less noise than large ones

x, y = sklearn.datasets.load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(x))
x, y = (x[order] / 16).astype("float32"), y[order]
x, y, x_val, y_val = x[:300], y[:300], x[300:], y[300:]

# %%
# Model and step, as they were
# ----------------------------


def network():
    rngs = nnx.Rngs(0)
    first, second, last = (nnx.Linear(64, out, rngs=rngs) for out in (64, 64, 10))
    return nnx.Sequential(first, nnx.relu, second, nnx.relu, last)


def loss(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


@nnx.jit
def step(model, optimizer, x, y):
    optimizer.update(model, nnx.grad(loss)(model, x, y))


evaluate = nnx.jit(loss)


def train(model):
    optimizer, losses = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param), []
    for epoch in range(EPOCHS):
        model.train()
        order = np.random.default_rng(epoch).permutation(len(x))
        for batch in np.split(order, len(x) // 30):
            step(model, optimizer, x[batch], y[batch])
        model.eval()
        losses.append(float(evaluate(model, x_val, y_val)))
    return losses


# %%
# The line
# --------
#
# ``apply`` gives a model with noise in the modules that it is told, which has the very
# variables of the plain one. Here: in all linear modules but the last, whose name is
# "4".

noisy = pndx.apply(network(), "all-linear", rate=RATE, exclude="4", seed=1)

curves = {"without noise": train(network()), "with noise": train(noisy)}
for name, losses in curves.items():
    print(f"{name}: loss {losses[-1]:.3f} on other images")

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, losses in curves.items():
    axes.plot(range(1, EPOCHS + 1), losses, label=name)
axes.set(xlabel="epoch", ylabel="loss on other images", yscale="log")
axes.legend()
figure

# %%
# With noise a model learns more slowly, and one training of each says nothing yet about
# which is better: ``pernodedrop.study.compare`` takes the losses of several seeds, and
# says whether they differ beyond chance. In a dense network as small as this no noise
# has helped on these images, but it has in a small ResNet: the page "Results".
#
# And then
# --------
#
# ``predict`` makes many passes with the noise on, which tell what the model is sure of.
# ``fold`` gives a copy of plain modules for deployment.

found = pndx.uncertainty.predict(noisy, x_val, samples=20, seed=1, from_logits=True)
agreed = found.variation_ratio == 0
wrong = found.mean.argmax(-1) != y_val
print(f"all 20 passes agree on {agreed.mean():.0%} of the images")
print(f"wrong among these: {wrong[agreed].mean():.1%}")
print(f"wrong among others: {wrong[~agreed].mean():.1%}")

assert np.allclose(pndx.fold(noisy)(x_val), noisy(x_val))

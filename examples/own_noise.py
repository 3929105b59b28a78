# any backend
"""
A noise of your own, from the idea to its check
===============================================

The idea: multipliers that are never zero and never negative, so that no connection is
cut and none changes its sign. A number whose logarithm is normal is like that, the
log-normal distribution.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"  # or "torch", or "tensorflow"

import tempfile

import keras
import matplotlib.pyplot as plt
import numpy as np
import pernodedrop as pnd
import sklearn.datasets

EPOCHS = 10
BACKENDS = ["numpy"]  # None: all that are installed, which takes about a minute

# %%
# The first try
# -------------
#
# A noise is a function from a uniform number to an entry, and the variance that it
# declares. ``erfinv`` makes a normal number of a uniform one.


class FirstTry(pnd.Noise):
    """Multiplies by exp(z), z ~ N(0, spread**2)."""

    spread: float

    @property
    def variance(self):
        return float(np.expm1(self.spread**2) * np.exp(self.spread**2))

    def from_uniform(self, u, params, xp):
        z = 2**0.5 * xp.erfinv(2 * u - 1)
        return xp.exp(params["spread"] * z)


# %%
# ``check_noise`` tries to refute what the class declares, claim by claim, by
# integration over all uniform numbers and by statistics. It finds the mistake: the mean
# of exp(z) is not 1 but exp(spread² / 2), so that the layer would make its outputs
# larger.

try:
    pnd.testing.check_noise(FirstTry(0.5), backends=BACKENDS)
except pnd.testing.Refused as refused:
    print(refused)

# %%
# The second
# ----------
#
# Divided by its mean it is right. A wide spread would have most of its variance in a
# tail that no uniform number reaches, so such numbers are refused.


class LogNormal(pnd.Noise):
    """Multiplies by exp(z - spread**2 / 2), z ~ N(0, spread**2), which has mean 1."""

    spread: float

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.spread <= 1:
            raise ValueError(
                f"spread: expected a float in [0, 1]. Received: {self.spread}"
            )

    @property
    def variance(self):
        return float(np.expm1(self.spread**2))

    def from_uniform(self, u, params, xp):
        spread = params["spread"]
        z = 2**0.5 * xp.erfinv(2 * u - 1)
        return xp.exp(spread * z - spread**2 / 2)


print(pnd.testing.check_noise(LogNormal(0.5), backends=BACKENDS))

# %%
# The command line does the same for a noise in a module of yours: ``pernodedrop check
# my_module:LogNormal``.
#
# What it looks like
# ------------------

noises = {
    "LogNormal(0.5)": LogNormal(0.5),
    "Gaussian(stddev=0.5)": pnd.Gaussian(stddev=0.5),
}
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for name, noise in noises.items():
    mask = pnd.ops.sample_mask(noise, key=(1, 0), shape=(100, 30, 30), backend="numpy")
    axes.hist(mask.ravel(), np.linspace(-1, 4, 100), histtype="step", label=name)
axes.set(xlabel="entry", ylabel="entries", yticks=[])
axes.legend()
figure

# %%
# In a model
# ----------
#
# It now works in every layer that takes a noise, on every backend, and is saved with
# the model.

x, y = sklearn.datasets.load_digits(return_X_y=True)
x = (x / 16).astype("float32")
noisy = pnd.PerNodeDense(64, noise=LogNormal(0.5), activation="relu", seed=1)
head = keras.layers.Dense(10, activation="softmax")
model = keras.Sequential([keras.Input((64,)), noisy, head])
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x[:1200], y[:1200], epochs=EPOCHS, verbose=0)
loss, accuracy = model.evaluate(x[1200:], y[1200:], verbose=0)
print(f"loss {loss:.3f}, accuracy {accuracy:.3f}")

file = f"{tempfile.mkdtemp()}/model.keras"
model.save(file)
assert keras.saving.load_model(file).layers[0].noise == LogNormal(0.5)

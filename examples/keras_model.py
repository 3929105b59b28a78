# any backend
"""
PerNodeDrop in a convolutional network
======================================

A small network learns handwritten digits from 300 images, which it can learn by heart.
Where does noise go, and what does it change?
"""

import os

os.environ["KERAS_BACKEND"] = "jax"  # or "torch", or "tensorflow"

import keras
import matplotlib.pyplot as plt
import pernodedrop as pnd
import sklearn.datasets
import sklearn.model_selection

EPOCHS = 12  # 40: until the curves are flat
IMAGES = 300  # to learn from, of 1797
RATE = 0.2  # try half and double: small networks want less noise than large ones

# %%
# The data comes with scikit-learn: 8 x 8 pixels, ten classes.

x, y = sklearn.datasets.load_digits(return_X_y=True)
x = (x / 16).reshape(-1, 8, 8, 1).astype("float32")
x, x_val, y, y_val = sklearn.model_selection.train_test_split(
    x, y, train_size=IMAGES, test_size=500, stratify=y, random_state=0
)

# %%
# The network
# -----------
#
# Convolutions share their weights among all positions and overfit little; most weights
# are in the Dense layer behind them. There PerNodeDrop gives every connection noise of
# its own, for every image. It wraps the layer, which keeps its weights and its
# activation. (It wraps convolutions just as well.)


def network(dense):
    layers = [
        keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
        keras.layers.Flatten(),
        *dense,
        keras.layers.Dense(10, activation="softmax"),
    ]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    return model


def hidden():
    return keras.layers.Dense(64, activation="relu")


networks = {
    "no noise": lambda: network([hidden()]),
    "Dropout": lambda: network([pnd.Dropout(RATE, seed=1), hidden()]),
    "PerNodeDrop": lambda: network([pnd.PerNodeDrop(hidden(), rate=RATE, seed=1)]),
}

# %%
# Training
# --------
#
# All start with the same weights and see the same batches. Losses during training are
# those with the noise, so they are not comparable; those on other images are without
# it.

models, curves = {}, {}
for name, make in networks.items():
    keras.utils.set_random_seed(0)
    models[name] = make()
    fit = dict(epochs=EPOCHS, batch_size=30, validation_data=(x_val, y_val), verbose=0)
    curves[name] = models[name].fit(x, y, **fit).history
    loss, accuracy = (curves[name][of][-1] for of in ("val_loss", "val_accuracy"))
    print(f"{name:12} loss {loss:.3f}, accuracy {accuracy:.3f}")

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, history in curves.items():
    axes.plot(range(1, EPOCHS + 1), history["val_loss"], label=name)
axes.set(xlabel="epoch", ylabel="loss on other images", yscale="log")
axes.legend()
figure

# %%
# One training of each says nothing yet about which is better: other seeds may give
# another order. The guide "Does it help?" makes a study of it, with several seeds, a
# rate selected for each, and intervals.
#
# For deployment
# --------------
#
# At inference nothing of the noise is left; ``fold`` gives a model of plain Keras
# layers that computes the same.

plain = pnd.fold(models["PerNodeDrop"])
print([type(layer).__name__ for layer in plain.layers])
assert (
    abs(
        plain.predict(x_val, verbose=0)
        - models["PerNodeDrop"].predict(x_val, verbose=0)
    ).max()
    < 1e-5
)

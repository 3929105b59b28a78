# any backend
"""
A transformer with NoisyAttention and DropPath
==============================================

An encoder reads an image as a sequence of its rows. Two kinds of noise fit its blocks:
on the projections of attention, and on whole residual branches.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"  # or "torch", or "tensorflow"

import keras
import matplotlib.pyplot as plt
import pernodedrop as pnd
import sklearn.datasets
import sklearn.model_selection

EPOCHS = 6  # 60: until the curves are flat
BLOCKS = 2
WIDTH = 32

# %%
# Eight rows of eight pixels are the tokens.

x, y = sklearn.datasets.load_digits(return_X_y=True)
x = (x / 16).reshape(-1, 8, 8).astype("float32")
x, x_val, y, y_val = sklearn.model_selection.train_test_split(
    x, y, test_size=500, stratify=y, random_state=0
)

# %%
# A block with noise
# ------------------
#
# `NoisyAttention` wraps a ``MultiHeadAttention`` and puts weight noise on its four
# projections, here PerNodeDrop's: every image has a mask of its own, which all its rows
# share. `DropPath` stands at the end of a branch and leaves it out for some of the
# images, and more often in deeper blocks: `depth_rates` has the rates.


def block(x, drop_path, rate, seed):
    def end(branch, place):
        return pnd.DropPath(drop_path, seed=seed + place)(branch)

    normal = keras.layers.LayerNormalization()(x)
    attention = keras.layers.MultiHeadAttention(num_heads=2, key_dim=WIDTH // 2)
    noisy = pnd.NoisyAttention(attention, pnd.PerNodeDrop, rate=rate, seed=seed)
    x = x + end(noisy(normal, normal), 1)
    normal = keras.layers.LayerNormalization()(x)
    hidden = keras.layers.Dense(2 * WIDTH, activation="gelu")(normal)
    return x + end(keras.layers.Dense(WIDTH)(hidden), 2)


def network(rate, drop_path):
    rows = keras.Input((8, 8))
    x = keras.layers.EinsumDense("btd,de->bte", (8, WIDTH), bias_axes="te")(rows)
    for place, drop in enumerate(pnd.depth_rates(drop_path, BLOCKS)):
        x = block(x, drop, rate, seed=10 * place)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    model = keras.Model(rows, keras.layers.Dense(10, activation="softmax")(x))
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    return model


print("rates of DropPath:", pnd.depth_rates(0.1, BLOCKS))

# %%
# Training
# --------
#
# Rate 0 is the plain transformer: with every mask 1, all is as without these layers.

curves = {}
for name, rates in {"without noise": (0.0, 0.0), "with noise": (0.1, 0.1)}.items():
    keras.utils.set_random_seed(0)
    model = network(*rates)
    fit = dict(epochs=EPOCHS, batch_size=64, validation_data=(x_val, y_val), verbose=0)
    curves[name] = model.fit(x, y, **fit).history
    loss, accuracy = (curves[name][of][-1] for of in ("val_loss", "val_accuracy"))
    print(f"{name:14} loss {loss:.3f}, accuracy {accuracy:.3f}")

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, history in curves.items():
    axes.plot(range(1, EPOCHS + 1), history["val_loss"], label=name)
axes.set(xlabel="epoch", ylabel="loss on other images", yscale="log")
axes.legend()
figure

# %%
# A network this small hardly overfits, and noise makes it learn more slowly. In the
# study of a small transformer under "Results" no regularizer helped either. Depth,
# width and few data are where it may.

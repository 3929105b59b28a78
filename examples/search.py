# any backend
"""
A search over rate, noise and regime
====================================

Which noise, at which rate, with masks that change or stay? They are hyperparameters
like any others. Here Optuna searches among them, then KerasTuner.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"  # or "torch", or "tensorflow"

import tempfile

import keras
import keras_tuner
import matplotlib.pyplot as plt
import optuna
import pernodedrop as pnd
import sklearn.datasets
import sklearn.model_selection

EPOCHS = 6  # 25
TRIALS = 4  # 50

x, y = sklearn.datasets.load_digits(return_X_y=True)
x = (x / 16).astype("float32")
x, x_val, y, y_val = sklearn.model_selection.train_test_split(
    x, y, train_size=300, test_size=500, stratify=y, random_state=0
)


def network(rate, noise, regime):
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense(64, activation="relu")
    hidden = pnd.PerNodeDrop(dense, rate, noise, regime=regime, seed=1)
    head = keras.layers.Dense(10, activation="softmax")
    model = keras.Sequential([keras.Input((64,)), hidden, head])
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    return model


# %%
# With Optuna
# -----------
#
# A trial suggests the arguments of the layer, trains, and returns the least loss on
# other images.


def objective(trial):
    rate = trial.suggest_float("rate", 0.0, 0.9)
    noise = trial.suggest_categorical("noise", ["bernoulli", "gaussian"])
    regime = trial.suggest_categorical("regime", ["dynamic", "fixed"])
    fit = dict(epochs=EPOCHS, batch_size=30, validation_data=(x_val, y_val), verbose=0)
    history = network(rate, noise, regime).fit(x, y, **fit).history
    return min(history["val_loss"])


optuna.logging.set_verbosity(optuna.logging.WARNING)
search = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
search.optimize(objective, n_trials=TRIALS)
print(f"loss {search.best_value:.3f} with {search.best_params}")

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for noise, marker in {"bernoulli": "o", "gaussian": "s"}.items():
    for regime, colour in {"dynamic": "tab:blue", "fixed": "tab:orange"}.items():
        chosen = {"noise": noise, "regime": regime}
        trials = [
            trial for trial in search.trials if chosen.items() <= trial.params.items()
        ]
        points = [(trial.params["rate"], trial.value) for trial in trials]
        if points:
            label = f"{noise}, {regime}"
            axes.scatter(
                *zip(*points, strict=True), c=colour, marker=marker, label=label
            )
axes.set(xlabel="rate", ylabel="least loss on other images", xlim=(0, 0.9))
axes.legend()
figure

# %%
# With KerasTuner
# ---------------
#
# The same arguments, as hyperparameters of a function that makes the model.


def build(tuned):
    return network(
        tuned.Float("rate", 0.0, 0.9),
        tuned.Choice("noise", ["bernoulli", "gaussian"]),
        tuned.Choice("regime", ["dynamic", "fixed"]),
    )


folder = tempfile.mkdtemp()
tuner = keras_tuner.RandomSearch(
    build, "val_loss", TRIALS // 2, seed=0, directory=folder
)
fit = dict(epochs=EPOCHS, batch_size=30, validation_data=(x_val, y_val), verbose=0)
tuner.search(x, y, **fit)
print(tuner.get_best_hyperparameters()[0].values)

# %%
# A loss that was selected is too good: of many trials the best was also lucky. What it
# is worth, only data can say that the search has not seen, with several seeds.
# `pernodedrop.study.Study` does both parts, and has trials for Optuna too.

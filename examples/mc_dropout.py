# any backend
"""
MC Dropout: how sure is the model, and which images does it reject?
===================================================================

A model with noise predicts many times, each time with other masks. What the passes
disagree about is what it does not know (MC Dropout, arXiv 1506.02142).
"""

import os

os.environ["KERAS_BACKEND"] = "jax"  # or "torch", or "tensorflow"

import keras
import numpy as np
import pernodedrop as pnd
import sklearn.datasets
from pernodedrop import uncertainty
from pernodedrop.uncertainty import calibration, decisions, metrics, plots

EPOCHS = 25
SAMPLES = 20  # passes; 50 or more for small differences

# %%
# A model with noise
# ------------------
#
# 300 images to learn from; of the others one half calibrates and decides, and the other
# half tests.

x, y = sklearn.datasets.load_digits(return_X_y=True)
x = (x / 16).astype("float32")
order = np.random.default_rng(0).permutation(len(x))
train, held, test = np.split(order, [300, 1050])

keras.utils.set_random_seed(0)
layers = [pnd.PerNodeDense(64, rate=0.3, activation="relu", seed=n) for n in (1, 2)]
head = keras.layers.Dense(10, activation="softmax")
model = keras.Sequential([keras.Input((64,)), *layers, head])
model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
model.fit(x[train], y[train], epochs=EPOCHS, batch_size=30, verbose=0)

before = uncertainty.predict(model, x[held], samples=SAMPLES, seed=1)
found = uncertainty.predict(model, x[test], samples=SAMPLES, seed=1)
report = found.report(y[test])
print(report)

# %%
# Are its probabilities right?
# ----------------------------
#
# Where it says 80 %, it should be right four times in five. The mean of many passes is
# often not sure enough: bars above the diagonal. One number, the temperature, found on
# images that the model was not trained on, mends that.

calibrate = calibration.temperature(y[held], before.mean)
p = calibrate(found.mean)
print(f"temperature {calibrate.temperature:.2f}")
errors = (metrics.calibration_error(y[test], each) for each in (found.mean, p))
print("calibration error {:.3f}, then {:.3f}".format(*errors))

figure = plots.reliability_diagram(metrics.reliability(y[test], found.mean))
figure

# %%
# After calibration:

figure = plots.reliability_diagram(metrics.reliability(y[test], p))
figure

# %%
# Which does it reject?
# ---------------------
#
# Errors should be among the uncertain ones: then those can be handed to somebody who
# knows. The curve says how many errors remain among the predictions that are kept.

wrong = found.mean.argmax(-1) != y[test]
doubts = {
    "entropy": found.predictive_entropy,
    "mutual_information": found.mutual_information,
}
curves = {name: metrics.risk_coverage(wrong, doubt) for name, doubt in doubts.items()}
figure = plots.risk_coverage_curve(**curves)
figure

# %%
# ``decisions.rejection`` finds on the held-out images what to keep, so that among those
# at most 3 % are wrong, at a confidence of 95 %.

wrong_before = before.mean.argmax(-1) != y[held]
kept = decisions.rejection(wrong_before, before.predictive_entropy, risk=0.03)
sure = found.predictive_entropy < kept.threshold
print(f"all {len(test)} images: {wrong.mean():.1%} wrong")
print(f"the {sure.sum()} that it is sure of: {wrong[sure].mean():.1%} wrong")
print(f"the {(~sure).sum()} that it rejects: {wrong[~sure].mean():.1%} wrong")

# %%
# The rejected images that the passes disagree about most, with what they voted for:

figure = plots.disagreements(report.examples, x[test].reshape(-1, 8, 8))
figure

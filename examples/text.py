# any backend
"""
Text, with DropConnect on the recurrent kernel
==============================================

An LSTM reads sentences and says what they are about. `NoisyRNN` puts DropConnect on its
recurrent kernel, the weight drop of AWD-LSTM (arXiv 1708.02182).
"""

import os

os.environ["KERAS_BACKEND"] = "jax"  # or "torch", or "tensorflow"

import ast
import collections
import pathlib
import re

import keras
import matplotlib.pyplot as plt
import numpy as np
import pernodedrop as pnd

EPOCHS = 4  # 15: until the curves rise again
WORDS = 16  # of a sentence that the network reads
UNITS = 32
SUBJECTS = {
    "numbers": "statistics random fractions _pydecimal numbers datetime calendar",
    "network": "ssl socket smtplib ftplib imaplib http urllib email",
    "processes": "subprocess threading asyncio multiprocessing concurrent selectors",
    "code": "ast dis inspect tokenize pdb doctest importlib typing",
}

# %%
# The text
# --------
#
# Every Python brings text along: the docstrings of its own library. Which subject is a
# sentence from?


def docstrings(name):
    home = pathlib.Path(os.__file__).parent
    for file in sorted([home / f"{name}.py", *(home / name).rglob("*.py")]):
        if file.exists():
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    yield ast.get_docstring(node) or ""


sentences, labels = [], []
for label, modules in enumerate(SUBJECTS.values()):
    for module in modules.split():
        for text in docstrings(module):
            for sentence in re.split(r"[.:]\s|\n\n", text):
                words = re.findall(r"[a-z]+", sentence.lower())
                if len(words) >= 5:
                    sentences.append(words[:WORDS])
                    labels.append(label)

known = collections.Counter(word for words in sentences for word in words).most_common(
    1500
)
number = {
    word: n for n, (word, _) in enumerate(known, 2)
}  # 0 is no word, 1 an unknown one
x = np.zeros((len(sentences), WORDS), "int32")
for row, words in zip(x, sentences, strict=True):
    row[: len(words)] = [number.get(word, 1) for word in words]
y = np.array(labels)
print(len(x), "sentences:", dict(zip(SUBJECTS, np.bincount(y).tolist(), strict=True)))
print(" ".join(sentences[0]))

order = np.random.default_rng(0).permutation(len(x))
train, val = order[500:2500], order[:500]

# %%
# The network
# -----------
#
# In each training step one mask multiplies the recurrent kernel, before the loop over
# the words. So the loop stays as it is, and cuDNN's kernels remain in use on a GPU,
# which ``recurrent_dropout`` of Keras rules out. ``sharing="time"`` would give each
# sentence a mask of its own.


def network(rate):
    lstm = keras.layers.LSTM(UNITS)
    layers = [
        keras.layers.Embedding(len(number) + 2, UNITS),
        pnd.NoisyRNN(lstm, rate=rate, seed=1) if rate else lstm,
        keras.layers.Dense(len(SUBJECTS), activation="softmax"),
    ]
    model = keras.Sequential([keras.Input((WORDS,), dtype="int32"), *layers])
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(5e-3), loss, metrics=["accuracy"])
    return model


# %%
# Training
# --------

curves = {}
for rate in (0.0, 0.5):
    keras.utils.set_random_seed(0)
    model = network(rate)
    fit = dict(
        epochs=EPOCHS, batch_size=50, validation_data=(x[val], y[val]), verbose=0
    )
    curves[rate] = model.fit(x[train], y[train], **fit).history
    loss, accuracy = (curves[rate][of][-1] for of in ("val_loss", "val_accuracy"))
    print(f"rate {rate}: loss {loss:.3f}, accuracy {accuracy:.3f} on other sentences")

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for rate, history in curves.items():
    axes.plot(range(1, EPOCHS + 1), history["val_loss"], label=f"rate {rate}")
axes.set(xlabel="epoch", ylabel="loss on other sentences")
axes.legend()
figure

# %%
# Both learn the sentences by heart after a few epochs: stop at the least loss, and put
# `Dropout` on the embedding too, where most of the weights are. AWD-LSTM does all of
# that at once.

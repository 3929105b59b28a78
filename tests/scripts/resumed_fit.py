"""Load a model with its optimizer, train on with `fit`, save it, and print the losses and the masks of its steps."""

import json
import sys

import keras
import numpy as np

import pernodedrop as pnd

UNITS = 5
LENGTHS = np.arange(8)[:, None] + 1
# no word twice, whose gradients Keras' Adam on TensorFlow would square one by one
WORDS = np.arange(1, 49).reshape(8, 6) * (np.arange(6) < LENGTHS)
LABELS = np.arange(8) % 3


def classifier():
    """One of texts, whose recurrent kernel has a mask a step. Without momentum, Adam's first moment is the gradient."""
    lstm = pnd.NoisyRNN(keras.layers.LSTM(UNITS), rate=0.5, seed=1)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Embedding(49, 4, mask_zero=True), lstm])
    model.add(keras.layers.Dense(3))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05, beta_1=0.0), loss)
    return model


def load(path):
    """A model from its file. One of torch names torch's Adam, which the other backends do not have."""
    return keras.saving.load_model(path, custom_objects={"Adam": keras.optimizers.Adam})


def trained(model, steps):
    """The loss of each step of `fit`, and the weights of the recurrent kernel that had a gradient in it, as masks."""
    losses, masks = [], []
    for _ in range(steps):
        losses += model.fit(WORDS, LABELS, batch_size=len(WORDS), verbose=0).history["loss"]
        (gradient,) = (v for v in model.optimizer.variables if v.path.endswith("recurrent_kernel_momentum"))
        masks.append((keras.ops.convert_to_numpy(gradient) != 0).tolist())
    return losses, masks


if __name__ == "__main__":
    source, target, steps = sys.argv[1:]
    loaded = load(source)
    found = trained(loaded, int(steps))
    loaded.save(target)
    print(json.dumps(found))

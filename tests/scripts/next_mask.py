"""Load weights, say what the next training call gives, train on, save, and say what comes next again."""

import json
import sys

import keras
import numpy as np

import pernodedrop as pnd

source, target = sys.argv[1:]
model = keras.Sequential([keras.Input((6,)), pnd.Dropout(0.5, seed=0), pnd.PerNodeDense(4, seed=0)])
model.load_weights(source)
x = np.ones((3, 6), "float32")
first = keras.ops.convert_to_numpy(model(x, training=True))
model.save_weights(target)
second = keras.ops.convert_to_numpy(model(x, training=True))
print(json.dumps({"first": first.tolist(), "second": second.tolist()}))

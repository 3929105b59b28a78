"""What each regularizer gives on NumPy. `python -m tests.family_answers` writes it.

Write it anew when a layer's distribution changes on purpose, or one is added, and say so in CHANGELOG.md.
"""

import json
import os
import pathlib

if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "numpy"

import numpy as np

from tests.family import FAMILY, host

PATH = pathlib.Path(__file__).with_suffix(".json")


def outputs(case):
    """What a layer gives in two training calls and then at inference, with given weights, as rows of numbers."""
    layer, x, random = case.make(), case.inputs(4), np.random.default_rng(5)
    layer(x)
    for variable in layer.trainable_variables:
        variable.assign(random.normal(size=variable.shape) / 2)
    return [host(layer(x, training=training)).reshape(4, -1) for training in (True, True, False)]


def main():
    """Write the answers of this backend."""
    answers = {name: [np.round(y, 5).tolist() for y in outputs(case)] for name, case in FAMILY.items()}
    PATH.write_text(json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()

"""Whether noise goes into architectures of Keras by one call, trains, saves, loads, folds and exports.

    python tests/scripts/keras_models.py                                  half an hour, on torch, JAX and TensorFlow
    python tests/scripts/keras_models.py --backends jax --only LSTM       some of it
    python tests/scripts/keras_models.py --backends jax --write           puts a backend's column into the page

Models are small and untrained: nothing is downloaded. Each has a process of its own. It says how many layers have
noise, and fails if inference is not that of the plain model, if a layer was not called in each step of `fit`, if a
loaded model continues otherwise, or if a folded model, or what is exported, computes another thing.
"""

import argparse
import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "numpy")  # of the process that starts the others

import keras
import numpy as np

import pernodedrop as pnd
from pernodedrop.internals import of_keras
from pernodedrop.layers.base.noisy import Noisy
from pernodedrop.report import table

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "guides" / "models.md"
MARK = "% What follows is written by `python tests/scripts/keras_models.py --write`.\n"
BACKENDS = {"torch": "PyTorch", "jax": "JAX", "tensorflow": "TensorFlow"}
BATCH, STEPS, CLASSES = 4, 3, 5
IMAGES = np.random.default_rng(0).normal(size=(BATCH * STEPS, 32, 32, 3)).astype("float32")
WORDS = np.random.default_rng(0).integers(20, size=(BATCH * STEPS, 6))
LABELS = np.arange(BATCH * STEPS) % CLASSES


def resnet():
    """ResNet50, for images of 32 x 32."""
    return keras.applications.ResNet50(
        weights=None, input_shape=(32, 32, 3), classes=CLASSES, classifier_activation=None
    )


def mobilenet():
    """MobileNetV2, the narrowest."""
    sizes = {"input_shape": (32, 32, 3), "alpha": 0.35, "classes": CLASSES}
    return keras.applications.MobileNetV2(weights=None, classifier_activation=None, **sizes)


def vision_transformer(blocks=2, width=16):
    """Patches of 8 x 8, pre-norm blocks, and the mean of the tokens."""
    x = keras.Input((32, 32, 3))
    h = keras.layers.Reshape((16, width))(keras.layers.Conv2D(width, 8, 8, name="patches")(x))
    for number in range(blocks):
        normed = keras.layers.LayerNormalization()(h)
        h = keras.layers.Add()([h, keras.layers.MultiHeadAttention(2, 8, name=f"attention_{number}")(normed, normed)])
        hidden = keras.layers.Dense(2 * width, activation="gelu")(keras.layers.LayerNormalization()(h))
        h = keras.layers.Add()([h, keras.layers.Dense(width)(hidden)])
    return keras.Model(x, keras.layers.Dense(CLASSES, name="head")(keras.layers.GlobalAveragePooling1D()(h)))


def bert():
    """KerasHub's BERT of one layer, with a head, on the words alone."""
    import keras_hub

    sizes = {"vocabulary_size": 20, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}
    backbone = keras_hub.models.BertBackbone(**sizes, dropout=0.0, max_sequence_length=6)
    words = keras.Input((6,), dtype="int32")
    inputs = {
        "token_ids": words,
        "segment_ids": keras.ops.zeros_like(words),
        "padding_mask": keras.ops.ones_like(words),
    }
    return keras.Model(words, keras.layers.Dense(CLASSES, name="head")(backbone(inputs)["pooled_output"]))


def lstm():
    """A classifier of texts."""
    layers = [keras.layers.Embedding(20, 8), keras.layers.LSTM(8), keras.layers.Dense(CLASSES, name="head")]
    return keras.Sequential([keras.Input((6,), dtype="int32"), *layers])


DDC = {"regularizer": "dynamic_drop_connect"}
MODELS = {
    "ResNet50": (resnet, IMAGES, [r"conv5_block\d_\d_conv"], {"rate": 0.2}),
    "ResNet50, DDC": (resnet, IMAGES, [r"conv5_block\d_\d_conv", "predictions"], DDC),
    "MobileNetV2": (mobilenet, IMAGES, "all-conv", {"rate": 0.1}),
    "MobileNetV2, DDC": (mobilenet, IMAGES, "all-conv", DDC),
    "vision transformer": (
        vision_transformer,
        IMAGES,
        ["all-attention", "all-linear"],
        {"exclude": "head", "rate": 0.1},
    ),
    "vision transformer, DDC": (vision_transformer, IMAGES, ["all-attention", "all-linear"], DDC),
    "vision transformer, weights": (
        *(vision_transformer, IMAGES, "all-attention"),
        {"regularizer": "attention_dropout", "rate": 0.1},
    ),
    "BERT": (bert, WORDS, "all-linear", {"exclude": "head", "rate": 0.1}),
    "BERT, DDC": (bert, WORDS, "all-linear", DDC),
    "LSTM": (lstm, WORDS, "all-recurrent", {"regularizer": "noisy_rnn", "rate": 0.5}),
    "LSTM, for each sample": (
        lstm,
        WORDS,
        "all-recurrent",
        {"regularizer": "noisy_rnn", "rate": 0.5, "sharing": "time"},
    ),
    "LSTM, rates learned": (
        lstm,
        WORDS,
        "all-recurrent",
        {"regularizer": "variational_dropout_rnn", "examples": BATCH * STEPS},
    ),
    "LSTM, DDC on its head": (lstm, WORDS, "head", DDC),
}


def host(tensor):
    """A tensor as an array."""
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def check_equal(found, wanted, words):
    """Raise unless arrays are equal to a thousandth of the largest number, which may be any after three steps."""
    wanted = host(wanted)
    np.testing.assert_allclose(host(found), wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max(), err_msg=words)


def check(make, x, rule, arguments, export=True):
    """How many layers of a model have noise and what is saved of it, or an error."""
    model = make()
    noise = functools.partial(pnd.apply, rule=rule, seed=1, **arguments)
    noisy, few = noise(model), x[:BATCH]
    check_equal(noisy(few), model(few), "not inference")
    before = host(noisy.trainable_variables[0]).copy()
    noisy.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    noisy.fit(x, LABELS, batch_size=BATCH, shuffle=False, verbose=0)
    assert (host(noisy.trainable_variables[0]) != before).any(), "not trained"
    layers = [layer for layer in of_keras.layers_of(noisy) if isinstance(layer, Noisy)]
    assert {layer.updates for layer in layers} == {STEPS}, "not called"
    with tempfile.TemporaryDirectory() as folder:
        again, saved = loaded(noisy, lambda: noise(make()), pathlib.Path(folder))
        check_equal(again(few), noisy(few), "not loaded")
        check_equal(again(few, training=True), noisy(few, training=True), "not resumed")
        plain, wanted = pnd.fold(noisy), noisy(few)
        assert not any(isinstance(layer, Noisy) for layer in of_keras.layers_of(plain))
        check_equal(plain(few), wanted, "not folded")
        if export:
            check_equal(exported(plain, few, folder), wanted, "not exported")
    return len(layers), saved


def loaded(noisy, make, folder):
    """The model from its file, or where its config is refused from that of its weights, and which of both."""
    try:
        noisy.save(folder / "model.keras")
    except NotImplementedError:
        noisy.save_weights(folder / "model.weights.h5")
        again = make()
        again.load_weights(folder / "model.weights.h5")
        return again, "weights"
    return keras.saving.load_model(folder / "model.keras"), "model"


def exported(plain, x, folder):
    """What the exported model gives, run without Keras."""
    x = x.astype(plain.inputs[0].dtype)
    if keras.backend.backend() == "torch":
        import torch

        plain.export(f"{folder}/model.pt2", format="torch", verbose=False)
        program = torch.export.load(f"{folder}/model.pt2").module()  # Keras traces it for one sample
        with torch.no_grad():
            return np.concatenate([host(program(torch.from_numpy(one[None]))) for one in x])
    import tensorflow as tf

    plain.export(f"{folder}/exported", verbose=False)
    program = tf.saved_model.load(f"{folder}/exported")  # kept, for its variables go with it
    return np.asarray(program.serve(x))


def of_process(backend, name):
    """What `check` found of a model on a backend in a process of its own, or None."""
    command = [sys.executable, __file__, "--one", name]
    done = subprocess.run(command, env={**os.environ, "KERAS_BACKEND": backend}, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-2000:], flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def written():
    """The cells of backends as the page has them, by the names of backend and model."""
    lines = PAGE.read_text(encoding="utf-8").partition(MARK)[2].splitlines()
    head, _, *rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    known = {backend: head.index(title) for backend, title in BACKENDS.items() if title in head}
    return {backend: {row[0]: row[column] for row in rows} for backend, column in known.items()}


def main():
    """Try all, print a line for each, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS), help="where; all")
    parser.add_argument("--only", default="", help="models whose name begins so")
    parser.add_argument("--write", action="store_true", help="put what was found into the page")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        make, x, rule, noise = MODELS[arguments.one]
        print(json.dumps(check(make, x, rule, noise)))
        return
    chosen = [name for name in MODELS if name.startswith(arguments.only)]
    if not chosen:
        parser.error(f"argument --only: expected the beginning of one of {'; '.join(MODELS)}")
    failed = False
    for backend, name in itertools.product(arguments.backends, chosen):
        start = time.perf_counter()
        found = of_process(backend, name)
        failed |= found is None
        cell = "fails" if found is None else "{} layer{}, {}".format(found[0], "s" * (found[0] != 1), found[1])
        print(backend, name, cell, f"{time.perf_counter() - start:.0f} s", sep="; ", flush=True)
        if arguments.write:
            write(backend, name, cell)
    sys.exit(failed)


def write(backend, name, cell):
    """Put what was found of a model on a backend into the page."""
    cells = written()
    cells.setdefault(backend, {})[name] = cell
    rows = [("model", "rule", "with", *BACKENDS.values())]
    for model, (_, _, rule, noise) in MODELS.items():
        found = [cells.get(one, {}).get(model, "not run") for one in BACKENDS]
        rows.append((model, f"`{rule!r}`", f"`{noise!r}`", *found))
    text = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(f"{text}{MARK}\n{table.as_markdown(rows)}\n\nKeras {keras.__version__}.\n", encoding="utf-8")


if __name__ == "__main__":
    main()

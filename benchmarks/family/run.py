"""What a training step with each regularizer costs, as a ratio to the step without: `python benchmarks/family/run.py`.

Three networks in stock `fit`, batch 128: Dense layers (512 -> 256 -> 10), convolutions (16 x 16 x 16 -> 32 maps,
kernel 3 x 3), and a classifier of texts of 32 words (an Embedding and an LSTM of 64). A regularizer stands around or
behind the first layer, or the LSTM. The variants of a network are trained in turn, an epoch each, so that a machine
whose speed drifts drifts for all. One process a backend and network; those whose figures are in results.json are left
out, so that an interrupted run goes on. `--backends jax torch` and `--networks text` run some, `--again` anew.
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys

PATH = pathlib.Path(__file__).parent / "results.json"
BATCH, SEED = 128, 1
STEPS = {"dense": 12, "maps": 12, "text": 4}
EPOCHS = 5
NETWORKS = ("dense", "maps", "text")
WORDS = 5000


def variants(keras, pnd):
    """{network: {variant: layers in the place of the first layer}}, "none" first."""

    def around(wrapper, **kwargs):
        return lambda layer: [wrapper(layer, seed=SEED, **kwargs)]

    def behind(wrapper, *arguments, **kwargs):
        return lambda layer: [layer, wrapper(*arguments, seed=SEED, **kwargs)]

    dense = {
        "none": lambda layer: [layer],
        "Keras' Dropout": behind(keras.layers.Dropout, 0.5),
        "PerNodeDrop": around(pnd.PerNodeDrop),
        "PerNodeDrop, gaussian": around(pnd.PerNodeDrop, noise="gaussian"),
        "PerNodeDrop, fixed": around(pnd.PerNodeDrop, regime="fixed"),
        "PerNodeDrop, bank": around(pnd.PerNodeDrop, regime="bank", bank_size=4),
        "DropConnect": around(pnd.DropConnect),
        "DropConnect, as published": lambda layer: [pnd.DropConnect.as_published(layer, seed=SEED)],
        "DynamicDropConnect": around(pnd.DynamicDropConnect),
        "Shakeout": around(pnd.Shakeout),
        "VariationalDropout": around(pnd.VariationalDropout, examples=1000),
        "SparseVariationalDropout": around(pnd.SparseVariationalDropout, examples=1000),
        "Flipout": around(pnd.Flipout, noise="gaussian"),
        "FastDropout": around(pnd.FastDropout),
        "Standout": around(pnd.Standout),
        "NoiseInjection": around(pnd.NoiseInjection),
        "Dropout": behind(pnd.Dropout, 0.5),
        "GaussianDropout": behind(pnd.GaussianDropout, 0.5),
        "Masksembles": behind(pnd.Masksembles),
        "TabuDropout": behind(pnd.TabuDropout, 0.3),
        "DropPath": behind(pnd.DropPath, 0.2),
    }
    maps = {
        "none": lambda layer: [layer],
        "Keras' SpatialDropout2D": behind(keras.layers.SpatialDropout2D, 0.5),
        "PerNodeDrop": around(pnd.PerNodeDrop),
        "DropConnect": around(pnd.DropConnect),
        "SpatialDropout2D": behind(pnd.SpatialDropout2D, 0.5),
        "DropBlock2D": behind(pnd.DropBlock2D, 0.1, block_size=5),
    }
    text = {
        "none": lambda layer: [layer],
        "Keras' recurrent_dropout": lambda layer: [
            type(layer).from_config({**layer.get_config(), "recurrent_dropout": 0.5})
        ],
        "NoisyRNN": around(pnd.NoisyRNN),
        "NoisyRNN, samples": around(pnd.NoisyRNN, sharing="time"),
        "NoisyRNN, variational": around(pnd.NoisyRNN, kernels=("kernel", "recurrent_kernel"), sharing="time+out"),
        "Zoneout": around(pnd.Zoneout, rate=0.05, cell_rate=0.5),
    }
    return {"dense": dense, "maps": maps, "text": text}


def network(keras, name, make):
    """A compiled model."""
    if name == "dense":
        before, first = [keras.Input((512,))], keras.layers.Dense(256, activation="relu")
    elif name == "maps":
        before, first = [keras.Input((16, 16, 16))], keras.layers.Conv2D(32, 3, padding="same", activation="relu")
    else:
        words = keras.layers.Embedding(WORDS, 64)
        before, first = [keras.Input((32,), dtype="int32"), words], keras.layers.LSTM(64)
    layers = [*before, *make(first), keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    return model


def measure(name):
    """The figures of a network on this process's backend, printed as JSON."""
    import keras
    import numpy as np

    import pernodedrop as pnd
    from pernodedrop.commands.bench import network as clocks
    from pernodedrop.report.environment import machine, version

    makers = variants(keras, pnd)[name]
    models = {variant: network(keras, name, make) for variant, make in makers.items()}
    times = {variant: clocks.Steps() for variant in makers}
    rng = np.random.default_rng(0)
    shape = (STEPS[name] * BATCH, *models["none"].input_shape[1:])
    x = rng.integers(WORDS, size=shape) if name == "text" else rng.random(shape, "float32")
    labels = rng.integers(10, size=len(x))
    for epoch in range(EPOCHS + 1):
        for variant, model in models.items():
            print(f"{keras.backend.backend()}: {name}, {variant} {epoch}/{EPOCHS}", file=sys.stderr, flush=True)
            clock = times[variant] if epoch else clocks.Steps()
            model.fit(x, labels, batch_size=BATCH, shuffle=False, callbacks=[clock], verbose=0)
    found = {variant: statistics.median(clock.seconds) for variant, clock in times.items()}
    backend = keras.backend.backend()
    versions = {name: version(name) for name in ("keras", backend)}
    json.dump({"seconds": found, "machine": {**machine(), **versions}}, sys.stdout)


def main():
    """Measure the backends that have no figures yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["jax", "tensorflow", "torch"])
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--again", action="store_true", help="measure what has figures")
    parser.add_argument("--worker", choices=NETWORKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        measure(arguments.worker)
        return
    found = json.loads(PATH.read_text()) if PATH.exists() else {}
    for backend, name in itertools.product(arguments.backends, arguments.networks):
        seconds = found.get(backend, {}).get("seconds", {})
        if name in seconds and not arguments.again:
            continue
        env = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
        done = subprocess.run([sys.executable, __file__, "--worker", name], env=env, stdout=subprocess.PIPE, check=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        ratios = {variant: round(own / figures["seconds"]["none"], 2) for variant, own in figures["seconds"].items()}
        print(f"{backend}, {name}, steps by that without: {ratios}")
        found[backend] = {"seconds": {**seconds, name: figures["seconds"]}, "machine": figures["machine"]}
        PATH.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

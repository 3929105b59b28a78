"""What a training step with each regularizer costs, as a ratio to the step without: `python benchmarks/family/run.py`.

Two networks in stock `fit`, batch 128: Dense layers (512 -> 256 -> 10), and convolutions (16 x 16 x 16 -> 32 maps,
kernel 3 x 3). A regularizer stands around or behind the first layer. The variants of a network are trained in turn, an
epoch each, so that a machine whose speed drifts drifts for all. One process a backend; a backend whose figures are in
results.json is left out, so that an interrupted run goes on. `--backends jax torch` runs some, `--again` anew.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

PATH = pathlib.Path(__file__).parent / "results.json"
BATCH, STEPS, EPOCHS, SEED = 128, 12, 5, 1


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
        "VariationalDropout": around(pnd.VariationalDropout, examples=BATCH * STEPS),
        "SparseVariationalDropout": around(pnd.SparseVariationalDropout, examples=BATCH * STEPS),
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
    return {"dense": dense, "maps": maps}


def network(keras, name, make):
    """A compiled model."""
    if name == "dense":
        shape, first = (512,), keras.layers.Dense(256, activation="relu")
    else:
        shape, first = (16, 16, 16), keras.layers.Conv2D(32, 3, padding="same", activation="relu")
    layers = [keras.Input(shape), *make(first), keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    return model


def measure():
    """The figures of this process's backend, printed as JSON."""
    import keras
    import numpy as np

    import pernodedrop as pnd
    from pernodedrop.commands.bench import network as clocks
    from pernodedrop.report.environment import machine, version

    found = {}
    for name, makers in variants(keras, pnd).items():
        models = {variant: network(keras, name, make) for variant, make in makers.items()}
        times = {variant: clocks.Steps() for variant in makers}
        rng = np.random.default_rng(0)
        x = rng.random((STEPS * BATCH, *models["none"].input_shape[1:]), "float32")
        labels = rng.integers(10, size=len(x))
        for epoch in range(EPOCHS + 1):
            for variant, model in models.items():
                print(f"{keras.backend.backend()}: {name}, {variant} {epoch}/{EPOCHS}", file=sys.stderr, flush=True)
                clock = times[variant] if epoch else clocks.Steps()
                model.fit(x, labels, batch_size=BATCH, shuffle=False, callbacks=[clock], verbose=0)
        found[name] = {variant: statistics.median(clock.seconds) for variant, clock in times.items()}
    backend = keras.backend.backend()
    versions = {name: version(name) for name in ("keras", backend)}
    json.dump({"seconds": found, "machine": {**machine(), **versions}}, sys.stdout)


def main():
    """Measure the backends that have no figures yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["jax", "tensorflow", "torch"])
    parser.add_argument("--again", action="store_true", help="measure backends that have figures")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        measure()
        return
    found = json.loads(PATH.read_text()) if PATH.exists() else {}
    for backend in arguments.backends:
        if backend in found and not arguments.again:
            continue
        env = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
        done = subprocess.run([sys.executable, __file__, "--worker"], env=env, stdout=subprocess.PIPE, check=True)
        found[backend] = json.loads(done.stdout.splitlines()[-1])
        PATH.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What a training step with each regularizer costs, as a ratio to the step without: `python benchmarks/family/run.py`.

In stock `fit`, batch 128. A regularizer stands around, before, behind or in the place of one layer:

- dense: the first of the Dense layers 512 -> 256 -> 10.
- maps: a convolution from 16 x 16 x 16 to 32 maps, kernel 3 x 3.
- text: the LSTM of 64 of a classifier of texts of 32 words.
- words: the Embedding of a classifier of the mean of 32 words.
- attention: four heads of 16, on 32 positions of 64 numbers.
- residual: the sum of 256 units and of a Dense layer of them.
- labels: nothing, behind the first of the layers of "dense", where labels are a second input.
- capsules: the Dense layer behind a convolution of images of 28 x 28 to 64 maps, kernel 9 x 9, strides 4.
- exits: the model itself, 512 -> 256 -> 256 -> 256 -> 10.

The variants of a run are trained in turn, an epoch each, so that a machine whose speed drifts drifts for all. One
process a backend and network. What has a figure in results.json is left out; what is new is measured beside the network
without a regularizer, in a run of its own. `--backends jax torch` and `--networks text` run some, `--again` anew.
`--busy` is for a Linux machine that does other work: one core, and the CPU time of the quickest step, where else the
median of the time of a step counts.
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

PATH = pathlib.Path(__file__).parent / "results.json"
BATCH, SEED, WORDS, UNITS, CLASSES = 128, 1, 5000, 256, 10
EPOCHS = 5
STEPS = {"text": 4, "attention": 4}
"""Steps of an epoch, where they are not 12."""


def variants(keras, pnd):
    """{network: {variant: function (plain layer, *what it is called on) -> a tensor}}, "none" first."""

    def plain(layer, *x):
        return layer(*x)

    def around(wrapper, *arguments, **kwargs):
        return lambda layer, *x: wrapper(layer, *arguments, seed=SEED, **kwargs)(*x)

    def behind(wrapper, *arguments, **kwargs):
        return lambda layer, *x: wrapper(*arguments, seed=SEED, **kwargs)(layer(*x))

    def before(wrapper, *arguments, **kwargs):
        return lambda layer, x: layer(wrapper(*arguments, seed=SEED, **kwargs)(x))

    def changed(**config):
        return lambda layer, *x: type(layer).from_config({**layer.get_config(), **config})(*x)

    def among(wrapper, count, **kwargs):
        """Of so many layers like the one in the network."""

        def made(layer, x):
            configs = ({**layer.get_config(), "name": f"{layer.name}_{n}"} for n in range(count))
            return wrapper([type(layer).from_config(config) for config in configs], **kwargs)(x)

        return made

    def capsules(layer, x):
        below = pnd.contrast.squash(keras.layers.Reshape((-1, 8))(x))
        return pnd.contrast.lengths(pnd.contrast.Capsules(CLASSES)(below))

    dense = {
        "none": plain,
        "Keras' Dropout": behind(keras.layers.Dropout, 0.5),
        "PerNodeDrop": around(pnd.PerNodeDrop),
        "PerNodeDrop, gaussian": around(pnd.PerNodeDrop, noise="gaussian"),
        "PerNodeDrop, fixed": around(pnd.PerNodeDrop, regime="fixed"),
        "PerNodeDrop, bank": around(pnd.PerNodeDrop, regime="bank", bank_size=4),
        "DropConnect": around(pnd.DropConnect),
        "DropConnect, as published": lambda layer, x: pnd.DropConnect.as_published(layer, seed=SEED)(x),
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
        "PerNodeDrop, partial Gaussian": around(pnd.PerNodeDrop, noise=pnd.PartialGaussian(0.5, stddev=1.0)),
        "PerNodeDrop, uniform": around(pnd.PerNodeDrop, noise="uniform"),
        "AlphaDropout": behind(pnd.AlphaDropout, 0.1),
        "FractalBlock": among(pnd.contrast.FractalBlock, 3, seed=SEED),
        "MixtureOfExperts": among(pnd.contrast.MixtureOfExperts, 4),
    }
    maps = {
        "none": plain,
        "Keras' SpatialDropout2D": behind(keras.layers.SpatialDropout2D, 0.5),
        "PerNodeDrop": around(pnd.PerNodeDrop),
        "DropConnect": around(pnd.DropConnect),
        "SpatialDropout2D": behind(pnd.SpatialDropout2D, 0.5),
        "DropBlock2D": behind(pnd.DropBlock2D, 0.1, block_size=5),
    }
    text = {
        "none": plain,
        "Keras' recurrent_dropout": changed(recurrent_dropout=0.5),
        "NoisyRNN": around(pnd.NoisyRNN),
        "NoisyRNN, samples": around(pnd.NoisyRNN, sharing="time"),
        "NoisyRNN, variational": around(pnd.NoisyRNN, kernels=("kernel", "recurrent_kernel"), sharing="time+out"),
        "Zoneout": around(pnd.Zoneout, rate=0.05, cell_rate=0.5),
        "VariationalDropoutRNN": around(pnd.VariationalDropoutRNN, examples=1000),
        "SparseVariationalDropoutRNN": around(pnd.SparseVariationalDropoutRNN, examples=1000),
        "Keras' Dropout before": before(keras.layers.Dropout, 0.2),
        "Dropout with persistence before": before(pnd.Dropout, 0.2, persistence=0.9),
    }
    words = {
        "none": plain,
        "Keras' Dropout behind": behind(keras.layers.Dropout, 0.2),
        "DropConnect, embedding dropout": around(pnd.DropConnect, rate=0.1, sharing="sample+time+out"),
    }
    attention = {
        "none": plain,
        "Keras' attention dropout": changed(dropout=0.1),
        "AttentionDropout": around(pnd.AttentionDropout, rate=0.1),
        "NoisyAttention": around(pnd.NoisyAttention, pnd.PerNodeDrop, rate=0.1),
    }
    residual = {"none": plain, "StochasticDepth": lambda layer, parts: pnd.StochasticDepth(0.5, seed=SEED)(parts)}
    routes = [[float(unit % CLASSES == label) for unit in range(UNITS)] for label in range(CLASSES)]
    labels = {
        "none": lambda layer, x, label: x,
        "GradientRouting": lambda layer, x, label: pnd.GradientRouting(routes)(x, label),
    }
    exits = {
        "none": lambda layer, stages, leave: keras.Sequential([*stages, leave[-1]]),
        "EarlyExits": lambda layer, stages, leave: pnd.contrast.EarlyExits(stages, leave),
    }
    return {
        **{"dense": dense, "maps": maps, "text": text, "words": words, "attention": attention},
        **{"residual": residual, "labels": labels, "capsules": {"none": plain, "Capsules": capsules}, "exits": exits},
    }


def networks(keras):
    """{network: (shapes of its inputs, function (a variant, inputs) -> outputs)}; of "exits", a model."""
    layers, relu = keras.layers, {"activation": "relu"}

    def head(x):
        return layers.Dense(CLASSES, activation="softmax")(layers.Flatten()(x))

    def dense(place, x):
        return head(place(layers.Dense(UNITS, **relu), x))

    def maps(place, x):
        return head(place(layers.Conv2D(32, 3, padding="same", **relu), x))

    def text(place, x):
        return head(place(layers.LSTM(64), layers.Embedding(WORDS, 64)(x)))

    def words(place, x):
        return head(layers.GlobalAveragePooling1D()(place(layers.Embedding(WORDS, 64), x)))

    def attention(place, x):
        return head(place(layers.MultiHeadAttention(num_heads=4, key_dim=16), x, x))

    def residual(place, x):
        x = layers.Dense(UNITS, **relu)(x)
        return head(place(layers.Add(), [x, layers.Dense(UNITS, **relu)(x)]))

    def labels(place, x, label):
        return head(place(None, layers.Dense(UNITS, **relu)(x), label))

    def capsules(place, x):
        maps = layers.Conv2D(64, 9, strides=4, **relu)(x)
        return place(keras.Sequential([layers.Flatten(), layers.Dense(CLASSES, activation="softmax")]), maps)

    def exits(place, x):
        stages = [layers.Dense(UNITS, **relu) for _ in range(3)]
        return place(None, stages, [layers.Dense(CLASSES, activation="softmax") for _ in stages])

    return {
        "dense": ([(512,)], dense),
        "maps": ([(16, 16, 16)], maps),
        "text": ([(32,)], text),
        "words": ([(32,)], words),
        "attention": ([(32, 64)], attention),
        "residual": ([(512,)], residual),
        "labels": ([(512,), ()], labels),
        "capsules": ([(28, 28, 1)], capsules),
        "exits": ([(512,)], exits),
    }


def below(name, place):
    """Below which number the integers of an input are; None: it has floats."""
    return WORDS if name in ("text", "words") else CLASSES if name == "labels" and place else None


def compiled(keras, name, place):
    """The model of a variant."""
    shapes, outputs = networks(keras)[name]
    inputs = [keras.Input(one, dtype="int32" if below(name, n) else "float32") for n, one in enumerate(shapes)]
    found = outputs(place, *inputs)
    model = found if isinstance(found, keras.Model) else keras.Model(inputs, found)
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    return model


def measure(name, wanted, busy):
    """The figures of variants of a network on this process's backend, printed as JSON."""
    import keras
    import numpy as np

    import pernodedrop as pnd
    from pernodedrop.commands.bench import network as clocks
    from pernodedrop.report.environment import machine, version

    models = {variant: compiled(keras, name, variants(keras, pnd)[name][variant]) for variant in wanted}
    clock_of = time.process_time if busy else time.perf_counter
    times = {variant: clocks.Steps(clock_of) for variant in models}
    rng = np.random.default_rng(0)
    samples, shapes = STEPS.get(name, 12) * BATCH, networks(keras)[name][0]
    x = [
        rng.integers(top, size=(samples, *shape))
        if (top := below(name, n))
        else rng.random((samples, *shape), "float32")
        for n, shape in enumerate(shapes)
    ]
    labels = rng.integers(CLASSES, size=samples)
    for epoch in range(EPOCHS + 1):
        for variant, model in models.items():
            print(f"{keras.backend.backend()}: {name}, {variant} {epoch}/{EPOCHS}", file=sys.stderr, flush=True)
            clock = times[variant] if epoch else clocks.Steps()
            data = x if len(x) > 1 else x[0]
            model.fit(data, labels, batch_size=BATCH, shuffle=False, callbacks=[clock], verbose=0)
    of = min if busy else statistics.median
    found = {variant: of(clock.seconds) for variant, clock in times.items()}
    backend = keras.backend.backend()
    versions = {name: version(name) for name in ("keras", backend)}
    about = {**machine(), **versions} | ({"cores": 1, "busy": True} if busy else {})
    json.dump({"machine": about, "seconds": found}, sys.stdout)


def names():
    """{network: its variants}."""
    import keras

    import pernodedrop as pnd

    return {name: list(own) for name, own in variants(keras, pnd).items()}


def main():
    """Measure what has no figures yet."""
    if "--busy" in sys.argv:  # before a framework counts the cores
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    every = names()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["jax", "tensorflow", "torch"])
    parser.add_argument("--networks", nargs="+", default=[*every], choices=[*every])
    parser.add_argument("--again", action="store_true", help="measure what has figures")
    parser.add_argument("--busy", action="store_true", help="the machine does other work")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, *wanted = arguments.worker
        measure(name, wanted, arguments.busy)
        return
    runs = json.loads(PATH.read_text()) if PATH.exists() else []
    for backend, name in itertools.product(arguments.backends, arguments.networks):
        mine = [run for run in runs if (run["backend"], run["network"]) == (backend, name)]
        if arguments.again:
            runs, mine = [run for run in runs if run not in mine], []
        new = [variant for variant in every[name] if not any(variant in run["seconds"] for run in mine)]
        if not new:
            continue
        env = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
        command = [sys.executable, __file__, *["--busy"] * arguments.busy, "--worker", name]
        command += dict.fromkeys(["none", *new])
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
        run = {"backend": backend, "network": name, **json.loads(done.stdout.splitlines()[-1])}
        ratios = {variant: round(own / run["seconds"]["none"], 2) for variant, own in run["seconds"].items()}
        print(f"{backend}, {name}, steps by that without: {ratios}")
        runs.append(run)
        PATH.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()

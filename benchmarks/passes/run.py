"""What `uncertainty.predict` of 50 samples costs beside 50 passes that its user would write.

python benchmarks/passes/run.py                      all backends that are installed; writes results.md
python benchmarks/passes/run.py --backends torch     one, printed alone
python benchmarks/passes/run.py --clock process      CPU time, for a machine that does other work

The user's passes are calls of one function of the model with its noise, compiled on JAX and TensorFlow, batch by batch,
whose outputs and squares are added up. Both sides compile anew in each round, as every call of `predict` does; rounds
are taken in turn, and the least time counts. The networks are those of studies.
"""

import argparse
import functools
import os
import pathlib
import subprocess
import sys
import time

PATH = pathlib.Path(__file__).parent / "results.md"
SAMPLES, BATCH, BATCHES, ROUNDS, RATE = 50, 128, 4, 3, 0.5
NETWORKS = {  # of studies, and what they are given
    "dense": ("digits", {"shape": (28, 28, 1), "width": 256}),
    "convolutions": ("cifar10", {}),
}
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
TITLES = ["backend", "network", "predict, s", "by hand, s", "predict / by hand"]


def model_of(network):
    """A classifier with PerNodeDrop in its slots."""
    from pernodedrop.study import networks, variants
    from pernodedrop.study.slot import Slot

    name, settings = NETWORKS[network]
    return networks.get(name)(Slot(variants.get("per_node_drop"), RATE, 1), **settings)


def pass_of(model):
    """One pass with noise as a user of the framework writes it: a function of a batch that gives a NumPy array."""
    import keras
    import numpy as np

    if keras.backend.backend() == "jax":
        import jax

        trainable, others = (
            [one.value for one in some] for some in (model.trainable_variables, model.non_trainable_variables)
        )
        call = jax.jit(functools.partial(model.stateless_call, training=True))
        state = [others]

        def one(x):
            y, state[0] = call(trainable, state[0], x)
            return np.asarray(y)

        return one
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(lambda x: model(x, training=True))
        return lambda x: compiled(x).numpy()
    if keras.backend.backend() == "torch":
        import torch

        def one(x):
            with torch.no_grad():
                return model(x, training=True).numpy(force=True)

        return one
    return lambda x: model(x, training=True)


def by_hand(model, x):
    """The mean of the passes, and their variance."""
    import keras

    one = pass_of(model)
    found = []
    for start in range(0, len(x), BATCH):
        batch = keras.ops.convert_to_tensor(x[start : start + BATCH])
        total = squares = 0.0
        for _ in range(SAMPLES):
            y = one(batch).astype("float64")
            total, squares = total + y, squares + y**2
        found.append((total / SAMPLES, squares / SAMPLES - (total / SAMPLES) ** 2))
    return found


def measure(network, rounds, clock):
    """The least seconds of both."""
    import numpy as np

    from pernodedrop import uncertainty

    model = model_of(network)
    x = np.random.default_rng(0).random((BATCH * BATCHES, *model.input_shape[1:]), "float32")
    sides = (lambda: uncertainty.predict(model, x, SAMPLES, batch_size=BATCH), lambda: by_hand(model, x))
    least = [float("inf")] * 2
    for _ in range(rounds):
        for n, side in enumerate(sides):
            began = clock()
            side()
            least[n] = min(least[n], clock() - began)
    return least


def main():
    """Measure each backend in a process of its own, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", help="all that are installed")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="wall, or process for CPU time")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which the least time counts")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        for network in NETWORKS:
            predict, hand = measure(network, arguments.rounds, CLOCKS[arguments.clock])
            print(os.environ["KERAS_BACKEND"], network, *(f"{n:.2f}" for n in (predict, hand, predict / hand)))
        return
    from pernodedrop.report import table
    from pernodedrop.report.environment import installed_backends, machine

    lines = [TITLES]
    for backend in arguments.backends or installed_backends():
        own = [sys.executable, __file__, "--here", "--clock", arguments.clock, "--rounds", str(arguments.rounds)]
        text = subprocess.check_output(own, env={**os.environ, "KERAS_BACKEND": backend}, text=True)
        lines += [line.split() for line in text.splitlines() if line.startswith(backend)]
    print(table.as_text(lines))
    if vars(arguments) == vars(parser.parse_args([])):
        size = f"{SAMPLES} samples, {BATCHES} batches of {BATCH}, float32, rate {RATE}; compiling included."
        where = f"{machine()['cores']} cores; {machine()['processor']}."
        text = "\n\n".join(["# What predict costs", f"{size} {where}", table.as_markdown(lines)])
        PATH.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

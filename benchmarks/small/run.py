"""What a call costs where the product is small: layers, modules and ops beside Dropout and Dense, eager and in `fit`.

python benchmarks/small/run.py                       all backends that are installed, each in a process of its own
python benchmarks/small/run.py --backends torch --groups ops modules --sizes 32,64,64 --rounds 3

A step is a forward and a backward pass, to the input (where it is a tensor of the user's) and the weights; of eager
layers on JAX, whose gradients are taken of functions, it is the call alone. Steps of all rows of a group are taken in
turn, and the least time of each counts, so that what else the machine does falls out. Tables show microseconds, and the
multiple of the row "Dropout, Dense", which is the framework's own, or Keras'. Where the product is of size 1, that is
all overhead.
"""

import argparse
import itertools
import os
import subprocess
import sys
import time

SIZES = ((1, 1, 1), (32, 64, 64), (128, 512, 10))
"""Batch, inputs and outputs."""
DEPTHS = (1, 3)
GROUPS = ("ops", "modules", "layers", "fit")
ROUNDS, SECONDS, RATE = 15, 0.02, 0.5
STEPS = 40
"""Of an epoch of `fit`."""
BASELINE = "Dropout, Dense"


def ops(size, depth):
    """The raw ops, of one product, and the framework's own dropout."""
    import keras

    import pernodedrop as pnd
    from pernodedrop.commands.bench import products, steps

    backend = keras.backend.backend()
    if depth > 1 or backend == "numpy":
        return {}
    made = {
        "Dense": products.product("dense", backend, RATE),
        BASELINE: own_dropout(backend),
        "ops.masked_dense, sharing out": products.product("dropout", backend, RATE),
        "ops.masked_dense": products.product("bernoulli", backend, RATE),
        "ops.masked_dense, Gaussian": products.product("gaussian", backend, RATE),
        "ops.draw, ops.masked_dense": drawing(pnd, backend),
    }
    operands = steps.operands(size, "float32")

    def bound(product):
        step = steps.step(product, backend, "eager")
        return lambda: step(*operands)

    return {name: bound(product) for name, product in made.items() if product}


def own_dropout(backend):
    """What a user of the framework writes."""
    if backend == "torch":
        import torch

        return lambda x, w, key: torch.nn.functional.dropout(x, RATE) @ w
    if backend == "tensorflow":
        import tensorflow as tf

        return lambda x, w, key: tf.nn.dropout(x, RATE) @ w
    import jax

    first = jax.random.key(0)

    def of_key(x, w, key):
        kept = jax.random.bernoulli(jax.random.fold_in(first, 1), 1 - RATE, x.shape)
        return jax.numpy.where(kept, x / (1 - RATE), 0) @ w

    return of_key


def drawing(pnd, backend):
    """With a key that is drawn; where state is not changed in place nobody draws in a step."""
    noise = pnd.Bernoulli(RATE)
    if backend == "jax":
        return None
    if backend == "torch":
        import torch

        state = torch.tensor([1, 0], dtype=torch.int32)
    else:
        import tensorflow as tf

        state = tf.Variable([1, 0])
    return lambda x, w, key: pnd.ops.masked_dense(x, w, noise, pnd.ops.draw(state))


def modules(size, depth):
    """Native modules of torch."""
    import keras

    if keras.backend.backend() != "torch":
        return {}
    import torch

    import pernodedrop.torch as pndt

    rows = {
        "Dense": lambda n, m: [torch.nn.Linear(n, m)],
        BASELINE: lambda n, m: [torch.nn.Dropout(RATE), torch.nn.Linear(n, m)],
        "pnd.torch.Dropout, Linear": lambda n, m: [pndt.Dropout(RATE, seed=1), torch.nn.Linear(n, m)],
        "PerNodeLinear": lambda n, m: [pndt.PerNodeLinear(n, m, rate=RATE, seed=1)],
        "DropConnectLinear": lambda n, m: [pndt.DropConnectLinear(n, m, rate=RATE, seed=1)],
    }
    batch, inputs, outputs = size

    def step_of(make):
        model = torch.nn.Sequential(*stacked(make, inputs, outputs, depth))
        x, dy = torch.randn(batch, inputs, requires_grad=True), torch.randn(batch, outputs)
        wanted = [x, *model.parameters()]
        return lambda: torch.autograd.grad(model(x), wanted, dy)

    return {name: step_of(make) for name, make in rows.items()}


def stacked(make, inputs, outputs, depth):
    """The layers of a network of some depth."""
    return [layer for n, m in itertools.pairwise([*[inputs] * depth, outputs]) for layer in make(n, m)]


def keras_models(size, depth):
    """Keras' layers and ours by name: models of some depth."""
    import keras

    import pernodedrop as pnd

    rows = {
        "Dense": lambda n, m: [keras.layers.Dense(m)],
        BASELINE: lambda n, m: [keras.layers.Dropout(RATE), keras.layers.Dense(m)],
        "pnd.Dropout, Dense": lambda n, m: [pnd.Dropout(RATE, seed=1), keras.layers.Dense(m)],
        "PerNodeDrop": lambda n, m: [pnd.PerNodeDrop(keras.layers.Dense(m), RATE, seed=1)],
        "PerNodeDrop, Gaussian": lambda n, m: [pnd.PerNodeDrop(keras.layers.Dense(m), RATE, "gaussian", seed=1)],
        "DropConnect": lambda n, m: [pnd.DropConnect(keras.layers.Dense(m), RATE, seed=1)],
    }
    _, inputs, outputs = size
    return {
        name: keras.Sequential([keras.Input((inputs,)), *stacked(make, inputs, outputs, depth)])
        for name, make in rows.items()
    }


def layers(size, depth):
    """Keras layers, called one after the other."""
    import keras
    import numpy as np

    backend, (batch, inputs, outputs) = keras.backend.backend(), size
    rng = np.random.default_rng(0)
    x, dy = (keras.ops.convert_to_tensor(rng.standard_normal((batch, n), "float32")) for n in (inputs, outputs))

    def step_of(model):
        def call():
            y = x
            for layer in model.layers:
                y = layer(y) if isinstance(layer, keras.layers.Dense) else layer(y, training=True)
            return y

        weights = [variable.value for variable in model.trainable_variables]
        if backend == "torch":
            import torch

            return lambda: torch.autograd.grad(call(), weights, dy)
        if backend == "tensorflow":
            import tensorflow as tf

            def step():
                with tf.GradientTape() as tape:
                    y = call()
                return tape.gradient(y, weights, dy)

            return step
        if backend == "jax":
            import jax

            return lambda: jax.block_until_ready(call())
        return call

    return {name: step_of(model) for name, model in keras_models(size, depth).items()}


def fit(size, depth):
    """An epoch of `fit`."""
    import keras
    import numpy as np

    if keras.backend.backend() == "numpy":
        return {}
    batch, inputs, outputs = size
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((batch * STEPS, n), "float32") for n in (inputs, outputs))

    def epoch_of(model):
        model.compile("sgd", "mse")
        return lambda: model.fit(x, y, batch_size=batch, epochs=1, shuffle=False, verbose=0)

    return {name: epoch_of(model) for name, model in keras_models(size, depth).items()}


def seconds_of(steps, rounds):
    """The least seconds of each step; all are timed in turn."""
    counts, least = {}, {}
    for name, step in steps.items():
        step()
        step()
        began = time.perf_counter()
        step()
        counts[name] = max(1, min(200, round(SECONDS / (time.perf_counter() - began))))
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(counts[name]):
                step()
            least[name] = min(least.get(name, float("inf")), (time.perf_counter() - began) / counts[name])
    return least


def tables(groups, sizes, depths, rounds):
    """A table a group: a line a row, a column a size and depth."""
    for group in groups:
        columns = {}
        for size in sizes:
            for depth in depths:
                steps = globals()[group](size, depth)
                scale = STEPS if group == "fit" else 1
                if steps:
                    columns[size, depth] = {n: s / scale for n, s in seconds_of(steps, rounds).items()}
        if columns:
            titles = [f"{b} x {n} -> {m}" + (f", {depth} layers" if depth > 1 else "") for (b, n, m), depth in columns]
            lines = [[group, *titles]]
            for name in next(iter(columns.values())):
                cells = [f"{1e6 * own[name]:.0f} ({own[name] / own[BASELINE]:.2f})" for own in columns.values()]
                lines.append([name, *cells])
            yield lines


def main():
    """Measure and print, one process a backend."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = lambda text: tuple(map(int, text.split(",")))  # noqa: E731 - it is an argument
    parser.add_argument("--backends", nargs="+", help="those of Keras; all that are installed")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--sizes", nargs="+", type=size, default=SIZES, help="batch,inputs,outputs, of each column")
    parser.add_argument("--depths", nargs="+", type=int, default=DEPTHS, help="layers in a row")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which the least time counts")
    arguments = parser.parse_args()
    if "PERNODEDROP_SMALL" not in os.environ:
        from pernodedrop.commands import framework

        for backend in arguments.backends or framework.usable():
            more = {"KERAS_BACKEND": backend, "PERNODEDROP_SMALL": "1"}
            subprocess.run([sys.executable, *sys.argv], env={**os.environ, **more}, check=True)
        return
    from pernodedrop.report import environment, table

    backend = os.environ["KERAS_BACKEND"]
    about = environment.environment(backend)
    print(f"\n{backend} {about['framework']}, {environment.cores()} cores, microseconds (x {BASELINE})", flush=True)
    for lines in tables(arguments.groups, arguments.sizes, arguments.depths, arguments.rounds):
        print("\n" + table.as_text(lines), flush=True)


if __name__ == "__main__":
    main()

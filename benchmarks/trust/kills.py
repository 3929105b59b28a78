"""Training that is killed and resumed, over and over, beside a run that nothing disturbs.

    python benchmarks/trust/kills.py --kills 1000           until kills.json has so many of each way on each backend
    KERAS_BACKEND=torch python benchmarks/trust/kills.py --worker 20     some, printed as JSON

A run is killed with SIGKILL again and again, and resumed by a new process from what was saved. When it has come to its
end, its weights, those of the optimizer, and what the next training call and the key are must be, to the bit, those of
a run that nothing disturbed. The processes are forked from one that has imported the framework and not used it yet.

    BackupAndRestore   killed after a random step, so that steps since the last backup are done again
    ModelCheckpoint    killed at a random moment, also while it writes: the newest file that loads is taken
    state_dict         torch modules and an optimizer of torch, likewise; files are replaced as a whole
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

# each process would import or compile these anew, for seconds
sys.modules["numba"] = None  # the masks are the same without
if os.environ.get("KERAS_BACKEND") in ("jax", "torch"):
    sys.modules["tensorflow"] = None
CACHE = tempfile.TemporaryDirectory()  # of what JAX compiles: the undisturbed run's
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", CACHE.name)
os.environ.update(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1")

import keras  # noqa: E402
import numpy as np  # noqa: E402

import pernodedrop as pnd  # noqa: E402

PATH = pathlib.Path(__file__).parent / "kills.json"
BACKENDS = ("jax", "tensorflow", "torch")
EPOCHS, STEPS, BATCH = 5, 4, 8
A_RUN = 5  # kills
AT_ONCE = 50  # kills in a process, after which it is noted what came of them
RNG = np.random.default_rng(0)
X, Y = (RNG.normal(size=(STEPS * BATCH, n)).astype("float32") for n in (6, 2))


class Fatal(keras.callbacks.Callback):
    """Kills its process after a share of the steps that are left."""

    def __init__(self, share):
        super().__init__()
        self.share, self.left = share, None

    def on_train_batch_end(self, batch, logs=None):
        if self.left is None:
            done = int(self.model.optimizer.iterations.numpy()) - 1
            self.left = int(self.share * (EPOCHS * STEPS - done))
        if self.left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def model_of():
    """Noise of weights and activations, at rates that change, and an optimizer that remembers."""
    keras.utils.set_random_seed(0)
    rate = pnd.schedules.Linear(0.1, 0.5, steps=EPOCHS * STEPS)
    # "recomputed" would be compiled on TensorFlow
    noisy = pnd.PerNodeDrop(keras.layers.Dense(5), rate=rate, method="materialized", seed=1)
    model = keras.Sequential([keras.Input((6,)), noisy, pnd.TabuDropout(0.3, seed=2), keras.layers.Dense(2)])
    # op by op: a process for a few steps would spend seconds on compiling them
    eager = {"run_eagerly": True} if keras.backend.backend() != "jax" else {}
    model.compile(keras.optimizers.Adam(0.05), "mse", **eager)
    return model


def fitted(model, callbacks, first=0):
    """Train from an epoch on, and what there is then."""
    model.fit(X, Y, batch_size=BATCH, epochs=EPOCHS, initial_epoch=first, shuffle=False, callbacks=callbacks, verbose=0)
    arrays = [keras.ops.convert_to_numpy(variable) for variable in [*model.variables, *model.optimizer.variables]]
    return [*arrays, keras.ops.convert_to_numpy(model(X, training=True))]


def backup_and_restore(folder, share):
    """A run, or what is left of it; `share` of it until the end of the process, or None."""
    fatal = [] if share is None else [Fatal(share)]
    return fitted(model_of(), [keras.callbacks.BackupAndRestore(folder / "backup"), *fatal])


def model_checkpoint(folder, share):
    """Likewise; it is killed from outside."""
    saving = keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras")
    for epoch in range(EPOCHS, 0, -1):
        with contextlib.suppress(OSError, ValueError, KeyError):  # there is none, or it was killed while it was written
            return fitted(keras.saving.load_model(folder / f"{epoch}.keras"), [saving], epoch)
    return fitted(model_of(), [saving])


def state_dict(folder, share):
    """Likewise, without Keras."""
    import torch

    import pernodedrop.torch as pndt

    torch.manual_seed(0)
    noisy = [pndt.PerNodeLinear(6, 5, rate=0.5, seed=1), torch.nn.Tanh(), pndt.Dropout(0.3, seed=2)]
    model = torch.nn.Sequential(*noisy, torch.nn.Linear(5, 2))
    optimizer, done = torch.optim.Adam(model.parameters(), 0.05), 0
    if (folder / "state.pt").exists():
        state, of_optimizer, done = torch.load(folder / "state.pt")
        model.load_state_dict(state)
        optimizer.load_state_dict(of_optimizer)
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    for step in range(done, EPOCHS * STEPS):
        rows = slice(step % STEPS * BATCH, (step % STEPS + 1) * BATCH)
        optimizer.zero_grad()
        ((model(x[rows]) - y[rows]) ** 2).mean().backward()
        optimizer.step()
        torch.save([model.state_dict(), optimizer.state_dict(), step + 1], folder / "new.pt")
        (folder / "new.pt").replace(folder / "state.pt")
    return [*(tensor.numpy() for tensor in model.state_dict().values()), model(x).detach().numpy()]


WAYS = {"BackupAndRestore": backup_and_restore, "ModelCheckpoint": model_checkpoint}
if keras.backend.backend() == "torch":
    WAYS["state_dict"] = state_dict
OUTSIDE = ("ModelCheckpoint", "state_dict")


def forked(way, folder, share=None, moment=None):
    """Train in a process of its own; return whether it was killed, and after how many seconds it ended."""
    ready, begun = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(begun, b"!")
            arrays = way(folder, share)
            np.savez(folder / "new.npz", *arrays)
            (folder / "new.npz").replace(folder / "end.npz")
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.read(ready, 1)
    began = time.monotonic()
    if moment is not None:
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(ready)
    os.close(begun)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a process that was not killed failed")
    return os.WIFSIGNALED(status), time.monotonic() - began


def arrays_of(folder):
    with np.load(folder / "end.npz") as found:
        return [found[name] for name in found.files]


def survived(name, way, kills, chance):
    """How many kills there were in how many runs, and how many of these came to the end of the undisturbed one."""
    with tempfile.TemporaryDirectory() as root:
        whole = pathlib.Path(root, "whole")
        whole.mkdir()
        _, duration = forked(way, whole)
        undisturbed, count, runs, equal = arrays_of(whole), 0, 0, 0
        while count < kills:
            runs += 1
            folder = pathlib.Path(root, str(runs))
            folder.mkdir()
            for _ in range(min(A_RUN, kills - count)):
                outside = name in OUTSIDE
                by = {"moment": chance.uniform(0, duration)} if outside else {"share": chance.random()}
                count += forked(way, folder, **by)[0]
                if (folder / "end.npz").exists():
                    break
            else:
                forked(way, folder)
            found = arrays_of(folder)
            equal += all(map(np.array_equal, found, undisturbed)) and len(found) == len(undisturbed)
    return {"kills": count, "runs": runs, "equal": equal}


def work(kills, seed, ways):
    """Print what came of the ways of this backend."""
    chance = random.Random(seed)
    print(json.dumps({name: survived(name, WAYS[name], kills, chance) for name in ways or WAYS}))


def main():
    """Kill, on all backends, and keep what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000, help="of each way on each backend, with those of before")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--ways", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.seed, arguments.ways)
        return
    for backend in arguments.backends:
        env = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        while True:
            found = json.loads(PATH.read_text()) if PATH.exists() else {}
            of = found.setdefault(backend, {})
            done = min((counts["kills"] for counts in of.values()), default=0)
            if done >= arguments.kills:
                break
            some = min(AT_ONCE, arguments.kills - done)
            command = [sys.executable, __file__, "--worker", str(some), "--seed", str(done)]
            output = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout
            for name, new in json.loads(output.splitlines()[-1]).items():
                before = of.get(name, dict.fromkeys(new, 0))
                of[name] = {what: before[what] + new[what] for what in new}
            PATH.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

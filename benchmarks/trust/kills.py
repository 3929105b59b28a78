"""Training that is killed and resumed, over and over, beside a run that nothing disturbs.

    python benchmarks/trust/kills.py --kills 1000           until kills.json has so many of each way on each backend
    KERAS_BACKEND=torch python benchmarks/trust/kills.py --worker 20     some, printed as JSON

A run is killed with SIGKILL again and again, and resumed by a new process from what was saved. When it has come to its
end, its weights, those of the optimizer, and what the next training call and the key are must be, to the bit, those of
a run that nothing disturbed. As one that starts anew would end there too, every process must begin at the very step
that was last saved; a run whose last process began after step 0 counts as resumed. The processes are forked from one
that has imported the framework and not used it yet.

    BackupAndRestore   killed after a random step, so that steps since the last backup are done again
    ModelCheckpoint    killed at a random moment, also while it writes: where the newest file does not load, the one
                       before is taken; one is torn by hand, too, so that there is one
    state_dict         torch modules and an optimizer of torch, likewise; files are replaced as a whole
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile

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


class Noted(keras.callbacks.Callback):
    """Notes the step at which training begins; behind the callbacks that restore."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_train_begin(self, logs=None):
        note(self.folder, int(self.model.optimizer.iterations.numpy()))


def note(folder, step):
    (folder / "new").write_text(str(step))
    (folder / "new").replace(folder / "begun")


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


def fitted(folder, model, callbacks, first=0):
    """Train from an epoch on, and what there is then."""
    callbacks = [*callbacks, Noted(folder)]
    model.fit(X, Y, batch_size=BATCH, epochs=EPOCHS, initial_epoch=first, shuffle=False, callbacks=callbacks, verbose=0)
    arrays = [keras.ops.convert_to_numpy(variable) for variable in [*model.variables, *model.optimizer.variables]]
    return [*arrays, keras.ops.convert_to_numpy(model(X, training=True))]


def backup_and_restore(folder, share):
    """A run, or what is left of it; `share` of it until the end of the process, or None."""
    fatal = [] if share is None else [Fatal(share)]
    return fitted(folder, model_of(), [keras.callbacks.BackupAndRestore(folder / "backup"), *fatal])


def model_checkpoint(folder, share):
    """Likewise; it is killed from outside."""
    saving = keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras")
    newest = epochs_of(folder)[-1:]
    for epoch in reversed(epochs_of(folder)):
        try:
            model = keras.saving.load_model(folder / f"{epoch}.keras")
        except ValueError:  # it was killed while it wrote this one
            if [epoch] != newest:
                raise
        else:
            return fitted(folder, model, [saving], epoch)
    return fitted(folder, model_of(), [saving])


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
    note(folder, done)
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    for step in range(done, EPOCHS * STEPS):
        rows = slice(step % STEPS * BATCH, (step % STEPS + 1) * BATCH)
        optimizer.zero_grad()
        ((model(x[rows]) - y[rows]) ** 2).mean().backward()
        optimizer.step()
        torch.save([model.state_dict(), optimizer.state_dict(), step + 1], folder / "new.pt")
        (folder / "new.pt").replace(folder / "state.pt")
    return [*(tensor.numpy() for tensor in model.state_dict().values()), model(x).detach().numpy()]


def epochs_of(folder):
    """The epochs that ModelCheckpoint wrote or began to write."""
    return sorted(int(path.stem) for path in folder.glob("*.keras"))


def is_whole(path):
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except zipfile.BadZipFile:
        return False


def in_backup(folder):
    """The step of what BackupAndRestore saved last."""
    path = folder / "backup" / "training_metadata.json"
    return json.loads(path.read_text())["epoch"] * STEPS if path.exists() else 0


def in_checkpoints(folder):
    """The step of the newest whole file of ModelCheckpoint."""
    return max((epoch * STEPS for epoch in epochs_of(folder) if is_whole(folder / f"{epoch}.keras")), default=0)


def in_state(folder):
    """The step of the state that was saved last."""
    import torch

    return torch.load(folder / "state.pt")[2] if (folder / "state.pt").exists() else 0


WAYS = {"BackupAndRestore": (backup_and_restore, in_backup), "ModelCheckpoint": (model_checkpoint, in_checkpoints)}
if keras.backend.backend() == "torch":
    WAYS["state_dict"] = (state_dict, in_state)
OUTSIDE = ("ModelCheckpoint", "state_dict")


def forked(way, folder, share=None, moment=None):
    """Train in a process of its own; return whether it was killed, at which step it began, and its seconds."""
    train, saved = WAYS[way]
    expected = saved(folder)
    (folder / "begun").unlink(missing_ok=True)
    ready, begun = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(begun, b"!")
            arrays = train(folder, share)
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
    killed, seconds = os.WIFSIGNALED(status), time.monotonic() - began
    step = int((folder / "begun").read_text()) if (folder / "begun").exists() else None
    if step != expected and not (killed and step is None):
        raise RuntimeError(f"training by {way} began at step {step}, and saved was step {expected}")
    return killed, step, seconds


def arrays_of(folder):
    with np.load(folder / "end.npz") as found:
        return [found[name] for name in found.files]


def has_torn(folder):
    """Whether the newest file of ModelCheckpoint is one that was not written to its end."""
    return any(not is_whole(folder / f"{epoch}.keras") for epoch in epochs_of(folder)[-1:])


def survived(way, kills, chance):
    """How many kills there were in how many runs; how many of these came to the end of the undisturbed one, how many in
    a process that had resumed; and how many processes found a torn file.
    """
    seen = dict.fromkeys(("kills", "runs", "equal", "resumed", "torn"), 0)

    def run(folder, **by):
        """A process of a run; with the last one the run is counted."""
        beside = has_torn(folder)
        killed, step, seconds = forked(way, folder, **by)
        seen["kills"] += killed
        seen["torn"] += beside and step is not None
        if (folder / "end.npz").exists() and folder != whole:
            found = arrays_of(folder)
            seen["runs"] += 1
            seen["equal"] += all(map(np.array_equal, found, undisturbed)) and len(found) == len(undisturbed)
            seen["resumed"] += step > 0
        return seconds

    with tempfile.TemporaryDirectory() as root:
        whole = pathlib.Path(root, "whole")
        whole.mkdir()
        duration = run(whole)
        undisturbed = arrays_of(whole)
        if way == "ModelCheckpoint":
            folder = shutil.copytree(whole, whole.with_name("torn"), ignore=shutil.ignore_patterns("*.npz"))
            newest = folder / f"{EPOCHS}.keras"
            os.truncate(newest, newest.stat().st_size // 2)
            run(folder)
        while seen["kills"] < kills:
            folder = whole.with_name(str(seen["runs"]))
            folder.mkdir()
            for _ in range(min(A_RUN, kills - seen["kills"])):
                by = {"moment": chance.uniform(0, duration)} if way in OUTSIDE else {"share": chance.random()}
                run(folder, **by)
                if (folder / "end.npz").exists():
                    break
            else:
                run(folder)
    return seen


def work(kills, seed, ways):
    """Print what came of the ways of this backend."""
    chance = random.Random(seed)
    print(json.dumps({way: survived(way, kills, chance) for way in ways or WAYS}))


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

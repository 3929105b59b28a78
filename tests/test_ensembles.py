"""Ensembles of trained models: what each was trained with, and what a folder keeps of them."""

import math
import pathlib

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop import uncertainty
from pernodedrop.uncertainty import ensembles, prediction

X = np.ones((6, 2), "float32")
trains = pytest.mark.skip_backend("numpy", reason="Keras does not train on NumPy")


def host(tensor):
    return np.array(keras.ops.convert_to_numpy(tensor))


def slope(y, p):
    return keras.ops.mean(p)


def sloped(momentum=0.0, start="zeros"):
    """A model of two weights w with the loss w_1 + w_2, whose gradient is 1, whatever the data and their order."""
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer=start)
    model = keras.Sequential([keras.Input((2,)), dense])
    model.compile(keras.optimizers.SGD(0.5, momentum=momentum), slope)
    return model


def weights(models):
    return [host(model.layers[-1].kernel)[0, 0] for model in models]


def paper(t, steps, highest):
    """The learning rate at step t of cycles of so many steps, as the paper's equation 2 has it, from 0."""
    return highest / 2 * (math.cos(math.pi * (t % steps) / steps) + 1)


def fit(model, *callbacks, epochs=4, **kwargs):
    """Three batches an epoch."""
    model.fit(X, X[:, :1], batch_size=2, epochs=epochs, callbacks=list(callbacks), verbose=0, **kwargs)


@trains
def test_snapshots_are_the_weights_at_the_ends_of_cosines(tmp_path):
    """With the gradient 1, a weight is minus the sum of all learning rates."""
    snapshots, model = ensembles.SnapshotEnsemble(tmp_path / "s", epochs=2, learning_rate=0.3), sloped()
    fit(model, snapshots, epochs=5)  # the last epoch is in no cycle
    rates = [paper(t, 6, 0.3) for t in range(15)]
    np.testing.assert_allclose(weights(snapshots.models()), [-sum(rates[:6]), -sum(rates[:12])], rtol=1e-5)
    np.testing.assert_allclose(weights([model]), -sum(rates), rtol=1e-5)
    elsewhere = ensembles.SnapshotEnsemble(tmp_path / "s", 2, 0.3).models(sloped())
    assert weights(elsewhere) == weights(snapshots.models())
    found = uncertainty.predict(snapshots.models(), X, keep=True)
    np.testing.assert_allclose(found.outputs[:, 0, 0], 2 * np.array(weights(elsewhere)), rtol=1e-6)


class Stops(keras.callbacks.Callback):
    """Interrupts a training at the end of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@trains
@pytest.mark.parametrize("by", ["resume", "backup"])
def test_an_interrupted_training_goes_on_as_if_it_were_not(by, tmp_path):
    """With momentum, which the optimizer remembers."""
    whole = ensembles.SnapshotEnsemble(tmp_path / "whole", 2, 0.3)
    fit(sloped(momentum=0.9), whole, epochs=6)
    first = ensembles.SnapshotEnsemble(tmp_path / "parts", 2, 0.3)
    backups = [[keras.callbacks.BackupAndRestore(tmp_path / "backup")] if by == "backup" else [] for _ in range(2)]
    with pytest.raises(KeyboardInterrupt):
        # in the middle of the second cycle; or of the first one's end, of which the backup does not know
        fit(sloped(momentum=0.9), first, *([Stops(1)] if by == "backup" else [Stops(2)]), *backups[0], epochs=6)
    second, model = ensembles.SnapshotEnsemble(tmp_path / "parts", 2, 0.3), sloped(momentum=0.9)
    start = second.resume(model) if by == "resume" else 0
    assert start == (2 if by == "resume" else 0)
    fit(model, second, *backups[1], epochs=6, initial_epoch=start)
    np.testing.assert_allclose(weights(second.models()), weights(whole.models()), rtol=1e-5)
    assert len(second.models()) == 3


@trains
def test_another_training_does_not_write_over_snapshots(tmp_path):
    snapshots = ensembles.SnapshotEnsemble(tmp_path, epochs=2, learning_rate=0.3)
    fit(sloped(), snapshots)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"`folder`.*initial_epoch=4"):
        fit(sloped(start="ones"), snapshots)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@trains
def test_snapshots_need_to_know_how_long_an_epoch_is(tmp_path):
    data, snapshots = ((X, X) for _ in range(2)), ensembles.SnapshotEnsemble(tmp_path, 1, 0.3)
    with pytest.raises(ValueError, match=r"`steps_per_epoch`.*a number"):
        sloped().fit(data, shuffle=False, callbacks=[snapshots], verbose=0)


def noisy():
    noise = [pnd.Dropout(0.5), keras.layers.Dense(3), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((2,)), *noise])
    model.compile("adam", "mse")
    return model


@trains
def test_members_are_those_that_are_trained_by_hand_from_their_seeds(tmp_path):
    ensemble = ensembles.DeepEnsemble(noisy, tmp_path / "deep", members=2, seed=7)
    data = np.random.default_rng(0).normal(size=(6, 2)).astype("float32")
    ensemble.fit(data, data[:, :1], batch_size=2, epochs=2, verbose=0)
    outputs = []
    for member in range(2):
        keras.utils.set_random_seed(prediction.word_of(7, member))
        model = noisy()
        model.fit(data, data[:, :1], batch_size=2, epochs=2, verbose=0)
        outputs.append(model.predict(data, verbose=0))
    plain = [model.predict(data, verbose=0) for model in ensemble.models()]
    np.testing.assert_allclose(plain, outputs, atol=1e-6)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    assert [file.name for file in sorted((tmp_path / "deep").iterdir())] == [
        "ensemble.json",
        "member-000.weights.h5",
        "member-001.weights.h5",
    ]


@trains
def test_what_was_trained_is_not_trained_again_and_what_was_interrupted_goes_on(tmp_path):
    """By the sum of learning rates: a member that was begun again would have more of them, or fewer."""
    made, epochs = [], []

    def make():
        made.append(sloped(momentum=0.9))
        return made[-1]

    count = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))
    ensemble = ensembles.DeepEnsemble(make, tmp_path, members=3)
    fit(ensemble, count, member=1)
    fit(ensemble, count)
    wanted = weights(ensemble.models())
    assert (len(made), epochs) == (6, [0, 1, 2, 3] * 3)
    (tmp_path / "member-002.weights.h5").unlink()
    with pytest.raises(KeyboardInterrupt):
        fit(ensemble, Stops(2))
    epochs.clear()
    fit(ensembles.DeepEnsemble(make, tmp_path, members=3), count)
    assert epochs == [2, 3]
    np.testing.assert_allclose(weights(ensemble.models()), wanted, rtol=1e-6)


@trains
@pytest.mark.parametrize("of", ["training", "member"])
def test_a_member_is_kept_whole_or_not_at_all(of, tmp_path, monkeypatch):
    """A process that ends while it writes leaves what it had: the training goes on as if it were not."""
    ensemble, save_weights = ensembles.DeepEnsemble(sloped, tmp_path, members=1), keras.Model.save_weights

    def broken(self, filepath, **kwargs):
        save_weights(self, filepath, **kwargs)
        if of in pathlib.Path(filepath).name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "save_weights", broken)
        with pytest.raises(KeyboardInterrupt):
            fit(ensemble)
    with pytest.raises(ValueError, match=r"`folder`.*a member that was trained"):
        ensemble.models()
    fit(ensemble)
    np.testing.assert_allclose(weights(ensemble.models()), [-0.5 * 12], rtol=1e-6)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"`folder`.*a new or empty folder"):
        ensembles.DeepEnsemble(sloped, tmp_path)
    with pytest.raises(ValueError, match=r"`folder`.*a new or empty folder"):
        ensembles.SnapshotEnsemble(tmp_path, 1, 0.1)
    ensembles._Folder(tmp_path / "deep", {"kind": "deep", "seed": 0}).claim()
    with pytest.raises(ValueError, match=r"`folder`.*'seed': 0"):
        ensembles.DeepEnsemble(sloped, tmp_path / "deep", seed=1)
    with pytest.raises(ValueError, match=r"`folder`.*a member that was trained"):
        ensembles.DeepEnsemble(sloped, tmp_path / "deep", seed=0).models()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda path: ensembles.DeepEnsemble(3, path), "`make`.*a function"),
        (lambda path: ensembles.DeepEnsemble(sloped, path, members=0), "`members`.*from 1"),
        (lambda path: ensembles.DeepEnsemble(sloped, path, seed=None), "`seed`.*an int"),
        (lambda path: ensembles.DeepEnsemble(sloped, path, 2).fit(X, member=2), "`member`.*below 2"),
        (lambda path: ensembles.SnapshotEnsemble(path, 0, 0.1), "`epochs`.*from 1"),
        (lambda path: ensembles.SnapshotEnsemble(path, 1, 0.0), "`learning_rate`.*above zero"),
        (lambda path: ensembles.DeepEnsemble(sloped, 3), "`folder`.*a path.*folder=3"),
        (lambda path: ensembles.DeepEnsemble(sloped, path / ("x" * 10**4)), "`folder`.*a path.*too long"),
        (lambda path: ensembles.SnapshotEnsemble("\0", 1, 0.1), r"`folder`.*a path.*null (byte|character)"),
        (lambda path: ensembles.SnapshotEnsemble("", 1, 0.1), "`folder`.*a path.*folder=''"),
        (lambda path: ensembles.SnapshotEnsemble(__file__, 1, 0.1), "`folder`.*a folder.*test_ensembles.py"),
    ],
)
def test_what_an_ensemble_refuses(call, words, tmp_path):
    with pytest.raises((TypeError, ValueError), match=words):
        call(tmp_path)

"""Ensembles of trained models, kept in a folder: copies trained from other seeds, or snapshots of one training.

Their `models` go into `uncertainty.predict`, which takes lists of models. Averages of weights are Keras' own:
`keras.callbacks.SwapEMAWeights` with an optimizer that has `use_ema=True`.
"""

import collections.abc
import json
import math
import os
import pathlib
import typing

import keras

from pernodedrop import checks
from pernodedrop.surgery.copying import copy_of
from pernodedrop.uncertainty.prediction import word_of

__all__ = ["DeepEnsemble", "SnapshotEnsemble"]

NOTE = "ensemble.json"
Path: typing.TypeAlias = str | os.PathLike[str]


class DeepEnsemble:
    """Models of one kind, trained one after another from other seeds (arXiv 1612.01474).

    Each member has other initial weights, another order of the data and other noise. What is trained is kept in a
    folder: a `fit` that was interrupted, also by the end of its process, goes on where the last epoch ended, and
    members that are there are not trained again, whatever they were trained on.

    Args:
        make: function without arguments to a new model, built and compiled, such as one with a `keras.Input`.
        folder: where it is kept, a new or empty folder or one of this ensemble.
        members: number of models, an int from 1; 5. With more later on, only those that are new are trained.
        seed: an int; 0. Member m is made and trained after `keras.utils.set_random_seed` of a number of (seed, m).

    Raises:
        TypeError, ValueError: an argument that is not as described, such as the folder of something else.

    Example:

    >>> import tempfile, keras, numpy as np
    >>> from pernodedrop.uncertainty import ensembles, predict
    >>> def make():
    ...     model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    ...     model.compile("sgd", "mse")
    ...     return model
    >>> x = np.ones((4, 3), "float32")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ensemble = ensembles.DeepEnsemble(make, folder, members=2)
    ...     if keras.backend.backend() != "numpy":  # on which Keras does not train
    ...         ensemble.fit(x, x[:, :1], epochs=2, verbose=0)
    ...         _ = predict(ensemble.models(), x)
    """

    def __init__(
        self, make: collections.abc.Callable[[], keras.Model], folder: Path, members: int = 5, seed: int = 0
    ) -> None:
        if not callable(make):
            raise TypeError(checks.invalid("make", "a function to a model", make))
        if checks.check_seed(seed) is None:
            raise TypeError(checks.invalid("seed", "an int", seed))
        self.make, self.seed = make, int(seed)
        self.members = checks.check_count(members, "members")
        self._kept = _Folder(folder, {"kind": "deep", "seed": self.seed})

    def fit(
        self,
        *args: typing.Any,
        member: int | None = None,
        callbacks: collections.abc.Sequence[keras.callbacks.Callback] = (),
        **kwargs: typing.Any,
    ) -> None:
        """Train the members that are not there yet.

        Args:
            member: the only one to train, an int in [0, members), so that processes share the work; None for all.
            callbacks: callbacks of each training; one that is resumed starts them anew.
            *args, **kwargs: what the `fit` of the model takes.

        Raises:
            ValueError: a member that does not exist, or the folder of something else.
        """
        wanted = range(self.members)
        if member is not None:
            if checks.check_count(member, "member", least=0) >= self.members:
                raise ValueError(checks.invalid("member", f"an int below {self.members}", member))
            wanted = range(member, member + 1)
        self._kept.claim()
        for one in wanted:
            if one in self._kept.members():
                continue
            keras.utils.set_random_seed(word_of(self.seed, one))
            model = self.make()
            epoch = self._kept.resume(model, one)
            model.fit(*args, initial_epoch=epoch, callbacks=[*callbacks, _EachEpoch(self._kept, one)], **kwargs)
            self._kept.keep(model, one)

    def models(self) -> list[keras.Model]:
        """The members that were trained, new models of `make` with their weights.

        Raises:
            ValueError: none is there.
        """
        return self._kept.models(self.make)


class SnapshotEnsemble(keras.callbacks.Callback):
    """A callback for one training that ends in several models (Snapshot Ensembles, arXiv 1704.00109).

    The learning rate falls from `learning_rate` to 0 along half a cosine and starts again, with each batch; at the end
    of each cycle the weights are kept in a folder. Another training does not overwrite them: if it would train a cycle
    whose snapshot is there, it is refused at its first epoch.

    To go on with a training, begin at the epoch that `resume` returns; or go on from any epoch, with
    `keras.callbacks.BackupAndRestore` beside.

    Args:
        folder: where snapshots are kept, a new or empty folder or one of this ensemble.
        epochs: length of a cycle, an int from 1. Train a multiple of it: what is after the last cycle is not kept.
        learning_rate: highest learning rate, a float above 0. The optimizer's own must be a number, not a schedule, and
            is overwritten.

    Raises:
        TypeError, ValueError: an argument that is not as described, such as the folder of something else; in `fit`,
            data of unknown length without `steps_per_epoch`.

    Example:

    >>> import tempfile, keras, numpy as np
    >>> from pernodedrop.uncertainty import ensembles, predict
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x = np.ones((4, 3), "float32")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     snapshots = ensembles.SnapshotEnsemble(folder, epochs=2, learning_rate=0.1)
    ...     if keras.backend.backend() != "numpy":  # on which Keras does not train
    ...         _ = model.fit(x, x[:, :1], epochs=6, callbacks=[snapshots], verbose=0)
    ...         assert predict(snapshots.models(), x).samples == 3
    """

    def __init__(self, folder: Path, epochs: int, learning_rate: float) -> None:
        super().__init__()
        self.epochs = checks.check_count(epochs, "epochs")
        self.learning_rate = checks.check_positive(learning_rate, "learning_rate")
        self._kept = _Folder(folder, {"kind": "snapshots", "epochs": self.epochs, "learning_rate": self.learning_rate})
        self._epoch = 0

    def on_train_begin(self, logs: typing.Any = None) -> None:
        if not self.params.get("steps"):
            raise ValueError(checks.invalid("steps_per_epoch", "a number, for data of unknown length", None))
        self._kept.claim()

    def on_epoch_begin(self, epoch: int, logs: typing.Any = None) -> None:
        self._epoch, end = epoch, self._end()
        if end > epoch + 1:  # that of this epoch is there where the process ended before it told so
            expected = (
                f"a folder without snapshots beyond epoch {epoch}: train with `initial_epoch={end}`, or elsewhere"
            )
            raise ValueError(checks.invalid("folder", expected, str(self._kept.path)))

    def on_train_batch_begin(self, batch: int, logs: typing.Any = None) -> None:
        share = (self._epoch % self.epochs + batch / self.params["steps"]) / self.epochs
        self.model.optimizer.learning_rate = self.learning_rate / 2 * (math.cos(math.pi * share) + 1)

    def on_epoch_end(self, epoch: int, logs: typing.Any = None) -> None:
        if (epoch + 1) % self.epochs == 0:
            self._kept.keep(self.model, epoch // self.epochs)

    def resume(self, model: keras.Model) -> int:
        """Give a model the weights of the last snapshot, its optimizer's too; return the epoch to go on with.

        That is `initial_epoch` of its `fit`; 0 where there is no snapshot, and then the model is left as it is.
        """
        for file in self._kept.files()[-1:]:
            _loaded(model, file)
        return self._end()

    def models(self, model: keras.Model | None = None) -> list[keras.Model]:
        """The snapshots, in order, as copies of a model, by default of the one that was trained; not compiled.

        Raises:
            TypeError, ValueError: a model that cannot be copied (see `pernodedrop.apply`) or is not built; or no
                snapshot is there.
        """
        return self._kept.models(lambda: copy_of(self.model if model is None else model)[0])

    def _end(self) -> int:
        """The epoch after the last snapshot."""
        return self.epochs * (max(self._kept.members(), default=-1) + 1)


class _EachEpoch(keras.callbacks.Callback):
    """Keeps a training so far, at the end of each epoch."""

    def __init__(self, kept: "_Folder", member: int) -> None:
        super().__init__()
        self.kept, self.member = kept, member

    def on_epoch_end(self, epoch: int, logs: typing.Any = None) -> None:
        self.kept.keep_training(self.model, self.member, epoch + 1)


class _Folder:
    """A folder with the weights of members, a file each, and a note that says what is kept there."""

    def __init__(self, folder: Path, note: dict[str, typing.Any]) -> None:
        self.path, self.note = checks.check_path(folder, "folder"), note
        self._check()

    def _check(self) -> None:
        if (self.path / NOTE).exists():
            found = json.loads((self.path / NOTE).read_text(encoding="utf-8"))
            if found != self.note:
                raise ValueError(checks.invalid("folder", f"a folder of {self.note}", f"{self.path} of {found}"))
        elif self.path.exists() and not self.path.is_dir():
            raise ValueError(checks.invalid("folder", "a folder", str(self.path)))
        elif self.path.exists() and any(not _is_part(file) for file in self.path.iterdir()):
            raise ValueError(checks.invalid("folder", "a new or empty folder, or one of this ensemble", str(self.path)))

    def claim(self) -> None:
        """Makes the folder, or raises where it is of something else."""
        self._check()
        self.path.mkdir(parents=True, exist_ok=True)
        self._write(NOTE, lambda part: part.write_text(json.dumps(self.note), encoding="utf-8"))

    def keep(self, model: keras.Model, member: int) -> None:
        """Keeps the weights of a member, whole or not at all, and forgets its training."""
        self._write(f"member-{member:03}.weights.h5", lambda part: model.save_weights(str(part)))
        for file in self._training(member).values():
            file.unlink()

    def keep_training(self, model: keras.Model, member: int, epoch: int) -> None:
        """Keeps a training that has come to an epoch: weights and epoch in one file, so that they belong together."""
        before = self._training(member)
        self._write(f"training-{member:03}-{epoch}.weights.h5", lambda part: model.save_weights(str(part)))
        for file in before.values():
            file.unlink()

    def resume(self, model: keras.Model, member: int) -> int:
        """Gives a model what its training has come to, and returns the epoch; 0 where it has not begun."""
        epoch, file = max(self._training(member).items(), default=(0, None))
        if file is not None:
            _loaded(model, file)
        return epoch

    def _training(self, member: int) -> dict[int, pathlib.Path]:
        files = self.path.glob(f"training-{member:03}-*.weights.h5")
        return {int(file.name.removesuffix(".weights.h5").rpartition("-")[2]): file for file in files}

    def members(self) -> list[int]:
        """The numbers of the members that are there, in order."""
        names = [file.name for file in self.path.glob("member-*.weights.h5")]
        return sorted(int(name.removeprefix("member-").removesuffix(".weights.h5")) for name in names)

    def files(self) -> list[pathlib.Path]:
        """The files of all members, in order."""
        self._check()
        return [self.path / f"member-{member:03}.weights.h5" for member in self.members()]

    def models(self, make: collections.abc.Callable[[], keras.Model]) -> list[keras.Model]:
        """A model for each member, with its weights."""
        if not self.files():
            raise ValueError(checks.invalid("folder", "a folder with a member that was trained", str(self.path)))
        return [_loaded(make(), file) for file in self.files()]

    def _write(self, name: str, write: collections.abc.Callable[[pathlib.Path], object]) -> None:
        part = self.path / f"part-{os.getpid()}-{name}"
        write(part)
        part.replace(self.path / name)


def _is_part(file: pathlib.Path) -> bool:
    """Whether a file was left by a process that ended while it wrote."""
    return file.name.startswith("part-")


def _loaded(model: keras.Model, file: pathlib.Path) -> keras.Model:
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:  # or else Keras does not load its state
        optimizer.build(model.trainable_variables)
    model.load_weights(str(file))
    return model

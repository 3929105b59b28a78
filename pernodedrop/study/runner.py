"""Running a study: stage after stage, a trial at a time, until all of it, or the time, is at its end."""

import collections.abc
import contextlib
import functools
import gc
import pathlib
import tempfile
import time
import typing

import keras
from tqdm import tqdm

from pernodedrop.study import plan
from pernodedrop.study.epoch_end import Logs
from pernodedrop.study.plan import Design, Trial
from pernodedrop.study.storage import Queue, Records, at_work, wait
from pernodedrop.study.trial import OnEpoch

RunOne: typing.TypeAlias = collections.abc.Callable[[Trial, OnEpoch], Trial]


def run(
    design: Design, run_one: RunOne, folder: pathlib.Path, storage: str | None, until: float | None, progress: bool
) -> bool:
    """Run a study, see `Study.run`.

    Args:
        design: of the study.
        run_one: (trial, on_epoch) -> record.
        folder: where results go, which is there.
        storage: URL of the database, or None.
        until: the time of `time.monotonic` after which no trial begins.
        progress: whether to show a bar.

    Returns:
        Whether all of it has finished.
    """
    records, queue = Records(folder), Queue(storage, design.study, folder)
    with at_work(folder, queue.free_the_dead if queue.local else _nothing), compiled_once():
        for stage in plan.STAGES[design.protocol]:
            planned = plan.plan(design, stage, records.read())
            with tqdm(unit="epoch", disable=not progress, desc=f"{design.study}, {stage}") as bar:
                if not _run_stage(planned, run_one, records, queue, until, bar):
                    return False
    return True


def _run_stage(
    planned: list[Trial], run_one: RunOne, records: Records, queue: Queue, until: float | None, bar: typing.Any
) -> bool:
    epochs = sum(one["settings"]["epochs"] for one in planned) / len(planned)
    last = 0.0
    while True:
        states = queue.fill(planned, records.read())
        records.add(queue.records())
        check_equal_starts(records.read())
        bar.total, bar.n = round(epochs * len(planned)), round(epochs * states["complete"])
        if not last:
            bar.initial = bar.n  # the time left is told by what runs now
        bar.refresh()
        if states["complete"] == len(planned):
            return True
        began = time.monotonic()
        if until is not None and began + last > until:
            return False
        if states["waiting"]:
            queue.work(planned, functools.partial(_with_progress, run_one, bar))
            last = time.monotonic() - began
        else:
            wait()


def _with_progress(run_one: RunOne, bar: typing.Any, planned: Trial) -> Trial:
    rate = "" if planned["rate"] is None else f" {planned['rate']}"

    def on_epoch(epoch: int, logs: Logs) -> None:
        bar.set_postfix_str(f"{planned['variant']}{rate}, seed {planned['seed']}, val loss {logs['val_loss']:.3f}")
        bar.update()

    try:
        return run_one(planned, on_epoch)
    finally:
        gc.collect()  # a model is a circle, and Python looks for those so rarely that many would be in memory


def check_equal_starts(records: list[Trial]) -> None:
    """Raise unless all variants of a seed began as the same network with the same weights."""
    starts: dict[str, str] = {}
    for record in records:
        of = plan.key({**record, "stage": "", "variant": "", "rate": None})
        if starts.setdefault(of, record["start"]) != record["start"]:
            raise RuntimeError(
                f"{record['variant']}, seed {record['seed']}: the network or its initial weights differ from other "
                "variants'. Either the model's function draws them from something that no seed sets, or it was changed "
                "after the first trials: give another folder then."
            )


def _nothing() -> None:
    pass


@contextlib.contextmanager
def compiled_once() -> collections.abc.Iterator[None]:
    """On JAX, compile a variant for its first seed only: Keras makes new functions for every model."""
    if keras.backend.backend() != "jax":
        yield
        return
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    with tempfile.TemporaryDirectory() as folder:
        options = {
            "jax_compilation_cache_dir": folder,
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
        config: typing.Any = jax.config  # its methods have no types
        before = {name: getattr(config, name) for name in options}
        reset_cache()
        for name, value in options.items():
            config.update(name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                config.update(name, value)
            reset_cache()

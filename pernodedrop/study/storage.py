"""What a study has found, kept so that nothing is lost or done twice: records in a file, the queue in a database.

The records are the results: one JSON object a line, appended and on the disk before the next trial begins. The queue
says who does what: a study of Optuna in SQLite, or in a PostgreSQL that many machines share. Of a worker that dies the
heartbeat stops; whoever comes next queues again what is *planned minus complete, running or waiting*, one at a time,
under a lock.
"""

import collections
import collections.abc
import contextlib
import json
import os
import pathlib
import time
import typing
import warnings
import weakref

import optuna
from optuna.trial import TrialState

from pernodedrop.study.plan import IDENTITY, Trial, best_loss, key

HEARTBEAT, GRACE = 10, 90
"""Seconds between the heartbeats of a worker, and after which one without them is taken for dead."""

MOST_DEATHS = 3
"""How often a trial may end with the process that runs it, while another one looks on."""

LOCK = 20251212
"""The number of the lock of a PostgreSQL; studies in one database wait for each other for a moment."""

Run: typing.TypeAlias = collections.abc.Callable[[Trial], Trial]


class Records:
    """The records of a folder, in `records.jsonl`.

    Args:
        folder: the folder, which is there.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.path = folder / "records.jsonl"

    def read(self) -> list[Trial]:
        """All records, each trial's once; a last line that was not written whole is none."""
        whole, _, _ = self._text().rpartition("\n")
        records = [json.loads(line) for line in whole.splitlines() if line]
        return list({key(record): record for record in reversed(records)}.values())[::-1]

    def add(self, records: collections.abc.Iterable[Trial]) -> None:
        """Append those that are not there yet, and wait until they are on the disk."""
        with locked(self.folder / "records.lock"):
            known = {key(record) for record in self.read()}
            fresh = {key(record): record for record in records if key(record) not in known}
            if not fresh:
                return
            text = self._text()
            torn = len(text[text.rfind("\n") + 1 :].encode())
            with self.path.open("ab") as file:
                file.truncate(file.tell() - torn)
                file.write("".join(json.dumps(record) + "\n" for record in fresh.values()).encode())
                file.flush()
                os.fsync(file.fileno())

    def _text(self) -> str:
        return self.path.read_text(encoding="utf-8") if self.path.exists() else ""


class Queue:
    """The trials of a study that wait, run and are complete, for any number of workers.

    Args:
        url: of the database, as SQLAlchemy has it; None is `study.db` in the folder.
        name: of the study of Optuna.
        folder: of the study of this worker.
        heartbeat, grace: seconds, see `HEARTBEAT`.
    """

    def __init__(
        self, url: str | None, name: str, folder: pathlib.Path, heartbeat: int = HEARTBEAT, grace: int = GRACE
    ) -> None:
        self.local = url is None
        self.folder, self.shared = folder, url if url is not None and url.startswith("postgresql") else None
        # a writer of SQLite waits for others; the database itself is in the folder
        options = {"connect_args": {"timeout": 60}} if self.local else None
        url = f"sqlite:///{(folder / 'study.db').absolute()}" if url is None else url
        with quiet(), self._alone():
            self.storage = optuna.storages.RDBStorage(
                url, engine_kwargs=options, heartbeat_interval=heartbeat, grace_period=grace
            )
            weakref.finalize(self, self.storage.engine.dispose)  # from Python 3.13 SQLite warns of what is left open
            sampler = optuna.samplers.RandomSampler(seed=0)  # unused: all of a trial is planned
            self.study = optuna.create_study(
                storage=self.storage, study_name=name, sampler=sampler, load_if_exists=True
            )
        self.first = len(self.trials())
        self.seen: set[int] = set()

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """All trials that are planned ones."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if "planned" in trial.user_attrs]

    def records(self) -> list[Trial]:
        """The records of all that is complete, in the order in which they were planned."""
        return [trial.user_attrs["record"] for trial in self.trials() if trial.state == TrialState.COMPLETE]

    def fill(self, planned: list[Trial], records: collections.abc.Iterable[Trial] = ()) -> dict[str, int]:
        """Queue what is planned and neither complete nor under way.

        Args:
            planned: all trials.
            records: of trials that were completed elsewhere.

        Returns:
            How many of the planned trials are "complete", "running" and "waiting".

        Raises:
            RuntimeError: a trial that ends the process again and again.
        """
        with quiet(), self._alone():
            self._watch()
            optuna.storages.fail_stale_trials(self.study)
            states: dict[str, set[TrialState]] = collections.defaultdict(set)
            deaths: collections.Counter[str] = collections.Counter()
            for trial in self.trials():
                name = key(trial.user_attrs["planned"])
                states[name].add(trial.state)
                deaths[name] += trial.state == TrialState.FAIL and trial.number >= self.first
            for record in records:
                if TrialState.COMPLETE not in states[key(record)]:
                    self._add(record)
                    states[key(record)].add(TrialState.COMPLETE)
            found: collections.Counter[str] = collections.Counter(complete=0, running=0, waiting=0)
            for one in planned:
                name = key(one)
                here = states[name] & {TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING}
                if not here:
                    if deaths[name] > MOST_DEATHS:
                        raise RuntimeError(f"the process that runs it ended {deaths[name]} times: {one}")
                    self.study.enqueue_trial(_parameters(one), user_attrs={"planned": one})
                    here = {TrialState.WAITING}
                first = TrialState.COMPLETE if TrialState.COMPLETE in here else min(here)
                found[first.name.lower()] += 1
        return dict(found)

    def work(self, planned: list[Trial], run: Run) -> None:
        """Run the next trial that waits, if it is still planned and no other worker was quicker."""
        wanted = {key(one) for one in planned}
        given_away = False

        def objective(trial: optuna.Trial) -> float:
            nonlocal given_away
            planned = trial.user_attrs.get("planned")
            if planned is None or key(planned) not in wanted:
                raise optuna.TrialPruned
            for name, value in _parameters(planned).items():
                _suggest(trial, name, value)
            record = run(planned)
            try:
                trial.set_user_attr("record", record)
            except optuna.exceptions.UpdateFinishedTrialError:
                given_away = True
                raise
            return best_loss(record)

        with quiet():
            try:
                self.study.optimize(objective, n_trials=1)
            except Exception:
                if not given_away:  # this process had stopped, was taken for dead, and others have the trial now
                    raise

    def free_the_dead(self) -> None:
        """Queue again what was running in this folder, where no process is: without waiting for heartbeats."""
        with quiet():
            for trial in self.trials():
                if trial.state == TrialState.RUNNING:
                    self.study.tell(trial.number, state=TrialState.FAIL)

    def _watch(self) -> None:
        """Note a heartbeat of each trial first seen running: one that died before its own would run for ever."""
        of_study = self.storage.get_study_id_from_name(self.study.study_name)
        running = {trial.number for trial in self.trials() if trial.state == TrialState.RUNNING}
        for number in running - self.seen:
            self.storage.record_heartbeat(self.storage.get_trial_id_from_study_id_trial_number(of_study, number))
        self.seen |= running

    def _add(self, record: Trial) -> None:
        parameters = _parameters(record)
        self.study.add_trial(
            optuna.create_trial(
                value=best_loss(record),
                params=parameters,
                distributions={name: _DISTRIBUTIONS[name] for name in parameters},
                user_attrs={"planned": {name: record[name] for name in IDENTITY}, "record": record},
            )
        )

    @contextlib.contextmanager
    def _alone(self) -> collections.abc.Iterator[None]:
        """One at a time among the workers of a folder, and of a PostgreSQL."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self.folder / "queue.lock"))
            if self.shared is not None:
                stack.enter_context(_advisory(self.shared))
            yield


_DISTRIBUTIONS: dict[str, typing.Any] = {
    "rate": optuna.distributions.FloatDistribution(0.0, 1.0),
    "seed": optuna.distributions.IntDistribution(0, 2**31 - 1),
}
"""What Optuna's dashboard sees as parameters; the rest of a trial it shows as attributes."""


def _parameters(trial: Trial) -> dict[str, typing.Any]:
    return {"rate": trial["rate"] or 0.0, "seed": trial["seed"]}


def _suggest(trial: optuna.Trial, name: str, value: typing.Any) -> None:
    if name == "seed":
        trial.suggest_int(name, 0, 2**31 - 1)
    else:
        trial.suggest_float(name, 0.0, 1.0)


@contextlib.contextmanager
def locked(path: pathlib.Path) -> collections.abc.Iterator[None]:
    """Hold a lock of the file system, which ends with the process; on Windows, which has no such locks, nothing."""
    with path.open("a") as file:
        if fcntl := _fcntl():
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def at_work(folder: pathlib.Path, if_alone: collections.abc.Callable[[], None]) -> collections.abc.Iterator[None]:
    """Be a worker of a folder, and before that do something if there is no other, nor can be one meanwhile."""
    with (folder / "workers.lock").open("a") as file:
        if fcntl := _fcntl():
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if_alone()
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _fcntl() -> typing.Any:
    try:
        import fcntl
    except ModuleNotFoundError:
        return None
    return fcntl


@contextlib.contextmanager
def _advisory(url: str) -> collections.abc.Iterator[None]:
    """Hold a lock of a PostgreSQL, which ends with the connection."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({LOCK})"))
        yield


@contextlib.contextmanager
def quiet() -> collections.abc.Iterator[None]:
    """Keep Optuna from telling each trial, and that heartbeats are experimental."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def wait() -> None:
    """Let other workers go on for a moment."""
    time.sleep(1)

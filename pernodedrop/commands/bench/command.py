"""`pernodedrop bench`: measures what is not measured yet, one process a backend, and writes what a person reads."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import typing

from tqdm import tqdm

from pernodedrop import backends, checks
from pernodedrop.commands import framework
from pernodedrop.commands.bench import limits, matrix, page, table
from pernodedrop.commands.bench.results import Figures
from pernodedrop.report import environment
from pernodedrop.report.process import start
from pernodedrop.report.results import WrongOutput, output_folder

__all__ = ["Settings", "WrongOutput", "run"]

BUSY = 0.75  # processes that run for each core
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**20)}
"""Environment: large buffers go back to the system when freed, instead of splitting free memory by chance."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to run.

    Args:
        profile: a name of `matrix.PROFILES`.
        backends: names; None takes those that Keras runs on here.
        rows: names of `matrix.ROWS`, beside which the references are always timed; None takes all of the profile.
        rounds: how often each case is timed, an int from 1; None is the profile's.
        output: the folder that results go to, which is made.

    Raises:
        TypeError, ValueError: an argument that is not one of these, or a backend that Keras cannot run on here.
    """

    profile: str = "quick"
    backends: typing.Any = None
    rows: typing.Any = None
    rounds: int | None = None
    output: typing.Any = "bench-results"

    def __post_init__(self):
        checks.check_choice(self.profile, "profile", tuple(matrix.PROFILES))
        usable = framework.usable()
        for name in self.backends or ():
            checks.check_choice(name, "backends", backends.NAMES)
            if name not in usable:
                raise ValueError(checks.invalid("backends", f"those that Keras runs on here, {usable}", name))
        for name in self.rows or ():
            checks.check_choice(name, "rows", tuple(matrix.ROWS))
        if self.rounds is not None:
            checks.check_count(self.rounds, "rounds")
        object.__setattr__(self, "backends", tuple(n for n in usable if n in (self.backends or usable)))
        object.__setattr__(self, "output", output_folder(self.output))


def run(settings):
    """Measure what the results in the folder lack, and write them as JSON, Markdown and HTML.

    Ctrl-C keeps what has finished.

    Args:
        settings: a `Settings`.

    Returns:
        The exit code: 0, or 1 if a backend failed.

    Raises:
        WrongOutput: results in the folder that are of another machine or other versions.
        KeyboardInterrupt: after Ctrl-C, once what has finished is reported.
    """
    for name in backends.NAMES:
        if name not in settings.backends:
            print(
                f"{name}: left out, {'not asked for' if name in framework.usable() else 'Keras cannot run on it here'}"
            )
    warn_if_busy()
    results = Figures(settings.output / "results.json")
    failed = []
    try:
        if results.rates is None:
            results.rates = limits.measure()
            results.write()
        for backend in settings.backends:
            failed += measure(backend, settings, results)
    finally:
        conclude(results, settings.output)
        for error in failed:
            print(f"FAILED: {error}", file=sys.stderr)
    return int(bool(failed))


def warn_if_busy():
    """Say so if other processes take the cores: threads that wait for each other then take a hundred times as long."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > BUSY * environment.cores():
        print(f"The load of this machine is {load:.1f}: figures will be far off, torch's most of all.", file=sys.stderr)


def measure(backend, settings, results):
    """Measure on one backend what is not measured yet; return what failed, as text."""
    profile = matrix.PROFILES[settings.profile]
    rounds = settings.rounds or profile.rounds
    chosen = [[case for case in part.cases(backend) if wanted(case, settings)] for part in profile.parts]
    parts = [part for cases in chosen if (part := unmeasured(cases, results))]
    network = lacking_network(backend, profile.network, results) if settings.rows is None else None
    total = sum(map(len, parts)) * (rounds + 1)
    if network:
        network["epochs"] = rounds
        total += len(network["variants"]) * (rounds + 1)
    asked = {
        "backend": backend,
        "parts": [[case.plain() for case in part] for part in parts],
        "rounds": rounds,
        "seconds": profile.seconds,
        "available": (environment.total_memory() or 2**33) // 2,
        "network": network,
    }
    peaks = [case for cases in chosen[: profile.memory] for case in cases if case.mode == matrix.MODES[backend][0]]
    peaks = [case for case in peaks if not results.has("memory", case.key)]
    errors = []
    with tqdm(total=total + len(peaks), desc=backend, disable=not total + len(peaks)) as bar:
        if total:
            errors += time_all(asked, results, bar)
        for case in peaks:
            bar.set_postfix_str(f"memory {case.key}")
            errors += measure_memory(case, results)
            bar.update()
    return errors


def wanted(case, settings):
    """Whether a case is chosen; those that ratios are made with always are."""
    return settings.rows is None or case.row in (*settings.rows, *matrix.REFERENCES)


def unmeasured(cases, results):
    """The cases that have no figure, and beside any such the references, to be timed in turn."""
    lacking = [case for case in cases if not results.has("times", case.key)]
    modes = {case.mode for case in lacking}
    return [c for c in cases if c in lacking or (c.row in matrix.REFERENCES and c.mode in modes)] if lacking else []


def lacking_network(backend, network, results):
    """What the process is asked about the network, or None if there is nothing to measure."""
    if network is None or backend not in framework.TRAIN:
        return None
    lacking = [name for name in network.variants if not results.has("networks", f"{backend}/{name}")]
    if not lacking:
        return None
    variants = [name for name in network.variants if name in lacking or name == matrix.BASELINE]
    return {"variants": variants, "step_count": network.steps, "batch": network.batch}


def time_all(asked, results, bar):
    """Start the process of a backend, and keep each figure as it comes; return what failed, as text."""
    backend, failed = asked["backend"], []
    with child(backend, "pernodedrop.commands.bench.worker") as (process, tail):
        with contextlib.suppress(BrokenPipeError):  # it has failed already, and what it printed says why
            process.stdin.write(json.dumps(asked))
            process.stdin.close()
        for line in process.stdout:
            message = json.loads(line)
            if "environment" in message:
                results.check_environment(backend, message["environment"])
            elif "doing" in message:
                bar.set_postfix_str(message["doing"])
                bar.update()
            for record in message.get("times", ()):
                keep_time(record, results, failed)
            for record in message.get("networks", ()):
                results.add("networks", {"key": f"{backend}/{record['variant']}", "backend": backend, **record})
        if process.wait():
            failed.append(f"{backend}: {tail()}")
    return failed


def keep_time(record, results, failed):
    """Keep the time of a case, or note that it failed: then it is tried again by the next run."""
    key = matrix.Case.of(record["case"]).key
    if "failed" in record:
        failed.append(f"{key}: {record['failed']}")
    else:
        results.add("times", {"key": key, **record})


def measure_memory(case, results):
    """Measure the peak of one case in a process of its own, if it was timed; return what failed, as text."""
    timed = next((record for record in results.times if record["key"] == case.key), None)
    if timed is None or "skipped" in timed:
        return []
    text = json.dumps({"case": case.plain(), "form": timed["form"]})
    with child(case.backend, "pernodedrop.commands.bench.memory", text, **MALLOC) as (process, tail):
        answer, _ = process.communicate()
        if process.returncode:
            return [f"memory of {case.key}: {tail()}"]
    results.add("memory", {"key": case.key, "case": case.plain(), **json.loads(answer.splitlines()[-1])})
    return []


@contextlib.contextmanager
def child(backend, module, *arguments, **variables):
    """A process of a backend that runs a module, and a function that gives the end of what it printed as errors.

    It is ended with the block.
    """
    variables = {"KERAS_BACKEND": backend, **variables}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:

        def tail():
            errors.seek(0)
            return errors.read()[-3000:]

        with start(module, *arguments, environment=variables, stdin=subprocess.PIPE, stderr=errors) as process:
            try:
                yield process, tail
            finally:
                process.kill()


def conclude(results, folder):
    """Write the table and the page of what there is, and print the table."""
    plain = results.plain()
    if not plain["times"]:
        return
    text = table.markdown(plain)
    (folder / "results.md").write_text(text, encoding="utf-8")
    (folder / "results.html").write_text(page.html(plain), encoding="utf-8")
    print(table.overview(plain), *(folder / f"results.{kind}" for kind in ("json", "md", "html")), sep="\n")

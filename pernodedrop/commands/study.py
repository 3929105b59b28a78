"""`pernodedrop study`: studies by name, or of a file, run and gone on with, and what they found."""

import argparse
import itertools
import shlex

from pernodedrop import checks
from pernodedrop.report.results import output_folder
from pernodedrop.report.table import as_text
from pernodedrop.study import (
    named,
    report,  # noqa: F401 - so that what is not installed is known at once
    runner,  # noqa: F401 - likewise
)
from pernodedrop.study.study import Study


def listing() -> str:
    """The studies that come with the package, with their titles and what the comment of each file says."""
    rows = []
    for name in named.names():
        lines = (named.FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()
        comment = itertools.takewhile(lambda line: line.startswith("# "), lines)
        rows += [[name, named.read(name)["title"]], *(["", line[2:]] for line in comment)]
    return as_text(rows)


def load(args: argparse.Namespace) -> Study:
    """The study that the arguments of the command ask for.

    Raises:
        TypeError, ValueError, OSError: a study or its data that are not there, one that has not begun and must have, or
            a folder that cannot be written.
    """
    given = {name: value for name in ("folder", "storage", "seeds") if (value := getattr(args, name, None)) is not None}
    study = named.load(args.name, getattr(args, "data", None), **given)
    if args.action != "run" and not begun(study):
        expected = f"the folder of a study that has begun (pernodedrop study run {args.name})"
        raise ValueError(checks.invalid("folder", expected, str(study.folder)))
    if (hours := getattr(args, "hours", None)) is not None:
        checks.check_positive(hours, "hours")
    if args.action in ("run", "resume"):
        study.data  # noqa: B018 - what is wrong with the data is known before anything is trained, or a folder made
    if args.action != "status":
        output_folder(study.folder, "folder")
    return study


def begun(study: Study) -> bool:
    """Whether there is something to go on with, or to report."""
    return study.storage is not None or any((study.folder / file).exists() for file in ("study.db", "records.jsonl"))


def run(study: Study, args: argparse.Namespace) -> int:
    """Do what a command asks of a study that it has loaded.

    Returns:
        The exit code, 0.
    """
    again = resuming(args)
    if args.action == "status":
        print(status(study, again))
    elif args.action == "report":
        conclude(study)
    else:
        go_on(study, again, args.hours)
    return 0


def resuming(args: argparse.Namespace) -> str:
    """The command that goes on with a study, by the same arguments, but for an address, which may have a password."""
    given = {name: getattr(args, name, None) for name in ("folder", "seeds", "data")}
    options = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    shown = shlex.join(["pernodedrop", "study", "resume", args.name, *options])
    return shown if getattr(args, "storage", None) is None else f"{shown} --storage URL"


def go_on(study: Study, again: str, hours: float | None = None) -> None:
    """Run what has not run yet; then, or after Ctrl-C, say how far it is, and report what there is."""
    try:
        study.run(hours)
    finally:
        print(status(study, again))
        if study.records():
            conclude(study)


def conclude(study: Study) -> None:
    """Write the report, and print what it says first and where it is."""
    path = study.report()
    said, _, _ = path.with_name("report.md").read_text(encoding="utf-8").partition("\n## ")
    print(f"\n{said.strip()}\n\nreport: {path}")


def status(study: Study, again: str) -> str:
    """How far a study is, as text, and what to do to go on."""
    found = study.status()
    lines = [["stage", "finished", "of"]]
    lines += [[stage, str(done), "?" if of is None else str(of)] for stage, (done, of) in found.items()]
    text = f"{study.name} in {study.folder}\n{as_text(lines)}"
    return text if all(done == of for done, of in found.values()) else f"{text}\nTo go on: {again}"

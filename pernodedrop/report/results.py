"""Files of results: in a folder that can be written, never over those of another run, and gone on from."""

import json
import os
import pathlib
import re
import tempfile
import typing

from pernodedrop import checks
from pernodedrop.report.environment import About, machine

Record: typing.TypeAlias = dict[str, typing.Any]


class WrongOutput(ValueError):  # noqa: N818 - of the argument, and told like one
    """A folder whose results cannot stand beside those of this run."""


def output_folder(path: str | os.PathLike[str], argument: str = "output") -> pathlib.Path:
    """The folder that results go to, made unless it is there, or a ValueError if it cannot be written."""
    path = pathlib.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        expected = "a folder that can be written"
        raise ValueError(f"{checks.invalid(argument, expected, str(path))} ({error.strerror})") from error
    return path


def output_file(path: str | os.PathLike[str], argument: str) -> pathlib.Path:
    """A file that is written, in a folder that is made unless it is there, or a ValueError if it cannot be."""
    path = pathlib.Path(path)
    output_folder(path.parent, argument)
    if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        raise ValueError(checks.invalid(argument, "a file that can be written", str(path)))
    return path


class Results:
    """What a run has found so far, kept in a file that is rewritten whole after every record.

    Args:
        path: the file; one that is there is gone on from.

    Raises:
        WrongOutput: a file that is not of this kind, or of another machine.

    Attributes:
        machine: a dict of what the machine is.
        environments: a dict from backend to its `environment()`.
        <each of `facts`>: what is known once, or None before it is known.
        <each of `kinds`>: a list of records, dicts of plain values, each with a "key" of its own.
    """

    format: typing.ClassVar[int] = 1
    facts: typing.ClassVar[tuple[str, ...]] = ()
    kinds: typing.ClassVar[tuple[str, ...]] = ("records",)

    def __init__(self, path: pathlib.Path) -> None:
        self.path, self.machine = path, machine()
        self.environments: dict[str, About] = {}
        vars(self).update(dict.fromkeys(self.facts) | {kind: [] for kind in self.kinds})
        if path.exists():
            found = self.read(path)
            check_equal("machine", found["machine"], self.machine, path)
            vars(self).update({name: found[name] for name in self.fields()})

    @classmethod
    def fields(cls) -> tuple[str, ...]:
        """What the file has beside its format."""
        return "machine", *cls.facts, "environments", *cls.kinds

    @classmethod
    def read(cls, path: pathlib.Path) -> dict[str, typing.Any]:
        """The results in a file as a dict of plain values, or a WrongOutput if it is a file of something else."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict) or found.get("format") != cls.format or not found.keys() >= {*cls.fields()}:
            raise WrongOutput(checks.invalid("output", f"a folder without a {path.name} of another kind", str(path)))
        return found

    def check_environment(self, backend: str, environment: About) -> None:
        """Note the versions of a backend, or raise WrongOutput if earlier records are of others."""
        check_equal(f"{backend}'s environment", self.environments.get(backend, environment), environment, self.path)
        self.environments[backend] = environment

    def has(self, kind: str, key: str) -> bool:
        """Whether there is the record of one kind with this key."""
        return any(record["key"] == key for record in getattr(self, kind))

    def add(self, kind: str, record: Record) -> None:
        """Keep a record unless it is there already, and write the file."""
        if not self.has(kind, record["key"]):
            getattr(self, kind).append(record)
            self.write()

    def plain(self) -> dict[str, typing.Any]:
        """All of it as JSON has it."""
        return {"format": self.format, **{name: getattr(self, name) for name in self.fields()}}

    def write(self) -> None:
        """Replace the file at once, so that it is whole whenever the process ends."""
        text = json.dumps(self.plain(), indent=1)
        # a list of numbers on one line
        text = re.sub(r"\[[\d\s.,e+-]+\]", lambda match: re.sub(r"\s+", " ", match[0]), text)
        fresh = self.path.with_suffix(".json.part")
        fresh.write_text(text + "\n", encoding="utf-8")
        fresh.replace(self.path)


def check_equal(what: str, earlier: About, now: About, path: pathlib.Path) -> None:
    """Raise WrongOutput unless figures measured here may stand beside those in the file, and say what differs."""
    changed = [name for name in {**earlier, **now} if earlier.get(name) != now.get(name)]
    if changed:
        differences = ", ".join(f"{name} was {earlier.get(name)!r} and is {now.get(name)!r}" for name in changed)
        raise WrongOutput(
            f"{path} has figures of another {what}: {differences}. Give another `--output`, since figures of the two "
            "cannot be compared."
        )

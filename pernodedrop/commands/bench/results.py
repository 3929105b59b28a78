"""The file of a run: what was measured, where, and how to go on from it."""

import json
import os
import pathlib
import platform
import re

import numpy as np

from pernodedrop import checks
from pernodedrop.commands.bench import limits

FORMAT = 1
KINDS = ("times", "memory", "networks")


class WrongOutput(ValueError):  # noqa: N818 - of the argument, and told like one
    """A folder whose results cannot stand beside those of this run."""


class Results:
    """What a run has measured so far, kept in a file that is rewritten whole after every figure.

    Args:
        path: the file; one that is there is gone on from.

    Raises:
        WrongOutput: a file that is not of this kind, or of another machine.

    Attributes:
        machine: a dict of what the machine is.
        rates: what `limits.measure` gives, or None before it was measured.
        environments: a dict from backend to `doctor.environment()`.
        times, memory, networks: lists of dicts of plain values.
    """

    def __init__(self, path):
        self.path = path
        self.machine, self.rates, self.environments = machine(), None, {}
        self.times, self.memory, self.networks = [], [], []
        if path.exists():
            self._go_on(read(path))

    def _go_on(self, found):
        check_equal("machine", found["machine"], self.machine, self.path)
        self.rates, self.environments = found["rates"], found["environments"]
        for kind in KINDS:
            setattr(self, kind, found[kind])

    def check_environment(self, backend, environment):
        """Note the versions of a backend, or raise WrongOutput if earlier figures are of others."""
        check_equal(f"{backend}'s environment", self.environments.get(backend, environment), environment, self.path)
        self.environments[backend] = environment

    def has(self, kind, key):
        """Whether there is the figure of one kind with this key."""
        return any(record["key"] == key for record in getattr(self, kind))

    def add(self, kind, record):
        """Keep a figure unless it is there already, and write the file."""
        if not self.has(kind, record["key"]):
            getattr(self, kind).append(record)
            self.write()

    def plain(self):
        """All of it as JSON has it."""
        own = ("machine", "rates", "environments", *KINDS)
        return {"format": FORMAT, **{name: getattr(self, name) for name in own}}

    def write(self):
        """Replace the file at once, so that it is whole whenever the process ends."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".json.part")
        text = json.dumps(self.plain(), indent=1)
        # a list of numbers on one line
        text = re.sub(r"\[[\d\s.,e+-]+\]", lambda match: re.sub(r"\s+", " ", match[0]), text)
        fresh.write_text(text + "\n", encoding="utf-8")
        fresh.replace(self.path)


def read(path):
    """The results in a file as a dict of plain values.

    Raises:
        WrongOutput: a file of something else than results.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise WrongOutput(checks.invalid("output", "a folder without a results.json of another kind", str(path)))
    return found


def check_equal(what, earlier, now, path):
    """Raise WrongOutput unless figures measured here may stand beside those in the file, and say what differs."""
    changed = [name for name in {**earlier, **now} if earlier.get(name) != now.get(name)]
    if changed:
        differences = ", ".join(f"{name} was {earlier.get(name)!r} and is {now.get(name)!r}" for name in changed)
        raise WrongOutput(
            f"{path} has figures of another {what}: {differences}. Give another `--output`, since figures of the two "
            "cannot be compared."
        )


def machine():
    """What the machine is, and nothing that tells whose it is."""
    return {
        "processor": processor(),
        "cores": limits.cores(),
        "memory_gib": round(total_memory() / 2**30) if total_memory() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "numpy": np.__version__,
    }


def processor():
    """The model of the processor, as far as the system says."""
    about = pathlib.Path("/proc/cpuinfo")
    if about.exists():
        fields = dict(re.findall(r"^([^\t:]+)\s*: (.+)$", about.read_text(), re.MULTILINE))
        name = fields.get("model name", platform.machine())
        numbers = [fields[key] for key in ("cpu family", "model") if key in fields]
        widest = next((name for name in ("avx512f", "avx2", "avx") if name in fields.get("flags", "").split()), None)
        return ", ".join(filter(None, [name, f"family/model {'/'.join(numbers)}" if numbers else None, widest]))
    return platform.processor() or platform.machine()


def total_memory():
    """The bytes of memory of the machine, or None where the system does not say."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

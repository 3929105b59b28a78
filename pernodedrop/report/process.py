"""A process of its own: fresh memory, another backend, and what frameworks print kept apart."""

import os
import pathlib
import subprocess
import sys
import typing

Process: typing.TypeAlias = "subprocess.Popen[str]"


def start(module: str, *arguments: str, environment: dict[str, str] | None = None, **options: typing.Any) -> Process:
    """Start a module of this very package, whatever lies in the working folder.

    Args:
        module, *arguments: as for `python -m`.
        environment: variables beside those of this process.
        **options: those of `subprocess.Popen`; standard output is a pipe of text.
    """
    place = str(pathlib.Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [place, os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})}
    command = [sys.executable, "-P", "-m", module, *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, **options)

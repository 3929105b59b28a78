"""Scripts that need a process of their own: fresh memory, several devices, another backend. The limits of a process."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import pernodedrop
from tests.frameworks import NAME

SCRIPTS = pathlib.Path(__file__).parent / "scripts"


DEADLOCK = 600
"""Seconds after which a script that prints nothing is taken to wait for itself."""


def child(script, *arguments, backend=None, **environment):
    """Run a script of tests/scripts and return what it printed last, as JSON."""
    root = str(pathlib.Path(pernodedrop.__file__).parent.parent)
    env = {**os.environ, "KERAS_BACKEND": backend or NAME, **environment}
    env["PYTHONPATH"] = os.pathsep.join([root, env.get("PYTHONPATH", "")])
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=DEADLOCK)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def cpu_limit(seconds):
    """What takes this process longer than so many seconds of work is a TimeoutError."""
    import resource  # which not all systems have

    def stop(*_):
        raise TimeoutError(f"{seconds} s of CPU time")

    used = resource.getrusage(resource.RUSAGE_SELF)
    before, handler = resource.getrlimit(resource.RLIMIT_CPU), signal.signal(signal.SIGXCPU, stop)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, before)
        signal.signal(signal.SIGXCPU, handler)

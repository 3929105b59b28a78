"""What is installed here, and whether every backend makes the same masks.

`python -m pernodedrop.commands.doctor numpy` prints the version and the digest of one backend.
"""

import hashlib
import importlib
import json
import subprocess
import sys

import numpy as np

from pernodedrop import backends, ops
from pernodedrop.noise import Bernoulli
from pernodedrop.report.environment import describe, environment, installed_backends
from pernodedrop.report.process import Process, start

KNOWN_ANSWER = "addf62d8cd8e"  # what `digest` gives on every backend
ASKED = "sample_mask(Bernoulli(0.5), key=(1, 0), shape=(4, 64, 32))"


def run() -> int:
    """Print the report.

    Returns:
        The exit code: 0 if all installed backends give the known answer, else 1.
    """
    print(describe(environment()))
    found = compare()
    print(report(found))
    return int(any(answer is not None and answer["digest"] != KNOWN_ANSWER for answer in found.values()))


def digest(backend: str) -> str:
    """The first 12 hexadecimal digits of the sha256 of the bytes of a mask on one backend."""
    mask = ops.sample_mask(Bernoulli(0.5), key=(1, 0), shape=(4, 64, 32), backend=backend)
    entries = np.asarray(backends.get(backend).to_numpy(mask), dtype="<f4")
    return hashlib.sha256(entries.tobytes()).hexdigest()[:12]


def compare() -> dict[str, dict[str, str] | None]:
    """The digest on every backend, each in a process of its own.

    Returns:
        A dict from backend to None if it is not installed, else to its "version" and "digest"; a backend that fails
        has the last line of its error for a digest.
    """
    processes = {name: _start(name) for name in installed_backends()}
    return {name: _finish(processes[name]) if name in processes else None for name in backends.NAMES}


def report(found: dict[str, dict[str, str] | None]) -> str:
    """What `compare` found, as lines for a person."""
    lines = [f"sha256 of {ASKED}, known answer {KNOWN_ANSWER}:"]
    for name, answer in found.items():
        if answer is None:
            lines.append(f"  {name:<10} not installed")
        else:
            verdict = "equal" if answer["digest"] == KNOWN_ANSWER else "DIFFERS"
            lines.append(f"  {name:<10} {answer['version']:<10} {answer['digest']}  {verdict}")
    return "\n".join(lines)


def _start(backend: str) -> Process:
    few = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}  # they share one GPU
    variables = {**few, "KERAS_BACKEND": backend}
    return start("pernodedrop.commands.doctor", backend, environment=variables, stderr=subprocess.PIPE)


def _finish(process: Process) -> dict[str, str]:
    output, errors = process.communicate()
    if process.returncode:
        return {"version": "failed", "digest": (errors.strip() or "no message").splitlines()[-1]}
    return json.loads(output.splitlines()[-1])


if __name__ == "__main__":
    name = sys.argv[1]
    print(json.dumps({"version": importlib.import_module(name).__version__, "digest": digest(name)}))

"""What `doctor` tries in a process of its own, printed as JSON: `python -m pernodedrop.commands.probe mask torch`."""

import hashlib
import importlib
import json
import sys
import typing

import numpy as np

from pernodedrop import backends, ops
from pernodedrop.noise import Bernoulli


def mask(backend: str) -> dict[str, str]:
    """The version of a framework, and the digest of the mask that it makes."""
    return {"version": importlib.import_module(backend).__version__, "digest": digest(backend)}


def digest(backend: str) -> str:
    """The first 12 hexadecimal digits of the sha256 of the bytes of a mask on one backend."""
    mask = ops.sample_mask(Bernoulli(0.5), key=(1, 0), shape=(4, 64, 32), backend=backend)
    entries = np.asarray(backends.get(backend).to_numpy(mask), dtype="<f4")
    return hashlib.sha256(entries.tobytes()).hexdigest()[:12]


def layers() -> dict[str, str]:
    """Import the layers, and with them Keras."""
    importlib.import_module("pernodedrop.layers")
    return {}


def kernels() -> dict[str, str]:
    """Import what compiles the kernels for CPUs."""
    importlib.import_module("numba")
    return {}


PROBES: dict[str, typing.Callable[..., dict[str, str]]] = {"mask": mask, "layers": layers, "kernels": kernels}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print(json.dumps(PROBES[name](*arguments)))

"""What figures depend on: the versions of what is installed, and the machine."""

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re
import typing

import numpy as np

from pernodedrop import backends
from pernodedrop._version import __version__

About: typing.TypeAlias = dict[str, typing.Any]


def environment(backend: str | None = None) -> About:
    """What figures measured in this process depend on, as a dict of plain values.

    Args:
        backend: the backend that Keras runs on in this process, whose framework and device are told then; None tells
            them not, and imports nothing.
    """
    about = {"pernodedrop": __version__, "python": platform.python_version()}
    if keras := version("keras"):
        about["keras"] = keras
    about["numpy"] = np.__version__
    if backend is not None:
        about |= {"backend": backend, "framework": importlib.import_module(backend).__version__, "device": _device()}
    return {**about, "cores": cores(), "processor": processor()}


def describe(about: About) -> str:
    """An `environment()` as one line."""
    keras = f"Keras {about['keras']}" if "keras" in about else "no Keras"
    if "backend" in about:
        keras += f" on {about['backend']} {about['framework']}"
    parts = [f"pernodedrop {about['pernodedrop']}, Python {about['python']}, {keras}, NumPy {about['numpy']}"]
    parts += [f"device {about['device']}"] if "device" in about else []
    plural = "s" if about["cores"] != 1 else ""
    return ", ".join([*parts, f"{about['cores']} core{plural}"]) + f"; {about['processor']}"


def machine() -> About:
    """What the machine is, and nothing that tells whose it is."""
    memory = total_memory()
    return {
        "processor": processor(),
        "cores": cores(),
        "memory_gib": round(memory / 2**30) if memory else None,
        "system": f"{platform.system()} {platform.machine()}",
        "numpy": np.__version__,
    }


def installed(package: str) -> bool:
    """Whether a package can be imported; it is not."""
    return importlib.util.find_spec(package) is not None


def installed_backends() -> tuple[str, ...]:
    """The names of the backends whose framework is installed."""
    return tuple(name for name in backends.NAMES if installed(name))


def version(package: str) -> str | None:
    """The version of a package, by the name that it is imported by, or None if it is not installed."""
    if not installed(package):
        return None
    # what is imported as tensorflow may be installed as tensorflow-cpu, and Keras as keras-nightly
    names = distributions_of_packages().get(package, [])
    return importlib.metadata.version(names[0]) if names else "of unknown version"


distributions_of_packages = functools.cache(importlib.metadata.packages_distributions)
"""It reads the files of all that is installed, for half a second."""


def _device() -> str:
    import keras

    return str(keras.ops.zeros(()).device)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The model of the processor, as far as the system says."""
    about = pathlib.Path("/proc/cpuinfo")
    if about.exists():
        fields = dict(re.findall(r"^([^\t:]+)\s*: (.+)$", about.read_text(), re.MULTILINE))
        name = fields.get("model name", platform.machine())
        numbers = [fields[key] for key in ("cpu family", "model") if key in fields]
        widest = next((name for name in ("avx512f", "avx2", "avx") if name in fields.get("flags", "").split()), None)
        return ", ".join(filter(None, [name, f"family/model {'/'.join(numbers)}" if numbers else None, widest]))
    return platform.processor() or platform.machine()


def total_memory() -> int | None:
    """The bytes of memory of the machine, or None where the system does not say."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

"""`python -m tests [pytest arguments]`: the suite on all backends, in as many processes at once as there are cores.

    python -m tests                                            everything
    python -m tests --fast                                     without the tests that are marked slow
    BACKENDS="jax torch" python -m tests                       on some backends
    BACKENDS=jax python -m tests tests/test_ops.py -k product  some tests
    JAX_COMPILATION_CACHE_DIR=~/.cache/jax python -m tests     what JAX compiles is kept for the next run

A process tests one backend, with a part of the test files. What is marked `once` says the same on every backend: one
process runs it. A backend that is asked for and cannot load is a failure.
"""

import concurrent.futures
import importlib.util
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import typing

from tests import house

ROOT = pathlib.Path(__file__).parent.parent
BACKENDS = ("jax", "tensorflow", "torch", "numpy")  # the slowest first, so that no process is left over at the end
WORKERS = min(os.cpu_count() or 1, 8)
# one thread a process: two processes of two spinning threads each would halve the speed of two cores
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
NOTHING_SELECTED = 5  # an exit code of pytest
CORE = (
    "test_backends",
    "test_cli",
    "test_report",
    "test_dtypes",
    "test_generator",
    "test_kernels",
    "test_mask",
    "test_noise",
    "test_ops",
    "test_packaging",
    "test_persistence",
    "test_programs",
    "test_properties",
    "test_refusals",
    "test_reparameterization",
    "test_sparse",
    "test_suite",
    "test_testing",
    "test_transforms",
)
"""The tests of what modules and layers stand on."""

WITHOUT_KERAS = (*CORE, "test_module_contract", "test_torch_modules")
"""The tests that need no Keras."""


class Job(typing.NamedTuple):
    """A process to run: its title, the backend, which marks a test has, and what else pytest is told."""

    title: str
    backend: str
    marks: str
    arguments: list[str]


def jobs(backends, arguments, parts):
    """The processes of a run, the longest first; parts is how many there are for a backend.

    Those of one backend are not beside each other: the later ones find what the first compiled and kept.
    """
    first, *others = backends[::-1]
    if any((ROOT / argument.partition("::")[0]).exists() for argument in arguments):  # they name the tests
        return [Job(first, first, "", arguments), *(Job(name, name, "not once", arguments) for name in others)]
    examples = ["--doctest-modules", *documented(first)] if has_keras(first) else []
    found = [Job("once", first, "once", [*examples, *files(first), *arguments])]
    for part in reversed(range(parts)):  # where torch's longest files are in the last, as of two: 3 minutes are saved
        for backend in backends:
            title = f"{backend}, part {part + 1} of {parts}"
            found.append(Job(title, backend, "not once", [*files(backend)[part::parts], *arguments]))
    return found


def files(backend):
    """The test files of a backend: all of them, or those that need no Keras where there is none."""
    found = sorted((ROOT / "tests").glob("test_*.py"))
    return [f"tests/{file.name}" for file in found if has_keras(backend) or file.stem in WITHOUT_KERAS]


def documented(backend):
    """The library's files but the backends and those that import another framework: where docstrings have examples."""
    for name, path in house.modules().items():
        if not name.startswith("backends") and house.packages(name) & house.FRAMEWORKS <= {backend}:
            yield path.relative_to(ROOT).as_posix()


def has_keras(backend):
    """Whether Keras is installed and works on a backend: its own for NumPy is made of functions of JAX."""
    return all(map(importlib.util.find_spec, ["keras", *(["jax"] if backend == "numpy" else [])]))


def run(job, environment):
    """Run a process; return its exit code, what it printed and the seconds that it took."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "--durations=5", "-m", job.marks, *job.arguments]
    env = {**environment, "KERAS_BACKEND": job.backend}
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout, time.monotonic() - began


def main(arguments):
    """Run all, print each as it ends, and return 1 if any failed or no test was selected."""
    asked = os.environ.get("BACKENDS", "").split() or BACKENDS
    if not set(asked) <= set(BACKENDS):
        sys.exit(f"BACKENDS: expected names of {', '.join(BACKENDS)}. Received: {' '.join(asked)}")
    names, fast = [name for name in BACKENDS if name in asked], "--fast" in arguments
    parts = math.ceil(WORKERS / min(len(names), 2)) if fast else WORKERS  # a process takes 10 s to find its tests
    planned = jobs(names, [a for a in arguments if a != "--fast"], parts)
    if fast:
        planned = [job._replace(marks=" and ".join(filter(None, [job.marks, "not slow"]))) for job in planned]
    failed, passed = [], []
    with tempfile.TemporaryDirectory() as cache, concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **ONE_THREAD, **jax_cache(cache), **os.environ}
        futures = {pool.submit(run, job, environment): job for job in planned}
        print(f"running {len(planned)} processes, {WORKERS} at a time", flush=True)
        if without := [name for name in asked if not has_keras(name)]:
            print(f"{', '.join(without)}: tested without Keras, which is not installed, or needs jax", flush=True)
        for future in concurrent.futures.as_completed(futures):
            job, (code, output, seconds) = futures[future], future.result()
            if code != NOTHING_SELECTED:
                (failed if code else passed).append(job.title)
                print(f"\n===== {job.title}: {seconds:.0f} s =====\n{output}", flush=True)
    for title, names in {"passed": passed, "failed": failed}.items():
        print(f"{title}: {'; '.join(names) or 'none'}")
    return bool(failed) or not passed


def jax_cache(folder):
    """The environment in which processes share what JAX compiles."""
    return {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

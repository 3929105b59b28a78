"""`python -m tests [pytest arguments]`: the whole suite on all backends, one process a backend, two at a time.

BACKENDS="jax torch" in the environment chooses some. A backend that is asked for and cannot load is a failure.
"""

import concurrent.futures
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
# one thread a process: two processes of two spinning threads each would halve the speed of two cores
THREADS = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
BACKENDS = os.environ.get("BACKENDS", "tensorflow jax torch numpy").split()  # the slowest first


def run(backend):
    """Run the suite on one backend; return its exit code and what it printed."""
    with tempfile.TemporaryDirectory() as keras_home:
        env = {"TF_CPP_MIN_LOG_LEVEL": "2", **THREADS, **os.environ, "KERAS_BACKEND": backend, "KERAS_HOME": keras_home}
        doctests = [
            "--doctest-modules",
            "pernodedrop",
            "--ignore=pernodedrop/backends",
            "--ignore=pernodedrop/internals",
        ]
        command = [sys.executable, "-m", "pytest", "-q", "--durations=5", *doctests, "tests", *sys.argv[1:]]
        done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def main():
    """Run all, print each as it ends, and return 1 if any failed."""
    failed = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        futures = {pool.submit(run, backend): backend for backend in BACKENDS}
        print("running on", ", ".join(BACKENDS), flush=True)
        for future in concurrent.futures.as_completed(futures):
            code, output = future.result()
            print(f"\n===== {futures[future]} =====\n{output}", flush=True)
            if code:
                failed.append(futures[future])
    print("failed on " + ", ".join(failed) if failed else f"passed on {', '.join(BACKENDS)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

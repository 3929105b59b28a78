"""`python -m tests.package [FOLDER]`: build the sdist and from it the wheel, and test the wheel away from the checkout.

With a FOLDER the sdist and the wheel that lie there are tested instead. What is shown:
- the metadata are fit for PyPI, where no link of the description is dead, the wheel has every module and nothing else,
  and the sdist also has the tests with their helpers, the examples, the changes and how to cite;
- the suite passes on NumPy with the oldest dependencies (with the newest, and on all backends: `python -m tests`),
  but for what is marked `once`, which is about the checkout or says the same there;
- installed with one framework into an empty environment, the command line works and so does every documented example
  of that framework and of NumPy.
"""

import concurrent.futures
import contextlib
import email
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import venv
import zipfile

ROOT = pathlib.Path(__file__).parent.parent
FRAMEWORK = "jax"  # of the empty environment: the smallest to install
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # suite and examples run at once


def main(folder=None):
    """Build unless there is a folder of built files, then check and test."""
    with tempfile.TemporaryDirectory() as temporary:
        there = pathlib.Path(temporary)
        if folder is None:
            with step("build the sdist, and the wheel from it"):
                copy(files(), there / "source")
                run(sys.executable, "-m", "build", "--outdir", there / "dist", there / "source", cwd=there)
        dist = there / "dist" if folder is None else pathlib.Path(folder).resolve()
        with step("check metadata and contents"):
            run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir(), cwd=there)
            (wheel,) = dist.glob("*.whl")
            check_contents(wheel)
            check_sdist(*dist.glob("*.tar.gz"))
            check_description(wheel)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            tested = pool.submit(suite, there, wheel)
            with step(f"every documented example in an empty environment with {FRAMEWORK}"):
                examples(there, wheel)
            with step("the suite on NumPy with the oldest dependencies"):
                print(tested.result(), flush=True)


@contextlib.contextmanager
def step(title):
    """Say what begins, and how long it took or that it failed."""
    print(f"package: {title} ...", flush=True)
    began = time.monotonic()
    try:
        yield
    except BaseException:
        print(f"package: FAILED: {title}", flush=True)
        raise
    print(f"package: done in {time.monotonic() - began:.0f} s: {title}", flush=True)


def files():
    """The files that git has or would take: what else lies about in a working tree does not belong into a package."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted({name for name in names if os.path.lexists(ROOT / name)} - {""})


def copy(names, folder):
    """Copy files of the checkout; links stay links."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)


def check_contents(wheel):
    """Raise unless the wheel has the modules of the checkout and what they read, and nothing else."""
    modules = (name for name in files() if name.startswith(("pernodedrop/", "backends/")))
    modules = {name for name in modules if name.endswith((".py", "py.typed", ".jinja", ".toml"))}
    wanted = {f"pernodedrop/{name}" if name.startswith("backends/") else name for name in modules}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    if found != wanted:
        raise SystemExit(f"{wheel.name} lacks {sorted(wanted - found)}, should not have {sorted(found - wanted)}")


def check_sdist(sdist):
    """Raise unless the sdist has, beside what the wheel is made of, what those who package it elsewhere need."""
    needed = "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "constraints.txt", "examples/", "tests/"
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    if lacking := {name for name in files() if name.startswith(needed)} - found:
        raise SystemExit(f"{sdist.name} lacks {sorted(lacking)}")


def check_description(wheel):
    """Raise unless all links of the description lead somewhere from wherever it is read."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = email.message_from_bytes(archive.read(name)).get_payload()
    if "# pernodedrop" not in text or relative_links(text):
        raise SystemExit(f"{wheel.name}: its description is empty or has relative links: {relative_links(text)}")


def relative_links(text):
    """What a Markdown text links or shows that has no address of its own, in order."""
    found = re.findall(r'\]\(([^)]+)\)|\b(?:src|srcset|href)="([^"]+)"', text)
    return [place for pair in found for place in pair if place and not place.startswith(("https://", "http://"))]


def suite(there, wheel):
    """Run the tests away from the checkout, with the oldest dependencies; return what was printed."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    pip("--target", there / "oldest", "--no-deps", *(name.replace(">=", "==") for name in needed))
    pip("--target", there / "wheel", "--no-deps", wheel)
    copy((name for name in files() if name.startswith(("tests/", "pyproject.toml"))), there / "checks")
    paths = {
        "PERNODEDROP_IN": str(there / "wheel"),
        "PYTHONPATH": os.pathsep.join([str(there / "oldest"), str(there / "wheel")]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "not once", "tests"],
        cwd=there / "checks",
        env={**os.environ, **ONE_THREAD, **paths, "KERAS_BACKEND": "numpy"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\npackage: the suite failed with the oldest dependencies")
    return done.stdout


def examples(there, wheel):
    """Install the wheel with one framework, for tests and studies, and run what README.md and the guides show."""
    venv.create(there / "empty", with_pip=True)
    python = there / "empty" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip("-c", ROOT / "constraints.txt", f"{wheel}[{FRAMEWORK},study,testing]", python=python)
    documents = ("docs/", "README.md", "tests/documents.py")
    copy((name for name in files() if name.startswith(documents)), there / "documents")
    alone = {"KERAS_BACKEND": FRAMEWORK, "PYTHONPATH": ""}
    run(python, "-m", "pernodedrop", "doctor", cwd=there, **alone)
    for backend in ("numpy", FRAMEWORK):
        run(python, "tests/documents.py", backend, cwd=there / "documents", **alone)


def pip(*arguments, python=sys.executable):
    """Install."""
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments, cwd=ROOT)


def run(*command, cwd, **environment):
    """Run a command, whose output is shown; stop at a failure."""
    subprocess.run(command, cwd=cwd, env={**os.environ, **ONE_THREAD, **environment}, check=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(f"package: exit code {error.returncode} of {' '.join(map(str, error.cmd))}")

"""The Python examples of README.md, the site and the folder `examples`, found and run, by the standard library alone.

    python tests/documents.py jax                   runs those of one backend
    python tests/documents.py jax README.md         runs those of one file
    python tests/documents.py jax --share           runs what the suite runs there

An example is a ```python block, or a script of `examples`. Its first line is a comment that names where it runs:
`# numpy`, `# tensorflow`, `# torch` or `# jax`, or `# any backend`, which is all that can train: TensorFlow, PyTorch
and JAX. `# flax` and `# equinox` are JAX where these are installed. An example is complete in itself; it runs as a
script of its own, in an empty folder, with KERAS_BACKEND set. Where it sets that variable itself, it is set to the
backend under test.
"""

import importlib.util
import os
import pathlib
import re
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
import typing

ROOT = pathlib.Path(__file__).parent.parent
BACKENDS = ("numpy", "tensorflow", "torch", "jax")
WINGS = {name: ("jax",) if importlib.util.find_spec(name) else () for name in ("flax", "equinox")}
MARKS = {"any backend": BACKENDS[1:], **{name: (name,) for name in BACKENDS}, **WINGS}
OTHERS = (
    "",
    "text",
    "toml",
    "{bench}",
    "{family-cost}",
    "{family-machines}",
    "{eval-rst}",
    "{figure}",
    "{glossary}",
    "{image}",
    "{include}",
    "{toctree}",
)
FENCE = re.compile(r"^( *)(`{3,}|~{3,})(.*)$")
OWN_BACKEND = re.compile(r'(os\.environ\["KERAS_BACKEND"\] = )"\w+"')


class Example(typing.NamedTuple):
    """A block of Python: its file, relative to the root, the line of its first line, and its text."""

    file: str
    line: int
    code: str


def files():
    """README.md, the pages of the site, and the scripts."""
    pages = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts]
    return [ROOT / "README.md", *pages, *sorted((ROOT / "examples").glob("*.py"))]


def blocks(text):
    """The fenced blocks of a Markdown text: (line of the first line inside, what follows the fence, inside)."""
    found, fence = [], None
    for number, line in enumerate(text.splitlines(), 1):
        match = FENCE.match(line)
        if fence is None and match:
            (indent, fence, language), inside, first = match.groups(), [], number + 1
        elif match and match[2].startswith(fence) and not match[3].strip():
            found.append((first, language.strip(), "\n".join(inside)))
            fence = None
        elif fence is not None:
            inside.append(line.removeprefix(indent))
    if fence is not None:
        raise ValueError(f"the block that starts at line {first} has no end")
    return found


def examples(backend):
    """The examples that `backend` runs, as a list of `Example`.

    Raises:
        ValueError: a block that nothing would run: Python without a mark, or of an unknown language.
    """
    found = []
    for path in files():
        file = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        for line, language, code in blocks(text) if path.suffix == ".md" else [(1, "python", text)]:
            if language.partition(" ")[0] in OTHERS:
                continue
            if language != "python":  # a ```py block, say, would be an example that nothing runs
                raise ValueError(f"{file}:{line}: expected ```python or one of {OTHERS}, not {language!r}")
            mark = code.partition("\n")[0].removeprefix("#").strip()
            if mark not in MARKS or not code.startswith("# "):
                raise ValueError(f"{file}:{line}: expected a first line `# ` and one of {tuple(MARKS)}, not {mark!r}")
            if backend in MARKS[mark]:
                found.append(Example(file, line, OWN_BACKEND.sub(rf'\1"{backend}"', code)))
    return found


def share(backend):
    """The examples that the suite runs on a backend: of those for any, but README.md's, each runs on one of them.

    What trains many models, and the scripts, run on torch: the others compile each model, JAX when the site is built.
    """
    found, trained = examples(backend), MARKS["any backend"]
    spread = [example for example in found if example.code.startswith("# any backend") and example.file != "README.md"]
    many = [e for e in spread if e.file.startswith("examples/") or re.search(r"Study\(|Ensemble\(", e.code)]
    one = [example for example in spread if example not in many]
    elsewhere = many if backend != "torch" else []
    turns = (*trained, "tensorflow")  # it has the fewest of its own
    elsewhere = elsewhere + [example for n, example in enumerate(one) if turns[n % len(turns)] != backend]
    return [example for example in found if example not in elsewhere]


def compiles():
    """Whether torch is one whose torch.compile traces the library."""
    import torch

    return torch.__version__ >= "2.12"


def run_here(some):
    """Run examples in this process, each in a namespace and a folder of its own; return how many failed."""
    failures = 0
    home = os.getcwd()
    for file, line, code in some:
        start = time.perf_counter()
        if "torch.compile" in code and not compiles():
            print(f"ok {file}:{line}, left out: torch.compile takes torch 2.12", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            script = pathlib.Path(folder, f"{pathlib.PurePath(file).stem}.py")  # a file: some tracers read the source
            script.write_text("\n" * (line - 1) + code + "\n", encoding="utf-8")  # so that its lines are the page's
            os.chdir(folder)
            try:
                runpy.run_path(str(script), run_name="__main__")
                print(f"ok {file}:{line}, {time.perf_counter() - start:.1f} s", flush=True)
            except (Exception, SystemExit) as error:  # an example that exits has failed too
                failures += 1
                frames = traceback.extract_tb(error.__traceback__)
                at = [frame.lineno for frame in frames if frame.filename == str(script)] or [line]
                print(traceback.format_exc(limit=-6))
                print(f"FAILED {file}:{at[-1]}: {type(error).__name__}", flush=True)
            finally:
                os.chdir(home)
    return failures


def run(backend, **environment):
    """Run the share of a backend in a process of its own; return its exit code and what it printed."""
    env = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "KERAS_BACKEND": backend, "MPLBACKEND": "agg", **environment}
    # -P: the other modules beside this one are not meant
    command = [sys.executable, "-P", __file__, backend, "--share"]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def main(arguments):
    """Run the command line; return 1 if an example failed."""
    backend, *only = arguments
    os.environ.update({"TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": backend, "MPLBACKEND": "agg"})
    if only == ["--share"]:
        return bool(run_here(share(backend)))
    return bool(run_here([example for example in examples(backend) if not only or example.file in only]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

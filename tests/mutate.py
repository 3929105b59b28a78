"""`python -m tests.mutate --count 60 --seed 0`: breaks random lines of the library and says what no test notices.

In a copy of the checkout, with the NumPy backend: a line is drawn from those that a test runs and changed in one place,
and the tests that run it are run until one fails, those first that run the fewest other lines. One change at a time;
all are printed, and at the end those that survived. Needs coverage.py, of the dependency group `mutate`.
"""

import argparse
import ast
import collections
import copy
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import typing

import pytest

from tests import package

MOST_TESTS = 400  # that are run for a line
PATIENCE = 900  # seconds for them: a change may make a loop that does not end
SWAPS = {
    **{ast.Eq: ast.NotEq, ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Is: ast.IsNot, ast.In: ast.NotIn, ast.And: ast.Or},
    **{ast.Add: ast.Sub, ast.Mult: ast.Div, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift},
}
SWAPS |= {new: old for old, new in SWAPS.items()}
SWAPS |= {ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitXor: ast.BitOr}
ENVIRONMENT = {"KERAS_BACKEND": "numpy", "TF_CPP_MIN_LOG_LEVEL": "2", "OMP_NUM_THREADS": "1"}


class Change(typing.NamedTuple):
    """One node of a file and what stands in its place."""

    file: str
    line: int
    old: ast.AST
    new: ast.AST

    def __str__(self):
        old, new = (ast.unparse(node).partition("\n")[0] for node in (self.old, self.new))
        return f"{self.file}:{self.line}  {old}  ->  {new}"


def changes(tree, file):
    """The changes that a parsed file admits; those of annotations and of texts are none that a test could notice."""
    ignored = {id(node) for annotation in annotations(tree) for node in ast.walk(annotation)}
    for node in ast.walk(tree):
        if id(node) not in ignored:
            yield from (Change(file, node.lineno, node, new) for new in instead(node))


def annotations(tree):
    """The annotations in a parsed file."""
    for node in ast.walk(tree):
        fields = (getattr(node, name, None) for name in ("annotation", "returns"))
        yield from (field for field in fields if isinstance(field, ast.AST))


def instead(node):
    """What may stand in the place of a node, as a list of nodes."""
    match node:
        case ast.Compare(ops=[op, *rest]) if type(op) in SWAPS:
            return [like(node, ops=[SWAPS[type(op)](), *rest])]
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in SWAPS:
            return [like(node, op=SWAPS[type(op)]())]
        case ast.BoolOp(op=op, values=values):
            return [like(node, op=SWAPS[type(op)]()), *values]
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            return [operand]
        case ast.Constant(value=bool(value)):
            return [like(node, value=not value)]
        case ast.Constant(value=int(value) | float(value)):
            return [like(node, value=value + 1)]
        case ast.If() | ast.IfExp():
            return [like(node, test=ast.Constant(value)) for value in (True, False)]
        case ast.Return(value=ast.AST() as value) if not isinstance(value, ast.Constant):
            return [like(node, value=ast.Constant(None))]
        case ast.Raise() | ast.Expr(value=ast.Call()):
            return [ast.Pass()]
    return []


def like(node, **fields):
    """A copy of a node with other fields."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


class Exchange(ast.NodeTransformer):
    """Puts a node in the place of another."""

    def __init__(self, change):
        self.change = change

    def visit(self, node):
        return self.change.new if node is self.change.old else self.generic_visit(node)


def tests_of_lines(checkout):
    """The tests that run each line, by (file, line); for one that runs when it is imported, those of its file."""
    include = ",".join(f"{checkout}/{folder}/*" for folder in ("pernodedrop", "backends"))
    data = checkout / ".coverage"
    coverage = ["-m", "coverage", "run", f"--data-file={data}", f"--include={include}"]
    pytest_ = ["-m", "pytest", "-q", "-p", "tests.mutate", "tests"]
    done = python(checkout, *coverage, *pytest_)
    if done.returncode:
        sys.exit(f"{done.stdout[-5000:]}\nmutate: the tests fail before anything is changed")
    from coverage import CoverageData

    measured, found = CoverageData(str(data)), {}
    measured.read()
    for path in measured.measured_files():
        file = pathlib.Path(path).relative_to(checkout).as_posix()
        lines = {line: set(tests) - {""} for line, tests in measured.contexts_by_lineno(path).items()}
        of_file = set().union(*lines.values())
        found |= {(file, line): tests or of_file for line, tests in lines.items() if of_file}
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """As a plugin of pytest: tells coverage.py whose lines come."""
    from coverage import Coverage

    Coverage.current().switch_context(item.nodeid)
    return (yield)


def python(checkout, *arguments, timeout=None):
    """Run Python in the copy, which writes no bytecode: that of a changed file of the same second would be taken."""
    paths = os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, **ENVIRONMENT, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, timeout=timeout)


def draw(checkout, covered, count, seed):
    """Random changes, each of another line: (change, the file with it)."""
    found = collections.defaultdict(list)
    for file in sorted({file for file, _ in covered}):
        for number, change in enumerate(changes(parsed(checkout, file), file)):
            if (file, change.line) in covered:
                found[file, change.line].append(number)
    generator = random.Random(seed)
    for file, line in generator.sample(sorted(found), min(count, len(found))):
        tree, number = parsed(checkout, file), generator.choice(found[file, line])
        change = list(changes(tree, file))[number]
        yield change, ast.unparse(ast.fix_missing_locations(Exchange(change).visit(tree)))


def parsed(checkout, file):
    """The syntax tree of a file of the copy."""
    return ast.parse((checkout / file).read_text(encoding="utf-8"))


def survives(checkout, file, text, tests):
    """Whether the tests pass with another text of a file."""
    path, names = checkout / file, checkout / "tests.txt"
    before = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    names.write_text("\n".join(tests))
    try:
        done = python(checkout, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"@{names}", timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return False
    finally:
        path.write_text(before, encoding="utf-8")
    return done.returncode == 0


def main(arguments):
    """Make the changes and print what became of them; return 1 if one survived."""
    parser = argparse.ArgumentParser("python -m tests.mutate", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        checkout = pathlib.Path(folder).resolve() / "checkout"
        package.copy(package.files(), checkout)
        covered = tests_of_lines(checkout)
        size = collections.Counter(test for tests in covered.values() for test in tests)
        for change, text in draw(checkout, covered, options.count, options.seed):
            tests = sorted(covered[change.file, change.line], key=lambda test: (size[test], test))[:MOST_TESTS]
            survived = survives(checkout, change.file, text, tests)
            survivors += [change] * survived
            print(f"{'SURVIVED' if survived else 'killed':8}  {len(tests):4} tests  {change}", flush=True)
    print(f"\n{options.count - len(survivors)} of {options.count} were noticed; survivors:", *survivors, sep="\n")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

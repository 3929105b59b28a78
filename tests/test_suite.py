"""The suite's own machinery."""

import ast
import pathlib

import pytest

from tests import __main__ as suite
from tests import conftest, mutate

pytestmark = pytest.mark.once
OTHER = "numpy" if conftest.BACKEND != "numpy" else "jax"


def test_a_marked_test_runs_on_the_backends_that_it_says():
    for names, is_under_test in (((conftest.BACKEND,), True), ((OTHER,), False), ((OTHER, conftest.BACKEND), True)):
        skip, only = (getattr(pytest.mark, name)(*names, reason="why") for name in ("skip_backend", "only_backend"))
        assert conftest.reason_to_skip(skip.mark, "a test") == ("why" if is_under_test else None)
        assert conftest.reason_to_skip(only.mark, "a test") == (None if is_under_test else "why")
    assert conftest.reason_to_skip(pytest.mark.parametrize("x", [1]).mark, "a test") is None


@pytest.mark.parametrize("name", ["skip_backend", "only_backend"])
@pytest.mark.parametrize(
    ("names", "rest"),
    [
        ((), {"reason": "why"}),
        (("nunpy",), {"reason": "why"}),
        (("numpy", "theano"), {"reason": "why"}),
        (("numpy",), {}),
        (("numpy",), {"reason": ""}),
        (("numpy",), {"reason": "why", "strict": True}),
    ],
    ids=str,
)
def test_a_mark_without_a_known_backend_and_a_reason_is_an_error(name, names, rest):
    with pytest.raises(
        pytest.UsageError, match=f"^{name} of a test: expected names of numpy, .*, and reason='...'. Received: "
    ):
        conftest.reason_to_skip(getattr(pytest.mark, name)(*names, **rest).mark, "a test")


def test_a_test_that_is_skipped_where_a_package_is_not_installed_says_why():
    for file in pathlib.Path(__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
                assert "reason" in {one.arg for one in node.keywords}, f"{file.name}:{node.lineno}"


BACKENDS = ["tensorflow", "jax", "torch", "numpy"]


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_run_has_every_file_once_for_each_backend_and_one_process_for_what_says_the_same_on_all(parts):
    first, *others = suite.jobs(BACKENDS, ["-x"], parts)
    files = sorted(file.name for file in pathlib.Path(__file__).parent.glob("test_*.py"))
    of_numpy = files if suite.has_keras("numpy") else sorted(f"{name}.py" for name in suite.WITHOUT_KERAS)
    assert (first.backend, first.marks, named(first)) == ("numpy", "once", of_numpy)
    assert ("--doctest-modules" in first.arguments) == suite.has_keras("numpy")  # the examples need it
    assert {job.marks for job in others} == {"not once"}
    assert [job.backend for job in others] == BACKENDS * parts  # those of one backend share what they compile
    for backend in BACKENDS:
        known = files if suite.has_keras(backend) else of_numpy
        assert sorted(name for job in others if job.backend == backend for name in named(job)) == known
    assert all(job.arguments[-1] == "-x" for job in (first, *others))


def named(job):
    """The test files that a process is given."""
    return [pathlib.Path(argument).name for argument in job.arguments if argument.startswith("tests/")]


@pytest.mark.parametrize("test", ["tests/test_ops.py", "tests/test_ops.py::test_name"])
def test_tests_that_are_named_run_in_one_process_for_each_backend(test):
    found = [(job.backend, job.marks, job.arguments) for job in suite.jobs(["jax", "numpy"], [test, "-k", "x"], 2)]
    assert found == [("numpy", "", [test, "-k", "x"]), ("jax", "not once", [test, "-k", "x"])]


def test_a_run_fails_where_a_process_does_or_where_nothing_is_selected(monkeypatch, capsys):
    codes = {"numpy": 0, "jax": suite.NOTHING_SELECTED}
    monkeypatch.setenv("BACKENDS", "numpy jax")
    monkeypatch.setattr(suite, "run", lambda job, environment: (codes[job.backend], f"of {job.backend}", 1.0))
    assert suite.main(["tests/test_ops.py"]) == 0
    assert capsys.readouterr().out.endswith("passed: numpy\nfailed: none\n")
    codes["numpy"] = suite.NOTHING_SELECTED
    assert suite.main(["tests/test_ops.py"]) == 1
    assert capsys.readouterr().out.endswith("passed: none\nfailed: none\n")
    codes["jax"] = 1
    assert suite.main(["tests/test_ops.py"]) == 1
    assert capsys.readouterr().out.endswith("failed: jax\n")


def test_a_fast_run_leaves_out_what_is_slow(monkeypatch):
    asked = []
    monkeypatch.setattr(suite, "run", lambda job, environment: asked.append(job) or (0, "", 1.0))
    assert suite.main(["--fast"]) == 0
    assert {job.marks for job in asked} == {"once and not slow", "not once and not slow"}


@pytest.mark.parametrize("own", [None, "mine"])
def test_processes_share_what_jax_compiles_in_a_folder_that_may_be_ones_own(own, monkeypatch):
    folders = set()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    if own:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", own)
    monkeypatch.setattr(suite, "run", lambda job, env: folders.add(env["JAX_COMPILATION_CACHE_DIR"]) or (0, "", 1.0))
    assert suite.main([]) == 0
    (folder,) = folders
    assert (folder == own) == (own is not None)


def test_a_backend_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("BACKENDS", "numpy theano")
    with pytest.raises(SystemExit, match=r"BACKENDS: expected names of .*\. Received: numpy theano"):
        suite.main([])


CODE = """
def f(x: int | None = 1) -> bool:
    if x < 2 and not x:
        raise ValueError('2')
    return x + g(x)
"""
CHANGED = [
    ["def f(x: int | None=2) -> bool:"],
    ["if True:"],
    ["if False:"],
    ["if x < 2 or not x:"],
    ["if x < 2:"],
    ["if not x:"],
    ["if x <= 2 and (not x):"],
    ["if x < 3 and (not x):"],
    ["if x < 2 and x:"],
    ["pass"],
    ["return None"],
    ["return x - g(x)"],
]


def test_mutants_differ_in_one_place_and_leave_texts_and_annotations_alone():
    found = []
    for number in range(len(CHANGED)):
        tree = ast.parse(CODE)
        change = list(mutate.changes(tree, "f.py"))[number]
        found.append(ast.unparse(ast.fix_missing_locations(mutate.Exchange(change).visit(tree))))
    plain = ast.unparse(ast.parse(CODE)).splitlines()
    lines = [[new.strip() for new, old in zip(text.splitlines(), plain, strict=True) if new != old] for text in found]
    assert sorted(lines) == sorted(CHANGED)
    assert len(list(mutate.changes(ast.parse(CODE), "f.py"))) == len(CHANGED)

"""What the files around the library say of it agrees: versions, extras, subpackages, what CI tests."""

import pathlib
import re
import runpy
import tomllib

import pytest

import pernodedrop
from tests import package, release

ROOT = pathlib.Path(__file__).parent.parent

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def texts():
    """The documents and the library's files: where people are told what to install."""
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "pernodedrop").rglob("*.py")]
    return [file.read_text(encoding="utf-8") for file in files if "_build" not in file.parts]


def test_every_file_states_the_same_version():
    assert set(release.versions().values()) == {pernodedrop.__version__}


def test_a_release_needs_its_tag_and_its_date(monkeypatch):
    monkeypatch.setattr(release, "find", lambda pattern, file: ("1.2.3",) if "__version__" in pattern else ("1.2.4",))
    found = "\n".join(release.problems("v1.2.4"))
    assert "the tag is v1.2.4, pernodedrop/_version.py has 1.2.3" in found
    assert "where the date of the release belongs" in found


def test_every_subpackage_is_packaged(pyproject):
    """A build takes the listed ones only, and ships without the others in silence."""
    places = {file.parent.relative_to(ROOT) for file in (ROOT / "pernodedrop").rglob("__init__.py")}
    places.add(pathlib.Path("pernodedrop", "backends"))  # a link that rglob does not follow
    assert sorted(".".join(place.parts) for place in places) == sorted(pyproject["tool"]["setuptools"]["packages"])


def test_extras_that_are_advised_exist_and_the_readme_names_all_for_users(pyproject):
    extras = set(pyproject["project"]["optional-dependencies"])
    assert {extra for text in texts() for extra in advised(text)} <= extras
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert extras <= {*advised(readme), *re.findall(r"`(\w+)`", readme)}


def advised(text):
    """The extras of what a text says to install."""
    return [extra for names in re.findall(r"pernodedrop\[([\w,]+)\]", text) for extra in names.split(",")]


def test_the_recipe_for_conda_forge_is_that_of_the_metadata(pyproject):
    recipe, project = (ROOT / "recipe.yaml").read_text(encoding="utf-8"), pyproject["project"]
    (needed,) = re.findall(r"^  run:\n((?:    - .+\n)+)", recipe, re.MULTILINE)
    python, *others = re.findall(r"- (.+)", needed)
    assert python.replace("${{ python_min }}", *re.findall(r'python_min: "(.+)"', recipe)) == (
        f"python {project['requires-python']}"
    )
    assert [name.replace(" ", "") for name in others] == project["dependencies"]
    ((command, target),) = project["scripts"].items()
    assert f"- {command} = {target}\n" in recipe
    assert f"- {pyproject['build-system']['requires'][0].replace('>=', ' >=')}\n" in recipe
    assert f"license: {project['license']}\n" in recipe


def test_on_pypi_the_links_of_the_readme_lead_to_the_project_or_are_left_out():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    description = runpy.run_path(str(ROOT / "setup.py"))["description"]
    own = package.relative_links(readme)
    assert {"docs/gallery.md", "docs/pictures/mask-dark.svg"} <= {*own}
    assert [name for name in own if not (ROOT / name.partition("#")[0]).exists()] == []
    assert package.relative_links(description(readme)) == []
    there = description(readme, "https://example.org/pernodedrop", "v1.2.3")
    assert package.relative_links(there) == []
    assert re.findall(r'https://example.org/pernodedrop/(?:blob|raw)/v1.2.3/([^)"]+)', there) == own
    assert description("see [a](b.md) and [c](https://d)") == "see a and [c](https://d)"


def test_every_exception_from_a_rule_says_why():
    """`# noqa: X - reason`, `# type: ignore[x] # reason`; those of pyproject.toml stand in lists with comments."""
    silent = []
    for file in [
        *(ROOT / "pernodedrop").rglob("*.py"),
        *(ROOT / "backends").glob("*.py"),
        *(ROOT / "tests").glob("*.py"),
    ]:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(r"# (noqa(: [A-Z\d, ]+)?|type: ignore(\[[\w, -]+\])?)\s*$", line):
                silent.append(f"{file}:{number}: {line.strip()}")
    assert silent == []


def test_ci_tests_the_python_versions_that_the_metadata_promise(pyproject):
    promised = re.findall(r"Python :: (3\.\d+)", " ".join(pyproject["project"]["classifiers"]))
    (matrix,) = re.findall(r"^ +python: \[(.+)\]$", workflow("tests"), re.MULTILINE)
    assert re.findall(r'"(.+?)"', matrix) == promised
    assert pyproject["project"]["requires-python"] == f">={promised[0]}"


def test_ci_tests_the_lowest_versions_that_the_metadata_declare(pyproject):
    """uv takes the bounds of what it is asked for by name; of what has no bound, the first release there ever was."""
    extras = pyproject["project"]["optional-dependencies"]
    groups, frameworks = pyproject["dependency-groups"], {"jax", "tensorflow", "torch"}
    for name in frameworks:
        (build,) = (one for one in groups[f"test-{name}"] if one.startswith((f"{name}>", f"{name}-cpu>")))
        assert [build.replace("-cpu", "")] == extras[name]
    asked = re.findall(
        r"--resolution lowest-direct -e '\.\[(.+)\]' --group test --group \"test-\$BACKEND\"$", workflow("tests"), re.M
    )
    assert [set(names.split(",")) for names in asked] == [set(extras) - frameworks - {"equinox", "flax"}]
    others = [name for group, names in groups.items() if group.startswith("test") for name in names]
    named = [*pyproject["project"]["dependencies"], *(name for names in extras.values() for name in names), *others]
    assert [name for name in named if ">=" not in name and not name.startswith("pernodedrop[")] == []


def workflow(name):
    return (ROOT / f".github/workflows/{name}.yml").read_text(encoding="utf-8")

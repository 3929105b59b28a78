"""The API reference, the lists of public names and the code agree; read from the pages' sources, without Sphinx."""

import ast
import contextlib
import importlib
import inspect
import io
import json
import pathlib
import re
import runpy

import pytest

import pernodedrop as pnd
from pernodedrop.commands import cli
from pernodedrop.surgery import wrappers
from tests import house
from tests.test_public_api import MODULES

ROOT = pathlib.Path(__file__).parent.parent
API = ROOT / "docs" / "api"
PICTURES = ROOT / "docs" / "pictures"
pytestmark = [
    pytest.mark.skipif(not API.exists(), reason="the documents are in the checkout, not beside a wheel"),
    pytest.mark.once,
]


def documented():
    """The full names that the reference has an entry for."""
    text = "\n".join(page.read_text() for page in sorted(API.glob("*.rst")))
    names = re.findall(r"^\.\. auto(?:class|exception|function|data|decorator)::\s+([\w.]+)$", text, re.MULTILINE)
    missing = {f"pernodedrop.{wing}." for wing in house.WINGS if wing not in MODULES}
    return [name for name in names if not name.startswith((*missing,))]


def public():
    """The full names that are public."""
    modules = {f"pernodedrop.{name}": importlib.import_module(f"pernodedrop.{name}") for name in MODULES}
    names = {f"pernodedrop.{name}" for name in set(pnd.__all__) - set(MODULES) - {"__version__"}}
    for place, module in modules.items():
        wing = place.removeprefix("pernodedrop.") in house.WINGS  # whose names are of other things
        known = set() if wing else {*pnd.__all__}
        names |= {f"{place}.{name}" for name in {*module.__all__} - known - {"claims", "uncertainty"}}
    return names | {f"pernodedrop.testing.claims.{name}" for name in pnd.testing.claims.CLAIMS}


def test_the_reference_has_every_public_name_and_no_other():
    assert sorted(documented()) == sorted(public())


def test_what_is_documented_exists():
    for name in documented():
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_the_reference_has_every_command():
    page = set(re.findall(r"^\.\. command-help:: (\w+)$", (API / "cli.rst").read_text(), re.MULTILINE))
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        cli.main(["--help"])
    commands = text.getvalue().partition("COMMAND\n")[2]
    assert page == set(re.findall(r"^ {4}(\w+)", commands, re.MULTILINE))


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("y[n, j] = sum_i x[n, i] W[i, j], E[M] = 1", r":math:`y_{n, j} = \sum_i x_{n, i} W_{i, j}, E[M] = 1`"),
        ("q = 1 - sigmoid(z) where it is kept", r":math:`q = 1 - \mathrm{sigmoid}(z)` where it is kept"),
        ("a = 1 / sqrt((1 - p) (1 + s**2)),", r":math:`a = 1 / \sqrt{(1 - p) (1 + s^{ 2 })}`\ ,"),
        ("h~[t] where a unit is dropped, else `rate`", r":math:`{\tilde{h}}_{t}` where a unit is dropped, else `rate`"),
    ],
)
def test_formulas_of_docstrings_are_set_and_the_words_among_them_stay(line, shown):
    pytest.importorskip("docutils", reason="the site is made with it")
    assert runpy.run_path(str(ROOT / "docs" / "formulas.py"))["mixed"](line) == shown


def test_no_name_of_two_letters_or_more_is_set_as_a_product_of_letters():
    pytest.importorskip("docutils", reason="the site is made with it")
    formulas = runpy.run_path(str(ROOT / "docs" / "formulas.py"))
    found = {formulas["latex"](line) for line in ("weight[j, i] + bias[j]", "W[in, out] x_batch", "kernel~ bits24")}
    for file in (ROOT / "pernodedrop").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                lines = (ast.get_docstring(node) or "").split("\n")
                formulas["in_docstrings"](None, None, None, None, None, lines)
                found |= {*re.findall(":math:`(.*?)`", "\n".join(lines))}
    assert len(found) > 30
    assert not [one for one in found if re.search("[A-Za-z]{2}", re.sub(r"\\mathrm{.*?}|\\[A-Za-z]+", "", one))]


def test_the_contract_of_names_has_every_public_module():
    """But for those of frameworks that are not installed here."""
    public = (ROOT / "docs" / "contracts" / "names.md").read_text().partition("## What is kept")[0]
    listed = {*re.findall(r"`([a-z_.]+)`", public)} - {"pernodedrop.__all__", "__all__", "testing.claims"}
    assert {*MODULES} <= listed
    assert {name for name in listed - {*MODULES} if name.partition(".")[0] not in ("torch", "nnx", "equinox")} == set()


def test_apply_lists_every_regularizer():
    listed = inspect.getdoc(pnd.apply).partition("regularizer: ")[2].partition("Not beside")[0]
    assert re.findall(r'"(\w+)"', listed) == [*wrappers.FAMILY.regularizers]


def test_a_site_of_many_versions_leads_to_the_newest(tmp_path):
    main = runpy.run_path(str(ROOT / "docs" / "versions.py"))["main"]
    with pytest.raises(SystemExit, match=r"no folder like 1\.2\.3"):
        main(tmp_path)
    for name in ("0.9.0", "0.10.0", "0.2.1", "unfinished", "0.11.0"):
        (tmp_path / name).mkdir()
    for name in ("0.9.0", "0.10.0", "0.2.1", "unfinished"):
        (tmp_path / name / "index.html").touch()
    main(tmp_path)
    assert json.loads((tmp_path / "versions.json").read_text()) == ["0.10.0", "0.9.0", "0.2.1"]
    assert 'href="0.10.0/index.html"' in (tmp_path / "index.html").read_text()


def test_the_pictures_are_those_that_their_scripts_draw():
    script = runpy.run_path(str(PICTURES / "mask.py"))
    for theme in script["THEMES"]:
        assert (PICTURES / f"mask-{theme}.svg").read_text() == script["draw"](theme)


def test_the_gallery_has_every_regularizer_and_every_picture():
    page = (ROOT / "docs" / "gallery.md").read_text()
    sections = set(re.findall(r"\w+", " ".join(re.findall(r"^### (.+)$", page, re.MULTILINE))))
    layers = {name for name in pnd.layers.__all__ if inspect.isclass(getattr(pnd, name))}
    assert layers <= sections
    shown = re.findall(r"pictures/gallery/(\w+)\.png$", page, re.MULTILINE)
    assert sorted(shown) == sorted(file.stem for file in (PICTURES / "gallery").glob("*.png"))


def test_the_costs_in_the_readme_are_those_that_were_measured():
    runs = json.loads((ROOT / "benchmarks" / "family" / "results.json").read_text())
    backends = ("jax", "tensorflow", "torch")

    def ratios(network, variant):
        of = {run["backend"]: run["seconds"] for run in runs if run["network"] == network}
        return [f"{of[backend][variant] / of[backend]['none']:.1f}" for backend in backends]

    both = zip(ratios("dense", "Dropout"), ratios("dense", "Keras' Dropout"), strict=True)
    rows = [
        ("Dense 512 → 256 → 10 | PerNodeDrop", ratios("dense", "PerNodeDrop")),
        ("| with Gaussian noise", ratios("dense", "PerNodeDrop, gaussian")),
        ("| with a fixed mask", ratios("dense", "PerNodeDrop, fixed")),
        ("| DropConnect", ratios("dense", "DropConnect")),
        ("| Dropout (of Keras)", [f"{own} ({kerass})" for own, kerass in both]),
        ("3 x 3 convolution, 16 to 32 maps of 16 x 16 | PerNodeDrop", ratios("maps", "PerNodeDrop")),
        ("| DropConnect", ratios("maps", "DropConnect")),
    ]
    readme = (ROOT / "README.md").read_text()
    for label, figures in rows:
        assert f"{label} | {' | '.join(figures)} |" in readme


@pytest.mark.parametrize(("folder", "guide"), [("torch", "pytorch"), ("nnx", "flax"), ("equinox", "equinox")])
def test_the_guide_of_a_framework_has_every_module(folder, guide):
    """Read from the source: the test needs no framework."""
    listed = (ROOT / "pernodedrop" / folder / "__init__.py").read_text().partition("__all__ = [")[2].partition("]")[0]
    page = (ROOT / "docs" / "guides" / f"{guide}.md").read_text().partition("## The modules")[2].partition("\n## ")[0]
    page = re.sub(r"`(\w+)1d` to `3d`", r"`\g<1>1d` `\g<1>2d` `\g<1>3d`", page)
    assert {*re.findall(r'"([A-Z]\w+)"', listed)} - {"NoiseState"} <= {*re.findall(r"`(\w+)`", page)}


def test_every_section_of_the_gallery_says_how_to_begin_and_what_it_was_tested_against_and_leads_to_the_reference():
    page = (ROOT / "docs" / "gallery.md").read_text()
    _, *parts = re.split(r"^### (.+)$", page, flags=re.MULTILINE)
    led_to = set()
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        assert "\n```python\n" in text, title
        for line in ("Numbers drawn per ", "Time of a step, in steps without ", "Starting rate: ", "Tested against: "):
            assert f"\n- {line}" in text, (title, line)
        (reference,) = re.findall(r"^- Reference: (.+?)\.$", text, re.MULTILINE | re.DOTALL)
        led_to |= {*re.findall(r"\]\(#(.+?)\)", reference)}
    assert led_to <= {*documented()}
    assert led_to >= {f"pernodedrop.{name}" for name in pnd.layers.__all__ if inspect.isclass(getattr(pnd, name))}


def test_the_pictures_of_the_gallery_are_what_the_layers_do():
    """Except for the last bit of continuous noises, which is the processor's own."""
    pytest.importorskip("matplotlib", reason="an extra draws")
    from matplotlib import image

    script = runpy.run_path(str(PICTURES / "gallery.py"))
    assert {file.stem for file in (PICTURES / "gallery").glob("*.png")} == set(script["PANELS"])
    for name, panels in script["PANELS"].items():
        kept = image.imread(PICTURES / "gallery" / f"{name}.png")
        assert abs(kept * 255 - script["drawn"](panels())).max() <= 2, name

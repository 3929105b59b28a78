"""The site: `make docs` builds it strictly, so a reference that leads nowhere is an error."""

import contextlib
import inspect
import io
import json
import os
import pathlib
import pkgutil
import re
import sys
import typing

from docutils import nodes
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx_gallery.scrapers import figure_rst

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.update(COLUMNS="78", NO_COLOR="1")  # argparse lays help out by these

import pernodedrop  # after that, since Keras reads its backend at import
from pernodedrop.commands import cli
from pernodedrop.commands.bench import matrix, table
from pernodedrop.commands.bench.results import Figures
from pernodedrop.report.table import as_markdown
from pernodedrop.testing.claims import CLAIMS

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # formulas.py lies beside this file

project = "pernodedrop"
author = "The pernodedrop developers"
copyright = author  # noqa: A001 - Sphinx' name for it
version = release = pernodedrop.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "formulas",
]
exclude_patterns = ["_build", "examples", "pictures"]

copybutton_exclude = ".linenos, .gp, .go"  # the copy of a doctest has neither prompts nor output
smartquotes_action = "D"  # dashes; a quoted word of a docstring is a Python string and keeps its quotes

highlight_language = "text"
pygments_dark_style = "github-dark"

html_theme = "furo"
html_title = f"pernodedrop {release}"
html_static_path = ["site.css", "site.js"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sourcelink = False

myst_heading_anchors = 3

autosummary_generate = False  # entry_pages does
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say what a type annotation cannot
napoleon_numpy_docstring = False
napoleon_custom_sections = [
    ("Call arguments", "params_style"),
    ("Subclasses give", "params_style"),
    ("They may give", "params_style"),
]
default_role = "py:obj"

nitpicky = True  # words in single backticks that only look like a reference: see leave_as_code
nitpick_ignore = [
    ("py:class", "collections.abc.Callable"),  # Python's documents would have to be fetched to be linked
    ("py:class", "collections.abc.Iterable"),
    ("py:class", "collections.abc.Sequence"),
]
nitpick_ignore_regex = [
    ("py:class", r"keras\..+"),  # Keras' and NumPy's, likewise
    ("py:class", r"numpy\..+"),
]


def figures(block, block_vars, gallery_conf):
    """The pictures of an example: what it calls `figure`, once."""
    figure = block_vars["example_globals"].pop("figure", None)
    if figure is None:
        return ""
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path, dpi=120)
    return figure_rst([path], gallery_conf["src_dir"])


sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "tutorials",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": (figures,),
    "capture_repr": (),
    "first_notebook_cell": "%matplotlib inline",
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
}
suppress_warnings = [
    "autosummary.import_cycle",  # a page that says which module it is of names its classes in full
    "config.cache",  # a function in these settings: the examples run again in every build
]


class CommandHelp(SphinxDirective):
    """`.. command-help:: doctor` is what `pernodedrop doctor --help` prints."""

    optional_arguments = 1

    def run(self):
        """The text as a literal block."""
        command = self.arguments[:1]
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            cli.main([*command, "--help"])
        if not text.getvalue():
            raise self.error(f"`pernodedrop {' '.join(command)} --help` printed nothing")
        title = " ".join(["$ pernodedrop", *command, "--help"])
        return [nodes.literal_block(text=f"{title}\n\n{text.getvalue()}", language="text")]


class Claims(SphinxDirective):
    """`.. claims::` is a table of what `pernodedrop.testing` claims of a noise."""

    def run(self):
        """The table."""
        rows = [("claim", "what is claimed")]
        where = {
            "noise": "Of the noise itself, on no backend.",
            "backend": "",
            "one backend": "Tried on the first backend, which the others are compared with.",
            "other backend": "Tried on every backend but NumPy.",
            "differentiable backend": "Tried where there are gradients.",
        }
        for name, claim in CLAIMS.items():
            rows.append((f":py:func:`{name} <pernodedrop.testing.claims.{name}>`", f"{claim.text} {where[claim.of]}"))
        table = "\n".join("   * - " + "\n     - ".join(row) for row in rows)
        return self.parse_text_to_nodes(f".. list-table::\n   :header-rows: 1\n\n{table}\n")


class Bench(SphinxDirective):
    """`{bench} times 128x4096x64`, in a Markdown page, is a table of the committed figures of `pernodedrop bench`.

    Others are `memory` and `limits` with a shape, `ratios`, `choices`, `networks` and `growth` without, and `where` they
    were measured, which is a paragraph.
    """

    required_arguments = 1
    optional_arguments = 1
    file = pathlib.Path(__file__).parent.parent / "benchmarks" / "results" / "results.json"
    tables: typing.ClassVar = {
        "ratios": table.ratios,
        "choices": table.choices,
        "times": table.times,
        "limits": table.shares,
        "memory": table.memory,
        "networks": table.networks,
        "growth": table.growth,
    }

    def run(self):
        """The table."""
        self.env.note_dependency(str(self.file))
        what, *shape = self.arguments
        if not self.file.exists():
            raise self.error(f"no figures: pernodedrop bench --profile paper --output {self.file.parent}")
        figures = Figures.read(self.file)
        if what == "where":
            return [nodes.paragraph(text=" ".join(table.where(figures)))]
        parts = [part for part in table.parts(figures) if [matrix.shape_text(part[0]), "float32"] == [*shape, part[1]]]
        return self.parse_text_to_nodes(as_markdown(self.tables[what](figures, *parts)))


class FamilyCost(SphinxDirective):
    """`{family-cost} dense` is a table of a step with each regularizer by the step without, of one network."""

    required_arguments = 1
    file = pathlib.Path(__file__).parent.parent / "benchmarks" / "family" / "results.json"

    @classmethod
    def ratios(cls):
        """{network: {variant: {backend: a step with it by the step without, of the same run}}}."""
        found = {}
        for run in sorted(json.loads(cls.file.read_text()), key=lambda run: run["backend"]):
            for variant, seconds in run["seconds"].items():
                if variant != "none":
                    of = found.setdefault(run["network"], {}).setdefault(variant, {})
                    of[run["backend"]] = seconds / run["seconds"]["none"]
        return found

    def run(self):
        """The table."""
        self.env.note_dependency(str(self.file))
        (network,) = self.arguments
        ratios = self.ratios()[network]
        backends = sorted({backend for of in ratios.values() for backend in of})
        rows = [(network, *backends)]
        for variant, of in ratios.items():
            rows.append((variant, *(f"{of[backend]:.2f}" if backend in of else "" for backend in backends)))
        return self.parse_text_to_nodes(as_markdown(rows))


class FamilyMachines(SphinxDirective):
    """`{family-machines}` is where the figures of `{family-cost}` were measured."""

    def run(self):
        """A paragraph."""
        self.env.note_dependency(str(FamilyCost.file))
        runs = json.loads(FamilyCost.file.read_text())
        versions = {name: run["machine"][name] for run in runs for name in ("keras", run["backend"])}
        where = {run["machine"]["processor"] for run in runs}
        text = f"{'; '.join(sorted(where))}. {', '.join(f'{name} {version}' for name, version in versions.items())}."
        return [nodes.paragraph(text=text)]


class Step(SphinxRole):
    """{step}`DropConnect` is what a step with a regularizer takes, by the step without, on each backend."""

    def run(self):
        """The text."""
        self.env.note_dependency(str(FamilyCost.file))
        of = next(of[self.text] for of in FamilyCost.ratios().values() if self.text in of)
        return [nodes.Text(", ".join(f"{ratio:.1f} ({backend})" for backend, ratio in of.items()))], []


class Selected(SphinxRole):
    """{selected}`Dropout` is the rate of a variant that each study selected, and confirmed on the test set."""

    def run(self):
        """The text."""
        found = []
        for file in sorted((pathlib.Path(__file__).parent.parent / "benchmarks" / "studies").glob("*/report.md")):
            self.env.note_dependency(str(file))
            confirmed = file.read_text().partition("## Confirmed on the test set")[2].partition("\n## ")[0]
            if row := re.search(rf"^\| {re.escape(self.text)} \| (0\.\d+) \|", confirmed, re.MULTILINE):
                found.append(f"{row[1]} ({file.parent.name})")
        if not found:
            raise ValueError(f"{self.text}: expected a variant that a study has confirmed")
        return [nodes.Text(", ".join(found))], []


ENTRY = re.compile(r"^\.\. auto(class|exception|function):: (\S+)\n(?: +\S.*\n)*\n*", re.MULTILINE)
"""A class or a function on a page of the reference, with its options."""


def page_of(found):
    """The page of an entry. Functions have a folder: some file systems take metrics.X and metrics.x for one."""
    return f"functions/{found[2]}" if found[1] == "function" else found[2]


def entry_pages(app):
    """Write a page for each class and each function of the reference, before Sphinx looks for pages."""
    folder = pathlib.Path(app.srcdir) / "reference"
    (folder / "functions").mkdir(parents=True, exist_ok=True)
    for page in (pathlib.Path(app.srcdir) / "api").glob("*.rst"):
        text = page.read_text()
        for found in ENTRY.finditer(text + "\n"):
            title = found[2].rpartition(".")[2]
            shares = found[1] == "class" and "What every" in text
            back = f"What it shares with others: :doc:`../api/{page.stem}`.\n" if shares else ""
            (folder / f"{page_of(found)}.rst").write_text(
                f"{title}\n{'=' * len(title)}\n\n{found[0].rstrip()}\n\n{back}"
            )


def entries_as_table(app, docname, source):
    """On a page of the reference, classes and functions in a row are a table, which leads to their pages."""

    def table(found):
        entries = [*ENTRY.finditer(found[0])]
        rows = "".join(f"   ~{entry[2]}\n" for entry in entries)
        pages = "".join(f"   ../reference/{page_of(entry)}\n" for entry in entries)
        return f".. autosummary::\n   :nosignatures:\n\n{rows}\n.. toctree::\n   :hidden:\n\n{pages}\n"

    if docname.startswith("api/"):
        source[0] = re.sub(rf"(?:{ENTRY.pattern})+", table, source[0] + "\n", flags=re.MULTILINE)


def examples_as_pages(app, docname, source):
    """A link to the script of an example, as the repository has it, leads to its page here."""

    def link(found):
        name = "index" if found[2] == "README.rst" else found[2].removesuffix(".py")
        return f"]({found[1]}tutorials/{name}.rst)"

    source[0] = re.sub(r"\]\(((?:\.\./)*)\.\./examples/([\w.]+)\)", link, source[0])


def leave_as_code(app, env, node, contnode):
    """A word in single backticks that is no name of this site stays code, unless it is a name of nothing."""
    if node["reftype"] != "obj" or node.get("refexplicit"):
        return None
    name = node["reftarget"].partition("(")[0]  # `pernodedrop.Dropout(0.5)` is a call, and a name of this site
    if name.startswith("pernodedrop."):
        try:
            pkgutil.resolve_name(name)
        except (AttributeError, ImportError):
            return None
    return contnode


def own_signature(app, what, name, obj, options, signature, returns):
    """A class is called as its `__init__` says, since Keras' layers have a `__new__` that takes anything.

    A module that is a default is shown by its name.
    """
    if what == "class" and "__init__" in vars(obj):
        _, *parameters = inspect.signature(obj.__init__).parameters.values()
        signature = inspect.Signature([parameter.replace(annotation=parameter.empty) for parameter in parameters])
    return re.sub(r"<module '([\w.]+)'.*?>", r"\1", str(signature or "")) or None, returns


def as_rst(app, what, name, obj, options, lines):
    """Docstrings are plain text that reStructuredText mistakes in three places: lists below a line, `**` and `|x|`.

    Data without a docstring has not that of its type.
    """
    if what == "data" and lines and lines[0] in (type(obj).__doc__ or ""):
        lines.clear()
        return
    text = re.sub(r"(?<=, )\*\*kwargs", r"\\*\\*kwargs", "\n".join(lines))
    text = re.sub(r"^(\w.*\n)(?=- )", r"\1\n", text, flags=re.MULTILINE)
    lines[:] = [
        line if line.lstrip().startswith((">>>", "...")) else line.replace("|", r"\|") for line in text.split("\n")
    ]


def without_types(app, what, name, obj, options, lines):
    """Napoleon takes what stands before a colon, of a property or a result, for a type; no docstring here has one."""
    text = re.sub(r"\A(.*)\n\n:type: (.*)\Z", r"\2: \1", "\n".join(lines).strip(), flags=re.DOTALL)
    text = re.sub(r"^:returns: (.*?)\n:rtype: ([^\n]*)$", r":returns: \2: \1", text, flags=re.DOTALL | re.MULTILINE)
    lines[:] = [*text.split("\n"), ""]


def with_gallery(app, what, name, obj, options, lines):
    """What a section of the gallery leads to ends with a link back, to the first that does."""
    page = (pathlib.Path(__file__).parent / "gallery.md").read_text()
    _, *parts = re.split(r"^### (.+)$", page, flags=re.MULTILINE)
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        if f"](#{name})" in text:
            anchor = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
            up = "../.." if what == "function" else ".."
            lines += ["", f"`In the gallery <{up}/gallery.html#{anchor}>`__", ""]
            return


def setup(app):
    """Register what this file adds to Sphinx."""
    app.add_directive("bench", Bench)
    app.add_directive("claims", Claims)
    app.add_directive("command-help", CommandHelp)
    app.add_directive("family-cost", FamilyCost)
    app.add_directive("family-machines", FamilyMachines)
    app.add_role("selected", Selected())
    app.add_role("step", Step())
    app.connect("builder-inited", entry_pages)
    app.connect("source-read", entries_as_table)
    app.connect("source-read", examples_as_pages)
    app.connect("autodoc-process-signature", own_signature)
    app.connect("autodoc-process-docstring", as_rst, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", without_types, priority=600)  # after it
    app.connect("autodoc-process-docstring", with_gallery, priority=700)
    app.connect("missing-reference", leave_as_code)

"""Formulas of docstrings, which are plain text, as mathematics: MathML, which browsers show without a script."""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

GREEK = ("alpha", "beta", "gamma", "mu", "phi", "pi", "sigma", "theta", "Phi")
OPERATORS = {"=", "+", "-", "*", "/"}


def setup(app):
    """Register the renderer and what finds formulas."""
    app.add_html_math_renderer("mathml", (show, None), (show, None))
    app.config.html_math_renderer = "mathml"
    app.connect("autodoc-process-docstring", in_docstrings, priority=450)  # between conf.as_rst and napoleon


def show(self, node):
    """A formula in HTML."""
    self.body.append(f'<span class="formula">{tex2mathml(node.astext())}</span>')
    raise nodes.SkipNode


def in_docstrings(app, what, name, obj, options, lines):
    """Indented lines of the text before the arguments are formulas, unless they are a table or a list."""
    text = "\n".join(lines)
    head, rest = re.match(r"(.*?)((?:\n(?:Args|Raises|Returns|Example|>>>).*)?)\Z", text, re.DOTALL).groups()
    head = re.sub(r"(?<=\n\n)((?: {4}[^\s=].*\n)+)(?=\n)", lambda found: as_lines(found[1]), f"{head}\n\n").rstrip("\n")
    lines[:] = [*f"{head}\n{rest}".split("\n"), ""]


def as_lines(block):
    """Lines of formulas, with words among them, as lines of a page."""
    return "".join(f"| {mixed(line.strip())}\n" for line in block.replace(r"\|", "|").splitlines())


def mixed(line):
    """A line in which what is no word is mathematics: `q = 1 - sigmoid(z) where that is above 0`."""
    tokens, depth, parts = line.split(" "), 0, []
    for n, token in enumerate(tokens):
        beside = {*tokens[max(n - 1, 0) : n], *tokens[n + 1 : n + 2]}
        word = re.fullmatch(r"[A-Za-z]{2,}[,.:;]?|`.*|.*\".*|", token) and token.rstrip(",.:;") not in GREEK
        article = token == "a" and re.fullmatch("[a-z]{2,}", " ".join(tokens[n + 1 : n + 2]))
        formula = depth > 0 or token in OPERATORS or not (article or (word and not beside & OPERATORS))
        depth += sum(map(token.count, "([{")) - sum(map(token.count, ")]}"))
        if parts and parts[-1][0] == formula:
            parts[-1][1].append(token)
        else:
            parts.append((formula, [token]))
    return " ".join(role(" ".join(part)) if formula else " ".join(part) for formula, part in parts)


def role(text):
    """A formula as a role of a page, without the punctuation that follows."""
    formula, stop = re.fullmatch(r"(.*?)([,.;:]?)", text).groups()
    return f":math:`{latex(formula)}`" + (rf"\ {stop}" if stop else "")


def latex(text):
    """Plain text as LaTeX: `h~[t - 1]`, `sum_i`, `sqrt(1 + p s**2)`, `|W|`, names of several letters."""
    text = re.sub(r"[{}]", lambda found: rf"\{found[0]}", text)
    text = re.sub(r"(\w+)~", r"{\\tilde{\1}}", text)
    text = re.sub(
        r"(?<=[^\WE])\[(.*?)\]|(?<=})\[(.*?)\]", lambda found: f"_{{{found[1] or found[2]}}}", text
    )  # not E[M]
    text = re.sub(r"\bsum_(\w)", r"\\sum_\1", text)
    text = re.sub(r"\*\*(\w+)", r"^{ \1 }", text)
    text = re.sub(r"(\d)e(-?\d+)", r"\1 \\cdot 10^{\2}", text).replace(r"1 \cdot 10", "10")
    text = re.sub(r"\b([a-zA-Z])(\d)\b", r"\1_\2", text)
    text = text.replace("||", r" \parallel ").replace("*", r"\cdot")
    text = re.sub(r"(?<![\\\w])(?=\w*[A-Za-z]{2})([A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*)", named, text)
    while found := re.search(r"\\sqrt\((?:[^()]|\([^()]*\)|\((?:[^()]|\([^()]*\))*\))*\)", text):
        text = text.replace(found[0], rf"\sqrt{{{found[0][6:-1]}}}")
    return text


def named(found):
    """A name of several letters, with a space where it multiplies what follows."""
    name, rest = found[1], found.string[found.end() :]
    if name in (*GREEK, "sqrt", "ln", "sum"):
        return f"\\{name}"
    return rf"\mathrm{{{name}}}".replace("_", r"\_") + (r"\," if re.match(r" [\w(]", rest) else "")

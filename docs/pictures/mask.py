"""Draws mask-light.svg and mask-dark.svg: an entry of a mask is computed from its address.

`python docs/pictures/mask.py` writes both beside itself. What they show is a mask of the library, to the bit.
"""

import itertools
import pathlib

import pernodedrop as pnd

KEY, SHAPE, RATE = (1, 0), (3, 5, 7), 0.5
ENTRY = (1, 3, 2)  # the sample, in and out that the picture follows
FOLDER = pathlib.Path(__file__).parent

WIDTH, HEIGHT, LEFT = 360, 404, 16
CELL, GAP, TOP = 14, 17, 66
INNER = WIDTH - 2 * LEFT
THEMES = {
    "light": {"text": "#1f2328", "faint": "#59636e", "kept": "#2f74a3", "dropped": "#e3e7eb", "accent": "#c2410c"},
    "dark": {"text": "#eceff2", "faint": "#aab4be", "kept": "#5aa9dc", "dropped": "#2b3138", "accent": "#ffa366"},
}
SANS = "system-ui, 'DejaVu Sans', Verdana, sans-serif"
MONO = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"


def draw(theme):
    """The picture as SVG text, in one of `THEMES`."""
    drawing = Drawing(THEMES[theme])
    mask = pnd.ops.sample_mask(pnd.Bernoulli(RATE), KEY, SHAPE, backend="numpy")
    word = int(pnd.ops.random_bits(KEY, SHAPE, backend="numpy")[ENTRY])
    followed, below = draw_masks(drawing, mask)
    top = below + 38
    draw_path(drawing, followed, below + 8, top - 2)
    draw_steps(drawing, top, word, mask[ENTRY])
    draw_backends(drawing, top + 172)
    title = "A mask is a function: the address of an entry makes its word, the word makes the entry"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img">\n<title>{title}</title>\n' + "\n".join(drawing.parts) + "\n</svg>\n"
    )


class Drawing:
    """Shapes of a picture as SVG, in the colors of a theme."""

    def __init__(self, color):
        self.color, self.parts = color, []

    def text(self, x, y, string, size=13, fill="text", family=SANS, anchor="start", weight="normal"):
        """A line of text."""
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" fill="{self.color[fill]}" font-family="{family}" '
            f'text-anchor="{anchor}" font-weight="{weight}">{string}</text>'
        )

    def box(self, x, y, width, height, fill="none", stroke="none", line=1.0, radius=2):
        """A rectangle with round corners."""
        color = self.color
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{color.get(fill, fill)}" '
            f'stroke="{color.get(stroke, stroke)}" stroke-width="{line}"/>'
        )

    def line(self, path):
        """A line along an SVG path."""
        self.parts.append(f'<path d="{path}" fill="none" stroke="{self.color["accent"]}" stroke-width="1.6"/>')


def draw_masks(drawing, mask):
    """The masks of all samples; returns where the entry that is followed stands, and the foot of it all."""
    drawing.text(LEFT, 20, "A mask: one entry for every connection", weight="bold", size=14)
    drawing.text(LEFT, 38, "of every sample", weight="bold", size=14)
    wide = SHAPE[2] * CELL
    for n in range(SHAPE[0]):
        x = LEFT + n * (wide + GAP)
        drawing.text(x, TOP - 7, f"sample {n}", size=12, fill="faint")
        for i, o in itertools.product(range(SHAPE[1]), range(SHAPE[2])):
            fill = "kept" if mask[n, i, o] else "dropped"
            drawing.box(x + o * CELL, TOP + i * CELL, CELL - 2, CELL - 2, fill=fill)
    sample, in_, out = ENTRY
    x, y = LEFT + sample * (wide + GAP) + out * CELL, TOP + in_ * CELL
    drawing.box(x - 2, y - 2, CELL + 2, CELL + 2, stroke="accent", line=2.4)
    below = TOP + SHAPE[1] * CELL + 13
    drawing.text(LEFT, below, "down: in, right: out", size=12, fill="faint")
    return (x, y), below


def draw_path(drawing, followed, turn, end):
    """From the entry that is followed down to its address."""
    x, y = followed
    drawing.line(f"M{x + CELL / 2 - 1} {y + CELL}V{turn}H{WIDTH / 2}V{end}")


def draw_steps(drawing, top, word, entry):
    """From the address of an entry to the entry."""
    steps = (
        ("its address", ", ".join(map(str, KEY + ENTRY)), "seed, call, sample, in, out"),
        ("the generator", f"0x{word:08x}", "its word, 32 bits"),
        ("the noise", f"{entry:.1f}", f"its entry: Bernoulli, rate {RATE}"),
    )
    for n, (title, left, right) in enumerate(steps):
        y = top + 59 * n
        drawing.text(LEFT, y - 6, title, size=12, weight="bold")
        drawing.box(LEFT, y, INNER, 30, stroke="accent", line=1.4, radius=5)
        drawing.text(LEFT + 10, y + 20, left, family=MONO, size=12.5)
        drawing.text(WIDTH - LEFT - 10, y + 20, right, fill="faint", size=12, anchor="end")
        if n + 1 < len(steps):
            x, end = WIDTH / 2, y + 57
            drawing.line(f"M{x} {y + 31}V{end}M{x - 4} {end - 5}L{x} {end}L{x + 4} {end - 5}")


def draw_backends(drawing, top):
    """Who computes it."""
    drawing.text(LEFT, top, "No entry is stored. These compute it, to the same bits:", size=12, fill="faint")
    between = 6
    width = (INNER - 3 * between) / 4
    for n, name in enumerate(("NumPy", "TensorFlow", "PyTorch", "JAX")):
        x = LEFT + n * (width + between)
        drawing.box(x, top + 9, width, 26, stroke="faint", radius=13)
        drawing.text(x + width / 2, top + 26, name, size=11.5, anchor="middle")


if __name__ == "__main__":
    for theme in THEMES:
        (FOLDER / f"mask-{theme}.svg").write_text(draw(theme), encoding="utf-8")

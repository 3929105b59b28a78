"""Draws mask-light.svg and mask-dark.svg: an entry of a mask is computed from its address.

`python docs/pictures/mask.py` writes both beside itself. What they show is a mask of the library, to the bit.
"""

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
    color = THEMES[theme]
    mask = pnd.ops.sample_mask(pnd.Bernoulli(RATE), KEY, SHAPE, backend="numpy")
    word = int(pnd.ops.random_bits(KEY, SHAPE, backend="numpy")[ENTRY])
    sample, in_, out = ENTRY
    parts = []

    def text(x, y, string, size=13, fill="text", family=SANS, anchor="start", weight="normal"):
        parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" fill="{color[fill]}" font-family="{family}" '
            f'text-anchor="{anchor}" font-weight="{weight}">{string}</text>'
        )

    def box(x, y, width, height, fill="none", stroke="none", line=1.0, radius=2):
        parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{color.get(fill, fill)}" '
            f'stroke="{color.get(stroke, stroke)}" stroke-width="{line}"/>'
        )

    def arrow(y, length):
        x, end = WIDTH / 2, y + length
        parts.append(
            f'<path d="M{x} {y}V{end}M{x - 4} {end - 5}L{x} {end}L{x + 4} {end - 5}" fill="none" '
            f'stroke="{color["accent"]}" stroke-width="1.6"/>'
        )

    def step(y, left, right):
        box(LEFT, y, INNER, 30, stroke="accent", line=1.4, radius=5)
        text(LEFT + 10, y + 20, left, family=MONO, size=12.5)
        text(WIDTH - LEFT - 10, y + 20, right, fill="faint", size=12, anchor="end")

    text(LEFT, 20, "A mask: one entry for every connection", weight="bold", size=14)
    text(LEFT, 38, "of every sample", weight="bold", size=14)
    wide = SHAPE[2] * CELL
    for n in range(SHAPE[0]):
        x = LEFT + n * (wide + GAP)
        text(x, TOP - 7, f"sample {n}", size=12, fill="faint")
        for i in range(SHAPE[1]):
            for o in range(SHAPE[2]):
                box(x + o * CELL, TOP + i * CELL, CELL - 2, CELL - 2, fill="kept" if mask[n, i, o] else "dropped")
    x, y = LEFT + sample * (wide + GAP) + out * CELL, TOP + in_ * CELL
    box(x - 2, y - 2, CELL + 2, CELL + 2, stroke="accent", line=2.4)
    below = TOP + SHAPE[1] * CELL + 13
    text(LEFT, below, "down: in, right: out", size=12, fill="faint")

    y = below + 38
    parts.append(
        f'<path d="M{x + CELL / 2 - 1} {TOP + (in_ + 1) * CELL}V{below + 8}H{WIDTH / 2}V{y - 2}" fill="none" '
        f'stroke="{color["accent"]}" stroke-width="1.6"/>'
    )
    text(LEFT, y - 6, "its address", size=12, weight="bold")
    step(y, f"{KEY[0]}, {KEY[1]}, {sample}, {in_}, {out}", "seed, call, sample, in, out")
    arrow(y + 31, 26)
    text(LEFT, y + 53, "the generator", size=12, weight="bold")
    step(y + 59, f"0x{word:08x}", "its word, 32 bits")
    arrow(y + 90, 26)
    text(LEFT, y + 112, "the noise", size=12, weight="bold")
    entry = mask[ENTRY]
    step(y + 118, f"{entry:.1f}", f"its entry: Bernoulli, rate {RATE}")

    y += 172
    text(LEFT, y, "No entry is stored. These compute it, to the same bits:", size=12, fill="faint")
    names = ("NumPy", "TensorFlow", "PyTorch", "JAX")
    pill, between = (INNER - 3 * 6) / 4, 6
    for n, name in enumerate(names):
        box(LEFT + n * (pill + between), y + 9, pill, 26, stroke="faint", radius=13)
        text(LEFT + n * (pill + between) + pill / 2, y + 26, name, size=11.5, anchor="middle")

    title = "A mask is a function: the address of an entry makes its word, the word makes the entry"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img">\n<title>{title}</title>\n' + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    for theme in THEMES:
        (FOLDER / f"mask-{theme}.svg").write_text(draw(theme), encoding="utf-8")

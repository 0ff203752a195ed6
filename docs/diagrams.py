"""Draws the pictures of the documentation that explain: ``python -m docs.diagrams``.

Each picture is written twice, for light and for dark pages, by hand into SVG, so that the files are
the same wherever they are drawn. All lengths are in units of the picture; y grows downwards.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).with_name("pictures")
WIDTH = 480.0


@dataclass(frozen=True)
class Theme:
    """The colours of a picture.

    Attributes:
        suffix: What the file's name ends in.
        ink: Text and lines.
        faint: What matters less.
        paper: What lies behind.
        fills: Modalities, by their index; then what is learnt; then what is computed.
    """

    suffix: str
    ink: str
    faint: str
    paper: str
    fills: tuple[str, str, str, str, str]


THEMES = (
    Theme(
        "", "#1f2430", "#6b7280", "#ffffff", ("#a9c7f5", "#f7c98f", "#a6dcb8", "#d9d9e3", "#f3b5bd")
    ),
    Theme(
        "-dark",
        "#e8eaf0",
        "#9aa3b2",
        "#131416",
        ("#335d9e", "#9a6423", "#2f7a4c", "#4a4e5c", "#96404c"),
    ),
)
FIRST, SECOND, THIRD, LEARNT, COMPUTED = range(5)


@dataclass
class Picture:
    """An SVG picture in the making."""

    theme: Theme
    title: str
    height: float
    parts: list[str] = field(default_factory=list)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: int | None,
        *,
        solid: bool = True,
    ) -> None:
        """Draws a rectangle; without a fill it is empty, and dashed if not solid."""
        colour = "none" if fill is None else self.theme.fills[fill]
        dashes = "" if solid else ' stroke-dasharray="3 3"'
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" '
            f'fill="{colour}" stroke="{self.theme.ink}" stroke-width="1"{dashes}/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 13,
        anchor: str = "middle",
        faint: bool = False,
        bold: bool = False,
        code: bool = False,
        italic: bool = False,
    ) -> None:
        """Writes one line, its baseline at y."""
        style = "".join(
            [
                ' font-weight="600"' if bold else "",
                ' font-style="italic"' if italic else "",
                ' font-family="ui-monospace, Menlo, Consolas, monospace"' if code else "",
            ]
        )
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}" '
            f'fill="{self.theme.faint if faint else self.theme.ink}"{style}>{escape(words)}</text>'
        )

    def line(
        self,
        x1: float,
        y1: float,
        x2: float,
        y2: float,
        *,
        arrow: bool = False,
        faint: bool = False,
    ) -> None:
        """Draws a line, with a head at its end if it is an arrow."""
        head = ' marker-end="url(#head)"' if arrow else ""
        colour = self.theme.faint if faint else self.theme.ink
        width = 0.7 if faint else 1.4
        self.parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" '
            f'stroke-width="{width}"{head}/>'
        )

    def dot(self, x: float, y: float, fill: int | None) -> None:
        """Draws a small circle."""
        colour = self.theme.paper if fill is None else self.theme.fills[fill]
        self.parts.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="5" fill="{colour}" stroke="{self.theme.ink}"/>'
        )

    def matrix(self, x: float, y: float, size: tuple[float, float], fill: int, name: str) -> float:
        """Draws a matrix of this (height, width) around the height y; returns where it ends."""
        height, width = size
        self.box(x, y - height / 2, width, height, fill)
        self.text(x + width / 2, y + 5, name, size=15, italic=True)
        return x + width

    def svg(self) -> str:
        """The file's text."""
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {self.height:g}" '
                f'width="{WIDTH:g}" height="{self.height:g}" role="img" '
                'font-family="system-ui, -apple-system, Segoe UI, Roboto, Arial, sans-serif">',
                f"<title>{escape(self.title)}</title>",
                '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
                'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" '
                f'fill="{self.theme.ink}"/></marker></defs>',
                *self.parts,
                "</svg>\n",
            ]
        )


# To scale with each other: steps, features of the modality, features of its joint.
STEPS, DIM, JOINT = 84.0, 30.0, 62.0


def rcma_step(theme: Theme) -> Picture:
    """One step of recursive cross-modal attention, every matrix with its shape."""
    picture = Picture(theme, "One step of recursive cross-modal attention, with shapes", 482)
    left, result = 12.0, 372.0

    def heading(y: float, words: str, equations: str) -> None:
        picture.text(left, y, words, size=14, anchor="start", bold=True)
        picture.text(WIDTH - left, y, equations, size=12, anchor="end", faint=True)

    def product(
        y: float, parts: list[tuple[str, tuple[float, float], int, str]], begin: float = left
    ) -> float:
        for name, size, fill, shape in parts:
            end = picture.matrix(begin, y, size, fill, name)
            picture.text((begin + end) / 2, y + size[0] / 2 + 15, shape, size=11, faint=True)
            begin = end + 15
        return begin - 15

    def then(y: float, begin: float, words: str) -> None:
        picture.line(begin + 8, y, result - 8, y, arrow=True)
        picture.text((begin + result) / 2, y - 8, words, size=12)

    heading(20, "Correlate with the others, mixed over time", "eqs. 2-4")
    end = product(
        80,
        [
            ("Xᵀ", (DIM, STEPS), FIRST, "d × L"),
            ("T", (STEPS, STEPS), LEARNT, "L × L"),
            ("J", (STEPS, JOINT), SECOND, "L × D"),
        ],
    )
    then(80, end, "tanh(· / √D)")
    product(80, [("C", (DIM, JOINT), COMPUTED, "d × D")], result)

    heading(172, "Apply the correlation to each step", "eqs. 5-7")
    end = product(
        232,
        [
            ("X", (STEPS, DIM), FIRST, "L × d"),
            ("F", (DIM, DIM), LEARNT, "d × d"),
            ("C", (DIM, JOINT), COMPUTED, "d × D"),
        ],
    )
    then(232, end, "relu")
    product(232, [("H", (STEPS, JOINT), COMPUTED, "L × D")], result)

    heading(324, "Add the projected attention map", "eqs. 8-13")
    end = product(384, [("X", (STEPS, DIM), FIRST, "L × d")])
    picture.text(end + 15, 390, "+", size=20)
    end = product(
        384,
        [("H", (STEPS, JOINT), COMPUTED, "L × D"), ("O", (JOINT, DIM), LEARNT, "D × d")],
        end + 30,
    )
    then(384, end, "the new X")
    product(384, [("X", (STEPS, DIM), FIRST, "L × d")], result)
    entries = [(FIRST, "this modality"), (SECOND, "its joint"), (LEARNT, "learnt")]
    legend(picture, 470, [*entries, (COMPUTED, "computed")])
    return picture


def legend(picture: Picture, y: float, entries: list[tuple[int, str]]) -> None:
    """Explains colours in a row."""
    x = 12.0
    for fill, words in entries:
        picture.box(x, y - 10, 12, 12, fill)
        picture.text(x + 18, y, words, size=12, anchor="start", faint=True)
        x += 34 + 6.6 * len(words)


NAMES, WIDTHS = ("face", "voice", "words"), (84.0, 44.0, 64.0)


def joints(theme: Theme) -> Picture:
    """The joint of the others against the joint of all."""
    picture = Picture(theme, "The joint of the others, and the joint of all", 292)
    for top, option, source in (
        (0.0, "others", "arXiv v1"),
        (148.0, "all", "arXiv v2 and later; also JCA"),
    ):
        picture.text(
            12, top + 20, f'joint="{option}"', size=14, anchor="start", bold=True, code=True
        )
        picture.text(WIDTH - 12, top + 20, source, size=12, anchor="end", faint=True)
        for i, (name, width) in enumerate(zip(NAMES, WIDTHS, strict=True)):
            y = top + 34 + 34 * i
            picture.box(12, y, width, 26, i)
            picture.text(12 + width / 2, y + 18, name)
            picture.line(110, y + 13, 216, y + 13, arrow=True)
            picture.text(160, y + 8, "correlates with", size=11, faint=True)
            x = 226.0
            for j, (other, its_width) in enumerate(zip(NAMES, WIDTHS, strict=True)):
                if option == "all" or j != i:
                    picture.box(x, y, its_width, 26, j)
                    picture.text(x + its_width / 2, y + 18, other)
                    x += its_width
    return picture


CELL, CELLS = 15.0, 10


def mask(theme: Theme) -> Picture:
    """What a mask does to three samples of two modalities."""
    picture = Picture(theme, "A mask: invalid steps go in as anything and come out as zeros", 352)
    samples = [
        ("all valid", [CELLS, CELLS]),
        ("shorter than the batch", [6, 6]),
        ("voice missing here", [CELLS, 0]),
    ]
    picture.text(92, 20, "in", size=14, bold=True)
    picture.text(392, 20, "out", size=14, bold=True)
    for s, (words, lengths) in enumerate(samples):
        top = 48.0 + 86 * s
        picture.text(12, top, f"sample {s}: {words}", size=12, anchor="start")
        for m, length in enumerate(lengths):
            y = top + 9 + 24 * m
            for x, inside in ((12.0, "?"), (316.0, "0")):
                for t in range(CELLS):
                    valid = t < length
                    picture.box(x + t * CELL, y, CELL, CELL, m if valid else None, solid=valid)
                    if not valid:
                        picture.text(x + (t + 0.5) * CELL, y + 11.5, inside, size=10, faint=True)
            picture.text(172, y + 12, NAMES[m], size=12, anchor="start")
        picture.line(222, top + 28, 304, top + 28, arrow=True)
    picture.text(263, 68, "fuse(x, mask)", size=11, code=True)
    picture.box(12, 306, CELL, CELL, FIRST)
    picture.text(34, 318, "valid: mask True", size=12, anchor="start", faint=True)
    picture.box(150, 306, CELL, CELL, None, solid=False)
    picture.text(
        172, 318, "invalid: mask False. Whatever it contains,", size=12, anchor="start", faint=True
    )
    picture.text(
        172, 335, "NaN too, changes no value and no gradient", size=12, anchor="start", faint=True
    )
    return picture


def cone(
    kernel: int, dilations: list[int], last: int, *, causal: bool
) -> Iterator[tuple[int, int, int]]:
    """The connections (layer above the input, step, step below) that lead to one output."""
    reached = {last}
    for layer in range(len(dilations), 0, -1):
        shift = 0 if causal else (kernel - 1) * dilations[layer - 1] // 2
        below = set()
        for step in reached:
            for tap in range(kernel):
                source = step + shift - tap * dilations[layer - 1]
                below.add(source)
                yield layer, step, source
        reached = below


KERNEL, BLOCKS = 3, 2


def receptive_field(theme: Theme) -> Picture:
    """The input steps that one output of a temporal convolutional network depends on."""
    picture = Picture(theme, "The receptive field of a TCN with kernel 3 and two blocks", 462)
    dilations = [2**k for k in range(BLOCKS) for _ in range(2)]
    labels = ["input", *(f"block {k // 2}, × {d}" for k, d in enumerate(dilations))]
    count, gap, rise = 15, 23.5, 40.0
    field = 1 + sum((KERNEL - 1) * d for d in dilations)
    for top, causal, last in ((0.0, True, count - 1), (232.0, False, count // 2)):
        picture.text(
            12, top + 20, f"causal={causal}", size=14, anchor="start", bold=True, code=True
        )
        reach = "the past only: streams" if causal else "both sides: no streaming"
        picture.text(
            WIDTH - 12, top + 20, f"{field} steps, {reach}", size=12, anchor="end", faint=True
        )

        def x(step: int) -> float:
            return 110 + gap * step

        def y(layer: int, top: float = top) -> float:
            return top + 44 + rise * (len(dilations) - layer)

        links = list(cone(KERNEL, dilations, last, causal=causal))
        for layer, step, source in links:
            picture.line(x(source), y(layer - 1), x(step), y(layer), faint=True)
        active = {(layer, step) for layer, step, _ in links}
        active |= {(layer - 1, source) for layer, _, source in links}
        for layer in range(len(dilations) + 1):
            picture.text(12, y(layer) + 4, labels[layer], size=12, anchor="start", faint=True)
            for step in range(count):
                inside = (layer, step) in active
                fill = (COMPUTED if layer == len(dilations) else FIRST) if inside else None
                picture.dot(x(step), y(layer), fill)
    return picture


PICTURES = {
    "rcma-step": rcma_step,
    "joints": joints,
    "mask": mask,
    "receptive-field": receptive_field,
}


def files() -> dict[str, str]:
    """The text of every file, by its name."""
    return {
        f"{name}{theme.suffix}.svg": draw(theme).svg()
        for name, draw in PICTURES.items()
        for theme in THEMES
    }


def main() -> None:
    """Writes the files."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()

"""Tables for the terminal and for a README, which the examples print and keep up to date."""

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

Rows = Sequence[Sequence[str]]


def show_table(
    console: Console, title: str, header: Sequence[str], body: Rows, caption: str | None = None
) -> None:
    """Prints a table whose lines are as long as its cells need, also in a narrow terminal."""
    shown = Table(title=title, caption=caption, box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for k, name in enumerate(header):
        shown.add_column(name, justify="right" if k else "left")
    for row in body:
        shown.add_row(*map(_bold, row))
    # Rich cuts words, and columns, rather than print more than the terminal shows in a line.
    options = console.options.update(width=1000)
    needed = Measurement.get(console, options, shown).maximum
    Console(file=console.file, width=max(console.width, needed)).print(shown)


def _bold(cell: str) -> Text:
    """Reads Markdown's mark of the best."""
    return Text(cell.strip("*"), style="bold" if cell.startswith("**") else "")


def markdown(header: Sequence[str], body: Rows) -> str:
    """Makes a table for a README."""
    rule = "|" + "|".join("--:" if k else "---" for k in range(len(header))) + "|"
    lines = [f"| {' | '.join(row)} |" for row in (header, *body)]
    return "\n".join([lines[0], rule, *lines[1:]])


def put_between(file: Path, mark: str, text: str) -> None:
    """Replaces what stands in a file between the comments ``mark`` and ``/mark``."""
    first, last = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, _, rest = file.read_text().partition(first)
    _, found, after = rest.partition(last)
    if not found:
        raise ValueError(f"{file.name} lacks {first} or {last}")
    file.write_text(f"{before}{first}\n{text}\n{last}{after}")

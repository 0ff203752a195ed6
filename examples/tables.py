"""Tables for the terminal and for a README, which the examples print and keep up to date."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

Rows = Sequence[Sequence[str]]


def rich_table(title: str, header: Sequence[str], body: Rows, caption: str | None = None) -> Table:
    """Makes a table for the terminal."""
    shown = Table(title=title, caption=caption)
    for k, name in enumerate(header):
        shown.add_column(name, justify="right" if k else "left")
    for row in body:
        shown.add_row(*row)
    return shown


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

"""Tables for the terminal."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from examples.tables import show_table

CELLS = st.from_regex(r"(\*\*[a-z.0-9]{1,20}\*\*)|[a-z]{1,25}( [a-z]{1,25})?", fullmatch=True)


@given(
    width=st.integers(20, 200),
    rows=st.integers(1, 9).flatmap(
        lambda count: st.lists(st.lists(CELLS, min_size=count, max_size=count), min_size=2)
    ),
)
def test_a_table_shows_every_cell_at_any_width(width: int, rows: list[list[str]]) -> None:
    """A line of the table has all cells of a row, without Markdown's stars."""
    file = io.StringIO()
    show_table(Console(file=file, width=width), "title", rows[0], rows[1:])
    lines = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    for row in rows[1:]:
        assert " ".join(cell.strip("*") for cell in row) in lines

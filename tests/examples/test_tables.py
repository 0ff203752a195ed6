"""Tables of the examples: what a README holds between two comments, and what stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.tables import markdown, put_between


def test_a_table_aligns_all_but_its_first_column_to_the_right() -> None:
    assert markdown(["a", "b"], [["x", "1"]]) == "| a | b |\n|---|--:|\n| x | 1 |"


def test_a_file_without_the_mark_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("a\n<!-- full -->\nold\n<!-- /full -->\nb\n")
    put_between(file, "full", "new")
    assert file.read_text() == "a\n<!-- full -->\nnew\n<!-- /full -->\nb\n"
    with pytest.raises(ValueError, match=r"page\.md lacks <!-- quick -->"):
        put_between(file, "quick", "new")

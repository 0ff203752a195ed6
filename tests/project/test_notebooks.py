"""The notebooks of the documentation have the text of their pages, and run."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from docs import render_notebooks
from nbformat import NotebookNode

NOTEBOOKS = render_notebooks.PAGES
by_name = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.name)


def kept(file: Path) -> NotebookNode:
    notebook: NotebookNode = nbformat.read(file, as_version=4)
    return notebook


def outputs(notebook: NotebookNode) -> list[list[list[str]]]:
    """The kinds of each output of each cell, such as text or a picture."""
    return [
        [sorted(output.get("data", {output.output_type: ""})) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@by_name
def test_the_notebook_is_that_of_its_page(file: Path) -> None:
    made = [
        (cell.cell_type, cell.source) for cell in render_notebooks.from_page(NOTEBOOKS[file]).cells
    ]
    found = [(cell.cell_type, cell.source) for cell in kept(file).cells]
    assert found == made, "run python -m docs.render_notebooks"


@by_name
def test_the_text_has_no_roles_of_sphinx(file: Path) -> None:
    """Jupyter would show them as they are written."""
    text = [cell.source for cell in kept(file).cells if cell.cell_type == "markdown"]
    assert not [source for source in text if "}`" in source]


@pytest.mark.slow
@by_name
def test_the_notebook_runs_and_shows_what_is_kept(file: Path, tmp_path: Path) -> None:
    expected = outputs(kept(file))
    assert any("image/png" in kinds for cell in expected for kinds in cell), "it has no picture"
    executed = render_notebooks.execute(render_notebooks.from_page(NOTEBOOKS[file]), str(tmp_path))
    assert outputs(executed) == expected

"""Writes the notebooks of the documentation from their pages: ``python -m docs.render_notebooks``.

A page is the source: its text becomes cells of text, its Python blocks cells of code, which run in
order, and their outputs are kept. A block in a comment that begins with ``<!-- notebook`` is in the
notebook only, such as one that draws a picture.
"""

import re
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

DOCS = Path(__file__).parent
NOTEBOOKS = DOCS / "notebooks"
PAGES = {
    NOTEBOOKS / "tutorial.ipynb": DOCS / "tutorial.md",
    NOTEBOOKS / "smartwatch.ipynb": NOTEBOOKS / "smartwatch.md",
}
BLOCK = re.compile(r"^```python\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def _link(target: str, words: str | None) -> str:
    """Writes a link to another page, in the words given or by its title."""
    page = DOCS / f"{target.removeprefix('/')}.md"
    title = TITLE.search(page.read_text())
    assert title is not None, f"{page} has no title"
    return f"[{words or title[1]}](../{page.relative_to(DOCS).as_posix()})"


def plain(text: str) -> str:
    """Rewrites the roles of Sphinx, which a notebook would show as they are written."""
    text = re.sub(r"\{doc\}`([^`<]+) <([^>]+)>`", lambda m: _link(m[2], m[1]), text)
    text = re.sub(r"\{doc\}`([^`]+)`", lambda m: _link(m[1], None), text)
    text = re.sub(r"\{math\}`([^`]+)`", r"$\1$", text)
    return re.sub(r"\{\w+\}`~?(?:\w+\.)*(\w+)`", r"`\1`", text)


def from_page(page: Path) -> NotebookNode:
    """Makes a notebook, not yet executed, of a page."""
    text = re.sub(r"^<!-- notebook\n|^-->\n", "", page.read_text(), flags=re.MULTILINE)
    parts = BLOCK.split(text)  # text and code alternate
    cells = [
        new_code_cell(part.strip(), id=f"cell-{k}")
        if k % 2
        else new_markdown_cell(plain(part.strip()), id=f"cell-{k}")
        for k, part in enumerate(parts)
        if part.strip()
    ]
    notebook: NotebookNode = new_notebook(cells=cells, metadata=METADATA)
    return notebook


def execute(notebook: NotebookNode, folder: str) -> NotebookNode:
    """Runs all cells in an empty folder and keeps their outputs."""
    client = NotebookClient(notebook, timeout=900, record_timing=False)
    executed: NotebookNode = client.execute(cwd=folder)
    return executed


def main() -> None:
    """Writes every notebook."""
    for file, page in PAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(from_page(page), folder)
        notebook.metadata = METADATA  # not the version of the interpreter that ran it
        nbformat.write(notebook, file)


if __name__ == "__main__":
    main()

"""The Python blocks of the README and of every page in docs run, in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from docs import charts, diagrams, render_notebooks

from crossfuse import TemporalConvNet
from tests.support.layers import foreign_warnings_silenced

ROOT = Path(__file__).parents[2]
README, INDEX = ROOT / "README.md", ROOT / "docs" / "index.md"
PAGES = [README, *sorted((ROOT / "docs").glob("**/*.md"))]
SLOW = {"deployment.md"}  # a C++ compiler takes most of a minute
EXECUTED = [page for page in PAGES if page not in render_notebooks.PAGES.values()]
"""Those that no notebook is made of: test_notebooks executes the others."""
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line number and source of every Python block."""
    text = page.read_text()
    return [(text.count("\n", 0, m.start(1)) + 1, m.group(1)) for m in BLOCK.finditer(text)]


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.slow] if p.name in SLOW else []) for p in EXECUTED],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_code_on_the_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # what a page writes must not land in the checkout
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "__main__"}
    with foreign_warnings_silenced(), mock.patch.dict(os.environ):  # a page may set variables
        for line, source in blocks(page):
            code = compile("\n" * (line - 1) + source, str(page), "exec")
            exec(code, names)
    torch.compiler.reset()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_code_on_the_page_is_left_out(page: Path) -> None:
    """A fence that says Python in another way, or is indented, would be shown and not run."""
    fences = re.findall(r"^\s*```\s*(py\S*)", page.read_text(), re.MULTILINE)
    assert len(fences) == len(blocks(page)), f"{fences} on a page with {len(blocks(page))} blocks"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_of_code_is_cut(page: Path) -> None:
    """100 characters fit at a width of 1280 pixels."""
    code = re.findall(
        r"^```(?:python|sh|text)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
    )
    long = [line for block in code for line in block.splitlines() if len(line) > 100]
    assert not long


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_text_becomes_a_comment(page: Path) -> None:
    """The site leaves out a line that begins with a per cent sign."""
    assert re.findall(r"^\s*%.*", page.read_text(), re.MULTILINE) == []


def test_the_first_example_is_the_same_on_the_readme_and_on_the_site() -> None:
    (readme, *_), (index, *_) = blocks(README), blocks(INDEX)
    assert readme[1] == index[1]


def test_a_broken_block_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text\n\n```python\nx = 1\n```\n\n```bash\nno python\n```\n\n```python\nx / 0\n```\n"
    )
    assert blocks(page) == [(4, "x = 1\n"), (12, "x / 0\n")]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Every reference is found, every formula set, every object documented once."""
    pytest.importorskip("sphinx", reason="the site is built with sphinx")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", "docs", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    index = (tmp_path / "searchindex.js").read_text()
    for start in ("pool", "collat", "notebook", "huggingface", "attention_mask"):
        assert f'"{start}' in index, f"the search does not find {start}"
    missing = [
        page for page in tmp_path.glob("api/*.html") if "<em>Any</em></p>" in page.read_text()
    ]
    assert not missing, "a return type is written as Any beside overloads that say more"


def test_the_pictures_are_those_that_their_script_draws() -> None:
    drawn = diagrams.files()
    found = {name: (diagrams.FOLDER / name).read_text() for name in drawn}
    assert drawn == found, "run python -m docs.diagrams"


@pytest.mark.slow
def test_the_charts_are_those_of_the_results(tmp_path: Path) -> None:
    charts.main(tmp_path)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    found = {name: (diagrams.FOLDER / name).read_text() for name in drawn}
    assert drawn == found, "run python -m docs.charts"


@pytest.mark.parametrize("causal", [True, False])
def test_the_receptive_field_in_the_picture_is_that_of_the_net(causal: bool) -> None:
    tcn = TemporalConvNet(1, [1] * diagrams.BLOCKS, kernel_size=diagrams.KERNEL, causal=causal)
    last, x = 12, torch.zeros(1, 25, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(tcn(x)[0, last, 0], x)
    reached = {int(step) for step in gradient[0, :, 0].nonzero()}
    dilations = [2**k for k in range(diagrams.BLOCKS) for _ in range(2)]
    links = diagrams.cone(diagrams.KERNEL, dilations, last, causal=causal)
    assert {source for layer, _, source in links if layer == 1} == reached
    assert len(reached) == tcn.receptive_field


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_picture_for_light_pages_has_one_for_dark_pages(page: Path) -> None:
    """The one follows the other, with the same words for those who see neither."""
    shown = re.findall(r"```{image} (\S+)\n:alt: (.+)\n:class: (\S+)\n```", page.read_text())
    light = [(name, words) for name, words, kind in shown if kind == "only-light"]
    dark = [(name, words) for name, words, kind in shown if kind == "only-dark"]
    assert dark == [(name.replace(".svg", "-dark.svg"), words) for name, words in light]


@pytest.mark.parametrize(
    "page",
    [ROOT / "CONTRIBUTING.md", *PAGES, *sorted((ROOT / "examples").glob("*/README.md"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_what_the_page_links_to_is_there(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r"\]\(([^)\s#]+)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
    for target in named:
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"

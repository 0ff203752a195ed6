"""The order of the Aff-Wild2 example's folders: each imports only from those after it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples import affwild2

ROOT = Path(affwild2.__file__).parent
ORDER = ("__main__", "commands", "results", "training", "synthetic", "network", "dataset")
PACKAGE = affwild2.__name__


def _parts_imported(path: Path) -> Iterator[str]:
    """The files and folders of the example that a source file imports from, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith(f"{PACKAGE}."):
                yield name.removeprefix(f"{PACKAGE}.").split(".")[0]


def _part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_file_is_in_a_folder_of_the_order() -> None:
    parts = {_part_of(path) for path in ROOT.rglob("*.py")} - {"__init__"}
    assert parts == set(ORDER)


@pytest.mark.parametrize("part", ORDER)
def test_a_folder_imports_only_from_those_after_it(part: str) -> None:
    allowed = set(ORDER[ORDER.index(part) :])
    for path in ROOT.rglob("*.py"):
        if _part_of(path) == part:
            wrong = set(_parts_imported(path)) - allowed
            assert not wrong, f"{path.relative_to(ROOT)} imports from {', '.join(sorted(wrong))}"

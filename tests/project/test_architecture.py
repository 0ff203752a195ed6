"""The house, enforced: who imports whom, and how long things are."""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import crossfuse

PACKAGE = Path(crossfuse.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
# What each file (or folder) may import from the package.
MAY_IMPORT: dict[str, set[str]] = {
    "functional": {"_errors"},
    "_errors": set(),
    "_modalities": {"_errors"},
    "_compile": {"_errors"},
    "windows": {"_errors"},
    "losses": {"_errors", "functional"},
    "_temporal_block": set(),
    "temporal": {"_errors", "_temporal_block", "_modalities", "functional"},
    "missing": {"_errors", "_modalities"},
    "per_modality": {"_errors", "_modalities"},
    "gate": {"_errors"},
    "concat": {"_errors", "_masks", "_modalities"},
    "cross": {"_errors", "_masks", "_modalities", "_parameters", "functional"},
    "cross_modal_transformer": {"_errors", "_masks", "_modalities", "functional"},
    "leader_follower": {"_errors", "_masks", "_modalities", "functional"},
    "joint": {"_errors", "_modalities", "functional", "gate"},
    "_recursion": {"_errors", "_modalities", "functional"},
    "recursive": {"_errors", "_modalities", "_recursion", "functional", "gate"},
    "convert": {"_errors"},
}
THIRD_PARTY = {"torch", "einops", "typing_extensions"}


def part_of(path: Path) -> str:
    """The file or folder of the package that a source file is or lies in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports(path: Path) -> Iterator[str]:
    """The dotted names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            if node.module == "crossfuse":
                yield from (f"crossfuse.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node


def lines_of(function: ast.FunctionDef) -> int:
    """Lines of the body without the docstring."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return 0 if not body else (body[-1].end_lineno or 0) - body[0].lineno + 1


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_follow_the_table(path: Path) -> None:
    names = list(imports(path))
    own = {name.split(".")[1] for name in names if name.startswith("crossfuse.")}
    part = part_of(path)
    if part != "__init__":
        assert part in MAY_IMPORT, f"{part} is not in the table"
        assert own <= MAY_IMPORT[part] | {part}, own - MAY_IMPORT[part]
    others = {name.partition(".")[0] for name in names} - {"crossfuse", "__future__"}
    assert others <= THIRD_PARTY | set(sys.stdlib_module_names), others


def test_the_package_file_only_passes_names_on() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                kept = {alias.name, f"_{alias.name}"}
                assert alias.asname in kept, f"not `X as X`: {alias.name}"
        elif isinstance(node, ast.Assign):
            assert ast.unparse(node.targets[0]) == "__version__"
        else:
            assert isinstance(node, ast.Expr), ast.unparse(node)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 300


def test_functions_are_short() -> None:
    lengths = {
        f"{name_of(path)}:{function.name}": lines_of(function)
        for path in SOURCES
        for function in functions(path)
    }
    long = {name: lines for name, lines in lengths.items() if lines > 50}
    assert not long, f"longer than 50 lines: {long}"
    assert statistics.median(lengths.values()) <= 8


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_the_source_does_without(path: Path) -> None:
    """No assert on what users give, no print, no environment, no globals, no bare ignore."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, ast.Assert), f"{path.name}:{node.lineno} asserts"
        assert not isinstance(node, ast.Global), f"{path.name}:{node.lineno} has a global"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in {"print", "os.getenv"}, f"{path.name}:{node.lineno} calls {name}"
            assert not name.startswith("torch.set_"), f"{path.name}:{node.lineno} calls {name}"
    for word in ("environ", "TODO", "FIXME", "import triton", "from triton"):
        assert word not in text, f"{path.name} has {word}"
    for number, line in enumerate(text.splitlines(), start=1):
        if "type: ignore" in line:
            _, _, rest = line.partition("type: ignore")
            assert rest.startswith("["), f"{path.name}:{number} ignores without a code"
            assert "#" in rest, f"{path.name}:{number} ignores without a reason"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_forward_does_not_look_at_the_data(path: Path) -> None:
    """No .item(), .tolist() or .nonzero(): a forward is one graph."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            where = f"{path.name}:{node.lineno}"
            assert node.func.attr not in {"item", "tolist", "nonzero"}, f"{where} leaves the graph"


def test_no_class_of_ours_overrides_another() -> None:
    """Abstract or final: the package's classes derive from torch's and from nothing of its own."""
    own = {
        node.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base) for base in node.bases}
                assert not bases & own, f"{node.name} derives from {bases & own}"

"""The house, enforced: who imports whom, and how long things are."""

from __future__ import annotations

import ast
import re
import statistics
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import crossfuse
from crossfuse.functional import _equations as equations

ROOT = Path(__file__).parents[2]
PACKAGE = Path(crossfuse.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
# What each file (or folder) may import from the package. The rooms that many use come first.
_BASE = {"_errors", "_masks", "_modalities"}
MAY_IMPORT: dict[str, set[str]] = {
    "_errors": set(),
    "_masks": {"_errors"},
    "_parameters": {"_errors"},
    "_modalities": {"_errors", "_masks"},
    "functional": {"_errors", "_masks"},
    "inspection": set(),
    "_clock": _BASE,
    "_align": {*_BASE, "_clock"},
    "_resample": {*_BASE, "_clock"},
    "_collate": _BASE,
    "_compile": {"_errors"},
    "windows": {"_errors"},
    "losses": {"_errors", "_masks", "functional"},
    "_temporal_block": {"_errors", "_masks"},
    "temporal": {*_BASE, "_parameters", "_temporal_block", "functional"},
    "missing": {*_BASE, "_parameters"},
    "per_modality": {*_BASE, "_encoders"},
    "_encoders": _BASE,
    "pooling": {*_BASE, "_parameters", "functional"},
    "live": _BASE,
    "gate": {"_errors", "_parameters"},
    "concat": {*_BASE, "_parameters", "functional"},
    "cross": {*_BASE, "_parameters", "functional"},
    "cross_modal_transformer": {*_BASE, "_parameters", "functional"},
    "leader_follower": {*_BASE, "_parameters", "functional"},
    "_recursive_step": {*_BASE, "_parameters", "functional"},
    "_stable_step": {*_BASE, "_parameters", "_recursive_step", "functional"},
    "_stable_together": {"_recursive_step", "_stable_step", "functional"},
    "_step": {"_recursive_step", "_stable_together", "functional"},
    "_released_step": {*_BASE, "_parameters", "_recursive_step", "functional"},
    "joint": {*_BASE, "_parameters", "_recursive_step", "functional", "gate", "inspection"},
    "recursive": {
        *_BASE,
        "_parameters",
        "_recursive_step",
        "_stable_step",
        "_step",
        "_released_step",
        "gate",
        "inspection",
    },
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
    assert len(path.read_text().splitlines()) < 400


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


def test_few_calls_lead_to_the_equation(monkeypatch: pytest.MonkeyPatch) -> None:
    """forward -> Step.forward -> Branch.forward -> _attended -> the equation, nothing between."""
    seen: list[list[str]] = []
    equation = equations.rcma_feed_forward

    def recorded(*given: Tensor, dropout: float) -> Tensor:
        stack = [f.name for f in traceback.extract_stack() if f.filename.startswith(str(PACKAGE))]
        seen.append(stack)
        return equation(*given, dropout=dropout)

    monkeypatch.setattr(equations, "rcma_feed_forward", recorded)
    crossfuse.RecursiveCrossModalAttention([3, 5])([torch.ones(1, 2, 3), torch.ones(1, 2, 5)])
    named = [name for name in seen[0] if not name.startswith("<")]
    assert named == ["forward", "forward", "forward", "_attended"]


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


def test_workflows_name_actions_by_their_hash() -> None:
    """A tag can be moved to other code."""
    used = [
        line.split("uses:")[1].strip()
        for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert used
    for action in used:
        own = action.startswith("./")
        assert own or re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", action), action

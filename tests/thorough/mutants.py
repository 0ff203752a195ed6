"""Mutation testing of one file: `python -m tests.thorough.mutants src/crossfuse/gate.py`.

The tree is copied, and the file in the copy gets one small fault at a time: a changed operator,
number or truth value, a negated condition, a statement or an argument left out. A fault is killed
if the tests of the file fail on it. Each fault runs in a fork of this process, which has imported
torch already, and always with the same Hypothesis examples (profile ci).
"""

from __future__ import annotations

import argparse
import ast
import copy
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch._dynamo.testing  # seconds, which the forks need not spend

COPIED = ("src", "tests", "examples", "conftest.py", "pyproject.toml", "README.md")
OTHER_PACKAGE = 99  # exit code: the tests did not import the copy
PATIENCE = 10  # a fault that makes the tests this many times slower is killed, too
OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt,),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.USub: (ast.UAdd,),
}


class Mutant(NamedTuple):
    """A fault: where, what was there, what is there now, and the whole file with it."""

    line: int
    before: str
    after: str
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """All faults of a file, in the order of the syntax tree."""
    tree = ast.parse(source)
    untouched = {id(part) for node in ast.walk(tree) for part in _without_behaviour(node)}
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in untouched:
            continue
        for number in range(len(_variants(node))):
            mutated = copy.deepcopy(tree)
            target = next(n for i, n in enumerate(ast.walk(mutated)) if i == index)
            variant = _variants(target)[number]
            _Replace(target, variant).visit(mutated)
            code = ast.unparse(ast.fix_missing_locations(mutated))
            before, after = (
                ast.unparse(ast.fix_missing_locations(n)).splitlines()[0] for n in (node, variant)
            )
            yield Mutant(getattr(node, "lineno", 0), before, after, code)


def main() -> int:
    """Runs the tests of the file on a sample of its faults; returns 1 if one survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.thorough.mutants", description=__doc__)
    parser.add_argument("file", type=Path, help="a file of src/crossfuse")
    parser.add_argument("--tests", nargs="*", help="default: the tests with the name of the file")
    parser.add_argument("--sample", type=int, default=40, help="how many faults, drawn")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the sample")
    parser.add_argument("--seconds", type=float, default=300.0, help="starts no fault after these")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["HYPOTHESIS_PROFILE"] = "ci"
    file: Path = arguments.file.resolve().relative_to(Path.cwd())
    tests = arguments.tests or _tests(file)
    faults = list(mutants(file.read_text()))
    sample = random.Random(arguments.seed).sample(faults, min(arguments.sample, len(faults)))
    sys.stdout.write(f"{file}: {len(faults)} faults, {len(sample)} drawn; {' '.join(tests)}" + "\n")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in COPIED:
            _copy(Path(name), root / name)
        os.chdir(root)
        start = time.monotonic()
        if (code := _run(tests, 600.0)) != 0:
            sys.stderr.write(f"the tests fail without a fault (exit code {code})" + "\n")
            return 1
        usual = time.monotonic() - start
        original, survivors, done = file.read_text(), 0, 0
        for fault in sample:
            if time.monotonic() - start > arguments.seconds:
                break
            file.write_text(fault.source)
            killed = _run(tests, PATIENCE * usual + 10.0) != 0
            done, survivors = done + 1, survivors + (not killed)
            if not killed:
                found = f"survived {file}:{fault.line}: {fault.before}  ->  {fault.after}"
                sys.stdout.write(found + "\n")
        file.write_text(original)
    sys.stdout.write(f"{done - survivors} of {done} faults killed" + "\n")
    return int(survivors > 0)


def _variants(node: ast.AST) -> list[ast.AST]:
    """What a node may be replaced by."""
    match node:
        case ast.Constant(value=bool(value)):
            return [ast.Constant(not value)]
        case ast.Constant(value=int() | float() as value):
            return [ast.Constant(value + 1)]
        case ast.If() | ast.IfExp() | ast.While():
            negated = copy.copy(node)
            negated.test = ast.UnaryOp(ast.Not(), node.test)
            return [negated]
        case ast.UnaryOp(op=ast.Not() | ast.Invert()):
            return [node.operand]
        case ast.BinOp() | ast.BoolOp() | ast.UnaryOp():
            return [_with(node, "op", new()) for new in OPERATORS.get(type(node.op), ())]
        case ast.Compare(ops=[op]):
            return [_with(node, "ops", [new()]) for new in OPERATORS.get(type(op), ())]
        case ast.Return(value=ast.expr()):
            return [ast.Return(ast.Constant(None))]
        case ast.Expr() | ast.Raise() | ast.Assign() | ast.AugAssign():
            return [ast.Pass()]
        case ast.Call():
            left_out = range(len(node.keywords))
            return [
                _with(node, "keywords", node.keywords[:i] + node.keywords[i + 1 :])
                for i in left_out
            ]
    return []


def _with(node: ast.AST, field: str, value: object) -> ast.AST:
    changed = copy.copy(node)
    setattr(changed, field, value)
    return changed


def _without_behaviour(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a node that do nothing: docstrings, annotations, overloads."""
    match node:
        case ast.Expr(value=ast.Constant()):
            yield node
            yield node.value
        case ast.AnnAssign():
            yield from ast.walk(node.annotation)
        case ast.arg(annotation=ast.expr() as annotation):
            yield from ast.walk(annotation)
        case ast.FunctionDef():
            if node.returns is not None:
                yield from ast.walk(node.returns)
            if any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list):
                yield from ast.walk(node)


class _Replace(ast.NodeTransformer):
    def __init__(self, target: ast.AST, variant: ast.AST) -> None:
        self.target, self.variant = target, variant

    def visit(self, node: ast.AST) -> ast.AST:
        return self.variant if node is self.target else self.generic_visit(node)


def _tests(file: Path) -> list[str]:
    """The doctests of the file and the test files with its name, or else all of layers."""
    named = sorted(Path("tests").glob(f"*/test_{file.stem.strip('_')}*.py"))
    return [str(file), *map(str, named or [Path("tests/layers"), Path("tests/functional")])]


def _run(tests: list[str], limit: float) -> int:
    """The exit code of pytest in a fork; of a process that had to be ended, not 0."""
    process = multiprocessing.get_context("fork").Process(target=_pytest, args=(tests,))
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode or 0


def _pytest(tests: list[str]) -> None:
    """Runs in the fork: imports the copy in the current folder, writes nothing."""
    sys.dont_write_bytecode = True  # two faults within a second would share a .pyc file
    for name in [n for n in sys.modules if n.split(".")[0] in {"tests", "crossfuse", "examples"}]:
        del sys.modules[name]
    sys.path[:0] = [str(Path.cwd() / "src"), str(Path.cwd())]
    with open(os.devnull, "w") as nothing:  # noqa: PTH123 - a device
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    code = int(pytest.main([*options, *tests]))
    imported = getattr(sys.modules.get("crossfuse"), "__file__", None) or ""
    if code == 0 and not Path(imported).is_relative_to(Path.cwd()):
        code = OTHER_PACKAGE
    os._exit(code)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    else:
        shutil.copy(source, target)


if __name__ == "__main__":
    sys.exit(main())

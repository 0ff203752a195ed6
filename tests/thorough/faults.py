"""Small faults for mutation testing: a changed operator, number or truth value, a negated
condition, a statement or an argument left out.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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


class Fault(NamedTuple):
    """A fault: the file, its number there, its line, and what is there without and with it."""

    file: Path
    number: int
    line: int
    before: str
    after: str
    node: int  # which node of the syntax tree
    variant: int  # which of its variants

    def __str__(self) -> str:
        return f"{self.file}:{self.line} ({self.number}): {self.before}  ->  {self.after}"

    def tree(self) -> ast.Module:
        """The file with the fault, at the lines of the file without."""
        tree = ast.parse(self.file.read_text())
        target = next(n for i, n in enumerate(ast.walk(tree)) if i == self.node)
        changed = ast.copy_location(_variants(target)[self.variant], target)
        _Replace(target, changed).visit(tree)
        return ast.fix_missing_locations(tree)


def faults(file: Path) -> Iterator[Fault]:
    """All faults of a file, in the order of the syntax tree."""
    tree = ast.parse(file.read_text())
    untouched = {id(part) for node in ast.walk(tree) for part in _without_behaviour(node)}
    number = 0
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in untouched:
            continue
        for which, variant in enumerate(_variants(node)):
            texts = (ast.unparse(ast.fix_missing_locations(n)) for n in (node, variant))
            before, after = (text.splitlines()[0] for text in texts)
            yield Fault(file, number, getattr(node, "lineno", 0), before, after, index, which)
            number += 1


def _variants(node: ast.AST) -> list[ast.AST]:
    """What a node may be replaced by."""
    match node:
        case ast.Constant(value=bool(value)):
            return [ast.Constant(not value)]
        case ast.Constant(value=int() | float() as value):
            return [ast.Constant(value + 1)]
        case ast.If() | ast.IfExp() | ast.While():
            negated = copy.copy(node)
            negated.test = ast.copy_location(ast.UnaryOp(ast.Not(), node.test), node.test)
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

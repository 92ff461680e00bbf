"""Rows are fetched where their statement ran: no cursor outlives its lock or its transaction.

Since Python 3.12 the threads of one SQLite connection share a cached statement; a cursor that is
read after the lock was given up answers what another thread has asked meanwhile.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("sdk/catalogzero", "catalog/conductor/src", "examples")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

OPENS = {"execute", "executemany", "exec_driver_sql", "scalars", "stream", "cursor"}
"""Methods of a connection that answer a cursor. Called on `self` they are our own, and held to
the rule where they are defined."""
PASSES_ON = {"mappings", "columns", "partitions", "unique", "tuples", "yield_per"}
"""Methods of a cursor that answer another view of it."""
WRAPS = {"iter", "enumerate", "zip", "map", "filter", "cast", "reversed"}
"""Functions that answer before they have read."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def is_open(value: ast.expr | None, cursors: set[str]) -> bool:
    """Whether an expression is a cursor, or something that reads one later."""
    match value:
        case ast.Name(name):
            return name in cursors
        case ast.Await(inner) | ast.Starred(inner):
            return is_open(inner, cursors)
        case ast.IfExp(_, one, other):
            return is_open(one, cursors) or is_open(other, cursors)
        case ast.BoolOp(_, values) | ast.Tuple(values) | ast.List(values):
            return any(is_open(each, cursors) for each in values)
        case ast.GeneratorExp():
            return any(is_open(each.iter, cursors) for each in value.generators)
        case ast.Call(ast.Attribute(of, method)):
            if method in OPENS:
                return not (isinstance(of, ast.Name) and of.id == "self")
            return method in PASSES_ON and is_open(of, cursors)
        case ast.Call(ast.Name(function), arguments):
            return function in WRAPS and any(is_open(each, cursors) for each in arguments)
    return False


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """The nodes of a function, without those of functions inside it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, Function | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def bindings(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """The names that a statement binds, each with what it is bound to."""
    match node:
        case ast.Assign(targets, value):
            yield from ((target.id, value) for target in targets if isinstance(target, ast.Name))
        case ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
            yield name, value
        case ast.NamedExpr(ast.Name(name), value):
            yield name, value


def cursors_of(nodes: list[ast.AST]) -> set[str]:
    """The names that some of these statements bind to a cursor."""
    cursors: set[str] = set()
    while True:  # a cursor may be handed from name to name
        found = {n for node in nodes for n, value in bindings(node) if is_open(value, cursors)}
        if found <= cursors:
            return cursors
        cursors |= found


def faults(tree: ast.AST) -> Iterator[str]:
    """Where a cursor leaves its function, or the `with` that it was opened in."""
    for function in ast.walk(tree):
        if not isinstance(function, Function):
            continue
        nodes = list(own_nodes(function))
        cursors = cursors_of(nodes)
        if function.returns and "Cursor" in ast.unparse(function.returns):
            yield f"{function.lineno}: {function.name} is declared to answer a cursor"
        for node in nodes:
            if isinstance(node, ast.Return | ast.Yield) and is_open(node.value, cursors):
                yield f"{node.lineno}: {function.name} hands out a cursor"
            if isinstance(node, ast.With | ast.AsyncWith):
                inside = list(ast.walk(node))
                opened = cursors_of(inside)
                later = [each for each in nodes if each not in inside]
                rebound = {name for each in later for name, _ in bindings(each)}
                for each in later:
                    if isinstance(each, ast.Name) and each.id in opened - rebound:
                        yield f"{each.lineno}: {each.id} is read outside of its `with`"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_cursor_leaves_its_lock(path: Path) -> None:
    assert list(faults(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_statement_numbers_its_placeholders(path: Path) -> None:
    """Python 3.12.0 to 3.12.3 warn of `?1`; plain `?` and `:name` mean the same everywhere."""
    texts = (
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )

    assert [text for text in texts if re.search(r"\?\d", text)] == []


@pytest.mark.parametrize(
    "body",
    [
        "with self.lock:\n    return self.db.execute(sql)",
        "with self.lock:\n    found = self.db.execute(sql)\nreturn found.fetchone()",
        "with self.lock:\n    found = self.db.execute(sql)\nfor row in found:\n    print(row)",
        "with self.lock:\n    yield self.db.cursor()",
        "rows = c.execute(sql).mappings()\nreturn rows",
        "first = c.execute(sql)\nsecond = first\nreturn second",
        "return (row[0] for row in c.execute(sql))",
        "return map(str, c.scalars(sql))",
    ],
)
def test_the_rule_finds(body: str) -> None:
    tree = ast.parse(f"def read(self, c, sql):\n{textwrap.indent(body, '    ')}")

    assert list(faults(tree))


@pytest.mark.parametrize(
    "body",
    [
        "with self.lock:\n    return self.db.execute(sql).fetchall()",
        "with self.lock:\n    found = self.db.execute(sql)\n    row = found.fetchone()\nreturn row",
        "with self.reading() as c:\n    return [row[0] for row in c.execute(sql)]",
        "with self.lock:\n    self.db.execute(sql)",
        "return c.execute(sql).rowcount == 1",
        "return self.execute(sql)",
    ],
)
def test_the_rule_lets_pass(body: str) -> None:
    tree = ast.parse(f"def read(self, c, sql):\n{textwrap.indent(body, '    ')}")

    assert list(faults(tree)) == []

"""SECURITY.md names tests that exist, and every row says which, or that somebody can."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = re.findall(
    r"^\| ([^|]*) \| ([^|]+) \| ([^|]*) ?\|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE
)[1:]
NAMED = sorted(set(re.findall(r"`(tests/[\w/.]+)::(\w+)`", "".join(row[2] for row in ROWS))))
WHO = {
    *("Another user of this machine", "A peer on the network", "The backend", "A catalog"),
    *("A data file", "The vendor's package"),
}


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_that_it_names_exists(file: str, name: str) -> None:
    body = ast.parse((ROOT / file).read_text()).body

    functions = [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert name in {function.name for function in functions}


def test_every_row_names_a_test_or_says_what_somebody_can_do() -> None:
    assert {who for who, _, _ in ROWS if who} == WHO
    assert [what for _, what, tests in ROWS if "::" not in tests and "**can**" not in what] == []

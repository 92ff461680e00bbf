"""docs/ARCHITECTURE.md is true: its wings are the layer test's, its files and names exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.house.test_layers import ACROSS, FLOORS, ROOT, SDK

PAGE = ROOT / "docs" / "ARCHITECTURE.md"
TEXT = PAGE.read_text()
PACKAGE = SDK / "catalogzero"
FILE = re.compile(r"`([\w./-]+(?:\.(?:py|md|js|html)|/))`")
NAMED = re.compile(r"`([\w/]+\.py)` \(?`([\w.]+)`|`([\w.]+)` of `([\w/]+\.py)`")


def places(name: str) -> list[Path]:
    """Where a name of the page may lie: in the package, in the checkout, beside the page."""
    return [PACKAGE / name, ROOT / name, PAGE.parent / name, ROOT / "catalog/conductor/src/" / name]


@pytest.mark.parametrize("name", sorted(set(FILE.findall(TEXT))))
def test_a_file_that_it_names_exists(name: str) -> None:
    assert [place for place in places(name) if place.exists()]


@pytest.mark.parametrize(
    ("file", "name"),
    sorted({(found[0] or found[3], found[1] or found[2]) for found in NAMED.findall(TEXT)}),
)
def test_a_name_that_it_gives_with_a_file_is_defined_there(file: str, name: str) -> None:
    (path,) = [place for place in places(file) if place.exists()]
    body: list[ast.stmt] = ast.parse(path.read_text()).body

    for part in name.split("."):
        found = [node for node in body if part in _defined(node)]
        assert found, f"{file} defines no {name}"
        body = getattr(found[0], "body", [])


def _defined(node: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def test_its_wings_are_those_that_the_layer_test_holds() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", TEXT, re.MULTILINE)
    shown = [
        (int(number), wing.strip("/"))
        for number, cell in rows
        for wing in re.findall(r"`([\w/]+)`", cell)
    ]

    assert sorted(shown) == sorted(
        (number, wing) for number, wings in enumerate(FLOORS, 1) for wing in wings
    )


def test_it_names_what_a_wing_imports_of_its_own_floor() -> None:
    (line,) = [line for line in TEXT.splitlines() if line.startswith("Of the wings on floor")]
    named = {
        wing: set(re.findall(r"`(\w+)/`", rest))
        for wing, rest in re.findall(r"`(\w+)/` imports ([^;]+);", line)
    }

    assert named == {wing: of for wing, of in ACROSS.items() if wing != "__main__"}

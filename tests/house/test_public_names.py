"""What a public module lists in `__all__` is what it holds: no more, no less."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import catalogzero
import pytest

from tests.house.test_layers import PUBLIC


def is_public(module: ModuleType, name: str) -> bool:
    """Whether a name of the module is one that it offers: no module, no private name."""
    if name.startswith("_") or name == "annotations":
        return False
    return not inspect.ismodule(getattr(module, name))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_module_lists_what_it_holds(name: str) -> None:
    module = importlib.import_module(name)
    held = {item for item in dir(module) if is_public(module, item)}

    assert held == {item for item in module.__all__ if not item.startswith("_")}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported_and_says_what_it_is(name: str) -> None:
    module = importlib.import_module(name)

    silent = [item for item in module.__all__ if not inspect.getdoc(getattr(module, item))]

    assert not silent


def test_what_a_type_checker_reads_is_what_is_imported_when_it_is_asked_for() -> None:
    tree = ast.parse(Path(catalogzero.__file__).read_text())
    (branch,) = (node for node in tree.body if ast.unparse(node).startswith("if TYPE_CHECKING"))
    read = {
        alias.name: node.module
        for node in ast.walk(branch)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    asked_for = {
        name: f"catalogzero.{module}"
        for module, names in catalogzero._NAMES_IN.items()
        for name in names.split()
    }
    assert read == asked_for
    assert read.keys() == set(catalogzero.__all__)

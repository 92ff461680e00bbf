"""What a public module lists in `__all__` is what it holds: no more, no less."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType

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

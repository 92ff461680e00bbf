"""What the tests of the template share: its rules, and a way to bake a package."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from catalogzero.entry.scaffold import scaffold, template_folder

Bake = Callable[..., Path]


@pytest.fixture(scope="session")
def rules() -> ModuleType:
    """The template's own module of answers."""
    path = template_folder() / "template_answers.py"
    spec = importlib.util.spec_from_file_location("rules_of_the_template", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bake:
    """Bakes a package of the answers given, with no git identity around."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")

    def baked(**answers: str) -> Path:
        return scaffold(answers, tmp_path)

    return baked

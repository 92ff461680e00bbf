"""Imports point downward only, and what builds on catalogzero uses its public names alone."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SDK = ROOT / "sdk"
LAYERS = {"pure": 0, "wire": 1, "core": 2, "edge": 3}
EDGE = ("compat", "scheduler", "backend", "entry", "testing", "cli", "__init__", "__main__")
PUBLIC = ("catalogzero", "catalogzero.testing", "catalogzero.compat", "catalogzero.backend")
MODULES = sorted(SDK.rglob("*.py"))
BUILT_ON_IT = sorted(
    path for folder in ("catalog", "examples", "template") for path in (ROOT / folder).rglob("*.py")
)


def imports(path: Path) -> list[tuple[str, str]]:
    """Every (module, name) that a file imports, anywhere in it; name is empty for `import x`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: import relatively nowhere"
            found += [(str(node.module), alias.name) for alias in node.names]
    return found


def layer(path: Path) -> int:
    """The layer of a module: edge by its place, else what its docstring says."""
    parts = path.relative_to(SDK / "catalogzero").with_suffix("").parts
    if parts[0] in EDGE:
        return LAYERS["edge"]
    said = re.search(r"Layer: (\w+)", ast.get_docstring(ast.parse(path.read_text())) or "")
    if parts[-1] == "__init__":
        return LAYERS["pure"]
    assert said, f"{path}: its docstring names no layer"
    return LAYERS[said[1]]


def file_of(module: str, name: str) -> Path | None:
    """The file of the sdk that `from module import name` reads, if it is one of ours."""
    for dotted in (f"{module}.{name}", module):
        base = SDK / dotted.replace(".", "/")
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if dotted.startswith("catalogzero") and path.exists():
                return path
    return None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SDK)))
def test_a_module_imports_only_its_own_layer_and_those_below(path: Path) -> None:
    own = layer(path)

    above = [
        f"{module}.{name}"
        for module, name in imports(path)
        if (target := file_of(module, name)) and layer(target) > own
    ]

    assert not above


def test_one_module_imports_zmq() -> None:
    users = {
        path.relative_to(SDK).as_posix()
        for path in MODULES
        for module, _ in imports(path)
        if module.split(".")[0] == "zmq"
    }

    assert users <= {"catalogzero/zmq_transport.py"}


@pytest.mark.parametrize("path", BUILT_ON_IT, ids=lambda path: str(path.relative_to(ROOT)))
def test_entries_examples_and_template_import_public_names_alone(path: Path) -> None:
    try:
        used = [found for found in imports(path) if found[0].split(".")[0] == "catalogzero"]
    except SyntaxError:
        pytest.skip("a template that is no Python before it is rendered")

    private = [
        f"{module}.{name}"
        for module, name in used
        if module not in PUBLIC or name not in importlib.import_module(module).__all__
    ]

    assert not private

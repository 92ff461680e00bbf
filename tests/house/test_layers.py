"""Imports point downward only, and what builds on catalogzero uses its public names alone."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
from catalogzero.entry.lint import PUBLIC_MODULES

ROOT = Path(__file__).parents[2]
SDK = ROOT / "sdk"
FLOORS = (
    ("errors", "clock", "backoff", "version", "early_interrupt"),
    ("config",),
    ("wire",),
    ("protocol",),
    ("web", "sql"),
    ("runtime",),
    ("cloud",),
    ("scheduler", "backend", "entry", "testing", "compat", "cli"),
    ("__init__", "__main__"),
)
"""The wings, each with the rooms that it may stand on: those of the floors above it here."""

ACROSS = {
    "entry": {"scheduler"},
    "testing": {"entry"},
    "cli": {"scheduler", "backend", "entry"},
    "__main__": {"cli"},
}
"""What a wing imports of its own floor; anything else of it is closed to it."""

ROOMS = ("rows", "reading", "singer", "outbox", "sending")
"""The rooms of the cloud wing: each may import those before it."""

PUBLIC = sorted(PUBLIC_MODULES)
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


def wing(path: Path) -> str:
    """The wing that a module of the sdk lies in: its folder, or its own name at the top."""
    return path.relative_to(SDK / "catalogzero").with_suffix("").parts[0]


def floor(name: str) -> int:
    """How high a wing lies."""
    (found,) = (number for number, wings in enumerate(FLOORS) if name in wings)
    return found


def file_of(module: str, name: str) -> Path | None:
    """The file of the sdk that `from module import name` reads, if it is one of ours."""
    for dotted in (f"{module}.{name}", module):
        base = SDK / dotted.replace(".", "/")
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if dotted.startswith("catalogzero") and path.exists():
                return path
    return None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SDK)))
def test_a_module_imports_only_its_own_wing_and_those_below(path: Path) -> None:
    own = wing(path)
    allowed = {own, *ACROSS.get(own, ())}

    astray = [
        f"{module}.{name}"
        for module, name in imports(path)
        if (target := file_of(module, name))
        and wing(target) not in allowed
        and floor(wing(target)) >= floor(own)
    ]

    assert not astray


def test_no_modules_import_each_other() -> None:
    """Imports under TYPE_CHECKING and inside functions are followed too."""
    waiting = {
        path: {target for module, name in imports(path) if (target := file_of(module, name))}
        for path in MODULES
    }

    while free := [path for path, needs in waiting.items() if not needs & waiting.keys()]:
        for path in free:
            del waiting[path]

    assert [str(path.relative_to(SDK)) for path in waiting] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_of_the_cloud_wing_imports_none_that_stands_on_it(room: str) -> None:
    above = ROOMS[ROOMS.index(room) + 1 :]

    assert not [
        f"{path.name}: {module}"
        for path in (SDK / "catalogzero" / "cloud" / room).glob("*.py")
        for module, _ in imports(path)
        if module.startswith(tuple(f"catalogzero.cloud.{one}" for one in above))
    ]


def test_every_wing_says_what_it_is_and_what_it_never_does() -> None:
    silent = [
        init.parent.name
        for init in (SDK / "catalogzero").glob("*/__init__.py")
        if "never" not in (ast.get_docstring(ast.parse(init.read_text())) or "")
    ]

    assert silent == []


def test_three_modules_import_zmq() -> None:
    users = {
        path.relative_to(SDK).as_posix()
        for path in MODULES
        for module, _ in imports(path)
        if module.split(".")[0] == "zmq"
    }

    assert users <= {f"catalogzero/wire/{name}.py" for name in ("keys", "watching", "zeromq")}


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

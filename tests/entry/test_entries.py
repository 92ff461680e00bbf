"""The catalog's own entries are as the template makes them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from catalogzero.entry import lint
from catalogzero.entry.package_source import read_package
from catalogzero.entry.scaffold import scaffold

CATALOG = Path(__file__).parents[2] / "catalog"
PROCESSORS = {
    "file-processor": "File Processor",
    "sql-processor": "SQL Processor",
    "singer-processor": "Singer Processor",
}
ENTRIES = (*PROCESSORS, "conductor")
ANSWERS = {
    "vendor_name": "the catalogzero authors",
    "license": "MIT",
    "ci": "none",
    "packaging": "both",
}
MADE = {
    ".venv",
    ".ruff_cache",
    ".mypy_cache",
    ".pytest_cache",
    "__pycache__",
    ".catalogzero",
    ".git",
}


def files(folder: Path) -> set[str]:
    """The files of a package, without what tools leave behind."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not MADE & set(path.relative_to(folder).parts)
    }


def keys(value: Any, at: str = "") -> set[str]:
    """Every key of a document, dotted."""
    if not isinstance(value, dict):
        return set()
    return {
        found for key, part in value.items() for found in {f"{at}{key}", *keys(part, f"{at}{key}.")}
    }


@pytest.fixture
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What the template makes of an entry's name today."""
    name = request.param
    source = {"sql-processor": "sql", "singer-processor": "singer"}.get(name, "files")
    own = {"project_slug": name, "product_name": PROCESSORS[name], "source": source}
    return scaffold({**ANSWERS, **own}, tmp_path)


@pytest.mark.parametrize("fresh", PROCESSORS, indirect=True)
def test_an_entry_has_the_files_that_the_template_makes(fresh: Path) -> None:
    assert files(CATALOG / fresh.name) == files(fresh)


@pytest.mark.parametrize("fresh", PROCESSORS, indirect=True)
def test_an_entry_s_pyproject_has_the_template_s_keys(fresh: Path) -> None:
    made, ours = (
        tomllib.loads((folder / "pyproject.toml").read_text())
        for folder in (fresh, CATALOG / fresh.name)
    )

    assert keys(ours) == keys(made)
    assert ours["project"]["dependencies"] == made["project"]["dependencies"]


@pytest.mark.parametrize("fresh", PROCESSORS, indirect=True)
def test_an_entry_differs_from_the_template_only_where_it_is_its_own(fresh: Path) -> None:
    ours = CATALOG / fresh.name
    changed = {
        path for path in files(fresh) if (fresh / path).read_bytes() != (ours / path).read_bytes()
    }

    assert {Path(path).name for path in changed} <= {
        *("README.md", "catalogzero.toml", "pyproject.toml"),
        *("__init__.py", "handler.py", "settings.py", "test_process.py", "test_contract.py"),
        *("sample.csv", "Dockerfile"),
    }


def test_the_conductor_is_shaped_as_the_template_makes_an_entry(tmp_path: Path) -> None:
    answers = {"kind": "handler", "project_slug": "conductor-zero", "class_name": "ConductorZero"}
    fresh = scaffold({**ANSWERS, **answers, "packaging": "systemd"}, tmp_path)
    ours = CATALOG / "conductor"
    made = {re.sub("conductor[-_]zero", "conductorzero", path) for path in files(fresh)}

    assert made - files(ours) == {"tests/test_handler.py"}  # it has many
    text = re.sub("conductor[-_]zero", "conductorzero", (fresh / "pyproject.toml").read_text())
    missing = keys(tomllib.loads(text)) - keys(tomllib.loads((ours / "pyproject.toml").read_text()))
    assert missing == {
        "tool.hatch.build.targets.sdist",  # it records no template, and has no CI of its own
        "tool.hatch.build.targets.sdist.exclude",
        "tool.ruff.lint.ignore",
    }


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_is_fit_for_a_catalog(name: str) -> None:
    findings = lint.lint(read_package(CATALOG / name))

    assert [str(found) for found in findings if found.rule.severity == "error"] == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PROCESSORS)
def test_an_entry_passes_its_own_tests(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=CATALOG / name,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


def test_an_entry_s_own_command_previews_its_sample_without_key_endpoint_or_registry() -> None:
    command = Path(sys.executable).parent / "file-processor"
    if not command.exists():
        pytest.skip("file-processor is not installed in this environment")

    done = subprocess.run(
        [command, "preview", "--sample"],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )

    assert done.returncode == 0, done.stderr
    assert '"order_id":"1001"' in done.stdout

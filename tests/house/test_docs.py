"""README and docs say what is so: links lead somewhere, commands exist, examples run."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from catalogzero import CloudSettings
from catalogzero.backend import BackendSettings
from catalogzero.cli.main import COMMANDS
from catalogzero.config.registry import load_registry
from catalogzero.config.settings import RuntimeSettings
from conductorzero.settings import ConductorSettings
from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    """A page's path as a test's name."""
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ +(.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    pattern = rf"^ *```{language}\n(.*?)^ *```"
    return re.findall(pattern, path.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text()):
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_and_command_that_a_page_shows_exists(page: Path) -> None:
    generated = ROOT.glob("template/*cookiecutter*/Makefile")
    makefile = "\n".join(path.read_text() for path in (ROOT / "Makefile", *generated))
    shown = "\n".join(blocks(page, "sh") + re.findall(r"`([^`\n]+)`", page.read_text()))

    targets = set(re.findall(r"^make ([a-z-]+)", shown, re.MULTILINE))
    verbs = set(re.findall(r"^(?:.*/)?catalogzero ([a-z]+)", shown, re.MULTILINE))

    assert {t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)} == set()
    assert verbs - set(COMMANDS) == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_of_python_and_json_of_a_page_can_be_read(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(textwrap.dedent(block))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("catalogzero"):
                module = importlib.import_module(str(node.module))
                assert {alias.name for alias in node.names} <= set(dir(module))
    for block in blocks(page, "json"):
        json.loads(block)


def test_the_readme_is_a_page_and_a_half() -> None:
    assert len(README.read_text().splitlines()) <= 120


def test_the_readme_s_handler_is_fifteen_lines_that_run(tmp_path: Path) -> None:
    (code,) = blocks(README, "python")
    (tmp_path / "acme.py").write_text(code)
    (tmp_path / "flights.csv").write_text("arr_delay\n20\nNA\n")
    (command,) = re.findall(r"`catalogzero (preview [^`]+)`", README.read_text())

    done = subprocess.run(
        [sys.executable, "-m", "catalogzero", *command.split()],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )

    assert len(code.splitlines()) <= 15
    assert done.returncode == 0, done.stderr
    assert '{"arr_delay":"20","late":true}\n' in done.stdout
    assert "nothing was sent: 1 records" in done.stdout


def test_every_page_of_the_docs_can_be_reached_from_its_index() -> None:
    index = (ROOT / "docs/index.md").read_text()

    unlisted = [page for page in (ROOT / "docs").rglob("*.md") if page.name not in index]

    assert unlisted == [ROOT / "docs/index.md"]


@pytest.mark.parametrize(
    ("page", "model"),
    [
        ("docs/reference/settings.md", RuntimeSettings),
        ("docs/reference/settings.md", CloudSettings),
        ("docs/how-to/run-a-backend.md", BackendSettings),
        ("catalog/conductor/README.md", ConductorSettings),
    ],
)
def test_every_setting_is_documented(page: str, model: type[BaseModel]) -> None:
    told = (ROOT / page).read_text()

    assert [name for name in model.model_fields if f"`{name}`" not in told] == []


def test_every_variable_of_the_environment_is_documented() -> None:
    read = "".join(path.read_text() for path in (ROOT / "sdk/catalogzero").rglob("*.py"))
    told = "".join(page.read_text() for page in PAGES)
    settings = {f"CATALOGZERO_{name.upper()}" for name in RuntimeSettings.model_fields}

    named = set(re.findall(r"CATALOGZERO_[A-Z_]*[A-Z]", read))

    assert {name for name in named - settings if name not in told} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_registry_file_of_a_page_is_one_that_is_read(page: Path, tmp_path: Path) -> None:
    path = tmp_path / "handler_registry.yaml"
    for block in blocks(page, "yaml"):
        found = yaml.safe_load(block)
        if "handlers" not in found:
            continue
        for section in found["handlers"]:
            if not {"entry", "module_path"} & set(section):  # a page that shows one key alone
                section["entry"] = "acme-processor"
        path.write_text(yaml.safe_dump(found))
        for section in load_registry(path).handlers:
            RuntimeSettings(**section.runtime)

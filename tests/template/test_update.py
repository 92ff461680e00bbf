"""A newer template comes into a package; what the vendor changed stays."""

from __future__ import annotations

import compileall
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from catalogzero.entry.scaffold import scaffold, template_folder
from catalogzero.entry.update import difference, update
from catalogzero.errors import ConfigError

Bake = Callable[..., Path]


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=A", "-c", "user.email=a@acme.example", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.fixture
def package(bake: Bake) -> Path:
    """A package that its vendor has begun to change, in git."""
    folder = bake(vendor_name="Acme")
    git(folder, "init", "-q")
    readme = folder / "README.md"
    readme.write_text(readme.read_text() + "\nOur own words.\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "Ours")
    return folder


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """The template with a line more in its README, and a file more."""
    ignored = shutil.ignore_patterns("__pycache__")
    folder = shutil.copytree(template_folder(), tmp_path / "newer", ignore=ignored)
    (readme,) = folder.glob("*cookiecutter*/README.md")
    text = readme.read_text()
    readme.write_text(text.replace("## Install\n", "## Install it\n"))
    (readme.parent / "SUPPORT.md").write_text("{{ cookiecutter.vendor_name }} helps.\n")
    return folder


def test_an_unchanged_template_changes_nothing(package: Path) -> None:
    assert not difference(package).patch
    assert not update(package).patch
    assert not git(package, "status", "--porcelain")


def test_a_newer_template_comes_in_and_the_vendors_changes_stay(package: Path, newer: Path) -> None:
    found = update(package, template=newer)

    readme = (package / "README.md").read_text()
    assert "## Install it" in readme
    assert readme.endswith("Our own words.\n")
    assert (package / "SUPPORT.md").read_text() == "Acme helps.\n"
    assert not found.conflicts
    git(package, "fsck", "--strict")


def test_a_template_that_an_installer_compiled_is_baked_without_what_it_compiled(
    package: Path, newer: Path
) -> None:
    compileall.compile_dir(newer, quiet=2)
    assert list(newer.rglob("*cookiecutter*/**/*.pyc"))
    other = scaffold({"vendor_name": "Other"}, package.parent, newer)

    update(package, template=newer)

    assert not list(other.rglob("*.pyc"))
    assert not [
        line for line in git(package, "status", "--porcelain").splitlines() if "pyc" in line
    ]
    with zipfile.ZipFile(other / ".catalogzero" / "generated.zip") as archive:
        assert not [name for name in archive.namelist() if name.endswith(".pyc")]


def test_after_an_update_there_is_nothing_more_to_do(package: Path, newer: Path) -> None:
    update(package, template=newer)
    git(package, "add", "-A")
    git(package, "commit", "-qm", "Update")

    assert not difference(package, template=newer).patch


def test_a_look_writes_nothing(package: Path, newer: Path) -> None:
    found = difference(package, template=newer)

    assert "+## Install it" in found.patch
    assert not git(package, "status", "--porcelain")


def test_where_both_changed_a_line_the_conflict_is_named(package: Path, newer: Path) -> None:
    readme = package / "README.md"
    readme.write_text(readme.read_text().replace("## Install\n", "## Set up\n"))
    git(package, "commit", "-qam", "Other words")

    found = update(package, template=newer)

    assert found.conflicts == ["README.md"]
    assert "<<<<<<<" in readme.read_text()


def test_an_answer_can_be_given_anew(package: Path) -> None:
    update(package, changes={"ci": "gitlab"})

    assert (package / ".gitlab-ci.yml").is_file()
    assert not (package / ".github").exists()
    recorded = json.loads((package / ".catalogzero/template.json").read_text())
    assert recorded["answers"]["ci"] == "gitlab"


def test_what_is_not_committed_is_refused_and_stays(package: Path, newer: Path) -> None:
    (package / "README.md").write_text("half done")

    with pytest.raises(ConfigError, match="commit them first"):
        update(package, template=newer)

    assert (package / "README.md").read_text() == "half done"


def test_a_folder_that_records_no_template_is_refused(tmp_path: Path) -> None:
    for look in (difference, update):
        with pytest.raises(ConfigError, match="only a package made from the template"):
            look(tmp_path)


def test_a_package_below_the_top_of_its_repository_is_updated_too(
    tmp_path: Path, newer: Path
) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "packages").mkdir()
    folder = scaffold({}, tmp_path / "packages")
    git(tmp_path, "add", "packages")
    git(tmp_path, "commit", "-qm", "One of many")

    update(folder, template=newer)

    assert "## Install it" in (folder / "README.md").read_text()

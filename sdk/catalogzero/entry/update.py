"""Brings a newer template into a package that was made from an older one.

Owns the difference between the package as it was generated (recorded in `.catalogzero/`) and what
the template of today makes of the same answers, and its application by `git apply --3way`: the
vendor's own changes stay. Needs git and a clean work tree; no network, no repository of the
template.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from catalogzero.entry.pip import run_tool
from catalogzero.entry.scaffold import answer_names, scaffold, template_folder
from catalogzero.errors import CatalogZeroError, ConfigError

RECORD = ".catalogzero"
_AS_CATALOGZERO = (
    *("-c", "user.name=catalogzero", "-c", "user.email=catalogzero@localhost"),
    *("-c", "commit.gpgsign=false", "-c", "core.autocrlf=false"),
)


@dataclass(frozen=True)
class Update:
    """What the newer template changes.

    Attributes:
        patch: The difference, as git writes it; empty where there is none.
        conflicts: Files in which the vendor's changes and the template's meet.
        forgotten: Recorded answers that the template no longer takes.
    """

    patch: str
    conflicts: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)


def difference(
    folder: Path, *, changes: Mapping[str, str] | None = None, template: Path | None = None
) -> Update:
    """What the template would change in a package; nothing is written.

    Args:
        folder: The package's folder.
        changes: Answers that replace those recorded.
        template: Another template; the one that comes with catalogzero by default.

    Raises:
        ConfigError: The package records no template, or an answer is refused.
    """
    with tempfile.TemporaryDirectory() as temporary:
        return _compare(folder, Path(temporary), changes or {}, template or template_folder())[0]


def update(
    folder: Path, *, changes: Mapping[str, str] | None = None, template: Path | None = None
) -> Update:
    """Bring the template's changes into a package's work tree, uncommitted.

    Raises:
        ConfigError: As `difference`; or the folder is not a clean git work tree.
        CatalogZeroError: git failed.
    """
    _recorded_answers(folder)
    try:
        prefix = _git(folder, "rev-parse", "--show-prefix").strip()
        dirty = _git(folder, "status", "--porcelain", "--", ".").strip()
    except CatalogZeroError as error:
        raise ConfigError(
            f"{folder} is not in a git work tree: git init, and commit first"
        ) from error
    if dirty:
        raise ConfigError(f"{folder} has changes that are not committed: commit them first")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        found, baked = _compare(folder, place, changes or {}, template or template_folder())
        if not found.patch:
            return found
        patch = place / "update.patch"
        patch.write_text(found.patch, "utf-8")
        # A three-way merge finds the old file by its hash: its blob must be in this repository.
        _git(folder, "fetch", "--quiet", "--no-tags", str(place / "both"), "HEAD")
        where = [f"--directory={prefix}"] if prefix else []
        applied = subprocess.run(  # noqa: S603 - git, with a patch of our own
            ["git", "apply", "--3way", *where, str(patch)],  # noqa: S607 - the git in use
            cwd=_git(folder, "rev-parse", "--show-toplevel").strip(),
            capture_output=True,
            text=True,
            check=False,
        )
        conflicts = _git(folder, "diff", "--name-only", "--diff-filter=U").split()
        if applied.returncode and not conflicts:
            raise ConfigError(f"the difference cannot be applied: {applied.stderr.strip()}")
        shutil.copytree(baked / RECORD, folder / RECORD, dirs_exist_ok=True)
        return Update(found.patch, conflicts, found.forgotten)


def _compare(
    folder: Path, place: Path, changes: Mapping[str, str], template: Path
) -> tuple[Update, Path]:
    """Bake the new, unpack the old, and let git compare; the update and the new tree."""
    recorded = _recorded_answers(folder)
    known = answer_names(template)
    answers = {name: text for name, text in recorded.items() if name in known}
    (place / "new").mkdir()
    baked = scaffold({**answers, **changes}, place / "new", template)
    both = place / "both"
    with zipfile.ZipFile(folder / RECORD / "generated.zip") as archive:
        archive.extractall(both)
    _git(both, "init", "--quiet")
    _commit(both, "old")
    for path in both.iterdir():
        if path.name != ".git":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(baked, both, ignore=shutil.ignore_patterns(".git", RECORD), dirs_exist_ok=True)
    _commit(both, "new")
    patch = _git(both, "diff", "--binary", "--full-index", "HEAD~1", "HEAD")
    return Update(patch, forgotten=sorted(recorded.keys() - set(known))), baked


def _recorded_answers(folder: Path) -> dict[str, str]:
    """The answers that a package was made with."""
    path = folder / RECORD / "template.json"
    try:
        return dict(json.loads(path.read_text("utf-8"))["answers"])
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is missing: only a package made from the template can be updated"
        ) from None
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{path} cannot be read: take it back from git's history") from error


def _commit(folder: Path, message: str) -> None:
    """Commit everything in a folder."""
    _git(folder, "add", "--all", "--force")
    _git(folder, *_AS_CATALOGZERO, "commit", "--quiet", "--allow-empty", "-m", message)


def _git(folder: Path, *arguments: str) -> str:
    """Run git in a folder."""
    return run_tool(["git", *arguments], cwd=folder)

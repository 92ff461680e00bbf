"""A vendor's package as `catalog lint` and `catalogzero test` look at it: its folder, read.

Owns where a package keeps what: pyproject.toml, entry points, manifest, handler class. Importing
the class runs the package's code; everything else is read without that.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalogzero.entry.manifest import MANIFEST_NAME, Manifest, load_manifest
from catalogzero.errors import ConfigError
from catalogzero.runtime.handler import Handler


@dataclass(frozen=True)
class Subject:
    """A package's folder and what its pyproject.toml says."""

    folder: Path
    project: Mapping[str, Any]
    """The `[project]` table."""

    @property
    def entries(self) -> dict[str, str]:
        """Entry id → package."""
        return self._points("catalogzero.entries")

    @property
    def handlers(self) -> dict[str, str]:
        """Handler name → `module:Class`."""
        return self._points("catalogzero.handlers")

    @property
    def source_root(self) -> Path:
        """The folder from which its packages are imported: `src`, or the folder itself."""
        source = self.folder / "src"
        return source if source.is_dir() else self.folder

    def package_folder(self, package: str) -> Path:
        """The folder of a dotted package."""
        return self.source_root.joinpath(*package.split("."))

    def manifest_path(self, entry_id: str) -> Path:
        """Where an entry's manifest belongs."""
        return self.package_folder(self.entries[entry_id]) / MANIFEST_NAME

    def manifest(self, entry_id: str) -> Manifest:
        """An entry's manifest.

        Raises:
            ConfigError: It is missing or wrong.
        """
        return load_manifest(self.manifest_path(entry_id))

    def modules(self) -> list[Path]:
        """Every Python file of its packages."""
        roots = {self.package_folder(package) for package in self.entries.values()}
        return sorted(path for root in roots for path in root.rglob("*.py"))

    def _points(self, group: str) -> dict[str, str]:
        """The entry points of a group."""
        return dict(self.project.get("entry-points", {}).get(group, {}))


def read_subject(folder: Path) -> Subject:
    """A package's folder.

    Raises:
        ConfigError: It has no pyproject.toml with a `[project]` table.
    """
    path = folder / "pyproject.toml"
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: name the folder of a package") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    if "project" not in document:
        raise ConfigError(f"{path} has no [project] table: name the folder of a package")
    return Subject(folder.resolve(), document["project"])


@contextlib.contextmanager
def handler_class(subject: Subject, name: str) -> Iterator[type[Handler]]:
    """One of the package's handler classes, imported from its folder and forgotten afterwards.

    Raises:
        ConfigError: It cannot be imported, or is no handler.
    """
    module, _, attribute = subject.handlers[name].partition(":")
    known, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, os.fspath(subject.source_root))
    try:
        try:
            found = getattr(importlib.import_module(module), attribute, None)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise ConfigError(f"module {module!r} cannot be imported: {told}") from error
        if not (isinstance(found, type) and issubclass(found, Handler)):
            raise ConfigError(f"{module}:{attribute} is no handler class: mend the entry point")
        yield found
    finally:
        sys.path[:] = path
        for added in set(sys.modules) - known:
            if added.split(".")[0] == module.split(".")[0]:
                del sys.modules[added]

"""A vendor's package as its source folder has it: pyproject.toml, entry points, manifests, classes.

Importing a class runs the package's code; everything else is read without that.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from catalogzero.config.settings import problems_of
from catalogzero.entry.manifest import MANIFEST_NAME, Manifest, load_manifest
from catalogzero.errors import ConfigError
from catalogzero.runtime.handler import Handler


class Project(BaseModel):
    """What is read of the `[project]` table of a pyproject.toml."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: str | None = None
    readme: object = None
    license: object = None
    dependencies: list[str] = Field(default_factory=list)
    entry_points: dict[str, dict[str, str]] = Field(
        default_factory=dict, validation_alias="entry-points"
    )


@dataclass(frozen=True)
class PackageSource:
    """A package's folder and what its pyproject.toml says."""

    folder: Path
    project: Project

    @property
    def entries(self) -> dict[str, str]:
        """Entry id → package."""
        return self.project.entry_points.get("catalogzero.entries", {})

    @property
    def handlers(self) -> dict[str, str]:
        """Handler name → `module:Class`."""
        return self.project.entry_points.get("catalogzero.handlers", {})

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

    def shown(self, path: Path) -> str:
        """A path as the vendor knows it: from the package's folder."""
        return path.relative_to(self.folder).as_posix()

    def readable_manifests(self) -> Iterator[tuple[str, str, Manifest]]:
        """Every manifest that can be read: its entry, its path as shown, itself."""
        for entry_id in self.entries:
            with contextlib.suppress(ConfigError):
                path = self.shown(self.manifest_path(entry_id))
                yield entry_id, path, self.manifest(entry_id)

    @contextlib.contextmanager
    def handler_class(self, name: str) -> Iterator[type[Handler]]:
        """One of its handler classes, imported from its folder and forgotten afterwards.

        Raises:
            ConfigError: It cannot be imported, or is not a handler.
        """
        module, _, attribute = self.handlers[name].partition(":")
        known, path = set(sys.modules), list(sys.path)
        sys.path.insert(0, os.fspath(self.source_root))
        try:
            try:
                found = getattr(importlib.import_module(module), attribute, None)
            except Exception as error:
                fault = f"{type(error).__name__}: {error}"
                raise ConfigError(f"module {module!r} cannot be imported: {fault}") from error
            if not (isinstance(found, type) and issubclass(found, Handler)):
                raise ConfigError(f"{module}:{attribute} is not a Handler: fix the entry point")
            yield found
        finally:
            sys.path[:] = path
            # Another package's module of the same name is imported next, and must not be this one.
            for added in set(sys.modules) - known:
                if added.split(".")[0] == module.split(".")[0]:
                    del sys.modules[added]


def read_package(folder: Path) -> PackageSource:
    """A package's folder.

    Raises:
        ConfigError: It has no pyproject.toml with a `[project]` table of the right form.
    """
    path = folder / "pyproject.toml"
    try:
        document = tomllib.loads(path.read_text("utf-8"))
        return PackageSource(folder.resolve(), Project.model_validate(document["project"]))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: name the folder of a package") from None
    except KeyError:
        raise ConfigError(f"{path} has no [project] table: name the folder of a package") from None
    except ValidationError as error:
        faults = [f"{path}: project.{name}: {fault}" for name, fault in problems_of(error)]
        raise ConfigError("\n".join(faults)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error

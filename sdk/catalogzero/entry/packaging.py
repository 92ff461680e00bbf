"""Builds a vendor's package: wheel and sdist.

Layer: edge.
"""

from __future__ import annotations

import sys
from pathlib import Path

from catalogzero.entry.pip import run_tool
from catalogzero.errors import ConfigError


def build_package(folder: Path, out: Path) -> list[Path]:
    """Build the sdist of a package, and the wheel out of that; the paths, wheel last.

    The build backend is the one installed here, so that no index is asked.

    Raises:
        ConfigError: The folder has no pyproject.toml.
        CatalogZeroError: The build failed; the tool's own words are in the message.
    """
    if not (folder / "pyproject.toml").is_file():
        raise ConfigError(f"{folder.resolve()} has no pyproject.toml: name the package's folder")
    out.mkdir(parents=True, exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(folder)]
    run_tool(build)
    made = [path for path in out.iterdir() if before.get(path) != path.stat().st_mtime_ns]
    return sorted((path for path in made if path.suffix in (".whl", ".gz")), key=_wheel_last)


def _wheel_last(path: Path) -> tuple[bool, str]:
    """Sorts a wheel behind its sdist."""
    return path.suffix == ".whl", path.name

"""Small wheels, made by hand: an entry, what it needs, and a adapter for the SDK."""

from __future__ import annotations

import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path

OURS = ".".join(map(str, sys.version_info[:2]))
PLATFORM = sysconfig.get_platform().replace("-", "_")
LOCK = f"py{OURS}-{PLATFORM}"
"""How the lock of a release for this very machine ends."""

MANIFEST = """\
manifest_version = 1
id = "{name}"
name = "Acme <Processor>"
version = "{version}"
kind = "processor"
description = "Cleans rows & sends them."
allowed_hosts = ["api.acme.example"]
data_collected = ["every column"]

[vendor]
name = "Acme"

[requires]
python = ">=3.11"
catalogzero = ">=0.1"
"""


def write_wheel(
    folder: Path,
    name: str,
    version: str = "1.0.0",
    *,
    requires: tuple[str, ...] = (),
    files: Mapping[str, str] | None = None,
    entry_points: str = "",
    metadata: str = "",
    tag: str = "py3-none-any",
) -> Path:
    """Write a wheel with the files given."""
    stem = name.replace("-", "_")
    info = f"{stem}-{version}.dist-info"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    members = {
        f"{stem}/__init__.py": "",
        **(files or {}),
        f"{info}/METADATA": head + metadata,
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    if entry_points:
        members[f"{info}/entry_points.txt"] = entry_points
    path = folder / f"{stem}-{version}-{tag}.whl"
    folder.mkdir(parents=True, exist_ok=True)
    record = "".join(f"{member},,\n" for member in members)
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in {**members, f"{info}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(member), content)
    return path


def write_entry(
    folder: Path,
    name: str = "acme-processor",
    version: str = "1.0.0",
    more: str = "",
    *,
    requires: tuple[str, ...] = ("acme-helper",),
    metadata: str = "",
) -> Path:
    """Write the wheel of an entry whose module would fail if it were imported."""
    stem = name.replace("-", "_")
    return write_wheel(
        folder,
        name,
        version,
        requires=("catalogzero>=0.1", *requires),
        files={
            f"{stem}/__init__.py": "raise SystemExit('an entry was imported')",
            f"{stem}/catalogzero.toml": MANIFEST.format(name=name, version=version) + more,
        },
        entry_points=f"[catalogzero.entries]\n{name} = {stem}\n",
        metadata=metadata,
    )

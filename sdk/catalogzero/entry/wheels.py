"""Wheels as files: what their metadata says, and a wheel of the SDK itself.

Owns reading a wheel's metadata, entry points and manifest from the archive; nothing in a wheel is
ever imported or run.
"""

from __future__ import annotations

import base64
import email.parser
import hashlib
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from catalogzero.entry.manifest import MANIFEST_NAME, Manifest, parse_manifest
from catalogzero.entry.pip import run_tool
from catalogzero.errors import ConfigError


@dataclass(frozen=True)
class Wheel:
    """One wheel file, read without being imported."""

    path: Path
    name: str
    """The distribution's name, normalised (PEP 503)."""
    version: Version
    sha256: str
    metadata: bytes
    """The core metadata file, byte for byte."""
    entries: dict[str, str]
    """The catalog entries that it provides: id → package."""

    @cached_property
    def fields(self) -> email.message.Message:
        """The core metadata's fields."""
        return email.parser.BytesParser().parsebytes(self.metadata)

    @property
    def requires_python(self) -> str | None:
        """The Python versions that it supports, as its metadata says."""
        return self.fields.get("Requires-Python")

    def needs(self, extra: str = "") -> Iterator[Requirement]:
        """What it requires here with one of its extras, or (`""`) with none."""
        return requirements_here(self.fields.get_all("Requires-Dist"), extra)

    def manifest(self, entry_id: str) -> Manifest:
        """The manifest of one of its entries.

        Raises:
            ConfigError: The package has none, or one that cannot be read.
        """
        name = f"{self.entries[entry_id].replace('.', '/')}/{MANIFEST_NAME}"
        origin = f"{self.path.name}: {name}"
        try:
            with zipfile.ZipFile(self.path) as archive:
                text = archive.read(name).decode("utf-8")
        except (KeyError, UnicodeDecodeError) as error:
            raise ConfigError(f"{origin} is missing from the wheel, or is not UTF-8") from error
        return parse_manifest(text, origin)


def read_wheel(path: Path) -> Wheel:
    """Read a wheel's name, hash, metadata and entry points.

    Raises:
        ConfigError: The file is not a wheel.
    """
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
        with zipfile.ZipFile(path) as archive:
            folders = {member.partition("/")[0] for member in archive.namelist()}
            found = [folder for folder in folders if folder.endswith(".dist-info")]
            if len(found) != 1:
                raise ConfigError(f"{path} is not a wheel: it has {len(found)} .dist-info folders")
            metadata = archive.read(f"{found[0]}/METADATA")
            points = PathDistribution(zipfile.Path(archive, f"{found[0]}/")).entry_points
    except (InvalidWheelFilename, zipfile.BadZipFile, KeyError, OSError) as error:
        raise ConfigError(f"{path} is not a wheel: {error}") from error
    entries = {point.name: point.value for point in points.select(group="catalogzero.entries")}
    return Wheel(path, name, version, sha256_of(path), metadata, entries)


def check_entries(wheel: Wheel) -> None:
    """Refuse a wheel whose entries cannot be published, or whose modules cannot be compiled.

    Raises:
        ConfigError: A manifest is missing, wrong, or of another id or version; a module is not
            valid Python.
    """
    for entry_id in wheel.entries:
        manifest = wheel.manifest(entry_id)
        said, fix = f"{wheel.path.name}: its manifest says", "make them the same"
        if manifest.id != entry_id:
            raise ConfigError(f"{said} id {manifest.id!r}, its entry point {entry_id!r}; {fix}")
        if Version(manifest.version) != wheel.version:
            raise ConfigError(f"{said} version {manifest.version}; {fix}")
    with zipfile.ZipFile(wheel.path) as archive:
        for name in archive.namelist() if wheel.entries else ():
            if name.endswith(".py"):
                origin = f"{wheel.path.name}: {name}"
                # Compiled, never run: a module that is no Python fails here, not at the client.
                try:
                    compile(archive.read(name), origin, "exec", dont_inherit=True)
                except SyntaxError as error:
                    where = f"{origin}, line {error.lineno}"
                    raise ConfigError(f"{where}: {error.msg}; fix it, and build again") from error
                except ValueError as error:
                    raise ConfigError(f"{origin}: {error}; fix it, and build again") from error


def requirements_here(texts: Iterable[str] | None, extra: str) -> Iterator[Requirement]:
    """The requirements whose markers hold on this machine, with one extra or (`""`) none."""
    for requirement in map(Requirement, texts or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sdk_wheel(folder: Path) -> Path:
    """A wheel of the catalogzero that is installed here, written to a folder.

    An editable installation is built from its checkout; any other is packed again as installed.

    Raises:
        CatalogZeroError: The build failed.
    """
    installed = distribution("catalogzero")
    place = json.loads(installed.read_text("direct_url.json") or "{}")
    if not place.get("dir_info", {}).get("editable"):
        return repack(installed, folder)
    checkout = Path(unquote(urlsplit(place["url"]).path))
    with tempfile.TemporaryDirectory() as temporary:
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", temporary]
        run_tool(build, cwd=checkout)
        (built,) = Path(temporary).glob("*.whl")
        return Path(shutil.move(built, folder / built.name))


def repack(distribution: Distribution, folder: Path) -> Path:
    """Write an installed distribution's wheel again, from the files that it installed.

    The wheel has the same modules, data and metadata; what the installer added (scripts, compiled
    modules, its own notes) is left out. The same installation gives the same bytes.

    Raises:
        ConfigError: It was not installed from a pure wheel.
    """
    name = canonicalize_name(distribution.metadata["Name"]).replace("-", "_")
    if "py3-none-any" not in (distribution.read_text("WHEEL") or ""):
        raise ConfigError(f"{name} was not installed from a pure wheel: give its wheel's path")
    path = folder / f"{name}-{distribution.version}-py3-none-any.whl"
    installers = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json")
    members: dict[str, bytes] = {}
    for file in sorted(distribution.files or (), key=str):
        made = file.parent.suffix == ".dist-info" and file.name in installers
        if not made and file.suffix != ".pyc" and file.parts[0] != "..":
            members[file.as_posix()] = Path(str(file.locate())).read_bytes()
    rows = []
    for member, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
        rows.append(f"{member},sha256={digest.decode()},{len(content)}\n")
    record = f"{name}-{distribution.version}.dist-info/RECORD"
    members[record] = "".join([*rows, f"{record},,\n"]).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            # Dated 1980, as no date is given: the same content gives the same bytes.
            info = zipfile.ZipInfo(member)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o100644 << 16
            archive.writestr(info, content)
    return path

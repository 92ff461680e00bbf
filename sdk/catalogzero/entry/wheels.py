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
from importlib.metadata import Distribution, PackagePath, PathDistribution, distribution
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
            raise ConfigError(f"{origin} is missing from the wheel, or no UTF-8 text") from error
        return parse_manifest(text, origin)


def read_wheel(path: Path) -> Wheel:
    """Read a wheel's name, hash, metadata and entry points.

    Raises:
        ConfigError: The file is no wheel.
    """
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
        with zipfile.ZipFile(path) as archive:
            folder = _dist_info(archive, path)
            metadata = archive.read(f"{folder}/METADATA")
            told = PathDistribution(zipfile.Path(archive, f"{folder}/"))
            points = told.entry_points.select(group="catalogzero.entries")
    except (InvalidWheelFilename, zipfile.BadZipFile, KeyError, OSError) as error:
        raise ConfigError(f"{path} is no wheel: {error}") from error
    entries = {point.name: point.value for point in points}
    return Wheel(path, name, version, sha256_of(path), metadata, entries)


def check_entries(wheel: Wheel) -> None:
    """Refuse a wheel whose entries cannot be published, or whose modules cannot be compiled.

    Raises:
        ConfigError: A manifest is missing, wrong, or of another id or version; a module is no
            Python.
    """
    for entry_id in wheel.entries:
        manifest = wheel.manifest(entry_id)
        said, mend = f"{wheel.path.name}: its manifest says", "make them the same"
        if manifest.id != entry_id:
            raise ConfigError(f"{said} id {manifest.id!r}, its entry point {entry_id!r}; {mend}")
        if Version(manifest.version) != wheel.version:
            raise ConfigError(f"{said} version {manifest.version}; {mend}")
    with zipfile.ZipFile(wheel.path) as archive:
        for name in archive.namelist() if wheel.entries else ():
            if name.endswith(".py"):
                _compile(archive.read(name), f"{wheel.path.name}: {name}")


def _compile(source: bytes, origin: str) -> None:
    """Refuse a module that is no Python; it is not run."""
    try:
        compile(source, origin, "exec", dont_inherit=True)
    except SyntaxError as error:
        where = f"{origin}, line {error.lineno}"
        raise ConfigError(f"{where}: {error.msg}; mend it, and build again") from error
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}; mend it, and build again") from error


def requirements_here(texts: Iterable[str] | None, extra: str) -> Iterator[Requirement]:
    """The requirements whose markers hold on this machine, with one extra or (`""`) none."""
    for requirement in map(Requirement, texts or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _dist_info(archive: zipfile.ZipFile, path: Path) -> str:
    """The name of the one `.dist-info` folder of a wheel."""
    folders = {name.split("/")[0] for name in archive.namelist()}
    found = [folder for folder in folders if folder.endswith(".dist-info")]
    if len(found) != 1:
        raise ConfigError(f"{path} is no wheel: it has {len(found)} .dist-info folders")
    return found[0]


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
    members = [file for file in distribution.files or () if _belongs(file)]
    rows = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(members, key=str):
            content = Path(str(file.locate())).read_bytes()
            rows.append(f"{file.as_posix()},{_record_hash(content)},{len(content)}")
            _write(archive, file.as_posix(), content)
        record = f"{name}-{distribution.version}.dist-info/RECORD"
        _write(archive, record, "\n".join([*rows, f"{record},,", ""]).encode())
    return path


def _belongs(file: PackagePath) -> bool:
    """Whether an installed file came with the wheel."""
    installers = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json")
    own = file.parent.suffix == ".dist-info" and file.name in installers
    return not (own or file.suffix == ".pyc" or file.parts[0] == "..")


def _record_hash(content: bytes) -> str:
    """A content's hash as RECORD writes it."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"


def _write(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file whose date is always the same."""
    info = zipfile.ZipInfo(name)  # dated 1980, as none is given
    info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o100644 << 16
    archive.writestr(info, content)

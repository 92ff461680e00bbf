"""A catalog as a static site: what pip reads, what programs read, what people read.

Owns the site's folder: `files/` with every wheel and its metadata (PEP 658), `simple/` (PEP 503
pages with SHA-256, PEP 691 JSON beside them), `requirements/` (each entry's whole closure with
hashes), `catalog.json`, and a page per entry. The same wheels give the same bytes. Wheels are
never imported. What was published before stays, unless it is given again with other content.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, product
from pathlib import Path
from typing import Any

import platformdirs

from catalogzero.entry import closure, pages
from catalogzero.entry.manifest import Manifest
from catalogzero.entry.requirements import requirements_text
from catalogzero.entry.wheels import Wheel, check_entries, read_wheel, sha256_of
from catalogzero.errors import ConfigError

CATALOG_VERSION = 1
SDK_EXTRAS = ("parquet", "scheduler", "sql")
"""The SDK's extras that a client may need: they are in every catalog's closure."""


@dataclass(frozen=True)
class Release:
    """One version of one entry, as the catalog shows it."""

    manifest: Manifest
    wheel: Wheel
    yanked: str | None = None
    """Why it should not be installed any more; None where it may."""

    @property
    def requirements(self) -> str:
        """Its whole closure with hashes, for `pip install --require-hashes -r`: a file's name."""
        return f"requirements/{self.manifest.id}-{self.wheel.version}.txt"


@dataclass(frozen=True)
class CatalogReport:
    """What a build wrote."""

    out: Path
    entries: dict[str, str] = field(default_factory=dict)
    """Entry id → newest version."""
    wheels: int = 0
    bytes: int = 0


def build_catalog(
    dists: Sequence[Path],
    out: Path,
    *,
    origin: closure.Origin | None = None,
    targets: Sequence[closure.Target] = (closure.Target(),),
    cache: Path | None = None,
    yank: Mapping[str, str] | None = None,
    replace: bool = False,
) -> CatalogReport:
    """Publish wheels with everything that they need into a folder.

    Args:
        dists: Wheels, or folders that hold them.
        out: The site's folder; one that is a catalog already is added to.
        origin: Where dependencies come from.
        targets: The machines that the closure is gathered for.
        cache: Folder of gathered wheels, kept between builds; this user's own by default.
        yank: `id==version` → why it should not be installed any more.
        replace: Allow a file of a name that is published to change its content.

    Raises:
        ConfigError: A file is no wheel, no wheel is an entry, or a published file would change.
        CatalogZeroError: pip found no set of dependencies.
    """
    origin, extras = origin or closure.Origin(), {closure.SDK: SDK_EXTRAS}
    cache = cache or platformdirs.user_cache_path("catalogzero") / "wheels"
    with tempfile.TemporaryDirectory() as temporary:
        own = _own_wheels(dists, Path(temporary))
        paths = {wheel.path for wheel in own}
        ours = {path for path in paths if path.parent == Path(temporary)}
        for wheels, target in product(_rounds(own), targets):
            found = closure.gather(wheels, origin=origin, target=target, extras=extras, cache=cache)
            paths |= set(found)
        if not replace:
            _refuse_changes(sorted(paths - ours), out / "files")
        (out / "files").mkdir(parents=True, exist_ok=True)
        for path in paths:
            shutil.copyfile(path, out / "files" / path.name)
    return publish(out, yank or {})


def publish(out: Path, yank: Mapping[str, str]) -> CatalogReport:
    """Write every page of a site anew from the wheels in its `files/`.

    Raises:
        ConfigError: A wheel cannot be read, or `yank` names a release that is not there.
    """
    wheels = closure.read_all((out / "files").glob("*.whl"))
    releases = _releases(wheels, {**_published_yanks(out), **yank})
    withdrawn = {release.wheel.path.name: release.yanked for release in releases if release.yanked}
    for wheel in wheels:
        _write(out / "files" / f"{wheel.path.name}.metadata", wheel.metadata)
    _write_simple(out, wheels, withdrawn)
    for release in releases:
        _write(out / release.requirements, requirements_text(release.wheel, wheels))
    document = _catalog_document(releases, wheels)
    _write(out / "catalog.json", _json(document))
    pages.write_pages(out, document)
    newest = {entry["id"]: entry["version"] for entry in document["entries"]}
    total = sum(wheel.path.stat().st_size for wheel in wheels)
    return CatalogReport(out, newest, len(wheels), total)


def _own_wheels(dists: Sequence[Path], folder: Path) -> list[Wheel]:
    """The wheels given, with one of the SDK where none was."""
    files = [file for path in dists for file in _wheel_files(path)]
    wheels = closure.read_all(set(files))
    if not any(wheel.entries for wheel in wheels):
        given = ", ".join(str(path) for path in dists)
        raise ConfigError(f"no catalog entry among: {given}; build one with `catalogzero build`")
    for wheel in wheels:
        check_entries(wheel)
    if not any(wheel.name == closure.SDK for wheel in wheels):
        wheels.append(read_wheel(closure.sdk_wheel(folder)))
    return wheels


def _rounds(wheels: Sequence[Wheel]) -> Iterator[list[Wheel]]:
    """Sets of wheels that can be installed together: one version of each name, the SDK always."""
    versions: dict[str, list[Wheel]] = defaultdict(list)
    for wheel in sorted(wheels, key=lambda wheel: wheel.version, reverse=True):
        versions[wheel.name].append(wheel)
    for number in range(max(map(len, versions.values()))):
        chosen = {name: found[number:] or [] for name, found in versions.items()}
        chosen[closure.SDK] = chosen[closure.SDK] or versions[closure.SDK]
        yield [found[0] for found in chosen.values() if found]


def _wheel_files(path: Path) -> list[Path]:
    """A wheel itself, or the wheels of a folder; a source archive stands aside."""
    if path.is_dir():
        return sorted(path.glob("*.whl"))
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; build it with `catalogzero build`")
    return [] if path.name.endswith(".tar.gz") else [path]


def _refuse_changes(paths: Iterable[Path], files: Path) -> None:
    """A file that is published keeps its content: clients may have pinned its hash."""
    for path in paths:
        there = files / path.name
        if there.is_file() and sha256_of(there) != sha256_of(path):
            raise ConfigError(
                f"{path.name} is published with other content; raise its version, "
                "or say --replace where no client has it yet"
            )


def _published_yanks(out: Path) -> dict[str, str]:
    """What was yanked when the site was last written: `id==version` → reason."""
    try:
        document = json.loads((out / "catalog.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return {
        f"{entry['id']}=={release['version']}": release["yanked"]
        for entry in document["entries"]
        for release in entry["releases"]
        if release["yanked"]
    }


def _releases(wheels: Iterable[Wheel], yanks: Mapping[str, str]) -> list[Release]:
    """Every entry's releases, newest first, those that are yanked marked."""
    found = [
        Release(wheel.manifest(entry_id), wheel, yanks.get(f"{entry_id}=={wheel.version}"))
        for wheel in wheels
        for entry_id in wheel.entries
    ]
    owners: dict[str, str] = {}
    for release in found:
        owner = owners.setdefault(release.manifest.id, release.wheel.name)
        if owner != release.wheel.name:
            raise ConfigError(
                f"{owner} and {release.wheel.name} both provide the entry {release.manifest.id!r}: "
                "give one of them another id"
            )
    known = {f"{release.manifest.id}=={release.wheel.version}" for release in found}
    if missing := sorted(set(yanks) - known):
        raise ConfigError(f"no release to yank: {', '.join(missing)}; write id==version")
    found.sort(key=lambda release: release.wheel.version, reverse=True)
    return sorted(found, key=lambda release: release.manifest.id)


def _write_simple(out: Path, wheels: Sequence[Wheel], withdrawn: Mapping[str, str]) -> None:
    """The simple index, as pages and as JSON."""
    meta = {"api-version": "1.1"}
    names = sorted({wheel.name for wheel in wheels})
    projects = [{"name": name} for name in names]
    documents: dict[str, dict[str, Any]] = {"": {"meta": meta, "projects": projects}}
    for name in names:
        files = [wheel for wheel in wheels if wheel.name == name]
        versions = [str(version) for version in sorted({wheel.version for wheel in files})]
        rows = [_file_row(wheel, withdrawn) for wheel in files]
        documents[name] = {"meta": meta, "name": name, "versions": versions, "files": rows}
    for name, document in documents.items():
        _write(out / "simple" / name / "index.json", _json(document))
        pages.write_links(out / "simple" / name, document)


def _file_row(wheel: Wheel, withdrawn: Mapping[str, str]) -> dict[str, Any]:
    """A wheel in PEP 691's words."""
    metadata = {"sha256": hashlib.sha256(wheel.metadata).hexdigest()}
    row: dict[str, Any] = {
        "filename": wheel.path.name,
        "url": f"../../files/{wheel.path.name}",
        "hashes": {"sha256": wheel.sha256},
        "size": wheel.path.stat().st_size,
        "core-metadata": metadata,
        "dist-info-metadata": metadata,
        "yanked": withdrawn.get(wheel.path.name, False),
    }
    if wheel.requires_python:
        row["requires-python"] = wheel.requires_python
    return row


def _catalog_document(releases: Iterable[Release], wheels: Sequence[Wheel]) -> dict[str, Any]:
    """What the catalog offers, for programs: `catalog.json`."""
    by_entry = groupby(releases, key=lambda release: release.manifest.id)
    entries = [_entry_document(list(of_entry)) for _, of_entry in by_entry]
    hashes = {wheel.path.name: wheel.sha256 for wheel in wheels}
    return {"catalog_version": CATALOG_VERSION, "entries": entries, "files": hashes}


def _entry_document(releases: Sequence[Release]) -> dict[str, Any]:
    """One entry: its newest manifest that is not yanked, and all its releases."""
    newest = next((release for release in releases if not release.yanked), releases[0])
    document = newest.manifest.model_dump(mode="json", by_alias=True)
    document["distribution"] = newest.wheel.name
    document["releases"] = [
        {
            "version": str(release.wheel.version),
            "file": release.wheel.path.name,
            "sha256": release.wheel.sha256,
            "requires_python": release.wheel.requires_python,
            "requirements": release.requirements,
            "yanked": release.yanked,
        }
        for release in releases
    ]
    return document


def _json(document: object) -> str:
    """A document as indented JSON with a line feed at its end."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, content: str | bytes) -> None:
    """Write a file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)

"""Installs a catalog's entries at a client: hash-checked, into this or another environment.

Owns reading a published catalog, the calls of pip, and the finding of what they changed. pip is
told the catalog as its only index and takes no file whose hash is not the catalog's. Never starts
a handler, and never touches the state of one.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catalogzero.entry.manifest import Manifest
from catalogzero.entry.pip import only_index, pip_command, run_tool
from catalogzero.errors import ConfigError, UnreachableError

FETCH_TIMEOUT_S = 20.0

_LIST = (
    "import importlib.metadata as m, json;"
    "print(json.dumps({d.metadata['Name'].lower().replace('_', '-'): d.version"
    " for d in m.distributions()}))"
)


@dataclass(frozen=True)
class Release:
    """One version of an entry, as the catalog offers it."""

    version: str
    sha256: str
    requirements: str
    yanked: str | None = None


@dataclass(frozen=True)
class Offer:
    """One entry, as the catalog offers it."""

    id: str
    distribution: str
    manifest: Manifest
    releases: list[Release]

    def release(self, version: str | None) -> Release:
        """The release of a version; the newest that is not yanked where none is named.

        Raises:
            ConfigError: There is no such release.
        """
        fitting = [
            release
            for release in self.releases
            if release.version == version or (version is None and not release.yanked)
        ]
        if not fitting:
            known = ", ".join(release.version for release in self.releases)
            raise ConfigError(f"{self.id} has no release {version or 'in use'}; there are: {known}")
        return fitting[0]


@dataclass(frozen=True)
class Catalog:
    """A published catalog: a URL, or the folder of a site."""

    place: str
    entries: dict[str, Offer] = field(default_factory=dict)

    def find(self, entry_id: str) -> Offer:
        """An entry.

        Raises:
            ConfigError: The catalog has none of that id.
        """
        if entry_id not in self.entries:
            known = ", ".join(sorted(self.entries)) or "none"
            raise ConfigError(f"{self.place} has no entry {entry_id!r}; there are: {known}")
        return self.entries[entry_id]

    @property
    def index_url(self) -> str:
        """The address of its simple index."""
        return f"{_url(self.place)}/simple"


@dataclass(frozen=True)
class Change:
    """What an installation changed: distribution → versions before and after."""

    before: dict[str, str]
    after: dict[str, str]

    def lines(self) -> list[str]:
        """The changes, a line each."""
        names = sorted(self.before.keys() | self.after.keys())
        return [
            f"{name} {self.before.get(name, '(new)')} -> {self.after.get(name, '(removed)')}"
            for name in names
            if self.before.get(name) != self.after.get(name)
        ]


def open_catalog(place: str) -> Catalog:
    """Read a catalog's offer.

    Raises:
        UnreachableError: Nobody answers at that address.
        ConfigError: What answers is no catalog.
    """
    text = _read(place, "catalog.json")
    try:
        document = json.loads(text)
        offers = [_offer(entry) for entry in document["entries"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{place} is no catalog: its catalog.json cannot be read") from error
    return Catalog(place, {offer.id: offer for offer in offers})


def _offer(entry: Mapping[str, Any]) -> Offer:
    """One entry of catalog.json."""
    releases = [
        Release(told["version"], told["sha256"], told["requirements"], told["yanked"])
        for told in entry["releases"]
    ]
    own = {key: value for key, value in entry.items() if key in Manifest.model_fields}
    return Offer(entry["id"], entry["distribution"], Manifest.model_validate(own), releases)


def install(
    catalog: Catalog, entry_id: str, *, version: str | None = None, python: str | None = None
) -> Change:
    """Install a release and all that it needs, every file checked against the catalog's hashes.

    Args:
        catalog: Where from.
        entry_id: Which entry.
        version: Which release; the newest by default. An older one is a rollback.
        python: The interpreter of the environment; this one by default.

    Raises:
        ConfigError: No such release, or the catalog contradicts itself.
        CatalogZeroError: pip failed; nothing of the entry changed.
    """
    offer = catalog.find(entry_id)
    release = offer.release(version)
    requirements = _read(catalog.place, release.requirements)
    if f"--hash=sha256:{release.sha256}" not in requirements:
        raise ConfigError(
            f"{catalog.place} contradicts itself: {release.requirements} does not name the hash "
            "that catalog.json gives; ask the vendor"
        )
    before = installed(python)
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder) / "requirements.txt"
        pinned.write_text(requirements, "utf-8")
        options = ["--require-hashes", "--only-binary=:all:", "--index-url", catalog.index_url]
        _pip(python, "install", *options, "-r", str(pinned))
    return Change(before, installed(python))


def remove(distribution: str, *, python: str | None = None) -> Change:
    """Take an entry's package away; what it needed stays, and so does its state.

    Raises:
        ConfigError: It is not installed there.
        CatalogZeroError: pip failed.
    """
    before = installed(python)
    if distribution not in before:
        raise ConfigError(f"{distribution} is not installed in {python or sys.executable}")
    _pip(python, "uninstall", "--yes", distribution)
    return Change(before, installed(python))


def installed(python: str | None = None) -> dict[str, str]:
    """What is installed in an environment: normalised name → version."""
    found: dict[str, str] = json.loads(run_tool([python or sys.executable, "-c", _LIST]))
    return found


def _pip(python: str | None, verb: str, *arguments: str) -> None:
    """Run pip for an environment, with no index but the one named."""
    there = ["--python", python or sys.executable, "--disable-pip-version-check", "--no-input"]
    run_tool([*pip_command(), *there, verb, "--quiet", *arguments], env=only_index())


def _url(place: str) -> str:
    """A catalog's place as a URL without a slash at its end."""
    url = place if "://" in place else Path(place).resolve().as_uri()
    return url.rstrip("/")


def _read(place: str, name: str) -> str:
    """One text file of a catalog.

    Raises:
        UnreachableError: Nobody answers.
        ConfigError: It is not there.
    """
    if "://" not in place:
        path = Path(place) / name
        if not path.is_file():
            raise ConfigError(f"{place} is no catalog: it has no {name}")
        return path.read_text("utf-8")
    import httpx

    url = f"{_url(place)}/{name}"
    try:  # redirects are not followed
        answer = httpx.get(url, timeout=FETCH_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise UnreachableError(f"{url} does not answer: {error}") from error
    if answer.status_code != httpx.codes.OK:
        raise ConfigError(f"{url} answers {answer.status_code}: name the catalog's own address")
    return answer.text

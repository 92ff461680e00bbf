"""Installs a catalog's entries at a client: hash-checked, into this or another environment.

Owns reading a published catalog, the calls of pip, and the finding of what they changed. pip is
told the catalog as its only index and takes no file whose hash is not the catalog's. Never starts
a handler, and never touches the state of one.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from catalogzero.config.settings import is_loopback, problems_of
from catalogzero.entry.manifest import Manifest
from catalogzero.entry.pip import only_index, pip_command, run_tool
from catalogzero.errors import ConfigError, UnreachableError

FETCH_TIMEOUT_S = 20.0

_LIST = (
    "import importlib.metadata as m, json;"
    "print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()}))"
)
_PROVIDERS = (
    "import importlib.metadata as m, json, sys;"
    "print(json.dumps([e.dist.name for e in m.entry_points(group='catalogzero.entries')"
    " if e.name == sys.argv[1]]))"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WHEEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl")
_REQUIREMENTS = re.compile(r"requirements/[A-Za-z0-9][A-Za-z0-9._+!-]*\.txt")
_PIN = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]*)==[A-Za-z0-9.!+_-]+(?: --hash=sha256:[0-9a-f]{64})+"
)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
MAX_ANSWER_BYTES = 32 << 20


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
    hashes: frozenset[str] = frozenset()
    """The SHA-256 of every wheel that it has."""

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
        ConfigError: The address is neither https nor this machine's, or what answers is no catalog.
    """
    parts = urlsplit(place)
    here = parts.scheme == "http" and is_loopback(parts.hostname or "")
    if "://" in place and parts.scheme != "https" and not here:
        raise ConfigError(f"{place}: a catalog's address is https://…, or http to this machine")
    text = _read(place, "catalog.json")
    try:
        document = json.loads(text)
        offers = [_offer(entry) for entry in document["entries"]]
        files = {str(name): str(digest) for name, digest in document["files"].items()}
    except ValidationError as error:
        told = "; ".join(f"{name}: {why}" for name, why in problems_of(error))
        raise ConfigError(f"{place}: a manifest in its catalog.json is wrong: {told}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{place} is no catalog: its catalog.json cannot be read") from error
    for name, digest in files.items():
        if not (_WHEEL.fullmatch(name) and _SHA256.fullmatch(digest)):
            raise ConfigError(f"{place} is refused: {name!r} is not a wheel's name with its hash")
    ids = [offer.id for offer in offers]
    names = [normal(offer.distribution) for offer in offers]
    if doubled := [one for one in ids if ids.count(one) > 1]:
        raise ConfigError(f"{place} is refused: it has two entries {doubled[0]!r}")
    if doubled := [one for one in names if names.count(one) > 1]:
        raise ConfigError(f"{place} is refused: two of its entries are of {doubled[0]!r}")
    return Catalog(place, dict(zip(ids, offers, strict=True)), frozenset(files.values()))


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
    if not _REQUIREMENTS.fullmatch(release.requirements):
        raise ConfigError(f"{catalog.place} is refused: {release.requirements!r} is no file of it")
    requirements = _pinned(catalog, release.requirements)
    if f"--hash=sha256:{release.sha256}" not in requirements:
        raise ConfigError(
            f"{catalog.place} contradicts itself: {release.requirements} does not name the hash "
            "that catalog.json gives; ask the vendor"
        )
    for other in _providers(entry_id, python):
        if other != normal(offer.distribution):
            raise ConfigError(
                f"{other} provides an entry {entry_id!r} here already: remove it first, or install "
                f"{offer.distribution} into another environment"
            )
    before = installed(python)
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder) / "requirements.txt"
        pinned.write_text(requirements, "utf-8")
        options = ["--require-hashes", "--only-binary=:all:", "--index-url", catalog.index_url]
        _pip(python, "install", *options, "-r", str(pinned))
    return Change(before, installed(python))


def _pinned(catalog: Catalog, name: str) -> str:
    """A requirements file of a catalog, written anew from what was understood of it.

    Raises:
        ConfigError: A line is more than a pin, a hash is not of the catalog's own files, or two
            names are one.
    """
    place, pins = f"{catalog.place}/{name}", dict[str, str]()
    lines = (line.strip() for line in _read(catalog.place, name).replace("\\\n", " ").splitlines())
    for line in filter(None, lines):
        found = _PIN.fullmatch(" ".join(line.split()))
        if found is None:
            raise ConfigError(f"{place} is refused: {line[:80]!r} is not name==version with a hash")
        if set(_HASH.findall(line)) - catalog.hashes:
            raise ConfigError(f"{place} is refused: {line[:80]!r} names a file of no catalog.json")
        if pins.setdefault(normal(found[1]), found[0]) != found[0]:
            raise ConfigError(f"{place} is refused: it names {normal(found[1])} twice")
    return "".join(f"{pin}\n" for pin in pins.values())


def _providers(entry_id: str, python: str | None) -> list[str]:
    """The distributions that provide an entry in an environment."""
    found = json.loads(run_tool([python or sys.executable, "-c", _PROVIDERS, entry_id]))
    return sorted({normal(name) for name in found})


def normal(name: str) -> str:
    """A distribution's name, normalised (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def remove(distribution: str, *, python: str | None = None) -> Change:
    """Take an entry's package away; what it needed stays, and so does its state.

    Raises:
        ConfigError: It is not installed there.
        CatalogZeroError: pip failed.
    """
    before = installed(python)
    if normal(distribution) not in before:
        raise ConfigError(f"{distribution} is not installed in {python or sys.executable}")
    _pip(python, "uninstall", "--yes", distribution)
    return Change(before, installed(python))


def installed(python: str | None = None) -> dict[str, str]:
    """What is installed in an environment: normalised name → version."""
    found: dict[str, str] = json.loads(run_tool([python or sys.executable, "-c", _LIST]))
    return {normal(name): version for name, version in found.items()}


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
        plain = {"Accept-Encoding": "identity"}
        with httpx.stream("GET", url, headers=plain, timeout=FETCH_TIMEOUT_S) as answer:
            if answer.status_code != httpx.codes.OK:
                told = f"{url} answers {answer.status_code}: name the catalog's own address"
                raise ConfigError(told)
            body = bytearray()
            for part in answer.iter_raw():  # no coding is unpacked, however small it came
                body += part
                if len(body) > MAX_ANSWER_BYTES:
                    raise ConfigError(f"{url} is longer than a catalog's file may be")
    except httpx.HTTPError as error:
        raise UnreachableError(f"{url} does not answer: {error}") from error
    return body.decode("utf-8", "replace")

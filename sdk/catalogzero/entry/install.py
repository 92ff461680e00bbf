"""Installs a catalog's entries at a client: hash-checked, into this or another environment.

Owns reading a published catalog, the calls of pip, and the finding of what they changed. pip gets
the catalog as its only index and takes no file whose hash is not the catalog's. Never starts a
handler, and never touches the state of one.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict
from urllib.parse import urlsplit

from pydantic import ValidationError

from catalogzero.config.address import is_loopback
from catalogzero.config.settings import problems_of
from catalogzero.entry.catalog_file import CATALOG_NAME, Catalog, Lock, Offer, Release, normal
from catalogzero.entry.manifest import Manifest, parse_manifest
from catalogzero.entry.pip import only_index, pip_command, run_tool
from catalogzero.errors import ConfigError, UnreachableError

FETCH_TIMEOUT_S = 20.0
MAX_ANSWER_BYTES = 32 << 20

_PIN = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]*)==[A-Za-z0-9.!+_-]+(?: --hash=sha256:[0-9a-f]{64})+"
)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_GLIBC = re.compile(r"manylinux_(\d+)_(\d+)_(\w+)")
_LOOK = """
import importlib.metadata as m, importlib.util as u, json, pathlib, platform, sys, sysconfig
points = [p for p in m.entry_points(group="catalogzero.entries") if p.name == sys.argv[1]]
spec = u.find_spec(points[0].value) if points else None
folders = list(spec.submodule_search_locations or []) if spec else []
files = [p for f in folders if (p := pathlib.Path(f) / "catalogzero.toml").is_file()]
print(json.dumps({
    "python": "%d.%d" % sys.version_info[:2],
    "machine": sysconfig.get_platform().rpartition("-")[2],
    "glibc": [int(n) for n in platform.libc_ver()[1].split(".") if n.isdigit()],
    "distributions": {d.metadata["Name"]: d.version for d in m.distributions()},
    "providers": [p.dist.name for p in points],
    "manifest": files[0].read_text("utf-8") if files else "",
}))
"""


class Environment(TypedDict):
    """What an interpreter says of its environment and of one entry in it."""

    python: str
    """Version, such as `3.12`."""
    machine: str
    """Such as `x86_64`."""
    glibc: list[int]
    """Version of its C library, such as `[2, 36]`; empty where that is musl."""
    distributions: dict[str, str]
    """Normalised name → version."""
    providers: list[str]
    """The distributions that provide the entry, normalised."""
    manifest: str
    """The entry's manifest; empty where it is not installed."""


@dataclass(frozen=True)
class PublishedCatalog:
    """A catalog at its place: a URL, or the folder of a site."""

    place: str
    content: Catalog

    def find(self, entry_id: str) -> Offer:
        """An entry.

        Raises:
            ConfigError: The catalog has none of that id.
        """
        for offer in self.content.entries:
            if offer.id == entry_id:
                return offer
        known = ", ".join(sorted(offer.id for offer in self.content.entries)) or "none"
        raise ConfigError(f"{self.place} has no entry {entry_id!r}; there are: {known}")

    @property
    def index_url(self) -> str:
        """The address of its simple index."""
        url = self.place if "://" in self.place else Path(self.place).resolve().as_uri()
        return f"{url.rstrip('/')}/simple"


@dataclass(frozen=True)
class InstalledChange:
    """What an installation changed.

    Attributes:
        before: Distribution → version, before it.
        after: The same after it.
        manifests: The entry's manifest before and after; None where it was not installed.
    """

    before: dict[str, str]
    after: dict[str, str]
    manifests: tuple[Manifest | None, Manifest | None] = (None, None)

    def lines(self) -> list[str]:
        """The changes, a line each."""
        names = sorted(self.before.keys() | self.after.keys())
        return [
            f"{name} {self.before.get(name, '(new)')} -> {self.after.get(name, '(removed)')}"
            for name in names
            if self.before.get(name) != self.after.get(name)
        ]


def open_catalog(place: str) -> PublishedCatalog:
    """Read what a catalog offers.

    Raises:
        UnreachableError: Nobody answers at that address.
        ConfigError: The address is neither https nor this machine's, or what answers is not a
            catalog.
    """
    parts = urlsplit(place)
    here = parts.scheme == "http" and is_loopback(parts.hostname or "")
    if "://" in place and parts.scheme != "https" and not here:
        raise ConfigError(f"{place}: a catalog's address is https://…, or http to this machine")
    try:
        document = json.loads(read_published(place, CATALOG_NAME))
        return PublishedCatalog(place, Catalog.model_validate(document))
    except ValidationError as error:
        faults = "; ".join(f"{name}: {why}" for name, why in problems_of(error))
        raise ConfigError(f"{place} is refused: {CATALOG_NAME}: {faults}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: {CATALOG_NAME} is not JSON: {error}") from error


def install(
    catalog: PublishedCatalog,
    entry_id: str,
    *,
    version: str | None = None,
    python: str | None = None,
) -> InstalledChange:
    """Install a release and all that it needs, every file checked against the catalog's hashes.

    Args:
        catalog: Where from.
        entry_id: Which entry.
        version: Which release; the newest by default. An older one is a rollback.
        python: The interpreter of the environment; this one by default.

    Raises:
        ConfigError: No such release, none for that Python and platform, or the catalog
            contradicts itself.
        CatalogZeroError: pip failed; nothing of the entry changed.
    """
    offer = catalog.find(entry_id)
    release = offer.release(version)
    before = look(entry_id, python)
    pins = pins_of(catalog, lock_for(before, offer, release).file)
    if f"--hash=sha256:{release.sha256}" not in pins:
        raise ConfigError(
            f"{catalog.place} contradicts itself: the lock of {entry_id} {release.version} does "
            f"not name the hash that {CATALOG_NAME} gives; ask the vendor"
        )
    # The entry point of another distribution of this id would answer in its place.
    for other in before["providers"]:
        if other != normal(offer.distribution):
            raise ConfigError(
                f"{other} provides an entry {entry_id!r} here already: remove it first, or install "
                f"{offer.distribution} into another environment"
            )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requirements.txt"
        path.write_text(pins, "utf-8")
        options = ["--require-hashes", "--only-binary=:all:", "--index-url", catalog.index_url]
        _pip(python, "install", *options, "-r", str(path))
    after = look(entry_id, python)
    texts = (before["manifest"], after["manifest"])
    old, new = (parse_manifest(text, entry_id) if text else None for text in texts)
    return InstalledChange(before["distributions"], after["distributions"], (old, new))


def lock_for(environment: Environment, offer: Offer, release: Release) -> Lock:
    """The lock of a release that an environment can install: for its Python, machine and libc.

    Of several that of the newest glibc which is not newer than the environment's is chosen.
    """
    fitting: list[tuple[list[int], Lock]] = []
    for lock in release.locks:
        needed: list[int] = []
        if found := _GLIBC.fullmatch(lock.platform):
            needed = [int(found[1]), int(found[2])]
        musl = lock.platform.startswith("musllinux")
        # A catalog of 0.1 has one lock for every machine, without a Python.
        if not lock.python or (
            lock.python == environment["python"]
            and lock.platform.endswith(f"_{environment['machine']}")
            and musl == (not environment["glibc"])
            and needed <= environment["glibc"]
        ):
            fitting.append((needed, lock))
    if fitting:
        return max(fitting, key=lambda one: one[0])[1]
    served = ", ".join(str(lock) for lock in release.locks)
    raise ConfigError(
        f"{offer.id} {release.version} is not published for Python {environment['python']} on this "
        f"{environment['machine']} machine, but for: {served or 'no machine'}; --python names "
        "another interpreter"
    )


def pins_of(catalog: PublishedCatalog, name: str) -> str:
    """A lock of a catalog, written again from what was understood of it.

    Raises:
        ConfigError: A line is more than a pin, a hash is not of the catalog's own files, or two
            names are one.
    """
    place, pins = f"{catalog.place}/{name}", dict[str, str]()
    hashes = set(catalog.content.files.values())
    lines = (
        line.strip()
        for line in read_published(catalog.place, name).replace("\\\n", " ").splitlines()
    )
    for line in filter(None, lines):
        found = _PIN.fullmatch(" ".join(line.split()))
        if found is None:
            raise ConfigError(f"{place} is refused: {line[:80]!r} is not name==version with a hash")
        if set(_HASH.findall(line)) - hashes:
            raise ConfigError(f"{place} is refused: {line[:80]!r} is not a file of the catalog")
        if pins.setdefault(normal(found[1]), found[0]) != found[0]:
            raise ConfigError(f"{place} is refused: it names {normal(found[1])} twice")
    return "".join(f"{pin}\n" for pin in pins.values())


def look(entry_id: str, python: str | None = None) -> Environment:
    """What is installed in an environment, and which entry of an id.

    Raises:
        ConfigError: There is no such interpreter.
    """
    seen: Environment = json.loads(run_tool([python or sys.executable, "-c", _LOOK, entry_id]))
    names = {normal(name): version for name, version in seen["distributions"].items()}
    providers = sorted({normal(name) for name in seen["providers"]})
    return {**seen, "distributions": names, "providers": providers}


def remove(distribution: str, *, python: str | None = None) -> InstalledChange:
    """Take an entry's package away; what it needed stays, and so does its state.

    Raises:
        ConfigError: It is not installed there.
        CatalogZeroError: pip failed.
    """
    before = look(distribution, python)["distributions"]
    if normal(distribution) not in before:
        raise ConfigError(f"{distribution} is not installed in {python or sys.executable}")
    _pip(python, "uninstall", "--yes", distribution)
    return InstalledChange(before, look(distribution, python)["distributions"])


def _pip(python: str | None, verb: str, *arguments: str) -> None:
    """Run pip for an environment, with no index but the one named."""
    there = ["--python", python or sys.executable, "--disable-pip-version-check", "--no-input"]
    run_tool([*pip_command(), *there, verb, "--quiet", *arguments], env=only_index())


def read_published(place: str, name: str) -> str:
    """One text file of a catalog.

    Raises:
        UnreachableError: Nobody answers.
        ConfigError: It is not there.
    """
    if "://" not in place:
        path = Path(place) / name
        if not path.is_file():
            raise ConfigError(f"{place} is not a catalog: it has no {name}")
        return path.read_text("utf-8")
    import httpx

    url = f"{place.rstrip('/')}/{name}"
    try:
        # Redirects are not followed: the hashes would be another place's. No coding is unpacked,
        # for a small body may become a huge one.
        plain = {"Accept-Encoding": "identity"}
        with httpx.stream("GET", url, headers=plain, timeout=FETCH_TIMEOUT_S) as answer:
            if answer.status_code != httpx.codes.OK:
                status = f"{url} answers {answer.status_code}: name the catalog's own address"
                raise ConfigError(status)
            body = bytearray()
            for part in answer.iter_raw():
                body += part
                if len(body) > MAX_ANSWER_BYTES:
                    raise ConfigError(f"{url} is longer than a catalog's file may be")
    except httpx.HTTPError as error:
        raise UnreachableError(f"{url} does not answer: {error}") from error
    return body.decode("utf-8", "replace")

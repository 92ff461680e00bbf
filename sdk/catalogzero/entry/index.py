"""A catalog as a static site: what pip reads, what programs read, what people read.

Owns the site's folder: `files/` with every wheel and its metadata (PEP 658), `simple/` (PEP 503
pages with SHA-256, PEP 691 JSON beside them), `requirements/` (a lock of each release for each
machine that it serves), `catalog.json`, and a page per entry. The same wheels give the same bytes.
Wheels are never imported. What was published before stays, unless it is given again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from catalogzero.entry import site_pages
from catalogzero.entry.catalog_file import CATALOG_NAME, Catalog, Lock, Offer, Release
from catalogzero.entry.lock import SDK, Origin, lock_entries, targets_for
from catalogzero.entry.manifest import Manifest
from catalogzero.entry.wheels import Wheel, check_entries, read_wheel, sdk_wheel
from catalogzero.errors import ConfigError


@dataclass(frozen=True)
class CatalogReport:
    """What a build wrote.

    Attributes:
        out: The site's folder.
        entries: Entry id → newest version that is not yanked.
        serves: Entry id → the machines that this version is locked for, such as
            `Python 3.12 on linux_x86_64`.
        wheels: How many wheels the site has.
        bytes: How large they are.
    """

    out: Path
    entries: dict[str, str]
    serves: dict[str, list[str]]
    wheels: int
    bytes: int


def build_catalog(
    dists: Sequence[Path],
    out: Path,
    *,
    origin: Origin | None = None,
    pythons: Sequence[str] = (),
    platforms: Sequence[str] = (),
    yank: Mapping[str, str] | None = None,
    replace: bool = False,
) -> CatalogReport:
    """Publish wheels with everything that they need into a folder.

    Args:
        dists: Wheels, or folders that hold them.
        out: The site's folder; one that is a catalog already is added to.
        origin: Where dependencies come from.
        pythons: The Python versions to serve; by default all that an entry and catalogzero allow.
        platforms: The platforms to serve; by default this machine's.
        yank: `id==version` → why it should not be installed any more.
        replace: Allow a file of a name that is published to change its content.

    Raises:
        ConfigError: A file is not a wheel, no wheel is an entry, or a published file would change.
        CatalogZeroError: An entry cannot be locked.
    """
    with tempfile.TemporaryDirectory() as temporary:
        stage = Path(temporary)
        own = own_wheels(dists, stage)
        entries = [wheel for wheel in own if wheel.entries]
        names = {wheel.name for wheel in own}
        given = {wheel.path.name for wheel in own}
        earlier = [wheel for wheel in wheels_in(out / "files") if wheel.path.name not in given]
        # Only its refusals count here: they come before minutes of locking, not behind them.
        releases_of([*earlier, *own], {**published_yanks(out), **(yank or {})})
        (stage / "own" / "files").mkdir(parents=True)
        for wheel in (*own, *(wheel for wheel in earlier if wheel.name in names)):
            shutil.copyfile(wheel.path, stage / "own" / "files" / wheel.path.name)
        _write_simple(stage / "own", wheels_in(stage / "own" / "files"), {})

        locks: dict[str, str] = {}
        for number, target in enumerate(targets_for(entries, pythons, platforms)):
            folder = stage / f"target-{number}"
            made = lock_entries(
                entries, target, own=stage / "own", folder=folder, origin=origin or Origin()
            )
            for wheel in entries:
                for entry_id in wheel.entries if wheel.path in made else ():
                    where = f"{entry_id}-{wheel.version}-py{target.python}-{target.platform_name}"
                    locks[f"requirements/{where}.txt"] = made[wheel.path]

        files = {wheel.path.name: wheel for wheel in own}
        for folder in stage.glob("target-*"):
            files = {wheel.path.name: wheel for wheel in wheels_in(folder)} | files
        copy_wheels(files.values(), out, replace=replace)
        for name, text in locks.items():
            _write(out / name, text)
    return publish(out, yank or {})


def publish(out: Path, yank: Mapping[str, str]) -> CatalogReport:
    """Write every page of a site again from the wheels and the locks that it has.

    Raises:
        ConfigError: A wheel cannot be read, or `yank` names a release that is not there.
    """
    wheels = wheels_in(out / "files")
    releases = releases_of(wheels, {**published_yanks(out), **yank})
    for wheel in wheels:
        _write(out / "files" / f"{wheel.path.name}.metadata", wheel.metadata)
    withdrawn = {wheel.path.name: why for _, wheel, why in releases if why}
    _write_simple(out, wheels, withdrawn)
    offers = []
    for entry_id, grouped in groupby(releases, key=lambda release: release[0].id):
        of_entry = list(grouped)
        manifest, newest, _ = next((one for one in of_entry if not one[2]), of_entry[0])
        listed = [
            Release(
                version=str(wheel.version),
                file=wheel.path.name,
                sha256=wheel.sha256,
                requires_python=wheel.requires_python,
                locks=locks_of(out, f"{entry_id}-{wheel.version}"),
                yanked=why,
            )
            for _, wheel, why in of_entry
        ]
        about = {"distribution": newest.name, "releases": listed}
        offers.append(Offer.model_validate({**manifest.model_dump(by_alias=True), **about}))
    hashes = {wheel.path.name: wheel.sha256 for wheel in wheels}
    document = Catalog(catalog_version=1, entries=offers, files=hashes)
    _write(out / CATALOG_NAME, _json(document.model_dump(mode="json", by_alias=True)))
    site_pages.write_pages(out, offers)
    return CatalogReport(
        out,
        entries={offer.id: offer.version for offer in offers},
        serves={offer.id: [str(lock) for lock in offer.newest.locks] for offer in offers},
        wheels=len(wheels),
        bytes=sum(wheel.path.stat().st_size for wheel in wheels),
    )


def own_wheels(dists: Sequence[Path], folder: Path) -> list[Wheel]:
    """The wheels given, with one of the SDK where none was."""
    files: set[Path] = set()
    for path in dists:
        if path.is_dir():
            files |= set(path.glob("*.whl"))
        elif not path.is_file():
            raise ConfigError(f"{path} does not exist; build it with `catalogzero build`")
        elif not path.name.endswith(".tar.gz"):
            # `dist/*` names the sdist too, which `build` writes beside the wheel.
            files.add(path)
    wheels = [read_wheel(path) for path in sorted(files, key=lambda path: path.name)]
    if not any(wheel.entries for wheel in wheels):
        given = ", ".join(str(path) for path in dists)
        raise ConfigError(f"no catalog entry among: {given}; build one with `catalogzero build`")
    for wheel in wheels:
        check_entries(wheel)
    if not any(wheel.name == SDK for wheel in wheels):
        wheels.append(read_wheel(sdk_wheel(folder)))
    return wheels


def wheels_in(folder: Path) -> list[Wheel]:
    """The wheels of a folder, in the order of their names."""
    return [read_wheel(path) for path in sorted(folder.glob("*.whl"))]


def copy_wheels(wheels: Iterable[Wheel], out: Path, *, replace: bool) -> None:
    """Copy wheels into the site; what is published keeps its content, for locks name its hash."""
    changed: dict[str, str] = {}
    for wheel in wheels:
        there = out / "files" / wheel.path.name
        if there.is_file() and (before := read_wheel(there).sha256) != wheel.sha256:
            if not replace:
                raise ConfigError(
                    f"{wheel.path.name} is published with other content; raise its version, "
                    "or say --replace where no client has it yet"
                )
            changed[before] = wheel.sha256
    (out / "files").mkdir(parents=True, exist_ok=True)
    for wheel in wheels:
        shutil.copyfile(wheel.path, out / "files" / wheel.path.name)
    for path in (out / "requirements").glob("*.txt") if changed else ():
        text = path.read_text("utf-8")
        for before, after in changed.items():
            text = text.replace(before, after)
        path.write_text(text, "utf-8")


def published_yanks(out: Path) -> dict[str, str]:
    """What was yanked when the site was last written: `id==version` → reason."""
    try:
        document = Catalog.model_validate_json((out / CATALOG_NAME).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return {
        f"{offer.id}=={release.version}": release.yanked
        for offer in document.entries
        for release in offer.releases
        if release.yanked
    }


def releases_of(
    wheels: Iterable[Wheel], yanks: Mapping[str, str]
) -> list[tuple[Manifest, Wheel, str | None]]:
    """Every entry's releases, newest first, each with the reason why it is yanked, if it is."""
    found = [
        (wheel.manifest(entry_id), wheel, yanks.get(f"{entry_id}=={wheel.version}"))
        for wheel in wheels
        for entry_id in wheel.entries
    ]
    owners: dict[str, str] = {}
    for manifest, wheel, _ in found:
        owner = owners.setdefault(manifest.id, wheel.name)
        if owner != wheel.name:
            raise ConfigError(
                f"{owner} and {wheel.name} both provide the entry {manifest.id!r}: "
                "give one of them another id"
            )
    known = {f"{manifest.id}=={wheel.version}" for manifest, wheel, _ in found}
    if missing := sorted(set(yanks) - known):
        raise ConfigError(f"no release to yank: {', '.join(missing)}; write id==version")
    found.sort(key=lambda release: release[1].version, reverse=True)
    return sorted(found, key=lambda release: release[0].id)


def locks_of(out: Path, release: str) -> list[Lock]:
    """The locks of a release that the site has; that of a site of 0.1 is for any Python."""
    found = []
    for path in (out / "requirements").glob(f"{release}-py3.*.txt"):
        python, _, platform = path.stem.removeprefix(f"{release}-py").partition("-")
        found.append(Lock(python=python, platform=platform, file=f"requirements/{path.name}"))
    if not found and (out / "requirements" / f"{release}.txt").is_file():
        return [Lock(python="", platform="", file=f"requirements/{release}.txt")]
    return sorted(found, key=lambda lock: (int(lock.python.partition(".")[2]), lock.platform))


def _write_simple(out: Path, wheels: Sequence[Wheel], withdrawn: Mapping[str, str]) -> None:
    """The simple index, as pages and as JSON."""
    meta = {"api-version": "1.1"}
    by_name: dict[str, list[Wheel]] = defaultdict(list)
    for wheel in wheels:
        by_name[wheel.name].append(wheel)
    projects = [{"name": name} for name in sorted(by_name)]
    documents: dict[str, dict[str, object]] = {"": {"meta": meta, "projects": projects}}
    for name, of_name in by_name.items():
        rows = []
        for wheel in of_name:
            metadata = {"sha256": hashlib.sha256(wheel.metadata).hexdigest()}
            row: dict[str, object] = {  # the keys are PEP 691's
                "filename": wheel.path.name,
                "url": f"../../files/{wheel.path.name}",
                "hashes": {"sha256": wheel.sha256},
                "size": wheel.path.stat().st_size,
                "core-metadata": metadata,
                "dist-info-metadata": metadata,  # its name of before PEP 714, for older pips
                "yanked": withdrawn.get(wheel.path.name, False),
            }
            if wheel.requires_python:
                row["requires-python"] = wheel.requires_python
            rows.append(row)
        versions = [str(version) for version in sorted({wheel.version for wheel in of_name})]
        documents[name] = {"meta": meta, "name": name, "versions": versions, "files": rows}
    for name, document in documents.items():
        _write(out / "simple" / name / "index.json", _json(document))
        site_pages.write_links(out / "simple" / name, document)


def _json(document: object) -> str:
    """A document as indented JSON with a line feed at its end."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, content: str | bytes) -> None:
    """Write a file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)

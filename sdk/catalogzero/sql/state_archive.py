"""An archive of state: taken of folders and databases in use, checked, and put back.

A tar file with a manifest first, which names every file with its digest. SQLite files are copied by
SQLite's own backup, in one transaction each, everything else as bytes. Knows no outbox and no
schedule.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal, TypedDict

import orjson

from catalogzero.clock import Clock
from catalogzero.config.state_folder import locked, make_private
from catalogzero.errors import ConfigError, FailedError
from catalogzero.sql.sqlite import (
    BUSY_TIMEOUT_S,
    DamagedFileError,
    check_file,
    explain,
    is_damage,
    is_sqlite,
    quarantine,
)
from catalogzero.version import __version__

FORMAT = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20
LEFT_OUT = ("lock", "outbox.reserve")
_DAMAGE = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, KeyError, TypeError)
_BESIDE = ("-wal", "-shm", "-journal", ".part")
_LIST_TRIES = 20

Kind = Literal["handler", "scheduler"]


@dataclass(frozen=True, slots=True)
class StatePlace:
    """Where state lies: the folder of a handler, or the database file of the scheduler."""

    kind: Kind
    name: str
    path: Path


class ArchivedFile(TypedDict):
    """One file of an archive; its name is relative to its part."""

    name: str
    bytes: int
    sha256: str


class ArchivedPart(TypedDict):
    """What was taken of one place."""

    kind: Kind
    name: str
    path: str
    files: list[ArchivedFile]


class StateManifest(TypedDict):
    """What an archive holds, when it was made, and by which release."""

    format: int
    made_at: str
    catalogzero: str
    parts: list[ArchivedPart]


# Taking it


def write_archive(places: Sequence[StatePlace], out: Path, clock: Clock) -> StateManifest:
    """Write an archive of some places while they are used; the file is there whole or not at all.

    Raises:
        ConfigError: The file exists, or a database cannot be read or is damaged.
        FailedError: A folder changed again and again.
    """
    if out.exists():
        raise ConfigError(f"{out} exists: a backup is never overwritten, name another file")
    # Beside the archive: a copy needs as much room as it, and no other user may read one.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        taken = Path(folder)
        parts: list[ArchivedPart] = []
        for number, place in enumerate(places):
            target = taken / str(number)
            target.mkdir(mode=0o700)
            take = _take_folder if place.kind == "handler" else _take_file
            take(place.path, target)
            files = [_described(path, target) for path in _files_in(target)]
            parts.append(
                {"kind": place.kind, "name": place.name, "path": str(place.path), "files": files}
            )
        manifest: StateManifest = {
            "format": FORMAT,
            "made_at": clock.now().isoformat(),
            "catalogzero": __version__,
            "parts": parts,
        }
        packed = taken / "archive"
        descriptor = os.open(packed, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        mode: Literal["w:gz", "w"] = "w:gz" if out.suffix in (".gz", ".tgz") else "w"
        with os.fdopen(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode=mode) as archive:
                text = orjson.dumps(manifest, option=orjson.OPT_INDENT_2)
                _add(archive, MANIFEST, io.BytesIO(text), len(text))
                for number, part in enumerate(parts):
                    for one in part["files"]:
                        with (taken / str(number) / one["name"]).open("rb") as copied:
                            _add(archive, f"{number}/{one['name']}", copied, one["bytes"])
            file.flush()
            os.fsync(file.fileno())
        packed.rename(out)
    return manifest


def _take_folder(folder: Path, target: Path) -> None:
    """Copy a handler's folder."""
    for path in _files_in(folder):
        if is_sqlite(path):
            _take_file(path, target / path.relative_to(folder).parent)
    # After the databases, so that the audit log has at least what these say was sent.
    for _ in range(_LIST_TRIES):
        with ExitStack() as undo:
            wanted, files = [p for p in _files_in(folder) if not is_sqlite(p)], list[IO[bytes]]()
            with suppress(FileNotFoundError):
                files += [undo.enter_context(path.open("rb")) for path in wanted]
            # What was renamed in between, as a log that rotates, would be missed.
            if len(files) < len(wanted) or wanted != [
                path for path in _files_in(folder) if not is_sqlite(path)
            ]:
                continue
            for path, file in zip(wanted, files, strict=True):
                _write_private(target / path.relative_to(folder), file)
            return
    raise FailedError(f"{folder} changes too often to be copied: try again")


def _take_file(path: Path, folder: Path) -> None:
    """Copy a database in one transaction, and look through the copy."""
    import sqlite3

    make_private(folder)
    copy = folder / path.name
    copy.touch(mode=0o600)
    try:
        with (
            closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
    except sqlite3.Error as error:
        raise explain(path, error) from error
    try:
        check_file(copy)
    except DamagedFileError as error:
        raise type(error)(error.message.replace(str(copy), str(path))) from None


def _files_in(folder: Path) -> list[Path]:
    """The files that are worth a copy, in order."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and path.name not in LEFT_OUT
        and not path.name.endswith(_BESIDE)
    )


def _described(path: Path, folder: Path) -> ArchivedFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    name = path.relative_to(folder).as_posix()
    return {"name": name, "bytes": path.stat().st_size, "sha256": digest}


def _add(archive: tarfile.TarFile, name: str, file: IO[bytes], size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    archive.addfile(info, file)


def _write_private(path: Path, file: IO[bytes]) -> None:
    make_private(path.parent)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as copy:
        shutil.copyfileobj(file, copy)
        copy.flush()
        os.fsync(copy.fileno())


# Putting it back


@contextmanager
def opened_archive(path: Path) -> Iterator[tuple[tarfile.TarFile, StateManifest]]:
    """An archive and its manifest.

    Raises:
        ConfigError: It is no archive of state, of a newer release, or damaged.
    """
    with ExitStack() as undo:
        try:
            archive = undo.enter_context(tarfile.open(path))
            file = archive.extractfile(MANIFEST)
            manifest: StateManifest = orjson.loads(file.read(MAX_MANIFEST_BYTES) if file else b"")
            version, writer = manifest["format"], manifest["catalogzero"]
        except _DAMAGE as error:
            raise _damaged(path, error) from None
        if version > FORMAT:
            raise ConfigError(f"{path} was written by a newer release: install {writer} first")
        yield archive, manifest


def _damaged(path: object, error: Exception) -> Exception:
    """The error of an archive's bytes; one of the system that names another file stays."""
    if isinstance(error, OSError) and error.filename is not None:
        return error
    return ConfigError(f"{path} is no archive of `catalogzero state backup`, or damaged: {error}")


def restore(
    archive: tarfile.TarFile,
    manifest: StateManifest,
    places: Mapping[int, Path],
    clock: Clock,
    *,
    force: bool,
    prepare: Callable[[ArchivedPart, Path], None],
) -> dict[int, Path]:
    """Put parts of an archive back; nothing is changed before all of them were checked.

    Args:
        archive: Of `opened_archive`.
        manifest: The same's.
        places: Where parts go, by their number in the manifest.
        clock: Names what is moved aside.
        force: Move aside what is there.
        prepare: Is given each part and its checked copy, before that takes its place.

    Returns:
        What was moved aside, by the part's number.

    Raises:
        ConfigError: A place is in use, or not empty without `force`; or a file is damaged.
    """
    with ExitStack() as undo:
        for place in places.values():
            if place.exists():
                _refuse_used(place, undo, force=force)
        copies: dict[int, Path] = {}
        for number, place in places.items():
            make_private(place.parent)
            copy = place.with_name(f".{place.name}.restoring")
            shutil.rmtree(copy, ignore_errors=True)  # of a restore that was killed
            copy.mkdir(mode=0o700)
            undo.callback(shutil.rmtree, copy, ignore_errors=True)
            for one in manifest["parts"][number]["files"]:
                _extract(archive, number, one, copy)
            prepare(manifest["parts"][number], copy)
            _give_to_owner(copy, place)
            copies[number] = copy
        stamp = clock.now().strftime("%Y%m%dT%H%M%S")
        moved = {}
        for number, place in places.items():
            aside = place.with_name(f"{place.name}.before-{stamp}")
            is_handler = manifest["parts"][number]["kind"] == "handler"
            if _swap(copies[number], place, aside, is_folder=is_handler):
                moved[number] = aside
        return moved


def _refuse_used(place: Path, undo: ExitStack, *, force: bool) -> None:
    """Refuse a place in use, and without `force` one that is not empty; a folder stays locked."""
    if place.is_dir():
        undo.enter_context(locked(place))
    elif _is_open(place):
        raise ConfigError(f"{place} is in use: stop the scheduler first")
    if not force and (_files_in(place) if place.is_dir() else place.stat().st_size):
        raise ConfigError(f"{place} is not empty: --force moves what is there aside")


def _is_open(path: Path) -> bool:
    """Whether another process has a database open; a damaged one counts as not open."""
    import sqlite3

    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as db:
        try:
            # In WAL mode each connection holds a lock for as long as it is open.
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("BEGIN EXCLUSIVE")
            db.execute("ROLLBACK")
        except sqlite3.Error as error:
            return not is_damage(error)
    return False


def _extract(archive: tarfile.TarFile, number: int, one: ArchivedFile, folder: Path) -> None:
    """Write one file of a part, and compare its digest."""
    name = PurePosixPath(one["name"])
    if name.is_absolute() or ".." in name.parts:
        raise ConfigError(f"{archive.name!s}: {name} would lie outside of its folder")
    path = folder / name
    try:
        file = archive.extractfile(f"{number}/{name}")
        if file is None:
            raise ValueError(f"{name} is not in it")
        _write_private(path, file)
        if _described(path, folder) != one:
            raise ValueError(f"{name} is not what was written")
    except _DAMAGE as error:
        raise _damaged(archive.name, error) from None


def _give_to_owner(copy: Path, place: Path) -> None:
    """As root: what is put back belongs to whom the place belongs, as a unit's user."""
    if os.name != "posix" or os.geteuid() != 0:
        return
    owner = (place if place.exists() else place.parent).stat()
    for path in (copy, *copy.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)


def _swap(copy: Path, place: Path, aside: Path, *, is_folder: bool) -> bool:
    """Put a checked copy into its place; whether something was moved aside."""
    if not is_folder:
        # What SQLite keeps beside a database is not the other one's.
        is_there = any(Path(f"{place}{end}").exists() for end in ("", "-wal", "-shm"))
        if is_there:
            quarantine(place, aside)
        (copied,) = copy.iterdir()
        copied.rename(place)
        return is_there
    has_content = place.exists() and bool(_files_in(place))
    if has_content:
        place.rename(aside)
    else:
        shutil.rmtree(place, ignore_errors=True)
    copy.rename(place)
    return has_content

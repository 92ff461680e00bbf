"""SQLite files on the standard library alone: made private, opened, brought forward, explained.

Loads `sqlite3` only where a file is opened: a handler's own process looks at versions, and stays
small.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalogzero.config.state_folder import create_private, open_to_others
from catalogzero.errors import CatalogZeroError, ConfigError, UnreachableError

if TYPE_CHECKING:
    import sqlite3

BUSY_TIMEOUT_S = 30.0
PRAGMAS = ("journal_mode=WAL", "foreign_keys=ON")
"""Of every connection that writes; how durable a commit is (`synchronous`) its owner says."""

DAMAGE_FIX = "put a backup in its place, or move it away to begin a new one"
_MAGIC = b"SQLite format 3\0"
_VERSION_AT = 60


class NewerSchemaError(ConfigError):
    """A newer release wrote the database: it is refused, and nothing was touched."""


class DamagedFileError(ConfigError):
    """The file is not an SQLite database, or a damaged one."""


class LockedFileError(UnreachableError):
    """Another process holds the file's lock, and did not give it up in time."""


def make_file(path: Path) -> None:
    """Make the file where it is missing, empty and of mode 0600, and missing folders of mode 0700.

    SQLite gives `-wal` and `-shm` the mode of the file, so that others can read none of them.

    Raises:
        ConfigError: A folder or the file cannot be made.
    """
    try:
        create_private(path)
        if open_to_others(path):
            text = "others on this machine can read the database %s: chmod 600 %s*"
            logging.getLogger(__name__).warning(text, path, path)
    except OSError as error:
        raise explain(path, error) from error


def open_file(
    path: Path,
    steps: Sequence[str],
    *,
    pragmas: Sequence[str] = ("synchronous=FULL",),
    first_pragmas: Sequence[str] = (),
    writer: str = "release",
    thorough: bool = False,
) -> sqlite3.Connection:
    """A connection to a file, made or brought forward to the newest schema, in autocommit mode.

    Args:
        path: The file, or `:memory:`.
        steps: Scripts, `;` between statements: each brings the schema one version forward, the
            first from an empty file; append only. `user_version` counts them.
        pragmas: Settings of the connection besides `PRAGMAS`.
        first_pragmas: Settings of a new file, before its first table.
        writer: What "a newer …" wrote a file that is refused.
        thorough: Look through the whole file for damage.

    Raises:
        NewerSchemaError: A newer release wrote the file.
        DamagedFileError: It is not a database, or a damaged one.
        LockedFileError: Another process holds it.
        ConfigError: It cannot be used for another reason, such as its mode.
    """
    import sqlite3

    # Before SQLite makes it: a file that is private later was open to others until then.
    if path.name != ":memory:":
        make_file(path)
    with ExitStack() as undo:
        try:
            db = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            undo.push(closing(db))
            version = _ask(db, "user_version")
            refuse_newer(path, version, len(steps), writer)
            if thorough and _ask(db, "quick_check(1)") != "ok":
                raise sqlite3.DatabaseError("a page of it is damaged")
            for pragma in (*(() if version else first_pragmas), *PRAGMAS, *pragmas):
                _ask(db, pragma)
            if version < len(steps):
                _bring_forward(db, steps)
        except sqlite3.Error as error:
            raise explain(path, error) from error
        undo.pop_all()
        return db


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection to a file that is there, which changes nothing: neither schema nor mode.

    Raises:
        DamagedFileError: It is not a database, or a damaged one.
        LockedFileError: Another process holds it.
        ConfigError: It cannot be read.
    """
    import sqlite3

    # A file whose folder this user may not write has no place for SQLite's shared memory.
    for how in ("mode=ro", "immutable=1"):
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?{how}",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            _ask(db, "schema_version")
            return db
        except sqlite3.Error as error:
            db.close()
            found: sqlite3.Error = error
            if getattr(error, "sqlite_errorname", "") != "SQLITE_CANTOPEN":
                break
    raise explain(path, found) from found


def _ask(db: sqlite3.Connection, pragma: str) -> Any:
    """The value that a pragma answers, if any."""
    row = db.execute(f"PRAGMA {pragma}").fetchone()
    return row[0] if row else None


def _bring_forward(db: sqlite3.Connection, steps: Sequence[str]) -> None:
    """Take the steps that are left, in one transaction."""
    with db:
        db.execute("BEGIN IMMEDIATE")
        version = _ask(db, "user_version")  # another process may have been faster
        for script in steps[version:]:
            for statement in script.split(";"):
                db.execute(statement)
        db.execute(f"PRAGMA user_version={len(steps)}")
    _ask(db, "wal_checkpoint(TRUNCATE)")  # `version_in` reads no WAL


def check_file(path: Path, timeout_s: float = BUSY_TIMEOUT_S) -> None:
    """Look through a whole file for damage.

    Raises:
        DamagedFileError: A page of it is damaged, or it is no database; it was left untouched.
        LockedFileError: Another process holds it.
    """
    import sqlite3

    try:
        with closing(sqlite3.connect(path, timeout=timeout_s)) as db:
            found = _ask(db, "quick_check(1)")
        if found != "ok":
            raise sqlite3.DatabaseError(f"a page of it is damaged ({' '.join(found.split())})")
    except sqlite3.Error as error:
        raise explain(path, error) from error


def is_sqlite(path: Path) -> bool:
    """Whether a file is an SQLite database, by its first bytes."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC
    return False


def version_in(path: Path) -> int:
    """The schema version in a file's header, read without SQLite; 0 without one, or damaged."""
    try:
        with path.open("rb") as file:
            head = file.read(_VERSION_AT + 4)
    except FileNotFoundError:
        return 0
    return int.from_bytes(head[_VERSION_AT:], "big") if head.startswith(_MAGIC) else 0


def refuse_newer(database: Path | str, found: int, known: int, writer: str = "release") -> None:
    """Raise `NewerSchemaError` where `found` is a later schema version than this release knows."""
    if found > known:
        raise NewerSchemaError(
            f"{database} was written by a newer {writer} (schema {found}, this one knows {known}): "
            f"install that {writer} again, or name another place; nothing was touched"
        )


def quarantine(path: Path, target: Path) -> None:
    """Rename a damaged file, with what SQLite keeps beside it; an earlier `target` is replaced."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{target}{suffix}").unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{target}{suffix}")


def is_damage(error: BaseException) -> bool:
    """Whether an error of `sqlite3` means a damaged file, not one that is locked or full."""
    import sqlite3

    return type(error) is sqlite3.DatabaseError


def explain(path: Path | str, error: BaseException) -> CatalogZeroError:
    """Our error for one of `sqlite3` or of the system: it names the file, the cause and the fix."""
    cause = (isinstance(error, OSError) and error.strerror) or str(error)
    code = getattr(error, "sqlite_errorname", "")
    what = f"cannot open the database {path}: {cause}"
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return LockedFileError(f"{what}: another process holds it; end that one, or try again")
    if is_damage(error):
        return DamagedFileError(f"{what}: {DAMAGE_FIX}")
    return ConfigError(f"{what}: name another file, or let this user write it and its folder")

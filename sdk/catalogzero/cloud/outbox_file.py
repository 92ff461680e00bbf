"""The outbox's file: opened, checked, and written in transactions that survive a full disk.

Owns SQLite's settings, the migrations as they are run, the damaged file that is set aside, and
the reserve. Knows nothing of what the tables mean.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from catalogzero.clock import Clock
from catalogzero.cloud.outbox_schema import MIGRATIONS, refuse_newer
from catalogzero.errors import ConfigError

T = TypeVar("T")
P = ParamSpec("P")
FileT = TypeVar("FileT", bound="OutboxFile")

RESERVE_BYTES = 1 << 20
_BUSY_TIMEOUT_S = 30.0
_FREE_PAGES = 2_048
_CHECKPOINT_PAGES = 1_000


class OutboxFile:
    """The SQLite file (WAL, `synchronous=FULL`) `outbox.sqlite` in a state folder.

    Args:
        folder: The handler's state folder.
        clock: Names a damaged file that is set aside.
        mend: Set a damaged file aside and begin another; else damage is an error.

    Raises:
        ConfigError: The file was written by a newer release, or is damaged; it is left untouched.
    """

    def __init__(self, folder: Path, clock: Clock, *, mend: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = folder / "outbox.sqlite"
        self._reserve = folder / "outbox.reserve"
        self._clock = clock
        self.lock = threading.RLock()
        self.set_aside: Path | None = None
        try:
            self._db = _opened(self.path)
        except sqlite3.OperationalError as error:
            raise ConfigError(f"{self.path} cannot be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            if not mend:
                raise ConfigError(f"{self.path} is damaged: {error}") from error
            self.set_aside = self._put_aside()
            self._db = _opened(self.path)
        self._keep_reserve()

    def close(self) -> None:
        """Close the file."""
        with self.lock:
            self._db.close()

    def execute(self, sql: str, args: Sequence[Any] = ()) -> list[Any]:
        """Run one statement; its rows, all fetched before another thread may run one.

        Since Python 3.12 threads share a cached statement: a cursor that left the lock would
        answer what another thread asks.
        """
        with self.lock:
            return self._db.execute(sql, args).fetchall()

    def change(self, sql: str, args: Sequence[Any] = ()) -> int:
        """Run one statement; how many rows it changed."""
        with self.lock:
            return self._db.execute(sql, args).rowcount

    def drop_reserve(self) -> bool:
        """Give the reserve's room back to the disk; False when there is none."""
        with self.lock, suppress(FileNotFoundError):
            self._reserve.unlink()
            self.execute("PRAGMA wal_autocheckpoint=0")  # else a checkpoint takes the room
            return True
        return False

    def tidy(self) -> None:
        """Give free space back to the disk, and make the reserve again; a full disk is no error."""
        with self.lock, suppress(sqlite3.OperationalError):
            self.execute(f"PRAGMA incremental_vacuum({_FREE_PAGES})")
            self.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._keep_reserve()

    def _put_aside(self) -> Path:
        """Rename a damaged file, with what belongs to it, and say where it is."""
        stamp = self._clock.now().strftime("%Y%m%dT%H%M%S%f")
        target = self.path.with_name(f"outbox.damaged-{stamp}.sqlite")
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").rename(f"{target}{suffix}")
        return target

    def _keep_reserve(self) -> None:
        """Make the reserve file where there is none and there is room."""
        if not self._reserve.exists():
            with suppress(OSError):
                try:
                    self._reserve.write_bytes(b"\0" * RESERVE_BYTES)
                    self.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
                except OSError:
                    self._reserve.unlink(missing_ok=True)


def transaction(
    method: Callable[Concatenate[FileT, P], T],
) -> Callable[Concatenate[FileT, P], T]:
    """Run a method as one write transaction; on a full disk, once more in the reserve's room."""

    @wraps(method)
    def run(self: FileT, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return _once(self, method, *args, **kwargs)
        except sqlite3.OperationalError as error:
            if not is_disk_full(error) or not self.drop_reserve():
                raise
        return _once(self, method, *args, **kwargs)

    return run


def transaction_without_reserve(
    method: Callable[Concatenate[FileT, P], T],
) -> Callable[Concatenate[FileT, P], T]:
    """Run a method as one write transaction; a full disk is its caller's error."""

    @wraps(method)
    def run(self: FileT, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return _once(self, method, *args, **kwargs)

    return run


def _once(
    outbox: FileT, method: Callable[Concatenate[FileT, P], T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """One attempt at a transaction."""
    with outbox.lock:
        outbox.execute("BEGIN IMMEDIATE")
        try:
            result = method(outbox, *args, **kwargs)
            outbox.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                outbox.execute("ROLLBACK")
            raise
        return result


def _opened(path: Path) -> sqlite3.Connection:
    """The file, made or checked."""
    db = sqlite3.connect(
        path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        refuse_newer(path, version)
        if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("quick_check found damage")
        fresh = ("auto_vacuum=INCREMENTAL",) if version == 0 else ()
        for pragma in (*fresh, "journal_mode=WAL", "synchronous=FULL", "secure_delete=FAST"):
            db.execute(f"PRAGMA {pragma}")
        if version < len(MIGRATIONS):
            _migrate(db)
        path.chmod(0o600)
    except BaseException:
        db.close()
        raise
    return db


def _migrate(db: sqlite3.Connection) -> None:
    """Bring the file to the schema of this release, in one transaction."""
    with db:
        db.execute("BEGIN IMMEDIATE")
        version = db.execute("PRAGMA user_version").fetchone()[0]  # another may have been faster
        for script in MIGRATIONS[version:]:
            for statement in script.split(";"):
                db.execute(statement)
        db.execute(f"PRAGMA user_version={len(MIGRATIONS)}")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # `version_in` reads no WAL


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk has no room, or that a file may not grow."""
    code = getattr(error, "sqlite_errorname", "")
    return code == "SQLITE_FULL" or str(code).startswith("SQLITE_IOERR_WRITE")

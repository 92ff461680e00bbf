"""The outbox's file: opened, checked, and written in transactions that survive a full disk.

Owns the outbox's own settings of SQLite, what becomes of a damaged file, and the reserve. Knows
nothing of what the tables mean.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from catalogzero.clock import Clock
from catalogzero.cloud.outbox.rescue import Rescue, rescue
from catalogzero.cloud.outbox.schema import MIGRATIONS
from catalogzero.config.state_folder import create_private
from catalogzero.sql import DamagedFileError, open_file, set_aside

T = TypeVar("T")
P = ParamSpec("P")
FileT = TypeVar("FileT", bound="OutboxFile")

RESERVE_BYTES = 1 << 20
_FREE_PAGES = 2_048
_CHECKPOINT_PAGES = 1_000


class OutboxFile:
    """The SQLite file (WAL, `synchronous=FULL`) `outbox.sqlite` in a state folder.

    Args:
        folder: The handler's state folder.
        clock: Names a damaged file that is set aside.
        repair: Set a damaged file aside, and take over what can be read of it; else damage is an
            error.

    Raises:
        ConfigError: The file was written by a newer release, or is damaged; it is left untouched.
    """

    def __init__(self, folder: Path, clock: Clock, *, repair: bool = True) -> None:
        self.path = folder / "outbox.sqlite"
        self._reserve = folder / "outbox.reserve"
        self.lock = threading.RLock()
        self.set_aside: Path | None = None
        self.rescue: Rescue | None = None
        try:
            self._db = _opened(self.path)
        except DamagedFileError:
            if not repair:
                raise
            stamp = clock.now().strftime("%Y%m%dT%H%M%S%f")
            self.set_aside = folder / f"outbox.damaged-{stamp}.sqlite"
            set_aside(self.path, self.set_aside)
            self._db = _opened(self.path)
            self.rescue = rescue(self.set_aside, self._db)
        self._clock = clock
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

    def insert(self, table: str, **columns: Any) -> None:
        """Put a row into a table."""
        names, places = ", ".join(columns), ", ".join("?" * len(columns))
        sql = f"INSERT INTO {table} ({names}) VALUES ({places})"  # noqa: S608  # our own names
        self.execute(sql, list(columns.values()))

    def update(self, table: str, column: str, value: Any, **changes: Any) -> None:
        """Set columns of a table's rows in which a column has a value."""
        changed = ", ".join(f'"{name}" = ?' for name in changes)
        sql = f'UPDATE {table} SET {changed} WHERE "{column}" = ?'  # noqa: S608  # our own names
        self.execute(sql, (*changes.values(), value))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is done meanwhile is one write transaction; a full disk is its caller's error."""
        with self.lock:
            self.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self.execute("ROLLBACK")
                raise

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

    def _keep_reserve(self) -> None:
        """Make the reserve file where there is none and there is room."""
        if not self._reserve.exists():
            try:
                create_private(self._reserve)
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
            with self.transaction():
                return method(self, *args, **kwargs)
        except sqlite3.OperationalError as error:
            if not is_disk_full(error) or not self.drop_reserve():
                raise
        with self.transaction():
            return method(self, *args, **kwargs)

    return run


def _opened(path: Path) -> sqlite3.Connection:
    """The file, made or checked."""
    return open_file(
        path,
        MIGRATIONS,
        pragmas=("synchronous=FULL", "secure_delete=FAST"),
        first_pragmas=("auto_vacuum=INCREMENTAL",),
        thorough=True,
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk has no room, or that a file may not grow."""
    code = getattr(error, "sqlite_errorname", "")
    return code == "SQLITE_FULL" or str(code).startswith("SQLITE_IOERR_WRITE")

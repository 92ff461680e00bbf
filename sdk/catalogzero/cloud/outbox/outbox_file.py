"""The outbox's file: opened, checked, and written in transactions that survive a full disk.

Owns the outbox's own settings of SQLite, what becomes of a damaged file, and the reserve.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from catalogzero.clock import Clock
from catalogzero.cloud.outbox.looking import FILE_NAME
from catalogzero.cloud.outbox.rescue import Rescue, rescue
from catalogzero.cloud.outbox.schema import MIGRATIONS
from catalogzero.config.state_folder import create_private
from catalogzero.sql import DamagedFileError, open_file, open_to_read, quarantine
from catalogzero.sql.sqlite import explain

T = TypeVar("T")

RESERVE_BYTES = 1 << 20
_FREE_PAGES = 2_048
_CHECKPOINT_PAGES = 1_000


class OutboxFile:
    """The SQLite file (WAL, `synchronous=FULL`) `outbox.sqlite` in a state folder.

    Args:
        folder: The handler's state folder.
        clock: Names a damaged file that is quarantined.
        read_only: Change nothing, neither file nor folder; another user's can be looked at.
        repair: Quarantine a damaged file, and take over what can be read of it; else damage is an
            error.

    Attributes:
        label: The file's path.
        folder: As given.
        handler_id: Whose outbox it is.
        owner: Empty: all facts are of the one process that writes it.
        is_shared: False: one process writes it, but for an operator's commands.
        version: The schema's; 0 where there is no outbox yet.
        rescue: What came of a damaged file that was just found; None where the file was sound.
        lock: Held by whoever uses the file.
        each: Selects the texts of a JSON list, given as an argument.

    Raises:
        ConfigError: The file was written by a newer release, or is damaged; it is left untouched.
    """

    is_shared = False
    owner = ""
    each = "SELECT value FROM json_each(?)"

    def __init__(
        self, folder: Path, clock: Clock, *, repair: bool = True, read_only: bool = False
    ) -> None:
        self.folder, self.handler_id = folder, folder.name
        self._path = folder / FILE_NAME
        self.label = str(self._path)
        self.rescue: Rescue | None = None
        self.version = len(MIGRATIONS)
        self._reserve = folder / "outbox.reserve"
        self.lock = threading.RLock()
        if read_only:
            self._db = open_to_read(self._path)
            return
        opened = partial(
            open_file,
            self._path,
            MIGRATIONS,
            pragmas=("synchronous=FULL", "secure_delete=FAST"),
            first_pragmas=("auto_vacuum=INCREMENTAL",),
            thorough=True,
        )
        try:
            self._db = opened()
        except DamagedFileError:
            if not repair:
                raise
            stamp = clock.now().strftime("%Y%m%dT%H%M%S%f")
            quarantined = folder / f"outbox.damaged-{stamp}.sqlite"
            quarantine(self._path, quarantined)
            self._db = opened()
            self.rescue = rescue(quarantined, self._db)
        self._keep_reserve()

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

    def write(self, work: Callable[[], T], *, of_one: bool = False) -> T:
        """Run work in one write transaction, the only one; a full disk is its caller's error."""
        with self.lock:
            # IMMEDIATE: a transaction that reads first and then writes beside another process would
            # be refused at its first write, and SQLite's busy timeout does not help there.
            self.execute("BEGIN IMMEDIATE")
            try:
                result = work()
                self.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self.execute("ROLLBACK")
                raise
            return result

    def close(self) -> None:
        """Close the file."""
        with self.lock:
            self._db.close()

    def json_text(self, column: str, name: str) -> str:
        """The SQL of a member's text in a column of JSON."""
        return f"json_extract({column}, '$.{name}')"

    def refuse_damaged(self) -> None:
        """Look through the whole file.

        Raises:
            DamagedFileError: A page of it is damaged.
        """
        [(found,)] = self.execute("PRAGMA quick_check(1)")
        if found != "ok":
            raise explain(self._path, sqlite3.DatabaseError(found))

    def drop_reserve(self) -> bool:
        """Give the reserve's space back to the disk; False without a reserve."""
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
        """Make the reserve file unless it exists or the disk is full."""
        if not self._reserve.exists():
            try:
                create_private(self._reserve)
                self._reserve.write_bytes(b"\0" * RESERVE_BYTES)
                self.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
            except OSError:
                self._reserve.unlink(missing_ok=True)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk has no room, or that a file may not grow."""
    code = getattr(error, "sqlite_errorname", "")
    return code == "SQLITE_FULL" or str(code).startswith("SQLITE_IOERR_WRITE")

"""Transactions that share a commit: what comes while one is written goes into the next, together.

A commit waits for the disk, whatever it holds. Owns who writes for whom, and that each caller gets
what its own work gave or raised. Never knows what is written.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from catalogzero.cloud.outbox.outbox_file import is_disk_full
from catalogzero.cloud.outbox.store import OutboxStore
from catalogzero.errors import UnknownCommitError

T = TypeVar("T")


class _Work:
    """One caller's work, and what came of it."""

    __slots__ = ("error", "is_done", "result", "work")

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.is_done = False
        self.result: Any = None
        self.error: Exception | None = None


class SharedCommits:
    """Runs callers' work in write transactions, each in one with whatever else waits.

    Work must bear to be run again: where a shared transaction fails, each is run in one of its
    own, so that a fault meets only the work that has it. On a full disk that is tried once more in
    the reserve's room.

    Args:
        store: Where the transactions are.
    """

    def __init__(self, store: OutboxStore) -> None:
        self._store = store
        self._queue = threading.Lock()
        self._waiting: list[_Work] = []

    def run(self, work: Callable[[], T]) -> T:
        """Run work in a transaction; what it gave, once that is on the disk."""
        mine = _Work(work)
        with self._queue:
            self._waiting.append(mine)
        with self._store.lock:  # who gets it writes for all that wait for it
            if not mine.is_done:
                self._write(mine)
        if mine.error is not None:
            raise mine.error
        result: T = mine.result
        return result

    def _write(self, mine: _Work) -> None:
        """Write all that waits, `mine` among it."""
        with self._queue:
            waiting, self._waiting = self._waiting, []
        try:
            if len(waiting) > 1:
                try:
                    self._commit(waiting)
                except UnknownCommitError as error:  # it may be there: not again
                    for one in waiting:
                        one.error, one.is_done = error, True
                except Exception:  # noqa: BLE001, S110  # whose it is shows where each runs alone
                    pass
            for one in waiting:
                if not one.is_done:
                    self._alone(one)
        finally:
            # Where this thread is interrupted, the next one writes what is left.
            left = [one for one in waiting if not one.is_done and one is not mine]
            with self._queue:
                self._waiting[:0] = left

    def _commit(self, group: Sequence[_Work]) -> None:
        """Run work in one transaction."""
        results = self._store.write(lambda: [one.work() for one in group])
        for one, result in zip(group, results, strict=True):
            one.result, one.is_done = result, True

    def _alone(self, one: _Work) -> None:
        """Run one in a transaction of its own; on a full disk, once more in the reserve's room."""
        try:
            try:
                self._commit([one])
            except sqlite3.OperationalError as error:
                if not is_disk_full(error) or not self._store.drop_reserve():
                    raise
                self._commit([one])
        except Exception as error:  # noqa: BLE001  # its caller's
            one.error, one.is_done = error, True

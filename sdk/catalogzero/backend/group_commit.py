"""Many small writes in one transaction: each waits a moment for others, and for its commit.

Owns the queue between requests and the database; it knows neither what is written nor how. Two
batches may be written at once, so that one is filled while another is committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from sqlalchemy import Connection

from catalogzero.backend.store import BackendDatabase
from catalogzero.clock import Clock
from catalogzero.protocol.problems import Kind, ProblemError

T = TypeVar("T")
R = TypeVar("R")

MAX_WAITING = 10_000
MAX_BATCH = 1_000
AT_ONCE = 2
"""Batches that are written at once: one is filled while another is committed."""


class GroupCommit(Generic[T, R]):
    """Writes items in batches; `add` gives what `store` did, once the batch is committed.

    Args:
        database: Where `store` writes.
        store: Writes a batch in the transaction it is given.
        clock: What the window is measured on.
        window_s: How long a first item waits for others, in seconds.
        max_batch: The most items of one transaction; the rest follow in the next.
    """

    def __init__(
        self,
        database: BackendDatabase,
        store: Callable[[Connection, Sequence[T]], R],
        clock: Clock,
        window_s: float,
        max_batch: int = MAX_BATCH,
    ) -> None:
        self._database, self._store, self._clock = database, store, clock
        self._window_s, self._max_batch = window_s, max_batch
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._arrived = asyncio.Event()
        self._since_s = 0.0
        self._places = asyncio.Semaphore(AT_ONCE)

    async def add(self, item: T) -> R:
        """Write one item, together with whatever else comes within the window.

        Raises:
            ProblemError: Too many are waiting: the database does not keep up.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise ProblemError(
                Kind.UNAVAILABLE, "too many reports wait for the database", headers=RETRY_SOON
            )
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._since_s = self._clock.monotonic()
        self._waiting.append((item, done))
        self._arrived.set()
        return await done

    async def run(self) -> None:
        """Commit batch after batch until cancelled."""
        async with asyncio.TaskGroup() as writing:
            while True:
                await self._arrived.wait()
                waited_s = self._clock.monotonic() - self._since_s  # for a place
                await self._clock.sleep(max(0.0, self._window_s - waited_s))
                await self._places.acquire()
                task = writing.create_task(self._write(self._next()))
                task.add_done_callback(lambda _: self._places.release())

    async def flush(self) -> None:
        """Commit what is waiting now; a failure goes to those who wait for it."""
        await self._write(self._next())

    def _next(self) -> Sequence[tuple[T, asyncio.Future[R]]]:
        most = self._max_batch
        batch, self._waiting = self._waiting[:most], self._waiting[most:]
        if not self._waiting:
            self._arrived.clear()
        return batch

    async def _write(self, batch: Sequence[tuple[T, asyncio.Future[R]]]) -> None:
        if not batch:
            return
        items = [item for item, _ in batch]
        fault: BaseException | None = None
        try:
            result = await self._database.write(lambda connection: self._store(connection, items))
        except BaseException as error:  # noqa: BLE001 - every waiting request gets it
            fault = error
        for _, done in batch:
            if not done.done():
                done.set_exception(fault) if fault else done.set_result(result)
        if fault is not None and not isinstance(fault, Exception):
            raise fault


RETRY_SOON = {"Retry-After": "1"}

"""Writes that share transactions: everything that waits is written, however much it is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import sqlalchemy as sa
from catalogzero.backend.group_commit import GroupCommit
from catalogzero.backend.store import BackendDatabase
from catalogzero.testing import ManualClock

from tests.core.support import until


async def test_what_exceeds_a_transaction_is_written_in_the_next(database_url: str) -> None:
    database = BackendDatabase(database_url)
    written: list[list[int]] = []

    def store(connection: sa.Connection, items: Sequence[int]) -> int:
        connection.execute(sa.select(1))
        written.append([*items])
        return sum(items)

    clock = ManualClock()
    commits = GroupCommit(database, store, clock, window_s=1.0, max_batch=3)
    running = asyncio.create_task(commits.run())
    added = [asyncio.create_task(commits.add(item)) for item in range(8)]

    async def all_written() -> bool:
        await clock.advance(1.0)
        return all(task.done() for task in added)

    await until(all_written)
    running.cancel()
    await asyncio.wait([running])
    database.close()

    assert sorted(written) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [task.result() for task in added] == [3, 3, 3, 12, 12, 12, 13, 13]

"""The hook: what the vendor's service does with a completed upload.

Owns the queue of uploads for which the hook has not ended well yet. The queue is in the database,
so that a kill loses none: the hook is called at least once for each upload that is still visible
when its turn comes. `CompletedUpload.job_id` tells a repetition.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import Connection, Row, func, select, update
from structlog.typing import FilteringBoundLogger

from catalogzero.backend.schema import records, tenants, uploads
from catalogzero.backend.store import Database
from catalogzero.clock import Clock
from catalogzero.sql.engines import DATABASE_AWAY

POLL_S = 5.0
LEASE_S = 300.0
MAX_BACKOFF_S = 3_600.0


@dataclass(frozen=True, slots=True)
class CompletedUpload:
    """An upload whose rows just became visible; `records()` reads them.

    In mode `replace` it is all there is of its source now; in mode `append` it adds to it.
    """

    job_id: str
    tenant: str
    installation_id: str | None
    upload_id: str
    stream: str | None
    source: str | None
    params: Any
    mode: str
    entry: str | None
    version: str | None
    record_count: int
    chunk_count: int
    _upload_no: int = field(repr=False)
    _database: Database = field(repr=False)

    async def records(self) -> AsyncIterator[dict[str, Any]]:
        """The upload's records in order, read chunk by chunk.

        Whole numbers beyond 64 bits come as floats; `payload` of `visible_records` is exact.

        Raises:
            LookupError: A newer upload of the source replaced this one meanwhile.
        """
        count = 0
        for seq in range(self.chunk_count):
            payloads = await self._database.read(_reader(self._upload_no, seq))
            count += len(payloads)
            for payload in payloads:
                yield orjson.loads(payload)
        if count != self.record_count:
            raise LookupError(f"upload {self.upload_id} was replaced while it was read")


Hook = Callable[[CompletedUpload], Awaitable[None]]


class Delivery:
    """Calls the hook for one upload after the other, oldest first.

    A hook that raises is logged and called again, later each time (1 s, then doubled, to an hour).
    """

    def __init__(
        self, database: Database, clock: Clock, hook: Hook, log: FilteringBoundLogger
    ) -> None:
        self._database, self._clock, self._hook, self._log = database, clock, hook, log
        self._work = asyncio.Event()

    def wake(self) -> None:
        """There may be something to do."""
        self._work.set()

    async def run(self) -> None:
        """Deliver until cancelled; looks again every few seconds for what other processes left."""
        while True:
            self._work.clear()
            timer = self._clock.call_later(await self._deliver_all(), self._work.set)
            try:
                await self._work.wait()
            finally:
                timer.cancel()

    async def _deliver_all(self) -> float:
        """Deliver what is due; in how many seconds to look again."""
        try:
            while await self.deliver_one():
                pass
            return await self._pause_s()
        except DATABASE_AWAY:
            self._log.exception("upload_hook_waits_for_the_database")
            return POLL_S

    async def deliver_one(self) -> bool:
        """Call the hook for the oldest upload that is due; whether there was one."""
        now = self._clock.now()
        leased_until = (now + timedelta(seconds=LEASE_S)).isoformat()
        row = await self._database.write(
            lambda connection: _claim(connection, now.isoformat(), leased_until)
        )
        if row is None:
            return False
        due_at = None
        try:
            await self._hook(self._upload(row))
        except Exception:  # noqa: BLE001 - the vendor's code: logged, and called again
            backoff_s = min(2.0**row.hook_attempts, MAX_BACKOFF_S)
            due_at = (self._clock.now() + timedelta(seconds=backoff_s)).isoformat()
            self._log.exception("upload_hook_failed", job_id=row.job_id, retry_in_s=backoff_s)
        await self._database.write(lambda connection: _settle(connection, row.upload_no, due_at))
        return True

    async def _pause_s(self) -> float:
        """Seconds until something comes due here, or may have been left by another process."""
        next_due = await self._database.read(_next_due)
        if next_due is None:
            return POLL_S
        wait_s = (datetime.fromisoformat(next_due) - self._clock.now()).total_seconds()
        return min(max(wait_s, 0.0), POLL_S)

    def _upload(self, row: Row[Any]) -> CompletedUpload:
        """What the hook is given."""
        return CompletedUpload(
            job_id=row.job_id,
            tenant=row.tenant,
            installation_id=row.installation_id,
            upload_id=row.upload_id,
            stream=row.stream,
            source=row.source,
            params=None if row.params is None else orjson.loads(row.params),
            mode=row.mode,
            entry=row.entry,
            version=row.version,
            record_count=row.records,
            chunk_count=row.chunks,
            _upload_no=row.upload_no,
            _database=self._database,
        )


def _claim(connection: Connection, now: str, leased_until: str) -> Row[Any] | None:
    """Take the oldest visible upload that is due, out of other processes' reach for a while."""
    row = connection.execute(
        select(uploads, tenants.c.name.label("tenant"))
        .join(tenants, tenants.c.tenant_id == uploads.c.tenant_id)
        .where(uploads.c.hook_due_at <= now)
        .order_by(uploads.c.hook_due_at)
        .limit(1)
        .with_for_update(skip_locked=True, of=uploads)
    ).one_or_none()
    if row is not None:
        connection.execute(
            update(uploads)
            .where(uploads.c.upload_no == row.upload_no)
            .values(hook_due_at=leased_until, hook_attempts=row.hook_attempts + 1)
        )
    return row


def _next_due(connection: Connection) -> str | None:
    """When the hook is due next, for any upload."""
    due = uploads.c.hook_due_at
    found = connection.scalar(select(func.min(due)).where(due.is_not(None)))
    return None if found is None else str(found)


def _settle(connection: Connection, upload_no: int, due_at: str | None) -> None:
    """The hook ended: well (none), or to be called again while the upload is visible."""
    one = (uploads.c.upload_no == upload_no) & uploads.c.visible
    connection.execute(update(uploads).where(one).values(hook_due_at=due_at))


def _reader(upload_no: int, seq: int) -> Callable[[Connection], list[str]]:
    """What reads one chunk's payloads."""
    statement = (
        select(records.c.payload)
        .where(records.c.upload_no == upload_no, records.c.seq == seq)
        .order_by(records.c.row_index)
    )
    return lambda connection: list(connection.scalars(statement))

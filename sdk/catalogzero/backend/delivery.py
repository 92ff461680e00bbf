"""The hook: what the vendor's service does with a completed upload.

Owns the queue of uploads for which the hook has not ended well yet. The queue is in the database,
so that a kill loses none: the hook is called at least once for each upload that is still visible
when its turn comes. `CompletedUpload.job_id` identifies a repetition.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import orjson
from sqlalchemy import ColumnElement, Connection, Row, Select, and_, exists, func, select, update
from structlog.typing import FilteringBoundLogger

from catalogzero.backend.schema import records, tenants, uploads
from catalogzero.backend.settings import BackendSettings
from catalogzero.backend.store import BackendDatabase, Columns
from catalogzero.backoff import Backoff
from catalogzero.clock import Clock
from catalogzero.errors import ConfigError
from catalogzero.sql.engines import DATABASE_AWAY
from catalogzero.wire.messages import JsonObject

T = TypeVar("T")

POLL_S = 5.0
LEASE_S = 60.0
"""Beside the hook's own time: for what comes before and after it."""
HOOKS_AT_ONCE = 16
SHOWN = (
    *("job_id", "tenant", "installation_id", "upload_id"),
    *("stream", "source", "mode", "entry", "version"),
)
"""What a `CompletedUpload` has as the database has it."""
HOOK_BACKOFF = Backoff(1.0, 3_600.0, jitter=(1.0, 1.0))


@dataclass(frozen=True, slots=True)
class CompletedUpload:
    """An upload whose rows just became visible; `records()` reads them.

    In mode `replace` it is all there is of its source now; in mode `append` it adds to it; in mode
    `merge` each of its rows, in their order, takes the place of the one with the same values in the
    columns `key`, and one whose column `tombstone` is set leaves nothing there.
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
    key: tuple[str, ...] = ()
    tombstone: str | None = None
    _upload_no: int = field(repr=False, kw_only=True)
    _database: BackendDatabase = field(repr=False, kw_only=True)
    _secret: bytes | None = field(repr=False, default=None, kw_only=True)

    def message(self) -> bytes:
        """What the upload is, without its records, as JSON: to be passed on to another service."""
        shown = {one.name: getattr(self, one.name) for one in fields(self) if one.name[0] != "_"}
        return orjson.dumps(shown, option=orjson.OPT_SORT_KEYS)

    def signature(self) -> str:
        """`sha256=` and the HMAC of `message()` under `hook_secret`, in hexadecimal.

        Whoever is passed the message makes the same of it, and so knows who sent it.

        Raises:
            ConfigError: No `hook_secret` is set.
        """
        if self._secret is None:
            raise ConfigError("set hook_secret, or CATALOGZERO_BACKEND_HOOK_SECRET, to sign")
        return f"sha256={hmac.new(self._secret, self.message(), 'sha256').hexdigest()}"

    async def records(self) -> AsyncIterator[JsonObject]:
        """The upload's records in order, read chunk by chunk.

        Whole numbers beyond 64 bits come as floats; `payload` of `visible_records` is exact.

        Raises:
            LookupError: A newer upload of the source replaced this one meanwhile.
        """
        count = 0
        for seq in range(self.chunk_count):
            some = select(records.c.payload).filter_by(upload_no=self._upload_no, seq=seq)
            payloads = await self._database.read(
                partial(scalars, some.order_by(records.c.row_index))
            )
            count += len(payloads)
            for payload in payloads:
                yield orjson.loads(payload)
        if count != self.record_count:
            raise LookupError(f"upload {self.upload_id} was replaced while it was read")


Hook = Callable[[CompletedUpload], Awaitable[None]]


class Delivery:
    """Calls the hook, oldest upload first: one at a time of a tenant, several tenants at once.

    A hook that raises, or takes longer than `timeout_s`, is logged and called again, later each
    time (1 s, then doubled, to an hour); after the settings' number of calls the upload is a dead
    letter, until an operator has it tried again.
    """

    def __init__(
        self,
        database: BackendDatabase,
        clock: Clock,
        hook: Hook,
        log: FilteringBoundLogger,
        settings: BackendSettings,
    ) -> None:
        self._database, self._clock, self._hook, self._log = database, clock, hook, log
        self._timeout_s, self._attempts = settings.hook_timeout_s, settings.hook_attempts
        secret = settings.hook_secret
        self._secret = None if secret is None else secret.get_secret_value().encode()
        self._work = asyncio.Event()
        self._busy: dict[int, asyncio.Task[None]] = {}

    def wake(self) -> None:
        """There may be something to do."""
        self._work.set()

    async def run(self) -> None:
        """Deliver until cancelled; looks again every few seconds for what other processes left."""
        try:
            while True:
                self._work.clear()
                timer = self._clock.call_later(await self._begin_all(), self._work.set)
                try:
                    await self._work.wait()
                finally:
                    timer.cancel()
        finally:
            for task in self._busy.values():
                task.cancel()
            await asyncio.gather(*self._busy.values(), return_exceptions=True)

    async def _begin_all(self) -> float:
        """Begin what is due, of each tenant its oldest; in how many seconds to look again."""
        try:
            now, busy = self._clock.now(), list(self._busy)
            free = HOOKS_AT_ONCE - len(busy)
            if free <= 0:
                return POLL_S
            leased_until = (now + timedelta(seconds=self._timeout_s + LEASE_S)).isoformat()
            for row in await self._database.write(
                lambda connection: _claim(connection, now.isoformat(), leased_until, busy, free)
            ):
                task = asyncio.create_task(self._deliver(row))
                self._busy[row.tenant_id] = task
                task.add_done_callback(partial(self._ended, row.tenant_id))
            next_due = await self._database.read(partial(next_due_of_others, list(self._busy)))
            if next_due is None:
                return POLL_S
            wait_s = (datetime.fromisoformat(next_due) - self._clock.now()).total_seconds()
            return min(max(wait_s, 0.0), POLL_S)
        except DATABASE_AWAY:
            self._log.exception("upload_hook_waits_for_the_database")
            return POLL_S

    def _ended(self, tenant_id: int, task: asyncio.Task[None]) -> None:
        del self._busy[tenant_id]
        if not task.cancelled() and task.exception():
            self._log.error("upload_hook_waits_for_the_database", exc_info=task.exception())
            return  # its lease runs out
        self._work.set()

    async def _deliver(self, row: Row[Any]) -> None:
        """Call the hook for one upload, and note how that ended."""
        values: Columns = {"hook_due_at": None, "hook_error": None}
        merge_key = {} if row.merge_key is None else orjson.loads(row.merge_key)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._hook(
                    CompletedUpload(
                        **{name: getattr(row, name) for name in SHOWN},
                        params=None if row.params is None else orjson.loads(row.params),
                        record_count=row.records,
                        chunk_count=row.chunks,
                        key=tuple(merge_key.get("key", ())),
                        tombstone=merge_key.get("tombstone"),
                        _upload_no=row.upload_no,
                        _database=self._database,
                        _secret=self._secret,
                    )
                )
        except Exception as error:  # noqa: BLE001 - the vendor's code: logged, and called again
            now, attempts = self._clock.now(), row.hook_attempts + 1
            values["hook_error"] = type(error).__name__
            if attempts >= self._attempts:
                values["hook_failed_at"] = now.isoformat(timespec="milliseconds")
                self._log.exception("upload_hook_gave_up", job_id=row.job_id, attempts=attempts)
            else:
                backoff_s = HOOK_BACKOFF.delay_s(attempts)
                values["hook_due_at"] = (now + timedelta(seconds=backoff_s)).isoformat()
                self._log.exception("upload_hook_failed", job_id=row.job_id, retry_in_s=backoff_s)
        # it is called again only while the upload is visible
        one = (uploads.c.upload_no == row.upload_no) & uploads.c.visible
        await self._database.write(
            lambda connection: connection.execute(update(uploads).where(one).values(**values))
        )


@dataclass(frozen=True, slots=True)
class FailedHook:
    """A dead letter of the hook: an upload for which it is not called any more by itself."""

    job_id: str
    tenant: str
    stream: str | None
    source: str | None
    attempts: int
    failed_at: str
    error: str


def failed_hooks(connection: Connection, tenant: str | None = None) -> list[FailedHook]:
    """The dead letters of the hook, the oldest first."""
    error = func.coalesce(uploads.c.hook_error, "")
    found = (
        select(uploads.c.job_id, tenants.c.name, uploads.c.stream, uploads.c.source)
        .add_columns(uploads.c.hook_attempts, uploads.c.hook_failed_at, error)
        .join(tenants, tenants.c.tenant_id == uploads.c.tenant_id)
        .where(uploads.c.hook_failed_at.is_not(None))
        .order_by(uploads.c.hook_failed_at)
    )
    if tenant is not None:
        found = found.where(tenants.c.name == tenant)
    return [FailedHook(*row) for row in connection.execute(found)]


def retry_hooks(connection: Connection, job_ids: list[str] | None, at: str) -> int:
    """Have the hook called again for these dead letters, or for all; how many they are."""
    which: ColumnElement[bool] = uploads.c.hook_failed_at.is_not(None)
    if job_ids is not None:
        which = and_(which, uploads.c.job_id.in_(job_ids))
    again = {"hook_failed_at": None, "hook_due_at": at, "hook_attempts": 0}
    return connection.execute(update(uploads).where(which).values(**again)).rowcount


def _claim(
    connection: Connection, now: str, leased_until: str, busy: list[int], most: int
) -> list[Row[Any]]:
    """Take the oldest upload that is due of each tenant, out of other processes' reach for a while.

    Tenants whose hook another process calls are passed over.
    """
    due = and_(uploads.c.tenant_id == tenants.c.tenant_id, uploads.c.hook_due_at <= now)
    waiting = select(tenants.c.tenant_id).where(
        exists().where(due), tenants.c.tenant_id.not_in(busy)
    )
    rows = []
    for tenant_id in connection.scalars(waiting.order_by(tenants.c.tenant_id).limit(most)).all():
        row = connection.execute(
            select(uploads, tenants.c.name.label("tenant"))
            .join(tenants, tenants.c.tenant_id == uploads.c.tenant_id)
            .where(uploads.c.tenant_id == tenant_id, uploads.c.hook_due_at <= now)
            .order_by(uploads.c.hook_due_at)
            .limit(1)
            .with_for_update(skip_locked=True, of=uploads)
        ).one_or_none()
        if row is not None:
            # counted before the call, so that one which ends the process counts as well
            one = uploads.c.upload_no == row.upload_no
            # a lease: where the process is killed in the call, another one calls again after it
            taken = {"hook_due_at": leased_until, "hook_attempts": row.hook_attempts + 1}
            connection.execute(update(uploads).where(one).values(**taken))
            rows.append(row)
    return rows


def next_due_of_others(busy: list[int], connection: Connection) -> str | None:
    """When the hook is due next, for a tenant that has none now."""
    first = (
        select(func.min(uploads.c.hook_due_at))
        .where(uploads.c.tenant_id == tenants.c.tenant_id, uploads.c.hook_due_at.is_not(None))
        .scalar_subquery()
        .label("first")
    )
    of_each = select(first).where(tenants.c.tenant_id.not_in(busy)).subquery()
    found: str | None = connection.scalar(select(func.min(of_each.c.first)))
    return found


def scalars(statement: Select[tuple[T]], connection: Connection) -> list[T]:
    """The first column of each row."""
    return list(connection.scalars(statement))

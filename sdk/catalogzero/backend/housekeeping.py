"""What may go: rows that nobody sees any more, chunks never completed, old health reports.

Owns the deletion, in small transactions that each look again whether the rows may still go; that
an upload is finished, and each source's numbers, are kept for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, exists, select, update
from structlog.typing import FilteringBoundLogger

from catalogzero.backend.hours import prune_hours
from catalogzero.backend.schema import chunks, health_reports, records, uploads
from catalogzero.backend.settings import BackendSettings
from catalogzero.backend.store import Database
from catalogzero.clock import Clock
from catalogzero.protocol.judging import State

HEALTH_BATCH = 5_000

Step = Callable[[Connection], bool]


class Housekeeping:
    """Sweeps every `housekeeping_interval_s`."""

    def __init__(
        self,
        settings: BackendSettings,
        database: Database,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._settings, self._database, self._clock, self._log = settings, database, clock, log

    async def run(self) -> None:
        """Sweep until cancelled; a sweep that fails is logged, and the next one goes on."""
        while True:
            await self._clock.sleep(self._settings.housekeeping_interval_s)
            try:
                await self.sweep()
            except Exception:  # noqa: BLE001 - a database that is away comes back
                self._log.exception("housekeeping_failed")

    async def sweep(self) -> None:
        """Delete all that may go now, one small transaction after the other."""
        unfinished = self._ago(self._settings.open_upload_ttl_s)
        history = self._ago(self._settings.health_history_s)
        steps: list[Step] = [
            clear_hidden,
            lambda connection: expire_chunk(connection, unfinished),
            lambda connection: forget_empty(connection, unfinished),
            lambda connection: prune_health(connection, history),
            lambda connection: prune_hours(connection, history),
        ]
        for step in steps:
            while await self._database.write(step):
                pass

    def _ago(self, seconds: float) -> str:
        """The moment so long ago, as it is stored."""
        moment = self._clock.now() - timedelta(seconds=seconds)
        return moment.isoformat(timespec="milliseconds")


def clear_hidden(connection: Connection) -> bool:
    """Delete one chunk of a finished upload that is not visible; whether there was any.

    Finished uploads never become visible again, so that looking in the same transaction is enough.
    """
    hidden = and_(uploads.c.state != State.OPEN.value, ~uploads.c.visible, ~uploads.c.rows_gone)
    upload_no = connection.scalar(_locked(select(uploads.c.upload_no).where(hidden)))
    if upload_no is None:
        return False
    if not _delete_chunk(connection, chunks.c.upload_no == upload_no):
        one = uploads.c.upload_no == upload_no
        connection.execute(update(uploads).where(one).values(rows_gone=True))
    return True


def expire_chunk(connection: Connection, before: str) -> bool:
    """Delete one chunk stored before then whose upload is still open; whether there was any."""
    old = exists().where(chunks.c.upload_no == uploads.c.upload_no, chunks.c.stored_at < before)
    still_open = and_(uploads.c.state == State.OPEN.value, old)
    upload_no = connection.scalar(_locked(select(uploads.c.upload_no).where(still_open)))
    if upload_no is None:
        return False
    one = and_(chunks.c.upload_no == upload_no, chunks.c.stored_at < before)
    return _delete_chunk(connection, one)


def forget_empty(connection: Connection, before: str) -> bool:
    """Forget one open upload, opened before then, that has no chunk; whether there was any."""
    empty = and_(
        uploads.c.state == State.OPEN.value,
        uploads.c.opened_at < before,
        ~exists().where(chunks.c.upload_no == uploads.c.upload_no),
    )
    upload_no = connection.scalar(_locked(select(uploads.c.upload_no).where(empty)))
    if upload_no is None:
        return False
    has_chunk = exists().where(chunks.c.upload_no == uploads.c.upload_no)
    one = and_(uploads.c.upload_no == upload_no, ~has_chunk)
    return connection.execute(delete(uploads).where(one)).rowcount == 1


def prune_health(connection: Connection, before: str) -> bool:
    """Delete some health reports received before then; whether there may be more."""
    old = select(health_reports.c.report_no).where(health_reports.c.received_at < before)
    batch = old.order_by(health_reports.c.received_at).limit(HEALTH_BATCH)
    gone = connection.execute(delete(health_reports).where(health_reports.c.report_no.in_(batch)))
    return gone.rowcount == HEALTH_BATCH


def _locked(statement: Select[Any]) -> Select[Any]:
    """One row that no other transaction holds, locked to the end of this one."""
    return statement.order_by(uploads.c.upload_no).limit(1).with_for_update(skip_locked=True)


def _delete_chunk(connection: Connection, condition: ColumnElement[bool]) -> bool:
    """Delete one chunk with its rows; whether there was one."""
    found = connection.execute(
        select(chunks.c.upload_no, chunks.c.seq).where(condition).limit(1)
    ).one_or_none()
    if found is None:
        return False
    for table in (records, chunks):
        same = and_(table.c.upload_no == found.upload_no, table.c.seq == found.seq)
        connection.execute(delete(table).where(same))
    return True

"""What may go: rows that nobody sees any more, chunks never completed, old health reports.

Owns the deletion, in bounded transactions that each look again whether the rows may still go; that
an upload is finished, and each source's numbers, are kept for ever. What a step costs depends on
what it deletes, not on what is stored: each finds its rows by an index that holds no others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    true,
    update,
)
from structlog.typing import FilteringBoundLogger

from catalogzero.backend.schema import chunks, health_reports, records, uploads
from catalogzero.backend.settings import BackendSettings
from catalogzero.backend.store import Database
from catalogzero.clock import Clock

UPLOADS_A_STEP, CHUNKS_A_STEP, RECORDS_A_STEP = 500, 1_000, 10_000
"""How much one transaction looks at and deletes at most, but one chunk at least."""
HEALTH_BATCH = 5_000

Step = Callable[[Connection], bool]


class Cleared(NamedTuple):
    """What one step deleted: `whole` are the uploads of which nothing is left to delete."""

    whole: list[int]
    chunks: int
    records: int


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
        """Delete all that may go now, one bounded transaction after the other."""
        unfinished, history = self._limits()
        steps: list[Step] = [
            clear_hidden,
            lambda connection: collect_unfinished(connection, unfinished),
            lambda connection: prune_health(connection, history),
        ]
        for step in steps:
            while await self._database.write(step):
                pass

    async def lag_s(self) -> dict[str, float]:
        """For how many seconds the oldest rows of each kind could have been deleted."""
        now, (unfinished, history) = self._clock.now(), self._limits()
        found = await self._database.read(lambda connection: _oldest(connection, unfinished))
        allowed = {"hidden": now.isoformat(), "unfinished": unfinished, "health": history}
        return {
            kind: max(0.0, _seconds(found[kind] or limit, limit)) for kind, limit in allowed.items()
        }

    def _limits(self) -> tuple[str, str]:
        """Before when unfinished chunks, and health reports, may go."""
        return self._ago(self._settings.open_upload_ttl_s), self._ago(
            self._settings.health_history_s
        )

    def _ago(self, seconds: float) -> str:
        """The moment so long ago, as it is stored."""
        moment = self._clock.now() - timedelta(seconds=seconds)
        return moment.isoformat(timespec="milliseconds")


def clear_hidden(connection: Connection) -> bool:
    """Delete rows of finished uploads that are not visible; whether there were any such uploads.

    Finished uploads never become visible again, so that looking in the same transaction is enough.
    """
    victims = _locked(connection, to_clear())
    whole = clear(connection, victims).whole
    done = uploads.c.upload_no.in_(whole)
    connection.execute(update(uploads).where(done).values(clear_since=None))
    return bool(victims)


def collect_unfinished(connection: Connection, before: str) -> bool:
    """Delete chunks stored before then of uploads still open, and open uploads that have none.

    Returns:
        Whether there were any.
    """
    victims = _locked(connection, unfinished(before))
    cleared = clear(connection, victims, chunks.c.stored_at < before)
    empty = and_(uploads.c.upload_no.in_(cleared.whole), ~_has_chunk())
    connection.execute(delete(uploads).where(empty))
    return bool(victims)


def prune_health(connection: Connection, before: str) -> bool:
    """Delete some health reports received before then; whether there may be more."""
    old = select(health_reports.c.report_no).where(health_reports.c.received_at < before)
    batch = old.order_by(health_reports.c.received_at).limit(HEALTH_BATCH)
    gone = connection.execute(delete(health_reports).where(health_reports.c.report_no.in_(batch)))
    return gone.rowcount == HEALTH_BATCH


def to_clear() -> Select[Any]:
    """Uploads whose rows may go, those that wait longest first."""
    since = uploads.c.clear_since
    return select(uploads.c.upload_no).where(since.is_not(None)).order_by(since)


def unfinished(before: str) -> Select[Any]:
    """Open uploads with a chunk stored before then, or opened before then and without a chunk."""
    old = or_(_has_chunk(chunks.c.stored_at < before), ~_has_chunk())
    due = select(uploads.c.upload_no).where(
        uploads.c.ended_at.is_(None), uploads.c.opened_at < before, old
    )
    return due.order_by(uploads.c.opened_at)


def clear(
    connection: Connection, victims: Sequence[int], which: ColumnElement[bool] | None = None
) -> Cleared:
    """Delete chunks of these uploads with their rows, in order, as many as fit into one step.

    Args:
        connection: Of a transaction that holds the uploads.
        victims: The uploads' numbers.
        which: Only these chunks.
    """
    if not victims:
        return Cleared([], 0, 0)
    due = connection.execute(
        select(chunks.c.upload_no, chunks.c.seq, chunks.c.records)
        .where(chunks.c.upload_no.in_(victims), true() if which is None else which)
        .order_by(chunks.c.upload_no, chunks.c.seq)
        .limit(CHUNKS_A_STEP + 1)
    ).all()
    taken, size = 0, 0
    for row in due[:CHUNKS_A_STEP]:
        if taken and size + row.records > RECORDS_A_STEP:
            break
        taken, size = taken + 1, size + row.records
    ranges = _ranges(due[:taken])
    for table in (records, chunks) if ranges else ():
        between = table.c.seq.between(bindparam("first"), bindparam("last"))
        one = and_(table.c.upload_no == bindparam("number"), between)
        connection.execute(delete(table).where(one), ranges)
    left = due[taken].upload_no if taken < len(due) else None
    whole = [number for number in victims if left is None or number < left]
    return Cleared(whole, taken, size)


def _ranges(found: Sequence[Any]) -> list[dict[str, int]]:
    """The chunks as ranges without a gap, in the order that they have."""
    ranges: list[dict[str, int]] = []
    for row in found:
        last = ranges[-1] if ranges else None
        if last and (last["number"], last["last"]) == (row.upload_no, row.seq - 1):
            last["last"] = row.seq
        else:
            ranges.append({"number": row.upload_no, "first": row.seq, "last": row.seq})
    return ranges


def _locked(connection: Connection, due: Select[Any]) -> Sequence[int]:
    """The first uploads that no other transaction holds, locked to the end of this one."""
    found = due.limit(UPLOADS_A_STEP).with_for_update(skip_locked=True)
    return connection.scalars(found).all()


def _has_chunk(which: ColumnElement[bool] | None = None) -> ColumnElement[bool]:
    """Whether an upload has a chunk, of which this is true."""
    of_it = chunks.c.upload_no == uploads.c.upload_no
    return exists().where(of_it, true() if which is None else which)


def _oldest(connection: Connection, before: str) -> dict[str, str | None]:
    """Since when the oldest rows of each kind wait to be deleted, or are there."""
    first = unfinished(before).with_only_columns(uploads.c.opened_at).limit(1)
    return {
        "hidden": connection.scalar(to_clear().with_only_columns(uploads.c.clear_since).limit(1)),
        "unfinished": connection.scalar(first),
        "health": connection.scalar(select(func.min(health_reports.c.received_at))),
    }


def _seconds(earlier: str, later: str) -> float:
    """From one moment to another, in seconds."""
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()

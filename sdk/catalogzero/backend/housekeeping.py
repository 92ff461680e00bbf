"""What may go: rows that nobody sees any more, chunks never completed, old health reports.

Owns the deletion, in bounded transactions that each look again whether the rows may still go; that
an upload is finished, and each source's numbers, are kept for ever. What a step costs depends on
what it deletes, not on what is stored: each finds its rows by an index that holds no others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa
from structlog.typing import FilteringBoundLogger

from catalogzero.backend import feed, removal
from catalogzero.backend.clearing import HEALTH_BATCH, STEP, StepSize, clear
from catalogzero.backend.hours import prune_hours
from catalogzero.backend.schema import VISIBLE, chunks, health_reports, uploads
from catalogzero.backend.settings import BackendSettings
from catalogzero.backend.store import BackendDatabase
from catalogzero.backend.uploads import hide
from catalogzero.clock import Clock

Step = Callable[[sa.Connection], bool]


class Housekeeping:
    """Sweeps every `housekeeping_interval_s`."""

    def __init__(
        self,
        settings: BackendSettings,
        database: BackendDatabase,
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
        at, kept = self._ago(0), self._settings.stream_retention_s
        steps: list[Step] = [
            *(
                partial(retire, stream=stream, before=self._ago(kept_s), at=at)
                for stream, kept_s in kept.items()
            ),
            clear_hidden,
            partial(collect_unfinished, before=unfinished),
            partial(prune_health, before=history),
            partial(prune_hours, before=history),
            *(
                partial(removal.step, number=number, at=at)
                for number in await self._database.read(removal.unfinished)
            ),
        ]
        for step in steps:
            while await self._database.write(step):
                pass

    async def lag_s(self) -> dict[str, float]:
        """For how many seconds the oldest rows of each kind could have been deleted."""
        unfinished_before, history_before = self._limits()
        reports = sa.select(health_reports.c.received_at).order_by(health_reports.c.report_no)
        due: dict[str, tuple[str, sa.Select[Any]]] = {
            "hidden": (self._ago(0), to_clear().with_only_columns(uploads.c.clear_since)),
            "unfinished": (
                unfinished_before,
                unfinished(unfinished_before).with_only_columns(uploads.c.opened_at),
            ),
            "health": (history_before, reports),
        }
        for stream, kept_s in self._settings.stream_retention_s.items():
            before = self._ago(kept_s)
            ended = uploads_of(stream, before).with_only_columns(uploads.c.ended_at)
            due[f"stream:{stream}"] = before, ended

        def read(connection: sa.Connection) -> dict[str, float]:
            lag_s = {}
            for kind, (before, rows) in due.items():
                since = connection.scalar(rows.limit(1)) or before
                waited = datetime.fromisoformat(before) - datetime.fromisoformat(since)
                lag_s[kind] = max(0.0, waited.total_seconds())
            return lag_s

        return await self._database.read(read)

    def _limits(self) -> tuple[str, str]:
        """Before when unfinished chunks, and health reports, may go."""
        settings = self._settings
        return self._ago(settings.open_upload_ttl_s), self._ago(settings.health_history_s)

    def _ago(self, seconds: float) -> str:
        """The moment so long ago, as it is stored."""
        moment = self._clock.now() - timedelta(seconds=seconds)
        return moment.isoformat(timespec="milliseconds")


def retire(connection: sa.Connection, stream: str, before: str, at: str) -> bool:
    """Hide some uploads of a stream that were completed before then; whether there were any.

    What is known of their sources stays: what went on purpose is not missing. In mode merge what is
    older goes with them, whatever the clock said: without its tombstone a row would come back.
    """
    due = locked(connection, uploads_of(stream, before))
    newer = uploads.alias()
    older = sa.select(uploads.c.upload_no).join(newer, newer.c.source_id == uploads.c.source_id)
    behind = (newer.c.mode == "merge", newer.c.source_seq > uploads.c.source_seq)
    found = older.where(newer.c.upload_no.in_(due), *behind, uploads.c.visible)
    numbers = {*due, *connection.scalars(found)}
    return hide(connection, uploads.c.upload_no.in_(numbers), at, feed.What.REMOVED) > 0


def clear_hidden(connection: sa.Connection, size: StepSize = STEP) -> bool:
    """Delete rows of finished uploads that are not visible; whether there were any such uploads.

    Finished uploads never become visible again, so that looking in the same transaction is enough.
    """
    victims = locked(connection, to_clear(), size)
    whole = clear(connection, victims, size=size).whole
    done = uploads.c.upload_no.in_(whole)
    connection.execute(sa.update(uploads).where(done).values(clear_since=None))
    return bool(victims)


def collect_unfinished(connection: sa.Connection, before: str, size: StepSize = STEP) -> bool:
    """Delete chunks stored before then of uploads still open, and open uploads that have none.

    Returns:
        Whether there were any.
    """
    victims = locked(connection, unfinished(before), size)
    cleared = clear(connection, victims, chunks.c.stored_at < before, size)
    empty = sa.and_(uploads.c.upload_no.in_(cleared.whole), ~_has_chunk())
    connection.execute(sa.delete(uploads).where(empty))
    return bool(victims)


def prune_health(connection: sa.Connection, before: str) -> bool:
    """Delete some health reports received before then; whether there may be more."""
    number, received = health_reports.c.report_no, health_reports.c.received_at
    first = sa.select(number).order_by(number).limit(HEALTH_BATCH)  # they come in order of time
    old = sa.delete(health_reports).where(number.in_(first), received < before)
    gone = connection.execute(old)
    return gone.rowcount == HEALTH_BATCH


def to_clear() -> sa.Select[Any]:
    """Uploads whose rows may go, those that wait longest first."""
    since = uploads.c.clear_since
    return sa.select(uploads.c.upload_no).where(since.is_not(None)).order_by(since)


def uploads_of(stream: str, before: str) -> sa.Select[Any]:
    """The visible uploads of a stream that were completed before then, the oldest first."""
    ended = uploads.c.ended_at
    old = sa.select(uploads.c.upload_no).where(VISIBLE, uploads.c.stream == stream, ended < before)
    return old.order_by(ended)


def unfinished(before: str) -> sa.Select[Any]:
    """Open uploads with a chunk stored before then, or opened before then and without a chunk."""
    old = sa.or_(_has_chunk(chunks.c.stored_at < before), ~_has_chunk())
    due = sa.select(uploads.c.upload_no).where(
        uploads.c.ended_at.is_(None), uploads.c.opened_at < before, old
    )
    return due.order_by(uploads.c.opened_at)


def locked(connection: sa.Connection, due: sa.Select[Any], size: StepSize = STEP) -> Sequence[int]:
    """The first uploads that no other transaction holds, locked to the end of this one."""
    # what is held is in use, or swept by another process: the next sweep finds it
    found = due.limit(size.uploads).with_for_update(skip_locked=True)
    return connection.scalars(found).all()


def _has_chunk(which: sa.ColumnElement[bool] | None = None) -> sa.ColumnElement[bool]:
    """Whether an upload has a chunk, of which this is true."""
    of_it = chunks.c.upload_no == uploads.c.upload_no
    return sa.exists().where(of_it, sa.true() if which is None else which)

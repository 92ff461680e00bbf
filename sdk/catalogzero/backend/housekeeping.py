"""What may go: rows that nobody sees any more, chunks never completed, old health reports.

Owns the deletion, in bounded transactions that each look again whether the rows may still go; that
an upload is finished, and each source's numbers, are kept for ever. What a step costs depends on
what it deletes, not on what is stored: each finds its rows by an index that holds no others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    exists,
    or_,
    select,
    true,
    update,
)
from structlog.typing import FilteringBoundLogger

from catalogzero.backend import feed, removal
from catalogzero.backend.clearing import HEALTH_BATCH, UPLOADS_A_STEP, clear
from catalogzero.backend.hours import prune_hours
from catalogzero.backend.schema import VISIBLE, chunks, health_reports, uploads
from catalogzero.backend.settings import BackendSettings
from catalogzero.backend.store import Database
from catalogzero.backend.uploads import hide
from catalogzero.clock import Clock

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
        """Delete all that may go now, one bounded transaction after the other."""
        unfinished, history = self._limits()
        at, kept = self._ago(0), self._settings.stream_retention_s
        steps: list[Step] = [
            *(_retiring(stream, self._ago(kept_s), at) for stream, kept_s in kept.items()),
            clear_hidden,
            lambda connection: collect_unfinished(connection, unfinished),
            lambda connection: prune_health(connection, history),
            lambda connection: prune_hours(connection, history),
            *(_going_on(number, at) for number in await self._database.read(removal.unfinished)),
        ]
        for step in steps:
            while await self._database.write(step):
                pass

    async def lag_s(self) -> dict[str, float]:
        """For how many seconds the oldest rows of each kind could have been deleted."""
        unfinished, history = self._limits()
        kept = self._settings.stream_retention_s.items()
        expired = {f"stream:{stream}": (stream, self._ago(kept_s)) for stream, kept_s in kept}
        found = await self._database.read(
            lambda connection: _oldest(connection, unfinished, expired)
        )
        allowed = {"hidden": self._ago(0), "unfinished": unfinished, "health": history}
        allowed |= {kind: before for kind, (_, before) in expired.items()}
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


def _retiring(stream: str, before: str, at: str) -> Step:
    return lambda connection: retire(connection, stream, before, at)


def _going_on(number: int, at: str) -> Step:
    return lambda connection: removal.step(connection, number, at)


def retire(connection: Connection, stream: str, before: str, at: str) -> bool:
    """Hide some uploads of a stream that were completed before then; whether there were any.

    What is known of their sources stays: what went on purpose is not missing.
    """
    old = uploads_of(stream, before).limit(UPLOADS_A_STEP).with_for_update(skip_locked=True)
    numbers = connection.scalars(old).all()
    return hide(connection, uploads.c.upload_no.in_(numbers), at, feed.What.REMOVED) > 0


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
    number, received = health_reports.c.report_no, health_reports.c.received_at
    first = select(number).order_by(number).limit(HEALTH_BATCH)  # they come in order of time
    old = delete(health_reports).where(number.in_(first), received < before)
    gone = connection.execute(old)
    return gone.rowcount == HEALTH_BATCH


def to_clear() -> Select[Any]:
    """Uploads whose rows may go, those that wait longest first."""
    since = uploads.c.clear_since
    return select(uploads.c.upload_no).where(since.is_not(None)).order_by(since)


def uploads_of(stream: str, before: str) -> Select[Any]:
    """The visible uploads of a stream that were completed before then, the oldest first."""
    ended = uploads.c.ended_at
    old = select(uploads.c.upload_no).where(VISIBLE, uploads.c.stream == stream, ended < before)
    return old.order_by(ended)


def unfinished(before: str) -> Select[Any]:
    """Open uploads with a chunk stored before then, or opened before then and without a chunk."""
    old = or_(_has_chunk(chunks.c.stored_at < before), ~_has_chunk())
    due = select(uploads.c.upload_no).where(
        uploads.c.ended_at.is_(None), uploads.c.opened_at < before, old
    )
    return due.order_by(uploads.c.opened_at)


def _locked(connection: Connection, due: Select[Any]) -> Sequence[int]:
    """The first uploads that no other transaction holds, locked to the end of this one."""
    found = due.limit(UPLOADS_A_STEP).with_for_update(skip_locked=True)
    return connection.scalars(found).all()


def _has_chunk(which: ColumnElement[bool] | None = None) -> ColumnElement[bool]:
    """Whether an upload has a chunk, of which this is true."""
    of_it = chunks.c.upload_no == uploads.c.upload_no
    return exists().where(of_it, true() if which is None else which)


def _oldest(
    connection: Connection, before: str, expired: dict[str, tuple[str, str]]
) -> dict[str, str | None]:
    """Since when the oldest rows of each kind wait to be deleted, or are there."""
    of_streams = {
        kind: connection.scalar(
            uploads_of(stream, until).with_only_columns(uploads.c.ended_at).limit(1)
        )
        for kind, (stream, until) in expired.items()
    }
    first = unfinished(before).with_only_columns(uploads.c.opened_at).limit(1)
    return {
        **of_streams,
        "hidden": connection.scalar(to_clear().with_only_columns(uploads.c.clear_since).limit(1)),
        "unfinished": connection.scalar(first),
        "health": connection.scalar(
            select(health_reports.c.received_at).order_by(health_reports.c.report_no).limit(1)
        ),
    }


def _seconds(earlier: str, later: str) -> float:
    """From one moment to another, in seconds."""
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()

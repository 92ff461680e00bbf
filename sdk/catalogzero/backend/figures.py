"""What the database holds, counted now and then beside the requests, for `/metrics`.

Owns the counting and its pace: a scrape looks only at what was counted last, so that it costs the
database nothing and answers while that is away. What is counted is found by indexes that hold
little else, and in the narrow columns of the fleet.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import partial

from sqlalchemy import Connection, func, select
from structlog.typing import FilteringBoundLogger

from catalogzero.backend.fleet import Totals, read_totals
from catalogzero.backend.schema import uploads
from catalogzero.backend.store import Database
from catalogzero.clock import Clock
from catalogzero.protocol.judging import State
from catalogzero.sql.engines import DATABASE_AWAY

INTERVAL_S = 30.0


@dataclass(frozen=True, slots=True)
class Counted:
    """What the database held at `counted_at`.

    `open_uploads` were begun and not completed; `hook_waiting` wait for the hook, the oldest of
    them since `hook_since`.
    """

    counted_at: datetime
    totals: Totals
    open_uploads: int
    hook_waiting: int
    hook_since: datetime | None


class Figures:
    """Counts every half minute; `last` is None until it has counted once.

    `answers` tells whether the database answered the last time that it was asked.
    """

    def __init__(self, database: Database, clock: Clock, log: FilteringBoundLogger) -> None:
        self._database, self._clock, self._log = database, clock, log
        self.last: Counted | None = None
        self.answers = True

    async def run(self) -> None:
        """Count until cancelled; while the database is away, the last count stays."""
        while True:
            now = self._clock.now()
            try:
                self.last = await self._database.read(partial(count, now=now))
                self.answers = True
            except DATABASE_AWAY:
                self.answers = False
                self._log.warning("figures_wait_for_the_database")
            await self._clock.sleep(INTERVAL_S)


def count(connection: Connection, now: datetime) -> Counted:
    """What the database holds."""
    still_open = select(func.count()).where(uploads.c.state == State.OPEN.value)
    waits = uploads.c.hook_due_at.is_not(None) & uploads.c.visible
    hooks = select(func.count(), func.min(uploads.c.ended_at)).where(waits)
    waiting, since = connection.execute(hooks).one()
    return Counted(
        counted_at=now,
        totals=read_totals(connection, now),
        open_uploads=connection.scalar(still_open) or 0,
        hook_waiting=waiting,
        hook_since=None if since is None else datetime.fromisoformat(since),
    )

"""What the database holds, counted now and then beside the requests, for `/metrics`.

Owns the counting and its pace: a scrape looks only at what was counted last, so that it costs the
database nothing and answers while that is away. What is counted is found by indexes that hold
little else, and in the narrow columns of the fleet.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

from sqlalchemy import Connection, func, select
from structlog.typing import FilteringBoundLogger

from catalogzero.backend.fleet import Totals, read_totals
from catalogzero.backend.housekeeping import Housekeeping
from catalogzero.backend.schema import uploads
from catalogzero.backend.store import BackendDatabase, count_rows
from catalogzero.clock import Clock

INTERVAL_S = 30.0


@dataclass(frozen=True, slots=True)
class Counted:
    """What the database held at `counted_at`.

    `open_uploads` were begun and not completed; `hook_waiting` wait for the hook, the oldest of
    them since `hook_since`; for `hook_failed` it was called too often. `lag_s` is for how long the
    oldest rows that may be deleted wait for it, by kind.
    """

    counted_at: datetime
    totals: Totals
    open_uploads: int
    hook_waiting: int
    hook_since: datetime | None
    hook_failed: int
    lag_s: dict[str, float] = field(default_factory=dict)


class Figures:
    """Counts every half minute; `last` is None until it has counted once.

    `answers` is whether the database answered when it was last asked.
    """

    def __init__(
        self,
        database: BackendDatabase,
        housekeeping: Housekeeping,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._database, self._housekeeping = database, housekeeping
        self._clock, self._log = clock, log
        self.last: Counted | None = None
        self.answers = True

    async def run(self) -> None:
        """Count until cancelled; while the database is away, the last count stays."""
        while True:
            now = self._clock.now()
            try:
                counted = await self._database.read(partial(count, now=now))
                self.last = replace(counted, lag_s=await self._housekeeping.lag_s())
                self.answers = True
            except Exception:  # noqa: BLE001 - a database that is away comes back
                self.answers = False
                self._log.exception("figures_failed")
            await self._clock.sleep(INTERVAL_S)


def count(connection: Connection, now: datetime) -> Counted:
    """What the database holds."""
    waits = uploads.c.hook_due_at.is_not(None)
    hooks = select(func.count(), func.min(uploads.c.ended_at)).where(waits)
    waiting, since = connection.execute(hooks).one()
    return Counted(
        counted_at=now,
        totals=read_totals(connection, now),
        open_uploads=count_rows(connection, uploads, uploads.c.ended_at.is_(None)),
        hook_waiting=waiting,
        hook_since=None if since is None else datetime.fromisoformat(since),
        hook_failed=count_rows(connection, uploads, uploads.c.hook_failed_at.is_not(None)),
    )

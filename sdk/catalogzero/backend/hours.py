"""What each installation did, hour by hour: the history behind its page.

Owns the rows of `installation_hours`, so that a month is read as 720 short rows, never as the
reports and uploads themselves. Every function takes the connection of a running transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, case, select

from catalogzero.backend.clearing import HEALTH_BATCH, delete_some
from catalogzero.backend.schema import installation_hours
from catalogzero.backend.store import Columns, insert_many

KEY = ("tenant_id", "installation_id", "hour")
COUNTED = ("ok", "degraded", "failing", "uploads", "records")
HIGHEST = ("waiting", "dead")
DAYS = 30
HOUR_CHARS = len("2026-01-01T00")


@dataclass(slots=True)
class Day:
    """One day (UTC) of an installation.

    `ok`, `degraded` and `failing` count its health reports, `uploads` and `records` what became
    visible; `waiting` and `dead` are the most uploads that it reported in its outbox.
    """

    day: str
    ok: int = 0
    degraded: int = 0
    failing: int = 0
    uploads: int = 0
    records: int = 0
    waiting: int = 0
    dead: int = 0

    @property
    def tone(self) -> str:
        """The style of the day in charts: the worst that was reported, or that nothing was."""
        if self.failing:
            return "fail"
        if self.degraded:
            return "warn"
        return "ok" if self.ok or self.uploads else "miss"


def add_upload(
    connection: Connection, tenant_id: int, installation_id: str, records: int, at: str
) -> None:
    """Count an upload that became visible at `at`."""
    key = {"tenant_id": tenant_id, "installation_id": installation_id}
    _add(connection, [{**_EMPTY, **key, "hour": at[:HOUR_CHARS], "uploads": 1, "records": records}])


def add_reports(
    connection: Connection, reports: Iterable[tuple[Mapping[str, Any], str, Mapping[str, Any]]]
) -> None:
    """Count health reports: of each its installation's key, its time, and what it said."""
    rows: dict[tuple[Any, ...], Columns] = {}
    for key, at, said in reports:
        named = {**key, "hour": at[:HOUR_CHARS]}
        row = rows.setdefault(tuple(named.values()), {**_EMPTY, **named})
        if said["status"] in COUNTED:
            row[said["status"]] += 1
        for name in HIGHEST:
            row[name] = max(row[name], said[name] or 0)
    # sorted: two batches lock their rows in one order, and so never wait for each other
    _add(connection, [row for _, row in sorted(rows.items())])


def days_of(
    connection: Connection, tenant_id: int, installation_id: str, now: datetime
) -> list[Day]:
    """The last thirty days of an installation, the oldest first, the empty ones too."""
    first = now.date() - timedelta(days=DAYS - 1)
    names = [str(first + timedelta(days=number)) for number in range(DAYS)]
    days = {name: Day(name) for name in names}
    own = {"tenant_id": tenant_id, "installation_id": installation_id}
    later = installation_hours.c.hour >= str(first)
    rows = connection.execute(select(installation_hours).filter_by(**own).where(later))
    for row in rows.mappings():
        day = days.get(row["hour"][:10])
        for name in (*COUNTED, *HIGHEST) if day is not None else ():
            known, more = getattr(day, name), row[name]
            setattr(day, name, known + more if name in COUNTED else max(known, more))
    return list(days.values())


def prune_hours(connection: Connection, before: str) -> bool:
    """Delete some hours before then; whether there may be more."""
    old = installation_hours.c.hour < before[:HOUR_CHARS]
    return delete_some(connection, installation_hours, old) == HEALTH_BATCH


def _add(connection: Connection, rows: list[Columns]) -> None:
    """Add rows to those of their hours."""
    stored = installation_hours.c

    def changes(new: Any) -> Columns:
        # SQLite has no GREATEST, and PostgreSQL no MAX of two values
        highest = {
            name: case((new[name] > stored[name], new[name]), else_=stored[name])
            for name in HIGHEST
        }
        return {**{name: stored[name] + new[name] for name in COUNTED}, **highest}

    insert_many(connection, installation_hours, rows, KEY, changes)


_EMPTY = {name: value for name, value in asdict(Day("")).items() if name != "day"}

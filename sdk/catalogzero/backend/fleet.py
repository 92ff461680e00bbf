"""The fleet as it stands in the database: a page of it, its totals, and one installation.

Owns the reading alone, in the columns that reports and uploads fill; it changes nothing and knows
no HTML. Finding, sorting and counting are the database's, so that 10,000 installations cost no more
memory here than one page.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, Row, Select, and_, case, func, or_, select

from catalogzero.backend.hours import Day, days_of
from catalogzero.backend.schema import installations, sources, tenants, uploads
from catalogzero.protocol.judging import State

STATES = ("failing", "silent", "degraded", "unknown", "ok")
TROUBLED = ("failing", "silent")
SORTS = ("state", "tenant", "installation", "entry", "version", "seen", "upload", "waiting")
PAGE_ROWS = 25
MAX_QUERY_CHARS = 200
MAX_WORDS = 8
MAX_SOURCES = 10_000
LAST_UPLOADS = 20
WORST_TENANTS = 10
SHOWN_CHARS = 200
_I = installations.c


@dataclass(frozen=True, slots=True)
class Query:
    """What an operator looks for.

    `find` are words that all stand in tenant, installation, entry, version or labels; `state` is
    one of `STATES`, `trouble` for failing and silent, or empty for all; `sort` is one of `SORTS`,
    with a `-` before it from the greatest down; `page` counts from 1.
    """

    find: str = ""
    state: str = ""
    sort: str = "state"
    page: int = 1


@dataclass(frozen=True, slots=True)
class FleetRow:
    """One installation as the operator sees it; times are ISO 8601, empty where there was none.

    `state` is what its last report said (ok, degraded, failing), unknown where it never said, and
    silent where it missed three of its reports (or was silent for a day). `backlog` and `dead` are
    uploads in its outbox, `missing` the sources that the backend does not have, None where it
    never said.
    """

    tenant: str
    installation_id: str
    entry: str
    version: str
    labels: dict[str, str]
    state: str
    reasons: str
    last_seen_at: str
    last_upload_at: str
    backlog: int | None
    backlog_bytes: int | None
    oldest_age_s: float | None
    dead: int | None
    missing: int | None


@dataclass(frozen=True, slots=True)
class Totals:
    """How many installations are in each state, and what they say waits, was refused or misses."""

    states: dict[str, int]
    backlog: int
    dead: int
    missing: int


@dataclass(frozen=True, slots=True)
class TenantTrouble:
    """A tenant some of whose installations are failing or silent."""

    tenant: str
    failing: int
    silent: int
    installations: int


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the fleet: `found` installations fit, of which these are `rows`."""

    rows: list[FleetRow]
    found: int
    totals: Totals
    worst: list[TenantTrouble]


@dataclass(frozen=True, slots=True)
class LastUpload:
    """An upload that ended: `outcome` is visible, replaced or superseded."""

    ended_at: str
    outcome: str
    stream: str
    source: str
    source_seq: int
    records: int
    job_id: str


@dataclass(frozen=True, slots=True)
class Detail:
    """What is known of one installation; `report` is its last one, as it came."""

    row: FleetRow
    first_seen_at: str
    registered_at: str
    epoch_at: str
    health_at: str
    handler: str
    sources: int
    missing_sources: list[str]
    days: list[Day]
    uploads: list[LastUpload]
    report: dict[str, Any]


def read_page(connection: Connection, query: Query, now: datetime) -> Page:
    """A page of the installations that fit, and the totals over all that the words fit."""
    state, words = _state(now), _words(query.find)
    wanted = and_(words, _wanted(query.state, state))
    totals = _totals(connection, state, words)
    found = connection.scalar(_joined(func.count()).where(wanted)) or 0
    statement = (
        _joined(*_columns(state))
        .where(wanted)
        .order_by(*_order(query.sort, state), tenants.c.name, _I.installation_id)
        .limit(PAGE_ROWS)
        .offset((query.page - 1) * PAGE_ROWS)
    )
    rows = [_fleet_row(row) for row in connection.execute(statement)]
    return Page(rows, found, totals, _worst(connection, state))


def read_totals(connection: Connection, now: datetime) -> Totals:
    """The totals over the whole fleet."""
    return _totals(connection, _state(now), _words(""))


def read_detail(
    connection: Connection, tenant: str, installation_id: str, now: datetime
) -> Detail | None:
    """One installation; None where there is none of that id."""
    state = _state(now)
    more = (_I.tenant_id, _I.first_seen_at, _I.registered_at, _I.epoch_at, _I.health_at, _I.handler)
    row = connection.execute(
        _joined(*_columns(state), *more, _I.health_report).where(
            tenants.c.name == tenant, _I.installation_id == installation_id
        )
    ).one_or_none()
    if row is None:
        return None
    report = orjson.loads(row.health_report) if row.health_report else {}
    outbox = report.get("outbox")
    named = outbox.get("missing_sources") if isinstance(outbox, dict) else None
    return Detail(
        row=_fleet_row(row),
        first_seen_at=row.first_seen_at,
        registered_at=row.registered_at or "",
        epoch_at=row.epoch_at or "",
        health_at=row.health_at or "",
        handler=row.handler or "",
        sources=_source_count(connection, row.tenant_id, installation_id),
        missing_sources=[_named(one) for one in named[:20]] if isinstance(named, list) else [],
        days=days_of(connection, row.tenant_id, installation_id, now),
        uploads=_last_uploads(connection, row.tenant_id, installation_id),
        report=report,
    )


def _named(source: Any) -> str:
    """A source of a report, by its name and its key."""
    one = source if isinstance(source, dict) else {"source_key": source}
    key, name = str(one.get("source_key"))[:SHOWN_CHARS], one.get("source")
    return f"{str(name)[:SHOWN_CHARS]} ({key})" if name else key


def _state(now: datetime) -> ColumnElement[str]:
    """How an installation is, as far as one can know at that moment."""
    is_silent = _I.seen_s + _I.patience_s < now.timestamp()
    return case((is_silent, "silent"), else_=_I.status)


def _rank(state: ColumnElement[str]) -> ColumnElement[int]:
    """Where a state stands in `STATES`: the ones in need of somebody first."""
    return case(*((state == name, place) for place, name in enumerate(STATES)), else_=len(STATES))


def _words(find: str) -> ColumnElement[bool]:
    """Every word stands somewhere in what an installation is called."""
    named = (tenants.c.name, _I.installation_id, _I.entry, _I.version, _I.labels)
    fits = [
        or_(*(func.lower(column).contains(word, autoescape=True) for column in named))
        for word in find.replace("\0", "").lower()[:MAX_QUERY_CHARS].split()[:MAX_WORDS]
    ]
    return and_(_I.tenant_id.is_not(None), *fits)


def _wanted(wanted: str, state: ColumnElement[str]) -> ColumnElement[bool]:
    if not wanted:
        return _I.tenant_id.is_not(None)
    return state.in_(TROUBLED) if wanted == "trouble" else state == wanted


def _order(sort: str, state: ColumnElement[str]) -> list[ColumnElement[Any]]:
    """By what the rows stand, what was never said behind all others."""
    column: ColumnElement[Any] = {
        "state": _rank(state),
        "tenant": tenants.c.name,
        "installation": _I.installation_id,
        "entry": _I.entry,
        "version": _I.version,
        "seen": _I.last_seen_at,
        "upload": _I.last_upload_at,
        "waiting": _I.waiting,
    }[sort.removeprefix("-")]
    return [column.is_(None), column.desc() if sort.startswith("-") else column]


def _joined(*columns: Any) -> Select[Any]:
    """Of the installations that were not removed."""
    joined = installations.join(tenants, tenants.c.tenant_id == _I.tenant_id)
    return select(*columns).select_from(joined).where(_I.removed_at.is_(None))


def _columns(state: ColumnElement[str]) -> tuple[Any, ...]:
    return (
        tenants.c.name.label("tenant"),
        *(_I.installation_id, _I.entry, _I.version, _I.labels, _I.reasons, _I.last_seen_at),
        *(_I.last_upload_at, _I.waiting, _I.waiting_bytes, _I.oldest_age_s, _I.dead, _I.missing),
        state.label("state"),
    )


def _fleet_row(row: Row[Any]) -> FleetRow:
    return FleetRow(
        tenant=row.tenant,
        installation_id=row.installation_id,
        entry=(row.entry or "")[:SHOWN_CHARS],
        version=(row.version or "")[:SHOWN_CHARS],
        labels=orjson.loads(row.labels),
        state=row.state,
        reasons=row.reasons,
        last_seen_at=row.last_seen_at,
        last_upload_at=row.last_upload_at or "",
        backlog=row.waiting,
        backlog_bytes=row.waiting_bytes,
        oldest_age_s=row.oldest_age_s,
        dead=row.dead,
        missing=row.missing,
    )


def _totals(
    connection: Connection, state: ColumnElement[str], words: ColumnElement[bool]
) -> Totals:
    counted = (func.count(), func.sum(_I.waiting), func.sum(_I.dead), func.sum(_I.missing))
    named = state.label("state")
    rows = connection.execute(_joined(named, *counted).where(words).group_by(named)).all()
    found = {row[0]: row[1] for row in rows}
    sums = [sum(int(row[place] or 0) for row in rows) for place in (2, 3, 4)]
    return Totals({name: found.get(name, 0) for name in STATES}, *sums)


def _worst(connection: Connection, state: ColumnElement[str]) -> list[TenantTrouble]:
    """The tenants with the most installations in trouble."""
    counts = [
        func.sum(case((state == name, 1), else_=0)).label(name) for name in ("failing", "silent")
    ]
    troubled = func.sum(case((state.in_(TROUBLED), 1), else_=0))
    rows = connection.execute(
        _joined(tenants.c.name, *counts, func.count().label("all"))
        .group_by(tenants.c.name)
        .having(troubled > 0)
        .order_by(troubled.desc(), tenants.c.name)
        .limit(WORST_TENANTS)
    )
    return [TenantTrouble(row[0], int(row[1]), int(row[2]), int(row[3])) for row in rows]


def _source_count(connection: Connection, tenant_id: int, installation_id: str) -> int:
    """How many sources an installation has, counted as far as `MAX_SOURCES`."""
    known = select(sources.c.source_id).where(
        sources.c.tenant_id == tenant_id, sources.c.installation_id == installation_id
    )
    counted = select(func.count()).select_from(known.limit(MAX_SOURCES).subquery())
    return connection.scalar(counted) or 0


def _last_uploads(connection: Connection, tenant_id: int, installation_id: str) -> list[LastUpload]:
    """The uploads of an installation that ended last, the newest first."""
    rows = connection.execute(
        select(uploads)
        .where(
            uploads.c.tenant_id == tenant_id,
            uploads.c.installation_id == installation_id,
            uploads.c.ended_at.is_not(None),
            uploads.c.chunks.is_not(None),  # not of a source that was removed
        )
        .order_by(uploads.c.ended_at.desc())
        .limit(LAST_UPLOADS)
    )
    return [
        LastUpload(
            ended_at=row.ended_at,
            outcome=_outcome(row),
            stream=(row.stream or "")[:SHOWN_CHARS],
            source=(row.source or "")[:SHOWN_CHARS],
            source_seq=row.source_seq or 0,
            records=row.records or 0,
            job_id=row.job_id or "",
        )
        for row in rows
    ]


def _outcome(row: Row[Any]) -> str:
    if row.state == State.SUPERSEDED.value:
        return "superseded"
    return "visible" if row.visible else "replaced"

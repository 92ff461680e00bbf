"""The fleet as it stands in the database: a page of it, its totals, and one installation.

Owns the reading alone, in the columns that reports and uploads fill; it changes nothing and knows
no HTML. Finding, sorting and counting are the database's, so that 10,000 installations cost no more
memory here than one page.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, Row, Select, and_, case, func, or_, select

from catalogzero.backend.hours import Day, days_of
from catalogzero.backend.schema import installations, sources, tenants, uploads
from catalogzero.protocol.judging import UploadState
from catalogzero.wire.messages import JsonObject

STATES = ("failing", "silent", "degraded", "unknown", "ok")
TROUBLED = ("failing", "silent")
CAUSES = ("moved", "paused", "dead", "failed", "silent")
"""What puts an installation in trouble, the worst first."""

SORTS = ("state", "tenant", "installation", "entry", "version", "seen", "upload", "waiting")
PAGE_ROWS = 25
MAX_QUERY_CHARS = 200
MAX_WORDS = 8
MAX_SOURCES = 10_000
LAST_UPLOADS = 20
WORST_TENANTS = 10
VERSIONS = 8
VERSION_UPLOADS = 1_000
"""In how many of its last uploads an installation's versions are looked for."""

SHOWN_CHARS = 200
NAMED = ("entry", "version")
_I = installations.c


@dataclass(frozen=True, slots=True)
class Query:
    """What an operator looks for.

    `find` are words that all stand in tenant, installation, entry, version or labels; `state` is
    one of `STATES` or `CAUSES`, `trouble` for failing and silent, or empty for all; `sort` is one
    of `SORTS`, with a `-` before it from the greatest down; `page` counts from 1.
    """

    find: str = ""
    state: str = ""
    sort: str = "state"
    page: int = 1


@dataclass(frozen=True, slots=True)
class FleetRow:
    """One installation as the operator sees it; times are ISO 8601, empty where there was none.

    `state` is what its last report said (ok, degraded, failing), unknown where it never said, and
    silent where it missed three of its reports (or was silent for a day); it is so `since`, by
    what came here. `cause` is one of `CAUSES`, empty where it is not in trouble. `backlog` and
    `dead` are uploads in its outbox, `missing` the sources that the backend does not have, None
    where it never said.
    """

    tenant: str
    installation_id: str
    entry: str
    version: str
    labels: dict[str, str]
    state: str
    cause: str
    since: str
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
    """A tenant some of whose installations are in trouble, the first of them `since` then.

    It was last heard from at `last_seen_at`, by any of its installations.
    """

    tenant: str
    failing: int
    silent: int
    installations: int
    since: str
    last_seen_at: str
    last_upload_at: str


@dataclass(frozen=True, slots=True)
class FleetTrouble:
    """The installations of the whole fleet that one cause keeps from working.

    The first of them is so `since` then; `reasons` is what one of them last said.
    """

    cause: str
    installations: int
    tenants: int
    since: str
    reasons: str


@dataclass(frozen=True, slots=True)
class VersionInUse:
    """A version of an entry, and how many installations run it."""

    entry: str
    version: str
    installations: int
    failing: int
    silent: int


@dataclass(frozen=True, slots=True)
class FleetPage:
    """One page of the fleet: `found` installations fit, of which these are `rows`.

    All else but `totals` is of the whole fleet: of `clients` with an installation,
    `clients_in_trouble` have one that is failing, silent or refused.
    """

    rows: list[FleetRow]
    found: int
    totals: Totals
    clients: int
    clients_in_trouble: int
    worst: list[TenantTrouble]
    troubles: list[FleetTrouble]
    versions: list[VersionInUse]


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
    versions: list[tuple[str, str]]
    """Versions of its last uploads, each with when its first of them came, the newest first."""
    report: JsonObject


def read_page(
    connection: Connection, query: Query, now: datetime, refused: Collection[str] = ()
) -> FleetPage:
    """A page of the installations that fit, and how the whole fleet does.

    `refused` are tenants in trouble whatever their installations said: they are kept out.
    """
    state, words = state_at(now), has_words(query.find)
    wanted = words
    if query.state:
        states = TROUBLED if query.state == "trouble" else (query.state,)
        is_cause = query.state in CAUSES
        wanted = and_(words, cause_at(now) == query.state if is_cause else state.in_(states))
    found = connection.scalar(_joined(func.count()).where(wanted)) or 0
    statement = (
        _joined(*_columns(now))
        .where(wanted)
        .order_by(*_order(query.sort, state), tenants.c.name, _I.installation_id)
        .limit(PAGE_ROWS)
        .offset((query.page - 1) * PAGE_ROWS)
    )
    rows = [_fleet_row(row) for row in connection.execute(statement)]
    totals = read_totals(connection, now, query.find)
    clients = connection.scalar(_joined(func.count(_I.tenant_id.distinct()))) or 0
    worst, troubled = _worst(connection, now, refused)
    troubles, versions = _troubles(connection, now), _versions(connection, now)
    return FleetPage(rows, found, totals, clients, troubled, worst, troubles, versions)


def read_totals(connection: Connection, now: datetime, find: str = "") -> Totals:
    """The totals over the whole fleet, or over what some words fit."""
    state = state_at(now).label("state")
    counted = (func.count(), func.sum(_I.waiting), func.sum(_I.dead), func.sum(_I.missing))
    statement = _joined(state, *counted).where(has_words(find)).group_by(state)
    rows = connection.execute(statement).all()
    found = {row[0]: row[1] for row in rows}
    sums = [sum(int(row[place] or 0) for row in rows) for place in (2, 3, 4)]
    return Totals({name: found.get(name, 0) for name in STATES}, *sums)


def read_detail(
    connection: Connection, tenant: str, installation_id: str, now: datetime
) -> Detail | None:
    """One installation; None where there is none of that id."""
    said = ("first_seen_at", "registered_at", "epoch_at", "health_at", "handler")
    more = [func.coalesce(_I[name], "").label(name) for name in said]
    one = and_(tenants.c.name == tenant, _I.installation_id == installation_id)
    columns = (*_columns(now), *more, _I.tenant_id, _I.health_report)
    row = connection.execute(_joined(*columns).where(one)).one_or_none()
    if row is None:
        return None
    own = and_(sources.c.tenant_id == row.tenant_id, sources.c.installation_id == installation_id)
    some = select(sources.c.source_id).where(own).limit(MAX_SOURCES).subquery()
    report = orjson.loads(row.health_report) if row.health_report else {}
    outbox = report.get("outbox")
    named = outbox.get("missing_sources") if isinstance(outbox, dict) else None
    return Detail(
        row=_fleet_row(row),
        **{name: row._mapping[name] for name in said},
        sources=connection.scalar(select(func.count()).select_from(some)) or 0,
        missing_sources=[_named(one) for one in named[:20]] if isinstance(named, list) else [],
        days=days_of(connection, row.tenant_id, installation_id, now),
        uploads=_last_uploads(connection, row.tenant_id, installation_id),
        versions=_versions_sent(connection, row.tenant_id, installation_id),
        report=report,
    )


def _named(source: Any) -> str:
    """A source of a report, by its name and its key."""
    one = source if isinstance(source, dict) else {"source_key": source}
    key, name = str(one.get("source_key"))[:SHOWN_CHARS], one.get("source")
    return f"{str(name)[:SHOWN_CHARS]} ({key})" if name else key


def state_at(now: datetime) -> ColumnElement[str]:
    """How an installation is, as far as one can know at that moment."""
    return case((_is_silent(now), "silent"), else_=_I.status)


def cause_at(now: datetime) -> ColumnElement[str]:
    """Why an installation is in trouble at that moment: one of `CAUSES`, or empty."""
    return case((_is_silent(now), "silent"), else_=_I.cause)


def _since_at(now: datetime) -> ColumnElement[str]:
    """Since when it is as it is; NULL where that is not known."""
    return case((_is_silent(now), _I.last_seen_at), else_=_I.status_since)


def _is_silent(now: datetime) -> ColumnElement[bool]:
    return _I.seen_s + _I.patience_s < now.timestamp()


def has_words(find: str) -> ColumnElement[bool]:
    """Every word stands somewhere in what an installation is called."""
    named = (tenants.c.name, _I.installation_id, _I.entry, _I.version, _I.labels)
    fits = [
        or_(*(func.lower(column).contains(word, autoescape=True) for column in named))
        for word in find.replace("\0", "").lower()[:MAX_QUERY_CHARS].split()[:MAX_WORDS]
    ]
    # true of every row: SQLAlchemy has no AND of nothing
    return and_(_I.tenant_id.is_not(None), *fits)


def _order(sort: str, state: ColumnElement[str]) -> list[ColumnElement[Any]]:
    """By what the rows stand, what was never said behind all others; by state as in `STATES`."""
    rank = case(*((state == name, place) for place, name in enumerate(STATES)), else_=len(STATES))
    column: ColumnElement[Any] = {
        "state": rank,
        "tenant": tenants.c.name,
        "installation": _I.installation_id,
        "entry": _I.entry,
        "version": _I.version,
        "seen": _I.last_seen_at,
        "upload": _I.last_upload_at,
        "waiting": _I.waiting,
    }[sort.removeprefix("-")]
    # by itself NULL comes first on SQLite, and last on PostgreSQL
    return [column.is_(None), column.desc() if sort.startswith("-") else column]


def _joined(*columns: Any) -> Select[Any]:
    """Of the installations that were not removed."""
    joined = installations.join(tenants, tenants.c.tenant_id == _I.tenant_id)
    return select(*columns).select_from(joined).where(_I.removed_at.is_(None))


def _columns(now: datetime) -> list[Any]:
    """The columns of a `FleetRow`, under its names."""
    return [
        tenants.c.name.label("tenant"),
        state_at(now).label("state"),
        cause_at(now).label("cause"),
        func.coalesce(_since_at(now), "").label("since"),
        *(func.coalesce(_I[name], "").label(name) for name in NAMED),
        *(_I.installation_id, _I.labels, _I.reasons, _I.last_seen_at),
        func.coalesce(_I.last_upload_at, "").label("last_upload_at"),
        *(_I.waiting.label("backlog"), _I.waiting_bytes.label("backlog_bytes")),
        *(_I.oldest_age_s, _I.dead, _I.missing),
    ]


def _fleet_row(row: Row[Any]) -> FleetRow:
    found = {one.name: row._mapping[one.name] for one in fields(FleetRow)}
    found |= {name: cut(found[name]) for name in NAMED}
    return FleetRow(**{**found, "labels": orjson.loads(row.labels)})


def _worst(
    connection: Connection, now: datetime, refused: Collection[str]
) -> tuple[list[TenantTrouble], int]:
    """The tenants with the most installations in trouble, and how many tenants have some."""
    state = state_at(now)
    failing, silent, troubled = _counts(state, ("failing",), ("silent",), TROUBLED)
    since = func.min(case((state.in_(TROUBLED), _since_at(now))))
    last = (func.max(_I.last_seen_at), func.coalesce(func.max(_I.last_upload_at), ""))
    counted = (failing, silent, func.count(), func.coalesce(since, ""), *last)
    rows = connection.execute(
        _joined(tenants.c.name, *counted, func.count().over())
        .group_by(tenants.c.name)
        .having(or_(troubled > 0, tenants.c.name.in_(refused)))
        .order_by(troubled.desc(), tenants.c.name)
        .limit(WORST_TENANTS)
    ).all()
    found = [
        TenantTrouble(row[0], int(row[1]), int(row[2]), int(row[3]), *row[4:7]) for row in rows
    ]
    return found, rows[0][7] if rows else 0


def _troubles(connection: Connection, now: datetime) -> list[FleetTrouble]:
    """Each cause with the installations that it keeps from working, the worst cause first."""
    cause, since = cause_at(now).label("cause"), func.coalesce(func.min(_since_at(now)), "")
    counted = (func.count(), func.count(_I.tenant_id.distinct()), since, func.max(_I.reasons))
    statement = _joined(cause, *counted).where(cause != "").group_by(cause)
    found = [FleetTrouble(*row) for row in connection.execute(statement)]
    return sorted(found, key=lambda one: CAUSES.index(one.cause))


def _versions(connection: Connection, now: datetime) -> list[VersionInUse]:
    """The versions that most installations run."""
    named = [func.coalesce(_I[name], "") for name in NAMED]
    counts = _counts(state_at(now), ("failing",), ("silent",))
    statement = _joined(*named, func.count(), *counts).group_by(_I.entry, _I.version)
    rows = connection.execute(statement.order_by(func.count().desc(), *named).limit(VERSIONS))
    return [VersionInUse(cut(row[0]), cut(row[1]), *map(int, row[2:])) for row in rows]


def _counts(state: ColumnElement[str], *groups: Collection[str]) -> list[ColumnElement[int]]:
    """How many installations are in a state of each group."""
    return [func.sum(case((state.in_(group), 1), else_=0)) for group in groups]


def _versions_sent(
    connection: Connection, tenant_id: int, installation_id: str
) -> list[tuple[str, str]]:
    """The versions of an installation's last uploads, and when the first of each ended."""
    last = (
        select(uploads.c.version, uploads.c.ended_at)
        .filter_by(tenant_id=tenant_id, installation_id=installation_id)
        .where(uploads.c.ended_at.is_not(None), uploads.c.version.is_not(None))
        .order_by(uploads.c.ended_at.desc())
        .limit(VERSION_UPLOADS)
        .subquery()
    )
    first = func.min(last.c.ended_at)
    statement = select(last.c.version, first).group_by(last.c.version).order_by(first.desc())
    rows = connection.execute(statement.limit(VERSIONS))
    return [(cut(version), at) for version, at in rows]


def _last_uploads(connection: Connection, tenant_id: int, installation_id: str) -> list[LastUpload]:
    """The uploads of an installation that ended last, the newest first."""
    is_superseded = uploads.c.state == UploadState.SUPERSEDED.value
    statement = (
        select(
            uploads.c.ended_at,
            case((is_superseded, "superseded"), (uploads.c.visible, "visible"), else_="replaced"),
            func.coalesce(uploads.c.stream, ""),
            func.coalesce(uploads.c.source, ""),
            func.coalesce(uploads.c.source_seq, 0),
            func.coalesce(uploads.c.records, 0),
            func.coalesce(uploads.c.job_id, ""),
        )
        .filter_by(tenant_id=tenant_id, installation_id=installation_id)
        # neither one that is open, nor of a source that was removed
        .where(uploads.c.ended_at.is_not(None), uploads.c.chunks.is_not(None))
        .order_by(uploads.c.ended_at.desc())
        .limit(LAST_UPLOADS)
    )
    return [LastUpload(*map(cut, row)) for row in connection.execute(statement)]


def cut(value: Any) -> Any:
    """A value as it is shown: a text up to its bound."""
    return value[:SHOWN_CHARS] if isinstance(value, str) else value

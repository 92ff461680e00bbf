"""The fleet page: every installation, what it runs, and how it is.

Owns the reading of the fleet from the database and the page's HTML; it changes nothing. What an
installation reports is anybody's text, so that all of it is escaped, and the page runs no script
but its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from html import escape
from importlib import resources
from string import Template
from typing import Any

import orjson
from aiohttp import web
from sqlalchemy import Connection, Row, select

from catalogzero.backend.schema import installations, tenants
from catalogzero.backend.store import Database
from catalogzero.clock import Clock
from catalogzero.web import Guard, Pages, json_response

COLUMNS = (
    "Tenant",
    "Installation",
    "Entry",
    "Version",
    "Health",
    "Last seen",
    "Last upload",
    "Backlog",
)
STATES = ("failing", "silent", "degraded", "unknown", "ok")
MISSED_REPORTS = 3
SILENT_AFTER_S = 86_400.0
UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
NOT_KEPT = {"Cache-Control": "no-store"}
FILES = {f"/{name}": name for name in ("fleet.css", "fleet.js")}


@dataclass(frozen=True, slots=True)
class FleetRow:
    """One installation as the operator sees it; times are ISO 8601, empty where there was none.

    `state` is what its last report said (ok, degraded, failing), unknown where it never said, and
    silent where it missed three of its reports (or was silent for a day). `backlog` and `dead` are
    uploads in its outbox, none where it never said.
    """

    tenant: str
    installation_id: str
    entry: str
    version: str
    state: str
    reasons: str
    last_seen_at: str
    last_upload_at: str
    backlog: int | None
    backlog_bytes: int | None
    oldest_age_s: float | None
    dead: int | None


class FleetPages:
    """The operator's pages: `/` and `/fleet.json`."""

    def __init__(self, guard: Guard, database: Database, clock: Clock) -> None:
        self._guard, self._database, self._clock = guard, database, clock
        folder = resources.files("catalogzero.backend") / "pages"
        self._page = Template((folder / "fleet.html").read_text())
        self._files = Pages("catalogzero.backend", "pages", FILES)

    def routes(self) -> list[web.RouteDef]:
        """The pages' routes."""
        return [
            web.get("/", self.page),
            web.get("/fleet.json", self.rows),
            *self._files.routes(check=self._guard.check),
        ]

    async def page(self, request: web.Request) -> web.Response:
        """`GET /`: the fleet as a page."""
        self._guard.check(request)
        now = self._clock.now()
        html = await self._database.read(
            lambda connection: self._html(read_fleet(connection, now), now)
        )
        return web.Response(text=html, content_type="text/html", headers=NOT_KEPT)

    def _html(self, fleet: list[FleetRow], now: datetime) -> str:
        """The page."""
        return self._page.substitute(
            head="".join(_head_cell(title) for title in COLUMNS),
            body="\n".join(_table_row(row, now) for row in fleet),
            states="".join(f"<option>{state}</option>" for state in STATES),
            count=len(fleet),
            now=now.isoformat(timespec="seconds"),
            none="hidden" if fleet else "",
            empty="Nothing fits." if fleet else "No installation has been heard from yet.",
        )

    async def rows(self, request: web.Request) -> web.Response:
        """`GET /fleet.json`: the same rows."""
        self._guard.check(request)
        now = self._clock.now()

        def read(connection: Connection) -> web.Response:
            fleet = [asdict(row) for row in read_fleet(connection, now)]
            return json_response({"installations": fleet}, headers=NOT_KEPT)

        return await self._database.read(read)


def read_fleet(connection: Connection, now: datetime) -> list[FleetRow]:
    """Every installation, the ones in need of somebody first."""
    statement = select(installations, tenants.c.name.label("tenant")).join(
        tenants, tenants.c.tenant_id == installations.c.tenant_id
    )
    statement = statement.where(installations.c.removed_at.is_(None))
    fleet = [_fleet_row(row, now) for row in connection.execute(statement)]
    return sorted(fleet, key=lambda row: (STATES.index(row.state), row.tenant, row.installation_id))


def _fleet_row(row: Row[Any], now: datetime) -> FleetRow:
    """What the page shows of one installation; a report's fields are whatever the client wrote."""
    report = orjson.loads(row.health_report) if row.health_report else {}
    outbox = report.get("outbox")
    outbox = outbox if isinstance(outbox, dict) else {}
    reasons = report.get("reasons")
    return FleetRow(
        tenant=row.tenant,
        installation_id=row.installation_id,
        entry=row.entry or str(report.get("entry") or ""),
        version=str(report.get("version") or row.version or ""),
        state=_state(report, row.last_seen_at, now),
        reasons=", ".join(map(str, reasons)) if isinstance(reasons, list) else "",
        last_seen_at=row.last_seen_at,
        last_upload_at=row.last_upload_at or "",
        backlog=_count(outbox.get("uploads")),
        backlog_bytes=_count(outbox.get("bytes")),
        oldest_age_s=_number(outbox.get("oldest_age_s")),
        dead=_count(outbox.get("dead")),
    )


def _state(report: dict[str, Any], last_seen_at: str, now: datetime) -> str:
    """How an installation is, as far as one can know now."""
    interval_s = _number(report.get("interval_s"))
    patience_s = MISSED_REPORTS * interval_s if interval_s else SILENT_AFTER_S
    if now - datetime.fromisoformat(last_seen_at) > timedelta(seconds=min(patience_s, 10**9)):
        return "silent"
    said = report.get("status")
    return said if said in ("ok", "degraded", "failing") else "unknown"


def _number(value: Any) -> float | None:
    """A number that is one, and not below zero."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and value >= 0 else None


def _count(value: Any) -> int | None:
    """A whole number that is one, and not below zero."""
    return value if type(value) is int and value >= 0 else None


def _head_cell(title: str) -> str:
    return f'<th scope="col" aria-sort="none"><button type="button">{title}</button></th>'


def _table_row(row: FleetRow, now: datetime) -> str:
    """One installation's line of the table."""
    cells = "".join(
        f'<td data-title="{title}" data-key="{escape(key)}">{html}</td>'
        for title, (key, html) in zip(COLUMNS, _cells(row, now), strict=True)
    )
    return f'<tr data-state="{row.state}">{cells}</tr>'


def _cells(row: FleetRow, now: datetime) -> list[tuple[str, str]]:
    """What each cell sorts by, and its HTML."""
    plain = (row.tenant, row.installation_id, row.entry, row.version)
    reasons = f"<small>{escape(row.reasons)}</small>" if row.reasons else ""
    state = f'<span class="state">{row.state}</span>{reasons}'
    return [
        *((text, escape(text) or "-") for text in plain),
        (str(STATES.index(row.state)), state),
        (row.last_seen_at, _ago(row.last_seen_at, now)),
        (row.last_upload_at, _ago(row.last_upload_at, now)),
        (str(-1 if row.backlog is None else row.backlog), _backlog(row)),
    ]


def _ago(at: str, now: datetime) -> str:
    """How long ago, with the moment itself on hover."""
    if not at:
        return "never"
    seconds = (now - datetime.fromisoformat(at)).total_seconds()
    return f'<time datetime="{at}" title="{at}">{_span(seconds)} ago</time>'


def _span(seconds: float) -> str:
    """A length of time in its largest unit."""
    for size, unit in UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return "0 s"


def _backlog(row: FleetRow) -> str:
    """What waits in the outbox, and what was refused."""
    if row.backlog is None:
        return "-"
    more = []
    if row.backlog and row.backlog_bytes is not None:
        more.append(f"{row.backlog_bytes / 1e6:.1f} MB")
    if row.backlog and row.oldest_age_s is not None:
        more.append(f"oldest {_span(row.oldest_age_s)}")
    if row.dead:
        more.append(f"{row.dead} refused for good")
    return f"{row.backlog}" + (f"<small>{', '.join(more)}</small>" if more else "")

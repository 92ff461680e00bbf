"""The fleet page: every installation, what it runs, and how it is.

Owns the reading of the fleet from the database and the page's HTML; it changes nothing.

Layer: edge.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from importlib import resources
from string import Template
from typing import Any

import orjson
from aiohttp import web
from sqlalchemy import Connection, Row, select

from catalogzero.backend.operator import OperatorGate
from catalogzero.backend.schema import installations, tenants
from catalogzero.backend.store import Database
from catalogzero.clock import Clock

COLUMNS = {
    "tenant": "Tenant",
    "installation_id": "Installation",
    "entry": "Entry",
    "version": "Version",
    "status": "Health",
    "last_seen_at": "Last seen",
    "last_upload_at": "Last upload",
    "backlog": "Backlog",
}


@dataclass(frozen=True, slots=True)
class FleetRow:
    """One installation as the operator sees it.

    `status` is what its last report said (ok, degraded, failing), else unknown; `backlog` is the
    number of uploads in its outbox, none where it never said.
    """

    tenant: str
    installation_id: str
    entry: str
    version: str
    status: str
    reasons: str
    last_seen_at: str
    last_upload_at: str
    backlog: int | None


class FleetPages:
    """The operator's pages: `/` and `/fleet.json`."""

    def __init__(self, gate: OperatorGate, database: Database, clock: Clock) -> None:
        self._gate, self._database, self._clock = gate, database, clock
        page = resources.files("catalogzero.backend") / "pages" / "fleet.html"
        self._page = Template(page.read_text())

    def routes(self) -> list[web.RouteDef]:
        """The pages' routes."""
        return [web.get("/", self.page), web.get("/fleet.json", self.rows)]

    async def page(self, request: web.Request) -> web.Response:
        """`GET /`: the fleet as a page."""
        self._gate.check(request)
        fleet = await self._database.read(read_fleet)
        html = self._page.substitute(
            head="".join(f'<th scope="col">{title}</th>' for title in COLUMNS.values()),
            body="\n".join(_table_row(row) for row in fleet),
            count=len(fleet),
            now=self._clock.now().isoformat(timespec="seconds"),
        )
        return web.Response(
            text=html,
            content_type="text/html",
            headers={
                "Cache-Control": "no-store",
                "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
            },
        )

    async def rows(self, request: web.Request) -> web.Response:
        """`GET /fleet.json`: the same rows."""
        self._gate.check(request)
        fleet = await self._database.read(read_fleet)
        body = orjson.dumps({"installations": [asdict(row) for row in fleet]})
        return web.Response(body=body, content_type="application/json")


def read_fleet(connection: Connection) -> list[FleetRow]:
    """Every installation, by tenant and id."""
    statement = (
        select(installations, tenants.c.name.label("tenant"))
        .join(tenants, tenants.c.tenant_id == installations.c.tenant_id)
        .order_by(tenants.c.name, installations.c.installation_id)
    )
    return [_fleet_row(row) for row in connection.execute(statement)]


def _fleet_row(row: Row[Any]) -> FleetRow:
    """What the page shows of one installation; a report's fields are whatever the client wrote."""
    report = orjson.loads(row.health_report) if row.health_report else {}
    outbox = report.get("outbox")
    uploads = outbox.get("uploads") if isinstance(outbox, dict) else None
    reasons = report.get("reasons")
    return FleetRow(
        tenant=row.tenant,
        installation_id=row.installation_id,
        entry=row.entry or str(report.get("entry") or ""),
        version=str(report.get("version") or row.version or ""),
        status=str(report.get("status") or "unknown"),
        reasons=", ".join(map(str, reasons)) if isinstance(reasons, list) else "",
        last_seen_at=row.last_seen_at,
        last_upload_at=row.last_upload_at or "",
        backlog=uploads if isinstance(uploads, int) else None,
    )


def _table_row(row: FleetRow) -> str:
    """One installation's line of the table."""
    cells = []
    for name, title in COLUMNS.items():
        value = getattr(row, name)
        text = escape("-" if value in (None, "") else str(value))
        hint = f' title="{escape(row.reasons)}"' if name == "status" and row.reasons else ""
        cells.append(f'<td data-title="{title}"{hint}>{text}</td>')
    return f'<tr data-status="{escape(row.status)}">{"".join(cells)}</tr>'

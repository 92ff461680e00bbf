"""The operator's pages: the fleet, page by page, and one installation.

Owns what the templates in `pages/` are filled with, and the same as JSON. What an installation
reports is anybody's text: all of it is escaped and cut to a bound in bytes, so that a page has at
most 100 KiB whatever is in it. The pages work without a script; the only one keeps them fresh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape
from sqlalchemy import Connection

from catalogzero.backend.fleet import (
    MAX_QUERY_CHARS,
    MAX_SOURCES,
    PAGE_ROWS,
    SORTS,
    STATES,
    Detail,
    FleetRow,
    Page,
    Query,
    read_detail,
    read_page,
)
from catalogzero.backend.report_columns import number
from catalogzero.backend.store import Database
from catalogzero.clock import Clock
from catalogzero.protocol.problems import Kind, ProblemError
from catalogzero.web import NOT_KEPT, Guard, Pages, json_response, query_int

COLUMNS = {
    "installation": "Installation",
    "state": "State",
    "seen": "Heard from",
    "upload": "Last upload",
    "waiting": "Waits there",
    "version": "Version",
}
TONES = {
    **{"failing": "fail", "silent": "gone", "degraded": "warn", "unknown": "off", "ok": "ok"},
    **{"visible": "ok", "replaced": "same", "superseded": "warn", "": "", "trouble": ""},
}
"""The style of each state of an installation and outcome of an upload."""

UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
FILES = {f"/{name}": name for name in ("fleet.css", "fleet.js")}
MAX_PAGE = 1_000_000
MAX_REASONS = 20


class FleetPages:
    """`/` and `/fleet.json`; `/installation` and `/installation.json`."""

    def __init__(self, guard: Guard, database: Database, clock: Clock) -> None:
        self._guard, self._database, self._clock = guard, database, clock
        self._files = Pages("catalogzero.backend", "pages", FILES)

    def routes(self) -> list[web.RouteDef]:
        """The pages' routes."""
        return [
            web.get("/", self.page),
            web.get("/fleet.json", self.rows),
            web.get("/installation", self.installation),
            web.get("/installation.json", self.detail),
            *self._files.routes(check=self._guard.check),
        ]

    async def page(self, request: web.Request) -> web.Response:
        """`GET /`: one page of the fleet."""

        def show(query: Query, page: Page, now: datetime) -> web.Response:
            pages = page_count(page.found)
            return html("fleet.html", now, query=query, page=page, pages=pages)

        return await self._show_page(request, show)

    async def rows(self, request: web.Request) -> web.Response:
        """`GET /fleet.json`: the same page, for scripts."""

        def show(query: Query, page: Page, _: datetime) -> web.Response:
            body = {
                "installations": [asdict(row) for row in page.rows],
                "found": page.found,
                "page": query.page,
                "pages": page_count(page.found),
                "totals": asdict(page.totals),
            }
            return json_response(body, headers=NOT_KEPT)

        return await self._show_page(request, show)

    async def installation(self, request: web.Request) -> web.Response:
        """`GET /installation?tenant=…&id=…`: one installation."""

        def show(detail: Detail, now: datetime) -> web.Response:
            report = detail.report
            reasons, host = report.get("reasons"), report.get("host")
            skew_s = report.get("clock_skew_s")
            return html(
                "installation.html",
                now,
                detail=detail,
                reasons=reasons[:MAX_REASONS] if isinstance(reasons, list) else [],
                machine=" · ".join(map(str, host.values())) if isinstance(host, dict) else "",
                clock_skew_s=number(abs(skew_s)) if isinstance(skew_s, int | float) else None,
                interval_s=number(report.get("interval_s")),
            )

        return await self._show_detail(request, show)

    async def detail(self, request: web.Request) -> web.Response:
        """`GET /installation.json?tenant=…&id=…`: the same; its last report as it came."""
        return await self._show_detail(
            request, lambda detail, _: json_response(asdict(detail), headers=NOT_KEPT)
        )

    async def _show_page(
        self, request: web.Request, show: Callable[[Query, Page, datetime], web.Response]
    ) -> web.Response:
        """Read a page of the fleet and show it, off the loop."""
        self._guard.check(request)
        query, now = read_query(request.query), self._clock.now()
        return await self._database.read(
            lambda connection: show(query, read_page(connection, query, now), now)
        )

    async def _show_detail(
        self, request: web.Request, show: Callable[[Detail, datetime], web.Response]
    ) -> web.Response:
        """Read an installation and show it, off the loop."""
        self._guard.check(request)
        tenant, name = request.query.get("tenant", ""), request.query.get("id", "")
        now = self._clock.now()

        def read(connection: Connection) -> web.Response:
            detail = read_detail(connection, tenant, name, now)
            if detail is None:
                raise ProblemError(Kind.NOT_FOUND, "no installation of that tenant and id is known")
            return show(detail, now)

        return await self._database.read(read)


def read_query(given: Mapping[str, str]) -> Query:
    """What the address asks for.

    Raises:
        ProblemError: A field with an invalid value.
    """
    query = Query(
        find=given.get("q", ""),
        state=given.get("state", ""),
        sort=given.get("sort", "state"),
        page=query_int(given, "page", 1),
    )
    if len(query.find) > MAX_QUERY_CHARS:
        raise ProblemError(Kind.INVALID_REQUEST, f"q has at most {MAX_QUERY_CHARS} characters")
    if query.state not in ("", "trouble", *STATES):
        raise ProblemError(Kind.INVALID_REQUEST, f"state is trouble, {', '.join(STATES)}, or empty")
    if query.sort.removeprefix("-") not in SORTS:
        fault = f"sort is one of {', '.join(SORTS)}, with a - before it from the greatest down"
        raise ProblemError(Kind.INVALID_REQUEST, fault)
    if not 1 <= query.page <= MAX_PAGE:
        raise ProblemError(Kind.INVALID_REQUEST, f"page is 1 to {MAX_PAGE}")
    return query


def page_count(found: int) -> int:
    """How many pages this many installations fill."""
    return max(1, -(-found // PAGE_ROWS))


def html(template: str, now: datetime, **found: Any) -> web.Response:
    """A page; times in it are as long ago as they are at `now`."""

    shown = now.isoformat(timespec="seconds")
    text = _templates.get_template(template).render(found, now=shown)
    return web.Response(text=text, content_type="text/html", headers=NOT_KEPT)


@pass_context
def since(context: Context, at: str) -> str:
    """How long before the page's own moment something was."""
    now = datetime.fromisoformat(context["now"])
    return span((now - datetime.fromisoformat(at)).total_seconds())


def span(seconds: float) -> str:
    """A length of time in its largest unit."""
    for size, unit in UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return "0 s"


def link(query: Query = Query(), **changes: Any) -> str:  # noqa: B008 - it is never changed
    """The address of the fleet with another filter, order or page."""
    asked = replace(query, **changes)
    fields = {"q": asked.find, "state": asked.state, "sort": asked.sort, "page": str(asked.page)}
    plain = {"q": "", "state": "", "sort": "state", "page": "1"}
    given = {name: value for name, value in fields.items() if value != plain[name]}
    return f"./?{urlencode(given)}" if given else "./"


def cut(text: object, size: int) -> Markup:
    """A text as HTML of at most `size` bytes (and an ellipsis)."""
    made: list[str] = []
    for character in str(text):
        part = str(escape(character))
        size -= len(part.encode("utf-8", "replace"))
        if size < 0:
            return Markup("".join(made) + "…")  # noqa: S704 - each character is escaped
        made.append(part)
    return Markup("".join(made))  # noqa: S704 - each character is escaped


def label_text(labels: Mapping[str, str]) -> str:
    """An installation's labels in a line."""
    return ", ".join(f"{name}: {value}" if value else name for name, value in labels.items())


def backlog_notes(row: FleetRow) -> str:
    """How much waits in the outbox, what was refused, and what the backend does not have."""
    notes = []
    if row.backlog and row.backlog_bytes is not None:
        notes.append(f"{row.backlog_bytes / 1e6:.1f} MB")
    if row.backlog and row.oldest_age_s is not None:
        notes.append(f"oldest {span(row.oldest_age_s)}")
    if row.dead:
        notes.append(f"{row.dead} refused for good")
    if row.missing:
        notes.append(f"{row.missing} sources missing here")
    return ", ".join(notes)


_templates = Environment(
    loader=PackageLoader("catalogzero.backend", "pages"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
_templates.filters |= {
    "backlog_notes": backlog_notes,
    "commas": "{:,}".format,
    "cut": cut,
    "label_text": label_text,
    "since": since,
}
_templates.globals |= {
    "columns": COLUMNS,
    "link": link,
    "max_sources": MAX_SOURCES,
    "page_rows": PAGE_ROWS,
    "tones": TONES,
}

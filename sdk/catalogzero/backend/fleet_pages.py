"""The operator's pages: the fleet, page by page, and one installation.

Owns their HTML and their JSON. What an installation reports is anybody's text, so that all of it is
escaped and cut to a bound in bytes: a page has at most 100 KiB whatever is in it. The pages work
without a script; the only one keeps them fresh.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from html import escape
from importlib import resources
from string import Template
from typing import Any
from urllib.parse import quote, urlencode

from aiohttp import web
from sqlalchemy import Connection

from catalogzero.backend import charts
from catalogzero.backend.fleet import (
    MAX_QUERY_CHARS,
    MAX_SOURCES,
    PAGE_ROWS,
    SORTS,
    STATES,
    Detail,
    FleetRow,
    LastUpload,
    Page,
    Query,
    TenantTrouble,
    read_detail,
    read_page,
)
from catalogzero.backend.hours import Day
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
TONES = {"failing": "fail", "silent": "gone", "degraded": "warn", "unknown": "off", "ok": "ok"}
OUTCOMES = {"visible": "ok", "replaced": "same", "superseded": "warn"}
UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
FILES = {f"/{name}": name for name in ("fleet.css", "fleet.js")}
MAX_PAGE = 1_000_000
MAX_REASONS = 20
HEADS = 160
"""Bytes of a text in a cell, once escaped."""


class FleetPages:
    """`/` and `/fleet.json`; `/installation` and `/installation.json`."""

    def __init__(self, guard: Guard, database: Database, clock: Clock) -> None:
        self._guard, self._database, self._clock = guard, database, clock
        folder = resources.files("catalogzero.backend") / "pages"
        self._fleet = Template((folder / "fleet.html").read_text())
        self._installation = Template((folder / "installation.html").read_text())
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
        return await self._show_page(
            request, lambda *found: _html(self._fleet, _fleet_parts(*found))
        )

    async def rows(self, request: web.Request) -> web.Response:
        """`GET /fleet.json`: the same page, for scripts."""

        def show(query: Query, page: Page, _: datetime) -> web.Response:
            body = {
                "installations": [asdict(row) for row in page.rows],
                "found": page.found,
                "page": query.page,
                "pages": _pages(page.found),
                "totals": asdict(page.totals),
            }
            return json_response(body, headers=NOT_KEPT)

        return await self._show_page(request, show)

    async def installation(self, request: web.Request) -> web.Response:
        """`GET /installation?tenant=…&id=…`: one installation."""
        return await self._show_detail(
            request, lambda *found: _html(self._installation, _detail_parts(*found))
        )

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
        query, now = _query(request.query), self._clock.now()
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


def _query(given: Mapping[str, str]) -> Query:
    """What the address asks for.

    Raises:
        ProblemError: A field that is none of what it can be.
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
        told = f"sort is one of {', '.join(SORTS)}, with a - before it from the greatest down"
        raise ProblemError(Kind.INVALID_REQUEST, told)
    if not 1 <= query.page <= MAX_PAGE:
        raise ProblemError(Kind.INVALID_REQUEST, f"page is 1 to {MAX_PAGE}")
    return query


def _html(template: Template, parts: Mapping[str, str]) -> web.Response:
    return web.Response(text=template.substitute(parts), content_type="text/html", headers=NOT_KEPT)


def _fleet_parts(query: Query, page: Page, now: datetime) -> dict[str, str]:
    """What the fleet's template is filled with."""
    states = page.totals.states
    total, troubled = sum(states.values()), states["failing"] + states["silent"]
    if not total:
        headline = "Nothing fits" if query.find else "No installation has been heard from yet"
    elif troubled:
        headline = f"{troubled:,} of {total:,} installations are in trouble"
    else:
        headline = f"{total:,} installations, none in trouble"
    return {
        "title": ("◆ " if troubled else "") + headline,
        "headline": headline,
        "bad": "bad" if troubled else "",
        "now": now.isoformat(timespec="seconds"),
        "answers": _answers(query, page),
        "worst": _worst(page.worst),
        "has_worst": "" if page.worst else "hidden",
        "q": escape(query.find),
        "state": query.state,
        "sort": query.sort,
        "chips": _chips(query, states),
        "head": "".join(_head_cell(query, *column) for column in COLUMNS.items()),
        "body": "\n".join(_table_row(row, now) for row in page.rows),
        "none": "hidden" if page.rows else "",
        "empty": "Nothing fits." if total or query.find else "Nobody has reported or sent.",
        "pager": _pager(query, page),
    }


def _answers(query: Query, page: Page) -> str:
    """The operator's questions, each with its figure."""
    totals = page.totals
    asked = (
        ("Who is failing?", "failing", f"{totals.states['failing']:,}", "by their last report"),
        ("Who is silent?", "silent", f"{totals.states['silent']:,}", "missed three reports"),
        ("What waits at clients?", "", f"{totals.backlog:,} uploads", "in their outboxes"),
        ("What was refused for good?", "", f"{totals.dead:,} uploads", "dead letters there"),
        ("What is missing here?", "", f"{totals.missing:,} sources", "after a restore, or refused"),
    )
    return "".join(
        f'<a href="{_link(query, state=state, sort="state" if state else "-waiting", page=1)}">'
        f'<span class="q">{question}</span><span class="a">{figure}</span>'
        f'<span class="d">{more}</span></a>'
        for question, state, figure, more in asked
    )


def _worst(tenants: Iterable[TenantTrouble]) -> str:
    """The tenants in trouble, a line each."""
    return "".join(
        f'<li><a href="./?{escape(urlencode({"q": one.tenant, "state": "trouble"}))}">'
        f"{escape(one.tenant)}</a>"
        + (f'<span class="state fail">{one.failing:,} failing</span>' if one.failing else "")
        + (f'<span class="state gone">{one.silent:,} silent</span>' if one.silent else "")
        + f'<span class="end soft">of {one.installations:,}</span></li>'
        for one in tenants
    )


def _chips(query: Query, states: Mapping[str, int]) -> str:
    """The filters by state, each with its count."""
    trouble = states["failing"] + states["silent"]
    counted = {"": sum(states.values()), "trouble": trouble, **states}
    named = {"": "all", "trouble": "in trouble"}
    return "".join(
        f'<a class="chip{f" {TONES[state]}" if state in TONES else ""}"'
        f' href="{_link(query, state=state, page=1)}"'
        f"{_current(state == query.state)}>"
        f"{named.get(state, state)} <b>{count:,}</b></a>"
        for state, count in counted.items()
    )


def _current(is_so: bool) -> str:
    return ' aria-current="true"' if is_so else ""


def _link(query: Query, **changes: Any) -> str:
    """The address of the fleet with another filter, order or page."""
    asked = replace(query, **changes)
    fields = {"q": asked.find, "state": asked.state, "sort": asked.sort, "page": str(asked.page)}
    plain = {"q": "", "state": "", "sort": "state", "page": "1"}
    given = {name: value for name, value in fields.items() if value != plain[name]}
    return escape(f"./?{urlencode(given)}" if given else "./")


def _head_cell(query: Query, sort: str, title: str) -> str:
    """A column's title, which sorts by it; a second time, the other way round."""
    rising, falling = query.sort == sort, query.sort == f"-{sort}"
    sorts = ' aria-sort="ascending"' if rising else ' aria-sort="descending"' if falling else ""
    link = _link(query, sort=f"-{sort}" if rising else sort, page=1)
    return f'<th scope="col"{sorts}><a href="{link}">{title}</a></th>'


def _table_row(row: FleetRow, now: datetime) -> str:
    """One installation's line of the table."""
    reasons = f"<small>{_cut(row.reasons, 240)}</small>" if row.reasons else ""
    cells = (
        ("state", f'<span class="state {TONES[row.state]}">{row.state}</span>{reasons}'),
        ("seen", _ago(row.last_seen_at, now)),
        ("upload", _ago(row.last_upload_at, now)),
        ("waiting", _backlog(row)),
        ("version", f"{_cut(row.version, 60) or '-'}<small>{_cut(row.entry, 80)}</small>"),
    )
    drawn = "".join(f'<td data-title="{COLUMNS[name]}">{html}</td>' for name, html in cells)
    labels = f" {_labels(row.labels, 120)}" if row.labels else ""
    return (
        f'<tr><th scope="row"><a href="{_place(row)}">{_cut(row.installation_id, 160)}</a>'
        f"<small>{escape(row.tenant)}{labels}</small></th>{drawn}</tr>"
    )


def _place(row: FleetRow) -> str:
    """The address of an installation's page."""
    return f"installation?tenant={quote(row.tenant)}&amp;id={quote(row.installation_id, safe='')}"


def _labels(labels: Mapping[str, str], size: int) -> str:
    told = ", ".join(f"{name}: {value}" if value else name for name, value in labels.items())
    return f'<span class="tag">{_cut(told, size)}</span>' if told else ""


def _cut(text: str, size: int) -> str:
    """A text as HTML of at most `size` bytes (and an ellipsis)."""
    made: list[str] = []
    for character in text:
        part = escape(character)
        size -= len(part.encode("utf-8", "replace"))
        if size < 0:
            return "".join(made) + "…"
        made.append(part)
    return "".join(made)


def _pages(found: int) -> int:
    return max(1, -(-found // PAGE_ROWS))


def _pager(query: Query, page: Page) -> str:
    """Where one is, and the way to the other pages."""
    pages, at = _pages(page.found), query.page
    first = (at - 1) * PAGE_ROWS
    told = f"{first + 1:,} to {first + len(page.rows):,} of {page.found:,}" if page.rows else "none"
    near = sorted({1, at - 1, at, at + 1, pages} & set(range(1, pages + 1)))
    links = [
        f'<a class="button" href="{_link(query, page=place)}"{_current(place == at)}>{place:,}</a>'
        for place in near
    ]
    if at < pages:
        links.append(f'<a class="button" href="{_link(query, page=at + 1)}">Next →</a>')
    return f"<p>{told}</p>{''.join(links) if pages > 1 or at > 1 else ''}"


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
    """What waits in the outbox, what was refused, and what the backend does not have."""
    if row.backlog is None:
        return "-"
    more = []
    if row.backlog and row.backlog_bytes is not None:
        more.append(f"{row.backlog_bytes / 1e6:.1f} MB")
    if row.backlog and row.oldest_age_s is not None:
        more.append(f"oldest {_span(row.oldest_age_s)}")
    if row.dead:
        more.append(f"{row.dead} refused for good")
    if row.missing:
        more.append(f"{row.missing} sources missing here")
    return f"{row.backlog}" + (f"<small>{', '.join(more)}</small>" if more else "")


def _detail_parts(detail: Detail, now: datetime) -> dict[str, str]:
    """What the installation's template is filled with."""
    row, days = detail.row, detail.days
    name, tone = _cut(row.installation_id, 600), TONES[row.state]
    per_day = f"{sum(day.records for day in days):,} in 30 days"
    return {
        "title": f"{row.state} · {name} · {escape(row.tenant)}",
        "name": name,
        "state": f'<span class="state {tone}">{row.state}</span>',
        "tenant": escape(row.tenant),
        "tenant_link": escape(f"./?{urlencode({'q': row.tenant})}"),
        "labels": _labels(row.labels, 2_000),
        "what": f"{_cut(row.entry, 200)} {_cut(row.version, 200)}".strip() or "entry unknown",
        "now": now.isoformat(timespec="seconds"),
        "troubles": _troubles(detail, now),
        "last": _last_things(detail, now),
        "rows_chart": charts.bars("Rows a day", days, [day.records for day in days], per_day),
        "waiting_chart": charts.area(
            "Waits at the client",
            days,
            [day.waiting for day in days],
            f"{_told(row.backlog)} uploads now",
        ),
        "dead_chart": charts.area(
            "Dead letters", days, [day.dead for day in days], f"{_told(row.dead)} uploads now"
        ),
        "days": "".join(_day_row(day) for day in reversed(days)),
        "uploads": "\n".join(_upload_row(one, now) for one in detail.uploads),
        "none": "hidden" if detail.uploads else "",
        "facts": _facts(detail),
    }


def _told(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,}"


def _troubles(detail: Detail, now: datetime) -> str:
    """What needs a person: since when, why in its own words, and what to do."""
    row, items = detail.row, []
    if row.state == "silent":
        since = f"Nothing was heard since {_ago(row.last_seen_at, now)}."
        fix = (
            "ask whether its machine runs and reaches this address: <code>catalogzero check</code>"
        )
        items.append(("gone", "silent", since, fix))
    reasons = detail.report.get("reasons")
    for reason in reasons[:MAX_REASONS] if isinstance(reasons, list) else []:
        tone = "fail" if detail.report.get("status") == "failing" else "warn"
        items.append((tone, "said", _cut(str(reason), 600), ""))
    if row.dead:
        told = f"{row.dead:,} uploads were refused for good; their rows are kept there."
        fix = "on its machine: <code>catalogzero outbox list</code>, then <code>retry</code>"
        items.append(("fail", "dead letters", told, fix))
    if row.missing:
        named = ", ".join(f"<code>{_cut(key, 400)}</code>" for key in detail.missing_sources)
        told = (
            f"{row.missing:,} sources are not here until they are read again: {named or 'unnamed'}"
        )
        fix = "run the handler there; a source that is gone meanwhile is lost here, and named so"
        items.append(("warn", "missing here", told, fix))
    return (
        "".join(
            f'<li class="trouble {tone}"><span class="state {tone}">{what}</span>'
            f'<div><p class="why">{told}</p>'
            + (f'<p class="do"><b>Fix</b> {fix}</p>' if fix else "")
            + "</div></li>"
            for tone, what, told, fix in items
        )
        or '<li class="allwell"><span class="state ok">nothing needs you</span></li>'
    )


def _last_things(detail: Detail, now: datetime) -> str:
    """The last report, upload and start."""
    report, row = detail.report, detail.row
    skew = number(abs(report["clock_skew_s"])) if _is_number(report.get("clock_skew_s")) else None
    reported = {
        "When": _ago(detail.health_at, now),
        "Said": f"{_cut(str(report.get('status', 'nothing')), 40)}, {_told(row.backlog)} waiting",
        "Clock": "unknown" if skew is None else f"{skew:.1f} s off",
    }
    sent = detail.uploads[0] if detail.uploads else None
    uploaded = {
        "When": _ago(row.last_upload_at, now),
        "What": f"{_cut(sent.source or sent.stream, HEADS)}, {sent.records:,} rows"
        if sent
        else "-",
        "Job": f"<code>{_cut(sent.job_id, 80)}</code>" if sent and sent.job_id else "-",
    }
    started = {
        "When": _ago(detail.registered_at, now),
        "Handler": _cut(detail.handler, HEADS) or "-",
        "Epoch": _ago(detail.epoch_at, now),
    }
    shown = {"Health report": reported, "Upload": uploaded, "Start": started}
    return "".join(
        f'<div class="card pad"><h3>{title}</h3>{_pairs(pairs)}</div>'
        for title, pairs in shown.items()
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _pairs(pairs: Mapping[str, str]) -> str:
    """Names with what they are, as HTML."""
    drawn = "".join(f"<dt>{name}</dt><dd>{html}</dd>" for name, html in pairs.items())
    return f'<dl class="pairs">{drawn}</dl>'


def _day_row(day: Day) -> str:
    """A day's line of the charts' table."""
    reports = f"{day.ok:,} ok, {day.degraded:,} degraded, {day.failing:,} failing"
    cells = (
        ("Rows", f"{day.records:,}"),
        ("Uploads", f"{day.uploads:,}"),
        ("Reports", reports),
        ("Waited at most", f"{day.waiting:,}"),
        ("Dead at most", f"{day.dead:,}"),
    )
    drawn = "".join(f'<td data-title="{title}">{text}</td>' for title, text in cells)
    return f'<tr><th scope="row">{day.day}</th>{drawn}</tr>'


def _upload_row(one: LastUpload, now: datetime) -> str:
    """An upload's line of the table."""
    cells = (
        ("Outcome", f'<span class="state {OUTCOMES[one.outcome]}">{one.outcome}</span>'),
        ("Source", f"{_cut(one.source, 300) or '-'}<small>{_cut(one.stream, 200)}</small>"),
        ("Number", f"{one.source_seq}"),
        ("Rows", f"{one.records:,}"),
        ("Job", f"<code>{_cut(one.job_id, 80) or '-'}</code>"),
    )
    drawn = "".join(f'<td data-title="{title}">{html}</td>' for title, html in cells)
    return f'<tr><th scope="row">{_ago(one.ended_at, now)}</th>{drawn}</tr>'


def _facts(detail: Detail) -> str:
    """What it is: its id, machine, interval, sources."""
    report, row = detail.report, detail.row
    host = report.get("host")
    machine = " · ".join(str(one) for one in host.values()) if isinstance(host, dict) else ""
    interval_s = number(report.get("interval_s"))
    many = "+" if detail.sources == MAX_SOURCES else ""
    return _pairs(
        {
            "Installation": f"<code>{_cut(row.installation_id, 900)}</code>",
            "Machine": _cut(machine, 300) or "unknown",
            "SDK": _cut(str(report.get("sdk_version") or "unknown"), 60),
            "First heard from": f"<code>{detail.first_seen_at}</code>",
            "Reports every": f"{interval_s:g} s" if interval_s else "unknown",
            "Sources": f"{detail.sources:,}{many}",
        }
    )

"""The operator's pages: the fleet, page by page, and one installation.

Owns what the templates in `pages/` are filled with, and the same as JSON. What an installation
reports is anybody's text: all of it is escaped and cut to a bound in bytes, so that a page has at
most 100 KiB whatever is in it. The pages work without a script; the only one keeps them fresh.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from math import inf
from typing import Any
from urllib.parse import quote_plus

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape
from sqlalchemy import Connection

from catalogzero.backend import fleet
from catalogzero.backend.observe import BUCKETS_S, Observation
from catalogzero.backend.report_columns import number, read_report
from catalogzero.backend.store import BackendDatabase
from catalogzero.backend.tenants import KeyRing
from catalogzero.clock import Clock
from catalogzero.protocol.problems import Kind, ProblemError
from catalogzero.web import NOT_KEPT, Guard, Pages, json_response, query_int, shared_pages

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


@dataclass(frozen=True, slots=True)
class CauseText:
    """What a page says of a cause of trouble: what it is, why, and the command that begins the fix.

    `word` and `tone` are the state's, with its shape.
    """

    word: str
    tone: str
    why: str
    fix: str
    command: str


CAUSES = {
    "refused": CauseText(
        "refused",
        "fail",
        "Somebody knocks with an API key that was revoked here",
        "send the client a new key, to put into its key file:",
        "catalogzero backend tenants rotate {tenant}",
    ),
    "moved": CauseText(
        "moved",
        "fail",
        "Another folder took the installation over; sending from this one is paused",
        "on the machine that is to go on:",
        "catalogzero installation adopt",
    ),
    "paused": CauseText(
        "paused",
        "fail",
        "Sending is paused; its rows wait there",
        "on its machine, see what stops it:",
        "catalogzero check",
    ),
    "dead": CauseText(
        "dead letters",
        "fail",
        "Uploads were refused for good; their rows are kept there",
        "on its machine, see why, then retry them:",
        "catalogzero outbox list",
    ),
    "failed": CauseText(
        "failing",
        "fail",
        "It says itself that it fails",
        "on its machine, see what failed and the next command:",
        "catalogzero status",
    ),
    "silent": CauseText(
        "silent",
        "gone",
        "Nothing was heard for three of its own intervals, or for a day",
        "on its machine, see whether it runs and reaches this backend:",
        "catalogzero check",
    ),
}
"""Those of `fleet.CAUSES`, and `refused`, of which a client cannot report."""

UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
FILES = {f"/{name}": name for name in ("fleet.css", "fleet.js")}
ASCII = re.compile(r"[\x00-\x7f]+")
MAX_PAGE = 1_000_000
MAX_REASONS = 20
MAX_KNOCKS = 5
WANTED = ("trouble", *dict.fromkeys((*fleet.STATES, *fleet.CAUSES)))
"""What installations can be asked for by."""


class FleetPages:
    """`/` and `/fleet.json`; `/installation` and `/installation.json`."""

    def __init__(
        self,
        guard: Guard,
        database: BackendDatabase,
        clock: Clock,
        observation: Observation,
        keys: KeyRing,
    ) -> None:
        self._guard, self._database, self._clock = guard, database, clock
        self._observation, self._keys = observation, keys
        self._files = (Pages("catalogzero.backend", "pages", FILES), shared_pages())

    def routes(self) -> list[web.RouteDef]:
        """The pages' routes, and those of the same as JSON for scripts."""
        return [
            *(web.get(path, self.show_fleet) for path in ("/", "/fleet.json")),
            web.get("/installation", self.show_installation),
            web.get("/installation.json", self.show_installation),
            *(one for files in self._files for one in files.routes(check=self._guard.check)),
        ]

    async def show_fleet(self, request: web.Request) -> web.Response:
        """`GET /`: one page of the fleet, read and shown off the loop."""
        self._guard.check(request)
        query, now, knocks = read_query(request.query), self._clock.now(), self._keys.knocks()
        refused = {one.tenant for one in knocks}
        counted = self._observation.figures.last
        us = {
            "us": self._observation.ourselves(),
            "pools": self._database.pools(),
            "lag_s": max(counted.lag_s.values(), default=0.0) if counted else None,
        }

        def read(connection: Connection) -> web.Response:
            page = fleet.read_page(connection, query, now, refused)
            pages = max(1, -(-page.found // fleet.PAGE_ROWS))
            if not request.path.endswith(".json"):
                given = {"query": query, "page": page, "pages": pages, "knocks": knocks}
                return html("fleet.html", now, **given, **us)
            found = {"page": query.page, "pages": pages, "refused": knocks[:MAX_KNOCKS]}
            body = asdict(page)
            return json_response(
                {"installations": body.pop("rows"), **body, **found}, headers=NOT_KEPT
            )

        return await self._database.read(read)

    async def show_installation(self, request: web.Request) -> web.Response:
        """`GET /installation?tenant=…&id=…`: one installation, read and shown off the loop."""
        self._guard.check(request)
        tenant, name = request.query.get("tenant", ""), request.query.get("id", "")
        now = self._clock.now()
        knocks = [one for one in self._keys.knocks() if one.tenant == tenant]

        def read(connection: Connection) -> web.Response:
            detail = fleet.read_detail(connection, tenant, name, now)
            if detail is None:
                raise ProblemError(Kind.NOT_FOUND, "no installation of that tenant and id is known")
            if request.path.endswith(".json"):
                return json_response(asdict(detail), headers=NOT_KEPT)
            reasons, host = detail.report.get("reasons"), detail.report.get("host")
            labels = detail.report.get("labels")
            skew_s = detail.report.get("clock_skew_s")
            return html(
                "installation.html",
                now,
                detail=detail,
                changes=changes_of(detail),
                patience_s=read_report(detail.report)["patience_s"],
                knocks=knocks,
                reported_labels=labels if isinstance(labels, dict) else {},
                reasons=reasons[:MAX_REASONS] if isinstance(reasons, list) else [],
                machine=" · ".join(map(str, host.values())) if isinstance(host, dict) else "",
                clock_skew_s=number(abs(skew_s)) if isinstance(skew_s, int | float) else None,
                interval_s=number(detail.report.get("interval_s")),
            )

        return await self._database.read(read)


def changes_of(detail: fleet.Detail) -> list[tuple[str, str]]:
    """When something changed of an installation, and what: the newest first."""
    row = detail.row
    found = [
        (row.since, f"{CAUSES[row.cause].word if row.cause else row.state} since then"),
        (detail.registered_at, "it started last"),
        (detail.epoch_at, "its folder took the installation's place"),
        (detail.first_seen_at, "heard from for the first time"),
        *((at, f"first upload of version {version}") for version, at in detail.versions),
    ]
    return sorted((one for one in found if one[0]), reverse=True)


def read_query(given: Mapping[str, str]) -> fleet.Query:
    """What the address asks for.

    Raises:
        ProblemError: A field with an invalid value.
    """
    query = fleet.Query(
        find=given.get("q", ""),
        state=given.get("state", ""),
        sort=given.get("sort", "state"),
        page=query_int(given, "page", 1),
    )
    fault = ""
    if len(query.find) > fleet.MAX_QUERY_CHARS:
        fault = f"q has at most {fleet.MAX_QUERY_CHARS} characters"
    elif query.state not in ("", *WANTED):
        fault = f"state is {', '.join(WANTED)}, or empty"
    elif query.sort.removeprefix("-") not in fleet.SORTS:
        known = ", ".join(fleet.SORTS)
        fault = f"sort is one of {known}, with a - before it from the greatest down"
    elif not 1 <= query.page <= MAX_PAGE:
        fault = f"page is 1 to {MAX_PAGE}"
    if fault:
        raise ProblemError(Kind.INVALID_REQUEST, fault)
    return query


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


def milliseconds(seconds: float | None) -> str:
    """The bound of a length of time, as it is shown."""
    if seconds is None:
        return "not known yet"
    return f"≤ {seconds * 1_000:g} ms" if seconds < inf else f"> {BUCKETS_S[-1]:g} s"


def utc(at: str) -> str:
    """A moment to the second, with its zone: `2026-03-29 02:30:00 UTC`."""
    return f"{datetime.fromisoformat(at).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def span(seconds: float) -> str:
    """A length of time in its largest unit."""
    for size, unit in UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return "0 s"


FIRST_PAGE = fleet.Query()


def link(query: fleet.Query = FIRST_PAGE, **changes: Any) -> str:
    """The address of the fleet with another filter, order or page."""
    asked = replace(query, **changes)
    plain = asdict(FIRST_PAGE)
    changed = [(name, value) for name, value in asdict(asked).items() if value != plain[name]]
    given = {"q" if name == "find" else name: value for name, value in changed}
    return f"./?{query_text(given)}" if given else "./"


def query_text(given: Mapping[str, object]) -> str:
    """A query string; what is not ASCII stands as it is, so that no page grows by it threefold."""
    return "&".join(
        f"{name}={ASCII.sub(lambda found: quote_plus(found[0]), str(value))}"
        for name, value in given.items()
    )


def cut(text: object, size: int) -> Markup:
    """A text as HTML of at most `size` bytes (and an ellipsis)."""
    made: list[str] = []
    # by whole characters as they are escaped: half an entity would be another text
    for character in str(text):
        part = str(escape(character))
        size -= len(part.encode("utf-8", "replace"))
        if size < 0:
            return Markup("".join(made) + "…")  # noqa: S704 - each character is escaped
        made.append(part)
    return Markup("".join(made))  # noqa: S704 - each character is escaped


def label_text(labels: Mapping[str, object]) -> str:
    """An installation's labels in a line."""
    return ", ".join(f"{name}: {value}" if value else name for name, value in labels.items())


def backlog_notes(row: fleet.FleetRow) -> str:
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
    "milliseconds": milliseconds,
    "span": span,
    "query_text": query_text,
    "since": since,
    "utc": utc,
}
_templates.globals |= {
    "causes": CAUSES,
    "columns": COLUMNS,
    "link": link,
    "max_knocks": MAX_KNOCKS,
    "max_sources": fleet.MAX_SOURCES,
    "page_rows": fleet.PAGE_ROWS,
    "tones": TONES,
}

"""The feed of events: what became visible, was hidden or removed, for whoever takes rows further.

Owns the rows of `events`, and `GET {base}/events`. An event is written in the transaction that it
reports; its place in the feed is given when the feed is read, by one reader at a time and to
committed events alone. So no cursor passes over an event that commits late, and the events of one
source come in their order, as their transactions hold the source's row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import orjson
import sqlalchemy as sa
from aiohttp import web

from catalogzero.backend import generations
from catalogzero.backend.schema import events, sources, tenants, uploads
from catalogzero.backend.store import BackendDatabase
from catalogzero.protocol.bodies import MAX_PLACE_DIGITS
from catalogzero.protocol.problems import Kind, ProblemError
from catalogzero.web import NOT_KEPT, Guard, json_response
from catalogzero.wire.messages import JsonObject

FEED_LOCK = 0x63617A31
PAGE_EVENTS, NUMBERED_AT_ONCE = 1_000, 10_000
MAX_WAIT_S, POLL_S = 30.0, 1.0
NAMES = ("tenant", "installation_id", "stream", "source", "source_key", "upload_id")
COUNTS = ("chunks", "records", "source_seq")
SHOWN = ("kind", "at", *NAMES, "job_id", "mode", *COUNTS, "completed_at")


class What(StrEnum):
    """What became of an upload."""

    VISIBLE = "visible"
    HIDDEN = "hidden"
    REMOVED = "removed"


def note(connection: sa.Connection, what: What, which: sa.ColumnElement[bool], at: str) -> None:
    """Write an event of each upload of which `which` is true: before its row is changed or gone."""
    columns = [uploads.c.installation_id, uploads.c.stream, uploads.c.source, sources.c.source_key]
    columns += [uploads.c.upload_id, uploads.c.upload_no, uploads.c.job_id, uploads.c.mode]
    columns += [uploads.c[name] for name in (*COUNTS, "merge_key")]
    found = (
        sa.select(
            sa.literal(what.value).label("kind"),
            sa.literal(at).label("at"),
            tenants.c.name.label("tenant"),
            *columns,
            uploads.c.ended_at.label("completed_at"),
        )
        .join(tenants, tenants.c.tenant_id == uploads.c.tenant_id)
        .outerjoin(sources, sources.c.source_id == uploads.c.source_id)
        .where(which)
        .order_by(uploads.c.upload_no)
    )
    connection.execute(sa.insert(events).from_select(found.selected_columns.keys(), found))


def note_removed(connection: sa.Connection, numbers: Sequence[int], at: str) -> None:
    """Write that uploads are gone for good: no event of them keeps a name from now on."""
    shown_once = sa.and_(uploads.c.upload_no.in_(numbers), uploads.c.job_id.is_not(None))
    note(connection, What.REMOVED, shown_once, at)
    of_them = events.c.upload_no.in_(numbers)
    connection.execute(sa.update(events).where(of_them).values(dict.fromkeys(NAMES)))


def shown(event: Any) -> JsonObject:
    """An event as it is shown, of mode merge with `key` and `tombstone`."""
    about = {name: getattr(event, name) for name in SHOWN}
    return about if event.merge_key is None else {**about, **orjson.loads(event.merge_key)}


def give_places(connection: sa.Connection) -> None:
    """Number events that have no place yet, in the order in which they were written."""
    if connection.dialect.name == "postgresql":
        # one reader numbers at a time; SQLite has one writer anyhow
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({FEED_LOCK})"))
    last = connection.scalar(sa.select(sa.func.max(events.c.place))) or 0
    waiting = sa.select(events.c.event_no).where(events.c.place.is_(None))
    numbers = connection.scalars(waiting.order_by(events.c.event_no).limit(NUMBERED_AT_ONCE)).all()
    if numbers:
        one = events.c.event_no == sa.bindparam("event")
        places = [{"event": no, "to": place} for place, no in enumerate(numbers, last + 1)]
        connection.execute(sa.update(events).where(one).values(place=sa.bindparam("to")), places)


def page(connection: sa.Connection, after: int, limit: int = PAGE_EVENTS) -> list[Any]:
    """The events after a place, in order."""
    found = sa.select(events).where(events.c.place > after).order_by(events.c.place).limit(limit)
    return list(connection.execute(found))


def is_behind(connection: sa.Connection) -> bool:
    """Whether events wait for their place."""
    return bool(connection.scalar(sa.select(sa.exists().where(events.c.place.is_(None)))))


async def read_page(database: BackendDatabase, after: int) -> tuple[str, list[Any]]:
    """The backend's generation, and the next events after a place; none where nothing is new."""
    if await database.read(is_behind):
        await database.write(give_places)

    def both(connection: sa.Connection) -> tuple[str, list[Any]]:
        return generations.current(connection), page(connection, after)

    return await database.read(both)


class EventFeed:
    """`GET {base}/events?after=…&wait_s=…`, on the operator's side."""

    def __init__(self, guard: Guard, database: BackendDatabase, base_path: str) -> None:
        self._guard, self._database, self._base = guard, database, base_path
        self._closing = asyncio.Event()

    def routes(self) -> list[web.RouteDef]:
        """The feed's route."""
        return [web.get(self._base + "/events", self.events, allow_head=False)]

    async def stop(self, _: web.Application) -> None:
        """Answer those who wait, as the service stops."""
        self._closing.set()

    async def events(self, request: web.Request) -> web.Response:
        """The events after a cursor; where there is none yet, it waits for one."""
        self._guard.check(request)
        after = _number(request, "after", 10**MAX_PLACE_DIGITS)
        wait_s = _number(request, "wait_s", int(MAX_WAIT_S))
        end = asyncio.get_running_loop().time() + wait_s
        while True:
            generation, found = await read_page(self._database, after)
            rest_s = end - asyncio.get_running_loop().time()
            if found or rest_s <= 0 or self._closing.is_set():
                break
            # another process may write the next event, of which nothing here hears
            try:
                async with asyncio.timeout(min(rest_s, POLL_S)):
                    await self._closing.wait()
            except TimeoutError:
                continue
        cursor = found[-1].place if found else after
        body = {
            "events": [shown(event) for event in found],
            "next": str(cursor),
            "generation": generation,
        }
        return json_response(body, headers=NOT_KEPT)


def _number(request: web.Request, name: str, most: int) -> int:
    """A whole number of the query, 0 where it is not given."""
    given = request.query.get(name, "0")
    if not (given.isascii() and given.isdigit() and len(given) <= MAX_PLACE_DIGITS):
        raise ProblemError(Kind.INVALID_REQUEST, f"{name} is a whole number")
    return min(int(given), most)

"""What watches the backend: `/healthz`, `/readyz`, `/metrics`.

Owns the counts of answers, and the Prometheus text. `/healthz` says that the process answers,
`/readyz` that its database does; neither tells more, so they need no key. `/metrics` is the
operator's.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import SQLAlchemyError

from catalogzero.backend.operator import OperatorGate
from catalogzero.backend.schema import installations, uploads
from catalogzero.backend.store import Database
from catalogzero.protocol.problems import Kind, ProblemError

READY_TIMEOUT_S = 2.0
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Observation:
    """Counts answers, and serves what watches.

    Args:
        gate: Lets the operator see the metrics.
        database: Asked whether it is there.
    """

    def __init__(self, gate: OperatorGate, database: Database) -> None:
        self._gate, self._database = gate, database
        self._answers: Counter[tuple[str, str, int]] = Counter()

    def routes(self) -> list[web.RouteDef]:
        """The routes of what watches."""
        return [
            web.get("/healthz", self.healthz),
            web.get("/readyz", self.readyz),
            web.get("/metrics", self.metrics),
        ]

    def counter(self) -> Middleware:
        """The middleware that counts each answer by method, route and status."""

        @web.middleware
        async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
            answer = await handler(request)
            resource = request.match_info.route.resource
            route = resource.canonical if resource else "other"
            self._answers[request.method, route, answer.status] += 1
            return answer

        return count

    async def healthz(self, _: web.Request) -> web.Response:
        """`GET /healthz`: the process answers."""
        return web.json_response({"status": "ok"})

    async def readyz(self, _: web.Request) -> web.Response:
        """`GET /readyz`: the database answers too, within two seconds."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await self._database.read(lambda connection: connection.scalar(select(1)))
        except (SQLAlchemyError, TimeoutError):
            raise ProblemError(Kind.UNAVAILABLE, "the database does not answer") from None
        return web.json_response({"status": "ok"})

    async def metrics(self, request: web.Request) -> web.Response:
        """`GET /metrics`: counts since the start, and what the database holds."""
        self._gate.check(request)
        held = await self._database.read(read_counts)
        text = "\n".join([*self._answer_lines(), *_held_lines(held)]) + "\n"
        return web.Response(body=text.encode(), headers={"Content-Type": METRICS_TYPE})

    def _answer_lines(self) -> Iterator[str]:
        yield "# HELP catalogzero_backend_answers_total Answers since the start."
        yield "# TYPE catalogzero_backend_answers_total counter"
        for (method, route, status), count in sorted(self._answers.items()):
            labels = f'method="{method}",route="{route}",status="{status}"'
            yield f"catalogzero_backend_answers_total{{{labels}}} {count}"


def read_counts(connection: Connection) -> dict[str, int]:
    """How many uploads are in each state, and how many installations there are."""
    by_state = select(uploads.c.state, func.count()).group_by(uploads.c.state)
    counts = {"open": 0, "complete": 0, "superseded": 0}
    counts.update({row[0]: row[1] for row in connection.execute(by_state)})
    fleet = connection.scalar(select(func.count()).select_from(installations))
    return {**counts, "installations": fleet or 0}


def _held_lines(held: dict[str, int]) -> Iterator[str]:
    yield "# HELP catalogzero_backend_uploads Uploads that the backend knows, by state."
    yield "# TYPE catalogzero_backend_uploads gauge"
    for state in ("open", "complete", "superseded"):
        yield f'catalogzero_backend_uploads{{state="{state}"}} {held[state]}'
    yield "# HELP catalogzero_backend_installations Installations that were ever heard from."
    yield "# TYPE catalogzero_backend_installations gauge"
    yield f"catalogzero_backend_installations {held['installations']}"

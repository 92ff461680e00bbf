"""What watches the backend: `/healthz`, `/readyz`, `/metrics`.

Owns the counts of answers, and what `/metrics` tells. `/healthz` says that the process answers,
`/readyz` that its database does; neither tells more, so they need no key. `/metrics` is the
operator's.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import SQLAlchemyError

from catalogzero.backend.housekeeping import Housekeeping
from catalogzero.backend.schema import SCHEMA, installations, uploads, versions
from catalogzero.backend.shares import Shares
from catalogzero.backend.store import Database
from catalogzero.protocol.problems import Kind, ProblemError
from catalogzero.web import Guard

READY_TIMEOUT_S = 2.0
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Observation:
    """Counts answers, and serves what watches.

    Args:
        guard: Lets the operator see the metrics.
        database: Asked whether it is there.
        housekeeping: Asked how far behind it is.
        shares: Asked what was refused.
    """

    def __init__(
        self, guard: Guard, database: Database, housekeeping: Housekeeping, shares: Shares
    ) -> None:
        self._guard, self._database = guard, database
        self._housekeeping, self._shares = housekeeping, shares
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
            method = request.method if request.method in hdrs.METH_ALL else "other"
            self._answers[method, route, answer.status] += 1
            return answer

        return count

    async def healthz(self, _: web.Request) -> web.Response:
        """`GET /healthz`: the process answers."""
        return web.json_response({"status": "ok"})

    async def readyz(self, _: web.Request) -> web.Response:
        """`GET /readyz`: the database answers within two seconds, and has this release's schema."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                version = await self._database.read(
                    lambda connection: connection.scalar(select(versions.c.version))
                )
        except (SQLAlchemyError, TimeoutError):
            raise ProblemError(Kind.UNAVAILABLE, "the database does not answer") from None
        if version != SCHEMA.newest:
            told = f"the database has schema {version}, this release needs {SCHEMA.newest}"
            raise ProblemError(Kind.UNAVAILABLE, told)
        return web.json_response({"status": "ok"})

    async def metrics(self, request: web.Request) -> web.Response:
        """`GET /metrics`: counts since the start, and what the database holds."""
        self._guard.check(request)
        held = await self._database.read(read_counts)
        registry = CollectorRegistry()
        lag_s = await self._housekeeping.lag_s()
        registry.register(_Figures(self._answers, held, lag_s, self._shares.refused))
        headers = {"Content-Type": METRICS_TYPE}
        return web.Response(body=generate_latest(registry), headers=headers)


def read_counts(connection: Connection) -> dict[str, int]:
    """How many uploads are in each state, and how many installations there are."""
    by_state = select(uploads.c.state, func.count()).group_by(uploads.c.state)
    counts = {"open": 0, "complete": 0, "superseded": 0}
    counts.update({row[0]: row[1] for row in connection.execute(by_state)})
    heard_of = installations.c.removed_at.is_(None)
    fleet = connection.scalar(select(func.count()).select_from(installations).where(heard_of))
    for name, column in (("due", uploads.c.hook_due_at), ("failed", uploads.c.hook_failed_at)):
        waiting = select(func.count()).select_from(uploads).where(column.is_not(None))
        counts[f"hooks_{name}"] = connection.scalar(waiting) or 0
    return {**counts, "installations": fleet or 0}


class _Figures(Collector):
    """One scrape: the answers since the start, and what `read_counts` found."""

    def __init__(
        self,
        answers: Counter[tuple[str, str, int]],
        held: dict[str, int],
        lag_s: dict[str, float],
        refused: dict[str, int],
    ) -> None:
        self._answers, self._held, self._lag_s = answers, held, lag_s
        self._refused = refused

    def collect(self) -> Iterator[Metric]:
        """The families, as prometheus_client asks for them."""
        told = "Answers since the start."
        labels = ["method", "route", "status"]
        answers = CounterMetricFamily("catalogzero_backend_answers", told, labels=labels)
        for (method, route, status), count in sorted(self._answers.items()):
            answers.add_metric([method, route, str(status)], count)
        yield answers
        told = "Uploads that the backend knows, by state."
        uploads = GaugeMetricFamily("catalogzero_backend_uploads", told, labels=["state"])
        for state in ("open", "complete", "superseded"):
            uploads.add_metric([state], self._held[state])
        yield uploads
        told = "Installations that were ever heard from."
        name = "catalogzero_backend_installations"
        yield GaugeMetricFamily(name, told, value=self._held["installations"])
        told = "For how long the oldest rows that may be deleted wait for it, by kind."
        name = "catalogzero_backend_housekeeping_lag_seconds"
        lag = GaugeMetricFamily(name, told, labels=["rows"])
        for kind, seconds in self._lag_s.items():
            lag.add_metric([kind], seconds)
        yield lag
        told = "Requests answered 429, by the part of its share that a tenant had used up."
        limited = CounterMetricFamily("catalogzero_backend_limited", told, labels=["share"])
        for part, count in self._refused.items():
            limited.add_metric([part], count)
        yield limited
        told = "Uploads that wait for the hook, and those that it failed for too often."
        waiting = GaugeMetricFamily("catalogzero_backend_hooks", told, labels=["state"])
        for state in ("due", "failed"):
            waiting.add_metric([state], self._held[f"hooks_{state}"])
        yield waiting

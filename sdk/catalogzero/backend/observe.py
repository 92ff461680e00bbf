"""What watches the backend: `/healthz`, `/readyz`, `/metrics`.

Owns the counts of answers, and what `/metrics` tells. `/healthz` says that the process answers,
`/readyz` that its database does; neither tells more, so they need no key. `/metrics` is the
operator's, and asks the database nothing. Labels are routes, methods, statuses and states: their
number does not grow with tenants, installations or time.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from time import perf_counter

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from catalogzero.backend.figures import Figures
from catalogzero.backend.schema import SCHEMA, versions
from catalogzero.backend.shares import Shares
from catalogzero.backend.store import Database
from catalogzero.clock import Clock
from catalogzero.protocol.problems import Kind, ProblemError
from catalogzero.web import Guard

READY_TIMEOUT_S = 2.0
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = web.RequestKey("rows", int)
"""How many rows a request brought that are stored now."""


class Latency:
    """The times of one route's answers, by bucket."""

    def __init__(self) -> None:
        self.counts, self.sum_s = [0] * (len(BUCKETS_S) + 1), 0.0

    def add(self, seconds: float) -> None:
        """One more answer."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds

    def cumulated(self) -> list[tuple[str, float]]:
        """Each bucket's bound with how many answers took no longer."""
        total, found = 0, []
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class Observation:
    """Counts answers, and serves what watches.

    Args:
        guard: Lets the operator see the metrics.
        database: RequestKind whether it is there, and how busy its connections are.
        figures: What the database held when it was counted last.
        shares: RequestKind what was refused.
        clock: What ages are measured on.
    """

    def __init__(
        self, guard: Guard, database: Database, figures: Figures, shares: Shares, clock: Clock
    ) -> None:
        self._guard, self.database, self.figures = guard, database, figures
        self.shares, self.clock = shares, clock
        self.answers: Counter[tuple[str, str, int]] = Counter()
        self.latencies: dict[tuple[str, str], Latency] = {}
        self.rows, self.received_bytes = 0, 0
        self._registry = CollectorRegistry()
        self._registry.register(_Families(self))

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
            began_s = perf_counter()
            try:
                answer = await handler(request)
            finally:
                self.received_bytes += request.content.total_bytes
            method, route = named(request)
            self.answers[method, route, answer.status] += 1
            self.rows += request.get(ROWS, 0)
            self.latencies.setdefault((method, route), Latency()).add(perf_counter() - began_s)
            return answer

        return count

    async def healthz(self, _: web.Request) -> web.Response:
        """`GET /healthz`: the process answers."""
        return web.json_response({"status": "ok"})

    async def readyz(self, _: web.Request) -> web.Response:
        """`GET /readyz`: the database answers within two seconds, and has this release's schema."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                version = await self.database.read(
                    lambda connection: connection.scalar(select(versions.c.version))
                )
        except (SQLAlchemyError, TimeoutError):
            raise ProblemError(Kind.UNAVAILABLE, "the database does not answer") from None
        if version != SCHEMA.newest:
            text = f"the database has schema {version}, this release needs {SCHEMA.newest}"
            raise ProblemError(Kind.UNAVAILABLE, text)
        return web.json_response({"status": "ok"})

    async def metrics(self, request: web.Request) -> web.Response:
        """`GET /metrics`: counts since the start, and what the database held lately."""
        self._guard.check(request)
        headers = {"Content-Type": METRICS_TYPE}
        return web.Response(body=generate_latest(self._registry), headers=headers)


def named(request: web.Request) -> tuple[str, str]:
    """The method and the route of a request, as labels: whatever was asked, there are few."""
    resource = request.match_info.route.resource
    method = request.method if request.method in hdrs.METH_ALL else "other"
    return method, resource.canonical if resource else "other"


class _Families(Collector):
    """What a scrape tells, out of what was counted; figures that are not known are left out."""

    def __init__(self, seen: Observation) -> None:
        self._seen = seen

    def collect(self) -> Iterator[Metric]:
        """The families, as prometheus_client asks for them."""
        yield from self._requests()
        yield from self._database()
        counted = self._seen.figures.last
        if counted is None:
            return
        now, totals = self._seen.clock.now(), counted.totals
        yield _gauge(
            "figures_age_seconds",
            "Since the figures below were counted.",
            (now - counted.counted_at).total_seconds(),
        )
        text = "Installations, by how they are."
        states = GaugeMetricFamily("catalogzero_backend_installations", text, labels=["state"])
        for state, count in totals.states.items():
            states.add_metric([state], count)
        yield states
        yield _gauge("outbox_uploads", "Uploads that wait at clients.", totals.backlog)
        yield _gauge("outbox_dead_letters", "Uploads refused for good, at clients.", totals.dead)
        yield _gauge("missing_sources", "Sources that clients say are missing.", totals.missing)
        yield _gauge("open_uploads", "Uploads begun and not completed.", counted.open_uploads)
        yield _gauge("hook_waiting", "Uploads that wait for the hook.", counted.hook_waiting)
        since = counted.hook_since
        age_s = 0.0 if since is None else (now - since).total_seconds()
        yield _gauge("hook_oldest_age_seconds", "Since the oldest of them waits.", age_s)
        yield _gauge(
            "hook_failed", "Uploads that the hook failed for too often.", counted.hook_failed
        )
        text = "For how long the oldest rows that may be deleted wait for it, by kind."
        name = "catalogzero_backend_housekeeping_lag_seconds"
        lag = GaugeMetricFamily(name, text, labels=["rows"])
        for kind, seconds in counted.lag_s.items():
            lag.add_metric([kind], seconds)
        yield lag

    def _requests(self) -> Iterator[Metric]:
        """Answers since the start, and what came with them."""
        seen = self._seen
        labels, text = ["method", "route", "status"], "Answers since the start."
        answers = CounterMetricFamily("catalogzero_backend_answers", text, labels=labels)
        for (method, route, status), count in sorted(seen.answers.items()):
            answers.add_metric([method, route, str(status)], count)
        yield answers
        name, text = "catalogzero_backend_answer_seconds", "From a request's head to its answer."
        latency = HistogramMetricFamily(name, text, labels=["method", "route"])
        for (method, route), times in sorted(seen.latencies.items()):
            latency.add_metric([method, route], times.cumulated(), times.sum_s)
        yield latency
        yield CounterMetricFamily("catalogzero_backend_rows", "Rows stored.", value=seen.rows)
        name, text = "catalogzero_backend_received_bytes", "Bytes of bodies, as sent."
        yield CounterMetricFamily(name, text, value=seen.received_bytes)
        text = "Requests answered 429, by the part of its share that a tenant had used up."
        limited = CounterMetricFamily("catalogzero_backend_limited", text, labels=["share"])
        for part, count in seen.shares.refused.items():
            limited.add_metric([part], count)
        yield limited

    def _database(self) -> Iterator[Metric]:
        """Whether the database answers, and how busy its connections are."""
        text = "1 if the database answered when it was asked last."
        yield _gauge("database_up", text, float(self._seen.figures.answers))
        name, text = "catalogzero_backend_connections", "Connections to the database, by use."
        connections = GaugeMetricFamily(name, text, labels=["pool", "use"])
        for pool, found in self._seen.database.pools().items():
            connections.add_metric([pool, "size"], found.size)
            connections.add_metric([pool, "busy"], found.busy)
            connections.add_metric([pool, "waited_for"], found.waiting)
        yield connections


def _gauge(name: str, shown: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"catalogzero_backend_{name}", shown, value=value)

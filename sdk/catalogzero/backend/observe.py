"""What watches the backend: `/healthz`, `/readyz`, `/metrics`.

Owns the counts of answers, and what `/metrics` shows. `/healthz` says that the process answers,
`/readyz` that its database does; neither shows more, so they need no key. `/metrics` is the
operator's, and asks the database nothing. Labels are routes, methods, statuses and states: their
number does not grow with tenants, installations or time.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from math import inf
from time import perf_counter
from typing import TypeVar

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

from catalogzero.backend.figures import Counted, Figures
from catalogzero.backend.schema import SCHEMA, versions
from catalogzero.backend.shares import Shares
from catalogzero.backend.store import BackendDatabase
from catalogzero.clock import Clock
from catalogzero.protocol.problems import Kind, ProblemError
from catalogzero.web import Guard

F = TypeVar("F", CounterMetricFamily, GaugeMetricFamily)

READY_TIMEOUT_S = 2.0
SENDING = (hdrs.METH_POST, hdrs.METH_PUT)
USES = ("size", "busy", "waited_for")
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


@dataclass(frozen=True, slots=True)
class Ourselves:
    """How this process does since its start, as far as clients feel it.

    `failed` are answers of 500 and above, `limited` those of 429, `refused_keys` those of 401.
    `p50_s` and `p99_s` are upper bounds of how long what was sent took to answer, None before
    anything was.
    """

    answers: int
    failed: int
    limited: int
    refused_keys: int
    p50_s: float | None
    p99_s: float | None


class Observation(Collector):
    """Counts answers, and serves what watches.

    Args:
        guard: Lets the operator see the metrics.
        database: Asked whether it is there, and how busy its connections are.
        figures: What the database held when it was counted last.
        shares: Asked what was refused.
        clock: What ages are measured on.
    """

    def __init__(
        self,
        guard: Guard,
        database: BackendDatabase,
        figures: Figures,
        shares: Shares,
        clock: Clock,
    ) -> None:
        self._guard, self.database, self.figures = guard, database, figures
        self.shares, self.clock = shares, clock
        self.answers: Counter[tuple[str, str, int]] = Counter()
        self.latencies: dict[tuple[str, str], Latency] = {}
        self.rows, self.received_bytes = 0, 0
        self._registry = CollectorRegistry()
        self._registry.register(self)

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
                # of requests that fail, too
                self.received_bytes += request.content.total_bytes
            method, route = named(request)
            self.answers[method, route, answer.status] += 1
            self.rows += request.get(ROWS, 0)
            self.latencies.setdefault((method, route), Latency()).add(perf_counter() - began_s)
            return answer

        return count

    def ourselves(self) -> Ourselves:
        """Whether trouble is the backend's own."""
        by_status: Counter[int] = Counter()
        for (_, _, status), count in self.answers.items():
            by_status[status] += count
        sent = [one.counts for (method, _), one in self.latencies.items() if method in SENDING]
        counts = [sum(column) for column in zip(*sent, strict=True)]

        def within(part: float) -> float | None:
            """The bucket's bound within which this part of the answers came."""
            reached = (place for place, sum_ in enumerate(accumulate(counts)) if sum_ >= part)
            place = next(reached, None) if counts else None
            return None if place is None else (*BUCKETS_S, inf)[place]

        total = sum(counts)
        return Ourselves(
            answers=by_status.total(),
            failed=sum(count for status, count in by_status.items() if status >= 500),
            limited=sum(self.shares.refused.values()),
            refused_keys=by_status[401],
            p50_s=within(total * 0.5),
            p99_s=within(total * 0.99),
        )

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

    def collect(self) -> Iterator[Metric]:
        """The families, as prometheus_client asks for them; what is not known is left out."""
        yield family(
            CounterMetricFamily,
            "answers",
            "Answers since the start.",
            (
                ((method, route, str(status)), count)
                for (method, route, status), count in sorted(self.answers.items())
            ),
            *("method", "route", "status"),
        )
        name, text = "catalogzero_backend_answer_seconds", "From a request's head to its answer."
        latency = HistogramMetricFamily(name, text, labels=["method", "route"])
        for labels, times in sorted(self.latencies.items()):
            latency.add_metric(labels, times.cumulated(), times.sum_s)
        yield latency
        yield family(CounterMetricFamily, "rows", "Rows stored.", self.rows)
        text = "Bytes of bodies, as sent."
        yield family(CounterMetricFamily, "received_bytes", text, self.received_bytes)
        text = "Requests answered 429, by the part of its share that a tenant had used up."
        refused = by_label(self.shares.refused)
        yield family(CounterMetricFamily, "limited", text, refused, "share")
        text = "1 if the database answered when it was asked last."
        yield family(GaugeMetricFamily, "database_up", text, self.figures.answers)
        pools = [
            ((pool, use), count)
            for pool, found in self.database.pools().items()
            for use, count in zip(USES, (found.size, found.busy, found.waiting), strict=True)
        ]
        text = "Connections to the database, by use."
        yield family(GaugeMetricFamily, "connections", text, pools, "pool", "use")
        if self.figures.last is not None:
            yield from figures_of(self.figures.last, self.clock.now())


def figures_of(counted: Counted, now: datetime) -> Iterator[Metric]:
    """The families of what the database held when it was counted."""
    totals, waits_since = counted.totals, counted.hook_since or now
    gauges: dict[str, tuple[str, float | timedelta]] = {
        "figures_age_seconds": ("Since the figures below were counted.", now - counted.counted_at),
        "outbox_uploads": ("Uploads that wait at clients.", totals.backlog),
        "outbox_dead_letters": ("Uploads refused for good, at clients.", totals.dead),
        "missing_sources": ("Sources that clients say are missing.", totals.missing),
        "open_uploads": ("Uploads begun and not completed.", counted.open_uploads),
        "hook_waiting": ("Uploads that wait for the hook.", counted.hook_waiting),
        "hook_oldest_age_seconds": ("Since the oldest of them waits.", now - waits_since),
        "hook_failed": ("Uploads that the hook failed for too often.", counted.hook_failed),
    }
    for name, (text, found) in gauges.items():
        value = found.total_seconds() if isinstance(found, timedelta) else found
        yield family(GaugeMetricFamily, name, text, value)
    states = by_label(totals.states)
    yield family(
        GaugeMetricFamily, "installations", "Installations, by how they are.", states, "state"
    )
    text = "For how long the oldest rows that may be deleted wait for it, by kind."
    lags = by_label(counted.lag_s)
    yield family(GaugeMetricFamily, "housekeeping_lag_seconds", text, lags, "rows")


def family(
    kind: type[F],
    name: str,
    text: str,
    found: float | Iterable[tuple[Sequence[str], float]],
    *labels: str,
) -> F:
    """A family of the backend's: one value, or one for each combination of its labels' values."""
    made = kind(f"catalogzero_backend_{name}", text, labels=labels)
    for values, value in [((), found)] if isinstance(found, int | float) else found:
        made.add_metric(values, value)
    return made


def by_label(counts: Mapping[str, float]) -> list[tuple[Sequence[str], float]]:
    """Counts by the value of their one label."""
    return [((label,), count) for label, count in counts.items()]


def named(request: web.Request) -> tuple[str, str]:
    """The method and the route of a request, as labels: whatever was asked, there are few."""
    resource = request.match_info.route.resource
    method = request.method if request.method in hdrs.METH_ALL else "other"
    return method, resource.canonical if resource else "other"

"""A fleet that only says what a thousand handlers would say, behind the real dashboard.

Stands in for the connections; board, history, stream, guard and pages are the real ones.
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from catalogzero.testing import ManualClock

from conductorzero.dashboard import Dashboard
from conductorzero.fleet import Answer, Clock, Fleet
from conductorzero.history import History
from conductorzero.peers import Directory, Peer
from conductorzero.settings import ConductorSettings
from conductorzero.watch import Watch

TRADES = ("orders", "invoices", "billing", "returns", "stock", "crm", "exports", "sensor", "audit")


DESCRIPTION = {
    "doc": "Cleans orders and sends them to Acme.",
    "methods": [
        {
            "name": "process_and_upload",
            "doc": "Process a file, directory or query, and upload what comes of it exactly once.",
            "isolate": True,
            "retry_safe": True,
            "params_schema": {
                "properties": {"data_source": {}, "params": {}, "format": {}, "full": {}},
                "required": ["data_source"],
            },
        },
        {
            "name": "health_report",
            "doc": "Tell the backend how this installation is.",
            "quiet": True,
            "params_schema": {"properties": {}},
        },
    ],
    "settings": {
        "endpoint": "https://api.acme.example/v1/process",
        "api_key": "**********",
        "data_roots": ["/data/exports"],
    },
    "settings_schema": {
        "properties": {
            "endpoint": {"description": "Where results go."},
            "api_key": {"description": "Shows the backend who sends."},
            "data_roots": {"description": "The folders that may be read."},
        }
    },
    "runtime": {"sleep_after_s": 300.0},
}


def runs_of(one: SimulatedHandler) -> list[dict[str, Any]]:
    """The last runs of a handler, newest first."""
    ends: list[tuple[str, int | None, str | None]]
    ends = [("running", None, None), ("success", 41, None), ("success", 38, None)]
    ends += [("error", 3, "ReadError: /data/exports/orders.csv: row 1,204 has 6 fields, not 8")]
    ends += [("success", 1, None)]
    runs = []
    for number, (status, took_s, error) in enumerate(ends):
        began = one.now - timedelta(minutes=number * 15, seconds=17)
        run: dict[str, Any] = {
            "run_id": f"5d1c0a9e-{one.runs - number}",
            "method": "health_report" if took_s == 1 else "process_and_upload",
            "status": status,
            "started_at": began.isoformat(),
            "ended_at": (began + timedelta(seconds=took_s)).isoformat() if took_s else None,
        }
        if status == "running":
            run["progress"] = {"records": 184_000, "chunks": 3}
        if error:
            run.update(error=error, code="failed")
        runs.append(run)
    return runs


class SimulatedHandler:
    """One handler's story: figures that wander, from a seed of its own."""

    def __init__(self, number: int, *, busy: float) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.random = random.Random(number)  # noqa: S311 - a story, no secret
        self.dead = False
        self.called: str | None = None
        self.state = "active"
        self.memory_mb = self.random.uniform(24, 90)
        self.busy = busy * self.random.random()
        self.base_ms = self.random.uniform(0.4, 3.0)
        self.uptime_s = self.random.uniform(600, 900_000)
        self.runs = int(self.random.uniform(3, 4_000))
        self.failures = int(self.random.random() ** 8 * 40)
        self.in_flight = 0
        self.queued = 0

    def step(self) -> None:
        """Live for a moment."""
        self.uptime_s += 2.5
        self.memory_mb = max(20, self.memory_mb + self.random.gauss(0, 0.6))
        working = self.random.random() < self.busy
        if self.state not in ("draining", "sleeping") or working:
            self.state = (
                "active" if working else self.random.choices(["idle", self.state], [1, 9])[0]
            )
        self.in_flight = self.random.randint(1, 4) if working else 0
        self.queued = self.random.randint(1, 9) if self.in_flight == 4 else 0
        self.runs += self.in_flight
        self.memory_mb += (
            9 if working and self.memory_mb < 96 else -0.4 if self.memory_mb > 40 else 0
        )

    def metrics(self, handler_id: str) -> dict[str, Any]:
        """What it would answer to get_metrics."""
        return {
            "handler_id": handler_id,
            "cpu_percent": round(self.random.uniform(4, 60) if self.in_flight else 0.1, 1),
            "memory_mb": round(self.memory_mb, 2),
            "num_threads": 4 + self.in_flight,
            "connections": 2,
            "uptime_seconds": self.uptime_s,
            "status": self.state,
            "in_flight": self.in_flight,
            "queued": self.queued,
            "runs_total": self.runs,
            "failures_total": self.failures,
            "last_error": "HTTPStatusError: the backend answered 503" if self.failures else None,
            "idle_s": 0.0,
            "wakes_total": 3,
            "worker_memory_mb": None,
            "sdk_version": "0.1.0",
            "entry": "acme-processor",
            "version": "1.4.2",
        }


class SimulatedFleet(Fleet):
    """A fleet without connections."""

    def __init__(self, clock: Clock, handlers: dict[str, SimulatedHandler]) -> None:
        super().__init__(clock)
        self.handlers = handlers

    @property
    def handler_ids(self) -> list[str]:
        """The ids of all handlers."""
        return list(self.handlers)

    def connect(self, peers: Mapping[str, Peer]) -> None:
        """Nothing to connect."""

    def close(self) -> None:
        """Nothing to close."""

    async def ask(self, handler_id: str, method: str, *_: Any, **__: Any) -> Answer:
        """What this handler would answer."""
        one = self.handlers[handler_id]
        if one.dead:
            return Answer(handler_id, replied=False, error="Timeout", code="unreachable")
        took_ms = one.base_ms * math.exp(one.random.gauss(0, 0.25))
        result: dict[str, Any] = {"boot_id": "one", "handler": one.called or handler_id}
        if method == "get_metrics":
            result = one.metrics(handler_id)
        elif method == "list_runs":
            result = {"runs": runs_of(one)}
        elif method == "describe":
            result = DESCRIPTION
        elif method in ("sleep", "wake", "drain", "resume"):
            one.state = {"sleep": "sleeping", "drain": "draining"}.get(method, "active")
            result = {"status": one.state}
        return Answer(handler_id, replied=True, result=result, response_time_ms=round(took_ms, 3))

    async def ask_all(
        self, handler_ids: Iterable[str], method: str, *_: Any, **__: Any
    ) -> dict[str, Answer]:
        """What these handlers would answer."""
        return {one: await self.ask(one, method) for one in handler_ids}


class Simulation:
    """A dashboard over a simulated fleet; `turn` is one round of questions."""

    def __init__(self, number: int, *, clock: Clock, state_dir: Path, busy: float = 0.4) -> None:
        stories = [SimulatedHandler(n, busy=busy) for n in range(number)]
        names = [f"{TRADES[n % len(TRADES)]}-{n // len(TRADES) + 1:03d}" for n in range(number)]
        self.handlers = dict(zip(names, stories, strict=True))
        peers = [
            Peer(name, f"tcp://127.0.0.1:{6000 + n}", "config") for n, name in enumerate(names)
        ]
        self.fleet = SimulatedFleet(clock, self.handlers)
        log = structlog.wrap_logger(structlog.ReturnLogger())
        self.watch = Watch(Directory(peers, []), self.fleet, clock, log, interval_s=2.0)
        self._parts = clock, state_dir, log
        self.restart(0)
        self.watch.history = History(state_dir / "history.sqlite3")

    def restart(self, port: int) -> None:
        """Make a dashboard anew, on this port; the caller starts it."""
        clock, state_dir, log = self._parts
        settings = ConductorSettings(dashboard_port=port, interval_s=2.0)
        self.dashboard = Dashboard(self.watch, clock, settings, state_dir, log)

    async def turn(self) -> None:
        """Everybody lives for a moment, and is asked."""
        for one in self.handlers.values():
            one.step()
            one.now = self._parts[0].now()
        await self.watch.look()

    async def live_through(self, clock: ManualClock, hours: float, step_s: float = 20.0) -> None:
        """Let simulated time pass, a round every `step_s`."""
        for _ in range(int(hours * 3_600 / step_s)):
            await self.turn()
            await clock.advance(step_s)


@asynccontextmanager
async def simulation(
    number: int, *, clock: Clock, state_dir: Path, busy: float = 0.4
) -> AsyncIterator[Simulation]:
    """A simulation whose dashboard is served."""
    simulated = Simulation(number, clock=clock, state_dir=state_dir, busy=busy)
    await simulated.dashboard.start()
    try:
        yield simulated
    finally:
        await simulated.dashboard.stop()
        assert simulated.watch.history is not None
        simulated.watch.history.close()

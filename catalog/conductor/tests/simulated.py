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
from catalogzero import ConfigError
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
            "doc": "Report to the backend how this installation is.",
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


ERROR = "ReadError: /data/exports/orders.csv: row 1,204 has 6 fields, not 8"
RESULT = {
    "status": "uploaded",
    "records": 48_210,
    "chunks": 3,
    "sources": [
        {"source": "/data/exports/orders.csv", "status": "uploaded", "records": 48_210},
        {"source": "/data/exports/returns.csv", "status": "unchanged", "records": 0},
    ],
}


def runs_of(one: SimulatedHandler) -> list[dict[str, Any]]:
    """The last runs of a handler, newest first."""
    sent: Any = {"state": "uploaded", "words": "uploaded 48,210 rows", "rows": 48_210}
    if one.paused:
        sent = {"state": "waiting", "words": "48,210 rows wait to be sent", "rows": 48_210}
    same = {"state": "unchanged", "words": "nothing new", "rows": 0}
    failed = {"state": "failed", "words": ERROR, "rows": None}
    running = {"state": "running", "words": "running", "rows": None}
    ends: list[tuple[str, int | None, str | None, Any]]
    ends = [("running", None, None, running), ("success", 41, None, sent)]
    ends += [("error", 3, ERROR, failed)] if one.failing else [("success", 38, None, sent)]
    ends += [("success", 1, None, same), *[("success", 40 - n, None, sent) for n in range(14)]]
    runs = []
    for number, (status, took_s, error, outcome) in enumerate(ends[one.failing * 2 :]):
        began = one.now - timedelta(minutes=number * 15, seconds=17)
        run: dict[str, Any] = {
            "run_id": f"5d1c0a9e-{one.runs - number}",
            "method": "health_report" if took_s == 1 else "process_and_upload",
            "status": status,
            "outcome": outcome,
            "started_at": began.isoformat(),
            "ended_at": (began + timedelta(seconds=took_s)).isoformat() if took_s else None,
        }
        if status == "running":
            run["progress"] = {"records": 184_000, "chunks": 3}
        if error:
            run.update(error=error, code="failed")
        runs.append(run)
    return runs


def run_of(one: SimulatedHandler, run_id: str) -> dict[str, Any]:
    """One run of a handler, as `get_run` has it."""
    found = next((run for run in runs_of(one) if run["run_id"] == run_id), runs_of(one)[1])
    if found["status"] == "error":
        frame = '  File "/opt/acme/acme.py", line 31, in process\n    raise ReadError(row)'
        return {**found, "traceback": f"Traceback (most recent call last):\n{frame}\n{ERROR}"}
    upload = {
        "upload_id": "7f20c1aa-2",
        "state": "done" if found["outcome"]["state"] == "uploaded" else "sealed",
        "records": 48_210,
        "bytes": 2_400_000,
        "completed_at": found["ended_at"],
        "reason": None,
    }
    return {**found, "result": RESULT, "uploads": [upload]}


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
        self.labels: dict[str, str] = {}
        self.sends = True
        self.paused: str | None = None
        self.paused_code: str | None = None
        self.paused_since: str | None = None
        self.fault: str | None = None
        self.failing = False
        self.uploads = 0
        self.dead_letters = 0
        self.disk_free = 40 << 30
        self.delivered = 0
        self.sent_at: str | None = None
        self.reasons: list[str] = []

    def outbox(self) -> dict[str, Any]:
        """What waits for the backend."""
        next_try = (self.now + timedelta(minutes=2)).isoformat()
        return {
            "uploads": self.uploads,
            "records": self.uploads * 2_800,
            "bytes": self.uploads * 1_450_000,
            "oldest_age_s": self.uploads * 1_800.0,
            "oldest_at": (self.now - timedelta(minutes=30 * self.uploads)).isoformat(),
            "dead": self.dead_letters,
            "missing": 0,
            "paused": self.paused,
            "paused_code": self.paused_code,
            "paused_since": self.paused_since,
            "next_try_at": next_try if self.paused or self.fault else None,
            "fault": self.fault,
            "fault_since": self.now.isoformat() if self.fault else None,
            "last_upload_at": self.sent_at,
            "uploaded_records_total": self.delivered,
            "uploaded_total": self.delivered // 2_800,
            "disk_free_bytes": self.disk_free,
        }

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
        if working and not self.paused and not self.fault:
            self.delivered += 2_800 * self.in_flight
            self.sent_at = self.now.isoformat()
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
            "last_error": ERROR if self.failing else None,
            "idle_s": 0.0,
            "wakes_total": 3,
            "labels": self.labels,
            "outbox": self.outbox() if self.sends else None,
            "health": {
                "status": "degraded" if self.reasons else "ok",
                "reasons": self.reasons,
            },
            "last_successful_run": {
                "run_id": "5d1c0a9e-1",
                "method": "process_and_upload",
                "ended_at": (self.now - timedelta(minutes=16)).isoformat(),
            },
            "last_failed_run": {
                "run_id": f"5d1c0a9e-{self.runs}",
                "method": "process_and_upload",
                "ended_at": (self.now - timedelta(minutes=2)).isoformat(),
                "code": "failed",
                "type": "ReadError",
            }
            if self.failing
            else None,
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
        """Know who there is; nothing to connect."""
        self._clients = {key: (peer, ConfigError("simulated")) for key, peer in peers.items()}

    def close(self) -> None:
        """Nothing to close."""

    async def ask(self, handler_id: str, method: str, *asked: Any, **__: Any) -> Answer:
        """What this handler would answer."""
        params = asked[0] if asked else {}
        one = self.handlers[handler_id]
        if one.dead:
            return Answer(
                success=False,
                handler_id=handler_id,
                replied=False,
                error="Timeout",
                code="unreachable",
            )
        took_ms = one.base_ms * math.exp(one.random.gauss(0, 0.25))
        result: dict[str, Any] = {
            "boot_id": "one",
            "handler": one.called or handler_id.partition("/")[0],
        }
        if method == "get_metrics":
            result = one.metrics(handler_id)
        elif method == "list_runs":
            result = {"runs": runs_of(one)}
        elif method == "get_run":
            result = run_of(one, str(params["run_id"]))
        elif method == "describe":
            result = DESCRIPTION
        elif method in ("sleep", "wake", "drain", "resume"):
            one.state = {"sleep": "sleeping", "drain": "draining"}.get(method, "active")
            result = {"status": one.state}
        return Answer(
            success=True, handler_id=handler_id, result=result, response_time_ms=round(took_ms, 3)
        )

    async def ask_all(
        self, handler_ids: Iterable[str], method: str, *_: Any, **__: Any
    ) -> dict[str, Answer]:
        """What these handlers would answer."""
        return {one: await self.ask(one, method) for one in handler_ids}


class Simulation:
    """A dashboard over a simulated fleet; `turn` is one round of questions."""

    def __init__(
        self,
        number: int,
        *,
        clock: Clock,
        state_dir: Path,
        busy: float = 0.4,
        instances: tuple[str, ...] = (),
    ) -> None:
        stories = [SimulatedHandler(n, busy=busy) for n in range(number + len(instances))]
        names = [f"{TRADES[n % len(TRADES)]}-{n // len(TRADES) + 1:03d}" for n in range(number)]
        peers = [
            Peer(name, f"tcp://127.0.0.1:{6000 + n}", "config") for n, name in enumerate(names)
        ]
        peers += [
            Peer("render", f"tcp://10.0.0.{n + 1}:5001", "scheduler", name, 4)
            for n, name in enumerate(instances)
        ]
        self.handlers = {one.key: story for one, story in zip(peers, stories, strict=True)}
        for one in stories[number:]:
            one.sends = False
        self.fleet = SimulatedFleet(clock, self.handlers)
        log = structlog.wrap_logger(structlog.ReturnLogger())
        self.watch = Watch(Directory(peers, []), self.fleet, clock, log, interval_s=2.0)
        self._parts = clock, state_dir, log
        self.restart(0)
        self.watch.history = History(state_dir / "history.sqlite3")

    def restart(self, port: int) -> None:
        """Make another dashboard on this port; the caller starts it."""
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
    number: int, *, clock: Clock, state_dir: Path, **more: Any
) -> AsyncIterator[Simulation]:
    """A simulation whose dashboard is served."""
    simulated = Simulation(number, clock=clock, state_dir=state_dir, **more)
    await simulated.dashboard.start()
    try:
        yield simulated
    finally:
        await simulated.dashboard.stop()
        assert simulated.watch.history is not None
        simulated.watch.history.close()

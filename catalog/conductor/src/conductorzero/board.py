"""What is known of each handler now, and every change of it.

A pure structure: it is told answers and the time, and keeps one row a handler, a trail of
recent figures for sparklines, and the last events. Rows carry a growing version, so that a
reader can ask for what changed since it last looked.

Layer: catalog entry, imports nothing of catalogzero.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from conductorzero.fleet import TIMEOUT, Answer
from conductorzero.peers import Peer

TRAIL_LENGTH = 60
EVENTS_KEPT = 200
ERROR_CHARS = 300
BEYOND_MEASURE = 1e18
STATES = ("active", "idle", "sleeping", "draining", "unreachable", "unknown")
MB = 1024**2


class Figure(NamedTuple):
    """A figure of `get_metrics` as a metric: its name, help, and scale to the base unit."""

    metric: str
    help: str
    scale: float = 1.0


FIGURES = {
    "cpu_percent": Figure("cpu_ratio", "Use of processors, 1 is one core.", 0.01),
    "memory_mb": Figure("memory_bytes", "Resident memory of the process.", MB),
    "worker_memory_mb": Figure("worker_memory_bytes", "Resident memory of its worker process.", MB),
    "num_threads": Figure("threads", "Threads of the process."),
    "connections": Figure("connections", "Open network connections."),
    "uptime_seconds": Figure("uptime_seconds", "Time since its start."),
    "in_flight": Figure("runs_in_flight", "Runs in progress."),
    "queued": Figure("runs_queued", "Runs that wait for a place."),
    "runs_total": Figure("runs_total", "Runs since its start."),
    "failures_total": Figure("run_failures_total", "Failed runs since its start."),
    "idle_s": Figure("idle_seconds", "Time since its last job."),
    "wakes_total": Figure("wakes_total", "Times it woke from sleep."),
}
NAMES = ("entry", "version", "sdk_version")
OUTBOX = {
    "uploads": Figure("outbox_uploads", "Uploads that wait to be sent."),
    "bytes": Figure("outbox_bytes", "Bytes that wait to be sent."),
    "oldest_age_s": Figure("outbox_oldest_age_seconds", "Age of the oldest upload."),
    "dead": Figure("outbox_dead_letters", "Uploads refused for good."),
}
AT_WORK = ("active", "idle", "sleeping")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that changed: kind is joined, left, state, restarted or failure."""

    seq: int
    at: datetime
    handler_id: str
    kind: str
    text: str
    state: str

    @property
    def routine(self) -> bool:
        """Whether it is the coming and going of work, and no news of the fleet."""
        states = self.text.split(" → ")
        return self.kind == "state" and all(state in AT_WORK for state in states)

    def as_json(self) -> dict[str, Any]:
        """The event as the API shows it."""
        return {**asdict(self), "at": self.at.isoformat()}


@dataclass(slots=True)
class Row:
    """One handler as last seen; `metrics` is its latest answer to `get_metrics`.

    `trouble` is what is wrong with it beside silence: an address that is none, another's name.
    """

    peer: Peer
    since: datetime
    state: str = "unknown"
    response_time_ms: float | None = None
    last_seen_at: datetime | None = None
    boot_id: str | None = None
    trouble: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    version: int = 0
    latency_trail: deque[float | None] = field(default_factory=lambda: deque(maxlen=TRAIL_LENGTH))
    memory_trail: deque[float | None] = field(default_factory=lambda: deque(maxlen=TRAIL_LENGTH))

    @property
    def alive(self) -> bool:
        """Whether it answered the last time it was asked."""
        return self.state not in ("unreachable", "unknown")

    def as_json(self, *, trails: bool = False) -> dict[str, Any]:
        """The row as the API shows it; with `trails`, the recent figures of its sparklines."""
        body: dict[str, Any] = {
            "handler_id": self.peer.handler_id,
            "address": self.peer.address,
            "source": self.peer.source,
            "state": self.state,
            "since": self.since.isoformat(),
            "last_seen_at": self.last_seen_at.isoformat() if self.last_seen_at else None,
            "response_time_ms": self.response_time_ms,
            "trouble": self.trouble,
            "last_error": short(self.metrics.get("last_error")),
            "outbox": self._outbox(),
        }
        body.update((name, number(self.metrics.get(name))) for name in FIGURES)
        body.update((name, short(self.metrics.get(name))) for name in NAMES)
        if trails:
            body["latency_trail"] = list(self.latency_trail)
            body["memory_trail"] = list(self.memory_trail)
        return body

    def _outbox(self) -> dict[str, float | None] | None:
        """The figures of its outbox; None where it has none."""
        outbox = self.metrics.get("outbox")
        if not isinstance(outbox, dict):
            return None
        return {name: number(outbox.get(name)) for name in OUTBOX}


class Board:
    """The rows of all peers, their events, and a version that grows with every change."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self._routine: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._news: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self.version = 0
        self.members_version = 0
        self.last_seq = 0

    def set_peers(self, peers: Iterable[Peer], at: datetime) -> list[Event]:
        """Take the list of peers; returns the events of those that joined or left."""
        wanted = {peer.handler_id: peer for peer in peers}
        if {key: row.peer for key, row in self.rows.items()} == wanted:
            return []
        events = []
        for handler_id in [key for key in self.rows if key not in wanted]:
            row = self.rows.pop(handler_id)
            events.append(self._event(row, at, "left", "no longer in the registry"))
        for handler_id, peer in wanted.items():
            old = self.rows.get(handler_id)
            if old is None or old.peer != peer:
                row = self.rows[handler_id] = Row(peer, since=at)
                self._touch(row)
                events.append(self._event(row, at, "joined", f"found at {peer.address}"))
        self.members_version = self._next_version()
        return events

    def saw_ping(self, answer: Answer, at: datetime) -> list[Event]:
        """Take a handler's answer to `ping`, or its silence."""
        row = self.rows.get(answer.handler_id)
        if row is None:
            return []
        row.response_time_ms = answer.response_time_ms
        row.latency_trail.append(answer.response_time_ms)
        self._touch(row)
        row.trouble = _trouble(row, answer)
        if not answer.replied:
            row.memory_trail.append(None)
            return self._move(row, "unreachable", at)
        row.last_seen_at = at
        events = self._booted(row, answer.result, at)
        if not row.alive:
            events += self._move(row, "active", at)
        return events

    def saw_metrics(self, answer: Answer, at: datetime) -> list[Event]:
        """Take a handler's answer to `get_metrics`; silence is left to the ping to judge."""
        row = self.rows.get(answer.handler_id)
        if row is None or not isinstance(answer.result, dict):
            return []
        before, row.metrics = row.metrics, answer.result
        row.last_seen_at = at
        row.memory_trail.append(number(row.metrics.get("memory_mb")))
        self._touch(row)
        events = self._move(row, _state_of(row.metrics), at)
        failed, was = row.metrics.get("failures_total"), before.get("failures_total")
        if isinstance(failed, int) and isinstance(was, int) and failed > was:
            text = short(row.metrics.get("last_error")) or "a run failed"
            events.append(self._event(row, at, "failure", text))
        return events

    def changed_since(self, version: int) -> list[Row]:
        """The rows that changed after this version."""
        return [row for row in self.rows.values() if row.version > version]

    def events_after(self, seq: int, most: int | None = None) -> list[Event]:
        """The events that came after this one, oldest first.

        With `most`, the last so many of the routine, and of the news that they must not crowd out.
        """
        found = []
        for kept in (self._routine, self._news):
            after = [event for event in kept if event.seq > seq]
            found += after if most is None else after[-most:]
        return sorted(found, key=lambda event: event.seq)

    def summary(self) -> dict[str, Any]:
        """The fleet in a few figures."""
        rows = self.rows.values()
        states = Counter(row.state for row in rows)
        alive = [row for row in rows if row.alive]

        def total(name: str) -> float:
            return sum(number(row.metrics.get(name)) or 0 for row in alive)

        return {
            "total": len(self.rows),
            "alive": len(alive),
            "states": {state: states[state] for state in STATES},
            "memory_mb": round(total("memory_mb") + total("worker_memory_mb"), 1),
            "in_flight": int(total("in_flight")),
            "queued": int(total("queued")),
            "runs_total": int(total("runs_total")),
            "failures_total": int(total("failures_total")),
        }

    def _booted(self, row: Row, pong: Any, at: datetime) -> list[Event]:
        """Note the boot that a pong tells of; a new one is a restart."""
        boot_id = pong.get("boot_id") if isinstance(pong, dict) else None
        before, row.boot_id = row.boot_id, boot_id or row.boot_id
        if boot_id is None or before is None or before == boot_id:
            return []
        return [self._event(row, at, "restarted", "started anew")]

    def _move(self, row: Row, state: str, at: datetime) -> list[Event]:
        """Set a row's state; a change is an event."""
        if row.state == state:
            return []
        before, row.state, row.since = row.state, state, at
        return [self._event(row, at, "state", f"{before} → {state}")]

    def _event(self, row: Row, at: datetime, kind: str, text: str) -> Event:
        """Keep one event."""
        self.last_seq += 1
        event = Event(self.last_seq, at, row.peer.handler_id, kind, text, row.state)
        (self._routine if event.routine else self._news).append(event)
        return event

    def _touch(self, row: Row) -> None:
        """Mark a row as changed."""
        row.version = self._next_version()

    def _next_version(self) -> int:
        """A version above all before it."""
        self.version += 1
        return self.version


def _state_of(metrics: dict[str, Any]) -> str:
    """The state that a handler reports; one that reports none is active: it answered."""
    status = metrics.get("status")
    return status if status in ("idle", "sleeping", "draining") else "active"


def _trouble(row: Row, answer: Answer) -> str | None:
    """What is wrong with a handler beside silence."""
    if not answer.replied:
        return None if answer.error == TIMEOUT else short(answer.error)
    pong = answer.result if isinstance(answer.result, dict) else {}
    name = pong.get("handler")
    if "boot_id" not in pong or not isinstance(name, str) or name == row.peer.handler_id:
        return None
    return f"answers as {short(name)}"


def number(value: Any) -> float | None:
    """A figure, or None for what is none: of another type, not finite, or beyond all measure."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < BEYOND_MEASURE else None  # false for NaN too


def short(value: Any) -> str | None:
    """An error's text, bounded; metrics may carry it as a string or as an object."""
    if isinstance(value, dict):
        value = value.get("error") or value.get("message") or str(value)
    return None if value in (None, "") else str(value)[:ERROR_CHARS]

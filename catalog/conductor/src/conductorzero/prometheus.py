"""The fleet in Prometheus' text format, version 0.0.4: base units, conventional names.

A pure function of the board. A figure that a handler does not report is left out, never 0.

Layer: catalog entry, imports nothing of catalogzero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from conductorzero.board import NAMES, STATES, Row, number, short

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MB = 1024**2


@dataclass(frozen=True, slots=True)
class Family:
    """One metric of a handler: its name, kind, help, and how a row gives its value."""

    name: str
    kind: str
    help: str
    value: Callable[[Row], float | None]


def _metric(name: str, scale: float = 1.0) -> Callable[[Row], float | None]:
    """A value of `get_metrics`, in the base unit."""

    def read(row: Row) -> float | None:
        value = number(row.metrics.get(name)) if row.alive else None
        return None if value is None else value * scale

    return read


def _outbox(name: str) -> Callable[[Row], float | None]:
    """A value of the outbox in `get_metrics`; handlers that send nothing have none."""

    def read(row: Row) -> float | None:
        outbox = row.metrics.get("outbox") if row.alive else None
        return number(outbox.get(name)) if isinstance(outbox, dict) else None

    return read


def _response_s(row: Row) -> float | None:
    """Seconds that the last ping took, seen from the conductor."""
    return None if row.response_time_ms is None else row.response_time_ms / 1_000


FAMILIES = (
    Family("up", "gauge", "1 if the handler answered its last ping.", lambda row: float(row.alive)),
    Family("response_seconds", "gauge", "Time from ping to reply.", _response_s),
    Family("cpu_ratio", "gauge", "Use of processors, 1 is one core.", _metric("cpu_percent", 0.01)),
    Family("memory_bytes", "gauge", "Resident memory of the process.", _metric("memory_mb", MB)),
    Family(
        "worker_memory_bytes",
        "gauge",
        "Resident memory of its worker process.",
        _metric("worker_memory_mb", MB),
    ),
    Family("threads", "gauge", "Threads of the process.", _metric("num_threads")),
    Family("connections", "gauge", "Open network connections.", _metric("connections")),
    Family("uptime_seconds", "gauge", "Time since its start.", _metric("uptime_seconds")),
    Family("idle_seconds", "gauge", "Time since its last job.", _metric("idle_s")),
    Family("runs_in_flight", "gauge", "Runs in progress.", _metric("in_flight")),
    Family("runs_queued", "gauge", "Runs that wait for a place.", _metric("queued")),
    Family("runs_total", "counter", "Runs since its start.", _metric("runs_total")),
    Family(
        "run_failures_total", "counter", "Failed runs since its start.", _metric("failures_total")
    ),
    Family("wakes_total", "counter", "Times it woke from sleep.", _metric("wakes_total")),
    Family("outbox_uploads", "gauge", "Uploads that wait to be sent.", _outbox("uploads")),
    Family("outbox_bytes", "gauge", "Bytes that wait to be sent.", _outbox("bytes")),
    Family(
        "outbox_oldest_age_seconds", "gauge", "Age of the oldest upload.", _outbox("oldest_age_s")
    ),
    Family("outbox_dead_letters", "gauge", "Uploads refused for good.", _outbox("dead")),
)


@dataclass(frozen=True, slots=True)
class Conductor:
    """How the conductor itself is: its last round of questions (None before it), its problems."""

    round_s: float | None = None
    looked_at: datetime | None = None
    problems: int = 0


def render(rows: Iterable[Row], conductor: Conductor) -> str:
    """The text that a scrape gets."""
    rows = list(rows)
    lines: list[str] = []
    for family in FAMILIES:
        lines += _family(f"catalogzero_handler_{family.name}", family, rows)
    lines += _states(rows)
    lines += _info(rows)
    lines += _single("handlers", "Handlers that are watched.", len(rows))
    text = "Lists of handlers that cannot be read, and a history that cannot be written."
    lines += _single("problems", text, conductor.problems)
    if conductor.round_s is not None and conductor.looked_at is not None:
        text = "Time that the last round of questions to all handlers took."
        lines += _single("round_seconds", text, conductor.round_s)
        text = "When the last round of questions ended, in seconds since 1970."
        lines += _single("last_round_timestamp_seconds", text, conductor.looked_at.timestamp())
    return "\n".join(lines) + "\n"


def label(value: Any) -> str:
    """A label's value, escaped as the format asks."""
    text = "" if value is None else str(value)
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _family(name: str, family: Family, rows: list[Row]) -> Iterator[str]:
    """The lines of one metric."""
    yield f"# HELP {name} {family.help}"
    yield f"# TYPE {name} {family.kind}"
    for row in rows:
        value = family.value(row)
        if value is not None:
            yield f'{name}{{handler_id="{label(row.peer.handler_id)}"}} {value:.10g}'


def _states(rows: list[Row]) -> Iterator[str]:
    """One line for each handler and state, 1 for the state that it is in."""
    name = "catalogzero_handler_state"
    yield f"# HELP {name} 1 for the state that the handler is in."
    yield f"# TYPE {name} gauge"
    for row in rows:
        handler = label(row.peer.handler_id)
        for state in STATES:
            yield f'{name}{{handler_id="{handler}",state="{state}"}} {int(row.state == state)}'


def _info(rows: list[Row]) -> Iterator[str]:
    """One line for each handler with what it is."""
    name = "catalogzero_handler_info"
    yield f"# HELP {name} What the handler is; always 1."
    yield f"# TYPE {name} gauge"
    for row in rows:
        pairs: dict[str, Any] = {"handler_id": row.peer.handler_id, "address": row.peer.address}
        pairs |= {key: short(row.metrics.get(key)) for key in NAMES}
        text = ",".join(f'{key}="{label(value)}"' for key, value in pairs.items())
        yield f"{name}{{{text}}} 1"


def _single(name: str, text: str, value: float) -> Iterator[str]:
    """The lines of a metric of the conductor."""
    name = f"catalogzero_conductor_{name}"
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} gauge"
    yield f"{name} {value:.15g}"

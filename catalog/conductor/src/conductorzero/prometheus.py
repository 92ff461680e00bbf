"""The fleet as Prometheus metrics: base units, conventional names.

A pure function of the board. A figure that a handler does not report is left out, never 0.

Layer: catalog entry, imports nothing of catalogzero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from conductorzero.board import FIGURES, NAMES, OUTBOX, STATES, Figure, Row, number, short

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric of a handler: its name, its help, and how a row gives its value."""

    name: str
    help: str
    value: Callable[[Row], float | None]

    @property
    def kind(self) -> str:
        """Counters are called so."""
        return "counter" if self.name.endswith("_total") else "gauge"


def _family(name: str, figure: Figure, where: Callable[[dict[str, Any]], Any]) -> Family:
    """The metric of a figure that stands `where` in `get_metrics`, of handlers that report it."""

    def read(row: Row) -> float | None:
        shown = where(row.metrics) if row.alive else None
        value = number(shown.get(name)) if isinstance(shown, dict) else None
        return None if value is None else value * figure.scale

    return Family(figure.metric, figure.help, read)


def _response_s(row: Row) -> float | None:
    """Seconds that the last ping took, seen from the conductor."""
    return None if row.response_time_ms is None else row.response_time_ms / 1_000


FAMILIES = (
    Family("up", "1 if the handler answered its last ping.", lambda row: float(row.alive)),
    Family("response_seconds", "Time from ping to reply.", _response_s),
    *(_family(name, figure, lambda told: told) for name, figure in FIGURES.items()),
    *(_family(name, figure, lambda told: told.get("outbox")) for name, figure in OUTBOX.items()),
)


@dataclass(frozen=True, slots=True)
class Conductor:
    """How the conductor itself is: its last round of questions (None before it), its problems."""

    round_s: float | None = None
    looked_at: datetime | None = None
    problems: int = 0


def render(rows: Iterable[Row], conductor: Conductor) -> str:
    """The text that a scrape gets."""
    registry = CollectorRegistry()
    registry.register(_Fleet(list(rows), conductor))
    return generate_latest(registry).decode()


class _Fleet(Collector):
    """One scrape of the board."""

    def __init__(self, rows: list[Row], conductor: Conductor) -> None:
        self._rows, self._conductor = rows, conductor

    def collect(self) -> Iterator[Metric]:
        """The families, as prometheus_client asks for them."""
        for family in FAMILIES:
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            name = f"catalogzero_handler_{family.name}"
            metric = kind(name, family.help, labels=["handler_id"])
            for row in self._rows:
                value = family.value(row)
                if value is not None:
                    metric.add_metric([row.peer.handler_id], value)
            yield metric
        yield from self._states_and_info()
        yield from self._own()

    def _states_and_info(self) -> Iterator[Metric]:
        """For each handler the state that it is in, and what it is."""
        states = GaugeMetricFamily(
            "catalogzero_handler_state",
            "1 for the state that the handler is in.",
            labels=["handler_id", "state"],
        )
        info = GaugeMetricFamily(
            "catalogzero_handler_info",
            "What the handler is; always 1.",
            labels=["handler_id", "address", *NAMES],
        )
        for row in self._rows:
            for state in STATES:
                states.add_metric([row.peer.handler_id, state], int(row.state == state))
            texts = (short(row.metrics.get(key)) for key in NAMES)
            shown = ["" if text is None else str(text) for text in texts]
            info.add_metric([row.peer.handler_id, row.peer.address, *shown], 1)
        yield from (states, info)

    def _own(self) -> Iterator[Metric]:
        """How the conductor itself is."""
        own = self._conductor
        figures: list[tuple[str, str, float]] = [
            ("handlers", "Handlers that are watched.", len(self._rows)),
            (
                "problems",
                "Lists of handlers that cannot be read, and a history that cannot be written.",
                own.problems,
            ),
        ]
        if own.round_s is not None and own.looked_at is not None:
            text = "Time that the last round of questions to all handlers took."
            figures.append(("round_seconds", text, own.round_s))
            text = "When the last round of questions ended, in seconds since 1970."
            figures.append(("last_round_timestamp_seconds", text, own.looked_at.timestamp()))
        for name, text, value in figures:
            yield GaugeMetricFamily(f"catalogzero_conductor_{name}", text, value=value)

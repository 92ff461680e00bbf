"""The fleet as Prometheus metrics: base units, conventional names.

A pure function of the board. A figure that a handler does not report is left out, never 0. Each
instance has series of its own, with the label `instance_id`; a handler that is alone has none.

Layer: catalog entry, imports nothing of catalogzero.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from conductorzero.board import FIGURES, NAMES, OUTBOX, STATES, Figure, Row
from conductorzero.fleet import JsonObject, number, part, short

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


PREFIX = "catalogzero_handler_"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric of a handler: its name, its help, and how a row gives its value.

    With `by_host` it has the label `host`, too, so that it can be summed up by that.
    """

    name: str
    help: str
    value: Callable[[Row], float | None]
    by_host: bool = False

    @property
    def kind(self) -> str:
        """Counters are called so."""
        return "counter" if self.name.endswith("_total") else "gauge"


def family(name: str, figure: Figure, where: Callable[[JsonObject], Any]) -> Family:
    """The metric of a figure that stands `where` in `get_metrics`, of handlers that report it."""

    def read(row: Row) -> float | None:
        shown = where(row.metrics) if row.alive else None
        value = number(shown.get(name)) if isinstance(shown, dict) else None
        return None if value is None else value * figure.scale

    return Family(figure.metric, figure.help, read)


def moment(name: str, text: str, part_name: str, key: str) -> Family:
    """The metric of a time that stands under `key` of a part of `get_metrics`."""

    def read(row: Row) -> float | None:
        try:
            shown = part(row.metrics, part_name).get(key) if row.alive else None
            return None if shown is None else datetime.fromisoformat(shown).timestamp()
        except (TypeError, ValueError, OverflowError):
            return None  # whatever a peer answers

    return Family(f"{name}_timestamp_seconds", f"{text}, in seconds since 1970.", read)


def is_paused(row: Row) -> float | None:
    """1 while the handler's sending is paused; None for a handler without an outbox."""
    outbox = row.outbox() if row.alive else None
    return None if outbox is None else float("paused" in outbox)


def places(row: Row) -> float | None:
    """How many jobs an instance runs at once; None where it does not answer, or nobody says."""
    return row.peer.places if row.alive else None


def load(row: Row) -> float | None:
    """How much an instance has to do; None for a handler that is alone."""
    return row.load if row.peer.instance_id else None


FAMILIES = (
    Family("up", "1 if the handler answered its last ping.", lambda row: float(row.alive)),
    Family(
        "response_seconds",
        "Time from ping to reply.",
        lambda row: None if row.response_time_ms is None else row.response_time_ms / 1_000,
    ),
    *(family(name, figure, lambda shown: shown) for name, figure in FIGURES.items()),
    *(family(name, figure, lambda shown: shown.get("outbox")) for name, figure in OUTBOX.items()),
    Family("places", "Runs that an instance may have at once.", places, by_host=True),
    Family("load", "Runs that an instance has, or that wait there.", load, by_host=True),
    Family("outbox_paused", "1 while sending is paused.", is_paused),
    moment("last_upload", "When the backend last took an upload", "outbox", "last_upload_at"),
    moment("last_successful_run", "When a run last succeeded", "last_successful_run", "ended_at"),
    moment("last_failed_run", "When a run last failed", "last_failed_run", "ended_at"),
)


@dataclass(frozen=True, slots=True)
class Conductor:
    """How the conductor itself is: its last round of questions (None before it), its problems."""

    round_s: float | None = None
    looked_at: datetime | None = None
    problems: int = 0


def labels_of(row: Row) -> dict[str, str]:
    """The labels of a row's series."""
    labels = {"handler_id": row.peer.handler_id}
    if row.peer.instance_id:
        labels["instance_id"] = row.peer.instance_id
    return labels


@dataclass(slots=True, eq=False)
class Scrape(Collector):
    """One look at the board, as prometheus_client asks for it."""

    rows: Collection[Row]
    conductor: Conductor

    def collect(self) -> Iterator[Metric]:
        """The families."""
        for one in FAMILIES:
            kind = CounterMetricFamily if one.kind == "counter" else GaugeMetricFamily
            metric = kind(PREFIX + one.name, one.help)
            for row in self.rows:
                if (value := one.value(row)) is not None:
                    host = {"host": row.peer.host} if one.by_host else {}
                    metric.add_sample(PREFIX + one.name, {**labels_of(row), **host}, value)
            yield metric
        text = "1 for the state that the handler is in."
        states = GaugeMetricFamily(f"{PREFIX}state", text)
        info = GaugeMetricFamily(f"{PREFIX}info", "What the handler is; always 1.")
        text = "1 for each trouble that the handler is in."
        troubles = GaugeMetricFamily(f"{PREFIX}trouble", text)
        for row in self.rows:
            labels = labels_of(row)
            for trouble in row.troubles:
                troubles.add_sample(troubles.name, {**labels, "cause": trouble.cause}, 1)
            for state in STATES:
                states.add_sample(states.name, {**labels, "state": state}, int(row.state == state))
            shown = {key: short(row.metrics.get(key)) or "" for key in NAMES}
            info.add_sample(info.name, {**labels, "address": row.peer.address, **shown}, 1)
        yield from (states, troubles, info)
        for name, text, value in self.own_figures():
            yield GaugeMetricFamily(f"catalogzero_conductor_{name}", text, value=value)

    def own_figures(self) -> Iterator[tuple[str, str, float]]:
        """How the conductor itself is: name, help and value of each figure."""
        yield "handlers", "Handlers that are watched, and each instance.", len(self.rows)
        text = "Lists of handlers that cannot be read, and a history that cannot be written."
        yield "problems", text, self.conductor.problems
        round_s, looked_at = self.conductor.round_s, self.conductor.looked_at
        if round_s is not None and looked_at is not None:
            text = "Time that the last round of questions to all handlers took."
            yield "round_seconds", text, round_s
            text = "When the last round of questions ended, in seconds since 1970."
            yield "last_round_timestamp_seconds", text, looked_at.timestamp()


def render(rows: Iterable[Row], conductor: Conductor) -> str:
    """The text that a scrape gets."""
    registry = CollectorRegistry()
    registry.register(Scrape(list(rows), conductor))
    return generate_latest(registry).decode()

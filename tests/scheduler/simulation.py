"""Simulated time for a store: a clock that a test sets, and schedules made by hand."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from catalogzero.clock import Timer
from catalogzero.scheduler.history import History
from catalogzero.scheduler.models import Execution
from catalogzero.scheduler.store import Store
from catalogzero.scheduler.ticks import Schedule
from catalogzero.scheduler.triggers import parse_trigger

START = datetime(2026, 1, 5, tzinfo=UTC)
SECONDLY = {"type": "interval", "seconds": 1}


class SetClock:
    """A wall clock that stands where a test puts it."""

    def __init__(self, moment: datetime = START) -> None:
        self.moment = moment
        self._stepped = timedelta()

    def now(self) -> datetime:
        """See `Clock.now`."""
        return self.moment

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return (self.moment - self._stepped).timestamp()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Nothing in the store waits."""
        raise NotImplementedError

    async def sleep(self, delay_s: float) -> None:
        """Nothing in the store waits."""
        raise NotImplementedError

    def forward(self, seconds: float) -> None:
        """Let time pass."""
        self.moment += timedelta(seconds=seconds)

    def set(self, moment: datetime) -> None:
        """Set the wall clock, while no time passes."""
        self._stepped += moment - self.moment
        self.moment = moment


def make_schedule(trigger: dict[str, Any] = SECONDLY, **fields: Any) -> Schedule:
    """A schedule of `m` at `h`."""
    named = {"job_id": f"job-{uuid.uuid4().hex[:8]}", "params": {}, **fields}
    return Schedule(
        schedule_id=str(uuid.uuid4()),
        handler_id="h",
        method="m",
        trigger_config=parse_trigger(trigger),
        **named,
    )


def end(store: Store, one: Execution, status: str = "success") -> bool:
    """Write an execution's end; whether that was allowed."""
    one.status = status
    return store.save([one])[0]


def records(store: Store, **filters: str) -> list[dict[str, Any]]:
    """Every record, oldest first, as JSON shows it."""
    found, _ = History(store).newest(filters, 1_000_000)
    return [orjson.loads(orjson.dumps(record)) for record in found[::-1]]

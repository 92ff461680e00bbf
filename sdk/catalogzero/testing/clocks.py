"""A clock that a test moves by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from catalogzero.clock import Timer

SETTLE_STEPS = 20


class _ManualTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Call it off."""
        self.callback = None


class ManualClock:
    """A `Clock` that stands still until `advance`.

    Args:
        start: The wall time at which it stands; aware UTC.
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed_s = 0.0
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _ManualTimer]] = []

    def now(self) -> datetime:
        """See `Clock.now`."""
        return self._start + timedelta(seconds=self._elapsed_s)

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return self._elapsed_s

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """See `Clock.call_later`; runs inside `advance`."""
        timer = _ManualTimer(callback)
        due_s = self._elapsed_s + max(0.0, delay_s)
        heapq.heappush(self._timers, (due_s, next(self._order), timer))
        return timer

    async def sleep(self, delay_s: float) -> None:
        """See `Clock.sleep`; ends inside `advance`."""
        awake = asyncio.Event()
        timer = self.call_later(delay_s, awake.set)
        try:
            await awake.wait()
        finally:
            timer.cancel()

    async def advance(self, seconds: float) -> None:
        """Let time pass: what comes due happens in order, each thing at its own moment."""
        end_s = self._elapsed_s + seconds
        await settle()
        while self._timers and self._timers[0][0] <= end_s:
            due_s, _, timer = heapq.heappop(self._timers)
            # A timer may be set for a moment that has passed: time never goes back.
            self._elapsed_s = max(self._elapsed_s, due_s)
            if timer.callback:
                timer.callback()
                await settle()
        self._elapsed_s = end_s
        await settle()


async def settle() -> None:
    """Let the event loop do what is ready."""
    for _ in range(SETTLE_STEPS):
        await asyncio.sleep(0)

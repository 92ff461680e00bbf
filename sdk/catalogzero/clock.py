"""Time, injected: the only module of the SDK that reads a clock.

Wall times are aware UTC; durations and deadlines are monotonic seconds.
`catalogzero.testing.ManualClock` is the double that a test moves by hand.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol


class Timer(Protocol):
    """Something that will happen, and can be called off."""

    def cancel(self) -> None:
        """Call it off; harmless once it has happened."""


class Clock(Protocol):
    """What the runtime knows of time."""

    def now(self) -> datetime:
        """The wall clock: aware UTC."""

    def monotonic(self) -> float:
        """Seconds that never go backward, from an arbitrary start."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` on the running event loop `delay_s` seconds from now."""

    async def sleep(self, delay_s: float) -> None:
        """Wait `delay_s` seconds without holding up the loop."""


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        """See `Clock.now`."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return time.monotonic()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """See `Clock.call_later`."""
        return asyncio.get_running_loop().call_later(delay_s, callback)

    async def sleep(self, delay_s: float) -> None:
        """See `Clock.sleep`."""
        await asyncio.sleep(delay_s)

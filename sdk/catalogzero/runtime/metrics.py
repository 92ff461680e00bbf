"""What the operating system knows of this process.

Blocking: read it off the event loop. Sizes in MiB, CPU in percent of one core.
"""

from __future__ import annotations

import threading
from contextlib import suppress

import psutil

from catalogzero.clock import Clock
from catalogzero.runtime.control_answers import ProcessFigures

MIN_SAMPLE_S = 0.1
MIB = 1 << 20


class ProcessMeter:
    """Measures this process; the CPU sample begins when the meter is made."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._process = psutil.Process()
        self._turn = threading.Lock()
        self._process.cpu_percent()
        self._sampled_s = clock.monotonic()
        self._cpu_percent: float | None = None

    def read(self) -> ProcessFigures:
        """`cpu_percent` (since the last sample), `memory_mb`, `num_threads`, `connections`."""
        with self._turn, self._process.oneshot():
            # A sample lasts at least 0.1 s, so that two readers do not spoil each other's.
            now_s = self._clock.monotonic()
            if now_s - self._sampled_s >= MIN_SAMPLE_S:
                self._cpu_percent, self._sampled_s = self._process.cpu_percent(), now_s
            elif self._cpu_percent is None:
                self._cpu_percent = self._process.cpu_percent(interval=MIN_SAMPLE_S)
                self._sampled_s = self._clock.monotonic()
            connections = None
            with suppress(psutil.Error, OSError):
                connections = len(self._process.net_connections())
            return {
                "cpu_percent": self._cpu_percent,
                "memory_mb": round(self._process.memory_info().rss / MIB, 2),
                "num_threads": self._process.num_threads(),
                "connections": connections,
            }


def memory_mb_of(pid: int) -> float | None:
    """Resident memory of another process; `None` when it is gone."""
    try:
        return round(psutil.Process(pid).memory_info().rss / MIB, 2)
    except psutil.Error:
        return None

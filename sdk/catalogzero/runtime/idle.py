"""When a handler is active, idle or asleep: a pure state machine that is given the time.

It never reads a clock, sleeps or logs. Times are monotonic seconds.

    active ──idle_after_s──► idle ──sleep_after_s──► falling ──► sleeping ──job──► waking ──► active
       ▲──────── a job ────────┘                                    ▲──── a hook raised ────┘
"""

from __future__ import annotations

from enum import StrEnum

TOLERANCE_S = 1e-3
"""What is due within this is due: sums of floats may never quite reach a limit."""


class SleepState(StrEnum):
    """Where a handler stands between work and sleep."""

    ACTIVE = "active"
    IDLE = "idle"
    FALLING = "falling"
    SLEEPING = "sleeping"
    WAKING = "waking"


class IdleWatch:
    """Counts jobs and says when the next state is due.

    Args:
        idle_after_s: Seconds without a job until idle.
        sleep_after_s: Seconds without a job until falling asleep is due; 0 or less: never.
        now_s: The monotonic time at which the watch begins.

    Attributes:
        jobs: How many jobs are queued or running.
        state: Where the handler stands.
    """

    def __init__(self, *, idle_after_s: float, sleep_after_s: float, now_s: float) -> None:
        self._idle_after_s = idle_after_s
        self._sleep_after_s = sleep_after_s
        self._quiet_since_s = now_s
        self.jobs = 0
        self.state = SleepState.ACTIVE

    def idle_s(self, now_s: float) -> float:
        """Seconds since the last job ended; 0 while one is there."""
        return 0.0 if self.jobs else max(0.0, now_s - self._quiet_since_s)

    def job_came(self) -> None:
        """A job that counts as activity was accepted."""
        self.jobs += 1
        if self.state is SleepState.IDLE:
            self.state = SleepState.ACTIVE

    def job_ended(self, now_s: float) -> None:
        """A job that was accepted is over, however it ended."""
        self.jobs -= 1
        self._quiet_since_s = now_s

    def tick(self, now_s: float) -> bool:
        """Move to idle where that is due; true when falling asleep is due."""
        if self.jobs or self.state not in (SleepState.ACTIVE, SleepState.IDLE):
            return False
        quiet_s = now_s - self._quiet_since_s + TOLERANCE_S
        if quiet_s >= self._idle_after_s:
            self.state = SleepState.IDLE
        return 0 < self._sleep_after_s <= quiet_s

    def next_tick_s(self, now_s: float) -> float | None:
        """Seconds until `tick` may have something to do; `None` while it cannot."""
        if self.jobs or self.state not in (SleepState.ACTIVE, SleepState.IDLE):
            return None
        quiet_s = now_s - self._quiet_since_s
        limits = [self._sleep_after_s] if self._sleep_after_s > 0 else []
        if self.state is SleepState.ACTIVE:
            limits.append(self._idle_after_s)
        return max(0.0, min(limits) - quiet_s) if limits else None

    def fall(self) -> None:
        """Falling asleep begins; only an awake handler without jobs can."""
        self._move({SleepState.ACTIVE, SleepState.IDLE}, SleepState.FALLING)

    def asleep(self) -> None:
        """Falling asleep is done, or waking failed."""
        self._move({SleepState.FALLING, SleepState.WAKING}, SleepState.SLEEPING)

    def wake(self) -> None:
        """Waking begins."""
        self._move({SleepState.SLEEPING}, SleepState.WAKING)

    def awake(self, now_s: float) -> None:
        """Waking is done."""
        self._move({SleepState.WAKING}, SleepState.ACTIVE)
        self._quiet_since_s = now_s

    def _move(self, allowed: set[SleepState], state: SleepState) -> None:
        """Take a step of the diagram, and no other."""
        if self.state not in allowed:
            raise RuntimeError(f"a handler that is {self.state} cannot become {state}")
        self.state = state

"""What happens when a schedule is due: which ticks were missed, which one runs, what comes next.

Pure: from the moment and what is still going on it makes a `Firing`; the store
writes that in the transaction of the claim. Moments are microseconds since 1970 in UTC.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import TypeAlias

from catalogzero.scheduler.triggers import EPOCH, MOMENT, Trigger, make_trigger
from catalogzero.wire.messages import JsonObject

LATE_AFTER_S = 1.0
MAX_TICKS_A_CLAIM = 2_000
MAX_QUEUED_RUNS = 100


def to_us(moment: datetime) -> int:
    """Microseconds since 1970 of an aware moment."""
    return (moment - EPOCH) // MOMENT


def from_us(us: int) -> datetime:
    """The moment that is this many microseconds since 1970, in UTC."""
    return EPOCH + us * MOMENT


def iso_of(us: int | None) -> str | None:
    """The same in ISO 8601; None for what is no moment."""
    try:
        return None if us is None else from_us(us).isoformat()
    except (OverflowError, TypeError):
        return None


def fault_of(error: Exception) -> str:
    """An error of one schedule as its `fault`."""
    return str(error) if type(error) is ValueError else repr(error)


def seconds_us(seconds: float) -> int:
    """Microseconds of a length in seconds."""
    return round(seconds * 1_000_000)


Place: TypeAlias = tuple[bool, int, str]
"""Where a schedule stands in their order: paused, due_us, job_id."""


@dataclass(slots=True)
class Schedule:
    """One schedule, as the store holds it.

    `tick_us` is the next fire time, `due_us` the same with its jitter; both None when it is over.
    `folded` is `missed:{execution_id}` or `skipped:{execution_id}` while such a row may still grow.
    `decided_us` is the last tick that was decided on, or the moment that the next one was computed
    from; from `steady_since_us` to there no tick is left to fire, whatever of them is recorded.
    `fault` is why its next time cannot be computed here: it stands still. `fired` are ticks that
    were recorded while the clock was ahead: these do not fire again.
    """

    schedule_id: str
    job_id: str
    handler_id: str
    method: str
    params: JsonObject
    trigger_config: JsonObject
    overlap: str = "skip"
    misfire_grace_s: float | None = None
    max_attempts: int = 3
    timeout_s: float | None = None
    jitter_s: float = 0.0
    max_runs: int | None = None
    end_us: int | None = None
    paused: bool = False
    runs: int = 0
    created_us: int = 0
    tick_us: int | None = None
    due_us: int | None = None
    folded: str | None = None
    decided_us: int = 0
    steady_since_us: int | None = None
    partition: bool = False
    fault: str | None = None
    fired: AbstractSet[int] = frozenset()

    @property
    def trigger(self) -> Trigger:
        """Its trigger.

        Raises:
            ValueError: Its `fault`.
        """
        if self.fault is not None:
            raise ValueError(self.fault)
        return make_trigger(self.trigger_config)

    @property
    def place(self) -> Place:
        """Where it stands among the others."""
        return self.paused, self.due_us or 0, self.job_id

    def next_tick(self, after_us: int) -> int | None:
        """The first tick later than a moment, not past the schedule's end."""
        tick_us = after_us
        # Several turns only after a step of the clock: else the first tick found is a new one.
        while tick_us == after_us or tick_us in self.fired or self._is_decided(tick_us):
            from_here_us = self.decided_us if self._is_decided(tick_us) else tick_us
            found = self.trigger.next_after(from_us(from_here_us))
            if found is None or (self.end_us is not None and to_us(found) > self.end_us):
                return None
            tick_us = to_us(found)
        return tick_us

    def _is_decided(self, us: int) -> bool:
        """Whether a moment is one of those up to which every tick was decided on."""
        since_us = self.steady_since_us
        return since_us is not None and since_us <= us <= self.decided_us

    def decide(self, firing: Firing) -> None:
        """Note what was decided; ticks that were missed may yet be those of a wrong clock."""
        first_us, last_us = firing.tick_us, firing.tick_us
        # Missed by a scheduler that was away, or by a clock that jumped ahead: which of the two
        # shows only when the clock is set back, so these are not counted as decided.
        if firing.missed is not None:
            self.steady_since_us, last_us = None, last_us or firing.missed.last_us
        if first_us is not None and (self.steady_since_us or first_us) >= first_us:
            self.steady_since_us = first_us
        self.decided_us = self.decided_us if last_us is None else last_us

    def reckon(self, now_us: int, *, unrun: bool = False) -> int | None:
        """Find the first tick after now; after a clock that was ahead, forget what it decided.

        With `unrun` ticks after now did not run, and may when their time comes.
        """
        since_us = self.steady_since_us
        if since_us is not None and since_us > now_us:
            self.steady_since_us = None
        if self.steady_since_us is None or unrun or self.decided_us < now_us:
            self.decided_us = now_us
        return self.next_tick(now_us)

    def bring_forward(self, now_us: int, *, unrun: bool = False) -> bool:
        """Wait no longer than until the first tick after now; whether that is another.

        An interval that began when it was created, by a clock that was ahead, begins now.
        """
        if self.created_us > now_us and self.trigger_config.get("type") == "interval":
            begun = from_us(self.created_us).isoformat()
            if self.trigger_config.get("start_time") == begun:
                self.trigger_config["start_time"] = from_us(now_us).isoformat()
        first_us = self.reckon(now_us, unrun=unrun)
        if first_us is None or self.tick_us is None or first_us >= self.tick_us:
            return False
        self.tick_us, self.due_us, self.folded = first_us, self.due_of(first_us), None
        return True

    def due_of(self, tick_us: int) -> int:
        """When a tick is due: itself and its jitter, the same at every look."""
        if not self.jitter_s:
            return tick_us
        # From the tick itself: every scheduler, and each look, must find the same moment.
        digest = blake2b(f"{self.schedule_id}:{tick_us}".encode(), digest_size=8).digest()
        return tick_us + int(int.from_bytes(digest) / 2**64 * seconds_us(self.jitter_s))

    def preview(self, now_us: int, count: int) -> Iterator[int]:
        """The next fire times from its next tick on, at most `count`, `max_runs` minded."""
        left = count if self.max_runs is None else min(count, self.max_runs - self.runs)
        tick = self.next_tick(now_us) if self.paused else self.tick_us
        while tick is not None and left > 0:
            yield tick
            tick, left = self.next_tick(tick), left - 1


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive ticks: the first, the last, and how many."""

    first_us: int
    last_us: int
    count: int


@dataclass(frozen=True, slots=True)
class Firing:
    """What one claim of a due schedule writes.

    `status` is that of the tick `tick_us`: running, queued or skipped; None when none is decided.
    """

    missed: Span | None
    tick_us: int | None
    status: str | None
    late: bool
    next_tick_us: int | None


def fire(schedule: Schedule, now_us: int, *, active: int, queued: int) -> Firing:
    """Decide on every tick of a due schedule up to now.

    All but the latest are missed; the latest is too when it is later than `misfire_grace_s`.

    Args:
        schedule: Due: its `due_us` is not later than `now_us`.
        now_us: The moment of the claim.
        active: Its executions that are going on.
        queued: Its executions that wait for those.
    """
    # Recorded while the clock was ahead of this moment: the same tick must not run a second time.
    if schedule.tick_us is not None and schedule.tick_us in schedule.fired:
        following_us = schedule.next_tick(schedule.tick_us)
        if following_us is None or schedule.due_of(following_us) > now_us:
            return Firing(None, None, None, False, following_us)
        schedule.tick_us = following_us
    span, before_us, following_us = due_ticks(schedule, now_us)
    # More are due than one claim decides on: the latest is not known yet, so none of these runs.
    if following_us is not None and schedule.due_of(following_us) <= now_us:
        return Firing(span, None, None, False, following_us)
    late_us = now_us - schedule.due_of(span.last_us)
    grace_s = schedule.misfire_grace_s
    if grace_s is not None and late_us > seconds_us(grace_s):
        return Firing(span, None, None, False, following_us)
    missed = None if before_us is None else Span(span.first_us, before_us, span.count - 1)
    status = decide_overlap(schedule.overlap, active, queued)
    # A tick that is skipped is no run, and uses none of `max_runs` up.
    if status != "skipped" and schedule.max_runs and schedule.runs + 1 >= schedule.max_runs:
        following_us = None
    late = late_us > seconds_us(LATE_AFTER_S)
    return Firing(missed, span.last_us, status, late, following_us)


def due_ticks(schedule: Schedule, now_us: int) -> tuple[Span, int | None, int | None]:
    """The ticks that are due, as many as one claim takes; the last but one; the following one."""
    assert schedule.tick_us is not None  # noqa: S101 - a due schedule has a tick
    first_us = last_us = schedule.tick_us
    count, before_us = 1, None
    following_us = schedule.next_tick(last_us)
    while following_us is not None and schedule.due_of(following_us) <= now_us:
        # Years of a short interval are decided in parts: no claim holds the database for long.
        if count == MAX_TICKS_A_CLAIM:
            break
        before_us, last_us, count = last_us, following_us, count + 1
        following_us = schedule.next_tick(last_us)
    return Span(first_us, last_us, count), before_us, following_us


def decide_overlap(overlap: str, active: int, queued: int) -> str:
    """What becomes of a tick while earlier runs of its schedule go on."""
    if overlap == "parallel" or not active + queued:
        return "running"
    if overlap == "queue" and queued < MAX_QUEUED_RUNS:
        return "queued"
    return "skipped"

"""A week of simulated time, across a clock change each way, against a search through every minute.

Nothing of the oracle knows the trigger library or the store: it lists the ticks, and walks them
in order with the rules for overlap, as a person would on paper.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from catalogzero.scheduler.models import Execution
from catalogzero.scheduler.store import Store
from catalogzero.scheduler.ticks import from_us, to_us

from tests.scheduler.oracle import cron_ticks, interval_ticks
from tests.scheduler.simulation import SetClock, make_schedule, records

ZONES = (
    *("Europe/Berlin", "America/New_York", "Australia/Sydney", "Australia/Lord_Howe"),
    *("Asia/Kolkata", "UTC"),
)
WEEKS = {
    "both ways": datetime(2026, 3, 28, 18, tzinfo=UTC),
    "forward": datetime(2026, 3, 25, tzinfo=UTC),
    "back": datetime(2026, 10, 28, tzinfo=UTC),
}
"""Berlin goes forward on 29 March, Sydney and Lord Howe back on 4 April; New York on 1 November."""

WEEK = timedelta(days=7)
LEASE_S = 1e6
MOST_QUEUED = 100
CRONS = (
    {"hour": "2", "minute": "30"},
    {"hour": "*/6", "minute": "15"},
    {"minute": "0"},
    {"day_of_week": "sun", "hour": "1,2,3", "minute": "0,30"},
    {"day_of_week": "mon-fri", "hour": "9-17"},
    {"hour": "0", "minute": "5", "second": "30"},
    {"day": "last", "hour": "23", "minute": "59"},
    {"hour": "*", "minute": "50-59/3"},
    {"month": "3-4", "hour": "2", "minute": "*/20"},
)


def mixed(number: int, chance: random.Random, start: datetime) -> dict[str, Any]:
    """A trigger: intervals, cron in several zones, dates."""
    kind = number % 10
    if kind < 6:
        cron = CRONS[number % len(CRONS)]
        return {"type": "cron", "timezone": chance.choice(ZONES), **cron}
    if kind < 9:
        return {"type": "interval", "minutes": 5 * chance.randint(8, 300)}
    moment = start + timedelta(minutes=5 * chance.randint(1, 2_000))
    return {"type": "date", "run_date": moment.isoformat()}


def expected_ticks(trigger: dict[str, Any], start: datetime, end: datetime) -> list[datetime]:
    """Every tick of [start, end]."""
    just_before = start - timedelta(microseconds=1)
    if trigger["type"] == "date":
        return [datetime.fromisoformat(trigger["run_date"])]
    if trigger["type"] == "interval":
        length = timedelta(minutes=trigger["minutes"])
        return interval_ticks(length, start, just_before, end)
    fields = {k: v for k, v in trigger.items() if k not in ("type", "timezone")}
    return _cron_ticks(tuple(fields.items()), trigger["timezone"], just_before, end)


@cache
def _cron_ticks(
    fields: tuple[tuple[str, str], ...], zone: str, start: datetime, end: datetime
) -> list[datetime]:
    """The search, once for each trigger."""
    return cron_ticks(dict(fields), zone, start, end)


def on_paper(
    ticks: list[datetime], overlap: str, run_s: float, max_runs: int | None
) -> dict[datetime, str]:
    """What becomes of each tick when every run takes so long."""
    outcome: dict[datetime, str] = {}
    begins: list[datetime] = []
    free_at = datetime.min.replace(tzinfo=UTC)
    for tick in ticks:
        if len(begins) == max_runs:
            break
        waiting = sum(begin >= tick for begin in begins[-MOST_QUEUED:])
        if (overlap == "skip" and tick < free_at) or (
            overlap == "queue" and waiting >= MOST_QUEUED
        ):
            outcome[tick] = "skipped"
            continue
        outcome[tick] = "success"
        begins.append(max(tick, free_at) if overlap == "queue" else tick)
        free_at = begins[-1] + timedelta(seconds=run_s)
    return outcome


class Simulation:
    """A store in simulated time, and runs that take as long as their schedule says."""

    def __init__(self, store: Store, clock: SetClock) -> None:
        self.store, self.clock = store, clock
        self.ends: list[tuple[datetime, Execution]] = []

    def live(self, end: datetime) -> None:
        """Claim and finish what is due, moment by moment."""
        while True:
            claim = self.store.claim("A", LEASE_S)
            for one in claim.started:
                takes = timedelta(seconds=one.params["run_s"])
                self.ends.append((self.clock.moment + takes, one))
            due = claim.next_due_us
            moments = [moment for moment, _ in self.ends]
            moments += [] if due is None else [max(from_us(due), self.clock.moment)]
            if not moments or min(moments) > end + WEEK or (not self.ends and min(moments) > end):
                return
            self.clock.moment = min(moments)
            if self.clock.moment > end:
                self._stop_schedules()
            self._finish()

    def _finish(self) -> None:
        over = [one for moment, one in self.ends if moment <= self.clock.moment]
        self.ends = [(moment, one) for moment, one in self.ends if moment > self.clock.moment]
        for one in over:
            one.status = "success"
        if over:
            assert all(self.store.save(over))

    def _stop_schedules(self) -> None:
        """The week is over: what is queued still runs."""
        for one in self.store.list_schedules():
            if not one.paused:
                self.store.pause_schedule(one.job_id, True)


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one, as thousands of commits are slow on a busy disk."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "week",
    [
        "both ways",
        pytest.param("forward", marks=pytest.mark.slow),
        pytest.param("back", marks=pytest.mark.slow),
    ],
)
def test_a_thousand_mixed_schedules_agree_with_the_search_tick_by_tick(
    week: str, memory_folder: Path
) -> None:
    start, chance = WEEKS[week], random.Random(week)  # noqa: S311 - a mix, no secret
    clock = SetClock(start)
    store = Store(f"sqlite:///{memory_folder / 'week.db'}", clock=clock)
    expected: dict[str, dict[datetime, str]] = {}
    for number in range(1_000):
        trigger = mixed(number, chance, start)
        overlap = ("skip", "queue", "parallel")[number % 3]
        run_s = chance.choice((300, 600, 5_400))
        max_runs = chance.choice((None, None, 7))
        end = start + chance.choice((WEEK, WEEK, timedelta(days=3)))
        new = make_schedule(trigger, job_id=f"{number}", overlap=overlap, params={"run_s": run_s})
        ticks = expected_ticks(trigger, start, end)
        if ticks and ticks[-1] <= end:
            new.max_runs, new.end_us = max_runs, to_us(end)
        else:
            ticks = expected_ticks(trigger, start, start + WEEK)
        store.add_schedule(new)
        expected[new.job_id] = on_paper(ticks, overlap, run_s, new.max_runs)

    Simulation(store, clock).live(start + WEEK)

    found: dict[str, dict[datetime, str]] = defaultdict(dict)
    skipped: Counter[str] = Counter()
    for record in records(store):
        moment = datetime.fromisoformat(record["scheduled_at"])
        if record["status"] == "skipped":
            skipped[record["job_id"]] += record["ticks"]["count"]
        else:
            assert moment not in found[record["job_id"]]
            found[record["job_id"]][moment] = record["status"]
    store.close()
    for job_id, outcome in expected.items():
        ran = {tick: what for tick, what in outcome.items() if what != "skipped"}
        assert found.get(job_id, {}) == ran
        assert skipped[job_id] == len(outcome) - len(ran)
    assert sum(map(len, expected.values())) > 20_000

"""The clock jumps forward and back while schedulers are killed and their handler comes and goes.

Whatever happens: no tick runs twice, none of a time that passed is left without a record, and no
schedule waits for a time that the clock showed by mistake.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from catalogzero.scheduler.models import Execution
from catalogzero.scheduler.store import Store
from catalogzero.scheduler.ticks import from_us
from catalogzero.scheduler.triggers import make_trigger, parse_trigger

from tests.scheduler.simulation import SetClock, end, make_schedule, records

MakeStore = Callable[..., Store]
LEASE_S = 10.0
RIGHT = datetime(2026, 11, 28, 12, tzinfo=UTC)
TRIGGERS = {
    "often": {"type": "interval", "minutes": 30, "start_time": "2020-01-01T00:03:00+00:00"},
    "hourly": {"type": "cron", "minute": 30, "timezone": "UTC"},
    "nightly": {"type": "cron", "hour": 2, "timezone": "Europe/Berlin"},
}
MADE = {job_id: make_trigger(parse_trigger(trigger)) for job_id, trigger in TRIGGERS.items()}
STEPS = (
    *(timedelta(seconds=3), timedelta(minutes=25), timedelta(hours=5)),
    *(timedelta(days=40), timedelta(days=400)),
)
TURNS = 16


class Site:
    """Two schedulers on a store, their clock, and the truth about what ran.

    Args:
        make_store: Opens a store.
        seed: Of all that happens.
    """

    def __init__(self, make_store: MakeStore, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - faults, no secrets
        self.clock = SetClock(RIGHT)
        self._make_store = make_store
        self.killed = 0
        self.stores = {"A0": self._open(), "B0": self._open()}
        self.going: dict[str, dict[str, Execution]] = {"A0": {}, "B0": {}}
        self.away = False
        self.began: dict[tuple[str, int | None], set[str]] = {}
        self.behind = timedelta()
        for number, (job_id, trigger) in enumerate(TRIGGERS.items()):
            overlap = ("skip", "queue", "parallel")[(number + seed) % 3]
            self.store.add_schedule(make_schedule(trigger, job_id=job_id, overlap=overlap))

    @property
    def store(self) -> Store:
        """The store of one that lives."""
        return next(iter(self.stores.values()))

    def step(self) -> None:
        """The clock is set wrong, or right again."""
        if self.behind and self.chance.random() < 0.6:
            self.clock.set(self.clock.moment + self.behind)
            self.behind = timedelta()
        else:
            by = self.chance.choice(STEPS) * self.chance.choice((1, -1))
            self.clock.set(self.clock.moment + by)
            self.behind -= by

    def kill(self) -> None:
        """A scheduler ends without a word, and another one starts."""
        owner = self.chance.choice([*self.stores])
        self.stores.pop(owner).close()
        del self.going[owner]
        self.killed += 1
        owner = f"{owner[0]}{self.killed}"
        self.stores[owner], self.going[owner] = self._open(), {}

    def pass_time(self, length: timedelta) -> None:
        """Let them work for so long."""
        over = self.clock.moment + length
        while True:
            due = [self._work(owner) for owner in self.chance.sample([*self.stores], 2)][-1]
            if due is None or from_us(due) > over:
                self.clock.moment = over
                return
            self.clock.moment = max(self.clock.moment, from_us(due))

    def _open(self) -> Store:
        return self._make_store(clock=self.clock)

    def _work(self, owner: str) -> int | None:
        """A claim and a heartbeat of one; its runs begin and end. The next due time."""
        store, mine = self.stores[owner], self.going[owner]
        claim = store.claim(owner, LEASE_S)
        leases = store.renew(owner, LEASE_S)
        mine.update((one.execution_id, one) for one in (*claim.started, *leases.taken))
        for execution_id, one in list(mine.items()):
            if (execution_id, one.lease) not in leases.held | {
                (taken.execution_id, taken.lease) for taken in leases.taken
            }:
                del mine[execution_id]
            elif one.sent_us is None and not self.away:
                one.boot_id, one.sent_us = "b", one.created_us
                if store.save([one])[0]:
                    self.began.setdefault((one.job_id, one.tick_us), set()).add(execution_id)
            elif one.sent_us is not None and self.chance.random() < 0.8:
                end(store, mine.pop(execution_id))
        return claim.next_due_us

    # --- what must hold

    def check_nothing_twice(self) -> None:
        """No tick has begun under two names: the handler runs each name once."""
        assert {tick: ids for tick, ids in self.began.items() if len(ids) > 1} == {}

    def check_nothing_waits(self) -> None:
        """Every schedule waits for its first tick after now that did not run, or an earlier one."""
        done = [one for one in records(self.store) if stays_decided(one)]
        for one in self.store.list_schedules():
            assert one.tick_us is not None
            moment = ticks_after(one.job_id, self.clock.moment)
            while any(is_of(record, one.job_id, moment) for record in done):
                moment = ticks_after(one.job_id, moment)
            assert from_us(one.tick_us) <= moment, one.job_id

    def check_nothing_lost(self, began: datetime, before: dict[str, int]) -> None:
        """Each tick of the time that passed ran once, now or before, or is decided on since."""
        decided = [
            one
            for one in records(self.store)
            if stays_decided(one) or not_run(one) > before.get(one["execution_id"], 0)
        ]
        for job_id in TRIGGERS:
            moment = ticks_after(job_id, began)
            while moment <= self.clock.moment:
                assert any(is_of(one, job_id, moment) for one in decided), (job_id, moment)
                moment = ticks_after(job_id, moment)


def not_run(record: dict[str, Any]) -> int:
    """How many ticks a missed or skipped row stands for; 0 for any other."""
    return int(record.get("ticks", {"count": 0})["count"])


def stays_decided(record: dict[str, Any]) -> bool:
    """Whether ticks do not come again: all but those that were missed, or waited to begin."""
    return record["status"] != "missed" and "still to come" not in str(record["error"])


def is_of(record: dict[str, Any], job_id: str, moment: datetime) -> bool:
    """Whether a record is that of a tick."""
    at = record["scheduled_at"]
    span = record.get("ticks", {"first": at, "last": at})
    within: bool = span["first"] <= moment.isoformat() <= span["last"]
    return within and record["job_id"] == job_id


def ticks_after(job_id: str, moment: datetime) -> datetime:
    """A schedule's first tick after a moment."""
    found = MADE[job_id].next_after(moment)
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(3))
def test_clocks_that_jump_while_schedulers_die_lose_nothing_and_run_nothing_twice(
    seed: int, make_store: MakeStore
) -> None:
    site = Site(make_store, seed)
    for _ in range(TURNS):
        site.away = site.chance.random() < 0.3
        if site.chance.random() < 0.5:
            site.step()
        if site.chance.random() < 0.4:
            site.kill()
        site.pass_time(timedelta())
        site.check_nothing_waits()
        began = site.clock.moment
        before = {one["execution_id"]: not_run(one) for one in records(site.store)}
        site.pass_time(timedelta(minutes=site.chance.uniform(1, 100)))
        site.check_nothing_twice()
        site.check_nothing_lost(began, before)
    site.away = False
    site.pass_time(timedelta(hours=26))
    site.check_nothing_twice()
    assert site.killed
    assert {one["job_id"] for one in records(site.store) if one["status"] == "success"} == {
        *TRIGGERS
    }

"""Steps of the clock: nothing waits for a time that it showed by mistake, nothing fires twice."""

from __future__ import annotations

import cProfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from types import CodeType
from typing import Any

import pytest
import structlog
from catalogzero.clock import SystemClock
from catalogzero.scheduler.history import History, Purged
from catalogzero.scheduler.models import Execution
from catalogzero.scheduler.runner import Runner
from catalogzero.scheduler.store import Store
from catalogzero.scheduler.ticks import Schedule, from_us
from catalogzero.testing import serving
from catalogzero.wire.client import HandlerClient
from catalogzero.wire.messages import Reply

from tests.scheduler.conftest import QUICK
from tests.scheduler.simulation import SetClock, end, make_schedule, records
from tests.scheduler.toys import Toy, until

MakeStore = Callable[..., Store]
LEASE_S = 10.0
WRONG = datetime(2030, 1, 1, 12, tzinfo=UTC)
RIGHT = datetime(2026, 11, 28, 12, tzinfo=UTC)
FIVE_MINUTES = {"type": "interval", "minutes": 5}
NIGHTLY = {"type": "cron", "hour": 2, "timezone": "Europe/Berlin"}
DAILY = {"type": "interval", "days": 1, "start_time": "2026-01-01T06:00:00+00:00"}
EVERY = {"five": FIVE_MINUTES, "nightly": NIGHTLY, "daily": DAILY}


@pytest.fixture
def clock() -> SetClock:
    """The time of the store, wrong at first."""
    return SetClock(WRONG)


@pytest.fixture
def store(make_store: MakeStore, clock: SetClock) -> Store:
    """A store in simulated time."""
    return make_store(clock=clock)


def live(store: Store, clock: SetClock, length: timedelta) -> list[tuple[str, datetime]]:
    """What fires in so much time, and when; every run ends at once."""
    fired, over = [], clock.moment + length
    while True:
        claim = store.claim("A", LEASE_S)
        fired += [(one.job_id, clock.moment) for one in claim.started]
        for one in claim.started:
            end(store, one)
        if claim.next_due_us is None or from_us(claim.next_due_us) > over:
            clock.moment = over
            return fired
        clock.moment = max(clock.moment, from_us(claim.next_due_us))


def test_after_a_clock_of_2030_every_schedule_fires_this_day(store: Store, clock: SetClock) -> None:
    for job_id, trigger in EVERY.items():
        store.add_schedule(make_schedule(trigger, job_id=job_id))
    wrong = live(store, clock, timedelta(days=1))
    clock.set(RIGHT)

    right = live(store, clock, timedelta(hours=24))

    assert {job_id for job_id, _ in wrong} == set(EVERY)
    assert [moment for job_id, moment in right if job_id == "nightly"] == [
        datetime(2026, 11, 29, 1, tzinfo=UTC)
    ]
    assert [moment for job_id, moment in right if job_id == "daily"] == [
        datetime(2026, 11, 29, 6, tzinfo=UTC)
    ]
    assert [moment for job_id, moment in right if job_id == "five"] == [
        RIGHT + n * timedelta(minutes=5) for n in range(1, 289)
    ]


def test_the_step_is_seen_once_and_says_how_far_and_how_many(store: Store, clock: SetClock) -> None:
    for job_id, trigger in EVERY.items():
        store.add_schedule(make_schedule(trigger, job_id=job_id))
    begun = store.claim("A", LEASE_S).step
    clock.forward(3_600)
    on_time = store.claim("A", LEASE_S).step
    clock.set(clock.moment - timedelta(seconds=1.9))
    slewed = store.claim("A", LEASE_S).step
    clock.set(RIGHT)
    back = store.claim("A", LEASE_S).step
    again = store.claim("A", LEASE_S).step
    clock.set(RIGHT + timedelta(minutes=1))
    ahead = store.claim("A", LEASE_S).step

    assert (begun, on_time, slewed, again) == (None, None, None, None)
    assert back is not None
    assert (back["seen_at"], back["schedules"]) == (RIGHT.isoformat(), 3)
    assert back["step_s"] == pytest.approx((RIGHT - WRONG).total_seconds(), abs=4_000)
    assert ahead is not None
    assert (ahead["step_s"], ahead["schedules"]) == (60.0, 0)


def test_a_restart_after_the_clock_was_set_right_brings_schedules_forward(
    store: Store, make_store: MakeStore, clock: SetClock
) -> None:
    store.add_schedule(make_schedule(NIGHTLY, job_id="nightly"))
    store.add_schedule(make_schedule(FIVE_MINUTES, job_id="rests"))
    store.claim("A", LEASE_S)
    store.pause_schedule("rests", True)
    clock.set(RIGHT)

    restarted = make_store(clock=clock)
    step = restarted.claim("B", LEASE_S).step
    restarted.pause_schedule("rests", False)

    assert step is not None
    assert step["step_s"] is None
    next_times = {one.job_id: from_us(one.tick_us or 0) for one in restarted.list_schedules()}
    assert next_times == {
        "nightly": datetime(2026, 11, 29, 1, tzinfo=UTC),
        "rests": RIGHT + timedelta(minutes=5),
    }


def test_what_fired_does_not_fire_again_when_its_time_comes(store: Store, clock: SetClock) -> None:
    hourly = {"type": "cron", "minute": 0, "timezone": "UTC"}
    store.add_schedule(make_schedule(hourly, job_id="j"))
    live(store, clock, timedelta(hours=3))
    clock.set(WRONG + timedelta(minutes=30))
    store.claim("A", LEASE_S)
    clock.set(RIGHT)
    live(store, clock, timedelta(hours=2))
    for moment in (WRONG - timedelta(minutes=90), WRONG + timedelta(minutes=70)):
        clock.set(moment)
        live(store, clock, timedelta(hours=3))

    ran = [one["scheduled_at"] for one in records(store) if one["status"] == "success"]
    assert len(set(ran)) == len(ran)
    hours = {(WRONG + timedelta(hours=n)).isoformat() for n in range(-1, 5)}
    assert hours <= set(ran)
    assert {(RIGHT + timedelta(hours=n)).isoformat() for n in (1, 2)} <= set(ran)


def test_ticks_that_were_missed_by_a_wrong_clock_fire_when_their_time_comes(
    store: Store, clock: SetClock
) -> None:
    clock.set(RIGHT)
    store.add_schedule(make_schedule(NIGHTLY, job_id="nightly"))
    clock.set(WRONG)
    live(store, clock, timedelta(hours=1))
    clock.set(RIGHT)

    fired = live(store, clock, timedelta(days=2))

    assert [moment.day for _, moment in fired] == [29, 30]
    assert "missed" in {one["status"] for one in records(store)}


def test_a_start_time_that_was_asked_for_is_waited_for(store: Store, clock: SetClock) -> None:
    clock.set(RIGHT)
    begin = RIGHT + timedelta(days=400)
    store.add_schedule(make_schedule({**FIVE_MINUTES, "start_time": begin.isoformat()}, job_id="j"))
    clock.set(WRONG - timedelta(days=5_000))
    store.claim("A", LEASE_S)

    assert from_us(store.find_schedule("j").tick_us or 0) == begin  # type: ignore[union-attr]


def test_a_lease_of_a_wrong_clock_ends_as_any_other(store: Store, clock: SetClock) -> None:
    store.add_schedule(make_schedule(NIGHTLY, job_id="j"))
    clock.forward(86_400)
    (held,) = store.claim("dead", LEASE_S).started
    begin(store, held)
    clock.set(RIGHT)
    store.claim("B", LEASE_S)
    clock.forward(LEASE_S + 1)

    (taken,) = store.renew("B", LEASE_S).taken

    assert taken.execution_id == held.execution_id


def begin(store: Store, one: Execution) -> bool:
    """Note that its first call goes out; whether it may."""
    one.boot_id, one.start_by_s, one.sent_us = "b", 60.0, one.created_us
    return store.save([one])[0]


def test_what_waits_for_its_handler_at_a_wrong_time_gives_way_to_the_right_one(
    store: Store, clock: SetClock
) -> None:
    hourly = {"type": "cron", "minute": 0, "timezone": "UTC"}
    clock.set(WRONG - timedelta(minutes=65))
    store.add_schedule(make_schedule(hourly, job_id="j", max_runs=2))
    clock.forward(900)
    (waits,) = store.claim("A", LEASE_S).started
    early = records(store)[0]["scheduled_at"]
    clock.set(WRONG - timedelta(minutes=70))

    store.claim("A", LEASE_S)
    may_begin = begin(store, waits)
    (held, taken) = (leases := store.renew("A", LEASE_S)).held, leases.taken
    right = live(store, clock, timedelta(hours=3))

    assert early == (WRONG - timedelta(hours=1)).isoformat()
    assert (may_begin, held, taken) == (False, set(), [])
    assert right == [("j", WRONG - timedelta(hours=1)), ("j", WRONG)]
    void, *ran = records(store)
    assert (void["status"], void["scheduled_at"]) == ("skipped", early)
    assert "its time is still to come" in void["error"]
    assert [one["status"] for one in ran] == ["success", "success"]
    stats = History(store).stats()
    assert stats["by_status"] == {"success": 2, "skipped": 1}
    assert stats["error_count"] == 0


def test_the_last_run_of_a_schedule_waits_on_after_a_step(store: Store, clock: SetClock) -> None:
    once = {"type": "date", "run_date": WRONG.isoformat()}
    store.add_schedule(make_schedule(once, job_id="j"))
    (waits,) = store.claim("A", LEASE_S).started
    clock.set(RIGHT)

    store.claim("A", LEASE_S)

    assert begin(store, waits)
    assert end(store, waits)
    assert [one["status"] for one in records(store)] == ["success"]


@pytest.mark.parametrize("forget", ["clear", "purge"])
def test_what_fired_and_was_forgotten_does_not_fire_again(
    forget: str, store: Store, clock: SetClock
) -> None:
    store.add_schedule(make_schedule(FIVE_MINUTES, job_id="five"))
    store.add_schedule(make_schedule(FIVE_MINUTES, job_id="rests"))
    fired = live(store, clock, timedelta(hours=2))
    history = History(store)
    if forget == "clear":
        history.clear()
    else:
        history.purge(retention_days=1, max_executions=0)
    assert records(store) == []
    store.pause_schedule("rests", True)
    clock.set(WRONG + timedelta(hours=1))

    store.claim("A", LEASE_S)
    store.pause_schedule("rests", False)
    again = live(store, clock, timedelta(hours=2))

    assert max(moment for _, moment in fired) == WRONG + timedelta(hours=2)
    assert [moment for job_id, moment in again if job_id == "five"] == [
        WRONG + timedelta(hours=2, minutes=5 * n) for n in range(1, 13)
    ]
    assert {moment for job_id, moment in again if job_id == "rests"} == {
        moment for job_id, moment in again if job_id == "five"
    }


def test_a_start_looks_at_no_schedule_that_waits_rightly(
    store: Store, make_store: MakeStore, clock: SetClock
) -> None:
    for number in range(20):
        store.add_schedule(make_schedule(NIGHTLY, job_id=str(number)))
    live(store, clock, timedelta(days=2))

    def reckoned() -> int:
        """For how many schedules another start computes the next time."""
        profile = cProfile.Profile()
        profile.runcall(make_store(clock=clock).claim, "B", LEASE_S)
        calls = {
            one.code.co_name: one.callcount
            for one in profile.getstats()
            if isinstance(one.code, CodeType)
        }
        assert "claim" in calls
        return calls.get(Schedule.reckon.__name__, 0)

    assert reckoned() == 0
    clock.set(clock.moment - timedelta(days=3))
    assert reckoned() == 20


def test_what_a_wrong_clock_completed_is_forgotten_with_its_neighbours(
    store: Store, clock: SetClock
) -> None:
    store.add_schedule(make_schedule(FIVE_MINUTES, job_id="j"))
    live(store, clock, timedelta(minutes=10))
    clock.set(RIGHT)
    live(store, clock, timedelta(minutes=10))
    history = History(store)
    kept = history.purge(retention_days=30, max_executions=1_000)
    clock.forward(30 * 86_400 - 180)

    gone = history.purge(retention_days=30, max_executions=1_000)

    assert kept == Purged(0, 0)
    assert gone == Purged(too_old=4, too_many=0)
    assert [one["scheduled_at"] for one in records(store)] == [
        (RIGHT + timedelta(minutes=10)).isoformat()
    ]


class Ahead(SystemClock):
    """The machine's clocks, of which the wall clock is set by hand."""

    ahead = timedelta()

    def now(self) -> datetime:
        """See `Clock.now`."""
        return super().now() + self.ahead


@pytest.mark.parametrize("ahead", [timedelta(days=2), timedelta(days=-2)])
async def test_a_step_is_logged_and_shown_and_ends_no_run(
    ahead: timedelta, make_store: MakeStore
) -> None:
    clock = Ahead()
    store = make_store(clock=clock)

    def connect(_: str, address: str) -> HandlerClient:
        return HandlerClient(address)

    handler = Toy()
    async with serving(handler) as served:
        with structlog.testing.capture_logs() as logged:
            async with Runner(store, connect, structlog.get_logger(), QUICK) as runner:
                store.register("toy", served.address, ["long"])
                call = make_schedule(FIVE_MINUTES, job_id="j", timeout_s=3_600)
                call.handler_id, call.method = "toy", "long"
                store.add_schedule(call)
                runner.wake()
                await until(lambda: begun(handler))
                clock.ahead = ahead

                step = await until(lambda: shown(runner))
                handler.going.set()
                record = await until(lambda: ended_record(store))

    assert step["step_s"] == pytest.approx(ahead.total_seconds(), abs=5)
    assert "clock_stepped" in [one["event"] for one in logged]
    assert (record["status"], handler.starts) == ("success", 1)


class Asking(HandlerClient):
    """A client that counts its pings."""

    asked = 0

    async def request_plain(self, *given: Any, **named: Any) -> Reply:
        """See `HandlerClient.request_plain`."""
        type(self).asked += 1
        return await super().request_plain(*given, **named)


async def test_a_step_ahead_makes_no_run_too_late_for_its_handler(make_store: MakeStore) -> None:
    clock = Ahead()
    store = make_store(clock=clock)

    def connect(_: str, address: str) -> HandlerClient:
        return Asking(address)

    async def asked_again(earlier: int) -> bool:
        return Asking.asked > earlier + 1

    async with Runner(store, connect, structlog.get_logger(), QUICK) as runner:
        store.register("toy", "tcp://127.0.0.1:1", ["quick"])
        call = make_schedule(NIGHTLY, job_id="j", misfire_grace_s=3_600)
        call.handler_id, call.method = "toy", "quick"
        store.add_schedule(call)
        first = from_us(store.find_schedule("j").tick_us or 0)  # type: ignore[union-attr]
        clock.ahead, before = first - SystemClock().now(), Asking.asked
        runner.wake()
        await until(partial(asked_again, before))
        runner.clock_step = None
        clock.ahead += timedelta(hours=2)
        await until(lambda: shown(runner))
        await until(partial(asked_again, Asking.asked))
        async with serving(Toy()) as served:
            store.register("toy", served.address, ["quick"])
            runner.handler_seen("toy")
            record = await until(lambda: ended_record(store))

    assert record["status"] == "success"


async def begun(handler: Toy) -> bool:
    """Whether a run began."""
    return bool(handler.starts)


async def shown(runner: Runner) -> Any:
    """The step that the runner shows."""
    return runner.clock_step


async def ended_record(store: Store) -> Any:
    """The first record, once it is final."""
    first = records(store)[0]
    return first if first["completed_at"] else None

"""Claims, leases and what is written down, on each database, with time set by hand."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from catalogzero.errors import ConfigError, UnreachableError
from catalogzero.scheduler import schema
from catalogzero.scheduler.history import History, Purged
from catalogzero.scheduler.models import MAX_RESULT_BYTES, Execution
from catalogzero.scheduler.store import Store
from sqlalchemy import event, text

from tests.scheduler.simulation import SetClock, end, make_schedule, records

MakeStore = Callable[..., Store]
LEASE_S = 10.0


@pytest.fixture
def clock() -> SetClock:
    """The time of the store."""
    return SetClock()


@pytest.fixture
def store(make_store: MakeStore, clock: SetClock) -> Store:
    """A store in simulated time."""
    return make_store(clock=clock)


def test_a_tick_is_claimed_once_and_the_next_is_swapped_in(store: Store, clock: SetClock) -> None:
    store.add_schedule(make_schedule(job_id="j"))

    first = store.claim("A", LEASE_S)
    second = store.claim("B", LEASE_S)
    clock.forward(0.999)
    early = store.claim("B", LEASE_S)

    assert [one.tick_us for one in first.started] == [first.now_us]
    assert first.next_due_us == first.now_us + 1_000_000
    assert (second.started, early.started) == ([], [])


def test_two_schedulers_at_once_never_claim_the_same_tick(
    make_store: MakeStore, clock: SetClock
) -> None:
    stores = [make_store(clock=clock) for _ in range(3)]
    for number in range(100):
        stores[0].add_schedule(make_schedule(job_id=str(number)))
    claimed: list[str] = []
    barrier = threading.Barrier(3)

    def claim(store: Store, owner: str) -> None:
        barrier.wait()
        for _ in range(10):
            claimed.extend(one.job_id for one in store.claim(owner, LEASE_S, limit=20).started)

    threads = [
        threading.Thread(target=claim, args=(s, n)) for s, n in zip(stores, "ABC", strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(claimed, key=int) == [str(number) for number in range(100)]


def test_ticks_that_nobody_claimed_are_one_missed_row_and_one_late_run(
    store: Store, clock: SetClock
) -> None:
    store.add_schedule(make_schedule(job_id="j"))
    clock.forward(60.5)

    (caught_up,) = store.claim("A", LEASE_S).started

    missed, late = records(store)
    assert (missed["status"], missed["ticks"]["count"]) == ("missed", 60)
    assert missed["ticks"]["last"] == "2026-01-05T00:00:59+00:00"
    assert (late["status"], late["scheduled_at"]) == ("running", "2026-01-05T00:01:00+00:00")
    assert caught_up.late is False


def test_a_tick_past_its_grace_is_missed_and_the_row_grows_with_those_that_follow(
    store: Store, clock: SetClock
) -> None:
    store.add_schedule(make_schedule({"type": "interval", "seconds": 60}, misfire_grace_s=5))
    for _ in range(3):
        clock.forward(50)
        assert store.claim("A", LEASE_S).started == []
        clock.forward(10.5)
    clock.forward(60)

    late = store.claim("A", LEASE_S).started

    missed, ran = records(store)
    assert (missed["status"], missed["ticks"]["count"]) == ("missed", 4)
    assert missed["ticks"]["first"] == "2026-01-05T00:00:00+00:00"
    assert missed["ticks"]["last"] == "2026-01-05T00:03:00+00:00"
    assert ran["scheduled_at"] == "2026-01-05T00:04:00+00:00"
    assert [one.late for one in late] == [True]


def test_a_week_of_missed_seconds_is_counted_in_short_transactions(
    store: Store, clock: SetClock
) -> None:
    store.add_schedule(make_schedule(job_id="j"))
    clock.forward(5_000)

    claims = [store.claim("A", LEASE_S) for _ in range(4)]

    assert [len(claim.started) for claim in claims] == [0, 0, 1, 0]
    missed, _ = records(store)
    assert missed["ticks"]["count"] == 5_000


def test_a_run_that_goes_on_skips_the_next_ticks_in_one_row(store: Store, clock: SetClock) -> None:
    store.add_schedule(make_schedule(job_id="j"))
    (running,) = store.claim("A", LEASE_S).started
    for _ in range(3):
        clock.forward(1)
        assert store.claim("A", LEASE_S).started == []
    end(store, running)
    clock.forward(1)

    assert len(store.claim("A", LEASE_S).started) == 1
    assert [(one["status"], one.get("ticks", {}).get("count")) for one in records(store)] == [
        ("success", None),
        ("skipped", 3),
        ("running", None),
    ]


def test_queued_runs_begin_one_after_the_other_in_order(store: Store, clock: SetClock) -> None:
    store.add_schedule(make_schedule(job_id="j", overlap="queue"))
    (running,) = store.claim("A", LEASE_S).started
    for _ in range(2):
        clock.forward(1)
        claim = store.claim("A", LEASE_S)
        assert (claim.started, claim.queued) == ([], True)
    order = [running.tick_us]
    for _ in range(2):
        end(store, running)
        (running,) = store.claim("B", LEASE_S).started
        order.append(running.tick_us)

    assert order == sorted(tick for tick in order if tick is not None)
    assert len(set(order)) == 3
    assert (running.owner, running.lease) == ("B", 2)


def indexes(store: Store, work: Callable[[], object]) -> list[str]:
    """The index of executions, or "", by which SQLite does each look of some work."""
    if store.dialect != "sqlite":
        pytest.skip("PostgreSQL plans by its statistics")
    seen: list[tuple[str, Any]] = []

    def note(*given: Any) -> None:
        seen.append(given[2:4])

    engines = (store._writers.engine, store._readers.engine)
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    work()
    for engine in engines:
        event.remove(engine, "before_cursor_execute", note)
    with store.reading() as c:
        plans = [
            row[3]
            for statement, given in seen
            if statement.startswith("SELECT") and "scheduler_executions" in statement
            for row in c.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", given)
        ]
    looks = [plan for plan in plans if plan.startswith(("SEARCH", "SCAN"))]
    return [plan.partition(" INDEX ")[2].partition(" ")[0] for plan in looks]


def test_a_claim_reads_none_of_what_is_over(store: Store, clock: SetClock) -> None:
    store.add_schedule(make_schedule(job_id="j", overlap="queue"))
    store.claim("A", LEASE_S)

    def claim() -> None:
        for _ in range(2):
            clock.forward(1)
            store.claim("A", LEASE_S)

    used = indexes(store, claim)

    assert len(used) >= 4
    of_open = ("open", "status", "divided", "part")
    assert set(used) <= {f"scheduler_executions_{name}" for name in of_open}


def test_parallel_runs_do_not_wait(store: Store, clock: SetClock) -> None:
    store.add_schedule(make_schedule(job_id="j", overlap="parallel"))

    for _ in range(3):
        assert len(store.claim("A", LEASE_S).started) == 1
        clock.forward(1)


def test_a_schedule_is_over_after_max_runs_and_its_name_is_free_again(
    store: Store, clock: SetClock
) -> None:
    store.add_schedule(make_schedule(job_id="j", max_runs=2))
    for _ in range(2):
        end(store, store.claim("A", LEASE_S).started[0])
        clock.forward(1)

    assert store.claim("A", LEASE_S).started == []
    assert store.list_schedules() == []
    assert store.add_schedule(make_schedule(job_id="j")).status == "created"


def test_a_schedule_is_over_at_its_end_time(store: Store, clock: SetClock) -> None:
    new = make_schedule(job_id="j")
    new.end_us = round((clock.moment + timedelta(seconds=1)).timestamp() * 1e6)
    store.add_schedule(new)
    ran = []
    for _ in range(4):
        for one in store.claim("A", LEASE_S).started:
            ran.append(one.tick_us)
            end(store, one)
        clock.forward(1)

    assert len(ran) == 2
    assert store.list_schedules() == []


def test_a_date_in_the_past_runs_at_once(store: Store, clock: SetClock) -> None:
    store.add_schedule(make_schedule({"type": "date", "run_date": "2025-12-24T18:00:00Z"}))

    (one,) = store.claim("A", LEASE_S).started

    assert one.late
    assert store.list_schedules() == []


def test_jitter_delays_each_tick_by_its_own_amount_and_never_the_grid(
    store: Store, clock: SetClock
) -> None:
    every_minute = {"type": "interval", "minutes": 1}
    store.add_schedule(make_schedule(every_minute, jitter_s=30, overlap="parallel"))
    delays, ticks = set(), []
    for _ in range(600):
        for one in store.claim("A", LEASE_S).started:
            assert one.tick_us is not None
            ticks.append(one.tick_us)
            delays.add(round((store._clock.now().timestamp() * 1e6 - one.tick_us) / 1e6))  # type: ignore[union-attr]
        clock.forward(1)

    assert {after - before for before, after in pairwise(ticks)} == {60_000_000}
    assert len(delays) > 4
    assert max(delays) <= 31


def test_a_pause_is_not_made_up_for(store: Store, clock: SetClock) -> None:
    store.add_schedule(make_schedule(job_id="j"))
    end(store, store.claim("A", LEASE_S).started[0])
    store.pause_schedule("j", True)
    clock.forward(100.5)
    assert store.claim("A", LEASE_S).started == []
    store.pause_schedule("j", False)

    assert store.claim("A", LEASE_S).started == []
    clock.forward(0.5)
    assert len(store.claim("A", LEASE_S).started) == 1
    assert [one["status"] for one in records(store)] == ["success", "running"]


def test_a_clock_that_is_put_back_fires_no_tick_again(store: Store, clock: SetClock) -> None:
    every_minute = {"type": "interval", "minutes": 1}
    store.add_schedule(make_schedule(every_minute, job_id="j"))
    for _ in range(3):
        end(store, store.claim("A", LEASE_S).started[0])
        clock.forward(60)
    clock.set(clock.moment - timedelta(seconds=150))

    assert store.claim("A", LEASE_S).started == []
    store.pause_schedule("j", True)
    store.pause_schedule("j", False)
    for _ in range(5):
        for one in store.claim("A", LEASE_S).started:
            end(store, one)
        clock.forward(60)

    ticks = [one["scheduled_at"] for one in records(store)]
    assert len(set(ticks)) == len(ticks) == 5


BROKEN = {
    "trigger_config = replace(trigger_config, 'Europe/Berlin', 'US/Pacific-New')": "US/Pacific-New",
    "trigger_config = '{'": "JSON",
    "trigger_config = '{}'": "'type'",
    "params = '7'": "int",
    "tick_us = -9000000000000000000": "OverflowError",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_schedule_that_cannot_be_computed_stands_still_alone(
    broken: str, store: Store, clock: SetClock
) -> None:
    nightly = {"type": "cron", "hour": 2, "timezone": "Europe/Berlin"}
    for job_id in ("broken", "good"):
        store.add_schedule(make_schedule(nightly, job_id=job_id, overlap="parallel"))
    with store.writing() as c:
        c.execute(text(f"UPDATE scheduler_schedules SET {broken} WHERE job_id = 'broken'"))  # noqa: S608 - a constant
    claims = []
    for _ in range(2):
        clock.forward(86_400)
        claims.append(store.claim("A", LEASE_S))

    assert [[one.job_id for one in claim.started] for claim in claims] == [["good"], ["good"]]
    assert BROKEN[broken] in claims[0].faults.pop("broken")
    assert [claim.faults for claim in claims] == [{}, {}]
    assert claims[1].next_due_us is not None
    assert claims[1].next_due_us > claims[1].now_us
    shown = {one.job_id: one.fault for one in store.list_schedules()}
    assert shown.pop("good") is None
    assert BROKEN[broken] in str(shown["broken"])
    for paused in (True, False):
        assert store.pause_schedule("broken", paused)
        assert store.find_schedule("broken").paused is paused  # type: ignore[union-attr]
    assert store.remove_schedule("broken")
    assert [one.job_id for one in store.list_schedules()] == ["good"]


def test_a_schedule_whose_zone_is_back_goes_on(
    store: Store, make_store: MakeStore, clock: SetClock
) -> None:
    nightly = {"type": "cron", "hour": 2, "timezone": "Europe/Berlin"}
    store.add_schedule(make_schedule(nightly, job_id="j"))
    change = "UPDATE scheduler_schedules SET trigger_config = replace(trigger_config, '{}', '{}')"
    with store.writing() as c:
        c.execute(text(change.format("Europe/Berlin", "Mars/Base")))
    clock.forward(86_400)
    assert store.claim("A", LEASE_S).started == []
    with store.writing() as c:
        c.execute(text(change.format("Mars/Base", "Europe/Berlin")))

    (one,) = make_store(clock=clock).claim("B", LEASE_S).started

    assert one.job_id == "j"


def test_a_lease_that_ended_is_taken_over_and_its_old_owner_writes_nothing(
    store: Store, clock: SetClock
) -> None:
    store.add_schedule(make_schedule(job_id="j"))
    (frozen,) = store.claim("A", LEASE_S).started
    clock.forward(LEASE_S + 1)

    (taken,) = store.renew("B", LEASE_S).taken

    assert (taken.execution_id, taken.owner, taken.lease) == (frozen.execution_id, "B", 2)
    assert store.renew("A", LEASE_S).held == set()
    assert not end(store, frozen, "error")
    assert end(store, taken)
    assert records(store)[0]["status"] == "success"


def test_a_heartbeat_keeps_the_lease(store: Store, clock: SetClock) -> None:
    store.add_schedule(make_schedule(job_id="j"))
    (mine,) = store.claim("A", LEASE_S).started
    for _ in range(5):
        clock.forward(LEASE_S * 0.9)
        assert store.renew("A", LEASE_S).held == {(mine.execution_id, 1)}
        assert store.renew("B", LEASE_S).taken == []


def test_leases_that_a_scheduler_gives_back_are_taken_at_once(
    store: Store, clock: SetClock
) -> None:
    store.add_schedule(make_schedule(job_id="j"))
    store.claim("A", LEASE_S)

    store.release("A")

    assert len(store.renew("B", LEASE_S).taken) == 1


def test_an_end_that_was_written_is_never_overwritten(store: Store, clock: SetClock) -> None:
    store.add_schedule(make_schedule(job_id="j"))
    (one,) = store.claim("A", LEASE_S).started
    end(store, one)

    end(store, one, "error")

    assert records(store)[0]["status"] == "success"


def test_removing_a_schedule_gives_up_what_is_queued(store: Store, clock: SetClock) -> None:
    store.add_schedule(make_schedule(job_id="j", overlap="queue"))
    (running,) = store.claim("A", LEASE_S).started
    clock.forward(1)
    store.claim("A", LEASE_S)

    store.remove_schedule("j")
    end(store, running)

    assert store.claim("A", LEASE_S).started == []
    assert [one["status"] for one in records(store)] == ["success", "skipped"]


def test_a_new_schedule_of_an_old_name_fires_at_the_same_moment_again(
    store: Store, clock: SetClock
) -> None:
    for _ in range(2):
        store.add_schedule(make_schedule(job_id="j"))
        end(store, store.claim("A", LEASE_S).started[0])
        store.remove_schedule("j")

    assert [one["status"] for one in records(store)] == ["success", "success"]


def test_a_long_result_is_kept_as_its_size_and_beginning(store: Store, clock: SetClock) -> None:
    store.add_schedule(make_schedule(job_id="j"))
    (one,) = store.claim("A", LEASE_S).started
    one.result = {"rows": "x" * MAX_RESULT_BYTES}
    one.error = "with a \0 inside"

    assert end(store, one)

    (record,) = records(store)
    assert record["result"]["truncated"] is True
    assert record["result"]["bytes"] > MAX_RESULT_BYTES
    assert record["error"] == "with a \ufffd inside"


def test_any_text_that_json_can_hold_is_kept(store: Store, clock: SetClock) -> None:
    text = "\0\n\"'\\ü€😀"
    store.add_schedule(make_schedule(job_id="j", params={text: text}))
    (one,) = store.claim("A", LEASE_S).started
    one.result = {text: [text, 2**53, 0.1, None, True]}

    assert end(store, one)

    (record,) = records(store)
    assert record["result"] == {text: [text, 2**53, 0.1, None, True], "success": True}
    assert store.find_schedule("j").params == {text: text}  # type: ignore[union-attr]


def test_old_executions_are_forgotten_but_not_those_that_are_open(
    store: Store, clock: SetClock
) -> None:
    store.add_schedule(make_schedule(job_id="j", overlap="parallel"))
    for number in range(10):
        one = store.claim("A", LEASE_S).started[0]
        if number:
            end(store, one)
        clock.forward(1)
    history = History(store)

    assert history.purge(retention_days=1, max_executions=4) == Purged(too_old=0, too_many=5)
    assert [one["status"] for one in records(store)] == ["running"] + 4 * ["success"]
    clock.forward(2 * 86_400)
    assert history.purge(retention_days=1, max_executions=100) == Purged(too_old=4, too_many=0)


def test_a_missed_row_that_may_grow_is_kept(store: Store, clock: SetClock) -> None:
    every_hour = {"type": "interval", "hours": 1}
    store.add_schedule(make_schedule(every_hour, job_id="j", misfire_grace_s=1))
    clock.forward(10)
    store.claim("A", LEASE_S)

    assert History(store).purge(retention_days=0, max_executions=0) == Purged(0, 0)
    clock.forward(3_600)
    store.claim("A", LEASE_S)
    assert [one["ticks"]["count"] for one in records(store)] == [2]


def test_an_idempotency_key_finds_the_earlier_run(store: Store, clock: SetClock) -> None:
    first = Execution("e1", "j", "h", "m", {}, owner="A")
    again = Execution("e2", "j", "h", "m", {}, owner="A")

    assert store.run_now(first, LEASE_S, "key", "digest") is None
    assert store.run_now(again, LEASE_S, "key", "digest") == "e1"
    with pytest.raises(ValueError, match="another request"):
        store.run_now(again, LEASE_S, "key", "other")


def test_a_database_of_a_newer_release_is_refused_and_untouched(make_store: MakeStore) -> None:
    store = make_store()
    with store.writing() as c:
        c.execute(text("UPDATE scheduler_version SET version = 99"))

    with pytest.raises(ConfigError, match="schema 99"):
        make_store()


def test_a_database_of_an_older_release_is_brought_forward(
    make_store: MakeStore,
) -> None:
    make_store().add_schedule(make_schedule(job_id="kept"))
    add_note = text("ALTER TABLE scheduler_schedules ADD COLUMN note TEXT")
    steps = (*schema.SCHEMA.upgrades, lambda c: c.execute(add_note))
    newer = replace(schema.SCHEMA, upgrades=steps)

    store = make_store(holds=newer)

    with store.reading() as c:
        row = c.execute(text("SELECT job_id, note FROM scheduler_schedules")).one()
        version = c.execute(text("SELECT version FROM scheduler_version")).scalar_one()
    assert (tuple(row), version) == (("kept", None), len(steps) + 1)


def test_what_counts_as_an_error_is_found_by_its_index(store: Store, clock: SetClock) -> None:
    every_hour = {"type": "interval", "hours": 1}
    store.add_schedule(make_schedule(every_hour, job_id="j", misfire_grace_s=1))
    clock.forward(10)
    store.claim("A", LEASE_S)  # missed, as no scheduler was there
    clock.forward(3_590)
    for status in ("success", "error", "lost", "missed"):
        end(store, store.claim("A", LEASE_S).started[0], status)
        clock.forward(3_600)
    history = History(store)

    failed = history.errors(10)
    stats = history.stats()

    assert [one["status"] for one in failed] == ["missed", "lost", "error"]
    assert stats["by_status"] == {"success": 1, "error": 1, "lost": 1, "missed": 2}
    assert (stats["error_count"], stats["success_rate"]) == (3, 25.0)
    used = indexes(store, lambda: history.errors(10))
    assert used == ["scheduler_executions_failed"]


@pytest.mark.parametrize("url", ["nonsense", "mysql://localhost/x", "sqlite"])
def test_another_kind_of_database_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--database"):
        Store(url)


def test_a_file_that_is_no_store_or_cannot_be_written_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"no database" * 1_000)
    with closing(sqlite3.connect(tmp_path / "empty")) as empty:
        empty.execute("VACUUM")
    read_only = f"file:{tmp_path / 'empty'}?mode=ro&uri=true"

    for place, why in (
        (str(other), "file is not a database"),
        (f"{other}/below", "File exists|Not a directory"),
        (str(tmp_path), "unable to open"),
        (read_only, "readonly"),
    ):
        with pytest.raises(ConfigError, match=f"--database: .*({why})"):
            Store(f"sqlite:///{place}")


def test_a_database_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(UnreachableError) as caught:
        Store("postgresql://user:hunter2secret@127.0.0.1:1/none")

    assert "127.0.0.1:1" in str(caught.value)
    assert "hunter2secret" not in str(caught.value)


def test_a_changed_schedule_keeps_its_due_tick_unless_its_trigger_changes(
    store: Store, clock: SetClock
) -> None:
    minutely, hourly = ({"type": "interval", unit: 1} for unit in ("minutes", "hours"))
    store.add_schedule(make_schedule(minutely, job_id="j"))
    created = store.find_schedule("j")
    clock.forward(90)

    dry = store.add_schedule(
        make_schedule(minutely, job_id="j", params={"x": 1}), replace=True, dry=True
    )
    refused = store.add_schedule(make_schedule(minutely, job_id="j", params={"x": 1}))
    before = store.find_schedule("j")
    change = store.add_schedule(make_schedule(minutely, job_id="j", params={"x": 1}), replace=True)
    after = store.find_schedule("j")
    retimed = store.add_schedule(make_schedule(hourly, job_id="j", params={"x": 1}), replace=True)
    at_last = store.find_schedule("j")

    assert created
    assert after
    assert at_last
    assert before == created
    assert dry == refused == change
    assert (change.status, dict(change.fields)) == ("changed", {"params": ({}, {"x": 1})})
    assert after == replace(created, params={"x": 1})
    assert (retimed.status, [*retimed.fields]) == ("changed", ["trigger_config"])
    assert at_last.schedule_id == created.schedule_id
    assert at_last.tick_us == at_last.due_us == (created.tick_us or 0) + 3_600_000_000


def test_of_many_who_add_the_same_schedule_at_once_one_does(
    make_store: MakeStore, clock: SetClock
) -> None:
    stores = [make_store(clock=clock) for _ in range(4)]
    changes: list[str] = []
    barrier = threading.Barrier(4)

    def add(store: Store) -> None:
        for number in range(10):
            barrier.wait()
            changes.append(store.add_schedule(make_schedule(job_id=str(number))).status)

    threads = [threading.Thread(target=add, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(changes) == ["created"] * 10 + ["unchanged"] * 30


def test_a_schedule_whose_end_passed_while_it_was_paused_is_over(
    store: Store, clock: SetClock
) -> None:
    new = make_schedule(job_id="j")
    new.end_us = round((clock.moment + timedelta(seconds=1)).timestamp() * 1e6)
    store.add_schedule(new, paused=True)
    clock.forward(10)

    assert store.pause_schedule("j", False)
    assert store.find_schedule("j") is None

"""What may not grow with what is kept: rows looked at, statements, and counts that stay exact."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
import structlog
from catalogzero.scheduler.history import COUNTED_RUNS, FILTERS, PURGE_LIMIT, History, Purged
from catalogzero.scheduler.models import Execution, schedule_row
from catalogzero.scheduler.overview import ScheduleQuery, read_overview
from catalogzero.scheduler.runner import Runner
from catalogzero.scheduler.schema import schedules
from catalogzero.scheduler.store import CLAIM_LIMIT, Store
from catalogzero.scheduler.ticks import to_us
from catalogzero.wire.client import HandlerClient
from sqlalchemy import delete, event, insert, text

from tests.scheduler import version_1
from tests.scheduler.conftest import QUICK
from tests.scheduler.processes import SchedulerProcess
from tests.scheduler.simulation import START, SetClock, end, make_schedule, records
from tests.scheduler.toys import until

MakeStore = Callable[..., Store]
LEASE_S = 10.0
MANY = 30_000
LOOK = 500
STEPS_A_ROW = 60
RECOUNT = text(
    "SELECT handler_id, status, started_us IS NOT NULL, count(*),"
    " coalesce(sum(completed_us - started_us), 0) FROM scheduler_executions"
    " WHERE completed_us IS NOT NULL GROUP BY handler_id, status, started_us IS NOT NULL"
)
COUNTED = text(
    "SELECT handler_id, status, started, sum(count), sum(took_us) FROM scheduler_counts"
    " WHERE status <> 'forgotten' GROUP BY handler_id, status, started HAVING sum(count) <> 0"
)


@pytest.fixture
def clock() -> SetClock:
    """The time of the store."""
    return SetClock()


@pytest.fixture
def old(database: str, make_store: MakeStore, clock: SetClock) -> Store:
    """A store that was made by the first version, with many executions of long ago."""
    version_1.make(database, MANY)
    return make_store(clock=clock)


def counted(store: Store) -> tuple[set[tuple[Any, ...]], set[tuple[Any, ...]]]:
    """What the counts say, and what is in the table."""
    with store.reading() as c:
        found = [c.execute(query).all() for query in (COUNTED, RECOUNT)]
    said, there = ({(*row[:2], bool(row[2]), *map(int, row[3:])) for row in rows} for rows in found)
    return said, there


def test_a_database_of_the_first_version_is_brought_forward_with_its_rows(
    old: Store, clock: SetClock
) -> None:
    said, there = counted(old)
    stats = History(old).stats()
    clock.set(START.replace(year=1970, month=1, day=1) + timedelta(seconds=MANY + 1.5))
    (taken,) = old.renew("A", LEASE_S).taken

    assert said == there
    assert stats["by_status"] == {
        **{"success": MANY - 121, "running": 1},
        **dict.fromkeys(("error", "lost", "missed", "skipped"), MANY // 1_000),
    }
    assert stats["error_count"] == 3 * MANY // 1_000
    assert (stats["total_executions"], stats["lifetime_executions"]) == (MANY, MANY)
    assert stats["avg_duration_ms"] == 500
    assert taken.execution_id == f"e{MANY}"
    assert end(old, taken)
    (one,) = old.claim("A", LEASE_S).started
    assert one.tick_us == (MANY + 1) * 1_000_000


def test_a_run_of_the_first_version_is_not_divided_and_a_later_one_is(
    old: Store, clock: SetClock
) -> None:
    clock.set(START)
    old.add_schedule(make_schedule(job_id="new", partition=True))
    claimed = {one.job_id: one for one in old.claim("A", LEASE_S).started}
    parent = claimed["new"]
    parent.result = {"items": []}
    divided = old.divide(parent, [{"name": "a"}])
    children = [one for one in old.claim("A", LEASE_S).started if one.parent_id]
    kept = old.find_schedule("kept")
    with looked_at(old) as looked:
        shown, _ = History(old).newest({"job_id": "new"}, 3)

    assert kept
    assert (kept.partition, divided) == (False, True)
    assert [(one.parent_id, one.item) for one in children] == [(parent.execution_id, {"name": "a"})]
    assert [one["execution_id"] for one in shown] == [parent.execution_id]
    assert looked[0] <= 100


# --- what is looked at


@contextmanager
def looked_at(store: Store, table: str = "scheduler_executions") -> Iterator[list[int]]:
    """How many rows of a table are looked at meanwhile: on PostgreSQL by its own count of them, on
    SQLite by the steps of its machine, whatever the table.
    """
    found: list[int] = [0]
    engines = (store._writers.engine, store._readers.engine)
    if store.dialect == "sqlite":
        steps = 0

        def step() -> None:
            nonlocal steps
            steps += STEPS_A_ROW

        def watch(connection: Any, *_: object) -> None:
            connection.set_progress_handler(step, STEPS_A_ROW)

        for engine in engines:
            engine.dispose()
            event.listen(engine, "checkout", watch)
        yield found
        for engine in engines:
            event.remove(engine, "checkout", watch)
            engine.dispose()
        found[0] = steps // STEPS_A_ROW
        return
    seen: list[tuple[str, Any]] = []

    def note(*given: Any) -> None:
        seen.append(given[2:4])

    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    yield found
    for engine in engines:
        event.remove(engine, "before_cursor_execute", note)
    with store._writers.engine.connect() as c:
        for statement, given in seen:
            if table in statement:
                explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}"
                plan = c.exec_driver_sql(explain, given).scalar_one()[0]["Plan"]
                found[0] += rows_of(plan, table)
        c.rollback()


def rows_of(plan: dict[str, Any], table: str) -> int:
    """How many rows of a table the nodes of a plan looked at."""
    rows = sum(rows_of(below, table) for below in plan.get("Plans", ()))
    if plan.get("Relation Name") == table and plan["Node Type"] != "ModifyTable":
        passed = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
        rows += round(passed * plan["Actual Loops"])
    return rows


def combined() -> Iterator[tuple[str, ...]]:
    """Every combination of filters."""
    names = [*FILTERS]
    return chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))


VALUES = {
    "parent": ("e5", "none"),
    "job_id": ("kept", "none"),
    "handler_id": ("h1", "none"),
    "method_name": ("m1", "none"),
    "status": ("success", "lost", "queued"),
    "show": ("failed", "waiting", "by_hand"),
}


def test_no_filter_reads_more_than_a_bounded_part_of_history(
    old: Store,
) -> None:
    history, rare = History(old, look_limit=LOOK), random.Random(7)  # noqa: S311 - no secret
    for names in combined():
        for before in (None, MANY // 2):
            filters = {name: rare.choice(VALUES[name]) for name in names}
            with looked_at(old) as looked:
                history.newest(filters, 20, before)
            # A planner may go by seq, twice, and pass over the rows of the six other methods.
            assert looked[0] <= 15 * LOOK, filters
    with looked_at(old) as looked:
        assert len(history.errors(20)) == 20
    assert looked[0] <= 100


def test_a_rare_combination_is_found_page_by_page(
    old: Store,
) -> None:
    history = History(old, look_limit=LOOK)
    filters = {"handler_id": "h1", "method_name": "m1"}
    found, before, pages = [], None, 0
    while pages == 0 or before is not None:
        page, before = history.newest(filters, 20, before)
        found += [one["execution_id"] for one in page]
        pages += 1

    wanted = [f"e{i}" for i in range(MANY, 0, -1) if i % 3 == i % 7 == 1]
    assert found == wanted
    assert pages >= len(wanted) // 20


def test_the_page_of_the_schedules_looks_at_their_last_runs_alone(old: Store) -> None:
    history = History(old)
    with looked_at(old) as looked:
        found = read_overview(old, ScheduleQuery())
        marks = history.marks_of(["kept"])["kept"]
        record = history.find(f"e{MANY // 2}")
        assert record is not None
        neighbours = history.around(record)

    assert found.counts == {"all": 1, "failing": 0, "waiting": 0, "paused": 0}
    assert [mark["execution_id"] for mark in marks] == [f"e{MANY - n}" for n in range(29, -1, -1)]
    assert (marks[-1]["state"], marks[0]["state"]) == ("running", "done")
    assert len(neighbours) == 30
    assert neighbours[19]["execution_id"] == record["execution_id"]
    assert looked[0] <= 300


def test_the_outcomes_of_a_day_are_counted_from_a_bounded_number_of_runs(
    old: Store, clock: SetClock
) -> None:
    history = History(old)
    clock.set(START.replace(year=1970, month=1, day=1) + timedelta(seconds=MANY))
    with looked_at(old) as looked:
        counted = history.outcomes()
    clock.set(clock.moment + timedelta(days=1, seconds=-10))
    last = history.outcomes()

    assert counted == {
        "since": "1970-01-01T06:56:40.500000+00:00",
        "runs": 4_995,
        "states": {"done": 4_980, "failed": 5, "missed": 10},
    }
    assert looked[0] <= 2 * COUNTED_RUNS
    assert (last["runs"], last["since"]) == (10, "1970-01-01T08:19:50+00:00")


def test_trouble_of_the_first_version_is_found_by_its_index(old: Store) -> None:
    history = History(old)
    with looked_at(old) as looked:
        records, cursor = history.newest({"show": "failed"}, 3)

    assert [one["outcome"]["state"] for one in records] == ["missed", "missed", "failed"]
    assert cursor is not None
    assert looked[0] <= 100


def test_stats_and_a_purge_of_nothing_look_at_what_is_open_alone(
    old: Store, clock: SetClock
) -> None:
    history = History(old)
    clock.set(START.replace(year=1970, month=1, day=2))
    with looked_at(old) as looked:
        history.stats()
        assert history.purge(retention_days=1, max_executions=MANY) == Purged(0, 0)
    assert looked[0] <= 100

    with looked_at(old) as looked:
        assert history.purge(retention_days=1, max_executions=MANY - 10) == Purged(0, 10)
    assert looked[0] <= 200
    said, there = counted(old)
    assert said == there


def add(store: Store, count: int, due_us: int) -> None:
    """Schedules that are due then."""
    new = [make_schedule(tick_us=due_us, due_us=due_us, decided_us=1) for _ in range(count)]
    with store.writing() as c:
        c.execute(insert(schedules), [schedule_row(one) for one in new])


def test_a_claim_looks_at_the_schedules_that_are_due_alone(
    make_store: MakeStore, clock: SetClock
) -> None:
    store = make_store(clock=clock)
    now_us = to_us(clock.now())
    add(store, 1, now_us + 10**12)
    names = {"schedule_id": "'s' || i", "job_id": "'j' || i"}
    columns, values = zip(*((c.name, names.get(c.name, c.name)) for c in schedules.c), strict=True)
    with store.writing() as c:
        c.execute(
            text(
                f"INSERT INTO scheduler_schedules ({', '.join(columns)})"  # noqa: S608 - constants
                " WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :many)"
                f" SELECT {', '.join(values)} FROM n, scheduler_schedules"
            ),
            {"many": MANY},
        )
        c.execute(text("ANALYZE"))
    assert store.claim("A", LEASE_S).started == []
    add(store, 20, now_us)

    with looked_at(store, "scheduler_schedules") as looked:
        started = store.claim("A", LEASE_S).started

    assert len(started) == 20
    assert looked[0] <= 500


def test_a_claim_and_a_save_take_as_many_statements_for_many_as_for_one(
    make_store: MakeStore, clock: SetClock
) -> None:
    taken = [statements(make_store(clock=clock), count, clock) for count in (1, CLAIM_LIMIT)]

    assert taken[0] == taken[1]


def statements(store: Store, count: int, clock: SetClock) -> list[list[str]]:
    """The first words of each statement of a claim of `count` schedules, and of their ends."""
    add(store, count, to_us(clock.now()))
    store.claim("none", LEASE_S, limit=0)
    seen: list[list[str]] = [[], []]
    step = 0

    def note(*given: Any) -> None:
        seen[step].append(" ".join(given[2].split()[:2]))

    event.listen(store._writers.engine, "before_cursor_execute", note)
    started = store.claim("A", LEASE_S).started
    step = 1
    for one in started:
        one.status = "success"
    store.save(started)
    event.remove(store._writers.engine, "before_cursor_execute", note)
    assert len(started) == count
    with store.writing() as c:
        c.execute(delete(schedules))
    return seen


async def test_the_log_says_what_was_purged_by_which_bound(
    make_store: MakeStore,
) -> None:
    store = make_store()
    for number in range(5):
        store.run_now(Execution(f"e{number}", "j", "h", "m", {}, owner="A"), 60.0, None, "")
        (one,) = store.load("A", [f"e{number}"])
        end(store, one)
    settings = replace(QUICK, max_executions=2, retention_every_s=0.1)

    with structlog.testing.capture_logs() as logged:
        async with Runner(store, connect, structlog.get_logger(), settings):
            (said,) = await until(partial(lines, logged, "executions_purged"))

    assert (said["too_old"], said["too_many"], said["max_executions"]) == (0, 3, 2)
    assert [one["execution_id"] for one in records(store)] == ["e3", "e4"]


def connect(_: str, address: str) -> HandlerClient:
    """Nobody is called."""
    return HandlerClient(address)


async def lines(logged: list[Any], name: str) -> list[Any]:
    """The log's lines of a name."""
    return [line for line in logged if line["event"] == name]


def test_how_much_is_kept_is_set_by_flags_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CATALOGZERO_SCHEDULER_MAX_EXECUTIONS", "7")
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    with SchedulerProcess(database, "--retention-days", "0.5") as scheduler:
        config = scheduler.api.get("/api/config").json()

    assert (config["retention_days"], config["max_executions"]) == (0.5, 7)


# --- counts


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_exact_whatever_happens(seed: int, make_store: MakeStore) -> None:
    clock, chance = SetClock(), random.Random(seed)  # noqa: S311 - no secret
    stores = [make_store(clock=clock) for _ in range(2)]
    for number, overlap in enumerate(("skip", "queue", "parallel", "skip")):
        grace_s = None if number else 0.5
        new = make_schedule(job_id=str(number), overlap=overlap, misfire_grace_s=grace_s)
        new.handler_id = f"h{number % 2}"
        stores[0].add_schedule(new)
    going = []
    for _ in range(60):
        store = chance.choice(stores)
        going += store.claim(chance.choice("AB"), LEASE_S).started
        going += store.renew(chance.choice("AB"), LEASE_S).taken
        chance.shuffle(going)
        ended, going = going[: len(going) // 2], going[len(going) // 2 :]
        for one in ended:
            one.status = chance.choice(("success", "error", "missed", "lost", "retry"))
        store.save([*ended, *ended[:1]])
        if chance.random() < 0.1:
            History(store).purge(retention_days=1e-4, max_executions=chance.choice((5, 1_000)))
        if chance.random() < 0.03:
            History(store).clear()
        if chance.random() < 0.05:
            clock.set(clock.moment + timedelta(seconds=chance.uniform(-20, 20)))
        clock.forward(chance.uniform(0.1, 6))
        said, there = counted(store)
        assert said == there
    stores[0].remove_schedule("1")
    said, there = counted(stores[0])
    assert said == there
    shown = records(stores[0])
    stats = History(stores[0]).stats()
    assert stats["by_status"] == Counter(one["status"] for one in shown)
    assert stats["total_executions"] == len(shown) < stats["lifetime_executions"]


def test_schedulers_that_count_at_once_lose_no_count(
    make_store: MakeStore, clock: SetClock
) -> None:
    stores = [make_store(clock=clock) for _ in range(3)]
    for number in range(90):
        new = make_schedule(job_id=str(number))
        new.handler_id = f"h{number % 5}"
        stores[0].add_schedule(new)
    barrier = threading.Barrier(3)

    def work(store: Store, owner: str) -> None:
        store.shard = 0
        barrier.wait()
        for _ in range(12):
            for one in store.claim(owner, LEASE_S, limit=10).started:
                end(store, one)

    threads = [
        threading.Thread(target=work, args=(s, n)) for s, n in zip(stores, "ABC", strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    said, there = counted(stores[0])
    assert said == there
    assert History(stores[0]).stats()["success_count"] == 90


def test_clear_forgets_in_short_transactions_and_remembers_how_many(
    old: Store, clock: SetClock
) -> None:
    history = History(old)
    times = 1
    while history.clear():
        times += 1

    stats = history.stats()
    assert times == MANY // PURGE_LIMIT + (MANY % PURGE_LIMIT > 0)
    assert stats["by_status"] == {"running": 1}
    assert (stats["total_executions"], stats["lifetime_executions"]) == (1, MANY)
    assert to_us(clock.now()) > 0

"""What 100,000 schedules cost, and several schedulers on one database: ratios in one run.

    python -m benchmarks.scheduler_many [--quick] [--schedules 10000,100000] [--rounds 2] [--json]

First a tenth of the schedules and all of them, beside which 1,000 come due at once: how long the
start takes, a claim of 500, a due run, and how much of a core an idle scheduler uses. Then one,
two and three schedulers, each a process, and one handler: due runs a second in turns, and how many
statements and transactions the database did for each of them.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from statistics import median

from catalogzero.scheduler.history import History
from catalogzero.scheduler.models import Execution
from catalogzero.scheduler.store import CLAIM_LIMIT, Store
from sqlalchemy import text

from benchmarks.report import Figure, Section, main, ratios
from benchmarks.scheduler import POSTGRESQL, databases, handler, lead, make_schedules, ours
from benchmarks.scheduler_twice import process, until

FULL = {"schedules": "10000,100000", "due": 1_000, "rounds": 2, "postgresql": POSTGRESQL}
QUICK = {"schedules": "100,1000", "due": 20, "rounds": 1, "postgresql": POSTGRESQL}
SCHEDULERS = (1, 2, 3)
CLAIMS = 9


def grown(postgresql: str | None, due: int, standing: int) -> dict[str, float]:
    """What that number of schedules costs."""
    with databases(postgresql) as (database, _):
        found = asyncio.run(ours(database, due, standing, idle_s=0.5))
    with databases(postgresql) as (database, _):
        return {**found, "claim_s": claim_s(database, standing)}


def claim_s(database: str, standing: int) -> float:
    """Seconds of a claim of 500 due schedules beside those that stand there; a median."""
    store = Store(database)
    make_schedules(store, "standing", standing, datetime.now(UTC) + timedelta(days=1))
    store.claim("bench", 60.0)
    took: list[float] = []
    for number in range(CLAIMS):
        make_schedules(store, f"due-{number}", CLAIM_LIMIT, datetime.now(UTC))
        began_s = time.perf_counter()
        started: list[Execution] = store.claim("bench", 60.0).started
        took.append(time.perf_counter() - began_s)
        assert len(started) == CLAIM_LIMIT
    store.close()
    return median(took)


def crowd(postgresql: str | None, due: int, schedulers: int) -> dict[str, float]:
    """Due runs a second with that number of schedulers, and the database's work for each run."""
    with databases(postgresql) as (database, _), ExitStack() as undo:
        store = Store(database)
        undo.callback(store.close)
        ports = ("--port", "0", "--zmq-port", "0", "--json", "--database", database)
        started = [
            undo.enter_context(process("catalogzero", "scheduler", *ports))
            for _ in range(schedulers)
        ]
        addresses = [_reported(one)["zmq_address"] for one in started]
        undo.enter_context(handler(addresses[0]))
        until(lambda: store.find_handler("nothing"))
        first = datetime.now(UTC) + lead(due)
        make_schedules(store, "due", due, first)
        assert datetime.now(UTC) < first, "the schedules were not added in time"
        before = _commits(store)
        history = History(store)
        until(lambda: history.stats()["success_count"] >= due)
        commits = _commits(store) - before
        records, _ = history.newest({"status": "success"}, due)
        assert len({record["job_id"] for record in records}) == len(records) == due
        ends = [datetime.fromisoformat(record["completed_at"] or "") for record in records]
        rate = due / (max(ends) - first).total_seconds()
        calls, owners = _calls_and_owners(store)
    found = {"runs_per_s": rate, "commits_a_run": commits / due, "calls_a_run": calls / due}
    return {**found, "schedulers_at_work": owners}


def _reported(started: subprocess.Popen[str]) -> dict[str, str]:
    """What a scheduler says when it listens."""
    assert started.stdout
    told: dict[str, str] = json.loads(started.stdout.readline())
    return told


def _commits(store: Store) -> int:
    """How many transactions the database has done; 0 where it does not count them."""
    if store.dialect != "postgresql":
        return 0
    query = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    with store.reading() as c:
        return int(c.execute(text(query)).scalar_one())


def _calls_and_owners(store: Store) -> tuple[int, int]:
    """How many calls were made for the runs, and how many schedulers ran some."""
    with store.reading() as c:
        query = "SELECT sum(n), count(DISTINCT owner) FROM scheduler_executions"
        calls, owners = c.execute(text(query)).one()
        return int(calls), int(owners)


def measure(schedules: str, due: int, rounds: int, postgresql: str) -> Section:
    """Few schedules and many, then one, two and three schedulers in turns."""
    few, many = map(int, schedules.split(","))
    costs = {count: grown(postgresql, due, count) for count in (few, many)}
    figures = []
    for key, what in (("start_s", "start"), ("claim_s", "a claim of 500"), ("due_run_ms", "a run")):
        times = costs[many][key] / costs[few][key]
        what = f"{what} with {many:,} schedules / with {few:,}"
        figures.append(Figure(what=what, samples=[times], unit="x", at_most=10.0))
    found = [{count: crowd(postgresql, due, count) for count in SCHEDULERS} for _ in range(rounds)]
    one_s = [each[1]["runs_per_s"] for each in found]
    for count in SCHEDULERS:
        name = f"{count} scheduler{'s' if count > 1 else ''}"
        rates = [each[count]["runs_per_s"] for each in found]
        figures += [
            Figure(what=f"due runs, {name}", samples=rates, unit="/s"),
            Figure(what=f"due runs, {name} / 1", samples=ratios(rates, one_s), unit="x"),
            Figure(
                what=f"transactions a run, {name}",
                samples=[each[count]["commits_a_run"] for each in found],
                unit="",
            ),
            Figure(
                what=f"calls a run, {name}",
                samples=[each[count]["calls_a_run"] for each in found],
                unit="",
            ),
        ]
    return Section(figures=figures)


if __name__ == "__main__":
    sys.exit(main(__name__))

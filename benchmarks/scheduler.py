"""The scheduler's due runs a second, and what 10,000 schedules cost: ratios to APScheduler 3.11.

    python -m benchmarks.scheduler [--quick] [--schedules 1000,10000] [--rounds 3] [--json]

One round is one burst: all schedules come due at once, and each run is recorded. Rounds of both
take turns; medians are reported, with a tenth of the schedules and with all, then what ten times
the schedules cost.

Ours runs whole: a handler in a process of its own, its ping, its stored stamp, its recorded result.
The peer calls a function in its own process, and records nothing but its next time. Both write to
the same database, each durable as it comes.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from catalogzero import Handler
from catalogzero.scheduler.models import schedule_row
from catalogzero.scheduler.schema import metadata, schedules
from catalogzero.scheduler.server import SchedulerServer, SchedulerSettings, serve_scheduler
from catalogzero.scheduler.store import Store
from catalogzero.scheduler.ticks import Schedule, to_us
from catalogzero.scheduler.triggers import parse_trigger
from sqlalchemy import Engine, create_engine, event, insert, make_url, text

from benchmarks.report import Figure, Section, Series, main, ratios

ROOT = Path(__file__).parents[1]
POSTGRESQL = "postgresql://postgres@127.0.0.1:5432/test"
FULL = {
    "schedules": "1000,10000",
    "due": 1_000,
    "rounds": 2,
    "idle_s": 5.0,
    "postgresql": POSTGRESQL,
}
QUICK = {**FULL, "schedules": "10,100", "due": 20, "rounds": 1, "idle_s": 0.5}
LEAD_S = 2.0
"""At least, between adding what comes due and its moment; more of many."""
GROWS = (
    ("start_s", "start", "s"),
    ("list_s", "the whole list over HTTP", "s"),
    ("due_run_ms", "a due run", "ms"),
)


class Nothing(Handler):
    """Does nothing, at once."""

    async def work(self) -> dict[str, Any]:
        """Return."""
        return {}


_ran = threading.Semaphore(0)


def work() -> None:
    """What the peer's schedules call."""
    _ran.release()


def make_schedules(store: Store, name: str, count: int, first: datetime) -> None:
    """Hourly schedules that all come due at the same moment, in one transaction."""
    trigger = parse_trigger({"type": "interval", "hours": 1, "start_time": first.isoformat()})
    due_us = to_us(first)
    rows = [
        schedule_row(
            Schedule(
                *(str(uuid.uuid4()), f"{name}-{number}", "nothing", "work", {}, trigger),
                tick_us=due_us,
                due_us=due_us,
            )
        )
        for number in range(count)
    ]
    with store.writing() as c:
        c.execute(insert(schedules), rows)


async def ours(database: str, due: int, standing: int, idle_s: float) -> dict[str, float]:
    """Start-up and listing with that number of schedules, a burst of due runs, idle CPU."""
    store = Store(database)
    make_schedules(store, "standing", standing, datetime.now(UTC) + timedelta(days=1))
    store.close()
    settings = SchedulerSettings(port=0, zmq_port=0, database=database)
    began_s = time.perf_counter()
    async with serve_scheduler(settings) as server:
        start_s = time.perf_counter() - began_s
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as api:
            began_s = time.perf_counter()
            listed = (await api.get("/api/schedules")).json()["count"]
            list_s = time.perf_counter() - began_s
            assert listed == standing
            with handler(server.zmq_address):
                rate = await _burst(server, api, due)
            idle = await _idle_cpu(idle_s)
    return {
        "start_s": start_s,
        "list_s": list_s,
        "runs_per_s": rate,
        "due_run_ms": 1_000 / rate,
        "idle_cpu_percent": idle,
    }


@contextmanager
def handler(scheduler: str) -> Iterator[None]:
    """`Nothing` in a process of its own, registered as `nothing`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "catalogzero", "run", "benchmarks.scheduler:Nothing"]
        command += ["--handler-id", "nothing", "--scheduler", scheduler, "--port", "0"]
        for setting in ("max_concurrent_jobs=64", "max_queued_jobs=1000", f"state_dir={folder}"):
            command += ["--set", setting]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.kill()
            process.wait()


def lead(due: int) -> timedelta:
    """How far ahead the moment lies at which that many schedules come due: they are added first."""
    return timedelta(seconds=LEAD_S + due / 300)


async def _burst(server: SchedulerServer, api: httpx.AsyncClient, due: int) -> float:
    """Due runs a second, from the due moment to the last recorded end."""
    runner = server.runner
    while await runner.read(runner.store.find_handler, "nothing") is None:
        await runner.clock.sleep(0.05)
    first = datetime.now(UTC) + lead(due)
    await runner.write(make_schedules, runner.store, "due", due, first)
    assert datetime.now(UTC) < first, "the schedules were not added in time"
    while (await runner.read(runner.history.stats))["success_count"] < due:
        await runner.clock.sleep(0.05)
    newest = runner.history.newest
    records, _ = await runner.read(newest, {"status": "success"}, due)
    ends = [datetime.fromisoformat(record["completed_at"] or "") for record in records]
    assert len({record["job_id"] for record in records}) == len(records) == due
    return due / (max(ends) - first).total_seconds()


async def _idle_cpu(idle_s: float) -> float:
    """Percent of a core that this process uses while nothing is due."""
    before, began_s = _cpu_s(), time.perf_counter()
    await asyncio.sleep(idle_s)
    return (_cpu_s() - before) / (time.perf_counter() - began_s) * 100


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def theirs(database: str, due: int, standing: int) -> dict[str, float]:
    """The same of APScheduler 3.11, with a SQLAlchemy store and its default thread pool."""
    logging.disable(logging.CRITICAL)
    store = SQLAlchemyJobStore(engine=_hasty(database))
    filler = BackgroundScheduler(jobstores={"default": store}, timezone=UTC)
    filler.start(paused=True)
    later = datetime.now(UTC) + timedelta(days=1)
    for number in range(standing):
        filler.add_job(work, "interval", hours=1, next_run_time=later, id=f"job-{number}")
    filler.shutdown()
    executors = {"default": ThreadPoolExecutor(20)}
    defaults = {"misfire_grace_time": None, "coalesce": True}
    peer = BackgroundScheduler(
        jobstores={"default": SQLAlchemyJobStore(url=database)},
        executors=executors,
        job_defaults=defaults,
        timezone=UTC,
    )
    began_s = time.perf_counter()
    peer.start(paused=True)
    start_s = time.perf_counter() - began_s
    began_s = time.perf_counter()
    assert len(peer.get_jobs()) == standing
    list_s = time.perf_counter() - began_s
    now = datetime.now(UTC)
    for number in range(due):
        peer.add_job(work, "interval", hours=1, next_run_time=now, id=f"due-{number}")
    began_s = time.perf_counter()
    peer.resume()
    for _ in range(due):
        _ran.acquire()
    rate = due / (time.perf_counter() - began_s)
    peer.shutdown()
    return {"start_s": start_s, "list_s": list_s, "runs_per_s": rate}


def _hasty(database: str) -> Engine:
    """An engine that waits for no disk: for what is not measured."""
    engine = create_engine(database)
    if engine.dialect.name == "sqlite":
        pragma = "PRAGMA synchronous=OFF"
        event.listen(engine, "connect", lambda connection, _: connection.execute(pragma))
    return engine


@contextmanager
def databases(postgresql: str | None) -> Iterator[tuple[str, str]]:
    """Two empty databases: SQLite files, or the one named, whose own tables go first and last."""
    if postgresql is None:
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/ours.db", f"sqlite:///{folder}/theirs.db"
        return
    url = make_url(postgresql).set(drivername="postgresql+psycopg")
    engine = create_engine(url)
    for step in ("before", "after"):
        metadata.drop_all(engine)
        with engine.begin() as c:
            c.execute(text("DROP TABLE IF EXISTS apscheduler_jobs"))
        if step == "before":
            yield postgresql, url.render_as_string(hide_password=False)
    engine.dispose()


def measure(schedules: str, due: int, rounds: int, idle_s: float, postgresql: str) -> Section:
    """Both in turns on empty databases of either kind, beside each number of schedules.

    Args:
        schedules: The numbers, commas between, the most last.
        due: How many come due at once.
        rounds: How often each is measured.
        idle_s: How long an idle scheduler is watched.
        postgresql: The URL of an empty database.
    """
    figures: list[Figure] = []
    series: list[Series] = []
    for kind, url in (("SQLite", None), ("PostgreSQL", postgresql)):
        took: dict[int, list[dict[str, float]]] = {}
        for standing in map(int, schedules.split(",")):
            beside = f"{kind}, {standing:,} standing"
            peers: list[dict[str, float]] = []
            for _ in range(rounds):
                with databases(url) as (ours_at, theirs_at):
                    our = asyncio.run(ours(ours_at, due, standing, idle_s))
                    took.setdefault(standing, []).append(our)
                    peers.append(theirs(theirs_at, due, standing))
            rates = [one["runs_per_s"] for one in took[standing]]
            their_rates = [one["runs_per_s"] for one in peers]
            figures += [
                Figure(what=f"due runs, {beside}", samples=rates, unit="/s"),
                Figure(what=f"due runs, {beside}: APScheduler", samples=their_rates, unit="/s"),
                Figure(
                    what=f"due runs, {beside} / APScheduler",
                    samples=ratios(rates, their_rates),
                    unit="x",
                    at_least=2.0,
                ),
            ]
        few, *_, many = took.values()
        for key, what, unit in GROWS:
            costs = {number: [one[key] for one in found] for number, found in took.items()}
            times = ratios([one[key] for one in many], [one[key] for one in few])
            most = f"{what} with {max(took):,} schedules / with {min(took):,}, {kind}"
            figures.append(Figure(what=most, samples=times, unit="x", at_most=10.0))
            points = [(number, median(each)) for number, each in costs.items()]
            series.append(Series(what=f"{what}, {kind}", per="schedules", unit=unit, points=points))
        idle = [one["idle_cpu_percent"] for one in many]
        what = f"idle with {max(took):,} schedules, {kind}"
        figures.append(Figure(what=what, samples=idle, unit="% core", at_most=0.5))
    return Section(figures=figures, series=series)


if __name__ == "__main__":
    sys.exit(main(__name__))

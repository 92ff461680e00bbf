"""Three replicas of a handler against one, and how soon all is settled once the engine broke.

    python -m benchmarks.scaleout [--quick] [--rounds 2] [--jobs 16] [--seconds 1.0] [--json]

Jobs that wait come due at once: enough to fill a replica's places a few times, and three times as
many for three replicas of the same handler. A rate counts from the moment at which they come due
to the last recorded end; one replica and three take turns, over ZeroMQ and over NATS.

Then a job comes due every tenth of a second, and in the middle of them the engine breaks: a NATS
server of the benchmark's own is killed and started again, or PostgreSQL ends every connection to
the scheduler's database. Settled is when each job that had come due before the engine was back has
ended. What ran is noted in a file by the jobs themselves: each has to begin once, and to succeed.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from catalogzero.scheduler.models import schedule_row
from catalogzero.scheduler.schema import schedules
from catalogzero.scheduler.store import Store
from catalogzero.scheduler.ticks import Schedule, to_us
from catalogzero.scheduler.triggers import parse_trigger
from sqlalchemy import insert

from benchmarks.report import Figure, Section, main
from benchmarks.scheduler import POSTGRESQL
from benchmarks.scheduler_twice import process, started_scheduler, until
from examples.quickstart.processes import free_ports

FULL = {"rounds": 2, "jobs": 16, "seconds": 1.0, "postgresql": POSTGRESQL}
QUICK = {**FULL, "rounds": 1, "jobs": 4, "seconds": 0.2}
REPLICAS, PLACES = 3, 4
LINEAR_BUDGET, SETTLED_BUDGET_S = 0.95, 10.0
LEAD_S = 1.0
"""Between adding what comes due and its moment; more where that does not suffice."""
EVERY_S, AWAY_S = 0.1, 1.0
"""Between two jobs while the engine breaks, and how long a killed NATS server is away."""
CUT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""

Break = Callable[[], datetime]
"""Breaks the engine, and returns when that is back."""


class Broker:
    """A NATS server that can be killed and started again at its port."""

    def __init__(self, program: str) -> None:
        (self.port,) = free_ports(1)
        self.url = f"nats://127.0.0.1:{self.port}"
        self._command = [program, "-a", "127.0.0.1", "-p", str(self.port)]
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        until(self._listens)

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> datetime:
        """Kill it, start it again after a while, and return when it was back."""
        self.kill()
        time.sleep(AWAY_S)
        self.start()
        return datetime.now(UTC)

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


class OwnScheduler:
    """A scheduler on a database of its own, and handlers in processes that it calls."""

    def __init__(self, undo: ExitStack, postgresql: str) -> None:
        self.folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        self.database = undo.enter_context(own_database(postgresql))
        _, reported, self.api = started_scheduler(undo, self.database)
        self.store = Store(self.database)
        undo.callback(self.store.close)
        self.registration = reported["zmq_address"]

    def serve(self, undo: ExitStack, handler_id: str, transport: str, replicas: int) -> None:
        """Serve a handler in that number of processes, until the scheduler reaches each."""
        command = ["catalogzero", "run", "benchmarks.peers.pausing_handler:Pauser", "--port", "0"]
        command += ["--handler-id", handler_id, "--scheduler", self.registration]
        command += ["--transport", transport, "--set", f"max_concurrent_jobs={PLACES}"]
        for number in range(replicas):
            own = ("--set", f"instance_id={number}", "--set", f"state_dir={self.folder}")
            undo.enter_context(process(*command, *own))

        def all_there() -> bool:
            handlers = self.api.get("/api/handlers").json()["handlers"]
            instances = [one["instances"] for one in handlers if one["id"] == handler_id]
            seen = Counter(one["status"] for each in instances for one in each)
            return seen["Connected"] == replicas

        until(all_there)

    def schedule(
        self, handler_id: str, count: int, seconds: float, every_s: float = 0.0
    ) -> tuple[Path, datetime]:
        """Have jobs come due a little ahead, at once or one after the other.

        Returns:
            The file that they note themselves in, and when the first comes due.
        """
        lead_s = LEAD_S
        while True:
            first = datetime.now(UTC) + timedelta(seconds=lead_s)
            notes = self._add(handler_id, count, seconds, first, every_s)
            if datetime.now(UTC) < first:
                return notes, first
            self.records(notes, count)  # some came due while others were added: they do not count
            lead_s *= 2

    def _add(
        self, handler_id: str, count: int, seconds: float, first: datetime, every_s: float
    ) -> Path:
        notes = self.folder / uuid.uuid4().hex
        rows, bodies = [], []
        for number in range(count):
            name, due = f"{notes.name}-{number}", first + timedelta(seconds=number * every_s)
            params = {"notes": str(notes), "name": name, "seconds": seconds}
            given = {"type": "date", "run_date": due.isoformat()}
            of = (str(uuid.uuid4()), name, handler_id, "wait", params, parse_trigger(given))
            rows.append(schedule_row(Schedule(*of, tick_us=to_us(due), due_us=to_us(due))))
            call = {"handler_id": handler_id, "job_method": "wait", "job_params": params}
            bodies.append({**call, "job_id": name, "trigger": given})
        with self.store.writing() as connection:
            connection.execute(insert(schedules), rows[:-1])
        # The last one by the API, which has the scheduler look what is due next.
        self.api.post("/api/schedule", json=bodies[-1]).raise_for_status()
        return notes

    def records(self, notes: Path, count: int) -> list[dict[str, Any]]:
        """The records of jobs, once all have ended."""
        until(lambda: noted(notes, "ended") >= count)

        def ended() -> list[dict[str, Any]]:
            found = self.api.get("/api/executions", params={"limit": count}).json()
            mine = [one for one in found.get("records", ()) if one["job_id"].startswith(notes.name)]
            is_over = len(mine) == count and all(one["completed_at"] for one in mine)
            return mine if is_over else []

        return until(ended)

    def cut(self) -> datetime:
        """End every connection to the database, and return when that was done."""
        with psycopg.connect(self.database, autocommit=True) as connection:
            connection.execute(CUT)
        return datetime.now(UTC)


@contextmanager
def own_database(postgresql: str) -> Iterator[str]:
    """A new database of a PostgreSQL server; it is dropped at the end."""
    name = f"scaleout_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgresql, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        try:
            yield f"{postgresql.rpartition('/')[0]}/{name}"
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def noted(notes: Path, what: str) -> int:
    """How many jobs noted that they began, or ended."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    return sum(line.startswith(what) for line in lines)


def moment(record: dict[str, Any], name: str) -> datetime:
    """A moment of a record."""
    return datetime.fromisoformat(record[name])


def wrong(notes: Path, records: list[dict[str, Any]]) -> int:
    """How many jobs began more than once, or did not succeed."""
    begins = Counter(line for line in notes.read_text().splitlines() if line.startswith("began"))
    failed = [one for one in records if one["status"] != "success"]
    return sum(count > 1 for count in begins.values()) + len(failed)


def rate(site: OwnScheduler, handler_id: str, jobs: int, seconds: float) -> float:
    """Jobs a second, from the moment at which they come due to the last recorded end."""
    notes, first = site.schedule(handler_id, jobs, seconds)
    records = site.records(notes, jobs)
    assert wrong(notes, records) == 0, "a job ran twice, or did not succeed"
    last = max(moment(one, "completed_at") for one in records)
    return jobs / (last - first).total_seconds()


def settled(
    site: OwnScheduler, handler_id: str, jobs: int, seconds: float, broken: Break
) -> tuple[float, int]:
    """Seconds until all was settled once the engine was back, and how many jobs went wrong."""
    notes, _ = site.schedule(handler_id, jobs, seconds, EVERY_S)
    until(lambda: noted(notes, "began") >= jobs // 2)
    back = broken()
    records = site.records(notes, jobs)
    due = [one for one in records if moment(one, "scheduled_at") <= back]
    last = max(moment(one, "completed_at") for one in due)
    return max((last - back).total_seconds(), 0.0), wrong(notes, records)


def over(
    site: OwnScheduler,
    name: str,
    transport: str,
    breaks: Mapping[str, Break],
    *,
    rounds: int,
    jobs: int,
    seconds: float,
) -> Iterator[Figure]:
    """What one transport's replicas do, and what each break of the engine costs them."""
    with ExitStack() as undo:
        site.serve(undo, f"alone-{name}", transport, 1)
        site.serve(undo, f"crowd-{name}", transport, REPLICAS)
        one, three = [], []
        for _ in range(rounds):
            one.append(rate(site, f"alone-{name}", jobs, seconds))
            three.append(rate(site, f"crowd-{name}", REPLICAS * jobs, seconds))
        kind = f"jobs of {seconds:g} s, {name}"
        yield Figure(what=f"{kind}: one replica", samples=one, unit="/s")
        yield Figure(what=f"{kind}: {REPLICAS} replicas", samples=three, unit="/s")
        times = [many / (REPLICAS * few) for few, many in zip(one, three, strict=True)]
        what = f"{kind}: {REPLICAS} replicas / {REPLICAS} times one"
        yield Figure(what=what, samples=times, unit="x", at_least=LINEAR_BUDGET)
        for what, broken in breaks.items():
            found = [
                settled(site, f"crowd-{name}", REPLICAS * jobs, seconds, broken)
                for _ in range(rounds)
            ]
            took_s, wrong_jobs = ([each[place] for each in found] for place in (0, 1))
            most = SETTLED_BUDGET_S
            yield Figure(what=f"{what}: settled after", samples=took_s, unit="s", at_most=most)
            wrongs = f"{what}: jobs begun twice, or without success"
            yield Figure(what=wrongs, samples=wrong_jobs, unit="", at_most=0)


def measure(rounds: int, jobs: int, seconds: float, postgresql: str) -> Section:
    """One replica and three in turns over each transport, then the breaks.

    Args:
        rounds: How often each is measured.
        jobs: How many jobs one replica gets at once; three get three times as many.
        seconds: How long a job waits.
        postgresql: A server on which databases may be made.
    """
    sizes: dict[str, Any] = {"rounds": rounds, "jobs": jobs, "seconds": seconds}
    program = shutil.which("nats-server")
    with ExitStack() as undo:
        site = OwnScheduler(undo, postgresql)
        breaks: dict[str, Break] = {"PostgreSQL's connections cut": site.cut}
        if program is None:  # the rows of NATS are left out
            return Section(figures=[*over(site, "ZeroMQ", "zeromq", breaks, **sizes)])
        figures = [*over(site, "ZeroMQ", "zeromq", {}, **sizes)]
        nats = Broker(program)
        undo.callback(nats.kill)
        breaks |= {"NATS server killed and started again": nats.restart}
        return Section(figures=[*figures, *over(site, "NATS", nats.url, breaks, **sizes)])


if __name__ == "__main__":
    sys.exit(main(__name__))

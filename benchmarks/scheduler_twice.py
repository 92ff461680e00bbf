"""Two schedulers on one store, and a kill in the middle of a run: ours and APScheduler 3.11.

    python -m benchmarks.scheduler_twice [--quick] [--seconds 12] [--postgresql URL] [--json]

A job is due every second for a while, with two schedulers alive: how many of its ticks ran twice?
Then one run begins, and the scheduler that began it is killed and started again: did the run end,
or is there at least a record of it? What ran is noted in a file by the job itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from catalogzero import Handler

from benchmarks.report import Figure, Section, main
from benchmarks.scheduler import POSTGRESQL, ROOT, databases

FULL = {"seconds": 12, "long_s": 3.0, "postgresql": POSTGRESQL}
QUICK = {"seconds": 2, "long_s": 0.5, "postgresql": POSTGRESQL}
TIMEOUT_S = 30.0

T = TypeVar("T")


def note(path: str, what: str, seconds: float = 0.0) -> dict[str, Any]:
    """Note that a run began, and after a while that it ended."""
    with Path(path).open("a") as notes:
        notes.write(f"began {what} {time.time()}\n")
    time.sleep(seconds)
    with Path(path).open("a") as notes:
        notes.write(f"ended {what} {time.time()}\n")
    return {}


class Noter(Handler):
    """What our schedules call; the peer's call `note` itself."""

    def note(self, path: str, what: str, seconds: float = 0.0) -> dict[str, Any]:
        """See `note`."""
        return note(path, what, seconds)


def moments(path: Path, line: str) -> list[float]:
    """When the lines that begin so were noted."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [float(one.split()[-1]) for one in lines if one.startswith(line)]


@dataclass(frozen=True, slots=True)
class Found:
    """Of how many ticks how many ran twice; 1 where the killed run is lost without a trace."""

    ticks: int
    twice: int
    lost: int = 0


def twice(path: Path) -> Found:
    """Of how many ticks of the every-second job, how many ran more than once."""
    ticks = Counter(int(moment) for moment in moments(path, "began tick"))
    return Found(len(ticks), sum(count > 1 for count in ticks.values()))


def until(look: Callable[[], T]) -> T:
    """Look until what is seen is true, and return it."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not (seen := look()):
        if time.monotonic() > deadline_s:
            raise TimeoutError("it did not come true in time")
        time.sleep(0.05)
    return seen


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process of this interpreter, killed at the end."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    started = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload]
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        started.stdout.close()


def first_tick() -> datetime:
    """A whole second a little ahead, and a bit, so that a tick stays in its second."""
    return (datetime.now(UTC) + timedelta(seconds=3)).replace(microsecond=200_000)


def theirs(database: str, notes: Path, seconds: int, long_s: float) -> Found:
    """APScheduler 3.11 with a SQLAlchemy store."""
    command = ("benchmarks.scheduler_twice", "--peer", database)
    adder = BackgroundScheduler(jobstores={"default": SQLAlchemyJobStore(url=database)})
    adder.start(paused=True)
    given = {"id": "tick", "args": [str(notes), "tick"], "next_run_time": first_tick()}
    adder.add_job(note, "interval", seconds=1, **given)
    with process(*command), process(*command):
        until(lambda: moments(notes, "began tick"))
        time.sleep(seconds)
    found = twice(notes)
    adder.remove_job("tick")
    given = {"args": [str(notes), "long", long_s], "misfire_grace_time": None}
    adder.add_job(note, "date", run_date=datetime.now(UTC), **given)
    with process(*command):
        until(lambda: moments(notes, "began long"))
    with process(*command):
        time.sleep(2 * long_s + 2)
    known = bool(moments(notes, "ended long") or adder.get_jobs())
    adder.shutdown()
    return replace(found, lost=int(not known))


def ours(database: str, notes: Path, seconds: int, long_s: float) -> Found:
    """Two of our schedulers, and a handler."""
    with ExitStack() as undo:
        schedulers = [started_scheduler(undo, database) for _ in range(2)]
        told, api = schedulers[0][1], schedulers[1][2]
        handler = ["catalogzero", "run", "benchmarks.scheduler_twice:Noter", "--port", "0"]
        handler += ["--handler-id", "noter", "--scheduler", told["zmq_address"]]
        undo.enter_context(process(*handler, "--set", f"state_dir={notes.parent / 'state'}"))
        until(lambda: api.get("/api/handlers").json()["handlers"])
        start = {"type": "interval", "seconds": 1, "start_time": first_tick().isoformat()}
        _add(api, "tick", start, {"path": str(notes), "what": "tick"})
        until(lambda: moments(notes, "began tick"))
        time.sleep(seconds)
        api.delete("/api/schedules/tick")
        now = {"type": "date", "run_date": datetime.now(UTC).isoformat()}
        _add(api, "long", now, {"path": str(notes), "what": "long", "seconds": long_s})
        until(lambda: moments(notes, "began long"))
        for killed, _, _ in schedulers:
            killed.kill()
        api = started_scheduler(undo, database)[2]
        asked = {"job_id": "long"}
        until(lambda: api.get("/api/executions", params=asked).json()["records"][0]["completed_at"])
        (record,) = api.get("/api/executions", params=asked).json()["records"]
        assert len(moments(notes, "began long")) == 1
    return replace(twice(notes), lost=int(record["status"] not in ("success", "lost", "error")))


def started_scheduler(
    undo: ExitStack, database: str
) -> tuple[subprocess.Popen[str], dict[str, str], httpx.Client]:
    """One of our schedulers, what it says of itself, and a client of it."""
    ports = ("--port", "0", "--zmq-port", "0", "--json", "--lease-s", "2")
    started = undo.enter_context(
        process("catalogzero", "scheduler", *ports, "--database", database)
    )
    assert started.stdout
    told = json.loads(started.stdout.readline())
    return started, told, undo.enter_context(httpx.Client(base_url=told["url"], timeout=20))


def _add(api: httpx.Client, job_id: str, trigger: dict[str, Any], params: dict[str, Any]) -> None:
    body = {"handler_id": "noter", "job_method": "note", "job_params": params, "job_id": job_id}
    api.post("/api/schedule", json={**body, "trigger": trigger}).raise_for_status()


def measure(seconds: int, long_s: float, postgresql: str) -> Section:
    """Both on SQLite and on PostgreSQL."""
    figures = []
    for kind, url in (("SQLite", None), ("PostgreSQL", postgresql)):
        with databases(url) as (ours_at, theirs_at), tempfile.TemporaryDirectory() as folder:
            mine = ours(ours_at, Path(folder, "ours"), seconds, long_s)
            peer = theirs(theirs_at, Path(folder, "theirs"), seconds, long_s)
        for name, found, most in (("ours", mine, 0), ("APScheduler", peer, None)):
            where = f"{name}, {kind}, of {found.ticks} ticks"
            figures += [
                Figure(what=f"fired twice: {where}", samples=[found.twice], unit="", at_most=most),
                Figure(
                    what=f"the killed run is lost without a trace: {name}, {kind}",
                    samples=[found.lost],
                    unit="",
                    at_most=most,
                ),
            ]
    return Section(figures=figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        store = {"default": SQLAlchemyJobStore(url=sys.argv[2])}
        BlockingScheduler(jobstores=store, timezone=UTC).start()
    else:
        sys.exit(main(__name__))

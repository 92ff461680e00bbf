"""Schedulers, the handler and database connections are killed, and schedulers frozen, at random.

Whatever happens: no tick is lost without a record, none runs twice, and every execution ends.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.quickstart.processes import free_ports
from tests.scheduler.processes import (
    CATALOGZERO,
    SchedulerProcess,
    check_grid,
    cut_connections,
    executions,
    handler_process,
    until,
)

LEASE_S = 2
SECOND = timedelta(seconds=1)


class Chaos:
    """Some schedulers on one database and a handler, all of which may be killed.

    Args:
        database: The schedulers' store.
        folder: Where the handler notes its runs.
        schedulers: How many share the store.
        seed: Of what is killed when.
    """

    catalogzero: tuple[str, ...] = CATALOGZERO

    def __init__(self, database: str, folder: Path, schedulers: int, seed: int) -> None:
        self.database, self.folder = database, folder
        self.seed, self.random = seed, random.Random(seed)  # noqa: S311 - faults, no secrets
        handler_port, *ports = free_ports(1 + 2 * schedulers)
        self.handler_port = handler_port
        self.ports = list(zip(ports[::2], ports[1::2], strict=True))
        self.schedulers = [self._scheduler(number) for number in range(schedulers)]
        self.undo = ExitStack()
        self._start_handlers()
        self.done: Counter[str] = Counter()

    @property
    def api(self) -> httpx.Client:
        """The API of one that lives."""
        return self.schedulers[0].api

    def close(self) -> None:
        """End every process."""
        for scheduler in self.schedulers:
            scheduler.kill()
        self.undo.close()

    @property
    def kills(self) -> int:
        """How often something was killed; to freeze is not to kill."""
        return self.done.total() - self.done["freeze_scheduler"]

    def strike(self) -> None:
        """One fault."""
        kinds = [self.kill_scheduler, self.kill_handler]
        if self.database.startswith("postgresql"):
            kinds.append(self.kill_connections)
        kind = self.random.choice([*kinds, *kinds, self.freeze_scheduler])
        kind()
        self.done[kind.__name__] += 1

    def table(self, records: list[dict[str, Any]]) -> str:
        """What was done, and what became of the executions."""
        ends = Counter(record["status"] for record in records)
        lines = [f"{len(self.schedulers)} schedulers, seed {self.seed}: {self.kills} kills"]
        lines += [f"  {kind:<18} {count:>5}" for kind, count in sorted(self.done.items())]
        lines += [f"  {status:<18} {count:>5}" for status, count in sorted(ends.items())]
        late = sum(record["late"] for record in records)
        lines.append(f"  of which late      {late:>5}")
        return "\n".join(lines)

    def kill_scheduler(self) -> None:
        """kill -9, and a new one at the same ports."""
        number = self.random.randrange(len(self.schedulers))
        self.schedulers[number].kill()
        self.schedulers[number] = self._scheduler(number)

    def freeze_scheduler(self) -> None:
        """SIGSTOP until its lease is another's, then SIGCONT."""
        process = self.random.choice(self.schedulers).process
        process.send_signal(signal.SIGSTOP)
        self.pause(LEASE_S + self.random.uniform(0.5, 2.0))
        process.send_signal(signal.SIGCONT)

    def kill_handler(self) -> None:
        """kill -9, and a new one at the same port."""
        self.undo.close()
        self._start_handlers()

    def kill_connections(self) -> None:
        """Every connection of every scheduler to the database."""
        cut_connections(self.database)

    def pause(self, seconds: float) -> None:
        """Let them work for a while."""
        end_s = time.monotonic() + seconds
        until(lambda: time.monotonic() > end_s, timeout_s=seconds + 30)

    def notes(self) -> dict[str, Counter[str]]:
        """How often each execution began and ended at the handler, by its id."""
        found: dict[str, Counter[str]] = {"began": Counter(), "ended": Counter()}
        for line in (self.folder / "notes").read_text().splitlines():
            what, request_id, _ = line.split(" ", 2)
            found[what][request_id.partition(".")[0]] += 1
        return found

    def calm(self) -> None:
        """No more faults."""

    def _scheduler(self, number: int) -> SchedulerProcess:
        port, zmq_port = self.ports[number]
        lease = ("--lease-s", str(LEASE_S))
        return SchedulerProcess(
            self.database, *lease, port=port, zmq_port=zmq_port, catalogzero=self.catalogzero
        )

    def _start_handlers(self) -> None:
        address = self.schedulers[0].zmq_address
        self.undo.enter_context(handler_process(address, self.folder, self.handler_port))


class ClockChaos(Chaos):
    """The same on a machine whose clock jumps, before each fault and before each new start."""

    def __init__(self, database: str, folder: Path, schedulers: int, seed: int) -> None:
        self.ahead = folder / "ahead"
        self.set_ahead(0)
        self.catalogzero = (sys.executable, "-m", "tests.scheduler.stepped", str(self.ahead))
        super().__init__(database, folder, schedulers, seed)

    def set_ahead(self, seconds: float) -> None:
        """The clock is so far ahead from now on."""
        (new := self.ahead.with_suffix(".new")).write_text(str(seconds))
        new.replace(self.ahead)

    def jump(self) -> None:
        """Ahead or back by years, an hour or seconds, or right again."""
        hour_s, years_s = self.random.uniform(3_600, 5_400), 3e8
        self.set_ahead(self.random.choice((years_s, hour_s, hour_s, -hour_s, 4, -4, 0)))

    def strike(self) -> None:
        """See `Chaos.strike`; the jump is seen before it."""
        self.jump()
        self.pause(1.5)
        super().strike()

    def calm(self) -> None:
        """The clock is right again."""
        self.set_ahead(0)

    def _scheduler(self, number: int) -> SchedulerProcess:
        if hasattr(self, "done"):
            self.jump()
        return super()._scheduler(number)


def run(chaos: Chaos, kills: int, ticks: int) -> list[dict[str, Any]]:
    """Schedule single ticks and every-second ones, strike, then wait for every end."""
    until(lambda: _registered(chaos.api))
    for number, method in enumerate(("note", "note", "again")):
        _add(chaos.api, f"every-{number}", {"type": "interval", "seconds": 1}, method)
    begin = datetime.now(UTC) + SECOND
    for number in range(ticks):
        moment = begin + timedelta(seconds=number * kills / ticks)
        _add(chaos.api, f"tick-{number}", {"type": "date", "run_date": moment.isoformat()})
    while chaos.kills < kills or not chaos.done["freeze_scheduler"]:
        chaos.strike()
        chaos.pause(chaos.random.uniform(0.1, 0.8))
    chaos.calm()
    quiet = datetime.now(UTC)
    until(lambda: _all_ticks_over(chaos.api), timeout_s=120)
    until(lambda: all(_fired_after(chaos.api, f"every-{n}", quiet) for n in range(3)))
    for number in range(3):
        chaos.api.delete(f"/api/schedules/every-{number}")
    until(lambda: _all_final(chaos.api), timeout_s=120)
    return executions(chaos.api)


def check(chaos: Chaos, records: list[dict[str, Any]], ticks: int) -> None:
    """Nothing lost, nothing twice, everything ended, and everything counted."""
    notes = chaos.notes()
    by_job: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        execution_id = record["execution_id"]
        by_job[record["job_id"]].append(record)
        assert record["completed_at"]
        assert record["status"] in ("success", "lost", "missed", "skipped"), record
        ran = record["status"] in ("success", "lost")
        most = record["attempt_number"] if record["method_name"] == "again" else 1
        assert notes["began"][execution_id] <= ran * most
        assert notes["ended"][execution_id] <= notes["began"][execution_id]
        assert notes["ended"][execution_id] or record["status"] != "success"
    assert notes["began"].keys() <= {record["execution_id"] for record in records}
    for number in range(ticks):
        assert len(by_job[f"tick-{number}"]) == 1
    for number in range(3):
        if not isinstance(chaos, ClockChaos):
            check_grid(by_job[f"every-{number}"])
        ticks_run = [r["scheduled_at"] for r in by_job[f"every-{number}"] if "ticks" not in r]
        assert len(set(ticks_run)) == len(ticks_run)
    stats = chaos.api.get("/api/executions/stats").json()
    assert stats["by_status"] == Counter(record["status"] for record in records)


def _add(api: httpx.Client, job_id: str, trigger: dict[str, Any], method: str = "note") -> None:
    params = {"text": job_id, "seconds": 0.3}
    body = {"handler_id": "chore", "job_method": method, "job_params": params, "job_id": job_id}
    assert api.post("/api/schedule", json={**body, "trigger": trigger}).status_code == 201


def _registered(api: httpx.Client) -> bool:
    handlers = api.get("/api/handlers").json()["handlers"]
    return any(one["id"] == "chore" for one in handlers)


def _all_ticks_over(api: httpx.Client) -> bool:
    schedules = api.get("/api/schedules").json().get("schedules")
    return schedules is not None and not any(one["id"].startswith("tick-") for one in schedules)


def _fired_after(api: httpx.Client, job_id: str, moment: datetime) -> bool:
    (newest,) = api.get("/api/executions", params={"job_id": job_id, "limit": 1}).json()["records"]
    return datetime.fromisoformat(newest["scheduled_at"]) > moment


def _all_final(api: httpx.Client) -> bool:
    return all(record["completed_at"] for record in executions(api))


CASES = [
    pytest.param("sqlite", 2, 4, id="sqlite"),
    pytest.param("postgresql", 2, 4, id="postgresql", marks=pytest.mark.postgresql),
]
LONG_CASES = [
    pytest.param("sqlite", 2, 110, id="sqlite"),
    pytest.param("postgresql", 3, 110, id="postgresql", marks=pytest.mark.postgresql),
]


@pytest.mark.timeout(280)
@pytest.mark.parametrize(("kind", "schedulers", "kills"), CASES)
def test_a_few_kills_lose_nothing_and_run_nothing_twice(
    kind: str, schedulers: int, kills: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    _storm(kind, schedulers, kills, tmp_path, request)


@pytest.mark.timeout(1_800)
@pytest.mark.chaos
@pytest.mark.parametrize(("kind", "schedulers", "kills"), LONG_CASES)
def test_a_hundred_kills_lose_nothing_and_run_nothing_twice(
    kind: str, schedulers: int, kills: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    _storm(kind, schedulers, kills, tmp_path, request)


@pytest.mark.timeout(280)
def test_kills_under_a_clock_that_jumps_lose_nothing_and_run_nothing_twice(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    records = _storm("sqlite", 2, 6, tmp_path, request, kind_of_chaos=ClockChaos)

    now = datetime.now(UTC)
    moments = [datetime.fromisoformat(record["scheduled_at"]) for record in records]
    assert any(moment - now > timedelta(minutes=50) for moment in moments)


def _storm(
    kind: str,
    schedulers: int,
    kills: int,
    folder: Path,
    request: pytest.FixtureRequest,
    kind_of_chaos: type[Chaos] = Chaos,
) -> list[dict[str, Any]]:
    """One storm from beginning to end; what was recorded."""
    sqlite = f"sqlite:///{folder / 'scheduler.db'}"
    database = sqlite if kind == "sqlite" else str(request.getfixturevalue("postgresql"))
    chaos = kind_of_chaos(database, folder, schedulers, seed=kills + schedulers)
    try:
        records = run(chaos, kills, ticks=3 * kills)
        check(chaos, records, ticks=3 * kills)
    finally:
        chaos.close()
    print(chaos.table(records))  # noqa: T201
    return records

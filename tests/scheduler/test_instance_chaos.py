"""Instances of a handler are killed amid their runs, and the schedulers that call them.

Whatever is killed: nothing that ended is lost, what may not run twice begins once, no verdict is
false, and what may run twice leaves an instance that stays away.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.core.nats_servers import nats_server
from tests.scheduler.processes import executions, handler_process, until
from tests.scheduler.test_chaos import Chaos

NAMES = ("a", "b", "c")
SCHEDULES = {
    "once-short": ("note", 0.4),
    "once-long": ("note", 1.5),
    "safe-short": ("again", 0.4),
    "safe-long": ("again", 1.5),
}
"""Each fires every second: its method, and how long a run takes, in seconds."""

FORSAKEN_EVERY = 10
"""Of that many kills one instance stays away until what may run twice has left it."""


@dataclass
class InstanceBoot:
    """One start of an instance; its notes begin and end at these bytes of the instance's file.

    `killed_at` is when it was killed, and `back_s` when it is to be back, by the monotonic clock;
    None once its retry_safe runs have ended elsewhere.
    """

    name: str
    notes: Path
    begins: int
    process: subprocess.Popen[bytes]
    ends: int | None = None
    killed_at: datetime | None = None
    back_s: float | None = 0.0

    def noted(self, what: str) -> dict[str, str]:
        """The calls that began or ended here: what their schedule is called, by request_id."""
        text = self.notes.read_bytes()[self.begins : self.ends].decode()
        lines = [line.split(" ", 2) for line in text.splitlines()]
        return {request_id: job_id for said, request_id, job_id in lines if said == what}

    def amid(self, kind: str) -> set[str]:
        """The executions of the schedules of a kind that began here, and did not end."""
        ended = self.noted("ended")
        going = self.noted("began").items()
        return {execution_of(one) for one, job in going if one not in ended and kind in job}


class InstanceChaos(Chaos):
    """Two schedulers, and three instances of the handler that are killed while they are busy.

    Args:
        database: The schedulers' store.
        folder: Where each instance has a folder of its own.
        transport: What carries their calls.
        seed: Of what is killed when.
    """

    def __init__(self, database: str, folder: Path, transport: str, seed: int) -> None:
        self.transport = transport
        self.boots: list[InstanceBoot] = []
        self.settled: set[str] = set()
        super().__init__(database, folder, 2, seed)

    def storm(self, kills: int, scheduler_kills: int) -> None:
        """Kill busy instances, and a scheduler now and then, and bring them back."""
        for number in range(kills):
            if number * scheduler_kills % kills < scheduler_kills:
                self.kill_scheduler()
                self.done["kill_scheduler"] += 1
            away_s = self.random.choice((0.0, 0.0, self.random.uniform(0.5, 3.0)))
            self.kill_instance(away_s, forsaken=number % FORSAKEN_EVERY == 0)
            self.pause(self.random.uniform(0.1, 0.8))
        until(self._all_back, 60)

    def kill_instance(self, away_s: float, *, forsaken: bool) -> None:
        """kill -9 of an instance amid a run of either kind; it is back after `away_s` seconds.

        One that is `forsaken` is back only once its retry_safe runs have ended elsewhere.
        """
        boot = until(self._frozen_busy_one, 60)
        assert boot
        boot.process.kill()
        boot.process.wait()
        boot.ends, boot.killed_at = boot.notes.stat().st_size, datetime.now(UTC)
        boot.back_s = None if forsaken else time.monotonic() + away_s
        self.done["kill_instance"] += 1

    def pause(self, seconds: float) -> None:
        """Let them work for a while; who was away long enough is back."""
        self._bring_back()
        super().pause(seconds)

    def is_there(self, *names: str) -> bool:
        """Whether the scheduler finds all of these instances there."""
        handlers = self.api.get("/api/handlers").json().get("handlers", [])
        found = [one for each in handlers for one in each["instances"]]
        there = {one["instance_id"] for one in found if one["status"] == "Connected"}
        return there >= set(names)

    def _frozen_busy_one(self) -> InstanceBoot | None:
        """One of at least two that live, stopped amid a run of either kind.

        Not between the end of a run and its record: of such an end nobody could know.
        """
        self._bring_back()
        living = [boot for boot in self.boots if boot.killed_at is None]
        if len(living) < 2:
            return None
        boot = self.random.choice(living)
        boot.process.send_signal(signal.SIGSTOP)
        until(lambda: psutil.Process(boot.process.pid).status() == psutil.STATUS_STOPPED)
        if boot.amid("once") and boot.amid("safe"):
            self._look_what_settled()
            if {execution_of(one) for one in boot.noted("ended")} <= self.settled:
                return boot
        boot.process.send_signal(signal.SIGCONT)
        return None

    def _look_what_settled(self) -> None:
        page = self.api.get("/api/executions", params={"limit": 1_000}).json()
        self.settled |= {one["execution_id"] for one in page["records"] if one["completed_at"]}

    def _bring_back(self) -> None:
        """Start each instance again that was away for long enough."""
        newest = {boot.name: boot for boot in self.boots}
        for boot in newest.values():
            if boot.killed_at is None:
                continue
            is_due = boot.back_s is not None and time.monotonic() >= boot.back_s
            if boot.back_s is None:
                self._look_what_settled()
                is_due = boot.amid("safe") <= self.settled
            if is_due:
                self._start_instance(boot.name)

    def _all_back(self) -> bool:
        self._bring_back()
        return self.is_there(*NAMES)

    def _start_handlers(self) -> None:
        for name in NAMES:
            self._start_instance(name)

    def _start_instance(self, name: str) -> None:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        notes = folder / "notes"
        notes.touch()
        # Instances register with either scheduler.
        scheduler = self.schedulers[NAMES.index(name) % 2].zmq_address
        more = ("--set", f"instance_id={name}", "--set", f"transport={self.transport}")
        size = notes.stat().st_size
        process = self.undo.enter_context(handler_process(scheduler, folder, 0, *more))
        self.boots.append(InstanceBoot(name, notes, size, process))


def execution_of(request_id: str) -> str:
    """The execution that a call is of."""
    return request_id.rpartition(".")[0]


def schedule(chaos: InstanceChaos) -> None:
    """Have each schedule fire every second, whatever its earlier runs do."""
    for job_id, (method, seconds) in SCHEDULES.items():
        body = {
            "job_id": job_id,
            "handler_id": "chore",
            "job_method": method,
            "job_params": {"text": job_id, "seconds": seconds},
            "trigger": {"type": "interval", "seconds": 1},
            "overlap": "parallel",
            "max_attempts": 20,
        }
        assert chaos.api.post("/api/schedule", json=body).status_code == 201


def settle(chaos: InstanceChaos) -> list[dict[str, Any]]:
    """End the schedules, and wait for the end of every run."""
    for job_id in SCHEDULES:
        assert chaos.api.delete(f"/api/schedules/{job_id}").status_code == 200
    until(lambda: all(one["completed_at"] for one in executions(chaos.api)), 120)
    return executions(chaos.api)


def check_verdicts(chaos: InstanceChaos, records: list[dict[str, Any]]) -> None:
    """Each verdict is true: of a run that ended, or of one that a kill cut short."""
    began = Counter(one for boot in chaos.boots for one in boot.noted("began"))
    ended = Counter(execution_of(one) for boot in chaos.boots for one in boot.noted("ended"))
    starts = Counter(map(execution_of, began.elements()))
    assert set(began.values()) == {1}, "a call began twice"
    assert starts.keys() <= {record["execution_id"] for record in records}
    for record in records:
        execution_id, status = record["execution_id"], record["status"]
        assert status in ("success", "lost", "missed"), record
        assert (status == "success") == bool(ended[execution_id]), record
        assert ended[execution_id] <= 1 or record["method_name"] == "again", record
        most = record["attempt_number"] if record["method_name"] == "again" else 1
        assert starts[execution_id] <= most * (status != "missed"), record
        assert status != "lost" or record["method_name"] == "note", record
        assert status != "lost" or was_killed_amid(chaos, record), record


def was_killed_amid(chaos: InstanceChaos, record: dict[str, Any]) -> bool:
    """Whether its instance was killed between the beginning and the end of an execution."""
    began, ended = (datetime.fromisoformat(record[at]) for at in ("started_at", "completed_at"))
    mine = [boot for boot in chaos.boots if boot.name == record["instance_id"]]
    return any(boot.killed_at and began <= boot.killed_at <= ended for boot in mine)


def check_kills(chaos: InstanceChaos, records: list[dict[str, Any]]) -> None:
    """Each kill hit a run of either kind: the one is lost, the other ended, elsewhere perhaps."""
    killed = [boot for boot in chaos.boots if boot.killed_at]
    by_id = {record["execution_id"]: record for record in records}
    for boot in killed:
        once, safe = boot.amid("once"), boot.amid("safe")
        assert once
        assert {by_id[one]["status"] for one in once} == {"lost"}
        assert safe
        assert {by_id[one]["status"] for one in safe} == {"success"}
        if boot.back_s is None:
            assert boot.name not in {by_id[one]["instance_id"] for one in safe}
    assert len(killed) == chaos.done["kill_instance"]


def _storm(
    kills: int, scheduler_kills: int, transport: str, database: str, folder: Path
) -> InstanceChaos:
    """One storm from beginning to end, and whether every verdict of it is true."""
    with ExitStack() as undo:
        if transport == "nats":
            transport = f"nats://127.0.0.1:{undo.enter_context(nats_server(folder))}"
        chaos = InstanceChaos(database, folder, transport, seed=kills)
        undo.callback(chaos.close)
        until(lambda: chaos.is_there(*NAMES), 60)
        schedule(chaos)
        chaos.storm(kills, scheduler_kills)
        records = settle(chaos)
        check_verdicts(chaos, records)
        check_kills(chaos, records)
        stats = chaos.api.get("/api/executions/stats").json()
    assert stats["by_status"] == Counter(record["status"] for record in records)
    print(chaos.table(records))  # noqa: T201
    return chaos


TRANSPORTS = pytest.mark.parametrize("transport", ["zeromq", "nats"])


@pytest.mark.timeout(280)
@pytest.mark.postgresql
@TRANSPORTS
def test_a_few_kills_of_busy_instances_lose_nothing_that_ended(
    transport: str, postgresql: str, tmp_path: Path
) -> None:
    chaos = _storm(8, 2, transport, postgresql, tmp_path)

    assert (chaos.done["kill_instance"], chaos.done["kill_scheduler"]) == (8, 2)


@pytest.mark.timeout(1_800)
@pytest.mark.chaos
@pytest.mark.postgresql
@TRANSPORTS
def test_many_kills_of_busy_instances_lose_nothing_that_ended(
    transport: str, postgresql: str, tmp_path: Path
) -> None:
    chaos = _storm(40, 6, transport, postgresql, tmp_path)

    assert (chaos.done["kill_instance"], chaos.done["kill_scheduler"]) == (40, 6)

"""Two hosts under one handler_id: the second is refused while the first answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from catalogzero import HandlerClient
from catalogzero.errors import CatalogZeroError
from catalogzero.runtime.health import SECOND_HOST
from catalogzero.scheduler.models import LostRaceError
from catalogzero.scheduler.server import SchedulerServer, SchedulerSettings, serve_scheduler
from catalogzero.scheduler.store import Store
from catalogzero.testing import Serving, serving
from catalogzero.wire.messages import Reply

from examples.quickstart.processes import free_ports
from tests.core.plain import PlainHandler
from tests.scheduler import processes
from tests.scheduler.conftest import QUICK
from tests.scheduler.processes import SchedulerProcess, handler_process
from tests.scheduler.test_absence import Fake, Log, reported
from tests.scheduler.toys import Toy, connected, toy, until

NOBODY = "tcp://127.0.0.1:1"


@pytest.fixture
def log() -> Iterator[Log]:
    """What is logged."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
async def scheduler(tmp_path: Path, log: Log) -> AsyncIterator[SchedulerServer]:
    """A scheduler on SQLite: what is tested with it is not the database."""
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    settings = SchedulerSettings(port=0, zmq_port=0, database=database, runner=QUICK)
    async with serve_scheduler(settings, log=structlog.get_logger()) as server:
        yield server


async def register(scheduler: SchedulerServer, address: str, **more: Any) -> Reply:
    """The scheduler's reply to a registration of `toy`."""
    async with HandlerClient(scheduler.zmq_address) as wire:
        given = {"handler_id": "toy", "address": address, "methods": ["long"], **more}
        return await wire.request_plain("register", given)


async def is_refused(served: Serving) -> bool:
    """Whether a handler says that it is a second host."""
    return SECOND_HOST in (await served.client.call("get_metrics"))["health"]["reasons"]


# --- processes


class Hosts:
    """Two schedulers on one database; two hosts of `chore`, each with one of them."""

    def __init__(self, database: str, folder: Path, undo: ExitStack) -> None:
        self.folder, self.ports = folder, free_ports(2)
        self.schedulers = [undo.enter_context(SchedulerProcess(database)) for _ in range(2)]
        self.api = self.schedulers[0].api

    @contextmanager
    def host(self, number: int) -> Iterator[Any]:
        """One host's process, with a folder of its own."""
        own, at = self.folder / str(number), self.schedulers[number].zmq_address
        own.mkdir(exist_ok=True)
        with handler_process(at, own, self.ports[number]) as process:
            yield process

    def address(self, number: int) -> str:
        return f"tcp://127.0.0.1:{self.ports[number]}"

    def is_called_at(self, number: int) -> bool:
        """Whether both schedulers call this host, and it answers."""
        seen = [one.api.get("/api/handlers").json()["handlers"] for one in self.schedulers]
        there = {"address": self.address(number), "status": "Connected"}
        return all(any(there.items() <= one.items() for one in handlers) for handlers in seen)

    def is_refused(self, number: int) -> bool:
        """Whether a host says that the scheduler refuses it."""

        async def metrics() -> Any:
            async with HandlerClient(self.address(number)) as client:
                return await client.call("get_metrics", timeout_s=5)

        try:
            return SECOND_HOST in asyncio.run(metrics())["health"]["reasons"]
        except CatalogZeroError:  # it starts
            return False

    def run(self, method: str, text: str) -> None:
        body = {"handler_id": "chore", "job_method": method, "job_params": {"text": text}}
        assert self.api.post("/api/run_now", json={**body, "wait": False}).status_code == 202

    def began(self, number: int) -> list[str]:
        """The texts of the runs that began on a host."""
        notes = self.folder / str(number) / "notes"
        lines = notes.read_text().splitlines() if notes.exists() else []
        return sorted(line.split()[2] for line in lines if line.startswith("began"))

    def let_go(self) -> None:
        """End the runs that hold, on both hosts."""
        for number in (0, 1):
            (self.folder / str(number) / "notes.go").touch()


def test_a_second_host_waits_until_the_first_has_gone(database: str, tmp_path: Path) -> None:
    with ExitStack() as undo:
        hosts = Hosts(database, tmp_path, undo)
        first = undo.enter_context(hosts.host(0))
        processes.until(lambda: hosts.is_called_at(0))
        hosts.run("hold", "once")
        hosts.run("hold_again", "safe")
        processes.until(lambda: hosts.began(0) == ["once", "safe"])
        undo.enter_context(hosts.host(1))
        processes.until(lambda: hosts.is_refused(1))
        still = hosts.is_called_at(0)
        hosts.let_go()
        processes.until(lambda: len(executed(hosts.api, "success")) == 2)
        during = hosts.began(0), hosts.began(1)

        first.kill()
        processes.until(lambda: hosts.is_called_at(1) and not hosts.is_refused(1))
        hosts.run("note", "later")
        processes.until(lambda: hosts.began(1) == ["later"])
        undo.enter_context(hosts.host(0))
        processes.until(lambda: hosts.is_refused(0))
        hosts.run("note", "latest")
        processes.until(lambda: len(executed(hosts.api, "success")) == 4)
        after = hosts.began(0), hosts.began(1)

    assert still
    assert during == (["once", "safe"], [])
    assert after == (["once", "safe"], ["later", "latest"])


def executed(api: httpx.Client, status: str) -> list[dict[str, Any]]:
    """The records of a status; there is none of another."""
    records = processes.executions(api)
    assert {one["status"] for one in records} <= {"running", "retry", status}, records
    return [one for one in records if one["status"] == status]


# --- the scheduler's side


async def test_the_refusal_names_the_address_and_the_fix_and_a_takeover_is_one_line(
    scheduler: SchedulerServer, api: httpx.AsyncClient, log: Log
) -> None:
    zmq = scheduler.zmq_address
    async with AsyncExitStack() as undo:
        first = await undo.enter_async_context(toy(zmq, api))
        async with serving(Toy(), handler_id="toy", scheduler=zmq) as second:
            await until(lambda: is_refused(second))
            reply = await register(scheduler, second.address, boot_id="b")
            kept = await connected(api, "toy", first.address)
            await undo.aclose()
            await until(lambda: connected(api, "toy", second.address))
            await second.service.registered()
            again = await is_refused(second)

    assert (reply.success, reply.code, kept, again) == (False, "handler_id_taken", True, False)
    assert f"answers at {first.address}: stop that one, or" in reply.error
    (line,) = reported(log, "handler_taken_over")
    assert (line["address"], line["from_address"]) == (second.address, first.address)
    assert [one["held_by"] for one in reported(log, "handler_refused")] == [first.address]


async def test_a_handler_that_is_connected_and_silent_keeps_its_place(
    scheduler: SchedulerServer,
) -> None:
    """Its author's code may block its loop: what runs there goes on."""
    fake = Fake()
    with fake.there():
        await fake.register(scheduler, "toy")
        await scheduler.runner.links.probe("toy")
        fake.silent = True
        silent = await register(scheduler, NOBODY, boot_id="b")
    gone = await register(scheduler, NOBODY, boot_id="b")

    assert (silent.code, gone.success) == ("handler_id_taken", True)


async def test_another_handler_that_got_the_port_keeps_no_place(scheduler: SchedulerServer) -> None:
    async with serving(Toy(), handler_id="other") as other:
        await register(scheduler, other.address)
        reply = await register(scheduler, NOBODY, boot_id="b")

    assert reply.success


async def test_where_either_is_a_plain_handler_the_last_one_is_called(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    with PlainHandler({}) as plain:
        async with toy(scheduler.zmq_address, api):
            reply = await register(scheduler, plain.address)
            await until(lambda: connected(api, "toy", plain.address))
        async with toy(scheduler.zmq_address, api) as served:
            last = await connected(api, "toy", served.address)

    assert (reply.success, last) == (True, True)


async def test_a_host_that_was_replaced_hears_of_it_and_says_no_goodbye_for_the_other(
    scheduler: SchedulerServer,
) -> None:
    await register(scheduler, NOBODY, boot_id="a")
    async with HandlerClient(scheduler.zmq_address) as wire:

        async def report(address: str) -> bool:
            given = {"handler_id": "toy", "status": "offline", "address": address}
            return (await wire.request_plain("report_status", given)).success

        other = await report("tcp://127.0.0.1:2")
        (known,) = await scheduler.runner.read(scheduler.runner.store.list_handlers)
        own = await report(NOBODY)

    assert (other, known.status, own) == (False, "online", True)


def test_a_place_is_taken_only_from_one_that_was_not_heard_of_meanwhile(
    make_store: Callable[..., Store],
) -> None:
    one, other = make_store(), make_store()
    one.register("toy", "tcp://a:1", [], anyone=False)
    silent = one.find_handler("toy")
    assert silent
    other.report("toy", "online", "tcp://a:1")
    with pytest.raises(LostRaceError):
        one.register("toy", "tcp://b:1", [], replaces=silent, anyone=False)
    with pytest.raises(LostRaceError):
        one.register("toy", "tcp://b:1", [], anyone=False)
    silent = one.find_handler("toy")
    assert not one.register("toy", "tcp://b:1", [], replaces=silent, anyone=False)
    with pytest.raises(LostRaceError):
        other.register("toy", "tcp://c:1", [], replaces=silent, anyone=False)

    (known,) = other.list_handlers()
    assert known.address == "tcp://b:1"

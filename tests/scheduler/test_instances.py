"""Several processes share the calls of one handler_id: each run is called at one of them alone."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from catalogzero import HandlerClient
from catalogzero.scheduler.models import KnownInstance, LostRaceError
from catalogzero.scheduler.server import SchedulerServer, SchedulerSettings, serve_scheduler
from catalogzero.scheduler.store import Store
from catalogzero.testing import serving

from tests.core.nats_servers import need_nats
from tests.core.support import finished
from tests.scheduler import processes
from tests.scheduler.conftest import QUICK
from tests.scheduler.processes import SchedulerProcess, handler_process
from tests.scheduler.toys import Toy, ended, executions, until

HASTY = replace(QUICK, calls=replace(QUICK.calls, replica_lost_s=0.5))


@pytest.fixture(params=["zeromq", "nats"])
def transport(request: pytest.FixtureRequest) -> str:
    """What carries the calls of the instances."""
    return "zeromq" if request.param == "zeromq" else need_nats()


@pytest.fixture
async def scheduler(database: str) -> AsyncIterator[SchedulerServer]:
    """A scheduler that does not wait long for a silent instance."""
    settings = SchedulerSettings(port=0, zmq_port=0, database=database, runner=HASTY)
    async with serve_scheduler(settings) as server:
        yield server


class Crew:
    """The instances of a handler `toy`, in this process.

    Args:
        scheduler: Where they register.
        api: Its API.
        transport: What carries their calls.
    """

    def __init__(self, scheduler: SchedulerServer, api: httpx.AsyncClient, transport: str) -> None:
        self.name, self.api = f"toy-{uuid.uuid4().hex[:8]}", api
        self.links = scheduler.runner.links
        self._given: dict[str, Any] = {
            "handler_id": self.name,
            "scheduler": scheduler.zmq_address,
            "transport": transport,
        }

    @asynccontextmanager
    async def instance(self, name: str | None, **runtime: Any) -> AsyncIterator[Toy]:
        """One of them, once the scheduler finds it there."""
        one = Toy()
        given = {**self._given, "instance_id": name, **runtime}
        async with serving(one, **given) as served:
            await served.service.registered()
            if name:
                await until(lambda: self.sees(name))
            yield one

    async def instances(self) -> dict[str, dict[str, Any]]:
        """What the scheduler shows of them, by name."""
        handlers = (await self.api.get("/api/handlers")).json()["handlers"]
        mine = [one for one in handlers if one["id"] == self.name]
        return {one["instance_id"]: one for one in (mine[0]["instances"] if mine else [])}

    async def sees(self, name: str) -> bool:
        """Whether the scheduler finds an instance there."""
        return (await self.instances()).get(name, {}).get("status") == "Connected"

    async def run(self, method: str, **more: Any) -> httpx.Response:
        """Begin a run."""
        body = {"handler_id": self.name, "job_method": method, "wait": False, **more}
        return await self.api.post("/api/run_now", json=body)


@pytest.fixture
def crew(scheduler: SchedulerServer, api: httpx.AsyncClient, transport: str) -> Crew:
    return Crew(scheduler, api, transport)


# --- who is called


async def test_runs_go_to_the_instance_with_the_least_to_do_by_its_places(crew: Crew) -> None:
    async with (
        crew.instance("large", max_concurrent_jobs=4) as large,
        crew.instance("small", max_concurrent_jobs=2) as small,
    ):
        for _ in range(6):
            await crew.run("long")

        async def at_work() -> bool:
            return large.starts + small.starts == 6

        await until(at_work)
        shown = await crew.instances()
        url = ("--url", str(crew.api.base_url))
        listed = await asyncio.to_thread(finished, "schedule", "handlers", *url)
        records = await executions(crew.api)
        for one in (large, small):
            one.going.set()

        async def over() -> bool:
            return len(await ended(crew.api)) == 6

        await until(over)
        idle = await crew.instances()

    assert (large.starts, small.starts) == (4, 2)
    assert f"{crew.name}/small" in listed.stdout
    assert "Connected, 2 of 2 places" in listed.stdout
    assert {name: (one["load"], one["places"]) for name, one in shown.items()} == {
        "large": (4, 4),
        "small": (2, 2),
    }
    assert sorted(one["instance_id"] for one in records) == ["large"] * 4 + ["small"] * 2
    assert {one["load"] for one in idle.values()} == {0}


async def test_one_that_is_awake_is_called_first_while_it_has_a_free_place(crew: Crew) -> None:
    async with (
        crew.instance("a", max_concurrent_jobs=2) as first,
        crew.instance("b", max_concurrent_jobs=2) as second,
    ):
        address = (await crew.instances())["a"]["address"]
        async with HandlerClient(address) as client:
            await client.call("sleep")

        async def is_known() -> bool:
            link = crew.links.of((crew.name, "a"))
            return link is not None and link.state == "sleeping"

        await until(is_known)
        for number in range(3):
            await crew.run("long")

            async def begun(count: int = number + 1) -> bool:
                return first.starts + second.starts == count

            await until(begun)
        for one in (first, second):
            one.going.set()

    assert (first.starts, second.starts) == (1, 2)


async def test_one_that_drains_ends_what_it_has_and_gets_no_more(crew: Crew) -> None:
    async with crew.instance("stays") as stays, AsyncExitStack() as leaving:
        leaves = await leaving.enter_async_context(crew.instance("a-leaves"))
        await crew.run("long")

        async def begun() -> bool:
            return leaves.starts == 1

        await until(begun)
        address = (await crew.instances())["a-leaves"]["address"]
        async with HandlerClient(address) as client:
            draining = asyncio.create_task(client.call("drain"))

            async def is_known() -> bool:
                link = crew.links.of((crew.name, "a-leaves"))
                return link is not None and link.state == "draining"

            await until(is_known)
            for _ in range(8):
                await crew.run("long")

            async def at_work() -> bool:
                return stays.starts == 4

            await until(at_work)
            for one in (leaves, stays):
                one.going.set()

            async def all_ended() -> bool:
                return len(await ended(crew.api)) == 9

            await until(all_ended)
            await draining
        records = await executions(crew.api)

    assert (leaves.starts, stays.starts) == (1, 8)
    assert {one["status"] for one in records} == {"success"}


async def test_what_the_handler_knows_of_a_run_is_asked_of_its_instance(crew: Crew) -> None:
    async with crew.instance("a"), crew.instance("b"):
        for _ in range(4):
            answer = await crew.run("quick")
            execution_id = answer.json()["execution_id"]

            async def over(wanted: str = execution_id) -> bool:
                return wanted in {one["execution_id"] for one in await ended(crew.api)}

            await until(over)
            view = (await crew.api.get(f"/api/executions/{execution_id}/handler")).json()
            assert (view["known"], view["reason"]) == (True, None)


# --- who may register


async def test_an_instance_id_is_of_one_host_and_a_handler_is_alone_or_one_of_several(
    scheduler: SchedulerServer, crew: Crew
) -> None:
    async def reply(address: str, **more: Any) -> Any:
        async with HandlerClient(scheduler.zmq_address) as wire:
            given = {"handler_id": crew.name, "address": address, "methods": ["quick"], **more}
            return await wire.request_plain("register", given)

    nobody = "tcp://127.0.0.1:1"
    async with crew.instance("a"):
        same = await reply(nobody, boot_id="x", instance_id="a")
        alone = await reply(nobody, boot_id="x")
        wrong = await reply(nobody, boot_id="x", instance_id="b", places=0)
        other = await reply(nobody, boot_id="x", instance_id="b", places=3)
        shown = await crew.instances()
    async with crew.instance(None):
        joins = await reply(nobody, boot_id="x", instance_id="c")
        after = await crew.instances()

    assert (same.code, alone.code, joins.code) == ("handler_id_taken",) * 3
    assert "give this one an instance_id of its own" in same.error
    assert "give this one a handler_id of its own" in alone.error
    assert "give it an instance_id too" in joins.error
    assert "'places' must be a whole number" in wrong.error
    assert (other.success, shown["b"]["places"], shown["b"]["status"]) == (True, 3, "Disconnected")
    assert after == {}


def test_a_place_is_taken_only_from_an_instance_that_was_not_heard_of_meanwhile(
    make_store: Callable[..., Store],
) -> None:
    one, other = make_store(), make_store()

    def register(address: str, replaces: KnownInstance | None = None) -> bool:
        new = KnownInstance("toy", "a", address, "boot", "online", 0, 1)
        return one.register("toy", address, [], replaces=replaces, anyone=False, instance=new)

    def known() -> KnownInstance:
        handler = other.find_handler("toy")
        assert handler
        (found,) = handler.instances
        return found

    assert register("tcp://a:1")
    silent = known()
    assert other.report("toy", "online", "tcp://a:1", "a")
    with pytest.raises(LostRaceError):
        register("tcp://b:1", silent)
    assert not other.report("toy", "online", "tcp://b:1", "a")
    assert not register("tcp://b:1", known())
    assert known().address == "tcp://b:1"


def test_instances_that_left_or_stay_silent_are_forgotten(make_store: Callable[..., Store]) -> None:
    store = make_store()
    for name in ("left", "silent", "here"):
        new = KnownInstance("toy", name, f"tcp://{name}:1", "boot", "online", 0, 1)
        store.register("toy", new.address, [], anyone=False, instance=new)
    store.report("toy", "offline", "tcp://left:1", "left")
    gone = store.forget_instances(3_600)
    handler = store.find_handler("toy")
    later = store.forget_instances(-3_600)

    assert handler
    assert (gone, [one.instance_id for one in handler.instances]) == (1, ["here", "silent"])
    assert later == 2


# --- one that is killed, frozen, or comes back


class Hosts:
    """A scheduler, and instances of `chore` on hosts of their own, as processes.

    Args:
        database: The scheduler's.
        folder: Where each host has a folder of its own.
        undo: Ends every process.
        options: More of the scheduler's options.
    """

    def __init__(self, database: str, folder: Path, undo: ExitStack, *options: str) -> None:
        self.folder, self.undo = folder, undo
        self.scheduler = undo.enter_context(SchedulerProcess(database, *options))
        self.api = self.scheduler.api

    @contextmanager
    def host(self, name: str, *options: str, within: Sequence[str] = ()) -> Iterator[Any]:
        """One host's process, once it is called; see `handler_process`."""
        own = self.folder / name
        own.mkdir(exist_ok=True)
        more = ("--set", f"instance_id={name}", *options)
        address = self.scheduler.zmq_address
        with handler_process(address, own, 0, *more, within=within) as process:
            processes.until(lambda: self.sees(name), 60)
            yield process

    def sees(self, name: str) -> bool:
        handlers = self.api.get("/api/handlers").json()["handlers"]
        found = [one for each in handlers for one in each["instances"]]
        there = {"instance_id": name, "status": "Connected"}
        return any(there.items() <= one.items() for one in found)

    def run(self, method: str, text: str, **params: Any) -> str:
        """Begin a run, and return its execution_id."""
        job = {"job_method": method, "job_params": {"text": text, **params}}
        body = {"handler_id": "chore", **job, "wait": False}
        answer = self.api.post("/api/run_now", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["execution_id"])

    def noted(self, name: str, what: str) -> list[str]:
        """The texts of the runs that began or ended on a host."""
        notes = self.folder / name / "notes"
        lines = notes.read_text().splitlines() if notes.exists() else []
        return sorted(line.split()[2] for line in lines if line.startswith(what))

    def let_go(self, name: str) -> None:
        """End the runs that hold on a host."""
        (self.folder / name / "notes.go").touch()

    def statuses(self) -> dict[str, tuple[str, int]]:
        """Status and attempt of each execution, by method."""
        found = processes.executions(self.api)
        return {one["method_name"]: (one["status"], one["attempt_number"]) for one in found}


@pytest.mark.timeout(120)
def test_of_an_instance_that_is_cut_off_what_may_run_twice_goes_elsewhere_and_the_rest_waits(
    database: str, tmp_path: Path
) -> None:
    with ExitStack() as undo:
        hosts = Hosts(database, tmp_path, undo)
        cut = undo.enter_context(hosts.host("a"))
        hosts.run("hold", "once")
        hosts.run("hold_again", "safe")
        processes.until(lambda: hosts.noted("a", "began") == ["once", "safe"])
        undo.enter_context(hosts.host("b"))
        hosts.let_go("b")
        cut.send_signal(signal.SIGSTOP)
        processes.until(lambda: hosts.noted("b", "ended") == ["safe"], 60)
        processes.until(lambda: hosts.statuses()["hold_again"] == ("success", 2))
        waits = hosts.statuses()["hold"]
        cut.send_signal(signal.SIGCONT)
        hosts.let_go("a")
        processes.until(lambda: hosts.statuses()["hold"] == ("success", 1))
        began = hosts.noted("a", "began"), hosts.noted("b", "began")

    assert waits == ("retry", 1)
    assert began == (["once", "safe"], ["safe"])


@pytest.mark.timeout(120)
def test_of_an_instance_that_was_killed_and_is_back_what_ran_once_is_lost_and_not_before(
    database: str, tmp_path: Path
) -> None:
    with ExitStack() as undo:
        hosts = Hosts(database, tmp_path, undo)
        killed = undo.enter_context(hosts.host("a"))
        hosts.run("hold", "once")
        processes.until(lambda: hosts.noted("a", "began") == ["once"])
        undo.enter_context(hosts.host("b"))
        killed.kill()
        killed.wait()
        processes.until(lambda: not hosts.sees("a"))
        hosts.run("note", "next")
        processes.until(lambda: hosts.statuses()["note"] == ("success", 1))
        waits = hosts.statuses()["hold"]
        undo.enter_context(hosts.host("a"))
        processes.until(lambda: hosts.statuses()["hold"] == ("lost", 1))
        began = hosts.noted("a", "began"), hosts.noted("b", "began")

    assert waits == ("retry", 1)
    assert began == (["once"], ["next"])

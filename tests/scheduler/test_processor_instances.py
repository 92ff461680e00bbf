"""A processor has instances where a store is shared; without one a second host is refused."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from catalogzero.scheduler.server import SchedulerServer, SchedulerSettings, serve_scheduler
from catalogzero.testing import Serving, serving

from tests.cloud.processors import Plain
from tests.core.nats_servers import need_nats
from tests.core.support import finished
from tests.scheduler.conftest import QUICK
from tests.scheduler.toys import ended, until


@pytest.fixture(params=["zeromq", "nats"])
def transport(request: pytest.FixtureRequest) -> str:
    """What carries the calls of the instances."""
    return "zeromq" if request.param == "zeromq" else need_nats()


class Crew:
    """Instances of one processor, in this process, with their scheduler's API."""

    def __init__(self, scheduler: SchedulerServer, api: httpx.AsyncClient, folder: Path) -> None:
        self.name, self.api, self.folder = f"site-{uuid.uuid4().hex[:8]}", api, folder
        self.data = folder / "exports"
        self.data.mkdir()
        self.scheduler = scheduler.zmq_address

    @asynccontextmanager
    async def host(self, name: str, transport: str, **runtime: Any) -> AsyncIterator[Serving]:
        """One host, with a state folder of its own."""
        one = Plain(endpoint="http://127.0.0.1:9/v1", api_key="key", data_roots=[self.data])
        own = {"state_dir": self.folder / name, "installation_id": "i", "transport": transport}
        given = {"handler_id": self.name, "scheduler": self.scheduler, **own, **runtime}
        async with serving(one, **given) as served:
            yield served

    async def shown(self) -> list[dict[str, Any]]:
        """What the scheduler shows of the handler."""
        handlers = (await self.api.get("/api/handlers")).json()["handlers"]
        return [one for one in handlers if one["id"] == self.name]

    async def instances(self) -> dict[str, str]:
        """The status of each instance, by its name."""
        return {
            each["instance_id"]: each["status"]
            for one in await self.shown()
            for each in one["instances"]
        }


@pytest.fixture
async def scheduler(tmp_path: Path) -> AsyncIterator[SchedulerServer]:
    """A scheduler on SQLite: what is tested with it is not the database."""
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    settings = SchedulerSettings(port=0, zmq_port=0, database=database, runner=QUICK)
    async with serve_scheduler(settings) as server:
        yield server


@pytest.fixture
def crew(scheduler: SchedulerServer, api: httpx.AsyncClient, tmp_path: Path) -> Crew:
    return Crew(scheduler, api, tmp_path)


async def test_with_a_shared_store_it_registers_as_one_of_several_and_calls_reach_both(
    crew: Crew, postgresql: str, transport: str
) -> None:
    given = {"state": postgresql, "max_concurrent_jobs": 3}
    async with (
        crew.host("a", transport, instance_id="a", **given),
        crew.host("b", transport, instance_id="b", **given),
    ):

        async def are_there() -> bool:
            return await crew.instances() == {"a": "Connected", "b": "Connected"}

        await until(are_there)
        url = ("--url", str(crew.api.base_url))
        listed = await asyncio.to_thread(finished, "schedule", "handlers", *url)
        for data_source in ("/nowhere/a.csv", "/nowhere/b.csv"):
            params = {"data_source": data_source}
            body = {"handler_id": crew.name, "job_method": "process_and_upload", "wait": False}
            await crew.api.post("/api/run_now", json={**body, "job_params": params})

        async def both_ended() -> bool:
            return len(await ended(crew.api)) == 2

        await until(both_ended)
        runs = await ended(crew.api)

    assert f"{crew.name}/a" in listed.stdout
    assert "Connected, 0 of 3 places" in listed.stdout
    assert {one["instance_id"] for one in runs} <= {"a", "b"}
    assert all("lies outside data_roots" in one["error"] for one in runs)


@pytest.mark.parametrize("name", [None, "b"])
async def test_without_one_a_second_host_is_refused_and_hears_how_several_are_done(
    crew: Crew, transport: str, name: str | None, refusals: Refusals
) -> None:
    async with crew.host("a", transport, instance_id="a") as first:
        await first.service.registered()
        shown = await crew.shown()
        async with crew.host("b", transport, instance_id=name):
            await until(lambda: refusals.are(1))
            still = await crew.shown()

    [fix] = refusals.fixes()
    assert (shown[0]["instances"], still[0]["address"]) == ([], shown[0]["address"])
    assert fix.startswith("two state folders of one installation would overwrite")
    assert fix.endswith("give both the same `state` (postgresql://…) and an `instance_id` each")


async def test_with_a_store_but_no_name_the_fix_is_a_name_for_each(
    crew: Crew, postgresql: str, transport: str, refusals: Refusals
) -> None:
    async with crew.host("a", transport, state=postgresql) as first:
        await first.service.registered()
        async with crew.host("b", transport, state=postgresql, instance_id="b"):
            await until(lambda: refusals.are(1))
        async with crew.host("b", transport, state=postgresql):
            await until(lambda: refusals.are(2))

    fix = (
        "stop the other host, or give each of them an `instance_id` of its own, beside the same "
        "`state`"
    )
    assert refusals.fixes() == [fix, fix]


class Refusals:
    """What hosts have logged of their refusals; each host of this process logs to its stderr."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd, self._lines = capfd, list[dict[str, Any]]()

    def fixes(self) -> list[str]:
        """The fix that each of them named."""
        said = self._capfd.readouterr().err.splitlines()
        self._lines += [json.loads(line) for line in said if line.startswith("{")]
        return [one["fix"] for one in self._lines if one["event"] == "registration_refused"]

    async def are(self, count: int) -> bool:
        """Whether there are that many."""
        return len(self.fixes()) == count


@pytest.fixture
def refusals(capfd: pytest.CaptureFixture[str]) -> Refusals:
    return Refusals(capfd)

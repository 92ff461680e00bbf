"""A handler works under an unmodified ScheduleZero server: its calls, its registration, its log.

The server is a scripted peer of our own; where SCHEDULEZERO_HTTP and SCHEDULEZERO_ZMQ are set
(`make interop`), the same checks run against that server. It is killed and started again where
SCHEDULEZERO_START names a command that starts it, in its foreground, with an empty registry.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import zmq
from catalogzero import Handler, HandlerClient
from catalogzero.compat import ZMQHandlerBase
from catalogzero.runtime.service import Service, serve

from examples.quickstart.processes import free_ports

ROOT = Path(__file__).parents[2]
REAL = os.environ.get("SCHEDULEZERO_HTTP")
START = os.environ.get("SCHEDULEZERO_START")
pytestmark = [pytest.mark.timeout(90)]


@dataclass
class Server:
    """A ScheduleZero server, ours or a real one, and the kind of handler that it meets."""

    http: str
    zmq: str
    kind: str = "native"
    process: subprocess.Popen[bytes] | None = None
    api: httpx.AsyncClient = field(init=False)

    def start(self) -> None:
        """Start it on its ports: the real one by the command that is given for it."""
        if START:
            self.process = subprocess.Popen(shlex.split(START))
            return
        ports = (self.http.rpartition(":")[2], self.zmq.rpartition(":")[2])
        command = (sys.executable, "-m", "tests.system.schedulezero_peer", *ports)
        self.process = subprocess.Popen(command, cwd=ROOT)

    def stop(self) -> None:
        """End it at once; it forgets everything."""
        if self.process:
            self.process.kill()
            self.process.wait()

    async def post(self, path: str, handler_id: str, method: str, **body: Any) -> httpx.Response:
        """POST a call, with the keys that ScheduleZero has for them."""
        call = {"handler_id": handler_id, "job_method": method, "job_params": {}, **body}
        return await self.api.post(f"{self.http}/api/{path}", json=call)

    async def knows(self, handler_id: str) -> dict[str, Any] | None:
        """What it lists of a handler."""
        try:
            listed = (await self.api.get(f"{self.http}/api/handlers")).json()["handlers"]
        except httpx.TransportError:
            return None
        return next((known for known in listed if known["id"] == handler_id), None)

    async def answers(self) -> bool:
        """Whether it is there."""
        try:
            return (await self.api.get(f"{self.http}/api/health")).is_success
        except httpx.TransportError:
            return False

    async def records(self, handler_id: str) -> list[dict[str, Any]]:
        """The executions of a handler, newest first, as the documentation asks for them."""
        query = {"handler_id": handler_id, "limit": "10"}
        answer = await self.api.get(f"{self.http}/api/executions", params=query)
        return list(answer.json()["records"])


class Worksite(Handler):
    """Methods of every kind that a scheduler may meet."""

    def __init__(self) -> None:
        super().__init__()
        self.held = asyncio.Event()
        self.failures = 0

    async def add(self, left: int, right: int) -> dict[str, Any]:
        """A sum, as a dict."""
        return {"sum": left + right}

    def words(self) -> list[str]:
        """A result that is no dict."""
        return ["one", "two"]

    def fail(self) -> None:
        """Fail with a text that no status line can carry."""
        self.failures += 1
        raise ValueError("größer\nals erlaubt")

    async def hold(self) -> dict[str, Any]:
        """End when the test says so."""
        await self.held.wait()
        return {"held": True}


class OldWorksite(ZMQHandlerBase):
    """The same methods in a handler that was written for ScheduleZero."""

    def __init__(self, handler_id: str, handler_address: str, server_address: str) -> None:
        super().__init__(handler_id, handler_address, server_address)
        self.held = threading.Event()
        self.failures = 0

    def add(self, params: dict[str, Any]) -> dict[str, Any]:
        """A sum, as a dict."""
        return {"success": True, "sum": params["left"] + params["right"]}

    def words(self) -> list[str]:
        """A result that is no dict."""
        return ["one", "two"]

    def fail(self, params: dict[str, Any]) -> None:
        """Fail with a text that no status line can carry."""
        self.failures += 1
        raise ValueError("größer\nals erlaubt")

    def hold(self, params: dict[str, Any]) -> dict[str, Any]:
        """End when the test says so."""
        self.held.wait()
        return {"held": True}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The server that the environment names, else a fresh peer."""
    if REAL:
        real = Server(REAL.rstrip("/"), os.environ["SCHEDULEZERO_ZMQ"])
        if START:
            real.start()
        yield real
        real.stop()
        return
    http, zmq = free_ports(2)
    server = Server(f"http://127.0.0.1:{http}", f"tcp://127.0.0.1:{zmq}")
    server.start()
    yield server
    server.stop()


@pytest.fixture(autouse=True, params=["native", "compat"])
def kind(request: pytest.FixtureRequest, server: Server) -> None:
    """Each check is made with a handler of either kind."""
    server.kind = request.param


async def until(look: Callable[[], Awaitable[Any]], within_s: float = 45.0) -> Any:
    """Look again and again until there is something, and return it."""
    tick = asyncio.Event()
    async with asyncio.timeout(within_s):
        while not (found := await look()):
            asyncio.get_running_loop().call_later(0.1, tick.set)
            await tick.wait()
            tick.clear()
    return found


Site = Worksite | OldWorksite


@dataclass
class Work:
    """A served handler, and the author's object."""

    service: Service
    site: Site

    @property
    def name(self) -> str:
        """Its handler_id."""
        return self.service.handler.handler_id

    @property
    def address(self) -> str:
        """Where it is called."""
        return self.service.address


@asynccontextmanager
async def working(
    server: Server, state_dir: Path, *, handler_id: str | None = None, **runtime: Any
) -> AsyncIterator[Work]:
    """A handler that the server knows at the address where it is."""
    handler_id = handler_id or f"worksite-{uuid.uuid4().hex[:8]}"
    site: Site = Worksite()
    if server.kind == "compat":
        address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
        site = OldWorksite(handler_id, address, server.zmq)
    settings: dict[str, Any] = {
        "handler_id": handler_id,
        "state_dir": state_dir,
        "scheduler": server.zmq,
    }
    server.api = httpx.AsyncClient(timeout=60)
    async with server.api, serve(site, **settings, **runtime) as service:

        async def known() -> bool:
            told = await server.knows(handler_id)
            return told is not None and told["address"] == service.address

        await until(known)
        try:
            yield Work(service, site)
        finally:
            site.held.set()


async def test_a_handler_registers_with_its_address_and_its_methods(
    server: Server, tmp_path: Path
) -> None:
    async with working(server, tmp_path) as work:
        known = await server.knows(work.name)

        assert known
        assert known["address"] == work.address
        assert {"add", "words", "fail", "hold"} <= set(known["methods"])


async def test_a_call_s_reply_is_recorded_flat_and_the_connection_used_again(
    server: Server, tmp_path: Path
) -> None:
    async with working(server, tmp_path) as work:
        name = work.name
        for left in (1, 2, 3):
            params = {"left": left, "right": 40}
            answer = await server.post("run_now", name, "add", job_params=params)
            assert answer.json()["result"] == {"success": True, "sum": left + 40}

        records = await server.records(name)
        assert [record["status"] for record in records] == ["success"] * 3
        assert records[0]["result"]["sum"] == 43


async def test_a_result_that_is_no_dict_stands_under_result(server: Server, tmp_path: Path) -> None:
    async with working(server, tmp_path) as work:
        answer = await server.post("run_now", work.name, "words")

        assert answer.json()["result"] == {"success": True, "result": ["one", "two"]}


async def test_a_failure_is_tried_three_times_and_its_text_reaches_the_http_answer(
    server: Server, tmp_path: Path
) -> None:
    async with working(server, tmp_path) as work:
        answer = await server.post("run_now", work.name, "fail")

        assert answer.status_code == 500
        assert "ValueError" in answer.json()["error"]["message"]
        records = await server.records(work.name)
        assert records[0]["status"] == "error"
        assert records[0]["error"].isascii()
        assert records[0]["error"].isprintable()
        assert work.site.failures == 3


async def test_wrong_parameters_are_reported_by_name(server: Server, tmp_path: Path) -> None:
    async with working(server, tmp_path) as work:
        params = {"wrong": 1, "right": 2}
        answer = await server.post("run_now", work.name, "add", job_params=params)

        assert answer.status_code == 500
        assert "left" in answer.json()["error"]["message"]


async def test_a_job_longer_than_the_server_waits_is_answered_early_and_runs_once(
    server: Server, tmp_path: Path
) -> None:
    async with working(server, tmp_path, early_reply_s=1.0) as work:
        answer = await server.post("run_now", work.name, "hold")
        early = answer.json()["result"]
        assert (early["success"], early["status"]) == (True, "running")

        async with HandlerClient(work.address) as client:
            work.site.held.set()
            params = {"run_id": early["run_id"]}
            run = await until(lambda: ended(client, params))
            runs = await client.call("list_runs", {"method": "hold"})

        assert run["result"]["held"] is True
        assert len(runs["runs"]) == 1


async def ended(client: HandlerClient, params: dict[str, Any]) -> dict[str, Any] | None:
    """A run, once it is over."""
    run: dict[str, Any] = await client.call("get_run", params)
    return run if "result" in run else None


async def test_an_interval_fires_when_it_is_made_and_again(server: Server, tmp_path: Path) -> None:
    async with working(server, tmp_path) as work:
        name = work.name
        every = {"type": "interval", "seconds": 1}
        params = {"left": 20, "right": 22}
        made = await server.post("schedule", name, "add", job_params=params, trigger=every)
        assert made.status_code == 201

        async def twice() -> list[dict[str, Any]] | None:
            records = [r for r in await server.records(name) if r["status"] == "success"]
            return records if len(records) > 1 else None

        records = await until(twice)
        await server.api.delete(f"{server.http}/api/schedules/{made.json()['job_id']}")
        assert records[0]["result"]["sum"] == 42


async def test_a_method_that_is_not_registered_is_refused_by_the_server(
    server: Server, tmp_path: Path
) -> None:
    async with working(server, tmp_path) as work:
        answer = await server.post("run_now", work.name, "_on_start")

        assert answer.status_code == 400


async def test_a_sleeping_handler_is_woken_by_a_call(server: Server, tmp_path: Path) -> None:
    async with working(server, tmp_path) as work, HandlerClient(work.address) as client:
        await client.call("sleep")

        params = {"left": 1, "right": 1}
        answer = await server.post("run_now", work.name, "add", job_params=params)

        assert answer.json()["result"] == {"success": True, "sum": 2}
        assert (await client.call("get_metrics"))["wakes_total"] == 1


@pytest.mark.skipif(
    bool(REAL) and not START, reason="SCHEDULEZERO_START names no command to start the server by"
)
async def test_a_handler_registers_again_with_a_server_that_was_restarted(
    server: Server, tmp_path: Path
) -> None:
    async with working(server, tmp_path) as work:
        server.stop()
        server.start()

        await until(server.answers)
        await until(lambda: server.knows(work.name), within_s=30)
        answer = await server.post("run_now", work.name, "words")
        assert answer.json()["result"]["success"] is True


async def test_a_date_fires_once(server: Server, tmp_path: Path) -> None:
    async with working(server, tmp_path) as work:
        at = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
        made = await server.post(
            "schedule",
            work.name,
            "add",
            job_params={"left": 1, "right": 2},
            trigger={"type": "date", "run_date": at},
        )
        assert made.status_code == 201

        async def done() -> list[dict[str, Any]] | None:
            records = await server.records(work.name)
            return records if records and records[0]["status"] == "success" else None

        records = await until(done)
        assert [record["result"]["sum"] for record in records] == [3]


async def test_a_ping_is_answered_while_a_job_runs(server: Server, tmp_path: Path) -> None:
    async with working(server, tmp_path) as work, HandlerClient(work.address) as client:
        held = asyncio.create_task(server.post("run_now", work.name, "hold"))
        await until(lambda: _running(client))
        assert (await client.ping())["status"] == "ok"
        assert not held.done()
        work.site.held.set()
        assert (await held).json()["result"] == {"success": True, "held": True}


async def _running(client: HandlerClient) -> bool:
    return bool((await client.call("get_metrics"))["in_flight"])


async def test_a_handler_that_was_restarted_elsewhere_is_called_there(
    server: Server, tmp_path: Path
) -> None:
    async with working(server, tmp_path) as first:
        assert (await server.post("run_now", first.name, "words")).status_code == 200
    async with working(server, tmp_path, handler_id=first.name) as second:

        async def called() -> bool:
            answer = await server.post("run_now", second.name, "words")
            return answer.status_code == 200

        assert await until(called)


async def test_raw_clients_and_garbage_disturb_no_call(server: Server, tmp_path: Path) -> None:
    async with working(server, tmp_path) as work:
        context = zmq.Context()
        peers = [context.socket(zmq.REQ) for _ in range(2)]
        for peer in peers:
            peer.linger, peer.rcvtimeo = 0, 20_000
            peer.connect(work.address)
        for garbage in (b"", b"\xff\x00", b"[" * 5_000, b'{"method": 7}'):
            for number, peer in enumerate(peers):
                peer.send(garbage)
                params = {"left": number, "right": 5}
                answer = await server.post("run_now", work.name, "add", job_params=params)
                assert answer.json()["result"]["sum"] == number + 5
                refused = json.loads(await asyncio.to_thread(peer.recv))
                assert refused["success"] is False
        for peer in peers:
            peer.close()
        context.term()

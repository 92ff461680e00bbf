"""A handler works under an unmodified ScheduleZero server: its calls, its registration, its log.

The server is a scripted peer of our own; where SCHEDULEZERO_HTTP and SCHEDULEZERO_ZMQ are set
(`make interop`), the same checks run against the server that listens there.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from catalogzero import Handler, HandlerClient
from catalogzero.service import Service, serve

from examples.quickstart.processes import free_ports

ROOT = Path(__file__).parents[2]
REAL = os.environ.get("SCHEDULEZERO_HTTP")
pytestmark = [pytest.mark.timeout(90)]


@dataclass
class Server:
    """A ScheduleZero server, ours or a real one."""

    http: str
    zmq: str
    process: subprocess.Popen[bytes] | None = None
    api: httpx.AsyncClient = field(init=False)

    def start(self) -> None:
        """Start our peer on its ports."""
        ports = (self.http.rpartition(":")[2], self.zmq.rpartition(":")[2])
        command = (sys.executable, "-m", "tests.system.schedulezero_peer", *ports)
        self.process = subprocess.Popen(command, cwd=ROOT)

    def stop(self) -> None:
        """End our peer at once; it forgets everything."""
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


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The server that the environment names, else a fresh peer."""
    if REAL:
        yield Server(REAL.rstrip("/"), os.environ["SCHEDULEZERO_ZMQ"])
        return
    http, zmq = free_ports(2)
    server = Server(f"http://127.0.0.1:{http}", f"tcp://127.0.0.1:{zmq}")
    server.start()
    yield server
    server.stop()


async def until(look: Callable[[], Awaitable[Any]], within_s: float = 45.0) -> Any:
    """Look again and again until there is something, and return it."""
    tick = asyncio.Event()
    async with asyncio.timeout(within_s):
        while not (found := await look()):
            asyncio.get_running_loop().call_later(0.1, tick.set)
            await tick.wait()
            tick.clear()
    return found


@asynccontextmanager
async def working(server: Server, state_dir: Path, **runtime: Any) -> AsyncIterator[Service]:
    """A handler that the server knows."""
    handler_id = f"worksite-{uuid.uuid4().hex[:8]}"
    settings = {"handler_id": handler_id, "state_dir": state_dir, **runtime}
    server.api = httpx.AsyncClient(timeout=60)
    async with server.api, serve(Worksite(), scheduler=server.zmq, **settings) as service:
        await until(lambda: server.knows(handler_id))
        yield service


async def test_a_handler_registers_with_its_address_and_its_methods(
    server: Server, tmp_path: Path
) -> None:
    async with working(server, tmp_path) as service:
        known = await server.knows(service.handler.handler_id)

        assert known
        assert known["address"] == service.address
        assert {"add", "words", "fail", "hold"} <= set(known["methods"])


async def test_a_call_s_reply_is_recorded_flat_and_the_connection_used_again(
    server: Server, tmp_path: Path
) -> None:
    async with working(server, tmp_path) as service:
        name = service.handler.handler_id
        for left in (1, 2, 3):
            params = {"left": left, "right": 40}
            answer = await server.post("run_now", name, "add", job_params=params)
            assert answer.json()["result"] == {"success": True, "sum": left + 40}

        records = await server.records(name)
        assert [record["status"] for record in records] == ["success"] * 3
        assert records[0]["result"]["sum"] == 43


async def test_a_result_that_is_no_dict_stands_under_result(server: Server, tmp_path: Path) -> None:
    async with working(server, tmp_path) as service:
        answer = await server.post("run_now", service.handler.handler_id, "words")

        assert answer.json()["result"] == {"success": True, "result": ["one", "two"]}


async def test_a_failure_is_tried_three_times_and_its_text_reaches_the_http_answer(
    server: Server, tmp_path: Path
) -> None:
    async with working(server, tmp_path) as service:
        answer = await server.post("run_now", service.handler.handler_id, "fail")

        assert answer.status_code == 500
        assert "ValueError" in answer.json()["error"]["message"]
        records = await server.records(service.handler.handler_id)
        assert records[0]["status"] == "error"
        assert records[0]["error"].isascii()
        assert records[0]["error"].isprintable()
        assert isinstance(service.handler, Worksite)
        assert service.handler.failures == 3


async def test_wrong_parameters_are_told_by_name(server: Server, tmp_path: Path) -> None:
    async with working(server, tmp_path) as service:
        params = {"left": 1, "wrong": 2}
        answer = await server.post("run_now", service.handler.handler_id, "add", job_params=params)

        assert answer.status_code == 500
        assert "wrong" in answer.json()["error"]["message"]


async def test_a_job_longer_than_the_server_waits_is_answered_early_and_runs_once(
    server: Server, tmp_path: Path
) -> None:
    async with working(server, tmp_path, early_reply_s=1.0) as service:
        answer = await server.post("run_now", service.handler.handler_id, "hold")
        early = answer.json()["result"]
        assert (early["success"], early["status"]) == (True, "running")

        async with HandlerClient(service.address) as client:
            assert isinstance(service.handler, Worksite)
            service.handler.held.set()
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
    async with working(server, tmp_path) as service:
        name = service.handler.handler_id
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
    async with working(server, tmp_path) as service:
        answer = await server.post("run_now", service.handler.handler_id, "_on_start")

        assert answer.status_code == 400


async def test_a_sleeping_handler_is_woken_by_a_call(server: Server, tmp_path: Path) -> None:
    async with working(server, tmp_path) as service, HandlerClient(service.address) as client:
        await client.call("sleep")

        params = {"left": 1, "right": 1}
        answer = await server.post("run_now", service.handler.handler_id, "add", job_params=params)

        assert answer.json()["result"] == {"success": True, "sum": 2}
        assert (await client.call("get_metrics"))["wakes_total"] == 1


@pytest.mark.skipif(bool(REAL), reason="a server that is already running is not restarted")
async def test_a_handler_registers_again_with_a_server_that_was_restarted(
    server: Server, tmp_path: Path
) -> None:
    async with working(server, tmp_path) as service:
        server.stop()
        server.start()

        await until(lambda: server.knows(service.handler.handler_id))
        answer = await server.post("run_now", service.handler.handler_id, "words")
        assert answer.json()["result"]["success"] is True

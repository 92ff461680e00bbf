"""A script written for ScheduleZero works under its server with only the import line changed.

The server is the scripted peer of `tests.system`; a real one takes its place where
SCHEDULEZERO_HTTP and SCHEDULEZERO_ZMQ are set.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import zmq
from catalogzero import HandlerClient

from tests.compat.test_life import Script
from tests.system.test_schedulezero import REAL, Server, server, until

__all__ = ["server"]
pytestmark = [pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def process(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Script]:
    """The clockwork, as one process for all tests."""
    port = int(server.zmq.rpartition(":")[2])
    folder = tmp_path_factory.mktemp("clockwork")
    with Script(folder, server_port=port, CATALOGZERO_EARLY_REPLY_S="1") as script:
        yield script


@pytest.fixture
async def script(server: Server, process: Script) -> AsyncIterator[Script]:
    """The clockwork, known to the server; nothing is struck yet."""
    server.api = httpx.AsyncClient(timeout=60)
    async with server.api:
        await until(lambda: server.knows(process.handler_id))
        (process.output / "strikes.txt").unlink(missing_ok=True)
        yield process


def reported(answer: httpx.Response) -> Any:
    """The result of a run_now."""
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


async def test_it_registers_its_address_and_the_methods_that_it_would_have_there(
    server: Server, script: Script
) -> None:
    known = await server.knows(script.handler_id)

    assert known
    assert known["address"] == f"tcp://127.0.0.1:{script.port}"
    assert set(known["methods"]) == {
        *("chime", "get_supported_methods", "jam", "ping", "read_strikes", "strike_hour", "wind"),
        "get_metrics",
    }


async def test_run_now_of_every_shape_of_method(server: Server, script: Script) -> None:
    name = script.handler_id
    hour = await server.post("run_now", name, "strike_hour", job_params={"hour": 5})
    chime = await server.post("run_now", name, "chime", job_params={"message": "dong"})
    listed = await server.post("run_now", name, "get_supported_methods")
    ping = await server.post("run_now", name, "ping")

    assert reported(hour) == {"success": True, "status": "success", "strikes": 5}
    assert reported(chime)["message"] == "dong"
    assert reported(listed)["result"] == ["strike_hour", "chime"]
    assert reported(ping)["handler_id"] == name


async def test_an_error_is_recorded_as_one_with_its_text(server: Server, script: Script) -> None:
    answer = await server.post("run_now", script.handler_id, "jam")
    records = await server.records(script.handler_id)

    assert answer.status_code == 500
    assert "RuntimeError: Getriebe blockiert" in answer.json()["error"]["message"]
    assert records[0]["status"] == "error"
    assert "Getriebe blockiert" in records[0]["error"]
    assert records[0]["error"].isascii()
    assert (script.output / "strikes.txt").read_text() == "jam x1\n" * 3


async def test_a_long_job_is_answered_early_and_not_run_twice_and_ping_goes_on(
    server: Server, script: Script
) -> None:
    answer = await server.post("run_now", script.handler_id, "wind", job_params={"seconds": 3})
    early = reported(answer)
    async with HandlerClient(f"tcp://127.0.0.1:{script.port}") as client:
        pong = await client.request_plain("ping", timeout_s=5)

        async def wound() -> str | None:
            text = (script.output / "strikes.txt").read_text()
            return text if "wound" in text else None

        text = await until(wound, within_s=20)

    assert (early["status"], early["success"]) == ("running", True)
    assert pong.result["success"] is True
    assert text == "wind x1\nwound x1\n"


async def test_an_interval_and_a_date_are_fired(server: Server, script: Script) -> None:
    every = {"type": "interval", "seconds": 1}
    made = await server.post("schedule", script.handler_id, "chime", trigger=every)
    assert made.status_code == 201

    async def twice() -> list[dict[str, Any]] | None:
        records = [
            record
            for record in await server.records(script.handler_id)
            if (record["job_id"], record["status"]) == (made.json()["job_id"], "success")
        ]
        return records if len(records) > 1 else None

    records = await until(twice)
    await server.api.delete(f"{server.http}/api/schedules/{made.json()['job_id']}")
    assert records[0]["result"]["message"] == "ding"


@pytest.mark.skipif(bool(REAL), reason="a server that is already running is not restarted")
async def test_it_comes_back_within_30_s_of_a_restart_that_forgot_it(
    server: Server, script: Script
) -> None:
    server.stop()
    server.start()

    await until(lambda: server.knows(script.handler_id), within_s=30)
    answer = await server.post("run_now", script.handler_id, "get_supported_methods")
    assert reported(answer)["success"] is True


def raw(context: zmq.Context[zmq.Socket[bytes]], port: int) -> zmq.Socket[bytes]:
    """A plain REQ client."""
    socket = context.socket(zmq.REQ)
    socket.setsockopt(zmq.RCVTIMEO, 20_000)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(f"tcp://127.0.0.1:{port}")
    return socket


GARBAGE = [
    *(b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"null", b'{"params": {}}', b'{"method": 7}'),
    *(b'{"method": "chime", "params": [1]}', b"[" * 2_000, b"x" * 100_000),
]


async def test_two_raw_clients_at_once_with_garbage_between_their_calls(tmp_path: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with Script(tmp_path) as script:
        first, second = raw(context, script.port), raw(context, script.port)
        slow = {"method": "wind", "params": {"seconds": 0.5}}
        for number, garbage in enumerate(GARBAGE):
            first.send_json(slow)
            second.send(garbage)
            refused: Any = second.recv_json()
            second.send_json({"method": "strike_hour", "params": {"hour": number + 1}})
            struck: Any = second.recv_json()
            wound: Any = first.recv_json()

            assert (refused["success"], refused["code"]) == (False, "bad_request")
            assert refused["error"].isascii()
            assert struck["strikes"] == number + 1
            assert wound["wound"] is True
        first.close()
        second.close()
    context.term()

"""What a peer may cost a handler, in bytes: endless messages, long frames, replies never read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from catalogzero import CallTimeoutError, HandlerClient, TooLargeError, UnreachableError
from catalogzero.config.address import Address
from catalogzero.runtime.service import serve
from catalogzero.testing import serving
from catalogzero.wire.transport import Envelope
from catalogzero.wire.zeromq import ZeroMQ

from tests.core.support import Bench, RawPeer, running, served_address, until
from tests.core.zmtp import Zmtp

MIB = 1 << 20
ENDLESS = 60 * MIB
"""Of empty frames: about 2 GB of memory where nobody stops them."""

BENCH = "tests.core.support:Bench"
JSON_LOG = {"CATALOGZERO_LOG_FORMAT": "json"}


async def answered(client: HandlerClient) -> bool:
    """Whether a call is; one may be in flight when the socket is opened again."""
    with suppress(CallTimeoutError):
        return bool(await client.call("echo", {"value": 1}) == 1)
    return False


def peak_mib(pid: int) -> float:
    """The most resident memory that a process ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


@pytest.mark.parametrize("host", ["127.0.0.1", "ipc"])
async def test_an_endless_message_costs_its_sender_the_connection_and_nobody_else(
    host: str, tmp_path: Path
) -> None:
    bound = ("--host", f"ipc://{tmp_path}/h.sock") if host == "ipc" else ("--port", "0")
    state = {"CATALOGZERO_STATE_DIR": str(tmp_path), **JSON_LOG}
    with running("run", BENCH, *bound, "--scheduler", "none", cwd=None, **state) as process:
        address = served_address(process)
        async with HandlerClient(address) as client:
            await client.ping()
            with Zmtp(address) as hostile:
                sent = await asyncio.to_thread(hostile.flood, ENDLESS)
            assert sent < ENDLESS
            await until(lambda: answered(client), within_s=60)
            if host != "ipc":
                assert (await client.call("get_metrics"))["peers_cut_total"] == 1
        peak = peak_mib(process.pid)
        process.terminate()
        _, err = await asyncio.to_thread(process.communicate)
    assert peak < 700
    assert ("socket_reopened" if host == "ipc" else "peer_cut") in err


@pytest.mark.parametrize("rests_s", [0.0, 1.5])
async def test_where_all_together_hold_too_much_the_greediest_is_cut(rests_s: float) -> None:
    """Also after nothing has come for so long that nobody looks any more."""
    cut: list[Any] = []
    part = b"\3" + (1 << 20).to_bytes(8, "big") + b"x" * MIB
    server = wired(lambda envelope, payload: None, cut, max_message_bytes=16 * MIB)
    async with server as at:
        with ExitStack() as stack:
            hostile = [stack.enter_context(Zmtp(at)) for _ in range(4)]
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), rests_s)
            for number, peer in enumerate(hostile):
                for _ in range(15 + number):  # each below its own limit, 66 MiB together
                    await asyncio.to_thread(peer.socket.sendall, part)
            await until(lambda: cut)
            port = hostile[-1].socket.getsockname()[1]
            assert [told["peer"] for _, told in cut] == [f"127.0.0.1:{port}"]


async def test_a_peer_that_sends_fast_and_whole_is_not_cut() -> None:
    taken = 0
    cut: list[Any] = []

    def count(envelope: Envelope, payload: bytes) -> None:
        nonlocal taken
        taken += 1

    async with wired(count, cut) as at:
        with Zmtp(at) as honest:
            body = b"\2" + (900_000).to_bytes(8, "big") + b"x" * 900_000
            small = b"\1\0\0\x05hello" * 4_000
            for _ in range(150):
                await asyncio.to_thread(honest.socket.sendall, body + small)
            await until(lambda: taken == 150 * 4_001, within_s=100)
    assert cut == []


async def test_a_call_over_the_limit_is_logged_and_answered_and_cuts_no_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = Bench()
    async with serving(bench) as at, RawPeer(at.address) as peer:
        await peer.send(b'{"method": "hold", "request_id": "held"}')
        await until(lambda: bench.begun)
        long = json.dumps({"method": "echo", "request_id": "r", "params": {"value": "x" * MIB}})
        reply = await peer.ask(long.encode())
        assert (reply["code"], reply["request_id"]) == ("too_large", "r")
        assert f"the limit is {MIB}" in reply["error"]
        bench.gate.set()
        assert (await peer.receive())["request_id"] == "held"
    assert "call_too_large" in capsys.readouterr().err


async def test_a_peer_whose_frame_is_far_too_long_is_cut_and_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with serving(Bench()) as at:
        await at.client.ping()
        with await asyncio.to_thread(Zmtp, at.address) as hostile:
            await asyncio.to_thread(hostile.socket.sendall, b"\2" + (1 << 40).to_bytes(8, "big"))
            assert await asyncio.to_thread(hostile.is_closed)
            port = hostile.socket.getsockname()[1]
        assert (await at.client.call("get_metrics"))["peers_cut_total"] == 1
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["peer"] for line in told if line["event"] == "peer_cut"] == [f"127.0.0.1:{port}"]


async def test_a_peer_that_leaves_is_not_counted_as_cut() -> None:
    async with serving(Bench()) as at:
        for _ in range(3):
            async with HandlerClient(at.address) as client:
                await client.ping()
            with Zmtp(at.address):
                """It leaves at once."""
        assert (await at.client.call("get_metrics"))["peers_cut_total"] == 0


@pytest.mark.parametrize("frames", [1, 3])
async def test_a_peer_of_an_old_protocol_is_answered_and_disturbs_no_other(
    frames: int, caplog: pytest.LogCaptureFixture
) -> None:
    call = b'{"method": "ping", "request_id": "old"}'
    parts = [b"", b"x" * 10, call][-frames:]
    message = b"".join(bytes([len(part) + 1, part is not call]) + part for part in parts)
    async with serving(Bench()) as at:
        address = Address.parse(at.address)
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(b"\1\0" + message)  # ZMTP 1: no greeting, no properties, so no descriptor
        async with asyncio.timeout(20):
            await reader.readuntil(b'"old"')
        writer.close()
        await writer.wait_closed()
        assert await at.client.call("echo", {"value": 1}) == 1
    assert not [record for record in caplog.records if record.exc_info]


async def test_replies_that_nobody_reads_are_dropped_in_bounds_counted_and_logged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = Bench()
    before_mib = psutil.Process().memory_info().rss / MIB
    async with serving(bench, max_queued_jobs=1_000) as at:
        with Zmtp(at.address) as deaf:
            value = b'{"method": "echo", "params": {"value": "' + b"x" * 900_000 + b'"}}'

            async def dropped() -> bool:
                await asyncio.to_thread(deaf.call, value)
                return bool((await at.client.call("get_metrics"))["replies_dropped_total"])

            await until(dropped, within_s=100)
            assert (await at.client.call("get_metrics"))["peers_cut_total"] == 0
        assert psutil.Process().memory_info().rss / MIB - before_mib < 200
    assert "reply_dropped" in capsys.readouterr().err


async def test_replies_to_one_who_reads_late_all_arrive_in_their_order() -> None:
    async with serving(Bench()) as at, RawPeer(at.address) as late:
        late.socket.rcvhwm = 10
        number = 5_000
        for n in range(number):
            await late.send(b'{"method": "ping", "request_id": %d}' % n)
        await at.client.ping()
        got = [(await late.receive())["request_id"] for _ in range(number)]
        assert got == [*range(number)]
        assert (await at.client.call("get_metrics"))["replies_dropped_total"] == 0


async def test_a_reply_of_a_control_method_keeps_the_limit_too() -> None:
    bench = Bench()
    async with serving(bench, max_message_bytes=4_096) as at:
        for n in range(100):
            await at.client.call("echo", request_id=f"{n}" * 50)
        with pytest.raises(TooLargeError, match="the limit is 4096"):
            await at.client.call("list_runs")


async def test_where_nothing_counts_the_socket_is_opened_again_and_callers_come_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    transport = ZeroMQ(counts=False)
    async with (
        serve(Bench(), scheduler="none", transport=transport) as service,
        HandlerClient(service.address) as client,
    ):
        await client.ping()
        with Zmtp(service.address) as hostile:
            sent = await asyncio.to_thread(hostile.flood, ENDLESS)
        assert sent < ENDLESS
        await until(lambda: answered(client), within_s=60)
    assert "socket_reopened" in capsys.readouterr().err


async def test_a_handler_cannot_fill_its_callers_memory() -> None:
    tasks: list[asyncio.Task[None]] = []
    listener = await asyncio.start_server(
        lambda reader, writer: tasks.append(asyncio.create_task(endless_handler(reader, writer))),
        "127.0.0.1",
        0,
    )
    port = listener.sockets[0].getsockname()[1]
    before_mib = psutil.Process().memory_info().rss / MIB
    async with listener, HandlerClient(f"tcp://127.0.0.1:{port}") as client:
        with pytest.raises(UnreachableError, match="did not answer a ping"):
            await client.call("echo", timeout_s=6)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert psutil.Process().memory_info().rss / MIB - before_mib < 900
    assert FLOODED
    assert max(FLOODED) < ENDLESS


FLOODED: list[int] = []


async def endless_handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Greets as a ROUTER does, and answers with a message without end."""
    ready = b"\x05READY\x0bSocket-Type\0\0\0\x06ROUTER\x08Identity\0\0\0\0"
    writer.write(b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL" + b"\0" * 48)
    writer.write(b"\4" + bytes([len(ready)]) + ready)
    FLOODED.append(0)
    try:
        await reader.readexactly(64)
        while FLOODED[-1] < ENDLESS:
            writer.write(b"\1\0" * 30_000)
            FLOODED[-1] += 60_000
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        return
    finally:
        writer.transport.abort()


class wired:
    """A bare server of the transport; its reports are collected."""

    def __init__(
        self,
        on_message: Callable[[Envelope, bytes], None],
        reports: list[Any],
        max_message_bytes: int = MIB,
    ) -> None:
        self._server = ZeroMQ().serve(
            on_message,
            max_message_bytes=max_message_bytes,
            report=lambda event, fields: reports.append((event, fields)),
        )

    async def __aenter__(self) -> str:
        return str(await self._server.open(Address("127.0.0.1")))

    async def __aexit__(self, *error: object) -> None:
        await self._server.close()

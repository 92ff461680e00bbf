"""What every transport keeps, whatever carries: one contract, over a fake, ZeroMQ and NATS."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from catalogzero import CatalogZeroError, HandlerClient, UnreachableError
from catalogzero.config.address import Address
from catalogzero.runtime.service import serve
from catalogzero.wire.nats import Nats
from catalogzero.wire.transport import Envelope, Server, Transport
from catalogzero.wire.zeromq import ZeroMQ

from tests.core.loop_transport import LoopTransport
from tests.core.nats_servers import free_port, need_nats
from tests.core.support import Bench, breathe, until

MAX_BYTES = 10_000


@dataclass(frozen=True)
class Way:
    """A transport, and addresses that nobody listens at; `runtime` serves a handler over it."""

    transport: Transport
    place: Callable[[], Address]
    runtime: Callable[[], dict[str, Any]]


@pytest.fixture(params=["fake", "tcp", "ipc", "nats"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Way:
    numbers = iter(range(9))
    if request.param == "ipc":
        paths = (tmp_path / f"{number}.sock" for number in numbers)
        return Way(
            ZeroMQ(),
            lambda: Address(path=str(next(paths))),
            lambda: {"host": f"ipc://{next(paths)}"},
        )
    if request.param == "nats":
        url = need_nats()
        server = Address.nats_server(url)
        return Way(
            Nats(), lambda: server.called(uuid.uuid4().hex, "here"), lambda: {"transport": url}
        )
    transport = LoopTransport() if request.param == "fake" else ZeroMQ()
    return Way(transport, lambda: Address("127.0.0.1", free_port()), lambda: {"port": free_port()})


class Caller:
    """A peer, and what its callbacks were called with."""

    def __init__(self, way: Way, address: Address) -> None:
        self.replies: list[bytes | CatalogZeroError] = []
        self.undelivered: list[bytes] = []
        self._writable = asyncio.Event()
        self.peer = way.transport.connect(
            str(address), self.replies.append, self._writable.set, self._on_absent
        )

    def _on_absent(self, frames: Sequence[bytes], error: UnreachableError) -> None:
        self.undelivered += frames

    async def send(self, payload: bytes) -> None:
        """Send as soon as the peer takes it."""
        async with asyncio.timeout(10):
            while not self.peer.try_send(payload):
                await self._writable.wait()
                self._writable.clear()

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.peer.close()
        await self.peer.wait_closed()


@asynccontextmanager
async def listening(way: Way, address: Address, answer: bytes | None = b"") -> Any:
    """A server that answers each message with `answer` and the message; yields what came."""
    came: list[bytes] = []

    def on_message(envelope: Envelope, payload: bytes) -> None:
        came.append(payload)
        if answer is not None:
            server.send(envelope, answer + payload)

    server: Server = way.transport.serve(on_message, max_message_bytes=MAX_BYTES)
    await server.open(address)
    try:
        yield came
    finally:
        await server.close()


async def test_each_reply_goes_to_the_caller_of_its_message_alone(way: Way) -> None:
    address = way.place()
    async with listening(way, address), Caller(way, address) as one, Caller(way, address) as other:
        for number in range(50):
            await one.send(b"one %d" % number)
            await other.send(b"other %d" % number)
        await until(lambda: len(one.replies) == 50 == len(other.replies))

    assert one.replies == [b"one %d" % number for number in range(50)]
    assert other.replies == [b"other %d" % number for number in range(50)]


async def test_a_call_to_one_server_reaches_no_other(way: Way) -> None:
    here, there = way.place(), way.place()
    async with (
        listening(way, here, b"here ") as came,
        listening(way, there, b"there ") as came_elsewhere,
        Caller(way, here) as caller,
    ):
        await caller.send(b"1")
        await until(lambda: caller.replies)

    assert (caller.replies, came, came_elsewhere) == ([b"here 1"], [b"1"], [])


async def test_nothing_is_kept_for_a_server_that_is_absent(way: Way) -> None:
    address = way.place()
    async with Caller(way, address) as caller:
        await breathe()
        if caller.peer.try_send(b"early"):
            await until(lambda: caller.undelivered == [b"early"])
        async with listening(way, address) as came:
            await caller.send(b"late")
            await until(lambda: caller.replies)

    assert (came, caller.replies) == ([b"late"], [b"late"])


async def test_nothing_is_called_after_its_close(way: Way) -> None:
    address, envelopes = way.place(), []

    def on_message(envelope: Envelope, payload: bytes) -> None:
        envelopes.append(envelope)

    server = way.transport.serve(on_message)
    await server.open(address)
    async with Caller(way, address) as caller:
        async with Caller(way, address) as closed:
            await closed.send(b"1")
            await until(lambda: len(envelopes) == 1)
        server.send(envelopes[0], b"too late")
        await caller.send(b"3")
        await until(lambda: len(envelopes) > 1)
        await server.close()
        server.send(envelopes[1], b"after the end")
        caller.peer.try_send(b"4")
        async with listening(way, address) as came, Caller(way, address) as after:
            await after.send(b"5")
            await until(lambda: after.replies)

    assert (closed.replies, len(envelopes), came) == ([], 2, [b"5"])
    assert b"after the end" not in caller.replies


async def test_messages_are_carried_up_to_the_limit_and_none_beyond_twice_that(way: Way) -> None:
    address = way.place()
    async with (
        listening(way, address) as came,
        Caller(way, address) as caller,
        Caller(way, address) as greedy,
    ):
        await caller.send(b"x" * MAX_BYTES)
        await until(lambda: caller.replies)
        await greedy.send(b"y" * (2 * MAX_BYTES + 1))
        await caller.send(b"z")
        await until(lambda: len(caller.replies) == 2)

    assert caller.replies == [b"x" * MAX_BYTES, b"z"]
    assert b"y" * (2 * MAX_BYTES + 1) not in came


async def test_control_calls_are_answered_beside_jobs(way: Way, tmp_path: Path) -> None:
    bench, runtime = Bench(), {"scheduler": "none", "state_dir": tmp_path, **way.runtime()}
    async with (
        serve(bench, **{"transport": way.transport, **runtime}) as service,
        HandlerClient(service.address, transport=way.transport) as client,
    ):
        jobs = [asyncio.create_task(client.call("hold", {"name": str(n)})) for n in range(4)]
        await until(lambda: len(bench.begun) == 4)
        assert (await client.ping())["status"] == "ok"
        assert (await client.call("get_metrics"))["in_flight"] == 4
        bench.gate.set()
        assert sorted(await asyncio.gather(*jobs)) == ["0", "1", "2", "3"]
    async with HandlerClient(service.address, transport=way.transport) as late:
        with pytest.raises(UnreachableError):
            await late.call("echo", timeout_s=0.2)

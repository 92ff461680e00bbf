"""A handler and a scheduler under hostile and honest load at once: memory, descriptors and threads
stay flat, every honest call is answered, nothing runs twice, and no line of the log is an error.

Seconds by default; CATALOGZERO_SOAK_S sets another time (`make test-all`: 30 minutes each).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest
from catalogzero import HandlerClient

from tests.core.support import POLL_S, RawPeer, until
from tests.core.zmtp import Zmtp

SOAK_S = float(os.environ.get("CATALOGZERO_SOAK_S", "15"))
JSON_LOG = {"CATALOGZERO_LOG_FORMAT": "json"}
FLOOD_BYTES = 60 << 20
CHANCE = random.Random(7)  # noqa: S311 - not for secrets
WINDOW_S = 3.0
SPARE = (40, 8, 3)
"""How much more memory (MiB), descriptors and threads than before still count as flat."""
ROUNDS = 5

pytestmark = [pytest.mark.soak, pytest.mark.timeout(SOAK_S + 400)]
Load = Callable[[str], Awaitable[None]]


async def calls(address: str) -> None:
    """Honest: jobs of some size, control calls, and a run that is asked for twice."""
    async with HandlerClient(address) as client:
        for _ in range(100):
            value = "x" * CHANCE.randrange(20_000)
            request_id = str(uuid.uuid4())
            for _ in range(2):
                reply = None
                while reply is None or reply.code == "busy":  # the deaf fill the queue
                    reply = await client.request("echo", {"value": value}, request_id=request_id)
                assert reply.result == value
            await client.call("get_metrics")
            await client.call("describe")


async def endless(address: str) -> None:
    """Hostile: a message without end."""
    with await asyncio.to_thread(Zmtp, address) as peer:
        await asyncio.to_thread(peer.flood, FLOOD_BYTES)


async def too_long(address: str) -> None:
    """Hostile: a frame of a terabyte."""
    with await asyncio.to_thread(Zmtp, address) as peer:
        await asyncio.to_thread(peer.socket.sendall, b"\2" + (1 << 40).to_bytes(8, "big"))
        assert await asyncio.to_thread(peer.is_closed)


async def deaf(address: str) -> None:
    """Hostile: asks for much, and reads nothing."""
    with await asyncio.to_thread(Zmtp, address) as peer:
        body = b'{"method": "echo", "params": {"value": "' + b"x" * 500_000 + b'"}}'
        with suppress(OSError):  # where all hold too much, it may be cut
            for _ in range(40):
                await asyncio.to_thread(peer.call, body)


async def failing(address: str) -> None:
    """Hostile: calls that are wrong, errors that are long, floods of control calls."""
    async with RawPeer(address) as peer:
        for number in range(200):
            call = {"method": CHANCE.choice(["none", "x" * 5_000, "ping", "list_runs", "drain_"])}
            await peer.send(json.dumps({**call, "request_id": number}).encode())
        with suppress(TimeoutError):  # where all hold too much, it may be cut: its calls are gone
            for _ in range(200):
                await peer.receive()


async def passing(address: str) -> None:
    """Hostile: connections that say nothing, or no protocol."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    for _ in range(20):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(CHANCE.randbytes(CHANCE.randrange(100)))
        await writer.drain()
        writer.close()
        await writer.wait_closed()


async def keep(load: Load, address: str, ends_s: float) -> int:
    """Load without a break until the end; how many rounds."""
    rounds = 0
    while time.monotonic() < ends_s:
        await load(address)
        rounds += 1
    return rounds


@asynccontextmanager
async def started(
    event: str, log: Path, *arguments: str, **environment: str
) -> AsyncIterator[tuple[int, dict[str, str]]]:
    """A `catalogzero …` process that writes to a file: its pid, and what it says of an event."""
    with log.open("wb") as out:
        command = (sys.executable, "-m", "catalogzero", *arguments)
        environment = {**os.environ, **environment}
        process = await asyncio.create_subprocess_exec(
            *command, stdout=out, stderr=out, env=environment
        )

    def said() -> dict[str, str]:
        assert process.returncode is None, log.read_text()
        for text in re.split(r"\n(?=\{)", log.read_text()):
            with suppress(ValueError):
                line: dict[str, str] = json.loads(text)
                if line.get("event") == event:
                    return line
        return {}

    try:
        yield process.pid, await until(said)
        assert b'"level": "error"' not in await asyncio.to_thread(log.read_bytes)
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 60)


def held(process: psutil.Process) -> tuple[float, int, int]:
    """Memory in MiB, descriptors, threads."""
    memory = process.memory_info().rss / 2**20
    return memory, process.num_fds(), process.num_threads()


async def settled(address: str, process: psutil.Process) -> tuple[float, int, int]:
    """What a process holds once all its callers of a load are gone, and its memory falls no more.

    It forgets outcomes after `WINDOW_S`, and gives memory back a second after it cut somebody.
    """
    async with HandlerClient(address) as client:

        async def is_alone() -> bool:
            await client.request_plain("ping", timeout_s=20)
            connections = [one for one in process.net_connections() if one.status != "LISTEN"]
            return len(connections) <= 2

        await until(is_alone, within_s=60)
    looks: list[float] = []

    def falls_no_more() -> bool:
        looks.append(held(process)[0])
        before = looks[: -int(2 * WINDOW_S / POLL_S)]
        return bool(before) and min(before) - 1 <= min(looks)

    await until(falls_no_more, within_s=120)
    return held(process)


async def soaked(address: str, pid: int, loads: Sequence[Load]) -> None:
    """All loads at once, with looks at what is held: it stays flat.

    What leaks grows with each round. A single high look is no leak: how much memory the
    allocator keeps for later differs from one moment to the next. So the lowest of the last two
    looks is compared with the highest of the first two.
    """
    process = psutil.Process(pid)
    seen = []
    for _ in range(ROUNDS):
        ends_s = time.monotonic() + SOAK_S / ROUNDS
        rounds = await asyncio.gather(*(keep(load, address, ends_s) for load in loads))
        assert all(rounds)
        seen.append(await settled(address, process))
    for first, second, *_, fourth, fifth, spare in zip(*seen, SPARE, strict=True):
        assert min(fourth, fifth) - max(first, second) <= spare, seen


async def test_a_handler_stays_flat_under_mixed_load(tmp_path: Path) -> None:
    window = {"CATALOGZERO_DEDUPE_WINDOW_S": str(WINDOW_S)}
    state = {"CATALOGZERO_STATE_DIR": str(tmp_path), **window, **JSON_LOG}
    arguments = ("tests.core.support:Bench", "--port", "0", "--scheduler", "none")
    async with started("serving", tmp_path / "log", "run", *arguments, **state) as (pid, line):
        address = line["address"]
        await soaked(address, pid, [calls, endless, too_long, deaf, failing, passing])
        async with HandlerClient(address) as client:
            metrics = await client.call("get_metrics")
        assert metrics["peers_cut_total"] > 0
        assert (metrics["in_flight"], metrics["queued"]) == (0, 0)


async def registrations(address: str) -> None:
    """Honest: handlers that register and report."""
    async with HandlerClient(address) as client:
        for number in range(20):
            about = {"handler_id": f"h{number}", "address": "tcp://127.0.0.1:9", "methods": ["m"]}
            assert (await client.request_plain("register", about)).success
            status = {"handler_id": f"h{number}", "status": "offline"}
            assert (await client.request_plain("report_status", status)).success


async def nonsense(address: str) -> None:
    """Hostile: requests that are none."""
    async with RawPeer(address) as peer:
        for _ in range(50):
            await peer.send(CHANCE.randbytes(50))
        for _ in range(50):
            assert (await peer.receive())["success"] is False


async def test_a_scheduler_stays_flat_under_mixed_load(tmp_path: Path) -> None:
    database = ("--database", f"sqlite:///{tmp_path}/s.db")
    ports = ("--port", "0", "--zmq-port", "0", "--json")
    arguments = ("scheduler", *ports, *database)
    async with started("listening", tmp_path / "log", *arguments) as (pid, line):
        loads = [registrations, nonsense, endless, too_long, passing]
        await soaked(line["zmq_address"], pid, loads)

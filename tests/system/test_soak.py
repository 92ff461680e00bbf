"""A scheduler under hostile and honest load at once: memory, descriptors and threads stay flat.

A minute by default; CATALOGZERO_SOAK_S sets another time (`make test-all`: 30 minutes).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest
from catalogzero import HandlerClient

from tests.core.support import RawPeer, until
from tests.core.zmtp import Zmtp

SOAK_S = float(os.environ.get("CATALOGZERO_SOAK_S", "60"))
JSON_LOG = {"CATALOGZERO_LOG_FORMAT": "json"}
FLOOD_BYTES = 60 << 20
CHANCE = random.Random(7)  # noqa: S311 - not for secrets
SPARE = (40, 8, 3)
"""How much more memory (MiB), descriptors and threads than after a third still count as flat."""

pytestmark = [pytest.mark.soak, pytest.mark.timeout(SOAK_S + 240)]
Load = Callable[[str], Awaitable[None]]


async def endless(address: str) -> None:
    """Hostile: a message without end."""
    with await asyncio.to_thread(Zmtp, address) as peer:
        await asyncio.to_thread(peer.flood, FLOOD_BYTES)


async def too_long(address: str) -> None:
    """Hostile: a frame of a terabyte."""
    with await asyncio.to_thread(Zmtp, address) as peer:
        await asyncio.to_thread(peer.socket.sendall, b"\2" + (1 << 40).to_bytes(8, "big"))
        assert await asyncio.to_thread(peer.is_closed)


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
                told: dict[str, str] = json.loads(text)
                if told.get("event") == event:
                    return told
        return {}

    try:
        yield process.pid, await until(said)
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 60)


def held(process: psutil.Process) -> tuple[float, int, int]:
    """Memory in MiB, descriptors, threads."""
    memory = process.memory_info().rss / 2**20
    return memory, process.num_fds(), process.num_threads()


async def settled(address: str, process: psutil.Process) -> tuple[float, int, int]:
    """What a process holds once all its callers of a load are gone."""
    async with HandlerClient(address) as client:

        async def is_alone() -> bool:
            await client.request_plain("ping", timeout_s=20)
            connections = [one for one in process.net_connections() if one.status != "LISTEN"]
            return len(connections) <= 2

        await until(is_alone, within_s=60)
    return held(process)


async def soaked(address: str, pid: int, loads: Sequence[Load]) -> None:
    """All loads at once, a time to warm up and the time itself; what is held stays flat."""
    process = psutil.Process(pid)
    seen = []
    for _ in range(3):
        ends_s = time.monotonic() + SOAK_S / 3
        rounds = await asyncio.gather(*(keep(load, address, ends_s) for load in loads))
        assert all(rounds)
        seen.append(await settled(address, process))
    for first, *_, last, spare in zip(*seen, SPARE, strict=True):
        assert last - first <= spare, seen


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
    async with started("listening", tmp_path / "log", *arguments) as (pid, told):
        loads = [registrations, nonsense, endless, too_long, passing]
        await soaked(told["zmq_address"], pid, loads)

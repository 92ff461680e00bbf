"""Asking a whole fleet at once: 10, 100 and 1,000 handlers, all alive and 5 % dead.

    python -m benchmarks.fanout [--quick] [--sizes 10,100,1000] [--rounds 2] [--nats 4222] [--json]

Real handlers (`serve`, in a few processes, a ZeroMQ socket each) are pinged by `fan_out` and by
the conductor's `health_check`, over connections that are open. Beside them: a bare loop over one
ROUTER socket (the floor), the naive loop of REQ sockets in turn, and NATS' `$SRV.PING` where a
server listens. The timeout is the conductor's default of 5 s; a dead handler is a port that
nobody listens on. Medians of interleaved rounds.

Budgets: all alive, at most 3 times the floor; 5 % dead, at most 1.1 times one timeout.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from catalogzero import Handler, HandlerClient, fan_out
from catalogzero.testing import serving
from conductorzero import ConductorZero

from benchmarks.peers.nats_services import ask_services
from benchmarks.peers.one_router import OneRouter
from benchmarks.peers.sequential_req import ask_in_turn
from benchmarks.report import Figure, Section, Series, main, ratios

FULL = {"sizes": "10,100,1000", "rounds": 2, "nats": 4222}
QUICK = {"sizes": "10", "rounds": 1, "nats": 4222}

TIMEOUT_S = 5.0
PROCESSES = 2
SEQUENTIAL_LIMIT_S = 30.0
FLOOR_BUDGET = 3.0
TIMEOUT_BUDGET = 1.1
PEERS = Path(__file__).parent / "peers"


Ask = Callable[[], Awaitable[tuple[float, int]]]


async def handlers_for_ever(number: int) -> None:
    """Serve this many handlers, print their addresses, and stay."""
    async with AsyncExitStack() as stack:
        addresses = []
        for one in range(number):
            name = f"handler-{one}"
            service = await stack.enter_async_context(serving(Handler(), handler_id=name))
            addresses.append(service.address)
        sys.stdout.write(json.dumps(addresses) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


@asynccontextmanager
async def processes(*arguments: str, count: int) -> AsyncIterator[list[str]]:
    """Processes of this Python; yields the first line that each prints."""
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=1 << 22,
        )
        for _ in range(count)
    ]
    try:
        lines = []
        for one in started:
            assert one.stdout is not None
            lines.append((await one.stdout.readline()).decode())
        yield lines
    finally:
        for one in started:
            one.kill()
            await one.communicate()


@contextmanager
def dead_addresses(number: int) -> Iterator[list[str]]:
    """Ports that are held, and that nobody listens on."""
    held = [socket.socket() for _ in range(number)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        yield [f"tcp://127.0.0.1:{one.getsockname()[1]}" for one in held]
    finally:
        for one in held:
            one.close()


async def connected(clients: dict[str, HandlerClient]) -> None:
    """Wait until every one of these living handlers has answered."""
    answered = 0
    while answered < len(clients):
        replies = await fan_out(clients, "ping", timeout_s=20.0)
        answered = sum(not isinstance(reply, Exception) for reply in replies.values())


async def ways_of(stack: AsyncExitStack, live: list[str], dead: list[str]) -> dict[str, Ask]:
    """The ways of asking this fleet, ready to be measured."""
    addresses = live + dead
    clients = {
        address: await stack.enter_async_context(HandlerClient(address)) for address in addresses
    }
    registry: dict[str, int | str] = {address: address for address in addresses}
    conductor = ConductorZero(registry, timeout_s=TIMEOUT_S)
    await stack.enter_async_context(conductor)
    floor = OneRouter(live)
    stack.callback(floor.close)
    await connected({address: clients[address] for address in live})
    await conductor.health_check()
    floor.ask_all(timeout_s=10, alive=len(live))

    async def by_fan_out() -> tuple[float, int]:
        began_s = time.perf_counter()
        replies = await fan_out(clients, "ping", timeout_s=TIMEOUT_S)
        answered = sum(not isinstance(reply, Exception) for reply in replies.values())
        return time.perf_counter() - began_s, answered

    async def by_conductor() -> tuple[float, int]:
        began_s = time.perf_counter()
        health = await conductor.health_check()
        return time.perf_counter() - began_s, health["summary"]["healthy"]

    async def by_floor() -> tuple[float, int]:
        return floor.ask_all(timeout_s=TIMEOUT_S, alive=len(live))

    async def in_turn() -> tuple[float, int]:
        return ask_in_turn(addresses, timeout_s=TIMEOUT_S)

    ways: dict[str, Ask] = {"fan_out": by_fan_out, "health_check": by_conductor}
    ways["one ROUTER, bare loop"] = by_floor
    if len(dead) * TIMEOUT_S <= SEQUENTIAL_LIMIT_S:
        ways["REQ in turn"] = in_turn
    return ways


async def nats_ways(stack: AsyncExitStack, port: int, alive: int) -> dict[str, Ask]:
    """`$SRV.PING` over as many services, where a NATS server listens."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return {}
    writer.close()
    script = str(PEERS / "nats_services.py")
    share = [alive // PROCESSES + (one < alive % PROCESSES) for one in range(PROCESSES)]
    for number in share:
        await stack.enter_async_context(processes(script, str(port), str(number), count=1))

    async def by_nats() -> tuple[float, int]:
        return await ask_services(port, alive=alive, timeout_s=TIMEOUT_S)

    return {"NATS $SRV.PING": by_nats}


async def asked(size: int, dead: int, rounds: int, nats_port: int) -> dict[str, list[float]]:
    """Milliseconds of every way on one fleet, interleaved; all that live must answer each."""
    alive = size - dead
    async with AsyncExitStack() as stack:
        live: list[str] = []
        for one in range(PROCESSES):
            number = alive // PROCESSES + (one < alive % PROCESSES)
            command = ("-m", "benchmarks.fanout", "--serve", str(number))
            (line,) = await stack.enter_async_context(processes(*command, count=1))
            live += json.loads(line)
        gone = stack.enter_context(dead_addresses(dead))
        ways = await ways_of(stack, live, gone)
        ways |= await nats_ways(stack, nats_port, alive)
        taken: dict[str, list[tuple[float, int]]] = {way: [] for way in ways}
        for number in range(rounds):
            for way, ask in ways.items():
                if way != "REQ in turn" or number < 1 + 2 * (dead == 0):
                    taken[way].append(await ask())
    for way, all_taken in taken.items():
        assert min(answered for _, answered in all_taken) == alive, (way, size, dead)
    return {way: [took_s * 1_000 for took_s, _ in each] for way, each in taken.items()}


async def measure(sizes: str, rounds: int, nats: int) -> Section:
    """All fleets, each alive and with 5 % dead; `sizes` has commas between."""
    figures: list[Figure] = []
    points: dict[str, list[tuple[float, float]]] = {"fan_out": [], "health_check": []}
    for size in map(int, sizes.split(",")):
        for dead in (0, max(1, size // 20)):
            taken = await asked(size, dead, rounds, nats)
            fleet = f"{size:,} handlers" + (f", {dead} dead" if dead else "")
            figures += [
                Figure(what=f"{way}, {fleet}", samples=took, unit="ms")
                for way, took in taken.items()
            ]
            for way, series in points.items():
                if not dead:
                    series.append((size, statistics.median(taken[way])))
                floor = [TIMEOUT_S * 1_000] * rounds if dead else taken["one ROUTER, bare loop"]
                figures.append(
                    Figure(
                        what=f"{way}, {fleet} / {'the timeout' if dead else 'floor'}",
                        samples=ratios(taken[way], floor),
                        unit="x",
                        at_most=TIMEOUT_BUDGET if dead else FLOOR_BUDGET,
                    )
                )
    return Section(
        figures=figures,
        series=[
            Series(what=way, per="handlers", unit="ms", points=series)
            for way, series in points.items()
        ],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(handlers_for_ever(int(sys.argv[2])))
    else:
        sys.exit(main(__name__))

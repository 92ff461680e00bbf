"""What one call costs, and how many go through: a handler beside its peers, in one run.

    python -m benchmarks.rpc [--quick] [--rounds 5] [--nats 4222] [--json]

Every server is a process of its own (benchmarks/peers/). ZeroMQ servers are called by one and
the same blocking DEALER client, the others by their own client; the codec is orjson everywhere
but in ScheduleZero's style. Each round takes the servers in another order; a ratio is that of
one round, against the floor of that round, and the median of the rounds is printed. The CPU time
that the server took for a call stands beside, as it suffers less from what else the machine does.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
import psutil
import zmq

from benchmarks.report import Figure, Section, main, ratios

FULL = {"rounds": 5, "nats": 4222}
QUICK = {"rounds": 1, "nats": 4222}
SEQUENTIAL_CALLS = 400
CONCURRENT_CALLS = 3_000
IN_FLIGHT = 64
SMALL, LARGE = "x" * 100, "x" * 10_000

CALLS = {"by_dealer": SEQUENTIAL_CALLS + 50 + CONCURRENT_CALLS + IN_FLIGHT}
OTHER_CALLS = SEQUENTIAL_CALLS // 2 + CONCURRENT_CALLS

Figures = tuple[float, float]
"""(p50 of sequential calls in microseconds, calls a second with 64 in flight)"""


def call_frame(method: str, data: str, number: int) -> bytes:
    """One call, with an id of its own; a ping takes no parameters, so its data stands beside."""
    call = {"method": method, "params": {}, "request_id": f"{time.time_ns()}-{number}"}
    if method == "ping":
        return orjson.dumps({**call, "padding": data})
    return orjson.dumps({**call, "params": {"data": data}})


def by_dealer(port: int, method: str, data: str) -> Figures:
    """Call a ZeroMQ server from a blocking socket."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(f"tcp://127.0.0.1:{port}")

    def send(number: int) -> None:
        socket.send_multipart((b"", call_frame(method, data, number)))

    def receive() -> None:
        reply = orjson.loads(socket.recv_multipart()[-1])
        assert reply["success"], reply

    taken = []
    for number in range(SEQUENTIAL_CALLS + 50):
        began = time.perf_counter()
        send(number)
        receive()
        taken.append(time.perf_counter() - began)
    for number in range(IN_FLIGHT):
        send(number)
    began = time.perf_counter()
    for number in range(CONCURRENT_CALLS):
        receive()
        send(number)
    rate = CONCURRENT_CALLS / (time.perf_counter() - began)
    for _ in range(IN_FLIGHT):
        receive()
    socket.close()
    context.term()
    return statistics.median(taken[50:]) * 1e6, rate


def by_nats(port: int, method: str, data: str) -> Figures:
    """Call a NATS service by its own client."""

    async def run() -> Figures:
        import nats

        connection = await nats.connect(f"nats://127.0.0.1:{port}")

        async def call(number: int) -> None:
            reply = await connection.request("call", call_frame(method, data, number), timeout=20)
            assert orjson.loads(reply.data)["success"]

        figures = await measured(call)
        await connection.close()
        return figures

    return asyncio.run(run())


def by_http(port: int, method: str, data: str) -> Figures:
    """Call an HTTP service by aiohttp's client."""

    async def run() -> Figures:
        connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
        async with aiohttp.ClientSession(connector=connector) as session:
            url = f"http://127.0.0.1:{port}/call"

            async def call(number: int) -> None:
                async with session.post(url, data=call_frame(method, data, number)) as answer:
                    assert orjson.loads(await answer.read())["success"]

            return await measured(call)

    return asyncio.run(run())


def by_handler_client(port: int, method: str, data: str) -> Figures:
    """Call a handler by the SDK's own client."""
    return _by_client(f"tcp://127.0.0.1:{port}", method, data)


def by_handler_client_over_nats(port: int, method: str, data: str) -> Figures:
    """The same through a NATS server."""
    return _by_client(f"nats://127.0.0.1:{port}/echo", method, data)


def _by_client(address: str, method: str, data: str) -> Figures:
    async def run() -> Figures:
        from catalogzero import HandlerClient

        async with HandlerClient(address) as client:

            async def call(number: int) -> None:
                await client.call(method, {"data": data})

            return await measured(call)

    return asyncio.run(run())


async def measured(call: Callable[[int], Any]) -> Figures:
    """The same two figures of a client that is a coroutine function."""
    taken = []
    for number in range(SEQUENTIAL_CALLS // 2):
        began = time.perf_counter()
        await call(number)
        taken.append(time.perf_counter() - began)
    numbers = iter(range(CONCURRENT_CALLS))

    async def lane() -> None:
        for number in numbers:
            await call(number)

    began = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))
    rate = CONCURRENT_CALLS / (time.perf_counter() - began)
    return statistics.median(taken[20:]) * 1e6, rate


@dataclass(frozen=True)
class Contender:
    """A server, and how one method of it is measured."""

    name: str
    peer: str
    method: str
    data: str
    measure: Callable[[int, str, str], Figures] = by_dealer


CONTENDERS = [
    Contender("floor", "blocking_echo", "echo", SMALL),
    Contender("floor, ping", "blocking_echo", "ping", SMALL),
    Contender("floor, 10 kB", "blocking_echo", "echo", LARGE),
    Contender("floor, ping 10 kB", "blocking_echo", "ping", LARGE),
    Contender("handler, ping", "own_handler", "ping", SMALL),
    Contender("handler, ping 10 kB", "own_handler", "ping", LARGE),
    Contender("handler, job", "own_handler", "echo", SMALL),
    Contender("handler, job 10 kB", "own_handler", "echo", LARGE),
    Contender("handler, job, HandlerClient", "own_handler", "echo", SMALL, by_handler_client),
    Contender("handler over NATS", "nats_handler", "echo", SMALL, by_handler_client_over_nats),
    Contender("ScheduleZero style", "schedulezero_style", "echo", SMALL),
    Contender("zmq.asyncio", "zmq_asyncio_echo", "echo", SMALL),
    Contender("NATS micro", "nats_micro", "echo", SMALL, by_nats),
    Contender("aiohttp", "aiohttp_service", "echo", SMALL, by_http),
]


LEAST = [
    ("handler, ping", "floor, ping", 0.45),
    ("handler, job", "floor", 0.3),
    ("handler, ping 10 kB", "floor, ping 10 kB", 0.75),
    ("handler, job 10 kB", "floor, 10 kB", 0.6),
    ("handler, job", "ScheduleZero style", 1.0),
    ("handler, job", "zmq.asyncio", 1.5),
    ("handler, job", "NATS micro", 2.0),
    ("handler, job", "aiohttp", 4.0),
    ("handler over NATS", "handler, job, HandlerClient", 1 / 1.5),
]
"""(ours, the peer, at least how many times its calls a second)"""


@contextmanager
def server(peer: str, *arguments: str) -> Iterator[tuple[int, psutil.Process] | None]:
    """A peer's process; yields its port and itself, or nothing where it cannot run."""
    command = [sys.executable, "-m", f"benchmarks.peers.{peer}", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        yield (int(line), psutil.Process(process.pid)) if line else None
    finally:
        process.kill()
        process.communicate()


def measure(rounds: int, nats: int) -> Section:
    """Every contender in every round, in another order each.

    Args:
        rounds: How many.
        nats: The port of a NATS server; without one its rows are left out.
    """
    chance = random.Random(rounds)  # noqa: S311 - an order, not a secret
    figures: dict[str, list[Figures]] = {one.name: [] for one in CONTENDERS}
    cpu: dict[str, list[float]] = {one.name: [] for one in CONTENDERS}
    with ExitStack() as stack:
        servers: dict[str, tuple[int, psutil.Process] | None] = {}
        for peer in dict.fromkeys(one.peer for one in CONTENDERS):
            arguments = [str(nats)] if peer.startswith("nats") else []
            servers[peer] = stack.enter_context(server(peer, *arguments))
        for _ in range(rounds):
            for one in chance.sample(CONTENDERS, len(CONTENDERS)):
                if (found := servers[one.peer]) is not None:
                    port, process = found
                    before = _cpu_s(process)
                    figures[one.name].append(one.measure(port, one.method, one.data))
                    calls = CALLS.get(one.measure.__name__, OTHER_CALLS)
                    cpu[one.name].append((_cpu_s(process) - before) / calls * 1e6)
    p50 = {name: [one for one, _ in found] for name, found in figures.items() if found}
    rate = {name: [one for _, one in found] for name, found in figures.items() if found}
    rows: list[Figure] = []
    for one in CONTENDERS:
        if name := one.name if one.name in p50 else "":
            rows += [
                Figure(what=f"{name}: p50", samples=p50[name], unit="µs"),
                Figure(what=f"{name}: 64 in flight", samples=rate[name], unit="/s"),
                Figure(
                    what=f"{name}: server's processor time a call", samples=cpu[name], unit="µs"
                ),
            ]
    return Section(figures=[*rows, *bars(p50, rate)])


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def bars(p50: Mapping[str, list[float]], rate: Mapping[str, list[float]]) -> Iterator[Figure]:
    """Ratios with a bar, round by round; each against the floor of its own size."""
    job = "handler, job"
    times = ratios(p50[job], p50["floor"])
    yield Figure(what="p50 of a job / floor", samples=times, unit="x", at_most=1.4)
    over_nats, direct = "handler over NATS", "handler, job, HandlerClient"
    if over_nats in p50:
        times = ratios(p50[over_nats], p50[direct])
        what = f"p50 of a job over NATS / {direct}"
        yield Figure(what=what, samples=times, unit="x", at_most=1.5)
    for name, floor, least in LEAST:
        if name in rate and floor in rate:
            what, own = f"{name}, 64 in flight / {floor}", ratios(rate[name], rate[floor])
            yield Figure(what=what, samples=own, unit="x", at_least=least)


if __name__ == "__main__":
    sys.exit(main(__name__))

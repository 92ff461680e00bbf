"""HandlerClient and fan_out: many calls on one connection, peers that come, go and never were."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from contextlib import AsyncExitStack
from typing import Any

import psutil
import pytest
import zmq
import zmq.asyncio
from catalogzero import (
    BadRequestError,
    CallTimeoutError,
    CatalogZeroError,
    ConfigError,
    Handler,
    HandlerClient,
    UnreachableError,
    fan_out,
)
from catalogzero.testing import ManualClock, serving
from catalogzero.wire.messages import Reply

from tests.core.support import Bench, until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Random(Handler):
    """Answers in another order than it was asked."""

    async def later(self, value: int, steps: int) -> int:
        for _ in range(steps):
            await asyncio.get_running_loop().run_in_executor(None, int)
        return value


async def test_many_calls_on_one_connection_each_get_their_own_reply() -> None:
    chance = random.Random(4)  # noqa: S311 - not for secrets
    async with serving(Random(), max_concurrent_jobs=50, max_queued_jobs=1_000) as at:
        calls = [(n, chance.randrange(4)) for n in range(300)]
        replies = await asyncio.gather(
            *(at.client.call("later", {"value": n, "steps": s}) for n, s in calls)
        )
        assert replies == [n for n, _ in calls]


async def test_a_peer_that_is_not_there_is_unreachable_and_never_gets_the_call_later() -> None:
    port = free_port()
    bench = Bench()
    async with HandlerClient(f"tcp://127.0.0.1:{port}") as client:
        for _ in range(3):
            with pytest.raises(UnreachableError, match="is it running"):
                await client.call("count", timeout_s=0.1)
        async with serving(bench, port=port):
            assert (await client.ping(timeout_s=10))["status"] == "ok"
            assert bench.begun == []
            assert await client.call("count") == {"count": 1}


async def test_a_call_waits_for_a_peer_that_comes_in_time() -> None:
    port = free_port()
    async with HandlerClient(f"tcp://127.0.0.1:{port}") as client:
        call = asyncio.create_task(client.call("count", timeout_s=20))
        await asyncio.wait([call], timeout=0.1)
        async with serving(Bench(), port=port):
            assert await call == {"count": 1}


async def test_a_client_finds_its_handler_again_after_a_restart() -> None:
    port = free_port()
    async with HandlerClient(f"tcp://127.0.0.1:{port}") as client:
        boots = set()
        for _ in range(3):
            async with serving(Bench(), port=port):
                boots.add((await client.ping(timeout_s=10))["boot_id"])
        assert len(boots) == 3


async def answer_ping(peer: Any) -> None:
    """Answer the ping before a connection's first call, as a handler of ours does."""
    *envelope, frame = await peer.recv_multipart()
    call = json.loads(frame)
    assert call["method"] == "ping"
    body = {"success": True, "request_id": call["request_id"], "result": {}}
    await peer.send_multipart([*envelope, json.dumps(body).encode()])


async def test_a_call_to_one_that_answers_no_ping_is_never_sent() -> None:
    clock = ManualClock()
    context = zmq.asyncio.Context()
    mute = context.socket(zmq.ROUTER)
    port = mute.bind_to_random_port("tcp://127.0.0.1")
    async with HandlerClient(f"tcp://127.0.0.1:{port}", clock=clock) as client:
        call = asyncio.create_task(client.call("echo", timeout_s=5))
        assert b'"ping"' in (await mute.recv_multipart())[-1]
        await clock.advance(5)
        with pytest.raises(UnreachableError, match="did not answer a ping within 5 s"):
            await call
    mute.close(linger=0)
    context.term()


async def test_a_handler_that_does_not_answer_is_a_timeout_not_unreachable() -> None:
    clock = ManualClock()
    context = zmq.asyncio.Context()
    mute = context.socket(zmq.ROUTER)
    port = mute.bind_to_random_port("tcp://127.0.0.1")
    async with HandlerClient(f"tcp://127.0.0.1:{port}", clock=clock) as client:
        call = asyncio.create_task(client.call("echo", timeout_s=5))
        await answer_ping(mute)
        await mute.recv_multipart()
        await clock.advance(5)
        with pytest.raises(CallTimeoutError, match="did not reply within 5 s"):
            await call
    mute.close(linger=0)
    context.term()


async def test_a_late_reply_goes_to_nobody() -> None:
    clock = ManualClock()
    context = zmq.asyncio.Context()
    slow = context.socket(zmq.ROUTER)
    port = slow.bind_to_random_port("tcp://127.0.0.1")
    async with HandlerClient(f"tcp://127.0.0.1:{port}", clock=clock) as client:
        call = asyncio.create_task(client.request("echo", request_id="late", timeout_s=5))
        await answer_ping(slow)
        first = await slow.recv_multipart()
        await clock.advance(5)
        with pytest.raises(CallTimeoutError):
            await call
        second = asyncio.create_task(client.request("echo", request_id="next", timeout_s=5))
        envelope = (await slow.recv_multipart())[:-1]
        for request_id in ("late", "next"):
            body = f'{{"success": true, "request_id": "{request_id}", "result": "{request_id}"}}'
            await slow.send_multipart([*envelope, body.encode()])
        assert (await second).result == "next"
        assert first[-1]
    slow.close(linger=0)
    context.term()


async def test_plain_calls_go_one_at_a_time_and_a_late_reply_is_not_the_next_one() -> None:
    clock = ManualClock()
    context = zmq.asyncio.Context()
    slow = context.socket(zmq.ROUTER)
    port = slow.bind_to_random_port("tcp://127.0.0.1")
    async with HandlerClient(f"tcp://127.0.0.1:{port}", clock=clock) as client:
        call = asyncio.create_task(client.request_plain("a", timeout_s=5))
        envelope = (await slow.recv_multipart())[:-1]
        await clock.advance(5)
        with pytest.raises(CallTimeoutError):
            await call
        second = asyncio.create_task(client.request_plain("b", timeout_s=5))
        new_envelope = (await slow.recv_multipart())[:-1]
        await slow.send_multipart([*envelope, b'{"success": true, "of": "a"}'])
        await slow.send_multipart([*new_envelope, b'{"success": true, "of": "b"}'])
        assert (await second).result["of"] == "b"
    slow.close(linger=0)
    context.term()


@pytest.mark.parametrize("answer", [b"nonsense", b"[", b"\xff", b""])
async def test_a_reply_that_is_none_is_a_failure_of_a_plain_call(answer: bytes) -> None:
    context = zmq.asyncio.Context()
    odd = context.socket(zmq.REP)
    port = odd.bind_to_random_port("tcp://127.0.0.1")
    async with HandlerClient(f"tcp://127.0.0.1:{port}") as client:
        call = asyncio.create_task(client.request_plain("x", timeout_s=5))
        await odd.recv()
        await odd.send(answer)
        assert (await call).success is False
    odd.close(linger=0)
    context.term()


async def test_closing_ends_what_waits_and_a_closed_client_says_so() -> None:
    bench = Bench()
    async with serving(bench) as at:
        client = HandlerClient(at.address)
        call = asyncio.create_task(client.call("hold"))
        await until(lambda: bench.begun)
        client.close()
        client.close()
        with pytest.raises(CallTimeoutError, match="closed"):
            await call
        with pytest.raises(UnreachableError, match="closed"):
            await client.ping()


async def test_closing_distinguishes_a_call_that_was_never_sent_from_one_that_was() -> None:
    client = HandlerClient(f"tcp://127.0.0.1:{free_port()}")
    call = asyncio.create_task(client.ping())
    await asyncio.sleep(0)
    client.close()
    with pytest.raises(UnreachableError, match="closed"):
        await call


async def test_one_request_id_twice_at_once_is_refused_here() -> None:
    bench = Bench()
    async with serving(bench) as at:
        call = asyncio.create_task(at.client.call("hold", request_id="r"))
        await until(lambda: bench.begun)
        with pytest.raises(BadRequestError, match="under way"):
            await at.client.call("hold", request_id="r")
        bench.gate.set()
        await call


@pytest.mark.parametrize("address", ["nowhere", "tcp://", "tcp://host", "http://127.0.0.1:1"])
async def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="tcp://host:port"):
        HandlerClient(address)


async def test_a_thousand_calls_cancelled_at_random_leave_nothing_behind() -> None:
    chance = random.Random(7)  # noqa: S311 - not for secrets
    process = psutil.Process()
    async with serving(Random(), max_concurrent_jobs=8, max_queued_jobs=2_000) as at:
        await asyncio.gather(*(at.client.call("later", {"value": 0, "steps": 1}) for _ in "1234"))
        await at.client.call("get_metrics")
        before = process.num_fds(), len(asyncio.all_tasks()), len(process.net_connections())
        calls = [
            asyncio.create_task(
                at.client.call("later", {"value": n, "steps": 2}, request_id=f"r{n}")
            )
            for n in range(1_000)
        ]
        while pending := [call for call in calls if not call.done()]:
            for call in chance.sample(pending, min(len(pending), 20)):
                call.cancel()
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        finished = [call.result() for call in calls if not call.cancelled()]
        assert len(finished) < 1_000
        await until(lambda: _drained(at.client))
        for n in range(1_000):  # one that was left behind would still hold its id
            params = {"value": n, "steps": 2}
            assert await at.client.call("later", params, request_id=f"r{n}") == n
        await until(lambda: len(asyncio.all_tasks()) == before[1])
        assert (process.num_fds(), len(process.net_connections())) == (before[0], before[2])


async def _drained(client: HandlerClient) -> bool:
    metrics = await client.call("get_metrics")
    return bool(metrics["in_flight"] == metrics["queued"] == 0)


async def test_fan_out_asks_all_at_once_and_says_why_of_each() -> None:
    async with AsyncExitStack() as stack:
        served = [await stack.enter_async_context(serving(Bench())) for _ in range(5)]
        dead = await stack.enter_async_context(HandlerClient(f"tcp://127.0.0.1:{free_port()}"))
        clients = {f"h{n}": at.client for n, at in enumerate(served)} | {"dead": dead}
        replies = await fan_out(clients, "echo", {"value": 5}, timeout_s=0.5)

        assert list(replies) == [*(f"h{n}" for n in range(5)), "dead"]
        assert isinstance(replies["dead"], UnreachableError)
        assert [_result(replies[f"h{n}"]) for n in range(5)] == [5] * 5


def _result(reply: Reply | CatalogZeroError) -> Any:
    assert isinstance(reply, Reply)
    return reply.result


@pytest.mark.timeout(120)
async def test_a_thousand_peers_of_which_fifty_are_dead_cost_one_timeout() -> None:
    context = zmq.asyncio.Context()
    context.set(zmq.MAX_SOCKETS, 4_000)
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        peers = [context.socket(zmq.REP) for _ in range(950)]
        ports = [peer.bind_to_random_port("tcp://127.0.0.1") for peer in peers]
        answering = [asyncio.create_task(_answer_pings(peer)) for peer in peers]
        held = [stack.enter_context(socket.socket()) for _ in range(50)]  # nobody listens there
        for one in held:
            one.bind(("127.0.0.1", 0))
        clients = {
            f"h{n}": await stack.enter_async_context(HandlerClient(f"tcp://127.0.0.1:{port}"))
            for n, port in enumerate([*ports, *(one.getsockname()[1] for one in held)])
        }
        there = {name: clients[name] for name in list(clients)[:950]}
        await fan_out(there, "ping", timeout_s=30)
        began_s = loop.time()
        replies = await fan_out(clients, "ping", timeout_s=2)
        took_s = loop.time() - began_s

        alive = [reply for reply in replies.values() if isinstance(reply, Reply)]
        dead = [reply for reply in replies.values() if isinstance(reply, UnreachableError)]
        assert (len(alive), len(dead)) == (950, 50)
        print(f"fan_out to 1,000 peers with a timeout of 2 s: {took_s:.2f} s")  # noqa: T201 - a figure
        for task in answering:
            task.cancel()
        await asyncio.wait(answering)
        for peer in peers:
            peer.close(linger=0)
    context.term()


async def _answer_pings(peer: Any) -> None:
    while True:
        call = json.loads(await peer.recv())
        body = {"success": True, "request_id": call["request_id"], "result": "pong"}
        await peer.send(json.dumps(body).encode())

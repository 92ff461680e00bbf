"""Calls and replies that are too long, and connections that break: one fault, one call."""

from __future__ import annotations

import asyncio

import pytest
import zmq
import zmq.asyncio
from catalogzero import CallTimeoutError, HandlerClient, TooLargeError
from catalogzero.testing import serving
from catalogzero.wire.zeromq import MAX_REPLY_BYTES

from tests.core.plain import PlainHandler
from tests.core.support import Bench, until

TOO_LONG = b'"' + b"x" * MAX_REPLY_BYTES + b'"'


@pytest.mark.parametrize(("limit", "length"), [(1 << 20, 2 << 20), (20_000, 30_000)])
async def test_a_call_that_is_too_long_is_refused_and_cuts_no_other(
    limit: int, length: int
) -> None:
    bench = Bench()
    async with serving(bench, max_message_bytes=limit) as at:
        await at.client.ping()
        call = asyncio.create_task(at.client.call("hold"))
        await until(lambda: bench.begun)
        with pytest.raises(TooLargeError, match=f"at most {limit:,} bytes"):
            await at.client.call("echo", {"value": "x" * length})
        bench.gate.set()
        await call


async def test_a_handler_that_takes_more_is_sent_more() -> None:
    async with serving(Bench(), max_message_bytes=4 << 20) as at:
        assert await at.client.call("echo", {"value": "x" * (2 << 20)}) == "x" * (2 << 20)


async def test_a_plain_handler_is_sent_whatever_there_is() -> None:
    with PlainHandler({"work": b"1"}) as plain:
        async with HandlerClient(plain.address) as client:
            assert await client.call("work", {"value": "x" * (2 << 20)}) == 1


async def test_a_reply_that_is_too_long_is_refused_and_the_next_call_goes_on() -> None:
    with PlainHandler({"work": TOO_LONG, "list": TOO_LONG[2:]}) as plain:
        async with HandlerClient(plain.address) as client:
            for asked in (client.request, client.request_plain):
                with pytest.raises(CallTimeoutError, match="broke before a reply came"):
                    await asked("work", timeout_s=600)
                assert (await client.ping())["message"] == "pong"


async def test_a_connection_that_breaks_ends_its_calls_at_once() -> None:
    context = zmq.asyncio.Context()
    mute = context.socket(zmq.ROUTER)
    port = mute.bind_to_random_port("tcp://127.0.0.1")
    async with HandlerClient(f"tcp://127.0.0.1:{port}") as client:
        call = asyncio.create_task(client.call("echo", timeout_s=600))
        await mute.recv_multipart()
        mute.close(linger=0)
        with pytest.raises(CallTimeoutError, match="broke before a reply came"):
            await call
        async with serving(Bench(), port=port):
            assert (await client.ping(timeout_s=20))["status"] == "ok"
    context.term()


async def test_the_calls_beside_one_whose_reply_is_too_long_are_found_again() -> None:
    bench = Bench()
    async with serving(bench, max_message_bytes=2 * MAX_REPLY_BYTES) as at:
        await at.client.ping()
        hold = asyncio.create_task(at.client.call("hold", request_id="mine", timeout_s=600))
        await until(lambda: bench.begun)
        with pytest.raises(CallTimeoutError, match="broke"):
            await at.client.call("echo", {"value": TOO_LONG.decode()}, timeout_s=600)
        with pytest.raises(CallTimeoutError, match="broke"):
            await hold
        again = asyncio.create_task(at.client.call("hold", request_id="mine", timeout_s=600))
        bench.gate.set()
        await again
        assert bench.begun == [""]

"""Plain handlers, as ScheduleZero's are: any JSON is a result, known by being the one in flight."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from catalogzero import CallTimeoutError, FailedError, HandlerClient, UnreachableError
from catalogzero.testing import serving
from catalogzero.wire.messages import encode_json, parse_json

from tests.core.plain import PlainHandler
from tests.core.support import Bench, until

LONG = 123456789012345678901234567890
RESULTS = [
    (b'{"success": true, "rows": 3}', {"rows": 3}),
    (b'{"rows": 3}', {"rows": 3}),
    (b'{"success": true, "request_id": "order-7"}', {"request_id": "order-7"}),
    (b'{"success": true, "request_id": 7, "result": 1}', {"request_id": 7, "result": 1}),
    (b'{"success": true, "result": {"a": 1}}', {"result": {"a": 1}}),
    (b'{"success": true, "result": [1]}', [1]),
    (b"[1, 2]", [1, 2]),
    (b'"done"', "done"),
    (b"5", 5),
    (b"null", None),
    (b'{"a": NaN, "b": [Infinity, -Infinity, 1e999]}', {"a": None, "b": [None, None, None]}),
    (b'{"n": %d, "m": -%d}' % (LONG, LONG), {"n": LONG, "m": -LONG}),
    (b'{"n": %s}' % (b"1" * 5_000), {"n": "1" * 5_000}),
    (b'{"half": "a\\ud800", "whole": "\\ud83d\\ude00"}', {"half": "a?", "whole": "\U0001f600"}),
]


@pytest.mark.parametrize(("sent", "result"), RESULTS)
async def test_any_json_is_the_result_of_the_call_in_flight(sent: bytes, result: Any) -> None:
    with PlainHandler({"work": sent}) as plain:
        async with HandlerClient(plain.address) as client:
            assert await client.call("work", timeout_s=20) == result
            assert await client.call("work", {"a": 1}, timeout_s=20) == result
            assert client.is_plain
            assert (await client.request_plain("work", timeout_s=20)).success
        assert plain.called("work")[1:] == [
            {"method": "work", "params": {"a": 1}},
            {"method": "work", "params": {}},
        ]


@pytest.mark.parametrize("sent", [b"nonsense", b"", b"\xff", b"{", b"[" * 100_000, b'{"a": 1} x'])
async def test_what_is_not_json_is_an_error_and_the_connection_goes_on(sent: bytes) -> None:
    with PlainHandler({"work": sent}) as plain:
        async with HandlerClient(plain.address) as client:
            for reply in (
                await client.request("work", timeout_s=20),
                await client.request("work", timeout_s=20),
                await client.request_plain("work", timeout_s=20),
            ):
                assert (reply.success, reply.code) == (False, "bad_reply")
                assert "not JSON" in reply.error
            assert (await client.ping())["message"] == "pong"
        assert len(plain.called("work")) == 3


async def test_a_refusal_is_raised_with_its_text() -> None:
    with PlainHandler({"work": b'{"success": false, "error": "no such table"}'}) as plain:
        async with HandlerClient(plain.address) as client:
            with pytest.raises(FailedError, match="no such table"):
                await client.call("work", timeout_s=20)


@pytest.mark.parametrize("known", [False, True])
async def test_a_late_reply_is_never_the_next_call_s(known: bool) -> None:
    gone_on = threading.Event()

    def slowly() -> bytes:
        gone_on.wait(30)
        return b'{"of": "slow"}'

    with PlainHandler({"slow": slowly, "quick": b'{"of": "quick"}'}) as plain:
        async with HandlerClient(plain.address) as client:
            if known:
                await client.ping()
            with pytest.raises(CallTimeoutError):
                await client.call("slow", timeout_s=0.5)
            following = asyncio.create_task(client.call("quick", timeout_s=20))
            await until(lambda: plain.called("slow"))
            gone_on.set()
            assert await following == {"of": "quick"}


@pytest.mark.parametrize("first", ["ping", "a", "slow"])
async def test_calls_made_at_once_each_get_their_own_reply(first: str) -> None:
    both = threading.Event()

    def slowly() -> bytes:
        both.wait(0.5)  # longer than the client waits before it pings beside
        return b'{"of": "slow"}'

    names = [first, *"bcdefgh"]
    answers = {name: json.dumps({"of": name}).encode() for name in ("ping", "a", *"bcdefgh")}
    with PlainHandler({**answers, "slow": slowly}) as plain:
        async with HandlerClient(plain.address) as client:
            results = await asyncio.gather(*(client.call(name, timeout_s=20) for name in names))
    assert [result["of"] for result in results] == names


async def test_a_call_whose_turn_does_not_come_is_not_sent() -> None:
    gone_on = threading.Event()

    def slowly() -> bytes:
        gone_on.wait(30)
        return b"1"

    with PlainHandler({"slow": slowly, "quick": b"2"}) as plain:
        async with HandlerClient(plain.address) as client:
            await client.ping()
            call = asyncio.create_task(client.call("slow", timeout_s=20))
            await until(lambda: plain.called("slow"))
            with pytest.raises(UnreachableError, match="busy with another call"):
                await client.call("quick", timeout_s=0.1)
            gone_on.set()
            assert await call == 1
            await client.ping()
        assert plain.called("quick") == []


async def test_a_cancelled_call_s_reply_is_nobody_s() -> None:
    gone_on = threading.Event()

    def slowly() -> bytes:
        gone_on.wait(30)
        return b'{"of": "slow"}'

    with PlainHandler({"slow": slowly, "quick": b'{"of": "quick"}'}) as plain:
        async with HandlerClient(plain.address) as client:
            call = asyncio.create_task(client.call("slow", timeout_s=20))
            await until(lambda: plain.called("slow"))
            call.cancel()
            following = asyncio.create_task(client.call("quick", timeout_s=20))
            await asyncio.wait([call])
            gone_on.set()
            assert await following == {"of": "quick"}


async def test_a_plain_call_to_a_handler_of_ours_cuts_none_of_its_others() -> None:
    bench = Bench()
    async with serving(bench) as at:
        call = asyncio.create_task(at.client.call("hold"))
        await until(lambda: bench.begun)
        with pytest.raises(CallTimeoutError):
            await at.client.request_plain("hold", timeout_s=0.2)
        assert (await at.client.request_plain("ping")).result["success"] is True
        bench.gate.set()
        await call
        assert not at.client.is_plain


async def test_a_handler_of_ours_in_a_plain_one_s_place_is_found_out() -> None:
    with PlainHandler({}) as plain:
        client = HandlerClient(plain.address)
        await client.ping()
        assert client.is_plain
    async with serving(Bench(), port=int(plain.address.rpartition(":")[2])), client:

        async def known() -> bool:
            reply = await client.request("ping", timeout_s=1)
            return reply.request_id is not None

        await until(lambda: _soon(known()))


async def _soon(asked: Any) -> bool:
    try:
        return bool(await asked)
    except (CallTimeoutError, ConnectionError):
        return False


@pytest.mark.parametrize("value", [LONG, -LONG, [LONG, {"n": (LONG,)}], 1 << 64, -(1 << 63) - 1])
def test_integers_of_any_length_are_written_and_read_with_every_digit(value: Any) -> None:
    assert parse_json(encode_json(value)) == json.loads(json.dumps(value))

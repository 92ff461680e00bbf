"""`HandlerClient.run` and `catalogzero call`: until the handler has judged, through restarts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from catalogzero import CallTimeoutError, CatalogZeroError, HandlerClient, UnreachableError
from catalogzero.testing import serving
from catalogzero.wire.transport import OnAbsent, OnReply, Peer
from catalogzero.wire.zeromq import ZeroMQ

from tests.core.support import Bench, finished, until

CALL_S = 30.0


class Lossy:
    """A transport that loses what comes while it `loses`."""

    def __init__(self) -> None:
        self.loses = False
        self.serve = ZeroMQ().serve

    def connect(
        self,
        address: str,
        on_reply: OnReply,
        on_writable: Callable[[], None],
        on_absent: OnAbsent,
    ) -> Peer:
        """A connection whose replies may be lost."""

        def heard(payload: bytes | CatalogZeroError) -> None:
            if not self.loses:
                on_reply(payload)

        return ZeroMQ().connect(address, heard, on_writable, on_absent)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_an_absent_handler_is_waited_for() -> None:
    port = free_port()
    async with HandlerClient(f"tcp://127.0.0.1:{port}") as client:
        running = asyncio.create_task(client.run("count", timeout_s=CALL_S))
        await asyncio.wait([running], timeout=0.2)
        async with serving(Bench(), port=port):
            assert (await running).result == {"count": 1}


async def test_a_handler_that_stays_away_is_unreachable_within_the_caller_s_time() -> None:
    async with HandlerClient(f"tcp://127.0.0.1:{free_port()}") as client:
        with pytest.raises(UnreachableError):
            await client.run("count", timeout_s=0.3)


async def test_a_draining_handler_is_waited_for_under_another_id() -> None:
    bench = Bench()
    async with serving(bench) as at:
        await at.client.call("drain")
        sent: list[str] = []
        running = asyncio.create_task(at.client.run("count", timeout_s=CALL_S, on_send=sent.append))
        await until(lambda: len(sent) > 1)
        assert not running.done()
        await at.client.call("resume")
        reply = await running

    assert reply.result == {"count": 1}
    assert len(set(sent)) == len(sent)


async def test_a_refusal_is_the_answer_when_the_time_is_over() -> None:
    async with serving(Bench()) as at:
        await at.client.call("drain")
        reply = await at.client.run("count", timeout_s=0.5)

    assert reply.code == "draining"


async def test_a_restart_in_the_middle_of_a_run_ends_the_call_at_once() -> None:
    port, first, second = free_port(), Bench(), Bench()
    lossy = Lossy()
    async with HandlerClient(f"tcp://127.0.0.1:{port}", transport=lossy) as client:
        async with serving(first, port=port, drain_timeout_s=0):
            running = asyncio.create_task(client.run("hold", timeout_s=3_600))
            await until(lambda: first.begun)
            lossy.loses = True  # the reply of the end
        lossy.loses = False
        async with serving(second, port=port):
            reply = await asyncio.wait_for(running, CALL_S)

    assert (reply.success, reply.code) == (False, "expired")
    assert "restarted" in reply.error
    assert second.begun == []


async def test_a_run_that_outlasts_the_wait_goes_on_and_ran_once() -> None:
    bench = Bench()
    async with serving(bench) as at:
        with pytest.raises(CallTimeoutError):
            await at.client.run("hold", timeout_s=0.3)

        assert len(bench.begun) == 1
        bench.gate.set()


async def test_a_control_method_is_sent_once_as_nothing_would_know_it_again() -> None:
    sent: list[str] = []
    async with serving(Bench()) as at:
        reply = await at.client.run("get_metrics", timeout_s=CALL_S, on_send=sent.append)

    assert reply.result["handler_id"] == "bench"
    assert sent == []


def test_the_command_line_waits_for_a_handler_as_long_as_it_is_asked_to(tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"

    absent = finished("call", address, "count", "--timeout-s", "0.5", cwd=tmp_path)

    assert absent.returncode == 4

"""What a handler keeps in memory for callers: outcomes, waiters, control calls, descriptions."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from catalogzero import Handler, HandlerClient, StartBy
from catalogzero.runtime import methods, runs
from catalogzero.testing import serving

from tests.core.support import Bench, RawPeer, until


class Wordy(Handler):
    """Fails with as many words as there may be."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[int] = []

    async def fail(self, number: int) -> None:
        """Fails."""
        self.begun.append(number)
        raise ValueError("x" * 20_000)


async def test_outcomes_inside_the_window_are_bounded_in_bytes_and_never_run_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs, "MAX_BYTES", 100_000)
    monkeypatch.setattr(runs, "MAX_OUTCOME_BYTES", 100_000)
    wordy = Wordy()
    async with serving(wordy) as at:

        async def fail(number: int, start_by: StartBy | None = None) -> tuple[str, StartBy]:
            pong = await at.client.ping()
            start_by = start_by or StartBy(pong["boot_id"], pong["uptime_s"] + 600)
            reply = await at.client.request(
                "fail", {"number": number}, request_id=f"r{number}", start_by=start_by
            )
            return reply.code, start_by

        made = [await fail(number) for number in range(300)]
        assert {code for code, _ in made} == {"failed"}
        listed = await at.client.call("list_runs", {"limit": 1_000})
        assert len(listed["runs"]) < 120  # of 1,200 bytes each, and some whole
        assert (await fail(299, made[299][1]))[0] == "failed"
        assert (await fail(0, made[0][1]))[0] == "expired"
        assert (await fail(300))[0] == "failed"
    assert wordy.begun == [*range(301)]


async def test_progress_counts_among_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "MAX_BYTES", 100_000)

    class Slow(Handler):
        async def tell(self) -> None:
            """Tells much."""
            self.report_progress(note="x" * 10_000)

    async with serving(Slow()) as at:
        for _ in range(30):
            await at.client.call("tell")
        assert len((await at.client.call("list_runs"))["runs"]) < 10


async def test_so_many_may_wait_for_one_run_and_the_next_is_told_that_it_goes_on() -> None:
    bench = Bench()
    async with serving(bench) as at, RawPeer(at.address) as peer:
        call = json.dumps({"method": "hold", "request_id": "r"}).encode()
        for _ in range(65):
            await peer.send(call)
        refused = await peer.receive()
        assert (refused["code"], refused["details"]["running"]) == ("busy", True)
        bench.gate.set()
        replies = [await peer.receive() for _ in range(64)]
        assert {reply["run_id"] for reply in replies} == {refused["details"]["run_id"]}
    assert bench.begun == [""]


async def test_a_handler_is_described_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    describe = methods.Method.describe

    def counted(self: methods.Method) -> dict[str, Any]:
        nonlocal made
        made += 1
        return describe(self)

    monkeypatch.setattr(methods.Method, "describe", counted)
    bench = Bench()
    async with serving(bench) as at:
        first, *others = await asyncio.gather(*(at.client.call("describe") for _ in range(5)))
        assert made == len(bench.callable_methods())
        assert [other["methods"] for other in others] == [first["methods"]] * 4


async def test_control_calls_of_one_peer_are_bounded_and_hold_up_no_other() -> None:
    bench = Bench()
    async with serving(bench) as at, RawPeer(at.address) as peer:
        held = asyncio.create_task(at.client.call("hold"))
        await until(lambda: bench.begun)
        for number in range(100):
            await peer.send(b'{"method": "drain", "request_id": %d}' % number)
        refused = [await peer.receive() for _ in range(36)]
        assert {reply["code"] for reply in refused} == {"busy"}
        assert [reply["request_id"] for reply in refused] == [*range(64, 100)]
        async with HandlerClient(at.address) as other:
            assert (await other.call("get_metrics"))["in_flight"] == 1
        bench.gate.set()
        await held
        assert {(await peer.receive())["success"] for _ in range(64)} == {True}
        await peer.send(b'{"method": "drain", "request_id": "again"}')
        assert (await peer.receive())["success"] is True

"""What a handler keeps in memory for callers: outcomes, waiters, control calls, descriptions."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any, ClassVar

import pytest
from catalogzero import Handler, HandlerClient, HandlerSettings, StartBy
from catalogzero.errors import ExpiredError
from catalogzero.runtime.jobs import Boot, Jobs
from catalogzero.runtime.runs import MAX_BYTES, MAX_RUNS, Runs
from catalogzero.runtime.sleep import Sleeper
from catalogzero.testing import serving
from catalogzero.wire.messages import Call, Reply, decode_reply
from catalogzero.wire.transport import Envelope
from catalogzero.wire.waiting import Waiting

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


class World:
    """The jobs of a handler without a socket, and few bytes to remember them in."""

    def __init__(self, handler: Handler) -> None:
        clock = handler.clock
        boot = Boot("boot", clock.monotonic(), 1 << 20)
        self.runs = Runs(
            window_s=600,
            started_s=boot.started_s,
            clock=clock,
            max_bytes=100_000,
            max_outcome_bytes=100_000,
        )
        self.replies: dict[bytes, Reply] = {}
        waiting = Waiting(self._take, clock)
        self.jobs = Jobs(handler, self.runs, Sleeper(handler, lambda: None), boot, waiting)

    def _take(self, envelope: Envelope, frame: bytes) -> None:
        self.replies[envelope[0]] = decode_reply(frame)

    async def call(self, peer: str, call: Call) -> Reply:
        """The reply to one call."""
        self.replies.pop(peer.encode(), None)
        self.jobs.accept(call, [peer.encode()])
        await until(lambda: peer.encode() in self.replies)
        return self.replies[peer.encode()]


async def test_outcomes_inside_the_window_are_bounded_in_bytes_and_never_run_twice() -> None:
    wordy = Wordy()
    at = World(wordy)

    async def fail(number: int) -> str:
        call = Call("fail", {"number": number}, f"r{number}", None, StartBy("boot", 500 + number))
        return (await at.call(f"{number}", call)).code

    assert {await fail(number) for number in range(300)} == {"failed"}
    assert len(at.runs.newest(1_000, None, None)) < 120  # of 1,200 bytes each, and some whole
    assert await fail(299) == "failed"
    with pytest.raises(ExpiredError, match="too many ran since"):
        await fail(0)
    assert await fail(300) == "failed"
    assert wordy.begun == [*range(301)]


def test_what_is_remembered_holds_as_much_memory_as_is_counted_and_no_more_than_it_may() -> None:
    """As Python's allocator counts it, in a process of its own."""
    command = [sys.executable, "-m", "tests.core.remembering"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout)

    assert found["small"]["runs"] == MAX_RUNS
    assert found["small"]["held"] <= 8_000_000, found
    for case in ("large", "failed"):  # as many as there is room for
        assert 0.9 * MAX_BYTES <= found[case]["counted"] <= MAX_BYTES, found
    assert found["outcomes"]["runs"] > MAX_RUNS
    for case in found.values():
        assert case["counted"] * 0.8 <= case["held"] <= case["counted"] * 1.1, found


async def test_progress_counts_among_what_is_kept() -> None:
    class Slow(Handler):
        async def report(self) -> None:
            """Reports much."""
            self.report_progress(note="x" * 10_000)

    at = World(Slow())
    for number in range(30):
        await at.call("one", Call("report", {}, f"r{number}"))

    assert len(at.runs.newest(1_000, None, None)) < 10


async def test_a_bounded_number_may_wait_for_one_run_and_the_next_is_reported_that_it_goes_on() -> (
    None
):
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


class Counting(HandlerSettings):
    """Counts how often they are described."""

    times: ClassVar[int] = 0

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The schema; making it takes long."""
        cls.times += 1
        return super().model_json_schema(*args, **kwargs)


class Described(Bench):
    settings_model = Counting


async def test_a_handler_is_described_once() -> None:
    async with serving(Described()) as at:
        first, *others = await asyncio.gather(*(at.client.call("describe") for _ in range(5)))

    assert Counting.times == 1
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

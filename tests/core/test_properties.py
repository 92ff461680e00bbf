"""Whatever is sent, in whatever order: no crash, no lost reply, no reply to the wrong caller."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
import zmq
from catalogzero import Handler, job
from catalogzero.testing import ManualClock, Serving, serving
from catalogzero.testing.clocks import settle
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

pytestmark = [pytest.mark.timeout(180)]

EXAMPLES = settings(
    max_examples=1_000,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(), SCALARS, max_size=2)


class Stage(Handler):
    """Jobs of every kind, each of which gives back the token of its call."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.broken = False
        self.together = 0
        self.most_together = 0

    async def hold(self, token: str) -> str:
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        try:
            await self.gate.wait()
        finally:
            self.together -= 1
        return token

    async def echo(self, token: Any = None) -> Any:
        return token

    def thread(self, token: str) -> str:
        return token

    @job(quiet=True)
    async def peek(self, token: str) -> str:
        return token

    async def fail(self, token: str) -> None:
        raise ValueError(token)

    def _release_resources(self) -> None:
        if self.broken:
            raise OSError("release")

    def _ensure_resources(self) -> None:
        if self.broken:
            raise OSError("ensure")


class Hall:
    """A served handler on a loop of its own, and blocking peers that speak to it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        self.clock = ManualClock()
        self.stage = Stage()
        self.at: Serving = self.run(
            self.stack.enter_async_context(
                serving(self.stage, clock=self.clock, max_concurrent_jobs=2, max_queued_jobs=3)
            )
        )
        self.context = zmq.Context()
        self.peers = [self.peer() for _ in range(2)]

    def peer(self) -> zmq.Socket[bytes]:
        """A connected DEALER."""
        socket = self.context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(self.at.address)
        return socket

    def run(self, work: Any) -> Any:
        """Let the loop do something to its end."""
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        """Stop serving."""
        for peer in self.peers:
            peer.close()
        self.context.term()
        self.run(self.stack.aclose())
        self.loop.close()

    def ask(self, *frames: bytes) -> Any:
        """Send frames and wait for one reply."""
        self.peers[0].send_multipart(frames)
        return json.loads(self.receive(self.peers[0])[-1])

    def receive(self, peer: zmq.Socket[bytes]) -> list[bytes]:
        """One message of a peer; the loop runs until it is there."""

        async def wait() -> list[bytes]:
            async with asyncio.timeout(20):
                while not peer.poll(0):
                    await settle()
            return peer.recv_multipart()

        found: list[bytes] = self.run(wait())
        return found


@pytest.fixture(scope="module")
def hall() -> Iterator[Hall]:
    made = Hall()
    yield made
    made.close()


@EXAMPLES
@given(frame=st.binary(max_size=400))
def test_any_bytes_get_one_reply(hall: Hall, frame: bytes) -> None:
    reply = hall.ask(frame)
    assert reply["success"] is False
    assert reply["code"] in ("bad_request", "unknown_method", "bad_params")


@EXAMPLES
@given(frames=st.lists(st.binary(max_size=30), min_size=1, max_size=12))
def test_any_frames_leave_the_handler_answering(hall: Hall, frames: list[bytes]) -> None:
    hall.peers[0].send_multipart(frames)
    marker = b'{"method": "ping", "request_id": "marker"}'
    reply = hall.ask(marker)
    while reply.get("request_id") != "marker":
        assert reply["success"] is False
        reply = json.loads(hall.receive(hall.peers[0])[-1])
    assert reply["result"]["status"] == "ok"


FIELDS = {
    "method": st.sampled_from(
        ["echo", "fail", "peek", "ping", "get_metrics", "list_runs", "get_run", "cancel", "wake"]
    )
    | JSON,
    "params": st.dictionaries(
        st.sampled_from(["token", "run_id", "request_id", "limit", "status"]) | st.text(max_size=5),
        JSON,
        max_size=3,
    )
    | JSON,
    "request_id": st.uuids().map(str) | JSON,
    "timeout_s": st.floats(min_value=0, allow_infinity=False) | JSON,
    "start_by": st.fixed_dictionaries({"boot_id": st.text(), "uptime_s": st.floats()}) | JSON,
    "more": JSON,
}
CALLS = st.fixed_dictionaries({}, optional=FIELDS) | JSON


@EXAMPLES
@given(call=CALLS)
def test_any_json_as_a_call_gets_one_reply_of_the_right_shape(hall: Hall, call: Any) -> None:
    if isinstance(call, dict) and call.get("timeout_s") == 0:
        call["timeout_s"] = 1
    reply = hall.ask(json.dumps(call).encode())
    assert reply["success"] in (True, False)
    if not reply["success"]:
        assert isinstance(reply["error"], str)
        assert isinstance(reply["code"], str)
        assert reply["retryable"] in (True, False)
    if "request_id" in reply and reply["success"]:
        assert isinstance(call, dict)
        assert reply["request_id"] == call["request_id"]
        assert "result" in reply


class AnyOrder(RuleBasedStateMachine):
    """Calls, repeats, sleeps, wakes, cancels, drains and time, in any order."""

    hall: ClassVar[Hall]
    numbers: ClassVar[Iterator[int]] = iter(range(10**9))
    sent: ClassVar[dict[str, bytes]] = {}
    kinds: ClassVar[dict[str, str]] = {}
    waiting: ClassVar[tuple[Counter[str], Counter[str]]] = (Counter(), Counter())

    @initialize()
    def begin(self) -> None:
        self.tokens: list[str] = []
        self.hall.stage.gate.clear()

    def _send(self, peer: int, method: str, params: dict[str, Any]) -> str:
        request_id = f"r{next(self.numbers)}"
        body = {"method": method, "params": params, "request_id": request_id}
        self.sent[request_id], self.kinds[request_id] = json.dumps(body).encode(), method
        self._put(peer, request_id)
        return request_id

    def _put(self, peer: int, request_id: str) -> None:
        self.hall.peers[peer].send(self.sent[request_id])
        self.waiting[peer][request_id] += 1

    @rule(peer=st.integers(0, 1), kind=st.sampled_from(["hold", "echo", "thread", "peek", "fail"]))
    def job(self, peer: int, kind: str) -> None:
        request_id = f"r{next(self.numbers)}"
        body = {"method": kind, "params": {"token": request_id}, "request_id": request_id}
        self.sent[request_id], self.kinds[request_id] = json.dumps(body).encode(), kind
        self.tokens.append(request_id)
        self._put(peer, request_id)

    @rule(peer=st.integers(0, 1), pick=st.integers(0, 1_000))
    def repeat(self, peer: int, pick: int) -> None:
        if self.tokens:
            self._put(peer, self.tokens[pick % len(self.tokens)])

    @rule(
        peer=st.integers(0, 1),
        method=st.sampled_from(["ping", "list_runs", "sleep", "wake", "drain", "resume"]),
    )
    def control(self, peer: int, method: str) -> None:
        self._send(peer, method, {})

    @rule(peer=st.integers(0, 1), pick=st.integers(0, 1_000))
    def cancel(self, peer: int, pick: int) -> None:
        if self.tokens:
            self._send(peer, "cancel", {"request_id": self.tokens[pick % len(self.tokens)]})

    @rule(opened=st.booleans())
    def gate(self, opened: bool) -> None:
        (self.hall.stage.gate.set if opened else self.hall.stage.gate.clear)()

    @rule(broken=st.booleans())
    def hooks(self, broken: bool) -> None:
        self.hall.stage.broken = broken

    @rule(seconds=st.sampled_from([0, 1, 59.5, 61, 301, 700]))
    def time(self, seconds: float) -> None:
        self.hall.run(self.hall.clock.advance(seconds))

    @rule()
    def pause(self) -> None:
        self.hall.run(settle())

    @invariant()
    def replies_are_right(self) -> None:
        for peer, socket in enumerate(self.hall.peers):
            while socket.poll(0):
                self._check(peer, json.loads(socket.recv()))
        assert self.hall.stage.most_together <= 2

    def _check(self, peer: int, reply: dict[str, Any]) -> None:
        request_id = reply["request_id"]
        kind = self.kinds[request_id]
        self.waiting[peer][request_id] -= 1
        assert self.waiting[peer][request_id] >= 0, f"a second reply to {kind} {request_id}"
        if reply["success"]:
            if kind in ("hold", "echo", "thread", "peek"):
                assert reply["result"] == request_id
            if kind in ("sleep", "wake", "drain", "resume"):
                states = ("active", "idle", "sleeping", "draining")
                assert reply["result"]["status"] in states
        elif kind == "fail" and reply["code"] == "failed":
            assert reply["error"] == f"ValueError: {request_id}"
        else:
            codes = ("busy", "draining", "cancelled", "wake_failed", "unknown_run")
            assert reply["code"] in codes

    def teardown(self) -> None:
        self.hall.stage.broken = False
        self.hall.stage.gate.set()
        for peer, socket in enumerate(self.hall.peers):
            while +self.waiting[peer]:
                self._check(peer, json.loads(self.hall.receive(socket)[-1]))
        self.control(0, "resume")
        self._check(0, json.loads(self.hall.receive(self.hall.peers[0])[-1]))


def test_any_order_of_calls_sleeps_wakes_and_cancels_loses_no_reply(hall: Hall) -> None:
    AnyOrder.hall = hall
    run_state_machine_as_test(AnyOrder, settings=settings(EXAMPLES, stateful_step_count=8))

"""Whatever is sent, in whatever order: no crash, no lost reply, no reply to the wrong caller."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar

import hypothesis.strategies as st
import psutil
import pytest
import zmq
from catalogzero.runtime.worker import ENDED, why_gone
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

from tests.core.stage import Stage
from tests.core.support import breathe, kill

pytestmark = [pytest.mark.timeout(400)]

EXAMPLES = settings(
    max_examples=1_000,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
PATIENCE = 50
"""Looks at a socket before it is left to others for a moment: a worker may be starting."""

JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(), SCALARS, max_size=2)


class Hall:
    """A served handler on a loop of its own, and blocking peers that speak to it.

    The last of the peers calls as ScheduleZero does, without a request_id.
    """

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        self.clock = ManualClock()
        self.stage = Stage(str(folder / "gate"))
        runtime = {"max_concurrent_jobs": 2, "max_queued_jobs": 3, "log_level": "error"}
        self.at: Serving = self.run(
            self.stack.enter_async_context(serving(self.stage, clock=self.clock, **runtime))
        )
        self.context = zmq.Context()
        self.peers = [self.peer() for _ in range(3)]
        pong = self.run(self.at.client.ping())
        self.boot_id = pong["boot_id"]
        self.started_s = self.clock.monotonic() - pong["uptime_s"]

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
            async with asyncio.timeout(60):
                for look in itertools.count():
                    if peer.poll(0):
                        return peer.recv_multipart()
                    await (settle() if look < PATIENCE else breathe())
            raise AssertionError("unreachable")

        found: list[bytes] = self.run(wait())
        return found


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hall]:
    before = set(psutil.Process().children())  # what starts the commands of other tests
    made = Hall(tmp_path_factory.mktemp("hall"))
    yield made
    made.close()
    assert set(psutil.Process().children()) <= before


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


KINDS = ["hold", "echo", "thread", "peek", "fail", "toil"]
CONTROLS = ["ping", "get_metrics", "list_runs", "sleep", "wake", "drain", "resume"]
NEVER_BEGUN = ("busy", "draining", "wake_failed", "expired")
KILLED = (ENDED, why_gone(-signal.SIGKILL))
FLAT = 2


class AnyOrder(RuleBasedStateMachine):
    """Calls, repeats, sleeps, wakes, cancels, drains, kills of the worker and time, in any order.

    Attributes:
        sent: The call of each request_id, as it was sent.
        bound: Those of them that carry a `start_by`.
        refused: Those of them that were answered as never begun.
        waiting: For each peer, how many replies to each request_id are still to come.
    """

    hall: ClassVar[Hall]
    numbers: ClassVar[Iterator[int]] = itertools.count()
    sent: ClassVar[dict[str, bytes]] = {}
    kinds: ClassVar[dict[str, str]] = {}
    bound: ClassVar[set[str]] = set()
    refused: ClassVar[set[str]] = set()
    waiting: ClassVar[tuple[Counter[str], ...]] = (Counter(), Counter(), Counter())
    examples: ClassVar[int] = 0
    kills: ClassVar[int] = 0

    @initialize()
    def begin(self) -> None:
        type(self).examples += 1
        self.tokens: list[str] = []
        self.hall.stage.shut()

    def _send(self, peer: int, method: str, params: Any, **more: Any) -> str:
        """A call; where no params are given, its own request_id is the token that comes back."""
        request_id = f"r{next(self.numbers)}"
        params = {"token": request_id} if params is None else params
        body = {"method": method, "params": params, "request_id": request_id, **more}
        if peer == FLAT:
            del body["request_id"]
        self.sent[request_id], self.kinds[request_id] = json.dumps(body).encode(), method
        self._put(peer, request_id)
        return request_id

    def _put(self, peer: int, request_id: str) -> None:
        self.hall.peers[peer].send(self.sent[request_id])
        self.waiting[peer][request_id] += 1

    @rule(peer=st.integers(0, 1), kind=st.sampled_from(KINDS))
    def job(self, peer: int, kind: str) -> None:
        self.tokens.append(self._send(peer, kind, None))

    @rule(
        peer=st.integers(0, 1), kind=st.sampled_from(KINDS), within_s=st.sampled_from([-1, 0, 90])
    )
    def job_with_start_by(self, peer: int, kind: str, within_s: float) -> None:
        uptime_s = max(0.0, self.hall.clock.monotonic() - self.hall.started_s + within_s)
        start_by = {"boot_id": self.hall.boot_id, "uptime_s": uptime_s}
        self.tokens.append(self._send(peer, kind, None, start_by=start_by))
        self.bound.add(self.tokens[-1])

    @rule(kind=st.sampled_from(KINDS))
    def job_of_schedulezero(self, kind: str) -> None:
        if not +self.waiting[FLAT]:
            self._send(FLAT, kind, None)

    @rule(peer=st.integers(0, 1), pick=st.integers(0, 1_000))
    def repeat(self, peer: int, pick: int) -> None:
        if self.tokens:
            self._put(peer, self.tokens[pick % len(self.tokens)])

    @rule(peer=st.integers(0, 1), method=st.sampled_from(CONTROLS))
    def control(self, peer: int, method: str) -> None:
        self._send(peer, method, {})

    @rule(peer=st.integers(0, 1), pick=st.integers(0, 1_000))
    def cancel(self, peer: int, pick: int) -> None:
        if self.tokens:
            self._send(peer, "cancel", {"request_id": self.tokens[pick % len(self.tokens)]})

    @rule()
    def kill_worker(self) -> None:
        pid = self.hall.stage.worker.pid
        if pid is not None:
            type(self).kills += 1
            with suppress(ProcessLookupError):
                kill(pid)

    @rule(opened=st.booleans())
    def gate(self, opened: bool) -> None:
        (self.hall.stage.open if opened else self.hall.stage.shut)()

    @rule(broken=st.booleans())
    def hooks(self, broken: bool) -> None:
        self.hall.stage.broken = broken

    @rule(seconds=st.sampled_from([0, 1, 9, 59.5, 61, 301, 700]))
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

    @invariant()
    def nothing_runs_that_may_not(self) -> None:
        stage = self.hall.stage
        assert stage.most_together <= 2
        assert all(stage.begun[token] <= 1 for token in self.bound.intersection(self.tokens))
        assert not any(stage.begun[token] for token in self.refused.intersection(self.tokens))

    def _check(self, peer: int, reply: dict[str, Any]) -> None:
        """Each reply goes to its caller, once, and is one that its call can have."""
        waiting = self.waiting[peer]
        request_id = next(iter(+waiting)) if peer == FLAT else reply["request_id"]
        kind = self.kinds[request_id]
        waiting[request_id] -= 1
        assert waiting[request_id] >= 0, f"a second reply to {kind} {request_id}"
        if reply["success"]:
            self._check_result(kind, request_id, reply)
        elif reply["code"] == "failed":
            texts = {"fail": (f"ValueError: {request_id}",), "toil": KILLED}
            assert reply["error"] in texts[kind]
        else:
            assert reply["code"] in (*NEVER_BEGUN, "cancelled", "unknown_run")
            if request_id in self.bound and reply["code"] in NEVER_BEGUN:
                self.refused.add(request_id)

    def _check_result(self, kind: str, request_id: str, reply: dict[str, Any]) -> None:
        result = reply.get("result", reply)
        if kind in KINDS:
            assert result == request_id or reply.get("status") == "running"
            assert kind != "fail" or reply.get("status") == "running"
        elif kind == "get_metrics":
            assert result["in_flight"] <= 2
            assert result["queued"] <= 3
        elif kind in ("sleep", "wake", "drain", "resume"):
            assert result["status"] in ("active", "idle", "sleeping", "draining")

    def teardown(self) -> None:
        self.hall.stage.broken = False
        self.hall.stage.open()
        for peer, socket in enumerate(self.hall.peers):
            while +self.waiting[peer]:
                self._check(peer, json.loads(self.hall.receive(socket)[-1]))
        self.control(0, "resume")
        self._check(0, json.loads(self.hall.receive(self.hall.peers[0])[-1]))


@pytest.mark.parametrize("examples", [250, pytest.param(1_000, marks=[pytest.mark.slow])])
def test_any_order_of_calls_sleeps_wakes_cancels_and_kills_loses_no_reply(
    hall: Hall, examples: int
) -> None:
    AnyOrder.hall, AnyOrder.examples, AnyOrder.kills = hall, 0, 0
    sizes = settings(EXAMPLES, max_examples=examples, stateful_step_count=8)
    run_state_machine_as_test(AnyOrder, settings=sizes)
    assert AnyOrder.examples >= examples
    assert AnyOrder.kills >= examples // 50

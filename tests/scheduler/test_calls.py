"""How executions are called: timeouts, retries, restarts, handlers that are away, plain ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from catalogzero import HandlerClient
from catalogzero.config.address import Address
from catalogzero.config.settings import MAX_MESSAGE_BYTES
from catalogzero.scheduler.dispatch import judge
from catalogzero.scheduler.links import Slots
from catalogzero.scheduler.models import Execution
from catalogzero.scheduler.server import SchedulerServer, SchedulerSettings, serve_scheduler
from catalogzero.testing import serving
from catalogzero.wire.messages import Reply, plain_result
from catalogzero.wire.zeromq import DealerPeer, RouterServer

from tests.core.plain import PlainHandler
from tests.scheduler.conftest import QUICK
from tests.scheduler.toys import Toy, ended, executions, toy, until

EVERY_HOUR = {"type": "interval", "hours": 1}


@pytest.fixture
async def scheduler(tmp_path: Path) -> AsyncIterator[SchedulerServer]:
    """A scheduler on SQLite: what is tested here is not the database."""
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    settings = SchedulerSettings(port=0, zmq_port=0, database=database, runner=QUICK)
    async with serve_scheduler(settings) as server:
        yield server


def call(method: str, **fields: Any) -> dict[str, Any]:
    """A schedule's request."""
    return {"handler_id": "toy", "job_method": method, "trigger": EVERY_HOUR, **fields}


async def test_a_run_over_its_schedule_s_timeout_is_cancelled_before_it_is_an_error(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api) as served:
        await api.post("/api/schedule", json=call("long", timeout_s=0.5))
        (record,) = await until(lambda: ended(api))
        runs = (await served.client.call("list_runs"))["runs"]

    assert record["status"] == "error"
    assert record["error"] == "cancelled: it took longer than timeout_s (0.5 s)"
    assert [run["status"] for run in runs] == ["cancelled"]


async def test_a_handler_that_others_keep_busy_is_called_less_at_once_and_then_more_again() -> None:
    slots, inside = Slots(), 0
    slots.allow(40)
    free = asyncio.Event()

    async def call_it() -> None:
        nonlocal inside
        async with slots:
            inside += 1
            await free.wait()
            inside -= 1

    async def most_inside() -> int:
        calls = [asyncio.create_task(call_it()) for _ in range(60)]
        for _ in range(200):  # each has gone as far as it can by then
            await asyncio.sleep(0)
        found = inside
        free.set()
        await asyncio.gather(*calls)
        free.clear()
        return found

    at_first = await most_inside()
    for _ in range(30):
        slots.answered(busy=True)
    when_busy = await most_inside()
    for _ in range(100):
        slots.answered(busy=True)
    at_least = await most_inside()
    for _ in range(10_000):
        slots.answered(busy=False)
    again = await most_inside()

    assert (at_first, when_busy, at_least, again) == (40, 10, 1, 40)


async def test_a_retry_safe_method_is_tried_again_and_another_is_not(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api):
        await api.post("/api/schedule", json=call("flaky", job_id="safe"))
        (safe,) = await until(lambda: ended(api, job_id="safe"))
        await api.post("/api/schedule", json=call("fail", job_id="unsafe"))
        (unsafe,) = await until(lambda: ended(api, job_id="unsafe"))

    assert (safe["status"], safe["attempt_number"], safe["result"]) == (
        "success",
        3,
        {"success": True, "starts": 3},
    )
    assert (unsafe["status"], unsafe["attempt_number"]) == ("error", 1)


@pytest.mark.parametrize(
    ("method", "error"), [("missing", "FileNotFoundError"), ("never", "no such customer")]
)
async def test_what_cannot_get_better_is_not_tried_again(
    scheduler: SchedulerServer, api: httpx.AsyncClient, method: str, error: str
) -> None:
    async with toy(scheduler.zmq_address, api) as served:
        handler = served.handler
        assert isinstance(handler, Toy)
        await api.post("/api/schedule", json=call(method))
        (record,) = await until(lambda: ended(api))

        assert handler.starts == 1
    assert (record["status"], record["attempt_number"]) == ("error", 1)
    assert error in record["error"]


@pytest.mark.parametrize(("max_attempts", "failures"), [(3, 0), (2, 1)])
async def test_a_handler_counts_runs_and_not_their_attempts(
    scheduler: SchedulerServer, api: httpx.AsyncClient, max_attempts: int, failures: int
) -> None:
    async with toy(scheduler.zmq_address, api) as served:
        await api.post("/api/schedule", json=call("flaky", max_attempts=max_attempts))
        (record,) = await until(lambda: ended(api))
        metrics = await served.client.call("get_metrics")

    assert record["attempt_number"] == max_attempts
    assert (metrics["runs_total"], metrics["failures_total"]) == (1, failures)
    assert bool(metrics["last_error"]) == bool(failures)


async def test_a_long_run_is_waited_for_call_after_call(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api) as served:
        handler = served.handler
        assert isinstance(handler, Toy)
        await api.post("/api/schedule", json=call("long"))
        await until(lambda: _seconds_running(api, 2.5 * QUICK.calls.wait_s))
        handler.going.set()
        (record,) = await until(lambda: ended(api))

        assert handler.starts == 1
    assert record["status"] == "success"


async def test_a_run_that_a_restart_ended_is_lost_and_not_run_again(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api, drain_timeout_s=0) as served:
        port = int(served.address.rpartition(":")[2])
        await api.post("/api/schedule", json=call("long"))
        await until(lambda: _started(served.handler))
    async with toy(scheduler.zmq_address, api, port=port) as again:
        (record,) = await until(lambda: ended(api))

        assert isinstance(again.handler, Toy)
        assert again.handler.starts == 0
    assert record["status"] in ("lost", "error")
    assert record["error"]


async def test_a_handler_that_comes_back_elsewhere_gets_the_call_late(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api):
        pass
    await api.post("/api/schedule", json=call("quick"))
    await until(lambda: _seconds_running(api, 1.5))
    async with toy(scheduler.zmq_address, api):
        (record,) = await until(lambda: ended(api))

    assert (record["status"], record["late"]) == ("success", True)


async def test_a_handler_that_stays_away_past_the_grace_is_a_missed_tick(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api):
        pass
    await api.post("/api/schedule", json=call("quick", misfire_grace_s=0.5))
    (record,) = await until(lambda: ended(api))

    assert record["status"] == "missed"
    assert "the handler was not there in time" in record["error"]


async def test_run_now_says_in_time_that_its_handler_is_away(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api):
        pass
    answer = await api.post("/api/run_now", json=call("quick", misfire_grace_s=0.2))
    (record,) = await ended(api)

    assert answer.status_code == 500
    assert "the handler was not there in time" in answer.json()["error"]["message"]
    assert record["status"] == "missed"


class Strange:
    """A handler that answers every ping with the same promise, which it does not keep."""

    def __init__(self, **ping: Any) -> None:
        self._ping = ping
        self._server = RouterServer(self._on_message)
        self.address = str(self._server.bind(Address("127.0.0.1")))

    def close(self) -> None:
        """Stop listening."""
        self._server.unbind()

    def _on_message(self, envelope: Any, payload: bytes) -> None:
        known = {"request_id": orjson.loads(payload).get("request_id")}
        answer = {"success": True, **known, "result": self._ping, **self._ping}
        self._server.send(envelope, orjson.dumps(answer))


@pytest.mark.parametrize(
    "ping",
    [
        {"boot_id": "b", "uptime_s": "soon", "dedupe_window_s": 600},
        {"boot_id": "b"},
        {"boot_id": "b", "uptime_s": 1, "dedupe_window_s": 1e999},
    ],
)
async def test_a_handler_whose_ping_makes_no_sense_ends_its_own_runs_only(
    scheduler: SchedulerServer, api: httpx.AsyncClient, ping: dict[str, Any]
) -> None:
    strange = Strange(**ping)
    async with HandlerClient(scheduler.zmq_address) as wire:
        given = {"handler_id": "odd", "address": strange.address, "methods": ["work"]}
        await wire.request_plain("register", given)
    body = {"handler_id": "odd", "job_method": "work", "misfire_grace_s": 0.2}
    answer = await api.post("/api/run_now", json=body)
    strange.close()

    assert answer.status_code == 500
    assert "has no uptime_s and dedupe_window_s" in answer.json()["error"]["message"]


async def test_a_handler_with_an_endless_boot_id_is_served_as_a_plain_one(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    strange = Strange(boot_id="b\0" * 5_000, uptime_s=1, dedupe_window_s=600)
    async with HandlerClient(scheduler.zmq_address) as wire:
        given = {"handler_id": "odd", "address": strange.address, "methods": ["work"]}
        await wire.request_plain("register", given)
    body = {"handler_id": "odd", "job_method": "work", "max_attempts": 1}
    answer = await api.post("/api/run_now", json=body)
    strange.close()

    assert answer.status_code == 200


async def test_handlers_are_probed_side_by_side(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    asked: list[tuple[RouterServer, Any]] = []
    servers: list[RouterServer] = []

    def answer_once_all_are_asked(server: RouterServer, envelope: Any, payload: bytes) -> None:
        asked.append((server, envelope))
        if len(asked) == len(servers):
            for one, to in asked:
                one.send(to, orjson.dumps({"success": True}))

    async with HandlerClient(scheduler.zmq_address) as wire:
        for number in range(5):
            server = RouterServer(
                lambda *given, n=number: answer_once_all_are_asked(servers[n], *given)
            )
            servers.append(server)
            address = str(server.bind(Address("127.0.0.1")))
            given = {"handler_id": f"h{number}", "address": address, "methods": []}
            await wire.request_plain("register", given)

    async def connected() -> bool:
        listed = (await api.get("/api/handlers")).json()["handlers"]
        return [one["status"] for one in listed] == ["Connected"] * 5

    await until(connected)
    for server in servers:
        server.unbind()


async def test_a_dead_handler_delays_no_other(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with serving(Toy(), handler_id="dead", scheduler=scheduler.zmq_address):
        await until(lambda: _knows(api, "dead"))
    for number in range(20):
        body = {**call("quick", job_id=f"dead-{number}"), "handler_id": "dead"}
        assert (await api.post("/api/schedule", json=body)).status_code == 201
    async with toy(scheduler.zmq_address, api):
        answer = await api.post("/api/run_now", json=call("quick"))

    assert answer.status_code == 200


class PlainPeer:
    """A handler as ScheduleZero's own base class makes it: no request_id, one call at a time."""

    def __init__(self, *, fails: bool) -> None:
        self.calls: list[dict[str, Any]] = []
        self.fails = fails
        self._server = RouterServer(self._on_message)
        self.port = self._server.bind(Address("127.0.0.1")).port

    def close(self) -> None:
        """Stop listening."""
        self._server.unbind()

    def _on_message(self, envelope: Any, payload: bytes) -> None:
        request = orjson.loads(payload)
        self._server.send(envelope, orjson.dumps(self._answer(request)))

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if request["method"] == "ping":
            return {"success": True, "message": "pong", "handler_id": "plain"}
        self.calls.append(dict(request))
        if self.fails:
            return {"success": False, "error": "not yet"}
        return {"success": True, "rows": 3}


@pytest.mark.parametrize(("fails", "status"), [(False, "success"), (True, "error")])
async def test_a_reply_of_a_plain_handler_ends_its_run_whatever_it_says(
    scheduler: SchedulerServer, api: httpx.AsyncClient, fails: bool, status: str
) -> None:
    peer = PlainPeer(fails=fails)
    async with HandlerClient(scheduler.zmq_address) as wire:
        params = {"address": f"tcp://127.0.0.1:{peer.port}", "methods": ["work"]}
        known = await wire.request_plain("report_status", {"handler_id": "plain"})
        reply = await wire.request_plain("register", {"handler_id": "plain", **params})
    body = {"handler_id": "plain", "job_method": "work", "job_params": {"a": 1}}
    await api.post("/api/run_now", json=body)
    (record,) = await ended(api, handler_id="plain")
    peer.close()

    assert not known.success
    assert reply.result["status"] == "registered"
    assert (record["status"], record["attempt_number"]) == (status, 1)
    assert record["error"] == ("Handler returned error: not yet" if fails else None)
    told = {"success": True, "rows": 3}
    assert record["result"] == (told if status == "success" else None)
    assert peer.calls == [{"method": "work", "params": {"a": 1}}]


async def test_a_result_that_cannot_be_written_down_ends_its_own_run_only(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    deep = b"[" * 500 + b"]" * 500
    server: RouterServer

    def answer(envelope: Any, payload: bytes) -> None:
        server.send(envelope, b'{"success": true, "rows": ' + deep + b"}")

    server = RouterServer(answer)
    async with HandlerClient(scheduler.zmq_address) as wire:
        address = str(server.bind(Address("127.0.0.1")))
        given = {"handler_id": "deep", "address": address, "methods": ["work"]}
        await wire.request_plain("register", given)
    body = {"handler_id": "deep", "job_method": "work"}
    answers = [await api.post("/api/run_now", json=body) for _ in range(2)]
    server.unbind()

    assert [one.status_code for one in answers] == [200, 200]
    assert answers[1].json()["result"]["truncated"] is True


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b'{"method": ' + b"[" * 900 + b"]" * 900 + b"}", "Unknown method"),
        (b"{", "Invalid JSON"),
        (b"[]", "a request is one JSON object"),
        (b'{"method": "shutdown"}', "Unknown method: shutdown"),
        (b'{"method": "register", "params": {"handler_id": ""}}', "'handler_id' must be"),
        (b'{"method": "register", "params": {"handler_id": "a", "address": "x"}}', "tcp://host"),
        (b'{"method": "report_status", "params": {"handler_id": "nobody"}}', "not registered"),
    ],
)
async def test_a_wrong_registration_is_answered_with_its_fault(
    scheduler: SchedulerServer, payload: bytes, error: str
) -> None:
    answer = asyncio.get_running_loop().create_future()
    peer: DealerPeer

    def send() -> None:
        peer.try_send(payload)

    peer = DealerPeer(scheduler.zmq_address, answer.set_result, send)
    peer.try_send(payload)
    reply = orjson.loads(await asyncio.wait_for(answer, 10))
    peer.close()

    assert reply["success"] is False
    assert error in reply["error"]


async def test_params_that_are_too_long_are_refused_at_once(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    grows = {"xs": [1e15] * 100_000}  # 1e15 on the way in, 1000000000000000.0 to the handler
    body = json.dumps(call("quick", job_params=grows)).replace("1000000000000000.0", "1e15")
    declared = {"Content-Type": "application/json"}
    async with toy(scheduler.zmq_address, api):
        for path in ("schedule", "run_now"):
            answer = await api.post(f"/api/{path}", content=body, headers=declared)
            assert answer.status_code == 413
            assert "at most 1,048,576 bytes" in answer.json()["error"]["message"]
    async with toy(scheduler.zmq_address, api, max_message_bytes=20_000):
        await until(lambda: _limited(scheduler, 20_000))
        for path in ("schedule", "run_now"):
            asked = call("quick", job_params={"x": "1" * 30_000})
            assert (await api.post(f"/api/{path}", json=asked)).status_code == 413

    assert await executions(api) == []


async def _limited(scheduler: SchedulerServer, limit: int) -> bool:
    link = await scheduler.runner.links.get("toy")
    await link.ask()
    return link.caller.max_call_bytes == limit


async def test_a_schedule_whose_params_have_become_too_long_is_an_error_and_cuts_no_other(
    tmp_path: Path,
) -> None:
    calls = replace(QUICK.calls, wait_s=600.0)
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    settings = SchedulerSettings(
        port=0, zmq_port=0, database=database, runner=replace(QUICK, calls=calls)
    )
    async with serve_scheduler(settings) as server, httpx.AsyncClient(base_url=server.url) as api:
        every_second = {"type": "interval", "seconds": 1}
        async with toy(server.zmq_address, api):
            asked = call("echo", job_id="long", job_params={"text": "x" * 30_000})
            asked["trigger"] = every_second
            assert (await api.post("/api/schedule", json=asked)).status_code == 201
            await api.post("/api/schedules/long/pause")
        async with toy(server.zmq_address, api, max_message_bytes=20_000) as served:
            handler = served.handler
            assert isinstance(handler, Toy)
            await api.post("/api/schedule", json=call("long"))
            await until(lambda: _started(handler))
            assert (await api.post("/api/schedules/long/run")).status_code == 413
            await api.post("/api/schedules/long/resume")
            record, *_ = await until(lambda: ended(api, method_name="echo", status="error"))
            handler.going.set()
            (other,) = await until(lambda: ended(api, method_name="long"))

    assert record["status"] == "error"
    assert "takes calls of at most 20,000 bytes" in record["error"]
    assert (other["status"], handler.starts) == ("success", 1)


async def test_a_run_whose_connection_breaks_is_found_again_at_once(tmp_path: Path) -> None:
    calls = replace(QUICK.calls, wait_s=600.0, ping_every_s=600.0)
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    settings = SchedulerSettings(
        port=0, zmq_port=0, database=database, runner=replace(QUICK, calls=calls)
    )
    async with (
        serve_scheduler(settings) as server,
        httpx.AsyncClient(base_url=server.url) as api,
        toy(server.zmq_address, api) as served,
    ):
        handler = served.handler
        assert isinstance(handler, Toy)
        await api.post("/api/schedule", json=call("long"))
        await until(lambda: _started(handler))
        link = await server.runner.links.get("toy")
        link.caller._peer.try_send(b" " * (2 << 20))  # type: ignore[attr-defined]
        handler.going.set()
        (record,) = await until(lambda: ended(api))

    assert (record["status"], handler.starts) == ("success", 1)


async def test_a_plain_handler_whose_replies_are_too_long_ends_in_an_error(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    with PlainHandler({"work": b'"' + b"x" * MAX_MESSAGE_BYTES + b'"'}) as plain:
        async with HandlerClient(scheduler.zmq_address) as wire:
            given = {"handler_id": "plain", "address": plain.address, "methods": ["work"]}
            await wire.request_plain("register", given)
        await api.post("/api/run_now", json={"handler_id": "plain", "job_method": "work"})
        (record,) = await ended(api)

    assert len(plain.called("work")) == 1
    assert (record["status"], record["attempt_number"]) == ("error", 1)
    assert f"replied more than {MAX_MESSAGE_BYTES:,} bytes" in record["error"]


def running(**fields: Any) -> Execution:
    """An execution whose call was sent."""
    given = {"boot_id": "b", "start_by_s": 60.0, **fields}
    return Execution("e", "job", "h", "m", {}, owner="A", **given)


@pytest.mark.parametrize(
    ("code", "safe", "status", "n", "attempt"),
    [
        ("busy", False, "running", 2, 1),
        ("draining", False, "running", 2, 1),
        ("wake_failed", True, "running", 2, 1),
        ("failed", False, "error", 1, 1),
        ("failed", True, "retry", 2, 2),
        ("expired", False, "lost", 1, 1),
        ("expired", True, "retry", 2, 2),
        ("source_changed", True, "retry", 2, 2),
        ("unknown_method", True, "error", 1, 1),
        ("bad_params", True, "error", 1, 1),
        ("permanent", True, "error", 1, 1),
        ("cancelled", True, "error", 1, 1),
    ],
)
def test_each_answer_has_one_meaning(
    code: str, safe: bool, status: str, n: int, attempt: int
) -> None:
    one = running(retry_safe=safe)

    judge(one, Reply(success=False, error="why", code=code))

    assert (one.status, one.n, one.attempt) == (status, n, attempt)
    assert (one.boot_id is None) == (n == 2)


def test_the_last_attempt_is_the_last() -> None:
    one = running(retry_safe=True, attempt=3)

    judge(one, Reply(success=False, error="why", code="expired"))

    assert one.status == "lost"


@pytest.mark.parametrize(
    ("told", "result"),
    [
        ({"success": True, "rows": 3}, {"rows": 3}),
        ({"success": True, "result": [1]}, [1]),
        ({"success": True, "result": {"rows": 3}}, {"result": {"rows": 3}}),
        ("odd", "odd"),
    ],
)
def test_a_flat_reply_is_unwrapped(told: Any, result: Any) -> None:
    assert plain_result(told) == result


async def _seconds_running(api: httpx.AsyncClient, seconds: float) -> bool:
    """Whether an execution has been going on for so long, by the scheduler's own clock."""
    records = await executions(api)
    if not records:
        return False
    started = datetime.fromisoformat(records[0]["started_at"])
    return (datetime.now(UTC) - started).total_seconds() > seconds


async def _started(handler: Any) -> bool:
    return bool(handler.starts)


async def _knows(api: httpx.AsyncClient, handler_id: str) -> bool:
    handlers = (await api.get("/api/handlers")).json()["handlers"]
    return any(one["id"] == handler_id for one in handlers)

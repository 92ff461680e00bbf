"""Handlers that are away: what records, errors, logs and the list of handlers say of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import structlog
from catalogzero import HandlerClient
from catalogzero.config.address import Address
from catalogzero.scheduler.server import SchedulerServer, SchedulerSettings, serve_scheduler
from catalogzero.wire.zeromq import RouterServer

from tests.scheduler.conftest import QUICK
from tests.scheduler.toys import Toy, ended, executions, toy, until

EVERY_HOUR = {"type": "interval", "hours": 1}
EVERY_SECOND = {"type": "interval", "seconds": 1}
Log = list[Any]


@pytest.fixture
def log() -> Iterator[Log]:
    """What is logged."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
async def scheduler(tmp_path: Path, log: Log) -> AsyncIterator[SchedulerServer]:
    """A scheduler on SQLite: what is tested here is not the database."""
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    calls = replace(QUICK.calls, wait_s=600.0, retry_base_s=600.0, retry_max_s=600.0)
    runner = replace(QUICK, calls=calls)
    settings = SchedulerSettings(port=0, zmq_port=0, database=database, runner=runner)
    async with serve_scheduler(settings, log=structlog.get_logger()) as server:
        yield server


class Fake:
    """A handler that answers pings and keeps its calls, at one port, while it is `there`."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.pings = 0
        self.silent = False
        self._port = 0
        self._ended = False
        self._envelopes: list[Any] = []
        self._server: RouterServer | None = None

    @property
    def address(self) -> str:
        """Where it is."""
        return f"tcp://127.0.0.1:{self._port}"

    @contextmanager
    def there(self) -> Iterator[None]:
        """Listen meanwhile."""
        self._server = RouterServer(self._on_message)
        self._port = self._server.bind(Address("127.0.0.1", self._port)).port
        try:
            yield
        finally:
            self._server.unbind()

    async def register(self, scheduler: SchedulerServer, handler_id: str = "fake") -> None:
        """Be known to the scheduler."""
        async with HandlerClient(scheduler.zmq_address) as wire:
            reported = {"handler_id": handler_id, "address": self.address, "methods": ["work"]}
            assert (await wire.request_plain("register", reported)).success

    def end_runs(self) -> None:
        """End what was called, with success; who asks again hears of it too."""
        self._ended = True
        for envelope, call in zip(self._envelopes, self.calls, strict=True):
            self._end(envelope, call)

    def _end(self, envelope: Any, call: Any) -> None:
        reported = {"success": True, "request_id": call["request_id"], "result": {"ok": 1}}
        self._send(envelope, reported)

    def _send(self, envelope: Any, reply: Any) -> None:
        assert self._server is not None
        self._server.send(envelope, orjson.dumps(reply))

    def _on_message(self, envelope: Any, payload: bytes) -> None:
        call = orjson.loads(payload)
        results: dict[str, Any] = {
            "ping": {"boot_id": "one", "uptime_s": 1.0, "dedupe_window_s": 600},
            "describe": {"methods": []},
            "check_params": {},
        }
        self.pings += call["method"] == "ping"
        if self.silent:
            return
        if call["method"] not in results:
            self.calls.append(call)
            self._envelopes.append(envelope)
            if self._ended:
                self._end(envelope, call)
            return
        result, request_id = results[call["method"]], call.get("request_id")
        known = {"request_id": request_id, "result": result} if request_id else result
        self._send(envelope, {"success": True, **known})


def call(method: str = "quick", **fields: Any) -> dict[str, Any]:
    """A schedule's request."""
    return {"handler_id": "toy", "job_method": method, "trigger": EVERY_HOUR, **fields}


async def waiting(api: httpx.AsyncClient) -> dict[str, Any]:
    """The execution that waits for its handler, found as ScheduleZero's clients look for it."""
    found = await executions(api, status="retry")
    return found[0] if found and found[0]["waiting"] else {}


def reported(log: Sequence[Any], event: str) -> list[Any]:
    """The lines of one event."""
    return [line for line in log if line["event"] == event]


async def test_an_execution_whose_handler_is_away_says_so_until_it_is_back(
    scheduler: SchedulerServer, api: httpx.AsyncClient, log: Log
) -> None:
    async with toy(scheduler.zmq_address, api):
        pass
    await api.post("/api/schedule", json=call())
    record = await until(lambda: waiting(api))
    async with toy(scheduler.zmq_address, api):
        (done,) = await until(lambda: ended(api))

    assert "waiting for its handler, which is away: no handler at tcp://" in record["error"]
    assert record["completed_at"] is None
    assert (done["status"], done["waiting"], done["error"]) == ("success", False, None)
    (line,) = reported(log, "handler_away")
    assert (line["log_level"], line["handler_id"]) == ("warning", "toy")
    assert "no handler at tcp://" in line["error"]


async def test_a_run_whose_handler_goes_away_waits_and_goes_on_as_running(
    scheduler: SchedulerServer, api: httpx.AsyncClient, log: Log
) -> None:
    fake = Fake()

    async def sent() -> bool:
        return bool(fake.calls)

    async def running() -> bool:
        (record,) = await executions(api)
        return (record["status"], record["waiting"], record["error"]) == ("running", False, None)

    with fake.there():
        await fake.register(scheduler)
        await api.post("/api/schedule", json=call("work", handler_id="fake"))
        await until(sent)
        assert await running()
    record = await until(lambda: waiting(api))
    with fake.there():
        await until(running)
        fake.end_runs()
        (done,) = await until(lambda: ended(api))

    assert "which is away" in record["error"]
    assert (done["status"], done["waiting"]) == ("success", False)
    assert len(reported(log, "handler_away")) == len(reported(log, "handler_back")) == 1


async def test_a_tick_that_is_skipped_for_an_absent_handler_says_so(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api) as served:
        handler = served.handler
        assert isinstance(handler, Toy)
        await api.post("/api/schedule", json=call("long", trigger=EVERY_SECOND))
        await until(lambda: executions(api, status="skipped"))
        (busy,) = await executions(api, status="skipped")
        handler.going.set()

    async def grown() -> bool:
        newest = (await executions(api, status="skipped"))[:1]
        return [one["error"] for one in newest] == [
            "an earlier run of this schedule waits for the handler 'toy', which is away"
        ]

    await until(grown)
    assert busy["error"] == "an earlier run of this schedule was still going on"


async def test_what_its_handler_missed_counts_as_an_error(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api):
        await api.post("/api/run_now", json=call())
    await api.post("/api/run_now", json=call(misfire_grace_s=0.1))
    errors = (await api.get("/api/executions/errors")).json()["errors"]
    stats = (await api.get("/api/executions/stats")).json()

    assert [(one["status"], one["waiting"]) for one in errors] == [("missed", False)]
    assert (stats["success_count"], stats["error_count"], stats["success_rate"]) == (1, 1, 50.0)
    assert stats["by_handler"]["toy"] == {"total": 2, "success": 1, "error": 1}


async def test_handlers_are_listed_by_probes_and_nobody_is_asked(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    fake = Fake()

    async def handler() -> dict[str, Any]:
        (one,) = (await api.get("/api/handlers")).json()["handlers"]
        return dict(one)

    async def shown(status: str) -> dict[str, Any]:
        one = await handler()
        return one if one["status"] == status else {}

    fake.silent = True
    with fake.there():
        await fake.register(scheduler)
        unasked = await handler()
        fake.silent = False
        first = await until(lambda: shown("Connected"))

        async def later() -> bool:
            return bool((await handler())["checked_at"] > first["checked_at"])

        await until(later)
    gone = await until(lambda: shown("Disconnected"))
    with fake.there():
        await until(lambda: shown("Connected"))

    assert (unasked["status"], unasked["checked_at"]) == ("Disconnected", None)
    assert first["error"] is None
    assert gone["checked_at"] > gone["last_seen_at"] >= first["checked_at"]
    assert gone["error"]


async def test_listing_handlers_costs_them_nothing(tmp_path: Path) -> None:
    runner = replace(QUICK, calls=replace(QUICK.calls, probe_every_s=600.0))
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    settings = SchedulerSettings(port=0, zmq_port=0, database=database, runner=runner)
    fake = Fake()
    async with serve_scheduler(settings) as server, httpx.AsyncClient(base_url=server.url) as api:

        async def asked() -> bool:
            listed = (await api.get("/api/handlers")).json()["handlers"]
            return [one["status"] for one in listed] == ["Connected"]

        with fake.there():
            await fake.register(server)
            await until(asked)
            before = fake.pings
            for _ in range(20):
                await api.get("/api/handlers")

            assert fake.pings == before


async def test_a_handler_that_no_schedule_names_can_be_removed(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api):
        for number in range(7):
            await api.post("/api/schedule", json=call(job_id=f"job-{number}"))
        await until(lambda: _ended(api, 7))
    named = await api.delete("/api/handlers/toy")
    for number in range(7):
        await api.delete(f"/api/schedules/job-{number}")
    removed = await api.delete("/api/handlers/toy")
    left = (await api.get("/api/handlers")).json()["handlers"]
    again = await api.delete("/api/handlers/toy")
    async with HandlerClient(scheduler.zmq_address) as wire:
        heartbeat = await wire.request_plain("report_status", {"handler_id": "toy"})

    assert named.status_code == 409
    assert named.json()["error"]["message"].endswith(
        "remove them first: job-0, job-1, job-2, job-3, job-4 and 2 more"
    )
    assert (removed.status_code, removed.json()["handler_id"], left) == (200, "toy", [])
    assert again.status_code == 404
    assert not heartbeat.success  # so one that lives registers again


async def test_params_are_checked_by_the_handler_s_own_rule(
    scheduler: SchedulerServer, api: httpx.AsyncClient, log: Log
) -> None:
    async with toy(scheduler.zmq_address, api):
        asked = call(job_params={"x": "many", "y": 1})
        for path in ("schedule", "run_now"):
            refused = await api.post(f"/api/{path}", json=asked)
            message = refused.json()["error"]["message"]
            assert refused.status_code == 400
            assert message.startswith("Invalid params: quick: ")
            assert "x: " in message
            assert "y: " in message
        good = await api.post("/api/schedule", json=call(job_params={"x": 2}, job_id="good"))
        await until(lambda: ended(api))
    await until(lambda: _away(api))
    away = await api.post("/api/schedule", json=asked)

    assert [one["method_name"] for one in await executions(api, status="success")] == ["quick"]
    assert good.json() == {"status": "success", "job_id": "good", "schedule_id": "good"}
    assert away.status_code == 201
    assert away.json()["warning"].startswith("the params were not checked: the handler is away: ")
    (line,) = reported(log, "params_unchecked")
    assert (line["log_level"], line["job_id"]) == ("warning", away.json()["job_id"])


async def _ended(api: httpx.AsyncClient, count: int) -> bool:
    return len(await ended(api)) == count


async def _away(api: httpx.AsyncClient) -> bool:
    (one,) = (await api.get("/api/handlers")).json()["handlers"]
    return one["status"] == "Disconnected" and one["error"] is not None


async def test_those_without_a_place_at_their_handler_say_that_it_went(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    number = 110  # six more than a handler runs and queues
    fake = Fake()

    async def all_of(status: str) -> list[dict[str, Any]]:
        found = await executions(api, status=status, limit=number)
        return found if len(found) == number else []

    with fake.there():
        await fake.register(scheduler)
        for _ in range(number):
            await api.post("/api/schedule", json={**call("work"), "handler_id": "fake"})

        async def full() -> bool:
            return len(fake.calls) == 104 and bool(await all_of("running"))

        await until(full)

    found = await until(lambda: all_of("retry"))
    assert {one["waiting"] for one in found} == {True}
    assert all("waiting for its handler, which is away" in one["error"] for one in found)
    fake.end_runs()
    with fake.there():
        await until(lambda: all_of("success"))


async def test_an_execution_that_ended_is_one_line_with_what_it_came_to(
    scheduler: SchedulerServer, log: Log
) -> None:
    async with (
        httpx.AsyncClient(base_url=scheduler.url) as api,
        toy(scheduler.zmq_address, api),
    ):
        for method in ("quick", "fail"):
            asked: dict[str, Any] = {"handler_id": "toy", "job_method": method, "wait": True}
            await api.post("/api/run_now", json=asked, timeout=30)
        await until(lambda: ended(api, status="error"))
    good, bad = (line for line in log if line["event"] == "execution_ended")
    assert (good["log_level"], good["method"], good["outcome"]) == ("info", "quick", "done")
    assert (bad["log_level"], bad["method"], bad["outcome"]) == ("warning", "fail", "failed")
    assert bad["words"]
    assert good["execution_id"] != bad["execution_id"]

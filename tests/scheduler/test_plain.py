"""Plain handlers, as ScheduleZero's are: a reply that arrived is the end of the run."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from catalogzero import HandlerClient
from catalogzero.scheduler.server import SchedulerServer, SchedulerSettings, serve_scheduler

from tests.core.plain import PlainHandler
from tests.scheduler.conftest import QUICK
from tests.scheduler.toys import ended, until

LONG = 123456789012345678901234567890


@pytest.fixture
async def scheduler(tmp_path: Path) -> AsyncIterator[SchedulerServer]:
    """A scheduler on SQLite: what is tested here is not the database."""
    runner = replace(QUICK, calls=replace(QUICK.calls, plain_timeout_s=1.0))
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    settings = SchedulerSettings(port=0, zmq_port=0, database=database, runner=runner)
    async with serve_scheduler(settings) as server:
        yield server


async def register(scheduler: SchedulerServer, plain: PlainHandler) -> None:
    """Make a plain handler known to the scheduler, under the name `plain`."""
    async with HandlerClient(scheduler.zmq_address) as wire:
        methods = ["work", "quick"]
        told = {"handler_id": "plain", "address": plain.address, "methods": methods}
        assert (await wire.request_plain("register", told)).success


async def run(api: httpx.AsyncClient, method: str = "work") -> dict[str, Any]:
    """Run a method now; its record."""
    await api.post("/api/run_now", json={"handler_id": "plain", "job_method": method})
    (record,) = await until(lambda: ended(api, method_name=method))
    return record


@pytest.mark.parametrize(
    ("sent", "result"),
    [
        (b'{"success": true, "request_id": "order-7"}', {"request_id": "order-7"}),
        (b'{"request_id": 7, "result": 1}', {"request_id": 7, "result": 1}),
        (b'{"success": true, "mean": NaN, "most": Infinity}', {"mean": None, "most": None}),
        (b'{"success": true, "rows": %d}' % LONG, {"rows": LONG}),
        (b'{"success": true, "result": {"a": 1}}', {"result": {"a": 1}}),
        (b'{"success": true, "result": {"success": false}}', {"result": {"success": False}}),
        (b'{"text": "a\\ud800"}', {"text": "a?"}),
        (b"[1, %d]" % LONG, {"result": [1, LONG]}),
        (b'"done"', {"result": "done"}),
        (b"7", {"result": 7}),
        (b"null", {"result": None}),
    ],
)
async def test_a_job_that_succeeded_runs_once(
    scheduler: SchedulerServer, api: httpx.AsyncClient, sent: bytes, result: Any
) -> None:
    with PlainHandler({"work": sent}) as plain:
        await register(scheduler, plain)
        record = await run(api)

    assert plain.called("work") == [{"method": "work", "params": {}}]
    assert (record["status"], record["attempt_number"]) == ("success", 1)
    assert record["result"] == {"success": True, **result}


@pytest.mark.parametrize("sent", [b"", b"{", b"\xff\x00", b"[" * 100_000])
async def test_a_reply_that_is_not_json_is_an_error_and_never_a_second_run(
    scheduler: SchedulerServer, api: httpx.AsyncClient, sent: bytes
) -> None:
    with PlainHandler({"work": sent}) as plain:
        await register(scheduler, plain)
        record = await run(api)

    assert len(plain.called("work")) == 1
    assert (record["status"], record["attempt_number"]) == ("error", 1)
    assert "the reply is not JSON" in record["error"]


async def test_a_late_reply_is_never_that_of_the_next_run(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    gone_on = threading.Event()

    def slowly() -> bytes:
        gone_on.wait(30)
        return b'{"of": "work"}'

    with PlainHandler({"work": slowly, "quick": b'{"of": "quick"}'}) as plain:
        await register(scheduler, plain)
        body = {"handler_id": "plain", "job_method": "work", "max_attempts": 1, "wait": False}
        await api.post("/api/run_now", json=body)
        (late,) = await until(lambda: ended(api, method_name="work"))
        asking = {"handler_id": "plain", "job_method": "quick", "wait": False}
        await api.post("/api/run_now", json=asking)
        gone_on.set()
        (record,) = await until(lambda: ended(api, method_name="quick"))

    assert late["status"] == "error"
    assert record["result"] == {"success": True, "of": "quick"}

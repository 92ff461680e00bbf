"""Calls to a served handler, over real sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import date
from typing import Any

import pytest
from catalogzero import (
    BadParamsError,
    FailedError,
    Handler,
    RunCancelledError,
    UnknownMethodError,
    internal,
    job,
    resource,
)
from catalogzero.testing import ManualClock, serving

pytestmark = pytest.mark.usefixtures("over_each_transport")


class Counter(Handler):
    """Does a little of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.opened = 0
        self.started = 0

    async def add(self, a: int, b: int = 2) -> dict[str, int]:
        """Add."""
        return {"sum": a + b}

    async def day(self, day: date) -> str:
        return day.isoformat()

    def plain(self, text: str) -> str:
        """In a thread."""
        return text.upper()

    async def fails(self) -> None:
        raise ValueError("no\nluck")

    async def wait(self) -> str:
        self.started += 1
        await self.gate.wait()
        return "opened"

    def whole(self, params) -> dict[str, Any]:  # type: ignore[no-untyped-def]  # ScheduleZero style
        return dict(params)

    @internal
    def hidden(self) -> None:
        """Not for callers."""

    @resource
    async def pool(self) -> AsyncIterator[int]:
        self.opened += 1
        yield self.opened

    async def use_pool(self) -> int:
        return await self.pool()

    @job(isolate=True)
    def pid(self) -> int:
        import os

        return os.getpid()

    @job(isolate=True)
    def hang(self) -> None:
        threading.Event().wait()


async def test_a_call_binds_by_name_and_validates() -> None:
    async with serving(Counter()) as at:
        assert await at.client.call("add", {"a": 1}) == {"sum": 3}
        assert await at.client.call("day", {"day": "2026-02-03"}) == "2026-02-03"
        assert await at.client.call("plain", {"text": "x"}) == "X"
        assert await at.client.call("whole", {"k": 1}) == {"k": 1}
        with pytest.raises(BadParamsError) as caught:
            await at.client.call("add", {"a": "x", "c": 1})
        assert {fault["field"] for fault in caught.value.details} == {"a", "c"}


@pytest.mark.parametrize(
    "name", ["hidden", "pool", "__init__", "_release_resources", "attach", "nope"]
)
async def test_only_what_the_author_meant_can_be_called(name: str) -> None:
    async with serving(Counter()) as at:
        with pytest.raises(UnknownMethodError):
            await at.client.call(name)


async def test_a_method_that_raises_fails_with_type_and_text() -> None:
    async with serving(Counter()) as at:
        with pytest.raises(FailedError, match="ValueError: no\nluck"):
            await at.client.call("fails")
        flat = await at.client.request_plain("fails")
        assert flat.error == "ValueError: no luck"


async def test_a_blocked_job_does_not_hold_up_control_calls() -> None:
    counter = Counter()
    async with serving(counter) as at:
        blocked = asyncio.create_task(at.client.call("wait"))
        assert (await at.client.ping())["status"] == "ok"
        metrics = await at.client.call("get_metrics")
        assert metrics["in_flight"] == 1
        assert metrics["handler_id"] == at.handler.handler_id
        counter.gate.set()
        assert await blocked == "opened"


async def test_a_repeated_request_id_gets_the_same_run() -> None:
    counter = Counter()
    async with serving(counter) as at:
        counter.gate.set()
        first = await at.client.request("wait", request_id="one")
        second = await at.client.request("wait", request_id="one")
        assert (first.run_id, counter.started) == (second.run_id, 1)


async def test_isolated_jobs_run_in_another_process_and_can_be_stopped() -> None:
    import os

    async with serving(Counter()) as at:
        assert await at.client.call("pid") != os.getpid()
        hanging = asyncio.create_task(at.client.call("hang", request_id="h"))
        while not (await at.client.call("list_runs", {"status": "running"}))["runs"]:
            pass
        await at.client.call("cancel", {"request_id": "h"})
        with pytest.raises(RunCancelledError):
            await hanging
        assert await at.client.call("pid") != os.getpid()


async def test_pings_never_wake_and_jobs_do() -> None:
    clock = ManualClock()
    counter = Counter()
    async with serving(counter, clock=clock) as at:
        assert await at.client.call("use_pool") == 1
        await clock.advance(60)
        assert (await at.client.call("get_metrics"))["status"] == "idle"
        await clock.advance(240)
        while (status := (await at.client.call("get_metrics"))["status"]) == "idle":
            pass
        assert status == "sleeping"
        await at.client.ping()
        assert (await at.client.call("get_metrics"))["status"] == "sleeping"
        assert await at.client.call("use_pool") == 2
        assert (await at.client.call("get_metrics"))["status"] == "active"

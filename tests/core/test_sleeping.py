"""When a handler falls asleep, what it lets go of, and what wakes it; time is moved by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from catalogzero import BusyError, Handler, WakeFailedError, job, resource
from catalogzero.testing import ManualClock, Serving, serving

from tests.core.support import Bench, until

pytestmark = pytest.mark.usefixtures("over_each_transport")


class Sleeper(Bench):
    """Resources that note when they open and close; hooks that a test can break or hold."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: set[str] = set()
        self.falling = asyncio.Event()
        self.may_fall = asyncio.Event()
        self.may_fall.set()
        self.may_wake = asyncio.Event()
        self.may_wake.set()

    @resource
    async def pool(self) -> AsyncIterator[str]:
        self.hooks.append("pool opens")
        yield "pool"
        self.hooks.append("pool closes")
        self._break("pool")

    @resource
    async def session(self) -> AsyncIterator[str]:
        value = await self.pool()
        self.hooks.append("session opens")
        try:
            yield f"session over {value}"
        finally:
            self.hooks.append("session closes")

    async def use(self) -> str:
        """Opens both."""
        return await self.session()

    @job(quiet=True)
    async def look(self) -> str:
        """A quiet job that uses a resource."""
        return await self.pool()

    async def _release_resources(self) -> None:  # type: ignore[override]  # a hook may be async
        self.hooks.append("release")
        self.falling.set()
        await self.may_fall.wait()
        self._break("release")

    async def _ensure_resources(self) -> None:  # type: ignore[override]  # a hook may be async
        self.hooks.append("ensure")
        await self.may_wake.wait()
        self._break("ensure")

    async def _warm_cache(self) -> None:
        self.hooks.append("warm")
        self._break("warm")

    def _break(self, name: str) -> None:
        if name in self.broken:
            raise OSError(f"{name} is broken")


async def status(at: Serving) -> str:
    return str((await at.client.call("get_metrics"))["status"])


async def asleep(at: Serving) -> bool:
    return await status(at) == "sleeping"


async def test_without_a_job_it_is_idle_then_sleeps() -> None:
    clock = ManualClock()
    async with serving(Sleeper(), clock=clock, idle_after_s=10, sleep_after_s=20) as at:
        assert await status(at) == "active"
        await clock.advance(9.9)
        assert await status(at) == "active"
        await clock.advance(0.1)
        assert await status(at) == "idle"
        await clock.advance(9.9)
        assert await status(at) == "idle"
        await clock.advance(0.1)
        await until(lambda: asleep(at))


async def test_a_job_starts_the_time_anew() -> None:
    clock = ManualClock()
    async with serving(Sleeper(), clock=clock, idle_after_s=10, sleep_after_s=20) as at:
        await clock.advance(15)
        await at.client.call("echo")
        assert await status(at) == "active"
        await clock.advance(19)
        assert await status(at) == "idle"
        assert (await at.client.call("get_metrics"))["idle_s"] == 19


async def test_one_that_was_woken_by_hand_falls_asleep_again() -> None:
    clock = ManualClock()
    async with serving(Sleeper(), clock=clock, idle_after_s=10, sleep_after_s=20) as at:
        for _ in range(2):
            await clock.advance(20)
            await until(lambda: asleep(at))
            await at.client.call("wake")
            assert await status(at) == "active"
        await clock.advance(20)
        await until(lambda: asleep(at))


async def test_zero_means_never_asleep() -> None:
    clock = ManualClock()
    async with serving(Sleeper(), clock=clock, sleep_after_s=0) as at:
        await clock.advance(1e6)
        assert await status(at) == "idle"


async def test_a_long_job_keeps_it_awake() -> None:
    clock = ManualClock()
    sleeper = Sleeper()
    async with serving(sleeper, clock=clock) as at:
        long = asyncio.create_task(at.client.call("hold", timeout_s=1e6))
        await until(lambda: sleeper.begun)
        await clock.advance(10_000)
        assert await status(at) == "active"
        sleeper.gate.set()
        await long


async def test_resources_open_on_first_use_and_close_in_reverse_order() -> None:
    clock = ManualClock()
    sleeper = Sleeper()
    async with serving(sleeper, clock=clock) as at:
        assert sleeper.hooks == []
        assert await at.client.call("use") == "session over pool"
        await at.client.call("use")
        await at.client.call("sleep")
        assert sleeper.hooks == [
            *("pool opens", "session opens"),
            *("release", "session closes", "pool closes"),
        ]
        sleeper.hooks.clear()
        await at.client.call("use")
        assert sleeper.hooks == ["ensure", "warm", "pool opens", "session opens"]


async def test_resources_close_when_the_handler_stops() -> None:
    sleeper = Sleeper()
    async with serving(sleeper) as at:
        await at.client.call("use")
    assert sleeper.hooks[-2:] == ["session closes", "pool closes"]


async def test_a_resource_that_a_quiet_job_opened_asleep_closes_at_the_stop() -> None:
    sleeper = Sleeper()
    async with serving(sleeper) as at:
        await at.client.call("sleep")
        assert await at.client.call("look") == "pool"
        assert await asleep(at)
    assert sleeper.hooks == ["release", "pool opens", "pool closes"]


async def test_two_jobs_at_once_open_a_resource_once() -> None:
    sleeper = Sleeper()
    async with serving(sleeper) as at:
        await asyncio.gather(*(at.client.call("use") for _ in range(4)))
        assert sleeper.hooks.count("pool opens") == 1


@pytest.mark.parametrize("method", ["ping", "get_metrics", "describe", "list_runs", "peek"])
async def test_control_calls_and_quiet_jobs_never_wake_and_never_keep_awake(method: str) -> None:
    clock = ManualClock()
    sleeper = Sleeper()
    async with serving(sleeper, clock=clock) as at:
        await clock.advance(299)
        await at.client.call(method)
        await clock.advance(1)
        await until(lambda: asleep(at))
        await at.client.call(method)
        assert await asleep(at)
        assert sleeper.hooks == ["release"]


async def test_sleep_wake_and_status_by_call() -> None:
    sleeper = Sleeper()
    async with serving(sleeper) as at:
        assert await at.client.call("sleep") == {"status": "sleeping"}
        assert await at.client.call("sleep") == {"status": "sleeping"}
        assert await at.client.call("wake") == {"status": "active"}
        assert await at.client.call("wake") == {"status": "active"}
        assert sleeper.hooks == ["release", "ensure", "warm"]
        assert (await at.client.call("get_metrics"))["wakes_total"] == 1


async def test_sleep_during_a_job_is_busy() -> None:
    sleeper = Sleeper()
    async with serving(sleeper) as at:
        working = asyncio.create_task(at.client.call("hold"))
        await until(lambda: sleeper.begun)
        with pytest.raises(BusyError):
            await at.client.call("sleep")
        sleeper.gate.set()
        await working


async def test_a_job_that_arrives_while_falling_asleep_waits_and_wakes_it() -> None:
    sleeper = Sleeper()
    sleeper.may_fall.clear()
    async with serving(sleeper) as at:
        falling = asyncio.create_task(at.client.call("sleep"))
        await sleeper.falling.wait()
        calls = [asyncio.create_task(at.client.call("echo", {"value": n})) for n in range(3)]
        metrics = await until(lambda: _in_flight(at, 3))
        assert metrics["status"] == "idle"
        assert (await at.client.ping())["status"] == "ok"
        sleeper.may_fall.set()

        assert await asyncio.gather(*calls) == [0, 1, 2]
        assert sleeper.hooks == ["release", "ensure", "warm"]
        await asyncio.wait([falling])


async def _in_flight(at: Serving, count: int) -> Any:
    metrics = await at.client.call("get_metrics")
    return metrics if metrics["in_flight"] == count else None


async def test_calls_that_wait_for_the_same_waking_share_it() -> None:
    sleeper = Sleeper()
    async with serving(sleeper) as at:
        await at.client.call("sleep")
        sleeper.may_wake.clear()
        calls = [asyncio.create_task(at.client.call("echo", {"value": n})) for n in range(4)]
        await until(lambda: _in_flight(at, 4))
        runs = (await at.client.call("list_runs"))["runs"]
        assert {run["status"] for run in runs} == {"waking"}
        sleeper.may_wake.set()
        await asyncio.gather(*calls)
        assert sleeper.hooks.count("ensure") == 1


async def test_cancelling_a_call_that_wakes_leaves_the_handler_awake() -> None:
    sleeper = Sleeper()
    async with serving(sleeper) as at:
        await at.client.call("sleep")
        sleeper.may_wake.clear()
        call = asyncio.create_task(at.client.request("echo", request_id="r"))
        await until(lambda: _in_flight(at, 1))
        await at.client.call("cancel", {"request_id": "r"})
        assert (await call).code == "cancelled"
        sleeper.may_wake.set()
        assert await at.client.call("wake") == {"status": "active"}


@pytest.mark.parametrize("hook", ["release", "pool"])
async def test_a_hook_that_raises_on_sleep_is_reported_and_sleep_goes_on(hook: str) -> None:
    sleeper = Sleeper()
    async with serving(sleeper) as at:
        await at.client.call("use")
        sleeper.broken.add(hook)
        assert await at.client.call("sleep") == {"status": "sleeping"}
        metrics = await at.client.call("get_metrics")
        assert f"{hook} is broken" in metrics["last_error"]
        assert "session closes" in sleeper.hooks
        sleeper.broken.clear()
        assert await at.client.call("use") == "session over pool"


@pytest.mark.parametrize("hook", ["ensure", "warm"])
async def test_a_hook_that_raises_on_wake_fails_that_call_and_the_next_tries_again(
    hook: str,
) -> None:
    sleeper = Sleeper()
    async with serving(sleeper) as at:
        await at.client.call("sleep")
        sleeper.broken.add(hook)
        with pytest.raises(WakeFailedError, match=f"{hook} is broken") as caught:
            await at.client.call("echo")
        assert caught.value.retryable
        assert await asleep(at)
        with pytest.raises(WakeFailedError):
            await at.client.call("wake")
        sleeper.broken.clear()
        assert await at.client.call("echo", {"value": 1}) == 1
        assert await status(at) == "active"


async def test_after_a_failed_wake_it_still_falls_asleep_by_itself_later() -> None:
    clock = ManualClock()
    sleeper = Sleeper()
    async with serving(sleeper, clock=clock) as at:
        await at.client.call("sleep")
        sleeper.broken.add("ensure")
        await at.client.request("echo")
        sleeper.broken.clear()
        await at.client.call("echo")
        await clock.advance(300)
        await until(lambda: asleep(at))
        assert sleeper.hooks.count("release") == 2


class Plain(Handler):
    """Its hooks are plain functions."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, int] | None = None

    def _release_resources(self) -> None:
        self.cache = None

    def _warm_cache(self) -> None:
        self.cache = {"rate": 2}

    async def rate(self) -> int:
        return self.cache["rate"] if self.cache else 0


async def test_hooks_may_be_plain_functions() -> None:
    async with serving(Plain()) as at:
        assert await at.client.call("rate") == 0
        await at.client.call("sleep")
        assert await at.client.call("rate") == 2

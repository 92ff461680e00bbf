"""Sleep and wake of handlers in the first drawing's form, and its conductor's calls."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest
from catalogzero import Handler, UnknownMethodError
from catalogzero.compat import SmartHandler, ZMQHandlerBase
from catalogzero.testing import ManualClock, Serving, serving

from tests.compat import from_the_seed


async def asleep(at: Serving, clock: ManualClock) -> None:
    """Let time pass until it sleeps."""
    await clock.advance(60)
    await clock.advance(240)
    async with asyncio.timeout(10):
        while (await at.client.call("get_metrics"))["status"] != "sleeping":
            pass


async def test_the_first_drawing_s_handler_sleeps_and_wakes_with_only_its_imports_changed() -> None:
    clock, handler = ManualClock(), from_the_seed.SmartHandler()
    async with serving(handler, clock=clock) as at:
        assert (await at.client.call("lookup", {"key": "a"}))["pool_open"] is True
        before = handler.db_pool
        await asleep(at, clock)
        assert before is not None
        assert before.closed
        assert (handler.db_pool, handler.cache, handler.sleep_mode) == (None, {}, True)

        answer = await at.client.call("lookup", {"key": "a"})
        assert answer == {"row": "row of a", "pool_open": True}
        assert (handler.warmed, handler.sleep_mode) == (1, False)
        assert handler.cache["warm"] == "row of warm"


class Library(SmartHandler):
    """Keeps a pool and a cache."""

    def __init__(self) -> None:
        super().__init__(handler_id="library")
        self.db_pool: Any = from_the_seed.Pool()
        self.cache: dict[str, Any] = {"a": 1}
        self.steps: list[str] = []

    async def _ensure_resources(self) -> None:
        self.steps.append(f"ensure {self.sleep_mode}")
        self.db_pool = self.db_pool or from_the_seed.Pool()
        await super()._ensure_resources()

    def _warm_cache(self) -> Any:
        self.steps.append("warm")
        self.cache["warm"] = True

    def borrow(self, params: dict[str, Any]) -> Any:
        return {"open": not self.db_pool.closed, "cache": dict(self.cache)}


async def test_a_smart_handler_lets_go_of_pool_and_cache_and_takes_them_up_again() -> None:
    clock, library = ManualClock(), Library()
    pool = library.db_pool
    async with serving(library, clock=clock) as at:
        await asleep(at, clock)
        assert (pool.closed, library.db_pool, library.cache) == (True, None, {})

        assert await at.client.call("borrow", {}) == {"open": True, "cache": {"warm": True}}
        assert library.steps == ["ensure True", "warm"]


async def test_a_waking_that_fails_leaves_it_asleep_and_the_next_call_tries_again() -> None:
    faults = [ConnectionError("no database")]

    class Unlucky(Library):
        async def _ensure_resources(self) -> None:
            if faults:
                raise faults.pop()

    clock, library = ManualClock(), Unlucky()
    async with serving(library, clock=clock) as at:
        await asleep(at, clock)
        reply = await at.client.request("get_metrics")
        failed = await at.client.request("borrow")
        assert (reply.success, failed.code, library.sleep_mode) == (True, "wake_failed", True)

        library.db_pool = from_the_seed.Pool()
        assert (await at.client.call("borrow"))["open"] is True
        assert library.sleep_mode is False


async def test_the_old_attributes_report_what_the_runtime_knows() -> None:
    clock, library = ManualClock(), Library()
    assert (library.running, library.sleep_mode, library.idle_since) == (False, False, None)
    async with serving(library, clock=clock) as at:
        started = library.start_time
        await clock.advance(10)
        await at.client.call("borrow")
        await clock.advance(30)
        assert (library.running, library.idle_since) == (True, None)
        await clock.advance(30)
        naive = clock.now().astimezone().replace(tzinfo=None)
        assert (naive - library.start_time).total_seconds() == 70
        assert (naive - library.idle_since).total_seconds() == 60
        library.idle_since, library.sleep_mode, library.start_time = None, True, datetime.min  # noqa: DTZ901 - naive, as there
        assert (library.sleep_mode, library.start_time) == (False, started)
    assert library.running is False


def test_a_receive_loop_of_one_s_own_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"Looping\._receive_loop .* keep `_release_resources`"):

        class Looping(SmartHandler):
            async def _receive_loop(self) -> None:
                """The old way."""


class Native(Handler):
    """A handler of today's form."""

    async def work(self) -> str:
        return "done"


async def test_the_first_drawing_s_conductor_calls_old_and_new_handlers() -> None:
    async with (
        serving(Native(), handler_id="new") as new,
        serving(Library()) as old,
    ):
        ports = {"new": new.service.port, "old": old.service.port}
        conductor = from_the_seed.ConductorZero(ports)
        async with serving(conductor) as at:
            alive = await at.client.call("ping_handler", {"handler_id": "old"})
            unknown = await at.client.call("ping_handler", {"handler_id": "nobody"})
            collected = await at.client.call("collect_metrics", {})
            one = await at.client.call("collect_metrics", {"handler_ids": ["new"]})
            own = await at.client.call("get_metrics")
        conductor.zmq_client_ctx.destroy(linger=0)

    assert (alive["alive"], alive["handler_id"]) == (True, "old")
    assert unknown == {"alive": False, "error": "Unknown handler: nobody"}
    assert {h: m["handler_id"] for h, m in collected["handlers"].items()} == {
        "new": "new",
        "old": "library",
    }
    assert collected["summary"]["alive_handlers"] == 2
    assert list(one["handlers"]) == ["new"]
    assert own["threads_of_mine"] > 0
    assert own["up_s"] >= 0
    assert own["handler_id"] == "conductor_zero"


async def test_the_author_s_machinery_cannot_be_called() -> None:
    async with serving(Library()) as at:
        for name in ("_release_resources", "db_pool", "start", "sleep_mode"):
            with pytest.raises(UnknownMethodError):
                await at.client.call(name)


def test_both_bases_are_public() -> None:
    assert issubclass(SmartHandler, ZMQHandlerBase)

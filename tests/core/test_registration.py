"""Registration with a scheduler that answers, forgets, freezes, refuses or is not there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import zmq
import zmq.asyncio
from catalogzero.testing import ManualClock, Serving, serving

from tests.core.support import Bench, breathe, until


class Scheduler:
    """A REP socket that speaks a ScheduleZero server's side of registration."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}
        self.heard: list[tuple[str, str]] = []
        self.refusing = False
        self.frozen = False
        self.port = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Answer on the same port each time; it comes back with an empty memory."""
        context = zmq.asyncio.Context()
        socket = context.socket(zmq.REP)
        socket.linger = 0
        if self.port:
            socket.bind(f"tcp://127.0.0.1:{self.port}")
        else:
            self.port = socket.bind_to_random_port("tcp://127.0.0.1")
        self.known.clear()
        task = asyncio.create_task(self._serve(socket))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            socket.close()
            context.term()

    async def _serve(self, socket: Any) -> None:
        while True:
            request = json.loads(await socket.recv())
            assert "request_id" not in request
            params = request["params"]
            self.heard.append((request["method"], params.get("status", "")))
            if self.frozen:
                await asyncio.Event().wait()
            await socket.send(json.dumps(self._answer(request["method"], params)).encode())

    def _answer(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if self.refusing:
            return {"success": False, "error": "not now"}
        if method == "register":
            self.known[params["handler_id"]] = params
        return {"success": params["handler_id"] in self.known}

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"


async def passes(clock: ManualClock, scheduler: Scheduler, within_s: int) -> bool:
    """Whether the handler is known before that number of seconds of its clock have passed."""
    for _ in range(within_s * 4):
        if "bench" in scheduler.known:
            return True
        await clock.advance(0.25)
        await breathe()
    return "bench" in scheduler.known


async def test_it_registers_with_its_address_and_methods_and_says_goodbye() -> None:
    scheduler = Scheduler()
    async with scheduler.listening():
        async with serving(Bench(), scheduler=scheduler.address) as at:
            await asyncio.wait_for(at.service.registered(), 20)
            assert scheduler.known["bench"] == {
                "handler_id": "bench",
                "address": at.address,
                "methods": ["count", "echo", "get_metrics", "hold", "peek", "ping"],
                "boot_id": (await at.client.ping())["boot_id"],
            }
        assert scheduler.heard[0] == ("register", "")
        assert scheduler.heard[-1] == ("report_status", "offline")


async def test_it_reports_that_it_is_online_and_does_not_register_again() -> None:
    clock, scheduler = ManualClock(), Scheduler()
    async with (
        scheduler.listening(),
        serving(Bench(), clock=clock, scheduler=scheduler.address, sleep_after_s=0) as at,
    ):
        await at.service.registered()
        for _ in range(60):
            await clock.advance(1)
            await breathe()
        assert 3 <= scheduler.heard.count(ONLINE) <= 7
        assert scheduler.heard.count(("register", "")) == 1


ONLINE = ("report_status", "online")


@pytest.mark.parametrize("away_s", [0, 45])
async def test_a_scheduler_that_comes_back_empty_knows_it_within_thirty_seconds(
    away_s: int,
) -> None:
    clock, scheduler = ManualClock(), Scheduler()
    async with scheduler.listening():
        port = scheduler.port
        bench = Bench()
        service = serving(bench, clock=clock, scheduler=f"tcp://127.0.0.1:{port}", sleep_after_s=0)
        at: Serving = await service.__aenter__()
        await at.service.registered()
    for _ in range(away_s):
        await clock.advance(1)
    async with scheduler.listening():
        assert await passes(clock, scheduler, within_s=30)
        assert await at.client.call("echo", {"value": 1}) == 1
        await service.__aexit__(None, None, None)


async def test_a_scheduler_that_freezes_or_refuses_never_stands_in_the_way_of_calls() -> None:
    clock, scheduler = ManualClock(), Scheduler()
    scheduler.refusing = True
    async with (
        scheduler.listening(),
        serving(Bench(), clock=clock, scheduler=scheduler.address, sleep_after_s=0) as at,
    ):
        await until(lambda: scheduler.heard)
        assert await at.client.call("echo", {"value": 1}) == 1
        scheduler.refusing = False
        assert await passes(clock, scheduler, within_s=30)


async def test_a_scheduler_that_is_not_there_is_no_reason_not_to_serve() -> None:
    async with serving(Bench(), scheduler="tcp://127.0.0.1:9") as at:
        assert await at.client.call("echo", {"value": 1}) == 1


async def test_the_advertised_host_is_registered() -> None:
    scheduler = Scheduler()
    async with (
        scheduler.listening(),
        serving(Bench(), scheduler=scheduler.address, advertise_host="box.lan") as at,
    ):
        await asyncio.wait_for(at.service.registered(), 20)
        assert scheduler.known["bench"]["address"] == f"tcp://box.lan:{at.service.port}"

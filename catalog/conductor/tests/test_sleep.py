"""Watching wakes nobody: an hour of pings and collects leaves sleeping handlers asleep."""

from __future__ import annotations

import asyncio

from catalogzero.testing import ManualClock, serving

from conductorzero import ConductorZero
from fleets import Shop, addresses, until


async def test_an_hour_of_pings_and_collects_keeps_no_handler_awake() -> None:
    clock = ManualClock()
    async with (
        serving(Shop(), handler_id="shop", clock=clock, sleep_after_s=300) as shop,
        ConductorZero(addresses({"shop": shop})) as conductor,
    ):
        await shop.client.call("greet", {"name": "ann"})
        states = []
        for _ in range(60):
            await clock.advance(60)
            health = await conductor.health_check()
            metrics = await conductor.collect_metrics()
            states.append(metrics["handlers"]["shop"]["status"])
            assert health["summary"]["healthy"] == 1
        wakes = (await shop.client.call("get_metrics"))["wakes_total"]

    assert states[0] == "idle"
    assert states[6:] == ["sleeping"] * 54
    assert wakes == 0


async def test_the_watch_itself_keeps_no_handler_awake() -> None:
    clock = ManualClock()
    async with (
        serving(Shop(), handler_id="shop", clock=clock, sleep_after_s=300) as shop,
        serving(
            ConductorZero(addresses({"shop": shop}), dashboard_port=None, interval_s=0.2),
            handler_id="conductor",
        ) as conductor,
    ):
        asked = asyncio.Event()
        handler = shop.handler
        original = handler.get_metrics

        async def counted() -> dict[str, object]:
            asked.set()
            return await original()

        handler.get_metrics = counted  # type: ignore[method-assign]
        for _ in range(13):
            await clock.advance(30)

        async def asleep() -> bool:
            metrics = await conductor.client.call("collect_metrics")
            return bool(metrics["handlers"]["shop"]["status"] == "sleeping")

        await until(asleep)
        metrics = await shop.client.call("get_metrics")

    assert metrics["wakes_total"] == 0
    assert metrics["runs_total"] == 0

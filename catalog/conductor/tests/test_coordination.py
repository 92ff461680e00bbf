"""Signals to handlers, and jobs for whichever handler is free; against real handlers."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
from catalogzero import Handler
from catalogzero.testing import Serving, serving

from conductorzero import ConductorZero
from conductorzero.coordination import Dispatch
from fleets import Shop, ShopProcess, addresses, conducting, free_port, shops, until, watching


def shop(serving_one: Serving) -> Shop:
    assert isinstance(serving_one.handler, Shop)
    return serving_one.handler


# --- signal ---------------------------------------------------------------------------------


async def test_a_signal_reaches_all_and_returns_each_answer() -> None:
    async with shops("one", "two") as fleet, ConductorZero(addresses(fleet)) as conductor:
        slept = await conductor.signal("sleep")
        states = await conductor.collect_metrics()
        woken = await conductor.signal("wake", ["two"])

    assert slept["handlers"] == {name: {"ok": True, "status": "sleeping"} for name in fleet}
    assert slept["summary"] == {"total": 2, "succeeded": 2, "failed": 0}
    assert {one["status"] for one in states["handlers"].values()} == {"sleeping"}
    assert woken["handlers"] == {"two": {"ok": True, "status": "idle"}} or woken["handlers"] == {
        "two": {"ok": True, "status": "active"}
    }


async def test_a_busy_handler_says_so_and_the_others_sleep() -> None:
    async with shops("one", "two") as fleet, ConductorZero(addresses(fleet)) as conductor:
        shop(fleet["one"]).gate.clear()
        greeting = asyncio.create_task(fleet["one"].client.call("greet", {"name": "ann"}))
        await shop(fleet["one"]).began.wait()
        result = await conductor.signal("sleep", ["one", "two", "nobody"])
        shop(fleet["one"]).gate.set()
        await greeting

    assert result["handlers"]["one"]["code"] == "busy"
    assert result["handlers"]["two"] == {"ok": True, "status": "sleeping"}
    assert result["handlers"]["nobody"]["error"] == "Unknown handler: nobody"
    assert result["summary"] == {"total": 3, "succeeded": 1, "failed": 2}


async def test_a_drained_handler_takes_no_job_until_it_resumes() -> None:
    async with shops("one") as fleet, ConductorZero(addresses(fleet)) as conductor:
        await conductor.signal("drain")
        refused = await conductor.dispatch("greet", {"name": "ann"})
        await conductor.signal("resume")
        done = await conductor.dispatch("greet", {"name": "ann"})

    assert refused["status"] == "refused"
    assert refused["tried"] == [{"handler_id": "one", "outcome": "draining"}]
    assert done["result"]["greeting"] == "hello ann"


# --- dispatch -------------------------------------------------------------------------------


async def test_the_least_loaded_handler_gets_the_job() -> None:
    async with shops("one", "two") as fleet, ConductorZero(addresses(fleet)) as conductor:
        shop(fleet["one"]).gate.clear()
        greeting = asyncio.create_task(fleet["one"].client.call("greet", {"name": "ann"}))
        await shop(fleet["one"]).began.wait()
        chosen = [await conductor.dispatch("greet", {"name": "ben"}) for _ in range(3)]
        shop(fleet["one"]).gate.set()
        await greeting

    assert [one["handler_id"] for one in chosen] == ["two"] * 3
    assert chosen[0]["success"] is True
    assert chosen[0]["result"] == {"greeting": "hello ben", "by": "two"}


async def test_a_handler_describes_its_methods_once() -> None:
    async with shops("one", "two") as fleet, ConductorZero(addresses(fleet)) as conductor:
        for number in range(4):
            await conductor.dispatch("greet", {"name": str(number)})

    assert [shop(one).described for one in fleet.values()] == [1, 1]


async def test_only_handlers_that_have_the_method_are_asked() -> None:
    class Plain(Handler):
        async def other(self) -> None:
            """Something else."""

    async with (
        shops("one") as fleet,
        serving(Plain(), handler_id="plain") as plain,
        ConductorZero({"plain": plain.address, **addresses(fleet)}) as conductor,
    ):
        done = await conductor.dispatch("greet", {"name": "ann"})
        nobody = await conductor.dispatch("unheard_of")

    assert done["handler_id"] == "one"
    assert nobody["status"] == "refused"
    assert "no handler could run unheard_of" in nobody["error"]


async def test_a_busy_handler_is_passed_over_for_the_next() -> None:
    full = {"max_concurrent_jobs": 1, "max_queued_jobs": 0}
    async with (
        shops("one", **full) as first,
        shops("two", max_concurrent_jobs=9) as second,
        AsyncExitStack() as stack,
    ):
        fleet = {**first, **second}
        conductor = await stack.enter_async_context(ConductorZero(addresses(fleet)))
        calls = []
        for name, count in (("one", 1), ("two", 3)):
            shop(fleet[name]).gate.clear()
            calls += [
                asyncio.create_task(fleet[name].client.call("greet", {"name": str(number)}))
                for number in range(count)
            ]
        await until(lambda: len(shop(fleet["two"]).calls) == 3)
        dispatching = asyncio.create_task(conductor.dispatch("greet", {"name": "last"}))
        await until(lambda: "last" in shop(fleet["two"]).calls)
        for one in fleet.values():
            shop(one).gate.set()
        await asyncio.gather(*calls)
        done = await dispatching

    assert done["handler_id"] == "two"
    assert done["tried"] == [
        {"handler_id": "one", "outcome": "busy"},
        {"handler_id": "two", "outcome": "success"},
    ]
    assert shop(fleet["one"]).calls == ["0"]


async def test_a_dead_handler_is_passed_over_for_the_next() -> None:
    async with (
        shops("two") as fleet,
        ConductorZero({"gone": free_port(), **addresses(fleet)}, timeout_s=0.3) as conductor,
    ):
        done = await conductor.dispatch("greet", {"name": "ann"}, among=["gone", "two"])

    assert done["handler_id"] == "two"
    assert done["tried"][0] == {"handler_id": "gone", "outcome": "unreachable"}


async def test_a_job_that_fails_is_not_run_elsewhere() -> None:
    async with shops("one", "two") as fleet, ConductorZero(addresses(fleet)) as conductor:
        result = await conductor.dispatch("fail")

    assert result["success"] is False
    assert result["status"] == "error"
    assert "no such shop" in result["error"]
    assert len(result["tried"]) == 1


async def test_a_long_job_is_run_once_however_often_it_is_asked_after() -> None:
    async with shops("one") as fleet, watching(addresses(fleet)) as watch:
        one = shop(fleet["one"])
        one.gate.clear()
        greet = Dispatch(watch, "greet", {"name": "ann"}, None, 5.0, look_after_s=0.1)
        dispatching = asyncio.create_task(greet.run())
        await one.began.wait()
        asked = 0

        async def asked_again() -> bool:
            nonlocal asked
            asked += 1
            return asked > 60

        await until(asked_again)
        one.gate.set()
        done = await dispatching

    assert done["status"] == "success"
    assert done["result"]["greeting"] == "hello ann"
    assert one.calls == ["ann"]


async def killed_in_the_middle(
    method: str, params: dict[str, Any], **spare: Any
) -> tuple[dict[str, Any], Shop]:
    """Dispatch to two handlers, and kill the chosen one while it works.

    The other is busy until then; with settings of its own for `spare`, until the end.
    """
    port = free_port()
    async with (
        shops("spare", **{"max_concurrent_jobs": 9, **spare}) as fleet,
        watching({"first": port, **addresses(fleet)}) as watch,
    ):
        other = shop(fleet["spare"])
        other.gate.clear()
        busy = [asyncio.create_task(fleet["spare"].client.call("greet", {"name": "x"}))]
        await other.began.wait()
        async with ShopProcess("first", port) as first:
            dispatch = Dispatch(watch, method, params, None, 5.0, look_after_s=0.2)
            dispatching = asyncio.create_task(dispatch.run())
            await first.said("began")
            await first.kill()
        if not spare:
            other.gate.set()
        result = await dispatching
        other.gate.set()
        await asyncio.gather(*busy)
        other.calls.remove("x")
        return result, other


async def test_a_job_whose_handler_dies_is_lost_and_not_run_elsewhere() -> None:
    result, spare = await killed_in_the_middle("greet", {"name": "ann"})

    assert result["success"] is False
    assert result["status"] == "lost"
    assert "first accepted greet and was lost" in result["error"]
    assert spare.calls == []


async def test_a_retry_safe_job_whose_handler_dies_is_run_by_the_next() -> None:
    result, spare = await killed_in_the_middle("count", {})

    assert result["status"] == "success"
    assert result["handler_id"] == "spare"
    assert [one["outcome"] for one in result["tried"]] == ["lost", "success"]
    assert spare.calls == ["count"]


async def test_a_retry_safe_job_that_may_have_begun_is_lost_where_nobody_else_takes_it() -> None:
    full = {"max_concurrent_jobs": 1, "max_queued_jobs": 0}

    result, spare = await killed_in_the_middle("count", {}, **full)

    assert result["status"] == "lost"
    assert [one["outcome"] for one in result["tried"]] == ["lost", "busy"]
    assert spare.calls == []


async def test_a_handler_that_was_started_anew_does_not_begin_the_job_again() -> None:
    port = free_port()
    async with watching({"first": port}) as watch:
        greet = Dispatch(
            watch, "greet", {"name": "ann"}, None, 5.0, look_after_s=0.2, silences_allowed=500
        )
        async with ShopProcess("first", port) as first:
            dispatching = asyncio.create_task(greet.run())
            await first.said("began")
            await first.kill()
        again = Shop()
        async with serving(again, handler_id="first", port=port):
            result = await dispatching

    assert result["status"] == "lost"
    assert "it restarted" in result["error"]
    assert again.calls == []


async def test_a_peer_that_leaves_the_registry_in_the_middle_is_lost_and_not_run_elsewhere(
    tmp_path: Path,
) -> None:
    registry = tmp_path / "registry.yaml"
    port = free_port()
    section = "handlers: [{{handler_id: {}, port: {}}}, {{handler_id: spare, port: {}}}]"
    async with shops("spare", max_concurrent_jobs=9) as fleet, ShopProcess("first", port) as first:
        spare, spare_port = shop(fleet["spare"]), fleet["spare"].service.port
        spare.gate.clear()
        busy = asyncio.create_task(fleet["spare"].client.call("greet", {"name": "x"}))
        await spare.began.wait()
        registry.write_text(section.format("first", port, spare_port))
        async with watching(registry) as watch:
            greet = Dispatch(watch, "greet", {"name": "ann"}, None, 5.0, look_after_s=0.2)
            dispatching = asyncio.create_task(greet.run())
            await first.said("began")
            registry.write_text(section.format("moved", free_port(), spare_port))
            await watch.refresh()
            await until(lambda: dispatching.done() or len(spare.calls) > 1)
            spare.gate.set()
            result = await dispatching
        await busy

    assert result["status"] == "lost"
    assert spare.calls == ["x"]


async def test_a_fleet_with_a_silent_handler_dispatches_without_waiting_for_it() -> None:
    registry: dict[str, int | str] = {"gone": free_port()}
    async with (
        shops("shop") as fleet,
        conducting({**registry, **addresses(fleet)}, timeout_s=600, interval_s=1.0) as conductor,
    ):

        async def known_to_be_gone() -> bool:
            metrics = await conductor.client.call("get_metrics")
            async with aiohttp.ClientSession() as session:
                told = await (await session.get(metrics["dashboard_url"] + "/api/fleet")).json()
            return bool(told["summary"]["states"]["unreachable"] == 1)

        await until(known_to_be_gone)
        call = {"method": "greet", "params": {"name": "ann"}}
        anyone = await conductor.client.call("dispatch", call)
        named = await conductor.client.call("dispatch", {**call, "among": ["gone", "shop"]})

    assert [one["handler_id"] for one in anyone["tried"]] == ["shop"]
    assert named["tried"][0] == {"handler_id": "gone", "outcome": "unreachable"}
    assert named["result"]["greeting"] == "hello ann"


async def test_a_dispatch_that_is_lost_fails_as_a_job_does() -> None:
    async with (
        shops("one") as fleet,
        serving(ConductorZero(addresses(fleet), dashboard_port=None)) as conductor,
    ):
        reply = await conductor.client.request("dispatch", {"method": "fail"})

    assert reply.success is False
    assert "no such shop" in reply.error

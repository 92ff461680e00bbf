"""Connections to handlers of other kinds: plain ScheduleZero ones, keyed ones, wrong addresses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import zmq
import zmq.asyncio
from catalogzero import ConfigError, CurveKeys
from catalogzero.testing import serving

from conductorzero import ConductorZero
from fleets import Shop, ShopProcess, addresses, conducting, free_port, shops


@asynccontextmanager
async def peer_that_answers(reply: Callable[[dict[str, Any]], bytes]) -> AsyncIterator[str]:
    """A peer of our protocol's form that answers whatever it likes; yields its address."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    port = socket.bind_to_random_port("tcp://127.0.0.1")

    async def answer() -> None:
        while True:
            *envelope, call = await socket.recv_multipart()
            await socket.send_multipart([*envelope, reply(json.loads(call))])

    answering = asyncio.create_task(answer())
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        answering.cancel()
        await asyncio.wait([answering])
        socket.close()
        context.term()


def saying(result: Any) -> Callable[[dict[str, Any]], bytes]:
    """A reply with this result to every call."""

    def reply(call: dict[str, Any]) -> bytes:
        body = {"success": True, "request_id": call.get("request_id"), "result": result}
        return json.dumps(body).encode()

    return reply


NONSENSE: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "bytes": lambda _: b"\xff\x00 nothing",
    "list": saying([1, 2, 3]),
    "id": lambda _: b'{"success": true, "request_id": [1], "result": {}}',
    "null": saying(None),
    "number": lambda _: b'{"success": true, "request_id": null, "result": 5}',
    "huge": saying({"version": "v" * 3_000_000, "memory_mb": 1}),
    "mixed": saying(
        {
            **{"memory_mb": 1, "cpu_percent": 1, "worker_memory_mb": [1], "in_flight": 10**25},
            **{"status": "idle", "queued": 1e300, "uptime_seconds": -1},
        }
    ),
    "types": saying(
        {
            **{"memory_mb": "lots", "cpu_percent": [1], "in_flight": {}, "queued": "many"},
            **{"failures_total": "3", "status": ["x"], "outbox": 7, "last_error": [1]},
            **{"boot_id": "b", "uptime_s": "long", "dedupe_window_s": None, "version": {"a": 1}},
        }
    ),
}


async def test_peers_that_answer_nonsense_leave_the_others_alone() -> None:
    async with AsyncExitStack() as stack:
        registry: dict[str, int | str] = {
            name: await stack.enter_async_context(peer_that_answers(reply))
            for name, reply in NONSENSE.items()
        }
        fleet = await stack.enter_async_context(shops("shop"))
        registry |= addresses(fleet)
        served = await stack.enter_async_context(conducting(registry, timeout_s=1.0))
        await served.client.call("health_check")
        metrics = await served.client.call("collect_metrics")
        done = await served.client.call("dispatch", {"method": "greet", "params": {"name": "ann"}})
        signalled = await served.client.call("signal", {"action": "wake"})
        url = (await served.client.call("get_metrics"))["dashboard_url"]
        session = await stack.enter_async_context(aiohttp.ClientSession())
        told = await (await session.get(f"{url}/api/fleet")).json()
        scraped = await (await session.get(f"{url}/metrics")).text()

    assert metrics["handlers"]["shop"]["memory_mb"] > 1
    assert metrics["summary"]["total_memory_mb"] > 1
    assert done["result"]["greeting"] == "hello ann"
    assert signalled["handlers"]["shop"]["ok"] is True
    rows = {row["handler_id"]: row for row in told["handlers"]}
    assert [rows["types"][name] for name in ("memory_mb", "in_flight", "outbox")] == [None] * 3
    assert len(rows["huge"]["version"]) <= 300
    assert len(scraped) < 50_000


async def test_a_handler_of_another_name_is_reported() -> None:
    async with shops("backup") as fleet:
        address = fleet["backup"].address
        async with conducting({"discord": address}) as conductor:
            pong = await conductor.client.call("ping_handler", {"handler_id": "discord"})
            url = (await conductor.client.call("get_metrics"))["dashboard_url"]
            async with aiohttp.ClientSession() as session:
                told = await (await session.get(f"{url}/api/fleet")).json()

    assert pong["alive"] is True
    assert told["handlers"][0]["trouble"] == "answers as backup"


@asynccontextmanager
async def plain_handler() -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """A handler as ScheduleZero's base class makes them: REP, and no request_id in its replies."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.REP)
    socket.setsockopt(zmq.LINGER, 0)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    calls: list[dict[str, Any]] = []

    async def answer() -> None:
        while True:
            call = json.loads(await socket.recv())
            calls.append(call)
            known = {
                "ping": {"success": True, "message": "pong"},
                "get_metrics": {"success": True, "memory_mb": 12, "rows": 10**30},
            }
            refused = {"success": False, "error": f"Unknown method: {call['method']}"}
            await socket.send(json.dumps(known.get(call["method"], refused)).encode())

    answering = asyncio.create_task(answer())
    try:
        yield f"tcp://127.0.0.1:{port}", calls
    finally:
        answering.cancel()
        await asyncio.wait([answering])
        socket.close()
        context.term()


async def test_a_plain_handler_is_alive_from_the_first_question_on() -> None:
    async with (
        plain_handler() as (address, calls),
        ConductorZero({"plain": address}) as conductor,
    ):
        pongs = [await conductor.ping_handler("plain") for _ in range(3)]
        metrics = await conductor.collect_metrics()

        refused = await conductor.signal("sleep")
        done = await conductor.dispatch("work")

    assert [pong["alive"] for pong in pongs] == [True, True, True]
    assert metrics["handlers"]["plain"]["memory_mb"] == 12
    assert refused["handlers"]["plain"]["error"] == "Unknown method: sleep"
    assert done["status"] == "refused"
    assert all("request_id" not in call for call in calls[1:])


async def test_a_handler_that_was_slow_at_first_is_not_taken_for_a_plain_one() -> None:
    port = free_port()
    async with (
        ConductorZero({"shop": port}, timeout_s=0.5) as conductor,
        ShopProcess("shop", port) as shop,
    ):
        shop.freeze()
        while (await conductor.ping_handler("shop"))["alive"]:
            pass
        shop.thaw()
        while not (await conductor.ping_handler("shop"))["alive"]:
            pass
        done = await conductor.dispatch("fail")

    assert done["status"] == "error"
    assert "no such shop" in done["error"]


def written_keys(folder: Path, mine: CurveKeys, theirs: CurveKeys) -> dict[str, Path]:
    """Write the conductor's keys and a handler's; the handler's `curve`, which lets ours in."""
    for name, keys in (("conductor", mine), ("shop", theirs)):
        text = f"public: {keys.public.decode()}\nsecret: {keys.secret.decode()}\n"
        (folder / name).write_text(text)
    (folder / "clients").write_text(mine.public.decode() + "\n")
    return {"key_file": folder / "shop", "clients_file": folder / "clients"}


async def test_handlers_with_keys_are_reached_with_keys(tmp_path: Path) -> None:
    mine, theirs = CurveKeys.new(), CurveKeys.new()
    curve = written_keys(tmp_path, mine, theirs)
    async with (
        serving(Shop(), handler_id="open") as unkeyed,
        serving(Shop(), handler_id="keyed", curve=curve) as keyed,
    ):
        registry = addresses({"keyed": keyed, "open": unkeyed})
        config: dict[str, Any] = {"curve_key_file": tmp_path / "conductor"}
        config["server_keys"] = {"keyed": theirs.public.decode()}
        async with ConductorZero(registry, **config) as conductor:
            health = await conductor.health_check()
        async with ConductorZero(registry, timeout_s=0.3) as stranger:
            refused = await stranger.health_check()

    assert health["summary"]["healthy"] == 2
    assert refused["handlers"]["keyed"]["alive"] is False


async def test_a_wrong_key_makes_its_handler_unreachable_and_no_other(tmp_path: Path) -> None:
    mine, theirs, others = CurveKeys.new(), CurveKeys.new(), CurveKeys.new()
    curve = written_keys(tmp_path, mine, theirs)
    async with (
        serving(Shop(), handler_id="open") as unkeyed,
        serving(Shop(), handler_id="keyed", curve=curve) as keyed,
    ):
        registry = addresses({"keyed": keyed, "open": unkeyed})
        for wrong in (others.public.decode(), "#" * 40):
            config: dict[str, Any] = {"curve_key_file": tmp_path / "conductor"}
            config["server_keys"] = {"keyed": wrong}
            async with ConductorZero(registry, timeout_s=0.5, **config) as conductor:
                health = await conductor.health_check()

            assert health["handlers"]["keyed"]["alive"] is False
            assert health["handlers"]["open"]["alive"] is True
    assert "public key" in health["handlers"]["keyed"]["error"]


def test_keys_of_handlers_without_an_own_pair_are_refused() -> None:
    with pytest.raises(ConfigError, match="curve_key_file"):
        ConductorZero({}, server_keys={"shop": "x" * 40})
    with pytest.raises(ConfigError, match=r"server_keys\.shop"):
        ConductorZero({}, server_keys={"shop": "~" * 40})


async def test_an_address_that_is_none_leaves_the_others_alone() -> None:
    async with shops("one") as fleet:
        registry = {"odd": "tcp://münchen:5001", **addresses(fleet)}
        async with ConductorZero(registry, timeout_s=0.5) as conductor:
            health = await conductor.health_check()

    assert health["handlers"]["one"]["alive"] is True
    assert health["handlers"]["odd"]["alive"] is False
    assert health["handlers"]["odd"]["error"]

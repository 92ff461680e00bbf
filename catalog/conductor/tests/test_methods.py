"""The four methods that clients schedule: their keys to the letter, their errors, their costs."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from catalogzero import ConfigError, TooLargeError
from catalogzero.testing import serving

from conductorzero import ConductorZero
from conductorzero.handler import bounded
from fleets import Shop, addresses, conducting, free_port, shops

GOLDEN = yaml.safe_load((Path(__file__).parent / "golden_keys.yaml").read_text())
MORE_THAN_THE_CORE = {
    *("in_flight", "queued", "runs_total", "failures_total", "last_error", "idle_s"),
    *("wakes_total", "worker_memory_mb", "sdk_version", "entry", "version"),
    *("peers_cut_total", "replies_dropped_total", "last_successful_run", "last_failed_run"),
    *("health.status", "health.reasons"),
}


def key_paths(value: Any, *, ids: tuple[str, ...]) -> set[str]:
    """Every path of keys inside a result; a handler's id is written `*`."""
    if not isinstance(value, dict):
        return {""}
    return {
        ("*" if key in ids else key) + (f".{rest}" if rest else "")
        for key, inner in value.items()
        for rest in key_paths(inner, ids=ids)
    }


async def test_ping_handler_has_the_golden_keys() -> None:
    async with shops("discord") as fleet, ConductorZero(addresses(fleet)) as conductor:
        pong = await conductor.ping_handler("discord")

    assert key_paths(pong, ids=()) == set(GOLDEN["ping_handler"]["alive"])
    assert pong["alive"] is True
    assert pong["handler_id"] == "discord"
    assert 0 < pong["response_time_ms"] < 5_000


async def test_a_dead_handler_is_a_timeout() -> None:
    async with ConductorZero({"gone": free_port()}, timeout_s=0.1) as conductor:
        pong = await conductor.ping_handler("gone")

    assert pong == {"alive": False, "error": "Timeout"}
    assert set(pong) == set(GOLDEN["ping_handler"]["dead"])


async def test_an_unknown_handler_is_named() -> None:
    async with ConductorZero({}) as conductor:
        assert await conductor.ping_handler("nobody") == {
            "alive": False,
            "error": "Unknown handler: nobody",
        }


async def test_collect_metrics_has_the_golden_keys() -> None:
    async with (
        shops("discord", "backup") as fleet,
        ConductorZero({**addresses(fleet), "gone": free_port()}, timeout_s=0.5) as conductor,
    ):
        result = await conductor.collect_metrics()

    paths = key_paths(result, ids=("discord", "backup", "gone"))
    assert paths - {f"handlers.*.{key}" for key in MORE_THAN_THE_CORE} == set(
        GOLDEN["collect_metrics"]
    )
    assert result["handlers"]["gone"] == {"error": "Timeout"}
    summary = result["summary"]
    assert (summary["total_handlers"], summary["alive_handlers"]) == (3, 2)
    assert summary["total_memory_mb"] == pytest.approx(
        sum(result["handlers"][one]["memory_mb"] for one in ("discord", "backup"))
    )
    assert datetime.fromisoformat(summary["timestamp"]).utcoffset() is not None


async def test_collect_metrics_asks_only_the_handlers_named() -> None:
    async with shops("discord", "backup") as fleet, ConductorZero(addresses(fleet)) as conductor:
        result = await conductor.collect_metrics(handler_ids=["backup", "nobody"])

    assert set(result["handlers"]) == {"backup", "nobody"}
    assert result["handlers"]["nobody"] == {"error": "Unknown handler: nobody"}
    assert result["summary"]["total_handlers"] == 2
    assert result["summary"]["alive_handlers"] == 1


async def test_health_check_has_the_golden_keys() -> None:
    async with (
        shops("discord") as fleet,
        ConductorZero({**addresses(fleet), "gone": free_port()}, timeout_s=0.5) as conductor,
    ):
        result = await conductor.health_check()

    assert key_paths(result, ids=("discord", "gone")) == set(GOLDEN["health_check"])
    assert result["handlers"]["discord"]["alive"] is True
    assert result["handlers"]["discord"]["error"] is None
    assert result["handlers"]["gone"] == {
        "alive": False,
        "response_time_ms": None,
        "error": "Timeout",
    }
    assert result["summary"] == {"healthy": 1, "total": 2, "health_percentage": 50.0}


async def test_an_empty_fleet_is_zero_percent_healthy() -> None:
    async with ConductorZero({}) as conductor:
        result = await conductor.health_check()

    assert result["summary"] == {"healthy": 0, "total": 0, "health_percentage": 0}


async def test_system_metrics_have_the_golden_keys() -> None:
    async with ConductorZero({}) as conductor:
        result = await conductor.get_system_metrics()

    assert key_paths(result, ids=()) == set(GOLDEN["get_system_metrics"])
    assert result["memory"]["total_mb"] > result["memory"]["used_mb"] > 0
    assert result["disk"]["total_gb"] > 0


async def test_dead_handlers_cost_one_timeout_together() -> None:
    dead = {f"gone{number}": free_port() for number in range(20)}
    async with ConductorZero(dead, timeout_s=0.4) as conductor, asyncio.timeout(4):
        result = await conductor.health_check()

    assert result["summary"] == {"healthy": 0, "total": 20, "health_percentage": 0.0}


async def test_a_call_to_a_dead_handler_never_reaches_it_later() -> None:
    port = free_port()
    async with ConductorZero({"late": port}, timeout_s=0.2) as conductor:
        refused = await conductor.dispatch("greet", {"name": "ann"}, among=["late"])
        shop = Shop()
        async with serving(shop, handler_id="late", port=port):
            while not (await conductor.ping_handler("late"))["alive"]:
                pass
            calls = list(shop.calls)

    assert refused["status"] == "refused"
    assert calls == []


async def test_a_handler_that_comes_back_is_alive_again_on_the_same_connection() -> None:
    port = free_port()
    async with ConductorZero({"shop": port}, timeout_s=0.5) as conductor:
        seen = []
        for _ in range(2):
            async with serving(Shop(), handler_id="shop", port=port):
                while not (await conductor.ping_handler("shop"))["alive"]:
                    pass
                seen.append(True)
            seen.append((await conductor.ping_handler("shop"))["alive"])

    assert seen == [True, False, True, False]


async def test_served_its_methods_can_be_called_over_the_wire() -> None:
    async with shops("discord") as fleet, conducting(addresses(fleet)) as conductor:
        described = await conductor.client.call("describe")
        health = await conductor.client.call("health_check")
        flat = await conductor.client.request_plain("collect_metrics")

    assert {method["name"] for method in described["methods"]} == {
        *("ping_handler", "collect_metrics", "get_system_metrics", "health_check"),
        *("signal", "dispatch"),
    }
    assert health["summary"]["healthy"] == 1
    assert flat.result["success"] is True
    assert flat.result["summary"]["total_handlers"] == 1


async def test_its_own_metrics_name_the_dashboard() -> None:
    async with shops("discord") as fleet, conducting(addresses(fleet)) as conductor:
        metrics = await conductor.client.call("get_metrics")

    assert metrics["dashboard_url"].startswith("http://127.0.0.1:")
    assert metrics["handlers_watched"] == 1


@pytest.mark.parametrize("value", ["here", 0, 70_000, "http://127.0.0.1:80", ""])
def test_a_registry_value_that_is_no_address_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ConfigError, match="discord"):
        ConductorZero({"discord": value})


def of_a_processor(number: int, **more: Any) -> dict[str, Any]:
    """What a handler that uploads says of itself, with everything that it may say."""
    metrics = {
        **{"handler_id": f"warehouse-{number:04d}", "cpu_percent": 12.5, "memory_mb": 48.203125},
        **{"num_threads": 9, "connections": 14, "uptime_seconds": 864_021.532, "status": "idle"},
        **{"timestamp": "2026-11-26T03:07:19.217183+00:00", "in_flight": 4, "queued": 12},
        **{"runs_total": 120_433, "failures_total": 212, "idle_s": 12.341, "wakes_total": 3_211},
        "last_error": "HTTPStatusError: the backend answered 503 to PUT /v1/process/chunks",
        **{"worker_memory_mb": 143.91, "sdk_version": "0.1.0", "entry": "acme-processor"},
        **{"version": "1.4.2", "installation_id": "0f2f4f4e-8f2b-4a39-a2fd-0c5c8d4f0c55"},
        "outbox": {"uploads": 7, "bytes": 1_048_576, "oldest_age_s": 61.2, "dead": 1},
    }
    return {**metrics, **more}


def encoded(result: Any) -> int:
    """The bytes of a result on the wire."""
    return len(json.dumps(result, separators=(",", ":")).encode())


async def test_metrics_of_a_thousand_processors_fit_in_a_message_whole() -> None:
    metrics = {f"warehouse-{n:04d}": of_a_processor(n) for n in range(1_000)}

    assert bounded(metrics) is metrics
    assert encoded(metrics) < 1 << 20


async def test_what_does_not_fit_is_cut_where_it_is_large() -> None:
    metrics = {f"warehouse-{n:04d}": of_a_processor(n) for n in range(900)}
    for number in range(100):
        metrics[f"talker-{number}"] = of_a_processor(number, note="x" * 900_000, version="v" * 999)
    cut = bounded(metrics)

    assert encoded(cut) < 1 << 20
    assert cut["warehouse-0001"] == metrics["warehouse-0001"]
    assert "note" not in cut["talker-1"]
    assert cut["talker-1"]["memory_mb"] == metrics["talker-1"]["memory_mb"]


async def test_metrics_of_a_thousand_talkers_are_cut_to_their_core() -> None:
    metrics = {f"talker-{n}": of_a_processor(n, note="x" * 2_000) for n in range(1_000)}
    cut = bounded(metrics)

    assert encoded(cut) < 1 << 20
    assert all({"memory_mb", "status", "runs_total"} < set(one) for one in cut.values())


async def test_a_result_over_the_message_limit_is_refused_aloud() -> None:
    nobody = [f"h-{number}" for number in range(200)]
    conductor = ConductorZero({}, dashboard_port=None)
    async with serving(conductor, handler_id="conductor", max_message_bytes=4_096) as one:
        with pytest.raises(TooLargeError, match="the limit is 4096"):
            await one.client.call("collect_metrics", {"handler_ids": nobody})

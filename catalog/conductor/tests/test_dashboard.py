"""The dashboard's server: what it answers, and to whom."""

from __future__ import annotations

import asyncio
import itertools
import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from catalogzero import ConfigError
from catalogzero.testing import Serving, serving

from conductorzero import ConductorZero
from fleets import Shop, addresses, conducting, free_port, shops, until

MAX_PAGE_BYTES = 100 << 10
TOKEN = "a-token-of-enough-characters"  # noqa: S105 - a test's own


class Site:
    """A dashboard, and a client for it."""

    def __init__(self, conductor: Serving, url: str, session: aiohttp.ClientSession) -> None:
        self.conductor = conductor
        self.url = url
        self.session = session

    async def get(self, path: str, **headers: str) -> aiohttp.ClientResponse:
        return await self.session.get(self.url + path, headers=headers)

    async def read(self, path: str) -> Any:
        response = await self.get(path)
        assert response.status == 200, await response.text()
        return await response.json()

    async def post(self, path: str, body: Any, **headers: str) -> aiohttp.ClientResponse:
        return await self.session.post(self.url + path, json=body, headers=headers)


@asynccontextmanager
async def site(registry: Any, **config: Any) -> AsyncIterator[Site]:
    async with conducting(registry, **config) as conductor, aiohttp.ClientSession() as session:
        metrics = await conductor.client.call("get_metrics")
        yield Site(conductor, metrics["dashboard_url"], session)


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return path


async def test_the_fleet_is_shown_as_json() -> None:
    registry: dict[str, int | str] = {"gone": free_port()}
    async with shops("one", "two") as fleet, site({**addresses(fleet), **registry}) as web:

        async def looked() -> bool:
            told = await web.read("/api/fleet")
            states = {row["handler_id"]: row["state"] for row in told["handlers"]}
            return states == {"one": "active", "two": "active", "gone": "unreachable"}

        await until(looked)
        told = await web.read("/api/fleet")

    rows = {row["handler_id"]: row for row in told["handlers"]}
    assert told["summary"]["alive"] == 2
    assert rows["gone"]["state"] == "unreachable"
    assert rows["one"]["state"] == "active"
    assert rows["one"]["memory_mb"] > 1 or rows["two"]["memory_mb"] > 1
    assert rows["one"]["response_time_ms"] > 0
    assert told["problems"] == []
    assert {event["handler_id"] for event in told["events"]} == {"one", "two", "gone"}


async def test_one_handler_shows_its_methods_runs_and_settings() -> None:
    async with shops("one") as fleet, site(addresses(fleet)) as web:
        await fleet["one"].client.call("greet", {"name": "ann"})
        told = await web.read("/api/handlers/one")
        missing = await web.get("/api/handlers/nobody")

    names = [method["name"] for method in told["description"]["methods"]]
    assert names == ["greet", "count", "fail"]
    assert told["runs"]["runs"][0]["method"] == "greet"
    assert missing.status == 404
    assert (await missing.json())["error"]["message"] == "Unknown handler: nobody"


async def test_a_run_is_shown_as_its_handler_keeps_it() -> None:
    registry: dict[str, int | str] = {"gone": free_port()}
    async with shops("one") as fleet, site({**addresses(fleet), **registry}) as web:
        await fleet["one"].client.call("greet", {"name": "ann"})
        run_id = (await web.read("/api/handlers/one"))["runs"]["runs"][0]["run_id"]
        told = await web.read(f"/api/handlers/one/runs/{run_id}")
        paths = ("one/runs/other", "nobody/runs/x", "gone/runs/x")
        refused = [(await web.get(f"/api/handlers/{path}")).status for path in paths]

    assert told["run"]["result"] == {"greeting": "hello ann", "by": "one"}
    assert told["run"]["outcome"]["state"] == "done"
    assert refused == [404, 404, 503]


async def test_the_history_of_the_whole_fleet_goes_by_hours() -> None:
    async with shops("one") as fleet, site(addresses(fleet)) as web:
        told: dict[str, Any] = {}

        async def looked() -> bool:
            told.update(await web.read("/api/history?window_s=86400&step_s=3600"))
            return told["total"]["memory_mb"] is not None

        await until(looked)

    times = [point["at"] for point in told["points"]]
    assert {after - before for before, after in itertools.pairwise(times)} == {3_600}
    assert told["total"]["memory_mb"] > 1
    assert told["total"]["delivered"] == 0


async def test_the_history_has_evenly_spaced_points_and_a_total() -> None:
    async with shops("one") as fleet, site(addresses(fleet)) as web:
        await web.conductor.client.call("health_check")
        await web.conductor.client.call("collect_metrics")
        told = await web.read("/api/handlers/one/history?window_s=3600")
        refused = await web.get("/api/handlers/one/history?window_s=soon")

    times = [point["at"] for point in told["points"]]
    assert {after - before for before, after in itertools.pairwise(times)} == {60}
    assert told["total"]["availability"] == 1
    assert told["total"]["p50_ms"] > 0
    assert told["total"]["memory_mb"] > 1
    assert refused.status == 400


async def test_what_was_seen_outlives_a_restart(tmp_path: Path) -> None:
    async with shops("one") as fleet:
        for _ in range(2):
            conductor = ConductorZero(addresses(fleet), dashboard_port=0)
            async with serving(conductor, handler_id="conductor", state_dir=tmp_path) as served:
                await served.client.call("health_check")
                url = (await served.client.call("get_metrics"))["dashboard_url"]
                async with aiohttp.ClientSession() as session:
                    response = await session.get(f"{url}/api/events")
                    events = (await response.json())["events"]

    assert [event["kind"] for event in events].count("joined") == 2


async def test_prometheus_is_served() -> None:
    async with shops("one") as fleet, site(addresses(fleet)) as web:
        await web.conductor.client.call("health_check")
        response = await web.get("/metrics")
        text = await response.text()

    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'catalogzero_handler_up{handler_id="one"} 1' in text


async def stream_of(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    while True:
        block = (await response.content.readuntil(b"\n\n")).decode()
        if block.startswith("event: "):
            event, _, data = block.partition("\n")
            yield event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


async def test_the_stream_begins_with_everything_and_goes_on_with_changes() -> None:
    async with shops("one", "two") as fleet, site(addresses(fleet)) as web:
        response = await web.get("/api/stream")
        events = stream_of(response)
        kind, snapshot = await anext(events)
        await fleet["two"].client.call("sleep")
        states: list[str] = []
        async with asyncio.timeout(10):
            async for _, change in events:
                states += [r["state"] for r in change["handlers"] if r["handler_id"] == "two"]
                if "sleeping" in states:
                    break
        response.close()

    assert kind == "snapshot"
    assert {row["handler_id"] for row in snapshot["handlers"]} == {"one", "two"}
    assert "latency_trail" in snapshot["handlers"][0]


async def test_the_stream_names_the_members_when_they_change(tmp_path: Path) -> None:
    registry = tmp_path / "registry.yaml"
    registry.write_text("handlers: [{handler_id: one, port: 5001}]")
    async with site(registry) as web:
        response = await web.get("/api/stream")
        events = stream_of(response)
        await anext(events)
        registry.write_text("handlers: [{handler_id: other, port: 5001}]")
        async with asyncio.timeout(10):
            while "members" not in (change := (await anext(events))[1]):
                pass
        response.close()

    assert change["members"] == ["other"]


async def test_pages_and_their_parts_come_from_nowhere_else() -> None:
    async with site({}) as web:
        paths = ("/", "/handlers/one", "/handlers/one/runs/r", "/static/fleet.js")
        for path in (*paths, "/static/conductor.css", "/assets/style.css", "/favicon.ico"):
            response = await web.get(path)
            text = await response.text()

            assert response.status == 200
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
            assert "https://" not in text
            assert len(text) < MAX_PAGE_BYTES


@pytest.mark.parametrize("host", ["evil.example", "evil.example:5998", "127.0.0.1.evil.example"])
async def test_a_name_that_is_not_its_own_is_refused(host: str) -> None:
    async with site({}) as web:
        response = await web.get("/api/fleet", Host=host)

    assert response.status == 421


async def test_a_name_that_the_settings_list_is_answered() -> None:
    async with site({}, dashboard_hosts=["fleet.internal"]) as web:
        response = await web.get("/api/fleet", Host="Fleet.internal:5998")

    assert response.status == 200


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}],
)
async def test_a_request_of_another_site_is_refused(
    headers: dict[str, str], token_file: Path
) -> None:
    async with shops("one") as fleet, site(addresses(fleet), token_file=token_file) as web:
        body = {"action": "sleep", "handler_ids": ["one"]}
        response = await web.post("/api/signal", body, **headers, **bearer())
        state = (await fleet["one"].client.call("get_metrics"))["status"]

    assert response.status == 403
    assert state == "active"


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), bearer(""), {"Authorization": TOKEN}])
async def test_a_signal_without_the_token_is_refused(
    headers: dict[str, str], token_file: Path
) -> None:
    async with shops("one") as fleet, site(addresses(fleet), token_file=token_file) as web:
        response = await web.post("/api/signal", {"action": "sleep"}, **headers)
        state = (await fleet["one"].client.call("get_metrics"))["status"]

    assert response.status == 401
    assert state == "active"


async def test_a_signal_with_the_token_is_sent(token_file: Path) -> None:
    async with shops("one", "two") as fleet, site(addresses(fleet), token_file=token_file) as web:
        body = {"action": "sleep", "handler_ids": ["one"]}
        response = await web.post("/api/signal", body, Origin=web.url, **bearer())
        told = await response.json()
        states = [(await one.client.call("get_metrics"))["status"] for one in fleet.values()]

    assert response.status == 200
    assert told["handlers"] == {"one": {"ok": True, "status": "sleeping"}}
    assert states == ["sleeping", "active"]


@pytest.mark.parametrize(
    "body",
    [[], {"action": "kill"}, {"action": ["sleep"]}, {"action": "sleep", "handler_ids": "one"}, 3],
)
async def test_a_signal_that_is_none_is_refused(body: Any, token_file: Path) -> None:
    async with site({}, token_file=token_file) as web:
        assert (await web.post("/api/signal", body, **bearer())).status == 400


async def test_the_token_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    conductor = ConductorZero({}, dashboard_port=0)
    async with serving(conductor, handler_id="conductor", state_dir=tmp_path):
        path = tmp_path / "conductor" / "dashboard_token"

        assert len(path.read_text().strip()) >= 24
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_beyond_loopback_everything_but_the_bare_pages_needs_the_token(
    token_file: Path,
) -> None:
    async with site({}, token_file=token_file, dashboard_host="0.0.0.0") as web:  # noqa: S104
        web.url = web.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        paths = ("/api/fleet", "/api/stream", "/metrics", "/")
        refused = [(await web.get(path)).status for path in paths]
        allowed = await web.get("/api/fleet", **bearer())

    assert refused == [401, 401, 401, 200]
    assert allowed.status == 200


async def test_a_taken_port_is_a_configuration_error() -> None:
    async with site({}) as web:
        port = int(web.url.rpartition(":")[2])
        with pytest.raises(ConfigError, match="dashboard_port"):
            async with conducting({}, dashboard_port=port):
                pass


async def test_no_token_stands_in_metrics_or_description(token_file: Path) -> None:
    async with shops("one") as fleet, site(addresses(fleet), token_file=token_file) as web:
        texts = [
            json.dumps(await web.conductor.client.call(method))
            for method in ("get_metrics", "describe", "list_runs")
        ]
        texts.append(await (await web.get("/api/fleet")).text())

    assert not [text for text in texts if TOKEN in text]


async def test_a_broken_handler_shows_its_error() -> None:
    async with shops("one") as fleet, site(addresses(fleet)) as web:
        await web.conductor.client.call("collect_metrics")
        await fleet["one"].client.request("fail")
        await web.conductor.client.call("collect_metrics")
        told = await web.read("/api/events?handler_id=one")

    assert told["events"][0]["kind"] == "failure"
    # What an exception says may hold a row: that stays in the run's record and the log.
    assert told["events"][0]["text"].startswith("ValueError in fail, run ")
    assert isinstance(fleet["one"].handler, Shop)

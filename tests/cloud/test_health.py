"""What health reports say of the runs, and how often they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from catalogzero.testing import ManualClock, serving

from tests.cloud.processors import Plain
from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site, until

MONTH_S = 30 * 86_400


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


def processor(backend: ReferenceBackend, data: Path) -> Plain:
    return Plain(endpoint=backend.url, api_key="test-key", data_roots=[data])


class Busy(Plain):
    """Has a job that lasts until the test lets it go."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.let_go = asyncio.Event()

    async def wait(self) -> None:
        """Hold a place until then."""
        await self.let_go.wait()


async def test_a_failed_run_makes_health_failing_until_a_run_succeeds(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    source = tmp_path / "a.csv"
    call = {"data_source": str(source)}
    async with serving(processor(backend, tmp_path), settle_s=0) as service:
        failed = await service.client.request("process_and_upload", call, timeout_s=30)
        await service.client.call("health_report")
        await service.client.call("health_report")
        source.write_text("n\n1\n")
        await service.client.call("process_and_upload", call, timeout_s=30)
        await service.client.call("health_report")

    assert not failed.success
    first, again, then = backend.reports[:3]
    assert [report["status"] for report in (first, again, then)] == ["failing", "failing", "ok"]
    assert failed.run_id in again["reasons"][0]
    assert (then["reasons"], then["metrics"]["last_error"]) == ([], None)
    assert then["runs"] == {"ok": 3, "failed": 1, "running": 0}


async def test_a_report_counts_the_runs_beside_it_and_not_its_own(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    busy = Busy(endpoint=backend.url, api_key="test-key", data_roots=[tmp_path])
    async with serving(busy) as service:
        waiting = asyncio.create_task(service.client.call("wait"))
        while (await service.client.call("get_metrics"))["in_flight"] == 0:
            pass
        await service.client.call("health_report")
        busy.let_go.set()
        await waiting
        await service.client.call("health_report")

    assert [report["runs"]["running"] for report in backend.reports[:2]] == [1, 0]


async def test_reports_come_at_the_interval_that_is_set_then_at_the_one_that_a_backend_asks_for(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    answer: dict[str, Any] = {}

    def reports() -> list[dict[str, Any]]:
        return [orjson.loads(body) for _, path, body in backend.bodies if path.endswith("/health")]

    def asks(request: web.Request) -> web.Response | None:
        return web.json_response(answer) if request.path.endswith("/health") else None

    async def until_reported(count: int, step_s: float) -> float:
        """Let time pass in such steps until there are that many reports; how long it took."""
        began_s = clock.monotonic()
        async with asyncio.timeout(30):
            while len(reports()) < count:
                await clock.advance(step_s)
                await service.client.ping()
        return clock.monotonic() - began_s

    backend.fault = asks
    clock = ManualClock()
    async with serving(
        processor(backend, tmp_path), clock=clock, health_interval_s=MONTH_S, sleep_after_s=0
    ) as service:
        await until(lambda: len(reports()) == 1)
        answer["next_interval_s"] = 20
        at_first_s = await until_reported(2, MONTH_S / 10)
        then_s = await until_reported(4, 10)

    assert at_first_s >= MONTH_S
    assert 20 <= then_s < MONTH_S
    assert [report["interval_s"] for report in reports()[:4]] == [MONTH_S, MONTH_S, 20, 20]


@pytest.mark.parametrize("limit", [1, 3])
async def test_no_more_chunks_are_under_way_than_upload_concurrency(
    backend: ReferenceBackend, tmp_path: Path, limit: int
) -> None:
    release, under_way, most = asyncio.Event(), 0, 0

    async def held(request: web.Request) -> None:
        nonlocal under_way, most
        if "/chunks/" in request.path:
            under_way += 1
            most = max(most, under_way)
            await release.wait()
            under_way -= 1

    backend.gate = held
    runtime = {"chunk_bytes": 1_024, "upload_wait_s": 30}
    async with Site(
        backend.url, tmp_path, runtime=runtime, upload_concurrency=limit, upload_form="chunked"
    ) as site:
        site.write("a.csv", "n\n" + "".join(f"{n:0100}\n" for n in range(100)))
        running = asyncio.create_task(site.run())
        await until(lambda: under_way == limit)
        await site.engine.report_health({}, {})  # a request after those that the sender began
        release.set()
        result = await running

    assert result["status"] == "uploaded"
    assert most == limit

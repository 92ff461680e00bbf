"""One line of the log for each event on the way to the backend, and few while nothing happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from catalogzero.testing import ManualClock, serving
from structlog.testing import capture_logs

from tests.cloud.processors import Plain
from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site, nudged, until
from tests.cloud.test_connecting import behind_tls, certificate  # noqa: F401 - a fixture

Lines = list[Any]


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


@pytest.fixture
def lines() -> Any:
    with capture_logs() as found:
        yield found


def of(lines: Lines, event: str) -> Lines:
    """The lines of an event."""
    return [line for line in lines if line["event"] == event]


def answers(status: int) -> Callable[[web.Request], web.Response]:
    return lambda request: web.Response(status=status)


async def test_an_upload_is_one_line_when_it_has_arrived(
    backend: ReferenceBackend, tmp_path: Path, lines: Lines
) -> None:
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", "n\n1\n2\n")
        result = await site.run()
    [line] = of(lines, "upload completed")
    assert line["log_level"] == "info"
    assert (line["upload_id"], line["records"]) == (result["upload_ids"][0], 2)
    assert not [one for one in lines if one["log_level"] not in {"info", "debug"}]


async def test_an_upload_that_is_retried_for_hours_is_a_few_lines_and_one_when_it_arrives(
    backend: ReferenceBackend, tmp_path: Path, lines: Lines
) -> None:
    clock, failed = ManualClock(), 0

    def fails(request: web.Request) -> web.Response | None:
        nonlocal failed
        if "/uploads/" not in request.path:
            return None
        failed += 1
        return web.Response(status=500)

    backend.fault = fails
    runtime = {"upload_wait_s": 0}
    async with Site(backend.url, tmp_path, clock=clock, runtime=runtime) as site, nudged(site):
        site.write("a.csv", "n\n1\n")
        await site.run()
        async with asyncio.timeout(60):
            while failed < 30:
                await clock.advance(30)
                await asyncio.to_thread(int)
        backend.fault = lambda request: None
        async with asyncio.timeout(60):
            while not of(lines, "upload completed"):
                await clock.advance(30)
                await asyncio.to_thread(int)
    retried = of(lines, "upload retried")
    assert retried[0]["failed_tries"] == 1
    assert retried[0]["next_try_at"]
    assert "500" in retried[0]["reason"]
    assert 3 <= len(retried) <= 8
    assert len(of(lines, "uploads arrive again")) == 1


async def test_a_backend_that_is_away_and_back_is_two_lines(
    backend: ReferenceBackend, tmp_path: Path, lines: Lines
) -> None:
    def breaks(request: web.Request) -> None:
        assert request.transport is not None
        request.transport.abort()

    async def cut(request: web.Request) -> None:
        breaks(request)

    backend.gate = cut
    async with Site(backend.url, tmp_path, runtime={"upload_wait_s": 0}) as site:
        await until(lambda: of(lines, "backend away"))
        await until(lambda: site.engine.sender.fault)
        backend.gate = None
        site.write("a.csv", "n\n1\n")
        await site.run()
        await until(lambda: of(lines, "upload completed"))
    assert [line["log_level"] for line in of(lines, "backend away")] == ["warning"]
    assert [line["log_level"] for line in of(lines, "backend back")] == ["info"]


async def test_a_certificate_that_is_refused_is_named(
    certificate: Path,  # noqa: F811
    tmp_path: Path,
    lines: Lines,
) -> None:
    async with behind_tls(certificate) as (_, url), Site(url, tmp_path) as site:
        await until(lambda: of(lines, "certificate refused"))
        await until(lambda: site.engine.sender.fault)
        assert site.engine.sender.fault is not None
        code = site.engine.sender.fault["code"]
    assert code == "certificate_refused"
    [line] = of(lines, "certificate refused")
    assert "ca_file" in line["fix"]


async def test_a_pause_is_one_line_with_its_next_try_also_for_the_next_worker_and_one_at_its_end(
    backend: ReferenceBackend, tmp_path: Path, lines: Lines
) -> None:
    backend.fault = answers(401)
    for _ in range(3):
        async with Site(backend.url, tmp_path) as site:
            await until(lambda: site.engine.sender.paused)
    backend.fault = lambda request: None
    async with Site(backend.url, tmp_path) as site:
        await until(lambda: of(lines, "sending goes on"))
    [paused] = of(lines, "sending is paused")
    assert (paused["log_level"], "401" in paused["reason"]) == ("error", True)
    assert paused["next_try_at"] > paused["since"]
    assert [line["log_level"] for line in of(lines, "sending goes on")] == ["info"]


async def test_health_that_is_not_delivered_is_a_line_and_the_next_one_that_is(
    backend: ReferenceBackend, tmp_path: Path, lines: Lines
) -> None:
    backend.fault = lambda request: (
        web.Response(status=503) if request.path.endswith("/health") else None
    )
    async with Site(backend.url, tmp_path) as site:
        for _ in range(5):
            await site.engine.report_health({}, {})
        await until(lambda: site.status.get("reasons"))
        failing = site.status
        backend.fault = lambda request: None
        await site.engine.report_health({}, {})
    assert len(of(lines, "health not delivered")) == 1
    assert [line["failed_tries"] for line in of(lines, "health delivered again")] == [5]
    assert "http_503" in failing["reasons"][0]


async def test_a_dead_letter_is_an_error_that_names_the_command(
    backend: ReferenceBackend, tmp_path: Path, lines: Lines
) -> None:
    backend.fault = lambda request: (
        web.json_response({"detail": "no such stream"}, status=422)
        if request.path.endswith("/complete")
        else None
    )
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", "n\n1\n")
        await site.run()
        await until(lambda: of(lines, "upload refused"))
    [line] = of(lines, "upload refused")
    assert line["log_level"] == "error"
    assert "outbox show" in line["fix"]


async def test_a_day_of_idling_is_fewer_than_20_lines(
    backend: ReferenceBackend, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = ManualClock()
    processor = Plain(endpoint=backend.url, api_key="test-key", data_roots=[tmp_path])
    (tmp_path / "a.csv").write_text("n\n1\n")

    def reports() -> int:
        return sum(path.endswith("/health") for _, path, _ in backend.bodies)

    runtime: dict[str, Any] = {"health_interval_s": 6 * 3_600, "min_file_age_s": 0}
    async with serving(processor, clock=clock, **runtime) as service:
        await until(lambda: reports() == 1)
        await service.client.call("process_and_upload", {"data_source": str(tmp_path)})
        for quarter in range(4):
            await clock.advance(6 * 3_600)
            async with asyncio.timeout(30):
                while reports() < quarter + 2:  # due six hours after the last one arrived
                    await clock.advance(10)
                    await service.client.ping()
        status = await service.client.ping()
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line[:1] == "{"]
    assert status["status"] == "ok"
    assert reports() >= 5
    assert len(lines) < 20, [line["event"] for line in lines]
    assert {"serving", "run_ended", "upload completed"} <= {line["event"] for line in lines}

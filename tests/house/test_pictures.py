"""The pictures of the documentation: taken of the real pages, again with `make pictures`."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from catalogzero import Handler
from catalogzero.entry.index import publish
from catalogzero.entry.packaging import build_package
from catalogzero.entry.serving import CatalogServer
from catalogzero.scheduler.server import SchedulerSettings, serve_scheduler
from catalogzero.testing import serving

from tests.pictures import pictures_folder, size_of
from tests.scheduler.conftest import QUICK

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-quic", "--no-first-run"),
]
ENTRIES = ("conductor", "file-processor", "singer-processor", "sql-processor")
SCHEDULES: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
    ("health", "health_report", {"type": "interval", "minutes": 5}, {}),
    ("archive", "archive", {"type": "interval", "hours": 12}, {}),
    (
        "nightly-export",
        "export",
        {"type": "cron", "hour": 2, "minute": 30, "timezone": "Europe/Berlin"},
        {"data_source": "/data/exports"},
    ),
    ("orders", "export", {"type": "cron", "hour": "9-17", "minute": "*/15"}, {"data_source": "db"}),
)


class Exporter(Handler):
    """What the picture of the schedules shows."""

    async def export(self, data_source: str) -> dict[str, Any]:
        """Send what is new."""
        files = [
            {"path": "orders-2026-11-26.csv", "records": 23_604},
            {"path": "orders-2026-11-27.csv", "records": 24_606},
        ]
        return {"status": "uploaded", "records": 48_210, "skipped": 1, "files": files}

    async def health_report(self) -> dict[str, Any]:
        """Say how it is."""
        return {"status": "reported", "seq": 118}

    async def archive(self) -> None:
        """Fail."""
        raise OSError(28, "No space left on device", "/var/archive")


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    """A Chromium; the tests are skipped where there is none."""
    api = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    async with api.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


def test_every_picture_that_a_page_shows_is_there_and_every_one_is_shown() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {
        name
        for page in pages
        for name in re.findall(r"images/([\w-]+\.(?:png|svg))", page.read_text())
    }

    assert shown == {path.name for path in IMAGES.iterdir()}


@pytest.mark.browser
async def test_the_catalog_s_pages_are_pictured(browser: Any, tmp_path: Path) -> None:
    for folder in ("files", "requirements"):
        (tmp_path / "site" / folder).mkdir(parents=True)
    for entry in ENTRIES:
        wheel = build_package(ROOT / "catalog" / entry, tmp_path / entry)[-1]
        shutil.copy(wheel, tmp_path / "site" / "files")
        lock = f"{entry.replace('conductor', 'conductorzero')}-0.1.0-py3.12-linux_x86_64.txt"
        (tmp_path / "site" / "requirements" / lock).write_text("")
    publish(tmp_path / "site", {})
    pictures = pictures_folder(tmp_path)

    with CatalogServer(tmp_path / "site") as server:
        serving_it = asyncio.create_task(asyncio.to_thread(server.serve_forever))
        page = await browser.new_page(viewport={"width": 1120, "height": 640})
        await page.goto(server.url)
        listed = await page.inner_text("main")
        await page.screenshot(path=pictures / "catalog.png")
        await page.set_viewport_size({"width": 1120, "height": 1060})
        await page.get_by_role("link", name="File Processor").click()
        await page.wait_for_url("**/entries/file-processor/")
        await page.screenshot(path=pictures / "catalog-entry.png")
        server.shutdown()
        await serving_it

    assert listed.count("version 0.1.0") == len(ENTRIES)
    for name in ("catalog.png", "catalog-entry.png"):
        assert size_of(pictures / name) == size_of(IMAGES / name)


@pytest.mark.browser
async def test_the_pages_of_the_schedules_and_a_run_are_pictured(
    browser: Any, tmp_path: Path
) -> None:
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    settings = SchedulerSettings(port=0, zmq_port=0, database=database, runner=QUICK)
    pictures = pictures_folder(tmp_path)
    async with (
        serve_scheduler(settings) as server,
        httpx.AsyncClient(base_url=server.url) as api,
        serving(Exporter(), handler_id="cloud_processor", scheduler=server.zmq_address),
    ):
        page = await browser.new_page(viewport={"width": 1280, "height": 980})
        await page.goto(server.url)
        await page.locator("#handlers").get_by_text("answers").wait_for()
        for job_id, method, trigger, params in SCHEDULES:
            job = {"handler_id": "cloud_processor", "job_method": method, "job_params": params}
            added = await api.post(
                "/api/schedule", json={**job, "trigger": trigger, "job_id": job_id}
            )
            assert added.status_code < 300, added.text
        await page.reload()
        for job_id in ("nightly-export", "orders"):
            row = page.locator("#schedules tr", has_text=job_id)
            await row.get_by_role("button", name="Run now").click()
            await row.get_by_text("uploaded 48,210 rows").wait_for()
        await row.get_by_role("button", name="Pause").click()
        await row.get_by_text("paused").wait_for()
        await page.locator("#runs").get_by_text("No space left").first.wait_for()
        await page.mouse.move(0, 0)
        await page.screenshot(path=pictures / "schedules.png")
        await page.locator("#runs tr", has_text="nightly-export").locator("a").first.click()
        await page.locator("#result summary").click()
        await page.locator("#asked").get_by_text("asked").wait_for()
        await page.mouse.move(0, 0)
        await page.screenshot(path=pictures / "run.png")

    for name in ("schedules.png", "run.png"):
        assert size_of(pictures / name) == size_of(IMAGES / name)

"""Chromium for the tests of the pages, and axe-core to judge them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import platformdirs
import pytest

playwright_api = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
expect = playwright_api.expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-quic", "--no-first-run"),
]
AXE_VERSION = "4.10.2"


@asynccontextmanager
async def browsing() -> AsyncIterator[Any]:
    """A Chromium; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    async with playwright_api.async_playwright() as api:
        browser = await api.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def page_of(
    browser: Any, url: str, *, width: int = 1280, **options: Any
) -> AsyncIterator[Any]:
    """A page at this address; an error in its scripts fails the test."""
    errors: list[str] = []
    page = await browser.new_page(viewport={"width": width, "height": 900}, **options)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if _is_fault(said) else None)
    await page.goto(url)
    try:
        yield page
    finally:
        await page.close()
    assert not errors


def _is_fault(said: Any) -> bool:
    """Whether a line on the console is a fault of the page, not of its connection."""
    return said.type in ("error", "warning") and "Failed to load resource" not in said.text


async def names_of(page: Any) -> list[str]:
    """The handlers in the table's drawn rows, from the top."""
    names = await page.eval_on_selector_all(
        "#rows tr[role=row] .handler_id a", "links => links.map(link => link.textContent)"
    )
    return [str(name) for name in names]


async def axe_source() -> str:
    """The text of axe-core, fetched once by npm into the user's cache."""
    folder = Path(platformdirs.user_cache_dir("catalogzero-tests")) / f"axe-{AXE_VERSION}"
    script = folder / "package" / "axe.min.js"
    if not script.exists():
        npm, tar = shutil.which("npm"), shutil.which("tar")
        if npm is None or tar is None:
            pytest.skip("axe-core cannot be fetched: npm is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        package = f"axe-core@{AXE_VERSION}"
        await _run([npm, "pack", package, "--pack-destination", str(folder)])
        await _run([tar, "-xzf", str(folder / f"axe-core-{AXE_VERSION}.tgz"), "-C", str(folder)])
    return script.read_text(encoding="utf-8")


async def faults_of(page: Any) -> list[tuple[str, str]]:
    """What axe-core, already on the page, finds."""
    result = await page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [(fault["id"], fault["nodes"][0]["html"]) for fault in result["violations"]]


async def faults_in_both_schemes(page: Any) -> list[tuple[str, str]]:
    """The faults in light and in dark."""
    found = []
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        found += await faults_of(page)
    return found


async def _run(command: list[str]) -> None:
    """Run a command; the test is skipped when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, output = await asyncio.wait_for(process.communicate(), 60)
    except TimeoutError:
        process.kill()
        await process.communicate()
        pytest.skip("axe-core cannot be fetched: npm does not answer")
    if process.returncode:
        pytest.skip(f"axe-core cannot be fetched: {output.decode(errors='replace')[-200:]}")


def long_tasks_ms(events: Iterable[dict[str, Any]]) -> list[float]:
    """The durations of the main thread's tasks in a trace, longest first.

    Processor time of the thread where the trace has it, as other work on the machine adds to
    the wall time of any task.
    """
    events = list(events)
    main = {
        (event["pid"], event["tid"])
        for event in events
        if event.get("name") == "thread_name" and event["args"].get("name") == "CrRendererMain"
    }
    tasks = [
        event.get("tdur", event["dur"]) / 1_000
        for event in events
        if event.get("ph") == "X"
        and event.get("name") in ("RunTask", "ThreadControllerImpl::RunTask")
        and (event["pid"], event["tid"]) in main
    ]
    return sorted(tasks, reverse=True)

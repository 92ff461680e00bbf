"""The schedules page in a real browser, and the document that describes the API."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import httpx
import pytest
from catalogzero.scheduler.api import PAGES, Api
from catalogzero.scheduler.schema import handlers
from catalogzero.scheduler.server import SchedulerServer, SchedulerSettings, serve_scheduler
from playwright.async_api import Page, async_playwright, expect
from sqlalchemy import update

from tests.axe import axe_source
from tests.scheduler.conftest import QUICK
from tests.scheduler.simulation import make_schedule
from tests.scheduler.toys import toy

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-quic", "--no-first-run"),
)
EVERY_HOUR = {"type": "interval", "hours": 1}
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
async def sqlite_scheduler(tmp_path: Path) -> AsyncIterator[SchedulerServer]:
    """A scheduler on SQLite."""
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    settings = SchedulerSettings(port=0, zmq_port=0, database=database, runner=QUICK)
    async with serve_scheduler(settings) as server:
        yield server


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A browser's page, on which no script failed."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    async with async_playwright() as api:
        browser = await api.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        made = await browser.new_page()
        failures: list[str] = []
        made.on("pageerror", lambda error: failures.append(str(error)))
        yield made
        await browser.close()
    assert failures == []


@pytest.mark.browser
async def test_the_page_shows_runs_and_pauses_schedules(
    sqlite_scheduler: SchedulerServer, page: Page
) -> None:
    url = sqlite_scheduler.url
    evil = "<img src=x onerror=alert(1)>"
    async with (
        httpx.AsyncClient(base_url=url) as api,
        toy(sqlite_scheduler.zmq_address, api),
    ):
        trigger = {"type": "cron", "hour": 2, "day": "*", "timezone": "Europe/Berlin"}
        call = {"handler_id": "toy", "job_method": "quick", "job_params": {"x": 41}}
        await api.post("/api/schedule", json={**call, "trigger": trigger, "job_id": evil})
        await api.post("/api/run_now", json={"handler_id": "toy", "job_method": "fail"})

        await page.goto(url)
        row = page.locator("#schedules tr")
        await expect(row).to_contain_text(evil)
        await expect(row).to_contain_text("every day at 02:00")
        await expect(row).to_contain_text("Europe/Berlin")
        await expect(page.locator("#handlers")).to_contain_text("Connected")
        await row.get_by_role("button", name="Run now").click()
        await expect(page.locator("#executions")).to_contain_text('{"x":41')
        await row.get_by_role("button", name="Pause").click()
        await expect(row).to_contain_text("paused")
        await row.get_by_role("button", name="Resume").click()
        await expect(row).not_to_contain_text("paused")
        await page.locator("#status").select_option("error")
        await expect(page.locator("#executions tr")).to_have_count(1)
        await expect(page.locator("#executions")).to_contain_text("ValueError: no such table")


@pytest.mark.browser
async def test_a_schedule_is_found_and_its_last_run_told(
    sqlite_scheduler: SchedulerServer, page: Page
) -> None:
    url = sqlite_scheduler.url
    async with (
        httpx.AsyncClient(base_url=url) as api,
        toy(sqlite_scheduler.zmq_address, api),
    ):
        for job_id, method in (("good", "quick"), ("bad_100%", "fail")):
            body = {"handler_id": "toy", "job_method": method, "job_id": job_id}
            await api.post("/api/schedule", json={**body, "trigger": EVERY_HOUR})

        await page.goto(url)
        rows = page.locator("#schedules tr")
        await expect(rows).to_have_count(2)
        await expect(rows.filter(has_text="good")).to_contain_text("success")
        await page.locator("#search").fill("D_100%")
        await expect(rows).to_have_count(1)
        await expect(rows).to_contain_text("error")
        await page.locator("#search").fill("nothing")
        await expect(page.locator("#no-schedules")).to_contain_text("No schedule has")


@pytest.mark.browser
async def test_handlers_that_are_away_are_seen_and_those_long_away_folded(
    sqlite_scheduler: SchedulerServer, page: Page
) -> None:
    store = sqlite_scheduler.runner.store
    async with httpx.AsyncClient(base_url=sqlite_scheduler.url) as api:
        async with toy(sqlite_scheduler.zmq_address, api):
            pass
        store.register("old", "tcp://127.0.0.1:1", [])
        with store.writing() as c:
            c.execute(update(handlers).where(handlers.c.handler_id == "old").values(seen_us=1))
        body = {"handler_id": "toy", "job_method": "quick", "job_id": "waits"}
        await api.post("/api/schedule", json={**body, "trigger": EVERY_HOUR})

        await page.goto(sqlite_scheduler.url)
        await expect(page.locator("#executions")).to_contain_text("retry, waiting")
        await expect(page.locator("#executions")).to_contain_text("which is away")
        await expect(page.locator("#handlers li")).to_have_count(1)
        await expect(page.locator("#handlers")).to_contain_text("no handler at tcp://")
        await page.locator("#away summary").click()
        await expect(page.locator("#gone")).to_contain_text("old")
        await page.get_by_role("button", name="Remove old").click()
        await expect(page.locator("#away")).to_be_hidden()
        assert store.find_handler("old") is None


@pytest.mark.browser
async def test_many_schedules_are_shown_page_by_page(
    sqlite_scheduler: SchedulerServer, page: Page
) -> None:
    add = sqlite_scheduler.runner.store.add_schedule
    for number in range(60):
        add(make_schedule({"type": "cron", "hour": 2}, job_id=f"n{number:02}"))
    await page.goto(sqlite_scheduler.url)
    rows = page.locator("#schedules tr")
    later = page.get_by_role("button", name="Later")
    earlier = page.get_by_role("button", name="Earlier")
    await expect(rows).to_have_count(50)
    await expect(rows.first).to_contain_text("n00")
    await expect(page.locator("#place")).to_have_text("1 to 50 of 60")
    await expect(earlier).to_be_disabled()
    await later.click()
    await expect(rows).to_have_count(10)
    await expect(rows.first).to_contain_text("n50")
    await expect(page.locator("#place")).to_have_text("51 to 60 of 60")
    await expect(later).to_be_disabled()
    await earlier.click()
    await expect(rows.first).to_contain_text("n00")
    await later.click()
    await page.locator("#search").fill("n0")
    await expect(rows).to_have_count(10)
    await expect(page.locator("#pages")).to_be_hidden()


@pytest.mark.browser
async def test_what_goes_wrong_is_told_and_what_is_focused_stays(
    sqlite_scheduler: SchedulerServer, page: Page
) -> None:
    url = sqlite_scheduler.url
    async with (
        httpx.AsyncClient(base_url=url) as api,
        toy(sqlite_scheduler.zmq_address, api),
    ):
        body = {"handler_id": "toy", "job_method": "quick", "job_id": "gone"}
        await api.post("/api/schedule", json={**body, "trigger": EVERY_HOUR})
        await page.goto(url)
        await page.get_by_role("button", name="Pause gone").click()
        await expect(page.get_by_role("button", name="Resume gone")).to_be_visible()
        await expect(page.get_by_role("button", name="Resume gone")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("button", name="Pause gone")).to_be_focused()
        await page.route("**/api/schedules/gone/run", lambda route: route.abort())
        await page.get_by_role("button", name="Run now gone").click()
        await expect(page.locator("#state")).to_contain_text("Run now gone")
        await page.route("**/api/schedules?*", lambda route: route.abort())
        await expect(page.locator("#state")).to_have_text("The scheduler does not answer.")
        await expect(page.get_by_role("button", name="Run now gone")).to_be_focused()


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (768, "light"), (1440, "light")])
async def test_axe_finds_no_serious_fault_and_nothing_is_cut(
    sqlite_scheduler: SchedulerServer, page: Page, width: int, scheme: Literal["light", "dark"]
) -> None:
    axe = await asyncio.to_thread(axe_source)
    url = sqlite_scheduler.url
    async with (
        httpx.AsyncClient(base_url=url) as api,
        toy(sqlite_scheduler.zmq_address, api),
    ):
        for number in range(3):
            job_id = f"{number}-{'long-name-of-a-schedule' * 3}"
            body = {"handler_id": "toy", "job_method": "quick", "job_id": job_id}
            await api.post("/api/schedule", json={**body, "trigger": EVERY_HOUR})
        await api.post(f"/api/schedules/{job_id}/pause")
        await page.set_viewport_size({"width": width, "height": 900})
        await page.emulate_media(color_scheme=scheme)
        await page.goto(url)
        await expect(page.locator("#executions tr")).to_have_count(3)
        await page.evaluate(axe)
        found = await page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        wide = await page.evaluate("document.documentElement.scrollWidth")

    serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
    assert serious == []
    assert wide <= width


@pytest.mark.browser
async def test_the_page_asks_for_the_token(tmp_path: Path, page: Page) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("correct-horse-battery")
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    settings = SchedulerSettings(port=0, zmq_port=0, database=database, token_file=token_file)
    async with serve_scheduler(settings) as server:
        await page.goto(server.url)
        await expect(page.locator("#main")).to_be_hidden()
        await page.locator("#token").fill("wrong-horse-battery")
        await page.get_by_role("button", name="Open").click()
        await expect(page.locator("#refused")).to_have_text("That is not its token.")
        await page.locator("#token").fill("correct-horse-battery")
        await page.get_by_role("button", name="Open").click()
        await expect(page.locator("#state")).to_contain_text("0 schedules")


async def test_a_token_guards_everything_but_the_page_itself(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("correct-horse-battery")
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    settings = SchedulerSettings(port=0, zmq_port=0, database=database, token_file=token_file)
    right = {"Authorization": "Bearer correct-horse-battery"}
    wrong = {"Authorization": "Bearer correct-horse-batterx"}
    async with (
        serve_scheduler(settings) as server,
        httpx.AsyncClient(base_url=server.url) as api,
    ):
        codes = [
            (await api.get(path, headers=headers)).status_code
            for path, headers in (
                ("/api/schedules", {}),
                ("/api/schedules", wrong),
                ("/api/schedules", right),
                ("/api/health", {}),
                ("/", {}),
            )
        ]

    assert codes == [401, 401, 200, 401, 200]


PORTAL = "https://portal.example"


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A scheduler with a token, whose API pages of another origin may use."""
    token_file = tmp_path / "token"
    token_file.write_text("correct-horse-battery")
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    settings = SchedulerSettings(
        port=0, zmq_port=0, database=database, token_file=token_file, origins=(PORTAL,)
    )
    async with (
        serve_scheduler(settings) as server,
        httpx.AsyncClient(base_url=server.url) as api,
    ):
        yield api


async def test_pages_of_an_allowed_origin_ask_with_the_token(shared: httpx.AsyncClient) -> None:
    asks = {"Origin": PORTAL, "Access-Control-Request-Method": "POST"}
    preflight = await shared.options("/api/schedule", headers=asks)
    key = {"Authorization": "Bearer correct-horse-battery"}
    answers = [
        await shared.get("/api/schedules", headers={"Origin": PORTAL, **key}),
        await shared.post("/api/schedule", json={}, headers={"Origin": PORTAL, **key}),
        await shared.get("/api/schedules", headers={"Origin": PORTAL}),
    ]

    assert preflight.status_code == 204
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert [answer.status_code for answer in answers] == [200, 400, 401]
    for answer in (preflight, *answers):
        assert answer.headers["access-control-allow-origin"] == PORTAL
        assert answer.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origin", ["https://evil.example", "null", f"{PORTAL}.evil.example"])
async def test_pages_of_other_origins_get_nothing(shared: httpx.AsyncClient, origin: str) -> None:
    key = {"Authorization": "Bearer correct-horse-battery"}
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    answers = [
        await shared.options("/api/schedule", headers=asks),
        await shared.get("/api/schedules", headers={"Origin": origin, **key}),
    ]

    assert [answer.status_code for answer in answers] == [403, 403]
    assert all("access-control-allow-origin" not in answer.headers for answer in answers)


async def test_the_document_describes_every_path_and_method(
    sqlite_scheduler: SchedulerServer,
) -> None:
    async with httpx.AsyncClient(base_url=sqlite_scheduler.url) as client:
        document = (await client.get("/api/openapi.json")).json()
    app = Api(sqlite_scheduler.runner, None, {}).application()  # type: ignore[arg-type, typeddict-item]

    routes = {
        (route.method.lower(), str(route.resource.canonical))
        for route in app.router.routes()
        if route.resource and route.method != "HEAD"
    }
    described = {(m, path) for path, methods in document["paths"].items() for m in methods}
    assert described == {(m, path) for m, path in routes if path not in PAGES}


def test_the_page_loads_nothing_from_elsewhere() -> None:
    folder = Path(__file__).parents[2] / "sdk" / "catalogzero" / "scheduler" / "pages"

    for path in folder.iterdir():
        assert not re.search(r"https?://", path.read_text()), path

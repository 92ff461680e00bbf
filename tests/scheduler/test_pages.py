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
from catalogzero.scheduler.models import KnownInstance
from catalogzero.scheduler.schema import handlers
from catalogzero.scheduler.server import SchedulerServer, SchedulerSettings, serve_scheduler
from catalogzero.web import shared_pages
from playwright.async_api import Page, async_playwright, expect
from sqlalchemy import update

from tests.axe import axe_source
from tests.scheduler.conftest import QUICK
from tests.scheduler.simulation import make_schedule
from tests.scheduler.test_partitions import Library
from tests.scheduler.toys import toy, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-quic", "--no-first-run"),
)
EVERY_HOUR = {"type": "interval", "hours": 1}
DAILY = {"type": "cron", "hour": 2, "timezone": "Europe/Berlin"}
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

        await page.goto(url)
        row = page.locator("#schedules tr")
        await expect(row).to_contain_text(evil)
        await expect(row).to_contain_text("every day at 02:00")
        await expect(row).to_contain_text("Europe/Berlin")
        await expect(row).to_contain_text(re.compile("= .*02:00 CES?T"))
        await expect(page.locator("#handlers")).to_contain_text("answers")
        await row.get_by_role("button", name="Run now").click()
        run = page.locator("#runs tr")
        await expect(run).to_contain_text(evil)  # a run by hand stands under its schedule
        await expect(run).to_contain_text("done")
        await expect(run).to_contain_text("by hand")
        await row.get_by_role("button", name="Pause").click()
        await expect(row).to_contain_text("paused")
        await row.get_by_role("button", name="Resume").click()
        await expect(row).not_to_contain_text("paused")
        await row.get_by_role("button", name="Remove").click()
        await page.get_by_role("button", name="Keep it").click()
        await expect(row).to_have_count(1)
        await row.get_by_role("button", name="Remove").click()
        await page.get_by_role("button", name="Remove it").click()
        await expect(row).to_have_count(0)
        await expect(page.locator("#no-schedules")).to_contain_text("catalogzero schedule add")


@pytest.mark.browser
async def test_it_loads_in_one_round_and_its_headline_is_the_answer(
    sqlite_scheduler: SchedulerServer, page: Page
) -> None:
    url = sqlite_scheduler.url
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(url)))
    async with (
        httpx.AsyncClient(base_url=url) as api,
        toy(sqlite_scheduler.zmq_address, api),
    ):
        for job_id, method, params in (
            ("arrives", "echo", {"text": "."}),
            ("fails", "fail", {}),
            ("rests", "sends", {"status": "uploaded"}),
            ("waits", "sends", {"status": "queued"}),
        ):
            body = {"handler_id": "toy", "job_method": method, "job_params": params}
            await api.post("/api/schedule", json={**body, "job_id": job_id, "trigger": DAILY})
        await api.post("/api/schedules/rests/pause")
        for job_id in ("arrives", "fails", "rests", "waits"):
            await api.post(f"/api/schedules/{job_id}/run")
        await until(lambda: all_ended(api, 4))

        await page.goto(url)
        await expect(page.locator("h1")).to_have_text("1 schedule fails, 1 waits to be sent")
        await expect(page).to_have_title("◆ 1 fails · Schedules · catalogzero")
        await expect(page.locator("#sub")).to_contain_text(
            re.compile(
                r"^Since yesterday \d\d:\d\d \S+, of 4 runs 1 uploaded or found nothing new,"
                r" 1 done, 1 waits, 1 failed\. The next fires at"
            )
        )
        calls = [path for path in asked if path.startswith("/api/")]
        rows = page.locator("#schedules tr")
        names = await rows.locator("th a").all_text_contents()
        strip = rows.first.get_by_role("img")

        assert calls == ["/api/overview"]
        assert names == ["fails", "waits", "arrives", "rests"]
        await expect(strip).to_have_attribute("aria-label", "Last 1 runs: 1 failed")
        await expect(rows.first).to_contain_text("ValueError: no such table")
        await expect(rows.nth(1)).to_contain_text("3 rows wait to be sent")
        await page.get_by_role("link", name="waiting 1", exact=True).click()
        await expect(rows).to_have_count(1)
        await expect(page).to_have_url(re.compile(r"\?show=waiting$"))
        await page.get_by_role("group", name="Show runs").get_by_text("failed").click()
        await expect(page.locator("#runs tr")).to_have_count(1)
        await page.goto(f"{url}/?schedule=rests&q=s&show=paused")  # as somebody was sent it
        await expect(page.locator("#find")).to_have_value("s")
        await expect(rows).to_have_count(1)
        await expect(page.locator("#runs tr")).to_have_count(1)
        await expect(page.locator("#runs tr")).to_contain_text("uploaded 3 rows")
        await page.locator("#find").fill("nothing")
        await expect(page.locator("#no-schedules")).to_contain_text("No schedule has")
        await page.go_back()
        await expect(page.locator("#runs tr")).to_have_count(1)


@pytest.mark.browser
async def test_the_keyboard_moves_opens_and_runs(
    sqlite_scheduler: SchedulerServer, page: Page
) -> None:
    url = sqlite_scheduler.url
    async with (
        httpx.AsyncClient(base_url=url) as api,
        toy(sqlite_scheduler.zmq_address, api),
    ):
        for job_id in ("a", "b"):
            body = {"handler_id": "toy", "job_method": "fail", "job_id": job_id}
            await api.post("/api/schedule", json={**body, "trigger": DAILY})
        await api.post("/api/schedules/b/run")
        await until(lambda: all_ended(api, 1))
        await page.goto(url)
        focused = page.locator("#schedules tr:focus th a")
        await expect(page.locator("#schedules tr")).to_have_count(2)

        await page.keyboard.press("j")
        await expect(focused).to_have_text("b")
        await page.keyboard.press("j")
        await expect(focused).to_have_text("a")
        await page.keyboard.press("?")
        await expect(page.get_by_role("dialog")).to_contain_text("Next trouble")
        await page.keyboard.press("n")  # behind a dialogue nothing moves
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await expect(focused).to_have_text("a")
        await page.keyboard.press("n")
        await expect(focused).to_have_text("b")
        await page.keyboard.press("j")
        await page.keyboard.press("k")
        await expect(focused).to_have_text("b")
        await page.keyboard.press("r")
        await expect(page.get_by_role("dialog")).to_contain_text("Run now b?")
        await page.keyboard.press("Escape")
        await page.keyboard.press("r")
        await page.get_by_role("button", name="Run it").press("Enter")
        await expect(page.locator("#runs tr")).to_have_count(2)
        await expect(focused).to_have_text("b")
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(re.compile(r"\?schedule=b$"))
        await page.keyboard.press("/")
        await page.keyboard.type("jr?")
        await expect(page.locator("#find")).to_have_value("jr?")
        await expect(page.locator("#no-schedules")).to_contain_text("jr?")
        await page.keyboard.press("Escape")
        await expect(page.locator("#schedules tr")).to_have_count(2)
        assert len((await api.get("/api/executions")).json()["records"]) == 2


@pytest.mark.browser
async def test_rows_keep_their_places_under_the_pointer(
    sqlite_scheduler: SchedulerServer, page: Page
) -> None:
    url = sqlite_scheduler.url
    async with (
        httpx.AsyncClient(base_url=url) as api,
        toy(sqlite_scheduler.zmq_address, api),
    ):
        for job_id in ("a", "b", "c"):
            body = {"handler_id": "toy", "job_method": "fail", "job_id": job_id}
            await api.post("/api/schedule", json={**body, "trigger": DAILY})
        await page.goto(url)
        names = page.locator("#schedules th a")
        again = page.get_by_role("button", name="sort again")
        await page.locator("#schedules tr").nth(1).hover()
        await api.post("/api/schedules/b/run")
        await expect(page.locator("h1")).to_have_text("1 schedule fails")
        await expect(page.locator("#schedules tr.fail th a")).to_have_text("b")  # patched in place
        await expect(names).to_have_text(["a", "b", "c"])
        await expect(again).to_have_text("1 changed place: sort again")
        await again.click()
        await expect(names).to_have_text(["b", "a", "c"])
        await expect(again).to_have_count(0)

        await page.locator("#schedules tr").nth(1).hover()
        await api.post("/api/schedules/c/run")
        await expect(page.locator("h1")).to_have_text("2 of 3 schedules fail")
        await expect(names).to_have_text(["b", "a", "c"])
        await page.locator("h1").hover()
        await expect(names).to_have_text(["b", "c", "a"])
        await page.keyboard.press("j")  # the focus holds them too, and a dialogue that it opened
        await page.keyboard.press("?")
        await api.delete("/api/schedules/b")
        await api.post("/api/schedule", json={**body, "job_id": "0", "trigger": EVERY_HOUR})
        await expect(again).to_have_text("1 changed place: sort again")
        await expect(names).to_have_text(["c", "a"])


@pytest.mark.browser
async def test_a_run_has_a_page_with_what_its_handler_knows(
    sqlite_scheduler: SchedulerServer, page: Page
) -> None:
    url = sqlite_scheduler.url
    async with httpx.AsyncClient(base_url=url) as api:
        async with toy(sqlite_scheduler.zmq_address, api):
            params = {"status": "uploaded"}
            body = {"handler_id": "toy", "job_method": "sends", "job_params": params}
            await api.post("/api/schedule", json={**body, "job_id": "sales", "trigger": DAILY})
            ids = []
            for _ in range(3):
                answer = await api.post("/api/schedules/sales/run")
                ids.append(answer.json()["execution_id"])
                await until(lambda: all_ended(api, len(ids)))
            await page.goto(url)
            await page.locator("#runs tr a").nth(2).click()  # the one in the middle
            await expect(page).to_have_url(f"{url}/runs/{ids[1]}")
            await expect(page.locator("h1")).to_have_text("sales uploaded 3 rows")
            await expect(page.locator("#call")).to_contain_text("every day at 02:00 Europe/Berlin")
            await expect(page.locator("#facts")).to_contain_text("by hand")
            await expect(page.locator("#asked")).to_contain_text("asked")
            result = page.locator("#result")
            await expect(result.locator("dt").first).to_have_text("status")
            await expect(result).not_to_contain_text("{")
            await result.locator("summary").first.click()
            await expect(result.get_by_role("rowheader", name="b.csv")).to_be_visible()
            await page.get_by_role("link", name="← Before").click()
            await expect(page).to_have_url(f"{url}/runs/{ids[0]}")
            await expect(page.get_by_role("link", name="← Before")).to_have_count(0)
            await page.get_by_role("button", name="Run again").click()
            await expect(page).to_have_url(re.compile(r"/runs/(?!" + ids[0] + ")"))
            await expect(page.locator("h1")).to_have_text("sales uploaded 3 rows")
            failed = {"handler_id": "toy", "job_method": "fail", "wait": False}
            bad = (await api.post("/api/run_now", json=failed)).json()["execution_id"]
            await page.goto(f"{url}/runs/{bad}")
            await expect(page.locator("h1")).to_have_text("toy · fail failed")
            await expect(page.locator("#trouble")).to_contain_text("ValueError: no such table")
            await expect(page.locator("#trouble")).to_contain_text(
                "catalogzero schedule run toy fail"
            )
        await until(lambda: handler_is_away(api))
        await page.goto(f"{url}/runs/{bad}")
        await expect(page.locator("#handler")).to_contain_text("does not answer")
        await page.goto(f"{url}/runs/nobody")
        await expect(page.locator("h1")).to_have_text("No such run")


@pytest.mark.browser
async def test_a_partitioned_run_is_one_line_and_its_page_has_its_items(
    sqlite_scheduler: SchedulerServer, page: Page
) -> None:
    url = sqlite_scheduler.url
    async with httpx.AsyncClient(base_url=url) as api:
        library = Library(sqlite_scheduler, api)
        library.names = [f"{number:02}.csv" for number in range(30)]
        async with library.shelf(max_concurrent_jobs=2, max_queued_jobs=0) as shelf:
            shelf.going.clear()
            shelf.failing = {"07.csv"}
            going = await library.begin()
            await page.goto(url)
            runs = page.locator("#runs tr")
            await expect(runs).to_have_count(1)
            await expect(runs).to_contain_text("0 of 30 items")
            shelf.going.set()
            await expect(runs).to_contain_text("1 of 30 items failed")
            await runs.locator("a").first.click()
            await expect(page).to_have_url(f"{url}/runs/{going}")
            await expect(page.locator("#items-summary")).to_have_text("30 of 30 ended, 1 failed")
            await expect(page.locator("#facts")).to_contain_text("30 of 30")
            await expect(page.locator("#items tr").first).not_to_be_visible()
            await page.locator("#items-summary").click()
            await expect(page.locator("#items tr")).to_have_count(25)
            await page.get_by_role("button", name="Next").click()
            await expect(page.locator("#items tr")).to_have_count(5)
            await page.get_by_role("button", name="failed").click()
            await expect(page.locator("#items tr")).to_have_count(1)
            await page.evaluate(await asyncio.to_thread(axe_source))
            assert await faults_of(page) == []
            await page.get_by_role("link", name="07.csv").click()
            await expect(page.locator("h1")).to_have_text("07.csv failed")
            await expect(page.locator("#trouble")).to_contain_text("07.csv is torn")
            await expect(page.locator("#cancel")).not_to_be_visible()
            await page.get_by_role("link", name="all items").click()
            await expect(page).to_have_url(f"{url}/runs/{going}")
            shelf.going.clear()
            await page.get_by_role("button", name="Run again").click()
            await expect(page.locator("#items-summary")).to_have_text("0 of 30 ended")
            await page.get_by_role("button", name="Cancel").click()
            await expect(page.locator("h1")).to_contain_text("failed")
            await expect(page.locator("#trouble")).to_contain_text("cancelled by hand")


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
        await expect(page.locator("#runs")).to_contain_text("waits for its handler")
        await expect(page.locator("#runs")).to_contain_text("which is away")
        await expect(page.locator("h1")).to_have_text("1 schedule fails")
        await expect(page.locator("#handlers li")).to_have_count(1)
        await expect(page.locator("#handlers")).to_contain_text("no handler at tcp://")
        await page.locator("#away summary").click()
        await expect(page.locator("#gone")).to_contain_text("old")
        await page.get_by_role("button", name="Remove old").click()
        await page.get_by_role("button", name="Remove it").click()
        await expect(page.locator("#away")).to_be_hidden()
        assert store.find_handler("old") is None


@pytest.mark.browser
async def test_instances_stand_below_their_handler_with_what_they_have_to_do(
    sqlite_scheduler: SchedulerServer, page: Page
) -> None:
    axe = await asyncio.to_thread(axe_source)
    at = sqlite_scheduler.zmq_address
    instances = page.get_by_label("Instances of toy").locator("li")
    async with (
        httpx.AsyncClient(base_url=sqlite_scheduler.url) as api,
        toy(at, api, instance_id="a", max_concurrent_jobs=2),
    ):
        async with toy(at, api, instance_id="b"):
            await page.goto(sqlite_scheduler.url)
            await expect(page.locator("#handlers > li")).to_have_count(1)
            await expect(page.locator("#handlers > li")).to_contain_text("2 instances")
            await expect(instances).to_have_count(2)
            await expect(instances.nth(0)).to_contain_text("0 of 2 places taken")
            await expect(instances.nth(1)).to_contain_text("0 of 4 places taken")
            await page.set_viewport_size({"width": 320, "height": 900})
            width = await page.evaluate("document.documentElement.scrollWidth")
            await page.evaluate(axe)
            faults = await faults_of(page)
        await expect(instances.nth(1)).to_contain_text("left")
        away = KnownInstance("toy", "c", "tcp://127.0.0.1:1", "boot", "online", 0, 1)
        store = sqlite_scheduler.runner.store
        store.register("toy", away.address, [], anyone=False, instance=away)
        await expect(page.locator("#handlers .warn")).to_have_text("1 of 2 away")
        await expect(instances.nth(2)).to_contain_text("no answer")
        await expect(page.locator("#answering")).to_have_text("1 of 1 answer")

    assert faults == []
    assert width <= 320


@pytest.mark.browser
async def test_many_schedules_are_shown_page_by_page(
    sqlite_scheduler: SchedulerServer, page: Page
) -> None:
    add = sqlite_scheduler.runner.store.add_schedule
    for number in range(60):
        add(make_schedule({"type": "cron", "hour": 2}, job_id=f"n{number:02}"))
    await page.goto(sqlite_scheduler.url)
    rows = page.locator("#schedules tr")
    later, earlier = (page.get_by_role("link", name=name) for name in ("Later", "Earlier"))
    await expect(rows).to_have_count(25)
    await expect(rows.first).to_contain_text("n00")
    await expect(page.locator("#pages p")).to_have_text("1 to 25, page 1 of 3")
    await expect(earlier).to_have_count(0)
    await later.click()
    await expect(rows.first).to_contain_text("n25")
    await later.click()
    await expect(rows).to_have_count(10)
    await expect(page.locator("#pages p")).to_have_text("51 to 60, page 3 of 3")
    await expect(later).to_have_count(0)
    await earlier.click()
    await expect(rows.first).to_contain_text("n25")
    await page.locator("#find").fill("n0")
    await expect(rows).to_have_count(10)
    await expect(page.locator("#pages")).to_be_hidden()


@pytest.mark.browser
async def test_what_goes_wrong_is_reported_and_what_is_focused_stays(
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
        await expect(page.locator("#problem")).to_contain_text("Run now gone")
        await page.route("**/api/overview*", lambda route: route.abort())
        await expect(page.locator("#live")).to_have_text("not live")
        await expect(page.locator("#problem")).to_contain_text("The scheduler does not answer.")
        await expect(page.locator("#problem")).to_contain_text("What is shown is of")
        await expect(page.get_by_role("button", name="Run now gone")).to_be_focused()
        await page.unroute("**/api/overview*")
        await expect(page.locator("#live")).to_have_text("live")
        await expect(page.locator("#problem")).to_be_hidden()


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (768, "light"), (1440, "light")])
async def test_axe_finds_no_fault_and_nothing_is_cut(
    sqlite_scheduler: SchedulerServer,
    page: Page,
    width: int,
    scheme: Literal["light", "dark"],
) -> None:
    axe = await asyncio.to_thread(axe_source)
    url = sqlite_scheduler.url
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    async with (
        httpx.AsyncClient(base_url=url) as api,
        toy(sqlite_scheduler.zmq_address, api),
    ):
        for job_id, status in (
            (f"{'long-name-of-a-schedule' * 3}", "uploaded"),
            ("returns-sync", "queued"),
            ("stock-levels", "unchanged"),
        ):
            call = {"handler_id": "toy", "job_method": "sends", "job_params": {"status": status}}
            await api.post("/api/schedule", json={**call, "job_id": job_id, "trigger": DAILY})
            await api.post(f"/api/schedules/{job_id}/run")
        body = {"handler_id": "toy", "job_method": "fail", "job_id": "nightly-orders"}
        await api.post("/api/schedule", json={**body, "trigger": DAILY})
        await api.post("/api/schedules/stock-levels/pause")
        run = (await api.post("/api/schedules/nightly-orders/run")).json()["execution_id"]
        sent = (await api.post("/api/schedules/returns-sync/run")).json()["execution_id"]
        await until(lambda: all_ended(api, 5))
        await page.set_viewport_size({"width": width, "height": 900})
        await page.emulate_media(color_scheme=scheme)
        found: list[tuple[str, str]] = []
        widths = []
        for path in ("/", f"/runs/{run}", f"/runs/{sent}"):
            await page.goto(url + path)
            await expect(
                page.locator("#facts" if "runs" in path else "#runs tr")
            ).not_to_have_count(0)
            if "runs" in path:
                await expect(page.locator("#asked")).to_contain_text(re.compile("asked [0-9]"))
            await page.evaluate(axe)
            if path == "/":
                found += await faults_of(page)
                await page.keyboard.press("?")
            found += await faults_of(page)
            widths.append(await page.evaluate("document.documentElement.scrollWidth"))

    assert found == []
    assert max(widths) <= width
    assert messages == []


async def faults_of(page: Page) -> list[tuple[str, str]]:
    """What axe-core, already on the page, finds."""
    result = await page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [(one["id"], one["nodes"][0]["html"]) for one in result["violations"]]


async def all_ended(api: httpx.AsyncClient, count: int) -> bool:
    """Whether that many executions have ended, and no other goes on."""
    answer = (await api.get("/api/executions")).json()
    ended = [one for one in answer["records"] if one["completed_at"]]
    return len(ended) == len(answer["records"]) == count


async def handler_is_away(api: httpx.AsyncClient) -> bool:
    """Whether the scheduler knows that its handler is gone."""
    (one,) = (await api.get("/api/handlers")).json()["handlers"]
    return bool(one["status"] == "Disconnected")


@pytest.mark.browser
async def test_the_page_asks_for_the_token(tmp_path: Path, page: Page) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("correct-horse-battery")
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    settings = SchedulerSettings(port=0, zmq_port=0, database=database, token_file=token_file)
    async with serve_scheduler(settings) as server:
        await page.goto(server.url)
        await expect(page.locator("h1")).to_have_text("Locked")
        await expect(page.locator("#schedules")).to_be_hidden()
        await page.locator("#token").fill("wrong-horse-battery")
        await page.get_by_role("button", name="Open").click()
        await expect(page.locator("#refused")).to_have_text("That is not its token.")
        await page.locator("#token").fill("correct-horse-battery")
        await page.get_by_role("button", name="Open").click()
        await expect(page.locator("h1")).to_have_text("No schedule yet")


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
    pages = PAGES.keys() | shared_pages().paths
    assert described == {(m, path) for m, path in routes if path not in pages}


def test_the_page_loads_nothing_from_elsewhere() -> None:
    folder = Path(__file__).parents[2] / "sdk" / "catalogzero" / "scheduler" / "pages"

    for path in folder.iterdir():
        assert not re.search(r"https?://", path.read_text()), path

"""The pages in a real Chromium: live, sorted, filtered, signalled, fast, narrow, accessible."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from catalogzero.testing import ManualClock

from browsers import (
    axe_source,
    browsing,
    expect,
    faults_in_both_schemes,
    long_tasks_ms,
    names_of,
    page_of,
)
from fleets import ShopProcess, addresses, conducting, free_port, pause, scheduler, shops
from screenshots import take
from simulated import Simulation, simulation

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="module"),
]

UNREACHABLE = "#rows tr.gone"
PATHS = ("/", "/handlers/invoices-001", "/handlers/crm-001/runs/5d1c0a9e-1", "/handlers/orders-001")
"""Pages of a fleet in trouble, and of a handler that is well."""
HIDE = """hidden => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Any]:
    async with browsing() as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(tmp_path: Path) -> AsyncIterator[Simulation]:
    """Twelve simulated handlers that have lived for ten minutes."""
    clock = ManualClock()
    async with simulation(12, clock=clock, state_dir=tmp_path) as one:
        await one.live_through(clock, hours=1 / 6)
        yield one


async def test_figures_change_without_a_reload(browser: Any, fleet: Simulation) -> None:
    async with page_of(browser, fleet.dashboard.url) as page:
        await page.wait_for_selector("#rows tr[role=row]")
        fleet.handlers["orders-001"].memory_mb = 777
        await fleet.turn()

        row = page.locator("#rows tr[role=row]", has_text="orders-001")
        await row.locator(".memory_mb").get_by_text("77").wait_for()
        assert "MB" in await row.locator(".memory_mb").inner_text()


async def test_more_tabs_than_a_browser_has_connections_are_all_live(
    browser: Any, fleet: Simulation
) -> None:
    async with await browser.new_context() as context:
        tabs = [await context.new_page() for _ in range(8)]
        for tab in tabs:
            await tab.goto(fleet.dashboard.url)
        fleet.handlers["billing-001"].dead = True
        await fleet.turn()
        for tab in tabs:
            await tab.locator(UNREACHABLE).wait_for()


async def test_a_hidden_tab_gives_its_stream_back_until_it_is_seen(
    browser: Any, fleet: Simulation
) -> None:
    async with await browser.new_context() as context:
        hidden, seen = [await context.new_page() for _ in range(2)]
        await hidden.clock.install()
        for tab in (hidden, seen):
            await tab.goto(fleet.dashboard.url)
            await tab.locator("#rows tr[role=row]").first.wait_for()
        await hidden.evaluate(HIDE, True)
        await hidden.clock.run_for(11_000)
        fleet.handlers["billing-001"].dead = True
        await fleet.turn()
        await seen.locator(UNREACHABLE).wait_for()
        shown_while_hidden = await hidden.locator(UNREACHABLE).count()
        await hidden.evaluate(HIDE, False)
        await hidden.locator(UNREACHABLE).wait_for()

    assert shown_while_hidden == 0


async def test_many_routine_changes_push_out_no_news(browser: Any, fleet: Simulation) -> None:
    async with page_of(browser, fleet.dashboard.url) as page:
        fleet.handlers["billing-001"].dead = True
        await fleet.turn()
        news = page.locator("#events li", has_text="billing-001").get_by_text("no answer")
        await news.wait_for()
        for _ in range(60):
            await fleet.turn()
        routine = await page.locator("#events li", has_text="idle").count()
        await page.reload()
        await news.wait_for()

    assert routine == 0


async def test_the_same_news_is_one_line(browser: Any, fleet: Simulation) -> None:
    for _ in range(3):
        fleet.handlers["returns-001"].dead_letters += 1
        await fleet.turn()
    for name in ("billing-001", "orders-001"):
        fleet.handlers[name].dead = True
    await fleet.turn()
    async with page_of(browser, fleet.dashboard.url) as page:
        letters = page.locator("#events li", has_text="dead letter")
        await letters.get_by_text("3 times since").wait_for()
        silent = page.locator("#events li", has_text="no answer")
        await expect(silent).to_have_count(1)
        named = await silent.locator("a").all_inner_texts()

    assert sorted(named) == ["billing-001", "orders-001"]


async def test_a_dead_handler_shows_no_figures_as_if_they_were_of_now(
    browser: Any, fleet: Simulation
) -> None:
    fleet.handlers["billing-001"].dead = True
    await fleet.turn()
    async with page_of(browser, fleet.dashboard.url) as page:
        row = page.locator(UNREACHABLE)
        cells = {
            name: (await row.locator(f".{name}").inner_text()).strip()
            for name in ("response_time_ms", "memory_mb")
        }
        waiting = await row.locator(".last_upload small").inner_text()
        await page.goto(f"{fleet.dashboard.url}/handlers/billing-001")
        await page.locator("#sub", has_text="last seen").wait_for()
        figures = await page.locator("#figures").inner_text()

    assert cells == dict.fromkeys(("response_time_ms", "memory_mb"), "–")  # noqa: RUF001 - shown so
    assert waiting == "unknown what waits"
    assert "MB" not in figures


def trouble_in(fleet: Simulation) -> None:
    """Give the fleet one trouble of each kind, and one of two handlers."""
    for name in ("invoices-001", "stock-001"):
        one = fleet.handlers[name]
        one.paused, one.paused_code = "the backend answered 401: the key was revoked", "http_401"
        one.paused_since, one.uploads = "2026-01-01T00:00:00+00:00", 42
    fleet.handlers["billing-001"].dead = True
    fleet.handlers["returns-001"].dead_letters = 3
    fleet.handlers["crm-001"].failing = True
    fleet.handlers["exports-001"].disk_free = 300 << 20
    fleet.handlers["audit-001"].reasons = ["the clock is 700 s off the backend's"]


async def test_the_overview_says_what_does_not_arrive_and_what_to_do(
    browser: Any, fleet: Simulation
) -> None:
    trouble_in(fleet)
    await fleet.turn()
    async with page_of(browser, fleet.dashboard.url) as page:
        heading = "Rows from 6 of 12 handlers do not arrive"
        await page.get_by_role("heading", name=heading).wait_for()
        words = await page.locator("#troubles .state").all_inner_texts()
        paused = page.locator("#troubles li", has_text="sending is paused")
        title = await paused.locator("h3").inner_text()
        why = await paused.locator(".why").inner_text()
        since = await paused.locator(".since").inner_text()
        command = await paused.locator(".cmd code").inner_text()
        tab = await page.title()
        first = (await names_of(page))[:7]
        chips = await page.locator("#chips").inner_text()
        await paused.get_by_role("link", name="Show all 2").click()
        await expect(page.locator("#rows tr[role=row]")).to_have_count(2)
        shown = await names_of(page)
        run = page.locator("#troubles").get_by_role("link", name="Open the run")
        await run.click()
        await page.locator("#error").get_by_text("row 1,204 has 6 fields").wait_for()

    assert words == [
        *("no answer", "paused", "3 dead letters", "failed", "unwell", "disk nearly full"),
    ]
    assert title == "2 handlers (invoices-001, stock-001): sending is paused, no row leaves"
    assert "401: the key was revoked" in why
    assert "84 uploads with 235,200 rows wait there; nothing is lost" in why
    assert "It tries again in 2 min" in why
    assert "since" in since
    assert command == "catalogzero check invoices-001"
    assert tab.startswith("◆ 6 troubles")
    assert set(first) == {
        *("audit-001", "billing-001", "crm-001", "exports-001", "invoices-001", "returns-001"),
        "stock-001",
    }
    assert "in trouble\n7" in chips
    assert shown == ["invoices-001", "stock-001"]


async def test_a_paused_handler_says_why_and_its_runs_are_no_success(
    browser: Any, fleet: Simulation
) -> None:
    trouble_in(fleet)
    await fleet.turn()
    async with page_of(browser, f"{fleet.dashboard.url}/handlers/invoices-001") as page:
        await page.locator("#state", has_text="paused, delivers nothing").wait_for()
        await page.locator("#troubles").get_by_text("the key was revoked").wait_for()
        facts = await page.locator("#facts").inner_text()
        waiting = page.locator("#runs .state.wait").first
        await waiting.wait_for()
        green = await page.locator("#runs .state.ok").count()
        rows = page.locator("#runs tbody tr")
        await page.locator("#run-chips").get_by_role("button", name="unchanged").click()
        await expect(rows).to_have_count(1)
        await page.locator("#run-chips").get_by_role("button", name="all").click()
        await page.get_by_role("button", name="Show 8 more").click()
        await expect(rows).to_have_count(18)

    assert "42 uploads" in facts
    assert "Next try\nin 2 min" in facts
    assert green == 0


async def test_a_strip_is_hollow_only_until_its_rows_have_arrived(
    browser: Any, fleet: Simulation
) -> None:
    one = fleet.handlers["orders-001"]
    one.busy, one.paused, one.runs = 0, "the backend answered 401", one.runs + 1
    await fleet.turn()
    async with page_of(browser, fleet.dashboard.url) as page:
        hollow = page.locator("#rows tr[role=row]", has_text="orders-001").locator(".strip .wait")
        await expect(hollow).not_to_have_count(0)
        one.paused, one.delivered = None, one.delivered + 2_800
        await fleet.turn()
        await expect(hollow).to_have_count(0)


async def test_a_run_has_a_page(browser: Any, fleet: Simulation) -> None:
    trouble_in(fleet)
    await fleet.turn()
    base = f"{fleet.dashboard.url}/handlers"
    async with page_of(browser, f"{base}/orders-001") as page:
        await page.locator("#runs tbody tr", has_text="uploaded").first.get_by_role("link").click()
        await page.locator("#state", has_text="uploaded").wait_for()
        result = await page.locator("#result").inner_text()
        uploads = await page.locator("#uploads").inner_text()
        await page.goto(f"{base}/crm-001")
        await page.locator("#runs tbody tr", has_text="failed").get_by_role("link").click()
        await page.locator("#trace summary").click()
        await page.locator("#traceback").get_by_text("acme.py").wait_for()
        title = await page.title()

    assert "/data/exports/orders.csv" in result
    assert "arrived" in uploads
    assert title.startswith("◆ process_and_upload: failed")


async def test_what_runs_next_is_shown_with_the_trouble_that_can_be_foreseen(browser: Any) -> None:
    at = "2099-01-01T02:00:00+00:00"
    async with shops("one") as fleet:
        handlers = [
            {"id": "one", "address": fleet["one"].address},
            {"id": "gone", "address": f"tcp://127.0.0.1:{free_port()}"},
        ]
        schedules = [
            {"id": f"nightly-{one['id']}", "handler_id": one["id"], "next_fire_time": at}
            for one in handlers
        ]

        async def answer() -> web.Response:
            return web.json_response({"handlers": handlers, "schedules": schedules})

        async with (
            scheduler(answer) as scheduler_url,
            conducting(scheduler_url=scheduler_url) as conductor,
        ):
            url = (await conductor.client.call("get_metrics"))["dashboard_url"]
            async with page_of(browser, url) as page:
                await page.get_by_text("will be missed: gone does not answer").wait_for()
                shown = await page.locator("#next-runs li").all_inner_texts()
                link = await page.get_by_role("link", name="Schedules").get_attribute("href")

    assert ["nightly-one" in text for text in shown] == [True, False]
    assert link == scheduler_url


async def test_the_rows_delivered_are_charted_by_hour_and_by_day(
    browser: Any, fleet: Simulation
) -> None:
    async with page_of(browser, fleet.dashboard.url) as page:
        await page.locator("#delivered rect.bar").first.wait_for()
        delivered = sum(one.delivered for one in fleet.handlers.values())
        table = page.locator("#delivered figure").first
        await page.get_by_role("button", name="14 days").click()
        await page.get_by_role("heading", name="Rows delivered a day").wait_for()
        await table.locator("summary").click()
        shown = await table.locator("td").nth(1).inner_text()
        address = page.url

    assert 0 < int(shown.replace(",", "")) <= delivered
    assert address.endswith("?span=14d")


async def test_a_handler_of_another_name_is_shown_in_its_row(
    browser: Any, fleet: Simulation
) -> None:
    fleet.handlers["billing-001"].called = "orders-001"
    await fleet.turn()
    async with page_of(browser, fleet.dashboard.url) as page:
        row = page.locator("#rows tr[role=row]", has_text="billing-001")
        await row.get_by_text("answers as orders-001").wait_for()


async def test_a_fleet_of_nobody_says_how_handlers_are_named(browser: Any) -> None:
    async with conducting({}) as conductor:
        url = (await conductor.client.call("get_metrics"))["dashboard_url"]
        async with page_of(browser, url, width=360) as page:
            await page.get_by_role("heading", name="No handlers are known yet").wait_for()
            await page.get_by_text("handler_registry: {").wait_for()
            over = await page.evaluate("document.documentElement.scrollWidth - innerWidth")

    assert over <= 0


async def test_a_page_of_an_unknown_handler_says_so_and_offers_nothing(
    browser: Any, fleet: Simulation
) -> None:
    async with page_of(browser, f"{fleet.dashboard.url}/handlers/nobody") as page:
        await page.get_by_text("No list of handlers").wait_for()
        signals = await page.get_by_role("button", name="Drain", exact=True).is_visible()

    assert not signals


async def test_a_problem_stays_on_the_page_until_it_is_over(browser: Any, tmp_path: Path) -> None:
    registry = tmp_path / "handler_registry.yaml"
    registry.write_text("handlers: [")
    async with conducting(registry, interval_s=0.5) as conductor:
        url = (await conductor.client.call("get_metrics"))["dashboard_url"]
        async with page_of(browser, url) as page:
            problem = page.get_by_role("alert").get_by_text("cannot be read as a registry file")
            await problem.wait_for()
            registry.write_text("handlers: []")
            await problem.wait_for(state="detached")


async def test_a_click_on_a_head_sorts_and_a_second_turns_it_round(
    browser: Any, fleet: Simulation
) -> None:
    by_runs = sorted(fleet.handlers, key=lambda name: fleet.handlers[name].runs)
    async with page_of(browser, fleet.dashboard.url) as page:
        await page.get_by_role("button", name="Last runs").click()
        down = await names_of(page)
        said = await page.locator("#heads .runs_total").get_attribute("aria-sort")
        await page.get_by_role("button", name="Last runs").click()
        up = await names_of(page)

    assert down == by_runs[::-1]
    assert up == by_runs
    assert said == "descending"


async def test_the_filter_and_the_states_narrow_the_table(browser: Any, fleet: Simulation) -> None:
    fleet.handlers["billing-001"].dead = True
    await fleet.turn()
    async with page_of(browser, fleet.dashboard.url) as page:
        await page.keyboard.press("/")
        await page.keyboard.type("orders")
        await expect(page.locator("#rows tr[role=row]")).to_have_count(2)
        filtered = await names_of(page)
        shown = await page.locator("#shown").inner_text()
        address = page.url
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="no answer").click()
        await expect(page.locator("#rows tr[role=row]")).to_have_count(1)
        broken = await names_of(page)
        await page.goto(address)
        await expect(page.locator("#rows tr[role=row]")).to_have_count(2)

    assert filtered == ["orders-001", "orders-002"]
    assert shown == "2 of 12 shown"
    assert broken == ["billing-001"]


async def test_a_signal_asks_for_the_token_and_shows_the_result(
    browser: Any, fleet: Simulation, tmp_path: Path
) -> None:
    token = (tmp_path / "dashboard_token").read_text().strip()
    async with page_of(browser, fleet.dashboard.url) as page:
        await page.get_by_label("Select orders-001").check()
        await page.get_by_role("button", name="Sleep", exact=True).click()
        await page.get_by_label("Token").fill("not-the-token-at-all")
        await page.get_by_role("dialog").get_by_role("button", name="Sleep", exact=True).click()
        await page.get_by_text("That token was refused").wait_for()
        untouched = fleet.handlers["orders-001"].state
        await page.get_by_label("Token").fill(token)
        await page.get_by_role("dialog").get_by_role("button", name="Sleep", exact=True).click()
        await page.get_by_text("Sleep: 1 of 1 done").wait_for()
        row = page.locator("#rows tr[role=row]", has_text="orders-001")
        await row.get_by_text("sleeping").wait_for()

    assert untouched != "sleeping"


@pytest.mark.parametrize("path", ["/", "/handlers/shop"])
async def test_beyond_loopback_the_page_asks_for_the_token_until_it_is_right(
    browser: Any, tmp_path: Path, path: str
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("a-token-of-enough-characters")
    everywhere = {"dashboard_host": "0.0.0.0", "token_file": token_file}  # noqa: S104
    async with shops("shop") as fleet, conducting(addresses(fleet), **everywhere) as conductor:
        url = (await conductor.client.call("get_metrics"))["dashboard_url"]
        async with page_of(browser, url.replace("0.0.0.0", "127.0.0.1") + path) as page:  # noqa: S104
            await page.get_by_text("the token is missing or wrong").wait_for()
            await page.keyboard.press("Escape")
            await page.get_by_role("button", name="Give the token").click()
            await page.get_by_text("the token is missing or wrong").wait_for()
            await page.get_by_role("textbox", name="Token").fill("not-the-token-at-all")
            await page.keyboard.press("Enter")
            await page.get_by_text("That token was refused").wait_for()
            shown = await page.locator("#rows tr[role=row], #runs > *").count()
            await page.get_by_role("textbox", name="Token").fill(token_file.read_text())
            await page.keyboard.press("Enter")
            await page.locator("#rows tr[role=row], #runs > *").first.wait_for()
            await page.wait_for_selector("body[data-link=live]")
            dialogs = await page.get_by_role("dialog").count()

    assert shown == 0
    assert dialogs == 0


async def test_the_page_comes_back_when_the_conductor_does(browser: Any, fleet: Simulation) -> None:
    async with page_of(browser, fleet.dashboard.url) as page:
        await page.wait_for_selector("body[data-link=live]")
        port = int(fleet.dashboard.url.rpartition(":")[2])
        await fleet.dashboard.stop()
        await page.wait_for_selector("body[data-link=lost]")
        assert "not live" in await page.locator("#link").inner_text()
        banner = await page.locator("#stale").inner_text()
        assert re.search(r"What you see is of .*; the next try is at \d\d:\d\d:\d\d \S+\.", banner)
        assert await page.locator("#signals").evaluate("one => one.inert")
        fleet.restart(port)
        await fleet.dashboard.start()
        await page.wait_for_selector("body[data-link=live]")
        await page.locator("#link").get_by_text("live again").wait_for(state="attached")
        fleet.handlers["orders-001"].dead = True
        await fleet.turn()
        await page.get_by_role("heading", name="Rows from 1 of 12 handlers").wait_for()


async def test_a_conductor_that_was_restarted_is_followed_with_its_new_fleet(browser: Any) -> None:
    port = free_port()
    async with shops("one", "two") as fleet, AsyncExitStack() as stack:
        registry = addresses(fleet)
        async with conducting(registry, dashboard_port=port) as conductor:
            url = (await conductor.client.call("get_metrics"))["dashboard_url"]
            page = await stack.enter_async_context(page_of(browser, url))
            await page.get_by_role("heading", name="All 2 handlers answer").wait_for()
        await page.wait_for_selector("body[data-link=lost]")
        registry["gone"] = free_port()
        async with conducting(registry, dashboard_port=port):
            await page.get_by_role("heading", name="1 of 3 handlers does not answer").wait_for()
            await page.locator(UNREACHABLE, has_text="gone").wait_for()
            await stack.aclose()


async def test_a_killed_handler_shows_by_itself(browser: Any) -> None:
    port = free_port()
    async with ShopProcess("victim", port) as victim, shops("other") as fleet:
        registry = {"victim": port, **addresses(fleet)}
        async with conducting(registry) as conductor:
            url = (await conductor.client.call("get_metrics"))["dashboard_url"]
            async with page_of(browser, url) as page:
                await page.get_by_role("heading", name="All 2 handlers answer").wait_for()
                await victim.kill()
                await page.get_by_role("heading", name="1 of 2 handlers does not answer").wait_for()
                await page.locator(UNREACHABLE, has_text="victim").wait_for()


async def test_one_handlers_page_shows_all_of_it(browser: Any) -> None:
    async with shops("shop") as fleet, conducting(addresses(fleet)) as conductor:
        await fleet["shop"].client.call("greet", {"name": "ann"})
        await fleet["shop"].client.request("fail")
        url = (await conductor.client.call("get_metrics"))["dashboard_url"]
        async with page_of(browser, f"{url}/handlers/shop") as page:
            await page.get_by_role("heading", name="shop").wait_for()
            await page.locator("#methods").get_by_text("greet(name)").wait_for(state="attached")
            await page.locator("#runs").get_by_text("ValueError: no such shop").wait_for()
            await page.locator("#changes").get_by_text("found at").wait_for()
            assert await page.locator("#charts figure").count() == 4
            await page.get_by_role("button", name="24 h").click()
            await page.locator("#state", has_text="failed").wait_for()
            assert await page.title() == "◆ shop: failed · catalogzero"
            await page.locator("#runs tbody tr", has_text="greet").get_by_role("link").click()
            await expect(page.locator("#called")).to_contain_text("nameann")


async def test_a_thousand_rows_that_change_each_second_leave_the_page_free(
    browser: Any, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.json"
    async with simulation(1_000, clock=ManualClock(), state_dir=tmp_path) as fleet:
        await fleet.turn()
        async with page_of(browser, f"{fleet.dashboard.url}/?sort=-response_time_ms") as page:
            await page.wait_for_selector("#rows tr[role=row]")
            await browser.start_tracing(
                page=page, path=trace, categories=["toplevel", "devtools.timeline"]
            )
            for number in range(6):
                await fleet.turn()
                await page.mouse.wheel(0, 900 * (-1) ** number)
                await pause(1)
            await browser.stop_tracing()
            drawn = await page.locator("#rows tr[role=row]").count()
    tasks = long_tasks_ms(json.loads(trace.read_text())["traceEvents"])

    assert len(tasks) > 100
    assert tasks[0] < 100
    assert 10 < drawn < 100


@pytest.mark.parametrize("path", PATHS)
async def test_no_width_scrolls_sideways(browser: Any, fleet: Simulation, path: str) -> None:
    trouble_in(fleet)
    await fleet.turn()
    async with page_of(browser, fleet.dashboard.url + path, width=320) as page:
        await page.wait_for_selector("#rows tr[role=row], #charts path, #called dt")
        over = {}
        for width in (320, 390, 768, 940, 1280):
            await page.set_viewport_size({"width": width, "height": 900})
            over[width] = await page.evaluate("document.documentElement.scrollWidth - innerWidth")

    assert max(over.values()) <= 0, over


async def test_rows_are_as_high_as_the_table_reckons(browser: Any, fleet: Simulation) -> None:
    async with page_of(browser, fleet.dashboard.url) as page:
        await page.wait_for_selector("#rows tr[role=row]")
        reckoned, found = [], []
        for width in (360, 768, 1280):
            await page.set_viewport_size({"width": width, "height": 900})
            reckoned.append(
                await page.evaluate("parseFloat(getComputedStyle(rows).getPropertyValue('--row'))")
            )
            found.append(
                await page.eval_on_selector_all(
                    "#rows tr[role=row]",
                    "([a, b]) => b.getBoundingClientRect().top - a.getBoundingClientRect().top",
                )
            )

    assert found == reckoned


async def test_no_cell_is_cut_off(browser: Any, fleet: Simulation) -> None:
    fleet.handlers["billing-001"].dead = True
    fleet.handlers["orders-002"].state = "sleeping"
    fleet.handlers["audit-001"].state = "draining"
    await fleet.turn()
    cut = {}
    async with page_of(browser, fleet.dashboard.url) as page:
        await page.wait_for_selector(UNREACHABLE)
        for width in (360, 768, 1280):
            await page.set_viewport_size({"width": width, "height": 900})
            cut[width] = await page.eval_on_selector_all(
                "#rows td, #rows th, #rows .state" + ", #heads th" * (width > 920),
                "all => all.filter(one => one.offsetParent && one.scrollWidth > one.clientWidth)"
                ".map(one => one.className + ': ' + one.textContent)",
            )

    assert cut == {360: [], 768: [], 1280: []}


@pytest.mark.parametrize(("path", "width"), [("/", 360), ("/handlers/orders-001", 1280)])
async def test_axe_finds_no_fault_in_a_dialog(
    browser: Any, fleet: Simulation, path: str, width: int
) -> None:
    axe = await axe_source()
    found = []
    async with page_of(browser, fleet.dashboard.url + path, width=width) as page:
        if path == "/":
            await page.get_by_label("Select orders-001").check()
        await page.get_by_role("button", name="Sleep", exact=True).press("Enter")
        await page.get_by_label("Token").wait_for()
        focused = await page.evaluate("document.activeElement.id")
        await page.evaluate(axe)
        found += await faults_in_both_schemes(page)
        await page.get_by_label("Token").fill("not-the-token-at-all")
        await page.keyboard.press("Enter")
        await page.get_by_text("That token was refused").wait_for()
        found += await faults_in_both_schemes(page)
        over = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
        await page.keyboard.press("Escape")
        await page.get_by_role("dialog").wait_for(state="detached")
        back = await page.evaluate("document.activeElement.textContent")

    assert found == []
    assert focused == "token"
    assert over <= 0
    assert back == "Sleep"


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("path", PATHS)
async def test_axe_finds_no_fault(browser: Any, fleet: Simulation, path: str, width: int) -> None:
    axe = await axe_source()
    trouble_in(fleet)
    fleet.handlers["orders-002"].state = "draining"
    await fleet.turn()
    found = []
    async with page_of(browser, fleet.dashboard.url + path, width=width) as page:
        await page.wait_for_selector("#rows tr[role=row], #charts path, #called dt")
        await page.evaluate(
            "for (const one of document.querySelectorAll('details')) one.open = true"
        )
        await page.evaluate(axe)
        found += await faults_in_both_schemes(page)

    assert found == []


async def test_axe_finds_no_fault_where_there_is_nothing(browser: Any, tmp_path: Path) -> None:
    axe = await axe_source()
    found = []
    async with conducting(tmp_path / "not_there.yaml") as conductor:
        empty = (await conductor.client.call("get_metrics"))["dashboard_url"]
        for url, said in ((empty, "no such registry"), (empty + "/handlers/x", "No list of")):
            async with page_of(browser, url) as page:
                await page.get_by_text(said).wait_for()
                await page.evaluate(axe)
                found += await faults_in_both_schemes(page)

    assert found == []


async def test_the_keyboard_reaches_and_works_everything(browser: Any, fleet: Simulation) -> None:
    async with page_of(browser, fleet.dashboard.url) as page:
        await page.wait_for_selector("#rows tr[role=row]")
        await page.get_by_role("columnheader", name="Handler").get_by_role("button").focus()
        await page.keyboard.press("Enter")
        await page.get_by_label("Select audit-001").focus()
        await page.keyboard.press("Space")
        await fleet.turn()
        await page.get_by_text("1 selected").wait_for()
        await page.keyboard.press("Tab")
        focused = await page.evaluate("document.activeElement.textContent")
        await page.keyboard.press("Enter")
        await page.get_by_role("heading", name="audit-001").wait_for()

    assert focused == "audit-001"


STEPS_WITHIN_ONE_FRAME = """(steps) => Array.from({ length: steps }, () => {
    document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "j", bubbles: true }));
    return document.activeElement.querySelector(".handler_id a")?.textContent;
})"""


async def test_keys_move_through_rows_that_are_drawn_only_in_sight(
    browser: Any, tmp_path: Path
) -> None:
    async with simulation(60, clock=ManualClock(), state_dir=tmp_path) as fleet:
        trouble_in(fleet)
        await fleet.turn()
        url = f"{fleet.dashboard.url}/?sort=handler_id&state=trouble"
        async with page_of(browser, url) as page:
            await page.wait_for_selector("#rows tr[role=row]")
            await page.keyboard.press("?")
            listed = await page.get_by_role("dialog").inner_text()
            await page.keyboard.press("Escape")
            await page.keyboard.press("n")
            await page.keyboard.press("n")
            second = await page.evaluate("document.activeElement.querySelector('h3').textContent")
            await page.get_by_role("button", name="all", exact=False).first.click()
            await expect(page.locator("#shown")).to_have_text("")
            visited = []
            for _ in range(20):
                await page.keyboard.press("j")
                visited.append(await focused_name(page))
            visited += await page.evaluate(STEPS_WITHIN_ONE_FRAME, 20)
            await page.keyboard.press("k")
            back = await focused_name(page)
            await page.keyboard.press("Enter")
            await page.get_by_role("heading", name=str(back)).wait_for()

    every = sorted(fleet.handlers)
    assert "Run the row" not in listed
    assert second
    assert visited == every[:40]
    assert back == every[38]


async def focused_name(page: Any) -> object:
    """The handler whose row has the focus."""
    return await page.evaluate("document.activeElement.querySelector('.handler_id a')?.textContent")


async def test_rows_keep_their_places_under_the_pointer(browser: Any, fleet: Simulation) -> None:
    async with page_of(browser, fleet.dashboard.url) as page:
        await page.wait_for_selector("#rows tr[role=row]")
        before = await names_of(page)
        await page.locator("#rows tr[role=row]").nth(2).hover()
        fleet.handlers[before[-1]].dead = True
        await fleet.turn()
        await page.locator(UNREACHABLE).wait_for()
        again = page.get_by_role("button", name=re.compile("[0-9] changed places?: sort again"))
        await again.wait_for()
        held = await names_of(page)
        await again.click()
        await expect(again).to_have_count(0)
        first, *_ = await names_of(page)

    assert held == before
    assert first == before[-1]


@pytest.mark.timeout(300)
async def test_the_pictures_of_the_documentation_are_taken(tmp_path: Path) -> None:
    pictures = Path(os.environ.get("CATALOGZERO_TEST_PICTURES") or tmp_path)

    await take(pictures)

    for name in ("fleet.png", "fleet-1000.png", "handler.png"):
        assert (pictures / name).stat().st_size > 50_000

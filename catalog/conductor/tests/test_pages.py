"""The pages in a real Chromium: live, sorted, filtered, signalled, fast, narrow, accessible."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from catalogzero.testing import ManualClock

from browsers import axe_source, browsing, long_tasks_ms, names_of, page_of
from fleets import ShopProcess, addresses, conducting, free_port, pause, shops
from simulated import Simulation, simulation

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="module"),
]


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
        await row.get_by_text("77").first.wait_for()
        assert "MB" in await row.locator("td.memory_mb").inner_text()


async def test_many_routine_changes_push_out_no_news(browser: Any, fleet: Simulation) -> None:
    async with page_of(browser, fleet.dashboard.url) as page:
        fleet.handlers["billing-001"].dead = True
        await fleet.turn()
        news = page.locator("#latest", has_text="billing-001")
        await news.get_by_text("unreachable").wait_for()
        for _ in range(60):
            await fleet.turn()
        await page.locator("#events summary").click()
        routine = await page.locator("#event-list li", has_text="active → idle").count()
        await page.reload()
        await page.locator("#latest", has_text="billing-001").wait_for()

    assert routine > 2


async def test_a_dead_handler_shows_no_figures_as_if_they_were_of_now(
    browser: Any, fleet: Simulation
) -> None:
    fleet.handlers["billing-001"].dead = True
    await fleet.turn()
    async with page_of(browser, fleet.dashboard.url) as page:
        row = page.locator("#rows tr.unreachable")
        cells = {
            name: (await row.locator(f"td.{name}").inner_text()).strip()
            for name in ("response_time_ms", "memory_mb", "cpu_percent", "in_flight")
        }
        await page.goto(f"{fleet.dashboard.url}/handlers/billing-001")
        await page.get_by_text("unreachable for").wait_for()
        tiles = await page.locator("#tiles").inner_text()

    dash = dict.fromkeys(("memory_mb", "cpu_percent", "in_flight"), "–")  # noqa: RUF001 - shown so
    assert cells == {"response_time_ms": "no reply", **dash}
    assert "Last seen" in tiles
    assert "MB" not in tiles


async def test_a_handler_of_another_name_is_told_in_its_row(
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
            tiles = await page.locator("#tiles").is_visible()

    assert over <= 0
    assert not tiles


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
        await page.get_by_role("button", name="Runs").click()
        down = await names_of(page)
        said = await page.locator("th.runs_total").get_attribute("aria-sort")
        await page.get_by_role("button", name="Runs").click()
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
        await page.wait_for_function("document.querySelectorAll('#rows tr[role=row]').length === 2")
        filtered = await names_of(page)
        shown = await page.locator("#shown").inner_text()
        address = page.url
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="unreachable").click()
        await page.wait_for_function("document.querySelectorAll('#rows tr[role=row]').length === 1")
        broken = await names_of(page)
        await page.goto(address)
        await page.wait_for_function("document.querySelectorAll('#rows tr[role=row]').length === 2")

    assert filtered == ["orders-001", "orders-002"]
    assert shown == "2 of 12 shown"
    assert broken == ["billing-001"]


async def test_a_signal_asks_for_the_token_and_tells_the_result(
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
            shown = await page.locator("#rows tr[role=row], #methods td").count()
            await page.get_by_role("textbox", name="Token").fill(token_file.read_text())
            await page.keyboard.press("Enter")
            await page.locator("#rows tr[role=row], #methods td").first.wait_for()
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
        assert "connection lost" in await page.locator("#link").inner_text()
        assert "(figures of " in await page.locator("#live-text").inner_text()
        fleet.restart(port)
        await fleet.dashboard.start()
        await page.wait_for_selector("body[data-link=live]")
        await page.locator("#link").get_by_text("live again").wait_for(state="attached")
        fleet.handlers["orders-001"].dead = True
        await fleet.turn()
        await page.get_by_role("heading", name="1 of 12 handlers does not answer").wait_for()


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
            await page.locator("#rows tr.unreachable", has_text="gone").wait_for()
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
                await page.locator("#rows tr.unreachable", has_text="victim").wait_for()


async def test_one_handlers_page_tells_all_of_it(browser: Any) -> None:
    async with shops("shop") as fleet, conducting(addresses(fleet)) as conductor:
        await fleet["shop"].client.call("greet", {"name": "ann"})
        await fleet["shop"].client.request("fail")
        url = (await conductor.client.call("get_metrics"))["dashboard_url"]
        async with page_of(browser, f"{url}/handlers/shop") as page:
            await page.get_by_role("heading", name="shop").wait_for()
            await page.locator("#methods").get_by_text("greet(name)").wait_for()
            await page.locator("#runs").get_by_text("ValueError: no such shop").wait_for()
            await page.locator("#changes").get_by_text("found at").wait_for()
            assert await page.locator("#charts figure").count() == 4
            await page.get_by_role("button", name="24 h").click()
            assert await page.title() == "shop: active · ConductorZero"


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


@pytest.mark.parametrize("path", ["/", "/handlers/orders-001"])
async def test_no_width_scrolls_sideways(browser: Any, fleet: Simulation, path: str) -> None:
    fleet.handlers["orders-001"].failures = 3
    fleet.handlers["billing-001"].dead = True
    await fleet.turn()
    async with page_of(browser, fleet.dashboard.url + path, width=360) as page:
        await page.wait_for_selector("#rows tr[role=row], #charts path")
        over = {}
        for width in (360, 768, 1280):
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
        await page.wait_for_selector("#rows tr.unreachable")
        for width in (360, 768, 1280):
            await page.set_viewport_size({"width": width, "height": 900})
            cut[width] = await page.eval_on_selector_all(
                "#rows tr[role=row] td, #rows .address, #heads th",
                "all => all.filter(one => one.offsetParent && one.scrollWidth > one.clientWidth)"
                ".map(one => one.className + ': ' + one.textContent)",
            )

    assert cut == {360: [], 768: [], 1280: []}


@pytest.mark.parametrize(("path", "width"), [("/", 360), ("/handlers/orders-001", 1280)])
async def test_axe_finds_no_serious_fault_in_a_dialog(
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


async def serious_faults(page: Any) -> list[tuple[str, str]]:
    """What axe-core, already on the page, finds that is serious or worse."""
    result = await page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        (fault["id"], fault["nodes"][0]["html"])
        for fault in result["violations"]
        if fault["impact"] in ("serious", "critical")
    ]


async def faults_in_both_schemes(page: Any) -> list[tuple[str, str]]:
    """The serious faults in light and in dark."""
    found = []
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        found += await serious_faults(page)
    return found


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("path", ["/", "/handlers/orders-001"])
async def test_axe_finds_no_serious_fault(
    browser: Any, fleet: Simulation, path: str, width: int
) -> None:
    axe = await axe_source()
    fleet.handlers["billing-001"].dead = True
    fleet.handlers["orders-002"].state = "draining"
    await fleet.turn()
    found = []
    async with page_of(browser, fleet.dashboard.url + path, width=width) as page:
        await page.wait_for_selector("#rows tr[role=row], #charts path")
        await page.evaluate(
            "for (const one of document.querySelectorAll('details')) one.open = true"
        )
        await page.evaluate(axe)
        found += await faults_in_both_schemes(page)

    assert found == []


async def test_axe_finds_no_serious_fault_where_there_is_nothing(
    browser: Any, tmp_path: Path
) -> None:
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

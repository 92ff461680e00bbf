"""Handlers with instances on the pages, in a real Chromium."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from catalogzero.testing import ManualClock

from browsers import axe_source, browsing, expect, faults_in_both_schemes, names_of, page_of
from simulated import Simulation, simulation

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="module"),
]

INSTANCES = ("north", "south", "west")
PATHS = ("/", "/handlers/render", "/handlers/render%2Fnorth")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Any]:
    async with browsing() as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(tmp_path: Path) -> AsyncIterator[Simulation]:
    """Two handlers that are alone, and one with three instances, of which one has gone away."""
    clock = ManualClock()
    async with simulation(2, clock=clock, state_dir=tmp_path, busy=0.0, instances=INSTANCES) as one:
        await one.turn()
        await clock.advance(60)
        one.handlers["render/south"].dead = True
        await one.turn()
        yield one


async def test_instances_stand_below_their_handler_however_the_table_is_sorted(
    browser: Any, fleet: Simulation
) -> None:
    async with page_of(browser, fleet.dashboard.url) as page:
        await page.get_by_role("heading", name="render/south is away").wait_for()
        by_state = await names_of(page)
        await page.get_by_role("button", name="Handler", exact=True).click()
        by_name = await names_of(page)
        about = await page.locator("#rows tr.warn:not(.instance) .handler_id small").inner_text()
        row = page.locator("#rows tr.instance", has_text="render/north")
        place = await row.locator(".handler_id small").inner_text()
        hosts = await page.locator("#host-rows tbody tr").all_inner_texts()
        trouble = await page.locator("#troubles h3").inner_text()

    members = [f"render/{name}" for name in INSTANCES]
    assert by_state[:4] == ["render", *members]
    assert by_name == ["invoices-001", "orders-001", "render", *members]
    assert about == "3 instances on 3 hosts · 0 of 8 places taken"
    assert place == "10.0.0.1 · 0 of 4 places taken"
    assert [" ".join(text.split()) for text in hosts] == [
        "10.0.0.1 1 of 1 answer 0 4",
        "10.0.0.2 0 of 1 answer 0 –",  # noqa: RUF001 - shown so
        "10.0.0.3 1 of 1 answer 0 4",
    ]
    assert trouble == "render/south: no answer to a ping; other instances take the calls"


async def test_the_filter_finds_an_instance_and_shows_its_handler(
    browser: Any, fleet: Simulation
) -> None:
    async with page_of(browser, fleet.dashboard.url) as page:
        await page.get_by_role("button", name="no answer").click()
        await expect(page.locator("#rows tr[role=row]")).to_have_count(2)
        silent = await names_of(page)
        shown = await page.locator("#shown").inner_text()
        chips = await page.locator("#chips").inner_text()
        await page.get_by_role("button", name="all", exact=False).first.click()
        await page.keyboard.press("/")
        await page.keyboard.type("10.0.0.3")
        await expect(page.locator("#rows tr[role=row]")).to_have_count(2)
        found = await names_of(page)

    assert silent == ["render", "render/south"]
    assert shown == "1 of 3 shown"
    assert "all\n3" in chips
    assert "in trouble\n1" in chips
    assert found == ["render", "render/west"]


async def test_a_signal_to_all_says_which_instance_did_not_take_it(
    browser: Any, fleet: Simulation, tmp_path: Path
) -> None:
    token = (tmp_path / "dashboard_token").read_text().strip()
    async with page_of(browser, fleet.dashboard.url) as page:
        await page.get_by_label("Select render", exact=True).check()
        part = page.get_by_label("Select render/north")
        await expect(part).to_be_checked()
        await expect(part).to_be_disabled()
        selected = await page.locator("#shown").inner_text()
        await page.get_by_role("button", name="Sleep", exact=True).click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_role("heading", name="Sleep render?").wait_for()
        await page.get_by_label("Token").fill(token)
        await dialog.get_by_role("button", name="Sleep", exact=True).click()
        await page.get_by_text("Sleep: 2 of 3 done. render/south: Timeout").wait_for()
        row = page.locator("#rows tr.instance", has_text="render/west")
        await row.get_by_text("sleeping").wait_for()
        await page.get_by_label("Select render", exact=True).uncheck()
        await page.get_by_label("Select render/west").check()
        await page.get_by_role("button", name="Wake", exact=True).click()
        await dialog.get_by_role("button", name="Wake", exact=True).click()
        await page.get_by_text("Wake: 1 of 1 done").wait_for()

    states = {name: fleet.handlers[f"render/{name}"].state for name in ("north", "west")}
    assert selected == "1 selected"
    assert states == {"north": "sleeping", "west": "active"}


async def test_a_handler_with_instances_has_a_page_that_leads_to_theirs(
    browser: Any, fleet: Simulation
) -> None:
    async with page_of(browser, fleet.dashboard.url) as page:
        await page.get_by_role("link", name="render", exact=True).first.click()
        await page.get_by_role("heading", name="render 1 of 3 away").wait_for()
        title = await page.title()
        sub = await page.locator("#sub").inner_text()
        rows = page.locator("#instances tbody tr")
        await expect(rows).to_have_count(3)
        await page.locator("#changes li", has_text="render/south").first.wait_for()
        runs = await page.locator("#runs").is_visible()
        fleet.handlers["render/south"].dead = False
        await fleet.turn()
        await page.locator("#sub", has_text="3 of 3 instances answer").wait_for()
        await rows.get_by_role("link", name="render/south").click()
        await page.get_by_role("heading", name="render/south").wait_for()
        await page.locator("#runs tbody tr").first.wait_for()
        identity = await page.locator("#identity").text_content()
        await page.locator(".crumbs").get_by_role("link", name="render").click()
        await expect(rows).to_have_count(3)

    assert title == "◆ render: 1 of 3 away · catalogzero"
    assert sub.startswith("2 of 3 instances answer, on 3 hosts · 0 of 8 places taken")
    assert not runs
    assert "10.0.0.2" in identity


async def test_keys_move_through_instances_too(browser: Any, fleet: Simulation) -> None:
    async with page_of(browser, fleet.dashboard.url) as page:
        await page.wait_for_selector("#rows tr.instance")
        for _ in range(3):
            await page.keyboard.press("j")
        await page.keyboard.press("Enter")
        await page.get_by_role("heading", name="render/south").wait_for()
        await page.locator("#runs-title").wait_for()


async def test_where_no_instance_answers_it_is_the_handler_that_fails(
    browser: Any, fleet: Simulation
) -> None:
    for name in INSTANCES:
        fleet.handlers[f"render/{name}"].dead = True
    await fleet.turn()
    async with page_of(browser, fleet.dashboard.url) as page:
        await page.get_by_role("heading", name="1 of 3 handlers does not answer").wait_for()
        trouble = await page.locator("#troubles h3").inner_text()
        gone = await page.locator("#rows tr.gone").count()

    assert trouble == "render: no answer to a ping"
    assert gone == 4


@pytest.mark.parametrize("path", PATHS)
async def test_no_width_scrolls_sideways_or_cuts_a_cell(
    browser: Any, fleet: Simulation, path: str
) -> None:
    over, cut = {}, {}
    async with page_of(browser, fleet.dashboard.url + path, width=320) as page:
        await page.wait_for_selector("#rows tr.instance, #instances tbody tr, #runs tbody tr")
        for width in (320, 390, 768, 940, 1280):
            await page.set_viewport_size({"width": width, "height": 900})
            over[width] = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
            cut[width] = await page.eval_on_selector_all(
                "#rows td, #rows th, #rows .state",
                "all => all.filter(one => one.offsetParent && one.scrollWidth > one.clientWidth)"
                ".map(one => one.className + ': ' + one.textContent)",
            )

    assert max(over.values()) <= 0, over
    assert all(not found for found in cut.values()), cut


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("path", PATHS)
async def test_axe_finds_no_fault(browser: Any, fleet: Simulation, path: str, width: int) -> None:
    axe = await axe_source()
    async with page_of(browser, fleet.dashboard.url + path, width=width) as page:
        await page.wait_for_selector("#rows tr.instance, #instances tbody tr, #runs tbody tr")
        await page.evaluate(axe)
        found = await faults_in_both_schemes(page)

    assert found == []

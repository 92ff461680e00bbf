"""Takes the pictures of the documentation; `make pictures` of the source tree takes them again.

Simulated fleets, of which some have lived for hours; the pages are the real ones.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from catalogzero.testing import ManualClock

from browsers import browsing
from simulated import Simulation, simulation

SITES = ("Hamburg", "Lyon", "Wien", "Oslo", "Torino")


async def lived(fleet: Simulation, clock: ManualClock, *, hours: float, dead: int) -> None:
    """Let a fleet live, put some to sleep, and end some."""
    handlers = list(fleet.handlers.values())
    for number, one in enumerate(handlers):
        one.busy = 0.0 if number % 5 in (2, 4) else max(one.busy, 0.7 * (number == 0))
    await fleet.live_through(clock, hours, step_s=30)
    for number, one in enumerate(handlers):
        one.state = "sleeping" if number % 5 == 2 else one.state
        one.state = "draining" if number % 97 == 5 else one.state
    for number, one in enumerate(handlers):
        one.labels = {"site": SITES[number % len(SITES)]}
        if number % 61 == 1:
            one.paused, one.paused_code = (
                "the backend answered 401: the key was revoked",
                "http_401",
            )
            one.paused_since = (clock.now() - timedelta(hours=1, minutes=7)).isoformat()
            one.uploads = 3
        one.dead_letters = 2 if number % 331 == 9 else 0
        one.failing = number % 499 == 8
    for one in handlers[3 :: max(len(handlers) // dead, 1) if dead else len(handlers) + 3][:dead]:
        one.dead = True
    for moment in range(100):
        await clock.advance(30)
        await fleet.turn()
        if moment and sum(one.in_flight > 0 for one in handlers) >= 2:
            break


async def shoot(browser: Any, url: str, path: Path) -> None:
    """Take one picture of the first screen."""
    page = await browser.new_page(viewport={"width": 1280, "height": 780})
    await page.goto(url)
    await page.wait_for_selector("#rows tr[role=row], #runs tbody tr")
    await page.wait_for_load_state("load")
    # Not by a function in the page: its policy lets no text be evaluated there.
    await page.locator("#live", has_text="live").wait_for()
    await page.screenshot(path=path)
    await page.close()


async def take(folder: Path) -> None:
    """Take them all."""
    async with browsing() as browser:
        for number, dead, hours in ((6, 0, 5.0), (1_000, 12, 0.6)):
            clock = ManualClock(datetime.now(UTC) - timedelta(hours=hours))
            with tempfile.TemporaryDirectory() as state:
                async with simulation(number, clock=clock, state_dir=Path(state)) as fleet:
                    await lived(fleet, clock, hours=hours, dead=dead)
                    url = fleet.dashboard.url
                    if dead:
                        await shoot(browser, url, folder / "fleet-1000.png")
                        continue
                    one = f"{url}/handlers/orders-001"
                    await shoot(browser, url, folder / "fleet.png")
                    await shoot(browser, one, folder / "handler.png")

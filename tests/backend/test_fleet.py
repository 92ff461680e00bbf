"""The fleet page: whom it shows to whom, and what a person can do with it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from catalogzero.testing import ManualClock

from tests.backend.peer import Answer, Peer, serve_peer

CHROMIUM = Path("/usr/bin/chromium")
HAS_CHROMIUM = CHROMIUM.exists()
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-quic",
    "--no-first-run",
]
EVIL = "<script>document.title='owned'</script>"


async def report(peer: Peer, installation: str, **fields: Any) -> Answer:
    """Send one health report."""
    body = {"client_id": installation, "metrics": {}, "timestamp": "", **fields}
    return await peer.ask("POST", "/v1/health", json=body)


async def fleet(peer: Peer) -> dict[str, Any]:
    """The tenant's rows of the fleet, by installation."""
    rows = (await peer.ask("GET", "/fleet.json")).json["installations"]
    return {row["installation_id"]: row for row in rows if row["tenant"] == peer.name}


async def test_the_fleet_shows_what_each_installation_said(peer: Peer) -> None:
    outbox = {"uploads": 3, "bytes": 5_000_000, "oldest_age_s": 7_300, "dead": 1}
    about = {"entry": "skylark", "version": "2.0"}
    await peer.ask("PUT", "/v1/installations/site-1", json=about)
    await report(peer, "site-1", status="failing", reasons=["401 paused"], outbox=outbox)
    await peer.complete("u1", chunks=0, records=0, installation_id="site-2")

    rows = await fleet(peer)

    one, two = rows["site-1"], rows["site-2"]
    assert (one["state"], one["reasons"], one["backlog"]) == ("failing", "401 paused", 3)
    assert (one["entry"], one["version"], one["last_upload_at"]) == ("skylark", "2.0", "")
    assert (two["state"], two["backlog"]) == ("unknown", None)
    assert two["last_upload_at"]


async def test_an_installation_that_missed_its_reports_is_silent(database_url: str) -> None:
    clock = ManualClock()
    async with serve_peer(database_url, clock=clock, health_commit_window_s=0) as peer:
        for installation, interval_s in (("often", 60), ("seldom", 3_600)):
            sent = asyncio.create_task(
                report(peer, installation, status="ok", interval_s=interval_s)
            )
            while not sent.done():
                await clock.advance(0)
        await clock.advance(181)

        states = {name: row["state"] for name, row in (await fleet(peer)).items()}

    assert states == {"often": "silent", "seldom": "ok"}


@pytest.mark.parametrize(
    "body",
    [
        {"outbox": 7, "reasons": "text", "status": ["x"], "interval_s": "soon"},
        {"outbox": {"uploads": -1, "oldest_age_s": True}, "interval_s": 1e300},
        {"entry": {"a": [1]}, "version": EVIL, "reasons": [EVIL, None]},
    ],
)
async def test_no_report_can_break_the_page(peer: Peer, body: dict[str, Any]) -> None:
    assert (await report(peer, "odd", **body)).status == 200

    page = await peer.ask("GET", "/")

    assert page.status == 200
    assert EVIL.encode() not in page.body
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]


async def test_a_report_whose_client_id_is_a_key_is_refused(peer: Peer) -> None:
    answer = await report(peer, peer.key)

    assert (answer.status, answer.problem) == (400, "invalid-request")
    assert peer.key.encode() not in answer.body


@pytest.mark.parametrize("path", ["/", "/fleet.json", "/fleet.js", "/metrics"])
async def test_without_a_token_only_this_machine_sees_the_operator_s_side(
    peer: Peer, path: str
) -> None:
    direct = await peer.ask("GET", path)
    proxied = await peer.ask("GET", path, headers={"X-Forwarded-For": "203.0.113.9"})
    rebound = await peer.ask("GET", path, headers={"Host": "backend.example"})

    assert [direct.status, proxied.status, rebound.status] == [200, 403, 403]


async def test_a_token_opens_the_operator_s_side_and_a_tenant_s_key_does_not(
    database_url: str, tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("operator-secret\n")
    basic = base64.b64encode(b"me:operator-secret").decode()
    async with serve_peer(database_url, operator_token_file=token_file) as peer:
        answers = [
            await peer.ask("GET", "/metrics"),
            await peer.ask("GET", "/metrics", headers={"Authorization": "Basic !!"}),
            await peer.ask("GET", "/metrics", headers={"Authorization": f"Basic {basic}"}),
            await peer.ask("GET", "/metrics", headers={"Authorization": "Bearer operator-secret"}),
        ]

    assert [answer.status for answer in answers] == [401, 401, 200, 200]
    assert answers[0].headers["WWW-Authenticate"].startswith("Basic")


async def test_health_readiness_and_metrics_tell_what_happened(peer: Peer) -> None:
    await peer.put("u1", 0, {"a": 1})
    await peer.complete("u1")

    alive = await peer.ask("GET", "/healthz", headers={"Authorization": ""})
    ready = await peer.ask("GET", "/readyz", headers={"Authorization": ""})
    text = (await peer.ask("GET", "/metrics")).body.decode()

    route = "/v1/uploads/{upload_id}/complete"
    assert (alive.status, ready.status) == (200, 200)
    assert f'answers_total{{method="POST",route="{route}",status="201"}} 1.0\n' in text
    assert "catalogzero_backend_installations " in text
    assert peer.key not in text


@asynccontextmanager
async def page_of(peer: Peer, width: int) -> AsyncIterator[Any]:
    """The fleet page in a real browser."""
    playwright = pytest.importorskip("playwright.async_api")
    if not HAS_CHROMIUM:
        pytest.skip("no Chromium here: apt-get install chromium")
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        try:
            page = await browser.new_page(viewport={"width": width, "height": 800})
            await page.goto(peer.url + "/")
            yield page
        finally:
            await browser.close()


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Peer]:
    """A backend that three installations report to."""
    async with serve_peer(f"sqlite:///{tmp_path / 'fleet.db'}") as peer:
        for name, status, waiting in (("b", "ok", 10), ("a", "failing", 9), ("c", "ok", 100)):
            outbox = {"uploads": waiting, "bytes": waiting * 1_000, "oldest_age_s": 60, "dead": 0}
            await report(peer, name, status=status, outbox=outbox, version=EVIL)
        yield peer


SHOWN = "tbody tr:not([hidden]) td:nth-child(2)"


@pytest.mark.browser
async def test_a_person_sorts_and_filters_the_fleet(three: Peer) -> None:
    async with page_of(three, 1_200) as page:
        first = await page.locator(SHOWN).all_text_contents()
        await page.get_by_role("button", name="Backlog").click()
        rising = await page.locator(SHOWN).all_text_contents()
        await page.get_by_role("button", name="Backlog").click()
        falling = await page.locator(SHOWN).all_text_contents()
        await page.get_by_label("Health").select_option("ok")
        healthy = await page.locator(SHOWN).all_text_contents()
        await page.get_by_label("Find").fill("nothing like that")
        none = await page.locator("#none").is_visible()
        title = await page.title()

    assert first == ["a", "b", "c"]
    assert rising == ["a", "b", "c"]
    assert falling == ["c", "b", "a"]
    assert healthy == ["c", "b"]
    assert none
    assert title == "Fleet"


@pytest.mark.browser
async def test_on_a_phone_nothing_stands_beyond_the_screen(three: Peer) -> None:
    async with page_of(three, 360) as page:
        width = await page.evaluate("document.documentElement.scrollWidth")
        backlog = page.locator("tbody tr").first.locator("td").last
        title = await backlog.evaluate("cell => getComputedStyle(cell, '::before').content")

    assert width <= 360
    assert title == '"Backlog"'

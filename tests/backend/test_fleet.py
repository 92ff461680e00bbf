"""The fleet page: whom it shows to whom, and what a person can do with it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from catalogzero.backend.store import BackendDatabase
from catalogzero.backend.tenants import revoke_key
from catalogzero.testing import ManualClock

from tests.axe import axe_source
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


async def test_an_installation_s_page_has_its_month_uploads_and_troubles(peer: Peer) -> None:
    outbox = {"uploads": 3, "dead": 2, "missing": 1, "missing_sources": ["files/gone.csv"]}
    await report(peer, "site-9", status="ok", outbox={"uploads": 40})
    await report(peer, "site-9", status="degraded", reasons=["the clock"], outbox=outbox)
    for number in (1, 2):
        await peer.put(f"v{number}", 0, {"a": 1}, {"a": 2})
        about = {"source_seq": number, "upload_key": f"k{number}", "installation_id": "site-9"}
        await peer.complete(f"v{number}", records=2, **about)
    simple = {"Catalogzero-Installation": "site-9", "Idempotency-Key": "s"}
    await peer.ask("POST", "/v1", json=[{"a": 1}], headers=simple)

    at = f"?tenant={peer.name}&id=site-9"
    one = (await peer.ask("GET", f"/installation.json{at}")).json
    page = (await peer.ask("GET", f"/installation{at}")).body.decode()

    days = {name: one["days"][-1][name] for name in ("ok", "degraded", "failing", "uploads")}
    most = {name: one["days"][-1][name] for name in ("records", "waiting", "dead")}
    assert len(one["days"]) == 30
    assert days == {"ok": 1, "degraded": 1, "failing": 0, "uploads": 3}
    assert most == {"records": 5, "waiting": 40, "dead": 2}
    assert sorted(row["outcome"] for row in one["uploads"]) == ["replaced", "visible", "visible"]
    assert one["missing_sources"] == ["files/gone.csv"]
    for told in ("files/gone.csv", "2 uploads were refused", "the clock", "<svg", "5 in 30 days"):
        assert told in page


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Peer]:
    """A backend with a database of its own."""
    async with serve_peer(f"sqlite:///{tmp_path / 'fleet.db'}") as peer:
        yield peer


async def test_troubles_are_one_line_for_each_cause_with_the_fix(alone: Peer) -> None:
    said: dict[str, dict[str, Any]] = {
        "moved": {"paused": "installation_moved"},
        "paused": {"paused": "upgrade_required", "dead": 1},
        "dead": {"dead": 2},
        "failed": {},
    }
    for installation in ("one", "two"):
        for cause, outbox in said.items():
            name = f"{cause}-{installation}"
            await report(alone, name, status="failing", reasons=[f"so: {cause}"], outbox=outbox)
    await report(alone, "well", status="ok", version="2.0", outbox={"dead": 9})

    page = (await alone.ask("GET", "/")).body.decode()
    found = (await alone.ask("GET", "/fleet.json?state=dead")).json
    one = f"/installation?tenant={alone.name}&id=moved-one"
    detail = (await alone.ask("GET", one)).body.decode()

    mine = [row for row in found["installations"] if row["tenant"] == alone.name]
    assert [row["installation_id"] for row in mine] == ["dead-one", "dead-two"]
    assert {row["cause"] for row in mine} == {"dead"}
    assert [one["cause"] for one in found["troubles"]] == ["moved", "paused", "dead", "failed"]
    assert {one["installations"] for one in found["troubles"]} == {2}
    assert (found["clients"], found["clients_in_trouble"]) == (1, 1)
    assert "<title>◆ 1 of 1 client is in trouble" in page
    for shown in ("2 installations of 1 client: moved", "installation adopt", "outbox list"):
        assert shown in page
    assert "so: paused" in page
    assert "<title>◆ moved · moved-one" in detail
    assert "What to report to the client" in detail
    assert "moved-one: moved since" in detail


async def test_a_trouble_is_as_old_as_the_first_report_of_it(database_url: str) -> None:
    clock = ManualClock()
    async with serve_peer(database_url, clock=clock, health_commit_window_s=0) as peer:
        ages = []
        for status in ("ok", "failing", "failing", "ok"):
            sent = asyncio.create_task(report(peer, "site", status=status))
            while not sent.done():
                await clock.advance(0)
            row = (await fleet(peer))["site"]
            ages.append((row["cause"], row["since"] == row["last_seen_at"]))
            await clock.advance(60)
        await clock.advance(90_000)
        silent = (await fleet(peer))["site"]

    assert ages == [("", True), ("failed", True), ("failed", False), ("", True)]
    assert (silent["cause"], silent["since"]) == ("silent", silent["last_seen_at"])


async def test_a_client_that_knocks_with_a_revoked_key_is_named(tmp_path: Path) -> None:
    clock, database_url = ManualClock(), f"sqlite:///{tmp_path / 'fleet.db'}"
    async with serve_peer(database_url, clock=clock) as peer:
        await peer.complete("u1", chunks=0, records=0, installation_id="site")
        key_id, at = peer.key.split("_")[1], clock.now().isoformat()
        database = BackendDatabase(database_url)
        database.write_now(lambda connection: revoke_key(connection, peer.name, key_id, at))
        database.close()
        before = (await peer.ask("GET", "/")).body.decode()
        await clock.advance(60)
        forged = {"Authorization": f"Bearer czk_{key_id}_{'x' * 43}"}
        await peer.ask("PUT", "/v1/installations/site", json={}, headers=forged)
        unproven = (await peer.ask("GET", "/fleet.json")).json
        answer = await peer.ask("PUT", "/v1/installations/site", json={})
        page = (await peer.ask("GET", "/")).body.decode()
        one = await peer.ask("GET", f"/installation?tenant={peer.name}&id=site")
        found = (await peer.ask("GET", "/fleet.json")).json
        await clock.advance(90_000)
        later = (await peer.ask("GET", "/fleet.json")).json

    assert "The one client delivers" in before
    assert (answer.status, unproven["refused"], later["refused"]) == (401, [], [])
    [knock] = found["refused"]
    assert (knock["tenant"], knock["revoked_at"], knock["times"]) == (peer.name, at, 1)
    assert f"{peer.name} knocks with a key that was revoked here" in page
    assert f"catalogzero backend tenants rotate {peer.name}" in page
    assert "1 of 1 client is in trouble" in page
    assert f"czk_{key_id}_…" in one.body.decode()
    assert peer.key not in page


async def test_the_page_says_whether_it_is_the_backend(alone: Peer) -> None:
    await report(
        alone, "site", status="ok", version="1.4.2", entry="skylark", labels={"at": "Kiel"}
    )
    await alone.put("u1", 0, {"a": 1}, headers={"Authorization": "Bearer czk_wrong"})

    page = (await alone.ask("GET", "/")).body.decode()
    one = await alone.ask("GET", f"/installation?tenant={alone.name}&id=site")

    assert "The one client delivers" in page
    assert "nothing needs you" in page
    assert "skylark 1.4.2" in page
    for figure in ("p99 ≤ ", "<dd>1<small>401", "0<small>5xx, of "):
        assert figure in page
    assert "at: Kiel" in one.body.decode()


@pytest.mark.parametrize(
    "query", ["page=0", "page=x", "state=well", "sort=health", "q=" + "x" * 201]
)
async def test_what_no_page_can_be_asked_for_is_refused_by_name(peer: Peer, query: str) -> None:
    answer = await peer.ask("GET", f"/fleet.json?{query}")

    assert answer.status == 400
    assert query.partition("=")[0] in answer.json["detail"]


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


@pytest.mark.parametrize(
    "path", ["/", "/fleet.json", "/fleet.js", "/metrics", "/installation.json"]
)
async def test_without_a_token_only_this_machine_sees_the_operator_s_side(
    peer: Peer, path: str
) -> None:
    direct = await peer.ask("GET", path)
    proxied = await peer.ask("GET", path, headers={"X-Forwarded-For": "203.0.113.9"})
    rebound = await peer.ask("GET", path, headers={"Host": "backend.example"})

    found = 404 if path == "/installation.json" else 200
    assert [direct.status, proxied.status, rebound.status] == [found, 403, 403]


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


@asynccontextmanager
async def page_of(peer: Peer, width: int, path: str = "/", **options: Any) -> AsyncIterator[Any]:
    """A page of the operator's in a real browser; an error in its scripts fails the test."""
    playwright = pytest.importorskip("playwright.async_api")
    if not HAS_CHROMIUM:
        pytest.skip("no Chromium here: apt-get install chromium")
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        try:
            size = {"width": width, "height": 800}
            page = await browser.new_page(viewport=size, **options)
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            await page.goto(peer.url + path)
            yield page
            assert errors == []
        finally:
            await browser.close()


@pytest.fixture
async def three(alone: Peer) -> Peer:
    """A backend that three installations report to."""
    for name, status, waiting in (("b", "ok", 10), ("a", "failing", 9), ("c", "ok", 100)):
        outbox = {"uploads": waiting, "bytes": waiting * 1_000, "oldest_age_s": 60, "dead": 0}
        await report(alone, name, status=status, outbox=outbox, version=EVIL)
    return alone


NAMES = "#fleet tbody th a"


@pytest.mark.browser
async def test_a_person_sorts_and_filters_the_fleet(three: Peer) -> None:
    async with page_of(three, 1_200) as page:
        first = await page.locator(NAMES).all_text_contents()
        await page.get_by_role("link", name="Waits there").click()
        rising = await page.locator(NAMES).all_text_contents()
        await page.get_by_role("link", name="Waits there").click()
        falling = await page.locator(NAMES).all_text_contents()
        await page.get_by_role("link", name="ok 2").click()
        healthy = await page.locator(NAMES).all_text_contents()
        kept = page.url
        await page.keyboard.press("/")
        await page.keyboard.type("nothing like that")
        await page.keyboard.press("Enter")
        await page.locator("#none").wait_for()
        none = await page.locator("#none").text_content()

    assert first == ["a", "b", "c"]
    assert rising == ["a", "b", "c"]
    assert falling == ["c", "b", "a"]
    assert healthy == ["c", "b"]
    assert "state=ok" in kept
    assert "sort=-waiting" in kept
    assert none == "Nothing matches."


@pytest.mark.browser
async def test_without_a_script_the_fleet_is_found_through_all_the_same(three: Peer) -> None:
    await report(three, "needle", status="ok")
    async with page_of(three, 1_200, java_script_enabled=False) as page:
        await page.get_by_label("Find installations").fill("NEED")
        await page.get_by_role("button", name="Find").click()
        found = await page.locator(NAMES).all_text_contents()
        await page.get_by_role("link", name="needle").click()
        heading = await page.get_by_role("heading", level=1).text_content()

    assert found == ["needle"]
    assert heading == "needle ok"


@pytest.mark.browser
@pytest.mark.parametrize("path", ["/", "/installation?tenant={tenant}&id=a"])
async def test_the_pages_are_whole_on_a_phone_and_for_who_cannot_see_them(
    three: Peer, path: str
) -> None:
    axe, found, widths = await asyncio.to_thread(axe_source), [], []
    address = path.format(tenant=three.name)
    for width in (360, 1_200):
        async with page_of(three, width, address) as page:
            await page.evaluate(axe)
            for scheme in ("light", "dark"):
                await page.emulate_media(color_scheme=scheme)
                result = await page.evaluate("axe.run(document)")
                found += [
                    (width, scheme, fault["id"], fault["nodes"][0]["html"])
                    for fault in result["violations"]
                ]
            widths.append(await page.evaluate("document.documentElement.scrollWidth"))

    assert found == []
    assert widths[0] <= 360
    assert widths[1] <= 1_200


@pytest.mark.browser
async def test_on_a_phone_each_figure_says_what_it_is(three: Peer) -> None:
    async with page_of(three, 360) as page:
        cell = page.locator("#fleet tbody tr").first.locator("td[data-title='Waits there']")
        title = await cell.evaluate("cell => getComputedStyle(cell, '::before').content")

    assert title == '"Waits there"'


@pytest.mark.browser
async def test_a_page_that_stays_open_shows_what_is_new(three: Peer) -> None:
    async with page_of(three, 1_200) as page:
        await page.clock.install()
        await page.reload()
        await report(three, "d", status="failing")
        await page.clock.run_for(31_000)
        await page.get_by_role("heading", name="1 of 1 client is in trouble").wait_for()
        await page.get_by_text("2 installations of 1 client: failing").wait_for()
        title = await page.title()

    assert title.startswith("◆ 1 of 1 client")

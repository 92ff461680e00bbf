"""What `/metrics` reports, and the alert rules that stand on it."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest
import yaml
from catalogzero.testing import ManualClock

from tests.backend.peer import Peer, serve_peer

HERE = Path(__file__).parent
HOW_TO = HERE.parents[1] / "docs" / "how-to"
RULES = HOW_TO / "monitoring" / "backend-alerts.yml"
CASES = HERE / "alerts_test.yml"
METRIC = re.compile(r"catalogzero_backend_\w+")


async def scrape(peer: Peer) -> str:
    """What a scrape shows, once the database was counted."""
    while True:
        text = (await peer.ask("GET", "/metrics")).body.decode()
        if "figures_age_seconds" in text:
            return text


def value(text: str, series: str) -> float:
    """The value of one series."""
    [found] = [line for line in text.splitlines() if line.startswith(f"{series} ")]
    return float(found.rpartition(" ")[2])


async def test_health_readiness_and_metrics_report_what_happened(peer: Peer) -> None:
    await peer.put("u1", 0, {"a": 1}, {"a": 2})
    await peer.complete("u1", records=2)

    alive = await peer.ask("GET", "/healthz", headers={"Authorization": ""})
    ready = await peer.ask("GET", "/readyz", headers={"Authorization": ""})
    text = await scrape(peer)

    route = 'method="POST",route="/v1/uploads/{upload_id}/complete"'
    name = "catalogzero_backend"
    assert (alive.status, ready.status) == (200, 200)
    assert value(text, f'{name}_answers_total{{{route},status="201"}}') == 1
    assert value(text, f'{name}_answer_seconds_bucket{{le="+Inf",{route}}}') == 1
    assert value(text, f"{name}_rows_total") == 2
    assert value(text, f"{name}_received_bytes_total") > len('{"a":1}{"a":2}')
    assert value(text, f"{name}_database_up") == 1
    assert value(text, f'{name}_connections{{pool="read",use="size"}}') == 4
    assert peer.key not in text
    assert peer.name not in text


async def test_no_request_makes_a_series_of_its_own(peer: Peer) -> None:
    for number in range(20):
        await peer.ask("GET", f"/v1/uploads/u{number}")
        await peer.ask("GET", f"/nowhere/{number}")

    text = await scrape(peer)

    answers = [line for line in text.splitlines() if "backend_answers_total{" in line]
    assert 'catalogzero_backend_answers_total{method="GET",route="other",status="404"} 20.0' in text
    assert not any("u1" in line or "/nowhere" in line for line in answers)


async def test_a_scrape_asks_the_database_nothing_and_shows_each_state(tmp_path: Path) -> None:
    clock = ManualClock()
    url = f"sqlite:///{tmp_path / 'backend.db'}"
    async with serve_peer(url, clock=clock, health_commit_window_s=0) as peer:
        await scrape(peer)
        for name, status in (("a", "failing"), ("b", "degraded"), ("c", "ok"), ("d", "ok")):
            figures = {"uploads": 3, "dead": 2, "missing": 1}
            interval_s = 5 if name == "d" else 1_000
            body = {"client_id": name, "status": status, "interval_s": interval_s}
            sent = asyncio.create_task(
                peer.ask("POST", "/v1/health", json={**body, "outbox": figures})
            )
            while not sent.done():
                await clock.advance(0)
        states = "catalogzero_backend_installations"
        before = value(await scrape(peer), f'{states}{{state="failing"}}')
        peer.execute("ALTER TABLE installations RENAME TO away")
        still = value(await scrape(peer), f'{states}{{state="failing"}}')
        peer.execute("ALTER TABLE away RENAME TO installations")
        await clock.advance(31)
        counted = await scrape(peer)
        while value(counted, f'{states}{{state="failing"}}') == 0:
            counted = await scrape(peer)

    assert (before, still) == (0, 0)
    found = {
        state: value(counted, f'{states}{{state="{state}"}}')
        for state in ("failing", "silent", "degraded", "unknown", "ok")
    }
    assert found == {"failing": 1, "silent": 1, "degraded": 1, "unknown": 0, "ok": 1}
    assert value(counted, "catalogzero_backend_outbox_dead_letters") == 8
    assert value(counted, "catalogzero_backend_missing_sources") == 4


async def test_what_waits_for_the_hook_is_reported(database_url: str) -> None:
    called = asyncio.Event()

    async def stuck(_upload: object) -> None:
        called.set()
        raise OSError("the vendor's service is away")

    async with serve_peer(database_url, hook=stuck) as peer:
        await peer.put("u1", 0, {"a": 1})
        await peer.complete("u1")
        await called.wait()
    async with serve_peer(database_url) as peer:
        text = await scrape(peer)

    assert value(text, "catalogzero_backend_hook_waiting") >= 1
    assert value(text, "catalogzero_backend_hook_oldest_age_seconds") > 0


async def test_every_metric_is_documented_and_every_named_one_is_there(peer: Peer) -> None:
    text = await scrape(peer)
    exported = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    documented = set(METRIC.findall((HOW_TO / "prometheus.md").read_text()))
    alerted = {
        re.sub(r"_(bucket|count|sum)$", "", name) for name in METRIC.findall(RULES.read_text())
    }

    assert documented == exported
    assert alerted
    assert alerted <= exported


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    cases = yaml.safe_load(CASES.read_text())["tests"]
    fired = {
        one["alertname"] for case in cases for one in case["alert_rule_test"] if one["exp_alerts"]
    }

    assert fired == {rule["alert"] for rule in rules}
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("there is no promtool: apt-get install prometheus")
    return found


async def test_promtool_takes_the_rules_and_what_is_really_scraped(
    promtool: str, peer: Peer
) -> None:
    text = await scrape(peer)

    assert await output_of(promtool, "check", "rules", str(RULES)) == (0, "")
    assert await output_of(promtool, "check", "metrics", given=text) == (0, "")


async def test_each_alert_fires_when_it_should_and_only_then(promtool: str, tmp_path: Path) -> None:
    cases = yaml.safe_load(CASES.read_text())
    (tmp_path / "cases.yml").write_text(yaml.safe_dump({"rule_files": [str(RULES)], **cases}))

    assert await output_of(promtool, "test", "rules", str(tmp_path / "cases.yml")) == (0, "")


async def output_of(*command: str, given: str = "") -> tuple[int | None, str]:
    """How a command ended, and what it complained of."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=asyncio.subprocess.DEVNULL, stderr=pipe
    )
    async with asyncio.timeout(20):
        _, told = await process.communicate(given.encode())
    return process.returncode, told.decode()

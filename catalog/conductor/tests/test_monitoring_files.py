"""The dashboard and the rules in the documentation name only metrics that there are."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
import yaml

from conductorzero.board import Board
from conductorzero.peers import Peer
from conductorzero.prometheus import Conductor, render
from fleets import addresses, conducting, shops, until

HOW_TO = Path(__file__).parents[3] / "docs" / "how-to"
FILES = ("prometheus.md", "monitoring/alerts.yml", "monitoring/grafana-dashboard.json")

pytestmark = pytest.mark.skipif(not HOW_TO.exists(), reason="the documentation is not here")


def exported() -> set[str]:
    board = Board()
    now = datetime(2026, 1, 1, tzinfo=UTC)
    board.set_peers([Peer("a", "tcp://127.0.0.1:1", "config")], now)
    text = render(board.rows.values(), Conductor(0.1, now))
    return set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("name", FILES)
def test_every_metric_that_is_named_is_exported(name: str) -> None:
    named = set(re.findall(r"catalogzero_(?:handler|conductor)_\w+", (HOW_TO / name).read_text()))

    assert named
    assert named <= exported()


def test_every_metric_that_is_exported_is_documented() -> None:
    text = (HOW_TO / "prometheus.md").read_text()

    assert {name for name in exported() if f"`{name}`" not in text} == set()


def test_the_rules_have_what_prometheus_asks_of_them() -> None:
    groups = yaml.safe_load((HOW_TO / "monitoring/alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]

    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
    assert len({rule["alert"] for rule in rules}) == len(rules)


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("there is no promtool: apt-get install prometheus")
    return found


async def test_promtool_takes_the_rules_and_what_is_really_scraped(promtool: str) -> None:
    async with shops("shop") as fleet, conducting(addresses(fleet)) as conductor:
        url = (await conductor.client.call("get_metrics"))["dashboard_url"]
        async with aiohttp.ClientSession() as session:
            scraped = ""

            async def looked() -> bool:
                nonlocal scraped
                async with session.get(f"{url}/metrics") as response:
                    scraped = await response.text()
                return 'catalogzero_handler_up{handler_id="shop"} 1' in scraped

            await until(looked)

    rules = await output_of(promtool, "check", "rules", str(HOW_TO / "monitoring/alerts.yml"))
    assert rules == (0, "")
    assert await output_of(promtool, "check", "metrics", given=scraped) == (0, "")


async def test_each_alert_fires_when_it_should_and_only_then(promtool: str, tmp_path: Path) -> None:
    cases = yaml.safe_load((Path(__file__).parent / "alerts_test.yml").read_text())
    rules = HOW_TO / "monitoring/alerts.yml"
    (tmp_path / "cases.yml").write_text(yaml.safe_dump({"rule_files": [str(rules)], **cases}))

    assert await output_of(promtool, "test", "rules", str(tmp_path / "cases.yml")) == (0, "")


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    rules = yaml.safe_load((HOW_TO / "monitoring/alerts.yml").read_text())["groups"][0]["rules"]
    cases = yaml.safe_load((Path(__file__).parent / "alerts_test.yml").read_text())["tests"]
    fired = {
        one["alertname"] for case in cases for one in case["alert_rule_test"] if one["exp_alerts"]
    }

    assert fired == {rule["alert"] for rule in rules}


async def test_prometheus_understands_every_query_of_the_dashboard(
    promtool: str, tmp_path: Path
) -> None:
    dashboard = json.loads((HOW_TO / "monitoring/grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [
        {"record": f"panel:{number}", "expr": query.replace("$handler", ".+")}
        for number, query in enumerate(queries)
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))

    assert await output_of(promtool, "check", "rules", str(path)) == (0, "")


async def output_of(*command: str, given: str = "") -> tuple[int | None, str]:
    """How a command ended, and what it complained of."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        _, told = await process.communicate(given.encode())
    return process.returncode, told.decode()


def test_the_dashboard_can_be_imported() -> None:
    dashboard = json.loads((HOW_TO / "monitoring/grafana-dashboard.json").read_text())

    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    assert all(panel["targets"] and panel["gridPos"]["w"] <= 24 for panel in dashboard["panels"])

"""The dashboard and the rules in the documentation name only metrics that there are."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from conductorzero.board import Board
from conductorzero.peers import Peer
from conductorzero.prometheus import render

HOW_TO = Path(__file__).parents[3] / "docs" / "how-to"
FILES = ("prometheus.md", "monitoring/alerts.yml", "monitoring/grafana-dashboard.json")

pytestmark = pytest.mark.skipif(not HOW_TO.exists(), reason="the documentation is not here")


def exported() -> set[str]:
    board = Board()
    board.set_peers([Peer("a", "tcp://127.0.0.1:1", "config")], datetime(2026, 1, 1, tzinfo=UTC))
    return set(re.findall(r"^# TYPE (\S+)", render(board.rows.values(), 0.1), re.MULTILINE))


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


def test_the_dashboard_can_be_imported() -> None:
    dashboard = json.loads((HOW_TO / "monitoring/grafana-dashboard.json").read_text())

    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    assert all(panel["targets"] and panel["gridPos"]["w"] <= 24 for panel in dashboard["panels"])

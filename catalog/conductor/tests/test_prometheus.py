"""What a scrape gets: the text format, base units, and nothing for what is not known."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from conductorzero.board import Board
from conductorzero.fleet import Answer
from conductorzero.peers import Peer
from conductorzero.prometheus import FAMILIES, Conductor, render

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LINE = re.compile(r'^(?P<name>[a-z_]+)(\{(?P<labels>([a-z_]+="([^"\\\n]|\\.)*",?)*)\})? \S+$')


def board() -> Board:
    one = Board()
    one.set_peers(
        [Peer("shop", "tcp://127.0.0.1:5001", "config"), Peer("gone", "tcp://x:1", "config")], NOW
    )
    one.saw_ping(Answer(success=True, handler_id="shop", result={}, response_time_ms=2.5), NOW)
    one.saw_ping(Answer(success=False, handler_id="gone", replied=False, error="Timeout"), NOW)
    figures: dict[str, Any] = {
        "memory_mb": 2.0,
        "cpu_percent": 50.0,
        "runs_total": 7,
        "status": "idle",
    }
    outbox = {
        **{"uploads": 3, "records": 40, "bytes": 1_000, "oldest_age_s": 9.0, "dead": 1},
        **{"paused": "401", "last_upload_at": NOW.isoformat(), "uploaded_records_total": 500},
    }
    figures |= {"last_failed_run": {"run_id": "r", "ended_at": NOW.isoformat()}}
    one.saw_metrics(
        Answer(success=True, handler_id="shop", result={**figures, "outbox": outbox}), NOW
    )
    return one


def samples(text: str) -> dict[str, float]:
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }


def test_values_are_in_base_units() -> None:
    found = samples(render(board().rows.values(), Conductor(0.25, NOW, 1)))

    shop = '{handler_id="shop"}'
    assert found[f"catalogzero_handler_up{shop}"] == 1
    assert found[f"catalogzero_handler_response_seconds{shop}"] == 0.0025
    assert found[f"catalogzero_handler_memory_bytes{shop}"] == 2 * 1024**2
    assert found[f"catalogzero_handler_cpu_ratio{shop}"] == 0.5
    assert found[f"catalogzero_handler_runs_total{shop}"] == 7
    assert found[f"catalogzero_handler_outbox_dead_letters{shop}"] == 1
    assert found[f"catalogzero_handler_outbox_rows{shop}"] == 40
    assert found[f"catalogzero_handler_outbox_paused{shop}"] == 1
    assert found[f"catalogzero_handler_uploaded_rows_total{shop}"] == 500
    assert found[f"catalogzero_handler_last_upload_timestamp_seconds{shop}"] == NOW.timestamp()
    assert found[f"catalogzero_handler_last_failed_run_timestamp_seconds{shop}"] == NOW.timestamp()
    assert f"catalogzero_handler_last_successful_run_timestamp_seconds{shop}" not in found
    assert found['catalogzero_handler_trouble{cause="dead_letters",handler_id="shop"}'] == 1
    assert found['catalogzero_handler_trouble{cause="no_answer",handler_id="gone"}'] == 1
    assert found['catalogzero_handler_state{handler_id="shop",state="idle"}'] == 1
    assert found['catalogzero_handler_state{handler_id="shop",state="active"}'] == 0
    assert found["catalogzero_conductor_handlers"] == 2
    assert found["catalogzero_conductor_round_seconds"] == 0.25
    assert found["catalogzero_conductor_last_round_timestamp_seconds"] == NOW.timestamp()
    assert found["catalogzero_conductor_problems"] == 1


def test_a_dead_handler_is_down_and_has_no_other_figures() -> None:
    found = samples(render(board().rows.values(), Conductor()))

    assert found['catalogzero_handler_up{handler_id="gone"}'] == 0
    assert not [name for name in found if "gone" in name and "memory" in name]
    assert "catalogzero_conductor_round_seconds" not in found


def test_instances_have_labels_of_their_own_and_what_is_alone_has_none() -> None:
    one = Board()
    names = ("a", "b")
    one.set_peers([Peer("toy", f"tcp://{name}:1", "scheduler", name, 4) for name in names], NOW)
    busy = {"in_flight": 2, "queued": 1}
    one.saw_metrics(Answer(success=True, handler_id="toy/a", result=busy), NOW)
    one.saw_ping(Answer(success=False, handler_id="toy/b", replied=False, error="Timeout"), NOW)
    found = samples(render(one.rows.values(), Conductor()))
    alone = samples(render(board().rows.values(), Conductor()))

    first, second = (f'handler_id="toy",instance_id="{name}"' for name in names)
    assert found[f"catalogzero_handler_up{{{first}}}"] == 1
    assert found[f"catalogzero_handler_up{{{second}}}"] == 0
    assert found['catalogzero_handler_load{handler_id="toy",host="a",instance_id="a"}'] == 3
    assert found['catalogzero_handler_places{handler_id="toy",host="a",instance_id="a"}'] == 4
    assert found[f'catalogzero_handler_trouble{{cause="instance_away",{second}}}'] == 1
    assert not [name for name in found if 'host="b"' in name]
    assert not [name for name in alone if "instance_id" in name or "host" in name]


def test_every_metric_has_its_help_and_type_once() -> None:
    text = render(board().rows.values(), Conductor())

    for family in FAMILIES:
        name = f"catalogzero_handler_{family.name}"
        assert text.count(f"# TYPE {name} {family.kind}\n") == 1
        assert text.count(f"# HELP {name} ") == 1
        assert (family.kind == "counter") == family.name.endswith("_total")


@given(st.text('ab"\\\n {}=,é'))
def test_no_handler_id_breaks_the_format(handler_id: str) -> None:
    one = Board()
    one.set_peers([Peer(handler_id, "tcp://127.0.0.1:1", "config")], NOW)

    text = render(one.rows.values(), Conductor())
    told = {
        sample.labels["handler_id"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "handler_id" in sample.labels
    }

    lines = text.rstrip("\n").split("\n")
    assert all(LINE.match(line) for line in lines if not line.startswith("#"))
    assert told == {handler_id}

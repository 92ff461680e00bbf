"""What the board keeps of answers, and what it calls a change."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conductorzero.board import Board
from conductorzero.fleet import Answer
from conductorzero.peers import Peer

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SHOP = Peer("shop", "tcp://127.0.0.1:5001", "config")


def pong(boot_id: str = "one", response_time_ms: float = 1.5) -> Answer:
    result = {"boot_id": boot_id}
    return Answer(success=True, handler_id="shop", result=result, response_time_ms=response_time_ms)


def silence() -> Answer:
    return Answer(success=False, handler_id="shop", replied=False, error="Timeout", code="timeout")


def metrics(**figures: Any) -> Answer:
    return Answer(
        success=True, handler_id="shop", result={"status": "active", "memory_mb": 30.0, **figures}
    )


def board() -> Board:
    one = Board()
    one.set_peers([SHOP], NOW)
    return one


def texts(*lists: list[Any]) -> list[tuple[str, str]]:
    return [(event.kind, event.text) for events in lists for event in events]


def test_a_peer_that_joins_is_unknown_until_it_answers() -> None:
    one = board()

    assert one.rows["shop"].state == "unknown"
    assert texts(one.saw_ping(pong(), NOW)) == [("state", "unknown → active")]
    assert one.rows["shop"].alive


def test_silence_makes_a_handler_unreachable_once() -> None:
    one = board()
    one.saw_ping(pong(), NOW)

    assert texts(one.saw_ping(silence(), NOW)) == [("state", "active → unreachable")]
    assert texts(one.saw_ping(silence(), NOW)) == []
    assert one.summary()["alive"] == 0


def test_metrics_show_the_state() -> None:
    one = board()
    one.saw_ping(pong(), NOW)

    assert texts(one.saw_metrics(metrics(status="sleeping"), NOW)) == [
        ("state", "active → sleeping")
    ]
    assert texts(one.saw_ping(pong(), NOW)) == []
    assert one.rows["shop"].state == "sleeping"


def test_another_boot_is_a_restart() -> None:
    one = board()
    one.saw_ping(pong("one"), NOW)

    assert ("restarted", "restarted") in texts(one.saw_ping(pong("two"), NOW))


def test_a_growing_count_of_failures_is_an_event_with_the_error() -> None:
    one = board()
    one.saw_metrics(metrics(failures_total=1), NOW)

    events = one.saw_metrics(metrics(failures_total=2, last_error="ValueError: no"), NOW)

    assert texts(events) == [("failure", "ValueError: no")]


def test_a_peer_that_leaves_the_registry_leaves_the_board() -> None:
    one = board()

    assert texts(one.set_peers([], NOW)) == [("left", "no longer in the registry")]
    assert one.rows == {}


def test_a_peer_with_a_new_address_is_a_new_row() -> None:
    one = board()
    one.saw_ping(pong(), NOW)

    one.set_peers([Peer("shop", "tcp://127.0.0.1:5002", "config")], NOW)

    assert one.rows["shop"].state == "unknown"


def test_a_reader_gets_only_what_changed_since_it_looked() -> None:
    one = Board()
    one.set_peers([SHOP, Peer("other", "tcp://127.0.0.1:5003", "config")], NOW)
    seen = one.version

    one.saw_ping(pong(), NOW)

    assert [row.peer.handler_id for row in one.changed_since(seen)] == ["shop"]
    assert one.changed_since(one.version) == []


def test_the_summary_adds_up_those_that_answer() -> None:
    one = Board()
    one.set_peers([SHOP, Peer("other", "tcp://127.0.0.1:5003", "config")], NOW)
    one.saw_ping(pong(), NOW)
    one.saw_metrics(metrics(memory_mb=40.0, worker_memory_mb=10.0, in_flight=2, queued=3), NOW)

    summary = one.summary()

    assert (summary["total"], summary["alive"], summary["memory_mb"]) == (2, 1, 50.0)
    assert (summary["in_flight"], summary["queued"]) == (2, 3)
    assert summary["states"]["unknown"] == 1


def test_troubles_begin_and_end_as_events_and_silence_ends_none() -> None:
    one = board()
    one.saw_ping(pong(), NOW)
    paused = {"paused": "401: no key", "paused_code": "http_401"}

    began = one.saw_metrics(metrics(outbox=paused), NOW)
    again = one.saw_metrics(metrics(outbox=paused), NOW)
    silent = one.saw_ping(silence(), NOW)
    (shown,) = one.rows["shop"].troubles
    back = one.saw_metrics(metrics(outbox=paused), NOW)
    ended = one.saw_metrics(metrics(outbox={}), NOW)

    assert texts(began) == [("trouble", "paused: 401: no key")]
    assert again == []
    assert texts(silent) == [("state", "active → unreachable")]
    assert shown.cause == "no_answer"
    assert texts(back) == [("state", "unreachable → active")]
    assert texts(ended) == [("over", "sending goes on")]


def test_each_dead_letter_is_an_event() -> None:
    one = board()

    first = one.saw_metrics(metrics(outbox={"dead": 1}), NOW)
    second = one.saw_metrics(metrics(outbox={"dead": 2}), NOW)

    assert ("trouble", "dead letter") in texts(first)
    assert texts(second) == [("trouble", "dead letter")]


def test_the_last_runs_are_asked_for_when_there_were_more() -> None:
    one = board()
    one.saw_metrics(metrics(runs_total=3), NOW)

    wanted = [one.runs_wanted(5), one.runs_wanted(5)]
    waiting = {"status": "success", "outcome": {"state": "waiting"}}
    runs = {"runs": [waiting, {"status": "error"}, {"status": "success"}]}
    one.saw_runs(Answer(success=True, handler_id="shop", result=runs))

    assert wanted == [["shop"], []]
    assert one.rows["shop"].as_json()["runs"] == ["done", "failed", "waiting"]
    assert "runs" not in one.rows["shop"].as_json(seen=one.version)


@pytest.mark.parametrize(
    ("outboxes", "said"),
    [
        ([], "No handlers are known yet"),
        ([None], "The one handler answers"),
        ([None, None], "All 2 handlers answer"),
        ([{}], "All rows arrive"),
        ([{}, {}], "Rows from all 2 handlers arrive"),
        ([{"dead": 1}, {}, None], "Rows from 1 of 2 handlers do not arrive"),
        ([{"disk_free_bytes": 1}, {}], "1 of 2 handlers needs you"),
    ],
)
def test_the_headline_is_the_answer(outboxes: list[Any], said: str) -> None:
    one = Board()
    names = [f"shop-{number}" for number, _ in enumerate(outboxes)]
    one.set_peers([Peer(name, "tcp://127.0.0.1:1", "config") for name in names], NOW)
    for name, outbox in zip(names, outboxes, strict=True):
        figures = {} if outbox is None else {"outbox": outbox}
        one.saw_metrics(Answer(success=True, handler_id=name, result=figures), NOW)

    assert one.summary()["headline"] == said


@given(
    st.dictionaries(
        st.sampled_from(
            ["memory_mb", "status", "failures_total", "last_error", "outbox", "health", "labels"]
        ),
        st.none()
        | st.booleans()
        | st.floats()
        | st.text("ab é{")
        | st.lists(st.integers())
        | st.dictionaries(
            st.sampled_from(["paused", "dead", "uploads", "status", "reasons", "oldest_age_s"]),
            st.none() | st.floats() | st.text("ab") | st.lists(st.integers()),
        ),
    )
)
def test_no_metrics_however_odd_break_the_board(figures: dict[str, Any]) -> None:
    one = board()
    one.saw_ping(pong(), NOW)

    one.saw_metrics(Answer(success=True, handler_id="shop", result=figures), NOW)

    assert one.rows["shop"].as_json(trails=True)["handler_id"] == "shop"
    assert one.summary()["total"] == 1
    assert isinstance(one.troubles(), list)

"""The access log: one line for each request, with the ids that tie it to others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from catalogzero.backend.store import BackendDatabase
from catalogzero.backend.tenants import revoke_key
from catalogzero.testing import ManualClock

from tests.backend.peer import Peer, serve_peer

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Any:
    """What was logged since it was asked last."""

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    return read


async def test_a_request_leaves_one_line_with_its_ids(peer: Peer, lines: Any) -> None:
    ids = {"X-Request-Id": "edge-7", "traceparent": PARENT}
    lines()

    answer = await peer.put("u1", 0, {"secret": "cell"}, headers=ids)

    [line] = lines()
    assert answer.headers["X-Request-Id"] == "edge-7"
    assert (line["event"], line["request_id"], line["traceparent"]) == ("request", "edge-7", PARENT)
    assert (line["method"], line["status"], line["tenant"]) == ("PUT", 201, peer.name)
    assert line["path"] == "/v1/uploads/u1/chunks/0"
    assert line["received_bytes"] == len(b'{"secret":"cell"}\n')
    assert line["sent_bytes"] == len(answer.body)
    assert line["duration_ms"] >= 0


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "line\tbreak", "ü"])
async def test_an_id_that_is_none_is_replaced(peer: Peer, lines: Any, given: str) -> None:
    lines()
    parents = {"traceparent": PARENT.upper()}

    answer = await peer.ask("GET", "/nowhere", headers={"X-Request-Id": given, **parents})

    [line] = lines()
    assert answer.status == 404
    assert line["request_id"] == answer.headers["X-Request-Id"]
    assert len(line["request_id"]) == 32
    assert "traceparent" not in line


async def test_no_key_and_no_query_gets_into_the_log(
    peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    await peer.ask("GET", f"/v1/uploads/{peer.key}?token={peer.key}&q=query-text")
    await peer.ask("POST", "/v1/health", json={"client_id": peer.key})

    told = capsys.readouterr().err

    assert "/v1/uploads/czk_…" in json.loads(told.splitlines()[0])["path"]
    assert peer.key not in told
    assert "query-text" not in told


async def test_a_fault_is_tied_to_its_request(database_url: str, lines: Any) -> None:
    async with serve_peer(database_url) as peer:
        peer.execute("ALTER TABLE chunks RENAME TO gone")
        try:
            lines()
            answer = await peer.put("u1", 0, {"a": 1}, headers={"X-Request-Id": "edge-8"})
            told = lines()
        finally:
            peer.execute("ALTER TABLE gone RENAME TO chunks")

    assert answer.status >= 500
    assert [(line["event"], line["request_id"]) for line in told if "request_id" in line] == [
        ("database_failed", "edge-8"),
        ("request", "edge-8"),
    ]


async def test_probes_that_succeed_leave_no_line_and_it_can_be_turned_off(
    database_url: str, lines: Any
) -> None:
    async with serve_peer(database_url) as peer:
        lines()
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await peer.ask("GET", path)).status == 200
        probed = lines()
    async with serve_peer(database_url, access_log=False) as peer:
        lines()
        answer = await peer.put("u1", 0, {"a": 1})
        off = lines()

    assert probed == off == []
    assert answer.headers["X-Request-Id"]


async def test_what_is_refused_is_a_warning_with_the_reason_once_for_many(
    peer: Peer, lines: Any
) -> None:
    lines()
    wrong = {"Authorization": "Bearer czk_wrong"}
    for _ in range(5):
        answer = await peer.put("u1", 0, {"a": 1}, headers=wrong)
    found = lines()

    [refused] = [line for line in found if line["event"] == "refused"]
    assert answer.status == 401
    assert (refused["level"], refused["status"], refused["times"]) == ("warning", 401, 1)
    assert refused["reason"]
    assert len([line for line in found if line["event"] == "request"]) == 5


async def test_a_key_that_is_revoked_is_named_by_its_id(tmp_path: Path, lines: Any) -> None:
    clock, database = ManualClock(), f"sqlite:///{tmp_path / 'backend.db'}"
    async with serve_peer(database, clock=clock) as peer:
        first = await peer.put("u1", 0, {"a": 1})
        key_id, store = peer.key.split("_")[1], BackendDatabase(database)
        at = clock.now().isoformat()
        store.write_now(lambda connection: revoke_key(connection, peer.name, key_id, at))
        store.close()
        await clock.advance(60)
        second = await peer.put("u1", 1, {"a": 1})
    [revoked] = [line for line in lines() if line["event"] == "key_revoked"]

    assert (first.status, second.status) == (201, 401)
    assert (revoked["tenant"], revoked["key_id"]) == (peer.name, key_id)
    assert peer.key not in str(revoked)

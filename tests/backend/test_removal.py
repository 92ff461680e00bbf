"""Removing a tenant, an installation, a source: what goes, what stays, what never comes back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog
from catalogzero.backend import BackendSettings
from catalogzero.backend.clearing import StepSize
from catalogzero.backend.housekeeping import Housekeeping
from catalogzero.backend.inventory import read_sources
from catalogzero.backend.removal import Target, begin, preview, remove, step, unfinished
from catalogzero.backend.store import BackendDatabase
from catalogzero.backend.tenants import add_tenant
from catalogzero.clock import SystemClock
from catalogzero.protocol.bodies import GENERATION
from catalogzero.testing import serving

from tests.backend.peer import AT, Peer, serve_peer
from tests.backend.test_command import run
from tests.cloud.processors import Doubler

KILLED = """
import os, signal, sys
from catalogzero.backend.clearing import StepSize
from catalogzero.backend.removal import Target, begin, step
from catalogzero.backend.store import BackendDatabase

at, database = "2026-01-01T00:00:00.000+00:00", BackendDatabase(sys.argv[2])
number = database.write_now(lambda connection: begin(connection, Target(sys.argv[1]), at))
for turn in range(3):
    def work(connection):
        step(connection, number, at, StepSize(uploads=2))
        if turn == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    database.write_now(work)
"""
ROWS_LEFT = (
    "SELECT count(*) FROM records JOIN uploads USING (upload_no)"
    " JOIN tenants USING (tenant_id) WHERE name = :tenant"
)


@pytest.fixture
def database(database_url: str) -> Iterator[BackendDatabase]:
    """The backend's database, as a command has it."""
    with closing(BackendDatabase(database_url)) as opened:
        yield opened


async def deliver(peer: Peer, upload: str, *rows: Any, **fields: Any) -> int:
    """Send an upload of one chunk; the status of its end."""
    await peer.put(upload, 0, *rows)
    said = {"upload_key": f"key-{upload}", "records": len(rows), **fields}
    return (await peer.complete(upload, **said)).status


async def states(peer: Peer, installation: str = "site-1") -> dict[str, Any]:
    """What the backend says of an installation's sources."""
    answer = await peer.ask("GET", f"/v1/installations/{installation}")
    return dict(answer.json["states"])


async def test_a_removed_source_leaves_its_numbers_and_nothing_else(
    peer: Peer, database: BackendDatabase
) -> None:
    append = {"source_key": "orders", "mode": "append"}
    await deliver(peer, "u1", {"a": 1}, source_seq=4)
    await deliver(peer, "u2", {"a": 2}, source_seq=5)
    await deliver(peer, "u3", {"b": 1}, **append, source_seq=6, until=[1, 6])
    await deliver(peer, "u4", {"b": 2}, **append, source_seq=7, after=[1, 6], until=[2, 7])
    await deliver(peer, "u5", {"c": 1}, source_key="kept", source_seq=8)
    before = await states(peer)
    source_1, orders = (Target(peer.name, "site-1", key) for key in ("source-1", "orders"))

    told = database.read_now(lambda connection: preview(connection, source_1, AT))
    receipt = remove(database, source_1, SystemClock())
    remove(database, orders, SystemClock())

    after = await states(peer)
    assert (told.dry_run, told.removed["records"], receipt.dry_run) == (True, 2, False)
    assert receipt.removed == {"sources": 1, "uploads": 2, "chunks": 2, "records": 2}
    assert peer.visible() == [{"c": 1}]
    assert after == {
        **before,
        "source-1": {**before["source-1"], "removed": True},
        "orders": {**before["orders"], "removed": True},
    }
    assert peer.sql(
        "SELECT count(*), count(u.stream), count(u.source), count(u.params), count(upload_key)"
        " FROM uploads u JOIN tenants USING (tenant_id)"
        " WHERE name = :tenant AND upload_id <> 'u5'"
    ) == [(4, 0, 0, 0, 0)]
    listed = database.read_now(lambda connection: read_sources(connection, peer.name, "site-1"))
    assert [(one.source, one.records, one.removed_at is None) for one in listed] == [
        (None, 0, False),
        (None, 0, False),
        ("2013.csv", 1, True),
    ]


async def test_what_a_client_sends_after_a_removal_is_judged_as_before(
    peer: Peer, database: BackendDatabase
) -> None:
    await deliver(peer, "u1", {"a": 1}, source_seq=5)
    remove(database, Target(peer.name, "site-1", "source-1"), SystemClock())

    again = await peer.complete("u1", upload_key="key-u1", source_seq=5)
    late = await deliver(peer, "u2", {"a": 2}, source_seq=5)
    seen = peer.visible()
    newer = await deliver(peer, "u3", {"a": 3}, source_seq=6)

    assert (again.status, again.json["by"], again.json["source_seq"]) == (200, "upload_id", 5)
    assert (late, seen, newer) == (200, [], 201)
    assert peer.visible() == [{"a": 3}]
    assert "removed" not in (await states(peer))["source-1"]


async def test_a_removal_is_known_in_a_generation_that_is_the_installations_own(
    peer: Peer, database: BackendDatabase
) -> None:
    await deliver(peer, "u1", {"a": 1})
    report: dict[str, Any] = {"client_id": "site-1"}
    before = (await peer.ask("POST", "/v1/health", json=report)).headers[GENERATION]
    report |= {"generation": before, "acknowledged": {"number": 9, "upload_id": "lost"}}
    told = await peer.ask("POST", "/v1/health", json=report)

    remove(database, Target(peer.name, "site-1", "source-1"), SystemClock())

    assert told.headers[GENERATION] != before
    assert (await states(peer))["source-1"]["removed"] is True


async def test_a_removed_installation_leaves_its_epoch_and_its_sources_numbers(
    peer: Peer, database: BackendDatabase
) -> None:
    about = {"entry": "skylark", "epoch": 0, "nonce": "n", "host": {"os": "Linux"}}
    epoch = (await peer.ask("PUT", "/v1/installations/site-1", json=about)).json["epoch"]
    report = {"client_id": "site-1", "status": "ok", "outbox": {"dead": 2}}
    await peer.ask("POST", "/v1/health", json=report)
    run("label", peer.name, "site-1", "city=Ulm", "--database", peer.database)
    own: dict[str, Any] = {"installation_epoch": epoch}
    for number in range(3):
        key = {"source_key": f"s{number}", "source_seq": number + 1}
        await deliver(peer, f"u{number}", {"a": number}, **own, **key)
    named = {"Catalogzero-Installation": "site-1", "Catalogzero-Epoch": str(epoch)}
    simple = {"json": [{"b": 1}], "headers": {**named, "Idempotency-Key": "k"}}
    await peer.ask("POST", "/v1", **simple)
    await deliver(peer, "other", {"c": 1}, installation_id="site-2")

    receipt = remove(database, Target(peer.name, "site-1"), SystemClock())
    again = await peer.ask("POST", "/v1", **simple)
    fleet = (await peer.ask("GET", "/fleet.json")).json["installations"]

    counts = {"sources": 3, "uploads": 4, "chunks": 4, "records": 4}
    assert receipt.removed == {**counts, "health_reports": 1, "installations": 1}
    assert peer.visible() == [{"c": 1}]
    assert (again.status, again.json["duplicate"]) == (200, True)
    assert [row["installation_id"] for row in fleet if row["tenant"] == peer.name] == ["site-2"]
    assert peer.sql(
        "SELECT epoch, last_number, entry, host, health_report, status, dead, labels"
        " FROM installations JOIN tenants USING (tenant_id)"
        " WHERE name = :tenant AND installation_id = 'site-1'"
    ) == [(epoch, 3, None, None, None, "unknown", None, "{}")]
    assert peer.sql(
        "SELECT installation_id FROM installation_hours JOIN tenants USING (tenant_id)"
        " WHERE name = :tenant"
    ) == [("site-2",)]
    assert {key: told["removed"] for key, told in (await states(peer)).items()} == {
        "s0": True,
        "s1": True,
        "s2": True,
    }


async def test_of_a_removed_tenant_nothing_stays_and_no_number_is_given_again(
    database_url: str, database: BackendDatabase
) -> None:
    async with serve_peer(database_url) as kept, serve_peer(database_url) as gone:
        await deliver(kept, "u1", {"kept": 1})
        [(tenant_id,)] = gone.sql("SELECT tenant_id FROM tenants WHERE name = :tenant")
        await deliver(gone, "u1", {"a": 1})
        await deliver(gone, "u2", {"a": 2}, source_seq=2)
        await gone.put("open", 0, {"a": 3})
        report = {"client_id": "site-1", "metrics": {}, "timestamp": "", "status": "ok"}
        await gone.ask("POST", "/v1/health", json=report)
        [(last,)] = gone.sql("SELECT max(upload_no) FROM uploads")
        told = database.read_now(lambda connection: preview(connection, Target(gone.name), AT))

        receipt = remove(database, Target(gone.name), SystemClock())

        again = await gone.put("late", 0, {"a": 4})
        counts = {"uploads": 3, "chunks": 3, "records": 3, "sources": 1, "installations": 1}
        assert receipt.removed == {**counts, "keys": 1, "health_reports": 1} == told.removed
        assert again.status in (401, 503)
        for table in ("tenant_keys", "installations", "sources", "uploads", "health_reports"):
            counted = f"SELECT count(*) FROM {table} WHERE tenant_id = {tenant_id}"  # noqa: S608
            assert gone.sql(counted) == [(0,)], table
        assert gone.sql("SELECT count(*) FROM events WHERE tenant = :tenant") == [(0,)]
        orphans = "SELECT count(*) FROM {} WHERE upload_no NOT IN (SELECT upload_no FROM uploads)"
        assert [gone.sql(orphans.format(name)) for name in ("chunks", "records")] == [[(0,)]] * 2
        assert kept.visible() == [{"kept": 1}]
        database.write_now(lambda connection: add_tenant(connection, gone.name, AT))
        assert gone.sql("SELECT tenant_id FROM tenants WHERE name = :tenant") > [(tenant_id,)]
        await kept.put("u2", 0, {"kept": 2})
        assert kept.sql("SELECT max(upload_no) FROM uploads") > [(last,)]


async def test_a_removal_is_made_of_bounded_transactions(
    peer: Peer, database: BackendDatabase
) -> None:
    for number in range(7):
        key = {"source_key": f"s{number}", "source_seq": 1}
        await deliver(peer, f"u{number}", {"a": 1}, {"a": 2}, **key)
    target, size = Target(peer.name, "site-1"), StepSize(sources=3, records=4)
    number = database.write_now(lambda connection: begin(connection, target, AT))
    left = [peer.sql(ROWS_LEFT)[0][0]]
    while database.write_now(lambda connection: step(connection, number, AT, size)):
        left.append(peer.sql(ROWS_LEFT)[0][0])
    gone = [before - after for before, after in pairwise(left)]

    assert (max(gone), sum(gone)) == (4, 14)


async def test_a_removal_that_was_killed_is_gone_on_with(
    database_url: str, database: BackendDatabase
) -> None:
    async with serve_peer(database_url) as peer:
        for number in range(9):
            await deliver(peer, f"u{number}", {"a": 1}, source_key=f"s{number}")
        told = database.read_now(lambda connection: preview(connection, Target(peer.name), AT))
        killed = subprocess.run(  # noqa: ASYNC221 - nothing else is to run
            [sys.executable, "-c", KILLED, peer.name, database_url], check=False
        )
        left = peer.sql(
            "SELECT count(*) FROM uploads JOIN tenants USING (tenant_id) WHERE name = :tenant"
        )

        done = run("tenants", "remove", peer.name, "--database", database_url, "--yes", "--json")

        assert killed.returncode == -signal.SIGKILL
        assert left == [(5,)]  # two transactions were committed, the third was not
        receipt = json.loads(done.stdout)
        assert receipt["removed"] == told.removed
        assert receipt["ended_at"] >= receipt["began_at"]


async def test_housekeeping_ends_a_removal_that_nobody_went_on_with(
    peer: Peer, database: BackendDatabase
) -> None:
    await deliver(peer, "u1", {"a": 1})
    target = Target(peer.name, "site-1")
    number = database.write_now(lambda connection: begin(connection, target, AT))

    settings = BackendSettings(database=peer.database)
    await Housekeeping(settings, database, SystemClock(), structlog.get_logger()).sweep()

    assert peer.visible() == []
    assert number not in database.read_now(unfinished)


async def test_a_stream_is_shown_as_long_as_it_is_kept_and_its_numbers_for_ever(
    peer: Peer, database: BackendDatabase
) -> None:
    await deliver(peer, "u1", {"a": 1}, stream="short", source_key="s1", source_seq=5)
    await deliver(peer, "u2", {"a": 2}, stream="long", source_key="s2", source_seq=6)
    before = await states(peer)
    settings = BackendSettings(database=peer.database, stream_retention_s={"short": 1e-3})

    await Housekeeping(settings, database, SystemClock(), structlog.get_logger()).sweep()

    assert peer.visible() == [{"a": 2}]
    assert (
        peer.sql(
            "SELECT payload FROM records JOIN uploads USING (upload_no) WHERE stream = 'short'"
        )
        == []
    )
    assert await states(peer) == before
    events = peer.sql("SELECT upload_id, kind, stream FROM events WHERE tenant = :tenant")
    assert events[2:] == [("u1", "removed", "short")]


async def test_a_backend_is_ready_only_with_its_own_schema(tmp_path: Path) -> None:
    async with serve_peer(f"sqlite:///{tmp_path / 'b.db'}") as peer:
        ready = await peer.ask("GET", "/readyz")
        with closing(BackendDatabase(peer.database)) as database:
            database.write_now(
                lambda connection: connection.exec_driver_sql(
                    "UPDATE backend_schema SET version = version + 1"
                )
            )
        newer = await peer.ask("GET", "/readyz")

    assert (ready.status, newer.status) == (200, 503)
    assert "schema" in newer.json["detail"]


async def test_a_client_that_is_started_again_sends_nothing_of_what_was_removed(
    tmp_path: Path,
) -> None:
    async with serve_peer(f"sqlite:///{tmp_path / 'backend.db'}") as peer:
        await _erase_and_run(peer, tmp_path)


async def _erase_and_run(peer: Peer, tmp_path: Path) -> None:
    data = tmp_path / "exports"
    data.mkdir()
    (data / "a.csv").write_text("n,name\n1,x\n2,x\n")
    config: dict[str, Any] = {"endpoint": peer.url + "/v1", "api_key": peer.key}
    call = {"data_source": str(data)}
    runtime: dict[str, Any] = {"state_dir": tmp_path / "state", "min_file_age_s": 0}
    runtime["installation_id"] = "site-7"

    async def run_once() -> str:
        async with serving(Doubler(**config, data_roots=[str(data)]), **runtime) as service:
            return str((await service.client.call("process_and_upload", call))["status"])

    first = await run_once()
    with closing(BackendDatabase(peer.database)) as database:
        remove(database, Target(peer.name, "site-7"), SystemClock())
    second = await run_once()
    seen = peer.visible()
    (data / "a.csv").write_text("n,name\n3,x\n")
    third = await run_once()

    assert (first, second, third) == ("uploaded", "unchanged", "uploaded")
    assert seen == []
    assert [int(row["n"]) for row in peer.visible()] == [6]


def test_the_operator_is_asked_and_informed(tmp_path: Path) -> None:
    database = ["--database", str(tmp_path / "b.db")]
    run("tenants", "add", "acme", *database)

    dry = run("tenants", "remove", "acme", *database, "--dry-run")
    unknown = run("installations", "remove", "acme", "site-9", *database, "--yes")
    kept = json.loads(run("tenants", "list", *database, "--json").stdout)["tenants"]
    done = run("tenants", "remove", "acme", *database, "--yes")
    left = json.loads(run("tenants", "list", *database, "--json").stdout)["tenants"]

    assert (dry.returncode, dry.stdout) == (0, "acme: would be removed: 1 keys\n")
    assert unknown.returncode == 3
    assert "`catalogzero backend installations list acme` shows them" in unknown.stderr
    assert [tenant["name"] for tenant in kept] == ["acme"]
    assert done.stdout.startswith("acme: removed: 1 keys\nfrom ")
    assert left == []

"""What goes with time, and what never does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from catalogzero.backend import BackendSettings
from catalogzero.backend.clearing import StepSize
from catalogzero.backend.housekeeping import (
    Housekeeping,
    clear_hidden,
    to_clear,
    unfinished,
    uploads_of,
)
from catalogzero.backend.store import BackendDatabase
from catalogzero.testing import ManualClock
from sqlalchemy import Connection, text

from tests.backend.peer import AT, Peer, serve_peer

DAY_S = 86_400


class World:
    """A backend, its clock, and its housekeeping, which a test runs by hand."""

    def __init__(self, peer: Peer, clock: ManualClock, database: BackendDatabase) -> None:
        self.peer, self.clock = peer, clock
        settings = BackendSettings(database=peer.database)
        log, self.database = structlog.get_logger(), database
        self.housekeeping = Housekeeping(settings, database, clock, log)

    async def after(self, seconds: float) -> None:
        """Let time pass, and sweep."""
        await self.clock.advance(seconds)
        await self.housekeeping.sweep()

    def rows(self) -> int:
        """How many rows are stored for the tenant, seen or not."""
        ((count,),) = self.peer.sql(
            "SELECT count(*) FROM records JOIN uploads USING (upload_no)"
            " JOIN tenants USING (tenant_id) WHERE name = :tenant"
        )
        return int(count)

    def waiting(self) -> list[Any]:
        """The tenant's uploads whose rows may still go."""
        return self.peer.sql(
            "SELECT upload_id FROM uploads JOIN tenants USING (tenant_id)"
            " WHERE name = :tenant AND clear_since IS NOT NULL"
        )


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    """A backend whose time stands still, and which sweeps only when asked."""
    clock = ManualClock()
    database = BackendDatabase(database_url)
    options = {"clock": clock, "housekeeping_interval_s": 10**9}
    async with serve_peer(database_url, **options) as peer:
        yield World(peer, clock, database)
    database.close()


async def test_chunks_never_completed_go_after_seven_days_and_may_come_again(
    world: World,
) -> None:
    await world.peer.put("u1", 0, {"a": 1})
    await world.after(6 * DAY_S)
    await world.peer.put("u1", 1, {"a": 2})
    kept = world.rows()
    await world.after(2 * DAY_S)

    missing = await world.peer.complete("u1", chunks=2, records=2)
    await world.peer.put("u1", 0, {"a": 1})
    completed = await world.peer.complete("u1", chunks=2, records=2)

    assert (kept, missing.json["missing"], completed.status) == (2, [0], 201)
    await world.after(30 * DAY_S)
    assert world.peer.visible() == [{"a": 1}, {"a": 2}]


async def test_an_upload_that_lost_all_its_chunks_is_forgotten(world: World) -> None:
    await world.peer.put("u1", 0, {"a": 1})
    await world.after(8 * DAY_S)

    assert (await world.peer.ask("GET", "/v1/uploads/u1")).status == 404


async def test_rows_that_were_replaced_go_and_what_they_were_is_remembered(
    world: World,
) -> None:
    await world.peer.put("u1", 0, {"a": 1})
    first = await world.peer.complete("u1")
    await world.peer.put("u2", 0, {"a": 2})
    await world.peer.complete("u2", upload_key="key-2", source_seq=2)
    await world.after(1)

    again = await world.peer.complete("u1")

    assert world.rows() == 1
    assert world.peer.visible() == [{"a": 2}]
    known = {"duplicate": True, "by": "upload_id", "source_seq": 2, "number": 3}
    assert again.json == {**first.json, **known}


async def test_rows_of_a_superseded_upload_go(world: World) -> None:
    await world.peer.complete("u1", chunks=0, records=0, source_seq=5)
    await world.peer.put("u2", 0, {"a": 1})
    await world.peer.complete("u2", upload_key="key-2", source_seq=4)
    await world.after(1)

    assert world.rows() == 0
    assert (await world.peer.put("u2", 0, {"a": 1})).status == 410


async def test_a_step_takes_many_uploads_and_no_more_than_fits(world: World) -> None:
    for number in range(8):
        await world.peer.put(f"u{number}", 0, *[{"a": n} for n in range(3)])
        await world.peer.put(f"u{number}", 1, {"a": 3})
        key = {"upload_key": f"key-{number}", "source_seq": number + 1}
        await world.peer.complete(f"u{number}", **key, chunks=2, records=4)
    rows = [world.rows()]

    def step(size: StepSize) -> bool:
        more = world.database.write_now(lambda connection: clear_hidden(connection, size))
        rows.append(world.rows())
        return more

    step(StepSize(records=12))
    step(StepSize(records=1))
    while step(StepSize(chunks=3)):
        pass

    # three whole uploads, then one chunk that is larger than a step, then three chunks at a time
    assert rows == [32, 20, 17, 12, 5, 4, 4]
    assert world.waiting() == []


@pytest.mark.parametrize("kind", ["uploads_to_clear", "uploads_unfinished", "uploads_by_stream"])
def test_what_may_go_is_found_by_an_index_that_holds_nothing_else(world: World, kind: str) -> None:
    statement = {
        "uploads_to_clear": to_clear(),
        "uploads_unfinished": unfinished(AT),
        "uploads_by_stream": uploads_of("flights", AT),
    }[kind]

    def plan(connection: Connection) -> str:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        how = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        compiled = statement.limit(9).compile(connection, compile_kwargs={"literal_binds": True})
        return str(connection.exec_driver_sql(f"{how} {compiled}").all())

    assert kind in world.database.write_now(plan)


async def test_how_far_it_is_behind_is_known(world: World) -> None:
    lag = world.housekeeping.lag_s
    await world.after(60 * DAY_S)  # of what other tests left
    at_first = await lag()
    await world.peer.put("u1", 0, {"a": 1})
    await world.peer.complete("u1")
    await world.peer.put("u2", 0, {"a": 2})
    await world.peer.complete("u2", upload_key="key-2", source_seq=2)
    await world.peer.put("u3", 0, {"a": 3})
    await world.clock.advance(9 * DAY_S)
    behind = await lag()
    await world.after(0)

    assert set(at_first.values()) == set((await lag()).values()) == {0.0}
    assert behind == {"hidden": 9.0 * DAY_S, "unfinished": 2.0 * DAY_S, "health": 0.0}


async def test_what_is_known_of_a_source_outlives_its_rows(world: World) -> None:
    """What went on purpose is not missing: a client would send it again."""
    peer = world.peer

    async def start(epoch: int) -> dict[str, Any]:
        about = {"entry": "skylark", "epoch": epoch}
        answer = await peer.ask("PUT", "/v1/installations/site-1", json=about)
        return dict(answer.json)

    epoch = (await start(0))["epoch"]
    own: dict[str, Any] = {"installation_epoch": epoch}
    orders = {**own, "source_key": "orders", "mode": "append"}
    emptied = {**own, "chunks": 0, "records": 0}
    await peer.put("u1", 0, {"a": 1})
    await peer.complete("u1", **own, source_seq=5)
    await peer.put("u2", 0, {"a": 1})
    await peer.complete("u2", **own, source_seq=9)  # a duplicate by key: it stays unfinished
    await peer.put("u3", 0, {"a": 4})
    await peer.complete("u3", **own, source_key="emptied", source_seq=10)
    none = {"source_key": "emptied", "upload_key": "none", "source_seq": 11}
    await peer.complete("u8", **emptied, **none)
    await peer.put("u4", 0, {"a": 2})
    await peer.complete("u4", **orders, upload_key="0-5", source_seq=7, until=[5, 7])
    whole = {**orders, **emptied, "upload_key": "0-6", "full": True}
    await peer.complete("u5", **whole, source_seq=12, until=[6, 12])
    before = await start(epoch)
    await world.after(30 * DAY_S)

    rows, after = world.rows(), await start(before["epoch"])
    own["installation_epoch"] = orders["installation_epoch"] = after["epoch"]
    await peer.put("u6", 0, {"a": 1})
    late = await peer.complete("u6", **own, upload_key="key-6", source_seq=8)
    await peer.put("u7", 0, {"a": 3})
    next_range = {"upload_key": "6-7", "source_seq": 13, "after": [6, 12], "until": [7, 13]}
    chained = await peer.complete("u7", **orders, **next_range)

    assert rows == 1  # of six that were sent
    assert after["states"] == before["states"]
    assert after["states"] == {
        "source-1": {"source_seq": 9, "watermark": None, "full_seq": 0, "mode": "replace"},
        "emptied": {"source_seq": 11, "watermark": None, "full_seq": 0, "mode": "replace"},
        "orders": {"source_seq": 12, "watermark": [6, 12], "full_seq": 12, "mode": "append"},
    }
    assert late.json["superseded"]
    assert chained.status == 201
    assert (await peer.ask("PUT", "/v1/installations/site-1", json={"epoch": epoch})).status == 409


async def test_old_health_reports_go_and_the_latest_state_stays(world: World) -> None:
    async def report(installation: str) -> None:
        body = {"client_id": installation, "metrics": {}, "timestamp": "", "status": "ok"}
        sent = asyncio.create_task(world.peer.ask("POST", "/v1/health", json=body))
        while not sent.done():
            await world.clock.advance(1)
            await asyncio.sleep(0)
        assert (await sent).status == 200

    await report("site-1")
    await world.after(20 * DAY_S)
    await report("site-2")
    await world.after(20 * DAY_S)

    reports = world.peer.sql(
        "SELECT installation_id FROM health_reports JOIN tenants USING (tenant_id)"
        " WHERE name = :tenant"
    )
    fleet = (await world.peer.ask("GET", "/fleet.json")).json["installations"]
    mine: list[Any] = [row for row in fleet if row["tenant"] == world.peer.name]
    assert reports == [("site-2",)]
    assert [(row["installation_id"], row["state"]) for row in mine] == [
        ("site-1", "silent"),
        ("site-2", "silent"),
    ]

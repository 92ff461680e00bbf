"""A database of before the fleet's columns goes forward with what its installations said last."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.backend.peer import KINDS, postgresql_url, serve_peer

DATA = Path(__file__).parent / "data"
REPORT = (
    '{"client_id": "site-1", "status": "failing", "reasons": ["401"], "interval_s": 60,'
    ' "outbox": {"uploads": 7, "dead": 2}}'
)
SAID = f"UPDATE installations SET health_report = '{REPORT}'"  # noqa: S608 - a constant


@pytest.fixture(params=KINDS)
def older(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database that the first release wrote, whose installation had sent a report."""
    dump = (DATA / f"backend-1.{request.param}.sql").read_text()
    if request.param == "sqlite":
        path = tmp_path / "backend.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(dump)
            connection.execute(SAID)
            connection.commit()
        yield f"sqlite:///{path}"
        return
    for url in postgresql_url():
        engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        with engine.begin() as at:
            for statement in (*dump.split(";\n"), SAID):
                if statement.strip():
                    at.execute(text(statement.replace(":", r"\:")))
        engine.dispose()
        yield url


async def test_the_fleet_shows_what_was_said_before_the_upgrade(older: str) -> None:
    async with serve_peer(older) as peer:
        [row] = (await peer.ask("GET", "/fleet.json")).json["installations"]
        tenant, name = row["tenant"], row["installation_id"]
        page = await peer.ask("GET", f"/installation.json?tenant={tenant}&id={name}")
        done = await peer.complete("new", chunks=0, records=0, installation_id="site-2")
        two = (await peer.ask("GET", "/fleet.json?q=site-2")).json

    assert (row["state"], row["reasons"], row["backlog"], row["dead"]) == ("silent", "401", 7, 2)
    outcomes = [upload["outcome"] for upload in page.json["uploads"]]
    assert sorted(outcomes) == ["replaced", "visible", "visible"]
    assert two["found"] == 1
    assert done.json["number"] == 1

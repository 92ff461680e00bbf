"""Databases of earlier versions go forward with their rows, and look like new ones then."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from catalogzero.backend.housekeeping import Housekeeping
from catalogzero.backend.settings import BackendSettings
from catalogzero.backend.store import BackendDatabase
from catalogzero.clock import SystemClock
from sqlalchemy import create_engine, inspect, text
from structlog import get_logger

from tests.backend.peer import KINDS, POSTGRESQL, postgresql_url, serve_peer

DATA = Path(__file__).parent / "data"


@contextmanager
def database_of(version: int, kind: str, folder: Path) -> Iterator[str]:
    """A database that an earlier release wrote, with rows in every table."""
    dump = (DATA / f"backend-{version}.{kind}.sql").read_text()
    if kind == "sqlite":
        with closing(sqlite3.connect(folder / "backend.db")) as connection:
            connection.executescript(dump)
        yield f"sqlite:///{folder / 'backend.db'}"
        return
    for url in postgresql_url():
        plain, _, options = url.partition("?")
        assert plain == POSTGRESQL
        engine = create_engine(f"{plain.replace('postgresql:', 'postgresql+psycopg:')}?{options}")
        with engine.begin() as connection:
            for statement in dump.split(";\n"):
                if statement.strip():
                    connection.execute(text(statement.replace(":", r"\:")))
        engine.dispose()
        yield url


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of database."""
    return str(request.param)


async def test_a_database_of_the_first_version_goes_forward_with_its_rows(
    kind: str, tmp_path: Path
) -> None:
    with database_of(1, kind, tmp_path) as url:
        async with serve_peer(url) as peer:
            view = peer.sql("SELECT source, params, payload FROM visible_records ORDER BY source")
            states = peer.sql("SELECT source_key, highest_seq, full_seq, mode FROM sources")
            epochs = peer.sql("SELECT installation_id, epoch FROM installations")
            [(generation,)] = peer.sql("SELECT generation FROM backend_generation")
            asked = await peer.ask("GET", "/v1/events", headers={"Authorization": ""})
            jobs = peer.sql("SELECT job_id FROM visible_records")
            latest = peer.sql("SELECT count(*) FROM latest_records")

    told = asked.json["events"]
    assert view == [
        ("2013.csv", '{"site":1}', '{"n": 1}'),
        ("sql:orders", "{}", '{"n": 2}'),
    ]
    assert sorted(states) == [("files", 20, 20, "replace"), ("orders", 30, 30, "append")]
    assert epochs == [("site-1", 0)]
    assert latest == [(0,)]
    assert generation
    assert [event["kind"] for event in told] == ["visible", "visible"]
    assert {event["job_id"] for event in told} == {job for (job,) in jobs}
    assert {event["source_key"] for event in told} == {"files", "orders"}


async def test_a_database_of_the_second_version_goes_forward_with_its_rows(
    kind: str, tmp_path: Path
) -> None:
    with database_of(2, kind, tmp_path) as url:
        async with serve_peer(url) as peer:
            before = peer.sql("SELECT upload_id, state, visible FROM uploads ORDER BY upload_no")
            waits = peer.sql("SELECT upload_id FROM uploads WHERE clear_since IS NOT NULL")
            database = BackendDatabase(url)
            settings = BackendSettings(database=url, open_upload_ttl_s=1e9)
            await Housekeeping(settings, database, SystemClock(), get_logger()).sweep()
            database.close()
            left = peer.sql("SELECT payload FROM records ORDER BY upload_no")
            view = peer.sql("SELECT source, payload FROM visible_records ORDER BY source")

    assert [tuple(map(str, row[:2])) for row in before] == [
        ("u1", "complete"),
        ("u2", "complete"),
        ("u3", "superseded"),
        ("u4", "complete"),
        ("u5", "complete"),
        ("u6", "open"),
    ]
    assert sorted(waits) == [("u1",), ("u3",)]
    assert left == [('{"n": 2}',), ('{"n": 4}',), ('{"n": 6}',)]
    assert view == [("2013.csv", '{"n": 2}'), ("sql:orders", '{"n": 4}')]


@pytest.mark.parametrize("version", [1, 2])
def test_a_database_that_went_forward_looks_like_a_new_one(
    kind: str, version: int, tmp_path: Path
) -> None:
    for new in [f"sqlite:///{tmp_path / 'new.db'}"] if kind == "sqlite" else postgresql_url():
        with database_of(version, kind, tmp_path) as url:
            assert _shape(url) == _shape(new)


def _shape(url: str) -> dict[str, object]:
    """Tables with the names of their columns, keys and indexes."""
    with closing(BackendDatabase(url)) as database, database.reading() as connection:
        seen = inspect(connection)
        return {
            table: (
                sorted(
                    (column["name"], str(column["type"]), column["nullable"])
                    for column in seen.get_columns(table)
                ),
                sorted(
                    (index["name"], *map(str, index.get("dialect_options", {}).values()))
                    for index in seen.get_indexes(table)
                ),
                sorted(
                    (str(key["constrained_columns"]), key["referred_table"], str(key["options"]))
                    for key in seen.get_foreign_keys(table)
                ),
            )
            for table in seen.get_table_names()
        }

"""Nothing lost, nothing twice, nothing partial: the storm, in a size for CI and for `make chaos`.

CATALOGZERO_CHAOS_KILLS, CATALOGZERO_CHAOS_ROWS and CATALOGZERO_CHAOS_SEED set its size and dice.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.chaos.scenes import EVENTS
from tests.chaos.sources import Accounts, Lines, Sources
from tests.chaos.storm import ALL_EVENTS, COMMIT_POINTS, MANY, Report, Storm

pytestmark = [pytest.mark.timeout(7_200), pytest.mark.xdist_group("storm")]

KILLS = int(os.environ.get("CATALOGZERO_CHAOS_KILLS", "20"))
ROWS = int(os.environ.get("CATALOGZERO_CHAOS_ROWS", "50000"))
SEALS = ("outbox seal:before", "outbox seal:after", "outbox done:before")
SEED = int(os.environ.get("CATALOGZERO_CHAOS_SEED") or random.SystemRandom().randrange(1 << 30))
POSTGRESQL = os.environ.get(
    "CATALOGZERO_TEST_POSTGRESQL", "postgresql+psycopg://postgres@127.0.0.1:5432/test"
)


@pytest.fixture
def postgresql() -> Iterator[str | None]:
    """A PostgreSQL database of the storm's own; None where there is no server."""
    name = f"chaos_{uuid.uuid4().hex[:8]}"
    url = sa.engine.make_url(POSTGRESQL).set(drivername="postgresql+psycopg")
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with admin.connect() as db:
            db.execute(sa.text(f"CREATE DATABASE {name}"))
    except sa.exc.OperationalError:
        yield None
        return
    yield url.set(database=name).render_as_string(hide_password=False)
    with admin.connect() as db:
        db.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.mark.postgresql
async def test_every_row_is_there_once_after_a_storm(
    tmp_path: Path, postgresql: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """On both databases side by side: most of a storm's time is waiting."""
    databases = {"sqlite": None} | ({"postgresql": postgresql} if postgresql else {})
    storms = {}
    for name, database in databases.items():
        (tmp_path / name).mkdir()
        storms[name] = Storm(
            Sources, tmp_path / name, kills=KILLS, rows=ROWS, seed=SEED, database=database
        )
    try:
        async with asyncio.TaskGroup() as both:
            for storm in storms.values():
                both.create_task(storm.run())
    finally:
        with capsys.disabled():
            for name, storm in storms.items():
                print(f"\n{name}: {storm.report.table()}")  # noqa: T201  # the table is the result

    for storm in storms.values():
        report = storm.report
        assert (report.lost, report.twice, report.partial) == (0, 0, 0)
        assert report.landed() >= KILLS
        assert report.kills.keys() >= set(COMMIT_POINTS)
        assert report.events.keys() >= set().union(*EVENTS.values())
        assert report.rows >= ROWS
    if postgresql is None:
        pytest.skip("held on SQLite; no PostgreSQL")


ALWAYS = ("new_rows", "range_refused")
OF_STREAMS = (*ALWAYS, "killed_behind_a_checkpoint", "streams_apart")
OF_KEYS = (*ALWAYS, "late_while_read", "back_within_a_tick", "full_of_keys")
IN_LARGE_ONES = ("state_folder_lost", "backend_restored_twice", "snapshot_put_back")


@pytest.mark.postgresql
async def test_streams_and_keys_are_as_they_are_at_the_client_after_a_storm(
    tmp_path: Path, postgresql: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Side by side, each on a database of its own."""
    more = IN_LARGE_ONES if KILLS >= MANY else ()
    streams, keys = (*OF_STREAMS, *more), (*OF_KEYS, *more)
    size = functools.partial(Storm[Any], kills=KILLS // 5, rows=500, seed=SEED, deaths=1)
    storms = [
        size(Lines, folder_in(tmp_path, "streams"), points=SEALS, scenes=streams),
        size(
            Accounts,
            folder_in(tmp_path, "keys"),
            database=postgresql,
            points=SEALS,
            scenes=keys,
        ),
    ]
    try:
        async with asyncio.TaskGroup() as both:
            for storm in storms:
                both.create_task(storm.run())
    finally:
        with capsys.disabled():
            for storm in storms:
                print(f"\n{storm.report.table()}")  # noqa: T201  # the table is the result

    for storm, scenes in zip(storms, (streams, keys), strict=True):
        report = storm.report
        assert (report.lost, report.twice, report.partial) == (0, 0, 0)
        assert report.landed() >= KILLS // 5
        assert report.kills.keys() >= set(SEALS)
        assert report.events.keys() >= set().union(*(ALL_EVENTS.get(one, set()) for one in scenes))
    accounts = storms[1]
    latest = accounts.sources.shown(accounts.verdict.records("latest_records"))
    assert latest == accounts.sources.rows()


def folder_in(folder: Path, name: str) -> Path:
    """A new folder."""
    (folder / name).mkdir()
    return folder / name


async def mutated(folder: Path, mutant: str, point: str, scene: str) -> Report:
    """A small storm over a fault that is built in."""
    points = [point] if point else []
    storm = Storm(
        Sources,
        folder,
        kills=len(points),
        rows=1_000,
        seed=1,
        points=points,
        scenes=[scene],
        mutant=mutant,
    )
    return await storm.run()


async def test_a_mark_that_is_no_part_of_the_seals_transaction_loses_rows(tmp_path: Path) -> None:
    report = await mutated(tmp_path, "mark_first", "outbox mark_first:after", "new_rows")

    assert report.lost > 0


async def test_a_complete_of_two_transactions_loses_rows(tmp_path: Path) -> None:
    report = await mutated(tmp_path, "complete_first", "backend complete_first:after", "new_rows")

    assert report.lost > 0


async def test_a_backend_that_knows_chunks_alone_shows_rows_twice(tmp_path: Path) -> None:
    report = await mutated(tmp_path, "chunk_alone", "", "folder_lost_at_rest")

    assert report.twice > 0

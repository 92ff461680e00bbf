"""Nothing lost, nothing twice, nothing partial: the storm, in a size for CI and for `make chaos`.

CATALOGZERO_CHAOS_KILLS, CATALOGZERO_CHAOS_ROWS and CATALOGZERO_CHAOS_SEED set its size and dice.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.chaos.range_scenes import OF_KEYS, OF_STREAMS
from tests.chaos.sources import Accounts, Lines, Sources
from tests.chaos.storm import MANY, Report, Storm

pytestmark = [pytest.mark.timeout(7_200), pytest.mark.xdist_group("storm")]

KILLS = int(os.environ.get("CATALOGZERO_CHAOS_KILLS", "20"))
ROWS = int(os.environ.get("CATALOGZERO_CHAOS_ROWS", "50000"))
SEALS = ("outbox seal:before", "outbox seal:after", "outbox done:before")
ALSO_IN_LARGE_ONES = ("state_folder_lost", "backend_restored_twice", "snapshot_put_back")
SEED = int(os.environ.get("CATALOGZERO_CHAOS_SEED") or random.SystemRandom().randrange(1 << 30))
POSTGRESQL = os.environ.get(
    "CATALOGZERO_TEST_POSTGRESQL", "postgresql+psycopg://postgres@127.0.0.1:5432/test"
)


Databases = Callable[[], str | None]


@pytest.fixture
def databases() -> Iterator[Databases]:
    """PostgreSQL databases of a storm's own; None where there is no server."""
    url = sa.engine.make_url(POSTGRESQL).set(drivername="postgresql+psycopg")
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    made: list[str] = []

    def make() -> str | None:
        name = f"chaos_{uuid.uuid4().hex[:8]}"
        try:
            with admin.connect() as db:
                db.execute(sa.text(f"CREATE DATABASE {name}"))
        except sa.exc.OperationalError:
            return None
        made.append(name)
        return url.set(database=name).render_as_string(hide_password=False)

    yield make
    for name in made:
        with admin.connect() as db:
            db.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.mark.postgresql
async def test_every_row_is_there_once_after_a_storm(
    tmp_path: Path, databases: Databases, capsys: pytest.CaptureFixture[str]
) -> None:
    """On both databases, and of each kind of client, side by side: a storm mostly waits."""
    postgresql = databases()
    large = functools.partial(Storm[Any], Sources, kills=KILLS, rows=ROWS, seed=SEED)
    small = functools.partial(
        Storm[Any], kills=KILLS // 5, rows=500, seed=SEED, points=SEALS, deaths=1
    )
    more = ALSO_IN_LARGE_ONES if KILLS >= MANY else ()
    keys = small(
        Accounts, folder_in(tmp_path, "keys"), database=databases(), scenes=[*OF_KEYS, *more]
    )
    storms = {
        "sqlite": large(folder_in(tmp_path, "sqlite")),
        "streams": small(Lines, folder_in(tmp_path, "streams"), scenes=[*OF_STREAMS, *more]),
        "keys": keys,
    }
    if postgresql is not None:
        storms["postgresql"] = large(folder_in(tmp_path, "postgresql"), database=postgresql)
    try:
        async with asyncio.TaskGroup() as all_of_them:
            for storm in storms.values():
                all_of_them.create_task(storm.run())
    finally:
        with capsys.disabled():
            for name, storm in storms.items():
                print(f"\n{name}: {storm.report.table()}")  # noqa: T201  # the table is the result

    for storm in storms.values():
        report = storm.report
        assert (report.lost, report.twice, report.partial) == (0, 0, 0)
        assert report.landed() >= storm.kills
        assert report.kills.keys() >= set(storm.points)
        assert report.events.keys() >= set().union(*map(storm.events_of, storm.scenes))
        assert report.rows >= storm.rows
    latest = keys.verdict.records("latest_records")
    assert keys.sources.shown(latest) == keys.sources.rows()
    if postgresql is None:
        pytest.skip("held on SQLite; no PostgreSQL")


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

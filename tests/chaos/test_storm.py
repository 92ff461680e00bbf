"""Nothing lost, nothing twice, nothing partial: the storm, in a size for CI and for `make chaos`.

CATALOGZERO_CHAOS_KILLS, CATALOGZERO_CHAOS_ROWS and CATALOGZERO_CHAOS_SEED set its size and dice.
"""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.chaos.storm import Storm

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(7_200)]

KILLS = int(os.environ.get("CATALOGZERO_CHAOS_KILLS", "20"))
ROWS = int(os.environ.get("CATALOGZERO_CHAOS_ROWS", "50000"))
SEED = int(os.environ.get("CATALOGZERO_CHAOS_SEED") or random.SystemRandom().randrange(1 << 30))
POSTGRESQL = os.environ.get(
    "CATALOGZERO_TEST_POSTGRESQL", "postgresql+psycopg://postgres@127.0.0.1:5432/test"
)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def database(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """The backend's database: a file of the storm's own, or a PostgreSQL database."""
    if request.param == "sqlite":
        yield None
        return
    name = f"chaos_{uuid.uuid4().hex[:8]}"
    admin = sa.create_engine(POSTGRESQL, isolation_level="AUTOCOMMIT")
    try:
        with admin.connect() as db:
            db.execute(sa.text(f"CREATE DATABASE {name}"))
    except sa.exc.OperationalError as error:
        pytest.skip(f"no PostgreSQL: {error.orig}")
    url = sa.engine.make_url(POSTGRESQL).set(database=name)
    yield url.render_as_string(hide_password=False)
    with admin.connect() as db:
        db.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


async def test_every_row_is_there_once_after_a_storm(
    tmp_path: Path, database: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    storm = Storm(tmp_path, kills=KILLS, rows=ROWS, seed=SEED, database=database)
    try:
        report = await storm.run()
    finally:
        with capsys.disabled():
            print(f"\n{storm.report.table()}")  # noqa: T201  # the table of hits is the result

    assert report.landed() >= KILLS
    assert (report.lost, report.twice, report.partial) == (0, 0, 0)
    assert report.rows >= ROWS // 10 * 10


async def test_a_mark_that_is_no_part_of_the_seals_transaction_loses_rows(tmp_path: Path) -> None:
    storm = Storm(
        tmp_path, kills=1, rows=1_000, seed=1, points=["mark_first:after"], mutant="mark_first"
    )

    report = await storm.run()

    assert report.lost > 0

"""Named SQL queries as sources, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from catalogzero.errors import CatalogZeroError

from tests.cloud.processors import ArrowPlain
from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site

POSTGRESQL = os.environ.get(
    "CATALOGZERO_TEST_POSTGRESQL", "postgresql+psycopg://postgres@127.0.0.1:5432/test"
)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with an empty table `orders`."""
    base, schema = f"sqlite:///{tmp_path}/client.db", f"cloud_{uuid.uuid4().hex[:8]}"
    if request.param == "postgresql":
        base = f"{POSTGRESQL}?options=-csearch_path%3D{schema}"
    engine = sa.create_engine(base)
    try:
        with engine.begin() as db:
            if request.param == "postgresql":
                db.execute(sa.text(f"CREATE SCHEMA {schema}"))
            db.execute(sa.text("CREATE TABLE orders (id INTEGER, at TIMESTAMP, price NUMERIC)"))
    except sa.exc.OperationalError as error:
        pytest.skip(f"no PostgreSQL: {error.orig}")
    yield base
    if request.param == "postgresql":
        with engine.begin() as db:
            db.execute(sa.text(f"DROP SCHEMA {schema} CASCADE"))
    engine.dispose()


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


def insert(url: str, ids: range) -> None:
    """Orders, one a minute."""
    engine = sa.create_engine(url)
    with engine.begin() as db:
        for number in ids:
            at = f"2026-01-01 {number // 60:02}:{number % 60:02}:00.5"
            values = {"id": number, "at": at, "price": number / 4}
            db.execute(sa.text("INSERT INTO orders VALUES (:id, :at, :price)"), values)
    engine.dispose()


def sources(url: str, **more: str) -> dict[str, Any]:
    return {
        "orders": {"url": url, "query": "SELECT id, price, at FROM orders ORDER BY id;", **more}
    }


async def test_a_query_without_watermark_replaces_and_is_unchanged_while_its_rows_are(
    url: str, backend: ReferenceBackend, tmp_path: Path
) -> None:
    insert(url, range(10))
    async with Site(backend.url, tmp_path, sources=sources(url)) as site:
        statuses = [(await site.run("sql:orders"))["status"] for _ in range(2)]
        insert(url, range(10, 12))
        statuses.append((await site.run("sql:orders"))["status"])

    assert statuses == ["uploaded", "unchanged", "uploaded"]
    assert [(row["id"], row["price"]) for row in backend.rows()] == [(n, n / 4) for n in range(12)]


@pytest.mark.parametrize("watermark", ["id", "at", "price"])
async def test_a_watermark_reads_each_row_once(
    url: str, backend: ReferenceBackend, tmp_path: Path, watermark: str
) -> None:
    given = sources(url, watermark=watermark)
    statuses = []
    async with Site(backend.url, tmp_path, sources=given) as site:
        for ids in (range(0), range(5), range(0), range(5, 9)):
            insert(url, ids)
            statuses.append((await site.run("sql:orders"))["status"])
        whole = await site.run("sql:orders", full=True)

    assert statuses == ["unchanged", "uploaded", "unchanged", "uploaded"]
    assert (whole["status"], whole["records"]) == ("uploaded", 9)
    assert [row["id"] for row in backend.rows()] == list(range(9))


async def test_after_a_lost_state_folder_a_watermark_goes_on_where_the_backend_is(
    url: str, backend: ReferenceBackend, tmp_path: Path
) -> None:
    given = sources(url, watermark="id")
    insert(url, range(5))
    for number in range(2):
        runtime = {"state_dir": tmp_path / f"state-{number}"}
        async with Site(backend.url, tmp_path, sources=given, runtime=runtime) as site:
            await site.run("sql:orders")
            insert(url, range(5 + number, 6 + number))
            await site.run("sql:orders")

    assert [row["id"] for row in backend.rows()] == list(range(7))


async def test_a_query_gives_arrow_tables_where_the_class_says_so(
    url: str, backend: ReferenceBackend, tmp_path: Path
) -> None:
    insert(url, range(3))
    given = sources(url, watermark="id")
    async with Site(backend.url, tmp_path, author=ArrowPlain, sources=given) as site:
        assert (await site.run("sql:orders"))["records"] == 3


@pytest.mark.parametrize(
    ("query", "source", "text"),
    [
        ("SELECT * FROM nowhere", "sql:orders", "nowhere"),
        ("SELECT 1 AS id", "sql:other", "orders"),
    ],
)
async def test_a_query_that_fails_is_reported_without_its_url(
    url: str, backend: ReferenceBackend, tmp_path: Path, query: str, source: str, text: str
) -> None:
    given = {"orders": {"url": url, "query": query}}
    async with Site(backend.url, tmp_path, sources=given) as site:
        with pytest.raises(CatalogZeroError, match=text) as caught:
            await site.run(source)

    assert url not in str(caught.value)


async def test_the_url_can_stand_in_a_file(
    url: str, backend: ReferenceBackend, tmp_path: Path
) -> None:
    insert(url, range(3))
    (tmp_path / "url").write_text(f"{url}\n")
    given = {"orders": {"url_file": tmp_path / "url", "query": "SELECT id FROM orders"}}
    async with Site(backend.url, tmp_path, sources=given) as site:
        assert (await site.run("sql:orders"))["records"] == 3

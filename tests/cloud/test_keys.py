"""Keys: rows that take the place of earlier ones, late and tied rows, and what has no key.

The backend here keeps every row; the newest of each key is what a view over it shows.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pyarrow as pa
import pytest
from catalogzero import (
    BadParamsError,
    Checkpoint,
    CloudProcessor,
    FailedError,
    Params,
    Rows,
    Stream,
)
from catalogzero.cloud.reading.queries import looked_back
from catalogzero.cloud.settings import QuerySource
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site, until

BOTH_STORES = True


class Keyed(CloudProcessor):
    """Passes rows on, each under its id."""

    streams = (Stream("orders", key=("id",), tombstone="gone"),)

    def process(self, batches: Iterable[Any], params: Params) -> Iterator[Any]:
        yield from batches


class KeyedRead(Keyed):
    """An own source: what `given` holds, up to `last`."""

    mode = "append"
    given: ClassVar[Rows] = []
    last: ClassVar[Any] = None

    def read(
        self, data_source: str, params: Params, after: Any = None
    ) -> Generator[Rows | Checkpoint, None, Any]:
        """All of `given`."""
        yield [dict(row) for row in self.given]
        return self.last


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


class Table:
    """The client's table, in SQLite: rows of id, changed (the watermark), value and gone."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "orders.sqlite"
        self.change("CREATE TABLE orders (id INTEGER PRIMARY KEY, changed, value, gone)")

    @property
    def source(self) -> dict[str, Any]:
        """The query, for the config."""
        query = "SELECT id, changed, value, gone FROM orders"
        return {"url": f"sqlite:///{self.file}", "query": query, "watermark": "changed"}

    def change(self, sql: str, *args: Any) -> None:
        """Run a statement."""
        with closing(sqlite3.connect(self.file)) as file, file:
            file.execute(sql, args)

    def put(self, key: int, changed: Any, value: Any, gone: Any = None) -> None:
        """Insert or update a row."""
        self.change("INSERT OR REPLACE INTO orders VALUES (?, ?, ?, ?)", key, changed, value, gone)

    def rows(self) -> dict[int, Any]:
        """Its rows that are not gone."""
        with closing(sqlite3.connect(self.file)) as file:
            found = file.execute("SELECT id, value FROM orders WHERE gone IS NULL")
            return dict(found.fetchall())


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


def newest(backend: ReferenceBackend) -> dict[int, Any]:
    """The value of each key's newest row, in sealing order; none where that is a tombstone."""
    found: dict[int, Any] = {}
    done = [one for one in backend.uploads.values() if one.status == "done"]
    visible = {upload for uploads in backend.visible.values() for upload in uploads}
    for upload_id, one in sorted(
        ((key, one) for key, one in backend.uploads.items() if one in done),
        key=lambda pair: pair[1].body["source_seq"],
    ):
        if upload_id in visible:
            for seq in sorted(one.chunks):
                for row in one.chunks[seq]:
                    found[row["id"]] = row
    return {key: row["value"] for key, row in found.items() if row.get("gone") is None}


async def test_updates_late_and_tied_rows_arrive_and_nothing_new_is_unchanged(
    backend: ReferenceBackend, table: Table, tmp_path: Path
) -> None:
    source = {**table.source, "lookback": 5}
    async with Site(backend.url, tmp_path, author=Keyed, sources={"orders": source}) as site:
        for changes in (
            [(1, 10, "a"), (2, 12, "b")],
            [(3, 12, "tied")],
            [(4, 8, "late")],
            [(2, 12, "updated within the tick")],
            [(2, 12, "b")],  # as it was before: the newest row of the backend is another one
            [(1, 20, "updated")],
            [(4, 21, None, 1)],  # a tombstone
        ):
            for change in changes:
                table.put(*change)
            result = await site.run("sql:orders")
            again = await site.run("sql:orders")

            assert (result["status"], newest(backend)) == ("uploaded", table.rows()), changes
            assert (again["status"], again["skipped"]) == ("unchanged", 1), changes

    body = next(one.body for one in backend.uploads.values() if one.status == "done")
    said = (body["mode"], body["key"], body["tombstone"], body["stream"])
    assert said == ("merge", ["id"], "gone", "orders")


async def test_a_last_row_that_is_gone_does_not_take_the_watermark_back(
    backend: ReferenceBackend, table: Table, tmp_path: Path
) -> None:
    table.put(1, 10, "a")
    table.put(2, 20, "b")
    async with Site(backend.url, tmp_path, author=Keyed, sources={"orders": table.source}) as site:
        await site.run("sql:orders")
        table.change("DELETE FROM orders WHERE id = 2")
        assert (await site.run("sql:orders"))["status"] == "unchanged"
        table.change("DELETE FROM orders")
        assert (await site.run("sql:orders"))["status"] == "unchanged"
        table.put(3, 30, "c")
        await site.run("sql:orders")
    assert newest(backend) == {1: "a", 2: "b", 3: "c"}  # a hard delete is seen by `full` alone


CHANGES = st.lists(
    st.lists(st.tuples(st.integers(1, 4), st.integers(-3, 2), st.integers(0, 2)), max_size=3),
    max_size=6,
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(changes=CHANGES)
async def test_the_newest_rows_are_the_tables_whatever_changes(
    changes: list[list[tuple[int, int, int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each change is late by at most the lookback of 3, or ahead."""
    folder = tmp_path_factory.mktemp("table")
    table, clock = Table(folder), 10
    source = {**table.source, "lookback": 3}
    async with (
        ReferenceBackend() as backend,
        Site(backend.url, folder, author=Keyed, sources={"orders": source}) as site,
    ):
        table.put(0, clock, 0)
        await site.run("sql:orders")
        for step in changes:
            for key, ahead, value in step:
                table.put(key, clock + ahead, value)
                clock = max(clock, clock + ahead)
            await site.run("sql:orders")
            assert newest(backend) == table.rows()


async def test_lookback_without_a_key_is_refused(
    backend: ReferenceBackend, table: Table, tmp_path: Path
) -> None:
    class Mixed(Keyed):
        streams: ClassVar[Any] = (Stream("orders", key=("id",)), Stream("lines"))

    source = {**table.source, "lookback": 5}
    async with Site(backend.url, tmp_path, author=Mixed, sources={"orders": source}) as site:
        with pytest.raises(BadParamsError, match="stream 'lines' has no key"):
            await site.run("sql:orders")
        checks = {check.name: check for check in site.author._preflight()}
        found = checks["query orders"].act()
    assert (found.status, "stream 'lines' has no key" in found.found) == ("fail", True)
    with pytest.raises(ValueError, match="name its column in"):
        QuerySource(url="sqlite://", query="SELECT 1", lookback=1)


@pytest.mark.parametrize("kind", ["rows", "table"])
async def test_a_row_without_a_key_is_a_bad_record(
    backend: ReferenceBackend, tmp_path: Path, kind: str
) -> None:
    class Some(KeyedRead):
        def process(self, batches: Iterable[Any], params: Params) -> Iterator[Any]:
            for batch in batches:
                yield pa.Table.from_pylist(batch) if kind == "table" else batch

    Some.given = [{"id": None, "n": 1}, {"id": 2, "n": 2}, {"id": None, "n": 3}, {"id": 4, "n": 4}]
    Some.last = 1
    async with Site(backend.url, tmp_path, author=Some, on_bad_record="skip") as site:
        result = await site.run("api")
    assert (result["records"], result["bad_records"]) == (2, 2)
    assert [row["id"] for row in backend.rows()] == [2, 4]

    other = tmp_path / "other"
    other.mkdir()
    Some.given = [{"n": 1}]
    async with Site(backend.url, other, author=Some) as site:
        with pytest.raises(FailedError, match="row 1, column id: a row without it has no key"):
            await site.run("api")


async def test_a_row_without_a_key_is_refused_of_files_too(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path, author=Keyed) as site:
        site.write("a.csv", "n,value\n1,2\n")
        with pytest.raises(FailedError, match="column id: a row without it has no key"):
            await site.run()
        site.write("a.csv", "id,value\n1,2\n")
        await site.run()
    [body] = [one.body for one in backend.uploads.values() if one.status == "done"]
    assert (body["mode"], "key" in body) == ("replace", False)


async def test_another_key_needs_a_full_run_and_takes_it(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    class Other(KeyedRead):
        streams: ClassVar[Any] = (Stream("orders", key=("id", "value")),)

    class None_(KeyedRead):
        streams: ClassVar[Any] = (Stream("orders"),)

    rows: Rows = [{"id": 1, "value": "a"}]
    for author in (KeyedRead, Other, None_):
        author.given, author.last = rows, 1
        async with Site(backend.url, tmp_path, author=author) as site:
            await site.run("api")
    done = [one.body for one in backend.uploads.values() if one.status == "done"]
    done.sort(key=lambda body: body["source_seq"])
    assert [(body["mode"], body.get("key"), body["full"]) for body in done] == [
        ("merge", ["id"], False),
        ("merge", ["id", "value"], True),
        ("append", None, True),
    ]


async def test_an_own_read_with_a_key_may_give_rows_again(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    KeyedRead.given, KeyedRead.last = [{"id": 1, "value": "a"}], 7
    async with Site(backend.url, tmp_path, author=KeyedRead) as site:
        statuses = [(await site.run("api"))["status"] for _ in range(2)]
        KeyedRead.given = [{"id": 1, "value": "b"}]
        statuses += [(await site.run("api"))["status"] for _ in range(2)]
        KeyedRead.last = None
        with pytest.raises(FailedError, match="the watermark is null"):
            await site.run("api")
    assert statuses == ["uploaded", "unchanged", "uploaded", "unchanged"]
    assert newest(backend) == {1: "b"}


async def test_a_row_that_is_as_it_was_before_the_last_part_is_sent(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    """What an earlier part held is no proof: a later state of the row is the newest."""

    class Parts(KeyedRead):
        def read(
            self, data_source: str, params: Params, after: Any = None
        ) -> Generator[Rows | Checkpoint, None, Any]:
            yield [{"id": 1, "value": "a"}]
            if after is None:
                yield Checkpoint(1)
                yield [{"id": 1, "value": "b"}]
            return 2

    async with Site(backend.url, tmp_path, author=Parts) as site:
        await site.run("api")
        assert newest(backend) == {1: "b"}
        result = await site.run("api")
    assert (result["status"], newest(backend)) == ("uploaded", {1: "a"})


async def test_what_a_purge_gave_up_is_read_again(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    """The rows that are remembered are forgotten with the position."""
    KeyedRead.given, KeyedRead.last = [{"id": 1, "value": "a"}], 7
    async with Site(backend.url, tmp_path, author=KeyedRead) as site:
        await site.run("api")
        KeyedRead.given = [{"id": 1, "value": "b"}]
        site.engine.sender.hold()
        held = asyncio.create_task(site.run("api"))
        await until(lambda: site.outbox.store.uploads(("sealed",)))
        [upload] = site.outbox.store.uploads(("sealed",))
        site.outbox.purge(upload.upload_id)
        await site.engine.sender.go()
        await held
        result = await site.run("api")
    assert (result["status"], newest(backend)) == ("uploaded", {1: "b"})


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"drop": ["id"]}, "keeps back 'id', of the key"),
        ({"keep": ["value", "gone"]}, "keeps back 'id', of the key"),
        ({"drop": ["gone"]}, "keeps back or hashes 'gone'"),
        ({"hash": ["gone"]}, "keeps back or hashes 'gone'"),
    ],
)
async def test_a_key_that_may_not_leave_is_refused_before_anything_is_read(
    backend: ReferenceBackend, tmp_path: Path, policy: dict[str, Any], words: str
) -> None:
    KeyedRead.given, KeyedRead.last = [{"id": 1, "value": "a", "gone": None}], 1
    runtime = {"egress": policy}
    async with Site(backend.url, tmp_path, author=KeyedRead, runtime=runtime) as site:
        with pytest.raises(BadParamsError, match=words):
            await site.run("api")
    assert not backend.rows()


async def test_a_key_may_be_hashed(backend: ReferenceBackend, tmp_path: Path) -> None:
    KeyedRead.given, KeyedRead.last = [{"id": 1, "value": "a", "gone": None}], 1
    runtime = {"egress": {"hash": ["id"]}}
    async with Site(backend.url, tmp_path, author=KeyedRead, runtime=runtime) as site:
        await site.run("api")
    [row] = backend.rows()
    assert len(row["id"]) == 64


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key": "id"}, "a tuple of column names"),
        ({"key": ("id", "id")}, "has a column twice"),
        ({"key": tuple(f"c{n}" for n in range(17))}, "more than 16"),
        ({"tombstone": "gone"}, "needs a `key`"),
        ({"key": ("id",), "tombstone": "id"}, "is a column of the key"),
        ({"key": ("id",), "schema": pa.schema([("n", pa.int8())])}, "has no column 'id'"),
    ],
)
def test_a_key_that_cannot_be_one_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        Stream("orders", **options)


async def test_describe_shows_the_key() -> None:
    made = Keyed(endpoint="http://127.0.0.1:1", api_key="key", data_roots=["/srv/exports"])
    assert (await made.describe())["streams"] == [
        {"name": "orders", "key": ["id"], "tombstone": "gone"}
    ]


@pytest.mark.parametrize(
    ("after", "newest_", "lookback", "found"),
    [
        (10, 12, 3, 7),
        (10, 12, 0.5, 9.5),
        (1.5, 2.0, 1, 0.5),
        ("12.50", Decimal("13.00"), 0.5, "12.00"),
        ("2026-03-01", date(2026, 3, 2), 86_401, "2026-02-27"),
        (
            "2026-03-01T00:00:10+00:00",
            datetime(2026, 3, 2, tzinfo=UTC),
            20,
            "2026-02-28T23:59:50+00:00",
        ),
        ("2026-03-01 00:00:10", "2026-03-02 00:00:00", 20, "2026-02-28 23:59:50"),
        (10, None, 3, 10),
    ],
)
def test_a_lookback_is_taken_from_each_kind_of_watermark(
    after: Any, newest_: Any, lookback: float, found: Any
) -> None:
    assert looked_back("sql:orders", after, newest_, lookback) == found
    assert orjson.dumps(found)


def test_a_lookback_from_a_text_is_refused() -> None:
    with pytest.raises(FailedError, match="neither a number nor a time"):
        looked_back("sql:orders", "abc", "abd", 3)

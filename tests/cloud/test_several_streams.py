"""Several streams of one processor: each has an upload of every item, sealed together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from catalogzero import CloudProcessor, FailedError, Params, Rows, Stream
from catalogzero.cloud.preview import preview_run

from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site, until

BOTH_STORES = True


class Sorted(CloudProcessor):
    """Rows by their kind, each to the stream of that name."""

    streams = (Stream("orders"), Stream("users"))

    def process(self, batches: Iterable[Rows], params: Params) -> Iterator[tuple[str, Rows]]:
        for batch in batches:
            for row in batch:
                yield str(row["kind"]), [row]


class SortedRead(Sorted):
    """The same of an own source: kinds by number, from `after` on."""

    mode = "append"
    kinds: ClassVar[list[str]] = []
    began: ClassVar[list[Any]] = []

    def read(
        self, data_source: str, params: Params, after: int | None = None
    ) -> Generator[Rows, None, int]:
        """The kinds behind `after`."""
        self.began.append(after)
        first = after or 0
        for number, kind in enumerate(self.kinds[first:], first + 1):
            yield [{"n": number, "kind": kind}]
        return len(self.kinds)


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


def streams(backend: ReferenceBackend) -> dict[str, list[Any]]:
    """The visible rows' numbers or names, by stream."""
    found: dict[str, list[Any]] = {}
    for uploads in backend.visible.values():
        for upload in (backend.uploads[upload_id] for upload_id in uploads):
            rows = [row for seq in sorted(upload.chunks) for row in upload.chunks[seq]]
            found.setdefault(upload.body["stream"], []).extend(row["n"] for row in rows)
    return found


async def test_each_stream_has_an_upload_of_every_item_also_an_empty_one(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path, author=Sorted) as site:
        site.write("a.csv", "kind,n\norders,1\nusers,2\norders,3\n")
        site.write("b.csv", "kind,n\nusers,4\n")
        result = await site.run()
        again = await site.run()
        site.write("b.csv", "kind,n\norders,5\n")
        changed = await site.run()

    assert (result["uploads"], result["records"]) == (4, 4)
    assert (again["status"], again["skipped"], again["uploads"]) == ("unchanged", 2, 0)
    assert (changed["uploads"], changed["skipped"]) == (2, 1)
    found = {name: sorted(rows) for name, rows in streams(backend).items()}
    assert found == {"orders": ["1", "3", "5"], "users": ["2"]}
    bodies = [one.body for one in backend.uploads.values()]
    assert {(body["source"], body["stream"]) for body in bodies} == {
        (f"exports/{name}.csv", stream) for name in "ab" for stream in ("orders", "users")
    }
    assert len({body["source_key"] for body in bodies}) == 4


async def test_a_stream_that_is_not_declared_or_not_named_fails_the_item(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    class Unnamed(Sorted):
        def process(self, batches: Iterable[Rows], params: Params) -> Iterator[Any]:
            yield from batches

    for author, words in (
        (Sorted, "rows of stream 'lines'; declared are: orders, users"),
        (Unnamed, 'write `yield "orders", rows`'),
    ):
        async with Site(backend.url, tmp_path, author=author) as site:
            site.write("a.csv", "kind,n\norders,1\nlines,2\n")
            with pytest.raises(FailedError, match=words):
                await site.run()
            assert site.outbox.store.totals().uploads == 0
    assert not backend.rows()


async def test_one_stream_may_be_named_or_not(backend: ReferenceBackend, tmp_path: Path) -> None:
    class One(Sorted):
        streams = (Stream("orders"),)  # type: ignore[assignment]  # fewer than the base's

        def process(self, batches: Iterable[Rows], params: Params) -> Iterator[Any]:
            for batch in batches:
                yield batch[:1]
                yield "orders", batch[1:]

    async with Site(backend.url, tmp_path, author=One) as site:
        site.write("a.csv", "kind,n\norders,1\norders,2\n")
        await site.run()
    assert streams(backend) == {"orders": ["1", "2"]}


async def test_what_one_stream_lost_is_sent_again_and_the_other_is_not(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path, author=Sorted) as site:
        site.write("a.csv", "kind,n\norders,1\nusers,2\n")
        first = await site.run()
        stored = [site.outbox.store.upload(upload_id) for upload_id in first["upload_ids"]]
        [orders] = [upload.upload_id for upload in stored if upload.stream == "orders"]
        [(key,)] = site.outbox.store.find("sources", "source_key", upload_id=orders)
        site.outbox.store.set_source(key, upload_id=None, upload_key=None, stamp=None)
        again = await site.run()
        assert again["uploads"] == 1
        assert site.outbox.store.upload(again["upload_ids"][0]).stream == "orders"


async def test_streams_that_stand_at_other_positions_are_read_from_their_own(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    """As after a backend that was restored, which has the upload of one of them."""
    SortedRead.began.clear()
    async with Site(backend.url, tmp_path, author=SortedRead) as site:
        SortedRead.kinds = ["orders", "users"]
        await site.run("api")
        SortedRead.kinds += ["orders"]
        snapshot = backend.snapshot()
        await site.run("api")
        users = next(
            body["source_key"]
            for body in (one.body for one in backend.uploads.values())
            if body["stream"] == "users"
        )
        kept = (backend.high[users], backend.watermark[users], backend.visible[users])
        uploads = {key: backend.uploads[key] for key in backend.visible[users]}
        backend.restore(snapshot)
        backend.high[users], backend.watermark[users], backend.visible[users] = kept
        backend.uploads.update(uploads)
    SortedRead.kinds += ["users", "orders"]
    async with Site(backend.url, tmp_path, author=SortedRead) as site:
        SortedRead.began.clear()
        await site.run("api")
        await site.run("api")
        result = await site.run("api")

    assert result["status"] == "unchanged"
    assert {name: sorted(rows) for name, rows in streams(backend).items()} == {
        "orders": [1, 3, 5],
        "users": [2, 4],
    }


async def test_a_refused_range_holds_its_own_stream_alone(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    SortedRead.kinds = ["orders", "users"]
    async with Site(backend.url, tmp_path, author=SortedRead) as site:
        await site.run("api")
        SortedRead.kinds = [*SortedRead.kinds, "orders", "users"]
        site.engine.sender.hold()
        running = asyncio.create_task(site.run("api"))
        await until(lambda: len(site.outbox.store.uploads(("sealed",))) == 2)
        sealed = {one.stream: one.upload_id for one in site.outbox.store.uploads(("sealed",))}
        orders = sealed["orders"]
        site.outbox.die(orders, {"reason": "422"})
        await site.engine.sender.go()
        assert (await running)["status"] == "rejected"
        SortedRead.kinds = [*SortedRead.kinds, "orders", "users"]
        held = await site.run("api")
        assert (held["status"], "--skip" in held["error"]) == ("rejected", True)
        assert streams(backend)["users"] == [2, 4, 6]
        site.outbox.skip(orders)
        site.engine.sender.wake()
        await site.run("api")
    assert streams(backend) == {"orders": [1, 5], "users": [2, 4, 6]}


async def test_a_preview_shows_the_uploads_of_each_stream(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    site = Site(backend.url, tmp_path, author=Sorted)
    path = site.write("a.csv", "kind,n\norders,1\nusers,2\n")
    shown = preview_run(site.author, str(path), {})
    assert shown.result["uploads"] == 2
    assert [one.method for one in shown.requests] == ["PUT", "POST", "PUT", "POST"]
    assert not backend.rows()


async def test_the_simple_form_takes_one_stream_alone(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path, author=Sorted, upload_form="simple") as site:
        site.write("a.csv", "kind,n\norders,1\nusers,2\n")
        result = await site.run()
    assert result["status"] == "rejected"
    assert "says neither a stream nor a key" in result["error"]

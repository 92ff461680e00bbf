"""Runs over a tap: what is sealed where it ends badly, and what is refused before it is started."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from catalogzero import BadParamsError, ConfigError, Stream
from catalogzero.cloud.preview import preview_run
from catalogzero.errors import CatalogZeroError, FailedError

from tests.cloud.processors import Plain
from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site, until
from tests.cloud.taps import NAME, FaultyTap, entry, record, schema, state


class SmallBatches(Plain):
    """A range ends at the first STATE behind two rows."""

    batch_rows = 2


class AllAsOne(Plain):
    """One upload for a run."""

    unit = "run"


class Crossing(Plain):
    """Sends the rows of one stream as those of another."""

    streams = (Stream("orders", key=("id",)), Stream("countries"))

    def process(self, batches: Any, params: Any) -> Any:
        for batch in batches:
            yield "countries", batch


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


@pytest.fixture
def tap(tmp_path: Path) -> FaultyTap:
    return FaultyTap(tmp_path, entry("orders"), entry("countries", "FULL_TABLE"))


def ids(backend: ReferenceBackend) -> dict[str, list[Any]]:
    """The ids that are visible, by stream."""
    found: dict[str, list[Any]] = {}
    for uploads in backend.visible.values():
        for upload_id in uploads:
            upload = backend.uploads[upload_id]
            rows = [row["id"] for seq in sorted(upload.chunks) for row in upload.chunks[seq]]
            found.setdefault(upload.body["stream"], []).extend(rows)
    return found


def completed(backend: ReferenceBackend) -> list[dict[str, Any]]:
    """What completed the uploads."""
    return [json.loads(body) for _, path, body in backend.bodies if path.endswith("/complete")]


async def test_a_tap_that_dies_leaves_what_came_before_its_checkpoint_and_is_read_on(
    tap: FaultyTap, backend: ReferenceBackend, tmp_path: Path
) -> None:
    spoken, first = (schema("orders"), schema("countries")), [record("orders", n) for n in (1, 2)]
    countries = [record("countries", n) for n in ("de", "fr")]
    tap.does(
        *(*spoken, *first, state(orders="b"), record("orders", 3), *countries),
        *({"error": "quota: pass-word-of-tap\n"}, {"exit": 1}),
    )
    config = json.loads(tap.config_file.read_text())
    tap.config_file.write_text(json.dumps({**config, "password": "pass-word-of-tap"}))
    taps = {"crm": tap.config}
    async with Site(backend.url, tmp_path, author=SmallBatches, taps=taps) as site:
        with pytest.raises(FailedError, match="the tap ended with status 1") as caught:
            await site.run(NAME)
        await until(lambda: ids(backend) == {"orders": [1, 2]})
        tap.does(*spoken, record("orders", 2), record("orders", 3), state(orders="c"), *countries)
        second = await site.run(NAME)
        given = tap.seen["state"]
        third = await site.run(NAME)

    assert "quota: **********" in caught.value.message
    assert "pass-word-of-tap" not in f"{caught.value.details}"
    assert given == {"bookmarks": {"orders": "b"}}
    assert (second["status"], third["status"]) == ("uploaded", "unchanged")
    assert ids(backend) == {"orders": [1, 2, 2, 3], "countries": ["de", "fr"]}
    assert {one["stream"]: (one["mode"], one.get("key")) for one in completed(backend)} == {
        "orders": ("merge", ["id"]),
        "countries": ("replace", None),
    }


async def test_a_full_run_reads_from_the_beginning_and_seals_no_part(
    tap: FaultyTap, backend: ReferenceBackend, tmp_path: Path
) -> None:
    rows = [one for n in range(1, 7) for one in (record("orders", n), state(orders=n))]
    tap.does(schema("orders"), schema("countries"), *rows)
    async with Site(backend.url, tmp_path, author=SmallBatches, taps={"crm": tap.config}) as site:
        parts = (await site.run(NAME))["uploads"]
        whole = (await site.run(NAME, full=True))["uploads"]

    assert (parts, whole) == (4, 2)
    assert tap.seen["state"] is None
    assert ids(backend) == {"orders": [1, 2, 3, 4, 5, 6], "countries": []}


async def test_a_log_of_changes_names_its_tombstones(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    tap = FaultyTap(tmp_path, entry("orders", "LOG_BASED"))
    gone = record("orders", 1, _sdc_deleted_at="2026-01-01")
    tap.does(schema("orders"), record("orders", 1), gone, state(orders={"lsn": 7}))
    async with Site(backend.url, tmp_path, taps={"crm": tap.config}) as site:
        await site.run(NAME)

    (sent,) = completed(backend)
    assert (sent["mode"], sent["key"], sent["tombstone"]) == ("merge", ["id"], "_sdc_deleted_at")


@pytest.mark.parametrize(
    ("source", "author", "egress", "text"),
    [
        ("singer:shop", Plain, {}, "no tap 'shop' in the config's taps; there are: crm"),
        (NAME, AllAsOne, {}, 'take unit = "run" out'),
        (NAME, Plain, {"drop": ["at"]}, "keeps back the replication key 'at' of stream 'orders'"),
        (NAME, Plain, {"hash": ["AT"]}, "keeps back the replication key 'at'"),
        (NAME, Plain, {"drop": ["id"]}, "keeps back 'id', of the key of 'orders'"),
    ],
)
async def test_what_is_refused_starts_no_tap(
    tap: FaultyTap,
    tmp_path: Path,
    source: str,
    author: type[Plain],
    egress: dict[str, Any],
    text: str,
) -> None:
    tap.does()
    runtime = {"egress": egress}
    taps = {"crm": tap.config}
    async with Site("http://127.0.0.1:9", tmp_path, author=author, runtime=runtime, taps=taps) as s:
        with pytest.raises(BadParamsError, match=text):
            await s.run(source)

    assert not tap.seen_file.exists()


async def test_rows_of_a_stream_go_to_no_other_one(tap: FaultyTap, tmp_path: Path) -> None:
    tap.does(schema("orders"), schema("countries"), record("orders", 1), state(orders=1))
    taps = {"crm": tap.config}
    async with Site("http://127.0.0.1:9", tmp_path, author=Crossing, taps=taps) as site:
        with pytest.raises(CatalogZeroError, match="'countries' for rows of 'orders'"):
            await site.run(NAME)


async def test_a_preview_ends_a_tap_that_would_go_on(tap: FaultyTap, tmp_path: Path) -> None:
    rows = {"times": 50, "each": record("orders", "N")}
    tap.does(schema("orders"), schema("countries"), rows, {"silent": True})
    site = Site("http://127.0.0.1:9", tmp_path, author=SmallBatches, taps={"crm": tap.config})

    seen = await asyncio.to_thread(preview_run, site.author, NAME, {}, limit=4)

    assert seen.is_cut
    assert seen.result["records"] == 4


def test_a_command_is_an_absolute_path_and_a_processor_needs_a_source(tmp_path: Path) -> None:
    given = {"endpoint": "https://backend.example", "api_key": "key"}

    Plain(**given, taps={"crm": {"command": "/opt/tap/bin/tap"}})
    with pytest.raises(ConfigError, match="absolute path, without arguments"):
        Plain(**given, taps={"crm": {"command": "tap-crm --verbose"}})
    with pytest.raises(ConfigError, match="or sources or taps"):
        Plain(**given)

"""`catalogzero backend export`: what stands in the lake, and what others read there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import duckdb
import obstore
import pyarrow.parquet as pq
import pytest
from catalogzero.backend import export, feed, generations
from catalogzero.backend.removal import Target, remove
from catalogzero.backend.store import BackendDatabase
from catalogzero.clock import SystemClock
from moto.server import ThreadedMotoServer

from tests.backend.peer import Peer, serve_peer
from tests.backend.test_command import COMMAND, Done, run
from tests.house.test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "how-to" / "get-at-the-rows.md"


KILLED = """
import asyncio, os, signal, sys
from catalogzero.backend.export import Lake, open_lake
from catalogzero.backend.store import BackendDatabase

place, lake, database = sys.argv[1:]

class Killed(Lake):
    def put(self, path, content):
        done = place == "after" and super().put(path, content)
        if path.endswith(".parquet"):
            os.kill(os.getpid(), signal.SIGKILL)
        return done

asyncio.run(Killed(BackendDatabase(database), open_lake(lake)).catch_up())
"""


@pytest.fixture
async def flights(tmp_path: Path) -> Any:
    """A backend with two uploads of one file, the first of which is hidden."""
    async with serve_peer(f"sqlite:///{tmp_path / 'backend.db'}") as peer:
        for seq, carriers in enumerate((["AA"], ["UA", "UA", "B6"]), 1):
            await peer.put(f"u{seq}", 0, *({"carrier": carrier} for carrier in carriers))
            fields = {"upload_key": f"k{seq}", "source_seq": seq, "records": len(carriers)}
            assert (await peer.complete(f"u{seq}", **fields)).status == 201
        yield peer


async def exported(*arguments: str) -> Done:
    """How `catalogzero backend export …` ended."""
    return await asyncio.to_thread(run, "export", *arguments)


def files(lake: Path) -> list[Path]:
    """The Parquet files of a lake."""
    return sorted(lake.rglob("*.parquet"))


async def test_a_folder_gets_each_upload_once(flights: Peer, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    given = ["--to", str(lake), "--database", flights.database]

    first = await exported(*given)
    again = await exported(*given, "--json")

    assert first.stdout == "2 uploads written, 1 hidden, 0 removed\n"
    assert json.loads(again.stdout) == {"written": 0, "hidden": 0, "removed": 0}
    (one, two) = files(lake)
    rows = [row for file in (one, two) for row in pq.ParquetFile(file).read().to_pylist()]
    assert sorted(row["payload"] for row in rows) == sorted(
        f'{{"carrier":"{carrier}"}}' for carrier in ("AA", "UA", "UA", "B6")
    )
    assert one.relative_to(lake).parts[:2] == (f"tenant={flights.name}", "stream=flights")
    assert {row["job_id"] for row in rows} == {one.stem, two.stem}


async def test_the_page_s_queries_see_what_is_visible(flights: Peer, tmp_path: Path) -> None:
    await exported("--to", str(tmp_path / "lake"), "--database", flights.database)
    (query, _) = [sql for sql in blocks(PAGE, "sql") if "read_parquet" in sql]
    (script,) = blocks(PAGE, "python")

    with contextlib.chdir(tmp_path):
        seen = duckdb.execute(query).fetchall()
    polars = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script), cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    told = (await polars.communicate())[0].decode()

    assert sorted(seen) == [(flights.name, "B6", 1), (flights.name, "UA", 2)]
    assert (told.count("UA"), told.count("B6"), "AA" in told) == (2, 1, False)


async def test_the_page_s_query_of_the_newest_rows_sees_updates_and_deletions(
    flights: Peer, tmp_path: Path
) -> None:
    merge = {"mode": "merge", "key": ["order_id"], "tombstone": "deleted", "stream": "orders"}
    both = [{"order_id": 1, "n": 1}, {"order_id": 2}], [{"order_id": 1, "n": 2}, {"order_id": 2}]
    both[1][1]["deleted"] = True
    for seq, rows in enumerate(both, 1):
        await flights.put(f"o{seq}", 0, *rows)
        fields = {**merge, "source_key": "orders", "upload_key": f"o{seq}", "source_seq": seq}
        chain = {"after": seq - 1 or None, "until": seq, "records": 2}
        assert (await flights.complete(f"o{seq}", **fields, **chain)).status == 201
    await exported("--to", str(tmp_path / "lake"), "--database", flights.database)
    (_, query) = [sql for sql in blocks(PAGE, "sql") if "read_parquet" in sql]

    with contextlib.chdir(tmp_path):
        seen = duckdb.execute(query).fetchall()

    assert [json.loads(payload) for (payload,) in seen] == [{"order_id": 1, "n": 2}]


@pytest.mark.parametrize("depth", [1, 2, 3], ids=["tenant", "installation", "source"])
async def test_what_an_operator_removed_is_deleted_and_named_no_more(
    flights: Peer, tmp_path: Path, depth: int
) -> None:
    lake = tmp_path / "lake"
    with closing(BackendDatabase(flights.database)) as database:
        taking = export.Lake(database, export.open_lake(str(lake)))
        await taking.catch_up()
        known = {path.stem for path in files(lake)}
        database.write_now(generations.renew)
        again = await taking.catch_up()
        target = Target(*(flights.name, "site-1", "source-1")[:depth])
        remove(database, target, SystemClock())
        last = await taking.catch_up()
        late = await export.Lake(database, export.open_lake(str(tmp_path / "other"))).catch_up()

    assert (again.written, again.hidden, last.removed) == (0, 1, 2)
    assert (files(lake), files(tmp_path / "other"), late.written) == ([], [], 0)
    for left in (lake, tmp_path / "other"):
        told = [json.loads(path.read_text()) for path in (left / "_hidden").iterdir()]
        assert {one["job_id"] for one in told} == {"", *known}
        assert not any(one.get(name) for one in told for name in (*feed.NAMES, "path"))


async def test_a_follower_takes_what_comes_and_goes_on_after_a_kill(
    flights: Peer, tmp_path: Path
) -> None:
    lake = tmp_path / "lake"
    command = [*COMMAND, "export", "--follow", "--to", str(lake), "--database", flights.database]
    for end, seq in ((signal.SIGKILL, 3), (signal.SIGTERM, 4)):
        pipe = asyncio.subprocess.PIPE
        follower = await asyncio.create_subprocess_exec(*command, stdout=pipe)
        assert follower.stdout
        if seq == 3:
            assert await follower.stdout.readline() == b"2 uploads written, 1 hidden, 0 removed\n"
        await flights.put(f"u{seq}", 0, {"carrier": "DL"})
        fields = {"upload_key": f"k{seq}", "source_seq": seq}
        assert (await flights.complete(f"u{seq}", **fields)).status == 201
        assert await follower.stdout.readline() == b"1 uploads written, 1 hidden, 0 removed\n"
        follower.send_signal(end)
        assert await follower.wait() == (0 if end is signal.SIGTERM else -signal.SIGKILL)

    assert len(files(lake)) == 4


@pytest.mark.parametrize("place", ["before", "after"])
async def test_a_run_that_was_killed_in_the_middle_writes_no_upload_again(
    flights: Peer, tmp_path: Path, place: str
) -> None:
    lake = tmp_path / "lake"
    given = (place, str(lake), flights.database)
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, *given)
    ended = await killed.wait()
    first = {file: file.stat().st_ino for file in files(lake)}

    again = await exported("--to", str(lake), "--database", flights.database, "--json")

    assert ended == -signal.SIGKILL
    assert len(first) == (place == "after")
    assert json.loads(again.stdout)["written"] == 2 - len(first)
    assert len(files(lake)) == 2
    assert {file: file.stat().st_ino for file in first} == first


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket of a server that speaks S3, which the environment names."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    session = boto3.resource("s3", endpoint_url=url)
    yield session.create_bucket(Bucket=f"lake-{uuid.uuid4().hex}")
    session.meta.client.close()
    server.stop()


async def test_an_object_store_gets_each_upload_once(flights: Peer, bucket: Any) -> None:
    lake = f"s3://{bucket.name}/rows"
    given = ["--to", lake, "--database", flights.database]

    first = await exported(*given)
    store = export.open_lake(lake)
    obstore.delete(store, export.CURSOR)
    again = await exported(*given)

    assert (first.stdout, first.returncode) == ("2 uploads written, 1 hidden, 0 removed\n", 0)
    assert again.stdout == "0 uploads written, 1 hidden, 0 removed\n"
    listed = [item.key for item in bucket.objects.all()]
    assert sum(key.endswith(".parquet") for key in listed) == 2
    assert all(key.startswith("rows/") for key in listed)


async def test_a_file_that_goes_up_in_parts_is_written_once(flights: Peer, bucket: Any) -> None:
    store = export.open_lake(f"s3://{bucket.name}/parts")
    with closing(BackendDatabase(flights.database)) as database:
        lake = export.Lake(database, store, whole_bytes=0)
        first = await lake.catch_up()
        obstore.delete(store, export.CURSOR)
        again = await lake.catch_up()

    assert (first.written, first.hidden) == (2, 1)
    assert again.written == 0


async def test_a_store_that_does_not_take_it_is_said(
    flights: Peer, bucket: Any, tmp_path: Path
) -> None:
    absent = await exported("--to", "s3://no-such-bucket/x", "--database", flights.database)
    unknown = await exported("--to", "ftp://x", "--database", flights.database)

    assert absent.returncode == 4
    assert "the store does not answer as it should" in absent.stderr
    assert unknown.returncode == 3
    assert "--to ftp://x" in unknown.stderr

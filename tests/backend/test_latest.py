"""Mode merge: `latest_records` against a plain dict, and what the backend refuses."""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import orjson
import pyarrow
import pyarrow.parquet
import pytest
from catalogzero.backend import row_keys, uploads
from catalogzero.backend.clearing import StepSize
from catalogzero.backend.decoding import ChunkLimits, seal
from catalogzero.backend.delivery import CompletedUpload
from catalogzero.backend.housekeeping import clear_hidden, retire
from catalogzero.backend.removal import Target, remove
from catalogzero.backend.store import BackendDatabase
from catalogzero.backend.tenants import add_tenant, tenant_id_of
from catalogzero.clock import SystemClock
from catalogzero.protocol.bodies import Complete
from catalogzero.protocol.judging import Judgement
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from tests.backend.peer import AT, Answer, Peer, completion, serve_peer

LIMITS = ChunkLimits(1 << 20, 100)
LONG = "100000000000000000901"
SPELLINGS = {
    "number": ["1"],
    "text": ['"1"', '"\\u0031"'],
    "fraction": ["1.0"],
    "true": ["true"],
    "long": [LONG],
    "next": [f"{LONG[:-1]}2"],
    "object": ['{"a":1,"b":[2.5]}', '{ "b" : [2.5], "a": 1 }'],
}
"""Each key, and how it may be written."""
KEPT, GONE = ["", "null", "false", "0", '"false"'], ["true", '"2026-01-01"', "1", '""', "{}"]
"""What the tombstone column holds; nothing where it is missing."""
KEYS = st.sampled_from([(name, one) for name, spelled in SPELLINGS.items() for one in spelled])
ROWS = st.lists(st.tuples(KEYS, st.sampled_from([*KEPT, *GONE])), max_size=4)
UPLOAD = st.tuples(st.lists(ROWS, max_size=3), st.booleans(), st.integers(0, 59), st.booleans())
MERGE: dict[str, Any] = {
    "mode": "merge",
    "key": ["id"],
    "tombstone": "gone",
    "source_key": "orders",
}
names = (f"merged-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def database(database_url: str) -> Iterator[BackendDatabase]:
    """A database of its own connection."""
    with closing(BackendDatabase(database_url)) as opened:
        yield opened


def applied(shown: list[list[tuple[Any, str, str]]]) -> list[str]:
    """The rows that are left where uploads are applied to a dict in their order."""
    table: dict[str, str] = {}
    for upload in shown:
        for (name, _), mark, payload in upload:
            table.pop(name, None)
            if mark in KEPT:
                table[name] = payload
    return sorted(table.values())


@settings(max_examples=40, deadline=None)
@given(plan=st.lists(UPLOAD, min_size=1, max_size=6), before=st.integers(0, 60))
def test_the_view_is_a_dict_to_which_the_rows_were_applied_in_order(
    database: BackendDatabase, plan: list[Any], before: int
) -> None:
    tenant, numbers = next(names), itertools.count()
    database.write_now(lambda c: add_tenant(c, tenant, AT))
    own = database.read_now(lambda c: tenant_id_of(c, tenant))
    stream, until = f"of-{tenant}", None
    shown: list[tuple[str, list[Any]]] = []

    def write(work: Callable[..., Any], *given: Any) -> Any:
        return database.write_now(lambda connection: work(connection, *given))

    def seen(view: str) -> list[str]:
        rows = text(f"SELECT payload FROM {view} WHERE tenant = :tenant")  # noqa: S608
        return sorted(database.read_now(lambda c: c.scalars(rows, {"tenant": tenant}).all()))

    for seq, (chunks, full, second, ahead) in enumerate(plan, 1):
        sent: list[Any] = []
        for number, chunk in enumerate(chunks):
            rows = []
            for key, mark in chunk:
                gone = f',"gone":{mark}' if mark else ""
                rows.append((key, mark, f'{{"id":{key[1]},"n":{next(numbers)}{gone}}}'))
            body = seal([row[2].encode() for row in rows], LIMITS)
            write(uploads.put_chunk, own, f"u{seq}", number, body, AT)
            sent += rows
        said = {**MERGE, "full": full, "after": until, "until": [seq], "stream": stream}
        said |= {"chunks": len(chunks), "records": len(sent), "source_seq": seq}
        claim = Complete.model_validate(completion(**said, upload_key=f"k{seq}"))
        at = f"2026-01-01T00:00:{second:02d}.000+00:00"
        if ahead:
            write(row_keys.write_ahead, own, f"u{seq}", claim, StepSize(chunks=1))
        outcome = write(uploads.complete, own, f"u{seq}", claim, at)
        assert outcome.verdict is Judgement.ACCEPTED
        until, shown = [seq], [*([] if full else shown), (at, sent)]

        assert seen("latest_records") == applied([rows for _, rows in shown])
        assert len(seen("visible_records")) == sum(len(rows) for _, rows in shown)

    # whatever the clock said: with an upload goes all that is older
    limit = f"2026-01-01T00:00:{before:02d}"
    due = max((place for place, (at, _) in enumerate(shown) if at < limit), default=-1)
    while write(retire, stream, limit, AT) or write(clear_hidden):
        pass
    assert seen("latest_records") == applied([rows for _, rows in shown[due + 1 :]])


async def deliver(peer: Peer, upload: str, *rows: Any, **fields: Any) -> Answer:
    """Send an upload of one chunk in mode merge."""
    data = fields.pop("data", None)
    headers = fields.pop("headers", {})
    sent = {"data": data} if data else {}
    assert (await peer.put(upload, 0, *rows, headers=headers, **sent)).status == 201
    said = {"upload_key": f"key-{upload}", "records": len(rows), **MERGE, **fields}
    return await peer.complete(upload, **said)


def latest(peer: Peer) -> list[Any]:
    """The newest row of each key."""
    rows = peer.sql("SELECT payload FROM latest_records WHERE tenant = :tenant ORDER BY payload")
    return [orjson.loads(row[0]) for row in rows]


async def test_rows_of_the_other_modes_and_of_other_sources_are_apart(peer: Peer) -> None:
    await deliver(peer, "u1", {"id": 1, "of": "a"}, until=1)
    await deliver(peer, "u2", {"id": 1, "of": "b"}, until=1, source_key="other")
    await deliver(peer, "u3", {"id": 1, "of": "c"}, until=1, installation_id="site-2")
    await peer.put("u4", 0, {"id": 1, "of": "d"})
    await peer.complete("u4", source_key="replaced")

    assert [row["of"] for row in latest(peer)] == ["a", "b", "c"]
    assert len(peer.visible()) == 4


async def test_csv_and_parquet_have_keys_as_json_lines_have(peer: Peer) -> None:
    csv = b"id,gone,n\r\n1,false,1\r\n2,,1\r\n2,true,2\r\n3,false,1\r\n"
    rows: list[Any] = [{}] * 4
    given = {"data": csv, "headers": {"Content-Type": "text/csv"}}
    first = await deliver(peer, "u1", *rows, until=1, **given)
    file = io.BytesIO()
    table = pyarrow.table({"id": ["1", "3"], "gone": [True, False], "n": [5, 6]})
    pyarrow.parquet.write_table(table, file)
    given = {"data": file.getvalue(), "headers": {"Content-Type": "application/vnd.apache.parquet"}}
    second = await deliver(peer, "u2", {}, {}, after=1, until=2, source_seq=2, **given)

    assert (first.status, second.status) == (201, 201)
    assert latest(peer) == [{"id": "3", "gone": False, "n": 6}]


@pytest.mark.parametrize("row", [{"of": 1}, {"id": None}, {"id": [[[]] * 2] * 2, "at": None}])
async def test_a_row_without_its_key_is_named_and_its_upload_stays_open(
    peer: Peer, row: dict[str, Any]
) -> None:
    key = ["id", "at"] if "at" in row else ["id"]
    await peer.put("u1", 1, {"id": 1, "at": 1})
    refused = await deliver(peer, "u1", {"id": 1, "at": 1}, row, chunks=2, records=3, key=key)
    late = {**MERGE, "key": key, "chunks": 2, "records": 3}
    other = await peer.complete("u1", **late, after="another")

    assert (refused.status, refused.problem) == (422, "refused-records")
    assert (
        refused.json["detail"] == f"record 2 of chunk 0 has no value in the key column {key[-1]!r}"
    )
    assert other.json["superseded"]
    assert latest(peer) == peer.visible() == []


async def test_an_upload_that_was_refused_may_come_with_another_key(peer: Peer) -> None:
    rows = [{"id": 1, "no": 1, "n": 1}, {"id": 1, "no": 2}, {"id": 2, "no": 2}]
    refused = await deliver(peer, "u1", *rows, key=["n"])
    taken = await peer.complete("u1", **{**MERGE, "key": ["no"], "records": 3})

    assert (refused.status, taken.status) == (422, 201)
    assert latest(peer) == [{"id": 1, "no": 1, "n": 1}, {"id": 2, "no": 2}]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"key": ["id", "at"]}, 409),
        ({"tombstone": None}, 409),
        ({"tombstone": "at"}, 409),
        ({"mode": "append", "key": [], "tombstone": None}, 409),
        ({"key": ["id", "at"], "full": True}, 201),
        ({"mode": "append", "key": [], "tombstone": None, "full": True}, 201),
        ({}, 201),
    ],
)
async def test_another_mode_key_or_tombstone_needs_full(
    peer: Peer, change: dict[str, Any], status: int
) -> None:
    await deliver(peer, "u1", {"id": 1, "at": 1}, until=1)
    later = {"after": 1, "until": 2, "source_seq": 2}
    answer = await deliver(peer, "u2", {"id": 1, "at": 2}, **later, **change)

    assert answer.status == status
    assert status != 409 or answer.problem == "mode-changed"
    gone = status == 201 and change.get("mode") == "append"
    wanted = {"id": 1, "at": 2 if status == 201 else 1}
    assert latest(peer) == ([] if gone else [wanted])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"key": []}, "key"),
        ({"key": ["id", "id"]}, "key"),
        ({"key": "id"}, "key"),
        ({"key": [str(n) for n in range(17)]}, "key"),
        ({"mode": "append"}, "key"),
        ({"mode": "replace", "key": []}, "tombstone"),
        ({"tombstone": ""}, "tombstone"),
    ],
)
async def test_a_key_that_does_not_fit_is_named(
    peer: Peer, change: dict[str, Any], field: str
) -> None:
    answer = await deliver(peer, "u1", {"id": 1}, **change)

    assert (answer.status, answer.problem) == (400, "invalid-request")
    assert field in {error["field"].partition(".")[0] for error in answer.json["errors"]}


async def test_a_removed_source_leaves_no_keys_and_its_events_say_how_it_was_merged(
    peer: Peer, database: BackendDatabase
) -> None:
    own = "SELECT count(*) FROM record_keys JOIN uploads USING (upload_no)"
    own += " JOIN tenants USING (tenant_id) WHERE name = :tenant"
    await deliver(peer, "u1", {"id": 1}, until=1)
    asked = await peer.ask("GET", "/v1/events", headers={"Authorization": ""})
    [event] = [one for one in asked.json["events"] if one["tenant"] == peer.name]
    keys = peer.sql(own)
    remove(database, Target(peer.name, "site-1", "orders"), SystemClock())

    assert (event["mode"], event["source_seq"]) == ("merge", 1)
    assert (event["key"], event["tombstone"]) == (["id"], "gone")
    assert (keys, peer.sql(own)) == ([(1,)], [(0,)])
    assert latest(peer) == []


async def test_a_start_is_given_the_watermark_of_a_merge(peer: Peer) -> None:
    await peer.ask("PUT", "/v1/installations/site-1", json={"entry": "skylark"})
    await deliver(peer, "u1", {"id": 1}, until=[5, 1])
    states = (await peer.ask("GET", "/v1/installations/site-1")).json["states"]
    late = await deliver(peer, "u2", {"id": 1}, after=[4, 1], until=[6, 2], source_seq=2)

    assert states["orders"] == {
        "source_seq": 1,
        "watermark": [5, 1],
        "full_seq": 0,
        "mode": "merge",
    }
    assert (late.json["superseded"], late.json["watermark"]) == (True, [5, 1])


async def test_the_hook_is_given_the_key_and_the_tombstone(database_url: str) -> None:
    called: asyncio.Queue[CompletedUpload] = asyncio.Queue()
    async with serve_peer(database_url, hook=called.put) as peer:
        await deliver(peer, "u1", {"id": 1}, until=1)
        async with asyncio.timeout(30):
            upload = await called.get()

    assert (upload.mode, upload.key, upload.tombstone) == ("merge", ("id",), "gone")
    assert orjson.loads(upload.message())["key"] == ["id"]

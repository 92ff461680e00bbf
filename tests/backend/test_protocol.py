"""The upload protocol over HTTP, as a sender sees it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import io
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from catalogzero.backend import CompletedUpload

from tests.backend.peer import NDJSON, Peer, serve_peer

ROWS = b'{"flight": 1}\n{"flight": 2}\n'


def digest(body: bytes) -> str:
    """A Content-Digest."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


async def test_rows_are_visible_once_their_upload_is_complete(peer: Peer) -> None:
    stored = await peer.put("u1", 0, {"flight": 1})
    before = peer.visible()
    completed = await peer.complete("u1")

    assert (stored.status, before, completed.status) == (201, [], 201)
    assert completed.json["job_id"]
    assert peer.visible() == [{"flight": 1}]


async def test_a_view_names_where_each_row_came_from(peer: Peer) -> None:
    await peer.put("u1", 0, {"flight": 1})
    await peer.complete("u1")

    assert peer.sql(
        "SELECT installation_id, stream, source, upload_id, seq, payload"
        " FROM visible_records WHERE tenant = :tenant"
    ) == [("site-1", "flights", "2013.csv", "u1", 0, '{"flight":1}')]


@pytest.mark.parametrize("encoding", ["identity", "gzip", "zstd"])
async def test_a_chunk_is_the_same_in_whatever_encoding_it_comes(peer: Peer, encoding: str) -> None:
    bodies = {"gzip": gzip.compress(ROWS), "zstd": zstandard.compress(ROWS)}
    body = bodies.get(encoding, ROWS)
    headers = {"Content-Encoding": encoding, "Content-Digest": digest(body)}

    first = await peer.put("u1", 0, data=body, headers=headers)
    again = await peer.put("u1", 0, data=b'{"flight":1}\r\n\n{ "flight":2}')
    other = await peer.put("u1", 0, data=b'{"flight":1}\n{"flight":3}\n')

    assert (first.status, again.status, other.status) == (201, 200, 409)
    assert other.problem == "chunk-differs"


async def test_gzip_members_and_zstd_frames_may_follow_each_other(peer: Peer) -> None:
    lines = ROWS.splitlines(keepends=True)
    gzipped = b"".join(gzip.compress(line) for line in lines)
    zstded = b"".join(zstandard.compress(line) for line in lines)

    first = await peer.put("u1", 0, data=gzipped, headers={"Content-Encoding": "gzip"})
    again = await peer.put("u1", 0, data=zstded, headers={"Content-Encoding": "zstd"})

    assert (first.json, again.status) == ({"seq": 0, "records": 2}, 200)


async def test_csv_and_parquet_are_stored_as_rows(peer: Peer) -> None:
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2], "raw": [b"\0\1", None]}), table)

    await peer.put("u1", 0, data=b'n,name\r\n1,"a, b"\r\n', headers={"Content-Type": "text/csv"})
    await peer.put(
        "u1",
        1,
        data=table.getvalue(),
        headers={"Content-Type": "application/vnd.apache.parquet"},
    )
    await peer.complete("u1", chunks=2, records=3)

    assert peer.visible() == [
        {"n": "1", "name": "a, b"},
        {"n": 1, "raw": "AAE="},
        {"n": 2, "raw": None},
    ]


async def test_text_that_copy_would_misread_is_kept(peer: Peer) -> None:
    record = {"path": "C:\\new\\t", "nul": "\0", "line": "a\nb", "sep": "\u2028"}

    await peer.put("u1", 0, data=b'{"x":\t1,\r"y": "\\\\."}\n', headers=NDJSON)
    await peer.put("u1", 1, record)
    await peer.complete("u1", chunks=2, records=2)

    assert peer.visible() == [{"x": 1, "y": "\\."}, record]


async def test_a_body_that_is_not_the_digested_one_is_refused(peer: Peer) -> None:
    answer = await peer.put("u1", 0, data=ROWS, headers={"Content-Digest": digest(b"other")})

    assert (answer.status, answer.problem) == (400, "digest-mismatch")
    assert (await peer.ask("GET", "/v1/uploads/u1")).status == 404


@pytest.mark.parametrize(
    ("headers", "body", "status", "problem"),
    [
        ({"Content-Encoding": "br"}, ROWS, 415, "unsupported-media-type"),
        ({"Content-Type": "application/xml"}, ROWS, 415, "unsupported-media-type"),
        ({"Content-Encoding": "gzip"}, ROWS, 400, "undecodable-body"),
        ({"Content-Encoding": "gzip"}, gzip.compress(ROWS, mtime=0)[:-9], 400, "undecodable-body"),
        ({"Content-Encoding": "zstd"}, zstandard.compress(ROWS)[:-3], 400, "undecodable-body"),
        ({"Content-Digest": "sha-256=nonsense"}, ROWS, 400, "invalid-request"),
        ({}, b'{"a":1}\n[]\n', 422, "refused-records"),
        ({}, b'{"a":1}\n{"a":\n', 422, "refused-records"),
        ({}, b'{"a":NaN}\n', 422, "refused-records"),
        ({}, b'{"a":"\xff"}\n', 422, "refused-records"),
        ({}, b'{"a":' * 5_000, 422, "refused-records"),
        ({"Content-Type": "text/csv"}, b"a,b\n1\n", 422, "refused-records"),
        (
            {"Content-Type": "application/vnd.apache.parquet"},
            b"PAR1 no",
            422,
            "refused-records",
        ),
    ],
)
async def test_a_chunk_that_cannot_be_read_is_refused_with_its_reason(
    peer: Peer, headers: dict[str, str], body: bytes, status: int, problem: str
) -> None:
    answer = await peer.put("u1", 0, data=body, headers=headers)

    assert (answer.status, answer.problem) == (status, problem)
    assert answer.headers["Content-Type"].startswith("application/problem+json")


async def test_limits_hold_before_and_after_decompression(database_url: str) -> None:
    limits = {"max_body_bytes": 2_000, "max_decoded_bytes": 10_000, "max_chunk_records": 50}
    line = b'{"a":"%s"}\n' % (b"x" * 200)
    async with serve_peer(database_url, **limits) as peer:
        answers = [
            await peer.put("u1", 0, data=line * 20),
            await peer.put(
                "u1", 0, data=gzip.compress(line * 90), headers={"Content-Encoding": "gzip"}
            ),
            await peer.put(
                "u1", 0, data=zstandard.compress(line * 90), headers={"Content-Encoding": "zstd"}
            ),
            await peer.put("u1", 0, data=b"{}\n" * 51),
        ]

        assert [(answer.status, answer.problem) for answer in answers] == [(413, "too-large")] * 4
        assert (await peer.ask("GET", "/v1/uploads/u1")).status == 404


async def test_complete_names_the_chunks_that_are_missing(peer: Peer) -> None:
    await peer.put("u1", 1, {"a": 1})

    answer = await peer.complete("u1", chunks=3)

    assert (answer.status, answer.problem) == (409, "chunks-missing")
    assert answer.json["missing"] == [0, 2]
    assert (await peer.ask("GET", "/v1/uploads/u1")).json["chunks"] == [1]


async def test_complete_with_other_totals_than_stored_is_refused(peer: Peer) -> None:
    await peer.put("u1", 0, {"a": 1})
    await peer.put("u1", 1, {"a": 2})

    answer = await peer.complete("u1", chunks=1, records=1)

    assert (answer.status, answer.problem) == (422, "totals-differ")
    assert peer.visible() == []


async def test_an_upload_without_chunks_makes_a_source_empty(peer: Peer) -> None:
    await peer.put("u1", 0, {"a": 1})
    await peer.complete("u1")

    answer = await peer.complete("u2", upload_key="key-2", source_seq=2, chunks=0, records=0)

    assert (answer.status, peer.visible()) == (201, [])


async def test_a_finished_upload_takes_no_chunk_and_repeats_its_answer(peer: Peer) -> None:
    await peer.put("u1", 0, {"a": 1})
    first = await peer.complete("u1")

    late = await peer.put("u1", 0, {"a": 1})
    again = await peer.complete("u1", chunks=7)

    assert (late.status, late.problem) == (410, "upload-finished")
    known = {"duplicate": True, "by": "upload_id", "source_seq": 1, "number": 2}
    assert (again.status, again.json) == (200, {**first.json, **known})


async def test_another_attempt_under_the_same_key_is_never_seen_beside_the_first(
    peer: Peer,
) -> None:
    await peer.put("u1", 0, {"a": 1})
    first = await peer.complete("u1")
    await peer.put("u2", 0, {"a": 1})

    second = await peer.complete("u2", source_seq=9)
    registered = await peer.ask("PUT", "/v1/installations/site-1", json={"entry": "skylark"})

    known = {"duplicate": True, "by": "upload_key", "source_seq": 9, "number": 2}
    assert second.json == {**first.json, **known}
    assert peer.visible() == [{"a": 1}]
    assert registered.json == {"sources": {"source-1": 9}}


async def test_content_that_comes_back_is_seen_again(peer: Peer) -> None:
    for seq, (upload, key) in enumerate([("u1", "a"), ("u2", "b"), ("u3", "a")], 1):
        await peer.put(upload, 0, {"content": key})
        answer = await peer.complete(upload, upload_key=key, source_seq=seq)
        assert answer.status == 201

    assert peer.visible() == [{"content": "a"}]


async def test_a_late_older_upload_is_superseded_and_reports_the_highest_number(
    peer: Peer,
) -> None:
    await peer.put("u2", 0, {"a": 2})
    await peer.complete("u2", upload_key="key-2", source_seq=20)

    late = await peer.complete("u1", source_seq=20)
    again = await peer.complete("u1", source_seq=30)

    assert late.json == again.json == {"superseded": True, "source_seq": 20}
    assert peer.visible() == [{"a": 2}]


async def test_appends_follow_each_other_along_the_watermark(peer: Peer) -> None:
    append = {"mode": "append", "source_key": "orders"}
    for upload in ("u1", "u2", "u3"):
        await peer.put(upload, 0, {"upload": upload})

    first = await peer.complete("u1", **append, upload_key="0-5", until={"id": 5})
    gap = await peer.complete("u3", **append, upload_key="9-", source_seq=3, after=9, until=12)
    second = await peer.complete(
        "u2", **append, upload_key="5-9", source_seq=2, after={"id": 5}, until=9
    )

    assert (first.status, second.status) == (201, 201)
    assert gap.json == {"superseded": True, "source_seq": 1, "watermark": {"id": 5}}
    assert peer.visible() == [{"upload": "u1"}, {"upload": "u2"}]


async def test_a_full_upload_replaces_every_earlier_append(peer: Peer) -> None:
    append = {"mode": "append", "source_key": "orders"}
    for upload in ("u1", "u2", "u3"):
        await peer.put(upload, 0, {"upload": upload})
    await peer.complete("u1", **append, upload_key="0-5", until=5)

    low = await peer.complete("u2", **append, upload_key="0-9", source_seq=1, full=True, until=9)
    high = await peer.complete("u3", **append, upload_key="0-9", source_seq=2, full=True, until=9)

    assert low.json == {"superseded": True, "source_seq": 1, "watermark": 5}
    assert (high.status, peer.visible()) == (201, [{"upload": "u3"}])


async def test_tenants_and_installations_do_not_meet(database_url: str) -> None:
    async with serve_peer(database_url) as one, serve_peer(database_url) as other:
        for peer in (one, other):
            await peer.put("u1", 0, {"a": 1})
            assert (await peer.complete("u1")).status == 201
        await one.put("u2", 0, {"a": 1})
        beside = await one.complete("u2", installation_id="site-2")

        assert beside.status == 201
        assert (len(one.visible()), len(other.visible())) == (2, 1)
        assert (await other.ask("GET", "/v1/uploads/u2")).status == 404


@pytest.mark.parametrize(
    "key", ["", "Bearer ", "Bearer czk_0123456789ab_" + "x" * 43, "Basic abc", "Bearer Ünï"]
)
async def test_without_a_valid_key_nothing_is_answered(peer: Peer, key: str) -> None:
    answer = await peer.ask("GET", "/v1/uploads/u1", headers={"Authorization": key})

    assert (answer.status, answer.problem) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_another_key_s_secret_opens_nothing(peer: Peer) -> None:
    forged = peer.key[:-4] + ("AAAA" if not peer.key.endswith("AAAA") else "BBBB")

    assert (await peer.ask("GET", "/v1/uploads/u1")).status == 404
    answer = await peer.ask("GET", "/v1/uploads/u1", headers={"Authorization": f"Bearer {forged}"})

    assert answer.status == 401


async def test_keys_are_stored_as_hashes(peer: Peer) -> None:
    dump = str(peer.sql("SELECT * FROM tenant_keys"))

    assert peer.key not in dump
    assert peer.key.split("_", 2)[2] not in dump


@pytest.mark.parametrize(
    "fields",
    [
        {"source_seq": 0},
        {"source_seq": "1"},
        {"source_seq": 2**63},
        {"mode": "sum"},
        {"chunks": -1},
        {"chunks": 10**9},
        {"upload_key": ""},
        {"source_key": "a\0b"},
        {"after": "x" * 5_000},
        {"params": {"x": "y" * 70_000}},
        {"installation_id": None},
    ],
)
async def test_a_complete_that_does_not_fit_names_the_field(
    peer: Peer, fields: dict[str, Any]
) -> None:
    answer = await peer.complete("u1", **fields)

    assert (answer.status, answer.problem) == (400, "invalid-request")
    assert [fault["field"] for fault in answer.json["errors"]] == list(fields)


async def test_strange_paths_are_refused(peer: Peer) -> None:
    answers = [
        await peer.put("a%2Fb", 0, {"a": 1}),
        await peer.put("u" * 129, 0, {"a": 1}),
        await peer.put("u1", 1_000_000, {"a": 1}),
        await peer.ask("PUT", "/v1/uploads/u1/chunks/-1"),
        await peer.ask("PUT", "/v1/uploads/u1/chunks/²"),
        await peer.ask("DELETE", "/v1/uploads/u1"),
        await peer.ask("GET", "/v2"),
    ]

    assert [answer.status for answer in answers] == [400, 400, 400, 400, 400, 405, 404]


async def test_the_simple_form_is_once_per_key(peer: Peer) -> None:
    async def post(records: Any, key: str) -> Any:
        return await peer.ask("POST", "/v1", json=records, headers={"Idempotency-Key": key})

    first = await post([{"a": 1}, {"a": 2}], "key:1")
    again = await post([{"a": 1}, {"a": 2}], "key:1")
    other = await post([{"a": 1}], "key:1")
    more = await post([{"a": 3}], "key:2")

    assert (first.status, more.status) == (201, 201)
    assert (again.status, again.json) == (200, {**first.json, "duplicate": True})
    assert (other.status, other.problem) == (422, "idempotency-key-reused")
    assert sorted(row["a"] for row in peer.visible()) == [1, 2, 3]


async def test_the_seed_s_own_post_works(peer: Peer) -> None:
    answer = await peer.ask("POST", "/v1", json=[{"a": 1}])

    assert answer.status == 201
    assert answer.json["job_id"]


@pytest.mark.parametrize(("body", "status"), [({"a": 1}, 400), ([1], 422), ("text", 400), (7, 400)])
async def test_the_simple_form_takes_an_array_of_objects(
    peer: Peer, body: Any, status: int
) -> None:
    assert (await peer.ask("POST", "/v1", json=body)).status == status


async def test_an_installation_registers_and_learns_its_sources(peer: Peer) -> None:
    about = {"entry": "skylark", "version": "2.0", "host": {"os": "linux"}, "methods": ["read"]}

    first = await peer.ask("PUT", "/v1/installations/site-1", json=about)
    await peer.complete("u1", chunks=0, records=0, source_seq=7)
    again = await peer.ask("PUT", "/v1/installations/site-1", json=about)

    assert (first.status, first.json) == (201, {"sources": {}})
    assert (again.status, again.json) == (200, {"sources": {"source-1": 7}})


async def test_the_hook_is_given_each_completed_upload_with_its_records(
    database_url: str,
) -> None:
    given: list[tuple[str, list[Any]]] = []
    tries: list[str] = []
    done = asyncio.Event()

    async def hook(upload: CompletedUpload) -> None:
        tries.append(upload.upload_id)
        if len(tries) == 1:
            raise RuntimeError("the vendor's own fault")
        given.append((upload.upload_id, [record async for record in upload.records()]))
        if len(given) == 2:
            done.set()

    async with serve_peer(database_url, hook=hook) as peer:
        await peer.put("u1", 0, {"a": 1})
        await peer.complete("u1")
        await peer.put("u2", 0, {"a": 2})
        await peer.complete("u2", upload_key="key-2", source_key="source-2")
        await asyncio.wait_for(done.wait(), 20)

    assert sorted(given) == [("u1", [{"a": 1}]), ("u2", [{"a": 2}])]
    assert sorted(tries) == ["u1", "u1", "u2"]


async def test_a_connection_cut_in_mid_body_is_no_fault_of_the_backend(
    peer: Peer, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    host, _, port = peer.url.removeprefix("http://").partition(":")
    head = (
        f"PUT /v1/uploads/cut/chunks/0 HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n"
        f"Content-Type: application/x-ndjson\r\nAuthorization: Bearer {peer.key}\r\n\r\n"
    )
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.encode() + b'{"id": 1}\n')
    await writer.drain()
    assert (await peer.put("whole", 0, {"id": 1})).status == 201
    writer.close()
    await writer.wait_closed()

    assert (await peer.put("whole", 1, {"id": 2})).status == 201
    assert (await peer.ask("GET", "/v1/uploads/cut")).status == 404
    told = capsys.readouterr()
    assert "request_failed" not in told.out + told.err + caplog.text

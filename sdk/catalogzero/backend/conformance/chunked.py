"""The checks of the chunked form: each docstring says what goes wrong without it.

Every coroutine function here is one; it raises `NotConformingError`, or notes a doubt.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Any

from catalogzero.backend.conformance.probe import (
    Probe,
    Record,
    expect,
    expect_fields,
    expect_job,
    expect_missing,
    expect_refused,
    gzip_bomb,
    require,
    stepped_bomb,
)
from catalogzero.protocol.bodies import AS_JSON, CSV, PARQUET
from catalogzero.protocol.problems import PROBLEM_MEDIA_TYPE
from catalogzero.wire.messages import JsonObject

A, B, C = {"row": "a"}, {"row": "b"}, {"row": "c"}
ROWS, CHUNKS, AT_ONCE = 3_000, 130, 5
LONG = "100000000000000000901"
NESTED = b'{"params":' + b"[" * 50_000


async def keys_are_checked(probe: Probe) -> None:
    """Anyone could write into a client's data, or read what arrived."""
    own, upload = probe.means.key, probe.upload("u")
    for key in ("", "not-a-key", own[:-1], own[: len(own) // 2], own + "x", own[:-1] + "~"):
        expect_refused(await probe.put(upload, 0, [A], key=key), 401, 403)
    expect(await probe.put(upload, 0, [A]), 201)
    about = {"entry": "verify"}
    for answer in (
        await probe.complete(upload, bearer="not-a-key"),
        await probe.ask("GET", "uploads", upload, key="not-a-key"),
        await probe.ask("PUT", "installations", probe.run, json=about, key="not-a-key"),
    ):
        expect_refused(answer, 401, 403)


async def a_chunk_is_stored_once(probe: Probe) -> None:
    """A chunk whose answer was lost comes again: it must neither fail nor be stored twice."""
    upload = probe.upload("u")
    expect(await probe.put(upload, 0, [A]), 201)
    again = await probe.put(upload, 0, [A])
    expect(again, 200, 201)
    if again.status_code == 201:
        probe.doubt("a repeated chunk is answered 201 as if it were new; the protocol says 200")


async def other_records_under_a_number_are_refused(probe: Probe) -> None:
    """Records could be exchanged after they were stored."""
    upload = probe.upload("u")
    expect(await probe.put(upload, 0, [A]), 201)
    expect_refused(await probe.put(upload, 0, [B]), 409)


async def encodings_are_read_or_refused_with_415(probe: Probe) -> None:
    """A client sends zstd, then gzip, then plain: any other answer than 415 stops it."""
    upload = probe.upload("u")
    expect(await probe.put(upload, 0, [A]), 201)
    for encoding in ("zstd", "gzip"):
        answer = await probe.put(upload, 0, [A], encoding=encoding)
        expect(answer, 200, 201, 415)
        if answer.status_code == 415:
            probe.doubt(f"{encoding} is not read: clients send more bytes")


async def a_damaged_body_is_refused(probe: Probe) -> None:
    """Rows that were damaged on the way would be stored."""
    wrong = {"Content-Digest": "sha-256=:" + "A" * 43 + "=:"}
    answer = await probe.put(probe.upload("u"), 0, [A], headers=wrong)
    if answer.is_success:
        probe.doubt("Content-Digest is not checked")
        return
    expect_refused(answer)


async def a_body_that_is_no_gzip_is_refused(probe: Probe) -> None:
    """A server error is tried again for ever."""
    packed = {"Content-Encoding": "gzip"}
    answer = await probe.put(probe.upload("u"), 0, [], content=b"\x1f\x8bno", headers=packed)
    expect_refused(answer)


async def records_that_cannot_be_read_are_refused(probe: Probe) -> None:
    """Half a record would be stored, or the client would try again for ever."""
    for line in (b'{"row":', b'{"row":NaN}', b"[1]", b'"a"', b"null", b'{"row":"\xff"}', b"{} {}"):
        answer = await probe.put(probe.upload("u"), 0, [], content=b'{"row":1}\n' + line)
        expect_refused(answer)


async def a_bomb_is_refused(probe: Probe) -> None:
    """One small request could fill the backend's memory."""
    packed = {"Content-Encoding": "gzip"}
    for make in (gzip_bomb, stepped_bomb):
        bomb = await asyncio.to_thread(make)
        answer = await probe.put(probe.upload("u"), 0, [], content=bomb, headers=packed)
        if answer.is_success:
            probe.doubt("a body of 256 MiB once decompressed was accepted: set a limit (413)")
            return
        expect_refused(answer, 413, 415)


async def what_is_stored_can_be_asked(probe: Probe) -> None:
    """Operators and clients could not see what has arrived."""
    upload = probe.upload("u")
    expect(await probe.put(upload, 2, [A]), 201)
    expect_fields(await probe.ask("GET", "uploads", upload), chunks=[2])
    expect_refused(await probe.ask("GET", "uploads", probe.upload("never")), 404)


async def complete_names_the_missing_chunks(probe: Probe) -> None:
    """A client would not know what to send again, and part of an upload would be seen."""
    upload = probe.upload("u")
    expect(await probe.put(upload, 1, [A]), 201)
    expect_missing(await probe.complete(upload, chunks=3, records=3), [0, 2])
    expect_missing(await probe.complete(probe.upload("none"), chunks=2), [0, 1])
    expect(await probe.put(upload, 0, [B]), 201)
    expect(await probe.put(upload, 2, [C]), 201)
    expect_job(await probe.complete(upload, chunks=3, records=3))


async def complete_may_come_again(probe: Probe) -> None:
    """An answer that was lost is asked for again: rows twice, or an upload that never ends."""
    job_id = expect_job(await probe.deliver("u", [A]))
    again = await probe.complete(probe.upload("u"))
    expect_fields(again, duplicate=True, job_id=job_id)


async def a_finished_upload_is_answered_before_its_chunks(probe: Probe) -> None:
    """A late complete would be answered that chunks are missing, and send them for ever."""
    expect_job(await probe.deliver("u", [A]))
    expect_fields(await probe.complete(probe.upload("u"), chunks=9), duplicate=True)
    expect_refused(await probe.put(probe.upload("u"), 0, [A]), 410)


async def an_empty_upload_is_valid(probe: Probe) -> None:
    """A source that became empty would keep its old rows."""
    expect_job(await probe.deliver("u1", [A]))
    fields = {"upload_key": probe.upload("k2"), "source_seq": 2_000, "chunks": 0, "records": 0}
    expect_job(await probe.complete(probe.upload("u2"), **fields))


async def two_attempts_are_never_both_seen(probe: Probe) -> None:
    """A job that ran twice would double its rows."""
    job_id = expect_job(await probe.deliver("u1", [A]))
    second = await probe.deliver("u2", [A], source_seq=1_500)
    expect_fields(second, duplicate=True, job_id=job_id)
    between = await probe.deliver("u3", [B], upload_key=probe.upload("k"), source_seq=1_200)
    expect_fields(between, superseded=True, source_seq=1_500)


async def older_content_never_replaces_newer(probe: Probe) -> None:
    """A request that was delayed would bring old rows back."""
    expect_job(await probe.deliver("u2", [B], source_seq=2_000))
    for seq in (1_000, 2_000):
        late = await probe.deliver(f"u{seq}", [A], upload_key=f"k{seq}", source_seq=seq)
        expect_fields(late, superseded=True, source_seq=2_000)
    expect_fields(await probe.complete(probe.upload("u1000"), source_seq=9_000), superseded=True)
    expect_refused(await probe.put(probe.upload("u1000"), 0, [A]), 410)


async def a_complete_that_comes_late_brings_nothing_back(probe: Probe) -> None:
    """A request that was repeated on its way would bring old rows back, or be answered in vain."""
    old = expect_job(await probe.deliver("u1", [A]))
    new = {"upload_key": probe.upload("k2"), "source_seq": 2_000}
    job = expect_job(await probe.deliver("u2", [B], **new))
    expect_fields(await probe.complete(probe.upload("u1")), duplicate=True, job_id=old)
    expect_fields(await probe.deliver("u3", [B], **new), duplicate=True, job_id=job)


async def sources_are_apart(probe: Probe) -> None:
    """Two files with the same content would be one, or the later one would be refused."""
    expect_job(await probe.deliver("u1", [A], source_seq=2_000))
    beside = {"source_key": probe.upload("s2"), "source": probe.upload("s2")}
    expect_job(await probe.deliver("u2", [A], **beside))


async def installations_are_apart(probe: Probe) -> None:
    """Two hosts with the same file would replace each other's rows, or be answered with them."""
    site = f"verify-{probe.run}-beside"
    one = expect_job(await probe.deliver("u1", [A], source_seq=2_000))
    two = expect_job(await probe.deliver("u2", [A], installation_id=site))
    require(one != two, f"two installations got one job_id {one!r}")
    expect_fields(await probe.deliver("u3", [A], source_seq=2_500), duplicate=True, job_id=one)
    newer = {"upload_key": probe.upload("k2"), "source_seq": 1_500, "installation_id": site}
    expect_job(await probe.deliver("u4", [B], **newer))


async def watermarks_keep_their_type(probe: Probe) -> None:
    """A range that follows another value would be taken for the next one."""
    place, turned = {"at": [1, None], "id": 5}, {"id": 5, "at": [1, None]}
    steps: list[tuple[Any, Any, list[Any]]] = [
        (None, 5, ["5", 5.5, [5], None]),
        (5, 1, [True, "1", {}]),
        (1, place, [5, [1, None]]),
        (turned, 6, [turned]),
    ]
    for seq, (after, until, others) in enumerate(steps, 1):
        append: JsonObject = {"mode": "append", "source_seq": seq, "upload_key": f"k{seq}"}
        expect_job(await probe.deliver(f"u{seq}", [A], **append, after=after, until=until))
        for number, other in enumerate(others):
            late = {**append, "upload_key": f"k{seq}-{number}", "after": other, "until": 9}
            answer = await probe.complete(probe.upload(f"late-{seq}-{number}"), **late, chunks=0)
            expect_fields(answer, superseded=True, watermark=until)


async def content_that_comes_back_is_seen_again(probe: Probe) -> None:
    """A file that returns to earlier content would stay at the content between."""
    for number, (key, record) in enumerate([("k1", A), ("k2", B), ("k1", A)], 1):
        answer = await probe.deliver(f"u{number}", [record], upload_key=key, source_seq=number)
        expect_job(answer)


async def full_is_exempt_from_the_key(probe: Probe) -> None:
    """A client could not fix a backend that was restored from a backup."""
    expect_job(await probe.deliver("u1", [A]))
    expect_job(await probe.deliver("u2", [A], full=True, source_seq=2_000))
    late = await probe.deliver("u3", [A], full=True, source_seq=2_000)
    expect_fields(late, superseded=True, source_seq=2_000)


async def appends_follow_the_watermark(probe: Probe) -> None:
    """A range of rows would be there twice, or not at all."""
    one = {"mode": "append", "upload_key": "0-5", "after": None, "until": "5"}
    gap = {"mode": "append", "upload_key": "9-12", "after": "9", "until": "12"}
    two = {"mode": "append", "upload_key": "5-9", "after": "5", "until": "9"}
    expect_job(await probe.deliver("u1", [A], **one))
    late = await probe.deliver("u3", [C], **gap, source_seq=3_000)
    expect_fields(late, superseded=True, watermark="5")
    expect_job(await probe.deliver("u2", [B], **two, source_seq=2_000))


async def a_full_append_hides_what_was_there(probe: Probe) -> None:
    """Rows read again from the start would stand beside the earlier ones."""
    one = {"mode": "append", "upload_key": "0-5", "after": None, "until": "5"}
    full = {"mode": "append", "upload_key": "0-9", "after": None, "until": "9", "full": True}
    expect_job(await probe.deliver("u1", [A], **one))
    expect_fields(await probe.deliver("u2", [B], **full), superseded=True, source_seq=1_000)
    expect_job(await probe.deliver("u3", [B], **full, source_seq=2_000))
    late = await probe.deliver("u4", [C], **{**one, "upload_key": "x", "source_seq": 3_000})
    expect_fields(late, superseded=True, watermark="9")


async def requests_at_once_end_as_one_after_the_other(probe: Probe) -> None:
    """Two tries that meet would both be seen, or fail for good."""
    uploads = [probe.upload(f"u{number}") for number in range(4)]
    puts = [probe.put(upload, 0, [A]) for upload in uploads for _ in range(3)]
    for answer in await asyncio.gather(*puts):
        expect(answer, 200, 201)
    completes = [probe.complete(upload) for upload in uploads for _ in range(3)]
    answers = await asyncio.gather(*completes)
    jobs = {expect(answer, 200, 201).get("job_id") for answer in answers}
    created = sum(answer.status_code == 201 for answer in answers)
    require(
        len(jobs) == created == 1,
        f"12 completes of one key at once: {created} answered 201, {len(jobs)} job_ids; "
        "expected one of each",
    )


async def a_complete_that_does_not_fit_is_refused(probe: Probe) -> None:
    """A server error is tried again for ever."""
    path = ("uploads", probe.upload("u"), "complete")
    for content in (b"{", b"[]", b"{}", NESTED):
        expect_refused(await probe.ask("POST", *path, content=content, headers=AS_JSON))
    expect(await probe.put(probe.upload("u"), 0, [A]), 201)
    wrong: list[JsonObject] = [{"mode": "another"}, {"upload_key": ""}, {"installation_id": 7}]
    wrong += [{"source_seq": seq} for seq in (0, -1, "1", 1.5, 2**63, None)]
    wrong += [{name: value} for name in ("chunks", "records") for value in (-1, "1", None)]
    for fields in wrong:
        expect_refused(await probe.complete(probe.upload("u"), **fields))
    expect_job(await probe.complete(probe.upload("u")))


async def paths_that_do_not_fit_are_refused(probe: Probe) -> None:
    """A client would take something else for its backend, or try again for ever."""
    for seq in (-1, 1.5, "x", 1_000_000):
        expect_refused(await probe.put(probe.upload("u"), seq, [{}]))
    for upload in ("u" * 129, "a%20b", "a%00b"):
        expect_refused(await probe.put(upload, 0, [A]))
    for parent in ((), ("uploads", probe.upload("u"))):
        answer = await probe.ask("POST", *parent, "no-such-path", content=b"{}", headers=AS_JSON)
        expect_refused(answer, 404, 405)


async def refusals_are_problem_documents(probe: Probe) -> None:
    """Operators would not read why an upload was refused."""
    answer = await probe.complete(probe.upload("u"), mode="another")
    if not answer.headers.get("Content-Type", "").startswith(PROBLEM_MEDIA_TYPE):
        probe.doubt(f"errors are not {PROBLEM_MEDIA_TYPE} (RFC 9457)")


async def an_installation_registers(probe: Probe) -> None:
    """A client whose state was lost would number its sources below what is stored."""
    about = {"entry": "verify", "version": "1", "handler": "verify", "host": {}, "methods": []}
    path = ("installations", f"verify-{probe.run}")
    first = await probe.ask("PUT", *path, json=about)
    if first.status_code in (404, 405):
        probe.doubt("no PUT installations: a client without its state relies on the clock")
        return
    expect(first, 200, 201)
    expect_job(await probe.deliver("u", [A], source_seq=4_321))
    known = expect(await probe.ask("PUT", *path, json=about), 200, 201).get("sources") or {}
    if known.get(probe.source) != 4_321:
        probe.doubt("PUT installations does not answer the highest source_seq of each source")


async def every_row_of_a_chunk_is_kept(probe: Probe) -> None:
    """Rows past the first thousand would be gone, and nobody would know."""
    upload = probe.upload("u")
    rows: list[Record] = [{"row": number} for number in range(ROWS)]
    swapped = [*rows[:-2], rows[-1], rows[-2]]
    expect(await probe.put(upload, 0, rows), 201)
    expect(await probe.put(upload, 0, rows), 200, 201)
    for other in ([*rows[:-1], A], rows[:-1], [*rows, A], swapped):
        expect_refused(await probe.put(upload, 0, other), 409)
    expect_job(await probe.complete(upload, records=ROWS))


async def every_chunk_of_an_upload_is_kept(probe: Probe) -> None:
    """Large results would be cut short."""
    upload = probe.upload("u")
    for start in range(0, CHUNKS, AT_ONCE):
        seqs = range(start, min(start + AT_ONCE, CHUNKS))
        for answer in await asyncio.gather(*(probe.put(upload, n, [{"row": n}]) for n in seqs)):
            expect(answer, 201)
    expect_fields(await probe.ask("GET", "uploads", upload), chunks=list(range(CHUNKS)))
    expect_missing(await probe.complete(upload, chunks=2 * CHUNKS), range(CHUNKS, 2 * CHUNKS))
    expect_job(await probe.complete(upload, chunks=CHUNKS, records=CHUNKS))


async def totals_are_compared(probe: Probe) -> None:
    """An upload of which a part was lost or added on the way would be seen."""
    upload = probe.upload("u")
    for seq, rows in enumerate(([A, B], [B])):
        expect(await probe.put(upload, seq, rows), 201)
    for chunks, records in ((2, 2), (2, 4), (1, 2), (1, 3)):
        expect_refused(await probe.complete(upload, chunks=chunks, records=records), 422)
    expect_job(await probe.complete(upload, chunks=2, records=3))


async def numbers_are_exact(probe: Probe) -> None:
    """Two numbers of many digits would be one: ids, amounts and places in the order get lost."""
    upload = probe.upload("u")
    expect(await probe.put(upload, 0, [f'{{"n":{LONG}}}']), 201)
    expect(await probe.put(upload, 0, [f'{{"n":{LONG}}}']), 200, 201)
    expect_refused(await probe.put(upload, 0, [f'{{"n":{LONG[:-1]}2}}']), 409)
    for seq, (text, others) in enumerate([("1", ("1.0", "true", '"1"')), ("0", ("false",))], 1):
        expect(await probe.put(upload, seq, [f'{{"n":{text}}}']), 201)
        for other in others:
            expect_refused(await probe.put(upload, seq, [f'{{"n":{other}}}']), 409)
    # from here on a float knows every second number alone
    beyond = 2**53
    expect_job(await probe.complete(upload, chunks=3, records=3, source_seq=beyond))
    above = {"upload_key": probe.upload("k2"), "source_seq": beyond + 1}
    expect_job(await probe.deliver("u2", [B], **above))
    late = await probe.deliver("u3", [A], upload_key=probe.upload("k3"), source_seq=beyond)
    expect_fields(late, superseded=True, source_seq=beyond + 1)


async def a_record_may_hold_any_character(probe: Probe) -> None:
    """One NUL in a client's file would end its upload as a dead letter, or as a lost row."""
    record = {"nul": "\0", "line": "a\nb\u2028", "path": "C:\\new\\t", "face": "\U0001f600"}
    upload = probe.upload("u")
    expect(await probe.put(upload, 0, [record]), 201)
    expect(await probe.put(upload, 0, [record]), 200, 201)
    expect_refused(await probe.put(upload, 0, [{**record, "nul": ""}]), 409)
    expect_job(await probe.complete(upload))
    named = await probe.deliver("u2", [A], upload_key="k2", source_seq=2_000, stream="a\0b")
    if not named.is_success:
        expect_refused(named)


async def blank_lines_are_no_records(probe: Probe) -> None:
    """Lines that are written by another system would count otherwise than its client counts."""
    upload = probe.upload("u")
    expect(await probe.put(upload, 0, [A, B], content=b'\n{"row":"a"}\r\n \n{"row":"b"}'), 201)
    expect(await probe.put(upload, 1, [], content=b""), 201)
    expect_job(await probe.complete(upload, chunks=2, records=2))


async def other_formats_are_read_or_refused_with_415(probe: Probe) -> None:
    """Results in another format would be stored as something else."""
    upload, csv = probe.upload("u"), {"Content-Type": CSV}
    rows = ({"a": "1", "b": 'x,"\n'}, {"a": None, "b": ""})
    content = b'a,b\r\n1,"x,""\n"\r\n,""\r\n'
    answer = await probe.put(upload, 0, rows, content=content, headers=csv)
    if answer.status_code == 415:
        probe.doubt("text/csv is not read: what is called with format: csv ends as a dead letter")
    else:
        expect(answer, 201)
        other = content.replace(b"1", b"2")
        expect_refused(await probe.put(upload, 0, [], content=other, headers=csv), 409)
        for wrong in (b"a,b\r\n1\r\n", b"a,a\r\n1,2\r\n"):
            expect_refused(await probe.put(upload, 1, [], content=wrong, headers=csv))
        expect_job(await probe.complete(upload, records=2))
    parquet = {"Content-Type": PARQUET}
    answer = await probe.put(probe.upload("u2"), 0, [], content=b"PAR1 no", headers=parquet)
    expect_refused(answer)
    if answer.status_code == 415:
        probe.doubt("Parquet is not read: what is called with format: parquet is a dead letter")
    expect_refused(await probe.put(upload, 1, [], content=b"{}", headers={"Content-Type": "a/b"}))


async def a_body_that_is_cut_off_is_not_stored(probe: Probe) -> None:
    """Half a chunk would be stored where a connection breaks, and the whole one refused."""
    body = b'{"row":"a"}\n{"row":"b"}\n'
    await probe.put_cut(probe.upload("u"), body[:12], len(body))
    expect(await probe.put(probe.upload("u"), 0, [A, B]), 201)
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(body) + packer.flush()
    cut = {"Content-Encoding": "gzip"}
    for end in (-1, -9):
        answer = await probe.put(probe.upload("u2"), 0, [], content=packed[:end], headers=cut)
        expect_refused(answer)
    expect_refused(await probe.put(probe.upload("u2"), 0, [], content=body[:-5]))
    expect(await probe.put(probe.upload("u2"), 0, [B]), 201)


async def a_body_may_come_without_its_length(probe: Probe) -> None:
    """A proxy that passes bodies on in pieces would break every upload."""

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b'{"row"', b':"a"}\n', b'{"row":"b"}\n'):
            yield piece

    upload = probe.upload("u")
    answer = await probe.put(upload, 0, [A, B], content=pieces())
    if answer.status_code == 411:
        probe.doubt("bodies in pieces (Transfer-Encoding: chunked) are not read")
        return
    expect(answer, 201)
    expect_job(await probe.complete(upload, records=2))

"""The checks of what chunks hold: each docstring says what goes wrong without it.

Owns the list `CHECKS`: rows and chunks to the last, digits, marks, formats, bodies that are cut.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

from catalogzero.backend.conformance.probe import (
    Check,
    Probe,
    Record,
    expect,
    expect_fields,
    expect_job,
    expect_missing,
    expect_refused,
)
from catalogzero.protocol.bodies import CSV, PARQUET

A, B = {"row": "a"}, {"row": "b"}
ROWS, CHUNKS, AT_ONCE = 3_000, 130, 5
LONG = "100000000000000000901"


async def every_row_of_a_chunk_is_kept(probe: Probe) -> None:
    """Rows past the first thousand would be gone, and nobody would know."""
    upload = probe.upload("u")
    rows: list[Record] = [{"row": number} for number in range(ROWS)]
    swapped = [*rows[:-2], rows[-1], rows[-2]]
    expect(await probe.put(upload, 0, rows), 201)
    expect(await probe.put(upload, 0, rows), 200, 201)
    for other in ([*rows[:-1], A], rows[:-1], [*rows, A], swapped):
        expect_refused(await probe.put(upload, 0, other), 409)
    expect_job(await probe.complete(upload, records=ROWS), 201)


async def every_chunk_of_an_upload_is_kept(probe: Probe) -> None:
    """Large results would be cut short."""
    upload = probe.upload("u")
    for start in range(0, CHUNKS, AT_ONCE):
        seqs = range(start, min(start + AT_ONCE, CHUNKS))
        for answer in await asyncio.gather(*(probe.put(upload, n, [{"row": n}]) for n in seqs)):
            expect(answer, 201)
    expect_fields(await probe.ask("GET", "uploads", upload), chunks=list(range(CHUNKS)))
    expect_missing(await probe.complete(upload, chunks=2 * CHUNKS), range(CHUNKS, 2 * CHUNKS))
    expect_job(await probe.complete(upload, chunks=CHUNKS, records=CHUNKS), 201)


async def totals_are_compared(probe: Probe) -> None:
    """An upload of which a part was lost or added on the way would be seen."""
    upload = probe.upload("u")
    for seq, rows in enumerate(([A, B], [B])):
        expect(await probe.put(upload, seq, rows), 201)
    for chunks, records in ((2, 2), (2, 4), (1, 2), (1, 3)):
        expect_refused(await probe.complete(upload, chunks=chunks, records=records), 422)
    expect_job(await probe.complete(upload, chunks=2, records=3), 201)


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
    beyond = 2**53
    expect_job(await probe.complete(upload, chunks=3, records=3, source_seq=beyond), 201)
    above = {"upload_key": probe.upload("k2"), "source_seq": beyond + 1}
    expect_job(await probe.deliver("u2", [B], **above), 201)
    late = await probe.deliver("u3", [A], upload_key=probe.upload("k3"), source_seq=beyond)
    expect_fields(late, superseded=True, source_seq=beyond + 1)


async def a_record_may_hold_any_character(probe: Probe) -> None:
    """One NUL in a client's file would end its upload as a dead letter, or as a lost row."""
    record = {"nul": "\0", "line": "a\nb\u2028", "path": "C:\\new\\t", "face": "\U0001f600"}
    upload = probe.upload("u")
    expect(await probe.put(upload, 0, [record]), 201)
    expect(await probe.put(upload, 0, [record]), 200, 201)
    expect_refused(await probe.put(upload, 0, [{**record, "nul": ""}]), 409)
    expect_job(await probe.complete(upload), 201)
    named = await probe.deliver("u2", [A], upload_key="k2", source_seq=2_000, stream="a\0b")
    if not named.is_success:
        expect_refused(named)


async def blank_lines_are_no_records(probe: Probe) -> None:
    """Lines that are written by another system would count otherwise than its client counts."""
    upload = probe.upload("u")
    expect(await probe.put(upload, 0, [A, B], content=b'\n{"row":"a"}\r\n \n{"row":"b"}'), 201)
    expect(await probe.put(upload, 1, [], content=b""), 201)
    expect_job(await probe.complete(upload, chunks=2, records=2), 201)


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
        expect_job(await probe.complete(upload, records=2), 201)
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
    expect_job(await probe.complete(upload, records=2), 201)


CHECKS: list[Check] = [
    every_row_of_a_chunk_is_kept,
    every_chunk_of_an_upload_is_kept,
    totals_are_compared,
    numbers_are_exact,
    a_record_may_hold_any_character,
    blank_lines_are_no_records,
    other_formats_are_read_or_refused_with_415,
    a_body_that_is_cut_off_is_not_stored,
    a_body_may_come_without_its_length,
]

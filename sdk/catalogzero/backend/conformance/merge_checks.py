"""The checks of mode merge: the chain, the key, and that no row comes without one.

A backend that does not know the mode passes with a warning: its clients cannot declare a key of a
source that is read by a watermark. What its newest rows are is compared with `--latest`.
"""

from __future__ import annotations

import httpx

from catalogzero.backend.conformance.probe import (
    Probe,
    Record,
    expect,
    expect_fields,
    expect_job,
    expect_refused,
)
from catalogzero.protocol.problems import Kind
from catalogzero.wire.messages import JsonObject

NO_MERGE = "no mode merge: a stream with a key that is read by a watermark ends as dead letters"
LONG = "100000000000000000901"
MERGE: JsonObject = {"mode": "merge", "key": ["id", "of"], "tombstone": "gone"}
FIRST: list[Record] = [
    {"id": 1, "of": "update", "n": 1},
    {"id": 1, "of": "tie", "n": 1},
    {"id": 1, "of": "tie", "n": 2},
    {"id": 1, "of": "deleted"},
    {"id": 1, "of": "comes back", "gone": True},
    {"id": 1, "of": "stays", "gone": False},
    {"id": "1", "of": "update"},
    {"id": {"a": 1, "b": 2}, "of": "order of names", "n": 1},
    f'{{"id":{LONG},"of":"digits"}}',
    f'{{"id":{LONG[:-1]}2,"of":"digits"}}',
]
SECOND: list[Record] = [
    {"id": 1, "of": "update", "n": 2},
    {"id": 1, "of": "deleted", "gone": "2026-01-01"},
    {"id": 1, "of": "comes back", "gone": None},
    '{"id":{"b":2,"a":1},"of":"order of names","n":2}',
]
ONE: JsonObject = {**MERGE, "upload_key": "0-5", "until": ["5", 1_000]}
TWO: JsonObject = {
    **MERGE,
    **{"upload_key": "5-9", "source_seq": 2_000, "after": ["5", 1_000], "until": ["9", 2_000]},
}


async def merges_follow_the_watermark(probe: Probe) -> None:
    """A hole would stay that nobody reads again, or a deleted row come back."""
    if not await _begins(probe, "u1", FIRST):
        return
    late = {**TWO, "upload_key": "7-9", "after": ["7", 1_500], "source_seq": 3_000}
    expect_fields(
        await probe.deliver("u2", SECOND, **late), superseded=True, watermark=["5", 1_000]
    )
    expect_job(await probe.deliver("u3", SECOND, **TWO))
    again = await probe.complete(probe.upload("u4"), **{**TWO, "records": 0, "chunks": 0})
    expect_fields(again, duplicate=True)


async def a_full_merge_hides_what_was_there(probe: Probe) -> None:
    """Rows that are deleted where they come from would stay."""
    if not await _begins(probe, "u1", FIRST):
        return
    full = {**TWO, "after": None, "full": True}
    expect_job(await probe.deliver("u2", SECOND, **full))
    late = await probe.deliver("u3", FIRST, **{**ONE, "upload_key": "x", "source_seq": 3_000})
    expect_fields(late, superseded=True, watermark=["9", 2_000])


async def another_key_needs_full(probe: Probe) -> None:
    """Rows that are one by the one key, and two by the other, would stand beside each other."""
    if not await _begins(probe, "u1", FIRST):
        return
    expect(await probe.put(probe.upload("u2"), 0, SECOND), 201)
    said = {**TWO, "records": len(SECOND)}
    for other in ({"key": ["id"]}, {"tombstone": None}, {"tombstone": "n"}):
        answer = await probe.complete(probe.upload("u2"), **{**said, **other})
        expect_refused(answer, Kind.MODE_CHANGED.status)
    append: JsonObject = {"mode": "append", "key": [], "tombstone": None}
    answer = await probe.complete(probe.upload("u2"), **{**said, **append})
    expect_refused(answer, Kind.MODE_CHANGED.status)
    expect_job(await probe.complete(probe.upload("u2"), **{**said, "key": ["id"], "full": True}))


async def a_row_without_its_key_is_refused(probe: Probe) -> None:
    """It would be gone, or stand in the place of another."""
    if not await _begins(probe, "u1", FIRST):
        return
    bad: list[Record] = [{"of": "none"}, {"id": None, "of": "null"}]
    for number, row in enumerate(bad):
        expect_refused(await probe.deliver(f"missing-{number}", [row], **TWO), 422)
    expect_refused(await probe.deliver("no-key", SECOND, **{**TWO, "key": []}))


async def _begins(probe: Probe, label: str, rows: list[Record]) -> bool:
    """Send the first upload of a source; whether the backend knows the mode."""
    answer: httpx.Response = await probe.deliver(label, rows, **ONE)
    if answer.status_code in (400, 422):
        probe.doubt(NO_MERGE)
        return False
    expect_job(answer)
    return True

"""The checks of the simple form, the seed's contract: each docstring says what goes wrong.

Every coroutine function here is one; it raises `NotConformingError`, or notes a doubt.
"""

from __future__ import annotations

import asyncio

from catalogzero.backend.conformance.probe import Probe, expect, expect_refused, require
from catalogzero.protocol.bodies import AS_JSON

A, B = {"row": "a"}, {"row": "b"}
OK = (200, 201, 202, 204)
MANY = 10_000
MEETINGS = 10
"""How often requests are made to meet: a race is lost by chance."""

UNKNOWABLE = "answers carry no job_id: whether an array is stored once cannot be seen from here"


async def keys_are_checked(probe: Probe) -> None:
    """Anyone could write into a client's data."""
    own = probe.means.key
    for key in ("", "not-a-key", own[:-1], own + "x", own[:-1] + "~"):
        expect_refused(await probe.post_array("u", [A], key=key), 401, 403)


async def an_array_is_taken(probe: Probe) -> None:
    """Nothing would arrive."""
    expect(await probe.post_array("u", [A, B]), *OK)


async def a_large_array_is_taken(probe: Probe) -> None:
    """Ordinary results of some thousand rows would be refused for good."""
    rows = [{"row": number, "text": "x" * 80} for number in range(MANY)]
    expect(await probe.post_array("u", rows), *OK)


async def an_empty_array_is_taken(probe: Probe) -> None:
    """A run without rows would end as a dead letter."""
    expect(await probe.post_array("u", []), *OK)


async def the_same_key_is_stored_once(probe: Probe) -> None:
    """An array whose answer was lost comes again: its rows would be there twice."""
    first = expect(await probe.post_array("u", [A]), *OK).get("job_id")
    again = expect(await probe.post_array("u", [A]), *OK).get("job_id")
    other = expect(await probe.post_array("other", [B]), *OK).get("job_id")
    if first is None:
        probe.doubt(UNKNOWABLE)
        return
    twice = f"the same Idempotency-Key got job_id {first!r}, then {again!r}: it was stored twice"
    require(first == again, twice)
    require(other != first, f"another Idempotency-Key got the same job_id {first!r}")


async def other_records_under_a_key_are_refused(probe: Probe) -> None:
    """Records would be acknowledged, and thrown away."""
    expect(await probe.post_array("u", [A, B]), *OK)
    for other in ([A], [A, {"row": "c"}], []):
        expect_refused(await probe.post_array("u", other), 409, 422)


async def the_same_key_at_once_is_stored_once(probe: Probe) -> None:
    """Two tries that meet would be stored twice; a 409 would end them as a dead letter."""
    for key in map(str, range(MEETINGS)):
        answers = await asyncio.gather(*(probe.post_array(key, [A] * 100) for _ in range(6)))
        jobs = {expect(answer, *OK).get("job_id") for answer in answers}
        if jobs == {None}:
            probe.doubt(UNKNOWABLE)
            return
        require(len(jobs) == 1, f"6 requests with one Idempotency-Key made {len(jobs)} jobs")


async def what_is_no_array_is_refused(probe: Probe) -> None:
    """A server error is tried again for ever."""
    for number, content in enumerate((b"[{", b'{"row": 1}', b"[" * 50_000)):
        sent = {**AS_JSON, "Idempotency-Key": probe.upload(str(number))}
        expect_refused(await probe.ask("POST", content=content, headers=sent))

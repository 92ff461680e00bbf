"""The pure rooms: idle states and messages, by properties."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import hypothesis.strategies as st
import pytest
from catalogzero.errors import BadRequestError, CatalogZeroError, error_for_code
from catalogzero.runtime.idle import IdleWatch, SleepState
from catalogzero.wire.messages import (
    Call,
    Reply,
    StartBy,
    decode_call,
    decode_reply,
    encode_call,
    encode_reply,
    error_reply,
    one_line_ascii,
)
from hypothesis import example, given, settings

MANY = settings(max_examples=1_000, deadline=None, database=None)
SECONDS = st.floats(0, 1e6)
STEPS = st.lists(
    st.tuples(st.sampled_from(["job", "end", "tick", "sleep", "wake"]), SECONDS), max_size=40
)


@MANY
@given(idle_s=SECONDS, sleep_s=SECONDS, steps=STEPS)
def test_a_handler_with_jobs_never_falls_asleep_and_one_without_does_in_time(
    idle_s: float, sleep_s: float, steps: list[tuple[str, float]]
) -> None:
    now_s, jobs = 0.0, 0
    watch = IdleWatch(idle_after_s=idle_s, sleep_after_s=sleep_s, now_s=now_s)
    for what, seconds in steps:
        now_s += seconds
        if what == "job":
            watch.job_came()
            jobs += 1
        elif what == "end" and jobs:
            watch.job_ended(now_s)
            jobs -= 1
        elif what == "wake" and watch.state is SleepState.SLEEPING:
            watch.wake()
            watch.awake(now_s)
        elif what == "sleep" and not jobs and watch.state in (SleepState.ACTIVE, SleepState.IDLE):
            watch.fall()
            watch.asleep()
        due = watch.tick(now_s)

        assert watch.jobs == jobs
        assert not (due and jobs)
        assert (watch.next_tick_s(now_s) is None) or not jobs
        assert watch.idle_s(now_s) >= 0
        if jobs:
            assert watch.idle_s(now_s) == 0
            assert watch.state is not SleepState.IDLE


@MANY
@given(idle_s=SECONDS, sleep_s=st.floats(0.001, 1e6), start_s=SECONDS)
@example(idle_s=0.1, sleep_s=0.3, start_s=1_000_000.1)
def test_the_next_tick_leads_to_sleep_in_a_few_steps(
    idle_s: float, sleep_s: float, start_s: float
) -> None:
    now_s = start_s
    watch = IdleWatch(idle_after_s=idle_s, sleep_after_s=sleep_s, now_s=now_s)
    for _ in range(6):
        if watch.tick(now_s):
            break
        step_s = watch.next_tick_s(now_s)
        assert step_s is not None
        now_s += step_s
    else:
        pytest.fail("it ticks for ever")
    assert now_s - start_s == pytest.approx(sleep_s, abs=2e-3)


@pytest.mark.parametrize("step", ["asleep", "wake", "awake"])
def test_a_step_that_the_diagram_lacks_is_an_error(step: str) -> None:
    watch = IdleWatch(idle_after_s=1, sleep_after_s=2, now_s=0)
    with pytest.raises(RuntimeError, match="cannot become"):
        getattr(watch, step)(*([0] if step == "awake" else []))


CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXT = st.text(CHARACTERS, max_size=10)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(TEXT, SCALARS, max_size=2)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=3)
IDS = st.text(CHARACTERS, min_size=1, max_size=12)
CALLS = st.builds(
    Call,
    method=TEXT.filter(bool),
    params=OBJECTS,
    request_id=st.none() | IDS,
    timeout_s=st.none() | SECONDS,
    start_by=st.none() | st.builds(StartBy, boot_id=TEXT, uptime_s=SECONDS),
)


@MANY
@given(call=CALLS)
def test_a_call_survives_the_wire(call: Call) -> None:
    assert decode_call(encode_call(call)) == call


@MANY
@given(result=JSON, request_id=IDS, run_id=st.none() | TEXT, duration_ms=SECONDS)
def test_a_full_reply_survives_the_wire(
    result: Any, request_id: str, run_id: str | None, duration_ms: float
) -> None:
    reply = Reply(True, result, request_id=request_id, run_id=run_id, duration_ms=duration_ms)
    assert decode_reply(encode_reply(reply)) == reply


@MANY
@given(message=TEXT.filter(bool), details=JSON, request_id=IDS)
def test_an_error_survives_the_wire(message: str, details: Any, request_id: str) -> None:
    reply = error_reply(CatalogZeroError(message, details=details))
    assert reply.request_id is None
    full = Reply(False, error=message, code="busy", details=details, request_id=request_id)
    assert decode_reply(encode_reply(full)) == full


@MANY
@given(result=OBJECTS)
def test_a_flat_reply_is_the_methods_own_dict(result: dict[str, Any]) -> None:
    told = decode_reply(encode_reply(Reply(True, result)))
    said_failed = result.get("success") is False
    assert told.success is not said_failed
    if not said_failed and "request_id" not in result:
        assert told.result == {"success": True, **result}


@MANY
@given(text=st.text())
def test_a_flat_error_is_one_line_of_ascii(text: str) -> None:
    line = one_line_ascii(text)
    assert line.isascii()
    assert len(line.splitlines()) <= 1
    assert line.isprintable()


@MANY
@given(frame=st.binary(max_size=200))
def test_decoding_raises_nothing_but_bad_request(frame: bytes) -> None:
    for decode in (decode_call, decode_reply):
        with suppress(BadRequestError):
            decode(frame)


@pytest.mark.parametrize("request_id", ["[1]", "{}", "3", "true", "null"])
def test_a_reply_names_its_call_by_text_or_not_at_all(request_id: str) -> None:
    told = decode_reply(f'{{"success": true, "request_id": {request_id}}}'.encode())

    assert told.request_id is None


@pytest.mark.parametrize("code", ["busy", "draining", "wake_failed", "unreachable", "new_code"])
def test_a_code_becomes_its_error_and_an_unknown_one_a_failure(code: str) -> None:
    error = error_for_code(code, "why", {"a": 1})
    assert (error.message, error.details) == ("why", {"a": 1})
    assert error.code == ("failed" if code == "new_code" else code)

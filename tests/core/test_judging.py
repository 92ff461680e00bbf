"""`PendingCall` by itself: every order of sends, losses, repeats, refusals and restarts.

The rules are those of `tests/models/schedules.py` in its short form: no question but the call
itself. Here the handler is a model and the caller is the real state machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import pytest
from catalogzero.wire.calls import CallVerdict, PendingCall, Stamp
from catalogzero.wire.messages import Reply

FINAL = {CallVerdict.SUCCESS, CallVerdict.ERROR, CallVerdict.LOST}
MAX_ATTEMPTS = 2


class World(NamedTuple):
    """`calls` and `replies` stay under way for good: late, repeated and lost alike.

    `left` is what the boot `before` left of its memory: it ended in order.
    """

    call: tuple[int, int, str | None]  # n, attempt, boot_id
    status: str = ""
    calls: frozenset[tuple[int, str]] = frozenset()
    replies: frozenset[tuple[int, str]] = frozenset()
    memory: frozenset[tuple[int, str]] = frozenset()
    boot: int = 0
    before: str = ""
    left: frozenset[tuple[int, str]] = frozenset()
    starts: int = 0
    done: bool = False
    faults: int = 3


def steps(w: World, *, safe: bool) -> Iterator[World]:
    """Every state that may follow."""
    n, attempt, boot = w.call
    fields = PendingCall(n=n, attempt=attempt, max_attempts=MAX_ATTEMPTS, retry_safe=safe)
    if w.status not in FINAL:
        if boot is None:
            fields.take(Stamp(str(w.boot), 60.0, frozenset({"m"} if safe else ())), "m")
            yield w._replace(call=(n, attempt, fields.boot_id))
        else:
            yield w._replace(calls=w.calls | {(n, boot)})
            for of, code in w.replies:
                if of == n:
                    call = replace(fields, boot_id=boot, start_by_s=60.0)
                    busy = {"running": True} if code == "timeout" else None
                    found = call.judge(Reply(code == "ok", code=code, details=busy))
                    status = found if found in FINAL else ""
                    yield w._replace(call=(call.n, call.attempt, call.boot_id), status=status)
    known = dict(w.memory)
    for m, stamped in w.calls:
        if m in known:
            code = {"running": "timeout"}.get(known[m], known[m])
            yield w._replace(replies=w.replies | {(m, code)})
        elif stamped == w.before:
            code = {"running": "expired"}.get(word := dict(w.left).get(m, "draining"), word)
            yield w._replace(replies=w.replies | {(m, code)})
        elif stamped != str(w.boot):
            yield w._replace(replies=w.replies | {(m, "expired")})
        else:
            yield w._replace(memory=w.memory | {(m, "running")}, starts=w.starts + 1)
            if w.faults:
                yield w._replace(memory=w.memory | {(m, "draining")}, faults=w.faults - 1)
    for m, state in w.memory:
        if state == "running":
            rest = w.memory - {(m, state)}
            yield w._replace(memory=rest | {(m, "ok")}, done=True)
            yield w._replace(memory=rest | {(m, "failed")})
    if w.faults:
        ended = w._replace(memory=frozenset(), boot=w.boot + 1, faults=w.faults - 1)
        yield ended._replace(before="", left=frozenset())
        yield ended._replace(before=str(w.boot), left=w.memory)


@pytest.mark.parametrize("safe", [False, True])
def test_in_no_order_does_a_call_run_too_often_or_end_wrongly(*, safe: bool) -> None:
    first = World((1, 1, None))
    seen, rest = {first}, [first]
    ends = set()
    while rest:
        w = rest.pop()
        ends.add(w.status)
        for v in steps(w, safe=safe):
            if v in seen:
                continue
            assert v.starts <= (MAX_ATTEMPTS if safe else 1), v
            assert v.status != CallVerdict.SUCCESS or v.done, v
            if v.status in FINAL:
                assert v.starts == w.starts or w.status == "", f"it started after its end: {v}"
                assert v.status != CallVerdict.LOST or not {"ok", "running"} & {
                    s for _, s in v.memory
                }
                if w.status in FINAL:
                    assert (v.status, v.starts) == (w.status, w.starts), v
            seen.add(v)
            rest.append(v)

    assert ends == {"", *FINAL}


@pytest.mark.parametrize(
    ("code", "details", "judgement"),
    [
        ("busy", None, CallVerdict.REFUSED),
        ("busy", {"running": True}, CallVerdict.PENDING),
        ("timeout", None, CallVerdict.PENDING),
        ("draining", None, CallVerdict.REFUSED),
        ("expired", None, CallVerdict.LOST),
        ("failed", None, CallVerdict.ERROR),
    ],
)
def test_each_answer_of_a_call_that_may_not_run_again(
    code: str, details: object, judgement: CallVerdict
) -> None:
    call = PendingCall(max_attempts=3, boot_id="b", start_by_s=1.0, retry_safe=False)

    assert call.judge(Reply(success=False, code=code, details=details)) is judgement
    refused = judgement is CallVerdict.REFUSED
    assert (call.n, call.start_by is None) == (2 if refused else 1, refused)


def test_a_plain_handler_is_called_at_least_once_and_within_its_attempts() -> None:
    call = PendingCall(max_attempts=2)

    assert call.judge_plain(None) is CallVerdict.RETRY
    assert call.judge_plain(None) is CallVerdict.ERROR
    assert call.judge_plain(Reply(success=True)) is CallVerdict.SUCCESS

"""Requests of the HTTP API, read and checked: schedules, runs at once, and queries.

Both spellings of the fields are taken: ScheduleZero's (`job_method`, `job_params`) and that of
its documents (`method_name`, `params`, `trigger_config`). Error texts are ScheduleZero's where it
has one.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from catalogzero.errors import CatalogZeroError
from catalogzero.scheduler.history import FILTERS
from catalogzero.scheduler.rows import Execution, Handler
from catalogzero.scheduler.ticks import Schedule, to_us
from catalogzero.scheduler.triggers import make_trigger, parse_moment, parse_trigger
from catalogzero.wire.messages import encode_json

OVERLAPS = ("skip", "queue", "parallel")
DEFAULT_LIMIT, MAX_LIMIT = 100, 1_000
MAX_ID_CHARS = 200
MAX_ATTEMPTS = 100
MAX_SECONDS = 10 * 366 * 86_400.0
RUN_NOW_GRACE_S = 30.0
SPELLINGS = {
    "handler_id": ("handler_id",),
    "job_method": ("job_method", "method_name"),
    "job_params": ("job_params", "params"),
    "trigger": ("trigger", "trigger_config"),
}


class ApiError(CatalogZeroError):
    """An answer of the API that is not a success: an HTTP status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def read_schedule(body: Any, now: datetime) -> Schedule:
    """The schedule that a request asks for; whether its handler exists is not looked at.

    Raises:
        ApiError: 400, with what is wrong.
    """
    if not _field(_object(body), "trigger"):
        raise ApiError(400, "Missing required field: 'trigger'")
    handler_id, method, params = read_call(body)
    config, end_us = _trigger(_field(body, "trigger"), body, now)
    job_id = _name(body.get("job_id"), "job_id")
    max_runs = _whole(body, "max_runs", None, high=2**53)
    new = Schedule(
        schedule_id=str(uuid.uuid4()),
        job_id=job_id or f"{handler_id}_{method}_{now.timestamp():.6f}",
        handler_id=handler_id,
        method=method,
        params=params,
        trigger_config=config,
        overlap=_overlap(body),
        misfire_grace_s=_number(body, "misfire_grace_s", None),
        max_attempts=read_max_attempts(body),
        timeout_s=read_timeout(body),
        jitter_s=_number(body, "jitter_s", 0.0) or 0.0,
        max_runs=max_runs,
        end_us=end_us,
    )
    _check_jitter(new, now)
    return new


def read_call(body: Any) -> tuple[str, str, dict[str, Any]]:
    """The handler_id, method and params that a request names.

    Raises:
        ApiError: 400, with what is missing or wrong.
    """
    body = _object(body)
    missing = [name for name in ("handler_id", "job_method") if _field(body, name) is None]
    if missing:
        raise ApiError(400, f"Missing required fields: {missing}")
    params = _field(body, "job_params")
    params = {} if params is None else params
    if not isinstance(params, dict):
        raise ApiError(400, "'job_params' must be a dictionary/object.")
    handler_id = _name(_field(body, "handler_id"), "handler_id")
    method = _name(_field(body, "job_method"), "job_method")
    return str(handler_id), str(method), params


def read_run(body: Any, now: datetime) -> Execution:
    """The execution that a `run_now` asks for.

    Raises:
        ApiError: 400, with what is wrong.
    """
    handler_id, method, params = read_call(body)
    return Execution(
        execution_id=str(uuid.uuid4()),
        job_id=f"immediate_{handler_id}_{method}_{now.timestamp():.6f}",
        handler_id=handler_id,
        method=method,
        params=params,
        misfire_grace_s=_number(body, "misfire_grace_s", RUN_NOW_GRACE_S),
        timeout_s=read_timeout(body),
        max_attempts=read_max_attempts(body),
    )


def read_timeout(body: Mapping[str, Any]) -> float | None:
    """The `timeout_s` of a request."""
    return _number(body, "timeout_s", None, low=0.001)


def read_max_attempts(body: Mapping[str, Any]) -> int:
    """The `max_attempts` of a request; 3 by default."""
    return _whole(body, "max_attempts", 3, high=MAX_ATTEMPTS) or 3


def read_wait(body: Mapping[str, Any]) -> bool:
    """The `wait` of a `run_now`; true by default.

    Raises:
        ApiError: 400, neither true nor false.
    """
    wait = body.get("wait")
    if wait is not None and not isinstance(wait, bool):
        raise ApiError(400, "'wait' must be true or false.")
    return wait is not False


def check_method(handler: Handler | None, handler_id: str, method: str) -> None:
    """Refuse what is not registered.

    Raises:
        ApiError: 404 for the handler, 400 for the method.
    """
    if handler is None:
        raise ApiError(404, f"Handler '{handler_id}' not registered.")
    if method not in handler.methods:
        raise ApiError(400, f"Method '{method}' not exposed by handler '{handler_id}'.")


def digest_of(one: Execution) -> str:
    """What a `run_now` asked for, to compare two requests of one Idempotency-Key."""
    asked = [one.handler_id, one.method, one.params, one.timeout_s, one.max_attempts]
    return sha256(encode_json(asked, sort_keys=True)).hexdigest()


def read_limit(
    query: Mapping[str, str], default: int = DEFAULT_LIMIT, most: int = MAX_LIMIT
) -> int:
    """The `limit` of a query, at most `most`.

    Raises:
        ApiError: 400, not a number.
    """
    try:
        limit = int(query.get("limit", default))
    except ValueError as error:
        raise ApiError(400, f"Invalid parameter: {error}") from None
    if limit < 1:
        raise ApiError(400, "Invalid parameter: limit must be 1 or more")
    return min(limit, most)


def read_cursor(query: Mapping[str, str]) -> int | None:
    """The `cursor` of a query, as an earlier answer gave it.

    Raises:
        ApiError: 400, not one of ours.
    """
    cursor = query.get("cursor")
    if cursor is None:
        return None
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise ApiError(400, "Invalid parameter: cursor is none that an answer gave")
    return int(cursor)


def read_filters(query: Mapping[str, str]) -> dict[str, str]:
    """The filters of a query; they combine."""
    return {name: query[name].replace("\0", "") for name in FILTERS if query.get(name)}


def _object(body: Any) -> dict[str, Any]:
    """The body, which must be a JSON object that is not empty."""
    if not isinstance(body, dict) or not body:
        raise ApiError(400, "JSON body required.")
    return body


def _field(body: Mapping[str, Any], name: str) -> Any:
    """A field by any of its spellings."""
    given = [body[spelling] for spelling in SPELLINGS[name] if body.get(spelling) is not None]
    return given[0] if given else None


def _trigger(
    config: Any, body: Mapping[str, Any], now: datetime
) -> tuple[dict[str, Any], int | None]:
    """The stored trigger and the schedule's end: the trigger's own, or that of the request."""
    try:
        stored = parse_trigger(config)
        ends = [stored.pop("end_time", None), body.get("end_time")]
        moments = [parse_moment(end, "end_time", stored.get("timezone")) for end in ends if end]
        first = make_trigger(stored).next_after(now - timedelta(microseconds=1))
        if moments and min(moments) < (first or now):
            raise ValueError("it ends before it fires")
        if first is None and stored["type"] != "date":
            raise ValueError("it never fires")
    except ValueError as error:
        raise ApiError(400, f"Invalid trigger configuration: {error}") from None
    return stored, to_us(min(moments)) if moments else None


def _check_jitter(new: Schedule, now: datetime) -> None:
    """Refuse a jitter that would take a tick past the next one."""
    if not new.jitter_s:
        return
    first = new.trigger.next_after(now)
    second = None if first is None else new.trigger.next_after(first)
    if first and second and (second - first).total_seconds() <= new.jitter_s:
        raise ApiError(400, "'jitter_s' must be shorter than the time between two runs.")


def _overlap(body: Mapping[str, Any]) -> str:
    """The `overlap` of a request; skip by default."""
    overlap = body.get("overlap") or "skip"
    if overlap not in OVERLAPS:
        raise ApiError(400, f"'overlap' must be one of {', '.join(OVERLAPS)}.")
    return str(overlap)


def _number(
    body: Mapping[str, Any],
    name: str,
    default: float | None,
    *,
    low: float = 0.0,
    high: float = MAX_SECONDS,
) -> float | None:
    """A number within bounds."""
    value = body.get(name)
    if value is None:
        return None if default is None else float(default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ApiError(400, f"'{name}' must be a number from {low:g} to {high:g}.")
    return float(value)


def _whole(body: Mapping[str, Any], name: str, default: int | None, *, high: int) -> int | None:
    """A whole number from 1 on."""
    number = _number(body, name, default, low=1, high=high)
    if number is not None and not number.is_integer():
        raise ApiError(400, f"'{name}' must be a whole number.")
    return None if number is None else int(number)


def _name(value: Any, field: str) -> str | None:
    """A printable name of bounded length."""
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARS or not value.isprintable():
        raise ApiError(400, f"'{field}' must be 1 to {MAX_ID_CHARS} printable characters.")
    return value

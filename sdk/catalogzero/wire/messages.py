"""Calls and replies: what they hold, and how they look as JSON text frames.

Decoding is strict: UTF-8, one JSON object, no NaN, no lone surrogates, bounded depth (the
codec's own rules; measured in docs/performance.md). Encoding writes NaN and infinity as null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from types import NoneType
from typing import Any

import orjson
from pydantic import BaseModel, SecretStr

from catalogzero.errors import (
    BadRequestError,
    CatalogZeroError,
    FailedError,
    TooLargeError,
    error_for_code,
)

JsonObject = dict[str, Any]
"""A JSON object whose keys are an author's or a caller's to choose."""

MAX_TIMEOUT_S = 10 * 365 * 86_400.0
MAX_ID_CHARS = 200
MAX_DEPTH = 200
FLAT_ERROR_CHARS = 1_000
MAX_ERROR_CHARS = 10_000
MAX_INTEGER_DIGITS = 4_300
MAX_CALL_BYTES = 1 << 20
"""What a handler takes unless its pong names another `max_message_bytes`."""

BAD_REPLY = "bad_reply"
"""The code of a reply that arrived and is not JSON."""


REFUSED = frozenset({"bad_request", "unknown_method", "bad_params", "unauthorized", "too_large"})
"""Codes of calls that are wrong as they are."""


@dataclass(frozen=True, slots=True)
class StartBy:
    """The moment past which a call must not begin: an uptime of one boot of the handler."""

    boot_id: str
    uptime_s: float


@dataclass(slots=True)
class Call:
    """One request to a handler.

    `timeout_s` bounds the caller's wait, not the run. Without `request_id` the reply is flat,
    as an unmodified ScheduleZero server expects it. `attempts_left` is how often the caller makes
    the call again should a `retry_safe` method fail.
    """

    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    request_id: str | int | None = None
    timeout_s: float | None = None
    start_by: StartBy | None = None
    attempts_left: int | None = None


@dataclass(slots=True)
class Reply:
    """One answer: `result` when `success`, else `error` (a sentence), `code` and `details`."""

    success: bool
    result: Any = None
    error: str = ""
    code: str = ""
    retryable: bool = False
    details: Any = None
    request_id: str | int | None = None
    run_id: str | None = None
    duration_ms: float = 0.0

    def unwrap(self) -> Any:
        """The result, or the error that its code stands for, raised."""
        if self.success:
            return self.result
        raise error_for_code(self.code, self.error, self.details)


def encode_json(value: Any, *, sort_keys: bool = False) -> bytes:
    """JSON text of a value; models, paths, sets and decimals are written as JSON's own kinds.

    Integers keep all their digits; in calls and replies those past 64 bits are refused.

    Raises:
        TypeError: A value that has no JSON form, or nesting past the codec's depth.
    """
    try:
        return _dumps(value, sort_keys=sort_keys)
    except TypeError as error:
        # The codec has no type of its own for this error, nor a setting for longer integers.
        if "64-bit" not in str(error):
            raise
        return _dumps(_with_long_integers(value), sort_keys=sort_keys)


def parse_json(text: bytes | str, *, long_integer: Callable[[str], Any] = int) -> Any:
    """JSON as Python's own `json` reads it; NaN and infinity are null.

    Args:
        text: In UTF-8, or in what else `json` recognises.
        long_integer: Makes the value of an integer of 19 digits or more; one past 4,300 digits
            is a text, as Python reads no longer ones.

    Raises:
        ValueError: Not JSON.
        RecursionError: Nested too deeply.
    """

    def integer(digits: str) -> Any:
        if len(digits) > MAX_INTEGER_DIGITS:
            return digits
        return int(digits) if len(digits) < 19 else long_integer(digits)

    def number(digits: str) -> float | None:
        value = float(digits)
        return value if math.isfinite(value) else None

    return json.loads(text, parse_int=integer, parse_float=number, parse_constant=lambda name: None)


def decode_call(frame: bytes) -> Call:
    """The call in one JSON text frame.

    Raises:
        BadRequestError: Not JSON, not an object, no method, or a field of the wrong kind.
    """
    try:
        body = orjson.loads(frame)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"a call is one JSON object: {error}") from None
    if not isinstance(body, dict):
        raise BadRequestError("a call is one JSON object")
    try:
        check_depth(frame, body)
        return call_of(body)
    except BadRequestError as error:
        request_id = body.get("request_id")
        error.request_id = request_id if isinstance(request_id, str | int) else None
        raise


def encode_call(call: Call) -> bytes:
    """The JSON text frame of a call; absent fields are left out."""
    names = ("request_id", "timeout_s", "start_by", "attempts_left")
    fields = ((name, getattr(call, name)) for name in names)
    given = {name: value for name, value in fields if value is not None}
    return _dumps({"method": call.method, "params": call.params, **given})


def encode_reply(reply: Reply) -> bytes:
    """The JSON text frame of a reply: full with a `request_id`.

    Without one it is flat: the method's own dict, as a ScheduleZero server records it.
    """
    body: JsonObject = {"success": reply.success}
    is_flat = reply.request_id is None
    if not is_flat:
        body["request_id"] = reply.request_id
        if reply.run_id is not None:
            body["run_id"] = reply.run_id
        body["duration_ms"] = reply.duration_ms
    if not reply.success:
        body["error"] = one_line_ascii(reply.error) if is_flat else reply.error
        body["code"], body["retryable"] = reply.code, reply.retryable
        if reply.details is not None:
            body["details"] = reply.details
    elif is_flat and isinstance(reply.result, dict):
        body |= reply.result
    else:
        body["result"] = reply.result
    return _dumps(body)


def encode_within(max_bytes: int, method: str, reply: Reply) -> tuple[Reply, bytes]:
    """The frame of a method's reply, and the reply in it: what cannot be sent is an error."""
    try:
        frame = encode_reply(reply)
    except TypeError as error:
        fault: CatalogZeroError = FailedError(f"{method} returned no JSON: {error}")
    else:
        if len(frame) <= max_bytes:
            return reply, frame
        fault = TooLargeError(f"the reply has {len(frame)} bytes, the limit is {max_bytes}")
    if reply.success:
        failed = error_reply(fault)
        reply = replace(
            failed, request_id=reply.request_id, run_id=reply.run_id, duration_ms=reply.duration_ms
        )
    reply = replace(reply, error=reply.error[:MAX_ERROR_CHARS], details=None)
    return reply, encode_reply(reply)


def decode_reply(frame: bytes) -> Reply:
    """The reply in one frame, of either shape.

    Raises:
        BadRequestError: Not a JSON object.
    """
    try:
        body = orjson.loads(frame)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the reply is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequestError("the reply is no JSON object")
    request_id = body.get("request_id")
    reply = reply_of(body, body.get("result") if "request_id" in body else body)
    reply.request_id = request_id if isinstance(request_id, str) else None
    reply.run_id, reply.duration_ms = body.get("run_id"), body.get("duration_ms") or 0.0
    return reply


def decode_plain_reply(frame: bytes) -> Reply:
    """The reply of a plain handler: any JSON is one, and all of it is the result.

    What is not JSON is an error of the code `bad_reply`.
    """
    try:
        body = parse_json(frame)
        if b"\\u" in frame:  # half of a surrogate pair is a question mark: nothing could write it
            body = parse_json(json.dumps(body, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError) as error:
        return Reply(success=False, error=f"the reply is not JSON: {error}", code=BAD_REPLY)
    return reply_of(body if isinstance(body, dict) else {}, body)


def reply_of(body: JsonObject, result: Any) -> Reply:
    """The reply in a JSON object, either this result or the object's error."""
    if body.get("success") is not False:
        return Reply(success=True, result=result)
    return Reply(
        success=False,
        error=str(body.get("error") or "the handler gave no reason"),
        code=str(body.get("code") or "failed"),
        retryable=body.get("retryable") is True,
        details=body.get("details"),
    )


def plain_result(result: Any) -> Any:
    """The method's own result in a plain reply: without `success: true`.

    A reply of nothing but `result` stands for it, where that is not an object: those stay at the
    level at which the handler sent them.
    """
    if not isinstance(result, dict):
        return result
    rest = {name: value for name, value in result.items() if (name, value) != ("success", True)}
    alone = rest.keys() == {"result"} and not isinstance(rest["result"], dict)
    return rest["result"] if alone else rest


def may_get_better(reply: Reply) -> bool:
    """Whether a call that failed may do better when it is repeated.

    One that is wrong as it is does not, nor what its method says is permanent; and what somebody
    cancelled on purpose is not to run again.
    """
    if reply.code == "cancelled":
        return isinstance(reply.details, dict) and reply.details.get("by") == "timeout_s"
    return reply.code != "permanent" and reply.code not in REFUSED


def error_reply(error: CatalogZeroError, call: Call | None = None, **fields: Any) -> Reply:
    """The reply that reports an error; `fields` are others of `Reply`, such as `run_id`."""
    asked = call if call is not None else error
    return Reply(
        success=False,
        error=utf8(error.message),
        code=error.code,
        retryable=error.retryable,
        details=error.details,
        request_id=getattr(asked, "request_id", None),
        **fields,
    )


def utf8(text: str) -> str:
    """The text with what is no UTF-8, as file names may hold it, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line_ascii(text: str) -> str:
    """One printable line of ASCII: ScheduleZero's HTTP API answers "Unknown" to any other."""
    printable = "".join(c if c.isprintable() else " " for c in text[:FLAT_ERROR_CHARS])
    line = " ".join(printable.split())
    return line.encode("ascii", "backslashreplace").decode("ascii")


def check_depth(frame: bytes, body: JsonObject) -> None:
    """Refuse a call that the codec could read but not write again, in a reply or a digest."""
    if frame.count(b"[") + frame.count(b"{") <= MAX_DEPTH:
        return
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for value in level
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise BadRequestError(f"a call nests at most {MAX_DEPTH} levels deep")


def call_of(body: JsonObject) -> Call:
    """The call that an object holds.

    Raises:
        BadRequestError: A field is missing, or of the wrong kind.
    """
    method, params = body.get("method"), body.get("params")
    if not isinstance(method, str) or not method:
        raise BadRequestError("a call needs `method`, a name")
    if params is not None and not isinstance(params, dict):
        raise BadRequestError("`params` is a JSON object")
    request_id = body.get("request_id")
    # By its exact type: a bool is an int to Python, and no id.
    chars = len(request_id) if isinstance(request_id, str) else 1
    if type(request_id) not in (str, int, NoneType) or not 0 < chars <= MAX_ID_CHARS:
        limits = f"a string of 1 to {MAX_ID_CHARS} characters, or a whole number"
        raise BadRequestError(f"`request_id` is {limits}")
    left = body.get("attempts_left")
    if left is not None and (type(left) is not int or left < 0):
        raise BadRequestError("`attempts_left` is a whole number, 0 or more")
    given, start_by = body.get("start_by"), None
    if given is not None:
        fields = given if isinstance(given, dict) else {}
        boot_id, uptime_s = fields.get("boot_id"), seconds_in(fields, "uptime_s")
        if not isinstance(boot_id, str) or uptime_s is None:
            raise BadRequestError("`start_by` is {boot_id: string, uptime_s: number}")
        start_by = StartBy(boot_id, uptime_s)
    return Call(method, params or {}, request_id, seconds_in(body, "timeout_s"), start_by, left)


def seconds_in(body: JsonObject, name: str) -> float | None:
    """A field of seconds, a finite number, not negative; None where it is missing."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise BadRequestError(f"`{name}` is a number of seconds, 0 or more")
    return min(float(value), MAX_TIMEOUT_S)


def _dumps(value: Any, *, sort_keys: bool = False) -> bytes:
    """JSON text by the codec, whose integers have 64 bits."""
    options = orjson.OPT_NON_STR_KEYS | (orjson.OPT_SORT_KEYS if sort_keys else 0)
    text = orjson.dumps(value, default=_jsonable, option=options)
    # The codec's bytes keep the buffer that it wrote into: 4 KiB at least, often ten times as much.
    return bytes(memoryview(text))


def _with_long_integers(value: Any) -> Any:
    """The value with its integers as text that the codec copies."""
    if isinstance(value, dict):
        return {name: _with_long_integers(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_long_integers(item) for item in value]
    is_long = type(value) is int and not -(1 << 63) <= value < 1 << 64
    return orjson.Fragment(str(value)) if is_long else value


def _jsonable(value: Any) -> Any:
    """JSON's own kind for a value that the codec does not know."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, SecretStr | PurePath):
        return str(value)
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    if isinstance(value, bytes):
        raise TypeError("bytes have no JSON form: encode them as text first")
    if hasattr(value, "__float__"):
        number = float(value)
        return number if math.isfinite(number) else None
    raise TypeError(f"a {type(value).__name__} has no JSON form")

"""What a request carries, read within bounds of size and time.

Owns the reading alone: what a body means is its service's. A body is read as it was sent or, where
the server decompresses, as it decompresses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson
from aiohttp import web

from catalogzero.web.edge import HttpError

BODY_TIMEOUT_S = 60.0
BODY_S: web.AppKey[float] = web.AppKey("body_s")
"""How long a body may take to arrive, where `listening` sets another bound."""


async def body_parts(request: web.Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The body's parts as they come; time counts from the call to the last of them.

    Raises:
        HttpError: 413 over `max_bytes`; 408 where it is late (`ConnectionLimits.body_s`).
    """
    timeout_s: float = request.config_dict.get(BODY_S, BODY_TIMEOUT_S)
    too_large = HttpError(413, f"The body has more than {max_bytes} bytes.")
    if (request.content_length or 0) > max_bytes:
        raise too_large
    loop, size = asyncio.get_running_loop(), 0
    # one deadline for all parts: a byte now and then does not put it off
    deadline_s = loop.time() + timeout_s
    while True:
        try:
            async with asyncio.timeout_at(deadline_s):
                part = await request.content.readany()
        except TimeoutError:
            raise HttpError(408, f"The body did not come within {timeout_s:g} s.") from None
        if not part:
            return
        size += len(part)
        if size > max_bytes:
            raise too_large
        yield part


async def read_body(request: web.Request, max_bytes: int) -> bytes:
    """The whole body.

    Raises:
        HttpError: 408 or 413, as `body_parts`.
    """
    return b"".join([part async for part in body_parts(request, max_bytes)])


async def read_json(
    request: web.Request, max_bytes: int, *, expected: str = "JSON body required."
) -> Any:
    """The value of a body that is declared as `application/json`.

    Args:
        request: Whose body is read.
        max_bytes: Its bound.
        expected: The sentence of the answer to anything else.

    Raises:
        HttpError: 400 for anything but JSON, or for JSON nested more than 254 deep; 408, 413.
    """
    if request.content_type != "application/json":
        raise HttpError(400, expected)
    body = await read_body(request, max_bytes)
    try:
        value = orjson.loads(body)
        orjson.dumps(value)
    except orjson.JSONDecodeError:
        raise HttpError(400, expected) from None
    except orjson.JSONEncodeError:
        raise HttpError(400, "The body is nested too deeply.") from None
    return value


def header_text(request: web.Request, name: str, *, max_chars: int) -> str | None:
    """A header that will be stored; None where it is absent.

    Raises:
        HttpError: 400, it is not 1 to `max_chars` printable characters.
    """
    value = request.headers.get(name)
    if value is not None and not (0 < len(value) <= max_chars and value.isprintable()):
        raise HttpError(400, f"{name} must be 1 to {max_chars} printable characters.")
    return value


def query_int(query: Mapping[str, str], name: str, default: int) -> int:
    """A whole number in a query.

    Raises:
        HttpError: 400, it is another text.
    """
    try:
        return int(query.get(name, default))
    except ValueError:
        raise HttpError(400, f"Invalid parameter: {name} must be a whole number.") from None

"""An application whose every answer is well-formed: headers, refusals, and faults of its own.

Owns the one place where an exception becomes an answer. A service gives the shape of its errors
(`{"error": ...}`, a problem document) and says what its own exceptions mean; everything else is a
400 that names what is wrong with the request, or a bare 500 beside one line in the log.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from structlog.typing import FilteringBoundLogger

from catalogzero.errors import CatalogZeroError

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self';"
    " frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "catalogzero",
}
"""What every answer carries, errors and event streams too."""

BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
BEGUN = web.RequestKey("begun", bool)
MORE_HEADERS = web.RequestKey("more_headers", dict[str, str])
"""What one request's answer has beside the headers of all."""


class HttpError(CatalogZeroError):
    """An answer that is no success.

    Args:
        status: From 400 on.
        message: One sentence for whoever asked; never the request's own content but by `repr`.
        headers: Of the answer, such as `Allow`.
    """

    def __init__(
        self, status: int, message: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


Shape = Callable[[HttpError], web.Response]
"""A service's form of an error."""

Meaning = Callable[[Exception], HttpError | web.Response | None]
"""What a service makes of an exception of its own; None: it is a fault."""

SHAPE: web.AppKey[Shape] = web.AppKey("shape")


def edge_application(
    shape: Shape,
    log: FilteringBoundLogger,
    *,
    outer: Iterable[Middleware] = (),
    inner: Iterable[Middleware] = (),
    meaning: Meaning = lambda error: None,
) -> web.Application:
    """An application without routes, which answers every failure in one form.

    Args:
        shape: Makes the answer of an error.
        log: Gets one line with its traceback for each fault of the service.
        outer: Middlewares that see finished answers, errors included.
        inner: Middlewares before the handlers, such as `Guard.middleware`.
        meaning: What the service's own exceptions mean.
    """
    app = web.Application(
        middlewares=[*outer, error_middleware(shape, log, meaning), *inner],
        handler_args={"debug": False},
    )
    app[SHAPE] = shape
    app.on_response_prepare.append(_add_headers)
    return app


NOT_KEPT = {"Cache-Control": "no-store"}
"""The header of an answer that no browser or proxy may keep."""


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A JSON answer.

    Raises:
        TypeError: The value is no JSON, or is nested more than 254 deep.
    """
    return web.json_bytes_response(value, dumps=orjson.dumps, status=status, headers=headers)


async def _add_headers(request: web.Request, answer: web.StreamResponse) -> None:
    """The headers of every answer, just before it is sent; a service's own win."""
    request[BEGUN] = True
    for name, value in {**HEADERS, **request.get(MORE_HEADERS, {})}.items():
        answer.headers.setdefault(name, value)


def error_middleware(shape: Shape, log: FilteringBoundLogger, meaning: Meaning) -> Middleware:
    """The outermost frame of a request: whatever is raised becomes an answer."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            check_target(request.raw_path)
            return await handler(request)
        except HttpError as error:
            found: HttpError | web.Response = error
        except web.HTTPException as error:
            # a redirect is an answer, and no failure
            if error.status < 400:
                raise
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            found = HttpError(error.status, error.reason, headers=allow)
        except web.RequestPayloadError:
            found = HttpError(400, "The body breaks off, or does not decode as it is declared.")
        except Exception as error:  # the outermost frame of a request
            is_gone = request.transport is None or request.transport.is_closing()
            if isinstance(error, ConnectionError) and is_gone:
                raise  # in mid-body: nobody is there to answer
            meant = meaning(error)
            if meant is None:
                # the traceback is for the log, nothing of it for the client
                log.exception("request_failed", path=request.path, method=request.method)
            found = meant or HttpError(500, "Internal error: see the service's log.")
        # a second head would be read as a part of the body
        if request.get(BEGUN):
            raise ConnectionResetError("the answer had begun: only its end can show the fault")
        return found if isinstance(found, web.Response) else shape(found)

    return answer


def check_target(raw: str) -> None:
    """Refuse a path or query that stands for no text which can be stored.

    Raises:
        HttpError: 400, with what is wrong.
    """
    if "%" not in raw:
        return
    if BAD_ESCAPE.search(raw):
        raise HttpError(400, "The path or query has a % without two hexadecimal digits.")
    try:
        text = unquote_to_bytes(raw).decode()
    except UnicodeError:
        raise HttpError(400, "The path or query is not valid UTF-8 once unescaped.") from None
    if "\0" in text:
        raise HttpError(400, "The path or query has a NUL character.")

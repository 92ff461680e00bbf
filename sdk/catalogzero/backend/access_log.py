"""The access log: one line for each request, and the ids that tie it to other logs.

Owns `request_id` and `traceparent`: what a client or a proxy sent, if it is well-formed, else an id
made here; every other line that is written on the way carries them too, and the answer names the
id. A line holds no query, no header and no body, and a key in a path is not shown.
"""

from __future__ import annotations

import re
import uuid
from contextlib import suppress
from time import perf_counter
from typing import Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from structlog.typing import FilteringBoundLogger

from catalogzero.backend.observe import named
from catalogzero.backend.tenants import KEY_PATTERN
from catalogzero.config.logs import run_ids
from catalogzero.config.seldom import Seldom

REQUEST_ID = "X-Request-Id"
REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
TRACEPARENT_PATTERN = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
PROBES = ("/healthz", "/readyz", "/metrics")
MAX_PATH_CHARS = 300
REFUSALS = frozenset({400, 401, 403, 413, 415, 422, 429})
"""Answers of which an operator is to hear: the others are part of a client's ordinary way."""
GONE = 499
"""The status of a line whose client went away before it was answered."""
TENANT = web.RequestKey("tenant", str)
"""The name of the tenant whose key a request showed."""


def access_logger(log: FilteringBoundLogger, seldom: Seldom, *, enabled: bool) -> Middleware:
    """The outermost middleware: gives each request its ids, and writes its line at the end.

    What a tenant is refused is a warning besides, at first and then at growing intervals.

    Args:
        log: Where lines go.
        seldom: Says which refusals are worth a line.
        enabled: Whether they are written; ids are given all the same. Probes that succeed are not.
    """

    @web.middleware
    async def write(request: web.Request, handler: Handler) -> web.StreamResponse:
        ids = _ids(request)
        before, began_s, status, size = run_ids.set(ids), perf_counter(), GONE, 0
        try:
            answer = await handler(request)
            status = answer.status
            body = answer.body if isinstance(answer, web.Response) else None
            size = len(body) if isinstance(body, bytes) else 0
            if status in REFUSALS:
                _warn_of_refusal(log, seldom, request, status, body)
            if not answer.prepared:
                answer.headers[REQUEST_ID] = ids["request_id"]
            return answer
        finally:
            if enabled and not (status < 400 and request.path in PROBES):
                _write(log, request, status, size, perf_counter() - began_s)
            run_ids.reset(before)

    return write


def _warn_of_refusal(
    log: FilteringBoundLogger, seldom: Seldom, request: web.Request, status: int, body: Any
) -> None:
    """A line on what was refused, to whom, and why, where it is its turn."""
    tenant = request.get(TENANT)
    if times := seldom.is_due(f"{status} {tenant}"):
        reason, route = "", named(request)[1]
        with suppress(ValueError, TypeError, KeyError):  # an answer of another form
            reason = orjson.loads(body)["detail"]
        about = {"status": status, "route": route, "tenant": tenant, "remote": request.remote}
        log.warning("refused", **about, reason=reason, times=times)


def _ids(request: web.Request) -> dict[str, str]:
    """The ids of a request: its own where they are well-formed."""
    given, parent = request.headers.get(REQUEST_ID, ""), request.headers.get("traceparent", "")
    ids = {"request_id": given if REQUEST_ID_PATTERN.fullmatch(given) else uuid.uuid4().hex}
    return {**ids, "traceparent": parent} if TRACEPARENT_PATTERN.fullmatch(parent) else ids


def _write(
    log: FilteringBoundLogger, request: web.Request, status: int, size: int, seconds: float
) -> None:
    """The line of a request."""
    method, route = named(request)
    log.info(
        "request",
        method=method,
        route=route,
        path=KEY_PATTERN.sub("czk_…", request.path)[:MAX_PATH_CHARS],
        status=status,
        duration_ms=round(seconds * 1_000, 1),
        received_bytes=request.content.total_bytes,
        sent_bytes=size,
        tenant=request.get(TENANT),
        remote=request.remote,
    )

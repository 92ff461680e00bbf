"""The scheduler's HTTP API: ScheduleZero's paths, fields, statuses and error texts, and ours.

The contract is `pages/openapi.json`. On loopback the Host header must be loopback too, and what
changes something must come from no other origin, so that no web page elsewhere can use a
browser to reach it; beyond loopback every request needs the token. CORS is off.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any
from zoneinfo import ZoneInfo

import orjson
from aiohttp import web
from sqlalchemy.exc import DataError, DBAPIError
from structlog.typing import FilteringBoundLogger

from catalogzero.errors import CatalogZeroError
from catalogzero.scheduler.forms import (
    ApiError,
    check_method,
    digest_of,
    read_call,
    read_cursor,
    read_filters,
    read_limit,
    read_run,
    read_schedule,
    read_wait,
)
from catalogzero.scheduler.rows import Handler
from catalogzero.scheduler.runner import Runner
from catalogzero.scheduler.ticks import Schedule, from_us
from catalogzero.scheduler.triggers import describe_trigger
from catalogzero.sql.engines import DATABASE_AWAY
from catalogzero.wire.messages import one_line_ascii

PING_TIMEOUT_S = 2.0
MAX_BODY_BYTES = 1 << 20
MAX_PREVIEW = 100
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PAGES = {"/": "index.html", "/pages/schedules.js": "schedules.js", "/pages/style.css": "style.css"}
CONTENT_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Api:
    """The API over one runner.

    Args:
        runner: Does the work.
        log: Where failures are told.
        config: What `/api/config` answers; no secrets.
        token: Bearer token that every request must show; None on loopback.
    """

    def __init__(
        self,
        runner: Runner,
        log: FilteringBoundLogger,
        config: dict[str, Any],
        token: str | None = None,
    ) -> None:
        self._runner = runner
        self._log = log
        self._config = config
        self._token = token

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(
            middlewares=[self._errors, self._guard], client_max_size=MAX_BODY_BYTES
        )
        app.add_routes(
            [
                web.post("/api/schedule", self._add_schedule),
                web.post("/api/run_now", self._run_now),
                web.get("/api/schedules", self._list_schedules),
                web.delete("/api/schedules/{job_id}", self._remove_schedule),
                web.post("/api/schedules/{job_id}/pause", self._pause),
                web.post("/api/schedules/{job_id}/resume", self._resume),
                web.post("/api/schedules/{job_id}/run", self._run_schedule),
                web.get("/api/schedules/{job_id}/next", self._next),
                web.get("/api/executions", self._executions),
                web.get("/api/executions/stats", self._stats),
                web.get("/api/executions/errors", self._execution_errors),
                web.post("/api/executions/clear", self._clear),
                web.get("/api/executions/{execution_id}", self._execution),
                web.get("/api/handlers", self._handlers),
                web.get("/api/health", self._health),
                web.get("/api/config", self._tell_config),
                web.get("/api/openapi.json", self._openapi),
                *(web.get(path, self._page) for path in PAGES),
            ]
        )
        return app

    # --- schedules

    async def _add_schedule(self, request: web.Request) -> web.Response:
        body = await _body(request)
        new = await self._runner.read(read_schedule, body, self._now())
        check_method(await self._handler(new.handler_id), new.handler_id, new.method)
        try:
            added = await self._runner.write(self._runner.store.add_schedule, new)
        except ValueError as error:
            raise ApiError(400, f"Invalid trigger configuration: {error}") from None
        if added is None:
            raise ApiError(409, f"Job ID '{new.job_id}' already exists.")
        self._runner.wake()
        return _json({"status": "success", "job_id": added.job_id}, 201)

    async def _list_schedules(self, request: web.Request) -> web.Response:
        limit = read_limit(request.query) if "limit" in request.query else None
        search = request.query.get("search", "").replace("\0", "")
        return await self._runner.read(self._listing, limit, search)

    def _listing(self, limit: int | None, search: str) -> web.Response:
        """The schedules, read and written as JSON in the reader's thread: there may be many."""
        store = self._runner.store
        shown = [schedule_record(one) for one in store.list_schedules(limit, search)]
        if limit is None:
            return _json({"schedules": shown, "count": len(shown)})
        last = self._runner.history.last_of([one["id"] for one in shown])
        for one in shown:
            one["last_execution"] = last.get(one["id"])
        return _json({"schedules": shown, "count": store.count_schedules(search)})

    async def _remove_schedule(self, request: web.Request) -> web.Response:
        job_id = request.match_info["job_id"]
        if not await self._runner.write(self._runner.store.remove_schedule, job_id):
            raise _unknown_schedule(job_id)
        return _changed(job_id, "removed")

    async def _pause(self, request: web.Request) -> web.Response:
        return await self._set_paused(request.match_info["job_id"], True)

    async def _resume(self, request: web.Request) -> web.Response:
        return await self._set_paused(request.match_info["job_id"], False)

    async def _set_paused(self, job_id: str, paused: bool) -> web.Response:
        if not await self._runner.write(self._runner.store.pause_schedule, job_id, paused):
            raise _unknown_schedule(job_id)
        self._runner.wake()
        return _changed(job_id, "paused" if paused else "resumed")

    async def _run_schedule(self, request: web.Request) -> web.Response:
        found = await self._schedule(request)
        body = {
            "handler_id": found.handler_id,
            "job_method": found.method,
            "job_params": found.params,
            "timeout_s": found.timeout_s,
            "max_attempts": found.max_attempts,
        }
        one = read_run(body, self._now())
        one.job_id = found.job_id
        execution_id = await self._runner.run_now(one, None, digest_of(one))
        return _json({"status": "accepted", "execution_id": execution_id}, 202)

    async def _next(self, request: web.Request) -> web.Response:
        count = read_limit({"limit": request.query.get("count", "5")}, most=MAX_PREVIEW)
        found = await self._schedule(request)
        ticks = await self._runner.read(lambda: [*found.preview(self._runner.now_us(), count)])
        name = found.trigger_config.get("timezone", "UTC")
        moments = [from_us(tick) for tick in ticks]
        return _json(
            {
                "schedule_id": found.job_id,
                "paused": found.paused,
                "timezone": name,
                "next": [moment.isoformat() for moment in moments],
                "local": [moment.astimezone(ZoneInfo(name)).isoformat() for moment in moments],
            }
        )

    # --- executions

    async def _run_now(self, request: web.Request) -> web.Response:
        body = await _body(request)
        handler_id, method, _ = read_call(body)
        check_method(await self._handler(handler_id), handler_id, method)
        one, wait = read_run(body, self._now()), read_wait(body)
        key = request.headers.get("Idempotency-Key")
        if key is not None and not (0 < len(key) <= 200 and key.isprintable()):
            raise ApiError(400, "Idempotency-Key must be 1 to 200 printable characters.")
        try:
            execution_id = await self._runner.run_now(one, key, digest_of(one))
        except ValueError as error:
            raise ApiError(409, str(error)) from None
        if not wait:
            return _json({"status": "accepted", "execution_id": execution_id}, 202)
        record = await self._runner.finished(execution_id)
        if record["status"] != "success":
            raise ApiError(500, f"Failed to execute job: {record['error']}")
        told = {"status": "success", "result": record["result"], "execution_id": execution_id}
        return _json({**told, "message": f"Job executed on handler '{handler_id}'"})

    async def _executions(self, request: web.Request) -> web.Response:
        limit, before = read_limit(request.query), read_cursor(request.query)
        filters = read_filters(request.query)
        newest = self._runner.history.newest
        records, cursor = await self._runner.read(newest, filters, limit, before)
        told = {"records": records, "count": len(records), "limit": limit}
        return _json({**told, "cursor": None if cursor is None else str(cursor)})

    async def _execution(self, request: web.Request) -> web.Response:
        execution_id = request.match_info["execution_id"]
        record = await self._runner.read(self._runner.history.find, execution_id)
        if record is None:
            raise ApiError(404, f"Execution '{execution_id}' not found")
        return _json(record)

    async def _execution_errors(self, request: web.Request) -> web.Response:
        limit = read_limit(request.query, default=50, most=500)
        newest = self._runner.history.newest
        errors, _ = await self._runner.read(newest, {"status": "error"}, limit)
        return _json({"errors": errors, "count": len(errors), "limit": limit})

    async def _stats(self, request: web.Request) -> web.Response:
        return _json(await self._runner.read(self._runner.history.stats))

    async def _clear(self, request: web.Request) -> web.Response:
        await self._runner.write(self._runner.history.clear)
        return _json({"status": "success", "message": "Execution history cleared"})

    # --- the rest

    async def _handlers(self, request: web.Request) -> web.Response:
        found = await self._runner.read(self._runner.store.list_handlers)
        alive = await asyncio.gather(*(self._is_connected(one) for one in found))
        shown = [
            {
                "id": one.handler_id,
                "address": one.address,
                "methods": one.methods,
                "status": "Connected" if connected else "Disconnected",
                "last_seen_at": from_us(one.seen_us).isoformat(),
            }
            for one, connected in zip(found, alive, strict=True)
        ]
        return _json({"handlers": shown, "count": len(shown)})

    async def _is_connected(self, handler: Handler) -> bool:
        """Whether a handler answers a ping."""
        try:
            link = await self._runner.links.get(handler.handler_id)
            await asyncio.wait_for(link.ask(), PING_TIMEOUT_S)
        except (CatalogZeroError, TimeoutError):
            return False
        return True

    async def _health(self, request: web.Request) -> web.Response:
        return _json({"status": "ok", "service": "catalogzero scheduler"})

    async def _tell_config(self, request: web.Request) -> web.Response:
        return _json(self._config)

    async def _openapi(self, request: web.Request) -> web.Response:
        return web.Response(body=_asset("openapi.json"), content_type="application/json")

    async def _page(self, request: web.Request) -> web.Response:
        name = PAGES[request.path]
        kind = CONTENT_TYPES[name.rpartition(".")[2]]
        headers = {"Content-Security-Policy": CONTENT_SECURITY, "Cache-Control": "no-cache"}
        return web.Response(body=_asset(name), content_type=kind, charset="utf-8", headers=headers)

    # --- what every request goes through

    @web.middleware
    async def _errors(self, request: web.Request, handler: Answer) -> web.StreamResponse:
        """Every failure as `{"error": {"code", "message"}}`."""
        try:
            answer = await handler(request)
        except ApiError as error:
            answer = _failure(error.status, error.message)
        except web.HTTPException as error:
            answer = _failure(error.status, error.reason)
        except (DataError, UnicodeError):
            answer = _failure(400, "Invalid parameter: no such text can be stored.")
        except (DBAPIError, *DATABASE_AWAY) as error:
            why = one_line_ascii(str(getattr(error, "orig", error)))
            self._log.warning("database_away", error=why)
            answer = _failure(503, f"The database does not take this now ({why}): try again.")
        except Exception:  # noqa: BLE001 - the outermost frame of a request
            self._log.exception("request_failed", path=request.path)
            answer = _failure(500, "Internal error: see the scheduler's log.")
        answer.headers["X-Content-Type-Options"] = "nosniff"
        return answer

    @web.middleware
    async def _guard(self, request: web.Request, handler: Answer) -> web.StreamResponse:
        """The token, or on loopback that the request comes from here."""
        if self._token is not None:
            shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
            right = hmac.compare_digest(shown.encode(), self._token.encode())
            if not right and request.path not in PAGES:
                raise ApiError(401, "A Bearer token is required: the scheduler's token_file.")
        elif _name_of(request.host) not in LOOPBACK:
            raise ApiError(403, f"Host '{request.host}' is not this machine's loopback.")
        origin = request.headers.get("Origin")
        if request.method != "GET" and origin and origin.partition("://")[2] != request.host:
            raise ApiError(403, "Requests from other origins are refused.")
        return await handler(request)

    async def _handler(self, handler_id: str) -> Handler | None:
        return await self._runner.read(self._runner.store.find_handler, handler_id)

    async def _schedule(self, request: web.Request) -> Schedule:
        job_id = request.match_info["job_id"]
        found = await self._runner.read(self._runner.store.find_schedule, job_id)
        if found is None:
            raise _unknown_schedule(job_id)
        return found

    def _now(self) -> Any:
        return from_us(self._runner.now_us())


def schedule_record(one: Schedule) -> dict[str, Any]:
    """A schedule as the API tells it."""
    next_us = None if one.paused else one.tick_us
    return {
        "id": one.job_id,
        "next_fire_time": None if next_us is None else from_us(next_us).isoformat(),
        "trigger": describe_trigger(one.trigger_config),
        "args": [one.handler_id, one.method, one.params, one.job_id],
        "handler_id": one.handler_id,
        "method_name": one.method,
        "params": one.params,
        "trigger_config": one.trigger_config,
        "timezone": one.trigger_config.get("timezone", "UTC"),
        "paused": one.paused,
        "overlap": one.overlap,
        "misfire_grace_s": one.misfire_grace_s,
        "max_attempts": one.max_attempts,
        "timeout_s": one.timeout_s,
        "jitter_s": one.jitter_s,
        "max_runs": one.max_runs,
        "runs": one.runs,
        "end_time": None if one.end_us is None else from_us(one.end_us).isoformat(),
        "created_at": from_us(one.created_us).isoformat(),
    }


async def _body(request: web.Request) -> Any:
    """The JSON body; None when there is none, or it is not declared as JSON.

    Raises:
        ApiError: 400, it is nested too deeply to be written down again.
    """
    if request.content_type != "application/json":
        return None
    try:
        body = orjson.loads(await request.read())
        orjson.dumps(body)
    except orjson.JSONDecodeError:
        return None
    except orjson.JSONEncodeError:
        raise ApiError(400, "The body is nested too deeply.") from None
    return body


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def _failure(status: int, message: str) -> web.Response:
    return _json({"error": {"code": status, "message": message}}, status)


def _changed(job_id: str, what: str) -> web.Response:
    message = f"Schedule '{job_id}' {what}"
    return _json({"status": "success", "message": message, "schedule_id": job_id})


def _unknown_schedule(job_id: str) -> ApiError:
    return ApiError(404, f"Schedule '{job_id}' not found")


def _asset(name: str) -> bytes:
    """A file that the package carries."""
    return files("catalogzero.scheduler").joinpath("pages", name).read_bytes()


def _name_of(host: str) -> str:
    """The host's name without its port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]

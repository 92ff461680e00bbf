"""The scheduler's HTTP API: ScheduleZero's paths, fields, statuses and error texts, and ours.

The contract is the document of `openapi`. Without a token it is open to this machine alone; with
one, everything but the page itself needs it (see `catalogzero.web.Guard`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from aiohttp import web
from sqlalchemy.exc import DataError, DBAPIError
from structlog.typing import FilteringBoundLogger

from catalogzero.errors import CatalogZeroError
from catalogzero.scheduler import forms
from catalogzero.scheduler.history import FILTERS
from catalogzero.scheduler.openapi import document
from catalogzero.scheduler.rows import Handler
from catalogzero.scheduler.runner import Runner
from catalogzero.scheduler.ticks import Schedule, from_us, iso_of
from catalogzero.scheduler.triggers import describe_trigger
from catalogzero.sql.engines import DATABASE_AWAY
from catalogzero.web import (
    Guard,
    HttpError,
    Pages,
    edge_application,
    header_text,
    json_response,
    read_json,
)
from catalogzero.wire.messages import encode_json, one_line_ascii

PING_TIMEOUT_S = 2.0
MAX_BODY_BYTES = 1 << 20
CALL_BYTES = 600
"""At most what a call has beside its method and params."""

MAX_PREVIEW = 100
SAME = (
    *("handler_id", "params", "trigger_config", "paused", "overlap", "runs"),
    *("misfire_grace_s", "max_attempts", "timeout_s", "jitter_s", "max_runs"),
)
"""What the API calls as the schedule does."""

PAGES = {"/": "index.html", "/pages/schedules.js": "schedules.js", "/pages/style.css": "style.css"}


@dataclass(frozen=True, slots=True)
class Api:
    """The API over one runner.

    Args:
        runner: Does the work.
        log: Where failures are told.
        config: What `/api/config` answers; no secrets.
        guard: Who may ask; by default this machine.
    """

    runner: Runner
    log: FilteringBoundLogger
    config: dict[str, Any]
    guard: Guard = field(default_factory=lambda: Guard(None))

    def application(self) -> web.Application:
        """The aiohttp application."""
        pages = Pages("catalogzero.scheduler", "pages", PAGES)
        guard = self.guard.middleware(pages.paths)
        app = edge_application(_failure, self.log, inner=[guard], meaning=self._meaning)
        app.add_routes(
            [
                web.post("/api/schedule", self._add_schedule),
                web.post("/api/run_now", self._run_now),
                web.get("/api/schedules", self._list_schedules),
                web.delete("/api/schedules/{job_id}", self._remove_schedule),
                web.post("/api/schedules/{job_id}/pause", partial(self._pause, paused=True)),
                web.post("/api/schedules/{job_id}/resume", partial(self._pause, paused=False)),
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
                *pages.routes(),
            ]
        )
        return app

    # --- schedules

    async def _add_schedule(self, request: web.Request) -> web.Response:
        body = await read_json(request, MAX_BODY_BYTES)
        new = await self.runner.read(forms.read_schedule, body, self._now())
        await self._check_call(new.handler_id, new.method, new.params)
        try:
            added = await self.runner.write(self.runner.store.add_schedule, new)
        except ValueError as error:
            raise HttpError(400, f"Invalid trigger configuration: {error}") from None
        if added is None:
            raise HttpError(409, f"Job ID '{new.job_id}' already exists.")
        self.runner.wake()
        return json_response({"status": "success", "job_id": added.job_id}, 201)

    async def _list_schedules(self, request: web.Request) -> web.Response:
        limit = forms.read_limit(request.query) if "limit" in request.query else None
        search = request.query.get("search", "")
        return await self.runner.read(self._listing, limit, search)

    def _listing(self, limit: int | None, search: str) -> web.Response:
        """The schedules, read and written as JSON in the reader's thread: there may be many."""
        store = self.runner.store
        shown = [schedule_record(one) for one in store.list_schedules(limit, search)]
        if limit is None:
            return json_response({"schedules": shown, "count": len(shown)})
        last = self.runner.history.last_of([one["id"] for one in shown])
        for one in shown:
            one["last_execution"] = last.get(one["id"])
        return json_response({"schedules": shown, "count": store.count_schedules(search)})

    async def _remove_schedule(self, request: web.Request) -> web.Response:
        job_id = request.match_info["job_id"]
        if not await self.runner.write(self.runner.store.remove_schedule, job_id):
            raise _unknown_schedule(job_id)
        return _changed(job_id, "removed")

    async def _pause(self, request: web.Request, *, paused: bool) -> web.Response:
        job_id = request.match_info["job_id"]
        if not await self.runner.write(self.runner.store.pause_schedule, job_id, paused):
            raise _unknown_schedule(job_id)
        self.runner.wake()
        return _changed(job_id, "paused" if paused else "resumed")

    async def _run_schedule(self, request: web.Request) -> web.Response:
        found = await self._moving_schedule(request)
        same = {name: getattr(found, name) for name in ("handler_id", "timeout_s", "max_attempts")}
        run = forms.RunNow(job_method=found.method, job_params=found.params, **same)
        one = run.execution(self._now())
        one.job_id = found.job_id
        execution_id = await self.runner.run_now(one, None, forms.digest_of(one))
        return json_response({"status": "accepted", "execution_id": execution_id}, 202)

    async def _next(self, request: web.Request) -> web.Response:
        count = forms.read_limit({"limit": request.query.get("count", "5")}, most=MAX_PREVIEW)
        found = await self._moving_schedule(request)
        ticks = await self.runner.read(lambda: [*found.preview(self.runner.now_us(), count)])
        name = found.trigger_config.get("timezone", "UTC")
        told = {"schedule_id": found.job_id, "paused": found.paused, "timezone": name}
        moments = [from_us(tick) for tick in ticks]
        local = [moment.astimezone(ZoneInfo(name)).isoformat() for moment in moments]
        return json_response({**told, "next": [m.isoformat() for m in moments], "local": local})

    # --- executions

    async def _run_now(self, request: web.Request) -> web.Response:
        body = forms.read_model(forms.RunNow, await read_json(request, MAX_BODY_BYTES))
        await self._check_call(body.handler_id, body.job_method, body.job_params)
        key = header_text(request, "Idempotency-Key", max_chars=forms.MAX_ID_CHARS)
        one = body.execution(self._now())
        try:
            execution_id = await self.runner.run_now(one, key, forms.digest_of(one))
        except ValueError as error:
            raise HttpError(409, str(error)) from None
        if not body.wait:
            return json_response({"status": "accepted", "execution_id": execution_id}, 202)
        record = await self.runner.finished(execution_id)
        if record["status"] != "success":
            raise HttpError(500, f"Failed to execute job: {record['error']}")
        told = {"status": "success", "result": record["result"], "execution_id": execution_id}
        return json_response({**told, "message": f"Job executed on handler '{body.handler_id}'"})

    async def _executions(self, request: web.Request) -> web.Response:
        limit, before = forms.read_limit(request.query), forms.read_cursor(request.query)
        filters = {name: request.query[name] for name in FILTERS if request.query.get(name)}
        newest = self.runner.history.newest
        records, cursor = await self.runner.read(newest, filters, limit, before)
        told = {"records": records, "count": len(records), "limit": limit}
        return json_response({**told, "cursor": None if cursor is None else str(cursor)})

    async def _execution(self, request: web.Request) -> web.Response:
        execution_id = request.match_info["execution_id"]
        record = await self.runner.read(self.runner.history.find, execution_id)
        if record is None:
            raise HttpError(404, f"Execution '{execution_id}' not found")
        return json_response(record)

    async def _execution_errors(self, request: web.Request) -> web.Response:
        limit = forms.read_limit(request.query, default=50, most=500)
        newest = self.runner.history.newest
        errors, _ = await self.runner.read(newest, {"status": "error"}, limit)
        return json_response({"errors": errors, "count": len(errors), "limit": limit})

    async def _stats(self, request: web.Request) -> web.Response:
        return json_response(await self.runner.read(self.runner.history.stats))

    async def _clear(self, request: web.Request) -> web.Response:
        await self.runner.write(self.runner.history.clear)
        return json_response({"status": "success", "message": "Execution history cleared"})

    # --- the rest

    async def _handlers(self, request: web.Request) -> web.Response:
        found = await self.runner.read(self.runner.store.list_handlers)
        alive = await asyncio.gather(*(self._is_connected(one) for one in found))
        shown = []
        for one, connected in zip(found, alive, strict=True):
            told = {"id": one.handler_id, "address": one.address, "methods": one.methods}
            status = "Connected" if connected else "Disconnected"
            seen_at = from_us(one.seen_us).isoformat()
            shown.append({**told, "status": status, "last_seen_at": seen_at})
        return json_response({"handlers": shown, "count": len(shown)})

    async def _is_connected(self, handler: Handler) -> bool:
        """Whether a handler answers a ping."""
        try:
            link = await self.runner.links.get(handler.handler_id)
            await asyncio.wait_for(link.ask(), PING_TIMEOUT_S)
        except (CatalogZeroError, TimeoutError):
            return False
        return True

    async def _health(self, request: web.Request) -> web.Response:
        told = {"status": "ok", "service": "catalogzero scheduler"}
        return json_response({**told, "clock_step": self.runner.clock_step})

    async def _tell_config(self, request: web.Request) -> web.Response:
        return json_response(self.config)

    async def _openapi(self, request: web.Request) -> web.Response:
        return json_response(document())

    def _meaning(self, error: Exception) -> HttpError | None:
        """What the database's errors mean to a client."""
        if isinstance(error, DataError):
            return HttpError(400, "Invalid parameter: no such text can be stored.")
        if not isinstance(error, (DBAPIError, *DATABASE_AWAY)):
            return None
        why = one_line_ascii(str(getattr(error, "orig", error)))
        self.log.warning("database_away", error=why)
        return HttpError(503, f"The database does not take this now ({why}): try again.")

    async def _check_call(self, handler_id: str, method: str, params: dict[str, Any]) -> None:
        """Refuse what is not registered, and params that the handler would never take."""
        handler = await self.runner.read(self.runner.store.find_handler, handler_id)
        if handler is None:
            raise HttpError(404, f"Handler '{handler_id}' not registered.")
        if method not in handler.methods:
            raise HttpError(400, f"Method '{method}' not exposed by handler '{handler_id}'.")
        limit = self.runner.links.max_call_bytes(handler_id)
        if len(encode_json([method, params])) + CALL_BYTES > limit:
            said = f"calls of at most {limit:,} bytes"
            raise HttpError(413, f"The params are too long: '{handler_id}' takes {said}.")

    async def _moving_schedule(self, request: web.Request) -> Schedule:
        """The schedule that a path names; one that stands still is refused."""
        job_id = request.match_info["job_id"]
        found = await self.runner.read(self.runner.store.find_schedule, job_id)
        if found is None:
            raise _unknown_schedule(job_id)
        if found.fault is not None:
            raise HttpError(409, f"Schedule '{job_id}' stands still: {found.fault}")
        return found

    def _now(self) -> datetime:
        return from_us(self.runner.now_us())


def schedule_record(one: Schedule) -> dict[str, Any]:
    """A schedule as the API tells it."""
    next_us = None if one.paused or one.fault else one.tick_us
    return {name: getattr(one, name) for name in SAME} | {
        "id": one.job_id,
        "next_fire_time": iso_of(next_us),
        "error": one.fault,
        "trigger": describe_trigger(one.trigger_config) if one.fault is None else "unknown",
        "args": [one.handler_id, one.method, one.params, one.job_id],
        "method_name": one.method,
        "timezone": one.trigger_config.get("timezone", "UTC"),
        "end_time": iso_of(one.end_us),
        "created_at": iso_of(one.created_us),
    }


def _failure(error: HttpError) -> web.Response:
    told = {"code": error.status, "message": error.message}
    return json_response({"error": told}, error.status, error.headers)


def _changed(job_id: str, what: str) -> web.Response:
    message = f"Schedule '{job_id}' {what}"
    return json_response({"status": "success", "message": message, "schedule_id": job_id})


def _unknown_schedule(job_id: str) -> HttpError:
    return HttpError(404, f"Schedule '{job_id}' not found")

"""The scheduler's HTTP API: ScheduleZero's paths, fields, statuses and error texts, and ours.

The contract is the document of `openapi`. Without a token it is open to this machine alone; with
one, everything but the page itself needs it (see `catalogzero.web.Guard`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from aiohttp import hdrs, web
from sqlalchemy.exc import DataError, DBAPIError
from structlog.typing import FilteringBoundLogger

from catalogzero.errors import BadParamsError, UnreachableError
from catalogzero.scheduler import forms
from catalogzero.scheduler.history import FILTERS
from catalogzero.scheduler.openapi import document
from catalogzero.scheduler.rows import Handler
from catalogzero.scheduler.runner import Runner
from catalogzero.scheduler.store import Change
from catalogzero.scheduler.ticks import Place, Schedule, from_us, iso_of
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

MAX_BODY_BYTES = 1 << 20
CALL_BYTES = 600
"""At most what a call has beside its method and params."""

MAX_PREVIEW = 100
MAX_NAMED = 5
PART = 500
"""How many schedules are read at once."""

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
                web.put("/api/schedules/{job_id}", self._put_schedule),
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
                web.delete("/api/handlers/{handler_id}", self._remove_handler),
                web.get("/api/health", self._health),
                web.get("/api/config", self._tell_config),
                web.get("/api/openapi.json", self._openapi),
                *pages.routes(),
            ]
        )
        return app

    # --- schedules

    async def _add_schedule(self, request: web.Request) -> web.Response:
        told, change = await self._take(await read_json(request, MAX_BODY_BYTES))
        if change.status == "changed":
            raise HttpError(409, f"Job ID '{told['job_id']}' already exists.")
        return json_response({"status": "success", **told}, 201)

    async def _put_schedule(self, request: web.Request) -> web.Response:
        body = await read_json(request, MAX_BODY_BYTES)
        job_id = request.match_info["job_id"]
        if not isinstance(body, dict) or body.get("job_id", job_id) != job_id:
            raise HttpError(400, f"'job_id' must be that of the path: '{job_id}'.")
        dry = forms.read_flag(request.query, "dry_run")
        told, change = await self._take({**body, "job_id": job_id}, replace=True, dry=dry)
        told |= {"status": change.status, "dry_run": dry, "changes": _changes(change)}
        return json_response(told)

    async def _take(self, body: Any, **how: bool) -> tuple[dict[str, Any], Change]:
        """Store the schedule of a body; what to answer of it, and what that changed."""
        new = await self.runner.read(forms.read_schedule, body, self._now())
        paused = None if body.get("paused") is None else new.paused
        unchecked = await self._check_call(new.handler_id, new.method, new.params)
        add = partial(self.runner.store.add_schedule, new, paused=paused, **how)
        try:
            change = await self.runner.write(add)
        except ValueError as error:
            raise HttpError(400, f"Invalid trigger configuration: {error}") from None
        self.runner.wake()
        told = {"job_id": new.job_id, "schedule_id": new.job_id}
        if unchecked is not None:
            self.log.warning("params_unchecked", job_id=new.job_id, reason=unchecked)
            told["warning"] = f"the params were not checked: {unchecked}"
        return told, change

    async def _list_schedules(self, request: web.Request) -> web.StreamResponse:
        search, place = request.query.get("search", ""), forms.read_place(request.query)
        if "limit" in request.query or place is not None:
            limit = forms.read_limit(request.query)
            return await self.runner.read(self._page, limit, search, place)
        seen: set[str] = set()
        part, place = await self.runner.read(self._part, search, None, seen)
        told = b'{"schedules":[' + part
        kind = "application/json"
        if place is None:
            return web.Response(body=told + _end(seen), content_type=kind)
        answer = web.StreamResponse(headers={hdrs.CONTENT_TYPE: kind})
        await answer.prepare(request)
        if request.method == hdrs.METH_HEAD:
            return answer
        while place is not None:
            await answer.write(told)
            told, place = await self.runner.read(self._part, search, place, seen)
        await answer.write(told + _end(seen))
        return answer

    def _page(self, limit: int, search: str, place: Place | None) -> web.Response:
        """One page of the schedules, with what each ran last."""
        found, next_place = self._after(place, limit, search)
        shown = [schedule_record(one) for one in found]
        last = self.runner.history.last_of([one["id"] for one in shown])
        for one in shown:
            one["last_execution"] = last.get(one["id"])
        told = {"schedules": shown, "count": self.runner.store.count_schedules(search)}
        return json_response({**told, "cursor": next_place and forms.place_text(next_place)})

    def _part(self, search: str, place: Place | None, seen: set[str]) -> tuple[bytes, Place | None]:
        """A part of the answer that lists all, as JSON text: there may be very many."""
        found, next_place = self._after(place, PART, search)
        new = [one for one in found if one.job_id not in seen]  # none that fired meanwhile
        texts = [encode_json(schedule_record(one)) for one in new]
        comma = b"," if seen and texts else b""
        seen.update(one.job_id for one in new)
        return comma + b",".join(texts), next_place

    def _after(
        self, place: Place | None, limit: int, search: str
    ) -> tuple[list[Schedule], Place | None]:
        """The schedules after a place, and the last one's place; None where there are no more."""
        found = self.runner.store.list_schedules(limit + 1, search, place)
        return found[:limit], found[limit - 1].place if len(found) > limit else None

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
        await self._check_call(found.handler_id, found.method, found.params)
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
        errors = await self.runner.read(self.runner.history.errors, limit)
        return json_response({"errors": errors, "count": len(errors), "limit": limit})

    async def _stats(self, request: web.Request) -> web.Response:
        stats = await self.runner.read(self.runner.history.stats)
        size = self.runner.settings.max_executions
        used = stats["total_executions"] / size * 100 if size else 0.0
        return json_response({**stats, "buffer_size": size, "buffer_utilization": used})

    async def _clear(self, request: web.Request) -> web.Response:
        while await self.runner.write(self.runner.history.clear):
            pass
        return json_response({"status": "success", "message": "Execution history cleared"})

    # --- the rest

    async def _handlers(self, request: web.Request) -> web.Response:
        found = await self.runner.read(self.runner.store.list_handlers)
        shown = [self._handler_record(one) for one in found]
        return json_response({"handlers": shown, "count": len(shown)})

    def _handler_record(self, one: Handler) -> dict[str, Any]:
        """A handler as the API tells it: by the last probe of it, nobody is asked now."""
        links = self.runner.links
        link = links.known(one.handler_id)
        if link is not None and link.address != one.address:
            link = None
        checked_us = None if link is None else link.checked_us
        there = link is not None and checked_us is not None and link.away is None
        return {
            "id": one.handler_id,
            "address": one.address,
            "methods": one.methods,
            "status": "Connected" if there else "Disconnected",
            "checked_at": iso_of(checked_us),
            "error": link.away if link else None,
            "last_seen_at": iso_of(max(one.seen_us, links.heard_us[one.handler_id])),
        }

    async def _remove_handler(self, request: web.Request) -> web.Response:
        handler_id = request.match_info["handler_id"]
        naming = await self.runner.write(self.runner.store.remove_handler, handler_id)
        if naming is None:
            raise HttpError(404, f"Handler '{handler_id}' not registered.")
        if naming:
            more = f" and {len(naming) - MAX_NAMED} more" if len(naming) > MAX_NAMED else ""
            named = ", ".join(naming[:MAX_NAMED]) + more
            raise HttpError(409, f"Schedules call '{handler_id}': remove them first: {named}")
        self.runner.handler_seen(handler_id)
        self.log.info("handler_removed", handler_id=handler_id)
        message = f"Handler '{handler_id}' removed; it registers again if it lives"
        return json_response({"status": "success", "message": message, "handler_id": handler_id})

    async def _health(self, request: web.Request) -> web.Response:
        told = {"status": "ok", "service": "ScheduleZero", "implementation": "catalogzero"}
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

    async def _check_call(self, handler_id: str, method: str, params: dict[str, Any]) -> str | None:
        """Refuse what is not registered, and params that the handler would never take.

        Returns:
            Why the handler could not say whether it takes the params; None where it does.
        """
        handler = await self.runner.read(self.runner.store.find_handler, handler_id)
        if handler is None:
            raise HttpError(404, f"Handler '{handler_id}' not registered.")
        if method not in handler.methods:
            raise HttpError(400, f"Method '{method}' not exposed by handler '{handler_id}'.")
        try:
            link = await self.runner.links.get(handler_id)
        except UnreachableError as error:  # it registered with another scheduler just now
            return error.message
        limit = link.caller.max_call_bytes
        if len(encode_json([method, params])) + CALL_BYTES > limit:
            said = f"calls of at most {limit:,} bytes"
            raise HttpError(413, f"The params are too long: '{handler_id}' takes {said}.")
        try:
            return await link.check_params(method, params)
        except BadParamsError as error:
            raise HttpError(400, f"Invalid params: {one_line_ascii(error.message)}") from None

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


def _end(seen: Collection[str]) -> bytes:
    """What stands behind all the schedules."""
    return b'],"count":%d}' % len(seen)


def _changes(change: Change) -> dict[str, Any]:
    """The fields of a schedule that change, as a request spells them."""
    told = {}
    for name, (old, new) in change.fields.items():
        pair = {"old": old, "new": new}
        if name == "end_us":
            pair = {"old": iso_of(old), "new": iso_of(new)}
        told[forms.SPELT.get(name, name)] = pair
    return told


def _changed(job_id: str, what: str) -> web.Response:
    message = f"Schedule '{job_id}' {what}"
    return json_response({"status": "success", "message": message, "schedule_id": job_id})


def _unknown_schedule(job_id: str) -> HttpError:
    return HttpError(404, f"Schedule '{job_id}' not found")

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

from aiohttp import hdrs, web
from sqlalchemy.exc import DataError, DBAPIError
from structlog.typing import FilteringBoundLogger

from catalogzero.errors import BadParamsError, CatalogZeroError, UnreachableError
from catalogzero.scheduler import answers, overview, requests
from catalogzero.scheduler.history import FILTERS, SHOWN, RecordedCall
from catalogzero.scheduler.models import (
    LIST_METHOD,
    Execution,
    KnownHandler,
    KnownInstance,
    list_call,
)
from catalogzero.scheduler.partitions import MAX_ITEM_BYTES
from catalogzero.scheduler.runner import Runner
from catalogzero.scheduler.store import Change
from catalogzero.scheduler.ticks import Place, Schedule, from_us, iso_of
from catalogzero.scheduler.trigger_forms import trigger_words
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
    shared_pages,
)
from catalogzero.wire.messages import JsonObject, encode_json, one_line_ascii

MAX_BODY_BYTES = 1 << 20
CALL_BYTES = 600
"""At most what a call has beside its method and params; that of a child has an item, too."""

MAX_PREVIEW = 100
MAX_PAGE = 1_000_000
MAX_NAMED = 5
PART = 500

GET_RUN_S = 2.0
PAGES = {
    "/": "index.html",
    "/runs/{execution_id}": "run.html",
    **{f"/pages/{name}": name for name in ("schedules.js", "run.js", "scheduler.js")},
}


@dataclass(frozen=True, slots=True)
class Api:
    """The API over one runner.

    Args:
        runner: Does the work.
        log: Where failures are reported.
        config: What `/api/config` answers.
        guard: Who may ask; by default this machine.
        part: How many schedules are read at once, where all are asked for.
    """

    runner: Runner
    log: FilteringBoundLogger
    config: answers.Config
    guard: Guard = field(default_factory=lambda: Guard(None))
    part: int = PART

    def application(self) -> web.Application:
        """The aiohttp application."""
        pages, shared = Pages("catalogzero.scheduler", "pages", PAGES), shared_pages()
        guard = self.guard.middleware(pages.paths | shared.paths)
        app = edge_application(failure, self.log, inner=[guard], meaning=self._meaning)
        app.add_routes(
            [
                web.post("/api/schedule", self.add_schedule),
                web.post("/api/run_now", self.run_now),
                web.get("/api/schedules", self.list_schedules),
                web.put("/api/schedules/{job_id}", self.put_schedule),
                web.delete("/api/schedules/{job_id}", self.remove_schedule),
                web.post("/api/schedules/{job_id}/pause", partial(self.set_paused, paused=True)),
                web.post("/api/schedules/{job_id}/resume", partial(self.set_paused, paused=False)),
                web.post("/api/schedules/{job_id}/run", self.run_schedule),
                web.get("/api/schedules/{job_id}/next", self.next_times),
                web.get("/api/executions", self.list_executions),
                web.get("/api/executions/stats", self.show_stats),
                web.get("/api/executions/errors", self.list_errors),
                web.post("/api/executions/clear", self.clear_executions),
                web.get("/api/executions/{execution_id}", self.show_execution),
                web.post("/api/executions/{execution_id}/cancel", self.cancel_execution),
                web.get("/api/executions/{execution_id}/handler", self.ask_handler),
                web.get("/api/overview", self.show_overview),
                web.get("/api/handlers", self.list_handlers),
                web.delete("/api/handlers/{handler_id}", self.remove_handler),
                web.get("/api/health", self.show_health),
                web.get("/api/config", self.show_config),
                web.get("/api/openapi.json", self.show_openapi),
                *pages.routes(),
                *shared.routes(),
            ]
        )
        return app

    # --- schedules

    async def add_schedule(self, request: web.Request) -> web.Response:
        """`POST /api/schedule`: 409 where the name is taken by another."""
        added, change = await self._store(await read_json(request, MAX_BODY_BYTES))
        if change.status == "changed":
            raise HttpError(409, f"Job ID '{added['job_id']}' already exists.")
        return json_response(added, 201)

    async def put_schedule(self, request: web.Request) -> web.Response:
        """`PUT /api/schedules/{job_id}`: the schedule is as the body says."""
        body = await read_json(request, MAX_BODY_BYTES)
        job_id = request.match_info["job_id"]
        if not isinstance(body, dict) or body.get("job_id", job_id) != job_id:
            raise HttpError(400, f"'job_id' must be that of the path: '{job_id}'.")
        dry = requests.read_flag(request.query, "dry_run")
        added, change = await self._store({**body, "job_id": job_id}, replace=True, dry=dry)
        changes = {
            requests.SPELT.get(name, name): answers.ChangedField(old=iso_of(old), new=iso_of(new))
            if name == "end_us"
            else answers.ChangedField(old=old, new=new)
            for name, (old, new) in change.fields.items()
        }
        answer: answers.Put = {**added, "status": change.status, "dry_run": dry, "changes": changes}
        return json_response(answer)

    async def _store(self, body: Any, **how: bool) -> tuple[answers.Added, Change]:
        """Store the schedule of a body; what to answer of it, and what that changed."""
        new = await self.runner.read(requests.read_schedule, body, self._now())
        paused = None if body.get("paused") is None else new.paused
        unchecked = await self._check_call(new)
        add = partial(self.runner.store.add_schedule, new, paused=paused, **how)
        try:
            change = await self.runner.write(add)
        except ValueError as error:
            raise HttpError(400, f"Invalid trigger configuration: {error}") from None
        self.runner.wake()
        added = answers.Added(status="success", job_id=new.job_id, schedule_id=new.job_id)
        if unchecked is not None:
            self.log.warning("params_unchecked", job_id=new.job_id, reason=unchecked)
            added["warning"] = f"the params were not checked: {unchecked}"
        return added, change

    async def list_schedules(self, request: web.Request) -> web.StreamResponse:
        """`GET /api/schedules`: a page, or all of them, which are streamed in parts."""
        search, place = request.query.get("search", ""), requests.read_place(request.query)
        if "limit" in request.query or place is not None:
            limit = requests.read_limit(request.query)
            return await self.runner.read(self._page, limit, search, place)
        seen: set[str] = set()
        part, place = await self.runner.read(self._part, search, None, seen)
        part = b'{"schedules":[' + part
        if place is None:
            body = part + b'],"count":%d}' % len(seen)
            return web.Response(body=body, content_type="application/json")
        answer = web.StreamResponse(headers={hdrs.CONTENT_TYPE: "application/json"})
        await answer.prepare(request)
        if request.method == hdrs.METH_HEAD:
            return answer
        while place is not None:
            await answer.write(part)
            part, place = await self.runner.read(self._part, search, place, seen)
        await answer.write(part + b'],"count":%d}' % len(seen))
        return answer

    def _page(self, limit: int, search: str, place: Place | None) -> web.Response:
        """One page of the schedules, with what each ran last."""
        found, next_place = self._after(place, limit, search)
        records = [schedule_record(one) for one in found]
        last = self.runner.history.last_of([one["id"] for one in records])
        for one in records:
            one["last_execution"] = last.get(one["id"])
        count = self.runner.store.count_schedules(search)
        cursor = next_place and requests.place_text(next_place)
        return json_response(answers.Schedules(schedules=records, count=count, cursor=cursor))

    def _part(self, search: str, place: Place | None, seen: set[str]) -> tuple[bytes, Place | None]:
        """A part of the answer that lists all, as JSON text: there may be very many."""
        found, next_place = self._after(place, self.part, search)
        # One that fires between two parts comes again, at its next time.
        new = [one for one in found if one.job_id not in seen]
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

    async def remove_schedule(self, request: web.Request) -> web.Response:
        """`DELETE /api/schedules/{job_id}`."""
        job_id = request.match_info["job_id"]
        if not await self.runner.write(self.runner.store.remove_schedule, job_id):
            raise unknown_schedule(job_id)
        return schedule_done(job_id, "removed")

    async def set_paused(self, request: web.Request, *, paused: bool) -> web.Response:
        """`POST /api/schedules/{job_id}/pause` and `…/resume`."""
        job_id = request.match_info["job_id"]
        if not await self.runner.write(self.runner.store.pause_schedule, job_id, paused):
            raise unknown_schedule(job_id)
        self.runner.wake()
        return schedule_done(job_id, "paused" if paused else "resumed")

    async def run_schedule(self, request: web.Request) -> web.Response:
        """`POST /api/schedules/{job_id}/run`: its call, beside its ticks."""
        found = await self._moving_schedule(request)
        await self._check_call(found)
        names = ("handler_id", "timeout_s", "max_attempts", "partition")
        same = {name: getattr(found, name) for name in names}
        run = requests.RunNow(job_method=found.method, job_params=found.params, **same)
        one = run.execution(self._now())
        one.job_id = found.job_id
        execution_id = await self.runner.run_now(one, None, requests.digest_of(one))
        return json_response(answers.Accepted(status="accepted", execution_id=execution_id), 202)

    async def next_times(self, request: web.Request) -> web.Response:
        """`GET /api/schedules/{job_id}/next`."""
        count = requests.read_limit({"limit": request.query.get("count", "5")}, most=MAX_PREVIEW)
        found = await self._moving_schedule(request)
        ticks = await self.runner.read(lambda: [*found.preview(self.runner.now_us(), count)])
        zone = ZoneInfo(found.trigger_config.get("timezone", "UTC"))
        moments = [from_us(tick) for tick in ticks]
        answer = answers.FireTimes(
            schedule_id=found.job_id,
            paused=found.paused,
            timezone=zone.key,
            next=[moment.isoformat() for moment in moments],
            local=[moment.astimezone(zone).isoformat() for moment in moments],
        )
        return json_response(answer)

    # --- executions

    async def run_now(self, request: web.Request) -> web.Response:
        """`POST /api/run_now`: 202 at once, or the outcome where `wait` is true."""
        body = requests.read_model(requests.RunNow, await read_json(request, MAX_BODY_BYTES))
        one = body.execution(self._now())
        await self._check_call(one)
        key = header_text(request, "Idempotency-Key", max_chars=requests.MAX_ID_CHARS)
        # ScheduleZero takes anything here, and passes over it.
        if isinstance(body.job_id, str):
            schedule = await self.runner.read(self.runner.store.find_schedule, body.job_id)
            one.job_id = body.job_id if schedule else one.job_id
        try:
            execution_id = await self.runner.run_now(one, key, requests.digest_of(one))
        except ValueError as error:
            raise HttpError(409, str(error)) from None
        if not body.wait:
            return json_response(
                answers.Accepted(status="accepted", execution_id=execution_id), 202
            )
        record = await self.runner.finished(execution_id)
        if record is None or record["status"] != "success":
            why = record["error"] if record else "the execution was cleared"
            raise HttpError(500, f"Failed to execute job: {why}")
        answer = answers.RunResult(
            status="success",
            message=f"Job executed on handler '{body.handler_id}'",
            result=record["result"],
            execution_id=execution_id,
        )
        return json_response(answer)

    async def list_executions(self, request: web.Request) -> web.Response:
        """`GET /api/executions`."""
        limit, before = requests.read_limit(request.query), requests.read_cursor(request.query)
        filters = {name: request.query[name] for name in FILTERS if request.query.get(name)}
        requests.check_choice("show", filters.get("show", ""), SHOWN)
        newest = self.runner.history.newest
        records, cursor = await self.runner.read(newest, filters, limit, before)
        shown_cursor = None if cursor is None else str(cursor)
        answer = answers.Executions(
            records=records, count=len(records), limit=limit, cursor=shown_cursor
        )
        return json_response(answer)

    async def show_execution(self, request: web.Request) -> web.Response:
        """`GET /api/executions/{execution_id}`."""
        found = await self._execution(request)
        schedule = await self.runner.read(self.runner.store.find_schedule, found.record["job_id"])
        answer: answers.ExecutionDetail = {
            **found.record,
            "params": found.params,
            "schedule": None if schedule is None else schedule_record(schedule),
            "neighbours": await self.runner.read(self.runner.history.around, found.record),
        }
        return json_response(answer)

    async def cancel_execution(self, request: web.Request) -> web.Response:
        """`POST /api/executions/{execution_id}/cancel`: 409 where it has ended."""
        call = await self._execution(request)
        execution_id = call.record["execution_id"]
        if not await self.runner.stop(execution_id):
            raise HttpError(409, f"Execution '{execution_id}' has ended.")
        return json_response(answers.Accepted(status="accepted", execution_id=execution_id), 202)

    async def ask_handler(self, request: web.Request) -> web.Response:
        """`GET /api/executions/{execution_id}/handler`: what the handler knows of its run, now."""
        call = await self._execution(request)
        handler_id = call.record["handler_id"]
        said: JsonObject = {}
        reason = None
        try:
            callee = handler_id, call.record["instance_id"] or ""
            link = await asyncio.wait_for(self.runner.links.get(*callee), GET_RUN_S)
            said = await link.find_run(call.request_id, timeout_s=GET_RUN_S)
        except UnreachableError as error:
            reason = f"the handler does not answer: {error.message}"
        except (CatalogZeroError, TimeoutError) as error:
            reason = f"the handler no longer knows this run: {one_line_ascii(str(error))}"
        uploads = said.get("uploads")
        answer = answers.HandlerView(
            known=reason is None,
            reason=reason,
            run_id=text_or_none(said.get("run_id")),
            traceback=text_or_none(said.get("traceback")),
            uploads=[one for one in uploads if isinstance(one, dict)]
            if isinstance(uploads, list)
            else [],
        )
        return json_response(answer)

    async def _execution(self, request: web.Request) -> RecordedCall:
        """The execution that a path names."""
        execution_id = request.match_info["execution_id"]
        found = await self.runner.read(self.runner.history.find_call, execution_id)
        if found is None:
            raise HttpError(404, f"Execution '{execution_id}' not found")
        return found

    async def show_overview(self, request: web.Request) -> web.Response:
        """`GET /api/overview`: all that the schedules page shows."""
        query, history = request.query, self.runner.history
        before = requests.read_cursor(query)
        shown, runs = query.get("show", ""), query.get("runs", "")
        requests.check_choice("show", shown, overview.SHOWN)
        requests.check_choice("runs", runs, SHOWN)
        page = requests.read_limit({"limit": query.get("page", "1")}, most=MAX_PAGE)
        asked = overview.ScheduleQuery(query.get("q", ""), shown, page)
        given = {"job_id": query.get("schedule", ""), "show": runs}
        filters = {name: value for name, value in given.items() if value}

        def read() -> answers.Overview:
            found = overview.read_overview(self.runner.store, asked)
            job_ids = [one.job_id for one, _ in found.schedules]
            marks, last = history.marks_of(job_ids), history.last_of(job_ids)
            records, cursor = history.newest(filters, overview.PAGE_ROWS, before)
            return answers.Overview(
                counts=found.counts,
                outcomes=history.outcomes(),
                next_fire_time=iso_of(found.next_us),
                schedules=[
                    {
                        **schedule_record(one),
                        "last_execution": last.get(one.job_id),
                        "standing": standing,
                        "recent": marks[one.job_id],
                    }
                    for one, standing in found.schedules
                ],
                page=found.page,
                pages=found.pages,
                records=records,
                cursor=None if cursor is None else str(cursor),
                handlers=[],
                clock_step=self.runner.clock_step,
            )

        answer = await self.runner.read(read)
        answer["handlers"] = await self._handlers()
        return json_response(answer)

    async def list_errors(self, request: web.Request) -> web.Response:
        """`GET /api/executions/errors`."""
        limit = requests.read_limit(request.query, default=50, most=500)
        errors = await self.runner.read(self.runner.history.errors, limit)
        return json_response(answers.Errors(errors=errors, count=len(errors), limit=limit))

    async def show_stats(self, request: web.Request) -> web.Response:
        """`GET /api/executions/stats`."""
        stats = await self.runner.read(self.runner.history.stats)
        size = self.runner.settings.max_executions
        used = stats["total_executions"] / size * 100 if size else 0.0
        answer: answers.BufferStats = {**stats, "buffer_size": size, "buffer_utilization": used}
        return json_response(answer)

    async def clear_executions(self, request: web.Request) -> web.Response:
        """`POST /api/executions/clear`."""
        # In parts: one transaction over all would hold up every claim meanwhile.
        while await self.runner.write(self.runner.history.clear):
            pass
        return json_response(
            answers.Confirmation(status="success", message="Execution history cleared")
        )

    # --- the rest

    async def list_handlers(self, request: web.Request) -> web.Response:
        """`GET /api/handlers`: as they were probed last; nobody is asked now."""
        records = await self._handlers()
        return json_response(answers.Handlers(handlers=records, count=len(records)))

    async def _handlers(self) -> list[answers.HandlerRecord]:
        """Every handler, by the last probe of it."""
        records = []
        for one in await self.runner.read(self.runner.store.list_handlers):
            instances: list[answers.InstanceRecord] = [
                {
                    "instance_id": each.instance_id,
                    "address": each.address,
                    "boot_id": each.boot_id,
                    "places": each.places,
                    "load": each.load,
                    "left": each.status == "offline",
                    **self._presence(each),
                }
                for each in one.instances
            ]
            of = min(one.instances, key=self._is_away) if one.instances else one
            record: answers.HandlerRecord = {
                "id": one.handler_id,
                "address": one.address,
                "methods": one.methods,
                "instances": instances,
                **self._presence(of),
            }
            records.append(record)
        return records

    def _is_away(self, one: KnownInstance) -> bool:
        return self._presence(one)["status"] != "Connected"

    def _presence(self, one: KnownHandler | KnownInstance) -> answers.Presence:
        """Whether a handler or an instance is there, by the last probe of it."""
        callee = one.handler_id, one.instance_id
        link = self.runner.links.of(callee)
        if link is not None and link.address != one.address:  # it moved, and is not asked yet
            link = None
        there = link is not None and link.checked_us is not None and link.away is None
        return answers.Presence(
            status="Connected" if there else "Disconnected",
            checked_at=iso_of(link.checked_us if link else None),
            error=link.away if link else None,
            last_seen_at=iso_of(max(one.seen_us, self.runner.links.heard_us[callee])),
        )

    async def remove_handler(self, request: web.Request) -> web.Response:
        """`DELETE /api/handlers/{handler_id}`: 409 while schedules name it."""
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
        answer = answers.HandlerDone(status="success", message=message, handler_id=handler_id)
        return json_response(answer)

    async def show_health(self, request: web.Request) -> web.Response:
        """`GET /api/health`."""
        answer = answers.Health(
            status="ok",
            service="ScheduleZero",
            implementation="catalogzero",
            clock_step=self.runner.clock_step,
        )
        return json_response(answer)

    async def show_config(self, request: web.Request) -> web.Response:
        """`GET /api/config`."""
        return json_response(self.config)

    async def show_openapi(self, request: web.Request) -> web.Response:
        """`GET /api/openapi.json`."""
        from catalogzero.scheduler.openapi import document  # slow to make, and seldom asked for

        return json_response(await self.runner.read(document))

    def _meaning(self, error: Exception) -> HttpError | None:
        """What the database's errors mean to a client."""
        if isinstance(error, DataError):
            return HttpError(400, "Invalid parameter: no such text can be stored.")
        if not isinstance(error, (DBAPIError, *DATABASE_AWAY)):
            return None
        why = one_line_ascii(str(getattr(error, "orig", error)))
        self.log.warning("database_away", error=why)
        return HttpError(503, f"The database does not take this now ({why}): try again.")

    async def _check_call(self, one: Schedule | Execution) -> str | None:
        """Refuse what is not registered, and params that the handler would never take.

        Returns:
            Why the handler could not say whether it takes the params; None where it does.
        """
        handler_id, method, params = one.handler_id, one.method, one.params
        handler = await self.runner.read(self.runner.store.find_handler, handler_id)
        if handler is None:
            raise HttpError(404, f"Handler '{handler_id}' not registered.")
        if method not in handler.methods:
            raise HttpError(400, f"Method '{method}' not exposed by handler '{handler_id}'.")
        if one.partition and LIST_METHOD not in handler.methods:
            why = f"handler '{handler_id}' has no method '{LIST_METHOD}': leave `partition` out."
            raise HttpError(400, f"A run cannot be partitioned: {why}")
        try:
            _, link = await self.runner.links.choose(handler_id)
        except UnreachableError as error:  # it registered with another scheduler just now
            return error.message
        limit = link.caller.max_call_bytes
        own = CALL_BYTES + (MAX_ITEM_BYTES if one.partition else 0)
        if len(encode_json([method, params])) + own > limit:
            said = f"calls of at most {limit:,} bytes"
            raise HttpError(413, f"The params are too long: '{handler_id}' takes {said}.")
        try:
            if not one.partition:
                return await link.check_params(method, params)
            unchecked = await link.check_params(*list_call(params))
            if link.not_partitioned:
                raise HttpError(400, f"A run cannot be partitioned: {link.not_partitioned}")
            return unchecked or await link.check_params(method, {**params, "item": {"name": "…"}})
        except BadParamsError as error:
            raise HttpError(400, f"Invalid params: {one_line_ascii(error.message)}") from None

    async def _moving_schedule(self, request: web.Request) -> Schedule:
        """The schedule that a path names; one that stands still is refused."""
        job_id = request.match_info["job_id"]
        found = await self.runner.read(self.runner.store.find_schedule, job_id)
        if found is None:
            raise unknown_schedule(job_id)
        if found.fault is not None:
            raise HttpError(409, f"Schedule '{job_id}' stands still: {found.fault}")
        return found

    def _now(self) -> datetime:
        return from_us(self.runner.now_us())


def schedule_record(one: Schedule) -> answers.ScheduleRecord:
    """A schedule as the API shows it."""
    zone = one.trigger_config.get("timezone", "UTC")
    return answers.ScheduleRecord(
        id=one.job_id,
        handler_id=one.handler_id,
        method_name=one.method,
        args=[one.handler_id, one.method, one.params, one.job_id],
        trigger=describe_trigger(one.trigger_config) if one.fault is None else "unknown",
        trigger_words=trigger_words(one.trigger_config, zone) if one.fault is None else "unknown",
        next_fire_time=None if one.paused or one.fault else iso_of(one.tick_us),
        params=one.params,
        trigger_config=one.trigger_config,
        timezone=zone,
        paused=one.paused,
        overlap=one.overlap,
        misfire_grace_s=one.misfire_grace_s,
        timeout_s=one.timeout_s,
        jitter_s=one.jitter_s,
        max_attempts=one.max_attempts,
        max_runs=one.max_runs,
        partition=one.partition,
        runs=one.runs,
        end_time=iso_of(one.end_us),
        created_at=iso_of(one.created_us),
        error=one.fault,
    )


def failure(error: HttpError) -> web.Response:
    """The answer to what went wrong."""
    answer = answers.Error(error={"code": error.status, "message": error.message})
    return json_response(answer, error.status, error.headers)


def text_or_none(value: Any) -> str | None:
    """A text; None for anything else."""
    return value if isinstance(value, str) else None


def schedule_done(job_id: str, what: str) -> web.Response:
    """The answer to what was done to a schedule."""
    message = f"Schedule '{job_id}' {what}"
    return json_response(
        answers.ScheduleDone(status="success", message=message, schedule_id=job_id)
    )


def unknown_schedule(job_id: str) -> HttpError:
    """No schedule has this name."""
    return HttpError(404, f"Schedule '{job_id}' not found")

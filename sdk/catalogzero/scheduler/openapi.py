"""The OpenAPI document of the scheduler's API: for client generators, and for tests.

Owns the document, made from the types of `requests` and `answers`; `/api/openapi.json` serves it.
"""

from __future__ import annotations

from http import HTTPStatus

from catalogzero.scheduler import answers
from catalogzero.scheduler.history import FILTERS
from catalogzero.scheduler.requests import MAX_ID_CHARS, NewSchedule, RunNow
from catalogzero.web import Operation, Schema, openapi_document, parameter, type_schema

TEXT, WHOLE, FLAG = ({"type": kind} for kind in ("string", "integer", "boolean"))
COMMON = (400, 401, 403, 503)
BODY = (404, 408, 409, 413, 415)
DOCUMENT = {"type": "object"}
SCHEDULE_DONE = {200: type_schema(answers.ScheduleDone)}
ACCEPTED = {202: type_schema(answers.Accepted)}
JOB_ID = parameter("job_id", "path", "The schedule's job_id, percent-encoded.", **TEXT)
HANDLER_ID = parameter("handler_id", "path", **TEXT)
EXECUTION_ID = parameter("execution_id", "path", **TEXT)
KEY = parameter(
    "Idempotency-Key", "header", "The same key is the same run.", **TEXT, maxLength=MAX_ID_CHARS
)
FILTERED = [parameter(name, "query", "Only these; filters combine.", **TEXT) for name in FILTERS]
PAGE = parameter("cursor", "query", "Of the answer before, for the next page.", **TEXT)
SEARCH = parameter("search", "query", "In their job_id, handler_id or method.", **TEXT)
COUNT = parameter("count", "query", "How many.", **WHOLE, minimum=1, maximum=100, default=5)
DRY_RUN = parameter("dry_run", "query", "Only say what would change.", **FLAG)


def limit(most: int, default: int) -> Schema:
    """The parameter that bounds a page."""
    text = f"At most this many, {most} at most."
    return parameter("limit", "query", text, **WHOLE, default=default)


OPERATIONS = {
    "POST /api/schedule": Operation(
        "addSchedule",
        "Add a schedule.",
        {201: type_schema(answers.Added)},
        BODY,
        body=type_schema(NewSchedule),
    ),
    "POST /api/run_now": Operation(
        "runNow",
        "Run a method now; 202 where `wait` is false.",
        {200: type_schema(answers.RunResult), **ACCEPTED},
        (*BODY, 500),
        [KEY],
        type_schema(RunNow),
    ),
    "GET /api/schedules": Operation(
        "listSchedules",
        "The schedules, the next one first; all of them without `limit` and `cursor`.",
        {200: type_schema(answers.Schedules)},
        parameters=[limit(1_000, 100), PAGE, SEARCH],
    ),
    "PUT /api/schedules/{job_id}": Operation(
        "putSchedule",
        "Have a schedule be so: add it, or change what differs.",
        {200: type_schema(answers.Put)},
        BODY,
        [JOB_ID, DRY_RUN],
        type_schema(NewSchedule),
    ),
    "DELETE /api/schedules/{job_id}": Operation(
        "removeSchedule", "Remove it.", SCHEDULE_DONE, (404,), [JOB_ID]
    ),
    "POST /api/schedules/{job_id}/pause": Operation(
        "pauseSchedule",
        "Pause it; its ticks are not made up for.",
        SCHEDULE_DONE,
        (404,),
        [JOB_ID],
    ),
    "POST /api/schedules/{job_id}/resume": Operation(
        "resumeSchedule", "Let it go on from its next tick.", SCHEDULE_DONE, (404,), [JOB_ID]
    ),
    "POST /api/schedules/{job_id}/run": Operation(
        "runSchedule",
        "Run its call now, beside its ticks.",
        ACCEPTED,
        (400, 404, 409, 413),
        [JOB_ID],
    ),
    "GET /api/schedules/{job_id}/next": Operation(
        "nextFireTimes",
        "In UTC and in its zone.",
        {200: type_schema(answers.FireTimes)},
        (404, 409),
        [JOB_ID, COUNT],
    ),
    "GET /api/executions": Operation(
        "listExecutions",
        "What ran, newest first.",
        {200: type_schema(answers.Executions)},
        parameters=[*FILTERED, limit(1_000, 100), PAGE],
    ),
    "GET /api/executions/stats": Operation(
        "executionStats",
        "Counts by status and by handler.",
        {200: type_schema(answers.BufferStats)},
    ),
    "GET /api/executions/errors": Operation(
        "listErrors",
        "The last of error, lost, and missed as the handler was away.",
        {200: type_schema(answers.Errors)},
        parameters=[limit(500, 50)],
    ),
    "POST /api/executions/clear": Operation(
        "clearExecutions",
        "Forget every execution that has ended.",
        {200: type_schema(answers.Done)},
    ),
    "GET /api/executions/{execution_id}": Operation(
        "getExecution",
        "One execution.",
        {200: type_schema(answers.ExecutionRecord)},
        (404,),
        [EXECUTION_ID],
    ),
    "GET /api/handlers": Operation(
        "listHandlers",
        "Every handler, and whether it was there when it was asked last, at most 5 s ago.",
        {200: type_schema(answers.Handlers)},
    ),
    "DELETE /api/handlers/{handler_id}": Operation(
        "removeHandler",
        "Forget a handler that no schedule names; one that lives registers again.",
        {200: type_schema(answers.HandlerDone)},
        (404, 409),
        [HANDLER_ID],
    ),
    "GET /api/health": Operation(
        "health",
        "The scheduler answers, and shows the last step of its clock, if there was one.",
        {200: type_schema(answers.Health)},
    ),
    "GET /api/config": Operation(
        "config", "Where it listens and what it works on.", {200: type_schema(answers.Config)}
    ),
    "GET /api/openapi.json": Operation("openapi", "This document.", {200: DOCUMENT}),
}


def document() -> Schema:
    """The OpenAPI 3.1 document."""
    return openapi_document(
        "catalogzero scheduler",
        OPERATIONS,
        error=type_schema(answers.Error),
        error_type="application/json",
        common=COMMON,
        meanings={status: HTTPStatus(status).phrase for status in (*COMMON, *BODY, 500)},
        open_too=True,
    )

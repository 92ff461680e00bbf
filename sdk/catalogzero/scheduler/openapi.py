"""The OpenAPI document of the scheduler's API: for client generators, and for tests.

Owns the document, made from the types of `requests` and `answers`; `/api/openapi.json` serves it.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from catalogzero.scheduler import answers
from catalogzero.scheduler.history import FILTERS, SHOWN
from catalogzero.scheduler.overview import SHOWN as SCHEDULES_SHOWN
from catalogzero.scheduler.requests import MAX_ID_CHARS, NewSchedule, RunNow
from catalogzero.web import Operation, Schema, openapi_document, parameter, type_schema

TEXT, WHOLE, FLAG = ({"type": kind} for kind in ("string", "integer", "boolean"))
COMMON = (400, 401, 403, 503)
BODY = (404, 408, 409, 413, 415)
JOB_ID = parameter("job_id", "path", "The schedule's job_id, percent-encoded.", **TEXT)
HANDLER_ID = parameter("handler_id", "path", **TEXT)
EXECUTION_ID = parameter("execution_id", "path", **TEXT)
KEY = parameter(
    "Idempotency-Key", "header", "The same key is the same run.", **TEXT, maxLength=MAX_ID_CHARS
)
FILTERED = [
    parameter(name, "query", "Only these; filters combine.", **TEXT)
    for name in FILTERS
    if name not in ("show", "parent")
]
PARENT = parameter(
    "parent", "query", "The runs of a partitioned run's items, which no other list has.", **TEXT
)
SHOW = parameter(
    "show",
    "query",
    "`failed` (or missed), `waiting` to be sent, `by_hand`: not by a schedule's tick.",
    **TEXT,
    enum=[*SHOWN],
)
OVERVIEW = [
    parameter("q", "query", "In their job_id, handler_id or method.", **TEXT),
    parameter("show", "query", "Only schedules that are so.", **TEXT, enum=[*SCHEDULES_SHOWN]),
    parameter("page", "query", "Of the schedules, 25 a page.", **WHOLE, minimum=1, default=1),
    parameter("schedule", "query", "Only runs of this schedule.", **TEXT),
    parameter("runs", "query", "Only runs that are so.", **TEXT, enum=[*SHOWN]),
    parameter("cursor", "query", "Of the answer before, for older runs.", **TEXT),
]
PAGE = parameter("cursor", "query", "Of the answer before, for the next page.", **TEXT)
SEARCH = parameter("search", "query", "In their job_id, handler_id or method.", **TEXT)
COUNT = parameter("count", "query", "How many.", **WHOLE, minimum=1, maximum=100, default=5)
DRY_RUN = parameter("dry_run", "query", "Only say what would change.", **FLAG)


def limit(most: int, default: int) -> Schema:
    """The parameter that bounds a page."""
    text = f"At most this many, {most} at most."
    return parameter("limit", "query", text, **WHOLE, default=default)


def operation(
    operation_id: str,
    summary: str,
    answer: Any,
    refusals: Iterable[int] = (),
    parameters: Iterable[Schema] = (),
    **more: Any,
) -> Operation:
    """An operation by its types.

    Args:
        operation_id: Its name in a generated client.
        summary: A line for people.
        answer: The type of a 200, or types by status.
        refusals: Statuses of errors besides the common ones.
        parameters: Of its path, query and headers.
        more: `body`, the type of its request body.
    """
    types = answer if isinstance(answer, dict) else {200: answer}
    schemas = {status: type_schema(of) for status, of in types.items()}
    body = {name: type_schema(of) for name, of in more.items()}
    return Operation(operation_id, summary, schemas, refusals, parameters, **body)


RUN = {200: answers.RunResult, 202: answers.Accepted}
ACCEPTED = {202: answers.Accepted}
OPERATIONS = {
    "POST /api/schedule": operation(
        "addSchedule", "Add a schedule.", {201: answers.Added}, BODY, body=NewSchedule
    ),
    "POST /api/run_now": operation(
        "runNow",
        "Run a method now; 202 where `wait` is false.",
        RUN,
        (*BODY, 500),
        [KEY],
        body=RunNow,
    ),
    "GET /api/schedules": operation(
        "listSchedules",
        "The schedules, the next one first; all of them without `limit` and `cursor`.",
        answers.Schedules,
        parameters=[limit(1_000, 100), PAGE, SEARCH],
    ),
    "PUT /api/schedules/{job_id}": operation(
        "putSchedule",
        "Have a schedule be so: add it, or change what differs.",
        answers.Put,
        BODY,
        [JOB_ID, DRY_RUN],
        body=NewSchedule,
    ),
    "DELETE /api/schedules/{job_id}": operation(
        "removeSchedule", "Remove it.", answers.ScheduleDone, (404,), [JOB_ID]
    ),
    "POST /api/schedules/{job_id}/pause": operation(
        "pauseSchedule",
        "Pause it; its ticks are not made up for.",
        answers.ScheduleDone,
        (404,),
        [JOB_ID],
    ),
    "POST /api/schedules/{job_id}/resume": operation(
        "resumeSchedule",
        "Let it go on from its next tick.",
        answers.ScheduleDone,
        (404,),
        [JOB_ID],
    ),
    "POST /api/schedules/{job_id}/run": operation(
        "runSchedule",
        "Run its call now, beside its ticks.",
        ACCEPTED,
        (400, 404, 409, 413),
        [JOB_ID],
    ),
    "GET /api/schedules/{job_id}/next": operation(
        "nextFireTimes", "In UTC and in its zone.", answers.FireTimes, (404, 409), [JOB_ID, COUNT]
    ),
    "GET /api/executions": operation(
        "listExecutions",
        "What ran, newest first.",
        answers.Executions,
        parameters=[PARENT, *FILTERED, SHOW, limit(1_000, 100), PAGE],
    ),
    "GET /api/executions/stats": operation(
        "executionStats", "Counts by status and by handler.", answers.BufferStats
    ),
    "GET /api/executions/errors": operation(
        "listErrors",
        "The last of error, lost, and missed as the handler was away.",
        answers.Errors,
        parameters=[limit(500, 50)],
    ),
    "POST /api/executions/clear": operation(
        "clearExecutions", "Forget every execution that has ended.", answers.Confirmation
    ),
    "GET /api/executions/{execution_id}": operation(
        "getExecution",
        "One execution, with its params and the runs beside it.",
        answers.ExecutionDetail,
        (404,),
        [EXECUTION_ID],
    ),
    "POST /api/executions/{execution_id}/cancel": operation(
        "cancelExecution",
        "Have a run end before its time; of a partitioned one no further item begins.",
        ACCEPTED,
        (404, 409),
        [EXECUTION_ID],
    ),
    "GET /api/executions/{execution_id}/handler": operation(
        "askHandler",
        "What the handler knows of the run now: traceback and uploads; within about 2 s.",
        answers.HandlerView,
        (404,),
        [EXECUTION_ID],
    ),
    "GET /api/overview": operation(
        "overview",
        "All that the schedules page shows, failing schedules first.",
        answers.Overview,
        parameters=OVERVIEW,
    ),
    "GET /api/handlers": operation(
        "listHandlers",
        "Every handler, and whether it was there when it was asked last, at most 5 s ago.",
        answers.Handlers,
    ),
    "DELETE /api/handlers/{handler_id}": operation(
        "removeHandler",
        "Forget a handler that no schedule names; one that lives registers again.",
        answers.HandlerDone,
        (404, 409),
        [HANDLER_ID],
    ),
    "GET /api/health": operation(
        "health",
        "The scheduler answers, and shows the last step of its clock, if there was one.",
        answers.Health,
    ),
    "GET /api/config": operation(
        "config", "Where it listens and what it works on.", answers.Config
    ),
    "GET /api/openapi.json": Operation("openapi", "This document.", {200: {"type": "object"}}),
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

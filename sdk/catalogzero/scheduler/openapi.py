"""The OpenAPI document of the scheduler's API: for client generators, and for tests.

Owns the document, made from the models of `forms`; `/api/openapi.json` serves it.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from catalogzero.scheduler.forms import MAX_ID_CHARS, TRIGGER, NewSchedule, RunNow
from catalogzero.scheduler.history import FILTERS
from catalogzero.web import Operation, model_schema, object_schema, openapi_document, parameter

STATUSES = ["queued", "running", "retry", "success", "error", "missed", "skipped", "lost"]
TEXT, NUMBER, WHOLE, FLAG = ({"type": t} for t in ("string", "number", "integer", "boolean"))
OBJECT = {"type": "object"}
TIME = {"type": "string", "format": "date-time"}
ERROR = object_schema(error=object_schema(code=WHOLE, message=TEXT))
DONE = object_schema(status=TEXT, message=TEXT)
CHANGED = object_schema(status=TEXT, message=TEXT, schedule_id=TEXT)
ACCEPTED = object_schema(status=TEXT, execution_id=TEXT)
JOB_ID = parameter("job_id", "path", "The schedule's job_id, percent-encoded.", **TEXT)
COMMON = (400, 401, 403, 503)
BODY = (404, 408, 409, 413, 415)


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


def _list(name: str) -> dict[str, Any]:
    return {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}}


def _limit(most: int, default: int) -> dict[str, Any]:
    return parameter(
        "limit", "query", f"At most this many, {most} at most.", **WHOLE, default=default
    )


def _all(schema: dict[str, Any], names: str) -> dict[str, dict[str, Any]]:
    """The same schema for each of these names."""
    return dict.fromkeys(names.split(), schema)


EXECUTION = object_schema(
    **_all(TEXT, "execution_id job_id handler_id method_name"),
    **_all(_or_null(TIME), "scheduled_at completed_at"),
    **_all(_or_null(TEXT), "error params_summary"),
    **_all(WHOLE, "attempt_number max_attempts"),
    started_at=TIME,
    duration_ms=_or_null(NUMBER),
    status={"enum": STATUSES},
    late=FLAG,
    waiting={**FLAG, "description": "For its handler, which is away; its status is retry."},
    result={},
)
EXECUTION["properties"]["ticks"] = {
    **object_schema(first=TIME, last=TIME, count=WHOLE),
    "description": "Of a missed or skipped row: the ticks it stands for.",
}
SCHEDULE = object_schema(
    **_all(TEXT, "id trigger handler_id method_name timezone overlap"),
    **_all(_or_null(TIME), "next_fire_time end_time created_at"),
    error={**_or_null(TEXT), "description": "Why it stands still: its next time is unknown here."},
    **_all(_or_null(NUMBER), "misfire_grace_s timeout_s"),
    **_all(WHOLE, "max_attempts runs"),
    args={"type": "array"},
    params=OBJECT,
    trigger_config={"$ref": "#/components/schemas/Trigger"},
    paused=FLAG,
    jitter_s=NUMBER,
    max_runs=_or_null(WHOLE),
)
SCHEDULE["properties"]["last_execution"] = {
    "anyOf": [{"$ref": "#/components/schemas/Execution"}, {"type": "null"}],
    "description": "Its newest execution; told where `limit` was given.",
}
HANDLER = object_schema(
    id=TEXT,
    address=TEXT,
    methods={"type": "array", "items": TEXT},
    status={"enum": ["Connected", "Disconnected"]},
    checked_at={**_or_null(TIME), "description": "When it was asked; null: not yet."},
    error={**_or_null(TEXT), "description": "Why it is disconnected, where that is known."},
    last_seen_at=TIME,
)
KEY = parameter(
    "Idempotency-Key", "header", "The same key is the same run.", **TEXT, maxLength=MAX_ID_CHARS
)
FILTERED = [parameter(name, "query", "Only these; filters combine.", **TEXT) for name in FILTERS]
RESULT = object_schema(status=TEXT, result={}, message=TEXT, execution_id=TEXT)
TIMES = {"type": "array", "items": TIME}
NEXT = object_schema(schedule_id=TEXT, paused=FLAG, timezone=TEXT, next=TIMES, local=TIMES)
RECORDS = object_schema(records=_list("Execution"), count=WHOLE, limit=WHOLE, cursor=_or_null(TEXT))
ERRORS = object_schema(errors=_list("Execution"), count=WHOLE, limit=WHOLE)
PAGE = parameter("cursor", "query", "Of the answer before, for the next page.", **TEXT)
FOUND = parameter("search", "query", "In their job_id, handler_id or method.", **TEXT)
TIMES_SHOWN = parameter("count", "query", "How many.", **WHOLE, minimum=1, maximum=100, default=5)
SCHEDULES = object_schema(schedules=_list("Schedule"), count=WHOLE)
ADDED = object_schema(status=TEXT, job_id=TEXT, schedule_id=TEXT)
ADDED["properties"]["warning"] = {**TEXT, "description": "Why its params were not checked."}
SCHEDULES["properties"]["cursor"] = {
    **_or_null(TEXT),
    "description": "Told where `limit` was given.",
}
HANDLERS = object_schema(handlers={"type": "array", "items": HANDLER}, count=WHOLE)
CHANGES = {"type": "object", "additionalProperties": object_schema(old={}, new={})}
PUT = object_schema(
    status={"enum": ["created", "changed", "unchanged", "over"]},
    job_id=TEXT,
    schedule_id=TEXT,
    dry_run=FLAG,
    changes=CHANGES,
)
CLOCK_STEP = object_schema(seen_at=TIME, step_s=_or_null(NUMBER), schedules=WHOLE)
OF_ONE = ((404,), [JOB_ID])
OPERATIONS = {
    "POST /api/schedule": Operation(
        "addSchedule",
        "Add a schedule.",
        {201: ADDED},
        BODY,
        body=model_schema(NewSchedule),
    ),
    "POST /api/run_now": Operation(
        "runNow",
        "Run a method now; 202 where `wait` is false.",
        {200: RESULT, 202: ACCEPTED},
        (*BODY, 500),
        [KEY],
        model_schema(RunNow),
    ),
    "GET /api/schedules": Operation(
        "listSchedules",
        "The schedules, the next one first; all of them without `limit` and `cursor`.",
        {200: SCHEDULES},
        parameters=[_limit(1_000, 100), PAGE, FOUND],
    ),
    "PUT /api/schedules/{job_id}": Operation(
        "putSchedule",
        "Have a schedule be so: add it, or change what differs.",
        {200: PUT},
        BODY,
        [JOB_ID, parameter("dry_run", "query", "Only say what would change.", **FLAG)],
        model_schema(NewSchedule),
    ),
    "DELETE /api/schedules/{job_id}": Operation(
        "removeSchedule", "Remove it.", {200: CHANGED}, *OF_ONE
    ),
    "POST /api/schedules/{job_id}/pause": Operation(
        "pauseSchedule", "Pause it; its ticks are not made up for.", {200: CHANGED}, *OF_ONE
    ),
    "POST /api/schedules/{job_id}/resume": Operation(
        "resumeSchedule", "Let it go on from its next tick.", {200: CHANGED}, *OF_ONE
    ),
    "POST /api/schedules/{job_id}/run": Operation(
        "runSchedule",
        "Run its call now, beside its ticks.",
        {202: ACCEPTED},
        (400, 404, 409, 413),
        [JOB_ID],
    ),
    "GET /api/schedules/{job_id}/next": Operation(
        "nextFireTimes", "In UTC and in its zone.", {200: NEXT}, (404, 409), [JOB_ID, TIMES_SHOWN]
    ),
    "GET /api/executions": Operation(
        "listExecutions",
        "What ran, newest first.",
        {200: RECORDS},
        parameters=[*FILTERED, _limit(1_000, 100), PAGE],
    ),
    "GET /api/executions/stats": Operation(
        "executionStats", "Counts by status and by handler.", {200: OBJECT}
    ),
    "GET /api/executions/errors": Operation(
        "listErrors",
        "The last of error, lost, and missed as the handler was away.",
        {200: ERRORS},
        parameters=[_limit(500, 50)],
    ),
    "POST /api/executions/clear": Operation(
        "clearExecutions", "Forget every execution that has ended.", {200: DONE}
    ),
    "GET /api/executions/{execution_id}": Operation(
        "getExecution",
        "One execution.",
        {200: {"$ref": "#/components/schemas/Execution"}},
        (404,),
        [parameter("execution_id", "path", **TEXT)],
    ),
    "GET /api/handlers": Operation(
        "listHandlers",
        "Every handler, and whether it was there when it was asked last, at most 5 s ago.",
        {200: HANDLERS},
    ),
    "DELETE /api/handlers/{handler_id}": Operation(
        "removeHandler",
        "Forget a handler that no schedule names; one that lives registers again.",
        {200: object_schema(status=TEXT, message=TEXT, handler_id=TEXT)},
        (404, 409),
        [parameter("handler_id", "path", **TEXT)],
    ),
    "GET /api/health": Operation(
        "health",
        "The scheduler answers, and shows the last step of its clock, if there was one.",
        {
            200: object_schema(
                status=TEXT, service=TEXT, implementation=TEXT, clock_step=_or_null(CLOCK_STEP)
            )
        },
    ),
    "GET /api/config": Operation("config", "Where it listens and what it works on.", {200: OBJECT}),
    "GET /api/openapi.json": Operation("openapi", "This document.", {200: OBJECT}),
}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    return openapi_document(
        "catalogzero scheduler",
        OPERATIONS,
        error=ERROR,
        error_type="application/json",
        common=COMMON,
        meanings={status: HTTPStatus(status).phrase for status in (*COMMON, *BODY, 500)},
        schemas={"Execution": EXECUTION, "Schedule": SCHEDULE, "Trigger": TRIGGER},
        open_too=True,
    )

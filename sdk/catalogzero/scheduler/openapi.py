"""The OpenAPI document of the scheduler's API: for client generators, and for tests.

Owns the document, made from the models of `forms`; `/api/openapi.json` serves it.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from catalogzero.scheduler.forms import MAX_ID_CHARS, TRIGGER, NewSchedule, RunNow
from catalogzero.web import (
    Operation,
    model_schema,
    object_schema,
    openapi_document,
    parameter,
)

STATUSES = ["queued", "running", "retry", "success", "error", "missed", "skipped", "lost"]
TEXT, NUMBER, WHOLE, FLAG = ({"type": t} for t in ("string", "number", "integer", "boolean"))
OBJECT = {"type": "object"}
TIME = {"type": "string", "format": "date-time"}
ERROR = object_schema(error=object_schema(code=WHOLE, message=TEXT))
DONE = object_schema(status=TEXT, message=TEXT)
CHANGED = object_schema(status=TEXT, message=TEXT, schedule_id=TEXT)
ACCEPTED = object_schema(status=TEXT, execution_id=TEXT)
JOB_ID = parameter("job_id", "path", "The schedule's job_id, percent-encoded.", type="string")
COMMON = (400, 401, 403, 503)
BODY = (404, 408, 409, 413, 415)


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


def _list(name: str) -> dict[str, Any]:
    return {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}}


def _limit(most: int, default: int) -> dict[str, Any]:
    return parameter(
        "limit", "query", f"At most this many, {most} at most.", type="integer", default=default
    )


EXECUTION = object_schema(
    execution_id=TEXT,
    job_id=TEXT,
    handler_id=TEXT,
    method_name=TEXT,
    scheduled_at=_or_null(TIME),
    started_at=TIME,
    completed_at=_or_null(TIME),
    duration_ms=_or_null(NUMBER),
    status={"enum": STATUSES},
    late=FLAG,
    result={},
    error=_or_null(TEXT),
    attempt_number=WHOLE,
    max_attempts=WHOLE,
    params_summary=_or_null(TEXT),
)
EXECUTION["properties"]["ticks"] = {
    **object_schema(first=TIME, last=TIME, count=WHOLE),
    "description": "Of a missed or skipped row: the ticks it stands for.",
}
SCHEDULE = object_schema(
    id=TEXT,
    next_fire_time=_or_null(TIME),
    trigger=TEXT,
    args={"type": "array"},
    handler_id=TEXT,
    method_name=TEXT,
    params=OBJECT,
    trigger_config={"$ref": "#/components/schemas/Trigger"},
    timezone=TEXT,
    paused=FLAG,
    overlap=TEXT,
    misfire_grace_s=_or_null(NUMBER),
    max_attempts=WHOLE,
    timeout_s=_or_null(NUMBER),
    jitter_s=NUMBER,
    max_runs=_or_null(WHOLE),
    runs=WHOLE,
    end_time=_or_null(TIME),
    created_at=TIME,
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
    last_seen_at=TIME,
)
KEY = parameter(
    "Idempotency-Key",
    "header",
    "The same key is the same run.",
    type="string",
    minLength=1,
    maxLength=MAX_ID_CHARS,
)
FILTERED = [
    parameter(name, "query", "Only these; filters combine.", type="string")
    for name in ("handler_id", "job_id", "method_name", "status")
]
RESULT = object_schema(status=TEXT, result={}, message=TEXT, execution_id=TEXT)
TIMES = {"type": "array", "items": TIME}
NEXT = object_schema(schedule_id=TEXT, paused=FLAG, timezone=TEXT, next=TIMES, local=TIMES)
RECORDS = object_schema(records=_list("Execution"), count=WHOLE, limit=WHOLE, cursor=_or_null(TEXT))
ERRORS = object_schema(errors=_list("Execution"), count=WHOLE, limit=WHOLE)
PATHS = {
    "/api/schedule": {
        "post": Operation(
            "addSchedule",
            "Add a schedule.",
            {201: object_schema(status=TEXT, job_id=TEXT)},
            BODY,
            body=model_schema(NewSchedule),
        )
    },
    "/api/run_now": {
        "post": Operation(
            "runNow",
            "Run a method now; 202 where `wait` is false.",
            {200: RESULT, 202: ACCEPTED},
            (*BODY, 500),
            [KEY],
            body=model_schema(RunNow),
        )
    },
    "/api/schedules": {
        "get": Operation(
            "listSchedules",
            "The schedules, the next one first; all of them without `limit`.",
            {200: object_schema(schedules=_list("Schedule"), count=WHOLE)},
            parameters=[
                parameter("limit", "query", type="integer", minimum=1),
                parameter(
                    "search", "query", "In their job_id, handler_id or method.", type="string"
                ),
            ],
        )
    },
    "/api/schedules/{job_id}": {
        "delete": Operation("removeSchedule", "Remove it.", {200: CHANGED}, (404,), [JOB_ID])
    },
    "/api/schedules/{job_id}/pause": {
        "post": Operation(
            "pauseSchedule",
            "Pause it; ticks of the pause are not made up for.",
            {200: CHANGED},
            (404,),
            [JOB_ID],
        )
    },
    "/api/schedules/{job_id}/resume": {
        "post": Operation(
            "resumeSchedule", "Let it go on from its next tick.", {200: CHANGED}, (404,), [JOB_ID]
        )
    },
    "/api/schedules/{job_id}/run": {
        "post": Operation(
            "runSchedule", "Run its call now, beside its ticks.", {202: ACCEPTED}, (404,), [JOB_ID]
        )
    },
    "/api/schedules/{job_id}/next": {
        "get": Operation(
            "nextFireTimes",
            "Its next fire times, in UTC and in its zone.",
            {200: NEXT},
            (404,),
            [
                JOB_ID,
                parameter(
                    "count", "query", "How many.", type="integer", minimum=1, maximum=100, default=5
                ),
            ],
        )
    },
    "/api/executions": {
        "get": Operation(
            "listExecutions",
            "What ran, newest first.",
            {200: RECORDS},
            parameters=[
                *FILTERED,
                _limit(1_000, 100),
                parameter(
                    "cursor", "query", "Of the answer before, for the next page.", type="string"
                ),
            ],
        )
    },
    "/api/executions/stats": {
        "get": Operation("executionStats", "Counts by status and by handler.", {200: OBJECT})
    },
    "/api/executions/errors": {
        "get": Operation(
            "listErrors", "The last failures.", {200: ERRORS}, parameters=[_limit(500, 50)]
        )
    },
    "/api/executions/clear": {
        "post": Operation("clearExecutions", "Forget every execution that has ended.", {200: DONE})
    },
    "/api/executions/{execution_id}": {
        "get": Operation(
            "getExecution",
            "One execution.",
            {200: {"$ref": "#/components/schemas/Execution"}},
            (404,),
            [parameter("execution_id", "path", type="string")],
        )
    },
    "/api/handlers": {
        "get": Operation(
            "listHandlers",
            "Every handler, each asked whether it is there.",
            {200: object_schema(handlers={"type": "array", "items": HANDLER}, count=WHOLE)},
        )
    },
    "/api/health": {
        "get": Operation(
            "health", "The scheduler answers.", {200: object_schema(status=TEXT, service=TEXT)}
        )
    },
    "/api/config": {
        "get": Operation("config", "Where it listens and what it works on.", {200: OBJECT})
    },
    "/api/openapi.json": {"get": Operation("openapi", "This document.", {200: OBJECT})},
}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    return openapi_document(
        "catalogzero scheduler",
        PATHS,
        error=ERROR,
        error_type="application/json",
        common=COMMON,
        meanings={status: HTTPStatus(status).phrase for status in (*COMMON, *BODY, 500)},
        schemas={"Execution": EXECUTION, "Schedule": SCHEDULE, "Trigger": TRIGGER},
        open_too=True,
    )

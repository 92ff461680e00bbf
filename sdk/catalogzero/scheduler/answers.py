"""What the HTTP API answers: the types that the code is checked with, and the document is made of.

ScheduleZero's fields come first, then ours. Times are ISO 8601 texts in UTC.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, WithJsonSchema
from typing_extensions import TypedDict

from catalogzero.protocol.outcomes import OutcomeState, RunOutcomeWords
from catalogzero.scheduler.trigger_forms import KEYS
from catalogzero.wire.messages import JsonObject

Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
Status = Literal["queued", "running", "retry", "success", "error", "missed", "skipped", "lost"]
TRIGGER = {
    "type": "object",
    "required": ["type"],
    "properties": {"type": {"type": "string", "enum": [*KEYS]}},
    "description": "interval: weeks, days, hours, minutes, seconds, start_time; days are 24 "
    "hours, with wall: true they keep the hour in timezone. cron: year, month, "
    "day, week, day_of_week (0 and 7 are Sunday), hour, minute, second, timezone, start_time; all "
    "must match, but day and day_of_week either with day_or_weekday: true, as in crontab. "
    "date: run_date, ISO 8601 or Unix seconds. end_time ends the first two.",
}
Trigger = Annotated[JsonObject, WithJsonSchema(TRIGGER)]


class TickSpan(TypedDict):
    """The ticks that a missed or skipped execution stands for."""

    first: Time | None
    last: Time | None
    count: int


class PartCounts(TypedDict):
    """How far a partitioned run is: how many items it has (null: not listed yet), how many of their
    runs ended, and how many of these not well.
    """

    items: int | None
    ended: int
    failed: int


class ExecutionRecord(TypedDict):
    """An execution."""

    execution_id: str
    job_id: str
    handler_id: str
    method_name: str
    scheduled_at: Time | None
    started_at: Time | None
    completed_at: Time | None
    duration_ms: float | None
    status: Status
    error: str | None
    result: Any
    params_summary: str | None
    attempt_number: int
    max_attempts: int
    late: bool
    waiting: Annotated[
        bool, Field(description="For its handler, which is away; its status is retry.")
    ]
    instance_id: Annotated[
        str | None, Field(description="Which of its handler's instances was called, if it has any.")
    ]
    outcome: Annotated[RunOutcomeWords, Field(description="What it came to, in words.")]
    parent_id: Annotated[
        str | None, Field(description="The partitioned run that it is a part of, if it is.")
    ]
    item: Annotated[JsonObject | None, Field(description="The item that it reads of that run's.")]
    parts: Annotated[
        PartCounts | None, Field(description="Of a partitioned run; null of any other.")
    ]
    ticks: NotRequired[TickSpan]


class RunMark(TypedDict):
    """A run as a strip of the last runs shows it."""

    execution_id: str
    state: OutcomeState
    started_at: Time | None
    duration_ms: float | None


class ScheduleRecord(TypedDict):
    """A schedule."""

    id: str
    handler_id: str
    method_name: str
    args: list[Any]
    trigger: str
    trigger_words: Annotated[str, Field(description="When it fires, for people.")]
    next_fire_time: Time | None
    params: JsonObject
    trigger_config: Trigger
    timezone: str
    paused: bool
    overlap: str
    misfire_grace_s: float | None
    timeout_s: float | None
    jitter_s: float
    max_attempts: int
    max_runs: int | None
    partition: bool
    runs: int
    end_time: Time | None
    created_at: Time | None
    error: Annotated[
        str | None, Field(description="Why it stands still: its next time is unknown here.")
    ]
    last_execution: NotRequired[
        Annotated[
            ExecutionRecord | None,
            Field(description="Its newest execution, where `limit` was given."),
        ]
    ]


class ExecutionDetail(ExecutionRecord):
    """An execution with what it was called with, its schedule, and the runs beside it."""

    params: JsonObject
    schedule: Annotated[
        ScheduleRecord | None, Field(description="Its schedule; null: removed, or there was none.")
    ]
    neighbours: Annotated[
        list[RunMark], Field(description="The runs before and after it, it among them.")
    ]


class HandlerView(TypedDict):
    """What the handler itself knows of a run, asked just now."""

    known: bool
    reason: Annotated[str | None, Field(description="Why the handler says nothing of it.")]
    run_id: str | None
    traceback: Annotated[str | None, Field(description="Of the author's code, where it failed.")]
    uploads: Annotated[
        list[JsonObject], Field(description="The uploads it made, with their states now.")
    ]


class Presence(TypedDict):
    """Whether a handler or an instance is there, by the last probe of it."""

    status: Literal["Connected", "Disconnected"]
    checked_at: Annotated[Time | None, Field(description="When it was asked; null: not yet.")]
    error: Annotated[str | None, Field(description="Why it is disconnected, where known.")]
    last_seen_at: Time | None


class InstanceRecord(Presence):
    """One of the processes that share a handler's calls, by the last probe of it.

    `load` is how many open executions it is called for, `places` how many jobs it runs at once.
    One that `left` went offline of itself: it ends what it has, and gets no more.
    """

    instance_id: str
    address: str
    boot_id: str
    places: int
    load: int
    left: bool


class HandlerRecord(Presence):
    """A handler, by the last probe of it.

    One with `instances` is connected where one of them is; its address is that of the last that
    registered.
    """

    id: str
    address: str
    methods: list[str]
    instances: list[InstanceRecord]


class Schedules(TypedDict):
    """The schedules, or a page of them."""

    schedules: list[ScheduleRecord]
    count: int
    cursor: NotRequired[Annotated[str | None, Field(description="Where `limit` was given.")]]


class ClockStep(TypedDict):
    """The last step of the clock: when it was seen, how far (null at start), and how many
    schedules waited for a time that it no longer shows.
    """

    seen_at: Time
    step_s: float | None
    schedules: int


class ScheduleCounts(TypedDict):
    """How many schedules there are, that match the search: `failing` are those whose last run
    failed or was missed, whose handler is away, or that stand still; `waiting` those whose last
    run's rows wait to be sent.
    """

    all: int
    failing: int
    waiting: int
    paused: int


class ScheduleOverview(ScheduleRecord):
    """A schedule with how it does, and its last runs."""

    standing: Literal["failing", "waiting", "well"]
    recent: Annotated[list[RunMark], Field(description="Its last 30 runs, the newest last.")]


class OutcomeCounts(TypedDict):
    """How many runs ended `since` then, by what they came to; skipped ticks are no runs.

    `since` is 24 hours ago, or later where more than 5,000 have ended: these are the newest.
    """

    since: Time
    runs: int
    states: dict[OutcomeState, int]


class Overview(TypedDict):
    """All that the schedules page shows: schedules, failing ones first, and what ran."""

    counts: ScheduleCounts
    outcomes: OutcomeCounts
    next_fire_time: Time | None
    schedules: list[ScheduleOverview]
    page: int
    pages: int
    records: list[ExecutionRecord]
    cursor: str | None
    handlers: list[HandlerRecord]
    clock_step: ClockStep | None


class Executions(TypedDict):
    """A page of executions, newest first."""

    records: list[ExecutionRecord]
    count: int
    limit: int
    cursor: str | None


class Errors(TypedDict):
    """The newest executions that count as errors."""

    errors: list[ExecutionRecord]
    count: int
    limit: int


class Handlers(TypedDict):
    """The handlers."""

    handlers: list[HandlerRecord]
    count: int


class HandlerCounts(TypedDict):
    """A handler's executions."""

    total: int
    success: int
    error: int


class Stats(TypedDict):
    """Counts over all executions that are kept."""

    total_executions: int
    success_count: int
    error_count: int
    success_rate: float
    avg_duration_ms: float
    by_handler: dict[str, HandlerCounts]
    by_status: dict[str, int]
    lifetime_executions: int
    schedules: int


class BufferStats(Stats):
    """The same, with how much of the room for executions is used, in percent."""

    buffer_size: int
    buffer_utilization: float


class Confirmation(TypedDict):
    """Something was done."""

    status: str
    message: str


class ScheduleDone(Confirmation):
    """Something was done to a schedule."""

    schedule_id: str


class HandlerDone(Confirmation):
    """Something was done to a handler."""

    handler_id: str


class Accepted(TypedDict):
    """A run begins."""

    status: str
    execution_id: str


class RunResult(Confirmation):
    """A run succeeded."""

    result: Any
    execution_id: str


class Added(TypedDict):
    """A schedule is stored."""

    status: str
    job_id: str
    schedule_id: str
    warning: NotRequired[Annotated[str, Field(description="Why its params were not checked.")]]


class ChangedField(TypedDict):
    """A field's value before and after."""

    old: Any
    new: Any


class Put(Added):
    """A schedule is as the request says; `changes` are by the request's names."""

    dry_run: bool
    changes: dict[str, ChangedField]


class FireTimes(TypedDict):
    """The next fire times, in UTC and in the schedule's zone."""

    schedule_id: str
    paused: bool
    timezone: str
    next: list[Time]
    local: list[Time]


class Health(TypedDict):
    """The scheduler answers."""

    status: str
    service: str
    implementation: str
    clock_step: ClockStep | None


class Config(TypedDict):
    """Where the scheduler listens, and what it works on; no secrets."""

    instance_name: str
    description: str
    admin_contact: str
    version: str
    database: str
    lease_s: float
    retention_days: float
    max_executions: int
    host: str
    port: int
    zmq_address: str


class ErrorDetail(TypedDict):
    """What went wrong."""

    code: int
    message: str


class Error(TypedDict):
    """Every error's form."""

    error: ErrorDetail

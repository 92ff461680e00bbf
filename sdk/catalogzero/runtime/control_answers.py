"""What control methods answer: the types that they are checked with, and that a caller can use.

A class may add keys of its own to `ping`, `get_metrics` and `describe`. Times are ISO 8601 texts
in UTC, sizes MiB where a name ends in `_mb`, durations seconds where it ends in `_s`.
"""

from __future__ import annotations

from typing import Literal, NotRequired

# Pydantic takes `typing.TypedDict` from Python 3.12 on only: an author may return one of these.
from typing_extensions import TypedDict

from catalogzero.protocol.outcomes import RunOutcomeWords
from catalogzero.wire.messages import JsonObject


class Failure(TypedDict):
    """A run or a hook that failed, without any text of the exception: it may leave the machine.

    `type` is the exception's, null where none was raised; `failed` of `items` are the files or
    queries of the run that failed.
    """

    code: str
    type: str | None
    method: str
    run_id: NotRequired[str]
    failed: NotRequired[int]
    items: NotRequired[int]


class BootFields(TypedDict):
    """Which start of the handler answered, what it keeps and takes, and how it is (`state`:
    active, idle, sleeping or draining): in many answers.
    """

    boot_id: str
    uptime_s: float
    dedupe_window_s: float
    max_message_bytes: int
    state: str


class Pong(BootFields):
    """The answer to `ping`."""

    status: str
    handler: str
    message: str


class ProcessFigures(TypedDict):
    """What the operating system knows of a process.

    `cpu_percent` is of one core, since the last sample; `connections` is null where it may not
    be read.
    """

    cpu_percent: float
    memory_mb: float
    num_threads: int
    connections: int | None


class OutboxFigures(TypedDict):
    """What waits for the backend, and whether it arrives.

    `oldest_at` is when the oldest upload that waits was made. `dead` counts uploads that were
    refused, `missing` sources that a damaged outbox lost. `paused` says why nothing is sent, else
    null; `paused_code` the same as a word. `fault` is the code of the last try, such as `http_500`,
    while none has gone well since, `next_try_at` when it is tried again. `last_upload_at` is when
    the backend last acknowledged an upload; the totals count those since the outbox was made.
    `disk_free_bytes` is what is free where the outbox lies.
    """

    uploads: int
    records: int
    bytes: int
    oldest_at: str | None
    oldest_age_s: float
    dead: int
    missing: int
    paused: str | None
    paused_code: str | None
    paused_since: str | None
    next_try_at: str | None
    fault: str | None
    fault_since: str | None
    last_upload_at: str | None
    uploaded_total: int
    uploaded_records_total: int
    disk_free_bytes: int


class HealthJudgement(TypedDict):
    """How a handler does, judged by its runs and uploads, and why it is not `ok`."""

    status: Literal["ok", "degraded", "failing"]
    reasons: list[str]


class SuccessfulRun(TypedDict):
    """The last run that succeeded, but for quiet ones."""

    run_id: str
    method: str
    ended_at: str


class FailedRun(SuccessfulRun):
    """The last run that failed, without any text of its exception."""

    code: str
    type: str | None


class Vitals(TypedDict):
    """What the runtime knows of a handler that is served.

    `last_error` is the text of the failure that came last, whatever has succeeded since; of an
    exception of the author's code its type and run, as its text may quote a row. The last runs are
    those since its start. `labels` are the client's own (see the setting).
    """

    uptime_seconds: float
    status: str
    in_flight: int
    queued: int
    runs_total: int
    failures_total: int
    last_error: str | None
    last_successful_run: SuccessfulRun | None
    last_failed_run: FailedRun | None
    health: HealthJudgement
    labels: dict[str, str]
    idle_s: float
    wakes_total: int
    worker_memory_mb: float
    peers_cut_total: int
    replies_dropped_total: int
    outbox: NotRequired[OutboxFigures]


class Metrics(ProcessFigures, Vitals):
    """The answer to `get_metrics`; `entry` and `version` are null for a class of no package."""

    handler_id: str
    timestamp: str
    sdk_version: str
    entry: str | None
    version: str | None


class MethodDescription(TypedDict):
    """A job method in `describe`: its docstring, its `@job` options, and its JSON Schemas."""

    name: str
    doc: str
    timeout_s: float | None
    isolate: bool
    quiet: bool
    retry_safe: bool
    concurrency: int | None
    params_schema: JsonObject
    result_schema: JsonObject | None


# `class` is a key and cannot be a field's name.
_OfClass = TypedDict("_OfClass", {"class": str})


class Description(_OfClass):
    """The answer to `describe`; in `settings` and `runtime` secrets are masked."""

    handler_id: str
    doc: str
    entry: str | None
    version: str | None
    sdk_version: str
    methods: list[MethodDescription]
    settings_schema: JsonObject
    settings: JsonObject
    runtime: JsonObject


class RunRecord(TypedDict):
    """A run, as `list_runs` has it; `error` and `code` only where it did not succeed.

    `outcome` says what it came to, as it is shown everywhere; of a run whose rows waited, by now.
    """

    run_id: str
    request_id: str | int | None
    method: str
    status: str
    received_at: str
    started_at: str | None
    ended_at: str | None
    outcome: RunOutcomeWords
    progress: NotRequired[JsonObject]
    error: NotRequired[str]
    code: NotRequired[str]


class UploadRecord(TypedDict):
    """An upload that a run made.

    `state` is `done`, `dead` (refused), `superseded` (by a newer one), `abandoned` (given up), or
    that of one that waits: `building`, `sealed`, `completing`, `held`. `completed_at` is when the
    backend acknowledged it, `reason` why it was refused.
    """

    upload_id: str
    state: str
    records: int
    bytes: int
    completed_at: str | None
    reason: str | None


class RunOutcome(RunRecord):
    """A run with what was kept of it.

    `params` and `result` are there while they are kept, secrets hidden by their names in `params`;
    `traceback` is of one that failed: the frames of the author's code, secrets masked. `uploads`
    are those of which the result has `upload_ids`.
    """

    params: NotRequired[JsonObject]
    result: NotRequired[object]
    traceback: NotRequired[str]
    uploads: NotRequired[list[UploadRecord]]


class RunFound(RunOutcome, BootFields):
    """The answer to `get_run`."""


class RunList(BootFields):
    """The answer to `list_runs`, newest first."""

    runs: list[RunRecord]


class Cancellation(TypedDict):
    """The answer to `cancel`: the run's status then, and whether it is being stopped."""

    run_id: str
    status: str
    cancelling: bool


class SendingNow(TypedDict):
    """The answer to `send_now`: what waits, and why it waited until now.

    `tried` is false where nothing is tried before an operator has acted, as after another folder
    took the installation over.
    """

    uploads: int
    records: int
    paused: str | None
    fault: str | None
    tried: bool


class HandlerStatus(TypedDict):
    """The answer to `sleep`, `wake`, `drain` and `resume`: active, idle, sleeping or draining."""

    status: str

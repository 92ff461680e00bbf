"""Requests of the HTTP API as models, and what they ask for: schedules, runs at once, queries.

Both spellings of the fields are taken: ScheduleZero's (`job_method`, `job_params`) and that of
its documents (`method_name`, `params`, `trigger_config`). Error texts are ScheduleZero's where it
has one.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from catalogzero.scheduler.answers import TRIGGER
from catalogzero.scheduler.models import Execution
from catalogzero.scheduler.ticks import Place, Schedule, to_us
from catalogzero.scheduler.triggers import make_trigger, parse_moment, parse_trigger
from catalogzero.web import HttpError, query_int
from catalogzero.wire.messages import JsonObject, encode_json

DEFAULT_LIMIT, MAX_LIMIT = 100, 1_000
MAX_ID_CHARS = 200
MAX_SECONDS = 10 * 366 * 86_400.0
SPELLINGS = {"method_name": "job_method", "params": "job_params", "trigger_config": "trigger"}
SPELT = {**SPELLINGS, "method": "job_method", "end_us": "end_time"}
"""What a request calls otherwise than a schedule does."""


def printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("not printable")
    return text


def integral(value: Any) -> Any:
    """3.0 as 3: JSON knows one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Name = Annotated[
    str, Field(strict=True, min_length=1, max_length=MAX_ID_CHARS), AfterValidator(printable)
]
Seconds = Annotated[float, Field(strict=True, ge=0, le=MAX_SECONDS)]
Timeout = Annotated[float, Field(strict=True, ge=0.001, le=MAX_SECONDS)]
Attempts = Annotated[int, Field(strict=True, ge=1, le=100), BeforeValidator(integral)]
Count = Annotated[int, Field(strict=True, ge=1, le=2**53), BeforeValidator(integral)]


class AskedCall(BaseModel):
    """Which method of which handler is called, and how; null is as good as absent."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    handler_id: Name
    job_method: Name = Field(description="Also `method_name`.")
    job_params: JsonObject = Field(default={}, description="Also `params`.")
    timeout_s: Timeout | None = Field(None, description="The run is cancelled after this long.")
    max_attempts: Attempts = Field(3, description="Of a method that is retry_safe.")
    partition: Annotated[bool, Field(strict=True)] = Field(
        False, description="A run of its own for each item that the handler's `list_items` names."
    )

    @model_validator(mode="before")
    @classmethod
    def _in_one_spelling(cls, given: JsonObject) -> JsonObject:
        """The fields as the model spells them, without those that stand for nothing."""
        body = {name: value for name, value in given.items() if value is not None}
        for theirs, ours in SPELLINGS.items():
            if theirs in body:
                body.setdefault(ours, body.pop(theirs))
        for name in ("trigger", "job_id"):
            if not body.get(name, True):
                del body[name]
        return body

    def _taken_over(self) -> JsonObject:
        """What schedules and executions have of it."""
        others = {"job_method", "job_params", "job_id", "trigger", "end_time", "wait", "paused"}
        same = self.model_dump(exclude=others)
        return {**same, "method": self.job_method, "params": self.job_params}


class RunNow(AskedCall):
    """The body of `POST /api/run_now`."""

    job_id: Annotated[Any, WithJsonSchema({"type": "string"})] = Field(
        None, description="The schedule whose history it belongs to; passed over where none is."
    )
    wait: Annotated[bool, Field(strict=True)] = True
    misfire_grace_s: Seconds = Field(
        30.0, description="Given up as missed when the handler is away for longer."
    )

    def execution(self, now: datetime) -> Execution:
        """The execution that is asked for."""
        return Execution(
            execution_id=str(uuid.uuid4()),
            job_id=f"immediate_{self.handler_id}_{self.job_method}_{now.timestamp():.6f}",
            **self._taken_over(),
        )


class NewSchedule(AskedCall):
    """The body of `POST /api/schedule`."""

    trigger: Annotated[Any, WithJsonSchema(TRIGGER)]
    job_id: Name | None = Field(None, description="Its name; made up when absent.")
    overlap: Literal["skip", "queue", "parallel"] = "skip"
    misfire_grace_s: Seconds | None = Field(
        None, description="A tick later than this is missed; without it, it runs however late."
    )
    jitter_s: Seconds = 0.0
    max_runs: Count | None = None
    end_time: Annotated[Any, WithJsonSchema({"type": "string", "format": "date-time"})] = None
    paused: Annotated[bool, Field(strict=True)] | None = Field(
        None, description="Whether it rests; without it, one that is there stays as it is."
    )

    def schedule(self, now: datetime) -> Schedule:
        """The schedule that is asked for; whether its handler exists is not looked at.

        Raises:
            HttpError: 400, its trigger is invalid, or never fires.
        """
        config, end_us = checked_trigger(self.trigger, self.end_time, now)
        job_id = self.job_id or f"{self.handler_id}_{self.job_method}_{now.timestamp():.6f}"
        new = Schedule(
            schedule_id=str(uuid.uuid4()),
            job_id=job_id,
            trigger_config=config,
            end_us=end_us,
            **self._taken_over(),
        )
        check_jitter(new, now)
        return new


ModelT = TypeVar("ModelT", bound=AskedCall)


def read_model(model: type[ModelT], body: Any) -> ModelT:
    """The model in a JSON body.

    Raises:
        HttpError: 400, with the first thing that is missing or wrong.
    """
    if not isinstance(body, dict) or not body:
        raise HttpError(400, "JSON body required.")
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise HttpError(400, fault_text(model, error)) from None


def read_schedule(body: Any, now: datetime) -> Schedule:
    """The schedule that the body of `POST /api/schedule` asks for.

    It looks for the first fire time, which may take long where there is none.

    Raises:
        HttpError: 400, with the first thing that is missing or wrong.
    """
    asked = read_model(NewSchedule, body)
    schedule = asked.schedule(now)
    schedule.paused = bool(asked.paused)
    return schedule


def digest_of(one: Execution) -> str:
    """What a `run_now` asked for, to compare two requests of one Idempotency-Key."""
    asked = [one.handler_id, one.method, one.params, one.timeout_s, one.max_attempts]
    asked += ["partition"] if one.partition else []
    return sha256(encode_json(asked, sort_keys=True)).hexdigest()


def read_limit(
    query: Mapping[str, str], default: int = DEFAULT_LIMIT, most: int = MAX_LIMIT
) -> int:
    """The `limit` of a query, at most `most`.

    Raises:
        HttpError: 400, not a number.
    """
    limit = query_int(query, "limit", default)
    if limit < 1:
        raise HttpError(400, "Invalid parameter: limit must be 1 or more")
    return min(limit, most)


def read_flag(query: Mapping[str, str], name: str) -> bool:
    """A `true` or `false` of a query; false where it is absent.

    Raises:
        HttpError: 400, something else.
    """
    text = query.get(name, "false")
    if text not in ("true", "false"):
        raise HttpError(400, f"Invalid parameter: {name} must be true or false")
    return text == "true"


def check_choice(name: str, value: str, known: Collection[str]) -> None:
    """Refuse a value of a query that is not one of those that are known, or empty.

    Raises:
        HttpError: 400, with those that are.
    """
    if value and value not in known:
        raise HttpError(400, f"Invalid parameter: {name} must be one of {', '.join(known)}")


def read_cursor(query: Mapping[str, str]) -> int | None:
    """The `cursor` of a query, as an earlier answer gave it.

    Raises:
        HttpError: 400, not one of ours.
    """
    cursor = query.get("cursor")
    if cursor is None:
        return None
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise HttpError(400, "Invalid parameter: cursor is not one that an answer gave")
    return int(cursor)


def read_place(query: Mapping[str, str]) -> Place | None:
    """The `cursor` of a query for schedules, as an earlier answer gave it.

    Raises:
        HttpError: 400, not one of ours.
    """
    if "cursor" not in query:
        return None
    paused, _, rest = query["cursor"].partition(".")
    due, _, job_id = rest.partition(".")
    if paused not in ("0", "1") or not due.isascii() or not due.isdigit() or len(due) > 18:
        raise HttpError(400, "Invalid parameter: cursor is not one that an answer gave")
    return paused == "1", int(due), job_id


def place_text(place: Place) -> str:
    """A place among the schedules as a `cursor`."""
    return f"{int(place[0])}.{place[1]}.{place[2]}"


def fault_text(model: type[AskedCall], error: ValidationError) -> str:
    """What is missing, or else the first thing that is wrong, as ScheduleZero says it."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    missing = [fault["loc"][0] for fault in faults if fault["type"] == "missing"]
    if "trigger" in missing:
        return "Missing required field: 'trigger'"
    if missing:
        return f"Missing required fields: {missing}"
    name, kind = faults[0]["loc"][0], faults[0]["type"]
    schema = model.model_json_schema()["properties"][name]
    schema = schema.get("anyOf", [schema])[0]
    if "enum" in schema:
        form = f"one of {', '.join(schema['enum'])}"
    elif kind == "int_type":
        form = "a whole number"
    elif "minimum" in schema:
        form = f"a number from {schema['minimum']:g} to {schema['maximum']:g}"
    else:
        text = f"1 to {MAX_ID_CHARS} printable characters"
        forms = {"object": "a dictionary/object", "boolean": "true or false"}
        form = forms.get(schema["type"], text)
    return f"'{name}' must be {form}."


def checked_trigger(config: Any, end: Any, now: datetime) -> tuple[JsonObject, int | None]:
    """The stored trigger and the schedule's end: the trigger's own, or that of the request."""
    try:
        stored = parse_trigger(config)
        ends = [stored.pop("end_time", None), end]
        moments = [parse_moment(end, "end_time", stored.get("timezone")) for end in ends if end]
        first = make_trigger(stored).next_after(now - timedelta(microseconds=1))
        if moments and min(moments) < (first or now):
            raise ValueError("it ends before it fires")
        if first is None and stored["type"] != "date":
            raise ValueError("it never fires")
    except ValueError as error:
        raise HttpError(400, f"Invalid trigger configuration: {error}") from None
    return stored, to_us(min(moments)) if moments else None


def check_jitter(new: Schedule, now: datetime) -> None:
    """Refuse a jitter that would take a tick past the next one."""
    if not new.jitter_s:
        return
    first = new.trigger.next_after(now)
    second = None if first is None else new.trigger.next_after(first)
    if first and second and (second - first).total_seconds() <= new.jitter_s:
        raise HttpError(400, "'jitter_s' must be shorter than the time between two runs.")
